"""Each source's shape of usage, read as the five token classes; pure. What a figure means differs by source."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from types import MappingProxyType
from typing import Any

from costs import pricing
from pipeline.refusals import InvalidField, MissingField

MOST_TOKENS = 10**15
MOST_DOCUMENTS = 10_000
KEY_LENGTH = 200

# What is not known of a use, and is said with it.
ASSUMED_TTL = "assumed_ttl"  # a cache write without its lifetime: 5 minutes, or 1 hour on a subscription
CACHE_UNKNOWN = "cache_unknown"  # the source does not part cached input from fresh: all of it is booked as fresh
OUTPUT_UNKNOWN = "output_unknown"  # the figure for output is a placeholder of the stream
SUBAGENTS_UNKNOWN = "subagents_unknown"  # the source leaves out what subagents used
INFLATED = "inflated"  # the tool's version is known to count a streamed answer more than once

Document = Mapping[str, Any]


@dataclass(frozen=True)
class Use:
    """The tokens of one model, in the five classes; output includes `reasoning`, which is told beside it.

    `reported` is what the source says that it cost, in USD. `key` is the provider's id of the request, or what else
    tells this use from every other; empty where the source has nothing of the kind. `is_request` is False when many
    requests were added up. `flags` say what is not known.
    """

    tokens: Mapping[str, int]
    provider: str = ""
    model: str = ""
    reasoning: int = 0
    web_searches: int = 0
    reported: Decimal | None = None
    key: str = ""
    session: str = ""
    is_request: bool = True
    flags: frozenset[str] = frozenset()

    @property
    def assumed_ttl(self) -> bool:
        """Whether the lifetime of its cache writes is our assumption."""
        return ASSUMED_TTL in self.flags


@dataclass(frozen=True)
class Reading:
    """What a document says: its uses, what it says they cost together in USD, and how it is known to be misread.

    `misread` has, by the label of the mistake (costs.truth), the uses that a reader gets who makes it.
    """

    shape: str
    uses: tuple[Use, ...]
    reported: Decimal | None = None
    misread: Mapping[str, tuple[Use, ...]] = field(default_factory=dict)


def read(document: Any, *, shape: str = "", provider: str = "", model: str = "", subscription: bool = False) -> Reading:
    """The reading of one document, as the named shape of SHAPES, or as the only one that it can be.

    `provider` and `model` are used where the document names none. On a `subscription`, a cache write without a
    lifetime is booked as one of 1 hour. Raises InvalidField for an unknown shape, a count that is not a whole number
    from 0 to 10^15, a cost that is not a finite number of at least 0, and parts that exceed their total.
    """
    document = _object("usage", document)
    if shape and shape not in SHAPES:
        raise InvalidField("shape", f"one of {', '.join(SHAPES)}, not “{shape[:80]}”")
    return SHAPES[shape or recognise(document)](document, _Given(provider, model, subscription))


def recognise(document: Any) -> str:
    """The name of the shape of a usage document, by the fields that only it has.

    Raises InvalidField when it has those of no shape, or of several.
    """
    document = _object("usage", document)
    usage = document.get("usage")
    fields = set(document) | (set(usage) if isinstance(usage, Mapping) else set())
    found = [
        shape
        for shape, marks in _MARKS.items()
        if any(mark <= fields for mark in marks) and not fields & _FOREIGN.get(shape, frozenset())
    ]
    if len(found) != 1:
        which = f"it could be {' or '.join(found)}" if found else "no known shape has its fields"
        named = ", ".join(sorted(map(str, fields))[:10])[:200]
        raise InvalidField("usage", f"{which} ({named}); name its shape, one of {', '.join(SHAPES)}")
    return found[0]


# -- the shapes ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Given:
    """What whoever sends a document knows beside it."""

    provider: str
    model: str
    subscription: bool


def anthropic(document: Document, given: _Given) -> Reading:
    """A message of Anthropic's API, or its `usage`: input_tokens is the fresh input, without the caches."""
    usage = _usage_of(document)
    _needs(usage, "input_tokens", "output_tokens")
    tokens, flags = _anthropic_tokens(
        usage, "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens", given
    )
    searches = _count(_part(usage, "server_tool_use"), "web_search_requests")
    use = _use(document, given, "anthropic", tokens, web_searches=searches, key=_text(document, "id"), flags=flags)
    return Reading("anthropic", (use,))


