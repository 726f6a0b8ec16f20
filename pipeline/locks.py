"""What one process at a time does, however many are started: a lock of the session that dies with its process."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from django.db import DatabaseError

from pipeline import prepared


@contextmanager
def alone(name: str, space: int) -> Iterator[bool]:
    """Whether this process has `name` to itself until the block ends, across transactions; False: another has it.

    `space` keeps the names of one use apart from those of another.
    """
    ((mine,),) = prepared.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, %s::bigint))", [name, space])
    try:
        yield mine
    finally:
        if mine:
            with suppress(DatabaseError):  # a session that broke has let go of it
                prepared.execute("SELECT pg_advisory_unlock(hashtextextended(%s, %s::bigint))", [name, space])
