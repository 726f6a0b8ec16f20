"""Every machine of the house, judged pair by pair from its own table: Python, PostgreSQL and the log say the same."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from costs.models import Reservation
from gates.models import GateRun
from ledger.models import MergeQueue, Patch, Push, QueueItem
from pipeline import events
from pipeline.ids import new_id
from pipeline.models import Event, Hold, Run, StepAttempt, Task
from pipeline.refusals import NotFound
from pipeline.states import NOW, InvalidMove, InvalidState, Plus, Stateful
from tests import factories
from tests.factories import BY, STATEFUL, columns_for, in_state, plain_columns
from workers.models import Worker

pytestmark = pytest.mark.django_db

Model = type[Stateful]
Pair = tuple[Model, str, str]

MODELS = sorted(STATEFUL, key=lambda model: model.__name__)
PAIRS: list[Pair] = [(model, str(a), str(b)) for model in MODELS for a, b in itertools.product(model.MOVES, repeat=2)]
SAME = [pair for pair in PAIRS if pair[1] == pair[2]]
PLAIN = [(model, a, b) for model, a, b in PAIRS if b in model.MOVES[a]]
KEYED = [(model, a, b) for model, a, b in PAIRS if (a, b) in model.KEYED]
ABSENT = [pair for pair in PAIRS if pair not in {*SAME, *PLAIN, *KEYED}]

# The state tables of the domain (domain.md §2), written out once more by hand. `⚿ name` marks the key of a keyed arrow.
TABLES: dict[Model, str] = {
    Run: """
        pending              running      run.started
        pending,running      canceled     run.canceled
        running              succeeded    run.succeeded
        running              failed       run.failed
        running,failed       quarantined  run.quarantined
    """,
    Task: """
        pending              queued       task.queued
        pending              blocked      task.blocked
        blocked              pending      task.unblocked
        queued               running      task.started
        running              validating   task.validating
        running              retrying     task.retrying
        running              failed       task.failed
        validating           completed    task.completed
        validating           retrying     task.retrying
        validating           failed       task.failed
        retrying             queued       task.queued
        pending,blocked,queued,retrying,validating,running  cancelled  task.cancelled
    """,
    StepAttempt: """
        pending              running      step.started
        pending,running      canceled     step.canceled
        running              succeeded    step.succeeded
        running              failed       step.failed
    """,
    Hold: """
        active               released     hold.released
    """,
    Worker: """
        idle                 busy         worker.assigned
        busy                 idle         worker.released
        idle,busy            paused       worker.paused
        paused               idle         worker.resumed
        paused               busy         worker.resumed  ⚿ resume
        idle,busy,paused     crashed      worker.crashed
        idle,busy,paused     stopped      worker.stopped
    """,
    Reservation: """
        held                 settled      reservation.settled
        held                 released     reservation.released
    """,
    Push: """
        waiting,held         pushed       push.pushed
        waiting              held         push.held
        held                 waiting      push.resumed
    """,
    Patch: """
        created,apply_failed validated    patch.validated
        created              apply_failed patch.apply_failed
        validated            queued       patch.queued
        apply_failed         queued       patch.queued
        queued               applied      patch.applied
        queued               apply_failed patch.apply_failed
        applied              verified     patch.verified
        applied              apply_failed patch.apply_failed
        verified             committed    patch.committed
        applied,verified     rolled_back  patch.rolled_back
        created,validated,queued,applied,apply_failed,verified  quarantined  patch.quarantined
        created,validated,queued,apply_failed,quarantined       dropped      patch.dropped
        applied,verified     dropped      patch.dropped
        applied,verified     queued       patch.requeued     ⚿ rebase
        validated,queued,applied,verified created patch.rejudged ⚿ judge_again
        quarantined          created      patch.released     ⚿ release
        committed            rolled_back  patch.rolled_back  ⚿ reverse_landed
    """,
    MergeQueue: """
        running              paused       merge_queue.paused
        paused               running      merge_queue.resumed
        running              draining     merge_queue.draining
        draining             paused       merge_queue.paused
        draining             running      merge_queue.resumed
    """,
    QueueItem: """
        waiting              building     queue_item.building
        building             testing      queue_item.testing
        testing              passing      queue_item.passing
        building,testing     failing      queue_item.failing
        waiting              failing      queue_item.failing
        building,testing,passing,failing  waiting  queue_item.restarted
        passing              landed       queue_item.landed
        failing              evicted      queue_item.evicted
        waiting,building,testing,passing,failing  withdrawn  queue_item.withdrawn
    """,
    GateRun: """
        pending              running      gate_run.started
        running              passed       gate_run.passed
        running              failed       gate_run.failed
        running              error        gate_run.error
        pending,running      skipped      gate_run.skipped
    """,
}

BIRTHS: dict[tuple[Model, str], str] = {
    (Run, "pending"): "run.created",
    (Task, "pending"): "task.created",
    (StepAttempt, "pending"): "step.created",
    (StepAttempt, "running"): "step.started",
    (Hold, "active"): "hold.placed",
    (Worker, "idle"): "worker.started",
    (Patch, "created"): "patch.created",
    (MergeQueue, "running"): "merge_queue.added",
    (QueueItem, "waiting"): "queue_item.waiting",
    (GateRun, "pending"): "gate_run.created",
    (Push, "waiting"): "push.created",
    (Reservation, "held"): "reservation.granted",
}

TERMINAL: dict[Model, set[str]] = {
    Run: {"succeeded", "quarantined", "canceled"},
    Task: {"completed", "failed", "cancelled"},
    StepAttempt: {"succeeded", "failed", "canceled"},
    Hold: {"released"},
    Worker: {"stopped", "crashed"},
    Patch: {"committed", "rolled_back", "dropped"},
    MergeQueue: set(),
    QueueItem: {"landed", "evicted", "withdrawn"},
    GateRun: {"passed", "failed", "skipped", "error"},
    Push: {"pushed"},
    Reservation: {"settled", "released"},
}


def name(value: object) -> str:
    """How a pair's parts stand in the id of its test."""
    return value.__name__ if isinstance(value, type) else str(value)


