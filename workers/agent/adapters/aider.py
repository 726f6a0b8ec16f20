"""Aider for a single message: told by a file, priced by its analytics log, judged by the diff."""

import math
from collections.abc import Iterable
from decimal import Decimal
from pathlib import Path
from typing import Any, ClassVar

from workers.agent import clock, quota
from workers.agent.adapters import Adapter, Invocation, Result, Signal, Verdict
from workers.agent.claim import InvalidRequest
from workers.agent.lines import Lines, Tail, part_of, text_in, whole
from workers.agent.tokens import Tokens, usage_item

LOOK_SECONDS = 0.5
"""How often the analytics log is looked into while the tool runs."""
MOST_MODELS = 50

_FLAGS = (
    "--yes-always",
    "--no-auto-commits",
    "--no-dirty-commits",
    "--no-stream",
    "--no-pretty",
    "--no-gitignore",  # else it edits the project's .gitignore
    "--no-check-update",
    "--no-analytics",  # else it may ask to opt in, and --yes-always would say yes
)


class Aider(Adapter):
    """Drives `aider --message-file`.

    It exits with 0 whether or not it could apply an edit, so that only the diff says whether it did. It is told nothing
    of a reservation: its analytics log is read as it grows, and priced by us. Facts: Aider-AI/aider 5dc9490b.
    """

    name: ClassVar[str] = "aider"
    litter: ClassVar[tuple[str, ...]] = (".aider*",)

    def prepare(self, directory: Path, scratch: Path) -> Invocation:
        """The command with our flags; the prompt is a file. Raises InvalidRequest when there is no command."""
        request = self.claim.request
        if not request.command or not request.command[0]:
            raise InvalidRequest("command is empty")
        prompt = self.claim.prompt
        if prompt[:1] in ("/", "!"):  # it would take these for a command of its own, and run it
            prompt = f"Task: {prompt}"
        message = scratch / "message.txt"
        message.write_text(prompt, encoding="utf-8", errors="replace")
        self._log = Tail(scratch / "analytics.jsonl")
        self._look_at = 0.0
        self._lines = {"stdout": Lines(), "stderr": Lines()}
        self._sums: dict[str, Tokens] = {}
        self._stated: dict[str, Decimal] = {}
        self._trouble = ""
        argv = [*request.command, *_FLAGS, "--analytics-log", str(self._log.path)]
        argv += ["--chat-history-file", str(scratch / "chat.md"), "--input-history-file", str(scratch / "input.txt")]
        if request.model:
            argv += ["--model", request.model]
        return Invocation(argv=(*argv, "--message-file", str(message)), stdin=b"")

    def understand(self, stream: str, chunk: bytes) -> Iterable[Signal]:
        """Trouble with the provider, which it tells people only; anything else is the model at work."""
        activity = None
        for line in self._lines[stream].feed(chunk):
            text = line.decode("utf-8", "replace")
            if quota.is_refusal_for_now(text) or quota.is_outage(text):
                self._trouble = text.strip()[:2000]
            if quota.is_refusal_for_now(text):
                activity = "quota_wait"
            elif activity is None and text.strip() and not text.startswith("Retrying in"):
                activity = "waiting_model"
        if activity == "quota_wait":
            yield self.waits_for_quota(quota.reset_in(self._trouble))
        elif activity is not None:
            yield Signal("progress", activity=activity if self._waits_since is None else None)

    def signals(self) -> list[Signal]:
        """What the tool has let us know since the last call; sets `early` once it has used up its reservation."""
        if clock.now() >= self._look_at:
            self._look_at = clock.now() + LOOK_SECONDS
            for entry in self._log.read():
                self._book(entry)
        allowance = self.claim.allowance
        spent = sum(self._sums.values(), start=Tokens())
        if self.early is None and allowance is not None and allowance.is_spent(spent):
            self.early = Verdict(
                "budget_stop", "reservation_spent", f"{self.claim.request.tool} used up what was set aside"
            )
        return list(super().signals())

    def _book(self, entry: dict[str, Any]) -> None:
        """Adds what one message used. Its prompt counts hold what was cached too; the log does not say how much."""
        if entry.get("event") != "message_send":
            return
        told = part_of(entry, "properties")
        model = text_in(told, "main_model")
        if not model or model.endswith("/REDACTED"):
            model = self.claim.request.model or model or "unknown"
        if model not in self._sums and len(self._sums) >= MOST_MODELS:
            model = "unknown"
        tokens = Tokens(uncached_input=whole(told.get("prompt_tokens")), output=whole(told.get("completion_tokens")))
        self._sums[model] = self._sums.get(model, Tokens()) + tokens
        cost = told.get("cost")
        if isinstance(cost, int | float) and not isinstance(cost, bool) and math.isfinite(cost) and 0 <= cost < 10**9:
            self._stated[model] = self._stated.get(model, Decimal(0)) + Decimal(str(cost))
        self._trouble = ""
        self.put(Signal("usage", activity="waiting_model"))

    def usage(self) -> list[dict[str, Any]]:
        """One item a model, with the cost that the tool states beside."""
        items = []
        for model, tokens in self._sums.items():
            provider = model.partition("/")[0] if "/" in model else ""
            item = usage_item(self.claim.lease.id, self.name, model, provider, tokens)
            if model in self._stated:
                item["stated_amount"] = f"{self._stated[model]:.6f}"
            items.append(item)
        return items

    def close(self) -> None:
        """Kills what is left of the tool, and reads its log to the end. Safe to repeat."""
        first = self.process is not None and self._ended_at is None
        super().close()
        if first:
            trouble = self._trouble
            for entry in self._log.read_all():
                self._book(entry)
            self._trouble = trouble  # the log says how often it asked, not in which order that and the trouble came

    def collect(self) -> Result:
        """A success if the diff says so. Ended by a signal it is a failure, whatever it left behind."""
        if self.exit_code is None or self.exit_code > 128:
            return self.gone()
        return self.ending(success=True, outcome="success", unchanged=self._nothing_done())

    def _nothing_done(self) -> Verdict:
        """Why nothing came of it, as far as it said."""
        tool = self.claim.request.tool
        if quota.is_refusal_for_now(self._trouble):
            return self.quota_verdict(self._trouble)
        if self._trouble:
            return Verdict("infra_lost", "provider_unavailable", self._trouble)
        if self.exit_code:
            return Verdict("task_failed", f"exit_{self.exit_code}", f"{tool} ended with exit code {self.exit_code}")
        return Verdict("task_failed", "no_edit", f"{tool} changed nothing")
