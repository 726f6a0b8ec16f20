"""What was used, and what it cost: uses are booked, one or many, and voided."""

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import transaction
from django.db.models import QuerySet
from drf_spectacular.utils import OpenApiParameter, PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from costs import pricing
from costs.api.sums import Sums
from costs.models import TOKEN_FIELDS, CostRecord, booking
from pipeline.ids import is_id
from pipeline.models import Project, Run, Task
from pipeline.refusals import InvalidField, MissingField, NotFound, Refused, need_reason
from pipeline.rest import (
    WORKER,
    Endpoint,
    Filters,
    IdField,
    Listed,
    ProjectFilter,
    ProjectRef,
    Reason,
    Ref,
    StrictModel,
)
from workers import claims
from workers.api import Figure, Use
from workers.models import Lease, StaleClaim

MOST_AT_ONCE = 1000

_REFS = ("project", "run", "task")
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


class CostFilters(Filters):
    """By what it was spent on, when, and how it was priced."""

    project = ProjectFilter("project")

    class Meta:
        model = CostRecord
        fields = (
            "phase", "workstream", "run", "task", "attempt", "worker", "tool", "resource_type", "model", "provider",
            "currency", "landing", "waste_cause", "basis", "unpriced", "source", "recorded_at", "created_at",
        )  # fmt: skip


class CostEndpoint(Sums, Listed, Endpoint):
    """What was spent. A voided record is found no more, except by the address that voids it again, quietly."""

    queryset = CostRecord.objects.all()
    serializer_class = CostSerializer
    filterset_class = CostFilters
    ordering_fields = ("recorded_at", "amount")
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
            given = [_parted(one) for one in self.bodies(Booking)]
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
        for number, document in enumerate(documents):
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
                        try:
                            known[name, value] = refs[name].run_validation(value)
                        except serializers.ValidationError:
                            return None  # the serializer says in which of them
                        except NotFound as refusal:
                            refusal.parts["field"] = f"[{number}].{name}"
                            raise
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
