"""Whole walks through the house with real git and real gates: claim, patch, gate, commit, and the ways it can end."""

import sys
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from costs.models import CostRecord
from gates import runner
from gates.models import GateRun
from pipeline.events import Event
from pipeline.models import Hold, StepAttempt
from tests.factories import BY, make_worker
from tests.flows.house import Deaths, Died, House, chain, long_ago, piece
from workers import claims, heartbeats
from workers.models import Lease, StaleClaim

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml={evidence}/junit.xml"]
TEST = "from calc import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"

Build = Callable[..., House]


@pytest.fixture
def build(tmp_path: Path) -> Build:
    """Builds a house with these tasks."""

    def make(*tasks: dict[str, Any], **how: Any) -> House:
        return House(tmp_path, tasks, **how)

    return make


def test_three_dependent_tasks_land_as_three_commits_that_are_what_the_gates_tested(build: Build) -> None:
    tests = {
        "gate_type": "unit_tests",
        "command": PYTEST,
        "evidence": {"junit": "junit.xml"},
        "criteria": {"max_failures": 0, "min_tests": 1},
    }
    house = build(
        *chain("a", "b", "c"),
        gates={"tests": tests},
        files={"calc.py": "def add(a, b):\n    return a + b\n", "test_calc.py": TEST},
    )
    assert house.states() == {"a": "queued", "b": "blocked", "c": "blocked"}
    for key in "abc":
        house.work({f"{key}.py": f"{key} = 1\n"})
        assert house.task(key).state == "completed"

    assert house.run.state == "succeeded"
    assert house.run.exit_code == 0
    commits = house.new_commits()
    patches = house.patches()
    assert [patch.state for patch in patches] == ["committed"] * 3
    assert [commit.id for commit in commits] == [patch.commit_sha for patch in patches]
    runs = house.gate_runs()
    assert [(run.state, run.total_tests, run.parsed) for run in runs] == [("passed", 1, True)] * 3
    assert [commit.tree for commit in commits] == [run.tree_hash for run in runs]
    assert CostRecord.objects.live().filter(run=house.run).total("USD") == Decimal(3)
    assert set(house.costs().values()) == {("landed", "")}
    assert house.run.count_patches_created == house.run.count_steps == 3
    kinds = house.kinds()
    assert kinds[0] == "run.created"
    assert kinds.count("patch.committed") == kinds.count("lease.ended") == 3
    assert kinds.count("run.succeeded") == 1
    house.must_hold()


def test_each_task_builds_on_what_its_predecessor_landed(build: Build) -> None:
    house = build(*chain("a", "b"))
    house.work({"notes.txt": "one\n"})
    document = house.claim()
    assert document["checkout"]["commit"] == house.head != house.first_commit
    house.report(document, house.submit(document, {"notes.txt": "one\ntwo\n"}))
    house.drain()
    assert house.file("notes.txt") == "one\ntwo"
    assert house.run.state == "succeeded"


def test_a_failing_gate_sends_the_task_back_with_what_was_said_and_the_repair_lands(build: Build) -> None:
    house = build(piece("a"))
    first = house.work({"new.py": "BROKEN\n"})
    assert first.state == "created"
    first.refresh_from_db()
    assert (first.state, first.last_error_code, first.tests_ran) == ("apply_failed", "gates_not_satisfied", True)
    task = house.task("a")
    assert (task.state, task.count_repairs, task.count_failures, task.last_outcome) == ("queued", 1, 0, "gate_failed")
    assert house.head == house.first_commit

    document = house.claim()
    assert document["lease"]["generation"] == 2
    (told,) = document["previous_failures"]
    assert told["outcome"] == "gate_failed"
    assert "words" in told["error"]
    assert "./new.py:1:BROKEN" in told["error"]
    for line in told["error"].splitlines():
        assert line in document["prompt"]["text"]
    second = house.submit(document, {"new.py": "fine\n"})
    house.report(document, second)
    house.drain()

    first.refresh_from_db()
    second.refresh_from_db()
    assert second.state == "committed"
    assert (second.replaces_id, second.chain_id) == (first.pk, first.chain_id)
    assert (first.state, first.state_reason) == ("dropped", f"superseded by {second.pk}")
    assert house.run.state == "succeeded"
    assert house.costs() == {"a1": ("waste", "gate_failed"), "a2": ("landed", "")}
    assert len(house.new_commits()) == 1
    house.must_hold()


