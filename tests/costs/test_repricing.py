"""Repricing: a corrected price reaches what was booked at the old one, in its day, class and budgets, and once."""

from datetime import timedelta
from decimal import Decimal
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from costs.models import CostRecord, DailySpend, booking, repricing
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.models import Hold
from pipeline.refusals import ReasonRequired
from tests import factories
from tests.api.asking import Api, refused
from tests.costs.test_budgets import figures, must_hold
from tests.costs.test_sums import sums_agree
from tests.factories import BY, make_budget, make_price

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

MILLION = {"uncached_input": 1_000_000}


def use(model: str = "m", key: str = "k", **fields: Any) -> CostRecord:
    """A million tokens of a model, booked."""
    given = booking.Use(
        resource_type="api_call", source="s", idempotency_key=key, model=model, tokens=MILLION, **fields
    )
    return booking.book([given], by=BY)[0].row()


def again(**fields: Any) -> repricing.Outcome:
    """Reprice for good."""
    return repricing.reprice(by=BY, reason="the list was wrong", dry_run=False, **fields)


def test_a_dry_run_tells_and_changes_nothing() -> None:
    price = make_price(model="m", uncached_input=1)
    row = use()
    price.supersede(by=BY, uncached_input=Decimal(3), price_version="2")
    found = repricing.reprice(by=BY)
    (told,) = found.rows()
    assert (told["before"], told["after"], told["records"], told["price_version"]) == (Decimal(1), Decimal(3), 1, "2")
    assert (found.looked_at, found.rebooked) == (1, 0)
    assert CostRecord.objects.get().pk == row.pk


def test_a_corrected_price_voids_and_rebooks_with_its_version_in_the_key() -> None:
    price = make_price(model="m", uncached_input=1)
    old = use(session="s-1", stated_amount="2", flags=["assumed_ttl"])
    price.supersede(by=BY, uncached_input=Decimal(3), price_version="2")
    assert again().rebooked == 1
    old.refresh_from_db()
    assert (old.voided_by, old.void_reason) == (BY.name, "the list was wrong")
    new = CostRecord.objects.live().get()
    assert (new.amount, new.price_version, new.replaces_id) == (Decimal(3), "2", old.pk)
    assert new.idempotency_key == f"k@2@{old.pk}"
    assert (new.recorded_at, new.session, new.stated_amount, new.flags) == (
        old.recorded_at, "s-1", Decimal(2), ["assumed_ttl"],
    )  # fmt: skip
    told = Event.objects.get(kind="cost.repriced")
    assert (told.reason, told.data["voided"], told.data["booked"]) == (
        "the list was wrong", {"USD": "1.000000"}, {"USD": "3.000000"},
    )  # fmt: skip
    sums_agree()


def test_a_repeat_finds_nothing_and_the_report_of_old_is_known_still() -> None:
    price = make_price(model="m", uncached_input=1)
    use()
    price.supersede(by=BY, uncached_input=Decimal(3), price_version="2")
    again()
    assert (again().records, Event.objects.filter(kind="cost.repriced").count()) == (0, 1)
    use()
    assert CostRecord.objects.live().total() == Decimal(3)


def test_a_price_that_is_put_back_under_its_old_name_books_again() -> None:
    first = make_price(model="m", uncached_input=1, price_version="1")
    use()
    second = first.supersede(by=BY, uncached_input=Decimal(3), price_version="2")
    again()
    second.supersede(by=BY, uncached_input=Decimal(1), price_version="1")
    again()
    row = CostRecord.objects.live().get()
    assert (row.amount, row.idempotency_key.count("@")) == (Decimal(1), 2)
    sums_agree()


