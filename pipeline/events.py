"""The event log: history, outbox and bus in one (domain.md §2.1.12).

A change and its Event commit together. Reactions run afterwards, each safe to repeat; apps register theirs in
`reactions.py`. Readers outside follow the commit-order cursor `(epoch, xid, seq)`, which never passes a transaction
that is still open.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Any, NamedTuple, Self, TypeVar
from uuid import UUID

import pgtrigger
from django.conf import settings
from django.db import DatabaseError, connection, models, transaction
from django.db.models import F, Q
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce, Greatest

from pipeline import locks, prepared
from pipeline.chain import canonical
from pipeline.clock import ClockNow
from pipeline.crashpoints import crashpoint
from pipeline.ids import ULIDField, new_id, to_uuid
from pipeline.joined import Joined
from pipeline.kinds import CHANNELS, KINDS, SEVERITIES
from pipeline.refusals import Refused, need_reason
from pipeline.rows import Guard, Immutable, NoDelete, NoTruncate, Row, in_transaction, versioned

log = logging.getLogger(__name__)

CORRELATION = (
    "project_id", "workstream_id", "run_id", "task_id", "step_id", "worker_id", "patch_id", "gate_run_id",
)  # fmt: skip

# The request that caused what happens now; set by the middleware, and again by react() from the event at hand.
request_id: ContextVar[str] = ContextVar("request_id", default="")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who caused a change: a user, a worker with its lease generation, the system, or an integration."""

    kind: str
    id: str
    name: str
    on_behalf_of: str = ""

    def __str__(self) -> str:
        return self.name


SYSTEM = Actor("system", "", "system")


class XidField(models.Field):  # type: ignore[type-arg]  # Django's Field takes no parameters at run time
    """PostgreSQL's 64-bit transaction id, as an int."""

    def db_type(self, connection: Any) -> str:
        """The column's type."""
        return "xid8"

    def from_db_value(self, value: Any, expression: Any, connection: Any) -> int | None:
        """The driver hands out text."""
        return None if value is None else int(value)

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> Any:
        """The driver takes text."""
        return None if value is None else str(value)


class Cursor(NamedTuple):
    """A place in the log, in the order of commits. Text form: `epoch-xid-seq`."""

    epoch: int
    xid: int
    seq: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.xid}-{self.seq}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """The cursor written as `epoch-xid-seq`. Raises Refused `invalid_cursor` when it is not."""
        parts = text.split("-")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) < 20 for part in parts):
            raise Refused(f"“{text[:80]}” is not a cursor: epoch-xid-seq", code="invalid_cursor", status=400)
        return cls(*(int(part) for part in parts))


START = Cursor(0, 0, 0)


class EventQuerySet(models.QuerySet["Event"]):
    """The words for asking the log."""

    def pending(self) -> Self:
        """Not yet reacted to."""
        return self.filter(handled_at=None)

    def due(self) -> Self:
        """Pending, and not put off, by the database's clock."""
        return self.pending().filter(due_at__lte=ClockNow())

    def about(self, subject: Any) -> Self:
        """One subject's history, oldest first."""
        return self.filter(subject_type=subject.noun(), subject_id=subject.pk).order_by("stream_seq")

    def settled(self) -> Self:
        """Only what no open transaction can still precede: safe for a reader that keeps a cursor.

        The transaction ids of older epochs mean nothing here, and need not: whoever opens an epoch waits first until
        every transaction that writes events has ended (pipeline/epochs.py).
        """
        now = "pipeline_event.xid < pg_snapshot_xmin(pg_current_snapshot())"
        older = "pipeline_event.epoch < (SELECT max(number) FROM pipeline_eventepoch)"
        # In the stubs extra() forgets whose QuerySet it is; here and below.
        below: Self = self.extra(where=[f"({now} OR {older})"])  # type: ignore[assignment]
        return below

    def after(self, cursor: Cursor, limit: int = 100) -> Self:
        """The next `limit` settled events behind `cursor`, in commit order; a page holds events of one epoch."""
        later = EventEpoch.objects.filter(number__gt=cursor.epoch).order_by("number")
        begun = list(later.values_list("number", flat=True))
        rows = self._of_epoch(cursor)
        while begun and not rows.exists():
            rows = self._of_epoch(Cursor(begun.pop(0), 0, 0))
        page: Self = rows.order_by("epoch", "xid", "seq")[:limit]
        return page

    def _of_epoch(self, behind: Cursor) -> Self:
        # By equality: the planner would take a comparison of all three columns for one row, and sort the rest.
        place = "pipeline_event.epoch = %s AND (pipeline_event.xid, pipeline_event.seq) > (%s::text::xid8, %s)"
        rows: Self = self.settled().extra(where=[place], params=[behind.epoch, str(behind.xid), behind.seq])  # type: ignore[assignment]
        return rows

    def visible_to(self, principal: Any) -> Self:
        """What `principal` may read: the events of its projects; an administrator of the installation reads all."""
        projects = principal.project_ids()
        return self if projects is None else self.filter(project_id__in=projects)


