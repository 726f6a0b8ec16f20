"""Runs: opened with their tasks, started, brought to an end once."""

import pytest
from django.utils import timezone

from pipeline import questions
from pipeline.ids import new_id
from pipeline.models import Event, Hold, Run, Task
from pipeline.refusals import InvalidField, ReasonRequired, Refused
from pipeline.states import InvalidMove, InvalidState
from tests import factories
from tests.factories import BY, in_state, task_spec

pytestmark = pytest.mark.django_db

CHAIN = [task_spec("one"), task_spec("two", depends_on=["one"]), task_spec("three")]


def kinds(row):
    """What the log says of the row."""
    return [event.kind for event in Event.objects.about(row)]


def states(run):
    """Key -> state of its tasks."""
    return dict(run.tasks.order_by("sequence").values_list("key", "state"))


def run_of(*specs, **fields):
    """A pending run of a workstream with these tasks."""
    return factories.make_run(factories.make_workstream(tasks=list(specs)), **fields)


# -- opening -------------------------------------------------------------------------------------------------------


def test_a_run_is_opened_with_a_pending_task_for_each_specification():
    run = run_of(*CHAIN)
    assert (run.state, run.started_at, run.ended_at, run.requested_by) == ("pending", None, None, BY.name)
    assert states(run) == {"one": "pending", "two": "pending", "three": "pending"}
    assert [(d.task.key, d.needs.key) for d in run.tasks.get(key="two").dependencies.all()] == [("two", "one")]
    history = list(Event.objects.filter(run_id=run.pk).order_by("seq").values_list("kind", flat=True))
    assert history == ["run.created"] + ["task.created"] * 3


def test_a_run_may_execute_an_ad_hoc_task_list_in_a_phase():
    run = factories.make_run(phase=factories.make_phase(), tasks=[task_spec("solo")])
    assert (run.workstream, states(run)) == (None, {"solo": "pending"})


def test_the_same_id_again_answers_with_the_run_that_is_there():
    workstream, pk = factories.make_workstream(), new_id()
    run = factories.make_run(workstream, pk=pk)
    assert factories.make_run(workstream, pk=pk) == run
    assert Run.objects.count() == Task.objects.count() == 1


def test_the_same_id_for_another_workstream_is_refused():
    run = factories.make_run()
    with pytest.raises(Refused) as refusal:
        factories.make_run(pk=run.pk)
    assert refusal.value.code == "duplicate_id"


@pytest.mark.parametrize(
    ("specs", "code"),
    [
        ([task_spec("one", depends_on=["two"]), task_spec("two", depends_on=["one"])], "circular_dependency"),
        ([task_spec("one", depends_on=["nobody"])], "unknown_dependency"),
        ([task_spec("one"), task_spec("one")], "invalid_plan"),
    ],
)
def test_a_plan_that_cannot_work_opens_no_run(specs, code):
    phase = factories.make_phase()
    with pytest.raises(Refused) as refusal:
        factories.make_run(phase=phase, tasks=specs)
    assert refusal.value.code == code
    assert not Run.objects.exists()
    assert not Event.objects.filter(kind="run.created").exists()


def test_nothing_starts_in_an_archived_project():
    workstream = factories.make_workstream()
    run = factories.make_run(workstream)
    workstream.phase.project.edit(by=BY, archived_at=timezone.now())
    for start in (lambda: factories.make_run(fresh(workstream)), lambda: fresh(run).start(by=BY)):
        with pytest.raises(Refused) as refusal:
            start()
        assert refusal.value.code == "project_archived"


def test_a_run_needs_a_workstream_or_a_phase():
    with pytest.raises(InvalidField):
        Run.objects.open(by=BY)


# -- starting ------------------------------------------------------------------------------------------------------


def test_a_start_queues_what_needs_nothing_and_blocks_the_rest():
    run = run_of(*CHAIN)
    assert run.start(by=BY) is True
    assert (run.state, run.started_at is not None) == ("running", True)
    assert states(run) == {"one": "queued", "two": "blocked", "three": "queued"}
    assert run.tasks.get(key="two").blocked_by == ["one"]
    assert kinds(run) == ["run.created", "run.started"]


def test_a_phase_is_entered_with_its_first_run_alone():
    workstream = factories.make_workstream()
    for _n in range(2):
        factories.make_run(workstream, started=True)
    assert kinds(workstream.phase).count("phase.entered") == 1


