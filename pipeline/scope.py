"""Which paths a glob means: matching, coverage of one glob by another, and whether two sets can touch one path."""

import unicodedata
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache

from pipeline.refusals import InvalidField

# The longest path or glob, in bytes of UTF-8: the limit that the ledger puts on the names in a diff, so that no
# rule can be written about a path that no patch can have.
MAX_BYTES = 1024


def check_path(path: str, field: str = "path") -> str:
    """`path` itself, when it is POSIX, relative, NFC, and without empty, `.` or `..` parts (domain.md §1.9).

    Raises InvalidField (`invalid_field`, naming `field`) for anything else: absolute, backslash, control character,
    not text, longer than MAX_BYTES.
    """
    if not isinstance(path, str):
        raise InvalidField(field, "a path must be text")
    if not path:
        raise InvalidField(field, "a path must not be empty")
    if path.startswith("/"):
        raise InvalidField(field, f"{path!r} is absolute; paths are relative to the root of the repository")
    if "\\" in path:
        raise InvalidField(field, f"{path!r} contains a backslash; parts are divided by /")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in path):
        raise InvalidField(field, f"{path!r} contains a control character or half of a character")
    if not unicodedata.is_normalized("NFC", path):
        raise InvalidField(field, f"{path!r} is not in Unicode normal form C")
    if len(path.encode()) > MAX_BYTES:
        raise InvalidField(field, f"longer than {MAX_BYTES} bytes")
    for part in path.split("/"):
        if not part:
            raise InvalidField(field, f"{path!r} has an empty part; for everything below a folder write folder/**")
        if part in (".", ".."):
            raise InvalidField(field, f"{path!r} has the part {part!r}")
    return path


def check_glob(glob: str, field: str = "glob") -> str:
    """`glob` itself, when it is a path (check_path) in whose parts `*`, `?` and whole-part `**` may stand.

    Raises InvalidField as check_path does, and for `**` that is only a piece of a part: its author means "any depth",
    and this house reads `*` within one part, so the rule would be narrower than the sentence.
    """
    check_path(glob, field)
    for part in glob.split("/"):
        if "**" in part and part != "**":
            raise InvalidField(field, f"{glob!r}: ** must be a whole part, as in src/**/*.py")
    return glob


def is_literal(glob: str) -> bool:
    """True when `glob` has no wildcard and so means exactly one path."""
    return "*" not in glob and "?" not in glob


def matches(path: str, globs: Iterable[str]) -> bool:
    """True when at least one of `globs` means `path`; False for no globs.

    `*` and `?` stay within one part, `**` is any number of parts (none too), but at the end at least one: `src/**` is
    everything below `src` and not `src` itself. Anything else is literal, brackets too, and case counts. The work
    grows with length of path times length of glob, never faster. Raises InvalidField for a malformed path or glob:
    False would open what `forbidden` closes, True what `write` closes.
    """
    parts = _path_parts(path)
    return any(_match_parts(parts, _glob_parts(glob)) for glob in globs)


def covered(entry: str, by: Iterable[str]) -> bool:
    """True when every path that `entry` means is certainly meant by one of `by`, decided by syntax (domain.md §1.9).

    That is so if a wider glob is equal, is `prefix/**` with `entry` below that prefix, or matches a literal `entry`.
    What syntax cannot decide, and a malformed entry or wider glob, is False.
    """
    try:
        narrow = _glob_parts(entry)
    except InvalidField:
        return False
    return any(_covers(wide, entry, narrow) for wide in by)


def _covers(wide: str, entry: str, narrow: Sequence[str]) -> bool:
    if wide == entry:
        return True
    try:
        parts = _glob_parts(wide)
    except InvalidField:
        return False
    if is_literal(entry):
        return _match_parts(narrow, parts)
    if parts[-2:] != ("**", "*") or not wide.endswith("**"):
        return False
    # `a/**` is kept as a, **, *: what stands before the last two is the prefix, and the entry needs a part below it.
    prefix = parts[:-2]
    return len(narrow) > len(prefix) and all(map(_part_covers, prefix, narrow))


def _part_covers(wide: str, narrow: str) -> bool:
    """One part of a prefix against one of an entry: equal text, or a wildcard over literal text. `**` only equals."""
    if wide == narrow:
        return True
    return "**" not in (wide, narrow) and is_literal(narrow) and _match_text(narrow, wide)


def overlap(a: Iterable[str], b: Iterable[str]) -> bool:
    """True when some path is meant by a glob of `a` and by a glob of `b`, so that both could touch it.

    Never False when there is such a path. Raises InvalidField for a malformed glob.
    """
    others = [_glob_parts(glob) for glob in b]
    return any(_parts_meet(_glob_parts(glob), other) for glob in a for other in others)


@lru_cache(maxsize=4096)
def _path_parts(path: str) -> tuple[str, ...]:
    return tuple(check_path(path).split("/"))


@lru_cache(maxsize=4096)
def _glob_parts(glob: str) -> tuple[str, ...]:
    """The parts, with a `**` at the end written as `**`, `*`: at least one part below."""
    parts = tuple(check_glob(glob).split("/"))
    return (*parts, "*") if parts[-1] == "**" else parts


def _match_parts(path: Sequence[str], glob: Sequence[str]) -> bool:
    # Greedy with one way back: only the last ** ever needs to take one more part, so the work is a product.
    i = j = 0
    star = mark = -1
    while i < len(path):
        if j < len(glob) and glob[j] == "**":
            star, mark, j = j, i, j + 1
        elif j < len(glob) and _match_text(path[i], glob[j]):
            i, j = i + 1, j + 1
        elif star >= 0:
            mark, i, j = mark + 1, mark + 1, star + 1
        else:
            return False
    return all(part == "**" for part in glob[j:])


def _match_text(text: str, pattern: str) -> bool:
    i = j = 0
    star = mark = -1
    while i < len(text):
        # `*` first: a path may hold a star as an ordinary letter, and the pattern's star must still be a wildcard.
        if j < len(pattern) and pattern[j] == "*":
            star, mark, j = j, i, j + 1
        elif j < len(pattern) and pattern[j] in ("?", text[i]):
            i, j = i + 1, j + 1
        elif star >= 0:
            mark, i, j = mark + 1, mark + 1, star + 1
        else:
            return False
    return all(letter == "*" for letter in pattern[j:])


@lru_cache(maxsize=8192)
def _parts_meet(a: tuple[str, ...], b: tuple[str, ...]) -> bool:
    return _meet(a, b, "**", _text_meets)


@lru_cache(maxsize=4096)
def _text_meets(a: str, b: str) -> bool:
    return _meet(a, b, "*", lambda x, y: "?" in (x, y) or x == y)


def _meet(a: Sequence[str], b: Sequence[str], many: str, same: Callable[[str, str], bool]) -> bool:
    """True when two patterns have a common text; `many` is the sign that stands for any number of the others."""
    reached = {(0, 0)}
    # Every step raises i or j, so walking the cells in this order meets each after all that lead to it.
    for i in range(len(a) + 1):
        for j in range(len(b) + 1):
            if (i, j) not in reached:
                continue
            more_a, more_b = i < len(a), j < len(b)
            many_a, many_b = more_a and a[i] == many, more_b and b[j] == many
            if many_a or many_b:
                if more_a:
                    reached.add((i + 1, j))
                if more_b:
                    reached.add((i, j + 1))
            elif more_a and more_b and same(a[i], b[j]):
                reached.add((i + 1, j + 1))
    return (len(a), len(b)) in reached
