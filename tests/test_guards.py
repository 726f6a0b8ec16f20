"""What PostgreSQL holds for us whoever writes: history stays, versions rise, columns and states agree."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, models, transaction

from costs.models import Budget, BudgetPeriod, CostRecord, Price, Reservation
from gates.models import Finding, FlakyTest, Gate, GateRun, TestResult
from ledger.models import MergeQueue, Patch, PatchContent, PatchPolicy, QueueItem
from pipeline import events
from pipeline.clock import db_now
from pipeline.ids import new_id
from pipeline.models import (
    ApiKey,
    Event,
    EventStream,
    ExecutionRequest,
    Hold,
    Phase,
    Project,
    PromptInstance,
    RoutingDecision,
    Run,
    StepAttempt,
    Task,
    TaskDependency,
    Tool,
    Workstream,
)
from pipeline.rows import Kept, Row
from tests import factories
from tests.factories import BY, in_state
from workers.models import Lease, Worker

pytestmark = pytest.mark.django_db


def refused_by(change: Any) -> str:
    """The name of the guard or constraint that refuses `change`; "" when none does. The change is undone."""
    try:
        with transaction.atomic():
            change()
            transaction.set_rollback(True)
    except IntegrityError as refusal:
        return str(refusal.__cause__.diag.constraint_name)  # type: ignore[union-attr]
    return ""


def execute(sql: str, *values: Any) -> None:
    """Run a statement past Django's models."""
    with connection.cursor() as cursor:
        cursor.execute(sql, values)


def partition_of(event: Event) -> str:
    """The table in which an event really lies."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tableoid::regclass::text FROM pipeline_event WHERE id = %s::uuid", [uuid_of(event)])
        (name,) = cursor.fetchone()
    return str(name)


def uuid_of(row: Any) -> str:
    """The row's id as the database writes it."""
    field = row._meta.pk
    return str(field.get_db_prep_value(row.pk, connection))


# -- the log -------------------------------------------------------------------------------------------------------


@pytest.fixture
def event() -> Event:
    """Some event that is a day old news."""
    return Event.objects.about(factories.make_project()).get()


def test_an_event_is_not_saved_anew(event):
    event.reason = "something else"
    assert refused_by(event.save) == "written_once"


def test_an_event_is_not_changed_by_a_query(event):
    assert refused_by(lambda: Event.objects.filter(pk=event.pk).update(message="no")) == "written_once"
    assert (
        refused_by(lambda: Event.objects.bulk_update([changed(event, kind="run.failed")], ["kind"])) == "written_once"
    )


@pytest.mark.parametrize("column", [f.name for f in Event._meta.fields])
def test_of_an_event_only_how_it_was_handled_changes(event, column):
    other: dict[str, Any] = {
        "id": new_id(), "subject_id": new_id(), "seq": 0, "xid": 1, "own_xid": 1, "epoch": 7, "stream_seq": 99,
        "before": {"a": 1}, "after": {"a": 1}, "data": {"a": 1}, "attempts": 5,
        **{name: db_now() for name in ("created_at", "handled_at", "due_at")},
        **{name: new_id() for name in events.CORRELATION},
    }  # fmt: skip
    expected = "" if column in ("handled_at", "due_at", "attempts") else "written_once"
    value = other.get(column, "other")
    assert refused_by(lambda: Event.objects.filter(pk=event.pk).update(**{column: value})) == expected


def test_an_event_is_not_deleted_by_any_road(event):
    assert refused_by(event.delete) == "never_deleted"
    assert refused_by(Event.objects.filter(pk=event.pk).delete) == "never_deleted"
    assert refused_by(lambda: execute("DELETE FROM pipeline_event")) == "never_deleted"
    assert Event.objects.filter(pk=event.pk).exists()


def test_a_partition_by_its_own_name_is_guarded_like_the_table(event):
    table = partition_of(event)
    assert table.startswith("pipeline_event_2")
    assert refused_by(lambda: execute(f"UPDATE {table} SET message = 'no'")) == "written_once"
    assert refused_by(lambda: execute(f"DELETE FROM {table}")) == "never_deleted"


