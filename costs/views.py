"""The pages of costs: where the money goes, budgets with their forecast, the truth meter, a month for the books."""

import re
from datetime import timedelta

from django.db.models import F, Value
from django.http import HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from costs import exports, reports
from costs.models import TOKEN_FIELDS, Budget, CostRecord, DailySpend
from costs.pages import DAYS
from pipeline import pages
from pipeline.auth import SignedInRequest, signed_in
from pipeline.clock import db_now
from pipeline.refusals import InvalidField

TOOLS_SHOWN = 30
LANDED_DAYS = 30
SESSIONS_SHOWN = 100


@require_safe
@signed_in
def costs(request: SignedInRequest) -> HttpResponse:
    """Sums of what was booked and not voided, each currency for itself, and the records themselves."""
    filters = pages.Filters(request)
    rows = CostRecord.objects.visible_to(request.principal)
    sums = DailySpend.objects.visible_to(request.principal)
    project, run = filters.project(), filters.id("run")
    if project:
        rows, sums = rows.filter(project=project), sums.filter(project=project)
    if run:
        rows = rows.filter(run=run)
    if landing := filters.one_of("landing", CostRecord.Landing.values):
        rows, sums = rows.filter(landing=landing), sums.filter(landing=landing)
    if filters.one_of("unpriced", ["yes"]):
        rows = rows.unpriced()
    tokens_in = sum((F(name) for name in TOKEN_FIELDS if name != "tokens_output"), start=Value(0))
    shown = rows.select_related("project", "task", "tool").defer("task__spec", "task__touches")
    page = pages.page_of(shown.annotate(tokens_in=tokens_in), filters)
    if filters.errors:
        rows, sums = rows.none(), sums.none()
    # A run and a single flag are not in the small table of sums; their records are few.
    few = bool(run or filters["unpriced"])
    today = pages.today().date()
    ids = [project] if project else request.principal.project_ids()
    overview = reports.Overview.of_records(rows) if few else reports.Overview.of_sums(sums)
    return render(
        request,
        "costs/costs.html",
        {
            "totals": overview.totals(),
            "days": overview.days(today - timedelta(days=DAYS - 1)),
            "tools": overview.tools(TOOLS_SHOWN),
            "classes": [] if few else overview.classes(),
            "landed": []
            if few
            else reports.landed(sums, "tool", first=today - timedelta(days=LANDED_DAYS - 1), last=today, projects=ids),
            "landed_days": LANDED_DAYS,
            "records": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "projects": pages.project_choices(request.principal),
            "landings": CostRecord.Landing.choices,
        },
        status=filters.status,
    )


@require_safe
@signed_in
def budgets(request: SignedInRequest) -> HttpResponse:
    """Every budget that the person may see: a bar of what is spent and set aside, and the forecast with its basis."""
    rows = Budget.objects.visible_to(request.principal).select_related("project").order_by("project__key", "key")
    standings = reports.standings(rows[:200], db_now())
    names = reports.scope_names(row["budget"] for row in standings)
    for row in standings:
        row["over"] = names[row["budget"].pk]
        row["may_change"] = request.principal.may("admin", row["budget"].project_id)
    return render(request, "costs/budgets.html", {"standings": standings})


@require_POST
@signed_in
def change_limit(request: SignedInRequest, pk: str) -> HttpResponse:
    """Raise or lower a budget's limit, with a reason."""
    row = get_object_or_404(Budget.objects.visible_to(request.principal), pk=pk)
    request.principal.must("admin", row.project_id)
    limit, reason = request.POST.get("limit_amount", ""), request.POST.get("reason", "")
    return pages.act(
        request,
        lambda: row.change_limit(limit, by=request.principal.actor, reason=reason),
        done=_("The limit is changed."),
        to=reverse("costs:budgets"),
    )


@require_safe
@signed_in
def truth(request: SignedInRequest) -> HttpResponse:
    """The truth meter: what tools say that they cost beside our price and the gateway's, and the likely cause."""
    filters = pages.Filters(request)
    rows = CostRecord.objects.visible_to(request.principal)
    if project := filters.project():
        rows = rows.filter(project=project)
    if filters.errors:
        rows = rows.none()
    return render(
        request,
        "costs/truth.html",
        {
            "sessions": reports.truths(rows)[:SESSIONS_SHOWN],
            "filters": filters,
            "projects": pages.project_choices(request.principal),
        },
        status=filters.status,
    )


@require_safe
@signed_in
def statement(request: SignedInRequest) -> HttpResponse:
    """One month for the books; `?month=2026-11`. For what is no month, the present one under a word about it."""
    filters = pages.Filters(request)
    given = filters.read("month", _month) or pages.today().strftime("%Y-%m")
    sums = DailySpend.objects.visible_to(request.principal)
    told = reports.statement(sums, int(given[:4]), int(given[5:]))
    before = (told["first"] - timedelta(days=1)).strftime("%Y-%m")
    after = (told["last"] + timedelta(days=1)).strftime("%Y-%m")
    return render(
        request,
        "costs/statement.html",
        {**told, "month": given, "before": before, "after": after, "error": filters.errors.get("month")},
        status=filters.status,
    )


def _month(given: str) -> str:
    if not re.fullmatch(r"20[0-9]{2}-(0[1-9]|1[0-2])", given, re.ASCII):
        raise InvalidField("month", _("a month as YYYY-MM, such as 2026-11"))
    return given


@require_safe
@signed_in
def export(request: SignedInRequest, form: str) -> StreamingHttpResponse:
    """The records of a project, a run, or all that the person may see, oldest first, as CSV or Parquet."""
    filters = pages.Filters(request)
    rows = CostRecord.objects.visible_to(request.principal)
    for name, value in (("project", filters.project()), ("run", filters.id("run"))):
        if value:
            rows = rows.filter(**{name: value})
    filters.must()
    return exports.answer(rows, form)
