"""How much of what a patch adds was run by the tests."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from gates import coverage, goalposts
from gates.coverage import Coverage
from gates.junit import Results
from gates.models import GateRun
from ledger import git
from ledger.regions import regions_of

MISSED_SHOWN = 200
_CODE = (
    ".py", ".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs", ".go", ".rs",
    ".java", ".kt", ".rb", ".c", ".cc", ".cpp", ".cs", ".php", ".swift", ".scala",
)  # fmt: skip


def with_coverage(
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
