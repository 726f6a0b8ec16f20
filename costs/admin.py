"""Prices and booked costs in the admin."""

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from costs.models import (
    Budget,
    BudgetPeriod,
    Charge,
    CostRecord,
    DailySpend,
    OtlpMark,
    OtlpMeter,
    Price,
    Reservation,
    ReservationShare,
    SignalCount,
)
from pipeline.admin_site import DefinitionAdmin, LookOnlyAdmin, move_action


@admin.register(Price)
class PriceAdmin(DefinitionAdmin):
    """What models cost; the installation's."""

    list_display = ["provider", "model", "currency", "uncached_input", "output", "effective_from", "effective_to"]
    list_filter = ["provider"]
    search_fields = ["provider", "model"]
    ordering = ["provider", "model", "-effective_from"]
    actions = [move_action("reprice", _("Reprice the records of"), role="admin", reason=True)]


@admin.register(CostRecord)
class CostRecordAdmin(LookOnlyAdmin):
    """Booked uses."""

    list_display = ["id", "project", "resource_type", "amount", "currency", "model", "basis", "landing", "voided_at"]
    list_filter = [("project", admin.RelatedOnlyFieldListFilter), "resource_type", "landing", "basis", "unpriced"]
    list_select_related = ["project"]
    search_fields = ["model", "source", "=idempotency_key"]
    actions = [move_action("void", _("Void"), role="admin", reason=True)]


@admin.register(Budget)
class BudgetAdmin(DefinitionAdmin):
    """Limits over scopes and periods. The limit itself is changed by an action, which asks for a reason."""

    fixed = ("project", "key", "scope_kind", "scope_id", "currency", "limit_amount")
    actions = [
        move_action("change_limit", _("Change the limit of"), role="admin", reason=True, figure=("new", _("New limit")))
    ]
    list_display = ["key", "project", "scope_kind", "over", "limit_amount", "currency", "period", "on_breach", "active"]
    list_filter = [("project", admin.RelatedOnlyFieldListFilter), "scope_kind", "period", "active"]
    list_select_related = ["project"]
    search_fields = ["key", "=scope_id"]

    @admin.display(description=_("over"))
    def over(self, row: Budget) -> str:
        """Which tool, model, person or row it is over."""
        return row.scope_ref


@admin.register(Reservation)
class ReservationAdmin(LookOnlyAdmin):
    """Money set aside."""

    list_display = ["id", "project", "task", "amount", "used", "currency", "state", "expires_at"]
    list_filter = [("project", admin.RelatedOnlyFieldListFilter), "state"]
    list_select_related = ["project", "task"]


@admin.register(BudgetPeriod)
class BudgetPeriodAdmin(LookOnlyAdmin):
    """What is spent and set aside in each period of a budget."""

    project_path = "budget__project"
    list_display = ["budget", "starts_at", "ends_at", "limit_amount", "spent", "reserved", "warned_at", "breached_at"]
    list_select_related = ["budget"]


@admin.register(Charge)
class ChargeAdmin(LookOnlyAdmin):
    """Which record counts in which period."""

    project_path = "record__project"
    list_display = ["id", "record", "period"]
    list_select_related = ["record", "period__budget"]


@admin.register(ReservationShare)
class ReservationShareAdmin(LookOnlyAdmin):
    """In which periods a reservation's money is set aside."""

    project_path = "reservation__project"
    list_display = ["id", "reservation", "period"]
    list_select_related = ["reservation", "period__budget"]


@admin.register(DailySpend)
class DailySpendAdmin(LookOnlyAdmin):
    """The sums by day that the pages read."""

    list_display = ["day", "project", "tool", "model", "landing", "waste_cause", "amount", "currency", "records"]
    list_filter = ["landing", "resource_type"]
    list_select_related = ["project", "tool"]


@admin.register(OtlpMeter)
class OtlpMeterAdmin(LookOnlyAdmin):
    """Sessions of tools that send OTLP, and which of their signals counts."""

    project_path = "project"
    list_display = ["meter", "tool", "counts", "sightings", "counted_only", "stated_amount", "seen_at"]
    list_filter = ["tool", "counts"]


@admin.register(OtlpMark)
class OtlpMarkAdmin(LookOnlyAdmin):
    """How far cumulative series were counted."""

    list_display = ["series", "value", "seen_at"]


@admin.register(SignalCount)
class SignalCountAdmin(LookOnlyAdmin):
    """Signals that tell of no money, by day."""

    list_display = ["day", "name", "count"]
    list_filter = ["day"]
