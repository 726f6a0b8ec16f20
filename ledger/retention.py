"""Dropping the events of whole months: only what is handled, sealed and anchored, never silently (docs/audit.md).

It stands here and not beside the partitions in pipeline, since only the ledger knows what is sealed. Money and what the
other apps keep are other tables with other clocks; nothing here touches them.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection, transaction
from psycopg import sql

from ledger import audit, proof
from ledger.models import Seal
from ledger.sealing import alone, month_start
from pipeline import events
from pipeline.clock import ClockNow, db_now
from pipeline.events import Actor
from pipeline.ids import from_uuid
from pipeline.refusals import InvalidField, Refused

_MONTH = re.compile(r"[0-9]{4}-(0[1-9]|1[0-2])")
_PARTITION = re.compile(r"pipeline_event_([0-9]{4})([0-9]{2})")


class NotDroppable(Refused):
    """History stays as it is: the sentence says what keeps it."""

    code = "not_droppable"


@dataclass(frozen=True)
class Plan:
    """What a drop would take: the months with the events in each, the seals over them, and the streams that lose."""

    before: str
    months: dict[str, int]
    seals: int
    streams: int

    @property
    def events(self) -> int:
        """In all of the months."""
        return sum(self.months.values())


def plan(before: str) -> Plan:
    """What drop(before) would take now. Raises InvalidField for what is no month, NotDroppable for what keeps it."""
    check_clock(before)
    months = {month: _count(month) for month in partitions() if month < before}
    _refuse_strays(before)
    for month in months:
        _refuse_open(month)
    seals = Seal.objects.filter(month__lt=before, dropped_at=None)
    _refuse_unsealed(months, seals)
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(DISTINCT subject_id) FROM ({_rows(months)}) gone")
        (streams,) = cursor.fetchone()
    return Plan(before, months, seals.count(), streams)


def drop(before: str, *, by: Actor) -> Plan:
    """Verify the log, then drop every month before `before` in one transaction, and leave the tombstone.

    The seals over what went keep their roots and get `dropped_at`; every stream's `first_seq` is raised to the first
    number that is left; the event `seal.dropped` says what went, is chained and, with the next seal, anchored. Returns
    what was dropped; with no month to drop nothing happens. Raises InvalidField, NotDroppable: nothing was changed.
    """
    with alone() as mine:
        if not mine:
            raise NotDroppable("The sealer is at work; try again in a moment")
        planned = plan(before)
        if not planned.months:
            return planned
        report = audit.verify()
        if not report.ok:
            raise NotDroppable(f"The log does not verify, so nothing is dropped: {report.problems[0]}")
        with _in_one_transaction():
            _lock(planned.months)
            # Asked again under the locks: an event could have come to one of these months since.
            planned = plan(before)
            _collect_streams(planned)
            # Everybody who writes events waits from here on, so what took long was done before.
            _lock_log()
            _raise_streams()
            _drop_partitions(planned)
            _leave_tombstone(planned, by)
    return planned


def check_clock(before: str) -> None:
    """Raises InvalidField unless `before` is a month; NotDroppable when events of the month before it are kept yet."""
    if not _MONTH.fullmatch(before):
        raise InvalidField("before", f"a month such as 2026-11, not “{before[:20]}”")
    last = first_kept_month()
    if not last:
        raise NotDroppable("Events are kept for ever; SIGNALBOX_KEEP_EVENTS_MONTHS says for how many months instead")
    if before > last:
        keep = settings.SIGNALBOX_KEEP_EVENTS_MONTHS
        raise NotDroppable(f"Events are kept for {keep} months: those before {last} may go, not those before {before}")


def first_kept_month() -> str:
    """The first month whose events are to be kept, by the clock of events alone; "" when all are, for ever."""
    if not settings.SIGNALBOX_KEEP_EVENTS_MONTHS:
        return ""
    month = f"{db_now().astimezone(UTC):%Y-%m}"
    for _ in range(int(settings.SIGNALBOX_KEEP_EVENTS_MONTHS)):
        month = _preceding(month)
    return month


def _preceding(month: str) -> str:
    year, number = (int(part) for part in month.split("-"))
    return f"{year - (number == 1):04}-{number - 1 or 12:02}"


def partitions() -> list[str]:
    """The months that have a partition of their own, oldest first."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'pipeline_event'::regclass")
        names = [name for (name,) in cursor.fetchall()]
    return sorted(filter(None, map(month_of_partition, names)))


def month_of_partition(name: str) -> str:
    """The month of a partition by its table's name; "" for that of events that no month's partition took."""
    found = _PARTITION.fullmatch(name)
    return f"{found[1]}-{found[2]}" if found else ""


def _table(month: str) -> str:
    return f"pipeline_event_{month.replace('-', '')}"


def _rows(months: Iterable[str]) -> str:
    """The statement that reads these months; they were matched against a pattern of digits."""
    tables = [f"SELECT * FROM {_table(month)}" for month in months]
    return " UNION ALL ".join(tables) or "SELECT * FROM pipeline_event WHERE false"


