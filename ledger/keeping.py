"""What the log takes up, month by month, what seals it, and what retention would let go next: for people to look at.

A handful of cheap questions, whatever the size of the log; the judgement itself is `retention.plan`.
"""

from dataclasses import dataclass
from datetime import timedelta

from django.db import connection

from ledger import retention
from ledger.models import Seal
from pipeline.clock import db_now
from pipeline.events import Cursor, Event
from pipeline.models import Tick
from pipeline.models.tick import BY_COMMAND

VERIFIED_BY_COMMAND = f"{BY_COMMAND}verify-ledger"
COUNTED = 1000
"""Events behind the last seal that are counted; of more it is only said that there are more."""

_PARTITIONS = """
SELECT c.relname, pg_total_relation_size(c.oid), c.reltuples::bigint, COALESCE(open.events, 0)
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
LEFT JOIN (SELECT tableoid, count(*) AS events FROM pipeline_event WHERE handled_at IS NULL GROUP BY tableoid) open
    ON open.tableoid = c.oid
WHERE i.inhparent = 'pipeline_event'::regclass ORDER BY c.relname
"""
_SEALS = """
SELECT m.month, s.first, s.last FROM unnest(%s::text[]) AS m (month),
    LATERAL (SELECT min(number) AS first, max(number) AS last FROM ledger_seal WHERE month = m.month) s
"""


@dataclass
class Month:
    """One partition of the log: its month ("" for strays that no month's partition took), size in bytes, events as
    PostgreSQL estimates them (None before its first look), events not handled yet, and its first and last seal.
    """

    month: str
    size_bytes: int
    events: int | None
    open: int
    first_seal: int | None = None
    last_seal: int | None = None
    is_ahead: bool = False
    may_go: bool = False


@dataclass(frozen=True)
class Keeping:
    """The months, oldest first, then the strays; the first month that retention keeps ("" when all are); what keeps
    those before it.
    """

    months: list[Month]
    first_kept: str
    kept_by: list[str]

    @property
    def due(self) -> list[Month]:
        """The months that are past their keeping."""
        return [month for month in self.months if month.may_go]

    @property
    def due_bytes(self) -> int:
        """What they take up."""
        return sum(month.size_bytes for month in self.due)


def look() -> Keeping:
    """The log's months as they are now. Four queries."""
    with connection.cursor() as cursor:
        cursor.execute(_PARTITIONS)
        found = [
            Month(retention.month_of_partition(name), size, None if rows < 0 else rows, unhandled)
            for name, size, rows, unhandled in cursor.fetchall()
        ]
        cursor.execute(_SEALS, [[month.month for month in found]])
        seals = {month: (first, last) for month, first, last in cursor.fetchall()}
    now, first_kept = f"{db_now():%Y-%m}", retention.first_kept_month()
    for month in found:
        month.first_seal, month.last_seal = seals[month.month]
        month.is_ahead = month.month > now
        month.may_go = bool(month.month) and month.month < first_kept
    found.sort(key=lambda month: (not month.month, month.month))
    return Keeping(found, first_kept, _kept_by(found))


def _kept_by(months: list[Month]) -> list[str]:
    """Why the command would refuse now what is past its keeping, as far as a glance tells."""
    due = [month for month in months if month.may_go]
    reasons = [f"{month.open} events of {month.month} are not handled yet" for month in due if month.open]
    reasons += [f"{month.month} has no seal" for month in due if month.events and month.first_seal is None]
    waiting = Seal.objects.unanchored().values_list("number", flat=True).first()
    if due and waiting is not None:
        reasons.append(f"seal {waiting} is not anchored yet")
    return reasons


def unsealed() -> int:
    """How many settled events stand behind the last seal, at most COUNTED + 1. A seal's own event may be one."""
    last = Seal.objects.last_written()
    after = Cursor.parse(last.to_cursor) if last else Cursor(0, 0, 0)
    return Event.objects.after(after, COUNTED + 1).count()


def last_verified() -> Tick | None:
    """The newest verification of the whole log that came to its end: by day, or by a command that found nothing."""
    full = Tick.objects.filter(schedule__in=("watch_log", VERIFIED_BY_COMMAND))
    return full.exclude(ended_at=None).order_by("-ended_at").first()


def note_verified() -> None:
    """Note that the whole log was verified by command, and that nothing was found."""
    tick = Tick.objects.take(VERIFIED_BY_COMMAND, timedelta(seconds=1))
    if tick is not None:
        tick.end()
