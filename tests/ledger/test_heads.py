"""Heads that keep their queue waiting: a person is asked once, and the question goes with the head."""

from datetime import timedelta
from pathlib import Path

import pytest

from ledger import heads
from ledger.models import MergeQueue, Patch, QueueItem
from pipeline.events import SYSTEM
from pipeline.models import Hold
from tests.factories import BY
from tests.ledger.landing import Shore, lines
from tests.ledger.test_pages_ledger import FOUND

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


@pytest.fixture
def shore(tmp_path: Path) -> Shore:
    """A project with its mirror and queue."""
    return Shore(tmp_path, {"a.txt": lines(1, 2, 3)})


def queued(shore: Shore, name: str) -> Patch:
    """A patch that waits in the queue."""
    patch = shore.submit({name: "x\n"})
    patch.note_validation({**FOUND, "findings": []}, by=SYSTEM)
    patch.queue(by=BY)
    return patch


def wait(monkeypatch: pytest.MonkeyPatch, **time: int) -> None:
    """Let the sweep look at the clock that much later."""
    now = heads.db_now
    monkeypatch.setattr(heads, "db_now", lambda: now() + timedelta(**time))


def asked() -> list[Hold]:
    """The holds that stand."""
    return list(Hold.objects.active().order_by("pk"))


def test_a_head_that_is_too_old_becomes_one_question_and_the_queue_goes_on(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch, behind = queued(shore, "b.txt"), queued(shore, "c.txt")
    assert heads.watch_heads() == 0
    wait(monkeypatch, hours=1, seconds=5)

    assert heads.watch_heads() == 1
    assert heads.watch_heads() == 0

    (hold,) = asked()
    assert (hold.kind, hold.scope_kind, hold.scope_ref) == ("question", "project", shore.project.pk)
    assert patch.pk in hold.reason
    assert behind.pk not in hold.reason
    assert hold.suggested_action is not None
    assert hold.suggested_action["address"] == f"/api/v1/patches/{patch.pk}/quarantine/"
    assert MergeQueue.objects.get(project=shore.project).state == "running"
    assert [item.state for item in QueueItem.objects.live()] == ["waiting", "waiting"]


def test_the_question_goes_with_the_head_and_the_next_one_has_its_own_time(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = queued(shore, "b.txt")
    queued(shore, "c.txt")
    with monkeypatch.context() as later:
        wait(later, hours=2)
        heads.watch_heads()
    patch.drop("nobody wants it", by=BY)
    wait(monkeypatch, minutes=30)

    assert heads.watch_heads() == 1

    assert asked() == []
    assert Hold.objects.get().release_cause == "answered"
    assert heads.watch_heads() == 0


def test_what_a_person_released_is_asked_again_only_after_as_long_again(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued(shore, "b.txt")
    wait(monkeypatch, hours=2)
    heads.watch_heads()
    asked()[0].release(by=BY, reason="I know")
    with monkeypatch.context() as same:
        same.setattr(heads, "db_now", lambda: Hold.objects.get().released_at + timedelta(minutes=59))
        assert heads.watch_heads() == 0
    assert heads.watch_heads() == 1
    assert len(asked()) == 1


def test_a_paused_queue_has_a_person_already(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> None:
    queued(shore, "b.txt")
    queue = MergeQueue.objects.get(project=shore.project)
    queue.pause(by=BY)
    with monkeypatch.context() as later:
        wait(later, hours=3)
        assert heads.watch_heads() == 0
    queue.resume(by=BY)
    wait(monkeypatch, minutes=59)
    assert heads.watch_heads() == 0
