"""How a lease ends: attempt, task, worker and money move on together, once (domain.md §3.1 step 4, §3.2 step 3)."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from functools import cache
from typing import TYPE_CHECKING, Any

from pipeline import events, prepared
from pipeline.crashpoints import crashpoint
from pipeline.ids import to_uuid
from pipeline.joined import Joined
from pipeline.models import ApiKey, Run, StepAttempt, Task
from pipeline.models.attempt import ENDS
from pipeline.questions import ask, ask_facts
from pipeline.refusals import InvalidField
from pipeline.rows import in_transaction
from pipeline.states import Plus
from pipeline.together import Together
from workers.models.worker import StaleClaim, Worker

if TYPE_CHECKING:
    from workers.models.lease import Lease

# The cause that a lease's row keeps when the attempt's outcome alone says how it ended.
CAUSES = {
    "success": "completed",
    "task_failed": "failed",
    "infra_lost": "failed",
    "cancelled": "cancelled",
    "budget_stop": "budget_stop",
    "quota_wait": "quota_wait",
    "needs_human": "needs_human",
}
MAX_TEXT = 1024 * 1024


@dataclass
class Report:
    """What is said about a lease at its end, by its worker or by the sweep that found it dead."""

    outcome: str
    cause: str = ""
    exit_code: int | None = None
    duration_seconds: Any = None
    error_code: str = ""
    error: str = ""
    output_tail: str = ""
    patch_ids: list[str] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)
    session_ref: str = ""
    until: datetime | None = None
    question: dict[str, Any] | None = None
    due_now: bool = False
    leaves_worker: bool = False
    confirmed: bool = False


def finish(lease: "Lease", report: Report, *, generation: int | None, by: events.Actor) -> bool:
    """End `lease` as `report` says. Raises StaleClaim when it is not live, or another generation's."""
    if report.outcome not in CAUSES:
        raise InvalidField("outcome", f"one of {', '.join(CAUSES)}, not “{report.outcome}”")
    duration = _duration(report.duration_seconds)
    with in_transaction():
        mine, now = _lock_all(lease)
        task, attempt, worker = mine.task, mine.attempt, mine.worker
        if not mine.is_live or (generation is not None and generation != task.generation):
            raise StaleClaim(generation if generation is not None else mine.generation, mine, by)
        crashpoint("finish.locked")
        _judge(report, mine, task, attempt)
        plain = _is_plain(report, mine)
        if plain:
            _end_all(report, mine, by, now, duration)
        else:
            _end_attempt(report, attempt, by)
            state = _move_task(report, mine, task, by)
            columns = _end_of(report, mine, attempt.ended_at)
            type(mine).objects.filter(pk=mine.pk).update(**columns)
            events.record("lease.ended", mine, by=by, **_told(report, mine, columns, state))
        ask("lease.end", lease=mine, outcome=report.outcome, usage=report.usage, duration_seconds=duration, by=by)
        if not report.leaves_worker and not plain:
            _free_worker(worker, report, duration or mine.held_for(attempt.ended_at), by)
        crashpoint("finish.done")
    lease.worker, lease.attempt = worker, attempt
    return True


def _is_plain(report: Report, lease: "Lease") -> bool:
    """Whether it ends as most leases do: by a success that nobody wanted to stop, of a worker that is busy with it."""
    ending = lease.task.run.ending_to or lease.stop_requested_at
    return report.outcome == "success" and not ending and not report.leaves_worker and lease.worker.state == "busy"


def _end_all(report: Report, lease: "Lease", by: events.Actor, now: datetime, duration: Decimal | None) -> None:
    """End attempt, task and lease and free the worker, in two statements."""
    task, attempt, worker = lease.task, lease.attempt, lease.worker
    writes = Together()
    writes.move(
        attempt,
        ENDS[report.outcome],
        by=by,
        reason=report.error[:2000],
        verb="complete step",
        state_reason=report.error[:2000],
        outcome=report.outcome,
        exit_code=report.exit_code,
        ended_at=now,
        **_said(report),
    )
    validating = Task.State.VALIDATING
    writes.move(
        task, validating, by=by, verb="complete task", last_outcome=report.outcome, session_ref=report.session_ref[:200]
    )
    columns = _end_of(report, lease, now)
    told = _told(report, lease, columns, task.state)
    writes.update(lease, **columns).tell("lease.ended", lease, by=by, **told)
    freed = _more(worker, worker.counted(report.outcome, duration or lease.held_for(now)))
    writes.move(worker, Worker.State.IDLE, by=by, verb="complete task", current_task_id=None, **freed)
    writes.write()


def _said(report: Report) -> dict[str, Any]:
    """What the report leaves on the attempt."""
    return {
        "error_code": report.error_code[:64],
        "error_log": report.error[:MAX_TEXT],
        "output_tail": report.output_tail[-MAX_TEXT:],
        "output_patch_ids": report.patch_ids,
        "session_ref": report.session_ref[:200],
    }


def _end_attempt(report: Report, attempt: StepAttempt, by: events.Actor) -> None:
    attempt.end(report.outcome, by=by, exit_code=report.exit_code, reason=report.error[:2000], **_said(report))


def _end_of(report: Report, lease: "Lease", ended_at: datetime | None) -> dict[str, Any]:
    return {
        "ended_at": ended_at,
        "end_cause": report.cause or CAUSES[report.outcome],
        "stop_confirmed": report.confirmed or bool(lease.stop_requested_at and not report.leaves_worker),
    }


