"""What is to be done: phases of a project, workstreams of a phase, each with its tasks' specifications."""

from typing import Any, Self

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from pipeline import taskspec
from pipeline.constraints import SCOPE_FIELDS, Layer, check_words, flatten, resolve, scope_values
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.models.project import Project, slug_rule
from pipeline.refusals import InvalidField
from pipeline.rows import versioned


class PhaseQuerySet(DefinitionQuerySet["Phase"]):
    """The words for asking about phases."""

    def visible_to(self, principal: Any) -> Self:
        """The phases of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)


@versioned()
class Phase(Definition):
    """A stage of a project: its scope, constraints and acceptance bind every workstream in it."""

    NOUN = "phase"

    project = models.ForeignKey(Project, models.CASCADE, related_name="phases")
    key = models.CharField(max_length=64, validators=[slug_rule])
    name = models.CharField(max_length=200)
    category = models.CharField(max_length=64)
    sequence = models.PositiveIntegerField(default=1, validators=[MinValueValidator(1)])
    depends_on = models.JSONField(default=list, blank=True)
    resource_scope = models.JSONField(default=dict, blank=True)
    constraints = models.JSONField(default=dict, blank=True)
    acceptance = models.JSONField(default=dict, blank=True)
    allowed_tools = models.JSONField(default=list, blank=True)
    disallowed_tools = models.JSONField(default=list, blank=True)
    is_error_phase = models.BooleanField(default=False)

    objects = PhaseQuerySet.as_manager()

    class Meta:
        ordering = ["project", "sequence", "key"]
        constraints = [
            models.UniqueConstraint(fields=["project", "key"], name="phase_key_once_per_project"),
            models.CheckConstraint(name="phase_sequence_from_one", condition=models.Q(sequence__gte=1)),
        ]

    def __str__(self) -> str:
        return f"{self.project.key}/{self.key}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a phase belong to its project."""
        return {"project_id": self.project_id}

    def layers(self) -> list[Layer]:
        """This phase as a layer of the resolver, scope and constraints together."""
        own = {**flatten(self.constraints), **scope_values(self.resource_scope)}
        if self.allowed_tools:
            own["allowed_tools"] = self.allowed_tools
        if self.disallowed_tools:
            own["disallowed_tools"] = self.disallowed_tools
        return [Layer("phase", own)]

    def check_rules(self) -> None:
        """Globs are globs, constraints known and typed, dependencies phases of the project without a cycle."""
        resolve(self.layers())
        check_words(flatten(self.constraints))
        others = {p.key: p.depends_on for p in Phase.objects.filter(project=self.project_id).exclude(pk=self.pk)}
        _check_keys("depends_on", self.depends_on, known=set(others))
        _check_acyclic(self.key, {**others, self.key: self.depends_on})


