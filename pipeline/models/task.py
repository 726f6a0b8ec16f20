"""Tasks: what a run has to get done, in which order, and what becomes of each."""

from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, F, OuterRef, Q
from django.utils.translation import gettext_lazy as _

from pipeline import constraints, events, retry, taskspec
from pipeline.clock import ClockNow, db_now
from pipeline.models.hold import Hold
from pipeline.models.project import Project
from pipeline.models.run import Run
from pipeline.questions import ask
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import Immutable, Kept, NeverFalls, in_transaction
from pipeline.schedule import Graph
from pipeline.states import NOW, InvalidMove, Plus, Stateful, held_by_postgres

DEFAULT_OUTCOME_TEXT = 2000

# Outcome of an attempt that waits -> the kind of hold over its task, and who can end it (domain.md §2.1.10, §3.6).
MAX_QUOTA_WAIT = timedelta(days=7)
HOLDS_FOR = {
    "quota_wait": ("quota", "quota", "provider"),
    "budget_stop": ("budget", "budget", "approvers"),
    "needs_human": ("question", "user", "approvers"),
}


class TaskQuerySet(models.QuerySet["Task"]):
    """The words for making and asking about tasks."""

    def visible_to(self, principal: Any) -> Self:
        """The tasks of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(run__project__in=ids)

    def unfinished(self) -> Self:
        """Those that have not ended."""
        return self.exclude(state__in=Task.ENDED)

    def blocked(self) -> Self:
        """Waiting for others."""
        return self.filter(state=Task.State.BLOCKED)

    def due(self) -> Self:
        """Retrying, and their time has come by the database's clock."""
        return self.filter(state=Task.State.RETRYING, retry_at__lte=ClockNow())

    def with_open_needs(self) -> Self:
        """Those that need a task that is not completed."""
        return self.filter(Exists(TaskDependency.objects.unmet().filter(task=OuterRef("pk"))))

    def stuck(self) -> Self:
        """Running beyond their time limit."""
        limit = models.ExpressionWrapper(F("timeout_seconds") * timedelta(seconds=1), models.DurationField())
        age = models.ExpressionWrapper(ClockNow() - F("started_at"), models.DurationField())
        return self.filter(state=Task.State.RUNNING).alias(age=age, limit=limit).filter(age__gt=F("limit"))

    def open_all(self, run: Run, specs: Iterable[Mapping[str, Any]], *, by: events.Actor) -> "list[Task]":
        """A pending task of `run` for each normalised specification, with their dependencies, each recorded."""
        specs = list(specs)
        layers = run.workstream.layers() if run.workstream else run.phase.layers()
        graph = Graph()
        tasks: dict[str, Task] = {}
        for sequence, spec in enumerate(specs, 1):
            layer = constraints.Layer("task", taskspec.delta_values(spec))
            effective = constraints.resolve([*layers, layer], strict=False)
            touches = [*effective.values.get("write", []), *effective.values.get("create", [])]
            graph.from_spec(spec, effective.scope())
            tasks[spec["task_id"]] = Task(
                run=run,
                project_id=run.project_id,
                key=spec["task_id"],
                name=spec["name"],
                kind=spec["kind"],
                spec=spec,
                sequence=sequence,
                priority=spec["priority"],
                is_critical=spec["is_critical"],
                max_attempts=spec["execution"]["max_attempts"],
                timeout_seconds=spec["execution"]["timeout_seconds"],
                touches=touches,
                conflict_group=spec.get("conflict_group") or "",
            )
        for task in tasks.values():
            task.score = round(graph.score(task.key))
            task.save(force_insert=True)
            task.born(by=by)
        for spec in specs:
            for needed in spec.get("depends_on") or []:
                TaskDependency(task=tasks[spec["task_id"]], needs=tasks[needed]).save(force_insert=True)
        return list(tasks.values())

    def release_first(self, *, by: events.Actor) -> None:
        """Queue the pending tasks that need nothing, block the others. The caller holds the run's lock."""
        for task in self.filter(state=Task.State.PENDING).order_by("pk"):
            if task.open_needs():
                task.block(by=by)
            else:
                task.enqueue(by=by)


