"""Tampering by whoever owns the tables: every one is found, and the first bad row named (reliability.md G9)."""

import random
from collections import Counter
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from ledger import audit, git, proof, sealing
from ledger.models import Seal
from ledger.proof import Problem
from pipeline import chain, events
from pipeline.events import Cursor
from pipeline.ids import new_id, to_uuid
from pipeline.models import Event, EventStream
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)

GUARDED = ("pipeline_event", "pipeline_eventstream", "ledger_seal")

# What each column becomes; {0} is the column. Every column but those that tell how an event was
# handled, and `own_xid`, which nobody asks for once its transaction has ended.
EDITS: dict[str, str] = {
    **dict.fromkeys(("kind", "channel", "actor_id", "actor_name", "on_behalf_of", "request_id"), "{0} || 'x'"),
    **dict.fromkeys(("subject_type", "reason", "message", "canonical"), "{0} || 'x'"),
    **dict.fromkeys(("prev_hash", "hash"), "md5({0})"),
    **dict.fromkeys(("id", "subject_id", *events.CORRELATION), "gen_random_uuid()"),
    "severity": "CASE {0} WHEN 'debug' THEN 'info' ELSE 'debug' END",
    "actor_kind": "CASE {0} WHEN 'user' THEN 'system' ELSE 'user' END",
    "before": "CASE WHEN {0} IS NULL THEN 'null'::jsonb END",
    "after": "coalesce({0}, '{{}}') || '{{\"x\": 1}}'",
    "data": '{0} || \'{{"x": "y"}}\'',
    "seq": "{0} + 1",
    "xid": "({0}::text::bigint + 1)::text::xid8",
    "epoch": "{0} + 1",
    "stream_seq": "{0} + 1",
    "created_at": "{0} + interval '1 microsecond'",
}


@pytest.fixture
def log(settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Event]:
    """A sealed and anchored log of several subjects in several seals, in the order of commits."""
    settings.SIGNALBOX_AUDIT_REPOSITORY = str(tmp_path / "audit.git")
    monkeypatch.setattr(sealing, "MAX_EVENTS", 16)
    projects = [factories.make_project() for _ in range(5)]
    for number in range(70):
        project = projects[number % 5]
        known = {name: new_id() for name in events.CORRELATION} if number % 2 else {}
        events.record(
            "note.added", project, by=events.Actor("worker", new_id(), "w", "somebody"), reason=f'because "{number}"',
            message=f"note {number}", before={"n": number} if number % 3 else None, after={"n": [number, None]},
            data={"b": number, "a": {"deep": "\\"}}, **known,
        )  # fmt: skip
    sealing.seal()
    assert audit.verify().problems == []
    sealed = Cursor.parse(Seal.objects.order_by("number").last().to_cursor)
    rows = list(Event.objects.order_by("epoch", "xid", "seq"))
    return [row for row in rows if row.cursor <= sealed]


Case = tuple[str, Callable[[], None], Callable[[Problem], bool]]


