"""Why isn't this moving? Every unfinished object waits for exactly one holder (domain.md §3.6). A pure read.

The app that owns an object says for whom it waits (question `blockers`); where that is another object, that one is
asked next, down to the root. This module asks, and answers for the nouns of its own app.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from django.apps import apps
from django.db.models import Count, Q

from pipeline.ids import is_id
from pipeline.models import Delivery, Event, Hold, Run, StepAttempt, Task, TaskDependency, Tool
from pipeline.models.hold import stored
from pipeline.questions import ask
from pipeline.refusals import InvalidField, NotFound
from pipeline.rows import Row

KINDS = ("user", "worker", "gate", "quota", "budget", "queue", "dependency")
LONGEST = 50
"""Links of a chain that are followed: a longer one is cut, and its first holder still stands."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The one party on which an object waits: one of KINDS, its id or key ("" for a group), and its name."""

    kind: str
    id: str
    label: str


@dataclass(frozen=True, slots=True)
class Action:
    """What would remove the blocker: the API's verb, its address below /api/v1, and the role that it needs."""

    verb: str
    address: str
    role: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    """What an app says of one object of its own.

    `holder` None means: whoever holds `on`. With a holder, `on` is what the chain goes on with.
    """

    code: str
    reason: str
    holder: Holder | None = None
    since: datetime | None = None
    eta: datetime | None = None
    action: Action | None = None
    on: Any = None


@dataclass(frozen=True, slots=True)
class Link:
    """One object of a chain, and why it waits."""

    noun: str
    id: str
    label: str
    code: str
    reason: str


@dataclass(frozen=True, slots=True)
class Blocker:
    """The answer: who holds `noun` `id`, since when, why, what would help, when it is expected to go on by itself.

    `chain` are the objects in between, the asked one first and the root last.
    """

    noun: str
    id: str
    label: str
    holder: Holder
    code: str
    reason: str
    since: datetime | None
    eta: datetime | None
    action: Action | None
    chain: tuple[Link, ...]


ENGINE = Holder("queue", "", "engine")
OPERATORS = Holder("user", "", "operators")


def blocker(subject: Row, *, to_the_root: bool = True) -> Blocker | None:
    """Who holds `subject`, a row of any noun; None when it is finished, or is nothing that could wait.

    Without `to_the_root` the chain ends where the holder is known, which costs fewer queries.
    """
    chain: list[Link] = []
    decided: Wait | None = None
    here: Any = subject
    seen: set[str] = set()
    while here is not None and here.pk not in seen and len(chain) < LONGEST:
        seen.add(here.pk)
        said = wait_of(here)
        if said is None:
            break
        chain.append(Link(here.noun(), here.pk, str(here), said.code, said.reason))
        if decided is None and said.holder is not None:
            decided = said
        here = said.on if decided is None or to_the_root else None
    if not chain:
        return None
    # What it waited for may have finished between two looks: then it goes on by itself.
    decided = decided or Wait(code="due", reason="It goes on within seconds", holder=ENGINE)
    assert decided.holder is not None
    return Blocker(
        subject.noun(),
        subject.pk,
        str(subject),
        decided.holder,
        decided.code,
        decided.reason,
        decided.since,
        decided.eta,
        decided.action,
        tuple(chain),
    )


def wait_of(row: Any) -> Wait | None:
    """What `row` itself waits for; None when it is finished, or nobody knows its noun."""
    own = _OWN.get(type(row))
    return own(row) if own is not None else _asked(row)


def _asked(row: Any) -> Wait | None:
    """What the apps above say of it: the first that has something to say."""
    return next(iter(ask("blockers", subject=row)), None)


def last_said(row: Any, kind: str) -> tuple[str, datetime | None]:
    """(why, when) of the newest event of this kind about `row`; ("", None) when there is none."""
    found = Event.objects.about(row).filter(kind=kind).values_list("reason", "created_at").last()
    return found or ("", None)


# -- the nouns of this app ---------------------------------------------------------------------------------------


def _held(holds: Any) -> Wait | None:
    """The oldest of these holds, as what the object waits for."""
    hold = holds.order_by("since", "pk").first()
    return None if hold is None else _hold(hold)


def _hold(hold: Hold) -> Wait | None:
    if hold.state != Hold.State.ACTIVE:
        return None
    kind = hold.holder_kind if hold.holder_kind in KINDS else "user"
    return Wait(
        code=f"held_{hold.kind}",
        reason=hold.reason,
        holder=Holder(kind, hold.pk, hold.holder),
        since=hold.since,
        eta=hold.until,
        action=Action("release", f"/holds/{hold.pk}/release/", "approver"),
    )


