"""Five beats at once, killed and started again in turn: each due moment of the sweep is there, and was done once."""

import os
import random
import signal
import subprocess
import sys
import time
from itertools import pairwise

import pytest

from tests.chaos.test_events import FULL, SEED
from tests.kill.stack import ROOT, Stack, environment

pytestmark = pytest.mark.kill

BEATS = 5
SECONDS = 600.0 if FULL else 30.0
PERIOD_SECONDS = 5.0


class Beats:
    """Beats beside the product's own, which its supervisor starts again by itself."""

    def __init__(self, stack: Stack) -> None:
        self.stack = stack
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """One more."""
        command = [sys.executable, "-m", "celery", "--app", "pipeline.celery", "--quiet", "beat", "--pidfile="]
        with self.stack.log.open("ab") as out:
            self.running.append(
                subprocess.Popen(
                    [*command, "--schedule", str(self.stack.parent / f"beat-{len(self.running)}-{time.monotonic()}")],
                    cwd=ROOT,
                    env=environment(SIGNALBOX_DATA=str(self.stack.data), SIGNALBOX_ROLE="worker"),
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            )

    def kill(self, number: int) -> None:
        """kill -9 of one of ours, or for the number behind the last of the product's own."""
        if number == len(self.running):
            for pid in self.stack.processes("beat")[:1]:
                os.kill(pid, signal.SIGKILL)
            return
        one = self.running.pop(number)
        one.kill()
        one.wait()

    def end(self) -> None:
        """Kill all of ours."""
        while self.running:
            self.kill(0)


def test_each_due_sweep_runs_once_whichever_beat_dies(stack: Stack) -> None:
    dice = random.Random(f"{SEED} beats")
    beats = Beats(stack)
    kills = 0
    try:
        for _number in range(BEATS - 1):
            beats.start()
        stack.until(lambda: len(stack.processes("beat")) >= BEATS, 60, f"{BEATS} beats run: {stack.processes('beat')}")
        time.sleep(PERIOD_SECONDS * 2)
        (began,) = stack.rows("SELECT clock_timestamp()")[0]
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            time.sleep(dice.uniform(2.0, 4.0))
            beats.kill(dice.randrange(len(beats.running) + 1))
            kills += 1
            while len(beats.running) < BEATS - 1:
                beats.start()
        (ended,) = stack.rows("SELECT clock_timestamp()")[0]
        time.sleep(PERIOD_SECONDS * 2)
    finally:
        beats.end()
    rows = stack.rows(
        "SELECT due_at, created_at, ended_at FROM pipeline_tick WHERE schedule = 'sweep' AND due_at > %s "
        "AND due_at < %s ORDER BY due_at",
        began,
        ended,
    )
    late = [(created - due).total_seconds() for due, created, _ended in rows]
    gaps = [(later[1] - earlier[1]).total_seconds() for earlier, later in pairwise(rows)]
    print(
        f"{len(rows)} sweeps of {BEATS} beats, {kills} kills; taken {min(late):.2f} to {max(late):.2f} s after "
        f"they were due; longest time without a sweep {max(gaps):.2f} s for a period of {PERIOD_SECONDS} s"
    )
    dues = [due for due, _created, _ended in rows]
    missing = [str(earlier) for earlier, later in pairwise(dues) if (later - earlier).total_seconds() != PERIOD_SECONDS]
    assert missing == [], f"no sweep after {missing}"
    assert len(set(dues)) == len(dues) >= SECONDS / PERIOD_SECONDS - 1
    assert [str(due) for due, _created, ended_at in rows if ended_at is None] == []
