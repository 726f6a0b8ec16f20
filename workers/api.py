"""The API of the workers: what an agent program calls, and what people see and steer."""

import json
from datetime import datetime
from decimal import Decimal
from typing import Any

import django_filters
from django.utils.functional import cached_property
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline import events, longpoll
from pipeline.clock import db_now
from pipeline.ids import new_id
from pipeline.models import Task, Workstream
from pipeline.refusals import InvalidField, NotFound, need_reason
from pipeline.rest import (
    WORKER,
    Endpoint,
    Filters,
    IdField,
    Listed,
    NotYet,
    ProjectFilter,
    Reason,
    Ref,
    Router,
    Strict,
    StrictModel,
    worker_key,
)
from workers import claims, heartbeats
from workers.models import Lease, Worker
from workers.models.health import CHOICES as HEALTH
from workers.models.worker import WorkerQuerySet

DAY_SECONDS = 24 * 3600
MAX_INT = 2**31 - 1
MAX_WORDS = 100
MAX_USAGE = 200
MAX_QUESTION_BYTES = 16 * 1024
MAX_BEATS = 100
MAX_TAIL = 1024 * 1024
MAX_TEXT = 200


# -- bodies ------------------------------------------------------------------------------------------------------


class Config(Strict):
    """How a worker beats. What is left out follows the installation's defaults; the heartbeat comes sooner than the
    timeout. The upper bounds keep every sum of a time and a setting inside what PostgreSQL can hold.
    """

    heartbeat_interval = serializers.IntegerField(required=False, min_value=1, max_value=DAY_SECONDS)
    timeout_seconds = serializers.IntegerField(required=False, min_value=1, max_value=DAY_SECONDS)
    stall_after = serializers.IntegerField(required=False, min_value=1, max_value=DAY_SECONDS)
    max_parallel_tasks = serializers.IntegerField(required=False, min_value=1, max_value=1000)
    extra = serializers.DictField(required=False)


def words(**kwargs: Any) -> serializers.ListField:
    """A list of at most 100 short texts."""
    return serializers.ListField(
        child=serializers.CharField(max_length=64), required=False, max_length=MAX_WORDS, **kwargs
    )


class Registration(Strict):
    """A new worker, as its program describes itself."""

    id = IdField(required=False)
    worker_type = serializers.CharField(max_length=32)
    name = serializers.CharField(required=False, allow_blank=True, max_length=200)
    host = serializers.CharField(required=False, allow_blank=True, max_length=200)
    config = Config(required=False)
    capabilities = words()
    tools = words()
    affinity = serializers.ListField(child=IdField(), required=False, max_length=MAX_WORDS)
    metadata = serializers.DictField(required=False)
    previous_worker = Ref(queryset=Worker.objects.all(), required=False, allow_null=True)

    def validate_metadata(self, value: dict[str, Any]) -> dict[str, Any]:
        """`adapters` decides which tools it is offered, and `labels` by what it is found: these are lists of texts."""
        for name in ("adapters", "labels"):
            given = value.get(name, [])
            if not isinstance(given, list) or not all(isinstance(word, str) for word in given):
                raise serializers.ValidationError(f"{name} is a list of texts")
        return value


class HeldLease(Strict):
    """What a heartbeat says of a lease: `stopping` acknowledges a stop."""

    id = IdField()
    generation = serializers.IntegerField(min_value=0, max_value=MAX_INT)
    progress = serializers.DictField(required=False)
    stopping = serializers.BooleanField(required=False, default=False)


class Beat(Strict):
    """A worker's heartbeat."""

    process_alive = serializers.BooleanField(required=False, default=True)
    activity = serializers.ChoiceField(Worker.Activity.choices, required=False, default=Worker.Activity.UNKNOWN)
    leases = serializers.ListSerializer[Any](child=HeldLease(), required=False, default=list, max_length=1)


class NamedBeat(Beat):
    """One of many heartbeats, with the worker that it is of."""

    id = IdField()


class Beats(Strict):
    """The heartbeats of many workers."""

    workers = serializers.ListSerializer[Any](child=NamedBeat(), min_length=1, max_length=MAX_BEATS)


