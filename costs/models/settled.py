"""What the settings say of prices: the ceiling for unknown models, rates per unit, exchange rates."""

import json
from collections.abc import Callable, Mapping
from decimal import Decimal
from functools import lru_cache
from typing import Any

from django.conf import settings

from costs import pricing
from costs.pricing import ExchangeRate, UnitRate
from pipeline.refusals import InvalidField


def ceiling() -> dict[str, Decimal]:
    """What a million tokens of each class are booked at where the model's price is unknown, in USD."""
    read, written = settings.SIGNALBOX_PRICE_CEILING_INPUT_USD, settings.SIGNALBOX_PRICE_CEILING_OUTPUT_USD
    return {name: written if name == "output" else read for name in pricing.CLASSES}


def unit_rates() -> list[UnitRate]:
    """SIGNALBOX_UNIT_RATES: what a unit of other resources costs from a day on. Raises InvalidField (`costs.E001`)."""
    return _unit_rates(settings.SIGNALBOX_UNIT_RATES)


def exchange_rates() -> list[ExchangeRate]:
    """SIGNALBOX_EXCHANGE_RATES: what a currency was worth on a day. Raises InvalidField (`costs.E002`)."""
    return _exchange_rates(settings.SIGNALBOX_EXCHANGE_RATES)


@lru_cache(maxsize=8)
def _unit_rates(text: str) -> list[UnitRate]:
    return pricing.unit_rates(_rows("SIGNALBOX_UNIT_RATES", text))


@lru_cache(maxsize=8)
def _exchange_rates(text: str) -> list[ExchangeRate]:
    return pricing.exchange_rates(_rows("SIGNALBOX_EXCHANGE_RATES", text))


def _rows(name: str, text: str) -> list[Mapping[str, Any]]:
    try:
        # Figures keep their digits: 0.1 is a tenth.
        rows = json.loads(text or "[]", parse_float=Decimal)
    except (ValueError, RecursionError) as problem:
        raise InvalidField(name, f"not JSON: {problem}") from problem
    if not isinstance(rows, list):
        raise InvalidField(name, "a list of objects")
    return rows


def problems() -> list[tuple[str, str]]:
    """What is wrong with the tables, by setting; for the system check."""
    readers: dict[str, Callable[[], object]] = {
        "SIGNALBOX_UNIT_RATES": unit_rates,
        "SIGNALBOX_EXCHANGE_RATES": exchange_rates,
    }
    found = []
    for name, read in readers.items():
        try:
            read()
        except InvalidField as refusal:
            found.append((name, str(refusal)))
    return found
