"""The sweep: what is gone is crashed once, what is over its time is asked to stop, what is well is left alone."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection, transaction

from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.refusals import Refused
from tests.conftest import Threads
from tests.factories import BY, make_lease, make_task, make_tool, make_worker
from tests.flows.house import House, long_ago, piece
from workers import heartbeats, sweeping
from workers.models import Lease, Worker, health

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


# -- five beats, nothing stale, and what a restored copy may hold -----------------------------------------------------


def test_a_step_that_finds_nothing_writes_nothing(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    house.claim()
    sweeping.sweep()
    before = Event.objects.count()
    assert sweeping.sweep() == 0
    assert Event.objects.count() == before


def test_when_nothing_is_due_one_statement_says_so(django_assert_num_queries: Any) -> None:
    make_worker()
    sweeping.sweep()
    with django_assert_num_queries(1):
        assert sweeping.what_is_due() == []


def test_the_look_at_health_uses_its_index(tmp_path: Path) -> None:
    make_worker()
    with transaction.atomic(), connection.cursor() as cursor:
        due, given = sweeping._due(health.limits())
        statement = sweeping._LOOK.format(due=due, at_once=sweeping.LOOKED_AT_AT_ONCE)
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        cursor.execute(f"EXPLAIN {statement}", [db_now(), *given])
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "using worker_to_look_at" in plan
    assert "Index Cond: (look_at <= " in plan


def test_more_who_are_unwell_than_a_batch_holds_are_all_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeping, "LOOKED_AT_AT_ONCE", 2)
    sweeping._due.cache_clear()
    workers = [silent(make_worker(), 100) for _n in range(5)]
    assert sweeping.look_at_health() == 5
    assert sweeping.look_at_health() == 0
    sweeping._due.cache_clear()
    assert {Worker.objects.get(pk=worker.pk).told_health for worker in workers} == {"unresponsive"}


def test_the_looks_use_their_partial_indexes() -> None:
    make_worker()
    looks = {
        "lease_live": Lease.objects.expired().order_by("expires_at"),
        "lease_stopping": Lease.objects.unstopped().order_by("stop_deadline_at"),
        "lease_timing": Lease.objects.overdue().order_by("timeout_at"),
        "worker_leaving": Worker.objects.leaving().order_by("shutdown_deadline_at"),
        "worker_to_look_at": Worker.objects.alive().filter(look_at__lte=health.NowOnce()).order_by("look_at"),
    }
    with transaction.atomic(), connection.cursor() as cursor:
        # The tables of a test are too small for an index to be worth it.
        cursor.execute("SET LOCAL enable_seqscan = off")
        cursor.execute("SET LOCAL enable_bitmapscan = off")
        for name, rows in looks.items():
            plan = rows.explain()
            assert f" {name} " in plan, name
            assert "Index Cond" in plan, plan  # and not only for the order


def test_sweepers_do_not_wait_for_each_other(tmp_path: Path, threads: Threads) -> None:
    house = House(tmp_path, [piece("a")])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    long_ago(lease, "expires_at")
    with transaction.atomic():
        assert sweeping.end_dead_leases() == 1
        assert threads.start(sweeping.end_dead_leases).result() == 0


def test_a_claim_just_now_keeps_an_idle_worker_from_being_given_up() -> None:
    worker = silent(make_worker(), 310)
    lease = make_lease(worker)
    assert sweeping.look_at_health() == 1  # told unresponsive, and no more
    worker.refresh_from_db()
    assert (worker.state, Lease.objects.get(pk=lease.pk).is_live) == ("busy", True)


def test_whoever_crashes_a_worker_that_claims_meanwhile_is_told_to_ask_again(threads: Threads) -> None:
    worker = make_worker()
    other = make_task(started=True)
    tool = make_tool()
    with transaction.atomic():
        lease = make_lease(worker, other, tool=tool)
        crash = threads.start(lambda: Worker.objects.get(pk=worker.pk).crash("gone", by=BY))
        assert not crash.ended.wait(0.3)
    with pytest.raises(Refused, match="just now"):
        crash.result()
    worker.refresh_from_db()
    assert (worker.state, Lease.objects.get(pk=lease.pk).is_live) == ("busy", True)


def test_work_without_an_owner_is_lost_and_tried_again(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    Lease.objects.filter(pk=lease.pk).update(ended_at=db_now(), end_cause="failed")  # as a restored copy may have it
    assert sweeping.close_orphans() == 3
    assert sweeping.close_orphans() == 0
    lease.attempt.refresh_from_db()
    house.worker.refresh_from_db()
    assert (lease.attempt.outcome, house.worker.state) == ("infra_lost", "crashed")
    house.drain()
    assert house.states() == {"a": "queued"}
    house.must_hold()


def test_orphans_are_looked_for_once_a_minute_however_many_sweep(threads: Threads, monkeypatch: Any) -> None:
    calls: list[int] = []
    monkeypatch.setattr(sweeping, "close_orphans", lambda: calls.append(1) or 0)
    monkeypatch.setattr(sweeping, "ORPHANS_EVERY", timedelta(days=1))
    for outcome in threads.at_once(*[sweeping.sweep] * 5):
        outcome.result()
    assert len(calls) == 1


def test_a_worker_stopped_in_time_is_never_crashed_afterwards(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    house.worker.stop(by=BY, reason="enough")
    Worker.objects.filter(pk=house.worker.pk).update(shutdown_deadline_at=db_now() - timedelta(seconds=1))
    long_ago(lease, "expires_at")
    assert sweeping.sweep() == 1
    assert sweeping.sweep() == 0
    house.worker.refresh_from_db()
    assert (house.worker.state, house.worker.stop_confirmed, house.worker.tasks_failed) == ("stopped", False, 0)
    house.drain()
    assert house.states() == {"a": "queued"}
    house.must_hold()
