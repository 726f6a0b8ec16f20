"""What was, at any time, from events alone: every told column of every object, through a whole life of the house."""

import random
import threading
from bisect import bisect_right
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import connection, models, transaction

from costs.models import CostRecord
from ledger.models import MergeQueue
from pipeline import events, telling
from pipeline.clock import db_now
from pipeline.events import Cursor, Event, EventStream
from pipeline.fold import Telling, fold, replay, tellings, until
from pipeline.kinds import KINDS
from pipeline.models import Hold, Phase, Project, StepAttempt, Workstream
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import Told
from tests import factories
from tests.factories import BY
from tests.flows.house import Deaths, Died, House, long_ago, piece
from workers import claims, heartbeats
from workers.models import Lease, Worker

TIMES = 1000
TOLD = [model for model in apps.get_models() if issubclass(model, Told)]


def columns_of(row: Told) -> dict[str, Any]:
    """What a fold should answer for the row as it is in hand."""
    names = ["id", *(field.attname for field in row.told_fields()), *row.COUNTED]
    return {name: getattr(row, name) for name in names}


def differences(found: dict[str, Any] | None, row: Told | None) -> list[tuple[str, Any, Any]]:
    """(column, what the events tell, what the row held) wherever the two are not the same."""
    if found is None or row is None:
        return [] if found is None and row is None else [("the row itself", found, row)]
    held = columns_of(row)
    return [
        (name, found.get(name), held.get(name))
        for name in sorted({*found, *held})
        if name not in found or name not in held or found[name] != held[name]
    ]


def untrue_now() -> list[tuple[str, str, list[tuple[str, Any, Any]]]]:
    """Every object whose events, folded to the present, do not give its row."""
    now = db_now()
    told = [(model.noun(), row.pk, differences(fold(row, now), row)) for model in TOLD for row in model.objects.all()]
    return [one for one in told if one[2]]


# -- a whole life --------------------------------------------------------------------------------------------------


