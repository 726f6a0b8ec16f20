"""`manage.py why task 01J…`: who holds an object, and what would help."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from pipeline.auth import Principal
from pipeline.blockers import blocker, find
from pipeline.refusals import Refused


class Command(BaseCommand):
    """The same answer as the API's `/blockers/` and the pages."""

    help = "Say why an object isn't moving: who holds it, since when, and what would help."

    def add_arguments(self, parser: CommandParser) -> None:
        """What is asked about."""
        parser.add_argument("noun", help="run, task, patch, gate_run, worker …")
        parser.add_argument("id")

    def handle(self, *args: Any, **options: Any) -> None:
        """Print the holder, the reason, and the chain. Raises CommandError for what is not there."""
        everything = Principal("system", "", "command line", everywhere="admin")
        try:
            row = find(options["noun"], options["id"], everything)
        except Refused as refusal:
            raise CommandError(str(refusal)) from refusal
        found = blocker(row)
        if found is None:
            self.stdout.write(_("%(label)s waits for nobody") % {"label": row})
            return
        self.stdout.write(
            _("%(label)s waits for the %(kind)s %(holder)s: %(reason)s")
            % {"label": row, "kind": found.holder.kind, "holder": found.holder.label, "reason": found.reason}
        )
        for link in found.chain[1:]:
            self.stdout.write(f"  {link.label}: {link.reason}")
        if found.since:
            self.stdout.write(_("since %(time)s") % {"time": found.since.isoformat()})
        if found.eta:
            self.stdout.write(_("expected %(time)s") % {"time": found.eta.isoformat()})
        if found.action:
            told = {"verb": found.action.verb, "address": found.action.address, "role": found.action.role}
            self.stdout.write(_("what helps: %(verb)s, POST /api/v1%(address)s (role %(role)s)") % told)
