"""Which signals tell of money, and which of them counts.

Of one session's money, request events or metrics count, never both, since they tell of the same tokens. Request events
win: each has the provider's request id (so a repeat changes nothing), its own model, and the length of its context,
on which a tier depends; a metric is a sum over a minute without any of that. Metrics count as long as a session has
sent no request event, because a tool may export nothing else; the first event replaces what they had booked.
"""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

from costs import normalise
from costs.normalise import Use
from costs.otlp.signals import NAME_LENGTH, Attributes, Batch, Entry, Point
from pipeline.refusals import InvalidField

EVENTS, METRICS = "events", "metrics"

MOST_NAMES = 200
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The last moment that a datetime can tell, in nanoseconds.
_LAST_NS = 253_402_300_799 * 10**9

CLAUDE_REQUEST = "claude_code.api_request"
CLAUDE_TOKENS, CLAUDE_COST = "claude_code.token.usage", "claude_code.cost.usage"
CODEX_EVENT, CODEX_COMPLETED = "codex.sse_event", "response.completed"
GENAI_EVENT, GENAI_TOKENS = "gen_ai.client.inference.operation.details", "gen_ai.client.token.usage"
TOOLS: Mapping[str, str] = MappingProxyType(
    {
        CLAUDE_REQUEST: "claude", CLAUDE_TOKENS: "claude", CLAUDE_COST: "claude", CODEX_EVENT: "codex",
        GENAI_EVENT: "genai", GENAI_TOKENS: "genai",
    }
)  # fmt: skip
"""The signals that tell of money, and the tool that sends each. All others are accepted, counted, and forgotten."""

# Before this version, the frames of one streamed answer inflated both metrics and events (its release notes).
CLAUDE_COUNTS_RIGHT_FROM = [2, 1, 214]

HOUSE_PREFIX = "signalbox."
HOUSE_IDS = ("lease", "generation", "project", "run", "task", "attempt", "worker")
"""What OTEL_RESOURCE_ATTRIBUTES may say of ours, each behind `signalbox.`."""


@dataclass(frozen=True)
class Mark:
    """How far a cumulative series was counted: its last value, and when (nanoseconds)."""

    value: Decimal
    at_ns: int


@dataclass(frozen=True)
class Sighting:
    """A use that a signal tells of.

    `meter` is its tool and session: of each meter, one of EVENTS and METRICS counts. `key` is the same when the signal
    is sent again. `at` is the tool's time (UTC), None where it gives none. `house` are our ids that came with it.
    """

    tool: str
    meter: str
    signal: str
    key: str
    use: Use
    at: datetime | None
    house: Mapping[str, str]


@dataclass
class Sightings:
    """What a batch tells of money (`seen`), how often each other signal came (`counted`), and what was refused.

    `marks` has the new marks of the cumulative series that were read, by series.
    """

    batch: Batch
    seen: list[Sighting] = field(default_factory=list)
    counted: Counter[str] = field(default_factory=Counter)
    marks: dict[str, Mark] = field(default_factory=dict)

    def count(self, name: str) -> None:
        """One more signal of that name; names beyond the first 200 are counted together."""
        name = name[:NAME_LENGTH] or "unnamed"
        self.counted[name if name in self.counted or len(self.counted) < MOST_NAMES else "others"] += 1


BOOK, COUNT, REPLACE = "book", "count", "replace"


def decide(counts: str, signal: str) -> str:
    """What to do with a sighting of a meter whose money `counts` by EVENTS, METRICS, or (empty) nothing yet.

    BOOK it; only COUNT it, since events tell of the same tokens; or REPLACE: void what the metrics booked for this
    meter, let events count from now on, and book it.
    """
    if counts in ("", signal):
        return BOOK
    return COUNT if counts == EVENTS else REPLACE


def sight_logs(batch: Batch, *, subscription: bool = False) -> Sightings:
    """The uses that log records tell of: Claude Code's and Codex' requests, GenAI's operations with their usage.

    A record that should tell of money and cannot be read is refused in the batch, with its reason. Of records with one
    key the last is kept: a streamed answer's last frame is the complete one.
    """
    told = Sightings(batch)
    by_key: dict[str, Sighting] = {}
    for number, entry in enumerate(batch.signals):
        shape = _shape_of(entry)
        if shape is None:
            told.count(entry.name)
            continue
        try:
            sighting = _of_entry(entry, shape, number, subscription)
        except InvalidField as refusal:
            batch.reject(f"{entry.name}: {refusal}")
            continue
        # Taken out first: the kept one stands where the last one stood.
        by_key.pop(sighting.key, None)
        by_key[sighting.key] = sighting
    told.seen = list(by_key.values())
    return told


