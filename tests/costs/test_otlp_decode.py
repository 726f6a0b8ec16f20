"""OTLP payloads in both encodings give the same signals, and of a session's money one kind of signal counts."""

import gzip
import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
from google.protobuf import json_format
from google.rpc.status_pb2 import Status
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import Counter, Histogram, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from costs import otlp
from costs.normalise import ASSUMED_TTL, CACHE_UNKNOWN, INFLATED
from costs.otlp import JSON, PROTOBUF, Batch, Sighting, Unreadable
from pipeline.refusals import Refused

PACKED = gzip.compress(b"abc", mtime=0)  # a test's name is made of it, so it must not tell the time
LEASE = "01JD0000000000000000000000"
START, AT = 1_763_800_000_000_000_000, 1_763_800_060_000_000_000


def value(given: Any) -> dict[str, Any]:
    """An AnyValue of OTLP's JSON."""
    if isinstance(given, bool):
        return {"boolValue": given}
    if isinstance(given, int):
        return {"intValue": str(given)}
    if isinstance(given, float):
        return {"doubleValue": given}
    return {"stringValue": given}


def pairs(given: dict[str, Any]) -> list[dict[str, Any]]:
    """Attributes of OTLP's JSON."""
    return [{"key": key, "value": value(one)} for key, one in given.items()]


def logs(*records: dict[str, Any], resource: dict[str, Any] | None = None, **more: Any) -> bytes:
    """A payload of log records, each written as its attributes."""
    rows = [
        {
            "timeUnixNano": str(AT + number),
            "body": {"stringValue": f"claude_code.{one['event.name']}" if "." not in one["event.name"] else "…"},
            "attributes": pairs(one),
            **more,
        }
        for number, one in enumerate(records)
    ]
    scope = {"scope": {"name": "events"}, "logRecords": rows}
    return json.dumps(
        {"resourceLogs": [{"resource": {"attributes": pairs(resource or {})}, "scopeLogs": [scope]}]}
    ).encode()


def metric(name: str, *points: tuple[dict[str, Any], Any], temporality: int = 1, kind: str = "sum") -> dict[str, Any]:
    """A metric of OTLP's JSON, from (attributes, value or whole point)."""
    rows = [
        {
            "attributes": pairs(attributes),
            "startTimeUnixNano": str(START),
            "timeUnixNano": str(AT),
            **(given if isinstance(given, dict) else {"asDouble": given}),
        }
        for attributes, given in points
    ]
    return {"name": name, kind: {"dataPoints": rows, "aggregationTemporality": temporality, "isMonotonic": True}}


def metrics(*given: dict[str, Any], resource: dict[str, Any] | None = None) -> bytes:
    """A payload of metrics."""
    scope = {"scope": {"name": "meter"}, "metrics": list(given)}
    return json.dumps(
        {"resourceMetrics": [{"resource": {"attributes": pairs(resource or {})}, "scopeMetrics": [scope]}]}
    ).encode()


def request(**more: Any) -> dict[str, Any]:
    """The attributes of Claude Code's request event."""
    return {
        "event.name": "api_request", "event.sequence": 3, "session.id": "s-1", "prompt.id": "p-1",
        "model": "claude-sonnet-4-5", "cost_usd": 0.0465, "duration_ms": 2100, "input_tokens": 1000,
        "output_tokens": 900, "cache_read_tokens": 100000, "cache_creation_tokens": 0, "request_id": "req_011", **more,
    }  # fmt: skip


TOKENS = [
    metric(
        "claude_code.token.usage",
        ({"session.id": "s-1", "model": "claude-sonnet-4-5", "type": "input"}, 1000.0),
        ({"session.id": "s-1", "model": "claude-sonnet-4-5", "type": "output"}, 900.0),
        ({"session.id": "s-1", "model": "claude-sonnet-4-5", "type": "cacheRead"}, 100000.0),
        ({"session.id": "s-1", "model": "claude-sonnet-4-5", "type": "cacheCreation"}, 2000.0),
        ({"session.id": "s-1", "model": "claude-haiku-4-5", "type": "input"}, 7.0),
    ),
    metric("claude_code.cost.usage", ({"session.id": "s-1", "model": "claude-sonnet-4-5"}, 0.054)),
    metric("claude_code.session.count", ({"session.id": "s-1"}, {"asInt": "1"})),
]


