"""The costs' API: booking once, voiding with a reason, sums by group, and prices that are never rewritten."""

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from costs.models import CostRecord, Price
from pipeline import events
from pipeline.clock import db_now
from pipeline.ids import new_id
from tests import factories
from tests.api.asking import HUGE, NUL, Api, refused, wrong_values
from workers.models import Lease

pytestmark = pytest.mark.django_db

COUNT = events.Event.objects.filter
USE: dict[str, Any] = {
    "resource_type": "api_call",
    "amount": "0.25",
    "currency": "USD",
    "model": "m-1",
    "provider": "example",
    "source": "tests",
    "idempotency_key": "call-1",
}
PRICE: dict[str, Any] = {
    "provider": "example",
    "model": "m-1",
    "aliases": ["m-one"],
    "currency": "USD",
    "effective_from": "2026-01-01T00:00:00Z",
    "uncached_input": "3",
    "cache_read": "0.3",
    "cache_write_5m": "3.75",
    "cache_write_1h": "6",
    "output": "15",
    "per_request": "0",
    "source": "https://example.org/prices, 2026-01-01",
    "price_version": "2026-01",
}


@pytest.fixture
def project() -> Any:
    """A project."""
    return factories.make_project()


@pytest.fixture
def operator(project: Any) -> Api:
    """An operator of it."""
    return Api(factories.make_key("operator", project=project).text)


@pytest.fixture
def admin(project: Any) -> Api:
    """Its admin."""
    return Api(factories.make_key("admin", project=project).text)


@pytest.fixture
def chief() -> Api:
    """The installation's admin."""
    return Api(factories.make_key("admin").text)


@pytest.fixture
def key() -> Any:
    """A worker's key, with its text."""
    return factories.make_key("worker")


@pytest.fixture
def lease(project: Any, key: Any) -> Lease:
    """A live lease of a worker of that key on a task of the project."""
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    return factories.make_lease(factories.make_worker(api_key=key.row), factories.make_task(run))


def total() -> Decimal:
    """All that is booked."""
    return CostRecord.objects.total()


# -- booking -----------------------------------------------------------------------------------------------------


def test_a_worker_books_to_the_attempt_of_its_lease(key: Any, lease: Lease) -> None:
    answer = Api(key.text).post("/costs/", {**USE, "lease": lease.pk, "generation": 1})

    row = CostRecord.objects.get()
    assert answer.status_code == 201
    shown = answer.json()
    assert (shown["id"], shown["amount"], shown["leaf_kind"], shown["leaf_id"]) == (
        row.pk, "0.250000", "attempt", lease.attempt_id,
    )  # fmt: skip
    assert (row.task_id, row.worker_id, row.project_id) == (lease.task_id, lease.worker_id, lease.task.run.project_id)
    told = COUNT(kind="cost.recorded").get()
    assert (told.actor_kind, told.actor_id, told.on_behalf_of) == ("worker", lease.worker_id, key.row.name)


def test_a_person_books_to_the_narrowest_that_it_names(project: Any, operator: Api, lease: Lease) -> None:
    run = lease.task.run
    cases = [
        ({"project": project.key}, "project", project.pk),
        ({"run": run.pk}, "run", run.pk),
        ({"run": run.pk, "task": lease.task_id}, "task", lease.task_id),
        ({"project": project.pk, "task": lease.task_id}, "task", lease.task_id),
    ]
    for number, (place, kind, pk) in enumerate(cases):
        shown = operator.post("/costs/", {**USE, **place, "idempotency_key": f"k{number}"}).json()
        assert (shown["leaf_kind"], shown["leaf_id"], shown["project"]) == (kind, pk, project.pk), place


def test_the_same_key_books_once_and_other_content_is_refused(project: Any, operator: Api) -> None:
    body = {**USE, "project": project.key}

    assert operator.post("/costs/", body).status_code == 201
    assert operator.post("/costs/", body).status_code == 200
    assert refused(operator.post("/costs/", {**body, "amount": "0.5"})) == (409, "duplicate_key")
    assert total() == Decimal("0.25")


