"""Following the repository that a mirror came from: fetch, on a schedule or when told; push of what landed, until it is
there.

Nothing is ever forced. Where the remote takes each commit on the branch itself, it is offered the commit before ours
moves, so that what a person pushed there meanwhile comes first. A remote that has gone another way all the same (it was
down when something landed here, or its history was written anew), or was set back behind what it got from us, stops
landing on that branch and asks a person; it goes on by itself once one branch contains the other again.
"""

import hashlib
import hmac
import logging
from collections.abc import Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import Q
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ledger import git, receipts
from ledger.git import remotes
from ledger.janitor import alone
from ledger.models import MergeQueue, Patch, Push, QueueItem, Remote
from ledger.models.remote import CredentialMissing, read_secret
from pipeline import events
from pipeline.clock import db_now
from pipeline.crashpoints import crashpoint
from pipeline.egress import AddressRefused
from pipeline.models import Hold, Project, Tick
from pipeline.models.hold import stored
from pipeline.refusals import InvalidField

log = logging.getLogger(__name__)

LISTED_PATCHES = 200
RECEIPTS_LOOKED_AT = 100
FAILURES = (git.GitFailed, git.UnknownCommit, CredentialMissing, AddressRefused, InvalidField)
"""What may be wrong with a remote: it is tried again, and none of it is anybody's 500."""


class Fetched(NamedTuple):
    """What one fetch found: branches that moved here, branches that have gone another way, and {branch: why} of those
    that could not be followed; or why it failed.
    """

    moved: list[dict[str, Any]]
    diverged: list[str]
    error: str = ""
    skipped: Mapping[str, str] = MappingProxyType({})


def fetch(remote: Remote, *, by: events.Actor = events.SYSTEM) -> Fetched | None:
    """Ask the remote for its branches, and bring ours forward where theirs hold them; None while another does.

    A branch of ours that is ahead stays. One that cannot be brought forward is told, and keeps no other. Queues of
    branches that moved look again at once, and build on the new head.
    """
    with alone(remote.project) as mine:
        found = _fetch(remote, by) if mine else None
        if found is not None and not found.error and Remote.objects.filter(pk=remote.pk).lacking_receipts().exists():
            _give_receipts(remote, by)
    _wake_landings(remote.project_id)
    return found


def _wake_landings(project_id: str) -> None:
    """What wanted to land while we spoke with the remote looks again at once, and not at the next sweep."""
    passing = QueueItem.objects.filter(queue__project=project_id, state=QueueItem.State.PASSING)
    for pk in passing.order_by("queue").values_list("queue", flat=True).distinct():
        events.nudge_later("ledger.tasks.advance", pk)


def _fetch(remote: Remote, by: events.Actor) -> Fetched:
    mirror = remote.project.mirror
    try:
        address = remotes.check_address(remote.url)
        secret = read_secret(remote.credential)
        theirs, missed = remotes.fetch(mirror, address, username=remote.username, secret=secret)
        crashpoint("fetch.taken")
        moved, diverged, skipped = _bring_forward(remote, theirs, missed)
    except FAILURES as problem:
        remote.note_fetch(str(problem)[:2000], [], by=by)
        return Fetched([], [], str(problem))
    remote.note_fetch(_words_of(skipped), moved, by=by)
    for queue in MergeQueue.objects.filter(project=remote.project_id).select_related("project"):
        target = remote.pushes_to(queue.target_branch)
        if target in theirs and target != queue.target_branch and not _is_in(queue, theirs[target]):
            diverged.append(target)  # somebody wrote to the branch that is ours alone
        if target and {queue.target_branch, target} & set(diverged):
            _ask_about_ways(queue, remote, by)
        elif taken := _taken_off(queue, remote, theirs):
            diverged.append(target)
            _ask_about_taken(queue, taken, theirs[target], by)
        elif queue.target_branch in theirs:
            _go_on(queue, by)
        for move in moved:
            if move["branch"] == queue.target_branch:
                _note_head(queue, move["after"], by)
    return Fetched(moved, diverged, skipped=skipped)


