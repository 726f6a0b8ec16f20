"""Reads a diff strictly, in linear time, says which files it changes and how much, and refuses all it cannot vouch for.

The format is what `git diff --full-index --binary` writes (git-diff(1), "Generating patch text with -p"), with or
without renames and copies, without anything before, between or after its files. The answer is for limits and for
comparison: permission is judged from the difference of the resulting trees (`git.changes`), because git follows other
lines of a lying header than a reader would expect (reliability.md, fact 4).
"""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

from ledger import leaks, literals
from ledger.literals import Content
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
LONGEST_SHOWN = 2_000  # letters in which a refusal looks for secrets, of which it shows 200
MAX_BINARY_BYTES = 8 << 20  # of all contents that a diff's binary parts unfold to, and of all that they make


@dataclass(frozen=True)
class Bounds:
    """How large a diff may be; bytes are those of UTF-8."""

    size: int = MAX_BYTES
    files: int = MAX_FILES
    changed_lines: int = MAX_CHANGED_LINES
    hunks: int = MAX_HUNKS
    line: int = MAX_LINE_BYTES
    binary: int = MAX_BINARY_BYTES


SUBMITTED = Bounds()

REVERSED = Bounds(
    size=8 * MAX_BYTES,
    files=8 * MAX_FILES,
    changed_lines=8 * MAX_CHANGED_LINES,
    hunks=8 * MAX_HUNKS,
    binary=8 * MAX_BINARY_BYTES,
)
"""Of what we write ourselves to undo what has landed: 93 bytes that copy a file are undone by all of its lines. These
bounds only keep a process in its memory (decision 0032).
"""

PLAIN_MODES = ("100644", "100755")
LINK_MODE = "120000"
NO_NEWLINE = "\\ No newline at end of file"

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@(?: .*)?\Z", re.DOTALL | re.ASCII)
_INDEX = re.compile(r"index ([0-9a-f]{4,64})\.\.([0-9a-f]{4,64})(?: ([0-7]+))?\Z")
_MODE = re.compile(r"(old mode|new mode|new file mode|deleted file mode) (.*)\Z", re.DOTALL)
_MOVE = re.compile(r"(rename|copy) (from|to) (.*)\Z", re.DOTALL)
_SIMILARITY = re.compile(r"(similarity|dissimilarity) index (\d{1,3})%\Z", re.ASCII)
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
    header_mismatch, case_collision, duplicate_file, not_unified_diff, patch_too_large (status 413); and binary_patch
    for a binary file without its content, or text that is not UTF-8.
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
    the file's content instead of lines. A copy adds its file, and a rename adds one and deletes another; `source` is
    then the path that it was taken from. Lines that came with it are not counted.
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
    source: str = ""


@dataclass(frozen=True)
class Binary:
    """The content of a binary file as the diff holds it. `old_oid` and `new_oid` are full object names, zeros on an
    absent side; `source` is the path whose content a delta starts from.
    """

    path: str
    source: str
    old_oid: str
    new_oid: str
    content: Content


@dataclass(frozen=True)
class Diff:
    """The files of a diff, each path once: one for each header in its own order, then those that renames took away.

    The other three are sums over them; `binaries` are the contents of those that are binary.
    """

    files: tuple[FileChange, ...]
    insertions: int
    deletions: int
    hunks: int
    binaries: tuple[Binary, ...] = ()


def parse(text: str, *, links: bool = False, bounds: Bounds = SUBMITTED) -> Diff:
    """What `text` changes. Raises DiffRefused with the code of the first rule it breaks; never another error.

    It has to stay in `bounds`, which are those of what is submitted unless others are named.

    Symbolic links are taken only with `links`, and then only those whose target `judge_target` lets pass.
    Every count in a hunk header must be met exactly, hunks must stand in order at lines that add up, a new file may
    have no old lines, and the text ends with a line end. Work and memory grow linearly with the text.
    """
    return _Reader(text, links, bounds).read()


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


