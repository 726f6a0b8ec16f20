"""The page of seals and retention: what binds the log, its months, what goes next, what went; for who may see it."""

from typing import Any

import pytest
from django.core.management import call_command
from django.db import InternalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from ledger import audit, keeping, sealing
from ledger.models import Seal
from pipeline import events
from pipeline.events import Actor
from pipeline.models import Event, Tick
from tests import factories
from tests.ledger.test_retention import at, house, month_ago, projects, run, tell  # noqa: F401 - fixtures are names

pytestmark = pytest.mark.django_db(transaction=True)

PAGE = "/events/seals/"


@pytest.fixture
def browser() -> Client:
    """An administrator's browser."""
    client = Client()
    client.force_login(factories.make_user(is_superuser=True, is_staff=True, username="ada"))
    return client


def test_an_empty_log_says_what_will_appear(browser: Client) -> None:
    text = browser.get(PAGE).text
    assert "none yet" in text
    assert "No seals" in text
    assert "Nothing: there is no month before" not in text  # the fixture's old months are past their keeping
    assert "none in the last day" in text


def test_it_shows_seals_months_and_what_goes_next(browser: Client, projects: Any) -> None:  # noqa: F811
    last = Seal.objects.last_written()
    assert last is not None
    tell(projects[0])
    for kind in ("seal.broken", "seal.dropped"):
        forged = {"finding": "forged", "before": "2000-01", "events": 1, "seals": 1, "root_hash": "f" * 64}
        lacking = dict.fromkeys(("months", "streams", "to_cursor"), "")
        who = Actor("integration", "", "forger")
        events.record(kind, projects[0], by=who, message="forged", data={**forged, **lacking})
    text = browser.get(PAGE).text
    assert "forge" not in text
    assert last.root_hash[:8] in text
    assert str(last.anchor)[:8] in text
    for count in (3, 2):
        assert month_ago(count) in text
    assert f"drop-history --before {month_ago(1)}" in text
    assert "2 months are past their keeping" in text
    assert "Kept for now" not in text
    assert 3 <= keeping.unsealed() <= 5
    assert f"<dd>{keeping.unsealed()} " in text


def test_what_keeps_a_month_is_said(browser: Client, projects: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    old = Event.objects.order_by("pk").values_list("pk", flat=True)[0]
    Event.objects.filter(pk=old).update(handled_at=None)
    text = browser.get(PAGE).text
    assert f"1 events of {month_ago(3)} are not handled yet" in text
    assert [month.open for month in keeping.look().due] == [1, 0]


def test_kept_for_ever_is_said(browser: Client, projects: Any, settings: Any) -> None:  # noqa: F811
    settings.SIGNALBOX_KEEP_EVENTS_MONTHS = 0
    text = browser.get(PAGE).text
    assert "events are kept for ever" in text
    assert "past its keeping" not in text
    assert not keeping.look().due


def test_what_was_dropped_stands_there_with_its_tombstone(browser: Client, projects: Any) -> None:  # noqa: F811
    call_command("drop-history", before=month_ago(2), yes=True)
    told = Event.objects.get(kind="seal.dropped")
    text = browser.get(PAGE).text
    assert f"/events/{told.pk}/" in text
    assert told.data["root_hash"][:8] in text
    assert "dropped" in text
    assert [month.month for month in keeping.look().due] == [month_ago(2)]


def test_the_newest_seals_are_verified_from_the_page(browser: Client, projects: Any) -> None:  # noqa: F811
    answer = browser.post(f"{PAGE}verify/", follow=True)
    assert "are what was written" in answer.text
    run("ALTER TABLE ledger_seal DISABLE TRIGGER USER")
    Seal.objects.filter(number=1).update(root_hash="0" * 64)
    run("ALTER TABLE ledger_seal ENABLE TRIGGER USER")
    answer = browser.post(f"{PAGE}verify/", follow=True)
    assert "This is not what was written" in answer.text
    assert "seal 1" in answer.text


def test_a_verification_and_its_finding_are_shown(browser: Client, projects: Any) -> None:  # noqa: F811
    from ledger.tasks import watch_log

    watch_log()
    assert Tick.objects.filter(schedule="watch_log").exclude(ended_at=None).exists()
    assert "nothing was found" in browser.get(PAGE).text
    run("ALTER TABLE ledger_seal DISABLE TRIGGER USER")
    Seal.objects.filter(number=1).update(root_hash="0" * 64)
    run("ALTER TABLE ledger_seal ENABLE TRIGGER USER")
    Tick.objects.all().delete()
    watch_log()
    text = browser.get(PAGE).text
    assert "Not what was written" in text
    assert "nothing was found" not in text


def test_who_does_not_read_the_whole_installation_sees_nothing_of_it() -> None:
    project = factories.make_project()
    member = Client()
    member.force_login(factories.make_membership(project=project, role="admin").user)
    assert member.get(PAGE).status_code == 403
    assert member.post(f"{PAGE}verify/").status_code == 403
    assert PAGE not in member.get("/events/").text
    assert Client().get(PAGE).status_code == 302


def test_the_page_asks_as_much_of_many_seals_as_of_few(browser: Client, projects: Any) -> None:  # noqa: F811
    assert PAGE in browser.get("/events/").text

    def asked() -> int:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert browser.get(PAGE).status_code == 200
        return len(queries)

    few = asked()
    for _number in range(4):
        tell(projects[0])
        sealing.seal()
    assert asked() == few <= 20


def test_a_verification_by_command_counts_when_nothing_was_found(browser: Client, projects: Any) -> None:  # noqa: F811
    assert "none in the last day" in browser.get(PAGE).text

    call_command("verify-ledger", jobs=1)

    text = browser.get(PAGE).text
    assert "none in the last day" not in text
    assert "nothing was found" in text
    assert not Tick.objects.of_beat().exists()  # it is no sign that a beat lives


def test_a_verification_by_command_that_finds_something_does_not_count(browser: Client, monkeypatch: Any) -> None:
    found = audit.Report(problems=[audit.Problem((1, 1, 1), audit.WRONG_ROW, "its hash is wrong")])
    monkeypatch.setattr(audit, "verify", lambda **asked: found)

    with pytest.raises(SystemExit):
        call_command("verify-ledger", jobs=1)

    assert keeping.last_verified() is None


def test_a_copy_that_can_only_be_read_is_verified_no_less(projects: Any, monkeypatch: Any, capsys: Any) -> None:  # noqa: F811
    def refuse(*asked: Any) -> None:
        raise InternalError("cannot execute INSERT in a read-only transaction")

    monkeypatch.setattr(Tick.objects, "take", refuse)

    call_command("verify-ledger", jobs=1)

    told = capsys.readouterr()
    assert told.out.splitlines()[-1].startswith("ok")
    assert "read-only" in told.err