def _anthropic_tokens(
    usage: Document, fresh: str, read_name: str, written: str, output: str, given: _Given
) -> tuple[dict[str, int], frozenset[str]]:
    """The five counts where input is told without the caches, and the flag for a write without a lifetime."""
    writes = _count(usage, written)
    split = _part(usage, "cache_creation")
    short, long = _count(split, "ephemeral_5m_input_tokens"), _count(split, "ephemeral_1h_input_tokens")
    if split and written in usage and short + long != writes:
        raise InvalidField("usage.cache_creation", f"its lifetimes add up to {short + long}, not to {writes}")
    flags: frozenset[str] = frozenset()
    if not split and writes:
        short, long = (0, writes) if given.subscription else (writes, 0)
        flags = frozenset({ASSUMED_TTL})
    return _tokens(_count(usage, fresh), _count(usage, read_name), short, long, _count(usage, output)), flags


def openai_chat(document: Document, given: _Given) -> Reading:
    """A chat completion of OpenAI's API, or its `usage`: prompt_tokens is the total, cached_tokens a part of it."""
    usage = _usage_of(document)
    _needs(usage, "prompt_tokens", "completion_tokens")
    details = _part(usage, "prompt_tokens_details")
    return _of_total(
        "openai_chat",
        document,
        given,
        total=_count(usage, "prompt_tokens"),
        cached=_count(details, "cached_tokens"),
        written=_count(details, "cache_write_tokens"),
        output=_count(usage, "completion_tokens"),
        reasoning=_count(_part(usage, "completion_tokens_details"), "reasoning_tokens"),
    )


def openai_responses(document: Document, given: _Given) -> Reading:
    """A response of OpenAI's Responses API, or its `usage`: input_tokens is the total, cached_tokens a part of it."""
    usage = _usage_of(document)
    _needs(usage, "input_tokens", "output_tokens")
    details = _part(usage, "input_tokens_details")
    return _of_total(
        "openai_responses",
        document,
        given,
        total=_count(usage, "input_tokens"),
        cached=_count(details, "cached_tokens"),
        written=_count(details, "cache_write_tokens"),
        output=_count(usage, "output_tokens"),
        reasoning=_count(_part(usage, "output_tokens_details"), "reasoning_tokens"),
    )


def _of_total(
    shape: str,
    document: Document,
    given: _Given,
    *,
    total: int,
    cached: int,
    written: int,
    output: int,
    reasoning: int,
) -> Reading:
    """OpenAI's reading: the caches are parts of the input, reasoning is a part of the output. Its writes live 5 min."""
    fresh = _rest("input", total, cached, written)
    _rest("output", output, reasoning)
    tokens = _tokens(fresh, cached, written, 0, output)
    return Reading(shape, (_use(document, given, "openai", tokens, reasoning=reasoning, key=_text(document, "id")),))


def google(document: Document, given: _Given) -> Reading:
    """A GenerateContentResponse, or its `usageMetadata`: thoughts and tool prompts stand beside the two counts."""
    usage = _part(document, "usageMetadata") or document
    _needs(usage, "promptTokenCount")
    cached = _count(usage, "cachedContentTokenCount")
    fresh = _rest("promptTokenCount", _count(usage, "promptTokenCount"), cached)
    thoughts, candidates = _count(usage, "thoughtsTokenCount"), _count(usage, "candidatesTokenCount")
    tokens = _tokens(fresh + _count(usage, "toolUsePromptTokenCount"), cached, 0, 0, candidates + thoughts)
    use = _use(
        {"model": document.get("modelVersion"), **document},
        given,
        "google",
        tokens,
        reasoning=thoughts,
        key=_text(document, "responseId"),
    )
    return Reading("google", (use,))


def litellm(document: Document, given: _Given) -> Reading:
    """LiteLLM's `usage`, a response with it, or a line of its log: prompt_tokens includes reads and creations.

    The cached counts stand in two places; they are one figure (BerriAI/litellm#26919).
    """
    usage = _usage_of(document)
    _needs(usage, "prompt_tokens", "completion_tokens")
    details = _part(usage, "prompt_tokens_details")
    cached = max(_count(usage, "cache_read_input_tokens"), _count(details, "cached_tokens"))
    written = max(_count(usage, "cache_creation_input_tokens"), _count(details, "cache_creation_tokens"))
    fresh = _rest("prompt_tokens", _count(usage, "prompt_tokens"), cached, written)
    short, long = (0, written) if given.subscription else (written, 0)
    cost = document.get("response_cost", _part(document, "_hidden_params").get("response_cost"))
    use = _use(
        document,
        given,
        "",
        _tokens(fresh, cached, short, long, _count(usage, "completion_tokens")),
        reasoning=_count(_part(usage, "completion_tokens_details"), "reasoning_tokens"),
        reported=_money("response_cost", cost),
        key=_text(document, "id"),
        flags=frozenset({ASSUMED_TTL}) if written else frozenset(),
    )
    return Reading("litellm", (use,), use.reported)


