"""Smallest valid rows in their initial state, made through the house's verbs; a test names only what it is about."""

import itertools
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from datetime import timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import pgtrigger
import pgtrigger.registry
from django.db import connection, transaction

from costs.models import Budget, CostRecord, Price, Reservation, budget
from gates.models import FlakyTest, Gate, GateRun
from ledger import git
from ledger.models import MergeQueue, Patch, PatchPolicy, Push, QueueItem, Remote
from pipeline import events
from pipeline.clock import db_now
from pipeline.models import (
    ApiKey,
    FailedReaction,
    Hold,
    Membership,
    Phase,
    Project,
    Run,
    StepAttempt,
    Task,
    Tool,
    User,
    Workstream,
)
from pipeline.models.key import NewKey
from pipeline.states import NOW, Stateful
from workers.models import Lease, Worker

BY = events.Actor("user", "", "tester")
"""Who does what a test does not attribute."""

S = TypeVar("S", bound=Stateful)

_numbers = itertools.count(1)


def number() -> int:
    """A number that no other row of this process has: keys and contents differ by it."""
    return next(_numbers)


# -- repositories --------------------------------------------------------------------------------------------------

_PERSON = {
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "2026-01-01T00:00:00Z",
    "GIT_COMMITTER_DATE": "2026-01-01T00:00:00Z",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_SYSTEM": os.devnull,
}


