"""The event log over HTTP: read newest first or in the order of commits, and added to by programs outside."""

import re
from collections.abc import Mapping
from typing import Any

import django_filters
from django.conf import settings
from django.db import transaction
from django.db.models import Q, QuerySet
from drf_spectacular.utils import OpenApiParameter, PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline import events
from pipeline.api.ingest import read_kind
from pipeline.ids import is_id
from pipeline.kinds import CHANNELS, SEVERITIES
from pipeline.models import Event, Project, Run, StepAttempt, Task
from pipeline.refusals import InvalidField, MissingField
from pipeline.rest import Endpoint, Filters, IdField, IdFilter, Listed, ProjectRef, Ref, Strict, StrictModel, read_limit

MAX_AT_ONCE = 1000


class EventSerializer(StrictModel):
    """One thing that happened."""

    cursor = serializers.CharField(read_only=True, help_text="Its place in the order of commits: epoch-xid-seq.")

    class Meta:
        model = Event
        fields = (
            "id", "cursor", "created_at", "kind", "channel", "severity", "actor_kind", "actor_id", "actor_name",
            "on_behalf_of", "request_id", "subject_type", "subject_id", "before", "after", "reason", "message", "data",
            "project_id", "workstream_id", "run_id", "task_id", "step_id", "worker_id", "patch_id", "gate_run_id",
            "stream_seq", "prev_hash", "hash",
        )  # fmt: skip
        read_only_fields = fields


class EventRequest(Strict):
    """Something that happened outside. Its subject is the narrowest of step, task, run and project that it names."""

    kind = serializers.CharField(max_length=64)
    id = serializers.CharField(required=False, max_length=100, help_text="The sender's own id; kept in data.sender_id.")
    status = serializers.CharField(required=False, allow_blank=True, default="", max_length=20)
    severity = serializers.ChoiceField(choices=SEVERITIES, required=False)
    project = ProjectRef(required=False)
    run = Ref(queryset=Run.objects.select_related("project"), required=False)
    task = Ref(queryset=Task.objects.select_related("run__project"), required=False)
    step = Ref(queryset=StepAttempt.objects.select_related("run__project"), required=False)
    worker = IdField(required=False)
    patch = IdField(required=False)
    gate_run = IdField(required=False)
    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)
    message = serializers.CharField(required=False, allow_blank=True, default="", max_length=20_000)
    data = serializers.DictField(required=False)

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """It names what it is about, and all that it names belongs together."""
        named = [given[name] for name in ("step", "task", "run", "project") if name in given]
        if not named:
            raise MissingField("project")
        ids = named[0].correlation()
        for row in named[1:]:
            if row.pk != ids[f"{row.noun()}_id"]:
                raise InvalidField(row.noun(), f"not the {row.noun()} of the {named[0].noun()}")
        return {**given, "subject": named[0]}


class Recorded(serializers.Serializer[Any]):
    """What became of events that were sent."""

    events = EventSerializer(many=True)


class EventFilters(Filters):
    """By kind (`run.*`, several parted by commas), and by everything that an event is tied to."""

    kind = django_filters.CharFilter(method="of_kind")
    project = django_filters.CharFilter(method="of_project")
    run = IdFilter("run_id")
    workstream = IdFilter("workstream_id")
    task = IdFilter("task_id")
    step = IdFilter("step_id")
    worker = IdFilter("worker_id")
    patch = IdFilter("patch_id")
    gate_run = IdFilter("gate_run_id")
    channel = django_filters.ChoiceFilter(choices=[(name, name) for name in CHANNELS.values()])
    severity = django_filters.ChoiceFilter(choices=[(name, name) for name in SEVERITIES])

    class Meta:
        model = Event
        fields = ("subject_type", "subject_id", "actor_kind", "request_id", "created_at")

    def of_kind(self, queryset: QuerySet[Event], name: str, value: str) -> QuerySet[Event]:
        """Exact kinds, or globs in which `*` stands for any text."""
        wanted = Q()
        for glob in value[:500].split(","):
            parts = [re.escape(part) for part in glob.strip().split("*")]
            wanted |= Q(kind=glob.strip()) if len(parts) == 1 else Q(kind__regex=f"^{'.*'.join(parts)}$")
        return queryset.filter(wanted)

    def of_project(self, queryset: QuerySet[Event], name: str, value: str) -> QuerySet[Event]:
        """By id or key; a project that nobody knows has no events."""
        if is_id(value):
            return queryset.filter(project_id=value)
        return queryset.filter(project_id__in=Project.objects.filter(key=value).values("pk"))


