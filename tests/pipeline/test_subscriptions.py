"""Subscriptions: every wanted event in the order of commits, again until it is acknowledged, and none ever skipped."""

import threading
from typing import Any

import pytest
from django.db import transaction

from pipeline import events
from pipeline.events import Cursor, Event
from pipeline.models import Subscription, webhook
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.api.asking import Api, refused
from tests.factories import BY

pytestmark = pytest.mark.django_db(transaction=True)


def note(project: Any, kind: str = "note.added", **facts: Any) -> Event:
    """An event about the project."""
    return events.record(kind, project, by=BY, **facts)


def subscribe(project: Any = None, *patterns: str, **fields: Any) -> Subscription:
    """A subscription to these patterns, or to everything."""
    key = f"s{factories.number()}"
    return Subscription.objects.add(by=BY, key=key, project=project, patterns=list(patterns or ["*"]), **fields)


def told(batch: list[Event]) -> list[str]:
    """The messages of these events."""
    return [event.message for event in batch]


def test_it_begins_at_the_present_end_of_the_log_unless_told() -> None:
    project = factories.make_project()
    note(project, message="before")
    fresh = subscribe(project, "note.added")
    whole = subscribe(project, "note.added", cursor="0-0-0")
    note(project, message="after")
    assert told(fresh.pull()) == ["after"]
    assert told(whole.pull()) == ["before", "after"]


def test_a_pull_moves_nothing_and_an_acknowledgement_moves_on() -> None:
    project = factories.make_project()
    reader = subscribe(project, "note.added")
    for number in range(5):
        note(project, message=str(number))
    first = reader.pull(2)
    assert told(first) == told(reader.pull(2)) == ["0", "1"]
    assert first.read_to == first[-1].cursor
    assert reader.ack(first.read_to) is True
    assert told(reader.pull(2)) == ["2", "3"]
    assert told(Subscription.objects.get(pk=reader.pk).pull(9)) == ["2", "3", "4"]
    assert not Event.objects.filter(kind="subscription.changed").exists()
    assert reader.version == Subscription.objects.get(pk=reader.pk).version == 1


def test_every_event_is_read_once_by_a_reader_that_acknowledges() -> None:
    project = factories.make_project()
    reader = subscribe(project, "note.added")
    for number in range(57):
        note(project, message=str(number))
    seen: list[str] = []
    while batch := reader.pull(10):
        seen += told(batch)
        reader.ack(batch.read_to)
    assert seen == [str(number) for number in range(57)]


def test_an_acknowledgement_never_goes_back_nor_behind_the_end_of_the_log() -> None:
    project = factories.make_project()
    reader = subscribe(project)
    first, second = note(project), note(project)
    first.refresh_from_db()
    second.refresh_from_db()
    reader.ack(second.cursor)
    assert reader.ack(first.cursor) is False
    assert reader.ack(str(second.cursor)) is False
    assert reader.cursor == str(second.cursor)
    with pytest.raises(InvalidField, match="behind the end of the log"):
        reader.ack(Cursor(99, 1, 1))
    with pytest.raises(Refused) as refusal:
        reader.ack("tomorrow")
    assert refusal.value.code == "invalid_cursor"
    reader.refresh_from_db()
    assert reader.cursor == str(second.cursor)


def test_it_reads_its_own_project_and_without_one_all() -> None:
    mine, other = factories.make_project(), factories.make_project()
    narrow, wide = subscribe(mine, "note.added"), subscribe(None, "note.added")
    note(other, message="theirs")
    note(mine, message="mine")
    assert told(narrow.pull()) == ["mine"]
    assert told(wide.pull()) == ["theirs", "mine"]


