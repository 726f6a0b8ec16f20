"""Money under pressure: reservations at once, agents at one budget, settling while PostgreSQL is killed."""

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection, transaction

from costs.models import BudgetExceeded, BudgetPeriod, CostRecord, Reservation, booking, budget, daily
from pipeline.events import Event
from pipeline.invariants import check_all
from tests import factories
from tests.factories import BY, make_budget

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

FULL = os.environ.get("CHAOS") == "full"
REPETITIONS = 10
AT_ONCE = 12


def must_hold() -> None:
    """The invariants of money hold."""
    broken = [r for r in check_all() if not r.holds and 53 <= int(r.number.removeprefix("INV-")) <= 61]
    assert broken == []


def at_once(work: Any, count: int, threads: int = AT_ONCE) -> list[Any]:
    """The results of `work(0)` to `work(count - 1)` from so many threads, each with a connection of its own."""
    numbers = iter(range(count))
    lock = threading.Lock()

    def run() -> list[Any]:
        found = []
        try:
            while True:
                with lock:
                    number = next(numbers, None)
                if number is None:
                    return found
                found.append(work(number))
        finally:
            connection.close()

    with ThreadPoolExecutor(threads) as pool:
        parts = [pool.submit(run) for _ in range(threads)]
        return [one for part in parts for one in part.result()]


def test_a_thousand_reservations_of_ten_cents_at_five_dollars_are_fifty_every_time() -> None:
    project = factories.make_project()
    for number in range(REPETITIONS):
        of = make_budget(project, limit_amount=Decimal(5), key=f"round-{number}")
        # As a claim has them: the budgets that it read, then one conditional UPDATE each.
        covers = budget.covering([f"{of.scope_kind}:{of.scope_id}"], [project.pk])
        budget.period_for(covers[0])

        def reserve(_number: int, covers: Any = covers) -> bool:
            mine = [budget.Cover(**vars(cover)) for cover in covers]
            try:
                with transaction.atomic():
                    Reservation.objects.reserve("0.10", mine, by=BY, project_id=project.pk, seconds=600)
            except BudgetExceeded:
                return False
            return True

        granted = at_once(reserve, 1000)
        row = of.running()
        assert sum(granted) == 50
        assert (row.reserved, row.spent) == (Decimal(5), Decimal(0))
        of.edit(by=BY, active=False)
    assert Reservation.objects.held().count() == 50 * REPETITIONS
    must_hold()


def test_twenty_agents_at_one_budget_pass_it_by_no_more_than_what_they_had_in_flight() -> None:
    project = factories.make_project()
    of = make_budget(project, limit_amount=Decimal(3))
    most = Decimal("0.35")

    def agent(number: int) -> Decimal:
        """Set money aside, make requests that cost up to 0.05 more than it, settle; until the budget says no."""
        chance, spent = random.Random(number), Decimal(0)
        while True:
            try:
                with transaction.atomic():
                    row = factories.make_reservation(project, "0.30")
            except BudgetExceeded:
                return spent
            amount = Decimal(chance.randint(1, int(most * 100))) / 100
            row.settle(amount, by=BY)
            spent += amount

    spent = sum(at_once(agent, 20, threads=20), Decimal(0))
    row = of.running()
    assert row.spent == spent
    assert row.reserved == 0
    # Twenty leases, each past its reservation by at most one request's excess.
    assert row.spent <= of.limit_amount + 20 * (most - Decimal("0.30"))
    assert row.spent > of.limit_amount - Decimal("0.30")
    must_hold()


def test_one_budget_charged_from_many_sides_at_once_keeps_every_cent() -> None:
    project = factories.make_project()
    of = make_budget(project, limit_amount=Decimal(1000))

    def book(number: int) -> None:
        keys = [f"{number % 30}:{at}" for at in range(5)]  # every batch comes twice
        uses = [
            booking.Use(resource_type="api_call", source="s", idempotency_key=key, amount="0.01", project=project)
            for key in keys
        ]
        booking.book(uses, by=BY)

    at_once(book, 60)
    assert CostRecord.objects.count() == 150
    assert of.running().spent == Decimal("1.50")
    assert Event.objects.filter(kind="cost.recorded").count() == 150
    must_hold()


def test_sums_and_records_agree_while_records_are_booked_voided_and_classed_at_once() -> None:
    project = factories.make_project()
    make_budget(project, limit_amount=Decimal(1000))
    rows = [factories.make_cost(project=project, amount="1", model=f"m{n % 3}") for n in range(12)]

    def change(number: int) -> None:
        row = rows[number % len(rows)]
        if number % 3 == 0:
            booking.void([other.pk for other in rows[:6]], "twice", by=BY)
        elif number % 3 == 1:
            booking.reclass({row.pk: ("waste", "loop"), rows[(number + 5) % 12].pk: ("landed", "")}, by=BY)
        else:
            factories.make_cost(project=project, amount="0.5", model=f"m{number % 3}")

    at_once(change, 60)
    live = CostRecord.objects.live()
    for landing in ("landed", "waste", "overhead"):
        summed = sum(daily.DailySpend.objects.filter(landing=landing).values_list("amount", flat=True), Decimal(0))
        assert summed == live.filter(landing=landing).total()
    assert BudgetPeriod.objects.get().spent == live.total()
    must_hold()
