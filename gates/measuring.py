"""What one run of a gate measured: its evidence read and counted again, held against the patch and the base, judged."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gates import coverage, criteria, environment, evidence, flaky_reruns, goalposts, junit, sarif
from gates.coverage import Coverage
from gates.evidence import SHARD, TEST_KINDS, EvidenceRefused, Missing, Tree
from gates.goalposts import Change, Moved, count, moved
from gates.junit import ERROR, FAIL, SKIP, Results, TestCase
from gates.models import FlakyTest, Gate, GateRun
from gates.reading import UNKNOWN_LENGTH
from gates.runner import Execution
from gates.sarif import Found
from ledger import git
from ledger.regions import regions_of

MISSED_SHOWN = 200
MOVED_SHOWN = 200
NAMES_NOTED = 1000  # of tests that ran on a base; of more, their number alone
NOT_STARTED = 126  # from here on shells speak of commands that were not there, or that a signal ended
SANDBOX_TREE = "/src"  # where a command in the box sees the tree
# What these write are no tests: linters name a case for every file that they complain about.
_NOT_COUNTED = frozenset({Gate.Type.LINT, Gate.Type.SECURITY_SCAN})
_CODE = (
    ".py", ".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs", ".go", ".rs",
    ".java", ".kt", ".rb", ".c", ".cc", ".cpp", ".cs", ".php", ".swift", ".scala",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Again:
    """A further execution within a run: of which command, on which tree, with which files of another laid over it."""

    command: Sequence[str]
    tree_hash: str
    overlay: Mapping[str, bytes | None] = field(default_factory=dict)
    name: str = "again"


Execute = Callable[[Again, float], tuple[Execution, Path]]
"""Makes a fresh copy, executes in it for at most that many seconds; how it ended, and its folder of evidence."""


@dataclass(slots=True)
class Gathered:
    """The evidence of one execution: what could be read, what not and why, and what is to be kept about it."""

    results: Results | None = None
    coverage: Coverage | None = None
    found: tuple[Found, ...] | None = None
    missing: dict[str, str] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    shards_seen: int = 0


def look(gate: Gate, tree: Path) -> Tree:
    """The files that reports may speak of, before the command can touch them."""
    return evidence.survey(tree, seen_as=(SANDBOX_TREE,), cwd=gate.cwd)


def look_in_mirror(gate_run: GateRun) -> Tree:
    """The same of a tree that was run elsewhere: its files' names, from the mirror; how long they are is not known.

    A tree that the mirror does not have has no files: no report may speak of any.
    """
    gate = gate_run.gate
    try:
        names = [file.path for file in git.files(gate_run.project.mirror, gate_run.tree_hash)]
    except (git.UnknownCommit, git.GitFailed):
        names = []
    return Tree(dict.fromkeys(names, UNKNOWN_LENGTH), (SANDBOX_TREE,), gate.cwd if gate else "")


def gather(gate: Gate, output: Path, tree: Tree) -> Gathered:
    """Everything that the command left in `output`, read in the bounded child, shard by shard, and joined."""
    gathered = Gathered()
    read: dict[str, list[Any]] = {}
    # Where no path says which shard, what is there is one of them, whatever their number.
    by_shard = any(SHARD in path for path in gate.evidence.values())
    shards = range(1, gate.shards + 1) if by_shard else range(1, 2)
    complete = dict.fromkeys(shards, True)
    for shard in shards:
        declared = {kind: path.replace(SHARD, str(shard)) for kind, path in gate.evidence.items()}
        for kind, content in evidence.collect(output, declared).items():
            told = _read(kind, content, tree, read)
            if "missing" in told or "refused" in told:
                complete[shard] = False
                gathered.missing.setdefault(kind, str(told.get("missing") or told.get("refused")))
            _note(gathered.told, kind, shard if by_shard else 0, told)
    gathered.shards_seen = sum(complete.values()) if gate.evidence else gate.shards
    if any(kind in read for kind in TEST_KINDS):
        gathered.results = junit.join(one for kind in TEST_KINDS for one in read.get(kind, ()))
    if "coverage" in read:
        gathered.coverage = read["coverage"][0] if len(read["coverage"]) == 1 else coverage.join(read["coverage"])
    if "sarif" in read:
        gathered.found = tuple(one for each in read["sarif"] for one in each)
    return gathered


def _read(kind: str, content: bytes | Missing, tree: Tree, read: dict[str, list[Any]]) -> dict[str, Any]:
    if isinstance(content, Missing):
        return {"missing": content.reason}
    told = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    try:
        found = evidence.read(kind, content, tree)
    except EvidenceRefused as refusal:
        return {**told, "refused": str(refusal)}
    read.setdefault(kind, []).append(found)
    return {**told, **evidence.describe(found)}


def _note(told: dict[str, Any], kind: str, shard: int, said: dict[str, Any]) -> None:
    if not shard:
        told[kind] = said
    else:
        told.setdefault(kind, {"shards": {}})["shards"][str(shard)] = said


# --- the whole measurement ----------------------------------------------------------------------------------------


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
    gate = gate_run.gate
    assert gate is not None
    gathered = gather(gate, output, tree)
    if shards is not None and gathered.shards_seen and not any(SHARD in path for path in gate.evidence.values()):
        gathered.shards_seen = shards
    ended = executed
    told: dict[str, Any] = {**gathered.told, "notes": list(executed.notes), "killed": executed.killed}
    broken = executed.output_limited or executed.timed_out or executed.exit_code is None
    if execute is not None and executed.exit_code in _ordinary(gate) and not broken and not gate_run.baseline:
        ended = _rerun_failed(gate_run, gate, tree, gathered, executed, execute, told)
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
        results = _with_coverage(gate_run, gathered.coverage, results, says, told)
    clean = None
    if "goalposts" in gate_run.criteria and not broken:
        clean = _goalposts(gate_run, gate, execute, says, told, gathered.results, executed)
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
    if exit_code in _ordinary(gate):
        return False
    return exit_code is None or exit_code >= NOT_STARTED or "sarif" in gate.evidence


def _ordinary(gate: Gate) -> set[int]:
    """The exit codes with which the tool says that it did its work."""
    return {*(gate.expected_exit_codes or [0]), *(gate.finding_exit_codes or criteria.FINDING_EXIT_CODES)}


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


# --- coverage of the patch ----------------------------------------------------------------------------------------


def _with_coverage(
    gate_run: GateRun, report: Coverage, results: Results, says: dict[str, str], told: dict[str, Any]
) -> Results:
    results = replace(results, coverage_percent=report.percent)
    says["coverage"] = f"{report.covered} of {report.executable} lines ran"
    if report.unknown:
        says["coverage"] += f"; {report.unknown} files that the tree does not have were left out"
    if report.percent is None:
        says["coverage"] = "the report names no line that can run"
    if not gate_run.base_tree or gate_run.baseline:
        says["patch_coverage"] = "there is no base to tell the patch's lines from"
        return results
    added, code = _added(gate_run)
    of_patch = coverage.of_patch(report, added, code)
    if of_patch.unreported:
        says["patch_coverage"] = f"the report is silent about {', '.join(of_patch.unreported[:5])}"
    elif not of_patch.executable:
        says["patch_coverage"] = "the patch adds no line that the report calls executable"
    else:
        says["patch_coverage"] = f"{of_patch.covered} of {of_patch.executable} added lines ran"
    told["patch_coverage"] = {
        "covered": of_patch.covered,
        "executable": of_patch.executable,
        "missed": [f"{path}:{line}" for path, line in of_patch.missed[:MISSED_SHOWN]],
        "unreported": list(of_patch.unreported[:MISSED_SHOWN]),
    }
    return replace(results, patch_coverage_percent=of_patch.percent)


def _added(gate_run: GateRun) -> tuple[dict[str, frozenset[int]], frozenset[str]]:
    """The lines that the patch adds, by path, and in which of the paths they are code that tests should run."""
    text = git.diff_text(gate_run.project.mirror, gate_run.base_tree, gate_run.tree_hash)
    added: dict[str, frozenset[int]] = {}
    code = set()
    for file in regions_of(text):
        lines = {region.new_start + place for region in file.regions for place in range(len(region.added))}
        if not lines:
            continue
        added[file.path] = frozenset(lines)
        words = [line.strip() for region in file.regions for line in region.added]
        if file.path.endswith(_CODE) and not goalposts.is_test_path(file.path) and any(map(_says_something, words)):
            code.add(file.path)
    return added, frozenset(code)


def _says_something(line: str) -> bool:
    """Whether a line could be more than a comment or a bracket."""
    return bool(line) and not line.startswith(("#", "//", "/*", "*", '"""', "'''")) and any(map(str.isalnum, line))


