"""What a lease's use becomes: a record once, told when it cannot be booked, and classed by what became of the work."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from costs.models import CostRecord
from pipeline.events import Event
from tests.factories import BY, make_price
from tests.flows.house import House, long_ago, piece
from workers import claims
from workers.models import Lease

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """One task."""
    return House(tmp_path, [piece("a")])


def report(house: House, *usage: Any, outcome: str = "success") -> Lease:
    """Claim the task and report it with this use, and with a patch when it is a success."""
    document = house.claim()
    lease = Lease.objects.get(pk=document["lease"]["id"])
    by = claims.actor(house.worker, lease.generation)
    if outcome == "success":
        patch = house.submit(document, {"a.txt": f"{lease.generation}\n"})
        claims.complete(lease, generation=lease.generation, by=by, patch_ids=[patch.pk], usage=list(usage))
    else:
        claims.fail(lease, generation=lease.generation, outcome=outcome, by=by, usage=list(usage), error="it broke")
    return lease


def test_tokens_are_priced_and_belong_to_the_attempt_that_used_them(house: House) -> None:
    price = make_price()
    tokens = {"tokens_uncached_input": 1_000_000, "tokens_output": 500_000}
    lease = report(house, {"resource_type": "api_call", "provider": price.provider, "model": price.model, **tokens})
    record = CostRecord.objects.get()
    assert record.amount == Decimal("1.5")
    assert (record.attempt_id, record.task_id, record.run_id) == (lease.attempt_id, lease.task_id, house.run.pk)
    assert (record.worker_id, record.project_id, record.leaf_kind) == (house.worker.pk, house.project.pk, "attempt")
    assert record.landing == "in_flight"


def test_every_item_without_a_key_of_its_own_is_booked_once_per_lease(house: House) -> None:
    item = {"resource_type": "custom", "amount": "2", "currency": "USD"}
    lease = report(house, item, item)
    keys = CostRecord.objects.order_by("pk").values_list("idempotency_key", flat=True)
    assert list(keys) == [f"{lease.pk}:0", f"{lease.pk}:1"]
    assert CostRecord.objects.live().total("USD") == Decimal(4)


def test_a_use_that_was_reported_before_is_not_booked_again(house: House) -> None:
    item = {"resource_type": "custom", "amount": "2", "currency": "USD", "idempotency_key": "message-1"}
    report(house, item, item)
    assert CostRecord.objects.live().total("USD") == Decimal(2)


@pytest.mark.parametrize(
    "item",
    [
        {"resource_type": "custom", "amount": "-1", "currency": "USD"},
        {"resource_type": "custom", "amount": "NaN", "currency": "USD"},
        {"resource_type": "custom", "amount": "1", "currency": "dollars"},
        {"resource_type": "custom", "amount": "1", "currency": "USD", "colour": "red"},
        {"resource_type": "alchemy", "amount": "1", "currency": "USD"},
        {"resource_type": "api_call", "model": "m", "tokens_output": "many"},
        "not an object",
    ],
)
def test_what_cannot_be_booked_is_told_and_keeps_neither_the_result_nor_the_rest_back(house: House, item: Any) -> None:
    lease = report(house, item, {"resource_type": "custom", "amount": "1", "currency": "USD"})
    assert CostRecord.objects.live().total("USD") == Decimal(1)
    (told,) = Event.objects.filter(kind="cost.anomaly")
    assert told.subject_id == lease.pk
    assert house.states() == {"a": "validating"}


def test_a_failed_attempts_use_is_waste_once_its_task_has_ended(house: House) -> None:
    report(house, {"resource_type": "custom", "amount": "1", "currency": "USD"}, outcome="task_failed")
    house.drain()
    assert house.costs() == {"a1": ("in_flight", "")}
    report(house, {"resource_type": "custom", "amount": "2", "currency": "USD"})
    house.drain()
    assert house.costs() == {"a1": ("waste", "task_failed"), "a2": ("landed", "")}
    house.must_hold()


def test_use_of_a_patch_in_quarantine_is_in_flight_until_somebody_decides(house: House) -> None:
    house.queue.pause(by=BY)
    report(house, {"resource_type": "custom", "amount": "1", "currency": "USD"})
    house.drain()
    (patch,) = house.patches()
    patch.quarantine("odd", by=BY)
    house.run.cancel(by=BY, reason="enough")
    house.drain()
    assert house.costs() == {"a1": ("in_flight", "")}
    patch.refresh_from_db()
    patch.drop("indeed", by=BY)
    house.drain()
    assert house.costs() == {"a1": ("waste", "dropped")}
    house.must_hold()


def test_a_dead_worker_that_told_nothing_has_no_record(house: House) -> None:
    long_ago(Lease.objects.get(pk=house.claim()["lease"]["id"]), "expires_at")
    house.drain()
    assert CostRecord.objects.count() == 0
