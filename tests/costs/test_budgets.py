"""Budgets: what is set aside, spent, given back, warned of, breached, held, raised; and what a refusal names."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import transaction

from costs import guarding, reports
from costs.models import Budget, BudgetExceeded, BudgetPeriod, CostRecord, DailySpend, Reservation, booking, budget
from pipeline import events
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.invariants import check_all
from pipeline.models import Hold
from pipeline.refusals import InvalidField, ReasonRequired
from tests import factories
from tests.factories import BY, make_budget
from workers import claims
from workers.models import Lease

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


def reserve(project: Any, amount: str = "1", **fields: Any) -> Reservation:
    """Set money aside in the project's budgets; what is refused is undone."""
    with transaction.atomic():
        return factories.make_reservation(project, amount, **fields)


def figures(of: Budget) -> tuple[str, str]:
    """(spent, reserved) of its running period."""
    row = of.running()
    return (f"{row.spent:.2f}", f"{row.reserved:.2f}") if row else ("0.00", "0.00")


def must_hold() -> None:
    """The invariants of money hold."""
    broken = [r for r in check_all() if not r.holds and 53 <= int(r.number.removeprefix("INV-")) <= 61]
    assert broken == []


@pytest.fixture
def project() -> Any:
    """A project that needs no git."""
    return factories.make_project(custody="recorded")


@pytest.fixture
def lease(project: Any) -> Lease:
    """A live lease in it."""
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    return factories.make_lease(task=factories.make_task(run), tool=factories.make_tool(priced=True))


# -- setting aside -------------------------------------------------------------------------------------------------


def test_money_is_set_aside_in_every_budget_over_the_place_or_in_none(project: Any) -> None:
    wide, narrow = (
        make_budget(scope_kind="installation", scope_id=""),
        make_budget(project, limit_amount=Decimal("1.5")),
    )
    other = make_budget()
    reserve(project)
    assert (figures(wide), figures(narrow), figures(other)) == (("0.00", "1.00"), ("0.00", "1.00"), ("0.00", "0.00"))
    with pytest.raises(BudgetExceeded) as refusal:
        reserve(project)
    assert refusal.value.parts["budget"]["key"] == narrow.key
    assert refusal.value.parts["budget"]["left"] == "0.500000"
    assert (figures(wide), figures(narrow)) == (("0.00", "1.00"), ("0.00", "1.00"))
    must_hold()


def test_a_refusal_names_the_tightest_of_several(project: Any) -> None:
    make_budget(project, limit_amount=Decimal("0.90"))
    tight = make_budget(project, limit_amount=Decimal("0.20"))
    with pytest.raises(BudgetExceeded) as refusal:
        reserve(project)
    assert refusal.value.parts["budget"]["id"] == tight.pk


def test_a_limit_of_zero_admits_nothing_and_an_inactive_budget_everything(project: Any) -> None:
    zero = make_budget(project, limit_amount=Decimal(0))
    with pytest.raises(BudgetExceeded):
        reserve(project, "0.000001")
    zero.edit(by=BY, active=False)
    assert reserve(project, "100").state == "held"


def test_what_is_not_used_is_given_back_once(project: Any) -> None:
    of = make_budget(project)
    row = reserve(project, "2")
    assert row.end(by=BY)
    assert not row.end(by=BY)
    assert (figures(of), row.state) == (("0.00", "0.00"), "released")
    assert Event.objects.filter(kind="reservation.released").count() == 1
    must_hold()


def test_a_reservation_without_a_lease_ends_at_its_time(project: Any) -> None:
    of = make_budget(project)
    row = reserve(project, "2")
    assert guarding.end_overdue_reservations() == 0
    Reservation.objects.filter(pk=row.pk).update(expires_at=db_now() - timedelta(seconds=1))
    assert guarding.end_overdue_reservations() == 1
    assert figures(of) == ("0.00", "0.00")


