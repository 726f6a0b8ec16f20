"""Runs, their tasks and their steps, over HTTP: opened, started, ended and looked at."""

from typing import Any

from django.db import transaction
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline.api.blockers import BlockerSerializer
from pipeline.api.blockers import answer as answer_blocker
from pipeline.api.events import EventSerializer, answer_events
from pipeline.api.holds import HoldSerializer
from pipeline.clock import db_now
from pipeline.models import Event, Phase, Run, StepAttempt, Task, Tool, Workstream
from pipeline.progress import Progress, TaskProgress
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rest import (
    Endpoint,
    Filters,
    IdField,
    Listed,
    Nothing,
    ProjectFilter,
    Reason,
    Ref,
    Strict,
    StrictModel,
    etag,
)

SMALLEST, LARGEST = -(2**15), 2**15 - 1  # exit codes: what the column of a run holds


class RunSerializer(StrictModel):
    """One execution of a workstream."""

    class Meta:
        model = Run
        fields = (
            "id", "version", "created_at", "updated_at", "project", "phase", "workstream", "workstream_revision",
            "request", "retry_of", "state", "state_reason", "started_at", "ended_at", "trigger_type", "trigger_ref",
            "requested_by", "ending_to", "ending_reason", "ending_requested_at", "exit_code", "error_message",
            "count_steps", "count_patches_created", "count_patches_applied", "count_errors", "acceptance", "metadata",
        )  # fmt: skip
        read_only_fields = fields


class RunRequest(Strict):
    """What to run: a workstream, or a task list in a phase. It starts at once unless `start` is false."""

    id = IdField(required=False)
    workstream = Ref(queryset=Workstream.objects.select_related("phase__project"), required=False, default=None)
    phase = Ref(queryset=Phase.objects.select_related("project"), required=False, default=None)
    tasks = serializers.ListField(child=serializers.DictField(), required=False, min_length=1, max_length=1000)
    start = serializers.BooleanField(required=False, default=True)
    trigger_type = serializers.ChoiceField(choices=Run.Trigger.choices, required=False, default="manual")
    trigger_ref = serializers.CharField(required=False, allow_blank=True, default="", max_length=200)
    metadata = serializers.DictField(required=False)

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """A workstream alone, or a phase with tasks."""
        if given["workstream"] is not None and (given["phase"] is not None or "tasks" in given):
            raise InvalidField("workstream", "a workstream brings its phase and its tasks itself")
        if given["workstream"] is None and (given["phase"] is None or "tasks" not in given):
            raise InvalidField("workstream", "name a workstream, or a phase and its tasks")
        return given


class RunFilters(Filters):
    """By where a run belongs and how it stands."""

    project = ProjectFilter("project")

    class Meta:
        model = Run
        fields = ("phase", "workstream", "state", "trigger_type", "retry_of", "created_at", "started_at", "ended_at")


class RunCompletion(Strict):
    """How a run ended."""

    status = serializers.CharField(max_length=20, help_text="succeeded or failed")
    exit_code = serializers.IntegerField(
        required=False, allow_null=True, default=None, min_value=SMALLEST, max_value=LARGEST
    )
    error = serializers.CharField(required=False, allow_blank=True, default="", max_length=20_000)

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """What has succeeded exits with 0."""
        if given["status"] in ("succeeded", "completed") and given["exit_code"] not in (None, 0):
            raise InvalidField("exit_code", "what has succeeded exits with 0")
        return given


class Again(Strict):
    """Whether the new run starts at once."""

    start = serializers.BooleanField(required=False, default=True)


class ProgressSerializer(serializers.Serializer[Any]):
    """How far a run is. Percentages lie within 0 and 100; times are null while they are unknown."""

    at = serializers.DateTimeField()
    total = serializers.IntegerField()
    completed = serializers.IntegerField()
    failed = serializers.IntegerField()
    cancelled = serializers.IntegerField()
    running = serializers.IntegerField()
    pending = serializers.IntegerField()
    percent_done = serializers.FloatField()
    percent_succeeded = serializers.FloatField()
    elapsed_seconds = serializers.FloatField(allow_null=True)
    remaining_seconds = serializers.FloatField(allow_null=True)
    eta = serializers.DateTimeField(allow_null=True)


