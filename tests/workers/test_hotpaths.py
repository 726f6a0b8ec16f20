"""The hot paths answer the plain good case, as the endpoints do; what is not plain takes the long way, and one contract
holds."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError
from django.test import Client

from costs.models import CostRecord
from pipeline import limits
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.ids import new_id
from pipeline.models import ApiKey, StoredAnswer, Task
from tests import factories
from tests.api.asking import NUL, Api, refused
from workers import heartbeats, hotpaths
from workers.models import Lease, Worker

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet_broker(nudges: Any) -> None:
    """No call waits for a broker here."""


@pytest.fixture
def key() -> Any:
    """A worker's key whose last use needs no note: what it sends may go the short way."""
    key = factories.make_key("worker")
    ApiKey.objects.filter(pk=key.row.pk).update(last_used_at=db_now())
    return key


@pytest.fixture
def agent(key: Any) -> Api:
    """The program that holds it."""
    return Api(key.text)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> Any:
    """What the hot paths answered themselves, in order; None where they left a call to its endpoint."""
    answers: list[Any] = []

    def watched(hot: Any) -> Any:
        def watch(call: Any) -> Any:
            answers.append(hot(call))
            return answers[-1]

        return watch

    monkeypatch.setattr("pipeline.hotpath._paths", [(path, watched(hot)) for path, hot in hotpaths.hotpath._paths])
    return answers


def held(key: Any) -> Lease:
    """A live lease of a worker of this key on a task that owes no patch."""
    return factories.make_lease(factories.make_worker(api_key=key.row), factories.make_task(started=True))


def quoted(lease: Lease, **more: Any) -> dict[str, Any]:
    return {"activity": "in_tool", "leases": [{"id": lease.pk, "generation": lease.generation, **more}]}


def claimable() -> Task:
    """A queued task of a project with a mirror, and a tool that can do it."""
    project = factories.make_project(repository=factories.sample_repository())
    factories.make_merge_queue(project)
    factories.make_tool(command=["make", "it"])
    return factories.make_task(
        factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    )


# -- heartbeats --------------------------------------------------------------------------------------------------


def test_a_plain_heartbeat_takes_one_statement(key, agent, short, django_assert_num_queries):
    lease = held(key)
    Worker.objects.update(transport_seen_at=None, progress_at=None)
    with django_assert_num_queries(1):
        answer = agent.post(f"/workers/{lease.worker_id}/heartbeat/", quoted(lease, progress={"text": "on"}))

    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.headers["X-Request-Id"]
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert short[0] is not None
    before = lease.expires_at
    lease.refresh_from_db()
    lease.worker.refresh_from_db()
    assert answer.json()["directive"] == "continue"
    assert answer.json()["leases"][0]["id"] == lease.pk
    assert lease.expires_at >= before
    assert None not in (lease.worker.transport_seen_at, lease.worker.progress_at)
    assert lease.worker.activity == "in_tool"


def test_many_heartbeats_take_one_statement_and_answer_in_their_order(key, agent, short, django_assert_num_queries):
    leases = sorted([held(key) for _n in range(3)], key=lambda lease: lease.pk, reverse=True)
    with django_assert_num_queries(1):
        answer = agent.post(
            "/workers/heartbeats/", {"workers": [{"id": one.worker_id, **quoted(one)} for one in leases]}
        )

    assert [one["id"] for one in answer.json()["answers"]] == [lease.worker_id for lease in leases]
    assert [one["leases"][0]["id"] for one in answer.json()["answers"]] == [lease.pk for lease in leases]
    assert short[0] is not None


def test_one_of_many_that_is_refused_concerns_no_other(key, agent):
    good, stale, strange = held(key), held(key), held(factories.make_key("worker"))
    told = [{"id": one.worker_id, **quoted(one)} for one in (good, stale, strange)]
    told[1]["leases"][0]["generation"] += 1

    answers = agent.post("/workers/heartbeats/", {"workers": told}).json()["answers"]

    assert [one.get("code") for one in answers] == [None, "stale_claim", "worker_not_found"]
    assert Event.objects.filter(kind="lease.stale_report").count() == 1


def test_the_same_worker_twice_in_one_call_is_answered_twice(key, agent):
    lease = held(key)
    one = {"id": lease.worker_id, **quoted(lease)}

    answers = agent.post("/workers/heartbeats/", {"workers": [one, one]}).json()["answers"]

    assert [answer["directive"] for answer in answers] == ["continue", "continue"]


