"""Chat and mail: what is sent, how often, to whom, what becomes of it when it fails, and that secrets stay in."""

import json
import socketserver
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django.fixtures import Settings

from pipeline import events, notifications, notify
from pipeline.clock import ClockNow, db_now
from pipeline.models import Event, NotificationRule, Project, Subscription
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.conftest import Threads
from tests.factories import BY

# A reader sees only what is committed; a test that reads no events says so itself.
pytestmark = pytest.mark.django_db(transaction=True)

RULES = "/api/v1/notifications/"
SECRET = "hunter2-Zx9Qw"


class Sink(ThreadingHTTPServer):
    """A web server of this machine that takes messages; what it answers, and after what wait, stands in the path."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SinkHandler)
        self.got: list[dict[str, Any]] = []
        self.paths: list[str] = []
        self.let_go = threading.Event()

    def url(self, path: str = "ok") -> str:
        """An Apprise URL of it that holds a secret."""
        return f"json://bot:{SECRET}@127.0.0.1:{self.server_port}/{path}"


class SinkHandler(BaseHTTPRequestHandler):
    """Takes a POST."""

    server: Sink

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.paths.append(self.path)
        if "hang" in self.path:
            self.server.let_go.wait(20)
        if "bad" not in self.path and "moved" not in self.path:
            self.server.got.append(body)
        self.send_response(500 if "bad" in self.path else 307 if "moved" in self.path else 200)
        if "moved" in self.path:
            self.send_header("Location", f"http://127.0.0.1:{self.server.server_port}/elsewhere")
        self.end_headers()

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture
def sink(settings: Settings) -> Iterator[Sink]:
    """The web server, on an internal address that may be reached in this test."""
    settings.SIGNALBOX_WEBHOOK_ALLOW_NETS = ["127.0.0.1/32"]
    server = Sink()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    yield server
    server.let_go.set()
    server.shutdown()
    server.server_close()
    thread.join()


class MailSink(socketserver.StreamRequestHandler):
    """Speaks as much SMTP as it takes to receive a mail."""

    mails: list[str] = []

    def handle(self) -> None:
        self.wfile.write(b"220 sink\r\n")
        while line := self.rfile.readline():
            verb = line[:4].upper()
            if verb == b"DATA":
                self.wfile.write(b"354 go on\r\n")
                lines: list[bytes] = []
                while (text := self.rfile.readline()) not in (b".\r\n", b""):
                    lines.append(text)
                self.mails.append(b"".join(lines).decode())
            self.wfile.write(b"221 bye\r\n" if verb == b"QUIT" else b"250 ok\r\n")


@pytest.fixture
def mail_port(settings: Settings) -> Iterator[int]:
    """The port of a mail server of this machine."""
    settings.SIGNALBOX_WEBHOOK_ALLOW_NETS = ["127.0.0.1/32"]
    MailSink.mails = []
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), MailSink) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def make_subscription(project: Project | None, **fields: Any) -> Subscription:
    """One that wants every failure."""
    fields.setdefault("patterns", ["task.failed", "run.*"])
    return Subscription.objects.add(by=BY, key=f"subscription-{factories.number()}", project=project, **fields)


def make_rule(target: str, project: Project | None = None, **fields: Any) -> NotificationRule:
    """A rule for failures in the project."""
    project = project or factories.make_project()
    subscription = fields.pop("subscription", None) or make_subscription(project)
    fields.setdefault("key", f"rule-{factories.number()}")
    return NotificationRule.objects.add(by=BY, project=project, subscription=subscription, target=target, **fields)


def fail(rule: NotificationRule, reason: str = "disk full", times: int = 1) -> None:
    """As many tasks fail in the rule's project."""
    for _n in range(times):
        events.record("task.failed", rule.project, by=BY, reason=reason)


def later(rule: NotificationRule, **back: timedelta) -> None:
    """So much time has passed for the rule."""
    row = NotificationRule.objects.get(pk=rule.pk)
    moved = {name: getattr(row, name) - by for name, by in back.items()}
    NotificationRule.objects.filter(pk=rule.pk).update(**{"due_at": ClockNow(), **moved})


def place(rule: NotificationRule) -> events.Cursor:
    return Subscription.objects.get(pk=rule.subscription_id).place


# -- sending -----------------------------------------------------------------------------------------------------


