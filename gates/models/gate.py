"""The checks that a patch must pass."""

from collections.abc import Iterable, Mapping
from typing import Any, Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from gates import criteria as rules
from gates import definition
from gates import resources as bounds
from ledger.models import Patch
from pipeline import events, scope
from pipeline.constraints import Layer, resolve
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.models import Phase, Project, Workstream
from pipeline.models.project import slug_rule
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import in_transaction, versioned

MAX_RERUNS = 3

# What a gate executes or judges by: a change of one of these is a new gate_version, and voids every cached verdict.
VERSIONED = (
    "gate_type", "applies_to", "command", "cwd", "env_allow", "evidence", "criteria", "expected_exit_codes",
    "finding_exit_codes", "shards", "depends_on", "timeout_seconds", "reruns", "base_tests", "sandbox_level_min",
    "resources", "caches", "external",
)  # fmt: skip
# Of these, what a run keeps of its gate, beside its own columns (command, criteria, type, external). What is left out
# decides whether and when a run is asked for, not how it is executed and judged.
KEPT_BY_RUNS = (
    "cwd", "env_allow", "evidence", "expected_exit_codes", "finding_exit_codes", "shards", "timeout_seconds", "reruns",
    "base_tests", "sandbox_level_min", "resources", "caches",
)  # fmt: skip
# Documents that people write by hand in the admin.
DOCUMENTS = (
    "applies_to", "command", "env_allow", "evidence", "criteria", "expected_exit_codes", "finding_exit_codes",
    "depends_on", "resources", "caches",
)  # fmt: skip


