"""What follows from a review or an override, and what the ledger tells the next attempt of what reviewers said."""

from ledger import reviewing
from ledger.models import Patch
from pipeline import events
from pipeline.events import Event, on
from pipeline.models import Task
from pipeline.questions import answers


@on("review.given", "override.used")
def go_on(event: Event) -> None:
    """A valid patch whose last missing word was said goes to its queue, once the attempt that made it has ended."""
    patch = Patch.objects.select_related("attempt").get(pk=event.patch_id)
    is_delivered = patch.attempt is None or patch.attempt.outcome == "success"
    if patch.state == Patch.State.VALIDATED and is_delivered:
        patch.queue(by=events.SYSTEM)


@answers("task.feedback")
def what_reviewers_said(*, task: Task) -> list[str]:
    """The comments on the task's patches that did not land."""
    return reviewing.feedback(task)


events.chore(reviewing.set_aside_lapsed)
