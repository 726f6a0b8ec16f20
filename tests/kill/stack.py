"""The whole product as real processes over a data directory of its own: servers, web, Celery, beat and agents."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psycopg

from ledger import git
from pipeline import embedded
from pipeline.ids import to_uuid
from tests import schema
from tests.factories import make_repository

ROOT = Path(__file__).resolve().parent.parent.parent

# Writes a file named after its task, as slowly as an agent: what it is told comes on stdin, and there is a word in it
# that names the task.
AGENT = """
import pathlib, re, sys, time
key = re.search(r"piece-([a-z]+)", sys.stdin.read()).group(1)
time.sleep({seconds})
pathlib.Path(f"piece_{{key}}.py").write_text(f"{{key}} = 1\\n")
"""

# What `manage.py shell` does for a new run: a project of the repository, a slow gate, a tool, and a chain of tasks.
PLAN = """
import json, sys
from ledger import projects
from gates.models import Gate
from pipeline.events import SYSTEM
from pipeline.models import Phase, Run, Tool, Workstream
told = json.loads({told!r})
project = projects.register(told["repository"], by=SYSTEM, key=told["key"])
phase = Phase.objects.add(by=SYSTEM, project=project, key="work", name="Work", category="build",
    resource_scope={{"type": "files", "write": ["**"], "create": ["**"], "forbidden": []}})
Gate.objects.add(by=SYSTEM, project=project, key="tests", name="tests", gate_type="unit_tests", command=told["gate"],
    evidence={{"junit": "junit.xml"}}, criteria={{"max_failures": 0, "min_tests": 1}})
Tool.objects.filter(key__startswith="slow").update(enabled=False)
tool = Tool.objects.add(by=SYSTEM, key=told["tool"], adapter="shell", command=told["command"], max_parallel=10,
    capabilities={{"task_kinds": ["code_edit"]}})
names = told["tasks"]
stream = Workstream.objects.add(by=SYSTEM, phase=phase, key="ws", name="Work", objective="Write the pieces",
    tasks=[{{"task_id": name, "name": f"Write piece-{{name}}", "kind": "code_edit",
        "depends_on": [names[at - 1]] if at else []}} for at, name in enumerate(names)])
