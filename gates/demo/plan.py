"""What the demo's project consists of, as plain documents: tools, phase, workstreams, gates, price."""

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gates.demo.agent import MODEL, PACE, PROVIDER

SCRIPT = Path(__file__).with_name("agent.py")

CODE, DOCS = "demo.code", "demo.docs"
"""Kinds of our own: no tool of the demo can be routed to anybody else's task, nor another tool to these."""

ADA, GRACE, HASTY, NOSY = "demo-ada", "demo-grace", "demo-hasty", "demo-nosy"

TEMPER_OF = {ADA: "good", GRACE: "mortal", HASTY: "hasty", NOSY: "nosy"}
"""The four agents: tool key -> how its script behaves (gates.demo.agent)."""

FORBIDDEN = ["secrets/**"]
TASK_SECONDS = 300


def command_of(tool: str) -> list[str]:
    """The argument vector of a tool: this interpreter and our script, both absolute."""
    return [sys.executable, str(SCRIPT), TEMPER_OF[tool]]


def tool(key: str) -> dict[str, Any]:
    """The columns of a Tool."""
    return {
        "adapter": "shell",
        "command": command_of(key),
        "capabilities": {"task_kinds": [CODE, DOCS]},
        "model": MODEL,
        "priced": True,
        "order": 1000,
        "env_allow": [PACE],
        "timeout_seconds": TASK_SECONDS,
    }


PHASE: dict[str, Any] = {
    "name": "Build",
    "category": "implementation",
    "resource_scope": {
        "type": "files",
        "write": ["greeting/**", "tests/**", "docs/**", "README.md"],
        "forbidden": FORBIDDEN,
    },
    "constraints": {"patch": {"max_files_changed": 5, "max_lines_changed": 200}},
}


def task(
    key: str, name: str, write: Sequence[str], tools: Sequence[str], *needs: str, kind: str = CODE, **more: Any
) -> dict[str, Any]:
    """A TaskSpec (domain.md §2.1.2): its own files, the tools that may do it, what it needs first."""
    return {
        "task_id": key,
        "name": name,
        "kind": kind,
        "requires_patch": True,
        "allow_parallel": True,
        "depends_on": list(needs),
        "gates": ["tests", "style"],
        "resource_scope_delta": {"write": list(write)},
        "constraints_delta": {"allowed_tools": list(tools)},
        "execution": {"timeout_seconds": TASK_SECONDS, "estimate_seconds": 5, "estimate_amount": "0.05"},
        **more,
    }


def _with_test(name: str) -> list[str]:
    return [f"greeting/{name}.py", f"tests/test_{name}.py"]


WALK, RISKY, WAITING = "languages", "trespass", "release"

WORKSTREAMS: dict[str, dict[str, Any]] = {
    WALK: {
        "name": "Greet in three languages",
        "objective": "The library greets in English, French and German, from Python and from a terminal.",
        "concurrency": {"mode": "parallel", "max_parallel": 4},
        "tasks": [
            task("languages", "List the languages", ["docs/languages.md"], [ADA], kind=DOCS),
            task("louder", "Let a shout be louder", _with_test("voice"), [HASTY]),
            task("numbers", "Greet many people at once", _with_test("numbers"), [GRACE]),
            task("readme", "Say in the README how it is used", ["README.md"], [NOSY], kind=DOCS),
            task("german", "Greet in German", _with_test("german"), [ADA], "languages"),
            task("french", "Greet in French", _with_test("french"), [ADA, GRACE], "languages"),
            task("choose", "Choose the language", _with_test("words"), [ADA], "german", "french"),
            task(
                "command",
                "Greet from a terminal",
                ["greeting/__main__.py", "tests/test_main.py"],
                [ADA, GRACE],
                "choose",
                "louder",
                "numbers",
            ),
        ],
    },
    RISKY: {
        "name": "Document the deployment",
        "objective": "The deployment is documented. It cannot be done without a forbidden folder, so it ends badly.",
        "tasks": [
            task("token", "Write down where the token is", ["docs/deployment.md"], [NOSY], kind=DOCS),
            task("deploy", "Announce the deployment", ["docs/release.md"], [ADA], "token", kind=DOCS),
        ],
    },
    WAITING: {
        "name": "Release 1.0",
        "objective": "The release is announced once its owner says so.",
        "tasks": [task("announce", "Announce the release", ["docs/release.md"], [ADA], kind=DOCS)],
    },
}

GATES: dict[str, dict[str, Any]] = {
    "tests": {
        "name": "Tests",
        "gate_type": "unit_tests",
        # `--rootdir` and an empty configuration: no file of the judged tree has a say in how it is tested.
        "command": ["python", "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir=.", "--disable-plugin-autoload"]
        + ["-p", "no:cacheprovider", "--junitxml={evidence}/junit.xml", "tests"],
        "evidence": {"junit": "junit.xml"},
        "criteria": {"max_failures": 0, "min_tests": 3},
        "timeout_seconds": 60,
    },
    "style": {
        "name": "It compiles",
        "gate_type": "lint",
        "command": ["python", "-m", "compileall", "-q", "greeting", "tests"],
        "timeout_seconds": 60,
    },
}

PRICE: dict[str, Any] = {
    "effective_from": datetime(2020, 1, 1, tzinfo=UTC),
    "uncached_input": "3",
    "cache_read": "0.30",
    "cache_write_5m": "3.75",
    "cache_write_1h": "6",
    "output": "15",
    "source": "invented for the demo: no provider sells this model",
    "price_version": "1",
}

PRICED = {"provider": PROVIDER, "model": MODEL}
