"""Runs the processes of `manage.py up`: shows their output, starts again what dies, stops all in order.

honcho stops everything as soon as one process ends and keeps a Python process beside each for its output; here a
killed worker is replaced and the run goes on (docs/decisions/0002).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO, TextIO

RESTARTS_A_MINUTE = 5
STOP_SECONDS = 25.0
"""How long processes may finish what they do after the first signal; the second one shortens it to a second."""

FIRST_SECONDS = 6.0
"""How much earlier the programs that stop first are told."""

COLOURS = (36, 33, 32, 35, 34)


@dataclass
class Program:
    """One command line to keep running."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    may_end: bool = False
    """Whether an end with exit code 0 is an end, and no reason to start it again."""
    stops_first: bool = False
    """Whether it needs the others to stop in order: they are told when it has ended, or after FIRST_SECONDS."""


@dataclass
class _Child:
    program: Program
    process: subprocess.Popen[bytes] | None = None
    started: deque[float] = field(default_factory=deque)
    start_at: float = 0.0
    done: bool = False
    rest: bytes = b""


class Supervisor:
    """Keeps programs running until a signal comes or one of them dies too often; `run()` is the whole life.

    Each program leads a process group of its own, so that a Ctrl-C reaches only this process, which passes it on; what
    a dead leader leaves in its group is killed before it is started again. `tick` is called about once a second.
    """

    def __init__(
        self,
        programs: Sequence[Program],
        *,
        out: TextIO,
        tick: Callable[[], None] = lambda: None,
        keep_open: Sequence[int] = (),
        directory: str | os.PathLike[str] | None = None,
    ) -> None:
        self.children = [_Child(program) for program in programs]
        self.out = out
        self.tick = tick
        self.keep_open = tuple(keep_open)
        self.directory = directory
        self.selector = selectors.DefaultSelector()
        self.width = max(len(program.name) for program in programs)
        self.colours = out.isatty()
        self.signals = 0
        self.stop_by: float | None = None
        self.others_by: float | None = None
        self.failed = False

    def run(self) -> int:
        """Starts everything and returns when all have ended: 0 after a signal, 1 when a program failed for good."""
        before = {sign: signal.signal(sign, self._heard) for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        os.set_blocking(reading, False)
        waker = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        self.selector.register(reading, selectors.EVENT_READ, None)
        next_tick = time.monotonic() + 1.0
        try:
            while not all(child.done for child in self.children):
                self._start_due()
                for key, _ in self.selector.select(timeout=0.2):
                    if key.data is None:
                        os.read(reading, 64)
                    else:
                        self._read(key.data)
                self._reap()
                self._stop_on_time()
                if self.stop_by is None and time.monotonic() >= next_tick:
                    self.tick()
                    next_tick = time.monotonic() + 1.0
        finally:
            self._kill_all()
            signal.set_wakeup_fd(waker)
            for sign, handler in before.items():
                signal.signal(sign, handler)
            self.selector.close()
            os.close(reading)
            os.close(writing)
        return 1 if self.failed else 0

    def say(self, name: str, line: str) -> None:
        """Writes one line under a name; when nobody reads any more, everything is stopped."""
        start = f"{name:<{self.width}} | "
        if self.colours:
            at = [child.program.name for child in self.children].index(name) if name != "up" else -1
            start = f"\x1b[{COLOURS[at % len(COLOURS)] if at >= 0 else 1}m{start}\x1b[0m"
        try:
            self.out.write(f"{start}{line}\n")
            self.out.flush()
        except (BrokenPipeError, ValueError):
            self.stop()

    def stop(self) -> None:
        """Asks every process group to finish; `run()` returns when they have, or were killed for being too slow."""
        if self.stop_by is not None:
            return
        self.stop_by = time.monotonic() + STOP_SECONDS
        for child in self.children:
            child.done = child.process is None
        if any(child.program.stops_first and not child.done for child in self.children):
            self.others_by = time.monotonic() + FIRST_SECONDS
            self._tell(first=True)
        else:
            self._tell(first=False)

    def _tell(self, *, first: bool) -> None:
        for child in self.children:
            if child.process is not None and child.program.stops_first == first:
                # SIGINT: Celery's pool children ignore it and finish their task, SIGTERM would kill them in its middle.
                _signal_group(child.process.pid, signal.SIGINT)

    def _heard(self, sign: int, frame: object) -> None:
        self.signals += 1

    def _start_due(self) -> None:
        now = time.monotonic()
        for child in self.children:
            if child.process is None and not child.done and self.stop_by is None and now >= child.start_at:
                child.started.append(now)
                child.process = subprocess.Popen(
                    child.program.command,
                    env={**os.environ, **child.program.environment},
                    cwd=self.directory,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    pass_fds=self.keep_open,
                    preexec_fn=dies_with(os.getpid()),
                )
                assert child.process.stdout is not None
                os.set_blocking(child.process.stdout.fileno(), False)
                self.selector.register(child.process.stdout, selectors.EVENT_READ, child)

    def _read(self, child: _Child) -> None:
        if child.process is None or child.process.stdout is None:
            return
        with contextlib.suppress(BlockingIOError):
            got = os.read(child.process.stdout.fileno(), 65536)
            if not got:
                self._forget_output(child.process.stdout)
            *lines, child.rest = (child.rest + got).split(b"\n")
            if len(child.rest) > 65536 or (not got and child.rest):
                lines, child.rest = [*lines, child.rest], b""
            for line in lines:
                self.say(child.program.name, line.decode(errors="replace").rstrip("\r"))

    def _forget_output(self, stream: IO[bytes]) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(stream)

    def _reap(self) -> None:
        for child in self.children:
            process = child.process
            if process is None or process.poll() is None:
                continue
            # What a dead leader leaves behind would go on with work that is about to be given to somebody else.
            _signal_group(process.pid, signal.SIGKILL)
            self._read(child)
            assert process.stdout is not None
            self._forget_output(process.stdout)
            process.stdout.close()
            child.process, child.rest = None, b""
            self._judge(child, process.returncode)

    def _judge(self, child: _Child, code: int) -> None:
        name = child.program.name
        if self.stop_by is not None or (child.program.may_end and code == 0):
            child.done = True
            return
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        now = time.monotonic()
        while child.started and child.started[0] < now - 60:
            child.started.popleft()
        if len(child.started) > RESTARTS_A_MINUTE:
            child.done = self.failed = True
            self.say("up", f"{name} {how}, for the {len(child.started)}th time within a minute: stopping everything")
            self.stop()
            return
        self.say("up", f"{name} {how}; starting it again")
        child.start_at = now + 0.5

    def _stop_on_time(self) -> None:
        if self.signals:
            if self.stop_by is None:
                self.say("up", "stopping; once more to stop at once")
                self.signals -= 1
                self.stop()
            else:
                self.stop_by = min(self.stop_by, time.monotonic() + 1.0)
                self.others_by = None if self.others_by is None else 0.0
        if self.others_by is not None and (
            time.monotonic() > self.others_by or all(child.done for child in self.children if child.program.stops_first)
        ):
            self.others_by = None
            self._tell(first=False)
        if self.stop_by is not None and time.monotonic() > self.stop_by:
            for child in self.children:
                if child.process is not None:
                    self.say("up", f"{child.program.name} does not stop: killing it")
            self._kill_all()

    def _kill_all(self) -> None:
        for child in self.children:
            if child.process is not None:
                _signal_group(child.process.pid, signal.SIGKILL)
                child.process.wait()


def _signal_group(leader: int, sign: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(leader, sign)


def dies_with(parent: int) -> Callable[[], None] | None:
    """What a child calls first (`preexec_fn`) so that it is killed when the thread that started it ends; Linux only.

    SIGKILL and no softer signal: a program that is just starting, or whose output nobody reads any more, may miss that.
    """
    if sys.platform != "linux":
        return None
    # Looked up here: between fork and exec a child should do as little as it can.
    prctl = ctypes.CDLL(None).prctl

    def arrange() -> None:
        prctl(1, int(signal.SIGKILL))  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            os._exit(1)

    return arrange
