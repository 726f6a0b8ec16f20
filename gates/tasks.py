"""Celery's way in: one line each, calling what the rest of the house calls."""

from celery import shared_task

from gates import running


@shared_task
def run_pending() -> None:
    """Run the gates that wait."""
    running.run_pending()
