"""`manage.py verify-receipts [--project KEY]`: is every landed patch what its receipt says?"""

import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.utils.translation import gettext as _

from ledger import receipts
from ledger.models import Patch, Remote
from pipeline.models import Project
from pipeline.refusals import Refused


class Command(BaseCommand):
    """Holds rows, texts, receipts, notes and commits against each other (docs/landing.md). Reads only."""

    help = "Verifies receipts; exit code 1 and every thing that differs when something is not what was written."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which project, and whether to write the receipts that are missing first."""
        parser.add_argument("--project", default="", metavar="KEY", help="default: all of them")
        parser.add_argument(
            "--write-missing", action="store_true", help="first write receipts for what landed before there were any"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints what differs, or how many landed patches are what they were; and which remotes lack receipts."""
        project = None
        if options["project"]:
            project = Project.objects.filter(key=options["project"]).first()
            if project is None:
                raise CommandError(_("There is no project %(key)s") % {"key": options["project"]})
        landed = Patch.objects.exclude(commit_sha="").filter(custody=Project.Custody.MANAGED)
        landed = landed.filter(project=project) if project else landed
        try:
            if options["write_missing"]:
                for patch in landed.filter(receipt=None).select_related("project").order_by("pk").iterator(500):
                    receipts.write(patch)
                while receipts.note_rest():
                    pass
            faults = 0
            for fault in receipts.verify(project):
                self.stdout.write(str(fault))
                faults += 1
        except Refused as problem:
            raise CommandError(str(problem)) from problem
        behind = Remote.objects.live().lacking_receipts().select_related("project").order_by("project__key")
        for remote in behind.filter(project=project) if project else behind:
            what = {"key": remote.project.key, "why": remote.receipts_error}
            self.stderr.write(_("The remote of %(key)s lacks receipts: %(why)s") % what)
        if faults:
            self.stdout.write(_("%(count)d things are not what was written") % {"count": faults})
            sys.exit(1)
        self.stdout.write(_("ok: %(count)d landed patches are what their receipts say") % {"count": landed.count()})
