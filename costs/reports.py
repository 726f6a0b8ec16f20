"""One function for each page and address of the costs: sums by day and by anything, landed and waste, the truth meter.

Sums are read from the small table of sums by day, never from the records, so a page is as fast at ten million of them.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, NamedTuple

from django.db import connection
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import TruncDate

from costs import forecast, periods, pricing, truth
from costs.models import Budget, BudgetPeriod, CostRecord, DailySpend, OtlpMeter, Price, settled
from costs.models.record import CostRecordQuerySet
from costs.normalise import Reading, Use
from costs.pricing import Quote
from pipeline.ids import from_uuid, to_uuid
from pipeline.models import Phase, Project, Task, Tool, Workstream

ZERO = Decimal(0)
MOST_SESSIONS = 500
RECORDS_LOOKED_AT = 5000
DAYS_OF_HISTORY = 28

GROUPS = {
    "day": "day",
    "tool": "tool__key",
    "model": "model",
    "project": "project",
    "landing": "landing",
    "waste_cause": "waste_cause",
    "kind": "kind",
    "person": "person",
    "worker": "worker",
    "phase": "phase",
    "workstream": "workstream",
    "resource_type": "resource_type",
}
"""What sums may be grouped by, and the column of each."""


def summed(rows: "QuerySet[DailySpend]", names: Sequence[str]) -> "QuerySet[DailySpend, dict[str, Any]]":
    """Amount, unpriced amount and number of records by these groups and the currency."""
    columns = [GROUPS[name] for name in names]
    found = rows.values(*columns, "currency").annotate(
        total=Sum("amount"), count=Sum("records"), unpriced_amount=Sum("unpriced_amount")
    )
    sums: QuerySet[DailySpend, dict[str, Any]] = found.exclude(count=0).order_by(*columns, "currency")
    return sums


def totals_of(groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `summed` answers over no group, added up from what it answered over some."""
    found: dict[str, dict[str, Any]] = {}
    for row in groups:
        of = found.setdefault(
            row["currency"], {"currency": row["currency"], "total": ZERO, "count": 0, "unpriced_amount": ZERO}
        )
        for name in ("total", "count", "unpriced_amount"):
            of[name] += row[name]
    return [of for _currency, of in sorted(found.items())]


def by_class(rows: "QuerySet[DailySpend]") -> list[dict[str, Any]]:
    """Per currency: the total, what landed, is in flight or overhead, and waste by cause, which add up to it."""
    found = rows.values("currency", "landing", "waste_cause").annotate(
        total=Sum("amount"), count=Sum("records"), unpriced=Sum("unpriced_amount")
    )
    return _classes(found.order_by("currency", "landing", "waste_cause"))