def test_money_in_another_currency_is_not_counted_and_told(project: Any) -> None:
    of = make_budget(project)
    factories.make_cost(project=project, amount="3", currency="EUR")
    assert figures(of) == ("0.00", "0.00")
    assert Event.objects.get(kind="cost.foreign_currency").data["budgets"] == [of.key]


# -- a lease's money -----------------------------------------------------------------------------------------------


def give(lease: Lease, amount: str = "1") -> Reservation:
    """The reservation that the claim of this lease would have made."""
    run = lease.task.run
    scopes = budget.scopes_of({"project": run.project_id, "task": lease.task_id})
    covers = budget.covering(scopes, [run.project_id])
    return Reservation.objects.reserve(
        amount, covers, by=BY, project_id=run.project_id, run=run, task=lease.task, generation=lease.generation
    )


def use(lease: Lease, amount: str, key: str = "") -> CostRecord:
    """A record of the lease's attempt."""
    return factories.make_cost(attempt=lease.attempt, worker=lease.worker, amount=amount, idempotency_key=key)


def test_a_record_moves_what_is_set_aside_to_spent_and_the_excess_too(project: Any, lease: Lease) -> None:
    of = make_budget(project)
    give(lease, "1")
    use(lease, "0.40")
    assert figures(of) == ("0.40", "0.60")
    use(lease, "0.70")
    assert figures(of) == ("1.10", "0.00")
    must_hold()


def test_a_record_that_is_reported_again_settles_once(project: Any, lease: Lease) -> None:
    of = make_budget(project)
    give(lease)
    use(lease, "0.40", key="k")
    use(lease, "0.40", key="k")
    assert figures(of) == ("0.40", "0.60")


@pytest.mark.parametrize(("usage", "state", "left"), [(["0.30"], "settled", "0.30"), ([], "released", "0.00")])
def test_the_end_of_a_lease_settles_what_was_used_and_gives_back_the_rest(
    project: Any, lease: Lease, usage: list[str], state: str, left: str
) -> None:
    of = make_budget(project)
    row = give(lease)
    items = [{"resource_type": "custom", "amount": amount, "currency": "USD"} for amount in usage]
    lease.finish("infra_lost" if not usage else "success", by=BY, usage=items)
    row.refresh_from_db()
    assert (row.state, figures(of)) == (state, (left, "0.00"))
    must_hold()


def test_a_priced_tool_that_tells_nothing_is_booked_at_its_reservation_until_it_tells(
    project: Any, lease: Lease
) -> None:
    of = make_budget(project)
    row = give(lease, "0.75")
    lease.finish("infra_lost", by=BY)
    assert guarding.book_estimates() == 0
    Reservation.objects.filter(pk=row.pk).update(estimate_at=db_now() - timedelta(seconds=1))
    assert guarding.book_estimates() == 1
    assert guarding.book_estimates() == 0
    assert CostRecord.objects.live().get().basis == "estimated"
    assert figures(of) == ("0.75", "0.00")
    use(lease, "0.20")
    assert CostRecord.objects.live().get().amount == Decimal("0.20")
    assert figures(of) == ("0.20", "0.00")
    must_hold()


def test_more_money_is_set_aside_until_a_budget_says_no(project: Any, lease: Lease) -> None:
    of = make_budget(project, limit_amount=Decimal(2))
    give(lease)
    told = lease.extend(Decimal("0.5"), generation=lease.generation, by=BY)
    assert Decimal(told["reservation"]["amount"]) == Decimal("1.5")
    assert figures(of) == ("0.00", "1.50")
    with pytest.raises(BudgetExceeded), transaction.atomic():
        lease.extend(Decimal(1), generation=lease.generation, by=BY)
    assert figures(of) == ("0.00", "1.50")
    must_hold()


