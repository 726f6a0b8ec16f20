"""Loops that are stopped, and work that is not; the truth meter; what tokens can cost at most."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from costs import guarding, reports
from costs.api import reservations
from costs.models import CostRecord
from pipeline import events
from pipeline.clock import db_now
from pipeline.models import Hold, StepAttempt
from tests import factories
from tests.api.asking import Api, refused
from tests.factories import BY, make_price
from workers.models import Lease

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


def make_run(**spec: Any) -> Any:
    """A running run of one task that is tried very often."""
    execution = {"max_attempts": 100, "retry": {"mode": "none"}}
    return factories.make_run(
        factories.make_workstream(tasks=[factories.task_spec(execution=execution, **spec)]), started=True
    )


def iterate(task: Any, worker: Any, tool: Any, *, amount: str, error: str) -> Lease:
    """One attempt of the task that costs something and fails."""
    lease = factories.make_lease(worker, task, tool=tool)
    usage = [{"resource_type": "custom", "amount": amount, "currency": "USD"}]
    lease.finish("task_failed", by=BY, usage=usage, error=error, error_code="tests_failed")
    events.drain()
    task.refresh_from_db()
    worker.refresh_from_db()
    return lease


# -- loops ---------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_the_night_that_cost_313_dollars_ends_after_three_iterations() -> None:
    task = factories.make_task(make_run())
    worker, tool = factories.make_worker(), factories.make_tool()
    spent, iterations = Decimal(0), 0
    words = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff"]
    while task.state == "queued" and not Hold.objects.covering(task).exists() and iterations < len(words):
        iterate(task, worker, tool, amount="6.26", error=f"something else is wrong: {words[iterations]}")
        spent, iterations = spent + Decimal("6.26"), iterations + 1
    assert iterations <= 3
    assert spent <= Decimal("18.78")
    hold = Hold.objects.active().get()
    assert (hold.kind, hold.scope_kind, hold.scope_ref) == ("loop", "task", task.pk)
    assert "brought the ledger no further" in hold.reason
    assert "18.78 USD" in hold.reason
    assert hold.suggested_action["verb"] == "cancel"


@pytest.mark.django_db(transaction=True)
def test_who_lets_a_loop_go_on_gets_three_more_iterations() -> None:
    task = factories.make_task(make_run())
    worker, tool = factories.make_worker(), factories.make_tool()
    for word in ("a", "bb", "ccc"):
        iterate(task, worker, tool, amount="1", error=word)
    Hold.objects.active().get().release(by=BY, reason="I know")
    events.drain()
    task.refresh_from_db()
    iterate(task, worker, tool, amount="1", error="dddd")
    assert not Hold.objects.active().exists()


@pytest.mark.django_db(transaction=True)
def test_lost_workers_are_no_loop() -> None:
    task = factories.make_task(make_run())
    tool = factories.make_tool()
    for _ in range(3):
        lease = factories.make_lease(factories.make_worker(), task, tool=tool)
        lease.finish("infra_lost", by=BY)
        guarding.judge(task.pk)
        events.drain()
        task.refresh_from_db()
        if task.state != "queued":
            break
    assert not Hold.objects.filter(kind="loop").exists()


def test_what_a_loop_cost_is_waste_of_a_loop() -> None:
    from costs import fates

    task = factories.make_task(make_run())
    task.state = "failed"
    attempt = StepAttempt(outcome="task_failed")
    assert fates.fate_of(task, attempt, [], set(), loops=True) == ("waste", "loop")
    assert fates.fate_of(task, attempt, [], set()) == ("waste", "task_failed")


# -- at most -------------------------------------------------------------------------------------------------------


def test_the_most_that_tokens_cost_is_that_of_the_dearest_tool_and_tier() -> None:
    make_price(model="small", uncached_input=1, output=2)
    make_price(model="large", uncached_input=3, output=9, tiers=[{"above": 1000, "uncached_input": "7"}])
    small, large = factories.make_tool(model="small"), factories.make_tool(model="large")
    told = guarding.price_ceiling([small, large], "USD")
    assert told is not None
    assert {name: Decimal(rate) for name, rate in told.items() if name in ("uncached_input", "output")} == {
        "uncached_input": 7,
        "output": 9,
    }
    unknown = guarding.price_ceiling([factories.make_tool()], "USD")
    assert unknown is not None
    assert Decimal(unknown["output"]) == 75
    assert guarding.price_ceiling([factories.make_tool()], "EUR") is None


# -- the truth meter -----------------------------------------------------------------------------------------------


def told(tokens: dict[str, int], stated: str, **fields: Any) -> dict[str, Any]:
    """What the truth meter says of one record of a model at 10, 1, 12.50, 20 and 50 dollars a million."""
    make_price(model="m", uncached_input=10, cache_read=1, cache_write_5m=Decimal("12.5"), cache_write_1h=20, output=50)
    CostRecord.objects.record(
        by=BY, resource_type="api_call", source="t", model="m", tokens=tokens, stated_amount=stated, **fields
    )
    (found,) = reports.truths(CostRecord.objects.all())
    return found


@pytest.mark.parametrize(
    ("tokens", "stated", "label"),
    [
        ({"uncached_input": 1000, "output": 100}, "0.015", "agree"),
        ({"uncached_input": 1000, "cache_read": 100_000, "output": 100}, "1.115", "cached_counted_twice"),
        ({"uncached_input": 1000, "cache_read": 100_000, "output": 100}, "1.015", "cache_at_full_price"),
        ({"uncached_input": 1000, "cache_read": 100_000, "output": 100}, "0.015", "cache_left_out"),
        ({"uncached_input": 1000, "output": 100}, "0.03", "counted_twice"),
        ({"uncached_input": 1000, "output": 100}, "0", "nothing_reported"),
        ({"uncached_input": 1000, "output": 100}, "0.0178", "unexplained"),
    ],
)
def test_the_truth_meter_names_the_mistake_from_what_is_stored(tokens: dict[str, int], stated: str, label: str) -> None:
    assert told(tokens, stated)["label"] == label


def test_the_truth_meter_says_whom_the_gateway_agrees_with() -> None:
    found = told({"uncached_input": 1000, "output": 100}, "0.03", gateway_amount="0.015")
    assert (found["gateway"], found["near"], found["difference"]) == (Decimal("0.015"), "ours", Decimal("0.015"))


def test_a_record_whose_model_nobody_prices_says_nothing_about_the_tool() -> None:
    factories.make_cost(amount=None, model="mystery", tokens={"output": 1000}, stated_amount="0.01")
    (found,) = reports.truths(CostRecord.objects.all())
    assert found["label"] == "unpriced"


@pytest.mark.parametrize(("amount", "label"), [("0.015", "agree"), ("0.03", "counted_twice"), ("1.5", "unexplained")])
def test_an_amount_that_was_believed_is_held_against_the_price_of_its_tokens(amount: str, label: str) -> None:
    make_price(model="m", uncached_input=10, output=50)
    factories.make_cost(amount=amount, model="m", tokens={"uncached_input": 1000, "output": 100})
    (found,) = reports.truths(CostRecord.objects.all())
    assert (found["label"], found["reported"], found["ours"]) == (label, Decimal(amount), Decimal("0.015"))


def test_an_amount_that_nothing_else_is_known_of_is_not_compared() -> None:
    make_price(model="m", uncached_input=10)
    factories.make_cost(amount="1", model="m")
    factories.make_cost(amount="1", model="mystery", tokens={"output": 5})
    factories.make_cost(amount="1", model="m", currency="EUR", tokens={"uncached_input": 5})
    assert reports.truths(CostRecord.objects.all()) == []


# -- over the API --------------------------------------------------------------------------------------------------


@pytest.fixture
def project() -> Any:
    """A project."""
    return factories.make_project()


def test_an_admin_makes_a_budget_raises_it_with_a_reason_and_sees_where_it_stands(project: Any) -> None:
    admin = Api(factories.make_key("admin", project=project).text)
    body = {
        "project": project.key, "key": "nightly", "scope_kind": "project", "scope_id": project.pk,
        "limit_amount": "5", "period": "month", "timezone": "Europe/Berlin", "warn_steps": ["0.95"],
    }  # fmt: skip
    made = admin.post("/budgets/", body)
    assert made.status_code == 201
    assert (made.json()["scope_id"], made.json()["limit_amount"]) == (project.pk, "5.000000")
    pk = made.json()["id"]
    factories.make_cost(project=project, amount="4.50")
    standing = admin.get(f"/budgets/{pk}/standing/").json()
    assert (standing["status"], standing["spent"], standing["remaining"]) == ("warning", "4.500000", "0.500000")
    assert standing["forecast_basis"] in ("by_pace", "by_day", "too_early")
    assert refused(admin.post(f"/budgets/{pk}/change-limit/", {"limit_amount": "9"})) == (422, "reason_required")
    raised = admin.post(f"/budgets/{pk}/change-limit/", {"limit_amount": "9", "reason": "release"})
    assert raised.json()["limit_amount"] == "9.000000"
    assert refused(admin.post("/budgets/", {**body, "key": "other", "timezone": "Mars"}))[0] == 422
    assert refused(admin.post("/budgets/", body)) == (409, "duplicate_key")


def test_a_program_sets_money_aside_settles_and_is_told_the_tightest_budget(project: Any) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    of = factories.make_budget(project)
    made = operator.post("/reservations/", {"project": project.key, "amount": "4", "key": "job-7"})
    again = operator.post("/reservations/", {"project": project.key, "amount": "4", "key": "job-7"})
    assert (made.status_code, again.status_code, made.json()["id"]) == (201, 200, again.json()["id"])
    answer = operator.post("/reservations/", {"project": project.key, "amount": "2"})
    assert refused(answer) == (409, "budget_exceeded")
    assert (answer.json()["budget"]["key"], answer.json()["budget"]["left"]) == (of.key, "1.000000")
    settled = operator.post(f"/reservations/{made.json()['id']}/settle/", {"amount": "4.25"})
    assert (settled.json()["state"], settled.json()["used"]) == ("settled", "4.000000")
    assert (of.running().spent, of.running().reserved) == (Decimal("4.25"), Decimal(0))
    again = operator.post(f"/reservations/{made.json()['id']}/settle/", {"amount": "4.25"})
    assert refused(again) == (409, "invalid_move")
    assert CostRecord.objects.live().total() == Decimal("4.25")


def test_landed_and_statement_and_truth_are_answered(project: Any) -> None:
    viewer = Api(factories.make_key("viewer", project=project).text)
    cost = factories.make_cost(project=project, amount="3", model="m")
    factories.make_cost(amount="99")
    cost.reclass("waste", "gate_failed", by=BY)
    landed = viewer.get("/costs/landed/", by="model").json()
    assert [(row["name"], row["amount"], row["waste"]) for row in landed["results"]] == [("m", "3.000000", "3.000000")]
    assert landed["totals"][0]["causes"] == {"gate_failed": "3.000000"}
    month = db_now().strftime("%Y-%m")
    (line,) = viewer.get("/costs/statement/", month=month).json()["lines"]
    assert (line["project"], line["amount"], line["records"]) == (project.key, "3.000000", 1)
    assert viewer.get("/costs/truth/").json() == {"results": []}
    assert refused(viewer.get("/costs/landed/", by="colour"))[0] == 400
    assert refused(viewer.get("/costs/statement/", month="2026-13"))[0] == 400


def test_the_summary_gives_the_same_from_sums_and_from_records(project: Any) -> None:
    viewer = Api(factories.make_key("viewer", project=project).text)
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)))
    for model in ("a", "b", "a"):
        factories.make_cost(run=run, amount="1.5", model=model)
    small = viewer.get("/costs/summary/", group_by="model,landing", project=project.key).json()
    large = viewer.get("/costs/summary/", group_by="model,landing", run=run.pk).json()
    assert small == large
    today = db_now().date().isoformat()
    tomorrow = (db_now().date() + timedelta(days=1)).isoformat()
    assert viewer.get("/costs/summary/", first=today).json()["totals"][0]["records"] == 3
    assert viewer.get("/costs/summary/", first=tomorrow).json()["totals"] == []


def test_under_a_hold_nothing_is_set_aside_by_hand(project: Any) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    factories.make_budget(project)
    known = {"project": project.key, "amount": "1", "key": "job-1"}
    assert operator.post("/reservations/", known).status_code == 201
    hold = Hold.objects.place("project", project.pk, kind="budget", reason="used up", by=BY)
    assert operator.post("/reservations/", known).status_code == 200
    answer = operator.post("/reservations/", {"project": project.key, "amount": "1"})
    assert (answer.status_code, answer.json()["code"], answer.json()["hold"]) == (409, "held", hold.pk)
    hold.release(by=BY)
    assert operator.post("/reservations/", {"project": project.key, "amount": "1"}).status_code == 201


def test_the_key_of_another_reservation_is_refused_with_what_is_another(project: Any) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)))
    body = {"project": project.key, "amount": "1", "key": "job-1", "seconds": 60}
    assert operator.post("/reservations/", body).status_code == 201
    others = [("amount", "2"), ("currency", "EUR"), ("run", run.pk), ("seconds", 61), ("seconds", 59)]
    for name, value in others:
        answer = operator.post("/reservations/", {**body, name: value})
        assert refused(answer) == (409, "duplicate_key")
        assert answer.json()["detail"].endswith(f"another {name}")
    assert operator.post("/reservations/", body).status_code == 200


def test_who_comes_second_with_a_key_at_once_is_given_the_first(project: Any, monkeypatch: Any) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    of = factories.make_budget(project)
    body = {"project": project.key, "amount": "1", "key": "job-1"}
    first = operator.post("/reservations/", body).json()["id"]
    look = reservations._known
    looks: list[Any] = []

    def too_early(*given: Any) -> Any:
        """At the first look the other one has not committed yet."""
        looks.append(given)
        return None if len(looks) == 1 else look(*given)

    monkeypatch.setattr(reservations, "_known", too_early)
    answer = operator.post("/reservations/", body)
    assert (answer.status_code, answer.json()["id"]) == (200, first)
    assert (len(looks), of.running().reserved) == (2, Decimal(1))
