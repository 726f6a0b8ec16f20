"""Recorded custody: somebody else keeps the branch, and tells what became of a patch there."""

from collections.abc import Sequence

from ledger.models.patch.landing import Landing
from pipeline import events
from pipeline.models import Project
from pipeline.refusals import Refused
from pipeline.rows import in_transaction
from pipeline.states import InvalidMove


class Reported(Landing):
    """A patch whose landing is reported, not done."""

    class Meta:
        abstract = True

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
            current = self.locked_in_place()
            if current.state != self.State.VERIFIED:
                raise InvalidMove(current, current.state, "committed", verb="commit", allowed=self.MOVES[current.state])
            if tree and current.tested_tree and tree != current.tested_tree:
                message = f"Cannot commit: tree {tree} is not the tested tree {current.tested_tree}"
                raise Refused(message, code="tree_mismatch")
            if why := changed_by_policy(current):
                raise Refused(why, code="policy_changed")
            current.must_be_committable()
            return self.commit(commit_sha, tree or current.tested_tree, by=by)
