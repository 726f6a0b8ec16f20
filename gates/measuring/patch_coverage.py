"""How much of what a patch adds was run by the tests."""

from __future__ import annotations

import configparser
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gates import coverage, goalposts
from gates.coverage import Coverage
from gates.junit import Results
from gates.models import Gate, GateRun
from ledger import git
from ledger.regions import regions_of
from pipeline import scope
from pipeline.refusals import InvalidField

MISSED_SHOWN = 200
_CODE = (
    ".py", ".js", ".jsx", ".ts", ".tsx", ".mjs", ".cjs", ".go", ".rs",
    ".mts", ".cts", ".java", ".kt", ".rb", ".c", ".cc", ".cpp", ".cs", ".php", ".swift", ".scala",
)  # fmt: skip
_TYPES_ONLY = (".d.ts", ".d.mts", ".d.cts")
MAX_CONFIG_CHARS = 200_000


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
    of_patch = coverage.of_patch(report, added, _asked(gate_run, report, code))
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
        if (
            file.path.endswith(_CODE)
            and not file.path.endswith(_TYPES_ONLY)
            and not goalposts.is_test_path(file.path)
            and any(map(_says_something, words))
        ):
            code.add(file.path)
    return added, frozenset(code)


def _says_something(line: str) -> bool:
    """Whether a line could be more than a comment or a bracket."""
    return bool(line) and not line.startswith(("#", "//", "/*", "*", '"""', "'''")) and any(map(str.isalnum, line))


def _asked(gate_run: GateRun, report: Coverage, code: frozenset[str]) -> frozenset[str]:
    """Those of the files that this gate has to answer for, though its report may be silent about them: what it applies
    to, in its folder where the report speaks of that folder only, without what the base's own configuration of
    coverage.py omits.
    """
    gate = gate_run.gate_as_asked()
    if not code:
        return code
    folder = f"{gate.cwd.strip('/')}/" if gate.cwd.strip("/.") else ""
    if not all(path.startswith(folder) for path in report.files):
        folder = ""
    asked = {path for path in code if gate.concerns([path]) and path.startswith(folder)}
    if all(path in report.files for path in asked):
        return frozenset(asked)
    omitted = _omitted(gate_run, gate)
    return frozenset(path for path in asked if not (path.endswith(".py") and _is_one(path, omitted)))


def _is_one(path: str, globs: Sequence[str]) -> bool:
    try:
        return scope.matches(path, globs)
    except InvalidField:
        return False


def _omitted(gate_run: GateRun, gate: Gate) -> list[str]:
    """What the first file of the base that configures coverage.py leaves out, as globs of the tree."""
    mirror = gate_run.project.mirror
    folders = dict.fromkeys([f"{gate.cwd.strip('/')}/" if gate.cwd.strip("/.") else "", ""])
    files = {file.path: file.oid for file in git.files(mirror, gate_run.base_tree)}
    for folder in folders:
        for name in (".coveragerc", "setup.cfg", "tox.ini", "pyproject.toml"):
            if folder + name not in files:
                continue
            text = git.blob(mirror, files[folder + name]).decode("utf-8", "replace")[:MAX_CONFIG_CHARS]
            sections = _of_toml(text) if name == "pyproject.toml" else _of_ini(text, name == ".coveragerc")
            if sections:
                said = [one for section in sections.values() for one in section]
                return [glob for one in said if (glob := _as_glob(one, folder))]
    return []


def _of_ini(text: str, is_own: bool) -> Mapping[str, list[str]]:
    """The lists `omit` of the sections of coverage.py, by section; empty where there is no such section."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    try:
        parser.read_string(text)
    except configparser.Error:
        return {}
    prefix = "" if is_own else "coverage:"
    names = [name for name in parser.sections() if is_own or name.startswith(prefix)]
    return {
        name: parser.get(name, "omit", fallback="").replace(",", "\n").split()
        if name in (f"{prefix}run", f"{prefix}report")
        else []
        for name in names
    }


def _of_toml(text: str) -> Mapping[str, list[str]]:
    """The same of pyproject.toml."""
    try:
        said = tomllib.loads(text).get("tool", {}).get("coverage", {})
        return {
            name: [str(one) for one in section["omit"]] if name in {"run", "report"} and "omit" in section else []
            for name, section in said.items()
        }
    except (tomllib.TOMLDecodeError, RecursionError, AttributeError, TypeError):
        return {}


def _as_glob(pattern: str, folder: str) -> str:
    """A pattern of coverage.py, as a glob of the tree; "" for one that would mean the whole tree, or lies outside."""
    if pattern.startswith("*/"):
        folder, pattern = "", f"**/{pattern[2:]}"
    if pattern.endswith("/*"):
        pattern += "*"
    return "" if pattern.startswith("/") or not pattern.strip("*/.") else folder + pattern.removeprefix("./")