class LinkUp(Guard):
    """BEFORE INSERT: gives an event its number and hash in its subject's stream, and its place in the log.

    Under the stream's lock: a unique constraint over partitions cannot do this, and not every recorder holds the
    subject's row. The place is the transaction's id, but never below that of the event before it: a transaction may
    have got its id long before it came to this stream, and a reader would see the two the wrong way round. The raised
    id is that of a transaction that has ended, and the own one is still open, so no reader has passed it yet.
    """

    when = pgtrigger.Before
    operation = pgtrigger.Insert
    declare = [("head", "pipeline_eventstream%ROWTYPE")]

    def get_func(self, model: Any) -> str:
        """Insert or advance the stream's head."""
        hashed = (
            "encode(sha256(convert_to({prev} || E'\\n' || NEW.stream_seq || E'\\n' || NEW.canonical, 'UTF8')), 'hex')"
        )
        return f"""
            NEW.own_xid = pg_current_xact_id();
            NEW.xid = NEW.own_xid;
            NEW.epoch = (SELECT max(number) FROM pipeline_eventepoch);
            NEW.stream_seq = 1;
            NEW.prev_hash = '';
            NEW.hash = {hashed.format(prev="''")};
            INSERT INTO pipeline_eventstream (subject_id, subject_type, first_seq, seq, hash, epoch, xid)
                VALUES (NEW.subject_id, NEW.subject_type, 1, 1, NEW.hash, NEW.epoch, NEW.xid)
                ON CONFLICT (subject_id) DO NOTHING;
            IF NOT FOUND THEN
                SELECT * INTO STRICT head FROM pipeline_eventstream WHERE subject_id = NEW.subject_id FOR UPDATE;
                IF head.epoch = NEW.epoch AND head.xid > NEW.xid THEN NEW.xid = head.xid; END IF;
                NEW.stream_seq = head.seq + 1;
                NEW.prev_hash = head.hash;
                NEW.hash = {hashed.format(prev="NEW.prev_hash")};
                UPDATE pipeline_eventstream
                    SET seq = NEW.stream_seq, hash = NEW.hash, epoch = NEW.epoch, xid = NEW.xid
                    WHERE subject_id = NEW.subject_id;
            END IF;
            NEW.seq = nextval('pipeline_event_seq');
            RETURN NEW;
        """


class Event(models.Model):
    """One thing that happened. Kept for ever; only how it was handled is filled in.

    The table is partitioned by month of `id` (a ULID carries its time); `canonical` is the canonical JSON of the
    columns from `id` to `gate_run_id`, `stream_seq`, `prev_hash` and `hash` chain the events of one subject.
    """

    id = ULIDField(primary_key=True, default=new_id, editable=False)
    kind = models.CharField(max_length=64)
    channel = models.CharField(max_length=20, choices=[(c, c) for c in CHANNELS.values()])
    severity = models.CharField(max_length=8, choices=[(s, s) for s in SEVERITIES])
    actor_kind = models.CharField(max_length=11)
    actor_id = models.CharField(max_length=64, blank=True)
    actor_name = models.CharField(max_length=200)
    on_behalf_of = models.CharField(max_length=200, blank=True)
    request_id = models.CharField(max_length=64, blank=True)
    subject_type = models.CharField(max_length=32)
    subject_id = ULIDField()
    before = models.JSONField(null=True)
    after = models.JSONField(null=True)
    reason = models.TextField(blank=True)
    message = models.TextField(blank=True)
    data = models.JSONField(default=dict)
    project_id = ULIDField(null=True)
    workstream_id = ULIDField(null=True)
    run_id = ULIDField(null=True)
    task_id = ULIDField(null=True)
    step_id = ULIDField(null=True)
    worker_id = ULIDField(null=True)
    patch_id = ULIDField(null=True)
    gate_run_id = ULIDField(null=True)
    seq = models.BigIntegerField(db_default=0)
    xid = XidField(db_default=RawSQL("pg_current_xact_id()", ()))
    # The id of the transaction that wrote it; `xid`, its place in the log, may be a later one of its stream.
    own_xid = XidField(null=True)
    epoch = models.IntegerField(db_default=1)
    canonical = models.TextField()
    stream_seq = models.BigIntegerField(db_default=0)
    prev_hash = models.CharField(max_length=64, db_default="")
    hash = models.CharField(max_length=64, db_default="")
    created_at = models.DateTimeField(db_default=ClockNow())
    handled_at = models.DateTimeField(null=True)
    due_at = models.DateTimeField(db_default=ClockNow())
    attempts = models.PositiveIntegerField(default=0)

    objects = EventQuerySet.as_manager()

    class Meta:
        # The table and these indexes are made by hand in the first migration, since Django knows no partitions.
        indexes = [
            models.Index(fields=["epoch", "xid", "seq"], name="event_cursor"),
            models.Index(fields=["subject_id", "stream_seq"], name="event_subject"),
            models.Index(fields=["due_at"], name="event_due", condition=Q(handled_at=None)),
            # One for each filter of the log: lists go by id, newest first, and their order is in the index as well.
            models.Index(fields=["kind", "id"], name="event_kind"),
            models.Index(fields=["channel", "id"], name="event_channel"),
            models.Index(fields=["severity", "id"], name="event_severity"),
            models.Index(fields=["subject_type", "id"], name="event_subject_type"),
            models.Index(fields=["actor_kind", "id"], name="event_actor_kind"),
            models.Index(fields=["actor_id", "id"], name="event_actor", condition=~Q(actor_id="")),
            models.Index(fields=["actor_name", "id"], name="event_actor_name"),
            models.Index(fields=["request_id", "id"], name="event_request", condition=~Q(request_id="")),
            models.Index(fields=["project_id", "id"], name="event_project"),
            models.Index(fields=["workstream_id", "id"], name="event_workstream", condition=~Q(workstream_id=None)),
            models.Index(fields=["run_id", "id"], name="event_run", condition=~Q(run_id=None)),
            models.Index(fields=["task_id", "id"], name="event_task", condition=~Q(task_id=None)),
            models.Index(fields=["step_id", "id"], name="event_step", condition=~Q(step_id=None)),
            models.Index(fields=["worker_id", "id"], name="event_worker", condition=~Q(worker_id=None)),
            models.Index(fields=["patch_id", "id"], name="event_patch", condition=~Q(patch_id=None)),
            models.Index(fields=["gate_run_id", "id"], name="event_gate_run", condition=~Q(gate_run_id=None)),
            models.Index(fields=["created_at"], name="event_created"),
        ]
        triggers = [
            LinkUp(name="link_up"),
            Immutable(name="written_once", except_for=("handled_at", "due_at", "attempts")),
            NoDelete(name="never_deleted"),
            NoTruncate(name="never_truncated"),
        ]

    def __str__(self) -> str:
        return f"{self.kind} {self.subject_type}:{self.subject_id}"

    @property
    def cursor(self) -> Cursor:
        """Where this event stands in the order of commits."""
        return Cursor(self.epoch, self.xid, self.seq)