def test_a_claim_sets_money_aside_and_says_so(project: Any) -> None:
    of = make_budget(project)
    factories.make_tool(priced=True)
    task = factories.make_task(
        factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    )
    lease = claims.assign(factories.make_worker(), task.pk, offered=None, by=BY)
    document = claims.document(lease)
    assert Decimal(document["reservation"]["amount"]) == Decimal(1)
    assert document["price_ceiling"]["output"] == "75"
    assert figures(of) == ("0.00", "1.00")
    row = Reservation.objects.get()
    assert (row.task_id, row.generation) == (lease.task_id, lease.generation)
    must_hold()


def test_a_claim_that_no_budget_covers_costs_one_statement(
    project: Any, lease: Lease, django_assert_num_queries: Any
) -> None:
    from costs import reactions

    with django_assert_num_queries(1):
        assert reactions.set_money_aside(task=lease.task, worker=lease.worker, tool=lease.attempt.tool, by=BY) is None
    with django_assert_num_queries(1):
        reactions.book_use(lease=lease, outcome="success", usage=[], duration_seconds=None, by=BY)


def test_a_refused_claim_leaves_the_task_queued_and_its_budget_breached(project: Any, nudges: list[Any]) -> None:
    of = make_budget(project, limit_amount=Decimal("0.50"))
    factories.make_tool(priced=True)
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    task = factories.make_task(run)
    worker = factories.make_worker()
    with pytest.raises(BudgetExceeded):
        claims.assign(worker, task.pk, offered=None, by=BY)
    task.refresh_from_db()
    assert task.state == "queued"
    assert not Reservation.objects.exists()
    # The claim is undone, and with it what it would have written: what it means for the budget comes by a task.
    assert ("costs.tasks.note_refusal", of.pk, "1.000000") in nudges
    assert budget.note_refusal(of.pk, "1")
    assert Event.objects.get(kind="budget.breached").subject_id == of.pk


# -- warning, breach, hold, raise ----------------------------------------------------------------------------------


def test_each_step_warns_once_in_a_period(project: Any) -> None:
    make_budget(project, limit_amount=Decimal(10), warn_ratio=Decimal("0.5"), warn_steps=["0.9"])
    for amount in ("4", "1", "0.5", "3.5", "0.1"):
        factories.make_cost(project=project, amount=amount)
    steps = [event.data["step"] for event in Event.objects.filter(kind="budget.warned").order_by("seq")]
    assert steps == ["0.5000", "0.9"]


def test_a_breach_holds_the_scope_with_a_question_and_a_raise_lets_it_go(project: Any) -> None:
    of = make_budget(project)
    factories.make_cost(project=project, amount="6")
    breached = Event.objects.get(kind="budget.breached")
    assert breached.data["over"] is True
    assert guarding.hold_the_scope(of.pk, breached.data["period"])
    hold = Hold.objects.active().get()
    assert (hold.kind, hold.scope_kind, hold.ref, hold.holder_kind) == ("budget", "project", of.pk, "budget")
    assert of.key in hold.question["text"]
    assert hold.suggested_action["address"].endswith(f"/budgets/{of.pk}/change-limit/")
    must_hold()

    with pytest.raises(ReasonRequired):
        of.change_limit("20", by=BY, reason=" ")
    assert of.change_limit("20", by=BY, reason="the release is worth it")
    assert not of.change_limit("20", by=BY, reason="again")
    assert not Hold.objects.active().exists()
    told = Event.objects.get(kind="budget.limit_changed")
    assert (told.reason, told.after["limit_amount"]) == ("the release is worth it", "20.000000")
    row = of.running()
    assert (row.limit_amount, row.breached_at, row.hold) == (Decimal(20), None, None)
    assert reserve(project).state == "held"
    must_hold()


def test_a_raise_below_what_is_spent_holds_on(project: Any) -> None:
    of = make_budget(project)
    factories.make_cost(project=project, amount="6")
    guarding.hold_the_scope(of.pk, of.running().pk)
    of.change_limit("5.50", by=BY, reason="a little")
    assert Hold.objects.active().count() == 1
    must_hold()


