"""What became of the work that money was spent on, and whether the sums by day still agree with the records."""

from collections.abc import Iterable, Sequence
from datetime import date, timedelta
from typing import Any

from django.db import connection

from costs.models import CostRecord, booking, daily
from ledger.models import Patch
from pipeline import events
from pipeline.ids import from_uuid, new_id
from pipeline.models import Hold, StepAttempt, Task, Tick
from pipeline.models.hold import stored
from pipeline.rows import in_transaction

AT_ONCE = 200
RECONCILE_EVERY = timedelta(hours=1)
RECONCILED_DAYS = 3

Fate = tuple[str, str, str | None]
"""Class, waste cause, and the patch that it was spent on, if any."""


def reclass_task(task_id: str) -> int:
    """Give the live records of a task the class that its fate asks for; how many changed. Safe to repeat."""
    with in_transaction():
        task = Task.objects.select_related("run").get(pk=task_id)
        rows = list(CostRecord.objects.live().filter(task=task).order_by("pk").values_list("pk", "attempt_id"))
        if not rows:
            return 0
        fates = fates_of(task, {attempt for _pk, attempt in rows})
        return booking.reclass(
            {pk: fates[attempt][:2] for pk, attempt in rows},
            by=events.SYSTEM,
            patches={pk: fates[attempt][2] for pk, attempt in rows},
        )


def fates_of(task: Task, attempts: Iterable[str | None]) -> dict[str | None, Fate]:
    """The fate of what was spent on each attempt of `task` (None: on the task itself). At most four queries."""
    rows = {row.pk: row for row in StepAttempt.objects.filter(pk__in=[pk for pk in attempts if pk])}
    ids = {pk for row in rows.values() for pk in row.output_patch_ids}
    patches = {patch.pk: patch for patch in Patch.objects.filter(pk__in=ids)}
    replaced = set(
        Patch.objects.filter(replaces__in=ids, state=Patch.State.COMMITTED).values_list("replaces_id", flat=True)
    )
    loops = is_loop(task)
    fates: dict[str | None, Fate] = {}
    for pk in set(attempts):
        attempt = rows.get(pk or "")
        mine = [patches[one] for one in attempt.output_patch_ids if one in patches] if attempt else []
        landing, cause = fate_of(task, attempt, mine, replaced, loops=loops)
        fates[pk] = (landing, cause, max((patch.pk for patch in mine), default=None))
    return fates


def is_loop(task: Task) -> bool:
    """Whether the loop breaker has paused it."""
    return Hold.objects.filter(scope_kind="task", scope_id=stored(task.pk), kind="loop").exists()


def fate_of(
    task: Task, attempt: StepAttempt | None, patches: Sequence[Patch], replaced: set[str], *, loops: bool = False
) -> tuple[str, str]:
    """(class, waste cause) of what was spent on `attempt` of `task` (domain.md §2.5.3, *Landing class*).

    `replaced`: the ids of patches whose replacement landed. `loops`: its failures are told as a loop.
    """
    states = {patch.state for patch in patches}
    if Patch.State.COMMITTED in states:
        return "landed", ""
    if Patch.State.ROLLED_BACK in states:
        return "waste", "rolled_back"
    if task.state not in Task.ENDED or Patch.State.QUARANTINED in states:
        return "in_flight", ""
    if attempt is None:
        return ("landed", "") if task.state == Task.State.COMPLETED else ("waste", _end_of(task))
    if attempt.outcome != "success":
        cause = attempt.outcome or "cancelled"
        return "waste", "loop" if loops and cause == "task_failed" else cause
    if not patches:
        is_landed = task.state == Task.State.COMPLETED and not task.requires_patch
        return ("landed", "") if is_landed else ("waste", _end_of(task))
    newest = max(patches, key=lambda patch: patch.pk)
    if newest.pk in replaced:
        return "waste", "gate_failed" if newest.tests_ran else "superseded"
    if newest.last_error_code:
        return "waste", "gate_failed" if newest.tests_ran else "apply_failed"
    return "waste", "dropped"


