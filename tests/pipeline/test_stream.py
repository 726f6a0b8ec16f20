"""The event stream: what commits reaches every client that may read it, once, in order, until either side ends it."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
from django.conf import settings
from django.core.handlers.wsgi import WSGIHandler
from django.db import connection, transaction
from django.test import Client as Browser

from pipeline import events
from pipeline.api.events import frame
from pipeline.ids import new_id
from pipeline.models import ApiKey, Event, Membership, User
from pipeline.stream import EventStream, Limits
from tests import factories

pytestmark = pytest.mark.django_db(transaction=True)

PATH = "/api/v1/events/stream/"
PATIENCE_SECONDS = 20.0
QUICK = Limits(tick=0.02, keepalive=600, life=900, per_principal=10, buffer=1000)


_readers: "list[Reader]" = []


class Reader:
    """One connection to the stream: what it was sent, as text and as messages."""

    def __init__(self, stream: EventStream, query: str = "", method: str = "GET", **headers: str) -> None:
        self.scope = {
            "type": "http",
            "method": method,
            "path": PATH,
            "query_string": query.encode(),
            "headers": [(b"host", b"testserver")]
            + [(name.replace("_", "-").encode(), text.encode()) for name, text in headers.items()],
            "server": ("testserver", 80),
            "client": ("127.0.0.1", 1),
        }
        self.status = 0
        self.headers: dict[str, str] = {}
        self.text = ""
        self.ended = False
        self.may_read = asyncio.Event()
        self.may_read.set()
        self._left = asyncio.Event()
        self._news = asyncio.Event()
        self._task = asyncio.create_task(stream(self.scope, self._receive, self._send))
        _readers.append(self)

    async def _receive(self) -> dict[str, Any]:
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: dict[str, Any]) -> None:
        await self.may_read.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): text.decode() for name, text in message["headers"]}
        else:
            self.text += message["body"].decode()
            self.ended = not message.get("more_body", False)
        self._news.set()

    @property
    def messages(self) -> list[dict[str, str]]:
        """The messages so far that a browser would hand out, as {field: text}."""
        blocks = [block for block in self.text.split("\n\n") if "\ndata: " in block]
        return [dict(line.split(": ", 1) for line in block.split("\n")) for block in blocks]

    @property
    def ids(self) -> list[str]:
        """The ids of the events so far."""
        return [json.loads(one["data"])["id"] for one in self.messages if "id" in one]

    @property
    def last_id(self) -> str:
        """What a browser would send as Last-Event-ID."""
        return [line[4:] for line in self.text.split("\n") if line.startswith("id: ")][-1]

    async def until(self, true: Callable[[], object]) -> None:
        """Wait for it. Fails the test when that takes too long."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not true():
                self._news.clear()
                assert not self._task.done() or true(), f"the stream ended: {self.text[-500:]}"
                waiting = asyncio.create_task(self._news.wait())
                await asyncio.wait({waiting, self._task}, return_when=asyncio.FIRST_COMPLETED)
                waiting.cancel()

    async def opened(self) -> "Reader":
        """This reader once it has been told its place."""
        await self.until(lambda: "\n\n" in self.text)
        return self

    async def whole(self) -> Any:
        """The problem document with which it was turned away, or None, once the stream has ended."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self._task
        return json.loads(self.text) if "json" in self.headers["content-type"] and self.text else None

    async def leave(self) -> None:
        """Close the connection."""
        self._left.set()
        self.may_read.set()
        await self.whole()


@asynccontextmanager
async def streaming(limits: Limits = QUICK, encode: Callable[[Event], bytes] = frame) -> AsyncIterator[EventStream]:
    """A stream over the whole product; its threads end with the block."""
    handler = WSGIHandler()
    stream = EventStream(handler.get_response, encode, limits)
    try:
        yield stream
    finally:
        # Also what a failed test left open, whose connections would keep the database from being removed.
        await asyncio.gather(*(reader.leave() for reader in _readers), return_exceptions=True)
        _readers.clear()
        await there(stream.close)


async def there(work: Callable[[], Any]) -> Any:
    """`work()` in a thread with a connection of its own, which it closes."""

    def run() -> Any:
        try:
            return work()
        finally:
            connection.close()

    return await asyncio.to_thread(run)


def note(subject: Any, message: str = "", kind: str = "note.added", **more: Any) -> str:
    """The id of a new event about `subject`."""
    return events.record(kind, subject, by=factories.BY, message=message, **more).pk


def play(scene: Callable[[], Awaitable[Any]]) -> Any:
    """Run a scene in an event loop of its own."""
    return asyncio.run(scene())  # type: ignore[arg-type]


def bearer(role: str, project: Any = None) -> dict[str, str]:
    """The header of a new key."""
    return {"authorization": f"Bearer {factories.make_key(role, project=project).text}"}


def cookie_of(user: User) -> dict[str, str]:
    """The header of a signed-in browser."""
    browser = Browser()
    browser.force_login(user)
    return {"cookie": f"{settings.SESSION_COOKIE_NAME}={browser.cookies[settings.SESSION_COOKIE_NAME].value}"}


# -- what arrives --------------------------------------------------------------------------------------------------


def test_what_commits_arrives_with_its_cursor_its_kind_and_the_document_of_the_list() -> None:
    run = factories.make_run()
    key = bearer("viewer", run.project)

    async def scene() -> Reader:
        async with streaming() as stream:
            reader = await Reader(stream, **key).opened()
            await there(lambda: note(run, "two\nlines\r and \u2028"))
            await reader.until(lambda: reader.messages)
            await reader.leave()
            return reader

    reader = play(scene)

    event = Event.objects.latest("seq")
    assert reader.messages == [
        {"id": str(event.cursor), "event": "note.added", "data": reader.messages[0]["data"]},
    ]
    listed = Browser(headers=key).get(f"/api/v1/events/{event.pk}/")
    assert json.loads(reader.messages[0]["data"]) == listed.json()
    assert reader.headers["content-type"].startswith("text/event-stream")
    assert reader.headers["cache-control"] == "no-store"
    assert reader.headers["x-request-id"]
    assert not [name for name in reader.headers if name.startswith("access-control")]


def test_without_a_cursor_it_begins_now_and_with_one_behind_it() -> None:
    run = factories.make_run()
    old = note(run, "old")
    key = bearer("viewer", run.project)

    async def scene() -> tuple[Reader, Reader]:
        async with streaming() as stream:
            now = await Reader(stream, **key).opened()
            behind = await Reader(stream, query="after=0-0-0", **key).opened()
            new = await there(lambda: note(run, "new"))
            for reader in (now, behind):
                await reader.until(lambda reader=reader: new in reader.ids)
                await reader.leave()
            return now, behind

    now, behind = play(scene)

    assert len(now.ids) == 1
    assert old in behind.ids
    everything = Event.objects.filter(project_id=run.project_id).after(events.START, 1000)
    assert behind.ids == [event.pk for event in everything]


def test_readers_that_leave_and_resume_miss_nothing_and_see_nothing_twice() -> None:
    run = factories.make_run()
    key = bearer("viewer", run.project)
    start = str(events.horizon())

    def write(writer: int) -> None:
        for number in range(60):
            # Two events in a transaction, and transactions that overlap: numbers are given out before they commit.
            with transaction.atomic():
                note(run if number % 2 else run.project, f"{writer}.{number}a")
                note(run.project, f"{writer}.{number}b")

    async def scene() -> list[str]:
        seen: list[str] = []
        async with streaming() as stream:
            writing = [asyncio.create_task(there(lambda writer=writer: write(writer))) for writer in range(4)]
            last = start
            while len(seen) < 480:
                reader = await Reader(stream, last_event_id=last, **key).opened()
                want = len(seen) + 37
                await reader.until(lambda: len(seen) + len(reader.ids) >= min(want, 480))  # noqa: B023
                await reader.leave()
                seen += reader.ids
                last = reader.last_id
            await asyncio.gather(*writing)
        return seen

    seen = play(scene)

    written = Event.objects.filter(project_id=run.project_id).after(events.Cursor.parse(start), 1000)
    assert seen == [event.pk for event in written]
    assert len(seen) == 480


def test_a_place_far_behind_is_read_by_pages_while_more_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.stream.CATCH_UP", 7)
    monkeypatch.setattr("pipeline.stream.PAGE", 5)
    run = factories.make_run()
    key = bearer("viewer", run.project)
    for number in range(50):
        note(run, str(number))

    async def scene() -> Reader:
        async with streaming(replace(QUICK, buffer=3)) as stream:
            other = await Reader(stream, **key).opened()  # the hub runs already
            reader = Reader(stream, query="after=0-0-0", **key)
            for _ in range(20):
                await there(lambda: note(run))
            last = await there(lambda: note(run, "last"))
            await reader.until(lambda: last in reader.ids or "dropped" in reader.text)
            await other.leave()
            await reader.leave()
            return reader

    reader = play(scene)

    everything = [event.pk for event in Event.objects.filter(project_id=run.project_id).after(events.START, 1000)]
    assert reader.ids == everything[: len(reader.ids)]
    assert len(reader.ids) >= 50


def test_an_event_is_written_as_text_once_for_all_clients() -> None:
    run = factories.make_run()
    key = bearer("viewer", run.project)
    written: list[str] = []

    def counting(event: Event) -> bytes:
        written.append(event.pk)
        return frame(event)

    async def scene() -> str:
        async with streaming(encode=counting) as stream:
            readers = [await Reader(stream, **key).opened() for _ in range(8)]
            pks = []
            for _ in range(4):  # a client may read two while it catches up, before and after it joins the hub
                pks.append(await there(lambda: note(run)))
                for reader in readers:
                    await reader.until(lambda reader=reader: reader.ids == pks)
            for reader in readers:
                await reader.leave()
            return str(pks[-1])

    assert written.count(play(scene)) == 1


def test_nobody_listens_and_nobody_asks_the_database() -> None:
    run = factories.make_run()
    key = bearer("viewer", run.project)

    async def scene() -> None:
        async with streaming() as stream:
            reader = await Reader(stream, **key).opened()
            await there(lambda: note(run))
            await reader.until(lambda: len(reader.ids) == 1)
            await reader.leave()
            place = stream.hub.place
            await there(lambda: note(run))
            await asyncio.sleep(QUICK.tick * 10)
            assert stream.hub.place == place
            assert not stream.open
            again = await Reader(stream, last_event_id=reader.last_id, **key).opened()
            await again.until(lambda: len(again.ids) == 1)
            await again.leave()

    play(scene)


def test_a_database_connection_that_is_cut_is_made_anew_and_nothing_is_lost() -> None:
    run = factories.make_run()
    key = bearer("viewer", run.project)

    def backend() -> int:
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            return int(cursor.fetchone()[0])

    async def scene() -> None:
        async with streaming() as stream:
            reader = await Reader(stream, **key).opened()
            await there(lambda: note(run))
            await reader.until(lambda: len(reader.ids) == 1)
            hub = await asyncio.wrap_future(stream.hub._thread.submit(backend))

            def cut() -> None:
                with connection.cursor() as cursor:
                    cursor.execute("SELECT pg_terminate_backend(%s)", [hub])

            await there(cut)
            await there(lambda: note(run))
            await reader.until(lambda: len(reader.ids) == 2)
            assert await asyncio.wrap_future(stream.hub._thread.submit(backend)) != hub
            await reader.leave()

    play(scene)


# -- who gets what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "status", "code"),
    [
        ("nobody", 401, "not_authenticated"),
        ("wrong key", 401, "invalid_key"),
        ("worker", 403, "permission_denied"),
        ("closed session", 401, "not_authenticated"),
    ],
)
def test_who_may_not_listen_is_told_with_a_problem_document(who: str, status: int, code: str) -> None:
    headers = {
        "nobody": dict,
        "wrong key": lambda: {"authorization": "Bearer sbx_abcdefgh_nothing"},
        "worker": lambda: bearer("worker"),
        "closed session": lambda: {"cookie": f"{settings.SESSION_COOKIE_NAME}=gone"},
    }[who]()

    async def scene() -> tuple[Reader, Any]:
        async with streaming() as stream:
            reader = Reader(stream, **headers)
            return reader, await reader.whole()

    reader, told = play(scene)

    assert (reader.status, told["status"], told["code"]) == (status, status, code)
    assert reader.headers["content-type"] == "application/problem+json"
    assert told["request_id"] == reader.headers["x-request-id"]


def test_a_session_listens_and_each_gets_only_its_projects() -> None:
    mine, other = factories.make_run(), factories.make_run()
    user = User.objects.create_user("ada", password="long enough 7")
    Membership.objects.add(by=factories.BY, user=user, project=mine.project, role="viewer")
    member, key, admin = cookie_of(user), bearer("viewer", other.project), bearer("admin")

    async def scene() -> list[list[str]]:
        async with streaming() as stream:
            readers = [await Reader(stream, **headers).opened() for headers in (member, key, admin)]
            pks = [await there(lambda run=run: note(run)) for run in (mine, other)]
            await readers[2].until(lambda: readers[2].ids == pks)
            await readers[0].until(lambda: readers[0].ids)
            await readers[1].until(lambda: readers[1].ids)
            for reader in readers:
                await reader.leave()
            return [[str(pks.index(pk)) for pk in reader.ids] for reader in readers]

    assert play(scene) == [["0"], ["1"], ["0", "1"]]


def test_a_key_that_is_revoked_hears_why_and_no_more() -> None:
    run = factories.make_run()
    key = factories.make_key("viewer", project=run.project)

    async def scene() -> Reader:
        async with streaming(replace(QUICK, keepalive=0.2)) as stream:
            reader = await Reader(stream, authorization=f"Bearer {key.text}").opened()
            await reader.until(lambda: ": keep-alive\nid: " in reader.text)
            await there(lambda: ApiKey.objects.get(pk=key.row.pk).revoke(by=factories.BY))
            await reader.whole()
            return reader

    reader = play(scene)

    assert reader.ended
    assert reader.messages[-1]["event"] == "error"
    assert json.loads(reader.messages[-1]["data"])["code"] == "invalid_key"


def test_a_session_that_ends_and_a_membership_that_is_taken_away_end_what_they_gave() -> None:
    run = factories.make_run()
    user = User.objects.create_user("ada", password="long enough 7")
    member = Membership.objects.add(by=factories.BY, user=user, project=run.project, role="viewer")
    browser = Browser()
    browser.force_login(user)
    headers = {"cookie": f"{settings.SESSION_COOKIE_NAME}={browser.cookies[settings.SESSION_COOKIE_NAME].value}"}

    async def scene() -> Reader:
        async with streaming(replace(QUICK, keepalive=0.2)) as stream:
            reader = await Reader(stream, **headers).opened()
            await there(lambda: note(run, "seen"))
            await reader.until(lambda: len(reader.ids) == 1)
            await there(lambda: member.remove(by=factories.BY))
            beats = reader.text.count(": keep-alive")
            await reader.until(lambda: reader.text.count(": keep-alive") > beats + 1)
            await there(lambda: note(run, "unseen"))
            await reader.until(lambda: reader.text.count(": keep-alive") > beats + 3)
            await there(browser.logout)
            await reader.whole()
            return reader

    reader = play(scene)

    assert "unseen" not in reader.text
    assert reader.messages[-1]["event"] == "error"
    assert json.loads(reader.messages[-1]["data"])["status"] == 401


FILTERS = [
    "kind=note.*",
    "kind=*.added,run.created",
    "kind=run.created",
    "channel=error_events",
    "severity=warning",
    "min_severity=error",
    "run={run}",
    "workstream={workstream}",
    "task={task}",
    "step={step}",
    "worker={worker}",
    "patch={patch}",
    "gate_run={gate_run}",
    "project={project}",
    "project={key}",
    "project=nobody-knows",
    "subject_type=run",
    "subject_id={run}",
    "actor_kind=worker",
    "actor_id={actor}",
    "actor_name=builder",
    "request_id=abcdefgh",
    "created_after=2020-01-01T00:00:00Z",
    "created_before=2020-01-01T00:00:00Z",
    "run={run}&min_severity=warning&kind=override.*",
]


@pytest.mark.parametrize("query", FILTERS)
def test_a_filter_lets_through_in_a_stream_what_it_lets_through_in_the_list(query: str) -> None:
    run, other = factories.make_run(), factories.make_run()
    names = ("workstream", "task", "step", "worker", "patch", "gate_run", "actor")
    ids = {"run": run.pk, "project": run.project_id, "key": run.project.key, **{name: new_id() for name in names}}
    for name in ("workstream", "task", "step", "worker", "patch", "gate_run"):
        note(run, **{f"{name}_id": ids[name]})
    for severity in ("debug", "warning", "error", "critical"):
        note(other, severity=severity)
    events.record("override.used", run, by=events.Actor("worker", ids["actor"], "builder"), reason="why")
    token = events.request_id.set("abcdefgh")
    note(run)
    events.request_id.reset(token)
    asked = query.format(**ids)
    headers = bearer("admin")

    async def scene() -> list[str]:
        async with streaming() as stream:
            reader = await Reader(stream, asked, **headers).opened()
            opening = (await stream.again(reader.scope)).opening
            await reader.leave()

            def face() -> list[str]:
                return [event.pk for event in Event.objects.order_by("-id") if opening.lets_through(event)]

            return await there(face)

    listed = Browser(headers=headers).get(f"/api/v1/events/?{asked}&limit=500").json()["results"]

    assert play(scene) == [row["id"] for row in listed]
    if "nobody" not in query and "created_before" not in query:
        assert listed
    if "created_after" not in query:
        assert len(listed) < Event.objects.count()


@pytest.mark.parametrize(
    ("query", "headers", "method", "status", "code"),
    [
        ("after=x", {}, "GET", 400, "invalid_cursor"),
        ("", {"last_event_id": "1-2"}, "GET", 400, "invalid_cursor"),
        ("after=99-1-1", {}, "GET", 400, "invalid_cursor"),
        ("kind=run.wrong", {}, "GET", 400, "invalid_field"),
        ("kind=(", {}, "GET", 400, "invalid_field"),
        ("severity=loud", {}, "GET", 400, "invalid_field"),
        ("run=7", {}, "GET", 400, "invalid_id"),
        ("colour=red", {}, "GET", 400, "unknown_filter"),
        ("limit=7", {}, "GET", 400, "unknown_filter"),
        ("run=%00", {}, "GET", 400, "invalid_field"),
        ("kind=%ff%fe", {}, "GET", 400, "invalid_field"),
        ("", {}, "HEAD", 405, "method_not_allowed"),
        ("", {}, "POST", 405, "method_not_allowed"),
        ("", {"host": "evil.example"}, "GET", 400, "malformed"),
    ],
)
def test_what_cannot_be_asked_is_refused_in_a_sentence(
    query: str, headers: dict[str, str], method: str, status: int, code: str
) -> None:
    key = bearer("admin")

    async def scene() -> tuple[Reader, Any]:
        async with streaming() as stream:
            reader = Reader(stream, query, method, **key, **headers)
            if "host" in headers:
                reader.scope["headers"] = reader.scope["headers"][1:]
            return reader, await reader.whole()

    reader, told = play(scene)

    assert (reader.status, told["code"]) == (status, code)
    assert len(told["detail"]) > 10


# -- bounds --------------------------------------------------------------------------------------------------------


def test_one_caller_has_so_many_streams_and_a_closed_one_makes_room() -> None:
    key, other = bearer("admin"), bearer("admin")

    async def scene() -> None:
        async with streaming(replace(QUICK, per_principal=2)) as stream:
            first, second = await Reader(stream, **key).opened(), await Reader(stream, **key).opened()
            third = Reader(stream, **key)
            told = await third.whole()
            assert (third.status, told["code"], third.headers["retry-after"]) == (429, "too_many_streams", "2")
            assert third.headers["content-type"] == "application/problem+json"
            assert told["request_id"] == third.headers["x-request-id"]
            await (await Reader(stream, **other).opened()).leave()
            await first.leave()
            await (await Reader(stream, **key).opened()).leave()
            await second.leave()
            assert not stream.open

    play(scene)


def test_streams_end_when_their_process_is_told_to(heard: list[int]) -> None:
    key = bearer("viewer", factories.make_run().project)

    async def scene() -> None:
        async with streaming() as stream:
            readers = [await Reader(stream, **key).opened() for _n in range(2)]
            assert [reader.ended for reader in readers] == [False, False]
            signal.raise_signal(signal.SIGTERM)
            for reader in readers:
                await reader.whole()
            assert [reader.ended for reader in readers] == [True, True]
            assert not stream.open

    play(scene)
    assert heard == [signal.SIGTERM]


def test_a_stream_ends_in_time_with_a_word_and_is_resumed_behind_its_last_id() -> None:
    run = factories.make_run()
    key = bearer("viewer", run.project)

    async def scene() -> None:
        async with streaming(replace(QUICK, life=0.3)) as stream:
            reader = await Reader(stream, **key).opened()
            await reader.whole()
            assert reader.ended
            assert reader.messages[-1]["event"] == "bye"
            assert "retry: " in reader.text.split("event: bye")[0].rpartition("\n\n")[2]
            pk = await there(lambda: note(run))
            again = await Reader(stream, last_event_id=reader.last_id, **key).opened()
            await again.until(lambda: again.ids == [pk])
            await again.leave()

    play(scene)


def test_a_slow_client_is_told_and_closed_and_resumes_without_loss_while_others_hear_all() -> None:
    run = factories.make_run()
    key = bearer("viewer", run.project)

    async def scene() -> tuple[Reader, Reader, Reader]:
        async with streaming(replace(QUICK, buffer=10)) as stream:
            slow, quick = await Reader(stream, **key).opened(), await Reader(stream, **key).opened()
            await there(lambda: note(run))
            await slow.until(lambda: len(slow.ids) == 1)
            slow.may_read.clear()
            for _ in range(30):
                await there(lambda: note(run))
                await quick.until(lambda: quick.ids)
            await quick.until(lambda: len(quick.ids) == 31)
            slow.may_read.set()
            await slow.whole()
            again = await Reader(stream, last_event_id=slow.last_id, **key).opened()
            await again.until(lambda: len(slow.ids) + len(again.ids) == 31)
            await quick.leave()
            await again.leave()
            return slow, quick, again

    slow, quick, again = play(scene)

    assert slow.ended
    assert slow.messages[-1]["event"] == "dropped"
    assert slow.ids + again.ids == quick.ids


def test_a_server_without_raw_routes_sends_one_page_behind_the_cursor() -> None:
    run = factories.make_run()
    pk = note(run)
    browser = Browser(headers=bearer("viewer", run.project))

    answer = browser.get(PATH, {"after": "0-0-0", "kind": "note.added"})

    assert answer["Content-Type"].startswith("text/event-stream")
    text = b"".join(answer.streaming_content).decode()
    assert text.startswith("retry: 2000\nid: 0-0-0\n\n")
    assert text.count("\ndata: ") == 1
    assert pk in text
    assert browser.head(PATH).status_code == 405
