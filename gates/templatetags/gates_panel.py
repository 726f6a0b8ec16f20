"""What the gates show on other pages: the pass rate, and the checks of one patch."""

from datetime import timedelta
from typing import Any

from django import template
from django.db.models import Count, Q
from django.db.models.functions import TruncDate
from django.template import Context
from django.urls import reverse
from django.utils.translation import gettext as _

from gates.models import GateRun
from gates.pages import BULK_OF_GATE_RUN, ISOLATED_FROM
from ledger.models import Patch
from pipeline import readable
from pipeline.pages import today

register = template.Library()

DAYS = 14
OF_PATCH_SHOWN = 30


@register.filter
def in_words(value: Any) -> str:
    """A value of a criterion as people read it: `yes`, `level: warning, count: 0`, `—`."""
    return readable.words(value)


@register.inclusion_tag("_parts/figure.html", takes_context=True)
def gates_figure(context: Context) -> dict[str, Any]:
    """The share of the checks decided in the last fourteen days that passed, and the same by day."""
    start = today() - timedelta(days=DAYS - 1)
    rows = GateRun.objects.visible_to(context["request"].principal).filter(
        completed_at__gte=start, state__in=["passed", "failed"]
    )
    counted = rows.values(day=TruncDate("completed_at")).annotate(
        n=Count("pk"), good=Count("pk", filter=Q(state="passed"))
    )
    by_day = {row["day"]: row for row in counted.order_by()}
    decided = sum(row["n"] for row in by_day.values())
    passed = sum(row["good"] for row in by_day.values())
    days = [by_day.get((start + timedelta(days=day)).date()) for day in range(DAYS)]
    return {
        "label": _("Gate pass rate"),
        "value": f"{passed / decided:.0%}" if decided else "—",
        "note": _("%(passed)d of %(decided)d in %(days)d days") % {"passed": passed, "decided": decided, "days": DAYS}
        if decided
        else _("nothing decided in %(days)d days") % {"days": DAYS},
        "values": [row["good"] / row["n"] if row else None for row in days],
        "href": reverse("gates:list"),
    }


@register.inclusion_tag("gates/_of_patch.html", takes_context=True)
def gate_runs_of(context: Context, patch: Patch) -> dict[str, Any]:
    """The checks of one patch, newest first."""
    rows = GateRun.objects.filter(patch=patch).defer(*BULK_OF_GATE_RUN).with_waivers().order_by("-pk")[:OF_PATCH_SHOWN]
    return {"gate_runs": rows, "isolated_from": ISOLATED_FROM}
