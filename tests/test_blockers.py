"""Why isn't this moving? Every unfinished object has exactly one holder, and what the answer advises helps."""

from collections.abc import Callable
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from gates import running
from gates.models import GateRun
from ledger.models import MergeQueue, Patch, QueueItem
from pipeline.blockers import KINDS, Blocker, blocker
from pipeline.clock import db_now
from pipeline.models import Run, Task
from pipeline.states import Stateful
from tests import factories
from tests.factories import BY, STATEFUL, in_state
from tests.flows.house import House, chain, piece
from workers.models import Lease, Worker

FINISHED = {
    "succeeded", "failed", "quarantined", "canceled", "cancelled", "completed", "released", "stopped", "crashed",
    "committed", "rolled_back", "dropped", "landed", "evicted", "withdrawn", "passed", "skipped", "error", "pushed",
    "settled",
}  # fmt: skip
# A patch in quarantine waits for its owner; a queue that runs waits for nobody.
STANDING = {(Patch, "quarantined")}
QUIET = {(MergeQueue, "running"), (MergeQueue, "draining")}
CASES = sorted(
    ((model, str(state)) for model in STATEFUL for state in model.MOVES), key=lambda case: (case[0].__name__, case[1])
)


@pytest.mark.django_db
@pytest.mark.parametrize(("model", "state"), CASES, ids=[f"{model.__name__}-{state}" for model, state in CASES])
def test_whatever_is_unfinished_has_one_holder_and_whatever_is_finished_none(model: type[Stateful], state: str) -> None:
    row = in_state(STATEFUL[model][0](), state)

    found = blocker(row)

    finished = state in FINISHED and (model, state) not in STANDING
    assert (found is None) == (finished or (model, state) in QUIET)
    if found is not None:
        assert found.holder.kind in KINDS
        assert found.reason
        assert found.holder.label
        assert (found.chain[0].noun, found.chain[0].id) == (row.noun(), row.pk)


# -- in a house that works ---------------------------------------------------------------------------------------

