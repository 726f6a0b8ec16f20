"""Lines of JSON out of bytes that arrive in pieces: bounded in memory, and deaf to what is no JSON object."""

import json
from pathlib import Path
from typing import Any

LINE_BYTES = 4 * 1024 * 1024
"""A longer line is left out whole: a tool may print a picture as text, and nothing that we look for is as long."""
TAIL_READ_BYTES = 1024 * 1024


class Lines:
    """Cuts one stream into lines, whatever the pieces are cut at; holds at most `limit_bytes` of an unfinished line."""

    def __init__(self, limit_bytes: int = LINE_BYTES) -> None:
        self.left_out = 0
        self._limit_bytes = limit_bytes
        self._unfinished: list[bytes] = []
        self._unfinished_bytes = 0
        self._skipping = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that this piece finishes, without their ends. Lines that are too long are counted in `left_out`."""
        first, *rest = chunk.split(b"\n")
        if not rest:
            self._hold(first)
            return []
        finished = []
        if not self._skipping and self._unfinished_bytes + len(first) <= self._limit_bytes:
            finished.append(b"".join((*self._unfinished, first)))
        else:
            self.left_out += 1
        self._unfinished, self._unfinished_bytes, self._skipping = [], 0, False
        for line in rest[:-1]:
            if len(line) <= self._limit_bytes:
                finished.append(line)
            else:
                self.left_out += 1
        self._hold(rest[-1])
        return finished

    def flush(self) -> list[bytes]:
        """The last line, when the stream ended without an end of line."""
        last = b"".join(self._unfinished)
        self.left_out += self._skipping
        self._unfinished, self._unfinished_bytes, self._skipping = [], 0, False
        return [last] if last else []

    def _hold(self, piece: bytes) -> None:
        if self._skipping or not piece:
            return
        self._unfinished.append(piece)
        self._unfinished_bytes += len(piece)
        if self._unfinished_bytes > self._limit_bytes:
            self._unfinished, self._unfinished_bytes, self._skipping = [], 0, True


def read_object(line: bytes) -> dict[str, Any] | None:
    """The JSON object on a line; None when it is anything else."""
    text = line.strip()
    if not text.startswith(b"{"):
        return None
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


class Tail:
    """The objects that a tool appends to a file of JSON lines, as they come; a file that is not there yet is empty."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0
        self._lines = Lines()

    def read(self) -> list[dict[str, Any]]:
        """What was appended since the last call, at most 1 MiB a call. Never raises: the file is the tool's."""
        try:
            if not self.path.is_file() or self.path.is_symlink():
                return []
            with self.path.open("rb") as file:
                file.seek(self._offset)
                piece = file.read(TAIL_READ_BYTES)
        except OSError:
            return []
        self._offset += len(piece)
        found = (read_object(line) for line in self._lines.feed(piece))
        return [document for document in found if document is not None]

    def read_all(self) -> list[dict[str, Any]]:
        """Everything that is left, once the tool has ended; at most 64 MiB."""
        found: list[dict[str, Any]] = []
        for _ in range(64):
            before = self._offset
            found += self.read()
            if self._offset == before:
                break
        return found


def whole(value: object) -> int:
    """A count as tools write it: a whole number of at least 0; anything else is 0."""
    return value if type(value) is int and 0 <= value < 2**53 else 0


def text_in(document: object, *path: str) -> str:
    """The text at `path` inside nested objects; empty when there is none."""
    for name in path:
        document = document.get(name) if isinstance(document, dict) else None
    return document if isinstance(document, str) else ""


def word_in(document: object, *path: str) -> str:
    """The id or name at `path`, at most 200 characters; empty when there is none, or one that is not plain ASCII."""
    word = text_in(document, *path)
    return word if len(word) <= 200 and word.isascii() and word.isprintable() else ""


def part_of(document: object, name: str) -> dict[str, Any]:
    """The object below `name`; an empty one when there is none."""
    value = document.get(name) if isinstance(document, dict) else None
    return value if isinstance(value, dict) else {}


def items_of(document: object, name: str) -> list[dict[str, Any]]:
    """The objects in the list below `name`; other things in it are left out."""
    value = document.get(name) if isinstance(document, dict) else None
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []
