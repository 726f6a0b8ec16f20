"""The doctor is content with a sound installation, and names what is broken in any other."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pgtrigger
import pytest
from django.core.management import call_command
from django.db import DatabaseError, connection

from ledger import git
from ledger.models import PatchContent, PatchPolicy
from pipeline import invariants
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.ids import is_id, new_id, to_uuid
from pipeline.invariants import Finding, Invariant
from pipeline.models import RoutingDecision, Run, Task, TaskDependency
from pipeline.states import Stateful
from tests import factories as make

pytestmark = pytest.mark.django_db

HOUR = timedelta(hours=1)


def doctor(*arguments: str) -> tuple[int, str]:
    """The exit code and the words of `manage.py doctor`."""
    said = StringIO()
    try:
        call_command("doctor", *arguments, stdout=said)
    except SystemExit as end:
        return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def broken() -> dict[str, list[str]]:
    """The violations that are found, by number."""
    found: dict[str, list[str]] = {}
    for result in invariants.check_all():
        if not result.holds:
            found.setdefault(result.number, []).extend(result.violations)
    return found


def write(row: Any, *, without: str = "", **columns: Any) -> str:
    """Write past every guard, as nobody but the owner of the database can; `without` is a constraint to drop."""
    table = row._meta.db_table
    # Those of earlier verbs judge first: a table with deferred checks still open cannot be altered.
    judge_now()
    if without:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {without}")
    with pgtrigger.ignore():
        type(row)._base_manager.filter(pk=row.pk).update(**columns)
        judge_now()
    return str(row.pk)


def judge_now() -> None:
    """Let the deferred guards judge what was written so far: here, where they may be ignored, and not at the end."""
    with connection.cursor() as cursor:
        cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
        cursor.execute("SET CONSTRAINTS ALL DEFERRED")


def routed_lease(**more: Any) -> Any:
    """A live lease whose attempt was routed: nothing about it is out of order."""
    lease = make.make_lease(**more)
    RoutingDecision.objects.create(
        task=lease.task, run=lease.task.run, strategy="fixed", candidates=[], chosen=lease.attempt.tool, reason="fits"
    )
    return lease


# -- what is sound -----------------------------------------------------------------------------------------------


def test_a_fresh_installation_is_sound() -> None:
    code, said = doctor()
    lines = said.splitlines()
    assert code == 0, said
    assert "INV-01 ok  a busy worker has a task; idle and finished ones have none" in lines
    assert not [line for line in lines if " ok  " not in line]
    for probe in ("database", "migrations", "triggers", "event partitions", "git", "mirrors", "sandbox"):
        assert [line for line in lines if line.startswith(f"{probe} ok  ")], probe


def test_work_under_way_is_sound() -> None:
    lease = routed_lease()
    make.make_hold(scope_kind="task", scope_id=lease.task_id)
    patch = make.make_patch()
    patch.quarantine("odd", by=make.BY)
    make.make_gate_run().skip("not today", by=make.BY)
    make.make_cost(attempt=lease.attempt)
    make.make_price()
    worker = make.make_worker()
    worker.pause(by=make.BY)
    make.make_run().cancel(by=make.BY)
    make.make_merge_queue().pause(by=make.BY)
    assert broken() == {}


def test_every_number_of_the_tables_that_are_there_is_registered() -> None:
    known = {int(one.number.removeprefix("INV-")) for one in invariants._invariants}
    # Tables of later pieces: breakers 28, deliveries 68; who holds what 69,
    # the export 70, the seals 73, a period's limit 74,
    # and what gates need 75.
    later = {28, 68, 69, 70}
    assert known == set(range(1, 76)) - later


def test_every_state_machine_is_compared_with_its_events() -> None:
    from django.apps import apps

    machines = [model for model in apps.get_models() if issubclass(model, Stateful)]
    told = [one.text for one in invariants._invariants if one.number == "INV-65"]
    assert len(told) == len(machines)
    for model in machines:
        assert f"the state of a {model.noun().replace('_', ' ')} is that of its newest state event" in told


# -- what is broken ----------------------------------------------------------------------------------------------


def _idle_with_a_task() -> str:
    return write(make.make_worker(), without="worker_busy_has_task", current_task=make.make_task())


def _live_lease(**columns: Any) -> str:
    return write(routed_lease(), **columns)


def _task_needing_another() -> TaskDependency:
    run = make.make_run(make.make_workstream(tasks=[make.task_spec("a"), make.task_spec("b", depends_on=["a"])]))
    return TaskDependency.objects.select_related("task", "needs").get(task__run=run)


def _cycle() -> str:
    need = _task_needing_another()
    TaskDependency.objects.create(task=need.needs, needs=need.task)
    return str(need.task_id)


def _needs_of_another_run() -> str:
    need = TaskDependency.objects.create(task=make.make_task(), needs=make.make_task())
    return str(need.pk)


def _blocked_by_nothing() -> str:
    task = make.make_task(started=True)
    return write(task, state="blocked", updated_at=db_now() - HOUR)


def _twice_in_a_conflict_group() -> str:
    first = routed_lease()
    run = first.task.run
    second = make.make_task(make.make_run(run.workstream))
    for task in (first.task, second):
        write(task, conflict_group="schema", state="running")
    return str(run.project_id)


def _nested_error_pipeline() -> str:
    outer = make.make_run(trigger_type="error_pipeline", trigger_ref=make.make_run().pk)
    return str(make.make_run(trigger_type="error_pipeline", trigger_ref=outer.pk).pk)


def _claimed_under(scope_kind: str) -> str:
    task = make.make_task(started=True)
    run = task.run
    scopes = {
        "installation": "", "project": run.project_id, "workstream": run.workstream_id, "run": run.pk, "task": task.pk,
    }  # fmt: skip
    make.make_hold(scope_kind=scope_kind, scope_id=scopes[scope_kind])
    return str(routed_lease(task=task).pk)


def _open_patch_of_a_succeeded_run() -> str:
    lease = routed_lease(task=make.make_task(make.make_run(make.make_workstream(make.make_phase(
        make.make_project(custody="recorded"))))))  # fmt: skip
    patch = make.make_patch(attempt=lease.attempt)
    make.in_state(lease.task.run, "succeeded")
    return str(patch.pk)


def _managed(state: str) -> Any:
    return make.in_state(make.make_patch(make.make_project(repository=make.sample_repository())), state)


def _changed_content() -> str:
    content = PatchContent.objects.get(patch=make.make_patch())
    write(content, diff_text="something else")
    return str(content.patch_id)


def _unlike_chains() -> str:
    return write(make.make_patch(), replaces=make.make_patch())


def _landed_reverse_of_open_work() -> str:
    reverse = make.in_state(make.make_patch(), "committed")
    return write(reverse, rollback_of=make.make_patch())


def _landed_item_of_an_open_patch() -> str:
    return str(make.in_state(make.make_queue_item(), "landed").pk)


def _landed_past_a_failed_gate() -> str:
    patch = _managed("committed")
    make.in_state(make.make_gate_run(patch=patch, tree_hash=patch.tested_tree), "failed")
    write(patch, committed_at=db_now() + HOUR)
    return str(patch.pk)


def _overlapping_prices() -> str:
    first, second = make.make_price(model="m"), make.make_price(model="n")
    write(second, without="price_ranges_do_not_overlap", model="m")
    return str(min(first.pk, second.pk))


def _lost_event() -> str:
    worker = _paused_worker()
    judge_now()
    with pgtrigger.ignore():
        Event.objects.about(worker).filter(kind="worker.started").delete()
    return str(worker.pk)


def _newest(row: Any) -> Event:
    return Event.objects.about(row).order_by("-stream_seq")[0]


def _paused_worker() -> Any:
    worker = make.make_worker()
    worker.pause(by=make.BY)
    return worker


def _looser_workstream() -> str:
    phase = make.make_phase(constraints={"patch": {"max_lines_changed": 100}})
    return write(make.make_workstream(phase), constraints={"patch": {"max_lines_changed": 200}})


def _looser_policy() -> str:
    project = make.make_project()
    make.make_policy(constraints={"max_lines_changed": 100})
    return write(make.make_policy(project=project), constraints={"max_lines_changed": 200})


def _gate_that_needs_nobody() -> str:
    return write(make.make_gate(), depends_on=["gone"])


def _gates_that_wait_for_each_other() -> str:
    first = make.make_gate(key="first")
    make.make_gate(first.project, key="second", depends_on=["first"])
    return write(first, depends_on=["second"])


PLANTED: list[tuple[int, Callable[[], str]]] = [
    (1, _idle_with_a_task),
    (2, _idle_with_a_task),
    (4, lambda: str(make.in_state(make.make_task(started=True), "running").pk)),
    (5, lambda: _live_lease(generation=9)),
    (8, lambda: _live_lease(expires_at=db_now() - HOUR)),
    (9, lambda: _live_lease(without="lease_within_deadline", expires_at=db_now() + 9 * HOUR)),
    (10, lambda: str(make.in_state(make.make_run(), "succeeded").pk)),
    (11, lambda: write(make.make_run(), without="run_started_iff_it_ran", started_at=db_now())),
    (12, lambda: write(make.in_state(make.make_run(), "succeeded"), without="run_success_exits_zero", exit_code=3)),
    (13, _open_patch_of_a_succeeded_run),
    (15, lambda: write(make.make_step(), without="step_outcome_iff_ended", outcome="success")),
    (16, lambda: write(make.make_run(started=True), started_at=db_now() - HOUR)),
    (17, _needs_of_another_run),
    (18, _cycle),
    (19, lambda: str(make.in_state(_task_needing_another().task, "queued").pk)),
    (20, _blocked_by_nothing),
    (21, lambda: write(make.make_task(), count_attempts=7)),
    (22, _twice_in_a_conflict_group),
    (23, lambda: write(make.make_worker(), without="worker_crashed_has_time", crashed_at=db_now())),
    (24, lambda: write(make.make_worker(), tasks_completed=5)),
    (25, lambda: write(make.make_worker(), transport_seen_at=db_now() - HOUR)),
    *[(26, lambda kind=kind: _claimed_under(kind)) for kind in ("installation", "project", "workstream", "run")],
    (26, lambda: _claimed_under("task")),
    (27, lambda: str(make.make_hold(until=db_now() - HOUR).pk)),
    (29, lambda: str(make.make_lease().attempt_id)),
    (30, lambda: write(make.make_run(), count_steps=9)),
    (31, _nested_error_pipeline),
    (32, lambda: write(make.make_patch(), without="patch_valid_before_queue", state="validated")),
    (33, lambda: write(
        make.in_state(make.make_patch(), "verified"), without="patch_tested_before_commit", tests_ran=False)),
    (34, lambda: write(_managed("committed"), without="patch_committed_is_what_was_tested", committed_tree="9" * 40)),
    (35, _landed_past_a_failed_gate),
    (36, lambda: write(
        make.in_state(make.make_patch(), "quarantined"), without="patch_quarantined_has_reason", quarantine_owner="")),
    (37, lambda: write(make.make_patch(), attempts=4)),
    (38, lambda: write(make.in_state(make.make_patch(), "rolled_back"), commit_sha="1" * 40)),
    (39, _landed_reverse_of_open_work),
    (41, _unlike_chains),
    (42, _changed_content),
    (44, lambda: str(_managed("queued").pk)),
    (46, _landed_item_of_an_open_patch),
    (47, lambda: write(make.make_merge_queue(), without="mergequeue_window_keeps_bounds", window_size=9)),
    (48, lambda: write(make.make_gate_run(), without="gaterun_error_has_kind", error_kind="infra")),
    (49, lambda: str(make.in_state(make.make_gate_run(), "passed", verdicts={"coverage": {"status": "fail"}}).pk)),
    (50, lambda: write(make.make_gate_run(), without="gaterun_counts_add_up", total_tests=3)),
    (51, lambda: write(make.make_gate_run(), parsed=True, total_tests=1, passed_tests=1)),
    (52, lambda: str(make.in_state(make.make_gate_run(), "running", seen_at=db_now() - HOUR).pk)),
    (53, lambda: write(make.make_cost(), without="cost_amount_not_negative", amount=-1)),
    (54, lambda: write(make.make_cost(attempt=make.make_step()), run=make.make_run())),
    (61, _overlapping_prices),
    (62, _lost_event),
    (63, lambda: write(_newest(_paused_worker()), prev_hash="0" * 64)),
    (64, lambda: write(_newest(_paused_worker()), before={"state": "busy"})),
    (65, lambda: str(make.in_state(make.make_worker(), "stopped").pk)),
    (66, lambda: write(_newest(make.make_worker()), kind="patch.dropped")),
    (67, lambda: write(_newest(make.make_worker()), handled_at=None, due_at=db_now() - HOUR)),
    (72, _looser_workstream),
    (75, _gate_that_needs_nobody),
    (75, _gates_that_wait_for_each_other),
    (72, _looser_policy),
]  # fmt: skip


@pytest.mark.parametrize(("number", "plant"), PLANTED, ids=[str(number) for number, _plant in PLANTED])
def test_a_planted_violation_is_reported_with_its_row(number: int, plant: Callable[[], str]) -> None:
    row = plant()
    found = broken().get(f"INV-{number:02}", [])
    assert [one for one in found if row in one], found


def test_a_wider_layer_that_is_tightened_afterwards_breaks_nothing_and_is_what_holds() -> None:
    phase = make.make_phase(constraints={"patch": {"max_lines_changed": 300}})
    workstream = make.make_workstream(phase, constraints={"patch": {"max_lines_changed": 250}})
    run = make.make_run(workstream, started=True)
    task = make.make_task(run)
    make.make_policy(task=task, constraints={"max_lines_changed": 201, "max_files_changed": 100})
    wider = make.make_policy(workstream=workstream, constraints={"max_lines_changed": 220})
    wider.edit(by=make.BY, constraints={"max_lines_changed": 90})
    assert broken().get("INV-72", []) == []
    told = PatchPolicy.objects.effective(phase.project, phase, workstream, task).explain()
    assert (told["max_lines_changed"]["value"], told["max_lines_changed"]["layer"]) == (90, "workstream policy")
    assert (told["max_files_changed"]["value"], told["max_files_changed"]["layer"]) == (100, "task policy")
    phase.edit(by=make.BY, constraints={"patch": {"max_lines_changed": 10}})
    assert broken().get("INV-72", []) == []
    told = PatchPolicy.objects.effective(phase.project, phase, workstream, task).explain()
    assert (told["max_lines_changed"]["value"], told["max_lines_changed"]["layer"]) == (10, "phase")


def test_a_broken_invariant_ends_the_command_with_one_and_names_the_rows() -> None:
    runs = [make.make_run() for _n in range(12)]
    for run in runs:
        write(run, count_steps=9)
    code, said = doctor()
    (line,) = [line for line in said.splitlines() if line.startswith("INV-30")]
    assert code == 1
    assert line.startswith("INV-30 BROKEN (12)  run counters equal their rows: ")
    assert line.endswith(" and 2 more")
    assert sum(run.pk in line for run in runs) == 10


# -- the branch and the ledger -----------------------------------------------------------------------------------


def _land(patch: Any, *, named: str = "") -> str:
    """A commit on the patch's branch with the trailer of `named` (the patch itself by default)."""
    mirror, parent = patch.project.mirror, make.head_of(patch.project)
    tree = git.apply(mirror, parent, patch.content.diff_text)
    message = f"Land it\n\n{git.PATCH_TRAILER}: {named or patch.pk}\n"
    when = datetime(2026, 1, 2, tzinfo=UTC)
    commit = git.commit(mirror, tree, parent, message, author_name="a", author_email="a@example.org", at=when)
    git.move_branch(mirror, "main", commit, parent)
    make.make_merge_queue(patch.project)
    return commit


