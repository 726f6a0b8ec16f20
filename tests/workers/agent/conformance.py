"""What every adapter is held to: scenarios, how each must end, and the table of it in docs/conformance.md.

`python -m tests.workers.agent.conformance > docs/conformance.md` writes the table anew.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

ADAPTERS = {"shell": "POSIX", "claude": "2.1.217", "codex": "08a1f30c, 1ebb1bc7", "aider": "5dc9490b"}
FAKES = Path(__file__).with_name("fakes")


@dataclass(frozen=True)
class Expected:
    """How a scenario ends: outcome and error code as they are reported. `note` says why it is not as elsewhere."""

    outcome: str
    code: str = ""
    note: str = ""


SUCCESS = Expected("success")
NO_EDIT = Expected("task_failed", "no_edit")

SCENARIOS: dict[str, tuple[str, Expected, dict[str, Expected]]] = {
    "start": ("the first heartbeats say what it does", SUCCESS, {}),
    "progress": ("heartbeats bring progress when it gets on, and none while it is silent", SUCCESS, {}),
    "cost": (
        "every token is reported once, in its class",
        SUCCESS,
        {"shell": Expected("success", note="a plain program states no tokens; its running time is reported")},
    ),
    "patch": ("what it changed is submitted as a diff", SUCCESS, {}),
    "no edit": ("a task that requires a patch fails without one", NO_EDIT, {}),
    "needs input": (
        "a question ends the attempt for a person, and costs no attempt",
        Expected("needs_human", "question"),
        {
            "shell": Expected("task_failed", "exit_1", "a plain program can ask nobody: its standard input has ended"),
            "aider": Expected("success", note="aider is told to say yes to everything: it never waits for an answer"),
        },
    ),
    "quota refusal": (
        "the task waits until the provider serves again",
        Expected("quota_wait", "quota"),
        {"shell": Expected("task_failed", "exit_7", "only the exit code of a plain program means something to us")},
    ),
    "budget stop": (
        "it ends once its reservation is used up",
        Expected("budget_stop", "reservation_spent"),
        {
            "shell": Expected(
                "task_failed", "timeout_exceeded", "a plain program states no use; its time limit is what bounds it"
            )
        },
    ),
    "stop request": (
        "a stop is acknowledged, then confirmed when everything it started is gone",
        Expected("cancelled", "stop_requested"),
        {},
    ),
    "hang": (
        "a tool that is silent and deaf to signals is killed at its time limit",
        Expected("task_failed", "timeout_exceeded"),
        {},
    ),
    "crash": ("killed half way, it leaves no patch", Expected("task_failed", "exit_137"), {}),
    "garbage output": ("nonsense in its output is kept, and changes nothing", SUCCESS, {}),
    "flood": ("200 MB of output take bounded memory", SUCCESS, {}),
    "multi-byte split across chunks": ("characters are whole, wherever the pieces are cut", SUCCESS, {}),
    "unknown event types": ("events of later versions are passed over", SUCCESS, {}),
}


def expected(adapter: str, scenario: str) -> Expected:
    """How that scenario ends with that adapter."""
    _, usual, others = SCENARIOS[scenario]
    return others.get(adapter, usual)


def table() -> str:
    """The whole page."""
    notes: list[str] = []
    lines = [
        "# Conformance of the agent's adapters",
        "",
        "Every adapter runs every scenario against a fake of its tool (`tests/workers/agent/fakes/`), which takes the",
        "tool's documented flags and speaks its documented format, in the version named here. A cell holds the outcome",
        "that is reported, with its error code.",
        "`python -m tests.workers.agent.conformance > docs/conformance.md` writes this page, and a test compares it.",
        "",
        f"| scenario | what holds | {' | '.join(f'{name} ({version})' for name, version in ADAPTERS.items())} |",
        "|---|---|" + "---|" * len(ADAPTERS),
    ]
    for scenario, (meaning, _, _) in SCENARIOS.items():
        cells = []
        for adapter in ADAPTERS:
            end = expected(adapter, scenario)
            cell = end.outcome + (f", `{end.code}`" if end.code else "")
            if end.note:
                notes.append(end.note)
                cell += f" ({len(notes)})"
            cells.append(cell)
        lines.append(f"| {scenario} | {meaning} | " + " | ".join(cells) + " |")
    lines += ["", *(f"{number}. {note}." for number, note in enumerate(notes, start=1))]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(table())
