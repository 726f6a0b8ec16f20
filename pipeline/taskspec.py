"""What a TaskSpec may say, written out in full, and whether a list of them makes a plan that can be carried out."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any

from pipeline import scope as paths
from pipeline.constraints import ConstraintWeakened, Effective, Layer, check, flatten, resolve, scope_values
from pipeline.prompts import section_name
from pipeline.refusals import InvalidField, MissingField, Refused
from pipeline.schedule import CircularDependency, Graph

SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")

KINDS = (
    "code_edit",
    "code_review",
    "analysis",
    "planning",
    "refactor",
    "documentation",
    "test",
    "question_answering",
    "other",
)
PATCH_KINDS = frozenset({"code_edit", "refactor", "documentation"})
COMPLEXITIES = ("trivial", "simple", "moderate", "complex", "expert")
PRIORITIES: Mapping[str, int] = {"low": 2, "normal": 5, "high": 8, "critical": 10}
ALIASES: Mapping[str, Mapping[str, str]] = {
    "complexity": {"low": "simple", "medium": "moderate", "high": "complex"},
    "priority": {"urgent": "critical"},
    "risk_tier": {"R1": "low", "R2": "medium", "R3": "high"},
}
RETRY_MODES = ("none", "simple", "exponential")
# What a task says when it fails, and the strategy of a workstream that means the same (domain.md §2.1.2).
ON_FAILURE: Mapping[str, str] = {
    "fail_workstream": "fail_fast",
    "skip_task": "continue",
    "route_error_phase": "escalate",
}
ACCEPTANCE_MODES = ("all", "any", "custom")

KEYS = frozenset(
    {
        "task_id",
        "name",
        "kind",
        "depends_on",
        "gates",
        "capabilities",
        "allow_parallel",
        "conflict_group",
        "group",
        "classification",
        "priority",
        "resource_scope_delta",
        "constraints_delta",
        "execution",
        "prompt_template_ref",
        "prompt_overrides",
        "acceptance",
        "error_handling",
        "requires_patch",
        "is_critical",
    }
)

# Defaults of domain.md §1.11; a caller with other settings passes them.
MAX_ATTEMPTS = 3
TIMEOUT_SECONDS = 1800


def slug(value: Any, field: str) -> str:
    """`value` itself when it is a key (domain.md §1.1): up to 64 of a-z 0-9 . _ - after a letter or digit.

    Raises InvalidField naming `field`.
    """
    if not isinstance(value, str) or not SLUG.fullmatch(value):
        raise InvalidField(field, f"must be a key such as add-tests (a-z, 0-9, '.', '_', '-'), not {value!r}")
    return value


def normalise(
    spec: Mapping[str, Any],
    *,
    max_attempts: int = MAX_ATTEMPTS,
    timeout_seconds: int = TIMEOUT_SECONDS,
    where: str = "",
) -> dict[str, Any]:
    """A TaskSpec (domain.md §2.1.2) checked, aliases resolved, defaults filled in; plain JSON, and idempotent.

    Always there: task_id, name, kind, depends_on, gates, capabilities, allow_parallel, classification, priority,
    resource_scope_delta, constraints_delta, execution {max_attempts, timeout_seconds, retry {mode}, background, …},
    prompt_overrides, acceptance, error_handling, requires_patch, is_critical. There when given: conflict_group, group,
    prompt_template_ref. A key whose value is None counts as absent. The two deltas are checked and kept as they were
    written (an export gives back what was imported); delta_values() reads them.
    Raises MissingField, and InvalidField naming the key (behind `where`) for unknown keys, types and values.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(spec, Mapping):
        raise InvalidField(where or "task", "must be an object")
    given = {key: value for key, value in spec.items() if value is not None}
    _refuse_unknown(given, KEYS, where)
    for key in ("task_id", "name", "kind"):
        if key not in given:
            raise MissingField(f"{prefix}{key}")
    kind = slug(given["kind"], f"{prefix}kind")
    classification = _classification(given.get("classification", {}), f"{prefix}classification")
    execution = _execution(given.get("execution", {}), f"{prefix}execution")
    scope_values(given.get("resource_scope_delta", {}), f"{prefix}resource_scope_delta")
    flatten(given.get("constraints_delta", {}), f"{prefix}constraints_delta")
    named_priority = PRIORITIES[classification.get("priority", "normal")]
    normal: dict[str, Any] = {
        "task_id": slug(given["task_id"], f"{prefix}task_id"),
        "name": _text(given["name"], f"{prefix}name"),
        "kind": kind,
        "depends_on": _keys(given.get("depends_on", []), f"{prefix}depends_on"),
        "gates": _keys(given.get("gates", []), f"{prefix}gates"),
        "capabilities": _texts(given.get("capabilities", []), f"{prefix}capabilities"),
        "allow_parallel": _flag(given.get("allow_parallel", False), f"{prefix}allow_parallel"),
        "classification": classification,
        "priority": _whole(given.get("priority", named_priority), f"{prefix}priority", 1, 10),
        "resource_scope_delta": dict(given.get("resource_scope_delta", {})),
        "constraints_delta": dict(given.get("constraints_delta", {})),
        "execution": {
            "max_attempts": max_attempts,
            "timeout_seconds": timeout_seconds,
            "retry": {"mode": "exponential"},
            "background": False,
            **execution,
        },
        "prompt_overrides": _overrides(given.get("prompt_overrides", {}), f"{prefix}prompt_overrides"),
        "acceptance": _acceptance(given.get("acceptance", {}), f"{prefix}acceptance"),
        "error_handling": _error_handling(given.get("error_handling", {}), f"{prefix}error_handling"),
        "requires_patch": _flag(given.get("requires_patch", kind in PATCH_KINDS), f"{prefix}requires_patch"),
        "is_critical": _flag(given.get("is_critical", True), f"{prefix}is_critical"),
    }
    for key, read in (("conflict_group", slug), ("group", slug), ("prompt_template_ref", _text)):
        if key in given:
            normal[key] = read(given[key], f"{prefix}{key}")
    return normal


