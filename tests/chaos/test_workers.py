"""Workers that are killed, frozen and late, messages that come twice, a database that dies: every task once, all exact.

The same load on a web process that asks no report for its generation must be found out: the proof of the audit.
"""

import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict
from decimal import Decimal
from typing import Any

import pytest

from tests.chaos import books
from tests.chaos.swarm import Plan
from tests.chaos.test_events import FULL, SEED
from tests.kill.stack import ROOT, Stack, environment, free_port

pytestmark = pytest.mark.kill

# Sweeps come every second, retries soon, and a task may lose any number of machines.
CLOCKS = {
    "SIGNALBOX_SWEEP_SECONDS": "1",
    "SIGNALBOX_TASK_MAX_INFRA_RETRIES": "100",
    "SIGNALBOX_RETRY_CAP_SECONDS": "2",
}
SMALL = {"tasks": 120, "workers": 8, "kills": 15, "freezes": 3, "server_kills": 1, "lease_seconds": 3, "late": 0.05}
LARGE = {"tasks": 10_000, "workers": 50, "kills": 520, "freezes": 60, "server_kills": 21, "lease_seconds": 10}
SIZE: dict[str, Any] = {**LARGE, "late": 0.02} if FULL else SMALL
# A machine that is shared may have no hours to give: the same faults over fewer tasks.
SIZE["tasks"] = int(os.environ.get("CHAOS_TASKS", SIZE["tasks"]))
UNFENCED: dict[str, Any] = {**SIZE, "tasks": 200 if FULL else 40, "kills": 3, "server_kills": 0}
TASKS_A_RUN = 100
RUNS_AT_ONCE = 10

# What `manage.py shell` does: a project of which only the books are kept, and runs of small tasks that need no patch.
PLAN = """
import json
from pipeline.events import SYSTEM
from pipeline.models import ApiKey, Phase, Project, Run, Tool, Workstream
told = json.loads({told!r})
project, made = Project.objects.filter(key=told["key"]).first(), None
if project is None:
    project = Project.objects.add(by=SYSTEM, key=told["key"], name="Swarm", custody="recorded")
    Phase.objects.add(by=SYSTEM, project=project, key="work", name="Work", category="build")
    made = ApiKey.objects.make(name=told["key"], role="worker", project=project, by=SYSTEM)
if not Tool.objects.filter(key="swarm").exists():
    Tool.objects.add(by=SYSTEM, key="swarm", adapter="shell", command=["true"], max_parallel=10_000,
        capabilities={{"task_kinds": ["research"]}})
for number, size in told["runs"]:
    stream = Workstream.objects.add(by=SYSTEM, phase=project.phases.get(key="work"), key=f"ws-{{number}}", name="Work",
        objective="Do many small things", concurrency={{"max_parallel": 1000}},
        tasks=[{{"task_id": f"t{{at}}", "name": f"Task {{at}}", "kind": "research", "allow_parallel": True}}
            for at in range(size)])
    Run.objects.open(by=SYSTEM, workstream=stream).start(by=SYSTEM)
print("::" + json.dumps([project.pk, made.text if made else ""]))
"""


class Load:
    """A project full of tasks, a swarm that works on it, and what became of both."""

    def __init__(self, stack: Stack, key: str, size: dict[str, Any]) -> None:
        self.stack, self.key, self.size = stack, key, size
        self.folder = stack.parent / key
        self.folder.mkdir()
        self.project, self.worker_key = "", ""
        self._plan()

    def _plan(self) -> None:
        left, runs = self.size["tasks"], []
        while left > 0:
            runs.append((len(runs), min(left, TASKS_A_RUN)))
            left -= TASKS_A_RUN
        for at in range(0, len(runs), RUNS_AT_ONCE):
            told = json.dumps({"key": self.key, "runs": runs[at : at + RUNS_AT_ONCE]})
            said = self.stack.manage("shell", "--no-imports", "-c", PLAN.format(told=told))
            self.project, key = json.loads(said.rpartition("::")[2])
            self.worker_key = self.worker_key or key

    def rage(self, url: str) -> dict[str, Any]:
        """Let the swarm loose on the server at `url`; what was done to it."""
        plan = Plan(
            url=url,
            key=self.worker_key,
            data=str(self.stack.data),
            project=str(books.to_uuid(self.project)),
            late_seconds=self.size["lease_seconds"] + 3.5,
            seed=SEED,
            patience_seconds=4 * 3600 if FULL else 240,
            **self.size,
        )
        (self.folder / "plan.json").write_text(json.dumps(asdict(plan)))
        with (self.folder / "log").open("ab") as out:
            done = subprocess.run(
                [sys.executable, "-m", "tests.chaos.swarm", str(self.folder)],
                cwd=ROOT,
                env=environment(),
                stdout=out,
                stderr=subprocess.PIPE,
                text=True,
            )
        report: dict[str, Any] = json.loads((self.folder / "report.json").read_text())
        report["ended_well"] = done.returncode == 0
        report["said"] = done.stderr[-3000:]
        return report


