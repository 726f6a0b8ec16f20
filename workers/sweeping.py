"""The sweep: what is gone is crashed, what is over its time is stopped, who stands still is told (domain.md §2.2.2).

Each step looks once, by a partial index that holds nothing while all is well; what it finds it judges again under its
lock. Any number of sweepers may run at once: what one has in hand the others leave alone. What a server that was down
missed is found by the same looks.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache
from typing import Any

from django.db import connection, transaction
from django.db.models import Exists, Max, OuterRef, QuerySet
from django.db.models.expressions import RawSQL

from pipeline import events
from pipeline.clock import db_now
from pipeline.events import SYSTEM, Event
from pipeline.ids import from_uuid
from pipeline.models import Run, StepAttempt, Task, Tick
from pipeline.refusals import Refused
from workers.claims import time_limit
from workers.models import Lease, Worker, health
from workers.models.worker import WorkerQuerySet

Step = Callable[[], int]

AT_ONCE = 500
LOOKED_AT_AT_ONCE = 5_000
SECOND = timedelta(seconds=1)
NO_LEASE = "nobody held its lease any more"
# Work without an owner comes from outside the house's verbs alone (a restored copy, a hand in the tables).
ORPHANS_EVERY = timedelta(minutes=1)
# Kinds of events about an attempt that show that its work moves.
EVIDENCE = (
    "cost.recorded", "patch.created", "patch.resubmitted", "task.progress", "gate_run.passed", "gate_run.failed",
)  # fmt: skip


def sweep() -> int:
    """Everything once; returns how much was done. Safe to call at any time, from any number of processes."""
    done = sum(step() for step in what_is_due())
    if Tick.objects.take("orphans", ORPHANS_EVERY) is not None:
        done += close_orphans()
    return done


def what_is_due() -> list[Step]:
    """The steps that have something to do. One statement, which reads the first entry of five partial indexes."""
    with connection.cursor() as cursor:
        cursor.execute(_probe())
        found = cursor.fetchone()
    steps = (end_dead_leases, end_dead_leases, stop_overdue, see_off_the_leaving, look_at_health)
    return list(dict.fromkeys(step for step, is_due in zip(steps, found, strict=True) if is_due))


@cache
def _probe() -> str:
    """The statement of `what_is_due`, written once: that takes Django longer than PostgreSQL to answer it."""
    looks: list[QuerySet[Any]] = [
        Lease.objects.expired().order_by("expires_at"),
        Lease.objects.unstopped().order_by("stop_deadline_at"),
        Lease.objects.overdue().order_by("timeout_at"),
        Worker.objects.leaving().order_by("shutdown_deadline_at"),
        Worker.objects.alive().filter(look_at__lte=health.NowOnce()).order_by("look_at"),
    ]
    with connection.cursor() as cursor:
        parts = [cursor.mogrify(*rows.values("pk")[:1].query.sql_with_params()) for rows in looks]
    # Not EXISTS, which drops the order: PostgreSQL then expects a third of the table to fit, and reads the table.
    return f"SELECT {', '.join(f'({part}) IS NOT NULL' for part in parts)}"


def _ids(rows: "QuerySet[Any]") -> list[str]:
    return list(rows.values_list("pk", flat=True)[:AT_ONCE])


def _is_mine(pk: str) -> bool:
    """Whether no other sweeper has this row in hand; it is kept until the transaction ends. Waits for nobody."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_xact_lock(hashtextextended(%s, 4))", [f"sweep {pk}"])
        (mine,) = cursor.fetchone()
    return bool(mine)


# -- leases --------------------------------------------------------------------------------------------------------


def end_dead_leases() -> int:
    """Expired leases, and those whose worker had its time to stop: the worker is crashed, or stopped unconfirmed."""
    dead = _ids(Lease.objects.expired().order_by("expires_at"))
    unstopped = _ids(Lease.objects.unstopped().order_by("stop_deadline_at"))
    return sum(_end(pk) for pk in dict.fromkeys([*dead, *unstopped]))


def _end(pk: str) -> int:
    """End what the holder of a lease was, if it is still dead when looked at under its lock."""
    with transaction.atomic():
        if not _is_mine(pk):
            return 0
        lease = Lease.objects.live().select_related("task").filter(pk=pk).first()
        if lease is None:
            return 0
        Run.objects.select_for_update(no_key=True).get(pk=lease.task.run_id)
        still = Lease.objects.expired() | Lease.objects.unstopped()
        lease = still.select_related("worker__api_key", "task").filter(pk=pk).first()
        if lease is None:
            return 0
        now = db_now()
        worker = lease.worker
        if worker.shutdown_deadline_at is not None and worker.shutdown_deadline_at <= now:
            return int(worker.shutdown(by=SYSTEM, reason="asked to shut down, and not heard of since"))
        if lease.deadline_at <= now:
            return int(worker.crash("did not stop", by=SYSTEM, outcome="task_failed", cause="expired"))
        if lease.expires_at < now:
            return int(worker.crash("heartbeat lost", by=SYSTEM, cause="expired"))
        outcome = lease.stop_outcome or "infra_lost"
        return int(worker.crash("did not stop", by=SYSTEM, outcome=outcome, cause="expired"))


