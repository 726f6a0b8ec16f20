"""The workers' API: what an agent program calls with its key, and what people do with the fleet."""

from datetime import timedelta
from typing import Any

import pytest

from pipeline import events
from pipeline.ids import new_id
from pipeline.models import StoredAnswer, Task
from tests import factories
from tests.api.asking import HALF, HUGE, NUL, Api, refused, wrong_values
from workers.models import Lease, Worker

pytestmark = pytest.mark.django_db

REGISTRATION: dict[str, Any] = {
    "worker_type": "executor",
    "name": "one",
    "host": "here",
    "tools": ["shell"],
    "capabilities": ["git"],
    "config": {"heartbeat_interval": 5, "timeout_seconds": 30, "stall_after": 100, "max_parallel_tasks": 3},
    "metadata": {"pid": 7, "adapters": ["shell"]},
}
BEAT: dict[str, Any] = {"process_alive": True, "activity": "in_tool", "leases": []}
REPORT: dict[str, Any] = {
    "generation": 1,
    "exit_code": 0,
    "duration_seconds": 1.5,
    "output_tail": " done\n",
    "usage": [
        {
            "resource_type": "compute_time",
            "usage_quantity": "1.500",
            "usage_unit": "second",
            "duration_seconds": "1.500",
            "source": "agent",
            "idempotency_key": "one:compute",
        }
    ],
}


@pytest.fixture
def key() -> Any:
    """A worker's key of the whole installation, with its text."""
    return factories.make_key("worker")


@pytest.fixture
def agent(key: Any) -> Api:
    """The program that holds it."""
    return Api(key.text)


@pytest.fixture
def stranger() -> Api:
    """A program with another worker's key."""
    return Api(factories.make_key("worker").text)


def held(key: Any, **task: Any) -> Lease:
    """A live lease of a worker of this key on a research task, which owes no patch."""
    return factories.make_lease(factories.make_worker(api_key=key.row), factories.make_task(started=True, **task))


def claimable() -> Task:
    """A queued task of a project with a mirror, and a tool that can do it."""
    project = factories.make_project(repository=factories.sample_repository())
    factories.make_merge_queue(project)
    factories.make_tool(command=["make", "it"])
    return factories.make_task(
        factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    )


# -- register ----------------------------------------------------------------------------------------------------


def test_a_worker_registers_and_hears_how_to_beat(agent: Api, key: Any) -> None:
    answer = agent.post("/workers/", REGISTRATION)

    worker = Worker.objects.get()
    assert answer.status_code == 201
    assert answer.headers["Location"] == f"/api/v1/workers/{worker.pk}/"
    shown = answer.json()
    assert {name: shown[name] for name in ("id", "state", "heartbeat_interval", "timeout_seconds", "config")} == {
        "id": worker.pk,
        "state": "idle",
        "heartbeat_interval": 5,
        "timeout_seconds": 30,
        "config": REGISTRATION["config"],
    }
    assert worker.api_key == key.row
    told = events.Event.objects.get(kind="worker.started")
    assert (told.subject_id, told.actor_kind, told.actor_id, told.on_behalf_of) == (
        worker.pk, "worker", worker.pk, key.row.name,
    )  # fmt: skip


def test_left_out_settings_follow_the_installation(agent: Api) -> None:
    shown = agent.post("/workers/", {"worker_type": "executor", "config": {}}).json()

    assert (shown["heartbeat_interval"], shown["timeout_seconds"], shown["config"]) == (15, 60, {})


def test_a_registration_repeated_by_its_own_id_makes_no_second_worker(agent: Api, stranger: Api) -> None:
    body = {**REGISTRATION, "id": new_id()}

    assert agent.post("/workers/", body).status_code == 201
    assert agent.post("/workers/", body).status_code == 200
    assert refused(agent.post("/workers/", {**body, "name": "two"})) == (409, "duplicate_id")
    assert refused(stranger.post("/workers/", body)) == (409, "duplicate_id")
    assert Worker.objects.count() == 1


