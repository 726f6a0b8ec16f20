"""`manage.py reprice`: what records cost at the prices as they are known now, and with --reason their rebooking."""

from datetime import UTC, date, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.utils.translation import gettext as _

from costs.models import repricing
from pipeline.events import SYSTEM
from pipeline.refusals import Refused


class Command(BaseCommand):
    """Without --reason it tells the differences and changes nothing."""

    help = "Compare booked tokens with the prices as they are known now, and with --reason book them anew."

    def add_arguments(self, parser: CommandParser) -> None:
        """The options."""
        parser.add_argument("--model", action="append", default=[], help="only this model; may be given again")
        parser.add_argument("--provider", default="", help="only this provider's models")
        parser.add_argument("--first", default="", help="recorded on this day or later, YYYY-MM-DD in UTC")
        parser.add_argument("--last", default="", help="recorded on this day or before, YYYY-MM-DD in UTC")
        parser.add_argument("--reason", default="", help="why; without it nothing is changed")

    def handle(self, *args: Any, **options: Any) -> None:
        """Tell, or rebook. Raises CommandError for a day that is none."""
        first, last = _day("--first", options["first"]), _day("--last", options["last"])
        try:
            found = repricing.reprice(
                by=SYSTEM,
                reason=options["reason"],
                dry_run=not options["reason"],
                provider=options["provider"],
                models=options["model"],
                since=first,
                until=last and last + timedelta(days=1),
                most=None,
            )
        except Refused as refusal:
            raise CommandError(str(refusal)) from refusal
        for row in found.rows():
            self.stdout.write(
                f"{row['provider']}/{row['model']} {row['basis']}: {row['records']} × {row['before']} "
                f"{row['currency']} → {row['after']} {row['new_currency']} ({row['price_source']} "
                f"{row['price_version']})"
            )
        parts = {"all": found.looked_at, "some": found.records, "done": found.rebooked}
        if options["reason"]:
            self.stdout.write(_("%(all)d records looked at, %(done)d rebooked") % parts)
        else:
            self.stdout.write(_("%(all)d records looked at, %(some)d would be rebooked; say --reason to do it") % parts)


def _day(name: str, given: str) -> datetime | None:
    if not given:
        return None
    try:
        day = date.fromisoformat(given)
    except ValueError:
        raise CommandError(_("%(name)s is a day as YYYY-MM-DD, not “%(given)s”") % locals()) from None
    return datetime(day.year, day.month, day.day, tzinfo=UTC)
