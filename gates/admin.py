"""Gates, their runs and their tests in the admin."""

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from gates.models import Finding, FlakyTest, Gate, GateEvidence, GateOutput, GateRun, RunnerHost, TestResult
from pipeline.admin_site import DefinitionAdmin, InstallationAdmin, LookOnlyAdmin, move_action


@admin.register(Gate)
class GateAdmin(DefinitionAdmin):
    """Definitions of checks."""

    list_display = ["key", "project", "name", "gate_type", "required", "judges", "enabled", "gate_version"]
    list_filter = [("project", admin.RelatedOnlyFieldListFilter), "gate_type", "enabled"]
    list_select_related = ["project"]
    search_fields = ["key", "name"]
    ordering = ["project", "key"]

    def formfield_for_choice_field(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        """Of what a gate might judge, only what this version runs gates for."""
        if db_field.name == "judges":
            kwargs["choices"] = [(Gate.Judges.PATCH.value, Gate.Judges.PATCH.label)]
        return super().formfield_for_choice_field(db_field, request, **kwargs)


@admin.register(GateRun)
class GateRunAdmin(LookOnlyAdmin):
    """Each time that a check was run."""

    list_display = ["name", "project", "patch", "tree_hash", "state", "decision_reason", "created_at", "completed_at"]
    list_filter = ["state", ("project", admin.RelatedOnlyFieldListFilter), "gate_type"]
    list_select_related = ["project", "patch"]
    search_fields = ["name", "=tree_hash"]
    heavy = ("output_tail", "evidence", "verdicts", "criteria", "definition", "metadata")
    actions = [
        move_action("rerun", _("Run again"), role="operator"),
        move_action("skip", _("Skip"), role="approver", reason=True),
        move_action("waive", _("Waive"), role="approver", reason=True, ends=True),
        move_action("revoke_waiver", _("End the waiver of"), role="approver", reason=True),
    ]


class OfGateRunAdmin(LookOnlyAdmin):
    """Rows of a gate run: its project decides who sees them."""

    list_select_related = ["gate_run"]
    project_path = "gate_run__project"

    def project_of(self, row: TestResult | GateOutput | GateEvidence | Finding) -> str | None:
        """The project of its gate run."""
        return str(row.gate_run.project_id)


@admin.register(TestResult)
class TestResultAdmin(OfGateRunAdmin):
    """What each attempt of each test said."""

    list_display = ["name", "classname", "gate_run", "attempt", "outcome", "duration_seconds"]
    list_filter = ["outcome"]
    search_fields = ["name"]
    heavy = ("message", "trace")


@admin.register(GateOutput)
class GateOutputAdmin(OfGateRunAdmin):
    """Pieces of output that a running gate wrote lately."""

    list_display = ["gate_run", "number", "created_at"]
    heavy = ("text",)


@admin.register(GateEvidence)
class GateEvidenceAdmin(OfGateRunAdmin):
    """Reports that systems outside sent; the content goes when their run ends."""

    list_display = ["gate_run", "kind", "size_bytes", "sha256", "created_at"]
    heavy = ("content",)


@admin.register(Finding)
class FindingAdmin(OfGateRunAdmin):
    """What analysers found."""

    list_display = ["rule_id", "level", "path", "line", "is_new", "suppressed", "gate_run"]
    list_filter = ["level", "is_new", "suppressed"]
    search_fields = ["=rule_id", "path"]
    heavy = ("message",)


@admin.register(RunnerHost)
class RunnerHostAdmin(InstallationAdmin):
    """Machines that run gates, and the sandbox level that each holds."""

    list_display = ["host", "level", "missing", "seen_at"]


@admin.register(FlakyTest)
class FlakyTestAdmin(DefinitionAdmin):
    """Tests in quarantine."""

    list_display = ["test_key", "project", "owner", "expires_at", "consecutive_passes"]
    list_filter = [("project", admin.RelatedOnlyFieldListFilter), "owner"]
    list_select_related = ["project"]
    search_fields = ["test_key", "owner"]
    ordering = ["project", "test_key"]
    fixed = ("project", "test_key")
    actions = [move_action("release", _("Release"), role="approver", reason=True)]
