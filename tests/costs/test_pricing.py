"""Usage to money, figure by figure: `costs.pricing` against tables worked out by hand."""

import random
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
from genai_prices import Usage, calc_price
from genai_prices.data_snapshot import get_snapshot

from costs import price_base, pricing
from costs.pricing import ExchangeRate, PriceBook, Quote, Tier, UnitRate
from pipeline.refusals import InvalidField

NONE = dict.fromkeys(pricing.CLASSES, 0)
RATES = {
    "uncached_input": Decimal("3"),
    "cache_read": Decimal("0.30"),
    "cache_write_5m": Decimal("3.75"),
    "cache_write_1h": Decimal("6"),
    "output": Decimal("15"),
}


def tokens(**counts: int) -> dict[str, int]:
    """The five counts, absent ones zero."""
    return {**NONE, **counts}


def booked(**given: Any) -> pricing.Booked:
    """What `amount` books for the given facts, absent ones unknown."""
    facts: dict[str, Any] = {"stated": None, "quantity": None, "rate": None, "tokens": NONE, "price": None}
    return pricing.amount(**{**facts, **given})


def code_of(problem: pytest.ExceptionInfo[InvalidField]) -> tuple[str, int, str]:
    """(code, HTTP status, field) of a refusal."""
    return problem.value.code, problem.value.status, problem.value.parts["field"]


@pytest.mark.parametrize(
    ("given", "rounded"),
    [
        ("1", "1.000000"),
        ("0.1234564", "0.123456"),
        ("0.1234565", "0.123456"),  # a half goes to the even digit …
        ("0.1234575", "0.123458"),  # … in both directions
        ("0.1234565000001", "0.123457"),
        ("0.0000005", "0.000000"),
        ("0.0000015", "0.000002"),
        ("0", "0.000000"),
    ],
)
def test_money_has_six_places_and_halves_go_to_the_even_digit(given: str, rounded: str) -> None:
    assert str(pricing.quantise(Decimal(given))) == rounded


@pytest.mark.parametrize(
    ("value", "number"),
    [
        (None, None),
        ("", None),
        (0, "0.000000"),
        ("0.1", "0.100000"),
        (Decimal("2.5"), "2.500000"),
        (0.1, "0.100000"),
        ("1e3", "1000.000000"),
        ("1000000000", "1000000000.000000"),
        (" 7 ", "7.000000"),
    ],
)
def test_a_figure_is_read_as_a_decimal(value: object, number: str | None) -> None:
    assert pricing.figure("amount", value) == (None if number is None else Decimal(number))


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("NaN", "amount_not_finite"),
        ("sNaN", "amount_not_finite"),
        ("Infinity", "amount_not_finite"),
        ("-Infinity", "amount_not_finite"),
        (float("nan"), "amount_not_finite"),
        (float("inf"), "amount_not_finite"),
        ("1e999999999", "invalid_field"),
        ("twelve", "amount_not_finite"),
        ([1], "amount_not_finite"),
        ({}, "amount_not_finite"),
        ("1\x00", "amount_not_finite"),
        ("-0.000001", "amount_negative"),
        (-1, "amount_negative"),
        ("1000000000.000001", "invalid_field"),
        (10**30, "invalid_field"),
    ],
)
def test_what_is_no_finite_figure_is_refused_and_named(value: object, code: str) -> None:
    with pytest.raises(InvalidField) as problem:
        pricing.figure("usage_rate", value)
    assert code_of(problem) == (code, 422, "usage_rate")


@pytest.mark.parametrize("currency", ["USD", "EUR", "JPY", "XXX"])
def test_a_currency_is_three_upper_case_letters(currency: str) -> None:
    assert pricing.check_currency(currency) == currency


@pytest.mark.parametrize("currency", ["", "usd", "Usd", "US", "USDT", "U D", "12A", "ÄÖÜ", "US\x00", "US\n"])
def test_anything_else_is_no_currency(currency: str) -> None:
    with pytest.raises(InvalidField) as problem:
        pricing.check_currency(currency)
    assert code_of(problem) == ("invalid_currency", 422, "currency")


