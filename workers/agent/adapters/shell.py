"""Any program: it gets the prompt on stdin, works in the checkout, and is judged by its exit code."""

from pathlib import Path
from typing import ClassVar

from workers.agent.adapters import Adapter, Invocation, Result, Verdict
from workers.agent.claim import InvalidRequest


class Shell(Adapter):
    """Runs the argument vector of the request as it stands.

    Success is an exit code in `constraints.expected_exit_codes` (default: 0 alone).
    """

    name: ClassVar[str] = "shell"

    def prepare(self, directory: Path, scratch: Path) -> Invocation:
        """The request's command, with the prompt on stdin. Raises InvalidRequest when there is no command."""
        command = self.claim.request.command
        if not command or not command[0]:
            raise InvalidRequest("command is empty")
        self._expected = self._expected_exit_codes()
        return Invocation(argv=command, stdin=self.claim.prompt.encode("utf-8", "replace"))

    def collect(self) -> Result:
        """Success by exit code; otherwise task_failed with `exit_<code>`, or infra_lost when its end was not seen."""
        if self.exit_code in self._expected:
            return self.ending(success=True, outcome="success")
        if self.exit_code == 0:
            return self.judged(Verdict("task_failed", "exit_0", f"{self.claim.request.tool} ended with exit code 0"))
        return self.gone()

    def _expected_exit_codes(self) -> frozenset[int]:
        listed = self.claim.request.constraints.get("expected_exit_codes", [0])
        if not isinstance(listed, list) or not all(type(code) is int for code in listed):
            raise InvalidRequest("expected_exit_codes must be a list of whole numbers")
        return frozenset(listed)