def test_lowering_below_what_is_spent_is_a_breach(project: Any) -> None:
    of = make_budget(project)
    factories.make_cost(project=project, amount="3")
    of.change_limit("2", by=BY, reason="less")
    assert of.running().breached_at is not None
    assert Event.objects.filter(kind="budget.breached").count() == 1


def test_other_holds_stay_when_a_limit_is_raised(project: Any) -> None:
    of = make_budget(project)
    mine = factories.make_hold(project=project, scope_id=project.pk)
    factories.make_cost(project=project, amount="6")
    guarding.hold_the_scope(of.pk, of.running().pk)
    of.change_limit("9", by=BY, reason="more")
    assert [hold.pk for hold in Hold.objects.active()] == [mine.pk]


def test_a_breach_that_was_mended_before_its_hold_places_none(project: Any) -> None:
    of = make_budget(project)
    factories.make_cost(project=project, amount="6")
    period = of.running().pk
    of.change_limit("9", by=BY, reason="more")
    assert not guarding.hold_the_scope(of.pk, period)
    assert not Hold.objects.active().exists()


def test_who_runs_past_the_limit_is_asked_to_stop(project: Any, lease: Lease) -> None:
    of = make_budget(project, limit_amount=Decimal(1))
    give(lease, "1")
    use(lease, "0.9")
    assert not Event.objects.filter(kind="budget.breached", data__over=True).exists()
    use(lease, "0.2")
    for event in Event.objects.filter(kind="budget.breached"):
        guarding.hold_the_scope(of.pk, event.data["period"])
    lease.refresh_from_db()
    assert (lease.stop_outcome, lease.stop_requested_at is not None) == ("budget_stop", True)


def test_a_budget_that_only_warns_holds_nothing_and_admits_nothing_past_it(project: Any) -> None:
    of = make_budget(project, on_breach="warn")
    factories.make_cost(project=project, amount="5")
    guarding.hold_the_scope(of.pk, of.running().pk)
    assert not Hold.objects.active().exists()
    with pytest.raises(BudgetExceeded):
        reserve(project, "0.01")


def test_voiding_gives_the_money_back_and_ends_the_breach(project: Any) -> None:
    of = make_budget(project)
    cost = factories.make_cost(project=project, amount="6")
    guarding.hold_the_scope(of.pk, of.running().pk)
    cost.void("it was booked twice", by=BY)
    assert figures(of) == ("0.00", "0.00")
    assert not Hold.objects.active().exists()
    must_hold()


def test_a_refusal_beyond_everything_that_is_set_aside_breaches(project: Any) -> None:
    of = make_budget(project)
    reserve(project, "4")
    assert not budget.note_refusal(of.pk, "2")
    factories.make_cost(project=project, amount="1")
    assert budget.note_refusal(of.pk, "4.50")
    assert not budget.note_refusal(of.pk, "4.50")


# -- scopes and periods --------------------------------------------------------------------------------------------


def test_crosswise_budgets_count_what_their_tool_model_worker_and_person_used(project: Any, lease: Lease) -> None:
    run = lease.task.run
    of = {
        "tool": make_budget(project, scope_kind="tool", scope_id=lease.attempt.tool.key),
        "model": make_budget(project, scope_kind="model", scope_id="large"),
        "worker": make_budget(project, scope_kind="worker", scope_id=lease.worker_id),
        "user": make_budget(project, scope_kind="user", scope_id=run.requested_by),
        "phase": make_budget(project, scope_kind="phase", scope_id=run.phase_id),
        "workstream": make_budget(project, scope_kind="workstream", scope_id=run.workstream_id),
        "run": make_budget(project, scope_kind="run", scope_id=run.pk),
        "task": make_budget(project, scope_kind="task", scope_id=lease.task_id),
        "another": make_budget(project, scope_kind="model", scope_id="small"),
    }
    factories.make_cost(attempt=lease.attempt, worker=lease.worker, model="large", amount="1")
    assert {kind for kind, one in of.items() if figures(one)[0] == "1.00"} == set(of) - {"another"}


