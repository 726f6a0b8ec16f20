"""Requests that wait for something to do, without a thread or a connection each: one hub a process looks for all.

A handler that has nothing to say yet answers 204 with `X-Wait-Seconds` (see `pipeline.rest.NotYet`). The LongPoll
before Django keeps such a request, and asks Django again when the hub has found something, until that time is over.
What is looked for is registered by the app that owns the address: a path and a probe, one cheap query that counts
what there is to have. When the process is told to end, everybody is told at once that there was nothing.
"""

import asyncio
import logging
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from django.db import close_old_connections

from pipeline.ending import Ending

Application = Callable[[Any, Any, Any], Awaitable[None]]
Probe = Callable[[], int]

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1
"""How often the hub looks while somebody waits."""
MAX_BODY_BYTES = 64 * 1024
"""A longer body is handed through at once: nothing that waits needs it."""
AGAIN_SECONDS = (0.0, 0.5, 1.0, 2.0)
"""How long a waiter that found nothing for itself is passed over: what there is may not be for it."""

WAITS = "signalbox.waits"
"""In the scope of a request that is kept until there is something for it."""
WAIT_HEADER = "X-Wait-Seconds"
"""In an answer of Django's to such a request: there is nothing yet, and it may wait so long since it came."""

_waitable: list[tuple[re.Pattern[str], Probe]] = []


def register(path: str, probe: Probe) -> None:
    """POST requests to paths that match `path` may wait until `probe` counts something."""
    _waitable.append((re.compile(path), probe))


class Hub:
    """Those who wait for one probe, in the order in which they came, and the task that looks for them."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self._waiters: deque[tuple[float, asyncio.Future[None]]] = deque()
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, seconds: float, *, not_before: float = 0.0) -> bool:
        """Wait until there may be something, `seconds` at most; False when they passed.

        `not_before` (of time.monotonic) keeps it out of the queue for a while.
        """
        called: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (not_before, called)
        self._waiters.append(entry)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            await asyncio.wait_for(called, seconds)
        except TimeoutError:
            return False
        finally:
            if entry in self._waiters:
                self._waiters.remove(entry)
        return True

    async def _look(self) -> None:
        while self._waiters:
            try:
                there = await asyncio.to_thread(self._count)
            except Exception as problem:  # the database is away: those who wait go on waiting
                log.warning("looking for those who wait failed: %s", problem)
                there = 0
            now = time.monotonic()
            for entry in [entry for entry in self._waiters if entry[0] <= now][:there]:
                self._waiters.remove(entry)
                if not entry[1].done():
                    entry[1].set_result(None)
            await asyncio.sleep(LOOK_SECONDS)

    def _count(self) -> int:
        close_old_connections()
        try:
            return self.probe()
        finally:
            close_old_connections()


class LongPoll:
    """The ASGI application before Django that keeps requests which have no answer yet."""

    def __init__(self, django: Application, ending: Ending | None = None) -> None:
        self.django = django
        self._ending = ending or Ending()
        self._hubs: dict[Probe, Hub] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer the request, waiting where it may wait. A client that goes away is not answered, nor asked for."""
        probe = next((probe for path, probe in _waitable if path.fullmatch(scope["path"])), None)
        if probe is None or scope["method"] != "POST":
            await self.django(scope, receive, send)
            return
        body, whole = await _read(receive)
        if not whole:
            await self.django(scope, _replaying(body, receive), send)
            return
        hub = self._hubs.setdefault(probe, Hub(probe))
        scope = {**scope, WAITS: True}
        started = time.monotonic()
        over = asyncio.Event()
        gone = asyncio.create_task(_gone(receive, over))
        try:
            with self._ending.telling(over.set):
                for tried in range(10_000):
                    answer = _Kept()
                    await self.django(scope, _replaying(body, None), answer)
                    left = answer.wait_seconds - (time.monotonic() - started)
                    if left <= 0 or over.is_set():
                        break
                    pause = AGAIN_SECONDS[min(tried, len(AGAIN_SECONDS) - 1)]
                    if not await self._called(hub, left, time.monotonic() + pause, over):
                        break
        finally:
            gone.cancel()
        for message in answer.messages:
            await send(message)

    async def _called(self, hub: Hub, seconds: float, not_before: float, over: asyncio.Event) -> bool:
        waiting = asyncio.create_task(hub.wait(seconds, not_before=not_before))
        ending = asyncio.create_task(over.wait())
        done, _pending = await asyncio.wait({waiting, ending}, return_when=asyncio.FIRST_COMPLETED)
        ending.cancel()
        if waiting not in done:
            waiting.cancel()
            return False
        return waiting.result()


class _Kept:
    """Takes an answer instead of the client, and reads from its head how long the request may wait."""

    def __init__(self) -> None:
        self.messages: list[Any] = []
        self.wait_seconds = 0.0

    async def __call__(self, message: Any) -> None:
        if message["type"] == "http.response.start":
            headers = []
            for name, value in message["headers"]:
                if name.lower() == WAIT_HEADER.lower().encode():
                    self.wait_seconds = float(value)
                else:
                    headers.append((name, value))
            message = {**message, "headers": headers}
        self.messages.append(message)


async def _read(receive: Any) -> tuple[list[Any], bool]:
    """The messages of the body, and whether it is whole."""
    messages: list[Any] = []
    size = 0
    while True:
        message = await receive()
        messages.append(message)
        size += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body"):
            return messages, message["type"] == "http.request"
        if size > MAX_BODY_BYTES:
            return messages, False


def _replaying(messages: list[Any], receive: Any) -> Callable[[], Awaitable[Any]]:
    """A `receive` that gives what was read already, then what comes; without `receive`, nothing more."""
    rest = deque(messages)

    async def again() -> Any:
        if rest:
            return rest.popleft()
        if receive is not None:
            return await receive()
        await asyncio.Event().wait()  # the client's going is watched elsewhere
        return None

    return again


async def _gone(receive: Any, over: asyncio.Event) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    over.set()
