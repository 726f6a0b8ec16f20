"""Tasks: from their dependencies to their end, with every failure counted where it belongs."""

from datetime import timedelta
from types import SimpleNamespace

import pytest

from pipeline import questions
from pipeline.clock import db_now
from pipeline.models import Event, Hold, Task, TaskDependency
from pipeline.refusals import InvalidField, ReasonRequired, Refused
from pipeline.states import InvalidMove
from tests import factories
from tests.factories import BY, in_state, task_spec

pytestmark = pytest.mark.django_db


def make_tasks(*specs):
    """The tasks of a new pending run, in their order."""
    run = factories.make_run(factories.make_workstream(tasks=list(specs)))
    return list(run.tasks.select_related("run").order_by("sequence"))


def make_pair():
    """A task, and one that needs it."""
    return make_tasks(task_spec("one"), task_spec("two", depends_on=["one"]))


def kinds(row):
    """What the log says of the row."""
    return [event.kind for event in Event.objects.about(row)]


def running(**fields):
    """A task whose first attempt is under way."""
    return in_state(factories.make_task(**fields), "running")


# -- dependencies --------------------------------------------------------------------------------------------------


def test_a_task_is_queued_when_nothing_that_it_needs_is_open():
    one, two = make_pair()
    with pytest.raises(Refused) as refusal:
        two.enqueue(by=BY)
    assert (refusal.value.code, refusal.value.parts["waiting_for"]) == ("dependencies_open", ["one"])
    in_state(one, "completed")
    assert two.enqueue(by=BY) is True
    assert kinds(two) == ["task.created", "task.queued"]


@pytest.mark.parametrize("state", ["failed", "cancelled"])
def test_a_need_that_ended_badly_is_still_open(state):
    one, two = make_pair()
    in_state(one, state)
    assert two.open_needs() == ["one"]


def test_a_blocked_task_says_for_whom_it_waits_until_it_is_unblocked():
    one, two = make_pair()
    two.block(by=BY)
    assert (two.state, two.blocked_by) == ("blocked", ["one"])
    with pytest.raises(Refused):
        two.unblock(by=BY)
    in_state(one, "completed")
    two.unblock(by=BY)
    assert (two.state, two.blocked_by) == ("pending", [])
    assert kinds(two) == ["task.created", "task.blocked", "task.unblocked"]


def test_a_dependency_found_later_is_told_once():
    one, two = make_tasks(task_spec("one"), task_spec("two"))
    dependency = two.add_dependency(one, by=BY, reason="shares a file")
    assert two.add_dependency(one, by=BY, reason="again") == dependency
    assert (dependency.kind, two.open_needs()) == ("dynamic", ["one"])
    assert kinds(two).count("task.dependency_added") == 1


def test_dependencies_never_form_a_circle():
    one, two, three = make_tasks(task_spec("one"), task_spec("two", depends_on=["one"]), task_spec("three"))
    three.add_dependency(two, by=BY, reason="order")
    for needs in (one, two, three):
        with pytest.raises(InvalidField) as refusal:
            one.add_dependency(needs, by=BY, reason="circle")
        assert refusal.value.code == "circular_dependency"
    assert TaskDependency.objects.closure(three) == {one.pk, two.pk, three.pk}


def test_a_task_of_another_run_is_no_dependency():
    with pytest.raises(InvalidField) as refusal:
        factories.make_task().add_dependency(factories.make_task(), by=BY, reason="no")
    assert refusal.value.code == "unknown_dependency"


@pytest.mark.parametrize("state", ["queued", "running", "validating", "completed", "failed", "cancelled"])
def test_a_task_that_is_on_its_way_takes_no_new_dependency(state):
    one, two = make_tasks(task_spec("one"), task_spec("two"))
    in_state(two, state)
    with pytest.raises(InvalidMove):
        two.add_dependency(one, by=BY, reason="late")


# -- work ----------------------------------------------------------------------------------------------------------


def test_each_claim_is_a_new_generation_and_an_attempt():
    task = in_state(factories.make_task(), "queued")
    assert task.claim(by=BY) == 1
    in_state(task, "queued")
    assert task.claim(by=BY) == 2
    task.refresh_from_db()
    assert (task.generation, task.count_attempts, task.started_at is not None) == (2, 2, True)


def test_what_is_not_queued_is_not_claimed():
    task = factories.make_task()
    with pytest.raises(InvalidMove, match="assign task"):
        task.claim(by=BY)
    assert task.generation == 0


