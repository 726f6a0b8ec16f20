"""The agent's only clock: seconds that go on while the machine sleeps, and never jump."""

import time

_BOOT_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", None)


def now() -> float:
    """Seconds since some fixed moment. A suspended machine must not believe that its lease still stands."""
    return time.monotonic() if _BOOT_CLOCK is None else time.clock_gettime(_BOOT_CLOCK)
