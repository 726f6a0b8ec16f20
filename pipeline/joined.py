"""Rows of several models read by one statement of our own: the reading half of the hot path."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from django.db import connection, models


class Joined:
    """The columns of some models under their aliases, for a SELECT whose text is written once.

    `Joined(t=(Task, ("id", "key")), r=(Run, None))`: `columns` is the select list, `rows()` makes model instances of
    what comes back, with the fields that were not named deferred. None names all fields.
    """

    def __init__(self, **aliases: tuple[type[models.Model], Sequence[str] | None]) -> None:
        self._parts: list[_Part] = []
        selected, start = [], 0
        for alias, (model, names) in aliases.items():
            fields = [f for f in model._meta.concrete_fields if names is None or f.name in names or f.attname in names]
            key = next(number for number, field in enumerate(fields) if field.primary_key)
            converters = [(at, convert) for at, convert in enumerate(map(_converter, fields)) if convert is not None]
            self._parts.append(_Part(alias, model, [f.attname for f in fields], start, len(fields), key, converters))
            selected += [f'{alias}."{field.column}"' for field in fields]
            start += len(fields)
        self.columns = ", ".join(selected)

    def rows(self, record: Sequence[Any]) -> dict[str, Any]:
        """{alias: instance} of one record that begins with `columns`; None for a row that the join did not find."""
        found: dict[str, Any] = {}
        for part in self._parts:
            values = list(record[part.start : part.start + part.width])
            if values[part.key] is None:
                found[part.alias] = None
                continue
            for at, convert in part.converters:
                values[at] = convert(values[at], None, connection)
            found[part.alias] = part.model.from_db(connection.alias, part.names, values)
        return found

    @property
    def width(self) -> int:
        """How many values of a record are the columns; what else was selected follows them."""
        return sum(part.width for part in self._parts)


class _Part(NamedTuple):
    """One alias: its model, its fields' names, where they stand in a record, and what makes values of some of them."""

    alias: str
    model: type[models.Model]
    names: list[str]
    start: int
    width: int
    key: int
    converters: list[tuple[int, Any]]


def _converter(field: Any) -> Any:
    """What makes the Python value of a stored one; a foreign key's is that of the key it points to."""
    while field.is_relation:
        field = field.target_field
    return getattr(field, "from_db_value", None)
