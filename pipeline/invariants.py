"""What must hold between the rows of the house (domain.md §6): each app registers its own, `manage.py doctor` asks all.

An invariant is a query that returns no row, or a function that returns no violation. A probe looks at what the house
stands on: the database, its guards, the tools of this machine.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

from django.conf import settings
from django.db import ProgrammingError, connection, transaction
from psycopg.errors import UndefinedColumn, UndefinedTable

from pipeline.ids import from_uuid
from pipeline.states import Stateful

log = logging.getLogger(__name__)

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
"""Crockford's base 32, as ULIDs are written."""

SHOWN = 10
"""How many names stand on a line of a report."""

Search = Callable[[], list[str]]
F = TypeVar("F", bound=Search)


@dataclass(frozen=True, slots=True)
class Invariant:
    """One sentence that holds, and how its violations are found."""

    number: str
    text: str
    find: Search


class Result(NamedTuple):
    """What one invariant's search found; `applies` is False where its tables are not there yet."""

    number: str
    text: str
    violations: list[str]
    applies: bool = True

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.violations


class Finding(NamedTuple):
    """What a probe saw: whether it is as it should be, and the facts in words."""

    ok: bool
    detail: str


Probe = Callable[[], Finding]
P = TypeVar("P", bound=Probe)

_invariants: list[Invariant] = []
_probes: dict[str, Probe] = {}


def invariant(number: int, text: str) -> Callable[[F], F]:
    """Register the decorated function, which returns its violations in words, as invariant `number` of domain.md §6."""

    def register(find: F) -> F:
        _invariants.append(Invariant(f"INV-{number:02}", text, find))
        return find

    return register


def query(number: int, text: str, sql: str) -> None:
    """Register `sql`, which returns a row (its first column an id) for each violation, as invariant `number`."""

    @invariant(number, text)
    def find() -> list[str]:
        with transaction.atomic(), connection.cursor() as cursor:
            # An audit of a large log may take longer than a request may.
            cursor.execute("SELECT set_config('statement_timeout', '10min', true)")
            cursor.execute(sql)
            return [_name(row[0]) for row in cursor.fetchall()]


def _name(value: Any) -> str:
    return from_uuid(value) if isinstance(value, UUID) else str(value)


def ulid(column: str) -> str:
    """The SQL expression for the 26 characters of a stored `uuid`: what callers write into a text column."""
    bits = f"B'00' || ('x' || replace({column}::text, '-', ''))::bit(128)"
    return (
        f"(SELECT string_agg(substr('{ALPHABET}', substring({bits} FROM 5 * n + 1 FOR 5)::int + 1, 1), '' ORDER BY n) "
        "FROM generate_series(0, 25) n)"
    )


def told(*models: type[Stateful]) -> None:
    """Register INV-65 for each of these stateful tables: a row's state is that of its newest state event."""
    for model in models:
        noun, table = model.noun(), model._meta.db_table
        query(
            65,
            f"the state of a {noun.replace('_', ' ')} is that of its newest state event",
            f"""
            SELECT r.id FROM {table} r WHERE r.state IS DISTINCT FROM COALESCE(
                (SELECT e.after->>'state' FROM pipeline_event e WHERE e.subject_type='{noun}' AND e.subject_id=r.id
                    AND e.after->>'state' IS NOT NULL ORDER BY e.stream_seq DESC LIMIT 1),
                (SELECT r.state FROM pipeline_eventstream s
                    WHERE s.subject_type='{noun}' AND s.subject_id=r.id AND s.first_seq>1))
            """,
        )


def probe(name: str) -> Callable[[P], P]:
    """Register the decorated function, which returns a Finding, as the probe `name`."""

    def register(look: P) -> P:
        _probes[name] = look
        return look

    return register


def check_all() -> list[Result]:
    """What every registered invariant finds, in the order of their numbers.

    A search that cannot be finished is a violation that says why; one over tables that are not there does not apply.
    """
    return [_check(one) for one in sorted(_invariants, key=lambda one: (one.number, one.text))]


def _check(one: Invariant) -> Result:
    try:
        return Result(one.number, one.text, one.find())
    except ProgrammingError as problem:
        if isinstance(problem.__cause__, UndefinedTable | UndefinedColumn):
            return Result(one.number, one.text, [], applies=False)
        return _unfinished(one, problem)
    except Exception as problem:  # an audit ends with a report, whatever one of its searches met
        return _unfinished(one, problem)


def _unfinished(one: Invariant, problem: Exception) -> Result:
    log.exception("%s could not be checked", one.number)
    return Result(one.number, one.text, [f"could not be checked: {problem}".strip()])


def probe_all() -> dict[str, Finding]:
    """What every registered probe sees, by its name, in the order of registration."""
    return {name: _probe(look) for name, look in _probes.items()}


def _probe(look: Probe) -> Finding:
    try:
        return look()
    except Exception as problem:  # a probe that breaks has found something
        said = str(problem).strip().splitlines() or ["no more is known"]
        return Finding(False, f"{type(problem).__name__}: {said[0]}")


