"""What the workers' pages and their panels on other pages share: who needs a look, and what each worker holds."""

from datetime import datetime

from django.utils.translation import gettext as _

from pipeline.auth import Principal
from workers.models import Lease, Worker, health

# Who needs a look first; the rest follows in the order of their state.
ATTENTION = ("unresponsive", "stalled", "late", "healthy", "")
# What no list shows of a worker.
BULK_OF_WORKER = ("crash_trace", "metadata", "capabilities", "tools", "affinity")


def describe(workers: list[Worker], principal: Principal, now: datetime) -> None:
    """Give each worker its `shown_health` at `now`, `why` it is so, and its live `lease` where `principal` may see it.
    One query.
    """
    live = Lease.objects.visible_to(principal).live().filter(worker__in=workers).select_related("task__run")
    leases = {lease.worker_id: lease for lease in live.defer("task__spec", "task__touches")}
    for worker in workers:
        worker.shown_health = worker.health(now)
        worker.why = _why(worker)
        worker.lease = leases.get(worker.pk)


def _why(worker: Worker) -> str:
    """What made the worker's `shown_health`, in words; the reason of a silence that is explained."""
    if worker.shown_health == health.UNRESPONSIVE:
        return _("no heartbeat for more than %(n)d s") % {"n": worker.timeout_seconds}
    if worker.shown_health == health.LATE:
        return _("two heartbeats are missing")
    if worker.shown_health == health.STALLED:
        return _("it beats, and its work does not move")
    if worker.state == Worker.State.BUSY and worker.activity in health.PATIENT:
        return _("it waits, and may")
    return ""


def project_of(worker: Worker) -> str | None:
    """The project whose operators look after this worker: that of its key; None when it serves the installation."""
    return worker.api_key.project_id if worker.api_key else None
