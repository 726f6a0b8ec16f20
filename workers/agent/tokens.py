"""Tokens in the five classes of domain.md §2.5.2, and what they cost at most."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal
from typing import Any

PER = Decimal(1_000_000)
"""Rates are per million tokens (domain.md §2.5.1)."""


_UNPRINTABLE = re.compile(r"[^\x20-\x7e]")


@dataclass(frozen=True)
class Tokens:
    """Counts by class; reasoning is part of the output."""

    uncached_input: int = 0
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    output: int = 0

    def __add__(self, other: "Tokens") -> "Tokens":
        """Class by class."""
        return Tokens(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def __bool__(self) -> bool:
        """Whether any class is above 0."""
        return any(getattr(self, field.name) for field in fields(self))

    @property
    def total(self) -> int:
        """All classes together."""
        return sum(getattr(self, field.name) for field in fields(self))

    def named(self) -> dict[str, int]:
        """The counts under the names of a cost record: `tokens_output` and so on."""
        return {f"tokens_{field.name}": getattr(self, field.name) for field in fields(self)}


@dataclass(frozen=True)
class Rates:
    """The most that a million tokens of each class cost."""

    uncached_input: Decimal
    cache_read: Decimal
    cache_write_5m: Decimal
    cache_write_1h: Decimal
    output: Decimal

    def cost(self, tokens: Tokens) -> Decimal:
        """What they cost at most, in the currency of the rates; not rounded."""
        return (
            sum((getattr(self, field.name) * getattr(tokens, field.name) for field in fields(self)), start=Decimal(0))
            / PER
        )


@dataclass(frozen=True)
class Allowance:
    """What an attempt may spend: `amount` in `currency`, measured by `rates`. Without rates nothing is measured."""

    amount: Decimal
    currency: str
    rates: Rates | None = None

    def is_spent(self, tokens: Tokens) -> bool:
        """Whether these tokens use it up; never without rates."""
        return self.rates is not None and self.rates.cost(tokens) >= self.amount


def usage_item(
    lease: str, source: str, model: str, provider: str, tokens: Tokens, *, assumed_ttl: bool = False
) -> dict[str, Any]:
    """One model's use as a report carries it, once a lease and model. Prices are the server's business."""
    model, provider = (_UNPRINTABLE.sub("?", name)[:200] for name in (model, provider))
    item: dict[str, Any] = {
        "resource_type": "api_call",
        "model": model,
        "provider": provider,
        "source": source,
        "idempotency_key": f"{lease}:{source}:{model}"[:200],
        **tokens.named(),
    }
    if assumed_ttl:
        item["assumed_ttl"] = True
    return item


def from_total_input(usage: Mapping[str, Any], *, count: Any) -> tuple[Tokens, bool]:
    """Tokens from figures in OpenAI's manner, whose input includes what was cached; and whether they fit together.

    Where more was cached than put in, the whole input counts as uncached, the dearest reading: never too little.
    """
    given, read = count(usage.get("input_tokens")), count(usage.get("cached_input_tokens"))
    write, output = count(usage.get("cache_write_input_tokens")), count(usage.get("output_tokens"))
    if read + write > given:
        return Tokens(uncached_input=given, output=output), False
    return Tokens(uncached_input=given - read - write, cache_read=read, cache_write_5m=write, output=output), True
