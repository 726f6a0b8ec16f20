"""Pure: what the log's tamper evidence is made of, and how one row, a stream and a seal are judged (docs/audit.md).

Times are microseconds since 1970 in UTC, ids in columns are `uuid` text, hashes are 64 hexadecimal digits, leaves and
digests of leaves are bytes.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import sha256
from json.encoder import encode_basestring
from typing import Any, NamedTuple

from pipeline.chain import canonical

Buffer = bytes | bytearray | memoryview

LEAF_BYTES = 32

FACTS = (
    "id", "kind", "channel", "severity", "actor_kind", "actor_id", "actor_name", "on_behalf_of", "request_id",
    "subject_type", "subject_id", "before", "after", "reason", "message", "data", "project_id", "workstream_id",
    "run_id", "task_id", "step_id", "worker_id", "patch_id", "gate_run_id",
)  # fmt: skip
"""The columns whose canonical JSON is chained."""

COLUMNS = (*FACTS, "epoch", "xid", "seq", "stream_seq", "prev_hash", "hash", "created_us", "canonical")
"""What is read of every event, in this order; `created_us` is `created_at` in microseconds."""

_DIGITS = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
# Crockford's digits as those that `int(…, 32)` reads; what is no digit of a ULID becomes none of int's either.
_BASE_32 = bytearray(b"!" * 256)
for _value, _digit in enumerate(_DIGITS):
    _BASE_32[ord(_digit)] = ord("0123456789ABCDEFGHIJKLMNOPQRSTUV"[_value])
# Three characters at once: 15 bits.
_THREE = [a + b + c for a in _DIGITS for b in _DIGITS for c in _DIGITS]
_KEPT = 100_000
"""How many conversions are remembered: ids and small documents repeat from row to row."""

_SMALL = 200
"""Longer documents are not remembered: they seldom repeat."""


Row = Sequence[str]
"""One event: the texts of COLUMNS as PostgreSQL writes them, "" for NULL (no column that may be NULL can be "")."""


class Problem(NamedTuple):
    """One thing that is not as it was written: where it stands in the order of commits, which row, and what is wrong.

    `event_id` is the row's, or "" where the row itself is gone; `number` is the seal's, or 0.
    """

    place: tuple[int, int, int]
    rank: int
    what: str
    event_id: str = ""
    subject_type: str = ""
    subject_id: str = ""
    stream_seq: int = 0
    number: int = 0

    def __str__(self) -> str:
        row = f"event {self.event_id}" if self.event_id else ""
        stream = (
            f"{self.subject_type or 'subject'} {self.subject_id} number {self.stream_seq}" if self.subject_id else ""
        )
        placed = any(self.place) and (self.event_id or self.number)
        cursor = "cursor " + "-".join(str(part) for part in self.place) if placed else ""
        seal = f"seal {self.number}" if self.number else ""
        return f"{', '.join(part for part in (row, stream, cursor, seal) if part)}: {self.what}"


def ulid(text: str) -> str:
    """The 26 characters for a `uuid` as PostgreSQL writes it."""
    number = int(text.replace("-", ""), 16)
    head = _DIGITS[number >> 125] + _DIGITS[(number >> 120) & 31]
    return head + "".join([_THREE[(number >> shift) & 32767] for shift in (105, 90, 75, 60, 45, 30, 15, 0)])


class _Remembered(dict[str, str]):
    """Texts by what they are made of; forgotten all at once when they are too many."""

    def __init__(self, make: Callable[[str], str]) -> None:
        super().__init__()
        self.make = make

    def __missing__(self, given: str) -> str:
        if len(self) >= _KEPT:
            self.clear()
        made = self[given] = self.make(given)
        return made


_encode = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode


def _document(text: str) -> str:
    if not text:
        return "null"
    if text == "null":
        return "JSON null where nothing was written"  # no canonical text reads like this
    try:
        return _encode(json.loads(text))
    except (ValueError, RecursionError):  # PostgreSQL holds numbers and depths that Python does not read
        return "a document that is none of ours"  # and no canonical text reads like this


_reference_of = _Remembered(lambda text: f'"{ulid(text)}"' if text else "null")
_text_of = _Remembered(encode_basestring)
_known_document_of = _Remembered(_document)


def _document_of(text: str, told: str) -> str:
    """The canonical text for PostgreSQL's `text` of a document.

    Most documents need not be read: without the blanks between its strings (no string holds a backslash, so every
    second quote begins one) PostgreSQL's text is canonical but for the order of its keys, and where that is the same
    the row's own text holds it.
    """
    if not text:
        return "null"
    if text in _known_document_of:
        return _known_document_of[text]
    if "\\" not in text and text != "null":
        parts = text.split('"')
        parts[::2] = [part.replace(" ", "") for part in parts[::2]]
        quick = '"'.join(parts)
        if quick in told:
            return quick
    return _known_document_of[text] if len(text) <= _SMALL else _document(text)


def _own_id(text: str, told: str) -> str:
    """The ULID for the uuid `text`. Every row has another, so the one that its canonical text tells is tried first:
    reading one is a tenth of making one.
    """
    start = told.find('"id":"') + 6
    candidate = told[start : start + 26].encode()
    try:
        if int(candidate.translate(_BASE_32), 32) == int(text.replace("-", ""), 16) and len(candidate) == 26:
            return candidate.decode()
    except ValueError:
        pass  # not a ULID: then it is not the one that is made here
    return ulid(text)


def leaf(epoch: str, xid: str, seq: str, created_us: str, own_hash: str) -> bytes:
    """What a seal holds of one event: sha256 over its cursor, its time and its hash, parted by blanks."""
    return sha256(f"{epoch}-{xid}-{seq} {created_us} {own_hash}".encode()).digest()


def root(document: Mapping[str, Any], leaves: bytes) -> str:
    """A seal's root: sha256 over its canonical document without the root, a line end, and its leaves."""
    return sha256(f"{canonical(document)}\n".encode() + leaves).hexdigest()


