"""The ground floor in the admin: definitions to edit, machines' rows to look at and to move by their verbs."""

from typing import Any

# Imported for its registrations, which are taken back below: what runs when is code, not rows that people edit.
import django_celery_beat.admin  # noqa: F401
from django.contrib import admin, messages
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django_celery_beat import models as beat
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm

from pipeline import events, notification_admin, webhook_admin  # noqa: F401 - the latter for their registrations
from pipeline.admin_site import DefinitionAdmin, HouseAdmin, InstallationAdmin, LookOnlyAdmin, move_action, shortened
from pipeline.auth import Principal, principal_of
from pipeline.definitions import diff
from pipeline.ids import is_id, to_uuid
from pipeline.models import (
    ApiKey,
    Event,
    EventEpoch,
    EventStream,
    ExecutionRequest,
    FailedReaction,
    Hold,
    Membership,
    Phase,
    Project,
    PromptInstance,
    RoutingDecision,
    Run,
    StepAttempt,
    StoredAnswer,
    Task,
    TaskDependency,
    Tick,
    Tool,
    User,
    Workstream,
)
from pipeline.rows import in_transaction

for model in (beat.PeriodicTask, beat.IntervalSchedule, beat.CrontabSchedule, beat.SolarSchedule, beat.ClockedSchedule):
    admin.site.unregister(model)
# Roles come from memberships (domain.md §1.8); a group would be a permission that nothing asks for.
admin.site.unregister(Group)

IN_PROJECT = ("project", admin.RelatedOnlyFieldListFilter)


# -- definitions -------------------------------------------------------------------------------------------------


@admin.register(Project)
class ProjectAdmin(DefinitionAdmin):
    """Repositories under care. Only an administrator of the installation adds one."""

    list_display = ["key", "name", "custody", "default_branch", "archived_at"]
    list_filter = ["custody", "domain"]
    search_fields = ["key", "name", "repository_url"]
    ordering = ["key"]

    def has_add_permission(self, request: HttpRequest) -> bool:
        """Administrators of the installation."""
        return super().has_add_permission(request) and principal_of(request).is_installation_admin


@admin.register(Membership)
class MembershipAdmin(DefinitionAdmin):
    """Who may do what in which project."""

    list_display = ["user", "project", "role"]
    list_filter = [IN_PROJECT, "role"]
    list_select_related = ["user", "project"]
    search_fields = ["user__username"]


@admin.register(Phase)
class PhaseAdmin(DefinitionAdmin):
    """Stages of a project."""

    list_display = ["key", "project", "name", "category", "sequence", "is_error_phase"]
    list_filter = [IN_PROJECT, "is_error_phase"]
    list_select_related = ["project"]
    search_fields = ["key", "name"]
    ordering = ["project", "sequence", "key"]


@admin.register(Workstream)
class WorkstreamAdmin(DefinitionAdmin):
    """Bodies of work inside a phase."""

    list_display = ["key", "phase", "name", "enabled", "revision"]
    list_filter = [("phase__project", admin.RelatedOnlyFieldListFilter), "enabled"]
    list_select_related = ["phase__project"]
    search_fields = ["key", "name", "objective"]
    heavy = ("tasks",)


@admin.register(Tool)
class ToolAdmin(DefinitionAdmin):
    """Command-line agents, validators and analysers; the installation's."""

    list_display = ["key", "kind", "adapter", "model", "enabled", "order"]
    list_filter = ["enabled", "kind", "adapter"]
    search_fields = ["key", "model"]
    ordering = ["order", "key"]


@admin.register(ApiKey)
class ApiKeyAdmin(DefinitionAdmin):
    """Programs' ways in. The text of a key is shown once, when it is made."""

    list_display = ["name", "prefix", "role", "project", "expires_at", "revoked_at", "last_used_at"]
    list_filter = ["role", IN_PROJECT]
    list_select_related = ["project"]
    search_fields = ["name", "prefix"]
    hidden = ("secret_hash",)
    fixed = ("role", "project", "expires_at")
    actions = [move_action("revoke", gettext_lazy("Revoke"), role="admin", reason=True)]

    def add(self, request: HttpRequest, obj: ApiKey, given: dict[str, Any], principal: Principal) -> None:
        """Make the key, and show its text in a message: nobody can read it again."""
        end = given["expires_at"]
        made = ApiKey.objects.make(
            name=given["name"],
            role=given["role"],
            project=given["project"],
            life=None if end is None else end - timezone.now(),
            by=principal.actor,
        )
        obj.pk = made.row.pk
        text = _("The key “%(name)s” is %(text)s. Copy it now: it cannot be shown again.")
        self.message_user(request, text % {"name": made.row.name, "text": made.text}, messages.WARNING)


