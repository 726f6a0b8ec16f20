"""The vocabulary of events: every kind with its channel and default severity (domain.md §5.1)."""

from typing import NamedTuple

SEVERITIES = ("debug", "info", "warning", "error", "critical")
CHANNELS = {
    "W": "worker_status",
    "T": "task_events",
    "R": "resource_events",
    "E": "error_events",
    "I": "integration_events",
}


class Kind(NamedTuple):
    """One word of the vocabulary."""

    name: str
    channel: str
    severity: str


# One line per channel and severity, in the order of domain.md §5.1.
_TABLE = """
T info      run.created run.started run.succeeded run.canceled
T error     run.failed run.quarantined
T warning   run.winding_down
T info      phase.entered phase.completed
E error     error_pipeline.triggered
T info      task.created task.queued task.blocked task.unblocked task.started task.validating task.completed
T debug     task.progress
T warning   task.retrying task.cancelled task.dependency_added
T error     task.failed
T info      step.created step.started step.succeeded
T warning   step.canceled
T error     step.failed
T warning   request.refused routing.fell_back
T info      routing.decided
T warning   hold.placed
T info      hold.released
W info      worker.started worker.assigned worker.released worker.paused worker.resumed worker.stopped
W warning   worker.shutdown_requested worker.health_changed
W debug     worker.heartbeat
W error     worker.crashed
W info      lease.granted lease.ended lease.stop_requested lease.stopping
W warning   lease.stale_report
R error     breaker.opened
R info      breaker.half_opened breaker.closed
R debug     reservation.granted reservation.settled reservation.released
R warning   reservation.refused
R debug     cost.recorded cost.reclassed
R warning   cost.voided cost.unpriced cost.anomaly cost.foreign_currency cost.reconciled
R warning   budget.warned budget.limit_changed
R error     budget.breached
I info      patch.created patch.validated patch.queued patch.apply_started patch.applied patch.verified patch.landing
I info      patch.committed patch.released
I warning   patch.resubmitted patch.requeued patch.dropped
I error     patch.apply_failed patch.revalidation_failed patch.refused patch.quarantined patch.quarantine_expired
I warning   patch.rolled_back
I info      review.given
I info      merge_queue.paused merge_queue.resumed merge_queue.draining
I info      queue_item.waiting queue_item.building queue_item.testing queue_item.passing queue_item.landed
I warning   queue_item.failing queue_item.restarted queue_item.withdrawn
I error     queue_item.evicted
I info      gate_run.created gate_run.started gate_run.passed
I warning   gate_run.skipped gate_run.waived
I error     gate_run.failed gate_run.error
I warning   flaky_test.marked flaky_test.released
I info      remote.fetched push.created push.pushed push.resumed receipt.written
I warning   remote.fetch_failed push.retrying
I error     push.held
I critical  receipt.broken
I warning   webhook.disabled delivery.dead seal.dropped notification_rule.disabled
I debug     seal.written
E critical  seal.broken
E warning   override.used
E warning   alert.raised
E info      alert.cleared
T info      note.added
"""

DEFINITIONS = [
    "project",
    "phase",
    "workstream",
    "tool",
    "routing_rule",
    "policy",
    "gate",
    "flaky_test",
    "budget",
    "price",
    "membership",
    "api_key",
    "webhook",
    "subscription",
    "notification_rule",
    "merge_queue",
    "remote",
    "user",
]


def _registry() -> dict[str, Kind]:
    kinds: dict[str, Kind] = {}
    for line in _TABLE.strip().splitlines():
        channel, severity, *names = line.split()
        for name in names:
            kinds[name] = Kind(name, CHANNELS[channel], severity)
    for noun in DEFINITIONS:
        for verb in ("added", "changed", "removed"):
            kinds[f"{noun}.{verb}"] = Kind(f"{noun}.{verb}", CHANNELS["T"], "info")
    return kinds


KINDS = _registry()
