"""What the workers' pages and their panels on other pages share: who needs a look, and what each worker holds."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import NamedTuple

from django.db.models import Case, Q, QuerySet, When
from django.utils.translation import gettext as _

from pipeline.auth import Principal
from pipeline.models import Event, Hold, Task
from pipeline.models.hold import stored
from workers import claims
from workers.models import Lease, Worker, health

# Who needs a look first; the rest follows in the order of their state.
ATTENTION = ("unresponsive", "stalled", "late", "healthy", "")
# What no list shows of a worker.
BULK_OF_WORKER = ("crash_trace", "metadata", "capabilities", "tools", "affinity")


class Shown(NamedTuple):
    """A worker as the pages show it: its health, why that is so, and its live lease where the viewer may see it."""

    worker: Worker
    health: str
    why: str
    lease: Lease | None


def describe(workers: Iterable[Worker], principal: Principal, now: datetime) -> list[Shown]:
    """These workers at `now`, as `principal` may see them. One query."""
    workers = list(workers)
    live = Lease.objects.visible_to(principal).live().filter(worker__in=workers).select_related("task__run")
    leases = {lease.worker_id: lease for lease in live.defer("task__spec", "task__touches")}
    shown = []
    for worker in workers:
        word = worker.health(now)
        shown.append(Shown(worker, word, _why(worker, word), leases.get(worker.pk)))
    return shown


def _why(worker: Worker, word: str) -> str:
    """What made the worker's health this word; the reason of a silence that is explained."""
    if word == health.UNRESPONSIVE:
        return _("no heartbeat for more than %(n)d s") % {"n": worker.timeout_seconds}
    if word == health.LATE:
        return _("two heartbeats are missing")
    if word == health.STALLED:
        return _("it beats, and its work does not move")
    if worker.state == Worker.State.BUSY and worker.activity in health.PATIENT:
        return _("it waits, and may")
    return ""


class Minute(NamedTuple):
    """One minute of the last hour: when it began, and the worst health that the worker had in it; "" when it was not
    alive.
    """

    at: datetime
    health: str


MINUTES = 60
_MINUTE = timedelta(minutes=1)


def last_hour(worker: Worker, now: datetime) -> list[Minute]:
    """The last sixty minutes of a worker, oldest first, by what was told of its health. One query."""
    began = now - MINUTES * _MINUTE
    told = Event.objects.filter(subject_id=worker.pk, kind="worker.health_changed", created_at__gt=began)
    changes = [
        (at, data.get("was", ""), data.get("health", ""))
        for at, data in told.order_by("stream_seq").values_list("created_at", "data")
    ]
    word = changes[0][1] if changes else worker.told_health
    minutes = []
    for number in range(MINUTES):
        at = began + number * _MINUTE
        seen = {word}
        while changes and changes[0][0] < at + _MINUTE:
            word = changes.pop(0)[2]
            seen.add(word)
        alive = at + _MINUTE > worker.started_at and (worker.ended_at is None or at < worker.ended_at)
        minutes.append(Minute(at, min(seen, key=_gravity) if alive else ""))
    if not worker.is_finished:
        minutes[-1] = Minute(minutes[-1].at, worker.health(now))
    return minutes


def _gravity(word: str) -> int:
    return ATTENTION.index(word) if word in ATTENTION else len(ATTENTION)


def project_of(worker: Worker) -> str | None:
    """The project whose operators look after this worker: that of its key; None when it serves the installation."""
    return worker.api_key.project_id if worker.api_key else None


def waiting_for(worker: Worker, principal: Principal) -> "QuerySet[Task]":
    """The queued tasks that the person sees and that this worker's key may serve, in the order of the claim."""
    rows = Task.objects.visible_to(principal).filter(state=Task.State.QUEUED, run__state="running", run__ending_to="")
    if project_of(worker):
        rows = rows.filter(project=project_of(worker))
    return rows.order_by("-score", "sequence", "pk")


def offered(worker: Worker, principal: Principal) -> list[Task]:
    """Those of them that the person may give it now, with their project."""
    return [task for task in claims.offers(worker) if principal.may("operator", task.project_id)]


HOLDS_NAMED = 5


def holds_before(worker: Worker, principal: Principal) -> list[Hold]:
    """The active holds that keep work from a worker without a task: those over itself and over all that it serves, and
    those over what waits for it; the wide ones first, then the oldest. Two queries.
    """
    waiting = waiting_for(worker, principal).values_list("project", "run__workstream", "run", "pk")[: claims.OFFERED]
    over = Q(scope_kind="installation") | Q(scope_kind="worker", scope_id=stored(worker.pk))
    if project_of(worker):
        over |= Q(scope_kind="project", scope_id=stored(project_of(worker) or ""))
    for kind, ids in zip(("project", "workstream", "run", "task"), zip(*waiting, strict=True), strict=False):
        over |= Q(scope_kind=kind, scope_id__in={stored(pk) for pk in ids if pk})
    found = Hold.objects.visible_to(principal).active().filter(over).select_related("project")
    is_narrow = Case(When(scope_kind__in=["installation", "project", "worker"], then=0), default=1)
    return list(found.order_by(is_narrow, "pk")[:HOLDS_NAMED])
