"""Pages of the ground floor: the overview, runs with their attempts, and the log of what happened."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from django.db import transaction
from django.db.models import Count, Q
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST, require_safe

from pipeline import kinds, pages, readable
from pipeline.auth import Principal, SignedInRequest, signed_in
from pipeline.clock import ClockNow, db_now
from pipeline.definitions import diff
from pipeline.events import table as reactions_of_kinds
from pipeline.ids import is_id
from pipeline.models import Event, FailedReaction, Hold, Run, StepAttempt, Task, TaskDependency, Workstream
from pipeline.models.hold import stored
from pipeline.progress import Progress, TaskProgress
from pipeline.refusals import Refused, need_reason
from pipeline.schedule import Graph

FAILED_RUNS_SHOWN_DAYS = 7
SHOWN = 10
HISTORY_SHOWN = 16
# What a page about many rows never needs of an event: its documents and the text that was hashed.
BULK_OF_EVENT = ("canonical", "before", "after", "data")
# Filters of the log by what an event belongs to, and those that stand folded below the others.
TIES_ASKED_FOR = ("run", "task", "worker", "patch")
MORE_FILTERS = ("task", "worker", "patch", "actor", "since", "until")
BULK_OF_ATTEMPT = ("input_prompt", "error_log", "output_tail", "usage_summary", "metadata")


@require_safe
@signed_in
def overview(request: SignedInRequest) -> HttpResponse:
    """Is it moving, is it safe, what does it cost, and what waits for a person. Each app draws its own panels."""
    principal = request.principal
    since = ClockNow() - timedelta(days=FAILED_RUNS_SHOWN_DAYS)
    runs = Run.objects.visible_to(principal).select_related("project", "workstream", "phase")
    holds = Hold.objects.visible_to(principal).active().select_related("project").order_by("-pk")[:SHOWN]
    active = list(runs.active().order_by("-pk")[:SHOWN])
    count_tasks(active)
    latest = Event.objects.visible_to(principal).exclude(severity="debug").defer(*BULK_OF_EVENT).order_by("-pk")[:SHOWN]
    return render(
        request,
        "pipeline/overview.html",
        {
            "holds": _releasable(holds, principal),
            "failed_runs": runs.filter(state="failed", retries=None, ended_at__gte=since).order_by("-pk")[:SHOWN],
            "active_runs": active,
            "events": pages.with_addresses(latest),
        },
    )


def _releasable(holds: Iterable[Hold], principal: Principal) -> list[tuple[Hold, bool]]:
    """The holds, each with whether the viewer may release it."""
    return [(hold, principal.may("approver", hold.project_id)) for hold in holds]


# -- runs --------------------------------------------------------------------------------------------------------


@require_safe
@signed_in
def runs(request: SignedInRequest) -> HttpResponse:
    """The runs, newest first, with how far each is."""
    filters = pages.Filters(request)
    rows = Run.objects.visible_to(request.principal).select_related("project", "workstream", "phase")
    if state := filters.one_of("state", Run.State.values):
        rows = rows.filter(state=state)
    if project := filters.project():
        rows = rows.filter(project=project)
    page = pages.page_of(rows, filters)
    count_tasks(page.rows)
    return render(
        request,
        "pipeline/runs.html",
        {
            "runs": page.rows,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "states": Run.State.choices,
            "projects": pages.project_choices(request.principal),
            "workstreams": _startable(request),
        },
        status=filters.status,
    )


def _startable(request: SignedInRequest) -> Iterable[Workstream]:
    """The workstreams of which the caller may start a run."""
    rows = Workstream.objects.enabled().filter(phase__project__archived_at=None)
    projects = request.principal.project_ids("operator")
    if projects is not None:
        rows = rows.filter(phase__project__in=projects)
    rows = rows.select_related("phase__project").only("key", "name", "phase__key", "phase__project__key")
    return rows.order_by("phase__project__key", "phase__sequence", "key")[:500]


def count_tasks(runs: list[Run]) -> None:
    """Give each run its `tasks_total`, `tasks_done`, `tasks_failed` and `tasks_running`. One query for all."""
    rows = Task.objects.filter(run__in=runs).values("run_id").order_by("run_id")
    counted: dict[str, Any] = {
        row["run_id"]: row
        for row in rows.annotate(
            total=Count("pk"),
            done=Count("pk", filter=Q(state="completed")),
            failed=Count("pk", filter=Q(state="failed")),
            running=Count("pk", filter=Q(state__in=["running", "validating"])),
        )
    }
    for run in runs:
        found = counted.get(run.pk, {})
        for name in ("total", "done", "failed", "running"):
            setattr(run, f"tasks_{name}", found.get(name, 0))


@require_safe
@signed_in
def run(request: SignedInRequest, pk: str) -> HttpResponse:
    """One run: how far, what next, and what happened."""
    run = _run(request, pk)
    tasks = list(Task.objects.filter(run=run).defer("spec", "touches").order_by("sequence"))
    now = db_now()
    holds = _holds_over(run, tasks)
    history = Event.objects.filter(run_id=run.pk).exclude(severity="debug").defer(*BULK_OF_EVENT).order_by("-pk")
    count_tasks([run])
    return render(
        request,
        "pipeline/run.html",
        {
            "run": run,
            "may": pages.roles_in(request.principal, run.project_id),
            "tasks": tasks,
            "levels": _levels(tasks),
            "progress": _progress(run, tasks).snapshot(now),
            "elapsed": (run.ended_at or now) - run.started_at if run.started_at else None,
            "attempts": StepAttempt.objects.filter(run=run)
            .select_related("task", "tool")
            .defer("task__spec", *BULK_OF_ATTEMPT)
            .order_by("-sequence")[:50],
            "holds": _releasable(holds, request.principal),
            "is_held_by_people": any(hold.scope_kind == "run" and hold.kind == "manual" for hold in holds),
            "events": pages.with_addresses(history[:HISTORY_SHOWN]),
            "trail": [(_("Runs"), reverse("runs:list")), (run_title(run), "")],
            "title": run_title(run),
        },
    )


def _run(request: SignedInRequest, pk: str) -> Run:
    rows = Run.objects.visible_to(request.principal).select_related("project", "phase", "workstream")
    return get_object_or_404(rows, pk=pk)


def _holds_over(run: Run, tasks: list[Task]) -> list[Hold]:
    """The active holds that keep the run, or any of its tasks, from going on. One query."""
    over_tasks = Hold.objects.active().filter(scope_kind="task", scope_id__in=[stored(task.pk) for task in tasks])
    return list((Hold.objects.over_run(run) | over_tasks).select_related("project").order_by("pk"))


def run_title(run: Run) -> str:
    """What people call it: its workstream's name, or that it has none."""
    return run.workstream.name if run.workstream else _("Tasks of phase %(phase)s") % {"phase": run.phase.name}


