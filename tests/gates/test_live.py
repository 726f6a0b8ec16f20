"""The output of a running gate: seen while it runs by whoever may read it, bounded, without secrets, from anywhere."""

import asyncio
import json
import signal
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIHandler
from django.test import Client as Browser

from gates import criteria, live, runner
from gates.models import GateOutput, GateRun
from gates.serving import LogStream
from pipeline.stream import Limits
from tests import factories
from tests.api.asking import Api, refused
from tests.conftest import Threads
from tests.pipeline.test_stream import Reader, bearer, play, there

pytestmark = pytest.mark.django_db(transaction=True)

QUICK = Limits(tick=0.02, keepalive=600, life=900, per_principal=2, buffer=1000)
ENDED = criteria.Judgement("passed", "", True, "as it should be")


def running(holder: str = "r") -> GateRun:
    """A run that `holder` runs."""
    run = factories.make_gate_run()
    run.start(by=factories.BY, runner=holder)
    return run


def write(run: GateRun, *texts: str, holder: str = "r") -> None:
    """What the runner writes, each text a piece of its own."""
    log = live.LiveLog(run, holder)
    for text in texts:
        log.take(text)
        log._write()


def watch(stream: LogStream, run: GateRun, query: str = "", **headers: str) -> Reader:
    """Somebody who opens the live log of a run."""
    reader = Reader(stream, query, **headers)  # type: ignore[arg-type]
    reader.scope["path"] = f"/api/v1/gate-runs/{run.pk}/log/stream/"
    return reader


def texts(reader: Reader) -> list[str]:
    """What it was shown."""
    return [json.loads(one["data"])["text"] for one in reader.messages if "event" not in one]


class TestPieces:
    def test_they_are_kept_in_order_and_read_behind_a_number(self) -> None:
        run = running()
        write(run, "one\n", "two\n", "three\n")
        assert live.page(run.pk, 0) == ([(1, "one\n"), (2, "two\n"), (3, "three\n")], "")
        assert live.page(run.pk, 2) == ([(3, "three\n")], "")
        assert live.page(run.pk, 3) == ([], "")
        assert live.text_so_far(run) == "one\ntwo\nthree\n"

    def test_only_the_last_are_kept_however_many_come(self) -> None:
        run = running()
        write(run, *[f"{number}\n" for number in range(1, live.KEPT + 6)])
        assert GateOutput.objects.filter(gate_run=run).count() == live.KEPT
        first = live.page(run.pk, 0).pieces[0]
        assert first == (6, "[… earlier output is no longer kept …]\n6\n")
        assert live.page(run.pk, 5).pieces[0] == (6, "6\n")

    def test_what_comes_faster_than_it_is_written_is_cut_to_its_end(self) -> None:
        run = running()
        log = live.LiveLog(run, "r")
        for number in range(100):
            log.take(f"{number:06}" * 1000)
        log._write()
        ((_, text),) = live.page(run.pk, 0).pieces
        assert text.startswith(f"[… {600_000 - live.PIECE_CHARS} characters not shown …]\n")
        assert text.endswith("000099")
        assert len(text) < live.PIECE_CHARS + 100

    def test_nobody_but_the_holder_of_the_run_writes_and_nobody_after_its_end(self) -> None:
        run = running()
        write(run, "forged\n", holder="other")
        assert live.page(run.pk, 0) == ([], "")
        run.complete(ENDED, by=factories.BY, exit_code=0)
        write(run, "late\n")
        assert live.page(run.pk, 0) == ([], "passed")

    def test_a_database_that_is_away_costs_pieces_and_not_the_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        run = running()
        monkeypatch.setattr(live, "_WRITE", "SELECT 1 / 0")
        log = live.LiveLog(run, "r")
        log.start()
        log.take("lost\n")
        log.end()
        assert not log.is_alive()
        assert live.page(run.pk, 0) == ([], "")

    def test_they_go_an_hour_after_the_end_of_their_run(self) -> None:
        run, other = running(), running()
        write(run, "old\n")
        write(other, "runs on\n")
        run.complete(ENDED, by=factories.BY, exit_code=0)
        assert live.forget() == 0
        GateOutput.objects.update(created_at="2020-01-01T00:00:00Z")
        assert live.forget() == 1
        assert live.text_so_far(other) == "runs on\n"


class TestWhatAWatcherGets:
    def test_of_a_flood_it_gets_the_end_at_a_bounded_rate_and_no_half_of_a_secret(self) -> None:
        seen: list[str] = []
        capture = runner._Capture(["swordfish" * 20], seen.append)
        capture._shown_at = 10**12  # as if it had been shown something a moment ago
        for number in range(4000):
            capture.feed(f"{number} {'x' * 150} {'swordfish' * 20 if number % 10 == 9 else ''}\n".encode())
        assert seen == []
        assert len(capture._unseen) <= 2 * (runner.LIVE_BYTES + runner.OVERLAP)
        capture.close()
        (text,) = seen
        assert "bytes not shown …]" in text
        assert "swordfish" not in text
        assert text.endswith(f"3999 {'x' * 150} [redacted]\n")


