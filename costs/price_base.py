"""The base list of prices: the kept library genai-prices, read as quotes, for exactly the models that it names."""

import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from importlib.metadata import version
from types import MappingProxyType

from genai_prices import types as library
from genai_prices.data_snapshot import find_provider_by_id, get_snapshot

from costs.pricing import CLASSES, MILLION, Quote, Tier

RELEASE = version("genai-prices")
# The newest day that the notes of the library's data name as checked: 0.2.3 has no date of its own.
CHECKED: Mapping[str, date] = MappingProxyType({"0.2.3": date(2026, 11, 4)})

# What OTel's GenAI conventions and gateways call a provider, where the library's own matching does not know it
# (gen_ai.provider.name of the semantic conventions; custom_llm_provider of LiteLLM).
PROVIDERS: Mapping[str, str] = MappingProxyType(
    {
        "azure.ai.openai": "azure",
        "azure.ai.inference": "azure",
        "azure_ai": "azure",
        "bedrock_converse": "aws",
        "deepseek": "deepseek",
        "fireworks_ai": "fireworks",
        "mistral_ai": "mistral",
        "x_ai": "x-ai",
    }
)

# What may follow a name that is priced by its beginning: a date, an at sign and a date, "latest", Bedrock's version.
_SUFFIX = re.compile(r"([-@](\d{8}|\d{4}-\d{2}-\d{2}|latest))?(-v\d+(:\d+)?)?(:\d+)?")
# A name of the library that breaks off within its date, and what completes it.
_OPEN_DATE, _REST_OF_DATE = re.compile(r"[-@](20\d\d)?$"), re.compile(r"\d{4}|\d{8}")
# Bedrock writes a region before the name, and the library's price is that of every region.
_PREFIX = re.compile(r"((us|eu|apac|jp|au|ca|global|regional)\.)?([a-z0-9-]+\.)?")
# Claude Code marks its long context so; the library prices the model.
_CONTEXT_MARK = re.compile(r"\[\d+[km]\]$")

# The price keys that the five classes can express; a model that charges for other tokens of text has no quote.
_KEYS = {
    "uncached_input": ("input_mtok",),
    "cache_read": ("cache_read_mtok", "input_mtok"),
    "cache_write_5m": ("cache_write_5m_mtok", "cache_write_mtok", "input_mtok"),
    "cache_write_1h": ("cache_write_1h_mtok", "cache_write_mtok", "input_mtok"),
    "output": ("output_mtok",),
}
_INEXPRESSIBLE = ("output_reasoning_mtok", "output_citation_mtok", "input_tool_mtok")


def quote(provider: str, model: str, at: datetime) -> Quote | None:
    """The list price of exactly this model at `at` (aware), in USD; None when the library does not name it.

    Without a provider, the one is taken that the library takes for such a name. A cache class without a price of its
    own costs what the library charges for it: the general price of a write, else that of input. A model whose input
    has no price by the token (speech by the minute, say) has no quote.
    """
    # Prices change with a day or an hour of the day, so a minute is asked once.
    return _quote(provider, model, at.replace(second=0, microsecond=0))


@lru_cache(maxsize=4096)
def _quote(provider: str, model: str, at: datetime) -> Quote | None:
    found = _find(provider.strip().lower(), _CONTEXT_MARK.sub("", model.strip().lower()))
    if found is None:
        return None
    where, info = found
    prices = info.get_prices(at)
    values = {key: value for key, value in vars(prices).items() if value is not None}
    if "input_mtok" not in values or any(key in values for key in _INEXPRESSIBLE):
        return None
    return Quote(
        provider=where.id,
        model=info.id,
        rates=MappingProxyType(_rates(values, 0)),
        tiers=tuple(Tier(start, MappingProxyType(_rates(values, start + 1))) for start in _starts(values.values())),
        per_request=_per_one(values, "requests_kcount"),
        per_search=_per_one(values, "web_searches_kcount"),
        source="genai-prices",
        version=RELEASE,
        dated=_dated(info, prices),
    )


def _rates(values: Mapping[str, object], length: int) -> dict[str, Decimal]:
    """The five rates of a request with `length` tokens of input; classes without a price are left out."""
    rates: dict[str, Decimal] = {}
    for name in CLASSES:
        key = next((key for key in _KEYS[name] if key in values), None)
        if key is not None:
            rates[name] = _rate(values[key], length)
    return rates


def _rate(value: object, length: int) -> Decimal:
    if isinstance(value, library.TieredPrices):
        above = [tier.price for tier in value.tiers if length > tier.start]
        return above[-1] if above else value.base
    return Decimal(str(value))


def _starts(values: Iterable[object]) -> list[int]:
    starts = {tier.start for value in values if isinstance(value, library.TieredPrices) for tier in value.tiers}
    return sorted(starts)


def _per_one(values: Mapping[str, object], key: str) -> Decimal:
    """A price by the thousand, for one."""
    return _rate(values[key], 0) / (MILLION / 1000) if key in values else Decimal(0)


def _dated(info: library.ModelInfo, prices: library.ModelPrice) -> date:
    """The day from which the library says that this price holds, else the day that its data was checked."""
    if isinstance(info.prices, list):
        for conditional in info.prices:
            if conditional.prices is prices and isinstance(conditional.constraint, library.StartDateConstraint):
                return conditional.constraint.start_date
    return CHECKED.get(RELEASE) or max(CHECKED.values())


@lru_cache(maxsize=4096)
def _find(provider: str, model: str) -> tuple[library.Provider, library.ModelInfo] | None:
    """The library's provider and model for these names in lower case, unless it only guesses by a part of the name."""
    snapshot = get_snapshot()
    try:
        if provider:
            where = find_provider_by_id(snapshot.providers, PROVIDERS.get(provider, provider))
        else:
            where = snapshot.find_provider(model, None, None)
    except LookupError:
        return None
    info = where.find_model(model, all_providers=snapshot.providers) if where else None
    if where is None or info is None or not (model == info.id.lower() or _names(info.match, model)):
        return None
    return where, info


def _names(clause: object, model: str) -> bool:
    """Whether this rule of the library names the model, rather than some part of what it is called."""
    match clause:
        case library.ClauseOr():
            return any(_names(one, model) for one in clause.or_)
        case library.ClauseAnd():
            return clause.is_match(model) and any(_names(one, model) for one in clause.and_)
        case library.ClauseStartsWith(starts_with=name):
            rest = model[len(name) :]
            completes = _OPEN_DATE.search(name) is not None and _REST_OF_DATE.fullmatch(rest) is not None
            return model.startswith(name) and (completes or _SUFFIX.fullmatch(rest) is not None)
        case library.ClauseContains(contains=name):
            before, found, after = model.partition(name)
            return bool(found) and _PREFIX.fullmatch(before) is not None and _SUFFIX.fullmatch(after) is not None
        case library.ClauseEndsWith(ends_with=name):
            return model.endswith(name) and _PREFIX.fullmatch(model[: -len(name)]) is not None
        case library.ClauseEquals():
            return clause.is_match(model)
        case library.ClauseRegex():
            # A rule written by the character, with its dates: the library's word.
            return clause.is_match(model)
        case _:
            return False