def _end_of(task: Task) -> str:
    return "cancelled" if task.state == Task.State.CANCELLED else "task_failed"


_FORGOTTEN = """
SELECT DISTINCT c.task_id FROM costs_costrecord c JOIN pipeline_task t ON t.id = c.task_id
WHERE c.landing = 'in_flight' AND c.voided_at IS NULL AND t.state IN ('completed', 'failed', 'cancelled')
    AND t.completed_at < clock_timestamp() - interval '5 seconds'
    AND NOT EXISTS (SELECT 1 FROM ledger_patch p WHERE p.task_id = t.id AND p.state = 'quarantined')
LIMIT %s
"""


def reclass_forgotten() -> int:
    """Class what was booked after its task had ended: late records, and those that were on their way at that moment."""
    with connection.cursor() as cursor:
        cursor.execute(_FORGOTTEN, [AT_ONCE])
        found = [from_uuid(pk) for (pk,) in cursor.fetchall()]
    return sum(reclass_task(pk) for pk in found)


# -- sums by day ---------------------------------------------------------------------------------------------------

_KEYS = ", ".join(("day", *daily.DIMENSIONS))
# The records less what the sums say, row by row; by GROUP BY, which takes NULLs for equal: a join on so many columns
# that may be NULL compares every row of a day with every other. In one statement, so of one snapshot: what is booked
# meanwhile is in both or in neither, and is added after.
_RECONCILE = f"""
WITH wrong AS (
    SELECT {_KEYS}, {", ".join(f"sum({name}) AS {name}" for name in daily.SUMS)}
    FROM (
        {daily.deltas("costs_costrecord")} WHERE c.voided_at IS NULL
            AND c.recorded_at >= %(first)s::date::timestamp AT TIME ZONE 'UTC'
            AND c.recorded_at < (%(last)s::date + 1)::timestamp AT TIME ZONE 'UTC'
        UNION ALL
        SELECT {_KEYS}, {", ".join(f"-{name}" for name in daily.SUMS)}
        FROM costs_dailyspend WHERE day BETWEEN %(first)s AND %(last)s
    ) x
    GROUP BY {_KEYS} HAVING {" OR ".join(f"sum({name}) <> 0" for name in daily.SUMS)}
), fixed AS ({daily.add("SELECT * FROM wrong")})
SELECT currency, count(*), sum(amount), sum(abs(amount)), sum(records) FROM wrong GROUP BY currency ORDER BY currency
"""


def reconcile(first: date, last: date, *, by: events.Actor = events.SYSTEM) -> list[dict[str, Any]]:
    """Compare the sums of these days with their records; a difference is booked, told as an event, and answered.

    [{currency, rows, amount, moved, records}]; empty where everything agrees.
    """
    with in_transaction():
        with connection.cursor() as cursor:
            cursor.execute(_RECONCILE, {"first": first, "last": last})
            found = [
                {"currency": currency, "rows": rows, "amount": amount, "moved": moved, "records": records}
                for currency, rows, amount, moved, records in cursor.fetchall()
            ]
        if found:
            subject = booking.Batch(new_id(), {})
            told = {"first": first, "last": last, "differences": found}
            events.record("cost.reconciled", subject, by=by, data=told)
    return found


def reconcile_now_and_then() -> int:
    """Every hour the last days."""
    tick = Tick.objects.take("costs-reconcile", RECONCILE_EVERY)
    if tick is None:
        return 0
    with connection.cursor() as cursor:
        cursor.execute("SELECT (clock_timestamp() AT TIME ZONE 'UTC')::date")
        (today,) = cursor.fetchone()
    done = len(reconcile(today - timedelta(days=RECONCILED_DAYS - 1), today))
    tick.end()
    return done
