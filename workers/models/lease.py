"""Leases: the time-limited right of one worker to one task, fenced by the task's generation."""

from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from pipeline import events
from pipeline.clock import ClockNow, db_now
from pipeline.models import Run, StepAttempt, Task
from pipeline.questions import ask_facts
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import RaiseVersion, Told, in_transaction
from workers.models import finishing
from workers.models.health import NowOnce
from workers.models.worker import StaleClaim, Worker


class LeaseQuerySet(models.QuerySet["Lease"]):
    """The words for asking about leases."""

    def visible_to(self, principal: Any) -> Self:
        """The leases on tasks of the projects in which `principal` may read; a worker's key sees its own only."""
        if principal.is_worker:
            return self.filter(worker__api_key=principal.id)
        ids = principal.project_ids()
        return self if ids is None else self.filter(task__run__project__in=ids)

    def live(self) -> Self:
        """Not ended."""
        return self.filter(ended_at=None)

    def expired(self) -> Self:
        """Live, and past their end by the database's clock."""
        return self.live().filter(expires_at__lt=NowOnce())

    def unstopped(self) -> Self:
        """Live, though it was asked to stop and had its time."""
        return self.live().filter(stop_deadline_at__lt=NowOnce())

    def overdue(self) -> Self:
        """Live, past its task's time, and not yet asked to stop."""
        return self.live().filter(stop_requested_at=None, timeout_at__lt=NowOnce())

    def lost(self) -> Self:
        """Those that their workers crashed with."""
        return self.filter(end_cause__in=[Lease.EndCause.EXPIRED, Lease.EndCause.WORKER_CRASHED])

    def moved(self) -> int:
        """Something was seen of their work: their workers' progress clocks go on. Returns how many. One statement."""
        return Worker.objects.filter(leases__in=self.live()).update(progress_at=ClockNow())