def _words_of(skipped: Mapping[str, str]) -> str:
    """What is wrong with single branches, the first few of them, as the remote's row tells it; "" when nothing is."""
    told = [_("%(branch)s is not followed: %(why)s") % {"branch": one, "why": skipped[one]} for one in sorted(skipped)]
    more = [_("and %(count)d more") % {"count": len(told) - 5}] if len(told) > 5 else []
    # Nobody can store a name that is no UTF-8.
    return "; ".join([one[:300] for one in told[:5]] + more).encode(errors="replace").decode()


def _bring_forward(
    remote: Remote, theirs: dict[str, str], missed: Mapping[str, str]
) -> tuple[list[dict[str, Any]], list[str], dict[str, str]]:
    """Move our branches to the remote's commits where that loses nothing; what moved, what has diverged, and {branch:
    why} of what was `missed` or cannot be moved.
    """
    mirror, moved, diverged, skipped = remote.project.mirror, [], [], dict(missed)
    spare = _spare(remote, {*theirs, *missed})
    for branch, commit in sorted(theirs.items()):
        if branch.startswith("signalbox/"):
            continue  # what we pushed ourselves
        try:
            try:
                ours: str | None = git.head(mirror, branch)
            except (git.UnknownCommit, InvalidField):
                ours = None
            if ours == commit or (ours is not None and git.is_ancestor(mirror, commit, ours)):
                continue
            if ours is not None and not git.is_ancestor(mirror, ours, commit):
                diverged.append(branch)
                continue
            for name in [one for one in spare if ours is None and _are_file_and_folder(one, branch)]:
                git.set_branch_aside(mirror, name, spare[name])
                moved.append({"branch": name, "before": spare.pop(name), "after": None})
            git.move_branch(mirror, branch, commit, ours or "0" * len(commit))
        except (git.BranchMoved, InvalidField):
            continue  # something landed in between: the next fetch looks again
        except git.TimedOut:
            raise  # the machine's trouble, and no branch's
        except git.GitFailed as problem:
            skipped[branch] = str(problem)
            continue
        moved.append({"branch": branch, "before": ours, "after": commit})
    return moved, diverged, skipped


def _spare(remote: Remote, theirs: set[str]) -> dict[str, str]:
    """{branch: commit} of ours that the remote does not have any more, and on which nothing lands: one of them makes
    room for a new branch of the remote's that cannot be beside it.
    """
    project = remote.project
    ours = git.branches_below(project.mirror, "refs/heads/")
    used = MergeQueue.objects.filter(project=project).values_list("target_branch", flat=True)
    needed = {*theirs, *used, project.default_branch, git.default_branch(project.mirror)}
    return {branch: commit for branch, commit in ours.items() if branch not in needed}


def _are_file_and_folder(one: str, other: str) -> bool:
    """Whether no repository can have both branches, such as `feature` and `feature/x`."""
    return one.startswith(f"{other}/") or other.startswith(f"{one}/")


def _taken_off(queue: MergeQueue, remote: Remote, theirs: dict[str, str]) -> str:
    """The newest commit that we gave to the remote's branch, when that went back behind it; "" when it has it.

    Only on the branch itself: one of ours beside it is made anew by the next push, whoever cleared it away.
    """
    branch = queue.target_branch
    if remote.landing != Remote.Landing.PUSH or branch not in theirs:
        return ""
    last = Push.objects.filter(queue=queue, target=branch, state=Push.State.PUSHED).order_by("pk").last()
    if last is None or theirs[branch] == last.commit_sha or not _is_in(queue, last.commit_sha):
        return ""
    return "" if git.is_ancestor(queue.project.mirror, last.commit_sha, theirs[branch]) else last.commit_sha


def _note_head(queue: MergeQueue, commit: str, by: events.Actor) -> None:
    """Have claims start from the fetched commit, unless something landed on it meanwhile, and the queue look again."""
    with transaction.atomic():
        MergeQueue.objects.select_for_update(no_key=True).get(pk=queue.pk)
        if git.head(queue.project.mirror, queue.target_branch) == commit:
            queue.note(by=by, reason="fetched from the remote", head_commit=commit)
    events.nudge_later("ledger.tasks.advance", queue.pk)


def _is_in(queue: MergeQueue, commit: str) -> bool:
    return git.contains(queue.project.mirror, queue.target_branch, commit)


