"""The API of the costs: uses are booked and voided, sums are asked for, prices and budgets are kept."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import TruncDate
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from costs import pricing, reports
from costs.models import (
    TOKEN_FIELDS,
    Budget,
    BudgetExceeded,
    CostRecord,
    DailySpend,
    Price,
    Reservation,
    booking,
    budget,
    repricing,
)
from costs.models.budget import find_reservation
from pipeline.clock import db_now
from pipeline.ids import is_id
from pipeline.models import Project, Run, Task
from pipeline.refusals import InvalidField, MissingField, NotFound, Refused, need_reason
from pipeline.rest import (
    INSTALLATION,
    WORKER,
    BadQuery,
    DefinitionEndpoint,
    Endpoint,
    Filters,
    IdField,
    Listed,
    ProjectFilter,
    ProjectRef,
    Reason,
    Ref,
    Router,
    Strict,
    StrictModel,
    find_project,
)
from workers import claims
from workers.api import Figure, Use
from workers.models import Lease, StaleClaim

MOST_AT_ONCE = 1000
MOST_GROUPS = 5000

GROUPS = reports.GROUPS
"""What a summary may be grouped by, and the column of each."""


# -- records -----------------------------------------------------------------------------------------------------


class Booking(Use):
    """One use to book. A worker's key quotes its live `lease` and `generation`; people name what it was spent on."""

    lease = IdField(required=False)
    generation = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)
    project = ProjectRef(required=False)
    run = Ref(queryset=Run.objects.select_related("project"), required=False)
    task = Ref(queryset=Task.objects.select_related("run__project"), required=False)
    override_reason = serializers.CharField(required=False, allow_blank=True, max_length=2000)
    reported_at = serializers.DateTimeField(
        required=False, help_text="When it was used: it is priced by that time, and counts in sums and budgets now."
    )
    gateway_amount = Figure(required=False, allow_null=True, help_text="What a gateway says it cost.")
    reasoning = serializers.IntegerField(required=False, min_value=0, max_value=10**15)
    web_searches = serializers.IntegerField(required=False, min_value=0, max_value=10**9)
    is_request = serializers.BooleanField(
        required=False, help_text="False for a sum over many requests, to which no tier of one request applies."
    )
    session = serializers.CharField(required=False, allow_blank=True, max_length=200)


class CostSerializer(StrictModel):
    """One booked use."""

    class Meta:
        model = CostRecord
        fields = (
            "id", "version", "created_at", "updated_at", "resource_type", "amount", "currency", "leaf_kind", "leaf_id",
            "project", "phase", "workstream", "run", "task", "request", "attempt", "worker", "patch_id", "tool",
            "resource_name", "model", "provider", "usage_quantity", "usage_unit", "usage_rate", *TOKEN_FIELDS,
            "duration_seconds", "price", "basis", "unpriced", "assumed_ttl", "stated_amount", "override_reason",
            "source", "idempotency_key", "landing", "waste_cause", "recorded_at", "reported_at", "voided_at",
            "voided_by", "void_reason", "replaces", "kind", "person", "reasoning", "web_searches", "flags",
            "is_request", "session", "meter", "price_source", "price_version", "price_dated", "gateway_amount", "batch",
        )  # fmt: skip
        read_only_fields = fields


class Brief(serializers.Serializer[Any]):
    """What became of one of many uses; the record itself stands under its id."""

    id = IdField()
    is_new = serializers.BooleanField(help_text="False when this use had been booked before.")
    amount = serializers.DecimalField(max_digits=18, decimal_places=6)
    currency = serializers.CharField()
    basis = serializers.CharField()
    unpriced = serializers.BooleanField()


class Bookings(serializers.Serializer[Any]):
    """What became of many uses, in their order."""

    results = Brief(many=True)


class Voided(serializers.Serializer[Any]):
    """Whether a live record was voided; false when it had been already."""

    voided = serializers.BooleanField()


class Group(serializers.Serializer[Any]):
    """The live records of one group in one currency."""

    day = serializers.DateField(required=False, help_text="In UTC.")
    tool = serializers.CharField(source="tool__key", required=False, allow_null=True, help_text="The tool's key.")
    model = serializers.CharField(required=False)
    project = IdField(required=False, allow_null=True)
    landing = serializers.CharField(required=False)
    waste_cause = serializers.CharField(required=False)
    kind = serializers.CharField(required=False, help_text="The kind of task.")
    person = serializers.CharField(required=False, help_text="Who asked for the run.")
    worker = IdField(required=False, allow_null=True)
    phase = IdField(required=False, allow_null=True)
    workstream = IdField(required=False, allow_null=True)
    resource_type = serializers.CharField(required=False)
    currency = serializers.CharField()
    amount = serializers.DecimalField(max_digits=24, decimal_places=6, source="total")
    unpriced_amount = serializers.DecimalField(max_digits=24, decimal_places=6)
    records = serializers.IntegerField(source="count")

    def to_representation(self, instance: Any) -> dict[str, Any]:
        """What the sums were grouped by, and the sums; DRF would tell null of everything else."""
        told = super().to_representation(instance)
        return {name: value for name, value in told.items() if self.fields[name].source in instance}


class Rate(serializers.Serializer[Any]):
    """A rate by which a sum was converted, and who says so."""

    currency = serializers.CharField()
    rate = serializers.DecimalField(max_digits=None, decimal_places=None)
    on = serializers.DateField()
    source = serializers.CharField()


