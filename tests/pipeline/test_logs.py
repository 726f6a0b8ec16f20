"""Logs have a clock of their own: they are emptied, and nothing else of what has ended can be changed."""

from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction

from gates import tasks as gates_tasks
from gates.models import GateRun
from pipeline import tasks
from pipeline.clock import db_now
from pipeline.models import StepAttempt
from tests import factories
from tests.factories import BY

pytestmark = pytest.mark.django_db


def an_ended_attempt():
    """With a log of each kind."""
    step = factories.make_step(factories.make_run(started=True))
    step.start(by=BY)
    step.end("task_failed", by=BY, output_tail="out", error_log="wrong")
    return step


def test_old_logs_are_emptied_and_young_ones_stay(settings):
    settings.SIGNALBOX_KEEP_LOGS_DAYS = 30
    step = an_ended_attempt()
    tasks.tidy()
    step.refresh_from_db()
    assert (step.output_tail, step.error_log) == ("out", "wrong")
    assert StepAttempt.objects.forget_logs(db_now() + timedelta(seconds=1)) == 1
    step.refresh_from_db()
    assert (step.output_tail, step.error_log, step.outcome) == ("", "", "task_failed")
    assert StepAttempt.objects.forget_logs(db_now() + timedelta(seconds=1)) == 0


def test_logs_are_kept_for_ever_unless_told(settings):
    settings.SIGNALBOX_KEEP_LOGS_DAYS = 0
    step = an_ended_attempt()
    tasks.tidy()
    gates_tasks.tidy()
    step.refresh_from_db()
    assert step.output_tail == "out"


@pytest.mark.parametrize("change", [{"output_tail": "other"}, {"error_log": "nothing"}, {"outcome": "success"}])
def test_a_log_of_what_has_ended_can_be_emptied_and_not_rewritten(change):
    step = an_ended_attempt()
    with pytest.raises(IntegrityError, match="it has ended"), transaction.atomic():
        StepAttempt.objects.filter(pk=step.pk).update(**change)


def test_a_gates_log_is_emptied_too():
    run = factories.make_gate_run()
    GateRun.objects.filter(pk=run.pk).update(output_tail="long", completed_at=db_now())
    assert GateRun.objects.forget_logs(db_now() + timedelta(seconds=1)) == 1
    run.refresh_from_db()
    assert run.output_tail == ""
