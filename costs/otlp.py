"""What agent tools send over OTLP/HTTP, read: metric points and log records, and which of them count money; pure.

The format is that of opentelemetry-proto (docs/specification.md, "OTLP/HTTP"), in both of its encodings.

Of one session's money, request events or metrics count, never both, since they tell of the same tokens. Request events
win: each has the provider's request id (so a repeat changes nothing), its own model, and the length of its context,
on which a tier depends; a metric is a sum over a minute without any of that. Metrics count as long as a session has
sent no request event, because a tool may export nothing else; the first event replaces what they had booked.
"""

import hashlib
import json
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from types import MappingProxyType
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from costs import normalise
from costs.normalise import Use
from pipeline.refusals import InvalidField, Refused

JSON, PROTOBUF = "application/json", "application/x-protobuf"
EVENTS, METRICS = "events", "metrics"

MOST_NAMES = 200
NAME_LENGTH = 100
MOST_REASONS = 5
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The last moment that a datetime can tell, in nanoseconds.
_LAST_NS = 253_402_300_799 * 10**9

Attributes = Mapping[str, Any]


class Unreadable(Refused):
    """The body is no OTLP payload; a sender must not repeat it."""

    code = "invalid_otlp"
    status = 400


@dataclass(frozen=True, slots=True)
class Point:
    """One data point of a metric. `value` is the count, the sum of a histogram, or None where it has none.

    `temporality` is delta, cumulative, or empty for what is no sum. Times are nanoseconds since 1970, 0 when unknown.
    """

    name: str
    value: int | float | None
    temporality: str
    is_monotonic: bool
    attributes: Attributes
    resource: Attributes
    scope: str
    start_ns: int
    at_ns: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One log record. `name` is that of the event that it tells of, empty when it tells of none."""

    name: str
    body: Any
    attributes: Attributes
    resource: Attributes
    scope: str
    at_ns: int
    trace_id: str
    span_id: str


@dataclass
class Batch:
    """What a payload holds: points or entries in its order, how many were refused, and the first reasons why."""

    signals: list[Any] = field(default_factory=list)
    rejected: int = 0
    reasons: list[str] = field(default_factory=list)

    def reject(self, why: str, count: int = 1) -> None:
        """Refuse so many signals for this reason."""
        self.rejected += count
        if len(self.reasons) < MOST_REASONS and why not in self.reasons:
            self.reasons.append(why)


# -- bodies --------------------------------------------------------------------------------------------------------


def inflate(body: bytes, encoding: str, most_bytes: int) -> bytes:
    """The body without its Content-Encoding (gzip or none), of at most `most_bytes`.

    Raises Refused `too_large` (413) above that, without inflating the rest, and Unreadable for a broken one.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        plain = body
    elif encoding == "gzip":
        inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
        try:
            plain = inflater.decompress(body, most_bytes + 1)
        except zlib.error:
            raise Unreadable("the body is not gzip") from None
        if len(plain) <= most_bytes and (not inflater.eof or inflater.unused_data):
            raise Unreadable("the gzip body is cut off, or something follows it")
    else:
        raise Refused(
            f"Content-Encoding gzip or none, not “{encoding[:40]}”", code="unsupported_media_type", status=415
        )
    if len(plain) > most_bytes:
        raise Refused(f"The payload is larger than {most_bytes} bytes", code="too_large", status=413)
    return plain


