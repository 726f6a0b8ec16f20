"""The database's clock: the only one whose readings are compared (domain.md §1.2)."""

from datetime import datetime
from typing import Any

from django.db import connection
from django.db.models import DateTimeField, Func


class ClockNow(Func):
    """`clock_timestamp()`: the real time on the database server, moving on within a transaction."""

    function = "clock_timestamp"
    template = "%(function)s()"
    arity = 0
    output_field = DateTimeField()


class BirthTimeField(DateTimeField):  # type: ignore[type-arg]  # Django's field takes no parameters at run time
    """The database's time at which the row was inserted, which the INSERT itself returns: no query has to ask for it.

    A plain DateTimeField to the migrations.
    """

    db_returning = True

    def deconstruct(self) -> Any:
        """As the field that it is in the database."""
        name, _path, args, kwargs = super().deconstruct()
        return name, "django.db.models.DateTimeField", args, kwargs


def db_now() -> datetime:
    """The database's present time, aware, in UTC. One query."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now
