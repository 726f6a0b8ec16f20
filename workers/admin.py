"""Workers and leases in the admin: to look at; pause, resume, drain, stop, and declare crashed what is gone."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from pipeline.admin_site import LookOnlyAdmin, move_action
from workers.models import Lease, Worker, health


class HealthFilter(admin.SimpleListFilter):
    """Health now, by the same expression as everywhere."""

    title = _("health")
    parameter_name = "health"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        """The four words."""
        return health.CHOICES

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """The living ones of that health."""
        words = [self.value()] if self.value() in dict(health.CHOICES) else []
        return queryset.of_health(*words) if words else queryset


class ArchiveFilter(admin.SimpleListFilter):
    """The list of the living and the lately finished, or the archive."""

    title = _("archive")
    parameter_name = "archived"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        """Beside the list."""
        return [("true", _("archived"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """A worker's own page finds it in the archive too."""
        return queryset.archived() if self.value() == "true" else queryset.listed()


@admin.register(Worker)
class WorkerAdmin(LookOnlyAdmin):
    """Agent processes."""

    list_display = [
        "name", "worker_type", "state", "health_now", "current_task", "activity", "transport_seen_at", "progress_at",
        "stop_label", "tasks_completed", "tasks_failed",
    ]  # fmt: skip
    list_filter = [HealthFilter, "state", "worker_type", ArchiveFilter]
    list_select_related = ["current_task"]
    search_fields = ["name", "host"]
    heavy = ("crash_trace", "metadata")
    actions = [
        move_action("pause", _("Pause"), role="operator"),
        move_action("resume", _("Resume"), role="operator"),
        move_action("request_shutdown", _("Drain"), role="operator", mode="drain"),
        move_action("stop", _("Stop"), role="operator", reason=True),
        move_action("declare_crashed", _("Declare crashed"), role="operator", reason=True),
    ]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        """With the health now of each."""
        return super().get_queryset(request).with_health()

    @admin.display(description=_("health"))
    def health_now(self, row: Worker) -> str:
        """Beside the state, as on the console's pages."""
        return str(dict(health.CHOICES).get(row.health_now, ""))

    @admin.display(description=_("stop"))
    def stop_label(self, row: Worker) -> str:
        """What may truthfully be said about its end."""
        return row.stop_label


@admin.register(Lease)
class LeaseAdmin(LookOnlyAdmin):
    """Rights of one worker to one task."""

    list_display = [
        "id", "worker", "task", "generation", "acquired_at", "expires_at", "stop_label", "ended_at", "end_cause",
    ]  # fmt: skip
    list_filter = ["end_cause"]
    list_select_related = ["worker", "task"]

    @admin.display(description=_("stop"))
    def stop_label(self, row: Lease) -> str:
        """What may truthfully be said about stopping it."""
        return row.stop_label
