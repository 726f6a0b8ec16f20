"""How far a run is and how long it will take."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.progress import Progress, TaskProgress

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def test_no_task_is_all_done() -> None:
    empty = Progress(0)
    assert (empty.percent_done, empty.percent_succeeded, empty.pending) == (100, 100, 0)
    assert empty.remaining() is None
    with pytest.raises(ValueError, match="negative"):
        Progress(-1)


def test_a_run_is_counted_as_things_happen() -> None:
    progress = Progress(6)
    progress.start(NOON)
    progress.start(NOON + MINUTE)
    progress.start_task("a")
    progress.complete_task("a", 2 * MINUTE)
    progress.start_task("b")
    progress.complete_task("b", 4 * MINUTE)
    progress.fail_task("c")
    progress.cancel_task("d")
    progress.start_task("e")
    progress.update("e", 0.5)
    now = progress.snapshot(NOON + 10 * MINUTE)
    assert (now.total, now.completed, now.failed, now.cancelled, now.running, now.pending) == (6, 2, 1, 1, 1, 1)
    assert now.percent_done == pytest.approx(75)
    assert now.percent_succeeded == pytest.approx(100 / 3)
    assert now.elapsed == 10 * MINUTE
    assert now.remaining == 3 * MINUTE * 1.5
    assert now.eta == NOON + 10 * MINUTE + 3 * MINUTE * 1.5
    assert now.at == NOON + 10 * MINUTE


def test_nothing_is_said_before_there_is_something_to_say() -> None:
    now = Progress(2).snapshot(NOON)
    assert (now.elapsed, now.remaining, now.eta) == (None, None, None)
    started = Progress(2, NOON)
    started.complete_task("a")
    assert started.remaining() is None
    assert started.elapsed(NOON - MINUTE) == timedelta(0)


def test_rows_and_happenings_give_the_same_answer() -> None:
    rows = [
        TaskProgress("a", "completed", duration=MINUTE),
        TaskProgress("b", "failed"),
        TaskProgress("c", "cancelled"),
        TaskProgress("d", "running", 0.25),
        TaskProgress("e", "validating"),
        TaskProgress("f", "queued"),
    ]
    told = Progress(6, NOON)
    told.complete_task("a", MINUTE)
    told.fail_task("b")
    told.cancel_task("c")
    told.update("d", 0.25)
    assert Progress.of(rows, NOON).snapshot(NOON + MINUTE) == told.snapshot(NOON + MINUTE)
    assert told.pending == 2


def test_a_task_told_twice_counts_once() -> None:
    progress = Progress(2)
    progress.complete_task("a", MINUTE)
    progress.complete_task("a", 3 * MINUTE)
    assert (progress.completed, progress.remaining()) == (1, 3 * MINUTE)
    progress.start_task("a")
    assert (progress.completed, progress.running, progress.remaining()) == (0, 1, None)
    progress.fail_task("a")
    assert (progress.failed, progress.running) == (1, 0)


STEPS = st.lists(
    st.tuples(st.sampled_from(["start", "update", "complete", "fail", "cancel"]), st.sampled_from("abcdef")),
    max_size=20,
)


@given(st.integers(0, 5), STEPS, st.floats(-2, 3))
def test_the_figures_never_leave_their_bounds(total: int, steps: list[tuple[str, str]], fraction: float) -> None:
    progress = Progress(total)
    for what, key in steps:
        match what:
            case "start":
                progress.start_task(key)
            case "update":
                progress.update(key, fraction)
            case "complete":
                progress.complete_task(key, MINUTE)
            case "fail":
                progress.fail_task(key)
            case "cancel":
                progress.cancel_task(key)
    assert 0 <= progress.percent_succeeded <= 100
    assert 0 <= progress.percent_done <= 100
    assert progress.pending >= 0
    remaining = progress.remaining()
    assert remaining is None or remaining >= timedelta(0)
