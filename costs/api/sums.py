"""What it came to: sums by group, what landed for it, the truth meter, the month's statement, the export."""

import re
from datetime import UTC, date, timedelta
from decimal import Decimal
from typing import Any

from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import TruncDate
from django.http import StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from costs import exports, reports
from costs.models import CostRecord, DailySpend
from pipeline.clock import db_now
from pipeline.ids import is_id
from pipeline.models import Project
from pipeline.refusals import NotFound
from pipeline.rest import BadQuery, Endpoint, IdField, find_project

MOST_GROUPS = 5000

GROUPS = reports.GROUPS
"""What a summary may be grouped by, and the column of each."""

_IN_SUMS = {
    "project", "phase", "workstream", "worker", "tool", "model", "landing", "waste_cause", "currency", "resource_type",
    "first", "last",
}  # fmt: skip
"""The filters that the sums by day can answer; any other asks the records."""

INTO = OpenApiParameter(
    "into", str, description="Also the sum of everything in this currency, where the settings have the days' rates."
)


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
    source = serializers.CharField()  # type: ignore[assignment]  # DRF takes declared fields off the class


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
    label = serializers.CharField(help_text="Stable.")  # type: ignore[assignment]  # as above
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


class Sums(Endpoint):
    """The sums over the records that the caller may see; a part of the endpoint of the records."""

    other_parameters = ("group_by", "into", "by", "first", "last", "month", "format")

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
                if not is_id(value):
                    raise BadQuery(name, f"an id of 26 letters and digits, not “{value[:40]}”")
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
        parameters=[OpenApiParameter("format", str, enum=list(exports.FORMATS), description="`csv` unless told.")],
        responses={
            (200, "text/csv"): OpenApiTypes.STR,
            (200, exports.FORMATS["parquet"]): OpenApiTypes.BINARY,
        },
        description="Every record that the filters leave, oldest first; voided ones with their reason.",
    )
    @action(detail=False, methods=["get"], pagination_class=None)
    def export(self, request: Request) -> StreamingHttpResponse:
        """Every record that the filters leave, oldest first; voided ones with their reason."""
        given = request.query_params.get("format", "csv")
        if given not in exports.FORMATS:
            raise BadQuery("format", f"one of {', '.join(exports.FORMATS)}, not “{given[:40]}”")
        rows: Any = self.filter_queryset(CostRecord.objects.visible_to(self.principal)).order_by()
        return exports.answer(rows, given)


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
    found = rows.values(*columns, "currency").annotate(
        total=Sum("amount"),
        unpriced_amount=Sum("amount", filter=Q(unpriced=True), default=Decimal(0)),
        count=Count("pk"),
    )
    sums: QuerySet[Any, dict[str, Any]] = found.order_by(*columns, "currency")
    return sums