class Converted(serializers.Serializer[Any]):
    """The sum of all currencies in one, each day at the rate of the day, or the newest before it."""

    currency = serializers.CharField()
    amount = serializers.DecimalField(max_digits=24, decimal_places=6)
    rates = Rate(many=True)


class Summary(serializers.Serializer[Any]):
    """Sums by group, and in all, by currency: amounts of different currencies are never added."""

    results = Group(many=True)
    totals = Group(many=True)
    converted = Converted(required=False, help_text="When `into` asks for it.")


class LandedRow(serializers.Serializer[Any]):
    """What one tool, model, kind of task or person spent in one currency, by class, and for what landed."""

    name = serializers.CharField(allow_blank=True)
    currency = serializers.CharField()
    amount = serializers.DecimalField(max_digits=24, decimal_places=6)
    landed = serializers.DecimalField(max_digits=24, decimal_places=6)
    waste = serializers.DecimalField(max_digits=24, decimal_places=6)
    in_flight = serializers.DecimalField(max_digits=24, decimal_places=6)
    overhead = serializers.DecimalField(max_digits=24, decimal_places=6)
    patches = serializers.IntegerField(help_text="That landed in these days.")
    lines = serializers.IntegerField(help_text="Added and removed by them.")
    per_patch = serializers.DecimalField(max_digits=24, decimal_places=6, allow_null=True)
    per_line = serializers.DecimalField(max_digits=24, decimal_places=6, allow_null=True)


class Classes(serializers.Serializer[Any]):
    """What became of the work, in one currency; the classes add up to the amount, the causes to the waste."""

    currency = serializers.CharField()
    amount = serializers.DecimalField(max_digits=24, decimal_places=6)
    records = serializers.IntegerField()
    unpriced_amount = serializers.DecimalField(max_digits=24, decimal_places=6)
    landed = serializers.DecimalField(max_digits=24, decimal_places=6)
    in_flight = serializers.DecimalField(max_digits=24, decimal_places=6)
    overhead = serializers.DecimalField(max_digits=24, decimal_places=6)
    waste = serializers.DecimalField(max_digits=24, decimal_places=6)
    causes = serializers.DictField(child=serializers.DecimalField(max_digits=24, decimal_places=6))


class LandedSums(serializers.Serializer[Any]):
    """Landed and waste."""

    results = LandedRow(many=True)
    totals = Classes(many=True)


class Truth(serializers.Serializer[Any]):
    """One session: what the tool says beside our price and the gateway's, and the likely cause of the difference."""

    tool = serializers.CharField()
    session = serializers.CharField()
    model = serializers.CharField(allow_blank=True)
    records = serializers.IntegerField()
    currency = serializers.CharField()
    reported = serializers.DecimalField(max_digits=24, decimal_places=6)
    ours = serializers.DecimalField(max_digits=24, decimal_places=6)
    gateway = serializers.DecimalField(max_digits=24, decimal_places=6, allow_null=True)
    agent_reported = serializers.DecimalField(max_digits=24, decimal_places=6, allow_null=True)
    difference = serializers.DecimalField(max_digits=24, decimal_places=6, allow_null=True)
    ratio = serializers.DecimalField(max_digits=24, decimal_places=4, allow_null=True)
    near = serializers.CharField(allow_blank=True)
    label = serializers.CharField(help_text="Stable.")
    sentence = serializers.CharField(help_text="The same for people.")
    at = serializers.DateTimeField()


class Truths(serializers.Serializer[Any]):
    """Sessions, the dearest differences first."""

    results = Truth(many=True)


class StatementLine(serializers.Serializer[Any]):
    """A project's use of one tool and model in one currency."""

    project = serializers.CharField(source="project__key", allow_null=True)
    tool = serializers.CharField(source="tool__key", allow_null=True)
    model = serializers.CharField(allow_blank=True)
    currency = serializers.CharField()
    amount = serializers.DecimalField(max_digits=24, decimal_places=6, source="total")
    unpriced_amount = serializers.DecimalField(max_digits=24, decimal_places=6, source="unpriced")
    records = serializers.IntegerField(source="count")
    tokens_input = serializers.IntegerField(source="tokens_in")
    tokens_output = serializers.IntegerField(source="tokens_out")


class Statement(serializers.Serializer[Any]):
    """One month for the books."""

    first = serializers.DateField()
    last = serializers.DateField()
    totals = Classes(many=True)
    converted = Converted(required=False, help_text="When `into` asks for it.")
    lines = StatementLine(many=True)


class CostFilters(Filters):
    """By what it was spent on, when, and how it was priced."""

    project = ProjectFilter("project")

    class Meta:
        model = CostRecord
        fields = (
            "phase", "workstream", "run", "task", "attempt", "worker", "tool", "resource_type", "model", "provider",
            "currency", "landing", "waste_cause", "basis", "unpriced", "source", "recorded_at", "created_at",
        )  # fmt: skip


INTO = OpenApiParameter(
    "into", str, description="Also the sum of everything in this currency, where the settings have the days' rates."
)


