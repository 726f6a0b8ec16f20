"""What a swarm's workers know, beside what the product holds: every task once, every count and every cost exact."""

import json
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from pipeline.ids import from_uuid, to_uuid

Rows = Callable[..., list[tuple[Any, ...]]]

SHOWN = 5
REPORTED = {"completed": "success", "failed": "infra_lost"}
"""How a lease ended that ended by a report of this swarm -> the outcome that was reported."""
CRASHES = {"expired", "worker_crashed"}
"""How a lease ended whose worker was lost with it."""

LEASES = """
SELECT l.id, l.task_id, l.worker_id, l.attempt_id, l.generation, l.end_cause, l.ended_at IS NULL, a.outcome,
    extract(epoch FROM l.ended_at - l.acquired_at)
FROM workers_lease l JOIN pipeline_task t ON t.id = l.task_id JOIN pipeline_stepattempt a ON a.id = l.attempt_id
WHERE t.project_id = %s
"""
TASKS = "SELECT id, state, generation, count_attempts FROM pipeline_task WHERE project_id = %s"
WORKERS = """
SELECT id, state, tasks_completed, tasks_failed, total_execution_seconds FROM workers_worker
WHERE id IN (SELECT l.worker_id FROM workers_lease l JOIN pipeline_task t ON t.id = l.task_id WHERE t.project_id = %s)
"""
RUNS = """
SELECT r.id, r.state, r.count_steps, r.count_errors,
    (SELECT count(*) FROM pipeline_stepattempt a WHERE a.run_id = r.id)
FROM pipeline_run r WHERE r.project_id = %s
"""
GAPS = """
SELECT subject_type, subject_id FROM pipeline_event GROUP BY 1, 2
HAVING count(*) <> max(stream_seq) OR count(DISTINCT stream_seq) <> count(*)
"""
OVERDUE = """
SELECT COALESCE(max(extract(epoch FROM l.ended_at - l.expires_at)), 0)::float
FROM workers_lease l JOIN pipeline_task t ON t.id = l.task_id WHERE t.project_id = %s AND l.end_cause = 'expired'
"""
COSTS = "SELECT attempt_id, worker_id, amount FROM costs_costrecord WHERE project_id = %s AND voided_at IS NULL"


@dataclass
class Findings:
    """What is wrong, by promise: how often, and the first few. Empty lists when the promise was kept."""

    lost: list[str] = field(default_factory=list)
    done_twice: list[str] = field(default_factory=list)
    told_otherwise: list[str] = field(default_factory=list)
    costs: list[str] = field(default_factory=list)
    statistics: list[str] = field(default_factory=list)
    twins: list[str] = field(default_factory=list)
    left_open: list[str] = field(default_factory=list)
    gaps: list[str] = field(default_factory=list)

    def wrong(self) -> dict[str, list[str]]:
        """The promises that were broken: the number of cases, and the first few."""
        return {name: [str(len(cases)), *cases[:SHOWN]] for name, cases in vars(self).items() if cases}


@dataclass
class Journals:
    """Everything that the workers wrote down."""

    claimed: dict[str, str] = field(default_factory=dict)
    reported: dict[str, tuple[str, Decimal, Decimal]] = field(default_factory=dict)
    answered: dict[str, str] = field(default_factory=dict)
    late: set[str] = field(default_factory=set)
    differ: list[str] = field(default_factory=list)
    registered: int = 0
    over: int = 0
    not_claimed: Counter[str] = field(default_factory=Counter)

    @classmethod
    def read(cls, folder: Path) -> "Journals":
        """All files; a line that a killed worker left unfinished is none."""
        found = cls()
        for path in sorted(folder.glob("worker-*.log")):
            for line in path.read_text().splitlines():
                try:
                    what, *facts = json.loads(line)
                except ValueError:
                    continue
                found._take(what, facts)
        return found

    def _take(self, what: str, facts: list[Any]) -> None:
        match what:
            case "claimed":
                self.claimed[facts[0]] = facts[2]
            case "reported":
                self.reported[facts[0]] = (facts[1], Decimal(facts[2]), Decimal(facts[3]))
            case "answered":
                self.answered[facts[0]] = facts[1]
            case "late":
                self.late.add(facts[0])
            case "differ":
                self.differ.append(str(facts)[:400])
            case "registered":
                self.registered += 1
            case "over":
                self.over += 1
            case "no claim" | "not left":
                self.not_claimed[facts[1]] += 1