def test_the_lost_answer_to_a_registration_is_given_again(agent: Api) -> None:
    first = agent.post("/workers/", REGISTRATION, Idempotency_Key="call-1")
    again = agent.post("/workers/", REGISTRATION, Idempotency_Key="call-1")

    assert again.json() == first.json()
    assert again.headers["Idempotency-Replayed"] == "true"
    assert Worker.objects.count() == 1


def test_a_full_host_takes_no_further_worker(agent: Api) -> None:
    body = {**REGISTRATION, "config": {"max_parallel_tasks": 1}}
    agent.post("/workers/", body)

    assert refused(agent.post("/workers/", body)) == (409, "worker_limit")


def test_only_a_known_type_registers(agent: Api) -> None:
    answer = agent.post("/workers/", {**REGISTRATION, "worker_type": "robot"})

    assert refused(answer) == (422, "invalid_worker_type")
    assert "executor" in answer.json()["detail"]


def test_a_registration_needs_its_type_and_knows_its_fields(agent: Api) -> None:
    assert refused(agent.post("/workers/", {})) == (422, "missing_required_field")
    assert refused(agent.post("/workers/", {**REGISTRATION, "state": "busy"})) == (400, "unknown_field")
    assert refused(agent.post("/workers/", {**REGISTRATION, "config": {"speed": 1}})) == (400, "unknown_field")
    assert refused(agent.post("/workers/", [])) == (422, "invalid_field")
    assert Worker.objects.count() == 0


def test_no_registration_with_a_wrong_value_gets_in(agent: Api) -> None:
    for name, good in REGISTRATION.items():
        for value in wrong_values(good):
            status, code = refused(agent.post("/workers/", {**REGISTRATION, name: value}))
            assert status in (400, 422), (name, value)
            assert code in ("invalid_field", "unknown_field", "malformed", "invalid_worker_type"), (name, value)
    for name in REGISTRATION["config"]:
        for value in (0, -1, HUGE, "soon", [], None, 86_401):
            body = {**REGISTRATION, "config": {name: value}}
            assert refused(agent.post("/workers/", body)) == (422, "invalid_field"), (name, value)
    assert refused(agent.post("/workers/", {**REGISTRATION, "metadata": {"adapters": 5}})) == (422, "invalid_field")
    assert refused(agent.post("/workers/", {**REGISTRATION, "id": "7"})) == (422, "invalid_id")
    assert Worker.objects.count() == 0


@pytest.mark.parametrize(
    "config",
    [
        {"heartbeat_interval": 60, "timeout_seconds": 5},
        {"heartbeat_interval": 5, "timeout_seconds": 5},
        {"heartbeat_interval": 60},
        {"timeout_seconds": 15},
    ],
)
def test_a_heartbeat_that_comes_after_its_lease_is_refused(agent: Api, config: dict[str, int]) -> None:
    answer = agent.post("/workers/", {**REGISTRATION, "config": config})

    assert refused(answer) == (422, "invalid_field")
    assert "never renews a lease" in answer.text
    assert Worker.objects.count() == 0
    config["timeout_seconds"] = config.get("heartbeat_interval", 15) + 1
    assert agent.post("/workers/", {**REGISTRATION, "config": config}).status_code == 201


@pytest.mark.parametrize("labels", ["berlin", 5, {"berlin": 1}, [5], None])
def test_labels_are_a_list_of_texts(agent: Api, labels: Any) -> None:
    assert refused(agent.post("/workers/", {**REGISTRATION, "metadata": {"labels": labels}})) == (422, "invalid_field")
    assert agent.post("/workers/", {**REGISTRATION, "metadata": {"labels": ["berlin"]}}).status_code == 201


def test_a_worker_serves_only_workstreams_that_are_there_for_it(agent: Api) -> None:
    workstream = factories.make_workstream()
    own = factories.make_key("worker", project=workstream.phase.project)
    other = factories.make_key("worker", project=factories.make_project())
    body = {**REGISTRATION, "id": new_id(), "affinity": [workstream.pk]}

    answer = Api(other.text).post("/workers/", body)
    assert (refused(answer), workstream.pk in answer.text) == ((422, "invalid_field"), True)
    strange = agent.post("/workers/", {**REGISTRATION, "affinity": [workstream.pk, new_id()]})
    assert refused(strange) == (422, "invalid_field")
    assert Worker.objects.count() == 0
    assert Api(own.text).post("/workers/", body).json()["affinity"] == [workstream.pk]
    assert Api(own.text).post("/workers/", body).status_code == 200
    assert agent.post("/workers/", {**REGISTRATION, "affinity": [workstream.pk]}).status_code == 201


