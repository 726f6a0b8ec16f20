"""Health: one definition for the row, the list, the filter and the sweep; each change of it is told once."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from pipeline import events
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.models import StepAttempt
from tests.conftest import Threads
from tests.factories import BY, in_state, make_cost, make_lease, make_patch, make_worker
from workers import heartbeats, sweeping
from workers.models import Lease, Worker, health

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

CLOCKS = ("transport_seen_at", "process_seen_at", "progress_at")


def aged(worker: Worker, *, activity: str = "unknown", now: datetime | None = None, **seconds: float | None) -> Worker:
    """The worker with its clocks so many seconds ago (None: never), due to be looked at."""
    now = now or db_now()
    values: dict[str, Any] = {
        f"{name}_at": None if age is None else now - timedelta(seconds=age) for name, age in seconds.items()
    }
    Worker.objects.filter(pk=worker.pk).update(look_at=now - timedelta(hours=1), activity=activity, **values)
    worker.refresh_from_db()
    return worker


def busy(**fields: Any) -> Worker:
    """A worker that holds a lease."""
    return make_lease(make_worker(**fields), lease_seconds=100_000, timeout_seconds=100_000).worker


# state, seconds since it was heard / its process was seen / it moved, activity, config, health
CASES: list[tuple[str, float, float | None, float | None, str, dict[str, int], str]] = [
    ("idle", 1, None, None, "unknown", {}, "healthy"),
    ("idle", 30, None, None, "unknown", {}, "healthy"),
    ("idle", 30.1, None, None, "unknown", {}, "late"),
    ("idle", 60, None, None, "unknown", {}, "late"),
    ("idle", 60.1, None, None, "unknown", {}, "unresponsive"),
    ("idle", 1, 9_999, 9_999, "unknown", {}, "healthy"),
    ("idle", 11, None, None, "unknown", {"heartbeat_interval": 5}, "late"),
    ("idle", 100, None, None, "unknown", {"timeout_seconds": 300}, "late"),
    ("idle", 100, None, None, "unknown", {"timeout_seconds": 300, "heartbeat_interval": 60}, "healthy"),
    ("paused", 1, 9_999, 9_999, "unknown", {}, "healthy"),
    ("paused", 61, 1, 1, "unknown", {}, "unresponsive"),
    ("busy", 1, 1, 600, "unknown", {}, "healthy"),
    ("busy", 1, 1, 600.1, "unknown", {}, "stalled"),
    ("busy", 1, 1, 600.1, "waiting_model", {}, "stalled"),
    ("busy", 1, 1, 3_600, "in_tool", {}, "healthy"),
    ("busy", 1, 1, 3_600.1, "in_tool", {}, "stalled"),
    ("busy", 1, 1, 99_999, "quota_wait", {}, "healthy"),
    ("busy", 1, 1, 99_999, "waiting_human", {}, "healthy"),
    ("busy", 1, 61, 99_999, "quota_wait", {}, "stalled"),
    ("busy", 1, 61, 100, "unknown", {}, "stalled"),
    ("busy", 1, 61, 100, "in_tool", {}, "stalled"),
    ("busy", 1, 9_999, 10, "unknown", {}, "healthy"),
    ("busy", 1, None, 100, "unknown", {}, "healthy"),
    ("busy", 1, 1, None, "unknown", {}, "healthy"),
    ("busy", 1, 1, 11, "unknown", {"stall_after": 10}, "stalled"),
    ("busy", 1, 1, 3_601, "in_tool", {"stall_after": 7_200}, "healthy"),
    ("busy", 31, 31, 700, "unknown", {}, "stalled"),
    ("busy", 61, 61, 700, "unknown", {}, "unresponsive"),
    ("busy", 31, 31, 31, "unknown", {}, "late"),
    ("stopped", 9_999, 9_999, 9_999, "unknown", {}, ""),
    ("crashed", 9_999, 9_999, 9_999, "unknown", {}, ""),
]


@pytest.mark.parametrize(("state", "heard", "process", "progress", "activity", "config", "word"), CASES)
def test_the_row_and_the_query_say_the_same(
    state: str,
    heard: float,
    process: float | None,
    progress: float | None,
    activity: str,
    config: dict[str, int],
    word: str,
) -> None:
    now = db_now()
    worker = in_state(make_worker(config=config), state)
    aged(worker, now=now, activity=activity, transport_seen=heard, process_seen=process, progress=progress)
    asked = Worker.objects.with_health(now).get(pk=worker.pk)
    assert (worker.health(now), asked.health_now) == (word, word)


@pytest.mark.parametrize(
    ("state", "heard", "process", "progress", "activity", "config"),
    [case[:6] for case in CASES if case[6] == "healthy"],
)
def test_a_healthy_worker_is_looked_at_before_it_can_be_anything_else(
    state: str, heard: float, process: float | None, progress: float | None, activity: str, config: dict[str, int]
) -> None:
    worker = in_state(make_worker(config=config), state)
    aged(worker, activity=activity, transport_seen=heard, process_seen=process, progress=progress)
    looked = db_now()
    following = Worker.objects.annotate(following=health.next_look()).get(pk=worker.pk).following
    assert following <= looked + timedelta(seconds=worker.stall_after + 1)
    # The worst that can come next: it claims at once and is never heard of again.
    for way in (state, "busy"):
        worker.state = way
        worker.activity = "unknown"
        worker.progress_at = worker.progress_at if way == state == "busy" else looked
        before = following - timedelta(seconds=0.01)
        if before > looked:
            assert worker.health(before) == "healthy"


def test_the_words_for_asking_are_these_healths() -> None:
    fine, late, gone = make_worker(), aged(make_worker(), transport_seen=40), aged(make_worker(), transport_seen=90)
    still, waits = aged(busy(), progress=700), aged(busy(), progress=700, activity="waiting_human")
    make_worker().shutdown(by=BY)
    assert set(Worker.objects.late()) == {late}
    assert set(Worker.objects.stalled()) == {still}
    assert set(Worker.objects.stale()) == {gone}
    assert set(Worker.objects.of_health("unresponsive")) == {gone}
    assert set(Worker.objects.of_health("healthy")) == {fine, waits}
    assert set(Worker.objects.needs_person()) == {gone, still, waits}


# -- told ----------------------------------------------------------------------------------------------------------


def changes(worker: Worker) -> list[tuple[str, str, str]]:
    """(before, after, severity) of every change of health that was told."""
    rows = Event.objects.about(worker).filter(kind="worker.health_changed")
    return [(row.before["told_health"], row.after["told_health"], row.severity) for row in rows]


def test_each_change_is_told_once_and_the_way_back_too() -> None:
    worker = aged(busy(), progress=700)
    assert [sweeping.sweep(), sweeping.sweep()] == [1, 0]
    assert changes(worker) == [("healthy", "stalled", "warning")]
    heartbeats.heartbeat(worker.pk, api_key_id=None, leases=[quote(worker)])
    assert [sweeping.sweep(), sweeping.sweep()] == [1, 0]
    aged(worker, transport_seen=40, progress=1)
    sweeping.sweep()
    aged(worker, transport_seen=70, progress=1)
    sweeping.sweep()
    assert changes(worker) == [
        ("healthy", "stalled", "warning"),
        ("stalled", "healthy", "info"),
        ("healthy", "late", "warning"),
        ("late", "unresponsive", "warning"),
    ]
    worker.refresh_from_db()
    event = Event.objects.about(worker).last()
    assert event is not None
    assert event.data["health"] == worker.told_health == "unresponsive"
    assert event.data["silence_seconds"] in (70, 71)
    assert worker.health_since <= event.created_at


def quote(worker: Worker) -> dict[str, Any]:
    """What a heartbeat with progress says of the worker's lease."""
    lease = Lease.objects.live().get(worker=worker)
    return {"id": lease.pk, "generation": lease.generation, "progress": {"text": "writing"}}


