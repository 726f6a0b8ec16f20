"""Patch policies: what a patch may be, in layers from the installation to one task, each tightening the wider."""

from datetime import datetime
from typing import Any, Self

from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from ledger.policy import BUILT_IN
from pipeline import taskspec
from pipeline.constraints import Effective, Layer, check, check_words, flatten, resolve
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.models import Phase, Project, Task, Workstream
from pipeline.refusals import InvalidField
from pipeline.rows import versioned


class PatchPolicyQuerySet(DefinitionQuerySet["PatchPolicy"]):
    """The words for asking about policies."""

    def visible_to(self, principal: Any) -> Self:
        """Those of the projects in which `principal` may read, and the installation's own."""
        ids = principal.project_ids()
        if ids is None:
            return self
        return self.filter(
            Q(level="global")
            | Q(project__in=ids)
            | Q(phase__project__in=ids)
            | Q(workstream__phase__project__in=ids)
            | Q(task__run__project__in=ids)
        )

    def covering(
        self, project: Project, phase: Phase | None, workstream: Workstream | None, task: Task | None
    ) -> list["PatchPolicy"]:
        """The enabled policies over this place, wide to narrow."""
        return self.filter(enabled=True).over(project, phase, workstream, task)

    def over(
        self, project: Project, phase: Phase | None, workstream: Workstream | None, task: Task | None
    ) -> list["PatchPolicy"]:
        """The policies over this place, whether they hold or are yet to be switched on, wide to narrow."""
        rows = self.filter(
            Q(level="global")
            | Q(level="project", project=project)
            | Q(level="phase", phase=phase)
            | Q(level="workstream", workstream=workstream)
            | Q(level="task", task=task)
        )
        order = list(PatchPolicy.Level.values)
        return sorted((row for row in rows if row.has_target), key=lambda row: (order.index(row.level), row.pk))

    def layers(
        self,
        project: Project | None,
        phase: Phase | None,
        workstream: Workstream | None,
        task: Task | None,
        *,
        saved_before: datetime | None = None,
    ) -> list[tuple[str, Layer]]:
        """(level, layer) of all that holds in this place, wide to narrow: of every level first the plan, then the
        policies over it. With `saved_before` only those that were not changed since.
        """
        rows = self.covering(project, phase, workstream, task)  # type: ignore[arg-type]
        plans = {
            layer.name: layer for layer in (workstream.layers() if workstream else phase.layers() if phase else [])
        }
        if task is not None:
            plans["task"] = Layer("task", taskspec.delta_values(task.spec))
        if saved_before is not None:
            rows = [row for row in rows if row.updated_at < saved_before]
            changed = {
                "phase": phase and phase.updated_at,
                "workstream": workstream and workstream.updated_at,
                "task": task and task.created_at,  # whose specification never changes
            }
            plans = {name: layer for name, layer in plans.items() if (at := changed[name]) and at < saved_before}
        found: list[tuple[str, Layer]] = []
        for level in PatchPolicy.Level.values:
            if level in plans:
                found.append((level, plans[level]))
            found += [(level, row.layer()) for row in rows if row.level == level]
        return found

    def effective(
        self,
        project: Project,
        phase: Phase | None = None,
        workstream: Workstream | None = None,
        task: Task | None = None,
    ) -> Effective:
        """What a patch in this place may be, with the layer that set every value. Where a wider layer was tightened
        after a narrower one was saved, the tighter value wins.
        """
        return resolve([layer for _level, layer in self.layers(project, phase, workstream, task)], strict=False)