@dataclass(frozen=True)
class Placed:
    """A task as the drawing by levels shows it: `needs` are keys, `is_critical` says that it is on the longest path."""

    key: str
    name: str
    state: str
    needs: list[str]
    is_critical: bool


def _levels(tasks: list[Task]) -> list[list[Placed]]:
    """The tasks by how many others have to end before them. One query."""
    needs: dict[str, list[str]] = {task.key: [] for task in tasks}
    edges = TaskDependency.objects.filter(task__in=tasks).order_by("needs__sequence")
    for key, needed in edges.values_list("task__key", "needs__key"):
        needs[key].append(needed)
    graph = Graph()
    for task in tasks:
        graph.add(task.key, depends_on=needs[task.key])
    # Without any dependency every task is a longest path of its own, which says nothing.
    critical = set(graph.critical_path()) if any(needs.values()) else set()
    placed = {
        task.key: Placed(task.key, task.name, task.state, needs[task.key], task.key in critical) for task in tasks
    }
    return [[placed[key] for key in level] for level in graph.levels()]


def _progress(run: Run, tasks: list[Task]) -> Progress:
    return Progress.of(
        (
            TaskProgress(
                task.key,
                task.state,
                duration=task.completed_at - task.started_at if task.completed_at and task.started_at else None,
            )
            for task in tasks
        ),
        started_at=run.started_at,
    )


@require_safe
@signed_in
def attempt(request: SignedInRequest, pk: str, sequence: int) -> HttpResponse:
    """One attempt: what it was told and what it said."""
    run = _run(request, pk)
    rows = StepAttempt.objects.filter(run=run).select_related("task", "tool", "prompt", "request")
    step = get_object_or_404(rows, sequence=sequence)
    title = _("Attempt %(number)d") % {"number": step.sequence}
    return render(
        request,
        "pipeline/attempt.html",
        {
            "run": run,
            "attempt": step,
            "title": title,
            "prompt": step.input_prompt or (step.prompt.text if step.prompt else ""),
            "trail": [
                (_("Runs"), reverse("runs:list")),
                (run_title(run), reverse("runs:run", args=[run.pk])),
                (title, ""),
            ],
        },
    )


