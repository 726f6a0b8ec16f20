"""Dropping whole months: what goes, what keeps it, what stays as a tombstone, and that the log verifies afterwards."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection, transaction

from costs.models import CostRecord
from ledger import audit, retention, sealing
from ledger.models import Seal
from pipeline import events, invariants
from pipeline.clock import db_now
from pipeline.ids import from_uuid, new_id, to_uuid
from pipeline.models import Event, EventStream, Project
from pipeline.refusals import InvalidField
from tests import factories
from tests.factories import BY

pytestmark = pytest.mark.django_db(transaction=True)

OPERATOR = events.Actor("user", "", "operator")


def month_ago(count: int) -> str:
    """The month `count` months before this one."""
    month = f"{db_now():%Y-%m}"
    for _ in range(count):
        month = retention._preceding(month)
    return month


def run(sql: str, *values: Any) -> None:
    """A statement past Django's models."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


def make_partition(month: str) -> None:
    """The partition of a month, as the migration's function made it when that month was near."""
    start = datetime.fromtimestamp(sealing.month_start(month) / 1000, UTC)
    end = datetime.fromtimestamp(sealing.month_start(sealing.following(month)) / 1000, UTC)
    name = f"pipeline_event_{month.replace('-', '')}"
    with connection.cursor() as cursor:
        cursor.execute("SELECT signalbox_lowest_ulid(%s)::text, signalbox_lowest_ulid(%s)::text", [start, end])
        low, high = cursor.fetchone()
        cursor.execute(f"CREATE TABLE {name} PARTITION OF pipeline_event FOR VALUES FROM ('{low}') TO ('{high}')")
        cursor.execute(
            f"CREATE TRIGGER never_truncated BEFORE TRUNCATE ON {name} "
            "FOR EACH STATEMENT EXECUTE FUNCTION signalbox_refuse_truncate()"
        )


At = Callable[[str, timedelta], None]


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> At:
    """Sets the month in which the ids of the next events are made; "" is the present."""

    def travel(month: str, into: timedelta = timedelta(days=3)) -> None:
        def made() -> str:
            milliseconds = sealing.month_start(month) + int(into.total_seconds() * 1000)
            fresh = to_uuid(new_id()).int & ((1 << 80) - 1)
            return from_uuid(type(to_uuid(new_id()))(int=(milliseconds << 80) | fresh))

        monkeypatch.setattr(events, "new_id", made if month else new_id)

    return travel


@pytest.fixture(autouse=True)
def house(settings: Any, tmp_path: Path) -> Iterator[None]:
    """Two old months with partitions of their own, and a clock of one month."""
    settings.SIGNALBOX_AUDIT_REPOSITORY = str(tmp_path / "audit.git")
    settings.SIGNALBOX_KEEP_EVENTS_MONTHS = 1
    months = [month_ago(3), month_ago(2), month_ago(1)]
    for month in months:
        make_partition(month)
    yield
    for month in months:
        run(f"DROP TABLE IF EXISTS pipeline_event_{month.replace('-', '')}")


def tell(subject: Project, message: str = "note") -> Event:
    """One event about `subject`."""
    return events.record("note.added", subject, by=BY, message=message)


@pytest.fixture
def projects(at: At) -> tuple[Project, Project]:
    """Three months of history of a project that goes on, and two of one that does not; all sealed."""
    at(month_ago(3))
    living, ended = factories.make_project(), factories.make_project()
    tell(living)
    at(month_ago(2))
    tell(living)
    tell(ended)
    at("")
    tell(living)
    tell(living)
    sealing.seal()
    return living, ended


def numbers(subject: Project) -> list[int]:
    """The numbers that are left of a stream."""
    return list(Event.objects.about(subject).values_list("stream_seq", flat=True))


def head(subject: Project) -> tuple[int, int]:
    """First and last number of a stream."""
    return EventStream.objects.values_list("first_seq", "seq").get(pk=subject.pk)


def holds() -> list[str]:
    """The invariants of history that do not hold."""
    wanted = {"INV-62", "INV-63", "INV-64", "INV-65"}
    return [str(result) for result in invariants.check_all() if result.number in wanted and not result.holds]


def test_a_seal_never_reaches_over_the_end_of_a_month(projects):
    assert list(Seal.objects.order_by("number").values_list("month", flat=True)) == [
        month_ago(3), month_ago(2), month_ago(0),
    ]  # fmt: skip


