"""What does the work: configured command-line tools, and why each task went to the tool it went to."""

from typing import Any, Self

from django.core.validators import MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy as _

from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.models.project import slug_rule
from pipeline.refusals import InvalidField
from pipeline.rows import Kept, append_only, versioned


class ToolQuerySet(DefinitionQuerySet["Tool"]):
    """The words for asking about tools."""

    def visible_to(self, principal: Any) -> Self:
        """Tools belong to the installation: whoever is signed in may read them."""
        return self

    def enabled(self) -> Self:
        """Those that may be routed to."""
        return self.filter(enabled=True)


@versioned()
class Tool(Definition):
    """A configured command-line agent, validator or analyser. Its command is an argument vector, never a shell
    string.
    """

    NOUN = "tool"

    class Kind(models.TextChoices):
        TOOL = "tool", _("tool")
        VALIDATOR = "validator", _("validator")
        ANALYZER = "analyzer", _("analyser")

    class Adapter(models.TextChoices):
        CLAUDE = "claude", "Claude Code"
        CODEX = "codex", "Codex"
        AIDER = "aider", "Aider"
        SHELL = "shell", _("any command")

    class Safety(models.TextChoices):
        LOW = "low", _("low")
        MEDIUM = "medium", _("medium")
        HIGH = "high", _("high")

    key = models.CharField(max_length=64, unique=True, validators=[slug_rule])
    kind = models.CharField(max_length=9, choices=Kind, default=Kind.TOOL)
    adapter = models.CharField(max_length=6, choices=Adapter)
    command = models.JSONField()
    capabilities = models.JSONField(default=dict)
    max_parallel = models.PositiveIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    timeout_seconds = models.PositiveIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    safety_tier = models.CharField(max_length=6, choices=Safety, default=Safety.MEDIUM)
    model = models.CharField(max_length=100, blank=True)
    account = models.CharField(max_length=100, blank=True)
    priced = models.BooleanField(default=False)
    order = models.IntegerField(default=100)
    enabled = models.BooleanField(default=True)
    env_allow = models.JSONField(default=list, blank=True)

    objects = ToolQuerySet.as_manager()

    class Meta:
        ordering = ["order", "key"]
        constraints = [
            models.CheckConstraint(name="tool_max_parallel_from_one", condition=models.Q(max_parallel__gte=1)),
            models.CheckConstraint(name="tool_timeout_from_one", condition=models.Q(timeout_seconds__gte=1)),
        ]

    def __str__(self) -> str:
        return self.key

    def check_rules(self) -> None:
        """The command is a vector of texts, and the tool says which kinds of task it can do."""
        if not isinstance(self.command, list) or not self.command or not all(isinstance(a, str) for a in self.command):
            raise InvalidField("command", "an argument vector: a list of texts, the program first, never a shell line")
        kinds = self.capabilities.get("task_kinds") if isinstance(self.capabilities, dict) else None
        if not isinstance(kinds, list) or not kinds:
            raise InvalidField("capabilities", "task_kinds names at least one kind of task")
        if not isinstance(self.env_allow, list) or not all(isinstance(name, str) for name in self.env_allow):
            raise InvalidField("env_allow", "a list of names of environment variables")


class RoutingDecisionQuerySet(models.QuerySet["RoutingDecision"]):
    """The words for asking about decisions."""

    def visible_to(self, principal: Any) -> Self:
        """The decisions of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(task__run__project__in=ids)


@append_only
class RoutingDecision(Kept):
    """Why this task went to this tool: the candidates with their scores and exclusions, and the strategy that chose."""

    NOUN = "routing_decision"

    task = models.ForeignKey("pipeline.Task", models.PROTECT, related_name="routing_decisions")
    run = models.ForeignKey("pipeline.Run", models.PROTECT, related_name="routing_decisions")
    request = models.ForeignKey(
        "pipeline.ExecutionRequest", models.PROTECT, null=True, related_name="routing_decisions"
    )
    rule = models.CharField(max_length=64, blank=True)
    strategy = models.CharField(max_length=16)
    candidates = models.JSONField()
    inputs = models.JSONField(default=dict)
    chosen = models.ForeignKey(Tool, models.PROTECT, related_name="routing_decisions")
    reason = models.TextField()

    objects = RoutingDecisionQuerySet.as_manager()

    def __str__(self) -> str:
        return f"{self.chosen} for {self.task_id}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a decision belong to its task."""
        return self.task.correlation()
