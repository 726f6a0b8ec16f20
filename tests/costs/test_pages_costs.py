"""The page of costs: sums by day, tool and currency, what is left out of them, and what is flagged."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.urls import reverse

from costs.models import DailySpend
from pipeline.clock import db_now
from pipeline.events import Event
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet_broker(nudges):
    """No page waits for a broker here."""


@pytest.fixture
def project():
    return factories.make_project(key="relay")


@pytest.fixture
def run(project):
    return factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)


@pytest.fixture
def viewer(client, project):
    user = factories.make_user()
    factories.make_membership(user, project)
    client.force_login(user)
    return client


def test_currencies_are_never_added_and_voided_uses_left_out(viewer, run):
    factories.make_cost(run=run, amount="1.25")
    factories.make_cost(run=run, amount="2", currency="EUR")
    factories.make_cost(run=run, amount="50").void("booked twice", by=factories.BY)

    context = viewer.get("/costs/").context

    assert [(total["currency"], total["amount"], total["n"]) for total in context["totals"]] == [
        ("EUR", Decimal(2), 1),
        ("USD", Decimal("1.25"), 1),
    ]
    assert [(day["currency"], day["amount"]) for day in context["days"]] == [
        ("EUR", Decimal(2)),
        ("USD", Decimal("1.25")),
    ]
    assert len(context["records"]) == 3


def test_sums_by_tool_and_model_put_the_dearest_first(viewer, run):
    step = factories.make_step(run, start=True, tool=factories.make_tool(key="dear"))
    factories.make_cost(run=run, amount="1", model="small")
    factories.make_cost(attempt=step, amount="4", model="large")
    factories.make_cost(attempt=step, amount="2", model="large")

    tools = viewer.get("/costs/").context["tools"]

    assert [(tool["tool__key"], tool["model"], tool["amount"]) for tool in tools] == [
        ("dear", "large", Decimal(6)),
        (None, "small", Decimal(1)),
    ]


def test_what_was_booked_at_the_ceiling_is_flagged_and_can_be_listed_alone(viewer, run):
    factories.make_cost(run=run)
    unknown = factories.make_cost(run=run, amount=None, model="mystery", tokens={"output": 1000})

    answer = viewer.get("/costs/?unpriced=yes")

    assert [record.pk for record in answer.context["records"]] == [unknown.pk]
    assert "the price of the model is unknown" in answer.text


def test_waste_is_summed_beside_what_landed(viewer, run):
    cost = factories.make_cost(run=run, amount="3")
    factories.make_cost(run=run, amount="1")
    cost.reclass("waste", "quarantined", by=factories.BY)

    (day,) = viewer.get("/costs/").context["days"]

    assert (day["waste"], day["landed"], day["amount"]) == (Decimal(3), Decimal(0), Decimal(4))


def test_a_run_and_the_list_of_runs_show_what_was_spent(viewer, run):
    factories.make_cost(run=run, amount="1234.5")

    assert "$1,234.50" in viewer.get("/runs/").text
    assert "$1,234.50" in viewer.get(reverse("runs:run", args=[run.pk])).text
    assert "$1,234.50" in viewer.get("/").text


def test_costs_of_other_projects_and_of_none_are_not_shown(viewer, run):
    factories.make_cost(project=factories.make_project(), amount="77")
    factories.make_cost(amount="78")

    answer = viewer.get("/costs/")

    assert answer.context["records"] == []
    assert "Nothing booked" in answer.text


def test_budgets_are_shown_with_their_bar_status_and_forecast(viewer, project):
    factories.make_budget(project, key="nightly", limit_amount=Decimal(4), period="month")
    factories.make_budget(factories.make_project(), key="of-others")
    factories.make_cost(project=project, amount="5")

    answer = viewer.get("/costs/budgets/")

    (row,) = answer.context["standings"]
    assert (row["status"], row["spent"]) == ("exceeded", Decimal(5))
    assert 'class="fill-bad"' in answer.text
    assert "of-others" not in answer.text


def test_the_sums_of_the_page_are_those_of_the_records(viewer, project, run):
    rows = [factories.make_cost(run=run, amount="1.5", model="m"), factories.make_cost(project=project, amount="2")]
    rows[0].reclass("landed", "", by=factories.BY)

    whole, of_run = viewer.get("/costs/").context, viewer.get(f"/costs/?run={run.pk}").context

    assert whole["totals"][0]["amount"] == Decimal("3.5")
    assert of_run["totals"][0]["amount"] == Decimal("1.5")
    (of,) = whole["classes"]
    assert (of["landed"], of["overhead"], of["amount"]) == (Decimal("1.5"), Decimal(2), Decimal("3.5"))


def test_the_other_pages_answer_for_what_the_person_may_see(viewer, run):
    factories.make_price(model="m")
    factories.make_cost(run=run, amount=None, model="m", tokens={"output": 1_000_000}, stated_amount="1")
    factories.make_cost(amount="77", model="secret")

    truth = viewer.get("/costs/truth/")
    assert [one["label"] for one in truth.context["sessions"]] == ["agree"]
    statement = viewer.get("/costs/statement/")
    assert [line["total"] for line in statement.context["lines"]] == [Decimal(1)]
    wrong = viewer.get("/costs/statement/?month=never")
    assert wrong.status_code == 400
    assert "a month as YYYY-MM" in wrong.content.decode()
    text = b"".join(viewer.get("/costs/export.csv").streaming_content).decode()
    assert "secret" not in text
    assert len(text.splitlines()) == 2


def test_an_admin_changes_a_limit_on_the_page_and_a_viewer_is_not_offered_it(client, project):
    user = factories.make_user()
    factories.make_membership(user, project, role="admin")
    client.force_login(user)
    of = factories.make_budget(project)
    address = reverse("costs:change_limit", args=[of.pk])

    assert address in client.get("/costs/budgets/").text
    refused = client.post(address, {"limit_amount": "9", "reason": ""}, follow=True)
    assert "reason" in refused.text
    of.refresh_from_db()
    assert of.limit_amount == Decimal(5)
    client.post(address, {"limit_amount": "9", "reason": "the release"})
    of.refresh_from_db()
    assert of.limit_amount == Decimal(9)
    assert Event.objects.get(kind="budget.limit_changed").reason == "the release"

    other = factories.make_user()
    factories.make_membership(other, project)
    client.force_login(other)
    assert address not in client.get("/costs/budgets/").text
    assert client.post(address, {"limit_amount": "90", "reason": "me too"}).status_code == 403


def test_the_admin_shows_the_limit_and_changes_it_with_a_number_and_a_reason(admin_client, project):
    of = factories.make_budget(project)
    shown = admin_client.get(reverse("admin:costs_budget_change", args=[of.pk])).text
    for name in ("limit_amount", "scope_id", "currency", "project"):
        assert f'name="{name}"' not in shown
    asked = {"action": "change_limit", "_selected_action": of.pk, "index": "0"}
    page = reverse("admin:costs_budget_changelist")
    assert 'name="figure"' in admin_client.post(page, asked).text
    assert "A number and a reason" in admin_client.post(page, {**asked, "reason": "more", "figure": ""}).text
    admin_client.post(page, {**asked, "reason": "more", "figure": "many"}, follow=True)
    of.refresh_from_db()
    assert of.limit_amount == Decimal(5)
    admin_client.post(page, {**asked, "reason": "more", "figure": "500"})
    of.refresh_from_db()
    assert of.limit_amount == Decimal(500)
    assert Event.objects.get(kind="budget.limit_changed").reason == "more"


def test_a_budget_says_what_it_is_over_and_in_all_what_goes_out_a_day(admin_client, project, run):
    factories.make_budget(project, scope_kind="model", scope_id="large-7")
    factories.make_budget(project, scope_kind="workstream", scope_id=run.workstream_id)
    whole = factories.make_budget(project, limit_amount=Decimal(100))
    factories.make_cost(project=project, amount="8")
    DailySpend.objects.update(day=(db_now() - timedelta(days=4)).date())

    answer = admin_client.get("/costs/budgets/")

    over = {row["budget"].scope_kind: row["over"] for row in answer.context["standings"]}
    assert over == {"model": "large-7", "workstream": run.workstream.key, "project": project.key}
    assert "large-7" in answer.text
    (told,) = [row["forecast"] for row in answer.context["standings"] if row["budget"].pk == whole.pk]
    assert (told.amount, told.a_day) == (None, Decimal(2))
    assert "</span> a day" in answer.text
    assert "large-7" in admin_client.get(reverse("admin:costs_budget_changelist")).text
