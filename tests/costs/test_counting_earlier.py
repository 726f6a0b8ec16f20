"""A budget made in the middle of its period: what was booked before counts as well, each record once."""

import threading
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from costs.models import Budget, Charge, CostRecord, booking, charging
from pipeline.events import drain
from pipeline.invariants import check_all
from pipeline.models import Hold
from tests import factories
from tests.factories import BY, make_budget, make_cost
from tests.test_races import wait_for_a_waiter

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


@pytest.fixture
def lease() -> Any:
    """A live lease in a project that needs no git, by a tool with a model, requested by a person."""
    project = factories.make_project(custody="recorded")
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    return factories.make_lease(task=factories.make_task(run), tool=factories.make_tool(priced=True))


def spent(of: Budget) -> Decimal:
    """What its running period has spent."""
    row = of.running()
    return row.spent if row else Decimal(0)


def must_hold() -> None:
    """The invariants of money hold."""
    assert [r.number for r in check_all() if not r.holds and 53 <= int(r.number.removeprefix("INV-")) <= 61] == []


def of_lease(lease: Any, **fields: Any) -> CostRecord:
    """A dollar spent by its attempt, with a model."""
    return make_cost(attempt=lease.attempt, worker=lease.worker, model="some-model", **fields)


def scopes(lease: Any) -> dict[str, tuple[Any, str]]:
    """For every kind of scope: (project, id) of a budget that covers the lease."""
    run = lease.task.run
    rows = {
        "project": run.project_id, "phase": run.phase_id, "workstream": run.workstream_id, "run": run.pk,
        "task": lease.task_id,
    }  # fmt: skip
    across = {
        "tool": lease.attempt.tool.key, "model": "some-model", "user": run.requested_by, "worker": lease.worker_id,
    }  # fmt: skip
    found = {kind: (run.project, ref) for kind, ref in {**rows, **across}.items()}
    return {**found, "installation": (None, "")}


@pytest.mark.parametrize("kind", [kind for kind, _name in Budget.Scope.choices])
def test_what_was_booked_before_counts_in_every_kind_of_scope(lease: Any, kind: str) -> None:
    of_lease(lease, amount="1.25")
    of_lease(lease, amount="0.50")
    project, ref = scopes(lease)[kind]
    elsewhere = factories.make_project(custody="recorded")
    if kind != "installation":
        make_cost(project=elsewhere, amount="7")
    row = make_budget(project, scope_kind=kind, scope_id=ref)
    assert spent(row) == 0
    drain()
    assert spent(row) == Decimal("1.75")
    of_lease(lease, amount="0.25")
    assert charging.count_earlier() == 0
    assert spent(row) == 2
    must_hold()


def test_every_scope_that_a_record_is_charged_to_is_one_that_it_is_counted_in_afterwards(lease: Any) -> None:
    before = {kind: make_budget(p, scope_kind=kind, scope_id=ref) for kind, (p, ref) in scopes(lease).items()}
    of_lease(lease)
    after = {kind: make_budget(p, scope_kind=kind, scope_id=ref) for kind, (p, ref) in scopes(lease).items()}
    drain()
    assert {kind: spent(row) for kind, row in before.items()} == dict.fromkeys(Budget.Scope.values, 1)
    assert {kind: spent(row) for kind, row in after.items()} == dict.fromkeys(Budget.Scope.values, 1)


def test_voided_foreign_and_older_records_do_not_count(lease: Any) -> None:
    project = lease.task.run.project
    of_lease(lease).void("a test", by=BY)
    of_lease(lease, currency="EUR")
    old = of_lease(lease, amount="3")
    CostRecord.objects.filter(pk=old.pk).update(recorded_at=old.recorded_at - timedelta(days=2))
    of_lease(lease, amount="1")
    today = make_budget(project, period="day")
    ever = make_budget(project)
    drain()
    assert (spent(today), spent(ever)) == (1, 4)


def test_what_was_spent_before_breaches_the_budget_and_holds_its_scope(lease: Any) -> None:
    of_lease(lease, amount="6")
    row = make_budget(lease.task.run.project)
    drain()
    assert row.standing().status == "exceeded"
    hold = Hold.objects.active().get(kind="budget", ref=row.pk)
    assert hold.project_id == lease.task.run.project_id
    must_hold()


def test_a_void_gives_back_what_was_counted_afterwards(lease: Any) -> None:
    record = of_lease(lease, amount="2")
    row = make_budget(lease.task.run.project)
    drain()
    record.void("a test", by=BY)
    assert spent(row) == 0
    assert charging.count_earlier() == 0
    must_hold()


def test_a_budget_that_is_switched_on_again_counts_what_it_missed(lease: Any) -> None:
    row = make_budget(lease.task.run.project)
    of_lease(lease)
    row.edit(by=BY, active=False)
    of_lease(lease)
    drain()
    assert spent(row) == 1
    row.edit(by=BY, active=True)
    row.refresh_from_db()
    assert row.is_behind
    drain()
    row.refresh_from_db()
    assert not row.is_behind
    assert spent(row) == 2
    assert Charge.objects.filter(period__budget=row).count() == 2
    must_hold()


def test_to_catch_up_is_no_edit_of_the_budget(lease: Any) -> None:
    row = make_budget(lease.task.run.project)
    before = row.version
    drain()
    row.refresh_from_db()
    assert (row.version, row.is_behind) == (before, False)
    assert "is_behind" not in row.story()


def test_more_than_one_statement_looks_at_are_all_counted(lease: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charging, "WINDOW", 3)
    for _n in range(10):
        of_lease(lease, amount="0.10")
    row = make_budget(lease.task.run.project)
    drain()
    assert spent(row) == 1


def test_a_budget_over_what_cost_nothing_yet_can_still_be_taken_away(lease: Any) -> None:
    row = make_budget(lease.task.run.project)
    drain()
    row.remove(by=BY)
    assert not Budget.objects.filter(pk=row.pk).exists()


@pytest.mark.django_db(transaction=True)
def test_a_booking_that_did_not_see_the_budget_is_waited_for(lease: Any, threads: Any) -> None:
    """It is under way while the budget is made and counted, and counts all the same."""
    project = lease.task.run.project
    booked, waited_for = threading.Event(), threading.Event()

    def book_slowly() -> None:
        with transaction.atomic():
            booking.book([booking.Use("api_call", "slow", project=project, amount="1")], by=BY)
            booked.set()
            assert waited_for.wait(20)

    slow = threads.start(book_slowly)
    assert booked.wait(20)
    row = make_budget(project)
    counting = threads.start(charging.count_earlier)
    wait_for_a_waiter(counting)
    waited_for.set()
    slow.result()
    assert counting.result() == 1
    assert spent(row) == 1
    must_hold()
