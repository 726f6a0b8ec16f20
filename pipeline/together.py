"""Rows that one verb of the hot path writes, and the events that tell of them, in one statement."""

from collections.abc import Mapping
from functools import cache
from typing import Any, Self

from django.db import connection, models
from django.db.models.expressions import DatabaseDefault

from pipeline import events, prepared
from pipeline.clock import ClockNow
from pipeline.states import InvalidMove, Stateful


class Together:
    """Collects inserts, updates and events, and writes them in the caller's transaction by one statement.

    For verbs that are called thousands of times a minute, where a round trip and a compiled query for each row cost
    more than the rows. The triggers of every table hold as always. Rows are not read back: what the database would
    fill in and the caller needs (`created_at`), the caller sets. The caller holds the locks of the rows it updates.
    """

    def __init__(self) -> None:
        self._writes: list[str] = []
        self._values: list[Any] = []
        self._events: list[events.Event] = []

    def insert(self, row: models.Model) -> Self:
        """Add a new row."""
        names, places = [], []
        for field in row._meta.concrete_fields:
            names.append(f'"{field.column}"')
            places.append(self._place(field, getattr(row, field.attname)))
        table = row._meta.db_table
        self._writes.append(f'INSERT INTO "{table}" ({", ".join(names)}) VALUES ({", ".join(places)}) RETURNING 1')
        return self

    def update(self, row: models.Model, **columns: Any) -> Self:
        """Change columns, by their `attname`, of a row that is stored; the Python row gets the same values."""
        sets = []
        for name, value in columns.items():
            field = _by_attname(type(row))[name]
            sets.append(f'"{field.column}" = {self._place(field, value)}')
            setattr(row, name, value)
        self._values.append(row._meta.pk.get_db_prep_save(row.pk, connection))
        self._writes.append(f'UPDATE "{row._meta.db_table}" SET {", ".join(sets)} WHERE id = %s RETURNING 1')
        return self

    def move(
        self,
        row: Stateful,
        to: str,
        *,
        by: events.Actor,
        reason: str = "",
        verb: str = "",
        data: Mapping[str, Any] | None = None,
        **columns: Any,
    ) -> Self:
        """Take a row that the caller has read under its lock to `to`, with these columns (by their `attname`) and the
        event that tells it, as `Stateful.move` would. Raises InvalidMove when there is no such arrow.
        """
        if not row.can_move(row.state, to):
            raise InvalidMove(row, row.state, to, verb=verb, allowed=row.MOVES[row.state])
        kind, changes = row.event_kind(row.state, str(to)), {"state": str(to), **columns}
        told = [name for name in changes if name not in row.UNTOLD]
        before = row.tellable({name: getattr(row, name) for name in told})
        self.update(row, **changes)
        after = row.tellable({name: changes[name] for name in told})
        return self.tell(kind, row, by=by, reason=reason, data=data, before=before, after=after)

    def tell(self, kind: str, subject: Any, *, by: events.Actor, **told: Any) -> Self:
        """Add an event, as `events.record` would."""
        self._events.append(events.compose(kind, subject, by=by, **told))
        return self

    def write(self) -> None:
        """Write everything. Raises what the database refuses (IntegrityError)."""
        if self._writes:
            parts = ", ".join(f"w{number} AS ({write})" for number, write in enumerate(self._writes))
            prepared.execute(f"WITH {parts} SELECT 1", self._values)
        events.append(self._events)

    def _place(self, field: Any, value: Any) -> str:
        """The text that stands for the value; the value itself is sent beside the statement."""
        if isinstance(value, DatabaseDefault):
            return "DEFAULT"
        if isinstance(value, ClockNow):
            return "clock_timestamp()"
        self._values.append(field.get_db_prep_save(value, connection))
        return "%s"


@cache
def _by_attname(model: type[models.Model]) -> dict[str, Any]:
    return {field.attname: field for field in model._meta.concrete_fields}