def test_a_key_that_was_used_elsewhere_shows_nothing_of_it(operator: Api, project: Any) -> None:
    other = factories.make_project()
    Api(factories.make_key("operator", project=other).text).post("/costs/", {**USE, "project": other.key})

    answer = operator.post("/costs/", {**USE, "project": project.key})

    assert refused(answer) == (409, "duplicate_key")
    assert b"0.25" not in answer.content
    assert CostRecord.objects.count() == 1


def test_many_are_booked_at_once_or_none(project: Any, operator: Api) -> None:
    many = [{**USE, "project": project.key, "idempotency_key": f"k{number}"} for number in range(3)]

    wrong = operator.post("/costs/", [*many, {**many[0], "idempotency_key": "k9", "amount": "-1"}])
    assert refused(wrong) == (422, "amount_negative")
    assert wrong.json()["errors"][0]["field"] == "[3].amount"
    assert CostRecord.objects.count() == 0

    answer = operator.post("/costs/", [*many, many[0]])
    assert answer.status_code == 201
    ids = [row["id"] for row in answer.json()["results"]]
    assert ids[0] == ids[3]
    assert (len(set(ids)), total()) == (3, Decimal("0.75"))


def test_no_more_than_a_thousand_come_at_once(operator: Api) -> None:
    assert refused(operator.post("/costs/", [{}] * 1001)) == (413, "too_large")
    assert refused(operator.post("/costs/", [])) == (422, "invalid_field")
    assert refused(operator.post("/costs/", [7])) == (422, "invalid_field")


def test_an_unknown_model_is_booked_at_the_ceiling(project: Any, operator: Api) -> None:
    body = {"resource_type": "api_call", "model": "nobody-knows", "tokens_output": 1_000_000, "project": project.key}

    shown = operator.post("/costs/", body).json()

    assert (shown["amount"], shown["basis"], shown["unpriced"]) == ("75.000000", "ceiling", True)
    assert COUNT(kind="cost.unpriced").count() == 1


def test_tokens_are_priced_by_an_alias(project: Any, operator: Api, chief: Api) -> None:
    price = chief.post("/prices/", PRICE).json()
    body = {"resource_type": "api_call", "model": "m-one", "tokens_output": 1_000_000, "project": project.key}

    shown = operator.post("/costs/", body).json()

    assert (shown["amount"], shown["basis"], shown["price"]) == ("15.000000", "priced", price["id"])


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"amount": "-0.01"}, "amount_negative"),
        ({"amount": "NaN"}, "amount_not_finite"),
        ({"amount": "Infinity"}, "amount_not_finite"),
        ({"amount": "much"}, "amount_not_finite"),
        ({"amount": [1]}, "amount_not_finite"),
        ({"amount": True}, "amount_not_finite"),
        ({"amount": "1e309"}, "invalid_field"),
        ({"amount": 2**63}, "invalid_field"),
        ({"amount": None}, "amount_missing"),
        ({"currency": "usd"}, "invalid_currency"),
        ({"currency": "EURO"}, "invalid_currency"),
        ({"resource_type": "love"}, "invalid_resource_type"),
        ({"usage_quantity": "2", "usage_rate": "1"}, "amount_contradicts_usage"),
        ({"usage_quantity": {}}, "amount_not_finite"),
        ({"duration_seconds": "-1"}, "amount_negative"),
        ({"tokens_output": -1}, "invalid_field"),
        ({"tokens_output": 10**16}, "invalid_field"),
        ({"reported_at": "yesterday"}, "invalid_field"),
    ],
)
def test_money_that_cannot_be_is_refused(project: Any, operator: Api, fields: dict[str, Any], code: str) -> None:
    assert refused(operator.post("/costs/", {**USE, "project": project.key, **fields})) == (422, code)
    assert CostRecord.objects.count() == 0