class Lease(Told):
    """The time-limited right of one worker to one task, fenced by the task's generation.

    Live while `ended_at` is null; one live lease a task and a worker. A heartbeat renews `expires_at`, never past
    `deadline_at`.
    """

    NOUN = "lease"
    # What heartbeats move: a beat makes no event.
    UNTOLD = Told.UNTOLD | {"expires_at", "renewed_at"}

    class EndCause(models.TextChoices):
        COMPLETED = "completed", _("completed")
        FAILED = "failed", _("failed")
        EXPIRED = "expired", _("expired")
        WORKER_CRASHED = "worker_crashed", _("worker crashed")
        WORKER_SHUTDOWN = "worker_shutdown", _("worker shut down")
        CANCELLED = "cancelled", _("cancelled")
        BUDGET_STOP = "budget_stop", _("budget stop")
        QUOTA_WAIT = "quota_wait", _("quota wait")
        NEEDS_HUMAN = "needs_human", _("needs a person")

    # How it ends without a report of its worker's.
    LOST = (EndCause.EXPIRED, EndCause.WORKER_CRASHED, EndCause.WORKER_SHUTDOWN)

    worker = models.ForeignKey(Worker, models.PROTECT, related_name="leases")
    task = models.ForeignKey(Task, models.PROTECT, related_name="leases")
    attempt = models.OneToOneField(StepAttempt, models.PROTECT, related_name="lease")
    generation = models.PositiveIntegerField()
    acquired_at = models.DateTimeField()
    expires_at = models.DateTimeField()
    timeout_at = models.DateTimeField()
    deadline_at = models.DateTimeField()
    renewed_at = models.DateTimeField(null=True)
    stop_requested_at = models.DateTimeField(null=True)
    stop_reason = models.TextField(blank=True)
    stop_outcome = models.CharField(max_length=12, blank=True)
    stop_deadline_at = models.DateTimeField(null=True)
    stop_acknowledged_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    end_cause = models.CharField(max_length=15, choices=EndCause, blank=True)
    stop_confirmed = models.BooleanField(default=False)

    objects = LeaseQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["task"], condition=Q(ended_at=None), name="lease_one_live_per_task"),
            models.UniqueConstraint(fields=["worker"], condition=Q(ended_at=None), name="lease_one_live_per_worker"),
            models.UniqueConstraint(fields=["task", "generation"], name="lease_once_per_generation"),
            models.CheckConstraint(name="lease_within_deadline", condition=Q(expires_at__lte=F("deadline_at"))),
            models.CheckConstraint(
                name="lease_ended_has_cause",
                condition=Q(ended_at=None, end_cause="") | (Q(ended_at__isnull=False) & ~Q(end_cause="")),
            ),
            models.CheckConstraint(
                name="lease_time_runs_forward", condition=Q(ended_at=None) | Q(ended_at__gte=F("acquired_at"))
            ),
        ]
        # Read by the sweep.
        indexes = [
            models.Index(fields=["expires_at"], name="lease_live", condition=Q(ended_at=None)),
            models.Index(
                fields=["timeout_at"], name="lease_timing", condition=Q(ended_at=None, stop_requested_at=None)
            ),
            models.Index(
                fields=["stop_deadline_at"],
                name="lease_stopping",
                condition=Q(ended_at=None, stop_deadline_at__isnull=False),
            ),
        ]
        triggers = [RaiseVersion(quiet=("expires_at", "renewed_at"))]

    def __str__(self) -> str:
        return f"lease {self.pk}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a lease belong to its worker, attempt and task."""
        return {**self.task.correlation(), "step_id": self.attempt_id, "worker_id": self.worker_id}

    @property
    def is_live(self) -> bool:
        """Whether it has not ended."""
        return self.ended_at is None

    def held_for(self, ended_at: datetime | None) -> Decimal:
        """The seconds from its grant to `ended_at`, both by the database's clock; 0 where that is not known."""
        seconds = 0.0 if ended_at is None else (ended_at - self.acquired_at).total_seconds()
        return Decimal(str(max(seconds, 0)))

    @property
    def stop_label(self) -> str:
        """What may truthfully be said about stopping: never "stopped" before the acknowledgement or the expiry."""
        if self.stop_requested_at is None:
            return ""
        if self.ended_at is not None:
            return "stopped" if self.stop_confirmed else "stopped, unconfirmed"
        return "stopping" if self.stop_acknowledged_at else "stop requested"

    def request_stop(self, *, by: events.Actor, reason: str, outcome: str = "cancelled") -> bool:
        """Ask the worker, by its next heartbeat, to stop; its attempt ends with `outcome`, or ("") as reported. Quiet.

        A cancellation overrides what an earlier request would have made of the attempt; nothing else does. Past
        `stop_deadline_at` the sweep ends the lease.
        """
        with in_transaction():
            rows = Lease.objects.select_for_update(no_key=True, of=("self",)).select_related("worker")
            current = rows.get(pk=self.pk)
            overrides = outcome == "cancelled" != current.stop_outcome
            if not current.is_live or (current.stop_requested_at and not overrides):
                return False
            now = db_now()
            columns = {
                "stop_requested_at": current.stop_requested_at or now,
                "stop_deadline_at": current.stop_deadline_at or now + current.worker.stop_grace,
                "stop_reason": reason,
                "stop_outcome": outcome,
            }
            Lease.objects.filter(pk=self.pk).update(**columns)
            events.record(
                "lease.stop_requested",
                current,
                by=by,
                reason=reason,
                data={"outcome": outcome},
                before={name: getattr(current, name) for name in columns},
                after=columns,
            )
        self.refresh_from_db()
        return True

    def extend(self, amount: Decimal, *, generation: int, by: events.Actor) -> dict[str, Any]:
        """Ask the budgets for `amount` USD more, now; never for more time. Answers what they say (`reservation`).

        Where no budget answers, nothing limits it. Raises StaleClaim when it is not live or of another generation,
        Refused `invalid_move` once it was asked to stop, and what a budget refuses (`budget_exceeded`).
        """
        if not amount.is_finite() or amount <= 0:
            raise InvalidField("amount", "USD, a finite number above 0")
        with in_transaction():
            Run.objects.select_for_update(no_key=True).get(pk=self.task.run_id)
            rows = Lease.objects.select_for_update(no_key=True, of=("self",)).select_related("task__run", "worker")
            current = rows.get(pk=self.pk)
            if not current.is_live or generation != current.generation or generation != current.task.generation:
                raise StaleClaim(generation, current, by)
            if current.stop_requested_at is not None:
                raise Refused(
                    f"Cannot extend: lease {self.pk} was asked to stop: {current.stop_reason}", code="invalid_move"
                )
            return ask_facts("lease.extend", lease=current, amount=amount, by=by)

    def finish(
        self,
        outcome: str,
        *,
        by: events.Actor,
        cause: str = "",
        generation: int | None = None,
        exit_code: int | None = None,
        duration_seconds: Any = None,
        error_code: str = "",
        error: str = "",
        output_tail: str = "",
        patch_ids: list[str] | None = None,
        usage: list[dict[str, Any]] | None = None,
        session_ref: str = "",
        until: datetime | None = None,
        question: dict[str, Any] | None = None,
        due_now: bool = False,
        leaves_worker: bool = False,
        confirmed: bool = False,
    ) -> bool:
        """End the lease with its attempt's outcome, and move task, worker and money on, in one transaction.

        Raises StaleClaim when it has ended already or `generation` is not the task's. Locks in the house's order:
        run, task, attempt, worker, lease.
        """
        return finishing.finish(
            self,
            finishing.Report(
                outcome=outcome,
                cause=cause,
                exit_code=exit_code,
                duration_seconds=duration_seconds,
                error_code=error_code,
                error=error,
                output_tail=output_tail,
                patch_ids=list(patch_ids or []),
                usage=list(usage or []),
                session_ref=session_ref,
                until=until,
                question=question,
                due_now=due_now,
                leaves_worker=leaves_worker,
                confirmed=confirmed,
            ),
            generation=generation,
            by=by,
        )
