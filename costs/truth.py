"""The truth meter: what a tool says that it cost beside our price and the gateway's, the difference, and why; pure.

A cause is not guessed from the sign of a difference. Each known mistake is made on purpose with the same tokens and
prices, and the one that gives the tool's figure is the likely cause.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from types import MappingProxyType

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from costs import pricing
from costs.normalise import Reading, Use
from costs.pricing import Quote

# Figures this near to each other are the same: tools round, and price by lists of another day.
NEAR = Decimal("0.005")
NEAREST = Decimal("0.000002")
MOST_TIMES = 20
REPORTED_IN = "USD"

CAUSES: Mapping[str, str | Promise] = MappingProxyType(
    {
        "agree": _("The tool's figure is our price."),
        "not_reported": _("The tool reports no figure."),
        "nothing_reported": _("The tool reports 0, as it does after a crash, though tokens were used."),
        "unpriced": _("Our price is unknown; the ceiling stands in for it and says nothing about the tool's figure."),
        "other_currency": _("The tool reports US dollars, and our price is in another currency."),
        "cached_counted_twice": _("The tool's input includes the cached tokens, and they were counted once more."),
        "cache_at_full_price": _("Cached tokens were counted as fresh input."),
        "cache_left_out": _("Tokens read from or written to the cache were left out."),
        "cache_lifetime": _("Cache writes were priced at another lifetime: 5 minutes or 1 hour."),
        "fixed_cache_factors": _("Cached tokens were priced by fixed factors (1.25 and 0.10) of the input price."),
        "reasoning_counted_twice": _("Reasoning is a part of the output, and was counted once more."),
        "reasoning_left_out": _("Reasoning tokens were left out of the output."),
        "total_counted_again": _("The total of the tokens was counted beside its parts."),
        "tier_left_out": _("The higher price of a long context was left out."),
        "tier_over_sum": _("The price of a long context was taken for the sum of many shorter requests."),
        "searches_left_out": _("Web searches were left out."),
        "subagents_left_out": _("What subagents used was left out."),
        "last_response_left_out": _("The response that crossed the tool's own limit was left out."),
        "repeated_messages": _("The messages of parallel tool calls repeat one usage, and each was counted."),
        "repeated_frames": _("The frames of a streamed answer repeat one usage, and each was counted."),
        "cumulative_summed": _("Figures that count on from the start were added up."),
        "earlier_turns_included": _("The figure includes what was used before the thread was resumed."),
        "counted_twice": _("Everything was counted twice, as when metrics and request events are both taken."),
        "counted_many_times": _("Everything was counted several times."),
        "unexplained": _("No known mistake gives the tool's figure; its price list may be another one."),
    }
)
"""Every label, and what it says to people."""

Quotes = Callable[[Use], Quote | None]


@dataclass(frozen=True)
class Verdict:
    """What the truth meter shows of one use, session or group; amounts in the currency of our price.

    `difference` is the tool's figure less ours, `ratio` its part of ours; both None where there is nothing to compare.
    `near` says which of the two is the gateway's figure: ours, reported, both or neither; empty without a gateway.
    """

    label: str
    ours: Decimal
    reported: Decimal | None
    gateway: Decimal | None = None
    difference: Decimal | None = None
    ratio: Decimal | None = None
    near: str = ""

    @property
    def sentence(self) -> str | Promise:
        """The likely cause, for people."""
        return CAUSES[self.label]


def compare(
    reading: Reading, quotes: Quotes, *, reported: Decimal | None = None, gateway: Decimal | None = None
) -> Verdict:
    """The tool's figure (`reported`, else the reading's own) beside our price of its uses, with the likely cause.

    `quotes` gives the price of a use at its time, or None: then ours is the ceiling, and nothing can be said.
    """
    reported = reading.reported if reported is None else reported
    ours, obstacle = _ours(reading.uses, quotes)
    near = "" if gateway is None else _nearest(ours, reported, gateway)
    if reported is None:
        return Verdict("not_reported", ours, None, gateway, near=near)
    difference = pricing.quantise(reported - ours)
    ratio = (reported / ours).quantize(Decimal("0.0001")) if ours else None
    if obstacle:
        label = obstacle
    elif same(reported, ours):
        label = "agree"
    elif not reported:
        label = "nothing_reported"
    else:
        label = _cause(reading, quotes, ours, reported)
    return Verdict(label, ours, reported, gateway, difference, ratio, near)


def same(one: Decimal, other: Decimal) -> bool:
    """Whether two amounts are one figure: apart by no more than half a percent, or two millionths."""
    return abs(one - other) <= max(NEAREST, NEAR * max(abs(one), abs(other)))


def _ours(uses: Sequence[Use], quotes: Quotes) -> tuple[Decimal, str]:
    """(our price of all uses, the label of what keeps it from being compared, empty when nothing does)."""
    total, obstacle = Decimal(0), ""
    for use in uses:
        quote = quotes(use)
        price = None if quote is None else _price(use, quote)
        if price is None:
            price, obstacle = pricing.price_tokens(use.tokens, pricing.CEILING), "unpriced"
        elif quote is not None and quote.currency != REPORTED_IN:
            obstacle = obstacle or "other_currency"
        total += price
    return total, obstacle


def _price(use: Use, quote: Quote) -> Decimal | None:
    return quote.amount(use.tokens, is_request=use.is_request, web_searches=use.web_searches)


def _nearest(ours: Decimal, reported: Decimal | None, gateway: Decimal) -> str:
    mine, theirs = same(ours, gateway), reported is not None and same(reported, gateway)
    return "both" if mine and theirs else "ours" if mine else "reported" if theirs else "neither"


def _cause(reading: Reading, quotes: Quotes, ours: Decimal, reported: Decimal) -> str:
    """The mistake that gives the tool's figure: the source's own mistakes first, then the nearest of the general."""
    for label, uses in reading.misread.items():
        wrong, obstacle = _ours(uses, quotes)
        if not obstacle and same(wrong, reported):
            return label
    nearest, distance = "unexplained", None
    for label, wrong in _mistakes(reading.uses, quotes):
        # A mistake that changes nothing here explains nothing.
        if same(wrong, reported) and not same(wrong, ours) and (distance is None or abs(wrong - reported) < distance):
            nearest, distance = label, abs(wrong - reported)
    if distance is not None:
        return nearest
    for times in range(2, MOST_TIMES + 1):
        if same(reported, ours * times):
            return "counted_twice" if times == 2 else "counted_many_times"
    return "unexplained"


def _mistakes(uses: Sequence[Use], quotes: Quotes) -> Iterator[tuple[str, Decimal]]:
    """Each general mistake, and the amount that it gives when it is made with every one of the uses."""
    for label, mistake in MISTAKES:
        total = Decimal(0)
        for use in uses:
            quote = quotes(use)
            wrong = None if quote is None else _price(*mistake(use, quote))
            if wrong is None:
                break
            total += wrong
        else:
            yield label, total


Mistake = Callable[[Use, Quote], tuple[Use, Quote]]


def _with(use: Use, **tokens: int) -> Use:
    return replace(use, tokens={**use.tokens, **tokens})


def _cached(use: Use) -> int:
    return use.tokens["cache_read"] + _written(use)


def _written(use: Use) -> int:
    return use.tokens["cache_write_5m"] + use.tokens["cache_write_1h"]


def _all_cached_twice(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, uncached_input=use.tokens["uncached_input"] + _cached(use)), quote


def _reads_twice(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, uncached_input=use.tokens["uncached_input"] + use.tokens["cache_read"]), quote


def _all_cached_twice_by_factors(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _all_cached_twice(use, _factors(quote))


def _at_full_price(use: Use, quote: Quote) -> tuple[Use, Quote]:
    fresh = use.tokens["uncached_input"] + _cached(use)
    return _with(use, uncached_input=fresh, cache_read=0, cache_write_5m=0, cache_write_1h=0), quote


def _reads_at_full_price(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, uncached_input=use.tokens["uncached_input"] + use.tokens["cache_read"], cache_read=0), quote


def _without_cache(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, cache_read=0, cache_write_5m=0, cache_write_1h=0), quote


def _without_reads(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, cache_read=0), quote


def _without_writes(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, cache_write_5m=0, cache_write_1h=0), quote


def _writes_for_5_minutes(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, cache_write_5m=_written(use), cache_write_1h=0), quote


def _writes_for_1_hour(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, cache_write_5m=0, cache_write_1h=_written(use)), quote


def _by_factors(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return use, _factors(quote)


def _factors(quote: Quote) -> Quote:
    """The factors that Aider has written into its code (compute_costs_from_tokens)."""
    fresh = quote.rates.get("uncached_input", Decimal(0))
    written = fresh * Decimal("1.25")
    return replace(
        quote,
        rates={**quote.rates, "cache_read": fresh / 10, "cache_write_5m": written, "cache_write_1h": written},
        tiers=(),
    )


def _reasoning_twice(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, output=use.tokens["output"] + use.reasoning), quote


def _without_reasoning(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return _with(use, output=use.tokens["output"] - use.reasoning), quote


def _total_again(use: Use, quote: Quote) -> tuple[Use, Quote]:
    """As a reader does who takes Codex' tool_token_count, which is the total, for tokens of tools."""
    return _with(use, uncached_input=use.tokens["uncached_input"] + sum(use.tokens.values())), quote


