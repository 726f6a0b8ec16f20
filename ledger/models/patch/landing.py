"""A patch's way onto the branch: queue, candidate, gates, commit."""

from typing import Any

from django.db.models import F

from ledger.models.patch.judging import Judged
from pipeline import events
from pipeline.models import Project, Run, Task
from pipeline.questions import ask
from pipeline.refusals import NotFound, Refused, need_reason
from pipeline.rows import in_transaction
from pipeline.states import NOW, InvalidMove, Plus


class Landing(Judged):
    """A patch is queued, applied, verified and committed, or fails on the way."""

    class Meta:
        abstract = True

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
            current = self.locked_in_place()
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
                queue.take_in(self.whole, by=by)
        return moved

    def note_applied(
        self, *, by: events.Actor, candidate_tree: str, files: list[str], again: bool = False, only_from: Any = None
    ) -> bool:
        """queued -> applied: its candidate stands. `again` when the queue had taken it back, which counts as a
        reapply.
        """
        counted: dict[str, Any] = {"reapplies": Plus(1)} if again else {"attempts": Plus(1)}
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
        current = type(self)._base_manager.select_related("task").get(pk=self.pk)
        is_repaired = current.task is not None and current.task.state == Task.State.VALIDATING
        if current.attempts >= current.max_apply_attempts and not is_repaired:
            self.quarantine(
                f"{current.attempts} of {current.max_apply_attempts} attempts to apply it are used up: {message}", by=by
            )

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

    def must_be_allowed(self, verb: str) -> None:
        """What people have to say to it. Raises Refused `review_veto`, `reviews_missing`, `override_expired`."""
        from ledger.models.review import must_be_reviewed, must_hold_overrides

        must_be_reviewed(self.whole, verb)
        must_hold_overrides(self.whole, verb)

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
            current = self.locked_in_place()
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
            current = self.locked()
            current._note("patch.landing", by=by, reason="the branch did not move", landing_commit="")
        self.landing_commit = ""

    def commit(self, commit_sha: str, tree: str, *, by: events.Actor) -> bool:
        """verified -> committed, and what it replaces is dropped as superseded. Raises Refused `tree_mismatch`."""
        with in_transaction():
            current = self.locked()
            if current.custody == Project.Custody.MANAGED and tree != current.tested_tree:
                raise Refused(
                    f"Cannot commit: tree {tree} is not the tested tree {current.tested_tree}", code="tree_mismatch"
                )
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
            if self.replaces:
                self.replaces.supersede(by=by, winner=self)
            for newer in self.revisions().filter(state__in=[*self.OPEN, self.State.QUARANTINED]).order_by("pk"):
                newer.drop(f"patch {self.pk}, which it was to replace, has landed", by=by)
            if self.rollback_of:
                self.rollback_of.reverse_landed(self, by=by)
        return moved

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