def test_an_event_cannot_be_slipped_in_with_a_place_of_its_own_choice(event):
    columns = ", ".join(f'"{f.column}"' for f in Event._meta.fields if f.name != "id")
    forged = new_id()
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO pipeline_event (id, {columns}) SELECT %s::uuid, {columns} FROM pipeline_event "
            "WHERE id = %s::uuid",
            [Event._meta.pk.get_db_prep_value(forged, connection), uuid_of(event)],
        )
    slipped = Event.objects.get(pk=forged)
    assert slipped.stream_seq == event.stream_seq + 1
    assert slipped.prev_hash == event.hash
    assert slipped.seq > event.seq


@pytest.mark.parametrize(
    "table", ["pipeline_event", "a partition", "pipeline_eventstream", "ledger_patchcontent", "gates_testresult"]
)
def test_what_is_history_is_not_truncated(event, table):
    name = partition_of(event) if table == "a partition" else table

    def truncate() -> None:
        execute("SET LOCAL signalbox.allow_truncate = 'off'")
        execute(f"TRUNCATE {name} CASCADE")

    assert refused_by(truncate) == "never_truncated"


# -- rows that are written once ------------------------------------------------------------------------------------


def test_which_models_are_written_once():
    found = {
        model
        for model in subclasses(Kept)
        if {"written_once", "never_deleted", "never_truncated"} <= {t.name for t in triggers(model)}
    }
    assert found >= {PromptInstance, ExecutionRequest, RoutingDecision, PatchContent, TestResult}


def make_prompt() -> PromptInstance:
    """What some tool was told."""
    return PromptInstance.objects.create(
        template_id="t", target_tool="shell", kind="research", sections=[], text="Do it", sha256="0" * 64
    )


def make_request() -> ExecutionRequest:
    """What some attempt is asked."""
    phase = factories.make_phase()
    return ExecutionRequest.objects.create(
        project=phase.project, phase=phase, task_kind="research", tool=factories.make_tool(), created_by="tester"
    )


def make_decision() -> RoutingDecision:
    """Why some task went to some tool."""
    task = factories.make_task()
    return RoutingDecision.objects.create(
        task=task, run=task.run, strategy="fixed", candidates=[], chosen=factories.make_tool(), reason="the only one"
    )


def make_result() -> TestResult:
    """What some test said."""
    return TestResult.objects.create(gate_run=factories.make_gate_run(), test_key="k", name="n", outcome="pass")


def make_finding() -> Finding:
    """What some analyser found."""
    return Finding.objects.create(
        gate_run=factories.make_gate_run(), rule_id="E1", level="error", fingerprint="f", is_new=True, message="m"
    )


WRITTEN_ONCE: dict[str, tuple[Any, dict[str, Any]]] = {
    "prompt": (make_prompt, {"text": "Do something else"}),
    "request": (make_request, {"task_kind": "repair"}),
    "routing decision": (make_decision, {"reason": "another"}),
    "patch content": (lambda: factories.make_patch().content, {"diff_text": "another"}),
    "test result": (make_result, {"outcome": "fail"}),
    "finding": (make_finding, {"is_new": False}),
}


@pytest.mark.parametrize("noun", WRITTEN_ONCE)
def test_a_row_that_is_written_once_is_neither_changed_nor_deleted(noun):
    make, change = WRITTEN_ONCE[noun]
    row = make()
    rows = type(row).objects.filter(pk=row.pk)
    same = {name: getattr(row, name) for name in change}
    assert refused_by(lambda: rows.update(**change)) == "written_once"
    assert refused_by(lambda: changed(row, **change).save()) == "written_once"
    assert refused_by(rows.delete) == "never_deleted"
    assert refused_by(lambda: rows.update(**same)) == ""


# -- versions ------------------------------------------------------------------------------------------------------


def _make_period():
    """A running period."""
    of = factories.make_budget()
    factories.make_reservation(of.project)
    return of.running()


