"""OTLP/HTTP in protobuf, by the messages of opentelemetry-proto."""

from collections.abc import Iterable
from typing import Any

from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

from costs.otlp.signals import NO_RECORDED_VALUE, TEMPORALITIES, Batch, Entry, Point, Unreadable, event_name


def _parse(request: Any, body: bytes) -> None:
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise Unreadable("the body is not the protobuf message of this address") from None


def read_metrics(body: bytes) -> Batch:
    """The points of an ExportMetricsServiceRequest. Raises Unreadable."""
    request = ExportMetricsServiceRequest()
    _parse(request, body)
    batch = Batch()
    for of_resource in request.resource_metrics:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_metrics:
            for metric in of_scope.metrics:
                kind = metric.WhichOneof("data")
                if kind is None:
                    continue
                data: Any = getattr(metric, kind)
                temporality = TEMPORALITIES.get(getattr(data, "aggregation_temporality", 0), "")
                rises = kind.endswith("istogram") or bool(getattr(data, "is_monotonic", False))
                for point in data.data_points:
                    if not point.flags & NO_RECORDED_VALUE:
                        batch.signals.append(
                            Point(
                                metric.name,
                                _value_of_point(point, kind),
                                temporality,
                                rises,
                                _attributes(point.attributes),
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


def read_logs(body: bytes) -> Batch:
    """The records of an ExportLogsServiceRequest. Raises Unreadable."""
    request = ExportLogsServiceRequest()
    _parse(request, body)
    batch = Batch()
    for of_resource in request.resource_logs:
        resource = _attributes(of_resource.resource.attributes)
        for of_scope in of_resource.scope_logs:
            for record in of_scope.log_records:
                attributes = _attributes(record.attributes)
                body = _value(record.body)
                batch.signals.append(
                    Entry(
                        event_name(record.event_name, attributes, body),
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


def _attributes(pairs: Iterable[KeyValue]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: AnyValue) -> Any:
    which = value.WhichOneof("value")
    if which is None:
        return None
    if which == "array_value":
        return [_value(one) for one in value.array_value.values]
    if which == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    plain = getattr(value, which)
    return plain.hex() if isinstance(plain, bytes) else plain
