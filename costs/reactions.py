"""What the costs answer and react to: money is set aside for a claim, booked at its end, and classed by its fate."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import transaction

from costs import blockers as blockers
from costs import checks as checks
from costs import fates, guarding
from costs.models import CostRecord, Reservation, booking, budget, charging
from costs.pricing import CLASSES
from ledger.models import Patch
from pipeline import events, prepared
from pipeline.clock import db_now
from pipeline.events import Event, chore, on
from pipeline.ids import to_uuid
from pipeline.models import Task, Tool
from pipeline.questions import answers
from pipeline.refusals import InvalidField, Refused
from workers.models import Lease, Worker

USAGE_FIELDS = {
    "resource_type", "model", "provider", "usage_quantity", "usage_unit", "usage_rate", "duration_seconds", "amount",
    "currency", "idempotency_key", "source", "resource_name", "stated_amount", "assumed_ttl",
}  # fmt: skip
TEXTS = {"resource_type", "model", "provider", "usage_unit", "currency", "idempotency_key", "source", "resource_name"}
ESTIMATE_AFTER = timedelta(minutes=10)


# -- money for a claim ---------------------------------------------------------------------------------------------


@answers("task.claim")
def set_money_aside(*, task: Task, worker: Worker, tool: Tool, by: events.Actor) -> dict[str, Any] | None:
    """The reservation of a claim, in every budget over the task, the worker and the `tool` that it was routed to, with
    its model; None, after one statement, where no budget is.

    Amount: the task's estimate, else the default. A tool that uses no paid tokens needs none. Raises BudgetExceeded
    naming the tightest budget.
    """
    run = task.run
    place: dict[str, Any] = {
        "project": run.project_id, "phase": run.phase_id, "workstream": run.workstream_id, "run": run.pk,
        "task": task.pk, "worker": worker.pk, "person": run.requested_by, "tool_key": tool.key, "model": tool.model,
    }  # fmt: skip
    scopes = budget.scopes_of(place)
    covers = [one for one in budget.covering(scopes, [run.project_id]) if one.covers(scopes, run.project_id)]
    if not covers or not tool.priced:
        return None
    currency = "USD" if any(cover.currency == "USD" for cover in covers) else covers[0].currency
    given = (task.spec.get("execution") or {}).get("estimate_amount")
    amount = Decimal(str(given)) if given else settings.SIGNALBOX_DEFAULT_RESERVATION_USD
    if not amount:
        return None
    try:
        row = Reservation.objects.reserve(
            amount,
            covers,
            by=by,
            currency=currency,
            project_id=run.project_id,
            run=run,
            task=task,
            generation=task.generation + 1,
        )
    except budget.BudgetExceeded as refusal:
        # The claim's transaction is undone; what the refusal means for the budget is written down in another one.
        for pk, asked in refusal.breaches:
            events.nudge("costs.tasks.note_refusal", pk, asked)
        raise
    return {"reservation": row.document(), "price_ceiling": guarding.price_ceiling([tool], currency)}


@answers("lease.extend")
def set_more_aside(*, lease: Lease, amount: Decimal, by: events.Actor) -> dict[str, Any] | None:
    """More money for a lease; None where no budget covers it. Raises BudgetExceeded."""
    run = lease.task.run
    held = Reservation.objects.held().filter(task=lease.task_id, generation=lease.generation)
    row = held.select_for_update(no_key=True, of=("self",)).select_related("task__run").first()
    tool = lease.attempt.tool
    scopes = budget.scopes_of(
        {
            "project": run.project_id, "phase": run.phase_id, "workstream": run.workstream_id, "run": run.pk,
            "task": lease.task_id, "worker": lease.worker_id, "person": run.requested_by,
            "tool_key": tool.key if tool else "", "model": tool.model if tool else "",
        }
    )  # fmt: skip
    covers = [one for one in budget.covering(scopes, [run.project_id]) if one.covers(scopes, run.project_id)]
    try:
        if row is not None:
            row.extend(amount, covers, by=by)
        elif covers:
            row = Reservation.objects.reserve(
                amount,
                covers,
                by=by,
                currency=covers[0].currency,
                project_id=run.project_id,
                run=run,
                task=lease.task,
                generation=lease.generation,
            )
    except budget.BudgetExceeded as refusal:
        for pk, asked in refusal.breaches:
            events.nudge("costs.tasks.note_refusal", pk, asked)
        raise
    return None if row is None else {"reservation": row.document()}


# -- the end of a lease --------------------------------------------------------------------------------------------


@answers("lease.end")
def book_use(
    *, lease: Lease, outcome: str, usage: list[dict[str, Any]], duration_seconds: Decimal | None, by: events.Actor
) -> None:
    """Book what the worker reports of this lease, each item once, and give back what was set aside and not used.

    An item that cannot be booked is told, never lost. A priced tool that reports nothing is booked at its reservation
    when ten minutes later still nothing has come.
    """
    uses = []
    for number, item in enumerate(usage):
        try:
            uses.append(_use_of(lease, item, number))
        except Refused as refusal:
            _tell_anomaly(lease, item, refusal, by)
    if uses:
        uses = guarding.not_counted_elsewhere(lease.attempt, uses, by=by)
    if uses:
        _book_all(lease, uses, by)
    held = Reservation.objects.held().filter(task=lease.task_id, generation=lease.generation)
    row = held.select_related("task__run").first()
    if row is None:
        return
    row.end(by=by, reason=outcome)
    tool = lease.attempt.tool
    if not row.used and not uses and tool is not None and tool.priced:
        Reservation.objects.filter(pk=row.pk).update(estimate_at=db_now() + ESTIMATE_AFTER)


def _book_all(lease: Lease, uses: list[booking.Use], by: events.Actor) -> None:
    """All in one statement; where one of them is refused, one by one."""
    try:
        with transaction.atomic():
            booking.book(uses, by=by)
            return
    except Refused:
        pass
    for use in uses:
        try:
            with transaction.atomic():
                booking.book([use], by=by)
        except Refused as refusal:
            _tell_anomaly(lease, use.idempotency_key, refusal, by)


def _tell_anomaly(lease: Lease, item: Any, refusal: Refused, by: events.Actor) -> None:
    told = {"item": str(item)[:2000], "code": refusal.code}
    events.record("cost.anomaly", lease, by=by, message=str(refusal), data=told)


def _use_of(lease: Lease, item: Any, number: int) -> booking.Use:
    """The item as a use of the lease's attempt. Raises InvalidField."""
    if not isinstance(item, dict):
        raise InvalidField("usage", "each item is an object")
    tokens = {name: item[f"tokens_{name}"] for name in CLASSES if f"tokens_{name}" in item}
    unknown = set(item) - USAGE_FIELDS - {f"tokens_{name}" for name in CLASSES}
    if unknown:
        raise InvalidField("usage", f"unknown field {', '.join(sorted(map(str, unknown)))}")
    values = {name: item[name] for name in USAGE_FIELDS & set(item)}
    for name in TEXTS & set(values):
        if not isinstance(values[name], str):
            raise InvalidField(name, "text")
    values["source"] = str(values.get("source") or "agent")
    values["idempotency_key"] = str(values.get("idempotency_key") or f"{lease.pk}:{number}")
    values.setdefault("resource_type", "custom")
    # What a lease reports are sums over its requests, to which no tier of one request applies.
    is_request = values["resource_type"] != CostRecord.Type.API_CALL
    return booking.Use(attempt=lease.attempt, worker=lease.worker, tokens=tokens, is_request=is_request, **values)


