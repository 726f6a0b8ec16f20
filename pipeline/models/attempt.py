"""Attempts: what one try of one tool at one task was asked, what it was told, and how it ended."""

from datetime import datetime
from typing import Any, Self

from django.db import models
from django.db.models import F, Max, Q
from django.utils.translation import gettext_lazy as _

from pipeline import events
from pipeline.clock import ClockNow
from pipeline.models.plan import Phase, Workstream
from pipeline.models.project import Project
from pipeline.models.run import Run
from pipeline.models.task import Task
from pipeline.models.tool import Tool
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import FixedOnceEnded, Kept, append_only, in_transaction
from pipeline.states import NOW, InvalidState, Stateful, held_by_postgres

ENDS = {
    "success": "succeeded",
    "task_failed": "failed",
    "infra_lost": "failed",
    "quota_wait": "canceled",
    "budget_stop": "canceled",
    "needs_human": "canceled",
    "cancelled": "canceled",
}


class OfProjectQuerySet(models.QuerySet[Any]):
    """The words for rows that carry their project."""

    def visible_to(self, principal: Any) -> Self:
        """Those of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)


@append_only
class PromptInstance(Kept):
    """What a tool was told: its sections in their fixed order, rendered; the same input renders to the same sha256."""

    NOUN = "prompt"

    template_id = models.CharField(max_length=100)
    target_tool = models.CharField(max_length=64)
    kind = models.CharField(max_length=64)
    sections = models.JSONField()
    rendering = models.JSONField(default=dict)
    text = models.TextField()
    sha256 = models.CharField(max_length=64)
    project = models.ForeignKey(Project, models.PROTECT, null=True, related_name="prompts")
    phase = models.ForeignKey(Phase, models.PROTECT, null=True, related_name="prompts")
    workstream = models.ForeignKey(Workstream, models.PROTECT, null=True, related_name="prompts")
    source_app = models.CharField(max_length=64, blank=True)
    requested_by = models.CharField(max_length=200, blank=True)

    objects = OfProjectQuerySet.as_manager()

    def __str__(self) -> str:
        return f"prompt {self.sha256[:12]}"


@append_only
class ExecutionRequest(Kept):
    """What one attempt is asked to do: effective scope and constraints, tool and command, the commit to build on."""

    NOUN = "request"

    project = models.ForeignKey(Project, models.PROTECT, related_name="requests")
    phase = models.ForeignKey(Phase, models.PROTECT, related_name="requests")
    workstream = models.ForeignKey(Workstream, models.PROTECT, null=True, related_name="requests")
    task = models.ForeignKey(Task, models.PROTECT, null=True, related_name="requests")
    task_kind = models.CharField(max_length=64)
    classification = models.JSONField(default=dict)
    resource_scope = models.JSONField(default=dict)
    constraints = models.JSONField(default=dict)
    prompt = models.ForeignKey(PromptInstance, models.PROTECT, null=True, related_name="requests")
    description = models.TextField(blank=True)
    input = models.JSONField(default=dict)
    tool = models.ForeignKey(Tool, models.PROTECT, related_name="requests")
    command = models.JSONField(default=list)
    base_commit = models.CharField(max_length=64, blank=True)
    routing = models.JSONField(default=dict)
    correlation_id = models.CharField(max_length=64, blank=True)
    trace_flags = models.CharField(max_length=8, blank=True)
    created_by = models.CharField(max_length=200)
    metadata = models.JSONField(default=dict)

    objects = OfProjectQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["project", "-id"], name="request_of_project")]

    def __str__(self) -> str:
        return f"request {self.pk}"


class StepAttemptQuerySet(models.QuerySet["StepAttempt"]):
    """The words for opening and asking about attempts."""

    def visible_to(self, principal: Any) -> Self:
        """The attempts of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(run__project__in=ids)

    def open(self) -> Self:
        """Not ended."""
        return self.filter(state__in=[StepAttempt.State.PENDING, StepAttempt.State.RUNNING])

    def forget_logs(self, before: datetime, limit: int = 500) -> int:
        """Empty the logs of up to `limit` attempts that ended before then; all else of them stays. Answers how many."""
        old = self.filter(ended_at__lt=before).exclude(output_tail="", error_log="").order_by("ended_at")
        found = list(old.values_list("pk", flat=True)[:limit])
        return self.filter(pk__in=found).update(output_tail="", error_log="")

    def begin(
        self,
        run: Run,
        *,
        by: events.Actor,
        start: bool = True,
        task: Task | None = None,
        tool: Tool | None = None,
        request: ExecutionRequest | None = None,
        generation: int | None = None,
        sequence: int | None = None,
        input_prompt: str = "",
        **more: Any,
    ) -> "StepAttempt":
        """The next attempt of `run`, running at once unless `start` is false. The caller holds the run's lock, or none.

        Raises Refused `run_not_running` when it should start in a run that is not running.
        """
        with in_transaction():
            locked = Run.objects.select_for_update(no_key=True).get(pk=run.pk)
            if start and locked.state != Run.State.RUNNING:
                raise Refused(
                    f"Cannot create step for run in state {locked.state}", code="run_not_running", state=locked.state
                )
            if sequence is None:
                sequence = (self.filter(run=run).aggregate(last=Max("sequence"))["last"] or 0) + 1
            elif self.filter(run=run, sequence=sequence).exists():
                raise Refused(f"Step {sequence} of run {run.pk} already exists", code="duplicate_key")
            attempt = StepAttempt(
                run=run,
                task=task,
                tool=tool,
                request=request,
                prompt=request.prompt if request else None,
                generation=generation,
                sequence=sequence,
                input_prompt=input_prompt,
                state=StepAttempt.State.RUNNING if start else StepAttempt.State.PENDING,
                started_at=ClockNow() if start else None,
                **more,
            )
            attempt.save(force_insert=True)
            attempt.refresh_from_db(fields=["started_at"])
            attempt.born(by=by, kind="step.started" if start else "step.created")
            Run.objects.filter(pk=run.pk).update(count_steps=F("count_steps") + 1)
        return attempt


