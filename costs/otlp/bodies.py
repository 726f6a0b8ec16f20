"""The bodies of OTLP/HTTP: inflated, read, and answered in the encoding that they came in."""

import json
import zlib

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceResponse,
)

from costs.otlp import json_encoding, protobuf_encoding
from costs.otlp.signals import Batch, Unreadable
from pipeline.refusals import Refused

JSON, PROTOBUF = "application/json", "application/x-protobuf"


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


def read_metrics(body: bytes, content_type: str) -> Batch:
    """The points of an ExportMetricsServiceRequest, in their order. Raises Unreadable, and Refused (415).

    A point that cannot be read is refused alone. A point without a recorded value is left out.
    """
    if encoding_of(content_type) == PROTOBUF:
        return protobuf_encoding.read_metrics(body)
    return json_encoding.read_metrics(body)


def read_logs(body: bytes, content_type: str) -> Batch:
    """The log records of an ExportLogsServiceRequest, in their order. Raises Unreadable, and Refused (415)."""
    if encoding_of(content_type) == PROTOBUF:
        return protobuf_encoding.read_logs(body)
    return json_encoding.read_logs(body)


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