class CostEndpoint(Listed, Endpoint):
    """What was spent. A voided record is found no more, except by the address that voids it again, quietly."""

    queryset = CostRecord.objects.all()
    serializer_class = CostSerializer
    filterset_class = CostFilters
    ordering_fields = ("recorded_at", "amount")
    other_parameters = ("group_by", "into", "by", "first", "last", "month", "format")
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "summary": "viewer",
        "landed": "viewer",
        "truth": "viewer",
        "statement": "viewer",
        "export": "viewer",
        "create": (WORKER, "operator"),
        "void": "admin",
        "destroy": "admin",
    }

    def get_queryset(self) -> QuerySet[CostRecord]:
        """The live records that the caller may see."""
        rows = super().get_queryset()
        return rows if self.action in ("void", "destroy") else rows.filter(voided_at=None)

    @extend_schema(
        request=PolymorphicProxySerializer(
            "BookingOrMany", [Booking, Booking(many=True)], resource_type_field_name=None, many=False
        ),
        responses={
            201: PolymorphicProxySerializer("Booked", [CostSerializer, Bookings], resource_type_field_name=None),
            200: CostSerializer,
        },
    )
    def create(self, request: Request) -> Response:
        """Book one use, or a list of up to 1,000, all or none: 201; 200 when one had been booked before.

        Refuses with `invalid_resource_type`, the `amount_…` codes, `invalid_currency`, `duplicate_key`, `stale_claim`.
        """
        if not isinstance(request.data, list):
            row, is_new = self._book(self.body(Booking))
            return self.reply(row, 201 if is_new else 200, Location=f"{request.path}{row.pk}/")
        if not 1 <= len(request.data) <= MOST_AT_ONCE:
            code, status = ("too_large", 413) if request.data else ("invalid_field", 422)
            raise Refused(f"1 to {MOST_AT_ONCE} records at once", code=code, status=status)
        given = self._quick(request.data)
        if given is None:
            given = [_parted(one) for one in self.body(Booking, many=True)]
        with transaction.atomic():
            places: dict[tuple[Any, ...], dict[str, Any]] = {}
            uses, by = [], self.by
            for number, (fields, tokens) in enumerate(given):
                try:
                    use, by = self._use(fields, tokens, places)
                except InvalidField as refusal:
                    raise _numbered(refusal, number) from None
                uses.append(use)
            try:
                booked = booking.book(uses, by=by)
            except InvalidField as refusal:
                raise _numbered(refusal, refusal.parts.pop("number", 0)) from None
            known = _known(booked)
            for use, one in zip(uses, booked, strict=True):
                _must_be_there(use, one, known)
        return Response({"results": [_brief(one, known) for one in booked]}, status=201)

    def _quick(self, documents: list[Any]) -> list[tuple[dict[str, Any], dict[str, int]]] | None:
        """The fields and tokens of a list in which nothing is out of the ordinary; None leaves it to the serializer.

        Reading a thousand documents by a serializer takes longer than booking them. What is read here, the serializer
        reads the same.
        """
        context = self.get_serializer_context()
        refs = {name: field for name, field in Booking(context=context).fields.items() if name in _REFS}
        known: dict[tuple[str, str], Any] = {}
        found = []
        for document in documents:
            if type(document) is not dict or "resource_type" not in document:
                return None
            fields: dict[str, Any] = {}
            tokens: dict[str, int] = {}
            for name, value in document.items():
                if type(value) is int:
                    if not 0 <= value <= _PLAIN_COUNTS.get(name, -1):
                        return None
                    if name in _TOKEN_CLASSES:
                        tokens[_TOKEN_CLASSES[name]] = value
                    else:
                        fields[name] = value
                elif type(value) is not str:
                    return None
                elif name in refs:
                    if (name, value) not in known:
                        known[name, value] = refs[name].run_validation(value)
                    fields[name] = known[name, value]
                elif is_id(value) if name == "lease" else _is_plain(value, _PLAIN_TEXTS.get(name, -1)):
                    fields[name] = value
                else:
                    return None
            found.append((fields, tokens))
        return found

    def _book(self, given: dict[str, Any]) -> tuple[CostRecord, bool]:
        """One use, booked to the narrowest thing that its caller named."""
        with transaction.atomic():
            use, by = self._use(*_parted(given), {})
            booked = booking.book([use], by=by)[0]
            _must_be_there(use, booked, _known([booked]))
        return booked.row(), booked.is_new

    def _use(
        self, fields: dict[str, Any], tokens: dict[str, int], places: dict[tuple[Any, ...], dict[str, Any]]
    ) -> tuple[booking.Use, Any]:
        """The use, and who reports it; `places` remembers those that were found good in this request."""
        named = {name: fields.pop(name) for name in _PLACE if name in fields}
        key = tuple([id(value) if name in _REFS else value for name, value in named.items()])
        if key not in places:
            places[key] = self._of_lease(named) if self.principal.is_worker else self._of_person(named)
        place = places[key]
        if self.principal.is_worker and "override_reason" in fields:
            raise InvalidField("override_reason", "a worker's use belongs to the attempt of its lease")
        return booking.Use(**{**place["use"], **fields}, tokens=tokens), place["by"]

    def _of_lease(self, named: dict[str, Any]) -> dict[str, Any]:
        for name in ("lease", "generation"):
            if name not in named:
                raise MissingField(name)
        for name in _REFS:
            if name in named:
                raise InvalidField(name, "a worker's use belongs to the attempt of its lease")
        lease_id, generation = named["lease"], named["generation"]
        rows = Lease.objects.visible_to(self.principal).select_related("task__run", "attempt", "worker__api_key")
        lease = rows.select_for_update(no_key=True, of=("self",)).filter(pk=lease_id).first()
        if lease is None:
            raise NotFound.of("lease")
        by = claims.actor(lease.worker)
        if not lease.is_live or generation != lease.generation or generation != lease.task.generation:
            raise StaleClaim(generation, lease, by)
        return {"use": {"attempt": lease.attempt, "worker": lease.worker, "source": "agent"}, "by": by}

    def _of_person(self, named: dict[str, Any]) -> dict[str, Any]:
        for name in ("lease", "generation"):
            if name in named:
                raise InvalidField(name, "only a worker's key quotes a lease")
        task: Task | None = named.get("task")
        run: Run | None = named.get("run")
        project: Project | None = named.get("project")
        if task is not None and run is not None and task.run_id != run.pk:
            raise InvalidField("task", "a task of another run")
        run = run or (task.run if task else None)
        if project is not None and run is not None and run.project_id != project.pk:
            raise InvalidField("run", "a run of another project")
        self.must_in(run.project_id if run else project)
        project = project or (run.project if run else None)
        return {"use": {"task": task, "run": run, "project": project, "source": "api"}, "by": self.by}

    @extend_schema(request=Reason, responses=Voided)
    @action(detail=True, methods=["post"])
    def void(self, request: Request, id: str) -> Response:
        """Take it out of every sum. Refuses with `reason_required`."""
        return self._void(self.body(Reason)["reason"])

    @extend_schema(
        parameters=[OpenApiParameter("reason", str, description="Why; a body with `reason` does as well.")],
        responses={200: Voided},
    )
    def destroy(self, request: Request, id: str) -> Response:
        """The same as `void/`: a record is never deleted."""
        given = request.query_params.get("reason")
        return self._void(self.body(Reason)["reason"] if given is None else given)

    def _void(self, reason: str) -> Response:
        row = self.get_object()
        return Response({"voided": row.void(need_reason(reason)[:2000], by=self.by)})

    @extend_schema(
        parameters=[
            OpenApiParameter(
                "group_by", str, description=f"Of {', '.join(GROUPS)}, parted by commas; `day` unless told."
            ),
            INTO,
        ],
        responses=Summary,
    )
    @action(detail=False, methods=["get"], pagination_class=None)
    def summary(self, request: Request) -> Response:
        """The sums of the live records that the filters leave, by group and in all.

        Refuses with `no_exchange_rate` when `into` asks for what the settings' table has no rate for.
        """
        names = [name.strip() for name in request.query_params.get("group_by", "day").split(",")]
        for name in names:
            if name not in GROUPS:
                raise BadQuery("group_by", f"of {', '.join(GROUPS)}, not “{name[:80]}”")
        names = list(dict.fromkeys(names))
        asked = {name for name, value in request.query_params.items() if value and name not in ("group_by", "into")}

        def grouped(by: list[str]) -> list[dict[str, Any]]:
            if asked <= _IN_SUMS:
                groups: QuerySet[Any, dict[str, Any]] = reports.summed(self._sums(), by)
            else:
                groups = _summed(self.filter_queryset(self.get_queryset()).order_by(), by)
            found = list(groups[: MOST_GROUPS + 1])
            if len(found) > MOST_GROUPS:
                raise BadQuery("group_by", f"more than {MOST_GROUPS} groups; filter, or group by less")
            return found

        found = grouped(names)
        told: dict[str, Any] = {"results": found, "totals": reports.totals_of(found)}
        if into := request.query_params.get("into"):
            told["converted"] = reports.converted(found if names == ["day"] else grouped(["day"]), into)
        return Response(Summary(told).data)

    def _sums(self) -> QuerySet[DailySpend]:
        """The sums by day that the caller may see and the address asks for."""
        rows = DailySpend.objects.visible_to(self.principal)
        for name in sorted(_IN_SUMS):
            value = self.request.query_params.get(name)
            if not value:
                continue
            if name == "project":
                try:
                    rows = rows.filter(project=find_project(Project.objects.visible_to(self.principal), value))
                except NotFound:
                    return rows.none()
            elif name in ("phase", "workstream", "worker", "tool"):
                IdField().run_validation(value)
                rows = rows.filter(**{f"{name}_id": value})
            elif name == "first":
                rows = rows.filter(day__gte=_day(name, value))
            elif name == "last":
                rows = rows.filter(day__lte=_day(name, value))
            else:
                rows = rows.filter(**{name: value})
        return rows

    def _days(self) -> tuple[date, date]:
        """The days (UTC) that the address asks for; the last thirty unless told."""
        today = db_now().astimezone(UTC).date()
        asked = self.request.query_params
        last = _day("last", asked["last"]) if asked.get("last") else today
        first = _day("first", asked["first"]) if asked.get("first") else last - timedelta(days=29)
        if not first <= last <= first + timedelta(days=366):
            raise BadQuery("first", "a day at most a year before the last")
        return first, last

    @extend_schema(
        parameters=[
            OpenApiParameter("by", str, enum=list(reports.LANDED_BY), description="`tool` unless told."),
            OpenApiParameter("first", date, description="UTC; 29 days before the last unless told."),
            OpenApiParameter("last", date, description="UTC; today unless told."),
        ],
        responses=LandedSums,
        filters=False,
    )
    @action(detail=False, methods=["get"], pagination_class=None)
    def landed(self, request: Request) -> Response:
        """What landed and what was wasted by which cause, and what a landed patch and a landed line cost."""
        by = request.query_params.get("by") or "tool"
        if by not in reports.LANDED_BY:
            raise BadQuery("by", f"one of {', '.join(reports.LANDED_BY)}, not “{by[:80]}”")
        self._only("by", "first", "last", "project")
        first, last = self._days()
        rows, projects = self._of_project()
        found = reports.landed(rows, by, first=first, last=last, projects=projects)
        totals = reports.by_class(rows.filter(day__gte=first, day__lte=last))
        return Response(LandedSums({"results": found, "totals": totals}).data)

    def _of_project(self) -> tuple[QuerySet[DailySpend], list[str] | None]:
        """The sums of the project that the address names, or of all that the caller sees, and those projects' ids."""
        rows, ids = DailySpend.objects.visible_to(self.principal), self.principal.project_ids()
        given = self.request.query_params.get("project")
        if given:
            project = find_project(Project.objects.visible_to(self.principal), given)
            return rows.filter(project=project), [project.pk]
        return rows, None if ids is None else sorted(ids)

    def _only(self, *names: str) -> None:
        for name in self.request.query_params:
            if name not in names:
                raise BadQuery(name, f"unknown parameter; known are {', '.join(names)}", code="unknown_filter")

    @extend_schema(responses=Truths, filters=False, parameters=[OpenApiParameter("project", str)])
    @action(detail=False, methods=["get"], pagination_class=None)
    def truth(self, request: Request) -> Response:
        """The truth meter: of the newest sessions, what the tool says beside our price, and the likely cause."""
        self._only("project")
        records = CostRecord.objects.visible_to(self.principal)
        if given := request.query_params.get("project"):
            records = records.filter(project=find_project(Project.objects.visible_to(self.principal), given))
        return Response(Truths({"results": reports.truths(records)}).data)

    @extend_schema(
        responses=Statement,
        filters=False,
        parameters=[
            OpenApiParameter("month", str, description="YYYY-MM, UTC; this month unless told."),
            OpenApiParameter("project", str),
            INTO,
        ],
    )
    @action(detail=False, methods=["get"], pagination_class=None)
    def statement(self, request: Request) -> Response:
        """One month for the books: per currency by class, and by project, tool and model.

        Refuses with `no_exchange_rate` when `into` asks for what the settings' table has no rate for.
        """
        self._only("month", "project", "into")
        given = request.query_params.get("month") or db_now().astimezone(UTC).strftime("%Y-%m")
        if not re.fullmatch(r"20[0-9]{2}-(0[1-9]|1[0-2])", given, re.ASCII):
            raise BadQuery("month", f"a month as YYYY-MM, not “{given[:40]}”")
        rows, _ids = self._of_project()
        told = reports.statement(rows, int(given[:4]), int(given[5:]))
        if into := request.query_params.get("into"):
            inside = rows.filter(day__gte=told["first"], day__lte=told["last"])
            told["converted"] = reports.converted(reports.summed(inside, ["day"]), into)
        return Response(Statement(told).data)

    @extend_schema(
        responses={(200, "text/csv"): OpenApiTypes.STR},
        description="Every record that the filters leave, oldest first, as CSV; voided ones with their reason.",
    )
    @action(detail=False, methods=["get"], pagination_class=None)
    def export(self, request: Request) -> StreamingHttpResponse:
        """Every record that the filters leave, oldest first, as CSV; voided ones with their reason."""
        rows = self.filter_queryset(CostRecord.objects.visible_to(self.principal)).order_by()
        answer = StreamingHttpResponse(
            reports.csv_lines(reports.exported(rows)), content_type="text/csv; charset=utf-8"
        )
        answer["Content-Disposition"] = 'attachment; filename="costs.csv"'
        return answer


