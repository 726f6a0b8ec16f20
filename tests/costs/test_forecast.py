"""What a period will have cost at its end, and on what that rests."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs.forecast import BASES, Forecast, forecast
from costs.periods import BEGINNING, Period, period_of
from pipeline.refusals import InvalidField

BERLIN = "Europe/Berlin"
MONDAY = date(2026, 6, 1)


def spread(first: date, amounts: list[int]) -> dict[date, Decimal]:
    """So much on each day from the first on."""
    return {first + timedelta(days=number): Decimal(amount) for number, amount in enumerate(amounts)}


def told(
    now: datetime, by_day: dict[date, Decimal] | None = None, *, kind: str = "month", zone: str = "UTC",
    spent: str = "0", first_day: date | None = None, limit: str | None = None,
) -> Forecast:  # fmt: skip
    """The forecast for the period of `now`."""
    return forecast(
        period=period_of(kind, zone, now),
        zone=zone,
        now=now,
        spent=Decimal(spent),
        by_day=by_day or {},
        first_day=first_day,
        limit=None if limit is None else Decimal(limit),
    )


def test_too_little_is_known_in_the_first_hour() -> None:
    now = datetime(2026, 6, 1, 0, 59, tzinfo=UTC)
    assert told(now, spent="5") == Forecast(None, "too_early")


def test_without_history_the_pace_of_the_period_goes_on() -> None:
    assert told(datetime(2026, 6, 1, 6, tzinfo=UTC), spent="5", kind="day") == Forecast(Decimal(20), "by_pace")
    two_days = told(datetime(2026, 6, 3, tzinfo=UTC), spread(MONDAY, [10, 20]), spent="30")
    assert (two_days.amount, two_days.basis, two_days.days) == (Decimal(450), "by_pace", 0)


def test_three_days_tell_a_level() -> None:
    # 60 in three days; half of today (65 so far) and 26 more days at 20
    now = datetime(2026, 6, 4, 12, tzinfo=UTC)
    got = told(now, spread(MONDAY, [10, 20, 30]), spent="65")
    assert got == Forecast(Decimal(65 + 10 + 26 * 20), "by_day", 3)


def test_two_weeks_tell_weekends_from_working_days() -> None:
    weeks = [100, 100, 100, 100, 100, 0, 0] * 2
    # Monday the 15th at noon: half a working day, 4 more, weekend, 5, weekend, Mon 29 and Tue 30
    got = told(datetime(2026, 6, 15, 12, tzinfo=UTC), spread(MONDAY, weeks), spent="1050")
    assert got == Forecast(Decimal(1050 + 50 + 400 + 500 + 200), "by_weekday", 14)


def test_a_day_on_which_nothing_was_spent_counts_as_such() -> None:
    got = told(
        datetime(2026, 6, 5, tzinfo=UTC), {date(2026, 6, 1): Decimal(40)}, spent="40", first_day=date(2026, 6, 1)
    )
    assert (got.basis, got.days, got.amount) == ("by_day", 4, Decimal(40 + 26 * 10))


def test_only_the_last_four_weeks_and_no_part_of_today_count() -> None:
    days = {date(2026, 5, 1) - timedelta(days=1): Decimal(10**6), date(2026, 6, 15): Decimal(10**6)}
    got = told(datetime(2026, 6, 15, tzinfo=UTC), days, spent="0")
    assert (got.amount, got.days) == (Decimal(0), 28)


def test_the_days_before_the_period_count() -> None:
    got = told(datetime(2026, 6, 1, 0, 1, tzinfo=UTC), spread(date(2026, 5, 29), [10, 10, 10]), spent="0")
    assert got.basis == "by_day"
    assert got.amount == Decimal(300) - Decimal(10) / 1440 // Decimal("0.000001") * Decimal("0.000001")


@pytest.mark.parametrize(
    ("now", "hours_left", "hours"),
    [
        (datetime(2026, 3, 29, 10, tzinfo=UTC), 12, 23),  # 12:00 there, on the day that loses an hour
        (datetime(2026, 10, 25, 11, tzinfo=UTC), 12, 25),
        (datetime(2026, 6, 10, 10, tzinfo=UTC), 12, 24),
    ],
)
def test_the_rest_of_a_day_is_measured_by_the_hours_that_it_has(now: datetime, hours_left: int, hours: int) -> None:
    before = now.date() - timedelta(days=3)
    got = told(now, spread(before, [24, 24, 24]), kind="day", zone=BERLIN, spent="0")
    assert got.amount is not None
    assert got.amount == (Decimal(24) * hours_left / hours).quantize(Decimal("0.000001"))


def test_a_period_that_is_over_costs_what_was_spent() -> None:
    now = datetime(2026, 6, 15, tzinfo=UTC)
    period = Period(datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 6, 1, tzinfo=UTC))
    got = forecast(
        period=period, zone="UTC", now=now, spent=Decimal("12.5"), by_day={}, first_day=None, limit=Decimal(1)
    )
    assert got == Forecast(Decimal("12.5"), "over")


def test_the_moment_at_which_the_limit_is_reached_is_told() -> None:
    days = spread(date(2026, 5, 25), [24] * 7)
    now = datetime(2026, 6, 1, 12, tzinfo=UTC)
    assert told(now, days, spent="10", limit="20").reaches_limit_at == datetime(2026, 6, 1, 22, tzinfo=UTC)
    assert told(now, days, spent="10", limit="46").reaches_limit_at == datetime(2026, 6, 3, tzinfo=UTC)
    assert told(now, days, spent="10", limit="10").reaches_limit_at == now
    assert told(now, days, spent="10", limit="100000").reaches_limit_at is None
    assert told(now, days, spent="10").reaches_limit_at is None


def test_a_budget_without_an_end_tells_only_when_it_runs_dry() -> None:
    now = datetime(2026, 6, 1, tzinfo=UTC)
    days = spread(date(2026, 5, 25), [24] * 7)
    got = told(now, days, kind="none", spent="100", limit="1060")
    assert (got.amount, got.reaches_limit_at) == (None, datetime(2026, 7, 11, tzinfo=UTC))
    assert told(now, days, kind="none", spent="100", limit="1000000").reaches_limit_at is None
    assert period_of("none", "UTC", now).starts_at == BEGINNING


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(InvalidField):
        forecast(
            period=period_of("day", "UTC", datetime(2026, 6, 1, tzinfo=UTC)),
            zone="Mars/Olympus",
            now=datetime(2026, 6, 1, tzinfo=UTC),
            spent=Decimal(0),
            by_day={},
            first_day=None,
        )


def test_every_basis_is_told_in_words() -> None:
    assert all(str(words) for words in BASES.values())
    assert "weekdays" in str(Forecast(Decimal(1), "by_weekday").because)


@given(
    now=st.datetimes(datetime(2025, 1, 1), datetime(2027, 1, 1), timezones=st.just(UTC)),
    amounts=st.lists(st.integers(0, 10**6), max_size=40),
    spent=st.decimals(0, 10**6, places=6),
    kind=st.sampled_from(["day", "week", "month"]),
    zone=st.sampled_from(["UTC", BERLIN, "America/New_York"]),
)
def test_a_forecast_is_never_below_what_was_spent(
    now: datetime, amounts: list[int], spent: Decimal, kind: str, zone: str
) -> None:
    days = spread(now.date() - timedelta(days=len(amounts) + 1), amounts)
    got = told(now, days, kind=kind, zone=zone, spent=str(spent), limit=str(spent + 1))
    assert got.amount is None or got.amount >= spent
    if got.reaches_limit_at is not None:
        assert now <= got.reaches_limit_at <= (period_of(kind, zone, now).ends_at or now)
        assert got.amount is not None
        assert got.amount >= spent + 1 - Decimal("0.000001")
