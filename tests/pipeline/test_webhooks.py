"""Webhooks: every selected event is delivered or dead, signed, once per webhook-id, and no receiver harms another."""

import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client
from django.urls import reverse
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from pipeline import egress, events, webhooks
from pipeline.clock import db_now
from pipeline.egress import Answer, Limits, TimedOut
from pipeline.events import Event
from pipeline.ids import new_id
from pipeline.models import Delivery, Project, Subscription, WebhookEndpoint
from pipeline.models.webhook import MAX_TRIES, WAITS
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.api.asking import Api, refused
from tests.factories import BY
from tests.pipeline.receivers import Hook

pytestmark = pytest.mark.django_db(transaction=True)

QUICK = partial(egress.post, limits=Limits(connect_seconds=0.5, total_seconds=0.7))
HTTPS = "https://hooks.example.org/services/T0/secret-path"


@pytest.fixture
def hook(settings: Any) -> Iterator[Callable[..., Hook]]:
    """Makes receivers on loopback, which is let through for the test, as is http."""
    settings.SIGNALBOX_WEBHOOK_HTTP = True
    settings.SIGNALBOX_WEBHOOK_ALLOW_NETS = ["127.0.0.1/32"]
    made: list[Hook] = []

    def make(answer: Any = None) -> Hook:
        made.append(Hook(answer))
        return made[-1]

    yield make
    for one in made:
        one.close()


def make_webhook(url: str = HTTPS, project: Project | None = None, *patterns: str) -> WebhookEndpoint:
    """A webhook that is told the notes of a project (or what the patterns say)."""
    subscription = Subscription.objects.add(
        by=BY,
        key=f"s{factories.number()}",
        project=project or factories.make_project(),
        patterns=list(patterns or ["note.added"]),
    )
    return WebhookEndpoint.objects.add(by=BY, subscription=subscription, url=url)


def test_a_second_webhook_of_a_subscription_is_refused_by_what_is_taken() -> None:
    webhook = make_webhook()
    with pytest.raises(Refused, match=r"^Webhook with this Subscription already exists\.$") as refused:
        WebhookEndpoint.objects.add(by=BY, subscription=webhook.subscription, url=f"{HTTPS}2")
    assert refused.value.code == "duplicate_key"


def note(webhook: WebhookEndpoint, message: str = "") -> Event:
    """An event that the webhook is told."""
    return events.record("note.added", webhook.subscription.project, by=BY, message=message)


def says(status: int, **facts: Any) -> Callable[..., Answer]:
    """A receiver without a network: `sent` holds what came to it."""

    def post(url: str, body: bytes, headers: dict[str, str]) -> Answer:
        post.sent.append((url, body, headers))  # type: ignore[attr-defined]
        return Answer(status, facts.get("retry_after", ""), facts.get("body", b""))

    post.sent = []  # type: ignore[attr-defined]
    return post


def silent(url: str, body: bytes, headers: dict[str, str]) -> Answer:
    """A receiver that never answers."""
    raise TimedOut("The exchange was not done within 15 s")


def due_now(*rows: Delivery) -> None:
    """The waits are over."""
    Delivery.objects.filter(pk__in=[row.pk for row in rows]).update(next_attempt_at=db_now())


def told(kind: str) -> list[Event]:
    """Every event of this kind, oldest first."""
    return list(Event.objects.filter(kind=kind).order_by("seq"))


# -- delivered ---------------------------------------------------------------------------------------------------


def test_a_selected_event_is_delivered_once_and_verifies_with_the_reference_library(hook: Any) -> None:
    receiver = hook()
    webhook = make_webhook(receiver.url)
    event = note(webhook, "grüße")
    events.record("run.failed", webhook.subscription.project, by=BY)

    assert webhooks.deliver_due() == 2  # one delivery made, one sent
    assert webhooks.deliver_due() == 0

    (request,) = receiver.taken
    document = Webhook(webhook.secrets()[0]).verify(request.body, request.headers)
    assert request.headers["webhook-id"] == event.pk
    assert (document["type"], document["data"]["message"]) == ("note.added", "grüße")
    event.refresh_from_db()
    assert document["timestamp"] == document["data"]["created_at"] == events.plain(event.created_at)
    assert document["data"]["cursor"] == str(event.cursor)
    assert set(request.headers) == {
        "host", "content-length", "accept-encoding", "connection", "content-type", "user-agent",
        "webhook-id", "webhook-timestamp", "webhook-signature",
    }  # fmt: skip
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempt_count, delivery.last_status) == ("delivered", 1, 204)
    assert (delivery.event_id, delivery.leased_until, delivery.last_error) == (event.pk, None, "")


