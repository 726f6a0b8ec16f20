"""The log as it grows, over server-sent events: one hub in a process follows it, every client gets its part.

    EventStream (raw ASGI)           Hub
      ask Django: who, what           one query every 150 ms behind its place in the order of commits,
      send what was missed            only while it has clients; each event is written as text once
      join the hub ---------------->  Client: a bounded buffer
      send what it hands out  <-----

A client takes no thread: Django answers its opening, and asks again with every keep-alive whether it may go on.
"""

import asyncio
import io
import json
import logging
import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, TypeVar

from django.conf import settings
from django.core.handlers.asgi import ASGIRequest
from django.db import connection

from pipeline import events
from pipeline.ending import Ending
from pipeline.events import Cursor, Event
from pipeline.problems import CONTENT_TYPE, document

log = logging.getLogger(__name__)

T = TypeVar("T")

PAGE = 500
"""Events in one query of the hub; when there are more it asks again at once."""

CATCH_UP = 200
"""Events in one query of a client that catches up: one page is what a slow one holds in memory."""

CHUNK_BYTES = 64 * 1024
"""What is handed to the server at once: it holds as much before it makes a slow client wait."""

RETRY_MS = 2000
"""What a client is told to wait before it connects again."""

PAUSE_SECONDS = 1.0
"""How long the hub leaves a database alone that did not answer."""

OPENERS = 2
"""Threads for openings and for what clients have missed: many that come back at once wait for each other."""


@dataclass(frozen=True)
class Limits:
    """How long and how much. Durations in seconds."""

    tick: float = 0.15
    keepalive: float = field(default_factory=lambda: float(settings.SIGNALBOX_STREAM_KEEPALIVE_SECONDS))
    life: float = field(default_factory=lambda: float(settings.SIGNALBOX_STREAM_SECONDS))
    per_principal: int = field(default_factory=lambda: int(settings.SIGNALBOX_STREAMS_PER_PRINCIPAL))
    buffer: int = field(default_factory=lambda: int(settings.SIGNALBOX_STREAM_BUFFER))


@dataclass(frozen=True)
class Opening:
    """What Django says of a client that may listen.

    `projects` are those that it may read (None: all), `wants` is its filter, `page(cursor, limit)` the next settled
    events behind a cursor that pass both, and `cursor` the place behind which it begins.
    """

    principal: str
    projects: set[str] | None
    wants: Callable[[Event], bool]
    page: Callable[[Cursor, int], Iterable[Event]]
    cursor: Cursor

    def lets_through(self, event: Event) -> bool:
        """Whether this client gets this event."""
        return (self.projects is None or event.project_id in self.projects) and self.wants(event)


class Frame(NamedTuple):
    """An event and its text in the stream, written once for all clients."""

    event: Event
    cursor: Cursor
    text: bytes


Encode = Callable[[Event], bytes]


def first_words(cursor: Cursor) -> bytes:
    """How a stream begins: when to come back, and behind which place, also for who has not seen an event yet."""
    return f"retry: {RETRY_MS}\nid: {cursor}\n\n".encode()


def last_words(kind: str, told: dict[str, Any]) -> bytes:
    """A message of the server's own: `bye`, `dropped` or `error`. It has no id, so that the client's stays."""
    return f"retry: {RETRY_MS}\nevent: {kind}\ndata: {json.dumps(told, ensure_ascii=False)}\n\n".encode()


class Client:
    """One connection's buffer between the hub, which never waits, and its socket, which may."""

    __slots__ = ("buffer", "dropped", "gone", "limit", "opening", "place", "wake")

    def __init__(self, opening: Opening, limit: int) -> None:
        self.opening = opening
        self.limit = limit
        self.place = opening.cursor
        self.buffer: deque[Frame] = deque()
        self.dropped = self.gone = False
        self.wake = asyncio.Event()

    def offer(self, frames: Sequence[Frame]) -> None:
        """Buffer what this client gets; one whose buffer would pass its limit loses all of it and is to be told."""
        mine = [frame for frame in frames if self.opening.lets_through(frame.event)]
        if not mine or self.dropped:
            return
        if len(self.buffer) + len(mine) > self.limit:
            self.dropped = True
            self.buffer.clear()
        else:
            self.buffer.extend(mine)
        self.wake.set()

    def leave(self) -> None:
        """It is over, from either side."""
        self.gone = True
        self.wake.set()

    def take(self) -> bytes:
        """The next chunk of the buffer, without what the client has seen while it caught up; moves its place on."""
        texts: list[bytes] = []
        size = 0
        while self.buffer and size < CHUNK_BYTES:
            frame = self.buffer.popleft()
            if frame.cursor > self.place:
                self.place = frame.cursor
                texts.append(frame.text)
                size += len(frame.text)
        return b"".join(texts)


