"""A cursor reader gets each subject's events in the order of their numbers, whoever began first."""

from typing import Any

import pytest
from django.db import connection, transaction

from pipeline import events
from pipeline.events import START, Event
from tests import factories
from tests.conftest import Threads

pytestmark = pytest.mark.django_db(transaction=True)


def test_a_transaction_that_had_its_id_early_and_records_late_comes_late(
    threads: Threads, nudges: list[tuple[Any, ...]]
) -> None:
    project = factories.make_project()

    def record(message: str) -> None:
        events.record("note.added", project, by=factories.BY, message=message)

    with transaction.atomic():
        # As every POST with an Idempotency-Key: its stored answer is written before its verb takes a lock.
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()")
        threads.start(lambda: record("first")).result()
        record("second")
    read = [event for event in Event.objects.after(START) if event.kind == "note.added"]
    assert [(event.message, event.stream_seq) for event in read] == [
        (event.message, event.stream_seq) for event in Event.objects.about(project).filter(kind="note.added")
    ]