@held_by_postgres
class StepAttempt(Stateful):
    """One try of one tool at one task, or one step of the run itself.

        initial -> pending -> running -> succeeded
        initial -> running -> failed
        pending, running -> canceled

    Immutable once ended.
    """

    NOUN = "step"

    class State(models.TextChoices):
        PENDING = "pending", _("pending")
        RUNNING = "running", _("running")
        SUCCEEDED = "succeeded", _("succeeded")
        FAILED = "failed", _("failed")
        CANCELED = "canceled", _("canceled")

    class Outcome(models.TextChoices):
        SUCCESS = "success", _("success")
        TASK_FAILED = "task_failed", _("task failed")
        INFRA_LOST = "infra_lost", _("infrastructure lost")
        QUOTA_WAIT = "quota_wait", _("quota wait")
        BUDGET_STOP = "budget_stop", _("budget stop")
        NEEDS_HUMAN = "needs_human", _("needs a person")
        CANCELLED = "cancelled", _("cancelled")

    MOVES = {
        State.PENDING: {State.RUNNING, State.CANCELED},
        State.RUNNING: {State.SUCCEEDED, State.FAILED, State.CANCELED},
        State.SUCCEEDED: set(),
        State.FAILED: set(),
        State.CANCELED: set(),
    }
    KINDS = {(State.PENDING, State.RUNNING): "step.started"}
    INITIAL = {State.PENDING, State.RUNNING}
    # Long texts with a retention of their own, and a prompt that has a row of its own.
    UNTOLD = Stateful.UNTOLD | {"input_prompt", "error_log", "output_tail"}

    run = models.ForeignKey(Run, models.PROTECT, related_name="steps")
    task = models.ForeignKey(Task, models.PROTECT, null=True, related_name="attempts")
    sequence = models.PositiveIntegerField()
    tool = models.ForeignKey(Tool, models.PROTECT, null=True, related_name="attempts")
    tool_run_id = models.CharField(max_length=100, blank=True)
    request = models.ForeignKey(ExecutionRequest, models.PROTECT, null=True, related_name="attempts")
    prompt = models.ForeignKey(PromptInstance, models.PROTECT, null=True, related_name="attempts")
    generation = models.PositiveIntegerField(null=True)
    state = models.CharField(max_length=9, choices=State, default=State.PENDING)
    state_reason = models.TextField(blank=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    exit_code = models.IntegerField(null=True)
    # Null until the attempt has ended, which is what INV-15 asks.
    outcome = models.CharField(max_length=11, choices=Outcome, null=True)  # noqa: DJ001
    error_code = models.CharField(max_length=64, blank=True)
    error_fingerprint = models.CharField(max_length=64, blank=True)
    input_prompt = models.TextField(blank=True)
    error_log = models.TextField(blank=True)
    output_tail = models.TextField(blank=True)
    output_patch_ids = models.JSONField(default=list)
    session_ref = models.CharField(max_length=200, blank=True)
    usage_summary = models.JSONField(default=dict)
    metadata = models.JSONField(default=dict)

    objects = StepAttemptQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["run", "sequence"], name="step_sequence_once_per_run"),
            models.CheckConstraint(name="step_sequence_from_one", condition=Q(sequence__gte=1)),
            models.CheckConstraint(
                name="step_outcome_iff_ended",
                condition=Q(state__in=["pending", "running"], outcome=None)
                # A comparison with NULL is NULL, which a CHECK lets pass: so each says that there is an outcome.
                | Q(state="succeeded", outcome__isnull=False, outcome="success")
                | Q(state="failed", outcome__isnull=False, outcome__in=["task_failed", "infra_lost"])
                | Q(
                    state="canceled",
                    outcome__isnull=False,
                    outcome__in=["quota_wait", "budget_stop", "needs_human", "cancelled"],
                ),
            ),
            models.CheckConstraint(
                name="step_time_runs_forward",
                condition=Q(ended_at=None) | Q(started_at=None) | Q(ended_at__gte=F("started_at")),
            ),
        ]
        indexes = [
            models.Index(fields=["task", "-sequence"], name="step_of_task"),
            models.Index(
                fields=["ended_at"],
                name="step_with_log",
                condition=~Q(output_tail="", error_log="") & ~Q(ended_at=None),
            ),
            # Read by claims: how many of a tool's slots are taken.
            models.Index(fields=["tool"], name="step_open_of_tool", condition=Q(state__in=["pending", "running"])),
        ]
        triggers = [
            FixedOnceEnded(
                name="past_is_fixed", states=("succeeded", "failed", "canceled"), logs=("output_tail", "error_log")
            )
        ]

    def __str__(self) -> str:
        return f"step {self.sequence}"

    def correlation(self) -> dict[str, str | None]:
        """Events about an attempt belong to it, its task and its run."""
        return {**self.run.correlation(), "task_id": self.task_id, "step_id": self.pk}

    def start(self, *, by: events.Actor) -> bool:
        """pending -> running."""
        return self.move(self.State.RUNNING, by=by, verb="start step", working=True, started_at=NOW)

    def end(
        self,
        outcome: str,
        *,
        by: events.Actor,
        exit_code: int | None = None,
        reason: str = "",
        **columns: Any,
    ) -> bool:
        """End it with an outcome of domain.md §2.1.10, which decides the state. Raises InvalidField for another."""
        if outcome not in ENDS:
            raise InvalidField("outcome", f"one of {', '.join(ENDS)}, not “{outcome}”")
        return self.move(
            ENDS[outcome],
            by=by,
            reason=reason,
            verb="complete step",
            working=True,
            state_reason=reason,
            outcome=outcome,
            exit_code=exit_code,
            ended_at=NOW,
            **columns,
        )

    def complete(self, status: str, *, by: events.Actor, exit_code: int | None = None, **columns: Any) -> bool:
        """End a step of the run itself as `succeeded` or `failed` (`completed` and `error` mean the same)."""
        status = {"completed": "succeeded", "error": "failed"}.get(status, status)
        if status not in ("succeeded", "failed"):
            raise InvalidState(status, ("succeeded", "failed"))
        outcome = "success" if status == "succeeded" else "task_failed"
        default = 0 if status == "succeeded" else 1
        return self.end(outcome, by=by, exit_code=default if exit_code is None else exit_code, **columns)

    def cancel(self, *, by: events.Actor, reason: str = "") -> bool:
        """Call it off. Quiet."""
        return self.move(
            self.State.CANCELED,
            by=by,
            reason=reason,
            verb="cancel step",
            state_reason=reason,
            outcome="cancelled",
            ended_at=NOW,
        )
