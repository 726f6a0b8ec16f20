"""Verifying the log against its chains, seals and anchors, and handing it out in a form that others can verify.

What is found and what is not stands in docs/audit.md. The reading is split into stretches between seals, which may be
read by several processes at once in one snapshot.
"""

import gc
import gzip
import json
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
from django.db import connection, transaction

from ledger import git, proof
from ledger.models import Seal
from ledger.models.seal import SEALER
from ledger.proof import Problem
from ledger.sealing import CREATED_US, LEAVES, REF, audit_repository
from pipeline import events
from pipeline.events import START, Cursor, Event
from pipeline.refusals import Refused

TOMBSTONE = "seal.dropped"
"""The kind of event that says which months are gone by retention."""

STRETCH_EVENTS = 100_000
"""A stretch is closed when its seals hold as many events: enough to read in one go, few enough to share out."""

TOLD = 20
"""How many problems a report names; the first is what counts."""

LOG = "0" * 26
"""The id under which findings stand that are about no row at all."""

FORMAT = "signalbox.ledger.v1"

# A problem's rank among those of one place: the exact row before what follows from it.
WRONG_ROW, FOREIGN_ROW, BROKEN_STREAM, MISSING_ROW, WRONG_SEAL = range(5)

AT_THE_END = (2**31, 0, 0)

_SELECT = f"""
    SELECT {", ".join(CREATED_US if name == "created_us" else name for name in proof.COLUMNS)} FROM pipeline_event
    WHERE %s ORDER BY pipeline_event.epoch, pipeline_event.xid, pipeline_event.seq
    """


@dataclass
class Report:
    """What verify() saw: how much, from where on, and what is wrong, the first bad row first."""

    events: int = 0
    seals: int = 0
    streams: int = 0
    unsealed: int = 0
    dropped: int = 0
    first_month: str = ""
    last_root: str = ""
    last_anchor: str = ""
    seconds: float = 0.0
    problems: list[Problem] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.problems


class Stretch(NamedTuple):
    """What one reader reads: the events behind `after` up to and with `to` (None: to the end), and their seals."""

    after: Cursor
    to: Cursor | None
    first: int
    last: int

    @property
    def where(self) -> str:
        """The SQL condition of its events."""
        upper = "true" if self.to is None else f"(epoch, xid, seq) <= {_place(self.to)}"
        return f"(epoch, xid, seq) > {_place(self.after)} AND {upper}"


def _place(cursor: Cursor) -> str:
    return f"({int(cursor.epoch)}, '{int(cursor.xid)}'::xid8, {int(cursor.seq)})"


class _Anchors(NamedTuple):
    """Number → (commit, document) of the anchored seals, and what is wrong with their repository itself."""

    known: dict[int, tuple[str, str]]
    problems: list[Problem]


def verify(*, jobs: int = 1, bundle: Path | None = None) -> Report:
    """Read the whole log once and judge every row, stream, seal and anchor.

    `jobs` processes share the reading, each with a connection of its own; 1 reads on the caller's connection, also in
    the caller's transaction. `bundle` names a file that gets the log as it was judged (docs/audit.md). Never raises for
    what is wrong with the log: that is what it reports. Raises OSError when the bundle cannot be written.
    """
    started = time.monotonic()
    # The anchors first: whatever is anchored by now is in the snapshot taken afterwards.
    anchors = _read_anchors()
    with _snapshot() as cursor:
        report = _verify(cursor, anchors, jobs)
        report.seconds = time.monotonic() - started
        if bundle is not None:
            _export(cursor, bundle)
    return report