def audit(rows: Rows, project: str, folder: Path) -> tuple[Findings, dict[str, Any]]:
    """Compare the journals in `folder` with the rows of a project; what is wrong, and figures of what happened."""
    told, found = Journals.read(folder), Findings()
    at = to_uuid(project)
    leases = {from_uuid(row[0]): row[1:] for row in rows(LEASES, at)}
    tasks = {from_uuid(row[0]): row[1:] for row in rows(TASKS, at)}
    ended = Counter(lease[4] for lease in leases.values())
    found.twins = list(told.differ)
    found.left_open = [pk for pk, lease in leases.items() if lease[5]]
    _judge_tasks(found, told, tasks, leases)
    _judge_answers(found, told, leases)
    spent = _judge_costs(found, told, leases, rows(COSTS, at))
    _judge_statistics(found, told, leases, rows(WORKERS, at), rows(RUNS, at))
    found.gaps = [f"{kind} {pk}" for kind, pk in rows(GAPS)]
    stale = [lease for lease, answer in told.answered.items() if answer != "ok"]
    return found, {
        "tasks": len(tasks),
        "attempts": len(leases),
        "leases_ended": dict(sorted(ended.items())),
        "longest_seconds_from_expiry_to_sweep": round(rows(OVERDUE, at)[0][0], 1),
        "late_reports": len(told.late),
        "reports_refused": dict(Counter(told.answered[lease] for lease in stale)),
        "workers_registered": told.registered,
        "workers_told_that_they_are_over": told.over,
        "claims_refused": dict(told.not_claimed),
        "spent": {outcome: str(amount) for outcome, amount in spent.items()},
    }


def _judge_tasks(found: Findings, told: Journals, tasks: dict[str, Any], leases: dict[str, Any]) -> None:
    done = Counter(from_uuid(lease[0]) for lease in leases.values() if lease[6] == "success")
    heard = defaultdict(list)
    for pk, answer in told.answered.items():
        if answer == "ok" and told.reported[pk][0] == "success":
            heard[told.claimed[pk]].append(pk)
    held = Counter(from_uuid(lease[0]) for lease in leases.values())
    for pk, (state, generation, count_attempts) in tasks.items():
        if state != "completed" or not done[pk]:
            found.lost.append(f"task {pk} is {state} after {done[pk]} successes")
        if done[pk] > 1 or len(heard[pk]) > 1:
            found.done_twice.append(f"task {pk}: {done[pk]} successes, workers told of {len(heard[pk])}")
        if not generation == count_attempts == held[pk]:
            found.statistics.append(f"task {pk}: generation {generation}, {count_attempts} attempts, {held[pk]} leases")


def _judge_answers(found: Findings, told: Journals, leases: dict[str, Any]) -> None:
    for pk, answer in told.answered.items():
        outcome = told.reported[pk][0]
        _task, _worker, _attempt, _generation, end_cause, _is_open, stored, _held = leases[pk]
        is_taken = REPORTED.get(end_cause) == outcome == stored
        if is_taken != (answer == "ok"):
            found.told_otherwise.append(f"lease {pk}: told {answer}, ended {end_cause}, attempt {stored}")


def _judge_costs(
    found: Findings, told: Journals, leases: dict[str, Any], booked: list[tuple[Any, ...]]
) -> dict[str, Decimal]:
    """Every report that was taken is booked once with its own amount, nothing else is; what is owed, by outcome."""
    owed = sorted(
        (str(attempt), str(worker), told.reported[pk][1])
        for pk, (_task, worker, attempt, _generation, end_cause, _open, _outcome, _held) in leases.items()
        if end_cause in REPORTED and pk in told.reported
    )
    real = sorted((str(attempt), str(worker), amount) for attempt, worker, amount in booked)
    missing, extra = Counter(owed) - Counter(real), Counter(real) - Counter(owed)
    found.costs += [f"owed and not booked: attempt {one[0]}, {one[2]}" for one in missing.elements()]
    found.costs += [f"booked and not owed: attempt {one[0]}, {one[2]}" for one in extra.elements()]
    total = sum((amount for _attempt, _worker, amount in owed), Decimal(0))
    if total != sum((amount for _attempt, _worker, amount in real), Decimal(0)):
        found.costs.append(f"the sum should be {total}")
    spent = dict.fromkeys(REPORTED.values(), Decimal(0))
    for pk, lease in leases.items():
        if lease[4] in REPORTED and pk in told.reported:
            spent[REPORTED[lease[4]]] += told.reported[pk][1]
    return spent


def _judge_statistics(
    found: Findings,
    told: Journals,
    leases: dict[str, Any],
    workers: list[tuple[Any, ...]],
    runs: list[tuple[Any, ...]],
) -> None:
    completed: Counter[Any] = Counter()
    failed: Counter[Any] = Counter()
    seconds: dict[Any, Decimal] = defaultdict(Decimal)
    for pk, (_task, worker, _attempt, _generation, end_cause, _open, outcome, held) in leases.items():
        # What a worker gives back by shutting down counts neither way, and nor does its time.
        is_failure = end_cause in CRASHES or outcome in ("task_failed", "infra_lost")
        completed[worker] += outcome == "success"
        failed[worker] += is_failure
        if end_cause in REPORTED and pk in told.reported:
            seconds[worker] += told.reported[pk][2]
        elif is_failure or outcome == "success":
            seconds[worker] += held
    for worker, state, done, not_done, spent in workers:
        if (done, not_done, spent) != (completed[worker], failed[worker], seconds[worker]):
            found.statistics.append(
                f"worker {from_uuid(worker)} ({state}): {done} done, {not_done} failed in {spent} s; should be "
                f"{completed[worker]}, {failed[worker]}, {seconds[worker]}"
            )
    for run, state, count_steps, count_errors, attempts in runs:
        if (state, count_steps, count_errors) != ("succeeded", attempts, 0):
            found.statistics.append(
                f"run {from_uuid(run)} is {state}: {count_steps} steps of {attempts}, {count_errors} errors"
            )
