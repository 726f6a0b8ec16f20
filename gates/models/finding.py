"""What analysers found in a tree, each with a fingerprint by which it is the same finding in another tree."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Self

from django.db import models
from django.utils.translation import gettext_lazy as _

from gates.sarif import Found
from pipeline.rows import Kept, append_only

if TYPE_CHECKING:
    from gates.models import GateRun


class FindingQuerySet(models.QuerySet["Finding"]):
    """The words for keeping and asking about findings."""

    def visible_to(self, principal: Any) -> Self:
        """The findings of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(gate_run__project__in=ids)

    def new(self) -> Self:
        """Those that the base does not have."""
        return self.filter(is_new=True)

    def keep(self, gate_run: "GateRun", found: Iterable[Found]) -> int:
        """Store what an analyser found; returns how many."""
        rows = [
            Finding(
                gate_run=gate_run,
                rule_id=one.rule_id,
                level=one.level,
                path=one.path,
                line=one.line or None,
                fingerprint=one.fingerprint,
                is_new=one.is_new,
                suppressed=one.suppressed,
                message=one.message.replace("\x00", "�"),
                help_uri=one.help_uri,
            )
            for one in found
        ]
        return len(self.bulk_create(rows, batch_size=1000))


@append_only
class Finding(Kept):
    """One result of an analyser. `suppressed` is what the tree says about it; whether it is new decides."""

    NOUN = "finding"

    class Level(models.TextChoices):
        NONE = "none", _("none")
        NOTE = "note", _("note")
        WARNING = "warning", _("warning")
        ERROR = "error", _("error")

    gate_run = models.ForeignKey("gates.GateRun", models.PROTECT, related_name="findings")
    rule_id = models.CharField(max_length=255, blank=True)
    level = models.CharField(max_length=7, choices=Level)
    path = models.CharField(max_length=1024, blank=True)
    line = models.PositiveIntegerField(null=True)
    fingerprint = models.CharField(max_length=64)
    is_new = models.BooleanField()
    suppressed = models.BooleanField(default=False)
    message = models.TextField()
    help_uri = models.CharField(max_length=500, blank=True)

    objects = FindingQuerySet.as_manager()

    class Meta:
        indexes = [models.Index(fields=["gate_run", "-is_new", "id"], name="finding_of_run")]

    def __str__(self) -> str:
        return f"{self.rule_id} {self.path}:{self.line or ''}"
