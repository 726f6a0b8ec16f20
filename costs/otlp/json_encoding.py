"""OTLP/HTTP in JSON, which is protobuf's JSON with numbers for enums and hexadecimal ids."""

import json
import re
from collections.abc import Mapping
from typing import Any

from costs.otlp.signals import (
    NAME_LENGTH,
    NO_RECORDED_VALUE,
    TEMPORALITIES,
    Attributes,
    Batch,
    Entry,
    Point,
    Unreadable,
    event_name,
)


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


_TOO_DEEP = "the values of the payload are nested too deep"
_DATA = ("sum", "gauge", "histogram", "exponentialHistogram", "summary")


def read_metrics(body: bytes) -> Batch:
    """The points of an ExportMetricsServiceRequest; one that cannot be read is refused alone. Raises Unreadable."""
    try:
        return _metrics(_loads(body))
    except RecursionError:
        raise Unreadable(_TOO_DEEP) from None


def _metrics(payload: Mapping[str, Any]) -> Batch:
    batch = Batch()
    for of_resource in _objects(payload, "resourceMetrics"):
        resource = _attributes(_object(of_resource, "resource"))
        for of_scope in _objects(of_resource, "scopeMetrics"):
            scope = _text(_object(of_scope, "scope"), "name")
            for metric in _objects(of_scope, "metrics"):
                kind = next((kind for kind in _DATA if metric.get(kind) is not None), None)
                if kind is not None:
                    _points(batch, metric, kind, resource, scope)
    return batch


def _points(batch: Batch, metric: Mapping[str, Any], kind: str, resource: Attributes, scope: str) -> None:
    data, name = _object(metric, kind), _text(metric, "name")
    # A gauge and a summary have neither; what they say of it is an unknown field.
    adds_up = kind not in ("gauge", "summary")
    temporality = TEMPORALITIES.get(_whole(data, "aggregationTemporality"), "") if adds_up else ""
    rises = kind.endswith("istogram") or (kind == "sum" and data.get("isMonotonic") is True)
    for point in _objects(data, "dataPoints"):
        try:
            if _whole(point, "flags") & NO_RECORDED_VALUE:
                continue
            batch.signals.append(
                Point(
                    name,
                    _number(point, "asInt", "asDouble") if kind in ("sum", "gauge") else _number(point, "", "sum"),
                    temporality,
                    rises,
                    _attributes(point),
                    resource,
                    scope,
                    _whole(point, "startTimeUnixNano"),
                    _whole(point, "timeUnixNano"),
                )
            )
        except Unreadable as problem:
            batch.reject(f"a point of {name[:NAME_LENGTH]}: {problem}")


def read_logs(body: bytes) -> Batch:
    """The records of an ExportLogsServiceRequest; one that cannot be read is refused alone. Raises Unreadable."""
    try:
        return _logs(_loads(body))
    except RecursionError:
        raise Unreadable(_TOO_DEEP) from None


def _logs(payload: Mapping[str, Any]) -> Batch:
    batch = Batch()
    for of_resource in _objects(payload, "resourceLogs"):
        resource = _attributes(_object(of_resource, "resource"))
        for of_scope in _objects(of_resource, "scopeLogs"):
            scope = _text(_object(of_scope, "scope"), "name")
            for record in _objects(of_scope, "logRecords"):
                try:
                    batch.signals.append(_entry(record, resource, scope))
                except Unreadable as problem:
                    batch.reject(f"a log record: {problem}")
    return batch


def _entry(record: Mapping[str, Any], resource: Attributes, scope: str) -> Entry:
    attributes = _attributes(record)
    body = _value(_object(record, "body"))
    return Entry(
        event_name(_text(record, "eventName"), attributes, body),
        body,
        attributes,
        resource,
        scope,
        _whole(record, "timeUnixNano") or _whole(record, "observedTimeUnixNano"),
        _hex(record, "traceId", 32),
        _hex(record, "spanId", 16),
    )


def _attributes(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {_text(pair, "key"): _value(_object(pair, "value")) for pair in _objects(owner, "attributes")}


def _value(value: Mapping[str, Any]) -> Any:
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
            return [_value(one) for one in _objects(_object(value, name), "values")]
        if name == "kvlistValue":
            pairs = _objects(_object(value, name), "values")
            return {_text(pair, "key"): _value(_object(pair, "value")) for pair in pairs}
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