def test_a_budget_of_a_scope_that_is_not_there_or_of_another_project_is_refused(project: Any) -> None:
    run = factories.make_run()
    for fields in (
        {"scope_kind": "run", "scope_id": run.pk},
        {"scope_kind": "run", "scope_id": "nothing"},
        {"scope_kind": "tool", "scope_id": ""},
        {"scope_kind": "tool", "scope_id": "nobodys"},
        {"scope_kind": "project", "scope_id": project.pk, "timezone": "Mars/Olympus"},
        {"scope_kind": "project", "scope_id": project.pk, "warn_steps": ["2"]},
        {"scope_kind": "project", "scope_id": project.pk, "currency": "dollars"},
    ):
        with pytest.raises(InvalidField):
            make_budget(project, **fields)
    assert not Budget.objects.exists()


def test_a_period_begins_by_the_calendar_of_its_zone(project: Any) -> None:
    of = make_budget(project, period="month", timezone="Europe/Berlin")
    factories.make_cost(project=project, amount="1")
    row = of.running()
    here = row.starts_at.astimezone(UTC)
    assert here.hour in (22, 23)
    assert row.ends_at > db_now()
    assert row.ends_at - row.starts_at > timedelta(days=27)


def test_what_is_set_aside_before_the_turn_of_a_period_is_used_there_and_spent_here(project: Any, lease: Lease) -> None:
    of = make_budget(project, period="day")
    give(lease, "1")
    old = of.running()
    BudgetPeriod.objects.filter(pk=old.pk).update(
        starts_at=datetime(2026, 1, 1, tzinfo=UTC), ends_at=db_now() - timedelta(seconds=1)
    )
    use(lease, "0.4")
    old.refresh_from_db()
    assert (old.spent, old.reserved) == (Decimal(0), Decimal("0.6"))
    assert figures(of) == ("0.40", "0.00")
    must_hold()


def test_with_the_period_ends_its_hold_and_the_tasks_that_it_stopped_go_on(project: Any, lease: Lease) -> None:
    of = make_budget(project, period="day")
    factories.make_cost(project=project, amount="6")
    guarding.hold_the_scope(of.pk, of.running().pk)
    lease.finish("budget_stop", by=BY)
    hold = Hold.objects.active().get(ref=of.pk)
    assert hold.until == of.running().ends_at
    assert Hold.objects.active().filter(scope_kind="task", kind="budget").count() == 1
    hold.release(by=BY, cause="expired")
    events.drain()
    assert not Hold.objects.active().exists()


def test_the_forecast_of_a_budget_says_on_what_it_rests(project: Any) -> None:
    of = make_budget(project, period="month", limit_amount=Decimal(100))
    narrow = make_budget(
        project,
        scope_kind="run",
        scope_id=factories.make_run(factories.make_workstream(factories.make_phase(project))).pk,
    )
    factories.make_cost(project=project, amount="6")
    now = db_now()
    DailySpend.objects.update(day=(now - timedelta(days=4)).date())
    told = {one["budget"].pk: one for one in reports.standings([of, narrow], now)}
    assert told[of.pk]["forecast"].basis == "by_day"
    assert told[of.pk]["forecast"].days == 4
    assert told[narrow.pk]["spent"] == 0


def test_the_sum_of_many_records_at_once_is_charged_once_each(project: Any) -> None:
    of = make_budget(project, limit_amount=Decimal(1000))
    uses = [
        booking.Use(resource_type="api_call", source="s", idempotency_key=f"k{n}", amount="0.01", project=project)
        for n in range(100)
    ]
    booking.book(uses, by=BY)
    booking.book(uses, by=BY)
    assert figures(of) == ("1.00", "0.00")
    told = Event.objects.get(kind="cost.recorded")
    assert (told.subject_type, told.data["records"]) == ("cost_batch", 100)
    assert booking.digest_of(told.subject_id) == told.data["digest"]
    must_hold()


