"""`manage.py addproject PATH_OR_URL`: take a repository into Signalbox's care."""

from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.utils.translation import gettext as _

from ledger import git, projects
from pipeline import events
from pipeline.models import Phase
from pipeline.refusals import Refused


class Command(BaseCommand):
    """Registers a repository: a bare mirror, a project, a first phase, and the merge queue of its branch."""

    help = "Registers a git repository (a path or URL) as a bare mirror under the data directory."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The repository, and what the project is to be called."""
        parser.add_argument("source", metavar="PATH_OR_URL")
        parser.add_argument("--key", default="", help="default: the repository's name")
        parser.add_argument("--name", default="")
        parser.add_argument(
            "--branch", default=None, help="the branch that patches land on; default: the repository's own"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints the project's key, branch, head and mirror. Exit code 1 with one sentence when it cannot be done."""
        by = events.Actor("system", "", "addproject")
        try:
            project = projects.register(
                options["source"], by=by, key=options["key"], name=options["name"], branch=options["branch"]
            )
            Phase.objects.add(by=by, project=project, key="work", name="Work", category="implementation")
        except Refused as refusal:
            raise CommandError(str(refusal)) from refusal
        head = git.head(project.mirror, project.default_branch)
        self.stdout.write(_("Project %(key)s is registered.") % {"key": project.key})
        self.stdout.write(_("  branch  %(branch)s at %(head)s") % {"branch": project.default_branch, "head": head})
        self.stdout.write(_("  mirror  %(mirror)s") % {"mirror": project.mirror})
        self.stdout.write(_("Next: define a workstream in phase “work” and a gate, by the admin site or the API."))