@require_POST
@signed_in
def start_workstream(request: SignedInRequest) -> HttpResponse:
    """Open a run of the chosen workstream and start it; refused, neither happens."""
    filters = pages.Filters(request, request.POST)
    chosen = filters.id("workstream")
    filters.must()
    rows = Workstream.objects.visible_to(request.principal).select_related("phase__project")
    workstream = get_object_or_404(rows, pk=chosen or None)
    request.principal.must("operator", workstream.phase.project_id)
    made: list[Run] = []

    def open_and_start() -> None:
        if not workstream.enabled:
            raise Refused(_("This workstream is switched off, so it cannot be started"), code="workstream_disabled")
        with transaction.atomic():
            opened = Run.objects.open(by=request.principal.actor, workstream=workstream)
            opened.start(by=request.principal.actor)
        made.append(opened)

    answer = pages.act(request, open_and_start, done=_("The run is on its way."), to=reverse("runs:list"))
    return redirect("runs:run", made[0].pk) if made else answer


@require_POST
@signed_in
def run_start(request: SignedInRequest, pk: str) -> HttpResponse:
    """Start a pending run."""
    run = _run_for(request, pk)
    return _done(request, run, lambda: run.start(by=request.principal.actor), _("The run is on its way."))


@require_POST
@signed_in
def run_cancel(request: SignedInRequest, pk: str) -> HttpResponse:
    """Call a run off, with a reason."""
    run = _run_for(request, pk)
    reason = request.POST.get("reason", "")
    return _done(
        request,
        run,
        lambda: run.cancel(by=request.principal.actor, reason=need_reason(reason)),
        _("The run is being called off."),
    )


@require_POST
@signed_in
def run_hold(request: SignedInRequest, pk: str) -> HttpResponse:
    """Pause a run, with a reason."""
    run = _run_for(request, pk)
    reason = request.POST.get("reason", "")
    return _done(
        request,
        run,
        lambda: run.hold(by=request.principal.actor, reason=reason),
        _("The run is on hold: nothing more of it is claimed."),
    )


@require_POST
@signed_in
def run_release(request: SignedInRequest, pk: str) -> HttpResponse:
    """Release what people hold a run by, with a reason."""
    run = _run_for(request, pk, role="approver")
    reason = request.POST.get("reason", "")
    return _done(
        request,
        run,
        lambda: run.release(by=request.principal.actor, reason=need_reason(reason)),
        _("The run goes on."),
    )


@require_POST
@signed_in
def run_retry(request: SignedInRequest, pk: str) -> HttpResponse:
    """Open a new run of the same workstream; it waits to be started."""
    run = _run_for(request, pk)
    made: list[Run] = []
    done = _("A new run stands ready. Start it when you are.")
    answer = _done(request, run, lambda: made.append(run.retry(by=request.principal.actor)), done)
    return redirect("runs:run", made[0].pk) if made else answer


@require_POST
@signed_in
def hold_release(request: SignedInRequest, pk: str) -> HttpResponse:
    """End one pause, with a reason."""
    hold = get_object_or_404(Hold.objects.visible_to(request.principal), pk=pk)
    request.principal.must("approver", hold.project_id)
    reason = request.POST.get("reason", "")
    to = reverse("runs:run", args=[hold.scope_ref]) if hold.scope_kind == "run" else reverse("overview")
    return pages.act(
        request,
        lambda: hold.release(by=request.principal.actor, reason=need_reason(reason)),
        done=_("The hold is released."),
        to=to,
    )


def _run_for(request: SignedInRequest, pk: str, *, role: str = "operator") -> Run:
    """The run, for somebody who may act on it. Raises Http404 where it cannot be seen, Denied where it only can."""
    run = _run(request, pk)
    request.principal.must(role, run.project_id)
    return run


def _done(request: SignedInRequest, run: Run, verb: Any, done: str) -> HttpResponse:
    return pages.act(request, verb, done=done, to=reverse("runs:run", args=[run.pk]))


# -- events ------------------------------------------------------------------------------------------------------