def check_newest(seals: int = 10, events_at_most: int = 50_000) -> list[Problem]:
    """What is wrong with the newest seals, their anchors and the rows under them: a quick look, for doctor."""
    anchors = _read_anchors(seals + 1)
    with _snapshot() as cursor:
        newest = list(Seal.objects.light().timeless().order_by("-number")[:seals])
        # One seal is looked at however large it is.
        while len(newest) > 1 and sum(seal.count for seal in newest) > events_at_most:
            newest.pop()
        newest.reverse()
        if not newest:
            return anchors.problems
        anchors = _up_to(newest, anchors)
        problems = [*anchors.problems, *_judge_seals(newest, anchors, from_first=newest[0].number)]
        after, to = _told_place(newest[0].from_cursor), _told_place(newest[-1].to_cursor)
        stretch = Stretch(after, to, newest[0].number, newest[-1].number)
        seen = _walk(cursor, stretch)
        problems += seen.walked.problems
        if problems or not seen.as_sealed:
            problems += _look_closer(cursor, stretch, anchors)
    return _first_things_first(problems)[:TOLD]


def watch() -> Report:
    """Verify everything, and record `seal.broken` for what is found first, once for each finding."""
    report = verify()
    if report.problems:
        problem = report.problems[0]
        told = {
            "finding": str(problem),
            "events": report.events,
            "seals": report.seals,
            "problems": len(report.problems),
        }
        # What was told from outside under this name is no finding of ours, and must not stand in for one.
        known = Event.objects.filter(kind="seal.broken", actor_kind="system", data__finding=told["finding"])
        with transaction.atomic():
            if not known.exists():
                events.record("seal.broken", _Suspect.of(problem), by=SEALER, message=told["finding"], data=told)
    if (audit_repository() / "HEAD").is_file():
        git.pack(audit_repository())
    return report


class _Suspect(NamedTuple):
    """What a finding is about, also where its row is gone."""

    pk: str
    kind: str

    @classmethod
    def of(cls, problem: Problem) -> "_Suspect":
        """The event, the seal, or the log itself. Never the subject of the stream: its chain is what is in doubt."""
        if problem.event_id:
            return cls(problem.event_id, "event")
        seal = Seal.objects.light().timeless().filter(number=problem.number).first() or Seal.objects.last_written()
        return cls(seal.pk, seal.noun()) if seal else cls(LOG, "log")

    def noun(self) -> str:
        """The word for it."""
        return self.kind

    def correlation(self) -> dict[str, str | None]:
        """It belongs to no project."""
        return {}


@contextmanager
def _snapshot() -> Iterator[Any]:
    """A cursor whose reads all see one moment; within the caller's transaction, when there is one."""
    nested = connection.in_atomic_block
    with transaction.atomic(), connection.cursor() as cursor:
        if not nested:
            cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        cursor.execute("SELECT set_config('statement_timeout', '0', true)")
        cursor.execute("SELECT set_config('idle_in_transaction_session_timeout', '0', true)")
        yield cursor


def _verify(cursor: Any, anchors: _Anchors, jobs: int) -> Report:
    seals = list(Seal.objects.light().timeless().order_by("number"))
    anchors = _up_to(seals, anchors)
    report = Report(problems=list(anchors.problems))
    report.problems += _judge_seals(seals, anchors)
    suspects = {problem.number for problem in report.problems}
    stretches = _stretches(seals)
    runs: dict[str, list[proof.Run]] = {}
    tombstones: list[str] = []
    for stretch, seen in _read(cursor, stretches, jobs):
        report.events += seen.walked.rows
        if stretch.to is None:
            report.unsealed = seen.walked.rows
        for subject, parts in seen.walked.runs.items():
            runs.setdefault(subject, []).extend(parts)
        tombstones += seen.walked.tombstones
        report.problems += seen.walked.problems
        if not seen.as_sealed or not suspects.isdisjoint(range(stretch.first, stretch.last + 1)):
            # Where a seal itself was rewritten, what it was stands in its anchor.
            report.problems += _look_closer(cursor, stretch, anchors)
    report.problems += _from_the_future(cursor, stretches[-1])
    report.streams = _judge_streams(cursor, runs, report.problems)
    report.problems += _judge_tombstones(seals, tombstones)
    report.seals = len(seals)
    kept = [seal for seal in seals if not seal.is_dropped]
    report.dropped = len(seals) - len(kept)
    report.first_month = kept[0].month if kept else ""
    if seals:
        report.last_root, report.last_anchor = seals[-1].root_hash, seals[-1].anchor
    report.problems = _first_things_first(report.problems)[:TOLD]
    return report


