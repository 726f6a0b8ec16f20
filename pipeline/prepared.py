"""Statements that are planned once a connection, for the hot path: planning costs more than running them."""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import psycopg
from django.db import connection

ONLY_WHEN_ASKED = 2**31 - 1
"""Executions of a statement after which psycopg prepares it by itself: what Django sends is never the same twice."""


def execute(statement: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[Any]:
    """Run a statement of our own in the caller's transaction, and answer its records ([] when it returns none).

    Unlike Django's cursor, which puts the values into the text, this sends them apart, so that PostgreSQL keeps the
    plan: the text must be the same every time. psycopg lets go of the plans with every ROLLBACK. Raises Django's
    database errors.
    """
    text, names = _numbered(statement)
    given = [values[name] for name in names] if isinstance(values, Mapping) else values
    connection.ensure_connection()
    bare = connection.connection
    if bare.prepare_threshold is None:  # what Django sets, and what would keep psycopg from preparing anything
        bare.prepare_threshold = ONLY_WHEN_ASKED
    with connection.wrap_database_errors, psycopg.RawCursor(bare) as cursor:
        cursor.execute(text, given, prepare=True)
        if connection.queries_logged:
            connection.queries_log.append({"sql": statement, "time": "0.000"})
        return cursor.fetchall() if cursor.description else []


@lru_cache(maxsize=1000)
def _numbered(statement: str) -> tuple[bytes, list[str]]:
    """The statement as PostgreSQL takes it, with `$1`, and the names of its values in that order, if they have any."""
    names: list[str] = []
    count = 0

    def place(found: re.Match[str]) -> str:
        nonlocal count
        if found[0] == "%%":
            return "%"
        if found[1] is None:
            count += 1
            return f"${count}"
        if found[1] not in names:
            names.append(found[1])
        return f"${names.index(found[1]) + 1}"

    return re.sub(r"%(?:s|%|\((\w+)\)s)", place, statement).encode(), names
