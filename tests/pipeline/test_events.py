"""The log: one chain for each subject, a cursor that loses nothing, and reactions that are made good."""

import logging
import os
import signal
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pgtrigger
import pytest
from django.db import connection, transaction
from django.db.models import F
from django.utils import timezone

from pipeline import chain, events
from pipeline.clock import db_now
from pipeline.models import Event, EventStream, FailedReaction, Hold
from pipeline.refusals import Refused
from tests import factories
from tests.factories import BY

PATIENCE_SECONDS = 20.0


def note(subject, message="", **more):
    """An event about `subject` that changes nothing."""
    return events.record("note.added", subject, by=BY, message=message, **more)


def broken_link_of(subject):
    """The number of the first event of the subject that does not follow from the one before."""
    rows = Event.objects.about(subject)
    return chain.first_broken(chain.Link(e.stream_seq, e.prev_hash, e.hash, e.canonical) for e in rows)


# -- recording -----------------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_an_event_tells_who_did_what_to_whom_with_which_correlation():
    run = factories.make_run()
    actor = events.Actor("worker", "7", "builder", on_behalf_of="ada")
    event = events.record(
        "run.started",
        run,
        by=actor,
        before={"state": "pending"},
        after={"state": "running"},
        reason="now",
        task_id=run.pk,
    )
    event.refresh_from_db()
    assert (event.kind, event.channel, event.severity) == ("run.started", "task_events", "info")
    assert (event.actor_kind, event.actor_id, event.actor_name, event.on_behalf_of) == ("worker", "7", "builder", "ada")
    assert (event.subject_type, event.subject_id, event.reason) == ("run", run.pk, "now")
    assert (event.project_id, event.workstream_id, event.run_id) == (run.project_id, run.workstream_id, run.pk)
    assert (event.task_id, event.worker_id) == (run.pk, None)


@pytest.mark.django_db
def test_an_unknown_kind_or_correlation_is_an_error_of_the_program():
    project = factories.make_project()
    with pytest.raises(KeyError):
        events.record("project.exploded", project, by=BY)
    with pytest.raises(TypeError, match="planet_id"):
        events.record("note.added", project, by=BY, planet_id="x")
    assert Event.objects.about(project).count() == 1


@pytest.mark.django_db
def test_text_with_a_nul_is_recorded_without_it():
    event = note(factories.make_project(), "a\x00b", data={"k\x00": ["\x00"]})
    event.refresh_from_db()
    assert (event.message, event.data) == ("a�b", {"k�": ["�"]})


def test_times_decimals_and_floats_become_text():
    at = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)
    assert events.plain({"at": at, "for": timedelta(seconds=1.5), "n": Decimal("1.50"), "f": 0.1, "l": (1, None)}) == {
        "at": "2026-01-02T03:04:05.000006Z",
        "for": "1.500000",
        "n": "1.50",
        "f": "0.1",
        "l": [1, None],
    }


@pytest.mark.django_db
def test_the_request_in_hand_is_noted():
    token = events.request_id.set("req-1")
    try:
        event = note(factories.make_project())
    finally:
        events.request_id.reset(token)
    assert Event.objects.get(pk=event.pk).request_id == "req-1"