def stop_overdue() -> int:
    """Leases past their task's time are asked to stop."""
    done = 0
    for lease in Lease.objects.overdue().select_related("task", "attempt__tool").order_by("timeout_at")[:AT_ONCE]:
        reason = f"timed out after {time_limit(lease.task, lease.attempt.tool)} s"
        done += lease.request_stop(by=SYSTEM, reason=reason, outcome="task_failed")
    return done


def see_off_the_leaving() -> int:
    """Workers past their shutdown's deadline: what they hold is asked to stop, who holds nothing is stopped."""
    leaving, done = Worker.objects.leaving(), 0
    for pk in _ids(leaving.order_by("shutdown_deadline_at")):
        lease = Lease.objects.live().filter(worker=pk).first()
        if lease is None:
            done += _end_idle(leaving, pk)
        elif lease.stop_requested_at is None:
            done += lease.request_stop(by=SYSTEM, reason="the deadline of its shutdown has passed", outcome="")
    return done


def _end_idle(rows: WorkerQuerySet, pk: str, gone: str = "silent while idle") -> int:
    """End a worker that holds nothing, if it is among `rows` still when its row is locked."""
    with transaction.atomic():
        mine = rows.order_by().unleased().select_for_update(no_key=True, skip_locked=True, of=("self",))
        worker = mine.filter(pk=pk).first()
        if worker is None:
            return 0
        try:
            if worker.shutdown_requested_at is not None:
                return int(worker.shutdown(by=SYSTEM, reason="asked to shut down, and not heard of since"))
            return int(worker.crash(gone, by=SYSTEM))
        except Refused:
            return 0  # it was given a task meanwhile


# -- health --------------------------------------------------------------------------------------------------------

# Healthy ones are put off until their health can be another; the rest stays due, for the next sweep. Where a batch is
# full, they make room for those behind them.
_LOOK = """
WITH began (at) AS (SELECT %s::timestamptz),
due (id, told, health, silent, next) AS MATERIALIZED ({due}),
looked_at AS (
    UPDATE workers_worker w SET look_at = CASE
        WHEN due.told = 'healthy' AND due.health = 'healthy' THEN GREATEST(due.next, clock_timestamp())
        ELSE clock_timestamp() END
    FROM due WHERE w.id = due.id AND ((due.told = 'healthy' AND due.health = 'healthy')
        OR (SELECT count(*) FROM due) = {at_once})
)
SELECT id, told, health, silent FROM due WHERE silent OR told <> health OR health = 'stalled'
UNION ALL SELECT NULL, '', count(*)::text, false FROM due
"""


def look_at_health() -> int:
    """Tell each change of health once; stop who stays stalled, end who is silent while idle. Returns how many."""
    began, done = db_now(), 0
    while True:
        with transaction.atomic():
            looked, changed, stalled, silent = _look(began)
            done += _tell(changed)
        done += sum(_end_idle(Worker.objects.silent_while_idle(), pk) for pk in silent)
        done += _stop_stalled(stalled)
        if looked < LOOKED_AT_AT_ONCE:
            return done


def _look(began: datetime) -> tuple[int, dict[str, str], list[str], list[str]]:
    """One batch of those due at `began`, each locked: how many, the health of those of whom another one was told, those
    told to be stalled who still are, and those silent for too long. One statement.
    """
    due, given = _due(health.limits())
    with connection.cursor() as cursor:
        cursor.execute(_LOOK.format(due=due, at_once=LOOKED_AT_AT_ONCE), [began, *given])
        found = cursor.fetchall()
    looked = next(int(count) for pk, _told, count, _silent in found if pk is None)
    unwell = [(from_uuid(pk), told, word, silent) for pk, told, word, silent in found if pk is not None]
    changed = {pk: word for pk, told, word, _silent in unwell if told != word}
    stalled = [pk for pk, told, word, _silent in unwell if told == word == health.STALLED]
    return looked, changed, stalled, [pk for pk, _told, _word, silent in unwell if silent]


@cache
def _due(limits: tuple[int, ...]) -> tuple[str, Sequence[Any]]:
    """Those to look at, with their health and the time of the next look: the SQL, written once for these limits."""
    rows = (
        Worker.objects.with_health()
        .alive()
        .filter(look_at__lte=RawSQL("(SELECT at FROM began)", ()))
        .annotate(silent=health.silent_while_idle(), next=health.next_look())
        .order_by("look_at")
        .select_for_update(no_key=True, skip_locked=True)
        .values_list("pk", "told_health", "health_now", "silent", "next")[:LOOKED_AT_AT_ONCE]
    )
    sql, given = rows.query.sql_with_params()
    return str(sql), given


