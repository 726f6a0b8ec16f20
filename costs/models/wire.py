"""Many records in one statement: what most of them have in common is sent once, the rest as PostgreSQL's array texts.

The driver dumps an array value by value, in Python; fifty arrays of a thousand values take longer than storing them.
So the columns that the records of one source mostly share are told apart into shapes, each sent once, and what differs
from record to record is joined into a text by one call for each column.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import date, datetime
from operator import itemgetter
from typing import Any

# Column: PostgreSQL's type. Those of OWN differ from record to record; those of SHARED are a shape.
OWN = {
    "id": "uuid", "idempotency_key": "text", "session": "text", "amount": "numeric", "usage_quantity": "numeric",
    "tokens_uncached_input": "bigint", "tokens_cache_read": "bigint", "tokens_cache_write_5m": "bigint",
    "tokens_cache_write_1h": "bigint", "tokens_output": "bigint", "reasoning": "bigint", "stated_amount": "numeric",
    "gateway_amount": "numeric", "duration_seconds": "numeric", "reported_at": "timestamptz",
}  # fmt: skip
SHARED = {
    "resource_type": "text", "currency": "text", "leaf_kind": "text", "leaf_id": "uuid", "project_id": "uuid",
    "phase_id": "uuid", "workstream_id": "uuid", "run_id": "uuid", "task_id": "uuid", "request_id": "uuid",
    "attempt_id": "uuid", "worker_id": "uuid", "tool_id": "uuid", "patch_id": "uuid", "resource_name": "text",
    "model": "text", "provider": "text", "usage_unit": "text", "usage_rate": "numeric", "price_id": "uuid",
    "basis": "text", "unpriced": "bool", "assumed_ttl": "bool", "override_reason": "text", "source": "text",
    "landing": "text", "waste_cause": "text", "replaces_id": "uuid", "kind": "text", "person": "text",
    "web_searches": "int", "flags": "jsonb", "is_request": "bool", "meter": "text", "price_source": "text",
    "price_version": "text", "price_dated": "date", "batch": "uuid", "recorded_at": "timestamptz",
}  # fmt: skip

OWN_ARRAYS = ", ".join(f"%s::{kind}[]" for kind in OWN.values())
SHARED_ARRAYS = ", ".join(f"%s::{kind}[]" for kind in SHARED.values())

_shape = itemgetter(*SHARED)
_DIGITS = str.maketrans("ABCDEFGHJKMNPQRSTVWXYZ", "ABCDEFGHIJKLMNOPQRSTUV")


def hexed(ulid: str) -> str:
    """A well-formed ULID as the text of its uuid, without the checks of `to_uuid`."""
    return f"{int(ulid.translate(_DIGITS), 32):032x}"


def _texts(values: Sequence[Any]) -> Iterable[str]:
    """Quoted, so that whatever they hold is a value: a comma, a brace, the word NULL."""
    if None in values:
        return ["NULL" if value is None else _quoted(value) for value in values]
    if "\\" in (joined := "".join(values)) or '"' in joined:
        return map(_quoted, values)
    return [f'"{value}"' for value in values]


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _plain(values: Sequence[Any]) -> Iterable[str]:
    return ["NULL" if value is None else str(value) for value in values] if None in values else map(str, values)


def _times(values: Sequence[datetime | date | None]) -> Iterable[str]:
    return ["NULL" if value is None else f'"{value.isoformat()}"' for value in values]


def _documents(values: Sequence[Any]) -> Iterable[str]:
    return [_quoted(json.dumps(value)) for value in values]


def _ids(values: Sequence[str | None]) -> Iterable[str]:
    return ["NULL" if value is None else hexed(value) for value in values]


_AS_TEXT: dict[str, Callable[[Sequence[Any]], Iterable[str]]] = {
    "text": _texts, "jsonb": _documents, "timestamptz": _times, "date": _times, "uuid": _ids, "numeric": _plain,
    "bigint": _plain, "int": _plain, "bool": _plain,
}  # fmt: skip


def array(kind: str, values: Sequence[Any]) -> str:
    """The text of a PostgreSQL array of this type."""
    return "{" + ",".join(_AS_TEXT[kind](values)) + "}"


def columns(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The values of a statement that takes SHARED_ARRAYS, then the number of each row's shape, then OWN_ARRAYS."""
    shapes: dict[tuple[Any, ...], int] = {}
    numbers = [shapes.setdefault(_shape(row), len(shapes) + 1) for row in rows]
    found = [array(kind, column) for kind, column in zip(SHARED.values(), zip(*shapes, strict=True), strict=True)]
    found.append(array("int", numbers))
    found += [array(kind, [row[name] for row in rows]) for name, kind in OWN.items()]
    return found
