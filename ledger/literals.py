"""Pure: the contents of binary files in git's diffs, read with bounds, and the deltas among them carried out.

Source: git's own `apply.c` and `diff.c` (`GIT binary patch`), and gitformat-pack(5), "Deltified representation".
"""

import base64
import hashlib
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

_HEAD = re.compile(r"(literal|delta) (\d{1,19})\Z", re.ASCII)
_LENGTHS = {letter: number for number, letter in enumerate("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz", 1)}


class Malformed(ValueError):
    """The lines are not what git writes."""


class TooMuch(ValueError):
    """What the lines say they unfold to is more than may be taken."""


@dataclass(frozen=True)
class Content:
    """One part of a binary file's diff: the whole content, or a delta that makes it from another.

    `size` is that of the content that comes of it, in bytes.
    """

    is_delta: bool
    data: bytes
    size: int

    @property
    def weight(self) -> int:
        """How many bytes of room it takes: what it unfolds to, and what that makes."""
        return len(self.data) + (self.size if self.is_delta else 0)

    def made_from(self, old: bytes) -> bytes:
        """The content, where `old` is the one before. Raises Malformed when a delta does not belong to `old`."""
        return _patched(self.data, old) if self.is_delta else self.data


def read(lines: Sequence[str], at: int, room: int) -> tuple[Content, int]:
    """The part that begins at `lines[at]`, and the number of the line after it and its empty line.

    Raises TooMuch before it unfolds more than `room` bytes, Malformed for anything that git does not write.
    """
    found = _HEAD.match(lines[at]) if at < len(lines) else None
    if not found:
        raise Malformed("Neither the literal nor the delta of a binary file")
    size, pieces = int(found[2]), []
    if size > room:
        raise TooMuch("A binary content that is too large")
    at += 1
    while at < len(lines) and lines[at]:
        pieces.append(_line(lines[at]))
        at += 1
    if at == len(lines) or not pieces:
        raise Malformed("A binary content that is cut off")
    unfolding = zlib.decompressobj()
    try:
        data = unfolding.decompress(b"".join(pieces), size + 1)
    except zlib.error as error:
        raise Malformed("A binary content that cannot be unfolded") from error
    if len(data) != size or not unfolding.eof or unfolding.unused_data:
        raise Malformed("A binary content of another size than it says")
    if found[1] == "literal":
        return Content(False, data, size), at + 1
    made = _number(data, _number(data, 0)[1])[0]
    if made > room - size:
        raise TooMuch("A binary content that is too large")
    return Content(True, data, made), at + 1


def object_name(content: bytes, digits: int) -> str:
    """The name git gives `content` as a blob, in 40 (SHA-1) or 64 (SHA-256) hexadecimal digits."""
    algorithm = hashlib.sha256 if digits == 64 else hashlib.sha1
    return algorithm(b"blob %d\0" % len(content) + content).hexdigest()


def _line(line: str) -> bytes:
    """The bytes of one line: a letter for how many, then base 85 in groups of five for each four of them."""
    length = _LENGTHS.get(line[0], 0)
    if not length or len(line) != 1 + (length + 3) // 4 * 5:
        raise Malformed("Not a line of a binary content")
    try:
        return base64.b85decode(line[1:])[:length]
    except ValueError as error:
        raise Malformed("Not a line of a binary content") from error


def _number(data: bytes, at: int) -> tuple[int, int]:
    """The size written at `data[at]`, seven bits a byte from the lowest, and where it ends."""
    number = shift = 0
    while at < len(data) and shift < 63:
        number |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return number, at
    raise Malformed("A delta without its sizes")


def _patched(delta: bytes, old: bytes) -> bytes:
    old_size, at = _number(delta, 0)
    size, at = _number(delta, at)
    if old_size != len(old):
        raise Malformed("A delta for a content of another size")
    made = bytearray()
    while at < len(delta) and len(made) <= size:
        order, at = delta[at], at + 1
        if order & 0x80:
            start = length = 0
            for bit in range(7):
                if order >> bit & 1:
                    if at == len(delta):
                        raise Malformed("A delta that is cut off")
                    if bit < 4:
                        start |= delta[at] << 8 * bit
                    else:
                        length |= delta[at] << 8 * (bit - 4)
                    at += 1
            length = length or 0x10000
            piece = old[start : start + length]
        else:
            length = order
            piece = delta[at : at + length]
            at += length
        if not length or len(piece) != length:
            raise Malformed("A delta that takes what is not there")
        made += piece
    if len(made) != size:
        raise Malformed("A delta that makes another size than it says")
    return bytes(made)
