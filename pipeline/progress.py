"""How far a run is and how long it will take, computed from what its tasks did."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

# How the states of a task (domain.md §2.1.4) are counted; every other state is pending.
RUNNING_STATES = frozenset({"running"})
COMPLETED, FAILED, CANCELLED = "completed", "failed", "cancelled"


@dataclass(frozen=True)
class Snapshot:
    """The progress at one moment. Percentages lie within 0 and 100, durations and `eta` are None while unknown."""

    at: datetime
    total: int
    completed: int
    failed: int
    cancelled: int
    running: int
    pending: int
    percent_done: float
    percent_succeeded: float
    elapsed: timedelta | None
    remaining: timedelta | None
    eta: datetime | None


@dataclass(frozen=True)
class TaskProgress:
    """One task as a row tells it: its state, the done fraction (0 to 1) of a running one, how long a completed took."""

    key: str
    state: str
    fraction: float = 0.0
    duration: timedelta | None = None


@dataclass
class Progress:
    """Counts a run of `total` tasks (domain.md §2.1.14).

    Fed from rows (of()) or, as things happen, by start, start_task, update, complete_task, fail_task, cancel_task.
    A task that is told twice is counted once, with the last that was told. Raises ValueError for a negative total.
    """

    total: int
    started_at: datetime | None = None
    _running: dict[str, float] = field(default_factory=dict)
    _ended: dict[str, str] = field(default_factory=dict)
    _durations: dict[str, timedelta] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.total < 0:
            raise ValueError("total must not be negative")

    @classmethod
    def of(cls, tasks: Iterable[TaskProgress], started_at: datetime | None = None) -> "Progress":
        """The progress of a run that has exactly these tasks."""
        rows = list(tasks)
        progress = cls(len(rows), started_at)
        for row in rows:
            if row.state in RUNNING_STATES:
                progress.update(row.key, row.fraction)
            elif row.state == COMPLETED:
                progress.complete_task(row.key, row.duration)
            elif row.state in (FAILED, CANCELLED):
                progress._end(row.key, row.state)
        return progress

    def start(self, at: datetime) -> None:
        """The run started at `at` (aware); a second start changes nothing."""
        self.started_at = self.started_at or at

    def start_task(self, key: str) -> None:
        """A task runs, nothing of it done."""
        self.update(key, 0.0)

    def update(self, key: str, fraction: float) -> None:
        """`fraction` of a running task is done; values outside 0 to 1 are cut to it."""
        self._ended.pop(key, None)
        self._durations.pop(key, None)
        self._running[key] = min(max(fraction, 0.0), 1.0)

    def complete_task(self, key: str, duration: timedelta | None = None) -> None:
        """A task is completed and took `duration`; without one it says nothing about the others."""
        self._end(key, COMPLETED)
        if duration is not None:
            self._durations[key] = duration

    def fail_task(self, key: str) -> None:
        """A task has failed."""
        self._end(key, FAILED)

    def cancel_task(self, key: str) -> None:
        """A task is cancelled."""
        self._end(key, CANCELLED)

    def _end(self, key: str, how: str) -> None:
        self._running.pop(key, None)
        self._durations.pop(key, None)
        self._ended[key] = how

    @property
    def completed(self) -> int:
        """How many tasks are completed."""
        return self._count(COMPLETED)

    @property
    def failed(self) -> int:
        """How many tasks have failed."""
        return self._count(FAILED)

    @property
    def cancelled(self) -> int:
        """How many tasks are cancelled."""
        return self._count(CANCELLED)

    @property
    def running(self) -> int:
        """How many tasks run."""
        return len(self._running)

    @property
    def pending(self) -> int:
        """The rest: neither ended nor running; never below 0."""
        return max(self.total - len(self._ended) - self.running, 0)

    def _count(self, how: str) -> int:
        return sum(ended == how for ended in self._ended.values())

    @property
    def percent_done(self) -> float:
        """Ended tasks and the done fractions of running ones, of 100; 100 when there is no task."""
        return self._percent(len(self._ended) + sum(self._running.values()))

    @property
    def percent_succeeded(self) -> float:
        """Completed tasks, of 100; 100 when there is no task."""
        return self._percent(self.completed)

    def _percent(self, done: float) -> float:
        return min(max(done / self.total * 100, 0.0), 100.0) if self.total else 100.0

    def elapsed(self, now: datetime) -> timedelta | None:
        """Since the start, never negative; None before it."""
        return None if self.started_at is None else max(now - self.started_at, timedelta(0))

    def remaining(self) -> timedelta | None:
        """The mean duration of completed tasks times what is undone, as if one task ran at a time; None without any."""
        if not self._durations:
            return None
        mean = sum(self._durations.values(), timedelta(0)) / len(self._durations)
        undone = self.pending + self.running - sum(self._running.values())
        return mean * max(undone, 0.0)

    def snapshot(self, now: datetime) -> Snapshot:
        """All figures at `now` (aware)."""
        remaining = self.remaining()
        return Snapshot(
            at=now,
            total=self.total,
            completed=self.completed,
            failed=self.failed,
            cancelled=self.cancelled,
            running=self.running,
            pending=self.pending,
            percent_done=self.percent_done,
            percent_succeeded=self.percent_succeeded,
            elapsed=self.elapsed(now),
            remaining=remaining,
            eta=None if remaining is None else now + remaining,
        )
