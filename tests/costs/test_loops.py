"""The loop breaker stops what runs in circles within three iterations, and nothing that gets on."""

import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from costs.loops import RUNGS, SILENT, Iteration, Judgement, Limits, Spend, judge

EVENING = datetime(2026, 11, 21, 22, tzinfo=UTC)
MINUTE = timedelta(minutes=1)
NIGHT = (90, Decimal("3.48"), 6 * MINUTE)
"""One task retried all night: 90 attempts of $3.48, one every six minutes, are $313."""


def iteration(number: int, outcome: str = "task_failed", **facts: object) -> Iteration:
    """The ended attempt of that number of a night."""
    _, amount, pace = NIGHT
    return Iteration(EVENING + (number + 1) * pace, amount, outcome, **facts)  # type: ignore[arg-type]


NIGHTS: dict[str, Callable[[int], Iteration]] = {
    "the same error again and again": lambda n: iteration(n, fingerprint="f1"),
    "another error each time": lambda n: iteration(n, fingerprint=f"f{n}"),
    "no error, and no patch": lambda n: iteration(n, "success"),
    "a patch that never applies": lambda n: iteration(n, "gate_failed", rung="submitted"),
    "a patch whose gate fails each time": lambda n: iteration(n, "gate_failed", rung="applied", tests_passed=412),
    "a patch that breaks something else each time": lambda n: iteration(
        n, "gate_failed", rung="applied", tests_passed=412 - n % 7
    ),
    "infra losses in between": lambda n: iteration(n, "infra_lost" if n % 3 == 2 else "task_failed"),
}


@pytest.mark.parametrize("night", NIGHTS)
def test_the_313_dollar_night_stops_within_three_iterations_without_progress(night: str) -> None:
    count, amount, _ = NIGHT
    assert count * amount == Decimal("313.20")
    ended: list[Iteration] = []
    verdict = Judgement(False)
    while not verdict.trips and len(ended) < count:
        ended.append(NIGHTS[night](len(ended)))
        spends = [Spend(one.ended_at, one.amount) for one in ended]
        verdict = judge(ended, spends, now=ended[-1].ended_at)
    assert verdict.trips
    told = [one for one in ended if one.outcome not in SILENT]
    # where the first patch brought something into the ledger, three iterations without progress follow it
    moved = 1 if told[0].rung != "none" else 0
    assert len(told) - moved <= 3
    assert sum(one.amount for one in ended) <= Decimal("13.92")


def test_the_reason_is_told_with_its_figures() -> None:
    same = judge([iteration(n, fingerprint="f") for n in range(3)], now=EVENING)
    assert (same.reason, str(same.sentence)) == ("same_fingerprint", "The same error came 3 times in a row.")
    circles = judge([iteration(n) for n in range(4)], now=EVENING, currency="EUR")
    assert circles.reason == "no_progress"
    assert str(circles.sentence) == "4 attempts in a row, for 13.92 EUR, brought the ledger no further."
    assert str(judge([], now=EVENING).sentence) == ""


@pytest.mark.parametrize("outcome", sorted(SILENT))
def test_outcomes_that_say_nothing_about_the_work_do_not_count(outcome: str) -> None:
    assert not judge([iteration(n, outcome, fingerprint="f") for n in range(50)], now=EVENING).trips


def test_two_failures_are_no_loop() -> None:
    assert not judge([iteration(n, fingerprint="f") for n in range(2)], now=EVENING).trips


def test_progress_clears_the_slate() -> None:
    path = [
        iteration(0, fingerprint="f"),
        iteration(1, fingerprint="f"),
        iteration(2, "gate_failed", rung="applied", tests_passed=10),
        iteration(3, fingerprint="f"),
        iteration(4, fingerprint="f"),
    ]
    assert not judge(path, now=EVENING).trips
    assert judge([*path, iteration(5, fingerprint="f")], now=EVENING).reason == "same_fingerprint"


def test_more_passing_tests_on_the_same_rung_are_progress_and_fewer_are_not() -> None:
    def path(*passed: int) -> list[Iteration]:
        return [iteration(n, "gate_failed", rung="applied", tests_passed=count) for n, count in enumerate(passed)]

    assert not judge(path(1, 2, 3, 4, 5, 6, 7), now=EVENING).trips
    assert not judge(path(7, 6, 6, 8, 7, 7), now=EVENING).trips
    assert judge(path(7, 6, 5, 6), now=EVENING).reason == "no_progress"
    assert judge(path(7, 9, 8, 9, 9), now=EVENING).reason == "no_progress"


def test_a_rung_is_one_of_the_ledgers() -> None:
    assert [iteration(0, rung=rung).reach[0] for rung in RUNGS] == list(range(6))
    with pytest.raises(ValueError, match="dreamt"):
        judge([iteration(0, rung="dreamt")], now=EVENING)


def paced(amounts: list[str]) -> tuple[list[Spend], datetime]:
    """So much in each window of ten minutes, in 20 uses, and the end of the last."""
    spends = [
        Spend(EVENING + 10 * MINUTE * number + timedelta(seconds=30) * use, Decimal(amount) / 20)
        for number, amount in enumerate(amounts)
        for use in range(1, 21)
    ]
    return spends, EVENING + 10 * MINUTE * len(amounts)


