"""The scheduler's one pass: reconcile a run with what the database says. Level-triggered, safe to repeat."""

from dataclasses import dataclass
from typing import NamedTuple

from django.db.models import Q

from pipeline import events, prepared
from pipeline.clock import ClockNow
from pipeline.ids import to_uuid
from pipeline.joined import Joined
from pipeline.models import Hold, Run, Task
from pipeline.questions import ask
from pipeline.refusals import Refused
from pipeline.rows import in_transaction
from pipeline.together import Together


@dataclass(frozen=True)
class Verdict:
    """What an app above says about a task that wants to complete: `ready`, `waiting`, or `failed` with why.

    `outcome` of a failure is gate_failed (repair it) or task_failed.
    """

    status: str
    reason: str = ""
    code: str = ""
    outcome: str = "gate_failed"


READY = Verdict("ready")


def advance(run_id: str, *, by: events.Actor = events.SYSTEM) -> bool:
    """One pass over the run: settle what was delivered, queue what is due, cancel what cannot come, end the run.

    Run after every event of the run and by the sweep. False when nothing was to be done. Locks the run, then its tasks
    in primary-key order.
    """
    with in_transaction():
        found = prepared.execute(_LOCK, [to_uuid(run_id)])
        run: Run | None = _RUN.rows(found[0])["r"] if found else None
        if run is None or run.is_finished:
            return False
        if run.ending_to:
            return run.finish_winding_down(by=by)
        if run.state != Run.State.RUNNING:
            return False
        # By a statement of its own, which sees what whoever held the lock has changed.
        look = _Look(*prepared.execute(_WHAT_IS_THERE, {"run": to_uuid(run_id)})[0])
        moved = False
        if look.delivered:
            moved = _settle_delivered(run, by)
        if moved:
            look = _Look(*prepared.execute(_WHAT_IS_THERE, {"run": to_uuid(run_id)})[0])
        if look.lost:
            moved |= _give_up_on_failed(run, by)
            run.refresh_from_db()
            if run.is_finished or run.ending_to:
                return True
        if look.waiting or look.lost:
            moved |= _release(run, by)
        return ((not look.open or look.lost) and _end(run, by)) or moved


_RUN = Joined(r=(Run, None))
_LOCK = f"SELECT {_RUN.columns} FROM pipeline_run r WHERE r.id = %s FOR NO KEY UPDATE"


class _Look(NamedTuple):
    """What a run's tasks give to do: some are delivered; some are lost, so that others may have to be cancelled; some
    wait for what is there now; some have not ended.
    """

    delivered: bool
    lost: bool
    waiting: bool
    open: bool


# Each looks for one task in an index, however large the run is; but every blocked one is asked what it waits for.
_WHAT_IS_THERE = """
SELECT
    EXISTS (SELECT 1 FROM pipeline_task WHERE run_id = %(run)s AND state = 'validating'),
    EXISTS (SELECT 1 FROM pipeline_task WHERE run_id = %(run)s AND state IN ('failed', 'cancelled')),
    EXISTS (SELECT 1 FROM pipeline_task WHERE run_id = %(run)s AND state = 'pending')
    OR EXISTS (SELECT 1 FROM pipeline_task
        WHERE run_id = %(run)s AND state = 'retrying' AND retry_at <= clock_timestamp())
    OR EXISTS (SELECT 1 FROM pipeline_task t WHERE t.run_id = %(run)s AND t.state = 'blocked' AND NOT EXISTS (
        SELECT 1 FROM pipeline_taskdependency d JOIN pipeline_task n ON n.id = d.needs_id
        WHERE d.task_id = t.id AND n.state <> 'completed')),
    EXISTS (SELECT 1 FROM pipeline_task WHERE run_id = %(run)s
        AND state IN ('pending', 'blocked', 'queued', 'running', 'validating', 'retrying'))
"""
_DELIVERED = Joined(t=(Task, None))
_LOCK_DELIVERED = f"""
SELECT {_DELIVERED.columns}, clock_timestamp() FROM pipeline_task t WHERE t.run_id = %s AND t.state = 'validating'
ORDER BY t.id FOR NO KEY UPDATE
"""


def _settle_delivered(run: Run, by: events.Actor) -> bool:
    """Complete validating tasks whose patches landed; send back or fail those whose patches cannot."""
    moved = False
    for record in prepared.execute(_LOCK_DELIVERED, [to_uuid(run.pk)]):
        task: Task = _DELIVERED.rows(record)["t"]
        task.run = run
        verdicts = ask("task.complete", task=task)
        failed = next((v for v in verdicts if v.status == "failed"), None)
        if failed is not None:
            task.settle(failed.outcome, by=by, error_code=failed.code, error=failed.reason)
            moved = True
        elif all(verdict.status == "ready" for verdict in verdicts):
            Together().move(task, Task.State.COMPLETED, by=by, verb="complete task", completed_at=record[-1]).write()
            moved = True
    return moved


