"""Seals in the admin."""

from django.contrib import admin

from ledger.models import Seal
from pipeline.admin_site import InstallationAdmin


@admin.register(Seal)
class SealAdmin(InstallationAdmin):
    """What binds the log, and where each seal is anchored."""

    list_display = ["number", "created_at", "month", "count", "root_hash", "anchor", "dropped_at"]
    list_filter = ["month"]
    search_fields = ["=root_hash", "=anchor", "=number"]
    ordering = ["-number"]
    hidden = ("leaves",)