@admin.register(User)
class UserAdmin(DjangoUserAdmin, HouseAdmin):  # type: ignore[type-arg]  # Django's class takes none at run time
    """People. Whoever leaves is made inactive: what they did stays told under their name, so nobody is deleted."""

    form = UserChangeForm
    add_form = UserCreationForm
    change_password_form = AdminPasswordChangeForm
    list_display = ["username", "email", "is_active", "is_staff", "is_superuser", "last_login"]
    list_filter = ["is_active", "is_staff", "is_superuser"]
    ordering = ["username"]
    filter_horizontal = ()
    readonly_fields = ["last_login", "date_joined"]
    fieldsets = (
        (None, {"fields": ("username", "password")}),
        (gettext_lazy("Person"), {"fields": ("first_name", "last_name", "email", "time_zone")}),
        (gettext_lazy("May"), {"fields": ("is_active", "is_staff", "is_superuser")}),
        (gettext_lazy("Dates"), {"fields": ("last_login", "date_joined")}),
    )
    told = ("username", "first_name", "last_name", "email", "time_zone", "is_active", "is_staff", "is_superuser")

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Staff who administer the installation."""
        return super().has_view_permission(request, obj) and principal_of(request).is_installation_admin

    def has_add_permission(self, request: HttpRequest) -> bool:
        """The same."""
        return self.has_view_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """The same."""
        return self.has_view_permission(request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Nobody."""
        return False

    def save_model(self, request: HttpRequest, obj: User, form: Any, change: bool) -> None:
        """Save the person, and record it with what changed; a password is never told."""
        with in_transaction():
            before = self.document(User.objects.select_for_update().get(pk=obj.pk)) if change else {}
            super().save_model(request, obj, form, change)
            changed = diff(before, self.document(obj))
            if changed or not change:
                events.record(
                    "user.changed" if change else "user.added",
                    obj,
                    by=principal_of(request).actor,
                    before={name: old for name, old, _new in changed if name in before},
                    after={name: new for name, _old, new in changed},
                )

    def document(self, user: User) -> dict[str, Any]:
        """What events tell about a person."""
        return {name: getattr(user, name) for name in self.told}

    def user_change_password(self, request: HttpRequest, id: str, form_url: str = "") -> Any:
        """Django's page for a new password, in one transaction with the event that says so."""
        with in_transaction():
            before = User.objects.filter(pk=id).values_list("password", flat=True).first()
            answer = super().user_change_password(request, id, form_url)
            user = User.objects.filter(pk=id).first()
            if user is not None and user.password != before:
                events.record("user.changed", user, by=principal_of(request).actor, data={"password": "changed"})
        return answer


# -- what machines own -------------------------------------------------------------------------------------------


@admin.register(Run)
class RunAdmin(LookOnlyAdmin):
    """Executions of workstreams."""

    list_display = ["id", "project", "workstream", "state", "trigger_type", "created_at", "ended_at"]
    list_filter = ["state", IN_PROJECT, "trigger_type"]
    list_select_related = ["project", "workstream__phase__project"]
    search_fields = ["workstream__key", "requested_by"]
    heavy = ("acceptance", "metadata")
    actions = [
        move_action("cancel", gettext_lazy("Cancel"), role="operator", reason=True),
        move_action("hold", gettext_lazy("Hold"), role="operator", reason=True),
        move_action("release", gettext_lazy("Release"), role="approver", reason=True),
        move_action("quarantine", gettext_lazy("Quarantine"), role="operator", reason=True),
    ]


@admin.register(Task)
class TaskAdmin(LookOnlyAdmin):
    """What runs have to get done."""

    list_display = ["key", "run", "state", "priority", "count_attempts", "count_failures", "updated_at"]
    list_filter = ["state", "kind"]
    list_select_related = ["run"]
    search_fields = ["key"]
    heavy = ("spec", "last_error")
    actions = [move_action("cancel", gettext_lazy("Cancel"), role="operator", reason=True)]


@admin.register(TaskDependency)
class TaskDependencyAdmin(LookOnlyAdmin):
    """What needs what."""

    list_display = ["task", "needs", "kind"]
    list_filter = ["kind"]
    list_select_related = ["task", "needs"]
    project_path = "task__run__project"