@pytest.mark.django_db
def test_an_event_that_nobody_reacts_to_is_handled_at_birth_and_nudges_nobody(
    reactions, nudges, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        event = note(factories.make_project())
    event.refresh_from_db()
    assert event.handled_at is not None
    assert nudges == []


@pytest.mark.django_db
def test_an_event_that_somebody_reacts_to_is_pending_and_nudges_after_the_commit(
    reactions, nudges, django_capture_on_commit_callbacks
):
    events.on("note.added")(lambda event: None)
    with django_capture_on_commit_callbacks(execute=True):
        event = note(factories.make_project())
        assert nudges == []
    assert nudges == [("pipeline.tasks.react", event.pk)]
    assert list(Event.objects.due()) == [event]


@pytest.mark.django_db(transaction=True)
def test_an_event_of_a_transaction_that_is_undone_never_was():
    project = factories.make_project()
    with pytest.raises(RuntimeError), transaction.atomic():  # noqa: PT012 - the error comes after the event
        note(project)
        raise RuntimeError
    assert Event.objects.about(project).count() == 1
    assert EventStream.objects.get(pk=project.pk).seq == 1
    note(project)
    assert broken_link_of(project) is None


# -- one chain for each subject ------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
def test_eight_writers_at_once_make_one_gapless_chain(threads):
    project, other = factories.make_project(), factories.make_project()

    def write():
        for _n in range(10):
            with transaction.atomic():
                note(project)
            with transaction.atomic():
                note(other)

    for outcome in threads.at_once(*[write] * 8):
        outcome.result()
    for subject in (project, other):
        assert list(Event.objects.about(subject).values_list("stream_seq", flat=True)) == list(range(1, 82))
        assert broken_link_of(subject) is None
        assert EventStream.objects.get(pk=subject.pk).seq == 81


@pytest.mark.django_db(transaction=True)
def test_eight_first_events_of_one_subject_at_once_make_one_chain(threads):
    subject = factories.make_user()
    for outcome in threads.at_once(*[lambda: note(subject)] * 8):
        outcome.result()
    assert list(Event.objects.about(subject).values_list("stream_seq", flat=True)) == list(range(1, 9))
    assert broken_link_of(subject) is None


# -- the cursor ----------------------------------------------------------------------------------------------------


def read_all(cursor):
    """The messages behind `cursor`, and the cursor behind the last of them."""
    page = list(Event.objects.after(cursor))
    return [event.message for event in page], page[-1].cursor if page else cursor


@pytest.mark.django_db(transaction=True)
def test_the_cursor_waits_for_a_transaction_that_is_still_open(threads):
    early, late = factories.make_project(), factories.make_project()
    _messages, cursor = read_all(events.START)
    recorded, go_on = threading.Event(), threading.Event()

    def hold_open():
        with transaction.atomic():
            note(early, "first")
            recorded.set()
            assert go_on.wait(PATIENCE_SECONDS)

    holding = threads.start(hold_open)
    assert recorded.wait(PATIENCE_SECONDS)
    note(late, "second")
    newest = Event.objects.get(message="second")
    # A reader by number would take "second" now, remember its number, and never see "first".
    assert list(Event.objects.filter(seq__gt=newest.seq - 1)) == [newest]
    assert read_all(cursor) == ([], cursor)
    go_on.set()
    holding.result()
    messages, cursor = read_all(cursor)
    assert messages == ["first", "second"]
    assert Event.objects.get(message="first").seq < newest.seq
    assert read_all(cursor) == ([], cursor)


@pytest.mark.django_db(transaction=True)
def test_the_cursor_follows_the_order_of_transactions_where_numbers_do_not(threads):
    early, late = factories.make_project(), factories.make_project()
    _messages, cursor = read_all(events.START)
    begun, go_on = threading.Event(), threading.Event()

    def begin_early_and_record_late():
        with transaction.atomic():
            with connection.cursor() as sql:
                sql.execute("SELECT pg_current_xact_id()")
            begun.set()
            assert go_on.wait(PATIENCE_SECONDS)
            note(early, "begun first, numbered last")

    holding = threads.start(begin_early_and_record_late)
    assert begun.wait(PATIENCE_SECONDS)
    note(late, "begun last, numbered first")
    assert read_all(cursor) == ([], cursor)
    go_on.set()
    holding.result()
    messages, cursor = read_all(cursor)
    assert messages == ["begun first, numbered last", "begun last, numbered first"]
    assert read_all(cursor) == ([], cursor)


@pytest.mark.django_db(transaction=True)
def test_pages_of_any_size_read_every_event_once_and_in_one_order():
    project = factories.make_project()
    for number in range(7):
        with transaction.atomic():
            note(project, f"{number}a")
            note(project, f"{number}b")
    whole = [event.pk for event in Event.objects.after(events.START, limit=1000)]
    assert len(whole) == Event.objects.count() == 15
    for limit in (1, 2, 4):
        cursor, read = events.START, []
        while page := list(Event.objects.after(cursor, limit=limit)):
            read += [event.pk for event in page]
            cursor = page[-1].cursor
        assert read == whole


@pytest.mark.django_db(transaction=True)
def test_a_cursor_of_an_older_epoch_stands_before_every_event_of_the_present_one():
    project = factories.make_project()
    assert [event.subject_id for event in Event.objects.after(events.Cursor(0, 2**62, 2**62))] == [project.pk]
    assert list(Event.objects.after(events.Cursor(2, 0, 0))) == []


def test_a_cursor_is_written_and_read_back():
    cursor = events.Cursor(1, 2**60, 3)
    assert events.Cursor.parse(str(cursor)) == cursor


@pytest.mark.parametrize("text", ["", "1", "1-2", "1-2-3-4", "a-b-c", "1--3", "1-2-٣", "1-2-" + "9" * 20, "-1-2-3"])
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(Refused) as refusal:
        events.Cursor.parse(text)
    assert (refusal.value.code, refusal.value.status) == ("invalid_cursor", 400)


# -- reacting ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pending(db, reactions, nudges):
    """A function that registers reactions to `note.added`, and answers a pending event about a new project."""

    def make(*works, **more):
        for work in works:
            events.on("note.added")(work)
        return note(factories.make_project(), **more)

    return make


def place_hold(event):
    """A reaction that leaves a row."""
    Hold.objects.place("project", event.subject_id, reason="told to", by=events.SYSTEM)


def hold_all(event):
    """Another one."""
    Hold.objects.place("installation", reason="told to", by=events.SYSTEM)


def crash(event):
    """A reaction that breaks after it has written."""
    Hold.objects.place("installation", reason="half done", by=events.SYSTEM)
    raise RuntimeError("out of order")


def test_a_reaction_runs_once(pending):
    seen = []
    event = pending(seen.append)
    assert events.react(event.pk) is True
    assert events.react(event.pk) is False
    assert seen == [event]
    event.refresh_from_db()
    assert event.handled_at is not None


def test_an_event_that_is_not_there_is_nobodys(pending):
    pending(lambda event: None)
    assert events.react("01ARZ3NDEKTSV4RRFFQ69G5FAV") is False


def test_a_crash_keeps_the_event_and_puts_it_off_ever_longer(pending, caplog):
    caplog.set_level(logging.CRITICAL)
    event = pending(crash)
    for attempt, seconds in enumerate((2, 4, 8, 16), 1):
        before = db_now()
        assert events.react(event.pk) is True
        event.refresh_from_db()
        assert (event.handled_at, event.attempts) == (None, attempt)
        assert timedelta(0) <= event.due_at - before - timedelta(seconds=seconds) < timedelta(seconds=2)
        assert events.react(event.pk) is False
        Event.objects.filter(pk=event.pk).update(due_at=db_now())
    assert not Hold.objects.exists()


def due_again(event):
    """The event's delay is over."""
    Event.objects.filter(pk=event.pk).update(due_at=db_now())


def test_the_delay_ends_at_an_hour(pending, caplog, settings):
    settings.SIGNALBOX_REACTION_ATTEMPTS = 100
    caplog.set_level(logging.CRITICAL)
    event = pending(crash)
    events.react(event.pk)
    Event.objects.filter(pk=event.pk).update(attempts=40, due_at=db_now())
    events.react(event.pk)
    event.refresh_from_db()
    assert timedelta(minutes=59) < event.due_at - db_now() <= timedelta(hours=1)


def test_a_reaction_that_fails_does_not_undo_another(pending, caplog):
    event = pending(crash, place_hold)
    events.react(event.pk)
    assert [hold.scope_kind for hold in Hold.objects.all()] == ["project"]
    assert "out of order" in caplog.text
    event.refresh_from_db()
    assert event.handled_at is None


def test_only_what_failed_is_tried_again(pending, caplog):
    caplog.set_level(logging.CRITICAL)
    ran = []
    event = pending(crash, ran.append)
    for _attempt in range(3):
        events.react(event.pk)
        due_again(event)
    assert ran == [event]


def test_a_reaction_that_gets_through_in_the_end_is_made_good(pending, caplog):
    caplog.set_level(logging.CRITICAL)
    broken = [True]

    def mended_later(event):
        if broken:
            raise RuntimeError(f"out of order: {broken}")
        place_hold(event)

    event = pending(mended_later)
    events.react(event.pk)
    failure = FailedReaction.objects.get()
    assert (failure.event_id, failure.kind, failure.attempts) == (event.pk, "note.added", 1)
    assert failure.error == "RuntimeError: out of order: [True]"
    broken.clear()
    due_again(event)
    assert events.react_to_due() == 1
    event.refresh_from_db()
    assert event.handled_at is not None
    assert Hold.objects.count() == 1
    assert not FailedReaction.objects.open().exists()


def test_a_failure_of_a_reaction_that_is_no_more_is_not_waited_for(pending, reactions, caplog):
    caplog.set_level(logging.CRITICAL)
    event = pending(crash, place_hold)
    events.react(event.pk)
    reactions["note.added"].remove(crash)
    due_again(event)
    assert events.react_to_due() == 1
    event.refresh_from_db()
    assert event.handled_at is not None
    assert Hold.objects.count() == 1
    assert FailedReaction.objects.open().count() == 1


@pytest.fixture
def dead(pending, caplog, settings):
    """An event with a reaction that has crashed as often as it may, beside one that ran; and that failure."""
    settings.SIGNALBOX_REACTION_ATTEMPTS = 2
    caplog.set_level(logging.CRITICAL)
    event = pending(crash, place_hold)
    for _attempt in range(2):
        events.react(event.pk)
        due_again(event)
    return event, FailedReaction.objects.get()


def test_after_its_last_attempt_a_reaction_is_a_dead_letter_and_says_so(dead):
    event, failure = dead
    assert (failure.attempts, failure.dead_at is not None) == (2, True)
    assert list(FailedReaction.objects.dead()) == [failure]
    assert events.react(event.pk) is False
    alert = Event.objects.get(kind="alert.raised")
    assert (alert.subject_type, alert.subject_id, alert.severity) == ("failed_reaction", failure.pk, "error")
    assert (alert.data, alert.project_id) == ({"cause": "dead_letter"}, event.project_id)


def test_a_dead_letter_is_replayed_alone_and_with_all_its_attempts(dead, reactions, nudges):
    event, failure = dead
    ran = []

    def crash(event):  # the name under which it failed
        ran.append(event.pk)

    crash.__module__ = place_hold.__module__
    reactions["note.added"][0] = crash
    nudges.clear()
    assert failure.replay(by=BY, reason="the cause is mended") is True
    assert (failure.attempts, failure.dead_at) == (0, None)
    assert nudges == []  # only a commit sends it
    assert events.react_to_due() == 1
    assert ran == [event.pk]
    assert Hold.objects.count() == 1
    assert not FailedReaction.objects.open().exists()
    assert failure.replay(by=BY, reason="again") is False
    told = Event.objects.get(kind="alert.cleared")
    assert (told.reason, told.subject_id) == ("the cause is mended", failure.pk)


def test_a_replay_needs_a_reason(dead):
    with pytest.raises(Refused) as refusal:
        dead[1].replay(by=BY, reason=" ")
    assert refusal.value.code == "reason_required"


@pytest.mark.django_db(transaction=True)
def test_who_dies_between_two_reactions_leaves_an_event_that_is_due(reactions, nudges):
    ran = []

    class Killed(BaseException):
        """No exception that anything catches, as a kill is."""

    def dies_once(event):
        if not ran:
            ran.append("died")
            raise Killed

    events.on("note.added")(place_hold)
    events.on("note.added")(dies_once)
    event = note(factories.make_project())
    with pytest.raises(Killed):
        events.react(event.pk)
    assert Hold.objects.count() == 1  # committed on its own
    assert events.react_to_due() == 1
    event.refresh_from_db()
    assert event.handled_at is not None
    assert Hold.objects.count() == 1


def test_a_reaction_that_comes_too_late_is_done(pending):
    def refuse(event):
        Hold.objects.place("installation", reason="half done", by=events.SYSTEM)
        raise Refused("it is over")

    event = pending(refuse)
    events.react(event.pk)
    event.refresh_from_db()
    assert event.handled_at is not None
    assert event.attempts == 0
    assert not Hold.objects.exists()


def test_what_a_reaction_records_carries_the_request_of_its_cause(pending):
    token = events.request_id.set("req-7")
    try:
        event = pending(place_hold)
    finally:
        events.request_id.reset(token)
    events.react(event.pk)
    assert Event.objects.get(kind="hold.placed").request_id == "req-7"
    assert events.request_id.get() == ""


def test_the_sweep_takes_what_is_due_oldest_first(pending):
    seen = []
    first = pending(seen.append)
    second, off, early = (note(factories.make_project()) for _n in range(3))
    now = db_now()
    Event.objects.filter(pk=off.pk).update(due_at=now + timedelta(minutes=1))
    Event.objects.filter(pk=early.pk).update(due_at=now - timedelta(minutes=1))
    assert events.react_to_due(limit=2) == 2
    assert events.react_to_due() == 1
    assert seen == [early, first, second]


def test_an_event_that_is_swept_is_put_off_first_so_that_one_that_kills_its_process_keeps_no_other_back(pending):
    class Ended(BaseException):
        """This process is told to stop, in the middle of it."""

    due = []

    def look(event):
        due.append(Event.objects.due().filter(pk=event.pk).exists())
        if len(due) == 1:
            raise Ended

    event = pending(look)
    with pytest.raises(Ended):
        events.react_to_due()
    # Who was killed here could not have said so; who only had to stop leaves it due.
    assert Event.objects.due().filter(pk=event.pk).exists()
    assert events.react_to_due() == 1
    assert due == [False, False]
    event.refresh_from_db()
    assert event.handled_at is not None


def left_by_the_dead(event):
    """A sweep has put the event off, and its process has died with it; that was long ago."""
    Event.objects.filter(pk=event.pk).update(created_at=db_now() - timedelta(minutes=1), due_at=db_now())


@pytest.fixture
def left(pending):
    """Makes an event, with the reactions given, on which a sweep has died."""

    def make(*reactions):
        event = pending(*reactions)
        with pgtrigger.ignore("pipeline.Event:written_once"):
            left_by_the_dead(event)
        return event

    return make


def booked(event, reaction):
    """What is booked for this reaction now: whoever is killed here leaves that."""
    name = f"{reaction.__module__}.{reaction.__name__}"
    return FailedReaction.objects.filter(event_id=event.pk, reaction=name).values_list("attempts", "deaths", "error")


def test_a_try_that_may_take_its_process_with_it_is_counted_before_it_is_made(left):
    seen = []

    def look(event):
        seen.extend(booked(event, look))

    event = left(look)
    assert events.react_to_due() == 1
    assert seen == [(1, 1, "its process died")]
    event.refresh_from_db()
    assert event.handled_at is not None
    # It lived: nothing that was booked has come true.
    assert not FailedReaction.objects.exists()


def test_who_is_told_to_end_in_such_a_try_has_not_died_of_it(left):
    class Ended(BaseException):
        """This process is told to stop."""

    def end(event):
        raise Ended

    event = left(end)
    with pytest.raises(Ended):
        events.react_to_due()
    assert not FailedReaction.objects.exists()
    assert Event.objects.due().filter(pk=event.pk).exists()


def in_a_process_of_its_own(work):
    """The signal that ended a process which did this over a connection of its own; 0 when it lived."""
    pid = os.fork()
    if not pid:
        connection.connection = None  # the parent's
        with suppress(BaseException):
            work()
        os._exit(0)
    return os.WTERMSIG(os.waitpid(pid, 0)[1])


@pytest.mark.kill
@pytest.mark.django_db(transaction=True)
def test_an_event_whose_reaction_kills_its_process_is_tried_ever_later_and_then_waits_for_a_person(reactions, nudges):
    def die(event):
        os.kill(os.getpid(), signal.SIGKILL)

    events.on("note.added")(place_hold)
    events.on("note.added")(die)
    events.on("note.added")(hold_all)
    event = note(factories.make_project())
    waits = []
    for deaths in range(events.MAX_DEATHS + 1):
        before = db_now()
        assert in_a_process_of_its_own(events.react_to_due) == signal.SIGKILL
        event.refresh_from_db()
        assert (event.handled_at, event.attempts) == (None, 0)
        waits.append(round((event.due_at - before).total_seconds()))
        assert list(booked(event, die)) == ([(deaths, deaths, "its process died")] if deaths else [])
        if not deaths:
            with pgtrigger.ignore("pipeline.Event:written_once"):
                Event.objects.filter(pk=event.pk).update(created_at=F("created_at") - timedelta(minutes=1))
        due_again(event)
    assert waits == [10, 10, 10, 10, 16, 32]
    # The next one knows better, and does what stands behind it.
    assert in_a_process_of_its_own(events.react_to_due) == 0
    event.refresh_from_db()
    assert event.handled_at is not None
    assert sorted(Hold.objects.values_list("scope_kind", flat=True)) == ["installation", "project"]
    failure = FailedReaction.objects.get()
    assert (failure.dead_at is not None, failure.error) == (True, "its process died")
    assert Event.objects.get(kind="alert.raised").subject_id == failure.pk
    # A replay is as careful.
    failure.replay(by=BY, reason="try it")
    assert in_a_process_of_its_own(lambda: events.react(event.pk)) == signal.SIGKILL
    assert list(booked(event, die)) == [(1, 1, "its process died")]


def test_a_failure_that_is_tried_again_keeps_what_it_died_of(pending, caplog):
    caplog.set_level(logging.CRITICAL)
    seen = []

    def fails_once(event):
        seen.extend(booked(event, fails_once))
        if not seen:
            raise RuntimeError("out of order")

    event = pending(fails_once)
    events.react(event.pk)
    due_again(event)
    assert events.react_to_due() == 1
    assert seen == [(2, 1, "its process died")]
    failure = FailedReaction.objects.get()
    assert (failure.attempts, failure.deaths, failure.error) == (1, 0, "RuntimeError: out of order")
    assert failure.mended_at is not None


def test_what_another_process_tries_with_care_is_left_to_it(left, threads):
    event = left(place_hold)
    with events._in_hand(event) as mine:
        assert mine
        assert threads.start(lambda: react_elsewhere(event)).result() is False
    assert not FailedReaction.objects.exists()


def react_elsewhere(event):
    """Whether a session of its own gets the event."""
    try:
        with events._in_hand(event) as mine:
            return mine
    finally:
        connection.close()


def test_a_dead_letter_is_dropped_and_taken_up_again_by_a_replay(dead):
    event, failure = dead
    with pytest.raises(Refused) as refusal:
        failure.drop(by=BY, reason="")
    assert refusal.value.code == "reason_required"
    assert failure.drop(by=BY, reason="nobody needs it") is True
    assert failure.drop(by=BY, reason="again") is False
    assert not FailedReaction.objects.open().exists()
    told = Event.objects.get(kind="alert.cleared")
    assert (told.reason, told.data) == ("nobody needs it", {"cause": "dead_letter", "dropped": True})
    assert failure.replay(by=BY, reason="it was needed") is True
    assert (failure.dead_at, failure.dropped_at, failure.attempts) == (None, None, 0)
    assert Event.objects.due().filter(pk=event.pk).exists()


def test_a_reaction_that_waits_for_its_next_try_can_be_dropped_and_its_event_is_handled(pending, caplog):
    caplog.set_level(logging.CRITICAL)
    event = pending(crash)
    events.react(event.pk)
    assert FailedReaction.objects.get().drop(by=BY, reason="it never will") is True
    due_again(event)
    caplog.clear()
    assert events.react(event.pk) is True
    assert "out of order" not in caplog.text
    event.refresh_from_db()
    assert event.handled_at is not None


def test_the_sweep_begins_no_further_reaction_when_its_time_is_over(pending):
    seen = []
    first = pending(seen.append)
    second = note(factories.make_project())
    assert events.react_to_due(seconds=0) == 1
    assert seen == [first]
    assert events.react_to_due(seconds=3600) == 1
    assert seen == [first, second]


def test_a_reaction_to_an_unknown_kind_cannot_be_registered(reactions):
    with pytest.raises(KeyError):
        events.on("note.added", "note.exploded")(lambda event: None)
    assert reactions == {}


@pytest.mark.django_db(transaction=True)
def test_an_event_that_another_has_in_hand_is_left_to_it(threads, reactions, nudges):
    entered, go_on, seen = threading.Event(), threading.Event(), []

    def slow(event):
        seen.append(event)
        entered.set()
        assert go_on.wait(PATIENCE_SECONDS)

    events.on("note.added")(slow)
    event = note(factories.make_project())
    other = threads.start(lambda: events.react(event.pk))
    assert entered.wait(PATIENCE_SECONDS)
    assert events.react(event.pk) is False
    go_on.set()
    assert other.result() is True
    assert seen == [event]
    assert events.react(event.pk) is False


# -- drain ---------------------------------------------------------------------------------------------------------


def test_drain_runs_consequences_of_consequences_and_work(pending):
    left = [3]

    @events.chore
    def work():
        if not left[0] or not Hold.objects.exists():
            return 0
        left[0] -= 1
        return 1

    @events.on("hold.placed")
    def go_on(event):
        if event.project_id is None and Hold.objects.count() < 3:
            Hold.objects.place("run", event.pk, reason="and on", by=events.SYSTEM)

    pending(place_hold)
    events.drain()
    assert Hold.objects.count() == 3
    assert left == [0]
    assert not Event.objects.pending().exists()


def test_drain_gives_up_on_reactions_that_chase_each_other(pending):
    def again(event):
        note(factories.make_project())

    pending(again)
    with pytest.raises(RuntimeError, match="5 rounds"):
        events.drain(rounds=5)


def test_a_chore_that_fails_keeps_no_other_back(db, reactions, caplog):
    @events.chore
    def broken():
        raise RuntimeError("no disk")

    @events.chore
    def whole():
        return 2

    assert events.do_chores() == 2
    assert "no disk" in caplog.text


# -- nudging -------------------------------------------------------------------------------------------------------


@pytest.fixture
def broker(monkeypatch):
    """A broker whose answer a test chooses; `asked` holds what was sent."""

    class Broker:
        asked: list[str] = []
        is_down = False

        def send_task(self, task, args, **_options):
            self.asked.append(task)
            if self.is_down:
                raise ConnectionError("refused")

    found = Broker()
    found.asked = []
    monkeypatch.setattr("celery.current_app", found)
    monkeypatch.setattr(events, "_paused_until", 0.0)
    return found


@pytest.mark.django_db(transaction=True)
def test_a_broker_that_is_down_harms_nothing_and_is_left_alone_for_a_while(broker, reactions, caplog):
    events.on("note.added")(lambda event: None)
    broker.is_down = True
    project = factories.make_project()
    event = note(project)
    note(project)
    assert broker.asked == ["pipeline.tasks.react"]
    assert "the sweep takes over" in caplog.text
    assert event in Event.objects.due()
    assert events.react_to_due() == 2


def test_after_the_pause_the_broker_is_asked_again(broker, monkeypatch):
    broker.is_down = True
    events.nudge("pipeline.tasks.react", "x")
    monkeypatch.setattr(events, "_paused_until", 0.0)
    broker.is_down = False
    events.nudge("pipeline.tasks.react", "y")
    events.nudge("pipeline.tasks.react", "z")
    assert len(broker.asked) == 3


@pytest.mark.django_db(transaction=True)
def test_a_nudge_of_a_transaction_that_is_undone_is_not_sent(broker, reactions):
    events.on("note.added")(lambda event: None)
    with transaction.atomic():
        note(factories.make_project())
        transaction.set_rollback(True)
    assert broker.asked == []


# -- storage -------------------------------------------------------------------------------------------------------


def table_of(event):
    """The partition in which the event lies."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT tableoid::regclass::text FROM pipeline_event WHERE id = %s",
            [Event._meta.pk.get_db_prep_value(event.pk, connection)],
        )
        (name,) = cursor.fetchone()
    return name


def partitions():
    """The names of the partitions, in order."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = 'pipeline_event'::regclass ORDER BY 1"
        )
        return [name for (name,) in cursor.fetchall()]


