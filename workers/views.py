"""Pages of the workers: who is alive, who moves, and what each of them did."""

from collections.abc import Callable
from typing import NamedTuple

from django.conf import settings
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_noop
from django.views.decorators.http import require_POST, require_safe

from pipeline import pages
from pipeline.auth import SignedInRequest, signed_in
from pipeline.clock import db_now
from pipeline.events import Actor
from pipeline.ids import is_id
from pipeline.models import Event, Hold
from pipeline.refusals import NotFound
from workers import claims
from workers.models import Lease, Worker, health
from workers.pages import ATTENTION, BULK_OF_WORKER, describe, holds_before, last_hour, offered, project_of, waiting_for

ALIVE, FINISHED, ARCHIVED = "alive", "finished", "archived"


@require_safe
@signed_in
def workers(request: SignedInRequest) -> HttpResponse:
    """The workers, newest first in pages, before them all those that need a look. The living ones unless asked."""
    filters = pages.Filters(request)
    rows = Worker.objects.visible_to(request.principal).defer(*BULK_OF_WORKER)
    state = filters.one_of("state", [ALIVE, FINISHED, ARCHIVED, *Worker.State.values])
    word = filters.one_of("health", dict(health.CHOICES))
    if state == ARCHIVED:
        rows = rows.archived()
    elif state == FINISHED:
        rows = rows.listed().filter(state__in=Worker.FINISHED)
    elif state and state != ALIVE:
        rows = rows.listed().filter(state=state)
    elif state == ALIVE or not set(request.GET) - {"cursor"}:
        filters["state"] = ALIVE
        rows = rows.alive()
    else:
        rows = rows.listed()
    if word:
        rows = rows.of_health(word)
    page = pages.page_of(rows, filters)
    found = {worker.pk: worker for worker in page.rows}
    if not filters.given.get("cursor") and not filters.errors:
        needy = rows.needs_person().order_by("-pk")[: settings.SIGNALBOX_LIST_LIMIT]
        found = {worker.pk: worker for worker in needy} | found
    shown = describe(found.values(), request.principal, db_now())
    shown.sort(key=lambda one: (one.worker.is_finished, ATTENTION.index(one.health), one.worker.state))
    return render(
        request,
        "workers/workers.html",
        {
            "workers": shown,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "states": [
                (ALIVE, _("alive")),
                (FINISHED, _("finished")),
                (ARCHIVED, _("archived")),
                *Worker.State.choices,
            ],
            "healths": health.CHOICES,
        },
        status=filters.status,
    )


@require_safe
@signed_in
def worker(request: SignedInRequest, pk: str) -> HttpResponse:
    """One worker: its three clocks, what it holds, what it did."""
    worker = _worker(request, pk)
    now = db_now()
    (shown,) = describe([worker], request.principal, now)
    may = pages.roles_in(request.principal, project_of(worker))
    may_give = may["operator"] and worker.state == Worker.State.IDLE and not worker.shutdown_mode
    if shown.lease:
        holds = list(Hold.objects.covering(shown.lease.task).order_by("pk")[:1])
    else:
        holds = [] if worker.current_task_id or worker.is_finished else holds_before(worker, request.principal)
    leases = Lease.objects.visible_to(request.principal).filter(worker=worker).select_related("task__run", "attempt")
    history = Event.objects.visible_to(request.principal).filter(worker_id=worker.pk).exclude(severity="debug")
    return render(
        request,
        "workers/worker.html",
        {
            "worker": worker,
            "health": shown.health,
            "why": shown.why,
            "lease": shown.lease,
            "holds": holds,
            "minutes": last_hour(worker, now),
            "waiting": offered(worker, request.principal) if may_give else [],
            "may": may,
            # A worker of the installation serves many projects: its crash report may quote any of them.
            "may_see_crash": request.principal.may("viewer", project_of(worker)),
            "stop_reason": leases.lost().exclude(stop_reason="").values_list("stop_reason", flat=True).first(),
            "leases": leases.defer(
                "task__spec", "attempt__output_tail", "attempt__error_log", "attempt__input_prompt"
            ).order_by("-pk")[:30],
            "events": pages.with_addresses(history.defer("canonical", "before", "after", "data").order_by("-pk")[:16]),
            "trail": [(_("Workers"), reverse("workers:list")), (worker.name, "")],
        },
    )


def _worker(request: SignedInRequest, pk: str) -> Worker:
    rows = Worker.objects.visible_to(request.principal).select_related(
        "api_key", "previous_worker", "current_task__run"
    )
    return get_object_or_404(rows, pk=pk)


class Button(NamedTuple):
    """What pressing a worker's button does, with the reason given (some verbs owe one), and what is said then."""

    verb: Callable[[Worker, Actor, str], object]
    done: str


BUTTONS = {
    "pause": Button(
        lambda worker, by, reason: worker.pause(by=by, reason=reason),
        gettext_noop("Paused: it claims nothing until it is resumed."),
    ),
    "resume": Button(lambda worker, by, reason: worker.resume(by=by, reason=reason), gettext_noop("It goes on.")),
    "drain": Button(
        lambda worker, by, reason: worker.request_shutdown(by=by, mode="drain", reason=reason),
        gettext_noop("Asked to end after its task."),
    ),
    "stop": Button(
        lambda worker, by, reason: worker.stop(by=by, reason=reason),
        gettext_noop("Stop requested. It counts as stopped when it says so, or when its time for that is over."),
    ),
    "crash": Button(
        lambda worker, by, reason: worker.declare_crashed(by=by, reason=reason),
        gettext_noop("Declared crashed: its task is tried again or fails, and what it still sends is refused."),
    ),
}


@require_POST
@signed_in
def press(request: SignedInRequest, pk: str, button: str) -> HttpResponse:
    """One of BUTTONS, by an operator of the worker's project."""
    worker, by = _worker(request, pk), request.principal.actor
    request.principal.must("operator", project_of(worker))
    reason, pressed = request.POST.get("reason", ""), BUTTONS[button]
    to = reverse("workers:worker", args=[pk])
    return pages.act(request, lambda: pressed.verb(worker, by, reason), done=_(pressed.done), to=to)


@require_POST
@signed_in
def give(request: SignedInRequest, pk: str) -> HttpResponse:
    """Give it a task of a project that the person operates: the claim, pushed."""
    worker = _worker(request, pk)
    request.principal.must("operator", project_of(worker))
    chosen = request.POST.get("task", "")
    task = waiting_for(worker, request.principal).filter(pk=chosen).first() if is_id(chosen) else None

    def give_it() -> object:
        if task is None:
            raise NotFound.of("task")
        request.principal.must("operator", task.project_id)
        return claims.assign_to(worker, task, by=request.principal.actor)

    return pages.act(request, give_it, done=_("It has the task."), to=reverse("workers:worker", args=[pk]))