_REFS = ("project", "run", "task")
_IN_SUMS = {
    "project", "phase", "workstream", "worker", "tool", "model", "landing", "waste_cause", "currency", "resource_type",
    "first", "last",
}  # fmt: skip
"""The filters that the sums by day can answer; any other asks the records."""

_PLACE = (*_REFS, "lease", "generation")
_TOKEN_CLASSES = {f"tokens_{name}": name for name in pricing.CLASSES}

# What the quick way reads: fields with the length of a text, or the highest number, that the serializer takes as it is.
_PLAIN_TEXTS = {
    "resource_type": 200, "resource_name": 200, "model": 100, "provider": 64, "currency": 3, "usage_unit": 32,
    "source": 64, "idempotency_key": 200, "session": 200, "stated_amount": 40, "amount": 40, "usage_quantity": 40,
    "usage_rate": 40, "duration_seconds": 40, "gateway_amount": 40,
}  # fmt: skip
_PLAIN_COUNTS = {
    **dict.fromkeys(_TOKEN_CLASSES, 10**15), "reasoning": 10**15, "web_searches": 10**9, "generation": 2**31 - 1,
}  # fmt: skip


def _is_plain(text: str, most: int) -> bool:
    return 0 < len(text) <= most and not text[0].isspace() and not text[-1].isspace()


