"""Runs: one execution of a workstream, from its tasks' creation to a state in which nothing more happens by itself."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

from django.conf import settings
from django.db import models
from django.db.models import Exists, F, OuterRef, Q
from django.utils.translation import gettext_lazy as _

from pipeline import events
from pipeline.clock import db_now
from pipeline.models.hold import Hold, stored
from pipeline.models.plan import Phase, Workstream, plan_of, specs_of
from pipeline.models.project import Project
from pipeline.questions import ask
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import Counted, in_transaction
from pipeline.states import NOW, InvalidMove, InvalidState, Stateful, held_by_postgres


class RunQuerySet(models.QuerySet["Run"]):
    """The words for opening and asking about runs."""

    def visible_to(self, principal: Any) -> Self:
        """The runs of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def active(self) -> Self:
        """Pending or running."""
        return self.filter(state__in=[Run.State.PENDING, Run.State.RUNNING])

    def finished(self) -> Self:
        """Nothing more happens to these by itself."""
        return self.filter(state__in=Run.FINISHED)

    def of(self, project: Project) -> Self:
        """The runs of one project."""
        return self.filter(project=project)

    def with_open_work(self) -> Self:
        """Those that have a task that has not ended."""
        return self.filter(tasks__isnull=False, tasks__completed_at=None).distinct()

    def open(
        self,
        *,
        by: events.Actor,
        workstream: Workstream | None = None,
        phase: Phase | None = None,
        tasks: Iterable[Mapping[str, Any]] = (),
        trigger_type: str = "manual",
        trigger_ref: str = "",
        requested_by: str = "",
        metadata: Mapping[str, Any] | None = None,
        retry_of: "Run | None" = None,
        pk: str | None = None,
    ) -> "Run":
        """A pending run of `workstream`, or of an ad-hoc task list in `phase`, with a task for each specification.

        `run.created` is its first event. The same `pk` with the same workstream answers with that run. Raises Refused
        `invalid_plan`, `circular_dependency` and their kin, `project_archived`, `duplicate_id`.
        """
        phase = workstream.phase if workstream else phase
        if phase is None:
            raise InvalidField("workstream", "a run executes a workstream, or a task list in a phase")
        if trigger_type not in Run.Trigger.values:
            raise InvalidField("trigger_type", f"one of {', '.join(Run.Trigger.values)}, not “{trigger_type}”")
        phase.project.must_be_live()
        if pk is not None and (known := self.filter(pk=pk).first()):
            if (known.workstream_id, known.phase_id) != (workstream and workstream.pk, phase.pk):
                raise Refused(f"Run {pk} already exists and is another one", code="duplicate_id")
            return known
        if workstream is not None:
            workstream.plan().refuse()
            specs = workstream.specs()
        else:
            given = [dict(spec) for spec in tasks]
            plan_of(given, phase.layers()).refuse()
            specs = specs_of(given)
        with in_transaction():
            run = Run(
                project=phase.project,
                phase=phase,
                workstream=workstream,
                workstream_revision=workstream.revision if workstream else None,
                trigger_type=trigger_type,
                trigger_ref=trigger_ref,
                requested_by=requested_by or by.name,
                retry_of=retry_of,
                metadata=dict(metadata or {}),
                **({} if pk is None else {"pk": pk}),
            )
            run.save(force_insert=True)
            run.born(by=by)
            run.tasks.open_all(run, specs, by=by)
        return run