def test_a_run_is_started_once():
    run = factories.make_run(started=True)
    with pytest.raises(InvalidMove):
        run.start(by=BY)
    assert kinds(run) == ["run.created", "run.started"]


@pytest.mark.parametrize("scope", ["installation", "project", "workstream", "run"])
def test_what_is_held_does_not_start(scope):
    run = factories.make_run()
    ids = {"installation": "", "project": run.project_id, "workstream": run.workstream_id, "run": run.pk}
    hold = factories.make_hold(scope, ids[scope])
    with pytest.raises(Refused) as refusal:
        run.start(by=BY)
    assert (refusal.value.code, refusal.value.parts["hold"]) == ("held", hold.pk)
    hold.release(by=BY)
    assert run.start(by=BY) is True


def test_a_run_waits_for_the_workstreams_and_phases_that_it_needs():
    first = factories.make_workstream(factories.make_phase(key="plan"), key="draft")
    beside = factories.make_workstream(first.phase, key="next", depends_on=["plan/draft"])
    after = factories.make_workstream(factories.make_phase(first.phase.project, key="build", depends_on=["plan"]))
    waiting = [factories.make_run(beside), factories.make_run(after)]
    for run, missing in zip(waiting, (["plan/draft"], ["plan"]), strict=True):
        with pytest.raises(Refused) as refusal:
            run.start(by=BY)
        assert (refusal.value.code, refusal.value.parts["waiting_for"]) == ("prerequisites_open", missing)
    in_state(factories.make_run(first), "succeeded")
    assert waiting[0].start(by=BY) is True
    with pytest.raises(Refused):
        waiting[1].start(by=BY)
    in_state(waiting[0], "succeeded")
    assert waiting[1].start(by=BY) is True


# -- completing ----------------------------------------------------------------------------------------------------


def finished_work(run):
    """The run with all its tasks completed."""
    for task in run.tasks.all():
        in_state(task, "completed")
    return run


@pytest.mark.parametrize(("status", "exit_code"), [("succeeded", 0), ("failed", 1)])
def test_a_run_without_open_work_is_completed(status, exit_code):
    run = finished_work(factories.make_run(started=True))
    assert run.complete(status, by=BY, error="boom" if status == "failed" else "") is True
    run.refresh_from_db()
    assert (run.state, run.exit_code, run.ended_at is not None) == (status, exit_code, True)
    assert kinds(run)[-1] == f"run.{status}"
    with pytest.raises(InvalidMove):
        run.complete(status, by=BY)


def test_a_run_with_open_work_is_not_completed():
    run = factories.make_run(started=True)
    with pytest.raises(Refused) as refusal:
        run.complete("succeeded", by=BY)
    assert refusal.value.code == "run_has_open_work"
    finished_work(run)
    factories.make_step(run)
    with pytest.raises(Refused) as refusal:
        run.complete("succeeded", by=BY)
    assert refusal.value.code == "run_has_open_work"
    assert state_of(run) == "running"


def test_an_app_above_may_object_to_the_end(monkeypatch):
    monkeypatch.setattr(questions, "_answers", {})
    questions.answers("run.complete")(lambda **_facts: "patch_open")
    run = finished_work(factories.make_run(started=True))
    with pytest.raises(Refused, match="patch_open"):
        run.complete("succeeded", by=BY)
    assert state_of(run) == "running"


@pytest.mark.parametrize("status", ["canceled", "quarantined", "running", "over"])
def test_a_run_is_completed_as_succeeded_or_failed_alone(status):
    with pytest.raises(InvalidState):
        factories.make_run(started=True).complete(status, by=BY)


def test_a_phase_is_completed_when_each_of_its_workstreams_has_succeeded():
    one = factories.make_workstream()
    two = factories.make_workstream(one.phase)
    factories.make_workstream(one.phase, enabled=False)
    finished_work(factories.make_run(one, started=True)).complete("succeeded", by=BY)
    assert "phase.completed" not in kinds(one.phase)
    finished_work(factories.make_run(two, started=True)).complete("succeeded", by=BY)
    assert kinds(one.phase).count("phase.completed") == 1


# -- early ends ----------------------------------------------------------------------------------------------------


def test_a_pending_run_is_cancelled_with_its_tasks_and_once():
    run = run_of(*CHAIN)
    assert run.cancel(by=BY) is True
    assert run.cancel(by=BY) is False
    assert (run.state, run.started_at, run.state_reason) == ("canceled", None, f"cancelled by {BY}")
    assert set(states(run).values()) == {"cancelled"}
    assert kinds(run) == ["run.created", "run.winding_down", "run.canceled"]


