"""What a record is priced at: by its time, its tier, our own price over the kept list, and what is told beside it."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from costs.models import CostRecord, Price, booking
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.factories import BY, make_price

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

MILLION = {"uncached_input": 1_000_000}


def priced(model: str, **fields: Any) -> CostRecord:
    """A million tokens of fresh input of this model, unless told otherwise."""
    fields.setdefault("tokens", MILLION)
    row, _is_new = CostRecord.objects.record(by=BY, resource_type="api_call", source="tests", model=model, **fields)
    return row


def test_a_use_is_priced_as_of_when_it_was_used_however_late_it_is_told() -> None:
    now = db_now()
    first = make_price(
        model="m", uncached_input=3, effective_from=now - timedelta(days=60), effective_to=now - timedelta(days=10),
        price_version="1",
    )  # fmt: skip
    make_price(model="m", uncached_input=5, effective_from=now - timedelta(days=10), price_version="2")
    late = priced("m", reported_at=now - timedelta(days=30))
    assert (late.amount, late.price_id, late.price_version) == (Decimal(3), first.pk, "1")
    assert priced("m").amount == Decimal(5)
    assert priced("m", reported_at=now + timedelta(days=3)).amount == Decimal(5)


def test_a_worker_cannot_choose_a_time_before_its_attempt() -> None:
    now = db_now()
    make_price(
        model="m", uncached_input=1, effective_from=now - timedelta(days=9), effective_to=now - timedelta(days=1)
    )
    make_price(model="m", uncached_input=5, effective_from=now - timedelta(days=1), price_version="2")
    lease = factories.make_lease()
    assert priced("m", attempt=lease.attempt, reported_at=now - timedelta(days=5)).amount == Decimal(5)


def test_our_own_price_stands_over_the_kept_list_and_says_its_source_and_date() -> None:
    listed = priced("claude-sonnet-4-5")
    assert (listed.basis, listed.price_source, listed.price_id) == ("priced", "genai-prices", None)
    assert listed.price_version
    assert isinstance(listed.price_dated, date)
    make_price(provider="anthropic", model="claude-sonnet-4-5", uncached_input=2, source="our contract",
               dated=date(2026, 1, 1))  # fmt: skip
    own = priced("claude-sonnet-4-5")
    assert (own.amount, own.price_source, own.price_dated) == (Decimal(2), "our contract", date(2026, 1, 1))


def test_a_long_request_has_the_price_of_its_tier_and_a_sum_of_requests_has_not() -> None:
    make_price(model="m", uncached_input=3, tiers=[{"above": 200_000, "uncached_input": "6"}])
    assert priced("m").amount == Decimal(6)
    assert priced("m", is_request=False).amount == Decimal(3)


@pytest.mark.parametrize(
    "tiers",
    [
        "none", [{}], [{"above": 1}], [{"above": 0, "output": "1"}], [{"above": 5, "output": 1.5}],
        [{"above": 5, "output": "-1"}], [{"above": 5, "colour": "1"}],
        [{"above": 5, "output": "1"}, {"above": 5, "output": "2"}],
    ],
    ids=["text", "empty", "no-rate", "zero", "float", "negative", "unknown", "not-rising"],
)  # fmt: skip
def test_tiers_that_cannot_be_are_refused(tiers: Any) -> None:
    with pytest.raises(InvalidField):
        make_price(tiers=tiers)


def test_web_searches_and_requests_cost_beside_the_tokens() -> None:
    make_price(model="m", uncached_input=1, per_search=Decimal("0.01"), per_request=Decimal("0.5"))
    assert priced("m", web_searches=3).amount == Decimal("1.53")


def test_what_tool_and_gateway_say_is_kept_beside_our_price() -> None:
    make_price(model="m", uncached_input=1)
    row = priced("m", stated_amount="1.25", gateway_amount="1.01", session="s-1", flags=["assumed_ttl"], reasoning=7)
    assert (row.amount, row.stated_amount, row.gateway_amount) == (Decimal(1), Decimal("1.25"), Decimal("1.01"))
    assert (row.session, row.flags, row.assumed_ttl, row.reasoning) == ("s-1", ["assumed_ttl"], True, 7)


def test_a_correction_is_a_new_version_and_what_was_priced_stays() -> None:
    old = make_price(model="m", uncached_input=1)
    before = priced("m")
    new = old.supersede(by=BY, uncached_input=Decimal(2), price_version="2")
    assert priced("m").amount == Decimal(2)
    before.refresh_from_db()
    assert (before.amount, before.price_id) == (Decimal(1), old.pk)
    old.refresh_from_db()
    assert old.superseded_at is not None
    assert new.effective_from == old.effective_from
    with pytest.raises(Refused):
        old.supersede(by=BY)
    assert Event.objects.filter(kind="price.changed", subject_id=old.pk).count() == 1


def test_what_belongs_to_nothing_is_overhead_that_is_shown() -> None:
    project = factories.make_project()
    rows = [factories.make_cost(), factories.make_cost(project=project), factories.make_cost(run=factories.make_run())]
    assert [(row.leaf_kind, row.landing) for row in rows] == [
        ("none", "overhead"),
        ("project", "overhead"),
        ("run", "overhead"),
    ]


def test_a_batch_tells_the_number_of_what_it_refuses_and_books_nothing() -> None:
    uses = [booking.Use(resource_type="api_call", source="s", amount=amount) for amount in ("1", "2", "-3")]
    with pytest.raises(InvalidField) as refusal:
        booking.book(uses, by=BY)
    assert refusal.value.parts["number"] == 2
    assert not CostRecord.objects.exists()


def test_a_large_batch_is_one_event_and_one_insert(django_assert_num_queries: Any) -> None:
    uses = [
        booking.Use(resource_type="api_call", source="s", idempotency_key=str(n), amount="0.000001") for n in range(500)
    ]
    booking.book(uses[:1], by=BY)  # a connection of its own first says what it is
    with django_assert_num_queries(4):  # it joins the bookings, and the one that is known is looked up
        booked = booking.book(uses, by=BY)
    assert [one.is_new for one in booked] == [False] + [True] * 499
    told = Event.objects.get(subject_type="cost_batch")
    assert (told.data["records"], told.data["amounts"]) == (499, {"USD": "0.000499"})
    assert booking.digest_of(told.subject_id) == told.data["digest"]
    CostRecord.objects.filter(idempotency_key="7").update(amount=Decimal(9))
    assert booking.digest_of(told.subject_id) != told.data["digest"]
    assert [one.is_new for one in booking.book(uses, by=BY)] == [False] * 500
    assert Event.objects.count() == 2


def test_no_price_list_is_asked_for_a_use_of_the_future() -> None:
    assert Price.objects.book_for([]).at("", "", datetime(2026, 1, 1, tzinfo=UTC)) is None
