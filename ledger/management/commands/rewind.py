"""`manage.py rewind`: take back what an agent, a tool, a model or a run landed; shows the plan, does it with --yes."""

from argparse import ArgumentParser
from datetime import UTC, datetime
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.utils.translation import gettext as _

from ledger import rollback
from pipeline import events
from pipeline.models import Project
from pipeline.refusals import Refused


class Command(BaseCommand):
    """Plans a rewind, and with --yes makes its reverse patches, which go through validation, queue and gates."""

    help = "Shows what it takes to take back a set of landed patches; makes the reverse patches with --yes."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The project and which of its patches; what is not said does not matter."""
        parser.add_argument("--project", required=True, help="the project's key")
        parser.add_argument("--branch", default="", help="default: the project's own")
        parser.add_argument("--agent", default="", help="a worker's id or name")
        parser.add_argument("--tool", default="", help="a tool's key")
        parser.add_argument("--model", default="")
        parser.add_argument("--run", default="", help="a run's id")
        parser.add_argument("--since", default="", help="landed from this time on, such as 2026-11-22T08:00 (UTC)")
        parser.add_argument("--until", default="", help="landed before this time")
        parser.add_argument("--reason", default="", help="why; --yes needs it")
        parser.add_argument("--partial", action="store_true", help="leave out what cannot be taken back")
        parser.add_argument("--yes", action="store_true", help="do it; without it only the plan is shown")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints a line for each patch, and below it what is in its way. Exit code 1 with one sentence when it cannot
        be done.
        """
        project = Project.objects.filter(key=options["project"]).first()
        if project is None:
            raise CommandError(_("There is no project %(key)s") % {"key": options["project"]})
        wanted = rollback.Wanted(
            project=project,
            branch=options["branch"],
            worker=options["agent"],
            tool=options["tool"],
            model=options["model"],
            run=options["run"],
            since=_time(options["since"]),
            until=_time(options["until"]),
        )
        try:
            plan = rollback.plan(wanted)
            self._show(plan)
            if not options["yes"]:
                self.stdout.write(_("Nothing was changed. Say --yes and --reason to do it."))
                return
            by = events.Actor("system", "", "rewind")
            made = rollback.carry_out(plan, options["reason"], by=by, partial=options["partial"])
        except Refused as refusal:
            raise CommandError(str(refusal)) from refusal
        for reverse in made:
            self.stdout.write(f"{reverse.rollback_of_id} -> {reverse.pk}")
        self.stdout.write(_("%(count)s reverse patches go through validation, queue and gates.") % {"count": len(made)})

    def _show(self, plan: rollback.Plan) -> None:
        for step in plan.steps:
            self.stdout.write(f"{step.patch.pk} {step.patch.commit_sha[:12]} {step.patch.summary}")
            self.stdout.write(f"  {step.words}")
            for needed in (*step.after, *step.later):
                self.stdout.write(_("  after %(patch)s") % {"patch": needed})
            for hunk in step.in_the_way:
                self.stdout.write(f"  {hunk}")
            if step.refused:
                self.stdout.write(f"  {step.refused}")
            for objection in step.objections:
                self.stdout.write(_("  waits for an override: %(why)s") % {"why": objection.message})
        for left in plan.left_out:
            self.stdout.write(f"{left.patch.pk} {left.patch.commit_sha[:12]} {left.patch.summary}")
            self.stdout.write(_("  left out: %(why)s") % {"why": left.words})
        self.stdout.write(
            _("%(count)s patches on %(branch)s, %(possible)s can be taken back.")
            % {"count": len(plan.steps), "branch": plan.branch, "possible": len(plan.possible)}
        )


def _time(text: str) -> datetime | None:
    """The time that an option says, in UTC unless it says otherwise; None for an empty one. Raises CommandError."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise CommandError(_("%(text)s is no time such as 2026-11-22T08:00") % {"text": text}) from error
    return time if time.tzinfo else time.replace(tzinfo=UTC)
