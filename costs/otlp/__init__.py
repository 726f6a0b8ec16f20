"""What agent tools send over OTLP/HTTP, read: metric points and log records, and which of them count money; pure.

The format is that of opentelemetry-proto (docs/specification.md, "OTLP/HTTP"), in both of its encodings.
"""

from costs.otlp.bodies import JSON, PROTOBUF, answer, encoding_of, failure, inflate, read_logs, read_metrics
from costs.otlp.counting import (
    BOOK,
    COUNT,
    EVENTS,
    GENAI_EVENT,
    GENAI_TOKENS,
    HOUSE_IDS,
    HOUSE_PREFIX,
    METRICS,
    MOST_NAMES,
    REPLACE,
    Mark,
    Sighting,
    Sightings,
    decide,
    series,
    sight_logs,
    sight_metrics,
)
from costs.otlp.signals import NAME_LENGTH, Batch, Entry, Point, Unreadable

__all__ = [
    "BOOK", "COUNT", "EVENTS", "GENAI_EVENT", "GENAI_TOKENS", "HOUSE_IDS", "HOUSE_PREFIX", "JSON", "METRICS",
    "MOST_NAMES", "NAME_LENGTH", "PROTOBUF", "REPLACE", "Batch", "Entry", "Mark", "Point", "Sighting", "Sightings",
    "Unreadable", "answer", "decide", "encoding_of", "failure", "inflate", "read_logs", "read_metrics", "series",
    "sight_logs", "sight_metrics",
]  # fmt: skip
