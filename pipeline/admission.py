"""What one attempt is asked to do: effective scope and constraints, the tool that is chosen, the prompt it is told."""

from collections.abc import Collection
from dataclasses import dataclass

from django.conf import settings
from django.db.models import Count

from pipeline import constraints, events, prompts, routing, taskspec
from pipeline.models import ExecutionRequest, Hold, PromptInstance, RoutingDecision, StepAttempt, Task, Tool
from pipeline.refusals import Refused

TEMPLATE = "task.v1"
FEEDBACK_ATTEMPTS = 3
FEEDBACK_TAIL = 8 * 1024


@dataclass(frozen=True)
class Admitted:
    """A request with the tool that was chosen for it and the routing decision's row."""

    request: ExecutionRequest
    tool: Tool
    decision: RoutingDecision


def effective(task: Task) -> constraints.Effective:
    """The constraints and scope that hold for `task`, with the layer that set each (domain.md §1.9).

    Not strict: when a wider layer was tightened after the run began, the tighter value wins.
    """
    layers = task.run.workstream.layers() if task.run.workstream else task.run.phase.layers()
    own = constraints.Layer("task", taskspec.delta_values(task.spec))
    return constraints.resolve([*layers, own], strict=False)


def admit(task: Task, *, offered: Collection[str] | None, base_commit: str, by: events.Actor) -> Admitted:
    """Route `task` to a tool that is offered here (None: to any), and write request, prompt and decision.

    Raises NoRoutableTool, Refused `no_routable_tool_for_phase` when no tool is capable, PromptInvalid. Runs inside the
    claim's transaction; takes each chosen tool's slot under a lock of its own.
    """
    bounds = effective(task)
    decision = _route(task, bounds, offered)
    tool = Tool.objects.get(key=decision.chosen)
    prompt = _prompt(task, bounds, tool)
    run = task.run
    request = ExecutionRequest(
        project=run.project,
        phase=run.phase,
        workstream=run.workstream,
        task=task,
        task_kind=task.kind,
        classification=task.spec.get("classification") or {},
        resource_scope={"type": "files", **bounds.scope()},
        constraints={
            name: {"value": told["value"], "layer": told["layer"]}
            for name, told in bounds.explain().items()
            if name not in constraints.SCOPE_FIELDS
        },
        prompt=prompt,
        description=task.name,
        tool=tool,
        command=tool.command,
        base_commit=base_commit,
        routing={
            "strategy": decision.strategy,
            "allowed_tools": bounds.values.get("allowed_tools", []),
            "max_attempts": task.max_attempts,
            "timeout_seconds": task.timeout_seconds,
        },
        correlation_id=events.request_id.get(),
        created_by=by.name,
    )
    request.save(force_insert=True)
    row = RoutingDecision(
        task=task,
        run=run,
        request=request,
        rule=decision.rule or "",
        strategy=decision.strategy,
        candidates=[candidate.document() for candidate in decision.candidates],
        inputs={"task_kind": task.kind, "offered": sorted(offered or [])},
        chosen=tool,
        reason=decision.reason,
    )
    row.save(force_insert=True)
    events.record("routing.decided", row, by=by, data={"tool": tool.key, "reason": decision.reason})
    return Admitted(request, tool, row)


def _route(task: Task, bounds: constraints.Effective, offered: Collection[str] | None) -> routing.Decision:
    rows = list(Tool.objects.enabled().order_by("pk"))
    if offered is not None:
        rows = [row for row in rows if row.key in offered]
    busy = dict(
        StepAttempt.objects.open()
        .filter(tool__in=rows, task__isnull=False)
        .values_list("tool__key")
        .annotate(number=Count("pk"))
        .order_by("tool__key")
    )
    held = set(Hold.objects.active().filter(scope_kind="tool").values_list("scope_id", flat=True))
    accounts = set(Hold.objects.active().filter(scope_kind="account").values_list("scope_id", flat=True))
    tools = [
        routing.Tool(
            key=row.key,
            order=row.order,
            kind=row.kind,
            task_kinds=tuple(row.capabilities.get("task_kinds", ())),
            domains=tuple(row.capabilities.get("domains", ())),
            slot_free=busy.get(row.key, 0) < (row.max_parallel or settings.SIGNALBOX_TOOL_MAX_PARALLEL),
            held=row.key in held or bool(row.account and row.account in accounts),
        )
        for row in rows
    ]
    allowed = bounds.values.get("allowed_tools")
    classification = {k: v for k, v in (task.spec.get("classification") or {}).items() if isinstance(v, str)}
    request = routing.Request(
        task_kind=task.kind,
        classification=classification,
        phase_tools=None if allowed is None else tuple(allowed),
        profile_tools=_profile_tools(task),
        disallowed=tuple(bounds.values.get("disallowed_tools", ())),
    )
    decision = routing.decide(request, [], tools)
    if decision is None or decision.chosen is None:
        raise Refused(f"No capable tool for {task.kind} is offered here", code="no_routable_tool_for_phase", status=409)
    return decision


def _profile_tools(task: Task) -> tuple[str, ...] | None:
    listed = task.run.project.profile.get("available_tools")
    return None if listed is None else tuple(tool["tool_id"] for tool in listed)


def _prompt(task: Task, bounds: constraints.Effective, tool: Tool) -> PromptInstance:
    run = task.run
    told = prompts.for_task(
        task.spec,
        objective=run.workstream.objective if run.workstream else "",
        files=task.touches,
        scope=bounds.scope(),
        constraints=bounds.values,
        failures=earlier_failures(task),
        target_tool=tool.key,
        ascii_only=bool(bounds.values.get("ascii_only", False)),
    )
    row = PromptInstance(
        template_id=TEMPLATE,
        target_tool=tool.key,
        kind=task.kind,
        sections=dict(told.sections),
        rendering={"line_endings": "LF", "encoding": "utf-8", "ascii_only": told.ascii_only},
        text=told.text,
        sha256=told.sha256,
        project=run.project,
        phase=run.phase,
        workstream=run.workstream,
        source_app="pipeline",
        requested_by=run.requested_by,
    )
    row.save(force_insert=True)
    return row


def earlier_failures(task: Task) -> list[prompts.Failure]:
    """What the task's last attempts left behind, oldest first, as feedback for the next (domain.md §3.4)."""
    if not task.count_attempts:
        return []
    ended = StepAttempt.objects.filter(task=task).exclude(outcome=None).order_by("-sequence")[:FEEDBACK_ATTEMPTS]
    failures = [
        prompts.Failure(
            attempt=attempt.generation or attempt.sequence,
            outcome=attempt.outcome or "",
            message=attempt.error_log[:2000],
            output_tail=attempt.output_tail[-FEEDBACK_TAIL:],
        )
        for attempt in reversed(ended)
        if attempt.outcome != "success"
    ]
    if message := _repair_message(task):
        failures.append(prompts.Failure(attempt=task.generation, outcome="gate_failed", message=message))
    return failures


def _repair_message(task: Task) -> str:
    """Why the task was last sent back for repair; "" when it was not.

    An attempt that was lost since then has overwritten the task's own note, but what failed has still to be repaired.
    """
    if task.last_outcome == "gate_failed":
        return task.last_error
    if not task.count_repairs:
        return ""
    failed = events.Event.objects.filter(run_id=task.run_id, kind="patch.apply_failed", task_id=task.pk)
    newest = failed.order_by("-seq").first()
    return newest.reason[:2000] if newest else ""
