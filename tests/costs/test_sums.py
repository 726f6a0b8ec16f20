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
from pipeline.ids import new_id, to_uuid
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
        by_model = dict(rows.order_by().values_list("model").annotate(sum=Sum("amount")))
        summed = dict(mine.order_by().values_list("model").annotate(sum=Sum("amount")))
        assert {name: amount for name, amount in summed.items() if amount} == {
            name: amount for name, amount in by_model.items() if amount
        }
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


_GENERATE = """
INSERT INTO costs_costrecord (id, resource_type, amount, currency, leaf_kind, leaf_id, run_id, task_id, worker_id,
    model, provider, resource_name, usage_unit, basis, unpriced, assumed_ttl, override_reason, source, idempotency_key,
    landing, waste_cause, recorded_at, voided_by, void_reason, voided_at, kind, person, flags, is_request, session,
    meter, price_source, price_version, tokens_uncached_input, tokens_cache_read, tokens_cache_write_5m,
    tokens_cache_write_1h, tokens_output, reasoning, web_searches, project_id)
SELECT gen_random_uuid(), 'api_call', (random() * 1000000)::bigint / 1000000.0, 'USD', 'task', %(task)s, %(run)s,
    %(task)s, NULL, 'm' || (n %% 5), '', '', '', 'stated', n %% 7 = 0, false, '', 'g', 'g' || n, 'in_flight', '',
    clock_timestamp() - (n %% 30) * interval '1 day', '', '', NULL, 'research', 'p', '[]', true, '', '', '', '',
    n, 0, 0, 0, n, 0, 0, %(project)s
FROM generate_series(1, %(count)s) n
"""


@pytest.mark.django_db
def test_sums_agree_over_many_generated_records_voids_and_classes() -> None:
    """20,000 records (1,000,000 under CHAOS=full), put in as a bulk load, and summed by the reconciling chore."""
    count = 1_000_000 if FULL else 20_000
    run = factories.make_run(started=True)
    task = factories.make_task(run)
    with connection.cursor() as cursor:
        cursor.execute(
            _GENERATE,
            {"task": to_uuid(task.pk), "run": to_uuid(run.pk), "project": to_uuid(run.project_id), "count": count},
        )
    today = db_now().date()
    assert len(fates.reconcile(today - timedelta(days=40), today)) == 1
    sums_agree()
    chance = random.Random(7)
    ids = list(CostRecord.objects.filter(source="g").values_list("pk", flat=True)[: count // 10])
    for start in range(0, len(ids), 1000):
        part = ids[start : start + 1000]
        booking.void(part[:300], "it was wrong", by=BY)
        booking.reclass({pk: chance.choice(FATES) for pk in part[200:]}, by=BY)
    sums_agree()


def test_every_sum_of_the_small_table_is_a_column_of_it() -> None:
    columns = {field.attname for field in DailySpend._meta.concrete_fields}
    assert set(daily.SUMS) | set(daily.DIMENSIONS) | {"id", "day"} == columns
