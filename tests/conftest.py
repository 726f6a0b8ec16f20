"""What every test may ask for, and how the database is emptied between transactional tests."""

import functools
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connection
from django.test import TransactionTestCase
from pytest_django.plugin import DjangoDbBlocker

from pipeline import events
from pipeline.ending import SIGNALS
from pipeline.models import EventEpoch
from tests import schema

PATIENCE_SECONDS = 20.0
"""How long a thread of a test may take before the test fails instead of hanging."""


@pytest.fixture(scope="session")
def django_db_modify_db_settings(django_db_modify_db_settings_parallel_suffix: None) -> None:
    """The test database begins as a copy of the migrated one that an earlier run kept; migrate finds nothing to do."""
    connection.settings_dict["TEST"]["TEMPLATE"] = schema.restore()


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> None:
    """Keeps the migrated database for the next run."""
    with django_db_blocker.unblock():
        schema.keep()


# Written by migrations, the same for every test.
KEPT = frozenset({"django_migrations", "django_content_type", "auth_permission"})


@functools.cache
def _referring() -> dict[str, set[str]]:
    """table -> the tables that refer to it, which PostgreSQL wants emptied with it."""
    found: dict[str, set[str]] = {table: set() for table in connection.introspection.django_table_names(True)}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT confrelid::regclass::text, conrelid::regclass::text FROM pg_constraint"
            " WHERE contype = 'f' AND conparentid = 0 AND confrelid <> conrelid"
        )
        for table, by in cursor.fetchall():
            found.setdefault(table, set()).add(by)
    return found


def _empty_the_tables(_case: TransactionTestCase) -> None:
    """What a transactional test left behind: a flush of only those tables that hold rows, and of what refers to them.

    Django's own empties every table and makes content types and permissions anew: five times as long.
    """
    referring = _referring()
    asked = " UNION ALL ".join(f"SELECT '{table}' WHERE EXISTS (SELECT FROM {table})" for table in sorted(referring))
    with connection.cursor() as cursor:
        cursor.execute(asked)
        waiting = {table for (table,) in cursor.fetchall()} - KEPT
        emptied: set[str] = set()
        while waiting:
            emptied.add(table := waiting.pop())
            waiting |= referring.get(table, set()) - emptied
        if emptied:
            cursor.execute(f"TRUNCATE {', '.join(sorted(emptied))}")
    EventEpoch.objects.get_or_create(number=1, defaults={"reason": "first start"})


TransactionTestCase._fixture_teardown = _empty_the_tables


@pytest.fixture
def nudges(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """Every nudge of the test as (task, *arguments), in order; none of them reaches a broker."""
    sent: list[tuple[Any, ...]] = []
    monkeypatch.setattr(events, "nudge", lambda task, *args, queue=None: sent.append((task, *args)))
    return sent


@pytest.fixture
def reactions(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[events.Reaction]]:
    """The house's wiring emptied for one test: kind -> reactions. Chores are gone as well."""
    wiring: dict[str, list[events.Reaction]] = {}
    monkeypatch.setattr(events, "_reactions", wiring)
    monkeypatch.setattr(events, "_chores", [])
    return wiring


class Threads:
    """Runs functions in threads with connections of their own, which are closed at their end."""

    def __init__(self) -> None:
        self._started: list[threading.Thread] = []

    def start(self, work: Callable[[], Any]) -> "Outcome":
        """Run `work` in a thread of its own; the outcome tells what it returned or raised."""
        outcome = Outcome()

        def run() -> None:
            try:
                outcome.value = work()
            except BaseException as problem:
                outcome.error = problem
            finally:
                connection.close()
                outcome.ended.set()

        thread = threading.Thread(target=run, daemon=True)
        self._started.append(thread)
        thread.start()
        return outcome

    def at_once(self, *works: Callable[[], Any]) -> "list[Outcome]":
        """Run all of them, let go together; answers when the last has ended."""
        gate = threading.Barrier(len(works))

        def let_go(work: Callable[[], Any]) -> Callable[[], Any]:
            def run() -> Any:
                gate.wait(PATIENCE_SECONDS)
                return work()

            return run

        outcomes = [self.start(let_go(work)) for work in works]
        for outcome in outcomes:
            outcome.wait()
        return outcomes

    def join(self) -> None:
        """Wait for every thread, so that none outlives its test's database."""
        for thread in self._started:
            thread.join(PATIENCE_SECONDS)


class Outcome:
    """What became of one thread's work: `value` or `error`, once `ended` is set."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def wait(self) -> "Outcome":
        """This outcome once it is there. Fails the test when that takes too long."""
        assert self.ended.wait(PATIENCE_SECONDS), "a thread of this test hangs"
        return self

    def result(self) -> Any:
        """The value, once it is there; raises what the work raised."""
        self.wait()
        if self.error is not None:
            raise self.error
        return self.value


@pytest.fixture
def threads(transactional_db: None) -> Iterator[Threads]:
    """Threads that see each other's commits; joined before the database is emptied."""
    started = Threads()
    yield started
    started.join()


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """What reaches the server's own handlers, which are there again afterwards."""
    told: list[int] = []
    before = {sign: signal.signal(sign, lambda number, frame: told.append(number)) for sign in SIGNALS}
    mine = {sign: signal.getsignal(sign) for sign in SIGNALS}
    yield told
    assert {sign: signal.getsignal(sign) for sign in SIGNALS} == mine
    for sign, handler in before.items():
        signal.signal(sign, handler)