def test_a_worker_follows_one_of_its_own_key_only(agent: Api, stranger: Api, key: Any) -> None:
    before = factories.make_worker(api_key=key.row)
    body = {**REGISTRATION, "previous_worker": before.pk}

    assert agent.post("/workers/", body).json()["previous_worker"] == before.pk
    assert refused(stranger.post("/workers/", body)) == (404, "worker_not_found")


# -- heartbeat ---------------------------------------------------------------------------------------------------


def test_a_heartbeat_sets_the_clocks_and_answers_a_directive(agent: Api, key: Any) -> None:
    worker = factories.make_worker(api_key=key.row)

    answer = agent.post(f"/workers/{worker.pk}/heartbeat/", BEAT)

    assert (answer.status_code, answer.json()) == (200, {"directive": "continue", "leases": []})
    worker.refresh_from_db()
    assert (worker.activity, worker.process_seen_at is not None) == ("in_tool", True)
    assert events.Event.objects.filter(subject_id=worker.pk).count() == 1


def test_a_heartbeat_renews_the_lease_that_it_quotes(agent: Api, key: Any) -> None:
    lease = held(key)
    quoted = {"id": lease.pk, "generation": lease.generation, "progress": {"output_bytes": 3}}

    answer = agent.post(f"/workers/{lease.worker_id}/heartbeat/", {**BEAT, "leases": [quoted]})

    was = lease.expires_at
    lease.refresh_from_db()
    assert lease.expires_at > was
    assert answer.json()["leases"] == [{"id": lease.pk, "expires_at": events.plain(lease.expires_at)}]


def test_a_heartbeat_stores_no_answer(agent: Api, key: Any) -> None:
    worker = factories.make_worker(api_key=key.row)

    agent.post(f"/workers/{worker.pk}/heartbeat/", BEAT, Idempotency_Key="call-1")

    assert StoredAnswer.objects.count() == 0


def test_a_heartbeat_with_an_old_generation_is_refused_and_leaves_a_trace(agent: Api, key: Any) -> None:
    lease = held(key)
    quoted = {"id": lease.pk, "generation": lease.generation + 1}

    answer = agent.post(f"/workers/{lease.worker_id}/heartbeat/", {**BEAT, "leases": [quoted]})

    assert refused(answer) == (409, "stale_claim")
    assert events.Event.objects.filter(kind="lease.stale_report", subject_id=lease.pk).count() == 1


ENDS = {"complete": {}, **{word: {"outcome": word} for word in ("task_failed", "infra_lost", "cancelled")}}


@pytest.mark.parametrize("end", ENDS)
def test_a_heartbeat_that_crosses_its_own_report_is_refused_without_an_alarm(agent: Api, key: Any, end: str) -> None:
    lease = held(key)
    verb = "complete" if end == "complete" else "fail"
    told = {"generation": lease.generation, **ENDS[end]}
    assert agent.post(f"/leases/{lease.pk}/{verb}/", told, Idempotency_Key="end").status_code == 200
    quoted = [{"id": lease.pk, "generation": lease.generation}]
    address = f"/workers/{lease.worker_id}/heartbeat/"

    assert refused(agent.post(address, {**BEAT, "leases": quoted})) == (409, "stale_claim")
    many = agent.post("/workers/heartbeats/", {"workers": [{"id": lease.worker_id, "leases": quoted}]})
    assert many.json()["answers"][0]["code"] == "stale_claim"

    alarms = events.Event.objects.filter(kind="lease.stale_report", subject_id=lease.pk)
    assert alarms.count() == 0
    newer = [{"id": lease.pk, "generation": lease.generation + 1}]
    assert refused(agent.post(address, {**BEAT, "leases": newer})) == (409, "stale_claim")
    assert alarms.count() == 1
    ended = lease.acquired_at - timedelta(minutes=2)
    Lease.objects.filter(pk=lease.pk).update(acquired_at=ended - timedelta(minutes=1), ended_at=ended)
    assert refused(agent.post(address, {**BEAT, "leases": quoted})) == (409, "stale_claim")
    assert alarms.count() == 2