def fetch_due() -> int:
    """Fetch every remote whose time has come, each due moment once however many ask; returns how many it were."""
    done = 0
    for remote in Remote.objects.live().filter(fetch_seconds__gt=0).select_related("project"):
        tick = Tick.objects.take(f"fetch {remote.pk}", timedelta(seconds=remote.fetch_seconds))
        if tick is not None:
            done += fetch(remote) is not None
            tick.end()
    return done


def send_fetches() -> None:
    """The sweep's part: wake somebody when a fetch may be due."""
    now = db_now()
    times = Remote.objects.live().filter(fetch_seconds__gt=0).values_list("fetch_seconds", "fetched_at")
    if any(at is None or at + timedelta(seconds=seconds) <= now for seconds, at in times):
        events.nudge("ledger.landing_tasks.fetch_due")


def is_signed(remote: Remote, body: bytes, signature: str) -> bool:
    """Whether `signature` (`sha256=` and hexadecimal, as in the header X-Hub-Signature-256) is that of `body`.

    False for a remote without a secret.
    """
    try:
        secret = read_secret(remote.webhook_credential)
    except (CredentialMissing, InvalidField) as problem:
        log.warning("webhook of %s: %s", remote.project.key, problem)
        return False
    if not secret:
        return False
    right = "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(right.encode(), signature.encode("utf-8", "replace"))


# -- pushing -----------------------------------------------------------------------------------------------------


def owe(patch: Patch, *, by: events.Actor = events.SYSTEM) -> Push | None:
    """Note that this committed patch has to go to the remote; None when nothing does. Safe to repeat."""
    remote = Remote.objects.live().filter(project=patch.project_id).exclude(landing=Remote.Landing.NONE).first()
    if remote is None or patch.state != Patch.State.COMMITTED or not patch.commit_sha:
        return None
    push, _is_new = Push.objects.owe(patch, remote, by=by)
    return push


def push_due() -> int:
    """Push every queue whose oldest commit on its way is due; returns how many commits arrived or were put off."""
    return sum(push(pk) for pk in due_queues())


def send_pushes() -> None:
    """The sweep's part: wake somebody for each queue that has something to push."""
    for pk in due_queues():
        events.nudge("ledger.landing_tasks.push", pk)


def due_queues() -> list[str]:
    """The queues whose oldest waiting push is due: a failure puts off all that came after it."""
    oldest = Push.objects.waiting().order_by("queue", "pk").distinct("queue").values("pk")
    return list(Push.objects.due().filter(pk__in=oldest).order_by("queue").values_list("queue", flat=True))


def push(queue_id: str, *, by: events.Actor = events.SYSTEM) -> int:
    """Give the remote what has landed in this queue; returns how many commits arrived, were put off or are held."""
    queue = MergeQueue.objects.select_related("project").get(pk=queue_id)
    remote = Remote.objects.live().filter(project=queue.project_id).select_related("project").first()
    if remote is None or remote.landing == Remote.Landing.NONE:
        return 0
    with alone(queue.project) as mine:
        waiting = list(Push.objects.waiting().filter(queue=queue).select_related("patch")) if mine else []
        if not waiting or waiting[0].due_at > db_now():
            return 0
        done = _push(queue, remote, waiting, by)
    _wake_landings(queue.project_id)
    return done


def _push(queue: MergeQueue, remote: Remote, waiting: list[Push], by: events.Actor, commit: str = "") -> int:
    mirror, target = queue.project.mirror, remote.pushes_to(queue.target_branch)
    queue.refresh_from_db(fields=["head_commit"])
    commit = commit or queue.head_commit
    try:
        address = remotes.check_address(remote.url)
        secret = read_secret(remote.credential)
        crashpoint("push.before")
        remotes.push(mirror, address, commit, target, username=remote.username, secret=secret)
        _give_receipts(remote, by)
        crashpoint("push.after")
    except remotes.RemoteRefused as refusal:
        return _refused(queue, remote, waiting, commit, str(refusal), by)
    except FAILURES as problem:
        waiting[0].retry(str(problem), by=by)
        return 1
    return _arrived(queue, remote, waiting, commit, by)