def _first_things_first(problems: list[Problem]) -> list[Problem]:
    """Wrong rows first, then broken streams, then seals, each in the order of commits: what comes later follows from
    what comes before. Rows that a seal misses are not told where a row or a stream says which they are.
    """
    found = set(problems)
    if any(one.rank in (WRONG_ROW, FOREIGN_ROW, BROKEN_STREAM) for one in found):
        found = {one for one in found if one.rank != MISSING_ROW}
    return sorted(found, key=lambda one: (max(one.rank, FOREIGN_ROW), one.place, one.rank, one))


# -- reading -----------------------------------------------------------------------------------------------------


class _Seen(NamedTuple):
    walked: proof.Stretch
    as_sealed: bool


def _stretches(seals: Sequence[Seal]) -> list[Stretch]:
    """The log cut at seals, and what is behind the last of them."""
    found = []
    after, first, held = START, 0, 0
    for seal in seals:
        first, held = first or seal.number, held + seal.count
        if held >= STRETCH_EVENTS or seal is seals[-1]:
            to = _told_place(seal.to_cursor)
            found.append(Stretch(after, to, first, seal.number))
            after, first, held = to, 0, 0
    return [*found, Stretch(after, None, 0, 0)]


def _read(cursor: Any, stretches: Sequence[Stretch], jobs: int) -> Iterator[tuple[Stretch, _Seen]]:
    """Each stretch with what was seen in it, in order."""
    if jobs <= 1:
        for stretch in stretches:
            yield stretch, _walk(cursor, stretch)
        return
    cursor.execute("SELECT pg_export_snapshot()")
    (snapshot,) = cursor.fetchone()
    parameters = {name: value for name, value in connection.get_connection_params().items() if name not in _DJANGOS_OWN}
    # Forked children use none of the connections that they inherit.
    with ProcessPoolExecutor(jobs, mp_context=get_context("fork")) as pool:
        work = [pool.submit(_walk_alone, parameters, snapshot, stretch) for stretch in stretches]
        for stretch, done in zip(stretches, work, strict=True):
            yield stretch, done.result()


_DJANGOS_OWN = {"cursor_factory", "context", "prepare_threshold"}


def _walk_alone(parameters: dict[str, Any], snapshot: str, stretch: Stretch) -> _Seen:
    """The same in a process of its own, seeing what its parent sees."""
    with psycopg.connect(**parameters) as own, own.cursor() as cursor:
        cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        cursor.execute(psycopg.sql.SQL("SET TRANSACTION SNAPSHOT {}").format(snapshot))
        cursor.execute("SET LOCAL statement_timeout = 0")
        return _walk(cursor, stretch)


def _walk(cursor: Any, stretch: Stretch) -> _Seen:
    expected = b""
    if stretch.to is not None:
        cursor.execute(
            "SELECT leaves FROM ledger_seal WHERE number BETWEEN %s AND %s AND dropped_at IS NULL ORDER BY number",
            [stretch.first, stretch.last],
        )
        expected = b"".join(bytes(leaves) for (leaves,) in cursor.fetchall())
    with cursor.copy(f"COPY ({_SELECT % stretch.where}) TO STDOUT (NULL '')") as lines, _without_collecting():
        walked = proof.walk(lines, TOMBSTONE)
    return _Seen(walked._replace(leaves=b""), stretch.to is None or walked.leaves == expected)


