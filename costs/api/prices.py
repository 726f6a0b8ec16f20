"""What a model costs: prices with their sources and dates, corrected and compared anew."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from costs import pricing
from costs.models import Price, repricing
from pipeline.refusals import InvalidField
from pipeline.rest import INSTALLATION, DefinitionEndpoint, Filters, IdField, Strict, StrictModel

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
        fields: tuple[str, ...] = (
            "id", "version", "created_at", "updated_at", *BORN_WITH, "aliases", "effective_to", "superseded_at",
        )  # fmt: skip
        read_only_fields: tuple[str, ...] = ("id", "version", "created_at", "updated_at", "superseded_at")
        extra_kwargs: dict[str, dict[str, Any]] = {
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
        row = self.instance
        start = attrs["effective_from"] if row is None else attrs.get("effective_from", row.effective_from)
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
        fields = CORRECTED
        read_only_fields = ()
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