class GateQuerySet(DefinitionQuerySet["Gate"]):
    """The words for asking about gates."""

    def visible_to(self, principal: Any) -> Self:
        """The gates of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def judging(self, patch: Patch) -> "list[Gate]":
        """The enabled gates that judge `patch`: of its project and place, by the paths that it touches."""
        rows = self.filter(project=patch.project_id, enabled=True, judges=Gate.Judges.PATCH)
        return [gate for gate in rows.order_by("key") if gate.is_for(patch)]

    def add(self, *, by: events.Actor, **fields: Any) -> "Gate":
        """A new gate; the others of its project stand still while its dependencies are looked at."""
        with in_transaction():
            self.lock_all([fields.get("project")])
            return super().add(by=by, **fields)

    def lock_all(self, projects: "Iterable[Project | str | None]") -> None:
        """Lock the gates of these projects: what depends on what is true of all of them together."""
        rows = self.model._base_manager.filter(project__in=[project for project in projects if project is not None])
        list(rows.order_by("pk").select_for_update(no_key=True, of=("self",)).values_list("pk"))

    def needing(self, gate: "Gate") -> "list[Gate]":
        """The gates that name this one in their depends_on, by key."""
        rows = self.filter(project=gate.project_id, depends_on__contains=[gate.key]).exclude(pk=gate.pk)
        return list(rows.order_by("key"))


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

    TESTS = (Type.UNIT_TESTS, Type.INTEGRATION_TESTS, Type.E2E_TESTS)

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
    applies_to = models.JSONField(
        default=list,
        blank=True,
        help_text=_('["src/**", "*.py"]: it judges patches that touch such a path. [] is every patch.'),
    )
    command = models.JSONField(
        default=list,
        blank=True,
        help_text=_(
            'An argument vector, no shell line: ["python", "-m", "pytest", "--junitxml={evidence}/junit.xml"].'
            " {evidence} is the folder where it leaves its reports."
        ),
    )
    cwd = models.CharField(
        max_length=255, blank=True, help_text=_("The folder of the tree in which it runs; empty: its root.")
    )
    env_allow = models.JSONField(
        default=list,
        blank=True,
        help_text=_('Names of environment variables of the runner that the command may see, ["CI"].'),
    )
    evidence = models.JSONField(
        default=dict,
        blank=True,
        help_text=_(
            'The reports that it leaves, by kind (junit, tap, coverage, sarif): {"junit": "junit.xml"}. Paths are'
            " relative to the evidence folder; with several shards each names {shard}."
        ),
    )
    criteria = models.JSONField(
        default=dict,
        blank=True,
        help_text=_(
            'What must be so: {"max_failures": 0, "min_tests": 1}. There are min_coverage, min_patch_coverage,'
            " max_failures, required_tests, min_tests, max_skipped_increase, max_new_findings, goalposts,"
            " timeout_seconds and custom_rules. {}: no test fails, and the exit code is one of success."
        ),
    )
    expected_exit_codes = models.JSONField(
        default=list, blank=True, help_text=_("Exit codes of success, from 0 to 255; [] is [0].")
    )
    finding_exit_codes = models.JSONField(
        default=list,
        db_default=models.Value([], models.JSONField()),
        blank=True,
        help_text=_(
            "Exit codes by which it says that it did its work and found something: failing tests, findings; [] is [1]."
            " With any other it is never passed, whatever it reported."
        ),
    )
    shards = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(definition.MAX_SHARDS)],
        help_text=_("How many reports of each kind there are; every path of the evidence then names {shard}, from 1."),
    )
    depends_on = models.JSONField(
        default=list, blank=True, help_text=_('Keys of gates that pass on the tree before it starts: ["lint"].')
    )
    timeout_seconds = models.PositiveIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(definition.MAX_GATE_SECONDS)],
        help_text=_("Empty: the installation's limit."),
    )
    sandbox_level_min = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1), MaxValueValidator(3)],
        help_text=_("A machine that holds a lower level ends the run as an error; 2 is isolated."),
    )
    resources = models.JSONField(
        default=dict,
        db_default=models.Value({}, models.JSONField()),
        blank=True,
        help_text=_('Whole numbers by name: {"memory_mb": 2048, "processes": 64}; the rest has its default.'),
    )
    caches = models.JSONField(
        default=list,
        db_default=models.Value([], models.JSONField()),
        blank=True,
        help_text=_('Names of caches of the installation that it may read: ["pip"].'),
    )
    external = models.BooleanField(
        default=False,
        db_default=False,
        help_text=_("A CI system runs it and reports by the API; it needs no command here."),
    )
    reruns = models.PositiveSmallIntegerField(
        default=1,
        validators=[MaxValueValidator(MAX_RERUNS)],
        help_text=_("How often failed tests are run again within a run, to tell the flaky ones."),
    )
    base_tests = models.BooleanField(
        default=False,
        help_text=_("Also run the tests as the base has them on the patched source; part of the criterion goalposts."),
    )
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
        return bool(rules.AGAINST_BASE & set(rules.asked(self.criteria)))

    @property
    def needs_base(self) -> bool:
        """Whether it has to know the tree onto which a patch comes: to compare, or to tell the patch's own lines."""
        return self.compares_with_base or "goalposts" in rules.asked(self.criteria) or "coverage" in self.evidence

    @property
    def limit_seconds(self) -> int:
        """How long a run may take: its own limit, its criterion's, or the installation's."""
        return int(
            self.timeout_seconds or self.criteria.get("timeout_seconds") or settings.SIGNALBOX_GATE_TIMEOUT_SECONDS
        )

    @property
    def limit_of_all_seconds(self) -> int:
        """How long all executions of a run may take: that of its command, and as long again for each of those that
        `goalposts` may ask for, the command on the base and the tests of the base on the patch.
        """
        further = 1 + self.base_tests if "goalposts" in rules.asked(self.criteria) else 0
        return self.limit_seconds * (1 + further)

    def kept_by_runs(self) -> dict[str, Any]:
        """How it executes and judges now, for a run to keep; its time limit is its criterion's where it has none."""
        kept = {name: getattr(self, name) for name in KEPT_BY_RUNS}
        return kept | {"timeout_seconds": self.timeout_seconds or self.criteria.get("timeout_seconds")}

    def is_for(self, patch: Patch) -> bool:
        """Whether it applies to this patch of its project: by its phase, workstream and paths."""
        placed = self.phase_id in (None, patch.phase_id) and self.workstream_id in (None, patch.workstream_id)
        return placed and self.concerns(patch.files_touched)

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
        for name in DOCUMENTS:
            definition.check_storable(name, getattr(self, name))
        if self.judges != self.Judges.PATCH:
            # A required gate that nobody ever runs would look like proof.
            why = "this version runs gates for patches only, so it would judge nobody: patch"
            raise InvalidField("judges", f"{self.judges}: {why}")
        self._check_command()
        self._check_criteria()
        self._check_sandbox()
        for name in ("applies_to", "env_allow", "depends_on", "caches"):
            definition.check_texts(name, getattr(self, name))
        definition.check_variables(self.env_allow)
        definition.check_evidence(self.evidence)
        definition.check_measurable(self.criteria, self.evidence)
        definition.check_shards(self.evidence, self.shards, external=self.external)
        if self.base_tests and "goalposts" not in self.criteria:
            raise InvalidField(
                "base_tests", "the tests of the base are part of the goalposts criterion: ask for it too"
            )
        if self.cwd:
            scope.check_path(self.cwd, "cwd")
        definition.check_globs("applies_to", self.applies_to)
        for name in ("expected_exit_codes", "finding_exit_codes"):
            definition.check_codes(name, getattr(self, name))
        definition.check_both(self.expected_exit_codes, self.finding_exit_codes)
        siblings = Gate.objects.filter(project=self.project_id).exclude(pk=self.pk)
        self._check_dependencies(dict(siblings.values_list("key", "depends_on")))
        if self.enabled:
            asleep = siblings.filter(key__in=self.depends_on, enabled=False).values_list("key", flat=True)
            for key in asleep.order_by("key")[:1]:
                why = "is disabled, so it would wait for ever: enable that one first, or leave it out"
                raise InvalidField("depends_on", f"{key} {why}", code="disabled_dependency")

    def _check_command(self) -> None:
        texts = isinstance(self.command, list) and all(isinstance(word, str) for word in self.command)
        if not texts or not (self.command or self.external):
            raise InvalidField("command", "an argument vector: a list of texts, the program first, never a shell line")
        definition.check_texts("command", self.command)
        if self.command and not self.command[0].strip():
            raise InvalidField("command", "its first word, the program, is blank")

    def _check_criteria(self) -> None:
        try:
            known = rules.check(self.criteria)
            for key in self.criteria.keys() - known.keys():
                raise rules.InvalidCriteria(key, "null asks for nothing: give it a value, or leave the criterion out")
        except rules.InvalidCriteria as problem:
            # A gate has a timeout_seconds of its own.
            key, _, message = str(problem).partition(": ")
            raise rules.InvalidCriteria(key if key == "criteria" else f"criteria.{key}", message) from problem

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
        unknown = [key for key in self.depends_on if key not in edges]
        if unknown:
            raise InvalidField("depends_on", f"Unknown dependency: {unknown[0]}", code="unknown_dependency")
        if ring := ring_of(self.key, edges):
            raise InvalidField("depends_on", f"Circular dependency: {' → '.join(ring)}", code="circular_dependency")

    def edit(self, *, by: events.Actor, expected_version: int | None = None, **fields: Any) -> bool:
        """As of every definition, one edit at a time in a project. A new key is written into the depends_on of the
        gates that need this one, which are no new version by that. Raises InvalidField when it would be disabled or
        leave the project while others need it.
        """
        with in_transaction():
            Gate.objects.lock_all({self.project_id, getattr(fields.get("project"), "pk", None)})
            before = self.lock_fresh()
            needing = Gate.objects.needing(before)
            if needing and getattr(fields.get("project"), "pk", before.project_id) != before.project_id:
                why = f"{_and(needing)} of {before.project.key} depends on it: leave it out of depends_on there first"
                raise InvalidField("project", why)
            awake = [gate for gate in needing if gate.enabled]
            if awake and before.enabled and not fields.get("enabled", True):
                why = (
                    "depends on it and would wait for ever: leave it out of depends_on there first, or disable that too"
                )
                raise InvalidField("enabled", f"{_and(awake)} {why}")
            changed = super().edit(by=by, expected_version=expected_version, **fields)
            if changed and self.key != before.key:
                for gate in needing:
                    gate._follow(before.key, self.key, by)
        return changed

    def _follow(self, old: str, new: str, by: events.Actor) -> None:
        """Call a gate that this one needs by its new key. What is judged is the same, so the version is."""
        was = self.depends_on
        self.depends_on = [new if key == old else key for key in was]
        Gate.objects.filter(pk=self.pk).update(depends_on=self.depends_on)
        before, after = {"depends_on": was}, {"depends_on": self.depends_on}
        events.record("gate.changed", self, by=by, reason=f"{old} is called {new}", before=before, after=after)

    def remove(self, *, by: events.Actor) -> None:
        """As of every definition. Raises Refused `in_use` while others need it, naming them."""
        with in_transaction():
            Gate.objects.lock_all([self.project_id])
            if needing := Gate.objects.needing(self.lock_fresh()):
                sentence = f"{_and(needing)} depends on {self.key}, so it cannot be removed: leave it out there first"
                raise Refused(sentence, code="in_use")
            super().remove(by=by)

    def save(self, *args: Any, **kwargs: Any) -> None:
        """A change of what is executed or judged raises the gate's version."""
        fields = kwargs.get("update_fields")
        if not self._state.adding and (fields is None or set(fields) & set(VERSIONED)):
            self.gate_version += 1
            if fields is not None:
                kwargs["update_fields"] = [*fields, "gate_version"]
        super().save(*args, **kwargs)


def ring_of(key: str, edges: Mapping[str, list[str]]) -> list[str]:
    """The keys of a circle of dependencies that can be reached from `key`, its first one twice; empty without one."""
    path: list[str] = []
    done: set[str] = set()
    # Without recursion: a chain may be longer than Python's.
    waiting = [(key, iter(edges.get(key, ())))]
    path.append(key)
    while waiting:
        here, needs = waiting[-1]
        for needed in needs:
            if needed in path:
                return [*path[path.index(needed) :], needed]
            if needed not in done:
                path.append(needed)
                waiting.append((needed, iter(edges.get(needed, ()))))
                break
        else:
            done.add(here)
            path.pop()
            waiting.pop()
    return []


def _and(gates: "list[Gate]") -> str:
    return ", ".join(gate.key for gate in gates[:5]) + (f" and {len(gates) - 5} more" if len(gates) > 5 else "")