@versioned()
class PatchPolicy(Definition):
    """One layer of what a patch may be. An absent field inherits; a looser one than the wider layer's is refused."""

    NOUN = "policy"

    class Level(models.TextChoices):
        GLOBAL = "global", _("installation")
        PROJECT = "project", _("project")
        PHASE = "phase", _("phase")
        WORKSTREAM = "workstream", _("workstream")
        TASK = "task", _("task")

    level = models.CharField(max_length=10, choices=Level)
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="policies")
    phase = models.ForeignKey(Phase, models.CASCADE, null=True, blank=True, related_name="policies")
    workstream = models.ForeignKey(Workstream, models.CASCADE, null=True, blank=True, related_name="policies")
    task = models.ForeignKey(Task, models.CASCADE, null=True, blank=True, related_name="policies")
    enabled = models.BooleanField(default=True)
    constraints = models.JSONField(default=dict)

    objects = PatchPolicyQuerySet.as_manager()

    class Meta:
        verbose_name_plural = "patch policies"
        constraints = [
            models.CheckConstraint(
                name="policy_names_its_target",
                condition=Q(level="global", project=None, phase=None, workstream=None, task=None)
                | Q(level="project", project__isnull=False, phase=None, workstream=None, task=None)
                | Q(level="phase", project=None, phase__isnull=False, workstream=None, task=None)
                | Q(level="workstream", project=None, phase=None, workstream__isnull=False, task=None)
                | Q(level="task", project=None, phase=None, workstream=None, task__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"policy of {self.level} {self.target or ''}".strip()

    @property
    def target(self) -> Project | Phase | Workstream | Task | None:
        """What it is over; None for the installation."""
        return None if self.level == self.Level.GLOBAL else getattr(self, self.level)

    @property
    def has_target(self) -> bool:
        """Whether it is over the installation or names what it is over."""
        return self.level == self.Level.GLOBAL or getattr(self, f"{self.level}_id") is not None

    def place(self) -> tuple[Project | None, Phase | None, Workstream | None, Task | None]:
        """The project, phase, workstream and task in which its target lies."""
        task = self.task
        workstream = self.workstream or (task.run.workstream if task else None)
        phase = self.phase or (workstream.phase if workstream else task.run.phase if task else None)
        return self.project or (phase.project if phase else None), phase, workstream, task

    def layer(self) -> Layer:
        """This policy as a layer of the resolver."""
        return Layer(f"{self.level} policy", flatten(self.constraints))

    def correlation(self) -> dict[str, str | None]:
        """Events about a policy belong to the project it is in."""
        project, _phase, workstream, task = self.place()
        return {
            "project_id": project.pk if project else None,
            "workstream_id": workstream.pk if workstream else None,
            "task_id": task.pk if task else None,
        }

    def clean(self) -> None:
        """Exactly the target of its level is named."""
        for name in ("project", "phase", "workstream", "task"):
            given = getattr(self, f"{name}_id") is not None
            if given != (name == self.level):
                words = (
                    _("A policy of level %(level)s has no %(name)s")
                    if given
                    else _("A policy of level %(level)s names its %(name)s")
                )
                raise ValidationError({name: words % {"level": self.level, "name": name}})

    def check_rules(self) -> None:
        """Its words are known, its constraints are no looser than those of the wider layers, and each can be met."""
        check_words(self.layer().values)
        wider = self.check_tightens()
        if "oscillation_window" in self.layer().values:
            now = {**BUILT_IN, **resolve([*wider, self.layer()], strict=False).values}
            window, threshold = int(now["oscillation_window"]), int(now["oscillation_threshold"])
            if window < threshold:
                raise InvalidField(
                    "constraints.oscillation_window",
                    f"at least {threshold}, not {window}: it takes {threshold} signs to set a change aside "
                    f"(oscillation_threshold), and each patch of the window is one",
                )

    def check_tightens(self, *, saved_before: datetime | None = None) -> list[Layer]:
        """The same; with `saved_before` against those wider layers only that were not changed since: where one was
        tightened later, the tighter value holds, and this row is left as it is. Answers the wider layers.
        """
        project, phase, workstream, task = self.place()
        order = list(self.Level.values)
        others = PatchPolicy.objects.exclude(pk=self.pk)
        layers = others.layers(project, phase, workstream, task, saved_before=saved_before)
        wider = [layer for level, layer in layers if order.index(level) < order.index(self.level)]
        # The plan's own layer of this level stands above the policy; another policy of this level stands beside it.
        beside = {"phase": phase, "workstream": workstream, "task": task}.get(self.level)
        wider += [layer for level, layer in layers if beside and level == self.level and layer.name == level]
        check(resolve(wider, strict=False), self.layer())
        return wider