class RunEndpoint(Listed, Endpoint):
    """Runs: POST opens one; verbs move it."""

    queryset = Run.objects.select_related("project", "phase__project", "workstream__phase__project")
    serializer_class = RunSerializer
    filterset_class = RunFilters
    ordering_fields = ("created_at",)
    heavy = ("acceptance", "metadata", "error_message")
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "create": "operator",
        "start": "operator",
        "complete": "operator",
        "cancel": "operator",
        "quarantine": "operator",
        "hold": "operator",
        "release": "approver",
        "retry": "operator",
        "progress": "viewer",
        "events": "viewer",
    }
    other_parameters = ("after", "limit")

    @extend_schema(request=RunRequest, responses={201: RunSerializer, 200: RunSerializer})
    def create(self, request: Request) -> Response:
        """Open a run and start it, both or neither: 201. The same `id` for the same work: 200 with that run."""
        given = self.body(RunRequest)
        phase = given["workstream"].phase if given["workstream"] else given["phase"]
        self.must_in(phase.project_id)
        pk = given.get("id")
        known = pk is not None and Run.objects.filter(pk=pk).exists()
        with transaction.atomic():
            run = Run.objects.open(
                by=self.by,
                workstream=given["workstream"],
                phase=given["phase"],
                tasks=given.get("tasks", []),
                trigger_type=given["trigger_type"],
                trigger_ref=given["trigger_ref"],
                metadata=given.get("metadata"),
                pk=pk,
            )
            if known and run.phase_id != phase.pk:
                raise Refused(f"Run {pk} already exists and is another one", code="duplicate_id")
            if given["start"] and not known:
                run.start(by=self.by)
        return self.reply(run, 200 if known else 201, Location=f"{request.path}{run.pk}/")

    @extend_schema(request=Nothing, responses=RunSerializer)
    @action(detail=True, methods=["post"])
    def start(self, request: Request, id: str) -> Response:
        """Take it up: its first tasks are queued. 409 `invalid_move`, `held` or `prerequisites_open`."""
        self.body(Nothing)
        run = self.get_object()
        run.start(by=self.by)
        return self.reply(run)

    @extend_schema(request=RunCompletion, responses=RunSerializer)
    @action(detail=True, methods=["post"])
    def complete(self, request: Request, id: str) -> Response:
        """End it as succeeded or failed. 409 `invalid_move`, or `run_has_open_work` while anything is open."""
        run, given = self.get_object(), self.body(RunCompletion)
        run.complete(given["status"], by=self.by, exit_code=given["exit_code"], error=given["error"])
        return self.reply(run)

    @extend_schema(request=Reason, responses=RunSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, id: str) -> Response:
        """Call it off; with live leases it winds down first. Quiet."""
        run = self.get_object()
        run.cancel(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(run)

    @extend_schema(request=Reason, responses=RunSerializer)
    @action(detail=True, methods=["post"])
    def quarantine(self, request: Request, id: str) -> Response:
        """Set it aside, with a reason; with live leases it winds down first. Quiet."""
        run = self.get_object()
        run.quarantine(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(run)

    @extend_schema(request=Reason, responses={201: HoldSerializer})
    @action(detail=True, methods=["post"])
    def hold(self, request: Request, id: str) -> Response:
        """Pause it, with a reason: 201 with the hold. 409 `run_finished`."""
        run = self.get_object()
        hold = run.hold(by=self.by, reason=self.body(Reason)["reason"])
        hold.refresh_from_db()
        return Response(HoldSerializer(hold).data, status=201, headers={"ETag": etag(hold)})

    @extend_schema(request=Reason, responses=RunSerializer)
    @action(detail=True, methods=["post"])
    def release(self, request: Request, id: str) -> Response:
        """Release every manual hold over it, with a reason. Quiet."""
        run = self.get_object()
        run.release(by=self.by, reason=need_reason(self.body(Reason)["reason"]))
        return self.reply(run)

    @extend_schema(request=Again, responses={201: RunSerializer})
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, id: str) -> Response:
        """Run the same work again, in its newest revision: 201 with the new run. 409 `invalid_move` before its end."""
        run, given = self.get_object(), self.body(Again)
        with transaction.atomic():
            fresh = run.retry(by=self.by)
            if given["start"]:
                fresh.start(by=self.by)
        return self.reply(fresh, 201)

    @extend_schema(responses=ProgressSerializer)
    @action(detail=True, methods=["get"])
    def progress(self, request: Request, id: str) -> Response:
        """How far it is, and how long it will take, computed from what its tasks did."""
        run = self.get_object()
        tasks = [
            TaskProgress(
                key=task.key,
                state=task.state,
                duration=task.completed_at - task.started_at if task.completed_at and task.started_at else None,
            )
            for task in run.tasks.only("key", "state", "started_at", "completed_at")
        ]
        now = run.ended_at or db_now()
        snapshot = Progress.of(tasks, started_at=run.started_at).snapshot(now)
        document = ProgressSerializer(
            {
                **vars(snapshot),
                "elapsed_seconds": snapshot.elapsed and snapshot.elapsed.total_seconds(),
                "remaining_seconds": snapshot.remaining and snapshot.remaining.total_seconds(),
            }
        )
        return Response(document.data)

    @extend_schema(responses=EventSerializer(many=True))
    @action(detail=True, methods=["get"])
    def events(self, request: Request, id: str) -> Response:
        """What happened in it, in the order of commits; `after=` goes on behind a cursor."""
        run = self.get_object()
        return answer_events(request, Event.objects.filter(run_id=run.pk))


class TaskSerializer(StrictModel):
    """One piece of a run's work."""

    class Meta:
        model = Task
        fields = (
            "id", "version", "created_at", "updated_at", "run", "key", "name", "kind", "spec", "state", "state_reason",
            "sequence", "priority", "score", "is_critical", "max_attempts", "timeout_seconds", "touches",
            "conflict_group", "generation", "count_attempts", "count_failures", "count_infra", "count_repairs",
            "retry_at", "blocked_by", "last_outcome", "last_error", "error_fingerprint", "session_ref", "started_at",
            "completed_at", "retry_of",
        )  # fmt: skip
        read_only_fields = fields


class TaskFilters(Filters):
    """By run, project, state and kind."""

    project = ProjectFilter("run__project")

    class Meta:
        model = Task
        fields = ("run", "state", "kind", "key", "created_at", "started_at", "completed_at")


class TaskEndpoint(Listed, Endpoint):
    """Tasks: made with their run; cancelled and retried here, moved by leases and reactions otherwise."""

    queryset = Task.objects.select_related("run__project")
    serializer_class = TaskSerializer
    filterset_class = TaskFilters
    ordering_fields = ("created_at", "sequence", "score")
    heavy = ("spec", "last_error")
    needs = {"list": "viewer", "retrieve": "viewer", "blockers": "viewer", "cancel": "operator", "retry": "operator"}

    @extend_schema(responses=BlockerSerializer)
    @action(detail=True, methods=["get"])
    def blockers(self, request: Request, id: str) -> Response:
        """Why it isn't moving: who holds it, since when, and what would help."""
        return answer_blocker(self.get_object())

    @extend_schema(request=Reason, responses=TaskSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, id: str) -> Response:
        """Call it off; a running task's lease is asked to stop, and the move follows its end. Quiet."""
        task = self.get_object()
        task.cancel(by=self.by, reason=self.body(Reason)["reason"] or f"cancelled by {self.by}")
        return self.reply(task)

    @extend_schema(request=Reason, responses=TaskSerializer)
    @action(detail=True, methods=["post"])
    def retry(self, request: Request, id: str) -> Response:
        """Make a retrying task due now. 409 `invalid_move` in any other state."""
        task = self.get_object()
        task.retry_now(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(task)


class StepSerializer(StrictModel):
    """One try of one tool at one task, or one step of the run itself."""

    class Meta:
        model = StepAttempt
        fields = (
            "id", "version", "created_at", "updated_at", "run", "task", "sequence", "tool", "tool_run_id", "request",
            "prompt", "generation", "state", "state_reason", "started_at", "ended_at", "exit_code", "outcome",
            "error_code", "error_fingerprint", "input_prompt", "error_log", "output_tail", "output_patch_ids",
            "session_ref", "usage_summary", "metadata",
        )  # fmt: skip
        read_only_fields = fields


class StepRequest(Strict):
    """A step of the run itself; it runs at once unless `start` is false."""

    run = Ref(queryset=Run.objects.select_related("project"))
    start = serializers.BooleanField(required=False, default=True)
    sequence = serializers.IntegerField(required=False, allow_null=True, default=None, min_value=1, max_value=2**31 - 1)
    tool = Ref(queryset=Tool.objects.all(), required=False, allow_null=True, default=None)
    input_prompt = serializers.CharField(
        required=False, allow_blank=True, default="", max_length=100_000, trim_whitespace=False
    )
    metadata = serializers.DictField(required=False)


class StepCompletion(Strict):
    """How a step ended."""

    status = serializers.CharField(max_length=20, help_text="succeeded or failed; completed and error mean the same")
    exit_code = serializers.IntegerField(
        required=False, allow_null=True, default=None, min_value=SMALLEST, max_value=LARGEST
    )
    error_log = serializers.CharField(
        required=False, allow_blank=True, default="", max_length=20_000, trim_whitespace=False
    )
    output_patch_ids = serializers.ListField(child=IdField(), required=False, max_length=100)

    def validate_output_patch_ids(self, ids: list[str]) -> list[str]:
        """Each once."""
        if len(set(ids)) != len(ids):
            raise InvalidField("output_patch_ids", "an id stands here once")
        return ids


class StepFilters(Filters):
    """By run, task, tool and state; `completed` means succeeded and `error` means failed."""

    MEANT = {"completed": "succeeded", "error": "failed"}

    project = ProjectFilter("run__project")

    class Meta:
        model = StepAttempt
        fields = ("run", "task", "tool", "state", "outcome", "created_at", "started_at", "ended_at")

    def __init__(self, data: Any = None, *args: Any, **kwargs: Any) -> None:
        if data is not None and data.get("state") in self.MEANT:
            data = data.copy()
            data["state"] = self.MEANT[data["state"]]
        super().__init__(data, *args, **kwargs)


class StepEndpoint(Listed, Endpoint):
    """Attempts, to read; and the steps of a run itself, which are opened and ended here."""

    queryset = StepAttempt.objects.select_related("run__project")
    serializer_class = StepSerializer
    filterset_class = StepFilters
    noun = "step_attempt"
    ordering_fields = ("created_at", "sequence")
    heavy = ("input_prompt", "error_log", "output_tail", "usage_summary", "metadata")
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "create": "operator",
        "start": "operator",
        "complete": "operator",
        "cancel": "operator",
    }

    @extend_schema(request=StepRequest, responses={201: StepSerializer})
    def create(self, request: Request) -> Response:
        """Open a step of the run itself: 201. 409 `run_not_running` when it should start and the run does not run."""
        given = self.body(StepRequest)
        run = given["run"]
        self.must_in(run.project_id)
        if run.is_finished:
            raise Refused("Run is finished", code="run_finished", state=run.state)
        step = StepAttempt.objects.begin(
            run,
            by=self.by,
            start=given["start"],
            tool=given["tool"],
            sequence=given["sequence"],
            input_prompt=given["input_prompt"],
            metadata=given.get("metadata", {}),
        )
        return self.reply(step, 201, Location=f"{request.path}{step.pk}/")

    @extend_schema(request=Nothing, responses=StepSerializer)
    @action(detail=True, methods=["post"])
    def start(self, request: Request, id: str) -> Response:
        """pending → running."""
        self.body(Nothing)
        step = self._own_step()
        step.start(by=self.by)
        return self.reply(step)

    @extend_schema(request=StepCompletion, responses=StepSerializer)
    @action(detail=True, methods=["post"])
    def complete(self, request: Request, id: str) -> Response:
        """End it as succeeded or failed."""
        step, given = self._own_step(), self.body(StepCompletion)
        columns: dict[str, Any] = {"error_log": given["error_log"]}
        if "output_patch_ids" in given:
            columns["output_patch_ids"] = given["output_patch_ids"]
        step.complete(given["status"], by=self.by, exit_code=given["exit_code"], **columns)
        return self.reply(step)

    @extend_schema(request=Reason, responses=StepSerializer)
    @action(detail=True, methods=["post"])
    def cancel(self, request: Request, id: str) -> Response:
        """Call it off. Quiet."""
        step = self._own_step()
        step.cancel(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(step)

    def _own_step(self) -> Any:
        """The step of the address, if it belongs to the run itself: an attempt at a task moves with its lease only."""
        step = self.get_object()
        if step.task_id is not None:
            raise Refused("An attempt at a task moves by its lease only", code="invalid_move", state=step.state)
        return step