def delta_values(task: Mapping[str, Any]) -> dict[str, Any]:
    """What a task's two deltas say, by flat field name, as a Layer takes it; raises InvalidField."""
    return {
        **flatten(task.get("constraints_delta") or {}, "constraints_delta"),
        **scope_values(task.get("resource_scope_delta") or {}, "resource_scope_delta"),
    }


def _refuse_unknown(given: Mapping[str, Any], known: Collection[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise InvalidField(f"{where}.{key}" if where else str(key), "unknown key")


def _object(value: Any, where: str, known: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidField(where, "must be an object")
    _refuse_unknown(value, known, where)
    return {key: inner for key, inner in value.items() if inner is not None}


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidField(field, "must be text that is not empty")
    return value.strip()


def _flag(value: Any, field: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidField(field, f"must be true or false, not {value!r}")
    return value


def _whole(value: Any, field: str, least: int, most: int | None = None) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least or (most is not None and value > most):
        words = f"of at least {least}" if most is None else f"from {least} to {most}"
        raise InvalidField(field, f"must be a whole number {words}, not {value!r}")
    return value


def _texts(value: Any, field: str, read: Callable[[Any, str], str] = _text) -> list[str]:
    if not isinstance(value, list | tuple):
        raise InvalidField(field, "must be a list")
    read_values = [read(entry, f"{field}[{at}]") for at, entry in enumerate(value)]
    if len(set(read_values)) < len(read_values):
        raise InvalidField(field, "names an entry twice")
    return read_values


def _keys(value: Any, field: str) -> list[str]:
    return _texts(value, field, slug)


def _one_of(value: Any, field: str, allowed: Iterable[str]) -> str:
    allowed = list(allowed)
    if value not in allowed:
        raise InvalidField(field, f"must be one of {', '.join(allowed)}, not {value!r}")
    return str(value)


def _classification(value: Any, where: str) -> dict[str, Any]:
    given = _object(value, where, ("complexity", "risk_tier", "domain", "priority"))
    read = {key: _text(inner, f"{where}.{key}") for key, inner in given.items()}
    read = {key: ALIASES.get(key, {}).get(inner, inner) for key, inner in read.items()}
    if "complexity" in read:
        _one_of(read["complexity"], f"{where}.complexity", COMPLEXITIES)
    if "priority" in read:
        _one_of(read["priority"], f"{where}.priority", PRIORITIES)
    return read


def _execution(value: Any, where: str) -> dict[str, Any]:
    known = ("max_attempts", "timeout_seconds", "retry", "background", "estimate_seconds", "estimate_amount")
    read = _object(value, where, known)
    for key in ("max_attempts", "timeout_seconds"):
        if key in read:
            _whole(read[key], f"{where}.{key}", 1)
    if "background" in read:
        _flag(read["background"], f"{where}.background")
    if "retry" in read:
        read["retry"] = _object(read["retry"], f"{where}.retry", ("mode",))
        if "mode" not in read["retry"]:
            raise MissingField(f"{where}.retry.mode")
        _one_of(read["retry"]["mode"], f"{where}.retry.mode", RETRY_MODES)
    if "estimate_seconds" in read:
        seconds = read["estimate_seconds"]
        # The comparison is false for "not a number" too, and the bound keeps sums finite.
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds <= 10**9:
            raise InvalidField(f"{where}.estimate_seconds", f"must be a number of seconds, not {seconds!r}")
    if "estimate_amount" in read:
        read["estimate_amount"] = str(_amount(read["estimate_amount"], f"{where}.estimate_amount"))
    return read


def _amount(value: Any, field: str) -> Decimal:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal("NaN")
    # Twelve digits before the point is what a column of money holds (domain.md §1.3).
    if isinstance(value, bool) or not amount.is_finite() or not 0 <= amount < 10**12:
        raise InvalidField(field, f"must be an amount of money that is not negative, not {value!r}")
    return amount


def _overrides(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise InvalidField(where, "must be an object")
    read: dict[str, Any] = {}
    for name, body in value.items():
        try:
            known = section_name(name)
        except InvalidField:
            raise InvalidField(f"{where}.{name}", "unknown section") from None
        if known in read:
            raise InvalidField(f"{where}.{name}", "given twice")
        if not isinstance(body, str) and not (isinstance(body, list) and all(isinstance(line, str) for line in body)):
            raise InvalidField(f"{where}.{name}", "must be text or a list of lines")
        read[known] = body
    return read


def _acceptance(value: Any, where: str) -> dict[str, Any]:
    read = _object(value, where, ("mode", "checks", "post_actions"))
    if "mode" in read:
        _one_of(read["mode"], f"{where}.mode", ACCEPTANCE_MODES)
    for key in ("checks", "post_actions"):
        if not isinstance(read.get(key, []), list):
            raise InvalidField(f"{where}.{key}", "must be a list")
    return read


def _error_handling(value: Any, where: str) -> dict[str, Any]:
    read = _object(value, where, ("on_failure", "error_phase_id"))
    if "on_failure" in read:
        _one_of(read["on_failure"], f"{where}.on_failure", ON_FAILURE)
    if "error_phase_id" in read:
        read["error_phase_id"] = _text(read["error_phase_id"], f"{where}.error_phase_id")
    return read


class PlanRefused(Refused):
    """A plan that cannot be carried out; `code` is that of its first finding, `parts["findings"]` lists all."""

    code = "invalid_plan"
    status = 422


@dataclass(frozen=True)
class Finding:
    """One reason why a plan is refused: a code of domain.md §1.10, the sentence, and the tasks it is about."""

    code: str
    message: str
    tasks: tuple[str, ...] = ()

    def document(self) -> dict[str, Any]:
        """The finding as plain JSON."""
        return {"code": self.code, "message": self.message, "tasks": list(self.tasks)}


@dataclass(frozen=True)
class Plan:
    """What the dry run of a plan answers; with findings about its shape, levels and what follows are empty.

    `tasks` are the normalised specs, `levels` their ids by depth, `widths` the length of each level, `critical_path`
    and `slack` weigh a task by its estimated seconds, or 1. `estimated_seconds` is the elapsed time when the batches
    run one after another and each takes as long as its longest task; `estimated_amount` adds up all tasks. Tasks
    without an estimate add nothing to either and stand in `unestimated`.
    """

    tasks: tuple[dict[str, Any], ...] = ()
    findings: tuple[Finding, ...] = ()
    levels: tuple[tuple[str, ...], ...] = ()
    widths: tuple[int, ...] = ()
    critical_path: tuple[str, ...] = ()
    slack: Mapping[str, float] = field(default_factory=dict)
    estimated_seconds: float = 0
    estimated_amount: Decimal = Decimal(0)
    unestimated: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True when nothing was found against the plan."""
        return not self.findings

    def refuse(self) -> None:
        """Nothing for a plan without findings; raises PlanRefused with the code of the first finding."""
        if self.findings:
            first = self.findings[0]
            raise PlanRefused(
                first.message, code=first.code, findings=[finding.document() for finding in self.findings]
            )


def check_plan(
    specs: Sequence[Mapping[str, Any]],
    *,
    scope: Mapping[str, Any] | None = None,
    constraints: Mapping[str, Any] | None = None,
    kinds: Collection[str] | None = None,
    max_parallel: int = 5,
    mode: str = "parallel",
    max_attempts: int = MAX_ATTEMPTS,
    timeout_seconds: int = TIMEOUT_SECONDS,
) -> Plan:
    """The plan check of domain.md §2.1.2; executes nothing and raises nothing about `specs`: see Plan.findings.

    `scope` is the workstream's effective resource scope, `constraints` its effective constraints (flat or grouped);
    without them, or for a scope that says neither write nor create, tasks are bound by their own deltas only. `kinds`
    are task kinds that tools declare besides KINDS; None accepts every kind. `max_parallel` and `mode` are the
    workstream's concurrency, the other two the defaults of normalise().
    Findings come in the order: invalid_plan (schema, ids twice, no task), unknown_dependency, circular_dependency,
    constraint_weakened, invalid_plan (impossible constraints), scope_overlap.
    """
    findings: list[Finding] = []
    tasks: list[dict[str, Any]] = []
    seen: set[str] = set()
    for at, spec in enumerate(specs):
        try:
            task = normalise(spec, max_attempts=max_attempts, timeout_seconds=timeout_seconds, where=f"tasks[{at}]")
        except InvalidField as error:
            findings.append(Finding("invalid_plan", f"Invalid plan: {error}"))
            continue
        if task["task_id"] in seen:
            findings.append(
                Finding("invalid_plan", f"Invalid plan: two tasks are called {task['task_id']}", (task["task_id"],))
            )
            continue
        if kinds is not None and task["kind"] not in (*KINDS, *kinds):
            message = f"Invalid plan: no tool declares the kind {task['kind']} of {task['task_id']}"
            findings.append(Finding("invalid_plan", message, (task["task_id"],)))
        seen.add(task["task_id"])
        tasks.append(task)
    if not specs:
        findings.append(Finding("invalid_plan", "Invalid plan: it has no task"))
    if findings:
        return Plan(tasks=tuple(tasks), findings=tuple(findings))

    wider = resolve([Layer("workstream", {**scope_values(scope or {}, "scope"), **flatten(constraints or {})})])
    effective: dict[str, Effective] = {}
    graph = Graph()
    for task in tasks:
        layer = Layer(f"task {task['task_id']}", delta_values(task))
        try:
            check(wider, layer)
        except ConstraintWeakened as error:
            findings.append(Finding(error.code, str(error), (task["task_id"],)))
        effective[task["task_id"]] = resolve([Layer("workstream", wider.values), layer], strict=False)
        graph.from_spec(task)

    shape = list(_unknown(graph))
    if not shape and (circle := graph.cycle()):
        shape.append(Finding("circular_dependency", str(CircularDependency(circle)), tuple(circle[:-1])))
    impossible = [finding for task in tasks for finding in _impossible(task, effective[task["task_id"]])]
    if shape:
        return Plan(tasks=tuple(tasks), findings=(*shape, *findings, *impossible))

    levels = graph.levels()
    estimates = {task["task_id"]: task["execution"].get("estimate_seconds", 0) for task in tasks}
    return Plan(
        tasks=tuple(tasks),
        findings=(*findings, *impossible, *_overlaps(tasks, effective, levels)),
        levels=tuple(tuple(level) for level in levels),
        widths=tuple(len(level) for level in levels),
        critical_path=tuple(graph.critical_path()),
        slack=graph.slack(),
        estimated_seconds=sum(max(estimates[id] for id in batch) for batch in graph.batches(max_parallel, mode=mode)),
        estimated_amount=sum(
            (Decimal(task["execution"].get("estimate_amount", "0")) for task in tasks), start=Decimal(0)
        ),
        unestimated=tuple(task["task_id"] for task in tasks if "estimate_seconds" not in task["execution"]),
    )


def _unknown(graph: Graph) -> Iterable[Finding]:
    for node in graph:
        for needs in node.depends_on:
            if graph.get(needs) is None:
                yield Finding("unknown_dependency", f"Unknown dependency: {node.id} needs {needs}", (node.id,))


def write_scope(values: Mapping[str, Any]) -> list[str] | None:
    """The globs that may be written under effective `values`: write and create together; None when neither is set."""
    if "write" not in values and "create" not in values:
        return None
    return list(dict.fromkeys([*values.get("write", ()), *values.get("create", ())]))


def _impossible(task: Mapping[str, Any], effective: Effective) -> Iterable[Finding]:
    id, values = task["task_id"], effective.values
    if not task["requires_patch"]:
        return
    writable = write_scope(values)
    if writable is not None and all(paths.covered(glob, values.get("forbidden", ())) for glob in writable):
        yield Finding("invalid_plan", f"Invalid plan: {id} requires a patch but may write nothing", (id,))
    for name in ("max_lines_changed", "max_files_changed"):
        if values.get(name) == 0:
            yield Finding("invalid_plan", f"Invalid plan: {id} requires a patch but {name} is 0", (id,))


def _overlaps(
    tasks: Sequence[Mapping[str, Any]], effective: Mapping[str, Effective], levels: Sequence[Sequence[str]]
) -> Iterable[Finding]:
    """Pairs that could change one path at the same time: both write, neither waits for the other, no common group."""
    by_id = {task["task_id"]: task for task in tasks}
    before: dict[str, set[str]] = {}
    for level in levels:
        for id in level:
            needs = by_id[id]["depends_on"]
            before[id] = set(needs).union(*(before[other] for other in needs))
    touched = {id: _touched(task, effective[id]) for id, task in by_id.items()}
    ids = list(by_id)
    for at, one in enumerate(ids):
        for other in ids[at + 1 :]:
            group = by_id[one].get("conflict_group")
            ordered = one in before[other] or other in before[one]
            if ordered or (group is not None and group == by_id[other].get("conflict_group")):
                continue
            if paths.overlap(touched[one], touched[other]):
                message = f"Overlapping write scopes: {one} and {other}; order them or give them one conflict_group"
                yield Finding("scope_overlap", message, (one, other))


def _touched(task: Mapping[str, Any], effective: Effective) -> list[str]:
    """What a task writes: what its own delta says, else the workstream's if it brings a patch, else nothing."""
    own = [name for name in ("write", "create") if name in task["resource_scope_delta"]]
    if own:
        return [glob for name in own for glob in effective.values[name]]
    return (write_scope(effective.values) or []) if task["requires_patch"] else []
