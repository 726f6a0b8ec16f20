"""Turns the text of a unified diff into rows for the diff viewer: numbered, coloured, escaped, bounded.

The text is untrusted and is shown, not judged: what may land is decided from the tree difference (`diff.py`, `git.py`).
So nothing here raises on strange input; what cannot be read as a diff is shown as it is.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import islice
from time import thread_time
from typing import Any

from pygments.lexer import Lexer
from pygments.lexers import get_lexer_for_filename
from pygments.token import STANDARD_TYPES

ROWS_MAX = 20_000
"""Rows of one diff, all files together; a file's heading counts as one, so the number of files is bounded too."""

HIGHLIGHT_LINES_MAX = 5_000
"""A file with more rows than this is not coloured."""

HIGHLIGHT_CHARACTERS_MAX = 250_000
"""Characters coloured in one diff: about 0.6 s of Pygments on one core (measured). The files after it stay plain."""

HIGHLIGHT_LINE_MAX = 1_000
"""A file with a longer line is not coloured: minified text costs time and tells nothing, and long lines are where
a lexer's regular expressions can be made slow on purpose."""

HIGHLIGHT_FILES_MAX = 300
"""Files coloured in one diff: finding the lexer for a name costs about 0.3 ms, whatever the file's size."""

HIGHLIGHT_SECONDS_MAX = 2.0
"""Processor time for the colours of one diff. A few lexers need quadratic time for text made for it (thousands of
comments that never end); it is checked between tokens, so one token more may pass. What is left stays plain."""

LINE_MAX = 4_000
"""Characters shown of one line; a badge says how many more there are."""

CONTEXT, ADDED, REMOVED, HUNK, NOTE = "context", "added", "removed", "hunk", "note"
COMMENT = "comment"


