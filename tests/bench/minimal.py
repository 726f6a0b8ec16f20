"""The baseline: Django views as lean as they can be, with the SQL that the operation cannot do without."""

import json
from typing import Any

from django.db import connection, transaction
from django.http import HttpRequest, JsonResponse
from django.urls import path

from pipeline.models.key import hash_secret

# One copy of what the operations need, beside the product's tables: no trigger, no foreign key, the same index for the
# claim.
TABLES = """
CREATE TABLE IF NOT EXISTS bench_task (
    id uuid PRIMARY KEY, state text NOT NULL, score int NOT NULL, sequence int NOT NULL, spec jsonb NOT NULL,
    generation int NOT NULL DEFAULT 0, worker_id uuid, lease_until timestamptz) WITH (fillfactor = 80);
CREATE INDEX IF NOT EXISTS bench_claim ON bench_task (score DESC, sequence, id) WHERE state = 'queued';
CREATE TABLE IF NOT EXISTS bench_attempt (
    id uuid PRIMARY KEY DEFAULT uuidv7(), task_id uuid NOT NULL, worker_id uuid NOT NULL, generation int NOT NULL,
    state text NOT NULL DEFAULT 'running', started_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS bench_event (
    id uuid PRIMARY KEY, seq bigserial, kind text NOT NULL, actor text NOT NULL, subject_id uuid NOT NULL,
    data jsonb NOT NULL, created_at timestamptz NOT NULL DEFAULT clock_timestamp());
CREATE TABLE IF NOT EXISTS bench_worker (
    id uuid PRIMARY KEY, generation int NOT NULL, seen_at timestamptz NOT NULL DEFAULT now(),
    lease_until timestamptz NOT NULL DEFAULT now()) WITH (fillfactor = 70);
"""

BEAT = """
UPDATE bench_worker SET seen_at = clock_timestamp(), lease_until = clock_timestamp() + interval '60 s'
WHERE id = %s AND generation = %s RETURNING lease_until
"""

BEATS = """
UPDATE bench_worker SET seen_at = clock_timestamp(), lease_until = clock_timestamp() + interval '60 s'
WHERE id = ANY(%s::uuid[]) RETURNING id, lease_until
"""

CLAIM = """
WITH taken AS (
    UPDATE bench_task SET state = 'running', generation = generation + 1, worker_id = %(worker)s,
        lease_until = clock_timestamp() + interval '60 s'
    WHERE id = (SELECT id FROM bench_task WHERE state = 'queued' ORDER BY score DESC, sequence, id
                LIMIT 1 FOR UPDATE SKIP LOCKED)
    RETURNING id, generation, lease_until, spec
), attempt AS (
    INSERT INTO bench_attempt (task_id, worker_id, generation) SELECT id, %(worker)s, generation FROM taken
), event AS (
    INSERT INTO bench_event (id, kind, actor, subject_id, data)
    SELECT uuidv7(), 'task.started', 'worker', id, jsonb_build_object('generation', generation) FROM taken
)
SELECT id, generation, lease_until, spec FROM taken
"""

COMPLETE = """
WITH done AS (
    UPDATE bench_task SET state = 'completed', lease_until = NULL
    WHERE id = %(task)s AND generation = %(generation)s AND state = 'running' RETURNING id
), attempt AS (
    UPDATE bench_attempt SET state = 'success' WHERE task_id IN (SELECT id FROM done) AND state = 'running'
), event AS (
    INSERT INTO bench_event (id, kind, actor, subject_id, data)
    SELECT uuidv7(), 'task.completed', 'worker', id, '{}' FROM done
)
SELECT id FROM done
"""

INGEST = """
INSERT INTO bench_event (id, kind, actor, subject_id, data)
SELECT * FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::uuid[], %s::jsonb[])
"""


def _authenticate(cursor: Any, request: HttpRequest) -> None:
    """The same key, looked up the same way. Raises PermissionError."""
    prefix, secret = request.headers["Authorization"].removeprefix("Bearer sbx_").split("_", 1)
    cursor.execute("SELECT secret_hash FROM pipeline_apikey WHERE prefix = %s AND revoked_at IS NULL", [prefix])
    if cursor.fetchone() != (hash_secret(secret),):
        raise PermissionError


def beat(request: HttpRequest) -> JsonResponse:
    """One heartbeat."""
    told = json.loads(request.body)
    with connection.cursor() as cursor:
        _authenticate(cursor, request)
        cursor.execute(BEAT, [told["id"], told["generation"]])
        (until,) = cursor.fetchone()
    return JsonResponse({"directive": "continue", "expires_at": until})


def beats(request: HttpRequest) -> JsonResponse:
    """Many heartbeats in one statement."""
    told = json.loads(request.body)
    with connection.cursor() as cursor:
        _authenticate(cursor, request)
        cursor.execute(BEATS, [[one["id"] for one in told["workers"]]])
        rows = cursor.fetchall()
    return JsonResponse({"answers": [{"id": str(pk), "expires_at": until} for pk, until in rows]})


def claim(request: HttpRequest) -> JsonResponse:
    """The next task: one statement that takes it, writes an attempt and one event."""
    told = json.loads(request.body)
    with connection.cursor() as cursor:
        _authenticate(cursor, request)
        cursor.execute(CLAIM, {"worker": told["worker"]})
        pk, generation, until, spec = cursor.fetchone()
    return JsonResponse({"id": str(pk), "generation": generation, "expires_at": until, "spec": spec})


def complete(request: HttpRequest) -> JsonResponse:
    """The end of a task: one statement that completes it and its attempt, and writes one event."""
    told = json.loads(request.body)
    with connection.cursor() as cursor:
        _authenticate(cursor, request)
        cursor.execute(COMPLETE, told)
        done = cursor.fetchone()
    return JsonResponse({"directive": "continue" if done else "stop"})


def ingest(request: HttpRequest) -> JsonResponse:
    rows = json.loads(request.body)["events"]
    with transaction.atomic(), connection.cursor() as cursor:
        _authenticate(cursor, request)
        insert_events(cursor, rows)
    return JsonResponse({"accepted": len(rows)})


def insert_events(cursor: Any, rows: list[dict[str, Any]]) -> None:
    """The batch by one statement."""
    columns = [[row[name] for row in rows] for name in ("id", "kind", "actor", "subject_id")]
    cursor.execute(INGEST, [*columns, [json.dumps(row["data"]) for row in rows]])


urlpatterns = [
    path("beat/", beat),
    path("beats/", beats),
    path("claim/", claim),
    path("complete/", complete),
    path("ingest/", ingest),
]
