"""Pure: what a gate's definition says of the resources of its command, checked, and as the runner's limits."""

from collections.abc import Mapping
from typing import Any

from gates.runner import Limits
from pipeline.refusals import InvalidField

MIB = 1024 * 1024

# name in the definition: (field of Limits, unit, least, most). The least lets an interpreter start.
KNOWN: Mapping[str, tuple[str, int, int, int]] = {
    "memory_mb": ("memory_bytes", MIB, 64, 1024 * 1024),
    "all_memory_mb": ("all_memory_bytes", MIB, 64, 1024 * 1024),
    "tmp_mb": ("tmp_bytes", MIB, 1, 64 * 1024),
    "disk_mb": ("disk_bytes", MIB, 1, 1024 * 1024),
    "file_mb": ("file_bytes", MIB, 1, 1024 * 1024),
    "output_mb": ("output_bytes", MIB, 1, 64),
    "files": ("disk_files", 1, 100, 100_000_000),
    "open_files": ("open_files", 1, 32, 1_000_000),
    "processes": ("processes", 1, 4, 100_000),
    "cpu_seconds": ("cpu_seconds", 1, 1, 1_000_000),
}


def check(given: Any) -> None:
    """Raises InvalidField for an unknown name, and for what is no whole number within its range."""
    if not isinstance(given, dict):
        raise InvalidField("resources", "an object: name of a resource to a whole number")
    for name, value in given.items():
        if name not in KNOWN:
            raise InvalidField("resources", f"unknown resource {name!r}; known are {', '.join(KNOWN)}")
        _, _, least, most = KNOWN[name]
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidField("resources", f"{name} must be a whole number from {least} to {most}")


def limits(given: Mapping[str, int]) -> Limits:
    """The runner's limits: the defaults, and what the definition says instead."""
    return Limits(**{KNOWN[name][0]: value * KNOWN[name][1] for name, value in given.items() if name in KNOWN})