def _shape_of(entry: Entry) -> str | None:
    """The shape of the usage in a log record; None for a record that tells of no money."""
    if entry.name == CLAUDE_REQUEST:
        return "claude_api_request"
    if entry.name == CODEX_EVENT and entry.attributes.get("event.kind") == CODEX_COMPLETED:
        return "codex_log"
    if entry.name == GENAI_EVENT and any(name.startswith("gen_ai.usage.") for name in entry.attributes):
        return "genai"
    return None


def _of_entry(entry: Entry, shape: str, number: int, subscription: bool) -> Sighting:
    document = {name: _figure(name, value) for name, value in entry.attributes.items()}
    use = normalise.read(document, shape=shape, subscription=subscription).uses[0]
    tool, house = TOOLS[entry.name], _house(entry)
    key = use.key
    if not key:
        # Without an id of its own a record is told from others by all that it says.
        told = [entry.name, entry.at_ns, entry.trace_id, entry.span_id, entry.resource, entry.attributes]
        key = f"log:{_digest(told)}"
    return Sighting(
        tool,
        _meter(tool, entry, use.session, house),
        EVENTS,
        key,
        _flagged(use, tool, entry),
        _time(entry.at_ns),
        house,
    )


def series(point: Point) -> str:
    """What tells the series of a point from all others, its start included, so that a new start counts from 0."""
    return _digest([point.name, point.scope, point.resource, point.attributes, point.start_ns])


def sight_metrics(batch: Batch, marks: Mapping[str, Mark] | None = None, *, subscription: bool = False) -> Sightings:
    """The uses that metric points tell of: Claude Code's tokens (its cost beside them), GenAI's tokens.

    A cumulative point counts what it has more than the mark of its `series` in `marks`; a point at or before its mark
    counts nothing, since it was counted. Claude Code's points that differ in nothing but their type are one use. A
    cost without tokens is only counted: it is the tool's own estimate of the same tokens.
    """
    told = Sightings(batch)
    groups: dict[str, list[dict[str, tuple[Point, Decimal]]]] = {}
    known = dict(marks or {})
    for point in batch.signals:
        try:
            value = _counts(point, known, told)
        except InvalidField as refusal:
            batch.reject(f"{point.name}: {refusal}")
            continue
        if value is None:
            told.count(point.name)
        elif value:
            _group(groups, point, value)
    for rows in groups.values():
        for parts in rows:
            _sight_group(told, parts, subscription)
    return told


def _counts(point: Point, known: dict[str, Mark], told: Sightings) -> Decimal | None:
    """What the point adds to its series; None for a point that tells of no money."""
    if point.name not in (CLAUDE_TOKENS, CLAUDE_COST, GENAI_TOKENS) or point.value is None:
        return None
    if not point.temporality or not point.is_monotonic:
        return None
    value = Decimal(str(point.value))
    if not value.is_finite() or value < 0 or value > normalise.MOST_TOKENS:
        raise InvalidField("value", f"a finite number of at least 0, not {value}")
    if point.temporality == "delta":
        return value
    key = series(point)
    mark = known.get(key)
    if mark is not None and point.at_ns <= mark.at_ns:
        return Decimal(0)
    known[key] = told.marks[key] = Mark(value, point.at_ns)
    # A sum that fell began anew without saying so.
    return value if mark is None or value < mark.value else value - mark.value


_TYPE = {CLAUDE_TOKENS: "type", GENAI_TOKENS: "gen_ai.token.type"}


def _group(groups: dict[str, list[dict[str, tuple[Point, Decimal]]]], point: Point, value: Decimal) -> None:
    """Put the point beside those that differ from it in nothing but their type, one of each type in a row."""
    mark = _TYPE.get(point.name, "")
    kind = str(point.attributes.get(mark, "")) if mark else "cost"
    rest = {name: given for name, given in point.attributes.items() if name != mark}
    rows = groups.setdefault(_digest([TOOLS[point.name], point.resource, rest]), [])
    for row in rows:
        if kind not in row:
            row[kind] = (point, value)
            return
    rows.append({kind: (point, value)})


