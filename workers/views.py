"""Pages of the workers: who is alive, who moves, and what each of them did."""

from collections.abc import Callable

from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from pipeline import pages
from pipeline.auth import signed_in
from pipeline.clock import db_now
from pipeline.models import Event, Hold
from workers.models import Lease, Worker, health
from workers.pages import ATTENTION, BULK_OF_WORKER, describe, project_of

ALIVE, FINISHED, ARCHIVED = "alive", "finished", "archived"


@require_safe
@signed_in
def workers(request: HttpRequest) -> HttpResponse:
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
    page = pages.page_of(rows, request)
    if not filters.given.get("cursor"):
        needy = list(rows.needs_person().order_by("-pk")[: settings.SIGNALBOX_LIST_LIMIT])
        page.rows[:] = {worker.pk: worker for worker in [*needy, *page.rows]}.values()
    describe(page.rows, request.principal, db_now())
    page.rows.sort(key=lambda worker: (worker.is_finished, ATTENTION.index(worker.shown_health), worker.state))
    return render(
        request,
        "workers/workers.html",
        {
            "workers": page.rows,
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
    )


@require_safe
@signed_in
def worker(request: HttpRequest, pk: str) -> HttpResponse:
    """One worker: its three clocks, what it holds, what it did."""
    worker = _worker(request, pk)
    describe([worker], request.principal, db_now())
    hold = Hold.objects.covering(worker.lease.task).order_by("pk").first() if worker.lease else None
    leases = Lease.objects.visible_to(request.principal).filter(worker=worker).select_related("task__run", "attempt")
    history = Event.objects.visible_to(request.principal).filter(worker_id=worker.pk).exclude(severity="debug")
    return render(
        request,
        "workers/worker.html",
        {
            "worker": worker,
            "hold": hold,
            "may": pages.roles_in(request.principal, project_of(worker)),
            # A worker of the installation serves many projects: its crash report may quote any of them.
            "may_see_crash": request.principal.may("viewer", project_of(worker)),
            "leases": leases.defer(
                "task__spec", "attempt__output_tail", "attempt__error_log", "attempt__input_prompt"
            ).order_by("-pk")[:30],
            "events": pages.with_addresses(history.defer("canonical", "before", "after", "data").order_by("-pk")[:16]),
            "trail": [(_("Workers"), reverse("workers:list")), (worker.name, "")],
        },
    )


def _worker(request: HttpRequest, pk: str) -> Worker:
    rows = Worker.objects.visible_to(request.principal).select_related(
        "api_key", "previous_worker", "current_task__run"
    )
    return get_object_or_404(rows, pk=pk)


@require_POST
@signed_in
def worker_pause(request: HttpRequest, pk: str) -> HttpResponse:
    """Let it keep what it has, and claim no more."""
    return _act(
        request,
        pk,
        lambda worker: worker.pause(by=request.principal.actor, reason=request.POST.get("reason", "")),
        _("Paused: it claims nothing until it is resumed."),
    )


@require_POST
@signed_in
def worker_resume(request: HttpRequest, pk: str) -> HttpResponse:
    """Let it go on."""
    return _act(
        request,
        pk,
        lambda worker: worker.resume(by=request.principal.actor, reason=request.POST.get("reason", "")),
        _("It goes on."),
    )


@require_POST
@signed_in
def worker_drain(request: HttpRequest, pk: str) -> HttpResponse:
    """Ask it to end after its task."""
    return _act(
        request,
        pk,
        lambda worker: worker.request_shutdown(
            by=request.principal.actor, mode="drain", reason=request.POST.get("reason", "")
        ),
        _("Asked to end after its task."),
    )


@require_POST
@signed_in
def worker_stop(request: HttpRequest, pk: str) -> HttpResponse:
    """Ask it to stop its task and end now, with a reason."""
    return _act(
        request,
        pk,
        lambda worker: worker.stop(by=request.principal.actor, reason=request.POST.get("reason", "")),
        _("Stop requested. It counts as stopped when it says so, or when its time for that is over."),
    )


@require_POST
@signed_in
def worker_crash(request: HttpRequest, pk: str) -> HttpResponse:
    """Declare crashed what is gone, with a reason: its task goes to somebody else."""
    return _act(
        request,
        pk,
        lambda worker: worker.declare_crashed(by=request.principal.actor, reason=request.POST.get("reason", "")),
        _("Declared crashed: its task is tried again or fails, and what it still sends is refused."),
    )


def _act(request: HttpRequest, pk: str, verb: Callable[[Worker], object], done: str) -> HttpResponse:
    worker = _worker(request, pk)
    request.principal.must("operator", project_of(worker))
    return pages.act(request, lambda: verb(worker), done=done, to=reverse("workers:worker", args=[pk]))
