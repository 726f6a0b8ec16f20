"""Pure: the files of a tree in, gates that would suit it out; nothing is saved, and nothing of the tree is run.

A preset is proposed where the tree itself says that it uses the tool. Those whose tool writes a report that we read
are judged by it; the others by their exit code alone, and say so.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

Reader = Callable[[str], str | None]
"""The text of a file of the tree, or None when there is none (or it is no text, or too long)."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A gate as it would be made: its definition, and why it is proposed."""

    key: str
    name: str
    gate_type: str
    command: tuple[str, ...]
    why: str
    evidence: Mapping[str, str] = field(default_factory=dict)
    criteria: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    finding_exit_codes: tuple[int, ...] = ()
    base_tests: bool = False

    def definition(self) -> dict[str, Any]:
        """The fields of a gate."""
        made = asdict(self)
        lists = {"command": list(self.command), "finding_exit_codes": list(self.finding_exit_codes)}
        return {**{name: made[name] for name in made if name not in {"why", "note"}}, **lists}


TESTED: Mapping[str, Any] = {"max_failures": 0, "min_tests": 1, "goalposts": True}
# Judged by the exit code: how many tests ran is not known, but whether the patch moved its goalposts is.
GUARDED: Mapping[str, Any] = {"goalposts": True}
# A linter's gate is told of its own goalposts: its configuration, and files that it is told to look away from.
NOTHING_NEW: Mapping[str, Any] = {"max_new_findings": {"level": "warning", "count": 0}, "goalposts": True}
BY_EXIT_CODE = "It writes no report that Signalbox reads, so its exit code alone decides."


def propose(paths: Collection[str], read: Reader) -> list[Preset]:
    """The gates that suit a tree of these files, tests first. Never raises for what a file holds."""
    tree = _Tree(frozenset(paths), read)
    return [preset for find in (_python, _node, _go, _rust, _make, _scanners) for preset in find(tree)]


class _Tree:
    def __init__(self, paths: frozenset[str], read: Reader) -> None:
        self.paths = paths
        self._read = read
        self._texts: dict[str, str] = {}

    def has(self, *names: str) -> str:
        """The first of these paths that the tree has, or ""."""
        return next((name for name in names if name in self.paths), "")

    def text(self, path: str) -> str:
        if path not in self._texts:
            self._texts[path] = (self._read(path) or "") if path in self.paths else ""
        return self._texts[path]

    def any(self, pattern: str) -> str:
        """The first path that the pattern matches as a whole, or ""."""
        compiled = re.compile(pattern)
        return next((path for path in sorted(self.paths) if compiled.fullmatch(path)), "")

    def tools(self) -> Mapping[str, Any]:
        """The tables [tool.*] of pyproject.toml."""
        try:
            tools = tomllib.loads(self.text("pyproject.toml")).get("tool", {})
        except (tomllib.TOMLDecodeError, RecursionError):
            return {}
        return tools if isinstance(tools, dict) else {}

    def package(self) -> Mapping[str, Any]:
        """package.json."""
        try:
            document = json.loads(self.text("package.json") or "{}")
        except (ValueError, RecursionError):
            return {}
        return document if isinstance(document, dict) else {}


def _python(tree: _Tree) -> Iterator[Preset]:
    tools = tree.tools()
    sign = tree.has("pytest.ini", ".pytest.ini", "conftest.py") or ("pyproject.toml" if "pytest" in tools else "")
    sign = sign or tree.any(r"(?:.*/)?(?:test_[^/]+|[^/]+_test)\.py")
    if sign:
        named = " ".join(tree.text(path) for path in ("pyproject.toml", "setup.cfg", "tox.ini", "requirements-dev.txt"))
        command = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml={evidence}/junit.xml"]
        evidence = {"junit": "junit.xml"}
        if "pytest-cov" in named or "pytest_cov" in named:
            command += ["--cov", "--cov-report=xml:{evidence}/coverage.xml"]
            evidence["coverage"] = "coverage.xml"
        yield Preset(
            "pytest", "pytest", "unit_tests", tuple(command), f"{sign} is there", evidence, TESTED, base_tests=True
        )
    if sign := (tree.has("ruff.toml", ".ruff.toml") or ("[tool.ruff] in pyproject.toml" if "ruff" in tools else "")):
        command = ["ruff", "check", "--no-cache", "--output-format=sarif", "--output-file={evidence}/ruff.sarif", "."]
        yield Preset("ruff", "ruff", "lint", tuple(command), f"{sign} is there", {"sarif": "ruff.sarif"}, NOTHING_NEW)
    if sign := (tree.has("mypy.ini", ".mypy.ini") or ("[tool.mypy] in pyproject.toml" if "mypy" in tools else "")):
        config = tools.get("mypy", {})
        names_files = isinstance(config, dict) and bool({"files", "packages", "modules"} & set(config))
        names_files = names_files or bool(
            re.search(r"^(?:files|packages|modules)\s*=", tree.text("mypy.ini"), re.MULTILINE)
        )
        command = ["mypy", "--cache-dir=/dev/null", "--junit-xml={evidence}/mypy.xml", *([] if names_files else ["."])]
        report = {"junit": "mypy.xml"}
        yield Preset(
            "mypy", "mypy", "lint", tuple(command), f"{sign} is there", report, {"max_failures": 0, "goalposts": True}
        )