def test_an_event_is_told_once_in_its_words_with_a_link(sink: Sink, settings: Settings) -> None:
    settings.SIGNALBOX_URL = "https://box.example"
    rule = make_rule(sink.url(), factories.make_project(key="demo"))
    fail(rule, "disk full")
    event = Event.objects.get(kind="task.failed")

    assert notifications.send_due() == 1
    assert notifications.send_due() == 0

    (got,) = sink.got
    assert got["title"] == "ERROR task.failed · demo"
    assert got["message"] == f"ERROR task.failed · demo · disk full\n  https://box.example/events/{event.pk}/"
    assert got["type"] == "failure"
    rule.refresh_from_db()
    assert place(rule) >= event.cursor
    assert (rule.sent_today, rule.failures, rule.last_error, rule.lease) == (1, 0, "", None)
    assert rule.last_sent_at is not None
    assert rule.version == 1


def test_only_what_the_subscription_wants_is_told(sink: Sink) -> None:
    rule = make_rule(sink.url())
    events.record("note.added", rule.project, by=BY)
    events.record("task.failed", factories.make_project(), by=BY)
    assert notifications.send_due() == 0
    assert sink.got == []


def test_a_mail_is_plain_text_and_says_who_it_is_from(mail_port: int) -> None:
    target = f"mailto://example.org:{mail_port}?smtp=127.0.0.1&from=box@example.org&to=ops@example.org"
    rule = make_rule(target, factories.make_project(key="demo"))
    fail(rule, "<script>alert(1)</script> @all")

    assert notifications.send_due() == 1

    (mail,) = MailSink.mails
    assert "To: ops@example.org" in mail
    assert "Content-Type: text/plain" in mail
    assert "<script>" not in mail


def test_a_burst_is_one_digest_and_the_next_comes_an_interval_later(sink: Sink) -> None:
    rule = make_rule(sink.url(), at_most_every_seconds=300)
    fail(rule, "first")
    notifications.send_due()
    fail(rule, times=40)
    later(rule)
    assert notifications.send_due() == 0
    rule.refresh_from_db()
    assert rule.last_sent_at is not None
    assert rule.due_at == rule.last_sent_at + timedelta(seconds=300)

    later(rule, last_sent_at=timedelta(seconds=300))
    assert notifications.send_due() == 1
    later(rule, last_sent_at=timedelta(seconds=300))
    assert notifications.send_due() == 0

    assert [got["title"] for got in sink.got][1:] == ["Signalbox: 40 events (40 error)"]
    assert "task.failed ×40" in sink.got[1]["message"]


def test_a_day_has_so_many_messages_and_what_is_left_waits_for_the_next(sink: Sink) -> None:
    rule = make_rule(sink.url(), at_most_every_seconds=1, max_per_day=1)
    fail(rule)
    assert notifications.send_due() == 1
    assert "last message of today" in sink.got[0]["message"]
    fail(rule, "of the night")
    later(rule, last_sent_at=timedelta(hours=1))
    assert notifications.send_due() == 0

    NotificationRule.objects.filter(pk=rule.pk).update(sent_on=db_now() - timedelta(days=1), due_at=ClockNow())
    assert notifications.send_due() == 1
    assert "of the night" in sink.got[1]["message"]