def _told(report: Report, lease: "Lease", columns: dict[str, Any], state: str) -> dict[str, Any]:
    return {
        "reason": report.error[:2000],
        "data": {"outcome": report.outcome, "task": state},
        "before": {name: getattr(lease, name) for name in columns},
        "after": columns,
    }


@cache
def _lock() -> tuple[Joined, str]:
    """What a lease's end needs, and the statement that reads and locks it: run, task, attempt, worker, lease."""
    lease = Worker._meta.get_field("leases").related_model
    told = [field.name for field in StepAttempt._meta.concrete_fields if field.name != "input_prompt"]
    rows = Joined(
        r=(Run, None), t=(Task, None), a=(StepAttempt, told), w=(Worker, None), l=(lease, None), k=(ApiKey, None)
    )
    return (
        rows,
        f"""
        SELECT {rows.columns}, clock_timestamp()
        FROM workers_lease l JOIN pipeline_task t ON t.id = l.task_id JOIN pipeline_run r ON r.id = t.run_id
            JOIN pipeline_stepattempt a ON a.id = l.attempt_id JOIN workers_worker w ON w.id = l.worker_id
            LEFT JOIN pipeline_apikey k ON k.id = w.api_key_id
        WHERE l.id = %s
        FOR NO KEY UPDATE OF r FOR NO KEY UPDATE OF t FOR NO KEY UPDATE OF a FOR NO KEY UPDATE OF w
        FOR NO KEY UPDATE OF l
    """,
    )


def _lock_all(lease: "Lease") -> tuple["Lease", datetime]:
    """The lease as it is under its lock, with task, attempt and worker so as well, and the time. One statement."""
    rows, statement = _lock()
    [record] = prepared.execute(statement, [to_uuid(lease.pk)])
    found = rows.rows(record)
    fresh: Lease = found["l"]
    fresh.task, fresh.attempt, fresh.worker = found["t"], found["a"], found["w"]
    fresh.task.run = fresh.attempt.run = found["r"]
    fresh.attempt.task = fresh.task
    fresh.worker.api_key = found["k"]
    if fresh.worker.current_task_id == fresh.task_id:
        fresh.worker.current_task = fresh.task
    return fresh, record[-1]


def _judge(report: Report, lease: "Lease", task: Task, attempt: StepAttempt) -> None:
    """What the report is worth: its patches are the attempt's own, and a required patch that is missing is a
    failure.
    """
    if report.outcome == "success":
        facts = ask_facts("lease.report", lease=lease, patch_ids=report.patch_ids)
        report.patch_ids = facts.get("patch_ids", report.patch_ids)
        if task.requires_patch and not report.patch_ids:
            report.outcome, report.cause = "task_failed", "failed"
            report.error_code, report.error = "patch_missing", "the task requires a patch, and none was submitted"
    elif report.outcome == "cancelled" and lease.stop_outcome == "task_failed":
        report.outcome, report.cause = "task_failed", report.cause or "failed"
        report.error_code, report.error = "timeout_exceeded", lease.stop_reason


def _move_task(report: Report, lease: "Lease", task: Task, by: events.Actor) -> str:
    # Whoever cancelled the task gets a cancelled task, even when its worker was lost before it could say so.
    ending = bool(task.run.ending_to) or lease.stop_outcome == "cancelled"
    if report.outcome == "success":
        task.deliver(by=by, session_ref=report.session_ref[:200])
        if ending:
            # A run that winds down lands nothing more, and would wait for a validating task for ever.
            task.cancel(by=by, reason=task.run.ending_reason or lease.stop_reason)
        return task.state
    return task.settle(
        report.outcome,
        by=by,
        error_code=report.error_code,
        error=report.error,
        session_ref=report.session_ref[:200],
        until=report.until,
        question=report.question,
        due_now=report.due_now or report.outcome == "cancelled",
        ending=ending,
    )


def _free_worker(worker: Worker, report: Report, seconds: Decimal, by: events.Actor) -> None:
    counted = worker.counted(report.outcome, seconds)
    if worker.state == Worker.State.BUSY:
        columns: dict[str, Any] = {name: Plus(more) for name, more in counted.items()}
        worker.move(Worker.State.IDLE, by=by, verb="complete task", working=True, current_task=None, **columns)
    else:
        # Paused meanwhile: it stays so, and has its hands free.
        values = {"current_task_id": None, **_more(worker, counted)}
        before = worker.tellable({name: getattr(worker, name) for name in values})
        Worker.objects.filter(pk=worker.pk).update(**values)
        events.record("worker.released", worker, by=by, before=before, after=worker.tellable(values))


def _more(worker: Worker, counted: dict[str, Any]) -> dict[str, Any]:
    """The columns of a locked worker with what it counts more."""
    return {name: getattr(worker, name) + more for name, more in counted.items()}


def _duration(given: Any) -> Decimal | None:
    """The reported seconds; None when none were. Raises InvalidField for what is no finite number of at least 0."""
    if given is None or given == "":
        return None
    try:
        seconds = Decimal(str(given))
    except InvalidOperation:
        seconds = Decimal(-1)
    if not seconds.is_finite() or seconds < 0 or seconds > 10**9:
        raise InvalidField("duration_seconds", "seconds, a finite number of at least 0")
    return seconds.quantize(Decimal("0.000001"))
