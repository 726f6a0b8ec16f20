"""The four agents of the demo as real processes: started with keys of their own, started again when they die."""

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterator
from urllib.parse import urlsplit

from django.conf import settings
from django.db import DatabaseError, close_old_connections

from gates.demo import rows
from gates.demo.agent import PACE
from pipeline.models import Project
from pipeline.refusals import Refused
from pipeline.supervisor import Program, Supervisor

HEARTBEAT_SECONDS, LEASE_SECONDS = 3, 15
"""Short, so that a dead agent's work is given back while somebody still watches."""
STOP_SECONDS = 4.0
"""An agent whose server stops at the same time would wait ten to say goodbye; `rows.end_keys` does it in its place."""
PATIENCE_SECONDS = 60.0


class Busy(Refused):
    """The demo's agents run already."""

    code = "demo_runs"


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Holds the lock of the agents; it ends with this process. Raises Busy."""
    rows.FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(rows.FOLDER / "agents.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as problem:
            raise Busy("The demo's agents run already") from problem
        yield


def answers(url: str, patience_seconds: float = 0.0) -> bool:
    """Whether somebody listens at the address, now or within the patience."""
    parts = urlsplit(url)
    give_up_at = time.monotonic() + patience_seconds
    while True:
        try:
            with socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout=2):
                return True
        except OSError:
            if time.monotonic() >= give_up_at:
                return False
            time.sleep(0.3)


class Watched(Supervisor):
    """A supervisor that does not wait long for the last words of its programs."""

    def stop(self) -> None:
        """As before, within STOP_SECONDS."""
        super().stop()
        if self.stop_by is not None:
            self.stop_by = min(self.stop_by, time.monotonic() + STOP_SECONDS)


def run(project: Project, url: str, *, pace_seconds: float = 1.0, until: Callable[[], bool] = lambda: False) -> int:
    """Runs the agents until a signal comes, the demo is removed, or `until` says so; the exit code.

    The caller holds `alone()`.
    """
    keys = rows.make_keys(project)
    work = rows.FOLDER / "work"
    shutil.rmtree(work, ignore_errors=True)
    programs = []
    for tool, key in keys.items():
        folder = work / tool
        folder.mkdir(mode=0o700, parents=True)
        programs.append(
            Program(
                tool,
                [sys.executable, "-m", "workers.agent", "--url", url, "--tool", "shell", "--tools", tool]
                + ["--name", tool, "--workdir", str(folder), "--wait", "10"]
                + ["--heartbeat-interval", str(HEARTBEAT_SECONDS), "--timeout-seconds", str(LEASE_SECONDS)],
                {"SIGNALBOX_KEY": key, PACE: str(pace_seconds), "PYTHONUNBUFFERED": "1"},
            )
        )

    def tick() -> None:
        try:
            if until() or rows.find() is None:
                supervisor.stop()
        except DatabaseError:
            close_old_connections()  # the database went away: the next tick asks again

    supervisor = Watched(programs, out=sys.stdout, tick=tick, directory=os.fspath(settings.BASE_DIR))
    try:
        return supervisor.run()
    finally:
        # A database that is gone just now keeps them until the next start.
        with contextlib.suppress(DatabaseError):
            rows.end_keys(project, reason="the demo's agents were stopped")
        shutil.rmtree(work, ignore_errors=True)