def test_absent_token_classes_count_as_zero() -> None:
    assert pricing.check_tokens({"output": 7, "cache_read": None}) == tokens(output=7)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"output": -1}, "tokens_output"),
        ({"output": True}, "tokens_output"),
        ({"cache_read": "12"}, "tokens_cache_read"),
        ({"cache_read": 1.5}, "tokens_cache_read"),
        ({"uncached_input": 10**15 + 1}, "tokens_uncached_input"),
        ({"reasoning": 3}, "tokens_reasoning"),
        ({"input": 3}, "tokens_input"),
    ],
)
def test_a_count_of_tokens_is_a_whole_number_of_a_known_class(given: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as problem:
        pricing.check_tokens(given)
    assert code_of(problem) == ("invalid_field", 422, field)


@pytest.mark.parametrize(
    ("counts", "amount"),
    [
        (tokens(), "0"),
        (tokens(uncached_input=1_000_000), "3"),
        (tokens(cache_read=1_000_000), "0.3"),
        (tokens(cache_write_5m=1_000_000), "3.75"),
        (tokens(cache_write_1h=1_000_000), "6"),
        (tokens(output=1_000_000), "15"),
        (tokens(uncached_input=1, output=1), "0.000018"),
        (tokens(cache_read=1), "0.000000"),  # 0.0000003 is below half a unit
        (tokens(cache_read=2), "0.000001"),
        (tokens(cache_read=5), "0.000002"),  # 0.0000015: the sum is rounded once, to even
        (tokens(uncached_input=1234, cache_read=56789, cache_write_5m=321, output=987), "0.036747"),
    ],
)
def test_tokens_are_priced_per_million_and_rounded_once(counts: dict[str, int], amount: str) -> None:
    assert pricing.price_tokens(counts, RATES) == Decimal(amount)


@pytest.mark.parametrize(
    ("given", "amount", "basis"),
    [
        ({"stated": Decimal("1.25")}, "1.25", "stated"),
        ({"stated": Decimal("0")}, "0", "stated"),
        ({"stated": Decimal("1.25"), "tokens": tokens(output=1_000_000), "price": RATES}, "1.25", "stated"),
        ({"quantity": Decimal("12.5"), "rate": Decimal("0.2")}, "2.5", "usage"),
        ({"quantity": Decimal("3"), "rate": Decimal("0.3333335")}, "1.000000", "usage"),
        ({"quantity": Decimal("3"), "rate": Decimal("2"), "tokens": tokens(output=9), "price": RATES}, "6", "usage"),
        ({"tokens": tokens(output=1_000_000), "price": RATES}, "15", "priced"),
        ({"tokens": tokens(output=1_000_000), "price": RATES, "per_request": Decimal("0.01")}, "15.01", "priced"),
        ({"quantity": Decimal("12.5"), "free": True}, "0", "usage"),
        ({"free": True}, "0", "usage"),
    ],
)
def test_the_amount_is_stated_or_used_or_priced_in_this_order(given: dict[str, Any], amount: str, basis: str) -> None:
    assert booked(**given) == pricing.Booked(Decimal(amount), basis)


def test_an_unknown_model_is_booked_at_the_ceiling_and_flagged() -> None:
    counts = tokens(uncached_input=1_000_000, cache_read=1_000_000, output=1_000_000)
    assert booked(tokens=counts, model="nobody-knows") == pricing.Booked(Decimal(105), "ceiling", unpriced=True)


def test_every_input_class_has_the_input_figure_at_the_ceiling() -> None:
    assert {pricing.CEILING[name] for name in pricing.CLASSES if name != "output"} == {Decimal(15)}
    assert pricing.CEILING["output"] == Decimal(75)


@pytest.mark.parametrize("given", [{}, {"quantity": Decimal(3)}, {"rate": Decimal(3)}, {"model": "m", "price": RATES}])
def test_without_amount_usage_or_tokens_nothing_can_be_booked(given: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as problem:
        booked(**given)
    assert code_of(problem) == ("amount_missing", 422, "amount")


@pytest.mark.parametrize(
    ("stated", "quantity", "rate"),
    [
        ("2.5", "12.5", "0.2"),
        ("2.50", "12.5", "0.200400"),  # 2.505: half a unit of the coarser last place, which is 2.5's
        ("2.5", "12.5", "0.204"),  # 2.55: exactly half a unit
        ("3", "1", "3.49"),  # a whole figure is coarse
        ("0.333333", "1", "0.333333"),
    ],
)
def test_an_amount_agrees_with_usage_to_half_a_unit_of_the_coarser_place(stated: str, quantity: str, rate: str) -> None:
    given = {"stated": Decimal(stated), "quantity": Decimal(quantity), "rate": Decimal(rate)}
    assert booked(**given) == pricing.Booked(Decimal(stated), "stated")


@pytest.mark.parametrize(
    ("stated", "quantity", "rate"),
    [("2.5", "12.5", "0.2041"), ("2.56", "12.5", "0.2"), ("3", "1", "3.6"), ("0", "1", "0.6"), ("10", "1", "20")],
)
def test_an_amount_that_contradicts_its_usage_is_refused_unless_overridden(
    stated: str, quantity: str, rate: str
) -> None:
    given = {"stated": Decimal(stated), "quantity": Decimal(quantity), "rate": Decimal(rate)}
    with pytest.raises(InvalidField) as problem:
        booked(**given)
    assert code_of(problem) == ("amount_contradicts_usage", 422, "amount")
    assert booked(**given, override=True) == pricing.Booked(Decimal(stated), "stated")


# -- which price ---------------------------------------------------------------------------------------------------

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
LONG = {name: rate * 2 for name, rate in RATES.items()}


def quote(**facts: Any) -> Quote:
    """An override of a model, valid always."""
    return Quote(
        **{
            "provider": "anthropic", "model": "m", "rates": RATES, "source": "contract 7", "version": "2026-1",
            "dated": date(2026, 1, 1), **facts,
        }
    )  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "is_request", "amount"),
    [
        (tokens(uncached_input=200_000), True, "0.6"),
        (tokens(uncached_input=200_001), True, "1.200006"),
        (tokens(uncached_input=200_001), False, "0.600003"),
        (tokens(uncached_input=100_000, cache_read=100_001), True, "0.660001"),
        (tokens(cache_write_5m=150_000, cache_write_1h=50_001, output=1000), True, "1.755012"),
        (tokens(uncached_input=10, output=300_000), True, "4.50003"),  # output does not lengthen the context
        (tokens(uncached_input=600_000), True, "6"),
    ],
)
def test_a_long_request_is_dearer_for_all_of_its_tokens(counts: dict[str, int], is_request: bool, amount: str) -> None:
    # the higher tier stands first: the order of the table does not matter
    longest = {name: Decimal(10) for name in pricing.CLASSES}
    tiered = quote(tiers=(Tier(500_000, longest), Tier(200_000, LONG)))
    assert tiered.amount(counts, is_request=is_request) == Decimal(amount)


