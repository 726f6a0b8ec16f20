"""Identifiers: a ULID of 26 characters outside, a native `uuid` column inside (domain.md §1.1)."""

import re
import uuid
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from django import forms
from django.core.exceptions import ValidationError
from django.db import models
from django.utils.translation import gettext_lazy as _
from ulid import LaxMonotonicPolicy, ULIDGenerator

PATTERN = re.compile(r"[0-7][0-9A-HJKMNP-TV-Z]{25}")

# Lax: a millisecond whose random part overflows borrows fresh randomness instead of raising in the middle of a verb.
_generator = ULIDGenerator(policy=LaxMonotonicPolicy())


def new_id() -> str:
    """A fresh ULID: 26 characters, rising within this process, ordered by millisecond between processes."""
    return _text(int.from_bytes(_generator.generate().bytes))


def first_id_at(at: datetime) -> str:
    """An id older than every id of the time from `at` (aware) on, with an hour for clocks that differ."""
    milliseconds = max(int((at - timedelta(hours=1)).timestamp() * 1000), 0)
    return _text(milliseconds << 80)


def is_id(text: object) -> bool:
    """Whether `text` is a well-formed ULID (upper-case Crockford base 32)."""
    return isinstance(text, str) and PATTERN.fullmatch(text) is not None


# Crockford's digits beside Python's own, which `int` reads; and two of Crockford's for each ten bits.
_DIGITS = str.maketrans("ABCDEFGHJKMNPQRSTVWXYZ", "ABCDEFGHIJKLMNOPQRSTUV")
_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_PAIRS = tuple(one + other for one in _ALPHABET for other in _ALPHABET)
_SHIFTS = tuple(range(120, -1, -10))


@lru_cache(maxsize=4096)
def to_uuid(text: str) -> uuid.UUID:
    """The `uuid` that the database holds for this ULID. Raises ValueError when it is malformed."""
    if PATTERN.fullmatch(text) is None:
        raise ValueError(f"“{text[:80]}” is not an id: 26 characters of Crockford base 32")
    return uuid.UUID(int=int(text.translate(_DIGITS), 32))


def from_uuid(value: uuid.UUID) -> str:
    """The ULID of 26 characters for a stored `uuid`."""
    return _text(value.int)


def _text(number: int) -> str:
    return "".join([_PAIRS[number >> shift & 1023] for shift in _SHIFTS])


class ULIDField(models.UUIDField):  # type: ignore[type-arg]  # Django's field takes no parameters at run time
    """A ULID: `str` in Python, `uuid` in PostgreSQL. Malformed text raises ValidationError `invalid_id`."""

    # What the type checker's Django plugin reads: a column holds a str, never a uuid as its base class says.
    _pyi_private_set_type: str
    _pyi_private_get_type: str  # type: ignore[assignment]
    _pyi_lookup_exact_type: str

    description = _("ULID, 26 characters")
    default_error_messages = {"invalid_id": _("“%(value)s” is not an id: 26 characters of Crockford base 32.")}

    def to_python(self, value: Any) -> str | None:
        """`value` (ULID text or uuid) as a ULID text; None and blank stay None."""
        if value is None or value == "":
            return None
        if isinstance(value, uuid.UUID):
            return from_uuid(value)
        if is_id(value):
            return str(value)
        raise ValidationError(self.error_messages["invalid_id"], code="invalid_id", params={"value": value})

    def from_db_value(self, value: uuid.UUID | str | None, expression: Any, connection: Any) -> str | None:
        """What the database returned, as a ULID text."""
        if value is None or (isinstance(value, str) and len(value) == 26):
            return value
        return from_uuid(value if isinstance(value, uuid.UUID) else uuid.UUID(value))

    def get_prep_value(self, value: Any) -> str | None:
        """`value` in the form that look-ups compare."""
        return self.to_python(models.Field.get_prep_value(self, value))

    def get_db_prep_value(self, value: Any, connection: Any, prepared: bool = False) -> uuid.UUID | None:
        """`value` in the form that the driver sends."""
        text = self.to_python(value)
        return None if text is None else to_uuid(text)

    def value_to_string(self, obj: models.Model) -> str:
        """The ULID text, for serialised fixtures."""
        return str(self.value_from_object(obj) or "")

    def formfield(self, **kwargs: Any) -> forms.Field | None:
        """A text field: Django's uuid field would refuse a ULID."""
        field: forms.Field | None = models.Field.formfield(
            self, **{"form_class": forms.CharField, "max_length": 26, **kwargs}
        )
        return field