def answer_events(request: Request, queryset: QuerySet[Event]) -> Response:
    """The events of `queryset` behind `?after=`, in the order of commits; `next` is the cursor to go on from."""
    given = request.query_params.get("after")
    cursor = events.Cursor.parse(given) if given else events.START
    found: Any = queryset
    page = list(found.after(cursor, read_limit(request, settings.SIGNALBOX_EVENTS_LIMIT)))
    following = page[-1].cursor if page else cursor
    return Response({"results": EventSerializer(page, many=True).data, "next": str(following), "previous": None})


class EventEndpoint(Listed, Endpoint):
    """The log: what happened, and POST for what happened elsewhere."""

    queryset = Event.objects.all()
    serializer_class = EventSerializer
    filterset_class = EventFilters
    noun = "event"
    other_parameters = ("after",)
    needs = {"list": "viewer", "retrieve": "viewer", "create": "operator"}

    @extend_schema(
        parameters=[OpenApiParameter("after", str, description="A commit-order cursor: go on behind it, oldest first.")]
    )
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Events, newest first; with `after=` (0-0-0 is the beginning) in the order of commits, skipping none."""
        if "after" in request.query_params:
            return answer_events(request, self.filter_queryset(self.get_queryset()))
        return super().list(request, *args, **kwargs)

    @extend_schema(
        request=PolymorphicProxySerializer(
            component_name="EventOrEvents",
            serializers=[EventRequest, EventRequest(many=True)],
            resource_type_field_name=None,
            many=False,
        ),
        responses={201: Recorded},
    )
    def create(self, request: Request) -> Response:
        """Record what happened outside, one event or up to 1,000, all or none: 201. It changes no state.

        A kind that is not in the vocabulary becomes `note.added` with `data.original_kind`.
        """
        sent = request.data if isinstance(request.data, list) else [request.data]
        if not 1 <= len(sent) <= MAX_AT_ONCE:
            raise InvalidField("", f"send 1 to {MAX_AT_ONCE} events, not {len(sent)}")
        serializer = EventRequest(data=sent, many=True, context=self.get_serializer_context())
        serializer.is_valid(raise_exception=True)
        given: list[dict[str, Any]] = serializer.validated_data
        for project in {one["subject"].correlation()["project_id"] for one in given}:
            self.must_in(project)
        made: dict[int, Event] = {}
        with transaction.atomic():
            # By subject, since each subject's chain is locked: two senders cannot wait for each other.
            for number in sorted(range(len(given)), key=lambda number: (given[number]["subject"].pk, number)):
                made[number] = self._record(given[number])
        rows = {row.pk: row for row in Event.objects.filter(pk__in=[event.pk for event in made.values()])}
        ordered = [rows[made[number].pk] for number in range(len(given))]
        return Response({"events": EventSerializer(ordered, many=True).data}, status=201)

    def _record(self, given: Mapping[str, Any]) -> Event:
        kind, original = read_kind(given["kind"], given["status"])
        data = dict(given.get("data", {}))
        data |= {"original_kind": original} if original else {}
        data |= {"sender_id": given["id"]} if "id" in given else {}
        who = self.by
        return events.record(
            kind,
            given["subject"],
            # Whoever sends what happened elsewhere speaks for a system outside, also a person with a session.
            by=events.Actor("integration", who.id, who.name, who.on_behalf_of),
            severity=given.get("severity"),
            reason=given["reason"],
            message=given["message"],
            data=data,
            **{f"{name}_id": given[name] for name in ("worker", "patch", "gate_run") if name in given},
        )