def rebuilt(row: Row) -> str:
    """The canonical text that the row's columns give. Equal to `canonical` of the row unless one was changed."""
    q, text, ref, doc = encode_basestring, _text_of, _reference_of, _document_of
    (
        pk, kind, channel, severity, actor_kind, actor_id, actor_name, on_behalf_of, request_id, subject_type,
        subject_id, before, after, reason, message, data, project_id, workstream_id, run_id, task_id, step_id,
        worker_id, patch_id, gate_run_id, _epoch, _xid, _seq, _number, _prev, _hash, _created, told,
    ) = row  # fmt: skip
    return (
        f'{{"actor_id":{text[actor_id]},"actor_kind":{text[actor_kind]},"actor_name":{text[actor_name]},'
        f'"after":{doc(after, told)},"before":{doc(before, told)},"channel":{text[channel]},"data":{doc(data, told)},'
        f'"gate_run_id":{ref[gate_run_id]},"id":"{_own_id(pk, told)}","kind":{text[kind]},"message":{q(message)},'
        f'"on_behalf_of":{text[on_behalf_of]},"patch_id":{ref[patch_id]},"project_id":{ref[project_id]},'
        f'"reason":{q(reason)},"request_id":{q(request_id)},"run_id":{ref[run_id]},"severity":{text[severity]},'
        f'"step_id":{ref[step_id]},"subject_id":{ref[subject_id]},"subject_type":{text[subject_type]},'
        f'"task_id":{ref[task_id]},"worker_id":{ref[worker_id]},"workstream_id":{ref[workstream_id]}}}'
    )


# -- a stretch of the log ----------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Consecutive events of one subject: the first's number and previous hash, the last's number and hash."""

    first: int
    prev_hash: str
    last: int
    hash: str
    subject_type: str


class Stretch(NamedTuple):
    """What was seen in a stretch of the log: rows that are wrong in themselves, each subject's runs, every leaf."""

    rows: int
    problems: list[Problem]
    runs: dict[str, list[Run]]
    leaves: bytes
    tombstones: list[str]


SHOWN = 20
"""How many wrong rows of a stretch are told; all the others follow from one cause."""

_PARTED = re.compile(r"\\(.)", re.DOTALL)
_ESCAPES = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}


def fields(line: str) -> list[str]:
    """The fields of one line of COPY's text format, written with `NULL ''`. Source: PostgreSQL, COPY, "Text Format"."""
    parts = line[:-1].split("\t")
    if "\\" in line:
        return [_unescaped(part) if "\\" in part else part for part in parts]
    return parts


