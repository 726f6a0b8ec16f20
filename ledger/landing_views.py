"""Pages of what follows a landing: the remotes with what is on its way to them, and the receipts."""

import json
from typing import NamedTuple

from django.db.models import Count, Q
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from ledger.models import Push, Receipt, Remote
from pipeline import events, pages
from pipeline.auth import SignedInRequest, signed_in

PUSHES_SHOWN = 10


class Shown(NamedTuple):
    """A remote as its page shows it: how many commits are on their way to it, how many are held, the first of them, the
    newest request to pull, and whether the viewer may have it fetched.
    """

    remote: Remote
    waiting: int
    held: int
    pushes: list[Push]
    asked: Push | None
    may_fetch: bool


@require_safe
@signed_in
def remotes(request: SignedInRequest) -> HttpResponse:
    """Every remote with its last fetch, and what has landed here and is not there yet."""
    who = request.principal
    rows = list(Remote.objects.visible_to(who).select_related("project").order_by("project__key"))
    owed = Push.objects.visible_to(who).exclude(state=Push.State.PUSHED)
    counts = owed.values("queue__project").annotate(
        waiting=Count("pk", filter=Q(state=Push.State.WAITING)), held=Count("pk", filter=Q(state=Push.State.HELD))
    )
    by_project = {row["queue__project"]: (row["waiting"], row["held"]) for row in counts.order_by()}
    shown = []
    for remote in rows:
        waiting, held = by_project.get(remote.project_id, (0, 0))
        of_project = owed.filter(queue__project=remote.project_id).select_related("patch", "queue")
        pushes = list(of_project.defer("request_text").order_by("pk")[:PUSHES_SHOWN]) if waiting or held else []
        newest = Push.objects.filter(queue__project=remote.project_id, state=Push.State.PUSHED).exclude(request_text="")
        asked = newest.order_by("-pk").first() if remote.landing == Remote.Landing.BRANCH else None
        shown.append(Shown(remote, waiting, held, pushes, asked, who.may("operator", remote.project_id)))
    return render(
        request,
        "ledger/remotes.html",
        {
            "shown": shown,
            "may_admin": who.may("admin", None),
            "trail": [(_("Ledger"), reverse("ledger:list")), (_("Remotes"), "")],
        },
    )


@require_POST
@signed_in
def remote_fetch(request: SignedInRequest, pk: str) -> HttpResponse:
    """Have a remote asked for new commits; it is done a moment later."""
    who = request.principal
    remote = get_object_or_404(Remote.objects.visible_to(who).live().select_related("project"), pk=pk)
    who.must("operator", remote.project_id)

    def ask() -> None:
        events.nudge_later("ledger.landing_tasks.fetch", remote.pk)

    return pages.act(request, ask, done=_("The remote is being asked."), to=reverse("ledger:remotes"))


@require_safe
@signed_in
def receipts(request: SignedInRequest) -> HttpResponse:
    """The receipts, newest first, without their statements."""
    who = request.principal
    filters = pages.Filters(request)
    rows = Receipt.objects.visible_to(who).defer("statement").select_related("project", "patch")
    if project := filters.project():
        rows = rows.filter(project=project)
    page = pages.page_of(rows, filters)
    return render(
        request,
        "ledger/receipts.html",
        {
            "receipts": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "projects": pages.project_choices(who),
            "trail": [(_("Ledger"), reverse("ledger:list")), (_("Receipts"), "")],
        },
        status=filters.status,
    )


@require_safe
@signed_in
def receipt(request: SignedInRequest, pk: str) -> HttpResponse:
    """One receipt: where the commit comes from, and the statement as it was written."""
    who = request.principal
    row = get_object_or_404(Receipt.objects.visible_to(who).select_related("project", "patch"), pk=pk)
    try:
        told = json.loads(row.statement)
    except ValueError:
        told = None  # somebody has changed it past the product: what is there is shown, and said to be broken
    predicate = told.get("predicate", {}) if isinstance(told, dict) else {}
    return render(
        request,
        "ledger/receipt.html",
        {
            "receipt": row,
            "is_intact": row.is_intact(),
            "told": predicate if isinstance(predicate, dict) else {},
            "statement": json.dumps(told, indent=2, ensure_ascii=False) if told is not None else row.statement,
            "trail": [
                (_("Ledger"), reverse("ledger:list")),
                (_("Receipts"), reverse("ledger:receipts")),
                (row.commit_sha[:12], ""),
            ],
        },
    )