def _parted(given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, int]]:
    """The fields of a use beside its tokens."""
    tokens = {_TOKEN_CLASSES[name]: value for name, value in given.items() if name in _TOKEN_CLASSES}
    return {name: value for name, value in given.items() if name not in _TOKEN_CLASSES}, tokens


def _known(booked: Iterable[booking.Booked]) -> dict[str, dict[str, Any]]:
    """The records that were booked before, by their ids. One query; none when all are new."""
    ids = [one.pk for one in booked if not one.is_new]
    if not ids:
        return {}
    columns = ("leaf_id", "amount", "currency", "basis", "unpriced")
    return {row.pop("pk"): row for row in CostRecord.objects.filter(pk__in=ids).values("pk", *columns)}


def _must_be_there(use: booking.Use, booked: booking.Booked, known: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises Refused for a known record that stands elsewhere: nothing of it is shown."""
    if not booked.is_new:
        leaf = next((row for row in (use.attempt, use.task, use.run, use.project) if row is not None), None)
        if known[booked.pk]["leaf_id"] != (leaf and leaf.pk):
            raise Refused("This source and idempotency_key were used for something else", code="duplicate_key")


def _brief(one: booking.Booked, known: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    values = one.values if one.is_new else known[one.pk]
    return {
        "id": one.pk,
        "is_new": one.is_new,
        "amount": f"{values['amount']:.6f}",
        "currency": values["currency"],
        "basis": values["basis"],
        "unpriced": values["unpriced"],
    }


def _numbered(refusal: InvalidField, number: int) -> InvalidField:
    refusal.parts.pop("number", None)
    refusal.parts["field"] = f"[{number}].{refusal.parts.get('field', '')}"
    return refusal


def _day(name: str, given: str) -> date:
    try:
        return date.fromisoformat(given)
    except ValueError:
        raise BadQuery(name, f"a day as YYYY-MM-DD, not “{given[:40]}”") from None


def _summed(rows: QuerySet[CostRecord], names: list[str]) -> QuerySet[Any, dict[str, Any]]:
    """Amount, unpriced amount and number of the records by these groups and the currency."""
    columns = [GROUPS[name] for name in names]
    if "day" in names:
        rows = rows.annotate(day=TruncDate("recorded_at", tzinfo=UTC))
    return (
        rows.values(*columns, "currency")
        .annotate(
            total=Sum("amount"),
            unpriced_amount=Sum("amount", filter=Q(unpriced=True), default=Decimal(0)),
            count=Count("pk"),
        )
        .order_by(*columns, "currency")
    )


# -- prices ------------------------------------------------------------------------------------------------------

BORN_WITH = (
    "provider", "model", "currency", "effective_from", "uncached_input", "cache_read", "cache_write_5m",
    "cache_write_1h", "output", "per_request", "per_search", "tiers", "source", "price_version", "dated",
)  # fmt: skip


class PriceSerializer(StrictModel):
    """What a model costs per million tokens. Only `aliases` and `effective_to` may change: else it is a new price."""

    aliases = serializers.ListField(child=serializers.CharField(max_length=100), required=False, max_length=100)
    tiers = serializers.ListField(child=serializers.DictField(), required=False, max_length=10)

    class Meta:
        model = Price
        fields = ("id", "version", "created_at", "updated_at", *BORN_WITH, "aliases", "effective_to", "superseded_at")
        read_only_fields = ("id", "version", "created_at", "updated_at", "superseded_at")
        extra_kwargs = {
            name: {"min_value": Decimal(0)}
            for name in (
                "uncached_input",
                "cache_read",
                "cache_write_5m",
                "cache_write_1h",
                "output",
                "per_request",
                "per_search",
            )
        }

    def validate_currency(self, value: str) -> str:
        """Three upper-case letters."""
        return pricing.check_currency(value)

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """A price ends after it began."""
        start = attrs.get("effective_from") or self.instance.effective_from
        end = attrs.get("effective_to")
        if end is not None and end <= start:
            raise InvalidField("effective_to", "a price ends after it began")
        return attrs


CORRECTED = (
    "aliases", "uncached_input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "per_request",
    "per_search", "tiers", "source", "price_version", "dated",
)  # fmt: skip


class Correction(PriceSerializer):
    """What is otherwise in the corrected version; what is not named stays."""

    price_version = serializers.CharField(max_length=64)

    class Meta(PriceSerializer.Meta):
        fields = CORRECTED  # type: ignore[assignment]
        read_only_fields = ()  # type: ignore[assignment]
        extra_kwargs = {
            name: {**PriceSerializer.Meta.extra_kwargs.get(name, {}), "required": False} for name in CORRECTED
        }

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """The times are those of the price."""
        return attrs


class Repricing(Strict):
    """Which records are compared with their prices as they are known now; a dry run changes nothing."""

    dry_run = serializers.BooleanField(required=False, default=True)
    provider = serializers.CharField(required=False, allow_blank=True, default="", max_length=64)
    model = serializers.CharField(required=False, allow_blank=True, default="", max_length=100)
    first = serializers.DateField(required=False, allow_null=True, default=None, help_text="Recorded on it, in UTC.")
    last = serializers.DateField(required=False, allow_null=True, default=None, help_text="The last day, in UTC.")
    after = IdField(required=False, default="", allow_blank=True, help_text="`next` of the answer before.")
    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)


class RepricedSum(serializers.Serializer[Any]):
    """Records of one model whose price is another now, and what they came to and come to."""

    provider = serializers.CharField(allow_blank=True)
    model = serializers.CharField()
    basis = serializers.CharField(help_text="`priced`, or `ceiling` where no price was known.")
    currency = serializers.CharField()
    new_currency = serializers.CharField()
    price_source = serializers.CharField()
    price_version = serializers.CharField()
    records = serializers.IntegerField()
    before = serializers.DecimalField(max_digits=24, decimal_places=6)
    after = serializers.DecimalField(max_digits=24, decimal_places=6)


class Repriced(serializers.Serializer[Any]):
    """What a repricing found, and did unless it was dry."""

    dry_run = serializers.BooleanField()
    looked_at = serializers.IntegerField()
    rebooked = serializers.IntegerField()
    results = RepricedSum(many=True)
    next = serializers.CharField(allow_null=True, help_text="Where to go on; null when everything was seen.")


class PriceFilters(Filters):
    """By provider and model."""

    class Meta:
        model = Price
        fields = ("provider", "model", "currency", "source", "effective_from")


class PriceEndpoint(DefinitionEndpoint):
    """The prices of the installation: everybody reads them, its admin keeps them."""

    queryset = Price.objects.all()
    serializer_class = PriceSerializer
    filterset_class = PriceFilters
    fixed = BORN_WITH
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "create": INSTALLATION,
        "partial_update": INSTALLATION,
        "destroy": INSTALLATION,
        "supersede": INSTALLATION,
        "reprice": INSTALLATION,
    }

    @extend_schema(request=Correction, responses={201: PriceSerializer})
    @action(detail=True, methods=["post"])
    def supersede(self, request: Request, id: str) -> Response:
        """Correct a price by a new version over the same time: 201, the new one; this one prices nothing more.

        What it has priced stays as it is until `reprice/`. Refuses with `conflict` when it was superseded before.
        """
        row: Price = self.get_object()
        new = row.supersede(by=self.by, **self.body(Correction))
        return self.reply(new, 201, Location=f"{request.path.removesuffix(f'{row.pk}/supersede/')}{new.pk}/")

    @extend_schema(request=Repricing, responses=Repriced)
    @action(detail=False, methods=["post"])
    def reprice(self, request: Request) -> Response:
        """Compare what was priced by tokens with the prices as they are known now, up to 5,000 records at once.

        With `dry_run` false each that differs is voided, and booked anew in its place; a `reason` is owed then
        (`reason_required`). Call again with `after` as long as `next` is not null.
        """
        given = self.body(Repricing)
        found = repricing.reprice(
            by=self.by,
            reason=given["reason"],
            dry_run=given["dry_run"],
            provider=given["provider"],
            models=[given["model"]] if given["model"] else [],
            since=_midnight(given["first"]),
            until=_midnight(given["last"], days=1),
            after=given["after"],
        )
        told = {
            "dry_run": given["dry_run"],
            "looked_at": found.looked_at,
            "rebooked": found.rebooked,
            "results": found.rows(),
            "next": found.following or None,
        }
        return Response(Repriced(told).data)


def _midnight(day: date | None, days: int = 0) -> datetime | None:
    """The beginning of a day in UTC, so many days later."""
    return None if day is None else datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=days)


# -- budgets -----------------------------------------------------------------------------------------------------


class Standing(serializers.Serializer[Any]):
    """Where a budget stands in its running period, and what it will have spent at the end."""

    starts_at = serializers.DateTimeField(allow_null=True)
    ends_at = serializers.DateTimeField(allow_null=True)
    status = serializers.ChoiceField(["ok", "warning", "exceeded"])
    spent = serializers.DecimalField(max_digits=24, decimal_places=6)
    reserved = serializers.DecimalField(max_digits=24, decimal_places=6)
    remaining = serializers.DecimalField(max_digits=24, decimal_places=6)
    ratio = serializers.DecimalField(max_digits=24, decimal_places=4, allow_null=True)
    forecast = serializers.DecimalField(
        max_digits=24, decimal_places=6, allow_null=True, source="forecast.amount", help_text="At the period's end."
    )
    forecast_basis = serializers.CharField(source="forecast.basis")
    forecast_because = serializers.CharField(source="forecast.because", help_text="The basis, for people.")
    reaches_limit_at = serializers.DateTimeField(allow_null=True, source="forecast.reaches_limit_at")


class BudgetSerializer(StrictModel):
    """A limit over a scope. The limit is changed by `change-limit/`, with a reason."""

    scope_id = serializers.CharField(source="scope_ref", required=False, allow_blank=True, max_length=200)
    warn_steps = serializers.ListField(
        child=serializers.CharField(max_length=10), required=False, max_length=10, help_text="Decimal parts: 0.95."
    )

    class Meta:
        model = Budget
        fields = (
            "id", "version", "created_at", "updated_at", "project", "key", "scope_kind", "scope_id", "currency",
            "limit_amount", "period", "timezone", "warn_ratio", "warn_steps", "on_breach", "active",
        )  # fmt: skip
        read_only_fields = ("id", "version", "created_at", "updated_at")
        extra_kwargs = {"limit_amount": {"min_value": Decimal(0)}}

    def to_internal_value(self, data: Any) -> Any:
        """The column's name for the scope."""
        read = super().to_internal_value(data)
        if "scope_ref" in read:
            read["scope_id"] = read.pop("scope_ref")
        return read


class BudgetFilters(Filters):
    """By project, scope and state."""

    project = ProjectFilter("project")

    class Meta:
        model = Budget
        fields = ("key", "scope_kind", "currency", "period", "active", "created_at")


class NewLimit(Strict):
    """The limit from now on, also of the running period, and why."""

    limit_amount = serializers.DecimalField(max_digits=18, decimal_places=6, min_value=Decimal(0))
    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)