def codex(document: Document, given: _Given) -> Reading:
    """A TokenUsage of Codex, or a `turn.completed` with it: input_tokens is the total, the caches are parts of it.

    In `codex exec --json` the usage of a turn is that of its thread so far: for a thread of several turns,
    see `codex_thread`.
    """
    return Reading("codex", (_codex_use(_usage_of(document), document, given),))


def _codex_use(usage: Document, document: Document, given: _Given) -> Use:
    _needs(usage, "input_tokens", "output_tokens")
    cached, written = _count(usage, "cached_input_tokens"), _count(usage, "cache_write_input_tokens")
    output, reasoning = _count(usage, "output_tokens"), _count(usage, "reasoning_output_tokens")
    fresh = _rest("input_tokens", _count(usage, "input_tokens"), cached, written)
    _rest("output_tokens", output, reasoning)
    tokens = _tokens(fresh, cached, written, 0, output)
    return _use(document, given, "openai", tokens, reasoning=reasoning, is_request=False)


def codex_thread(
    events: Iterable[Any], *, model: str = "", provider: str = "", before: Document | None = None
) -> Reading:
    """The use of one `codex exec --json`, from its JSONL events or from the counts of a rollout.

    A turn's usage counts from the start of the thread, so the last one holds, less the usage `before` when a thread
    was resumed. A turn that failed tells no usage. Raises InvalidField as `read` does.
    """
    given = _Given(provider, model, False)
    thread, counted = "", []
    for event in _many(events):
        if event.get("type") == "thread.started":
            thread = _text(event, "thread_id")
        totals = _codex_totals(event)
        if totals is not None:
            counted.append(_codex_use(totals, {}, given))
    if not counted:
        return Reading("codex", ())
    last = counted[-1]
    misread = {"cumulative_summed": tuple(counted)} if len(counted) > 1 else {}
    if before is not None:
        misread["earlier_turns_included"] = (last,)
        last = _less(last, _codex_use(before, {}, given))
    last = replace(last, session=thread, key=thread and f"{thread}:{sum(last.tokens.values())}"[:KEY_LENGTH])
    return Reading("codex", (last,), misread=misread)


def _codex_totals(event: Document) -> Document | None:
    """The cumulative usage that an event of `exec --json`, a rollout, or the app server carries; None for the rest."""
    if event.get("type") == "turn.completed":
        return _part(event, "usage")
    payload = _part(event, "payload")
    if payload.get("type") == "token_count":
        return _part(_part(payload, "info"), "total_token_usage") or None
    if event.get("method") == "thread/tokenUsage/updated":
        total = _part(_part(_part(event, "params"), "tokenUsage"), "total")
        return {_SNAKE.get(name, name): count for name, count in total.items()} or None
    return None


_SNAKE = {
    "inputTokens": "input_tokens",
    "cachedInputTokens": "cached_input_tokens",
    "cacheWriteInputTokens": "cache_write_input_tokens",
    "outputTokens": "output_tokens",
    "reasoningOutputTokens": "reasoning_output_tokens",
    "totalTokens": "total_tokens",
}


def _less(use: Use, before: Use) -> Use:
    """What was used since `before`. Raises InvalidField when less has been used by now."""
    tokens = {name: use.tokens[name] - before.tokens[name] for name in pricing.CLASSES}
    if min(tokens.values()) < 0:
        raise InvalidField("before", "more than the thread has used by now: the usage of another thread")
    return replace(use, tokens=tokens, reasoning=max(use.reasoning - before.reasoning, 0))