@admin.register(StepAttempt)
class StepAttemptAdmin(LookOnlyAdmin):
    """Tries of a tool at a task."""

    list_display = ["id", "run", "task", "sequence", "tool", "state", "outcome", "started_at", "ended_at"]
    list_filter = ["state", "outcome"]
    list_select_related = ["run", "task", "tool"]
    heavy = ("output_tail", "error_log", "input_prompt", "usage_summary", "metadata")


@admin.register(ExecutionRequest)
class ExecutionRequestAdmin(LookOnlyAdmin):
    """What one attempt was asked to do."""

    list_display = ["id", "project", "task", "task_kind", "tool", "created_at"]
    list_filter = [IN_PROJECT, "task_kind"]
    list_select_related = ["project", "task", "tool"]
    heavy = ("constraints", "resource_scope", "input", "routing", "metadata", "description")


@admin.register(PromptInstance)
class PromptInstanceAdmin(LookOnlyAdmin):
    """What tools were told."""

    list_display = ["id", "project", "template_id", "target_tool", "kind", "created_at"]
    list_filter = [IN_PROJECT, "kind"]
    list_select_related = ["project"]
    heavy = ("text", "sections", "rendering")


@admin.register(RoutingDecision)
class RoutingDecisionAdmin(LookOnlyAdmin):
    """Why a task went to its tool."""

    list_display = ["id", "task", "chosen", "strategy", "reason", "created_at"]
    list_filter = ["strategy"]
    list_select_related = ["task", "chosen"]
    heavy = ("candidates", "inputs")


@admin.register(Hold)
class HoldAdmin(LookOnlyAdmin):
    """Pauses, with why and who can end them."""

    list_display = ["scope_kind", "scope_ref", "kind", "state", "reason", "holder", "since", "until"]
    list_filter = ["state", "kind", "scope_kind"]
    search_fields = ["scope_id", "reason", "holder"]
    actions = [move_action("release", gettext_lazy("Release"), role="approver", reason=True)]

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        """An id finds the hold, and those over its row."""
        term = search_term.strip().upper()
        if is_id(term):
            return queryset.filter(Q(pk=term) | Q(scope_id=str(to_uuid(term)))), False
        return super().get_search_results(request, queryset, search_term)


@admin.register(Event)
class EventAdmin(LookOnlyAdmin):
    """The log of what happened."""

    list_display = ["created_at", "kind", "severity", "subject_type", "subject_id", "actor_name", "handled_at"]
    list_filter = ["channel", "severity", "subject_type"]
    search_fields = ["kind", "actor_name"]
    ordering = ["-seq"]
    heavy = ("canonical", "before", "after", "data")

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        """An id finds the events about its row; other words the kind or the actor."""
        term = search_term.strip()
        if is_id(term.upper()):
            return queryset.filter(subject_id=term.upper()), False
        return (queryset.filter(Q(kind=term) | Q(actor_name=term)) if term else queryset), False


@admin.register(FailedReaction)
class FailedReactionAdmin(LookOnlyAdmin):
    """Reactions that crashed, with those that nobody tries any more."""

    list_display = ["failed_at", "kind", "reaction", "attempts", "died_of", "dead_at", "mended_at", "dropped_at"]
    list_filter = [(name, admin.EmptyFieldListFilter) for name in ("dead_at", "mended_at", "dropped_at")]
    search_fields = ["kind", "reaction"]
    actions = ["replay", "drop"]
    replay = move_action("replay", gettext_lazy("Replay"), role="operator", reason=True)
    drop = move_action("drop", gettext_lazy("Drop"), role="operator", reason=True)

    @admin.display(description=gettext_lazy("died of"))
    def died_of(self, row: FailedReaction) -> str:
        """The beginning of it; the row's own page tells all."""
        return row.error if len(row.error) <= 100 else f"{row.error[:100]}…"


@admin.register(EventStream)
class EventStreamAdmin(InstallationAdmin):
    """The heads of the chains of events."""

    list_display = ["subject_type", "subject_id", "first_seq", "seq", shortened("hash", gettext_lazy("hash"))]
    list_filter = ["subject_type"]


@admin.register(EventEpoch)
class EventEpochAdmin(InstallationAdmin):
    """Lives of this database."""

    list_display = ["number", "started_at", "reason"]


@admin.register(StoredAnswer)
class StoredAnswerAdmin(InstallationAdmin):
    """Answers kept for repeated requests. Their bodies stay hidden: one may hold a key's only text."""

    list_display = ["principal", "key", "status", "created_at", "expires_at"]
    hidden = ("body", "headers")


@admin.register(Tick)
class TickAdmin(InstallationAdmin):
    """Due moments of periodic work."""

    list_display = ["schedule", "due_at", "ended_at"]
    list_filter = ["schedule"]
