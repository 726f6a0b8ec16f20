"""What the costs show on other pages: what was spent today, and what runs have cost so far."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django import template
from django.db.models import Sum
from django.template import Context
from django.urls import reverse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _

from costs.models import CostRecord, DailySpend
from costs.pages import DAYS, totals
from costs.periods import Standing
from pipeline.models import Run
from pipeline.pages import today
from pipeline.templatetags.console import money

register = template.Library()


@register.inclusion_tag("_parts/figure.html", takes_context=True)
def spend_figure(context: Context) -> dict[str, Any]:
    """What was booked since midnight UTC and by day, in the currency with the greatest sum; the others in the note."""
    start = today() - timedelta(days=DAYS - 1)
    rows = DailySpend.objects.visible_to(context["request"].principal).filter(day__gte=start.date())
    spent: dict[str, dict[Any, Decimal]] = defaultdict(dict)
    for row in rows.values("currency", "day").annotate(total=Sum("amount")).order_by("currency"):
        spent[row["currency"]][row["day"]] = row["total"]
    shown = max(spent, key=lambda currency: sum(spent[currency].values()), default="USD")
    days = [spent[shown].get((start + timedelta(days=day)).date(), Decimal(0)) for day in range(DAYS)]
    others = [currency for currency in spent if currency != shown]
    note = _("%(amount)s in %(days)d days") % {"amount": _plain(sum(days, Decimal(0)), shown), "days": DAYS}
    if others:
        note += ", " + _("and in %(currencies)s") % {"currencies": ", ".join(others)}
    return {
        "label": _("Spend today"),
        "value": money(days[-1], shown),
        "note": note,
        "values": days,
        "href": reverse("costs:list"),
    }


def _plain(amount: Decimal, currency: str) -> str:
    return f"{amount.quantize(Decimal('0.01'))} {currency}"


@register.simple_tag
def with_costs(runs: Iterable[Run]) -> list[tuple[Run, list[Mapping[str, Any]]]]:
    """The runs, each with what it has cost: {amount, currency}, one for each currency. One query."""
    rows = list(runs)
    spent: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    summed = CostRecord.objects.live().filter(run__in=rows).values("run_id", "currency").annotate(amount=Sum("amount"))
    for row in summed.order_by("run_id", "currency"):
        spent[row["run_id"]].append(row)
    return [(run, spent[run.pk]) for run in rows]


@register.simple_tag
def spend_chart(days: Iterable[Mapping[str, Any]]) -> SafeString:
    """A bar for each day, oldest first: landed, waste, and the rest; of the currency with the greatest sum."""
    rows = list(days)
    sums: dict[str, Decimal] = defaultdict(Decimal)
    for row in rows:
        sums[row["currency"]] += row["amount"]
    shown = max(sums, key=lambda currency: sums[currency], default="")
    of = sorted((row for row in rows if row["currency"] == shown), key=lambda row: row["day"])
    most = max((row["amount"] for row in of), default=Decimal(0))
    if not most:
        return format_html("{}", "")
    first, width = of[0]["day"], 100 / DAYS
    start = 100 - width * ((of[-1]["day"] - first).days + 1)
    parts = []
    for row in of:
        left, base = start + width * (row["day"] - first).days, Decimal(40)
        rest = row["amount"] - row["landed"] - row["waste"]
        for tone, amount in (("good", row["landed"]), ("bad", row["waste"]), ("move", rest)):
            height = amount / most * 38
            if height > 0:
                base -= height
                parts.append((tone, f"{left + 0.5:.2f}", f"{base:.2f}", f"{width - 1:.2f}", f"{height:.2f}"))
    label = _("Spent by day: landed below, waste above it, then what is in flight; %(currency)s") % {"currency": shown}
    return format_html(
        '<svg class="spend-chart" viewBox="0 0 100 40" preserveAspectRatio="none" focusable="false" role="img"'
        ' aria-label="{}">{}</svg>',
        label,
        format_html_join("", '<rect class="fill-{}" x="{}" y="{}" width="{}" height="{}"/>', parts),
    )


@register.simple_tag
def budget_bar(standing: Standing) -> SafeString:
    """What is spent (red once the limit is reached) and what is set aside, of the limit."""
    limit = standing.limit or Decimal(1)
    spent = min(standing.spent / limit * 100, Decimal(100)) if standing.limit else Decimal(100)
    aside = min(standing.reserved / limit * 100, 100 - spent)
    tone = "bad" if standing.status == "exceeded" else "good"
    return format_html(
        '<span class="progress"><svg class="progress-bar" viewBox="0 0 100 6" preserveAspectRatio="none"'
        ' role="progressbar" aria-label="{}" aria-valuemin="0" aria-valuemax="100" aria-valuenow="{}">'
        '<rect class="progress-track" width="100" height="6"/><rect class="fill-{}" width="{}" height="6"/>'
        '<rect class="fill-move" x="{}" width="{}" height="6"/></svg><span class="number">{}&nbsp;%</span></span>',
        _("Spent and set aside, of the limit"),
        round(spent + aside),
        tone,
        f"{spent:.2f}",
        f"{spent:.2f}",
        f"{aside:.2f}",
        round(standing.spent / limit * 100) if standing.limit else 100,
    )


@register.inclusion_tag("costs/_of_run.html")
def cost_of_run(run: Run) -> dict[str, Any]:
    """What a run has cost so far: the total and its parts by type, each currency for itself."""
    rows = CostRecord.objects.filter(run=run)
    parts = rows.live().values("currency", "resource_type").annotate(amount=Sum("amount"))
    words = dict(CostRecord.Type.choices)
    return {
        "run": run,
        "totals": totals(rows),
        "parts": [(words[part["resource_type"]], part) for part in parts.order_by("-amount", "resource_type")],
    }