def born(model: Model) -> Any:
    """A fresh row of the model, with its first event."""
    return STATEFUL[model][0]()


def told(row: Stateful) -> list[tuple[str, Any, Any]]:
    """What the log says of the row: kind, state before, state after."""
    return [
        (event.kind, (event.before or {}).get("state"), (event.after or {}).get("state"))
        for event in Event.objects.about(row)
    ]


def guard_named(refusal: BaseException) -> str:
    """The name of the database guard that refused."""
    return str(refusal.__cause__.diag.constraint_name)  # type: ignore[union-attr]


def state_in_database(row: Stateful) -> str:
    """What the database holds, whatever the object says."""
    return str(type(row)._base_manager.values_list("state", flat=True).get(pk=row.pk))


def force_deferred_guards() -> None:
    """Let the guards that wait for the commit judge now."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")


def guard_at_commit(change: Callable[[], object]) -> str:
    """The name of the guard that refuses the commit of `change`, which is undone; "" when none does."""
    try:
        with transaction.atomic():
            change()
            force_deferred_guards()
            transaction.set_rollback(True)
    except IntegrityError as refusal:
        return guard_named(refusal)
    return ""


def parametrize(pairs: list[Pair]) -> pytest.MarkDecorator:
    """One test for each pair, named `Model-from-to`."""
    return pytest.mark.parametrize(("model", "a", "b"), pairs, ids=name)


# -- the tables ----------------------------------------------------------------------------------------------------


def test_every_stateful_model_is_judged_here():
    found, waiting = set(), [Stateful]
    while waiting:
        for model in waiting.pop().__subclasses__():
            waiting.append(model)
            if not model._meta.abstract:
                found.add(model)
    assert found == set(STATEFUL) == set(TABLES)


@pytest.mark.parametrize("pairs", [len(PAIRS)], ids="{}-pairs".format)
def test_every_pair_of_states_is_judged_once(pairs):
    assert len(SAME) + len(PLAIN) + len(KEYED) + len(ABSENT) == pairs
    assert len({*SAME, *PLAIN, *KEYED, *ABSENT}) == pairs


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_the_table_is_that_of_the_domain(model):
    plain, keyed, kinds = set(), {}, {}
    for line in TABLES[model].strip().splitlines():
        arrow, _mark, key = line.partition("⚿")
        sources, to, kind = arrow.split()
        for source in sources.split(","):
            kinds[source, to] = kind
            if key:
                keyed[source, to] = key.strip()
            else:
                plain.add((source, to))
    assert {(str(a), str(b)) for a, targets in model.MOVES.items() for b in targets} == plain
    assert {(str(a), str(b)): key for (a, b), key in model.KEYED.items()} == keyed
    assert {(a, b): model.event_kind(a, b) for a, b in kinds} == kinds
    assert {str(state) for state in model.MOVES} == {str(value) for value in model.State.values}
    assert {(model, str(state)) for state in model.INITIAL} == {birth for birth in BIRTHS if birth[0] is model}
    assert {str(state) for state in model.MOVES if model.is_terminal(state)} == TERMINAL[model]


# -- arrows --------------------------------------------------------------------------------------------------------


@parametrize(PLAIN)
def test_an_arrow_is_taken_and_told_once(model, a, b):
    row = in_state(born(model), a)
    before = told(row)
    assert row.move(b, by=BY, reason="because", **columns_for(row, b)) is True
    assert row.state == state_in_database(row) == b
    assert told(row) == [*before, (model.event_kind(a, b), a, b)]
    last = Event.objects.about(row).last()
    assert (last.actor_name, last.reason) == (BY.name, "because")
    force_deferred_guards()


@parametrize(KEYED)
def test_a_keyed_arrow_opens_for_its_key_alone(model, a, b):
    row = in_state(born(model), a)
    before = told(row)
    for key in (None, "", "another"):
        with pytest.raises(InvalidMove):
            row.move(b, by=BY, key=key, **columns_for(row, b))
    assert (state_in_database(row), told(row)) == (a, before)
    assert row.move(b, by=BY, key=model.KEYED[a, b], **columns_for(row, b)) is True
    assert state_in_database(row) == b
    assert told(row) == [*before, (model.event_kind(a, b), a, b)]
    force_deferred_guards()


@parametrize(ABSENT)
def test_an_absent_arrow_is_refused_by_python_and_by_postgres(model, a, b):
    row = in_state(born(model), a)
    before = told(row)
    keys = {None, *model.KEYED.values()}
    for key in keys:
        with pytest.raises(InvalidMove) as refusal:
            row.move(b, by=BY, key=key, **columns_for(row, b))
        assert refusal.value.parts == {"state": a, "allowed": sorted(str(state) for state in model.MOVES[a])}
        assert refusal.value.status == 409
    with pytest.raises(IntegrityError) as raw, transaction.atomic():
        model._base_manager.filter(pk=row.pk).update(state=b, **plain_columns(row, b))
    assert guard_named(raw.value) == "moves"
    assert (state_in_database(row), told(row)) == (a, before)


@parametrize(SAME)
def test_a_move_to_where_the_row_is_changes_nothing_and_tells_nothing(model, a, b):
    row = in_state(born(model), a)
    before, version = told(row), row.version
    assert row.move(b, by=BY) is False
    with pytest.raises(InvalidMove):
        row.move(b, by=BY, working=True)
    row.refresh_from_db()
    assert (row.state, row.version, told(row)) == (a, version, before)


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_a_state_that_is_none_is_refused_as_such(model):
    row = born(model)
    before = told(row)
    with pytest.raises(InvalidState) as refusal:
        row.move("nowhere", by=BY)
    assert (refusal.value.code, refusal.value.status) == ("invalid_state", 422)
    assert told(row) == before


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_a_row_that_is_not_there_is_not_found(model):
    to = sorted(model.MOVES)[0]
    with pytest.raises(NotFound) as refusal:
        model(pk=new_id()).move(to, by=BY)
    assert refusal.value.code == f"{model.noun()}_not_found"


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_only_from_narrows_the_arrows(model):
    a, b = next((str(a), str(b)) for a in model.INITIAL for b in sorted(model.MOVES[a]))
    row = in_state(born(model), a)
    with pytest.raises(InvalidMove):
        row.move(b, by=BY, only_from=(b,), **columns_for(row, b))
    assert row.move(b, by=BY, only_from=(a,), **columns_for(row, b)) is True


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_the_database_decides_and_not_the_object_in_hand(model):
    a, b = next((str(a), str(b)) for a in model.INITIAL for b in sorted(model.MOVES[a]))
    stale = in_state(born(model), a)
    fresh = model._base_manager.get(pk=stale.pk)
    fresh.move(b, by=BY, **columns_for(fresh, b))
    before = told(stale)
    assert stale.state == a
    assert stale.move(b, by=BY, **columns_for(stale, b)) is False
    assert stale.state == b
    assert told(stale) == before


# -- birth ---------------------------------------------------------------------------------------------------------


def twin(row: Any) -> Any:
    """An unsaved copy of `row` that differs in what must be unique."""
    different: dict[Model, dict[str, Any]] = {
        Task: {"key": f"twin-{factories.number()}"},
        StepAttempt: {"sequence": 1000 + factories.number()},
        Hold: {"ref": str(factories.number())},
        Patch: {"ledger_id": new_id(), "sha256": f"{factories.number():064x}"},
        MergeQueue: {"target_branch": f"branch-{factories.number()}"},
    }
    if isinstance(row, QueueItem):
        different[QueueItem] = {"position": row.position + 1, "patch": factories.make_patch(row.patch.project)}
    if isinstance(row, Push):
        different[Push] = {"patch": factories.make_patch(row.patch.project)}
    values = {field.name: getattr(row, field.name) for field in row._meta.concrete_fields if field.name != "id"}
    return type(row)(**{**values, **different.get(type(row), {})})


@pytest.mark.parametrize(
    ("model", "state"), [(model, str(state)) for model in MODELS for state in model.MOVES], ids=name
)
def test_a_row_is_born_in_an_initial_state_only(model, state):
    row = twin(in_state(born(model), state))
    if state in model.INITIAL:
        row.save(force_insert=True)
        row.born(by=BY, kind=BIRTHS[model, state])
        force_deferred_guards()
        assert told(row) == [(BIRTHS[model, state], None, state)]
        return
    with pytest.raises(IntegrityError) as raw, transaction.atomic():
        row.save(force_insert=True)
    assert guard_named(raw.value) == "birth"
    assert not model._base_manager.filter(pk=row.pk).exists()


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_the_verb_of_birth_tells_it_once(model):
    row = born(model)
    assert told(row) == [(BIRTHS[model, row.state], None, row.state)]
    force_deferred_guards()


# -- what nobody told ----------------------------------------------------------------------------------------------


def first_arrow(model: Model) -> tuple[str, str]:
    """An arrow that leaves an initial state."""
    return next((str(a), str(b)) for a in sorted(model.INITIAL) for b in sorted(model.MOVES[a]))


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_a_move_that_nobody_told_cannot_be_committed(model):
    a, b = first_arrow(model)
    row = in_state(born(model), a)
    columns = plain_columns(row, b)
    assert guard_at_commit(lambda: model._base_manager.filter(pk=row.pk).update(state=b, **columns)) == "told"
    assert guard_at_commit(lambda: row.move(b, by=BY, **columns)) == ""


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_an_event_that_tells_another_state_does_not_count(model):
    a, b = first_arrow(model)
    row = in_state(born(model), a)
    columns = plain_columns(row, b)

    def move_and_tell_another() -> None:
        model._base_manager.filter(pk=row.pk).update(state=b, **columns)
        events.record(model.event_kind(a, b), row, by=BY, before={"state": a}, after={"state": "elsewhere"})

    assert guard_at_commit(move_and_tell_another) == "told"


@pytest.mark.parametrize("model", MODELS, ids=name)
def test_a_birth_that_nobody_told_cannot_be_committed(model):
    row = twin(born(model))
    assert guard_at_commit(lambda: row.save(force_insert=True)) == "told"


@pytest.mark.django_db(transaction=True)
def test_the_commit_itself_refuses_what_nobody_told():
    run = born(Run)
    with pytest.raises(IntegrityError) as refusal:
        Run.objects.filter(pk=run.pk).update(state="canceled", ended_at=run.created_at)
    assert guard_named(refusal.value) == "told"
    assert state_in_database(run) == "pending"


# -- columns of a move ---------------------------------------------------------------------------------------------


def test_a_move_writes_its_columns_with_the_state_and_tells_both():
    task = in_state(factories.make_task(), "queued")
    assert task.move("running", by=BY, generation=Plus(1), started_at=NOW, state_reason="go") is True
    stored = Task.objects.get(pk=task.pk)
    assert (stored.generation, stored.state_reason, stored.started_at) == (1, "go", task.started_at)
    event = Event.objects.about(task).last()
    assert event.before == {"state": "queued", "generation": 0, "started_at": None, "state_reason": ""}
    assert event.after["generation"] == 1
    assert event.after["started_at"] == task.started_at.isoformat().replace("+00:00", "Z")


def test_plus_counts_from_the_database_and_not_from_a_stale_object():
    task = in_state(factories.make_task(), "queued")
    stale = Task.objects.get(pk=task.pk)
    Task.objects.filter(pk=task.pk).update(generation=41)
    stale.move("running", by=BY, generation=Plus(1))
    assert stale.generation == Task.objects.get(pk=task.pk).generation == 42


def test_a_move_whose_columns_are_refused_leaves_state_and_log_as_they_were():
    run = born(Run)
    before = told(run)
    with pytest.raises(IntegrityError) as refusal, transaction.atomic():
        run.move("running", by=BY, started_at=None)
    assert guard_named(refusal.value) == "run_started_iff_it_ran"
    assert (state_in_database(run), told(run)) == ("pending", before)


def test_a_column_that_is_a_row_is_told_by_its_id():
    worker, task = factories.make_worker(), factories.make_task()
    worker.move("busy", by=BY, current_task=task)
    assert Worker.objects.get(pk=worker.pk).current_task_id == task.pk
    assert Event.objects.about(worker).last().after == {"state": "busy", "current_task_id": task.pk}
