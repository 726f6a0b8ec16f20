"""`manage.py flow`: the house's wiring in readable columns, as the running code has it; `--kinds` as docs/events.md."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from django.apps import apps
from django.core.management import BaseCommand, CommandParser

from pipeline import events, questions
from pipeline.kinds import KINDS
from pipeline.states import Stateful, arrows


class Command(BaseCommand):
    """Prints the kinds of events, what reacts to which, who answers which question, and every machine's arrows."""

    help = "Prints kinds of events, their reactions, questions with their answers, and the moves of all state machines."
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        """--kinds."""
        parser.add_argument("--kinds", action="store_true", help="only the kinds of events, as docs/events.md has them")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints the four tables, or one; reads no row."""
        if options["kinds"]:
            self.stdout.write(vocabulary())
            return
        self.section("Kinds of events")
        self.columns([HEADINGS, *rows_of_kinds()])
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


HEADINGS = ("kind", "channel", "severity", "run_event", "event_type", "data")


def rows_of_kinds() -> list[tuple[str, str, str, str, str, str]]:
    """A row of HEADINGS for every kind of the vocabulary, in its order; `data` is what the event must tell."""
    return [
        (name, kind.channel, kind.severity, kind.run_event, kind.event_type, " ".join(sorted(kind.needs)))
        for name, kind in KINDS.items()
    ]


def vocabulary() -> str:
    """The same as a table of Markdown."""
    lines = [HEADINGS, ("---",) * len(HEADINGS)]
    rows = [tuple(f"`{cell}`" if cell else "" for cell in row) for row in rows_of_kinds()]
    return "\n".join(f"| {' | '.join(row)} |" for row in [*lines, *rows])


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
