"""The live log of a running gate, over server-sent events: a raw ASGI application, so that a watcher takes no thread.

Django says who may watch, at the opening and again with every keep-alive (`GateRunEndpoint.log_stream`). The rows are
read for each watcher by itself, a few times a second, in two threads: watchers are few, and so are a run's pieces.
"""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from django.core.handlers.wsgi import WSGIHandler
from django.db import connection

from gates import live
from pipeline import rawroutes
from pipeline.ending import OF_THIS_PROCESS, Ending
from pipeline.problems import document
from pipeline.stream import RETRY_MS, EventStream, Limits, last_words, notice_the_end, send_whole

log = logging.getLogger(__name__)

TICK_SECONDS = 0.25
READERS = 2


class Watcher:
    """One connection: where it is in the log, and whether its client has gone."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.gone = False
        self.wake = asyncio.Event()

    def leave(self) -> None:
        """It is over, from either side."""
        self.gone = True
        self.wake.set()


class LogStream(EventStream):
    """The raw ASGI application at `/api/v1/gate-runs/<id>/log/stream/`."""

    def __init__(self, answer: Any, limits: Limits | None = None, ending: Ending | None = None) -> None:
        super().__init__(answer, lambda event: b"", limits, ending)
        self._readers = ThreadPoolExecutor(READERS, "log-reader")

    def close(self) -> None:
        """End the threads, once no watcher is left."""
        super().close()
        self._readers.shutdown()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request: with a stream when Django lets it, else with what Django says."""
        answer = await self.again(scope)
        opening: Any = answer.opening
        if opening is None:
            return await send_whole(send, answer)
        if self.open[opening.principal] >= self.limits.per_principal:
            return await send_whole(send, self.too_many(answer))
        self.open[opening.principal] += 1
        watcher = Watcher(opening.after)
        listening = asyncio.create_task(notice_the_end(receive, watcher))
        try:
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            with self.ending.telling(watcher.leave):
                await self._talk(watcher, opening.gate_run, scope, send)
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            pass  # the client went away in the middle of a message
        finally:
            listening.cancel()
            self.open[opening.principal] -= 1
            self.open += type(self.open)()  # forgets those who have none
        return None

    async def _talk(self, watcher: Watcher, gate_run: str, scope: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()
        ends_at, beats_at = loop.time() + self.limits.life, loop.time() + self.limits.keepalive

        async def say(text: bytes) -> None:
            await send({"type": "http.response.body", "body": text, "more_body": True})

        await say(f"retry: {RETRY_MS}\n\n".encode())
        while not watcher.gone:
            if loop.time() >= ends_at:
                return await say(last_words("bye", {"reason": "lifetime", "seconds": self.limits.life}))
            if loop.time() >= beats_at:
                answer = await self.again(scope)
                if answer.opening is None and answer.status < 500:
                    with suppress(ValueError):
                        await say(last_words("error", json.loads(answer.body)))
                    return None
                await say(b": keep-alive\n\n")
                beats_at = loop.time() + self.limits.keepalive
            try:
                found = await loop.run_in_executor(self._readers, _read, gate_run, watcher.after)
            except Exception as problem:
                log.warning("a live log could not be read: %s", problem)
                told = document(503, "unavailable", "The database did not answer in time; connect again")
                return await say(last_words("error", told))
            for number, text in found.pieces:
                watcher.after = number
                await say(live.frame(number, text))
            if found.ended:
                return await say(live.last_frame(found.ended))
            if not found.pieces:
                with suppress(TimeoutError):
                    async with asyncio.timeout(TICK_SECONDS):
                        await watcher.wake.wait()
        return None


def _read(gate_run: str, after: int) -> live.Page:
    try:
        return live.page(gate_run, after)
    finally:
        connection.close()  # back to the pool


rawroutes.register(
    r"/api/v1/gate-runs/[^/]+/log/stream/", LogStream(WSGIHandler().get_response, ending=OF_THIS_PROCESS)
)
