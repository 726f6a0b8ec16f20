"""Usage to money: pure; rates are per million tokens, amounts have six places, halves go to the even digit."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from pipeline.refusals import InvalidField

CLASSES = ("uncached_input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
MILLION = Decimal(1_000_000)
MICRO = Decimal("0.000001")
MOST = Decimal(10) ** 9

# An unknown model is booked at these, in USD per million tokens (domain.md §1.11): never zero, never a guess.
CEILING: Mapping[str, Decimal] = {
    "uncached_input": Decimal(15),
    "cache_read": Decimal(15),
    "cache_write_5m": Decimal(15),
    "cache_write_1h": Decimal(15),
    "output": Decimal(75),
}


@dataclass(frozen=True)
class Booked:
    """An amount to six places, what it rests on (stated, usage, priced, ceiling), and whether its price is unknown."""

    amount: Decimal
    basis: str
    unpriced: bool = False


def quantise(amount: Decimal) -> Decimal:
    """The one place where money is rounded: six places, half to even."""
    return amount.quantize(MICRO, ROUND_HALF_EVEN)


def figure(field: str, value: Any) -> Decimal | None:
    """`value` as a Decimal to six places; None stays None.

    Raises InvalidField: `amount_not_finite` for NaN, infinities and what is no number, `amount_negative` below zero,
    `invalid_field` above 10^9 (reliability.md case 40).
    """
    if value is None or value == "":
        return None
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise InvalidField(field, f"“{str(value)[:40]}” is not a finite number", code="amount_not_finite")
    if number < 0:
        raise InvalidField(field, f"{field} must be non-negative", code="amount_negative")
    if number > MOST:
        raise InvalidField(field, f"at most {MOST}")
    return quantise(number)


def check_currency(currency: str) -> str:
    """The currency itself. Raises InvalidField `invalid_currency`."""
    if len(currency) != 3 or not (currency.isascii() and currency.isalpha() and currency.isupper()):
        raise InvalidField("currency", "Currency must be three upper-case letters", code="invalid_currency")
    return currency


def check_tokens(tokens: Mapping[str, Any]) -> dict[str, int]:
    """The five counts. Raises InvalidField for an unknown class, what is no whole number, and a negative count."""
    for name in tokens:
        if name not in CLASSES:
            raise InvalidField(f"tokens_{name}", f"unknown class; the classes are {', '.join(CLASSES)}")
    counts = {}
    for name in CLASSES:
        count = tokens.get(name) or 0
        if isinstance(count, bool) or not isinstance(count, int) or count < 0 or count > 10**15:
            raise InvalidField(f"tokens_{name}", "a whole number of at least 0")
        counts[name] = count
    return counts


def price_tokens(tokens: Mapping[str, int], rates: Mapping[str, Decimal]) -> Decimal:
    """The sum of count times rate over the five classes, per million, to six places."""
    return quantise(sum((tokens[name] * rates[name] for name in CLASSES), Decimal(0)) / MILLION)


def amount(
    *,
    stated: Decimal | None,
    quantity: Decimal | None,
    rate: Decimal | None,
    tokens: Mapping[str, int],
    price: Mapping[str, Decimal] | None,
    per_request: Decimal = Decimal(0),
    model: str = "",
    free: bool = False,
    override: bool = False,
) -> Booked:
    """What to book: the stated amount, else quantity times rate, else the tokens' price, else the ceiling.

    `free` books nothing for a use that has no rate (compute time). Raises InvalidField `amount_missing`, and
    `amount_contradicts_usage` when amount and quantity times rate differ by more than half a unit of the coarser last
    place, unless `override`.
    """
    by_usage = quantise(quantity * rate) if quantity is not None and rate is not None else None
    if stated is not None:
        if by_usage is not None and not override and abs(stated - by_usage) > _half_unit(stated, by_usage):
            raise InvalidField(
                "amount", f"{stated} contradicts usage × rate = {by_usage}", code="amount_contradicts_usage"
            )
        return Booked(stated, "stated")
    if by_usage is not None:
        return Booked(by_usage, "usage")
    if any(tokens.values()):
        if price is None:
            return Booked(price_tokens(tokens, CEILING), "ceiling", unpriced=True)
        return Booked(quantise(price_tokens(tokens, price) + per_request), "priced")
    if free:
        return Booked(Decimal(0), "usage")
    raise InvalidField("amount", "give an amount, a quantity with its rate, or tokens", code="amount_missing")


def _half_unit(*figures: Decimal) -> Decimal:
    """Half a unit of the last place of the coarser figure."""
    places = min(-int(number.normalize().as_tuple().exponent) for number in figures)
    return Decimal(1).scaleb(-max(places, 0)) / 2