def test_the_names_of_failing_tests_reach_the_next_attempt(build: Build) -> None:
    tests = {"gate_type": "unit_tests", "command": PYTEST, "evidence": {"junit": "junit.xml"}}
    house = build(piece("a"), gates={"tests": tests}, files={"calc.py": "def add(a, b):\n    return a + b\n"})
    house.work({"test_calc.py": TEST.replace("== 3", "== 4, 'one and two are three'")})
    (run,) = house.gate_runs()
    assert (run.state, run.failed_tests) == ("failed", 1)
    prompt = house.claim()["prompt"]["text"]
    assert "test_add" in prompt
    assert "one and two are three" in prompt


def test_what_a_gate_said_is_not_forgotten_when_the_repairing_worker_dies(build: Build) -> None:
    house = build(piece("a"))
    house.work({"new.py": "BROKEN\n"})
    document = house.claim()
    long_ago(Lease.objects.get(pk=document["lease"]["id"]), "expires_at")
    house.drain()
    assert "./new.py:1:BROKEN" in house.claim(make_worker())["prompt"]["text"]


def test_when_the_repairs_are_used_up_the_patches_are_set_aside_and_the_run_with_them(build: Build) -> None:
    house = build(*chain("a", "b"))
    for attempt in range(3):
        house.work({"new.py": f"BROKEN in another way: {'x' * attempt}\n"})
    assert house.states() == {"a": "failed", "b": "cancelled"}
    assert house.task("b").state_reason == "dependency_failed"
    assert [patch.state for patch in house.patches()] == ["quarantined"] * 3
    assert house.run.state == "quarantined"
    assert "a failed" in house.run.state_reason
    assert house.head == house.first_commit
    assert claims.claim(house.worker) is None
    house.must_hold()


def test_with_strategy_continue_the_independent_branch_goes_on_and_the_run_still_fails(build: Build) -> None:
    house = build(
        piece("a", conflict_group="g"),
        piece("b", conflict_group="g"),
        error_handling={"strategy": "continue"},
    )
    for attempt in range(3):
        document = house.claim()
        if document["task"]["key"] == "b":
            house.report(document, house.submit(document, {"b.py": "b = 1\n"}))
            house.drain()
            document = house.claim()
        house.report(document, house.submit(document, {"a.py": f"BROKEN {'x' * attempt}\n"}))
        house.drain()
    if house.states()["b"] == "queued":
        house.work({"b.py": "b = 1\n"})
    assert house.states() == {"a": "failed", "b": "completed"}
    assert {patch.state for patch in house.patches("a")} == {"dropped"}
    assert house.run.state == "failed"
    assert len(house.new_commits()) == 1
    house.must_hold()


def test_a_forbidden_path_never_reaches_the_queue(build: Build) -> None:
    house = build(piece("a"))
    patch = house.work({"secret/key.txt": "hush\n"})
    patch.refresh_from_db()
    assert (patch.state, patch.last_error_code) == ("apply_failed", "files_scope_violation")
    assert not patch.scope_ok
    assert patch.queue_items.count() == 0
    assert house.gate_runs() == []
    assert house.task("a").count_repairs == 1
    document = house.claim()
    assert "secret/key.txt" in document["prompt"]["text"]
    house.must_hold()