def test_the_body_holds_what_the_api_shows_of_an_event() -> None:
    webhook = make_webhook()
    event = note(webhook)
    shown = Api(factories.make_key("viewer").text).get(f"/events/{event.pk}/").json()
    event.refresh_from_db()
    assert set(json.loads(webhooks.body_of(event))["data"]) == set(shown)


def test_a_changed_body_time_or_secret_does_not_verify() -> None:
    secret = make_webhook().secrets()[0]
    other = make_webhook().secrets()[0]
    now = datetime.now(UTC)
    headers = webhooks.headers_of("01JD9Z6X8Q4W2M5T7R3B1C0VNK", '{"a":1}', [secret], now)
    Webhook(secret).verify('{"a":1}', headers)
    late = webhooks.headers_of("01JD9Z6X8Q4W2M5T7R3B1C0VNK", '{"a":1}', [secret], now - timedelta(minutes=6))
    for text, given, key in (
        ('{"a":2}', headers, secret),
        ('{"a":1}', {**headers, "webhook-id": "another"}, secret),
        ('{"a":1}', {**headers, "webhook-signature": ""}, secret),
        ('{"a":1}', headers, other),
        ('{"a":1}', late, secret),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(key).verify(text, given)


def test_what_it_does_not_select_is_passed_and_its_own_deliveries_are_no_events(hook: Any) -> None:
    receiver = hook()
    webhook = make_webhook(receiver.url, None, "*")
    note(webhook)
    webhooks.deliver_due()
    count = len(receiver.taken)
    assert count >= 1
    assert webhooks.deliver_due() == 0
    assert len(receiver.taken) == count


def test_a_delivery_is_made_with_the_advance_of_the_cursor_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    webhook = make_webhook()
    note(webhook)
    place = webhook.subscription.cursor

    def dies(*_what: Any) -> bool:
        raise RuntimeError("killed")

    with monkeypatch.context() as patch:
        patch.setattr(Delivery.objects, "bulk_create", dies)
        with pytest.raises(RuntimeError):
            webhook.match(10)
    webhook.subscription.refresh_from_db()
    assert (webhook.subscription.cursor, Delivery.objects.count()) == (place, 0)
    assert webhook.match(10) == 1
    assert webhook.match(10) == 0


def test_two_processes_that_match_at_once_make_each_delivery_once(threads: Any) -> None:
    webhook = make_webhook()
    for _number in range(40):
        note(webhook)
    made = [one.result() for one in threads.at_once(*[partial(webhook.match, 10)] * 4)]
    while more := webhook.match(10):
        made.append(more)
    assert sum(made) == Delivery.objects.count() == 40


# -- not taken ---------------------------------------------------------------------------------------------------


def test_it_is_tried_ten_times_on_the_schedule_under_one_id_and_then_dead() -> None:
    webhook = make_webhook()
    event = note(webhook)
    post = says(500, body=b"out of order")
    for number, seconds in enumerate(WAITS, start=1):
        before = db_now()
        webhooks.deliver_due(post=post)
        delivery = Delivery.objects.get()
        assert (delivery.state, delivery.attempt_count, delivery.last_status) == ("pending", number, 500)
        assert delivery.response_tail == "out of order"
        waits = (delivery.next_attempt_at - before).total_seconds()
        assert 0.8 * seconds - 1 < waits < 1.2 * seconds + 5
        assert webhooks.deliver_due(post=post) == 0
        due_now(delivery)
    webhooks.deliver_due(post=post)

    delivery.refresh_from_db()
    assert (delivery.state, delivery.attempt_count) == ("dead", MAX_TRIES)
    assert {headers["webhook-id"] for _url, _body, headers in post.sent} == {event.pk}
    assert len({body for _url, body, _headers in post.sent}) == 1
    (dead,) = told("delivery.dead")
    assert (dead.subject_id, dead.project_id) == (delivery.pk, webhook.subscription.project_id)
    assert (dead.data["event"], dead.data["status"]) == (event.pk, 500)
    assert "secret-path" not in dead.canonical
    due_now(delivery)
    assert webhooks.deliver_due(post=post) == 0
    assert told("webhook.disabled") == []


def test_the_waits_are_jittered_by_a_fifth() -> None:
    webhook = make_webhook()
    waits = []
    for _number in range(40):
        note(webhook)
    random.seed(7)
    start = db_now()
    while Delivery.objects.untried().exists() or webhook.match(100):
        webhooks.deliver_due(post=says(503))
    for delivery in Delivery.objects.all():
        waits.append((delivery.next_attempt_at - delivery.last_attempt_at).total_seconds())
    assert start < db_now()
    assert 3.9 < min(waits) < 4.5
    assert 5.5 < max(waits) < 6.1


def test_retry_after_is_honoured_up_to_a_day() -> None:
    webhook = make_webhook()
    for given, low, high in (("120", 119, 121), ("1", 3.9, 6.1), ("999999999", 86_399, 86_401), ("soon", 3.9, 6.1)):
        Delivery.objects.all().delete()
        note(webhook)
        webhooks.deliver_due(post=says(429, retry_after=given))
        delivery = Delivery.objects.get()
        assert low < (delivery.next_attempt_at - delivery.last_attempt_at).total_seconds() < high, given


def test_a_retry_after_is_read_as_seconds_or_as_a_date() -> None:
    now = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
    assert webhooks.retry_after_seconds("90", now) == 90
    assert webhooks.retry_after_seconds("Sun, 22 Nov 2026 12:01:30 GMT", now) == 90
    for text in ("", "-5", "1.5", "soon", "Sun, 22 Nov 2020 12:01:30 GMT", "٣", "\x00"):
        assert webhooks.retry_after_seconds(text, now) == 0


@pytest.mark.parametrize(
    "text",
    [
        "Mon, 20 Nov 99999999999 19:12:08 GMT",
        "Mon, 20 Nov 1995 99999999999999999999999:12:08",
        "Mon, 20 Nov 1995 19:12:08 +99999999999999999999",
        "Mon, 20 Nov 9999 23:59:59 -2359",
        "Mon, 20 Nov 0001 00:00:00 +2359",
    ],
    ids=["year", "hour", "zone", "last", "first"],
)
def test_a_receiver_whose_retry_after_is_beyond_all_dates_harms_nobody_else(text: str) -> None:
    hostile, other = make_webhook(), make_webhook("https://other.example.org/")
    note(hostile)
    note(other)

    def post(url: str, body: bytes, headers: dict[str, str]) -> Answer:
        return Answer(204, "", b"") if "other" in url else Answer(503, text, b"")

    webhooks.deliver_due(post=post)
    assert Delivery.objects.get(endpoint=other).state == "delivered"
    refused = Delivery.objects.get(endpoint=hostile)
    assert (refused.state, refused.attempt_count, refused.last_status) == ("pending", 1, 503)
    assert refused.leased_until is None


def test_a_redirect_is_a_failure_and_nobody_goes_there(hook: Any) -> None:
    inner = hook()
    outer = hook(lambda _request: (302, {"Location": inner.url}, b""))
    webhook = make_webhook(outer.url)
    note(webhook)
    webhooks.deliver_due()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.last_status) == ("pending", 302)
    assert "redirect" in delivery.last_error
    assert (len(outer.taken), len(inner.taken)) == (1, 0)


