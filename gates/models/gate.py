"""The checks that a patch must pass."""

import re
from collections.abc import Mapping
from typing import Any, Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from gates import criteria as rules
from gates import resources as bounds
from gates.evidence import KINDS
from ledger.models import Patch
from pipeline import scope
from pipeline.constraints import Layer, resolve
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.models import Phase, Project, Workstream
from pipeline.models.project import slug_rule
from pipeline.refusals import InvalidField
from pipeline.rows import versioned

MAX_RERUNS = 3

# What a gate executes or judges by: a change of one of these is a new gate_version, and voids every cached verdict.
VERSIONED = (
    "gate_type", "applies_to", "command", "cwd", "env_allow", "evidence", "criteria", "expected_exit_codes", "shards",
    "depends_on", "timeout_seconds", "reruns", "base_tests", "sandbox_level_min", "resources", "caches", "external",
)  # fmt: skip


VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def is_ours(variable: str) -> bool:
    """Whether an environment variable is Signalbox's own: its keys, passwords and credentials stand among them."""
    name = variable.upper()
    return name.startswith(("SIGNALBOX_", "CELERY_", "DJANGO_")) or name in ("SECRET_KEY", "DATABASE_URL")


class GateQuerySet(DefinitionQuerySet["Gate"]):
    """The words for asking about gates."""

    def visible_to(self, principal: Any) -> Self:
        """The gates of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def judging(self, patch: Patch) -> "list[Gate]":
        """The enabled gates that judge `patch`: of its project and place, by the paths that it touches."""
        rows = self.filter(project=patch.project_id, enabled=True, judges=Gate.Judges.PATCH).filter(
            Q(phase=None) | Q(phase=patch.phase_id), Q(workstream=None) | Q(workstream=patch.workstream_id)
        )
        return [gate for gate in rows.order_by("key") if gate.concerns(patch.files_touched)]


@versioned()
class Gate(Definition):
    """The definition of a check. It comes from the database, never from the patch that it judges."""

    NOUN = "gate"

    class Type(models.TextChoices):
        UNIT_TESTS = "unit_tests", _("unit tests")
        INTEGRATION_TESTS = "integration_tests", _("integration tests")
        E2E_TESTS = "e2e_tests", _("end-to-end tests")
        SECURITY_SCAN = "security_scan", _("security scan")
        LINT = "lint", _("lint")
        CUSTOM = "custom", _("custom")

    class Judges(models.TextChoices):
        PATCH = "patch", _("patch")
        TASK = "task", _("task")
        PHASE = "phase", _("phase")
        SCHEDULE = "schedule", _("schedule")

    project = models.ForeignKey(Project, models.PROTECT, related_name="gates")
    key = models.CharField(max_length=64, validators=[slug_rule])
    name = models.CharField(max_length=200)
    gate_type = models.CharField(max_length=17, choices=Type)
    phase = models.ForeignKey(Phase, models.CASCADE, null=True, blank=True, related_name="gates")
    workstream = models.ForeignKey(Workstream, models.CASCADE, null=True, blank=True, related_name="gates")
    applies_to = models.JSONField(default=list, blank=True)
    command = models.JSONField(default=list, blank=True)
    cwd = models.CharField(max_length=255, blank=True)
    env_allow = models.JSONField(default=list, blank=True)
    evidence = models.JSONField(default=dict, blank=True)
    criteria = models.JSONField(default=dict, blank=True)
    expected_exit_codes = models.JSONField(default=list, blank=True)
    shards = models.PositiveSmallIntegerField(default=1, validators=[MinValueValidator(1)])
    depends_on = models.JSONField(default=list, blank=True)
    timeout_seconds = models.PositiveIntegerField(null=True, blank=True, validators=[MinValueValidator(1)])
    sandbox_level_min = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1), MaxValueValidator(3)]
    )
    resources = models.JSONField(default=dict, db_default=models.Value({}, models.JSONField()), blank=True)
    caches = models.JSONField(default=list, db_default=models.Value([], models.JSONField()), blank=True)
    external = models.BooleanField(default=False, db_default=False)
    reruns = models.PositiveSmallIntegerField(default=1, validators=[MaxValueValidator(MAX_RERUNS)])
    base_tests = models.BooleanField(default=False)
    required = models.BooleanField(default=True)
    judges = models.CharField(max_length=8, choices=Judges, default=Judges.PATCH)
    enabled = models.BooleanField(default=True)
    gate_version = models.PositiveIntegerField(default=1, editable=False)

    objects = GateQuerySet.as_manager()

    class Meta:
        ordering = ["project", "key"]
        constraints = [
            models.UniqueConstraint(fields=["project", "key"], name="gate_key_once_per_project"),
            models.CheckConstraint(name="gate_shards_from_one", condition=Q(shards__gte=1)),
        ]

    def __str__(self) -> str:
        return f"{self.project.key}/{self.key}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a gate belong to its project."""
        return {"project_id": self.project_id}

    @property
    def compares_with_base(self) -> bool:
        """Whether a criterion of it asks what the same gate measures on the base."""
        return bool(rules.AGAINST_BASE & set(self.criteria))

    @property
    def needs_base(self) -> bool:
        """Whether it has to know the tree onto which a patch comes: to compare, or to tell the patch's own lines."""
        return self.compares_with_base or "goalposts" in self.criteria or "coverage" in self.evidence

    @property
    def limit_seconds(self) -> int:
        """How long a run may take: its own limit, its criterion's, or the installation's."""
        return int(
            self.timeout_seconds or self.criteria.get("timeout_seconds") or settings.SIGNALBOX_GATE_TIMEOUT_SECONDS
        )

    def concerns(self, paths: Mapping[str, Any] | list[str]) -> bool:
        """Whether it applies to a change of these paths; without globs it applies to every change."""
        return not self.applies_to or any(scope.matches(path, self.applies_to) for path in paths)

    def check_fields(self) -> None:
        """As every definition; an unknown type has a code of its own, which the field's choices would hide."""
        if self.gate_type not in self.Type.values:
            allowed = ", ".join(self.Type.values)
            raise InvalidField(
                "gate_type", f"Invalid gate_type: {self.gate_type}; it is one of {allowed}", code="invalid_gate_type"
            )
        super().check_fields()

    def check_rules(self) -> None:
        """The command is a vector, criteria and evidence are known, dependencies are gates without a cycle."""
        for name in ("phase", "workstream"):
            place = getattr(self, name)
            if place is not None and place.correlation()["project_id"] != self.project_id:
                raise InvalidField(name, f"a {name} of another project")
        texts = isinstance(self.command, list) and all(isinstance(word, str) for word in self.command)
        if not texts or not (self.command or self.external):
            raise InvalidField("command", "an argument vector: a list of texts, the program first, never a shell line")
        if self.command and not self.command[0].strip():
            raise InvalidField("command", "its first word, the program, is blank")
        rules.check(self.criteria)
        self._check_sandbox()
        for name in ("applies_to", "env_allow", "depends_on", "caches"):
            given = getattr(self, name)
            if not isinstance(given, list) or not all(isinstance(item, str) for item in given):
                raise InvalidField(name, "a list of texts")
        if wrong := [name for name in self.env_allow if not VARIABLE.fullmatch(name)]:
            raise InvalidField("env_allow", f"{wrong[0][:80]!r} is not the name of a variable")
        if ours := sorted(filter(is_ours, self.env_allow)):
            raise InvalidField("env_allow", f"{', '.join(ours)}: no gate gets what Signalbox itself is configured with")
        if not isinstance(self.evidence, dict) or not all(isinstance(path, str) for path in self.evidence.values()):
            raise InvalidField("evidence", "an object: kind of evidence to its path")
        unknown = set(self.evidence) - set(KINDS)
        if unknown:
            raise InvalidField("evidence", f"unknown kind {', '.join(sorted(unknown))}; known are {', '.join(KINDS)}")
        for path in self.evidence.values():
            scope.check_path(path, "evidence")
        self._check_places(sorted(self.evidence.values()))
        self._check_measurable()
        if self.base_tests and "goalposts" not in self.criteria:
            raise InvalidField(
                "base_tests", "the tests of the base are part of the goalposts criterion: ask for it too"
            )
        if self.cwd:
            scope.check_path(self.cwd, "cwd")
        for glob in self.applies_to:
            scope.check_glob(glob, "applies_to")
        codes = self.expected_exit_codes
        if not isinstance(codes, list) or not all(isinstance(c, int) and not isinstance(c, bool) for c in codes):
            raise InvalidField("expected_exit_codes", "a list of whole numbers")
        siblings = dict(
            Gate.objects.filter(project=self.project_id).exclude(pk=self.pk).values_list("key", "depends_on")
        )
        self._check_dependencies(siblings)

    def _check_measurable(self) -> None:
        """What a criterion is measured by is asked of the command. An external gate's reporter uploads what it has."""
        for key in self.criteria:
            kinds = rules.NEEDS_EVIDENCE.get(key)
            if kinds and not self.external and not set(kinds) & set(self.evidence):
                raise InvalidField(
                    "evidence",
                    f"{key} is measured by {' or '.join(kinds)}, and none is named: such a gate would never pass",
                )

    @staticmethod
    def _check_places(paths: list[str]) -> None:
        """Every report is a file of its own, and none is the folder of another."""
        for at, path in enumerate(paths):
            for other in paths[at + 1 :]:
                if other == path:
                    raise InvalidField("evidence", f"{path!r} is the place of two kinds")
                if other.startswith(f"{path}/"):
                    raise InvalidField("evidence", f"{path!r} is a report, and cannot be the folder of {other!r}")

    def _check_sandbox(self) -> None:
        """Narrower layers ask for more, never for less; resources are known; caches are the installation's."""
        if self.sandbox_level_min is not None:
            wider = Layer("the project", {"sandbox_level_min": self.project.sandbox_level_min})
            resolve([wider, Layer("the gate", {"sandbox_level_min": self.sandbox_level_min})])
        bounds.check(self.resources)
        if isinstance(self.caches, list):
            unknown = [name for name in self.caches if name not in settings.SIGNALBOX_GATE_CACHES]
            if unknown:
                known = ", ".join(sorted(settings.SIGNALBOX_GATE_CACHES)) or "none"
                raise InvalidField("caches", f"no cache {unknown[0]!r}; this installation has: {known}")

    def _check_dependencies(self, siblings: Mapping[str, list[str]]) -> None:
        edges = {**siblings, self.key: self.depends_on}
        path: list[str] = []

        def visit(key: str) -> None:
            if key not in edges:
                raise InvalidField("depends_on", f"Unknown dependency: {key}", code="unknown_dependency")
            if key in path:
                circle = " → ".join([*path[path.index(key) :], key])
                raise InvalidField("depends_on", f"Circular dependency: {circle}", code="circular_dependency")
            path.append(key)
            for needed in edges[key]:
                visit(needed)
            path.pop()

        visit(self.key)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """A change of what is executed or judged raises the gate's version."""
        fields = kwargs.get("update_fields")
        if not self._state.adding and (fields is None or set(fields) & set(VERSIONED)):
            self.gate_version += 1
            if fields is not None:
                kwargs["update_fields"] = [*fields, "gate_version"]
        super().save(*args, **kwargs)
