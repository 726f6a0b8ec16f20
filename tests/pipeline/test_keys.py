"""API keys: shown once, kept hashed, good until revoked or over."""

from datetime import timedelta

import pytest
from django.utils import timezone

from pipeline import auth, events
from pipeline.clock import db_now
from pipeline.models import ApiKey, Event
from pipeline.refusals import InvalidField
from tests import factories
from tests.factories import BY

pytestmark = pytest.mark.django_db


def test_the_text_of_a_key_is_nowhere_in_the_database():
    row, text = factories.make_key()
    mark, prefix, secret = text.split("_", 2)
    assert (mark, prefix, len(prefix)) == ("sbx", row.prefix, 8)
    assert len(secret) >= 40
    stored = ApiKey.objects.values().get(pk=row.pk)
    assert not any(secret in str(value) for value in stored.values())
    event = Event.objects.about(row).get()
    assert secret not in event.canonical
    assert row.secret_hash not in event.canonical


def test_a_key_is_found_by_its_text_alone():
    row, text = factories.make_key()
    assert auth.find_key(text) == row
    for wrong in (
        text[:-1],
        text + "x",
        text.swapcase(),
        text.replace("sbx_", "sby_"),
        f"sbx_{row.prefix}_",
        "",
        "sbx__",
    ):
        assert auth.find_key(wrong) is None


def test_a_revoked_key_is_no_key():
    row, text = factories.make_key()
    assert row.revoke(by=BY, reason="leaked") is True
    assert auth.find_key(text) is None
    event = Event.objects.about(row).last()
    assert (event.kind, event.reason, event.before) == ("api_key.changed", "leaked", {"revoked_at": None})
    assert event.after == {"revoked_at": events.plain(row.revoked_at)}


def test_revoking_twice_is_quiet_and_keeps_the_first_time():
    row, _text = factories.make_key()
    row.revoke(by=BY)
    first = row.revoked_at
    assert row.revoke(by=BY) is False
    assert row.revoked_at == first
    assert Event.objects.about(row).count() == 2


def test_a_key_past_its_end_is_no_key():
    row, text = factories.make_key(life=timedelta(hours=1))
    assert auth.find_key(text) == row
    ApiKey.objects.filter(pk=row.pk).update(expires_at=db_now() - timedelta(seconds=1))
    assert auth.find_key(text) is None


def test_a_workers_key_ends_after_90_days_at_the_latest():
    row, _text = factories.make_key("worker")
    assert timedelta(days=89) < row.expires_at - timezone.now() <= timedelta(days=90)
    with pytest.raises(InvalidField):
        factories.make_key("worker", life=timedelta(days=91))


@pytest.mark.parametrize("fields", [{"role": "owner"}, {"role": "viewer", "life": timedelta(0)}])
def test_a_key_without_a_known_role_or_a_future_is_not_made(fields):
    with pytest.raises(InvalidField):
        factories.make_key(**fields)
    assert not ApiKey.objects.exists()


def test_the_use_of_a_key_is_noted_once_a_minute_and_without_an_event():
    row, text = factories.make_key()
    auth.find_key(text)
    row.refresh_from_db()
    first = row.last_used_at
    assert first is not None
    auth.find_key(text)
    row.refresh_from_db()
    assert row.last_used_at == first
    assert Event.objects.about(row).count() == 1


def test_noting_the_use_of_a_key_is_no_new_version_of_it():
    row, text = factories.make_key()
    auth.find_key(text)
    row.refresh_from_db()
    assert row.version == 1


def test_a_key_of_another_pepper_does_not_match(settings):
    _row, text = factories.make_key()
    settings.SIGNALBOX_PEPPER = "another pepper"
    assert auth.find_key(text) is None


def test_a_key_of_a_project_has_its_role_there_alone():
    project, other = factories.make_project(), factories.make_project()
    row, _text = factories.make_key("approver", project=project)
    principal = auth.Principal.of_key(row)
    assert principal.may("approver", project)
    assert not principal.may("admin", project)
    assert not principal.may("viewer", other)
    assert not principal.may("viewer", None)


def test_a_workers_key_reads_no_project():
    principal = auth.Principal.of_key(factories.make_key("worker").row)
    assert principal.is_worker
    assert principal.project_ids() == set()
    with pytest.raises(auth.Denied):
        principal.must("viewer", factories.make_project())