def test_a_dead_workers_task_is_given_back_and_its_late_report_changes_nothing(build: Build) -> None:
    house = build(piece("a"))
    document = house.claim()
    patch_of_the_dead = house.edit(document, {"a.py": "late\n"})
    lease = Lease.objects.get(pk=document["lease"]["id"])
    long_ago(lease, "expires_at")
    house.drain()
    task = house.task("a")
    assert (task.state, task.count_infra, task.count_failures, task.last_outcome) == ("queued", 1, 0, "infra_lost")
    house.worker.refresh_from_db()
    assert house.worker.state == "crashed"

    second = make_worker()
    again = house.claim(second)
    assert again["lease"]["generation"] == 2
    with pytest.raises(StaleClaim) as refused:
        claims.complete(lease, generation=1, by=claims.actor(house.worker, 1), exit_code=0)
    refused.value.leave_trace()
    assert Event.objects.filter(kind="lease.stale_report", subject_id=lease.pk).count() == 1
    assert house.task("a").state == "running"
    house.report(again, house.submit(again, {"a.py": "good\n"}))
    house.drain()
    assert house.run.state == "succeeded"
    assert house.file("a.py") == "good"
    assert patch_of_the_dead
    assert house.costs() == {"a2": ("landed", "")}
    assert list(
        StepAttempt.objects.filter(run=house.run).order_by("sequence").values_list("outcome", "error_code")
    ) == [
        ("infra_lost", "worker_lost"),
        ("success", ""),
    ]
    house.must_hold()


def test_a_worker_that_dies_for_ever_fails_the_task_when_the_infrastructure_retries_are_used_up(build: Build) -> None:
    house = build(piece("a"))
    for _ in range(4):
        document = house.claim(make_worker())
        long_ago(Lease.objects.get(pk=document["lease"]["id"]), "expires_at")
        house.drain()
    assert house.task("a").state == "failed"
    assert house.task("a").count_infra == 3
    assert house.run.state == "failed"
    house.must_hold()


def test_a_task_over_its_time_is_asked_to_stop_and_ends_as_failed(build: Build) -> None:
    house = build(piece("a", execution={"timeout_seconds": 60, "max_attempts": 1}))
    document = house.claim()
    lease = Lease.objects.get(pk=document["lease"]["id"])
    long_ago(lease, "timeout_at")
    house.drain()
    lease.refresh_from_db()
    assert lease.is_live
    assert (lease.stop_label, lease.stop_outcome) == ("stop requested", "task_failed")
    quoted = [{"id": lease.pk, "generation": 1, "stopping": True}]
    assert heartbeats.heartbeat(house.worker.pk, api_key_id=None, leases=quoted)["directive"] == "stop"
    lease.refresh_from_db()
    assert lease.stop_label == "stopping"
    claims.fail(lease, generation=1, outcome="cancelled", by=claims.actor(house.worker, 1), exit_code=130)
    house.drain()
    task = house.task("a")
    assert (task.state, task.last_outcome, task.last_error) == ("failed", "task_failed", "timed out after 60 s")
    attempt = StepAttempt.objects.get(task=task)
    assert (attempt.outcome, attempt.error_code) == ("task_failed", "timeout_exceeded")
    lease.refresh_from_db()
    assert lease.stop_label == "stopped"
    assert house.run.state == "failed"
    house.must_hold()


def test_a_worker_that_does_not_stop_by_the_deadline_is_crashed_and_its_attempt_failed(build: Build) -> None:
    house = build(piece("a", execution={"timeout_seconds": 60, "max_attempts": 1}))
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    long_ago(lease, "timeout_at", "expires_at", "deadline_at")
    house.drain()
    house.worker.refresh_from_db()
    assert (house.worker.state, house.worker.crash_message) == ("crashed", "did not stop")
    attempt = StepAttempt.objects.get(run=house.run)
    assert (attempt.outcome, attempt.error_code) == ("task_failed", "timeout_exceeded")
    assert house.states() == {"a": "failed"}
    house.must_hold()


