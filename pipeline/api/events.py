"""The event log over HTTP: read newest first or in the order of commits, and added to by programs outside."""

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any

import django_filters
from django.conf import settings
from django.db import transaction
from django.db.models import QuerySet
from django.http import StreamingHttpResponse
from django_filters.constants import EMPTY_VALUES
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline import events
from pipeline.api.ingest import read_kind
from pipeline.ids import is_id
from pipeline.kinds import CHANNELS, KINDS, SEVERITIES
from pipeline.models import Event, Project, Run, StepAttempt, Task
from pipeline.refusals import InvalidField, MissingField, Refused
from pipeline.rest import (
    BadQuery,
    Endpoint,
    FilterBackend,
    Filters,
    IdField,
    IdFilter,
    Listed,
    ProjectRef,
    Ref,
    Strict,
    StrictModel,
    asked_fields,
    read_limit,
)
from pipeline.selection import MAX_PATTERN_LENGTH, MAX_PATTERNS, Selection
from pipeline.stream import Opening, first_words

MAX_AT_ONCE = 1000
# Events in one statement: PostgreSQL takes 65,535 values, and keeps a plan for each length of list.
AT_ONCE = 100
# Each `*` of a row of them would try every text again.
MANY_STARS = re.compile(r"\*+")


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
    data = serializers.DictField(required=False)  # type: ignore[assignment]  # DRF takes declared fields off the class

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """It names what it is about, and all that it names belongs together."""
        named = [given[name] for name in ("step", "task", "run", "project") if name in given]
        if not named:
            raise MissingField("project")
        ids = named[0].correlation()
        for row in named[1:]:
            if row.pk != ids[f"{row.noun()}_id"]:
                raise InvalidField(row.noun(), f"not the {row.noun()} of the {named[0].noun()}")
        kind = read_kind(given["kind"], given["status"]).kind
        for name in KINDS[kind].lacks(given.get("data")):
            raise MissingField(f"data.{name}")
        return {**given, "subject": named[0]}


class Recorded(serializers.Serializer[Any]):
    """What became of events that were sent."""

    events = EventSerializer(many=True)


class EventFilters(Filters):
    """By kind (`run.*`, several parted by commas), and by everything that an event is tied to.

    One declaration has two faces: `qs` asks the database, `wants()` asks one event in memory, for a stream.
    """

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
    min_severity = django_filters.ChoiceFilter(choices=[(name, name) for name in SEVERITIES], method="of_min_severity")

    class Meta:
        model = Event
        fields = ("subject_type", "subject_id", "actor_kind", "actor_id", "actor_name", "request_id", "created_at")

    def of_kind(self, queryset: QuerySet[Event], name: str, value: str) -> QuerySet[Event]:
        """Exact kinds, or globs in which `*` stands for any text."""
        return queryset.filter(kind__in=kinds_of(value))

    def of_project(self, queryset: QuerySet[Event], name: str, value: str) -> QuerySet[Event]:
        """By id or key; a project that nobody knows has no events."""
        project = project_id_of(value)
        return queryset.none() if project is None else queryset.filter(project_id=project)

    def of_min_severity(self, queryset: QuerySet[Event], name: str, value: str) -> QuerySet[Event]:
        """Of this severity or a graver one."""
        return queryset.filter(severity__in=severities_from(value))

    def wants(self) -> Callable[[Event], bool]:
        """Whether `qs` would hold an event, decided in memory. Asks the database for a project's key, once.

        Raises BadQuery for what is wrong, as FilterBackend does for `qs`.
        """
        checks: list[Callable[[Event], bool]] = []
        for name, value in self.form.cleaned_data.items():
            if value not in EMPTY_VALUES:
                checks.append(self._check(name, value))
        return lambda event: all(check(event) for check in checks)

    def _check(self, name: str, value: Any) -> Callable[[Event], bool]:
        if name == "kind":
            kinds = kinds_of(value)
            return lambda event: event.kind in kinds
        if name == "project":
            project = project_id_of(value)
            return lambda event: project is not None and event.project_id == project
        if name == "min_severity":
            severities = severities_from(value)
            return lambda event: event.severity in severities
        column = self.filters[name].field_name
        compare = {"exact": operator.eq, "gt": operator.gt, "lt": operator.lt}[self.filters[name].lookup_expr]
        return lambda event: bool(compare(getattr(event, column), value))