def of_logs(body: bytes, content_type: str = JSON, **given: Any) -> otlp.Sightings:
    """What a payload of logs tells of money."""
    return otlp.sight_logs(otlp.read_logs(body, content_type), **given)


def of_metrics(body: bytes, content_type: str = JSON, **given: Any) -> otlp.Sightings:
    """What a payload of metrics tells of money."""
    return otlp.sight_metrics(otlp.read_metrics(body, content_type), **given)


def used(sighting: Sighting) -> dict[str, int]:
    """Its counts that are not zero."""
    return {name: count for name, count in sighting.use.tokens.items() if count}


# -- both encodings ------------------------------------------------------------------------------------------------


def test_both_encodings_give_the_same_points() -> None:
    body = metrics(
        *TOKENS,
        metric("h", ({}, {"count": "2", "sum": 3.5, "bucketCounts": ["1", "1"]}), kind="histogram", temporality=2),
        resource={"service.name": "claude-code", "signalbox.lease": LEASE, "n": 5, "on": True, "share": 0.5},
    )
    message = json_format.Parse(body, ExportMetricsServiceRequest(), ignore_unknown_fields=True)
    as_json, as_protobuf = (
        otlp.read_metrics(body, f"{JSON}; charset=utf-8"),
        otlp.read_metrics(message.SerializeToString(), PROTOBUF),
    )
    assert as_json == as_protobuf
    assert len(as_json.signals) == 8
    histogram = as_json.signals[-1]
    assert (histogram.name, histogram.value, histogram.temporality, histogram.is_monotonic) == (
        "h",
        3.5,
        "cumulative",
        True,
    )
    assert (histogram.start_ns, histogram.at_ns) == (START, AT)
    assert histogram.resource == {
        "service.name": "claude-code", "signalbox.lease": LEASE, "n": 5, "on": True, "share": 0.5,
    }  # fmt: skip


def test_both_encodings_give_the_same_records() -> None:
    body = logs(request(deep="x"), {"event.name": "tool_result"}, resource={"service.version": "2.2.0"})
    message = json_format.Parse(body, ExportLogsServiceRequest())
    assert otlp.read_logs(body, JSON) == otlp.read_logs(message.SerializeToString(), PROTOBUF)


def test_ids_are_hexadecimal_in_json_and_bytes_in_protobuf() -> None:
    trace, span = "5B8EFFF798038103D269B633813FC60C", "EEE19B7EC3C1B174"
    (entry,) = otlp.read_logs(logs(request(), traceId=trace, spanId=span), JSON).signals
    message = ExportLogsServiceRequest()
    record = message.resource_logs.add().scope_logs.add().log_records.add()
    record.trace_id, record.span_id = bytes.fromhex(trace), bytes.fromhex(span)
    (other,) = otlp.read_logs(message.SerializeToString(), PROTOBUF).signals
    assert (entry.trace_id, entry.span_id) == (other.trace_id, other.span_id) == (trace.lower(), span.lower())


def test_numbers_of_64_bits_come_as_text_or_as_number_and_unknown_fields_are_ignored() -> None:
    for seven in ("7", 7):
        point = {"asInt": seven, "timeUnixNano": AT, "laterField": {"x": 1}}
        (read,) = otlp.read_metrics(metrics(metric("m", ({}, point))), JSON).signals
        assert (read.value, read.at_ns) == (7, AT)


def test_values_of_every_type_are_read() -> None:
    nested = {
        "kvlistValue": {"values": [{"key": "a", "value": {"arrayValue": {"values": [{"intValue": 1}, {}]}}}]},
    }
    body = json.loads(logs(request()))
    record = body["resourceLogs"][0]["scopeLogs"][0]["logRecords"][0]
    record["attributes"] = [
        {"key": "nested", "value": nested},
        {"key": "bytes", "value": {"bytesValue": "AAEC"}},
        {"key": "none"},
        {"key": "negative", "value": {"intValue": "-5"}},
        {"key": "nan", "value": {"doubleValue": "NaN"}},
    ]
    (entry,) = otlp.read_logs(json.dumps(body).encode(), JSON).signals
    assert entry.attributes["nested"] == {"a": [1, None]}
    assert (entry.attributes["bytes"], entry.attributes["none"], entry.attributes["negative"]) == ("AAEC", None, -5)
    assert entry.attributes["nan"] != entry.attributes["nan"]


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"resourceMetrics": 5}', b'{"resourceMetrics": [5]}',
        b'{"resourceMetrics": [{"resource": []}]}', b'{"resourceMetrics": [{"scopeMetrics": "x"}]}',
        b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"name": 5, "sum": {}}]}]}]}',
        b'{"resourceMetrics": [{"scopeMetrics": [{"metrics": [{"sum": {"aggregationTemporality": "DELTA"}}]}]}]}',
        b'{"resourceMetrics": [{"resource": {"attributes": [{"key": "a", "value": {"intValue": "x"}}]}}]}',
        b"[" * 100_000, b'{"a":' * 900 + b"NaN" + b"}" * 900, b"1" * 5000,
    ],
)  # fmt: skip
def test_a_body_that_is_no_payload_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable) as refusal:
        otlp.read_metrics(body, JSON)
    assert (refusal.value.status, refusal.value.code) == (400, "invalid_otlp")


