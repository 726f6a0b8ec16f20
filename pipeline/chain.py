"""The hash chain over one subject's events: pure, and checkable without this program (reliability.md D5)."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Link(NamedTuple):
    """What the chain needs of one event."""

    stream_seq: int
    prev_hash: str
    hash: str
    canonical: str


def canonical(document: Mapping[str, Any]) -> str:
    """`document` as canonical JSON: sorted keys, no blanks, no floats. Raises TypeError for what JSON cannot hold
    exactly.
    """
    _refuse_floats(document)
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_floats(value: Any) -> None:
    if isinstance(value, float):
        raise TypeError(f"{value!r} is a float: its text differs between programs; give a string or an integer")
    if isinstance(value, Mapping):
        for item in value.values():
            _refuse_floats(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _refuse_floats(item)


def link_hash(prev_hash: str, stream_seq: int, canonical_text: str) -> str:
    """sha256 over the previous hash, the number in the stream and the canonical text, each on its own line."""
    return hashlib.sha256(f"{prev_hash}\n{stream_seq}\n{canonical_text}".encode()).hexdigest()


def first_broken(links: Iterable[Link], *, first_seq: int = 1) -> int | None:
    """The stream_seq of the first link that does not follow from the one before it; None when the chain holds.

    `links` come in the order of their stream_seq. A chain whose head was dropped by retention starts at
    `first_seq` > 1 and takes its first `prev_hash` on trust.
    """
    expected_seq, expected_prev = first_seq, "" if first_seq == 1 else None
    for link in links:
        if link.stream_seq != expected_seq:
            return expected_seq
        if expected_prev is not None and link.prev_hash != expected_prev:
            return link.stream_seq
        if link.hash != link_hash(link.prev_hash, link.stream_seq, link.canonical):
            return link.stream_seq
        expected_seq, expected_prev = link.stream_seq + 1, link.hash
    return None