class Renewed(serializers.Serializer[Any]):
    """A lease that a heartbeat renewed."""

    id = IdField()
    expires_at = serializers.DateTimeField()


class Directive(serializers.Serializer[Any]):
    """What the worker is to do next."""

    directive = serializers.ChoiceField(["continue", "pause", "drain", "stop"])


class BeatAnswer(Directive):
    """The answer to a heartbeat."""

    leases = Renewed(many=True)


class NamedBeatAnswer(serializers.Serializer[Any]):
    """The answer to one of many heartbeats: its directive, or the code and sentence of its refusal."""

    id = IdField()
    directive = serializers.CharField(required=False)
    leases = Renewed(many=True, required=False)
    code = serializers.CharField(required=False)
    detail = serializers.CharField(required=False)


class BeatAnswers(serializers.Serializer[Any]):
    """The answers to many heartbeats, in their order."""

    answers = NamedBeatAnswer(many=True)


class ClaimBody(Strict):
    """A request for work, for which the caller may wait up to 30 s."""

    capabilities = words()
    max = serializers.IntegerField(required=False, min_value=1, max_value=1, help_text="A worker has one live lease.")
    wait_seconds = serializers.IntegerField(required=False, default=0, min_value=0, max_value=claims.MAX_WAIT_SECONDS)


class Granted(serializers.Serializer[Any]):
    """The lease of a claim; every report quotes `id` and `generation`."""

    id = IdField()
    generation = serializers.IntegerField()
    attempt = IdField()
    expires_at = serializers.DateTimeField()
    timeout_at = serializers.DateTimeField()
    deadline_at = serializers.DateTimeField()


class ClaimAnswer(serializers.Serializer[Any]):
    """A task with everything that is needed to work on it."""

    task = serializers.DictField()
    execution_request = serializers.DictField()
    prompt = serializers.DictField(allow_null=True)
    checkout = serializers.DictField(
        allow_null=True,
        help_text="`url`: the mirror as a path on the server; `address`: the same over HTTP; `commit` of `branch`.",
    )
    lease = Granted()
    session_ref = serializers.CharField(allow_blank=True, help_text="The tool's session to resume; empty: a new one.")
    reservation = serializers.DictField(allow_null=True)
    price_ceiling = serializers.DictField(
        allow_null=True,
        help_text="Per million tokens of each class: what the agent stops a tool by that knows no budget.",
    )
    previous_failures = serializers.ListField(child=serializers.DictField())


class Assignment(Strict):
    """The task that a person gives to a worker."""

    task = Ref(queryset=Task.objects.select_related("run"))


class Shutdown(Strict):
    """`mode` and `deadline_seconds` are for people: drain lets the task finish, now stops it and owes a reason."""

    mode = serializers.ChoiceField(["drain", "now"], required=False)
    deadline_seconds = serializers.IntegerField(required=False, min_value=1, max_value=DAY_SECONDS)
    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)


class Crash(Strict):
    """What went wrong; a person's message is the reason."""

    message = serializers.CharField(allow_blank=True, max_length=2000)
    trace = serializers.CharField(required=False, allow_blank=True, default="", max_length=20000)


@extend_schema_field({"type": ["string", "number", "null"], "description": "A decimal number, best as a string."})
class Figure(serializers.Field[Any, Any, Any, Any]):
    """A number as it came: `costs.pricing.figure` reads it, and names what is wrong with it."""

    def to_internal_value(self, data: Any) -> Any:
        """The value itself."""
        return data

    def to_representation(self, value: Any) -> str:
        """Decimal text."""
        return str(value)