# -- budgets -------------------------------------------------------------------------------------------------------


@on("budget.added", "budget.changed")
def count_what_was_earlier(event: Event) -> None:
    """What was booked in its period before it counted is counted as well."""
    events.nudge_later("costs.tasks.count_earlier")


@on("budget.breached")
def hold_the_scope(event: Event) -> None:
    """A breached budget pauses its scope and asks; past its limit, what runs under it is asked to stop."""
    guarding.hold_the_scope(event.subject_id, str(event.data.get("period") or ""))


@on("hold.released")
def go_on_in_the_next_period(event: Event) -> None:
    """With a budget's period ends its hold; the tasks that it stopped go on as well."""
    after = event.after or {}
    if after.get("release_cause") == "expired":
        guarding.go_on(event.subject_id)


@on("cost.anomaly")
def pause_the_worker(event: Event) -> None:
    """A record above all that was set aside for its lease: a person looks before its worker goes on."""
    if event.worker_id is None or "above_reservation" not in event.data:
        return
    worker = Worker.objects.filter(pk=event.worker_id).first()
    if worker is not None and not worker.is_finished and worker.state != Worker.State.PAUSED:
        worker.pause(by=events.SYSTEM, reason=event.message)


@on("lease.ended")
def judge_the_loop(event: Event) -> None:
    """A task that runs in circles is paused, with the reason."""
    if event.task_id is not None:
        guarding.judge(event.task_id)


# -- what became of the work ---------------------------------------------------------------------------------------


@answers("patch.receipt")
def cost_of_patch(*, patch: Patch) -> dict[str, Any]:
    """What the attempts of its task cost so far, by currency; and the models that its own attempt has used so far."""
    rows = CostRecord.objects.live().filter(task=patch.task_id) if patch.task_id else CostRecord.objects.none()
    named = rows.filter(attempt=patch.attempt_id).exclude(model="") if patch.attempt_id else CostRecord.objects.none()
    currencies = rows.order_by("currency").values_list("currency", flat=True).distinct()
    return {
        "cost": {currency: str(rows.total(currency)) for currency in currencies},
        "models_used": list(named.order_by("model").values_list("model", flat=True).distinct()),
    }


_COSTS = "SELECT 1 FROM costs_costrecord WHERE task_id = %s LIMIT 1"


@on(
    "task.completed", "task.failed", "task.cancelled", "patch.committed", "patch.rolled_back", "patch.quarantined",
    "patch.released", "patch.dropped",
)  # fmt: skip
def reclass(event: Event) -> None:
    """What became of the work decides what its cost is called."""
    if event.task_id is not None and prepared.execute(_COSTS, [to_uuid(event.task_id)]):
        fates.reclass_task(event.task_id)


chore(guarding.end_overdue_reservations)
chore(guarding.book_estimates)
chore(charging.count_earlier, send=charging.send_count)
chore(fates.reclass_forgotten)
chore(fates.reconcile_now_and_then)
