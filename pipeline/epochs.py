"""A new epoch of the log for a restored database, before anything is recorded in its new life (reliability.md D6).

Cursors hold transaction ids, and those are of one cluster: in a restored copy they may start below the ids that its
rows carry, and readers with an old cursor would never see what happens from then on. Hence `look()` runs on each new
connection before anybody uses it: no connection outlives the server that it was made to, so whatever is recorded in a
new life comes over a connection that was looked at in this life. It costs four short queries for each connection that
is really made; one that comes out of the pool again is known.
"""

import logging
from typing import Any, NamedTuple
from weakref import WeakSet

from django.db import DEFAULT_DB_ALIAS, ProgrammingError, transaction

from pipeline.events import EventEpoch

log = logging.getLogger(__name__)

# SQLSTATE of an unknown table and of an unknown column: the migration that makes them is still to come.
NOT_YET_MIGRATED = ("42P01", "42703")

_known: "WeakSet[Any]" = WeakSet()

# The timeline comes from the name of the log file that is written now: pg_control_checkpoint() tells that of the last
# checkpoint, which is the old one for a while after a standby was promoted.
SIGHT = """
SELECT {identifier},
       ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::bigint,
       (SELECT oid FROM pg_database WHERE datname = current_database())::bigint,
       (SELECT max(number) FROM pipeline_eventepoch),
       COALESCE((SELECT xid FROM pipeline_event WHERE epoch = (SELECT max(number) FROM pipeline_eventepoch)
                 ORDER BY epoch DESC, xid DESC, seq DESC LIMIT 1) >= pg_snapshot_xmax(pg_current_snapshot()), false)
"""


class Life(NamedTuple):
    """What tells one life of a database from another; None is not known."""

    system_identifier: int | None
    timeline: int | None
    database_oid: int | None


WORDS = {
    "system_identifier": "another cluster",
    "timeline": "another timeline of its write-ahead log",
    "database_oid": "another database of its cluster",
}


def why_new(before: Life, here: Life, *, ids_ahead: bool) -> str:
    """Pure: why `here` is another life than `before`, in words; empty when nothing says so.

    `ids_ahead`: rows carry transaction ids that have not been given out yet, which tells a restored copy even where the
    server does not let us see who it is.
    """
    for name, was, now in zip(Life._fields, before, here, strict=True):
        if was is not None and now is not None and was != now:
            return f"restored: this is {WORDS[name]} ({was} before, {now} now)"
    return "restored: events carry transaction ids that this cluster has not reached" if ids_ahead else ""


def look(connection: Any) -> int | None:
    """Open a new epoch if this database has begun a new life; returns its number, None when all is as before.

    An epoch that has not seen its life yet takes it down. A standby, which nobody can write to, is left alone. Waits
    for every transaction that writes events, so that none of the older epoch commits behind the first event of the
    new one. Raises ProgrammingError before the first migration, OperationalError when writers hold it up too long.
    """
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_is_in_recovery()")
        if cursor.fetchone()[0]:
            return None
        epoch, here, reason = _judge(cursor)
    if epoch is None:
        return None
    if not reason:
        for name, value in here._asdict().items():
            if value is not None and getattr(epoch, name) is None:
                EventEpoch.objects.using(connection.alias).filter(pk=epoch.pk, **{name: None}).update(**{name: value})
        return None
    with transaction.atomic(using=connection.alias), connection.cursor() as cursor:
        # Conflicts with every INSERT, and with itself: of two that found out, the second one sees the first one's row.
        cursor.execute("LOCK TABLE pipeline_event IN SHARE ROW EXCLUSIVE MODE")
        epoch, here, reason = _judge(cursor)
        if epoch is None or not reason:
            return None
        number = int(epoch.number) + 1
        EventEpoch.objects.using(connection.alias).create(number=number, reason=reason, **here._asdict())
    log.warning("epoch %s of the event log begins: %s", number, reason)
    return number


def _judge(cursor: Any) -> tuple[EventEpoch | None, Life, str]:
    """The newest epoch, the present life, and why that is another one."""
    identifier = "(SELECT system_identifier FROM pg_control_system())"
    cursor.execute("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')")
    cursor.execute(SIGHT.format(identifier=identifier if cursor.fetchone()[0] else "NULL::bigint"))
    *seen, number, ids_ahead = cursor.fetchone()
    here = Life(*seen)
    epoch = EventEpoch.objects.using(cursor.db.alias).filter(number=number).first()
    if epoch is None:
        return None, here, ""
    before = Life(epoch.system_identifier, epoch.timeline, epoch.database_oid)
    return epoch, here, why_new(before, here, ids_ahead=bool(ids_ahead))


def on_connection(connection: Any, **_signal: Any) -> None:
    """The receiver of `connection_created`: look once at each connection that is really made.

    One that could not be looked at is closed again, since nothing may be recorded over it.
    """
    if connection.alias != DEFAULT_DB_ALIAS or connection.connection in _known:
        return
    made = connection.connection
    try:
        look(connection)
    except ProgrammingError as problem:
        if getattr(problem.__cause__, "sqlstate", None) not in NOT_YET_MIGRATED:
            connection.close()
            raise
    except BaseException:
        connection.close()
        raise
    _known.add(made)