class Use(Strict):
    """One use of something that may cost money, with the field names of a cost record, which cuts what is too long."""

    resource_type = serializers.CharField(max_length=MAX_TEXT)
    resource_name = serializers.CharField(required=False, allow_blank=True, max_length=MAX_TEXT)
    model = serializers.CharField(required=False, allow_blank=True, max_length=MAX_TEXT)
    provider = serializers.CharField(required=False, allow_blank=True, max_length=MAX_TEXT)
    amount = Figure(required=False, allow_null=True)
    currency = serializers.CharField(required=False, max_length=MAX_TEXT)
    usage_quantity = Figure(required=False, allow_null=True)
    usage_unit = serializers.CharField(required=False, allow_blank=True, max_length=MAX_TEXT)
    usage_rate = Figure(required=False, allow_null=True)
    tokens_uncached_input = serializers.IntegerField(required=False, min_value=0, max_value=10**15)
    tokens_cache_read = serializers.IntegerField(required=False, min_value=0, max_value=10**15)
    tokens_cache_write_5m = serializers.IntegerField(required=False, min_value=0, max_value=10**15)
    tokens_cache_write_1h = serializers.IntegerField(required=False, min_value=0, max_value=10**15)
    tokens_output = serializers.IntegerField(required=False, min_value=0, max_value=10**15)
    duration_seconds = Figure(required=False, allow_null=True)
    source = serializers.CharField(  # type: ignore[assignment]  # DRF takes declared fields off the class
        required=False, max_length=MAX_TEXT
    )
    idempotency_key = serializers.CharField(required=False, allow_blank=True, max_length=MAX_TEXT)
    assumed_ttl = serializers.BooleanField(
        required=False, help_text="The tool does not say how long its cache writes live: the class is a guess."
    )
    stated_amount = serializers.CharField(
        required=False,
        max_length=40,
        help_text="What the tool says it cost; kept beside our price, never instead of it.",
    )


class Report(Strict):
    """What every report of an ended attempt says."""

    generation = serializers.IntegerField(min_value=0, max_value=MAX_INT)
    exit_code = serializers.IntegerField(required=False, allow_null=True, min_value=-MAX_INT, max_value=MAX_INT)
    duration_seconds = serializers.DecimalField(
        required=False,
        allow_null=True,
        max_digits=None,
        decimal_places=None,
        min_value=Decimal(0),
        max_value=Decimal(10**9),
    )
    output_tail = serializers.CharField(required=False, allow_blank=True, trim_whitespace=False, max_length=MAX_TAIL)
    usage = serializers.ListSerializer[Any](child=Use(), required=False, max_length=MAX_USAGE)


class Success(Report):
    """The attempt succeeded."""

    patch_ids = serializers.ListField(child=IdField(), required=False, max_length=MAX_WORDS)
    session_ref = serializers.CharField(required=False, allow_blank=True, max_length=200)


class Failure(Report):
    """The attempt ended otherwise."""

    outcome = serializers.CharField(max_length=32)
    error_code = serializers.CharField(required=False, allow_blank=True, max_length=200)
    error_message = serializers.CharField(required=False, allow_blank=True, max_length=64 * 1024)
    session_ref = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=200,
        help_text="The tool's session, for the next attempt to resume.",
    )
    until = serializers.DateTimeField(
        required=False, allow_null=True, help_text="When the quota is said to be there again (outcome quota_wait)."
    )
    question = serializers.DictField(
        required=False, allow_null=True, help_text="What a person is asked, at most 16 KiB (outcome needs_human)."
    )

    def validate_question(self, given: Any) -> Any:
        """Bounded: it is stored on a hold and shown to people."""
        if given is not None and len(json.dumps(given)) > MAX_QUESTION_BYTES:
            raise serializers.ValidationError(f"A question is at most {MAX_QUESTION_BYTES} bytes")
        return given


class Extension(Strict):
    """How much more a lease may spend."""

    generation = serializers.IntegerField(min_value=0, max_value=MAX_INT)
    amount = serializers.DecimalField(
        max_digits=18,
        decimal_places=6,
        min_value=Decimal("0.000001"),
        help_text="USD, beside what is set aside already.",
    )


class Extended(serializers.Serializer[Any]):
    """What is set aside now (null: nothing limits it), and the lease's end, which is the same as before."""

    reservation = serializers.DictField(allow_null=True)
    deadline_at = serializers.DateTimeField()


# -- workers -----------------------------------------------------------------------------------------------------


