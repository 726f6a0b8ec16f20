"""Usage to money: pure; rates are per million tokens, amounts have six places, halves go to the even digit."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation
from typing import Any

from pipeline.refusals import InvalidField

CLASSES = ("uncached_input", "cache_read", "cache_write_5m", "cache_write_1h", "output")
INPUT_CLASSES = CLASSES[:-1]
_NONE = dict.fromkeys(CLASSES, 0)
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
    text = str(value)
    try:
        # Decimal also reads 1_000 and the digits of other scripts, which nobody means by money.
        number = Decimal(text if text.isascii() and "_" not in text else "NaN")
    except InvalidOperation:
        number = Decimal("NaN")
    if not number.is_finite():
        raise InvalidField(field, f"“{text[:40]}” is not a finite number", code="amount_not_finite")
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
    if not tokens:
        return dict(_NONE)
    if _NONE.keys() >= tokens.keys() and all(type(count) is int and 0 <= count <= 10**15 for count in tokens.values()):
        return {**_NONE, **tokens}
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
    ceiling: Mapping[str, Decimal] = CEILING,
) -> Booked:
    """What to book: the stated amount, else quantity times rate, else the tokens' price, else the `ceiling`.

    `free` books nothing for a use that has no rate (compute time). Raises InvalidField `amount_missing`, and
    `amount_contradicts_usage` when amount and quantity times rate differ by more than half a unit of the coarser last
    place, unless `override`.
    """
    by_usage = quantise(quantity * rate) if quantity is not None and rate is not None else None
    if by_usage is not None and by_usage > MOST:
        raise InvalidField("usage_quantity", f"quantity × rate is {by_usage}; at most {MOST}")
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
            return Booked(price_tokens(tokens, ceiling), "ceiling", unpriced=True)
        return Booked(quantise(price_tokens(tokens, price) + per_request), "priced")
    if free:
        return Booked(Decimal(0), "usage")
    raise InvalidField("amount", "give an amount, a quantity with its rate, or tokens", code="amount_missing")


def _half_unit(*figures: Decimal) -> Decimal:
    """Half a unit of the last place of the coarser figure."""
    places = min(-int(number.normalize().as_tuple().exponent) for number in figures)
    return Decimal(1).scaleb(-max(places, 0)) / 2


# -- which price ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tier:
    """The rates of a request whose input is longer than `above` tokens: they hold for all of it, not for the rest."""

    above: int
    rates: Mapping[str, Decimal]


@dataclass(frozen=True)
class Quote:
    """What a model costs at one time, and who says so.

    `rates` are per million tokens in `currency`; a class that is absent has no price. `per_request` and `per_search`
    (web searches) come on top. `source` and `version` name the list that the price stands in, `dated` its date.
    An override is valid from `starts_at` until before `ends_at`, for its `model` and its `aliases`.
    """

    provider: str
    model: str
    rates: Mapping[str, Decimal]
    source: str
    version: str
    dated: date
    currency: str = "USD"
    tiers: tuple[Tier, ...] = ()
    per_request: Decimal = Decimal(0)
    per_search: Decimal = Decimal(0)
    starts_at: datetime | None = None
    ends_at: datetime | None = None
    aliases: tuple[str, ...] = ()

    def rates_for(self, tokens: Mapping[str, int], *, is_request: bool = True) -> dict[str, Decimal] | None:
        """The five rates for a use of these tokens; None when it used a class that has no price.

        A tier asks how long one request was, so the tokens of many requests together (`is_request` False) have the
        rates of the lowest tier.
        """
        rates = self.rates
        if is_request:
            length = sum(tokens[name] for name in INPUT_CLASSES)
            for tier in sorted(self.tiers, key=lambda tier: tier.above):
                if length > tier.above:
                    rates = tier.rates
        if any(tokens[name] and name not in rates for name in CLASSES):
            return None
        return {name: rates.get(name, Decimal(0)) for name in CLASSES}

    def flat(self, *, requests: int = 1, web_searches: int = 0) -> Decimal:
        """What is paid by the request and by the web search, whatever the tokens; not rounded."""
        return self.per_request * requests + self.per_search * web_searches

    def amount(self, tokens: Mapping[str, int], *, is_request: bool = True, web_searches: int = 0) -> Decimal | None:
        """The price of a use, to six places, rounded once; None when it used a class that has no price."""
        rates: Mapping[str, Decimal] | None = self.rates
        if self.tiers:
            rates = self.rates_for(tokens, is_request=is_request)
        exact = Decimal(0)
        for name, count in tokens.items():
            if count:
                if rates is None or name not in rates:
                    return None
                exact += count * rates[name]
        return quantise(exact / MILLION + self.flat(web_searches=web_searches))

    def is_valid(self, at: datetime) -> bool:
        """Whether it is the price of a use at `at` (aware): from its start on, and not from its end on."""
        return (self.starts_at is None or self.starts_at <= at) and (self.ends_at is None or at < self.ends_at)


Base = Callable[[str, str, datetime], Quote | None]


@dataclass
class PriceBook:
    """Our dated overrides over a base list; built once for many uses."""

    overrides: Iterable[Quote]
    base: Base
    _by_name: dict[str, list[Quote]] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for quote in self.overrides:
            for name in {quote.model, *quote.aliases}:
                self._by_name.setdefault(name, []).append(quote)

    def at(self, provider: str, model: str, when: datetime) -> Quote | None:
        """The price of exactly this model at `when` (aware), of any provider if none is given.

        The newest valid override, else the base list's; None when nobody knows it: a similar name is not asked.
        """
        mine = [
            quote
            for quote in self._by_name.get(model, ())
            if quote.is_valid(when) and (not provider or quote.provider == provider)
        ]
        if mine:
            return max(mine, key=lambda quote: quote.starts_at.timestamp() if quote.starts_at else float("-inf"))
        return self.base(provider, model, when) if model else None


# -- what is no model ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class UnitRate:
    """What one unit of another resource (compute_time by the second, storage by the gigabyte) costs from a day on."""

    resource_type: str
    unit: str
    rate: Decimal
    currency: str
    source: str
    since: date


@dataclass(frozen=True)
class ExchangeRate:
    """How many units of `to` one unit of `currency` was worth on a day."""

    currency: str
    to: str
    rate: Decimal
    source: str
    on: date


def unit_rates(rows: Iterable[Mapping[str, Any]]) -> list[UnitRate]:
    """The table of the settings, checked: rows with the names of UnitRate, `since` a date or YYYY-MM-DD.

    Raises InvalidField, naming the row.
    """
    table = []
    for number, row in enumerate(rows):
        known = _known(f"rates[{number}]", row, ("resource_type", "unit", "rate", "currency", "source", "since"))
        table.append(
            UnitRate(
                resource_type=str(known["resource_type"]),
                unit=str(known["unit"]),
                rate=_rate(f"rates[{number}].rate", known["rate"]),
                currency=check_currency(str(known["currency"])),
                source=str(known["source"]),
                since=_day(f"rates[{number}].since", known["since"]),
            )
        )
    return table


def unit_rate(table: Iterable[UnitRate], resource_type: str, unit: str, on: date) -> UnitRate | None:
    """The newest rate that holds on that day; None when there is none."""
    rates = [row for row in table if row.resource_type == resource_type and row.unit == unit and row.since <= on]
    return max(rates, key=lambda row: row.since, default=None)


def exchange_rates(rows: Iterable[Mapping[str, Any]]) -> list[ExchangeRate]:
    """The table of the settings, checked: rows with the names of ExchangeRate. Raises InvalidField, naming the row."""
    table = []
    for number, row in enumerate(rows):
        known = _known(f"exchange[{number}]", row, ("currency", "to", "rate", "source", "on"))
        rate = _rate(f"exchange[{number}].rate", known["rate"])
        if not rate:
            raise InvalidField(f"exchange[{number}].rate", "more than 0")
        table.append(
            ExchangeRate(
                currency=check_currency(str(known["currency"])),
                to=check_currency(str(known["to"])),
                rate=rate,
                source=str(known["source"]),
                on=_day(f"exchange[{number}].on", known["on"]),
            )
        )
    return table


def exchange_rate(currency: str, to: str, on: date, table: Iterable[ExchangeRate]) -> ExchangeRate:
    """The newest rate of that day or before. Raises InvalidField `no_exchange_rate` where the table has none: a rate
    is never guessed, not even by turning another one round.
    """
    rates = [row for row in table if row.currency == currency and row.to == to and row.on <= on]
    if not rates:
        raise InvalidField(
            "currency", f"no exchange rate from {currency} to {to} on {on} or before", code="no_exchange_rate"
        )
    return max(rates, key=lambda row: row.on)


def exchange(amount: Decimal, currency: str, to: str, on: date, table: Iterable[ExchangeRate]) -> Decimal:
    """`amount` in the other currency, to six places, as `exchange_rate` says. Raises what it does."""
    if currency == to:
        return quantise(amount)
    return quantise(amount * exchange_rate(currency, to, on, table).rate)


def _known(field_name: str, row: Mapping[str, Any], names: tuple[str, ...]) -> Mapping[str, Any]:
    if not isinstance(row, Mapping) or set(row) != set(names):
        raise InvalidField(field_name, f"exactly the fields {', '.join(names)}")
    return row


def _rate(field_name: str, value: Any) -> Decimal:
    """A rate keeps all its places: it is multiplied before anything is rounded."""
    if figure(field_name, value) is None:
        raise InvalidField(field_name, "a number of at least 0")
    return Decimal(str(value))


def _day(field_name: str, value: Any) -> date:
    if isinstance(value, date) and not isinstance(value, datetime):
        return value
    try:
        return date.fromisoformat(value)
    except (TypeError, ValueError):
        raise InvalidField(field_name, "a day written as YYYY-MM-DD") from None
