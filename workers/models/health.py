"""How well a worker is, derived from its clocks (domain.md §2.2.1): one definition, told for a row and as SQL."""

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.db import models
from django.db.models import Case, Expression, ExpressionWrapper, F, Q, Value, When
from django.db.models.fields.json import KeyTextTransform
from django.db.models.functions import Cast, Coalesce, Greatest, Least
from django.db.models.lookups import GreaterThan
from django.utils.translation import gettext_lazy as _

from pipeline.clock import ClockNow

if TYPE_CHECKING:
    from workers.models.worker import Worker

SECOND = timedelta(seconds=1)

# In the order in which the first that applies is taken.
UNRESPONSIVE, STALLED, LATE, HEALTHY = "unresponsive", "stalled", "late", "healthy"
CHOICES = [
    (UNRESPONSIVE, _("unresponsive")),
    (STALLED, _("stalled")),
    (LATE, _("late")),
    (HEALTHY, _("healthy")),
]
FINISHED = ("stopped", "crashed")
# These silences are explained, and may last.
PATIENT = ("quota_wait", "waiting_human")
# Two heartbeats may be lost on the way.
LATE_AFTER_BEATS = 2


class NowOnce(ClockNow):
    """The real time on the database server, read once a statement: `clock_timestamp()` itself is volatile, so that a
    comparison with it can use no index.
    """

    template = "(SELECT clock_timestamp())"


def of(worker: "Worker", now: datetime) -> str:
    """unresponsive, stalled, late or healthy at `now`, the database's time; a finished worker has none ("")."""
    if worker.state in FINISHED:
        return ""
    silence = now - (worker.transport_seen_at or worker.started_at)
    if silence > worker.timeout_seconds * SECOND:
        return UNRESPONSIVE
    if worker.state == "busy" and (_is_process_gone(worker, now) or _is_standing_still(worker, now)):
        return STALLED
    return LATE if silence > LATE_AFTER_BEATS * worker.heartbeat_interval * SECOND else HEALTHY


def _is_process_gone(worker: "Worker", now: datetime) -> bool:
    """Beating, with its process unseen for longer than it may be silent. Whoever makes progress has one: a claim does,
    before the first heartbeat has told of it.
    """
    if worker.process_seen_at is None:
        return False
    seen = max(worker.process_seen_at, worker.progress_at or worker.process_seen_at)
    return now - seen > worker.timeout_seconds * SECOND


def _is_standing_still(worker: "Worker", now: datetime) -> bool:
    if worker.progress_at is None or worker.activity in PATIENT:
        return False
    limit = worker.stall_after
    if worker.activity == "in_tool":
        limit = max(limit, settings.SIGNALBOX_STALL_IN_TOOL_CALL_SECONDS)
    return now - worker.progress_at > limit * SECOND


# -- the same as SQL -----------------------------------------------------------------------------------------------


def _span(name: str, default: int, times: int = 1) -> Expression:
    """`times` the seconds that the worker's config names, or the installation's."""
    given = Cast(KeyTextTransform(name, "config"), models.IntegerField())
    return ExpressionWrapper(Coalesce(given, default) * (times * SECOND), models.DurationField())


def _timeout() -> Expression:
    return _span("timeout_seconds", settings.SIGNALBOX_LEASE_SECONDS)


def _two_beats() -> Expression:
    return _span("heartbeat_interval", settings.SIGNALBOX_HEARTBEAT_INTERVAL_SECONDS, LATE_AFTER_BEATS)


def _stall_after() -> Expression:
    return _span("stall_after", settings.SIGNALBOX_STALL_SECONDS)


def _heard() -> Coalesce:
    return Coalesce("transport_seen_at", "started_at")


def _idle_limit() -> Value:
    return Value(settings.SIGNALBOX_IDLE_SILENCE_SECONDS * SECOND, models.DurationField())


def _clock(now: datetime | None) -> Any:
    return ClockNow() if now is None else Value(now, models.DateTimeField())


def _since(moment: Any, now: datetime | None) -> Expression:
    return ExpressionWrapper(_clock(now) - moment, models.DurationField())


def limits() -> tuple[int, ...]:
    """The installation's settings that stand in the expressions below."""
    return (
        settings.SIGNALBOX_LEASE_SECONDS,
        settings.SIGNALBOX_HEARTBEAT_INTERVAL_SECONDS,
        settings.SIGNALBOX_STALL_SECONDS,
        settings.SIGNALBOX_STALL_IN_TOOL_CALL_SECONDS,
        settings.SIGNALBOX_IDLE_SILENCE_SECONDS,
    )


def expression(now: datetime | None = None) -> Case:
    """What `of` says, as a column: at `now`, or at the database's present time."""
    longer = Greatest(_stall_after(), Value(settings.SIGNALBOX_STALL_IN_TOOL_CALL_SECONDS * SECOND))
    limit = Case(When(activity="in_tool", then=longer), default=_stall_after(), output_field=models.DurationField())
    gone = Q(process_seen_at__isnull=False) & Q(
        GreaterThan(_since(Greatest("process_seen_at", "progress_at"), now), _timeout())
    )
    still = ~Q(activity__in=PATIENT) & Q(GreaterThan(_since(F("progress_at"), now), limit))
    return Case(
        When(state__in=FINISHED, then=Value("")),
        When(GreaterThan(_since(_heard(), now), _timeout()), then=Value(UNRESPONSIVE)),
        When(Q(state="busy") & (gone | still), then=Value(STALLED)),
        When(GreaterThan(_since(_heard(), now), _two_beats()), then=Value(LATE)),
        default=Value(HEALTHY),
        output_field=models.CharField(),
    )


def silent_while_idle() -> Case:
    """Whether a worker that is not busy has been silent for so long that it is given up."""
    return Case(
        When(~Q(state="busy") & Q(GreaterThan(_since(_heard(), None), _idle_limit())), then=Value(True)),
        default=Value(False),
        output_field=models.BooleanField(),
    )


def next_look() -> Least:
    """Until when a healthy worker cannot become anything else, whatever it does in between: its clocks only go forward.

    So the sweep looks at nobody before that time, and heartbeats need not move an index.
    """
    now = ClockNow()
    return Least(
        _later(_heard(), _two_beats()),
        _later(_heard(), _timeout()),
        _later(_heard(), _idle_limit()),
        _later(Coalesce("process_seen_at", now), _timeout()),
        _later(Case(When(state="busy", then=Coalesce("progress_at", now)), default=now), _stall_after()),
    )


def _later(moment: Any, span: Any) -> Expression:
    return ExpressionWrapper(moment + span, models.DateTimeField())