def kinds_of(text: str) -> frozenset[str]:
    """The kinds that `text` names, parted by commas: exact ones, and every registered one that a glob matches.

    Raises BadQuery for more than MAX_PATTERNS or a longer pattern than any kind: a filter that was cut would hide.
    """
    patterns = [MANY_STARS.sub("*", one.strip()) for one in text.split(",")]
    if len(patterns) > MAX_PATTERNS:
        raise BadQuery("kind", f"at most {MAX_PATTERNS} kinds or patterns, not {len(patterns)}")
    if any(len(pattern) > MAX_PATTERN_LENGTH for pattern in patterns):
        raise BadQuery("kind", f"a kind or pattern has at most {MAX_PATTERN_LENGTH} characters")
    globs = tuple(pattern for pattern in patterns if "*" in pattern)
    return frozenset(pattern for pattern in patterns if "*" not in pattern) | Selection(globs).kinds


def severities_from(least: str) -> tuple[str, ...]:
    """This severity and the graver ones."""
    return Selection(min_severity=least).severities


def project_id_of(value: str) -> str | None:
    """The id of the project with this id or key; None for a key that nobody knows."""
    return value if is_id(value) else Project.objects.filter(key=value).values_list("pk", flat=True).first()


def answer_events(request: Request, queryset: QuerySet[Event]) -> Response:
    """The events of `queryset` behind `?after=`, in the order of commits; `next` is the cursor to go on from.

    It moves over what the filter leaves out as well, so that nobody who waits for something rare reads the same log
    again with each call.
    """
    for name in ("cursor", "ordering"):
        if name in request.query_params:
            raise BadQuery(name, "with `after` the order is that of the commits", code="unknown_filter")
    names = asked_fields(request, _writer().fields)
    given = request.query_params.get("after")
    cursor = events.read_cursor(given) if given else events.START
    limit = read_limit(request, settings.SIGNALBOX_EVENTS_LIMIT)
    # The end is taken first: whatever stands before a settled event is there for the queries that follow.
    end = events.horizon()
    found: Any = queryset
    page = list(found.after(cursor, limit))
    following = page[-1].cursor if page else cursor
    # A page holds events of one epoch: one that ends early in an older epoch says nothing of the next.
    if len(page) < limit and (not page or page[-1].epoch == end.epoch):
        following = max(following, end)
    rows: Any = EventSerializer(page, many=True).data
    if names:
        rows = [{name: row[name] for name in names} for row in rows]
    return Response({"results": rows, "next": str(following), "previous": None})


def frame(event: Event) -> bytes:
    """The event as one message of a stream: its cursor as `id`, its kind as `event`, the list's document as `data`."""
    shown = JSONRenderer().render(_writer().to_representation(event))
    return b"id: %s\nevent: %s\ndata: %s\n\n" % (str(event.cursor).encode(), event.kind.encode(), shown)


def must_come(kinds: str) -> None:
    """Raises Refused `invalid_field` for a pattern that no registered kind matches: one would wait for it for ever."""
    try:
        Selection.checked([one.strip() for one in kinds.split(",")], field="kind")
    except InvalidField as refusal:
        raise Refused(str(refusal), code=refusal.code, status=400, field="kind") from refusal


@cache
def _writer() -> EventSerializer:
    # Making a serializer's fields takes a millisecond, writing an event with them a twentieth of it.
    return EventSerializer()


class StreamAnswer(StreamingHttpResponse):
    """A stream that may begin: `pipeline.stream` reads `opening` and goes on from there for as long as both sides live.

    A server that speaks WSGI only sends the first page instead, and the client asks again behind it.
    """

    def __init__(self, opening: Opening) -> None:
        self.opening = opening
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._page(), content_type="text/event-stream; charset=utf-8", headers=headers)

    def _page(self) -> Iterator[bytes]:
        yield first_words(self.opening.cursor)
        yield from (frame(event) for event in self.opening.page(self.opening.cursor, settings.SIGNALBOX_EVENTS_LIMIT))


