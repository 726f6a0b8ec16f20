"""Pages of the workers: who is alive, who moves, and what each of them did."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from pipeline import pages
from pipeline.auth import signed_in
from pipeline.clock import db_now
from pipeline.models import Event
from workers.models import Lease, Worker
from workers.pages import ATTENTION, BULK_OF_WORKER, describe, project_of

ALIVE, FINISHED = "alive", "finished"


@require_safe
@signed_in
def workers(request: HttpRequest) -> HttpResponse:
    """The workers, newest first in pages; within a page those first that need a look. The living ones unless asked."""
    filters = pages.Filters(request)
    rows = Worker.objects.visible_to(request.principal).defer(*BULK_OF_WORKER)
    state = filters.one_of("state", [ALIVE, FINISHED, *Worker.State.values])
    if state == FINISHED:
        rows = rows.filter(state__in=Worker.FINISHED)
    elif state and state != ALIVE:
        rows = rows.filter(state=state)
    elif state == ALIVE or not request.GET:
        filters["state"] = ALIVE
        rows = rows.alive()
    page = pages.page_of(rows, request)
    describe(page.rows, request.principal, db_now())
    page.rows.sort(key=lambda worker: (worker.is_finished, ATTENTION.index(worker.shown_health), worker.state))
    return render(
        request,
        "workers/workers.html",
        {
            "workers": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "states": [(ALIVE, _("alive")), (FINISHED, _("finished")), *Worker.State.choices],
        },
    )


@require_safe
@signed_in
def worker(request: HttpRequest, pk: str) -> HttpResponse:
    """One worker: its three clocks, what it holds, what it did."""
    worker = _worker(request, pk)
    describe([worker], request.principal, db_now())
    leases = Lease.objects.visible_to(request.principal).filter(worker=worker).select_related("task__run", "attempt")
    history = Event.objects.visible_to(request.principal).filter(worker_id=worker.pk).exclude(severity="debug")
    return render(
        request,
        "workers/worker.html",
        {
            "worker": worker,
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
    return _act(request, pk, lambda worker: worker.resume(by=request.principal.actor), _("It goes on."))


@require_POST
@signed_in
def worker_drain(request: HttpRequest, pk: str) -> HttpResponse:
    """Ask it to end after its task."""
    return _act(
        request,
        pk,
        lambda worker: worker.request_shutdown(by=request.principal.actor, mode="drain"),
        _("Asked to end after its task."),
    )


@require_POST
@signed_in
def worker_stop(request: HttpRequest, pk: str) -> HttpResponse:
    """Ask it to stop its task and end now, with a reason."""
    return _act(
        request,
        pk,
        lambda worker: worker.request_shutdown(
            by=request.principal.actor, mode="now", reason=request.POST.get("reason", "")
        ),
        _("Stop requested. It counts as stopped when it says so, or when its lease runs out."),
    )


def _act(request: HttpRequest, pk: str, verb: Callable[[Worker], object], done: str) -> HttpResponse:
    worker = _worker(request, pk)
    request.principal.must("operator", project_of(worker))
    return pages.act(request, lambda: verb(worker), done=done, to=reverse("workers:worker", args=[pk]))
