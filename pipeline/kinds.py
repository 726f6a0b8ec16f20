"""The vocabulary of events: every kind with its channel, default severity, the data that it must have, and its name
among the fifteen kinds of `run_event.v1` (domain.md §5; docs/events.md is written from it).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

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
    # Keys of `data` without which an event of this kind says nothing.
    needs: frozenset[str] = frozenset()
    # What it is called outside: one of RUN_EVENTS, and the specific name.
    run_event: str = "note"
    event_type: str = ""

    def lacks(self, data: Mapping[str, Any] | None) -> list[str]:
        """The keys that this data should have and has not, in order."""
        return sorted(self.needs - (data or {}).keys()) if self.needs else []

    def as_run_event(self, data: Mapping[str, Any]) -> tuple[str, str]:
        """(kind, event_type) of `run_event.v1` for an event of this kind with this data."""
        if self.name == "patch.apply_failed" and data.get("stage") == "validation":
            return "patch_validated", "patch_validated"
        return self.run_event, self.event_type


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
R warning   cost.voided cost.unpriced cost.anomaly cost.foreign_currency cost.reconciled cost.repriced
R warning   budget.warned budget.limit_changed
R error     budget.breached
I info      patch.created patch.validated patch.queued patch.apply_started patch.applied patch.verified patch.landing
I info      patch.committed patch.released
I warning   patch.resubmitted patch.requeued patch.rejudged patch.dropped
I error     patch.apply_failed patch.revalidation_failed patch.refused patch.quarantined patch.quarantine_expired
I warning   patch.rolled_back
I info      review.given
I info      merge_queue.paused merge_queue.resumed merge_queue.draining
I info      queue_item.waiting queue_item.building queue_item.testing queue_item.passing queue_item.landed
I warning   queue_item.failing queue_item.restarted queue_item.withdrawn
I error     queue_item.evicted
I info      gate_run.created gate_run.started gate_run.passed
I warning   gate_run.skipped gate_run.waived gate_run.waiver_revoked
I error     gate_run.failed gate_run.error
I warning   flaky_test.marked flaky_test.released
I info      remote.fetched remote.receipts_taken push.created push.pushed push.resumed receipt.written
I warning   remote.fetch_failed remote.receipts_behind push.retrying
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

# Kind: keys that its data must have.
_NEEDS = {
    "run.winding_down": "to",
    "task.dependency_added": "needs",
    "worker.shutdown_requested": "mode",
    "lease.stop_requested": "outcome",
    "cost.voided": "amount currency",
    "cost.unpriced": "model amount",
    "patch.resubmitted": "attempt",
    "patch.apply_started": "onto",
    "delivery.dead": "event url status error",
    "webhook.disabled": "url",
    "receipt.written": "sha256 commit",
    "seal.written": "number count root_hash",
    "seal.dropped": "before months events seals streams to_cursor root_hash",
    "seal.broken": "finding",
    "alert.raised": "cause",
    "alert.cleared": "cause",
}

# The kinds of run_event.v1 but `note`, which is every other kind: ours, and the specific name where it is not the kind.
_RUN_EVENTS = """
run_created             run.created
run_started             run.started
run_state_changed       run.succeeded:run_completed run.failed:run_completed run.quarantined run.canceled
tool_call_started       step.started
tool_call_completed     step.succeeded:step_completed step.canceled:step_completed
tool_call_error         step.failed:step_completed
patch_created           patch.created
patch_validated         patch.validated
patch_apply_started     patch.apply_started
patch_apply_succeeded   patch.applied
patch_apply_failed      patch.apply_failed
patch_quarantined       patch.quarantined
error_pipeline_triggered  error_pipeline.triggered
phase_transition        phase.entered phase.completed
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
            kinds[name] = Kind(name, CHANNELS[channel], severity, event_type=name.replace(".", "_"))
    for noun in DEFINITIONS:
        for verb in ("added", "changed", "removed"):
            name = f"{noun}.{verb}"
            kinds[name] = Kind(name, CHANNELS["T"], "info", event_type=name.replace(".", "_"))
    for name, needs in _NEEDS.items():
        kinds[name] = kinds[name]._replace(needs=frozenset(needs.split()))
    for line in _RUN_EVENTS.strip().splitlines():
        outside, *ours = line.split()
        for told in ours:
            name, _colon, event_type = told.partition(":")
            kinds[name] = kinds[name]._replace(run_event=outside, event_type=event_type or kinds[name].event_type)
    return kinds


KINDS = _registry()
RUN_EVENTS = (*(line.split()[0] for line in _RUN_EVENTS.strip().splitlines()), "note")