class BudgetEndpoint(DefinitionEndpoint):
    """Limits over scopes and periods, kept by the project's admin; `standing/` tells where one stands."""

    queryset = Budget.objects.select_related("project")
    serializer_class = BudgetSerializer
    filterset_class = BudgetFilters
    fixed = ("project", "key", "scope_kind", "scope_id", "currency", "limit_amount")
    needs = {**DefinitionEndpoint.needs, "change_limit": "admin", "standing": "viewer"}

    @extend_schema(request=NewLimit, responses=BudgetSerializer)
    @action(detail=True, methods=["post"], url_path="change-limit")
    def change_limit(self, request: Request, id: str) -> Response:
        """Raise or lower the limit: a raise lets go what the budget holds. Refuses with `reason_required`."""
        row, given = self.get_object(), self.body(NewLimit)
        row.change_limit(given["limit_amount"], by=self.by, reason=given["reason"])
        return self.reply(row)

    @extend_schema(responses=Standing)
    @action(detail=True, methods=["get"])
    def standing(self, request: Request, id: str) -> Response:
        """Spent, set aside, left, and the forecast to the end of the period with what it rests on."""
        (told,) = reports.standings([self.get_object()], db_now())
        return Response(Standing(told).data)


# -- reservations ------------------------------------------------------------------------------------------------


