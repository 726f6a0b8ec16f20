"""Limits over scopes and periods."""

from decimal import Decimal
from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from costs import reports
from costs.models import Budget
from pipeline.clock import db_now
from pipeline.rest import DefinitionEndpoint, Filters, ProjectFilter, Strict, StrictModel


class Standing(serializers.Serializer[Any]):
    """Where a budget stands in its running period, and what it will have spent at the end."""

    starts_at = serializers.DateTimeField(allow_null=True)
    ends_at = serializers.DateTimeField(allow_null=True)
    status = serializers.ChoiceField(["ok", "warning", "exceeded"])
    spent = serializers.DecimalField(max_digits=24, decimal_places=6)
    is_behind = serializers.BooleanField(
        source="budget.is_behind",
        help_text="What was booked in the period before is still to be added.",
    )
    reserved = serializers.DecimalField(max_digits=24, decimal_places=6)
    remaining = serializers.DecimalField(max_digits=24, decimal_places=6)
    ratio = serializers.DecimalField(max_digits=24, decimal_places=4, allow_null=True)
    forecast = serializers.DecimalField(
        max_digits=24, decimal_places=6, allow_null=True, source="forecast.amount", help_text="At the period's end."
    )
    forecast_a_day = serializers.DecimalField(
        max_digits=24,
        decimal_places=6,
        allow_null=True,
        source="forecast.a_day",
        help_text="Of a budget without a period.",
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
