"""Tools that stand still under a wrapper that goes on beating, and tools that do not want to end."""

import html
import http.cookiejar
import re
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pipeline.ids import from_uuid, to_uuid
from tests.chaos import fleet
from tests.chaos.fleet import STALL_SECONDS, Fleet, is_gone, processes
from tests.chaos.test_events import FULL
from tests.kill.stack import Stack

pytestmark = pytest.mark.kill

SWEEP_SECONDS = 5
DELAY_SECONDS = 3.0
"""What a machine under load may take to carry out a sweep that is due."""

# Programs that print what Claude Code prints, as far as they get, and then nothing for a long time.
START = """
import json, time
def say(**line):
    print(json.dumps(line), flush=True)
say(type="system", subtype="init", model="m")
"""
CALL = 'say(type="assistant", message={"content": [{"type": "tool_use", "id": "1", "name": "Bash"}]})\n'
SILENT = "import time\ntime.sleep(600)\n"

# Takes every signal that can be taken, and so does what it starts.
STUBBORN = """
import os, signal, time
for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
    signal.signal(number, signal.SIG_IGN)
if os.fork() == 0:
    os.setsid()
print("it runs", flush=True)
while True:
    time.sleep(60)
"""


def program(adapter: str, script: str, marker: str) -> tuple[str, list[str]]:
    """A tool that runs `script`; its processes are found by `marker`."""
    return adapter, [sys.executable, "-u", "-c", f"# {marker}\n{script}"]


