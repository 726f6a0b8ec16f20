"""`manage.py drop-history --before 2026-01`: let go of the events of whole months, and leave a tombstone."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.utils.translation import gettext as _

from ledger import audit, retention, sealing
from pipeline import events
from pipeline.refusals import Refused


class Command(BaseCommand):
    """Says what would go; with --yes verifies the log and drops it (docs/audit.md). Costs, runs and patches stay."""

    help = "Drops the events of whole months that are handled, sealed, anchored and past SIGNALBOX_KEEP_EVENTS_MONTHS."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The first month that stays, and whether to do it."""
        parser.add_argument("--before", required=True, metavar="YYYY-MM", help="the first month that stays")
        parser.add_argument("--export", metavar="FILE", help="first write all that is there as a bundle")
        choice = parser.add_mutually_exclusive_group()
        choice.add_argument("--dry-run", action="store_true", help="say what would go; so it does without --yes")
        choice.add_argument("--yes", action="store_true", help="do it")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints what goes or went. Exit code 1 with one sentence when it may not go."""
        try:
            planned = retention.plan(options["before"])
            self.stdout.write(summary(planned))
            if not planned.months or not options["yes"]:
                if planned.months:
                    self.stdout.write(_("Nothing was dropped: say --yes to do it."))
                return
            if options["export"]:
                path = Path(options["export"])
                report = audit.verify(bundle=path)
                self.stdout.write(_("%(count)d events are in %(path)s") % {"count": report.events, "path": path})
            done = retention.drop(options["before"], by=events.Actor("system", "", "drop-history"))
            sealing.seal()  # the tombstone is anchored at once
        except (Refused, OSError) as problem:
            raise CommandError(str(problem)) from problem
        self.stdout.write(_("Dropped: %(count)d events.") % {"count": done.events})


def summary(planned: retention.Plan) -> str:
    """The months with their events, and what is left of them."""
    if not planned.months:
        return _("There is no month before %(month)s to drop.") % {"month": planned.before}
    lines = [
        _("%(month)s: %(count)d events") % {"month": month, "count": count} for month, count in planned.months.items()
    ]
    left = _("%(seals)d seals stay as their tombstones; %(streams)d histories lose their beginning.")
    return "\n".join([*lines, left % {"seals": planned.seals, "streams": planned.streams}])