def test_eight_sweepers_tell_a_change_once(threads: Threads) -> None:
    workers = [aged(busy(), progress=700) for _n in range(3)]
    for outcome in threads.at_once(*[sweeping.look_at_health] * 8):
        outcome.result()
    assert [changes(worker) for worker in workers] == [[("healthy", "stalled", "warning")]] * 3


def test_a_look_raises_no_version_and_waits_for_the_next_that_matters() -> None:
    worker = aged(make_worker(), transport_seen=0)
    before = worker.version
    assert sweeping.look_at_health() == 0
    worker.refresh_from_db()
    assert worker.version == before
    assert timedelta(seconds=20) < worker.look_at - db_now() < timedelta(seconds=31)


def test_a_silent_tool_under_a_beating_wrapper_is_stalled_and_a_long_compile_is_not() -> None:
    frozen, compiles = busy(), busy()
    for worker, activity in ((frozen, "waiting_model"), (compiles, "in_tool")):
        lease = {"id": Lease.objects.get(worker=worker).pk, "generation": 1}
        heartbeats.heartbeat(worker.pk, api_key_id=None, activity=activity, leases=[lease])
        aged(worker, activity=activity, progress=1_200)
    sweeping.sweep()
    assert (len(changes(frozen)), changes(compiles)) == (1, [])