def test_a_finished_worker_is_told_to_go(agent: Api, key: Any) -> None:
    worker = factories.make_worker(api_key=key.row)
    worker.shutdown(by=factories.BY)

    assert refused(agent.post(f"/workers/{worker.pk}/heartbeat/", BEAT)) == (410, "worker_finished")
    assert refused(agent.post(f"/workers/{worker.pk}/claim/")) == (410, "worker_finished")


def test_no_heartbeat_with_a_wrong_value_gets_in(agent: Api, key: Any) -> None:
    worker = factories.make_worker(api_key=key.row)
    path = f"/workers/{worker.pk}/heartbeat/"
    for name, good in {**BEAT, "leases": [{}]}.items():
        for value in wrong_values(good):
            assert refused(agent.post(path, {**BEAT, name: value}))[0] in (400, 422), (name, value)
    lease = {"id": new_id(), "generation": 1}
    for name, value in (
        ("id", "x"), ("id", None), ("generation", HUGE), ("generation", "one"), ("generation", -1), ("progress", 3),
        ("stopping", "maybe"), ("owner", 1),
    ):  # fmt: skip
        assert refused(agent.post(path, {**BEAT, "leases": [{**lease, name: value}]}))[0] in (400, 422), (name, value)
    assert refused(agent.post(path, {**BEAT, "leases": [lease, lease]})) == (422, "invalid_field")


def test_many_heartbeats_are_answered_one_by_one(agent: Api, key: Any) -> None:
    alive, ended = factories.make_worker(api_key=key.row), factories.make_worker(api_key=key.row)
    ended.shutdown(by=factories.BY)
    foreign = factories.make_worker(api_key=factories.make_key("worker").row)
    lease = held(key)
    stale = {"id": lease.worker_id, "leases": [{"id": lease.pk, "generation": lease.generation + 1}]}

    answer = agent.post(
        "/workers/heartbeats/", {"workers": [{"id": alive.pk}, {"id": ended.pk}, {"id": foreign.pk}, stale]}
    )

    assert answer.status_code == 200
    answers = answer.json()["answers"]
    assert [row["id"] for row in answers] == [alive.pk, ended.pk, foreign.pk, lease.worker_id]
    assert [row.get("directive") or row["code"] for row in answers] == [
        "continue", "worker_finished", "worker_not_found", "stale_claim",
    ]  # fmt: skip
    assert events.Event.objects.filter(kind="lease.stale_report").count() == 1


@pytest.mark.parametrize("body", [{}, {"workers": []}, {"workers": "x"}, {"workers": [1]}, {"workers": [{}] * 101}])
def test_many_heartbeats_are_between_one_and_a_hundred(agent: Api, body: Any) -> None:
    assert refused(agent.post("/workers/heartbeats/", body))[0] == 422


# -- claim -------------------------------------------------------------------------------------------------------


def test_a_claim_answers_the_task_with_its_lease(agent: Api, key: Any) -> None:
    task = claimable()
    worker = factories.make_worker(api_key=key.row)

    answer = agent.post(f"/workers/{worker.pk}/claim/", {"capabilities": [], "max": 1, "wait_seconds": 0})

    assert answer.status_code == 200
    shown, lease = answer.json(), Lease.objects.get()
    assert shown["task"]["id"] == task.pk
    assert shown["execution_request"]["command"] == ["make", "it"]
    assert shown["checkout"]["commit"] == factories.head_of(task.run.project)
    assert shown["checkout"]["address"] == f"http://testserver/git/{task.run.project.key}.git"
    assert shown["lease"]["id"] == lease.pk
    assert shown["lease"]["generation"] == lease.generation == 1
    assert shown["previous_failures"] == []


