"""Celery's way in: one line each, calling what the rest of the house calls."""

from datetime import timedelta

from celery import shared_task

from ledger import audit, queue, sealing, validation
from ledger import landing_tasks as landing_tasks
from pipeline.models import Tick


@shared_task
def validate(patch_id: str) -> None:
    """Judge one created patch."""
    validation.validate(patch_id)


@shared_task
def advance(queue_id: str) -> None:
    """Do what is due in one merge queue."""
    queue.advance(queue_id)


@shared_task
def seal() -> None:
    """Every few seconds: seal and anchor what is settled. Of any number of these one works."""
    sealing.seal()


@shared_task
def watch_log() -> None:
    """Every day: verify the whole log, tell what is broken, and pack the anchors."""
    tick = Tick.objects.take("watch_log", timedelta(days=1))
    if tick is not None:
        audit.watch()
        tick.end()
