"""Rows of several models read by one statement of our own: the reading half of the hot path."""

from collections.abc import Sequence
from typing import Any

from django.db import connection, models


class Joined:
    """The columns of some models under their aliases, for a SELECT whose text is written once.

    `Joined(t=(Task, ("id", "key")), r=(Run, None))`: `columns` is the select list, `rows()` makes model instances of
    what comes back, with the fields that were not named deferred. None names all fields.
    """

    def __init__(self, **aliases: tuple[type[models.Model], Sequence[str] | None]) -> None:
        self._parts: list[tuple[str, type[models.Model], list[Any], list[str]]] = []
        selected = []
        for alias, (model, names) in aliases.items():
            fields = [f for f in model._meta.concrete_fields if names is None or f.name in names or f.attname in names]
            self._parts.append((alias, model, fields, [field.attname for field in fields]))
            selected += [f'{alias}."{field.column}"' for field in fields]
        self.columns = ", ".join(selected)

    def rows(self, record: Sequence[Any]) -> dict[str, Any]:
        """{alias: instance} of one record that begins with `columns`; None for a row that the join did not find."""
        found: dict[str, Any] = {}
        start = 0
        for alias, model, fields, names in self._parts:
            values = record[start : start + len(fields)]
            start += len(fields)
            key = next(value for field, value in zip(fields, values, strict=True) if field.primary_key)
            found[alias] = None if key is None else model.from_db(connection.alias, names, _converted(fields, values))
        return found

    @property
    def width(self) -> int:
        """How many values of a record are the columns; what else was selected follows them."""
        return sum(len(fields) for _alias, _model, fields, _names in self._parts)


def _converted(fields: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    return [
        value if convert is None else convert(value, None, connection)
        for convert, value in zip(map(_converter, fields), values, strict=True)
    ]


def _converter(field: Any) -> Any:
    """What makes the Python value of a stored one; a foreign key's is that of the key it points to."""
    while field.is_relation:
        field = field.target_field
    return getattr(field, "from_db_value", None)