VERSIONED: dict[type[Row], tuple[Any, dict[str, Any]]] = {
    Project: (factories.make_project, {"name": "Other"}),
    Phase: (factories.make_phase, {"name": "Other"}),
    Workstream: (factories.make_workstream, {"name": "Other"}),
    Tool: (factories.make_tool, {"order": 7}),
    ApiKey: (lambda: factories.make_key().row, {"name": "other"}),
    Run: (factories.make_run, {"trigger_ref": "other"}),
    Task: (factories.make_task, {"priority": 9}),
    StepAttempt: (factories.make_step, {"tool_run_id": "other"}),
    Hold: (factories.make_hold, {"reason": "other"}),
    Worker: (factories.make_worker, {"tasks_completed": 3}),
    Lease: (factories.make_lease, {"stop_reason": "other"}),
    Patch: (factories.make_patch, {"summary": "other"}),
    PatchPolicy: (factories.make_policy, {"enabled": False}),
    MergeQueue: (factories.make_merge_queue, {"head_limit_seconds": 7}),
    QueueItem: (factories.make_queue_item, {"restarts": 7}),
    Gate: (factories.make_gate, {"name": "Other"}),
    GateRun: (factories.make_gate_run, {"runner": "other"}),
    FlakyTest: (factories.make_flaky_test, {"owner": "other"}),
    Price: (factories.make_price, {"source": "other"}),
    CostRecord: (factories.make_cost, {"model": "other"}),
    Budget: (factories.make_budget, {"timezone": "Europe/Berlin"}),
    BudgetPeriod: (_make_period, {"spent": 1}),
    Reservation: (factories.make_reservation, {"key": "other"}),
}


def test_every_row_that_changes_has_the_trigger_that_counts_its_versions():
    guards = {model: {trigger.name for trigger in triggers(model)} for model in subclasses(Row)}
    # What is written once has no second version.
    assert {model for model, names in guards.items() if not names & {"raise_version", "written_once"}} == set()


@pytest.mark.parametrize("model", VERSIONED, ids=lambda model: model.__name__)
def test_a_bulk_update_raises_version_and_time(model):
    make, change = VERSIONED[model]
    row = make()
    row.refresh_from_db()
    model._base_manager.filter(pk=row.pk).update(**change)
    after = model._base_manager.get(pk=row.pk)
    assert after.version == row.version + 1
    assert after.updated_at > row.updated_at
    model._base_manager.filter(pk=row.pk).update(**change)
    assert model._base_manager.get(pk=row.pk).version == after.version


def test_nobody_sets_the_version():
    project = factories.make_project()
    Project.objects.filter(pk=project.pk).update(name="Other", version=99)
    assert Project.objects.get(pk=project.pk).version == project.version + 1 == 2


QUIET: dict[str, tuple[Any, dict[str, Any]]] = {
    "worker": (
        factories.make_worker,
        {"process_seen_at": db_now, "transport_seen_at": db_now, "progress_at": db_now, "activity": "in_tool"},
    ),
    "lease": (factories.make_lease, {"expires_at": db_now, "renewed_at": db_now}),
    "gate run": (factories.make_gate_run, {"seen_at": db_now}),
    "flaky test": (factories.make_flaky_test, {"consecutive_passes": lambda: 3}),
}


@pytest.mark.parametrize("noun", QUIET)
def test_the_clocks_of_a_heartbeat_are_no_new_version(noun):
    make, clocks = QUIET[noun]
    row = make()
    row.refresh_from_db()
    values = {name: value() if callable(value) else value for name, value in clocks.items()}
    type(row).objects.filter(pk=row.pk).update(**values)
    after = type(row).objects.get(pk=row.pk)
    assert {name: getattr(after, name) for name in values} == values
    assert (after.version, after.updated_at) == (row.version, row.updated_at)


# -- columns that must agree ---------------------------------------------------------------------------------------

LATER = timedelta(hours=1)