def test_a_name_that_turned_inward_is_a_failure_that_says_so() -> None:
    webhook = make_webhook()
    note(webhook)
    inward = [(0, 0, 0, "", ("169.254.169.254", 443))]
    webhooks.deliver_due(post=partial(egress.post, resolver=lambda *_a, **_k: inward))
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.last_status) == ("pending", None)
    assert "169.254.169.254 is an internal" in delivery.last_error


def test_an_answer_is_stored_legible_and_short(hook: Any) -> None:
    text = "start" + "x" * 9000 + "\x1b[31mred\x9b \u202egnp.exe\x00\ttab\n<script>end"
    receiver = hook(lambda _request: (500, {}, text.encode() + b"\xff"))
    webhook = make_webhook(receiver.url)
    note(webhook)
    webhooks.deliver_due()
    tail = Delivery.objects.get().response_tail
    assert len(tail) == 4096
    assert tail.endswith("�[31mred� �gnp.exe�\ttab\n<script>end�")


def test_410_disables_at_once_and_what_comes_waits_in_the_log() -> None:
    webhook = make_webhook()
    note(webhook)
    webhooks.deliver_due(post=says(410))
    webhook.refresh_from_db()
    assert not webhook.is_enabled
    assert "410" in webhook.disabled_reason
    assert Delivery.objects.get().state == "dead"
    (disabled,) = told("webhook.disabled")
    assert (disabled.severity, disabled.actor_name) == ("warning", "system")

    note(webhook, "meanwhile")
    post = says(200)
    assert webhooks.deliver_due(post=post) == 0
    assert webhook.enable(by=BY) is True
    assert webhook.enable(by=BY) is False
    webhooks.deliver_due(post=post)
    assert [json.loads(body)["data"]["message"] for _url, body, _headers in post.sent] == ["meanwhile"]