def test_what_was_booked_at_the_ceiling_gets_its_price_once_somebody_knows_it() -> None:
    row = use("new-model")
    assert (row.amount, row.unpriced) == (Decimal(15), True)
    assert repricing.reprice(by=BY).records == 0
    make_price(model="new-model", uncached_input=2)
    again()
    row = CostRecord.objects.live().get()
    assert (row.amount, row.unpriced, row.basis) == (Decimal(2), False, "priced")
    assert sum(DailySpend.objects.values_list("unpriced_amount", flat=True)) == 0


def test_a_use_keeps_the_price_of_its_own_time() -> None:
    now = db_now()
    before, turn = now - timedelta(days=30), now - timedelta(days=5)
    old = make_price(model="m", uncached_input=1, effective_from=before, effective_to=turn)
    make_price(model="m", uncached_input=9, effective_from=turn)
    row = use(reported_at=now - timedelta(days=9))
    assert (row.amount, repricing.reprice(by=BY).records) == (Decimal(1), 0)
    old.supersede(by=BY, uncached_input=Decimal(2), price_version="2")
    again()
    assert CostRecord.objects.live().get().amount == Decimal(2)


def test_the_day_the_class_and_the_budget_are_those_of_the_record_that_is_replaced() -> None:
    project = factories.make_project(custody="recorded")
    of = make_budget(project, limit_amount=Decimal(10))
    price = make_price(model="m", uncached_input=4, effective_from=db_now() - timedelta(days=30))
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    task = factories.make_task(run)
    row = use(task=task)
    row.reclass("waste", "loop", by=BY)
    CostRecord.objects.filter(pk=row.pk).update(recorded_at=row.recorded_at - timedelta(days=3))
    DailySpend.objects.update(day=row.recorded_at.date() - timedelta(days=3))
    price.supersede(by=BY, uncached_input=Decimal(1), price_version="2")
    again()
    new = CostRecord.objects.live().get()
    assert (new.landing, new.waste_cause, new.task_id) == ("waste", "loop", task.pk)
    live = DailySpend.objects.exclude(records=0).get()
    assert (live.day, live.amount) == (row.recorded_at.date() - timedelta(days=3), Decimal(1))
    assert figures(of) == ("1.00", "0.00")
    must_hold()
    sums_agree()


def test_a_lower_price_lets_go_what_the_budget_held_and_a_higher_one_breaches() -> None:
    project = factories.make_project(custody="recorded")
    of = make_budget(project, limit_amount=Decimal(5))
    price = make_price(model="m", uncached_input=6)
    use(project=project)
    assert of.running().breached_at is not None
    price = price.supersede(by=BY, uncached_input=Decimal(2), price_version="2")
    again()
    assert (figures(of), of.running().breached_at) == (("2.00", "0.00"), None)
    price.supersede(by=BY, uncached_input=Decimal(7), price_version="3")
    again()
    assert figures(of) == ("7.00", "0.00")
    assert of.running().breached_at is not None
    assert not Hold.objects.active().exists() or Hold.objects.active().get().kind == "budget"


def test_what_is_stated_or_counted_by_units_is_never_repriced() -> None:
    price = make_price(model="m", uncached_input=1)
    use(amount="7")
    use(key="k2", usage_quantity="2", usage_rate="1")
    price.supersede(by=BY, uncached_input=Decimal(3), price_version="2")
    assert again().looked_at == 0


def test_a_reason_is_owed_and_bounds_are_kept() -> None:
    price = make_price(model="m", uncached_input=1)
    for number in range(5):
        use(key=str(number))
    price.supersede(by=BY, uncached_input=Decimal(3), price_version="2")
    with pytest.raises(ReasonRequired):
        repricing.reprice(by=BY, dry_run=False)
    assert again(since=db_now()).looked_at == 0
    assert again(models=["other"]).looked_at == 0
    found = again(most=3)
    assert (found.rebooked, bool(found.following)) == (3, True)
    found = again(after=found.following)
    assert (found.rebooked, found.following) == (2, "")
    assert CostRecord.objects.live().total() == Decimal(15)