Case = tuple[str, Any, str, dict[str, Any]]
# constraint, how the row is made, state to put it into, the columns that contradict.
CONTRADICTIONS: list[Case] = [
    ("run_started_iff_it_ran", factories.make_run, "running", {"started_at": None}),
    ("run_started_iff_it_ran", factories.make_run, "pending", {"started_at": db_now}),
    ("run_ended_iff_finished", factories.make_run, "running", {"ended_at": db_now}),
    ("run_ended_iff_finished", factories.make_run, "canceled", {"ended_at": None}),
    ("run_success_exits_zero", factories.make_run, "succeeded", {"exit_code": 3}),
    ("run_time_runs_forward", factories.make_run, "canceled", {"ended_at": lambda: db_now() - LATER}),
    ("task_retry_at_iff_retrying", factories.make_task, "retrying", {"retry_at": None}),
    ("task_retry_at_iff_retrying", factories.make_task, "queued", {"retry_at": db_now}),
    ("task_completed_at_iff_ended", factories.make_task, "failed", {"completed_at": None}),
    ("task_completed_at_iff_ended", factories.make_task, "running", {"completed_at": db_now}),
    ("task_priority_one_to_ten", factories.make_task, "pending", {"priority": 0}),
    ("task_priority_one_to_ten", factories.make_task, "pending", {"priority": 11}),
    ("task_max_attempts_from_one", factories.make_task, "pending", {"max_attempts": 0}),
    ("task_timeout_from_one", factories.make_task, "pending", {"timeout_seconds": 0}),
    ("step_outcome_iff_ended", factories.make_step, "running", {"outcome": "success"}),
    ("step_outcome_iff_ended", factories.make_step, "succeeded", {"outcome": None}),
    ("step_outcome_iff_ended", factories.make_step, "succeeded", {"outcome": "task_failed"}),
    ("step_outcome_iff_ended", factories.make_step, "failed", {"outcome": "cancelled"}),
    ("step_outcome_iff_ended", factories.make_step, "canceled", {"outcome": "infra_lost"}),
    ("step_time_runs_forward", factories.make_step, "failed", {"started_at": lambda: db_now() + LATER}),
    ("step_sequence_from_one", factories.make_step, "pending", {"sequence": 0}),
    ("hold_says_why", factories.make_hold, "active", {"reason": ""}),
    ("hold_names_holder", factories.make_hold, "active", {"holder": ""}),
    ("hold_released_has_time", factories.make_hold, "released", {"released_at": None}),
    ("hold_released_has_time", factories.make_hold, "active", {"released_at": db_now}),
    ("worker_busy_has_task", factories.make_worker, "busy", {"current_task": None}),
    ("worker_busy_has_task", factories.make_worker, "idle", {"current_task": factories.make_task}),
    ("worker_busy_has_task", factories.make_worker, "crashed", {"current_task": factories.make_task}),
    ("worker_crashed_has_time", factories.make_worker, "crashed", {"crashed_at": None}),
    ("worker_crashed_has_time", factories.make_worker, "idle", {"crashed_at": db_now}),
    ("worker_stopped_has_time", factories.make_worker, "stopped", {"stopped_at": None}),
    ("worker_stopped_has_time", factories.make_worker, "paused", {"stopped_at": db_now}),
    ("patch_quarantined_has_reason", factories.make_patch, "quarantined", {"quarantine_reason": ""}),
    ("patch_quarantined_has_reason", factories.make_patch, "quarantined", {"quarantined_at": None}),
    ("patch_quarantined_has_reason", factories.make_patch, "quarantined", {"quarantine_owner": ""}),
    ("patch_valid_before_queue", factories.make_patch, "validated", {"format_ok": False}),
    ("patch_valid_before_queue", factories.make_patch, "queued", {"scope_ok": False}),
    ("patch_valid_before_queue", factories.make_patch, "applied", {"constraints_ok": False}),
    ("patch_tested_before_commit", factories.make_patch, "verified", {"tests_ran": False}),
    ("patch_tested_before_commit", factories.make_patch, "committed", {"tests_passed": False}),
    (
        "patch_committed_is_what_was_tested",
        factories.make_patch,
        "committed",
        {"custody": "managed", "committed_tree": "3" * 40},
    ),
    (
        "patch_committed_is_what_was_tested",
        factories.make_patch,
        "committed",
        {"custody": "managed", "commit_sha": ""},
    ),
    (
        "patch_committed_is_what_was_tested",
        factories.make_patch,
        "committed",
        {"custody": "managed", "committed_tree": "", "tested_tree": ""},
    ),
    ("patch_committed_has_time", factories.make_patch, "committed", {"committed_at": None}),
    ("queueitem_ended_has_time", factories.make_queue_item, "landed", {"finished_at": None}),
    ("queueitem_ended_has_time", factories.make_queue_item, "waiting", {"finished_at": db_now}),
    ("mergequeue_window_keeps_bounds", factories.make_merge_queue, "running", {"window_size": 2}),
    ("mergequeue_window_keeps_bounds", factories.make_merge_queue, "running", {"window_size": 0, "window_floor": 0}),
    ("gaterun_decided_says_how", factories.make_gate_run, "passed", {"exit_code": None}),
    ("gaterun_decided_says_how", factories.make_gate_run, "failed", {"completed_at": None}),
    ("gaterun_decided_says_how", factories.make_gate_run, "passed", {"decision_passed": None}),
    ("gaterun_skipped_says_why", factories.make_gate_run, "skipped", {"skip_reason": ""}),
    ("gaterun_error_has_kind", factories.make_gate_run, "error", {"error_kind": ""}),
    ("gaterun_error_has_kind", factories.make_gate_run, "passed", {"error_kind": "infra"}),
    ("gaterun_waiver_says_why", factories.make_gate_run, "failed", {"waived_at": db_now}),
    ("gaterun_counts_add_up", factories.make_gate_run, "pending", {"total_tests": 2, "passed_tests": 1}),
    ("gaterun_coverage_is_percent", factories.make_gate_run, "pending", {"coverage_percent": 101}),
    ("gaterun_coverage_is_percent", factories.make_gate_run, "pending", {"patch_coverage_percent": -1}),
    ("gaterun_running_has_deadline", factories.make_gate_run, "running", {"deadline_at": None}),
    ("gaterun_running_has_deadline", factories.make_gate_run, "running", {"seen_at": None}),
]