def test_the_lost_answer_to_a_claim_is_given_again(agent: Api, key: Any) -> None:
    claimable()
    worker = factories.make_worker(api_key=key.row)
    path = f"/workers/{worker.pk}/claim/"

    first = agent.post(path, {"wait_seconds": 0}, Idempotency_Key="call-1")
    again = agent.post(path, {"wait_seconds": 0}, Idempotency_Key="call-1")

    assert first.status_code == 200
    assert again.json() == first.json()
    assert Lease.objects.count() == 1


def test_nothing_to_do_is_no_content_and_is_not_remembered(agent: Api, key: Any) -> None:
    worker = factories.make_worker(api_key=key.row)
    path = f"/workers/{worker.pk}/claim/"

    assert agent.post(path, {"wait_seconds": 0}, Idempotency_Key="call-1").status_code == 204
    claimable()
    assert agent.post(path, {"wait_seconds": 0}, Idempotency_Key="call-1").status_code == 200


def test_a_worker_that_is_to_end_gets_no_task(agent: Api, key: Any) -> None:
    claimable()
    worker = factories.make_worker(api_key=key.row)
    worker.request_shutdown(by=factories.BY)

    assert refused(agent.post(f"/workers/{worker.pk}/claim/")) == (409, "worker_draining")


@pytest.mark.parametrize(
    "body",
    [
        {"wait_seconds": 31}, {"wait_seconds": -1}, {"wait_seconds": "NaN"}, {"wait_seconds": None}, {"max": 2},
        {"max": 0}, {"capabilities": "git"}, {"capabilities": [NUL]}, {"capabilities": [HALF]}, {"capabilities": [[]]},
        {"wait_seconds": HUGE}, {"worker": "x"}, {"capabilities": ["x"] * 101}, {"capabilities": ["x" * 65]},
    ],
)  # fmt: skip
def test_no_claim_with_a_wrong_value_gets_in(agent: Api, key: Any, body: Any) -> None:
    worker = factories.make_worker(api_key=key.row)

    assert refused(agent.post(f"/workers/{worker.pk}/claim/", body))[0] in (400, 422)


@pytest.mark.django_db(transaction=True)
def test_a_waiting_claim_gets_the_task_that_comes_meanwhile(key: Any, threads: Any) -> None:
    worker = factories.make_worker(api_key=key.row)
    asked = threads.start(lambda: Api(key.text).post(f"/workers/{worker.pk}/claim/", {"wait_seconds": 20}))

    task = claimable()

    answer = asked.result()
    assert answer.status_code == 200
    assert answer.json()["task"]["id"] == task.pk


# -- what people do ----------------------------------------------------------------------------------------------


def test_a_person_gives_a_worker_a_task() -> None:
    task = claimable()
    worker = factories.make_worker(api_key=factories.make_key("worker", project=task.run.project).row)
    operator = Api(factories.make_key("operator", project=task.run.project).text)

    answer = operator.post(f"/workers/{worker.pk}/assign/", {"task": task.pk})

    assert answer.status_code == 201
    assert answer.json()["task"]["id"] == task.pk
    worker.refresh_from_db()
    assert (worker.state, worker.current_task_id) == ("busy", task.pk)


def test_a_worker_is_given_no_task_of_another_project_nor_while_it_drains() -> None:
    task = claimable()
    other = factories.make_worker(api_key=factories.make_key("worker", project=factories.make_project()).row)
    draining = factories.make_worker()
    draining.request_shutdown(by=factories.BY)
    operator = Api(factories.make_key("operator").text)

    assert refused(operator.post(f"/workers/{other.pk}/assign/", {"task": task.pk})) == (409, "worker_unfit")
    assert refused(operator.post(f"/workers/{draining.pk}/assign/", {"task": task.pk})) == (409, "worker_draining")
    assert refused(operator.post(f"/workers/{other.pk}/assign/", {"task": new_id()})) == (404, "task_not_found")
    assert refused(operator.post(f"/workers/{other.pk}/assign/", {"task": 5})) == (422, "invalid_id")
    assert refused(operator.post(f"/workers/{other.pk}/assign/")) == (422, "missing_required_field")
    assert Lease.objects.count() == 0


