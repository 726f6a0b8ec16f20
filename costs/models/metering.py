"""What OTLP tells, between two exports: which meter counts by what, how far a series was counted, what was not kept."""

from collections.abc import Mapping

from django.db import connection, models

from pipeline.clock import BirthTimeField, ClockNow
from pipeline.ids import ULIDField, new_id
from pipeline.models import Project, StepAttempt


class OtlpMeter(models.Model):
    """One tool's session, as its signals name it: of request events, metrics and the agent's own report one counts.

    `stated_amount` is what the agent reported at the end where another source counts, so that the truth meter has it.
    """

    id = ULIDField(primary_key=True, default=new_id, editable=False)
    created_at = BirthTimeField(db_default=ClockNow(), editable=False)
    meter = models.CharField(max_length=300, unique=True)
    tool = models.CharField(max_length=16)
    counts = models.CharField(max_length=8, blank=True)  # events, metrics, report, or nothing yet
    project = models.ForeignKey(Project, models.PROTECT, null=True, related_name="+", db_index=False)
    attempt = models.ForeignKey(StepAttempt, models.PROTECT, null=True, related_name="+")
    sightings = models.BigIntegerField(default=0)
    counted_only = models.BigIntegerField(default=0)
    stated_amount = models.DecimalField(max_digits=18, decimal_places=6, null=True)
    seen_at = models.DateTimeField(db_default=ClockNow())

    def __str__(self) -> str:
        return self.meter


class OtlpMark(models.Model):
    """How far a cumulative series was counted: its last value, and the sender's time of it in nanoseconds."""

    series = models.CharField(primary_key=True, max_length=64)
    value = models.DecimalField(max_digits=32, decimal_places=9)
    at_ns = models.DecimalField(max_digits=20, decimal_places=0)
    seen_at = models.DateTimeField(db_default=ClockNow())

    def __str__(self) -> str:
        return self.series


class SignalCount(models.Model):
    """How often a signal that tells of no money came on a day (UTC): accepted and counted, not stored."""

    id = ULIDField(primary_key=True, default=new_id, editable=False)
    day = models.DateField()
    name = models.CharField(max_length=100)
    count = models.BigIntegerField(default=0)

    class Meta:
        constraints = [models.UniqueConstraint(fields=["day", "name"], name="signal_counted_once_a_day")]

    def __str__(self) -> str:
        return f"{self.name} on {self.day}: {self.count}"

    @classmethod
    def add(cls, counted: Mapping[str, int]) -> None:
        """Count these signals for today, in the order of their names. One statement; none for nothing."""
        if not counted:
            return
        names = sorted(counted)
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO costs_signalcount (id, day, name, count) "
                "SELECT gen_random_uuid(), (clock_timestamp() AT TIME ZONE 'UTC')::date, * "
                "FROM unnest(%s::text[], %s::bigint[]) "
                "ON CONFLICT (day, name) DO UPDATE SET count = costs_signalcount.count + EXCLUDED.count",
                [names, [counted[name] for name in names]],
            )
