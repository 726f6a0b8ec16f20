"""Celery's way in: one line each, calling what the rest of the house calls."""

from celery import shared_task

from costs.models import budget, charging


@shared_task
def note_refusal(budget_id: str, amount: str) -> None:
    """Note what a refused claim means for its budget."""
    budget.note_refusal(budget_id, amount)


@shared_task
def count_earlier() -> None:
    """Bring the budgets that are behind up to date."""
    charging.count_earlier()
