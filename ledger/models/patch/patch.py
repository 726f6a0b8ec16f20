"""Patches: every change that a worker or a person proposes, from submission to what became of it."""

from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from ledger.models.patch.reported import Reported
from pipeline.states import held_by_postgres


@held_by_postgres
class Patch(Reported):
    """A change, and what became of it.

        initial -> created -> validated -> queued -> applied -> verified -> committed
        created, queued, applied -> apply_failed -> validated | queued
        applied, verified -> rolled_back | (⚿ rebase) queued
        validated, queued, applied, verified -> (⚿ judge_again) created
        anything open -> quarantined | dropped
        quarantined -> dropped | (⚿ release) created
        committed -> (⚿ reverse_landed) rolled_back

    The ledger validates it against its base, builds the candidate commit in the mirror, the gates judge that tree, and
    the branch moves to exactly what was tested.
    """

    NOUN = "patch"

    class Meta:
        verbose_name_plural = _("patches")
        constraints = [
            models.UniqueConstraint(
                fields=["project", "base_commit", "sha256"],
                condition=~Q(sha256="") & ~Q(state__in=["dropped", "rolled_back"]),
                name="patch_once_per_base",
            ),
            models.CheckConstraint(
                name="patch_quarantined_has_reason",
                condition=~Q(state="quarantined")
                | (~Q(quarantine_reason="") & Q(quarantined_at__isnull=False) & ~Q(quarantine_owner="")),
            ),
            models.CheckConstraint(
                name="patch_valid_before_queue",
                condition=~Q(state__in=["validated", "queued", "applied", "verified", "committed"])
                | Q(format_ok=True, scope_ok=True, constraints_ok=True),
            ),
            models.CheckConstraint(
                name="patch_tested_before_commit",
                condition=~Q(state__in=["verified", "committed"]) | Q(tests_ran=True, tests_passed=True),
            ),
            models.CheckConstraint(
                name="patch_committed_is_what_was_tested",
                condition=~Q(state="committed", custody="managed")
                | (~Q(commit_sha="") & ~Q(tested_tree="") & Q(committed_tree=F("tested_tree"))),
            ),
            models.CheckConstraint(
                name="patch_committed_has_time", condition=~Q(state="committed") | Q(committed_at__isnull=False)
            ),
        ]
        indexes = [
            models.Index(fields=["project", "-id"], name="patch_of_project"),
            models.Index(fields=["run"], name="patch_of_run"),
            models.Index(fields=["task", "-id"], name="patch_of_task"),
            models.Index(fields=["chain_id"], name="patch_chain"),
            models.Index(fields=["base_commit", "result_tree"], name="patch_of_result", condition=~Q(result_tree="")),
            models.Index(
                fields=["state"],
                name="patch_open",
                condition=Q(state__in=["created", "validated", "queued", "applied", "apply_failed", "verified"]),
            ),
            models.Index(fields=["quarantine_expires_at"], name="patch_set_aside", condition=Q(state="quarantined")),
            GinIndex(fields=["files_touched"], name="patch_paths"),
        ]
