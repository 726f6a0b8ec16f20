"""Reads a diff strictly, in linear time, says which files it changes and how much, and refuses all it cannot vouch for.

The format is what `git diff --no-renames --full-index --binary` writes (git-diff(1), "Generating patch text with -p"),
without anything before, between or after its files. The answer is for limits and for comparison: permission is judged
from the difference of the resulting trees (`git.changes`), because git follows other lines of a lying header than a
reader would expect (reliability.md, fact 4).
"""

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from pipeline.refusals import Refused

Kind = Literal["add", "change", "delete"]

MAX_BYTES = 2 << 20
MAX_FILES = 300
MAX_CHANGED_LINES = 20_000
MAX_HUNKS = 2_000
MAX_LINE_BYTES = 64 << 10
MAX_NUMBER = 10**7
MAX_PATH_BYTES = 1_024
MAX_PART_BYTES = 255
MAX_LEVELS = 32

PLAIN_MODES = ("100644", "100755")
NO_NEWLINE = "\\ No newline at end of file"

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(?: .*)?\Z", re.DOTALL | re.ASCII)
_INDEX = re.compile(r"index ([0-9a-f]{4,64})\.\.([0-9a-f]{4,64})(?: ([0-7]+))?\Z")
_MODE = re.compile(r"(old mode|new mode|new file mode|deleted file mode) (.*)\Z", re.DOTALL)
_MOVES = ("similarity index ", "dissimilarity index ", "rename from ", "rename to ", "copy from ", "copy to ")
_ESCAPE = re.compile(rb'\\(?:([0-3][0-7]{2})|([abfnrtv"\\]))')
_LETTERS = dict(zip(b'abfnrtv"\\', b'\a\b\f\n\r\t\v"\\', strict=True))
_DRIVE = re.compile(r"[A-Za-z]:(?:[/\\]|\Z)")
_DOTGIT = re.compile(r"\.git\Z|git~[0-9]+\Z")
_DEVICES = frozenset(
    ["con", "prn", "aux", "nul", "conin$", "conout$"]
    + [f"{port}{digit}" for port in ("com", "lpt") for digit in "123456789¹²³"]
)


class DiffRefused(Refused):
    """The text is not a diff that the ledger takes; `code` says which rule, `parts["line"]` where (from 1).

    Codes of domain.md §1.10: path_escape, path_absolute, dotgit, symlink_target, submodule, bad_mode, bad_name,
    header_mismatch, duplicate_file, not_unified_diff, patch_too_large (status 413). Forms of git's format that are not
    taken: binary_patch, rename (copies and rewrites too), mode_change.
    """

    code = "not_unified_diff"
    status = 422

    def __init__(self, code: str, message: str, line: int = 0) -> None:
        where: dict[str, Any] = {"line": line} if line else {}
        super().__init__(message, code=code, status=413 if code == "patch_too_large" else 422, **where)


@dataclass(frozen=True)
class FileChange:
    """What a diff does to one file. Modes are six octal digits, "" on the absent side and where the diff says none.

    `hunks` is a count; `ascii` is whether the path and all inserted lines are ASCII; `binary` is for a diff that holds
    the file as a literal instead of lines.
    """

    path: str
    kind: Kind
    old_mode: str
    new_mode: str
    insertions: int
    deletions: int
    hunks: int
    binary: bool = False
    ascii: bool = True


@dataclass(frozen=True)
class Diff:
    """The files of a diff in its own order, each path once, and the sums over them."""

    files: tuple[FileChange, ...]
    insertions: int
    deletions: int
    hunks: int


def parse(text: str) -> Diff:
    """What `text` changes. Raises DiffRefused with the code of the first rule it breaks; never another error.

    Every count in a hunk header must be met exactly, hunks must stand in order at lines that add up, a new file may
    have no old lines, and the text ends with a line end. Work and memory grow linearly with the text.
    """
    return _Reader(text).read()


