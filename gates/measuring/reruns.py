"""Tests that failed, once more."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gates import flaky_reruns
from gates.evidence import TEST_KINDS, Tree
from gates.junit import Results
from gates.measuring.gathering import Again, Execute, Gathered, gather
from gates.models import Gate, GateRun
from gates.runner import Execution


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

    Only the tests that failed are judged again: one that passed has passed. A test that then passes is flaky, which is
    shown and counted, and forgiven only within bounds (criteria.MAX_FLAKY).
    """
    ended = executed
    spent = executed.duration_seconds
    for number in range(1, gate.reruns + 1):
        results = gathered.results
        failed = flaky_reruns.failed(results) if results is not None else []
        if not failed or len(failed) > flaky_reruns.MOST:
            break
        left = gate.limit_seconds - spent
        if left < 1:
            break
        command = flaky_reruns.command(gate_run.command, failed, tree)
        once_more, output = execute(Again(command, gate_run.tree_hash, name=f"again-{number}"), left)
        spent += once_more.duration_seconds
        if once_more.exit_code is None or once_more.output_limited:
            break
        keys = {test.test_key for test in failed}
        tests_only = Gathered()
        evidence_of = {kind: path for kind, path in gate.evidence.items() if kind in TEST_KINDS}
        tests_only = gather(_only(gate, evidence_of), output, tree)
        again = [test for test in tests_only.results.tests if test.test_key in keys] if tests_only.results else []
        told.setdefault("reruns", []).append(
            {"tests": len(keys), "reported": len({t.test_key for t in again}), "exit_code": once_more.exit_code}
        )
        assert results is not None
        gathered.results = Results.of((*results.tests, *again))
        if not gathered.results.failed and once_more.exit_code in (gate.expected_exit_codes or [0]):
            ended = replace(executed, exit_code=once_more.exit_code)
    return ended


def _only(gate: Gate, declared: dict[str, str]) -> Gate:
    """The gate as if it declared this evidence only; not to be saved."""
    return Gate(project_id=gate.project_id, key=gate.key, cwd=gate.cwd, shards=gate.shards, evidence=declared)
