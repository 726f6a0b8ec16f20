"""What the ledger shows on other pages: what landed today, what is parked, the queue, and the patches of a run."""

from collections import Counter
from datetime import timedelta
from typing import Any

from django import template
from django.db.models import Count
from django.db.models.functions import TruncDate
from django.template import Context
from django.urls import reverse
from django.utils.translation import gettext as _

from ledger.models import Patch
from ledger.pages import BULK_OF_PATCH, trains
from pipeline.models import Run
from pipeline.pages import today

register = template.Library()

DAYS = 14
SHOWN = 10
OF_RUN_SHOWN = 50


@register.inclusion_tag("_parts/figure.html", takes_context=True)
def landed_figure(context: Context) -> dict[str, Any]:
    """How many patches landed since midnight UTC, and on each of the last fourteen days."""
    start = today() - timedelta(days=DAYS - 1)
    rows = Patch.objects.visible_to(context["request"].principal).filter(committed_at__gte=start)
    by_day = rows.values(day=TruncDate("committed_at")).annotate(n=Count("pk")).values_list("day", "n").order_by()
    landed = Counter(dict(by_day))
    values = [landed[(start + timedelta(days=day)).date()] for day in range(DAYS)]
    return {
        "label": _("Landed today"),
        "value": values[-1],
        "note": _("%(n)d in %(days)d days") % {"n": sum(values), "days": DAYS},
        "values": values,
        "href": f"{reverse('ledger:list')}?state=committed",
    }


@register.simple_tag(takes_context=True)
def parked_patches(context: Context) -> list[tuple[Patch, bool]]:
    """The patches in quarantine that the viewer may see, newest first, each with whether the viewer may release it."""
    principal = context["request"].principal
    rows = Patch.objects.visible_to(principal).parked().select_related("project").defer(*BULK_OF_PATCH)
    return [(patch, principal.may("approver", patch.project_id)) for patch in rows.order_by("-pk")[:SHOWN]]


@register.inclusion_tag("ledger/_queue_panel.html", takes_context=True)
def merge_queue_panel(context: Context) -> dict[str, Any]:
    """The queues with what is in them, head first."""
    return {"trains": trains(context["request"])}


@register.inclusion_tag("ledger/_of_run.html", takes_context=True)
def patches_of_run(context: Context, run: Run) -> dict[str, Any]:
    """The patches of one run, newest first."""
    rows = Patch.objects.filter(run=run).select_related("project", "task").defer("task__spec", *BULK_OF_PATCH)
    return {"patches": rows.order_by("-pk")[:OF_RUN_SHOWN], "run": run, "request": context["request"]}
