"""OTLP at its addresses: the official exporters unmodified, money counted once a session, replays without effect."""

import gzip
from decimal import Decimal
from typing import Any

import pytest
from django.test import Client
from google.protobuf import json_format
from opentelemetry._logs import LogRecord, SeverityNumber
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http._log_exporter import OTLPLogExporter
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import Counter, MeterProvider
from opentelemetry.sdk.metrics.export import AggregationTemporality, PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource

from costs import otlp
from costs.models import CostRecord, OtlpMeter, SignalCount
from pipeline.invariants import check_all
from tests import factories
from tests.costs.test_otlp_decode import AT, TOKENS, logs, metric, metrics, request
from tests.factories import BY
from workers.models import Lease

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


@pytest.fixture
def project() -> Any:
    """A project."""
    return factories.make_project()


@pytest.fixture
def key(project: Any) -> Any:
    """An operator's key of it."""
    return factories.make_key("operator", project=project)


@pytest.fixture
def worker_key() -> Any:
    """A worker's key."""
    return factories.make_key("worker")


@pytest.fixture
def lease(project: Any, worker_key: Any) -> Lease:
    """A live lease of that key's worker."""
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    worker = factories.make_worker(api_key=worker_key.row)
    return factories.make_lease(worker, factories.make_task(run), tool=factories.make_tool(key="claude"))


def send(key: Any, body: bytes, signal: str = "logs", **headers: str) -> Any:
    """POST one payload."""
    headers.setdefault("Authorization", f"Bearer {key.text}")
    kind = headers.pop("Content-Type", otlp.JSON)
    return Client(headers=headers).post(f"/otlp/v1/{signal}", body, content_type=kind)


def live() -> list[tuple[str, int]]:
    """(key, tokens of output) of what counts."""
    return list(CostRecord.objects.live().order_by("pk").values_list("idempotency_key", "tokens_output"))


def must_hold() -> None:
    """The invariants of money hold."""
    assert [r for r in check_all() if not r.holds and 53 <= int(r.number.removeprefix("INV-")) <= 61] == []


# -- who and what --------------------------------------------------------------------------------------------------


def test_a_request_event_is_booked_to_the_attempt_of_its_lease(worker_key: Any, lease: Lease) -> None:
    answer = send(worker_key, logs(request(), {"event.name": "user_prompt"}, resource={"signalbox.lease": lease.pk}))
    assert (answer.status_code, answer.json()) == (200, {})
    row = CostRecord.objects.get()
    assert (row.attempt_id, row.task_id, row.worker_id) == (lease.attempt_id, lease.task_id, lease.worker_id)
    assert (row.source, row.idempotency_key, row.session) == ("otlp:claude", "req_011", "s-1")
    assert (row.basis, row.stated_amount) == ("priced", Decimal("0.0465"))
    assert row.reported_at is not None
    assert dict(SignalCount.objects.values_list("name", "count")) == {"claude_code.user_prompt": 1}
    must_hold()


def test_without_our_ids_it_is_the_overhead_of_the_keys_project(key: Any, project: Any) -> None:
    send(key, logs(request()))
    row = CostRecord.objects.get()
    assert (row.leaf_kind, row.project_id, row.landing) == ("project", project.pk, "overhead")


@pytest.mark.parametrize("resource", [{}, {"signalbox.lease": "01JD0000000000000000000000"}, {"signalbox.lease": "x"}])
def test_a_workers_key_books_to_its_own_leases_only(worker_key: Any, resource: dict[str, Any]) -> None:
    answer = send(worker_key, logs(request(), resource=resource))
    assert answer.status_code == 200
    assert answer.json()["partialSuccess"]["rejectedLogRecords"] == "1"
    assert not CostRecord.objects.exists()


def test_nobody_books_into_a_project_that_they_do_not_see(key: Any) -> None:
    other = factories.make_project()
    answer = send(key, logs(request(), resource={"signalbox.project": other.key}))
    assert "nothing that this key sees" in answer.json()["partialSuccess"]["errorMessage"]
    assert not CostRecord.objects.exists()