# --- goalposts ----------------------------------------------------------------------------------------------------


def _goalposts(
    gate_run: GateRun,
    gate: Gate,
    execute: Execute | None,
    says: dict[str, str],
    told: dict[str, Any],
    results: Results | None,
    executed: Execution,
) -> bool | None:
    """Whether the patch left the goalposts where they were; None when that could not be found out."""
    if not gate_run.base_tree:
        says["goalposts"] = "there is no base to compare with"
        return None
    try:
        changes = _changes(gate_run)
        paths = [file.path for file in git.files(gate_run.project.mirror, gate_run.base_tree)]
        found = list(evidence.moved_goalposts([*changes, *_callers(gate_run, gate, changes, paths)], paths))
        found += _named_by_gate(gate_run, gate, changes)
        if gate.gate_type in _NOT_COUNTED:
            found = [one for one in found if _concerns(gate_run.command, one)]
    except (EvidenceRefused, git.GitFailed, git.UnknownCommit) as problem:
        says["goalposts"] = f"what the patch changed could not be looked at: {problem}"
        return None
    found += _counted(gate_run, gate, results, executed, execute, told)
    if gate.base_tests:
        further: list[Moved] = []
        unknown = "nobody ran the tests of the base on the patched source"
        try:
            if execute is not None:
                further, unknown = _base_tests(gate_run, gate, changes, execute, told, results)
        except git.GitFailed as problem:
            unknown = str(problem)
        found += further
        if unknown and not found:
            says["goalposts"] = unknown
            return None
    says["goalposts"] = goalposts.told(found)
    told["goalposts"] = [[one.kind, one.path, one.line, one.what] for one in found[:MOVED_SHOWN]]
    return not found


