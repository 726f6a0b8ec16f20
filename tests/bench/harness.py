"""What every measurement shares: ours and its baselines in turn, latencies, CPU of web and database, and the table.

The machine is noisy, so only ratios within one run and CPU per operation mean anything (docs/bench.md). Ours and the
baselines take turns within each round; of the rounds the median is told.
"""

import cProfile
import io
import json
import os
import pstats
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import embedded

Do = Callable[[Any], object]
Prepare = Callable[[], Any]


def _nothing() -> None:
    return None


@dataclass(frozen=True)
class Operation:
    """One thing to time. `prepare` runs before each call and is not timed; what it returns is given to `do`.

    With `threads` above 1 that many call at once and `prepare` must be the default, since CPU could not be told apart.
    `items` is how many things one call does: figures are told for each item.
    """

    name: str
    do: Do
    prepare: Prepare = _nothing
    items: int = 1


@dataclass(frozen=True)
class Comparison:
    """Ours, what it is compared with, and how many calls of each one round makes. `note`: what differs between them.

    `paired` takes turns call by call, counts the CPU of child processes too, and tells what ours takes beyond each.
    """

    ours: Operation
    baselines: Sequence[Operation]
    calls: int
    threads: int = 1
    note: str = ""
    paired: bool = False


@dataclass(frozen=True)
class Figures:
    """What was measured of one operation, each figure for one item but the percentiles, which are of a call."""

    name: str
    per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    web_us: float
    database_us: float

    @property
    def cpu_us(self) -> float:
        """CPU of both sides in microseconds."""
        return self.web_us + self.database_us


@dataclass(frozen=True)
class Beyond:
    """What a call of ours takes more than the baseline's call beside it, in milliseconds."""

    name: str
    least_ms: float
    median_ms: float
    p95_ms: float
    cpu_ms: float


@dataclass(frozen=True)
class Outcome:
    """One benchmark at one size: the figures of ours first, then of the baselines, and what they mean."""

    bench: str
    goal: str
    size: int
    note: str
    figures: list[Figures] = field(default_factory=list)
    beyond: list[Beyond] = field(default_factory=list)

    def document(self) -> dict[str, Any]:
        """As JSON, with the ratios to each baseline."""
        ours = self.figures[0]
        ratios = {
            theirs.name: {
                "per_second": round(ours.per_second / theirs.per_second, 3),
                "cpu": round(ours.cpu_us / theirs.cpu_us, 3) if theirs.cpu_us else None,
            }
            for theirs in self.figures[1:]
        }
        return {**asdict(self), "ratios": ratios}


@dataclass(frozen=True)
class Bench:
    """A registered benchmark: `make(size)` prepares the data of that size and says what to compare."""

    name: str
    goal: str
    sizes: Sequence[int]
    smoke: int
    make: Callable[[int], Comparison]


BENCHES: dict[str, Bench] = {}


def bench(
    name: str, *, goal: str, sizes: Sequence[int] = (1,), smoke: int = 1
) -> Callable[[Callable[[int], Comparison]], Callable[[int], Comparison]]:
    """Register a benchmark. `goal` says what performance.md wants; sizes rise, since data of one size is added to."""

    def register(make: Callable[[int], Comparison]) -> Callable[[int], Comparison]:
        BENCHES[name] = Bench(name, goal, sizes, smoke, make)
        return make

    return register


# -- CPU -----------------------------------------------------------------------------------------------------------


class Cluster:
    """The processes of one PostgreSQL, known by the directory in which they work."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory.resolve())

    def cpu_ns(self) -> dict[int, int]:
        """{process: nanoseconds on a CPU so far}, from Linux's schedstat: exact for whoever sleeps at the moment."""
        found = {}
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if str((path / "cwd").readlink()) == self.directory:
                    found[int(path.name)] = int((path / "schedstat").read_text().split()[0])
            except OSError:
                continue  # ended meanwhile
        return found

    @staticmethod
    def since(before: dict[int, int], after: dict[int, int]) -> int:
        """Nanoseconds that passed on CPUs between two looks; what a process that ended between them used is lost."""
        return sum(used - before.get(pid, 0) for pid, used in after.items())


# -- measuring -----------------------------------------------------------------------------------------------------


@dataclass
class _Sample:
    latencies: list[float] = field(default_factory=list)
    wall: float = 0.0
    web_ns: int = 0
    database_ns: int = 0
    cpu: list[float] = field(default_factory=list)