def test_a_month_goes_as_a_whole_and_leaves_its_seals_as_a_tombstone(projects):
    living, ended = projects
    before = month_ago(2)
    done = retention.drop(before, by=OPERATOR)

    assert (done.months, done.events, done.seals, done.streams) == ({month_ago(3): 3}, 3, 1, 2)
    assert month_ago(3) not in retention.partitions()
    assert (numbers(living), head(living)) == ([3, 4, 5], (3, 5))
    assert (numbers(ended), head(ended)) == ([2], (2, 2))
    gone, *kept = Seal.objects.order_by("number")
    assert gone.dropped_at is not None
    assert (gone.count, len(bytes(gone.leaves))) == (3, 96)
    assert {seal.dropped_at for seal in kept} == {None}
    tombstone = Event.objects.get(kind="seal.dropped")
    assert (tombstone.actor_name, tombstone.reason) == ("operator", "older than 1 months")
    assert tombstone.data["months"] == {month_ago(3): 3}
    assert (tombstone.data["to_cursor"], tombstone.data["root_hash"]) == (gone.to_cursor, gone.root_hash)


def test_after_the_drop_the_log_verifies_and_the_invariants_of_history_hold(projects):
    retention.drop(month_ago(1), by=OPERATOR)
    living, ended = projects
    assert (numbers(ended), head(ended)) == ([], (3, 2))
    sealing.seal()
    report = audit.verify()
    assert report.problems == []
    assert (report.dropped, report.first_month) == (2, month_ago(0))
    assert holds() == []
    tell(ended)
    tell(living)
    assert head(ended) == (3, 3)
    sealing.seal()
    assert audit.verify().problems == []
    assert holds() == []


def test_a_history_that_was_dropped_goes_on_where_it_ended(projects):
    _living, ended = projects
    last = Event.objects.about(ended).last()
    retention.drop(month_ago(1), by=OPERATOR)
    event = tell(ended)
    event.refresh_from_db()
    assert (event.stream_seq, event.prev_hash) == (last.stream_seq + 1, last.hash)


def test_the_bundle_verifies_after_a_drop(projects, tmp_path):
    from tests.ledger.test_audit import run_script

    retention.drop(month_ago(2), by=OPERATOR)
    sealing.seal()
    audit.verify(bundle=tmp_path / "bundle.gz")
    done = run_script(tmp_path / "bundle.gz")
    assert (done.stdout.split()[0], done.stderr) == ("ok", "")


def test_what_is_dropped_twice_is_gone_once_and_the_second_drop_goes_on_from_the_first(projects):
    retention.drop(month_ago(2), by=OPERATOR)
    assert retention.drop(month_ago(2), by=OPERATOR).months == {}
    sealing.seal()
    assert retention.drop(month_ago(1), by=OPERATOR).months == {month_ago(2): 2}
    sealing.seal()
    assert Event.objects.filter(kind="seal.dropped").count() == 2
    assert audit.verify().problems == []


@pytest.mark.parametrize("forged", ["dropped without a tombstone", "a row of a dropped month comes back"])
def test_a_drop_past_the_command_is_found(projects, forged):
    if forged == "dropped without a tombstone":
        with transaction.atomic():
            run("ALTER TABLE pipeline_event DISABLE TRIGGER USER")
            run("UPDATE ledger_seal SET dropped_at = now() WHERE number = 1")
            run("UPDATE pipeline_eventstream SET first_seq = first_seq + 1")
            run(f"DELETE FROM pipeline_event_{month_ago(3).replace('-', '')}")
            run("ALTER TABLE pipeline_event ENABLE TRIGGER USER")
    else:
        name = f"pipeline_event_{month_ago(3).replace('-', '')}"
        run(f"CREATE TABLE kept AS SELECT * FROM {name} LIMIT 1")
        retention.drop(month_ago(2), by=OPERATOR)
        with transaction.atomic():
            run("ALTER TABLE pipeline_event DISABLE TRIGGER USER")
            run("INSERT INTO pipeline_event SELECT * FROM kept")
            run("ALTER TABLE pipeline_event ENABLE TRIGGER USER")
            run("DROP TABLE kept")
    assert audit.verify().problems
    with transaction.atomic():
        run("ALTER TABLE pipeline_event DISABLE TRIGGER USER")
        run("DELETE FROM pipeline_event_default")
        run("ALTER TABLE pipeline_event ENABLE TRIGGER USER")


# -- what keeps a month --------------------------------------------------------------------------------------------


def refusal(before: str) -> str:
    """Why nothing before that month goes; nothing was changed."""
    count = Event.objects.count()
    with pytest.raises(retention.NotDroppable) as refused:
        retention.drop(before, by=OPERATOR)
    assert Event.objects.count() == count
    assert not Seal.objects.exclude(dropped_at=None).exists()
    return str(refused.value)


def test_events_are_kept_for_ever_unless_a_setting_says_otherwise(projects, settings):
    settings.SIGNALBOX_KEEP_EVENTS_MONTHS = 0
    assert "kept for ever" in refusal(month_ago(2))


def test_a_month_within_the_clock_stays(projects):
    assert f"those before {month_ago(1)} may go" in refusal(month_ago(0))