@dataclass(frozen=True, slots=True)
class _Ran:
    """The tests that passed or failed: how many, and which, as far as that is known."""

    number: int
    tests: Mapping[str, str] = field(default_factory=dict)


def _counted(
    gate_run: GateRun,
    gate: Gate,
    results: Results | None,
    executed: Execution,
    execute: Execute | None,
    told: dict[str, Any],
) -> list[Moved]:
    """What the number of tests that ran says: against the base's, and against the runner's own word."""
    found: list[Moved] = []
    now = _ran(gate, results, executed.output)
    if now is not None and gate.gate_type not in _NOT_COUNTED and gate_run.base_tree != gate_run.tree_hash:
        before = _ran_on_base(gate_run, gate, execute, told, gate.limit_seconds - executed.duration_seconds)
        if before is not None and results is not None and len(before.tests) == before.number:
            found += count.missing(before.tests, count.ran(results), "on the base")
        elif before is not None:
            found += count.fewer(before.number, now.number, "on the base")
    if results is not None and execute is not None and gate.shards == 1 and "junit" in gate.evidence:
        found += count.contradicted(gate_run.command, executed.output, results, gate.evidence["junit"])
    return found


def _ran(gate: Gate, results: Results | None, output: str) -> _Ran | None:
    """By the report where the gate declares one, otherwise by what the runner printed; None where neither tells it."""
    if any(kind in TEST_KINDS for kind in gate.evidence):
        if results is None:
            return None
        tests = count.ran(results)
        return _Ran(len(tests), tests)
    number = count.spoken(output)
    return None if number is None else _Ran(number)


