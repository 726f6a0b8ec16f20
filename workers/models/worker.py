"""Workers: agent processes with their three clocks, from registration to the end."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, ExpressionWrapper, F, OuterRef, Q
from django.db.models.functions import Coalesce
from django.utils.translation import gettext_lazy as _

from pipeline import events
from pipeline.clock import BirthTimeField, ClockNow, db_now
from pipeline.models import ApiKey, Task
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.retry import OUTCOMES
from pipeline.rows import Immutable, in_transaction
from pipeline.states import NOW, InvalidMove, Plus, Stateful, held_by_postgres
from workers.models import health

if TYPE_CHECKING:
    from workers.models.lease import Lease

SECOND = timedelta(seconds=1)
DAY_SECONDS = 24 * 3600
# The diff, the last output and the report, after the tool has ended.
SAYING_SO_SECONDS = 5


class StaleClaim(Refused):
    """A write quoted a lease that is not live, or a generation that is not the task's; `lease` is told of it
    afterwards.
    """

    code = "stale_claim"

    def __init__(self, generation: int | None, lease: "Lease | None" = None, by: events.Actor = events.SYSTEM) -> None:
        super().__init__(f"Stale claim: generation {generation} is not current", generation=generation)
        self.lease, self.by = lease, by

    def leave_trace(self) -> None:
        """Record the refused write, in a transaction of its own: the refused one was undone."""
        if self.lease is not None:
            with in_transaction():
                events.record(
                    "lease.stale_report", self.lease, by=self.by, data={"generation": self.parts["generation"]}
                )


class WorkerFinished(Refused):
    """The worker is stopped or crashed; its program is to end."""

    code = "worker_finished"
    status = 410

    def __init__(self, worker: "Worker") -> None:
        super().__init__(f"Worker {worker.pk} is {worker.state}; exit", state=worker.state, directive="exit")


class WorkerQuerySet(models.QuerySet["Worker"]):
    """The words for registering and asking about workers."""

    def visible_to(self, principal: Any) -> Self:
        """The workers whose key is of a project in which `principal` may read; a worker's key sees its own only."""
        if principal.is_worker:
            return self.filter(api_key=principal.id)
        ids = principal.project_ids()
        if ids is None:
            return self
        return self.filter(Q(api_key__project__in=ids) | Q(api_key__project=None) | Q(api_key=None))

    def alive(self) -> Self:
        """Neither stopped nor crashed."""
        return self.filter(state__in=Worker.ALIVE)

    def archived(self) -> Self:
        """Finished for so long that they are in no list any more; still there by their id."""
        kept = timedelta(days=settings.SIGNALBOX_FINISHED_WORKER_DAYS)
        return self.filter(Q(stopped_at__lt=health.NowOnce() - kept) | Q(crashed_at__lt=health.NowOnce() - kept))

    def listed(self) -> Self:
        """Alive, or not finished for long."""
        since = health.NowOnce() - timedelta(days=settings.SIGNALBOX_FINISHED_WORKER_DAYS)
        return self.filter(Q(state__in=Worker.ALIVE) | Q(stopped_at__gte=since) | Q(crashed_at__gte=since))

    def idle(self) -> Self:
        """Free to be given a task."""
        return self.filter(state=Worker.State.IDLE, shutdown_requested_at=None)

    def silent(self) -> Self:
        """Annotates `silence`: the time since the last heartbeat, by the database's clock."""
        seen = Coalesce(F("transport_seen_at"), F("started_at"))
        return self.annotate(silence=ExpressionWrapper(ClockNow() - seen, models.DurationField()))

    def leaving(self) -> Self:
        """Alive, and past the deadline by which they should have ended."""
        return self.alive().filter(shutdown_deadline_at__lt=health.NowOnce())

    def silent_while_idle(self) -> Self:
        """Alive, doing nothing, and silent for so long that they are given up."""
        return self.alive().alias(given_up=health.silent_while_idle()).filter(given_up=True)

    def stale(self, timeout_seconds: int | None = None) -> Self:
        """Alive, and silent for strictly longer than the limit; paused workers without a lease excepted."""
        limit = (timeout_seconds or settings.SIGNALBOX_LEASE_SECONDS) * SECOND
        return self.alive().silent().filter(silence__gt=limit).exclude(state=Worker.State.PAUSED, current_task=None)

    def late(self) -> Self:
        """Silent for more than two of their own heartbeat intervals, and not yet unresponsive."""
        return self.of_health(health.LATE)

    def stalled(self) -> Self:
        """They beat, and their work does not move."""
        return self.of_health(health.STALLED)

    def needs_person(self) -> Self:
        """Stalled, unresponsive, or waiting for somebody's answer."""
        waiting = Q(state=Worker.State.BUSY, activity=Worker.Activity.WAITING_HUMAN)
        return self.with_health().alive().filter(waiting | Q(health_now__in=[health.STALLED, health.UNRESPONSIVE]))

    def with_health(self, now: datetime | None = None) -> Self:
        """Annotates `health_now`: what `Worker.health` says at `now`, or at the database's present time."""
        return self.annotate(health_now=health.expression(now))

    def of_health(self, *words: str) -> Self:
        """Alive, and one of these now."""
        return self.with_health().alive().filter(health_now__in=words)

    def unleased(self) -> Self:
        """Without a live lease."""
        leases = self.model._meta.get_field("leases").related_model._base_manager
        return self.exclude(Exists(leases.filter(worker=OuterRef("pk"), ended_at=None)))

    def register(
        self,
        *,
        worker_type: str,
        by: events.Actor,
        name: str = "",
        host: str = "",
        api_key: ApiKey | None = None,
        config: Mapping[str, Any] | None = None,
        capabilities: list[str] | None = None,
        tools: list[str] | None = None,
        affinity: list[str] | None = None,
        metadata: Mapping[str, Any] | None = None,
        previous_worker: "Worker | None" = None,
        pk: str | None = None,
    ) -> "Worker":
        """A new idle worker. Raises InvalidField (`invalid_worker_type`, `invalid_field`), Refused `worker_limit`
        when its
        host runs as many as its config's `max_parallel_tasks` allows, `duplicate_id`.
        """
        if worker_type not in Worker.Type.values:
            allowed = ", ".join(Worker.Type.values)
            refusal = InvalidField("worker_type", "", code="invalid_worker_type", allowed=Worker.Type.values)
            refusal.args = (f"Invalid worker_type: {worker_type}; it is one of {allowed}",)
            raise refusal
        config = check_config(config or {})
        with in_transaction():
            if pk is not None and self.filter(pk=pk).exists():
                raise Refused(f"Worker {pk} already exists", code="duplicate_id")
            limit = config.get("max_parallel_tasks")
            if limit is not None and host and self.alive().filter(host=host, api_key=api_key).count() >= limit:
                raise Refused(f"Cannot start: host already runs {limit} workers", code="worker_limit", limit=limit)
            worker = Worker(
                worker_type=worker_type,
                name=name or f"{host or 'worker'}",
                host=host,
                api_key=api_key,
                config=config,
                capabilities=capabilities or [],
                tools=tools or [],
                affinity=affinity or [],
                metadata=dict(metadata or {}),
                previous_worker=previous_worker,
                **({} if pk is None else {"pk": pk}),
            )
            worker.save(force_insert=True)
            worker.born(by=by, kind="worker.started")
        return worker