def test_what_is_no_id_is_named(key: Any) -> None:
    answer = send(key, logs(request(), resource={"signalbox.task": "zz"}))
    assert "signalbox.task" in answer.json()["partialSuccess"]["errorMessage"]
    assert "“zz”" in answer.json()["partialSuccess"]["errorMessage"]


def test_what_cannot_be_taken_in_is_refused_as_the_protocol_has_it(key: Any) -> None:
    viewer = factories.make_key("viewer")
    cases = [
        (send(key, b"not json"), 400),
        (send(key, b"{}", Authorization="Bearer sbx_nobody"), 401),
        (send(viewer, b"{}"), 403),
        (send(key, b"a,b", **{"Content-Type": "text/csv"}), 415),
        (send(key, b"{}", **{"Content-Encoding": "br"}), 415),
        (Client().get("/otlp/v1/logs"), 405),
        (send(key, b"{}", "metrics"), 200),
        (send(key, b"{}", "traces"), 200),
    ]
    assert [answer.status_code for answer, _status in cases] == [status for _answer, status in cases]
    protobuf = send(key, b"\xff\xff", **{"Content-Type": otlp.PROTOBUF})
    assert (protobuf.status_code, protobuf["Content-Type"]) == (400, otlp.PROTOBUF)


def test_a_gzipped_bomb_is_refused_and_a_gzipped_payload_taken(key: Any) -> None:
    bomb = gzip.compress(b" " * (17 * 1024 * 1024))
    assert send(key, bomb, **{"Content-Encoding": "gzip"}).status_code == 413
    assert send(key, gzip.compress(logs(request())), **{"Content-Encoding": "gzip"}).status_code == 200
    assert CostRecord.objects.count() == 1


def test_one_record_that_cannot_be_booked_does_not_keep_the_others_back(key: Any) -> None:
    answer = send(key, logs(request(), request(request_id="r2", input_tokens=-1), request(request_id="r3")))
    assert answer.json()["partialSuccess"]["rejectedLogRecords"] == "1"
    assert [name for name, _output in live()] == ["req_011", "r3"]


# -- once ----------------------------------------------------------------------------------------------------------


def test_a_replay_changes_nothing(key: Any) -> None:
    for _ in range(3):
        assert send(key, logs(request(), request(request_id="r2", output_tokens=5))).json() == {}
        assert send(key, metrics(*TOKENS), "metrics").json() == {}
    assert live() == [("req_011", 900), ("r2", 5)]
    must_hold()


def test_a_request_id_with_other_content_is_refused(key: Any) -> None:
    send(key, logs(request()))
    answer = send(key, logs(request(output_tokens=17)))
    assert "booked already" in answer.json()["partialSuccess"]["errorMessage"]
    assert live() == [("req_011", 900)]


def test_metrics_count_until_the_first_request_event_comes(key: Any) -> None:
    send(key, metrics(*TOKENS), "metrics")
    first = CostRecord.objects.live().count()
    assert first == 2
    send(key, logs(request()))
    assert live() == [("req_011", 900)]
    assert CostRecord.objects.exclude(voided_at=None).count() == first
    send(key, metrics(*TOKENS), "metrics")
    assert live() == [("req_011", 900)]
    meter = OtlpMeter.objects.get()
    assert (meter.counts, meter.sightings, meter.counted_only) == ("events", 5, 2)
    must_hold()


def test_a_cumulative_series_counts_what_is_new(key: Any) -> None:
    def point(total: float, at: int) -> bytes:
        attributes = {"session.id": "s-9", "model": "claude-sonnet-4-5", "type": "output"}
        whole = {"asDouble": total, "timeUnixNano": str(AT + at)}
        return metrics(metric("claude_code.token.usage", (attributes, whole), temporality=2))

    for total, at in ((100.0, 1), (100.0, 1), (250.0, 2), (100.0, 1)):
        send(key, point(total, at), "metrics")
    assert [output for _key, output in live()] == [100, 150]