def judge_path(path: str, line: int = 0) -> str:
    """`path` itself if a tree of ours may hold it; raises DiffRefused (`line` goes into it) if not.

    Allowed are relative paths in NFC UTF-8 of at most 1,024 bytes and 32 parts of at most 255 bytes, without control,
    format or line separator characters, backslashes, empty or `.` parts (bad_name), `..` (path_escape), `.git` in any
    spelling that some file system takes for it (dotgit), parts that end in a dot or a blank, names of Windows devices,
    and without a leading `-` (bad_name). A leading `/` or drive is path_absolute.
    """
    if path.startswith("/") or _DRIVE.match(path):
        _refuse("path_absolute", "An absolute path", path, line)
    parts = path.split("/")
    for part in path.replace("\\", "/").split("/"):
        if part == "..":
            _refuse("path_escape", "A path that leaves the tree", path, line)
        if _is_dotgit(part):
            _refuse("dotgit", "A path inside git's own folder", path, line)
    if not path.isascii() or not path.isprintable():
        if any(unicodedata.category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"} for letter in path):
            _refuse("bad_name", "A control character, or a byte that is not UTF-8, in a path", path, line)
        if not unicodedata.is_normalized("NFC", path):
            _refuse("bad_name", "A path that is not in Unicode normal form C", path, line)
    if "\\" in path:
        _refuse("bad_name", "A backslash in a path", path, line)
    if path.startswith("-"):
        _refuse("bad_name", "A path that begins like an option", path, line)
    if len(parts) > MAX_LEVELS or len(path.encode()) > MAX_PATH_BYTES:
        _refuse("bad_name", f"A path of more than {MAX_PATH_BYTES} bytes or {MAX_LEVELS} levels", path, line)
    for part in parts:
        if part in {"", "."}:
            _refuse("bad_name", "An empty part in a path", path, line)
        if part[-1] in ". ":
            _refuse("bad_name", "A part of a path that ends in a dot or a blank", path, line)
        if len(part.encode()) > MAX_PART_BYTES:
            _refuse("bad_name", f"A part of a path of more than {MAX_PART_BYTES} bytes", path, line)
        if part.split(".")[0].rstrip(" ").casefold() in _DEVICES:
            _refuse("bad_name", "The name of a Windows device", path, line)
    return path


def _is_dotgit(part: str) -> bool:
    """Whether some file system opens `.git` for `part`: HFS+ ignores case and zero-width characters, NTFS what follows
    a colon and blanks and dots at the end, and knows the short name GIT~1."""
    if not part.isascii():
        part = "".join(letter for letter in part if unicodedata.category(letter) != "Cf")
        part = unicodedata.normalize("NFKC", part)
    return bool(_DOTGIT.match(part.split(":")[0].rstrip(" .").casefold()))


def _refuse(code: str, what: str, found: str, line: int) -> NoReturn:
    shown = found[:200].encode("unicode_escape").decode()
    raise DiffRefused(code, f"{what}: {shown}" + (f" (line {line})" if line else ""), line)


class _Reader:
    """One pass over the lines of one diff."""

    def __init__(self, text: str) -> None:
        if len(text) > MAX_BYTES or len(text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            raise DiffRefused("patch_too_large", f"The diff has more than {MAX_BYTES} bytes")
        if not text.strip():
            raise DiffRefused("not_unified_diff", "The diff is empty")
        self.lines = text.split("\n")
        self.at = 0
        self._check_lines(text)
        if self.lines.pop():
            raise DiffRefused("not_unified_diff", "The diff is cut off: its last line has no end", len(self.lines) + 1)
        self.insertions = self.deletions = self.hunks = 0

    def _check_lines(self, text: str) -> None:
        """Bounds on each line, and nothing in them that is not text."""
        if len(text) > MAX_LINE_BYTES // 4:
            for number, line in enumerate(self.lines, 1):
                if len(line) > MAX_LINE_BYTES // 4 and len(line.encode("utf-8", "surrogatepass")) > MAX_LINE_BYTES:
                    message = f"A line of more than {MAX_LINE_BYTES} bytes (line {number})"
                    raise DiffRefused("patch_too_large", message, number)
        if text.isascii() and "\0" not in text:
            return
        for number, line in enumerate(self.lines, 1):
            if "\0" in line or (not line.isascii() and re.search("[\ud800-\udfff]", line)):
                if line.startswith(("diff --git ", "--- ", "+++ ")):
                    _refuse("bad_name", "A path that is not UTF-8 text", line, number)
                raise DiffRefused("binary_patch", f"Not UTF-8 text (line {number})", number)

    def read(self) -> Diff:
        files: dict[str, FileChange] = {}
        while self.at < len(self.lines):
            if len(files) == MAX_FILES:
                raise DiffRefused("patch_too_large", f"The diff has more than {MAX_FILES} files")
            file = self._file(files)
            files[file.path] = file
        return Diff(tuple(files.values()), self.insertions, self.deletions, self.hunks)

    @property
    def line(self) -> str:
        """The present line; "" after the last, which no rule takes for anything."""
        return self.lines[self.at] if self.at < len(self.lines) else ""

    def _wrong(self, what: str, code: str = "not_unified_diff") -> NoReturn:
        _refuse(code, what, self.line if self.at < len(self.lines) else "end of the diff", self.at + 1)

    # --- the header of one file --------------------------------------------------------------------------------------

    def _file(self, earlier: dict[str, FileChange]) -> FileChange:
        path = self._names()
        modes, ids, index_mode = self._extended()
        if path in earlier:
            _refuse("duplicate_file", "A file that the diff has already changed", path, self.at)
        if "old mode" in modes or "new mode" in modes:
            _refuse("mode_change", "A change of mode is not taken yet", path, self.at)
        kind: Kind = "change"
        old_mode = new_mode = index_mode
        if "new file mode" in modes:
            kind, old_mode, new_mode = "add", "", modes["new file mode"]
        if "deleted file mode" in modes:
            kind, old_mode, new_mode = "delete", modes["deleted file mode"], ""
        if len(modes) > 1 or (index_mode and kind != "change"):
            _refuse("header_mismatch", "A file header that contradicts itself", path, self.at)
        if ids and (not ids[0].strip("0"), not ids[1].strip("0")) != (kind == "add", kind == "delete"):
            _refuse("header_mismatch", f"An index line that does not belong to this kind ({kind})", path, self.at)
        if self.line.startswith(("Binary files ", "GIT binary patch")):
            self._wrong("A binary file is not taken yet", "binary_patch")
        if not self.line.startswith("--- "):
            if kind == "change" or (self.at < len(self.lines) and not self.line.startswith("diff --git ")):
                self._wrong("No --- line")
            return FileChange(path, kind, old_mode, new_mode, 0, 0, 0, False, path.isascii())
        self._expect("--- ", "a/", path, kind == "add")
        self._expect("+++ ", "b/", path, kind == "delete")
        return self._body(path, kind, old_mode, new_mode)

    def _names(self) -> str:
        """The path in a `diff --git` line, judged; both sides must name it."""
        if not self.line.startswith("diff --git "):
            if self.line.startswith(("--- ", "+++ ")):
                self._name(self.line[4:].split("\t")[0], "")
            self._wrong("Not the header of a file as git writes it")
        self._no_carriage_return()
        old, new = self._halves(self.line.removeprefix("diff --git "))
        for name, prefix in ((old, "a/"), (new, "b/")):
            judge_path(name.removeprefix(prefix), self.at + 1)
            if not name.startswith(prefix):
                self._wrong(f"A name without {prefix}")
        if old[2:] != new[2:]:
            if any(line.startswith(_MOVES) for line in self.lines[self.at + 1 : self.at + 5]):
                self._wrong("A rename or copy is not taken yet", "rename")
            self._wrong("The two names differ", "header_mismatch")
        self.at += 1
        return old[2:]

    def _halves(self, names: str) -> tuple[str, str]:
        """The two names of a `diff --git` line. Unquoted ones may hold blanks: equal halves are how git reads them."""
        if names.startswith('"'):
            end = _closing_quote(names)
            if end < 0 or names[end + 1 : end + 2] != " ":
                self._wrong("Names that cannot be told apart", "bad_name")
            return self._unquoted(names[: end + 1]), self._unquoted(names[end + 2 :])
        if names.endswith('"') and (start := names.find(' "')) > 0:
            return names[:start], self._unquoted(names[start + 1 :])
        middle = len(names) // 2
        if len(names) % 2 and names[middle] == " " and names[2:middle] == names[middle + 3 :]:
            return names[:middle], names[middle + 1 :]
        old, blank, new = names.partition(" b/")
        if not blank:
            old, _, new = names.partition(" ")
            if not new:
                self._wrong("Not the header of a file as git writes it")
            return old, new
        return old, f"b/{new}"

    def _unquoted(self, name: str) -> str:
        """A name as git C-quotes it, or a plain one; refuses malformed quoting and bytes that are not UTF-8."""
        if not name.startswith('"'):
            return name
        if _closing_quote(name) != len(name) - 1:
            self._wrong("A name with malformed quoting", "bad_name")
        inner = name[1:-1].encode()
        if b"\\" in _ESCAPE.sub(b"", inner):
            self._wrong("A name with malformed quoting", "bad_name")
        raw = _ESCAPE.sub(lambda found: bytes([int(found[1], 8) if found[1] else _LETTERS[found[2][0]]]), inner)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self._wrong("A name that is not UTF-8", "bad_name")

    def _name(self, written: str, prefix: str) -> str:
        """The judged path of a ---/+++ line without `prefix`, or `/dev/null`."""
        name = self._unquoted(written)
        if name == "/dev/null":
            return name
        judge_path(name.removeprefix(prefix), self.at + 1)
        if not name.startswith(prefix):
            self._wrong(f"A name without {prefix}", "header_mismatch")
        return name.removeprefix(prefix)

    def _expect(self, mark: str, prefix: str, path: str, absent: bool) -> None:
        """Take a ---/+++ line, which must name `path`, or /dev/null when that side is `absent`."""
        if not self.line.startswith(mark):
            self._wrong(f"No {mark.strip()} line")
        self._no_carriage_return()
        written = self.line.removeprefix(mark)
        if written.endswith("\t") and " " in written:
            written = written[:-1]  # git ends a name that has blanks with a tab, for the patch program's sake
        if self._name(written, prefix) != ("/dev/null" if absent else path):
            self._wrong("A name that is not the one in the file's header", "header_mismatch")
        self.at += 1

    def _extended(self) -> tuple[dict[str, str], tuple[str, str] | None, str]:
        """The mode lines by their words, both object names of the index line, and its mode."""
        modes: dict[str, str] = {}
        while True:
            line = self.line
            if line.startswith(_MOVES):
                self._wrong("A rename or copy is not taken yet", "rename")
            if found := _MODE.match(line):
                self._no_carriage_return()
                if found[1] in modes:
                    self._wrong("A header line twice", "header_mismatch")
                modes[found[1]] = self._mode(found[2])
            elif line.startswith("index "):
                self._no_carriage_return()
                if not (index := _INDEX.match(line)):
                    self._wrong("Not an index line as git writes it")
                mode = self._mode(index[3]) if index[3] else ""
                self.at += 1
                return modes, (index[1], index[2]), mode
            else:
                return modes, None, ""
            self.at += 1

    def _mode(self, mode: str) -> str:
        if mode == "120000":
            self._wrong("A symbolic link is not taken yet", "symlink_target")
        if mode == "160000":
            self._wrong("A submodule", "submodule")
        if mode not in PLAIN_MODES:
            self._wrong("A mode other than 100644 and 100755", "bad_mode")
        return mode

    def _no_carriage_return(self) -> None:
        if self.line.endswith("\r"):
            self._wrong("Line ends were changed on the way")

    # --- the hunks of one file ---------------------------------------------------------------------------------------

    def _body(self, path: str, kind: Kind, old_mode: str, new_mode: str) -> FileChange:
        insertions = deletions = hunks = shift = old_end = 0
        ascii_only, ended = path.isascii(), False
        while self.line.startswith("@@ "):
            old_start, old_count, new_start, new_count = self._hunk_header()
            if (kind == "add" and old_count) or (kind == "delete" and new_count):
                self._wrong(f"Lines on the side that is absent ({kind})", "header_mismatch")
            # A side without lines is written with the number of the line before it.
            old_at = old_start - (old_count > 0)
            new_at = new_start - (new_count > 0)
            if (
                ended
                or min(old_at, new_at) < 0
                or old_at < old_end
                or new_at != old_at + shift
                or (hunks and not old_at)
            ):
                self._wrong("A hunk at a line that does not add up with the others")
            if (kind == "add" and old_at) or (kind == "delete" and new_at):
                self._wrong(f"Not the whole file ({kind})", "header_mismatch")
            self.at += 1
            added, removed, plain, ended = self._hunk_lines(old_count, new_count)
            insertions, deletions, hunks = insertions + added, deletions + removed, hunks + 1
            ascii_only, old_end, shift = ascii_only and plain, old_at + old_count, shift + new_count - old_count
        if not hunks:
            self._wrong("No hunk")
        if self.at < len(self.lines) and not self.line.startswith("diff --git "):
            self._wrong("Neither a hunk nor the header of a file")
        return FileChange(path, kind, old_mode, new_mode, insertions, deletions, hunks, False, ascii_only)

    def _hunk_header(self) -> tuple[int, int, int, int]:
        found = _HUNK.match(self.line)
        if not found:
            self._wrong("Not the header of a hunk")
        if any(len(digits) > len(str(MAX_NUMBER)) for digits in found.groups("1")):
            self._wrong(f"A number above {MAX_NUMBER}", "patch_too_large")
        numbers = [int(digits) for digits in found.groups("1")]
        if max(numbers) > MAX_NUMBER:
            self._wrong(f"A number above {MAX_NUMBER}", "patch_too_large")
        self.hunks += 1
        if self.hunks > MAX_HUNKS:
            self._wrong(f"More than {MAX_HUNKS} hunks", "patch_too_large")
        return numbers[0], numbers[1], numbers[2], numbers[3]

    def _hunk_lines(self, old: int, new: int) -> tuple[int, int, bool, bool]:
        """Take a hunk's `old` and `new` lines: how many inserted, how many deleted, all ASCII, end of the file met."""
        added = removed = 0
        plain = True
        old_ended = new_ended = False
        while old or new or self.line.startswith("\\"):
            if self.at == len(self.lines):
                self._wrong("A hunk that is shorter than it says")
            line = self.lines[self.at]
            mark = line[:1]
            if mark == "\\":
                last = self.lines[self.at - 1][:1]
                if line != NO_NEWLINE or last in "@\\":
                    self._wrong("Not a line of a hunk")
                # A line in the middle of a file cannot lack its end: nothing of that side may follow.
                old_ended, new_ended = old_ended or last != "+", new_ended or last != "-"
                if (old_ended and old) or (new_ended and new):
                    self._wrong("Lines after the end of the file")
            elif mark == "+" and new:
                added, new = added + 1, new - 1
                plain = plain and line.isascii()
            elif mark == "-" and old:
                removed, old = removed + 1, old - 1
            elif mark in {" ", ""} and old and new:
                old, new = old - 1, new - 1
            else:
                self._wrong("A hunk whose lines are not as many as it says")
            self.at += 1
        if not added and not removed:
            self.at -= 1
            self._wrong("A hunk that changes nothing")
        self.insertions, self.deletions = self.insertions + added, self.deletions + removed
        if self.insertions + self.deletions > MAX_CHANGED_LINES:
            raise DiffRefused("patch_too_large", f"More than {MAX_CHANGED_LINES} changed lines", self.at)
        return added, removed, plain, old_ended or new_ended


def _closing_quote(text: str) -> int:
    """Where the C-quoted name that `text` begins with ends; -1 when it does not."""
    found = re.match(r'"(?:[^"\\]|\\.)*"', text, re.DOTALL)
    return found.end() - 1 if found else -1
