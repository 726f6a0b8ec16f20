"""Workers and leases in the admin: to look at, and to pause, resume and drain."""

from django.contrib import admin
from django.utils.translation import gettext_lazy as _

from pipeline.admin_site import LookOnlyAdmin, move_action
from workers.models import Lease, Worker


@admin.register(Worker)
class WorkerAdmin(LookOnlyAdmin):
    """Agent processes."""

    list_display = ["name", "worker_type", "state", "current_task", "activity", "transport_seen_at", "tasks_completed"]
    list_filter = ["state", "worker_type"]
    list_select_related = ["current_task"]
    search_fields = ["name", "host"]
    heavy = ("crash_trace", "metadata")
    actions = [
        move_action("pause", _("Pause"), role="operator"),
        move_action("resume", _("Resume"), role="operator"),
        move_action("request_shutdown", _("Drain"), role="operator", mode="drain"),
    ]


@admin.register(Lease)
class LeaseAdmin(LookOnlyAdmin):
    """Rights of one worker to one task."""

    list_display = ["id", "worker", "task", "generation", "acquired_at", "expires_at", "ended_at", "end_cause"]
    list_filter = ["end_cause"]
    list_select_related = ["worker", "task"]