@held_by_postgres
class Run(Stateful):
    """One execution of a workstream.

        initial -> pending -> running -> succeeded
        running -> failed
        pending, running -> canceled
        running, failed -> quarantined

    A run is opened with its tasks, started, advanced by `orchestrate.advance` until no task is open, and then
    completed.
    `wind_down` ends it early: tasks without a lease are cancelled, leased ones are asked to stop, and the final move
    follows the last lease. Runs are never deleted.
    """

    NOUN = "run"

    class State(models.TextChoices):
        PENDING = "pending", _("pending")
        RUNNING = "running", _("running")
        SUCCEEDED = "succeeded", _("succeeded")
        FAILED = "failed", _("failed")
        QUARANTINED = "quarantined", _("quarantined")
        CANCELED = "canceled", _("canceled")

    class Trigger(models.TextChoices):
        MANUAL = "manual", _("manual")
        CI = "ci", "CI"
        ERROR_PIPELINE = "error_pipeline", _("error pipeline")
        SCHEDULED = "scheduled", _("scheduled")
        OTHER = "other", _("other")

    MOVES = {
        State.PENDING: {State.RUNNING, State.CANCELED},
        State.RUNNING: {State.SUCCEEDED, State.FAILED, State.QUARANTINED, State.CANCELED},
        State.SUCCEEDED: set(),
        State.FAILED: {State.QUARANTINED},
        State.QUARANTINED: set(),
        State.CANCELED: set(),
    }
    KINDS = {(State.PENDING, State.RUNNING): "run.started"}
    INITIAL = {State.PENDING}
    FINISHED = (State.SUCCEEDED, State.FAILED, State.QUARANTINED, State.CANCELED)

    # Raised with the row that is counted, whose event tells it: the run does not repeat it.
    COUNTED = {
        "count_steps": Counted(("step.created", "step.started"), births=True),
        "count_patches_created": Counted(("patch.created",), births=True),
        "count_patches_applied": Counted(("patch.applied",)),
        "count_errors": Counted(("task.failed",)),
    }

    project = models.ForeignKey(Project, models.PROTECT, related_name="runs")
    phase = models.ForeignKey(Phase, models.PROTECT, related_name="runs")
    workstream = models.ForeignKey(Workstream, models.PROTECT, null=True, related_name="runs")
    workstream_revision = models.PositiveIntegerField(null=True)
    request = models.ForeignKey("pipeline.ExecutionRequest", models.PROTECT, null=True, related_name="runs")
    retry_of = models.ForeignKey("self", models.PROTECT, null=True, related_name="retries")
    state = models.CharField(max_length=11, choices=State, default=State.PENDING)
    state_reason = models.TextField(blank=True)
    started_at = models.DateTimeField(null=True)
    ended_at = models.DateTimeField(null=True)
    trigger_type = models.CharField(max_length=14, choices=Trigger, default=Trigger.MANUAL)
    trigger_ref = models.CharField(max_length=200, blank=True)
    requested_by = models.CharField(max_length=200, blank=True)
    ending_to = models.CharField(max_length=11, blank=True)
    ending_reason = models.TextField(blank=True)
    ending_requested_at = models.DateTimeField(null=True)
    exit_code = models.SmallIntegerField(null=True)
    error_message = models.TextField(blank=True)
    count_steps = models.PositiveIntegerField(default=0)
    count_patches_created = models.PositiveIntegerField(default=0)
    count_patches_applied = models.PositiveIntegerField(default=0)
    count_errors = models.PositiveIntegerField(default=0)
    acceptance = models.JSONField(default=dict)
    metadata = models.JSONField(default=dict)

    objects = RunQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                name="run_started_iff_it_ran",
                condition=Q(state="pending", started_at=None)
                | Q(state="canceled")
                | (Q(started_at__isnull=False) & ~Q(state__in=["pending", "canceled"])),
            ),
            models.CheckConstraint(
                name="run_ended_iff_finished",
                condition=Q(state__in=["pending", "running"], ended_at=None)
                | (Q(ended_at__isnull=False) & ~Q(state__in=["pending", "running"])),
            ),
            models.CheckConstraint(
                name="run_success_exits_zero", condition=~Q(state="succeeded") | Q(exit_code__isnull=False, exit_code=0)
            ),
            models.CheckConstraint(
                name="run_time_runs_forward", condition=Q(ended_at=None) | Q(ended_at__gte=F("created_at"))
            ),
        ]
        indexes = [
            models.Index(fields=["project", "-id"], name="run_of_project"),
            models.Index(fields=["state"], name="run_active", condition=Q(state__in=["pending", "running"])),
        ]

    def __str__(self) -> str:
        return f"run {self.pk}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a run belong to it, its workstream and its project."""
        return {"project_id": self.project_id, "workstream_id": self.workstream_id, "run_id": self.pk}

    @property
    def is_finished(self) -> bool:
        """Whether nothing more happens to it by itself."""
        return self.state in self.FINISHED

    @property
    def max_parallel(self) -> int:
        """How many of its tasks may run at once."""
        own = self.workstream.max_parallel if self.workstream else None
        return own or settings.SIGNALBOX_WORKSTREAM_MAX_PARALLEL

    def start(self, *, by: events.Actor) -> bool:
        """Take it up: tasks without open dependencies are queued, the others blocked.

        Raises InvalidMove, Refused `held` or `prerequisites_open`.
        """
        with in_transaction():
            self.project.must_be_live()
            held = Hold.objects.over_run(self).first()
            if held:
                raise Refused(f"Cannot start run: {held} is in force", code="held", hold=held.pk)
            missing = self.open_prerequisites()
            if missing:
                raise Refused(
                    f"Cannot start run: {', '.join(missing)} is not complete",
                    code="prerequisites_open",
                    waiting_for=missing,
                )
            first = (
                not Run.objects.filter(phase=self.phase_id)
                .exclude(state=self.State.PENDING)
                .exclude(pk=self.pk)
                .exists()
            )
            self.move(self.State.RUNNING, by=by, verb="start run", working=True, started_at=NOW)
            if first:
                events.record("phase.entered", self.phase, by=by, run_id=self.pk)
            self.tasks.release_first(by=by)
        return True

    def open_prerequisites(self) -> list[str]:
        """The workstreams and phases that this run's workstream needs and that have not succeeded yet."""
        if self.workstream is None:
            return []
        needed = []
        for name in self.workstream.depends_on:
            phase_key, _slash, key = name.partition("/")
            done = Run.objects.filter(
                workstream__phase__project=self.project_id,
                workstream__phase__key=phase_key,
                workstream__key=key,
                state=self.State.SUCCEEDED,
            )
            if not done.exists():
                needed.append(name)
        for key in self.phase.depends_on:
            waiting = Workstream.objects.enabled().filter(phase__project=self.project_id, phase__key=key)
            succeeded = Run.objects.filter(workstream=OuterRef("pk"), state=self.State.SUCCEEDED)
            if waiting.exclude(Exists(succeeded)).exists():
                needed.append(key)
        return needed

    def complete(self, status: str, *, by: events.Actor, exit_code: int | None = None, error: str = "") -> bool:
        """End it as `succeeded` or `failed`; the exit code defaults to 0 or 1.

        Raises InvalidState for another status, InvalidMove, and Refused `run_has_open_work` while a task, step or patch
        is open (or, for failed, a patch is in quarantine: that run ends quarantined).
        """
        if status not in (self.State.SUCCEEDED, self.State.FAILED):
            raise InvalidState(status, (self.State.SUCCEEDED, self.State.FAILED))
        with in_transaction():
            Run.objects.select_for_update(no_key=True).get(pk=self.pk)
            self.must_have_no_open_work()
            for objection in ask("run.complete", run=self, status=status):
                raise Refused(f"Cannot complete run: {objection}", code="run_has_open_work")
            self.move(
                status,
                by=by,
                reason=error,
                verb="complete run",
                working=True,
                only_from=(self.State.RUNNING,),
                ended_at=NOW,
                exit_code=(0 if status == self.State.SUCCEEDED else 1) if exit_code is None else exit_code,
                error_message=error,
                state_reason=error,
            )
            self._tell_phase(by)
        return True

    def _tell_phase(self, by: events.Actor) -> None:
        if self.state != self.State.SUCCEEDED or self.workstream_id is None:
            return
        succeeded = Run.objects.filter(workstream=OuterRef("pk"), state=self.State.SUCCEEDED)
        if not self.phase.workstreams.enabled().exclude(Exists(succeeded)).exists():
            events.record("phase.completed", self.phase, by=by, run_id=self.pk)

    def must_have_no_open_work(self) -> None:
        """Raises Refused `run_has_open_work` while a task or step has not ended."""
        if self.tasks.unfinished().exists() or self.steps.open().exists():
            raise Refused("Run has open steps or tasks", code="run_has_open_work")

    def cancel(self, *, by: events.Actor, reason: str = "") -> bool:
        """Call it off; with live leases it winds down first. Quiet."""
        return self.wind_down(self.State.CANCELED, by=by, reason=reason or f"cancelled by {by}")

    def quarantine(self, *, by: events.Actor, reason: str) -> bool:
        """Set it aside with a reason; with live leases it winds down first. Quiet."""
        return self.wind_down(self.State.QUARANTINED, by=by, reason=need_reason(reason))

    def wind_down(self, to: str, *, by: events.Actor, reason: str) -> bool:
        """Bring it to an early end as `to`: canceled, failed or quarantined.

        Tasks that hold no lease are cancelled, every leased one is asked to stop, and the final move is made when the
        last lease has ended (at once when there is none). Quiet when it is there, or on its way there, already.
        """
        if to not in (self.State.CANCELED, self.State.FAILED, self.State.QUARANTINED):
            raise InvalidState(to, (self.State.CANCELED, self.State.FAILED, self.State.QUARANTINED))
        with in_transaction():
            current = Run.objects.select_for_update(no_key=True).get(pk=self.pk)
            if current.state == to or current.ending_to == to:
                return False
            if not self.can_move(current.state, to):
                raise InvalidMove(current, current.state, to, verb="wind down run", allowed=self.MOVES[current.state])
            if current.state in self.FINISHED:
                current.finish(to, by=by, reason=reason)
            else:
                columns = {"ending_to": to, "ending_reason": reason, "ending_requested_at": db_now()}
                Run.objects.filter(pk=self.pk).update(**columns)
                events.record(
                    "run.winding_down",
                    self,
                    by=by,
                    reason=reason,
                    data={"to": to},
                    before={name: getattr(current, name) for name in columns},
                    after=columns,
                )
                for task in self.tasks.unfinished().order_by("pk"):
                    task.cancel(by=by, reason=reason)
                current.refresh_from_db()
                current.finish_winding_down(by=by)
        self.refresh_from_db()
        return True

    def finish_winding_down(self, *, by: events.Actor) -> bool:
        """Make the final move of a run that winds down, once no task is open; False while one is, or a patch
        keeps it.
        """
        if not self.ending_to or self.state not in (self.State.PENDING, self.State.RUNNING):
            return False
        try:
            self.must_have_no_open_work()
        except Refused:
            return False
        to = self.ending_to
        if to == self.State.FAILED:
            objections = ask("run.complete", run=self, status=to)
            if "patch_open" in objections:
                return False
            if "patch_quarantined" in objections:
                to = self.State.QUARANTINED
        return self.finish(to, by=by, reason=self.ending_reason)

    def finish(self, to: str, *, by: events.Actor, reason: str) -> bool:
        """The final move itself. The first end is kept: a failed run that becomes quarantined ended when it failed."""
        columns: dict[str, Any] = {"state_reason": reason}
        if self.ended_at is None:
            columns["ended_at"] = NOW
        if to != self.State.CANCELED:
            columns["error_message"] = reason
        if to == self.State.FAILED:
            columns["exit_code"] = 1
        return self.move(to, by=by, reason=reason, verb="end run", **columns)

    def hold(self, *, by: events.Actor, reason: str) -> Any:
        """Pause it: a Hold over the run. Raises Refused `run_finished`."""
        if self.is_finished:
            raise Refused("Run is finished", code="run_finished", state=self.state)
        return Hold.objects.place("run", self.pk, reason=reason, by=by, project=self.project, holder=by.name)

    def release(self, *, by: events.Actor, reason: str) -> bool:
        """Release every manual hold over the run; False when there is none."""
        holds = Hold.objects.active().filter(scope_kind="run", scope_id=stored(self.pk), kind="manual").order_by("pk")
        released = [hold.release(by=by, reason=need_reason(reason)) for hold in holds]
        return any(released)

    def retry(self, *, by: events.Actor, newest: bool = True) -> "Run":
        """A new run of the same workstream, in its newest revision, with `retry_of` this one."""
        if not self.is_finished:
            raise Refused(
                f"Run {self.pk} is {self.state}, so it cannot be retried yet", code="invalid_move", state=self.state
            )
        specs = [] if self.workstream else [task.spec for task in self.tasks.order_by("sequence")]
        return Run.objects.open(
            by=by, workstream=self.workstream, phase=self.phase, tasks=specs, retry_of=self, metadata=self.metadata
        )
