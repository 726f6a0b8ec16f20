"""The merge queue: state in, actions out. Patches land in order, each tested on what lands before it (domain.md
§2.3.4).
"""

import logging
from pathlib import Path

from django.db import transaction

from ledger import git, janitor, remote, trees
from ledger.models import MergeQueue, Patch, QueueItem, Remote
from ledger.sharing import Sharing
from pipeline import events, locks, prepared
from pipeline.crashpoints import crashpoint
from pipeline.ids import to_uuid
from pipeline.questions import ask
from pipeline.refusals import Refused

log = logging.getLogger(__name__)

COMMITTER_DOMAIN = "signalbox.invalid"  # RFC 2606: never a real host
MAX_STEPS = 1000
MOST_TOLD = 5
HELD = "later_patch_depends"


class LandingUnknown(git.GitFailed):
    """A commit was about to land, and whether the remote that was offered it has it cannot be told now: it waits."""


def advance(queue_id: str, *, by: events.Actor = events.SYSTEM) -> int:
    """Do what is due in this queue until nothing is; returns how many steps were taken.

    One at a time per queue: whoever finds it taken leaves, since the other looks again before it leaves itself.
    """
    done = 0
    with locks.alone(f"queue {queue_id}", 1) as mine:
        if not mine:
            return 0
        try:
            while done < MAX_STEPS and _step(queue_id, by, again=done > 0):
                done += 1
        except git.GitFailed as problem:
            _wait(queue_id, problem, by)
    return done


def _wait(queue_id: str, problem: git.GitFailed, by: events.Actor) -> None:
    """The machine failed (disk, memory, a lock that somebody left): no patch is to blame, and all of them wait."""
    queue = MergeQueue.objects.select_related("project").get(pk=queue_id)
    removed = janitor.sweep(queue.project)
    wait = queue.block(f"{problem}"[:2000], by=by)
    log.warning(
        "queue %s waits %.0f s, since git failed: %s; removed %d leftovers",
        queue_id,
        wait.total_seconds(),
        problem,
        len(removed),
    )


def advance_all() -> int:
    """Advance every queue that has work; returns how many steps were taken."""
    waiting = QueueItem.objects.live().values_list("queue", flat=True)
    return sum(advance(pk) for pk in sorted(set(waiting)))


def _step(queue_id: str, by: events.Actor, *, again: bool = False) -> bool:
    """Walk the items from the head and do the first thing that is due, and what follows from it for the same item at
    once; False when nothing is due. `again`: the step before this one has just looked at the branch.
    """
    if again and not QueueItem.objects.live().filter(queue=queue_id).exists():
        return False
    queue = MergeQueue.objects.select_related("project").get(pk=queue_id)
    if queue.state == MergeQueue.State.PAUSED or queue.is_blocked:
        return False
    mirror, branch = queue.project.mirror, queue.target_branch
    head = git.head(mirror, branch)
    items = list(QueueItem.objects.due_in(queue).select_related("patch__project"))
    if items and _recover(queue, items[0], by):
        return True
    if head != queue.head_commit:
        if _find_landed(queue, items, by):
            return True
        queue.note(by=by, reason="the branch was moved by somebody else", head_commit=head)
    onto, ahead = head, None  # the commit to build on: that of the nearest item ahead that is not failing
    for index, item in enumerate(items):
        acted = _look_at(queue, item, index, onto, ahead, by)
        if acted:
            if queue.blocked_tries:
                queue.unblock(by=by)
            return True
        if item.state != QueueItem.State.FAILING:
            onto, ahead = item.candidate_commit, item
    return False


def _look_at(
    queue: MergeQueue, item: QueueItem, index: int, onto: str, ahead: QueueItem | None, by: events.Actor
) -> bool:
    """Do the first thing that is due for one item, and go on with it while that is possible; False when it has to
    wait.
    """
    acted, seen = _do_next(queue, item, index, onto, ahead, by), ""
    while acted and item.state != seen and item.state in (QueueItem.State.TESTING, QueueItem.State.PASSING):
        # Built, or judged, a moment ago by us: whatever has changed since is seen under the locks of the next action.
        seen = item.state
        if not _do_next(queue, item, index, onto, ahead, by):
            break
    return acted