def test_a_landed_patch_and_its_commit_agree() -> None:
    patch = make.make_patch(make.make_project(repository=make.sample_repository()))
    commit = _land(patch)
    make.in_state(patch, "committed", commit_sha=commit, landing_commit=commit)
    assert "INV-71" not in broken()


def test_a_committed_patch_without_its_commit_is_reported() -> None:
    patch = _managed("committed")
    assert [one for one in broken()["INV-71"] if patch.pk in one]


def test_a_commit_of_no_patch_is_reported() -> None:
    patch, stranger = make.make_patch(make.make_project(repository=make.sample_repository())), new_id()
    _land(patch, named=stranger)
    assert [one for one in broken()["INV-71"] if one.startswith(stranger)]


def test_a_landing_of_this_moment_is_no_violation_and_one_left_over_is() -> None:
    patch = make.make_patch(make.make_project(repository=make.sample_repository()))
    commit = _land(patch)
    make.in_state(patch, "verified", landing_commit=commit)
    assert "INV-71" not in broken()
    write(patch, updated_at=db_now() - HOUR)
    assert [one for one in broken()["INV-71"] if "but the patch is verified" in one]


# -- what the house stands on ------------------------------------------------------------------------------------


def probe(name: str) -> Finding:
    return invariants.probe_all()[name]


