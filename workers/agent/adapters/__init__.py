"""What the agent asks of every tool: one adapter class per tool, found by name or by what it can do.

An adapter object lives for one attempt, and is called in this order: `prepare`, `launch`, then `signals` and
perhaps `stop` any number of times until `ended`, then `close`, and `collect` unless the agent stopped it for a reason
of its own.
"""

import queue
import signal
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar

from workers.agent import clock, quota
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

    `kind` is started, progress, tool_call, usage, needs_input, quota, retry or finished; `activity` is the word for the
    heartbeat where it changes.
    """

    kind: str
    activity: str | None = None


@dataclass(frozen=True)
class Verdict:
    """What an attempt came to, other than a success.

    `outcome` is a word of domain.md §2.1.10. `until` is when the provider serves again (RFC 3339, UTC), where a
    quota's end is known; `question` is what a person is asked.
    """

    outcome: str
    error_code: str
    message: str
    until: str = ""
    question: Mapping[str, Any] | None = None


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
    show (128 + signal), -1 after a timeout, None when the tool never ran. Texts are redacted and bounded. `unchanged`
    is what a success comes to when the checkout turns out not to have changed.
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
    until: str = ""
    question: Mapping[str, Any] | None = None
    unchanged: Verdict | None = None
    complaints: list[str] = field(default_factory=list)
    metadata: dict[str, Any] = field(default_factory=dict)


class Adapter(ABC):
    """Drives one tool for one attempt: knows how it is started, what its output means, and how to judge it."""

    name: ClassVar[str]
    kinds: ClassVar[frozenset[str]] = frozenset()
    """The task kinds that it can do; empty = any."""
    domains: ClassVar[frozenset[str]] = frozenset()
    """The domains that it knows; empty = any."""
    litter: ClassVar[tuple[str, ...]] = ()
    """Names (as in .gitignore) of the files that the tool leaves in a checkout for itself; never part of a patch."""

    def __init__(self, claim: Claim, redactor: Redactor) -> None:
        self.claim = claim
        self.redactor = redactor
        self.stdout = Capture(redactor)
        self.stderr = Capture(redactor)
        self.process: ToolProcess | None = None
        self.session_ref = ""
        self.early: Verdict | None = None
        """Set once the tool must be ended before it ends itself: its money is used up, it asks, it waits for quota."""
        self.complaints: list[str] = []
        """What was wrong with the tool's own account of itself, for the end of the output."""
        self._signals: queue.SimpleQueue[Signal] = queue.SimpleQueue()
        self._launched_at = 0.0
        self._ended_at: float | None = None
        self._waits_since: float | None = None
        self._until = ""

    @abstractmethod
    def prepare(self, directory: Path, scratch: Path) -> Invocation:
        """How to start the tool on the checkout in `directory`. Raises InvalidRequest.

        `scratch` is a folder of this attempt outside of the checkout.
        """

    def launch(self, invocation: Invocation, *, environment: Mapping[str, str], directory: Path) -> None:
        """Starts the tool. Raises CouldNotStart."""
        self._launched_at = clock.now()
        self.put(Signal("started", activity="in_tool"))  # before the tool can say otherwise
        self.process = ToolProcess(
            invocation.argv,
            environment={**environment, **invocation.environment},
            directory=directory,
            stdin=invocation.stdin,
            hear=self._hear,
        )

    def _hear(self, stream: str, chunk: bytes) -> None:
        (self.stdout if stream == "stdout" else self.stderr).add(chunk)
        for heard in self.understand(stream, chunk):
            self.put(heard)

    def put(self, heard: Signal) -> None:
        """Passes a signal on; a tool that waits for quota waits until it does something else."""
        if heard.activity == "quota_wait":
            self._waits_since = self._waits_since or clock.now()
        elif heard.activity is not None:
            self._waits_since = None
        self._signals.put(heard)

    def understand(self, stream: str, chunk: bytes) -> Iterable[Signal]:
        """What a chunk of output says. Runs in a reader thread, one a stream; a chunk may end in mid-line."""
        return ()

    def signals(self) -> Sequence[Signal]:
        """What the tool has let us know since the last call. Does not wait; may set `early`."""
        heard: list[Signal] = []
        while not self._signals.empty():
            heard.append(self._signals.get())
        since = self._waits_since
        if self.early is None and since is not None and clock.now() - since > quota.PATIENCE_SECONDS:
            self.early = self.quota_verdict("it waits for its provider")
        return heard

    def waits_for_quota(self, until: str = "") -> Signal:
        """The provider refuses the tool for now, until a known time or not."""
        self._until = until or self._until
        return Signal("quota", activity="quota_wait")

    def quota_verdict(self, reason: str) -> Verdict:
        """The attempt came to nothing for want of quota."""
        until = f" until {self._until}" if self._until else ""
        message = f"{self.claim.request.tool} has no quota{until}: {reason}"
        return Verdict("quota_wait", "quota", message[:2000], until=self._until)

    @property
    def output_bytes(self) -> int:
        """How much the tool has printed so far."""
        return self.stdout.total_bytes + self.stderr.total_bytes

    @property
    def movement(self) -> int:
        """A number that grows whenever the tool was seen to get on; what a heartbeat calls progress."""
        return self.output_bytes

    @property
    def is_frozen(self) -> bool:
        """Whether the tool stands still by a signal (SIGSTOP): it is there, and does not live."""
        return self.process is not None and self.process.is_frozen

    @property
    def left_alive(self) -> int:
        """How many processes of the tool could not be killed."""
        return 0 if self.process is None else self.process.left_alive

    def usage(self) -> list[dict[str, Any]]:
        """What the tool used up by its own account, one item a model, however it ended. Called after `close`."""
        return []

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

    def ending(
        self, *, success: bool, outcome: str, error_code: str = "", error_message: str = "", **more: Any
    ) -> Result:
        """A result with what every tool has: exit code, duration, ends of both streams, use, session, redactions."""
        metadata: dict[str, Any] = {"redactions": self.stdout.redactions + self.stderr.redactions}
        if self.left_alive:
            metadata["left_alive"] = self.left_alive
        return Result(
            success=success,
            outcome=outcome,
            exit_code=self.exit_code,
            duration_seconds=self.duration_seconds,
            stdout_tail=self.stdout.tail(TAIL_BYTES),
            stderr_tail=self.stderr.tail(TAIL_BYTES),
            error_code=error_code,
            error_message=error_message,
            usage=[] if self.process is None else self.usage(),
            session_ref=self.session_ref,
            complaints=self.complaints,
            metadata=metadata,
            **more,
        )

    def judged(self, verdict: Verdict) -> Result:
        """A result that says what `verdict` says."""
        return self.ending(
            success=False,
            outcome=verdict.outcome,
            error_code=verdict.error_code,
            error_message=verdict.message,
            until=verdict.until,
            question=verdict.question,
        )

    def gone(self) -> Result:
        """The result of a tool that ended without a word of its own on how it went."""
        tool, code = self.claim.request.tool, self.exit_code
        if code is None:
            return self.judged(Verdict("infra_lost", "tool_lost", "The tool's end was not seen"))
        if code == 0:
            return self.judged(Verdict("task_failed", "no_result", f"{tool} ended without a result"))
        return self.judged(Verdict("task_failed", f"exit_{code}", f"{tool} ended with exit code {code}"))


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