def _round(operation: Operation, calls: int, threads: int, cluster: Cluster) -> _Sample:
    if threads > 1:
        return _round_at_once(operation, calls, threads, cluster)
    sample = _Sample()
    for _n in range(calls):
        given = operation.prepare()
        processes = cluster.cpu_ns()
        cpu, began = time.process_time_ns(), time.perf_counter()
        operation.do(given)
        took = time.perf_counter() - began
        sample.web_ns += time.process_time_ns() - cpu
        sample.database_ns += cluster.since(processes, cluster.cpu_ns())
        sample.latencies.append(took)
        sample.wall += took
    return sample


def _cpu_seconds() -> float:
    """CPU of this process and of its children that have ended."""
    return sum(os.times()[:4])


def _turns(operations: Sequence[Operation], calls: int) -> list[_Sample]:
    """Each operation in turn, call by call, and every other time the other way round."""
    samples = [_Sample() for _ in operations]
    for call in range(calls):
        for at in range(len(operations))[:: -1 if call % 2 else 1]:
            operation, sample = operations[at], samples[at]
            given = operation.prepare()
            cpu, began = _cpu_seconds(), time.perf_counter()
            operation.do(given)
            took = time.perf_counter() - began
            sample.cpu.append(_cpu_seconds() - cpu)
            sample.web_ns += int(sample.cpu[-1] * 1e9)
            sample.latencies.append(took)
            sample.wall += took
    return samples


def _beyond(ours: Sequence[_Sample], theirs: Sequence[_Sample], name: str) -> Beyond:
    pairs = zip(_every(ours, "latencies"), _every(theirs, "latencies"), strict=True)
    more = sorted((mine - other) * 1000 for mine, other in pairs)
    cpu = sum(_every(ours, "cpu")) - sum(_every(theirs, "cpu"))
    p95 = more[min(len(more) - 1, int(len(more) * 0.95))]
    told = (more[0], statistics.median(more), p95, cpu / len(more) * 1000)
    return Beyond(name, *(round(value, 2) for value in told))


def _every(samples: Sequence[_Sample], name: str) -> list[float]:
    return [value for sample in samples for value in getattr(sample, name)]


def _round_at_once(operation: Operation, calls: int, threads: int, cluster: Cluster) -> _Sample:
    sample = _Sample()

    def one(_number: int) -> float:
        began = time.perf_counter()
        operation.do(None)
        return time.perf_counter() - began

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, range(threads * 2)))  # the threads' own connections
        processes = cluster.cpu_ns()
        cpu, began = time.process_time_ns(), time.perf_counter()
        sample.latencies = list(pool.map(one, range(calls)))
        sample.wall = time.perf_counter() - began
        sample.web_ns = time.process_time_ns() - cpu
        sample.database_ns = cluster.since(processes, cluster.cpu_ns())
    return sample


def _figures(operation: Operation, samples: Sequence[_Sample]) -> Figures:
    def middle(value: Callable[[_Sample], float]) -> float:
        return statistics.median(value(sample) for sample in samples)

    def percentile(sample: _Sample, share: float) -> float:
        ordered = sorted(sample.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))] * 1000

    def each(sample: _Sample) -> int:
        return len(sample.latencies) * operation.items

    return Figures(
        name=operation.name,
        per_second=round(middle(lambda s: each(s) / s.wall), 1),
        p50_ms=round(middle(lambda s: percentile(s, 0.50)), 3),
        p95_ms=round(middle(lambda s: percentile(s, 0.95)), 3),
        p99_ms=round(middle(lambda s: percentile(s, 0.99)), 3),
        web_us=round(middle(lambda s: s.web_ns / each(s) / 1000), 1),
        database_us=round(middle(lambda s: s.database_ns / each(s) / 1000), 1),
    )