def run(sql: str, *values: Any) -> None:
    """A statement past Django's models."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


def found_in(cases: Iterator[Case]) -> tuple[Counter[str], list[str]]:
    """Tamper, verify, undo, for each case: how many of each kind were found with their row named, and which not."""
    found: Counter[str] = Counter()
    missed = []
    # Nothing here reaches the audit repository, so reading it once is enough.
    anchors = audit._read_anchors()
    with pytest.MonkeyPatch.context() as patched, transaction.atomic():
        patched.setattr(audit, "_read_anchors", lambda: anchors)
        for table in GUARDED:
            run(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        for name, tamper, is_named in cases:
            with transaction.atomic():
                tamper()
                problems = audit.verify().problems
                transaction.set_rollback(True)
            if problems and is_named(problems[0]):
                found[name.split(" ")[0]] += 1
            else:
                missed.append(f"{name}: {'; '.join(map(str, problems[:3])) or 'nothing found'}")
        assert audit.verify().problems == []
        transaction.set_rollback(True)
    return found, missed


def test_500_of_500_tamperings_are_found_and_the_first_bad_row_is_named(log):
    cases = [*edits(log), *deletions(log), *insertions(log), *swaps(log), *cuts(log), *rewritings(log)]
    found, missed = found_in(iter(cases))
    assert missed == [], "\n".join(missed)
    assert sum(found.values()) == len(cases) >= 500
    assert set(found) == {"edit", "delete", "insert", "swap", "cut", "rewrite"}


def names(*rows: Event) -> Callable[[Problem], bool]:
    """Whether the problem is with one of these rows."""
    return lambda problem: problem.event_id in {row.pk for row in rows}


# -- edits ---------------------------------------------------------------------------------------------------------


def test_every_column_but_those_of_handling_is_edited_here():
    columns = {field.column for field in Event._meta.fields}
    assert columns - set(EDITS) == {"handled_at", "due_at", "attempts", "own_xid"}


def edits(log: list[Event]) -> Iterator[Case]:
    """Every column of several rows, first and last among them."""
    pick = random.Random(1)
    for column, value in EDITS.items():
        for row in [log[0], log[-1], *pick.sample(log[1:-1], 7)]:
            yield f"edit {column} of {row}", edit(row, column, value), is_edited(row, column, row is log[-1])


def edit(row: Event, column: str, value: str) -> Callable[[], None]:
    """Changes one column of one row."""
    sql = f"UPDATE pipeline_event SET {column} = {value.format(column)} WHERE id = %s"
    return lambda: run(sql, to_uuid(row.pk))


def is_edited(row: Event, column: str, last: bool) -> Callable[[Problem], bool]:
    """The row by its id, or, where that was changed, by its place.

    The last sealed row, moved behind the seal, is missed by the seal; where it is now, all rows are new.
    """
    if column == "id":
        return lambda problem: problem.place == tuple(row.cursor) and problem.event_id not in ("", row.pk)
    if last and column in ("seq", "xid"):
        number = seal_of(row).number
        return lambda problem: problem.number == number and "is not there any more" in problem.what
    return names(row)


# -- deletions -----------------------------------------------------------------------------------------------------


def deletions(log: list[Event]) -> Iterator[Case]:
    """Single rows; and last rows of streams whose heads are put back as well."""
    pick = random.Random(2)
    for row in pick.sample(log, 60):
        yield f"delete {row.pk}", lambda row=row: delete(row), is_missing(row)
    for row in pick.sample(log, 20):
        yield f"delete {row.pk} and what follows it", lambda row=row: delete_end(row), is_after(log, row)


def delete(row: Event) -> None:
    """One row, and nothing else."""
    run("DELETE FROM pipeline_event WHERE id = %s", to_uuid(row.pk))


def is_missing(row: Event) -> Callable[[Problem], bool]:
    """The number in the stream that the row had."""
    return lambda problem: (problem.subject_id, problem.stream_seq) == (row.subject_id, row.stream_seq)


def delete_end(row: Event) -> None:
    """The rest of the row's stream from the row on, its head put back: only the seals know better."""
    run(
        "DELETE FROM pipeline_event WHERE subject_id = %s AND stream_seq >= %s", to_uuid(row.subject_id), row.stream_seq
    )
    put_back_heads()


def put_back_heads() -> None:
    """Every head to the last event that its stream has, as a careful forger does."""
    run("DELETE FROM pipeline_eventstream WHERE subject_id NOT IN (SELECT subject_id FROM pipeline_event)")
    run(
        """
        UPDATE pipeline_eventstream s SET seq = e.stream_seq, hash = e.hash FROM (
            SELECT DISTINCT ON (subject_id) subject_id, stream_seq, hash FROM pipeline_event
            ORDER BY subject_id, stream_seq DESC) e WHERE e.subject_id = s.subject_id
        """
    )


