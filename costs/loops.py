"""Whether a task runs in circles: money goes out fast, the same error comes back, the ledger does not move; pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from statistics import median
from types import MappingProxyType
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

# What became of the work of an iteration, from nothing to landed: how far its furthest patch came in the ledger.
RUNGS = ("none", "submitted", "validated", "applied", "verified", "committed")
# These outcomes say nothing about the work (domain.md §2.1.10: they count against nothing, or only against infra).
SILENT = frozenset({"infra_lost", "quota_wait", "budget_stop", "needs_human", "cancelled", "stale_claim"})

REASONS = MappingProxyType(
    {
        "same_fingerprint": _("The same error came {count} times in a row."),
        "no_progress": _("{count} attempts in a row, for {amount} {currency}, brought the ledger no further."),
        "velocity": _(
            "{amount} {currency} in {minutes} minutes is {times} times the median pace of the hour before, "
            "and the last attempt brought the ledger no further."
        ),
    }
)
"""Why a breaker opens, by its code; the sentence takes the parts of the judgement."""


@dataclass(frozen=True)
class Limits:
    """When a loop is one: domain.md §1.11 and §2.1.10 (three the same, three without progress, 3 × the 1 h median).

    Velocity is what goes out in a `window` by the time that was worked in it, where a pause counts up to `idle`; below
    `least_amount` in the last one, or with fewer than `least_samples` uses in the `baseline` before it, it says
    nothing: a median of a few figures is no measure.
    """

    same_fingerprint: int = 3
    no_progress: int = 3
    velocity_factor: Decimal = Decimal(3)
    window: timedelta = timedelta(minutes=10)
    baseline: timedelta = timedelta(hours=1)
    least_amount: Decimal = Decimal("1.00")
    idle: timedelta = timedelta(minutes=2)
    least_samples: int = 20


@dataclass(frozen=True)
class Iteration:
    """One ended attempt of a task: what it cost, how it ended, and how far it brought the work.

    `fingerprint` is that of its error (pipeline.retry), empty without one. `rung` is one of RUNGS, `tests_passed` how
    many tests passed on its patch: of two iterations on one rung, the one with more passing tests came further.
    """

    ended_at: datetime
    amount: Decimal
    outcome: str
    fingerprint: str = ""
    rung: str = "none"
    tests_passed: int = 0

    @property
    def reach(self) -> tuple[int, int]:
        """How far it came, comparable. Raises ValueError for an unknown rung."""
        if self.rung not in RUNGS:
            raise ValueError(f"{self.rung!r} is no rung: {', '.join(RUNGS)}")
        return RUNGS.index(self.rung), self.tests_passed


@dataclass(frozen=True)
class Spend:
    """Money that went out at a moment, as a cost record tells it."""

    at: datetime
    amount: Decimal


@dataclass(frozen=True)
class Judgement:
    """Whether to open the task's breaker, with the code of REASONS and the parts of its sentence."""

    trips: bool
    reason: str = ""
    parts: tuple[tuple[str, Any], ...] = ()

    @property
    def sentence(self) -> str | Promise:
        """The reason for people; empty when it does not trip."""
        return str(REASONS[self.reason]).format(**dict(self.parts)) if self.trips else ""


CLEAR = Judgement(False)


def judge(
    iterations: Sequence[Iteration],
    spends: Iterable[Spend] = (),
    *,
    now: datetime,
    currency: str = "USD",
    limits: Limits | None = None,
) -> Judgement:
    """The judgement of one task at `now`, from its ended attempts (oldest first) and what it spent, of one currency.

    Trips when the last three attempts that say something about the work ended in the same error, or brought the
    ledger no further than it had been, or when the last one did not and money goes out at more than three times the
    median of the hour before. An attempt that came further than any before clears the slate: the cost of a first
    attempt grows with its context, so a pace alone says nothing.
    """
    limits = limits or Limits()
    telling = [one for one in iterations if one.outcome not in SILENT]
    stuck = _since_progress(telling)
    if _same_error(stuck[-limits.same_fingerprint :], limits.same_fingerprint):
        return Judgement(True, "same_fingerprint", (("count", limits.same_fingerprint),))
    if len(stuck) >= limits.no_progress:
        amount = sum((one.amount for one in stuck), Decimal(0))
        return Judgement(
            True, "no_progress", (("count", len(stuck)), ("amount", _cents(amount)), ("currency", currency))
        )
    return _velocity(spends, now, currency, limits) if stuck else CLEAR


def _since_progress(iterations: Sequence[Iteration]) -> list[Iteration]:
    """The attempts after the last one that came further than all before it."""
    best, stuck = (0, 0), list[Iteration]()
    for one in iterations:
        if one.reach > best:
            best, stuck = one.reach, []
        else:
            stuck.append(one)
    return stuck


def _same_error(iterations: Sequence[Iteration], count: int) -> bool:
    return (
        len(iterations) >= count
        and len({one.fingerprint for one in iterations}) == 1
        and iterations[0].fingerprint != ""
    )


def _velocity(spends: Iterable[Spend], now: datetime, currency: str, limits: Limits) -> Judgement:
    """What went out by the minute in the last window, against the median of what did up to each use of the hour before.

    Only worked time counts, so that an hour of waiting between two attempts does not make the second look fast; and
    the last window counts as at least half worked, so that a few quick requests are no pace.
    """
    known = sorted((one for one in spends if one.amount and one.at <= now), key=lambda one: one.at)
    started = now - limits.window
    worked = [limits.idle, *(min(two.at - one.at, limits.idle) for one, two in pairwise(known))]
    usual: list[Decimal] = []
    money, time, oldest = Decimal(0), timedelta(0), 0
    for one, pause in zip(known, worked, strict=False):
        money, time = money + one.amount, time + pause
        while known[oldest].at <= one.at - limits.window:
            money, time, oldest = money - known[oldest].amount, time - worked[oldest], oldest + 1
        if started - limits.baseline < one.at <= started:
            usual.append(_by_minute(money, time))
    last = [(one.amount, pause) for one, pause in zip(known, worked, strict=False) if one.at > started]
    amount = sum((money for money, _ in last), Decimal(0))
    if amount < limits.least_amount or len(usual) < limits.least_samples:
        return CLEAR
    pace = _by_minute(amount, max(sum((pause for _, pause in last), timedelta(0)), limits.window / 2))
    middle = median(usual)
    if pace <= limits.velocity_factor * middle:
        return CLEAR
    return Judgement(
        True,
        "velocity",
        (
            ("amount", _cents(amount)),
            ("currency", currency),
            ("minutes", limits.window // timedelta(minutes=1)),
            ("times", (pace / middle).quantize(Decimal("0.1"))),
        ),
    )


def _by_minute(amount: Decimal, time: timedelta) -> Decimal:
    """Money by the minute of worked time; uses of one moment count as a second."""
    return amount / Decimal(max(time.total_seconds(), 1.0)) * 60


def _cents(amount: Decimal) -> Decimal:
    return amount.quantize(Decimal("0.01"))