def _give_up_on_failed(run: Run, by: events.Actor) -> bool:
    """After a failure the dependents are cancelled, whatever the strategy; then the strategy decides about the rest."""
    moved = False
    for task in Task.objects.filter(run=run, state__in=[Task.State.FAILED, Task.State.CANCELLED]).order_by("pk"):
        for dependent in _dependents(task):
            if dependent.state not in Task.ENDED and dependent.state != Task.State.RUNNING:
                dependent.cancel(by=by, reason=f"{task.key} {task.state}", cause="dependency_failed")
                moved = True
        if task.state == Task.State.FAILED and strategy(task) == "fail_workstream":
            reason = f"{task.key} failed: {task.last_error or task.state_reason}"[:2000]
            moved |= run.wind_down(Run.State.FAILED, by=by, reason=reason)
    return moved


def _dependents(task: Task) -> list[Task]:
    return list(Task.objects.filter(dependencies__needs=task).order_by("pk"))


STRATEGIES = {"fail_fast": "fail_workstream", "continue": "skip_task", "escalate": "route_error_phase"}


def strategy(task: Task) -> str:
    """What a failure of `task` means for its run (domain.md §2.1.2): fail_workstream, skip_task, route_error_phase."""
    own: str | None = (task.spec.get("error_handling") or {}).get("on_failure")
    if own:
        return STRATEGIES.get(own, own)
    return STRATEGIES[task.run.workstream.strategy] if task.run.workstream else "fail_workstream"


def _release(run: Run, by: events.Actor) -> bool:
    """Unblock, queue and requeue what has become due."""
    moved = False
    for task in Task.objects.filter(run=run, state=Task.State.BLOCKED).order_by("pk"):
        if not task.open_needs():
            moved |= task.unblock(by=by)
    for task in Task.objects.filter(run=run, state=Task.State.PENDING).order_by("pk"):
        moved |= task.enqueue(by=by) if not task.open_needs() else task.block(by=by)
    for task in Task.objects.filter(run=run).due().order_by("pk"):
        moved |= task.requeue(by=by)
    return moved


def _end(run: Run, by: events.Actor) -> bool:
    """Complete a run whose tasks have all ended: failed if a critical task did not complete, else succeeded.

    A run without tasks is completed by its caller, never here.
    """
    states = list(Task.objects.filter(run=run).values_list("state", "is_critical", "key"))
    if not states or any(state not in Task.ENDED for state, _critical, _key in states):
        return False
    lost = [key for state, critical, key in states if critical and state != Task.State.COMPLETED]
    try:
        if lost:
            return run.wind_down(Run.State.FAILED, by=by, reason=f"{', '.join(sorted(lost))} did not complete")
        return run.complete(Run.State.SUCCEEDED, by=by)
    except Refused:
        return False  # a patch is still open: its event brings us back


def due_runs() -> list[str]:
    """The runs that the sweep looks at: with a retry that is due, with delivered work, or winding down."""
    waiting = Q(pk__in=Task.objects.due().values("run")) | Q(
        pk__in=Task.objects.filter(state__in=[Task.State.VALIDATING, Task.State.BLOCKED, Task.State.PENDING]).values(
            "run"
        )
    )
    idle = ~Q(pk__in=Task.objects.unfinished().values("run"))
    rows = Run.objects.filter(state=Run.State.RUNNING).filter(waiting | idle | ~Q(ending_to=""))
    pending = Run.objects.filter(state=Run.State.PENDING).exclude(ending_to="")
    return [*rows.order_by("pk").values_list("pk", flat=True), *pending.values_list("pk", flat=True)]


def sweep() -> int:
    """Advance every run that time or a lost nudge has made due; returns how many moved."""
    return sum(advance(pk) for pk in due_runs())


def end_due_holds() -> int:
    """Release the holds whose time has come: a quota's by the system, a question's or approval's as expired."""
    done = 0
    for hold in Hold.objects.active().filter(until__lt=ClockNow()).order_by("pk"):
        cause = "released" if hold.kind == Hold.Kind.QUOTA else "expired"
        done += hold.release(by=events.SYSTEM, reason=f"{hold.kind} until {hold.until:%Y-%m-%dT%H:%M:%SZ}", cause=cause)
    return done
