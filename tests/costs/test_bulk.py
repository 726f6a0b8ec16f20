"""Uses in bulk: what differs and what is shared arrives as it was sent, whoever sends it, and in whatever order."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection, connections

from costs.models import CostRecord, booking, wire
from costs.models.settled import problems
from pipeline.events import Event
from pipeline.ids import new_id, to_uuid
from pipeline.refusals import InvalidField
from tests import factories
from tests.api.asking import Api, refused
from tests.costs.test_sums import sums_agree
from tests.factories import BY, make_price

AWKWARD = ["", "NULL", "null", "a,b", "{a}", 'say "x"', "back\\slash", "new\nline", "ä€😀", " ", "'", "%s", "$1"]


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("text", AWKWARD),
        ("text", [*AWKWARD, None]),
        ("numeric", [Decimal("0.000001"), None, Decimal("123456789012.5"), Decimal("0E-6")]),
        ("bigint", [0, 10**15, None]),
        ("bool", [True, False, None]),
        ("uuid", [new_id(), None]),
        ("timestamptz", [datetime(2026, 3, 29, 1, 30, 0, 5, UTC), None]),
        ("date", [datetime(2026, 2, 28, tzinfo=UTC).date(), None]),
        ("jsonb", [("a", 'b"'), ()]),
    ],
    ids=["text", "text-and-null", "numeric", "bigint", "bool", "uuid", "time", "date", "json"],
)
def test_an_array_s_text_holds_what_was_given(kind: str, values: list[Any]) -> None:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT x FROM unnest(%s::{kind}[]) x", [wire.array(kind, values)])
        found = [value for (value,) in cursor.fetchall()]
    if kind == "uuid":
        values = [value and to_uuid(value) for value in values]
    if kind == "jsonb":
        values = ['["a", "b\\""]', "[]"]
    assert found == values


@pytest.mark.django_db
def test_awkward_texts_and_figures_are_stored_as_they_were_reported() -> None:
    uses = [
        booking.Use(
            resource_type="api_call", source="s", idempotency_key=f"k-{number}-{text}", session=text, model=text,
            amount=Decimal(number) / 1000, stated_amount="1.5" if number % 2 else None, reasoning=number,
            reported_at=datetime(2026, 1, 1, number, tzinfo=UTC) if number % 3 else None, flags=["x", text],
            tokens={"output": number}, provider="p" * (number % 2),
        )
        for number, text in enumerate(AWKWARD)
    ]  # fmt: skip
    booked = booking.book(uses, by=BY)
    for use, one in zip(uses, booked, strict=True):
        row = CostRecord.objects.get(pk=one.pk)
        assert (row.session, row.model, row.idempotency_key) == (use.session, use.model, use.idempotency_key)
        assert (row.amount, row.reasoning, row.tokens_output) == (use.amount, use.reasoning, use.reasoning)
        assert (row.reported_at, row.flags, row.provider) == (use.reported_at, sorted(use.flags), use.provider)
        told = one.row()
        assert (told.recorded_at, told.created_at, told.flags) == (row.recorded_at, row.created_at, row.flags)
    sums_agree()


@pytest.mark.django_db
def test_the_quick_way_and_the_serializer_read_the_same() -> None:
    project = factories.make_project(custody="recorded")
    make_price(model="m", provider="example", uncached_input=2)
    api = Api(factories.make_key("operator", project=project).text)
    plain = {"resource_type": "api_call", "project": project.key, "model": "m", "tokens_uncached_input": 1_000_000}
    quick = [{**plain, "idempotency_key": f"q-{n}", "source": "q", "reasoning": 7} for n in range(3)]
    # A number where text is the ordinary thing leaves the whole list to the serializer.
    slow = [{**one, "source": "s", "gateway_amount": 1} for one in quick]
    for documents in (quick, slow):
        answer = api.post("/costs/", documents)
        assert answer.status_code == 201
        assert [one["amount"] for one in answer.json()["results"]] == ["2.000000"] * 3
    columns = ("project", "model", "provider", "tokens_uncached_input", "reasoning", "amount", "basis", "landing")
    rows = list(CostRecord.objects.values_list(*columns))
    assert len(rows) == 6
    assert len(set(rows)) == 1


@pytest.mark.django_db
def test_a_worker_books_in_bulk_to_its_own_lease_and_nowhere_else() -> None:
    key = factories.make_key("worker")
    run = factories.make_run(started=True)
    lease = factories.make_lease(factories.make_worker(api_key=key.row), factories.make_task(run))
    api = Api(key.text)
    mine = {"resource_type": "custom", "amount": "1", "lease": lease.pk, "generation": lease.generation}
    answer = api.post("/costs/", [{**mine, "idempotency_key": str(n)} for n in range(30)])
    assert answer.status_code == 201
    assert set(CostRecord.objects.values_list("attempt", "source")) == {(lease.attempt_id, "agent")}
    for wrong, status, code in (
        ({**mine, "generation": lease.generation + 1}, 409, "stale_claim"),
        ({**mine, "lease": new_id()}, 404, "lease_not_found"),
        ({**mine, "lease": "x"}, 422, "invalid_id"),
        ({**mine, "project": "p"}, 404, "project_not_found"),
        ({"resource_type": "custom", "amount": "1"}, 422, "missing_required_field"),
        ({**mine, "override_reason": "because"}, 422, "invalid_field"),
    ):
        assert refused(api.post("/costs/", [mine, wrong])) == (status, code)
    assert CostRecord.objects.count() == 30


@pytest.mark.django_db
def test_a_list_that_is_sent_again_is_answered_in_few_statements(django_assert_max_num_queries: Any) -> None:
    api = Api(factories.make_key("operator").text)
    documents = [{"resource_type": "custom", "amount": "1", "idempotency_key": str(n)} for n in range(200)]
    first = api.post("/costs/", documents).json()["results"]
    with django_assert_max_num_queries(12):
        again = api.post("/costs/", documents).json()["results"]
    assert [one["id"] for one in again] == [one["id"] for one in first]
    assert {one["is_new"] for one in again} == {False}
    changed = [*documents[:-1], {**documents[-1], "amount": "2", "stated_amount": "2"}]
    assert refused(api.post("/costs/", changed)) == (409, "duplicate_key")


@pytest.mark.django_db
def test_models_that_nobody_prices_are_told_of_once_each_in_a_large_batch() -> None:
    api = Api(factories.make_key("operator").text)
    plain = {"resource_type": "api_call", "tokens_uncached_input": 1_000_000}
    answer = api.post("/costs/", [{**plain, "model": f"new-{number % 2}"} for number in range(40)])
    assert answer.status_code == 201
    assert {one["unpriced"] for one in answer.json()["results"]} == {True}
    told = Event.objects.filter(kind="cost.unpriced").order_by("seq").values_list("data", flat=True)
    assert list(told) == [{"model": "new-0", "amount": "300.000000"}, {"model": "new-1", "amount": "300.000000"}]


@pytest.mark.django_db
def test_a_sum_tells_only_what_it_was_grouped_by_and_converts_by_the_days_rates(settings: Any) -> None:
    settings.SIGNALBOX_EXCHANGE_RATES = """[
        {"currency": "EUR", "to": "USD", "rate": "1.10", "source": "ECB", "on": "2026-01-02"},
        {"currency": "EUR", "to": "USD", "rate": "9", "source": "ECB", "on": "2999-01-01"}]"""
    api = Api(factories.make_key("viewer").text)
    factories.make_cost(amount="2", model="m")
    factories.make_cost(amount="10", currency="EUR", model="m")
    told = api.get("/costs/summary/?group_by=model&into=USD").json()
    assert [set(row) for row in told["results"]] == [{"model", "currency", "amount", "unpriced_amount", "records"}] * 2
    assert [(row["currency"], row["amount"]) for row in told["totals"]] == [("EUR", "10.000000"), ("USD", "2.000000")]
    assert (told["converted"]["amount"], told["converted"]["currency"]) == ("13.000000", "USD")
    assert [(rate["rate"], rate["on"]) for rate in told["converted"]["rates"]] == [("1.10", "2026-01-02")]
    assert api.get("/costs/statement/?into=USD").json()["converted"]["amount"] == "13.000000"
    # Turned round it is another rate, which nobody gave.
    assert refused(api.get("/costs/summary/?into=EUR")) == (422, "no_exchange_rate")


@pytest.mark.django_db(transaction=True)
def test_many_who_book_the_same_in_other_orders_book_it_once() -> None:
    keys = [f"k-{number}" for number in range(300)]

    def send(number: int) -> int:
        order = keys[number:] + keys[:number] if number % 2 else keys[::-1]
        uses = [booking.Use(resource_type="custom", source="s", idempotency_key=key, amount="0.01") for key in order]
        try:
            return sum(one.is_new for one in booking.book(uses, by=BY))
        finally:
            connections.close_all()

    with ThreadPoolExecutor(6) as pool:
        new = list(pool.map(send, range(12)))
    assert (sum(new), CostRecord.objects.count()) == (300, 300)
    assert CostRecord.objects.live().total() == Decimal(3)
    sums_agree()


# -- what is no model ----------------------------------------------------------------------------------------------

RATES = """[
 {"resource_type": "compute_time", "unit": "second", "rate": 0.0001, "currency": "EUR", "source": "contract",
  "since": "2026-01-01"},
 {"resource_type": "storage", "unit": "gigabyte", "rate": "0.02", "currency": "USD", "source": "list",
  "since": "2026-01-01"},
 {"resource_type": "storage", "unit": "gigabyte", "rate": "0.03", "currency": "USD", "source": "list",
  "since": "2026-06-01"}
]"""


def counted(**fields: Any) -> CostRecord:
    """One use of something that is no model."""
    return booking.book([booking.Use(source="s", **fields)], by=BY)[0].row()


@pytest.mark.django_db
def test_units_without_a_rate_of_their_own_have_that_of_the_settings_on_their_day(settings: Any) -> None:
    settings.SIGNALBOX_UNIT_RATES = RATES
    row = counted(resource_type="compute_time", duration_seconds="1234.5")
    assert (row.amount, row.currency, row.basis, row.usage_unit) == (Decimal("0.123450"), "EUR", "usage", "second")
    assert (row.usage_quantity, row.price_source) == (Decimal("1234.5"), "contract")
    row = counted(resource_type="storage", usage_quantity="10", usage_unit="gigabyte")
    assert (row.amount, row.usage_rate) == (Decimal("0.3"), Decimal("0.03"))
    early = datetime(2026, 3, 1, tzinfo=UTC)
    row = counted(resource_type="storage", usage_quantity="10", usage_unit="gigabyte", reported_at=early)
    assert row.amount == Decimal("0.2")
    row = counted(resource_type="storage", usage_quantity="10", usage_unit="gigabyte", usage_rate="1")
    assert row.amount == Decimal(10)
    with pytest.raises(InvalidField) as refusal:
        counted(resource_type="storage", usage_quantity="10", usage_unit="terabyte")
    assert refusal.value.code == "amount_missing"


@pytest.mark.django_db
def test_compute_time_without_a_rate_is_booked_at_nothing_with_its_duration() -> None:
    row = counted(resource_type="compute_time", duration_seconds="12")
    assert (row.amount, row.duration_seconds, row.basis) == (Decimal(0), Decimal(12), "usage")


@pytest.mark.django_db
def test_the_ceiling_is_that_of_the_settings(settings: Any) -> None:
    settings.SIGNALBOX_PRICE_CEILING_INPUT_USD = Decimal(20)
    row = counted(resource_type="api_call", model="nobody-knows", tokens={"uncached_input": 1_000_000})
    assert (row.amount, row.unpriced) == (Decimal(20), True)


@pytest.mark.parametrize(
    "text", ["{", "{}", "[1]", '[{"unit": "second"}]', RATES.replace("0.0001", '"-1"')],
    ids=["no-json", "no-list", "no-object", "missing", "negative"],
)  # fmt: skip
def test_a_table_that_cannot_be_is_complained_of(settings: Any, text: str) -> None:
    settings.SIGNALBOX_UNIT_RATES = text
    assert [name for name, _why in problems()] == ["SIGNALBOX_UNIT_RATES"]
    settings.SIGNALBOX_UNIT_RATES = RATES
    assert problems() == []
