"""The hot path: claim a task, report its end (domain.md §3.1). A claim is eight statements, whatever it writes."""

import json
from collections import defaultdict
from collections.abc import Collection, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.conf import settings
from django.db import transaction

from pipeline import admission, events, prepared
from pipeline.crashpoints import crashpoint
from pipeline.ids import from_uuid, is_id, to_uuid
from pipeline.joined import Joined
from pipeline.models import Hold, Phase, Project, Run, StepAttempt, Task, Tool, Workstream
from pipeline.models.hold import CLAIM_LOCK
from pipeline.questions import ask_facts
from pipeline.refusals import InvalidField, NotFound, Refused
from pipeline.states import InvalidMove
from pipeline.together import Together
from workers.models import Lease, Worker, WorkerFinished

CANDIDATES = 20
OFFERED = 50
"""How many of the tasks that wait are offered to a person who gives one to a worker."""
WAITING_SHOWN = 64
MAX_WAIT_SECONDS = 30
DEADLINE_GRACE = timedelta(seconds=45)


def actor(worker: Worker, generation: int | None = None) -> events.Actor:
    """The worker as the one who caused a change, with its lease's generation where it holds one."""
    name = worker.name if generation is None else f"{worker.name} (generation {generation})"
    on_behalf_of = worker.api_key.name if worker.api_key else ""
    return events.Actor("worker", worker.pk, name, on_behalf_of=on_behalf_of)


# -- what to claim -----------------------------------------------------------------------------------------------

# The projects that have something take turns: the one with the fewest running tasks comes first, then the score decides
# (domain.md §2.1.9). For each project the best few are read from an index, however many are queued.
_CANDIDATES = """
WITH offered AS (
    SELECT key, capabilities FROM pipeline_tool
    WHERE enabled AND (%(tools)s::text[] IS NULL OR key = ANY(%(tools)s::text[]))
        AND (%(adapters)s::text[] IS NULL OR adapter = ANY(%(adapters)s::text[]))
), kinds AS (
    SELECT DISTINCT jsonb_array_elements_text(capabilities->'task_kinds') AS kind FROM offered
), served AS (
    SELECT p.id,
        (SELECT count(*) FROM pipeline_task b WHERE b.project_id = p.id AND b.state = 'running') AS running
    FROM pipeline_project p
    WHERE p.archived_at IS NULL AND (%(project)s::uuid IS NULL OR p.id = %(project)s::uuid)
)
SELECT next.id, (SELECT array_agg(key) FROM offered)
FROM served CROSS JOIN LATERAL (
    SELECT t.id, t.score, t.sequence FROM pipeline_task t JOIN pipeline_run r ON r.id = t.run_id
    WHERE t.project_id = served.id AND t.state = 'queued' AND r.state = 'running' AND r.ending_to = ''
        AND t.kind IN (SELECT kind FROM kinds)
        AND COALESCE(t.spec->'capabilities', '[]'::jsonb) <@ %(capabilities)s::jsonb
        AND (%(affinity)s::uuid[] IS NULL OR r.workstream_id = ANY(%(affinity)s::uuid[]))
        AND NOT EXISTS (SELECT 1 FROM pipeline_hold h WHERE h.state = 'active' AND (h.scope_kind = 'installation'
            OR (h.scope_kind = 'project' AND h.scope_id = r.project_id::text)
            OR (h.scope_kind = 'workstream' AND h.scope_id = r.workstream_id::text)
            OR (h.scope_kind = 'run' AND h.scope_id = r.id::text)
            OR (h.scope_kind = 'task' AND h.scope_id = t.id::text)
            OR (h.scope_kind = 'worker' AND h.scope_id = %(worker)s::uuid::text)))
        AND NOT EXISTS (SELECT 1 FROM pipeline_task o WHERE o.run_id = t.run_id AND o.state = 'running'
            AND (o.spec->'allow_parallel' = 'false' OR t.spec->'allow_parallel' = 'false'))
    ORDER BY t.score DESC, t.sequence, t.id LIMIT {most}
) next
ORDER BY served.running, next.score DESC, next.sequence, next.id LIMIT {most}
"""
_TO_CLAIM = _CANDIDATES.format(most=CANDIDATES)
_TO_OFFER = _CANDIDATES.format(most=OFFERED)


