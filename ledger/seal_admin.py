"""Seals in the admin."""

from django.contrib import admin
from django.utils.translation import gettext_lazy

from ledger.models import Seal
from pipeline.admin_site import InstallationAdmin, shortened

ROOT = shortened("root_hash", gettext_lazy("root hash"))
ANCHOR = shortened("anchor", gettext_lazy("anchor"))


@admin.register(Seal)
class SealAdmin(InstallationAdmin):
    """What binds the log, and where each seal is anchored."""

    list_display = ["number", "created_at", "month", "count", ROOT, ANCHOR, "dropped_at"]
    list_filter = ["month"]
    search_fields = ["=root_hash", "=anchor", "=number"]
    ordering = ["-number"]
    hidden = ("leaves",)
