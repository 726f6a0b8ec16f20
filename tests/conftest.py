"""What every test may ask for, and what a flush between transactional tests must put back."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.apps import apps
from django.db import connection
from django.db.models.signals import post_migrate

from pipeline import events
from pipeline.models import EventEpoch

PATIENCE_SECONDS = 20.0
"""How long a thread of a test may take before the test fails instead of hanging."""


def _put_back_the_epoch(**_signal: Any) -> None:
    """The flush after a transactional test empties every table, also of the row that the first migration made."""
    if EventEpoch._meta.db_table in connection.introspection.table_names():
        EventEpoch.objects.get_or_create(number=1, defaults={"reason": "first start"})


post_migrate.connect(_put_back_the_epoch, sender=apps.get_app_config("pipeline"), dispatch_uid="tests.epoch")


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