def claim(worker: Worker, *, capabilities: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Give the worker, as just read, the next task that it may have: lease, attempt, request and prompt in one
    transaction.

    Answers the claim's document, or None when there is nothing. Raises InvalidMove when the worker is not idle,
    Refused `worker_draining`, WorkerFinished.
    """
    if worker.is_finished:
        raise WorkerFinished(worker)
    if worker.shutdown_requested_at is not None:
        raise Refused("Cannot assign task: the worker is shutting down", code="worker_draining")
    if worker.state == Worker.State.PAUSED:
        return None
    for task_id, offered in candidates(worker, worker.capabilities if capabilities is None else capabilities):
        try:
            lease = assign(worker, task_id, offered=offered, by=actor(worker))
        except Refused as refusal:
            if refusal.code in ("invalid_move", "worker_draining") and refusal.parts.get("noun") == "worker":
                raise
            continue
        return document(lease)
    return None


def count_claimable() -> int:
    """How many tasks wait for a worker, up to WAITING_SHOWN: those that a hold or a full run keeps back included.

    One query for everybody who waits (pipeline.longpoll); who may have which is for `claim` to say.
    """
    return (
        Task.objects.filter(state=Task.State.QUEUED, run__state=Run.State.RUNNING, run__ending_to="")[:WAITING_SHOWN]
    ).count()


def candidates(worker: Worker, capabilities: Sequence[str]) -> list[tuple[str, set[str]]]:
    """The ids of the next tasks that this worker may have, best first, each with the keys of the tools that it offers.

    No lock is held; `assign` looks again. One query.
    """
    return _fitting(_TO_CLAIM, worker, capabilities)


def offers(worker: Worker) -> list[Task]:
    """The queued tasks that a person may give this worker now, best first, with their project: none that a hold, a full
    run or the want of a free tool keeps back. What only a phase or a budget forbids is refused when it is given.
    """
    found = _fitting(_TO_OFFER, worker, worker.capabilities)
    if not found:
        return []
    rows = Task.objects.filter(pk__in=[pk for pk, _keys in found]).select_related("project", "run__workstream")
    tasks = {task.pk: task for task in rows}
    beside: dict[str, list[bool]] = defaultdict(list)
    running = Task.objects.filter(state=Task.State.RUNNING, run__in={task.run_id for task in tasks.values()})
    for other in running.only("run_id", "spec"):
        beside[other.run_id].append(bool(other.spec.get("allow_parallel")))
    groups = Task.objects.filter(state=Task.State.RUNNING).exclude(conflict_group="")
    taken = set(groups.values_list("project_id", "conflict_group"))
    kinds = _kinds_now(found[0][1])
    return [
        task
        for task in (tasks[pk] for pk, _keys in found if pk in tasks)
        if task.kind in kinds
        and _has_room(task, beside[task.run_id])
        and (task.project_id, task.conflict_group) not in taken
    ]


def _kinds_now(offered: Collection[str]) -> set[str]:
    """The kinds of task for which one of these tools has a slot free, and no hold over it or its account."""
    held = set(Hold.objects.active().filter(scope_kind__in=["tool", "account"]).values_list("scope_kind", "scope_id"))
    kinds: set[str] = set()
    for row in prepared.execute(_TOOLS):
        tool, open_attempts = _TOOL.rows(row)["tool"], row[_TOOL.width]
        is_held = ("tool", tool.key) in held or ("account", tool.account) in held
        if tool.key in offered and not is_held and open_attempts < admission.slots(tool):
            kinds.update(tool.capabilities.get("task_kinds", ()))
    return kinds


def _fitting(statement: str, worker: Worker, capabilities: Sequence[str]) -> list[tuple[str, set[str]]]:
    tools, adapters = _tools_of(worker)
    only = worker.api_key.project_id if worker.api_key else None
    found = prepared.execute(
        statement,
        {
            "worker": to_uuid(worker.pk),
            "tools": tools,
            "adapters": adapters,
            "project": to_uuid(only) if only else None,
            "capabilities": json.dumps(list(capabilities)),
            "affinity": [to_uuid(key) for key in worker.affinity] or None,
        },
    )
    return [(from_uuid(pk), set(offered)) for pk, offered in found]


def offered_tools(worker: Worker) -> set[str]:
    """The keys of the enabled tools that this worker can drive: those that it names, or all of its adapters'."""
    named, adapters = _tools_of(worker)
    tools = Tool.objects.enabled()
    if named is not None:
        tools = tools.filter(key__in=named)
    return set((tools if adapters is None else tools.filter(adapter__in=adapters)).values_list("key", flat=True))


def _tools_of(worker: Worker) -> tuple[list[str] | None, list[str] | None]:
    """The keys that it names, or else the adapters that it has; None does not narrow."""
    if worker.tools:
        return list(worker.tools), None
    return None, list(worker.metadata.get("adapters") or ()) or None


# -- the claim ---------------------------------------------------------------------------------------------------

_TASK = Joined(t=(Task, None), r=(Run, None))
# Run before task, as everywhere. Shared: whoever places a hold waits for the claims under way, and later ones see it.
_LOCK = f"""
SELECT {_TASK.columns}, held.back
FROM (SELECT pg_advisory_xact_lock_shared({CLAIM_LOCK})::text AS back) held,
    pipeline_run r JOIN pipeline_task t ON t.run_id = r.id
WHERE t.id = %s
FOR NO KEY UPDATE OF r FOR NO KEY UPDATE OF t SKIP LOCKED
"""

_PLACE = Joined(p=(Project, None), ph=(Phase, None), ws=(Workstream, None))
_TOOL = Joined(tool=(Tool, None))
# Read after the locks are held, by a statement of its own: what another claim changed meanwhile is seen.
_AROUND = f"""
SELECT {_PLACE.columns}, clock_timestamp(),
    w.state, w.shutdown_requested_at IS NOT NULL,
    (SELECT COALESCE(max(a.sequence), 0) FROM pipeline_stepattempt a WHERE a.run_id = %(run)s),
    (SELECT COALESCE(jsonb_agg(o.spec->'allow_parallel'), '[]'::jsonb) FROM pipeline_task o
        WHERE o.run_id = %(run)s AND o.state = 'running'),
    (SELECT jsonb_build_object('id', h.id, 'reason', h.reason) FROM pipeline_hold h
        WHERE h.state = 'active' AND (h.scope_kind = 'installation'
            OR (h.scope_kind = 'project' AND h.scope_id = p.id::text)
            OR (h.scope_kind = 'workstream' AND h.scope_id = ws.id::text)
            OR (h.scope_kind = 'run' AND h.scope_id = %(run)s::uuid::text)
            OR (h.scope_kind = 'task' AND h.scope_id = %(task)s::uuid::text)
            OR (h.scope_kind = 'worker' AND h.scope_id = w.id::text)) ORDER BY h.id LIMIT 1),
    (SELECT COALESCE(jsonb_agg(jsonb_build_array(h.scope_kind, h.scope_id)), '[]'::jsonb) FROM pipeline_hold h
        WHERE h.state = 'active' AND h.scope_kind IN ('tool', 'account'))
FROM workers_worker w, pipeline_project p JOIN pipeline_phase ph ON ph.id = %(phase)s
    LEFT JOIN pipeline_workstream ws ON ws.id = %(workstream)s
WHERE p.id = %(project)s AND w.id = %(worker)s
FOR NO KEY UPDATE OF w
"""
_TOOLS = f"""
SELECT {_TOOL.columns}, (SELECT count(*) FROM pipeline_stepattempt a
    WHERE a.tool_id = tool.id AND a.state IN ('pending', 'running') AND a.task_id IS NOT NULL)
FROM pipeline_tool tool WHERE tool.enabled ORDER BY tool.id
"""
# Waits until nobody else has this name, to the end of the transaction.
_ALONE = "SELECT pg_advisory_xact_lock(hashtextextended(%s::text, 0))::text"
_OPEN = """
SELECT count(*) FROM pipeline_stepattempt
WHERE tool_id = %s AND state IN ('pending', 'running') AND task_id IS NOT NULL
"""


def assign(worker: Worker, task_id: str, *, offered: Collection[str] | None, by: events.Actor) -> Lease:
    """The claim itself: task running under a new generation, routed, requested, attempted, leased; worker busy.

    Pushed by an operator or pulled by the worker, the same verb. Raises Refused `not_claimable`, `held`,
    `worker_unfit`, `no_routable_tool_for_phase`, and what the apps above refuse; then nothing is written. Locks run,
    task, worker.
    """
    with transaction.atomic():
        return _grant(worker, _locked(task_id), offered=offered, by=by)


def assign_to(worker: Worker, task: Task, *, by: events.Actor) -> Lease:
    """Give the worker a task that a person has chosen for it. Raises what `assign` does."""
    if worker.shutdown_requested_at is not None and not worker.is_finished:
        raise Refused("Cannot assign task: the worker is shutting down", code="worker_draining")
    if worker.api_key and worker.api_key.project_id not in (None, task.project_id):
        raise Refused("Cannot assign task: the worker serves another project", code="worker_unfit")
    return assign(worker, task.pk, offered=offered_tools(worker), by=by)


def claim_first(worker: Worker, found: Sequence[tuple[str, set[str]]]) -> Lease | None:
    """Assign the first of these candidates that nobody else has in hand; None when there is none.

    In the caller's transaction, which is undone by what this raises: see `assign`.
    """
    for task_id, offered in found:
        try:
            task = _locked(task_id)
        except Refused:
            continue  # nothing was written, and nobody waited for
        return _grant(worker, task, offered=offered, by=actor(worker))
    return None


def _grant(worker: Worker, task: Task, *, offered: Collection[str] | None, by: events.Actor) -> Lease:
    around, now, sequence = _look_around(task, worker)
    crashpoint("claim.locked")
    admitted = admission.admit(task, around, offered=offered, base_commit="", now=now, by=by)
    # Asked when the tool is known, so that money is set aside in the budgets over it and its model.
    facts = ask_facts("task.claim", task=task, worker=worker, tool=admitted.tool, by=by)
    admitted.request.base_commit = (facts.get("checkout") or {}).get("commit", "")
    _take_slot(admitted.tool)
    lease = _write(task, worker, admitted, sequence=sequence, now=now, by=by)
    crashpoint("claim.granted")
    lease.facts, lease.failures = facts, admitted.failures  # type: ignore[attr-defined]  # for the answer; no columns
    return lease


def _locked(task_id: str) -> Task:
    """The queued task with its run, both locked. Raises NotFound, Refused `not_claimable`."""
    rows = prepared.execute(_LOCK, [to_uuid(task_id)]) if is_id(task_id) else []
    if not rows:
        waiting = Task.objects.filter(pk=task_id).values_list("key", flat=True).first() if is_id(task_id) else None
        if waiting is None:
            raise NotFound.of("task", task_id)
        raise Refused(f"Cannot assign task: {waiting} is being changed", code="not_claimable", state="being changed")
    found = _TASK.rows(rows[0])
    task: Task = found["t"]
    task.run = found["r"]
    if task.state != Task.State.QUEUED:
        raise Refused(f"Cannot assign task: {task.key} is {task.state}", code="not_claimable", state=task.state)
    if task.run.state != Run.State.RUNNING or task.run.ending_to:
        raise Refused(f"Cannot assign task: its run is {task.run.state}", code="not_claimable", state=task.run.state)
    return task


def _look_around(task: Task, worker: Worker) -> tuple[admission.Surroundings, datetime, int]:
    """What the claim depends on, the time, and the attempt's number. Locks the worker. Raises Refused when the task or
    the worker cannot have the other now.
    """
    run = task.run
    keys = {"run": run.pk, "task": task.pk, "phase": run.phase_id, "project": run.project_id, "worker": worker.pk}
    given: dict[str, UUID | None] = {name: to_uuid(key) for name, key in keys.items()}
    given["workstream"] = to_uuid(run.workstream_id) if run.workstream_id else None
    rows = prepared.execute(_AROUND, given)
    if not rows:
        raise NotFound.of("worker", worker.pk)
    row = rows[0]
    place = _PLACE.rows(row)
    run.project, run.phase, run.workstream = place["p"], place["ph"], place["ws"]
    run.phase.project = run.project
    if run.workstream is not None:
        run.workstream.phase = run.phase
    now, state, draining, last, running, hold, covered = row[_PLACE.width :]
    if hold is not None:
        hold = json.loads(hold)
        key = from_uuid(UUID(hold["id"]))
        raise Refused(f"Cannot assign task: a hold is in force: {hold['reason']}", code="held", hold=key)
    _must_have_room(task, json.loads(running))
    worker.state = state
    _must_be_fit(worker, task, draining=draining)
    tools = [(_TOOL.rows(tool)["tool"], tool[_TOOL.width]) for tool in prepared.execute(_TOOLS)]
    holds = json.loads(covered)
    around = admission.Surroundings(
        tools=[tool for tool, _open in tools],
        open_attempts={tool.pk: number for tool, number in tools},
        held_tools={key for kind, key in holds if kind == "tool"},
        held_accounts={key for kind, key in holds if kind == "account"},
    )
    return around, now, last + 1


def _has_room(task: Task, running: Sequence[bool]) -> bool:
    if not running:
        return True
    return bool(task.spec.get("allow_parallel")) and all(running) and len(running) < task.run.max_parallel


def _must_have_room(task: Task, running: Sequence[bool]) -> None:
    """`running`: for each running task of the run, whether others may run beside it."""
    if not _has_room(task, running):
        raise Refused("Cannot assign task: its run has no room beside what is running", code="not_claimable")
    if task.conflict_group:
        prepared.execute(_ALONE, [f"conflict {task.project_id} {task.conflict_group}"])
        rivals = Task.objects.filter(state=Task.State.RUNNING, conflict_group=task.conflict_group)
        if rivals.filter(project=task.project_id).exists():
            raise Refused(f"Cannot assign task: {task.conflict_group} is taken", code="not_claimable")


def _must_be_fit(worker: Worker, task: Task, *, draining: bool) -> None:
    if draining:
        raise Refused("Cannot assign task: the worker is shutting down", code="worker_draining", noun="worker")
    if worker.state != Worker.State.IDLE:
        refusal = InvalidMove(
            worker,
            worker.state,
            Worker.State.BUSY,
            verb="assign task",
            allowed=Worker.MOVES[Worker.State(worker.state)],
        )
        refusal.parts["noun"] = "worker"
        raise refusal
    if worker.api_key and worker.api_key.project_id not in (None, task.run.project_id):
        raise Refused("Cannot assign task: the worker serves another project", code="worker_unfit")
    missing = set(task.spec.get("capabilities") or ()) - set(worker.capabilities)
    if missing:
        raise Refused(f"Cannot assign task: capability {', '.join(sorted(missing))} missing", code="worker_unfit")
    if worker.affinity and task.run.workstream_id not in worker.affinity:
        raise Refused("Cannot assign task: the worker serves other workstreams", code="worker_unfit")


def _take_slot(tool: Tool) -> None:
    """Two claims of one tool's last slot: the second waits here, and finds it taken."""
    prepared.execute(_ALONE, [f"tool {tool.pk}"])
    [(taken,)] = prepared.execute(_OPEN, [to_uuid(tool.pk)])
    if taken >= admission.slots(tool):
        raise Refused(f"Cannot assign task: {tool.key} has no free slot", code="not_claimable")


def _write(
    task: Task, worker: Worker, admitted: admission.Admitted, *, sequence: int, now: datetime, by: events.Actor
) -> Lease:
    """Everything that the claim changes, with its events, in two statements."""
    run, tool = task.run, admitted.tool
    writes = Together()
    claimed = {
        "state": Task.State.RUNNING,
        "generation": task.generation + 1,
        "count_attempts": task.count_attempts + 1,
        "started_at": now,
    }
    before = task.tellable({name: getattr(task, name) for name in claimed})
    writes.update(task, **claimed)
    writes.tell("task.started", task, by=by, before=before, after=task.tellable(claimed))
    writes.insert(admitted.prompt).insert(admitted.request).insert(admitted.decision)
    writes.tell(
        "routing.decided", admitted.decision, by=by, data={"tool": tool.key, "reason": admitted.decision.reason}
    )
    attempt = StepAttempt(
        created_at=now,
        run=run,
        task=task,
        tool=tool,
        request=admitted.request,
        prompt=admitted.prompt,
        generation=task.generation,
        sequence=sequence,
        input_prompt=admitted.prompt.text,
        state=StepAttempt.State.RUNNING,
        started_at=now,
    )
    writes.insert(attempt).update(run, count_steps=run.count_steps + 1)
    writes.tell("step.started", attempt, by=by, before={}, after=attempt.birth())
    before = worker.tellable({"state": worker.state, "current_task_id": None})
    worker.current_task = task
    writes.update(worker, state=Worker.State.BUSY, current_task_id=task.pk, progress_at=now)
    after = worker.tellable({"state": worker.state, "current_task_id": task.pk})
    writes.tell("worker.assigned", worker, by=by, before=before, after=after)
    deadline_at = now + timedelta(seconds=time_limit(task, tool)) + DEADLINE_GRACE
    lease = Lease(
        created_at=now,
        worker=worker,
        task=task,
        attempt=attempt,
        generation=task.generation,
        acquired_at=now,
        expires_at=min(now + timedelta(seconds=worker.timeout_seconds), deadline_at),
        timeout_at=deadline_at - DEADLINE_GRACE,
        deadline_at=deadline_at,
    )
    writes.insert(lease)
    granted = {"generation": task.generation, "tool": tool.key}
    writes.tell("lease.granted", lease, by=by, data=granted, before={}, after=lease.birth())
    writes.write()
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
            "model": request.tool.model,
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
        "session_ref": task.session_ref,
        "reservation": facts.get("reservation"),
        "price_ceiling": facts.get("price_ceiling"),
        "previous_failures": [
            {"outcome": failure.outcome, "error": failure.message, "output_tail": failure.output_tail}
            for failure in getattr(lease, "failures", ())
        ],
    }


