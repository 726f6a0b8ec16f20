"""What the costs answer and react to: use is booked when a lease ends, and classed by what became of the work."""

from decimal import Decimal
from typing import Any

from django.db import transaction

from costs.models import CostRecord
from costs.pricing import CLASSES
from ledger.models import Patch
from pipeline import events, prepared
from pipeline.events import Event, on
from pipeline.ids import to_uuid
from pipeline.models import StepAttempt, Task
from pipeline.questions import answers
from pipeline.refusals import InvalidField, Refused
from workers.models import Lease

USAGE_FIELDS = {
    "resource_type", "model", "provider", "usage_quantity", "usage_unit", "usage_rate", "duration_seconds", "amount",
    "currency", "idempotency_key", "source", "resource_name", "stated_amount", "assumed_ttl",
}  # fmt: skip


TEXTS = {"resource_type", "model", "provider", "usage_unit", "currency", "idempotency_key", "source", "resource_name"}


@answers("lease.end")
def book_use(
    *, lease: Lease, outcome: str, usage: list[dict[str, Any]], duration_seconds: Decimal | None, by: events.Actor
) -> None:
    """Book what the worker reports of this lease, each item once. An item that cannot be booked is told, never lost."""
    for number, item in enumerate(usage):
        try:
            with transaction.atomic():
                _book(lease, item, number, by)
        except Refused as refusal:
            events.record(
                "cost.anomaly",
                lease,
                by=by,
                message=str(refusal),
                data={"item": str(item)[:2000], "code": refusal.code},
            )


def _book(lease: Lease, item: dict[str, Any], number: int, by: events.Actor) -> None:
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
    CostRecord.objects.record(by=by, attempt=lease.attempt, worker=lease.worker, tokens=tokens, **values)


@answers("patch.receipt")
def cost_of_patch(*, patch: Patch) -> dict[str, Any]:
    """What the attempts of its task cost so far, by currency."""
    rows = CostRecord.objects.live().filter(task=patch.task_id) if patch.task_id else CostRecord.objects.none()
    return {
        "cost": {c: str(rows.total(c)) for c in rows.order_by("currency").values_list("currency", flat=True).distinct()}
    }


_COSTS = "SELECT 1 FROM costs_costrecord WHERE task_id = %s LIMIT 1"


@on(
    "task.completed", "task.failed", "task.cancelled", "patch.committed", "patch.rolled_back", "patch.quarantined",
    "patch.released", "patch.dropped",
)  # fmt: skip
def reclass(event: Event) -> None:
    """What became of the work decides what its cost is called."""
    if event.task_id is None or not prepared.execute(_COSTS, [to_uuid(event.task_id)]):
        return
    task = Task.objects.get(pk=event.task_id)
    for record in CostRecord.objects.live().filter(task=task).select_related("attempt").order_by("pk"):
        landing, cause = landing_of(task, record.attempt)
        record.reclass(landing, cause, by=events.SYSTEM)


def landing_of(task: Task, attempt: StepAttempt | None) -> tuple[str, str]:
    """(class, waste cause) of what was spent on `attempt` of `task` (domain.md §2.5.3, *Landing class*)."""
    patches = list(Patch.objects.filter(pk__in=attempt.output_patch_ids)) if attempt else []
    states = {patch.state for patch in patches}
    if Patch.State.COMMITTED in states:
        return "landed", ""
    if Patch.State.ROLLED_BACK in states:
        return "waste", "rolled_back"
    if task.state not in Task.ENDED or Patch.State.QUARANTINED in states:
        return "in_flight", ""
    if attempt is None:
        return ("landed", "") if task.state == Task.State.COMPLETED else ("waste", _end_of(task))
    if attempt.outcome != "success":
        return "waste", attempt.outcome or "cancelled"
    if not patches:
        return (
            ("landed", "")
            if task.state == Task.State.COMPLETED and not task.requires_patch
            else ("waste", _end_of(task))
        )
    newest = max(patches, key=lambda patch: patch.pk)
    if newest.replaced_by.filter(state=Patch.State.COMMITTED).exists():
        return "waste", "gate_failed" if newest.tests_ran else "superseded"
    if newest.last_error_code:
        return "waste", "gate_failed" if newest.tests_ran else "apply_failed"
    return "waste", "dropped"


def _end_of(task: Task) -> str:
    return "cancelled" if task.state == Task.State.CANCELLED else "task_failed"
