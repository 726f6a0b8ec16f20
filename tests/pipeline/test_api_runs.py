"""Runs, tasks, steps and holds over HTTP: a verb moves the row, tells the log, and answers with what is now."""

import json
from typing import Any

import pytest
from django.test import Client

from pipeline.ids import new_id
from pipeline.models import Event, Hold, Run, Task
from tests import factories

pytestmark = pytest.mark.django_db


def client_of(role: str, project: Any) -> Client:
    """A client that comes with a new key of the project."""
    return Client(headers={"authorization": f"Bearer {factories.make_key(role, project=project, name='ci').text}"})


@pytest.fixture
def project() -> Any:
    """A project."""
    return factories.make_project()


@pytest.fixture
def operator(project: Any) -> Client:
    """An operator of the project."""
    return client_of("operator", project)


def post(client: Client, path: str, body: Any = None) -> Any:
    """The answer to a POST under /api/v1."""
    return client.post(f"/api/v1/{path}", json.dumps({} if body is None else body), content_type="application/json")


def test_a_post_opens_a_run_with_its_tasks_and_starts_it(operator: Client, project: Any) -> None:
    workstream = factories.make_workstream(factories.make_phase(project))

    answer = post(operator, "runs/", {"workstream": workstream.pk, "metadata": {"why": "nightly"}})

    run = Run.objects.get()
    document = answer.json()
    assert answer.status_code == 201
    assert answer["Location"] == f"/api/v1/runs/{run.pk}/"
    assert answer["ETag"] == f'"{document["version"]}"'
    assert (document["id"], document["state"], document["project"]) == (run.pk, "running", project.pk)
    assert document["metadata"] == {"why": "nightly"}
    assert Task.objects.get(run=run).state == "queued"
    started = Event.objects.get(kind="run.started", run_id=run.pk)
    assert (started.actor_kind, started.actor_name) == ("integration", "ci")
    assert started.request_id == answer["X-Request-Id"]


def test_a_run_that_cannot_start_is_not_opened(operator: Client, project: Any) -> None:
    workstream = factories.make_workstream(factories.make_phase(project))
    factories.make_hold(scope_id=project.pk, project=project)

    answer = post(operator, "runs/", {"workstream": workstream.pk})

    assert (answer.status_code, answer.json()["code"]) == (409, "held")
    assert not Run.objects.exists()
    assert post(operator, "runs/", {"workstream": workstream.pk, "start": False}).json()["state"] == "pending"


def test_a_task_list_in_a_phase_is_a_run_too(operator: Client, project: Any) -> None:
    phase = factories.make_phase(project)
    tasks = [factories.task_spec("one"), factories.task_spec("two", depends_on=["one"])]

    answer = post(operator, "runs/", {"phase": phase.pk, "tasks": tasks})

    assert answer.status_code == 201
    rows = operator.get(f"/api/v1/tasks/?run={answer.json()['id']}&ordering=sequence").json()["results"]
    assert [(row["key"], row["state"]) for row in rows] == [("one", "queued"), ("two", "blocked")]


@pytest.mark.parametrize(
    ("tasks", "code"),
    [
        ([factories.task_spec("a", depends_on=["a"])], "circular_dependency"),
        ([factories.task_spec("a", depends_on=["b"])], "unknown_dependency"),
        ([{"task_id": "a"}], "invalid_plan"),
    ],
)
def test_a_plan_that_cannot_work_is_422(operator: Client, project: Any, tasks: Any, code: str) -> None:
    answer = post(operator, "runs/", {"phase": factories.make_phase(project).pk, "tasks": tasks})

    assert answer.status_code == 422
    assert answer.json()["code"] in (code, "missing_required_field")
    assert not Run.objects.exists()


def test_the_same_id_answers_with_the_same_run(operator: Client, project: Any) -> None:
    workstream = factories.make_workstream(factories.make_phase(project))
    body = {"id": new_id(), "workstream": workstream.pk}

    first, again = post(operator, "runs/", body), post(operator, "runs/", body)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json()
    other = {"id": body["id"], "phase": factories.make_phase(project).pk, "tasks": [factories.task_spec()]}
    assert post(operator, "runs/", other).json()["code"] == "duplicate_id"


def test_the_id_of_a_strangers_run_tells_nothing(operator: Client, project: Any) -> None:
    theirs = factories.make_run(phase=factories.make_phase())

    answer = post(
        operator,
        "runs/",
        {"id": theirs.pk, "phase": factories.make_phase(project).pk, "tasks": [factories.task_spec()]},
    )

    assert (answer.status_code, answer.json()["code"]) == (409, "duplicate_id")


def test_cancel_is_quiet_and_quarantine_owes_a_reason(operator: Client, project: Any) -> None:
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)

    assert post(operator, f"runs/{run.pk}/quarantine/").json()["code"] == "reason_required"
    first = post(operator, f"runs/{run.pk}/cancel/", {"reason": "not now"})
    again = post(operator, f"runs/{run.pk}/cancel/")

    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json()["state"] == again.json()["state"] == "canceled"
    assert first.json()["state_reason"] == "not now"
    assert Event.objects.filter(kind="run.canceled", run_id=run.pk).count() == 1


def test_hold_and_release_of_a_run(operator: Client, project: Any) -> None:
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)))
    approver = client_of("approver", project)

    held = post(operator, f"runs/{run.pk}/hold/", {"reason": "look first"})

    assert (held.status_code, held.json()["scope_id"]) == (201, run.pk)
    assert post(operator, f"runs/{run.pk}/start/").json()["code"] == "held"
    assert post(operator, f"runs/{run.pk}/release/", {"reason": "ok"}).status_code == 403
    assert post(approver, f"runs/{run.pk}/release/").json()["code"] == "reason_required"
    assert post(approver, f"runs/{run.pk}/release/", {"reason": "ok"}).status_code == 200
    assert Hold.objects.get().state == "released"


