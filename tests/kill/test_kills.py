"""kill -9 of agent, gates' worker and web process, and a dead broker: the run ends as it should, each result once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.kill.stack import Stack, percentile

pytestmark = pytest.mark.kill


@pytest.fixture(scope="module")
def shared() -> Iterator[Stack]:
    """One stack for all of them: starting it takes longer than most of these walks."""
    stack = Stack()
    try:
        stack.start()
        yield stack
    finally:
        stack.end()


@pytest.fixture
def stack(shared: Stack) -> Iterator[Stack]:
    """The stack without agents."""
    yield shared
    shared.dismiss()


def test_an_agent_that_is_killed_in_mid_task_loses_nothing_but_time(stack: Stack) -> None:
    walk = stack.walk("a", "b", "c", agent_seconds=3)
    doomed = stack.agent()
    stack.until(lambda: stack.value("SELECT id FROM workers_lease WHERE ended_at IS NULL"), 30, "a task is claimed")
    time.sleep(1.5)  # into the tool's work: the point is that it is killed in the middle
    doomed.kill()
    doomed.wait()
    stack.agent()
    stack.succeeds(walk, 120)
    outcomes = "SELECT outcome, count(*) FROM pipeline_stepattempt WHERE run_id = %s GROUP BY 1"
    assert dict(stack.rows(outcomes, walk.run_uuid)) == {"success": 3, "infra_lost": 1}


def test_a_gates_worker_that_is_killed_in_mid_gate_has_its_gate_run_again(stack: Stack) -> None:
    walk = stack.walk("a", "b", gate_seconds=4)
    stack.agent()
    running = "SELECT id FROM gates_gaterun WHERE state = 'running'"
    gate_run = stack.until(lambda: stack.value(running), 60, "a gate runs")
    time.sleep(1)  # into the command
    killed = stack.kill("gates@")
    stack.until(lambda: [pid for pid in stack.processes("gates@") if pid != killed], 30, "another worker is there")
    stack.succeeds(walk, 180)
    (state, kind) = stack.rows("SELECT state, error_kind FROM gates_gaterun WHERE id = %s", gate_run)[0]
    assert (state, kind) == ("error", "infra")
    assert stack.value("SELECT count(*) FROM gates_gaterun WHERE retry_of_id = %s", gate_run) == 1


def test_a_web_process_that_dies_in_mid_claim_has_given_nothing_away(stack: Stack) -> None:
    stack.stop()
    # Every web process dies in its second claim, when everything is written and nothing committed.
    stack.start(FAULT="claim.granted:2")
    try:
        walk = stack.walk("a", "b", "c")
        first = stack.processes("uvicorn")
        stack.agent()
        stack.succeeds(walk, 120)
        assert stack.processes("uvicorn") != first
        assert "exit code 137" in stack.log.read_text()
        # What died had raised no generation, and the claim that was made then was the first.
        generations = stack.rows(
            "SELECT key, generation FROM pipeline_task WHERE run_id = %s ORDER BY 1", walk.run_uuid
        )
        assert generations == [("a", 1), ("b", 1), ("c", 1)]
    finally:
        stack.stop()
        stack.start()


def test_a_reaction_that_kills_its_process_harms_nobody_else_and_is_shown() -> None:
    stack = Stack()
    try:
        # Every process dies as soon as it reacts to the release of a hold.
        stack.start(FAULT="react.hold.released")
        walk = stack.walk("a")
        for verb in ("hold", "release"):
            assert stack.post(f"/api/v1/runs/{walk.run}/{verb}/", {"reason": "look"})[0] in (200, 201)
        stack.agent()
        ended = "SELECT state FROM pipeline_run WHERE id = %s AND state = 'succeeded'"
        stack.until(lambda: stack.value(ended, walk.run_uuid), 120, "the run succeeds all the same")
        booked = "SELECT deaths FROM pipeline_failedreaction WHERE error = 'its process died' AND deaths > 1"
        deaths = stack.until(lambda: stack.value(booked), 60, "two deaths are counted")
        # Uncounted are the nudge, its one redelivery by Celery and the first sweep, and one may die right now.
        assert stack.log.read_text().count("exited with 'exitcode 137'") <= deaths + 4
    finally:
        stack.end()


def test_while_the_broker_is_gone_requests_answer_and_everything_catches_up(stack: Stack) -> None:
    walk = stack.walk("a", "b", "c", "d")
    stack.agent()
    stack.until(
        lambda: stack.value("SELECT id FROM ledger_patch WHERE state = 'committed' AND run_id IS NOT NULL"),
        60,
        "a patch landed",
    )
    stack.freeze("valkey")
    answers = []
    try:
        end = time.monotonic() + 30
        with ThreadPoolExecutor(4) as pool:
            while time.monotonic() < end:
                answers += pool.map(stack.get, ["/healthz", "/api/v1/projects/", "/api/v1/runs/", "/login/"])
                # The release is an event that somebody reacts to: the only kind of request that nudges the broker.
                for verb in ("hold", "release"):
                    answers.append(stack.post(f"/api/v1/runs/{walk.run}/{verb}/", {"reason": "look"}))
                time.sleep(0.2)
    finally:
        stack.resume("valkey")
    assert {status for status, _seconds in answers} <= {200, 201, 409}
    assert percentile((seconds for _status, seconds in answers), 0.95) < 2
    stack.succeeds(walk, 120)