def measure(one: Bench, size: int, cluster: Cluster, *, rounds: int = 3, calls: int | None = None) -> Outcome:
    """One benchmark at one size: every operation is warmed up, then all take turns in each of `rounds` rounds."""
    comparison = one.make(size)
    operations = [comparison.ours, *comparison.baselines]
    calls = calls or comparison.calls
    samples: dict[str, list[_Sample]] = defaultdict(list)
    for operation in operations:
        for _n in range(max(3, calls // 20)):
            operation.do(operation.prepare())
    for _round_number in range(rounds):
        if comparison.paired:
            for operation, sample in zip(operations, _turns(operations, calls), strict=True):
                samples[operation.name].append(sample)
            continue
        for operation in operations:
            samples[operation.name].append(_round(operation, calls, comparison.threads, cluster))
    told = [_figures(operation, samples[operation.name]) for operation in operations]
    ours, *theirs = (samples[operation.name] for operation in operations)
    names = [operation.name for operation in operations[1:]]
    beyond = (
        [_beyond(ours, their, name) for their, name in zip(theirs, names, strict=True)] if comparison.paired else []
    )
    return Outcome(one.name, one.goal, size, comparison.note, told, beyond)


# -- where it goes -------------------------------------------------------------------------------------------------


def profile(operation: Operation, calls: int) -> str:
    """Where `calls` calls of the operation spend their time: its SQL by statement, and cProfile's two lists."""
    from django.db import connection

    statements: dict[str, list[float]] = defaultdict(list)

    def watch(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        began = time.perf_counter()
        try:
            return execute(sql, params, many, context)
        finally:
            statements[sql].append((time.perf_counter() - began) * 1000)

    for _n in range(calls):
        given = operation.prepare()
        with connection.execute_wrapper(watch):
            operation.do(given)
    lines = [f"# {operation.name}: SQL of {calls} calls, by total time; ms as seen by the client", ""]
    every = sum(len(times) for times in statements.values()) / calls
    total = sum(sum(times) for times in statements.values()) / calls
    lines.append(f"{every:.1f} statements and {total:.2f} ms in them a call")
    lines.append(f"{'n/call':>6} {'ms/call':>8} {'ms each':>8}  statement")
    for sql, times in sorted(statements.items(), key=lambda pair: -sum(pair[1])):
        short = " ".join(sql.split())
        short = short if len(short) < 400 else f"{short[:150]} … {short[-240:]}"
        each = sum(times) / len(times)
        lines.append(f"{len(times) / calls:6.1f} {sum(times) / calls:8.3f} {each:8.3f}  {short}")
    profiler = cProfile.Profile()
    for _n in range(calls):
        given = operation.prepare()
        profiler.enable()
        operation.do(given)
        profiler.disable()
    for order in ("cumulative", "tottime"):
        out = io.StringIO()
        pstats.Stats(profiler, stream=out).sort_stats(order).print_stats(70)
        lines += ["", f"# cProfile of {calls} calls, by {order}", out.getvalue()]
    return "\n".join(lines)


# -- telling -------------------------------------------------------------------------------------------------------


@contextmanager
def stopwatch(say: Callable[[str], None], what: str) -> Iterator[None]:
    """Says how long the block took."""
    began = time.monotonic()
    yield
    say(f"{what}: {time.monotonic() - began:.1f} s")


def table(outcomes: Sequence[Outcome]) -> str:
    """The figures as text: one line for each operation, the ratios of ours beside the baselines."""
    head = (
        f"{'benchmark':<22}{'size':>9}  {'operation':<26}{'each/s':>10}{'p50 ms':>9}{'p95':>9}{'p99':>9}"
        f"{'web µs':>9}{'db µs':>8}{'× req/s':>9}{'× CPU':>8}"
    )
    lines = [head, "-" * len(head)]
    for outcome in outcomes:
        ours = outcome.figures[0]
        for at, one in enumerate(outcome.figures):
            ratio = f"{ours.per_second / one.per_second:9.2f}" if at else f"{'':9}"
            cpu = f"{ours.cpu_us / one.cpu_us:8.2f}" if at and one.cpu_us else f"{'':8}"
            name = outcome.bench if not at else ""
            size = f"{outcome.size:,}" if not at else ""
            lines.append(
                f"{name:<22}{size:>9}  {one.name:<26}{one.per_second:10,.1f}{one.p50_ms:9.2f}{one.p95_ms:9.2f}"
                f"{one.p99_ms:9.2f}{one.web_us:9.0f}{one.database_us:8.0f}{ratio}{cpu}"
            )
    by_name: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        by_name[outcome.bench].append(outcome)
    lines.append("")
    for name, rows in by_name.items():
        lines.append(f"{name}: {rows[0].goal}")
        if rows[0].note:
            lines.append(f"  {rows[0].note}")
        for row in rows:
            for more in row.beyond:
                wall = f"{more.median_ms:.1f} ms in the median, {more.least_ms:.1f} at the least, p95 {more.p95_ms:.1f}"
                lines.append(f"  at {row.size:,} beyond {more.name}: {wall}; CPU {more.cpu_ms:.1f} ms")
        if len(rows) > 1:
            steps = [f"{row.size:,}: {row.figures[0].cpu_us / rows[0].figures[0].cpu_us:.2f}" for row in rows]
            lines.append(f"  growth of our CPU, × that of the smallest size: {', '.join(steps)}")
    return "\n".join(lines)


def write(outcomes: Sequence[Outcome], path: Path, facts: dict[str, Any]) -> None:
    """The figures as JSON, with `facts` about the machine and the code."""
    embedded.make_directory(path.parent.absolute())
    told = {**facts, "outcomes": [outcome.document() for outcome in outcomes]}
    path.write_text(json.dumps(told, indent=1) + "\n")
