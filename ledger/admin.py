"""Patches, their queue and their policies in the admin."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from ledger import landing_admin as landing_admin
from ledger import review_admin as review_admin
from ledger import seal_admin as seal_admin
from ledger import validation
from ledger.models import MergeQueue, Patch, PatchContent, PatchPolicy, QueueItem
from pipeline.admin_site import DefinitionAdmin, LookOnlyAdmin, move_action
from pipeline.constraints import FIELDS


@admin.register(Patch)
class PatchAdmin(LookOnlyAdmin):
    """Proposed changes, and what became of them."""

    list_display = ["id", "project", "task", "state", "summary", "author_name", "line_insertions", "line_deletions"]
    list_filter = ["state", ("project", admin.RelatedOnlyFieldListFilter), "custody"]
    list_select_related = ["project", "task"]
    search_fields = ["summary", "author_name", "=commit_sha"]
    heavy = (
        "files_touched",
        "validation_errors",
        "findings",
        "policy_snapshot",
        "applied_files",
        "last_error_message",
        "metadata",
    )
    actions = [
        move_action("quarantine", _("Quarantine"), role="operator", reason=True),
        move_action("release", _("Release from quarantine"), role="approver", reason=True),
        move_action("drop", _("Drop"), role="operator", reason=True),
    ]


@admin.register(PatchContent)
class PatchContentAdmin(LookOnlyAdmin):
    """The texts of patches."""

    list_display = ["patch", "format", "byte_size", "sha256"]
    list_select_related = ["patch"]
    hidden = ("diff_text",)
    project_path = "patch__project"

    def get_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """The text as everybody is shown it."""
        return [*super().get_fields(request, obj), "shown_text"]

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> list[str]:
        """The same."""
        return self.get_fields(request, obj)

    @admin.display(description=_("diff text"))
    def shown_text(self, obj: PatchContent) -> str:
        """Without the secrets for which the patch was refused."""
        return validation.shown(obj.patch, obj.diff_text)


@admin.register(MergeQueue)
class MergeQueueAdmin(LookOnlyAdmin):
    """The queues of branches."""

    list_display = ["project", "target_branch", "state", "head_commit", "window_size"]
    list_filter = ["state"]
    list_select_related = ["project"]
    search_fields = ["target_branch"]
    actions = [
        move_action("pause", _("Pause"), role="operator"),
        move_action("resume", _("Resume"), role="operator"),
    ]


@admin.register(QueueItem)
class QueueItemAdmin(LookOnlyAdmin):
    """Places in a queue."""

    list_display = ["position", "queue", "patch", "state", "builds", "restarts", "failing_reason"]
    list_filter = ["state"]
    list_select_related = ["queue__project", "patch"]


@admin.register(PatchPolicy)
class PatchPolicyAdmin(DefinitionAdmin):
    """Layers of what a patch may be."""

    list_display = ["level", "project", "phase", "workstream", "task", "enabled"]
    list_filter = ["level", "enabled"]
    list_select_related = ["project", "phase__project", "workstream__phase__project", "task"]
    # A plain list would load every task that there ever was.
    raw_id_fields = ["task"]

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """The constraints' field says which there are, and what is missing when there is none."""
        if db_field.name == "constraints":
            nothing = _('Set at least one constraint, such as {"max_lines_changed": 400}')
            known = "; ".join(f"{name}: {field.kind.value}" for name, field in FIELDS.items())
            kwargs |= {"help_text": known, "error_messages": {"required": nothing}}
        return super().formfield_for_dbfield(db_field, request, **kwargs)
