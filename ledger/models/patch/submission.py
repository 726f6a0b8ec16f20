"""How a change enters the ledger."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from django.db import connection, models
from django.db.models import F

from ledger import diff as diffs
from ledger import git, leaks, policy
from ledger.git.names import is_object_id
from ledger.models.patch.content import PatchContent
from ledger.models.patch.place import Place
from pipeline import events, prepared
from pipeline.constraints import Effective
from pipeline.crashpoints import crashpoint
from pipeline.ids import from_uuid, new_id, to_uuid
from pipeline.models import Project, Run, StepAttempt, Task, User
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import in_transaction
from pipeline.states import InvalidMove

if TYPE_CHECKING:
    from ledger.models.patch.patch import Patch

REVERSE_AUTHOR = "Signalbox"


class Submissions(models.QuerySet["Patch"]):
    """The two ways in: a change that somebody proposes, and the reverse of one that has landed."""

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
        it `replaces` gives way at once (see `give_way`), and leaves it its place: task, workstream and phase, and the
        run while that goes on. Raises DiffRefused with its structural code, UnknownCommit `stale_base`, InvalidField,
        Refused `invalid_move` while what it replaces is landing. The caller has checked the lease, and locked the queue
        of what it replaces before that.
        """
        if len(summary) > 512:
            raise InvalidField("summary", "512 characters at most")
        place = Place.of(attempt=attempt, task=task, rollback_of=rollback_of, replaces=replaces)
        task = place.task
        size = diffs.SUBMITTED if rollback_of is None else diffs.REVERSED
        try:
            facts = diffs.parse(diff_text, bounds=size)
        except diffs.DiffRefused as refusal:
            takes_links = rollback_of is not None or policy.takes_links(_bounds(project, place))
            if refusal.code != "symlink_target" or not takes_links:  # what undoes a landed patch is judged later
                raise
            facts = diffs.parse(diff_text, links=True, bounds=size)
        if rollback_of is None:
            told = {"summary": summary, "issue_ref": issue_ref, "metadata": json.dumps(dict(metadata or {}))}
            told["diff_text"] = "\n".join(change.path for change in facts.files)
            _refuse_secrets_beside_the_text(told, partial(_bounds, project, place))
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
            run = self._run(attempt, task)
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
            if replaces is not None:
                replaces = _replaceable(replaces, task if worker_id else None)
            elif task is not None:
                replaces = self._to_repair(task)
            if attempt is None and run is not None and (replaces is None or not replaces.run_id or run.is_finished):
                run = None
            linked = rollback_of or replaces
            patch = self.model(
                project=project,
                phase=place.phase,
                workstream=place.workstream,
                run=run,
                task=task,
                attempt=attempt,
                request=attempt.request if attempt else None,
                prompt=attempt.prompt if attempt else None,
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
            content = PatchContent(patch=patch, diff_text=diff_text, sha256=sha256, patch_id_git=patch_id)
            content.byte_size = len(diff_text.encode())
            content.save(force_insert=True)
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

    def _run(self, attempt: StepAttempt | None, task: Task | None) -> Run | None:
        """The run of the attempt, or of the task, locked; None without either."""
        run_id = attempt.run_id if attempt else task.run_id if task else None
        return Run.objects.select_for_update(no_key=True).get(pk=run_id) if run_id else None

    def draft_reverse(self, original: "Patch", *, diff_text: str, base_commit: str) -> "Patch":
        """What `submit_reverse` would enter, as far as it is judged; in no table."""
        patch = self.model(
            project=original.project,
            phase=original.phase,
            workstream=original.workstream,
            custody=original.custody,
            target_branch=original.target_branch,
            base_commit=base_commit,
            issue_ref=original.issue_ref,
            rollback_of=original,
            chain_id=original.chain_id,
        )
        PatchContent(patch=patch, diff_text=diff_text)  # found as `patch.content` from here on
        return patch

    def _to_repair(self, task: Task) -> "Patch | None":
        """The newest patch of the task that failed: what a new one replaces. Locks its row."""
        rows = self.select_for_update(no_key=True, of=("self",)).filter(task=task, state=self.model.State.APPLY_FAILED)
        return rows.order_by("-pk").first()

    def submit_reverse(
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
            current = original.locked()
            if current.state != current.State.COMMITTED:
                raise InvalidMove(
                    current, current.state, "rolled_back", verb="rollback", allowed=current.MOVES[current.state]
                )
            under_way = current.reverse_under_way()
            if under_way is not None and under_way.state != under_way.State.APPLY_FAILED:
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


def _bounds(project: Project, place: Place) -> Effective:
    """What a submission to this place may be."""
    from ledger.models.policy import PatchPolicy

    return PatchPolicy.objects.effective(project, place.phase, place.workstream, place.task)


def _refuse_secrets_beside_the_text(told: Mapping[str, str], bounds: Callable[[], Effective]) -> None:
    """What is told beside the diff stands in events and in the commit for good, so a secret in it is not taken in.
    Raises InvalidField naming the field and the kind.
    """
    for field, text in told.items():
        if (kinds := leaks.kinds(text)) and bounds().values.get("forbid_secrets", policy.BUILT_IN["forbid_secrets"]):
            where = "the name of a file" if field == "diff_text" else "it"
            raise InvalidField(field, f"{where} holds what looks like a secret: {', '.join(kinds)}. Take it out")


def _replaceable(patch: "Patch", own_task: Task | None) -> "Patch":
    """`patch` as the database holds it, locked. Raises InvalidField when it has landed, since a change to what is there
    replaces nothing; and when an agent (`own_task`) names the work of another task or of nobody's, in whatever state:
    that is not its to take out. Refused `invalid_move` while it is landing.
    """
    current = patch.locked()
    if current.state == current.State.COMMITTED:
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