def encoding_of(content_type: str) -> str:
    """JSON or PROTOBUF, by the Content-Type. Raises Refused `unsupported_media_type` (415)."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind not in (JSON, PROTOBUF):
        raise Refused(
            f"Content-Type {PROTOBUF} or {JSON}, not “{kind[:80]}”", code="unsupported_media_type", status=415
        )
    return kind


_TOO_DEEP = "the values of the payload are nested too deep"


def read_metrics(body: bytes, content_type: str) -> Batch:
    """The points of an ExportMetricsServiceRequest, in their order. Raises Unreadable, and Refused (415).

    A point that cannot be read is refused alone. A point without a recorded value is left out.
    """
    if encoding_of(content_type) == PROTOBUF:
        request = ExportMetricsServiceRequest()
        _parse(request, body)
        return _metrics_of_message(request)
    try:
        return _metrics_of_json(_loads(body))
    except RecursionError:
        raise Unreadable(_TOO_DEEP) from None


def read_logs(body: bytes, content_type: str) -> Batch:
    """The log records of an ExportLogsServiceRequest, in their order. Raises Unreadable, and Refused (415)."""
    if encoding_of(content_type) == PROTOBUF:
        request = ExportLogsServiceRequest()
        _parse(request, body)
        return _logs_of_message(request)
    try:
        return _logs_of_json(_loads(body))
    except RecursionError:
        raise Unreadable(_TOO_DEEP) from None


def answer(batch: Batch, content_type: str, *, metrics: bool) -> bytes:
    """The body of the answer 200 in the encoding of the request: empty, or a partial success that says what was
    refused and why.
    """
    why = "; ".join(batch.reasons)
    if encoding_of(content_type) == JSON:
        if not batch.rejected:
            return b"{}"
        counted = "rejectedDataPoints" if metrics else "rejectedLogRecords"
        return json.dumps({"partialSuccess": {counted: str(batch.rejected), "errorMessage": why}}).encode()
    if metrics:
        of_metrics = ExportMetricsServiceResponse()
        if batch.rejected:
            of_metrics.partial_success.rejected_data_points = batch.rejected
            of_metrics.partial_success.error_message = why
        return bytes(of_metrics.SerializeToString())
    of_logs = ExportLogsServiceResponse()
    if batch.rejected:
        of_logs.partial_success.rejected_log_records = batch.rejected
        of_logs.partial_success.error_message = why
    return bytes(of_logs.SerializeToString())


def failure(message: str, content_type: str) -> bytes:
    """The body of an answer 4xx or 5xx in the encoding of the request: a google.rpc.Status with its message."""
    if content_type.partition(";")[0].strip().lower() != PROTOBUF:
        return json.dumps({"message": message}).encode()
    # Status.message is field 2, a text: tag 0x12, its length as a varint, its bytes.
    text = message.encode()
    length, rest = b"", len(text)
    while rest > 0x7F:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return b"\x12" + length + bytes([rest]) + text


# -- protobuf ------------------------------------------------------------------------------------------------------


def _parse(request: Any, body: bytes) -> None:
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise Unreadable("the body is not the protobuf message of this address") from None


_TEMPORALITIES = {1: "delta", 2: "cumulative"}
# DataPointFlags: the series has no value at this time.
_NO_RECORDED_VALUE = 1


def _metrics_of_message(request: ExportMetricsServiceRequest) -> Batch:
    batch = Batch()
    for of_resource in request.resource_metrics:
        resource = _attributes_of_message(of_resource.resource.attributes)
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                kind = metric.WhichOneof("data")
                if kind is None:
                    continue
                data: Any = getattr(metric, kind)
                temporality = _TEMPORALITIES.get(getattr(data, "aggregation_temporality", 0), "")
                rises = kind.endswith("istogram") or bool(getattr(data, "is_monotonic", False))
                for point in data.data_points:
                    if not point.flags & _NO_RECORDED_VALUE:
                        batch.signals.append(
                            Point(
                                metric.name,
                                _value_of_point(point, kind),
                                temporality,
                                rises,
                                _attributes_of_message(point.attributes),
                                resource,
                                of_scope.scope.name,
                                point.start_time_unix_nano,
                                point.time_unix_nano,
                            )
                        )
    return batch


def _value_of_point(point: Any, kind: str) -> int | float | None:
    if kind in ("sum", "gauge"):
        which = point.WhichOneof("value")
        return None if which is None else getattr(point, which)
    return point.sum if kind == "summary" or point.HasField("sum") else None


def _logs_of_message(request: ExportLogsServiceRequest) -> Batch:
    batch = Batch()
    for of_resource in request.resource_logs:
        resource = _attributes_of_message(of_resource.resource.attributes)
        for of_scope in of_resource.scope_logs:
            for record in of_scope.log_records:
                attributes = _attributes_of_message(record.attributes)
                body = _value_of_message(record.body)
                batch.signals.append(
                    Entry(
                        _event_name(record.event_name, attributes, body),
                        body,
                        attributes,
                        resource,
                        of_scope.scope.name,
                        record.time_unix_nano or record.observed_time_unix_nano,
                        record.trace_id.hex(),
                        record.span_id.hex(),
                    )
                )
    return batch


def _attributes_of_message(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value_of_message(pair.value) for pair in pairs}


def _value_of_message(value: AnyValue) -> Any:
    which = value.WhichOneof("value")
    if which is None:
        return None
    if which == "array_value":
        return [_value_of_message(one) for one in value.array_value.values]
    if which == "kvlist_value":
        return _attributes_of_message(value.kvlist_value.values)
    plain = getattr(value, which)
    return plain.hex() if isinstance(plain, bytes) else plain


# -- JSON ----------------------------------------------------------------------------------------------------------


def _loads(body: bytes) -> Mapping[str, Any]:
    try:
        payload = json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Unreadable("the body is not JSON") from None
    if not isinstance(payload, dict):
        raise Unreadable("the body is not a JSON object")
    return payload


def _no_constant(name: str) -> None:
    raise ValueError(name)


_DATA = ("sum", "gauge", "histogram", "exponentialHistogram", "summary")


def _metrics_of_json(payload: Mapping[str, Any]) -> Batch:
    batch = Batch()
    for of_resource in _objects(payload, "resourceMetrics"):
        resource = _attributes_of_json(_object(of_resource, "resource"))
        for of_scope in _objects(of_resource, "scopeMetrics"):
            scope = _text(_object(of_scope, "scope"), "name")
            for metric in _objects(of_scope, "metrics"):
                kind = next((kind for kind in _DATA if metric.get(kind) is not None), None)
                if kind is not None:
                    _points_of_json(batch, metric, kind, resource, scope)
    return batch


def _points_of_json(batch: Batch, metric: Mapping[str, Any], kind: str, resource: Attributes, scope: str) -> None:
    data, name = _object(metric, kind), _text(metric, "name")
    # A gauge and a summary have neither; what they say of it is an unknown field.
    adds_up = kind not in ("gauge", "summary")
    temporality = _TEMPORALITIES.get(_whole(data, "aggregationTemporality"), "") if adds_up else ""
    rises = kind.endswith("istogram") or (kind == "sum" and data.get("isMonotonic") is True)
    for point in _objects(data, "dataPoints"):
        try:
            if _whole(point, "flags") & _NO_RECORDED_VALUE:
                continue
            batch.signals.append(
                Point(
                    name,
                    _number(point, "asInt", "asDouble") if kind in ("sum", "gauge") else _number(point, "", "sum"),
                    temporality,
                    rises,
                    _attributes_of_json(point),
                    resource,
                    scope,
                    _whole(point, "startTimeUnixNano"),
                    _whole(point, "timeUnixNano"),
                )
            )
        except Unreadable as problem:
            batch.reject(f"a point of {name[:NAME_LENGTH]}: {problem}")


def _logs_of_json(payload: Mapping[str, Any]) -> Batch:
    batch = Batch()
    for of_resource in _objects(payload, "resourceLogs"):
        resource = _attributes_of_json(_object(of_resource, "resource"))
        for of_scope in _objects(of_resource, "scopeLogs"):
            scope = _text(_object(of_scope, "scope"), "name")
            for record in _objects(of_scope, "logRecords"):
                try:
                    batch.signals.append(_entry_of_json(record, resource, scope))
                except Unreadable as problem:
                    batch.reject(f"a log record: {problem}")
    return batch


def _entry_of_json(record: Mapping[str, Any], resource: Attributes, scope: str) -> Entry:
    attributes = _attributes_of_json(record)
    body = _value_of_json(_object(record, "body"))
    return Entry(
        _event_name(_text(record, "eventName"), attributes, body),
        body,
        attributes,
        resource,
        scope,
        _whole(record, "timeUnixNano") or _whole(record, "observedTimeUnixNano"),
        _hex(record, "traceId", 32),
        _hex(record, "spanId", 16),
    )


def _attributes_of_json(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {_text(pair, "key"): _value_of_json(_object(pair, "value")) for pair in _objects(owner, "attributes")}


def _value_of_json(value: Mapping[str, Any]) -> Any:
    """The value of an AnyValue; None for one that is not set."""
    for name, plain in value.items():
        if plain is None:
            continue
        if name in ("stringValue", "bytesValue"):
            return _text(value, name)
        if name == "intValue":
            return _whole(value, name, signed=True)
        if name == "doubleValue":
            return _number(value, "", name)
        if name == "boolValue":
            if not isinstance(plain, bool):
                raise Unreadable("boolValue is true or false")
            return plain
        if name == "arrayValue":
            return [_value_of_json(one) for one in _objects(_object(value, name), "values")]
        if name == "kvlistValue":
            pairs = _objects(_object(value, name), "values")
            return {_text(pair, "key"): _value_of_json(_object(pair, "value")) for pair in pairs}
    return None


def _objects(owner: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """The list of objects of that name, empty when it is absent."""
    rows = owner.get(name)
    if rows is None:
        return []
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise Unreadable(f"{name} is a list of objects")
    return rows


def _object(owner: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = owner.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise Unreadable(f"{name} is an object")
    return value


def _text(owner: Mapping[str, Any], name: str) -> str:
    value = owner.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise Unreadable(f"{name} is a text")
    return value


def _whole(owner: Mapping[str, Any], name: str, *, signed: bool = False) -> int:
    """A 64-bit number, which protobuf's JSON writes as a decimal text and reads from a number too; 0 when absent."""
    value = owner.get(name, 0)
    if isinstance(value, str) and len(value) <= 20 and re.fullmatch(r"-?[0-9]+", value):
        value = int(value)
    if value is None:
        return 0
    low, high = (-(2**63), 2**63) if signed else (0, 2**64)
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value < high:
        raise Unreadable(f"{name} is a whole number of 64 bits, or one as text")
    return value