def _tell(words: Mapping[str, str]) -> int:
    """Record the health of these workers, whose rows are locked. A few statements, however many they are."""
    if not words:
        return 0
    rows = Worker.objects.filter(pk__in=words).select_related("api_key", "current_task__run")
    changed = list(rows.order_by("pk"))
    moved = _moved([worker for worker in changed if words[worker.pk] == health.STALLED])
    changed = [worker for worker in changed if worker.pk not in moved]
    if not changed:
        return 0
    now = db_now()
    groups: dict[str, list[str]] = defaultdict(list)
    for worker in changed:
        groups[words[worker.pk]].append(worker.pk)
    for word, ids in groups.items():
        Worker.objects.filter(pk__in=ids).update(told_health=word, health_since=now)
    events.append([_change_of(worker, words[worker.pk], now) for worker in changed])
    return len(changed)


def _change_of(worker: Worker, word: str, now: datetime) -> Event:
    silence = now - (worker.transport_seen_at or worker.started_at)
    stands = None if worker.progress_at is None else int((now - worker.progress_at).total_seconds())
    return events.compose(
        "worker.health_changed",
        worker,
        by=SYSTEM,
        severity="info" if word == health.HEALTHY else None,
        message=f"{worker.told_health} → {word}",
        data={
            "health": word,
            "was": worker.told_health,
            "silence_seconds": int(silence.total_seconds()),
            "progress_seconds": stands,
            "activity": worker.activity,
        },
        before=worker.tellable({"told_health": worker.told_health, "health_since": worker.health_since}),
        after=worker.tellable({"told_health": word, "health_since": now}),
    )


def _moved(workers: Iterable[Worker]) -> set[str]:
    """Those whose work moved without a heartbeat saying so: the log has newer evidence about their attempt, which sets
    their progress clock.
    """
    held = {lease.attempt_id: lease for lease in Lease.objects.live().filter(worker__in=list(workers))}
    if not held:
        return set()
    seen = Event.objects.filter(step_id__in=held, kind__in=EVIDENCE).values_list("step_id").annotate(Max("created_at"))
    moved: set[str] = set()
    for attempt, at in seen.order_by():
        pk = held[attempt].worker_id
        if Worker.objects.filter(pk=pk, progress_at__lt=at).update(progress_at=at):
            moved.add(pk)
    return moved - set(Worker.objects.stalled().filter(pk__in=moved).values_list("pk", flat=True))


def _stop_stalled(ids: Sequence[str]) -> int:
    """Those who were told to be stalled, and have been so for as long again, are asked to stop."""
    if not ids:
        return 0
    done, now = 0, db_now()
    leases = Lease.objects.live().filter(worker__in=ids, stop_requested_at=None).select_related("worker")
    for lease in leases.order_by("pk"):
        worker = lease.worker
        told_at = worker.health_since
        if worker.told_health == health.STALLED and told_at and now - told_at > worker.stall_after * SECOND:
            since = now - (worker.progress_at or lease.acquired_at)
            reason = f"stalled: no progress for {int(since.total_seconds())} s"
            done += lease.request_stop(by=SYSTEM, reason=reason, outcome="task_failed")
    return done


# -- work without an owner -----------------------------------------------------------------------------------------


def close_orphans() -> int:
    """Running attempts and tasks without a live lease are infra_lost; busy workers without one are crashed."""
    held = Lease.objects.live()
    attempts = StepAttempt.objects.filter(state=StepAttempt.State.RUNNING, task__isnull=False)
    tasks = Task.objects.filter(state=Task.State.RUNNING)
    busy = Worker.objects.filter(state=Worker.State.BUSY)
    done = sum(map(_close_attempt, _ids(attempts.exclude(Exists(held.filter(attempt=OuterRef("pk")))))))
    done += sum(map(_close_task, _ids(tasks.exclude(Exists(held.filter(task=OuterRef("pk")))))))
    return done + sum(_end_idle(busy, pk, NO_LEASE) for pk in _ids(busy.unleased()))


def _close_attempt(pk: str) -> int:
    with transaction.atomic():
        attempt = StepAttempt.objects.get(pk=pk)
        Run.objects.select_for_update(no_key=True).get(pk=attempt.run_id)
        attempt.refresh_from_db(fields=["state"])
        if attempt.state != StepAttempt.State.RUNNING or Lease.objects.live().filter(attempt=pk).exists():
            return 0
        return int(attempt.end("infra_lost", by=SYSTEM, reason=NO_LEASE, error_code="worker_lost"))


def _close_task(pk: str) -> int:
    with transaction.atomic():
        task = Task.objects.select_related("run").get(pk=pk)
        Run.objects.select_for_update(no_key=True).get(pk=task.run_id)
        task = Task.objects.select_for_update(no_key=True, of=("self",)).select_related("run").get(pk=pk)
        if task.state != Task.State.RUNNING or Lease.objects.live().filter(task=pk).exists():
            return 0
        ending = bool(task.run.ending_to)
        task.settle("infra_lost", by=SYSTEM, error_code="worker_lost", error=NO_LEASE, ending=ending)
        return 1
