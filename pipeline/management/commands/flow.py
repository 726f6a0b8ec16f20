"""`manage.py flow`: the house's wiring in readable columns, as the running code has it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.apps import apps
from django.core.management import BaseCommand

from pipeline import events, questions
from pipeline.states import Stateful, arrows


class Command(BaseCommand):
    """Prints which reaction follows which event, who answers which question, and every state machine's arrows."""

    help = "Prints events with their reactions, questions with their answers, and the moves of every state machine."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints the three tables; reads no row."""
        self.section("Events and their reactions")
        self.columns(_pairs(events.table().items()))
        self.section("Questions and their answers")
        self.columns(_pairs(questions.table().items()))
        for model in machines():
            self.section(f"Moves of {model.noun()} ({model._meta.label}), born {', '.join(sorted(model.INITIAL))}")
            self.columns(moves(model))

    def section(self, title: str) -> None:
        """Prints a heading."""
        self.stdout.write(f"\n{title}\n{'-' * len(title)}")

    def columns(self, rows: Sequence[Sequence[str]]) -> None:
        """Prints the rows with each column as wide as its widest cell."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            self.stdout.write("  ".join(cells).rstrip())


def machines() -> list[type[Stateful]]:
    """Every model that has states, in the order of the apps."""
    return [model for model in apps.get_models() if issubclass(model, Stateful)]


def moves(model: type[Stateful]) -> list[tuple[str, str, str, str]]:
    """(from, to, event kind, key) for each arrow, and a last line for each state that no plain arrow leaves."""
    rows = [("from", "to", "event", "only by")]
    for state, to in arrows(model):
        rows.append((state, to, model.event_kind(state, to), model.KEYED.get((state, to), "")))
    rows += [(str(state), "(terminal)", "", "") for state in sorted(model.MOVES) if model.is_terminal(state)]
    return rows


def _pairs(table: Iterable[tuple[str, list[str]]]) -> list[tuple[str, str]]:
    """A line for each name and what it leads to; the name stands on the first of its lines."""
    rows = []
    for name, followers in table:
        first, *more = followers or ["(nobody)"]
        rows += [(name, first), *(("", follower) for follower in more)]
    return rows or [("(none)", "")]
