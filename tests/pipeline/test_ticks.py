"""Ticks: each due moment of a schedule is taken once."""

from datetime import timedelta

import pytest
from django.conf import settings
from django.db import OperationalError

from pipeline import events, tasks
from pipeline.clock import db_now
from pipeline.models import Tick

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)


def test_a_moment_is_taken_once():
    tick = Tick.objects.take("seal", DAY)
    assert tick is not None
    assert Tick.objects.take("seal", DAY) is None
    assert Tick.objects.get() == tick


def test_schedules_do_not_take_each_others_moments():
    assert Tick.objects.take("seal", DAY) is not None
    assert Tick.objects.take("sweep", DAY) is not None


def test_the_next_moment_is_taken_again():
    taken = Tick.objects.take("seal", DAY)
    Tick.objects.filter(pk=taken.pk).update(due_at=taken.due_at - DAY)
    assert Tick.objects.take("seal", DAY) is not None
    assert Tick.objects.count() == 2


@pytest.mark.parametrize("period", [timedelta(seconds=5), timedelta(minutes=1), timedelta(hours=1), DAY])
def test_a_moment_is_the_databases_time_rounded_down_to_the_period(period):
    before = db_now()
    tick = Tick.objects.take("seal", period)
    seconds = tick.due_at.timestamp()
    assert seconds % period.total_seconds() == 0
    assert before - period < tick.due_at <= db_now()
    assert tick.due_at.utcoffset() == timedelta(0)


def test_the_end_of_the_work_is_noted():
    tick = Tick.objects.take("seal", DAY)
    assert tick.ended_at is None
    tick.end()
    tick.refresh_from_db()
    assert tick.ended_at >= tick.created_at


def test_old_moments_are_forgotten_and_young_ones_kept():
    old, young = Tick.objects.take("old", DAY), Tick.objects.take("young", DAY)
    Tick.objects.filter(pk=old.pk).update(due_at=old.due_at - 8 * DAY)
    assert Tick.objects.forget(db_now() - 7 * DAY) == 1
    assert list(Tick.objects.all()) == [young]


def test_the_sweep_does_its_chores_before_it_reacts_and_reacts_no_longer_than_until_the_next(monkeypatch):
    """However many events wait, and whatever becomes of their reactions: who is dead is found in time."""
    done = []

    def react_to_due(*, seconds):
        done.append(("reactions", seconds))
        raise OperationalError("the server went away")

    monkeypatch.setattr(events, "do_chores", lambda: done.append("chores"))
    monkeypatch.setattr(events, "react_to_due", react_to_due)
    with pytest.raises(OperationalError):
        tasks.sweep()
    assert done == ["chores", ("reactions", settings.SIGNALBOX_SWEEP_SECONDS)]