class ReservationSerializer(StrictModel):
    """Money set aside before work starts."""

    class Meta:
        model = Reservation
        fields = (
            "id", "version", "created_at", "updated_at", "project", "run", "task", "generation", "amount", "used",
            "currency", "key", "state", "expires_at",
        )  # fmt: skip
        read_only_fields = fields


class NewReservation(Strict):
    """How much to set aside, for what, and for how long at most."""

    project = ProjectRef(required=False)
    run = Ref(queryset=Run.objects.select_related("project"), required=False)
    task = Ref(queryset=Task.objects.select_related("run__project"), required=False)
    amount = Figure()
    currency = serializers.CharField(required=False, default="USD", max_length=3)
    seconds = serializers.IntegerField(required=False, default=3600, min_value=1, max_value=budget.MOST_SECONDS)
    key = serializers.CharField(required=False, default="", allow_blank=True, max_length=200)


class Settlement(Strict):
    """What it came to; the rest is given back."""

    amount = Figure()
    model = serializers.CharField(required=False, allow_blank=True, default="", max_length=100)
    resource_type = serializers.CharField(required=False, default="custom", max_length=20)


class ReservationFilters(Filters):
    """By state and what it is for."""

    project = ProjectFilter("project")

    class Meta:
        model = Reservation
        fields = ("run", "task", "state", "created_at")