@contextmanager
def _without_collecting() -> Iterator[None]:
    """Pauses Python's search for cycles: a walk makes none, and looking through its many rows again costs time."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


# -- judging -----------------------------------------------------------------------------------------------------


def _read_anchors(newest: int = 0) -> _Anchors:
    """What the audit repository says, by seal numbers; with `newest` only of as many seals."""
    repository = audit_repository()
    if not (repository / "HEAD").is_file():
        return _Anchors({}, [])
    known: dict[int, tuple[str, str]] = {}
    try:
        head = git.note_head(repository, REF)
        found = git.notes(repository, head, *([newest] if newest else [])) if head else iter(())
        for commit, message in islice(found, newest or None):
            document = message.strip().splitlines()[-1]
            known[int(json.loads(document)["number"])] = (commit, document)
    except (git.GitFailed, git.UnknownCommit, ValueError, KeyError, IndexError, TypeError) as problem:
        return _Anchors(
            known, [Problem((0, 0, 0), WRONG_SEAL, f"the anchors in {repository.name} are damaged: {problem}")]
        )
    return _Anchors(known, [])


def _up_to(seals: Sequence[Seal], anchors: _Anchors) -> _Anchors:
    """The anchors, with those that were made between their reading and that of the seals."""
    if all(not seal.anchor or seal.number in anchors.known for seal in seals):
        return anchors
    again = _read_anchors()
    mine = {seal.number for seal in seals} | set(anchors.known)
    return again._replace(known={number: told for number, told in again.known.items() if number in mine})


def _judge_seals(seals: Sequence[Seal], anchors: _Anchors, from_first: int = 1) -> list[Problem]:
    """What is wrong with the seals in themselves, with their order, and against their anchors.

    `seals` are all of them, or the newest, of which the first is then taken at its word about the one before it.
    """
    problems = []
    number, cursor, root = 0, str(START), ""
    if from_first > 1 and seals:
        number, cursor, root = from_first - 1, seals[0].from_cursor, seals[0].prev_root

    def wrong(seal: Seal, what: str) -> None:
        problems.append(Problem(_told_place(cursor), WRONG_SEAL, what, number=seal.number))

    for seal in seals:
        if seal.number != number + 1:
            missing = Seal(number=number + 1)
            wrong(missing, "is missing")
        elif seal.from_cursor != cursor or seal.prev_root != root:
            wrong(seal, "does not follow from the seal before it")
        leaves = bytes(Seal.objects.values_list("leaves", flat=True).get(pk=seal.pk))
        if proof.root(seal.sealed(), leaves) != seal.root_hash or len(leaves) != seal.count * proof.LEAF_BYTES:
            wrong(seal, "its root is not that of what it holds")
        anchor = anchors.known.get(seal.number)
        if anchor is None and seal.anchor:
            wrong(seal, f"its anchor {seal.anchor} is not in the audit repository")
        elif anchor is not None and anchor != (seal.anchor or anchor[0], seal.document()):
            wrong(seal, f"is not what was anchored as {anchor[0]}")
        number, cursor, root = seal.number, seal.to_cursor, seal.root_hash
    for number in sorted(number for number in anchors.known if number > (seals[-1].number if seals else 0)):
        document = json.loads(anchors.known[number][1])
        what = (
            f"is anchored as {anchors.known[number][0]}, but gone with the {document['count']} events behind the cursor"
        )
        problems.append(Problem(_told_place(document["from_cursor"]), WRONG_SEAL, what, number=number))
    return problems


def _told_place(cursor: str) -> Cursor:
    """The cursor as a place, also where somebody made nonsense of it."""
    try:
        return Cursor.parse(cursor)
    except Refused:
        return START


def _look_closer(cursor: Any, stretch: Stretch, anchors: _Anchors) -> list[Problem]:
    """Which rows of a stretch are not those that its seals hold; the anchors' word counts before the table's."""
    problems: list[Problem] = []
    for seal in Seal.objects.timeless().filter(number__range=(stretch.first, stretch.last)).order_by("number"):
        expected, document = bytes(seal.leaves), seal.sealed()
        if seal.number in anchors.known:
            commit, told = anchors.known[seal.number]
            if told != seal.document() or proof.root(document, expected) != seal.root_hash:
                document, expected = json.loads(told), _anchored_leaves(commit, expected)
        after, to = _told_place(str(document["from_cursor"])), _told_place(str(document["to_cursor"]))
        cursor.execute(
            f"SELECT id, subject_type, subject_id, stream_seq, epoch, xid::text, seq::text, {CREATED_US}::text, hash "
            f"FROM pipeline_event WHERE {Stretch(after, to, 0, 0).where} "
            "ORDER BY pipeline_event.epoch, pipeline_event.xid, pipeline_event.seq"
        )
        rows = cursor.fetchall()
        found = b"".join(proof.leaf(str(row[4]), *row[5:]) for row in rows)
        if seal.is_dropped:
            expected = b""
        foreign, missing = proof.compare(expected, found)
        for position in foreign:
            pk, noun, subject, number, epoch, xid, seq, *_rest = rows[position]
            what = f"is not what {seal} holds there"
            place = (int(epoch), int(xid), int(seq))
            problems.append(
                Problem(
                    place, FOREIGN_ROW, what, proof.ulid(str(pk)), noun, proof.ulid(str(subject)), number, seal.number
                )
            )
        for position in missing[:1]:
            at = rows[min(position, len(rows) - 1)] if rows else None
            place = (int(at[4]), int(at[5]), int(at[6])) if at else after
            what = f"event {position + 1} of {seal} is not there any more ({len(missing)} are missing in it)"
            problems.append(Problem(place, MISSING_ROW, what, proof.ulid(str(at[0])) if at else "", number=seal.number))
    return problems


def _from_the_future(cursor: Any, stretch: Stretch) -> list[Problem]:
    """Rows that are not sealed yet and claim a place that nobody has got yet."""
    cursor.execute(
        f"""
        SELECT id, subject_type, subject_id, stream_seq, epoch, xid::text, seq FROM pipeline_event
        WHERE {stretch.where} AND (epoch > (SELECT max(number) FROM pipeline_eventepoch)
            OR seq > (SELECT last_value FROM pipeline_event_seq)
            OR (epoch = (SELECT max(number) FROM pipeline_eventepoch)
                AND xid >= pg_snapshot_xmax(pg_current_snapshot())
                AND xid IS DISTINCT FROM pg_current_xact_id_if_assigned()))
        ORDER BY pipeline_event.epoch, pipeline_event.xid, pipeline_event.seq LIMIT {TOLD}
        """
    )
    return [
        Problem(
            (int(epoch), int(xid), int(seq)),
            FOREIGN_ROW,
            "stands behind everything that was ever written",
            proof.ulid(str(pk)),
            noun,
            proof.ulid(str(subject)),
            number,
        )
        for pk, noun, subject, number, epoch, xid, seq in cursor.fetchall()
    ]


def _anchored_leaves(commit: str, otherwise: bytes) -> bytes:
    try:
        return git.note_file(audit_repository(), commit, LEAVES)
    except (git.GitFailed, git.UnknownCommit):
        return otherwise


def _judge_streams(cursor: Any, runs: dict[str, list[proof.Run]], problems: list[Problem]) -> int:
    """Hold each subject's runs against its head; returns how many streams there are."""
    count = 0
    with cursor.copy(
        "COPY (SELECT subject_id, subject_type, first_seq, seq, hash FROM pipeline_eventstream) TO STDOUT"
    ) as lines:
        heads = [str(line, "utf-8")[:-1].split("\t") for line in lines]
    for subject, noun, first, last, own_hash in heads:
        count += 1
        parts = runs.pop(subject, [])
        at, what = _against_head(parts, noun, int(first), int(last), own_hash)
        if what:
            problems.append(_in_stream(cursor, subject, noun, at, what))
    for subject, parts in runs.items():
        problems.append(_in_stream(cursor, subject, parts[0].subject_type, min(parts).first, "its stream has no head"))
    return count


