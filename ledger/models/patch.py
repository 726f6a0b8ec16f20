"""Patches: every change that a worker or a person proposes, from submission to what became of it."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Self

from django.conf import settings
from django.contrib.postgres.indexes import GinIndex
from django.db import connection, models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy as _

from ledger import diff as diffs
from ledger import git, leaks, oscillation, policy
from ledger.git.names import is_object_id
from pipeline import events, prepared
from pipeline.clock import ClockNow, db_now
from pipeline.constraints import Effective
from pipeline.crashpoints import crashpoint
from pipeline.ids import ULIDField, from_uuid, new_id, to_uuid
from pipeline.models import ExecutionRequest, Phase, Project, PromptInstance, Run, StepAttempt, Task, User, Workstream
from pipeline.questions import ask
from pipeline.refusals import InvalidField, NotFound, Refused, need_reason
from pipeline.rows import Kept, append_only, in_transaction
from pipeline.states import NOW, InvalidMove, Plus, Stateful, held_by_postgres

UNIFIED_DIFF = "unified_diff"
REVERSE_AUTHOR = "Signalbox"


class PatchQuerySet(models.QuerySet["Patch"]):
    """The words for submitting and asking about patches."""

    def visible_to(self, principal: Any) -> Self:
        """The patches of the projects in which `principal` may read; a worker's key sees its own workers' only."""
        if principal.is_worker:
            return self.filter(attempt__lease__worker__api_key=principal.id)
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def open(self) -> Self:
        """On their way."""
        return self.filter(state__in=Patch.OPEN)

    def parked(self) -> Self:
        """Set aside."""
        return self.filter(state=Patch.State.QUARANTINED)

    def final(self) -> Self:
        """Nothing more becomes of them."""
        return self.filter(state__in=Patch.FINAL)

    def of(self, project: Project) -> Self:
        """The patches of one project."""
        return self.filter(project=project)

    def touching(self, paths: list[str]) -> Self:
        """Those that touch any of `paths`."""
        return self.filter(files_touched__has_any_keys=paths)

    def chain(self, chain_id: str) -> Self:
        """Failure, repairs, replacement and reverse of one piece of work, oldest first."""
        return self.filter(chain_id=chain_id).order_by("pk")

    def awaiting_review(self) -> Self:
        """Valid, and not in the queue yet: those of which `ledger.reviewing` tells whose look is missing."""
        return self.filter(state=Patch.State.VALIDATED)

    def same_change(self, patch: "Patch") -> Self:
        """The project's other patches, oldest first, that make the same change, whatever each of them starts from."""
        if not patch.content.patch_id_git:
            return self.none()
        same = self.filter(project=patch.project_id, content__patch_id_git=patch.content.patch_id_git)
        return same.exclude(pk=patch.pk).order_by("pk")

    def same_tree(self, patch: "Patch", tree: str) -> Self:
        """The project's other patches, oldest first, that make `tree` of the same base, in whatever words."""
        if not tree:
            return self.none()
        same = self.filter(project=patch.project_id, base_commit=patch.base_commit, result_tree=tree)
        return same.exclude(pk=patch.pk).order_by("pk")

    def locked_in_place(self, pk: str) -> "Patch":
        """The patch, its row locked, with all that the policy over it is made from. One query."""
        rows = self.select_for_update(no_key=True, of=("self",))
        return rows.select_related("project", "phase", "workstream__phase", "task").get(pk=pk)

    def expired_quarantine(self) -> Self:
        """Set aside, and past the date until which somebody wanted to look at them."""
        return self.parked().filter(quarantine_expires_at__lt=ClockNow())

    def before(self, patch: "Patch", window: int) -> list[oscillation.Earlier]:
        """The last `window` patches of its workstream before it that share a file with it, oldest first, as the
        judgement of oscillation reads them; of its project where there is no workstream. Reverse patches are left out.
        A workstream is also that of a task for which a person submitted. Two queries, if the task is at hand.
        """
        if not patch.files_touched:
            return []
        workstream = patch.workstream_id or (patch.task.run.workstream_id if patch.task else None)
        place = Q(workstream=workstream) | Q(workstream=None, task__run__workstream=workstream)
        if workstream is None:
            place = Q(project=patch.project_id, workstream=None, task__run__workstream=None)
        rows = self.filter(place, pk__lt=patch.pk, rollback_of=None)
        rows = rows.touching(sorted(patch.files_touched)).exclude(content=None)
        found = list(rows.order_by("-pk").values_list("pk", "content__diff_text", "attempt")[:window])[::-1]
        again = resubmitters([pk for pk, _, _ in found])
        return [oscillation.Earlier(pk, text, len(again.get(pk, set()) - {own})) for pk, text, own in found]

    def reverse(
        self,
        original: "Patch",
        *,
        diff_text: str,
        base_commit: str,
        reason: str,
        by: events.Actor,
        after: "Patch | None" = None,
    ) -> tuple["Patch", bool]:
        """Enter the change that undoes `original`, which goes the way of any other patch, once `after` has landed.

        Answers the reverse, and whether it is new: one that is on its way or set aside is answered again, one that
        failed to apply is replaced. Its author is the system; who asked stands in its `metadata`, since that person's
        word counts as a review. Raises InvalidMove unless `original` is committed, Refused `later_patch_depends` when
        another patch makes this change already, and what `submit` raises.
        """
        reason = need_reason(reason)
        with in_transaction():
            original.lock_queue()
            current = Patch.objects.select_for_update(no_key=True, of=("self",)).get(pk=original.pk)
            if current.state != Patch.State.COMMITTED:
                raise InvalidMove(
                    current, current.state, "rolled_back", verb="rollback", allowed=Patch.MOVES[current.state]
                )
            under_way = current.reverse_under_way()
            if under_way is not None and under_way.state != Patch.State.APPLY_FAILED:
                return under_way, False
            patch, is_new = self.submit(
                project=current.project,
                diff_text=diff_text,
                base_commit=base_commit,
                by=by,
                summary=f"Revert “{current.summary or current.pk}”"[:512],
                issue_ref=current.issue_ref,
                replaces=under_way,
                rollback_of=current,
                depends_on=[after] if after else [],
                metadata={"rollback": {"reason": reason, "asked_by": by.id, "asked_by_kind": by.kind}},
            )
            if patch.rollback_of_id != current.pk:
                raise Refused(
                    f"Cannot rollback: patch {patch.pk}, which is {patch.state}, makes this change already",
                    code="later_patch_depends",
                    patches=[patch.pk],
                )
        return patch, is_new

    def submit(
        self,
        *,
        project: Project,
        diff_text: str,
        base_commit: str,
        by: events.Actor,
        summary: str = "",
        attempt: StepAttempt | None = None,
        user: User | None = None,
        task: Task | None = None,
        issue_ref: str = "",
        replaces: "Patch | None" = None,
        worker_id: str | None = None,
        rollback_of: "Patch | None" = None,
        depends_on: Sequence["Patch"] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> tuple["Patch", bool]:
        """Enter a change in the ledger; answers the patch, and whether it is new.

        The same content on the same base is answered with the patch that is there, and recorded as resubmitted. What
        it `replaces` gives way at once (see `give_way`). Raises DiffRefused with its structural code, UnknownCommit
        `stale_base`, InvalidField, Refused `invalid_move` while what it replaces is landing. The caller has checked the
        lease, and locked the queue of what it replaces before that.
        """
        if len(summary) > 512:
            raise InvalidField("summary", "512 characters at most")
        try:
            facts = diffs.parse(diff_text)
        except diffs.DiffRefused as refusal:
            takes_links = rollback_of is not None or policy.takes_links(_bounds(project, attempt, task))
            if refusal.code != "symlink_target" or not takes_links:  # what undoes a landed patch is judged later
                raise
            facts = diffs.parse(diff_text, links=True)
        if rollback_of is None:
            told = {"summary": summary, "issue_ref": issue_ref, "metadata": json.dumps(dict(metadata or {}))}
            told["diff_text"] = "\n".join(change.path for change in facts.files)
            _refuse_secrets_beside_the_text(told, partial(_bounds, project, attempt, task))
        base_tree = ""
        if project.custody == Project.Custody.MANAGED:
            try:
                base_tree = git.tree_of_commit(project.mirror, base_commit)
            except git.UnknownCommit as error:
                raise git.UnknownCommit(_wrong_base(project, base_commit)) from error
        patch_id = git.patch_id(diff_text)
        sha256 = hashlib.sha256(diff_text.encode()).hexdigest()
        with in_transaction():
            if replaces is not None:
                replaces.lock_queue()
            run = Run.objects.select_for_update(no_key=True).get(pk=attempt.run_id) if attempt else None
            with connection.cursor() as cursor:
                # The same change submitted twice at once: the second waits here, and is answered with the first.
                cursor.execute(
                    "SELECT pg_advisory_xact_lock(hashtextextended(%s, 2))", [f"{project.pk} {base_commit} {sha256}"]
                )
            crashpoint("submit.locked")
            same = prepared.execute(_SAME_CONTENT, [to_uuid(project.pk), base_commit, sha256])
            if same:
                known = self.get(pk=from_uuid(same[0][0]))
                events.record("patch.resubmitted", known, by=by, data={"attempt": attempt and attempt.pk})
                return known, False
            task = attempt.task if attempt else task
            if replaces is not None:
                replaces = _replaceable(replaces, task if worker_id else None)
            elif task is not None:
                replaces = self._to_repair(task)
            source = run or (task.run if task else rollback_of)  # whose plan it belongs to, with its rules
            linked = rollback_of or replaces
            patch = Patch(
                project=project,
                phase=source and source.phase,
                workstream=source and source.workstream,
                run=run,
                task=task,
                attempt=attempt,
                request=attempt and attempt.request,
                prompt=attempt and attempt.prompt,
                custody=project.custody,
                target_branch=rollback_of.target_branch if rollback_of else project.default_branch,
                base_commit=base_commit,
                base_tree=base_tree,
                tool=attempt.tool.key if attempt and attempt.tool else "",
                author_user=user,
                author_worker_id=worker_id,
                author_name=REVERSE_AUTHOR if rollback_of else by.name,
                summary=summary,
                issue_ref=issue_ref,
                metadata=dict(metadata or {}),
                sha256=sha256,
                files_touched={change.path: change.kind for change in facts.files},
                line_insertions=facts.insertions,
                line_deletions=facts.deletions,
                hunks=facts.hunks,
                binary_files=sum(change.binary for change in facts.files),
                replaces=replaces,
                rollback_of=rollback_of,
                chain_id=linked.chain_id if linked else new_id(),
            )
            patch.save(force_insert=True)
            size = len(diff_text.encode())
            PatchContent(patch=patch, diff_text=diff_text, sha256=sha256, patch_id_git=patch_id, byte_size=size).save(
                force_insert=True
            )
            if depends_on:
                patch.depends_on.set(depends_on)
            needs = {"depends_on": [needed.pk for needed in depends_on]} if depends_on else None
            patch.born(by=by, reason="Initial creation", data=needs)
            if replaces is not None:
                replaces.give_way(patch, by=by)
            crashpoint("submit.stored")
            if run is not None:
                Run.objects.filter(pk=run.pk).update(count_patches_created=F("count_patches_created") + 1)
        return patch, True

    def _to_repair(self, task: Task) -> "Patch | None":
        """The newest patch of the task that failed: what a new one replaces. Locks its row."""
        rows = self.select_for_update(no_key=True, of=("self",)).filter(task=task, state=Patch.State.APPLY_FAILED)
        return rows.order_by("-pk").first()


# As the unique constraint on a patch's content says it, so that its index is read.
_SAME_CONTENT = """
SELECT id FROM ledger_patch WHERE project_id = %s AND base_commit = %s AND sha256 = %s
AND NOT (state IN ('dropped', 'rolled_back')) AND sha256 <> '' ORDER BY id LIMIT 1
"""


def _wrong_base(project: Project, base_commit: str) -> str:
    """What is wrong with a base commit that the mirror does not know, and what would be right."""
    branch = project.default_branch
    try:
        right = f"such as {git.head(project.mirror, branch)}, the head of {branch}"
    except (git.UnknownCommit, InvalidField):
        right = f"on {branch}"
    if not base_commit:
        return f"Base commit is missing: name the commit that the diff changes in full, {right}"
    if not is_object_id(base_commit):
        return (
            f"Base commit “{base_commit[:64]}” is no full name of a commit, which has 40 or 64 hexadecimal digits in "
            f"lower case (`git rev-parse HEAD` says it): name the commit that the diff changes, {right}"
        )
    return (
        f"Base commit {base_commit} is not known to the mirror of {project.key}: fetch its branch, and make the diff "
        f"of a commit that is there, {right}"
    )


def _bounds(project: Project, attempt: StepAttempt | None, task: Task | None) -> Effective:
    """What a submission to this place may be."""
    from ledger.models.policy import PatchPolicy

    task = attempt.task if attempt else task
    run = attempt.run if attempt else task.run if task else None
    return PatchPolicy.objects.effective(project, run and run.phase, run and run.workstream, task)


def _refuse_secrets_beside_the_text(told: Mapping[str, str], bounds: Callable[[], Effective]) -> None:
    """What is told beside the diff stands in events and in the commit for good, so a secret in it is not taken in.
    Raises InvalidField naming the field and the kind.
    """
    for field, text in told.items():
        if (kinds := leaks.kinds(text)) and bounds().values.get("forbid_secrets", policy.BUILT_IN["forbid_secrets"]):
            where = "the name of a file" if field == "diff_text" else "it"
            raise InvalidField(field, f"{where} holds what looks like a secret: {', '.join(kinds)}. Take it out")


def resubmitters(patch_ids: Collection[str]) -> dict[str, set[str | None]]:
    """The attempts that submitted each of these patches once more, by the patch's id. One query."""
    told = events.Event.objects.filter(kind="patch.resubmitted", subject_id__in=patch_ids)
    found: dict[str, set[str | None]] = {}
    for pk, attempt in told.exclude(data__attempt=None).values_list("subject_id", "data__attempt"):
        found.setdefault(pk, set()).add(attempt)
    return found


def _replaceable(patch: "Patch", own_task: Task | None) -> "Patch":
    """`patch` as the database holds it, locked. Raises InvalidField when it has landed, since a change to what is there
    replaces nothing; and when an agent (`own_task`) names the work of another task or of nobody's, in whatever state:
    that is not its to take out. Refused `invalid_move` while it is landing.
    """
    current = Patch.objects.select_for_update(no_key=True, of=("self",)).get(pk=patch.pk)
    if current.state == Patch.State.COMMITTED:
        raise InvalidField("replaces", f"patch {patch.pk} has landed: submit a change of its own, or roll it back")
    if current.is_landing:
        raise Refused(
            f"Cannot replace: patch {patch.pk} is landing right now; when it has, submit a change of what it left",
            code="invalid_move",
            state=current.state,
        )
    if own_task is not None and current.task_id != own_task.pk:
        raise InvalidField(
            "replaces", f"patch {patch.pk} is not of this task: an agent replaces its own task's work only"
        )
    return current


@held_by_postgres
class Patch(Stateful):
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
    replaces = models.ForeignKey("self", models.PROTECT, null=True, related_name="replaced_by")
    rollback_of = models.ForeignKey("self", models.PROTECT, null=True, related_name="reversed_by")
    chain_id = ULIDField()
    depends_on = models.ManyToManyField("self", symmetrical=False, related_name="needed_by")

    objects = PatchQuerySet.as_manager()

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
    def max_apply_attempts(self) -> int:
        """How often it may be tried to apply."""
        return int(self.policy_snapshot.get("max_apply_attempts", settings.SIGNALBOX_MAX_APPLY_ATTEMPTS))

    def note_validation(
        self, findings: dict[str, Any], *, by: events.Actor, only_from: Collection[str] = ("created", "apply_failed")
    ) -> bool:
        """created, apply_failed -> validated; or created -> apply_failed, quarantined or dropped, as the policy routes.

        `findings` are those of `validation.judge`: three flags, the errors, the policy's snapshot and the route of a
        failure. From apply_failed a failing result stores the flags and stays.
        """
        columns = {
            name: findings[name]
            for name in ("format_ok", "scope_ok", "constraints_ok", "validation_errors", "findings", "policy_snapshot")
        }
        columns["result_tree"] = findings.get("result_tree", "")
        if "facts" in findings:
            columns["facts"] = findings["facts"]
        with in_transaction():
            current = Patch.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.pk)
            if current.state not in only_from:
                raise InvalidMove(
                    current, current.state, "validated", verb="validate", allowed=self.MOVES[current.state]
                )
            if all(findings[name] for name in ("format_ok", "scope_ok", "constraints_ok")):
                if findings.get("oscillating"):
                    return self.quarantine(findings["oscillating"], by=by, **columns)
                return self.move(
                    self.State.VALIDATED,
                    by=by,
                    verb="validate",
                    working=True,
                    **columns,
                    # Why it was judged again stays to be read until it goes on.
                    state_reason=current.state_reason if current.state == self.State.CREATED else "",
                    last_error_code="",
                    last_error_message="",
                )
            message = "; ".join(error["message"] for error in findings["validation_errors"])[:2000]
            code = findings["validation_errors"][0]["code"]
            if current.state == self.State.APPLY_FAILED:
                columns |= {"last_error_code": code, "last_error_message": message}
                current._note("patch.revalidation_failed", by=by, reason=message, **columns)
                self.refresh_from_db()
                return False
            route = findings.get("route", "apply_failed")
            if route == "quarantined":
                return self.quarantine(message, by=by, **columns)
            if route == "dropped":
                return self.drop(message, by=by, **columns)
            return self.move(
                self.State.APPLY_FAILED,
                by=by,
                reason=message,
                verb="validate",
                working=True,
                data={"stage": "validation", "code": code},
                state_reason=message,
                last_error_code=code,
                last_error_message=message,
                **columns,
            )

    def why_unfit(self, refusal: Refused) -> str:
        """What git refused about its own base, in words that say which commit that is, and what helps."""
        from ledger.models.queue import MergeQueue

        if not isinstance(refusal, git.DoesNotApply) or refusal.code != git.DoesNotApply.code:
            return str(refusal)
        heads = MergeQueue.objects.filter(project=self.project_id, target_branch=self.target_branch)
        is_head = heads.filter(head_commit=self.base_commit).exists()
        which = f"the present head of {self.target_branch}" if is_head else "the base that it names"
        return (
            f"{refusal}. It was tried on commit {self.base_commit[:12]}, {which}, which does not hold the lines that "
            f"the diff quotes where it says: make the diff anew, of the files as they are in that commit"
        )

    def swing(self, policy: Mapping[str, Any]) -> oscillation.Swing:
        """Whether this change goes back and forth among those before it in its place, by the window and the
        threshold of `policy` (`oscillation_window`, `oscillation_threshold`). A reverse patch never does.
        """
        content = getattr(self, "content", None)
        if content is None or self.rollback_of_id is not None:
            return oscillation.Swing()
        threshold = int(policy["oscillation_threshold"])
        others = resubmitters([self.pk]).get(self.pk, set()) - {self.attempt_id}
        return oscillation.judge(
            content.diff_text,
            # A plan may ask for fewer than could ever be enough: each patch is one sign.
            Patch.objects.before(self, max(int(policy["oscillation_window"]), threshold)),
            threshold=threshold,
            resubmitted=(self.pk, len(others)),
            is_released=events.Event.objects.filter(kind="patch.released", subject_id=self.pk).exists(),
        )

    def _note(
        self, kind: str, *, by: events.Actor, reason: str = "", data: Mapping[str, Any] | None = None, **columns: Any
    ) -> None:
        """Write columns that go with no move, and the event that tells them. The caller holds the row's lock, and has
        read it under that.
        """
        before = self.tellable({name: getattr(self, name) for name in columns})
        Patch.objects.filter(pk=self.pk).update(**columns)
        events.record(kind, self, by=by, reason=reason, data=data, before=before, after=self.tellable(columns))

    def queue(self, *, by: events.Actor) -> bool:
        """validated, apply_failed -> queued, with an item at the tail of its branch's queue. False when the policy has
        changed, and a validated patch goes back to be judged by that.

        Raises InvalidMove, Refused `validation_incomplete`, `attempts_exhausted`, `superseded`, `reviews_missing`,
        `review_veto`, `override_expired`, `policy_changed`.
        """
        from ledger.models.queue import MergeQueue
        from ledger.models.review import changed_by_policy

        with in_transaction():
            queue = None
            if self.custody == Project.Custody.MANAGED:
                queue = (
                    MergeQueue.objects.select_for_update(no_key=True)
                    .filter(project=self.project_id, target_branch=self.target_branch)
                    .only("pk", "project", "target_branch")
                    .first()
                )
                if queue is None:
                    raise NotFound.of("merge_queue", self.target_branch)
            current = Patch.objects.locked_in_place(self.pk)
            if current.state not in (self.State.VALIDATED, self.State.APPLY_FAILED):
                raise InvalidMove(current, current.state, "queued", verb="queue", allowed=self.MOVES[current.state])
            if not current.is_valid:
                raise Refused("Cannot queue: the validation is incomplete", code="validation_incomplete")
            if current.attempts >= current.max_apply_attempts:
                raise Refused(
                    f"Cannot queue: {current.attempts} of {current.max_apply_attempts} attempts are used up",
                    code="attempts_exhausted",
                )
            needed = current.depends_on.exclude(state=self.State.COMMITTED).order_by("pk")
            for pk, state in needed.values_list("pk", "state")[:1]:
                raise Refused(
                    f"Cannot queue: patch {pk}, on which it stands, is {state} and has to land",
                    code="gates_not_satisfied",
                    patches=[pk],
                )
            current.must_be_newest("queue")
            if why := changed_by_policy(current):
                if current.state == self.State.APPLY_FAILED:
                    raise Refused(f"Cannot queue: {why}; validate it again first", code="policy_changed")
                self.judge_again(why, by=by)
                return False
            current.must_be_allowed("queue")
            moved = self.move(
                self.State.QUEUED,
                by=by,
                verb="queue",
                working=True,
                tests_ran=False,
                tests_passed=False,
                state_reason="",
            )
            if queue is not None:
                queue.take_in(self, by=by)
        return moved

    def note_applied(
        self, *, by: events.Actor, candidate_tree: str, files: list[str], again: bool = False, only_from: Any = None
    ) -> bool:
        """queued -> applied: its candidate stands. `again` when the queue had taken it back, which counts as a
        reapply.
        """
        counted = {"reapplies": Plus(1)} if again else {"attempts": Plus(1)}
        with in_transaction():
            moved = self.move(
                self.State.APPLIED,
                by=by,
                verb="apply",
                working=True,
                last_attempt_at=NOW,
                last_error_code="",
                last_error_message="",
                candidate_tree=candidate_tree,
                applied_files=files,
                **counted,
            )
            if self.run_id:
                Run.objects.filter(pk=self.run_id).update(count_patches_applied=F("count_patches_applied") + 1)
        return moved

    def fail(self, stage: str, code: str, message: str, *, by: events.Actor, tests_ran: bool | None = None) -> bool:
        """queued, applied -> apply_failed at `stage` apply, verify or evicted, with what went wrong."""
        sources = {"apply": ("queued",), "verify": ("applied",), "evicted": ("queued", "applied")}[stage]
        columns: dict[str, Any] = {"tests_ran": tests_ran} if tests_ran is not None else {}
        if stage == "apply":
            columns["attempts"] = Plus(1)
        with in_transaction():
            moved = self.move(
                self.State.APPLY_FAILED,
                by=by,
                reason=message,
                verb="verify" if stage == "verify" else "apply",
                working=True,
                only_from=sources,
                data={"stage": stage, "code": code},
                state_reason=message,
                last_attempt_at=NOW,
                last_error_code=code,
                last_error_message=message[:8000],
                tests_passed=False,
                **columns,
            )
            self._set_aside_when_exhausted(message, by=by)
        return moved

    def _set_aside_when_exhausted(self, message: str, *, by: events.Actor) -> None:
        """Quarantine it when it may not be tried again, and no task is about to repair it."""
        current = Patch.objects.select_related("task").get(pk=self.pk)
        is_repaired = current.task is not None and current.task.state == Task.State.VALIDATING
        if current.attempts >= current.max_apply_attempts and not is_repaired:
            self.quarantine(
                f"{current.attempts} of {current.max_apply_attempts} attempts to apply it are used up: {message}", by=by
            )

    def must_be_reported(self, verb: str) -> None:
        """Raises Refused `invalid_move` in managed custody: there the merge queue applies, tests and lands, and nobody
        else says that it has.
        """
        if self.custody != Project.Custody.RECORDED:
            raise Refused(
                f"Cannot {verb}: the project is in managed custody, so its merge queue does that",
                code="invalid_move",
                state=self.state,
            )

    def report_apply(
        self, *, by: events.Actor, success: bool, files: Sequence[str] = (), code: str = "", message: str = ""
    ) -> bool:
        """queued -> applied or apply_failed, as whoever keeps the branch of a recorded project says. The files are
        those of its text unless told. Raises InvalidMove, Refused `invalid_move` in managed custody.
        """
        self.must_be_reported("apply")
        if not success:
            return self.fail("apply", code or "apply_failed", message or "it could not be applied", by=by)
        touched = sorted(files or self.files_touched)
        return self.note_applied(by=by, candidate_tree="", files=touched, again=self.attempts > 0)

    def report_verify(
        self, *, by: events.Actor, tests_passed: bool, tree: str = "", parent: str = "", message: str = ""
    ) -> bool:
        """applied -> verified or apply_failed, in a recorded project. `tree` is what was tested: with it, the gates
        that have judged that tree are asked at the commit. Raises InvalidMove, Refused `invalid_move`.
        """
        self.must_be_reported("verify")
        if tests_passed:
            return self.verify(by=by, tested_tree=tree, tested_parent=parent)
        return self.fail("verify", "tests_not_passed", message or "its tests did not pass", by=by, tests_ran=True)

    def report_commit(self, *, by: events.Actor, commit_sha: str = "", tree: str = "") -> bool:
        """verified -> committed, in a recorded project: the branch that somebody else moves holds it. The commit guard
        is asked, but for what only a mirror could tell. Raises as `must_be_committable`, InvalidMove, Refused
        `invalid_move`; `tree_mismatch` when another tree was said to be tested; `policy_changed` when the policy has
        become stricter, by which the patch is then judged again.
        """
        self.must_be_reported("commit")
        try:
            return self._book_commit(commit_sha, tree, by=by)
        except Refused as refusal:
            if refusal.code == "policy_changed":
                self.judge_again(str(refusal), by=by)
            raise

    def _book_commit(self, commit_sha: str, tree: str, *, by: events.Actor) -> bool:
        from ledger.models.review import changed_by_policy

        with in_transaction():
            current = Patch.objects.locked_in_place(self.pk)
            if current.state != self.State.VERIFIED:
                raise InvalidMove(current, current.state, "committed", verb="commit", allowed=self.MOVES[current.state])
            if tree and current.tested_tree and tree != current.tested_tree:
                message = f"Cannot commit: tree {tree} is not the tested tree {current.tested_tree}"
                raise Refused(message, code="tree_mismatch")
            if why := changed_by_policy(current):
                raise Refused(why, code="policy_changed")
            current.must_be_committable()
            return self.commit(commit_sha, tree or current.tested_tree, by=by)

    def verify(self, *, by: events.Actor, tested_tree: str, tested_parent: str) -> bool:
        """applied -> verified: every required gate passed for exactly this tree on this parent."""
        return self.move(
            self.State.VERIFIED,
            by=by,
            verb="verify",
            working=True,
            tests_ran=True,
            tests_passed=True,
            tested_tree=tested_tree,
            tested_parent=tested_parent,
        )

    def rebase(self, *, by: events.Actor, reason: str) -> bool:
        """applied, verified -> queued: the commit that it was built on is no longer the one to build on."""
        return self.move(
            self.State.QUEUED,
            by=by,
            reason=reason,
            key="rebase",
            verb="rebase",
            working=True,
            only_from=(self.State.APPLIED, self.State.VERIFIED),
            candidate_tree="",
            tested_tree="",
            tested_parent="",
            landing_commit="",
            tests_ran=False,
            tests_passed=False,
        )

    def judge_again(self, reason: str, *, by: events.Actor) -> bool:
        """validated, queued, applied, verified -> created, out of its queue: the full validation runs again, since what
        it was judged by holds no more. Raises InvalidMove, and Refused `invalid_move` while it is landing.
        """
        with in_transaction():
            self._leave_queue(by, reason)
            return self.move(
                self.State.CREATED,
                by=by,
                reason=reason,
                key="judge_again",
                verb="validate",
                only_from=(self.State.VALIDATED, *self.IN_QUEUE),
                state_reason=reason,
                format_ok=False,
                scope_ok=False,
                constraints_ok=False,
                tests_ran=False,
                tests_passed=False,
                candidate_tree="",
                tested_tree="",
                tested_parent="",
                landing_commit="",
            )

    def must_be_allowed(self, verb: str) -> None:
        """What people have to say to it. Raises Refused `review_veto`, `reviews_missing`, `override_expired`."""
        from ledger.models.review import must_be_reviewed, must_hold_overrides

        must_be_reviewed(self, verb)
        must_hold_overrides(self, verb)

    def must_be_committable(self) -> None:
        """The commit guard (domain.md §2.3.1). Raises Refused with the code of what is missing."""
        if not (self.is_valid and self.tests_ran and self.tests_passed):
            raise Refused("Cannot commit: tests have not passed", code="tests_not_passed")
        if self.depends_on.exclude(state=self.State.COMMITTED).exists():
            raise Refused("Cannot commit: a patch that it depends on has not landed", code="gates_not_satisfied")
        self.must_be_allowed("commit")
        for objection in ask("patch.commit", patch=self):
            raise Refused(f"Cannot commit: {objection}", code="gates_not_satisfied")

    def begin_landing(self, commit: str, *, by: events.Actor) -> None:
        """Note which commit is about to land, before the branch moves: what recovery after a crash looks for.

        Raises what `must_be_committable` raises, and Refused `policy_changed`.
        """
        from ledger.models.review import changed_by_policy

        with in_transaction():
            current = Patch.objects.locked_in_place(self.pk)
            if current.state != self.State.VERIFIED:
                raise InvalidMove(current, current.state, "committed", verb="commit", allowed=self.MOVES[current.state])
            if why := changed_by_policy(current):
                raise Refused(why, code="policy_changed")
            current.must_be_committable()
            current._note("patch.landing", by=by, data={"commit": commit}, landing_commit=commit)
        self.landing_commit = commit

    def forget_landing(self, *, by: events.Actor) -> None:
        """Take back the note of `begin_landing`: that landing died before it moved the branch."""
        with in_transaction():
            current = Patch.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.pk)
            current._note("patch.landing", by=by, reason="the branch did not move", landing_commit="")
        self.landing_commit = ""

    def commit(self, commit_sha: str, tree: str, *, by: events.Actor) -> bool:
        """verified -> committed, and what it replaces is dropped as superseded. Raises Refused `tree_mismatch`."""
        with in_transaction():
            rows = Patch.objects.select_for_update(no_key=True, of=("self",)).filter(pk=self.pk)
            custody, tested = rows.values_list("custody", "tested_tree").get()
            if custody == Project.Custody.MANAGED and tree != tested:
                raise Refused(f"Cannot commit: tree {tree} is not the tested tree {tested}", code="tree_mismatch")
            moved = self.move(
                self.State.COMMITTED,
                by=by,
                verb="commit",
                working=True,
                commit_sha=commit_sha,
                committed_tree=tree,
                committed_at=NOW,
                landing_commit=commit_sha,
            )
            if self.replaces_id:
                self.replaces.supersede(by=by, winner=self)
            for newer in self.replaced_by.filter(state__in=[*self.OPEN, self.State.QUARANTINED]).order_by("pk"):
                newer.drop(f"patch {self.pk}, which it was to replace, has landed", by=by)
            if self.rollback_of_id:
                self.rollback_of.reverse_landed(self, by=by)
        return moved

    def give_way(self, newer: "Patch", *, by: events.Actor) -> bool:
        """Close it, out of its queue, since `newer` was submitted in its place; False when it is not on its way.

        What failed or was set aside stays for whoever looks after it, but does not go on while `newer` stands.
        """
        return self.gives_way and self.drop(f"superseded by {newer.pk}", by=by)

    def must_be_newest(self, verb: str) -> None:
        """Raises Refused `superseded` while a newer revision of it stands. The caller holds its row's lock."""
        gone = (self.State.DROPPED, self.State.ROLLED_BACK)
        newer = self.replaced_by.exclude(state__in=gone).order_by("-pk").values_list("pk", "state").first()
        if newer is not None:
            raise Refused(
                f"Cannot {verb}: patch {newer[0]}, which is {newer[1]}, was submitted in its place; go on with that "
                f"one, or drop it first",
                code="superseded",
                patches=[newer[0]],
            )

    def in_its_place(self) -> "Patch":
        """The newest revision of a patch that was dropped for one; itself when there is none. An agent's counts only
        where it is of the same task, a person's wherever it was meant for.
        """
        found = self
        while found.state == self.State.DROPPED:
            of_task = Q(task=self.task_id) | Q(author_worker_id=None)
            newer = found.replaced_by.filter(of_task).order_by("-pk").first()
            if newer is None:
                break
            found = newer
        return found

    def supersede(self, *, by: events.Actor, winner: "Patch") -> None:
        """Drop this patch, and what it replaced in turn, because `winner` landed in its place."""
        if self.state not in self.FINAL:
            self.drop(f"superseded by {winner.pk}", by=by)
        if self.replaces_id:
            self.replaces.supersede(by=by, winner=winner)

    def rollback(self, reason: str, *, by: events.Actor) -> bool:
        """applied, verified -> rolled_back: its candidate and its place in the queue are given up. What has landed is
        rolled back by a reverse patch (`ledger.rollback`). Raises ReasonRequired, InvalidMove.
        """
        reason = need_reason(reason)
        with in_transaction():
            self._leave_queue(by, reason)
            return self.move(
                self.State.ROLLED_BACK,
                by=by,
                reason=reason,
                verb="rollback",
                working=True,
                only_from=(self.State.APPLIED, self.State.VERIFIED),
                state_reason=reason,
                workspace_path="",
            )

    def reverse_landed(self, reverse: "Patch", *, by: events.Actor) -> bool:
        """committed -> rolled_back, in the transaction that commits `reverse`. False when another one did it before."""
        reason = reverse.metadata.get("rollback", {}).get("reason") or f"patch {reverse.pk} undoes it"
        return self.move(
            self.State.ROLLED_BACK,
            by=by,
            reason=reason,
            key="reverse_landed",
            verb="rollback",
            severity="critical",
            data={"reverse": reverse.pk, "commit": reverse.commit_sha},
            state_reason=reason,
        )

    def reverse_under_way(self) -> "Patch | None":
        """The newest reverse of this patch that may still land; None when there is none."""
        return self.reversed_by.filter(state__in=[*self.OPEN, self.State.QUARANTINED]).order_by("-pk").first()

    def came_back_by(self) -> "Patch | None":
        """The patch that brought this one back after it was rolled back, by undoing what had undone it. None for one
        whose content is not on the branch, or never left it. Two queries for each time that it was undone.
        """
        if self.state != self.State.ROLLED_BACK or not self.commit_sha:
            return None
        landed = Q(state__in=[self.State.COMMITTED, self.State.ROLLED_BACK])
        undone = self.reversed_by.filter(landed).exclude(commit_sha="").order_by("-pk").first()
        if undone is None or undone.state == self.State.COMMITTED:
            return None
        again = undone.reversed_by.filter(landed).exclude(commit_sha="").order_by("-pk").first()
        if again is None or again.state == self.State.COMMITTED:
            return again
        return again.came_back_by()

    def quarantine(
        self,
        reason: str,
        *,
        by: events.Actor,
        owner: str = "approvers",
        path: str = "",
        expires_after: timedelta | None = None,
        **columns: Any,
    ) -> bool:
        """Set it aside with a reason, an owner and an expiry, out of its queue, and write `columns`. Quiet."""
        reason = need_reason(reason)
        with in_transaction():
            self._leave_queue(by, reason)
            return self.move(
                self.State.QUARANTINED,
                by=by,
                reason=reason,
                verb="quarantine",
                state_reason=reason,
                quarantine_reason=reason,
                quarantine_path=path,
                quarantine_owner=owner,
                quarantined_at=NOW,
                quarantine_expires_at=db_now() + (expires_after or timedelta(days=settings.SIGNALBOX_QUARANTINE_DAYS)),
                **columns,
            )

    def expire_quarantine(self, *, by: events.Actor) -> bool:
        """Send it back to its owner's inbox: it stays aside, for as long again, and `patch.quarantine_expired` says so.

        False when it is not set aside any more, or its time is not over.
        """
        with in_transaction():
            rows = Patch.objects.select_for_update(no_key=True, of=("self",)).expired_quarantine()
            current = rows.filter(pk=self.pk).first()
            if current is None:
                return False
            until = db_now() + timedelta(days=settings.SIGNALBOX_QUARANTINE_DAYS)
            current._note(
                "patch.quarantine_expired",
                by=by,
                reason=current.quarantine_reason,
                data={"owner": current.quarantine_owner},
                quarantine_expires_at=until,
            )
        self.quarantine_expires_at = until
        return True

    def release(self, *, by: events.Actor, reason: str) -> bool:
        """quarantined -> created with its flags and its attempts cleared: the full validation runs again.

        What it was found to oscillate with is then no error: a person has looked at that. Raises ReasonRequired,
        InvalidMove, Refused `superseded`.
        """
        reason = need_reason(reason)
        with in_transaction():
            current = Patch.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.pk)
            if current.state == self.State.QUARANTINED:
                current.must_be_newest("release")
            return self.move(
                self.State.CREATED,
                by=by,
                reason=reason,
                key="release",
                verb="release",
                only_from=(self.State.QUARANTINED,),
                state_reason="",
                attempts=0,
                last_error_code="",
                last_error_message="",
                format_ok=False,
                scope_ok=False,
                constraints_ok=False,
                tests_ran=False,
                tests_passed=False,
                candidate_tree="",
                tested_tree="",
                tested_parent="",
                landing_commit="",
                quarantine_reason="",
                quarantine_path="",
                quarantine_owner="",
                quarantined_at=None,
                quarantine_expires_at=None,
            )

    def drop(self, reason: str, *, by: events.Actor, **columns: Any) -> bool:
        """Close it for good, out of its queue; `columns` are written with it. Quiet. Raises ReasonRequired,
        InvalidMove.
        """
        reason = need_reason(reason)
        with in_transaction():
            self._leave_queue(by, reason)
            return self.move(
                self.State.DROPPED,
                by=by,
                reason=reason,
                verb="drop",
                state_reason=reason,
                quarantine_reason="",
                quarantine_path="",
                quarantine_owner="",
                quarantined_at=None,
                quarantine_expires_at=None,
                **columns,
            )

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
        current = Patch.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.pk)
        if current.is_landing:
            raise Refused(
                f"Patch {self.pk} is landing right now; ask again when it has", code="invalid_move", state="verified"
            )
        for item in QueueItem.objects.live().filter(patch=self).order_by("pk"):
            item.withdraw(by=by, reason=reason)


@append_only
class PatchContent(Kept):
    """A patch's text as it came, immutable. Apart from its patch, so that no list loads it."""

    NOUN = "patch_content"

    patch = models.OneToOneField(Patch, models.PROTECT, related_name="content")
    diff_text = models.TextField()
    format = models.CharField(max_length=16, default=UNIFIED_DIFF)
    sha256 = models.CharField(max_length=64)
    patch_id_git = models.CharField(max_length=64, blank=True)
    byte_size = models.PositiveIntegerField()

    class Meta:
        indexes = [
            models.Index(fields=["patch_id_git"], name="patch_of_git_id", condition=~Q(patch_id_git="")),
        ]

    def __str__(self) -> str:
        return f"content of {self.patch_id}"
