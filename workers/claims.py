"""The hot path: claim, heartbeat, report (domain.md §3.1, §3.2)."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.db import connection, transaction
from django.db.models import CharField, Exists, Func, OuterRef, Q

from pipeline import admission, events
from pipeline.clock import ClockNow, db_now
from pipeline.crashpoints import crashpoint
from pipeline.ids import is_id, to_uuid
from pipeline.models import Hold, Run, StepAttempt, Task, Tool
from pipeline.models.hold import CLAIM_LOCK
from pipeline.questions import ask_facts
from pipeline.refusals import InvalidField, NotFound, Refused
from workers.models import Lease, StaleClaim, Worker, WorkerFinished

CANDIDATES = 20
LOOK_SECONDS = 0.5
MAX_WAIT_SECONDS = 30
DEADLINE_GRACE = timedelta(seconds=45)


def actor(worker: Worker, generation: int | None = None) -> events.Actor:
    """The worker as the one who caused a change, with its lease's generation where it holds one."""
    name = worker.name if generation is None else f"{worker.name} (generation {generation})"
    on_behalf_of = worker.api_key.name if worker.api_key_id else ""
    return events.Actor("worker", worker.pk, name, on_behalf_of=on_behalf_of)


# -- heartbeat ---------------------------------------------------------------------------------------------------

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
                "stopping": bool(quoted and quoted.get("stopping")),
            },
        )
        row = cursor.fetchone()
    if row is None:
        worker = Worker.objects.filter(pk=worker_id, api_key=api_key_id).first()
        if worker is None:
            raise NotFound.of("worker", worker_id)
        raise WorkerFinished(worker)
    state, shutdown_mode, renewed, expires_at, stop_requested_at, held = row
    if quoted and renewed is None:
        stale = Lease.objects.filter(pk=lease_id, worker=worker_id).first()
        raise StaleClaim(generation, stale, actor(Worker.objects.get(pk=worker_id)))
    if quoted and quoted.get("stopping") and stop_requested_at is not None:
        _note_stopping(lease_id)
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
    """Record, once, that the worker acknowledged the stop."""
    with transaction.atomic():
        lease = Lease.objects.select_for_update(no_key=True).get(pk=lease_id)
        told = events.Event.objects.filter(subject_id=lease_id, kind="lease.stopping").exists()
        if lease.stop_acknowledged_at and not told:
            events.record("lease.stopping", lease, by=actor(lease.worker, lease.generation))


# -- claim -------------------------------------------------------------------------------------------------------


def claim(
    worker: Worker, *, capabilities: Sequence[str] | None = None, wait_seconds: float = 0
) -> dict[str, Any] | None:
    """Give the worker the next task that it may have: lease, attempt, request and prompt in one transaction.

    Answers the claim's document, or None when there is nothing within `wait_seconds` (0 to 30); no transaction is held
    while waiting. Raises InvalidMove when the worker is not idle, Refused `worker_draining`, WorkerFinished.
    """
    until = time.monotonic() + min(max(wait_seconds, 0), MAX_WAIT_SECONDS)
    while True:
        worker.refresh_from_db()
        if worker.is_finished:
            raise WorkerFinished(worker)
        if worker.shutdown_requested_at is not None:
            raise Refused("Cannot assign task: the worker is shutting down", code="worker_draining")
        if worker.state == Worker.State.PAUSED:
            document = None
        else:
            document = _claim_once(worker, list(capabilities if capabilities is not None else worker.capabilities))
        if document is not None or time.monotonic() >= until or connection.in_atomic_block:
            return document
        time.sleep(LOOK_SECONDS)


def _claim_once(worker: Worker, capabilities: list[str]) -> dict[str, Any] | None:
    offered = offered_tools(worker)
    for task_id in candidates(worker, capabilities, offered):
        try:
            lease = assign(worker, task_id, offered=offered, by=actor(worker))
        except Refused as refusal:
            if refusal.code in ("invalid_move", "worker_draining") and refusal.parts.get("noun") == "worker":
                raise
            continue
        return document(lease)
    return None


def offered_tools(worker: Worker) -> set[str]:
    """The keys of the enabled tools that this worker can drive: those that it names, or all of its adapters'."""
    tools = Tool.objects.enabled()
    if worker.tools:
        return set(tools.filter(key__in=worker.tools).values_list("key", flat=True))
    adapters = worker.metadata.get("adapters")
    return set((tools.filter(adapter__in=adapters) if adapters else tools).values_list("key", flat=True))


