"""How often one caller may call: a bucket for each key and person, kept by each web process for itself."""

import math
import threading
import time

from django.conf import settings

from pipeline.refusals import Refused

MAX_CALLERS = 10_000
"""Callers that are remembered at once; who has not called for a while is forgotten first, and loses nothing by it."""

_lock = threading.Lock()
# caller -> the time (of time.monotonic) at which its bucket is full again.
_full_at: dict[str, float] = {}


class SlowDown(Refused):
    """The caller's bucket is empty; `retry_after` says in how many whole seconds there is something in it again."""

    code = "slow_down"
    status = 429

    def __init__(self, seconds: float) -> None:
        super().__init__("Too many calls with this key: slow down", retry_after=max(1, math.ceil(seconds)))


def wait(caller: str) -> float:
    """For how many seconds `caller` is to wait before its next call; 0.0 when it may call now. Counts nothing."""
    rate = settings.SIGNALBOX_CALLS_PER_SECOND
    if not rate:
        return 0.0
    # A call may come while the bucket still lacks less than all that it holds.
    lacks = _full_at.get(caller, 0.0) - time.monotonic()
    return max(0.0, lacks - (settings.SIGNALBOX_CALLS_AT_ONCE - 1) / rate)


def count(caller: str) -> None:
    """One call of `caller`, who is known to be who it says."""
    rate = settings.SIGNALBOX_CALLS_PER_SECOND
    if not rate:
        return
    with _lock:
        now = time.monotonic()
        if len(_full_at) >= MAX_CALLERS and caller not in _full_at:
            for idle in [name for name, at in _full_at.items() if at <= now]:
                del _full_at[idle]
        _full_at[caller] = max(_full_at.get(caller, 0.0), now) + 1 / rate


def admit(caller: str) -> None:
    """Count a call, or refuse it. Raises SlowDown."""
    seconds = wait(caller)
    if seconds > 0:
        raise SlowDown(seconds)
    count(caller)
