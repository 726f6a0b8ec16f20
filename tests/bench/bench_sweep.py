"""The sweep of many workers (P5): nothing to do, one in a hundred late, and everybody due at once."""

from typing import Any

from tests import factories
from tests.bench.bench_claim import House
from tests.bench.harness import Comparison, Operation, bench
from workers import sweeping
from workers.models import Worker, health

# What a sweep must look at, however it does it: who is silent for longer than it may be, by the same partial index.
_RAW = """
SELECT id FROM workers_worker
WHERE state IN ('idle', 'busy', 'paused') AND look_at <= (SELECT clock_timestamp())
    AND transport_seen_at < clock_timestamp() - make_interval(secs => COALESCE((config->>'timeout_seconds')::int, 60))
ORDER BY look_at LIMIT 5000
"""
_RAW_LEASES = "SELECT id FROM workers_lease WHERE ended_at IS NULL AND expires_at < (SELECT clock_timestamp())"
_RAW_ALIVE = "SELECT count(*) FROM workers_worker WHERE state IN ('idle', 'busy', 'paused') AND progress_at > now()"
_RAW_PUT_OFF = """
UPDATE workers_worker SET look_at = transport_seen_at + interval '30 seconds'
WHERE state IN ('idle', 'busy', 'paused') AND look_at <= (SELECT clock_timestamp())
"""


def _fleet(house: House, size: int) -> None:
    """See that `size` idle workers live, all of them well, and due in an hour."""
    (known,) = house.admin.execute("SELECT count(*) FROM workers_worker").fetchone() or (0,)
    template = factories.make_worker()
    house.admin.execute(
        """INSERT INTO workers_worker SELECT (jsonb_populate_record(w, jsonb_build_object('id', uuidv7()))).*
        FROM generate_series(1, %s) n, workers_worker w WHERE w.name = %s""",
        [max(0, size - known), template.name],
    )
    _rest(house)
    house.admin.execute("VACUUM ANALYZE workers_worker, workers_lease")


def _rest(house: House) -> None:
    house.admin.execute(
        """UPDATE workers_worker SET transport_seen_at = clock_timestamp() + interval '1 hour', told_health = 'healthy',
            look_at = clock_timestamp() + interval '1 hour' WHERE state <> 'crashed'"""
    )


def _raw(house: House) -> Operation:
    raw = house.raw()

    def look(_given: Any) -> None:
        raw.execute(_RAW_LEASES).fetchall()
        raw.execute(_RAW).fetchall()

    return Operation("raw SQL: who is silent", look)


def _steps(_given: Any) -> None:
    for step in sweeping.what_is_due():
        step()


@bench("sweep-nothing", goal="P5: ≤ 5 ms when nothing is stale", sizes=(1_000, 10_000, 100_000), smoke=50)
def nothing_is_stale(size: int) -> Comparison:
    """Every look of the sweep, at `size` workers of whom none is due."""
    house = House.one()
    _fleet(house, size)
    return Comparison(
        Operation("signalbox", _steps),
        [_raw(house)],
        calls=40,
        note="Ours looks for six things, the raw line for expired leases and silent workers. The minute's look for "
        "work without an owner is not in it.",
    )


@bench("sweep-stale", goal="P5: ≤ 1.5 × raw SQL with the same index", sizes=(1_000, 10_000, 100_000), smoke=50)
def one_in_a_hundred_is_stale(size: int) -> Comparison:
    """One worker in a hundred is unresponsive, and told so already: who has to be looked at by every sweep."""
    house = House.one()
    _fleet(house, size)
    house.admin.execute(
        """UPDATE workers_worker SET look_at = clock_timestamp() - interval '1 second', told_health = 'unresponsive',
            transport_seen_at = clock_timestamp() - interval '100 seconds', config = '{"timeout_seconds": 60}'
        WHERE id IN (SELECT id FROM workers_worker WHERE state = 'idle' LIMIT %s)""",
        [max(1, size // 100)],
    )
    house.admin.execute("VACUUM ANALYZE workers_worker")
    return Comparison(
        Operation("signalbox: health", lambda _g: sweeping.look_at_health()),
        [_raw(house)],
        calls=20,
        note="Ours locks the rows, derives the health of each from three clocks, and marks them as looked at.",
    )


@bench("sweep-all-due", goal="P5: what healthy workers cost once in two heartbeats", sizes=(1_000, 10_000), smoke=50)
def everybody_is_due(size: int) -> Comparison:
    """Every worker has to be looked at, and is well: figures are for each worker."""
    house = House.one()
    _fleet(house, size)
    raw = house.raw()

    def due() -> None:
        house.admin.execute(
            """UPDATE workers_worker SET look_at = clock_timestamp() - interval '1 second'
            WHERE id IN (SELECT id FROM workers_worker WHERE state = 'idle' LIMIT %s)""",
            [size],
        )

    return Comparison(
        Operation("signalbox: health", lambda _g: sweeping.look_at_health(), due, items=size),
        [Operation("raw UPDATE", lambda _g: raw.execute(_RAW_PUT_OFF), due, items=size)],
        calls=5,
    )


@bench("health-list", goal="P10: the list by health, stalled first", sizes=(1_000, 10_000), smoke=50)
def list_by_health(size: int) -> Comparison:
    """The expression over every living worker: what `?health=stalled` and the page ask."""
    house = House.one()
    _fleet(house, size)
    raw = house.raw()
    return Comparison(
        Operation("signalbox", lambda _g: list(Worker.objects.of_health(health.STALLED).values_list("pk")[:50])),
        [Operation("raw: alive", lambda _g: raw.execute(_RAW_ALIVE).fetchone())],
        calls=20,
    )