def test_no_booking_with_a_wrong_value_gets_in(project: Any, operator: Api) -> None:
    good = {
        **USE, "project": project.key, "run": new_id(), "task": new_id(), "usage_unit": "call", "resource_name": "r",
        "tokens_cache_read": 1, "override_reason": "because",
    }  # fmt: skip
    for name, value in good.items():
        for wrong in wrong_values(value):
            answer = operator.post("/costs/", {**USE, "project": project.key, name: wrong})
            assert refused(answer)[0] in (400, 404, 422), (name, str(wrong)[:50])
    for name in ("id", "landing", "leaf_kind", "price", "voided_at", "worker", "attempt"):
        assert refused(operator.post("/costs/", {**USE, "project": project.key, name: "x"})) == (400, "unknown_field")
    assert refused(operator.post("/costs/", {})) == (422, "missing_required_field")
    assert CostRecord.objects.count() == 0


# -- whose is what -----------------------------------------------------------------------------------------------


def test_a_worker_books_to_its_own_live_lease_only(key: Any, lease: Lease, project: Any) -> None:
    agent, stranger = Api(key.text), Api(factories.make_key("worker").text)
    body = {**USE, "lease": lease.pk, "generation": 1}

    assert refused(stranger.post("/costs/", body)) == (404, "lease_not_found")
    assert refused(agent.post("/costs/", {**body, "generation": 2})) == (409, "stale_claim")
    assert refused(agent.post("/costs/", {**body, "generation": HUGE})) == (422, "invalid_field")
    assert refused(agent.post("/costs/", USE)) == (422, "missing_required_field")
    assert refused(agent.post("/costs/", {**body, "project": project.key})) == (404, "project_not_found")
    assert refused(agent.post("/costs/", {**body, "override_reason": "x"})) == (422, "invalid_field")
    lease.finish("cancelled", by=factories.BY)
    assert refused(agent.post("/costs/", body)) == (409, "stale_claim")
    assert (CostRecord.objects.count(), COUNT(kind="lease.stale_report").count()) == (0, 2)


def test_a_person_books_to_its_own_projects_only(operator: Api, lease: Lease) -> None:
    foreign = factories.make_task()
    body = {**USE, "idempotency_key": ""}

    assert refused(operator.post("/costs/", {**body, "project": foreign.run.project.key})) == (404, "project_not_found")
    assert refused(operator.post("/costs/", {**body, "task": foreign.pk})) == (404, "task_not_found")
    assert refused(operator.post("/costs/", {**body, "run": foreign.run_id})) == (404, "run_not_found")
    assert refused(operator.post("/costs/", body)) == (403, "permission_denied")
    assert refused(operator.post("/costs/", {**body, "lease": lease.pk})) == (422, "invalid_field")
    chief = Api(factories.make_key("operator").text)
    mixed = {**body, "task": lease.task_id, "run": foreign.run_id}
    assert refused(chief.post("/costs/", mixed)) == (422, "invalid_field")
    mixed = {**body, "project": foreign.run.project.key, "run": lease.task.run_id}
    assert refused(chief.post("/costs/", mixed)) == (422, "invalid_field")
    assert CostRecord.objects.count() == 0
    assert chief.post("/costs/", body).json()["leaf_kind"] == "none"


# -- voiding -----------------------------------------------------------------------------------------------------


def test_a_voided_record_is_gone_from_sight_and_sums(project: Any, admin: Api, operator: Api) -> None:
    row = factories.make_cost(project=project)
    path = f"/costs/{row.pk}/"

    assert refused(operator.post(f"{path}void/", {"reason": "x"})) == (403, "permission_denied")
    assert refused(admin.post(f"{path}void/")) == (422, "reason_required")
    assert admin.post(f"{path}void/", {"reason": "twice"}).json() == {"voided": True}
    assert admin.post(f"{path}void/", {"reason": "twice"}).json() == {"voided": False}
    assert refused(admin.get(path)) == (404, "cost_record_not_found")
    assert admin.get("/costs/").json()["results"] == []
    assert admin.get("/costs/summary/").json() == {"results": [], "totals": []}
    assert COUNT(kind="cost.voided").get().reason == "twice"
    assert CostRecord.objects.count() == 1


