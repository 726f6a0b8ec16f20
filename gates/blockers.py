"""For whom a gate run waits, and patches and tasks that wait for one: answers to “why isn't this moving?”"""

from typing import Any

from gates.models import GateRun
from ledger.models import Patch, QueueItem
from pipeline.blockers import ENGINE, Action, Holder, Wait
from pipeline.models import Task
from pipeline.questions import answers


# Before the ledger: of a patch that is being tested this app knows more.
@answers("blockers", order=50)
def who_holds(*, subject: Any) -> Wait | None:
    """For a gate run; for a patch or queue item under test; for a task whose own gates are open."""
    if isinstance(subject, GateRun):
        return _gate_run(subject)
    if isinstance(subject, Patch) and subject.state == Patch.State.APPLIED:
        return _tested(QueueItem.objects.live().filter(patch=subject).first())
    if isinstance(subject, QueueItem) and subject.state == QueueItem.State.TESTING:
        return _tested(subject)
    if isinstance(subject, Task) and subject.state == Task.State.VALIDATING:
        if subject.patches.exclude(state__in=Patch.FINAL).exists():
            return None
        run = GateRun.objects.open().filter(task=subject).order_by("pk").first()
        return None if run is None else Wait(code="gates_open", reason=f"{run} is {run.state}", on=run)
    return None


def _tested(item: QueueItem | None) -> Wait | None:
    """The required gate run of its candidate that has not passed: a failing one before one that is open."""
    if item is None:
        return None
    runs = GateRun.objects.filter(queue_item=item, tree_hash=item.candidate_tree, required=True).order_by("pk")
    newest = {run.gate_id: run for run in runs.select_related("gate", "project")}.values()
    waiting = sorted((run for run in newest if run.verdict != "passed"), key=lambda run: run.verdict != "failed")
    if not waiting:
        return None
    run = waiting[0]
    if run.state not in GateRun.ENDED:
        return Wait(code="gates_open", reason=f"Gate {run.name} is {run.get_state_display()}", on=run)
    code, verb = ("gate_failed", "waive") if run.verdict == "failed" else ("gate_unknown", "rerun")
    if run.needs_person:
        code, verb = "goalposts_moved", "waive"
    reason = run.decision_reason or run.state_reason or f"{run.name} did not pass"
    action = Action(verb, f"/gate-runs/{run.pk}/{verb}/", "approver" if verb == "waive" else "operator")
    return Wait(code=code, reason=reason, holder=_gate(run), since=run.completed_at, action=action)


def _gate(run: GateRun) -> Holder:
    return Holder("gate", run.pk, run.name)


def _gate_run(run: GateRun) -> Wait | None:
    if run.state == GateRun.State.RUNNING:
        return Wait(code="running", reason="It runs", holder=_gate(run), since=run.started_at, eta=run.deadline_at)
    if run.state != GateRun.State.PENDING:
        return None
    if waiting := sorted(run.hindrances(), key=lambda one: not one.lasts):
        first = waiting[0]
        keys, told = ", ".join(one.key for one in waiting), "; ".join(one.why for one in waiting)
        action = Action("edit", f"/gates/{run.gate_id}/", "admin") if first.lasts else None
        return Wait(
            code="gate_blocked",
            reason=f"It waits for {keys} to pass: {told}",
            holder=Holder("dependency", "", first.key),
            action=action,
            on=first.run,
        )
    return Wait(code="due", reason="It starts when a runner is free", holder=ENGINE, since=run.created_at)