def candidates(worker: Worker, capabilities: list[str], offered: set[str]) -> list[str]:
    """The ids of the next tasks that this worker may have, best first. No lock is held; `assign` looks again."""
    kinds: set[str] = set()
    for tool in Tool.objects.filter(key__in=offered):
        kinds |= set(tool.capabilities.get("task_kinds", ()))
    running = Task.objects.filter(run=OuterRef("run"), state=Task.State.RUNNING)
    held = Hold.objects.active().filter(
        Q(scope_kind="installation")
        | Q(scope_kind="project", scope_id=_text(OuterRef("run__project")))
        | Q(scope_kind="workstream", scope_id=_text(OuterRef("run__workstream")))
        | Q(scope_kind="run", scope_id=_text(OuterRef("run")))
        | Q(scope_kind="task", scope_id=_text(OuterRef("pk")))
    )
    rows = (
        Task.objects.filter(state=Task.State.QUEUED, kind__in=kinds)
        .filter(run__state=Run.State.RUNNING, run__ending_to="", run__project__archived_at=None)
        .filter(spec__capabilities__contained_by=capabilities)
        .exclude(Exists(held))
        .exclude(Exists(running.filter(spec__allow_parallel=False)))
        .exclude(Q(spec__allow_parallel=False) & Exists(running))
    )
    if worker.api_key_id and worker.api_key.project_id:
        rows = rows.filter(run__project=worker.api_key.project_id)
    if worker.affinity:
        rows = rows.filter(run__workstream__in=worker.affinity)
    return list(rows.order_by("-score", "sequence", "pk").values_list("pk", flat=True)[:CANDIDATES])


def _text(reference: Any) -> Any:
    """A uuid column as the text that a hold's scope_id holds."""
    return Func(reference, template="(%(expressions)s)::text", output_field=CharField())


def assign(worker: Worker, task_id: str, *, offered: set[str] | None, by: events.Actor) -> Lease:
    """The claim itself: task running under a new generation, routed, requested, attempted, leased; worker busy.

    Pushed by an operator or pulled by the worker, the same verb. Raises Refused `not_claimable`, `held`,
    `worker_unfit`,
    `no_routable_tool_for_phase`, and what the apps above refuse; then nothing is written. Locks run, task, attempt,
    worker, lease.
    """
    with transaction.atomic():
        task = (
            Task.objects.select_related("run__project", "run__phase__project", "run__workstream__phase__project")
            .filter(pk=task_id)
            .first()
        )
        if task is None:
            raise NotFound.of("task", task_id)
        run = Run.objects.select_for_update(no_key=True).get(pk=task.run_id)
        locked = Task.objects.select_for_update(no_key=True, skip_locked=True).filter(pk=task_id).first()
        if locked is None or locked.state != Task.State.QUEUED:
            state = "being changed" if locked is None else locked.state
            raise Refused(f"Cannot assign task: {task.key} is {state}", code="not_claimable", state=state)
        locked.run = task.run
        locked.run.state, locked.run.ending_to = run.state, run.ending_to
        _must_be_claimable(locked)
        _must_be_fit(worker, locked)
        crashpoint("claim.locked")
        generation = locked.claim(by=by)
        facts = ask_facts("task.claim", task=locked, worker=worker, by=by)
        admitted = admission.admit(
            locked, offered=offered, base_commit=facts.get("checkout", {}).get("commit", ""), by=by
        )
        _take_slot(admitted.tool)
        attempt = StepAttempt.objects.begin(
            run,
            by=by,
            task=locked,
            tool=admitted.tool,
            request=admitted.request,
            generation=generation,
            input_prompt=admitted.request.prompt.text if admitted.request.prompt else "",
        )
        lease = _grant(worker, locked, attempt, generation, by)
        crashpoint("claim.granted")
    lease.facts = facts  # type: ignore[attr-defined]  # what the answer needs, and no column keeps
    return lease