class WorkerSerializer(StrictModel):
    """A worker, with its health now beside its state, and what may truthfully be said about its end."""

    health = serializers.SerializerMethodField()
    stop_label = serializers.CharField(read_only=True)
    average_execution_seconds = serializers.DecimalField(max_digits=18, decimal_places=6, read_only=True)

    class Meta:
        model = Worker
        fields = (
            "id", "version", "created_at", "updated_at", "worker_type", "state", "health", "name", "host", "api_key",
            "previous_worker", "current_task", "config", "heartbeat_interval", "timeout_seconds", "capabilities",
            "tools", "affinity", "metadata", "started_at", "process_seen_at", "transport_seen_at", "progress_at",
            "activity", "activity_since", "told_health", "health_since", "shutdown_requested_at", "shutdown_mode",
            "shutdown_deadline_at", "stop_label", "stopped_at", "stop_confirmed", "crashed_at", "crash_message",
            "crash_trace", "tasks_completed", "tasks_failed", "total_execution_seconds",
            "average_execution_seconds",
        )  # fmt: skip
        read_only_fields = fields

    def get_health(self, row: Worker) -> str:
        """unresponsive, stalled, late, healthy; empty when it is finished."""
        return row.health(self._now)

    @cached_property
    def _now(self) -> datetime:
        return db_now()  # once an answer, not once a row


class WorkerFilters(Filters):
    """By state, health now, type, host, key, the task held, and what it can; `archived=true` shows the old finished
    ones instead of the list.
    """

    health = django_filters.ChoiceFilter(choices=HEALTH, method="of_health")
    needs_person = django_filters.BooleanFilter(method="who_need_a_person")
    capability = django_filters.CharFilter(field_name="capabilities", method="which_have")
    tool = django_filters.CharFilter(field_name="tools", method="which_have")
    affinity = django_filters.CharFilter(field_name="affinity", method="which_have")
    label = django_filters.CharFilter(field_name="metadata__labels", method="which_have")
    archived = django_filters.BooleanFilter(method="from_the_archive")

    def of_health(self, rows: WorkerQuerySet, name: str, value: str) -> WorkerQuerySet:
        """Alive, and this now."""
        return rows.of_health(value)

    def who_need_a_person(self, rows: WorkerQuerySet, name: str, value: bool) -> WorkerQuerySet:
        """Stalled, unresponsive, or waiting for an answer; with false, the others."""
        needy = Worker.objects.needs_person().values("pk")
        return rows.filter(pk__in=needy) if value else rows.exclude(pk__in=needy)

    def which_have(self, rows: WorkerQuerySet, name: str, value: str) -> WorkerQuerySet:
        """Their list holds this word."""
        return rows.filter(**{f"{name}__contains": [value]})

    def from_the_archive(self, rows: WorkerQuerySet, name: str, value: bool) -> WorkerQuerySet:
        """Only the archived; with false, what a list holds anyway."""
        return rows.archived() if value else rows.listed()

    class Meta:
        model = Worker
        fields = ("state", "worker_type", "host", "name", "api_key", "current_task", "activity", "created_at")


