"""Tests that failed, once more: alone first, which is cheap, and then among all others, where they failed (0033)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gates import flaky_reruns
from gates.evidence import TEST_KINDS, Tree
from gates.junit import ERROR, FAIL, FLAKY_PASS, MAX_MESSAGE_CHARS, PASS, Results, TestCase, final_outcome
from gates.measuring.gathering import Again, Execute, Gathered, gather, ordinary
from gates.models import Gate, GateRun
from gates.runner import Execution

NOT_FLAKY = "It passes alone and fails again among the others, so it is no flaky test: "
UNSURE = "It passes alone, and could not be run again among the others, so it counts as failed: "
_BAD, _GOOD = frozenset({FAIL, ERROR}), frozenset({PASS, FLAKY_PASS})


def rerun_failed(
    gate_run: GateRun,
    gate: Gate,
    tree: Tree,
    gathered: Gathered,
    executed: Execution,
    execute: Execute,
    told: dict[str, Any],
) -> Execution:
    """Run what failed again, on a fresh copy, as often as the gate says; the execution whose exit code then counts.

    Only the tests that failed are judged again. A test that passes alone is flaky when it also passes in a further run
    of the whole command: one that depends on what runs before it fails there again, and has failed; so has one that
    fails there only. A flaky test is shown and counted, and forgiven only within bounds (criteria.MAX_FLAKY). All of it
    has the time that the gate's limit leaves.
    """
    reruns = _Reruns(gate_run, gate, tree, execute, told, gate.limit_seconds - executed.duration_seconds)
    first, ended = gathered.results, executed
    alone: list[TestCase] = []
    known = list(first.tests) if first is not None else []
    for number in range(1, gate.reruns + 1):
        results = gathered.results
        failed = flaky_reruns.failed(results) if results is not None else []
        if results is None or not failed or len(failed) > flaky_reruns.MOST:
            break
        command = flaky_reruns.command(gate_run.command, failed, tree)
        keys = {test.test_key for test in failed}
        once_more = reruns.run(command, keys, f"again-{number}")
        if once_more is None:
            break
        again = [test for test in once_more.tests if test.test_key in keys]
        (known if command == gate_run.command else alone).extend(again)
        gathered.results = Results.of((*results.tests, *again))
        ended = _ended(ended, once_more.execution, gathered.results, gate)
    passed_alone = _keys(_final(alone), _GOOD)
    if passed_alone:
        known += [test for test in alone if test.test_key not in passed_alone]
        return _among_all(reruns, gathered, executed, known, alone, passed_alone)
    return ended


def _among_all(
    reruns: _Reruns,
    gathered: Gathered,
    executed: Execution,
    known: Sequence[TestCase],
    alone: Iterable[TestCase],
    passed_alone: Collection[str],
) -> Execution:
    """Run everything again, and let those that passed alone be flaky only where they pass there too. `known` are the
    attempts so far, without what passed alone.
    """
    gate = reruns.gate
    whole = reruns.run(reruns.gate_run.command, passed_alone, "again-all")
    if whole is not None and whole.execution.exit_code not in ordinary(gate):
        whole = None  # it was killed, or gave up: what it reported is half of it
    seen = whole.tests if whole is not None else []
    final = _final(test for test in seen if test.test_key in passed_alone)
    flaky, again = _keys(final, _GOOD), _keys(final, _BAD)
    unsure = set(passed_alone) - flaky - again
    attempts = [_saying(UNSURE, test) if test.test_key in unsure and test.outcome in _BAD else test for test in known]
    attempts += [test for test in alone if test.test_key in flaky]
    for test in seen:
        if test.test_key in flaky:
            attempts.append(test)
        elif test.outcome in _BAD:  # one that passed before and fails now is told as well: something is wrong with it
            attempts.append(_saying(NOT_FLAKY, test) if test.test_key in again else test)
    gathered.results = Results.of(attempts)
    return _ended(executed, whole.execution, gathered.results, gate) if whole is not None else executed


@dataclass(frozen=True, slots=True)
class _Rerun:
    """A further execution, and what it said of tests."""

    execution: Execution
    tests: list[TestCase]


class _Reruns:
    """Further executions within one run, and the time that is left for them."""

    def __init__(
        self, gate_run: GateRun, gate: Gate, tree: Tree, execute: Execute, told: dict[str, Any], seconds: float
    ) -> None:
        self.gate_run, self.gate, self.tree, self.execute, self.told = gate_run, gate, tree, execute, told
        self.seconds = seconds

    def run(self, command: Sequence[str], keys: Collection[str], name: str) -> _Rerun | None:
        """Execute once more for the sake of these tests; None where there was no time for it, or it did not end."""
        if self.seconds < 1:
            return None
        execution, output = self.execute(Again(command, self.gate_run.tree_hash, name=name), self.seconds)
        self.seconds -= execution.duration_seconds
        if execution.exit_code is None or execution.timed_out or execution.output_limited:
            return None
        evidence_of = {kind: path for kind, path in self.gate.evidence.items() if kind in TEST_KINDS}
        results = gather(_only(self.gate, evidence_of), output, self.tree).results
        tests = list(results.tests) if results is not None else []
        reported = len({test.test_key for test in tests if test.test_key in keys})
        said = {"tests": len(keys), "reported": reported, "exit_code": execution.exit_code}
        self.told.setdefault("reruns", []).append(said if command != self.gate_run.command else {**said, "whole": True})
        return _Rerun(execution, tests)


def _ended(before: Execution, again: Execution, results: Results, gate: Gate) -> Execution:
    """`before`, with the exit code of the further execution where that has proven it wrong."""
    if not results.failed and again.exit_code in (gate.expected_exit_codes or [0]):
        return replace(before, exit_code=again.exit_code)
    return before


def _final(tests: Iterable[TestCase]) -> dict[str, str]:
    attempts: dict[str, list[str]] = {}
    for test in tests:
        attempts.setdefault(test.test_key, []).append(test.outcome)
    return {key: final_outcome(each) for key, each in attempts.items()}


def _keys(final: dict[str, str], outcomes: Collection[str]) -> set[str]:
    return {key for key, outcome in final.items() if outcome in outcomes}


def _saying(what: str, test: TestCase) -> TestCase:
    return replace(test, message=f"{what}{test.message}"[:MAX_MESSAGE_CHARS])


def _only(gate: Gate, declared: dict[str, str]) -> Gate:
    """The gate as if it declared this evidence only; not to be saved."""
    return Gate(project_id=gate.project_id, key=gate.key, cwd=gate.cwd, shards=gate.shards, evidence=declared)