@pytest.fixture
def made(stack: Stack) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets, which end with the test."""
    fleets: list[Fleet] = []

    def make(*arguments: Any, **options: Any) -> Fleet:
        fleets.append(Fleet(stack, *arguments, **options))
        return fleets[-1]

    yield make
    for one in fleets:
        one.end()


def test_a_tool_that_is_stopped_is_told_as_stalled_in_time_and_a_silent_compile_is_not(
    stack: Stack, made: Callable[..., Fleet]
) -> None:
    tools = {
        # Its last word is that it calls something: only its process says that it stands still.
        "frozen-compile": program("claude", START + CALL + "time.sleep(600)\n", "frozen-compile"),
        "frozen-thought": program("claude", START + "time.sleep(600)\n", "frozen-thought"),
        # Nobody stops it: it waits for a model that never answers.
        "hung": program("claude", START + "time.sleep(600)\n", "hung-thought"),
        "compile": program("claude", START + CALL + "time.sleep(600)\n", "silent-compile"),
        "silent": program("shell", SILENT, "silent-shell"),
    }
    stalls = {"frozen-compile", "frozen-thought", "hung"}
    work = made(tools)
    for name in tools:
        work.agent(name, tool=name)
    workers = {name: to_uuid(work.worker(name)) for name in tools}
    leases = {name: to_uuid(work.lease(name)) for name in tools}
    activity = "SELECT activity FROM workers_worker WHERE id = %s"
    for name in tools:
        expected = "waiting_model" if name in ("frozen-thought", "hung") else "in_tool"
        stack.until(lambda name=name, word=expected: stack.value(activity, workers[name]) == word, 30, f"{name} works")
    for marker in ("frozen-compile", "frozen-thought"):
        fleet.freeze(marker)

    healths: dict[str, set[str]] = {name: set() for name in tools}
    told = (
        "SELECT extract(epoch FROM e.created_at - GREATEST(w.progress_at, %s)), w.transport_seen_at > e.created_at "
        "- interval '4 seconds' FROM pipeline_event e JOIN workers_worker w ON w.id = e.worker_id "
        "WHERE e.kind = 'worker.health_changed' AND e.worker_id = %s AND e.data->>'health' = 'stalled'"
    )
    (frozen_at,) = stack.rows("SELECT clock_timestamp()")[0]

    def look() -> bool:
        for name, pk in workers.items():
            healths[name].add(work.ask(f"/workers/{from_uuid(pk)}/", key=stack.admin_key)[1]["health"])
        return all(stack.rows(told, frozen_at, workers[name]) for name in stalls)

    stack.until(look, STALL_SECONDS + SWEEP_SECONDS + 30, "the three are told as stalled")
    found = {name: stack.rows(told, frozen_at, workers[name])[0] for name in stalls}
    print({name: f"told {seconds:.1f} s after it last moved" for name, (seconds, _beating) in sorted(found.items())})
    for name, (seconds, is_beating) in found.items():
        assert seconds <= STALL_SECONDS + SWEEP_SECONDS + DELAY_SECONDS, name
        assert is_beating, f"the wrapper of {name} did not beat: this was no test"

    moved = "SELECT extract(epoch FROM clock_timestamp() - progress_at) FROM workers_worker WHERE id = %s"
    ended = "SELECT end_cause, stop_confirmed FROM workers_lease WHERE id = %s AND ended_at IS NOT NULL"
    quiet = ("compile", "silent")

    def long_silent() -> bool:
        look()
        return all(stack.value(moved, workers[name]) > STALL_SECONDS + SWEEP_SECONDS for name in quiet)

    stack.until(long_silent, STALL_SECONDS + SWEEP_SECONDS + 30, "the silent ones are so for long")
    for name in quiet:
        assert healths[name] <= {"healthy", "late"}, name
        assert stack.rows(told, frozen_at, workers[name]) == []
        assert stack.rows(ended, leases[name]) == []
    for name in stalls:
        assert "stalled" in healths[name]
    if FULL:
        # They were shown; as long again, and they are asked to stop. What cannot hear is killed, and their leases end.
        limit = STALL_SECONDS + 4 * SWEEP_SECONDS + 30
        stack.until(lambda: all(stack.rows(ended, leases[name]) for name in stalls), limit, "the stalled are stopped")
        assert {stack.rows(ended, leases[name])[0] for name in stalls} == {("failed", True)}


class Browser:
    """A person who is signed in, and reads pages."""

    def __init__(self, stack: Stack) -> None:
        self.url = f"http://127.0.0.1:{stack.port}"
        self.opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar()))
        password = re.search(r"password: (\S+)", stack.log.read_text())
        assert password, "the first administrator's password was not shown"
        token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', self.read("/login/", whole=True))
        assert token
        given = {"username": "admin", "password": password[1], "csrfmiddlewaretoken": token[1]}
        request = urllib.request.Request(f"{self.url}/login/", data=urllib.parse.urlencode(given).encode())
        request.add_header("Referer", f"{self.url}/login/")
        with self.opener.open(request, timeout=30) as answer:
            assert "/login/" not in answer.url, "signing in failed"

    def read(self, path: str, *, whole: bool = False) -> str:
        """The text of a page, or all of its HTML."""
        with self.opener.open(self.url + path, timeout=30) as answer:
            text = answer.read().decode()
        return text if whole else _text(text)

    def row(self, path: str, pk: str) -> str:
        """The text of the row of a list that links to the thing of that id; empty when there is none."""
        rows = re.findall(r"<tr\b.*?</tr>", self.read(path, whole=True), flags=re.DOTALL)
        return _text(" ".join(row for row in rows if f"/{pk}/" in row))


def _text(page: str) -> str:
    page = re.sub(r"<(script|style|head)\b.*?</\1>", " ", page, flags=re.DOTALL)
    return html.unescape(re.sub(r"<[^>]+>", " ", page))


class Watch(threading.Thread):
    """Reads pages and API all the time, and notes every claim of "stopped" beside whether the tool was still there."""

    def __init__(self, sources: dict[str, Callable[[], str]], pids: list[int]) -> None:
        super().__init__(daemon=True)
        self.sources, self.pids = sources, pids
        self.over = threading.Event()
        self.said: dict[str, list[str]] = {name: [] for name in sources}
        self.lies: list[str] = []
        self.looks = 0
        self.problem: Exception | None = None

    def run(self) -> None:
        """Until it is over, and once more."""
        try:
            ending = False
            while not ending:
                ending = self.over.is_set()
                for name, read in self.sources.items():
                    words = _words_of_stopping(read())
                    # Looked at behind the answer: what lives now lived when it was given.
                    alive = [pid for pid in self.pids if not is_gone(pid)]
                    self.looks += 1
                    if words not in self.said[name][-1:]:
                        self.said[name].append(words)
                    if alive and "stopped" in words:
                        self.lies.append(f"{name} says {words!r} while {alive} live")
                time.sleep(0.02)
        except Exception as problem:
            self.problem = problem


def _words_of_stopping(text: str) -> str:
    """What a text says of stopping, in its order."""
    words = re.findall(r"stop requested|stopping|stopped, unconfirmed|stopped", text.lower())
    return ", ".join(dict.fromkeys(words))


def test_a_child_that_traps_all_signals_is_stopped_and_nothing_says_so_before_it_is_true(
    stack: Stack, made: Callable[..., Fleet]
) -> None:
    work = made({"stubborn": program("shell", STUBBORN, "traps-all")})
    work.agent("stubborn")
    worker, lease = work.worker("stubborn"), work.lease("stubborn")
    stack.until(lambda: len(processes("traps-all")) == 2, 30, "the tool and its child run")
    pids = processes("traps-all")
    person = Browser(stack)

    def of_api(path: str, *names: str) -> str:
        status, body = work.ask(path, key=stack.admin_key)
        assert status == 200
        return " ".join(str(body[name]) for name in names)

    watch = Watch(
        {
            "the worker's page": lambda: person.read(f"/workers/{worker}/"),
            "the list of the living": lambda: person.row("/workers/?state=alive", worker),
            "the list of the stopped": lambda: person.row("/workers/?state=stopped", worker),
            "the API on the worker": lambda: of_api(f"/workers/{worker}/", "state", "stop_label"),
            "the API on the lease": lambda: of_api(f"/leases/{lease}/", "stop_label"),
        },
        pids,
    )
    watch.start()
    try:
        stack.until(lambda: watch.looks > 4, 30, "somebody looks")
        asked = work.ask(f"/workers/{worker}/shutdown/", {"mode": "now", "reason": "enough"}, stack.admin_key)
        assert asked[0] == 200, asked
        assert not any(map(is_gone, pids))
        state = "SELECT state FROM workers_worker WHERE id = %s"
        stack.until(lambda: stack.value(state, to_uuid(worker)) == "stopped", 60, "the worker has stopped")
    finally:
        watch.over.set()
        watch.join(30)
    assert watch.problem is None
    print(f"{watch.looks} looks; said: {watch.said}")
    assert watch.lies == []
    assert all(map(is_gone, pids))
    assert "stopped" in watch.said["the worker's page"][-1]
    assert watch.said["the API on the lease"][0] == ""
    assert watch.said["the API on the lease"][-1] == "stopped"
    assert set(watch.said["the API on the lease"]) & {"stop requested", "stopping"}
    [(confirmed, acknowledged_at, asked_at, ended_at, exit_code)] = stack.rows(
        "SELECT l.stop_confirmed, l.stop_acknowledged_at, l.stop_requested_at, l.ended_at, a.exit_code "
        "FROM workers_lease l JOIN pipeline_stepattempt a ON a.id = l.attempt_id WHERE l.id = %s",
        to_uuid(lease),
    )
    assert confirmed
    assert asked_at < acknowledged_at < ended_at
    assert exit_code == 128 + 9  # neither SIGINT nor SIGTERM ended it
