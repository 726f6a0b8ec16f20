"""Remotes, pushes and receipts in the admin: to look at; remotes are written by the API of the installation's admin."""

from django.contrib import admin

from ledger.models import Push, Receipt, Remote
from pipeline.admin_site import LookOnlyAdmin


@admin.register(Remote)
class RemoteAdmin(LookOnlyAdmin):
    """Where mirrors fetch from, and where landed work goes."""

    list_display = [
        "project",
        "url",
        "landing",
        "fetch_seconds",
        "enabled",
        "fetched_at",
        "fetch_error",
        "receipts_error",
    ]
    list_filter = ["landing", "enabled"]
    list_select_related = ["project"]
    search_fields = ["project__key", "url"]


@admin.register(Push)
class PushAdmin(LookOnlyAdmin):
    """Landed commits on their way."""

    list_display = ["patch", "target", "state", "attempts", "due_at", "pushed_at", "last_error"]
    list_filter = ["state"]
    list_select_related = ["patch"]
    search_fields = ["=commit_sha"]
    heavy = ("request_text",)
    project_path = "queue__project"


@admin.register(Receipt)
class ReceiptAdmin(LookOnlyAdmin):
    """Where each landed commit comes from."""

    list_display = ["commit_sha", "patch", "project", "sha256", "note", "created_at"]
    list_select_related = ["patch", "project"]
    search_fields = ["=commit_sha", "=sha256"]
    heavy = ("statement",)