def aider(document: Document, given: _Given) -> Reading:
    """A `message_send` of Aider's analytics log, or its properties: prompt_tokens is the total.

    Its `cost` counts cached tokens twice (Aider-AI/aider#5516), and `total_cost` is that of the session so far.
    """
    properties = _part(document, "properties") or document
    _needs(properties, "prompt_tokens", "completion_tokens")
    cached = _count(properties, "cache_read_input_tokens") or _count(properties, "cached_tokens")
    written = _count(properties, "cache_creation_input_tokens")
    fresh = _rest("prompt_tokens", _count(properties, "prompt_tokens"), cached, written)
    flags = set()
    if not cached and not written:
        flags.add(CACHE_UNKNOWN)
    if written:
        flags.add(ASSUMED_TTL)
    short, long = (0, written) if given.subscription else (written, 0)
    use = _use(
        {"model": properties.get("main_model")},
        given,
        "",
        _tokens(fresh, cached, short, long, _count(properties, "completion_tokens")),
        reported=_money("cost", properties.get("cost")),
        flags=frozenset(flags),
    )
    return Reading("aider", (use,), use.reported)


def claude_result(document: Document, given: _Given) -> Reading:
    """The result of one `claude -p`: modelUsage by model, since `usage` leaves out subagents and the last response."""
    session, number = _text(document, "session_id"), _text(document, "uuid")
    uses = []
    for name, row in sorted(_part(document, "modelUsage").items()):
        usage = _object(f"modelUsage.{name}", row)
        _needs(usage, "inputTokens", "outputTokens")
        tokens, flags = _anthropic_tokens(
            usage, "inputTokens", "cacheReadInputTokens", "cacheCreationInputTokens", "outputTokens", given
        )
        used = Use(
            tokens=tokens,
            provider=_text(usage, "provider") or given.provider or "anthropic",
            model=(_text(usage, "canonicalModel") or str(name))[:100],
            web_searches=_count(usage, "webSearchRequests"),
            reported=_money(f"modelUsage.{name}.costUSD", usage.get("costUSD")),
            key=f"{session}:{number}:{name}"[:KEY_LENGTH] if session and number else "",
            session=session,
            is_request=False,
            flags=flags,
        )
        uses.append(used)
    alone = _part(document, "usage")
    main: tuple[Use, ...] = ()
    if alone:
        tokens, flags = _anthropic_tokens(
            alone, "input_tokens", "cache_read_input_tokens", "cache_creation_input_tokens", "output_tokens", given
        )
        busiest = max(uses, key=lambda use: use.reported or Decimal(0), default=Use(tokens))
        main = (
            Use(
                tokens=tokens,
                provider=busiest.provider or given.provider or "anthropic",
                model=busiest.model or given.model,
                web_searches=_count(_part(alone, "server_tool_use"), "web_search_requests"),
                key=f"{session}:{number}"[:KEY_LENGTH] if session and number else "",
                session=session,
                is_request=False,
                flags=flags | {SUBAGENTS_UNKNOWN},
            ),
        )
    if not uses and not main:
        raise MissingField("modelUsage")
    stated = _money("total_cost_usd", document.get("total_cost_usd"))
    label = "last_response_left_out" if document.get("subtype") == "error_max_budget_usd" else "subagents_left_out"
    return Reading("claude_result", tuple(uses) or main, stated, {label: main} if uses and main else {})


def claude_stream(messages: Iterable[Any], *, model: str = "", subscription: bool = False) -> Reading:
    """The use of one `claude -p --output-format stream-json`, from its messages.

    Its results hold: of each session the latest, since they count on within a call, and one more where the count began
    anew. Where no result tells a cost (the process crashed), the usage of its assistant messages by message id, since
    the messages of parallel tool calls repeat it; the output of a step is a placeholder, and flagged.
    """
    given = _Given("", model, subscription)
    known = list(_many(messages))
    results = [one for one in known if one.get("type") == "result"]
    readings = [claude_result(one, given) for one in results if one.get("modelUsage") or one.get("usage")]
    told = [one for one in readings if one.reported or any(sum(use.tokens.values()) for use in one.uses)]
    if told:
        kept = _latest(told)
        uses = tuple(use for one in kept for use in one.uses)
        reported = [one.reported for one in kept if one.reported is not None]
        labels = {label for one in kept for label in one.misread}
        misread = {
            label: tuple(use for one in kept for use in one.misread.get(label, one.uses)) for label in sorted(labels)
        }
        if len(told) > len(kept):
            misread["cumulative_summed"] = tuple(use for one in told for use in one.uses)
        return Reading("claude_stream", uses, sum(reported, Decimal(0)) if reported else None, misread)
    return _of_steps(known, given)


