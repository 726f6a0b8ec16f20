"""Questions: what apps above answer inside a verb of an app below."""

import pytest

from pipeline import questions
from pipeline.refusals import Refused


@pytest.fixture(autouse=True)
def _no_answers(monkeypatch):
    monkeypatch.setattr(questions, "_answers", {})


def test_a_question_without_an_answer_meets_no_objection():
    assert questions.ask("run.complete", run=None) == []
    assert questions.ask_facts("task.claim", task=None) == {}


def test_answers_come_in_their_fixed_order_whoever_registered_first():
    def late(**_facts):
        return "late"

    def early(**_facts):
        return "early"

    questions.answers("blockers")(late)
    questions.answers("blockers", order=1)(early)
    assert questions.ask("blockers") == ["early", "late"]
    assert [name.rsplit(".", 1)[-1] for name in questions.table()["blockers"]] == ["early", "late"]


def test_an_answer_is_given_the_facts_of_the_question():
    heard = []
    questions.answers("lease.end")(lambda **facts: heard.append(facts))
    assert questions.ask("lease.end", lease="l", outcome="success") == []
    assert heard == [{"lease": "l", "outcome": "success"}]


def test_none_is_no_answer_but_false_and_zero_are():
    for value in (None, False, 0, ""):
        questions.answers("task.stop")(lambda value=value, **_facts: value)
    assert questions.ask("task.stop") == [False, 0, ""]


def test_a_refusal_goes_through_and_later_answers_are_not_asked():
    asked = []

    def refuse(**_facts):
        raise Refused("no money", code="budget_exceeded")

    questions.answers("task.claim", order=1)(refuse)
    questions.answers("task.claim", order=2)(lambda **_facts: asked.append(True))
    with pytest.raises(Refused, match="no money"):
        questions.ask("task.claim")
    assert asked == []


def test_facts_of_several_answers_are_merged():
    questions.answers("task.claim", order=1)(lambda **_facts: {"base_commit": "a", "same": 1})
    questions.answers("task.claim", order=2)(lambda **_facts: {"limit": 2, "same": 1})
    assert questions.ask_facts("task.claim") == {"base_commit": "a", "limit": 2, "same": 1}


def test_facts_that_contradict_each_other_are_an_error():
    questions.answers("task.claim", order=1)(lambda **_facts: {"base_commit": "a"})
    questions.answers("task.claim", order=2)(lambda **_facts: {"base_commit": "b"})
    with pytest.raises(ValueError, match="base_commit"):
        questions.ask_facts("task.claim")


def test_an_unknown_question_is_neither_asked_nor_answered():
    with pytest.raises(KeyError):
        questions.ask("task.clam")
    with pytest.raises(KeyError):
        questions.answers("task.clam")


def test_the_table_names_every_question():
    assert list(questions.table()) == list(questions.QUESTIONS)