def _run(run: Run) -> Wait | None:
    if run.is_finished:
        return None
    if run.state == Run.State.PENDING:
        if missing := run.open_prerequisites():
            reason = f"{', '.join(missing)} has to succeed first"
            return Wait(code="prerequisites_open", reason=reason, holder=Holder("dependency", "", missing[0]))
        start = Action("start", f"/runs/{run.pk}/start/", "operator")
        held = _held(Hold.objects.over_run(run))
        return held or Wait(
            code="not_started", reason="Nobody has started it", holder=OPERATORS, since=run.created_at, action=start
        )
    open_tasks = list(run.tasks.unfinished().select_related("run__project"))
    if run.ending_to:
        leased = next((task for task in open_tasks if task.state == Task.State.RUNNING), None)
        if leased is None:
            return Wait(code="due", reason="It is being wound down", holder=ENGINE, since=run.ending_requested_at)
        reason = f"It is being wound down, and {leased} still runs"
        return Wait(code="winding_down", reason=reason, since=run.ending_requested_at, on=leased)
    if held := _held(Hold.objects.over_run(run)):
        return held
    if not open_tasks:
        return Wait(code="due", reason="Nothing of it is open: it is completed when its turn comes", holder=ENGINE)
    first = min(open_tasks, key=_advance)
    return Wait(code="task_open", reason=f"{first} is {first.get_state_display()}", on=first)


_ADVANCE = [
    Task.State.VALIDATING, Task.State.RUNNING, Task.State.RETRYING, Task.State.QUEUED, Task.State.PENDING,
    Task.State.BLOCKED,
]  # fmt: skip


def _advance(task: Task) -> tuple[bool, int, int, int]:
    """The order in which a run's open tasks are asked: critical ones first, the furthest, the best, the earliest."""
    return not task.is_critical, _ADVANCE.index(Task.State(task.state)), -task.score, task.sequence


def _task(task: Task) -> Wait | None:
    if task.state in Task.ENDED:
        return None
    if held := _held(Hold.objects.covering(task)):
        return held
    if task.state in (Task.State.PENDING, Task.State.BLOCKED):
        return _before(task)
    if task.state == Task.State.RETRYING:
        reason = f"It is tried again after a pause: {task.state_reason or task.last_error}".rstrip(": ")
        retry = Action("retry", f"/tasks/{task.pk}/retry/", "operator")
        return Wait(code="retrying", reason=reason, holder=ENGINE, eta=task.retry_at, action=retry)
    if task.state == Task.State.QUEUED:
        return _no_slot(task) or _conflict(task) or _asked(task) or _in_line(task)
    return _asked(task) or Wait(
        code="due", reason=f"It is {task.get_state_display()}, and goes on within seconds", holder=ENGINE
    )


def _before(task: Task) -> Wait:
    """The first task that it needs and that is not completed."""
    unmet = TaskDependency.objects.unmet().filter(task=task).select_related("needs__run__project")
    found = unmet.order_by("needs__sequence").first()
    if found is None:
        if task.run.state == Run.State.PENDING:
            return Wait(code="run_not_started", reason="Its run has not started", on=task.run)
        return Wait(code="due", reason="Nothing that it needs is open: it is queued within seconds", holder=ENGINE)
    needed = found.needs
    reason = f"It needs {needed}, which is {needed.get_state_display()}"
    return Wait(code="dependency_open", reason=reason, holder=Holder("dependency", needed.pk, str(needed)), on=needed)


def _no_slot(task: Task) -> Wait | None:
    """No enabled tool does its kind; or each that does is held, or has as many attempts open as it may."""
    counted = Q(attempts__state__in=["pending", "running"], attempts__task__isnull=False)
    fit = Tool.objects.enabled().filter(capabilities__task_kinds__contains=[task.kind])
    tools: list[Any] = list(fit.annotate(open_attempts=Count("attempts", filter=counted)).order_by("key"))
    if not tools:
        reason = f"No enabled tool does tasks of the kind “{task.kind}”"
        holder = Holder("user", "", "administrators")
        return Wait(code="no_tool", reason=reason, holder=holder, action=Action("create", "/tools/", "admin"))
    holds = Hold.objects.active().filter(scope_kind="tool", scope_id__in=[stored(tool.key) for tool in tools])
    held = {hold.scope_id: hold for hold in holds}
    free = [tool for tool in tools if stored(tool.key) not in held]
    if not free:
        return _hold(held[stored(tools[0].key)])
    full = [tool for tool in free if tool.max_parallel is not None and tool.open_attempts >= tool.max_parallel]
    if len(full) < len(free):
        return None
    tool = full[0]
    reason = f"{tool.key} does {tool.max_parallel} at a time, and as many are open"
    return Wait(code="slots_full", reason=reason, holder=Holder("quota", tool.pk, tool.key))