class EventStream(models.Model):
    """The head of one subject's chain: its last number, hash and place. Written by the trigger of Event alone."""

    subject_id = ULIDField(primary_key=True)
    subject_type = models.CharField(max_length=32)
    first_seq = models.BigIntegerField(default=1)
    seq = models.BigIntegerField()
    hash = models.CharField(max_length=64)
    epoch = models.IntegerField(default=1)
    xid = XidField(default=0)

    class Meta:
        triggers = [NoTruncate(name="never_truncated")]

    def __str__(self) -> str:
        return f"{self.subject_type}:{self.subject_id} at {self.seq}"


class EventEpoch(models.Model):
    """One life of the database: a restored copy starts a new one, since its transaction ids start again.

    `system_identifier` (of the cluster), `timeline` (of its write-ahead log) and `database_oid` are what told this life
    from others when it began; null where they were not seen.
    """

    number = models.PositiveIntegerField(primary_key=True)
    started_at = models.DateTimeField(db_default=ClockNow())
    reason = models.TextField()
    system_identifier = models.BigIntegerField(null=True)
    timeline = models.BigIntegerField(null=True)
    database_oid = models.BigIntegerField(null=True)

    def __str__(self) -> str:
        return f"epoch {self.number}"


class FailedReactionQuerySet(models.QuerySet["FailedReaction"]):
    """The words for asking about reactions that did not get through."""

    def visible_to(self, principal: Any) -> Self:
        """Those whose event `principal` may read."""
        projects = principal.project_ids()
        return self if projects is None else self.filter(project_id__in=projects)

    def open(self) -> Self:
        """Not yet made good, nor dropped: waiting for the next try, or dead."""
        return self.filter(mended_at=None, dropped_at=None)

    def dead(self) -> Self:
        """The dead-letter list: tried as often as is allowed; nothing happens until somebody replays them."""
        return self.open().exclude(dead_at=None)


