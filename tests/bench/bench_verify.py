"""Verifying the audit chain (performance.md P14), and sealing it, beside hashing the same rows and nothing else."""

import os
from hashlib import sha256
from typing import Any

from django.db import connection, transaction

from ledger import audit, proof, sealing
from ledger.models import Seal
from pipeline import chain, events
from pipeline.ids import new_id, to_uuid
from pipeline.models import Event, EventStream
from tests.bench.harness import Comparison, Operation, bench

EVENTS_OF_A_SUBJECT = 6
GOAL = "≥ 150,000 rows/s on 1,000,000 rows"


@bench("verify-ledger", goal=GOAL, sizes=(100_000, 1_000_000), smoke=2_000)
def verify(size: int) -> Comparison:
    """Every row's columns, text and hash, every stream, seal and anchor; figures are for each row."""
    fill(size)
    sealing.seal()
    jobs = os.cpu_count() or 1

    def ours(_given: Any, jobs: int = jobs) -> None:
        report = audit.verify(jobs=jobs)
        if report.problems or report.events < size:
            raise RuntimeError(f"{report.events} events, {report.problems}")

    return Comparison(
        Operation(f"signalbox, {jobs} processes", ours, items=size),
        [
            Operation("signalbox, 1 process", lambda given: ours(given, 1), items=size),
            Operation("one sha256 of each text", hash_only, items=size),
        ],
        calls=1,
        note="The baseline reads the texts and hashes them; it compares no column, stream, seal or anchor.",
    )


def hash_only(_given: Any) -> None:
    """What reading and hashing alone takes."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        with cursor.copy("COPY (SELECT prev_hash, stream_seq, canonical FROM pipeline_event) TO STDOUT") as lines:
            for line in lines:
                sha256(line).hexdigest()


def fill(size: int) -> None:
    """Make the log `size` events long: six about each task, chained as the trigger chains them, but in bulk."""
    names = [*proof.FACTS, "canonical", "stream_seq", "prev_hash", "hash", "seq", "xid", "attempts", "handled_at"]
    at = Event.objects.count()
    project, workstream, worker = new_id(), new_id(), new_id()
    heads = []
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = 0")
        cursor.execute("ALTER TABLE pipeline_event DISABLE TRIGGER USER")
        cursor.execute("SELECT pg_current_xact_id()::text, nextval('pipeline_event_seq')")
        xid, seq = cursor.fetchone()
        with cursor.copy(f"COPY pipeline_event ({', '.join(names)}) FROM STDIN") as rows:
            while at < size:
                task, run, prev = new_id(), new_id(), ""
                for number in range(1, EVENTS_OF_A_SUBJECT + 1):
                    facts = _facts(task, run, number, project, workstream, worker)
                    text = chain.canonical(facts)
                    own = chain.link_hash(prev, number, text)
                    values = [_column(name, facts[name]) for name in proof.FACTS]
                    rows.write_row([*values, text, number, prev, own, seq, xid, 0, "now"])
                    prev, at, seq = own, at + 1, seq + 1
                heads.append(EventStream(subject_id=task, subject_type="task", seq=EVENTS_OF_A_SUBJECT, hash=prev))
        cursor.execute("ALTER TABLE pipeline_event ENABLE TRIGGER USER")
        cursor.execute("SELECT setval('pipeline_event_seq', %s)", [seq])
        EventStream.objects.bulk_create(heads, batch_size=5_000)
        cursor.execute("ANALYZE pipeline_event")


def _facts(task: str, run: str, number: int, project: str, workstream: str, worker: str) -> dict[str, Any]:
    return {
        **dict.fromkeys(events.CORRELATION),
        "id": new_id(), "kind": "task.progress", "channel": "task_events", "severity": "info",
        "actor_kind": "worker", "actor_id": worker, "actor_name": "worker-1", "on_behalf_of": "",
        "request_id": new_id(), "subject_type": "task", "subject_id": task,
        "before": {"state": "queued"}, "after": {"state": "running", "count_attempts": number},
        "reason": "", "message": f"Step {number} of the task", "data": {"attempt": number, "lease": new_id()},
        "project_id": project, "workstream_id": workstream, "run_id": run, "task_id": task, "worker_id": worker,
    }  # fmt: skip


def _column(name: str, value: Any) -> Any:
    """The value as COPY takes it."""
    if isinstance(value, dict):
        return chain.canonical(value)
    if value is not None and name.endswith("id") and name not in ("actor_id", "request_id", "xid"):
        return str(to_uuid(value))
    return value


@bench("seal", goal="100,000 rows in under 2 s", sizes=(100_000,), smoke=2_000)
def seal(size: int) -> Comparison:
    """Sealing and anchoring a backlog; undone after each call. Figures are for each row."""
    fill(size)
    sealing.seal()

    def again() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            for table in ("ledger_seal", "pipeline_event"):
                cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
            cursor.execute("DELETE FROM ledger_seal")
            for table in ("ledger_seal", "pipeline_event"):
                cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")
        sealing.audit_repository().rename(sealing.audit_repository().with_name(f"audit-{new_id()}.git"))

    def ours(_given: Any) -> None:
        if not sealing.seal() or Seal.objects.filter(anchor="").exists():
            raise RuntimeError("nothing was sealed")

    return Comparison(Operation("signalbox", ours, again, items=size), [], calls=3)
