"""The API of the costs: uses are booked and voided, sums are asked for, prices are kept."""

from datetime import UTC
from decimal import Decimal
from typing import Any

from django.db import transaction
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import TruncDate
from drf_spectacular.utils import OpenApiParameter, PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from costs import pricing
from costs.models import TOKEN_FIELDS, CostRecord, Price
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
    StrictModel,
)
from workers import claims
from workers.api import Use
from workers.models import Lease, StaleClaim

MOST_AT_ONCE = 1000
MOST_GROUPS = 5000

GROUPS = {
    "day": "day",
    "tool": "tool__key",
    "model": "model",
    "project": "project",
    "landing": "landing",
}
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
    reported_at = serializers.DateTimeField(required=False)


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
            "voided_by", "void_reason", "replaces",
        )  # fmt: skip
        read_only_fields = fields


class Bookings(serializers.Serializer[Any]):
    """The records of many uses, in their order."""

    results = CostSerializer(many=True)


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
    currency = serializers.CharField()
    amount = serializers.DecimalField(max_digits=24, decimal_places=6, source="total")
    unpriced_amount = serializers.DecimalField(max_digits=24, decimal_places=6)
    records = serializers.IntegerField()


class Summary(serializers.Serializer[Any]):
    """Sums by group, and in all, by currency: amounts of different currencies are never added."""

    results = Group(many=True)
    totals = Group(many=True)


class CostFilters(Filters):
    """By what it was spent on, when, and how it was priced."""

    project = ProjectFilter("project")

    class Meta:
        model = CostRecord
        fields = (
            "phase", "workstream", "run", "task", "attempt", "worker", "tool", "resource_type", "model", "provider",
            "currency", "landing", "waste_cause", "basis", "unpriced", "source", "recorded_at", "created_at",
        )  # fmt: skip


class CostEndpoint(Listed, Endpoint):
    """What was spent. A voided record is found no more, except by the address that voids it again, quietly."""

    queryset = CostRecord.objects.all()
    serializer_class = CostSerializer
    filterset_class = CostFilters
    ordering_fields = ("recorded_at", "amount")
    other_parameters = ("group_by",)
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "summary": "viewer",
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
        given = self.body(Booking, many=True)
        with transaction.atomic():
            booked = [self._book_one_of_many(number, one) for number, one in enumerate(given)]
        rows = CostRecord.objects.in_bulk(booked)
        return Response({"results": [CostSerializer(rows[pk]).data for pk in booked]}, status=201)

    def _book_one_of_many(self, number: int, given: dict[str, Any]) -> str:
        try:
            return self._book(given)[0].pk
        except InvalidField as refusal:
            refusal.parts["field"] = f"[{number}].{refusal.parts.get('field', '')}"
            raise

    def _book(self, given: dict[str, Any]) -> tuple[CostRecord, bool]:
        """One use, booked to the narrowest thing that its caller named."""
        tokens = {name: given.pop(f"tokens_{name}") for name in pricing.CLASSES if f"tokens_{name}" in given}
        with transaction.atomic():
            place = self._of_lease(given) if self.principal.is_worker else self._of_person(given)
            row, is_new = CostRecord.objects.record(**{**given, **place}, tokens=tokens)
            leaf = next(
                (place[name] for name in ("attempt", "task", "run", "project") if place.get(name) is not None), None
            )
            if not is_new and row.leaf_id != (leaf and leaf.pk):
                raise Refused("This source and idempotency_key were used for something else", code="duplicate_key")
        return row, is_new

    def _of_lease(self, given: dict[str, Any]) -> dict[str, Any]:
        for name in ("lease", "generation"):
            if name not in given:
                raise MissingField(name)
        for name in ("project", "run", "task", "override_reason"):
            if name in given:
                raise InvalidField(name, "a worker's use belongs to the attempt of its lease")
        lease_id, generation = given.pop("lease"), given.pop("generation")
        rows = Lease.objects.visible_to(self.principal).select_related("task__run", "attempt", "worker__api_key")
        lease = rows.select_for_update(no_key=True, of=("self",)).filter(pk=lease_id).first()
        if lease is None:
            raise NotFound.of("lease")
        by = claims.actor(lease.worker)
        if not lease.is_live or generation != lease.generation or generation != lease.task.generation:
            raise StaleClaim(generation, lease, by)
        given.setdefault("source", "agent")
        return {"attempt": lease.attempt, "worker": lease.worker, "by": by}

    def _of_person(self, given: dict[str, Any]) -> dict[str, Any]:
        for name in ("lease", "generation"):
            if name in given:
                raise InvalidField(name, "only a worker's key quotes a lease")
        task: Task | None = given.pop("task", None)
        run: Run | None = given.pop("run", None)
        project: Project | None = given.pop("project", None)
        if task is not None and run is not None and task.run_id != run.pk:
            raise InvalidField("task", "a task of another run")
        run = run or (task.run if task else None)
        if project is not None and run is not None and run.project_id != project.pk:
            raise InvalidField("run", "a run of another project")
        self.must_in(run.project_id if run else project)
        given.setdefault("source", "api")
        return {"task": task, "run": run, "project": project or (run.project if run else None), "by": self.by}

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
            )
        ],
        responses=Summary,
    )
    @action(detail=False, methods=["get"], pagination_class=None)
    def summary(self, request: Request) -> Response:
        """The sums of the live records that the filters leave, by group and in all."""
        names = [name.strip() for name in request.query_params.get("group_by", "day").split(",")]
        for name in names:
            if name not in GROUPS:
                raise BadQuery("group_by", f"of {', '.join(GROUPS)}, not “{name[:80]}”")
        rows = self.filter_queryset(self.get_queryset()).order_by()
        groups = list(_summed(rows, list(dict.fromkeys(names)))[: MOST_GROUPS + 1])
        if len(groups) > MOST_GROUPS:
            raise BadQuery("group_by", f"more than {MOST_GROUPS} groups; filter, or group by less")
        return Response(Summary({"results": groups, "totals": list(_summed(rows, []))}).data)


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
            records=Count("pk"),
        )
        .order_by(*columns, "currency")
    )


# -- prices ------------------------------------------------------------------------------------------------------

BORN_WITH = (
    "provider", "model", "currency", "effective_from", "uncached_input", "cache_read", "cache_write_5m",
    "cache_write_1h", "output", "per_request", "source", "price_version",
)  # fmt: skip


class PriceSerializer(StrictModel):
    """What a model costs per million tokens. Only `aliases` and `effective_to` may change: else it is a new price."""

    aliases = serializers.ListField(child=serializers.CharField(max_length=100), required=False, max_length=100)

    class Meta:
        model = Price
        fields = ("id", "version", "created_at", "updated_at", *BORN_WITH, "aliases", "effective_to", "superseded_at")
        read_only_fields = ("id", "version", "created_at", "updated_at", "superseded_at")
        extra_kwargs = {
            name: {"min_value": Decimal(0)}
            for name in ("uncached_input", "cache_read", "cache_write_5m", "cache_write_1h", "output", "per_request")
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
    }


router = Router()
router.register("costs", CostEndpoint, basename="cost")
router.register("prices", PriceEndpoint, basename="price")
urlpatterns = router.urls