@pytest.mark.django_db
def test_an_event_lies_in_the_partition_of_its_month():
    event = note(factories.make_project())
    assert table_of(event) == f"pipeline_event_{timezone.now():%Y%m}"


@pytest.mark.django_db
def test_making_the_partitions_again_makes_none_and_further_ones_are_made_once():
    assert events.make_partitions(3) == 0
    before = partitions()
    assert events.make_partitions(5) == 2
    assert events.make_partitions(5) == 0
    assert len(partitions()) == len(before) + 2


@pytest.mark.django_db
def test_the_default_partition_is_empty_and_the_months_follow_each_other():
    months = [name.removeprefix("pipeline_event_") for name in partitions() if not name.endswith("_default")]
    first = timezone.now().replace(day=1)
    expected = [(first.year + (first.month - 1 + n) // 12, (first.month - 1 + n) % 12 + 1) for n in range(4)]
    assert months == [f"{year}{month:02}" for year, month in expected]
    note(factories.make_project())
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pipeline_event_default")
        assert cursor.fetchone() == (0,)


@pytest.mark.django_db
def test_a_stray_in_the_default_partition_keeps_no_later_month_from_being_made():
    stray = note(factories.make_project())
    with connection.cursor() as cursor:
        columns = ", ".join(f'"{field.column}"' for field in Event._meta.fields if field.name != "id")
        cursor.execute(
            f"INSERT INTO pipeline_event (id, {columns}) SELECT signalbox_lowest_ulid(now() + interval '5 months'), "
            f"{columns} FROM pipeline_event WHERE id = %s",
            [Event._meta.pk.get_db_prep_value(stray.pk, connection)],
        )
        cursor.execute("SELECT count(*) FROM pipeline_event_default")
        assert cursor.fetchone() == (1,)
    months = len(partitions())
    events.make_partitions(7)
    assert len(partitions()) >= months + 3
    assert Event.objects.filter(subject_id=stray.subject_id).count() == 3


# -- several at once ---------------------------------------------------------------------------------------------


@pytest.mark.django_db
def test_events_appended_together_are_as_if_recorded_one_by_one(reactions, nudges, django_capture_on_commit_callbacks):
    events.on("run.started")(lambda event: None)
    run, project = factories.make_run(), factories.make_project()
    facts = {"by": BY, "reason": "why", "data": {"n": 1}, "before": {"state": "a"}, "after": {"state": "b"}}
    with django_capture_on_commit_callbacks(execute=True):
        one = events.record("run.started", run, **facts)
        together = [
            events.compose("run.started", run, **facts),
            events.compose("note.added", project, by=BY, message="m\x00"),
            events.compose("run.started", run, **facts),
        ]
        events.append(together)
    rows = [Event.objects.get(pk=event.pk) for event in together]
    assert [row.stream_seq - Event.objects.get(pk=one.pk).stream_seq for row in (rows[0], rows[2])] == [1, 2]
    assert broken_link_of(run) is None
    assert broken_link_of(project) is None
    assert rows[0].seq < rows[1].seq < rows[2].seq
    differs = {"id", "seq", "canonical", "stream_seq", "prev_hash", "hash", "created_at", "due_at"}
    for name in {field.name for field in Event._meta.concrete_fields} - differs:
        assert getattr(rows[0], name) == getattr(Event.objects.get(pk=one.pk), name), name
    assert [row.handled_at is None for row in rows] == [True, False, True]
    assert nudges == [("pipeline.tasks.react", one.pk), ("pipeline.tasks.react", together[0].pk, together[2].pk)]


@pytest.mark.django_db
def test_appending_nothing_asks_nothing(django_assert_num_queries):
    with django_assert_num_queries(0):
        events.append([])
