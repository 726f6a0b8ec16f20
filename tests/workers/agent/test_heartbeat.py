"""The heartbeat beside the report: what is being ended is not renewed, and a beat that crosses it loses nothing."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

from tests.workers.agent.conftest import python
from workers.agent import clock
from workers.agent.client import Answer, Patience, Refusal
from workers.agent.heartbeat import Heart, Held

CONTINUE = Answer(200, {"directive": "continue", "leases": []})


class Ear:
    """In the place of the server: hears the beats, and answers each as it is told to."""

    def __init__(self) -> None:
        self.heard: list[list[dict[str, Any]]] = []
        self.answer: Callable[[], Answer] = lambda: CONTINUE
        self._changed = threading.Condition()

    def post_once(self, path: str, body: Mapping[str, Any]) -> Answer:
        try:
            return self.answer()
        finally:
            with self._changed:
                self.heard.append(body["leases"])
                self._changed.notify_all()

    def close(self) -> None:
        """Nothing is open."""

    def next(self, heart: Heart) -> list[dict[str, Any]]:
        """The leases in the beat that is sent when `heart` is told to beat now."""
        before = len(self.heard)
        heart.beat_soon()
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.heard) > before, 10)
            return self.heard[-1]


@pytest.fixture
def ear() -> Ear:
    return Ear()


@pytest.fixture
def heart(ear: Ear) -> Iterator[Heart]:
    beating = Heart(ear, "W1", interval_seconds=20, patience=Patience())  # type: ignore[arg-type]
    while not ear.heard:
        time.sleep(0.005)
    yield beating
    beating.close()


def test_a_lease_whose_end_is_under_way_is_left_out_until_it_must_be_renewed(heart: Heart, ear: Ear) -> None:
    held = Held("L1", 7, confirmed_at=clock.now())
    heart.hold(held)
    assert [lease["id"] for lease in ear.next(heart)] == ["L1"]
    heart.report(held)
    assert ear.next(heart) == []
    held.confirmed_at -= 41
    assert [lease["id"] for lease in ear.next(heart)] == ["L1"]


def test_a_beat_that_crosses_the_report_loses_no_lease(
    heart: Heart, ear: Ear, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held("L1", 7, confirmed_at=clock.now())

    def ended_meanwhile() -> Answer:
        heart.report(held)
        raise Refusal(409, {"code": "stale_claim"})

    heart.hold(held)
    ear.next(heart)
    ear.answer = ended_meanwhile
    ear.next(heart)
    ear.answer = lambda: CONTINUE
    ear.next(heart)
    assert not held.lost
    assert "lost" not in caplog.text


@pytest.mark.parametrize("program", ["pass", "raise SystemExit(3)"])
def test_an_agent_whose_report_takes_its_time_raises_no_alarm(server, make_claim, work_once, caplog, program):
    usual, ends = server.answer, ("/complete/", "/fail/")
    over: list[float] = []

    def slow(call):
        reply = usual(call)
        if call.path.endswith(ends):
            over.append(time.monotonic())
            time.sleep(0.5)
        return reply

    def beat(call):
        if over and call.body["leases"]:
            return 409, {"code": "stale_claim", "detail": "Stale claim"}
        return 200, {"directive": "continue", "leases": []}

    server.answer, server.on_heartbeat = slow, beat
    assert work_once(make_claim(python(program))) == 0
    assert len(server.effects["complete"]) + len(server.effects["fail"]) == 1
    assert "the lease is lost" not in caplog.text
