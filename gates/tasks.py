"""Celery's way in: one line each, calling what the rest of the house calls."""

from datetime import timedelta

from celery import shared_task
from django.conf import settings

from gates import external, live, running
from gates.models import GateRun
from pipeline.clock import db_now
from pipeline.models import Tick


@shared_task
def run_pending() -> None:
    """Clear away what a killed runner left, and run the gates that wait."""
    running.sweep_copies()
    running.run_pending()


@shared_task
def tidy() -> None:
    """Every hour: logs that are past their keeping go, batch by batch, so that no lock is held for long."""
    tick = Tick.objects.take("gates-tidy", timedelta(hours=1))
    if tick is not None:
        if settings.SIGNALBOX_KEEP_LOGS_DAYS:
            before = db_now() - timedelta(days=settings.SIGNALBOX_KEEP_LOGS_DAYS)
            while GateRun.objects.forget_logs(before):
                pass
        while live.forget():
            pass
        external.forget_contents()
        tick.end()
