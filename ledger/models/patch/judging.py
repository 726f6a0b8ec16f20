"""What validation found about a patch, and when it is judged again."""

from collections.abc import Collection, Mapping
from typing import Any

from ledger import git, oscillation
from ledger.models.patch.revisions import Revised
from ledger.models.patch.words import resubmitters
from pipeline import events
from pipeline.refusals import Refused, need_reason
from pipeline.rows import in_transaction
from pipeline.states import InvalidMove

# What a patch is before anybody has looked at it.
_NOT_JUDGED: dict[str, Any] = {
    "format_ok": False,
    "scope_ok": False,
    "constraints_ok": False,
    "tests_ran": False,
    "tests_passed": False,
    "candidate_tree": "",
    "tested_tree": "",
    "tested_parent": "",
    "landing_commit": "",
}


class Judged(Revised):
    """A patch is judged against its base and the policy over it."""

    class Meta:
        abstract = True

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
            current = self.locked()
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
            type(self).objects.before(self.whole, max(int(policy["oscillation_window"]), threshold)),
            threshold=threshold,
            resubmitted=(self.pk, len(others)),
            is_released=events.Event.objects.filter(kind="patch.released", subject_id=self.pk).exists(),
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
                **_NOT_JUDGED,
            )

    def release(self, *, by: events.Actor, reason: str) -> bool:
        """quarantined -> created with its flags and its attempts cleared: the full validation runs again.

        What it was found to oscillate with is then no error: a person has looked at that. Raises ReasonRequired,
        InvalidMove, Refused `superseded`.
        """
        reason = need_reason(reason)
        with in_transaction():
            current = self.locked()
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
                **_NOT_JUDGED,
                quarantine_reason="",
                quarantine_path="",
                quarantine_owner="",
                quarantined_at=None,
                quarantine_expires_at=None,
            )
