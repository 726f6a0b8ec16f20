"""How a lease ends: attempt, task, worker and money move on together, once (domain.md §3.1 step 4, §3.2 step 3)."""

from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any

from pipeline import events
from pipeline.crashpoints import crashpoint
from pipeline.models import Run, StepAttempt, Task
from pipeline.questions import ask, ask_facts
from pipeline.refusals import InvalidField
from pipeline.rows import in_transaction
from pipeline.states import Plus
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
        locked = _lock_all(lease)
        lease, task, attempt, worker = locked
        if not lease.is_live or (generation is not None and generation != task.generation):
            raise StaleClaim(generation if generation is not None else lease.generation, lease, by)
        crashpoint("finish.locked")
        _judge(report, lease, task, attempt)
        attempt.end(
            report.outcome,
            by=by,
            exit_code=report.exit_code,
            reason=report.error[:2000],
            error_code=report.error_code[:64],
            error_log=report.error[:MAX_TEXT],
            output_tail=report.output_tail[-MAX_TEXT:],
            output_patch_ids=report.patch_ids,
            session_ref=report.session_ref[:200],
        )
        state = _move_task(report, lease, task, by)
        columns = {
            "ended_at": attempt.ended_at,
            "end_cause": report.cause or CAUSES[report.outcome],
            "stop_confirmed": report.confirmed or bool(lease.stop_requested_at and not report.leaves_worker),
        }
        type(lease).objects.filter(pk=lease.pk).update(**columns)
        events.record(
            "lease.ended",
            lease,
            by=by,
            reason=report.error[:2000],
            data={"outcome": report.outcome, "task": state},
            before={name: getattr(lease, name) for name in columns},
            after=columns,
        )
        ask("lease.end", lease=lease, outcome=report.outcome, usage=report.usage, duration_seconds=duration, by=by)
        if not report.leaves_worker:
            _free_worker(worker, report, duration or _measured(lease), by)
        crashpoint("finish.done")
    return True


def _lock_all(lease: "Lease") -> tuple["Lease", Task, StepAttempt, Worker]:
    task = Task.objects.select_related("run").get(pk=lease.task_id)
    run = Run.objects.select_for_update(no_key=True).get(pk=task.run_id)
    task = Task.objects.select_for_update(no_key=True).get(pk=task.pk)
    task.run = run
    attempt = StepAttempt.objects.select_for_update(no_key=True, of=("self",)).get(pk=lease.attempt_id)
    attempt.run, attempt.task = run, task
    worker = Worker.objects.select_for_update(no_key=True).get(pk=lease.worker_id)
    fresh = type(lease).objects.select_for_update(no_key=True).get(pk=lease.pk)
    fresh.task, fresh.worker, fresh.attempt = task, worker, attempt
    return fresh, task, attempt, worker


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
    counted = "tasks_completed" if report.outcome == "success" else "tasks_failed"
    columns = {counted: Plus(1), "total_execution_seconds": Plus(seconds), "current_task": None}
    if worker.state == Worker.State.BUSY:
        worker.move(Worker.State.IDLE, by=by, verb="complete task", working=True, **columns)
    else:
        # Paused meanwhile: it stays so, and has its hands free.
        values = {
            counted: getattr(worker, counted) + 1,
            "total_execution_seconds": worker.total_execution_seconds + seconds,
            "current_task_id": None,
        }
        before = worker.tellable({name: getattr(worker, name) for name in values})
        Worker.objects.filter(pk=worker.pk).update(**values)
        events.record("worker.released", worker, by=by, before=before, after=worker.tellable(values))


def _measured(lease: "Lease") -> Decimal:
    """How long the lease was held, by the database's clock."""
    ended, acquired = type(lease).objects.filter(pk=lease.pk).values_list("ended_at", "acquired_at").get()
    return Decimal(str(max((ended - acquired).total_seconds(), 0)))


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