def test_the_delete_address_voids_as_well(project: Any, admin: Api) -> None:
    first, second = factories.make_cost(project=project), factories.make_cost(project=project)

    assert refused(admin.delete(f"/costs/{first.pk}/")) == (422, "reason_required")
    assert admin.delete(f"/costs/{first.pk}/", {"reason": "twice"}).json() == {"voided": True}
    assert admin.delete(f"/costs/{second.pk}/?reason=twice").json() == {"voided": True}
    assert refused(admin.delete(f"/costs/{new_id()}/?reason=x")) == (404, "cost_record_not_found")
    assert CostRecord.objects.live().count() == 0


# -- sums --------------------------------------------------------------------------------------------------------


def test_a_summary_adds_by_group_and_never_across_currencies(project: Any, admin: Api, lease: Lease) -> None:
    factories.make_cost(project=project, amount="1", model="a")
    factories.make_cost(project=project, amount="2", model="a")
    factories.make_cost(project=project, amount="4", model="b", currency="EUR")
    factories.make_cost(attempt=lease.attempt, model="c", tokens={"output": 1_000_000}, amount=None)
    factories.make_cost(project=factories.make_project(), amount="64", model="a")

    shown = admin.get("/costs/summary/", group_by="model,tool").json()

    tool = lease.attempt.tool.key
    assert [
        (row["model"], row["tool"], row["currency"], row["amount"], row["records"]) for row in shown["results"]
    ] == [
        ("a", None, "USD", "3.000000", 2),
        ("b", None, "EUR", "4.000000", 1),
        ("c", tool, "USD", "75.000000", 1),
    ]
    assert {row["currency"]: (row["amount"], row["unpriced_amount"]) for row in shown["totals"]} == {
        "EUR": ("4.000000", "0.000000"),
        "USD": ("78.000000", "75.000000"),
    }


def test_a_summary_by_day_is_the_default_and_takes_the_lists_filters(project: Any, admin: Api) -> None:
    factories.make_cost(project=project, amount="1", resource_type="storage")
    factories.make_cost(project=project, amount="2")
    today = db_now()

    (row,) = admin.get("/costs/summary/", resource_type="storage").json()["results"]

    assert (row["day"], row["amount"]) == (f"{today:%Y-%m-%d}", "1.000000")
    later = (today + timedelta(days=1)).isoformat()
    assert admin.get("/costs/summary/", recorded_after=later).json()["results"] == []
    groups = admin.get("/costs/summary/", group_by="project,landing").json()["results"]
    assert [(one["project"], one["landing"], one["amount"]) for one in groups] == [(project.pk, "overhead", "3.000000")]


@pytest.mark.parametrize("group_by", ["colour", "", "day,", "voided_by", "id", "day;drop"])
def test_a_summary_groups_by_what_it_knows(admin: Api, group_by: str) -> None:
    assert refused(admin.get("/costs/summary/", group_by=group_by)) == (400, "invalid_field")
    assert refused(admin.get("/costs/summary/", colour="x")) == (400, "unknown_filter")


@pytest.mark.parametrize("name", ["tool", "phase", "workstream", "worker"])
def test_a_filter_of_a_summary_that_is_no_id_is_named(admin: Api, name: str) -> None:
    answer = admin.get("/costs/summary/", **{name: "xx"})
    assert refused(answer) == (400, "invalid_field")
    assert (answer.json()["errors"][0]["field"], "“xx”" in answer.json()["detail"]) == (name, True)


@pytest.mark.parametrize(("run", "status"), [("nonsense", 422), ("01JD0000000000000000000000", 404)])
def test_a_bad_reference_in_a_list_is_named_with_its_number(project: Any, operator: Api, run: str, status: int) -> None:
    good = {**USE, "project": project.key}
    answer = operator.post("/costs/", [good, {**good, "run": run}])
    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (status, "[1].run")
    assert not CostRecord.objects.exists()


