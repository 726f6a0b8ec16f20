"""A budget's periods by the calendar of its zone, through changes of clocks, months, zones and limits."""

from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from costs import periods
from costs.periods import Period, Standing
from pipeline.refusals import InvalidField

BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"


def utc(text: str) -> datetime:
    """A time in UTC, written YYYY-MM-DDTHH:MM."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("kind", "zone", "at", "starts", "ends", "hours"),
    [
        # -- days
        ("day", "UTC", "2026-01-31T23:59", "2026-01-31T00:00", "2026-02-01T00:00", 24),
        ("day", "UTC", "2026-02-01T00:00", "2026-02-01T00:00", "2026-02-02T00:00", 24),
        ("day", BERLIN, "2026-01-31T22:59", "2026-01-30T23:00", "2026-01-31T23:00", 24),
        ("day", BERLIN, "2026-01-31T23:00", "2026-01-31T23:00", "2026-02-01T23:00", 24),
        ("day", NEW_YORK, "2026-01-31T04:59", "2026-01-30T05:00", "2026-01-31T05:00", 24),
        # the day on which Berlin's clocks go forward, and back
        ("day", BERLIN, "2026-03-29T12:00", "2026-03-28T23:00", "2026-03-29T22:00", 23),
        ("day", BERLIN, "2026-03-29T22:00", "2026-03-29T22:00", "2026-03-30T22:00", 24),
        ("day", BERLIN, "2026-10-25T00:30", "2026-10-24T22:00", "2026-10-25T23:00", 25),
        ("day", BERLIN, "2026-10-25T01:30", "2026-10-24T22:00", "2026-10-25T23:00", 25),
        # New York's, on other days
        ("day", NEW_YORK, "2026-03-08T12:00", "2026-03-08T05:00", "2026-03-09T04:00", 23),
        ("day", NEW_YORK, "2026-11-01T05:30", "2026-11-01T04:00", "2026-11-02T05:00", 25),
        ("day", NEW_YORK, "2026-11-01T06:30", "2026-11-01T04:00", "2026-11-02T05:00", 25),
        # clocks that skip midnight (Cairo 2026-04-24 00:00 becomes 01:00), and that have it twice (Havana)
        ("day", "Africa/Cairo", "2026-04-23T21:59", "2026-04-22T22:00", "2026-04-23T22:00", 24),
        ("day", "Africa/Cairo", "2026-04-23T22:00", "2026-04-23T22:00", "2026-04-24T21:00", 23),
        ("day", "America/Havana", "2026-11-01T04:30", "2026-11-01T04:00", "2026-11-02T05:00", 25),
        ("day", "America/Havana", "2026-11-01T05:30", "2026-11-01T04:00", "2026-11-02T05:00", 25),
        # half hours, and a day that never was (Apia went from the 29th to the 31st)
        ("day", "Asia/Kolkata", "2026-06-01T18:29", "2026-05-31T18:30", "2026-06-01T18:30", 24),
        ("day", "Pacific/Apia", "2011-12-30T09:59", "2011-12-29T10:00", "2011-12-30T10:00", 24),
        ("day", "Pacific/Apia", "2011-12-30T10:00", "2011-12-30T10:00", "2011-12-31T10:00", 24),
        # -- ISO weeks, from Monday
        ("week", "UTC", "2026-01-01T00:00", "2025-12-29T00:00", "2026-01-05T00:00", 168),
        ("week", "UTC", "2026-01-04T23:59", "2025-12-29T00:00", "2026-01-05T00:00", 168),
        ("week", "UTC", "2026-01-05T00:00", "2026-01-05T00:00", "2026-01-12T00:00", 168),
        ("week", BERLIN, "2026-03-29T12:00", "2026-03-22T23:00", "2026-03-29T22:00", 167),
        ("week", NEW_YORK, "2026-10-31T12:00", "2026-10-26T04:00", "2026-11-02T05:00", 169),
        # -- months
        ("month", "UTC", "2026-02-28T23:59", "2026-02-01T00:00", "2026-03-01T00:00", 28 * 24),
        ("month", "UTC", "2028-02-29T12:00", "2028-02-01T00:00", "2028-03-01T00:00", 29 * 24),
        ("month", "UTC", "2000-02-29T12:00", "2000-02-01T00:00", "2000-03-01T00:00", 29 * 24),
        ("month", "UTC", "2100-02-28T12:00", "2100-02-01T00:00", "2100-03-01T00:00", 28 * 24),
        ("month", "UTC", "2026-04-30T12:00", "2026-04-01T00:00", "2026-05-01T00:00", 30 * 24),
        ("month", "UTC", "2026-12-31T23:59", "2026-12-01T00:00", "2027-01-01T00:00", 31 * 24),
        ("month", BERLIN, "2026-03-15T12:00", "2026-02-28T23:00", "2026-03-31T22:00", 31 * 24 - 1),
        ("month", BERLIN, "2026-10-15T12:00", "2026-09-30T22:00", "2026-10-31T23:00", 31 * 24 + 1),
        ("month", NEW_YORK, "2026-11-01T03:59", "2026-10-01T04:00", "2026-11-01T04:00", 31 * 24),
        ("month", NEW_YORK, "2026-11-01T04:00", "2026-11-01T04:00", "2026-12-01T05:00", 30 * 24 + 1),
    ],
)  # fmt: skip
def test_a_period_has_the_edges_of_its_calendar(
    kind: str, zone: str, at: str, starts: str, ends: str, hours: int
) -> None:
    period = periods.period_of(kind, zone, utc(at))
    assert (period.starts_at, period.ends_at) == (utc(starts), utc(ends))
    assert period.length == timedelta(hours=hours)
    assert utc(at) in period


def test_a_budget_without_periods_never_resets() -> None:
    period = periods.period_of("none", BERLIN, utc("2026-05-05T05:05"))
    assert (period.starts_at, period.ends_at, period.length) == (periods.BEGINNING, None, None)
    assert periods.next_period("none", BERLIN, period) is None
    assert utc("2999-01-01T00:00") in period


@given(
    kind=st.sampled_from(["day", "week", "month"]),
    zone=st.sampled_from([BERLIN, NEW_YORK, "UTC", "Africa/Cairo", "America/Havana", "Pacific/Apia", "Asia/Beirut"]),
    at=st.datetimes(datetime(1996, 1, 1), datetime(2036, 1, 1), timezones=st.just(UTC)),
)
def test_periods_follow_each_other_without_gap_or_overlap(kind: str, zone: str, at: datetime) -> None:
    period = periods.period_of(kind, zone, at)
    assert at in period
    following = periods.next_period(kind, zone, period)
    assert following is not None
    assert following.starts_at == period.ends_at
    for moment in (period.starts_at, following.starts_at - timedelta(microseconds=1)):
        assert periods.period_of(kind, zone, moment) == period
    assert period.starts_at.astimezone(ZoneInfo(zone)).date() <= at.astimezone(ZoneInfo(zone)).date()


@pytest.mark.parametrize("zone", ["", "Berlin", "europe/berlin", "UTC+1", "../UTC", "Europe/Berlin\0", "/etc/passwd"])
def test_an_unknown_zone_is_refused(zone: str) -> None:
    with pytest.raises(InvalidField, match="such as UTC or Europe/Berlin"):
        periods.period_of("day", zone, utc("2026-01-01T00:00"))


@pytest.mark.parametrize("kind", ["", "year", "Day", "total"])
def test_an_unknown_kind_is_refused(kind: str) -> None:
    with pytest.raises(InvalidField, match="one of none, day, week, month"):
        periods.period_of(kind, "UTC", utc("2026-01-01T00:00"))


def test_a_naive_time_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError, match="aware"):
        periods.period_of("day", "UTC", datetime(2026, 1, 1))


@pytest.mark.parametrize(
    ("before", "after", "at", "starts", "ends"),
    [
        # to the east: the day there ends before the day here would have
        (("day", "UTC"), ("day", BERLIN), "2026-01-10T12:00", "2026-01-10T00:00", "2026-01-10T23:00"),
        # … or has ended already, so that the next one there is where the time lies
        (("day", "UTC"), ("day", BERLIN), "2026-01-10T23:30", "2026-01-10T00:00", "2026-01-11T23:00"),
        # to the west: the day there is yesterday still, so this period lasts longer
        (("day", BERLIN), ("day", NEW_YORK), "2026-01-10T23:30", "2026-01-10T23:00", "2026-01-11T05:00"),
        # a longer and a shorter kind, and none
        (("day", "UTC"), ("month", "UTC"), "2026-01-10T12:00", "2026-01-10T00:00", "2026-02-01T00:00"),
        (("month", "UTC"), ("day", "UTC"), "2026-01-10T12:00", "2026-01-01T00:00", "2026-01-11T00:00"),
        (("none", "UTC"), ("week", "UTC"), "2026-01-10T12:00", "1970-01-01T00:00", "2026-01-12T00:00"),
    ],
)
def test_a_change_of_calendar_keeps_the_start_and_leaves_no_time_out(
    before: tuple[str, str], after: tuple[str, str], at: str, starts: str, ends: str
) -> None:
    running = periods.period_of(*before, utc(at))
    changed = periods.changed(running, *after, utc(at))
    assert changed == Period(utc(starts), utc(ends))
    assert utc(at) in changed
    following = periods.next_period(*after, changed)
    assert following is not None
    assert following.starts_at == changed.ends_at


def test_a_change_lies_in_the_period_that_it_changes() -> None:
    running = periods.period_of("day", "UTC", utc("2026-01-10T12:00"))
    with pytest.raises(ValueError, match="lies in the period"):
        periods.changed(running, "day", BERLIN, utc("2026-01-11T00:00"))


def test_midnight_is_the_first_moment_of_a_day() -> None:
    assert periods.midnight(date(2026, 4, 24), ZoneInfo("Africa/Cairo")) == utc("2026-04-23T22:00")


@pytest.mark.parametrize(
    ("limit", "spent", "reserved", "status", "breached", "remaining"),
    [
        ("10", "0", "0", "ok", False, "10"),
        ("10", "7.99", "0", "ok", False, "2.01"),
        ("10", "8", "0", "warning", False, "2"),
        ("10", "8", "2", "warning", False, "0"),
        ("10", "8", "2.000001", "exceeded", True, "0"),
        ("10", "0", "10.000001", "exceeded", True, "0"),
        ("10", "10", "0", "exceeded", True, "0"),
        ("10", "12", "1", "exceeded", True, "0"),
        ("0", "0", "0", "exceeded", False, "0"),
        ("0", "0.000001", "0", "exceeded", True, "0"),
    ],
)
def test_a_standing_is_read_off_its_figures(
    limit: str, spent: str, reserved: str, status: str, breached: bool, remaining: str
) -> None:
    standing = Standing(Decimal(limit), Decimal(spent), Decimal(reserved))
    assert (standing.status, standing.is_breached, standing.remaining) == (status, breached, Decimal(remaining))


def test_the_last_micro_dollar_is_admitted_and_the_next_is_not() -> None:
    standing = Standing(Decimal(5), Decimal(3), Decimal(1))
    assert standing.admits(Decimal(1))
    assert not standing.admits(Decimal("1.000001"))
    # without the reservation it would fit, so the task waits; beyond it, the budget is breached
    assert not standing.refusal_is_breach(Decimal(2))
    assert standing.refusal_is_breach(Decimal("2.000001"))


def test_a_limit_of_nothing_admits_nothing() -> None:
    standing = Standing(Decimal(0), Decimal(0))
    assert not standing.admits(Decimal("0.000001"))
    assert (standing.ratio, standing.is_warning) == (None, False)


@pytest.mark.parametrize(
    ("old", "spent", "reserved", "was_breached", "was_warned", "new", "breaches", "releases", "stays", "warns"),
    [
        # raise in the middle of a period
        ("10", "10", "0", True, True, "20", False, True, False, False),
        ("10", "10", "0", True, True, "10.000001", False, True, False, False),
        ("10", "12", "0", True, True, "11", False, False, True, False),
        ("10", "12", "0", True, True, "12", False, False, True, False),
        ("10", "5", "8", True, False, "12", False, True, True, False),
        ("10", "3", "0", False, False, "20", False, False, False, False),
        # lower
        ("10", "5", "0", False, False, "6", False, False, False, True),
        ("10", "5", "0", False, True, "6", False, False, False, False),
        ("10", "5", "2", False, False, "6", True, False, False, True),
        ("10", "5", "0", False, False, "5", True, False, False, True),
        ("10", "5", "0", False, True, "0", True, False, False, False),
        ("10", "0", "0", False, False, "0", False, False, False, False),
        ("10", "9", "0", True, True, "9.5", False, False, False, False),
    ],
)
def test_a_new_limit_breaches_releases_and_warns(
    old: str, spent: str, reserved: str, was_breached: bool, was_warned: bool, new: str, breaches: bool,
    releases: bool, stays: bool, warns: bool,
) -> None:  # fmt: skip
    before = Standing(Decimal(old), Decimal(spent), Decimal(reserved))
    change = periods.change_limit(before, Decimal(new), was_breached=was_breached, was_warned=was_warned)
    assert (change.breaches, change.releases, change.stays_breached, change.warns) == (
        breaches, releases, stays, warns,
    )  # fmt: skip
    assert change.standing.limit == Decimal(new)


@pytest.mark.parametrize("new", ["-0.000001", "NaN", "Infinity"])
def test_a_limit_is_a_finite_amount(new: str) -> None:
    with pytest.raises(InvalidField, match="limit_amount"):
        periods.change_limit(Standing(Decimal(1), Decimal(0)), Decimal(new), was_breached=False, was_warned=False)
