"""Requests that wait: asked again when there is something, without a thread each, in the order in which they came."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from a2wsgi import WSGIMiddleware

from pipeline import longpoll
from pipeline.longpoll import LongPoll

pytestmark = pytest.mark.django_db


class Shop:
    """A small Django: POST takes one of the things that are there, or says to wait `seconds`."""

    def __init__(self, things: int = 0, seconds: float = 5.0) -> None:
        self.things, self.seconds = things, seconds
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.told_to_wait = 0

    def probe(self) -> int:
        return self.things

    def wsgi(self, environ: Any, start_response: Any) -> list[bytes]:
        if environ["REQUEST_METHOD"] == "GET":
            start_response("200 OK", [])
            return [b"here"]
        self.asked.append(environ["HTTP_X_NAME"])
        self.bodies.append(environ["wsgi.input"].read(-1))
        assert environ["asgi.scope"][longpoll.WAITS] is True
        if self.things:
            self.things -= 1
            start_response("200 OK", [("X-Own", "kept")])
            return [b"one thing"]
        self.told_to_wait += 1
        start_response("204 No Content", [(longpoll.WAIT_HEADER, str(self.seconds)), ("X-Own", "kept")])
        return [b""]


@pytest.fixture
def shop(monkeypatch: pytest.MonkeyPatch) -> Shop:
    """Nothing there; whoever asks at /take/ waits five seconds."""
    shop = Shop()
    monkeypatch.setattr(longpoll, "_waitable", [])
    monkeypatch.setattr(longpoll, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(longpoll, "AGAIN_SECONDS", (0.0, 0.02))
    longpoll.register("/take/", shop.probe)
    return shop


class Client:
    """One request: its answer, and the moment when it goes away."""

    def __init__(self, name: str = "a", *, path: str = "/take/", method: str = "POST", body: bytes = b"{}") -> None:
        self.scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": path, "query_string": b"",
            "scheme": "http", "headers": [(b"x-name", name.encode())],
        }  # fmt: skip
        self.body = body
        self.leaves = asyncio.Event()
        self.messages: list[Any] = []
        self._sent = False

    async def receive(self) -> Any:
        if not self._sent:
            self._sent = True
            return {"type": "http.request", "body": self.body, "more_body": False}
        await self.leaves.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def text(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return {name.lower(): value for name, value in self.messages[0]["headers"]}


def run(work: Callable[[LongPoll], Awaitable[None]], shop: Shop) -> None:
    """Do `work` with the shop behind a pool of two threads."""

    async def main() -> None:
        async with asyncio.timeout(20):
            await work(LongPoll(WSGIMiddleware(shop.wsgi, workers=2)))  # type: ignore[arg-type]

    asyncio.run(main())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_request_that_waits_is_answered_when_there_is_something(shop: Shop) -> None:
    async def work(app: LongPoll) -> None:
        client = Client(body=b'{"wait": 5}')
        request = asyncio.create_task(app(client.scope, client.receive, client.send))
        await until(lambda: shop.told_to_wait == 1)
        shop.things = 1
        await request
        assert (client.status, client.text) == (200, b"one thing")
        assert shop.bodies == [b'{"wait": 5}'] * 2

    run(work, shop)


def test_when_the_time_is_over_the_answer_is_what_django_said_last(shop: Shop) -> None:
    shop.seconds = 0.1

    async def work(app: LongPoll) -> None:
        client = Client()
        await app(client.scope, client.receive, client.send)
        assert (client.status, client.text) == (204, b"")
        assert client.headers == {b"x-own": b"kept"}  # and nothing of how it was kept

    run(work, shop)


def test_waiting_holds_no_thread(shop: Shop) -> None:
    async def work(app: LongPoll) -> None:
        waiting = [Client(str(number)) for number in range(40)]
        requests = [asyncio.create_task(app(client.scope, client.receive, client.send)) for client in waiting]
        await until(lambda: shop.told_to_wait >= 40)
        page = Client(method="GET", path="/page/")
        await app(page.scope, page.receive, page.send)
        assert (page.status, page.text) == (200, b"here")
        shop.things = 40
        await asyncio.gather(*requests)
        assert {client.status for client in waiting} == {200}

    run(work, shop)


def test_one_thing_calls_one_waiter_and_the_first_first(shop: Shop) -> None:
    async def work(app: LongPoll) -> None:
        clients = [Client(name) for name in "abcdefgh"]
        requests = []
        for client in clients:
            requests.append(asyncio.create_task(app(client.scope, client.receive, client.send)))
            await until(lambda client=client: client.scope["headers"][0][1].decode() in shop.asked)
        shop.asked.clear()
        shop.things = 1
        await until(lambda: any(request.done() for request in requests))
        assert shop.asked == ["a"]
        for request in requests:
            request.cancel()

    run(work, shop)


def test_what_is_not_for_the_first_waiter_goes_round(shop: Shop) -> None:
    taken = shop.wsgi

    def only_for_c(environ: Any, start_response: Any) -> list[bytes]:
        there, shop.things = shop.things, 0 if environ.get("HTTP_X_NAME") != "c" else shop.things
        try:
            return taken(environ, start_response)
        finally:
            if environ.get("HTTP_X_NAME") != "c":
                shop.things = there

    shop.wsgi = only_for_c  # type: ignore[method-assign]

    async def work(app: LongPoll) -> None:
        clients = {name: Client(name) for name in "abc"}
        requests = {
            name: asyncio.create_task(app(client.scope, client.receive, client.send))
            for name, client in clients.items()
        }
        await until(lambda: shop.told_to_wait >= 3)
        shop.things = 1
        await requests["c"]
        assert clients["c"].status == 200
        for request in requests.values():
            request.cancel()

    run(work, shop)


def test_nothing_is_taken_for_a_client_that_went_away(shop: Shop) -> None:
    async def work(app: LongPoll) -> None:
        client = Client()
        request = asyncio.create_task(app(client.scope, client.receive, client.send))
        await until(lambda: shop.told_to_wait == 1)
        client.leaves.set()
        await request
        shop.things = 1
        await asyncio.sleep(0.05)
        assert shop.things == 1
        assert len(shop.asked) == 1

    run(work, shop)


def test_the_hub_looks_only_while_somebody_waits_and_survives_a_probe_that_fails(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []

    def probe() -> int:
        looks.append(time.monotonic())
        if len(looks) == 1:
            raise OSError("the database is away")
        return shop.things

    monkeypatch.setattr(longpoll, "_waitable", [])
    longpoll.register("/take/", probe)

    async def work(app: LongPoll) -> None:
        client = Client()
        request = asyncio.create_task(app(client.scope, client.receive, client.send))
        await until(lambda: len(looks) == 2)
        shop.things = 1
        await request
        assert client.status == 200
        await asyncio.sleep(0.1)
        seen = len(looks)
        await asyncio.sleep(0.1)
        assert len(looks) == seen

    run(work, shop)


def test_a_long_body_is_handed_through_and_does_not_wait() -> None:
    async def work() -> None:
        seen: list[Any] = []
        client = Client()
        chunks = [{"type": "http.request", "body": b"x" * 40_000, "more_body": more} for more in (True, True, False)]

        async def receive() -> Any:
            return chunks.pop(0)

        async def django(scope: Any, receive: Any, send: Any) -> None:
            seen.append(longpoll.WAITS in scope)
            while True:
                message = await receive()
                seen.append(len(message["body"]))
                if not message["more_body"]:
                    break

        await LongPoll(django)(client.scope, receive, client.send)
        assert seen == [False, 40_000, 40_000, 40_000]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(longpoll, "_waitable", [])
        longpoll.register("/take/", lambda: 0)
        asyncio.run(work())
