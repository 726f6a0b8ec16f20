"""Pure: which lines a diff takes away and which it puts there, file by file, without its context."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

_HUNK = re.compile(r"@@ -(\d+)(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
_ESCAPE = re.compile(rb'\\(?:([0-3][0-7]{2})|([abfnrtv"\\]))')
_LETTERS = dict(zip(b'abfnrtv"\\', b'\a\b\f\n\r\t\v"\\', strict=True))
_BEFORE = ("old mode ", "deleted file mode ", "rename from ", "copy from ")
_AFTER = ("new mode ", "new file mode ", "rename to ", "copy to ")
_ABSENT = "/dev/null"


@dataclass(frozen=True)
class Region:
    """Lines that stand together and change together: `removed` from `old_start` on, `added` from `new_start` on.

    Lines count from 1. A side without lines stands between the line before its start and its start.
    """

    old_start: int
    removed: tuple[str, ...]
    new_start: int
    added: tuple[str, ...]


@dataclass(frozen=True)
class FileRegions:
    """What a diff does to the file that is at `path` afterwards (before, when it is deleted).

    `facts` is what it does to the file as a whole, as (before, after): modes, a name, a binary content by its object
    names; ("", …) for a new file, (…, "") for a deleted one, ("", "") when only lines change.
    """

    path: str
    regions: tuple[Region, ...]
    facts: tuple[str, str] = ("", "")

    @property
    def is_whole(self) -> bool:
        """Whether the file comes, goes, or changes in a way that no lines tell."""
        return self.facts != ("", "")


def regions_of(diff_text: str) -> tuple[FileRegions, ...]:
    """The files of a diff that `diff.parse` has taken, or that git wrote, in its order. Linear; what is no diff gives
    nothing.
    """
    lines = diff_text.split("\n")
    starts = [number for number, line in enumerate(lines) if line.startswith("diff --git ")]
    # A line of a hunk begins with one of " +-\\", so that no content looks like the header of a file.
    return tuple(_file(lines[start:end]) for start, end in pairwise([*starts, len(lines)]))


def _file(lines: Sequence[str]) -> FileRegions:
    """One file of a diff, from its `diff --git` line on."""
    end = next((number for number, line in enumerate(lines) if line.startswith("@@ ")), len(lines))
    header = lines[:end]
    path = ""
    before: list[str] = []
    after: list[str] = []
    for line in header:
        if line.startswith(("--- ", "+++ ")):
            name = _name(line[4:])
            path = path if name == _ABSENT else name
        for facts, words in ((before, _BEFORE), (after, _AFTER)):
            facts += [line.removeprefix(word) for word in words if line.startswith(word)]
    if any(line.startswith(("GIT binary patch", "Binary files ")) for line in header):
        for line in header:
            if line.startswith("index "):
                old, _, new = line.removeprefix("index ").split(" ")[0].partition("..")
                before, after = [*before, old], [*after, new]
    return FileRegions(
        path or _path_of_header(lines[0]), tuple(_regions(lines[end:])), (" ".join(before), " ".join(after))
    )


def _regions(lines: Sequence[str]) -> Iterator[Region]:
    """The regions of the hunks of one file: each run of changed lines between two lines of context."""
    old, new = 1, 1
    removed: list[str] = []
    added: list[str] = []
    for line in [*lines, " "]:
        mark = line[:1]
        if mark == "-":
            removed.append(line[1:])
            continue
        if mark == "+":
            added.append(line[1:])
            continue
        if mark == "\\":
            continue  # what it says about the end of a file is no line
        if removed or added:
            yield Region(old, tuple(removed), new, tuple(added))
            old, new = old + len(removed), new + len(added)
            removed, added = [], []
        if found := _HUNK.match(line):
            old_start, old_count, new_start, new_count = (int(number) for number in found.groups("1"))
            # A side without lines is written with the number of the line before it.
            old, new = old_start + (old_count == 0), new_start + (new_count == 0)
        else:
            old, new = old + 1, new + 1


def _path_of_header(line: str) -> str:
    """The name in a `diff --git` line whose two sides are the same: a file without hunks."""
    names = line.removeprefix("diff --git ")
    if names.endswith('"'):
        return _name(names[names.rfind(' "') + 1 :])
    middle = len(names) // 2
    return _name(names[middle + 1 :] if names[2:middle] == names[middle + 3 :] else names.rpartition(" b/")[2])


def _name(written: str) -> str:
    """A name as git writes it, without its `a/` or `b/`: plain, or in double quotes with C escapes."""
    if written.startswith('"'):
        inner = written.rstrip("\t")[1:-1].encode("utf-8", "surrogateescape")
        plain = _ESCAPE.sub(lambda found: bytes([int(found[1], 8) if found[1] else _LETTERS[found[2][0]]]), inner)
        written = plain.decode("utf-8", "surrogateescape")
    else:
        written = written.split("\t")[0]
    return written[2:] if written[:2] in ("a/", "b/") else written


# --- following lines through later changes ---------------------------------------------------------------------------

Span = tuple[int, int]
"""Lines from the first to before the second, counted from 1; both the same: the place before that line."""


def follow(spans: Sequence[Span], changes: Sequence[Region]) -> tuple[list[Span], list[Region]]:
    """Where `spans` are after `changes`, and the changes that touch one of them.

    A change touches lines that it overlaps or directly borders on, which is when git's three-way merge sees a conflict;
    what it put there then belongs to the span.
    """
    touching: list[Region] = []
    moved: list[Span] = []
    for start, end in spans:
        first, last, shift, inside = start, end, 0, 0
        for change in changes:
            change_end = change.old_start + len(change.removed)
            grown = len(change.added) - len(change.removed)
            if change_end < start:
                shift += grown
            elif change.old_start <= end:
                first, last, inside = min(first, change.old_start), max(last, change_end), inside + grown
                if change not in touching:
                    touching.append(change)
        moved.append((first + shift, last + shift + inside))
    return moved, touching