def _count(month: str) -> int:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {_table(month)}")
        (count,) = cursor.fetchone()
    return int(count)


# -- what keeps a month ------------------------------------------------------------------------------------------


def _refuse_strays(before: str) -> None:
    """A month whose events lie in the default partition is no partition that could go."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*), min(id::text) FROM pipeline_event_default WHERE id < signalbox_lowest_ulid(%s)",
            [datetime.fromtimestamp(month_start(before) / 1000, UTC)],
        )
        count, first = cursor.fetchone()
    if count:
        raise NotDroppable(
            f"{count} events before {before} lie in the default partition, the first of them {proof.ulid(first)}: only "
            "whole monthly partitions are dropped"
        )


def _refuse_open(month: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT count(*) FROM {_table(month)} WHERE handled_at IS NULL")
        (count,) = cursor.fetchone()
    if count:
        raise NotDroppable(f"{count} events of {month} are not handled yet")


def _refuse_unsealed(months: dict[str, int], seals: Any) -> None:
    """Every event of these months is under an anchored seal of its month."""
    for month, count in months.items():
        sealed = sum(seals.filter(month=month).values_list("count", flat=True))
        if sealed != count:
            raise NotDroppable(f"{month} has {count} events, and {sealed} of them are sealed")
    waiting = seals.filter(anchor="").order_by("number").first()
    if waiting is not None:
        raise NotDroppable(f"Seal {waiting.number} is not anchored yet")


# -- dropping ----------------------------------------------------------------------------------------------------


@contextmanager
def _in_one_transaction() -> Iterator[None]:
    """All or nothing; a lock that others hold for long, or a row elsewhere that refers to an event, refuses."""
    try:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT set_config('statement_timeout', '10min', true)")
            cursor.execute("SELECT set_config('lock_timeout', '10s', true)")
            yield
    except DatabaseError as problem:
        said = str(problem).strip().splitlines()[0]
        raise NotDroppable(f"PostgreSQL did not let the events go, nothing was changed: {said}") from problem


def _lock(months: Iterable[str]) -> None:
    """Nobody writes into these months any more; the others go on."""
    with connection.cursor() as cursor:
        for month in months:
            cursor.execute(f"LOCK TABLE {_table(month)} IN SHARE ROW EXCLUSIVE MODE")


def _lock_log() -> None:
    """Nobody reads or writes the log. At once, not by and by: a lock that is raised meets others that are."""
    with connection.cursor() as cursor:
        cursor.execute("LOCK TABLE ONLY pipeline_event IN ACCESS EXCLUSIVE MODE")


def _collect_streams(planned: Plan) -> None:
    """Note the last number that each stream loses. A stream must lose a beginning, never a middle."""
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            CREATE TEMPORARY TABLE gone ON COMMIT DROP AS
                SELECT subject_id, max(stream_seq) AS last FROM ({_rows(planned.months)}) e GROUP BY subject_id
            """
        )
        cursor.execute(
            """
            SELECT e.subject_type, e.id FROM pipeline_event e JOIN gone g ON g.subject_id = e.subject_id
            WHERE e.stream_seq <= g.last AND e.id >= signalbox_lowest_ulid(%s) LIMIT 1
            """,
            [datetime.fromtimestamp(month_start(planned.before) / 1000, UTC)],
        )
        if between := cursor.fetchone():
            raise NotDroppable(
                f"The history of a {between[0]} goes over the end of the last month and back "
                f"(event {from_uuid(between[1])}): drop it together with {planned.before}, or one month less"
            )


def _raise_streams() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "UPDATE pipeline_eventstream s SET first_seq = g.last + 1 FROM gone g WHERE g.subject_id = s.subject_id"
        )


def _leave_tombstone(planned: Plan, by: Actor) -> None:
    """The seals say when their events went, and one event says what went."""
    seals = Seal.objects.filter(month__lt=planned.before, dropped_at=None)
    last = seals.light().order_by("-number").first()
    if last is None:
        raise NotDroppable(f"There is no seal before {planned.before}")
    told = {
        "before": planned.before,
        "months": planned.months,
        "events": planned.events,
        "seals": planned.seals,
        "streams": planned.streams,
        "to_cursor": last.to_cursor,
        "root_hash": last.root_hash,
    }
    seals.update(dropped_at=ClockNow())
    reason = f"older than {settings.SIGNALBOX_KEEP_EVENTS_MONTHS} months"
    events.record(audit.TOMBSTONE, last, by=by, reason=reason, data=told)


def _drop_partitions(planned: Plan) -> None:
    with connection.cursor() as cursor:
        for month in planned.months:
            table = sql.Identifier(_table(month))
            cursor.execute(sql.SQL("ALTER TABLE pipeline_event DETACH PARTITION {}").format(table))
            cursor.execute(sql.SQL("DROP TABLE {}").format(table))