def _against_head(parts: list[proof.Run], noun: str, first: int, last: int, own_hash: str) -> tuple[int, str]:
    """The number at which a stream breaks, and how; (0, "") when it holds."""
    if not parts:
        return (0, "") if first == last + 1 else (first, "is missing")
    whole, at, what = proof.join(parts, first)
    if whole is None:
        return at, what
    if whole.subject_type != noun:
        return first, f"its stream is called a {noun}"
    if whole.last < last:
        return whole.last + 1, "is missing"
    if whole.last > last:
        return last + 1, "is behind the head of its stream"
    return (0, "") if whole.hash == own_hash else (last, "the head of its stream has another hash")


def _in_stream(cursor: Any, subject: str, noun: str, number: int, what: str) -> Problem:
    """The problem, at the place where it shows: the row of that number, else the one behind it, else the end."""
    cursor.execute(
        """
        SELECT id, stream_seq, epoch, xid::text, seq FROM pipeline_event
        WHERE subject_id = %s AND stream_seq >= %s ORDER BY stream_seq LIMIT 1
        """,
        [subject, number],
    )
    row = cursor.fetchone()
    place = (int(row[2]), int(row[3]), int(row[4])) if row else AT_THE_END
    pk = proof.ulid(str(row[0])) if row and row[1] == number else ""
    return Problem(place, BROKEN_STREAM, what, pk, noun, proof.ulid(subject), number)