def _must_be_claimable(task: Task) -> None:
    run = task.run
    if run.state != Run.State.RUNNING or run.ending_to:
        raise Refused(f"Cannot assign task: its run is {run.state}", code="not_claimable", state=run.state)
    with connection.cursor() as cursor:
        # Shared: whoever places a hold waits for the claims under way, and every later claim sees it.
        cursor.execute("SELECT pg_advisory_xact_lock_shared(%s)", [CLAIM_LOCK])
    hold = Hold.objects.covering(task).first()
    if hold is not None:
        raise Refused(f"Cannot assign task: a hold is in force: {hold.reason}", code="held", hold=hold.pk)
    running = list(
        Task.objects.filter(run=run, state=Task.State.RUNNING).values_list("spec__allow_parallel", flat=True)
    )
    if running and (not task.spec.get("allow_parallel") or not all(running) or len(running) >= run.max_parallel):
        raise Refused("Cannot assign task: its run has no room beside what is running", code="not_claimable")
    if task.conflict_group:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))",
                [f"conflict {run.project_id} {task.conflict_group}"],
            )
        rivals = Task.objects.filter(state=Task.State.RUNNING, conflict_group=task.conflict_group)
        if rivals.filter(run__project=run.project_id).exists():
            raise Refused(f"Cannot assign task: {task.conflict_group} is taken", code="not_claimable")


def _must_be_fit(worker: Worker, task: Task) -> None:
    if worker.shutdown_requested_at is not None:
        raise Refused("Cannot assign task: the worker is shutting down", code="worker_draining")
    if worker.api_key_id and worker.api_key.project_id not in (None, task.run.project_id):
        raise Refused("Cannot assign task: the worker serves another project", code="worker_unfit")
    missing = set(task.spec.get("capabilities") or ()) - set(worker.capabilities)
    if missing:
        raise Refused(f"Cannot assign task: capability {', '.join(sorted(missing))} missing", code="worker_unfit")
    if worker.affinity and task.run.workstream_id not in worker.affinity:
        raise Refused("Cannot assign task: the worker serves other workstreams", code="worker_unfit")