@pytest.mark.parametrize("before", ["", "2026", "2026-13", "2026-1", "last month", "2026-01; DROP TABLE x"])
def test_what_is_no_month_is_told_so(before):
    with pytest.raises(InvalidField, match="a month such as 2026-11"):
        retention.plan(before)


def test_a_month_with_an_event_that_is_not_handled_stays(projects):
    Event.objects.filter(pk=Event.objects.order_by("seq").first().pk).update(handled_at=None)
    assert "1 events of" in refusal(month_ago(2))


def test_a_month_that_is_not_wholly_sealed_stays(projects, at):
    at(month_ago(3))
    tell(projects[0])
    assert "3 of them are sealed" in refusal(month_ago(2))


def test_a_month_whose_seals_are_not_anchored_stays(at, monkeypatch):
    at(month_ago(3))
    factories.make_project()
    at("")
    monkeypatch.setattr(sealing, "anchor_rest", lambda: 0)
    sealing.seal()
    assert refusal(month_ago(2)) == "Seal 1 is not anchored yet"


def test_a_log_that_does_not_verify_loses_nothing(projects):
    with transaction.atomic():
        run("ALTER TABLE pipeline_event DISABLE TRIGGER USER")
        run("UPDATE pipeline_event SET message = 'x' WHERE message = 'note'")
        run("ALTER TABLE pipeline_event ENABLE TRIGGER USER")
    assert "does not verify" in refusal(month_ago(2))


def test_strays_in_the_default_partition_keep_their_month(projects, at):
    at("2020-02")
    stray = tell(projects[0])
    at("")
    tell(projects[0])
    sealing.seal()
    said = refusal(month_ago(2))
    assert "1 events before" in said
    assert stray.pk in said
    assert audit.verify().problems == []


def test_a_history_that_goes_back_over_the_end_of_a_month_keeps_it_until_both_go(projects, at):
    living, _ended = projects
    at(month_ago(2))
    tell(living)
    at(month_ago(1))
    tell(living)
    at(month_ago(2))
    tell(living)
    at("")
    tell(living)
    sealing.seal()
    assert "goes over the end of the last month and back" in refusal(month_ago(1))


def test_while_the_sealer_works_nothing_is_dropped(projects, threads):
    held, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with sealing.alone():
            held.set()
            may_end.wait(20)

    holder = threads.start(hold)
    assert held.wait(20)
    assert "The sealer is at work" in refusal(month_ago(2))
    may_end.set()
    holder.result()


def test_money_has_a_clock_of_its_own_and_is_not_touched(projects):
    cost = factories.make_cost(project=projects[0])
    sealing.seal()
    retention.drop(month_ago(1), by=OPERATOR)
    assert CostRecord.objects.get() == cost


# -- the command ---------------------------------------------------------------------------------------------------


def test_without_yes_the_command_only_says_what_would_go(projects):
    for more in ({}, {"dry_run": True}):
        out = StringIO()
        call_command("drop-history", before=month_ago(1), stdout=out, **more)
        assert f"{month_ago(3)}: 3 events" in out.getvalue()
        assert f"{month_ago(2)}: 2 events" in out.getvalue()
        assert "Nothing was dropped" in out.getvalue()
    assert Event.objects.filter(message="note").count() == 5


def test_with_yes_it_hands_out_drops_and_anchors_the_tombstone(projects, tmp_path):
    out = StringIO()
    file = tmp_path / "all.gz"
    call_command("drop-history", before=month_ago(1), yes=True, export=str(file), stdout=out)
    assert "Dropped: 5 events." in out.getvalue()
    assert file.exists()
    report = audit.verify()
    assert report.problems == []
    assert report.unsealed == 1
    assert Event.objects.get(kind="seal.dropped").cursor < Event.objects.filter(kind="seal.written").last().cursor


def test_the_command_refuses_in_one_sentence(projects):
    with pytest.raises(CommandError, match="may go, not those before"):
        call_command("drop-history", before=month_ago(0), yes=True)


def test_a_month_that_is_not_there_is_no_error(projects):
    out = StringIO()
    call_command("drop-history", before="2020-01", yes=True, stdout=out)
    assert out.getvalue().strip() == "There is no month before 2020-01 to drop."


# -- months ahead --------------------------------------------------------------------------------------------------


def test_events_go_over_to_the_next_months_partition_which_is_there_before_they_are(at, projects):
    following = sealing.following(month_ago(0))
    assert following in retention.partitions()
    at(following)
    event = tell(projects[0])
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM pipeline_event WHERE id = %s", [to_uuid(event.pk)])
        assert cursor.fetchone() == (f"pipeline_event_{following.replace('-', '')}",)
    at(month_ago(0))
    tell(projects[0])
    at(following)
    tell(projects[0])
    at("")
    sealing.seal()
    assert list(Seal.objects.order_by("number").values_list("month", flat=True))[-3:] == [
        following, month_ago(0), following,
    ]  # fmt: skip
    assert audit.verify().problems == []
