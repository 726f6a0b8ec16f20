"""The bus: both of its kinds keep to one face, a failing handler harms nobody, and a rollback is heard by no one."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import transaction

from pipeline.bus import Bus, DatabaseBus, MemoryBus, Message
from pipeline.ids import is_id, new_id
from pipeline.models import Event
from pipeline.refusals import InvalidField
from tests.factories import BY

committing = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=[pytest.param(DatabaseBus, marks=committing), MemoryBus], ids=["database", "memory"])
def bus(request: pytest.FixtureRequest) -> Bus:
    """Each kind of bus in turn; one of them needs no database."""
    kind: Callable[[], Bus] = request.param
    return kind()


def kinds(heard: list[Message]) -> list[str]:
    return [message.kind for message in heard]


def test_what_is_emitted_is_heard_by_who_subscribed_to_it(bus: Bus) -> None:
    every: list[Message] = []
    runs: list[Message] = []
    exact: list[Message] = []
    bus.subscribe("*", every.append)
    bus.subscribe("run.*", runs.append)
    bus.subscribe("run.failed", exact.append)
    run = new_id()

    pk = bus.emit("run.started", {"note": "first"}, run_id=run)
    bus.emit("run.failed")
    bus.emit("worker.started")

    assert kinds(every) == ["run.started", "run.failed", "worker.started"]
    assert kinds(runs) == ["run.started", "run.failed"]
    assert kinds(exact) == ["run.failed"]
    first = every[0]
    assert is_id(pk)
    assert (first.id, first.channel, first.severity) == (pk, "task_events", "info")
    assert (dict(first.payload), dict(first.correlation)) == ({"note": "first"}, {"run_id": run})
    assert abs(first.at - datetime.now(UTC)) < timedelta(minutes=1)


def test_severity_and_channel_choose_as_well(bus: Bus) -> None:
    loud: list[Message] = []
    workers: list[Message] = []
    bus.subscribe("*", loud.append, min_severity="error")
    bus.subscribe("*", workers.append, channels=["worker_status"])
    bus.emit("run.started")
    bus.emit("run.failed")
    bus.emit("worker.started")
    assert kinds(loud) == ["run.failed"]
    assert kinds(workers) == ["worker.started"]


def test_a_failing_handler_is_kept_and_the_others_hear(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL)
    heard: list[Message] = []

    def breaks(message: Message) -> None:
        raise RuntimeError(f"cannot hear {message.kind}")

    failing = bus.subscribe("*", breaks)
    bus.subscribe("*", heard.append)
    pk = bus.emit("run.started")

    assert kinds(heard) == ["run.started"]
    (failure,) = bus.failures
    assert (failure.subscription, failure.message.id) == (failing, pk)
    assert failure.error == "RuntimeError: cannot hear run.started"


def test_who_unsubscribed_hears_no_more_and_an_unknown_id_is_ignored(bus: Bus) -> None:
    heard: list[Message] = []
    listening = bus.subscribe("*", heard.append)
    bus.emit("run.started")
    bus.unsubscribe(listening)
    bus.unsubscribe(listening)
    bus.unsubscribe("nobody")
    bus.emit("run.failed")
    assert kinds(heard) == ["run.started"]


def test_a_handler_may_subscribe_and_emit(bus: Bus) -> None:
    heard: list[Message] = []

    def goes_on(message: Message) -> None:
        bus.subscribe("run.succeeded", heard.append)
        bus.emit("run.succeeded")

    bus.subscribe("run.started", goes_on)
    bus.emit("run.started")
    assert kinds(heard) == ["run.succeeded"]
    assert not bus.failures


def test_a_query_answers_newest_first_by_every_filter(bus: Bus) -> None:
    run, worker = new_id(), new_id()
    ids = [
        bus.emit("run.started", run_id=run),
        bus.emit("run.failed", run_id=run, worker_id=worker),
        bus.emit("worker.started", worker_id=worker),
        bus.emit("note.added", severity="error"),
    ]

    def found(**filters: Any) -> list[int]:
        return [ids.index(message.id) for message in bus.query(**filters)]

    assert found() == [3, 2, 1, 0]
    assert found(limit=2) == [3, 2]
    assert found(kind="run.*") == [1, 0]
    assert found(kind="run.failed") == [1]
    assert found(kind="nothing.such") == []
    assert found(run=run) == [1, 0]
    assert found(worker=worker) == [2, 1]
    assert found(run=run, worker=worker) == [1]
    assert found(severity="error") == [3, 1]
    third = bus.query(kind="worker.started")[0].at
    assert found(since=third) == [3, 2]
    assert found(until=third) == [1, 0]


def test_a_severity_given_as_text_is_kept(bus: Bus) -> None:
    bus.emit("note.added", severity="critical")
    assert bus.query()[0].severity == "critical"


def test_what_the_vocabulary_does_not_know_is_refused(bus: Bus) -> None:
    with pytest.raises(KeyError):
        bus.emit("run.exploded")
    with pytest.raises(TypeError, match="tool_id"):
        bus.emit("run.started", tool_id=new_id())
    with pytest.raises(InvalidField, match="severity"):
        bus.emit("run.started", severity="loud")
    for pattern in ("run", "nothing.*", "run.%"):
        with pytest.raises(InvalidField):
            bus.subscribe(pattern, print)
    assert bus.query() == []


@committing
def test_the_database_bus_keeps_what_it_is_told_in_the_log() -> None:
    run, worker = new_id(), new_id()
    pk = DatabaseBus(by=BY).emit("run.failed", {"why": "odd"}, run_id=run, worker_id=worker)
    event = Event.objects.get(pk=pk)
    assert (event.subject_type, event.subject_id) == ("run", run)
    assert (event.worker_id, event.data, event.actor_name) == (worker, {"why": "odd"}, BY.name)
    about_nothing = Event.objects.get(pk=DatabaseBus().emit("alert.raised", {"cause": "odd"}))
    assert (about_nothing.subject_type, about_nothing.actor_name) == ("installation", "system")


@committing
def test_nobody_hears_before_the_commit_and_nobody_of_a_rollback() -> None:
    bus, heard = DatabaseBus(), []
    bus.subscribe("*", heard.append)
    with transaction.atomic():
        bus.emit("run.started")
        assert heard == []
    assert kinds(heard) == ["run.started"]
    with transaction.atomic():
        bus.emit("run.failed")
        transaction.set_rollback(True)
    assert kinds(heard) == ["run.started"]
    assert [message.kind for message in bus.query()] == ["run.started"]


def test_the_memory_bus_remembers_the_newest_only() -> None:
    bus = MemoryBus(keep=2)
    for kind in ("run.started", "run.failed", "run.succeeded"):
        bus.emit(kind)
    assert kinds(bus.query()) == ["run.succeeded", "run.failed"]
