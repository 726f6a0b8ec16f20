"""Periodic work, done once however many beats run: each due moment of each schedule is one row."""

from datetime import datetime, timedelta
from typing import Self

from django.db import connection, models

from pipeline.clock import ClockNow
from pipeline.ids import new_id, to_uuid
from pipeline.rows import Kept

BY_COMMAND = "command "
"""How the schedule of work begins that a person asked for: no beat was needed for it."""


class TickQuerySet(models.QuerySet["Tick"]):
    """The words for taking a due moment."""

    def take(self, schedule: str, period: timedelta) -> "Tick | None":
        """The present moment of `schedule`, if nobody has taken it yet; None when somebody has.

        A moment is the database's time rounded down to `period`; the unique row makes twice impossible.
        """
        with connection.cursor() as cursor:
            cursor.execute(
                """
                INSERT INTO pipeline_tick (id, schedule, due_at)
                VALUES (%s, %s, to_timestamp(floor(extract(epoch FROM clock_timestamp()) / %s) * %s))
                ON CONFLICT (schedule, due_at) DO NOTHING RETURNING id
                """,
                [to_uuid(new_id()), schedule, period.total_seconds(), period.total_seconds()],
            )
            row = cursor.fetchone()
        return None if row is None else self.get(pk=row[0])

    def of_beat(self) -> Self:
        """The moments that a beat found due, without what people asked for by command."""
        return self.exclude(schedule__startswith=BY_COMMAND)

    def forget(self, before: datetime) -> int:
        """Delete the moments before `before`; returns how many."""
        return self.filter(due_at__lt=before).delete()[0]


class Tick(Kept):
    """One due moment of one schedule: whoever inserts it does the work."""

    schedule = models.CharField(max_length=64)
    due_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)

    objects = TickQuerySet.as_manager()

    class Meta:
        constraints = [models.UniqueConstraint(fields=["schedule", "due_at"], name="tick_once_per_moment")]
        indexes = [models.Index(fields=["-due_at"], name="tick_newest")]

    def __str__(self) -> str:
        return f"{self.schedule} at {self.due_at:%Y-%m-%dT%H:%M:%SZ}"

    def end(self) -> None:
        """Note that the work of this moment is done."""
        Tick.objects.filter(pk=self.pk).update(ended_at=ClockNow())
