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
from workers.pages import ATTENTION, BULK_OF_WORKER, Shown, describe

register = template.Library()

SHOWN = 200


def _fleet(context: Context) -> list[Shown]:
    """The living workers that the viewer may see. Asked once a page."""
    request = context["request"]
    if not hasattr(request, "fleet"):
        rows = Worker.objects.visible_to(request.principal).alive().defer(*BULK_OF_WORKER).order_by("-pk")[:SHOWN]
        request.fleet = describe(rows, request.principal, db_now())
    return list(request.fleet)


@register.inclusion_tag("_parts/figure.html", takes_context=True)
def moving_figure(context: Context) -> dict[str, Any]:
    """How many agents work and make progress, of how many that are alive."""
    fleet = _fleet(context)
    moving = [one for one in fleet if one.worker.state == Worker.State.BUSY and one.health in ("healthy", "late")]
    stuck = [one for one in fleet if one.health in ("stalled", "unresponsive")]
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
    fleet = sorted(_fleet(context), key=lambda one: (ATTENTION.index(one.health), one.worker.state, one.worker.name))
    return {"workers": fleet}


@register.simple_tag
def with_workers(attempts: Iterable[StepAttempt]) -> list[tuple[StepAttempt, Worker | None]]:
    """The attempts, each with the worker that held its lease. One query."""
    rows = list(attempts)
    leases = Lease.objects.filter(attempt__in=[row.pk for row in rows]).select_related("worker")
    held = {lease.attempt_id: lease.worker for lease in leases.only("attempt_id", "worker__name")}
    return [(row, held.get(row.pk)) for row in rows]