def test_a_task_completes_when_nobody_above_says_wait(monkeypatch):
    monkeypatch.setattr(questions, "_answers", {})
    verdict = SimpleNamespace(status="waiting", reason="its patch has not landed")
    questions.answers("task.complete")(lambda **_facts: verdict)
    task = running()
    task.deliver(by=BY, session_ref="s-1")
    assert (task.state, task.last_outcome, task.session_ref) == ("validating", "success", "s-1")
    with pytest.raises(Refused, match="has not landed") as refusal:
        task.complete(by=BY)
    assert refusal.value.code == "gates_not_satisfied"
    verdict.status = "ready"
    assert task.complete(by=BY) is True
    assert kinds(task)[-2:] == ["task.validating", "task.completed"]


# -- failures ------------------------------------------------------------------------------------------------------


def test_a_failure_is_counted_and_tried_again_after_a_while():
    task, before = running(), db_now()
    assert task.settle("task_failed", by=BY, error_code="tests", error="2 failed") == "retrying"
    task.refresh_from_db()
    assert (task.count_failures, task.count_infra, task.count_repairs) == (1, 0, 0)
    assert before + timedelta(seconds=1) <= task.retry_at <= db_now() + timedelta(seconds=60)
    assert (task.last_outcome, task.last_error) == ("task_failed", "2 failed")
    assert kinds(task)[-1] == "task.retrying"


def test_a_stale_report_leaves_the_task_as_it_is():
    task = running()
    told = kinds(task)
    assert task.settle("stale_claim", by=BY, error_code="late", error="another has it") == "running"
    task.refresh_from_db()
    assert (task.state, task.count_failures, task.last_error, kinds(task)) == ("running", 0, "", told)


def test_the_last_of_its_attempts_that_fails_is_the_end():
    task = running(execution={"max_attempts": 2})
    task.settle("task_failed", by=BY, error_code="a", error="first")
    in_state(task, "running")
    assert task.settle("task_failed", by=BY, error_code="b", error="second") == "failed"
    task.refresh_from_db()
    assert (task.count_failures, task.completed_at is not None, task.run.count_errors) == (2, True, 1)


def test_the_same_error_three_times_is_the_end_whatever_is_left():
    task = running(execution={"max_attempts": 9})
    for number in (1, 2):
        assert task.settle("task_failed", by=BY, error_code="tests", error=f"line {number} broke") == "retrying"
        in_state(task, "running")
    assert task.settle("task_failed", by=BY, error_code="tests", error="line 33 broke") == "failed"
    assert task.count_same_error == 3


def test_another_error_in_between_starts_the_count_of_same_errors_anew():
    task = running(execution={"max_attempts": 9})
    for error in ("a", "a", "b", "a"):
        assert task.settle("task_failed", by=BY, error_code="tests", error=error) == "retrying"
        in_state(task, "running")
    assert task.count_same_error == 1


def test_a_lost_worker_is_not_the_tasks_failure():
    task = running(execution={"max_attempts": 1})
    assert task.settle("infra_lost", by=BY, error_code="worker_lost", error="heartbeat lost") == "retrying"
    assert (task.count_failures, task.count_infra) == (0, 1)


def test_infrastructure_that_fails_for_ever_is_the_end(settings):
    settings.SIGNALBOX_TASK_MAX_INFRA_RETRIES = 1
    task = running()
    task.settle("infra_lost", by=BY, error="heartbeat lost")
    in_state(task, "running")
    assert task.settle("infra_lost", by=BY, error="heartbeat lost") == "failed"


def test_a_repair_has_its_own_limit(settings):
    settings.SIGNALBOX_TASK_MAX_REPAIRS = 1
    task = in_state(factories.make_task(), "validating")
    assert task.settle("gate_failed", by=BY, error_code="lint", error="unused import") == "retrying"
    in_state(task, "validating")
    assert task.settle("gate_failed", by=BY, error_code="types", error="no attribute") == "failed"
    assert (task.count_repairs, task.count_failures) == (1, 0)


