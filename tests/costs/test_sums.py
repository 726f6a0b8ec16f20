"""Sums by task, worker, model, day, class and in all agree with each other and the records, to the micro-dollar."""

import os
import random
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.db.models import Sum
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from costs import fates, reports
from costs.models import CostRecord, DailySpend, booking, daily
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.ids import new_id
from tests import factories
from tests.factories import BY

FULL = os.environ.get("CHAOS") == "full"
ZERO = Decimal(0)

FATES = [("landed", ""), ("in_flight", ""), ("waste", "gate_failed"), ("waste", "loop"), ("overhead", "")]


def sums_agree() -> None:
    """Every way to add up gives the same, currency by currency, and the small table is what the records say."""
    live, table = CostRecord.objects.live(), DailySpend.objects.all()
    for currency in set(live.values_list("currency", flat=True)) | {"USD"}:
        total = live.total(currency)
        mine, rows = table.filter(currency=currency), live.filter(currency=currency)
        for column in ("task", "worker", "model", "landing"):
            parts = rows.order_by().values(column).annotate(sum=Sum("amount"))
            assert sum((part["sum"] for part in parts), ZERO) == total
        for column in ("day", "tool", "model", "worker", "landing", "waste_cause", "kind", "person"):
            parts = {row[column]: row["sum"] for row in mine.order_by().values(column).annotate(sum=Sum("amount"))}
            assert sum(parts.values(), ZERO) == total
        for column in ("model", "worker", "landing", "waste_cause", "tool", "kind", "person", "resource_type"):
            found = [
                {
                    name: amount
                    for name, amount in of.order_by().values_list(column).annotate(sum=Sum("amount"))
                    if amount
                }
                for of in (rows, mine)
            ]
            assert found[0] == found[1]
        told = [of for of in reports.by_class(table) if of["currency"] == currency]
        for of in told:
            assert of["landed"] + of["in_flight"] + of["overhead"] + of["waste"] == of["amount"] == total
            assert sum(of["causes"].values(), ZERO) == of["waste"]
    today = db_now().date()
    assert fates.reconcile(today - timedelta(days=400), today + timedelta(days=1)) == []


ACTIONS = st.lists(
    st.one_of(
        st.tuples(
            st.just("book"),
            st.lists(
                st.tuples(
                    st.decimals("0", "999", places=6),
                    st.sampled_from(["USD", "USD", "EUR"]),
                    st.sampled_from(["m1", "m2", ""]),
                    st.integers(0, 2),
                    st.booleans(),
                ),
                min_size=1,
                max_size=6,
            ),
        ),
        st.tuples(st.just("void"), st.lists(st.integers(0, 30), min_size=1, max_size=4)),
        st.tuples(
            st.just("class"), st.lists(st.tuples(st.integers(0, 30), st.sampled_from(FATES)), min_size=1, max_size=4)
        ),
    ),
    max_size=8,
)


class WhateverIsDone(TestCase):
    """Any order of booking, voiding and re-classing."""

    @settings(max_examples=200 if FULL else 20, deadline=None, suppress_health_check=list(HealthCheck))
    @given(actions=ACTIONS)
    def test_sums_agree_after_any_order_of_bookings_voids_and_classes(self, actions: Any) -> None:
        """Hypothesis looks for the order that breaks them."""
        run = factories.make_run(started=True)
        tasks = [None, factories.make_task(run), None]
        worker = factories.make_worker()
        ids: list[str] = []
        for verb, what in actions:
            if verb == "book":
                uses = [
                    booking.Use(
                        resource_type="api_call", source="s", idempotency_key=new_id(), amount=amount,
                        currency=currency, model=model, task=tasks[place], run=None if place == 2 else run,
                        worker=worker if stated else None, stated_amount="1.5" if stated else None,
                    )
                    for amount, currency, model, place, stated in what
                ]  # fmt: skip
                ids += [one.pk for one in booking.book(uses, by=BY)]
            elif verb == "void":
                booking.void([ids[place % len(ids)] for place in what] if ids else [], "it was wrong", by=BY)
            elif ids:
                booking.reclass({ids[place % len(ids)]: fate for place, fate in what}, by=BY)
        sums_agree()