def test_an_idle_rule_moves_its_place_only_by_large_steps(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    rule = make_rule(sink.url())
    before = place(rule)
    events.record("note.added", rule.project, by=BY)
    notifications.send_due()
    assert place(rule) == before
    monkeypatch.setattr("pipeline.models.notification.IDLE_STEP", 1)
    later(rule)
    notifications.send_due()
    assert place(rule) > before


def test_two_senders_at_once_send_one_message(sink: Sink, threads: Threads) -> None:
    rule = make_rule(sink.url())
    fail(rule)
    outcomes = threads.at_once(notifications.send_due, notifications.send_due)
    assert sum(outcome.result() for outcome in outcomes) == 1
    assert len(sink.got) == 1


def test_a_sender_that_dies_before_it_could_note_it_sends_once_more(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = make_rule(sink.url())
    fail(rule)

    def die(name: str) -> None:
        raise SystemExit(name)

    with monkeypatch.context() as patched:
        patched.setattr(notifications, "crashpoint", die)
        with pytest.raises(SystemExit):
            notifications.send_due()
    assert notifications.send_due() == 0, "its lease still stands"

    NotificationRule.objects.filter(pk=rule.pk).update(leased_until=ClockNow())
    assert notifications.send_due() == 1
    later(rule, last_sent_at=timedelta(hours=1))
    assert notifications.send_due() == 0
    assert len(sink.got) == 2


def test_a_sender_that_was_thought_dead_notes_nothing(sink: Sink) -> None:
    rule = make_rule(sink.url())
    fail(rule)
    slow = NotificationRule.objects.take()
    assert slow is not None
    due = slow.compose()
    assert due is not None
    NotificationRule.objects.filter(pk=rule.pk).update(leased_until=ClockNow())
    fast = NotificationRule.objects.take()
    before = place(rule)
    assert slow.sent(due.read_to) is False
    assert slow.failed("too late") is False
    rule.refresh_from_db()
    assert fast is not None
    assert (rule.lease, rule.sent_today, rule.failures, place(rule)) == (fast.lease, 0, 0, before)


# -- failing -----------------------------------------------------------------------------------------------------


def test_a_target_that_fails_is_tried_again_with_growing_delay(sink: Sink) -> None:
    rule = make_rule(sink.url("bad"))
    before = place(rule)
    fail(rule)
    delays = []
    for _n in range(3):
        assert notifications.send_due() == 1
        assert notifications.send_due() == 0
        rule.refresh_from_db()
        delays.append(rule.due_at - db_now())
        later(rule)
    assert delays == sorted(delays)
    assert delays[2] > 3 * delays[0] > timedelta(seconds=60)
    assert (rule.failures, rule.sent_today, place(rule)) == (3, 0, before)
    assert "error=500" in rule.last_error


def test_a_target_that_hangs_delays_no_other(sink: Sink, threads: Threads) -> None:
    slow = make_rule(sink.url("hang"))
    quick = make_rule(sink.url("quick"))
    fail(slow)
    fail(quick)
    sender = threads.start(notifications.send_due)
    deadline = time.monotonic() + 15
    while NotificationRule.objects.get(pk=quick.pk).sent_today == 0 and time.monotonic() < deadline:
        time.sleep(0.1)
    sent = NotificationRule.objects.get(pk=quick.pk).sent_today
    still = NotificationRule.objects.get(pk=slow.pk)
    sink.let_go.set()
    assert sender.result() == 2
    assert sent == 1
    assert (still.sent_today, still.failures) == (0, 0)
    assert still.lease is not None


def test_a_rule_that_cannot_be_put_into_words_keeps_no_other_back(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    broken, good = make_rule(sink.url()), make_rule(sink.url())
    fail(broken)
    fail(good)
    compose = NotificationRule.compose

    def stumble(rule: NotificationRule) -> Any:
        return compose(rule) if rule.pk == good.pk else 1 / 0

    monkeypatch.setattr(NotificationRule, "compose", stumble)
    assert notifications.send_due() == 1
    broken.refresh_from_db()
    assert (broken.failures, broken.lease) == (1, None)
    assert "ZeroDivisionError" in broken.last_error


def test_a_target_that_never_answers_has_an_end(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(notify, "TIMEOUT_SECONDS", 2.0)
    rule = make_rule(sink.url("hang"))
    fail(rule)
    assert notifications.send_due() == 1
    rule.refresh_from_db()
    assert rule.last_error == "no answer within 2 s"


def test_after_many_failures_in_a_row_the_rule_pauses_itself_and_says_so(sink: Sink, settings: Settings) -> None:
    settings.SIGNALBOX_NOTIFY_MAX_FAILURES = 2
    rule = make_rule(sink.url("bad"))
    fail(rule)
    for _n in range(3):
        notifications.send_due()
        later(rule)
    rule.refresh_from_db()
    assert (rule.state, rule.failures, len(sink.paths)) == ("paused", 2, 2)
    (event,) = Event.objects.filter(kind="notification_rule.disabled")
    assert (event.severity, event.actor_kind, event.subject_id) == ("warning", "system", rule.pk)
    assert "2 messages in a row" in event.reason
    assert (event.before, event.after) == ({"state": "active"}, {"state": "paused"})

    rule.edit(by=BY, target=sink.url())
    rule.resume(by=BY)
    assert notifications.send_due() == 1
    assert len(sink.got) == 1


def test_a_redirect_is_not_followed(sink: Sink) -> None:
    rule = make_rule(sink.url("moved"))
    fail(rule)
    notifications.send_due()
    rule.refresh_from_db()
    assert rule.failures == 1
    assert sink.paths == ["/moved"]


def test_an_internal_address_is_refused_when_it_is_connected_to(sink: Sink, settings: Settings) -> None:
    rule = make_rule(sink.url())
    fail(rule)
    settings.SIGNALBOX_WEBHOOK_ALLOW_NETS = []
    notifications.send_due()
    rule.refresh_from_db()
    assert "127.0.0.1 is an internal" in rule.last_error
    assert sink.paths == []


def test_a_name_that_leads_inside_is_refused_when_it_is_connected_to(sink: Sink, settings: Settings) -> None:
    settings.SIGNALBOX_WEBHOOK_ALLOW_NETS = ["10.0.0.0/8"]
    with pytest.raises(notify.NotSent, match="internal"):
        notify.send(f"json://localhost:{sink.server_port}/x", title="t", body="b")
    assert sink.paths == []


# -- targets -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_rule_with_a_bad_target_is_not_made_nor_edited(sink: Sink) -> None:
    with pytest.raises(InvalidField, match="target: an address in Apprise's form"):
        make_rule("file:///etc/passwd")
    assert not NotificationRule.objects.exists()
    rule = make_rule(sink.url())
    with pytest.raises(InvalidField, match="internal"):
        rule.edit(by=BY, target="json://10.1.2.3/x")
    rule.refresh_from_db()
    assert rule.target == sink.url()


def test_a_target_may_stand_in_the_environment_alone(sink: Sink, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGNALBOX_NOTIFY_OPS", sink.url())
    rule = make_rule("env:SIGNALBOX_NOTIFY_OPS")
    fail(rule)
    assert notifications.send_due() == 1
    assert len(sink.got) == 1
    assert str(rule).endswith("to env:SIGNALBOX_NOTIFY_OPS")

    monkeypatch.setenv("SIGNALBOX_NOTIFY_OPS", f"file://{SECRET}")
    with pytest.raises(notify.NotSent) as problem:
        notify.send(rule.target, title="t", body="b")
    assert SECRET not in str(problem.value)


def test_secrets_stand_in_no_event_answer_page_or_log(
    sink: Sink, caplog: pytest.LogCaptureFixture, client: Client
) -> None:
    boss = factories.make_user(is_superuser=True, is_staff=True)
    client.force_login(boss)
    project = factories.make_project()
    body = {
        "key": "ops", "project": project.key, "subscription": make_subscription(project).pk, "target": sink.url("bad")
    }  # fmt: skip
    made = client.post(RULES, body, content_type="application/json", headers={"Idempotency-Key": "one"})
    assert made.status_code == 201, made.content
    rule = NotificationRule.objects.get()
    assert rule.target == sink.url("bad")
    rule.edit(by=BY, target=sink.url("bad/other"))
    fail(rule)
    notifications.send_due()

    change = Event.objects.get(kind="notification_rule.changed")
    assert set(change.after or {}) == {"target"}
    assert change.before != change.after
    said = [
        *[str(row) for row in Event.objects.values()],
        made.content.decode(),
        client.get(RULES).content.decode(),
        client.get(f"{RULES}{rule.pk}/").content.decode(),
        client.get(reverse("admin:pipeline_notificationrule_changelist")).content.decode(),
        client.get(reverse("admin:pipeline_notificationrule_change", args=[rule.pk])).content.decode(),
        client.get(reverse("admin:pipeline_notificationrule_history", args=[rule.pk])).content.decode(),
        caplog.text,
    ]
    assert "127.0.0.1" in said[2]
    assert "error=500" in caplog.text
    for text in said:
        assert SECRET not in text


@pytest.mark.django_db
def test_the_admin_keeps_the_target_that_is_not_typed_again(sink: Sink, client: Client) -> None:
    client.force_login(factories.make_user(is_superuser=True, is_staff=True))
    rule = make_rule(sink.url())
    page = reverse("admin:pipeline_notificationrule_change", args=[rule.pk])
    form = {
        "seen_version": 1, "key": rule.key, "target": "", "text": "digest", "at_most_every_seconds": 60,
        "max_per_day": 9, "digest_above": 3,
    }  # fmt: skip
    assert client.post(page, form).status_code == 302
    rule.refresh_from_db()
    assert (rule.target, rule.text, rule.max_per_day) == (sink.url(), "digest", 9)
    assert client.post(page, {**form, "seen_version": 2, "target": sink.url("new")}).status_code == 302
    rule.refresh_from_db()
    assert rule.target == sink.url("new")


# -- rules -------------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_a_rule_reads_a_subscription_of_its_own_project(sink: Sink) -> None:
    project = factories.make_project()
    with pytest.raises(InvalidField, match="same project"):
        make_rule(sink.url(), project, subscription=make_subscription(None))
    shared = make_subscription(project)
    make_rule(sink.url(), project, subscription=shared)
    with pytest.raises(Refused) as refusal:
        make_rule(sink.url(), project, subscription=shared)
    assert refusal.value.code == "duplicate_key"


def test_a_rule_of_the_installation_tells_of_every_project(sink: Sink) -> None:
    subscription = make_subscription(None)
    NotificationRule.objects.add(by=BY, key="all", subscription=subscription, target=sink.url())
    events.record("task.failed", factories.make_project(key="one"), by=BY)
    events.record("task.failed", factories.make_project(key="two"), by=BY)
    assert notifications.send_due() == 1
    assert "· one" in sink.got[0]["message"]
    assert "· two" in sink.got[0]["message"]


def test_a_run_is_named_by_its_workstream(sink: Sink) -> None:
    run = factories.make_run(started=True)
    rule = make_rule(sink.url(), run.project)
    events.record("run.failed", run, by=BY, reason="gave up")
    notifications.send_due()
    assert rule.project is not None
    assert f"{rule.project.key} / {run.workstream.key} run …{run.pk[-6:]} · gave up" in sink.got[0]["message"]


def test_a_paused_rule_is_silent_and_tells_what_has_waited_when_it_is_resumed(sink: Sink) -> None:
    rule = make_rule(sink.url())
    assert rule.pause(by=BY, reason="holidays") is True
    assert rule.pause(by=BY) is False
    fail(rule, times=2)
    assert notifications.send_due() == 0
    assert rule.resume(by=BY) is True
    assert notifications.send_due() == 1
    told = Event.objects.about(rule).values_list("kind", "reason", "after__state")
    assert list(told)[1:] == [
        ("notification_rule.changed", "holidays", "paused"),
        ("notification_rule.changed", "", "active"),
    ]


def test_an_edit_that_lets_it_speak_sooner_counts_at_once(sink: Sink) -> None:
    rule = make_rule(sink.url(), at_most_every_seconds=3600)
    fail(rule)
    notifications.send_due()
    fail(rule)
    later(rule, last_sent_at=timedelta(seconds=30))
    assert notifications.send_due() == 0
    rule.edit(by=BY, at_most_every_seconds=10)
    assert notifications.send_due() == 1


@pytest.mark.django_db
def test_a_rule_goes_with_its_project_and_that_is_told(sink: Sink) -> None:
    rule = make_rule(sink.url())
    assert rule.project is not None
    rule.project.remove(by=BY)
    assert not NotificationRule.objects.exists()
    assert Event.objects.filter(kind="notification_rule.removed", subject_id=rule.pk).count() == 1


def test_the_sweep_asks_for_a_sender_only_when_a_rule_is_due(sink: Sink, nudges: list[tuple[Any, ...]]) -> None:
    notifications.nudge_if_due()
    assert nudges == []
    make_rule(sink.url())
    notifications.nudge_if_due()
    assert nudges == [("pipeline.tasks.notify",)]


# -- over HTTP ---------------------------------------------------------------------------------------------------


def with_key(role: str, project: Project | None) -> Client:
    """A client that comes with a key of this role."""
    key = factories.make_key(role, project=project)
    return Client(headers={"authorization": f"Bearer {key.text}"})


def post(client: Client, path: str, body: Any = None, **headers: str) -> Any:
    """The answer to a JSON body."""
    return client.post(path, json.dumps(body or {}), content_type="application/json", headers=headers)


def test_a_test_sends_one_message_that_says_so_and_counts(sink: Sink) -> None:
    rule = make_rule(sink.url(), key="ops", max_per_day=2)
    admin = with_key("admin", rule.project)
    fail(rule)
    before = place(rule)

    answer = post(admin, f"{RULES}{rule.pk}/test/", **{"Idempotency-Key": "one"})

    assert answer.status_code == 200, answer.content
    assert answer.json()["sent_today"] == 1
    assert sink.got[0]["title"] == "Signalbox: test"
    assert "notification rule ops" in sink.got[0]["message"]
    assert place(rule) == before
    assert post(admin, f"{RULES}{rule.pk}/test/").status_code == 200
    refused = post(admin, f"{RULES}{rule.pk}/test/")
    assert (refused.status_code, refused.json()["code"]) == (409, "limit_reached")
    assert len(sink.got) == 2


@pytest.mark.django_db
def test_a_test_that_is_not_taken_says_why(sink: Sink) -> None:
    rule = make_rule(sink.url("bad"))
    answer = post(with_key("admin", rule.project), f"{RULES}{rule.pk}/test/")
    assert (answer.status_code, answer.json()["code"]) == (502, "not_sent")
    assert "error=500" in answer.json()["detail"]
    assert SECRET not in answer.content.decode()
    rule.refresh_from_db()
    assert (rule.failures, rule.lease) == (0, None)
    assert "error=500" in rule.last_error


@pytest.mark.django_db
def test_a_test_waits_for_no_message_that_is_on_its_way(sink: Sink) -> None:
    rule = make_rule(sink.url())
    NotificationRule.objects.take()
    answer = post(with_key("admin", rule.project), f"{RULES}{rule.pk}/test/")
    assert (answer.status_code, answer.json()["code"]) == (409, "sending")
    assert sink.got == []


@pytest.mark.django_db
def test_a_rule_is_made_edited_paused_and_removed_over_http(sink: Sink) -> None:
    project = factories.make_project()
    admin = with_key("admin", project)
    body = {
        "key": "ops", "project": project.key, "subscription": make_subscription(project).pk, "target": sink.url(),
        "max_per_day": 7,
    }  # fmt: skip
    made = post(admin, RULES, body)
    assert made.status_code == 201, made.content
    document = made.json()
    assert (document["sends_to"], document["max_per_day"], document["state"]) == ("json://127.0.0.1", 7, "active")
    assert "target" not in document
    address = f"{RULES}{document['id']}/"
    assert post(admin, f"{address}pause/", {"reason": "night"}).json()["state"] == "paused"
    assert post(admin, f"{address}resume/").json()["state"] == "active"
    etag = admin.get(address).headers["ETag"]
    edited = admin.patch(
        address, json.dumps({"text": "digest"}), content_type="application/json", headers={"If-Match": etag}
    )
    assert (edited.status_code, edited.json()["text"]) == (200, "digest")
    assert admin.delete(address).status_code == 204


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"target": "file:///etc/passwd"}, "target"),
        ({"target": None}, "target"),
        ({"target": 7.5}, "target"),
        ({"text": "novel"}, "text"),
        ({"max_per_day": 0}, "max_per_day"),
        ({"digest_above": 101}, "digest_above"),
        ({"at_most_every_seconds": -1}, "at_most_every_seconds"),
        ({"subscription": "nope"}, "subscription"),
        ({"key": "No Key"}, "key"),
        ({"state": "paused"}, "state"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_a_wrong_field_over_http_is_named(sink: Sink, change: dict[str, Any], field: str) -> None:
    project = factories.make_project()
    subscription = make_subscription(project)
    body = {"key": "ops", "project": project.key, "subscription": subscription.pk, "target": sink.url(), **change}
    answer = post(with_key("admin", project), RULES, body)
    assert answer.status_code in (400, 422), answer.content
    assert field in answer.content.decode()
    assert not NotificationRule.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("role", ["viewer", "operator", "approver"])
def test_only_admins_of_the_project_see_its_rules(sink: Sink, role: str) -> None:
    rule = make_rule(sink.url())
    someone = with_key(role, rule.project)
    assert someone.get(RULES).status_code == 403
    assert someone.get(f"{RULES}{rule.pk}/").status_code in (403, 404)
    assert post(someone, f"{RULES}{rule.pk}/test/").status_code in (403, 404)
    stranger = with_key("admin", factories.make_project())
    assert stranger.get(RULES).json()["results"] == []
    assert post(stranger, f"{RULES}{rule.pk}/test/").status_code == 404
    assert sink.got == []