class TestTheStream:
    def test_what_is_written_arrives_while_it_runs_and_the_end_says_how_it_ended(self) -> None:
        run = running()
        key = bearer("viewer", run.project)

        async def scene() -> Reader:
            stream = LogStream(WSGIHandler().get_response, QUICK)
            reader = await watch(stream, run, **key).opened()
            await there(lambda: write(run, "first line\n"))
            await reader.until(lambda: texts(reader))
            assert texts(reader) == ["first line\n"]
            await there(lambda: run.complete(ENDED, by=factories.BY, exit_code=0))
            await reader.whole()
            await there(stream.close)
            return reader

        reader = play(scene)
        assert reader.status == 200
        assert reader.headers["content-type"].startswith("text/event-stream")
        assert reader.messages[-1] == {"event": "end", "data": '{"state": "passed"}'}

    def test_it_goes_on_behind_the_last_number_that_a_browser_saw(self) -> None:
        run = running()
        key = bearer("viewer", run.project)
        write(run, "one\n", "two\n", "three\n")

        async def scene() -> list[str]:
            stream = LogStream(WSGIHandler().get_response, QUICK)
            reader = watch(stream, run, last_event_id="1", **key)
            await reader.until(lambda: len(texts(reader)) == 2)
            await reader.leave()
            await there(stream.close)
            return texts(reader)

        assert play(scene) == ["two\n", "three\n"]

    def test_who_may_not_read_the_run_is_turned_away_and_streams_are_bounded(self) -> None:
        run = running()
        key, stranger = bearer("viewer", run.project), bearer("viewer", factories.make_project())

        async def scene() -> tuple[Any, Any]:
            stream = LogStream(WSGIHandler().get_response, QUICK)
            away = await watch(stream, run, **stranger).whole()
            open_ones = [await watch(stream, run, **key).opened() for _ in range(2)]
            third = await watch(stream, run, **key).whole()
            await asyncio.gather(*(reader.leave() for reader in open_ones))
            assert not stream.open
            await there(stream.close)
            return away, third

        away, third = play(scene)
        assert (away["status"], away["code"]) == (404, "gate_run_not_found")
        assert (third["status"], third["code"]) == (429, "too_many_streams")

    def test_the_end_of_the_process_ends_the_stream_at_once(self, heard: list[int]) -> None:
        run = running()
        key = bearer("viewer", run.project)

        async def scene() -> None:
            stream = LogStream(WSGIHandler().get_response, QUICK)
            reader = await watch(stream, run, **key).opened()
            signal.raise_signal(signal.SIGTERM)
            await reader.whole()
            await there(stream.close)

        play(scene)
        assert heard == [signal.SIGTERM]

    def test_a_right_that_ends_ends_the_stream(self) -> None:
        run = running()
        made = factories.make_key("viewer", project=run.project)
        key = {"authorization": f"Bearer {made.text}"}

        async def scene() -> Reader:
            stream = LogStream(WSGIHandler().get_response, Limits(0.02, 0.1, 900, 2, 1000))
            reader = await watch(stream, run, **key).opened()
            await there(lambda: made.row.revoke(by=factories.BY))
            await reader.whole()
            await there(stream.close)
            return reader

        last = play(scene).messages[-1]
        assert last["event"] == "error"
        assert json.loads(last["data"])["status"] == 401

    def test_a_plain_server_sends_what_is_there_and_a_wrong_number_is_refused(self) -> None:
        run = running()
        write(run, "one\n")
        api = Api(factories.make_key("viewer", project=run.project).text)
        answer = api.get(f"/gate-runs/{run.pk}/log/stream/")
        assert b"".join(answer.streaming_content).endswith(b'id: 1\ndata: {"text": "one\\n"}\n\n')
        assert refused(api.get(f"/gate-runs/{run.pk}/log/stream/", after="x")) == (400, "invalid_field")
        assert api.get(f"/gate-runs/{run.pk}/log/").content == b"one\n"


def test_the_page_of_a_running_gate_follows_its_log_and_that_of_an_ended_one_does_not() -> None:
    run = running()
    user = factories.make_user()
    factories.make_membership(user, run.project, "viewer")
    browser = Browser()
    browser.force_login(user)
    address = f"/api/v1/gate-runs/{run.pk}/log/stream/"
    assert f'data-live-log="{address}"' in browser.get(f"/gates/runs/{run.pk}/").text
    run.complete(ENDED, by=factories.BY, exit_code=0, output_tail="all of it")
    page = browser.get(f"/gates/runs/{run.pk}/").text
    assert address not in page
    assert "all of it" in page


def test_many_writers_of_one_run_never_double_a_piece(threads: Threads) -> None:
    run = running()
    threads.at_once(*[lambda: write(run, "one\n", "two\n")] * 3)
    assert [number for number, _ in live.page(run.pk, 0).pieces] == [1, 2]