def test_a_quantity_and_its_rate_cannot_be_more_than_money_is(project: Any, operator: Api) -> None:
    use = {**USE, "amount": None, "usage_quantity": "1000000000", "usage_rate": "1000000000"}
    answer = operator.post("/costs/", {**use, "project": project.key})
    assert (refused(answer), answer.json()["errors"][0]["field"]) == ((422, "invalid_field"), "usage_quantity")


def test_the_queries_of_the_list_do_not_grow(project: Any, admin: Api, django_assert_max_num_queries: Any) -> None:
    for _number in range(5):
        factories.make_cost(project=project)
    with django_assert_max_num_queries(4):
        assert len(admin.get("/costs/").json()["results"]) == 5


# -- prices ------------------------------------------------------------------------------------------------------


def test_a_price_is_the_installations(chief: Api, admin: Api) -> None:
    assert refused(admin.post("/prices/", PRICE)) == (403, "permission_denied")
    made = chief.post("/prices/", PRICE)
    assert made.status_code == 201
    path = f"/prices/{made.json()['id']}/"
    assert admin.get(path).json()["output"] == "15.000000"
    assert refused(admin.patch(path, {"aliases": []}, version=1)) == (403, "permission_denied")
    assert refused(admin.delete(path)) == (403, "permission_denied")


def test_the_figures_of_a_price_are_never_edited(chief: Api) -> None:
    path = f"/prices/{chief.post('/prices/', PRICE).json()['id']}/"

    for name in ("output", "cache_read", "per_request"):
        assert refused(chief.patch(path, {name: "1"}, version=1)) == (422, "invalid_field")
    for name, value in (("model", "m-2"), ("currency", "EUR"), ("effective_from", "2026-02-01T00:00:00Z")):
        assert refused(chief.patch(path, {name: value}, version=1)) == (422, "invalid_field")
    body = {"aliases": ["x"], "effective_to": "2026-06-01T00:00:00Z", "output": "15.000000"}
    assert chief.patch(path, body, version=1).json()["aliases"] == ["x"]
    assert str(Price.objects.get().output) == "15.000000"


@pytest.mark.django_db(transaction=True)
def test_two_prices_of_a_model_never_hold_at_once(chief: Api) -> None:
    first = chief.post("/prices/", {**PRICE, "effective_to": "2026-03-01T00:00:00Z"}).json()
    later = {**PRICE, "effective_from": "2026-03-01T00:00:00Z"}

    assert refused(chief.post("/prices/", PRICE)) == (409, "duplicate_key")
    assert chief.post("/prices/", later).status_code == 201
    assert refused(chief.patch(f"/prices/{first['id']}/", {"effective_to": None}, version=1))[0] == 409


def test_a_used_price_is_not_removed(chief: Api) -> None:
    unused, used = factories.make_price(), factories.make_price(model="m-2")
    factories.make_cost(model="m-2", amount=None, tokens={"output": 1})

    assert chief.delete(f"/prices/{unused.pk}/").status_code == 204
    assert refused(chief.delete(f"/prices/{used.pk}/")) == (409, "in_use")


def test_no_price_with_a_wrong_value_gets_in(chief: Api) -> None:
    for name, good in PRICE.items():
        for value in wrong_values(good):
            assert refused(chief.post("/prices/", {**PRICE, name: value}))[0] in (400, 422), (name, str(value)[:50])
    for name in ("uncached_input", "output", "per_request"):
        for value in ("-1", "NaN", "1e30", "0.0000001", None, []):
            assert refused(chief.post("/prices/", {**PRICE, name: value})) == (422, "invalid_field"), (name, value)
    assert refused(chief.post("/prices/", {**PRICE, "currency": "usd"})) == (422, "invalid_currency")
    assert refused(chief.post("/prices/", {**PRICE, "effective_to": "2025-01-01T00:00:00Z"})) == (422, "invalid_field")
    assert refused(chief.post("/prices/", {**PRICE, "model": NUL})) == (422, "invalid_field")
    assert refused(chief.post("/prices/", {})) == (422, "missing_required_field")
    assert Price.objects.count() == 0