def _do_next(
    queue: MergeQueue, item: QueueItem, index: int, onto: str, ahead: QueueItem | None, by: events.Actor
) -> bool:
    patch = item.patch
    if patch.state not in Patch.IN_QUEUE:
        return _withdraw(queue, item, f"its patch is {patch.state}", by)
    if item.base_commit and item.base_commit != onto:
        return _restart(queue, item, "what it was built on is no longer what lands before it", by)
    if item.state in (QueueItem.State.WAITING, QueueItem.State.BUILDING):
        if index >= queue.window_size or not onto or queue.state == MergeQueue.State.DRAINING:
            return False
        return _build(queue, item, onto, ahead, by)
    if item.state == QueueItem.State.TESTING:
        return _judge(queue, item, by)
    if index:
        return False
    if item.state == QueueItem.State.PASSING:
        return not queue.has_diverged and _land(queue, item, by)
    return _evict(queue, item, by)


_LOCK_QUEUE = "SELECT state FROM ledger_mergequeue WHERE id = %s FOR NO KEY UPDATE"
_LOCK_RUN = "SELECT id FROM pipeline_run WHERE id = %s FOR NO KEY UPDATE"
_LOCK_PATCH = "SELECT id FROM ledger_patch WHERE id = %s FOR NO KEY UPDATE"
_LOCK_ITEM = "SELECT state FROM ledger_queueitem WHERE id = %s FOR NO KEY UPDATE"


def _lock(queue: MergeQueue, item: QueueItem, *, also_paused: bool = False) -> bool:
    """Take the locks of one action in the house's order: queue, run, patch, item. False when the item is gone on, or
    somebody has paused the queue meanwhile.
    """
    ((state,),) = prepared.execute(_LOCK_QUEUE, [to_uuid(queue.pk)])
    if state == MergeQueue.State.PAUSED and not also_paused:
        return False
    if item.patch.run_id:
        prepared.execute(_LOCK_RUN, [to_uuid(item.patch.run_id)])
    prepared.execute(_LOCK_PATCH, [to_uuid(item.patch_id)])
    ((now,),) = prepared.execute(_LOCK_ITEM, [to_uuid(item.pk)])
    return bool(now == item.state)


def _withdraw(queue: MergeQueue, item: QueueItem, reason: str, by: events.Actor) -> bool:
    with transaction.atomic():
        return _lock(queue, item) and item.withdraw(by=by, reason=reason)


def _restart(queue: MergeQueue, item: QueueItem, reason: str, by: events.Actor) -> bool:
    with transaction.atomic():
        if not _lock(queue, item):
            return True
        if item.patch.state in (Patch.State.APPLIED, Patch.State.VERIFIED):
            item.patch.rebase(by=by, reason=reason)
        return item.restart(by=by, reason=reason)


def _build(queue: MergeQueue, item: QueueItem, onto: str, ahead: QueueItem | None, by: events.Actor) -> bool:
    """Make the candidate commit, outside any transaction; a conflict makes the item failing."""
    patch, mirror = item.patch, queue.project.mirror
    if item.state == QueueItem.State.WAITING:
        with transaction.atomic():
            if not _lock(queue, item):
                return True
            item.build(base_commit=onto, ahead=ahead, by=by)
            events.record("patch.apply_started", patch, by=by, data={"onto": onto})
    crashpoint("build.started")
    try:
        try:
            candidate, tree = _candidate(patch, mirror, onto, patch.result_tree)
        except git.UnknownCommit:  # a mirror that was made anew has no more what the validation left there
            candidate, tree = _candidate(patch, mirror, onto, "")
    except (git.DoesNotApply, git.UnknownCommit) as refusal:
        with transaction.atomic():
            if _lock(queue, item):
                item.become_failing(refusal.code, str(refusal), by=by)
        return True
    crashpoint("build.done")
    with transaction.atomic():
        if _lock(queue, item):
            item.test(candidate_commit=candidate, candidate_tree=tree, by=by)
            patch.note_applied(
                by=by,
                candidate_tree=tree,
                files=sorted(patch.files_touched),
                again=item.builds > 1 or patch.attempts > 0,
            )
    return True


