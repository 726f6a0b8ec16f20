"""A worker's life by API and command: each verb from each state, exact statistics, the archive, more money."""

from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from pipeline import questions
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.api.asking import Api, refused
from tests.factories import BY, in_state, make_lease, make_worker
from workers import claims
from workers.models import Lease, StaleClaim, Worker
from workers.models.finishing import CAUSES

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


@pytest.fixture
def boss() -> Api:
    """Who administers the installation."""
    return Api(factories.make_key("admin").text)


def command(*arguments: str) -> str:
    """What `manage.py worker …` prints."""
    out = StringIO()
    call_command("worker", *arguments, stdout=out)
    return out.getvalue()


# -- verbs ---------------------------------------------------------------------------------------------------------

VERBS: dict[str, dict[str, Any]] = {
    "pause": {},
    "resume": {},
    "shutdown": {"mode": "now", "reason": "enough"},
    "crash": {"message": "it burns"},
}
LEADS = {
    ("idle", "pause"): "paused",
    ("busy", "pause"): "paused",
    ("paused", "pause"): "paused",
    ("paused", "resume"): "idle",
    ("idle", "crash"): "crashed",
    ("busy", "crash"): "crashed",
    ("paused", "crash"): "crashed",
    ("crashed", "crash"): "crashed",
    ("idle", "shutdown"): "idle",
    ("busy", "shutdown"): "busy",
    ("paused", "shutdown"): "paused",
}


@pytest.mark.parametrize("state", Worker.State.values)
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_leads_where_it_should_or_is_refused(boss: Api, state: str, verb: str) -> None:
    worker = make_lease().worker if state == "busy" else in_state(make_worker(), state)
    answer = boss.post(f"/workers/{worker.pk}/{verb}/", VERBS[verb])
    if (state, verb) in LEADS:
        assert (answer.status_code, answer.json()["state"]) == (200, LEADS[state, verb])
    else:
        assert refused(answer) == (409, "invalid_move")
        worker.refresh_from_db()
        assert worker.state == state


def test_statistics_are_exact(boss: Api) -> None:
    worker = make_worker()
    for seconds in ("1.5", "0.25"):
        claims.complete(make_lease(worker), generation=1, by=BY, duration_seconds=seconds)
    claims.fail(make_lease(worker), generation=1, outcome="task_failed", duration_seconds="2.000001", by=BY)
    shown = boss.get(f"/workers/{worker.pk}/").json()
    assert (shown["state"], shown["tasks_completed"], shown["tasks_failed"]) == ("idle", 2, 1)
    assert Decimal(shown["total_execution_seconds"]) == Decimal("3.750001")
    worker.refresh_from_db()
    assert worker.average_execution_seconds == Decimal("1.250000")
    assert make_worker().average_execution_seconds == 0


HELD = Decimal("29.5")


def held_a_while(**fields: Any) -> Lease:
    """A live lease that was granted HELD seconds ago."""
    lease = make_lease(**fields)
    Lease.objects.filter(pk=lease.pk).update(acquired_at=lease.acquired_at - timedelta(seconds=float(HELD)))
    lease.refresh_from_db()
    return lease


def counts(worker: Worker) -> tuple[int, int, bool]:
    """Done, failed, and whether the time that it held its lease counts; else none does, nor any more than that."""
    worker.refresh_from_db()
    seconds = worker.total_execution_seconds
    assert seconds == 0 or HELD <= seconds < HELD + 60
    return worker.tasks_completed, worker.tasks_failed, seconds > 0


@pytest.mark.parametrize("outcome", sorted(CAUSES))
@pytest.mark.parametrize("state", ["busy", "paused"])
def test_only_what_counts_against_a_task_is_a_failure_of_its_worker(outcome: str, state: str) -> None:
    lease = held_a_while()
    if state == "paused":
        lease.worker.pause(by=BY)
    lease.finish(outcome, by=BY)
    should = {"success": (1, 0, True), "task_failed": (0, 1, True), "infra_lost": (0, 1, True)}
    assert counts(lease.worker) == should.get(outcome, (0, 0, False))