def _ran_on_base(
    gate_run: GateRun, gate: Gate, execute: Execute | None, told: dict[str, Any], seconds: float
) -> _Ran | None:
    """The tests that ran on the base: by a run of the gate on it, by the note of an earlier run that asked the same, or
    measured now, in the time that is left. It is noted once for each base, so that the next patch on it need not.
    """
    base = GateRun.objects.on_base(gate_run)
    if base is not None and base.parsed:
        rows = base.results.exclude(outcome=SKIP).values_list("test_key", "file", "classname")
        tests = {key: file or classname for key, file, classname in rows}
        return _Ran(len(tests), tests)
    if base is not None:
        return _ran(gate, None, base.output_tail)
    same = GateRun.objects.filter(
        gate=gate_run.gate_id, gate_version=gate_run.gate_version, base_tree=gate_run.base_tree
    )
    noted = same.exclude(pk=gate_run.pk).filter(evidence__has_key="on_base").order_by("-pk").first()
    if noted is not None:
        told["on_base"] = noted.evidence["on_base"]
    elif execute is not None and seconds >= 1:
        executed, output = execute(Again(gate_run.command, gate_run.base_tree, name="on-base"), seconds)
        if executed.exit_code is None or executed.timed_out or executed.output_limited:
            return None  # nothing is known, and the next run may ask again
        gathered = gather(gate, output, evidence.NO_TREE) if gate.evidence else Gathered()
        ran = _ran(gate, gathered.results, executed.output)
        named = ran.tests if ran is not None and ran.number <= NAMES_NOTED else {}
        told["on_base"] = {
            "exit_code": executed.exit_code,
            "ran": None if ran is None else ran.number,
            "tests": dict(sorted(named.items())),
        }
        return ran
    said = told.get("on_base", {})
    return None if said.get("ran") is None else _Ran(said["ran"], said["tests"])


def _callers(gate_run: GateRun, gate: Gate, changes: Sequence[Change], paths: Sequence[str]) -> list[Change]:
    """The files that say what the gate's command runs, where the patch leaves them alone: with the same text twice."""
    folder = f"{gate.cwd.strip('/')}/" if gate.cwd.strip("/.") else ""
    wanted = {f"{folder}{name}" for name in ("Makefile", "makefile", "GNUmakefile", "package.json")}
    wanted = wanted & set(paths) - {change.path for change in changes}
    found = []
    for file in git.files(gate_run.project.mirror, gate_run.base_tree) if wanted else ():
        if file.path in wanted:
            text = git.blob(gate_run.project.mirror, file.oid).decode("utf-8", "replace")
            found.append(Change(file.path, text, text))
    return found


def _named_by_gate(gate_run: GateRun, gate: Gate, changes: Sequence[Change]) -> list[Moved]:
    """The gate's own command says which files run it: one of them decides about checks, whatever it is called."""
    folder = f"{gate.cwd.strip('/')}/" if gate.cwd.strip("/.") else ""
    words = {part for word in gate_run.command for part in re.split(r"[\s=;|&'\"]+", word)}
    named = {folder + word.removeprefix("./") for word in words}
    return [
        moved("config_touched", change.path, 0, "the gate's command names this file")
        for change in changes
        if change.path in named and change.before is not None and not goalposts.is_test_path(change.path)
    ]


# What is a linter's own affair, by its name. The tests and all other configuration are that of the gates of tests.
_TOOLS = {
    "ruff": r"ruff|noqa",
    "flake8": r"flake8|noqa",
    "mypy": r"mypy|type\s*:\s*ignore|no_type_check",
    "bandit": r"bandit|nosec",
    "semgrep": r"semgrep",
    "eslint": r"eslint",
}
_OF_LINTERS = frozenset({"check_suppressed", "config_touched", "threshold_lowered", "unreadable"})


def _concerns(command: Sequence[str], one: Moved) -> bool:
    """Whether a move is one of the tool that the command runs; of a tool that nobody knows, every such move."""
    if one.kind not in _OF_LINTERS:
        return False
    mine = [pattern for tool, pattern in _TOOLS.items() if tool in command]
    named = one.kind == "unreadable" or "names this file" in one.what
    return not mine or named or any(re.search(rf"(?i){pattern}", f"{one.path} {one.what}") for pattern in mine)


