"""Stopping tells the truth: requested, acknowledged, stopped or unconfirmed; under a kill switch nothing is claimed."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.models import Hold, Task
from tests import factories
from tests.api.asking import Api
from tests.conftest import Threads
from tests.factories import BY, make_lease, make_worker
from tests.flows.house import House, long_ago, piece
from workers import claims, heartbeats, sweeping
from workers.models import Lease, Worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


class Watcher:
    """Somebody who looks at a worker everywhere: its page, the list, the API, the admin and the events."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.browser, self.api = Client(), Api(factories.make_key("admin").text)
        self.browser.force_login(factories.make_user(is_superuser=True, is_staff=True))

    def sees(self) -> tuple[str, str]:
        """What the API says about the worker's end and its lease's; and nobody says "stopped" before it is so."""
        worker = self.api.get(f"/workers/{self.worker.pk}/").json()
        leases = self.api.get(f"/leases/?worker={self.worker.pk}").json()["results"]
        lease_label = leases[0]["stop_label"] if leases else ""
        page = self.browser.get(reverse("workers:worker", args=[self.worker.pk])).text.split("<main")[1]
        listed = self.browser.get(reverse("workers:list")).text.partition("<tbody")[2]
        in_admin = self.browser.get(reverse("admin:workers_worker_changelist")).text
        assert self.worker.name in in_admin
        rows = in_admin.split('id="result_list"')[1].split("</table>")[0]
        if "stopped" not in f"{worker['stop_label']} {lease_label}":
            for text in (page, listed, rows):
                assert "stopped" not in text
            assert not Event.objects.filter(kind="worker.stopped", subject_id=self.worker.pk).exists()
        return worker["stop_label"], lease_label


def beat(lease: Lease, **quoted: Any) -> str:
    """The directive that the worker's heartbeat is answered with."""
    quoted = {"id": lease.pk, "generation": lease.generation, **quoted}
    return str(heartbeats.heartbeat(lease.worker_id, api_key_id=None, leases=[quoted])["directive"])


def past(row: Any, column: str) -> None:
    """Put a deadline of the row a second back."""
    type(row).objects.filter(pk=row.pk).update(**{column: db_now() - timedelta(seconds=1)})


def test_a_confirmed_stop_is_told_step_by_step() -> None:
    lease = make_lease()
    watcher = Watcher(lease.worker)
    assert watcher.sees() == ("", "")
    lease.worker.request_shutdown(by=BY, mode="now", reason="enough")
    assert watcher.sees() == ("stop requested", "stop requested")
    assert beat(lease) == "stop"
    assert watcher.sees() == ("stop requested", "stop requested")
    assert beat(lease, stopping=True) == "stop"
    assert watcher.sees() == ("stop requested", "stopping")
    report = claims.fail(lease, generation=1, outcome="cancelled", error_code="worker_shutdown", by=BY)
    assert report == {"directive": "stop"}
    assert watcher.sees() == ("stop requested", "stopped")
    Worker.objects.get(pk=lease.worker_id).shutdown(by=BY, confirmed=True)
    assert watcher.sees() == ("stopped", "stopped")
    assert Task.objects.get(pk=lease.task_id).state == "retrying"
    kinds = Event.objects.filter(worker_id=lease.worker_id).order_by("seq").values_list("kind", flat=True)
    assert [kind for kind in kinds if "s" in kind and kind.split(".")[0] in ("lease", "worker")][-5:] == [
        "lease.stop_requested", "lease.stopping", "lease.ended", "worker.released", "worker.stopped",
    ]  # fmt: skip


def test_a_worker_that_does_not_answer_is_stopped_unconfirmed() -> None:
    lease = make_lease()
    watcher = Watcher(lease.worker)
    lease.worker.stop(by=BY, reason="enough")
    sweeping.sweep()
    assert watcher.sees() == ("stop requested", "stop requested")
    past(lease.worker, "shutdown_deadline_at")
    sweeping.sweep()
    assert watcher.sees() == ("stop requested", "stop requested")
    past(lease, "expires_at")
    sweeping.sweep()
    assert watcher.sees() == ("stopped, unconfirmed", "stopped, unconfirmed")
    assert "unconfirmed" in watcher.browser.get(reverse("workers:worker", args=[lease.worker_id])).text
    assert (Lease.objects.get(pk=lease.pk).end_cause, Task.objects.get(pk=lease.task_id).state) == (
        "worker_shutdown",
        "retrying",
    )


def test_one_that_beats_on_and_does_not_stop_is_given_up_at_the_end_of_its_grace() -> None:
    lease = make_lease()
    lease.worker.stop(by=BY, reason="enough")
    lease.refresh_from_db()
    # Its next heartbeat, the kill of what goes on, and the report: 15 + 25 + 5 s.
    assert lease.stop_deadline_at - lease.stop_requested_at == timedelta(seconds=45)
    past(lease, "stop_deadline_at")
    past(lease.worker, "shutdown_deadline_at")
    assert beat(lease) == "stop"
    assert sweeping.sweep() == 1
    with pytest.raises(Exception, match="exit"):
        beat(lease)
    assert (Worker.objects.get(pk=lease.worker_id).state, Worker.objects.get(pk=lease.worker_id).stop_confirmed) == (
        "stopped",
        False,
    )


