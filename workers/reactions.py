"""What workers answer: a task's live lease can be asked to stop; and the sweep is a chore of the house."""

from pipeline import events
from pipeline.models import Task
from pipeline.questions import answers
from workers import claims
from workers.models import Lease


@answers("task.stop")
def ask_lease_to_stop(*, task: Task, by: events.Actor, reason: str) -> bool:
    """Ask the task's live lease, if there is one, to stop; its end then cancels the task."""
    lease = Lease.objects.live().filter(task=task).first()
    if lease is None:
        return False
    lease.request_stop(by=by, reason=reason, outcome="cancelled")
    return True


events.chore(claims.sweep)
