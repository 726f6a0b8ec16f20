"""What PostgreSQL can store as text: anything but NUL and half a surrogate pair. Whoever lets texts in asks here."""

import re
from collections.abc import Iterable, Iterator
from typing import Any

UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# How JSON can spell these; a document without it has none, and nobody has to walk through its texts.
ESCAPED = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")
WHY = "text cannot hold NUL or half a surrogate pair"
MAX_DEPTH = 32
"""How deep a document of ours may be nested, whoever sends it."""


def is_storable(*texts: str) -> bool:
    """Whether all of these can be stored."""
    return not any(UNSTORABLE.search(text) for text in texts)


def walk(document: Any) -> Iterator[tuple[str, int, Any]]:
    """Every value of a JSON document with its path (`a.b[2]`) and depth, the outermost at 1 with the path "".

    Without recursion: the document is of whoever sent it. A key that cannot be stored comes as a text of its own, under
    the path of its object.
    """
    waiting: list[tuple[str, int, Any]] = [("", 1, document)]
    while waiting:
        path, depth, value = waiting.pop()
        yield path, depth, value
        if isinstance(value, list):
            waiting += [(f"{path}[{place}]", depth + 1, inner) for place, inner in enumerate(value)]
        elif isinstance(value, dict):
            for name, inner in value.items():
                if isinstance(name, str) and not is_storable(name):
                    yield path, depth, name
                waiting.append((f"{path}.{name}" if path else str(name), depth + 1, inner))


def unstorable_paths(document: Any) -> Iterable[str]:
    """The paths of the texts in a JSON document that cannot be stored."""
    return (path for path, _depth, value in walk(document) if isinstance(value, str) and not is_storable(value))


def is_too_deep(document: Any) -> bool:
    """Whether lists and objects are nested deeper than MAX_DEPTH."""
    return any(depth > MAX_DEPTH and isinstance(value, list | dict) for _path, depth, value in walk(document))
