"""What a budget's hold keeps from being claimed, what goes on under it, and in which budgets a claim reserves."""

from decimal import Decimal
from typing import Any

import pytest

from costs.models import Reservation
from pipeline import events
from pipeline.models import Hold, Task
from pipeline.refusals import Refused
from tests import factories
from tests.costs.test_budgets import figures, must_hold
from tests.factories import BY, make_budget
from workers import claims, heartbeats
from workers.models import Lease, Worker

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


@pytest.fixture
def project() -> Any:
    """A project that needs no git."""
    return factories.make_project(custody="recorded")


@pytest.fixture
def tool() -> Any:
    """A tool that is paid for by the token."""
    return factories.make_tool(priced=True, model="large", max_parallel=5)


@pytest.fixture
def queue(project: Any, tool: Any) -> list[Task]:
    """Three tasks that wait."""
    tasks = [factories.task_spec(f"t-{number}", allow_parallel=True) for number in range(3)]
    workstream = factories.make_workstream(factories.make_phase(project), tasks=tasks, concurrency={"max_parallel": 3})
    run = factories.make_run(workstream, started=True)
    return list(run.tasks.select_related("run").order_by("sequence"))


def directive(lease: Lease) -> str:
    """What the worker's heartbeat is told."""
    quoted = [{"id": lease.pk, "generation": lease.generation}]
    return str(heartbeats.heartbeat(lease.worker_id, api_key_id=None, leases=quoted)["directive"])


def take(task: Task, worker: Worker | None = None) -> Lease:
    """Give the task to a worker."""
    return claims.assign(worker or factories.make_worker(), task.pk, offered=None, by=BY)


@pytest.mark.parametrize(
    ("scope", "kind", "told"),
    [
        ("installation", "manual", "stop"),
        ("project", "manual", "stop"),
        ("project", "policy", "pause"),
        ("project", "approval", "pause"),
        ("project", "budget", "continue"),
        ("installation", "budget", "continue"),
        ("project", "quota", "continue"),
        ("run", "manual", "pause"),
        ("run", "budget", "continue"),
        ("worker", "manual", "pause"),
        ("worker", "budget", "continue"),
    ],
)
def test_only_holds_of_people_reach_what_runs(queue: list[Task], scope: str, kind: str, told: str) -> None:
    lease = take(queue[0])
    ids = {"installation": "", "project": lease.task.project_id, "run": lease.task.run_id, "worker": lease.worker_id}
    hold = Hold.objects.place(scope, ids[scope], kind=kind, reason="wait", by=BY)
    assert directive(lease) == told
    hold.release(by=BY)
    assert directive(lease) == "continue"


def test_a_budget_that_is_used_up_lets_run_what_is_within_its_reservation_and_stops_what_is_beyond(
    project: Any, queue: list[Task], nudges: list[Any]
) -> None:
    make_budget(project, limit_amount=Decimal(2))
    mine, other = take(queue[0]), take(queue[1])
    factories.make_cost(attempt=mine.attempt, worker=mine.worker, amount="1")
    factories.make_cost(attempt=other.attempt, worker=other.worker, amount="1")
    events.drain()
    assert Hold.objects.active().get(kind="budget").scope_kind == "project"
    assert (directive(mine), directive(other)) == ("continue", "continue")
    with pytest.raises(Refused, match="hold is in force"):
        take(queue[2])
    factories.make_cost(attempt=mine.attempt, worker=mine.worker, amount="0.000001")
    events.drain()
    assert (directive(mine), directive(other)) == ("stop", "stop")
    must_hold()


def test_a_worker_under_a_hold_claims_nothing_and_another_does(queue: list[Task]) -> None:
    held, free = factories.make_worker(), factories.make_worker()
    hold = Hold.objects.place("worker", held.pk, kind="budget", reason="its budget is used up", by=BY)
    assert claims.candidates(held, []) == []
    assert len(claims.candidates(free, [])) == 3
    assert claims.claim(held) is None
    with pytest.raises(Refused, match="its budget is used up") as refusal:
        take(queue[0], held)
    assert (refusal.value.code, refusal.value.parts["hold"]) == ("held", hold.pk)
    assert claims.claim(free) is not None
    hold.release(by=BY)
    assert claims.claim(held) is not None


@pytest.mark.parametrize(("kind", "ref"), [("tool", "key"), ("model", "model")])
def test_a_claim_reserves_in_the_budgets_over_the_tool_it_is_routed_to_and_over_its_model(
    project: Any, tool: Any, queue: list[Task], kind: str, ref: str
) -> None:
    of = make_budget(project, scope_kind=kind, scope_id=getattr(tool, ref), limit_amount=Decimal("1.5"))
    factories.make_tool(key="another", capabilities={"task_kinds": ["repair"]})
    elsewhere = make_budget(project, scope_kind=kind, scope_id="another")
    lease = take(queue[0])
    assert (figures(of), figures(elsewhere)) == (("0.00", "1.00"), ("0.00", "0.00"))
    assert Reservation.objects.get().generation == lease.generation
    with pytest.raises(Refused) as refusal:
        take(queue[1])
    assert (refusal.value.code, refusal.value.parts["budget"]["key"]) == ("budget_exceeded", of.key)
    assert Task.objects.get(pk=queue[1].pk).state == "queued"
    lease.finish("infra_lost", by=BY)
    assert figures(of) == ("0.00", "0.00")
    must_hold()


def test_a_tool_that_is_not_paid_for_reserves_nothing(project: Any, tool: Any, queue: list[Task]) -> None:
    tool.edit(by=BY, priced=False)
    of = make_budget(project, limit_amount=Decimal(0))
    assert take(queue[0]).task_id == queue[0].pk
    assert figures(of) == ("0.00", "0.00")