def test_a_person_pauses_and_resumes_a_worker() -> None:
    worker = factories.make_worker()
    key = factories.make_key("operator")
    operator = Api(key.text)

    assert operator.post(f"/workers/{worker.pk}/pause/", {"reason": "lunch"}).json()["state"] == "paused"
    assert operator.post(f"/workers/{worker.pk}/pause/").status_code == 200
    assert operator.post(f"/workers/{worker.pk}/resume/").json()["state"] == "idle"
    assert refused(operator.post(f"/workers/{worker.pk}/resume/")) == (409, "invalid_move")
    told = list(events.Event.objects.about(worker).values_list("kind", "actor_name", "reason"))
    assert told[1:] == [("worker.paused", key.row.name, "lunch"), ("worker.resumed", key.row.name, "")]


def test_a_persons_shutdown_is_a_request_and_the_workers_own_a_fact(agent: Api, key: Any) -> None:
    worker = factories.make_worker(api_key=key.row)
    operator = Api(factories.make_key("operator").text)

    asked = operator.post(f"/workers/{worker.pk}/shutdown/", {"mode": "drain"}).json()
    assert (asked["state"], asked["shutdown_mode"], asked["stop_confirmed"]) == ("idle", "drain", False)
    assert refused(operator.post(f"/workers/{worker.pk}/shutdown/", {"mode": "now"})) == (422, "reason_required")
    assert refused(operator.post(f"/workers/{worker.pk}/shutdown/", {"mode": "soon"})) == (422, "invalid_field")

    assert refused(agent.post(f"/workers/{worker.pk}/shutdown/", {"mode": "now"})) == (422, "invalid_field")
    ended = agent.post(f"/workers/{worker.pk}/shutdown/", {"reason": "Drained"}).json()
    assert (ended["state"], ended["stop_confirmed"]) == ("stopped", True)
    assert agent.post(f"/workers/{worker.pk}/shutdown/", {"reason": "Drained"}).status_code == 200


def test_a_crash_is_told_by_the_worker_or_by_a_person_with_a_reason(agent: Api, key: Any) -> None:
    lease = held(key)
    operator = Api(factories.make_key("operator").text)
    path = f"/workers/{lease.worker_id}/crash/"

    assert refused(operator.post(path, {"message": " "})) == (422, "reason_required")
    assert refused(operator.post(path)) == (422, "missing_required_field")
    assert refused(agent.post(path, {"message": "x" * 2001})) == (422, "invalid_field")

    shown = agent.post(path, {"message": "KeyError: 'x'", "trace": "Traceback …"}).json()
    assert (shown["state"], shown["crash_message"], shown["crash_trace"]) == ("crashed", "KeyError: 'x'", "Traceback …")
    lease.refresh_from_db()
    assert lease.end_cause == "worker_crashed"
    assert agent.post(path, {"message": "again"}).json()["crash_message"] == "KeyError: 'x'"


# -- reports -----------------------------------------------------------------------------------------------------


def test_a_completed_lease_frees_its_worker(agent: Api, key: Any) -> None:
    lease = held(key)

    answer = agent.post(f"/leases/{lease.pk}/complete/", {**REPORT, "patch_ids": [], "session_ref": ""})

    assert (answer.status_code, answer.json()) == (200, {"directive": "continue"})
    lease.refresh_from_db()
    assert (lease.end_cause, lease.worker.state, lease.attempt.state) == ("completed", "idle", "succeeded")
    assert lease.attempt.output_tail == " done\n"
    assert lease.attempt.costs.get().duration_seconds == 1.5
    told = events.Event.objects.get(kind="lease.ended", subject_id=lease.pk)
    assert (told.actor_kind, told.actor_id, told.on_behalf_of) == ("worker", lease.worker_id, key.row.name)