def values_of(columns: dict[str, Any]) -> dict[str, Any]:
    """The columns with what is made at the time of the test."""
    return {name: value() if callable(value) else value for name, value in columns.items()}


@pytest.mark.parametrize(
    ("constraint", "make", "state", "columns"),
    CONTRADICTIONS,
    ids=[f"{case[0]}-{case[2]}-{number}" for number, case in enumerate(CONTRADICTIONS)],
)
def test_columns_that_contradict_the_state_are_refused(constraint, make, state, columns):
    given = values_of(columns)
    assert in_state(make(), state).state == state
    row = make()
    assert refused_by(lambda: in_state(row, state, **given)) == constraint


# constraint, how the row is made, the columns that contradict.
WRONG: list[tuple[str, Any, dict[str, Any]]] = [
    ("project_managed_has_url", factories.make_project, {"repository_url": ""}),
    ("project_currency_is_iso", factories.make_project, {"currency": "usd"}),
    ("project_custody_known", factories.make_project, {"custody": "borrowed"}),
    ("project_sandbox_level_known", factories.make_project, {"sandbox_level_min": 4}),
    ("membership_role_known", factories.make_membership, {"role": "owner"}),
    ("phase_sequence_from_one", factories.make_phase, {"sequence": 0}),
    ("workstream_has_objective", factories.make_workstream, {"objective": ""}),
    ("tool_max_parallel_from_one", factories.make_tool, {"max_parallel": 0}),
    ("tool_timeout_from_one", factories.make_tool, {"timeout_seconds": 0}),
    ("apikey_role_known", lambda: factories.make_key().row, {"role": "owner"}),
    ("apikey_worker_ends", lambda: factories.make_key("worker").row, {"expires_at": None}),
    ("gate_shards_from_one", factories.make_gate, {"shards": 0}),
    ("policy_names_its_target", factories.make_policy, {"level": "project"}),
    ("policy_names_its_target", factories.make_policy, {"project": factories.make_project}),
    ("lease_within_deadline", factories.make_lease, {"expires_at": lambda: db_now() + 9 * LATER}),
    ("lease_ended_has_cause", factories.make_lease, {"ended_at": db_now}),
    ("lease_ended_has_cause", factories.make_lease, {"end_cause": "expired"}),
    (
        "lease_time_runs_forward",
        factories.make_lease,
        {"ended_at": lambda: db_now() - LATER, "end_cause": "expired"},
    ),
    ("price_currency_is_iso", factories.make_price, {"currency": "usd"}),
    ("price_rates_not_negative", factories.make_price, {"output": -1}),
    ("cost_amount_not_negative", factories.make_cost, {"amount": -1}),
    ("cost_currency_is_iso", factories.make_cost, {"currency": "usd"}),
    ("cost_waste_has_cause", factories.make_cost, {"landing": "waste"}),
    ("cost_waste_has_cause", factories.make_cost, {"waste_cause": "failed"}),
    ("cost_void_says_why", factories.make_cost, {"voided_at": db_now}),
    ("cost_leaf_has_id", factories.make_cost, {"leaf_kind": "task"}),
    ("price_per_search_not_negative", factories.make_price, {"per_search": -1}),
    ("budget_limit_not_negative", factories.make_budget, {"limit_amount": -1}),
    ("budget_currency_is_iso", factories.make_budget, {"currency": "usd"}),
    ("budget_warns_within", factories.make_budget, {"warn_ratio": 0}),
    ("budget_scope_is_named", factories.make_budget, {"scope_id": ""}),
    ("budget_period_spent_not_negative", _make_period, {"spent": -1}),
    ("budget_period_reserved_not_negative", _make_period, {"reserved": -1}),
    ("reservation_amount_positive", factories.make_reservation, {"amount": 0}),
    ("reservation_used_within", factories.make_reservation, {"used": 7}),
    ("reservation_has_an_end", factories.make_reservation, {"expires_at": None}),
    ("flakytest_says_who_and_why", factories.make_flaky_test, {"reason": ""}),
    ("flakytest_says_who_and_why", factories.make_flaky_test, {"owner": ""}),
]


