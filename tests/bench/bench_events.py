"""Events (P6): recorded inside a verb's transaction, and taken in from outside in batches of 100."""

from itertools import cycle
from typing import Any

from django.db import transaction

from pipeline import events
from pipeline.events import START, Event
from pipeline.ids import new_id, to_uuid
from tests import factories
from tests.bench import minimal
from tests.bench.bench_claim import House
from tests.bench.harness import Comparison, Operation, bench
from tests.bench.web import Web

BATCH = 100
STREAMS = 10
BY = factories.BY
DATA = {"tool": "Edit", "path": "src/app.py", "lines": 12}

GOAL = "P6: ≤ 0.3 ms CPU each, chain included; ingest ≥ 50 % of the minimal view"


def _fill(house: House, size: int) -> None:
    """See that the log holds `size` events beside those of the benchmarks: each the only one of its subject."""
    (known,) = house.admin.execute("SELECT count(*) FROM pipeline_event").fetchone() or (0,)
    if known < size:
        source = events.record("note.added", house.project, by=BY, data=DATA)
        house.admin.execute(
            """INSERT INTO pipeline_event SELECT (jsonb_populate_record(e, jsonb_build_object(
                'id', uuidv7(), 'subject_id', uuidv7(), 'stream_seq', 1, 'seq', nextval('pipeline_event_seq')))).*
            FROM generate_series(1, %s) n, pipeline_event e WHERE e.id = %s""",
            [size - known, str(to_uuid(source.pk))],
        )
    house.admin.execute("VACUUM ANALYZE pipeline_event")


def _plain() -> list[dict[str, Any]]:
    """The batch as the baselines insert it."""
    return [
        {
            "id": str(to_uuid(new_id())),
            "kind": "note.added",
            "actor": "somebody",
            "subject_id": str(to_uuid(new_id())),
            "data": DATA,
        }
        for _n in range(BATCH)
    ]


@bench("events-ingest", goal=GOAL, sizes=(1_000, 10_000, 100_000), smoke=100)
def ingest(size: int) -> Comparison:
    """POST /events/ with 100 events about ten runs; figures are for each event."""
    house = House.one()
    _fill(house, size)
    runs = [factories.make_run(house.workstream, started=True) for _n in range(STREAMS)]
    key = factories.make_key("operator").text
    web, lean, raw = Web.product(key), Web.minimal(key), house.raw()

    def body() -> list[dict[str, Any]]:
        turn = cycle(runs)
        return [
            {"kind": "note.added", "run": next(turn).pk, "message": f"edited {n}", "data": DATA} for n in range(BATCH)
        ]

    def insert(rows: list[dict[str, Any]]) -> None:
        with raw.cursor() as cursor:
            minimal.insert_events(cursor, rows)

    return Comparison(
        Operation("signalbox", lambda rows: web.post("/api/v1/events/", rows), body, items=BATCH),
        [
            Operation("minimal Django view", lambda rows: lean.post("/ingest/", {"events": rows}), _plain, items=BATCH),
            Operation("raw psycopg, one INSERT", insert, _plain, items=BATCH),
        ],
        calls=20,
        note="The baselines check nothing, chain nothing and index the primary key only.",
    )


@bench("events-record", goal=GOAL, sizes=(1_000, 10_000, 100_000), smoke=100)
def record(size: int) -> Comparison:
    """Ten events about ten runs in one transaction: one by one as verbs record them, and in one statement."""
    house = House.one()
    _fill(house, size)
    runs = [factories.make_run(house.workstream, started=True) for _n in range(STREAMS)]
    raw = house.raw()

    def one_by_one(_given: Any) -> None:
        with transaction.atomic():
            for run in runs:
                events.record("note.added", run, by=BY, data=DATA)

    def at_once(_given: Any) -> None:
        with transaction.atomic():
            events.append([events.compose("note.added", run, by=BY, data=DATA) for run in runs])

    def plain(rows: list[dict[str, Any]]) -> None:
        with raw.transaction(), raw.cursor() as cursor:
            for row in rows:
                minimal.insert_events(cursor, [row])

    return Comparison(
        Operation("signalbox: record()", one_by_one, items=STREAMS),
        [
            Operation("signalbox: append()", at_once, items=STREAMS),
            Operation("raw psycopg, one by one", plain, lambda: _plain()[:STREAMS], items=STREAMS),
        ],
        calls=60,
    )


@bench("events-read", goal="a page of 100 by the commit-order cursor, flat", sizes=(1_000, 10_000, 100_000), smoke=100)
def read(size: int) -> Comparison:
    """The first hundred events behind a cursor in the middle of the log; figures are for each page."""
    house = House.one()
    _fill(house, size)
    middle = Event.objects.order_by("epoch", "xid", "seq")[Event.objects.count() // 2].cursor
    raw = house.raw()
    sql = "SELECT * FROM pipeline_event WHERE seq > %s ORDER BY epoch, xid, seq LIMIT 100"
    return Comparison(
        Operation("signalbox: after()", lambda _g: list(Event.objects.after(middle, 100))),
        [
            Operation("from the start", lambda _g: list(Event.objects.after(START, 100))),
            Operation("raw psycopg", lambda _g: raw.execute(sql, [0]).fetchall()),
        ],
        calls=40,
    )
