"""A web process that is told to end answers those who wait in it, and lets the signal go on to its server."""

import asyncio
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from pipeline.ending import SIGNALS, Ending

ROOT = Path(__file__).parents[2]

# A server with the product's options, before an application that has nothing to give: its requests wait.
WAITING = """
import sys, uvicorn
from pipeline import longpoll

async def nothing(scope, receive, send):
    print("asked", flush=True)
    headers = [(longpoll.WAIT_HEADER.encode(), b"20")]
    await send({"type": "http.response.start", "status": 204, "headers": headers})
    await send({"type": "http.response.body", "body": b""})

longpoll.register("/take/", lambda: 0)
options = {"lifespan": "off", "timeout_graceful_shutdown": 3, "access_log": False, "log_level": "warning"}
uvicorn.run(longpoll.LongPoll(nothing), port=int(sys.argv[1]), **options)
"""


@pytest.mark.parametrize("sign", SIGNALS)
def test_those_who_wait_are_told_and_the_server_too(heard: list[int], sign: signal.Signals) -> None:
    ending = Ending()

    async def wait() -> None:
        over, later = asyncio.Event(), asyncio.Event()
        with ending.telling(over.set), ending.telling(lambda: None):
            signal.raise_signal(sign)
            async with asyncio.timeout(5):
                await over.wait()
        with ending.telling(later.set):
            assert later.is_set()

    with asyncio.Runner() as runner:
        runner.get_loop()
        # The runner's own handler would come before the fixture's.
        runner.get_loop().run_until_complete(wait())
    assert heard == [sign]


def test_where_nobody_waits_nothing_is_heard(heard: list[int]) -> None:
    ending = Ending()
    signal.raise_signal(signal.SIGTERM)
    assert (heard, ending.told) == ([signal.SIGTERM], False)


def test_another_thread_than_the_main_one_hears_no_signal(heard: list[int]) -> None:
    told: list[Any] = []

    async def wait() -> None:
        with Ending().telling(lambda: told.append("told")):
            told.append(signal.getsignal(signal.SIGTERM))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=lambda: asyncio.run(wait()))
    thread.start()
    thread.join(10)
    assert told == [before]


@pytest.mark.parametrize("sign", SIGNALS)
def test_a_server_that_is_stopped_answers_its_long_polls_and_ends_at_once(sign: signal.Signals) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {"PYTHONPATH": str(ROOT), "DJANGO_SETTINGS_MODULE": "pipeline.settings"}
    server = subprocess.Popen(
        [sys.executable, "-c", WAITING, str(port)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    answers: list[int] = []

    def ask() -> None:
        end = time.monotonic() + 20
        while not answers and time.monotonic() < end:
            try:
                asked = urllib.request.Request(f"http://127.0.0.1:{port}/take/", data=b"{}", method="POST")
                with urllib.request.urlopen(asked, timeout=30) as answer:
                    answers.append(answer.status)
            except OSError:
                time.sleep(0.05)

    client = threading.Thread(target=ask)
    client.start()
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "asked\n"
        time.sleep(0.3)
        began = time.monotonic()
        server.send_signal(sign)
        _said, complaints = server.communicate(timeout=20)
        took = time.monotonic() - began
    finally:
        server.kill()
        client.join(25)
    assert answers == [204]
    assert took < 2
    assert "Cancel" not in complaints
    assert "Exception" not in complaints