def _take_slot(tool: Tool) -> None:
    """Two claims of one tool's last slot: the second waits here, and finds it taken."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", [f"tool {tool.pk}"])
    busy = StepAttempt.objects.open().filter(tool=tool, task__isnull=False).count()
    if busy >= (tool.max_parallel or settings.SIGNALBOX_TOOL_MAX_PARALLEL):
        raise Refused(f"Cannot assign task: {tool.key} has no free slot", code="not_claimable")


def _grant(worker: Worker, task: Task, attempt: StepAttempt, generation: int, by: events.Actor) -> Lease:
    try:
        worker.move(
            Worker.State.BUSY,
            by=by,
            verb="assign task",
            working=True,
            only_from=("idle",),
            current_task=task,
            progress_at=None,
        )
    except Refused as refusal:
        refusal.parts["noun"] = "worker"
        raise
    now = db_now()
    timeout_at = now + timedelta(seconds=time_limit(task, attempt.tool))
    deadline_at = timeout_at + DEADLINE_GRACE
    lease = Lease(
        worker=worker,
        task=task,
        attempt=attempt,
        generation=generation,
        acquired_at=now,
        expires_at=min(now + timedelta(seconds=worker.timeout_seconds), deadline_at),
        timeout_at=timeout_at,
        deadline_at=deadline_at,
    )
    lease.save(force_insert=True)
    events.record(
        "lease.granted", lease, by=by, data={"generation": generation, "tool": attempt.tool and attempt.tool.key}
    )
    Worker.objects.filter(pk=worker.pk).update(progress_at=ClockNow())
    return lease


def time_limit(task: Task, tool: Tool | None) -> int:
    """How many seconds an attempt may take: the task's limit, or its tool's own where that is shorter."""
    own = tool.timeout_seconds if tool else None
    return min(task.timeout_seconds, own or task.timeout_seconds)


def document(lease: Lease) -> dict[str, Any]:
    """What a claim answers (api.md, `/workers/{id}/claim/`)."""
    task, attempt = lease.task, lease.attempt
    request = attempt.request
    if request is None:
        raise NotFound.of("request")
    facts = getattr(lease, "facts", {})
    prompt = request.prompt
    return {
        "task": {
            "id": task.pk,
            "key": task.key,
            "name": task.name,
            "kind": task.kind,
            "run": task.run_id,
            "project": task.run.project_id,
            "requires_patch": task.requires_patch,
            "timeout_seconds": time_limit(task, request.tool),
            "touches": task.touches,
        },
        "execution_request": {
            "id": request.pk,
            "tool": request.tool.key,
            "adapter": request.tool.adapter,
            "command": request.command,
            "env_allow": request.tool.env_allow,
            "input": request.input,
            "constraints": request.constraints,
            "resource_scope": request.resource_scope,
            "metadata": request.metadata,
        },
        "prompt": None if prompt is None else {"id": prompt.pk, "text": prompt.text},
        "checkout": facts.get("checkout"),
        "lease": {
            "id": lease.pk,
            "generation": lease.generation,
            "attempt": attempt.pk,
            "expires_at": events.plain(lease.expires_at),
            "timeout_at": events.plain(lease.timeout_at),
            "deadline_at": events.plain(lease.deadline_at),
        },
        "reservation": facts.get("reservation"),
        "previous_failures": [
            {"outcome": failure.outcome, "error": failure.message, "output_tail": failure.output_tail}
            for failure in admission.earlier_failures(task)
        ],
    }


# -- report ------------------------------------------------------------------------------------------------------


def complete(lease: Lease, *, generation: int, by: events.Actor, **report: Any) -> dict[str, Any]:
    """The attempt succeeded: task validating, worker idle, use booked. Answers a directive. Raises StaleClaim."""
    lease.finish("success", by=by, generation=generation, **report)
    return {"directive": directive_after(lease.worker_id)}


def fail(lease: Lease, *, generation: int, outcome: str, by: events.Actor, **report: Any) -> dict[str, Any]:
    """The attempt ended otherwise: the task is retried, waits, fails or is cancelled. Raises StaleClaim,
    InvalidField.
    """
    if outcome == "success":
        raise InvalidField("outcome", "a success is reported to complete/")
    if outcome == "cancelled" and report.get("error_code") == "worker_shutdown":
        report["due_now"] = True
    lease.finish(outcome, by=by, generation=generation, confirmed=True, **report)
    return {"directive": directive_after(lease.worker_id)}


def directive_after(worker_id: str) -> str:
    """What a worker without a lease is told to do next."""
    worker = Worker.objects.get(pk=worker_id)
    if worker.is_finished or worker.shutdown_mode == "now":
        return "stop"
    if worker.shutdown_mode == "drain":
        return "drain"
    return "pause" if worker.state == Worker.State.PAUSED else "continue"


# -- sweep -------------------------------------------------------------------------------------------------------


def sweep() -> int:
    """Crash what is gone, ask what is over its time to stop; any number of sweepers, one effect. Returns how many."""
    done = 0
    for pk in _ids(Lease.objects.live().filter(expires_at__lt=ClockNow(), deadline_at__gt=ClockNow())):
        done += _crash(pk, "heartbeat lost", outcome="infra_lost")
    for pk in _ids(Lease.objects.live().filter(deadline_at__lte=ClockNow())):
        done += _crash(pk, "did not stop", outcome="task_failed")
    for lease in Lease.objects.live().filter(timeout_at__lt=ClockNow(), stop_requested_at=None).order_by("pk"):
        reason = f"timed out after {time_limit(lease.task, lease.attempt.tool)} s"
        done += lease.request_stop(by=events.SYSTEM, reason=reason, outcome="task_failed")
    for worker in _silent():
        if worker.shutdown_requested_at is not None:
            done += worker.shutdown(by=events.SYSTEM, reason="silent after it was asked to shut down")
        else:
            done += worker.crash("silent while idle", by=events.SYSTEM)
    return done


def _ids(rows: Any) -> list[str]:
    return list(rows.order_by("pk").values_list("pk", flat=True))


def _crash(lease_id: str, message: str, *, outcome: str) -> int:
    """Crash the worker of a lease that is still dead when looked at under its lock; 0 when another came first."""
    with transaction.atomic():
        lease = Lease.objects.live().select_related("worker__api_key").filter(pk=lease_id).first()
        if lease is None:
            return 0
        Run.objects.select_for_update(no_key=True).get(pk=lease.task.run_id)
        still = Lease.objects.live().filter(pk=lease_id, expires_at__lt=ClockNow())
        if not still.exists():
            return 0
        return int(lease.worker.crash(message, by=events.SYSTEM, outcome=outcome, cause="expired"))


def _silent() -> list[Worker]:
    limit = timedelta(seconds=settings.SIGNALBOX_IDLE_SILENCE_SECONDS)
    idle = Worker.objects.alive().unleased().exclude(state=Worker.State.BUSY)
    return list(idle.silent().filter(silence__gt=limit).order_by("pk"))
