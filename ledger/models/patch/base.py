"""What a patch is: its states and arrows, its columns, and what can be read off them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from ledger import diff as diffs
from ledger.models.patch.words import PatchQuerySet
from pipeline import events
from pipeline.ids import ULIDField, new_id
from pipeline.models import ExecutionRequest, Phase, Project, PromptInstance, Run, StepAttempt, Task, User, Workstream
from pipeline.refusals import Refused
from pipeline.states import Stateful

if TYPE_CHECKING:
    from ledger.models.patch.patch import Patch


class PatchBase(Stateful):
    """The row of a patch, to which each file beside this one adds what belongs to one idea."""

    NOUN = "patch"

    class State(models.TextChoices):
        CREATED = "created", _("created")
        VALIDATED = "validated", _("validated")
        QUEUED = "queued", _("queued")
        APPLIED = "applied", _("applied")
        APPLY_FAILED = "apply_failed", _("apply failed")
        VERIFIED = "verified", _("verified")
        COMMITTED = "committed", _("committed")
        ROLLED_BACK = "rolled_back", _("rolled back")
        QUARANTINED = "quarantined", _("quarantined")
        DROPPED = "dropped", _("dropped")

    MOVES = {
        State.CREATED: {State.VALIDATED, State.APPLY_FAILED, State.QUARANTINED, State.DROPPED},
        State.VALIDATED: {State.QUEUED, State.QUARANTINED, State.DROPPED},
        State.QUEUED: {State.APPLIED, State.APPLY_FAILED, State.QUARANTINED, State.DROPPED},
        State.APPLIED: {
            State.VERIFIED,
            State.APPLY_FAILED,
            State.ROLLED_BACK,
            State.QUARANTINED,
            State.DROPPED,
        },
        State.APPLY_FAILED: {State.VALIDATED, State.QUEUED, State.QUARANTINED, State.DROPPED},
        State.VERIFIED: {State.COMMITTED, State.ROLLED_BACK, State.QUARANTINED, State.DROPPED},
        State.COMMITTED: set(),
        State.ROLLED_BACK: set(),
        State.QUARANTINED: {State.DROPPED},
        State.DROPPED: set(),
    }
    KEYED = {
        (State.APPLIED, State.QUEUED): "rebase",
        (State.VERIFIED, State.QUEUED): "rebase",
        (State.VALIDATED, State.CREATED): "judge_again",
        (State.QUEUED, State.CREATED): "judge_again",
        (State.APPLIED, State.CREATED): "judge_again",
        (State.VERIFIED, State.CREATED): "judge_again",
        (State.QUARANTINED, State.CREATED): "release",
        (State.COMMITTED, State.ROLLED_BACK): "reverse_landed",
    }
    KINDS = {
        (State.APPLIED, State.QUEUED): "patch.requeued",
        (State.VERIFIED, State.QUEUED): "patch.requeued",
        (State.VALIDATED, State.CREATED): "patch.rejudged",
        (State.QUEUED, State.CREATED): "patch.rejudged",
        (State.APPLIED, State.CREATED): "patch.rejudged",
        (State.VERIFIED, State.CREATED): "patch.rejudged",
        (State.QUARANTINED, State.CREATED): "patch.released",
    }
    INITIAL = {State.CREATED}
    OPEN = (
        State.CREATED,
        State.VALIDATED,
        State.QUEUED,
        State.APPLIED,
        State.APPLY_FAILED,
        State.VERIFIED,
    )
    IN_QUEUE = (State.QUEUED, State.APPLIED, State.VERIFIED)
    ON_ITS_WAY = (State.CREATED, State.VALIDATED, *IN_QUEUE)
    FINAL = (State.COMMITTED, State.ROLLED_BACK, State.DROPPED)

    ledger_id = ULIDField(unique=True, default=new_id, editable=False)
    project = models.ForeignKey(Project, models.PROTECT, related_name="patches")
    phase = models.ForeignKey(Phase, models.PROTECT, null=True, related_name="patches")
    workstream = models.ForeignKey(Workstream, models.PROTECT, null=True, related_name="patches")
    run = models.ForeignKey(Run, models.PROTECT, null=True, related_name="patches")
    task = models.ForeignKey(Task, models.PROTECT, null=True, related_name="patches")
    attempt = models.ForeignKey(StepAttempt, models.PROTECT, null=True, related_name="patches")
    request = models.ForeignKey(ExecutionRequest, models.PROTECT, null=True, related_name="patches")
    prompt = models.ForeignKey(PromptInstance, models.PROTECT, null=True, related_name="patches")
    custody = models.CharField(max_length=8)
    target_branch = models.CharField(max_length=255)
    base_commit = models.CharField(max_length=64, blank=True)
    base_tree = models.CharField(max_length=64, blank=True)
    result_tree = models.CharField(max_length=64, blank=True)  # what it makes of its base, once it was judged
    tool = models.CharField(max_length=64, blank=True)
    author_user = models.ForeignKey(User, models.PROTECT, null=True, related_name="patches")
    author_worker_id = ULIDField(null=True)
    author_name = models.CharField(max_length=200)
    summary = models.CharField(max_length=512, blank=True)
    issue_ref = models.CharField(max_length=200, blank=True)
    metadata = models.JSONField(default=dict)
    sha256 = models.CharField(max_length=64)
    files_touched = models.JSONField(default=dict)
    line_insertions = models.PositiveIntegerField(default=0)
    line_deletions = models.PositiveIntegerField(default=0)
    hunks = models.PositiveIntegerField(default=0)
    binary_files = models.PositiveIntegerField(default=0)
    state = models.CharField(max_length=12, choices=State, default=State.CREATED)
    state_reason = models.TextField(blank=True)
    committed_at = models.DateTimeField(null=True)
    format_ok = models.BooleanField(default=False)
    scope_ok = models.BooleanField(default=False)
    constraints_ok = models.BooleanField(default=False)
    tests_ran = models.BooleanField(default=False)
    tests_passed = models.BooleanField(default=False)
    validation_errors = models.JSONField(default=list)
    findings = models.JSONField(default=list)
    policy_snapshot = models.JSONField(default=dict)
    facts = models.JSONField(default=dict)
    attempts = models.PositiveIntegerField(default=0)
    reapplies = models.PositiveIntegerField(default=0)
    last_attempt_at = models.DateTimeField(null=True)
    last_error_code = models.CharField(max_length=64, blank=True)
    last_error_message = models.TextField(blank=True)
    workspace_path = models.TextField(blank=True)
    applied_files = models.JSONField(default=list)
    candidate_tree = models.CharField(max_length=64, blank=True)
    tested_tree = models.CharField(max_length=64, blank=True)
    tested_parent = models.CharField(max_length=64, blank=True)
    landing_commit = models.CharField(max_length=64, blank=True)
    commit_sha = models.CharField(max_length=64, blank=True)
    committed_tree = models.CharField(max_length=64, blank=True)
    quarantine_reason = models.TextField(blank=True)
    quarantine_path = models.TextField(blank=True)
    quarantined_at = models.DateTimeField(null=True)
    quarantine_owner = models.CharField(max_length=200, blank=True)
    quarantine_expires_at = models.DateTimeField(null=True)
    replaces = models.ForeignKey("ledger.Patch", models.PROTECT, null=True, related_name="replaced_by")
    rollback_of = models.ForeignKey("ledger.Patch", models.PROTECT, null=True, related_name="reversed_by")
    chain_id = ULIDField()
    depends_on = models.ManyToManyField("ledger.Patch", symmetrical=False, related_name="needed_by")

    objects = PatchQuerySet.as_manager()

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return f"patch {self.pk}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a patch belong to it, its attempt, task, run and project."""
        return {
            "project_id": self.project_id,
            "workstream_id": self.workstream_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "step_id": self.attempt_id,
            "worker_id": self.author_worker_id,
            "patch_id": self.pk,
        }

    @property
    def is_valid(self) -> bool:
        """Whether format, scope and constraints were all found in order."""
        return self.format_ok and self.scope_ok and self.constraints_ok

    @property
    def is_landing(self) -> bool:
        """Whether its commit is noted, and the branch may move to it at any moment."""
        return bool(self.landing_commit) and self.state == self.State.VERIFIED

    @property
    def gives_way(self) -> bool:
        """Whether a newer revision takes its place at once. Not what has failed or was set aside, which goes nowhere by
        itself; nor what somebody else has applied in a recorded project, which is theirs to tell.
        """
        told_by_others = self.custody == Project.Custody.RECORDED and self.state in (
            self.State.APPLIED,
            self.State.VERIFIED,
        )
        return self.state in self.ON_ITS_WAY and not told_by_others

    @property
    def bounds(self) -> diffs.Bounds:
        """How large its text may be."""
        return diffs.REVERSED if self.rollback_of_id else diffs.SUBMITTED

    @property
    def max_apply_attempts(self) -> int:
        """How often it may be tried to apply."""
        return int(self.policy_snapshot.get("max_apply_attempts", settings.SIGNALBOX_MAX_APPLY_ATTEMPTS))

    @property
    def whole(self) -> "Patch":
        """This patch as the class that has all of the verbs; no row is of another one."""
        return cast("Patch", self)

    def locked(self) -> "Patch":
        """The row as the database holds it, locked until the transaction ends. One query."""
        return type(self)._base_manager.select_for_update(no_key=True, of=("self",)).get(pk=self.pk).whole

    def locked_in_place(self) -> "Patch":
        """As `locked`, with all that the policy over it is made from. One query."""
        rows = type(self)._base_manager.select_for_update(no_key=True, of=("self",))
        return rows.select_related("project", "phase", "workstream__phase", "task").get(pk=self.pk).whole

    def _note(
        self, kind: str, *, by: events.Actor, reason: str = "", data: Mapping[str, Any] | None = None, **columns: Any
    ) -> None:
        """Write columns that go with no move, and the event that tells them. The caller holds the row's lock, and has
        read it under that.
        """
        before = self.tellable({name: getattr(self, name) for name in columns})
        type(self)._base_manager.filter(pk=self.pk).update(**columns)
        events.record(kind, self, by=by, reason=reason, data=data, before=before, after=self.tellable(columns))

    def lock_queue(self) -> None:
        """Lock the queue of its branch, which the house does before any run or patch; nothing in recorded custody."""
        from ledger.models.queue import MergeQueue

        if self.custody == Project.Custody.MANAGED:
            MergeQueue.objects.select_for_update(no_key=True).filter(
                project=self.project_id, target_branch=self.target_branch
            ).first()

    def _leave_queue(self, by: events.Actor, reason: str) -> None:
        """Withdraw its live queue item; the queue's row is locked first, in the house's order."""
        from ledger.models.queue import QueueItem

        if self.custody != Project.Custody.MANAGED:
            return
        self.lock_queue()
        current = self.locked()
        if current.is_landing:
            raise Refused(
                f"Patch {self.pk} is landing right now; ask again when it has", code="invalid_move", state="verified"
            )
        for item in QueueItem.objects.live().filter(patch=self.pk).order_by("pk"):
            item.withdraw(by=by, reason=reason)
