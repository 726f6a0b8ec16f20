"""The names that programs outside use for what happens, read as kinds of our vocabulary (domain.md §5.3)."""

from typing import NamedTuple

from pipeline.kinds import KINDS

ALIASES = {
    "worker_spawned": "worker.started",
    "worker_terminated": "worker.stopped",
    "heartbeat": "worker.heartbeat",
    "task_assigned": "worker.assigned",
    "tool_invoked": "step.started",
    "tool_succeeded": "step.succeeded",
    "tool_failed": "step.failed",
    "circuit_opened": "breaker.opened",
    "circuit_closed": "breaker.closed",
    "circuit_half_open": "breaker.half_opened",
}
BY_STATUS = {"run_completed": "run", "step_completed": "step"}
STATUSES = {
    "succeeded": "succeeded",
    "completed": "succeeded",
    "success": "succeeded",
    "failed": "failed",
    "error": "failed",
}
_SNAKE = {kind.replace(".", "_"): kind for kind in KINDS}


class Read(NamedTuple):
    """A name as it was understood; `original_kind` is set when the vocabulary does not know it."""

    kind: str
    original_kind: str = ""


def read_kind(name: str, status: str = "") -> Read:
    """The registered kind that `name` means; `note.added` with the original for a name that nobody knows."""
    if name in KINDS:
        return Read(name)
    if name in BY_STATUS and status in STATUSES:
        return Read(f"{BY_STATUS[name]}.{STATUSES[status]}")
    known = ALIASES.get(name) or _SNAKE.get(name)
    return Read(known) if known in KINDS else Read("note.added", name)