def test_a_payload_that_is_nested_too_deep_is_unreadable() -> None:
    deep = '{"arrayValue": {"values": [' * 400 + "{}" + "]}}" * 400
    body = '{"resourceLogs": [{"resource": {"attributes": [{"key": "a", "value": ' + deep + "}]}}]}"
    with pytest.raises(Unreadable):
        otlp.read_logs(body.encode(), JSON)


def test_bytes_that_are_no_message_are_unreadable() -> None:
    for read in (otlp.read_logs, otlp.read_metrics):
        with pytest.raises(Unreadable, match="protobuf"):
            read(b"\x0a\xff\xff\xff\xff\x0f", PROTOBUF)


def test_another_content_type_is_told() -> None:
    with pytest.raises(Refused, match=r"application/x-protobuf or application/json, not “text/plain”") as refusal:
        otlp.read_logs(b"", "text/plain")
    assert refusal.value.status == 415


def test_a_point_that_cannot_be_read_is_refused_alone() -> None:
    batch = otlp.read_metrics(
        metrics(metric("m", ({}, {"asInt": "x"}), ({}, 1.0), ({}, {"timeUnixNano": -1}), ({}, {"flags": 1}))), JSON
    )
    assert [point.value for point in batch.signals] == [1.0]
    assert batch.rejected == 2
    assert batch.reasons[0] == "a point of m: asInt is a whole number of 64 bits, or one as text"


def test_an_id_that_is_not_hexadecimal_refuses_its_record() -> None:
    batch = otlp.read_logs(logs(request(), traceId="AAECAwQFBgcICQoLDA0ODw=="), JSON)
    assert (batch.signals, batch.rejected) == ([], 1)


@given(body=st.binary(max_size=200))
def test_whatever_bytes_are_sent_are_read_or_refused(body: bytes) -> None:
    for read, sight in ((otlp.read_logs, otlp.sight_logs), (otlp.read_metrics, otlp.sight_metrics)):
        for kind in (JSON, PROTOBUF):
            try:
                sight(read(body, kind))
            except Unreadable:
                continue


# -- bodies and answers --------------------------------------------------------------------------------------------


def test_a_body_may_be_gzipped() -> None:
    assert otlp.inflate(gzip.compress(b"abc"), "gzip", 3) == b"abc"
    assert otlp.inflate(b"abc", "", 3) == otlp.inflate(b"abc", "identity", 3) == b"abc"


@pytest.mark.parametrize("encoding", ["", "gzip"])
def test_a_body_that_is_too_large_is_not_inflated(encoding: str) -> None:
    bomb = b"\0" * 10_000_000
    with pytest.raises(Refused) as refusal:
        otlp.inflate(gzip.compress(bomb) if encoding else bomb, encoding, 1000)
    assert (refusal.value.status, refusal.value.code) == (413, "too_large")


@pytest.mark.parametrize(
    "body", [b"", b"abc", PACKED[:-4], PACKED + b"x"], ids=["empty", "not-gzip", "cut-short", "more-after"]
)
def test_a_broken_gzip_is_unreadable(body: bytes) -> None:
    with pytest.raises(Unreadable):
        otlp.inflate(body, "gzip", 1000)


def test_another_encoding_is_told() -> None:
    with pytest.raises(Refused) as refusal:
        otlp.inflate(b"", "br", 1000)
    assert refusal.value.status == 415