def almost_dead(webhook: WebhookEndpoint) -> Delivery:
    """A delivery at its last try."""
    note(webhook)
    webhook.match(1)
    row = Delivery.objects.pending().get()
    Delivery.objects.filter(pk=row.pk).update(attempt_count=MAX_TRIES - 1)
    return row


def test_three_deliveries_dead_in_a_row_disable_and_a_taken_one_in_between_does_not() -> None:
    webhook = make_webhook()
    for answers in ((500, 500, 200, 500, 500), (500,)):
        for status in answers:
            assert webhooks.WebhookEndpoint.objects.get(pk=webhook.pk).is_enabled
            almost_dead(webhook)
            webhooks.deliver_due(post=says(status))
    webhook.refresh_from_db()
    assert not webhook.is_enabled
    assert "3 deliveries in a row" in webhook.disabled_reason
    assert len(told("webhook.disabled")) == 1


def test_five_days_without_a_taken_delivery_disable() -> None:
    webhook = make_webhook()
    note(webhook)
    webhooks.deliver_due(post=silent)
    webhook.refresh_from_db()
    assert webhook.is_enabled
    assert webhook.failing_since is not None
    for days, is_enabled in ((4.9, True), (5.1, False)):
        WebhookEndpoint.objects.filter(pk=webhook.pk).update(failing_since=db_now() - timedelta(days=days))
        due_now(*Delivery.objects.all())
        webhooks.deliver_due(post=silent)
        webhook.refresh_from_db()
        assert webhook.is_enabled is is_enabled
    assert "nothing for 5 days" in webhook.disabled_reason


def test_an_event_that_is_kept_no_longer_ends_its_delivery_unsent() -> None:
    webhook = make_webhook()
    Delivery.objects.create(endpoint=webhook, event_id=new_id())
    post = says(200)
    webhooks.deliver_due(post=post)
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.last_error) == ("dead", "Its event is past its keeping")
    assert post.sent == []


# -- nobody harms another ----------------------------------------------------------------------------------------


def test_a_receiver_that_hangs_delays_nobody_else(hook: Any) -> None:
    done = threading.Event()
    seen: list[str] = []

    def quick(request: Any) -> int:
        seen.append(request.headers["webhook-id"])
        if len(seen) == 30:
            done.set()
        return 200

    hanging, healthy = hook(lambda _request: done.wait(20) and 200), hook(quick)
    slow, fast = make_webhook(hanging.url), make_webhook(healthy.url)
    for _number in range(30):
        note(slow)
        note(fast)
    webhooks.deliver_due(seconds=10)  # the hanging one is let go when the healthy one has had everything
    assert done.is_set()
    assert hanging.most == 5
    assert not Delivery.objects.pending().filter(endpoint=fast).exists()


def test_at_most_five_are_in_flight_to_one_receiver(hook: Any) -> None:
    five = threading.Barrier(5)

    def answer(_request: Any) -> int:
        five.wait(10)
        time.sleep(0.3)  # a sixth would come in this time
        return 200

    receiver = hook(answer)
    webhook = make_webhook(receiver.url)
    for _number in range(15):
        note(webhook)
    webhooks.deliver_due()
    assert receiver.most == 5
    assert Delivery.objects.filter(state="delivered").count() == 15


def test_a_receiver_that_failed_gets_one_at_a_time() -> None:
    webhook = make_webhook()
    for _number in range(8):
        note(webhook)
    webhook.match(100)
    WebhookEndpoint.objects.filter(pk=webhook.pk).update(failing_since=db_now())
    assert len(webhooks.take(100)) == 1
    assert webhooks.take(100) == []


def test_a_receiver_that_hangs_is_given_up_at_the_deadline(hook: Any) -> None:
    over = threading.Event()
    receiver = hook(lambda _request: over.wait(10) and 200)
    webhook = make_webhook(receiver.url)
    note(webhook)
    webhooks.deliver_due(post=QUICK)
    over.set()
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.last_status) == ("pending", None)
    assert "not done within" in delivery.last_error