@pytest.mark.parametrize(
    ("amounts", "trips"),
    [
        (["1", "1", "1", "1", "1", "1", "3.01"], True),
        (["1", "1", "1", "1", "1", "1", "3"], False),  # three times the median is not more than that
        (["0.1", "0.1", "0.1", "0.1", "0.1", "0.1", "0.99"], False),  # less than a dollar is nobody's night
        (["0.1", "0.1", "0.1", "0.1", "0.1", "0.1", "1.00"], True),
        (["0", "0", "0", "0", "0", "0", "50"], False),  # with what is it compared?
        (["0", "0", "0", "0", "0", "1", "50"], True),
        (["1", "0", "0", "0", "0", "0", "2.5"], False),  # waiting does not make the next attempt look fast
        (["1", "0", "0", "0", "0", "0", "3.4"], True),
        (["9", "9", "9", "9", "9", "9", "1", "1", "1", "1", "1", "1", "5"], True),  # older than an hour: forgotten
        (["1", "1", "90", "1", "1", "1", "2.9"], False),  # one burst does not move the median
        (["1", "1", "90", "1", "1", "1", "3.1"], True),
    ],
)
def test_money_that_goes_out_faster_after_a_failure_trips(amounts: list[str], trips: bool) -> None:
    spends, now = paced(amounts)
    random.Random(3).shuffle(spends)
    verdict = judge([iteration(0)], spends, now=now)
    assert verdict.trips is trips
    assert verdict.reason == ("velocity" if trips else "")


def test_a_velocity_is_told_with_its_figures() -> None:
    spends, now = paced(["1", "1", "1", "1", "1", "1", "4.5"])
    sentence = str(judge([iteration(0)], spends, now=now).sentence)
    assert sentence == (
        "4.50 USD in 10 minutes is 4.5 times the median pace of the hour before, "
        "and the last attempt brought the ledger no further."
    )


def test_a_few_quick_requests_are_no_pace() -> None:
    spends, now = paced(["2"] * 6)
    burst = [Spend(now + timedelta(seconds=number), Decimal("0.60")) for number in range(1, 5)]
    assert not judge([iteration(0)], [*spends, *burst], now=now + 10 * MINUTE).trips
    assert judge([iteration(0)], [*spends, *burst * 2], now=now + 10 * MINUTE).reason == "velocity"


def test_uses_of_one_moment_are_counted() -> None:
    spends = [Spend(EVENING, Decimal("0.05"))] * 40
    assert not judge([iteration(0)], spends, now=EVENING + 5 * MINUTE).trips


@pytest.mark.parametrize("ended", [[], [iteration(0, "success", rung="applied")]])
def test_a_first_attempt_and_one_that_gets_on_may_grow_dear(ended: list[Iteration]) -> None:
    spends, now = paced(["1", "1", "1", "1", "1", "1", "40"])
    assert not judge(ended, spends, now=now).trips


def test_limits_can_be_set() -> None:
    patient = Limits(same_fingerprint=10, no_progress=10)
    assert not judge([iteration(n, fingerprint="f") for n in range(9)], now=EVENING, limits=patient).trips
    assert judge([iteration(n, fingerprint="f") for n in range(10)], now=EVENING, limits=patient).trips


def normal_trace(chosen: random.Random) -> list[tuple[list[Iteration], list[Spend], datetime]]:
    """A task as tasks go, seen at each moment: it fails now and then, never three times without getting further,
    loses workers, waits for quota, and its requests grow dearer with their context within an attempt.
    """
    seen: list[tuple[list[Iteration], list[Spend], datetime]] = []
    ended: list[Iteration] = []
    spends: list[Spend] = []
    now, stuck, rung, passed = EVENING, 0, 0, 0
    base = chosen.lognormvariate(-2.5, 0.6)
    for _ in range(chosen.randrange(3, 12)):
        amount = Decimal(0)
        for request in range(chosen.randrange(5, 40)):
            now += timedelta(seconds=chosen.uniform(5, 90))
            price = Decimal(base * (1 + request / 40) * chosen.uniform(0.7, 1.3)).quantize(Decimal("0.000001"))
            spends.append(Spend(now, price))
            amount += price
            seen.append((list(ended), list(spends), now))
        outcome = chosen.choices(
            ["task_failed", "gate_failed", "success", "infra_lost", "quota_wait", "needs_human"],
            [2, 3, 3, 2, 1, 1],
        )[0]
        if outcome in SILENT:
            ended.append(Iteration(now, amount, outcome, fingerprint="lost"))
            now += timedelta(minutes=chosen.uniform(1, 90))
        elif outcome == "task_failed" and stuck < 2:
            stuck += 1
            ended.append(Iteration(now, amount, outcome, fingerprint=chosen.choice(["f1", "f2"])))
        else:
            stuck = 0
            if rung < 4 and chosen.random() < 0.5:
                rung, passed = rung + 1, chosen.randrange(50)
            else:
                rung, passed = max(rung, 1), passed + chosen.randrange(1, 30)
            ended.append(Iteration(now, amount, "gate_failed" if rung < 4 else "success", "g", RUNGS[rung], passed))
        seen.append((list(ended), list(spends), now))
        now += timedelta(minutes=chosen.uniform(0, 20))
    return seen


@pytest.mark.parametrize("seed", range(50))
def test_a_normal_trace_never_trips(seed: int) -> None:
    for ended, spends, now in normal_trace(random.Random(seed)):
        verdict = judge(ended, spends, now=now)
        assert not verdict.trips, (seed, str(verdict.sentence), len(ended))
