"""Running a gate: a fresh copy of the tree, the command in it, the evidence it left, the judgement."""

import functools
import os
import socket
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import close_old_connections, connection

from gates import criteria, definition, measuring, resources, runner, sandbox
from gates.live import LiveLog
from gates.models import Gate, GateRun, RunnerHost
from ledger import git
from pipeline import events
from pipeline.crashpoints import crashpoint
from pipeline.ids import new_id
from pipeline.refusals import Refused

BEAT_SECONDS = 15.0
PAGE = 50
COPY_KEPT_SECONDS = 24 * 3600


def run_pending() -> int:
    """Run the pending gates one after another until none is left; returns how many were run here."""
    done = 0
    note_level()
    while (pk := _next()) is not None:
        done += run(pk)
    return done


def _next() -> str | None:
    """The oldest pending run that waits for no other gate, and for nobody outside."""
    waiting = GateRun.objects.filter(state=GateRun.State.PENDING, external=False)
    rest = waiting.select_related("gate", "patch").order_by("pk")
    # By pages: however many wait for another gate, what is behind them has its turn.
    while page := list(rest[:PAGE]):
        for gate_run in page:
            if not gate_run.blocking():
                return str(gate_run.pk)
        rest = rest.filter(pk__gt=page[-1].pk)
    return None


def run(gate_run_id: str, *, by: events.Actor = events.SYSTEM) -> bool:
    """Run one pending gate to its judgement; False when another has it. Two runners never run the same one.

    Nothing here is inside a transaction. Whatever goes wrong on our side ends as error (infra), never as passed.
    """
    name = f"{socket.gethostname()}:{os.getpid()}:{new_id()}"
    gate_run = GateRun.objects.select_related("gate", "project").filter(pk=gate_run_id, external=False).first()
    if gate_run is None:
        return False
    level, wanted = runner.available_level(), gate_run.level_wanted
    try:
        gate_run.start(by=by, runner=name, sandbox_level=level, sandbox_level_min=wanted)
    except Refused:
        return False
    crashpoint("gate.started")
    stop = threading.Event()
    beating, log = _Beat(gate_run, name, stop), LiveLog(gate_run, name)
    beating.start()
    log.start()
    try:
        judged = {"judgement": _too_low(level, wanted)} if level < wanted else _judge(gate_run, stop, log, level)
    except runner.NoFolder as problem:
        judged = {"judgement": criteria.Judgement("error", "command", None, f"Error (command): {problem}"[:2000])}
    except Exception as problem:
        judged = {"judgement": criteria.Judgement("error", "infra", None, f"the runner failed: {problem}"[:2000])}
    finally:
        log.end()
        beating.end()
    crashpoint("gate.judged")
    try:
        gate_run.complete(judged.pop("judgement"), by=by, runner=name, **judged)
    except Refused:
        return False  # taken away meanwhile: skipped as superseded, or given up as lost
    crashpoint("gate.done")
    return True


@functools.cache
def note_level() -> int:
    """The sandbox level of this machine, written down where every page and the doctor find it; once per process."""
    found = runner.probe()
    RunnerHost.objects.seen(socket.gethostname(), found.level, list(found.missing))
    return found.level


def _too_low(level: int, wanted: int) -> criteria.Judgement:
    why = "; ".join(runner.probe().missing)
    return criteria.Judgement(
        "error",
        "infra",
        None,
        f"This gate asks for sandbox level {wanted}, and {socket.gethostname()} holds level {level} only"
        + (f": {why}" if why else ""),
    )


class _Beat(threading.Thread):
    """Says every few seconds that the runner lives; asks the command to end when the run was taken away."""

    def __init__(self, gate_run: GateRun, runner_name: str, stop: threading.Event) -> None:
        super().__init__(daemon=True, name=f"beat-{gate_run.pk}")
        self.gate_run, self.runner_name, self.stop_command = gate_run, runner_name, stop
        self.over = threading.Event()

    def run(self) -> None:
        """Beat until the run is over."""
        try:
            while not self.over.wait(BEAT_SECONDS):
                try:
                    if not self.gate_run.beat(self.runner_name):
                        self.stop_command.set()
                        return
                except Exception:
                    close_old_connections()  # the database went away: the next beat tries again
        finally:
            connection.close()

    def end(self) -> None:
        """Stop beating, and wait until it has."""
        self.over.set()
        self.join(timeout=30)