def _sight_group(told: Sightings, parts: Mapping[str, tuple[Point, Decimal]], subscription: bool) -> None:
    counted = {kind: part for kind, part in parts.items() if part[0].name != CLAUDE_COST}
    if not counted:
        told.count(CLAUDE_COST)
        return
    first = next(iter(counted.values()))[0]
    tool, house = TOOLS[first.name], _house(first)
    numbers = {kind: _figure("tokens", value) for kind, (_, value) in counted.items()}
    try:
        if tool == "claude":
            cost = parts.get("cost")
            document = {**_texts(first.attributes), "tokens": numbers, "cost": cost and cost[1]}
            use = normalise.read(document, shape="claude_metric", subscription=subscription).uses[0]
        else:
            use = _genai_use(first, numbers)
    except InvalidField as refusal:
        told.batch.reject(f"{first.name}: {refusal}", len(parts))
        return
    at_ns = max(point.at_ns for point, _ in counted.values())
    key = "metric:" + _digest(sorted([series(point), point.at_ns] for point, _ in counted.values()))
    told.seen.append(
        Sighting(
            tool, _meter(tool, first, use.session, house), METRICS, key, _flagged(use, tool, first), _time(at_ns), house
        )
    )


def _genai_use(point: Point, numbers: Mapping[str, Any]) -> Use:
    """A use of GenAI's metric, which has input and output, and does not part cached input from fresh."""
    unknown = set(numbers) - {"input", "output"}
    if unknown:
        raise InvalidField("gen_ai.token.type", f"input or output, not “{min(unknown)[:40]}”")
    document = {**_texts(point.attributes), **{f"gen_ai.usage.{kind}_tokens": n for kind, n in numbers.items()}}
    use = normalise.read(document, shape="genai").uses[0]
    return replace(use, is_request=False, flags=use.flags | {normalise.CACHE_UNKNOWN})


def _texts(attributes: Attributes) -> dict[str, str]:
    return {name: value for name, value in attributes.items() if isinstance(value, str)}


_COUNTS = re.compile(r"(.*_tokens?|.*_token_count|tokens|event\.sequence|cost_usd_micros)")


def _figure(name: str, value: Any) -> Any:
    """A figure of a signal as a number. Tools write counts as texts (Codex) or real numbers, and costs as texts."""
    if name == "cost_usd" and isinstance(value, str):
        try:
            return Decimal(value)
        except InvalidOperation:
            return value
    if not _COUNTS.fullmatch(name):
        return value
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,16}", value):
        return int(value)
    if isinstance(value, float | Decimal):
        number = Decimal(value)
        if number.is_finite() and abs(number) <= 2**53 and number == number.to_integral_value():
            return int(number)
    return value


def _house(signal: Point | Entry) -> dict[str, str]:
    """Our ids, from the resource, else from the signal itself: some tools copy the resource's attributes there."""
    ids = {}
    for name in HOUSE_IDS:
        value = signal.resource.get(HOUSE_PREFIX + name, signal.attributes.get(HOUSE_PREFIX + name))
        if isinstance(value, str | int) and not isinstance(value, bool) and str(value):
            ids[name] = str(value)[:64]
    return ids


def _meter(tool: str, signal: Point | Entry, session: str, house: Mapping[str, str]) -> str:
    """The tool and its session: our lease where we started it, the session's id, or the process that sends.

    GenAI's metrics do not name the conversation, so both of its signals go by the process.
    """
    if "lease" in house:
        return f"{tool}:lease:{house['lease']}"
    if session and tool != "genai":
        return f"{tool}:session:{session}"
    return f"{tool}:process:{_digest(signal.resource)}"


def _flagged(use: Use, tool: str, signal: Point | Entry) -> Use:
    version = signal.attributes.get("app.version") or signal.resource.get("service.version")
    if tool == "claude" and isinstance(version, str):
        numbers = re.match(r"(\d{1,6})\.(\d{1,6})\.(\d{1,6})", version)
        if numbers is not None and [int(number) for number in numbers.groups()] < CLAUDE_COUNTS_RIGHT_FROM:
            return replace(use, flags=use.flags | {normalise.INFLATED})
    return use


def _time(at_ns: int) -> datetime | None:
    return _EPOCH + timedelta(microseconds=at_ns // 1000) if 0 < at_ns <= _LAST_NS else None


def _digest(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:40]
