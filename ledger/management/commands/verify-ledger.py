"""`manage.py verify-ledger [--export FILE]`: is the log what was written, and are the rows what it tells?"""

import os
import sys
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.db import Error
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from ledger import audit, keeping, sealing
from pipeline import altered
from pipeline.refusals import Refused


class Command(BaseCommand):
    """Reads every event once and holds it against its chain, its seal and the anchor outside; then every row against
    what its events tell (docs/audit.md).
    """

    help = (
        "Verifies the event log and the rows that it tells of; exit code 1 and the first that is not as it was written."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Where the bundle goes, how many processes read, and the way out when the audit repository was lost."""
        parser.add_argument("--export", metavar="FILE", help="also write a bundle that docs/verify_bundle.py verifies")
        parser.add_argument("--jobs", type=int, default=min(4, os.cpu_count() or 1), help="processes that read")
        parser.add_argument("--no-rows", action="store_true", help="the log alone, not the rows that it tells of")
        parser.add_argument(
            "--rebuild-anchors",
            action="store_true",
            help="first make the audit repository anew from the seals; each commit must become what its seal names",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints what was read and ok, or what is wrong, the first bad row first; then the exit code is 1."""
        if not 1 <= options["jobs"] <= 64:
            raise CommandError(_("--jobs is a number from 1 to 64"))
        try:
            if options["rebuild_anchors"]:
                count = sealing.rebuild_anchors()
                self.stdout.write(_("%(count)d anchors are there again") % {"count": count})
            bundle = Path(options["export"]) if options["export"] else None
            if bundle is not None and (bundle.is_dir() or not bundle.parent.is_dir()):
                raise CommandError(
                    _("--export is a file to write in a folder that exists, not %(path)s") % {"path": bundle}
                )
            report = audit.verify(jobs=options["jobs"], bundle=bundle)
        except (Refused, OSError) as problem:
            raise CommandError(str(problem)) from problem
        self.stdout.write(summary(report))
        for found in report.problems:
            self.stdout.write(str(found))
        is_ok = report.ok
        if not options["no_rows"]:
            is_ok &= self._rows()
        if not is_ok:
            sys.exit(1)
        try:
            keeping.note_verified()
        except Error as problem:  # a copy that can only be read is verified no less
            self.stderr.write(_("This verification could not be noted for the console: %(why)s") % {"why": problem})
        self.stdout.write(f"ok {report.last_root}".strip())

    def _rows(self) -> bool:
        """Prints what the rows are; whether all are what the log tells."""
        seen = altered.look()
        self.stdout.write(_("%(rows)d rows held against what the log tells of them") % {"rows": seen.rows})
        if seen.untold:
            self.stdout.write(
                ngettext(
                    "%(count)d of them cannot be told: the beginning of its history was dropped by retention",
                    "%(count)d of them cannot be told: the beginning of their history was dropped by retention",
                    seen.untold,
                )
                % {"count": seen.untold}
            )
        for row in seen.problems:
            self.stdout.write(str(row))
        return not seen.problems


def summary(report: audit.Report) -> str:
    """What was read, in a line or two."""
    lines = [
        _("%(events)d events, %(streams)d streams, %(seals)d seals in %(seconds).1f s (%(speed)d events a second)")
        % {
            "events": report.events,
            "streams": report.streams,
            "seals": report.seals,
            "seconds": report.seconds,
            "speed": int(report.events / max(report.seconds, 0.001)),
        }
    ]
    if report.unsealed:
        lines.append(
            ngettext("%(count)d event is not sealed yet", "%(count)d events are not sealed yet", report.unsealed)
            % {"count": report.unsealed}
        )
    if report.dropped:
        lines.append(
            _("events before %(month)s were dropped by retention: %(count)d seals are all that is left of them")
            % {"month": report.first_month or "now", "count": report.dropped}
        )
    return "\n".join(lines)