def _unescaped(text: str) -> str:
    if text.count("\\") == 2 * text.count("\\\\"):
        return text.replace("\\\\", "\\")
    return _PARTED.sub(lambda found: _ESCAPES.get(found[1], found[1]), text)


def walk(lines: Iterable[Buffer], tombstone: str) -> Stretch:
    """Judge every row of a stretch, which comes as lines of COPY with COLUMNS in the order of commits.

    `tombstone` is the kind of event whose canonical texts are handed back.
    """
    count = 0
    problems: list[Problem] = []
    open_runs: dict[str, list[Any]] = {}
    ended: dict[str, list[Run]] = {}
    leaves: list[bytes] = []
    tombstones: list[str] = []
    for line in lines:
        row = fields(str(line, "utf-8"))
        count += 1
        subject, number, prev_hash, own_hash, told = row[10], row[27], row[28], row[29], row[31]
        right = rebuilt(row) == told and sha256(f"{prev_hash}\n{number}\n{told}".encode()).hexdigest() == own_hash
        if not right and len(problems) < SHOWN:
            problems.append(_problem(row))
        leaves.append(sha256(f"{row[24]}-{row[25]}-{row[26]} {row[30]} {own_hash}".encode()).digest())
        if row[1] == tombstone:
            tombstones.append(told)
        place = int(number)
        run = open_runs.get(subject)
        if run is not None and run[2] + 1 == place and run[3] == prev_hash:
            run[2], run[3] = place, own_hash
            continue
        # Where a row was moved, its stream goes on somewhere else: runs are joined in the end.
        if run is not None:
            ended.setdefault(subject, []).append(Run(*run))
        open_runs[subject] = [place, prev_hash, place, own_hash, row[9]]
    runs = {subject: [Run(*run)] for subject, run in open_runs.items()}
    for subject, parts in ended.items():
        runs[subject] += parts
    return Stretch(count, problems, runs, b"".join(leaves), tombstones)


def place_of(row: Row) -> tuple[int, int, int]:
    """Where the row stands in the order of commits: epoch, transaction, sequence."""
    return int(row[24]), int(row[25]), int(row[26])


def _problem(row: Row) -> Problem:
    """What is wrong with a row that is not as it was written."""
    what = "its hash is not that of its canonical text, number and previous hash"
    if rebuilt(row) != row[31]:
        what = f"{_differing(row)} differs from its canonical text"
    return Problem(place_of(row), 0, what, ulid(row[0]), row[9], ulid(row[10]), int(row[27]))


def _differing(row: Row) -> str:
    """The columns that the canonical text tells otherwise."""
    try:
        told, ours = json.loads(row[31]), json.loads(rebuilt(row))
    except (ValueError, RecursionError):
        return "a column"
    names = [name for name in FACTS if not isinstance(told, dict) or told.get(name, ...) != ours[name]]
    return " and ".join(names) or "the layout"


def join(runs: Sequence[Run], first: int) -> tuple[Run | None, int, str]:
    """One run of all runs of a subject that starts at `first`; else the number at which it breaks, and how."""
    whole: Run | None = None
    for run in sorted(runs):
        expected = first if whole is None else whole.last + 1
        if run.first != expected:
            missing = min(run.first, expected)
            words = "is missing" if run.first > expected else "is there twice" if run.first >= first else "was dropped"
            return None, missing, words
        before = "" if first == 1 else run.prev_hash
        if run.prev_hash != (before if whole is None else whole.hash):
            return None, run.first, "does not follow from the event before it"
        whole = run if whole is None else Run(whole.first, whole.prev_hash, run.last, run.hash, run.subject_type)
    return whole, 0, ""


def compare(expected: bytes, found: bytes) -> tuple[list[int], list[int]]:
    """Positions of leaves found that were not sealed, and positions of sealed leaves that are not found any more."""
    sealed = [expected[start : start + LEAF_BYTES] for start in range(0, len(expected), LEAF_BYTES)]
    present = [found[start : start + LEAF_BYTES] for start in range(0, len(found), LEAF_BYTES)]
    known, there = set(sealed), set(present)
    return (
        [position for position, one in enumerate(present) if one not in known],
        [position for position, one in enumerate(sealed) if one not in there],
    )