@versioned()
class FailedReaction(Row):
    """One reaction that crashed on one event: tried again with growing delay, then dead until somebody replays it.

    `deaths` counts the tries in a row that took their process with them. A try that is counted beforehand stands here
    while it runs as if its process had died: nobody could write that down afterwards.
    """

    NOUN = "failed_reaction"

    event_id = ULIDField()
    kind = models.CharField(max_length=64)
    project = models.ForeignKey("pipeline.Project", models.CASCADE, null=True, related_name="+")
    reaction = models.CharField(max_length=200)
    attempts = models.PositiveIntegerField(default=0)
    deaths = models.PositiveIntegerField(default=0, db_default=0)
    error = models.TextField()
    failed_at = models.DateTimeField(db_default=ClockNow())
    dead_at = models.DateTimeField(null=True)
    mended_at = models.DateTimeField(null=True)
    dropped_at = models.DateTimeField(null=True)

    objects = FailedReactionQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["event_id", "reaction"], name="failedreaction_one_per_event"),
            models.CheckConstraint(name="failedreaction_dead_or_mended", condition=Q(dead_at=None) | Q(mended_at=None)),
            # Who asks what is still to be tried looks at `dead_at` alone.
            models.CheckConstraint(
                name="failedreaction_dropped_is_dead", condition=Q(dropped_at=None) | ~Q(dead_at=None)
            ),
        ]
        indexes = [models.Index(fields=["-id"], name="failedreaction_open", condition=Q(mended_at=None))]

    def __str__(self) -> str:
        return f"{self.reaction} on {self.kind} {self.event_id}"

    def correlation(self) -> dict[str, str | None]:
        """Events about it belong to the project of the event that it failed on."""
        return {"project_id": self.project_id}

    def replay(self, *, by: Actor, reason: str) -> bool:
        """Have the reaction tried again now, with all its attempts before it; False when it has been made good, or is
        about to be tried since somebody else has replayed it.

        Raises Refused `reason_required` without a reason, `event_dropped` when the event is past its keeping.
        """
        need_reason(reason)
        with in_transaction():
            event = Event.objects.filter(pk=self.event_id)
            if not event.exists():
                raise Refused(
                    f"Event {self.event_id} is past its keeping, so nothing follows from it any more",
                    code="event_dropped",
                    status=410,
                )
            waiting = FailedReaction.objects.filter(pk=self.pk, mended_at=None).exclude(attempts=0, dead_at=None)
            again = waiting.update(attempts=0, deaths=0, dead_at=None, dropped_at=None)
            if again:
                event.update(handled_at=None, due_at=ClockNow(), attempts=Greatest("attempts", 1))
                record("alert.cleared", self, by=by, reason=reason, data={"cause": DEAD_LETTER})
                nudge_later("pipeline.tasks.react", self.event_id)
        self.refresh_from_db()
        return bool(again)

    def drop(self, *, by: Actor, reason: str) -> bool:
        """Take it off the list: nobody tries it any more, and nobody needs to look. False when it was dropped or has
        been made good. A replay takes it up again.

        Raises Refused `reason_required` without a reason.
        """
        need_reason(reason)
        with in_transaction():
            waiting = FailedReaction.objects.open().filter(pk=self.pk)
            dropped = waiting.update(dead_at=Coalesce("dead_at", ClockNow()), dropped_at=ClockNow())
            if dropped:
                record("alert.cleared", self, by=by, reason=reason, data={"cause": DEAD_LETTER, "dropped": True})
        self.refresh_from_db()
        return bool(dropped)


# -- reading -----------------------------------------------------------------------------------------------------


def horizon() -> Cursor:
    """The present end of the log in the order of commits: the place of the last settled event. One query.

    Who reads on from here gets what commits from now on, and what has committed beside a transaction that is open now.
    Not the snapshot's own border: after a crash PostgreSQL may give out ids again that no event has used.
    """
    newest = Event.objects.settled().order_by("-epoch", "-xid", "-seq").values_list("epoch", "xid", "seq").first()
    return START if newest is None else Cursor(*newest)


def fold(subject: Any, at: "datetime | Cursor") -> dict[str, Any] | None:
    """The row of `subject` (or of `(noun, id)`) as it was at `at`, from its events alone: see pipeline.fold.fold."""
    from pipeline.fold import fold  # models tell events, and folding knows the models

    return fold(subject, at)


def read_cursor(text: str) -> Cursor:
    """The cursor that a reader brought back. One query.

    Raises Refused `invalid_cursor` for text that is none, and for one that this log cannot have given: of an epoch that
    has not begun, or of a transaction that has not. Everything here would stand before it, unread.
    """
    cursor = Cursor.parse(text)
    end = RawSQL("pg_snapshot_xmax(pg_current_snapshot())", (), output_field=XidField())
    told = EventEpoch.objects.order_by("-number").annotate(end=end).values_list("number", "end").first()
    present, end_of_ids = told or (0, 0)
    if cursor.epoch > present:
        said = f"{cursor} is a cursor of epoch {cursor.epoch}, but this log is in epoch {present}: read it from 0-0-0"
        raise Refused(said, code="invalid_cursor", status=400)
    if cursor.epoch == present and cursor.xid >= end_of_ids:
        said = f"{cursor} lies behind everything that was ever written here: read from 0-0-0, or from now on"
        raise Refused(said, code="invalid_cursor", status=400)
    return cursor


# -- recording ---------------------------------------------------------------------------------------------------


