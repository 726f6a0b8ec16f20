"""What stands around a gate run: its output as it comes, evidence sent for it, and the machines that run gates."""

from typing import Any, Self

from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from pipeline.clock import ClockNow
from pipeline.rows import Kept


class GateOutput(models.Model):
    """A piece of a running gate's output. Only the last pieces are kept, and none for long: the run has the log.

    The table is unlogged: what a crash of the server takes from it, nobody misses.
    """

    id = models.BigAutoField(primary_key=True)
    gate_run = models.ForeignKey("gates.GateRun", models.CASCADE, related_name="pieces")
    number = models.PositiveIntegerField()
    text = models.TextField()
    created_at = models.DateTimeField(db_default=ClockNow(), editable=False)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["gate_run", "number"], name="gateoutput_number_once")]

    def __str__(self) -> str:
        return f"{self.gate_run_id}/{self.number}"


class GateEvidence(Kept):
    """A report that a system outside sent for a run, before it completed it; the content goes when the run ends."""

    NOUN = "gate_evidence"

    gate_run = models.ForeignKey("gates.GateRun", models.CASCADE, related_name="sent_evidence")
    kind = models.CharField(max_length=16)
    # From 1 where the gate has a report per shard, else 0.
    shard = models.PositiveSmallIntegerField(default=0, db_default=0)
    sha256 = models.CharField(max_length=64)
    size_bytes = models.PositiveBigIntegerField()
    content = models.BinaryField(null=True)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["gate_run", "kind", "shard"], name="gateevidence_once_per_run")]

    def __str__(self) -> str:
        return f"{self.kind} of {self.gate_run_id}"


class RunnerHostQuerySet(models.QuerySet["RunnerHost"]):
    """The words for asking about machines."""

    def seen(self, host: str, level: int, missing: list[str]) -> None:
        """Note what a machine's probe found now."""
        found = {"level": level, "missing": missing, "seen_at": ClockNow()}
        self.update_or_create(host=host, defaults=found)

    def not_isolated(self) -> Self:
        """Machines on which commands see the network and other files."""
        return self.filter(level__lt=2)


class RunnerHost(Kept):
    """A machine that runs gates: the sandbox level that its probe found, and what keeps it from a higher one."""

    NOUN = "runner_host"

    host = models.CharField(max_length=255, unique=True)
    level = models.PositiveSmallIntegerField(_("sandbox level"))
    missing = models.JSONField(default=list)
    seen_at = models.DateTimeField(db_default=ClockNow())

    objects = RunnerHostQuerySet.as_manager()

    class Meta:
        ordering = ["host"]
        constraints = [models.CheckConstraint(name="runnerhost_level_known", condition=Q(level__lte=3))]

    def __str__(self) -> str:
        return f"{self.host}: level {self.level}"

    def correlation(self) -> dict[str, Any]:
        """A machine belongs to no project."""
        return {}