def test_a_failed_lease_keeps_what_went_wrong(agent: Api, key: Any) -> None:
    lease = held(key)
    said = {"outcome": "task_failed", "error_code": "exit_3", "error_message": "it broke", "exit_code": 3}

    answer = agent.post(f"/leases/{lease.pk}/fail/", {**REPORT, **said})

    assert answer.status_code == 200
    lease.refresh_from_db()
    attempt = lease.attempt
    assert (lease.end_cause, attempt.state, attempt.exit_code, attempt.error_code) == ("failed", "failed", 3, "exit_3")
    assert attempt.error_log == "it broke"


def test_a_report_counts_once(agent: Api, key: Any) -> None:
    lease = held(key)
    path = f"/leases/{lease.pk}/complete/"

    first = agent.post(path, REPORT, Idempotency_Key="call-1")
    again = agent.post(path, REPORT, Idempotency_Key="call-1")
    other = agent.post(path, {**REPORT, "exit_code": 1}, Idempotency_Key="call-1")
    late = agent.post(path, REPORT)

    assert (again.status_code, again.json()) == (200, first.json())
    assert refused(other) == (422, "idempotency_mismatch")
    assert refused(late) == (409, "stale_claim")
    assert events.Event.objects.filter(kind="lease.ended").count() == 1
    assert events.Event.objects.filter(kind="lease.stale_report").count() == 1


@pytest.mark.parametrize("verb", ["complete", "fail"])
def test_a_report_of_another_generation_changes_nothing(agent: Api, key: Any, verb: str) -> None:
    lease = held(key)
    extra = {"outcome": "task_failed"} if verb == "fail" else {}

    answer = agent.post(f"/leases/{lease.pk}/{verb}/", {**REPORT, **extra, "generation": 2})

    assert refused(answer) == (409, "stale_claim")
    lease.refresh_from_db()
    assert lease.is_live


def test_no_report_with_a_wrong_value_gets_in(agent: Api, key: Any) -> None:
    lease = held(key)
    path = f"/leases/{lease.pk}/complete/"
    for name, good in {**REPORT, "patch_ids": [], "session_ref": "s"}.items():
        for value in wrong_values(good):
            if name == "output_tail" and isinstance(value, str) and len(value) == 200_000:
                continue  # that much is allowed here
            assert refused(agent.post(path, {**REPORT, name: value}))[0] in (400, 413, 422), (name, str(value)[:50])
    for value in (-1, "NaN", "Infinity", "soon", [], 10**10):
        assert refused(agent.post(path, {**REPORT, "duration_seconds": value}))[0] == 422, value
    use = REPORT["usage"][0]
    for name, value in (
        ("model", []), ("resource_type", {}), ("tokens_output", -1), ("tokens_output", "x"),
        ("tokens_output", HUGE), ("currency", []), ("idempotency_key", "k" * 201), ("source", NUL),
        ("landing", "waste"),
    ):  # fmt: skip
        assert refused(agent.post(path, {**REPORT, "usage": [{**use, name: value}]}))[0] in (400, 422), (name, value)
    assert refused(agent.post(path, {})) == (422, "missing_required_field")
    assert refused(agent.post(path, {**REPORT, "state": "succeeded"})) == (400, "unknown_field")
    assert refused(agent.post(f"/leases/{lease.pk}/fail/", {**REPORT, "outcome": "success"})) == (422, "invalid_field")
    assert refused(agent.post(f"/leases/{lease.pk}/fail/", {**REPORT, "outcome": "bored"})) == (422, "invalid_field")
    assert refused(agent.post(f"/leases/{lease.pk}/fail/", REPORT)) == (422, "missing_required_field")
    lease.refresh_from_db()
    assert lease.is_live


def test_use_that_cannot_be_booked_does_not_lose_the_result(agent: Api, key: Any) -> None:
    lease = held(key)
    usage = [{"resource_type": "api_call", "amount": "a lot"}, {"resource_type": "api_call", "amount": "0.25"}]

    answer = agent.post(f"/leases/{lease.pk}/complete/", {"generation": 1, "usage": usage})

    assert answer.status_code == 200
    assert [str(row.amount) for row in lease.attempt.costs.all()] == ["0.250000"]
    assert events.Event.objects.filter(kind="cost.anomaly").count() == 1


