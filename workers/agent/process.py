"""A running tool: started below a keeper, fed its prompt, read as it prints, ended with everything it started."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

START_SECONDS = 30.0
"""How long a keeper may take to say whether the tool runs."""

_KEEPER = Path(__file__).with_name("keeper.py")
_JOIN_SECONDS = 5.0


class CouldNotStart(Exception):
    """The tool's program cannot be run; the message says why, such as "No such file or directory: 'x'"."""


class ToolProcess:
    """One tool with everything it starts.

    `hear(stream, chunk)` is called from reader threads, one a stream, with `"stdout"` or `"stderr"`.
    Raises CouldNotStart. Nothing of the tool is left alive once `ended` is true, nor when this program dies.
    """

    def __init__(
        self,
        argv: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        stdin: bytes,
        hear: Callable[[str, bytes], None],
    ) -> None:
        self.exit_code: int | None = None
        self.left_alive = 0
        self._ended = threading.Event()
        self._answered = threading.Event()
        self._refusal: str | None = None
        self._tool_pid: int | None = None
        self._lock = threading.Lock()
        control_read, control_write = os.pipe()
        status_read, status_write = os.pipe()
        self._control: int | None = control_write
        try:
            self._keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(_KEEPER), str(control_read), str(status_write), *argv],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=dict(environment),
                cwd=directory,
                pass_fds=(control_read, status_write),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            os.close(control_write)
            os.close(status_read)
            raise CouldNotStart(str(error)) from error
        finally:
            os.close(control_read)
            os.close(status_write)
        assert self._keeper.stdout is not None
        assert self._keeper.stderr is not None
        self._readers = [
            self._thread(self._read, "stdout", self._keeper.stdout.fileno(), hear),
            self._thread(self._read, "stderr", self._keeper.stderr.fileno(), hear),
        ]
        self._threads = [
            self._thread(self._follow, status_read),
            self._thread(self._prompt, stdin),
        ]
        self._answered.wait(START_SECONDS)
        if self._refusal is not None or not self._answered.is_set():
            self.close()
            raise CouldNotStart(f"{self._refusal or 'the keeper did not answer'}: {argv[0]!r}")

    @staticmethod
    def _thread(target: Callable[..., None], *arguments: object) -> threading.Thread:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        thread.start()
        return thread

    @property
    def ended(self) -> bool:
        """Whether the tool and all it started are gone."""
        return self._ended.is_set()

    @property
    def is_frozen(self) -> bool:
        """Whether the tool's own process is stopped by a signal (Linux; elsewhere never)."""
        try:
            stat = Path(f"/proc/{self._tool_pid}/stat").read_bytes()
        except OSError:
            return False
        return stat.rpartition(b")")[2].split()[:1] in ([b"T"], [b"t"])

    def wait(self, timeout_seconds: float) -> bool:
        """Waits for the end at most so long; whether it has come."""
        return self._ended.wait(timeout_seconds)

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the tool's process group."""
        self._tell(f"signal {int(number)}")

    def kill(self) -> None:
        """Kills the tool and everything it started, at once."""
        self._tell("kill")

    def trust(self, seconds: float) -> None:
        """Lets the tool live `seconds` from now unless said again; the keeper sees to it even if we are frozen."""
        self._tell(f"trust {seconds:.3f}")

    def close(self) -> None:
        """Kills what still lives and gives back threads and files. Safe to repeat."""
        with self._lock:
            if self._control is not None:
                os.close(self._control)  # the keeper takes the end of this file for our death
                self._control = None
        try:
            self._keeper.wait(15.0)
        except subprocess.TimeoutExpired:
            self._kill_without_keeper()
            self._keeper.kill()
            self._keeper.wait()
        for thread in (*self._threads, *self._readers):
            thread.join(_JOIN_SECONDS)
        for stream in (self._keeper.stdin, self._keeper.stdout, self._keeper.stderr):
            with contextlib.suppress(OSError, ValueError):
                if stream is not None:
                    stream.close()

    def _tell(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError):
            if self._control is not None:
                os.write(self._control, line.encode() + b"\n")

    def _follow(self, status: int) -> None:
        """Reads what the keeper says until it has nothing more to say."""
        with open(status, "rb") as lines:
            for line in lines:
                word, _, value = line.decode().strip().partition(" ")
                if word == "started":
                    self._tool_pid = int(value)
                elif word == "refused":
                    self._refusal = os.strerror(int(value))
                elif word == "ended":
                    self.exit_code = int(value)
                elif word == "left":
                    self.left_alive = int(value)
                self._answered.set()
        if self._tool_pid is None and self._refusal is None:
            self._refusal = "the keeper ended early"
        if self.exit_code is None:
            self._kill_without_keeper()
        for reader in self._readers:  # so that all output is in hand when the end is announced
            reader.join(_JOIN_SECONDS)
        self._answered.set()
        self._ended.set()

    def _kill_without_keeper(self) -> None:
        if self._tool_pid is not None:
            with contextlib.suppress(OSError):
                os.killpg(self._tool_pid, signal.SIGKILL)

    def _prompt(self, text: bytes) -> None:
        stdin = self._keeper.stdin
        assert stdin is not None
        with contextlib.suppress(OSError, ValueError):
            stdin.write(text)
        with contextlib.suppress(OSError, ValueError):
            stdin.close()

    @staticmethod
    def _read(name: str, descriptor: int, hear: Callable[[str, bytes], None]) -> None:
        with contextlib.suppress(OSError):
            while chunk := os.read(descriptor, 65536):
                hear(name, chunk)
