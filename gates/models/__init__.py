"""The checks that a patch must pass, each time one was run, and what every test said."""

from gates.models.finding import Finding
from gates.models.flaky_test import FlakyTest
from gates.models.gate import Gate
from gates.models.gate_run import GateRun
from gates.models.record import GateEvidence, GateOutput, RunnerHost
from gates.models.test_result import TestResult

__all__ = ["Finding", "FlakyTest", "Gate", "GateEvidence", "GateOutput", "GateRun", "RunnerHost", "TestResult"]