def run_git(folder: Path, *arguments: str) -> str:
    """What `git <arguments>` says in `folder`, as Ada, without anybody's configuration."""
    done = subprocess.run(
        ["git", *arguments], cwd=folder, env={**os.environ, **_PERSON}, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def make_repository(folder: Path, files: Mapping[str, str] | None = None) -> Path:
    """A git repository in `folder` with one commit on `main`; the same files give the same commit id."""
    folder.mkdir(parents=True, exist_ok=True)
    run_git(folder, "init", "--quiet", "--initial-branch=main")
    for name, text in (files or {"README.md": "# Demo\n", "src/app.py": "print('hello')\n"}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    run_git(folder, "add", "--all")
    run_git(folder, "commit", "--quiet", "--message=First commit")
    return folder


@cache
def sample_repository() -> Path:
    """One repository for every test of this process that does not care which; nobody writes to it."""
    # Beside the mirrors, in the directory that the test session removes at its end.
    return make_repository(Path(tempfile.mkdtemp(prefix="sample-", dir=os.environ["SIGNALBOX_DATA"])) / "repository")


def give_mirror(project: Project, repository: Path | None = None) -> Project:
    """Clone the project's mirror from `repository` (the sample by default), unless it is there."""
    if not project.mirror.exists():
        git.clone_mirror(str(repository or sample_repository()), project.mirror, branch=project.default_branch)
    return project


def head_of(project: Project) -> str:
    """The commit on which the next patch of a project with a mirror builds."""
    return git.head(project.mirror, project.default_branch)


# -- people, projects, plans ---------------------------------------------------------------------------------------


def make_user(**fields: Any) -> User:
    """A person without a role; `is_superuser=True` makes an administrator of the installation."""
    fields.setdefault("username", f"person-{number()}")
    password = fields.pop("password", None)
    return User.objects.create_user(password=password, **fields)


def make_project(*, repository: Path | str | None = None, **fields: Any) -> Project:
    """A managed project. With `repository` (a path) it has its mirror; without one it needs no git."""
    fields.setdefault("key", f"project-{number()}")
    fields.setdefault("name", "Demo")
    if fields.get("custody") != "recorded":
        fields.setdefault("repository_url", str(repository or "/nowhere"))
    project = Project.objects.add(by=BY, **fields)
    return give_mirror(project, Path(repository)) if repository else project


def make_membership(user: User | None = None, project: Project | None = None, role: str = "viewer") -> Membership:
    """A role of a person in a project."""
    return Membership.objects.add(by=BY, user=user or make_user(), project=project or make_project(), role=role)


def make_approver(project: Project, **fields: Any) -> User:
    """A person who may approve in this project."""
    return make_membership(make_user(**fields), project, "approver").user


def make_key(role: str = "operator", **fields: Any) -> NewKey:
    """A program's key and its text; without `project` it is good everywhere."""
    fields.setdefault("name", f"key-{number()}")
    return ApiKey.objects.make(role=role, by=BY, **fields)


def make_phase(project: Project | None = None, **fields: Any) -> Phase:
    """A phase without scope, constraints or acceptance."""
    fields.setdefault("key", f"phase-{number()}")
    fields.setdefault("name", "Build")
    fields.setdefault("category", "build")
    return Phase.objects.add(by=BY, project=project or make_project(), **fields)


def task_spec(task_id: str = "one", **fields: Any) -> dict[str, Any]:
    """The smallest specification of a task: research, which delivers no patch."""
    return {"task_id": task_id, "name": f"Task {task_id}", "kind": "research", **fields}


def make_workstream(phase: Phase | None = None, **fields: Any) -> Workstream:
    """A workstream with one task."""
    fields.setdefault("key", f"workstream-{number()}")
    fields.setdefault("name", "Demo work")
    fields.setdefault("objective", "Show that it works")
    fields.setdefault("tasks", [task_spec()])
    return Workstream.objects.add(by=BY, phase=phase or make_phase(), **fields)


def make_tool(**fields: Any) -> Tool:
    """A shell tool that can do every kind of task the factories make."""
    fields.setdefault("key", f"tool-{number()}")
    fields.setdefault("adapter", "shell")
    fields.setdefault("command", ["true"])
    fields.setdefault("capabilities", {"task_kinds": ["research", "code_edit", "implementation", "repair"]})
    return Tool.objects.add(by=BY, **fields)


# -- runs and their work -------------------------------------------------------------------------------------------


def make_run(
    workstream: Workstream | None = None, *, phase: Phase | None = None, started: bool = False, **fields: Any
) -> Run:
    """A pending run with its tasks; of `phase` and `tasks` when given, else of a workstream. `started`: it runs."""
    if phase is None and workstream is None:
        workstream = make_workstream()
    if phase is not None:
        fields.setdefault("tasks", [task_spec()])
    run = Run.objects.open(by=BY, workstream=workstream, phase=phase, **fields)
    if started:
        run.start(by=BY)
    return run


def make_task(run: Run | None = None, *, started: bool = False, **fields: Any) -> Task:
    """The first task of `run`, or of a new run whose only task has `fields` in its specification. `started`: queued."""
    if run is None:
        run = make_run(make_workstream(tasks=[task_spec(**fields)]), started=started)
    return run.tasks.select_related("run").order_by("sequence")[0]


def make_step(run: Run | None = None, **fields: Any) -> StepAttempt:
    """A pending attempt; with `start=True` (in a running run) a running one."""
    fields.setdefault("start", False)
    return StepAttempt.objects.begin(run or make_run(started=bool(fields["start"])), by=BY, **fields)


def make_hold(scope_kind: str = "project", scope_id: str | None = None, **fields: Any) -> Hold:
    """An active hold; over a new project unless told."""
    if scope_id is None:
        project = fields.setdefault("project", make_project())
        scope_id = "" if scope_kind == "installation" else project.pk
    fields.setdefault("reason", "wait for the owner")
    return Hold.objects.place(scope_kind, scope_id, by=BY, **fields)


def make_failed_reaction(project: Project | None = None, **fields: Any) -> FailedReaction:
    """A reaction that crashed once on a note about the project."""
    event = events.record("note.added", project or make_project(), by=BY)
    return FailedReaction.objects.create(
        **{
            "event_id": event.pk,
            "kind": event.kind,
            "project_id": event.project_id,
            "reaction": "a.b",
            "attempts": 1,
            "error": "RuntimeError: out of order",
            **fields,
        }
    )


def make_worker(**fields: Any) -> Worker:
    """An idle executor that has just beaten."""
    fields.setdefault("worker_type", "executor")
    fields.setdefault("name", f"worker-{number()}")
    return Worker.objects.register(by=BY, **fields)


def make_lease(
    worker: Worker | None = None,
    task: Task | None = None,
    *,
    tool: Tool | None = None,
    lease_seconds: int = 60,
    timeout_seconds: int = 1800,
) -> Lease:
    """A live lease: its task and attempt run, its worker is busy. The run is started when it was not."""
    worker = worker or make_worker()
    task = task or make_task(started=True)
    tool = tool or make_tool()
    if task.run.state == Run.State.PENDING:
        task.run.start(by=BY)
    task.refresh_from_db()
    with transaction.atomic():
        generation = task.claim(by=BY)
        attempt = StepAttempt.objects.begin(task.run, by=BY, task=task, tool=tool, generation=generation)
        now = db_now()
        lease = Lease(
            worker=worker,
            task=task,
            attempt=attempt,
            generation=generation,
            acquired_at=now,
            expires_at=now + timedelta(seconds=lease_seconds),
            timeout_at=now + timedelta(seconds=timeout_seconds),
            deadline_at=now + timedelta(seconds=timeout_seconds + 45),
        )
        lease.save(force_insert=True)
        worker.move(Worker.State.BUSY, by=BY, verb="assign task", working=True, current_task=task)
        events.record("lease.granted", lease, by=BY, before={}, after=lease.birth())
    return lease


# -- patches, queues, gates, costs ---------------------------------------------------------------------------------


def new_file_diff(path: str = "", text: str = "") -> str:
    """A unified diff that adds one file of one line; without arguments one that nobody else submits."""
    mark = number()
    path, text = path or f"docs/note-{mark}.md", text or f"note {mark}"
    return f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n@@ -0,0 +1 @@\n+{text}\n"


def make_patch(project: Project | None = None, *, diff_text: str = "", **fields: Any) -> Patch:
    """A created patch that adds one file; in recorded custody unless a project or an attempt is given.

    A managed project gets its mirror when it has none, and the patch builds on its head.
    """
    attempt = fields.get("attempt")
    if project is None:
        project = attempt.run.project if attempt else make_project(custody="recorded")
    managed = project.custody == Project.Custody.MANAGED
    if managed:
        give_mirror(project)
    fields.setdefault("base_commit", head_of(project) if managed else "")
    patch, _is_new = Patch.objects.submit(project=project, diff_text=diff_text or new_file_diff(), by=BY, **fields)
    return patch


def make_policy(**fields: Any) -> PatchPolicy:
    """An enabled policy of the installation: 100 files at most. With `project=` and so on, of that level."""
    levels = [name for name in ("project", "phase", "workstream", "task") if fields.get(name) is not None]
    fields.setdefault("level", levels[0] if levels else "global")
    fields.setdefault("constraints", {"max_files_changed": 100})
    return PatchPolicy.objects.add(by=BY, **fields)


def make_remote(project: Project | None = None, **fields: Any) -> Remote:
    """Where a project's work is pushed to; nothing answers there."""
    fields.setdefault("url", "https://git.example.org/x.git")
    fields.setdefault("landing", "push")
    return Remote.objects.add(by=BY, project=project or make_project(), **fields)


def make_push(project: Project | None = None) -> Push:
    """A landed patch on its way to the remote."""
    project = project or make_project()
    make_merge_queue(project)
    patch = in_state(make_patch(project), "committed")
    return Push.objects.owe(patch, make_remote(project), by=BY)[0]


def make_merge_queue(project: Project | None = None, *, target_branch: str = "", head_commit: str = "") -> MergeQueue:
    """The running queue of the project's default branch; its head is the mirror's when there is one."""
    project = project or make_project()
    head_commit = head_commit or (head_of(project) if project.mirror.exists() else "0" * 40)
    return MergeQueue.objects.open_for(project, target_branch or project.default_branch, head_commit, by=BY)


def make_queue_item(patch: Patch | None = None, queue: MergeQueue | None = None) -> QueueItem:
    """A waiting item at the tail of its patch's queue; the patch itself stays as it is."""
    patch = patch or make_patch(queue.project if queue else None)
    queue = queue or make_merge_queue(patch.project)
    with transaction.atomic():
        MergeQueue.objects.select_for_update(no_key=True).get(pk=queue.pk)
        return queue.take_in(patch, by=BY)


def make_gate(project: Project | None = None, **fields: Any) -> Gate:
    """A required gate without criteria, whose command succeeds."""
    fields.setdefault("key", f"gate-{number()}")
    fields.setdefault("name", "Lint")
    fields.setdefault("gate_type", "lint")
    fields.setdefault("command", ["true"])
    return Gate.objects.add(by=BY, project=project or make_project(), **fields)


def make_flaky_test(project: Project | None = None, **fields: Any) -> FlakyTest:
    """A test in quarantine for a week, owned by somebody who sees the project."""
    project = project or make_project()
    fields.setdefault("test_key", f"tests/test_it.py::test_{number()}")
    if "owner" not in fields:
        fields["owner"] = make_membership(project=project).user.username
    fields.setdefault("reason", "it depends on the time of day")
    fields.setdefault("expires_at", db_now() + timedelta(days=7))
    return FlakyTest.objects.add(by=BY, project=project, **fields)


def make_gate_run(gate: Gate | None = None, *, tree_hash: str = "", **fields: Any) -> GateRun:
    """A pending run of a gate on a tree that nothing else was judged on."""
    gate = gate or make_gate(fields["patch"].project if fields.get("patch") else None)
    return GateRun.objects.ask_for(gate, tree_hash or f"{number():040x}", by=BY, **fields)


def make_price(**fields: Any) -> Price:
    """A price of a model of its own: a dollar a million tokens of every class, since yesterday."""
    fields.setdefault("provider", "example")
    fields.setdefault("model", f"model-{number()}")
    fields.setdefault("effective_from", db_now() - timedelta(days=1))
    for rate in ("uncached_input", "cache_read", "cache_write_5m", "cache_write_1h", "output"):
        fields.setdefault(rate, 1)
    fields.setdefault("source", "the tests")
    fields.setdefault("price_version", "1")
    return Price.objects.add(by=BY, **fields)


def make_cost(**fields: Any) -> CostRecord:
    """A live record of one dollar for an API call, of nothing in particular."""
    fields.setdefault("resource_type", "api_call")
    fields.setdefault("source", "tests")
    fields.setdefault("amount", "1")
    row, _is_new = CostRecord.objects.record(by=BY, **fields)
    return row


def make_budget(project: Project | None = None, **fields: Any) -> Budget:
    """A budget of five dollars in all, over a project unless told."""
    fields.setdefault("key", f"budget-{number()}")
    fields.setdefault("scope_kind", "project")
    if fields["scope_kind"] != "installation":
        fields.setdefault("project", project or make_project())
    if fields["scope_kind"] == "project":
        fields.setdefault("scope_id", fields["project"].pk)
    fields.setdefault("limit_amount", Decimal(5))
    return Budget.objects.add(by=BY, **fields)


def make_reservation(project: Project | None = None, amount: str = "1", **fields: Any) -> Reservation:
    """A dollar set aside for a minute in every budget over a project, without a lease."""
    project = project or make_project()
    covers = budget.covering(budget.scopes_of({"project": project.pk}), [project.pk])
    fields.setdefault("seconds", 60)
    return Reservation.objects.reserve(amount, covers, by=BY, project_id=project.pk, **fields)


# -- any state -----------------------------------------------------------------------------------------------------


def _of_run(row: Run, state: str) -> dict[str, Any]:
    ended = state not in ("pending", "running")
    return {
        "started_at": None if state in ("pending", "canceled") else (row.started_at or NOW),
        "ended_at": NOW if ended else None,
        "exit_code": {"succeeded": 0, "failed": 1}.get(state),
    }


def _of_task(row: Task, state: str) -> dict[str, Any]:
    return {
        "retry_at": NOW if state == "retrying" else None,
        "completed_at": NOW if state in Task.ENDED else None,
    }


def _of_step(row: StepAttempt, state: str) -> dict[str, Any]:
    outcomes = {"succeeded": "success", "failed": "task_failed", "canceled": "cancelled"}
    return {
        "outcome": outcomes.get(state),
        "started_at": None if state == "pending" else (row.started_at or NOW),
        "ended_at": NOW if state in outcomes else None,
    }


def _of_hold(row: Hold, state: str) -> dict[str, Any]:
    return {"released_at": NOW if state == "released" else None}


def _of_worker(row: Worker, state: str) -> dict[str, Any]:
    return {
        "current_task": (row.current_task or make_task()) if state == "busy" else None,
        "crashed_at": NOW if state == "crashed" else None,
        "stopped_at": NOW if state == "stopped" else None,
    }


def _of_patch(row: Patch, state: str) -> dict[str, Any]:
    is_valid = state in ("validated", "queued", "applied", "verified", "committed")
    is_tested = state in ("verified", "committed")
    is_parked, is_landed = state == "quarantined", state == "committed"
    return {
        "format_ok": is_valid,
        "scope_ok": is_valid,
        "constraints_ok": is_valid,
        "tests_ran": is_tested,
        "tests_passed": is_tested,
        "tested_tree": "1" * 40 if is_tested else "",
        "committed_tree": "1" * 40 if is_landed else "",
        "commit_sha": "2" * 40 if is_landed else "",
        "committed_at": NOW if is_landed else None,
        "quarantine_reason": "looks odd" if is_parked else "",
        "quarantine_owner": "approvers" if is_parked else "",
        "quarantined_at": NOW if is_parked else None,
    }


def _of_merge_queue(row: MergeQueue, state: str) -> dict[str, Any]:
    return {}


def _of_queue_item(row: QueueItem, state: str) -> dict[str, Any]:
    return {"finished_at": NOW if state in QueueItem.ENDED else None}


def _of_gate_run(row: GateRun, state: str) -> dict[str, Any]:
    is_judged = state in ("passed", "failed")
    return {
        "started_at": NOW if state == "running" else row.started_at,
        "seen_at": NOW if state == "running" else row.seen_at,
        "deadline_at": NOW if state == "running" else row.deadline_at,
        "completed_at": NOW if state in GateRun.ENDED else None,
        "exit_code": 0 if is_judged else None,
        "decision_passed": {"passed": True, "failed": False, "skipped": False}.get(state),
        "skip_reason": "Skipped: not today" if state == "skipped" else "",
        "error_kind": "infra" if state == "error" else "",
    }


def _of_reservation(row: Reservation, state: str) -> dict[str, Any]:
    return {}


def _of_push(row: Push, state: str) -> dict[str, Any]:
    return {"pushed_at": NOW if state == "pushed" else None}


Columns = Callable[[Any, str], dict[str, Any]]

STATEFUL: dict[type[Stateful], tuple[Callable[[], Any], Columns]] = {
    Run: (make_run, _of_run),
    Task: (make_task, _of_task),
    StepAttempt: (make_step, _of_step),
    Hold: (make_hold, _of_hold),
    Worker: (make_worker, _of_worker),
    Patch: (make_patch, _of_patch),
    MergeQueue: (make_merge_queue, _of_merge_queue),
    QueueItem: (make_queue_item, _of_queue_item),
    GateRun: (make_gate_run, _of_gate_run),
    Push: (make_push, _of_push),
    Reservation: (make_reservation, _of_reservation),
}
"""Every stateful model: how a row of it is born, and what its columns must hold in each state."""


def columns_for(row: Stateful, state: str) -> dict[str, Any]:
    """The columns that the constraints of the row's table ask for in `state`, as `move()` takes them."""
    return STATEFUL[type(row)][1](row, str(state))


def plain_columns(row: Stateful, state: str) -> dict[str, Any]:
    """The same for `update()`: NOW is the database's present time."""
    now = db_now()
    return {name: now if value is NOW else value for name, value in columns_for(row, state).items()}


def in_state(row: S, state: str, **columns: Any) -> S:
    """`row` put into `state` past its guards and without an event, for tests that are about what follows.

    The columns that its constraints ask for are filled in; `columns` override them.
    """
    model = type(row)
    guards = [f"{model._meta.label}:{name}" for name in ("moves", "birth", "told")]
    told = _trigger_name(model, "told")
    with pgtrigger.ignore(*guards), transaction.atomic(), connection.cursor() as cursor:
        model._base_manager.filter(pk=row.pk).update(state=state, **{**plain_columns(row, state), **columns})
        # The deferred guard judges here, where it is ignored, and not at a commit outside this block.
        cursor.execute(f"SET CONSTRAINTS {told} IMMEDIATE")
        cursor.execute(f"SET CONSTRAINTS {told} DEFERRED")
    row.refresh_from_db()
    return row


@cache
def _trigger_name(model: type[Stateful], name: str) -> str:
    (trigger,) = [
        trigger for known, trigger in pgtrigger.registry.registered(f"{model._meta.label}:{name}") if known is model
    ]
    return connection.ops.quote_name(trigger.get_pgid(model))
