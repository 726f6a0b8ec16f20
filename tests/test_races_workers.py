"""What a worker sends while its lease ends: it waits for the end, is refused, and leaves nothing behind."""

from collections.abc import Callable
from typing import Any

import pytest

from costs.models import CostRecord
from ledger.models import Patch
from pipeline.events import Event
from pipeline.ids import new_id
from tests import factories
from tests.api.asking import Api, refused
from tests.conftest import Threads
from tests.factories import BY
from tests.test_races import second_waits_for_first
from workers.models import Lease, Worker

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

USE = {"resource_type": "api_call", "amount": "0.5"}


@pytest.fixture
def agent() -> tuple[Api, Lease]:
    """A program with a worker that holds a live lease."""
    key = factories.make_key("worker")
    return Api(key.text), factories.make_lease(factories.make_worker(api_key=key.row))


def gone(lease: Lease) -> Callable[[], Any]:
    """The end of the worker that holds it, as the sweep brings it."""
    return lambda: Worker.objects.get(pk=lease.worker_id).crash("heartbeat lost", by=BY, cause="expired")


SENT: dict[str, Callable[[Lease], tuple[str, dict[str, Any]]]] = {
    "patch": lambda lease: (
        "/patches/",
        {"lease": lease.pk, "generation": 1, "diff_text": factories.new_file_diff(), "base_commit": "0" * 40},
    ),
    "cost": lambda lease: ("/costs/", {"lease": lease.pk, "generation": 1, **USE}),
    "success": lambda lease: (f"/leases/{lease.pk}/complete/", {"generation": 1, "usage": [USE]}),
    "failure": lambda lease: (
        f"/leases/{lease.pk}/fail/",
        {"generation": 1, "outcome": "task_failed", "usage": [USE]},
    ),
}


@pytest.mark.parametrize("what", list(SENT))
def test_what_is_sent_while_the_lease_ends_waits_and_is_refused(
    threads: Threads, agent: tuple[Api, Lease], what: str
) -> None:
    api, lease = agent
    path, body = SENT[what](lease)
    done, late = second_waits_for_first(
        threads, gone(lease), lambda: refused(api.post(path, body, Idempotency_Key=new_id()))
    )
    assert done is True
    assert late.result() == (409, "stale_claim")
    assert not Patch.objects.exists()
    assert not CostRecord.objects.exists()
    ended = Event.objects.get(kind="lease.ended", subject_id=lease.pk)
    assert ended.data["outcome"] == "infra_lost"
    assert Event.objects.filter(kind="lease.stale_report", subject_id=lease.pk).count() == 1


def test_a_heartbeat_that_waited_for_the_end_of_its_worker_renews_nothing(
    threads: Threads, agent: tuple[Api, Lease]
) -> None:
    api, lease = agent
    body = {"leases": [{"id": lease.pk, "generation": 1}]}
    done, late = second_waits_for_first(
        threads, gone(lease), lambda: refused(api.post(f"/workers/{lease.worker_id}/heartbeat/", body))
    )
    assert done is True
    assert late.result() == (410, "worker_finished")
    now = Lease.objects.get(pk=lease.pk)
    assert (now.ended_at is not None, now.renewed_at, now.expires_at) == (True, None, lease.expires_at)


def test_a_report_delivered_twice_at_once_is_one_report_with_one_answer(
    threads: Threads, agent: tuple[Api, Lease]
) -> None:
    api, lease = agent
    path, body = SENT["success"](lease)
    key = new_id()
    outcomes = threads.at_once(*[lambda: api.post(path, body, Idempotency_Key=key)] * 4)
    answers = [outcome.result() for outcome in outcomes]
    assert {(answer.status_code, answer.content) for answer in answers} == {(200, answers[0].content)}
    assert sorted(answer.headers.get("Idempotency-Replayed", "") for answer in answers) == ["", "true", "true", "true"]
    assert [str(record.amount) for record in CostRecord.objects.all()] == ["0.500000"]
    assert Event.objects.filter(kind="lease.ended", subject_id=lease.pk).count() == 1
    assert Worker.objects.get(pk=lease.worker_id).tasks_completed == 1
