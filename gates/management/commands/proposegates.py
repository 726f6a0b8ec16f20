"""`manage.py proposegates PROJECT`: the gates that suit a project's files; with --save, those become its gates."""

import shlex
from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError

from gates import bootstrap
from pipeline import events
from pipeline.models import Project
from pipeline.refusals import Refused

BY = events.Actor("user", "", "manage.py proposegates")


class Command(BaseCommand):
    """Shows what would be saved before anything is."""

    help = "Proposes gates (pytest, ruff, npm test, cargo test …) from the files of a project's branch."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The project's key; which of the proposals to save."""
        parser.add_argument("project", help="the project's key")
        parser.add_argument("--save", nargs="*", metavar="KEY", help="save these proposals, or all when none is named")

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit code 1 with one sentence when it cannot be done."""
        project = Project.objects.filter(key=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}")
        try:
            offered = bootstrap.proposals(project)
            if options["save"] is not None:
                chosen = options["save"] or [preset.key for preset in offered]
                for gate in bootstrap.save(project, chosen, by=BY):
                    self.stdout.write(f"saved {gate}")
                return
        except Refused as refusal:
            raise CommandError(str(refusal)) from refusal
        for preset in offered:
            self.stdout.write(f"{preset.key}: {shlex.join(preset.command)}\n  because {preset.why}")
            if preset.evidence or preset.criteria:
                self.stdout.write(f"  evidence {dict(preset.evidence)}, criteria {dict(preset.criteria)}")
            if preset.note:
                self.stdout.write(f"  {preset.note}")
        self.stdout.write("Nothing was saved: add --save." if offered else "Nothing to propose.")