flow = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]
Build = Callable[..., House]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds a house with these tasks."""

    def make(*tasks: dict[str, Any], **how: Any) -> House:
        return House(tmp_path, tasks, **how)

    return make


def of(row: Any) -> Blocker:
    """Who holds it, as it is now."""
    found = blocker(type(row)._default_manager.get(pk=row.pk))
    assert found is not None
    return found


def apart(key: str) -> dict[str, Any]:
    """A task that others may run beside: it writes in a folder of its own."""
    scope = {"write": [f"{key}/**"], "create": [f"{key}/**"]}
    return piece(key, resource_scope_delta=scope, allow_parallel=True)


class TestInAHouse:
    """One task's way, asked at every step."""

    pytestmark = flow

    def test_a_task_is_followed_from_its_place_in_line_to_its_landing(self, build: Build) -> None:
        house = build(*chain("a", "b"))
        a, b = house.task("a"), house.task("b")
        assert (of(a).code, of(a).holder.kind) == ("queued", "queue")
        assert (of(b).code, of(b).holder.kind, of(b).holder.id) == ("dependency_open", "dependency", a.pk)
        assert [link.id for link in of(b).chain] == [b.pk, a.pk]

        document = house.claim()
        held = of(a)
        assert (held.code, held.holder.kind, held.holder.id) == ("leased", "worker", house.worker.pk)
        assert (of(house.run).holder, of(b).chain[-1].code) == (held.holder, "leased")

        patch = house.submit(document, {"a.py": "a = 1\n"})
        house.report(document, patch)
        assert of(a).chain[-1].id == patch.pk

        house.drain()
        assert blocker(house.task("a")) is None
        assert of(b).code == "queued"

    def test_a_failing_gate_holds_the_patch_and_everything_that_waits_for_it(
        self, build: Build, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        house = build(piece("a", execution={"max_attempts": 1}))
        monkeypatch.setattr(running, "_next", lambda: None)  # nobody runs gates
        patch = house.deliver({"a.py": "a = 1\n"})
        house.drain()
        run = GateRun.objects.get(patch=patch)

        found = of(house.task("a"))

        assert (found.holder.kind, found.chain[-1].id) == ("queue", run.pk)
        assert [link.noun for link in found.chain] == ["task", "patch", "gate_run"]
        in_state(run, "failed")
        found = of(Patch.objects.get(pk=patch.pk))
        assert (found.code, found.holder.kind, found.holder.id) == ("gate_failed", "gate", run.pk)
        assert found.action is not None
        assert found.action.address == f"/gate-runs/{run.pk}/waive/"

    def test_a_patch_without_its_review_waits_for_people(self, build: Build) -> None:
        house = build(piece("a"))
        factories.make_policy(project=house.project, constraints={"min_reviewers": 1})
        patch = house.work({"a.py": "a = 1\n"})

        found = of(house.task("a"))

        assert (found.code, found.holder.kind, found.holder.label) == ("reviews_missing", "user", "approvers")
        assert found.action is not None
        assert found.action.address == f"/patches/{patch.pk}/approve/"

    def test_a_paused_queue_holds_what_stands_in_it_until_somebody_resumes_it(self, build: Build) -> None:
        house = build(piece("a"))
        document = house.claim()
        patch = house.submit(document, {"a.py": "a = 1\n"})
        MergeQueue.objects.open_for(house.project, house.project.default_branch, house.head, by=BY)
        house.queue.pause(by=BY, reason="the release is on")
        house.report(document, patch)
        house.drain()

        found = of(house.task("a"))

        assert (found.code, found.reason) == ("queue_paused", "the release is on")
        assert found.action is not None
        assert found.action.address == f"/merge-queues/{house.queue.pk}/resume/"
        assert QueueItem.objects.live().filter(patch=patch).exists()

    def test_a_hold_is_the_holder_and_its_release_is_what_helps(self, build: Build, client: Client) -> None:
        house = build(piece("a"))
        hold = house.run.hold(by=BY, reason="look at the plan first")
        task = house.task("a")

        found = of(task)
        assert (found.code, found.reason, found.holder.id) == ("held_manual", "look at the plan first", hold.pk)
        assert found.action is not None

        key = factories.make_key("approver", project=house.project)
        answer = client.post(
            f"/api/v1{found.action.address}",
            {"reason": "looked"},
            content_type="application/json",
            headers={"authorization": f"Bearer {key.text}"},
        )
        assert answer.status_code == 200
        assert of(task).code == "queued"

    def test_a_worker_that_stands_still_is_named_with_since_when(self, build: Build) -> None:
        house = build(piece("a"))
        house.claim()
        since = db_now() - timedelta(hours=2)
        Worker.objects.filter(pk=house.worker.pk).update(progress_at=since)

        found = of(house.task("a"))

        assert (found.code, found.holder.id, found.since) == ("stalled", house.worker.pk, since)

    def test_a_task_that_nobody_can_take_says_what_is_missing(self, build: Build) -> None:
        house = build(piece("a", capabilities=["gpu"]))
        assert (of(house.task("a")).code, of(house.task("a")).reason) == ("no_worker", "No living worker offers gpu")

        house.tool.edit(by=BY, expected_version=house.tool.version, enabled=False)
        found = of(house.task("a"))
        assert (found.code, found.holder.label) == ("no_tool", "administrators")

    def test_a_task_whose_tool_is_full_waits_for_a_slot(self, build: Build) -> None:
        house = build(apart("a"), apart("b"))
        house.tool.edit(by=BY, expected_version=house.tool.version, max_parallel=1)
        house.claim()
        waiting = next(task for task in (house.task("a"), house.task("b")) if task.state == "queued")

        found = of(waiting)

        assert (found.code, found.holder.kind, found.holder.id) == ("slots_full", "quota", house.tool.pk)

    def test_a_task_that_may_not_run_beside_another_waits_for_it(self, build: Build) -> None:
        house = build(apart("a"), {**apart("b"), "allow_parallel": False})
        running = Lease.objects.get(pk=house.claim()["lease"]["id"]).task
        waiting = house.task("b" if running.key == "a" else "a")

        found = of(waiting)

        assert (found.code, found.holder.id) == ("conflict", running.pk)
        assert found.chain[-1].code == "leased"


# -- the ways to ask ---------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_api_and_command_give_the_same_answer(client: Client) -> None:
    run = factories.make_run()
    key = factories.make_key("viewer", project=run.project)
    headers = {"authorization": f"Bearer {key.text}"}

    answer = client.get(f"/api/v1/blockers/?subject_type=run&subject_id={run.pk}", headers=headers)
    told = answer.json()
    printed = StringIO()
    call_command("why", "run", run.pk, stdout=printed)

    assert answer.status_code == 200
    assert (told["holder"]["label"], told["code"]) == ("operators", "not_started")
    assert told["action"] == {"verb": "start", "address": f"/runs/{run.pk}/start/", "role": "operator"}
    assert "operators: Nobody has started it" in printed.getvalue()
    assert f"POST /api/v1/runs/{run.pk}/start/" in printed.getvalue()


@pytest.mark.django_db
def test_a_task_is_asked_at_its_own_address_too(client: Client) -> None:
    task = factories.make_task()
    key = factories.make_key("viewer", project=task.run.project)

    answer = client.get(f"/api/v1/tasks/{task.pk}/blockers/", headers={"authorization": f"Bearer {key.text}"})

    assert (answer.json()["code"], answer.json()["holder"]["label"]) == ("not_started", "operators")


@pytest.mark.django_db
def test_a_finished_object_waits_for_nobody(client: Client) -> None:
    run = in_state(factories.make_run(), Run.State.SUCCEEDED)
    key = factories.make_key("viewer", project=run.project)

    answer = client.get(
        f"/api/v1/blockers/?subject_type=run&subject_id={run.pk}", headers={"authorization": f"Bearer {key.text}"}
    )

    assert (answer.json()["holder"], answer.json()["code"], answer.json()["chain"]) == (None, "finished", [])


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("", 400, "invalid_field"),
        ("subject_type=run", 400, "invalid_field"),
        ("subject_type=price&subject_id=01JD9Z6X8Q4W2M5T7R3B1C0VNK", 422, "invalid_field"),
        ("subject_type=run&subject_id=x", 404, "run_not_found"),
        ("subject_type=run&subject_id=01JD9Z6X8Q4W2M5T7R3B1C0VNK", 404, "run_not_found"),
        ("subject_type=run&subject_id=01JD9Z6X8Q4W2M5T7R3B1C0VNK&state=x", 400, "unknown_filter"),
    ],
    ids=["nothing", "no-id", "no-such-noun", "no-id-at-all", "unknown", "unknown-parameter"],
)
def test_a_wrong_question_is_told_what_is_wrong(client: Client, query: str, status: int, code: str) -> None:
    key = factories.make_key("viewer", project=factories.make_project())

    answer = client.get(f"/api/v1/blockers/?{query}", headers={"authorization": f"Bearer {key.text}"})

    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.django_db
def test_a_stranger_learns_nothing(client: Client) -> None:
    run = factories.make_run()
    key = factories.make_key("viewer", project=factories.make_project())

    answer = client.get(
        f"/api/v1/blockers/?subject_type=run&subject_id={run.pk}", headers={"authorization": f"Bearer {key.text}"}
    )

    assert answer.status_code == 404


@pytest.mark.django_db
def test_the_command_says_what_is_not_there() -> None:
    with pytest.raises(CommandError, match="Task not found"):
        call_command("why", "task", "01JD9Z6X8Q4W2M5T7R3B1C0VNK")


@pytest.mark.django_db
def test_the_page_of_a_run_says_what_it_waits_for(admin_client: Client) -> None:
    task = factories.make_task(started=True)
    factories.make_hold("run", task.run.pk, reason="wait for legal", project=task.run.project)

    page = admin_client.get(f"/runs/{task.run.pk}/").content.decode()

    assert "Why isn't this moving?".replace("'", "&#x27;") in page or "Why isn't this moving?" in page
    assert "wait for legal" in page
    assert Task.objects.get(pk=task.pk).state == "queued"
