"""Workers and leases in the admin: to look at; assign, pause, resume, drain, stop, declare crashed what is gone."""

from typing import Any

from django.contrib import admin, messages
from django.contrib.admin import action as admin_action
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.utils.translation import gettext_lazy as _

from pipeline.admin_site import LookOnlyAdmin, move_action
from pipeline.auth import principal_of
from pipeline.ids import is_id
from pipeline.models import Task
from pipeline.refusals import NotFound, Refused
from workers import claims
from workers.models import Lease, Worker, health
from workers.models.worker import WorkerQuerySet
from workers.pages import offered, project_of, waiting_for


class HealthFilter(admin.SimpleListFilter):
    """Health now, by the same expression as everywhere."""

    title = _("health")
    parameter_name = "health"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        """The four words."""
        return health.CHOICES

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
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

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
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
        "assign",
        move_action("pause", _("Pause"), role="operator"),
        move_action("resume", _("Resume"), role="operator"),
        move_action("request_shutdown", _("Drain"), role="operator", mode="drain"),
        move_action("stop", _("Stop"), role="operator", reason=True),
        move_action("declare_crashed", _("Declare crashed"), role="operator", reason=True),
    ]

    def get_queryset(self, request: HttpRequest) -> WorkerQuerySet:
        """With the health now of each."""
        rows: Any = super().get_queryset(request)
        shown: WorkerQuerySet = rows.with_health()
        return shown

    @admin_action(description=_("Assign a task to the selected worker"), permissions=["act_as_operator"])
    def assign(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        """The claim, pushed: asks which of the tasks that wait, then gives it to the one worker that is selected."""
        chosen = list(queryset[:2])
        if len(chosen) != 1:
            self.message_user(request, _("Select one worker: a task is given to one."), messages.WARNING)
            return None
        worker: Worker = chosen[0]
        principal = principal_of(request)
        pk = request.POST.get("task", "")
        try:
            principal.must("operator", project_of(worker))
            waiting = waiting_for(worker, principal)
            if not pk:
                return self._ask_task(request, worker, offered(worker, principal))
            task = waiting.filter(pk=pk).first() if is_id(pk) else None
            if task is None:
                raise NotFound.of("task")
            principal.must("operator", task.project_id)
            claims.assign_to(worker, task, by=principal.actor)
        except Refused as refusal:
            self.message_user(request, f"{worker}: {refusal}", messages.WARNING)
            return None
        done = _("%(worker)s has the task %(task)s.") % {"worker": worker, "task": task.key}
        self.message_user(request, done, messages.SUCCESS)
        return None

    def _ask_task(self, request: HttpRequest, worker: Worker, tasks: list[Task]) -> HttpResponse:
        """The page between the list and the action, which asks for the task."""
        return TemplateResponse(
            request,
            "admin/assign_task.html",
            {
                **self.admin_site.each_context(request),
                "title": _("Assign a task to %(worker)s") % {"worker": worker},
                "opts": self.opts,
                "worker": worker,
                "tasks": tasks,
                "action_checkbox_name": ACTION_CHECKBOX_NAME,
            },
        )

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
