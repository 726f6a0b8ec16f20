"""What follows an outcome: waits, fingerprints, limits."""

import random
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.refusals import InvalidField
from pipeline.retry import OUTCOMES, Counts, Limits, after, fingerprint, wait

STEADY = Limits(jitter=False)


def seconds(value: timedelta | None) -> float | None:
    return None if value is None else value.total_seconds()


@pytest.mark.parametrize(
    ("failures", "expected"), [(0, 0), (1, 2), (2, 4), (3, 8), (5, 32), (6, 60), (7, 60), (5000, 60)]
)
def test_exponential_waits_double_up_to_the_cap(failures: int, expected: float) -> None:
    assert seconds(wait("exponential", failures, jitter=False)) == expected


def test_the_other_modes_wait_nothing_or_always_the_same() -> None:
    assert seconds(wait("none", 3)) == 0
    for failures in (1, 2, 9):
        assert seconds(wait("simple", failures, delay_seconds=7, jitter=False)) == 7


def test_an_unknown_mode_and_a_negative_figure_are_refused() -> None:
    with pytest.raises(InvalidField):
        wait("hopeful", 1)
    with pytest.raises(ValueError, match="negative"):
        wait("simple", -1)
    with pytest.raises(ValueError, match="negative"):
        wait("simple", 1, delay_seconds=-1)


@given(
    st.integers(1, 2000),
    st.floats(0, 100),
    st.floats(1, 10),
    st.floats(0, 1000),
    st.integers(0, 99),
)
def test_jitter_stays_within_half_and_one_and_a_half_and_below_the_cap(
    failures: int, base: float, factor: float, cap: float, seed: int
) -> None:
    plain = wait("exponential", failures, base_seconds=base, factor=factor, cap_seconds=cap, jitter=False)
    spread = wait("exponential", failures, base_seconds=base, factor=factor, cap_seconds=cap, rng=random.Random(seed))
    tolerance = timedelta(microseconds=2)
    assert plain * 0.5 - tolerance <= spread <= plain * 1.5 + tolerance
    assert spread <= timedelta(seconds=cap)


@given(st.integers(0, 99), st.floats(0, 100))
def test_simple_waits_are_spread_too(seed: int, delay: float) -> None:
    spread = wait("simple", 1, delay_seconds=delay, rng=random.Random(seed)).total_seconds()
    assert delay * 0.5 - 1e-5 <= spread <= delay * 1.5 + 1e-5


def test_the_same_random_source_gives_the_same_wait() -> None:
    assert wait("exponential", 2, rng=random.Random(1)) == wait("exponential", 2, rng=random.Random(1))
    assert wait("exponential", 2, rng=random.Random(1)) != wait("exponential", 2, rng=random.Random(2))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (("e", "line 12 failed"), ("e", "line 7 failed"), True),
        (("e", "a  b\n c"), ("e", " a b c "), True),
        (("e", "a b"), ("f", "a b"), False),
        (("e", "a b"), ("e", "a c"), False),
        (("e", "x" * 2000 + "tail"), ("e", "x" * 2000 + "other"), True),
        (("e", "x" * 1999 + "t"), ("e", "x" * 1999 + "o"), False),
        (("ea", "b"), ("e", "ab"), False),
    ],
)
def test_a_fingerprint_sees_past_digits_and_blanks(one: tuple[str, str], other: tuple[str, str], same: bool) -> None:
    assert (fingerprint(*one) == fingerprint(*other)) is same
    assert len(fingerprint(*one)) == 64


def test_the_table_has_the_nine_outcomes_of_the_domain() -> None:
    assert {name: (row.attempt, row.task, row.counts, row.limit) for name, row in OUTCOMES.items()} == {
        "success": ("succeeded", "validating", None, None),
        "task_failed": ("failed", "retrying", "count_failures", "max_attempts"),
        "infra_lost": ("failed", "retrying", "count_infra", "max_infra_retries"),
        "quota_wait": ("canceled", "retrying", None, None),
        "budget_stop": ("canceled", "retrying", None, None),
        "needs_human": ("canceled", "retrying", None, None),
        "cancelled": ("canceled", "cancelled", None, None),
        "gate_failed": (None, "retrying", "count_repairs", "max_repairs"),
        "stale_claim": (None, None, None, None),
    }