def _number(owner: Mapping[str, Any], whole: str, real: str) -> int | float | None:
    """The value of a point: the whole number where there is one, else the real one; None when there is neither."""
    if whole and owner.get(whole) is not None:
        return _whole(owner, whole, signed=True)
    value = owner.get(real)
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            value = None
        if value is None:
            raise Unreadable(f"{real} is a number")
    if isinstance(value, bool) or not (value is None or isinstance(value, int | float)):
        raise Unreadable(f"{real} is a number")
    return value


def _hex(record: Mapping[str, Any], name: str, length: int) -> str:
    """An id as OTLP's JSON writes it: hexadecimal in either case, unlike protobuf's base64; empty when absent."""
    value = _text(record, name).lower()
    if value and not re.fullmatch(rf"[0-9a-f]{{{length}}}", value):
        raise Unreadable(f"{name} is {length} hexadecimal digits")
    return value


def _event_name(given: str, attributes: Attributes, body: Any) -> str:
    """The event's full name: the record's own, the attribute event.name, or the text of its body.

    Claude Code writes `claude_code.api_request` into the body and `api_request` into the attribute.
    """
    named = attributes.get("event.name")
    short = given or (named if isinstance(named, str) else "")
    if isinstance(body, str) and len(body) <= NAME_LENGTH and (not short or body.endswith(f".{short}")):
        return body if " " not in body else short
    return short


# -- which signals count money -------------------------------------------------------------------------------------

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