def asked(stack: Stack, path: str) -> Any:
    """What the API answers an administrator."""
    request = urllib.request.Request(f"http://127.0.0.1:{stack.port}/api/v1{path}")
    request.add_header("Authorization", f"Bearer {stack.admin_key}")
    with urllib.request.urlopen(request, timeout=60) as answer:
        return json.load(answer)


def complaint(stack: Stack, *command: str) -> str:
    """What a management command of the product has to say against its data; empty when it ends well."""
    try:
        stack.manage(*command)
    except AssertionError as problem:
        return str(problem)[-3000:]
    return ""


@pytest.fixture(scope="module")
def found() -> Iterator[dict[str, Any]]:
    """What one storm left behind, then what the same load did to an unfenced server; read by every test here."""
    stack = Stack()
    try:
        stack.start(**CLOCKS)
        yield {"fenced": fenced(stack), "unfenced": unfenced(stack)}
    finally:
        stack.end()


def fenced(stack: Stack) -> dict[str, Any]:
    """The storm on the product as it is."""
    load = Load(stack, "swarm", SIZE)
    told: dict[str, Any] = load.rage(f"http://127.0.0.1:{stack.port}")
    unhandled = "SELECT count(*) FROM pipeline_event WHERE handled_at IS NULL"
    # 150,000 events at full size: on a busy machine the reactions to them end after the work has.
    stack.until(lambda: stack.value(unhandled) == 0, 3600 if FULL else 60, "every event is handled")
    running = "SELECT count(*) FROM pipeline_run WHERE state = 'running'"
    stack.until(lambda: stack.value(running) == 0, 60, "every run has ended")
    findings, figures = books.audit(stack.rows, load.project, load.folder)
    print({**told, **figures})
    summary = asked(stack, f"/costs/summary/?group_by=landing&project={load.project}")
    return {
        **told,
        **figures,
        "wrong": findings.wrong(),
        "totals": [Decimal(row["amount"]) for row in summary["totals"]],
        "landings": {row["landing"]: Decimal(row["amount"]) for row in summary["results"]},
        "doctor": complaint(stack, "doctor"),
        "chains": complaint(stack, "verify-ledger"),
    }


def unfenced(stack: Stack) -> dict[str, Any]:
    """The same load on a web process with the planted bug; the rest of the product is as it is."""
    port = free_port()
    with stack.log.open("ab") as out:
        web = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "tests.chaos.unfenced:application", "--port", str(port)]
            + ["--lifespan", "off", "--no-access-log", "--log-level", "warning"],
            cwd=ROOT,
            env=environment(SIGNALBOX_DATA=str(stack.data), SIGNALBOX_ROLE="web", **CLOCKS),
            stdout=out,
            stderr=out,
        )
    try:
        stack.until(lambda: _is_up(port), 60, "the unfenced server answers")
        load = Load(stack, "unfenced", UNFENCED)
        told = load.rage(f"http://127.0.0.1:{port}")
        findings, figures = books.audit(stack.rows, load.project, load.folder)
        print({**told, **figures, "wrong": findings.wrong()})
    finally:
        web.kill()
        web.wait()
    return {**told, **figures, "wrong": findings.wrong()}


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=5):
            return True
    except OSError:
        return False


def test_the_storm_was_one(found: dict[str, Any]) -> None:
    told = found["fenced"]
    assert told["ended_well"], told["said"]
    done_to = {"kills": "workers_killed", "freezes": "workers_frozen", "server_kills": "server_killed"}
    assert {name: told[what] for name, what in done_to.items()} == {name: SIZE[name] for name in done_to}
    assert told["late_reports"] > 0
    assert told["reports_refused"].get("stale_claim", 0) > 0


def test_every_task_is_done_once_and_every_count_and_cost_is_exact(found: dict[str, Any]) -> None:
    told = found["fenced"]
    assert told["tasks"] == SIZE["tasks"]
    assert told["wrong"] == {}


def test_the_totals_that_the_api_tells_are_the_sum_of_what_the_workers_spent(found: dict[str, Any]) -> None:
    told = found["fenced"]
    landed, lost = (Decimal(told["spent"][outcome]) for outcome in ("success", "infra_lost"))
    assert landed > 0 < lost
    assert told["landings"] == {"landed": landed, "waste": lost}
    assert told["totals"] == [landed + lost]


def test_every_invariant_and_every_chain_holds_afterwards(found: dict[str, Any]) -> None:
    assert found["fenced"]["doctor"] == ""
    assert found["fenced"]["chains"] == ""


def test_without_the_generation_check_the_same_load_is_found_to_do_work_twice(found: dict[str, Any]) -> None:
    """The proof that this audit sees a double: reports of lost leases are believed, and it finds each kind of harm."""
    wrong = found["unfenced"]["wrong"]
    assert int(wrong["done_twice"][0]) > 0
    assert int(wrong["told_otherwise"][0]) > 0
    assert int(wrong["costs"][0]) > 0
    assert "lost" not in wrong