def test_requests_and_searches_are_paid_by_the_piece_and_rounded_with_the_rest() -> None:
    by_piece = quote(per_request=Decimal("0.0000004"), per_search=Decimal("0.01"))
    assert by_piece.amount(tokens(uncached_input=1), web_searches=2) == Decimal("0.020003")
    assert by_piece.flat(requests=5, web_searches=1) == Decimal("0.0100020")


def test_a_class_without_a_price_is_not_free() -> None:
    no_output = quote(rates={name: RATES[name] for name in pricing.INPUT_CLASSES})
    assert no_output.amount(tokens(uncached_input=1_000_000)) == Decimal(3)
    assert no_output.amount(tokens(uncached_input=1, output=1)) is None
    assert no_output.rates_for(tokens(output=1)) is None


def no_base(provider: str, model: str, when: datetime) -> None:
    """A base list that knows nothing."""


def some_base(provider: str, model: str, when: datetime) -> Quote:
    """A base list that knows everything."""
    return quote(provider=provider or "somebody", model=model, source="list")


def test_an_override_goes_before_the_base_within_its_time() -> None:
    book = PriceBook(
        [
            quote(starts_at=datetime(2026, 1, 1, tzinfo=UTC), ends_at=datetime(2026, 7, 1, tzinfo=UTC), version="a"),
            quote(starts_at=datetime(2026, 7, 1, tzinfo=UTC), version="b", aliases=("m-latest",)),
        ],
        some_base,
    )

    def version_at(*when: int, provider: str = "anthropic", model: str = "m") -> str:
        found = book.at(provider, model, datetime(*when, tzinfo=UTC))  # type: ignore[misc,arg-type]
        assert found is not None
        return found.version if found.source == "contract 7" else found.source

    assert version_at(2025, 12, 31) == "list"
    assert version_at(2026, 1, 1) == "a"
    assert version_at(2026, 6, 30, 23, 59, 59, 999_999) == "a"
    assert version_at(2026, 7, 1) == "b"
    assert version_at(2030, 1, 1, model="m-latest") == "b"
    assert version_at(2026, 6, 30, model="m-latest") == "list"
    assert version_at(2026, 8, 1, provider="") == "b"
    assert version_at(2026, 8, 1, provider="bedrock") == "list"
    assert version_at(2026, 8, 1, model="m-2") == "list"  # no guess by a similar name


