"""What an attempt used up: the tool's running time, and what the tool itself wrote down."""

import json
import math
import os
import stat
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

FILE_BYTES = 64 * 1024
MOST_ITEMS = 100

_TEXTS = {"resource_type", "resource_name", "model", "provider", "usage_unit", "currency", "idempotency_key"}
_DECIMALS = {"amount", "usage_quantity", "usage_rate", "duration_seconds"}
_COUNTS = {
    "tokens_uncached_input",
    "tokens_cache_read",
    "tokens_cache_write_5m",
    "tokens_cache_write_1h",
    "tokens_output",
}
_FLAGS = {"assumed_ttl"}
_RESOURCE_TYPES = {"api_call", "compute_time", "storage", "network", "tool_usage", "custom"}
_TEXT_LENGTH = 200
_WORST_SHOWN = 5


class Unusable(Exception):
    """A line of the usage file cannot be an item of usage; the message says why."""


def running_time(lease: str, duration_seconds: float) -> dict[str, Any]:
    """The usage item for the time that the tool ran, once per lease."""
    duration = f"{duration_seconds:.3f}"
    return {
        "resource_type": "compute_time",
        "usage_quantity": duration,
        "usage_unit": "second",
        "duration_seconds": duration,
        "source": "agent",
        "idempotency_key": f"{lease}:compute",
    }


def read_file(path: Path, lease: str) -> tuple[list[dict[str, Any]], list[str]]:
    """The items that a tool wrote to its usage file, one JSON object a line, and what was wrong with the file.

    At most 64 KiB and 100 items are read. An item without a key gets `<lease>:<line number>`. Never raises: the file
    is the tool's. A field that a cost record does not have is left out and named; an item that cannot be right is
    left out whole.
    """
    wrong: list[str] = []
    raw = _bytes_of(path, wrong)
    lines = raw.split(b"\n")
    if len(raw) > FILE_BYTES:
        wrong.append(f"more than {FILE_BYTES} bytes: the rest is not read")
        lines = raw[:FILE_BYTES].split(b"\n")[:-1]
    items: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if len(items) >= MOST_ITEMS:
            wrong.append(f"more than {MOST_ITEMS} items: the rest is not read")
            break
        try:
            item, ignored = _item(line)
        except Unusable as error:
            wrong.append(f"line {number}: {error}")
            continue
        wrong += [f"line {number}: {name!r} is no field of a cost record" for name in ignored]
        key = item.setdefault("idempotency_key", f"{lease}:{number}")
        if key in items:
            wrong.append(f"line {number}: idempotency_key was used above")
            continue
        items[key] = item
    if len(wrong) > _WORST_SHOWN:
        wrong[_WORST_SHOWN:] = [f"and {len(wrong) - _WORST_SHOWN} more"]
    return list(items.values()), wrong


def _bytes_of(path: Path, wrong: list[str]) -> bytes:
    """At most one byte more than allowed; nothing of what is no plain file (a link, a pipe that would never end)."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    except OSError as error:
        wrong.append(f"cannot be read: {error.strerror}")
        return b""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        wrong.append("is not a plain file")
        return b""
    with open(descriptor, "rb") as file:
        return file.read(FILE_BYTES + 1)


def _item(line: bytes) -> tuple[dict[str, Any], list[str]]:
    """The item on one line, and the names in it that are left out. Raises Unusable when it cannot be right."""
    try:
        written = json.loads(line)
    except (ValueError, RecursionError):
        raise Unusable("not JSON") from None
    if not isinstance(written, dict):
        raise Unusable("not an object")
    if written.get("resource_type") not in _RESOURCE_TYPES:
        raise Unusable("resource_type must be one of " + ", ".join(sorted(_RESOURCE_TYPES)))
    item: dict[str, Any] = {"source": "tool"}
    ignored: list[str] = []
    for name, value in written.items():
        if name in _TEXTS:
            if not isinstance(value, str) or not 0 < len(value) <= _TEXT_LENGTH or "\0" in value:
                raise Unusable(f"{name} must be a text of at most {_TEXT_LENGTH} characters")
            item[name] = value
        elif name in _COUNTS:
            if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
                raise Unusable(f"{name} must be a whole number, 0 or more")
            item[name] = value
        elif name in _DECIMALS:
            item[name] = _decimal(name, value)
        elif name in _FLAGS and isinstance(value, bool):
            item[name] = value
        elif name != "source":
            ignored.append(name[:40])
    return item, ignored


def _decimal(name: str, value: object) -> str:
    """A plain decimal text, as money and quantities travel (api.md)."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise Unusable(f"{name} must be a number")
    if isinstance(value, float) and not math.isfinite(value):
        raise Unusable(f"{name} must be finite")
    try:
        number = Decimal(str(value))
    except InvalidOperation:
        raise Unusable(f"{name} must be a number") from None
    if not number.is_finite() or number < 0 or number >= Decimal(10) ** 12:
        raise Unusable(f"{name} must be 0 or more, and finite")
    return f"{number:f}"
