"""What a period will have cost at its end, and on what that rests; pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from types import MappingProxyType

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from costs import pricing
from costs.periods import Period, check_zone, midnight

# Two of each weekday tell weekends from working days; three days tell a level; an hour tells a pace.
DAYS_BY_WEEKDAY, DAYS_FOR_MEAN = 14, 3
DAYS_CONSIDERED = 28
LEAST_ELAPSED = timedelta(hours=1)
# A pace is said to run into a limit within a year, or not at all.
FARTHEST = timedelta(days=366)

BASES: Mapping[str, str | Promise] = MappingProxyType(
    {
        "by_weekday": _("the mean of the same weekdays in the last four weeks"),
        "by_day": _("the mean of the last complete days"),
        "by_pace": _("the pace since the period began"),
        "over": _("the period is over"),
        "too_early": _("less than an hour of the period has passed, and there is no history"),
    }
)
"""On what a forecast can rest, and what that says to people."""


@dataclass(frozen=True)
class Forecast:
    """`amount` at the end of the period, to six places; None when it cannot be said, or the period has no end.

    `basis` is one of BASES, `days` how many complete days it rests on. `reaches_limit_at` (UTC) is when the limit will
    be reached at this pace, if it is at all within the period (or, without an end, within a year). `a_day` is what goes
    out on a day, for a period without an end.
    """

    amount: Decimal | None
    basis: str
    days: int = 0
    reaches_limit_at: datetime | None = None
    a_day: Decimal | None = None

    @property
    def because(self) -> str | Promise:
        """The basis, for people."""
        return BASES[self.basis]


def forecast(
    *,
    period: Period,
    zone: str,
    now: datetime,
    spent: Decimal,
    by_day: Mapping[date, Decimal],
    first_day: date | None,
    limit: Decimal | None = None,
) -> Forecast:
    """What will be spent by the end of `period`, in which `spent` was spent by `now` (aware).

    `by_day` are the sums of complete days in the zone, in and before the period; a day from `first_day` (the first of
    which anything is known) on that is not in it cost nothing. Today is not complete, so what it holds is ignored.
    The rest of today and each day to come costs what such a day did, by the part of it that is left. Raises
    InvalidField for an unknown zone.
    """
    here = check_zone(zone)
    if period.ends_at is not None and now >= period.ends_at:
        return Forecast(pricing.quantise(spent), "over")
    today = now.astimezone(here).date()
    known = _complete_days(by_day, first_day, today)
    if len(known) >= DAYS_BY_WEEKDAY:
        basis = "by_weekday"
        weekdays = {
            weekday: _mean([amount for day, amount in known.items() if day.weekday() == weekday])
            for weekday in range(7)
        }
    elif len(known) >= DAYS_FOR_MEAN:
        basis, weekdays = "by_day", dict.fromkeys(range(7), _mean(list(known.values())))
    else:
        known = {}
        elapsed = now - period.starts_at
        if elapsed < LEAST_ELAPSED:
            return Forecast(None, "too_early")
        basis = "by_pace"
        weekdays = dict.fromkeys(range(7), spent * _seconds(timedelta(days=1)) / _seconds(elapsed))
    total, reached = spent, now if limit is not None and spent >= limit else None
    end = period.ends_at or now + FARTHEST
    moment, day = now.astimezone(UTC), today
    while moment < end:
        start, stop = midnight(day, here), midnight(day + timedelta(days=1), here)
        left = min(stop, end) - moment
        if stop > start and left > timedelta(0):
            more = weekdays[day.weekday()] * _seconds(left) / _seconds(stop - start)
            if limit is not None and reached is None and more and total + more >= limit:
                reached = moment + left * float((limit - total) / more)
                if period.ends_at is None:
                    break
            total += more
        moment, day = max(stop, moment), day + timedelta(days=1)
    amount = None if period.ends_at is None else pricing.quantise(total)
    a_day = pricing.quantise(sum(weekdays.values(), Decimal(0)) / 7) if period.ends_at is None else None
    return Forecast(amount, basis, len(known), reached, a_day)


def _complete_days(by_day: Mapping[date, Decimal], first_day: date | None, today: date) -> dict[date, Decimal]:
    """The last days before today of which something is known, with 0 for those on which nothing was spent."""
    first = min([*by_day, *([first_day] if first_day else [])], default=today)
    first = max(first, today - timedelta(days=DAYS_CONSIDERED))
    days = (first + timedelta(days=number) for number in range((today - first).days))
    return {day: by_day.get(day, Decimal(0)) for day in days}


def _mean(amounts: list[Decimal]) -> Decimal:
    return sum(amounts, Decimal(0)) / len(amounts)


def _seconds(duration: timedelta) -> Decimal:
    return Decimal(duration // timedelta(microseconds=1)) / pricing.MILLION