def test_an_override_is_valid_from_its_start_and_not_at_its_end() -> None:
    start, end = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 7, 1, tzinfo=UTC)
    book = PriceBook([quote(starts_at=start, ends_at=end)], no_base)
    assert book.at("anthropic", "m", start) is not None
    assert book.at("anthropic", "m", end) is None


def test_of_two_providers_the_newest_price_holds_when_none_is_named() -> None:
    book = PriceBook(
        [
            quote(provider="a", starts_at=datetime(2026, 2, 1, tzinfo=UTC)),
            quote(provider="b", starts_at=datetime(2026, 3, 1, tzinfo=UTC)),
            quote(provider="c"),
        ],
        no_base,
    )
    assert [
        found.provider if (found := book.at("", "m", when)) else None
        for when in (datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC), NOW)
    ] == ["c", "a", "b"]
    assert book.at("", "unknown", NOW) is None
    assert PriceBook([], some_base).at("", "", NOW) is None


# -- the base list -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("provider", "model", "named"),
    [
        ("anthropic", "claude-opus-4-5", "anthropic/claude-opus-4-5"),
        ("anthropic", "claude-opus-4-5-20251101", "anthropic/claude-opus-4-5"),
        ("", "Claude-Opus-4-5-latest", "anthropic/claude-opus-4-5"),
        ("", "claude-sonnet-4-20250514", "anthropic/claude-sonnet-4-0"),
        ("", "claude-sonnet-4-5-20250929[1m]", "anthropic/claude-sonnet-4-5"),
        ("gcp.vertex_ai", "claude-sonnet-4-5@20250929", "google/claude-sonnet-4-5"),
        ("openai", "gpt-5-codex", "openai/gpt-5"),
        ("azure.ai.openai", "gpt-4o", "azure/gpt-4o"),
        ("google", "gemini-2.5-pro", "google/gemini-2.5-pro"),
        (
            "aws.bedrock",
            "us.anthropic.claude-3-5-sonnet-20241022-v2:0",
            "aws/regional.anthropic.claude-3-5-sonnet-20241022-v2:0",
        ),
        # nobody's, or named like somebody's
        ("anthropic", "claude-opus-4-5-turbo", None),
        ("", "claude-opus-4-55", None),
        ("", "my-claude-opus-4-5", None),
        ("nobody", "gpt-5", None),
        ("openai", "claude-opus-4-5", None),
        ("", "llama-at-home", None),
        ("", "", None),
    ],
)
def test_the_base_knows_a_model_by_its_name_and_never_by_a_similar_one(
    provider: str, model: str, named: str | None
) -> None:
    found = price_base.quote(provider, model, NOW)
    assert (found and f"{found.provider}/{found.model}") == named


def test_every_price_of_the_base_has_its_source_and_date() -> None:
    assert price_base.RELEASE in price_base.CHECKED, "a new release of the list: state the day that it was checked"
    dearer = price_base.quote("anthropic", "claude-opus-4-6", datetime(2026, 3, 12, 23, 59, tzinfo=UTC))
    since = price_base.quote("anthropic", "claude-opus-4-6", datetime(2026, 3, 13, tzinfo=UTC))
    assert dearer is not None
    assert since is not None
    assert (since.source, since.version, since.dated) == ("genai-prices", price_base.RELEASE, date(2026, 3, 13))
    assert (dearer.dated, [tier.above for tier in dearer.tiers]) == (date(2026, 11, 4), [200_000])
    assert since.tiers == ()


def test_the_base_prices_as_its_library_does() -> None:
    chosen = random.Random(7)
    compared = 0
    models = [(provider, model) for provider in get_snapshot().providers for model in provider.models]
    for provider, model in chosen.sample(models, 700):
        found = price_base.quote(provider.id, model.id, NOW)
        if found is None or "output" not in found.rates or (found.provider, found.model) != (provider.id, model.id):
            continue
        for size in (1_000, 90_000, 400_000):
            counts = {name: chosen.randrange(size) for name in pricing.CLASSES}
            usage = Usage(
                input_tokens=sum(counts[name] for name in pricing.INPUT_CLASSES),
                cache_read_tokens=counts["cache_read"],
                cache_write_tokens=counts["cache_write_5m"] + counts["cache_write_1h"],
                cache_write_1h_tokens=counts["cache_write_1h"],
                output_tokens=counts["output"],
            )
            library = calc_price(usage, model.id, provider_id=provider.id, genai_request_timestamp=NOW).total_price
            assert found.amount(counts) == pricing.quantise(library), (provider.id, model.id, counts)
            compared += 1
    assert compared > 900