class ReservationEndpoint(Listed, Endpoint):
    """Money set aside: by claims for their leases, and here by programs for work that Signalbox does not hand out."""

    queryset = Reservation.objects.select_related("task__run", "run")
    serializer_class = ReservationSerializer
    filterset_class = ReservationFilters
    needs = {
        "list": "viewer", "retrieve": "viewer", "create": "operator", "settle": "operator", "release": "operator",
    }  # fmt: skip

    @extend_schema(request=NewReservation, responses={201: ReservationSerializer, 200: ReservationSerializer})
    def create(self, request: Request) -> Response:
        """Set money aside in every budget over the place: 201. The same `key` in a project again: 200, the first one.

        Refuses with `budget_exceeded`, naming the budget with the least left.
        """
        given = self.body(NewReservation)
        task, run, project = given.get("task"), given.get("run"), given.get("project")
        run = run or (task.run if task else None)
        project = project or (run.project if run else None)
        if (task is not None and task.run_id != run.pk) or (run is not None and run.project_id != project.pk):
            raise InvalidField("project", "project, run and task belong together")
        if project is None:
            raise MissingField("project")
        self.must_in(project)
        if given["key"]:
            known = Reservation.objects.filter(project=project, key=given["key"]).first()
            if known is not None:
                if known.amount != pricing.figure("amount", given["amount"]):
                    raise Refused(f"Key {given['key']} was used for another amount", code="duplicate_key")
                return self.reply(known)
        place = {"project": project, "run": run, "task": task}
        if run is not None:
            place.update(phase=run.phase_id, workstream=run.workstream_id, person=run.requested_by)
        scopes = budget.scopes_of(place)
        try:
            with transaction.atomic():
                covers = [one for one in budget.covering(scopes, [project.pk]) if one.covers(scopes, project.pk)]
                row = Reservation.objects.reserve(
                    given["amount"],
                    covers,
                    by=self.by,
                    currency=pricing.check_currency(given["currency"]),
                    project_id=project.pk,
                    run=run,
                    task=task,
                    seconds=given["seconds"],
                    key=given["key"],
                )
        except BudgetExceeded as refusal:
            for pk, asked in getattr(refusal, "breaches", ()):
                budget.note_refusal(pk, asked, by=self.by)
            raise
        return self.reply(row, 201, Location=f"{request.path}{row.pk}/")

    @extend_schema(request=Settlement, responses=ReservationSerializer)
    @action(detail=True, methods=["post"])
    def settle(self, request: Request, id: str) -> Response:
        """Book what it came to, in full, and give the rest back. Refuses with `invalid_move` once it has ended."""
        seen = self.get_object()
        given = self.body(Settlement)
        with transaction.atomic():
            row = find_reservation(seen.pk)
            if row.generation is not None:
                raise Refused("A lease's reservation is settled by its lease", code="invalid_move", state=row.state)
            row.settle(given["amount"], by=self.by, model=given["model"], resource_type=given["resource_type"])
        return self.reply(row)

    @extend_schema(request=Reason, responses=ReservationSerializer)
    @action(detail=True, methods=["post"])
    def release(self, request: Request, id: str) -> Response:
        """Give it back unused. Quiet when it has ended; a lease's ends with its lease (`invalid_move`)."""
        row = self.get_object()
        if row.generation is not None and row.state == Reservation.State.HELD:
            raise Refused("A lease's reservation ends with its lease", code="invalid_move", state=row.state)
        row.end(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(row)


router = Router()
router.register("costs", CostEndpoint, basename="cost")
router.register("prices", PriceEndpoint, basename="price")
router.register("budgets", BudgetEndpoint, basename="budget")
router.register("reservations", ReservationEndpoint, basename="reservation")
urlpatterns = router.urls
