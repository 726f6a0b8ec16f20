"""One function per page of the gates: how one gate has done lately, and which of its tests are slow or flaky."""

from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db.models import Avg, Count, Q

from gates.models import FlakyTest, Gate, GateRun, TestResult
from gates.models.flaky_test import history

RUNS = 50
TESTS_SHOWN = 15


@dataclass(frozen=True)
class GateReport:
    """A gate's last runs, oldest first: rates from 0 to 1, seconds, and its tests as mappings for the page."""

    decided: int
    passed: int
    errors: int
    durations: list[Decimal | None]
    outcomes: list[float | None]
    slowest: list[Mapping[str, Any]]
    flakiest: list[dict[str, Any]]

    @property
    def pass_rate(self) -> float | None:
        """Passed of decided, or None when nothing was decided."""
        return self.passed / self.decided if self.decided else None


def of_gate(gate: Gate) -> GateReport:
    """How the gate's last RUNS runs went, those on the base not counted. Four queries."""
    rows = GateRun.objects.filter(gate=gate, baseline=False, state__in=["passed", "failed", "error"]).order_by("-pk")
    runs = list(rows.values_list("pk", "state", "duration_seconds")[:RUNS])
    runs.reverse()
    ids = [pk for pk, _state, _seconds in runs]
    tests = TestResult.objects.filter(gate_run__in=ids).values("test_key")
    slowest = tests.filter(duration_seconds__isnull=False).annotate(
        seconds=Avg("duration_seconds"), runs=Count("gate_run", distinct=True)
    )
    flakiest = tests.annotate(
        runs=Count("gate_run", distinct=True),
        flaky=Count("gate_run", filter=Q(outcome="flaky_pass"), distinct=True),
        failed=Count("gate_run", filter=Q(outcome__in=["fail", "error"]), distinct=True),
    ).filter(flaky__gt=0)
    flaky_rows = list(flakiest.order_by("-flaky", "test_key")[:TESTS_SHOWN])
    owners = history([row["test_key"] for row in flaky_rows], gate.project_id)
    return GateReport(
        decided=sum(state in ("passed", "failed") for _pk, state, _seconds in runs),
        passed=sum(state == "passed" for _pk, state, _seconds in runs),
        errors=sum(state == "error" for _pk, state, _seconds in runs),
        durations=[seconds for _pk, _state, seconds in runs],
        outcomes=[{"passed": 1.0, "failed": 0.0}.get(state) for _pk, state, _seconds in runs],
        slowest=list(slowest.order_by("-seconds", "test_key")[:TESTS_SHOWN]),
        flakiest=[
            {**row, "rate": row["flaky"] / row["runs"], "owner": owners.get(row["test_key"], "")} for row in flaky_rows
        ],
    )


def quarantine_of(gate: Gate) -> list[FlakyTest]:
    """The project's tests in quarantine, those that end first before the others."""
    return list(FlakyTest.objects.filter(project=gate.project_id).order_by("expires_at")[:100])