class WorkerEndpoint(Listed, Endpoint):
    """The fleet. A worker's key registers, beats, claims, ends and crashes its own; people pause, drain, assign."""

    queryset = Worker.objects.select_related("api_key", "current_task__run")
    serializer_class = WorkerSerializer
    filterset_class = WorkerFilters
    ordering_fields = ("created_at", "started_at")
    heavy = ("metadata", "crash_trace")
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "create": WORKER,
        "heartbeat": WORKER,
        "heartbeats": WORKER,
        "claim": WORKER,
        "assign": "operator",
        "pause": "operator",
        "resume": "operator",
        "shutdown": (WORKER, "operator"),
        "crash": (WORKER, "operator"),
    }
    unstored = ("heartbeat", "heartbeats")

    def filter_queryset(self, queryset: Any) -> Any:
        """A list holds who is alive or finished of late, unless the archive is asked for."""
        found: Any = super().filter_queryset(queryset)
        return found if self.action != "list" or "archived" in self.request.query_params else found.listed()

    @extend_schema(request=Registration, responses={201: WorkerSerializer, 200: WorkerSerializer})
    def create(self, request: Request) -> Response:
        """Register: 201 with the worker. The same `id` with the same content again: 200.

        Refuses with `invalid_worker_type`, `invalid_field`, `worker_limit`, `duplicate_id`.
        """
        key = worker_key(self.principal)
        given = self.body(Registration)
        pk = given.pop("id", None)
        known = pk and Worker.objects.visible_to(self.principal).filter(pk=pk).first()
        if known and all(getattr(known, name) == value for name, value in given.items()):
            return self.reply(known)
        _must_know(given.get("affinity", []), key.project_id)
        pk = pk or new_id()
        by = events.Actor("worker", pk, given.get("name") or key.name, on_behalf_of=key.name)
        worker = Worker.objects.register(by=by, api_key=key, pk=pk, **given)
        return self.reply(worker, 201, Location=f"{request.path}{worker.pk}/")

    @extend_schema(request=Beat, responses=BeatAnswer)
    @action(detail=True, methods=["post"])
    def heartbeat(self, request: Request, id: str) -> Response:
        """It lives: renew its lease, and say what to do. Refuses with `stale_claim`, `worker_finished` (410)."""
        told = self.body(Beat)
        return Response(heartbeats.heartbeat(id, api_key_id=worker_key(self.principal).pk, **told))

    @extend_schema(request=Beats, responses=BeatAnswers)
    @action(detail=False, methods=["post"])
    def heartbeats(self, request: Request) -> Response:
        """The heartbeats of many workers of this key; a refusal of one stands in its answer and concerns no other."""
        told = self.body(Beats)["workers"]
        return Response({"answers": heartbeats.heartbeats(told, api_key_id=worker_key(self.principal).pk)})

    @extend_schema(request=ClaimBody, responses={200: ClaimAnswer, 204: None})
    @action(detail=True, methods=["post"])
    def claim(self, request: Request, id: str) -> Response:
        """The next task that it may have, with a lease; 204 when there is none within `wait_seconds`.

        Refuses with `invalid_move` when it has a task already, `worker_draining`, `worker_finished` (410).
        """
        given = self.body(ClaimBody)
        worker = self.find(Worker.objects.visible_to(self.principal).select_related("api_key"), id)
        if worker is None:
            raise NotFound.of("worker", id)
        document = claims.claim(worker, capabilities=given.get("capabilities"))
        if document is None:
            raise NotYet(given["wait_seconds"])
        return Response(claims.with_address(document, self.request))

    @extend_schema(request=Assignment, responses={201: ClaimAnswer})
    @action(detail=True, methods=["post"])
    def assign(self, request: Request, id: str) -> Response:
        """Give it a task: the claim, pushed. Refuses with `invalid_move`, `worker_draining`, `worker_unfit`, `held`,
        `not_claimable`, `no_routable_tool_for_phase`.
        """
        worker, task = self.get_object(), self.body(Assignment)["task"]
        self.must_in(task.run.project_id)
        lease = claims.assign_to(worker, task, by=self.by)
        return Response(claims.with_address(claims.document(lease), self.request), status=201)

    @extend_schema(request=Reason, responses=WorkerSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, id: str) -> Response:
        """Let it keep what it has, and claim no more."""
        worker = self.get_object()
        worker.pause(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(worker)

    @extend_schema(request=Reason, responses=WorkerSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, id: str) -> Response:
        """Let it go on. Refuses with `invalid_move` when it is not paused."""
        worker = self.get_object()
        worker.resume(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(worker)

    @extend_schema(request=Shutdown, responses=WorkerSerializer)
    @action(detail=True, methods=["post"])
    def shutdown(self, request: Request, id: str) -> Response:
        """From the worker itself: it has ended, and what it held is given back. From a person: it is asked to end."""
        worker, given = self.get_object(), self.body(Shutdown)
        if self.principal.is_worker:
            for name in ("mode", "deadline_seconds"):
                if name in given:
                    raise InvalidField(name, "a worker ends at once; only people choose how")
            worker.shutdown(by=claims.actor(worker), reason=given["reason"], confirmed=True)
        else:
            worker.request_shutdown(by=self.by, **{"mode": "drain", **given})
        return self.reply(worker)

    @extend_schema(request=Crash, responses=WorkerSerializer)
    @action(detail=True, methods=["post"])
    def crash(self, request: Request, id: str) -> Response:
        """It is gone: its task is tried again or fails. A person's message is the reason, and is owed."""
        worker, given = self.get_object(), self.body(Crash)
        by = claims.actor(worker) if self.principal.is_worker else self.by
        message = given["message"] if self.principal.is_worker else need_reason(given["message"])
        worker.crash(message or "crashed without a message", by=by, trace=given["trace"])
        return self.reply(worker)


def _must_know(affinity: list[str], project: str | None) -> None:
    """Who serves only workstreams that are not there, or not in its key's `project`, would wait for ever."""
    there = Workstream.objects.filter(pk__in=affinity)
    if project is not None:
        there = there.filter(phase__project=project)
    if unknown := sorted(set(affinity) - set(there.values_list("pk", flat=True))):
        raise InvalidField("affinity", f"there is no workstream {unknown[0]}")


# -- leases ------------------------------------------------------------------------------------------------------


class LeaseSerializer(StrictModel):
    """A lease, with what may truthfully be said about stopping it."""

    stop_label = serializers.CharField(read_only=True)

    class Meta:
        model = Lease
        fields = (
            "id", "version", "created_at", "updated_at", "worker", "task", "attempt", "generation", "acquired_at",
            "expires_at", "timeout_at", "deadline_at", "renewed_at", "stop_requested_at", "stop_reason", "stop_outcome",
            "stop_deadline_at", "stop_acknowledged_at", "stop_label", "ended_at", "end_cause", "stop_confirmed",
        )  # fmt: skip
        read_only_fields = fields


class LeaseFilters(Filters):
    """By worker, task and end."""

    project = ProjectFilter("task__run__project")

    class Meta:
        model = Lease
        fields = ("worker", "task", "end_cause", "created_at")


class LeaseEndpoint(Listed, Endpoint):
    """The rights of workers to tasks. A worker's key reports the end of its own; everything else is refused."""

    queryset = Lease.objects.select_related("task__run", "worker__api_key")
    serializer_class = LeaseSerializer
    filterset_class = LeaseFilters
    needs = {"list": "viewer", "retrieve": "viewer", "complete": WORKER, "fail": WORKER, "extend": WORKER}

    @extend_schema(request=Success, responses=Directive)
    @action(detail=True, methods=["post"])
    def complete(self, request: Request, id: str) -> Response:
        """The attempt succeeded. Refuses with `stale_claim` when the lease is not live or not of this generation."""
        lease, given = self.get_object(), self.body(Success)
        return Response(claims.complete(lease, by=claims.actor(lease.worker, lease.generation), **given))

    @extend_schema(request=Failure, responses=Directive)
    @action(detail=True, methods=["post"])
    def fail(self, request: Request, id: str) -> Response:
        """The attempt ended otherwise. Refuses with `stale_claim`, `invalid_field` for an unknown outcome."""
        lease, given = self.get_object(), self.body(Failure)
        given["error"] = given.pop("error_message", "")
        return Response(claims.fail(lease, by=claims.actor(lease.worker, lease.generation), **given))

    @extend_schema(request=Extension, responses=Extended)
    @action(detail=True, methods=["post"])
    def extend(self, request: Request, id: str) -> Response:
        """More money, never more time. Refuses with `stale_claim`, `budget_exceeded`, `invalid_move` once stopping."""
        lease, given = self.get_object(), self.body(Extension)
        by = claims.actor(lease.worker, lease.generation)
        facts = lease.extend(given["amount"], generation=given["generation"], by=by)
        return Response({"reservation": facts.get("reservation"), "deadline_at": lease.deadline_at})


longpoll.register(r"/api/v1/workers/[^/]+/claim/", claims.count_claimable)

router = Router()
router.register("workers", WorkerEndpoint, basename="worker")
router.register("leases", LeaseEndpoint, basename="lease")
urlpatterns = router.urls