@pytest.mark.parametrize("outcome", ["infra_lost", "task_failed", "cancelled"])
def test_a_crash_counts_the_task_that_it_lost_and_its_time(outcome: str) -> None:
    lease = held_a_while()
    assert lease.worker.crash("gone", by=BY, outcome=outcome)
    assert not lease.worker.crash("gone", by=BY)
    assert counts(lease.worker) == (0, 1, True)
    event = Event.objects.about(lease.worker).get(kind="worker.crashed")
    assert Decimal(event.after["total_execution_seconds"]) == lease.worker.total_execution_seconds
    assert lease.worker.average_execution_seconds == lease.worker.total_execution_seconds


def test_a_worker_that_shuts_down_gives_its_task_back_and_counts_it_neither_way() -> None:
    lease = held_a_while()
    lease.worker.shutdown(by=BY, confirmed=True)
    assert counts(lease.worker) == (0, 0, False)
    late = held_a_while()
    late.request_stop(by=BY, reason="timed out after 20 s", outcome="task_failed")
    late.worker.shutdown(by=BY)
    assert counts(late.worker) == (0, 1, True)


def test_who_crashes_with_empty_hands_counts_nothing() -> None:
    worker = make_worker()
    worker.crash("gone", by=BY)
    assert counts(worker) == (0, 0, False)


def test_a_shutdown_with_a_deadline_shows_it(boss: Api) -> None:
    worker = make_worker()
    answer = boss.post(f"/workers/{worker.pk}/shutdown/", {"mode": "drain", "deadline_seconds": 90}).json()
    assert (answer["stop_label"], answer["shutdown_deadline_at"] is not None) == ("draining", True)
    event = Event.objects.about(worker).get(kind="worker.shutdown_requested")
    assert event.after["shutdown_deadline_at"] is not None
    assert event.before["shutdown_deadline_at"] is None


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"mode": "now"}, "reason_required"),
        ({"mode": "later"}, "invalid_field"),
        ({"mode": "drain", "deadline_seconds": 0}, "invalid_field"),
        ({"mode": "drain", "deadline_seconds": 10**9}, "invalid_field"),
        ({"mode": "drain", "deadline_seconds": "soon"}, "invalid_field"),
    ],
)
def test_a_shutdown_that_cannot_be_is_refused(boss: Api, body: dict[str, Any], code: str) -> None:
    worker = make_worker()
    assert refused(boss.post(f"/workers/{worker.pk}/shutdown/", body)) == (422, code)
    worker.refresh_from_db()
    assert worker.shutdown_mode == ""


# -- lists ---------------------------------------------------------------------------------------------------------


def names(answer: Any) -> set[str]:
    """The names of the workers that an answer lists."""
    assert answer.status_code == 200, answer.content
    return {row["name"] for row in answer.json()["results"]}


def test_the_list_is_filtered_by_health_and_by_what_a_worker_is(boss: Api) -> None:
    make_worker(name="fine", capabilities=["git", "gpu"], tools=["claude"], metadata={"labels": ["berlin"]})
    late = make_worker(name="late", metadata={"labels": "berlin"})
    held = make_lease(make_worker(name="still")).worker
    ago = db_now() - timedelta(seconds=40)
    Worker.objects.filter(pk=late.pk).update(transport_seen_at=ago)
    Worker.objects.filter(pk=held.pk).update(progress_at=ago - timedelta(hours=1))
    assert names(boss.get("/workers/", health="late")) == {"late"}
    assert names(boss.get("/workers/", health="stalled")) == {"still"}
    assert names(boss.get("/workers/", health="healthy")) == {"fine"}
    assert names(boss.get("/workers/", needs_person="true")) == {"still"}
    assert names(boss.get("/workers/", needs_person="false")) == {"fine", "late"}
    assert names(boss.get("/workers/", capability="gpu")) == {"fine"}
    assert names(boss.get("/workers/", capability="gp")) == set()
    assert names(boss.get("/workers/", tool="claude")) == {"fine"}
    assert names(boss.get("/workers/", label="berlin")) == {"fine"}
    assert refused(boss.get("/workers/", health="sleepy")) == (400, "invalid_field")
    shown = {row["name"]: row["health"] for row in boss.get("/workers/").json()["results"]}
    assert shown == {"fine": "healthy", "late": "late", "still": "stalled"}