class WorkstreamQuerySet(DefinitionQuerySet["Workstream"]):
    """The words for asking about workstreams."""

    def visible_to(self, principal: Any) -> Self:
        """The workstreams of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(phase__project__in=ids)

    def enabled(self) -> Self:
        """Those that runs may execute."""
        return self.filter(enabled=True)


@versioned()
class Workstream(Definition):
    """An ordered body of work inside a phase: tasks with their dependencies, executed as a whole by a run."""

    NOUN = "workstream"

    class OnError(models.TextChoices):
        FAIL_FAST = "fail_fast", _("fail fast")
        CONTINUE = "continue", _("continue")
        ESCALATE = "escalate", _("escalate")

    phase = models.ForeignKey(Phase, models.CASCADE, related_name="workstreams")
    key = models.CharField(max_length=64, validators=[slug_rule])
    name = models.CharField(max_length=200)
    objective = models.TextField()
    tasks = models.JSONField()
    description = models.TextField(blank=True)
    category = models.CharField(max_length=64, blank=True)
    tags = models.JSONField(default=list, blank=True)
    depends_on = models.JSONField(default=list, blank=True)
    resource_scope = models.JSONField(default=dict, blank=True)
    constraints = models.JSONField(default=dict, blank=True)
    acceptance = models.JSONField(default=dict, blank=True)
    concurrency = models.JSONField(default=dict, blank=True)
    error_handling = models.JSONField(default=dict, blank=True)
    enabled = models.BooleanField(default=True)
    revision = models.PositiveIntegerField(default=1, editable=False)

    objects = WorkstreamQuerySet.as_manager()

    class Meta:
        ordering = ["phase", "key"]
        constraints = [
            models.UniqueConstraint(fields=["phase", "key"], name="workstream_key_once_per_phase"),
            models.CheckConstraint(name="workstream_has_objective", condition=~models.Q(objective="")),
        ]

    def __str__(self) -> str:
        return f"{self.phase}/{self.key}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a workstream belong to it and its project."""
        return {"project_id": self.phase.project_id, "workstream_id": self.pk}

    @property
    def strategy(self) -> str:
        """What a failed task does to the rest when the task does not say: fail_fast, continue or escalate."""
        return str(self.error_handling.get("strategy", self.OnError.FAIL_FAST))

    @property
    def max_parallel(self) -> int | None:
        """How many of its tasks may run at once in a run; None = the installation's default."""
        if self.concurrency.get("mode") == "sequential":
            return 1
        given = self.concurrency.get("max_parallel")
        return None if given is None else int(given)

    def layers(self) -> list[Layer]:
        """The phase's layer and this workstream's, wide to narrow."""
        own = {**flatten(self.constraints), **scope_values(self.resource_scope)}
        return [*self.phase.layers(), Layer("workstream", own)]

    def plan(self) -> taskspec.Plan:
        """The plan check as a dry run, which executes nothing; what is wrong stands in its findings."""
        return plan_of(self.tasks, self.layers(), mode=self.concurrency.get("mode", "parallel"))

    def specs(self) -> list[dict[str, Any]]:
        """The tasks' specifications, normalised: aliases resolved, defaults filled in."""
        return specs_of(self.tasks)

    def check_rules(self) -> None:
        """At least one task; a plan that can work; nothing looser than the phase; dependencies without a cycle."""
        if not isinstance(self.tasks, list) or not self.tasks:
            raise InvalidField("tasks", "a workstream has at least one task")
        for name in ("concurrency", "error_handling", "acceptance"):
            if not isinstance(getattr(self, name), dict):
                raise InvalidField(name, "an object")
        mode = self.concurrency.get("mode", "parallel")
        if not isinstance(mode, str) or mode not in ("sequential", "parallel", "parallel_groups"):
            raise InvalidField("concurrency", f"mode is sequential, parallel or parallel_groups, not “{mode}”")
        limit = self.concurrency.get("max_parallel")
        if limit is not None and (not isinstance(limit, int) or isinstance(limit, bool) or limit < 1):
            raise InvalidField("concurrency", "max_parallel is a whole number of at least 1")
        if self.strategy not in self.OnError.values:
            raise InvalidField(
                "error_handling", f"strategy is one of {', '.join(self.OnError.values)}, not “{self.strategy}”"
            )
        self.plan().refuse()
        check_words(flatten(self.constraints))
        for number, task in enumerate(self.tasks):
            check_words(taskspec.delta_values(task), f"tasks[{number}].constraints_delta")
        siblings = (
            Workstream.objects.filter(phase__project=self.phase.project_id).exclude(pk=self.pk).select_related("phase")
        )
        others = {f"{w.phase.key}/{w.key}": w.depends_on for w in siblings}
        me = f"{self.phase.key}/{self.key}"
        _check_keys("depends_on", self.depends_on, known=set(others))
        _check_acyclic(me, {**others, me: self.depends_on})

    def save(self, *args: Any, **kwargs: Any) -> None:
        """An edit makes a new revision; a run keeps the one that it started with."""
        fields = kwargs.get("update_fields")
        if not self._state.adding:
            self.revision += 1
            if fields is not None:
                kwargs["update_fields"] = [*fields, "revision"]
        super().save(*args, **kwargs)


def specs_of(tasks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Task specifications normalised, with this installation's default limits filled in."""
    return [
        taskspec.normalise(
            spec,
            max_attempts=settings.SIGNALBOX_TASK_MAX_ATTEMPTS,
            timeout_seconds=settings.SIGNALBOX_TASK_TIMEOUT_SECONDS,
            where=f"tasks[{number}]",
        )
        for number, spec in enumerate(tasks)
    ]


def plan_of(tasks: list[dict[str, Any]], layers: list[Layer], *, mode: str = "parallel") -> taskspec.Plan:
    """The plan check of a task list under `layers`, wide to narrow. Raises ConstraintWeakened for the layers alone."""
    effective = resolve(layers)
    bounds = {name: value for name, value in effective.values.items() if name not in SCOPE_FIELDS}
    return taskspec.check_plan(tasks, scope=effective.scope(), constraints=bounds, mode=mode)


def _check_keys(field: str, keys: Any, *, known: set[str]) -> None:
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
        raise InvalidField(field, "a list of different keys")
    for key in keys:
        if key not in known:
            raise InvalidField(field, f"Unknown dependency: {key}", code="unknown_dependency")


def _check_acyclic(start: str, edges: dict[str, list[str]]) -> None:
    path: list[str] = []

    def visit(node: str) -> None:
        if node in path:
            circle = " → ".join([*path[path.index(node) :], node])
            raise InvalidField("depends_on", f"Circular dependency: {circle}", code="circular_dependency")
        path.append(node)
        for needed in edges.get(node, []):
            visit(needed)
        path.pop()

    visit(start)
