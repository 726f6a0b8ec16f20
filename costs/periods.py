"""The periods of a budget, by the calendar of its time zone, and where its figures stand in one; pure."""

from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from zoneinfo import ZoneInfo, available_timezones

from pipeline.refusals import InvalidField

NONE, DAY, WEEK, MONTH = "none", "day", "week", "month"
KINDS = (NONE, DAY, WEEK, MONTH)

# A budget without periods began before any use of it.
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Period:
    """From `starts_at` until before `ends_at`, both aware UTC; without an end it never resets."""

    starts_at: datetime
    ends_at: datetime | None

    def __contains__(self, at: datetime) -> bool:
        return self.starts_at <= at and (self.ends_at is None or at < self.ends_at)

    @property
    def length(self) -> timedelta | None:
        """The time that really passes in it: a day on which clocks change has 23 or 25 hours."""
        return None if self.ends_at is None else self.ends_at - self.starts_at


def check_zone(name: str) -> ZoneInfo:
    """The IANA time zone of that name. Raises InvalidField, with an example."""
    if not isinstance(name, str) or name not in _zones():
        raise InvalidField("timezone", f"a time zone such as UTC or Europe/Berlin, not “{str(name)[:64]}”")
    return ZoneInfo(name)


@lru_cache(maxsize=1)
def _zones() -> frozenset[str]:
    return frozenset(available_timezones())


def period_of(kind: str, zone: str, at: datetime) -> Period:
    """The period that holds `at` (aware): the calendar's day, ISO week (from Monday) or month in that zone, or none.

    Periods of one kind and zone follow each other without a gap and without an overlap, whatever the clocks do.
    Raises InvalidField for an unknown kind or zone, ValueError for a naive time.
    """
    if at.tzinfo is None:
        raise ValueError("an aware time")
    if kind not in KINDS:
        raise InvalidField("period", f"one of {', '.join(KINDS)}, not “{str(kind)[:40]}”")
    here = check_zone(zone)
    if kind == NONE:
        return Period(BEGINNING, None)
    today = at.astimezone(here).date()
    first = _first_day(kind, today)
    return Period(midnight(first, here), midnight(_after(kind, first), here))


def next_period(kind: str, zone: str, period: Period) -> Period | None:
    """The period that begins where this one ends; None when it never ends."""
    return None if period.ends_at is None else period_of(kind, zone, period.ends_at)


def changed(period: Period, kind: str, zone: str, at: datetime) -> Period:
    """The running `period` of a budget whose kind or zone changed at `at`, which lies in it.

    It began when it began, keeps what was spent in it, and ends where the period of the new calendar that holds `at`
    ends: so no time is left out and none is counted twice. Raises what `period_of` does, and ValueError for a period
    that does not hold `at`.
    """
    if at not in period:
        raise ValueError("the time of the change lies in the period")
    return Period(period.starts_at, period_of(kind, zone, at).ends_at)


def _first_day(kind: str, day: date) -> date:
    if kind == WEEK:
        return day - timedelta(days=day.weekday())
    return day.replace(day=1) if kind == MONTH else day


def _after(kind: str, first: date) -> date:
    if kind == MONTH:
        return (first + timedelta(days=31)).replace(day=1)
    return first + timedelta(days=7 if kind == WEEK else 1)


def midnight(day: date, zone: ZoneInfo) -> datetime:
    """The first moment of that day there, in UTC. Where clocks skip midnight, the moment at which they do."""
    # fold=0 takes the earlier of two midnights, and reads a skipped one by the offset before the change.
    return datetime.combine(day, time(), zone).astimezone(UTC)


OK, WARNING, EXCEEDED = "ok", "warning", "exceeded"


@dataclass(frozen=True)
class Standing:
    """Where a period stands: its limit, what was spent, what is reserved, and from which part of the limit it warns."""

    limit: Decimal
    spent: Decimal
    reserved: Decimal = Decimal(0)
    warn_ratio: Decimal = Decimal("0.80")

    @property
    def remaining(self) -> Decimal:
        """What can still be reserved; never below 0."""
        return max(self.limit - self.spent - self.reserved, Decimal(0))

    @property
    def ratio(self) -> Decimal | None:
        """The spent part of the limit, to four places; None for a limit of 0."""
        return (self.spent / self.limit).quantize(Decimal("0.0001")) if self.limit else None

    @property
    def is_warning(self) -> bool:
        """Whether a warning is due: something is spent, and at least the warning part of the limit."""
        return self.spent > 0 and self.spent >= self.warn_ratio * self.limit

    @property
    def is_breached(self) -> bool:
        """Whether the limit is reached by what is spent, or passed by that and what is reserved."""
        return (self.spent > 0 and self.spent >= self.limit) or self.spent + self.reserved > self.limit

    @property
    def status(self) -> str:
        """ok, warning or exceeded; a limit of 0 admits nothing and is exceeded from the start."""
        if self.spent >= self.limit or self.is_breached:
            return EXCEEDED
        return WARNING if self.is_warning else OK

    def admits(self, amount: Decimal) -> bool:
        """Whether `amount` may be reserved now."""
        return self.spent + self.reserved + amount <= self.limit

    def refusal_is_breach(self, amount: Decimal) -> bool:
        """Whether refusing `amount` breaches the budget: it would not fit even if all reservations ended unused."""
        return self.spent + amount > self.limit


@dataclass(frozen=True)
class LimitChange:
    """What follows a new limit in the middle of a period.

    `breaches`: it is a breach now, and was none. `releases`: the budget's own hold ends. `stays_breached`: the time of
    the breach stays written. `warns`: a warning is due, and none was given.
    """

    standing: Standing
    breaches: bool
    releases: bool
    stays_breached: bool
    warns: bool


def change_limit(before: Standing, new: Decimal, *, was_breached: bool, was_warned: bool) -> LimitChange:
    """What a new limit does to a period that was, or was not, breached and warned.

    A raise releases the budget's hold when spent is below the new limit (reservations beyond it only wait for others
    to end); other holds are not its business. Lowering below what is spent and reserved is allowed, and a breach. A
    warning comes once in a period, so not again here.
    Raises InvalidField for a negative limit.
    """
    if not new.is_finite() or new < 0:
        raise InvalidField("limit_amount", "at least 0")
    after = Standing(new, before.spent, before.reserved, before.warn_ratio)
    return LimitChange(
        standing=after,
        breaches=after.is_breached and not was_breached,
        releases=was_breached and before.limit < new and before.spent < new,
        stays_breached=was_breached and after.is_breached,
        warns=after.is_warning and not was_warned,
    )
