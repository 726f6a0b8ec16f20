"""A stub server, a real repository, and an agent in a thread with scaled clocks."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.workers.agent.stub import StubServer
from workers.agent.__main__ import registry
from workers.agent.attempt import Timing
from workers.agent.client import Patience
from workers.agent.loop import Agent, Settings

KEY = "sbx_ab12cd34_" + "Zx9_" * 10 + "end"

FAST = Timing(
    terminate_after_seconds=0.3,
    kill_after_seconds=0.6,
    idle_pause_seconds=0.05,
    refused_pause_seconds=0.05,
    farewell_seconds=3.0,
    patience=Patience(base_seconds=0.05, cap_seconds=0.2),
)


def git(*arguments: str, cwd: Path, stdin: bytes | None = None) -> bytes:
    """What git prints, with nobody's configuration."""
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        **{f"GIT_{who}_{what}": "t@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
    }
    return subprocess.run(
        ["git", *arguments], cwd=cwd, env=environment, input=stdin, capture_output=True, check=True
    ).stdout


class Repository:
    """A repository with two commits."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        git("init", "-q", "-b", "main", cwd=folder)
        (folder / "first").write_text("1\n")
        git("add", "-A", cwd=folder)
        git("commit", "-qm", "first", cwd=folder)
        (folder / "keep.txt").write_text("one\ntwo\nthree\n")
        (folder / "gone.txt").write_text("bye\n")
        (folder / "dos.txt").write_bytes(b"a\r\nb\r\n")
        (folder / ".gitattributes").write_text("*.txt text\n*.py -diff\n*.dat filter=evil\n")
        (folder / "code.py").write_text("x = 1\n")
        git("add", "-A", cwd=folder)
        # The blob keeps its CRLF although the attributes say text, as old repositories do.
        blob = git("hash-object", "-w", "--no-filters", "dos.txt", cwd=folder).decode().strip()
        git("update-index", "--cacheinfo", f"100644,{blob},dos.txt", cwd=folder)
        git("commit", "-qm", "second", cwd=folder)
        self.head = git("rev-parse", "HEAD", cwd=folder).decode().strip()

    def tree_after(self, diff: str, scratch: Path) -> dict[str, tuple[str, bytes]]:
        """The files (mode, content by path) of the head with the diff applied, as the ledger would apply it."""
        index = {"GIT_INDEX_FILE": str(scratch / "index"), "PATH": os.environ["PATH"], "GIT_CONFIG_GLOBAL": os.devnull}
        for command, given in ((["read-tree", self.head], b""), (["apply", "--cached", "-"], diff.encode())):
            subprocess.run(["git", *command], cwd=self.folder, env=index, input=given, check=True, capture_output=True)
        listed = subprocess.run(["git", "ls-files", "-sz"], cwd=self.folder, env=index, capture_output=True, check=True)
        files = {}
        for entry in listed.stdout.decode().split("\0")[:-1]:
            facts, path = entry.split("\t", 1)
            mode, blob, _ = facts.split(" ")
            files[path] = (mode, git("cat-file", "blob", blob, cwd=self.folder))
        return files


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def server() -> Iterator[StubServer]:
    stub = StubServer()
    yield stub
    stub.close()


def python(program: str) -> list[str]:
    """An argument vector that runs this program text."""
    return [sys.executable, "-c", program]


@pytest.fixture
def make_claim(repository: Repository) -> Callable[..., dict[str, Any]]:
    """A claim document for a shell command; `task` and `request` change parts of it."""
    count = 0

    def make(command: list[str], *, task: Any = None, request: Any = None, prompt: str = "Do it") -> dict[str, Any]:
        nonlocal count
        count += 1
        return {
            "task": {
                "id": f"T{count}",
                "key": f"task-{count}",
                "name": "Change a file",
                "kind": "code_edit",
                "run": "R1",
                "project": "demo",
                "requires_patch": False,
                "timeout_seconds": 60,
                "touches": [],
                **(task or {}),
            },
            "execution_request": {
                "id": "E1",
                "tool": "worker-bee",
                "adapter": "shell",
                "command": command,
                "env_allow": [],
                "input": {},
                "constraints": {},
                "resource_scope": {},
                "metadata": {},
                **(request or {}),
            },
            "prompt": {"id": "Q1", "text": prompt},
            "checkout": {"url": str(repository.folder), "commit": repository.head, "branch": "main"},
            "lease": {
                "id": f"L{count}",
                "generation": 7,
                "attempt": "A1",
                "expires_at": "2026-01-31T08:15:30Z",
                "timeout_at": "2026-01-31T08:15:30Z",
                "deadline_at": "2026-01-31T08:15:30Z",
            },
            "reservation": None,
            "previous_failures": [],
        }

    return make


class Runner:
    """An agent in a thread."""

    def __init__(self, settings: Settings) -> None:
        self.agent = Agent(settings, registry())
        self.exit_code: int | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        self.exit_code = self.agent.run()

    def join(self, seconds: float = 30) -> int | None:
        self._thread.join(seconds)
        assert not self._thread.is_alive(), "the agent did not end"
        return self.exit_code


@pytest.fixture
def start(server: StubServer, tmp_path: Path) -> Iterator[Callable[..., Runner]]:
    """Starts an agent against the stub; told to end, twice, after the test."""
    runners: list[Runner] = []

    def begin(*, timing: Timing = FAST, **settings: Any) -> Runner:
        usual = Settings(url=server.url, key=KEY, workdir=tmp_path / "work", wait_seconds=0, timing=timing)
        runners.append(Runner(replace(usual, **settings)))
        return runners[-1]

    yield begin
    for runner in runners:
        runner.agent.tell_to_end()
        runner.agent.tell_to_end()
        runner.join()


@pytest.fixture
def work_once(server: StubServer, start: Callable[..., Runner]) -> Callable[..., int | None]:
    """Lets an agent do one claim and end; its exit code."""

    def work(claim: dict[str, Any], **settings: Any) -> int | None:
        server.claims.append(claim)
        return start(once=True, **settings).join()

    return work