def test_cancelling_a_run_waits_for_the_live_lease_and_then_ends_it(build: Build) -> None:
    house = build(*chain("a", "b"))
    document = house.claim()
    lease = Lease.objects.get(pk=document["lease"]["id"])
    house.run.cancel(by=BY, reason="not wanted")
    house.drain()
    assert (house.run.state, house.run.ending_to) == ("running", "canceled")
    assert house.states() == {"a": "running", "b": "cancelled"}
    quoted = [{"id": lease.pk, "generation": 1}]
    assert heartbeats.heartbeat(house.worker.pk, api_key_id=None, leases=quoted)["directive"] == "stop"
    claims.fail(lease, generation=1, outcome="cancelled", by=claims.actor(house.worker, 1))
    house.drain()
    assert house.run.state == "canceled"
    assert house.states() == {"a": "cancelled", "b": "cancelled"}
    house.worker.refresh_from_db()
    assert house.worker.state == "idle"
    house.must_hold()


def test_a_success_that_is_reported_while_the_run_winds_down_does_not_land(build: Build) -> None:
    house = build(piece("a"))
    document = house.claim()
    patch = house.submit(document, {"a.py": "a = 1\n"})
    house.run.cancel(by=BY, reason="not wanted")
    house.report(document, patch)
    house.drain()
    assert house.run.state == "canceled"
    assert house.states() == {"a": "cancelled"}
    patch.refresh_from_db()
    assert patch.state == "dropped"
    assert house.head == house.first_commit
    house.must_hold()


def test_a_worker_that_dies_while_its_cancelled_task_stops_does_not_bring_the_task_back(
    build: Build,
) -> None:
    house = build(piece("a", is_critical=False), piece("b", depends_on=["a"], is_critical=False))
    document = house.claim()
    lease = Lease.objects.get(pk=document["lease"]["id"])
    house.task("a").cancel(by=BY, reason="not wanted")
    long_ago(lease, "expires_at")
    house.drain()
    assert house.states() == {"a": "cancelled", "b": "cancelled"}
    lease.refresh_from_db()
    assert lease.stop_label == "stopped, unconfirmed"
    assert house.run.is_finished
    house.must_hold()


def test_a_patch_that_a_dead_worker_left_behind_does_not_land_beside_its_successor(build: Build) -> None:
    house = build(piece("a"))
    document = house.claim()
    orphan = house.submit(document, {"orphan.py": "o = 1\n"})
    long_ago(Lease.objects.get(pk=document["lease"]["id"]), "expires_at")
    house.drain()
    orphan.refresh_from_db()
    assert (orphan.state, orphan.state_reason) == ("dropped", "its attempt ended as infra_lost")
    again = house.claim(make_worker())
    house.report(again, house.submit(again, {"a.py": "a = 1\n"}))
    house.drain()
    assert house.run.state == "succeeded"
    assert len(house.new_commits()) == 1
    house.must_hold()


def test_nothing_is_claimed_under_a_hold(build: Build) -> None:
    house = build(piece("a"))
    for scope, target in (
        ("installation", ""),
        ("project", house.project.pk),
        ("workstream", house.workstream.pk),
        ("run", house.run.pk),
        ("task", house.task("a").pk),
    ):
        hold = Hold.objects.place(scope, target, reason="wait", by=BY)
        assert claims.claim(house.worker) is None
        hold.release(by=BY)
    assert house.claim()["task"]["key"] == "a"


def test_a_run_whose_task_needs_no_patch_ends_with_its_report(build: Build) -> None:
    house = build(piece("a", kind="research", requires_patch=False))
    house.report(house.claim())
    house.drain()
    assert house.run.state == "succeeded"
    assert house.new_commits() == []
    assert house.costs() == {"a1": ("landed", "")}
    house.must_hold()


