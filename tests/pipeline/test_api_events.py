"""The log over HTTP: programs outside add to it, and readers follow it in the order of commits."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pgtrigger
import pytest
from django.db import connection, transaction
from django.http import QueryDict
from django.test import Client
from django.utils import timezone

from pipeline import events
from pipeline.api.events import EventFilters
from pipeline.api.ingest import read_kind
from pipeline.ids import new_id
from pipeline.kinds import KINDS
from pipeline.models import Event, EventEpoch, FailedReaction, Run, Subscription
from tests import factories
from tests.conftest import Threads

pytestmark = pytest.mark.django_db
EVENTS = "/api/v1/events/"


def client_of(role: str, project: Any = None) -> Client:
    """A client that comes with a new key."""
    return Client(headers={"authorization": f"Bearer {factories.make_key(role, project=project, name='ci').text}"})


def send(client: Client, body: Any) -> Any:
    """The answer to POST /events/."""
    return client.post(EVENTS, json.dumps(body), content_type="application/json")


def test_what_happened_outside_is_recorded_by_an_integration_and_moves_nothing() -> None:
    run = factories.make_run()
    client = client_of("operator", run.project)

    answer = send(client, {"kind": "run_started", "run": run.pk, "id": "their-7", "message": "off it goes"})

    assert answer.status_code == 201
    [row] = answer.json()["events"]
    event = Event.objects.get(pk=row["id"])
    assert (event.kind, event.subject_id, event.run_id) == ("run.started", run.pk, run.pk)
    assert (event.actor_kind, event.actor_name) == ("integration", "ci")
    assert (event.before, event.after) == (None, None)
    assert event.data == {"sender_id": "their-7"}
    assert Run.objects.get(pk=run.pk).state == "pending"


def test_a_batch_is_all_or_none_and_keeps_its_order() -> None:
    run, other = factories.make_run(), factories.make_run()
    client = client_of("admin")
    before = Event.objects.count()

    bad = send(client, [{"kind": "a.b", "run": run.pk}, {"kind": "c.d", "run": new_id()}])
    assert (bad.status_code, Event.objects.count()) == (404, before)

    sent = [{"kind": "noise", "run": (other, run)[number % 2].pk, "message": str(number)} for number in range(6)]
    rows = send(client, sent).json()["events"]

    assert [row["message"] for row in rows] == list("012345")
    assert {row["kind"] for row in rows} == {"note.added"}
    assert rows[0]["data"] == {"original_kind": "noise"}


@pytest.mark.parametrize("body", [[], [{"kind": "x"}] * 1001, {}, {"kind": "x"}, {"kind": "x", "state": "y"}])
def test_what_is_no_event_is_refused(body: Any) -> None:
    before = Event.objects.count()
    client = client_of("admin")

    assert send(client, body).status_code in (400, 422)
    assert Event.objects.exclude(kind="api_key.added").count() == before


def test_what_it_names_must_belong_together() -> None:
    run, other = factories.make_run(), factories.make_run()

    answer = send(client_of("admin"), {"kind": "x", "run": run.pk, "project": other.project.key})

    assert (answer.status_code, answer.json()["errors"][0]["field"]) == (422, "project")


def test_a_stranger_neither_adds_nor_reads() -> None:
    run = factories.make_run()
    stranger = client_of("operator", factories.make_project())

    assert send(stranger, {"kind": "x", "run": run.pk}).status_code == 404
    assert stranger.get(f"{EVENTS}?run={run.pk}").json()["results"] == []
    assert stranger.get(f"{EVENTS}?after=0-0-0&run={run.pk}").json()["results"] == []
    assert send(client_of("viewer", run.project), {"kind": "x", "run": run.pk}).status_code == 403


@pytest.mark.parametrize(
    ("name", "status", "kind"),
    [
        ("task_started", "", "task.started"),
        ("merge_queue_paused", "", "merge_queue.paused"),
        ("worker_spawned", "", "worker.started"),
        ("run_completed", "succeeded", "run.succeeded"),
        ("run_completed", "error", "run.failed"),
        ("step_completed", "completed", "step.succeeded"),
        ("run_completed", "", "note.added"),
        ("circuit_half_open", "", "breaker.half_opened"),
        ("patch.created", "", "patch.created"),
        ("whatever", "", "note.added"),
    ],
)
def test_names_from_outside_are_read_as_kinds(name: str, status: str, kind: str) -> None:
    read = read_kind(name, status)

    assert read.kind == kind
    assert (read.original_kind == name) == (kind == "note.added")


def test_every_kind_is_read_under_both_its_names() -> None:
    for kind in KINDS:
        assert read_kind(kind).kind == kind
        assert read_kind(kind.replace(".", "_")).kind == kind


@pytest.mark.parametrize(
    ("query", "kinds"),
    [
        ("kind=run.*", {"run.created", "run.started"}),
        ("kind=run.created", {"run.created"}),
        ("kind=run.created,task.q*", {"run.created", "task.queued"}),
        ("kind=*.created", {"run.created", "task.created"}),
        ("kind=run.cre.ted", set()),
        ("kind=run(", set()),
        ("severity=critical", set()),
        ("channel=worker_status", set()),
    ],
)
def test_filters_of_the_log(query: str, kinds: set[str]) -> None:
    run = factories.make_run(started=True)

    rows = client_of("viewer", run.project).get(f"{EVENTS}?run={run.pk}&{query}").json()["results"]

    assert {row["kind"] for row in rows} == kinds


@pytest.mark.parametrize("cursor", ["x", "1-2", "1-2-3-4", "-1-2-3", "a-b-c", "9" * 40 + "-1-1", "1--1", ""])
def test_a_cursor_that_is_none_is_400(cursor: str) -> None:
    answer = client_of("admin").get(EVENTS, {"after": cursor})

    assert answer.status_code == (200 if cursor == "" else 400)
    if cursor:
        assert answer.json()["code"] == "invalid_cursor"


@pytest.mark.django_db(transaction=True)
def test_a_reader_follows_the_log_in_the_order_of_commits_and_misses_nothing(threads: Threads) -> None:
    run = factories.make_run(started=True)
    client = client_of("viewer", run.project)
    seen: list[str] = []
    cursor = "0-0-0"
    while True:
        page = client.get(f"{EVENTS}?after={cursor}&limit=2&run={run.pk}").json()
        if not page["results"]:
            break
        seen += [row["id"] for row in page["results"]]
        cursor = page["next"]

    assert sorted(seen) == sorted(Event.objects.filter(run_id=run.pk).values_list("pk", flat=True))
    assert len(seen) == len(set(seen))
    run.cancel(by=factories.BY)
    fresh = client.get(f"/api/v1/runs/{run.pk}/events/?after={cursor}").json()
    assert "run.canceled" in [row["kind"] for row in fresh["results"]]


@pytest.mark.django_db(transaction=True)
def test_a_reader_who_waits_for_something_rare_reads_the_log_once(threads: Threads, nudges: Any) -> None:
    run = factories.make_run(started=True)
    client = client_of("viewer", run.project)
    written, go_on = threading.Event(), threading.Event()

    def slowly() -> None:
        with transaction.atomic():
            events.record("note.added", run, by=factories.BY, message="slow")
            written.set()
            assert go_on.wait(20)

    def read(cursor: str) -> tuple[list[str], str]:
        page = client.get(EVENTS, {"after": cursor, "kind": "note.*"}).json()
        return [row["message"] for row in page["results"]], page["next"]

    before = events.horizon()
    found, cursor = read("0-0-0")
    assert (found, cursor) == ([], str(before))
    slow = threads.start(slowly)
    assert written.wait(20)
    factories.make_run()  # what commits beside it
    assert read(cursor) == ([], str(before))
    assert read(str(before)) == ([], str(before))
    go_on.set()
    slow.result()
    found, further = read(cursor)
    assert (found, further) == (["slow"], str(events.horizon()))
    assert read(further) == ([], further)


@pytest.mark.django_db(transaction=True)
def test_the_end_of_a_page_in_an_older_epoch_is_not_the_end_of_the_log(nudges: Any) -> None:
    run = factories.make_run()
    client = client_of("viewer", run.project)
    subscription = Subscription.objects.add(
        by=factories.BY, project=run.project, key="notes", patterns=["note.*"], cursor="0-0-0"
    )
    events.record("note.added", run, by=factories.BY, message="first")
    number = EventEpoch.objects.order_by("-number").values_list("number", flat=True)[0] + 1
    EventEpoch.objects.create(number=number, reason="restored")
    events.record("note.added", run, by=factories.BY, message="second")
    cursor, seen, pulled = "0-0-0", [], []
    for _call in range(3):
        page = client.get(EVENTS, {"after": cursor, "kind": "note.*"}).json()
        seen += [row["message"] for row in page["results"]]
        cursor = page["next"]
        batch = subscription.pull()
        pulled += [event.message for event in batch]
        subscription.ack(batch.read_to)
    assert seen == pulled == ["first", "second"]
    assert cursor == subscription.cursor == str(events.horizon())


@pytest.mark.parametrize(
    "query", ["after=99-0-0", "min_severity=loud", "channel=none", "created_after=yesterday", "task=7"]
)
def test_a_filter_with_a_value_that_cannot_be_is_400(query: str) -> None:
    answer = client_of("admin").get(f"{EVENTS}?{query}")

    assert answer.status_code == 400
    assert len(answer.json()["detail"]) > 10


@pytest.mark.parametrize("cursor", ["1-9999999999999999999-0", "1-4611686018427387904-7"])
def test_a_cursor_that_this_log_never_gave_is_400_and_not_a_wait_for_ever(cursor: str) -> None:
    client = client_of("admin")
    for path in (f"{EVENTS}?after={cursor}", f"{EVENTS}stream/?after={cursor}"):
        answer = client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_cursor")


def test_a_long_list_of_kinds_is_taken_whole_or_refused() -> None:
    run = factories.make_run()
    client = client_of("viewer", run.project)
    others = sorted(kind for kind in KINDS if not kind.startswith("run."))[:49]
    rows = client.get(EVENTS, {"kind": ",".join([*others, "run.created"])}).json()["results"]
    assert "run.created" in {row["kind"] for row in rows}
    for kinds in (",".join(["run.created"] * 51), "x" * 65):
        answer = client.get(EVENTS, {"kind": kinds})
        assert (answer.status_code, answer.json()["field"]) == (400, "kind")


def test_nothing_follows_from_what_was_told_from_outside(nudges: Any) -> None:
    run = factories.make_run()
    told = [{"kind": kind, "run": run.pk} for kind in ("patch.validated", "patch.committed", "task.failed")]
    assert {row["kind"] for row in told} <= set(events.table())
    answer = send(client_of("operator", run.project), told)
    assert answer.status_code == 201
    ids = [row["id"] for row in answer.json()["events"]]
    assert not Event.objects.pending().filter(pk__in=ids).exists()
    events.drain()
    assert not FailedReaction.objects.exists()


def test_what_a_kind_must_tell_is_asked_of_outsiders_too() -> None:
    run = factories.make_run()
    client = client_of("operator", run.project)
    count = Event.objects.count()
    answer = send(client, [{"kind": "x", "run": run.pk}, {"kind": "alert.raised", "run": run.pk}])
    assert (answer.status_code, answer.json()["code"]) == (422, "missing_required_field")
    assert (answer.json()["field"], Event.objects.count()) == ("data.cause", count)
    assert send(client, {"kind": "alert.raised", "run": run.pk, "data": {"cause": "disk"}}).status_code == 201


def test_many_stars_cost_no_more_than_one() -> None:
    run = factories.make_run()
    client = client_of("viewer", run.project)

    rows = client.get(f"{EVENTS}?kind={'*' * 60}z,run.{'*' * 400}").json()["results"]

    assert {row["kind"] for row in rows} == {"run.created"}


def test_behind_a_cursor_fields_are_trimmed_and_no_other_order_is_promised() -> None:
    client = client_of("viewer", factories.make_run().project)
    rows = client.get(f"{EVENTS}?after=0-0-0&fields=kind,cursor").json()["results"]
    assert all(set(row) == {"kind", "cursor"} for row in rows)
    wrong = {"fields=kind,zzz": "unknown_field", "cursor=x": "unknown_filter", "ordering=kind": "unknown_filter"}
    for query, code in wrong.items():
        answer = client.get(f"{EVENTS}?after=0-0-0&{query}")
        assert (answer.status_code, answer.json()["code"]) == (400, code)


FILTERED = {
    "kind=run.cre*": "kind",
    "kind=run.created,task.queued": "kind",
    "channel=error_events": "channel",
    "severity=critical": "severity",
    "min_severity=error": "severity",
    "project={id}": "project_id",
    "workstream={id}": "workstream_id",
    "run={id}": "run_id",
    "task={id}": "task_id",
    "step={id}": "step_id",
    "worker={id}": "worker_id",
    "patch={id}": "patch_id",
    "gate_run={id}": "gate_run_id",
    "actor_kind=worker": "actor_kind",
    "actor_id={id}": "actor_id",
    "actor_name=rare": "actor_name",
    "subject_type=rare": "subject_type",
    "subject_id={id}": "subject_id",
    "request_id=rare": "request_id",
    "created_after=2100-01-01T00:00:00Z": "created_at",
    "created_before=2000-01-01T00:00:00Z": "created_at",
    "project={id}&kind=run.*": "project_id",
}
"""Each filter of the log with a value that few events have, and the column whose index finds them."""


def make_many_events(rare: str) -> None:
    """20,000 events of every day, and 20 in which everything is rare, of chains that nobody checks."""

    def one(number: int) -> Event:
        often = number < 20_000
        pk = new_id() if often else rare
        words = dict.fromkeys(("actor_name", "request_id", "subject_type"), "often" if often else "rare")
        ties = ("project", "workstream", "run", "task", "step", "worker", "patch", "gate_run", "subject")
        kind, channel, severity, actor = (
            ("note.added", "task_events", "info", "system")
            if often
            else ("run.created", "error_events", "critical", "worker")
        )
        return Event(
            kind=kind, channel=channel, severity=severity, actor_kind=actor, actor_id=pk, canonical="",
            handled_at=timezone.now(), **words, **{f"{tie}_id": pk for tie in ties},
        )  # fmt: skip

    with pgtrigger.ignore("pipeline.Event:link_up"):
        Event.objects.bulk_create([one(number) for number in range(20_020)], batch_size=2000)
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE pipeline_event")


def test_every_filter_finds_few_of_many_by_its_index_in_both_orders() -> None:
    rare = new_id()
    make_many_events(rare)
    wrong = []
    for query, column in FILTERED.items():
        filterset = EventFilters(QueryDict(query.format(id=rare)), queryset=Event.objects.all())
        assert filterset.is_valid(), filterset.errors
        rows: Any = filterset.qs
        for order, asked in (("newest first", rows.order_by("-id")[:51]), ("commits", rows.after(events.START, 100))):
            plan = json.loads(asked.explain(format="json"))[0]["Plan"]
            found = [node for node in nodes(plan) if node.get("Plan Rows", 0) or "Index Cond" in node]
            whole = [node for node in found if node["Node Type"] == "Seq Scan" and node["Total Cost"] > 100]
            used = [node for node in found if column in node.get("Index Cond", "")]
            if whole or not used:
                wrong.append(f"{query}, {order}: {json.dumps(plan)[:600]}")

    assert not wrong, "\n".join(wrong)


def nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The plan's nodes, from the top."""
    yield plan
    for inner in plan.get("Plans", []):
        yield from nodes(inner)