def compose(
    kind: str,
    subject: Any,
    *,
    by: Actor,
    before: Mapping[str, Any] | None = None,
    after: Mapping[str, Any] | None = None,
    reason: str = "",
    message: str = "",
    data: Mapping[str, Any] | None = None,
    severity: str | None = None,
    **correlation: str | None,
) -> Event:
    """One Event about `subject` (a row with `noun()` and `correlation()`), not yet recorded: see `record` and `append`.

    Raises KeyError for a kind outside the vocabulary, TypeError for data without what its kind must tell and for an
    unknown correlation id: all are errors of the program, not of its user.
    """
    word = KINDS[kind]
    if lacking := word.lacks(data):
        raise TypeError(f"{kind} is told with data {', '.join(lacking)}")
    ids = {**subject.correlation(), **correlation}
    unknown = set(ids) - set(CORRELATION)
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: not a correlation id of an event")
    facts: dict[str, Any] = {
        "id": new_id(),
        "kind": kind,
        "channel": word.channel,
        "severity": severity or word.severity,
        "actor_kind": by.kind,
        "actor_id": by.id,
        "actor_name": by.name[:200],
        "on_behalf_of": by.on_behalf_of[:200],
        "request_id": request_id.get(),
        "subject_type": subject.noun(),
        "subject_id": subject.pk,
        "before": None if before is None else plain(before),
        "after": None if after is None else plain(after),
        "reason": _text(reason),
        "message": _text(message),
        "data": plain(data or {}),
        **{name: ids.get(name) for name in CORRELATION},
    }
    event = Event(**facts, canonical=canonical(facts))
    if kind not in _reactions:
        event.handled_at = ClockNow()
    return event


def record(kind: str, subject: Any, *, by: Actor, **told: Any) -> Event:
    """Append one Event, composed of these facts (see `compose`), in the caller's transaction.

    Nudges Celery after the commit when somebody reacts to this kind; a nudge that is lost is found by the sweep.
    """
    event = compose(kind, subject, by=by, **told)
    event.save(force_insert=True)
    _announce(event)
    return event


def append(composed: Sequence[Event], *, with_reactions: bool = True) -> None:
    """Append several composed Events, in this order, in one statement of the caller's transaction.

    As `record` for each, but what the database fills in (`seq`, `hash` …) is not read back. Without reactions they are
    history alone: what was told from outside changes nothing here.
    """
    if not composed:
        return
    ids = [[_uuid(getattr(event, name)) for event in composed] for name in ("id", "subject_id", *CORRELATION)]
    waits = [with_reactions and event.kind in _reactions for event in composed]
    prepared.execute(_APPEND, [[event.canonical for event in composed], waits, *ids])
    waiting = [event.pk for event, reacted in zip(composed, waits, strict=True) if reacted]
    if waiting:
        nudge_later("pipeline.tasks.react", *waiting)


def _announce(event: Event) -> None:
    if event.kind in _reactions:
        nudge_later("pipeline.tasks.react", event.pk)


def _uuid(key: str | None) -> UUID | None:
    return None if key is None else to_uuid(key)


# What a recorder says stands in the canonical text, but for the form of its ids; the rest is filled in by the database,
# or later by whoever handles the event.
_TEXTS = (
    "kind", "channel", "severity", "actor_kind", "actor_id", "actor_name", "on_behalf_of", "request_id", "subject_type",
    "reason", "message",
)  # fmt: skip
_DOCUMENTS = ("before", "after", "data")
_APPEND = f"""
INSERT INTO pipeline_event ({", ".join((*_TEXTS, *_DOCUMENTS))}, canonical, id, subject_id, {", ".join(CORRELATION)},
    handled_at, attempts)
SELECT {", ".join(f"f.{name}" for name in (*_TEXTS, *_DOCUMENTS))}, e.canonical, e.id, e.subject_id,
    {", ".join(f"e.{name}" for name in CORRELATION)}, CASE WHEN NOT e.waits THEN clock_timestamp() END, 0
FROM unnest(%s::text[], %s::boolean[], %s::uuid[], %s::uuid[], {", ".join("%s::uuid[]" for _name in CORRELATION)})
    WITH ORDINALITY AS e (canonical, waits, id, subject_id, {", ".join(CORRELATION)}, place),
    jsonb_to_record(e.canonical::jsonb) AS f ({", ".join(f"{name} text" for name in _TEXTS)},
        {", ".join(f"{name} jsonb" for name in _DOCUMENTS)})
ORDER BY e.place
"""


def _text(value: str) -> str:
    """PostgreSQL's text holds no NUL."""
    return str(value).replace("\x00", "�")