def test_patterns_channels_and_severity_choose() -> None:
    project = factories.make_project()
    cases: list[tuple[list[str], dict[str, Any], list[str]]] = [
        (["*"], {}, ["run.failed", "note.added", "patch.committed", "step.failed"]),
        (["*.failed"], {}, ["run.failed", "step.failed"]),
        (["run.*", "patch.committed"], {}, ["run.failed", "patch.committed"]),
        (["*"], {"channels": ["integration_events"]}, ["patch.committed"]),
        (["*"], {"min_severity": "error"}, ["run.failed", "step.failed"]),
        (["run.*"], {"channels": ["integration_events"]}, []),
    ]
    readers = [subscribe(project, *patterns, **fields) for patterns, fields, _wanted in cases]
    for reader in readers:
        reader.ack(events.horizon())
    for kind in ("run.failed", "note.added", "patch.committed", "step.failed"):
        note(project, kind)
    for reader, (_patterns, _fields, wanted) in zip(readers, cases, strict=True):
        assert [event.kind for event in reader.pull()] == wanted


def test_where_nothing_is_wanted_the_place_moves_to_the_end_all_the_same() -> None:
    project = factories.make_project()
    reader = subscribe(project, "patch.*")
    for _number in range(5):
        last = note(project)
    last.refresh_from_db()
    batch = reader.pull()
    assert batch == []
    assert batch.read_to == last.cursor
    assert reader.ack(batch.read_to) is True
    assert reader.ack(reader.pull().read_to) is False
    note(project, "patch.committed", message="wanted")
    assert told(reader.pull()) == ["wanted"]


def test_a_pull_looks_at_a_window_of_events_and_loses_none_behind_it(
    monkeypatch: pytest.MonkeyPatch, django_assert_num_queries: Any
) -> None:
    monkeypatch.setattr(webhook, "WINDOW", 4)
    project = factories.make_project()
    reader = subscribe(project, "patch.*")
    for number in range(11):
        note(project, message=str(number))
    note(project, "patch.committed", message="wanted")
    note(project, "patch.released", message="too")
    seen, steps = [], 0
    while reader.ack((batch := reader.pull()).read_to):
        seen += told(batch)
        steps += 1
        assert steps < 10
    assert seen == ["wanted", "too"]
    assert steps >= 3
    with django_assert_num_queries(1):
        assert reader.pull().read_to == reader.place


def test_it_never_passes_a_transaction_that_is_still_open(threads: Any) -> None:
    project, other = factories.make_project(), factories.make_project()
    reader = subscribe(None, "note.added")
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        with transaction.atomic():
            note(project, message="began first")
            begun.set()
            assert go_on.wait(20)

    writing = threads.start(slow)
    assert begun.wait(20)
    note(other, message="committed first")
    early = reader.pull()
    reader.ack(early.read_to)
    go_on.set()
    writing.result()
    late = reader.pull()
    assert told(early) == []
    assert told(late) == ["began first", "committed first"]


def test_a_replay_goes_back_and_is_told() -> None:
    project = factories.make_project()
    reader = subscribe(project, "note.added")
    start = reader.cursor
    note(project, message="once")
    batch = reader.pull()
    reader.ack(batch.read_to)
    assert reader.pull() == []
    assert reader.replay(start, by=BY, reason="lost our database") is True
    assert told(reader.pull()) == ["once"]
    event = Event.objects.get(kind="subscription.changed")
    assert (event.before, event.after) == ({"cursor": str(batch.read_to)}, {"cursor": start})
    assert (event.reason, event.actor_name, event.project_id) == ("lost our database", BY.name, project.pk)
    assert reader.replay(start, by=BY) is False
    with pytest.raises(InvalidField, match="a replay goes back"):
        reader.replay(batch.read_to, by=BY)


def test_pausing_is_told_once_and_keeps_the_place() -> None:
    reader = subscribe(factories.make_project())
    place = reader.cursor
    assert reader.pause(by=BY, reason="too loud") is True
    assert reader.pause(by=BY) is False
    assert (reader.state, list(Subscription.objects.active())) == ("paused", [])
    assert reader.resume(by=BY) is True
    assert reader.resume(by=BY) is False
    assert (reader.state, reader.cursor) == ("active", place)
    changes = Event.objects.filter(kind="subscription.changed").order_by("stream_seq")
    assert [(one.before["state"], one.after["state"]) for one in changes] == [
        ("active", "paused"),
        ("paused", "active"),
    ]


