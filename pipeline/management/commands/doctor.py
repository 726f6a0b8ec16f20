"""`manage.py doctor`: is everything there, and does everything hold that must hold between the rows?"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management import BaseCommand

from pipeline import invariants
from pipeline.invariants import Finding, Result


class Command(BaseCommand):
    """One line for each probe and each invariant of domain.md §6; exit code 1 when one is broken."""

    help = "Checks the installation and every invariant between the rows; exit code 1 when something is broken."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """--json."""
        parser.add_argument("--json", action="store_true", help="one JSON document with every violation")

    def handle(self, *args: Any, **options: Any) -> None:
        """Prints the report; ends the process with code 1 when something is broken."""
        findings = invariants.probe_all()
        # Without a database every search would only say so again.
        results = invariants.check_all() if findings["database"].ok else []
        good = all(finding.ok for finding in findings.values()) and all(result.holds for result in results)
        if options["json"]:
            self.stdout.write(json.dumps(document(findings, results, good), indent=2))
        else:
            for name, finding in findings.items():
                self.stdout.write(f"{name} {'ok' if finding.ok else 'BROKEN'}  {finding.detail}")
            for result in results:
                self.stdout.write(line(result))
        if not good:
            sys.exit(1)


def line(result: Result) -> str:
    """`INV-01 ok  a busy worker…`, `INV-04 BROKEN (3)  a task runs…: ids…`, or `INV-28 not applicable  …`."""
    if not result.applies:
        return f"{result.number} not applicable  {result.text}"
    if result.holds:
        return f"{result.number} ok  {result.text}"
    violations = invariants.listed(result.violations)
    return f"{result.number} BROKEN ({len(result.violations)})  {result.text}: {violations}"


def document(findings: dict[str, Finding], results: list[Result], good: bool) -> dict[str, Any]:
    """The report as JSON: `ok`, the probes by name, and each invariant with all of its violations."""
    return {
        "ok": good,
        "probes": {name: finding._asdict() for name, finding in findings.items()},
        "invariants": [{**result._asdict(), "holds": result.holds} for result in results],
    }