def test_a_cancelled_task_whose_worker_does_not_stop_is_cancelled_at_the_end_of_its_grace() -> None:
    lease = make_lease()
    lease.task.cancel(by=BY, reason="not needed")
    past(lease, "stop_deadline_at")
    sweeping.sweep()
    assert Worker.objects.get(pk=lease.worker_id).crash_message == "did not stop"
    assert Task.objects.get(pk=lease.task_id).state == "cancelled"


def test_a_shutdown_does_not_turn_a_cancellation_into_another_try() -> None:
    lease = make_lease()
    lease.task.cancel(by=BY, reason="not needed")
    lease.worker.stop(by=BY, reason="and go")
    lease.refresh_from_db()
    assert (lease.stop_outcome, lease.stop_reason) == ("cancelled", "not needed")


def test_a_drain_lets_the_task_finish_and_never_softens_a_stop() -> None:
    lease = make_lease()
    worker = lease.worker
    assert worker.request_shutdown(by=BY, mode="drain") is True
    assert beat(lease) == "drain"
    assert worker.request_shutdown(by=BY, mode="drain") is False
    assert worker.stop(by=BY, reason="now") is True
    assert worker.request_shutdown(by=BY, mode="drain") is False
    worker.refresh_from_db()
    assert worker.shutdown_mode == "now"
    rows = Event.objects.filter(kind="worker.shutdown_requested").order_by("seq")
    assert [(row.before["shutdown_mode"], row.after["shutdown_mode"]) for row in rows] == [
        ("", "drain"),
        ("drain", "now"),
    ]


def test_a_drain_past_its_deadline_becomes_a_stop() -> None:
    lease = make_lease()
    lease.worker.request_shutdown(by=BY, mode="drain", deadline_seconds=600)
    assert sweeping.sweep() == 0
    past(lease.worker, "shutdown_deadline_at")
    assert [sweeping.sweep(), sweeping.sweep()] == [1, 0]
    assert beat(lease) == "stop"
    claims.fail(lease, generation=1, outcome="cancelled", error_code="worker_shutdown", by=BY)
    sweeping.sweep()
    worker = Worker.objects.get(pk=lease.worker_id)
    assert (worker.state, worker.stop_confirmed, worker.crashed_at) == ("stopped", False, None)


def test_an_earlier_deadline_counts_and_a_later_one_does_not() -> None:
    worker = make_worker()
    worker.request_shutdown(by=BY, mode="drain", deadline_seconds=600)
    first = worker.shutdown_deadline_at
    assert worker.request_shutdown(by=BY, mode="drain", deadline_seconds=900) is False
    assert worker.request_shutdown(by=BY, mode="drain", deadline_seconds=60) is True
    assert worker.shutdown_deadline_at < first


# -- the kill switch -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", ["installation", "project"])
def test_after_the_kill_switch_commits_nothing_is_claimed(tmp_path: Path, threads: Threads, scope: str) -> None:
    tasks = [piece(f"t{n}", kind="research", allow_parallel=True) for n in range(8)]
    house = House(tmp_path, tasks, concurrency={"max_parallel": 8})
    workers = [make_worker() for _n in range(6)]

    def switch() -> Any:
        ids = {"installation": "", "project": house.project.pk}
        return Hold.objects.place(scope, ids[scope], reason="stop everything", by=BY).since

    def race(worker: Worker) -> Any:
        return lambda: claims.claim(worker)

    outcomes = threads.at_once(switch, *[race(worker) for worker in workers])
    since = outcomes[0].result()
    for outcome in outcomes[1:]:
        outcome.result()
    assert not Lease.objects.filter(acquired_at__gt=since).exists()
    assert claims.claim(make_worker()) is None
    for lease in Lease.objects.live():
        assert beat(lease) == "stop"
    house.must_hold()


def test_a_running_worker_hears_of_the_kill_switch_and_its_task_waits_under_it(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    assert beat(lease) == "continue"
    hold = Hold.objects.place("installation", reason="stop everything", by=BY)
    assert beat(lease, stopping=True) == "stop"
    watcher = Watcher(house.worker)
    assert watcher.sees() == ("", "")
    page = watcher.browser.get(reverse("workers:worker", args=[house.worker.pk])).text
    assert "stop everything" in page
    assert "its next heartbeat asks it to stop" in page
    claims.fail(lease, generation=1, outcome="cancelled", by=BY)
    house.drain()
    assert house.states() == {"a": "queued"}
    assert claims.claim(house.worker) is None
    hold.release(by=BY, reason="go on")
    assert claims.claim(house.worker) is not None
    house.must_hold()


def test_a_stop_of_an_expired_lease_is_told_once(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    lease.request_stop(by=BY, reason="enough")
    long_ago(lease, "expires_at", "stop_deadline_at")
    assert [sweeping.sweep(), sweeping.sweep()] == [1, 0]
    assert Event.objects.filter(kind="lease.ended").count() == 1
    house.must_hold()