def _node(tree: _Tree) -> Iterator[Preset]:
    package = tree.package()
    scripts = package.get("scripts")
    script = str(scripts.get("test", "")) if isinstance(scripts, dict) else ""
    if not script or "no test specified" in script:
        return
    why = f"package.json has a test script: {script[:80]}"
    report, note = {"junit": "junit.xml"}, ""
    codes: tuple[int, ...] = ()
    command: tuple[str, ...] = ("npm", "test", "--silent")
    if found := re.fullmatch(r"node\s+--test((?:\s+[\w./*-]+)*)\s*", script):
        words = [word for word in found[1].split() if not word.startswith("--test-reporter")]
        to = ("--test-reporter=junit", "--test-reporter-destination={evidence}/junit.xml")
        command = ("node", "--test", *to, *words)
    elif re.match(r"(?:npx\s+)?vitest\b", script):
        command = ("npx", "--no-install", "vitest", "run", "--reporter=junit", "--outputFile={evidence}/junit.xml")
    elif re.match(r"(?:npx\s+)?_?mocha\b", script) and not re.search(r"[|&;<>$]", script):
        to = ("--reporter=xunit", "--reporter-option=output={evidence}/junit.xml")
        words = [word for word in script.split()[1:] if word not in {"mocha", "_mocha"} and "reporter" not in word]
        command = ("npx", "--no-install", "mocha", *to, *words)
        codes = tuple(range(1, 126))  # it ends with the number of tests that failed
    else:
        report, note = {}, BY_EXIT_CODE
    criteria = TESTED if report else GUARDED
    yield Preset(
        "npm-test", "npm test", "unit_tests", command, why, report, criteria, note, codes, base_tests=True,
    )  # fmt: skip


def _go(tree: _Tree) -> Iterator[Preset]:
    if sign := tree.has("go.mod"):
        yield Preset(
            "go-test",
            "go test",
            "unit_tests",
            ("go", "test", "./..."),
            f"{sign} is there",
            {},
            GUARDED,
            BY_EXIT_CODE,
            base_tests=True,
        )


def _rust(tree: _Tree) -> Iterator[Preset]:
    if not tree.has("Cargo.toml"):
        return
    offline = ("--offline",) if tree.has("Cargo.lock") else ()
    if re.search(r"\[profile\.[\w-]+\.junit\]", tree.text(".config/nextest.toml")):
        command = ("cargo", "nextest", "run", *offline)
        yield Preset(
            "cargo-nextest",
            "cargo nextest",
            "unit_tests",
            command,
            ".config/nextest.toml is there",
            {},
            GUARDED,
            BY_EXIT_CODE,
            base_tests=True,
        )
    else:
        command = ("cargo", "test", *offline)
        yield Preset(
            "cargo-test",
            "cargo test",
            "unit_tests",
            command,
            "Cargo.toml is there",
            {},
            GUARDED,
            BY_EXIT_CODE,
            base_tests=True,
        )


def _make(tree: _Tree) -> Iterator[Preset]:
    sign = tree.has("Makefile", "makefile", "GNUmakefile")
    for target in ("test", "check"):
        if sign and re.search(rf"^{target}\s*:(?!=)", tree.text(sign), re.MULTILINE):
            command = ("make", target)
            why = f"{sign} has a target {target}"
            yield Preset(
                f"make-{target}",
                f"make {target}",
                "unit_tests",
                command,
                why,
                {},
                GUARDED,
                BY_EXIT_CODE,
                base_tests=True,
            )
            return


def _scanners(tree: _Tree) -> Iterator[Preset]:
    tools = tree.tools()
    if sign := (tree.has(".bandit", "bandit.yaml") or ("[tool.bandit] in pyproject.toml" if "bandit" in tools else "")):
        config = ("-c", "pyproject.toml") if "bandit" in tools else ()
        command = ("bandit", "-r", ".", *config, "-f", "sarif", "-o", "{evidence}/bandit.sarif")
        evidence = {"sarif": "bandit.sarif"}
        why = f"{sign} is there"
        yield Preset(
            "bandit", "bandit", "security_scan", command, why, evidence, NOTHING_NEW, "It needs bandit[sarif]."
        )
    if sign := tree.has(".semgrep.yml", ".semgrep.yaml", "semgrep.yml"):
        report = "--output={evidence}/semgrep.sarif"
        command = ("semgrep", "scan", "--sarif", report, "--metrics=off", "--config", sign)
        evidence = {"sarif": "semgrep.sarif"}
        yield Preset("semgrep", "semgrep", "security_scan", command, f"{sign} is there", evidence, NOTHING_NEW)
    dependencies = {name for key in ("dependencies", "devDependencies") for name in _names(tree.package().get(key))}
    if "@microsoft/eslint-formatter-sarif" in dependencies:
        formatter, report = "@microsoft/eslint-formatter-sarif", "{evidence}/eslint.sarif"
        command = ("npx", "--no-install", "eslint", "-f", formatter, "-o", report, ".")
        yield Preset(
            "eslint", "eslint", "lint", command, "package.json names its SARIF formatter", {"sarif": "eslint.sarif"},
            NOTHING_NEW,
        )  # fmt: skip


def _names(value: Any) -> Collection[str]:
    return value if isinstance(value, dict) else ()