@pytest.mark.parametrize(
    ("outcome", "kind", "holder"),
    [
        ("quota_wait", "quota", "provider"),
        ("budget_stop", "budget", "approvers"),
        ("needs_human", "question", "approvers"),
    ],
)
def test_what_waits_for_somebody_waits_under_a_hold_and_counts_nothing(outcome, kind, holder):
    task = running()
    assert task.settle(outcome, by=BY, error="ask first") == "retrying"
    hold = Hold.objects.get()
    assert (hold.scope_kind, hold.scope_ref, hold.kind, hold.holder) == ("task", task.pk, kind, holder)
    assert (hold.reason, hold.project_id) == ("ask first", task.run.project_id)
    assert (task.count_failures, task.count_infra, task.count_repairs) == (0, 0, 0)
    assert list(Hold.objects.covering(task)) == [hold]


def test_a_cancelled_attempt_ends_the_task_when_its_end_was_asked_for_and_is_due_again_else():
    ending, shut_down = running(), running()
    assert ending.settle("cancelled", by=BY, ending=True) == "cancelled"
    assert shut_down.settle("cancelled", by=BY, due_now=True) == "retrying"
    assert list(Task.objects.due()) == [shut_down]


def test_a_retry_is_due_when_its_time_has_come_and_is_queued_once():
    task = in_state(factories.make_task(), "retrying", retry_at=db_now() + timedelta(hours=1))
    assert not Task.objects.due().exists()
    Task.objects.filter(pk=task.pk).update(retry_at=db_now())
    assert list(Task.objects.due()) == [task]
    assert task.requeue(by=BY) is True
    assert (task.state, task.retry_at) == ("queued", None)
    with pytest.raises(InvalidMove):
        task.requeue(by=BY)


def test_a_retry_is_made_due_now_by_hand_and_told_as_an_override():
    task = in_state(factories.make_task(), "retrying", retry_at=db_now() + timedelta(hours=1))
    assert task.retry_now(by=BY, reason="fixed") is True
    assert task.retry_now(by=BY, reason="fixed") is False
    assert list(Task.objects.due()) == [task]
    event = Event.objects.about(task).last()
    assert (event.kind, event.severity, event.reason) == ("override.used", "warning", "fixed")
    with pytest.raises(InvalidMove):
        factories.make_task().retry_now(by=BY, reason="no")


# -- ends ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["pending", "blocked", "queued", "retrying", "validating"])
def test_a_task_without_a_lease_is_cancelled_at_once_and_once(state):
    task = in_state(factories.make_task(), state)
    assert task.cancel(by=BY, reason="not needed") is True
    assert task.cancel(by=BY, reason="not needed") is False
    task.refresh_from_db()
    assert (task.state, task.state_reason, task.retry_at) == ("cancelled", "not needed", None)
    assert kinds(task).count("task.cancelled") == 1


@pytest.mark.parametrize("state", ["completed", "failed"])
def test_what_has_ended_is_not_cancelled(state):
    task = in_state(factories.make_task(), state)
    with pytest.raises(InvalidMove):
        task.cancel(by=BY, reason="late")


def test_a_leased_task_is_asked_to_stop_and_is_cancelled_with_the_end_of_its_lease():
    lease = factories.make_lease()
    assert lease.task.cancel(by=BY, reason="not needed") is False
    lease.refresh_from_db()
    assert (Task.objects.get().state, lease.stop_label) == ("running", "stop requested")
    lease.finish("cancelled", by=BY)
    assert Task.objects.get().state == "cancelled"


def test_force_fail_owes_a_reason_and_waits_for_the_lease():
    validating = in_state(factories.make_task(), "validating")
    with pytest.raises(ReasonRequired):
        validating.force_fail(by=BY, reason="")
    assert validating.force_fail(by=BY, reason="hopeless") is True
    assert kinds(validating)[-2:] == ["override.used", "task.failed"]
    with pytest.raises(Refused):
        factories.make_lease().task.force_fail(by=BY, reason="hopeless")


def test_tasks_are_asked_for_in_words():
    states = ("pending", "blocked", "running", "completed")
    rows = {state: in_state(factories.make_task(), state) for state in states}
    assert set(Task.objects.unfinished()) == {rows["pending"], rows["blocked"], rows["running"]}
    assert list(Task.objects.blocked()) == [rows["blocked"]]
    Task.objects.filter(pk=rows["running"].pk).update(started_at=db_now() - timedelta(seconds=1801))
    assert list(Task.objects.stuck()) == [rows["running"]]
    one, two = make_pair()
    assert list(Task.objects.with_open_needs()) == [two]
    in_state(one, "completed")
    assert not Task.objects.with_open_needs().exists()
