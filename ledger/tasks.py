"""Celery's way in: one line each, calling what the rest of the house calls."""

from celery import shared_task

from ledger import queue, validation


@shared_task
def validate(patch_id: str) -> None:
    """Judge one created patch."""
    validation.validate(patch_id)


@shared_task
def advance(queue_id: str) -> None:
    """Do what is due in one merge queue."""
    queue.advance(queue_id)
