"""Real agents on a product that runs: a project with tasks of theirs, the programs, and what is to be seen of them."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.ids import from_uuid, to_uuid
from tests.factories import make_repository
from tests.kill.stack import ROOT, Stack, environment

LEASE_SECONDS, BEAT_SECONDS, STALL_SECONDS = 8, 1, 8
"""Of these agents: a tool that stands still is told in as long as a wrapper that does not beat."""

# What `manage.py shell` does: a project, a tool for each kind of task, a run of tasks that need no patch, a key.
PLAN = """
import json
from ledger import projects
from pipeline.events import SYSTEM
from pipeline.models import ApiKey, Phase, Run, Tool, Workstream
told = json.loads({told!r})
project = projects.register(told["repository"], by=SYSTEM, key=told["key"])
phase = Phase.objects.add(by=SYSTEM, project=project, key="work", name="Work", category="build",
    resource_scope={{"type": "files", "write": ["**"], "create": ["**"], "forbidden": []}})
for name, (adapter, command) in told["tools"].items():
    Tool.objects.add(by=SYSTEM, key=told["key"] + "-" + name, adapter=adapter, command=command, max_parallel=100,
        capabilities={{"task_kinds": [told["key"] + "-" + name]}})
runs = []
for number in range(told["runs"]):
    stream = Workstream.objects.add(by=SYSTEM, phase=phase, key=f"ws-{{number}}", name="Work", objective="Do the work",
        concurrency={{"max_parallel": 100}}, tasks=[{{"task_id": name, "name": name, "kind": told["key"] + "-" + name,
            "allow_parallel": True, "requires_patch": False}} for name in told["tools"]])
    run = Run.objects.open(by=SYSTEM, workstream=stream)
    if told["start"]:
        run.start(by=SYSTEM)
    runs.append(run.pk)
key = ApiKey.objects.make(name=told["key"], role="worker", project=project, by=SYSTEM)
print("::" + json.dumps({{"runs": runs, "project": project.pk, "key": key.text}}))
"""


class Fleet:
    """A project of its own, whose key no other worker has; one task for each tool in each run."""

    def __init__(
        self, stack: Stack, tools: Mapping[str, tuple[str, Sequence[str]]], *, runs: int = 1, start: bool = True
    ) -> None:
        self.stack = stack
        self.name = f"fleet-{secrets.token_hex(4)}"
        repository = make_repository(stack.parent / self.name, {"README.md": "# Fleet\n"})
        told = {"repository": str(repository), "key": self.name, "tools": tools, "runs": runs, "start": start}
        said = stack.manage("shell", "--no-imports", "-c", PLAN.format(told=json.dumps(told)))
        made = json.loads(said.rpartition("::")[2])
        self.runs: list[str] = made["runs"]
        self.project: str = made["project"]
        self.key: str = made["key"]
        self.url = f"http://127.0.0.1:{stack.port}"

    # -- agents --------------------------------------------------------------------------------------------------------

    def agent(self, name: str, *, tool: str = "", url: str = "", **more: str) -> subprocess.Popen[bytes]:
        """An agent program of that name for one of the tools (all by default); `more` is for its environment."""
        command = [sys.executable, "-m", "workers.agent", "--url", url or self.url, "--tool", "shell,claude"]
        command += ["--name", f"{self.name} {name}", "--wait", "2", "--timeout-seconds", str(LEASE_SECONDS)]
        command += ["--heartbeat-interval", str(BEAT_SECONDS), "--stall-after", str(STALL_SECONDS)]
        if tool:
            command += ["--tools", f"{self.name}-{tool}"]
        stops = {"SIGNALBOX_STOP_TERM_SECONDS": "1", "SIGNALBOX_STOP_KILL_SECONDS": "2"}
        with self.stack.log.open("ab") as out:
            process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment(**{"SIGNALBOX_KEY": self.key, **stops, **more}),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.stack.agents.append(process)
        return process

    def worker(self, name: str) -> str:
        """The id of the newest worker of that name, once it is there."""
        sql = "SELECT id FROM workers_worker WHERE name = %s ORDER BY id DESC LIMIT 1"
        return from_uuid(
            self.stack.until(lambda: self.stack.value(sql, f"{self.name} {name}"), 60, f"{name} registers")
        )

    def lease(self, name: str) -> str:
        """The id of the live lease of the worker of that name, once it holds one."""
        sql = (
            "SELECT l.id FROM workers_lease l JOIN workers_worker w ON w.id = l.worker_id "
            "WHERE w.name = %s AND l.ended_at IS NULL"
        )
        return from_uuid(
            self.stack.until(lambda: self.stack.value(sql, f"{self.name} {name}"), 60, f"{name} has a task")
        )

    def runs_of(self, state: str) -> int:
        """How many of its runs are in that state."""
        sql = "SELECT count(*) FROM pipeline_run WHERE project_id = %s AND state = %s"
        return int(self.stack.value(sql, to_uuid(self.project), state))

    def end(self) -> None:
        """Nobody claims its tasks any more."""
        for run in self.runs:
            self.ask(f"/runs/{run}/cancel/", {"reason": "the test is over"}, self.stack.admin_key)
        self.stack.dismiss()

    # -- the API -------------------------------------------------------------------------------------------------------

    def ask(
        self, path: str, body: Mapping[str, Any] | None = None, key: str = "", *, url: str = "", once: str = ""
    ) -> tuple[int, dict[str, Any]]:
        """(status, body) of a GET, or of a POST of `body`; 0 when nobody answered. The fleet's key unless told."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{url or self.url}/api/v1{path}", data=data)
        request.add_header("Authorization", f"Bearer {key or self.key}")
        request.add_header("Content-Type", "application/json")
        if once:
            request.add_header("Idempotency-Key", once)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as problem:
            with problem:
                return problem.code, json.loads(problem.read() or b"{}")
        except OSError:
            return 0, {}


def processes(marker: str) -> list[int]:
    """The processes of a tool whose script begins with `# marker`, without its keeper; none that has ended."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (path / "cmdline").read_bytes()
            if f"# {marker}\n".encode() in line and b"keeper.py" not in line and not is_gone(int(path.name)):
                found.append(int(path.name))
    return sorted(found)


def is_gone(pid: int) -> bool:
    """Whether that process has ended, reaped or not."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] in (b"Z", b"X")
    except OSError:
        return True


def freeze(marker: str) -> None:
    """SIGSTOP to every process of a tool."""
    pids = processes(marker)
    assert pids, f"nothing runs that is called {marker}"
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