def _judge(gate_run: GateRun, stop: threading.Event, log: LiveLog, level: int) -> dict[str, Any]:
    """Copy, execute, read and judge; the arguments of GateRun.complete."""
    gate = gate_run.gate_as_asked()
    if not gate_run.project.mirror.exists():
        raise Refused(f"project {gate_run.project.key} has no repository here", code="repository_missing")
    copies = Path(settings.GATES_DIR)
    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
    if copies.stat().st_uid != os.geteuid():
        raise Refused(f"{copies} belongs to somebody else; name another by SIGNALBOX_GATES_DIR", code="gates_dir_taken")
    place = Path(tempfile.mkdtemp(prefix="run-", dir=copies))
    try:
        tree, output = place / "tree", place / "evidence"
        git.export(gate_run.project.mirror, gate_run.tree_hash, tree)
        output.mkdir(mode=0o700)
        crashpoint("gate.copied")
        bench = _Bench(gate_run, gate, place, stop, log, level)
        seen = measuring.look(gate, tree)
        executed = bench.execute(gate_run.command, tree, output, gate.limit_seconds)
        crashpoint("gate.executed")
        return measuring.measure(gate_run, seen, output, executed, bench.execute_again)
    finally:
        runner.remove(place)


class _Bench:
    """Where the commands of one gate run are executed: its place, its limits, its log, and who may stop it."""

    def __init__(
        self, gate_run: GateRun, gate: Gate, place: Path, stop: threading.Event, log: LiveLog, level: int
    ) -> None:
        self.gate_run, self.gate, self.place, self.stop, self.log, self.level = gate_run, gate, place, stop, log, level

    def execute(self, command: Sequence[str], tree: Path, output: Path, seconds: float) -> runner.Execution:
        """Run one command of the gate in its copy."""
        gate = self.gate
        with sandbox.own_user(settings.SIGNALBOX_GATE_UID) as user:
            if user is not None:  # at level 1 it walks in from above; at level 2 it would not have to
                self.place.parent.chmod(0o711)
                self.place.chmod(0o711)
                tree.parent.chmod(0o711)
            return runner.execute(
                command,
                tree,
                cwd=gate.cwd,
                timeout_seconds=seconds,
                # Asked again: an older row may have been saved before the rule.
                env={
                    name: os.environ[name]
                    for name in gate.env_allow
                    if name in os.environ and not definition.why_not_handed_on(name)
                },
                output_dir=output,
                limits=resources.limits(gate.resources),
                level=self.level,
                uid=user,
                on_output=self.log.take,
                stop=self.stop,
                secrets=(settings.SECRET_KEY, settings.SIGNALBOX_PEPPER),
                readonly=[folder for folder in settings.SIGNALBOX_GATE_READONLY if folder.is_dir()],
                caches={name: path for name, path in settings.SIGNALBOX_GATE_CACHES.items() if name in gate.caches},
            )

    def execute_again(self, asked: measuring.Again, seconds: float) -> tuple[runner.Execution, Path]:
        """A further execution within the run, in a fresh copy beside the first; how it ended, and its evidence."""
        tree, output = self.place / asked.name / "tree", self.place / asked.name / "evidence"
        git.export(self.gate_run.project.mirror, asked.tree_hash, tree)
        measuring.lay_over(tree, asked.overlay)
        output.mkdir(mode=0o700)
        return self.execute(asked.command, tree, output, seconds), output


def sweep_copies() -> int:
    """Remove the copies that a killed runner left behind, a day after the longest gate has ended; returns how many."""
    copies = Path(settings.GATES_DIR)
    if not copies.is_dir():
        return 0
    oldest = time.time() - settings.SIGNALBOX_GATE_TIMEOUT_SECONDS - COPY_KEPT_SECONDS
    left = [place for place in copies.glob("run-*") if place.stat().st_mtime < oldest]
    for place in left:
        runner.remove(place)
    return len(left)


def close_lost(*, by: events.Actor = events.SYSTEM) -> int:
    """End the runs whose runner is gone as error (infra), and those of which nobody outside told the end in time as
    error (timeout); returns how many.
    """
    done = 0
    for gate_run in GateRun.objects.overdue().order_by("pk"):
        lost = criteria.Judgement("error", "infra", None, "the runner vanished")
        if gate_run.external:
            lost = criteria.Judgement("error", "timeout", None, "the system outside did not report the end in time")
        try:
            done += gate_run.complete(lost, by=by)
        except Refused:
            continue
    return done
