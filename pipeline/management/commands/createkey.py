"""`manage.py createkey`: make an API key and print it once, as the last word of the output."""

from datetime import timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from pipeline.events import SYSTEM
from pipeline.models import ApiKey, Project
from pipeline.refusals import Refused


class Command(BaseCommand):
    """Makes a key. Nothing can print it again; a lost key is revoked and replaced."""

    help = "Make an API key and print it once, as the last word of the output."

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument("--role", required=True, choices=ApiKey.Role.values)
        parser.add_argument("--project", default="", help="the project's key; without it the key is good everywhere")
        parser.add_argument("--name", default="", help="what the key is called in lists and in the history")
        parser.add_argument("--days", type=int, default=None, help="how long it lives; a worker's key 90 days at most")

    def handle(self, *args: Any, **options: Any) -> None:
        """Make and print it. Raises CommandError with the reason when it cannot be made."""
        project = None
        if options["project"]:
            project = Project.objects.filter(key=options["project"]).first()
            if project is None:
                raise CommandError(_("There is no project %(key)s") % {"key": options["project"]})
        days = options["days"]
        if days is not None and not 1 <= days <= 36_500:
            raise CommandError(_("--days is a number from 1 to 36500"))
        try:
            made = ApiKey.objects.make(
                name=options["name"] or " ".join(filter(None, [options["role"], options["project"]])),
                role=options["role"],
                project=project,
                life=None if days is None else timedelta(days=days),
                by=SYSTEM,
            )
        except Refused as refusal:
            raise CommandError(str(refusal)) from refusal
        self.stdout.write(_("Key %(name)s:") % {"name": made.row.name} + f" {made.text}")