def test_two_senders_never_have_the_same_delivery(threads: Any) -> None:
    hooks = [make_webhook() for _number in range(4)]
    for webhook in hooks:
        for _number in range(10):
            note(webhook)
        webhook.match(100)
    taken = [one.result() for one in threads.at_once(*[partial(webhooks.take, 100)] * 4)]
    taken.append(webhooks.take(100))
    ids = [row.pk for rows in taken for row in rows]
    assert len(ids) == len(set(ids)) == 20  # five of each
    assert Delivery.objects.leased().count() == 20


def test_what_a_killed_sender_held_is_sent_when_its_lease_is_over() -> None:
    webhook = make_webhook()
    note(webhook)
    webhook.match(1)
    (held,) = webhooks.take(10)
    assert webhooks.take(10) == []
    Delivery.objects.update(leased_until=db_now() - timedelta(seconds=1))
    (taken_again,) = webhooks.take(10)
    assert held.accept(status=200) is False
    assert held.fail("too late") is False
    assert Delivery.objects.get().attempt_count == 0
    assert taken_again.accept(status=200) is True
    assert taken_again.fail("twice") is False
    delivery = Delivery.objects.get()
    assert (delivery.state, delivery.attempt_count, delivery.last_error) == ("delivered", 1, "")


def test_what_cannot_be_booked_is_sent_again_later(monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    webhook = make_webhook()
    note(webhook)

    def dies(*_what: Any) -> bool:
        raise RuntimeError("the database went away")

    with monkeypatch.context() as patch:
        patch.setattr(webhooks, "conclude", dies)
        webhooks.deliver_due(post=says(200))
    assert "could not be booked" in caplog.text
    Delivery.objects.update(leased_until=db_now() - timedelta(seconds=1))
    webhooks.deliver_due(post=says(200))
    assert Delivery.objects.get().state == "delivered"


def test_a_flood_waits_in_the_log_not_in_the_outbox(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(webhooks, "MOST_UNTRIED", 10)
    monkeypatch.setattr(webhooks, "BATCH", 7)
    webhook = make_webhook()
    for _number in range(40):
        note(webhook)
    assert [webhooks.feed() for _number in range(4)] == [7, 7, 0, 0]


def test_a_paused_subscription_feeds_nobody_until_it_is_resumed() -> None:
    webhook = make_webhook()
    webhook.subscription.pause(by=BY)
    note(webhook)
    post = says(200)
    assert webhooks.deliver_due(post=post) == 0
    webhook.subscription.resume(by=BY)
    assert webhooks.deliver_due(post=post) == 2


def test_the_sweep_wakes_a_sender_only_when_somebody_is_sent_to(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(webhooks, "nudge", lambda task, queue: sent.append((task, queue)))
    webhooks.wake()
    assert sent == []
    webhook = make_webhook()
    webhooks.wake()
    assert sent == [("pipeline.tasks.deliver", "webhooks")]
    webhook.disable(by=BY, reason="x")
    webhooks.wake()
    assert len(sent) == 1


# -- again -------------------------------------------------------------------------------------------------------


def test_a_redelivery_is_a_new_row_with_the_same_id() -> None:
    webhook = make_webhook()
    event = note(webhook)
    post = says(200)
    webhooks.deliver_due(post=post)
    first = Delivery.objects.get()
    again = first.redeliver(by=BY, reason="lost it")
    with pytest.raises(Refused) as refusal:
        again.redeliver(by=BY)
    assert refusal.value.code == "delivery_pending"
    webhooks.deliver_due(post=post)
    again.refresh_from_db()
    third = again.redeliver(by=BY)
    assert (again.state, again.redelivery_of_id, third.redelivery_of_id) == ("delivered", first.pk, first.pk)
    assert [headers["webhook-id"] for _url, _body, headers in post.sent] == [event.pk] * 2
    (change, _second) = told("webhook.changed")
    assert (change.reason, change.data["redelivered"], change.actor_name) == ("lost it", first.pk, BY.name)
    webhook.disable(by=BY, reason="x")
    with pytest.raises(Refused) as refusal:
        first.redeliver(by=BY)
    assert refusal.value.code == "webhook_disabled"


def test_a_replay_of_the_subscription_delivers_again() -> None:
    webhook = make_webhook()
    start = webhook.subscription.cursor
    for _number in range(3):
        note(webhook)
    post = says(200)
    webhooks.deliver_due(post=post)
    Subscription.objects.get(pk=webhook.subscription_id).replay(start, by=BY)
    webhooks.deliver_due(post=post)
    assert len(post.sent) == 6
    first = [headers["webhook-id"] for _url, _body, headers in post.sent[:3]]
    assert sorted(first) == sorted(headers["webhook-id"] for _url, _body, headers in post.sent[3:])
    assert Delivery.objects.first_ones().count() == 3


def test_ended_deliveries_are_forgotten_after_their_time_and_pending_ones_are_not() -> None:
    webhook = make_webhook()
    note(webhook)
    webhooks.deliver_due(post=says(200))
    note(webhook)
    webhooks.deliver_due(post=silent)
    assert webhooks.forget_old() == 0
    Delivery.objects.update(created_at=db_now() - timedelta(days=31))
    assert webhooks.forget_old() == 1
    assert [row.state for row in Delivery.objects.all()] == ["pending"]


# -- secrets and addresses ---------------------------------------------------------------------------------------


def stored_text() -> str:
    """Everything that the database holds about webhooks and what was told of them."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT string_agg(t, ' ') FROM (SELECT w::text t FROM pipeline_webhookendpoint w"
            " UNION ALL SELECT e::text FROM pipeline_event e UNION ALL SELECT a::text FROM pipeline_storedanswer a) x"
        )
        return str(cursor.fetchone()[0])


def test_during_a_rotation_both_secrets_sign_and_afterwards_the_new_one() -> None:
    webhook = make_webhook()
    (old,) = webhook.secrets()
    new = webhook.rotate(by=BY, reason="yearly")
    assert webhook.secrets() == [new, old]
    with pytest.raises(Refused) as refusal:
        webhook.rotate(by=BY)
    assert refusal.value.code == "rotation_open"

    def verifies(secret: str) -> bool:
        post = says(200)
        note(webhook)
        webhooks.deliver_due(post=post)
        ((_url, body, headers),) = post.sent
        try:
            Webhook(secret).verify(body, headers)
        except WebhookVerificationError:
            return False
        return True

    assert verifies(old)
    assert verifies(new)
    assert webhook.retire_old(by=BY) is True
    assert webhook.retire_old(by=BY) is False
    assert not verifies(old)
    assert verifies(new)
    assert [event.data["secrets"] for event in told("webhook.changed")] == ["rotated", "old one retired"]


def test_a_secret_is_in_no_row_and_another_pepper_makes_another(settings: Any) -> None:
    webhook = make_webhook()
    secrets = [webhook.secrets()[0], webhook.rotate(by=BY)]
    text = stored_text()
    for secret in secrets:
        assert secret.startswith("whsec_")
        assert len(webhooks.Webhook(secret)._whsecret) == 32
        assert secret.removeprefix("whsec_") not in text
    settings.SIGNALBOX_PEPPER = "another"
    assert not set(webhook.secrets()) & set(secrets)


def test_the_path_of_an_address_is_in_no_event_yet_its_change_is_told() -> None:
    webhook = make_webhook()
    assert webhook.edit(by=BY, url=HTTPS + "-two") is True
    assert webhook.edit(by=BY, url=HTTPS + "-two") is False
    webhook.refresh_from_db()
    assert webhook.url == HTTPS + "-two"
    (change,) = told("webhook.changed")
    assert change.before["url"] != change.after["url"]
    assert change.after["url"].startswith("https://hooks.example.org/…")
    webhook.disable(by=BY, reason="x")
    assert not any("secret-path" in event.canonical for event in Event.objects.all())


def test_an_address_that_nothing_is_sent_to_is_refused_when_it_is_saved() -> None:
    for url in ("http://hooks.example.org/", "https://127.0.0.1/", "https://0x7f.1/", "nowhere", ""):
        with pytest.raises(InvalidField) as refusal:
            make_webhook(url)
        assert refusal.value.parts["field"] == "url"
    assert not WebhookEndpoint.objects.exists()


def test_a_subscription_in_use_stays_and_a_removed_webhook_takes_its_log_along() -> None:
    webhook = make_webhook()
    note(webhook)
    webhooks.deliver_due(post=says(200))
    with pytest.raises(Refused) as refusal:
        webhook.subscription.remove(by=BY)
    assert refusal.value.code == "in_use"
    webhook.remove(by=BY)
    assert not Delivery.objects.exists()
    assert len(told("webhook.removed")) == 1


def test_deliveries_end() -> None:
    """INV-68 of domain.md, over one delivery of each fate."""
    webhook = make_webhook()
    for status in (200, 500, 404):
        note(webhook)
        webhooks.deliver_due(post=says(status))
    Delivery.objects.filter(last_status=404).update(attempt_count=MAX_TRIES - 1, next_attempt_at=db_now())
    webhooks.deliver_due(post=says(500))
    assert sorted(Delivery.objects.values_list("state", flat=True)) == ["dead", "delivered", "pending"]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT id FROM pipeline_delivery WHERE (state='pending' AND next_attempt_at IS NULL) OR attempt_count>10"
            " OR (state='delivered' AND last_status NOT BETWEEN 200 AND 299)"
        )
        assert cursor.fetchall() == []


def test_what_is_due_is_found_by_its_index() -> None:
    webhook = make_webhook()
    due = Delivery.objects.due().filter(endpoint=webhook).order_by("next_attempt_at", "pk")
    with connection.cursor() as cursor:
        cursor.execute("SET enable_seqscan = off")
        plan = due.explain()
        cursor.execute("RESET enable_seqscan")
    assert "delivery_due" in plan


# -- over HTTP, on pages and in the admin ------------------------------------------------------------------------


def test_a_secret_is_shown_once_when_it_is_made_and_never_again() -> None:
    project = factories.make_project()
    text = factories.make_key("admin", project=project).text
    admin = Api(text)
    subscription = Subscription.objects.add(by=BY, key="all", project=project, patterns=["*"])
    body = {"subscription": subscription.pk, "url": HTTPS}

    made = admin.post("/webhooks/", body, Idempotency_Key="once")
    assert made.status_code == 201, made.content
    row = made.json()
    webhook = WebhookEndpoint.objects.get()
    assert row["secret"] == webhook.secrets()[0]
    repeated = admin.post("/webhooks/", body, Idempotency_Key="once").json()
    rotated = admin.post(f"/webhooks/{row['id']}/rotate/").json()
    webhook.refresh_from_db()
    assert rotated["secret"] == webhook.secrets()[0] != row["secret"]
    assert rotated["is_rotating"] is True
    shown = [repeated, admin.get("/webhooks/").json()["results"][0], admin.get(f"/webhooks/{row['id']}/").json()]
    for document in shown:
        assert document["id"] == row["id"]
        assert not {"secret", "seed", "old_seed", "secrets"} & set(document)
    assert row["secret"].removeprefix("whsec_") not in stored_text()
    assert admin.post(f"/webhooks/{row['id']}/retire-old/").json()["is_rotating"] is False


def test_webhooks_are_edited_disabled_and_enabled_over_http() -> None:
    project = factories.make_project()
    admin = Api(factories.make_key("admin", project=project).text)
    webhook = make_webhook(HTTPS, project)
    here = f"/webhooks/{webhook.pk}/"

    assert refused(admin.post(f"{here}disable/")) == (422, "reason_required")
    assert admin.post(f"{here}disable/", {"reason": "too loud"}).json()["disabled_reason"] == "too loud"
    assert len(admin.get("/webhooks/", disabled="true").json()["results"]) == 1
    assert admin.get("/webhooks/", disabled="false").json()["results"] == []
    assert admin.post(f"{here}enable/").json()["disabled_at"] is None
    assert refused(admin.patch(here, {"url": "https://10.0.0.1/"}, version=admin.get(here).json()["version"])) == (
        422,
        "address_refused",
    )
    version = admin.get(here).json()["version"]
    assert admin.patch(here, {"url": "https://example.org/new"}, version=version).status_code == 200
    another = Subscription.objects.add(by=BY, key="x", project=project, patterns=["*"])
    assert refused(admin.patch(here, {"subscription": another.pk}, version=version + 1)) == (422, "invalid_field")
    assert refused(admin.post("/webhooks/", {"subscription": webhook.subscription_id, "url": HTTPS})) == (
        409,
        "duplicate_key",
    )
    viewer = Api(factories.make_key("viewer", project=project).text)
    assert refused(viewer.get(here)) == (403, "permission_denied")
    assert admin.delete(here).status_code == 204


def test_the_delivery_log_is_read_and_sent_again_over_http() -> None:
    project = factories.make_project()
    admin = Api(factories.make_key("admin", project=project).text)
    webhook = make_webhook(HTTPS, project)
    event = note(webhook)
    webhooks.deliver_due(post=says(200, body=b"thank you"))
    note(make_webhook())
    webhooks.deliver_due(post=says(200))

    (row,) = admin.get("/deliveries/", endpoint=webhook.pk, state="delivered").json()["results"]
    assert (row["event"], row["kind"], row["last_status"]) == (event.pk, "note.added", 200)
    assert "response_tail" not in row
    assert len(admin.get("/deliveries/").json()["results"]) == 1
    assert admin.get(f"/deliveries/{row['id']}/").json()["response_tail"] == "thank you"
    again = admin.post(f"/deliveries/{row['id']}/redeliver/", {"reason": "lost"})
    assert (again.status_code, again.json()["redelivery_of"], again.json()["state"]) == (201, row["id"], "pending")
    assert again.headers["Location"].endswith(f"/deliveries/{again.json()['id']}/")


def person(project: Project, role: str) -> Client:
    """Somebody with this role, signed in."""
    client, user = Client(), factories.make_user()
    factories.make_membership(user, project, role)
    client.force_login(user)
    return client


def test_the_pages_show_body_and_answer_and_send_again() -> None:
    webhook = make_webhook()
    project = webhook.subscription.project
    note(webhook, "<b>body</b>")
    webhooks.deliver_due(post=says(500, body=b"<script>alert(1)</script>"))
    delivery = Delivery.objects.get()
    admin = person(project, "admin")
    log = reverse("webhooks:deliveries", args=[webhook.pk])
    page = reverse("webhooks:delivery", args=[delivery.pk])
    again = reverse("webhooks:redeliver", args=[delivery.pk])

    assert webhook.subscription.key in admin.get(reverse("webhooks:list")).content.decode()
    listed = admin.get(log).content.decode()
    assert "note.added" in listed
    assert "Answered 500" in listed
    assert "note.added" not in admin.get(log, {"state": "dead"}).content.decode()
    assert admin.get(log, {"state": "odd"}).status_code == 400
    shown = admin.get(page).content.decode()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in shown
    assert "&lt;b&gt;body&lt;/b&gt;" in shown
    assert "<script>alert" not in shown
    assert "secret-path" not in shown + listed

    refusal = list(get_messages(admin.post(again).wsgi_request))
    assert "still to be sent" in str(refusal[0])
    due_now(delivery)
    webhooks.deliver_due(post=says(200))
    assert admin.post(again).headers["Location"] == log
    assert Delivery.objects.count() == 2


def test_pages_of_webhooks_are_for_admins_of_the_project_alone() -> None:
    webhook = make_webhook()
    note(webhook)
    webhook.match(1)
    delivery = Delivery.objects.get()
    addresses = [
        reverse("webhooks:deliveries", args=[webhook.pk]),
        reverse("webhooks:delivery", args=[delivery.pk]),
    ]
    stranger = person(factories.make_project(), "admin")
    approver = person(webhook.subscription.project, "approver")
    for client in (stranger, approver):
        assert [client.get(address).status_code for address in addresses] == [404, 404]
        assert webhook.subscription.key not in client.get(reverse("webhooks:list")).content.decode()
        assert client.post(reverse("webhooks:redeliver", args=[delivery.pk])).status_code == 404
    assert Client().get(addresses[0]).status_code == 302


def test_a_list_of_many_deliveries_asks_no_more_than_one_of_few(django_assert_max_num_queries: Any) -> None:
    webhook = make_webhook()
    admin = person(webhook.subscription.project, "admin")
    counts = []
    for _round in range(2):
        for _number in range(20):
            note(webhook)
        webhook.match(100)
        with django_assert_max_num_queries(20) as asked:
            assert admin.get(reverse("webhooks:deliveries", args=[webhook.pk])).status_code == 200
        counts.append(len(asked.captured_queries))
    assert counts[0] == counts[1]


def test_the_admin_shows_a_new_secret_once_and_makes_another_on_demand() -> None:
    boss = factories.make_user(is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(boss)
    subscription = Subscription.objects.add(by=BY, key="all", patterns=["*"])
    form = {"subscription": subscription.pk, "url": HTTPS}
    answer = client.post(reverse("admin:pipeline_webhookendpoint_add"), form, follow=True)
    webhook = WebhookEndpoint.objects.get()
    (first,) = webhook.secrets()
    assert first in [word.rstrip(".") for word in str(next(iter(answer.context["messages"]))).split()]
    listing = reverse("admin:pipeline_webhookendpoint_changelist")
    again = client.post(listing, {"action": "rotate", "_selected_action": [webhook.pk]}, follow=True)
    webhook.refresh_from_db()
    assert len(webhook.secrets()) == 2
    assert webhook.secrets()[0] in "".join(str(message) for message in again.context["messages"])
    page = client.get(reverse("admin:pipeline_webhookendpoint_change", args=[webhook.pk])).content.decode()
    for hidden in (*webhook.secrets(), webhook.seed, webhook.old_seed):
        assert hidden not in page + client.get(listing).content.decode()