def _give_receipts(remote: Remote, by: events.Actor) -> None:
    """Give the remote the receipts beside its branches. They are a record: whatever is wrong with them stands in the
    remote's row, is tried again with each push and fetch, and keeps no branch.
    """
    project, error = remote.project, ""
    try:
        if remote.landing != Remote.Landing.NONE:
            receipts.note_of(project)
            address = remotes.check_address(remote.url)
            names = {"username": remote.username, "secret": read_secret(remote.credential)}
            remotes.push_receipts(project.mirror, address, **names)
            if late := _without_receipt(project):
                error = ngettext(
                    "The receipt of %(count)d commit hangs nowhere yet: verify-receipts says more",
                    "The receipts of %(count)d commits hang nowhere yet: verify-receipts says more",
                    late,
                ) % {"count": late}
    except remotes.RemoteRefused as refusal:
        error = _(
            "%(refusal)s, so new receipts do not get there. Nothing is forced: give that ref of the remote another "
            "name, and have the remote fetched here"
        ) % {"refusal": refusal}
    except FAILURES as problem:
        error = _("The remote does not take the receipts: %(why)s") % {"why": problem}
    remote.note_receipts(error[:2000], by=by)


def _without_receipt(project: Project) -> int:
    """How many of what landed last, and goes to the remote, have no receipt on their commit."""
    newest = Push.objects.filter(queue__project=project).order_by("-pk").values_list("patch", flat=True)
    lacks = Q(receipt=None) | Q(receipt__note="")
    return Patch.objects.filter(lacks, pk__in=list(newest[:RECEIPTS_LOOKED_AT])).count()


def _arrived(queue: MergeQueue, remote: Remote, waiting: list[Push], commit: str, by: events.Actor) -> int:
    arrived = [push for push in waiting if git.is_ancestor(queue.project.mirror, push.commit_sha, commit)]
    title, text = request_for(queue) if remote.landing == Remote.Landing.BRANCH else ("", "")
    for push in arrived:
        push.arrive(by=by, title=title, text=text if push is arrived[-1] else "")
    return len(arrived)


def _refused(queue: MergeQueue, remote: Remote, waiting: list[Push], commit: str, reason: str, by: events.Actor) -> int:
    """The remote's branch holds something else: look what, and ask unless it can go on without us."""
    found = _fetch(remote, by)
    mirror, target = queue.project.mirror, remote.pushes_to(queue.target_branch)
    if error := found.error or found.skipped.get(queue.target_branch) or found.skipped.get(target):
        waiting[0].retry(error, by=by)
    elif not {queue.target_branch, target} & set(found.diverged):
        theirs = git.note_head(mirror, f"{remotes.INCOMING}{target}")
        if theirs is not None and git.is_ancestor(mirror, commit, theirs):
            return _push(queue, remote, waiting, by, theirs)  # it is there, with more on top: now the receipts
        waiting[0].retry(reason, by=by)  # its new commits are ours now, and the next head holds both
    return 1


# -- landing on the remote first ---------------------------------------------------------------------------------------


def asked_first(queue: MergeQueue) -> Remote | None:
    """The remote that gets a commit before our branch moves: one that takes them on the branch itself. None also while
    it is known to be down: then what lands stays here until it is back.
    """
    remote = Remote.objects.live().filter(project=queue.project_id, landing=Remote.Landing.PUSH).first()
    if remote is None or Push.objects.waiting().filter(queue=queue, attempts__gt=0).exists():
        return None
    remote.project = queue.project
    return remote


def offer(queue: MergeQueue, remote: Remote, commit: str) -> bool:
    """Give the remote's branch the commit that is about to land, forward only. False when that branch holds what the
    commit does not; the caller looks what (`holds`).

    True also for a remote that cannot be asked: the work goes on here. The caller has the repository to itself.
    """
    try:
        address = remotes.check_address(remote.url)
        secret = read_secret(remote.credential)
        names = {"username": remote.username, "secret": secret}
        remotes.push(queue.project.mirror, address, commit, queue.target_branch, **names)
    except remotes.RemoteRefused:
        return False
    except FAILURES as problem:
        log.warning("remote of %s was not asked first: %s", queue.project.key, problem)
    return True


def holds(queue: MergeQueue, commit: str, *, by: events.Actor) -> bool | None:
    """Whether the branch of the remote that is offered commits has this one; None when it cannot be asked now, whatever
    is wrong with other branches.

    It is fetched for that, and ours is brought forward where that loses nothing. Without such a remote: False.
    """
    remote = Remote.objects.live().filter(project=queue.project_id, landing=Remote.Landing.PUSH).first()
    if remote is None:
        return False
    remote.project = queue.project
    with alone(queue.project) as mine:
        found = _fetch(remote, by) if mine else None
        if found is None or found.error or queue.target_branch in found.skipped:
            return None
    mirror = queue.project.mirror
    theirs = git.note_head(mirror, f"{remotes.INCOMING}{queue.target_branch}")
    return theirs is not None and git.knows(mirror, commit) and git.is_ancestor(mirror, commit, theirs)