def test_an_answer_says_what_was_refused_and_why() -> None:
    good, bad = Batch(), Batch()
    bad.reject("one reason", 2)
    bad.reject("another")
    assert otlp.answer(good, JSON, metrics=True) == b"{}"
    assert otlp.answer(good, PROTOBUF, metrics=False) == b""
    assert json.loads(otlp.answer(bad, JSON, metrics=True)) == {
        "partialSuccess": {"rejectedDataPoints": "3", "errorMessage": "one reason; another"}
    }
    of_metrics_, of_logs_ = ExportMetricsServiceResponse(), ExportLogsServiceResponse()
    of_metrics_.ParseFromString(otlp.answer(bad, PROTOBUF, metrics=True))
    of_logs_.ParseFromString(otlp.answer(bad, PROTOBUF, metrics=False))
    assert of_metrics_.partial_success.rejected_data_points == of_logs_.partial_success.rejected_log_records == 3
    assert of_logs_.partial_success.error_message == "one reason; another"
    json_format.Parse(otlp.answer(bad, JSON, metrics=False), ExportLogsServiceResponse())


def test_a_failure_is_a_status_of_the_requests_encoding() -> None:
    message = "der Körper ist kein OTLP; " * 20
    status = Status()
    status.ParseFromString(otlp.failure(message, PROTOBUF))
    assert status.message == message
    assert json.loads(otlp.failure(message, JSON)) == {"message": message}


# -- what counts money ---------------------------------------------------------------------------------------------


