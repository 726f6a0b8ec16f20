"""`manage.py replay`: list the reactions that failed, and have them tried again or taken off the list."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from pipeline.events import SYSTEM
from pipeline.ids import is_id
from pipeline.models import FailedReaction
from pipeline.refusals import ReasonRequired, Refused


class Command(BaseCommand):
    """Without --reason it lists; with it, what it would list is tried again at once by whoever handles events, or with
    --drop never again.
    """

    help = "List the reactions that failed, and with --reason have them tried again, or with --drop taken off the list."

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument("--dead", action="store_true", help="only those that nobody tries any more")
        parser.add_argument("--event", default="", help="only those to the event with this id")
        parser.add_argument("--reaction", default="", help="only this reaction, by the name in the list")
        parser.add_argument("--drop", action="store_true", help="take them off the list instead: nobody tries them")
        parser.add_argument("--reason", default="", help="why they are tried again, or dropped; without it: list them")

    def handle(self, *args: Any, **options: Any) -> None:
        """List or replay. Raises CommandError for an id that is none."""
        failures = FailedReaction.objects.dead() if options["dead"] else FailedReaction.objects.open()
        if options["event"]:
            if not is_id(options["event"]):
                raise CommandError(_("%(given)s is no id of an event") % {"given": options["event"]})
            failures = failures.filter(event_id=options["event"])
        if options["reaction"]:
            failures = failures.filter(reaction=options["reaction"])
        again = 0
        for failure in failures.order_by("pk").iterator():
            if options["reason"]:
                try:
                    verb = failure.drop if options["drop"] else failure.replay
                    again += verb(by=SYSTEM, reason=options["reason"])
                except ReasonRequired as refusal:
                    raise CommandError(str(refusal)) from refusal
                except Refused as refusal:  # this one cannot be; the others still can
                    self.stderr.write(str(refusal))
                    continue
            dead = _("dead") if failure.dead_at else _("waiting")
            self.stdout.write(f"{failure.event_id} {failure.kind} {failure.reaction} {dead} {failure.error[:200]!r}")
        if options["drop"] and options["reason"]:
            done = ngettext("%(n)d reaction is dropped", "%(n)d reactions are dropped", again)
        elif options["reason"]:
            done = ngettext("%(n)d reaction is tried again", "%(n)d reactions are tried again", again)
        else:
            return
        self.stdout.write(done % {"n": again})
