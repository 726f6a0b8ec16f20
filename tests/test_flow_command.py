"""`manage.py flow` prints the wiring that the running code has."""

from io import StringIO

from django.apps import apps
from django.core.management import call_command

from pipeline import events, questions
from pipeline.states import Stateful, arrows


def flow() -> str:
    said = StringIO()
    call_command("flow", stdout=said)
    return said.getvalue()


def test_every_event_stands_with_its_reactions() -> None:
    said = flow()
    for kind, reactions in events.table().items():
        assert kind in said
        for reaction in reactions:
            assert reaction in said


def test_every_question_stands_with_its_answers_or_with_nobody() -> None:
    lines = flow().splitlines()
    for question, answers in questions.table().items():
        (line,) = [line for line in lines if line.startswith(f"{question} ")]
        assert line.split()[1:] == ([answers[0]] if answers else ["(nobody)"])


def test_every_arrow_of_every_machine_stands_with_its_event_and_key() -> None:
    sections = flow().split("\nMoves of ")
    machines = [model for model in apps.get_models() if issubclass(model, Stateful)]
    assert len(sections) == len(machines) + 1
    for model in machines:
        (section,) = [section for section in sections if section.startswith(f"{model.noun()} ({model._meta.label})")]
        rows = [line.split() for line in section.splitlines()]
        for state, to in arrows(model):
            key = model.KEYED.get((state, to))
            assert [state, to, model.event_kind(state, to), *([key] if key else [])] in rows
        for state in model.MOVES:
            if model.is_terminal(state):
                assert [str(state), "(terminal)"] in rows


def test_the_columns_are_aligned() -> None:
    lines = flow().split("Moves of run ")[1].split("\nMoves of ")[0].splitlines()
    header, first = lines[2], lines[3]
    assert header.split() == ["from", "to", "event", "only", "by"]
    assert first.index(first.split()[1]) == header.index("to")
    assert first.index(first.split()[2]) == header.index("event")