def plain(value: Any) -> Any:
    """`value` as JSON without floats: times as RFC 3339 text, decimals as text, mappings and sequences copied."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, timedelta):
        return f"{value.total_seconds():.6f}"
    if isinstance(value, Decimal | float | UUID):
        return str(value)
    if isinstance(value, Mapping):
        return {_text(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, Iterable):
        return [plain(item) for item in value]
    return str(value)


# -- nudging -----------------------------------------------------------------------------------------------------

NUDGE_PAUSE_SECONDS = 5.0
_paused_until = 0.0


def nudge_later(task: str, *args: str, queue: str | None = None) -> None:
    """Ask Celery, after the commit, to run `task`. May be lost; everything nudged is also found by a sweep."""
    transaction.on_commit(lambda: nudge(task, *args, queue=queue), robust=True)


def nudge(task: str, *args: str, queue: str | None = None) -> None:
    """Ask Celery to run `task` now; while the broker does not answer, nobody waits for it again for some seconds."""
    from celery import current_app  # imported late: settings import this module's neighbours first

    global _paused_until
    if time.monotonic() < _paused_until:
        return
    try:
        current_app.send_task(task, list(args), queue=queue, retry=False)
    except Exception as problem:  # the broker's client raises many kinds; a nudge is never worth an error
        _paused_until = time.monotonic() + NUDGE_PAUSE_SECONDS
        log.warning("broker does not answer, the sweep takes over: %s", problem)


# -- reacting ----------------------------------------------------------------------------------------------------

Reaction = Callable[[Event], object]
R = TypeVar("R", bound=Reaction)
Chore = Callable[[], int]
C = TypeVar("C", bound=Chore)

_reactions: dict[str, list[Reaction]] = {}
_once_per: dict[Reaction, str] = {}
_chores: list[tuple[Chore, Callable[[], object] | None]] = []

MAX_DELAY = timedelta(hours=1)
# How long a swept event is left alone whose process died on it: two sweeps.
PUT_OFF = timedelta(seconds=10)
MAX_ERROR_TEXT = 2000
# How often in a row a reaction may take its process with it, which harms whatever else was at work there.
MAX_DEATHS = 5
PROCESS_DIED = "its process died"
# The cause named by alerts about reactions that nobody tries any more.
DEAD_LETTER = "dead_letter"


def on(*kinds: str, once_per: str = "") -> Callable[[R], R]:
    """Register the decorated function as a reaction to events of these kinds. Raises KeyError for an unknown kind.

    `once_per` names a correlation id, for a reaction that looks at the row of that id as it is now, whatever the event:
    of several events at hand that have the same id, one has it run for all.
    """
    for kind in kinds:
        KINDS[kind]

    def register(reaction: R) -> R:
        if once_per:
            _once_per[reaction] = once_per
        for kind in kinds:
            _reactions.setdefault(kind, []).append(reaction)
        return reaction

    return register


def chore(work: C, *, send: Callable[[], object] | None = None) -> C:
    """Register work that is found from the rows' states and touches the world; it returns how much it did.

    The beat's sweep does it, or, when it may take long, calls `send`, which nudges Celery; `drain()` does it here.
    """
    _chores.append((work, send))
    return work


def table() -> dict[str, list[str]]:
    """{kind: dotted names of its reactions}: the house's wiring."""
    return {kind: [f"{r.__module__}.{r.__name__}" for r in _reactions[kind]] for kind in KINDS if kind in _reactions}


def react(pk: str) -> bool:
    """Run the reactions to one due event and mark it handled; False when another has it or it is not due.

    Each reaction has a transaction of its own, so that one that fails undoes only itself, and no two of them add up
    their locks. A reaction that comes too late is refused by the state, and is done. One that crashes is kept as a
    FailedReaction and tried again alone with growing delay, at most `SIGNALBOX_REACTION_ATTEMPTS` times; then it is a
    dead letter. Whoever dies in between leaves an event that is still due, and whose reactions are safe to repeat; one
    that takes its process with it MAX_DEATHS times in a row is a dead letter too.
    """
    return react_to([pk]) == 1


def react_to(pks: Sequence[str]) -> int:
    """React, in their order, to those of these events that are due; returns how many were taken."""
    return _react_all(prepared.execute(_due_of("e.id = ANY(%s::uuid[])"), [[to_uuid(pk) for pk in pks]]))


def _react_all(records: Sequence[Any]) -> int:
    """React to events as just read; what runs once for several of them has seen all that they tell."""
    ran: set[tuple[Reaction, str]] = set()
    return sum(_react(_due_events().rows(record)["e"], ran) for record in records)


@cache
def _due_events() -> Joined:
    # The canonical text is for the chain alone.
    names = [field.name for field in Event._meta.concrete_fields if field.name != "canonical"]
    return Joined(e=(Event, names))


@cache
def _due_of(which: str) -> str:
    """The statement that reads the due events among `which`, oldest first."""
    return f"""
        SELECT {_due_events().columns} FROM pipeline_event e
        WHERE {which} AND e.handled_at IS NULL AND e.due_at <= clock_timestamp()
        ORDER BY e.due_at, e.seq LIMIT {AT_ONCE}
    """


def _react(event: Event, ran: set[tuple[Reaction, str]]) -> bool:
    token = request_id.set(event.request_id)
    try:
        if event.attempts or _was_left(event):
            return _react_with_care(event)
        reactions, closed = _reactions.get(event.kind, []), False
        for number, reaction in enumerate(reactions, 1):
            name = _once_per.get(reaction)
            once = (reaction, str(getattr(event, name))) if name else None
            if once in ran:
                continue
            problem = _run(reaction, event, closes=number == len(reactions))
            if problem is _TAKEN:
                return False
            if once and problem is None:
                ran.add(once)
            closed = problem is _CLOSED
            if closed and once:
                ran.add(once)
            if isinstance(problem, Exception) and not closed:
                _fail(event, _name(reaction), problem)
        return closed or _close(event)
    finally:
        request_id.reset(token)