def is_after(log: list[Event], row: Event) -> Callable[[Problem], bool]:
    """The seal that held the row, and a place beside where it stood."""
    seal = seal_of(row)
    near = [one.cursor for one in log if one.subject_id != row.subject_id]
    following = min((place for place in near if place > row.cursor), default=max(near))
    return lambda problem: problem.number == seal.number and problem.place <= tuple(following)


def seal_of(row: Event) -> Seal:
    """The seal that holds the row."""
    return next(seal for seal in Seal.objects.order_by("number") if row.cursor <= Cursor.parse(seal.to_cursor))


# -- insertions ----------------------------------------------------------------------------------------------------


def insertions(log: list[Event]) -> Iterator[Case]:
    """Rows that are forged clumsily, and rows that are chained as the trigger would have chained them."""
    pick = random.Random(3)
    for row in pick.sample(log, 40):
        pk = new_id()
        yield f"insert a copy of {row.pk}", lambda row=row, pk=pk: insert(row, pk), is_row(pk)
    for row in pick.sample(log, 40):
        pk = new_id()
        yield f"insert a well-formed row beside {row.pk}", lambda row=row, pk=pk: insert_chained(row, pk), is_row(pk)


def is_row(pk: str) -> Callable[[Problem], bool]:
    """The row of this id."""
    return lambda problem: problem.event_id == pk


def insert(row: Event, pk: str, **columns: Any) -> None:
    """A copy of the row under another id and with other columns."""
    columns = {"id": to_uuid(pk), **columns}
    fields = [field.column for field in Event._meta.fields]
    values = ", ".join("%s" if name in columns else f'"{name}"' for name in fields)
    quoted = ", ".join(f'"{name}"' for name in fields)
    given = [columns[name] for name in fields if name in columns]
    run(
        f"INSERT INTO pipeline_event ({quoted}) SELECT {values} FROM pipeline_event WHERE id = %s",
        *given,
        to_uuid(row.pk),
    )


def facts(row: Event) -> dict[str, Any]:
    """The columns that are chained."""
    return {name: getattr(row, name) for name in proof.FACTS}


def insert_chained(row: Event, pk: str) -> None:
    """A row at the end of the row's stream, rightly chained, its head moved on, at a place that is long sealed."""
    head = EventStream.objects.get(pk=row.subject_id)
    text = chain.canonical({**facts(row), "id": pk})
    own = chain.link_hash(head.hash, head.seq + 1, text)
    insert(row, pk, canonical=text, stream_seq=head.seq + 1, prev_hash=head.hash, hash=own)
    put_back_heads()


# -- swaps ---------------------------------------------------------------------------------------------------------


def swaps(log: list[Event]) -> Iterator[Case]:
    """Two rows change their places in the log, in their stream, or all that they tell."""
    pick = random.Random(4)
    told = ", ".join([*proof.FACTS[1:], "canonical"])
    ways = ("epoch, xid, seq, created_at", "stream_seq, prev_hash, hash", told)
    for columns in ways:
        for _ in range(18):
            one, other = sorted(pick.sample(log, 2), key=lambda row: row.cursor)
            if columns == ways[1] and one.subject_id != other.subject_id:
                other = next(row for row in log if row.subject_id == one.subject_id and row.pk != one.pk)
            yield f"swap {columns}", swap(one, other, columns), names(one, other)


def swap(one: Event, other: Event, columns: str) -> Callable[[], None]:
    """Each gets the other's columns."""
    sql = f"""
        UPDATE pipeline_event e SET ({columns}) = (SELECT {columns} FROM pipeline_event o
            WHERE o.id = CASE WHEN e.id = %s THEN %s ELSE %s END) WHERE e.id IN (%s, %s)
        """
    a, b = to_uuid(one.pk), to_uuid(other.pk)
    return lambda: run(sql, a, b, a, a, b)


# -- cuts ----------------------------------------------------------------------------------------------------------


