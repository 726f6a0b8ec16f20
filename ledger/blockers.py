"""For whom patches, their places in the queue, and tasks that wait for one wait: “why isn't this moving?”"""

from typing import Any

from ledger import reviewing
from ledger.models import MergeQueue, Patch, Push, QueueItem
from ledger.models.review import reviews_of
from ledger.verdicts import OVERRIDABLE
from pipeline.blockers import ENGINE, OPERATORS, Action, Holder, Wait, last_said
from pipeline.models import Hold, Task
from pipeline.models.hold import stored
from pipeline.questions import answers, ask

APPROVERS = Holder("user", "", "approvers")
ADMINS = Holder("user", "", "admins")


@answers("blockers")
def who_holds(*, subject: Any) -> Wait | None:
    """For a patch, a queue and its items; for a task whose patch is open."""
    if isinstance(subject, Patch):
        return _patch(subject)
    if isinstance(subject, QueueItem):
        return _item(subject)
    if isinstance(subject, MergeQueue):
        return _queue(subject)
    if isinstance(subject, Push):
        return _push(subject)
    if isinstance(subject, Task) and subject.state == Task.State.VALIDATING:
        patch = subject.patches.exclude(state__in=Patch.FINAL).order_by("-pk").first()
        return None if patch is None else Wait(code="patch_open", reason=f"{patch} is {patch.state}", on=patch)
    return None


def _patch(patch: Patch) -> Wait | None:
    """What reviewing knows of it; in the queue, what its place there waits for."""
    item = QueueItem.objects.live().filter(patch=patch).select_related("queue__project", "patch").first()
    if item is not None and not _needs_people(patch):
        return _item(item)
    held = reviewing.holder(patch)
    if held is None:
        return None
    if held["code"] == "repair_pending":
        return Wait(code=held["code"], reason=held["reason"], on=patch.task)
    holder = ENGINE if held["kind"] == "queue" else Holder(held["kind"], "", held["label"])
    reason = held["reason"] or f"It is {patch.get_state_display()}"
    return Wait(code=held["code"], reason=reason, holder=holder, action=_action(patch, held["code"]))


def _needs_people(patch: Patch) -> bool:
    """Whether a verified patch lost the reviews that it was queued with."""
    if patch.state != Patch.State.VERIFIED:
        return False
    standing = reviews_of([patch])[patch.pk]
    return bool(standing.vetoes or standing.missing)


def _action(patch: Patch, code: str) -> Action | None:
    verbs = {
        "reviews_missing": ("approve", "approver"),
        "review_veto": ("approve", "approver"),
        "quarantined": ("release", "approver"),
    }
    if patch.state == Patch.State.APPLY_FAILED:
        return _after_failure(patch)
    if code == "report_due":
        reported = {Patch.State.QUEUED: "apply", Patch.State.APPLIED: "verify", Patch.State.VERIFIED: "commit"}
        verbs[code] = (reported[Patch.State(patch.state)], "operator")
    if code not in verbs:
        return None
    verb, role = verbs[code]
    return Action(verb, f"/patches/{patch.pk}/{verb}/", role)


def _after_failure(patch: Patch) -> Action:
    """What helps a patch that failed: once more only where that can end otherwise. Where rules stand against it that
    may be set aside, an override; else another revision of it.
    """
    if patch.is_valid and patch.attempts < patch.max_apply_attempts and patch.last_error_code != "stale_base":
        return Action("requeue", f"/patches/{patch.pk}/requeue/", "operator")
    rules = {str(error.get("rule", "")) for error in patch.validation_errors}
    if not patch.is_valid and rules and rules <= OVERRIDABLE:
        return Action("override", f"/patches/{patch.pk}/overrides/", "admin")
    return Action("submit a newer revision", "/patches/", "operator")


def _queue(queue: MergeQueue) -> Wait | None:
    """A queue that does not go on: paused by people, held, or failed by the machine; None while it does."""
    if queue.state == MergeQueue.State.PAUSED:
        resume = Action("resume", f"/merge-queues/{queue.pk}/resume/", "operator")
        reason, since = last_said(queue, "merge_queue.paused")
        reason = reason or f"The {queue} is paused"
        return Wait(code="queue_paused", reason=reason, holder=OPERATORS, since=since, action=resume)
    scopes = Hold.objects.active().filter(scope_kind="project", scope_id=stored(queue.project_id))
    hold = (scopes | Hold.objects.active().filter(scope_kind="installation")).order_by("since", "pk").first()
    if hold is not None:
        return Wait(code=f"held_{hold.kind}", reason=hold.reason, since=hold.since, on=hold)
    if queue.is_blocked:
        return Wait(code="queue_blocked", reason=queue.blocked_reason, holder=ENGINE, eta=queue.blocked_until)
    return None


def _item(item: QueueItem) -> Wait | None:
    if item.state in QueueItem.ENDED:
        return None
    if stopped := _queue(item.queue):
        return stopped
    ahead = QueueItem.objects.live().filter(queue=item.queue, position__lt=item.position).select_related("patch")
    if item.state == QueueItem.State.FAILING:
        culprit = item.culprit if item.culprit_id not in (None, item.pk) else None
        if culprit is not None:
            holder = Holder("dependency", culprit.patch_id, str(culprit.patch))
            return Wait(code="culprit_ahead", reason=item.failing_reason, holder=holder, on=culprit.patch)
        reason = item.failing_reason or "It failed on this base, and leaves the queue when what is ahead has landed"
        return Wait(code="failing", reason=reason, holder=ENGINE)
    first = ahead.first()
    if first is not None:
        reason = f"{ahead.count()} ahead of it on {item.queue.target_branch}; first is {first.patch}"
        return Wait(code="in_line", reason=reason, holder=ENGINE, on=first.patch)
    if item.state == QueueItem.State.TESTING and (reason := _unjudged(item)):
        return Wait(code="gates_missing", reason=reason, holder=ADMINS)
    reasons = {
        QueueItem.State.WAITING: "It is head of its queue, and built when its turn comes",
        QueueItem.State.BUILDING: "Its candidate is being built",
        QueueItem.State.TESTING: "Its gates are being asked",
        QueueItem.State.PASSING: "It passed, and lands within seconds",
    }
    return Wait(code=str(item.state), reason=reasons[QueueItem.State(item.state)], holder=ENGINE)


def _unjudged(item: QueueItem) -> str:
    """Why no required gate has, or is to have, a word on its candidate; "" when one has."""
    verdicts = ask("tree.verdict", patch=item.patch, tree=item.candidate_tree)
    if any(verdict != "none" for verdict, _reason in verdicts):
        return ""
    told = next((reason for _verdict, reason in verdicts if reason), "")
    return told or "No required gate judges it, and nothing lands that nobody judged: an admin adds a gate"


def _push(push: Push) -> Wait | None:
    """A commit on its way to the remote: put off, or held since the remote went another way."""
    if push.state == Push.State.PUSHED:
        return None
    if push.state == Push.State.HELD:
        scope = Hold.objects.active().filter(scope_kind="project", scope_id=stored(push.queue.project_id))
        hold = scope.filter(ref=push.queue.remote_ref).first()
        release = Action("release", f"/holds/{hold.pk}/release/", "approver") if hold else None
        reason = push.last_error or f"{push.target} has gone another way, and nothing is ever forced"
        return Wait(code="remote_diverged", reason=reason, holder=APPROVERS, action=release)
    reason = push.last_error or "It is pushed when its turn comes"
    return Wait(code="push_due", reason=reason, holder=ENGINE, eta=push.due_at)