def test_affinity_is_found_by_its_workstream(boss: Api) -> None:
    workstream = factories.make_workstream()
    make_worker(name="own", affinity=[workstream.pk])
    make_worker(name="any")
    assert names(boss.get("/workers/", affinity=workstream.pk)) == {"own"}


@pytest.mark.parametrize(("state", "column"), [("stopped", "stopped_at"), ("crashed", "crashed_at")])
def test_a_finished_worker_leaves_the_list_after_seven_days_and_is_kept(boss: Api, state: str, column: str) -> None:
    rows = {name: in_state(make_worker(name=name), state) for name in ("fresh", "old")}
    for name, days in (("fresh", 6.9), ("old", 7.1)):
        Worker.objects.filter(pk=rows[name].pk).update(**{column: db_now() - timedelta(days=days)})
    make_worker(name="alive")
    assert names(boss.get("/workers/")) == {"alive", "fresh"}
    assert names(boss.get("/workers/", archived="false")) == {"alive", "fresh"}
    assert names(boss.get("/workers/", archived="true")) == {"old"}
    assert boss.get(f"/workers/{rows['old'].pk}/").json()["state"] == state


# -- more money ----------------------------------------------------------------------------------------------------


def budget(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    """Somebody above answers `lease.extend` so, and nobody else does."""
    registered = questions._Registered(0, "test.answer", answer)
    monkeypatch.setitem(questions._answers, "lease.extend", [registered])


def held(key: Any) -> Lease:
    """A live lease of a worker of this key."""
    return make_lease(make_worker(api_key=key.row))


def test_a_lease_gets_more_money_and_never_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    key = factories.make_key("worker")
    lease = held(key)
    asked: list[Any] = []

    def answer(*, lease: Lease, amount: Decimal, by: Any) -> dict[str, Any]:
        asked.append((lease.pk, amount, by.kind))
        return {"reservation": {"amount": str(amount)}}

    budget(monkeypatch, answer)
    got = Api(key.text).post(f"/leases/{lease.pk}/extend/", {"generation": 1, "amount": "2.50"}).json()
    assert got["reservation"] == {"amount": "2.500000"}
    assert asked == [(lease.pk, Decimal("2.500000"), "worker")]
    same = Lease.objects.get(pk=lease.pk)
    assert (same.expires_at, same.timeout_at, same.deadline_at) == (
        lease.expires_at,
        lease.timeout_at,
        lease.deadline_at,
    )


def test_where_no_budget_answers_nothing_limits_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(questions._answers, "lease.extend", [])
    key = factories.make_key("worker")
    answer = Api(key.text).post(f"/leases/{held(key).pk}/extend/", {"generation": 1, "amount": "2"})
    assert (answer.status_code, answer.json()["reservation"]) == (200, None)


def test_what_a_budget_refuses_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(**_asked: Any) -> None:
        raise Refused("Budget all has 0.10 USD left", code="budget_exceeded")

    budget(monkeypatch, answer)
    key = factories.make_key("worker")
    asked = Api(key.text).post(f"/leases/{held(key).pk}/extend/", {"generation": 1, "amount": "2"})
    assert refused(asked) == (409, "budget_exceeded")


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"generation": 2, "amount": "1"}, 409, "stale_claim"),
        ({"generation": 1, "amount": "0"}, 422, "invalid_field"),
        ({"generation": 1, "amount": "-1"}, 422, "invalid_field"),
        ({"generation": 1, "amount": "NaN"}, 422, "invalid_field"),
        ({"generation": 1, "amount": "1" * 30}, 422, "invalid_field"),
        ({"generation": 1}, 422, "missing_required_field"),
    ],
)
def test_an_extension_that_cannot_be_is_refused(body: dict[str, Any], status: int, code: str) -> None:
    key = factories.make_key("worker")
    assert refused(Api(key.text).post(f"/leases/{held(key).pk}/extend/", body)) == (status, code)


