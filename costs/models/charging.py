"""What records count for in budgets: charged when they are booked, given back when they are voided."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connection

from costs.models import budget
from costs.models.record import CostRecord
from pipeline import events
from pipeline.ids import from_uuid, to_uuid
from pipeline.models import Tool

if TYPE_CHECKING:
    from costs.models.booking import Booked


def charge(new: Sequence["Booked"], by: events.Actor) -> None:
    """Count the records in every budget that covers them, and use up what was set aside for their leases."""
    tools = _tool_keys({one.values["tool_id"] for one in new if one.values["tool_id"]})
    scopes: dict[int, list[str]] = {}
    known: dict[tuple[Any, ...], list[str]] = {}
    names = ("project_id", "phase_id", "workstream_id", "run_id", "task_id", "worker_id")
    for number, one in enumerate(new):
        values = one.values
        key = (*(values[name] for name in names), values["tool_id"], values["model"], values["person"])
        if key not in known:
            place = {name.removesuffix("_id"): values[name] for name in names}
            known[key] = budget.scopes_of(
                {
                    **place,
                    "tool_key": tools.get(values["tool_id"], ""),
                    "model": values["model"],
                    "person": values["person"],
                }
            )
        scopes[number] = known[key]
    everything = {scope for found in known.values() for scope in found}
    covers = budget.covering(everything, {one.values["project_id"] for one in new})
    used = _use_reservations(new, by)
    movements: dict[str, budget.Movement] = defaultdict(budget.Movement)
    foreign: dict[str, set[str]] = defaultdict(set)
    for number, one in enumerate(new):
        amount, currency = one.values["amount"], one.values["currency"]
        for cover in covers:
            if not cover.covers(scopes[number], one.values["project_id"]):
                continue
            if cover.currency != currency:
                foreign[currency].add(cover.key)
                continue
            change = movements[budget.period_for(cover)]
            change.spent += amount
            change.records.append(one.pk)
    for period, amount in used.items():
        movements[period].reserved -= amount
    budget.move_money(movements, by=by)
    for currency, keys in foreign.items():
        first = next(one for one in new if one.values["currency"] == currency)
        events.record("cost.foreign_currency", first.row(), by=by, data={"currency": currency, "budgets": sorted(keys)})


def _tool_keys(ids: set[str]) -> dict[str, str]:
    return dict(Tool.objects.filter(pk__in=ids).values_list("pk", "key")) if ids else {}


_HELD = """
SELECT r.id, r.amount, r.used, r.currency, a.id,
    (SELECT array_agg(s.period_id) FROM costs_reservationshare s WHERE s.reservation_id = r.id)
FROM costs_reservation r JOIN pipeline_stepattempt a ON a.task_id = r.task_id AND a.generation = r.generation
WHERE a.id = ANY(%s) AND (r.state = 'held' OR r.estimate_at IS NOT NULL) ORDER BY r.id FOR NO KEY UPDATE OF r
"""


def _use_reservations(new: Sequence["Booked"], by: events.Actor) -> dict[str, Decimal]:
    """What these records use of the money set aside for their leases, by period. Locks the reservations.

    A record above the whole of it is told as an anomaly, by which its worker is paused.
    """
    attempts: dict[UUID, dict[str, Decimal]] = defaultdict(lambda: defaultdict(Decimal))
    for one in new:
        if one.values["attempt_id"]:
            attempts[to_uuid(one.values["attempt_id"])][one.values["currency"]] += one.values["amount"]
    if not attempts:
        return {}
    freed: dict[str, Decimal] = defaultdict(Decimal)
    with connection.cursor() as cursor:
        cursor.execute(_HELD, [list(attempts)])
        rows = cursor.fetchall()
        for pk, amount, used, currency, attempt, shares in rows:
            spent = attempts[attempt].get(currency, Decimal(0))
            if spent > amount:
                _tell_excess(new, from_uuid(attempt), amount, by)
            taken = min(spent, amount - used)
            cursor.execute(
                "UPDATE costs_reservation SET used = CASE WHEN state = 'held' THEN used + %s ELSE used END, "
                "estimate_at = NULL WHERE id = %s RETURNING state",
                [taken, pk],
            )
            (state,) = cursor.fetchone()
            if state != "held":
                continue
            for period in shares or ():
                freed[from_uuid(period)] += taken
    return freed


def _tell_excess(new: Sequence["Booked"], attempt: str, amount: Decimal, by: events.Actor) -> None:
    for one in new:
        if one.values["attempt_id"] == attempt and one.values["amount"] > amount and one.values["basis"] != "estimated":
            row = one.row()
            message = f"{row.amount} {row.currency} is more than all that was set aside for its lease ({amount})"
            told = {"above_reservation": amount, "amount": row.amount, "currency": row.currency}
            events.record("cost.anomaly", row, by=by, message=message, data=told)


def charges(records: Collection[str]) -> list[tuple[str, str]]:
    """The periods in which these records count: (record, period)."""
    charges = budget.Charge.objects.filter(record__in=list(records)).order_by("pk")
    return list(charges.values_list("record_id", "period_id"))


def give_back(rows: Iterable[CostRecord], by: events.Actor) -> None:
    """Count these records no more, wherever they count."""
    amounts = {row.pk: row.amount for row in rows}
    movements: dict[str, budget.Movement] = defaultdict(budget.Movement)
    for record, period in charges(amounts):
        movements[period].spent -= amounts[record]
    settle(movements, by)


def settle(movements: Mapping[str, budget.Movement], by: events.Actor) -> None:
    """Apply the movements; a budget that is breached no longer lets go of its hold."""
    budget.move_money(movements, by=by)
    breached = budget.BudgetPeriod.objects.filter(pk__in=list(movements)).exclude(breached_at=None)
    for period in breached.select_related("budget").order_by("budget_id", "starts_at"):
        budget.let_go(period, by=by, cause="records voided")
