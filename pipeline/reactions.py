"""The run goes on when something in it happened; which app it happened in does not matter here."""

from pipeline import events, notifications, orchestrate, webhooks
from pipeline.events import Event, on


@on(
    "task.validating", "task.retrying", "task.completed", "task.failed", "task.cancelled", "lease.ended",
    "patch.committed", "patch.apply_failed", "patch.dropped", "patch.rolled_back", "patch.quarantined",
    "gate_run.waived", "hold.released", once_per="run_id",
)  # fmt: skip
def advance_run(event: Event) -> None:
    """Whatever ended, landed or failed: look at its run again."""
    if event.run_id is not None:
        orchestrate.advance(event.run_id)


events.chore(orchestrate.sweep)
events.chore(orchestrate.end_due_holds)
events.chore(notifications.send_due, send=notifications.nudge_if_due)
events.chore(webhooks.deliver_due, send=webhooks.wake)