def _changes(gate_run: GateRun) -> list[Change]:
    """The files that differ from the base, with both texts; of what is no text, the bytes that are."""
    mirror = gate_run.project.mirror
    found = []
    for change in git.changes(mirror, gate_run.base_tree, gate_run.tree_hash):
        before = git.blob(mirror, change.old_oid) if change.old_mode.startswith("100") else None
        after = git.blob(mirror, change.new_oid) if change.new_mode.startswith("100") else None
        found.append(
            Change(
                change.path,
                None if before is None else before.decode("utf-8", "replace"),
                None if after is None else after.decode("utf-8", "replace"),
            )
        )
    return found


def _base_tests(
    gate_run: GateRun,
    gate: Gate,
    changes: Sequence[Change],
    execute: Execute,
    told: dict[str, Any],
    results: Results | None,
) -> tuple[list[Moved], str]:
    """Run the tests as the base has them against the patched source; what fails, or no longer runs with the patch's
    own tests, and why it is not known if it is not.

    Where the patch touches no file of the tests, the run itself was that.
    """
    of_tests = [
        change for change in changes if goalposts.is_test_path(change.path) or goalposts.is_configuration(change.path)
    ]
    tests = [change for change in of_tests if change.before is not None]
    if not tests:
        return [], ""
    mirror = gate_run.project.mirror
    old = {one.path: one.old_oid for one in git.changes(mirror, gate_run.base_tree, gate_run.tree_hash)}
    overlay: dict[str, bytes | None] = {change.path: git.blob(mirror, old[change.path]) for change in tests}
    for change in of_tests:  # what the patch brings to steer tests; its new tests may stay
        if change.before is None and (change.path.endswith("conftest.py") or goalposts.is_configuration(change.path)):
            overlay[change.path] = None
    executed, output = execute(Again(gate_run.command, gate_run.tree_hash, overlay, "base"), gate.limit_seconds)
    gathered = gather(gate, output, evidence.NO_TREE) if gate.evidence else Gathered()
    told["base_tests"] = {"exit_code": executed.exit_code, "files": sorted(overlay)[:50]}
    if executed.exit_code is None:
        return [], "the tests of the base did not end on the patched source"
    if gathered.results is None or not gathered.results.total:
        if executed.exit_code in (gate.expected_exit_codes or [0]) and not any(k in TEST_KINDS for k in gate.evidence):
            return [], ""
        return [
            moved("base_tests_fail", tests[0].path, 0, "the tests of the base do not run on the patched source")
        ], ""
    failed = [test for test in gathered.results.tests if test.outcome in {FAIL, ERROR}]
    told["base_tests"] |= {"total": gathered.results.total, "failed": gathered.results.failed}
    if not failed and executed.exit_code not in _ordinary(gate):
        return [], f"the tests of the base gave up on the patched source, with exit code {executed.exit_code}"
    fewer = []
    if results is not None:
        before = count.ran(gathered.results)
        fewer = count.missing(before, count.ran(results), "with the tests of the base")
    paths = sorted(overlay)
    return fewer + [
        moved(
            "base_tests_fail",
            next((p for p in paths if _is_of(test, p)), paths[0]),
            0,
            f"{test.name} of the base fails",
        )
        for test in failed[:20]
    ], ""


def lay_over(tree: Path, overlay: Mapping[str, bytes | None]) -> None:
    """Put these files into a fresh copy (None: take away). Raises GitFailed where a link of the tree is in the way.

    Nothing runs in the copy yet, so what was looked at is what is written to.
    """
    for path, content in overlay.items():
        place = tree / path
        for folder in [*place.relative_to(tree).parents][:-1]:
            if (tree / folder).is_symlink() or ((tree / folder).exists() and not (tree / folder).is_dir()):
                raise git.GitFailed(f"{path} of the base cannot be laid over the patched tree: {folder} is in the way")
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place.is_dir():
            raise git.GitFailed(f"{path} of the base cannot be laid over the patched tree: a folder is in the way")
        if content is not None:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)


def _is_of(test: TestCase, path: str) -> bool:
    return test.file == path or test.classname.startswith(path.removesuffix(".py").replace("/", "."))


# --- failed tests once more ---------------------------------------------------------------------------------------


def _rerun_failed(
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