run = Run.objects.open(by=SYSTEM, workstream=stream)
run.start(by=SYSTEM)
print("::" + json.dumps({{"run": run.pk, "mirror": str(project.mirror)}}))
"""

Found = TypeVar("Found")


def environment(**more: str) -> dict[str, str]:
    """The environment without what the test session set for itself."""
    own = ("SIGNALBOX_", "DATABASE_URL", "CELERY_BROKER_URL", "DJANGO_SETTINGS_MODULE", "FAULT")
    return {**{name: value for name, value in os.environ.items() if not name.startswith(own)}, **more}


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
    return port


@dataclass
class Walk:
    """A run that was started: its id, and where its branch is."""

    run: str
    mirror: Path
    first_commit: str
    tasks: tuple[str, ...]

    @property
    def run_uuid(self) -> str:
        """The run's id as the database's columns hold it."""
        return str(to_uuid(self.run))


class Stack:
    """`manage.py up` with its children, and the agents that work for it. `end()` leaves nothing behind."""

    def __init__(self) -> None:
        self.parent = Path(tempfile.mkdtemp(prefix="signalbox-kill-"))
        # As root the servers run as another user, which has to get in.
        self.parent.chmod(0o711)
        self.data = self.parent / "data"
        self.port = free_port()
        self.log = self.parent / "log"
        self.up: subprocess.Popen[bytes] | None = None
        self.agents: list[subprocess.Popen[bytes]] = []
        self.numbers = 0
        self.key = self.admin_key = ""

    # -- its life ----------------------------------------------------------------------------------------------------

    def start(self, **faults: str) -> None:
        """Start everything and wait until it answers; `FAULT="…"` arms a crash point in every process."""
        if not self.data.exists():
            schema.fill(self.data)
        command = [sys.executable, "manage.py", "up", "--no-demo", "--port", str(self.port), "--data", str(self.data)]
        with self.log.open("ab") as out:
            self.up = subprocess.Popen(
                command, cwd=ROOT, env=environment(**faults), stdout=out, stderr=out, start_new_session=True
            )
        self.until(lambda: self.get("/readyz")[0] == 200, 300, "the site answers")
        if not self.key:
            self.key = self.manage("createkey", "--role", "worker").split()[-1]
            self.admin_key = self.manage("createkey", "--role", "admin").split()[-1]

    def stop(self) -> None:
        """Stop everything in order, agents first."""
        self.dismiss()
        if self.up is not None:
            self.up.send_signal(signal.SIGINT)
            try:
                self.up.wait(60)
            except subprocess.TimeoutExpired:
                self.up.kill()
                self.up.wait()
            self.up = None

    def dismiss(self) -> None:
        """Kill the agents."""
        for agent in self.agents:
            agent.kill()
            agent.wait()
        self.agents.clear()

    def end(self) -> None:
        """Stop everything, also what a failed test left behind, and remove the data."""
        with contextlib.suppress(OSError):
            self.resume("valkey")
        self.stop()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if (self.data / "embedded.json").exists() or (self.data / "pg").exists():
            embedded.ensure(self.data).leave()
        place = embedded.place(self.data)
        for path in {place.home, place.sockets, self.parent} - {None}:
            shutil.rmtree(path, ignore_errors=True)

    def manage(self, *arguments: str) -> str:
        """What a management command says. Fails the test when it fails."""
        done = subprocess.run(
            [sys.executable, "manage.py", *arguments],
            cwd=ROOT,
            env=environment(SIGNALBOX_DATA=str(self.data), SIGNALBOX_ROLE="command"),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, f"{arguments[0]} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout

    # -- its work ----------------------------------------------------------------------------------------------------

    def walk(self, *tasks: str, agent_seconds: float = 1.0, gate_seconds: float = 2.0) -> Walk:
        """Start a run of these tasks, each needing the one before, in a new project."""
        self.numbers += 1
        repository = make_repository(
            self.parent / f"repository-{self.numbers}", {"test_it.py": "def test_it():\n    assert True\n"}
        )
        pytest = f"exec {sys.executable} -m pytest -q -p no:cacheprovider --junitxml={{evidence}}/junit.xml"
        told = {
            "repository": str(repository),
            "key": f"walk-{self.numbers}",
            "tool": f"slow-{self.numbers}",
            "gate": ["sh", "-c", f"sleep {gate_seconds}; {pytest}"],
            "command": [sys.executable, "-c", AGENT.format(seconds=agent_seconds)],
            "tasks": list(tasks),
        }
        said = self.manage("shell", "--no-imports", "-c", PLAN.format(told=json.dumps(told)))
        made = json.loads(said.rpartition("::")[2])
        mirror = Path(made["mirror"])
        return Walk(made["run"], mirror, self.git(mirror, "rev-parse", "main"), tasks)

    def agent(self) -> subprocess.Popen[bytes]:
        """A real agent with short leases: 10 s, beating every 2 s."""
        with self.log.open("ab") as out:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers.agent", "--url", f"http://127.0.0.1:{self.port}", "--tool", "shell"]
                + ["--timeout-seconds", "10", "--heartbeat-interval", "2", "--wait", "3"]
                + ["--name", f"agent-{len(self.agents) + 1}"],
                cwd=ROOT,
                env=environment(SIGNALBOX_KEY=self.key),
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        self.agents.append(process)
        return process

    # -- looking -----------------------------------------------------------------------------------------------------

    def rows(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """The rows that the database answers."""
        place = embedded.place(self.data)
        with psycopg.connect(
            host=str(place.postgres_sockets), port=5432, user=embedded.ROLE, dbname=embedded.DATABASE, autocommit=True
        ) as connection:
            return connection.execute(sql, parameters).fetchall()

    def value(self, sql: str, *parameters: Any) -> Any:
        """The one value that the database answers, or None."""
        rows = self.rows(sql, *parameters)
        return rows[0][0] if rows else None

    def get(self, path: str, seconds: float = 10.0) -> tuple[int, float]:
        """(status, seconds that it took) as an administrator; status 0 when nobody answered."""
        return self._ask(path, None, seconds)

    def post(self, path: str, body: dict[str, Any], seconds: float = 10.0) -> tuple[int, float]:
        """The same, sending `body`."""
        return self._ask(path, json.dumps(body).encode(), seconds)

    def _ask(self, path: str, body: bytes | None, seconds: float) -> tuple[int, float]:
        began = time.monotonic()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data=body)
        request.add_header("Content-Type", "application/json")
        if self.admin_key:
            request.add_header("Authorization", f"Bearer {self.admin_key}")
        try:
            with urllib.request.urlopen(request, timeout=seconds) as answer:
                status: int = answer.status
        except urllib.error.HTTPError as problem:
            problem.close()
            status = problem.code
        except OSError:
            status = 0
        return status, time.monotonic() - began

    def until(self, true: Callable[[], Found], seconds: float, what: str) -> Found:
        """The first truth that `true` answers. Fails the test with the log's end after `seconds`."""
        end = time.monotonic() + seconds
        while not (found := true()):
            assert time.monotonic() < end, f"waited {seconds} s until {what}\n{self.log.read_text()[-6000:]}"
            time.sleep(0.1)
        return found

    def processes(self, word: str = "") -> list[int]:
        """Our programs that run on this data with `word` in their command line; not the servers."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                told = (path / "environ").read_bytes().split(b"\0")
                line = (path / "cmdline").read_bytes()
                if f"SIGNALBOX_DATA={self.data}".encode() in told and word.encode() in line:
                    found.append(int(path.name))
        return sorted(found)

    def git(self, mirror: Path, *arguments: str) -> str:
        """What git says of a mirror."""
        done = subprocess.run(["git", *arguments], cwd=mirror, check=True, capture_output=True, text=True)
        return done.stdout.strip()

    # -- killing -----------------------------------------------------------------------------------------------------

    def kill(self, word: str) -> int:
        """kill -9 of the leader among the programs with `word` in their command line; its process id."""
        pid = self.processes(word)[0]
        os.kill(pid, signal.SIGKILL)
        return pid

    def freeze(self, server: str) -> None:
        """Stop the server `valkey` from answering, without ending it."""
        os.kill(self._pid_of(server), signal.SIGSTOP)

    def resume(self, server: str) -> None:
        """Let it go on."""
        os.kill(self._pid_of(server), signal.SIGCONT)

    def _pid_of(self, server: str) -> int:
        return int((embedded.place(self.data).home / server / f"{server}.pid").read_text().split()[0])

    # -- what must be true at the end ----------------------------------------------------------------------------------

    def succeeds(self, walk: Walk, seconds: float) -> None:
        """Wait until the run has succeeded, then see that everything happened once."""
        self.until(lambda: self._run_state(walk) not in ("pending", "running"), seconds, f"the run ends: {walk}")
        assert self._run_state(walk) == "succeeded"
        expected = len(walk.tasks)
        of_run = "FROM ledger_patch WHERE run_id = %s AND state = 'committed'"
        assert self.value(f"SELECT count(*) {of_run}", walk.run_uuid) == expected
        assert self.value(f"SELECT count(DISTINCT task_id) {of_run}", walk.run_uuid) == expected
        commits = self.git(walk.mirror, "rev-list", "--reverse", f"{walk.first_commit}..main").split()
        assert len(commits) == expected
        trees = [self.git(walk.mirror, "rev-parse", f"{commit}^{{tree}}") for commit in commits]
        tested = self.rows(
            "SELECT DISTINCT tree_hash FROM gates_gaterun WHERE run_id = %s AND state = 'passed'", walk.run_uuid
        )
        assert set(trees) == {tree for (tree,) in tested}
        twice = "SELECT attempt_id, source FROM costs_costrecord WHERE run_id = %s GROUP BY 1, 2, idempotency_key"
        assert self.rows(f"{twice} HAVING count(*) > 1", walk.run_uuid) == []
        self.until(self._is_quiet, 30, "every event is handled")
        assert git.fsck(walk.mirror) == []
        self.manage("doctor")

    def _run_state(self, walk: Walk) -> str:
        return str(self.value("SELECT state FROM pipeline_run WHERE id = %s", walk.run_uuid))

    def _is_quiet(self) -> bool:
        return not self.value("SELECT count(*) FROM pipeline_event WHERE handled_at IS NULL")


def percentile(values: Iterable[float], share: float) -> float:
    """The value that `share` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]
