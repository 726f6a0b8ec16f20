"""What follows a landing: its receipt, and its way to the remote."""

from ledger import git, receipts, remote
from ledger.models import Patch
from pipeline import events
from pipeline.events import Event, nudge_later, on
from pipeline.models import Project
from pipeline.questions import answers
from pipeline.refusals import InvalidField

MOST_BRANCHES = 20


@on("patch.committed")
def keep_receipt(event: Event) -> None:
    """Every landed patch has a receipt, which hangs on its commit as a note a moment later."""
    patch = Patch.objects.select_related("project", "task", "attempt__tool", "prompt", "author_user").get(
        pk=event.subject_id
    )
    if receipts.write(patch) is not None:
        nudge_later("ledger.landing_tasks.note_receipts")


@on("patch.committed")
def owe_push(event: Event) -> None:
    """What landed goes to the remote, where the project has one that takes it."""
    push = remote.owe(Patch.objects.get(pk=event.subject_id))
    if push is not None:
        nudge_later("ledger.landing_tasks.push", push.queue_id)


@on("push.resumed")
def push_again(event: Event) -> None:
    """What was held may go now."""
    nudge_later("ledger.landing_tasks.push_due")


@answers("project.branch")
def must_have_branch(*, project: Project, branch: str) -> None:
    """Patches land on a branch of the mirror. Raises InvalidField that names those that it has."""
    if project.custody != Project.Custody.MANAGED or not project.mirror.is_dir():
        return
    there = sorted(git.branches_below(project.mirror, "refs/heads/"))
    if branch not in there:
        more = f" and {len(there) - MOST_BRANCHES} more" if len(there) > MOST_BRANCHES else ""
        names = ", ".join(there[:MOST_BRANCHES]) or "none"
        raise InvalidField("default_branch", f"the repository has no such branch; it has: {names}{more}")


events.chore(receipts.note_rest, send=receipts.send_notes)
events.chore(remote.push_due, send=remote.send_pushes)
events.chore(remote.fetch_due, send=remote.send_fetches)