@held_by_postgres
class Task(Stateful):
    """One piece of a run's work.

        initial -> pending -> queued -> running -> validating -> completed
        pending -> blocked -> pending
        running -> retrying -> queued
        validating -> retrying
        running, validating -> failed
        pending, blocked, queued, retrying, validating, running -> cancelled

    A queued task is claimed, which gives it a lease, an attempt and a new generation; its attempt delivers, and it
    waits
    for its patch to land and its gates to pass (validating); a failure is retried or repaired within its limits.
    `spec` is the snapshot of its specification.
    """

    NOUN = "task"

    class State(models.TextChoices):
        PENDING = "pending", _("pending")
        BLOCKED = "blocked", _("blocked")
        QUEUED = "queued", _("queued")
        RUNNING = "running", _("running")
        VALIDATING = "validating", _("validating")
        RETRYING = "retrying", _("retrying")
        COMPLETED = "completed", _("completed")
        FAILED = "failed", _("failed")
        CANCELLED = "cancelled", _("cancelled")

    MOVES = {
        State.PENDING: {State.QUEUED, State.BLOCKED, State.CANCELLED},
        State.BLOCKED: {State.PENDING, State.CANCELLED},
        State.QUEUED: {State.RUNNING, State.CANCELLED},
        State.RUNNING: {State.VALIDATING, State.RETRYING, State.FAILED, State.CANCELLED},
        State.VALIDATING: {State.COMPLETED, State.RETRYING, State.FAILED, State.CANCELLED},
        State.RETRYING: {State.QUEUED, State.CANCELLED},
        State.COMPLETED: set(),
        State.FAILED: set(),
        State.CANCELLED: set(),
    }
    KINDS = {
        (State.QUEUED, State.RUNNING): "task.started",
        (State.BLOCKED, State.PENDING): "task.unblocked",
    }
    INITIAL = {State.PENDING}
    ENDED = (State.COMPLETED, State.FAILED, State.CANCELLED)

    run = models.ForeignKey(Run, models.PROTECT, related_name="tasks")
    # The run's, here too: claims are handed out project by project, out of an index.
    project = models.ForeignKey(Project, models.PROTECT, related_name="+")
    key = models.CharField(max_length=80)
    name = models.CharField(max_length=200)
    kind = models.CharField(max_length=64)
    spec = models.JSONField()
    state = models.CharField(max_length=10, choices=State, default=State.PENDING)
    state_reason = models.TextField(blank=True)
    sequence = models.PositiveIntegerField()
    priority = models.PositiveSmallIntegerField(default=5)
    score = models.IntegerField(default=0)
    is_critical = models.BooleanField(default=True)
    max_attempts = models.PositiveIntegerField(default=3)
    timeout_seconds = models.PositiveIntegerField(default=1800)
    touches = models.JSONField(default=list)
    conflict_group = models.CharField(max_length=64, blank=True)
    generation = models.PositiveIntegerField(default=0)
    count_attempts = models.PositiveIntegerField(default=0)
    count_failures = models.PositiveIntegerField(default=0)
    count_infra = models.PositiveIntegerField(default=0)
    count_repairs = models.PositiveIntegerField(default=0)
    retry_at = models.DateTimeField(null=True)
    blocked_by = models.JSONField(default=list)
    last_outcome = models.CharField(max_length=12, blank=True)
    last_error = models.TextField(blank=True)
    error_fingerprint = models.CharField(max_length=64, blank=True)
    count_same_error = models.PositiveIntegerField(default=0)
    session_ref = models.CharField(max_length=200, blank=True)
    started_at = models.DateTimeField(null=True)
    completed_at = models.DateTimeField(null=True)
    retry_of = models.ForeignKey("self", models.PROTECT, null=True, related_name="retries")

    objects = TaskQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["run", "key"], name="task_key_once_per_run"),
            models.CheckConstraint(name="task_priority_one_to_ten", condition=Q(priority__gte=1, priority__lte=10)),
            models.CheckConstraint(name="task_max_attempts_from_one", condition=Q(max_attempts__gte=1)),
            models.CheckConstraint(name="task_timeout_from_one", condition=Q(timeout_seconds__gte=1)),
            models.CheckConstraint(
                name="task_retry_at_iff_retrying",
                condition=Q(state="retrying", retry_at__isnull=False) | (~Q(state="retrying") & Q(retry_at=None)),
            ),
            models.CheckConstraint(
                name="task_completed_at_iff_ended",
                condition=Q(state__in=["completed", "failed", "cancelled"], completed_at__isnull=False)
                | (~Q(state__in=["completed", "failed", "cancelled"]) & Q(completed_at=None)),
            ),
        ]
        triggers = [
            Immutable(name="snapshot_fixed", fields=("run", "project", "key", "sequence", "spec", "is_critical")),
            NeverFalls(name="generation_rises", column="generation"),
        ]
        indexes = [
            # Read by claims: the next task to hand out, in the order of the claim.
            models.Index(
                fields=["project", "-score", "sequence", "id"], name="task_claim", condition=Q(state="queued")
            ),
            models.Index(fields=["project"], name="task_running", condition=Q(state="running")),
            models.Index(fields=["retry_at"], name="task_due", condition=Q(state="retrying")),
            models.Index(fields=["run", "state"], name="task_of_run"),
            models.Index(fields=["conflict_group"], name="task_conflict", condition=Q(state="running")),
        ]

    def __str__(self) -> str:
        return f"task {self.key}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a task belong to it and its run."""
        return {**self.run.correlation(), "task_id": self.pk}

    @property
    def requires_patch(self) -> bool:
        """Whether it delivers a patch."""
        return bool(self.spec.get("requires_patch", False))

    def open_needs(self) -> list[str]:
        """The keys of the tasks that it needs and that are not completed."""
        return list(
            TaskDependency.objects.unmet()
            .filter(task=self)
            .order_by("needs__sequence")
            .values_list("needs__key", flat=True)
        )

    def enqueue(self, *, by: events.Actor) -> bool:
        """pending -> queued. Raises Refused `dependencies_open` while it needs another."""
        waiting = self.open_needs()
        if waiting:
            raise Refused(
                f"Cannot queue task: it needs {', '.join(waiting)}", code="dependencies_open", waiting_for=waiting
            )
        return self.move(self.State.QUEUED, by=by, verb="queue task", working=True, only_from=(self.State.PENDING,))

    def block(self, *, by: events.Actor) -> bool:
        """pending -> blocked, with the keys of what it waits for."""
        return self.move(self.State.BLOCKED, by=by, verb="block task", working=True, blocked_by=self.open_needs())

    def unblock(self, *, by: events.Actor) -> bool:
        """blocked -> pending, once nothing that it needs is open. Raises Refused `dependencies_open`."""
        waiting = self.open_needs()
        if waiting:
            raise Refused(
                f"Cannot unblock task: it needs {', '.join(waiting)}", code="dependencies_open", waiting_for=waiting
            )
        return self.move(self.State.PENDING, by=by, verb="unblock task", working=True, blocked_by=[])

    def claim(self, *, by: events.Actor) -> int:
        """queued -> running under a new generation, which is returned. The caller grants the lease (workers.claims)."""
        self.move(
            self.State.RUNNING,
            by=by,
            verb="assign task",
            working=True,
            generation=Plus(1),
            count_attempts=Plus(1),
            started_at=NOW,
        )
        return self.generation

    def deliver(self, *, by: events.Actor, session_ref: str = "") -> bool:
        """running -> validating: its attempt has succeeded."""
        return self.move(
            self.State.VALIDATING,
            by=by,
            verb="complete task",
            working=True,
            last_outcome="success",
            session_ref=session_ref,
        )

    def complete(self, *, by: events.Actor) -> bool:
        """validating -> completed. Raises Refused with what is missing while a patch or gate is open."""
        with in_transaction():
            for verdict in ask("task.complete", task=self):
                if verdict.status != "ready":
                    raise Refused(f"Cannot complete task: {verdict.reason}", code="gates_not_satisfied")
            return self.move(self.State.COMPLETED, by=by, verb="complete task", working=True, completed_at=NOW)

    def settle(
        self,
        outcome: str,
        *,
        by: events.Actor,
        error_code: str = "",
        error: str = "",
        session_ref: str = "",
        until: datetime | None = None,
        question: dict[str, Any] | None = None,
        due_now: bool = False,
        ending: bool = False,
    ) -> str:
        """What follows an attempt that did not succeed, or a delivery that did not land: retry, repair, fail or cancel.

        `outcome` is one of domain.md §2.1.10; `ending` says that a person or a wind-down asked for the end, so that the
        task is cancelled and not tried again. `until` ends a wait for quota, `question` is what a person is asked.
        Returns the state taken; a stale report leaves the task as it is.
        """
        fingerprint = retry.fingerprint(error_code, error) if retry.OUTCOMES[outcome].counts else ""
        same = self.count_same_error + 1 if fingerprint and fingerprint == self.error_fingerprint else 1
        following = retry.after(
            outcome,
            counts=retry.Counts(
                count_failures=self.count_failures,
                count_infra=self.count_infra,
                count_repairs=self.count_repairs,
                same_fingerprint=same if fingerprint else 0,
            ),
            limits=self._limits(),
            shutdown=outcome == "cancelled" and not ending,
        )
        if following.state is None:
            return self.state
        state = "cancelled" if ending else following.state
        reason = "Cancelled" if ending else following.reason
        columns: dict[str, Any] = {
            "last_outcome": outcome,
            "last_error": error[:DEFAULT_OUTCOME_TEXT],
            # What was lost before it could say where it stood leaves the session of the attempt before.
            "session_ref": session_ref or self.session_ref,
        }
        if fingerprint:
            columns |= {"error_fingerprint": fingerprint, "count_same_error": same}
        if following.counted:
            columns[following.counted] = Plus(1)
        if state == "retrying":
            columns["retry_at"] = db_now() + (timedelta(0) if due_now else following.wait or timedelta(0))
        else:
            columns["completed_at"] = NOW
        self.move(state, by=by, reason=reason, verb="complete task", working=True, state_reason=reason, **columns)
        if state == "retrying" and following.wait is None:
            self._wait_for(outcome, error or reason, by, until=until, question=question)
        if state == "failed":
            self._count_error()
        return str(state)

    def _count_error(self) -> None:
        """One more failed task of the run, however it came to fail."""
        Run.objects.filter(pk=self.run_id).update(count_errors=F("count_errors") + 1)

    def _limits(self) -> retry.Limits:
        backoff = self.spec["execution"]["retry"]
        return retry.Limits(
            max_attempts=self.max_attempts,
            max_infra_retries=settings.SIGNALBOX_TASK_MAX_INFRA_RETRIES,
            max_repairs=settings.SIGNALBOX_TASK_MAX_REPAIRS,
            fingerprint_trips=settings.SIGNALBOX_SAME_ERROR_TRIPS_AT,
            mode=backoff.get("mode", "exponential"),
            base_seconds=settings.SIGNALBOX_RETRY_BASE_SECONDS,
            factor=settings.SIGNALBOX_RETRY_FACTOR,
            cap_seconds=settings.SIGNALBOX_RETRY_CAP_SECONDS,
        )

    def _wait_for(
        self,
        outcome: str,
        reason: str,
        by: events.Actor,
        *,
        until: datetime | None = None,
        question: dict[str, Any] | None = None,
    ) -> None:
        """Quota, money and questions are waited for under a Hold over the task, which a person or the system ends.

        A tool's word on when its quota is back is believed for a week at most.
        """
        kind, holder_kind, holder = HOLDS_FOR[outcome]
        if outcome != "quota_wait":
            until = None
        elif until is not None:
            until = min(max(until, db_now()), db_now() + MAX_QUOTA_WAIT)
        Hold.objects.place(
            "task",
            self.pk,
            kind=kind,
            reason=reason,
            by=by,
            project=self.run.project,
            holder_kind=holder_kind,
            holder=holder,
            until=until,
            question=question if outcome == "needs_human" else None,
        )

    def requeue(self, *, by: events.Actor) -> bool:
        """retrying -> queued. The caller has seen that its time has come (`due()`) and holds the run's lock."""
        return self.move(
            self.State.QUEUED, by=by, verb="queue task", working=True, only_from=(self.State.RETRYING,), retry_at=None
        )

    def retry_now(self, *, by: events.Actor, reason: str = "") -> bool:
        """Make a retrying task due now; False when it is due already. Raises InvalidMove in any other state."""
        if self.state != self.State.RETRYING:
            raise InvalidMove(self, self.state, "queued", verb="retry task", allowed=self.MOVES[self.state])
        with in_transaction():
            current = Task.objects.select_for_update(no_key=True).get(pk=self.pk)
            now = db_now()
            if current.state != self.State.RETRYING or current.retry_at is None or current.retry_at <= now:
                return False
            Task.objects.filter(pk=self.pk).update(retry_at=now)
            events.record(
                "override.used",
                self,
                by=by,
                reason=need_reason(reason or "retry now"),
                data={"verb": "retry"},
                before={"retry_at": current.retry_at},
                after={"retry_at": now},
            )
        return True

    def cancel(self, *, by: events.Actor, reason: str, cause: str = "") -> bool:
        """Call it off. A running task's lease is asked to stop; the move follows when that lease has ended. Quiet."""
        with in_transaction():
            current = Task.objects.select_for_update(no_key=True).get(pk=self.pk)
            if current.state == self.State.RUNNING and any(ask("task.stop", task=current, by=by, reason=reason)):
                return False
            self.state = current.state
            return self.move(
                self.State.CANCELLED,
                by=by,
                reason=reason,
                verb="cancel task",
                state_reason=cause or reason,
                retry_at=None,
                completed_at=NOW,
            )

    def force_fail(self, *, by: events.Actor, reason: str) -> bool:
        """Override: running or validating -> failed. Raises ReasonRequired."""
        reason = need_reason(reason)
        with in_transaction():
            current = Task.objects.select_for_update(no_key=True).get(pk=self.pk)
            if current.state == self.State.RUNNING:
                ask("task.stop", task=current, by=by, reason=reason)
                raise Refused(
                    "Cannot fail task: its lease was asked to stop; fail it when the lease has ended",
                    code="invalid_move",
                )
            events.record("override.used", self, by=by, reason=reason, data={"verb": "force_fail"})
            self.move(
                self.State.FAILED,
                by=by,
                reason=reason,
                verb="fail task",
                working=True,
                state_reason=reason,
                completed_at=NOW,
            )
            self._count_error()
        return True

    def add_dependency(self, needs: "Task", *, by: events.Actor, reason: str) -> "TaskDependency":
        """From now on it needs `needs` as well. Raises Refused `circular_dependency`, `unknown_dependency`,
        InvalidMove.
        """
        with in_transaction():
            Run.objects.select_for_update(no_key=True).get(pk=self.run_id)
            self.refresh_from_db()
            if needs.run_id != self.run_id:
                raise InvalidField(
                    "needs", f"Unknown dependency: {needs.key} is of another run", code="unknown_dependency"
                )
            if self.state not in (self.State.PENDING, self.State.BLOCKED, self.State.RETRYING):
                raise InvalidMove(self, self.state, "blocked", verb="add dependency", allowed=self.MOVES[self.state])
            if self.pk in TaskDependency.objects.closure(needs):
                raise InvalidField(
                    "needs", f"Circular dependency: {self.key} → {needs.key} → {self.key}", code="circular_dependency"
                )
            dependency, created = TaskDependency.objects.get_or_create(
                task=self, needs=needs, defaults={"kind": "dynamic"}
            )
            if created:
                events.record("task.dependency_added", self, by=by, reason=reason, data={"needs": needs.key})
        return dependency


