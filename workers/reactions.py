"""What workers answer and react to: a live lease can be asked to stop, a patch is progress, the sweep is a chore."""

from pipeline import events
from pipeline.events import Event, on
from pipeline.models import Task
from pipeline.questions import answers
from workers import blockers as blockers
from workers import sweeping
from workers.models import Lease


@answers("task.stop")
def ask_lease_to_stop(*, task: Task, by: events.Actor, reason: str) -> bool:
    """Ask the task's live lease, if there is one, to stop; its end then cancels the task."""
    lease = Lease.objects.live().filter(task=task).first()
    if lease is None:
        return False
    lease.request_stop(by=by, reason=reason, outcome="cancelled")
    return True


@on("patch.created", "patch.resubmitted")
def see_progress(event: Event) -> None:
    """Whoever submits a patch moves. What else the log knows of an attempt the sweep looks up before it calls a worker
    stalled: a cost record is too frequent for a reaction of its own.
    """
    if event.step_id is not None:
        Lease.objects.filter(attempt=event.step_id).moved()


events.chore(sweeping.sweep)