def test_a_limit_that_a_form_has_put_on_the_object_is_refused_all_the_same(project: Any) -> None:
    of = make_budget(project)
    of.limit_amount = Decimal(500)
    with pytest.raises(InvalidField, match="change-limit"):
        of.edit(by=BY, limit_amount=Decimal(500))
    assert Budget.objects.get().limit_amount == Decimal(5)
    assert not Event.objects.filter(kind="budget.changed").exists()


def test_a_period_that_its_budget_left_behind_is_told_by_the_doctor_and_put_right(project: Any) -> None:
    of = make_budget(project)
    factories.make_cost(project=project, amount="6")
    guarding.hold_the_scope(of.pk, of.running().pk)
    Budget.objects.update(limit_amount=Decimal(500))
    assert [one.number for one in check_all() if not one.holds] == ["INV-74"]
    assert of.change_limit("500", by=BY, reason="as the budget says")
    assert of.running().limit_amount == Decimal(500)
    assert not Hold.objects.active().exists()
    assert Event.objects.get(kind="budget.limit_changed").before == {"limit_amount": "5.000000"}
    assert not of.change_limit("500", by=BY, reason="again")
    assert [one.number for one in check_all() if not one.holds] == []


def test_a_breach_that_stood_on_money_set_aside_ends_when_that_is_given_back(project: Any) -> None:
    of = make_budget(project, limit_amount=Decimal(1))
    rows = [reserve(project, "0.10") for _ in range(10)]
    rows[0].settle("0.11", by=BY)
    guarding.hold_the_scope(of.pk, of.running().pk)
    assert Hold.objects.active().count() == 1
    assert rows[1].end(by=BY)
    assert not Hold.objects.active().exists()
    assert (of.running().breached_at, of.running().hold) == (None, None)
    assert Hold.objects.get().release_cause == "money set aside was given back"
    for row in rows[2:]:
        row.end(by=BY)
    assert (figures(of), of.standing().status) == (("0.11", "0.00"), "ok")
    must_hold()


def test_a_breach_by_what_is_spent_or_was_refused_stays_when_money_is_given_back(project: Any) -> None:
    spent, refused = make_budget(project, limit_amount=Decimal(1)), make_budget(project, limit_amount=Decimal("1.5"))
    row = reserve(project, "0.10")
    factories.make_cost(project=project, amount="1")
    assert budget.note_refusal(refused.pk, "0.60")
    for of in (spent, refused):
        guarding.hold_the_scope(of.pk, of.running().pk)
    row.end(by=BY)
    assert Hold.objects.active().count() == 2
    assert None not in (spent.running().breached_at, refused.running().breached_at)
    must_hold()


def test_a_void_in_a_period_that_is_over_leaves_the_hold_of_the_running_one(project: Any) -> None:
    of = make_budget(project, period="day")
    cost = factories.make_cost(project=project, amount="6")
    yesterday = db_now() - timedelta(days=2)
    BudgetPeriod.objects.update(starts_at=yesterday, ends_at=db_now() - timedelta(seconds=1))
    factories.make_cost(project=project, amount="6")
    guarding.hold_the_scope(of.pk, of.running().pk)
    cost.void("it was booked twice", by=BY)
    assert Hold.objects.active().count() == 1
    assert of.running().breached_at is not None


def test_a_budget_over_a_tool_names_one_that_is_there_and_stays_editable_when_that_is_gone(project: Any) -> None:
    tool = factories.make_tool(key="agent-7")
    with pytest.raises(InvalidField, match="no tool has the key “agent-8”; there are: agent-7"):
        make_budget(project, scope_kind="tool", scope_id="agent-8")
    of = make_budget(project, scope_kind="tool", scope_id="agent-7")
    tool.remove(by=BY)
    assert of.edit(by=BY, active=False)
    assert make_budget(project, scope_kind="model", scope_id="not-yet-used").scope_id == "not-yet-used"