def test_a_beating_wrapper_around_a_dead_process_is_stalled() -> None:
    worker = aged(busy(), process_seen=90, progress=80)
    heartbeats.heartbeat(worker.pk, api_key_id=None, process_alive=False)
    sweeping.sweep()
    assert changes(worker) == [("healthy", "stalled", "warning")]


def test_who_claims_after_a_long_rest_is_healthy() -> None:
    worker = aged(make_worker(), process_seen=5_000, progress=5_000)
    make_lease(worker)
    Worker.objects.filter(pk=worker.pk).update(progress_at=db_now())  # as a claim does
    assert sweeping.look_at_health() == 0


def test_a_pause_stops_the_stall_clock() -> None:
    worker = aged(busy(), progress=500)
    worker.pause(by=BY)
    aged(worker, progress=5_000)
    assert sweeping.look_at_health() == 0
    worker.resume(by=BY)
    assert sweeping.look_at_health() == 0
    worker.refresh_from_db()
    assert worker.state == "busy"


# -- progress ------------------------------------------------------------------------------------------------------


def test_a_patch_is_progress() -> None:
    worker = aged(busy(), progress=500)
    lease = Lease.objects.select_related("attempt").get(worker=worker)
    patch = make_patch(attempt=lease.attempt)
    events.react_to_due()
    worker.refresh_from_db()
    assert patch.attempt_id == lease.attempt_id
    assert db_now() - worker.progress_at < timedelta(seconds=60)


def test_a_cost_of_its_attempt_keeps_a_worker_from_being_called_stalled() -> None:
    spending, still = aged(busy(), progress=700), aged(busy(), progress=700)
    make_cost(attempt=Lease.objects.select_related("attempt__run", "attempt__task").get(worker=spending).attempt)
    sweeping.look_at_health()
    assert (changes(spending), len(changes(still))) == ([], 1)
    spending.refresh_from_db()
    assert db_now() - spending.progress_at < timedelta(seconds=60)


# -- what follows --------------------------------------------------------------------------------------------------


def test_who_stays_stalled_is_asked_to_stop_and_then_given_up() -> None:
    worker = aged(busy(config={"stall_after": 10}), progress=11)
    lease = Lease.objects.select_related("task").get(worker=worker)
    sweeping.sweep()
    Worker.objects.filter(pk=worker.pk).update(health_since=db_now() - timedelta(seconds=9))
    sweeping.sweep()
    lease.refresh_from_db()
    assert lease.stop_label == ""
    Worker.objects.filter(pk=worker.pk).update(health_since=db_now() - timedelta(seconds=11))
    sweeping.sweep()
    lease.refresh_from_db()
    assert (lease.stop_label, lease.stop_outcome) == ("stop requested", "task_failed")
    assert lease.stop_reason.startswith("stalled: no progress for 1")
    # Beating on, and not stopping: at the end of its grace it is given up, and its task tried again.
    heartbeats.heartbeat(worker.pk, api_key_id=None, leases=[{"id": lease.pk, "generation": 1}])
    sweeping.sweep()
    assert Lease.objects.get(pk=lease.pk).is_live
    Lease.objects.filter(pk=lease.pk).update(stop_deadline_at=db_now() - timedelta(seconds=1))
    sweeping.sweep()
    for row in (worker, lease, lease.task):
        row.refresh_from_db()
    assert (worker.state, worker.crash_message, worker.tasks_failed) == ("crashed", "did not stop", 1)
    assert (lease.stop_label, lease.end_cause) == ("stopped, unconfirmed", "expired")
    assert StepAttempt.objects.get(pk=lease.attempt_id).outcome == "task_failed"
    assert lease.task.state == "retrying"