class TaskDependencyQuerySet(models.QuerySet["TaskDependency"]):
    """The words for asking about dependencies."""

    def unmet(self) -> Self:
        """Those whose needed task is not completed."""
        return self.exclude(needs__state=Task.State.COMPLETED)

    def closure(self, task: Task) -> set[str]:
        """The ids of `task` and of everything that it needs, near and far."""
        edges: dict[str, list[str]] = {}
        for one, other in self.filter(task__run=task.run_id).values_list("task_id", "needs_id"):
            edges.setdefault(one, []).append(other)
        seen, waiting = {task.pk}, [task.pk]
        while waiting:
            for needed in edges.get(waiting.pop(), []):
                if needed not in seen:
                    seen.add(needed)
                    waiting.append(needed)
        return seen


class TaskDependency(Kept):
    """`task` cannot start before `needs` is completed."""

    NOUN = "task_dependency"

    class Kind(models.TextChoices):
        DIRECT = "direct", _("direct")
        RESOURCE = "resource", _("resource")
        GATE = "gate", _("gate")
        PHASE = "phase", _("phase")
        DYNAMIC = "dynamic", _("dynamic")

    task = models.ForeignKey(Task, models.PROTECT, related_name="dependencies")
    needs = models.ForeignKey(Task, models.PROTECT, related_name="needed_by")
    kind = models.CharField(max_length=8, choices=Kind, default=Kind.DIRECT)

    objects = TaskDependencyQuerySet.as_manager()

    class Meta:
        verbose_name_plural = _("task dependencies")
        constraints = [
            models.UniqueConstraint(fields=["task", "needs"], name="taskdependency_once"),
            models.CheckConstraint(name="taskdependency_not_itself", condition=~Q(task=F("needs"))),
        ]

    def __str__(self) -> str:
        return f"{self.task.key} needs {self.needs.key}"