class EventEndpoint(Listed, Endpoint):
    """The log: what happened, and POST for what happened elsewhere."""

    queryset = Event.objects.all()
    serializer_class = EventSerializer
    filterset_class = EventFilters
    noun = "event"
    other_parameters = ("after",)
    needs = {"list": "viewer", "retrieve": "viewer", "create": "operator", "stream": "viewer"}

    @extend_schema(
        parameters=[OpenApiParameter("after", str, description="A commit-order cursor: go on behind it, oldest first.")]
    )
    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Events, newest first; with `after=` (0-0-0 is the beginning) in the order of commits, skipping none."""
        if "after" in request.query_params:
            return answer_events(request, self.filter_queryset(self.get_queryset()))
        return super().list(request, *args, **kwargs)

    @extend_schema(
        parameters=[
            OpenApiParameter("after", str, description="A commit-order cursor: go on behind it; else from now on."),
            OpenApiParameter(
                "Last-Event-ID",
                str,
                OpenApiParameter.HEADER,
                description="The same; browsers send it when they connect again, and it goes before `after`.",
            ),
        ],
        responses={(200, "text/event-stream"): OpenApiTypes.STR},
        filters=True,
    )
    @action(detail=False, methods=["get"])
    def stream(self, request: Request) -> StreamAnswer:
        """Events as they commit, as an event stream: `id` is the cursor, `event` the kind, `data` the list's document.

        Resume with `Last-Event-ID`, nothing is lost or doubled. A comment every 15 s keeps the connection alive. Before
        the server closes it says why: `bye` after 15 minutes, `dropped` to who reads too slowly, `error` with a problem
        document when the key or session has ended.
        """
        if request.method != "GET":
            raise MethodNotAllowed(str(request.method))
        for name in ("cursor", "limit", "ordering", "fields"):
            if name in request.query_params:
                raise BadQuery(name, "a list has this parameter, a stream has not", code="unknown_filter")
        queryset = self.get_queryset()
        rows: Any = self.filter_queryset(queryset)
        filterset = FilterBackend().get_filterset(request, queryset, self)
        filterset.is_valid()  # it is: filter_queryset has refused anything else
        if kinds := filterset.form.cleaned_data["kind"]:
            must_come(kinds)
        given = request.headers.get("Last-Event-ID") or request.query_params.get("after")
        who = self.principal
        return StreamAnswer(
            Opening(
                principal=f"{who.kind}:{who.id}",
                projects=who.project_ids(),
                wants=filterset.wants(),
                page=rows.after,
                cursor=events.read_cursor(given) if given else events.horizon(),
            )
        )

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
            raise InvalidField("events", f"send 1 to {MAX_AT_ONCE} events, not {len(sent)}")
        serializer = EventRequest(data=sent, many=True, context=self.get_serializer_context())
        serializer.is_valid(raise_exception=True)
        given: list[dict[str, Any]] = serializer.validated_data
        for project in {one["subject"].correlation()["project_id"] for one in given}:
            self.must_in(project)
        told = [self._composed(one) for one in given]
        with transaction.atomic():
            # By subject, since each subject's chain is locked: two senders cannot wait for each other.
            for some in batched(sorted(told, key=lambda event: event.subject_id), AT_ONCE):
                # Told from outside: whatever it says, nothing here follows from it.
                events.append(some, with_reactions=False)
        rows = {row.pk: row for row in Event.objects.filter(pk__in=[event.pk for event in told])}
        ordered = [rows[event.pk] for event in told]
        return Response({"events": EventSerializer(ordered, many=True).data}, status=201)

    def _composed(self, given: Mapping[str, Any]) -> Event:
        kind, original = read_kind(given["kind"], given["status"])
        data = dict(given.get("data", {}))
        data |= {"original_kind": original} if original else {}
        data |= {"sender_id": given["id"]} if "id" in given else {}
        who = self.by
        return events.compose(
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


def batched(rows: Sequence[Event], size: int) -> Iterator[Sequence[Event]]:
    """`rows` in runs of `size`; itertools has this from Python 3.12 on."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
