"""The vocabulary: what each kind must tell, what it is called outside, and the document that lists it."""

from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command

from pipeline import events
from pipeline.bus import MemoryBus
from pipeline.ids import new_id
from pipeline.kinds import KINDS, RUN_EVENTS
from pipeline.models import Event
from pipeline.refusals import Refused
from pipeline.run_events import document
from tests import factories
from tests.factories import BY

DOCS = Path(__file__).parents[2] / "docs"


def test_the_document_of_events_lists_every_kind_as_the_code_has_it() -> None:
    said = StringIO()
    call_command("flow", kinds=True, stdout=said)
    text = (DOCS / "events.md").read_text()
    assert text.endswith(f"\n\n{said.getvalue()}")
    assert said.getvalue().count("\n") == len(KINDS) + 2


def test_the_wiring_lists_every_kind_too() -> None:
    said = StringIO()
    call_command("flow", stdout=said)
    listed = said.getvalue().split("\nKinds of events\n")[1].split("\n\n")[0]
    assert {line.split()[0] for line in listed.splitlines()[2:]} == set(KINDS)


def test_there_are_fifteen_kinds_outside_and_each_of_ours_is_one_of_them() -> None:
    assert len(RUN_EVENTS) == len(set(RUN_EVENTS)) == 15
    assert {kind.run_event for kind in KINDS.values()} == set(RUN_EVENTS)


@pytest.mark.parametrize(
    ("kind", "outside", "event_type"),
    [
        ("run.created", "run_created", "run_created"),
        ("run.succeeded", "run_state_changed", "run_completed"),
        ("run.failed", "run_state_changed", "run_completed"),
        ("run.quarantined", "run_state_changed", "run_quarantined"),
        ("run.canceled", "run_state_changed", "run_canceled"),
        ("step.started", "tool_call_started", "step_started"),
        ("step.canceled", "tool_call_completed", "step_completed"),
        ("step.failed", "tool_call_error", "step_completed"),
        ("patch.applied", "patch_apply_succeeded", "patch_applied"),
        ("phase.completed", "phase_transition", "phase_completed"),
        ("gate_run.passed", "note", "gate_run_passed"),
    ],
)
def test_what_a_kind_is_called_outside(kind: str, outside: str, event_type: str) -> None:
    assert KINDS[kind].as_run_event({}) == (outside, event_type)


@pytest.mark.parametrize(
    ("stage", "outside"),
    [("validation", "patch_validated"), ("apply", "patch_apply_failed"), ("evicted", "patch_apply_failed")],
)
def test_a_patch_that_fails_its_validation_was_validated(stage: str, outside: str) -> None:
    assert KINDS["patch.apply_failed"].as_run_event({"stage": stage}) == (outside, outside)


@pytest.mark.django_db
@pytest.mark.parametrize("kind", sorted(kind for kind, word in KINDS.items() if word.needs))
def test_what_a_kind_must_tell_is_told_or_nothing_is_recorded(kind: str) -> None:
    project, needs = factories.make_project(), sorted(KINDS[kind].needs)
    before = Event.objects.count()
    for lacking in needs:
        data = dict.fromkeys(set(needs) - {lacking}, "x")
        with pytest.raises(TypeError, match=lacking):
            events.record(kind, project, by=BY, data=data)
        with pytest.raises(TypeError, match=lacking):
            MemoryBus().emit(kind, data)
    assert Event.objects.count() == before
    events.record(kind, project, by=BY, data=dict.fromkeys(needs, "x"))


def told(kind: str, **facts: Any) -> Event:
    """An event that was not recorded."""
    at = datetime(2026, 1, 31, 8, 15, 30, 123456, tzinfo=UTC)
    return Event(kind=kind, created_at=at, **{"run_id": new_id(), "data": {}, **facts})


def test_an_event_of_a_run_is_exported_with_its_data_its_name_and_its_state() -> None:
    event = told("run.failed", after={"state": "failed"}, data={"exit_code": 2, "event_type": "theirs"})
    assert document(event) == {
        "event_id": event.pk,
        "run_id": event.run_id,
        "ts": "2026-01-31T08:15:30.123456Z",
        "kind": "run_state_changed",
        "payload": {"exit_code": 2, "event_type": "run_completed", "status": "failed"},
    }
    step = new_id()
    exported = document(told("step.started", step_id=step))
    assert (exported["step_attempt_id"], exported["payload"]) == (step, {"event_type": "step_started"})


def test_an_event_of_no_run_is_no_run_event() -> None:
    with pytest.raises(Refused) as refused:
        document(told("project.added", run_id=None))
    assert refused.value.code == "no_run"