def _judge_tombstones(seals: Sequence[Seal], tombstones: Sequence[str]) -> list[Problem]:
    """Seals whose events are gone without a tombstone that says so: what was told from outside is about no seal."""
    before = max(map(_dropped_before, tombstones), default="")
    return [
        Problem(
            _told_place(seal.from_cursor),
            WRONG_SEAL,
            "its events were dropped, and no tombstone says so",
            number=seal.number,
        )
        for seal in seals
        if seal.is_dropped and seal.month >= before
    ]


def _dropped_before(told: str) -> str:
    """The month before which a tombstone says that events were dropped; "" of one that is about no seal, or that
    somebody made nonsense of.
    """
    try:
        one = json.loads(told)
        return str(one["data"].get("before", "")) if one["subject_type"] == Seal.noun() else ""
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return ""


# -- handing out -------------------------------------------------------------------------------------------------


def _export(cursor: Any, path: Path) -> None:
    """Write the bundle: gzip, one JSON document a line: a header, every seal, every stream, every event."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with gzip.open(partial, "wt", encoding="utf-8", compresslevel=5) as lines:
            for line in _bundle(cursor):
                lines.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _bundle(cursor: Any) -> Iterator[dict[str, Any]]:
    """The bundle's lines: times are microseconds since 1970, cursors are lists, leaves are hexadecimal."""
    yield {"format": FORMAT}
    for seal in Seal.objects.timeless().order_by("number").iterator(chunk_size=20):
        leaves, dropped = bytes(seal.leaves).hex(), seal.is_dropped
        yield {"seal": json.loads(seal.document()), "anchor": seal.anchor, "dropped": dropped, "leaves": leaves}
    with cursor.copy(
        "COPY (SELECT subject_id, subject_type, first_seq, seq, hash FROM pipeline_eventstream) TO STDOUT"
    ) as lines:
        for line in lines:
            subject, noun, first, last, own_hash = str(line, "utf-8")[:-1].split("\t")
            yield {"stream": [proof.ulid(subject), noun, int(first), int(last), own_hash]}
    statement = _SELECT % "true"
    with cursor.copy(f"COPY ({statement}) TO STDOUT (NULL '')") as lines:
        for line in lines:
            row = proof.fields(str(line, "utf-8"))
            epoch, xid, seq, stream_seq, prev_hash, own_hash, created_us, told = row[-8:]
            place = [int(epoch), int(xid), int(seq), int(created_us)]
            yield {"event": [*place, int(stream_seq), prev_hash, own_hash, told]}
