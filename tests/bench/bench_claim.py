"""The worker's three calls: heartbeat (P1, P2), claim (P3), complete with the run's advance (P4)."""

import uuid
from itertools import count, cycle
from typing import Any

import psycopg
from django.conf import settings
from django.db import transaction

from ledger import projects
from pipeline import embedded, events, orchestrate
from pipeline.ids import to_uuid
from pipeline.models import ApiKey, Project, Task, Tool
from tests import factories
from tests.bench import minimal
from tests.bench.harness import Comparison, Operation, bench
from tests.bench.web import Web
from workers import claims
from workers.models import Lease, Worker

TASKS_OF_A_RUN = 10
TASK = {"kind": "research", "allow_parallel": True}

_numbers = count(1)


def superuser() -> psycopg.Connection[Any]:
    """A connection past triggers and grants, for seeding only."""
    found = psycopg.connect(
        host=settings.DATABASES["default"]["HOST"],
        port=5432,
        user="postgres",
        dbname=embedded.DATABASE,
        autocommit=True,
    )
    found.execute("SET session_replication_role = replica")
    return found


class House:
    """One project with a tool, a worker's key, and any number of queued tasks, made once for all benchmarks here."""

    _one: "House | None" = None

    @classmethod
    def one(cls) -> "House":
        """The house of this process."""
        cls._one = cls._one or cls()
        return cls._one

    def __init__(self) -> None:
        self.key = factories.make_key(role="worker")
        self.web, self.lean = Web.product(self.key.text), Web.minimal(self.key.text)
        Tool.objects.update(enabled=False)
        self.tool = factories.make_tool(max_parallel=10_000)
        self.project: Project = projects.register(str(factories.sample_repository()), by=factories.BY, key="bench")
        specs = [factories.task_spec(f"task-{number}", **TASK) for number in range(TASKS_OF_A_RUN)]
        self.workstream = factories.make_workstream(
            factories.make_phase(self.project), tasks=specs, concurrency={"max_parallel": TASKS_OF_A_RUN}
        )
        self.template = factories.make_run(self.workstream, started=True)
        self.admin = superuser()
        self.admin.execute(minimal.TABLES)  # type: ignore[arg-type]
        self.admin.execute(f"GRANT ALL ON bench_task, bench_attempt, bench_event, bench_worker TO {embedded.ROLE}")  # type: ignore[arg-type]
        self.admin.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {embedded.ROLE}")  # type: ignore[arg-type]

    def worker(self, **fields: Any) -> Worker:
        """An idle worker of the key."""
        return factories.make_worker(api_key=ApiKey.objects.get(pk=self.key.row.pk), **fields)

    def queue(self, size: int) -> None:
        """See that `size` tasks are queued, here and in the baseline's table; ten to a run, of mixed scores."""
        missing = size - Task.objects.filter(state="queued").count()
        runs = -(-missing // TASKS_OF_A_RUN)
        if runs > 0:
            at = str(to_uuid(self.template.pk))
            self.admin.execute("CREATE TEMP TABLE made (n int, run uuid)")
            self.admin.execute("INSERT INTO made SELECT n, uuidv7() FROM generate_series(1, %s) n", [runs])
            self.admin.execute(
                """INSERT INTO pipeline_run SELECT (jsonb_populate_record(r, jsonb_build_object('id', made.run))).*
                FROM pipeline_run r, made WHERE r.id = %s""",
                [at],
            )
            self.admin.execute(
                """INSERT INTO pipeline_task SELECT (jsonb_populate_record(t, jsonb_build_object(
                    'id', uuidv7(), 'run_id', made.run, 'score', 1 + (random() * 1000)::int))).*
                FROM made, pipeline_task t WHERE t.run_id = %s""",
                [at],
            )
            self.admin.execute("DROP TABLE made")
        (known,) = self.admin.execute("SELECT count(*) FROM bench_task WHERE state = 'queued'").fetchone() or (0,)
        if known < size:
            self.admin.execute(
                """INSERT INTO bench_task (id, state, score, sequence, spec)
                SELECT uuidv7(), 'queued', 1 + (random() * 1000)::int, 1 + n %% 10, t.spec
                FROM generate_series(1, %s) n, (SELECT spec FROM pipeline_task WHERE run_id = %s LIMIT 1) t""",
                [size - known, str(to_uuid(self.template.pk))],
            )
        self.admin.execute("VACUUM ANALYZE pipeline_task, pipeline_run, bench_task")

    def raw(self) -> psycopg.Connection[Any]:
        """A bare connection as the product's role."""
        return psycopg.connect(
            host=settings.DATABASES["default"]["HOST"],
            port=5432,
            user=embedded.ROLE,
            dbname=embedded.DATABASE,
            autocommit=True,
        )


def idempotency() -> dict[str, str]:
    """The header that the agent program sends with every POST."""
    return {"IDEMPOTENCY_KEY": f"bench-{next(_numbers)}"}


# -- claim ---------------------------------------------------------------------------------------------------------


def _end(lease: Lease) -> None:
    with transaction.atomic():
        claims.complete(lease, generation=lease.generation, by=claims.actor(lease.worker, lease.generation))


@bench("claim", goal="P3: ≤ 4 ms CPU, the same at every size (± 20 %)", sizes=(1_000, 10_000, 100_000), smoke=100)
def claim(size: int) -> Comparison:
    """POST /workers/{id}/claim/ by a worker that has just ended its last task."""
    house = House.one()
    house.queue(size)
    workers = cycle([house.worker() for _n in range(4)])

    def idle() -> Worker:
        worker = next(workers)
        lease = Lease.objects.live().select_related("worker").filter(worker=worker).first()
        if lease is not None:
            _end(lease)
        return worker

    def take(worker: Worker) -> None:
        document = house.web.post(
            f"/api/v1/workers/{worker.pk}/claim/", {"capabilities": [], "wait_seconds": 0}, **idempotency()
        )
        assert document is not None, "nothing was there to claim"

    raw = house.raw()
    someone = str(uuid.uuid4())
    return Comparison(
        Operation("signalbox", take, idle),
        [
            Operation("minimal Django view", lambda _g: house.lean.post("/claim/", {"worker": someone})),
            Operation("raw psycopg", lambda _g: raw.execute(minimal.CLAIM, {"worker": someone}).fetchone()),
        ],
        calls=100,
        note="Ours also writes lease, request, prompt, routing decision, stored answer and a chained event for each; "
        "the baselines write task, attempt and one plain event.",
    )


# -- complete ------------------------------------------------------------------------------------------------------


@bench("complete", goal="P4: ≤ 6 ms CPU with the run's advance", sizes=(1_000, 10_000), smoke=100)
def complete(size: int) -> Comparison:
    """POST /leases/{id}/complete/, then the reactions to what it recorded: the run advances."""
    house = House.one()
    house.queue(size)
    worker = house.worker()
    events.react_to_due(limit=100_000)

    def busy() -> Lease:
        document = claims.claim(Worker.objects.select_related("api_key").get(pk=worker.pk), capabilities=[])
        assert document is not None, "nothing was there to claim"
        return Lease.objects.select_related("task").get(pk=document["lease"]["id"])

    def end(lease: Lease) -> None:
        body = {"generation": lease.generation, "exit_code": 0, "duration_seconds": "1.5", "output_tail": "done\n"}
        house.web.post(f"/api/v1/leases/{lease.pk}/complete/", body, **idempotency())
        while events.react_to_due():
            pass

    raw = house.raw()

    def taken() -> dict[str, Any]:
        pk, generation, _until, _spec = raw.execute(minimal.CLAIM, {"worker": str(uuid.uuid4())}).fetchone() or ()
        return {"task": str(pk), "generation": generation}

    return Comparison(
        Operation("signalbox", end, busy),
        [
            Operation("minimal Django view", lambda given: house.lean.post("/complete/", given), taken),
            Operation("raw psycopg", lambda given: raw.execute(minimal.COMPLETE, given).fetchone(), taken),
        ],
        calls=60,
        note="Ours includes every reaction to the completion (advance of the run); the baselines write three rows.",
    )


@bench("complete-run-size", goal="P4: flat in the run's size", sizes=(10, 100, 1_000), smoke=10)
def complete_in_a_large_run(size: int) -> Comparison:
    """The advance alone, of a run with `size` tasks of which one was delivered."""
    house = House.one()
    specs = [factories.task_spec(f"task-{number}", **TASK) for number in range(min(size, 100))]
    workstream = factories.make_workstream(factories.make_phase(house.project), tasks=specs)
    run = factories.make_run(workstream, started=True)
    if size > len(specs):
        house.admin.execute(
            """INSERT INTO pipeline_task SELECT (jsonb_populate_record(t, jsonb_build_object(
                'id', uuidv7(), 'key', t.key || '-' || n, 'sequence', 1000 + n))).*
            FROM generate_series(1, %s) n, pipeline_task t WHERE t.run_id = %s AND t.sequence = 1""",
            [size - len(specs), str(to_uuid(run.pk))],
        )
    house.admin.execute("VACUUM ANALYZE pipeline_task, pipeline_run")
    raw = house.raw()
    at = to_uuid(run.pk)
    return Comparison(
        Operation("signalbox: advance", lambda _g: orchestrate.advance(run.pk)),
        [
            Operation(
                "raw: states of the run",
                lambda _g: raw.execute(
                    "SELECT state, count(*) FROM pipeline_task WHERE run_id = %s GROUP BY 1", [at]
                ).fetchall(),
            )
        ],
        calls=60,
        note="A pass over a run in which nothing is due.",
    )


# -- heartbeat -----------------------------------------------------------------------------------------------------


def _leased(house: House, number: int) -> list[Lease]:
    house.queue(number + 100)
    return [
        Lease.objects.get(pk=(claims.claim(house.worker(), capabilities=[]) or {})["lease"]["id"])
        for _n in range(number)
    ]


def _baseline_workers(house: House, leases: list[Lease]) -> list[tuple[str, int]]:
    rows = [(str(to_uuid(lease.worker_id)), lease.generation) for lease in leases]
    for pk, generation in rows:
        house.admin.execute(
            "INSERT INTO bench_worker (id, generation) VALUES (%s, %s) ON CONFLICT DO NOTHING", [pk, generation]
        )
    return rows


@bench("heartbeat", goal="P1: ≥ 60 % of the minimal view's req/s, ≤ 1.5 ms CPU", sizes=(100,), smoke=8)
def heartbeat(size: int) -> Comparison:
    """POST /workers/{id}/heartbeat/ of `size` busy workers in turn, four callers at once."""
    house = House.one()
    leases = _leased(house, size)
    rows = cycle(_baseline_workers(house, leases))
    turn = cycle(leases)
    body = {"process_alive": True, "activity": "tool"} if "tool" in Worker.Activity.values else {"process_alive": True}

    def ours(_given: Any) -> None:
        lease = next(turn)
        quoted = {"id": lease.pk, "generation": lease.generation, "progress": {"text": "writing"}}
        house.web.post(f"/api/v1/workers/{lease.worker_id}/heartbeat/", {**body, "leases": [quoted]})

    def lean(_given: Any) -> None:
        pk, generation = next(rows)
        house.lean.post("/beat/", {"id": pk, "generation": generation})

    raw = house.raw()
    return Comparison(
        Operation("signalbox", ours),
        [
            Operation("minimal Django view", lean),
            Operation("raw psycopg, one by one", lambda _g: raw.execute(minimal.BEAT, list(next(rows))).fetchone()),
        ],
        calls=400,
        threads=4,
        note="The raw line shares one connection between four callers.",
    )


@bench("heartbeats-100", goal="P2: ≥ 40,000 workers/s", sizes=(100,), smoke=10)
def heartbeats(size: int) -> Comparison:
    """POST /workers/heartbeats/ for `size` busy workers in one call; figures are for each worker."""
    house = House.one()
    leases = _leased(house, size)
    rows = _baseline_workers(house, leases)
    told = {
        "workers": [
            {"id": lease.worker_id, "leases": [{"id": lease.pk, "generation": lease.generation, "progress": {}}]}
            for lease in leases
        ]
    }
    lean = {"workers": [{"id": pk, "generation": generation} for pk, generation in rows]}
    raw = house.raw()
    names = [pk for pk, _generation in rows]
    return Comparison(
        Operation("signalbox", lambda _g: house.web.post("/api/v1/workers/heartbeats/", told), items=size),
        [
            Operation("minimal Django view", lambda _g: house.lean.post("/beats/", lean), items=size),
            Operation("raw psycopg", lambda _g: raw.execute(minimal.BEATS, [names]).fetchall(), items=size),
        ],
        calls=20,
    )
