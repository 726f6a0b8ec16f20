"""OTLP in the OpenAPI document: plain views, of which drf-spectacular sees nothing."""

from typing import Any

_STATUS = {
    "type": "object",
    "description": "google.rpc.Status: why nothing was taken in.",
    "properties": {"code": {"type": "integer"}, "message": {"type": "string"}},
}
_SIGNALS = {
    "metrics": ("resourceMetrics", "rejectedDataPoints", "Metrics: points that tell of money are booked once."),
    "logs": ("resourceLogs", "rejectedLogRecords", "Logs: request events that tell of money are booked once."),
    "traces": ("resourceSpans", "rejectedSpans", "Traces: counted and forgotten; they tell nothing of money."),
}
_REFUSALS = {
    "400": "No OTLP: not of the type that Content-Type says, or not what Content-Encoding says.",
    "401": "No live key.",
    "403": "The key has neither the role operator nor is it a worker's.",
    "413": "Too large: above 16 MiB unpacked, or 50,000 signals.",
    "415": "Neither JSON nor protobuf, or another encoding than gzip.",
}


def add_otlp(result: dict[str, Any], generator: Any, request: Any, public: bool) -> dict[str, Any]:
    """Postprocessing hook: the addresses of OTLP over HTTP, whose bodies and refusals the protocol fixes."""
    result["components"]["schemas"]["OtlpStatus"] = _STATUS
    for name, (body, rejected, summary) in _SIGNALS.items():
        result["paths"][f"/otlp/v1/{name}"] = {"post": _operation(name, body, rejected, summary)}
    return result


def _operation(name: str, body: str, rejected: str, summary: str) -> dict[str, Any]:
    protobuf = {"schema": {"type": "string", "format": "binary"}}
    asked = {"type": "object", "properties": {body: {"type": "array", "items": {"type": "object"}}}}
    answer = {
        "type": "object",
        "properties": {
            "partialSuccess": {
                "type": "object",
                "description": "Absent when everything was taken in.",
                "properties": {
                    rejected: {"type": "string", "pattern": "^[0-9]+$"},
                    "errorMessage": {"type": "string"},
                },
            }
        },
    }
    refusal = {
        "application/json": {"schema": {"$ref": "#/components/schemas/OtlpStatus"}},
        "application/x-protobuf": protobuf,
    }
    return {
        "operationId": f"otlp_{name}",
        "summary": summary,
        "description": "OTLP over HTTP, JSON or protobuf, plain or gzip; a replay changes nothing.",
        "tags": ["otlp"],
        "parameters": [
            {
                "in": "header",
                "name": "Content-Encoding",
                "schema": {"type": "string", "enum": ["gzip", "identity"]},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": asked}, "application/x-protobuf": protobuf},
        },
        "responses": {
            "200": {
                "description": "Taken in; what of it was not, and why, is told as a partial success.",
                "content": {"application/json": {"schema": answer}, "application/x-protobuf": protobuf},
            },
            **{status: {"description": why, "content": refusal} for status, why in _REFUSALS.items()},
        },
        "security": [{"apiKey": []}],
    }
