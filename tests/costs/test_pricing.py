"""Usage to money, figure by figure: `costs.pricing` against tables worked out by hand."""

from decimal import Decimal
from typing import Any

import pytest

from costs import pricing
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
