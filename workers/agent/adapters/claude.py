"""Claude Code without a terminal: `claude -p`, read as stream-json, paid for by the reservation."""

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from workers.agent import quota
from workers.agent.adapters import Invocation, Result, Signal, Verdict
from workers.agent.adapters.streaming import Streaming
from workers.agent.claim import InvalidRequest
from workers.agent.lines import items_of, part_of, text_in, whole, word_in
from workers.agent.tokens import Tokens, usage_item

MOST_MODELS = 50
MOST_MESSAGES = 20_000

_PERMISSION_FLAGS = frozenset({"--permission-mode", "--dangerously-skip-permissions", "--permission-prompt-tool"})
_FAILURES = {
    "error_max_turns": "max_turns",
    "error_during_execution": "execution_error",
    "error_max_structured_output_retries": "structured_output",
}
_ASKING_TOOLS = frozenset({"AskUserQuestion", "ExitPlanMode"})


class Claude(Streaming):
    """Drives `claude -p`: session id ours, finished by its `result` line, its own brake set to the reservation.

    The command of the tool comes first and may bring its own flags; without a word on permissions, edits are accepted,
    since the checkout is thrown away. Facts: CLI reference and Agent SDK pages of Claude Code, 2.1.
    """

    name: ClassVar[str] = "claude"

    def prepare(self, directory: Path, scratch: Path) -> Invocation:
        """The command with our flags, and the prompt on stdin. Raises InvalidRequest when there is no command."""
        request = self.claim.request
        if not request.command or not request.command[0]:
            raise InvalidRequest("command is empty")
        self.session_ref = str(uuid.uuid4())
        self._result: dict[str, Any] | None = None
        self._messages: dict[str, tuple[str, Tokens]] = {}
        self._has_key = "ANTHROPIC_API_KEY" in request.env_allow
        argv = [*request.command, "-p", "--output-format", "stream-json", "--verbose", "--session-id", self.session_ref]
        if request.model:
            argv += ["--model", request.model]
        allowance = self.claim.allowance
        if allowance is not None and allowance.currency == "USD":
            argv += ["--max-budget-usd", f"{allowance.amount:f}"]
        if not _PERMISSION_FLAGS & set(request.command):
            argv += ["--permission-mode", "acceptEdits"]
        return Invocation(argv=tuple(argv), stdin=self.claim.prompt.encode("utf-8", "replace"))

    # --- the stream ---

    def read(self, document: dict[str, Any]) -> Iterable[Signal]:
        """What a line of the stream says."""
        kind = document.get("type")
        if kind == "system":
            yield from self._read_system(document)
        elif kind == "assistant":
            yield from self._read_assistant(document)
        elif kind == "user":
            for block in items_of(part_of(document, "message"), "content"):
                if block.get("type") == "tool_result":
                    yield from self.closed(text_in(block, "tool_use_id"))
        elif kind == "rate_limit_event":
            told = part_of(document, "rate_limit_info")
            if told.get("status") == "rejected" and told.get("isUsingOverage") is not True:
                yield self.waits_for_quota(quota.moment(told.get("resetsAt")))
        elif kind == "result":
            self._result = document
            self.session_ref = word_in(document, "session_id") or self.session_ref
            errors = document.get("errors")
            self.tell("\n".join([text_in(document, "result"), *(map(str, errors) if isinstance(errors, list) else ())]))
            yield Signal("finished")

    def _read_system(self, document: dict[str, Any]) -> Iterator[Signal]:
        subtype = document.get("subtype")
        if subtype == "init":
            yield Signal("started", activity="waiting_model")
        elif subtype == "api_retry":
            if document.get("error_status") == 429 or text_in(document, "error") == "rate_limit":
                yield self.waits_for_quota()
            else:
                yield Signal("retry", activity="waiting_model")

    def _read_assistant(self, document: dict[str, Any]) -> Iterator[Signal]:
        message = part_of(document, "message")
        self._count(message)
        calls = False
        for block in items_of(message, "content"):
            if block.get("type") == "text":
                self.tell(text_in(block, "text"))
            elif block.get("type") == "tool_use":
                calls = True
                yield from self.opened(text_in(block, "id"), text_in(block, "name") or "tool")
        if not calls:
            yield Signal("progress", activity="in_tool" if self._open_calls else "waiting_model")

    def _count(self, message: dict[str, Any]) -> None:
        """Keeps what a message read, for a run that ends without a result; messages that say the same repeat its id."""
        told, key = part_of(message, "usage"), text_in(message, "id")
        if not told or not key or (key not in self._messages and len(self._messages) >= MOST_MESSAGES):
            return
        self._messages[key] = (
            text_in(message, "model"),
            self._tokens(told, "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", ""),
        )

    def _tokens(self, told: dict[str, Any], given: str, read: str, written: str, output: str) -> Tokens:
        """Five classes out of four figures. How long a write is kept is not told: five minutes with an API key, an hour
        by subscription (domain.md §2.5.2).
        """
        write = whole(told.get(written))
        return Tokens(
            uncached_input=whole(told.get(given)),
            cache_read=whole(told.get(read)),
            cache_write_5m=write if self._has_key else 0,
            cache_write_1h=0 if self._has_key else write,
            output=whole(told.get(output)) if output else 0,
        )

    # --- the end ---

    def usage(self) -> list[dict[str, Any]]:
        """One item a model, sub-agents included, with the cost that the tool states beside.

        Without a result: what the messages read; how much they wrote is not in the stream, and said so.
        """
        lease = self.claim.lease.id
        items = []
        if self._result is not None:
            for model, told in list(part_of(self._result, "modelUsage").items())[:MOST_MODELS]:
                if not isinstance(told, dict):
                    continue
                tokens = self._tokens(
                    told, "inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "outputTokens"
                )
                item = usage_item(lease, self.name, model, "anthropic", tokens, assumed_ttl=_writes(tokens))
                stated = told.get("costUSD")
                if isinstance(stated, int | float) and not isinstance(stated, bool) and 0 <= stated < 10**9:
                    item["stated_amount"] = f"{stated:.6f}"
                items.append(item)
            return items
        sums: dict[str, Tokens] = {}
        for model, tokens in self._messages.values():
            if model in sums or len(sums) < MOST_MODELS:
                sums[model] = sums.get(model, Tokens()) + tokens
        for model, tokens in sums.items():
            items.append(usage_item(lease, self.name, model, "anthropic", tokens, assumed_ttl=_writes(tokens)))
        if items:
            self.complaints.append("the tool ended without a result: what its model wrote is not counted")
        return items

    def collect(self) -> Result:
        """By the `result` line, whatever the exit code; `is_error` outweighs `subtype`."""
        result = self._result
        if result is None:
            if self._until or self._waits_since is not None:
                return self.judged(self.quota_verdict("it ended while it waited for its provider"))
            return self.gone()
        asked = self._asked(result)
        if asked is not None:
            return self.judged(asked)
        subtype = text_in(result, "subtype")
        if subtype == "success" and result.get("is_error") is not True:
            return self.ending(success=True, outcome="success", unchanged=self._denied(result))
        return self.judged(self._failed(result, subtype))

    def _asked(self, result: dict[str, Any]) -> Verdict | None:
        """The question that it wants answered, if it stopped to ask one."""
        call = part_of(result, "deferred_tool_use")
        if not call and result.get("is_error") is not True:
            denied = [d for d in items_of(result, "permission_denials") if d.get("tool_name") in _ASKING_TOOLS]
            call = {"name": denied[0].get("tool_name"), "input": denied[0].get("tool_input")} if denied else {}
        if not call:
            return None
        name = text_in(call, "name") or "a tool"
        return Verdict(
            "needs_human",
            "question",
            f"{self.claim.request.tool} asks: {name}",
            question={"tool": name, "input": call.get("input"), "call": text_in(call, "id")},
        )

    def _denied(self, result: dict[str, Any]) -> Verdict | None:
        """What it was not allowed to do, which matters when nothing came of the rest."""
        denials = items_of(result, "permission_denials")
        if not denials:
            return None
        names = sorted({text_in(denial, "tool_name") or "a tool" for denial in denials})[:10]
        return Verdict(
            "needs_human",
            "permission_denied",
            f"{self.claim.request.tool} was not allowed to use {', '.join(names)}, and changed nothing",
            question={"tools": names, "count": len(denials)},
        )

    def _failed(self, result: dict[str, Any], subtype: str) -> Verdict:
        errors = result.get("errors")
        said = [text_in(result, "result"), *(map(str, errors) if isinstance(errors, list) else ())]
        message = "; ".join(filter(None, said))[:2000] or subtype or "no reason given"
        if subtype == "error_max_budget_usd":
            return Verdict("budget_stop", "reservation_spent", f"{self.claim.request.tool} used up what was set aside")
        self._until = self._until or quota.reset_in(message)
        status = result.get("api_error_status")
        if status == 429 or self._waits_since is not None or quota.is_refusal_for_now(message):
            return self.quota_verdict(message)
        if (type(status) is int and status >= 500) or quota.is_outage(message):
            return Verdict("infra_lost", "provider_unavailable", message)
        if status in (401, 403):
            return Verdict("task_failed", "provider_refused", message)
        return Verdict("task_failed", _FAILURES.get(subtype, "tool_error"), message)


def _writes(tokens: Tokens) -> bool:
    return bool(tokens.cache_write_5m or tokens.cache_write_1h)
