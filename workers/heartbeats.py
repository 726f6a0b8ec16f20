"""The heartbeat: one statement sets the clocks, renews the lease and fetches what the answer needs (domain.md §3.2)."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from django.conf import settings
from django.db import connection, transaction

from pipeline import events
from pipeline.ids import is_id, to_uuid
from pipeline.refusals import InvalidField, NotFound
from workers.claims import actor
from workers.models import Lease, StaleClaim, Worker, WorkerFinished

# One statement: the worker's clocks, the lease's renewal, and what the answer needs. A heartbeat makes no event.
_BEAT = """
WITH beat AS (
    UPDATE workers_worker SET
        transport_seen_at = clock_timestamp(),
        process_seen_at = CASE WHEN %(process_alive)s THEN clock_timestamp() ELSE process_seen_at END,
        progress_at = CASE WHEN %(progress)s THEN clock_timestamp() ELSE progress_at END,
        activity_since = CASE WHEN activity IS DISTINCT FROM %(activity)s
            THEN clock_timestamp() ELSE activity_since END,
        activity = %(activity)s
    WHERE id = %(worker)s AND api_key_id IS NOT DISTINCT FROM %(key)s AND state IN ('idle', 'busy', 'paused')
    RETURNING id, state, shutdown_mode,
        COALESCE((config->>'timeout_seconds')::int, %(timeout)s) AS timeout_seconds
), renewed AS (
    UPDATE workers_lease l SET
        renewed_at = clock_timestamp(),
        expires_at = LEAST(clock_timestamp() + make_interval(secs => beat.timeout_seconds), l.deadline_at),
        stop_acknowledged_at = CASE WHEN %(stopping)s AND l.stop_requested_at IS NOT NULL
            THEN COALESCE(l.stop_acknowledged_at, clock_timestamp()) ELSE l.stop_acknowledged_at END
    FROM beat
    WHERE l.id = %(lease)s AND l.worker_id = beat.id AND l.generation = %(generation)s AND l.ended_at IS NULL
    RETURNING l.id, l.expires_at, l.stop_requested_at, l.stop_acknowledged_at, l.task_id
)
SELECT beat.state, beat.shutdown_mode, renewed.id, renewed.expires_at, renewed.stop_requested_at,
    CASE WHEN renewed.id IS NULL THEN NULL ELSE (
        SELECT string_agg(DISTINCT CASE WHEN h.scope_kind IN ('installation', 'project') THEN 'stop'
            WHEN h.kind IN ('manual', 'policy', 'approval') THEN 'pause' END, ',')
        FROM pipeline_task t JOIN pipeline_run r ON r.id = t.run_id JOIN pipeline_hold h ON h.state = 'active' AND (
            h.scope_kind = 'installation'
            OR (h.scope_kind = 'project' AND h.scope_id = r.project_id::text)
            OR (h.scope_kind = 'workstream' AND h.scope_id = r.workstream_id::text)
            OR (h.scope_kind = 'run' AND h.scope_id = r.id::text)
            OR (h.scope_kind = 'task' AND h.scope_id = t.id::text))
        WHERE t.id = renewed.task_id) END
FROM beat LEFT JOIN renewed ON true
"""


def heartbeat(
    worker_id: str,
    *,
    api_key_id: str | None,
    process_alive: bool = True,
    activity: str = "unknown",
    leases: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Set the worker's clocks, renew its live lease, answer a directive: stop, drain, pause or continue.

    Raises NotFound `worker_not_found`, WorkerFinished (410), and StaleClaim when the lease quoted is not live or not
    of this generation: then nothing but the worker's clocks is written.
    """
    if activity not in Worker.Activity.values:
        raise InvalidField("activity", f"one of {', '.join(Worker.Activity.values)}, not “{activity}”")
    if len(leases) > 1:
        raise InvalidField("leases", "a worker has one live lease")
    quoted = leases[0] if leases else None
    lease_id = str(quoted.get("id", "")) if quoted else ""
    generation = quoted.get("generation") if quoted else None
    if not is_id(worker_id):
        raise NotFound.of("worker", worker_id)
    if quoted and (not is_id(lease_id) or not isinstance(generation, int) or isinstance(generation, bool)):
        raise InvalidField("leases", "each names its id and generation")
    stopping = bool(quoted and quoted.get("stopping"))
    # An acknowledged stop commits with the event that tells it; every other beat is one statement by itself.
    with transaction.atomic() if stopping else nullcontext():
        with connection.cursor() as cursor:
            cursor.execute(
                _BEAT,
                {
                    "worker": to_uuid(worker_id),
                    "key": to_uuid(api_key_id) if api_key_id else None,
                    "process_alive": process_alive,
                    "progress": bool(quoted and quoted.get("progress")),
                    "activity": activity,
                    "timeout": settings.SIGNALBOX_LEASE_SECONDS,
                    "lease": to_uuid(lease_id) if quoted else None,
                    "generation": generation,
                    "stopping": stopping,
                },
            )
            row = cursor.fetchone()
        if stopping and row is not None and row[4] is not None:
            _note_stopping(lease_id)
    if row is None:
        worker = Worker.objects.filter(pk=worker_id, api_key=api_key_id).first()
        if worker is None:
            raise NotFound.of("worker", worker_id)
        raise WorkerFinished(worker)
    state, shutdown_mode, renewed, expires_at, stop_requested_at, held = row
    if quoted and renewed is None:
        stale = Lease.objects.filter(pk=lease_id, worker=worker_id).first()
        raise StaleClaim(generation, stale, actor(Worker.objects.get(pk=worker_id)))
    asked = set((held or "").split(","))
    if stop_requested_at is not None or shutdown_mode == "now" or "stop" in asked:
        directive = "stop"
    elif shutdown_mode == "drain":
        directive = "drain"
    elif state == Worker.State.PAUSED or "pause" in asked:
        directive = "pause"
    else:
        directive = "continue"
    return {
        "directive": directive,
        "leases": [{"id": lease_id, "expires_at": events.plain(expires_at)}] if quoted else [],
    }


def _note_stopping(lease_id: str) -> None:
    """Record, once, that the worker acknowledged the stop. The caller's transaction has locked the lease."""
    lease = Lease.objects.get(pk=lease_id)
    told = events.Event.objects.filter(subject_id=lease_id, kind="lease.stopping").exists()
    if lease.stop_acknowledged_at and not told:
        events.record(
            "lease.stopping",
            lease,
            by=actor(lease.worker, lease.generation),
            before={"stop_acknowledged_at": None},
            after={"stop_acknowledged_at": lease.stop_acknowledged_at},
        )