def listed(names: list[str]) -> str:
    """The names on one line, the first SHOWN of them."""
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return f"{', '.join(names[:SHOWN])}{more}"


# -- what the house stands on ------------------------------------------------------------------------------------


@probe("database")
def _database() -> Finding:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('server_version'), current_database()")
        version, name = cursor.fetchone()
    return Finding(True, f"PostgreSQL {version}, database {name}")


@probe("migrations")
def _migrations() -> Finding:
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    if missing:
        names = [f"{migration.app_label}.{migration.name}" for migration, _backwards in missing]
        return Finding(False, f"not applied ({len(names)}): {listed(names)}; run manage.py migrate")
    return Finding(True, "all applied")


@probe("triggers")
def _triggers() -> Finding:
    from pgtrigger import core, registry

    wrong = []
    known = registry.registered()
    for model, trigger in known:
        status, enabled = trigger.get_installation_status(model)
        if status != core.INSTALLED or not enabled:
            wrong.append(f"{trigger.get_uri(model)} {status.lower() if status != core.INSTALLED else 'disabled'}")
    if wrong:
        return Finding(False, f"not as they should be ({len(wrong)}): {listed(wrong)}")
    return Finding(True, f"{len(known)} installed and enabled")


@probe("event partitions")
def _partitions() -> Finding:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT month, to_regclass('pipeline_event_' || month) IS NOT NULL FROM (
                SELECT to_char(date_trunc('month', clock_timestamp() AT TIME ZONE 'UTC') + n * interval '1 month',
                    'YYYYMM') AS month FROM generate_series(0, 1) n) months
            """
        )
        found = dict(cursor.fetchall())
        cursor.execute("SELECT count(*) FROM pipeline_event_default")
        (astray,) = cursor.fetchone()
    missing = [month for month, there in found.items() if not there]
    if missing or astray:
        return Finding(False, f"missing: {', '.join(missing) or 'none'}; events in the default partition: {astray}")
    return Finding(True, f"there for {' and '.join(found)}")


@probe("data directory")
def _data_directory() -> Finding:
    import os

    there = os.access(settings.DATA_DIR, os.R_OK | os.W_OK | os.X_OK)
    return Finding(there, f"{settings.DATA_DIR}{'' if there else ' cannot be written to'}")


# -- the ground floor's own invariants ---------------------------------------------------------------------------

query(
    10,
    "a finished run has nothing open",
    """
    SELECT r.id FROM pipeline_run r WHERE r.state IN ('succeeded','failed','quarantined','canceled') AND (
        EXISTS (SELECT 1 FROM pipeline_task t WHERE t.run_id=r.id AND t.state NOT IN ('completed','failed','cancelled'))
        OR EXISTS (SELECT 1 FROM pipeline_stepattempt a WHERE a.run_id=r.id AND a.state IN ('pending','running')))
    """,
)
query(
    11,
    "run times follow its state",
    """
    SELECT id FROM pipeline_run WHERE (state='pending' AND started_at IS NOT NULL)
        OR (state IN ('running','succeeded','failed','quarantined') AND started_at IS NULL)
        OR (state IN ('succeeded','failed','quarantined','canceled'))<>(ended_at IS NOT NULL)
    """,
)
query(12, "success exits 0", "SELECT id FROM pipeline_run WHERE state='succeeded' AND exit_code IS DISTINCT FROM 0")
query(
    14,
    "step sequence is unique and starts at 1",
    "SELECT run_id FROM pipeline_stepattempt GROUP BY run_id, sequence HAVING count(*)>1 OR min(sequence)<1",
)
query(
    15,
    "outcome and state of an attempt agree",
    """
    SELECT id FROM pipeline_stepattempt WHERE (state IN ('succeeded','failed','canceled'))<>(outcome IS NOT NULL)
        OR (state='succeeded')<>(outcome='success')
        OR (state='failed' AND outcome NOT IN ('task_failed','infra_lost'))
        OR (state='canceled' AND outcome NOT IN ('quota_wait','budget_stop','needs_human','cancelled'))
    """,
)
query(
    16,
    "time runs forward",
    """
    SELECT id FROM pipeline_run WHERE started_at<created_at OR ended_at<COALESCE(started_at,created_at)
    UNION ALL SELECT id FROM pipeline_task WHERE started_at<created_at OR completed_at<COALESCE(started_at,created_at)
    UNION ALL SELECT id FROM pipeline_stepattempt WHERE ended_at<started_at
    """,
)
query(
    17,
    "dependencies stay in their run",
    """
    SELECT d.id FROM pipeline_taskdependency d JOIN pipeline_task a ON a.id=d.task_id
        JOIN pipeline_task b ON b.id=d.needs_id WHERE a.run_id<>b.run_id OR a.id=b.id
    """,
)
query(
    18,
    "the graph has no cycle",
    """
    WITH RECURSIVE p AS (SELECT task_id, needs_id FROM pipeline_taskdependency
        UNION SELECT p.task_id, d.needs_id FROM p JOIN pipeline_taskdependency d ON d.task_id=p.needs_id)
    SELECT task_id FROM p WHERE task_id=needs_id
    """,
)
query(
    19,
    "nothing starts before what it needs",
    """
    SELECT t.id FROM pipeline_taskdependency d JOIN pipeline_task t ON t.id=d.task_id
        JOIN pipeline_task n ON n.id=d.needs_id
        WHERE t.state IN ('queued','running','validating','completed') AND n.state<>'completed'
    """,
)
query(
    20,
    "blocked means waiting for something that can still come",
    """
    SELECT t.id FROM pipeline_task t WHERE t.state='blocked'
        AND t.updated_at < clock_timestamp() - interval '30 seconds' AND (
        NOT EXISTS (SELECT 1 FROM pipeline_taskdependency d JOIN pipeline_task n ON n.id=d.needs_id
            WHERE d.task_id=t.id AND n.state<>'completed')
        OR EXISTS (SELECT 1 FROM pipeline_taskdependency d JOIN pipeline_task n ON n.id=d.needs_id
            WHERE d.task_id=t.id AND n.state IN ('failed','cancelled')))
    """,
)
query(
    21,
    "attempts are counted and bounded",
    """
    SELECT t.id FROM pipeline_task t WHERE t.count_failures>t.max_attempts OR t.count_attempts<>t.generation
        OR t.count_attempts<>(SELECT count(*) FROM pipeline_stepattempt a WHERE a.task_id=t.id)
    """,
)
query(
    22,
    "one running task per conflict group and project",
    """
    SELECT r.project_id FROM pipeline_task t JOIN pipeline_run r ON r.id=t.run_id
        WHERE t.state='running' AND t.conflict_group<>'' GROUP BY r.project_id, t.conflict_group HAVING count(*)>1
    """,
)
query(
    27,
    "holds say why, who, and end",
    """
    SELECT id FROM pipeline_hold WHERE reason='' OR holder='' OR (state='released')<>(released_at IS NOT NULL)
        OR (state='active' AND until < clock_timestamp() - interval '30 seconds')
    """,
)
query(
    29,
    "every attempt of a task was routed",
    """
    SELECT a.id FROM pipeline_stepattempt a WHERE a.task_id IS NOT NULL AND NOT EXISTS (
        SELECT 1 FROM pipeline_routingdecision d WHERE d.task_id=a.task_id AND d.chosen_id=a.tool_id)
    """,
)
query(
    31,
    "the error pipeline does not nest",
    f"""
    SELECT r.id FROM pipeline_run r JOIN pipeline_run s ON r.trigger_ref IN (s.id::text, {ulid("s.id")})
        WHERE r.trigger_type='error_pipeline' AND s.trigger_type='error_pipeline'
    """,
)
query(
    62,
    "each subject's history is gapless from first_seq to its head",
    """
    SELECT subject_id FROM pipeline_eventstream s FULL JOIN (
        SELECT subject_type, subject_id, count(*) AS n, min(stream_seq) AS a, max(stream_seq) AS z
        FROM pipeline_event GROUP BY 1, 2) e USING (subject_type, subject_id)
    WHERE s.seq IS NULL OR COALESCE(e.a,s.seq+1)<>s.first_seq OR COALESCE(e.z,s.seq)<>s.seq OR e.z-e.a+1<>e.n
    """,
)
query(
    63,
    "each history is one chain",
    """
    SELECT id FROM (SELECT id, stream_seq, prev_hash,
        lag(hash) OVER (PARTITION BY subject_type, subject_id ORDER BY stream_seq) AS was FROM pipeline_event) e
    WHERE prev_hash<>COALESCE(was, CASE WHEN stream_seq=1 THEN '' ELSE prev_hash END)
    """,
)
query(
    64,
    "state events follow one another",
    """
    SELECT id FROM (SELECT id, before->>'state' AS b,
        lag(after->>'state') OVER (PARTITION BY subject_type, subject_id ORDER BY stream_seq) AS p
        FROM pipeline_event WHERE after->>'state' IS NOT NULL) e
    WHERE p IS NOT NULL AND b IS DISTINCT FROM p
    """,
)
query(
    66,
    "reasons are given where they are owed",
    """
    SELECT id FROM pipeline_event WHERE kind IN ('patch.quarantined','patch.released','patch.dropped',
        'patch.rolled_back','gate_run.skipped','gate_run.waived','gate_run.waiver_revoked','cost.voided','override.used','budget.limit_changed')
        AND COALESCE(reason,'')=''
    """,
)
query(
    67,
    "no event waits untouched",
    """
    SELECT id FROM pipeline_event WHERE handled_at IS NULL AND attempts=0
        AND due_at < clock_timestamp() - interval '120 seconds'
    """,
)


def _register_told() -> None:
    from pipeline.models import Hold, Run, StepAttempt, Task

    told(Run, Task, StepAttempt, Hold)


_register_told()
