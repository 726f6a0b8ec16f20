"""What the tools that print JSON lines have in common: lines become signals, and a transcript that people can read."""

import logging
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

from workers.agent.adapters import Adapter, Signal
from workers.agent.claim import Claim
from workers.agent.lines import Lines, read_object
from workers.agent.output import Redactor

_MOST_CALLS = 1000
_STANDSTILL = ("quota", "retry")  # it lives, but does not get on: asking again for hours is no progress

logger = logging.getLogger("signalbox.agent")


class Streaming(Adapter):
    """Reads a tool's standard output as JSON lines.

    What is kept of them is a transcript: secrets are looked for in the texts as they are, not as JSON escapes them.
    A line that is no JSON object is kept as it stands, and moves nothing.
    """

    def __init__(self, claim: Claim, redactor: Redactor) -> None:
        super().__init__(claim, redactor)
        self._lines = Lines()
        self._printed_bytes = 0
        self._movement = 0
        self._unreadable = 0
        self._told: list[bytes] = []
        self._open_calls: set[str] = set()

    # --- what it heard ---

    def _hear(self, stream: str, chunk: bytes) -> None:
        if stream != "stdout":
            super()._hear(stream, chunk)
            return
        self._printed_bytes += len(chunk)
        for line in self._lines.feed(chunk):
            self._take(line)
        self._write_down()

    def _take(self, line: bytes) -> None:
        document = read_object(line)
        if document is None:
            if line.strip():
                self._unreadable += 1
                self._told.append(line)
            return
        try:
            heard = list(self.read(document))
        except (TypeError, ValueError, AttributeError, LookupError):
            # Another form than the documented one. A reader that dies would leave the tool hanging at a full pipe.
            logger.warning("an event of %s in an unknown form", self.name, exc_info=True)
            self._unreadable += 1
            return
        self._movement += any(signal.kind not in _STANDSTILL for signal in heard)
        for signal in heard:
            self.put(signal)

    @abstractmethod
    def read(self, document: dict[str, Any]) -> Iterable[Signal]:
        """What a line says; nothing for a kind of event that we do not know. Runs in the reader thread."""

    def tell(self, text: str) -> None:
        """Adds a line to the transcript."""
        if text:
            self._told.append(text.encode("utf-8", "replace"))

    def _write_down(self) -> None:
        """Adds what was told to the transcript, at once: a redactor looks at what it holds back every time."""
        if self._told:
            self.stdout.add(b"\n".join((*self._told, b"")))
            self._told.clear()

    def opened(self, call: str, what: str) -> Iterator[Signal]:
        """The tool has called something of its own, which may be silent for long."""
        if call and len(self._open_calls) < _MOST_CALLS:
            self._open_calls.add(call)
        self.tell(f"[{what}]")
        yield Signal("tool_call", activity="in_tool")

    def closed(self, call: str) -> Iterator[Signal]:
        """What it called has answered."""
        self._open_calls.discard(call)
        yield Signal("progress", activity="in_tool" if self._open_calls else "waiting_model")

    @property
    def output_bytes(self) -> int:
        """How much the tool has printed so far, as it came."""
        return self._printed_bytes + self.stderr.total_bytes

    @property
    def movement(self) -> int:
        """How many events were understood: a tool that prints nonsense does not get on."""
        return self._movement

    def close(self) -> None:
        """Kills what is left of the tool, and reads what it left unread. Safe to repeat."""
        if self.process is not None and self._ended_at is None:
            self.process.close()
            for line in self._lines.flush():
                self._take(line)
            self._write_down()
            if self._unreadable:
                self.complaints.append(f"{self._unreadable} lines of the tool were not understood")
            if self._lines.left_out:
                self.complaints.append(f"{self._lines.left_out} lines of the tool were too long to be read")
        super().close()
