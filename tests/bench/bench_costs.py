"""Costs: records in bulk with their sums kept (P8), OTLP (P8), and the data of the page over many records (P9)."""

import json
from datetime import timedelta
from itertools import count
from typing import Any

from costs import fates, ingest, reports
from costs.models import CostRecord, DailySpend
from pipeline.auth import Principal
from pipeline.clock import db_now
from pipeline.ids import new_id, to_uuid
from tests import factories
from tests.bench.bench_claim import House
from tests.bench.harness import Comparison, Operation, bench
from tests.bench.web import Web

BATCH = 1000
POINTS = 1000
_numbers = count(1)

_RAW = """
WITH new AS (INSERT INTO bench_cost (id, project, model, tokens, amount, key)
    SELECT * FROM unnest(%s::uuid[], %s::uuid[], %s::text[], %s::bigint[], %s::numeric[], %s::text[])
    ON CONFLICT (key) DO NOTHING RETURNING *)
INSERT INTO bench_daily (day, project, model, amount, records)
SELECT now()::date, project, model, sum(amount), count(*) FROM new GROUP BY 2, 3 ORDER BY 2, 3
ON CONFLICT (day, project, model) DO UPDATE SET amount = bench_daily.amount + EXCLUDED.amount,
    records = bench_daily.records + EXCLUDED.records
"""
_TABLES = """
CREATE TABLE IF NOT EXISTS bench_cost (id uuid PRIMARY KEY, at timestamptz DEFAULT now(), project uuid, model text,
    tokens bigint, amount numeric(18,6), key text UNIQUE);
CREATE TABLE IF NOT EXISTS bench_daily (day date, project uuid, model text, amount numeric(24,6), records bigint,
    PRIMARY KEY (day, project, model));
"""


def _house() -> House:
    house = House.one()
    house.admin.execute(_TABLES)  # type: ignore[arg-type]
    house.admin.execute("GRANT ALL ON bench_cost, bench_daily TO signalbox")
    return house


def _rows(project: str) -> list[dict[str, Any]]:
    """A thousand uses of five models, priced by their tokens."""
    return [
        {
            "resource_type": "api_call", "project": project, "model": f"bench-{number % 5}", "provider": "example",
            "tokens_uncached_input": 1000 + number, "tokens_cache_read": 20_000, "tokens_output": 300,
            "source": "bench", "idempotency_key": f"req-{next(_numbers)}", "currency": "USD",
        }
        for number in range(BATCH)
    ]  # fmt: skip


@bench("costs-bulk", goal="P8: ≥ 10,000 records/s by the bulk API, sums kept", sizes=(10_000, 100_000), smoke=100)
def bulk(size: int) -> Comparison:
    """POST /costs/ with 1,000 uses that are priced by tokens; figures are for each record."""
    house = _house()
    for number in range(5):
        if not factories.Price.objects.filter(model=f"bench-{number}").exists():
            factories.make_price(model=f"bench-{number}")
    _fill(house, size)
    web, raw = Web.product(factories.make_key("operator").text), house.raw()
    project = house.project.pk

    def insert(rows: list[dict[str, Any]]) -> None:
        raw.execute(
            _RAW,
            [
                [to_uuid(new_id()) for _row in rows], [to_uuid(row["project"]) for row in rows],
                [row["model"] for row in rows], [row["tokens_uncached_input"] for row in rows],
                ["0.02" for _row in rows], [row["idempotency_key"] for row in rows],
            ],
        )  # fmt: skip

    def body() -> bytes:
        return json.dumps(_rows(project)).encode()  # the caller's work, so not timed

    return Comparison(
        Operation("signalbox", lambda body: web.post("/api/v1/costs/", body), body, items=BATCH),
        [Operation("raw psycopg, one statement with sums", insert, lambda: _rows(project), items=BATCH)],
        calls=10,
        note="The baseline has 7 columns and 2 indexes, checks nothing and prices nothing; ours has 67 columns and 8.",
    )