@pytest.mark.parametrize(
    "change",
    [
        {"revoked_at": "now"},
        {"expires_at": "past"},
        {"role": "viewer"},
    ],
    ids=["revoked", "past its end", "of another role"],
)
def test_a_key_that_is_no_longer_good_stops_at_once(key, agent, short, change):
    lease = held(key)
    assert agent.post(f"/workers/{lease.worker_id}/heartbeat/", quoted(lease)).status_code == 200
    times = {"now": db_now(), "past": db_now() - timedelta(seconds=1)}
    ApiKey.objects.filter(pk=key.row.pk).update(**{name: times.get(value, value) for name, value in change.items()})
    Worker.objects.update(transport_seen_at=None)

    for path, body in (
        (f"/workers/{lease.worker_id}/heartbeat/", quoted(lease)),
        ("/workers/heartbeats/", {"workers": [{"id": lease.worker_id, **quoted(lease)}]}),
        (f"/workers/{lease.worker_id}/claim/", {}),
        (f"/leases/{lease.pk}/complete/", {"generation": lease.generation}),
        (f"/leases/{lease.pk}/fail/", {"generation": lease.generation, "outcome": "task_failed"}),
    ):
        assert agent.post(path, body).status_code in (401, 403)
    assert short[1:] == [None] * 5
    lease.refresh_from_db()
    lease.worker.refresh_from_db()
    assert (lease.is_live, lease.worker.transport_seen_at) == (True, None)


def test_another_secret_under_the_same_prefix_opens_nothing(key):
    lease = held(key)
    assert refused(Api(key.text + "x").post(f"/workers/{lease.worker_id}/heartbeat/", quoted(lease))) == (
        401,
        "invalid_key",
    )