def _without_tier(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return use, replace(quote, tiers=())


def _tier_over_sum(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return replace(use, is_request=True), quote


def _without_searches(use: Use, quote: Quote) -> tuple[Use, Quote]:
    return replace(use, web_searches=0), quote


MISTAKES: tuple[tuple[str, Mistake], ...] = (
    ("tier_left_out", _without_tier),
    ("tier_over_sum", _tier_over_sum),
    ("cached_counted_twice", _all_cached_twice),
    ("cached_counted_twice", _reads_twice),
    ("cached_counted_twice", _all_cached_twice_by_factors),
    ("cache_at_full_price", _at_full_price),
    ("cache_at_full_price", _reads_at_full_price),
    ("cache_left_out", _without_cache),
    ("cache_left_out", _without_reads),
    ("cache_left_out", _without_writes),
    ("cache_lifetime", _writes_for_5_minutes),
    ("cache_lifetime", _writes_for_1_hour),
    ("fixed_cache_factors", _by_factors),
    ("reasoning_counted_twice", _reasoning_twice),
    ("reasoning_left_out", _without_reasoning),
    ("total_counted_again", _total_again),
    ("searches_left_out", _without_searches),
)
"""The mistakes of agent-tool telemetry that need nothing but tokens and price; several may have one label. Of two that
give one figure, the earlier is named."""