def check_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The worker's settings as given. Raises InvalidField for an unknown name, a number below 1, or a heartbeat that
    would come when its lease is over, the installation's figures standing for those that are left out.
    """
    names = ("heartbeat_interval", "timeout_seconds", "stall_after", "max_parallel_tasks", "extra")
    for name, value in config.items():
        if name not in names:
            raise InvalidField(f"config.{name}", f"unknown; the settings are {', '.join(names)}")
        if name != "extra" and (not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= DAY_SECONDS):
            raise InvalidField(f"config.{name}", f"a whole number from 1 to {DAY_SECONDS}")
    interval = config.get("heartbeat_interval", settings.SIGNALBOX_HEARTBEAT_INTERVAL_SECONDS)
    timeout = config.get("timeout_seconds", settings.SIGNALBOX_LEASE_SECONDS)
    if interval >= timeout and config.keys() & {"heartbeat_interval", "timeout_seconds"}:
        raise InvalidField(
            "config.heartbeat_interval",
            f"below timeout_seconds: a heartbeat every {interval} s never renews a lease of {timeout} s",
        )
    return dict(config)


@held_by_postgres
class Worker(Stateful):
    """One agent process.

        initial -> idle -> busy -> idle
        idle, busy -> paused -> idle (⚿ busy)
        idle, busy, paused -> crashed | stopped

    It registers, beats, claims a task, and gives it back done or failed. `process_seen_at`, `transport_seen_at` and
    `progress_at` are its three clocks: its child lives, it reaches us, its work moves.
    """

    NOUN = "worker"

    class State(models.TextChoices):
        IDLE = "idle", _("idle")
        BUSY = "busy", _("busy")
        PAUSED = "paused", _("paused")
        STOPPED = "stopped", _("stopped")
        CRASHED = "crashed", _("crashed")

    class Type(models.TextChoices):
        EXECUTOR = "executor", _("executor")
        MONITOR = "monitor", _("monitor")
        VALIDATOR = "validator", _("validator")
        SCHEDULER = "scheduler", _("scheduler")
        CUSTOM = "custom", _("custom")

    class Activity(models.TextChoices):
        WAITING_MODEL = "waiting_model", _("waiting for the model")
        IN_TOOL = "in_tool", _("in a tool")
        QUOTA_WAIT = "quota_wait", _("waiting for quota")
        WAITING_HUMAN = "waiting_human", _("waiting for a person")
        UNKNOWN = "unknown", _("unknown")

    MOVES = {
        State.IDLE: {State.BUSY, State.PAUSED, State.CRASHED, State.STOPPED},
        State.BUSY: {State.IDLE, State.PAUSED, State.CRASHED, State.STOPPED},
        State.PAUSED: {State.IDLE, State.CRASHED, State.STOPPED},
        State.STOPPED: set(),
        State.CRASHED: set(),
    }
    KEYED = {(State.PAUSED, State.BUSY): "resume"}
    KINDS = {
        (State.IDLE, State.BUSY): "worker.assigned",
        (State.BUSY, State.IDLE): "worker.released",
        (State.PAUSED, State.IDLE): "worker.resumed",
        (State.PAUSED, State.BUSY): "worker.resumed",
    }
    INITIAL = {State.IDLE}
    ALIVE = (State.IDLE, State.BUSY, State.PAUSED)
    FINISHED = (State.STOPPED, State.CRASHED)
    STATE_CLOCKS = ("process_seen_at", "transport_seen_at", "progress_at", "activity", "activity_since", "look_at")
    # What heartbeats and looks move (neither makes an event), and a long text.
    UNTOLD = Stateful.UNTOLD | {*STATE_CLOCKS, "crash_trace"}

    worker_type = models.CharField(max_length=9, choices=Type)
    state = models.CharField(max_length=7, choices=State, default=State.IDLE)
    name = models.CharField(max_length=200)
    host = models.CharField(max_length=200, blank=True)
    api_key = models.ForeignKey(ApiKey, models.PROTECT, null=True, related_name="workers")
    previous_worker = models.ForeignKey("self", models.PROTECT, null=True, related_name="successors")
    metadata = models.JSONField(default=dict)
    current_task = models.ForeignKey(Task, models.PROTECT, null=True, related_name="+")
    config = models.JSONField(default=dict)
    capabilities = models.JSONField(default=list)
    tools = models.JSONField(default=list)
    affinity = models.JSONField(default=list)
    started_at = BirthTimeField(db_default=ClockNow())
    process_seen_at = models.DateTimeField(null=True)
    transport_seen_at = models.DateTimeField(null=True, db_default=ClockNow())
    progress_at = models.DateTimeField(null=True)
    activity = models.CharField(max_length=13, choices=Activity, default=Activity.UNKNOWN)
    activity_since = models.DateTimeField(null=True)
    # What was told of its health by the last event, since when, and before what time nobody need look at it again.
    told_health = models.CharField(max_length=12, choices=health.CHOICES, default=health.HEALTHY)
    health_since = models.DateTimeField(null=True)
    look_at = models.DateTimeField(db_default=ClockNow())
    shutdown_requested_at = models.DateTimeField(null=True)
    shutdown_mode = models.CharField(max_length=5, blank=True)
    shutdown_deadline_at = models.DateTimeField(null=True)
    stopped_at = models.DateTimeField(null=True)
    stop_confirmed = models.BooleanField(default=False)
    crashed_at = models.DateTimeField(null=True)
    crash_message = models.TextField(blank=True)
    crash_trace = models.TextField(blank=True)
    tasks_completed = models.PositiveIntegerField(default=0)
    tasks_failed = models.PositiveIntegerField(default=0)
    total_execution_seconds = models.DecimalField(max_digits=18, decimal_places=6, default=0)

    health_now: str
    """Of a row that was asked for `with_health`."""

    objects = WorkerQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="worker_busy_has_task",
                condition=Q(state="busy", current_task__isnull=False)
                | Q(state="paused")
                | Q(state__in=["idle", "stopped", "crashed"], current_task=None),
            ),
            models.CheckConstraint(
                name="worker_crashed_has_time",
                condition=Q(state="crashed", crashed_at__isnull=False) | (~Q(state="crashed") & Q(crashed_at=None)),
            ),
            models.CheckConstraint(
                name="worker_stopped_has_time",
                condition=Q(state="stopped", stopped_at__isnull=False) | (~Q(state="stopped") & Q(stopped_at=None)),
            ),
        ]
        indexes = [
            models.Index(fields=["state"], name="worker_alive", condition=Q(state__in=["idle", "busy", "paused"])),
            models.Index(fields=["host"], name="worker_of_host", condition=Q(state__in=["idle", "busy", "paused"])),
            # Read by the sweep: whom to look at, and who should have left.
            models.Index(
                fields=["look_at"], name="worker_to_look_at", condition=Q(state__in=["idle", "busy", "paused"])
            ),
            models.Index(
                fields=["shutdown_deadline_at"],
                name="worker_leaving",
                condition=Q(state__in=["idle", "busy", "paused"], shutdown_deadline_at__isnull=False),
            ),
        ]
        triggers = [Immutable(name="affinity_fixed", fields=("affinity", "worker_type"))]

    def __str__(self) -> str:
        return self.name

    def correlation(self) -> dict[str, str | None]:
        """Events about a worker belong to it, and to the task that it holds."""
        ids: dict[str, str | None] = {"worker_id": self.pk}
        if self.current_task is not None:
            ids |= self.current_task.correlation()
        elif self.api_key is not None and self.api_key.project_id:
            ids["project_id"] = self.api_key.project_id
        return ids

    @property
    def is_finished(self) -> bool:
        """Whether it is stopped or crashed."""
        return self.state in self.FINISHED

    @property
    def timeout_seconds(self) -> int:
        """How long it may stay silent: the length of its leases."""
        return int(self.config.get("timeout_seconds", settings.SIGNALBOX_LEASE_SECONDS))

    @property
    def heartbeat_interval(self) -> int:
        """How often it beats, in seconds."""
        return int(self.config.get("heartbeat_interval", settings.SIGNALBOX_HEARTBEAT_INTERVAL_SECONDS))

    @property
    def stall_after(self) -> int:
        """After how many seconds without progress it counts as stalled."""
        return int(self.config.get("stall_after", settings.SIGNALBOX_STALL_SECONDS))

    def health(self, now: datetime) -> str:
        """unresponsive, stalled, late or healthy at `now`, the database's time; finished workers have none ("")."""
        return health.of(self, now)

    @property
    def ended_at(self) -> datetime | None:
        """When it stopped or crashed."""
        return self.stopped_at or self.crashed_at

    @property
    def average_execution_seconds(self) -> Decimal:
        """How long the tasks that it counts took on average, to six places; 0 before the first has ended."""
        ended = self.tasks_completed + self.tasks_failed
        return round(Decimal(self.total_execution_seconds) / ended, 6) if ended else Decimal(0)

    @property
    def stop_label(self) -> str:
        """What may truthfully be said about its end: it is called stopped when it said so, or cannot come back."""
        if self.state == self.State.STOPPED:
            return "stopped" if self.stop_confirmed else "stopped, unconfirmed"
        if self.state == self.State.CRASHED or not self.shutdown_mode:
            return ""
        return "stop requested" if self.shutdown_mode == "now" else "draining"

    @property
    def stop_grace(self) -> timedelta:
        """How long a stop may take: until its next heartbeat, then until what goes on is killed, and it says so."""
        return (self.heartbeat_interval + settings.SIGNALBOX_STOP_KILL_SECONDS + SAYING_SO_SECONDS) * SECOND

    @staticmethod
    def counted(outcome: str, seconds: Decimal, *, crashed: bool = False) -> dict[str, Any]:
        """What an attempt that ended so adds to the statistics of its worker: column -> how much more.

        Done is a success; failed is what counts against the task (domain.md §2.1.10), and every task that a worker lost
        by crashing. The rest, which people, money or a provider ended, counts neither way, and nor does its time.
        """
        if outcome == "success":
            return {"tasks_completed": 1, "total_execution_seconds": seconds}
        if crashed or OUTCOMES[outcome].counts:
            return {"tasks_failed": 1, "total_execution_seconds": seconds}
        return {}

    def live_lease(self) -> "Lease | None":
        """The lease that it holds, if any."""
        return self.leases.live().first()

    def pause(self, *, by: events.Actor, reason: str = "") -> bool:
        """Keep what it has, and claim no more. Quiet."""
        return self.move(self.State.PAUSED, by=by, reason=reason, verb="pause")

    def resume(self, *, by: events.Actor, reason: str = "") -> bool:
        """Go on: busy if its lease is still live, else idle."""
        with in_transaction():
            lease = self.live_lease()
            to = self.State.BUSY if lease else self.State.IDLE
            return self.move(
                to,
                by=by,
                reason=reason,
                key="resume",
                verb="resume",
                working=True,
                only_from=(self.State.PAUSED,),
                transport_seen_at=NOW,
                # Its stall clock stood still meanwhile.
                progress_at=NOW,
                current_task=lease and lease.task,
            )

    def request_shutdown(
        self, *, by: events.Actor, mode: str = "drain", reason: str = "", deadline_seconds: int | None = None
    ) -> bool:
        """Ask it to end: `drain` lets the task finish, `now` stops it. It ends when it says so. Quiet.

        At the deadline what it still does is asked to stop, and it is stopped, unconfirmed, once it holds no lease. The
        mode `now` has the deadline of a stop unless told, `drain` none. What was asked for is never taken back: a drain
        after a stop, or a later deadline, changes nothing. Raises InvalidMove when it has ended, ReasonRequired.
        """
        if mode not in ("drain", "now"):
            raise InvalidField("mode", f"drain or now, not “{mode}”")
        if deadline_seconds is not None and not 1 <= deadline_seconds <= DAY_SECONDS:
            raise InvalidField("deadline_seconds", f"a whole number from 1 to {DAY_SECONDS}")
        if mode == "now":
            reason = need_reason(reason)
        with in_transaction():
            current = Worker.objects.select_for_update(no_key=True).get(pk=self.pk)
            if current.is_finished:
                raise InvalidMove(current, current.state, "stopped", verb="shutdown", allowed=())
            now = db_now()
            deadline = None if deadline_seconds is None else now + deadline_seconds * SECOND
            if mode == "now" and deadline is None:
                deadline = now + self.stop_grace
            earliest = min(filter(None, [deadline, current.shutdown_deadline_at]), default=None)
            strictest = "now" if "now" in (mode, current.shutdown_mode) else mode
            if (current.shutdown_mode, current.shutdown_deadline_at) == (strictest, earliest) or (
                current.shutdown_mode == mode == "now" and deadline_seconds is None
            ):
                return False
            columns = {
                "shutdown_requested_at": current.shutdown_requested_at or now,
                "shutdown_mode": strictest,
                "shutdown_deadline_at": earliest,
            }
            Worker.objects.filter(pk=self.pk).update(**columns)
            events.record(
                "worker.shutdown_requested",
                current,
                by=by,
                reason=reason,
                data={"mode": strictest},
                before=self.tellable({name: getattr(current, name) for name in columns}),
                after=self.tellable(columns),
            )
            if strictest == "now" and (lease := self.live_lease()):
                lease.request_stop(by=by, reason=reason, outcome="")
        self.refresh_from_db()
        return True

    def shutdown(self, *, by: events.Actor, reason: str = "", confirmed: bool = False) -> bool:
        """End it for good: a lease still held ends and its task is due again. Quiet.

        `confirmed` when the worker itself says so; otherwise it is shown as "stopped, unconfirmed".
        """
        with in_transaction():
            counted = self._give_back(
                "cancelled",
                by=by,
                cause="worker_shutdown",
                error_code="worker_shutdown",
                error=reason or "worker shut down",
                due_now=True,
                confirmed=confirmed,
            )
            return self.move(
                self.State.STOPPED,
                by=by,
                reason=reason,
                verb="shutdown",
                stopped_at=NOW,
                stop_confirmed=confirmed,
                current_task=None,
                **counted,
            )

    def crash(
        self, message: str, *, by: events.Actor, trace: str = "", outcome: str = "infra_lost", cause: str = ""
    ) -> bool:
        """It is gone: its lease ends, its attempt fails as lost, its task is tried again or fails. Quiet.

        One transaction, one set of events, however many notice it.
        """
        with in_transaction():
            counted = self._give_back(
                outcome,
                crashed=True,
                by=by,
                cause=cause or "worker_crashed",
                error_code="worker_lost" if outcome == "infra_lost" else "timeout_exceeded",
                error=message,
            )
            return self.move(
                self.State.CRASHED,
                by=by,
                reason=message,
                verb="crash",
                crashed_at=NOW,
                crash_message=message[:2000],
                crash_trace=trace[:20000],
                current_task=None,
                **counted,
            )

    def stop(self, *, by: events.Actor, reason: str) -> bool:
        """Ask it to stop its task and end now; owes a reason. Quiet."""
        return self.request_shutdown(by=by, mode="now", reason=reason)

    def declare_crashed(self, *, by: events.Actor, reason: str) -> bool:
        """A person knows that it is gone; owes a reason, which becomes its crash message. Quiet."""
        return self.crash(need_reason(reason), by=by)

    def _give_back(self, outcome: str, *, by: events.Actor, crashed: bool = False, **report: Any) -> dict[str, Any]:
        """End the lease that it holds, and say what that adds to its statistics: nothing when it holds none, or when
        that lease has just ended another way.

        Raises Refused `conflict` when it was given a task just now: whoever holds its row must not wait for a run.
        """
        lease = self.live_lease()
        if lease is None:
            Worker.objects.select_for_update(no_key=True).filter(pk=self.pk).values_list("pk").first()
            if self.live_lease() is not None:
                raise Refused(f"Worker {self.pk} was given a task just now; ask again", code="conflict")
            return {}
        try:
            lease.finish(outcome, by=by, leaves_worker=True, **report)
        except StaleClaim:
            return {}
        counted = self.counted(
            lease.attempt.outcome or outcome, lease.held_for(lease.attempt.ended_at), crashed=crashed
        )
        return {name: Plus(more) for name, more in counted.items()}
