"""Who holds what workers have in hand, and workers themselves: this app's answers to “why isn't this moving?”"""

from datetime import datetime
from typing import Any

from django.utils.timesince import timesince

from pipeline.blockers import ENGINE, OPERATORS, Action, Holder, Wait, last_said
from pipeline.clock import db_now
from pipeline.models import Task
from pipeline.questions import answers
from workers.models import Lease, Worker, health


@answers("blockers")
def who_holds(*, subject: Any) -> Wait | None:
    """For a lease and a worker; for a task that runs, or that no idle worker could take."""
    if isinstance(subject, Lease):
        return _lease(subject)
    if isinstance(subject, Worker):
        return _worker(subject)
    if isinstance(subject, Task):
        if subject.state == Task.State.RUNNING:
            lease = Lease.objects.live().filter(task=subject).select_related("worker", "task").first()
            return None if lease is None else _lease(lease)
        if subject.state == Task.State.QUEUED:
            return _nobody_fit(subject)
    return None


def _lease(lease: Lease) -> Wait | None:
    if lease.ended_at is not None:
        return None
    worker, now = lease.worker, db_now()
    holder = Holder("worker", worker.pk, worker.name)
    stop = Action("cancel", f"/tasks/{lease.task_id}/cancel/", "operator")
    if lease.stop_requested_at is not None:
        reason = f"{worker.name} was asked to stop, and has not confirmed it"
        deadline = lease.stop_deadline_at
        return Wait(code="stopping", reason=reason, holder=holder, since=lease.stop_requested_at, eta=deadline)
    how = health.of(worker, now)
    if how in (health.STALLED, health.UNRESPONSIVE):
        since = worker.progress_at if how == health.STALLED else worker.transport_seen_at
        reason = f"{worker.name} works on it, but {_silence(how, since, now)}"
        return Wait(code=how, reason=reason, holder=holder, since=since, action=stop)
    reason = f"{worker.name} works on it"
    return Wait(code="leased", reason=reason, holder=holder, since=lease.acquired_at, eta=lease.timeout_at, action=stop)


def _silence(how: str, since: datetime | None, now: datetime) -> str:
    span = f" for {timesince(since, now, depth=1)}" if since else ""
    return f"has made no progress{span}" if how == health.STALLED else f"has not been heard of{span}"


def _worker(worker: Worker) -> Wait | None:
    if worker.is_finished:
        return None
    if worker.state == Worker.State.PAUSED:
        resume = Action("resume", f"/workers/{worker.pk}/resume/", "operator")
        reason, since = last_said(worker, "worker.paused")
        return Wait(code="paused", reason=reason or "It is paused", holder=OPERATORS, since=since, action=resume)
    lease = worker.leases.live().select_related("worker", "task").first()
    if lease is not None:
        return _lease(lease)
    if worker.shutdown_requested_at is not None:
        reason = "It was asked to end, and has not said that it has"
        holder = Holder("worker", worker.pk, worker.name)
        return Wait(code="draining", reason=reason, holder=holder, since=worker.shutdown_requested_at)
    return Wait(code="idle", reason="It waits for a task that it may have", holder=ENGINE)


def _nobody_fit(task: Task) -> Wait | None:
    """No worker that could take it is there: none idle, or none with what it needs."""
    alive = list(Worker.objects.alive().select_related("api_key"))
    fit = [worker for worker in alive if _is_fit(worker, task)]
    if any(worker.state == Worker.State.IDLE for worker in fit):
        return None
    if fit:
        names = ", ".join(sorted(worker.name for worker in fit)[:3])
        reason = f"Every worker that could take it is busy or paused: {names}"
        return Wait(code="workers_busy", reason=reason, holder=Holder("worker", fit[0].pk, fit[0].name))
    needs = ", ".join(task.spec.get("capabilities") or ()) or "its kind of work"
    reason = f"No living worker offers {needs}" if alive else "No worker is there"
    connect = Action("register", "/workers/", "worker")
    missing = Holder("worker", "", "a worker that is missing")
    return Wait(code="no_worker", reason=reason, holder=missing, action=connect)


def _is_fit(worker: Worker, task: Task) -> bool:
    """Whether it could have this task once it is idle: its project, capabilities and workstreams."""
    return (
        (worker.api_key is None or worker.api_key.project_id in (None, task.project_id))
        and worker.shutdown_requested_at is None
        and set(task.spec.get("capabilities") or ()) <= set(worker.capabilities)
        and (not worker.affinity or task.run.workstream_id in worker.affinity)
    )
