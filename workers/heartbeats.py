"""The heartbeat: one statement sets the clocks, renews the lease and fetches what the answer needs (domain.md §3.2).

One worker's, or those of many at once; by the endpoints, which have checked the key, or by the hot path, whose
statement checks it with the rest.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db import transaction

from pipeline import events, prepared
from pipeline.clock import db_now
from pipeline.ids import from_uuid, is_id, to_uuid
from pipeline.refusals import InvalidField, NotFound, Refused
from workers.claims import actor
from workers.models import Lease, StaleClaim, Worker, WorkerFinished

ACTIVITIES = frozenset(Worker.Activity.values)

# One statement: the workers' clocks, the leases' renewal, and what the answers need. A heartbeat makes no event.
# Only people's kill switch stops what runs, and only people's holds pause it: a hold for money, a quota or a question
# keeps work from being claimed, and what a budget wants stopped it asks of the lease itself.
_STATEMENT = """
WITH beating AS ({beating}), beat AS (
    UPDATE workers_worker w SET
        transport_seen_at = clock_timestamp(),
        process_seen_at = CASE WHEN b.process_alive THEN clock_timestamp() ELSE w.process_seen_at END,
        progress_at = CASE WHEN b.progress THEN clock_timestamp() ELSE w.progress_at END,
        activity_since = CASE WHEN w.activity IS DISTINCT FROM b.activity
            THEN clock_timestamp() ELSE w.activity_since END,
        activity = b.activity
    FROM beating b
    WHERE w.id = b.worker AND w.api_key_id IS NOT DISTINCT FROM b.key AND w.state IN ('idle', 'busy', 'paused')
    RETURNING w.id, w.state, w.shutdown_mode, b.lease, b.generation, b.stopping,
        COALESCE((w.config->>'timeout_seconds')::int, {timeout}) AS timeout_seconds
), renewed AS (
    UPDATE workers_lease l SET
        renewed_at = clock_timestamp(),
        expires_at = LEAST(clock_timestamp() + make_interval(secs => beat.timeout_seconds), l.deadline_at),
        stop_acknowledged_at = CASE WHEN beat.stopping AND l.stop_requested_at IS NOT NULL
            THEN COALESCE(l.stop_acknowledged_at, clock_timestamp()) ELSE l.stop_acknowledged_at END
    FROM beat
    WHERE l.id = beat.lease AND l.worker_id = beat.id AND l.generation = beat.generation AND l.ended_at IS NULL
    RETURNING l.id, l.worker_id, l.expires_at, l.stop_requested_at, l.task_id
)
SELECT beat.id, beat.state, beat.shutdown_mode, renewed.id, renewed.expires_at, renewed.stop_requested_at,
    CASE WHEN renewed.id IS NOT NULL AND EXISTS (SELECT 1 FROM pipeline_hold WHERE state = 'active') THEN (
        SELECT string_agg(DISTINCT CASE
            WHEN h.kind = 'manual' AND h.scope_kind IN ('installation', 'project') THEN 'stop'
            WHEN h.kind IN ('manual', 'policy', 'approval') THEN 'pause' END, ',')
        FROM pipeline_task t JOIN pipeline_run r ON r.id = t.run_id JOIN pipeline_hold h ON h.state = 'active' AND (
            h.scope_kind = 'installation'
            OR (h.scope_kind = 'project' AND h.scope_id = r.project_id::text)
            OR (h.scope_kind = 'workstream' AND h.scope_id = r.workstream_id::text)
            OR (h.scope_kind = 'run' AND h.scope_id = r.id::text)
            OR (h.scope_kind = 'task' AND h.scope_id = t.id::text)
            OR (h.scope_kind = 'worker' AND h.scope_id = renewed.worker_id::text))
        WHERE t.id = renewed.task_id) END
FROM beat LEFT JOIN renewed ON renewed.worker_id = beat.id
"""
_TIMEOUT = "%(timeout)s::int"
_ONE = """
    SELECT %(worker)s::uuid AS worker, {key} AS key, %(process_alive)s::boolean AS process_alive,
        %(progress)s::boolean AS progress, %(activity)s::text AS activity, %(lease)s::uuid AS lease,
        %(generation)s::int AS generation, %(stopping)s::boolean AS stopping