def test_the_last_use_of_a_key_is_noted_all_the_same(key, agent):
    ApiKey.objects.filter(pk=key.row.pk).update(last_used_at=db_now() - timedelta(minutes=2))
    lease = held(key)

    assert agent.post(f"/workers/{lease.worker_id}/heartbeat/", quoted(lease)).status_code == 200

    key.row.refresh_from_db()
    assert db_now() - key.row.last_used_at < timedelta(minutes=1)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"activity": 7}, "invalid_field"),
        ({"process_alive": "maybe"}, "invalid_field"),
        ({"unknown": 1}, "unknown_field"),
        ({"leases": {}}, "invalid_field"),
        ({"leases": [{"id": "x", "generation": 1}]}, "invalid_id"),
        ({"leases": [{"id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "generation": 1, "progress": {"a": NUL}}]}, "invalid_field"),
        ({"leases": [{"id": "01ARZ3NDEKTSV4RRFFQ69G5FAV", "generation": 1}]}, "stale_claim"),
    ],
    ids=["activity", "process_alive", "unknown", "leases", "lease id", "NUL", "no such lease"],
)
def test_what_is_not_plain_is_refused_by_the_endpoint(key, agent, body, code):
    worker = factories.make_worker(api_key=key.row)

    assert refused(agent.post(f"/workers/{worker.pk}/heartbeat/", body))[1] == code


def test_a_database_that_fails_the_short_way_is_answered_by_the_long_one(key, agent, monkeypatch):
    lease = held(key)

    def fails(*_given: Any, **_named: Any) -> None:
        raise OperationalError("gone")

    monkeypatch.setattr(heartbeats, "by_key", fails)
    path = f"/workers/{lease.worker_id}/heartbeat/"
    assert agent.post(path, quoted(lease)).json()["directive"] == "continue"
    monkeypatch.setattr(heartbeats, "heartbeat", fails)
    answer = agent.post(path, quoted(lease))
    assert refused(answer) == (503, "unavailable")
    assert answer.headers["Retry-After"] == "2"


def test_a_host_that_is_not_ours_is_refused(key):
    lease = held(key)
    client = Client(headers={"authorization": f"Bearer {key.text}", "host": "elsewhere.example"})

    answer = client.post(
        f"/api/v1/workers/{lease.worker_id}/heartbeat/", quoted(lease), content_type="application/json"
    )

    assert answer.status_code == 400


# -- claim and complete ------------------------------------------------------------------------------------------


def test_a_claim_and_its_repeat_are_one(key, agent, short):
    task, worker = claimable(), factories.make_worker(api_key=key.row)
    answer = agent.post(f"/workers/{worker.pk}/claim/", {"capabilities": []}, Idempotency_Key="one")
    again = agent.post(f"/workers/{worker.pk}/claim/", {"capabilities": []}, Idempotency_Key="one")

    assert short[0] is not None
    assert answer.json()["task"]["id"] == task.pk
    assert answer.json()["checkout"]["address"].startswith("http://testserver/")
    assert again.json() == answer.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert Lease.objects.count() == 1
    other = agent.post(f"/workers/{worker.pk}/claim/", {"capabilities": ["x"]}, Idempotency_Key="one")
    assert refused(other) == (422, "idempotency_mismatch")


def test_nothing_to_claim_leaves_nothing_behind(key, agent, short):
    worker = factories.make_worker(api_key=key.row)

    answer = agent.post(f"/workers/{worker.pk}/claim/", {}, Idempotency_Key="one")

    assert (answer.status_code, answer.content, short[0].status) == (204, b"", 204)
    assert not StoredAnswer.objects.exists()


def test_a_completion_tells_all_that_it_ended(key, agent, short):
    lease = held(key)
    use = {"resource_type": "compute_time", "usage_quantity": "1.500", "usage_unit": "second", "idempotency_key": "use"}
    said = {"exit_code": 0, "duration_seconds": 1.5, "output_tail": "\x1b[1mdone\n", "patch_ids": [], "session_ref": ""}
    body = {"generation": lease.generation, **said, "usage": [use]}
    answer = agent.post(f"/leases/{lease.pk}/complete/", body, Idempotency_Key="end")

    assert (answer.json(), short[0] is not None) == ({"directive": "continue"}, True)
    lease.refresh_from_db()
    attempt, task, worker = lease.attempt, lease.task, lease.worker
    assert (attempt.state, attempt.outcome, attempt.exit_code, attempt.output_tail) == (
        "succeeded",
        "success",
        0,
        "\x1b[1mdone\n",
    )
    assert (task.state, task.last_outcome) == ("validating", "success")
    assert (worker.state, worker.tasks_completed, str(worker.total_execution_seconds)) == ("idle", 1, "1.500000")
    assert (lease.end_cause, lease.ended_at == attempt.ended_at, worker.current_task) == ("completed", True, None)
    assert CostRecord.objects.get(idempotency_key__contains="use").attempt == attempt
    told = (
        Event.objects.exclude(subject_type="cost_record")
        .filter(request_id=answer.headers["X-Request-Id"])
        .order_by("seq")
    )
    assert list(told.values_list("kind", flat=True)) == [
        "step.succeeded", "task.validating", "lease.ended", "worker.released",
    ]  # fmt: skip
    assert {event.actor_id for event in told} == {worker.pk}
    again = agent.post(f"/leases/{lease.pk}/complete/", body, Idempotency_Key="end")
    assert (again.status_code, again.json()) == (200, answer.json())
    assert refused(agent.post(f"/leases/{lease.pk}/complete/", body)) == (409, "stale_claim")
    assert Event.objects.filter(kind="lease.ended").count() == 1


def test_a_completion_by_another_key_finds_no_lease(key, agent):
    lease = held(factories.make_key("worker"))

    assert refused(agent.post(f"/leases/{lease.pk}/complete/", {"generation": 1})) == (404, "lease_not_found")
    assert refused(agent.post(f"/leases/{new_id()}/complete/", {"generation": 1})) == (404, "lease_not_found")
    lease.refresh_from_db()
    assert lease.is_live


def test_a_failure_tells_all_that_it_ended(key, agent, short):
    lease = held(key)
    said = {"exit_code": 1, "duration_seconds": "1.5", "output_tail": "no\n", "session_ref": "s-1", "usage": []}
    why = {"outcome": "task_failed", "error_code": "exit_1", "error_message": "it said no"}
    body = {"generation": lease.generation, **said, **why}
    answer = agent.post(f"/leases/{lease.pk}/fail/", body, Idempotency_Key="end")

    assert (answer.json(), short[0] is not None) == ({"directive": "continue"}, True)
    lease.refresh_from_db()
    attempt, task, worker = lease.attempt, lease.task, lease.worker
    assert (attempt.state, attempt.outcome, attempt.exit_code, attempt.error_code) == (
        "failed",
        "task_failed",
        1,
        "exit_1",
    )
    assert (attempt.error_log, attempt.output_tail, attempt.session_ref) == ("it said no", "no\n", "s-1")
    assert (task.last_outcome, worker.state, worker.tasks_failed) == ("task_failed", "idle", 1)
    assert (lease.end_cause, worker.current_task, str(worker.total_execution_seconds)) == ("failed", None, "1.500000")
    again = agent.post(f"/leases/{lease.pk}/fail/", body, Idempotency_Key="end")
    assert (again.status_code, again.json()) == (200, answer.json())
    assert refused(agent.post(f"/leases/{lease.pk}/fail/", body)) == (409, "stale_claim")
    assert Event.objects.filter(kind="lease.ended").count() == 1


@pytest.mark.parametrize(
    ("more", "answered"),
    [
        ({"outcome": "success"}, (422, "invalid_field")),
        ({"outcome": "sulking"}, (422, "invalid_field")),
        ({"outcome": ""}, (422, "invalid_field")),
        ({"outcome": None}, (422, "invalid_field")),
        ({"patch_ids": []}, (400, "unknown_field")),
        ({"error_code": 7.5}, 200),
        ({"error_message": " blanks about it "}, 200),
        ({"outcome": "needs_human", "question": {"text": "which?"}}, 200),
        ({"outcome": "quota_wait", "until": "2100-01-01T00:00:00Z"}, 200),
    ],
    ids=["success", "unknown", "empty", "null", "patches", "number", "blanks", "question", "until"],
)
def test_a_failure_that_is_not_plain_is_left_to_the_endpoint(key, agent, short, more, answered):
    lease = held(key)
    body = {"generation": lease.generation, "outcome": "task_failed", **more}
    answer = agent.post(f"/leases/{lease.pk}/fail/", body)

    assert short == [None]
    assert (answer.status_code if answer.status_code == 200 else refused(answer)) == answered
    lease.refresh_from_db()
    assert lease.is_live == (answered != 200)


def test_a_failure_by_another_key_finds_no_lease(key, agent):
    lease = held(factories.make_key("worker"))

    body = {"generation": lease.generation, "outcome": "task_failed"}
    assert refused(agent.post(f"/leases/{lease.pk}/fail/", body)) == (404, "lease_not_found")
    lease.refresh_from_db()
    assert lease.is_live


# -- how often ---------------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, settings: Any) -> Any:
    """Two calls at once, one a second; the time that it is."""
    settings.SIGNALBOX_CALLS_PER_SECOND, settings.SIGNALBOX_CALLS_AT_ONCE = 1, 2
    now = [1000.0]
    monkeypatch.setattr(limits.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(limits, "_full_at", {})
    return now


def test_a_key_that_beats_too_often_is_told_to_slow_down(key, agent, clock):
    lease = held(key)
    path, body = f"/workers/{lease.worker_id}/heartbeat/", quoted(lease)
    assert [agent.post(path, body).status_code for _n in range(3)] == [200, 200, 429]

    answer = agent.post(path, body)
    assert refused(answer) == (429, "slow_down")
    assert (answer.headers["Retry-After"], answer.json()["retry_after"]) == ("1", 1)
    clock[0] += 1
    assert [agent.post(path, body).status_code for _n in range(2)] == [200, 429]


def test_the_limit_is_of_all_endpoints_together_and_of_each_key_alone(key, agent, clock):
    worker = factories.make_worker(api_key=key.row)
    assert agent.get(f"/workers/{worker.pk}/").status_code in (200, 403)
    assert agent.get("/me/").status_code == 200
    answer = agent.get("/me/")
    assert refused(answer) == (429, "slow_down")
    assert answer.headers["Retry-After"] == "1"
    assert refused(agent.post(f"/workers/{worker.pk}/heartbeat/", {})) == (429, "slow_down")
    assert Api(factories.make_key("viewer").text).get("/me/").status_code == 200


def test_calls_with_a_wrong_secret_take_nothing_from_the_keys_own(key, agent, clock):
    worker = factories.make_worker(api_key=key.row)
    for _n in range(5):
        assert Api(key.text + "x").post(f"/workers/{worker.pk}/heartbeat/", {}).status_code == 401

    assert agent.post(f"/workers/{worker.pk}/heartbeat/", {}).status_code == 200


def test_who_has_not_called_for_long_is_forgotten(clock, monkeypatch):
    monkeypatch.setattr(limits, "MAX_CALLERS", 3)
    for number in range(3):
        limits.admit(f"caller {number}")
    clock[0] += 10
    limits.admit("another")
    assert set(limits._full_at) == {"another"}


def test_no_limit_is_no_limit(settings, clock):
    settings.SIGNALBOX_CALLS_PER_SECOND = 0
    for _n in range(100):
        limits.admit("caller")
