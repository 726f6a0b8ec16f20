"""The page about what binds the log: its seals, the last verification, its months, and what was dropped."""

from django.contrib import messages
from django.db.models import QuerySet
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from ledger import audit, keeping, sealing
from ledger.models import Seal
from pipeline import pages
from pipeline.auth import SignedInRequest, signed_in
from pipeline.events import Event

SHOWN = 10


@require_safe
@signed_in
def seals(request: SignedInRequest) -> HttpResponse:
    """Seals, verification and retention. For who may read the whole installation: they belong to no project."""
    who = request.principal
    who.must("viewer", None)
    filters = pages.Filters(request)
    page = pages.page_of(Seal.objects.light(), filters)
    unsealed = keeping.unsealed()
    return render(
        request,
        "ledger/seals.html",
        {
            "seals": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "last": Seal.objects.last_written(),
            "unsealed": unsealed,
            "unsealed_words": f"{keeping.COUNTED:,}+" if unsealed > keeping.COUNTED else str(unsealed),
            "anchors_at": sealing.audit_repository() if who.is_installation_admin else "",
            "verified": keeping.last_verified(),
            "findings": _told("seal.broken"),
            "keeping": keeping.look(),
            "drops": _told(audit.TOMBSTONE),
            "may_verify": who.may("operator", None),
            "trail": [(_("Events"), reverse("events:list")), (_("Seals and retention"), "")],
        },
        status=filters.status,
    )


def _told(kind: str) -> QuerySet[Event]:
    """The newest of this kind, but for what was told from outside: anybody may claim anything there."""
    return (
        Event.objects.filter(kind=kind)
        .exclude(actor_kind="integration")
        .defer("canonical", "before", "after")
        .order_by("-pk")[:SHOWN]
    )


@require_POST
@signed_in
def look_now(request: SignedInRequest) -> HttpResponse:
    """Verify the newest seals, their anchors and the events under them now; says what is found first."""
    request.principal.must("operator", None)
    problems = audit.check_newest()
    if problems:
        messages.error(request, _("This is not what was written: %(what)s") % {"what": problems[0]})
    else:
        messages.success(request, _("The newest seals, their anchors and the events under them are what was written."))
    return redirect("ledger:seals")