class Recorder:
    """Keeps every version of every told row, with the transaction that wrote it: what triggers saw, not verbs said."""

    def __init__(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("""
                CREATE TABLE told_version (
                    number bigserial, tbl text, id uuid, xid xid8, at timestamptz, doc jsonb
                );
                CREATE FUNCTION keep_version() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                    INSERT INTO told_version (tbl, id, xid, at, doc) VALUES (TG_TABLE_NAME,
                        CASE WHEN TG_OP = 'DELETE' THEN OLD.id ELSE NEW.id END, pg_current_xact_id(), clock_timestamp(),
                        CASE WHEN TG_OP = 'DELETE' THEN NULL ELSE to_jsonb(NEW) END);
                    RETURN NULL;
                END $$;
            """)
            for model in TOLD:
                cursor.execute(
                    f"CREATE TRIGGER keep_version AFTER INSERT OR UPDATE OR DELETE ON {model._meta.db_table} "
                    "FOR EACH ROW EXECUTE FUNCTION keep_version()"
                )

    def close(self) -> None:
        """Take the triggers and the table away again."""
        with connection.cursor() as cursor:
            cursor.execute("DROP FUNCTION keep_version CASCADE; DROP TABLE told_version")

    def spans(self) -> list[tuple[datetime, datetime]]:
        """When each transaction that wrote or told something did so: its first and last time, in order."""
        with connection.cursor() as cursor:
            cursor.execute("""
                SELECT min(at), max(at) FROM (
                    SELECT xid, at FROM told_version UNION ALL SELECT xid, created_at FROM pipeline_event
                ) seen GROUP BY xid ORDER BY 1
            """)
            return cursor.fetchall()

    def versions(self, model: type[Told]) -> dict[str, tuple[list[datetime], list[Told | None]]]:
        """{id: (when each version came to be seen, the versions)}; None stands for a row that was deleted."""
        table = model._meta.db_table
        rows = model.objects.raw(f"""
            SELECT (jsonb_populate_record(NULL::{table}, COALESCE(v.doc, jsonb_build_object('id', v.id)))).*,
                v.doc IS NULL AS was_deleted, e.at AS at_last
            FROM told_version v JOIN (
                SELECT xid, max(at) AS at FROM (
                    SELECT xid, at FROM told_version UNION ALL SELECT xid, created_at FROM pipeline_event
                ) seen GROUP BY xid
            ) e USING (xid) WHERE v.tbl = '{table}' ORDER BY v.number
        """)
        found: dict[str, tuple[list[datetime], list[Told | None]]] = {}
        for row in rows:
            times, kept = found.setdefault(row.pk, ([], []))
            times.append(row.at_last)
            kept.append(None if row.was_deleted else row)
        return found


@pytest.fixture
def recorder(transactional_db: None) -> Iterator[Recorder]:
    """Keeps every version of this test's rows."""
    kept = Recorder()
    yield kept
    kept.close()


def live(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A life in which every told noun is born, changed and, where that can be, removed, by every verb that writes."""
    house = House(folder / "first", [piece("a"), piece("b", depends_on=["a"]), piece("c", depends_on=["b"])])
    _definitions(house.project)
    _a_repair_and_a_landing_that_dies(house, monkeypatch)
    _people_in_the_way(house)
    house.work({"b.py": "b = 1\n"})
    _a_lost_worker(house)
    house.work({"c.py": "c = 1\n"})
    assert house.run.state == "succeeded"
    for record in CostRecord.objects.order_by("pk")[:1]:
        record.void("counted twice", by=BY)
    _a_run_that_is_called_off(folder)
    _what_ends_badly(folder)


def _definitions(project: Project) -> None:
    key = factories.make_key(project=project)
    key.row.edit(by=BY, name="renamed")
    key.row.revoke(by=BY, reason="leaked")
    factories.make_membership(project=project).edit(by=BY, role="admin")
    factories.make_membership(project=project).remove(by=BY)
    factories.make_policy(project=project).edit(by=BY, constraints={"max_files_changed": 50})
    factories.make_price(uncached_input="1.25").edit(by=BY, per_request="0.5")
    factories.make_tool().edit(by=BY, enabled=False, order=5)
    errors = factories.make_phase(project)
    workstream = factories.make_workstream(errors)
    workstream.edit(by=BY, objective="Another one")
    gate = factories.make_gate(project, required=False, workstream=workstream)
    gate.edit(by=BY, command=["false"], evidence={"coverage": "c.xml"}, criteria={"min_coverage": 72.5})
    project.edit(by=BY, error_phase=errors, name="Renamed")
    errors.remove(by=BY)
    project.refresh_from_db()
    assert project.error_phase_id is None


def _a_repair_and_a_landing_that_dies(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.gates["words"].edit(by=BY, timeout_seconds=60)
    house.work({"new.py": "BROKEN\n"})
    house.deliver({"a.py": "a = 1\n"})
    deaths = Deaths(monkeypatch)
    deaths.arm("land.before_ref")
    with pytest.raises(Died):
        house.drain()
    house.drain()
    assert house.task("a").state == "completed"


def _people_in_the_way(house: House) -> None:
    house.human_commits("human.txt", "by hand\n")
    house.queue.pause(by=BY, reason="wait")
    house.queue.resume(by=BY)
    hold = Hold.objects.place("run", house.run.pk, reason="look", by=BY, project=house.project, question={"n": 0.1})
    hold.release(by=BY, answer={"share": 0.25, "$float": "no number"})
    worker = factories.make_worker(metadata={"load": 1.5}, config={"timeout_seconds": 60})
    worker.pause(by=BY)
    worker.resume(by=BY)
    worker.request_shutdown(by=BY, mode="drain")
    worker.shutdown(by=BY, confirmed=True)


def _a_lost_worker(house: House) -> None:
    lost = factories.make_worker()
    lease = Lease.objects.get(pk=house.claim(lost)["lease"]["id"])
    heartbeats.heartbeat(lost.pk, api_key_id=None, leases=[{"id": lease.pk, "generation": 1, "progress": True}])
    long_ago(lease, "expires_at")
    house.drain()


def _a_run_that_is_called_off(folder: Path) -> None:
    house = House(folder / "second", [piece("a"), piece("b", depends_on=["a"])])
    document = house.claim()
    lease = Lease.objects.get(pk=document["lease"]["id"])
    house.worker.pause(by=BY)
    house.run.cancel(by=BY, reason="not wanted")
    house.drain()
    quoted = [{"id": lease.pk, "generation": 1, "stopping": True}]
    heartbeats.heartbeat(house.worker.pk, api_key_id=None, leases=quoted)
    heartbeats.heartbeat(house.worker.pk, api_key_id=None, leases=quoted)
    claims.fail(lease, generation=1, outcome="cancelled", by=claims.actor(house.worker, 1), duration_seconds="1.5")
    house.drain()
    assert house.run.state == "canceled"
    house.worker.resume(by=BY)


def _what_ends_badly(folder: Path) -> None:
    house = House(
        folder / "third",
        [piece(key, conflict_group="g", execution={"retry": {"mode": "exponential"}}) for key in "abcd"],
        error_handling={"strategy": "continue"},
    )
    step = StepAttempt.objects.begin(house.run, by=BY, start=False)
    step.start(by=BY)
    step.complete("failed", by=BY, metadata={"ratio": 0.5})
    patch = house.work({"secret/key.txt": "hush\n"})
    patch.refresh_from_db()
    assert patch.state == "apply_failed"
    patch.note_validation(
        {
            "format_ok": True,
            "scope_ok": False,
            "constraints_ok": True,
            "validation_errors": [{"code": "files_scope_violation", "message": "still"}],
            "findings": [],
            "policy_snapshot": {},
        },
        by=BY,
    )
    patch.quarantine("look at it", by=BY)
    patch.release(by=BY, reason="looked")
    patch.drop("no use", by=BY)
    house.drain()
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    claims.fail(
        lease,
        generation=lease.generation,
        outcome="task_failed",
        by=BY,
        error="boom",
        usage=[{"resource_type": "api_call", "model": "nobody-knows", "tokens_output": 1000}],
    )
    task = lease.task
    task.refresh_from_db()
    if task.state == "retrying":
        task.retry_now(by=BY, reason="now")
    house.drain()
    lease = Lease.objects.get(pk=house.claim()["lease"]["id"])
    claims.fail(lease, generation=lease.generation, outcome="needs_human", by=BY, error="which?")
    Hold.objects.active().get(scope_kind="task").release(by=BY, answer="this one")
    run = factories.make_gate_run(house.gates["words"])
    run.skip("not today", by=BY)
    run.waive("it is fine", by=BY, expires_at=db_now() + timedelta(days=1))
    house.run.quarantine(by=BY, reason="enough")
    house.drain()


@pytest.mark.usefixtures("nudges")
def test_at_a_thousand_times_of_a_whole_life_every_object_is_what_its_row_was(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(tmp_path, monkeypatch)
    lives = [(model, pk, *kept) for model in TOLD for pk, kept in recorder.versions(model).items()]
    told = {pk: tellings(model.noun(), pk) for model, pk, _times, _rows in lives}
    seen: dict[tuple[str, int, int], list[tuple[str, Any, Any]]] = {}
    chance = random.Random(20261122)
    untrue: dict[tuple[str, str], Any] = {}
    for at in moments(recorder, chance):
        asked = chance.choice(lives)[1]
        for model, pk, times, rows in lives:
            place = bisect_right(times, at)
            row = rows[place - 1] if place else None
            key = (pk, place, len(until(told[pk], at)))
            if pk == asked or key not in seen:
                seen[key] = differences(fold((model.noun(), pk), at), row)
            for name, told_value, held in seen[key]:
                untrue.setdefault((model.noun(), name), (pk, at, told_value, held))
    assert untrue == {}
    assert untrue_now() == []
    assert {model.noun() for model, *_rest in lives} >= {
        "run", "task", "step", "worker", "lease", "patch", "merge_queue", "queue_item", "gate_run", "hold", "project",
        "phase", "workstream", "tool", "policy", "gate", "price", "membership", "api_key", "cost_record",
    }  # fmt: skip
    assert len([rows for _model, _pk, _times, rows in lives if rows[-1] is None]) >= 4  # removed ones are None again
    assert len(seen) > 2 * len(lives)  # the times fell between the changes, not only behind them


def moments(recorder: Recorder, chance: random.Random) -> list[datetime]:
    """Random times in the gaps between transactions, where it is certain what everybody could see."""
    spans = recorder.spans()
    begins = [begin for begin, _end in spans]
    first, last = begins[0] - timedelta(seconds=1), spans[-1][1] + timedelta(seconds=1)
    found: list[datetime] = []
    while len(found) < TIMES:
        at = first + (last - first) * chance.random()
        place = bisect_right(begins, at)
        if not any(begin <= at <= end for begin, end in spans[max(0, place - 8) : place]):
            found.append(at)
    return found


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("nudges")
def test_a_verb_that_forgets_to_tell_a_column_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(queue: MergeQueue, *, by: events.Actor, reason: str = "", **columns: Any) -> bool:
        return bool(MergeQueue.objects.filter(pk=queue.pk).update(**columns))

    monkeypatch.setattr(MergeQueue, "note", forgetful)
    house = House(tmp_path, [piece("a")])
    house.work({"a.py": "a = 1\n"})
    assert house.run.state == "succeeded"
    assert untrue_now() == [
        ("merge_queue", house.queue.pk, [("head_commit", house.first_commit, house.head)]),
    ]


# -- what is told ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", TOLD, ids=lambda model: model.noun())
def test_every_column_is_told_or_named_as_untold(model: type[Told]) -> None:
    columns = {field.attname for field in model._meta.concrete_fields} - {model._meta.pk.attname}
    told = {field.attname for field in model.told_fields()}
    assert told | model.UNTOLD | set(model.COUNTED) == columns
    assert not told & (model.UNTOLD | set(model.COUNTED))
    assert not [name for name in told if any(word in name for word in ("secret", "password", "seed"))]


@pytest.mark.parametrize("model", [m for m in TOLD if m.COUNTED], ids=lambda model: model.noun())
def test_what_is_counted_is_counted_from_kinds_that_exist(model: type[Told]) -> None:
    assert {kind for counted in model.COUNTED.values() for kind in counted.kinds} <= set(KINDS)
    assert f"{model.noun()}_id" in events.CORRELATION


@pytest.mark.django_db
def test_a_birth_tells_what_is_not_empty_and_no_secret() -> None:
    row, text = factories.make_key()
    worker = factories.make_worker(config={"timeout_seconds": 30})
    (birth,) = Event.objects.about(worker)
    assert birth.before == {}
    assert birth.after == {
        "state": "idle",
        "told_health": "healthy",
        "name": worker.name,
        "worker_type": "executor",
        "config": {"timeout_seconds": 30},
        "created_at": events.plain(worker.created_at),
        "started_at": events.plain(worker.started_at),
    }
    (birth,) = Event.objects.about(row)
    assert text.split("_", 2)[2] not in birth.canonical
    assert row.secret_hash not in birth.canonical


@pytest.mark.django_db
def test_long_texts_stay_out_of_the_log() -> None:
    step = factories.make_step(start=True)
    step.end("task_failed", by=BY, reason="no", output_tail="words " * 100, error_log="more words")
    assert "words" not in Event.objects.about(step).last().canonical
    assert fold(step, db_now())["state_reason"] == "no"


@pytest.mark.django_db
def test_the_database_is_asked_nothing_more_for_a_birth(django_assert_num_queries: Any) -> None:
    worker = Worker(worker_type="executor", name="w")
    worker.save(force_insert=True)
    with django_assert_num_queries(0):
        assert worker.birth()["created_at"] == worker.created_at
    worker.born(by=BY, kind="worker.started")


@pytest.mark.django_db(transaction=True)
def test_what_goes_with_a_definition_is_told_too_and_nothing_when_it_is_refused() -> None:
    phase = factories.make_phase()
    workstream = factories.make_workstream(phase)
    before = db_now()
    phase.remove(by=BY)
    assert Event.objects.about(workstream).last().kind == "workstream.removed"
    assert fold(("workstream", workstream.pk), db_now()) is None
    assert fold(("workstream", workstream.pk), before)["objective"] == workstream.objective

    used = factories.make_run().phase
    spare = factories.make_workstream(used)
    with pytest.raises(Refused, match="in use"):
        used.remove(by=BY)
    assert Workstream.objects.filter(pk=spare.pk).exists()
    assert not Event.objects.filter(kind="workstream.removed", subject_id=spare.pk).exists()


# -- the fold --------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_before_its_birth_and_after_its_removal_there_is_no_row() -> None:
    start = db_now()
    phase = factories.make_phase(name="Build")
    then = db_now()
    phase.edit(by=BY, name="Ship")
    now = db_now()
    phase.remove(by=BY)
    assert [found and found["name"] for found in (fold(("phase", phase.pk), at) for at in (start, then, now))] == [
        None,
        "Build",
        "Ship",
    ]
    assert fold(("phase", phase.pk), db_now()) is None
    assert fold(("phase", factories.make_project().pk), now) is None


@pytest.mark.django_db
def test_values_come_back_as_the_columns_hold_them() -> None:
    project = factories.make_project()
    cost = factories.make_cost(amount="1.5", project=project)
    found = fold(cost, db_now())
    assert (found["amount"], found["project_id"], found["recorded_at"]) == (
        Decimal("1.5"),
        project.pk,
        cost.recorded_at,
    )
    assert found["id"] == cost.pk
    assert found == columns_of(CostRecord.objects.get(pk=cost.pk))
    assert not set(found) & CostRecord.UNTOLD


@pytest.mark.django_db(transaction=True)
def test_at_a_cursor_the_row_is_what_a_reader_has_seen() -> None:
    phase = factories.make_phase(name="one")
    for name in ("two", "three"):
        phase.edit(by=BY, name=name)
    cursors = [event.cursor for event in Event.objects.about(phase)]
    assert [fold(phase, cursor)["name"] for cursor in cursors] == ["one", "two", "three"]
    assert fold(phase, events.START) is None
    step = factories.make_step()
    birth = Event.objects.about(step).get().cursor
    assert fold(step.run, birth)["count_steps"] == 1
    assert fold(step.run, Cursor(birth.epoch, birth.xid, birth.seq - 1))["count_steps"] == 0


@pytest.mark.django_db(transaction=True)
def test_a_transaction_counts_whole() -> None:
    phase = factories.make_phase(name="one")
    with transaction.atomic():
        phase.edit(by=BY, name="two")
        within = db_now()
        phase.edit(by=BY, name="three")
    assert fold(phase, within)["name"] == "one"
    assert fold(phase, db_now())["name"] == "three"


@pytest.mark.django_db(transaction=True)
def test_two_transactions_that_share_a_place_count_each_for_itself(threads: Any) -> None:
    """A writer that got its id first and came to the row last stands at the id of the one before it."""
    phase = factories.make_phase(name="one")
    begun, may_go_on = threading.Event(), threading.Event()

    def began_early() -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT pg_current_xact_id()")
            begun.set()
            may_go_on.wait(20)
            Phase.objects.get(pk=phase.pk).edit(by=BY, name="three")

    late = threads.start(began_early)
    assert begun.wait(20)
    phase.edit(by=BY, name="two")
    between = db_now()
    may_go_on.set()
    late.result()

    _birth, two, three = Event.objects.about(phase)
    assert two.xid == three.xid  # else this test shows nothing
    assert [fold(phase, at)["name"] for at in (between, db_now())] == ["two", "three"]
    assert [fold(phase, at.cursor)["name"] for at in (two, three)] == ["two", "three"]


@pytest.mark.django_db
def test_a_history_without_its_beginning_says_so() -> None:
    phase = factories.make_phase()
    EventStream.objects.filter(subject_id=phase.pk).update(first_seq=2)
    with pytest.raises(Refused) as refused:
        fold(phase, db_now())
    assert (refused.value.code, refused.value.status) == ("history_dropped", 410)


@pytest.mark.parametrize("noun", ["unicorn", "prompt", "routing_decision"])
def test_a_noun_without_a_told_history_is_refused_by_name(noun: str) -> None:
    with pytest.raises(InvalidField, match=noun):
        fold((noun, "0" * 26), datetime.now(UTC))


def event(kind: str, before: Any, after: Any, *, second: int = 0, xid: int = 0, number: int = 1) -> Telling:
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=second)
    return Telling(number, Cursor(1, xid or second, number), at, kind, before, after)


def test_a_first_event_that_is_no_birth_is_refused() -> None:
    for before, after in ((None, None), ({}, {}), ({"state": "idle"}, {"state": "busy"})):
        with pytest.raises(Refused) as refused:
            replay(Worker, [event("worker.assigned", before, after)])
        assert refused.value.code == "history_untold"
    assert replay(Worker, []) is None


def test_what_a_birth_does_not_say_is_empty_and_unknown_keys_are_passed_over() -> None:
    row = replay(
        Worker,
        [
            event("worker.started", {}, {"state": "idle", "name": "w", "shoe_size": 44, "current_task": None}),
            event("note.added", None, None),
            event("worker.assigned", {"state": "idle"}, {"state": "busy", "transport_seen_at": "2026-01-01T00:00:00Z"}),
        ],
    )
    assert set(row) == {field.attname for field in Worker.told_fields()}
    assert (row["state"], row["name"], row["config"], row["tools"], row["crashed_at"]) == ("busy", "w", {}, [], None)
    assert (row["tasks_completed"], row["stop_confirmed"], row["host"]) == (0, False, "")


def test_a_row_can_be_born_again_under_its_id() -> None:
    birth, end = event("phase.added", {}, {"name": "one"}), event("phase.removed", {"name": "one"}, {})
    assert replay(Phase, [birth, end]) is None
    assert replay(Phase, [birth, end, event("note.added", None, None)]) is None
    assert replay(Phase, [birth, end, event("phase.added", {}, {"name": "two"})])["name"] == "two"


def test_a_beginning_is_taken_even_where_times_do_not_follow_the_stream() -> None:
    # The second waited for the first's lock: its time was read before it waited.
    stream = [event("x", {}, {}, second=3, xid=10), event("x", {}, {}, second=2, xid=11), event("x", {}, {}, second=5)]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    lengths = [len(until(stream, start + timedelta(seconds=second))) for second in (1, 2, 3, 4, 5)]
    assert lengths == [0, 2, 2, 2, 3]


@pytest.mark.parametrize(
    ("field", "value", "told"),
    [
        (models.JSONField(), {"a": [0.1, 1, None, True], "b": {"c": 2.5}}, None),
        (models.JSONField(), {"$float": "0.5"}, {"$float": {"$float": "0.5"}}),
        (models.JSONField(), {"$float": 0.5}, {"$float": {"$float": {"$float": "0.5"}}}),
        (models.JSONField(), 1e300, {"$float": "1e+300"}),
        (models.JSONField(), [], []),
        (models.DecimalField(max_digits=9, decimal_places=2), Decimal("1.25"), Decimal("1.25")),
        (models.DateTimeField(), datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC), None),
        (models.BooleanField(), False, False),
        (models.TextField(), "2026", "2026"),
        (models.IntegerField(null=True), None, None),
        (models.DurationField(), timedelta(days=2, microseconds=5), None),
    ],
)
def test_a_value_survives_being_told(field: "models.Field[Any, Any]", value: Any, told: Any) -> None:
    said = telling.written(field, value)
    if told is not None:
        assert said == told
    back = telling.read(field, events.plain(said))
    assert back == value
    assert type(back) is type(value)


def test_a_decimal_is_told_as_the_column_rounds_it() -> None:
    field = models.DecimalField(max_digits=9, decimal_places=2)
    assert [str(telling.written(field, value)) for value in (1, "0.125", Decimal("-0.125"), 0.1)] == [
        "1.00",
        "0.13",
        "-0.13",
        "0.10",
    ]