def test_a_run_with_a_live_lease_winds_down_and_ends_after_it():
    lease = factories.make_lease(task=factories.make_task(run_of(*CHAIN)))
    run = Run.objects.get()
    assert run.cancel(by=BY, reason="enough") is True
    assert (run.state, run.ending_to, run.ending_reason) == ("running", "canceled", "enough")
    assert states(run) == {"one": "running", "two": "cancelled", "three": "cancelled"}
    lease.refresh_from_db()
    assert (lease.stop_requested_at is not None, lease.stop_outcome, lease.is_live) == (True, "cancelled", True)
    assert run.cancel(by=BY) is False
    lease.finish("cancelled", by=BY)
    run.refresh_from_db()
    run.finish_winding_down(by=BY)
    assert (state_of(run), set(states(run).values())) == ("canceled", {"cancelled"})
    assert kinds(run).count("run.canceled") == 1


def test_a_quarantine_owes_a_reason_and_keeps_it():
    run = factories.make_run(started=True)
    with pytest.raises(ReasonRequired):
        run.quarantine(by=BY, reason=" ")
    run.quarantine(by=BY, reason="looks odd")
    assert (run.state, run.state_reason, run.error_message) == ("quarantined", "looks odd", "looks odd")


def test_a_failed_run_that_is_quarantined_keeps_its_first_end():
    run = finished_work(factories.make_run(started=True))
    run.complete("failed", by=BY, error="boom")
    ended = run.ended_at
    assert run.quarantine(by=BY, reason="to be looked at") is True
    run.refresh_from_db()
    assert (run.state, run.ended_at, run.exit_code) == ("quarantined", ended, 1)


@pytest.mark.parametrize("state", ["succeeded", "quarantined", "canceled"])
def test_what_is_over_is_not_brought_to_another_end(state):
    run = in_state(factories.make_run(), state)
    for end in ("canceled", "failed", "quarantined"):
        if end != state:
            with pytest.raises(InvalidMove):
                run.wind_down(end, by=BY, reason="late")
    with pytest.raises(InvalidState):
        run.wind_down("succeeded", by=BY, reason="late")


def test_a_pending_run_cannot_be_wound_down_to_failed():
    run = factories.make_run()
    with pytest.raises(InvalidMove):
        run.wind_down("failed", by=BY, reason="no")
    assert kinds(run) == ["run.created"]


# -- pause and retry -----------------------------------------------------------------------------------------------


def test_a_run_is_held_and_released():
    run = factories.make_run(started=True)
    hold = run.hold(by=BY, reason="wait")
    assert list(Hold.objects.active()) == [hold]
    assert run.release(by=BY, reason="go") is True
    assert run.release(by=BY, reason="go") is False
    assert not Hold.objects.active().exists()


def test_a_finished_run_is_not_held():
    with pytest.raises(Refused) as refusal:
        in_state(factories.make_run(), "succeeded").hold(by=BY, reason="wait")
    assert refusal.value.code == "run_finished"


def test_a_retry_is_a_new_run_of_the_newest_revision():
    run = factories.make_run()
    with pytest.raises(Refused):
        run.retry(by=BY)
    run.cancel(by=BY)
    run.workstream.edit(by=BY, tasks=[task_spec("fresh")])
    again = fresh(run).retry(by=BY)
    assert (again.retry_of, again.state, again.workstream_revision) == (run, "pending", 2)
    assert states(again) == {"fresh": "pending"}


def test_the_retry_of_an_ad_hoc_run_has_the_same_tasks():
    run = factories.make_run(phase=factories.make_phase(), tasks=CHAIN)
    run.cancel(by=BY)
    again = run.retry(by=BY)
    assert list(states(again)) == ["one", "two", "three"]
    assert [d.needs.key for d in again.tasks.get(key="two").dependencies.all()] == ["one"]


def test_runs_are_asked_for_in_words():
    running, done = factories.make_run(started=True), in_state(factories.make_run(), "canceled")
    assert list(Run.objects.active()) == [running]
    assert list(Run.objects.finished()) == [done]
    assert list(Run.objects.of(done.project)) == [done]
    finished_work(running)
    assert set(Run.objects.with_open_work()) == {done}


def fresh(row):
    """The row as the database holds it now, with nothing remembered."""
    return type(row)._base_manager.get(pk=row.pk)


def state_of(row):
    """What the database holds."""
    return fresh(row).state
