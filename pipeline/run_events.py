"""Pure: events of a run as `run_event.v1` documents (domain.md §5.2)."""

from typing import Any

from pipeline import events
from pipeline.kinds import KINDS
from pipeline.refusals import Refused


def document(event: events.Event) -> dict[str, Any]:
    """The event as a `run_event.v1` document: `kind` is one of fifteen, `payload` its data with `event_type` (the
    specific name) and, where it tells a state, `status`. Absent values are left out.

    Raises Refused `no_run` (422) for an event of no run.
    """
    if event.run_id is None:
        raise Refused(f"Event {event.pk} belongs to no run, so it is no run_event", code="no_run", status=422)
    kind, event_type = KINDS[event.kind].as_run_event(event.data)
    payload = {**event.data, "event_type": event_type}
    if state := (event.after or {}).get("state"):
        payload["status"] = state
    told = {
        "event_id": event.pk,
        "run_id": event.run_id,
        "ts": events.plain(event.created_at),
        "kind": kind,
        "payload": payload,
    }
    return told if event.step_id is None else {**told, "step_attempt_id": event.step_id}
