"""Statements that are planned once a connection, for the hot path: planning costs more than running them."""

from collections.abc import Mapping, Sequence
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
    connection.ensure_connection()
    bare = connection.connection
    if bare.prepare_threshold is None:  # what Django sets, and what would keep psycopg from preparing anything
        bare.prepare_threshold = ONLY_WHEN_ASKED
    with connection.wrap_database_errors, psycopg.Cursor(bare) as cursor:
        cursor.execute(statement, values, prepare=True)
        if connection.queries_logged:
            connection.queries_log.append({"sql": statement, "time": "0.000"})
        return cursor.fetchall() if cursor.description else []
