"""A metric's point and a log's record, as both encodings of OTLP/HTTP tell them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipeline.refusals import Refused

NAME_LENGTH = 100
MOST_REASONS = 5
TEMPORALITIES = {1: "delta", 2: "cumulative"}
# DataPointFlags: the series has no value at this time.
NO_RECORDED_VALUE = 1

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


def event_name(given: str, attributes: Attributes, body: Any) -> str:
    """The event's full name: the record's own, the attribute event.name, or the text of its body.

    Claude Code writes `claude_code.api_request` into the body and `api_request` into the attribute.
    """
    named = attributes.get("event.name")
    short = given or (named if isinstance(named, str) else "")
    if isinstance(body, str) and len(body) <= NAME_LENGTH and (not short or body.endswith(f".{short}")):
        return body if " " not in body else short
    return short
