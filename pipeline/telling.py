"""Pure: how a column's value is written into an event, and read back without loss."""

from collections.abc import Mapping
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from django.db import models

FLOAT = "$float"
"""The key that marks a float inside a JSON column: events hold none, since its text differs between programs."""


def written(field: "models.Field[Any, Any]", value: Any) -> Any:
    """`value` of `field` as an event tells it: what PostgreSQL will store, with no float in it.

    A float inside a JSON column becomes `{"$float": "0.5"}`; a decimal is rounded to the column's places as PostgreSQL
    rounds, half away from zero. Everything else stays, for `events.plain` to write.
    """
    if value is None:
        return None
    if isinstance(field, models.JSONField):
        return _without_floats(value)
    if isinstance(field, models.DecimalField):
        return Decimal(str(value)).quantize(Decimal(1).scaleb(-(field.decimal_places or 0)), ROUND_HALF_UP)
    return value


def read(field: "models.Field[Any, Any]", value: Any) -> Any:
    """The column's Python value that an event tells as `value`. Raises ValidationError for what is none."""
    if value is None:
        return None
    if isinstance(field, models.JSONField):
        return _with_floats(value)
    return field.to_python(value)


def empty(field: "models.Field[Any, Any]") -> Any:
    """What a birth leaves unsaid: null where the column allows it, else its type's nothing ("", 0, false, [] or {}).

    Not the column's default, which the code may change after the event was written. A type without a nothing, such as a
    time, gives None, and is always told where it may not be null.
    """
    if field.null:
        return None
    if isinstance(field, models.JSONField):
        return [] if field.default is list else {}
    if isinstance(field, models.BooleanField):
        return False
    if isinstance(field, models.DecimalField):
        return Decimal(0)
    if isinstance(field, models.IntegerField):
        return 0
    return "" if isinstance(field, models.CharField | models.TextField) else None


def _without_floats(value: Any) -> Any:
    if isinstance(value, float):
        return {FLOAT: repr(value)}
    if isinstance(value, Mapping):
        plain = {key: _without_floats(item) for key, item in value.items()}
        return {FLOAT: plain} if FLOAT in plain else plain
    if isinstance(value, list | tuple):
        return [_without_floats(item) for item in value]
    return value


def _with_floats(value: Any) -> Any:
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    marked = value.get(FLOAT)
    if isinstance(marked, str):
        return float(marked)
    # A document of the user's that has the key itself was wrapped in it.
    return {key: _with_floats(item) for key, item in (value if marked is None else marked).items()}