# -- whose is what -----------------------------------------------------------------------------------------------


def test_what_belongs_to_another_worker_does_not_exist(stranger: Api, key: Any) -> None:
    lease = held(key)
    worker = lease.worker_id
    calls = [
        (f"/workers/{worker}/heartbeat/", BEAT),
        (f"/workers/{worker}/claim/", {}),
        (f"/workers/{worker}/shutdown/", {"reason": "mine"}),
        (f"/workers/{worker}/crash/", {"message": "mine"}),
        (f"/leases/{lease.pk}/complete/", REPORT),
        (f"/leases/{lease.pk}/fail/", {**REPORT, "outcome": "task_failed"}),
    ]
    count = events.Event.objects.count()

    for path, body in calls:
        assert refused(stranger.post(path, body)) in ((404, "worker_not_found"), (404, "lease_not_found")), path
    assert events.Event.objects.count() == count
    lease.refresh_from_db()
    assert lease.is_live


def test_an_own_worker_cannot_report_the_lease_of_a_sibling(agent: Api, key: Any) -> None:
    lease = held(key)
    sibling = factories.make_worker(api_key=key.row)

    answer = agent.post(
        f"/workers/{sibling.pk}/heartbeat/", {"leases": [{"id": lease.pk, "generation": lease.generation}]}
    )

    assert refused(answer) == (409, "stale_claim")


@pytest.mark.parametrize("given", ["x", "0" * 26, "%00", "7" * 300, "🤖"])
def test_an_address_that_is_no_id_finds_nothing(agent: Api, given: str) -> None:
    for path in (f"/workers/{given}/heartbeat/", f"/workers/{given}/claim/", f"/leases/{given}/complete/"):
        assert refused(agent.post(path))[0] == 404


def test_a_session_does_no_workers_work(client: Any, key: Any) -> None:
    worker = factories.make_worker(api_key=key.row)
    client.force_login(factories.make_user(is_superuser=True))

    for path in ("/workers/", f"/workers/{worker.pk}/heartbeat/", f"/workers/{worker.pk}/claim/"):
        answer = client.post(f"/api/v1{path}", data="{}", content_type="application/json")
        assert refused(answer)[0] in (401, 403), path


# -- reading -----------------------------------------------------------------------------------------------------


def test_lists_hold_no_traces_and_details_do(key: Any) -> None:
    worker = factories.make_worker(api_key=key.row, metadata={"pid": 1})
    viewer = Api(factories.make_key("viewer").text)

    (row,) = viewer.get("/workers/").json()["results"]
    shown = viewer.get(f"/workers/{worker.pk}/")

    assert "crash_trace" not in row
    assert "metadata" not in row
    assert row["health"] == "healthy"
    assert shown.json()["metadata"] == {"pid": 1}
    assert shown.headers["ETag"] == '"1"'


def test_workers_and_leases_are_filtered_by_declared_fields_only(key: Any) -> None:
    lease = held(key)
    idle = factories.make_worker(api_key=key.row)
    viewer = Api(factories.make_key("viewer").text)

    assert [row["id"] for row in viewer.get("/workers/", state="idle").json()["results"]] == [idle.pk]
    assert [row["id"] for row in viewer.get("/leases/", worker=lease.worker_id).json()["results"]] == [lease.pk]
    assert viewer.get("/leases/", worker=idle.pk).json()["results"] == []
    project = lease.task.run.project.key
    assert [row["id"] for row in viewer.get("/leases/", project=project).json()["results"]] == [lease.pk]
    assert refused(viewer.get("/workers/", crash_message="x")) == (400, "unknown_filter")
    assert refused(viewer.get("/leases/", worker="x")) == (400, "invalid_id")


@pytest.mark.parametrize("path", ["/workers/", "/leases/"])
def test_the_queries_of_a_list_do_not_grow_with_its_rows(
    path: str, key: Any, django_assert_max_num_queries: Any
) -> None:
    viewer = Api(factories.make_key("viewer").text)
    for _number in range(4):
        held(key)
    with django_assert_max_num_queries(5):
        assert len(viewer.get(path).json()["results"]) == 4
