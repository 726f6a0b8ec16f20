"""A broker that loses its memory again and again under load: every event is still reacted to."""

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator

import pytest
import redis

from pipeline import embedded
from tests.chaos.test_events import FULL
from tests.kill.stack import Stack, percentile

pytestmark = pytest.mark.kill

ROUNDS = 12 if FULL else 3
ROUND_SECONDS = 8.0
PROMISED_SECONDS = 15.0


class Load:
    """Holds placed over one run and released, by three callers at once: each release is an event with a reaction."""

    def __init__(self, stack: Stack, run: str) -> None:
        self.stack, self.run = stack, run
        self.over = threading.Event()
        self.callers = [threading.Thread(target=self._call, daemon=True) for _number in range(3)]

    def __enter__(self) -> "Load":
        for caller in self.callers:
            caller.start()
        return self

    def __exit__(self, *_problem: object) -> None:
        self.over.set()
        for caller in self.callers:
            caller.join(30)

    def _call(self) -> None:
        while not self.over.is_set():
            for verb in ("hold", "release"):
                self.stack.post(f"/api/v1/runs/{self.run}/{verb}/", {"reason": "look"})


@contextlib.contextmanager
def nobody_takes_messages(stack: Stack) -> Iterator[None]:
    """The Celery workers stand still, as under a heavy load: messages pile up in the broker."""
    frozen = [pid for pid in stack.processes("celery") if b"--queues" in _line(pid)]
    assert frozen, "no Celery worker runs"
    for pid in frozen:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in frozen:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def _line(pid: int) -> bytes:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        return file.read()


def forget(stack: Stack, *, killed: bool) -> int:
    """Empty the broker, by FLUSHALL or by kill -9 with nothing left on its disk; how many messages were lost."""
    place = embedded.place(stack.data)
    broker = redis.Redis(unix_socket_path=str(place.valkey_socket))
    waiting = int(broker.llen("celery"))  # type: ignore[arg-type]  # the client is not asynchronous
    if not killed:
        broker.flushall()
    else:
        pid = int((place.valkey / "valkey.pid").read_text().split()[0])
        shutil.rmtree(place.valkey / "appendonlydir")
        os.kill(pid, signal.SIGKILL)
    broker.close()
    return waiting


def test_every_event_is_reacted_to_though_the_broker_forgets_what_it_was_told(stack: Stack) -> None:
    walk = stack.walk("a")
    (began,) = stack.rows("SELECT clock_timestamp()")[0]
    lost = 0
    with Load(stack, walk.run):
        for number in range(ROUNDS):
            time.sleep(ROUND_SECONDS / 2)
            with nobody_takes_messages(stack):
                time.sleep(1.5)
                lost += forget(stack, killed=number % 2 == 1)
            time.sleep(ROUND_SECONDS / 2)
    unhandled = "SELECT count(*) FROM pipeline_event WHERE handled_at IS NULL AND created_at > %s"
    stack.until(lambda: stack.value(unhandled, began) == 0, 60, "every event is handled")
    rows = stack.rows(
        "SELECT id, kind, extract(epoch FROM handled_at - created_at)::float FROM pipeline_event WHERE created_at > %s",
        began,
    )
    waits = [seconds for _pk, kind, seconds in rows if kind == "hold.released"]
    print(
        f"{len(rows)} events, {len(waits)} with reactions, {lost} messages lost in {ROUNDS} rounds; seconds to the "
        f"reaction: median {percentile(waits, 0.5):.2f}, p99 {percentile(waits, 0.99):.2f}, longest {max(waits):.2f}"
    )
    assert lost > 0, "the broker lost nothing: this was no test"
    assert len(waits) > 20 * ROUNDS
    late = [(pk, kind, seconds) for pk, kind, seconds in rows if seconds > PROMISED_SECONDS]
    assert late == [], f"{len(late)} of {len(rows)} came late, such as {late[:5]}"
    stack.manage("doctor")
