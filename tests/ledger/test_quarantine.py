"""Quarantine and its ends: expiry, release, and what is set aside by itself when its attempts are used up."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.db import transaction

from ledger import queue, reactions
from ledger.models import Patch
from pipeline import events
from pipeline.clock import db_now
from pipeline.events import SYSTEM, Event
from pipeline.fold import fold
from pipeline.invariants import check_all
from tests import factories
from tests.factories import BY
from tests.ledger.landing import Shore

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


@pytest.fixture
def shore(tmp_path: Path) -> Shore:
    """A branch with one file."""
    return Shore(tmp_path, {"a.txt": "a\n"})


def set_aside(shore: Shore, *, expires_after: timedelta) -> Patch:
    """A patch that somebody set aside for so long."""
    patch = shore.submit({"a.txt": f"{factories.number()}\n"})
    patch.quarantine("looks odd", by=BY, owner="ada", expires_after=expires_after)
    return patch


def test_a_quarantine_that_runs_out_goes_back_to_its_owner_and_stays(shore: Shore) -> None:
    old = set_aside(shore, expires_after=timedelta(seconds=-1))
    fresh = set_aside(shore, expires_after=timedelta(days=1))

    assert reactions.expire_quarantines() == 1

    told = Event.objects.get(kind="patch.quarantine_expired")
    assert (told.subject_id, told.reason, told.data) == (old.pk, "looks odd", {"owner": "ada"})
    old.refresh_from_db()
    assert old.state == "quarantined"
    assert old.quarantine_expires_at > db_now() + timedelta(days=1)
    assert fold(old, db_now())["quarantine_expires_at"] == old.quarantine_expires_at
    assert reactions.expire_quarantines() == 0
    assert fresh.expire_quarantine(by=SYSTEM) is False


def test_a_released_patch_is_judged_from_the_start_and_may_be_tried_as_often_as_a_new_one(shore: Shore) -> None:
    patch = factories.in_state(shore.submit({"a.txt": "b\n"}), "quarantined", attempts=3, format_ok=True)
    patch.release(by=BY, reason="it is fine")
    patch.refresh_from_db()
    assert (patch.state, patch.attempts, patch.is_valid, patch.quarantine_reason) == ("created", 0, False, "")
    events.drain()
    patch.refresh_from_db()
    assert patch.state == "queued" or patch.state == "applied"


def failing(patch: Patch) -> Patch:
    """The patch after one more try that failed."""
    factories.in_state(patch, "queued")
    patch.fail("apply", "stale_base", "a.txt does not fit", by=SYSTEM)
    patch.refresh_from_db()
    return patch


def test_a_patch_whose_attempts_are_used_up_is_set_aside_by_itself(shore: Shore) -> None:
    patch = shore.submit({"a.txt": "b\n"})
    assert [failing(patch).state for _ in range(3)] == ["apply_failed", "apply_failed", "quarantined"]
    assert patch.quarantine_reason == "3 of 3 attempts to apply it are used up: a.txt does not fit"
    assert patch.quarantine_owner == "approvers"
    kinds = list(Event.objects.about(patch).order_by("stream_seq").values_list("kind", flat=True))
    assert kinds[-2:] == ["patch.apply_failed", "patch.quarantined"]


def test_a_patch_that_its_task_is_about_to_repair_is_not_set_aside(shore: Shore) -> None:
    workstream = factories.make_workstream(factories.make_phase(shore.project))
    task = factories.make_task(factories.make_run(workstream, started=True))
    patch = shore.submit({"a.txt": "b\n"}, task=task)
    factories.in_state(task, "validating")
    Patch.objects.filter(pk=patch.pk).update(attempts=2)
    assert failing(patch).state == "apply_failed"


def test_what_stands_on_another_waits_for_it_and_is_dropped_with_it(shore: Shore) -> None:
    first = shore.submit({"a.txt": "b\n"})
    second = shore.submit({"c.txt": "c\n"}, depends_on=[first])
    third = shore.submit({"d.txt": "d\n"}, depends_on=[second])
    queue_ = first.project.merge_queues.get()
    queue_.pause(by=BY)
    events.drain()
    states = dict(Patch.objects.values_list("pk", "state"))
    assert [states[patch.pk] for patch in (first, second, third)] == ["queued", "validated", "validated"]
    born = Event.objects.get(kind="patch.created", subject_id=second.pk)
    assert born.data == {"depends_on": [first.pk]}
    first.drop("no", by=BY)
    events.drain()
    assert set(Patch.objects.values_list("state", flat=True)) == {"dropped"}
    assert queue.advance(queue_.pk) == 0
    assert [(result.number, result.violations) for result in check_all() if not result.holds] == []


@pytest.mark.django_db(transaction=True)
def test_a_follow_up_that_fails_after_the_commit_is_told_and_keeps_nothing_else_from_following(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(task_id: str) -> int:
        raise ZeroDivisionError(task_id)

    monkeypatch.setattr(reactions, "place_patches", broken)
    followed = []
    with transaction.atomic():
        reactions.follow_the_task(Event(kind="task.failed", task_id="01JD9Z6X8Q4W2M5T7R3B1C0VNK"))
        transaction.on_commit(lambda: followed.append(True), robust=True)

    assert followed == [True]
    assert "ZeroDivisionError: 01JD9Z6X8Q4W2M5T7R3B1C0VNK" in caplog.text