# -- a remote that has gone another way ----------------------------------------------------------------------------


def _ask_about_ways(queue: MergeQueue, remote: Remote, by: events.Actor) -> None:
    """The remote's branch and ours hold different commits: no machine may choose between two histories."""
    reason = _("Branch %(branch)s of the remote holds commits that ours does not, and ours holds landed ones") % {
        "branch": remote.pushes_to(queue.target_branch)
    }
    what_helps = _(
        "Merge our commit into the remote's branch, or take the other commits off it, and push that. "
        "Nothing here is forced; work goes on by itself at the next fetch."
    )
    _ask(queue, reason, what_helps, {"ours": queue.head_commit}, by)


def _ask_about_taken(queue: MergeQueue, taken: str, theirs: str, by: events.Actor) -> None:
    """Somebody has set the remote's branch back: giving it the commit again would undo what a person did."""
    reason = _(
        "Branch %(branch)s of the remote was set back to %(theirs)s: %(taken)s, which landed, was taken off it"
    ) % {
        "branch": queue.target_branch,
        "theirs": theirs[:12],
        "taken": taken[:12],
    }
    what_helps = _(
        "What has landed is undone by a commit, not by taking it away: push %(taken)s to the remote's branch again, "
        "and then roll its patch back here, or push a commit on top that undoes it. "
        "Work goes on by itself at the next fetch."
    ) % {"taken": taken}
    _ask(queue, reason, what_helps, {"ours": queue.head_commit, "theirs": theirs, "taken": taken}, by)


def _ask(queue: MergeQueue, reason: str, what_helps: str, told: dict[str, str], by: events.Actor) -> None:
    """Hold the project with a question, and every push of the queue."""
    Hold.objects.place(
        "project",
        queue.project_id,
        reason=reason,
        by=by,
        kind="question",
        ref=queue.remote_ref,
        project=queue.project,
        question={"text": reason, "branch": queue.target_branch, **told, "what_helps": what_helps},
    )
    for push in Push.objects.waiting().filter(queue=queue):
        push.hold(reason, by=by)


def _go_on(queue: MergeQueue, by: events.Actor) -> None:
    """One branch contains the other again: take the question back, and push what was held."""
    if not queue.has_diverged:
        return
    mine = Hold.objects.active().filter(scope_kind="project", scope_id=stored(queue.project_id), ref=queue.remote_ref)
    for hold in mine:
        hold.release(by=by, reason="the remote and ours agree again", cause="answered")
    for push in Push.objects.filter(queue=queue, state=Push.State.HELD).order_by("pk"):
        push.resume(by=by)
    events.nudge_later("ledger.tasks.advance", queue.pk)


def request_for(queue: MergeQueue) -> tuple[str, str]:
    """Title and Markdown text of the pull request for what landed here and is not in the remote's branch yet.

    Everything that an agent wrote stands in one block of code, where no mention or closing word works.
    """
    mirror = queue.project.mirror
    base = git.note_head(mirror, f"{remotes.INCOMING}{queue.target_branch}")
    landed = git.landed(mirror, queue.target_branch, since=base)
    patches = {patch.pk: patch for patch in Patch.objects.filter(pk__in=list(landed)[:LISTED_PATCHES])}
    lines = []
    for pk, commit in reversed(landed.items()):
        if pk in patches:
            summary = " ".join(patches[pk].summary.split()).replace("`", "'")[:100]
            lines.append(f"{commit[:12]}  {pk}  {summary}")
    title = _("%(count)d tested changes for %(branch)s") % {"count": len(landed), "branch": queue.target_branch}
    told = _("Each commit passed its gates on exactly this tree, and has a receipt in refs/notes/signalbox.")
    merge = _("Merge without squashing: the ledger knows these commits by their names.")
    return title, f"{told}\n{merge}\n\n```\n" + "\n".join(lines) + "\n```\n"
