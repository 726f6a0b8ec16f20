"""Pure: what every reader of evidence keeps to: the tree that paths must exist in, JSON within limits, one refusal.

Standard library only: the readers run in evidence.py's bounded child, which has nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

MAX_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 32
MAX_DIGITS = 15  # of a whole number; 10^18 lines are nobody's
MAX_PATH_CHARS = 1024

UNKNOWN_LENGTH = -1  # a file of the tree whose lines were not counted

_FILE_URI = re.compile(r"file:(?://(?:localhost)?)?(?=/)", re.IGNORECASE)
_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")


class Unreadable(ValueError):
    """These bytes are no report that we would judge by; the text says why, for people."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The files that a report may speak of: path -> number of lines, or UNKNOWN_LENGTH.

    `roots` are the absolute folders under which the command saw the tree, `cwd` the folder in it where the command ran.
    """

    lines: Mapping[str, int]
    roots: tuple[str, ...] = ()
    cwd: str = ""

    def find(self, name: str, sources: Iterable[str] = ()) -> str | None:
        """The path in the tree that a report means by `name`, or None when the tree has no such file.

        A relative name is looked for below each of `sources`, then below the working folder, then at the root. Raises
        Unreadable for a name that leaves the tree, or that no file could have.
        """
        wanted = _checked(name)
        if wanted.startswith("/"):
            return self._known(self._below_root(wanted))
        for source in sources:
            source = _checked(source) if source else ""
            inside = self._below_root(source) if source.startswith("/") else source
            if inside is not None and (found := self._known(_joined(inside, wanted))):
                return found
        return self._known(_joined(self.cwd, wanted)) or self._known(wanted)

    def _known(self, path: str | None) -> str | None:
        return path if path in self.lines else None

    def _below_root(self, absolute: str) -> str | None:
        for root in self.roots:
            stem = root.rstrip("/")
            if absolute.rstrip("/") == stem:
                return ""
            if absolute.startswith(f"{stem}/"):
                return absolute[len(stem) + 1 :].strip("/")
        return None


def _joined(folder: str, name: str) -> str:
    folder = folder.strip("/")
    return f"{folder}/{name}" if folder and folder != "." else name


def _checked(name: str) -> str:
    if len(name) > MAX_PATH_CHARS or _UNPRINTABLE.search(name):
        raise Unreadable("the report names a path that no file of the tree could have")
    name = _FILE_URI.sub("", name).replace("\\", "/")
    parts = [part for part in name.split("/") if part not in {"", "."}]
    if ".." in parts:
        raise Unreadable(f"the report names a path that leaves the tree: {name[:200]}")
    return ("/" if name.startswith("/") else "") + "/".join(parts)


def load_json(data: bytes, what: str) -> Any:
    """The JSON document in `data`. Raises Unreadable: not JSON, too deep, NaN, or a number that nothing has so many of.

    A byte order mark is passed over. The depth is counted before anything is built.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise Unreadable(f"the {what} is not UTF-8: {problem}") from problem
    _check_depth(text, what)
    try:
        return json.loads(text, parse_constant=_no_constant, parse_int=whole, parse_float=_finite)
    except RecursionError as problem:
        raise Unreadable(f"the {what} is nested more than {MAX_DEPTH} deep") from problem
    except Unreadable:
        raise
    except ValueError as problem:
        raise Unreadable(f"the {what} is not JSON: {problem}") from problem


_BRACKET_OR_STRING = re.compile(r'[\[{]|[\]}]|"(?:[^"\\]|\\.)*"', re.DOTALL)


def _check_depth(text: str, what: str) -> None:
    depth = 0
    for found in _BRACKET_OR_STRING.finditer(text):
        letter = text[found.start()]
        if letter in "[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Unreadable(f"the {what} is nested more than {MAX_DEPTH} deep")
        elif letter in "]}":
            depth -= 1


def _no_constant(name: str) -> Any:
    raise Unreadable(f"{name} is not a number of JSON")


def whole(text: str) -> int:
    """A whole number of a report. Raises Unreadable for one with more digits than any count has."""
    if len(text.lstrip("-")) > MAX_DIGITS:
        raise Unreadable(f"a number of {len(text)} digits")
    try:
        return int(text)
    except ValueError as problem:
        raise Unreadable(f"not a whole number: {text[:40]}") from problem


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise Unreadable(f"{text[:20]} is beyond what a number can be")
    return number


def need(value: Any, kind: type, what: str) -> Any:
    """`value` when it is a `kind` (and no boolean for a number). Raises Unreadable naming `what`."""
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise Unreadable(f"{what} must be {_WORDS.get(kind, kind.__name__)}")
    return value


_WORDS: Mapping[type, str] = {dict: "an object", list: "a list", str: "a text", int: "a whole number"}