def test_a_key_is_there_once_in_a_project_and_once_in_the_installation() -> None:
    project = factories.make_project()
    for where in (None, project, factories.make_project()):
        Subscription.objects.add(by=BY, key="all", project=where, patterns=["*"])
    for where in (None, project):
        with pytest.raises(Refused) as refusal:
            Subscription.objects.add(by=BY, key="all", project=where, patterns=["*"])
        assert refusal.value.code == "duplicate_key"


def test_what_selects_nothing_is_refused() -> None:
    for fields, field in (
        ({"patterns": []}, "patterns"),
        ({"patterns": ["nothing.of.this"]}, "patterns"),
        ({"patterns": ["run.%"]}, "patterns"),
        ({"patterns": "run.*"}, "patterns"),
        ({"patterns": ["*"], "channels": ["radio"]}, "channels"),
        ({"patterns": ["*"], "min_severity": "loud"}, "min_severity"),
        ({"patterns": ["*"], "key": "No Key"}, "key"),
    ):
        with pytest.raises(InvalidField) as refusal:
            Subscription.objects.add(by=BY, **{"key": "one", **fields})
        assert refusal.value.parts["field"] == field
    assert not Subscription.objects.exists()


# -- over HTTP ---------------------------------------------------------------------------------------------------


def test_a_program_pulls_acknowledges_and_replays_over_http() -> None:
    project = factories.make_project()
    admin = Api(factories.make_key("admin", project=project).text)
    made = admin.post("/subscriptions/", {"key": "mine", "project": project.key, "patterns": ["note.*"]})
    assert made.status_code == 201, made.content
    row = made.json()
    assert (row["state"], row["channels"], row["min_severity"]) == ("active", [], "debug")
    for number in range(3):
        note(project, message=str(number))
    reader = Api(factories.make_key("operator", project=project).text)
    here = f"/subscriptions/{row['id']}"

    answer = reader.get(f"{here}/pull/", limit=2).json()
    assert [event["message"] for event in answer["results"]] == ["0", "1"]
    assert reader.post(f"{here}/ack/", {"cursor": answer["read_to"]}).json()["cursor"] == answer["read_to"]
    assert [event["message"] for event in reader.get(f"{here}/pull/").json()["results"]] == ["2"]
    assert refused(reader.post(f"{here}/replay/", {"cursor": row["cursor"]})) == (403, "permission_denied")
    assert admin.post(f"{here}/replay/", {"cursor": row["cursor"]}).status_code == 200
    assert len(reader.get(f"{here}/pull/").json()["results"]) == 3

    edited = admin.patch(f"{here}/", {"patterns": ["run.*"]}, version=admin.get(f"{here}/").json()["version"])
    assert (edited.status_code, edited.json()["patterns"]) == (200, ["run.*"])
    assert admin.post(f"{here}/pause/", {"reason": "x"}).json()["state"] == "paused"
    assert admin.post(f"{here}/resume/").json()["state"] == "active"
    assert admin.delete(f"{here}/").status_code == 204


def test_wrong_input_is_answered_with_a_sentence() -> None:
    project = factories.make_project()
    admin = Api(factories.make_key("admin", project=project).text)
    row = subscribe(project)
    here = f"/subscriptions/{row.pk}"
    body = {"key": "one", "project": project.key, "patterns": ["*"]}

    assert refused(admin.post("/subscriptions/", {**body, "patterns": ["no.such"]})) == (422, "invalid_field")
    assert refused(admin.post("/subscriptions/", {**body, "cursor": "0-0-0"})) == (400, "unknown_field")
    assert refused(admin.post("/subscriptions/", {**body, "key": row.key})) == (409, "duplicate_key")
    assert refused(admin.post("/subscriptions/", {"key": "all", "patterns": ["*"]})) == (403, "permission_denied")
    assert refused(admin.post(f"{here}/ack/", {"cursor": "1-2"})) == (400, "invalid_cursor")
    assert refused(admin.post(f"{here}/ack/", {"cursor": "9-9-9"})) == (422, "invalid_cursor")
    assert refused(admin.get(f"{here}/pull/", limit=0)) == (400, "invalid_field")
    assert refused(admin.get(f"{here}/pull/", colour="red"))[0] == 400
