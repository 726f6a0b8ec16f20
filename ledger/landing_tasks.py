"""Celery's way in to landing: one line each, calling what the rest of the house calls."""

from datetime import timedelta

from celery import shared_task

from ledger import janitor, receipts, remote
from ledger.models import Remote
from pipeline.models import Tick


@shared_task
def push(queue_id: str) -> None:
    """Give the remote what has landed in one queue."""
    remote.push(queue_id)


@shared_task
def push_due() -> None:
    """Give the remotes what is due."""
    remote.push_due()


@shared_task
def fetch(remote_id: str) -> None:
    """Ask one remote for its branches, since somebody said that there is something new."""
    found = Remote.objects.live().filter(pk=remote_id).select_related("project").first()
    if found is not None:
        remote.fetch(found)


@shared_task
def fetch_due() -> None:
    """Ask the remotes whose time has come."""
    remote.fetch_due()


@shared_task
def note_receipts() -> None:
    """Hang new receipts on their commits."""
    receipts.note_rest()


@shared_task
def tidy_mirrors() -> None:
    """Every hour: remove what killed gits left."""
    tick = Tick.objects.take("tidy_mirrors", timedelta(hours=1))
    if tick is not None:
        janitor.sweep_all()
        tick.end()


@shared_task
def watch_receipts() -> None:
    """Every day: hold every landed patch against its receipt."""
    tick = Tick.objects.take("watch_receipts", timedelta(days=1))
    if tick is not None:
        receipts.watch()
        tick.end()
