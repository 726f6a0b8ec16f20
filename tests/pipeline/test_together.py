"""Rows and events written in one statement are as if written one by one."""

import pytest
from django.db import IntegrityError, transaction

from pipeline.clock import ClockNow
from pipeline.models import Event, PromptInstance
from pipeline.together import Together
from tests import factories
from tests.factories import BY

pytestmark = pytest.mark.django_db


def a_prompt(**fields):
    return PromptInstance(
        template_id="t", target_tool="shell", kind="k", sections={"a": [1]}, text="x", sha256="0" * 64, **fields
    )


def test_inserts_updates_and_events_cost_two_statements(django_assert_num_queries):
    run, prompt = factories.make_run(started=True), a_prompt()
    run.refresh_from_db()
    writes = Together().insert(prompt).update(run, count_errors=7, metadata={"why": "tried"})
    writes.tell("note.added", run, by=BY, message="one").tell("note.added", run.project, by=BY)
    with django_assert_num_queries(2):
        writes.write()
    stored = PromptInstance.objects.get(pk=prompt.pk)
    assert (stored.sections, stored.text, stored.created_at is not None) == ({"a": [1]}, "x", True)
    assert (run.count_errors, run.metadata) == (7, {"why": "tried"})
    version = run.version
    run.refresh_from_db()
    assert (run.count_errors, run.metadata, run.version) == (7, {"why": "tried"}, version + 1)
    assert Event.objects.about(run).last().message == "one"
    assert Event.objects.about(run.project).last().kind == "note.added"


def test_the_databases_clock_and_foreign_keys_are_written():
    project = factories.make_project()
    prompt = a_prompt(project=project)
    worker, task = factories.make_worker(), factories.make_task()
    Together().insert(prompt).update(worker, progress_at=ClockNow(), previous_worker_id=None).write()
    worker.refresh_from_db()
    assert worker.progress_at is not None
    assert PromptInstance.objects.get(pk=prompt.pk).project == project
    assert task.state == "pending"


def test_the_guards_hold():
    task = factories.make_task()
    with pytest.raises(IntegrityError, match="cannot go from"), transaction.atomic():
        Together().update(task, state="completed").write()


def test_nothing_to_write_asks_nothing(django_assert_num_queries):
    with django_assert_num_queries(0):
        Together().write()
