"""Celery's way in: one line each, calling what the rest of the house calls."""

from celery import shared_task

from gates import running


@shared_task
def run_pending() -> None:
    """Clear away what a killed runner left, and run the gates that wait."""
    running.sweep_copies()
    running.run_pending()