def test_a_request_of_claude_is_seen_with_its_key_and_our_ids() -> None:
    told = of_logs(
        logs(request(), {"event.name": "tool_result"}, resource={"signalbox.lease": LEASE, "signalbox.generation": 3})
    )
    (seen,) = told.seen
    assert (seen.tool, seen.signal, seen.key) == ("claude", otlp.EVENTS, "req_011")
    assert used(seen) == {"uncached_input": 1000, "cache_read": 100000, "output": 900}
    assert seen.use.reported == Decimal("0.0465")
    assert seen.meter == f"claude:lease:{LEASE}"
    assert seen.house == {"lease": LEASE, "generation": "3"}
    assert seen.at == datetime.fromtimestamp(AT // 10**9, UTC)
    assert told.counted == {"claude_code.tool_result": 1}


def test_our_ids_may_stand_on_the_signal_itself() -> None:
    (seen,) = of_logs(logs(request(**{"signalbox.task": "T", "signalbox.lease": LEASE}))).seen
    assert seen.house == {"lease": LEASE, "task": "T"}


def test_figures_that_are_written_as_text_are_read() -> None:
    (seen,) = of_logs(
        logs(request(input_tokens="1000", output_tokens=900.0, cost_usd="0.01", **{"event.sequence": "3"}))
    ).seen
    assert (used(seen)["uncached_input"], used(seen)["output"], seen.use.reported) == (1000, 900, Decimal("0.01"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_tokens": -1}, {"input_tokens": "many"}, {"input_tokens": 1.5}, {"output_tokens": True},
        {"cost_usd": "NaN"}, {"cost_usd": -1.0}, {"model": 5},
    ],
)  # fmt: skip
def test_a_request_whose_figures_cannot_be_right_is_refused_with_its_reason(wrong: dict[str, Any]) -> None:
    told = of_logs(logs(request(**wrong), request(request_id="req_012")))
    assert [seen.key for seen in told.seen] == ["req_012"]
    assert told.batch.rejected == 1
    assert told.batch.reasons[0].startswith("claude_code.api_request: usage.")


def test_a_request_without_an_id_is_known_by_its_number_or_by_all_that_it_says() -> None:
    (numbered,) = of_logs(logs(request(request_id=""))).seen
    assert numbered.key == "s-1:p-1:3"
    bare = request(request_id="", **{"prompt.id": ""})
    (by_all,), (again,) = of_logs(logs(bare)).seen, of_logs(logs(bare)).seen
    (other,) = of_logs(logs({**bare, "output_tokens": 901})).seen
    assert by_all.key == again.key != other.key


def test_the_frames_of_a_streamed_answer_are_one_request_and_old_versions_are_flagged() -> None:
    frames = [request(output_tokens=count, **{"event.sequence": count}) for count in (10, 500, 900)]
    (seen,) = of_logs(logs(*frames, resource={"service.version": "2.1.213"})).seen
    assert used(seen)["output"] == 900
    assert INFLATED in seen.use.flags
    for version in ("2.1.214", "2.2.0", "10.0.0", "dev", ""):
        (seen,) = of_logs(logs(*frames, resource={"service.version": version})).seen
        assert INFLATED not in seen.use.flags


def test_of_codex_only_the_completed_response_counts() -> None:
    def event(**more: Any) -> dict[str, Any]:
        return {
            "event.name": "codex.sse_event", "event.timestamp": "2026-11-22T01:02:03.004Z", "conversation.id": "c-1",
            "model": "gpt-5-codex", **more,
        }  # fmt: skip

    done = event(
        **{"event.kind": "response.completed"}, input_token_count="10000", output_token_count="900",
        cached_token_count=8000, reasoning_token_count=600, tool_token_count="10900",
    )  # fmt: skip
    told = of_logs(logs(event(**{"event.kind": "response.created"}), done, {"event.name": "codex.tool_result"}))
    (seen,) = told.seen
    assert used(seen) == {"uncached_input": 2000, "cache_read": 8000, "output": 900}
    assert (seen.tool, seen.meter, seen.key) == ("codex", "codex:session:c-1", "c-1:2026-11-22T01:02:03.004Z")
    assert told.counted == {"codex.sse_event": 1, "codex.tool_result": 1}


def test_genai_events_count_where_they_tell_usage() -> None:
    event = {"event.name": otlp.GENAI_EVENT, "gen_ai.request.model": "m", "gen_ai.provider.name": "openai"}
    told = of_logs(logs(event, {**event, "gen_ai.usage.input_tokens": 10, "gen_ai.usage.cache_read.input_tokens": 4}))
    (seen,) = told.seen
    assert (used(seen), seen.tool) == ({"uncached_input": 6, "cache_read": 4}, "genai")
    assert told.counted == {otlp.GENAI_EVENT: 1}


def test_points_that_differ_in_their_type_are_one_use_with_the_cost_beside_it() -> None:
    told = of_metrics(metrics(*TOKENS, resource={"signalbox.lease": LEASE}))
    big, small = told.seen
    assert used(big) == {"uncached_input": 1000, "cache_read": 100000, "cache_write_5m": 2000, "output": 900}
    assert (big.use.reported, big.use.model, big.use.is_request) == (Decimal("0.054"), "claude-sonnet-4-5", False)
    assert big.use.flags == {ASSUMED_TTL}
    assert (used(small), small.use.model) == ({"uncached_input": 7}, "claude-haiku-4-5")
    assert (big.signal, big.meter) == (otlp.METRICS, f"claude:lease:{LEASE}")
    assert told.counted == {"claude_code.session.count": 1}
    on_subscription = of_metrics(metrics(*TOKENS), subscription=True).seen[0]
    assert used(on_subscription)["cache_write_1h"] == 2000


def test_the_same_delta_sent_again_has_the_same_key() -> None:
    first, again = of_metrics(metrics(*TOKENS)), of_metrics(metrics(*TOKENS))
    assert [seen.key for seen in first.seen] == [seen.key for seen in again.seen]
    assert len({seen.key for seen in first.seen}) == 2
    later = json.loads(metrics(*TOKENS).replace(str(AT).encode(), str(AT + 1).encode()))
    assert not {seen.key for seen in first.seen} & {seen.key for seen in of_metrics(json.dumps(later).encode()).seen}


def test_a_cumulative_series_counts_what_it_has_more_and_a_replay_nothing() -> None:
    def payload(value: float, at: int, start: int = START) -> bytes:
        point = {"asDouble": value, "timeUnixNano": str(at), "startTimeUnixNano": str(start)}
        return metrics(metric("claude_code.token.usage", ({"type": "input", "model": "m"}, point), temporality=2))

    marks: dict[str, otlp.Mark] = {}

    def tokens(body: bytes) -> int:
        told = of_metrics(body, marks=marks)
        marks.update(told.marks)
        return sum(seen.use.tokens["uncached_input"] for seen in told.seen)

    assert tokens(payload(100, AT)) == 100
    assert tokens(payload(100, AT)) == 0
    assert tokens(payload(90, AT)) == 0
    assert tokens(payload(250, AT + 60)) == 150
    assert tokens(payload(180, AT + 30)) == 0  # late: the later sum holds it
    assert tokens(payload(250, AT + 120)) == 0
    assert tokens(payload(40, AT + 180, start=AT + 150)) == 40  # the tool started again
    assert tokens(payload(30, AT + 240, start=AT + 150)) == 30  # a sum that fell began anew without saying so
    assert tokens(payload(300, AT + 240)) == 50  # and the first process lives


def test_genais_metric_tells_input_and_output_and_hides_the_cache() -> None:
    given = {"gen_ai.request.model": "m", "gen_ai.provider.name": "anthropic"}
    body = metrics(
        metric(
            otlp.GENAI_TOKENS,
            ({**given, "gen_ai.token.type": "input"}, {"count": "3", "sum": 5000}),
            ({**given, "gen_ai.token.type": "output"}, {"count": "3", "sum": 70}),
            kind="histogram",
        ),
        resource={"service.instance.id": "i-1"},
    )
    (seen,) = of_metrics(body).seen
    assert used(seen) == {"uncached_input": 5000, "output": 70}
    assert seen.use.flags == {CACHE_UNKNOWN}
    event = {"event.name": otlp.GENAI_EVENT, "gen_ai.usage.input_tokens": 5000, "gen_ai.conversation.id": "c"}
    (told,) = of_logs(logs(event, resource={"service.instance.id": "i-1"})).seen
    assert told.meter == seen.meter  # so one of the two counts


@pytest.mark.parametrize(
    ("point", "why"),
    [
        (-1.0, "a finite number of at least 0"),
        ("NaN", "a finite number of at least 0"),
        (1e30, "a finite number of at least 0"),
        (1.5, "a whole number"),
    ],
)
def test_a_count_of_tokens_that_cannot_be_right_is_refused(point: Any, why: str) -> None:
    told = of_metrics(metrics(metric("claude_code.token.usage", ({"type": "input"}, {"asDouble": point}))))
    assert (told.seen, told.batch.rejected) == ([], 1)
    assert why in told.batch.reasons[0]


def test_a_type_of_tokens_that_nobody_knows_is_refused() -> None:
    told = of_metrics(metrics(metric("claude_code.token.usage", ({"type": "thought"}, 5.0))))
    assert (told.seen, told.batch.rejected) == ([], 1)
    assert "not “thought”" in told.batch.reasons[0]


def test_a_cost_without_tokens_is_only_counted() -> None:
    told = of_metrics(metrics(metric("claude_code.cost.usage", ({"model": "m"}, 5.0))))
    assert (told.seen, told.counted) == ([], {"claude_code.cost.usage": 1})


def test_a_gauge_counts_no_money() -> None:
    told = of_metrics(metrics(metric("claude_code.token.usage", ({"type": "input"}, 5.0), kind="gauge")))
    assert (told.seen, told.counted) == ([], {"claude_code.token.usage": 1})


def test_unknown_signals_are_counted_by_name_within_bounds() -> None:
    told = of_logs(logs(*({"event.name": f"x.{number:04}" + "y" * 300} for number in range(500))))
    assert len(told.counted) == otlp.MOST_NAMES + 1
    assert told.counted["others"] == 300
    assert max(map(len, told.counted)) == otlp.NAME_LENGTH


@pytest.mark.parametrize(
    ("counts", "signal", "decision"),
    [
        ("", "events", "book"), ("", "metrics", "book"), ("events", "events", "book"), ("metrics", "metrics", "book"),
        ("events", "metrics", "count"), ("metrics", "events", "replace"),
    ],
)  # fmt: skip
def test_request_events_win_over_metrics_whichever_come_first(counts: str, signal: str, decision: str) -> None:
    assert otlp.decide(counts, signal) == decision


def test_a_session_that_sends_both_is_counted_once_in_any_order() -> None:
    events, sums = of_logs(logs(request())).seen, of_metrics(metrics(*TOKENS)).seen
    assert {seen.meter for seen in events} == {seen.meter for seen in sums}
    for order in (events + sums, sums + events):
        counts, booked = "", list[Sighting]()
        for seen in order:
            decision = otlp.decide(counts, seen.signal)
            if decision == otlp.REPLACE:
                booked.clear()
            if decision != otlp.COUNT:
                booked.append(seen)
                counts = seen.signal
        assert [one.key for one in booked] == ["req_011"]


# -- the official exporter -----------------------------------------------------------------------------------------


class Collector(BaseHTTPRequestHandler):
    """Keeps what is sent, and answers as an OTLP server does."""

    bodies: list[tuple[str, str, bytes]]

    def do_POST(self) -> None:
        """One export."""
        body = self.rfile.read(int(self.headers["Content-Length"]))
        plain = otlp.inflate(body, self.headers.get("Content-Encoding", ""), 10**7)
        self.bodies.append((self.path, self.headers["Content-Type"], plain))
        self.send_response(200)
        self.send_header("Content-Type", self.headers["Content-Type"])
        self.end_headers()
        self.wfile.write(otlp.answer(Batch(), self.headers["Content-Type"], metrics="metrics" in self.path))

    def log_message(self, *args: Any) -> None:
        """Nothing on the terminal."""


@pytest.fixture
def collector() -> Iterator[tuple[str, list[tuple[str, str, bytes]]]]:
    """A server's address, and what it received."""
    bodies: list[tuple[str, str, bytes]] = []
    handler = type("Handler", (Collector,), {"bodies": bodies})
    with HTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", bodies
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("temporality", [AggregationTemporality.DELTA, AggregationTemporality.CUMULATIVE])
@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip])
def test_the_official_metric_exporter_is_understood(
    collector: tuple[str, list[tuple[str, str, bytes]]],
    compression: Compression,
    temporality: AggregationTemporality,
) -> None:
    address, bodies = collector
    exporter = OTLPMetricExporter(
        f"{address}/otlp/v1/metrics",
        compression=compression,
        preferred_temporality={Counter: temporality, Histogram: temporality},
    )
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    provider = MeterProvider([reader], resource=Resource({"signalbox.lease": LEASE}), shutdown_on_exit=False)
    meter = provider.get_meter("com.anthropic.claude_code")
    tokens, cost = meter.create_counter("claude_code.token.usage"), meter.create_counter("claude_code.cost.usage")
    sizes = meter.create_histogram("gen_ai.client.token.usage")
    marks: dict[str, otlp.Mark] = {}
    totals = []
    for _ in range(2):
        named = {"session.id": "s-1", "model": "claude-sonnet-4-5"}
        tokens.add(1000, {**named, "type": "input"})
        tokens.add(90, {**named, "type": "output"})
        cost.add(0.00435, named)
        sizes.record(500, {"gen_ai.token.type": "input", "gen_ai.request.model": "m"})
        provider.force_flush()
        path, content_type, body = bodies.pop()
        assert path == "/otlp/v1/metrics"
        told = of_metrics(body, content_type, marks=marks)
        marks.update(told.marks)
        totals.append({seen.tool: used(seen) for seen in told.seen})
        assert [seen.use.reported for seen in told.seen if seen.tool == "claude"] == [Decimal("0.00435")]
        assert {seen.meter for seen in told.seen} == {f"claude:lease:{LEASE}", f"genai:lease:{LEASE}"}
        replayed = of_metrics(body, content_type, marks=marks)
        if temporality is AggregationTemporality.CUMULATIVE:
            assert replayed.seen == []
        else:
            assert [seen.key for seen in replayed.seen] == [seen.key for seen in told.seen]
    provider.shutdown()
    expected = {"claude": {"uncached_input": 1000, "output": 90}, "genai": {"uncached_input": 500}}
    assert totals == [expected, expected]


def test_the_official_log_exporter_is_understood(collector: tuple[str, list[tuple[str, str, bytes]]]) -> None:
    address, bodies = collector
    provider = LoggerProvider(Resource({"signalbox.lease": LEASE, "service.version": "2.2.0"}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(OTLPLogExporter(f"{address}/otlp/v1/logs")))
    logger = provider.get_logger("com.anthropic.claude_code.events")
    for attributes in (request(), {"event.name": "user_prompt"}):
        logger.emit(
            LogRecord(
                timestamp=AT, severity_number=SeverityNumber.INFO, attributes=attributes,
                body=f"claude_code.{attributes['event.name']}",
            )
        )  # fmt: skip
    provider.force_flush()
    provider.shutdown()
    told = [of_logs(body, content_type) for _, content_type, body in bodies]
    (seen,) = [seen for one in told for seen in one.seen]
    assert (seen.key, seen.meter) == ("req_011", f"claude:lease:{LEASE}")
    assert used(seen) == {"uncached_input": 1000, "cache_read": 100000, "output": 900}
    assert [dict(one.counted) for one in told if one.counted] == [{"claude_code.user_prompt": 1}]
