"""The page of costs: where the money goes, by day, by tool and model, and use by use."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.db.models import Count, F, Q, QuerySet, Sum, Value
from django.db.models.functions import TruncDate
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from costs.models import TOKEN_FIELDS, CostRecord
from costs.pages import DAYS, totals
from pipeline import pages
from pipeline.auth import signed_in

TOOLS_SHOWN = 30


@require_safe
@signed_in
def costs(request: HttpRequest) -> HttpResponse:
    """Sums of what was booked and not voided, each currency for itself, and the records themselves."""
    filters = pages.Filters(request)
    rows = CostRecord.objects.visible_to(request.principal)
    for name in ("project", "run"):
        if value := filters.id(name):
            rows = rows.filter(**{name: value})
    if landing := filters.one_of("landing", CostRecord.Landing.values):
        rows = rows.filter(landing=landing)
    if filters.one_of("unpriced", ["yes"]):
        rows = rows.unpriced()
    tokens_in = sum((F(name) for name in TOKEN_FIELDS if name != "tokens_output"), start=Value(0))
    shown = rows.select_related("project", "task", "tool").defer("task__spec", "task__touches")
    page = pages.page_of(shown.annotate(tokens_in=tokens_in), request)
    return render(
        request,
        "costs/costs.html",
        {
            "totals": totals(rows),
            "days": _by_day(rows),
            "tools": _by_tool(rows),
            "records": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "projects": pages.project_choices(request.principal),
            "landings": CostRecord.Landing.choices,
        },
    )


def _by_day(rows: "QuerySet[CostRecord]") -> list[dict[str, Any]]:
    """Per day and currency of the last fourteen days, newest first: `amount`, `landed`, `waste`, `n`."""
    zero = Decimal(0)
    found = (
        rows.filter(voided_at=None, recorded_at__gte=pages.today() - timedelta(days=DAYS - 1))
        .values("currency", day=TruncDate("recorded_at"))
        .annotate(
            landed=Sum("amount", filter=Q(landing="landed"), default=zero),
            waste=Sum("amount", filter=Q(landing="waste"), default=zero),
            n=Count("pk"),
            amount=Sum("amount"),
        )
    )
    return list(found.order_by("-day", "currency"))


def _by_tool(rows: "QuerySet[CostRecord]") -> list[dict[str, Any]]:
    """Per tool, model and currency, the dearest first: `amount`, `n`, and how many were `unpriced`."""
    found = (
        rows.filter(voided_at=None)
        .values("tool__key", "model", "currency")
        .annotate(amount=Sum("amount"), n=Count("pk"), unpriced=Count("pk", filter=Q(unpriced=True)))
    )
    return list(found.order_by("-amount", "tool__key", "model")[:TOOLS_SHOWN])
