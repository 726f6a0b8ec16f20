"""What records count for in budgets: charged when they are booked, given back when they are voided."""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from django.db import connection
from django.db.models import Exists, OuterRef, Q
from django.utils.translation import gettext as _

from costs.models import budget
from costs.models.budget import Budget
from costs.models.record import CostRecord
from pipeline import events, prepared
from pipeline.ids import first_id_at, from_uuid, to_uuid
from pipeline.locks import alone
from pipeline.models import Tool
from pipeline.rows import in_transaction

if TYPE_CHECKING:
    from costs.models.booking import Booked


# Bookings share this advisory lock, and counting what was booked before a budget was there takes it alone for a moment.
_BOOKINGS = 7_033_005

WINDOW = 20_000
"""So many records are looked at by one statement."""


def join_bookings() -> None:
    """Be among the bookings for which `count_earlier` waits, before it is asked which budgets there are."""
    prepared.execute("SELECT pg_advisory_xact_lock_shared(%s)::text", [_BOOKINGS])


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


# -- what was booked before ----------------------------------------------------------------------------------------


def count_earlier() -> int:
    """Bring up to date the budgets that are behind: what was booked in their running period before they were there, or
    while they were off, counts as well. A month that is bounded from its middle on has spent what it has spent.

    Answers how many records were counted. One at a time; safe to repeat, and beside bookings, voids and rebookings.
    """
    with alone("count_earlier", _BOOKINGS) as mine:
        return sum(_catch_up(row) for row in Budget.objects.behind().order_by("pk")) if mine else 0


def send_count() -> None:
    """Have it done in the background, if a budget is behind."""
    if Budget.objects.behind().exists():
        events.nudge("costs.tasks.count_earlier")


def _catch_up(row: Budget) -> int:
    # Who did not see the budget has ended once this is granted, and who comes later sees it.
    with in_transaction():
        prepared.execute("SELECT pg_advisory_xact_lock(%s)::text", [_BOOKINGS])
    done = 0
    # What was rebooked behind this one's back is found by going through once more.
    while found := _go_through(row.pk):
        done += found
    # Unless it was switched off and on again meanwhile, which the next round finds.
    Budget.objects.filter(pk=row.pk, version=row.version).update(is_behind=False)
    return done


def _go_through(budget_id: str) -> int:
    done, after = 0, ""
    while True:
        with in_transaction():
            cover = budget.running_cover(budget_id)
            if cover is None:
                return done
            after = after or first_id_at(cover.starts_at)
            ahead = CostRecord.objects.filter(pk__gt=after).order_by("pk").values_list("pk", flat=True)
            last = ahead[WINDOW - 1 : WINDOW].first()
            window = Q(pk__gt=after) if last is None else Q(pk__gt=after, pk__lte=last)
            done += _count(cover, window)
        if last is None:
            return done
        after = last


def _count(cover: budget.Cover, window: Q) -> int:
    counted = budget.Charge.objects.filter(record=OuterRef("pk"), period__budget=cover.budget_id)
    rows = CostRecord.objects.live().filter(
        window, _covered_by(cover), ~Exists(counted), currency=cover.currency, recorded_at__gte=cover.starts_at
    )
    # A void locks its records before it asks where they count: it is seen here, or sees what is counted here.
    locked = rows.order_by("pk").select_for_update(no_key=True, of=("self",))
    amounts = dict(locked.values_list("pk", "amount"))
    if amounts:
        movement = budget.Movement(spent=sum(amounts.values(), Decimal(0)), records=list(amounts))
        because = _("So much was spent in the period before the budget counted.")
        budget.move_money({budget.period_for(cover): movement}, by=events.SYSTEM, because=because)
    return len(amounts)


def _covered_by(cover: budget.Cover) -> Q:
    """The records that a budget covers, as `scopes_of` says of their places."""
    kind, _colon, named = cover.scope.partition(":")
    here = Q() if cover.project_id is None else Q(project=cover.project_id)
    if kind == "installation":
        return here
    column = {"tool": "tool__key", "model": "model", "user": "person"}.get(kind)
    return here & (Q(**{column: named}) if column else Q(**{kind: from_uuid(UUID(named))}))
