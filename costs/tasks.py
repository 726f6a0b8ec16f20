"""Celery's way in: one line each, calling what the rest of the house calls."""

from celery import shared_task

from costs.models import budget


@shared_task
def note_refusal(budget_id: str, amount: str) -> None:
    """Note what a refused claim means for its budget."""
    budget.note_refusal(budget_id, amount)