def _candidate(patch: Patch, mirror: Path, onto: str, made: str) -> tuple[str, str]:
    """The commit that lands, and its tree. `made` is what the validation has made of the patch's own base; without it
    the text is applied again. Raises DoesNotApply, UnknownCommit.
    """
    tree = made or git.apply(mirror, patch.base_commit, patch.content.diff_text)
    crashpoint("build.applied")
    base_tree = patch.base_tree or git.tree_of(mirror, patch.base_commit)
    stood = base_tree if onto == patch.base_commit else git.tree_of(mirror, onto)
    if stood != base_tree:
        tree = git.rebase_tree(mirror, base_tree, tree, stood)
        found = trees.judge_merged(mirror, patch.base_commit, onto, tree)
        if found:
            words = "; ".join(finding.message for finding in found[:MOST_TOLD])
            raise git.DoesNotApply(f"Together with what has landed since it was made: {words}", code=found[0].rule)
        if patch.rollback_of is not None:
            shared = Sharing(patch.project, patch.target_branch).of(patch.rollback_of, stood, tree)
            if shared:
                words = "; ".join(str(one) for one in shared[:MOST_TOLD])
                raise git.DoesNotApply(f"What has landed since it was made says the same: {words}", code=HELD)
    if tree == stood:
        raise git.DoesNotApply("nothing is left of the change: the branch holds it already")
    candidate = git.commit(
        mirror, tree, onto, message(patch), author_name=patch.author_name,
        author_email=f"{patch.author_worker_id or 'user'}@{COMMITTER_DOMAIN}", at=patch.created_at,
    )  # fmt: skip
    return candidate, tree


def message(patch: Patch) -> str:
    """Our commit message: the summary as one clean line, and the trailer that ties the commit to its patch."""
    words = " ".join("".join(letter if letter.isprintable() else " " for letter in patch.summary).split())
    title = words[:72].rstrip() or "Change by an agent"
    if ":" in title.split(" ")[0] and title.split(":")[0].lower() in (
        "signalbox-patch",
        "signed-off-by",
        "co-authored-by",
    ):
        title = f"Change: {title}"
    return f"{title}\n\nSignalbox-Patch: {patch.pk}\n"


def _judge(queue: MergeQueue, item: QueueItem, by: events.Actor) -> bool:
    """Ask whether the tree's required gates passed; unknown waits, and so does a tree that no required gate judges."""
    verdicts = ask("tree.verdict", patch=item.patch, tree=item.candidate_tree)
    verdict, reason = next(iter(verdicts), ("none", ""))
    if verdict not in ("passed", "failed"):
        return False
    with transaction.atomic():
        if not _lock(queue, item):
            return True
        if verdict == "failed":
            item.become_failing("gates_not_satisfied", reason, by=by)
        else:
            item.become_passing(by=by)
            item.patch.verify(by=by, tested_tree=item.candidate_tree, tested_parent=item.base_commit)
    return True


def _land(queue: MergeQueue, item: QueueItem, by: events.Actor) -> bool:
    """Move the branch to exactly what was tested, and book it. A remote that takes it on its own branch is asked first,
    by whoever has the repository to itself.
    """
    first = remote.asked_first(queue)
    if first is None:
        return _land_here(queue, item, None, by)
    with janitor.alone(queue.project) as mine:
        return mine and _land_here(queue, item, first, by)


def _land_here(queue: MergeQueue, item: QueueItem, first: Remote | None, by: events.Actor) -> bool:
    patch = item.patch
    offered = first is not None or patch.is_landing
    try:
        with transaction.atomic():
            if not _lock(queue, item):
                return True
            patch.begin_landing(item.candidate_commit, by=by)
    except Refused as refusal:
        if patch.is_landing:  # one that died before, of which nobody could tell
            if _has_landed(queue, item, by):
                return _book_late(queue, item, by)
            patch.forget_landing(by=by)
        if refusal.code in ("gates_not_satisfied", "tests_not_passed"):
            return _restart(queue, item, str(refusal), by)
        if refusal.code == "policy_changed":
            return patch.judge_again(str(refusal), by=by)
        if refusal.code in ("reviews_missing", "review_veto", "override_expired"):
            # It was allowed when it was queued: a person has to look at what has changed since.
            return patch.quarantine(str(refusal), by=by)
        raise
    crashpoint("land.before_ref")
    if first is not None:
        if not remote.offer(queue, first, item.candidate_commit):
            return _give_up(queue, item, "somebody pushed to the remote's branch meanwhile", by, offered=True)
        crashpoint("land.offered")
    try:
        git.move_branch(queue.project.mirror, queue.target_branch, item.candidate_commit, item.base_commit)
    except git.BranchMoved:
        # A git whose parent was killed ends its work alone: then the branch holds exactly what was to land.
        return _give_up(queue, item, "the branch was moved by somebody else", by, offered=offered)
    crashpoint("land.after_ref")
    return _book(queue, item, by)


