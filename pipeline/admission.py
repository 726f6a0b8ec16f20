"""What one attempt is asked to do: effective scope and constraints, the tool that is chosen, the prompt it is told."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from django.conf import settings

from pipeline import constraints, events, prompts, routing, taskspec
from pipeline.models import ExecutionRequest, PromptInstance, RoutingDecision, StepAttempt, Task, Tool
from pipeline.questions import ask
from pipeline.refusals import Refused

TEMPLATE = "task.v1"
FEEDBACK_ATTEMPTS = 3
FEEDBACK_TAIL = 8 * 1024


@dataclass(frozen=True)
class Surroundings:
    """What stood around a task when it was claimed: the enabled tools in their order, how many attempts each has open,
    and the keys of the tools and accounts that a hold covers.
    """

    tools: Sequence[Tool]
    open_attempts: Mapping[str, int]
    held_tools: Collection[str] = ()
    held_accounts: Collection[str] = ()

    def slot_free(self, tool: Tool) -> bool:
        """Whether one more attempt may run with this tool."""
        return self.open_attempts.get(tool.pk, 0) < slots(tool)


def slots(tool: Tool) -> int:
    """How many attempts may run with this tool at the same time."""
    return tool.max_parallel or int(settings.SIGNALBOX_TOOL_MAX_PARALLEL)


@dataclass(frozen=True)
class Admitted:
    """A request with its prompt, the tool that was chosen for it, and why; none of the rows is stored yet."""

    request: ExecutionRequest
    prompt: PromptInstance
    tool: Tool
    decision: RoutingDecision
    failures: Sequence[prompts.Failure]


def effective(task: Task) -> constraints.Effective:
    """The constraints and scope that hold for `task`, with the layer that set each (domain.md §1.9).

    Not strict: when a wider layer was tightened after the run began, the tighter value wins.
    """
    layers = task.run.workstream.layers() if task.run.workstream else task.run.phase.layers()
    own = constraints.Layer("task", taskspec.delta_values(task.spec))
    return constraints.resolve([*layers, own], strict=False)


def admit(
    task: Task,
    around: Surroundings,
    *,
    offered: Collection[str] | None,
    base_commit: str,
    now: datetime,
    by: events.Actor,
) -> Admitted:
    """Route `task` to a tool that is offered here (None: to any), and make out request, prompt and decision.

    Raises NoRoutableTool, Refused `no_routable_tool_for_phase` when no tool is capable, PromptInvalid. Writes nothing:
    the claim stores the rows with its own, born at `now`.
    """
    bounds = effective(task)
    decision, tool = _route(task, bounds, around, offered)
    failures = earlier_failures(task)
    run = task.run
    prompt = _prompt(task, bounds, tool, failures)
    request = ExecutionRequest(
        created_at=now,
        project_id=run.project_id,
        phase_id=run.phase_id,
        workstream_id=run.workstream_id,
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
    row = RoutingDecision(
        created_at=now,
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
    prompt.created_at = now
    return Admitted(request, prompt, tool, row, failures)


def _route(
    task: Task, bounds: constraints.Effective, around: Surroundings, offered: Collection[str] | None
) -> tuple[routing.Decision, Tool]:
    rows = {row.key: row for row in around.tools if offered is None or row.key in offered}
    tools = [
        routing.Tool(
            key=row.key,
            order=row.order,
            kind=row.kind,
            task_kinds=tuple(row.capabilities.get("task_kinds", ())),
            domains=tuple(row.capabilities.get("domains", ())),
            slot_free=around.slot_free(row),
            held=row.key in around.held_tools or bool(row.account and row.account in around.held_accounts),
        )
        for row in rows.values()
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
    return decision, rows[decision.chosen]


def _profile_tools(task: Task) -> tuple[str, ...] | None:
    listed = task.run.project.profile.get("available_tools")
    return None if listed is None else tuple(tool["tool_id"] for tool in listed)


def _prompt(
    task: Task, bounds: constraints.Effective, tool: Tool, failures: Sequence[prompts.Failure]
) -> PromptInstance:
    run = task.run
    told = prompts.for_task(
        task.spec,
        objective=run.workstream.objective if run.workstream else "",
        files=task.touches,
        scope=bounds.scope(),
        constraints=bounds.values,
        failures=failures,
        target_tool=tool.key,
        ascii_only=bool(bounds.values.get("ascii_only", False)),
    )
    return PromptInstance(
        template_id=TEMPLATE,
        target_tool=tool.key,
        kind=task.kind,
        sections=dict(told.sections),
        rendering={"line_endings": "LF", "encoding": "utf-8", "ascii_only": told.ascii_only},
        text=told.text,
        sha256=told.sha256,
        project_id=run.project_id,
        phase_id=run.phase_id,
        workstream_id=run.workstream_id,
        source_app="pipeline",
        requested_by=run.requested_by,
    )


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
    if said := [words for told in ask("task.feedback", task=task) for words in told]:
        failures.append(prompts.Failure(attempt=task.generation, outcome="review", review_comments=said))
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
