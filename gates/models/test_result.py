"""What every test said."""

import difflib
from typing import TYPE_CHECKING, Any, Self

from django.contrib.postgres.indexes import HashIndex
from django.db import models
from django.utils.translation import gettext_lazy as _

from gates.criteria import as_named_in_reports
from gates.junit import Results
from pipeline.rows import Kept, append_only

if TYPE_CHECKING:
    from gates.models.gate_run import GateRun

RUNS_LOOKED_AT, KEYS_LOOKED_AT, NEAR_SHOWN = 20, 2000, 3


class TestResultQuerySet(models.QuerySet["TestResult"]):
    """The words for keeping and asking about results."""

    def visible_to(self, principal: Any) -> Self:
        """The results of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(gate_run__project__in=ids)

    def seen_as(self, project_id: str, name: str) -> str:
        """The key of the test of a project that people mean by `name`: its key, or its node id as pytest prints it.
        Empty when no run has reported such a test.
        """
        of_project = self.filter(gate_run__project=project_id)
        for key in dict.fromkeys((name, as_named_in_reports(name))):
            if of_project.filter(test_key=key).exists():
                return key
        return ""

    def near(self, project_id: str, name: str) -> list[str]:
        """Keys that the project's newest runs reported and that look like `name`, the likest first."""
        from gates.models import GateRun

        runs = GateRun.objects.filter(project=project_id, total_tests__gt=0)
        newest = runs.order_by("-pk").values_list("pk", flat=True)[:RUNS_LOOKED_AT]
        rows = self.filter(gate_run__in=list(newest)).order_by("-pk").values_list("test_key", "name")[:KEYS_LOOKED_AT]
        keys = dict(rows)
        last = as_named_in_reports(name).rpartition("::")[2]
        same = sorted(key for key, test in keys.items() if test == last)
        return list(dict.fromkeys([*same, *difflib.get_close_matches(name, keys, NEAR_SHOWN)]))[:NEAR_SHOWN]

    def keep(self, gate_run: "GateRun", results: Results) -> int:
        """Store what every test said, each attempt a row; returns how many."""
        rows = [
            TestResult(
                gate_run=gate_run,
                test_key=test.test_key,
                name=test.name[:500],
                classname=test.classname[:500],
                file=test.file[:500],
                attempt=test.attempt,
                outcome=test.outcome,
                duration_seconds=test.duration_seconds,
                message=test.message.replace("\x00", "�"),
                trace=test.trace.replace("\x00", "�"),
            )
            for test in results.tests
        ]
        return len(self.bulk_create(rows, batch_size=1000))


@append_only
class TestResult(Kept):
    """What one attempt of one test said."""

    __test__ = False  # not a test class, whatever its name begins with
    NOUN = "test_result"

    class Outcome(models.TextChoices):
        PASS = "pass", _("pass")
        FAIL = "fail", _("fail")
        ERROR = "error", _("error")
        SKIP = "skip", _("skip")
        FLAKY_PASS = "flaky_pass", _("flaky pass")
        INFRA = "infra", _("infrastructure")

    gate_run = models.ForeignKey("gates.GateRun", models.PROTECT, related_name="results")
    test_key = models.CharField(max_length=1600)
    name = models.CharField(max_length=500)
    classname = models.CharField(max_length=500, blank=True)
    file = models.CharField(max_length=500, blank=True)
    attempt = models.PositiveSmallIntegerField(default=1)
    outcome = models.CharField(max_length=10, choices=Outcome)
    duration_seconds = models.DecimalField(max_digits=12, decimal_places=3, null=True)
    message = models.TextField(blank=True)
    trace = models.TextField(blank=True)

    objects = TestResultQuerySet.as_manager()

    class Meta:
        indexes = [
            models.Index(fields=["gate_run", "outcome"], name="testresult_of_run"),
            # Equality only: a key may be longer than an entry of a B-tree.
            HashIndex(fields=["test_key"], name="testresult_of_test"),
        ]

    def __str__(self) -> str:
        return f"{self.name}: {self.outcome}"