class Html(str):
    """Text that is HTML already: every character of the diff in it was escaped here.

    `__html__` is the convention by which Django's templates (and others) know not to escape a second time.
    """

    __slots__ = ()

    def __html__(self) -> str:
        """The text itself."""
        return str(self)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the viewer. Line numbers start at 1 and are None on the side where the line does not exist.

    `kind` is context, added, removed, hunk (the `@@` line), note (anything git says about the content) or comment
    (what a reviewer said of the line above it).
    """

    old_no: int | None
    new_no: int | None
    kind: str
    html: Html


@dataclass(slots=True)
class FileView:
    """One file of a diff.

    `change` is added, deleted, renamed, copied, modified, or raw (text that is no diff). `title` is the path as HTML
    with hidden characters made visible; `old_path` differs from `path` only for renamed and copied. `notes` are git's
    words about modes. `language` is Pygments' name, empty when not coloured. `cut`: there was more than ROWS_MAX.
    `has_hidden`: some path or line holds characters that do not show (see `reveal`).
    """

    path: str = ""
    old_path: str = ""
    change: str = "modified"
    binary: bool = False
    insertions: int = 0
    deletions: int = 0
    notes: list[str] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    language: str = ""
    has_hidden: bool = False
    cut: bool = False

    @property
    def title(self) -> Html:
        """The path, or both paths for a rename or a copy, as HTML."""
        if self.old_path and self.old_path != self.path:
            return Html(f"{reveal(self.old_path)} → {reveal(self.path)}")
        return reveal(self.path)


@dataclass(slots=True)
class _Line:
    """One line of a hunk, before it is coloured."""

    old_no: int | None
    new_no: int | None
    kind: str
    text: str


def render(diff_text: str) -> list[FileView]:
    """The files of `diff_text` in its order, at most ROWS_MAX rows together; never raises on any text.

    When there was more, the last file has `cut` set and the files after it are missing. Text without a single hunk or
    git heading gives one file of change "raw" with its lines as notes; empty text gives no file.
    """
    if not diff_text:
        return []
    reading = _Reading()
    for line in _lines(diff_text):
        if not reading.take(line):
            reading.files[-1][0].cut = True
            break
    if not reading.files:
        return [_raw(diff_text)]
    left = HIGHLIGHT_CHARACTERS_MAX
    until = thread_time() + HIGHLIGHT_SECONDS_MAX
    for place, (view, hunks) in enumerate(reading.files):
        left -= _fill(view, hunks, left if place < HIGHLIGHT_FILES_MAX else 0, until)
    return [view for view, _ in reading.files]


@dataclass(frozen=True, slots=True)
class Comment:
    """What `author` said of lines `first` to `last` of the file `path`, on its `side` new or old."""

    path: str
    side: str
    first: int
    last: int
    author: str
    body: str

    @property
    def html(self) -> Html:
        """Who said it, of which lines, and what, escaped like the diff itself."""
        where = f"{self.first}" if self.first == self.last else f"{self.first}–{self.last}"
        lines = "<br>".join(_plain(line) for line in _lines(self.body))
        return Html(f'<span class="said-by">{reveal(self.author)} · {where}</span><br>{lines}')


def annotate(files: Sequence[FileView], comments: Iterable[Comment]) -> list[Comment]:
    """Put each comment below the last line that it is about, in the order given; answers those that found no place.

    A file is known by its path of that side. Lines that the diff does not show have no place in it.
    """
    shown = {(side, path): view for view in files for side, path in (("old", view.old_path), ("new", view.path))}
    left: list[Comment] = []
    placed: dict[int, dict[int, list[Comment]]] = {}
    for comment in comments:
        view = shown.get((comment.side, comment.path))
        rows = view.rows if view else []
        numbers = [(row.old_no if comment.side == "old" else row.new_no) for row in rows]
        if view is None or comment.last not in numbers:
            left.append(comment)
        else:
            placed.setdefault(id(view), {}).setdefault(numbers.index(comment.last), []).append(comment)
    for view in files:
        after = placed.get(id(view), {})
        if after:
            view.rows = [
                one
                for place, row in enumerate(view.rows)
                for one in (row, *(Row(None, None, COMMENT, said.html) for said in after.get(place, ())))
            ]
    return left


def hidden(character: str) -> bool:
    """Whether `character` changes what a reader sees without being seen: control and format characters (the
    bidirectional ones of "Trojan Source", CVE-2021-42574, among them), lone surrogates, odd blanks, fillers,
    variation selectors. Tab is not hidden."""
    return _HIDDEN.match(character) is not None


def reveal(text: str) -> Html:
    """`text` as HTML, escaped, each hidden character replaced by a badge with its code point and its name."""
    return Html(_HIDDEN.sub(_badge, escape(text)))


# Escaping makes only visible ASCII, so hidden characters can be looked for in the escaped text.
_HIDDEN = re.compile(
    "["
    "\x00-\x08\x0a-\x1f\x7f-\xa0\xad"
    "\u034f\u061c\u115f\u1160\u1680\u17b4\u17b5\u180b-\u180f\u2000-\u200f\u2028-\u202f\u205f-\u206f"
    "\u2800\u3000\u3164\ud800-\udfff\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    "\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
    "]"
)

_CONTROL_NAMES = {0x00: "NULL", 0x08: "BACKSPACE", 0x0D: "CARRIAGE RETURN", 0x1B: "ESCAPE", 0x7F: "DELETE"}


def _badge(match: re.Match[str]) -> str:
    character = match.group()
    number = ord(character)
    name = unicodedata.name(character, "") or _CONTROL_NAMES.get(number, "CONTROL OR UNASSIGNED CHARACTER")
    return f'<span class="hidden-character" title="{name}">U+{number:04X}</span>'


def _lines(text: str) -> Iterator[str]:
    """The lines of `text`, split at line feeds only (git's rule; str.splitlines() knows nine more), one at a time."""
    start = 0
    while (end := text.find("\n", start)) >= 0:
        yield text[start:end]
        start = end + 1
    if start < len(text):
        yield text[start:]


_HUNK = re.compile(r"@@ -(\d{1,9})(?:,(\d{1,9}))? \+(\d{1,9})(?:,(\d{1,9}))? @@.*", re.DOTALL | re.ASCII)


class _Reading:
    """The state of reading a diff line by line. Inside a hunk its counts decide what a line is, so that content
    that looks like a heading (`--- a` removed from a text about diffs) stays content."""

    def __init__(self) -> None:
        self.files: list[tuple[FileView, list[list[_Line]]]] = []
        self.rows = 0
        self.old_no = self.new_no = 0
        self.old_left = self.new_left = 0
        self.in_heading = False
        self.minus = ""

    def take(self, line: str) -> bool:
        """Reads one line; False when ROWS_MAX is reached and the line was not taken."""
        if self.files and self.rows >= ROWS_MAX:
            return False
        if self.old_left > 0 or self.new_left > 0:
            if self._take_content(line):
                return True
            # The hunk says it is longer than it is: believe the line, not the count.
            self.old_left = self.new_left = 0
        if line.startswith("diff --git "):
            self._open(*_git_paths(line[len("diff --git ") :]))
            self.in_heading = True
        elif (hunk := _HUNK.fullmatch(line)) and self.files:
            self._open_hunk(hunk, line)
        elif line.startswith("--- "):
            self.minus = _path(line[4:])
        elif line.startswith("+++ ") and self.minus:
            self._take_names(self.minus, _path(line[4:]))
        elif self.files and self.in_heading and self._take_heading(line):
            pass
        elif self.files and line.startswith("\\ "):
            self._add(_Line(None, None, NOTE, line[2:]))
        elif self.files and line.strip() and not self.files[-1][0].binary:
            self._add(_Line(None, None, NOTE, line))
        return True

    def _take_content(self, line: str) -> bool:
        mark, text = line[:1], line[1:]
        view = self.files[-1][0]
        if mark == "+" and self.new_left:
            self._add(_Line(None, self.new_no, ADDED, text))
            view.insertions += 1
            self.new_no, self.new_left = self.new_no + 1, self.new_left - 1
        elif mark == "-" and self.old_left:
            self._add(_Line(self.old_no, None, REMOVED, text))
            view.deletions += 1
            self.old_no, self.old_left = self.old_no + 1, self.old_left - 1
        elif mark in ("", " ") and self.old_left and self.new_left:
            # An empty line is an empty context line whose trailing blank a mail program or editor took away.
            self._add(_Line(self.old_no, self.new_no, CONTEXT, text))
            self.old_no, self.old_left = self.old_no + 1, self.old_left - 1
            self.new_no, self.new_left = self.new_no + 1, self.new_left - 1
        elif mark == "\\":
            self._add(_Line(None, None, NOTE, line[2:]))
        else:
            return False
        return True

    def _take_heading(self, line: str) -> bool:
        view = self.files[-1][0]
        for opening, change in _CHANGES:
            if line.startswith(opening):
                view.change = change
                if change in ("renamed", "copied"):
                    path = _unquote(line[len(opening) :])
                    if opening.endswith("from "):
                        view.old_path = path
                    else:
                        view.path = path
                elif not line.endswith(_PLAIN_MODE):
                    view.notes.append(line)
                return True
        if line.startswith(("old mode ", "new mode ")):
            view.notes.append(line)
            return True
        if line.startswith(("Binary files ", "GIT binary patch")):
            view.binary = True
            self.in_heading = not line.startswith("GIT")
            return True
        return line.startswith(("index ", "similarity index ", "dissimilarity index "))

    def _take_names(self, old: str, new: str) -> None:
        self.minus = ""
        if not self.in_heading:
            self._open(old, new)
            if old == _NOWHERE:
                self.files[-1][0].change = "added"
            elif new == _NOWHERE:
                self.files[-1][0].change = "deleted"
        view = self.files[-1][0]
        path = old if new == _NOWHERE else new
        if path != _NOWHERE:
            view.path = path
        if view.change not in ("renamed", "copied"):
            view.old_path = view.path
        self.in_heading = False

    def _open(self, old: str, new: str) -> None:
        self.files.append((FileView(path=new, old_path=old), []))
        self.rows += 1
        self.minus = ""

    def _open_hunk(self, hunk: re.Match[str], line: str) -> None:
        old_no, old_count, new_no, new_count = hunk.groups()
        self.old_no, self.new_no = int(old_no), int(new_no)
        self.old_left = 1 if old_count is None else int(old_count)
        self.new_left = 1 if new_count is None else int(new_count)
        self.in_heading = False
        self.files[-1][1].append([])
        self._add(_Line(None, None, HUNK, line))

    def _add(self, line: _Line) -> None:
        hunks = self.files[-1][1]
        if not hunks:
            hunks.append([])
        hunks[-1].append(line)
        self.rows += 1


_NOWHERE = "/dev/null"
_PLAIN_MODE = " 100644"  # what every ordinary file has, so it is not worth a line; others (executable, link) are

_CHANGES = (
    ("new file mode ", "added"),
    ("deleted file mode ", "deleted"),
    ("rename from ", "renamed"),
    ("rename to ", "renamed"),
    ("copy from ", "copied"),
    ("copy to ", "copied"),
)


def _git_paths(rest: str) -> tuple[str, str]:
    """Old and new path of a `diff --git` line. Unquoted paths with blanks are ambiguous there; without other lines
    both names are the same, so the middle decides, as git's own reader does."""
    if rest.startswith('"'):
        end = re.match(r'"(?:[^"\\]|\\.)*"', rest, re.DOTALL)
        if end:
            return _path(end.group()), _path(rest[end.end() + 1 :])
    middle = len(rest) // 2
    if rest[middle : middle + 1] == " " and rest[2:middle] == rest[middle + 3 :]:
        return _path(rest[:middle]), _path(rest[middle + 1 :])
    old, _, new = rest.partition(" ")
    return _path(old), _path(new)


def _path(text: str) -> str:
    """The path of a `---` or `+++` line: unquoted, without a time stamp behind a tab, without `a/` or `b/`."""
    path = _unquote(text if text.startswith('"') else text.partition("\t")[0])
    return path[2:] if path[:2] in ("a/", "b/") else path


_ESCAPES = {"a": 7, "b": 8, "t": 9, "n": 10, "v": 11, "f": 12, "r": 13, '"': 34, "\\": 92}


def _unquote(text: str) -> str:
    """A path as git writes it: plain, or in double quotes with C escapes (git-config, core.quotePath)."""
    if len(text) < 2 or text[0] != '"' or text[-1] != '"':
        return text
    inner = text[1:-1].encode("utf-8", "surrogatepass")

    def plain(match: re.Match[bytes]) -> bytes:
        code = match.group(1)
        if code.isdigit():
            return bytes([int(code, 8) & 0xFF])
        number = _ESCAPES.get(code.decode("latin-1"))
        return match.group() if number is None else bytes([number])

    return re.sub(rb"\\([0-7]{3}|.)", plain, inner, flags=re.DOTALL).decode("utf-8", "replace")


def _fill(view: FileView, hunks: list[list[_Line]], characters_left: int, until: float) -> int:
    """Writes the rows of `view` and answers how many characters were coloured."""
    count = sum(len(hunk) for hunk in hunks)
    size = sum(len(line.text) for hunk in hunks for line in hunk)
    longest = max((len(line.text) for hunk in hunks for line in hunk), default=0)
    lexer = None
    if 0 < size <= characters_left and count <= HIGHLIGHT_LINES_MAX and longest <= HIGHLIGHT_LINE_MAX:
        lexer = _lexer(view.path)
    view.has_hidden = any(map(_HIDDEN.search, (view.path, view.old_path)))
    for hunk in hunks:
        if not view.has_hidden:
            view.has_hidden = any(_HIDDEN.search(line.text) for line in hunk)
        coloured = _colour(lexer, hunk, until) if lexer else {}
        if lexer and coloured:
            view.language = lexer.name
        for place, line in enumerate(hunk):
            html = coloured.get(place)
            view.rows.append(Row(line.old_no, line.new_no, line.kind, _plain(line.text) if html is None else html))
    return size if lexer else 0


def _plain(text: str) -> Html:
    if len(text) <= LINE_MAX:
        return reveal(text)
    more = f'<span class="line-cut">+{len(text) - LINE_MAX:,}</span>'
    return Html(f"{reveal(text[:LINE_MAX])}{more}")


def _lexer(path: str) -> Lexer | None:
    """The lexer for the name of `path`, chosen without looking at the content; None when Pygments knows none, and
    for plain text, where colouring would only cost time."""
    try:
        lexer = get_lexer_for_filename(path.rpartition("/")[2])
    except Exception:  # a stranger's file name meets some 500 lexers' patterns; whatever fails there, plain is right
        return None
    return None if lexer.name == "Text only" else lexer


def _colour(lexer: Lexer, hunk: list[_Line], until: float) -> dict[int, Html]:
    """HTML of the hunk's lines by their place in it; what is missing is to be shown plain.

    Each side is coloured as one text, hunk by hunk, so that a string of several lines is seen as one, and one
    that opens outside the hunk spoils no other hunk. Context is coloured on the new side.
    """
    result: dict[int, Html] = {}
    new = [place for place, line in enumerate(hunk) if line.kind in (CONTEXT, ADDED)]
    old = [place for place, line in enumerate(hunk) if line.kind in (CONTEXT, REMOVED)]
    sides = [new] if not any(line.kind == REMOVED for line in hunk) else [old, new]
    for places in sides:
        lines = _tokens_by_line(lexer, "".join(f"{hunk[place].text}\n" for place in places), until)
        if lines is not None and len(lines) >= len(places):
            result.update(zip(places, islice(lines, len(places)), strict=True))
    return result


def _tokens_by_line(lexer: Lexer, text: str, until: float) -> list[Html] | None:
    """The lines of `text` coloured, or None when the lexer fails, takes until `until` (`thread_time()`), or does not
    give back the very same text.

    `get_tokens_unprocessed` is used because `get_tokens` rewrites carriage returns and drops byte order marks:
    what it would hide is what the reader must see.
    """
    lines: list[list[str]] = [[]]
    seen = 0
    try:
        for _, kind, value in lexer.get_tokens_unprocessed(text):
            if thread_time() > until or not text.startswith(value, seen):
                return None
            seen += len(value)
            name = _class(kind)
            for number, piece in enumerate(value.split("\n")):
                if number:
                    lines.append([])
                if piece:
                    html = reveal(piece)
                    lines[-1].append(f'<span class="{name}">{html}</span>' if name else html)
    except Exception:  # a lexer's mistake on a stranger's text costs the colours, never the page
        return None
    return [Html("".join(pieces)) for pieces in lines] if seen == len(text) else None


_CLASSES: dict[Any, str] = {}


def _class(kind: Any) -> str:
    """The CSS class of a token: Pygments' short name of it or of its nearest known parent, with our prefix."""
    name = _CLASSES.get(kind)
    if name is None:
        known = kind
        while known is not None and known not in STANDARD_TYPES:
            known = known.parent
        short = STANDARD_TYPES[known] if known is not None else ""
        name = _CLASSES[kind] = f"tok-{short}" if short and short != "w" else ""
    return name


def _raw(text: str) -> FileView:
    """Text that is no diff, as one file of notes."""
    view = FileView(change="raw", has_hidden=_HIDDEN.search(text.replace("\n", "")) is not None)
    for line in _lines(text):
        if len(view.rows) >= ROWS_MAX:
            view.cut = True
            break
        view.rows.append(Row(None, None, NOTE, _plain(line)))
    return view
