"""The list of reactions that failed, and their replay: by page, API and command."""

from io import StringIO

import pytest
from django.core.management import CommandError, call_command
from django.test import Client

from pipeline import events
from pipeline.ids import new_id
from pipeline.models import Event, FailedReaction
from pipeline.refusals import Refused
from tests import factories

pytestmark = pytest.mark.django_db

API = "/api/v1/failed-reactions/"


@pytest.fixture
def failure(nudges):
    """A dead letter of a new project."""
    waiting = factories.make_failed_reaction()
    FailedReaction.objects.filter(pk=waiting.pk).update(dead_at=waiting.created_at, attempts=12)
    return FailedReaction.objects.get(pk=waiting.pk)


def person(role, failure):
    """A browser of somebody with `role` in the failure's project."""
    membership = factories.make_membership(project=failure.project, role=role)
    browser = Client()
    browser.force_login(membership.user)
    return browser


def test_the_page_shows_what_failed_and_an_operator_replays_it(failure, nudges):
    browser = person("operator", failure)
    assert b"1 reaction to an event has failed" in browser.get("/events/").content
    text = browser.get("/events/failed/").content.decode()
    assert "out of order" in text
    assert "nobody tries any more" in text
    answer = browser.post(f"/events/failed/{failure.pk}/replay/", {"reason": "mended"}, follow=True)
    assert "It is tried again now." in answer.content.decode()
    failure.refresh_from_db()
    assert (failure.dead_at, failure.attempts) == (None, 0)
    event = Event.objects.get(pk=failure.event_id)
    assert (event.handled_at, event.attempts) == (None, 1)
    assert Event.objects.get(kind="alert.cleared").actor_kind == "user"


def test_a_viewer_sees_it_and_cannot_replay_it_and_a_stranger_does_not_see_it(failure):
    browser = person("viewer", failure)
    text = browser.get("/events/failed/").content.decode()
    assert "out of order" in text
    assert "/replay/" not in text
    assert browser.post(f"/events/failed/{failure.pk}/replay/", {"reason": "x"}).status_code == 403
    stranger = person("admin", factories.make_failed_reaction())
    assert str(failure.event_id) not in stranger.get("/events/failed/").content.decode()
    assert stranger.post(f"/events/failed/{failure.pk}/replay/", {"reason": "x"}).status_code == 404


def test_what_the_program_no_longer_reacts_with_is_not_said_to_be_tried(failure, reactions):
    def still_there(event):
        """A reaction of this program."""

    events.on(failure.kind)(still_there)
    name = f"{still_there.__module__}.{still_there.__name__}"
    factories.make_failed_reaction(failure.project, reaction=name, error="it is there")
    FailedReaction.objects.filter(pk=failure.pk).update(dead_at=None)
    rows = person("viewer", failure).get("/events/failed/").content.decode().split("<tr")
    (gone,) = [row for row in rows if "out of order" in row]
    (there,) = [row for row in rows if "it is there" in row]
    assert "the program has this reaction no more" in gone
    assert "no more" not in there


def test_an_operator_drops_it_and_it_is_off_every_list(failure):
    browser = person("operator", failure)
    answer = browser.post(f"/events/failed/{failure.pk}/drop/", {"reason": "nobody needs it"}, follow=True)
    text = answer.content.decode()
    assert "nobody tries it" in text
    assert "out of order" not in text
    assert browser.get(API, {"open": "true"}).json()["results"] == []
    assert [row["id"] for row in browser.get(API, {"dropped": "true"}).json()["results"]] == [failure.pk]
    viewer = person("viewer", failure)
    assert viewer.post(f"/events/failed/{failure.pk}/drop/", {"reason": "x"}).status_code == 403
    assert viewer.post(f"{API}{failure.pk}/drop/", {"reason": "x"}, content_type="application/json").status_code == 403


def test_a_replay_without_a_reason_changes_nothing(failure):
    answer = person("operator", failure).post(f"/events/failed/{failure.pk}/replay/", {}, follow=True)
    assert "A reason is required" in answer.content.decode()
    failure.refresh_from_db()
    assert failure.dead_at is not None


def test_a_replay_is_one_however_many_ask_for_it(failure):
    same = FailedReaction.objects.get(pk=failure.pk)
    assert failure.replay(by=factories.BY, reason="mended") is True
    assert same.replay(by=factories.BY, reason="mended") is False
    assert Event.objects.filter(kind="alert.cleared").count() == 1


def test_an_event_that_is_past_its_keeping_is_not_replayed(failure):
    FailedReaction.objects.filter(pk=failure.pk).update(event_id=new_id())
    failure.refresh_from_db()
    with pytest.raises(Refused) as refused:
        failure.replay(by=factories.BY, reason="mended")
    assert refused.value.code == "event_dropped"
    failure.refresh_from_db()
    assert failure.dead_at is not None
    assert not Event.objects.filter(kind="alert.cleared").exists()


def test_a_program_lists_and_replays(failure):
    other = factories.make_failed_reaction(failure.project)
    browser = person("operator", failure)
    assert [row["id"] for row in browser.get(API, {"dead": "true"}).json()["results"]] == [failure.pk]
    assert [row["id"] for row in browser.get(API, {"dead": "false"}).json()["results"]] == [other.pk]
    assert len(browser.get(API, {"project": failure.project.key, "open": "true"}).json()["results"]) == 2
    answer = browser.post(f"{API}{failure.pk}/replay/", {"reason": "mended"}, content_type="application/json")
    assert (answer.status_code, answer.json()["dead_at"], answer.json()["attempts"]) == (200, None, 0)
    assert browser.get(API, {"dead": "true"}).json()["results"] == []
    unclear = browser.get(API, {"open": "maybe"})
    assert (unclear.status_code, unclear.json()["field"]) == (400, "open")
    refused = browser.post(f"{API}{failure.pk}/replay/", {}, content_type="application/json")
    assert (refused.status_code, refused.json()["code"]) == (422, "reason_required")


def test_the_command_lists_and_replays_what_it_is_told(failure):
    other = factories.make_failed_reaction(failure.project, reaction="c.d")

    def told(**options):
        out = StringIO()
        call_command("replay", stdout=out, **options)
        return out.getvalue()

    assert failure.event_id in told()
    assert other.event_id in told()
    assert other.event_id not in told(dead=True)
    assert failure.event_id not in told(reaction="c.d")
    assert "1 reaction is tried again" in told(event=failure.event_id, reason="mended")
    failure.refresh_from_db()
    assert failure.dead_at is None
    assert Event.objects.filter(kind="alert.cleared", subject_id=other.pk).count() == 0
    assert "1 reaction is dropped" in told(event=other.event_id, drop=True, reason="not needed")
    other.refresh_from_db()
    assert other.dropped_at is not None
    with pytest.raises(CommandError, match="is no id of an event"):
        told(event="17")
