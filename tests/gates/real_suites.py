"""The test suites of real projects, run as gates, their counts held against what the tools themselves sum up.

Not part of the tests, as it needs the projects and a network to fetch them: `make suites`. Each runs at the commit that
is named here. `SUITES` names the folder in which their git directories lie, as <name>.git, and `SUITE_TOOLS` the one
with what npm installs for them; what is missing there is fetched.
"""

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from gates import running
from gates.models import Gate, GateRun, TestResult
from ledger import git, projects
from tests.factories import BY, number

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

HERE = Path(__file__).parents[2] / ".data" / "suites"
SUITES = Path(os.environ.get("SUITES", HERE))
TOOLS = Path(os.environ.get("SUITE_TOOLS", HERE / "tools"))
MOCHA_RELEASE = "mocha@3.5.3"
MOCHA = f"{TOOLS}/node_modules/.bin/mocha"


@dataclass(frozen=True)
class Suite:
    """`says` finds the tool's own counts in its output: groups named passed, failed, skipped or total."""

    origin: str
    commit: str
    command: tuple[str, ...]
    evidence: dict[str, str]
    says: str
    title: str = ""

    @property
    def name(self) -> str:
        """What it is called here."""
        return self.title or self.folder

    @property
    def folder(self) -> str:
        """The project's name, without its owner."""
        return self.origin.rpartition("/")[2]


ALL = [
    Suite(
        "https://github.com/pytoolz/toolz",
        "568c2b8393973cd172a466546c9d95779c452438",
        ("python", "-m", "pytest", "-p", "no:cacheprovider", "--junitxml={evidence}/junit.xml", "toolz"),
        {"junit": "junit.xml"},
        r"=+ (?:(?P<failed>\d+) failed, )?(?P<passed>\d+) passed(?:, (?P<skipped>\d+) skipped)?",
    ),
    Suite(
        "https://github.com/jonschlinkert/is-number",
        "98e8ff1da1a89f93d1397a24d7413ed15421c139",
        (
            "sh", "-c",
            f"export NODE_PATH={TOOLS}/node_modules; node {MOCHA} --reporter dot && "
            f"node {MOCHA} --reporter xunit --reporter-options output=$SIGNALBOX_EVIDENCE/junit.xml",
        ),
        {"junit": "junit.xml"},
        r"(?P<passed>\d+) passing",
    ),
    Suite(
        "https://github.com/bats-core/bats-core",
        "d22e41faad59f5fd942a88c992b4913a27a460c4",
        ("env", "TERM=xterm", "bin/bats", "--pretty", "--report-formatter", "junit", "--output", "{evidence}", "test"),
        {"junit": "report.xml"},
        r"(?P<total>\d+) tests, (?P<failed>\d+) failures?(?:, (?P<skipped>\d+) skipped)?",
    ),
    Suite(
        "https://github.com/bats-core/bats-core",
        "d22e41faad59f5fd942a88c992b4913a27a460c4",
        ("env", "TERM=xterm", "bin/bats", "--pretty", "--report-formatter", "tap", "--output", "{evidence}", "test"),
        {"tap": "report.tap"},
        r"(?P<total>\d+) tests, (?P<failed>\d+) failures?(?:, (?P<skipped>\d+) skipped)?",
        "bats-core as TAP",
    ),
]  # fmt: skip


def fetched(suite: Suite) -> Path:
    """The project's git directory, with its commit; fetched when it is not there yet."""
    repository = SUITES / f"{suite.folder}.git"
    if not repository.exists():
        SUITES.mkdir(parents=True, exist_ok=True)
        subprocess.run(["git", "clone", "--quiet", "--mirror", suite.origin, str(repository)], check=True)
    if MOCHA in " ".join(suite.command) and not Path(MOCHA).exists():
        TOOLS.mkdir(parents=True, exist_ok=True)
        subprocess.run(["npm", "install", "--silent", "--prefix", str(TOOLS), MOCHA_RELEASE], check=True)
    return repository


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("suite", ALL, ids=lambda suite: suite.name)
def test_what_a_gate_counts_is_what_the_tool_itself_sums_up(suite: Suite, settings: Any) -> None:
    repository = fetched(suite)
    settings.SIGNALBOX_GATE_READONLY = [TOOLS]
    project = projects.register(str(repository), by=BY, key=f"suite-{number()}")
    gate = Gate.objects.add(
        by=BY,
        project=project,
        key="suite",
        name=suite.name,
        gate_type="unit_tests",
        command=list(suite.command),
        env_allow=[],
        evidence=suite.evidence,
        criteria={"min_tests": 1, "max_failures": 0},
        reruns=0,
        timeout_seconds=1500,
        sandbox_level_min=2,
        resources={"memory_mb": 64 * 1024},
    )
    tree = git.tree_of(project.mirror, suite.commit)
    asked = GateRun.objects.ask_for(gate, tree, by=BY)
    assert running.run_pending() == 1
    run = GateRun.objects.get(pk=asked.pk)
    counts = {"total": run.total_tests, "passed": run.passed_tests, "failed": run.failed_tests}
    counts["skipped"] = run.skipped_tests
    print(f"\n{suite.name}: {run.state}, level {run.sandbox_level}, {run.duration_seconds} s, {counts}")
    for result in TestResult.objects.filter(gate_run=run, outcome__in=["fail", "error"])[:10]:
        print(f"  {result.test_key}: {result.message[:300]}")
    said = list(re.finditer(suite.says, run.output_tail))
    assert said, (run.decision_reason, run.output_tail[-2000:])
    told = {name: int(value or 0) for name, value in said[-1].groupdict().items()}
    assert {name: counts[name] for name in told} == told
    assert run.state == ("failed" if counts["failed"] else "passed"), run.decision_reason