class _Taken(Exception):
    """Another process has the event in hand, or has handled it."""


class _Closed(Exception):
    """The reaction ran, and the event is handled with it."""


_TAKEN, _CLOSED = _Taken(), _Closed()
AT_ONCE = 50
"""Events that are read together, and that one reaction may be run for."""

_TAKE = """
SELECT 1 FROM pipeline_event WHERE id = %s AND handled_at IS NULL AND attempts = %s FOR UPDATE SKIP LOCKED
"""
# Not while a failure of a reaction to it waits to be made good.
_HANDLED = """
UPDATE pipeline_event e SET handled_at = clock_timestamp()
WHERE e.id = %s AND e.handled_at IS NULL AND e.attempts = 0 AND NOT EXISTS (
    SELECT 1 FROM pipeline_failedreaction f WHERE f.event_id = e.id AND f.mended_at IS NULL AND f.dead_at IS NULL)
RETURNING 1
"""


def _name(reaction: Reaction) -> str:
    return f"{reaction.__module__}.{reaction.__name__}"


def _run(reaction: Reaction, event: Event, *, closes: bool) -> Exception | None:
    """What the reaction died of; None when it ran, or was refused by the state. When it `closes` the event, that is
    marked as handled in the same transaction, and _CLOSED is answered, unless an earlier failure keeps it open.
    """
    key = to_uuid(event.pk)
    try:
        with transaction.atomic():
            if not prepared.execute(_TAKE, [key, event.attempts]):
                return _TAKEN
            crashpoint(f"react.{event.kind}")
            reaction(event)
            if closes and prepared.execute(_HANDLED, [key]):
                return _CLOSED
    except Refused as refusal:
        log.info("%s: %s", event, refusal)
    except Exception as problem:
        log.exception("reaction %s to %s failed", _name(reaction), event)
        return problem
    return None


def _fail(event: Event, name: str, problem: Exception, *, booked: bool = False) -> None:
    """Book a failure; its try was counted before if it was `booked`. The last one allowed is a dead letter."""
    error = _text(f"{type(problem).__name__}: {problem}")[:MAX_ERROR_TEXT]
    with transaction.atomic():
        row, _created = FailedReaction.objects.get_or_create(
            event_id=event.pk,
            reaction=name,
            defaults={"kind": event.kind, "project_id": event.project_id, "error": error},
        )
        row.attempts += not booked
        facts: dict[str, Any] = {
            "attempts": row.attempts, "deaths": 0, "error": error, "failed_at": ClockNow(), "mended_at": None,
        }  # fmt: skip
        if row.attempts >= settings.SIGNALBOX_REACTION_ATTEMPTS:
            facts |= _give_up(row)
        FailedReaction.objects.filter(pk=row.pk).update(**facts)


def _give_up(row: FailedReaction) -> dict[str, Any]:
    """What makes it a dead letter, which is told."""
    record("alert.raised", row, by=SYSTEM, severity="error", message=str(row), data={"cause": DEAD_LETTER})
    return {"dead_at": ClockNow()}


# What died before may die again, and takes its process with it: each such try is counted before it is made.


def _was_left(event: Event) -> bool:
    """Whether a sweep has taken it that could neither finish it nor give it back: its process died in between."""
    return event.due_at - event.created_at >= PUT_OFF


def _react_with_care(event: Event) -> bool:
    """As _react, for an event that was tried before: the reactions that failed, or every one after a death."""
    with _in_hand(event) as mine:
        if not mine or not Event.objects.pending().filter(pk=event.pk, attempts=event.attempts).exists():
            return False
        known = {row.reaction: row for row in FailedReaction.objects.filter(event_id=event.pk)}
        for reaction in _reactions.get(event.kind, []):
            row = known.get(_name(reaction))
            is_open = row is not None and row.mended_at is None
            if (event.attempts and not is_open) or (row is not None and row.dead_at is not None):
                continue
            if not _run_booked(reaction, event):
                return False
        return _close(event)


def _run_booked(reaction: Reaction, event: Event) -> bool:
    """Run it with its try booked beforehand, unless that would be one too many. False when another has the event."""
    row, is_new = FailedReaction.objects.get_or_create(
        event_id=event.pk,
        reaction=_name(reaction),
        defaults={"kind": event.kind, "project_id": event.project_id, "error": PROCESS_DIED},
    )
    if not _book(row, event):
        return True
    try:
        problem = _run(reaction, event, closes=False)
    except BaseException:
        # The process lives, so what was booked has not come true.
        with suppress(DatabaseError):
            _take_back(row, is_new=is_new)
        raise
    if problem is None:
        _take_back(row, is_new=is_new, mended=True)
    elif problem is _TAKEN:
        _take_back(row, is_new=is_new)
    else:
        _fail(event, _name(reaction), problem, booked=True)
    return problem is not _TAKEN


