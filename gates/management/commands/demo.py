"""`manage.py demo`: a sample repository, three workstreams, four scripted agents, so that every state can be seen."""

import sys
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.core.management import BaseCommand, CommandError
from django.utils.translation import gettext as _

from gates.demo import agents, plan, rows
from ledger.models import Patch
from pipeline.models import Project
from pipeline.refusals import Refused

FAST_PACE_SECONDS = 0.1


class Command(BaseCommand):
    """Makes the demo and runs it; `--remove` takes it away again."""

    help = "Runs the demo: a sample repository, three workstreams, four scripted agents that make every state appear."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """One of --setup, --agents, --remove, or none of them: all of it until its runs have ended."""
        what = parser.add_mutually_exclusive_group()
        what.add_argument(
            "--setup", dest="setup_only", action="store_true", help="make the rows that are missing, start nothing"
        )
        what.add_argument("--agents", action="store_true", help="start the runs, and run the agents until a signal")
        what.add_argument("--remove", action="store_true", help="take the demo off the overview, and end what it runs")
        parser.add_argument("--fast", action="store_true", help="the agents do not pause between their steps")
        parser.add_argument(
            "--url",
            default=f"http://127.0.0.1:{settings.SIGNALBOX_PORT}",
            help="where Signalbox answers; default: %(default)s",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Exit code 1 with one sentence when it cannot be done."""
        try:
            if options["remove"]:
                self.remove()
            elif options["setup_only"]:
                # Whoever took the demo away does not want it back with the next start.
                if not rows.was_removed():
                    rows.set_up()
            elif options["agents"]:
                self.run_agents(options["url"], fast=options["fast"])
            else:
                self.show(options["url"], fast=options["fast"])
        except Refused as refusal:
            raise CommandError(str(refusal)) from refusal

    def remove(self) -> None:
        """Takes every demo away that is there, and what a removal left that was broken off."""
        if rows.find() is None:
            self.stdout.write(_("There is no demo to remove."))
        for project in rows.every():
            if project.archived_at is None:
                rows.remove(project, say=self.stdout.write)
            else:
                rows.remove(project)

    def run_agents(self, url: str, *, fast: bool) -> None:
        """The agents as one program of `manage.py up`; ends by itself when there is no demo any more."""
        project = rows.find()
        if project is None:
            self.stdout.write(_("There is no demo: nothing to run."))
            return
        with agents.alone():
            rows.start_runs(project)
            agents.answers(url, agents.PATIENCE_SECONDS)
            code = agents.run(project, url, pace_seconds=FAST_PACE_SECONDS if fast else 1.0)
        if code:
            sys.exit(code)

    def show(self, url: str, *, fast: bool) -> None:
        """The whole demo in the foreground: sets up, starts, works until the runs have ended, says what to look at."""
        project = rows.set_up()
        if not agents.answers(url):
            raise CommandError(
                _("Nobody answers at %(url)s. Start Signalbox first (make up); it brings the demo along.")
                % {"url": url}
            )
        if rows.has_ended(project):
            self.stdout.write(_("The demo has run already. Once more: manage.py demo --remove, then manage.py demo."))
            self.tell(project, url)
            return
        rows.start_runs(project)
        try:
            with agents.alone():
                code = agents.run(
                    project,
                    url,
                    pace_seconds=FAST_PACE_SECONDS if fast else 1.0,
                    until=lambda: rows.has_ended(project),
                )
        except agents.Busy:
            self.stdout.write(_("The demo's agents are at work already (make up): follow them in the console."))
            code = 0
        self.tell(project, url)
        if code:
            sys.exit(code)

    def tell(self, project: Project, url: str) -> None:
        """What became of it, and where it can be seen."""
        for key, run in rows.runs(project).items():
            name = plan.WORKSTREAMS[key]["name"]
            self.stdout.write(_("%(name)s: %(state)s  %(url)s/runs/%(run)s/") % {
                "name": name, "state": run.get_state_display(), "url": url, "run": run.pk,
            })  # fmt: skip
        counts = {
            state.label: Patch.objects.of(project).filter(state=state).count()
            for state in (Patch.State.COMMITTED, Patch.State.DROPPED, Patch.State.QUARANTINED)
        }
        told = ", ".join(f"{count} {label}" for label, count in counts.items())
        self.stdout.write(_("Patches: %(told)s  %(url)s/ledger/") % {"told": told, "url": url})
        self.stdout.write(_("Workers, one of them crashed: %(url)s/workers/") % {"url": url})
        self.stdout.write(_("To remove the demo: manage.py demo --remove"))