def test_no_money_for_what_has_ended_or_must_stop() -> None:
    lease = make_lease()
    with pytest.raises(InvalidField):
        lease.extend(Decimal("Infinity"), generation=1, by=BY)
    lease.request_stop(by=BY, reason="enough")
    with pytest.raises(Refused, match="asked to stop"):
        lease.extend(Decimal(1), generation=1, by=BY)
    lease.finish("cancelled", by=BY)
    with pytest.raises(StaleClaim):
        lease.extend(Decimal(1), generation=1, by=BY)


def test_another_workers_lease_is_not_there() -> None:
    asked = Api(factories.make_key("worker").text).post(
        f"/leases/{held(factories.make_key('worker')).pk}/extend/", {"generation": 1, "amount": "1"}
    )
    assert refused(asked) == (404, "lease_not_found")


# -- the command ---------------------------------------------------------------------------------------------------


def test_the_command_lists_those_first_that_need_a_look() -> None:
    assert "No worker." in command("list")
    fine = make_worker(name="fine")
    gone = make_worker(name="gone")
    ended = in_state(make_worker(name="ended"), "stopped")
    Worker.objects.filter(pk=gone.pk).update(transport_seen_at=db_now() - timedelta(hours=1))
    shown = command("list").splitlines()
    assert shown == [f"{gone.pk}  gone  idle unresponsive", f"{fine.pk}  fine  idle healthy"]
    assert f"{ended.pk}  ended  stopped  stopped, unconfirmed" in command("list", "--all")
    Worker.objects.filter(pk=ended.pk).update(stopped_at=db_now() - timedelta(days=8))
    assert ended.pk not in command("list", "--all")
    assert command("list", "--archived").startswith(ended.pk)


def test_the_command_does_what_the_pages_do() -> None:
    worker = make_worker(name="ada")
    assert "paused" in command("pause", "ada", "--reason", "look at it")
    assert "Nothing changed" in command("pause", "ada", "--reason", "look at it")
    assert "idle" in command("resume", worker.pk, "--reason", "fine")
    assert "draining" in command("drain", worker.pk, "--reason", "update", "--deadline-seconds", "60")
    assert "stop requested" in command("stop", worker.pk, "--reason", "now")
    assert "crashed" in command("crash", worker.pk, "--reason", "its machine is gone")
    worker.refresh_from_db()
    assert worker.crash_message == "its machine is gone"
    reasons = Event.objects.about(worker).exclude(reason="").values_list("reason", "actor_name")
    assert list(reasons) == [
        (reason, "manage.py worker") for reason in ("look at it", "fine", "update", "now", "its machine is gone")
    ]


@pytest.mark.parametrize("verb", ["pause", "resume", "drain", "stop", "crash"])
def test_the_command_owes_a_reason(verb: str) -> None:
    worker = in_state(make_worker(), "paused" if verb == "resume" else "idle")
    with pytest.raises(CommandError, match="A reason is required"):
        command(verb, worker.pk)
    assert not Event.objects.about(worker).exclude(kind="worker.started").exists()


def test_the_command_refuses_in_words() -> None:
    with pytest.raises(CommandError, match="There is no worker nobody"):
        command("pause", "nobody", "--reason", "x")
    for _n in range(2):
        make_worker(name="twin")
    with pytest.raises(CommandError, match="Several living workers"):
        command("pause", "twin", "--reason", "x")
    with pytest.raises(CommandError, match="Cannot resume"):
        command("resume", make_worker().pk, "--reason", "x")


def test_the_command_gives_a_worker_a_task():
    project = factories.make_project(repository=factories.sample_repository())
    factories.make_merge_queue(project)
    factories.make_tool(command=["make", "it"])
    task = factories.make_task(
        factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    )
    worker = make_worker()
    with pytest.raises(CommandError, match="reason"):
        call_command("worker", "assign", worker.pk, "--task", task.pk)
    with pytest.raises(CommandError, match="not found"):
        call_command("worker", "assign", worker.pk, "--task", "nonsense", "--reason", "urgent")

    call_command("worker", "assign", worker.pk, "--task", task.pk, "--reason", "urgent", stdout=StringIO())

    worker.refresh_from_db()
    assert (worker.state, worker.current_task) == ("busy", task)
