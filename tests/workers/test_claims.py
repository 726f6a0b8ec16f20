"""Claims: who gets which task, and what keeps a task back."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.models import ExecutionRequest, RoutingDecision, StepAttempt, Tool
from pipeline.refusals import Refused
from tests.conftest import Threads
from tests.factories import BY, make_key, make_project, make_worker
from tests.flows.house import House, long_ago, piece
from workers import claims, heartbeats
from workers.models import Lease, StaleClaim, WorkerFinished

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


def apart(key: str, **fields: Any) -> dict[str, Any]:
    """A task that writes in a folder of its own, so that nothing orders it."""
    scope = {"write": [f"{key}/**"], "create": [f"{key}/**"]}
    return piece(key, resource_scope_delta=scope, allow_parallel=True, **fields)


def claimed(house: House, number: int) -> list[str]:
    """The keys of the tasks that so many new workers get, in turn."""
    documents = [claims.claim(make_worker()) for _ in range(number)]
    return [document["task"]["key"] for document in documents if document]


def test_twenty_claimants_of_one_task_get_one_lease(tmp_path: Path, threads: Threads) -> None:
    house = House(tmp_path, [piece("a")])
    workers = [make_worker() for _ in range(20)]
    outcomes = threads.at_once(*[lambda worker=worker: claims.claim(worker) for worker in workers])
    documents = [document for document in (outcome.result() for outcome in outcomes) if document]
    assert len(documents) == 1
    assert Lease.objects.filter(task__run=house.run).count() == StepAttempt.objects.filter(run=house.run).count() == 1
    assert house.task("a").generation == 1
    house.must_hold()


def test_an_attempt_may_take_no_longer_than_its_tool_allows(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    Tool.objects.update(timeout_seconds=5)
    document = claims.claim(house.worker)
    assert document is not None
    lease = Lease.objects.get(pk=document["lease"]["id"])
    assert document["task"]["timeout_seconds"] == 5
    assert (lease.timeout_at - lease.acquired_at).total_seconds() == 5
    assert house.task("a").timeout_seconds > 5


def test_one_worker_that_claims_twice_at_once_gets_one_task(tmp_path: Path, threads: Threads) -> None:
    house = House(tmp_path, [apart("a"), apart("b")])
    outcomes = threads.at_once(*[lambda: claims.claim(type(house.worker).objects.get(pk=house.worker.pk))] * 4)
    got = [outcome.value for outcome in outcomes if outcome.error is None and outcome.value]
    assert len(got) == 1
    assert all(isinstance(outcome.error, Refused) for outcome in outcomes if outcome.error is not None)
    house.must_hold()


def test_a_claim_names_everything_that_an_agent_needs(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    document = house.claim()
    assert document["task"]["key"] == "a"
    assert document["task"]["requires_patch"] is True
    assert document["checkout"] == {
        "url": str(house.project.mirror),
        "commit": house.first_commit,
        "branch": "main",
        "address": f"/git/{house.project.key}.git",
    }
    assert document["execution_request"]["tool"] == house.tool.key
    assert document["execution_request"]["resource_scope"]["forbidden"] == ["secret/**"]
    assert "Make it better" in document["prompt"]["text"]
    assert document["previous_failures"] == []
    lease = Lease.objects.get()
    assert (document["lease"]["id"], document["lease"]["generation"]) == (lease.pk, 1)
    assert lease.attempt.request_id == document["execution_request"]["id"]
    assert lease.attempt.prompt_id == document["prompt"]["id"]
    assert ExecutionRequest.objects.get().base_commit == house.first_commit
    decision = RoutingDecision.objects.get()
    assert (decision.chosen, decision.strategy != "") == (house.tool, True)


def test_the_longest_way_to_go_comes_first(tmp_path: Path) -> None:
    house = House(tmp_path, [apart("short"), apart("first"), apart("last", depends_on=["first"])])
    assert claimed(house, 3) == ["first", "short"]


def test_a_task_that_allows_nothing_beside_it_runs_alone(tmp_path: Path) -> None:
    alone = {**apart("a"), "allow_parallel": False}
    house = House(tmp_path, [alone, apart("b"), apart("c")])
    first = house.claim()["task"]["key"]
    if first == "a":
        assert claimed(house, 2) == []
    else:
        assert "a" not in claimed(house, 2)


def test_a_run_takes_no_more_at_a_time_than_its_workstream_allows(tmp_path: Path) -> None:
    house = House(tmp_path, [apart(key) for key in "abc"], concurrency={"mode": "parallel", "max_parallel": 2})
    assert len(claimed(house, 3)) == 2


def test_two_of_a_conflict_group_never_run_at_once(tmp_path: Path) -> None:
    house = House(tmp_path, [apart("a", conflict_group="db"), apart("b", conflict_group="db"), apart("c")])
    assert sorted(claimed(house, 3)) == ["a", "c"]


def test_a_tool_without_a_free_slot_keeps_the_task_waiting(tmp_path: Path) -> None:
    house = House(tmp_path, [apart("a"), apart("b")])
    Tool.objects.filter(pk=house.tool.pk).update(max_parallel=1)
    assert len(claimed(house, 2)) == 1
    house.must_hold()


def test_a_worker_gets_only_what_it_is_fit_for(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a", capabilities=["gpu"])])
    assert claims.claim(house.worker) is None
    with pytest.raises(Refused) as refused:
        claims.assign(house.worker, house.task("a").pk, offered=None, by=BY)
    assert refused.value.code == "worker_unfit"
    assert claims.claim(make_worker(affinity=["01ARZ3NDEKTSV4RRFFQ69G5FAV"], capabilities=["gpu"])) is None
    assert claims.claim(make_worker(tools=["another"], capabilities=["gpu"])) is None
    assert claims.claim(make_worker(metadata={"adapters": ["codex"]}, capabilities=["gpu"])) is None
    assert claims.claim(make_worker(capabilities=["gpu", "docker"])) is not None


def test_a_key_of_a_project_gets_that_projects_tasks_only(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    stranger = make_worker(api_key=make_key("worker", project=make_project()).row)
    assert claims.claim(stranger) is None
    assert claims.claim(make_worker(api_key=make_key("worker", project=house.project).row)) is not None


def test_a_refused_claim_leaves_nothing_behind(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    Tool.objects.filter(pk=house.tool.pk).update(capabilities={"task_kinds": ["research"]})
    with pytest.raises(Refused) as refused:
        claims.assign(house.worker, house.task("a").pk, offered=None, by=BY)
    assert refused.value.code == "no_routable_tool_for_phase"
    task = house.task("a")
    assert (task.state, task.generation, task.count_attempts) == ("queued", 0, 0)
    assert StepAttempt.objects.count() == ExecutionRequest.objects.count() == Lease.objects.count() == 0


def test_workers_that_are_paused_draining_or_gone_get_nothing(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    paused, draining, gone = make_worker(), make_worker(), make_worker()
    paused.pause(by=BY)
    draining.request_shutdown(by=BY)
    gone.crash("dead", by=BY)
    assert claims.claim(paused) is None
    with pytest.raises(Refused) as refused:
        claims.claim(draining)
    assert refused.value.code == "worker_draining"
    with pytest.raises(WorkerFinished):
        claims.claim(gone)
    assert house.states() == {"a": "queued"}


def test_a_heartbeat_renews_the_lease_but_never_past_its_deadline(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a", execution={"timeout_seconds": 1})])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    assert lease.expires_at == lease.deadline_at
    before = lease.renewed_at
    heartbeats.heartbeat(house.worker.pk, api_key_id=None, leases=[{"id": lease.pk, "generation": 1}])
    lease.refresh_from_db()
    assert before is None
    assert lease.renewed_at is not None
    assert lease.expires_at == lease.deadline_at


def test_a_heartbeat_with_another_generation_is_stale_and_renews_nothing(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    long_ago(lease, "expires_at")
    lease.refresh_from_db()
    with pytest.raises(StaleClaim):
        heartbeats.heartbeat(house.worker.pk, api_key_id=None, leases=[{"id": lease.pk, "generation": 2}])
    renewed = Lease.objects.get(pk=lease.pk)
    assert (renewed.expires_at, renewed.renewed_at) == (lease.expires_at, None)


def test_a_second_report_of_a_lease_is_stale_and_changes_nothing(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    document = house.claim()
    patch = house.submit(document, {"a.txt": "a\n"})
    house.report(document, patch)
    with pytest.raises(StaleClaim):
        house.report(document, patch)
    house.drain()
    with pytest.raises(StaleClaim):
        house.report(document, patch, amount="100")
    assert house.run.state == "succeeded"
    assert house.costs() == {"a1": ("landed", "")}
    house.worker.refresh_from_db()
    assert (house.worker.tasks_completed, house.worker.tasks_failed) == (1, 0)
    house.must_hold()
