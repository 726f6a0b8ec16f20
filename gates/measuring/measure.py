"""What one run of a gate measured: its evidence read and counted again, held against the patch and the base, judged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gates import criteria, environment, sarif
from gates.evidence import SHARD, Tree
from gates.junit import Results
from gates.measuring.gathering import Execute, Gathered, gather, ordinary
from gates.measuring.goalposts import goalposts_clean
from gates.measuring.patch_coverage import with_coverage
from gates.measuring.reruns import rerun_failed
from gates.models import FlakyTest, Gate, GateRun
from gates.runner import Execution
from gates.sarif import Found

NOT_STARTED = 126  # from here on shells speak of commands that were not there, or that a signal ended


def measure(
    gate_run: GateRun,
    tree: Tree,
    output: Path,
    executed: Execution,
    execute: Execute | None,
    *,
    shards: int | None = None,
    lost: str = "the runner was lost",
) -> dict[str, Any]:
    """The arguments of GateRun.complete for a run whose command ended as `executed` and left `output`.

    `execute` runs a command again on a fresh copy: failed tests once more, and the tests of the base on the patch. None
    where somebody else ran it: nothing is run again. `shards` is how many that one says its reports are of,
    where they are not told apart, and `lost` how they end who have neither exit code nor timeout.
    """
    gate = gate_run.gate_as_asked()
    gathered = gather(gate, output, tree)
    if shards is not None and gathered.shards_seen and not any(SHARD in path for path in gate.evidence.values()):
        gathered.shards_seen = shards
    ended = executed
    told: dict[str, Any] = {**gathered.told, "notes": list(executed.notes), "killed": executed.killed}
    broken = executed.output_limited or executed.timed_out or executed.exit_code is None
    if execute is not None and executed.exit_code in ordinary(gate) and not broken and not gate_run.baseline:
        ended = rerun_failed(gate_run, gate, tree, gathered, executed, execute, told)
    if executed.output_limited:
        gathered.results = gathered.coverage = gathered.found = None
    results = gathered.results or Results(parsed=False, counted=False)
    says: dict[str, str] = {}
    base = None if gate_run.baseline else GateRun.objects.on_base(gate_run)
    found = gathered.found or ()
    if gate_run.baseline:
        new: dict[str, int] | None = None
    else:
        found, new = _against_base(gate_run, gathered.found, base, says)
    if gathered.coverage is not None:
        results = with_coverage(gate_run, gathered.coverage, results, says, told)
    clean = None
    if "goalposts" in gate_run.criteria and not broken:
        clean = goalposts_clean(gate_run, gate, execute, says, told, gathered.results, executed)
    anything = gathered.results is not None or gathered.coverage is not None or gathered.found is not None
    results = replace(
        results,
        findings=len(gathered.found) if gathered.found is not None else None,
        new_findings=new,
        goalposts_clean=clean,
        told=says,
    )
    judged_results = results if anything or clean is not None else None
    judgement = criteria.evaluate(
        gate_run.criteria,
        judged_results,
        exit_code=ended.exit_code,
        expected_exit_codes=gate.expected_exit_codes or [0],
        finding_exit_codes=gate.finding_exit_codes or criteria.FINDING_EXIT_CODES,
        timed_out=executed.timed_out,
        output_limited=executed.output_limited,
        infra=lost if executed.exit_code is None and not executed.timed_out and not executed.output_limited else "",
        duration_seconds=executed.duration_seconds,
        evidence_declared=list(gate.evidence),
        shards_expected=gate.shards,
        shards_seen=gathered.shards_seen,
        base=_results_of(base),
        missing=gathered.missing,
        quarantined=FlakyTest.objects.keys_of(gate_run.project_id),
    )
    if gate_run.baseline:
        judgement = _of_baseline(judgement, gathered, broken=broken or _gave_up(gate, executed.exit_code))
    elif gate.compares_with_base and base is None and judgement.state == "failed" and _is_lost(gate_run):
        why = "the base could not be measured, and it was not the patch's fault"
        judgement = criteria.Judgement("error", "infra", None, f"Error (infra): {why}")
    if executed.error and judgement.state == "error":
        judgement = replace(judgement, reason=f"{judgement.reason} ({executed.error})")
    return {
        "judgement": judgement,
        "results": results if anything else None,
        "exit_code": executed.exit_code,
        "duration_seconds": f"{executed.duration_seconds:.3f}",
        "output_tail": executed.output,
        "sandbox_level": executed.level,
        "evidence": told,
        "shards_seen": gathered.shards_seen if gathered.results is not None else 0,
        "environment": environment.digest(gate, executed.level),
        "findings": found,
    }


def _of_baseline(judgement: criteria.Judgement, gathered: Gathered, *, broken: bool) -> criteria.Judgement:
    """A run on the base judges nobody: it passed when it measured what it was to measure, whatever that is."""
    if broken and judgement.state == "error":
        return judgement
    if broken:
        return criteria.Judgement("error", "command", None, "Error (command): it did not finish its work on the base")
    if gathered.missing:
        return criteria.Judgement("failed", "", False, f"Not measured: {'; '.join(gathered.missing.values())}")
    return criteria.Judgement("passed", "", True, "Measured on the base, for others to be compared with")


def _gave_up(gate: Gate, exit_code: int | None) -> bool:
    """Whether the tool left half of its work, by its exit code. pytest has one for a base without tests: those are
    counted all the same, but what a scanner leaves may be half a list.
    """
    if exit_code in ordinary(gate):
        return False
    return exit_code is None or exit_code >= NOT_STARTED or "sarif" in gate.evidence


def _is_lost(gate_run: GateRun) -> bool:
    """Whether the machine failed every measurement of the base."""
    on_base = GateRun.objects.filter(
        gate=gate_run.gate_id, gate_version=gate_run.gate_version, tree_hash=gate_run.base_tree, baseline=True
    )
    return on_base.exists() and not on_base.exclude(error_kind=GateRun.ErrorKind.INFRA).exists()


def _results_of(base: GateRun | None) -> Results | None:
    """The counts of a run on the base, or None when it counted no tests."""
    if base is None:
        return None
    counted = base.parsed and base.shards_seen > 0
    return Results(
        base.total_tests, base.passed_tests, base.failed_tests, base.skipped_tests, base.flaky_tests, counted=counted
    )


def _against_base(
    gate_run: GateRun, found: tuple[Found, ...] | None, base: GateRun | None, says: dict[str, str]
) -> tuple[tuple[Found, ...], dict[str, int] | None]:
    """The findings with what is new decided, and the new ones by level; None when there is nothing to compare with."""
    if found is None:
        return (), None
    if base is None:
        says["base"] = "the base was not measured by this gate"
        return found, None
    if "findings" not in _told_of(base.evidence.get("sarif", {})):
        says["base"] = "the report of findings on the base could not be read"
        return found, None
    judged = sarif.against(found, base.findings.values_list("fingerprint", flat=True))
    return judged, sarif.new_by_level(judged)


def _told_of(said: Any) -> Mapping[str, Any]:
    """What was noted about a kind of evidence; of several shards, whatever all of them have."""
    if not isinstance(said, dict) or "shards" not in said:
        return said if isinstance(said, dict) else {}
    shards = list(said["shards"].values())
    return {key: shards[0][key] for key in shards[0] if all(key in one for one in shards)}