@pytest.mark.parametrize(
    ("outcome", "counts", "state", "counted", "waits"),
    [
        ("success", Counts(), "validating", None, None),
        ("task_failed", Counts(), "retrying", "count_failures", 2),
        ("task_failed", Counts(count_failures=1), "retrying", "count_failures", 4),
        ("task_failed", Counts(count_failures=2), "failed", "count_failures", None),
        ("task_failed", Counts(count_infra=99, count_repairs=99), "retrying", "count_failures", 2),
        ("infra_lost", Counts(), "retrying", "count_infra", 2),
        ("infra_lost", Counts(count_infra=2), "retrying", "count_infra", 8),
        ("infra_lost", Counts(count_infra=3), "failed", None, None),
        ("gate_failed", Counts(count_repairs=1), "retrying", "count_repairs", 4),
        ("gate_failed", Counts(count_repairs=2), "failed", None, None),
        ("quota_wait", Counts(count_failures=9), "retrying", None, None),
        ("budget_stop", Counts(count_failures=9), "retrying", None, None),
        ("needs_human", Counts(count_failures=9), "retrying", None, None),
        ("cancelled", Counts(), "cancelled", None, None),
        ("stale_claim", Counts(), None, None, None),
    ],
)
def test_each_outcome_leads_where_its_table_says(
    outcome: str, counts: Counts, state: str | None, counted: str | None, waits: float | None
) -> None:
    found = after(outcome, counts=counts, limits=STEADY)
    assert (found.state, found.counted, seconds(found.wait)) == (state, counted, waits)
    assert found.reason
    assert not found.tripped


def test_a_shutdown_is_due_again_now_and_a_quota_at_its_time() -> None:
    again = after("cancelled", shutdown=True)
    assert (again.state, again.counted, seconds(again.wait)) == ("retrying", None, 0)
    assert seconds(after("quota_wait", quota_wait=timedelta(minutes=5)).wait) == 300
    assert after("budget_stop", quota_wait=timedelta(minutes=5)).wait is None


@pytest.mark.parametrize("outcome", ["task_failed", "gate_failed"])
def test_the_third_equal_error_is_the_end(outcome: str) -> None:
    roomy = Limits(max_attempts=9, max_repairs=9)
    assert after(outcome, counts=Counts(same_fingerprint=2), limits=roomy).state == "retrying"
    found = after(outcome, counts=Counts(same_fingerprint=3), limits=roomy)
    assert (found.state, found.tripped, found.wait) == ("failed", True, None)
    assert found.counted == OUTCOMES[outcome].counts


def test_a_worker_lost_three_times_is_bounded_by_its_own_limit() -> None:
    assert after("infra_lost", counts=Counts(count_infra=2, same_fingerprint=3)).state == "retrying"


def test_an_unknown_outcome_is_refused() -> None:
    with pytest.raises(InvalidField):
        after("shrugged")


@given(st.sampled_from(["task_failed", "infra_lost", "gate_failed"]), st.integers(1, 5))
def test_every_counted_outcome_comes_to_an_end_with_its_counter_at_the_limit(outcome: str, limit: int) -> None:
    limits = Limits(max_attempts=limit, max_infra_retries=limit, max_repairs=limit, mode="none")
    column, counts, tries = OUTCOMES[outcome].counts, Counts(), 0
    assert column is not None
    while True:
        tries += 1
        found = after(outcome, counts=counts, limits=limits)
        if found.counted:
            counts = Counts(**{column: getattr(counts, column) + 1})
        if found.state == "failed":
            break
    assert tries == (limit if outcome == "task_failed" else limit + 1)
    assert getattr(counts, column) == limit