def with_address(document: dict[str, Any], request: Any) -> dict[str, Any]:
    """The claim with `checkout.address` in full: behind SIGNALBOX_URL, else behind the host that was asked."""
    checkout = document["checkout"]
    if checkout is not None:
        base = settings.SIGNALBOX_URL or request.build_absolute_uri("/").rstrip("/")
        checkout["address"] = base + checkout["address"]
    return document


# -- report ------------------------------------------------------------------------------------------------------


def complete(lease: Lease, *, generation: int, by: events.Actor, **report: Any) -> dict[str, Any]:
    """The attempt succeeded: task validating, worker idle, use booked. Answers a directive. Raises StaleClaim."""
    lease.finish("success", by=by, generation=generation, **report)
    return {"directive": directive_after(lease.worker)}


def fail(lease: Lease, *, generation: int, outcome: str, by: events.Actor, **report: Any) -> dict[str, Any]:
    """The attempt ended otherwise: the task is retried, waits, fails or is cancelled. Raises StaleClaim,
    InvalidField.
    """
    if outcome == "success":
        raise InvalidField("outcome", "a success is reported to complete/")
    if outcome == "cancelled" and report.get("error_code") == "worker_shutdown":
        report["due_now"] = True
    lease.finish(outcome, by=by, generation=generation, confirmed=True, **report)
    return {"directive": directive_after(lease.worker)}


def directive_after(worker: Worker) -> str:
    """What a worker without a lease, as it is now, is told to do next."""
    if worker.is_finished or worker.shutdown_mode == "now":
        return "stop"
    if worker.shutdown_mode == "drain":
        return "drain"
    return "pause" if worker.state == Worker.State.PAUSED else "continue"
