"""Prices and booked costs in the admin."""

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from costs.models import Budget, CostRecord, Price, Reservation
from pipeline.admin_site import DefinitionAdmin, LookOnlyAdmin, move_action


@admin.register(Price)
class PriceAdmin(DefinitionAdmin):
    """What models cost; the installation's."""

    list_display = ["provider", "model", "currency", "uncached_input", "output", "effective_from", "effective_to"]
    list_filter = ["provider"]
    search_fields = ["provider", "model"]
    ordering = ["provider", "model", "-effective_from"]


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
    """Limits over scopes and periods. The limit itself is changed by `change-limit`, which asks for a reason."""

    list_display = ["key", "project", "scope_kind", "limit_amount", "currency", "period", "on_breach", "active"]
    list_filter = [("project", admin.RelatedOnlyFieldListFilter), "scope_kind", "period", "active"]
    list_select_related = ["project"]
    search_fields = ["key"]


@admin.register(Reservation)
class ReservationAdmin(LookOnlyAdmin):
    """Money set aside."""

    list_display = ["id", "project", "task", "amount", "used", "currency", "state", "expires_at"]
    list_filter = [("project", admin.RelatedOnlyFieldListFilter), "state"]
    list_select_related = ["project", "task"]