def test_a_disabled_and_a_missing_trigger_are_reported() -> None:
    with connection.cursor() as cursor:
        cursor.execute("ALTER TABLE workers_worker DISABLE TRIGGER USER")
    assert not probe("triggers").ok
    assert "workers.Worker:moves disabled" in probe("triggers").detail
    pgtrigger.uninstall("workers.Worker:moves")
    assert "workers.Worker:moves uninstalled" in probe("triggers").detail
    code, said = doctor()
    (line,) = [line for line in said.splitlines() if line.startswith("triggers ")]
    assert code == 1
    assert line.startswith("triggers BROKEN  not as they should be (5): ")


def test_a_missing_partition_is_reported() -> None:
    month = f"{db_now():%Y%m}"
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE pipeline_event_{month} RENAME TO gone")
    assert not probe("event partitions").ok
    assert month in probe("event partitions").detail


def test_a_missing_mirror_and_a_missing_git_are_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    project = make.make_project()
    assert probe("mirrors") == Finding(False, f"missing for {project.key}")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe("git") == Finding(False, "no git on the path")


def test_a_database_that_does_not_answer_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> Finding:
        raise DatabaseError("nobody there")

    monkeypatch.setitem(invariants._probes, "database", refuse)
    code, said = doctor()
    assert code == 1
    assert "database BROKEN  DatabaseError: nobody there" in said
    assert "INV-" not in said