"""
# The rows are locked in their order, so that two callers with the same workers never wait for each other.
_MANY = """
    SELECT b.*, {key} AS key
    FROM unnest(%(worker)s::uuid[], %(process_alive)s::boolean[], %(progress)s::boolean[], %(activity)s::text[],
        %(lease)s::uuid[], %(generation)s::int[], %(stopping)s::boolean[])
        AS b (worker, process_alive, progress, activity, lease, generation, stopping)
    JOIN workers_worker w ON w.id = b.worker {join} ORDER BY w.id FOR NO KEY UPDATE OF w
"""
# A key whose last use has to be noted takes the long way, which notes it.
GOOD_KEY = """
    k.prefix = %(prefix)s AND k.secret_hash = %(secret_hash)s AND k.role = 'worker' AND k.revoked_at IS NULL
    AND k.expires_at > clock_timestamp() AND k.last_used_at > clock_timestamp() - interval '1 minute'
"""
_BEAT = _STATEMENT.format(beating=_ONE.format(key="%(key)s::uuid"), timeout=_TIMEOUT)
_BEATS = _STATEMENT.format(beating=_MANY.format(key="%(key)s::uuid", join=""), timeout=_TIMEOUT)
_BEAT_BY_KEY = _STATEMENT.format(
    beating=f"{_ONE.format(key='k.id')} FROM pipeline_apikey k WHERE {GOOD_KEY}", timeout=_TIMEOUT
)
_BEATS_BY_KEY = _STATEMENT.format(
    beating=_MANY.format(key="k.id", join=f"JOIN pipeline_apikey k ON {GOOD_KEY}"), timeout=_TIMEOUT
)


class Beat(NamedTuple):
    """What one worker says of itself, checked."""

    worker: str
    process_alive: bool
    activity: str
    lease: str | None
    generation: int | None
    progress: bool
    stopping: bool

    def columns(self) -> dict[str, Any]:
        """As the statement takes it."""
        told = self._asdict()
        return {**told, "worker": to_uuid(self.worker), "lease": to_uuid(self.lease) if self.lease else None}


def read(
    worker_id: str,
    *,
    process_alive: bool = True,
    activity: str = "unknown",
    leases: Sequence[Mapping[str, Any]] = (),
) -> Beat:
    """A heartbeat as it was told. Raises InvalidField, and NotFound `worker_not_found` for an id that is none."""
    if activity not in ACTIVITIES:
        raise InvalidField("activity", f"one of {', '.join(Worker.Activity.values)}, not “{activity}”")
    if len(leases) > 1:
        raise InvalidField("leases", "a worker has one live lease")
    if not is_id(worker_id):
        raise NotFound.of("worker", worker_id)
    if not leases:
        return Beat(worker_id, process_alive, activity, None, None, False, False)
    [quoted] = leases
    lease, generation = str(quoted.get("id", "")), quoted.get("generation")
    if not is_id(lease) or not isinstance(generation, int) or isinstance(generation, bool):
        raise InvalidField("leases", "each names its id and generation")
    return Beat(
        worker_id,
        process_alive,
        activity,
        lease,
        generation,
        bool(quoted.get("progress")),
        bool(quoted.get("stopping")),
    )


def heartbeat(worker_id: str, *, api_key_id: str | None, **told: Any) -> dict[str, Any]:
    """Set the worker's clocks, renew its live lease, answer a directive: stop, drain, pause or continue.

    `told` is what `read` takes. Raises NotFound `worker_not_found`, WorkerFinished (410), InvalidField, and StaleClaim
    when the lease quoted is not live or not of this generation: then nothing but the worker's clocks is written.
    """
    return _beat(read(worker_id, **told), api_key_id)


def _beat(beat: Beat, api_key_id: str | None) -> dict[str, Any]:
    # An acknowledged stop commits with the event that tells it; every other beat is one statement by itself.
    with transaction.atomic() if beat.stopping else nullcontext():
        key = to_uuid(api_key_id) if api_key_id else None
        rows = prepared.execute(_BEAT, {**beat.columns(), "key": key, "timeout": settings.SIGNALBOX_LEASE_SECONDS})
        if beat.stopping and rows and rows[0][5] is not None:
            _note_stopping(str(beat.lease))
    if not rows:
        worker = Worker.objects.filter(pk=beat.worker, api_key=api_key_id).first()
        if worker is None:
            raise NotFound.of("worker", beat.worker)
        raise WorkerFinished(worker)
    if beat.lease and rows[0][3] is None:
        stale = Lease.objects.filter(pk=beat.lease, worker=beat.worker).select_related("worker").first()
        if stale is not None and _crossed(beat, stale):
            raise StaleClaim(beat.generation)
        raise StaleClaim(beat.generation, stale, actor(Worker.objects.get(pk=beat.worker)))
    return _answer(beat, rows[0])


def _crossed(beat: Beat, lease: Lease) -> bool:
    """Whether the beat was under way while its own worker ended the lease: refused as any other, and no alarm."""
    if lease.ended_at is None or lease.generation != beat.generation or lease.end_cause in Lease.LOST:
        return False
    return db_now() - lease.ended_at <= timedelta(seconds=lease.worker.timeout_seconds)


def heartbeats(told: Iterable[Mapping[str, Any]], *, api_key_id: str | None) -> list[dict[str, Any]]:
    """The answers to many heartbeats, each with its worker's `id`, in their order; a refusal of one is its answer's
    `code` and `detail` and concerns no other. One statement, and more for those that are refused or stop.
    """
    beats: dict[str, Beat] = {}
    given = [dict(one) for one in told]
    for one in given:
        try:
            beat = read(one["id"], **{name: value for name, value in one.items() if name != "id"})
        except Refused:
            continue
        if not beat.stopping:
            beats.setdefault(beat.worker, beat)
    rows = _send(_BEATS, list(beats.values()), key=to_uuid(api_key_id) if api_key_id else None)
    answers = []
    for one in given:
        known = beats.pop(one["id"], None)
        row = rows.get(one["id"])
        if known is not None and row is not None and _is_plain(known, row):
            answers.append({"id": one["id"], **_answer(known, row)})
        else:
            answers.append(_alone(one, api_key_id))
    return answers


def _alone(one: Mapping[str, Any], api_key_id: str | None) -> dict[str, Any]:
    """One of many that is not plain: repeated by itself, which is harmless, for its refusal."""
    pk = one["id"]
    try:
        return {
            "id": pk,
            **heartbeat(api_key_id=api_key_id, worker_id=pk, **{k: v for k, v in one.items() if k != "id"}),
        }
    except Refused as refusal:
        if isinstance(refusal, StaleClaim):
            refusal.leave_trace()
        return {"id": pk, "code": refusal.code, "detail": str(refusal)}


def by_key(beat: Beat, *, prefix: str, secret_hash: str) -> dict[str, Any] | None:
    """The answer to a plain heartbeat of a worker of this key, which the statement checks; None for any other.

    Nothing but clocks is written then, which the same heartbeat sets again. One statement.
    """
    if beat.stopping:
        return None
    given = {"prefix": prefix, "secret_hash": secret_hash, "timeout": settings.SIGNALBOX_LEASE_SECONDS}
    rows = prepared.execute(_BEAT_BY_KEY, {**beat.columns(), **given})
    return _answer(beat, rows[0]) if rows and _is_plain(beat, rows[0]) else None


def many_by_key(beats: Sequence[Beat], *, prefix: str, secret_hash: str) -> list[dict[str, Any]] | None:
    """The answers to plain heartbeats of workers of this key, in their order; None when one of them is not plain."""
    if any(beat.stopping for beat in beats) or len({beat.worker for beat in beats}) < len(beats):
        return None
    rows = _send(_BEATS_BY_KEY, beats, prefix=prefix, secret_hash=secret_hash)
    if len(rows) < len(beats) or not all(_is_plain(beat, rows[beat.worker]) for beat in beats):
        return None
    return [{"id": beat.worker, **_answer(beat, rows[beat.worker])} for beat in beats]


def _send(statement: str, beats: Sequence[Beat], **given: Any) -> dict[str, Sequence[Any]]:
    """{worker: its record} of those that live and have this key."""
    if not beats:
        return {}
    told = [beat.columns() for beat in beats]
    columns = {name: [one[name] for one in told] for name in Beat._fields}
    rows = prepared.execute(statement, {**columns, **given, "timeout": settings.SIGNALBOX_LEASE_SECONDS})
    return {from_uuid(row[0]): row for row in rows}


def _is_plain(beat: Beat, row: Sequence[Any]) -> bool:
    return beat.lease is None or row[3] is not None


def _answer(beat: Beat, row: Sequence[Any]) -> dict[str, Any]:
    _pk, state, shutdown_mode, _renewed, expires_at, stop_requested_at, held = row
    asked = held.split(",") if held else ()
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
        "leases": [{"id": beat.lease, "expires_at": events.plain(expires_at)}] if beat.lease else [],
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
