"""kill -9 of the web process under readers of the event stream: they resume, and have each event once, in order."""

import http.client
import threading
import time
from collections.abc import Iterator

import pytest

from tests.kill.stack import Stack

pytestmark = pytest.mark.kill

PATH = "/api/v1/events/stream/?kind=note.added"


class Follower(threading.Thread):
    """A client that stays on the stream as a browser does: it connects again behind the last id that it has seen."""

    def __init__(self, stack: Stack) -> None:
        super().__init__(daemon=True)
        self.stack = stack
        self.last_id = "0-0-0"
        self.cursors: list[str] = []
        self.connections = 0
        self.stopped = threading.Event()

    def run(self) -> None:
        """Until stopped."""
        while not self.stopped.is_set():
            try:
                self._listen()
            except (OSError, http.client.HTTPException):
                time.sleep(0.2)

    def _listen(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.stack.port, timeout=5)
        try:
            headers = {"Authorization": f"Bearer {self.stack.admin_key}", "Last-Event-ID": self.last_id}
            connection.request("GET", PATH, headers=headers)
            answer = connection.getresponse()
            if answer.status != 200:
                raise http.client.HTTPException(str(answer.status))
            self.connections += 1
            told: dict[str, str] = {}
            while not self.stopped.is_set() and (line := answer.readline()):
                text = line.decode().rstrip("\n")
                if text:
                    name, _colon, value = text.partition(": ")
                    told[name] = value
                    continue
                # Only a message that came whole counts, as the standard has it.
                self.last_id = told.get("id", self.last_id)
                if "data" in told and "id" in told:
                    self.cursors.append(told["id"])
                told = {}
        finally:
            connection.close()


@pytest.fixture
def stack() -> Iterator[Stack]:
    """A stack of its own."""
    made = Stack()
    try:
        made.start()
        yield made
    finally:
        made.end()


def test_readers_of_a_web_process_that_is_killed_resume_without_loss_or_doubling(stack: Stack) -> None:
    walk = stack.walk("a")
    followers = [Follower(stack) for _ in range(3)]
    for follower in followers:
        follower.start()
    accepted = 0
    for number in range(400):
        if number in (100, 250):
            connected = 1 if number == 100 else 2
            stack.until(
                lambda connected=connected: all(one.connections >= connected for one in followers), 60, "all listen"
            )
            stack.kill("uvicorn")
        body = {"kind": "x", "run": walk.run, "message": str(number)}
        accepted += stack.post("/api/v1/events/", body)[0] == 201
        time.sleep(0.02)
    stack.until(lambda: all(one.connections >= 3 for one in followers), 60, "all listen again")
    accepted += stack.post("/api/v1/events/", {"kind": "x", "run": walk.run, "message": "the last"})[0] == 201
    in_order = (
        "SELECT epoch || '-' || xid || '-' || seq FROM pipeline_event e WHERE kind = 'note.added' "
        "ORDER BY e.epoch, e.xid, e.seq"
    )
    written = [cursor for (cursor,) in stack.rows(in_order)]
    for follower in followers:
        stack.until(lambda follower=follower: written[-1] in follower.cursors, 30, "a reader has the last event")
        follower.stopped.set()

    assert accepted > 100
    assert len(written) >= accepted
    for follower in followers:
        assert follower.cursors == written