def test_a_search_that_breaks_is_a_violation_and_one_without_its_table_does_not_apply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stumble() -> list[str]:
        raise RuntimeError("the disk is full")

    kept: list[Invariant] = []
    monkeypatch.setattr(invariants, "_invariants", kept)
    invariants.invariant(98, "this stumbles")(stumble)
    invariants.query(99, "nothing is there", "SELECT id FROM pipeline_of_tomorrow")
    stumbled, absent = invariants.check_all()
    assert stumbled.violations == ["could not be checked: the disk is full"]
    assert (absent.applies, absent.holds) == (False, True)
    code, said = doctor()
    assert code == 1
    assert "INV-99 not applicable  nothing is there" in said


def test_the_sql_of_a_ulid_is_what_python_writes() -> None:
    for text in (new_id(), "00000000000000000000000000", "7ZZZZZZZZZZZZZZZZZZZZZZZZZ"):
        assert is_id(text)
        with connection.cursor() as cursor:
            cursor.execute(f"SELECT {invariants.ulid('v.id')} FROM (SELECT %s::uuid AS id) v", [to_uuid(text)])
            assert cursor.fetchone() == (text,)


def test_the_json_report_holds_every_probe_and_invariant() -> None:
    code, said = doctor("--json")
    report = json.loads(said)
    assert (code, report["ok"]) == (0, True)
    assert set(report["probes"]["git"]) == {"ok", "detail"}
    numbers = [one["number"] for one in report["invariants"]]
    assert numbers == sorted(numbers)
    assert set(report["invariants"][0]) == {"number", "text", "violations", "applies", "holds"}


def test_a_run_and_its_task_that_are_under_way_break_nothing() -> None:
    lease = routed_lease()
    lease.finish("infra_lost", by=make.BY, error="gone")
    assert Run.objects.get().state == "running"
    assert Task.objects.get().state == "retrying"
    assert broken() == {}