def judge_target(path: str, target: str, line: int = 0) -> str:
    """The path inside the tree to which the link at `path` leads by its text alone; whether another link stands on the
    way, only the tree can tell. Raises DiffRefused `symlink_target`.

    Allowed is a relative path, `..` only at its beginning and never above the root, to something that a tree of ours
    may hold and that is neither the link itself nor a folder in which it stands: whoever walks the tree must come to
    an end. Loops of several links are found in the tree (`ledger.links`).
    """
    parts = target.split("/")
    ups = next((at for at, part in enumerate(parts) if part != ".."), len(parts))
    here = path.split("/")[:-1]
    found = "/".join([*here[: len(here) - ups], *parts[ups:]])
    if ups > len(here) or ".." in parts[ups:] or target.startswith("/") or _DRIVE.match(target):
        _refuse("symlink_target", "A link that leads out of the tree", target, line)
    try:
        judge_path(found, line)
    except DiffRefused as refusal:
        raise DiffRefused("symlink_target", f"A link to what no tree may hold: {refusal}", line) from refusal
    if f"{path}/".startswith(f"{found}/"):
        _refuse("symlink_target", "A link that leads to itself or to a folder around it", target, line)
    return found


def folded(path: str) -> str:
    """What file systems that ignore case and Unicode's normal forms take for the same name (Unicode 15, D145)."""
    if path.isascii():
        return path.lower()
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def refuse_collision(path: str, other: str) -> NoReturn:
    """Refuse a file at `path` beside `other`, which some file systems cannot tell from it."""
    _refuse("case_collision", f"A path that differs from {_shown(other)} in case or form only", path, 0)


def _is_dotgit(part: str) -> bool:
    """Whether some file system opens `.git` for `part`: HFS+ ignores case and zero-width characters, NTFS what follows
    a colon and blanks and dots at the end, and knows the short name GIT~1."""
    if not part.isascii():
        part = "".join(letter for letter in part if unicodedata.category(letter) != "Cf")
        part = unicodedata.normalize("NFKC", part)
    return bool(_DOTGIT.match(part.split(":")[0].rstrip(" .").casefold()))


def _refuse(code: str, what: str, found: str, line: int) -> NoReturn:
    raise DiffRefused(code, f"{what}: {_shown(found)}" + (f" (line {line})" if line else ""), line)


def _shown(found: str) -> str:
    """The beginning of what was found, without secrets: refusals are kept in events."""
    return leaks.redacted(found[:LONGEST_SHOWN])[:200].encode("unicode_escape").decode()


@dataclass
class _Header:
    """The lines between the names of a file and its content."""

    modes: dict[str, str] = field(default_factory=dict)
    moved: str = ""  # rename or copy
    source: str = ""
    target: str = ""
    similarity: str = ""
    percent: int = -1
    ids: tuple[str, str] | None = None
    index_mode: str = ""