def _latest(readings: Sequence[Reading]) -> list[Reading]:
    """The last reading of each session, and the last before its count began anew."""
    kept: list[Reading] = []
    open_at: dict[str, int] = {}
    for reading in readings:
        session = reading.uses[0].session
        before = open_at.get(session)
        if before is not None and (reading.reported or 0) >= (kept[before].reported or 0):
            kept[before] = reading
        else:
            open_at[session] = len(kept)
            kept.append(reading)
    return kept


def _of_steps(messages: Sequence[Document], given: _Given) -> Reading:
    steps = []
    for one in messages:
        message = _part(one, "message")
        if one.get("type") == "assistant" and message.get("usage"):
            use = anthropic(message, given).uses[0]
            session = _text(one, "session_id")
            steps.append(replace(use, session=session, flags=use.flags | {OUTPUT_UNKNOWN}))
    once = {use.key or f"#{number}": use for number, use in enumerate(steps)}
    misread = {"repeated_messages": tuple(steps)} if len(once) < len(steps) else {}
    return Reading("claude_stream", tuple(once.values()), misread=misread)


def claude_api_request(document: Document, given: _Given) -> Reading:
    """The attributes of the log event claude_code.api_request: input_tokens is the fresh input only."""
    _needs(document, "input_tokens", "output_tokens")
    tokens, flags = _anthropic_tokens(
        document, "input_tokens", "cache_read_tokens", "cache_creation_tokens", "output_tokens", given
    )
    micros = document.get("cost_usd_micros")
    reported = (
        _money("cost_usd", document.get("cost_usd"))
        if micros is None
        else pricing.quantise(Decimal(_count(document, "cost_usd_micros")) / pricing.MILLION)
    )
    session = _text(document, "session.id")
    key = _text(document, "request_id") or _numbered(session, document)
    use = _use(document, given, "anthropic", tokens, reported=reported, key=key, session=session, flags=flags)
    return Reading("claude_api_request", (use,), use.reported)


def _numbered(session: str, document: Document) -> str:
    """Session, prompt and number, which tell one event of a tool's log from the others; empty when one is missing."""
    parts = (session, _text(document, "prompt.id"), str(document.get("event.sequence", "")))
    return ":".join(parts)[:KEY_LENGTH] if all(parts) else ""


def claude_requests(events: Iterable[Any], *, subscription: bool = False) -> Reading:
    """The uses of the api_request events of one session, each request once: the frames of a streamed answer repeat
    its id, and the last of them is complete.
    """
    read_all = [claude_api_request(event, _Given("", "", subscription)).uses[0] for event in _many(events)]
    once = {use.key or f"#{number}": use for number, use in enumerate(read_all)}
    stated = [use.reported for use in once.values() if use.reported is not None]
    misread = {"repeated_frames": tuple(read_all)} if len(once) < len(read_all) else {}
    return Reading("claude_api_request", tuple(once.values()), sum(stated, Decimal(0)) if stated else None, misread)


CLAUDE_METRIC_TYPES = {
    "input": "uncached_input",
    "output": "output",
    "cacheRead": "cache_read",
    "cacheCreation": "cache_write_5m",
}
"""The `type` of a point of claude_code.token.usage, and its class; a write of a subscription lives for 1 hour."""


def claude_metric(document: Document, given: _Given) -> Reading:
    """Points of claude_code.token.usage and .cost.usage that differ in nothing but `type`: `tokens` by type, `cost`."""
    counts = _part(document, "tokens")
    for name in counts:
        if name not in CLAUDE_METRIC_TYPES:
            raise InvalidField("type", f"one of {', '.join(CLAUDE_METRIC_TYPES)}, not “{str(name)[:40]}”")
    written = _count(counts, "cacheCreation")
    short, long = (0, written) if given.subscription else (written, 0)
    tokens = _tokens(_count(counts, "input"), _count(counts, "cacheRead"), short, long, _count(counts, "output"))
    use = _use(
        document,
        given,
        "anthropic",
        tokens,
        reported=_money("cost", document.get("cost")),
        session=_text(document, "session.id"),
        is_request=False,
        flags=frozenset({ASSUMED_TTL}) if written else frozenset(),
    )
    return Reading("claude_metric", (use,), use.reported)