@require_safe
@signed_in
def events(request: SignedInRequest) -> HttpResponse:
    """What happened, newest first; any object's history is this page, filtered."""
    filters = pages.Filters(request)
    rows = Event.objects.visible_to(request.principal).defer(*BULK_OF_EVENT)
    if kind := filters.kinds():
        rows = rows.filter(kind__in=kind)
    if channel := filters.one_of("channel", kinds.CHANNELS.values()):
        rows = rows.filter(channel=channel)
    if severity := filters.one_of("severity", kinds.SEVERITIES):
        rows = rows.filter(severity__in=kinds.SEVERITIES[kinds.SEVERITIES.index(severity) :])
    if project := filters.project():
        rows = rows.filter(project_id=project)
    for name in (*TIES_ASKED_FOR, "subject"):
        if value := filters.id(name):
            rows = rows.filter(**{f"{name}_id": value})
    if actor := filters.read("actor", str):
        rows = rows.filter(Q(actor_id=actor) if is_id(actor) else Q(actor_name=actor))
    if since := filters.time("since"):
        rows = rows.filter(created_at__gte=since)
    if until := filters.time("until"):
        rows = rows.filter(created_at__lt=until)
    page = pages.page_of(rows, filters)
    return render(
        request,
        "pipeline/events.html",
        {
            "events": pages.with_addresses(page.rows),
            "next_cursor": page.next_cursor,
            "filters": filters,
            "kinds": [*sorted({f"{name.partition('.')[0]}.*" for name in kinds.KINDS}), *sorted(kinds.KINDS)],
            "more": any(filters[name] for name in MORE_FILTERS),
            "channels": [(name, name.replace("_", " ")) for name in kinds.CHANNELS.values()],
            "severities": [(name, name) for name in kinds.SEVERITIES],
            "failed": FailedReaction.objects.visible_to(request.principal).open().count(),
            "administers": request.principal.project_ids(at_least="admin") != set(),
            "reads_all": request.principal.may("viewer", None),
            "projects": pages.project_choices(request.principal),
        },
        status=filters.status,
    )


@require_safe
@signed_in
def event(request: SignedInRequest, pk: str) -> HttpResponse:
    """One event whole: who, what about, before and after."""
    found = Event.objects.visible_to(request.principal).filter(pk=pk).first()
    if found is None:
        raise Http404
    (shown,) = pages.with_addresses([found])
    return render(
        request,
        "pipeline/event.html",
        {
            "event": shown,
            "changes": [Change(*row) for row in diff(shown.before or {}, shown.after or {})],
            "ties": pages.ties_of(shown),
            "trail": [(_("Events"), reverse("events:list")), (shown.kind, "")],
        },
    )


@dataclass(frozen=True)
class Change:
    """One field that an event changed."""

    name: str
    before: Any
    after: Any

    @property
    def inside(self) -> list[readable.Difference]:
        """What differs inside; empty where the whole value does."""
        return readable.differences(self.before, self.after)


class Failed(NamedTuple):
    """A failed reaction as its page shows it: whether the program still has the reaction, when it is tried next (None
    is now), and whether the viewer may replay or drop it.
    """

    failure: FailedReaction
    is_wired: bool
    next_try: datetime | None
    may_act: bool


@require_safe
@signed_in
def failed_reactions(request: SignedInRequest) -> HttpResponse:
    """Reactions that crashed and are not made good: the dead letters, and those that wait for their next try."""
    rows = FailedReaction.objects.visible_to(request.principal).open().select_related("project")
    filters = pages.Filters(request)
    page = pages.page_of(rows, filters)
    waiting = Event.objects.filter(pk__in=[failure.event_id for failure in page.rows], handled_at=None)
    next_try = dict(waiting.values_list("pk", "due_at"))
    wired = reactions_of_kinds()
    failures = [
        Failed(
            failure,
            is_wired=failure.reaction in wired.get(failure.kind, []),
            next_try=next_try.get(failure.event_id),
            may_act=request.principal.may("operator", failure.project_id),
        )
        for failure in page.rows
    ]
    return render(
        request,
        "pipeline/failed_reactions.html",
        {
            "failures": failures,
            "next_cursor": page.next_cursor,
            "filters": filters,
            "trail": [(_("Events"), reverse("events:list")), (_("Failed reactions"), "")],
        },
        status=filters.status,
    )


@require_POST
@signed_in
def failed_reaction_replay(request: SignedInRequest, pk: str) -> HttpResponse:
    """Have it tried again now."""
    return _failed_reaction_verb(request, pk, FailedReaction.replay, _("It is tried again now."))


@require_POST
@signed_in
def failed_reaction_drop(request: SignedInRequest, pk: str) -> HttpResponse:
    """Take it off the list, untried."""
    return _failed_reaction_verb(request, pk, FailedReaction.drop, _("It is off the list, and nobody tries it."))


def _failed_reaction_verb(request: SignedInRequest, pk: str, verb: Callable[..., bool], done: str) -> HttpResponse:
    failure = get_object_or_404(FailedReaction.objects.visible_to(request.principal), pk=pk)
    request.principal.must("operator", failure.project_id)
    reason = request.POST.get("reason", "")
    return pages.act(
        request,
        lambda: verb(failure, by=request.principal.actor, reason=reason),
        done=done,
        to=reverse("events:failed"),
    )