def _classes(found: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    sums: dict[str, dict[str, Any]] = {}
    for row in found:
        of = sums.setdefault(
            row["currency"],
            {
                "currency": row["currency"], "amount": ZERO, "records": 0, "unpriced_amount": ZERO, "landed": ZERO,
                "in_flight": ZERO, "overhead": ZERO, "waste": ZERO, "causes": {},
            },
        )  # fmt: skip
        of["amount"] += row["total"]
        of["records"] += int(row["count"])
        of["unpriced_amount"] += row["unpriced"]
        of[row["landing"]] += row["total"]
        if row["landing"] == "waste" and row["total"]:
            of["causes"][row["waste_cause"]] = of["causes"].get(row["waste_cause"], ZERO) + row["total"]
    return list(sums.values())


_TOLD = ("tool", "model", "landing", "waste_cause", "currency")


class Overview:
    """What the page of costs tells of sums by day: read by one question, added up as often as the page likes.

    Adding up a hundred thousand rows takes PostgreSQL most of the page's time; what is left of them when they are
    grouped by day, tool, model and class are some hundreds.
    """

    def __init__(self, groups: Iterable[dict[str, Any]]) -> None:
        self.groups = list(groups)

    @classmethod
    def of_sums(cls, rows: "QuerySet[DailySpend]") -> "Overview":
        """Of sums by day. One query."""
        return cls(
            rows.values("day", *_TOLD)
            .annotate(total=Sum("amount"), count=Sum("records"), unpriced=Sum("unpriced_amount"))
            .order_by("currency", "landing", "waste_cause")
        )

    @classmethod
    def of_records(cls, rows: "QuerySet[CostRecord]") -> "Overview":
        """Of the live ones of these records, for what the sums by day do not know: a run, a flag. One query."""
        return cls(
            rows.filter(voided_at=None)
            .annotate(day=TruncDate("recorded_at", tzinfo=UTC))
            .values("day", *_TOLD)
            .annotate(
                total=Sum("amount"),
                count=Count("pk"),
                unpriced=Sum("amount", filter=Q(unpriced=True), default=ZERO),
            )
            .order_by("currency", "landing", "waste_cause")
        )

    def _added(self, names: Sequence[str], groups: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
        found: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in groups:
            key = tuple([row[name] for name in names])
            of = found.get(key)
            if of is None:
                of = found[key] = {
                    **dict(zip(names, key, strict=True)), "amount": ZERO, "n": 0, "unpriced": ZERO, "waste": ZERO,
                    "landed": ZERO,
                }  # fmt: skip
            of["amount"] += row["total"]
            of["n"] += int(row["count"])
            of["unpriced"] += row["unpriced"]
            if row["landing"] in ("waste", "landed"):
                of[row["landing"]] += row["total"]
        return [of for of in found.values() if of["n"]]

    def totals(self) -> list[dict[str, Any]]:
        """Per currency the live `amount`, how much of it is `waste` or `unpriced`, and the number `n` of records."""
        return sorted(self._added(["currency"], self.groups), key=lambda of: str(of["currency"]))

    def days(self, first: date) -> list[dict[str, Any]]:
        """Per day and currency from `first` on, newest first: `amount`, `landed`, `waste`, `n`."""
        found = self._added(["day", "currency"], (row for row in self.groups if row["day"] >= first))
        return sorted(found, key=lambda of: (-of["day"].toordinal(), of["currency"]))

    def tools(self, most: int) -> list[dict[str, Any]]:
        """Per tool, model and currency, the dearest first: `amount`, `n`, and how much was `unpriced`. One query."""
        found = self._added(["tool", "model", "currency"], self.groups)
        keys = dict(Tool.objects.filter(pk__in={of["tool"] for of in found if of["tool"]}).values_list("pk", "key"))
        for of in found:
            of["tool__key"] = keys.get(of["tool"])
        return sorted(found, key=lambda of: (-of["amount"], of["tool__key"] or "", of["model"]))[:most]

    def classes(self) -> list[dict[str, Any]]:
        """As `by_class`."""
        return _classes(self.groups)


# -- currencies ----------------------------------------------------------------------------------------------------


def converted(by_day: Iterable[Mapping[str, Any]], into: str) -> dict[str, Any]:
    """The sums of days (day, currency, total) in one currency, each at the rate of its day, with the rates used.

    Raises InvalidField `no_exchange_rate` where the table of the settings has none, `invalid_currency`.
    """
    table = settled.exchange_rates()
    pricing.check_currency(into)
    amount = ZERO
    used: set[pricing.ExchangeRate] = set()
    for row in by_day:
        amount += pricing.exchange(row["total"], row["currency"], into, row["day"], table)
        if row["currency"] != into:
            used.add(pricing.exchange_rate(row["currency"], into, row["day"], table))
    rates = [
        {"currency": rate.currency, "rate": rate.rate, "on": rate.on, "source": rate.source}
        for rate in sorted(used, key=lambda rate: (rate.currency, rate.on))
    ]
    return {"currency": into, "amount": amount, "rates": rates}


# -- landed and waste ----------------------------------------------------------------------------------------------

LANDED_BY = {
    "tool": ("tool__key", "COALESCE(tool.key, '')"),
    "model": ("model", "NULL"),
    "kind": ("kind", "COALESCE(t.kind, '')"),
    "person": ("person", "COALESCE(r.requested_by, '')"),
}

_PATCHES = """
SELECT {group}, count(*), sum(p.line_insertions + p.line_deletions)
FROM ledger_patch p LEFT JOIN pipeline_stepattempt a ON a.id = p.attempt_id
    LEFT JOIN pipeline_tool tool ON tool.id = a.tool_id LEFT JOIN pipeline_task t ON t.id = p.task_id
    LEFT JOIN pipeline_run r ON r.id = p.run_id
WHERE p.state = 'committed' AND p.rollback_of_id IS NULL AND p.attempt_id IS NOT NULL
    AND p.committed_at >= %(first)s AND p.committed_at < %(last)s
    AND (%(projects)s::uuid[] IS NULL OR p.project_id = ANY(%(projects)s::uuid[]))
GROUP BY 1
"""
# Which model a patch is of, its records tell: a patch of two models counts for each.
_PATCHES_BY_MODEL = """
SELECT c.model, count(*), sum(p.line_insertions + p.line_deletions)
FROM ledger_patch p JOIN LATERAL (SELECT DISTINCT model FROM costs_costrecord c
    WHERE c.attempt_id = p.attempt_id AND c.voided_at IS NULL) c ON true
WHERE p.state = 'committed' AND p.rollback_of_id IS NULL
    AND p.committed_at >= %(first)s AND p.committed_at < %(last)s
    AND (%(projects)s::uuid[] IS NULL OR p.project_id = ANY(%(projects)s::uuid[]))
GROUP BY 1
"""


def landed(
    rows: "QuerySet[DailySpend]", by: str, *, first: date, last: date, projects: Iterable[str] | None
) -> list[dict[str, Any]]:
    """What each tool, model, kind of task or person spent in these days (UTC), by class, and per landed patch and line.

    Per patch is everything that was spent there, failures included, by the patches that landed in these days; None
    where none has.
    """
    column, group = LANDED_BY[by]
    found = (
        rows.filter(day__gte=first, day__lte=last)
        .values(column, "currency")
        .annotate(
            total=Sum("amount"),
            landed=Sum("amount", filter=Q(landing="landed"), default=ZERO),
            waste=Sum("amount", filter=Q(landing="waste"), default=ZERO),
            in_flight=Sum("amount", filter=Q(landing="in_flight"), default=ZERO),
            overhead=Sum("amount", filter=Q(landing="overhead"), default=ZERO),
        )
        .order_by("-total", column, "currency")
    )
    given = {
        "first": datetime(first.year, first.month, first.day, tzinfo=UTC),
        "last": datetime(last.year, last.month, last.day, tzinfo=UTC) + timedelta(days=1),
        "projects": None if projects is None else [to_uuid(pk) for pk in projects],
    }
    with connection.cursor() as cursor:
        cursor.execute(_PATCHES_BY_MODEL if by == "model" else _PATCHES.format(group=group), given)
        patches = {name: (number, int(lines or 0)) for name, number, lines in cursor.fetchall()}
    told = []
    for row in found:
        name = row[column] or ""
        number, lines = patches.get(name, (0, 0))
        told.append(
            {
                "name": name, "currency": row["currency"], "amount": row["total"], "landed": row["landed"],
                "waste": row["waste"], "in_flight": row["in_flight"], "overhead": row["overhead"], "patches": number,
                "lines": lines, "per_patch": _each(row["total"], number), "per_line": _each(row["total"], lines),
            }
        )  # fmt: skip
    return told


def _each(amount: Decimal, number: int) -> Decimal | None:
    return (amount / number).quantize(Decimal("0.000001")) if number else None


# -- the truth meter -----------------------------------------------------------------------------------------------


def truths(records: CostRecordQuerySet) -> list[dict[str, Any]]:
    """The newest sessions of which a tool states what they cost: its figure, ours, a gateway's, and the likely cause.

    A session is what one meter, one tool's session or one attempt used. The dearest differences come first. Of the
    newest records alone, however many there are.
    """
    rows = list(records.compared().select_related("tool", "price").order_by("-pk")[:RECORDS_LOOKED_AT])
    book = Price.objects.book_for({row.model for row in rows if row.basis == CostRecord.Basis.STATED})
    sessions: dict[tuple[str, str], list[_Compared]] = defaultdict(list)
    for row in rows:
        one = _compared(row, book)
        if one is not None:
            name = row.meter or row.session or row.attempt_id or row.pk
            sessions[(row.tool.key if row.tool else row.source, name)].append(one)
    told = [_truth(tool, name, found) for (tool, name), found in list(sessions.items())[:MOST_SESSIONS]]
    reported = OtlpMeter.objects.filter(stated_amount__isnull=False, meter__in=[one["session"] for one in told])
    for meter, amount in reported.values_list("meter", "stated_amount"):
        for session in told:
            if session["session"] == meter:
                session["agent_reported"] = amount
    return sorted(told, key=lambda one: -abs(one["difference"] or ZERO))


class _Compared(NamedTuple):
    """A record of which a tool states what it cost, and our price for it."""

    row: CostRecord
    quote: Quote | None
    ours: Decimal


def _compared(row: CostRecord, book: pricing.PriceBook) -> _Compared | None:
    """None for one that was booked at what was stated, and that the prices in `book` say nothing of."""
    if row.basis != CostRecord.Basis.STATED:
        return _Compared(row, _quote(row), row.amount)
    quote, tokens = book.at(row.provider, row.model, row.reported_at or row.recorded_at), row.tokens()
    if quote is None or quote.currency != row.currency or not any(tokens.values()):
        return None
    ours = quote.amount(tokens, is_request=row.is_request, web_searches=row.web_searches)
    return None if ours is None else _Compared(row, quote, ours)


def _truth(tool: str, name: str, found: list[_Compared]) -> dict[str, Any]:
    rows = [one.row for one in found]
    uses, quotes = [], {}
    for row, quote, _ours in found:
        use = Use(
            tokens=row.tokens(),
            provider=row.provider,
            model=row.model,
            reasoning=row.reasoning,
            web_searches=row.web_searches,
            key=row.pk,
            is_request=row.is_request,
            flags=frozenset(row.flags),
        )
        uses.append(use)
        quotes[row.pk] = quote
    reported = sum((row.stated_amount or ZERO for row in rows), ZERO)
    at_gateway = [row.gateway_amount for row in rows if row.gateway_amount is not None]
    gateway = sum(at_gateway, ZERO) if len(at_gateway) == len(rows) else None
    reading = Reading("records", tuple(uses), reported)
    verdict = truth.compare(reading, lambda use: quotes[use.key], reported=reported, gateway=gateway)
    return {
        "tool": tool, "session": name, "model": ", ".join(sorted({row.model for row in rows if row.model})),
        "records": len(rows), "reported": reported, "ours": sum((one.ours for one in found), ZERO),
        "gateway": gateway, "difference": verdict.difference, "ratio": verdict.ratio, "near": verdict.near,
        "label": verdict.label, "sentence": str(verdict.sentence), "agent_reported": None,
        "currency": rows[0].currency, "at": rows[0].recorded_at,
    }  # fmt: skip


def _quote(row: CostRecord) -> Quote | None:
    """The price by which the record was booked; None when it was booked at the ceiling."""
    if row.unpriced:
        return None
    if row.price is not None:
        return row.price.quote()
    return Price.objects.book_for([]).at(row.provider, row.model, row.reported_at or row.recorded_at)


# -- budgets -------------------------------------------------------------------------------------------------------


def scope_names(budgets: Iterable[Budget]) -> dict[str, str]:
    """What each budget is over, as people call it: a key, a model, a person; the id of a run or worker."""
    rows = list(budgets)
    names: dict[tuple[str, str], str] = {}
    for kind, model in (("project", Project), ("phase", Phase), ("workstream", Workstream), ("task", Task)):
        ids = [one.scope_ref for one in rows if one.scope_kind == kind]
        if ids:
            names |= {(kind, pk): key for pk, key in model._base_manager.filter(pk__in=ids).values_list("pk", "key")}
    return {one.pk: names.get((one.scope_kind, one.scope_ref), one.scope_ref) for one in rows}


def standings(budgets: Iterable[Budget], now: datetime) -> list[dict[str, Any]]:
    """Each budget with its running period, where it stands, and what it will have spent at the end. Three queries."""
    rows = list(budgets)
    running = {
        row.budget_id: row
        for row in BudgetPeriod.objects.filter(
            Q(ends_at=None) | Q(ends_at__gt=now), budget__in=rows, starts_at__lte=now
        ).order_by("starts_at")
    }
    days = _by_day(rows)
    told = []
    for budget in rows:
        period = running.get(budget.pk)
        standing = budget.standing(period)
        span = periods.Period(period.starts_at, period.ends_at) if period else None
        span = span or periods.period_of(budget.period, budget.timezone, now)
        by_day = days.get(budget.pk, {})
        told.append(
            {
                "budget": budget,
                "period": period,
                "starts_at": None if span.starts_at == periods.BEGINNING else span.starts_at,
                "ends_at": span.ends_at,
                "standing": standing,
                "status": standing.status,
                "spent": standing.spent,
                "reserved": standing.reserved,
                "remaining": standing.remaining,
                "ratio": standing.ratio,
                "forecast": forecast.forecast(
                    period=span,
                    zone=budget.timezone,
                    now=now,
                    spent=standing.spent,
                    by_day=by_day,
                    first_day=min(by_day, default=None),
                    limit=standing.limit,
                )
                if span.starts_at != periods.BEGINNING or by_day
                else forecast.Forecast(None, "too_early"),
            }
        )
    return told


_BY_DAY = """
SELECT b.id, d.day, sum(d.amount) FROM costs_budget b JOIN costs_dailyspend d
    ON d.currency = b.currency AND d.day >= (clock_timestamp() AT TIME ZONE 'UTC')::date - %(days)s
    AND (b.project_id IS NULL OR d.project_id = b.project_id)
    AND CASE b.scope_kind WHEN 'installation' THEN true
        WHEN 'project' THEN d.project_id::text = b.scope_id
        WHEN 'phase' THEN d.phase_id::text = b.scope_id
        WHEN 'workstream' THEN d.workstream_id::text = b.scope_id
        WHEN 'worker' THEN d.worker_id::text = b.scope_id
        WHEN 'tool' THEN d.tool_id = (SELECT t.id FROM pipeline_tool t WHERE t.key = b.scope_id)
        WHEN 'model' THEN d.model = b.scope_id
        WHEN 'user' THEN d.person = b.scope_id ELSE false END
WHERE b.id = ANY(%(budgets)s) GROUP BY 1, 2
"""


def _by_day(budgets: Sequence[Budget]) -> dict[str, dict[date, Decimal]]:
    """What was spent in each budget's scope by day in the last four weeks, from the small table of sums.

    Days are UTC's: a forecast's pace differs little by where a day is cut.
    """
    if not budgets:
        return {}
    wide = [budget for budget in budgets if budget.scope_kind not in ("run", "task")]
    narrow = [budget for budget in budgets if budget.scope_kind in ("run", "task")]
    days: dict[str, dict[date, Decimal]] = defaultdict(dict)
    with connection.cursor() as cursor:
        cursor.execute(_BY_DAY, {"budgets": [to_uuid(one.pk) for one in wide], "days": DAYS_OF_HISTORY})
        rows = cursor.fetchall()
    for budget in narrow:
        of = CostRecord.objects.live().filter(**{f"{budget.scope_kind}_id": budget.scope_ref}, currency=budget.currency)
        found = of.order_by().values_list(TruncDate("recorded_at", tzinfo=UTC)).annotate(sum=Sum("amount"))
        days[budget.pk] = dict(found)
    for pk, day, amount in rows:
        days[from_uuid(pk)][day] = amount
    return days


# -- for the books -------------------------------------------------------------------------------------------------


def statement(rows: "QuerySet[DailySpend]", year: int, month: int) -> dict[str, Any]:
    """The month (UTC) for the books: per currency by class, and by project, tool and model."""
    first = date(year, month, 1)
    last = (first + timedelta(days=31)).replace(day=1) - timedelta(days=1)
    inside = rows.filter(day__gte=first, day__lte=last)
    lines = inside.values("project__key", "tool__key", "model", "currency").annotate(
        total=Sum("amount"), count=Sum("records"), tokens_in=Sum("tokens_input"), tokens_out=Sum("tokens_output"),
        unpriced=Sum("unpriced_amount"),
    )  # fmt: skip
    return {
        "first": first,
        "last": last,
        "totals": by_class(inside),
        "lines": list(lines.exclude(count=0).order_by("currency", "project__key", "-total", "tool__key", "model")),
    }