def codex_log(document: Document, given: _Given) -> Reading:
    """The attributes of the log event codex.sse_event with event.kind response.completed: input is the total.

    `tool_token_count` is the total of the request, and counts nothing.
    """
    _needs(document, "input_token_count", "output_token_count")
    cached, output = _count(document, "cached_token_count"), _count(document, "output_token_count")
    reasoning = _count(document, "reasoning_token_count")
    fresh = _rest("input_token_count", _count(document, "input_token_count"), cached)
    _rest("output_token_count", output, reasoning)
    session, at = _text(document, "conversation.id"), _text(document, "event.timestamp")
    use = _use(
        document,
        given,
        "openai",
        _tokens(fresh, cached, 0, 0, output),
        reasoning=reasoning,
        key=f"{session}:{at}"[:KEY_LENGTH] if session and at else "",
        session=session,
    )
    return Reading("codex_log", (use,))


_GENAI_COUNTS = (
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.output_tokens",
    "gen_ai.usage.prompt_tokens",
    "gen_ai.usage.completion_tokens",
)


def genai(document: Document, given: _Given) -> Reading:
    """The gen_ai.usage.* attributes of OTel's conventions: input_tokens includes the caches, output the reasoning."""
    if not any(document.get(name) is not None for name in _GENAI_COUNTS):
        raise MissingField("gen_ai.usage.input_tokens")
    total = _count(document, "gen_ai.usage.input_tokens") or _count(document, "gen_ai.usage.prompt_tokens")
    output = _count(document, "gen_ai.usage.output_tokens") or _count(document, "gen_ai.usage.completion_tokens")
    cached = _count(document, "gen_ai.usage.cache_read.input_tokens")
    written = _count(document, "gen_ai.usage.cache_creation.input_tokens")
    reasoning = _count(document, "gen_ai.usage.reasoning.output_tokens")
    fresh = _rest("gen_ai.usage.input_tokens", total, cached, written)
    _rest("gen_ai.usage.output_tokens", output, reasoning)
    short, long = (0, written) if given.subscription else (written, 0)
    named = _text(document, "gen_ai.response.model") or _text(document, "gen_ai.request.model")
    provider = _text(document, "gen_ai.provider.name") or _text(document, "gen_ai.system")
    use = _use(
        {"model": named},
        replace(given, provider=provider or given.provider),
        "",
        _tokens(fresh, cached, short, long, output),
        reasoning=reasoning,
        key=_text(document, "gen_ai.response.id"),
        session=_text(document, "gen_ai.conversation.id"),
        flags=frozenset({ASSUMED_TTL}) if written else frozenset(),
    )
    return Reading("genai", (use,))


def langfuse(document: Document, given: _Given) -> Reading:
    """Langfuse's `usage_details`: each key is priced apart, so input is the fresh input only."""
    usage = _part(document, "usage_details") or document
    _needs(usage, "input", "output")
    tokens, flags = _anthropic_tokens(
        usage, "input", "cache_read_input_tokens", "cache_creation_input_tokens", "output", given
    )
    return Reading("langfuse", (_use(document, given, "", tokens, key=_text(document, "id"), flags=flags),))


SHAPES: Mapping[str, Callable[[Document, _Given], Reading]] = MappingProxyType(
    {
        "anthropic": anthropic,
        "openai_chat": openai_chat,
        "openai_responses": openai_responses,
        "google": google,
        "litellm": litellm,
        "codex": codex,
        "aider": aider,
        "claude_result": claude_result,
        "claude_api_request": claude_api_request,
        "claude_metric": claude_metric,
        "codex_log": codex_log,
        "genai": genai,
        "langfuse": langfuse,
    }
)
"""Every shape of one document, by the name that a sender may give."""