@pytest.mark.django_db
def test_a_difference_is_booked_and_told() -> None:
    cost = factories.make_cost(amount="2")
    DailySpend.objects.update(amount=Decimal("1.5"))
    today = cost.recorded_at.date()
    (found,) = fates.reconcile(today, today)
    assert (found["currency"], found["amount"], found["rows"]) == ("USD", Decimal("0.5"), 1)
    assert DailySpend.objects.get().amount == Decimal(2)
    told = Event.objects.get(kind="cost.reconciled")
    assert (told.severity, told.data["differences"][0]["amount"]) == ("warning", "0.500000")
    assert fates.reconcile(today, today) == []


@pytest.mark.django_db
def test_a_row_that_is_missing_or_too_many_is_found() -> None:
    cost = factories.make_cost(amount="2", model="m")
    today = cost.recorded_at.date()
    DailySpend.objects.all().delete()
    assert fates.reconcile(today, today)[0]["amount"] == Decimal(2)
    CostRecord.objects.filter(pk=cost.pk).update(model="other")
    assert fates.reconcile(today, today)[0]["moved"] == Decimal(4)
    sums_agree()


def random_uses(chance: random.Random, count: int, tasks: list[Any], workers: list[Any]) -> list[booking.Use]:
    """Uses of random tasks, workers, models and amounts, in two currencies; some of them of a model nobody prices."""
    return [
        booking.Use(
            resource_type=chance.choice(["api_call", "api_call", "tool_usage"]),
            source="g",
            idempotency_key=new_id(),
            amount=None if (unknown := chance.random() < 0.1) else Decimal(chance.randrange(10**9)) / 10**6,
            tokens={"uncached_input": chance.randrange(1, 10**6), "output": chance.randrange(10**4)},
            model="nobody-knows" if unknown else f"m{chance.randrange(5)}",
            currency=chance.choice(["USD", "USD", "EUR"]),
            task=chance.choice(tasks),
            worker=chance.choice(workers),
            stated_amount="0.5" if chance.random() < 0.2 else None,
        )
        for _number in range(count)
    ]


@pytest.mark.timeout(7200)
@pytest.mark.django_db(transaction=True)
def test_sums_agree_over_many_random_records_voids_and_classes() -> None:
    """10,000 records (1,000,000 under CHAOS=full) by the verbs that everybody uses; nothing is put right meanwhile."""
    chance, batch = random.Random(7), 1000
    run = factories.make_run(
        factories.make_workstream(tasks=[factories.task_spec(f"t-{number}") for number in range(20)]), started=True
    )
    tasks, workers = [None, *run.tasks.select_related("run")], [None, *(factories.make_worker() for _n in range(8))]
    ids: list[str] = []
    for number in range(1000 if FULL else 10):
        if number % 20 == 0:  # what autovacuum does elsewhere
            connection.cursor().execute("VACUUM ANALYZE costs_costrecord, costs_dailyspend")
        ids += [one.pk for one in booking.book(random_uses(chance, batch, tasks, workers), by=BY)]
        booking.void(chance.sample(ids, batch // 20), "it was wrong", by=BY)
        booking.reclass({pk: chance.choice(FATES) for pk in chance.sample(ids, batch // 10)}, by=BY)
    assert CostRecord.objects.count() == len(ids)
    assert CostRecord.objects.exclude(voided_at=None).count() > len(ids) // 40
    sums_agree()


def test_every_sum_of_the_small_table_is_a_column_of_it() -> None:
    columns = {field.attname for field in DailySpend._meta.concrete_fields}
    assert set(daily.SUMS) | set(daily.DIMENSIONS) | {"id", "day"} == columns


@pytest.mark.django_db
def test_sums_are_compared_by_their_keys_and_not_each_with_every_other() -> None:
    """A day on which five hundred workers were busy in a hundred workstreams has ten thousand rows."""
    today = db_now().date()
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {fates._RECONCILE}", {"first": today, "last": today})
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert "Aggregate" in plan
    assert "Join" not in plan
    assert "Nested Loop" not in plan
