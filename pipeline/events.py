"""The event log: history, outbox and bus in one (domain.md §2.1.12).

A change and its Event commit together. Reactions run afterwards, each safe to repeat; apps register theirs in
`reactions.py`. Readers outside follow the commit-order cursor `(epoch, xid, seq)`, which never passes a transaction
that is still open.
"""

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple, Self, TypeVar
from uuid import UUID

import pgtrigger
from django.db import connection, models, transaction
from django.db.models import F, Q
from django.db.models.expressions import RawSQL

from pipeline.chain import canonical
from pipeline.clock import ClockNow
from pipeline.ids import ULIDField, new_id
from pipeline.kinds import CHANNELS, KINDS, SEVERITIES
from pipeline.refusals import Refused
from pipeline.rows import Guard, Immutable, NoDelete, NoTruncate

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
        """Only what no open transaction can still precede: safe for a reader that keeps a cursor."""
        below: Self = self.extra(where=["pipeline_event.xid < pg_snapshot_xmin(pg_current_snapshot())"])  # type: ignore[assignment]
        return below

    def after(self, cursor: Cursor, limit: int = 100) -> Self:
        """The next `limit` settled events behind `cursor`, in commit order."""
        place = "(pipeline_event.epoch, pipeline_event.xid, pipeline_event.seq) > (%s, %s::text::xid8, %s)"
        behind = self.settled().extra(where=[place], params=[cursor.epoch, str(cursor.xid), cursor.seq])
        page: Self = behind.order_by("epoch", "xid", "seq")[:limit]  # type: ignore[assignment]
        return page

    def visible_to(self, principal: Any) -> Self:
        """What `principal` may read: the events of its projects; an administrator of the installation reads all."""
        projects = principal.project_ids()
        return self if projects is None else self.filter(project_id__in=projects)


class LinkUp(Guard):
    """BEFORE INSERT: gives an event its number and hash in its subject's stream, under that stream's lock.

    A unique constraint over partitions cannot do this, and not every recorder holds the subject's row.
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
            NEW.xid = pg_current_xact_id();
            NEW.seq = nextval('pipeline_event_seq');
            NEW.epoch = (SELECT max(number) FROM pipeline_eventepoch);
            NEW.stream_seq = 1;
            NEW.prev_hash = '';
            NEW.hash = {hashed.format(prev="''")};
            INSERT INTO pipeline_eventstream (subject_id, subject_type, first_seq, seq, hash)
                VALUES (NEW.subject_id, NEW.subject_type, 1, 1, NEW.hash) ON CONFLICT (subject_id) DO NOTHING;
            IF NOT FOUND THEN
                SELECT * INTO STRICT head FROM pipeline_eventstream WHERE subject_id = NEW.subject_id FOR UPDATE;
                NEW.stream_seq = head.seq + 1;
                NEW.prev_hash = head.hash;
                NEW.hash = {hashed.format(prev="NEW.prev_hash")};
                UPDATE pipeline_eventstream SET seq = NEW.stream_seq, hash = NEW.hash
                    WHERE subject_id = NEW.subject_id;
            END IF;
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
            models.Index(fields=["project_id", "seq"], name="event_project"),
            models.Index(fields=["run_id", "seq"], name="event_run", condition=~Q(run_id=None)),
            models.Index(fields=["kind", "seq"], name="event_kind"),
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
    """The head of one subject's chain: its last number and hash. Written by the insert trigger of Event alone."""

    subject_id = ULIDField(primary_key=True)
    subject_type = models.CharField(max_length=32)
    first_seq = models.BigIntegerField(default=1)
    seq = models.BigIntegerField()
    hash = models.CharField(max_length=64)

    class Meta:
        triggers = [NoTruncate(name="never_truncated")]

    def __str__(self) -> str:
        return f"{self.subject_type}:{self.subject_id} at {self.seq}"


class EventEpoch(models.Model):
    """One life of the database: a restored copy starts a new one, since its transaction ids start again."""

    number = models.PositiveIntegerField(primary_key=True)
    started_at = models.DateTimeField(db_default=ClockNow())
    reason = models.TextField()

    def __str__(self) -> str:
        return f"epoch {self.number}"


# -- recording ---------------------------------------------------------------------------------------------------


def record(
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
    """Append one Event about `subject` (a row with `noun()` and `correlation()`) in the caller's transaction.

    Nudges Celery after the commit when somebody reacts to this kind; a nudge that is lost is found by the sweep.
    Raises KeyError for a kind outside the vocabulary and TypeError for an unknown correlation id: both are errors
    of the program, not of its user.
    """
    word = KINDS[kind]
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
    event.save(force_insert=True)
    if kind in _reactions:
        nudge_later("pipeline.tasks.react", event.pk)
    return event


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
_chores: list[tuple[Chore, Callable[[], object] | None]] = []

MAX_DELAY = timedelta(hours=1)


def on(*kinds: str) -> Callable[[R], R]:
    """Register the decorated function as a reaction to events of these kinds. Raises KeyError for an unknown kind."""
    for kind in kinds:
        KINDS[kind]

    def register(reaction: R) -> R:
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

    Each reaction has its own savepoint: one that fails undoes only itself. A reaction that comes too late is refused by
    the state, and is done. One that crashes puts the event off with growing delay; then all run again, since reactions
    are safe to repeat.
    """
    with transaction.atomic():
        due = Event.objects.due().select_for_update(skip_locked=True)
        event = due.filter(pk=pk).first()
        if event is None:
            return False
        token = request_id.set(event.request_id)
        try:
            failed = [reaction for reaction in _reactions.get(event.kind, []) if not _survives(reaction, event)]
        finally:
            request_id.reset(token)
        row = Event.objects.filter(pk=pk)
        if failed:
            delay = min(timedelta(seconds=2 ** min(event.attempts + 1, 12)), MAX_DELAY)
            row.update(attempts=F("attempts") + 1, due_at=ClockNow() + delay)
        else:
            row.update(handled_at=ClockNow())
        return True


def _survives(reaction: Reaction, event: Event) -> bool:
    """Whether the reaction ran, or was refused by the state; False when it crashed."""
    try:
        with transaction.atomic():
            reaction(event)
    except Refused as refusal:
        log.info("%s: %s", event, refusal)
    except Exception:
        log.exception("reaction %s.%s to %s failed", reaction.__module__, reaction.__name__, event)
        return False
    return True


def react_to_due(limit: int = 500) -> int:
    """React to what is due, oldest first; returns how many events were taken."""
    due = Event.objects.due().order_by("due_at", "seq").values_list("pk", flat=True)[:limit]
    return sum(react(str(pk)) for pk in list(due))


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