# A document is of a shape when it has all fields of one of its marks and none that is foreign to it.
_MARKS: Mapping[str, tuple[frozenset[str], ...]] = {
    "anthropic": (
        frozenset({"input_tokens", "output_tokens", "cache_read_input_tokens"}),
        frozenset({"input_tokens", "output_tokens", "cache_creation_input_tokens"}),
        frozenset({"input_tokens", "output_tokens", "cache_creation"}),
    ),
    "openai_chat": (frozenset({"prompt_tokens", "completion_tokens"}),),
    "openai_responses": (frozenset({"input_tokens", "output_tokens", "input_tokens_details"}),),
    "google": (frozenset({"usageMetadata"}), frozenset({"promptTokenCount"})),
    "litellm": (
        frozenset({"prompt_tokens", "completion_tokens", "cache_read_input_tokens"}),
        frozenset({"prompt_tokens", "completion_tokens", "cache_creation_input_tokens"}),
        frozenset({"prompt_tokens", "completion_tokens", "response_cost"}),
        frozenset({"prompt_tokens", "completion_tokens", "_hidden_params"}),
    ),
    "codex": (frozenset({"input_tokens", "output_tokens", "cached_input_tokens"}),),
    "aider": (frozenset({"properties", "event"}), frozenset({"main_model", "prompt_tokens", "completion_tokens"})),
    "claude_result": (frozenset({"modelUsage"}), frozenset({"total_cost_usd", "usage"})),
    "claude_api_request": (frozenset({"input_tokens", "output_tokens", "cache_creation_tokens"}),),
    "codex_log": (frozenset({"input_token_count", "output_token_count"}),),
    "genai": (
        frozenset({"gen_ai.usage.input_tokens"}),
        frozenset({"gen_ai.usage.output_tokens"}),
        frozenset({"gen_ai.usage.prompt_tokens"}),
    ),
    "langfuse": (frozenset({"usage_details"}),),
}
_FOREIGN: Mapping[str, frozenset[str]] = {
    "anthropic": frozenset({"modelUsage", "total_cost_usd"}),
    "openai_chat": frozenset(
        {"cache_read_input_tokens", "cache_creation_input_tokens", "response_cost", "_hidden_params", "main_model"}
    ),
    "litellm": frozenset({"main_model"}),
}


# -- reading figures -----------------------------------------------------------------------------------------------


def _tokens(fresh: int, cache_read: int, short: int, long: int, output: int) -> dict[str, int]:
    return dict(zip(pricing.CLASSES, (fresh, cache_read, short, long, output), strict=True))


def _use(document: Document, given: _Given, usual: str, tokens: dict[str, int], **facts: Any) -> Use:
    """A use whose model is the document's, else the given one; `vendor/model` names both."""
    model = _text(document, "model") or given.model
    provider = given.provider or usual
    if not provider and "/" in model:
        provider, model = model.split("/", 1)
    return Use(tokens=tokens, provider=provider[:64], model=model[:100], **facts)


def _object(name: str, value: Any) -> Document:
    if not isinstance(value, Mapping):
        raise InvalidField(name, "a JSON object")
    return value


def _many(documents: Iterable[Any]) -> Iterable[Document]:
    for number, document in enumerate(documents):
        if number >= MOST_DOCUMENTS:
            raise InvalidField("usage", f"at most {MOST_DOCUMENTS} documents at once")
        yield _object(f"usage[{number}]", document)


def _part(document: Document, name: str) -> Document:
    """The object of that name, empty when it is absent."""
    value = document.get(name)
    return {} if value is None else _object(f"usage.{name}", value)


def _usage_of(document: Document) -> Document:
    """A response's `usage`, or the document itself when it is one."""
    return _part(document, "usage") or document


def _needs(usage: Document, *names: str) -> None:
    for name in names:
        if usage.get(name) is None:
            raise MissingField(f"usage.{name}")


def _count(usage: Document, name: str) -> int:
    """A count of tokens, 0 when it is absent. Raises InvalidField for anything but a whole number from 0 to 10^15."""
    value = usage.get(name)
    if value is None:
        return 0
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MOST_TOKENS:
        raise InvalidField(f"usage.{name}", f"a whole number from 0 to {MOST_TOKENS}, not {repr(value)[:40]}")
    return value


def _rest(name: str, total: int, *parts: int) -> int:
    """What of `total` is in none of its parts. Raises InvalidField when they exceed it: a class is never negative."""
    rest = total - sum(parts)
    if rest < 0:
        raise InvalidField(f"usage.{name}", f"{total} in all, but {sum(parts)} in its parts; which shape is it?")
    return rest


def _money(name: str, value: Any) -> Decimal | None:
    """USD to six places; None when absent. Raises InvalidField as pricing.figure does, and for text."""
    if isinstance(value, str | bool):
        raise InvalidField(f"usage.{name}", f"a number, not {repr(value)[:40]}", code="amount_not_finite")
    return pricing.figure(f"usage.{name}", value)


def _text(document: Document, name: str) -> str:
    """A text of at most 200 characters without NUL; empty when absent. Raises InvalidField for what is no text."""
    value = document.get(name)
    if value is None:
        return ""
    if not isinstance(value, str) or "\0" in value:
        raise InvalidField(f"usage.{name}", f"a text, not {repr(value)[:40]}")
    return value[:KEY_LENGTH]