def test_a_finished_run_is_run_again_as_a_new_one(operator: Client, project: Any) -> None:
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)))
    assert post(operator, f"runs/{run.pk}/retry/").json()["code"] == "invalid_move"
    post(operator, f"runs/{run.pk}/cancel/")

    again = post(operator, f"runs/{run.pk}/retry/")

    assert again.status_code == 201
    assert (again.json()["retry_of"], again.json()["state"]) == (run.pk, "running")


def test_progress_counts_the_tasks(operator: Client, project: Any) -> None:
    tasks = [factories.task_spec("one"), factories.task_spec("two")]
    run = factories.make_run(factories.make_workstream(factories.make_phase(project), tasks=tasks), started=True)
    run.tasks.get(key="one").cancel(by=factories.BY, reason="no")

    document = operator.get(f"/api/v1/runs/{run.pk}/progress/").json()

    assert (document["total"], document["cancelled"], document["pending"]) == (2, 1, 1)
    assert document["percent_done"] == 50.0
    assert document["elapsed_seconds"] >= 0
    assert document["eta"] is None


def test_steps_of_the_run_itself_are_opened_and_ended_here(operator: Client, project: Any) -> None:
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)))
    assert post(operator, "steps/", {"run": run.pk}).json()["code"] == "run_not_running"
    post(operator, f"runs/{run.pk}/start/")

    step = post(operator, "steps/", {"run": run.pk, "input_prompt": "count the files"}).json()
    done = post(operator, f"steps/{step['id']}/complete/", {"status": "completed"})
    again = post(operator, f"steps/{step['id']}/complete/", {"status": "completed"})

    assert (step["state"], step["sequence"], step["task"]) == ("running", 1, None)
    assert (done.json()["state"], done.json()["outcome"], done.json()["exit_code"]) == ("succeeded", "success", 0)
    assert (again.status_code, again.json()["code"]) == (409, "invalid_move")
    assert post(operator, f"steps/{step['id']}/complete/", {"status": "x"}).json()["code"] == "invalid_state"
    rows = operator.get("/api/v1/steps/?state=completed").json()["results"]
    assert [row["id"] for row in rows] == [step["id"]]
    assert "output_tail" not in rows[0]


def test_an_attempt_at_a_task_moves_by_its_lease_only(operator: Client, project: Any) -> None:
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    step = factories.make_step(run, task=run.tasks.get(), start=True)

    for verb, body in (("complete", {"status": "succeeded"}), ("cancel", {}), ("start", {})):
        answer = post(operator, f"steps/{step.pk}/{verb}/", body)
        assert (answer.status_code, answer.json()["code"]) == (409, "invalid_move")

    step.refresh_from_db()
    assert step.state == "running"


def test_a_hold_is_placed_once_and_released_with_a_reason(operator: Client, project: Any) -> None:
    body = {"scope_kind": "project", "scope_id": project.key, "reason": "audit"}

    first, again = post(operator, "holds/", body), post(operator, "holds/", body)

    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json()["id"] == again.json()["id"]
    assert (first.json()["holder"], first.json()["project"]) == ("ci", project.pk)
    approver = client_of("approver", project)
    path = f"holds/{first.json()['id']}/release/"
    assert post(approver, path).json()["code"] == "reason_required"
    assert post(approver, path, {"reason": "done"}).json()["state"] == "released"
    assert post(approver, path, {"reason": "done"}).status_code == 200
    assert Event.objects.filter(kind="hold.released").count() == 1


@pytest.mark.parametrize(
    ("scope", "status", "code"),
    [
        ({"scope_kind": "installation"}, 403, "permission_denied"),
        ({"scope_kind": "project"}, 422, "missing_required_field"),
        ({"scope_kind": "run", "scope_id": "x"}, 404, "run_not_found"),
        ({"scope_kind": "tool", "scope_id": "nobodys"}, 404, "tool_not_found"),
        ({"scope_kind": "worker", "scope_id": "x"}, 422, "invalid_field"),
        ({"scope_kind": "moon"}, 422, "invalid_field"),
    ],
)
def test_a_scope_that_cannot_be_held(operator: Client, scope: Any, status: int, code: str) -> None:
    answer = post(operator, "holds/", {**scope, "reason": "r"})

    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert not Hold.objects.exists()


def test_the_scope_of_a_stranger_is_unknown(operator: Client) -> None:
    run = factories.make_run()

    for scope in ({"scope_kind": "run", "scope_id": run.pk}, {"scope_kind": "project", "scope_id": run.project.key}):
        assert post(operator, "holds/", {**scope, "reason": "r"}).status_code == 404

    assert not Hold.objects.exists()


def test_the_plan_of_a_workstream_is_shown_and_executes_nothing(operator: Client, project: Any) -> None:
    tasks = [factories.task_spec("one"), factories.task_spec("two", depends_on=["one"])]
    workstream = factories.make_workstream(factories.make_phase(project), tasks=tasks)

    plan = operator.get(f"/api/v1/workstreams/{workstream.pk}/plan/").json()

    assert plan["ok"] is True
    assert plan["levels"] == [["one"], ["two"]]
    assert plan["critical_path"] == ["one", "two"]
    assert plan["estimated_amount"] == "0.000000"
    assert not Run.objects.exists()