def cuts(log: list[Event]) -> Iterator[Case]:
    """The end of the log goes: events, heads and seals, the seal at the cut written anew. Only the anchor is left."""
    for count in range(1, 41):
        row = log[-count]
        seal = seal_of(row)
        yield f"cut {count}", lambda row=row: cut(row), lambda problem, seal=seal: problem.number == seal.number


def cut(row: Event) -> None:
    """Everything from the row on."""
    run(
        "DELETE FROM pipeline_event WHERE (epoch, xid, seq) >= (%s, %s::text::xid8, %s)",
        row.epoch, str(row.xid), row.seq,
    )  # fmt: skip
    put_back_heads()
    for seal in Seal.objects.order_by("number"):
        if Cursor.parse(seal.from_cursor) >= Cursor.parse(str(last_cursor())):
            run("DELETE FROM ledger_seal WHERE number = %s", seal.number)
    seal_anew()


def last_cursor() -> Cursor:
    """Where the log ends."""
    return Event.objects.order_by("-epoch", "-xid", "-seq").first().cursor


def seal_anew() -> None:
    """Every seal so that it agrees with the events that are there now."""
    root = ""
    for seal in Seal.objects.order_by("number"):
        rows = [
            row
            for row in Event.objects.order_by("epoch", "xid", "seq")
            if Cursor.parse(seal.from_cursor) < row.cursor <= Cursor.parse(seal.to_cursor)
        ]
        us = [row.created_at.timestamp() for row in rows]
        assert us
        seal.leaves = b"".join(leaf_of(row) for row in rows)
        seal.count, seal.to_cursor, seal.prev_root = len(rows), str(rows[-1].cursor), root
        seal.root_hash = root = proof.root(seal.sealed(), seal.leaves)
        run(
            "UPDATE ledger_seal SET leaves = %s, count = %s, to_cursor = %s, prev_root = %s, root_hash = %s "
            "WHERE number = %s",
            seal.leaves, seal.count, seal.to_cursor, seal.prev_root, seal.root_hash, seal.number,
        )  # fmt: skip


def leaf_of(row: Event) -> bytes:
    """The row's leaf."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT {sealing.CREATED_US}::text FROM pipeline_event WHERE id = %s", [to_uuid(row.pk)])
        (created_us,) = cursor.fetchone()
    return proof.leaf(str(row.epoch), str(row.xid), str(row.seq), created_us, row.hash)


# -- rewritings ----------------------------------------------------------------------------------------------------


def rewritings(log: list[Event]) -> Iterator[Case]:
    """One event tells something else, its whole stream is chained anew behind it; then also every seal."""
    pick = random.Random(5)
    for number, row in enumerate(pick.sample(log, 30)):
        yield f"rewrite from {row.pk}", lambda row=row, again=number % 2: rewrite(row, bool(again)), names(row)


def rewrite(row: Event, seals_too: bool) -> None:
    """The row's message, and every hash that follows from it."""
    text = chain.canonical({**facts(row), "message": "never happened"})
    prev = row.prev_hash
    for one in Event.objects.about(subject_of(row)).filter(stream_seq__gte=row.stream_seq):
        text = text if one.pk == row.pk else one.canonical
        own = chain.link_hash(prev, one.stream_seq, text)
        message = "never happened" if one.pk == row.pk else one.message
        run(
            "UPDATE pipeline_event SET message = %s, canonical = %s, prev_hash = %s, hash = %s WHERE id = %s",
            message, text, prev, own, to_uuid(one.pk),
        )  # fmt: skip
        prev = own
    put_back_heads()
    if seals_too:
        seal_anew()


def subject_of(row: Event) -> Any:
    """What `about()` asks for."""

    class Subject:
        pk = row.subject_id

        @staticmethod
        def noun() -> str:
            return row.subject_type

    return Subject


# -- heads and seals -----------------------------------------------------------------------------------------------

