"""The sweep: what is gone is crashed once, what is over its time is asked to stop, what is well is left alone."""

from datetime import timedelta
from pathlib import Path

import pytest

from pipeline.clock import db_now
from pipeline.events import Event
from tests.conftest import Threads
from tests.factories import BY, make_worker
from tests.flows.house import House, long_ago, piece
from workers import heartbeats, sweeping
from workers.models import Lease, Worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


def silent(worker: Worker, seconds: int) -> Worker:
    """A worker that last beat so long ago."""
    Worker.objects.filter(pk=worker.pk).update(transport_seen_at=db_now() - timedelta(seconds=seconds))
    return worker


def test_eight_sweepers_crash_a_dead_worker_once(tmp_path: Path, threads: Threads) -> None:
    house = House(tmp_path, [piece("a")])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    long_ago(lease, "expires_at")
    for outcome in threads.at_once(*[sweeping.sweep] * 8):
        outcome.result()
    for kind in ("worker.crashed", "lease.ended", "step.failed", "task.retrying"):
        assert Event.objects.filter(kind=kind).count() == 1, kind
    lease.refresh_from_db()
    assert (lease.end_cause, lease.stop_confirmed) == ("expired", False)
    house.worker.refresh_from_db()
    assert (house.worker.state, house.worker.crash_message, house.worker.tasks_failed) == (
        "crashed",
        "heartbeat lost",
        1,
    )
    house.must_hold()


def test_a_report_and_the_sweep_at_once_end_the_lease_once(tmp_path: Path, threads: Threads) -> None:
    house = House(tmp_path, [piece("a")])
    document = house.claim()
    patch = house.submit(document, {"a.txt": "a\n"})
    long_ago(Lease.objects.get(pk=document["lease"]["id"]), "expires_at")
    threads.at_once(lambda: house.report(document, patch), sweeping.sweep, sweeping.sweep)
    assert Event.objects.filter(kind="lease.ended").count() == 1
    house.drain()
    assert house.states()["a"] in ("completed", "queued")
    house.must_hold()


def test_a_worker_that_beats_is_left_alone(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    house.claim()
    assert sweeping.sweep() == 0
    assert house.states() == {"a": "running"}


def test_a_lease_that_a_heartbeat_renewed_just_in_time_lives(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    long_ago(lease, "expires_at")
    heartbeats.heartbeat(house.worker.pk, api_key_id=None, leases=[{"id": lease.pk, "generation": 1}])
    assert sweeping.sweep() == 0
    assert Lease.objects.get(pk=lease.pk).is_live


def test_a_stop_is_asked_for_once(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a", execution={"timeout_seconds": 60})])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    long_ago(lease, "timeout_at")
    assert sweeping.sweep() == 1
    assert sweeping.sweep() == 0
    assert Event.objects.filter(kind="lease.stop_requested", subject_id=lease.pk).count() == 1


@pytest.mark.parametrize(("seconds", "state"), [(290, "idle"), (310, "crashed")])
def test_an_idle_worker_is_crashed_after_five_minutes_of_silence(seconds: int, state: str) -> None:
    worker = silent(make_worker(), seconds)
    sweeping.sweep()
    worker.refresh_from_db()
    assert worker.state == state


def test_a_silent_worker_that_was_asked_to_end_has_ended() -> None:
    worker = make_worker()
    worker.request_shutdown(by=BY)
    silent(worker, 310)
    sweeping.sweep()
    worker.refresh_from_db()
    assert (worker.state, worker.stop_confirmed) == ("stopped", False)


def test_a_paused_worker_keeps_its_task_and_is_crashed_when_its_lease_expires(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    house.worker.refresh_from_db()
    house.worker.pause(by=BY)
    assert sweeping.sweep() == 0
    long_ago(lease, "expires_at")
    assert sweeping.sweep() == 1
    house.drain()
    assert house.states() == {"a": "queued"}
    house.must_hold()