class Hub:
    """Follows the log while somebody listens, in one thread with a connection of its own."""

    def __init__(self, encode: Encode, limits: Limits) -> None:
        self._encode = encode
        self._limits = limits
        self._clients: set[Client] = set()
        self._place = events.START
        self._thread = ThreadPoolExecutor(1, "stream-hub")
        self._starting = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    @property
    def place(self) -> Cursor:
        """Everything up to here has been handed to whoever is in the hub."""
        return self._place

    async def join(self, client: Client) -> None:
        """Hand this client what settles from now on; the first one starts the hub at the present end of the log."""
        async with self._starting:
            if self._task is None:
                self._place = await asyncio.get_running_loop().run_in_executor(self._thread, self._end)
                self._task = asyncio.create_task(self._follow())
            self._clients.add(client)

    def leave(self, client: Client) -> None:
        """Forget this client; with the last one the hub rests, and gives its connection back."""
        self._clients.discard(client)
        if not self._clients and self._task is not None:
            self._task.cancel()
            self._task = None
            self._thread.submit(_give_back)

    def close(self) -> None:
        """End the thread, once nobody is in the hub."""
        self._thread.shutdown()

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        troubled = False
        while True:
            began = loop.time()
            try:
                frames = await loop.run_in_executor(self._thread, self._read)
            except Exception as problem:  # a database that is away comes back; the clients have not lost anything
                if not troubled:
                    log.warning("the event stream waits for the database: %s", problem)
                troubled = True
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            troubled = False
            if frames:
                self._place = frames[-1].cursor
                for client in self._clients:
                    client.offer(frames)
            full = len(frames) == PAGE
            await asyncio.sleep(0 if full else max(0.0, self._limits.tick - (loop.time() - began)))

    def _read(self) -> list[Frame]:
        return self._keeping(lambda: [self._frame(event) for event in Event.objects.after(self._place, PAGE)])

    def _frame(self, event: Event) -> Frame:
        return Frame(event, event.cursor, self._encode(event))

    def _end(self) -> Cursor:
        return self._keeping(events.horizon)

    @staticmethod
    def _keeping(work: Callable[[], T]) -> T:
        """Keeps the connection for the next tick, unless it is broken."""
        try:
            return work()
        except BaseException:
            connection.close()
            raise


def _give_back() -> None:
    # In the hub's own thread: `connection` stands for another one in each.
    connection.close()


class Answer(NamedTuple):
    """What Django says to a request: a whole answer, or an opening."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    opening: Opening | None


class EventStream:
    """The raw ASGI application at `/api/v1/events/stream/`.

    `answer` is Django's handler with all its middleware: who may listen, and to what, is decided there and nowhere else
    (`EventEndpoint.stream`), at the opening and again with every keep-alive. `encode` writes an event as a message.
    """

    def __init__(
        self,
        answer: Callable[[ASGIRequest], Any],
        encode: Encode,
        limits: Limits | None = None,
        ending: Ending | None = None,
    ) -> None:
        self._answer = answer
        self.ending = ending or Ending()
        self._encode = encode
        self.limits = limits or Limits()
        self.hub = Hub(encode, self.limits)
        self.open: Counter[str] = Counter()
        self._openers = ThreadPoolExecutor(OPENERS, "stream-opener")

    def close(self) -> None:
        """End the threads, once no client is left."""
        self.hub.close()
        self._openers.shutdown()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request: with a stream when Django lets it, else with what Django says."""
        answer = await self._ask(scope)
        opening = answer.opening
        if opening is None:
            return await send_whole(send, answer)
        if self.open[opening.principal] >= self.limits.per_principal:
            return await send_whole(send, self.too_many(answer))
        self.open[opening.principal] += 1
        client = Client(opening, self.limits.buffer)
        listening = asyncio.create_task(notice_the_end(receive, client))
        try:
            await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
            with self.ending.telling(client.leave):
                await _Talk(self, client, scope, send).run()
            await send({"type": "http.response.body", "body": b""})
        except OSError:
            pass  # the client went away in the middle of a message
        finally:
            listening.cancel()
            self.hub.leave(client)
            self.open[opening.principal] -= 1
            self.open += Counter()  # forgets those who have none
        return None

    async def again(self, scope: Any) -> Answer:
        """What Django says to the same request now."""
        return await self._ask(scope)

    async def page(self, client: Client) -> tuple[bytes, bool]:
        """The next page of what the client missed, and whether it was the last; moves its place on."""

        def read() -> tuple[bytes, Cursor, bool]:
            try:
                found = list(client.opening.page(client.place, CATCH_UP))
                text = b"".join(self._encode(event) for event in found)
                return text, found[-1].cursor if found else client.place, len(found) < CATCH_UP
            finally:
                connection.close()

        text, client.place, last = await asyncio.get_running_loop().run_in_executor(self._openers, read)
        return text, last

    async def _ask(self, scope: Any) -> Answer:
        return await asyncio.get_running_loop().run_in_executor(self._openers, self._ask_here, scope)

    def _ask_here(self, scope: Any) -> Answer:
        # Django would not read a query that is no UTF-8 from bytes; its WSGI side takes it like this.
        query = scope.get("query_string", b"").decode("utf-8", "replace")
        try:
            response = self._answer(ASGIRequest({**scope, "query_string": query}, io.BytesIO()))
            opening = getattr(response, "opening", None)
            headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in response.items()]
            headers += [(b"set-cookie", one.OutputString().encode("latin-1")) for one in response.cookies.values()]
            body = b"" if opening else response.content
            response.close()
            return Answer(response.status_code, headers, body, opening)
        finally:
            connection.close()

    def too_many(self, answer: Answer) -> Answer:
        """429 under the id of the request that Django would have let in."""
        name = dict(answer.headers).get(b"x-request-id", b"").decode("latin-1")
        wait = RETRY_MS // 1000
        told = document(
            429,
            "too_many_streams",
            f"You have {self.limits.per_principal} event streams open; close one before you open another",
            parts={"retry_after": wait},
        )
        headers = [
            *((key, value) for key, value in answer.headers if key not in (b"content-type", b"cache-control")),
            (b"content-type", CONTENT_TYPE.encode()),
            (b"retry-after", str(wait).encode()),
        ]
        return Answer(429, headers, json.dumps({**told, "request_id": name}).encode(), None)