ROWS: dict[str, str] = {
    "a head's number": "UPDATE pipeline_eventstream SET seq = seq + 1 WHERE subject_id = %s",
    "a head's hash": "UPDATE pipeline_eventstream SET hash = md5(hash) WHERE subject_id = %s",
    "a head's first number": "UPDATE pipeline_eventstream SET first_seq = 2 WHERE subject_id = %s",
    "a head's noun": "UPDATE pipeline_eventstream SET subject_type = 'run' WHERE subject_id = %s",
    "a head": "DELETE FROM pipeline_eventstream WHERE subject_id = %s",
    "a strange head": "INSERT INTO pipeline_eventstream (subject_id, subject_type, first_seq, seq, hash, epoch, xid) "
    "SELECT gen_random_uuid(), subject_type, 1, seq, hash, epoch, xid FROM pipeline_eventstream WHERE subject_id = %s",
    "a root": "UPDATE ledger_seal SET root_hash = md5(root_hash) WHERE number = 2 AND %s IS NOT NULL",
    "a count": "UPDATE ledger_seal SET count = count + 1 WHERE number = 2 AND %s IS NOT NULL",
    "leaves": "UPDATE ledger_seal SET leaves = set_byte(leaves, 40, 255 - get_byte(leaves, 40)) "
    "WHERE number = 2 AND %s IS NOT NULL",
    "an anchor": "UPDATE ledger_seal SET anchor = md5(anchor) || '01234567' WHERE number = 2 AND %s IS NOT NULL",
    "a cursor": "UPDATE ledger_seal SET to_cursor = '1-2-3' WHERE number = 2 AND %s IS NOT NULL",
    "a cursor that is none": "UPDATE ledger_seal SET to_cursor = 'never' WHERE number = 2 AND %s IS NOT NULL",
    "a month": "UPDATE ledger_seal SET month = '1999-01' WHERE number = 2 AND %s IS NOT NULL",
    "a tombstone": "UPDATE ledger_seal SET dropped_at = now() WHERE number = 2 AND %s IS NOT NULL",
    "a seal": "DELETE FROM ledger_seal WHERE number = 2 AND %s IS NOT NULL",
    "all seals": "DELETE FROM ledger_seal WHERE %s IS NOT NULL",
}


def test_heads_and_seals_that_were_changed_are_found(log):
    row = log[20]
    cases = [
        (what, lambda sql=sql: run(sql, to_uuid(row.subject_id)), lambda problem: True) for what, sql in ROWS.items()
    ]
    found, missed = found_in(iter(cases))
    assert (missed, sum(found.values())) == ([], len(ROWS))


def test_anchors_that_were_rewritten_no_longer_agree_with_the_seals(log):
    repository = sealing.audit_repository()
    first = Seal.objects.get(number=1)
    message = f"seal 1\n\n{first.document().replace(first.root_hash, sha256(b'x').hexdigest())}\n"
    forged = git.add_note(repository, {"leaves": b""}, None, message, at=first.created_at)
    head = git.note_head(repository, sealing.REF)
    git.move_note(repository, sealing.REF, forged, head)
    problems = audit.verify().problems
    assert problems[0].number == 1
    assert any("is not what was anchored" in problem.what for problem in problems)


@pytest.mark.parametrize("message", ["no document", '{"number": "x"}', "[]", ""])
def test_a_note_that_is_no_seal_is_told_and_breaks_nothing(log, message):
    repository = sealing.audit_repository()
    head = git.note_head(repository, sealing.REF)
    note = git.add_note(repository, {}, head, f"seal\n\n{message}\n", at=Seal.objects.first().created_at)
    git.move_note(repository, sealing.REF, note, head)
    assert "damaged" in str(audit.verify().problems)


def test_how_an_event_was_handled_is_not_under_the_chain(log):
    with transaction.atomic():
        run("ALTER TABLE pipeline_event DISABLE TRIGGER USER")
        run("UPDATE pipeline_event SET handled_at = NULL, due_at = now(), attempts = 7, own_xid = '1'")
        assert audit.verify().problems == []
        transaction.set_rollback(True)
