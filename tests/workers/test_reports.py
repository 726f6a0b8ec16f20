"""What a report of a failed attempt may say besides its outcome: a session, a time, a question, what the tool says."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from costs.models import CostRecord
from pipeline.clock import db_now
from pipeline.models import Hold
from tests import factories
from tests.api.asking import Api
from tests.flows.house import House, piece

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def claimed(tmp_path: Path) -> tuple[House, dict[str, Any], Any]:
    """A claimed task, and a function that reports its attempt's failure over the API."""
    house = House(tmp_path, [piece("a")])
    key = factories.make_key("worker")
    document = house.claim(factories.make_worker(api_key=key.row))
    api = Api(key.text)

    def fail(**report: Any) -> Any:
        lease = document["lease"]
        return api.post(f"/leases/{lease['id']}/fail/", {"generation": lease["generation"], **report})

    return house, document, fail


def test_a_quota_that_says_when_it_is_back_is_waited_for_until_then(claimed: Any) -> None:
    _house, document, fail = claimed
    until = db_now() + timedelta(hours=3)
    assert fail(outcome="quota_wait", error_message="limit reached", until=until.isoformat()).status_code == 200
    hold = Hold.objects.active().get(scope_kind="task")
    assert (hold.kind, hold.until) == ("quota", until)
    assert document["session_ref"] == ""


def test_a_time_that_is_past_or_years_away_is_not_believed(claimed: Any) -> None:
    _house, _document, fail = claimed
    assert fail(outcome="quota_wait", until="2099-01-01T00:00:00Z").status_code == 200
    hold = Hold.objects.active().get(scope_kind="task")
    assert db_now() + timedelta(days=6) < hold.until <= db_now() + timedelta(days=7)


def test_a_question_stands_on_the_hold_and_the_session_is_kept_for_the_next_attempt(claimed: Any) -> None:
    house, document, fail = claimed
    question = {"question": "Which port?", "options": ["80", "8080"]}
    answer = fail(outcome="needs_human", error_message="asks", question=question, session_ref="s-1")
    assert answer.status_code == 200
    hold = Hold.objects.active().get(scope_kind="task")
    assert hold.question == question
    hold.release(by=factories.BY, reason="8080", answer="8080")
    house.drain()
    again = house.claim()
    assert (again["task"]["id"], again["session_ref"]) == (document["task"]["id"], "s-1")


@pytest.mark.parametrize(
    "wrong",
    [{"question": {"q": "x" * 20_000}}, {"until": "tomorrow"}, {"question": "why?"}, {"session_ref": "x" * 201}],
)
def test_what_is_no_question_time_or_session_is_refused(claimed: Any, wrong: dict[str, Any]) -> None:
    _house, _document, fail = claimed
    assert fail(outcome="needs_human", **wrong).status_code in (400, 422)
    assert not Hold.objects.exists()


def test_what_the_tool_says_it_cost_stands_beside_our_price(claimed: Any) -> None:
    _house, _document, fail = claimed
    use = {
        "resource_type": "api_call", "model": "nobody-knows-it", "provider": "x", "tokens_output": 1_000_000,
        "stated_amount": "0.123456", "assumed_ttl": True, "source": "claude",
    }  # fmt: skip
    assert fail(outcome="task_failed", error_message="no", usage=[use]).status_code == 200
    record = CostRecord.objects.get(source="claude")
    assert (str(record.stated_amount), record.assumed_ttl) == ("0.123456", True)
    assert (str(record.amount), record.unpriced) == ("75.000000", True)