def test_the_agents_report_of_a_session_that_telemetry_told_is_not_booked_again(worker_key: Any, lease: Lease) -> None:
    send(worker_key, logs(request(), resource={"signalbox.lease": lease.pk}))
    item = {
        "resource_type": "api_call", "model": "claude-sonnet-4-5", "provider": "anthropic", "source": "claude",
        "idempotency_key": "l:claude", "tokens_uncached_input": 1000, "tokens_cache_read": 100000, "tokens_output": 900,
        "stated_amount": "0.0465",
    }  # fmt: skip
    lease.finish("success", by=BY, usage=[item])
    assert live() == [("req_011", 900)]
    assert OtlpMeter.objects.get().stated_amount == Decimal("0.0465")
    must_hold()


def test_telemetry_that_broke_off_gives_way_to_the_agents_larger_report(worker_key: Any, lease: Lease) -> None:
    resource = {"signalbox.lease": lease.pk}
    send(worker_key, logs(request(output_tokens=1, cache_read_tokens=0), resource=resource))
    item = {
        "resource_type": "api_call", "model": "claude-sonnet-4-5", "provider": "anthropic", "source": "claude",
        "idempotency_key": "l:claude", "tokens_uncached_input": 9000, "tokens_output": 900,
    }  # fmt: skip
    lease.finish("success", by=BY, usage=[item])
    assert live() == [("l:claude", 900)]
    late = send(worker_key, logs(request(request_id="late"), resource=resource))
    assert late.json() == {}
    assert live() == [("l:claude", 900)]
    must_hold()


def test_telemetry_after_the_agents_report_is_only_counted(worker_key: Any, lease: Lease) -> None:
    item = {"resource_type": "api_call", "model": "m", "source": "claude", "idempotency_key": "l", "tokens_output": 5}
    lease.finish("success", by=BY, usage=[item])
    send(worker_key, logs(request(), resource={"signalbox.lease": lease.pk}))
    assert live() == [("l", 5)]
    assert OtlpMeter.objects.get().counts == "report"


# -- the official exporters ----------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("compression", [Compression.NoCompression, Compression.Gzip], ids=["plain", "gzip"])
def test_the_official_exporters_send_to_it_unmodified(live_server: Any, key: Any, compression: Compression) -> None:
    headers = {"authorization": f"Bearer {key.text}"}
    logs_to = OTLPLogExporter(f"{live_server.url}/otlp/v1/logs", headers=headers, compression=compression)
    provider = LoggerProvider(Resource({"service.name": "claude-code"}), shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(logs_to))
    logger = provider.get_logger("com.anthropic.claude_code.events")
    for _ in range(2):
        told = request()
        body = f"claude_code.{told['event.name']}"
        logger.emit(LogRecord(timestamp=AT, severity_number=SeverityNumber.INFO, attributes=told, body=body))
    provider.force_flush()
    provider.shutdown()
    assert live() == [("req_011", 900)]

    delta = {Counter: AggregationTemporality.DELTA}
    exporter = OTLPMetricExporter(
        f"{live_server.url}/otlp/v1/metrics", headers=headers, compression=compression, preferred_temporality=delta
    )
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=3_600_000)
    meters = MeterProvider([reader], resource=Resource({"service.name": "claude-code"}), shutdown_on_exit=False)
    tokens = meters.get_meter("com.anthropic.claude_code").create_counter("claude_code.token.usage")
    named = {"session.id": "s-2", "model": "claude-sonnet-4-5"}
    tokens.add(1000, {**named, "type": "input"})
    tokens.add(90, {**named, "type": "output"})
    meters.force_flush()
    meters.shutdown()
    assert [output for _key, output in live()] == [900, 90]
    must_hold()


def test_the_answer_of_a_partial_success_in_protobuf_is_the_messages(key: Any) -> None:
    payload = json_format.Parse(logs(request(input_tokens=-1)), ExportLogsServiceRequest())
    answer = send(key, payload.SerializeToString(), **{"Content-Type": otlp.PROTOBUF})
    told = ExportLogsServiceResponse.FromString(answer.content)
    assert (answer["Content-Type"], told.partial_success.rejected_log_records) == (otlp.PROTOBUF, 1)
