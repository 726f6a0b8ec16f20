"""Whether a patch moved its own goalposts: by what it changes, by how many tests ran, by the tests of its base."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gates import evidence, goalposts
from gates.evidence import TEST_KINDS, EvidenceRefused
from gates.goalposts import Change, Moved, count, declared, moved
from gates.junit import ERROR, FAIL, SKIP, Results, TestCase
from gates.measuring.gathering import Again, Execute, Gathered, gather, ordinary
from gates.models import Gate, GateRun
from gates.runner import Execution
from ledger import git

MOVED_SHOWN = 200
NAMES_NOTED = 5000  # of tests that ran on a base; of more, their number alone
# What these write are no tests: linters name a case for every file that they complain about.
_NOT_COUNTED = frozenset({Gate.Type.LINT, Gate.Type.SECURITY_SCAN})
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


def goalposts_clean(
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
            found = [one for one in found if concerns(gate_run.command, one)]
    except (EvidenceRefused, git.GitFailed, git.UnknownCommit) as problem:
        says["goalposts"] = f"what the patch changed could not be looked at: {problem}"
        return None
    judged = partial(_judged, changes, paths)
    counted, unknown, note = _counted(gate_run, gate, results, executed, execute, told, judged)
    found += counted
    if gate.base_tests:
        further: list[Moved] = []
        untested = "nobody ran the tests of the base on the patched source"
        try:
            if execute is not None:
                further, untested = _base_tests(gate_run, gate, changes, execute, told, results, judged)
        except git.GitFailed as problem:
            untested = str(problem)
        found += further
        unknown = "; ".join(filter(None, (unknown, untested)))
    if unknown and not found:
        says["goalposts"] = unknown
        return None
    says["goalposts"] = goalposts.told(found) + (f" ({note})" if note and not found else "")
    told["goalposts"] = [[one.kind, one.path, one.line, one.what] for one in found[:MOVED_SHOWN]]
    return not found


@dataclass(frozen=True, slots=True)
class _Ran:
    """The tests that passed or failed: how many, and which, as far as that is known."""

    number: int
    tests: Mapping[str, str] = field(default_factory=dict)


def _judged(changes: Sequence[Change], paths: Sequence[str]) -> declared.Judged:
    """What the changed files declared; of files that cannot be read, nothing, and that is told elsewhere."""
    try:
        return declared.Judged(evidence.declared_tests(changes), paths)
    except EvidenceRefused:
        return declared.Judged((), paths)


def _counted(
    gate_run: GateRun,
    gate: Gate,
    results: Results | None,
    executed: Execution,
    execute: Execute | None,
    told: dict[str, Any],
    judged: Callable[[], declared.Judged],
) -> tuple[list[Moved], str, str]:
    """What the tests that ran say, against the base's and against the runner's own word; why they could not be held
    against the base's, if they could not; and what people should know where there is nothing to hold them against.
    """
    found: list[Moved] = []
    unknown = note = ""
    now = _ran(gate, results, executed.output)
    # Where a runner of tests that leave no report says nothing, the base shows whether it used to say something.
    counts = now is not None or (gate.gate_type in Gate.TESTS and not _reports_tests(gate))
    if counts and gate.gate_type not in _NOT_COUNTED and gate_run.base_tree != gate_run.tree_hash:
        before, unknown, note = _ran_on_base(gate_run, gate, execute, told)
        if before is None:
            pass
        elif now is None:
            found += count.fewer(before.number, 0, "on the base")
        elif results is not None and len(before.tests) == before.number:
            found += count.missing(before.tests, now.tests, "on the base", judged)
        else:
            found += count.fewer(before.number, now.number, "on the base")
    if results is not None and execute is not None and gate.shards == 1 and "junit" in gate.evidence:
        found += count.contradicted(gate_run.command, executed.output, results, gate.evidence["junit"])
    return found, unknown, note


def _reports_tests(gate: Gate) -> bool:
    return any(kind in TEST_KINDS for kind in gate.evidence)


def _ran(gate: Gate, results: Results | None, output: str) -> _Ran | None:
    """By the report where the gate declares one, otherwise by what the runner printed; None where neither tells it."""
    if _reports_tests(gate):
        if results is None:
            return None
        tests = count.ran(results)
        return _Ran(len(tests), tests)
    number = count.spoken(output)
    return None if number is None else _Ran(number)


def _ran_on_base(
    gate_run: GateRun, gate: Gate, execute: Execute | None, told: dict[str, Any]
) -> tuple[_Ran | None, str, str]:
    """The tests that ran on the base: by a run of the gate on it, by the note of an earlier run that asked the same, or
    measured now, in a time of its own. It is noted once for each base, so that the next patch on it need not.

    Where they are not known, the second says why nobody knows, or the third why there is nothing to know.
    """
    base = GateRun.objects.on_base(gate_run)
    if base is not None and base.parsed:
        rows = base.results.exclude(outcome=SKIP).values_list("test_key", "file", "classname")
        tests = {key: file or classname for key, file, classname in rows}
        return _Ran(len(tests), tests), "", ""
    if base is not None and (ran := _ran(gate, None, base.output_tail)) is not None:
        return ran, "", ""
    same = GateRun.objects.filter(
        gate=gate_run.gate_id, gate_version=gate_run.gate_version, base_tree=gate_run.base_tree
    )
    noted = same.exclude(pk=gate_run.pk).filter(evidence__has_key="on_base").order_by("-pk").first()
    if noted is not None:
        told["on_base"] = said = noted.evidence["on_base"]
        if said.get("ran") is not None:
            return _Ran(said["ran"], said["tests"]), "", ""
        return None, "", _NOTHING_TOLD
    if execute is None:
        return None, "", "how many tests ran on the base is not known, since nobody ran it there"
    executed, output = execute(Again(gate_run.command, gate_run.base_tree, name="on-base"), gate.limit_seconds)
    if lost := _lost(executed):  # the next run may ask again
        return None, f"how many tests ran on the base is not known: {lost}", ""
    gathered = gather(gate, output, evidence.NO_TREE) if gate.evidence else Gathered()
    ran = _ran(gate, gathered.results, executed.output)
    named = ran.tests if ran is not None and ran.number <= NAMES_NOTED else {}
    told["on_base"] = {
        "exit_code": executed.exit_code,
        "ran": None if ran is None else ran.number,
        "tests": dict(sorted(named.items())),
    }
    return ran, "", "" if ran is not None else _NOTHING_TOLD


_NOTHING_TOLD = "the base told of no tests that could be counted"


def _lost(executed: Execution) -> str:
    """Why an execution did not come to its own end; "" where it did, with whatever exit code."""
    if executed.timed_out:
        return "it ran over the time limit there"
    if executed.output_limited:
        return "it went over the limit on output there"
    if executed.exit_code is None:
        return "it was lost there"
    return f"a signal ended it there, exit code {executed.exit_code}" if 128 < executed.exit_code <= 192 else ""


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


def concerns(command: Sequence[str], one: Moved) -> bool:
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
    judged: Callable[[], declared.Judged],
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
        if executed.exit_code in (gate.expected_exit_codes or [0]) and not _reports_tests(gate):
            return [], ""
        return [
            moved("base_tests_fail", tests[0].path, 0, "the tests of the base do not run on the patched source")
        ], ""
    failed = [test for test in gathered.results.tests if test.outcome in {FAIL, ERROR}]
    told["base_tests"] |= {"total": gathered.results.total, "failed": gathered.results.failed}
    if not failed and executed.exit_code not in ordinary(gate):
        return [], f"the tests of the base gave up on the patched source, with exit code {executed.exit_code}"
    fewer = []
    if results is not None:
        before = count.ran(gathered.results)
        fewer = count.missing(before, count.ran(results), "with the tests of the base", judged)
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