# -- what is no model ----------------------------------------------------------------------------------------------


def unit(**facts: Any) -> dict[str, Any]:
    """A row of the settings' table of rates."""
    return {
        "resource_type": "compute_time", "unit": "second", "rate": "0.000012", "currency": "EUR",
        "source": "contract 7", "since": "2026-01-01", **facts,
    }  # fmt: skip


def test_a_rate_by_the_unit_holds_from_its_day_until_the_next() -> None:
    table = pricing.unit_rates([unit(), unit(rate="0.0000155", since=date(2026, 7, 1)), unit(unit="hour", rate=1)])

    def rate_on(day: date) -> Decimal | None:
        found = pricing.unit_rate(table, "compute_time", "second", day)
        return found and found.rate

    assert rate_on(date(2025, 12, 31)) is None
    assert rate_on(date(2026, 1, 1)) == Decimal("0.000012")
    assert rate_on(date(2026, 6, 30)) == Decimal("0.000012")
    assert rate_on(date(2026, 7, 1)) == Decimal("0.0000155")  # a rate keeps all its places
    assert pricing.unit_rate(table, "storage", "second", date(2026, 7, 1)) is None
    assert table[0] == UnitRate("compute_time", "second", Decimal("0.000012"), "EUR", "contract 7", date(2026, 1, 1))


@pytest.mark.parametrize(
    ("row", "field"),
    [
        (unit(rate=None), "rates[0].rate"),
        (unit(rate="-1"), "rates[0].rate"),
        (unit(rate="NaN"), "rates[0].rate"),
        (unit(currency="euro"), "currency"),
        (unit(since="1.1.2026"), "rates[0].since"),
        (unit(since=None), "rates[0].since"),
        (unit(since=datetime(2026, 1, 1, tzinfo=UTC)), "rates[0].since"),
        (unit(until="2027-01-01"), "rates[0]"),
        ({"rate": "1"}, "rates[0]"),
        ("compute_time", "rates[0]"),
    ],
)
def test_a_row_of_rates_that_cannot_be_right_is_named(row: Any, field: str) -> None:
    with pytest.raises(InvalidField) as problem:
        pricing.unit_rates([row])
    assert problem.value.parts["field"] == field


def worth(**facts: Any) -> dict[str, Any]:
    """A row of the settings' table of exchange rates."""
    return {"currency": "EUR", "to": "USD", "rate": "1.10", "source": "ECB", "on": "2026-01-02", **facts}


def test_money_is_exchanged_at_the_newest_rate_of_the_day_or_before() -> None:
    table = pricing.exchange_rates([worth(), worth(rate="1.2345675", on="2026-02-01")])
    assert table[0] == ExchangeRate("EUR", "USD", Decimal("1.10"), "ECB", date(2026, 1, 2))

    def in_dollars(amount: str, day: date) -> Decimal:
        return pricing.exchange(Decimal(amount), "EUR", "USD", day, table)

    assert in_dollars("2", date(2026, 1, 31)) == Decimal("2.2")
    assert in_dollars("1", date(2026, 2, 1)) == Decimal("1.234568")
    assert pricing.exchange(Decimal("2"), "EUR", "EUR", date(1999, 1, 1), []) == Decimal(2)


@pytest.mark.parametrize(
    ("currency", "to", "on"),
    [("EUR", "USD", date(2026, 1, 1)), ("USD", "EUR", date(2026, 6, 1)), ("EUR", "JPY", date(2026, 6, 1))],
)
def test_a_rate_of_exchange_is_never_guessed(currency: str, to: str, on: date) -> None:
    with pytest.raises(InvalidField, match=f"no exchange rate from {currency} to {to}") as problem:
        pricing.exchange(Decimal(1), currency, to, on, pricing.exchange_rates([worth()]))
    assert code_of(problem) == ("no_exchange_rate", 422, "currency")


@pytest.mark.parametrize("row", [worth(rate=0), worth(rate="-1"), worth(to="usd"), worth(on="today"), worth(x=1), 7])
def test_a_row_of_exchange_that_cannot_be_right_is_refused(row: Any) -> None:
    with pytest.raises(InvalidField):
        pricing.exchange_rates([row])
