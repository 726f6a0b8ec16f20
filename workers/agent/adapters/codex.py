"""Codex without a terminal: `codex exec --json`, priced by us, since it has no brake of its own."""

import re
from collections.abc import Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from workers.agent import clock, quota
from workers.agent.adapters import Invocation, Result, Signal, Verdict
from workers.agent.adapters.streaming import Streaming
from workers.agent.claim import InvalidRequest
from workers.agent.lines import Tail, items_of, part_of, text_in, whole, word_in
from workers.agent.tokens import Tokens, from_total_input, usage_item

LOOK_SECONDS = 1.0
"""How often the session's own record is looked into while the tool runs."""

_SANDBOX_FLAGS = frozenset({"--sandbox", "-s", "--dangerously-bypass-approvals-and-sandbox", "--yolo"})
_CALLS = {"command_execution": "command", "mcp_tool_call": "tool", "collab_tool_call": "tool", "web_search": "query"}
_THREAD = re.compile(r"[0-9a-fA-F-]{8,64}")


class Codex(Streaming):
    """Drives `codex exec --json`: finished by `turn.completed` or `turn.failed`.

    The stream states use only when a turn is over, and then as the total of the whole thread; the record that codex
    keeps of its session (`sessions/**/rollout-*.jsonl`) states the same after every request. The larger of both counts,
    so that a turn that runs on can be stopped at the reservation, and a failed one is paid. Facts:
    codex-rs/exec/src/exec_events.rs, versions 1ebb1bc7 and 08a1f30c.
    """

    name: ClassVar[str] = "codex"

    def prepare(self, directory: Path, scratch: Path) -> Invocation:
        """The command with our flags, and the prompt on stdin. Raises InvalidRequest when there is no command."""
        command = self.claim.request.command
        if not command or not command[0]:
            raise InvalidRequest("command is empty")
        self._model = self.claim.request.model or _flag(command, "--model", "-m")
        self._turn = ""
        self._failure = ""
        self._last_error = ""
        self._spent = Tokens()
        self._record: Tail | None = None
        self._resets = ""
        self._look_at = 0.0
        self._home = scratch
        argv = [*command] if "exec" in command[1:] else [*command, "exec"]
        argv += ["--json", "--color", "never"]
        if not _SANDBOX_FLAGS & set(command):
            argv += ["--sandbox", "workspace-write"]
        if self.claim.request.model:
            argv += ["--model", self.claim.request.model]
        return Invocation(argv=(*argv, "-"), stdin=self.claim.prompt.encode("utf-8", "replace"))

    def launch(self, invocation: Invocation, *, environment: Mapping[str, str], directory: Path) -> None:
        """Starts the tool, and notes where it keeps its sessions. Raises CouldNotStart."""
        self._home = Path(environment.get("CODEX_HOME") or Path(environment["HOME"]) / ".codex")
        super().launch(invocation, environment=environment, directory=directory)

    # --- the stream ---

    def read(self, document: dict[str, Any]) -> Iterable[Signal]:
        """What a line of the stream says."""
        kind = text_in(document, "type")
        if kind == "thread.started":
            self.session_ref = word_in(document, "thread_id")
            yield Signal("started", activity="waiting_model")
        elif kind == "turn.started":
            self._turn = ""
            yield Signal("progress", activity="waiting_model")
        elif kind == "turn.completed":
            self._turn = "completed"
            self._spend(part_of(document, "usage"))
            yield Signal("finished", activity="unknown")
        elif kind == "turn.failed":
            self._turn, self._failure = "failed", text_in(document, "error", "message")
            self.tell(self._failure)
            yield Signal("finished")
        elif kind == "error":
            self._last_error = text_in(document, "message")
            self.tell(self._last_error)
            if quota.is_refusal_for_now(self._last_error):
                yield self.waits_for_quota(quota.reset_in(self._last_error))
            else:
                yield Signal("retry", activity="waiting_model")
        elif kind == "request_user_input":
            yield from self._ask(document)
        elif kind in ("item.started", "item.updated", "item.completed"):
            yield from self._read_item(kind, part_of(document, "item"))

    def _read_item(self, kind: str, item: dict[str, Any]) -> Iterator[Signal]:
        call, what = text_in(item, "id"), text_in(item, "type")
        if what in _CALLS:
            if kind == "item.started":
                yield from self.opened(call, f"{what}: {text_in(item, _CALLS[what])[:500]}")
            elif kind == "item.completed":
                if what == "collab_tool_call" and item.get("tool") == "spawn_agent":
                    self.complaints.append("a sub-agent ran: its use is in a session of its own, and not counted here")
                yield from self.closed(call)
            return
        if kind == "item.completed":
            self.tell(text_in(item, "text") or text_in(item, "message"))
            for change in items_of(item, "changes"):
                self.tell(f"[{text_in(change, 'kind')} {text_in(change, 'path')}]")
        yield Signal("progress", activity="in_tool" if self._open_calls else "waiting_model")

    def _ask(self, document: dict[str, Any]) -> Iterator[Signal]:
        questions = items_of(document, "questions")[:20]
        asked = "; ".join(filter(None, (text_in(question, "question") for question in questions)))
        self.tell(asked)
        self.early = Verdict(
            "needs_human",
            "question",
            f"{self.claim.request.tool} asks: {asked}"[:2000],
            question={"tool": "request_user_input", "input": questions, "call": text_in(document, "call_id")},
        )
        yield Signal("needs_input", activity="waiting_human")

    # --- what it spends ---

    def signals(self) -> list[Signal]:
        """What the tool has let us know since the last call; sets `early` once it has used up its reservation."""
        if clock.now() >= self._look_at and not self.ended:
            self._look_at = clock.now() + LOOK_SECONDS
            self._look(once=True)
        allowance = self.claim.allowance
        works = self._turn != "completed"  # what is done is done, whatever it cost
        if works and self.early is None and allowance is not None and allowance.is_spent(self._spent):
            self.early = Verdict(
                "budget_stop", "reservation_spent", f"{self.claim.request.tool} used up what was set aside"
            )
        return list(super().signals())

    def _look(self, *, once: bool) -> None:
        """Reads what the session's record has new."""
        if self._record is None:
            if not _THREAD.fullmatch(self.session_ref):
                return
            found = sorted(self._home.glob(f"sessions/*/*/*/rollout-*{self.session_ref}.jsonl"))
            if not found:
                return
            self._record = Tail(found[-1])
        for line in self._record.read() if once else self._record.read_all():
            payload = part_of(line, "payload")
            if line.get("type") == "turn_context":
                self._model = text_in(payload, "model") or self._model
            elif payload.get("type") == "token_count":
                self._spend(part_of(part_of(payload, "info"), "total_token_usage"))
                self._note_limits(part_of(payload, "rate_limits"))

    def _spend(self, usage: dict[str, Any]) -> None:
        """Takes a running total; never less than what was known, since a total only grows."""
        tokens, fit = from_total_input(usage, count=whole)
        if not fit:
            self.complaints.append("more input was cached than there was: all of it counts as uncached")
        if tokens.total > self._spent.total:
            self._spent = tokens

    def _note_limits(self, limits: dict[str, Any]) -> None:
        for name in ("primary", "secondary"):
            window = part_of(limits, name)
            used = window.get("used_percent")
            if isinstance(used, int | float) and used >= 100:
                self._resets = max(self._resets, quota.moment(window.get("resets_at")))

    def quota_verdict(self, reason: str) -> Verdict:
        """No quota; the record of the session says more exactly until when than the message for people does."""
        self._until = self._resets or self._until or quota.reset_in(reason)
        return super().quota_verdict(reason)

    def usage(self) -> list[dict[str, Any]]:
        """One item for the whole thread; nothing when no figure was seen."""
        if not self._spent:
            return []
        write = bool(self._spent.cache_write_5m)
        model = self._model or "unknown"
        return [usage_item(self.claim.lease.id, self.name, model, "openai", self._spent, assumed_ttl=write)]

    def close(self) -> None:
        """Kills what is left of the tool, and reads its record to the end. Safe to repeat."""
        first = self.process is not None and self._ended_at is None
        super().close()
        if first:
            self._look(once=False)

    # --- the end ---

    def collect(self) -> Result:
        """By the last turn, whatever the exit code."""
        if self._turn == "completed":
            return self.ending(success=True, outcome="success")
        if self._turn != "failed":
            if self._waits_since is not None:
                return self.judged(self.quota_verdict(self._last_error))
            return self.gone()
        message = self._failure or self._last_error or "The turn failed without a reason"
        if quota.is_refusal_for_now(message):
            return self.judged(self.quota_verdict(message))
        if quota.is_outage(message):
            return self.judged(Verdict("infra_lost", "provider_unavailable", message[:2000]))
        return self.judged(Verdict("task_failed", "turn_failed", message[:2000]))


def _flag(command: tuple[str, ...], *names: str) -> str:
    """The value that a command gives to a flag; empty when it gives none."""
    for here, following in pairwise(command):
        if here in names:
            return following
    return ""
