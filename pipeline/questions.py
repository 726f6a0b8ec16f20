"""Questions: what a higher app decides now, inside a lower app's transaction (architecture.md, idea 3)."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

Answer = Callable[..., Any]
A = TypeVar("A", bound=Answer)

QUESTIONS = {
    "task.claim": "what a claim needs from above: base commit and checkout (ledger), money set aside (costs)",
    "lease.extend": "a lease asks for more money: set it aside, or refuse (costs)",
    "lease.end": "a lease has ended: book what it used (costs)",
    "lease.report": "a claimant reports: does its patch list belong to it (ledger)?",
    "task.feedback": "what was said of the task's earlier work: words for its next attempt, quoted (ledger)",
    "task.stop": "ask the task's live lease to stop; true when there is one",
    "task.complete": "may this validating task complete: are its patches landed, its gates passed?",
    "run.complete": "may this run end: is a patch open or quarantined?",
    "tree.verdict": "did each required gate pass for this tree?",
    "patch.commit": "is the verdict still fresh, now, before the branch moves?",
    "patch.receipt": "what did this patch cost, with which models, and what did its gates say, for its receipt?",
    "project.branch": "may this branch be the project's: does its repository have it?",
    "blockers": "who holds this object?",
}


class _Registered(NamedTuple):
    order: int
    name: str
    answer: Answer


_answers: dict[str, list[_Registered]] = {}


def answers(question: str, *, order: int = 100) -> Callable[[A], A]:
    """Register the decorated function as an answer to `question`; lower `order` answers first.

    An answer runs inside the asking verb's transaction. It may write rows of its own app, return facts, and refuse by
    raising a `Refused`. Raises KeyError for a question that is not in QUESTIONS.
    """
    if question not in QUESTIONS:
        raise KeyError(f"{question!r} is not a question; the questions are {', '.join(QUESTIONS)}")

    def register(answer: A) -> A:
        rows = _answers.setdefault(question, [])
        rows.append(_Registered(order, f"{answer.__module__}.{answer.__name__}", answer))
        rows.sort(key=lambda row: row[:2])
        return answer

    return register


def ask(question: str, **facts: Any) -> list[Any]:
    """Every registered answer's value, in their fixed order, without the None values. No answer means "no
    objection".
    """
    if question not in QUESTIONS:
        raise KeyError(f"{question!r} is not a question; the questions are {', '.join(QUESTIONS)}")
    given = (row.answer(**facts) for row in _answers.get(question, []))
    return [value for value in given if value is not None]


def ask_facts(question: str, **facts: Any) -> dict[str, Any]:
    """The answers' dicts merged into one; a fact that two answers give differently raises ValueError."""
    merged: dict[str, Any] = {}
    for part in ask(question, **facts):
        clash = [name for name in part if name in merged and merged[name] != part[name]]
        if clash:
            raise ValueError(f"two answers to {question} disagree about {', '.join(clash)}")
        merged.update(part)
    return merged


def table() -> dict[str, list[str]]:
    """{question: dotted names of its answers, in order}: the second half of the house's wiring."""
    return {question: [row.name for row in _answers.get(question, [])] for question in QUESTIONS}