@bench("costs-otlp", goal="P8: ≥ 3,000 OTLP points/s", sizes=(10_000,), smoke=100)
def otlp_points(size: int) -> Comparison:
    """An export of 1,000 points of claude_code.token.usage, four to a use, taken in; figures are for each point."""
    house = _house()
    _fill(house, size)
    raw, key = house.raw(), factories.make_key("operator")
    who, project = Principal.of_key(key.row), house.project.pk

    def payload() -> bytes:
        points = [
            {
                "attributes": [
                    {"key": name, "value": {"stringValue": text}}
                    for name, text in (("session.id", f"s-{next(_numbers) // 40}"), ("model", "claude-sonnet-4-5"),
                                       ("type", kind), ("query_source", str(number)))
                ],
                "startTimeUnixNano": str(1_763_800_000_000_000_000 + next(_numbers)),
                "timeUnixNano": str(1_763_800_060_000_000_000),
                "asDouble": 1000.0,
            }
            for number in range(POINTS // 4)
            for kind in ("input", "output", "cacheRead", "cacheCreation")
        ]  # fmt: skip
        data = {"dataPoints": points, "aggregationTemporality": 1, "isMonotonic": True}
        metric = {"name": "claude_code.token.usage", "sum": data}
        scopes = [{"scope": {"name": "m"}, "metrics": [metric]}]
        return json.dumps({"resourceMetrics": [{"resource": {"attributes": []}, "scopeMetrics": scopes}]}).encode()

    def insert(body: bytes) -> None:
        points = json.loads(body)["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"]["dataPoints"]
        some = points[::4]
        raw.execute(
            _RAW,
            [
                [to_uuid(new_id()) for _one in some], [to_uuid(project) for _one in some], ["m" for _one in some],
                [1000 for _one in some], ["0.02" for _one in some], [new_id() for _one in some],
            ],
        )  # fmt: skip

    return Comparison(
        Operation(
            "signalbox", lambda body: ingest.take_metrics(body, "application/json", "", who), payload, items=POINTS
        ),
        [Operation("raw: JSON read, a row for each use with sums", insert, payload, items=POINTS)],
        calls=10,
    )


_OTHERWISE = {
    "id": "uuidv7()",
    "idempotency_key": "'fill-' || n",
    "model": "'bench-' || n / 7 % 5",
    "worker_id": "('00000000-0000-4000-8000-' || lpad((n % 40)::text, 12, '0'))::uuid",
    "kind": "(ARRAY['code_edit', 'research', 'review'])[1 + n % 3]",
    "landing": "(ARRAY['landed', 'landed', 'waste', 'waste', 'in_flight', 'overhead'])[1 + n / 11 % 6]",
    "waste_cause": "(ARRAY['', '', 'gate_failed', 'superseded', '', ''])[1 + n / 11 % 6]",
    "amount": "(n % 997) / 10000.0",
    "unpriced": "n % 97 = 0",
    "recorded_at": "clock_timestamp() - (n / 13 % 30) * interval '1 day'",
}
"""What differs among filled records: forty workers, five models, three kinds, six classes, thirty days."""


def _fill(house: House, size: int) -> None:
    """See that there are `size` records, and their sums: about 108,000 rows of them when every combination came up."""
    (known,) = house.admin.execute("SELECT count(*) FROM costs_costrecord").fetchone() or (0,)
    if known < size:
        pk = factories.make_cost(project=house.project, model="bench-0", amount="0.01").pk
        names = [field.column for field in CostRecord._meta.concrete_fields]
        values = ", ".join(_OTHERWISE.get(name, f'c."{name}"') for name in names)
        for first in range(known, size, 500_000):
            house.admin.execute(
                f"""INSERT INTO costs_costrecord ({", ".join(f'"{name}"' for name in names)})
                SELECT {values} FROM generate_series({first}, {min(first + 500_000, size) - 1}) n, costs_costrecord c
                WHERE c.id = '{to_uuid(pk)}'"""  # type: ignore[arg-type]
            )
        today = db_now().date()
        # By the superuser, who is not asked whether the workers are there.
        house.admin.execute(fates._RECONCILE, {"first": today - timedelta(days=40), "last": today})  # type: ignore[arg-type]
    house.admin.execute("VACUUM ANALYZE costs_costrecord, costs_dailyspend")


_SUMS = """
SELECT day, model, currency, sum(amount), sum(unpriced_amount), sum(records) FROM costs_dailyspend
WHERE day > (now() AT TIME ZONE 'UTC')::date - 30 GROUP BY 1, 2, 3 HAVING sum(records) <> 0 ORDER BY 1, 2, 3
"""


@bench(
    "costs-page",
    goal="P9: ≤ 2 × the sum table's SQL + 30 ms, same at 10⁶ and 10⁷",
    sizes=(10_000, 1_000_000, 10_000_000),
    smoke=100,
)
def page(size: int) -> Comparison:
    """The sums of 30 days in all, by day, by tool and model, and by class, as the page asks for them."""
    house = _house()
    _fill(house, size)
    raw = house.raw()

    def ours(_given: Any) -> None:
        first = db_now().date() - timedelta(days=29)
        overview = reports.Overview.of_sums(DailySpend.objects.filter(day__gte=first))
        overview.totals(), overview.days(first), overview.tools(30), overview.classes()

    return Comparison(
        Operation("signalbox: all sums of the page", ours),
        [Operation("raw: by day × model", lambda _g: raw.execute(_SUMS).fetchall())],
        calls=20,
        note="Ours groups by day, tool, model and class, and adds up what the page shows; and asks the time of day.",
    )