class _Talk:
    """One client's stream, from its first words to its last: what it missed, then what comes."""

    def __init__(self, stream: EventStream, client: Client, scope: Any, send: Any) -> None:
        self.stream, self.client, self.scope, self._send = stream, client, scope, send
        self.joined = self.caught_up = False

    async def say(self, text: bytes) -> None:
        """Send it; waits while the client's socket is full."""
        if text:
            await self._send({"type": "http.response.body", "body": text, "more_body": True})

    async def run(self) -> None:
        """Until either side ends it."""
        loop, limits, client = asyncio.get_running_loop(), self.stream.limits, self.client
        ends_at = loop.time() + limits.life
        beats_at = loop.time() + _spread(limits.keepalive)
        await self.say(first_words(client.place))
        while not client.gone:
            now = loop.time()
            if now >= ends_at:
                return await self.say(last_words("bye", {"reason": "lifetime", "seconds": limits.life}))
            if now >= beats_at:
                if not await self._may_go_on():
                    return None
                beats_at = loop.time() + _spread(limits.keepalive)
            elif client.dropped and self.caught_up:
                told = {"reason": "slow", "buffer": limits.buffer, "after": str(client.place)}
                return await self.say(last_words("dropped", told))
            elif not self.caught_up:
                if not await self._catch_up():
                    return None
            elif client.buffer:
                await self.say(client.take())
            else:
                client.wake.clear()
                with suppress(TimeoutError):
                    async with asyncio.timeout_at(min(ends_at, beats_at)):
                        await client.wake.wait()
        return None

    async def _catch_up(self) -> bool:
        """One page of what was missed. False when the database does not answer, which the client was told.

        The hub is joined once a page was the last one, and then the pages that came meanwhile are read: what is in
        both is sent once, since both go by the order of commits.
        """
        client = self.client
        try:
            text, last = await self.stream.page(client)
            await self.say(text)
            if client.dropped:  # more came meanwhile than the buffer holds: not slow, only far behind
                self.stream.hub.leave(client)
                client.dropped = self.joined = False
            elif last and not self.joined:
                await self.stream.hub.join(client)
                self.joined = True
            elif last:
                self.caught_up = True
        except OSError:
            raise
        except Exception as problem:
            log.warning("an event stream could not catch up: %s", problem)
            told = document(503, "unavailable", "The database did not answer in time; connect again")
            await self.say(last_words("error", told))
            return False
        return True

    async def _may_go_on(self) -> bool:
        """The keep-alive: whether Django would let this client in again; who may not is told with its document.

        A database that is away says nothing about rights, so the client stays until it is back.
        """
        answer = await self.stream.again(self.scope)
        client = self.client
        if answer.opening is not None:
            client.opening = answer.opening
        elif answer.status < 500:
            with suppress(ValueError):
                await self.say(last_words("error", json.loads(answer.body)))
            return False
        if self.caught_up and not client.buffer and not client.dropped:
            client.place = max(client.place, self.stream.hub.place)
        await self.say(f": keep-alive\nid: {client.place}\n\n".encode())
        return True


def _spread(seconds: float) -> float:
    """Up to a fifth less: clients that came in the same moment are not asked about in the same moment for ever."""
    return seconds * random.uniform(0.8, 1.0)


class Leaving(Protocol):
    """Somebody whose connection may end."""

    def leave(self) -> None:
        """It is over."""


async def notice_the_end(receive: Any, client: Leaving) -> None:
    """Wait until the client has gone away, and say so."""
    while (await receive())["type"] != "http.disconnect":
        pass
    client.leave()


async def send_whole(send: Any, answer: Answer) -> None:
    """Send an answer that is no stream."""
    headers = [(name, value) for name, value in answer.headers if name != b"content-length"]
    headers.append((b"content-length", str(len(answer.body)).encode()))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
