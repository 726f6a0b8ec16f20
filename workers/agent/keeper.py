"""The small process between agent and tool: nothing that a tool starts outlives it, nor the agent, nor the lease.

It is run as a file (`python -I -S keeper.py CONTROL_FD STATUS_FD argv…`), not imported, and needs the standard
library only. The tool runs in a session of its own below the keeper, which adopts every orphan of the tool
(PR_SET_CHILD_SUBREAPER, Linux), so that a double fork with setsid is still found and killed.

It reads from CONTROL_FD, a line each: `signal N` (to the tool's process group), `kill` (everything), `trust SECONDS`
(kill everything unless this is said again in time). The end of that file means that the agent is gone: kill everything.
It writes to STATUS_FD: `started PID` or `refused ERRNO`, then `ended CODE` (negative: the signal) and how many
processes it could not kill: `left N`.
"""

import contextlib
import ctypes
import os
import select
import signal
import sys
import time

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36
LINGER_SECONDS = 10.0


def now() -> float:
    """Seconds that go on while the machine sleeps; agrees with the agent's clock."""
    clock = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if clock is None else time.clock_gettime(clock)


def prctl(option: int, value: int) -> None:
    """Sets a process attribute where the system has it; elsewhere nothing."""
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def descendants() -> list[int]:
    """Every process below this one, from /proc; empty where there is none."""
    parents: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for name in os.listdir("/proc"):
            if name.isdecimal():
                with contextlib.suppress(OSError, ValueError, IndexError), open(f"/proc/{name}/stat", "rb") as stat:
                    # The command may hold blanks and brackets: what follows the last bracket is safe to split.
                    parents[int(name)] = int(stat.read().rpartition(b")")[2].split()[1])
    found = {os.getpid()}
    grew = True
    while grew:
        below = {pid for pid, parent in parents.items() if parent in found and pid not in found}
        found |= below
        grew = bool(below)
    return sorted(found - {os.getpid()})


class Keeper:
    """Starts one tool, passes signals on, and leaves when everything below it is dead."""

    def __init__(self, control: int, status: int, argv: list[str]) -> None:
        self.control, self.status, self.argv = control, status, argv
        self.tool = 0
        self.exit_code: int | None = None
        self.kill_at: float | None = None
        self.killing = False
        self.unread = b""

    def say(self, line: str) -> None:
        """Tells the agent; an agent that is gone is no error."""
        with contextlib.suppress(OSError):
            os.write(self.status, line.encode() + b"\n")

    def run(self) -> None:
        """Everything, in order."""
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        wake_read, wake_write = os.pipe()
        os.set_blocking(wake_read, False)
        os.set_blocking(wake_write, False)
        signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda number, frame: None)
        if not self.start():
            return
        while self.exit_code is None:
            self.wait(wake_read)
            self.reap()
            if self.killing:
                self.kill_all()
        self.kill_group(signal.SIGKILL)
        self.say(f"ended {self.exit_code}")
        self.say(f"left {self.clear()}")

    def start(self) -> bool:
        """Forks the tool; False after saying `refused` when its program cannot be run."""
        told_read, told_write = os.pipe()
        self.tool = os.fork()
        if self.tool == 0:
            self.become_tool(told_write)
        os.close(told_write)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):  # so that the tool's pipes end with the tool
            os.dup2(nothing, stream)
        refusal = os.read(told_read, 64)
        os.close(told_read)
        if refusal:
            os.waitpid(self.tool, 0)
            self.say(f"refused {refusal.decode()}")
            return False
        self.say(f"started {self.tool}")
        return True

    def become_tool(self, told: int) -> None:
        """Runs in the child and does not return."""
        try:
            os.setsid()
            prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.set_wakeup_fd(-1)
            for number in (
                signal.SIGINT,
                signal.SIGTERM,
                signal.SIGHUP,
                signal.SIGQUIT,
                signal.SIGCHLD,
                signal.SIGPIPE,
                signal.SIGXFSZ,
            ):
                signal.signal(number, signal.SIG_DFL)
            os.close(self.control)
            os.close(self.status)
            os.execvp(self.argv[0], self.argv)
        except OSError as error:
            os.write(told, str(error.errno).encode())
        finally:
            os._exit(127)

    def wait(self, wake: int) -> None:
        """Until a child ends, the agent speaks, or time is up."""
        patience = 0.01 if self.killing else 60.0
        if self.kill_at is not None:
            patience = max(0.0, min(patience, self.kill_at - now()))
        heard, _, _ = select.select([wake] if self.killing else [wake, self.control], [], [], patience)
        if wake in heard:
            with contextlib.suppress(BlockingIOError):
                os.read(wake, 4096)
        if self.control in heard:
            self.listen()
        if self.kill_at is not None and now() >= self.kill_at:
            self.killing = True

    def listen(self) -> None:
        """Obeys what the agent wrote."""
        said = os.read(self.control, 4096)
        if not said:
            self.killing = True
            return
        *lines, self.unread = (self.unread + said).split(b"\n")
        for line in lines:
            word, _, value = line.partition(b" ")
            if word == b"signal":
                self.kill_group(int(value))
            elif word == b"kill":
                self.killing = True
            elif word == b"trust":
                self.kill_at = now() + float(value)

    def reap(self) -> None:
        """Collects the dead, the tool and adopted ones."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self.tool:
                    self.exit_code = os.waitstatus_to_exitcode(status)

    def kill_group(self, number: int) -> None:
        """Signals the tool's process group."""
        with contextlib.suppress(OSError):
            os.killpg(self.tool, number)

    def kill_all(self) -> None:
        """Kills everything that lives below, once."""
        self.kill_group(signal.SIGKILL)
        for pid in descendants():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def clear(self) -> int:
        """Kills until nothing is left, for at most ten seconds; how many are left."""
        give_up_at = now() + LINGER_SECONDS
        while True:
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                return 0
            if now() > give_up_at:
                return len(descendants())
            self.kill_all()
            time.sleep(0.005)


if __name__ == "__main__":
    Keeper(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:]).run()
