"""What the workers' app shows on other pages: the figure of moving agents, the fleet, and who made an attempt."""

from collections.abc import Iterable
from typing import Any

from django import template
from django.template import Context
from django.urls import reverse
from django.utils.translation import gettext as _

from pipeline.clock import db_now
from pipeline.models import StepAttempt
from workers.models import Lease, Worker
from workers.pages import ATTENTION, BULK_OF_WORKER, describe

register = template.Library()

SHOWN = 200


def _fleet(context: Context) -> list[Worker]:
    """The living workers that the viewer may see, each described. Asked once a page."""
    request = context["request"]
    if not hasattr(request, "fleet"):
        rows = Worker.objects.visible_to(request.principal).alive().defer(*BULK_OF_WORKER).order_by("-pk")[:SHOWN]
        request.fleet = list(rows)
        describe(request.fleet, request.principal, db_now())
    return list(request.fleet)


@register.inclusion_tag("_parts/figure.html", takes_context=True)
def moving_figure(context: Context) -> dict[str, Any]:
    """How many agents work and make progress, of how many that are alive."""
    fleet = _fleet(context)
    moving = [w for w in fleet if w.state == Worker.State.BUSY and w.shown_health in ("healthy", "late")]
    stuck = [w for w in fleet if w.shown_health in ("stalled", "unresponsive")]
    if stuck:
        note = _("%(n)d need a look") % {"n": len(stuck)}
    else:
        note = _("none is stalled") if fleet else _("no agent is registered")
    return {
        "label": _("Moving agents"),
        "value": len(moving),
        "unit": _("of %(n)d") % {"n": len(fleet)},
        "note": note,
        "href": reverse("workers:list"),
        "tone": "bad" if stuck else "",
    }


@register.inclusion_tag("workers/_fleet.html", takes_context=True)
def fleet_panel(context: Context) -> dict[str, Any]:
    """Every living agent as a chip, those first that need a look."""
    fleet = sorted(
        _fleet(context), key=lambda worker: (ATTENTION.index(worker.shown_health), worker.state, worker.name)
    )
    return {"workers": fleet}


@register.simple_tag
def name_workers(attempts: Iterable[StepAttempt]) -> str:
    """Give each attempt the `worker` that held its lease, or None. Shows nothing. One query."""
    rows = list(attempts)
    leases = Lease.objects.filter(attempt__in=[row.pk for row in rows]).select_related("worker")
    held = {lease.attempt_id: lease.worker for lease in leases.only("attempt_id", "worker__name")}
    for row in rows:
        row.worker = held.get(row.pk)
    return ""