def test_a_required_patch_that_is_missing_is_a_failure_of_the_attempt(build: Build) -> None:
    house = build(piece("a", execution={"max_attempts": 2}))
    house.report(house.claim())
    house.drain()
    task = house.task("a")
    assert (task.state, task.count_failures, task.count_repairs) == ("queued", 1, 0)
    assert StepAttempt.objects.get(task=task).error_code == "patch_missing"
    house.report(house.claim())
    house.drain()
    assert house.states() == {"a": "failed"}
    assert house.costs() == {"a1": ("waste", "task_failed"), "a2": ("waste", "task_failed")}
    house.must_hold()


def test_without_a_required_gate_a_patch_stays_applied(build: Build) -> None:
    house = build(piece("a"), gates={"words": {"required": False}})
    patch = house.work({"a.py": "a = 1\n"})
    patch.refresh_from_db()
    assert patch.state == "applied"
    assert house.states() == {"a": "validating"}
    assert house.head == house.first_commit
    house.must_hold()


def test_a_waiver_of_what_the_machine_failed_lets_the_patch_land(build: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    house = build(piece("a"))

    def broken(*_arguments: Any, **_options: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(runner, "execute", broken)
    patch = house.work({"a.py": "a = 1\n"})
    patch.refresh_from_db()
    assert patch.state == "applied"
    runs = house.gate_runs()
    assert [(run.state, run.error_kind) for run in runs] == [("error", "infra")] * 3
    assert [run.retry_of_id for run in runs] == [None, runs[0].pk, runs[1].pk]
    assert house.task("a").count_repairs == 0
    runs[-1].waive("the disk is full, and the change is a comment", by=BY)
    house.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    assert house.run.state == "succeeded"
    house.must_hold()


def test_a_second_run_that_makes_the_same_patch_waits_for_whoever_owns_the_first_in_quarantine(build: Build) -> None:
    house = build(piece("a"))
    for _ in range(3):
        house.work({"a.py": "BROKEN\n"})
    assert house.run.state == "quarantined"
    (patch,) = house.patches()
    house.run = house.run.retry(by=BY)
    house.run.start(by=BY)
    house.gates["words"].edit(by=BY, command=["true"])
    assert house.work({"a.py": "BROKEN\n"}) == patch
    assert house.states() == {"a": "validating"}
    patch.refresh_from_db()
    patch.release(by=BY, reason="the gate was wrong")
    house.drain()
    assert house.run.state == "succeeded"
    assert len(house.new_commits()) == 1
    house.must_hold()


POINTS = [
    "claim.locked", "claim.granted", "submit.locked", "submit.stored", "finish.locked", "finish.done",
    "validate.judged", "build.started", "build.done", "gate.started", "gate.copied", "gate.executed", "gate.judged",
    "gate.done", "land.before_ref", "land.after_ref", "land.booked", "land.done", "build.applied",
]  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
def test_a_death_at_any_point_changes_nothing_in_the_end(
    build: Build, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    house = build(*chain("a", "b"))
    deaths = Deaths(monkeypatch)
    deaths.arm(point)

    def surely(work: Callable[[], Any]) -> Any:
        """Do it, and do it again when somebody died of it."""
        try:
            return work()
        except Died:
            GateRun.objects.filter(state="running").update(seen_at=house.first_seen)
            return work()

    house.first_seen = house.run.created_at - claims.DEADLINE_GRACE * 2
    for key in "ab":
        document = surely(house.claim)
        patch = surely(lambda document=document, key=key: house.submit(document, {f"{key}.py": "x = 1\n"}))
        surely(lambda document=document, patch=patch: house.report(document, patch))
        surely(house.drain)
    assert deaths.number == 1
    assert house.run.state == "succeeded"
    assert [patch.state for patch in house.patches()] == ["committed"] * 2
    assert len(house.new_commits()) == 2
    assert house.costs() == {"a1": ("landed", ""), "b1": ("landed", "")}
    for kind in ("patch.committed", "queue_item.landed", "task.completed", "lease.ended"):
        assert Event.objects.filter(project_id=house.project.pk, kind=kind).count() == 2
    house.must_hold()