def test_few_records_among_many_are_found_window_by_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repricing, "WINDOW", 2)
    monkeypatch.setattr(repricing, "MOST_WINDOWS", 2)
    price = make_price(model="m", uncached_input=1)
    for number in range(11):
        use(key=str(number), model="m" if number in (0, 8) else "another")
    price.supersede(by=BY, uncached_input=Decimal(3), price_version="2")
    found, calls, seen = repricing.Outcome(following=""), 0, 0
    while not calls or found.following:
        found = again(models=["m"], after=found.following)
        calls, seen = calls + 1, seen + found.rebooked
    assert (calls, seen) == (2, 2)
    assert again(models=["m"], most=None).looked_at == 2


def test_the_api_corrects_tells_and_reprices() -> None:
    chief = Api(factories.make_key("admin").text)
    admin = Api(factories.make_key("admin", project=factories.make_project()).text)
    price = make_price(model="m", uncached_input=1)
    use()
    path = f"/prices/{price.pk}/supersede/"
    assert refused(admin.post(path, {"price_version": "2"})) == (403, "permission_denied")
    assert refused(chief.post(path, {"uncached_input": "3"})) == (422, "missing_required_field")
    assert refused(chief.post(path, {"uncached_input": "-3", "price_version": "2"})) == (422, "invalid_field")
    assert refused(chief.post(path, {"model": "x", "price_version": "2"})) == (400, "unknown_field")
    made = chief.post(path, {"uncached_input": "3", "price_version": "2"})
    assert made.status_code == 201
    assert (made.json()["uncached_input"], made.json()["output"]) == ("3.000000", f"{price.output:.6f}")
    assert made.headers["Location"] == f"/api/v1/prices/{made.json()['id']}/"
    assert refused(chief.post(path, {"price_version": "3"})) == (409, "conflict")
    dry = chief.post("/prices/reprice/", {"model": "m"}).json()
    assert (dry["rebooked"], dry["results"][0]["after"], dry["next"]) == (0, "3.000000", None)
    assert refused(admin.post("/prices/reprice/", {})) == (403, "permission_denied")
    assert refused(chief.post("/prices/reprice/", {"dry_run": False})) == (422, "reason_required")
    assert refused(chief.post("/prices/reprice/", {"first": "yesterday"})) == (422, "invalid_field")
    assert refused(chief.post("/prices/reprice/", {"after": "x"})) == (422, "invalid_id")
    today = db_now().date().isoformat()
    done = chief.post("/prices/reprice/", {"dry_run": False, "reason": "wrong", "first": today, "last": today})
    assert done.json()["rebooked"] == 1
    assert CostRecord.objects.live().get().amount == Decimal(3)


def test_the_command_tells_first_and_reprices_with_a_reason() -> None:
    price = make_price(model="m", uncached_input=1)
    use()
    price.supersede(by=BY, uncached_input=Decimal(3), price_version="2")
    told = StringIO()
    call_command("reprice", stdout=told)
    assert "1 would be rebooked" in told.getvalue()
    assert CostRecord.objects.live().get().amount == Decimal(1)
    call_command("reprice", "--model=m", "--reason=it was wrong", stdout=told)
    assert "1 rebooked" in told.getvalue()
    assert CostRecord.objects.live().get().amount == Decimal(3)
    with pytest.raises(CommandError, match="YYYY-MM-DD"):
        call_command("reprice", "--first=soon")


def test_the_verb_of_a_price_reprices_what_its_names_were_used_for() -> None:
    price = make_price(model="m", aliases=["m-latest"], uncached_input=1)
    use()
    use("m-latest", key="k2")
    use("other", key="k3")
    new = price.supersede(by=BY, uncached_input=Decimal(3), price_version="2")
    assert new.reprice(by=BY, reason="wrong")
    assert not new.reprice(by=BY, reason="wrong")
    assert CostRecord.objects.live().total() == Decimal(6 + 15)
