"""Two at once: one holds what the other wants, the other is seen to wait, and one effect remains."""

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection, transaction

from costs.models import CostRecord
from ledger.models import MergeQueue, Patch
from pipeline.definitions import PreconditionFailed
from pipeline.models import Event, Hold, Project, Run, StepAttempt, Task, Tick
from pipeline.states import InvalidMove
from tests import factories
from tests.conftest import PATIENCE_SECONDS, Outcome, Threads
from tests.factories import BY, in_state
from workers.models import Lease, StaleClaim, Worker

pytestmark = pytest.mark.django_db(transaction=True)


def kinds(row: Any) -> list[str]:
    """What the log says of the row."""
    return [event.kind for event in Event.objects.about(row)]


def wait_for_a_waiter(outcome: Outcome) -> None:
    """Return once a connection waits for a lock. Fails when the thread ends without having waited, or in vain."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
            (waiting,) = cursor.fetchone()
        if waiting:
            return
        assert not outcome.ended.wait(0.005), f"nothing was waited for: {outcome.value!r} {outcome.error!r}"
    pytest.fail("nobody waits")


def second_waits_for_first(
    threads: Threads, first: Callable[[], Any], second: Callable[[], Any], *, commit: bool = True
) -> tuple[Any, Outcome]:
    """Do `first` in an open transaction, see `second` wait for it, and commit; answers what became of both."""
    done, go_on = threading.Event(), threading.Event()

    def hold() -> Any:
        with transaction.atomic():
            value = first()
            done.set()
            assert go_on.wait(PATIENCE_SECONDS)
            transaction.set_rollback(not commit)
        return value

    holding = threads.start(hold)
    assert done.wait(PATIENCE_SECONDS), holding.error
    waiting = threads.start(second)
    try:
        wait_for_a_waiter(waiting)
    finally:
        go_on.set()
    return holding.result(), waiting.wait()


# -- moves ---------------------------------------------------------------------------------------------------------


def test_the_second_of_two_moves_waits_and_is_judged_by_the_state_that_the_first_left(threads):
    run = factories.make_run()
    done, late = second_waits_for_first(
        threads, lambda: Run.objects.get(pk=run.pk).cancel(by=BY), lambda: Run.objects.get(pk=run.pk).start(by=BY)
    )
    assert done is True
    assert isinstance(late.error, InvalidMove)
    assert late.error.state == "canceled"
    assert kinds(run) == ["run.created", "run.winding_down", "run.canceled"]
    assert not Task.objects.filter(run=run).exclude(state="cancelled").exists()


def test_two_moves_to_the_same_state_are_one_move_and_one_event(threads):
    worker = factories.make_worker()

    def pause() -> bool:
        return Worker.objects.get(pk=worker.pk).pause(by=BY)

    done, late = second_waits_for_first(threads, pause, pause)
    assert (done, late.result()) == (True, False)
    assert kinds(worker) == ["worker.started", "worker.paused"]


def test_when_the_first_is_undone_the_second_goes_through(threads):
    worker = factories.make_worker()

    def pause() -> bool:
        return Worker.objects.get(pk=worker.pk).pause(by=BY)

    _undone, second = second_waits_for_first(threads, pause, pause, commit=False)
    assert second.result() is True
    assert kinds(worker) == ["worker.started", "worker.paused"]


def test_a_move_that_waited_reads_the_columns_it_counts_from_after_the_wait(threads):
    task = in_state(factories.make_task(), "queued")

    def count() -> None:
        Task.objects.filter(pk=task.pk).update(generation=5)

    _none, second = second_waits_for_first(threads, count, lambda: Task.objects.get(pk=task.pk).claim(by=BY))
    assert second.result() == 6


def test_a_task_is_claimed_by_one_of_eight(threads):
    task = in_state(factories.make_task(), "queued")
    outcomes = threads.at_once(*[lambda: Task.objects.get(pk=task.pk).claim(by=BY)] * 8)
    assert [outcome.value for outcome in outcomes if outcome.error is None] == [1]
    assert {type(outcome.error) for outcome in outcomes if outcome.error} == {InvalidMove}
    assert kinds(task).count("task.started") == 1


# -- leases --------------------------------------------------------------------------------------------------------


def test_a_lease_is_ended_once(threads):
    lease = factories.make_lease()

    def finish() -> bool:
        return Lease.objects.get(pk=lease.pk).finish("task_failed", by=BY, error="boom")

    done, late = second_waits_for_first(threads, finish, finish)
    assert done is True
    assert isinstance(late.error, StaleClaim)
    assert kinds(lease) == ["lease.granted", "lease.ended"]
    assert Task.objects.get(pk=lease.task_id).count_failures == 1
    assert Worker.objects.get(pk=lease.worker_id).tasks_failed == 1


def test_a_report_and_the_end_of_its_run_do_not_lock_each_other_out(threads):
    lease = factories.make_lease()
    run = lease.task.run
    done, late = second_waits_for_first(
        threads,
        lambda: Lease.objects.get(pk=lease.pk).finish("task_failed", by=BY),
        lambda: Run.objects.get(pk=run.pk).cancel(by=BY),
    )
    assert done is True
    assert late.result() is True
    assert not Lease.objects.live().exists()
    assert Task.objects.get(pk=lease.task_id).state == "cancelled"


def test_a_task_has_one_live_lease_whoever_writes():
    lease = factories.make_lease()
    step = factories.make_step(lease.task.run, start=True)
    values = {name: getattr(lease, name) for name in ("task", "acquired_at", "expires_at", "timeout_at", "deadline_at")}
    second = Lease(**values, worker=factories.make_worker(), attempt=step, generation=lease.generation + 1)
    with pytest.raises(Exception, match="lease_one_live_per_task"):
        second.save(force_insert=True)


# -- definitions, keys, holds, ticks -------------------------------------------------------------------------------


def test_an_edit_that_waited_for_another_is_judged_by_the_version_that_it_left(threads):
    project = factories.make_project(name="Old")
    done, late = second_waits_for_first(
        threads,
        lambda: Project.objects.get(pk=project.pk).edit(by=BY, expected_version=1, name="First"),
        lambda: Project.objects.get(pk=project.pk).edit(by=BY, expected_version=1, name="Second"),
    )
    assert done is True
    assert isinstance(late.error, PreconditionFailed)
    assert late.error.parts["version"] == 2
    assert Project.objects.get(pk=project.pk).name == "First"
    assert kinds(project) == ["project.added", "project.changed"]


def test_two_edits_of_different_fields_at_once_both_stay(threads):
    project = factories.make_project(name="Old")
    _done, late = second_waits_for_first(
        threads,
        lambda: Project.objects.get(pk=project.pk).edit(by=BY, name="New"),
        lambda: Project.objects.get(pk=project.pk).edit(by=BY, domain="mixed"),
    )
    assert late.result() is True
    fresh = Project.objects.get(pk=project.pk)
    assert (fresh.name, fresh.domain, fresh.version) == ("New", "mixed", 3)
    assert Event.objects.about(project).last().before == {"domain": "software-dev"}


def test_a_key_is_revoked_once(threads):
    row, _text = factories.make_key()
    done, late = second_waits_for_first(
        threads, lambda: fresh(row).revoke(by=BY), lambda: fresh(row).revoke(by=BY, reason="late")
    )
    assert (done, late.result()) == (True, False)
    assert kinds(row) == ["api_key.added", "api_key.changed"]


def test_a_hold_of_one_scope_kind_and_ref_stands_once(threads):
    project = factories.make_project()

    def place() -> str:
        return Hold.objects.place("project", project.pk, reason="wait", by=BY, project=project).pk

    done, late = second_waits_for_first(threads, place, place)
    assert late.result() == done
    hold = Hold.objects.get()
    assert kinds(hold) == ["hold.placed"]


def test_eight_who_place_the_same_hold_get_the_same_one(threads):
    outcomes = threads.at_once(*[lambda: Hold.objects.place("installation", reason="stop", by=BY).pk] * 8)
    assert {outcome.result() for outcome in outcomes} == {Hold.objects.get().pk}
    assert Event.objects.filter(kind="hold.placed").count() == 1


def test_a_hold_that_was_released_can_be_placed_again(threads):
    hold = factories.make_hold("installation")
    outcomes = threads.at_once(*[lambda: Hold.objects.get(pk=hold.pk).release(by=BY)] * 4)
    assert sorted(outcome.result() for outcome in outcomes) == [False, False, False, True]
    again = factories.make_hold("installation")
    assert again.pk != hold.pk
    assert Hold.objects.active().get() == again


def test_a_moment_of_a_schedule_is_taken_by_one_of_eight(threads):
    outcomes = threads.at_once(*[lambda: Tick.objects.take("sweep", timedelta(days=1))] * 8)
    taken = [outcome.result() for outcome in outcomes]
    assert len([tick for tick in taken if tick is not None]) == Tick.objects.count() == 1


# -- numbers and keys that must be one -----------------------------------------------------------------------------


def test_steps_of_one_run_are_numbered_without_a_gap_or_a_twin(threads):
    run = factories.make_run(started=True)
    outcomes = threads.at_once(*[lambda: StepAttempt.objects.begin(run, by=BY).sequence] * 8)
    assert sorted(outcome.result() for outcome in outcomes) == list(range(1, 9))
    assert Run.objects.get(pk=run.pk).count_steps == 8


def test_a_use_that_is_reported_twice_at_once_is_booked_once(threads):
    def book() -> bool:
        use = {"resource_type": "api_call", "source": "tool", "idempotency_key": "k", "amount": "1"}
        return CostRecord.objects.record(by=BY, **use)[1]

    outcomes = threads.at_once(*[book] * 8)
    assert sorted(outcome.result() for outcome in outcomes) == [False] * 7 + [True]
    assert CostRecord.objects.count() == 1
    assert Event.objects.filter(kind="cost.recorded").count() == 1


def test_the_same_change_submitted_twice_at_once_is_one_patch(threads):
    project, diff = factories.make_project(custody="recorded"), factories.new_file_diff()

    def submit() -> tuple[str, bool]:
        patch, is_new = Patch.objects.submit(project=project, diff_text=diff, base_commit="", by=BY)
        return patch.pk, is_new

    (pk, is_new), late = second_waits_for_first(threads, submit, submit)
    assert is_new is True
    assert late.result() == (pk, False)
    assert kinds(Patch.objects.get()) == ["patch.created", "patch.resubmitted"]


def test_the_queue_of_a_branch_is_made_once(threads):
    project = factories.make_project()

    def open_queue() -> str:
        return MergeQueue.objects.open_for(project, "main", "0" * 40, by=BY).pk

    done, late = second_waits_for_first(threads, open_queue, open_queue)
    assert late.result() == done
    assert kinds(MergeQueue.objects.get()) == ["merge_queue.added"]


def fresh(row: Any) -> Any:
    """The row as the database holds it now."""
    return type(row)._base_manager.get(pk=row.pk)
