"""What the agent asks of every tool: one adapter class per tool, found by name or by what it can do.

An adapter object lives for one attempt, and is called in this order: `prepare`, `launch`, then `signals` and
perhaps `stop` any number of times until `ended`, then `collect`, and `close` whatever happened.
"""

import queue
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from workers.agent import clock
from workers.agent.claim import Claim
from workers.agent.output import Capture, Redactor
from workers.agent.process import ToolProcess

TAIL_BYTES = 8 * 1024
"""How much of each stream's end a result carries (domain.md §3.4: the next prompt quotes 8 KiB)."""


class Level(Enum):
    """How hard a stop is, and the signal it sends (domain.md §2.2.2)."""

    INTERRUPT = signal.SIGINT
    TERMINATE = signal.SIGTERM
    KILL = signal.SIGKILL


@dataclass(frozen=True)
class Signal:
    """Something that a tool let us know while it works.

    `kind` is started, progress, tool_call, usage, needs_input, quota or finished; `activity` is the word for the
    heartbeat where it changes; `detail` depends on the kind (tokens, a question, the time when a quota resets).
    """

    kind: str
    activity: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Invocation:
    """How a tool is started: never a shell string. `environment` is added to the agent's allow-list."""

    argv: tuple[str, ...]
    stdin: bytes
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """How an attempt ended, as far as the tool can tell; the agent adds the patch and the clocks.

    `outcome` is a word of domain.md §2.1.10; `error_code` is empty for a success. `exit_code` is what the shell would
    show (128 + signal), -1 after a timeout, None when the tool never ran. Texts are redacted and bounded.
    """

    success: bool
    outcome: str
    exit_code: int | None
    duration_seconds: float
    stdout_tail: str = ""
    stderr_tail: str = ""
    error_code: str = ""
    error_message: str = ""
    patches: list[str] = field(default_factory=list)
    usage: list[dict[str, Any]] = field(default_factory=list)
    session_ref: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


class Adapter(ABC):
    """Drives one tool for one attempt: knows how it is started, what its output means, and how to judge it."""

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset()
    """The task kinds that it can do; empty = any."""
    domains: ClassVar[frozenset[str]] = frozenset()
    """The domains that it knows; empty = any."""

    def __init__(self, claim: Claim, redactor: Redactor) -> None:
        self.claim = claim
        self.redactor = redactor
        self.stdout = Capture(redactor)
        self.stderr = Capture(redactor)
        self.process: ToolProcess | None = None
        self._signals: queue.SimpleQueue[Signal] = queue.SimpleQueue()
        self._launched_at = 0.0
        self._ended_at: float | None = None

    @abstractmethod
    def prepare(self, directory: Path) -> Invocation:
        """How to start the tool on the checkout in `directory`. Raises InvalidRequest."""

    def launch(self, invocation: Invocation, *, environment: Mapping[str, str], directory: Path) -> None:
        """Starts the tool. Raises CouldNotStart."""
        self._launched_at = clock.now()
        self.process = ToolProcess(
            invocation.argv,
            environment={**environment, **invocation.environment},
            directory=directory,
            stdin=invocation.stdin,
            hear=self._hear,
        )
        self._signals.put(Signal("started", activity="in_tool"))

    def _hear(self, stream: str, chunk: bytes) -> None:
        (self.stdout if stream == "stdout" else self.stderr).add(chunk)
        for heard in self.understand(stream, chunk):
            self._signals.put(heard)

    def understand(self, stream: str, chunk: bytes) -> Iterable[Signal]:
        """What a chunk of output says. Runs in a reader thread, one a stream; a chunk may end in mid-line."""
        return ()

    def signals(self) -> Sequence[Signal]:
        """What the tool has let us know since the last call. Does not wait."""
        heard: list[Signal] = []
        while not self._signals.empty():
            heard.append(self._signals.get())
        return heard

    @property
    def output_bytes(self) -> int:
        """How much the tool has printed so far."""
        return self.stdout.total_bytes + self.stderr.total_bytes

    @property
    def ended(self) -> bool:
        """Whether nothing of the tool runs, or it was never launched."""
        return self.process is None or self.process.ended

    def wait(self, timeout_seconds: float) -> None:
        """Waits for the end of the tool, at most so long."""
        if self.process is not None:
            self.process.wait(timeout_seconds)

    def stop(self, level: Level) -> None:
        """Asks the tool to end, or ends it with everything it started."""
        if self.process is None:
            return
        if level is Level.KILL:
            self.process.kill()
        else:
            self.process.signal(level.value)

    def trust(self, seconds: float) -> None:
        """Lets the tool live so long from now unless said again, even if this program is frozen meanwhile."""
        if self.process is not None:
            self.process.trust(seconds)

    @property
    def duration_seconds(self) -> float:
        """How long the tool has run; 0 before it was launched."""
        if self.process is None:
            return 0.0
        return (self._ended_at or clock.now()) - self._launched_at

    def close(self) -> None:
        """Kills what is left of the tool, and ends the two streams. Safe to repeat."""
        if self.process is not None and self._ended_at is None:
            self.process.close()
            self._ended_at = clock.now()
            self.stdout.close()
            self.stderr.close()

    @property
    def exit_code(self) -> int | None:
        """The tool's exit code as a shell shows it; None when it never ran or its end was not seen."""
        code = None if self.process is None else self.process.exit_code
        return 128 - code if code is not None and code < 0 else code

    @abstractmethod
    def collect(self) -> Result:
        """How the tool ended by its own account. Called once it has ended and was closed."""

    def ending(self, *, success: bool, outcome: str, error_code: str = "", error_message: str = "") -> Result:
        """A result with what every tool has: exit code, duration, the ends of both streams, count of redactions."""
        metadata: dict[str, Any] = {"redactions": self.stdout.redactions + self.stderr.redactions}
        if self.process is not None and self.process.left_alive:
            metadata["left_alive"] = self.process.left_alive
        return Result(
            success=success,
            outcome=outcome,
            exit_code=self.exit_code,
            duration_seconds=self.duration_seconds,
            stdout_tail=self.stdout.tail(TAIL_BYTES),
            stderr_tail=self.stderr.tail(TAIL_BYTES),
            error_code=error_code,
            error_message=error_message,
            metadata=metadata,
        )


class Registry:
    """Adapters by name, in the order in which they were registered."""

    def __init__(self) -> None:
        self._adapters: dict[str, type[Adapter]] = {}

    def register(self, adapter: type[Adapter]) -> type[Adapter]:
        """Adds an adapter; a decorator. Raises ValueError when its name is taken by another one."""
        if self._adapters.setdefault(adapter.name, adapter) is not adapter:
            raise ValueError(f"an adapter named {adapter.name!r} is already registered")
        return adapter

    def get(self, name: str) -> type[Adapter] | None:
        """The adapter of that name; None when there is none."""
        return self._adapters.get(name)

    def find_for(self, kind: str, domain: str | None = None) -> list[type[Adapter]]:
        """The adapters that can do such a task, in order of registration."""
        return [
            adapter
            for adapter in self._adapters.values()
            if (not adapter.kinds or kind in adapter.kinds)
            and (domain is None or not adapter.domains or domain in adapter.domains)
        ]

    def list(self) -> Sequence[str]:
        """The names of all adapters."""
        return tuple(self._adapters)
