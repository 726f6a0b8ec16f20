"""The database's clock: the only one whose readings are compared (domain.md §1.2)."""

from datetime import datetime

from django.db import connection
from django.db.models import DateTimeField, Func


class ClockNow(Func):
    """`clock_timestamp()`: the real time on the database server, moving on within a transaction."""

    function = "clock_timestamp"
    template = "%(function)s()"
    arity = 0
    output_field = DateTimeField()


def db_now() -> datetime:
    """The database's present time, aware, in UTC. One query."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT clock_timestamp()")
        now: datetime = cursor.fetchone()[0]
    return now