@pytest.mark.parametrize(
    ("constraint", "make", "columns"), WRONG, ids=[f"{case[0]}-{number}" for number, case in enumerate(WRONG)]
)
def test_columns_that_cannot_be_are_refused(constraint, make, columns):
    row, given = make(), values_of(columns)
    assert refused_by(lambda: type(row)._base_manager.filter(pk=row.pk).update(**given)) == constraint


def test_a_task_does_not_need_itself():
    task = factories.make_task()
    assert refused_by(lambda: TaskDependency.objects.create(task=task, needs=task)) == "taskdependency_not_itself"


def test_every_check_of_these_models_is_contradicted_here():
    named = {case[0] for case in CONTRADICTIONS} | {case[0] for case in WRONG}
    checks = {
        constraint.name
        for model in VERSIONED
        for constraint in model._meta.constraints
        if isinstance(constraint, models.CheckConstraint)
    }
    assert sorted(checks - named) == []


# -- helpers -------------------------------------------------------------------------------------------------------


def subclasses(base: type[Kept]) -> list[type[Kept]]:
    """Every concrete model under `base`."""
    found, waiting = [], [base]
    while waiting:
        for model in waiting.pop().__subclasses__():
            waiting.append(model)
            if not model._meta.abstract:
                found.append(model)
    return found


def triggers(model: type[Kept]) -> list[Any]:
    """The triggers that the model's migrations make."""
    return list(getattr(model._meta, "triggers", []))


def changed(row: Any, **values: Any) -> Any:
    """`row` with other values, unsaved."""
    for name, value in values.items():
        setattr(row, name, value)
    return row


def test_a_stream_starts_with_its_first_event_and_is_written_by_the_log_alone():
    project = factories.make_project()
    head = EventStream.objects.get(pk=project.pk)
    project.edit(by=BY, name="Other")
    last = Event.objects.about(project).last()
    fresh = EventStream.objects.get(pk=project.pk)
    assert (head.seq, fresh.seq, fresh.hash) == (1, 2, last.hash)
