"""Celery's way in: one line each, calling what the rest of the house calls."""

from datetime import timedelta

from celery import shared_task
from django.conf import settings

from pipeline import events, notifications, webhooks
from pipeline.clock import db_now
from pipeline.models import StepAttempt, StoredAnswer, Tick

KEEP_TICKS = timedelta(days=1)


@shared_task
def react(*pks: str) -> None:
    """React to the events of one statement, nudged after their commit."""
    events.react_to(pks)


@shared_task
def sweep() -> None:
    """Every few seconds: do the chores, and react to what a lost nudge left behind. Each due moment once.

    The chores come first, and the reactions take no longer than until the next sweep: however many events wait, who is
    dead is found in time. The reactions that are left are the next sweep's.
    """
    period = settings.SIGNALBOX_SWEEP_SECONDS
    tick = Tick.objects.take("sweep", timedelta(seconds=period))
    if tick is not None:
        events.do_chores()
        events.react_to_due(seconds=period)
        tick.end()


@shared_task
def tidy() -> None:
    """Every hour: make the event table's next months, forget stored answers, moments and deliveries that are past."""
    tick = Tick.objects.take("tidy", timedelta(hours=1))
    if tick is not None:
        events.make_partitions()
        StoredAnswer.objects.filter(expires_at__lt=db_now()).delete()
        Tick.objects.forget(db_now() - KEEP_TICKS)
        webhooks.forget_old()
        if settings.SIGNALBOX_KEEP_LOGS_DAYS:
            before = db_now() - timedelta(days=settings.SIGNALBOX_KEEP_LOGS_DAYS)
            # Batch by batch, so that no lock is held for long.
            while StepAttempt.objects.forget_logs(before):
                pass
        tick.end()


@shared_task
def notify() -> None:
    """Send what notification rules have to say."""
    notifications.send_due()


@shared_task
def deliver() -> None:
    """Make and send the webhooks' deliveries that are due."""
    webhooks.deliver_due()
