"""What a tool says beside our price and the gateway's: the difference, and the mistake that makes it."""

from datetime import date
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import truth
from costs.normalise import Reading, Use
from costs.pricing import CLASSES, Quote

RATES = dict(zip(CLASSES, map(Decimal, ("3", "0.30", "3.75", "6", "15")), strict=True))
QUOTE = Quote("anthropic", "m", RATES, "list", "1", date(2026, 1, 1), per_search=Decimal("0.01"))


def reading(reported: str | None = None, *, searches: int = 0, **tokens: int) -> Reading:
    """One request with these tokens, absent classes zero."""
    use = Use({**dict.fromkeys(CLASSES, 0), **tokens}, model="m", web_searches=searches)
    return Reading("anthropic", (use,), None if reported is None else Decimal(reported))


def compare(document: Reading, *, gateway: str | None = None) -> truth.Verdict:
    """The verdict at the list's price."""
    return truth.compare(document, lambda use: QUOTE, gateway=None if gateway is None else Decimal(gateway))


@pytest.mark.parametrize(
    ("reported", "label", "difference", "ratio"),
    [
        (None, "not_reported", None, None),
        ("0", "nothing_reported", "-0.180000", "0.0000"),
        ("0.18", "agree", "0.000000", "1.0000"),
        ("0.1809", "agree", "0.000900", "1.0050"),  # half a percent: rounding, or a list of another day
        ("0.1791", "agree", "-0.000900", "0.9950"),
        ("0.1820", "unexplained", "0.002000", "1.0111"),
        ("0.36", "counted_twice", "0.180000", "2.0000"),
        ("0.54", "counted_many_times", "0.360000", "3.0000"),
        ("3.60", "counted_many_times", "3.420000", "20.0000"),
        ("3.78", "unexplained", "3.600000", "21.0000"),
    ],
)
def test_a_difference_is_told_with_its_ratio_and_cause(
    reported: str | None, label: str, difference: str | None, ratio: str | None
) -> None:
    verdict = compare(reading(reported, uncached_input=10_000, output=10_000))
    assert verdict.label == label
    assert (verdict.difference, verdict.ratio) == (
        None if difference is None else Decimal(difference),
        None if ratio is None else Decimal(ratio),
    )
    assert verdict.ours == Decimal("0.18")


@pytest.mark.parametrize(
    ("gateway", "near"),
    [(None, ""), ("0.18", "ours"), ("0.36", "reported"), ("0.27", "neither")],
)
def test_the_gateway_says_whose_figure_is_right(gateway: str | None, near: str) -> None:
    assert compare(reading("0.36", uncached_input=10_000, output=10_000), gateway=gateway).near == near


def test_the_gateway_may_agree_with_both() -> None:
    assert compare(reading("0.18", uncached_input=10_000, output=10_000), gateway="0.1803").near == "both"


def test_the_gateway_is_compared_even_when_the_tool_says_nothing() -> None:
    verdict = compare(reading(uncached_input=10_000, output=10_000), gateway="0.18")
    assert (verdict.label, verdict.near) == ("not_reported", "ours")


def test_web_searches_that_a_tool_leaves_out_are_named() -> None:
    verdict = compare(reading("0.03", searches=5, uncached_input=10_000))
    assert (verdict.label, verdict.ours) == ("searches_left_out", Decimal("0.08"))


@pytest.mark.parametrize(
    ("reported", "label"),
    [("0.63", "cached_counted_twice"), ("0.33", "cached_counted_twice"), ("0.465", "cache_at_full_price")],
)
def test_cached_tokens_may_be_mistaken_whole_or_only_where_they_were_read(reported: str, label: str) -> None:
    # ours: 10,000 read 0.003, 100,000 written 0.375 … read 0.03 of 100,000
    cases = {
        "0.63": reading("0.63", uncached_input=0, cache_read=100_000, cache_write_5m=80_000),
        "0.33": reading("0.33", cache_read=100_000),
        "0.465": reading("0.465", cache_read=105_000, uncached_input=50_000),
    }
    expected = {"0.63": "0.33", "0.33": "0.03", "0.465": "0.1815"}
    verdict = compare(cases[reported])
    assert (verdict.label, str(verdict.ours.normalize())) == (label, expected[reported])


def test_an_unknown_price_explains_nothing() -> None:
    verdict = truth.compare(reading("0.18", uncached_input=1_000_000), lambda use: None)
    assert (verdict.label, verdict.ours, verdict.difference) == ("unpriced", Decimal(15), Decimal("-14.82"))


def test_a_price_in_another_currency_is_not_compared() -> None:
    euros = Quote("p", "m", RATES, "list", "1", date(2026, 1, 1), currency="EUR")
    assert truth.compare(reading("0.03", uncached_input=10_000), lambda use: euros).label == "other_currency"


def test_nothing_used_and_nothing_reported_agree() -> None:
    verdict = compare(reading("0"))
    assert (verdict.label, verdict.ratio) == ("agree", None)


def test_every_label_has_its_sentence() -> None:
    labels = {label for label, _ in truth.MISTAKES}
    assert labels <= set(truth.CAUSES)
    assert all(str(sentence).endswith(".") for sentence in truth.CAUSES.values())
    verdict = compare(reading("0.36", uncached_input=10_000, output=10_000))
    assert "metrics and request events" in str(verdict.sentence)


counts = st.integers(0, 10**8)


@given(counts, counts, counts, counts, counts)
def test_our_own_price_always_agrees(fresh: int, read: int, short: int, long: int, output: int) -> None:
    tokens = dict(zip(CLASSES, (fresh, read, short, long, output), strict=True))
    amount = QUOTE.amount(tokens)
    verdict = compare(Reading("anthropic", (Use(tokens, model="m"),), amount))
    assert (verdict.label, verdict.difference) == ("agree", Decimal(0))


@given(
    fresh=st.integers(1000, 10**6),
    read=st.integers(10**4, 10**7),
    output=st.integers(100, 10**5),
    mistake=st.sampled_from([label for label, _ in truth.MISTAKES]),
)
def test_a_mistake_that_is_made_is_named_by_a_cause_that_gives_its_figure(
    fresh: int, read: int, output: int, mistake: str
) -> None:
    tokens = {**dict.fromkeys(CLASSES, 0), "uncached_input": fresh, "cache_read": read, "output": output}
    use = Use(tokens, model="m", reasoning=output // 2)
    wrong_use, wrong_quote = dict(truth.MISTAKES)[mistake](use, QUOTE)
    figure = wrong_quote.amount(wrong_use.tokens)
    verdict = compare(Reading("anthropic", (use,), figure))
    if truth.same(verdict.ours, verdict.reported or Decimal(0)):
        assert verdict.label == "agree"
    else:
        assert verdict.label not in ("agree", "unexplained", "unpriced")
