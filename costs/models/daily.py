"""What was spent, summed by day and by what the pages ask for: a small table beside the records, kept with each write.

Every statement that books, voids or re-classes records adds what it changes here, so the two agree in every snapshot.
"""

from typing import Any, Self

from django.db import models

from pipeline.ids import ULIDField, new_id
from pipeline.models import Phase, Project, Tool, Workstream
from workers.models import Worker

DIMENSIONS = (
    "project_id", "phase_id", "workstream_id", "tool_id", "model", "worker_id", "kind", "person", "resource_type",
    "landing", "waste_cause", "currency",
)  # fmt: skip
"""What tells one row of a day from the others: columns that the records have under the same names."""

SUMS = {
    "amount": "c.amount",
    "records": "1",
    "unpriced_amount": "CASE WHEN c.unpriced THEN c.amount ELSE 0 END",
    "tokens_input": "c.tokens_uncached_input + c.tokens_cache_read + c.tokens_cache_write_5m + c.tokens_cache_write_1h",
    "tokens_output": "c.tokens_output",
    "stated_amount": "COALESCE(c.stated_amount, 0)",
    "compared_amount": "CASE WHEN c.stated_amount IS NULL THEN 0 ELSE c.amount END",
}
"""What is summed, and what one record (c) adds to it."""

_KEYS = ", ".join(("day", *DIMENSIONS))
_ADD = ", ".join(f"{name} = costs_dailyspend.{name} + EXCLUDED.{name}" for name in SUMS)


def deltas(source: str, sign: str = "", **instead: str) -> str:
    """SQL: what the records of the table expression `source` add to their days; with `sign` "-" what they take away.

    `instead` gives other columns for dimensions: those of the class that they had.
    """
    dimensions = ", ".join(f"{instead.get(name, f'c.{name}')} AS {name}" for name in DIMENSIONS)
    sums = ", ".join(f"{sign}({text}) AS {name}" for name, text in SUMS.items())
    return f"SELECT (c.recorded_at AT TIME ZONE 'UTC')::date AS day, {dimensions}, {sums} FROM {source} c"


def add(changes: str) -> str:
    """SQL: an INSERT that adds the rows of the query `changes` (day, dimensions, sums) to the table.

    In the order of the key, so that two of them never wait for each other in a circle.
    """
    sums = ", ".join(f"sum(x.{name}) AS {name}" for name in SUMS)
    return (
        f"INSERT INTO costs_dailyspend (id, {_KEYS}, {', '.join(SUMS)}) "
        f"SELECT gen_random_uuid(), {_KEYS}, {sums} FROM ({changes}) x GROUP BY {_KEYS} ORDER BY {_KEYS} "
        f"ON CONFLICT ({_KEYS}) DO UPDATE SET {_ADD}"
    )


class DailySpendQuerySet(models.QuerySet["DailySpend"]):
    """The words for asking about sums."""

    def visible_to(self, principal: Any) -> Self:
        """Those of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)


class DailySpend(models.Model):
    """The live records of one day (UTC), place, tool, model, worker, kind of task, person, class and currency, summed.

    Rebuildable from the records, and always equal to them (INV-60). `compared_amount` is ours of those records of which
    the tool states an amount too, `stated_amount` the tool's.
    """

    id = ULIDField(primary_key=True, default=new_id, editable=False)
    day = models.DateField()
    project = models.ForeignKey(Project, models.PROTECT, null=True, related_name="+", db_index=False)
    phase = models.ForeignKey(Phase, models.PROTECT, null=True, related_name="+", db_index=False)
    workstream = models.ForeignKey(Workstream, models.PROTECT, null=True, related_name="+", db_index=False)
    tool = models.ForeignKey(Tool, models.PROTECT, null=True, related_name="+", db_index=False)
    model = models.CharField(max_length=100, blank=True)
    worker = models.ForeignKey(Worker, models.PROTECT, null=True, related_name="+", db_index=False)
    kind = models.CharField(max_length=64, blank=True)
    person = models.CharField(max_length=200, blank=True)
    resource_type = models.CharField(max_length=12)
    landing = models.CharField(max_length=9)
    waste_cause = models.CharField(max_length=12, blank=True)
    currency = models.CharField(max_length=3)
    amount = models.DecimalField(max_digits=24, decimal_places=6)
    records = models.BigIntegerField()
    unpriced_amount = models.DecimalField(max_digits=24, decimal_places=6)
    tokens_input = models.DecimalField(max_digits=24, decimal_places=0)
    tokens_output = models.DecimalField(max_digits=24, decimal_places=0)
    stated_amount = models.DecimalField(max_digits=24, decimal_places=6)
    compared_amount = models.DecimalField(max_digits=24, decimal_places=6)

    objects = DailySpendQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["day", *(name.removesuffix("_id") for name in DIMENSIONS)],
                name="daily_spend_once",
                nulls_distinct=False,
            ),
        ]
        # Read by the page of one project.
        indexes = [models.Index(fields=["project", "day"], name="daily_spend_of_project")]

    def __str__(self) -> str:
        return f"{self.amount} {self.currency} on {self.day}"