def _conflict(task: Task) -> Wait | None:
    """A running task beside which it may not run: of its run, or of its conflict group in the whole project."""
    running = Task.objects.filter(state=Task.State.RUNNING).select_related("run__project").order_by("started_at", "pk")
    others = list(running.filter(run=task.run_id))
    rival = next((other for other in others if not other.spec.get("allow_parallel")), None)
    if rival is None and others and not task.spec.get("allow_parallel"):
        rival = others[0]
    if rival is None and task.conflict_group:
        rival = running.filter(project=task.project_id, conflict_group=task.conflict_group).first()
    if rival is not None:
        reason, code = f"It may not run beside {rival}", "conflict"
    elif len(others) >= task.run.max_parallel:
        rival, code = others[0], "run_full"
        reason = f"Its run has {len(others)} tasks running, which is as many as it may"
    else:
        return None
    return Wait(code=code, reason=reason, holder=Holder("dependency", rival.pk, str(rival)), on=rival)


def _in_line(task: Task) -> Wait:
    better = Q(score__gt=task.score) | Q(score=task.score, sequence__lt=task.sequence)
    line = Task.objects.filter(project=task.project_id, state=Task.State.QUEUED, run__state=Run.State.RUNNING)
    place = line.filter(better | Q(score=task.score, sequence=task.sequence, pk__lt=task.pk)).count() + 1
    return Wait(code="queued", reason=f"It waits for a worker, number {place} in line", holder=ENGINE)


def _attempt(attempt: StepAttempt) -> Wait | None:
    if attempt.state == StepAttempt.State.PENDING:
        return Wait(code="due", reason="It has not started", holder=ENGINE, since=attempt.created_at)
    if attempt.state != StepAttempt.State.RUNNING:
        return None
    if attempt.task is None:
        holder = Holder("user", "", "whoever opened it")
        end = Action("complete", f"/steps/{attempt.pk}/complete/", "operator")
        return Wait(
            code="running", reason="Whoever opened it ends it", holder=holder, since=attempt.started_at, action=end
        )
    return Wait(code="running", reason="Its worker is at it", since=attempt.started_at, on=attempt.task)


def _delivery(delivery: Delivery) -> Wait | None:
    if delivery.state != Delivery.State.PENDING:
        return None
    endpoint = delivery.endpoint
    if not endpoint.is_enabled:
        enable = Action("enable", f"/webhooks/{endpoint.pk}/enable/", "admin")
        holder = Holder("user", "", "administrators")
        reason = f"The webhook is disabled: {endpoint.disabled_reason}"
        since = endpoint.disabled_at
        return Wait(code="webhook_disabled", reason=reason, holder=holder, since=since, action=enable)
    reason = delivery.last_error or "It is sent when its turn comes"
    return Wait(code="delivery_due", reason=reason, holder=ENGINE, eta=delivery.next_attempt_at)


_OWN: dict[type, Callable[[Any], Wait | None]] = {
    Run: _run,
    Task: _task,
    StepAttempt: _attempt,
    Hold: _hold,
    Delivery: _delivery,
}


# -- finding what is asked about ---------------------------------------------------------------------------------


def find(noun: str, pk: str, principal: Any) -> Row:
    """The row of this noun and id that `principal` may see.

    Raises InvalidField for a noun that never waits for anybody, NotFound for a row that is not there or not visible.
    """
    if noun not in _waiting():
        raise InvalidField("subject_type", f"one of {', '.join(_waiting())}, not “{noun}”")
    rows: Any = _waiting()[noun]._default_manager
    row: Row | None = rows.visible_to(principal).filter(pk=pk).first() if is_id(pk) else None
    if row is None:
        raise NotFound.of(noun)
    return row


@cache
def _waiting() -> dict[str, type[Row]]:
    """The models of nouns that wait, by noun: those with states, attempts of deliveries, and leases."""
    found = {model.noun(): model for model in apps.get_models() if issubclass(model, Row) and _may_wait(model)}
    return dict(sorted(found.items()))


def _may_wait(model: type[Row]) -> bool:
    names = {field.name for field in model._meta.concrete_fields}
    return hasattr(model._default_manager.all(), "visible_to") and bool(names & {"state", "ended_at"})