def _give_up(queue: MergeQueue, item: QueueItem, reason: str, by: events.Actor, *, offered: bool) -> bool:
    """Take a landing back that came to nothing, and build again; what has landed all the same is booked. `offered`: a
    remote may have it as well.
    """
    if _has_landed(queue, item, by, offered=offered):
        return _book_late(queue, item, by)
    return _restart(queue, item, reason, by)


def _has_landed(queue: MergeQueue, item: QueueItem, by: events.Actor, *, offered: bool = True) -> bool:
    """Whether our branch holds the commit of a landing that was noted, or gets it from the remote that was offered it,
    which is fetched. Asked before any such note is taken back.

    Raises LandingUnknown while the remote cannot be asked, or has the commit on a branch that has gone another way.
    """
    mirror, branch, commit = queue.project.mirror, queue.target_branch, item.patch.landing_commit
    if git.contains(mirror, branch, commit):
        return True
    there = remote.holds(queue, commit, by=by) if offered else False
    if there is None:
        raise LandingUnknown(f"The remote may have {commit[:12]}, which was landing, and cannot be asked now")
    if git.contains(mirror, branch, commit):
        return True
    if there:
        raise LandingUnknown(f"The remote has {commit[:12]}, which was landing, and has gone another way than ours")
    return False


def _book(queue: MergeQueue, item: QueueItem, by: events.Actor, *, head: str = "") -> bool:
    """Write that the item has landed; `head` is where the branch is by now, unless that is its own commit."""
    with transaction.atomic():
        if not _lock(queue, item, also_paused=True):
            return True
        item.patch.commit(item.candidate_commit, item.candidate_tree, by=by)
        item.land(by=by)
        queue.note(
            by=by,
            head_commit=head or item.candidate_commit,
            window_size=min(queue.window_size + 1, queue.window_ceiling),
        )
        crashpoint("land.booked")
    crashpoint("land.done")
    return True


def _find_landed(queue: MergeQueue, items: list[QueueItem], by: events.Actor) -> bool:
    """The branch moved, and not by what the rows say: book what its new commits say by their trailers has landed.

    So it is after a database was restored that is older than the mirror. Only what the rows know as tested is booked;
    of anything else the invariant of the trailers tells (INV-71), and a person decides.
    """
    since = queue.head_commit if git.contains(queue.project.mirror, queue.target_branch, queue.head_commit) else None
    found = git.landed(queue.project.mirror, queue.target_branch, since=since)
    for item in items:
        commit = found.get(item.patch_id)
        is_tested = item.state == QueueItem.State.PASSING and item.patch.state == Patch.State.VERIFIED
        if commit and is_tested and commit == item.candidate_commit:
            return _book(queue, item, by)
    return False


def _recover(queue: MergeQueue, item: QueueItem, by: events.Actor) -> bool:
    """A landing that died half-way: the branch has the commit, or the remote that was offered it, so book it; nobody
    has it, so it is tried again. While nobody can tell, the same commit may land once more, and nothing else.
    """
    patch = item.patch
    if not patch.is_landing or item.state != QueueItem.State.PASSING:
        return False
    try:
        if _has_landed(queue, item, by):
            return _book_late(queue, item, by)
    except LandingUnknown:
        if git.head(queue.project.mirror, queue.target_branch) != item.base_commit:
            raise
        return False
    patch.forget_landing(by=by)
    return True


def _book_late(queue: MergeQueue, item: QueueItem, by: events.Actor) -> bool:
    """Book what was found on the branch, on which others may have built since."""
    return _book(queue, item, by, head=git.head(queue.project.mirror, queue.target_branch))


def _evict(queue: MergeQueue, item: QueueItem, by: events.Actor) -> bool:
    """The head is failing on the true branch head, so the fault is its own: out of the queue, apply_failed."""
    patch = item.patch
    with transaction.atomic():
        if not _lock(queue, item):
            return True
        item.evict(by=by)
        stage = "verify" if patch.state == Patch.State.APPLIED else "apply"
        patch.fail(stage, item.failing_code, item.failing_reason, by=by, tests_ran=True if stage == "verify" else None)
        queue.note(by=by, window_size=max(queue.window_size // 2, queue.window_floor))
    return True
