"""The supervisor of `manage.py up`: shows output, restarts what dies, gives up in time, leaves nobody behind."""

import io
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.supervisor import RESTARTS_A_MINUTE, Program, Supervisor


class Listener(io.StringIO):
    """Output that calls `heard` with every line."""

    def __init__(self, heard: Callable[[str], None] = lambda line: None) -> None:
        super().__init__()
        self.heard = heard

    def write(self, text: str) -> int:
        self.heard(text)
        return super().write(text)


def python(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", code]


SLEEPER = python("import os, time; print('pid', os.getpid()); time.sleep(60)")


def sleeps(pid: int) -> bool:
    """Whether `pid` still runs one of the sleeping programs of these tests."""
    try:
        return b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def test_a_signal_stops_everything_with_exit_code_0() -> None:
    pids: list[int] = []

    def heard(line: str) -> None:
        if " pid " in line:
            pids.append(int(line.split()[-1]))
            if len(pids) == 2:
                os.kill(os.getpid(), signal.SIGTERM)

    assert Supervisor([Program("one", SLEEPER), Program("two", SLEEPER)], out=Listener(heard)).run() == 0
    assert len(pids) == 2
    assert not any(sleeps(pid) for pid in pids)


def test_a_killed_program_is_started_again() -> None:
    pids: list[int] = []

    def heard(line: str) -> None:
        if " pid " in line:
            pids.append(int(line.split()[-1]))
            os.kill(*((pids[-1], signal.SIGKILL) if len(pids) == 1 else (os.getpid(), signal.SIGINT)))

    out = Listener(heard)
    assert Supervisor([Program("one", SLEEPER)], out=out).run() == 0
    assert len(pids) == 2
    assert "up  | one was killed by SIGKILL; starting it again" in out.getvalue()


def test_a_program_that_dies_again_and_again_stops_everything_with_exit_code_1() -> None:
    out = Listener()
    programs = [Program("bad", python("raise SystemExit(3)")), Program("good", SLEEPER)]
    assert Supervisor(programs, out=out).run() == 1
    text = out.getvalue()
    assert text.count("bad ended with exit code 3; starting it again") == RESTARTS_A_MINUTE
    assert f"for the {RESTARTS_A_MINUTE + 1}th time within a minute" in text


def test_a_program_that_may_end_ends_and_the_others_go_on() -> None:
    seen: list[bool] = []
    out = Listener()
    programs = [Program("demo", python("print('done')"), may_end=True), Program("web", SLEEPER)]

    def tick() -> None:
        seen.append(supervisor.children[0].done and not supervisor.children[1].done)
        if seen[-1] or len(seen) == 20:
            supervisor.stop()

    supervisor = Supervisor(programs, out=out, tick=tick)
    assert supervisor.run() == 0
    assert seen[-1]
    assert "demo | done" in out.getvalue()
    assert "starting it again" not in out.getvalue()


def test_what_a_dead_leader_leaves_in_its_group_is_killed() -> None:
    pids: list[int] = []
    leader = python(
        "import os, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "print('pid', child.pid); child.wait()"
    )

    def heard(line: str) -> None:
        if " pid " in line:
            pids.append(int(line.split()[-1]))
            victim = (os.getpgid(pids[0]), signal.SIGKILL) if len(pids) == 1 else (os.getpid(), signal.SIGINT)
            os.kill(*victim)

    assert Supervisor([Program("one", leader)], out=Listener(heard)).run() == 0
    assert len(pids) == 2
    assert not any(sleeps(pid) for pid in pids)


def test_a_program_that_ignores_the_signal_is_killed_after_the_second_one() -> None:
    deaf = python("import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf'); time.sleep(60)")
    started = time.monotonic()

    def heard(line: str) -> None:
        if "deaf" in line or "once more" in line:
            os.kill(os.getpid(), signal.SIGINT)

    out = Listener(heard)
    assert Supervisor([Program("one", deaf)], out=out).run() == 0
    assert time.monotonic() - started < 20
    assert "one does not stop: killing it" in out.getvalue()


def test_a_program_that_stops_first_has_ended_before_the_others_are_told() -> None:
    # Short sleeps: a signal that comes between Python's look for signals and one long sleep is heard only at its end.
    waits = "signal.signal(signal.SIGINT, told); print('ready')\nwhile True: time.sleep(0.05)"
    start = "import signal, sys, time\ndef told(*_):\n    "
    slow = python(f"{start}time.sleep(0.3); print('goodbye'); sys.exit()\n{waits}")
    server = python(f"{start}print('closing'); sys.exit()\n{waits}")

    def heard(line: str) -> None:
        if out.getvalue().count("ready") == 1 and "ready" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    out = Listener(heard)
    assert Supervisor([Program("web", server), Program("demo", slow, stops_first=True)], out=out).run() == 0
    lines = [line.split(" | ")[1] for line in out.getvalue().splitlines()]
    assert [line for line in lines if line in ("goodbye", "closing")] == ["goodbye", "closing"]


def test_output_without_a_last_newline_and_with_strange_bytes_is_shown() -> None:
    out = Listener()
    odd = python("import sys; sys.stdout.buffer.write(b'caf\\xe9\\nlast')")
    assert Supervisor([Program("one", odd, may_end=True)], out=out).run() == 0
    assert out.getvalue().splitlines() == ["one | caf\N{REPLACEMENT CHARACTER}", "one | last"]


@pytest.mark.kill
def test_children_die_with_a_killed_supervisor() -> None:
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        os.close(reading)
        try:
            with open(writing, "w", buffering=1) as out:
                Supervisor([Program("one", SLEEPER)], out=out).run()
        finally:
            os._exit(1)
    os.close(writing)
    with open(reading) as told:
        pid = int(told.readline().split()[-1])
        os.kill(middle, signal.SIGKILL)
        os.waitpid(middle, 0)
        end = time.monotonic() + 10
        while sleeps(pid):
            assert time.monotonic() < end
            time.sleep(0.02)