class _Reader:
    """One pass over the lines of one diff."""

    def __init__(self, text: str, links: bool, bounds: Bounds) -> None:
        self.links, self.bounds = links, bounds
        most = bounds.size
        if len(text) > most // 4 and (size := len(text.encode("utf-8", "surrogatepass"))) > most:
            raise DiffRefused("patch_too_large", f"The diff has {size} bytes; at most {most} are taken")
        if not text.strip():
            raise DiffRefused("not_unified_diff", "The diff is empty")
        self.lines = text.split("\n")
        self.at = 0
        self._check_lines(text)
        if self.lines.pop():
            raise DiffRefused("not_unified_diff", "The diff is cut off: its last line has no end", len(self.lines) + 1)
        self.insertions = self.deletions = self.hunks = 0
        self.room = bounds.binary
        self.binaries: list[Binary] = []

    def _check_lines(self, text: str) -> None:
        """Bounds on each line, and nothing in them that is not text."""
        most = self.bounds.line
        if len(text) > most // 4:
            for number, line in enumerate(self.lines, 1):
                if len(line) > most // 4 and len(line.encode("utf-8", "surrogatepass")) > most:
                    message = f"A line of more than {most} bytes (line {number})"
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
        moved: dict[str, FileChange] = {}
        while self.at < len(self.lines):
            start = self.at
            file, gone = self._file()
            for change in (file, gone):
                if change is not None and (change.path in files or change.path in moved):
                    _refuse("duplicate_file", "A file that the diff has already changed", change.path, start + 1)
            files[file.path] = file
            if gone is not None:
                moved[gone.path] = gone
            if len(files) + len(moved) > self.bounds.files:
                raise DiffRefused("patch_too_large", f"The diff has more than {self.bounds.files} files")
        self._refuse_collisions(files.values())
        return Diff(
            (*files.values(), *moved.values()), self.insertions, self.deletions, self.hunks, tuple(self.binaries)
        )

    def _refuse_collisions(self, files: Iterable[FileChange]) -> None:
        """No file may be added beside one of another spelling; folders count as well."""
        spelled: dict[str, tuple[str, bool]] = {}
        for file in files:
            if file.kind == "delete":
                continue
            parts = file.path.split("/")
            for depth in range(1, len(parts) + 1):
                path = "/".join(parts[:depth])
                known, is_new = spelled.setdefault(folded(path), (path, file.kind == "add"))
                if known != path and (is_new or file.kind == "add"):
                    refuse_collision(path, known)
                if file.kind == "add":
                    spelled[folded(path)] = (known, True)

    @property
    def line(self) -> str:
        """The present line; "" after the last, which no rule takes for anything."""
        return self.lines[self.at] if self.at < len(self.lines) else ""

    def _wrong(self, what: str, code: str = "not_unified_diff") -> NoReturn:
        _refuse(code, what, self.line if self.at < len(self.lines) else "end of the diff", self.at + 1)

    # --- the header of one file --------------------------------------------------------------------------------------

    def _file(self) -> tuple[FileChange, FileChange | None]:
        """What the next header and its content do to a file, and to the one that a rename takes away."""
        old, new = self._names()
        header = self._extended()
        kind: Kind = "change"
        old_mode = new_mode = header.index_mode
        if "new file mode" in header.modes:
            kind, old_mode, new_mode = "add", "", header.modes["new file mode"]
        elif "deleted file mode" in header.modes:
            kind, old_mode, new_mode = "delete", header.modes["deleted file mode"], ""
        elif header.modes:
            old_mode, new_mode = header.modes.get("old mode", ""), header.modes.get("new mode", "")
        self._check_header(header, kind, old, new)
        start = self.at
        change = self._content(header, kind, old, new)
        if new_mode == LINK_MODE:
            self._check_link(change, start)
        change = replace(change, old_mode=old_mode, new_mode=new_mode)
        if not header.moved:
            return change, None
        gone = FileChange(old, "delete", old_mode, "", 0, 0, 0, change.binary, old.isascii(), old)
        change = replace(change, kind="add", old_mode="", source=old)
        return change, gone if header.moved == "rename" else None

    def _check_link(self, change: FileChange, start: int) -> None:
        """Refuse a link whose target leads elsewhere, and one whose content is anything but the line of a target."""
        told = [
            line[1:] for line in self.lines[start : self.at] if line.startswith("+") and not line.startswith("+++ ")
        ]
        if change.binary or len(told) != 1 or self.lines[self.at - 1] != NO_NEWLINE:
            _refuse("symlink_target", "A link whose content is not the one line of its target", change.path, start + 1)
        judge_target(change.path, told[0], start + 1)

    def _check_header(self, header: _Header, kind: Kind, old: str, new: str) -> None:
        """Refuse a header that contradicts itself. The present line is the one after it."""
        pair = {"old mode", "new mode"}
        given, ids = header.modes.keys(), header.ids
        contradicts = (
            (given & pair and given != pair)
            or (len(given) > 1 and given != pair)
            or (given == pair and header.modes["old mode"] == header.modes["new mode"])
            or (header.index_mode and given)
            or (header.moved and (not header.source or not header.target or kind != "change" or old == new))
            or (header.moved and header.similarity != "similarity")
            or (header.similarity == "similarity" and not header.moved)
            or header.percent > 100
        )
        if contradicts:
            _refuse("header_mismatch", "A file header that contradicts itself", new, self.at)
        if given == pair and LINK_MODE in header.modes.values():
            _refuse(
                "symlink_target", "A file that becomes a link, or was one: delete it in a patch before", new, self.at
            )
        if ids and (not ids[0].strip("0"), not ids[1].strip("0")) != (kind == "add", kind == "delete"):
            _refuse("header_mismatch", f"An index line that does not belong to this kind ({kind})", new, self.at)

    def _content(self, header: _Header, kind: Kind, old: str, new: str) -> FileChange:
        """What follows the header: hunks, a binary content, or nothing where the header has said everything."""
        if self.line.startswith("Binary files "):
            self._wrong("A binary file without its content; git diff --binary writes it", "binary_patch")
        if self.line == "GIT binary patch":
            return self._binary(header, kind, old, new)
        if not self.line.startswith("--- "):
            complete = header.percent == 100 if header.moved else kind != "change" or "new mode" in header.modes
            if not complete or (header.ids and kind == "change"):
                self._wrong("No --- line")
            if self.at < len(self.lines) and not self.line.startswith("diff --git "):
                self._wrong("No --- line")
            return FileChange(new, kind, "", "", 0, 0, 0, False, new.isascii())
        if header.moved and header.percent == 100:
            self._wrong("Lines that change in a file that is said to stay the same", "header_mismatch")
        self._expect("--- ", "a/", old, kind == "add")
        self._expect("+++ ", "b/", new, kind == "delete")
        return self._body(new, kind)

    def _names(self) -> tuple[str, str]:
        """Both paths in a `diff --git` line, judged; they differ only where the lines below say rename or copy."""
        if not self.line.startswith("diff --git "):
            if self.line.startswith(("--- ", "+++ ")):
                self._name(self.line[4:].split("\t")[0], "")
            self._wrong("Not the header of a file as git writes it")
        self._no_carriage_return()
        written = self.line.removeprefix("diff --git ")
        moved = self._moved_names()
        # Two plain names with blanks can be told apart only by the lines below.
        if moved and written == f"a/{moved[0]} b/{moved[1]}":
            old, new = f"a/{moved[0]}", f"b/{moved[1]}"
        else:
            old, new = self._halves(written)
        for name, prefix in ((old, "a/"), (new, "b/")):
            judge_path(name.removeprefix(prefix), self.at + 1)
            if not name.startswith(prefix):
                self._wrong(f"A name without {prefix}")
        if (old[2:], new[2:]) != (moved or (old[2:], old[2:])):
            self._wrong(
                "The names are not those of the lines below" if moved else "The two names differ", "header_mismatch"
            )
        self.at += 1
        return old[2:], new[2:]

    def _moved_names(self) -> tuple[str, str] | None:
        """The names in the rename or copy lines below the present one, judged; None when there are none."""
        found: dict[str, str] = {}
        for number in range(self.at + 1, min(self.at + 6, len(self.lines))):
            line = self.lines[number]
            if move := _MOVE.match(line):
                found[move[2]] = judge_path(self._unquoted(move[3]), number + 1)
            elif not line.startswith(("old mode ", "new mode ", "similarity index ")):
                break
        return (found.get("from", ""), found.get("to", "")) if found else None

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

    def _extended(self) -> _Header:
        """The lines up to the content, each at most once."""
        header = _Header()
        while True:
            line = self.line
            if found := _MODE.match(line):
                self._no_carriage_return()
                if found[1] in header.modes:
                    self._wrong("A header line twice", "header_mismatch")
                header.modes[found[1]] = self._mode(found[2])
            elif found := _MOVE.match(line):
                self._no_carriage_return()
                side = "source" if found[2] == "from" else "target"
                if getattr(header, side) or header.moved not in ("", found[1]):
                    self._wrong("A header line twice", "header_mismatch")
                header.moved = found[1]
                setattr(header, side, self._unquoted(found[3]))
            elif line.startswith(("similarity index ", "dissimilarity index ")):
                if not (found := _SIMILARITY.match(line)):
                    self._wrong("Not a line about similarity as git writes it")
                if header.similarity:
                    self._wrong("A header line twice", "header_mismatch")
                header.similarity, header.percent = found[1], int(found[2])
            elif line.startswith("index "):
                self._no_carriage_return()
                if not (index := _INDEX.match(line)):
                    self._wrong("Not an index line as git writes it")
                header.index_mode = self._mode(index[3]) if index[3] else ""
                header.ids = (index[1], index[2])
                self.at += 1
                return header
            else:
                return header
            self.at += 1

    def _mode(self, mode: str) -> str:
        if mode == LINK_MODE and self.links:
            return mode
        if mode == LINK_MODE:
            self._wrong("A symbolic link, which the policy does not allow (forbid_symlinks)", "symlink_target")
        if mode == "160000":
            self._wrong("A submodule", "submodule")
        if mode not in PLAIN_MODES:
            self._wrong("A mode other than 100644 and 100755", "bad_mode")
        return mode

    def _no_carriage_return(self) -> None:
        if self.line.endswith("\r"):
            self._wrong("Line ends were changed on the way")

    # --- the content of one file -------------------------------------------------------------------------------------

    def _binary(self, header: _Header, kind: Kind, old: str, new: str) -> FileChange:
        """Take `GIT binary patch`: what makes the new content, and, as git always writes, what makes the old again."""
        ids = header.ids
        if ids is None or len(ids[0]) not in (40, 64) or len(ids[0]) != len(ids[1]):
            self._wrong("A binary file without full object names; git diff --full-index writes them")
        self.at += 1
        forward = self._binary_part()
        self._binary_part()
        if kind == "delete":
            if forward.data or forward.is_delta:
                self._wrong("A content for a file that is deleted", "header_mismatch")
        elif not forward.is_delta and literals.object_name(forward.data, len(ids[1])) != ids[1]:
            # git takes an object of that name that it has already, and never looks at the content (apply.c).
            self._wrong("A content that is not the one of the index line", "header_mismatch")
        if kind != "delete":
            self.binaries.append(Binary(new, old, *ids, forward))
        if self.at < len(self.lines) and not self.line.startswith("diff --git "):
            self._wrong("Not the header of a file")
        return FileChange(new, kind, "", "", 0, 0, 0, True, new.isascii())

    def _binary_part(self) -> Content:
        try:
            content, self.at = literals.read(self.lines, self.at, self.room)
        except literals.TooMuch as error:
            self._wrong(f"{error}: {self.bounds.binary} bytes at most", "patch_too_large")
        except literals.Malformed as error:
            self._wrong(str(error))
        self.room -= content.weight
        return content

    def _body(self, path: str, kind: Kind) -> FileChange:
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
        return FileChange(path, kind, "", "", insertions, deletions, hunks, False, ascii_only)

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
        if self.hunks > self.bounds.hunks:
            self._wrong(f"More than {self.bounds.hunks} hunks", "patch_too_large")
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
        if self.insertions + self.deletions > self.bounds.changed_lines:
            message = f"More than {self.bounds.changed_lines} changed lines"
            raise DiffRefused("patch_too_large", message, self.at)
        return added, removed, plain, old_ended or new_ended


def _closing_quote(text: str) -> int:
    """Where the C-quoted name that `text` begins with ends; -1 when it does not."""
    found = re.match(r'"(?:[^"\\]|\\.)*"', text, re.DOTALL)
    return found.end() - 1 if found else -1
