"""Named places where a test may kill the process: a no-op unless the environment asks (reliability.md §3)."""

import os

_armed, _, _count = os.environ.get("FAULT", "").partition(":")
_left = int(_count) if _count.isdigit() else 1


def crashpoint(name: str) -> None:
    """End this process at once (exit status 137, as by SIGKILL) when FAULT is `name`, or `name:n` and this is the
    n-th pass.
    """
    global _left
    if _armed and _armed == name:
        _left -= 1
        if _left <= 0:
            os._exit(137)