def _book(row: FailedReaction, event: Event) -> bool:
    """Count a try as one in which its process died; False when it has died as often as it may, and is given up."""
    with transaction.atomic():
        found = FailedReaction.objects.filter(pk=row.pk)
        if row.deaths >= MAX_DEATHS or row.attempts >= settings.SIGNALBOX_REACTION_ATTEMPTS:
            found.update(mended_at=None, **_give_up(row))
            return False
        found.update(
            attempts=row.attempts + 1, deaths=row.deaths + 1, error=PROCESS_DIED, failed_at=ClockNow(), mended_at=None
        )
        delay = max(PUT_OFF, _delay(row.attempts + 1))
        Event.objects.pending().filter(pk=event.pk).update(due_at=ClockNow() + delay)
    return True


def _take_back(before: FailedReaction, *, is_new: bool, mended: bool = False) -> None:
    """The try did not end in a death: what was known before is so again, and is made good if it was `mended`."""
    row = FailedReaction.objects.filter(pk=before.pk)
    if is_new:
        row.delete()
        return
    # What a person asked for meanwhile stands: a replay has set the counts anew.
    untouched = row.filter(attempts=before.attempts + 1, dead_at=None)
    untouched.update(attempts=before.attempts, deaths=before.deaths, failed_at=before.failed_at)
    facts: dict[str, Any] = {"error": before.error, "mended_at": before.mended_at}
    if mended:
        facts = {"error": before.error, "mended_at": ClockNow(), "dead_at": None, "dropped_at": None}
    row.update(**facts)


def _in_hand(event: Event) -> AbstractContextManager[bool]:
    """Whether this process has the event to itself, as long as the block lasts."""
    return locks.alone(f"react {event.pk}", 5)


def _close(event: Event) -> bool:
    """Mark the event handled, or put it off while a reaction is still to be tried. False when another did so."""
    failed = FailedReaction.objects.open().filter(event_id=event.pk, dead_at=None).values_list("reaction", flat=True)
    # A reaction that the program no longer has would be waited for in vain; its failure stays on the list.
    waiting = {_name(reaction) for reaction in _reactions.get(event.kind, [])} & set(failed)
    row = Event.objects.pending().filter(pk=event.pk, attempts=event.attempts)
    if not waiting:
        return bool(row.update(handled_at=ClockNow()))
    return bool(row.update(attempts=F("attempts") + 1, due_at=ClockNow() + _delay(event.attempts + 1)))


def _delay(tries: int) -> timedelta:
    return min(timedelta(seconds=2 ** min(tries, 12)), MAX_DELAY)


def react_to_due(limit: int = 500, *, seconds: float | None = None) -> int:
    """React to what is due, oldest first, and begin no further one once `seconds` have passed (default: no limit).

    Returns how many events were taken.
    """
    until = None if seconds is None else time.monotonic() + seconds
    seen = done = 0
    while seen < limit:
        found = prepared.execute(_due_of("true"))[: limit - seen]
        ran: set[tuple[Reaction, str]] = set()
        taken = 0
        for record in found:
            taken += _react_in_turn(_due_events().rows(record)["e"], ran)
            if until is not None and time.monotonic() >= until:
                return done + taken
        seen, done = seen + len(found), done + taken
        if len(found) < AT_ONCE or not taken:
            break
    return done


def _react_in_turn(event: Event, ran: set[tuple[Reaction, str]]) -> bool:
    """As react(), but put off beforehand: an event whose reaction takes its process with it, every time, must not be
    the first one of every sweep, which would keep all others back.
    """
    if not Event.objects.due().filter(pk=event.pk).update(due_at=ClockNow() + PUT_OFF):
        return False
    taken = False
    try:
        taken = _react(event, ran)
    finally:
        if not taken:
            # The process lives, so this was no such event. Another may have it in hand, and may die of it.
            with suppress(DatabaseError):
                Event.objects.pending().filter(pk=event.pk, attempts=event.attempts).update(due_at=event.due_at)
    return taken


def do_chores(*, here: bool = False) -> int:
    """Do every registered chore once (`here`: the long ones too); one that fails is logged and keeps no other back.

    Returns how much was done here.
    """
    done = 0
    for work, send in _chores:
        try:
            if send is not None and not here:
                send()
            else:
                done += work()
        except Exception:
            log.exception("chore %s.%s failed", work.__module__, work.__name__)
    return done


def drain(rounds: int = 200) -> None:
    """Run every consequence in this process, work included, until it is quiet. For tests and single-process use.

    Raises RuntimeError when `rounds` rounds do not suffice: two reactions chase each other.
    """
    for _ in range(rounds):
        if not react_to_due() + do_chores(here=True):
            return
    raise RuntimeError(f"not quiet after {rounds} rounds")


# -- storage -----------------------------------------------------------------------------------------------------


def make_partitions(ahead: int = 3) -> int:
    """Make the table's partitions for this month and `ahead` more; returns how many were new. Safe to repeat."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT signalbox_make_event_partitions(%s)", [ahead])
        (made,) = cursor.fetchone()
    return int(made)
