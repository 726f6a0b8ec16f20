"""The program that stands between a gate's command and the machine: one process of it per gate run.

Standard library only; `runner.py` starts it by its path. It gives the command its own session, limits, user and
environment, and it answers for all that the command starts: whatever happens to the command, to the runner or to
this program, nothing of it is left running.

Two processes do that, because one can be killed. The *guard* keeps the time and reports; the *keeper*, its only
child, starts the command and reaps. Both are made to inherit orphans (PR_SET_CHILD_SUBREAPER), so a process that left
its session and lost its parent is still below them. If the keeper dies, its orphans fall to the guard, which ends
them; if the guard or the runner dies, the keeper is told (PR_SET_PDEATHSIG, or the end of the control pipe).

Protocol: one JSON line on standard input (see `Spec`), which then stays open as long as the runner wants the command
to live; its end means "end everything now". Standard output and error are the command's. One JSON line (see `report`)
goes to the descriptor named by the only argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, TypedDict

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38

NOT_FOUND, NOT_STARTED = 127, 126  # as shells say it
ENDING_SECONDS = 10.0  # how long we go on killing before we report what is left; a process in the kernel cannot die
LONGEST_LOOK_SECONDS = 0.1  # between two counts of the command's processes


class Spec(TypedDict):
    """What the runner asks for. Sizes in bytes, times in seconds; `uid` None keeps the user; `parent` is the runner.

    `confined` False leaves out limits, other user and no_new_privs (sandbox level 0).
    """

    argv: list[str]
    cwd: str
    env: dict[str, str]
    parent: int
    uid: int | None
    confined: bool
    timeout_seconds: float
    grace_seconds: float
    memory_bytes: int
    cpu_seconds: int
    file_bytes: int
    open_files: int
    processes: int


_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: int) -> None:
    """The system call. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


# --- what is below us ---------------------------------------------------------------------------------------------


def descendants() -> set[int]:
    """Ids of the living processes below this one, zombies left out."""
    children: dict[int, list[int]] = {}
    dead: set[int] = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            with open(f"/proc/{entry.name}/stat", "rb") as file:
                # The name stands in brackets and may itself hold brackets and blanks: read on from the last one.
                state, parent = file.read().rpartition(b") ")[2].split(None, 2)[:2]
        except (OSError, ValueError):
            continue
        children.setdefault(int(parent), []).append(int(entry.name))
        if state in {b"Z", b"X"}:
            dead.add(int(entry.name))
    found: set[int] = set()
    ahead = [os.getpid()]
    while ahead:
        for child in children.get(ahead.pop(), ()):
            if child not in found:
                found.add(child)
                ahead.append(child)
    return found - dead


def send(number: int, pids: Iterable[int]) -> None:
    """Sends a signal to processes; the ones that are gone already are no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def children() -> set[int]:
    """Ids of this process's children, by one short read; empty where the kernel has no such list."""
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
        return {int(pid) for pid in file.read().split()}
    return set()


def reap() -> bool:
    """Takes the ends of all children that have ended; whether there are others.

    False is the proof that nothing lives below us, as every orphan becomes our child. A walk through /proc is none:
    a process that forks and exits all the time has another id whenever the walk comes to it.
    """
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
        return True
    return False


def end_all() -> tuple[int, int]:
    """Ends everything below this process; returns how many were ended, and how many would not go.

    Stopped first, killed then: a stopped process holds its place among the limited number, and cannot fork again,
    where a killed one makes room for the next fork. What no walk finds is caught between two of its forks, when it
    has lost its parent and is our child.
    """
    ended: set[int] = set()
    until = time.monotonic() + ENDING_SECONDS
    while reap() and time.monotonic() < until:
        stopped: set[int] = set()
        while (alive := descendants() - stopped) and time.monotonic() < until:
            send(signal.SIGSTOP, alive)
            stopped |= alive
        send(signal.SIGKILL, stopped)
        ended |= stopped
        for _ in range(100):
            if not reap():
                break
            caught = children()
            send(signal.SIGKILL, caught)
            ended |= caught
    if not reap():
        return len(ended), 0
    left = descendants()
    return len(ended - left), max(1, len(left))


# --- the command --------------------------------------------------------------------------------------------------


def become_command(spec: Spec, keeper: int, failed: Callable[[int, str], NoReturn]) -> NoReturn:
    """Turns this new process into the command; `failed` takes an exit code and a sentence, and does not return."""
    try:
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o022)
        if spec["confined"]:
            confine(spec)
        # After the change of user, which clears it.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(NOT_STARTED)
        os.chdir(spec["cwd"])
    except (OSError, ValueError) as problem:
        failed(NOT_STARTED, f"the command could not be confined: {problem}")
    try:
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except FileNotFoundError:
        failed(NOT_FOUND, f"the command {spec['argv'][0]!r} was not found")
    except (OSError, ValueError) as problem:
        failed(NOT_STARTED, f"the command {spec['argv'][0]!r} cannot be run: {problem}")


def confine(spec: Spec) -> None:
    """Sets the limits, drops what root has, and bars new rights. Raises OSError or ValueError."""
    other_user = spec["uid"] is not None and spec["uid"] != os.getuid()
    limits = {
        resource.RLIMIT_AS: spec["memory_bytes"],
        resource.RLIMIT_CPU: spec["cpu_seconds"],
        resource.RLIMIT_FSIZE: spec["file_bytes"],
        resource.RLIMIT_NOFILE: spec["open_files"],
        resource.RLIMIT_CORE: 0,
    }
    if other_user:
        # The kernel counts it by user: with our own user it would count the service too. The guard counts instead.
        limits[resource.RLIMIT_NPROC] = spec["processes"]
    for kind, wanted in limits.items():
        hard = resource.getrlimit(kind)[1]
        value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (value, value))
    if os.getuid() == 0:
        # Empty after the exec, then: root without its capabilities reads no other process and no other user's files.
        drop_capabilities()
    if other_user and spec["uid"] is not None:
        os.setgroups([])
        os.setresgid(spec["uid"], spec["uid"], spec["uid"])
        os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def drop_capabilities() -> None:
    """Empties the bounding set, which bounds what an exec as root gives; where we may not, there was none to give."""
    with contextlib.suppress(OSError):  # EINVAL behind the last one the kernel knows
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability)


# --- the keeper ---------------------------------------------------------------------------------------------------


def keep(spec: Spec, guard: int, status_fd: int) -> NoReturn:
    """The keeper's life: starts the command, reaps, tells the guard how the command ended, and ends.

    What is written to `status_fd`: an optional line "! sentence", then the wait status of the command as a number.
    """

    def told_to_end(*_: Any) -> NoReturn:
        end_all()
        os._exit(1)

    prctl(PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, told_to_end)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != guard:
        os._exit(1)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    keeper = os.getpid()
    command = os.fork()
    if command == 0:

        def failed(code: int, sentence: str) -> NoReturn:
            os.write(status_fd, f"! {sentence}\n".encode(errors="replace"))
            os._exit(code)

        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        become_command(spec, keeper, failed)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while True:
        pid, status = os.wait()
        if pid == command:
            os.write(status_fd, f"{status}\n".encode())
            os._exit(0)


# --- the guard ----------------------------------------------------------------------------------------------------


class Guard:
    """Keeps the time of one command, and ends it and all that it started."""

    def __init__(self, spec: Spec, control_fd: int) -> None:
        self.spec = spec
        self.control_fd = control_fd
        self.sentence = ""
        self.status: int | None = None
        self.timed_out = False
        self.stopped = False
        self.too_many = False
        self.told_to_end = False
        self._status_text = b""

    def run(self) -> dict[str, Any]:
        """Runs the command to its end; returns the report."""
        prctl(PR_SET_CHILD_SUBREAPER, 1)
        prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._be_told)
        if os.getppid() != self.spec["parent"]:
            self.told_to_end = True
        usual = os.getpriority(os.PRIO_PROCESS, 0)
        with contextlib.suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, usual - 5)  # ahead of a fork bomb
        status_fd, told_fd = os.pipe()
        began = time.monotonic()
        guard = os.getpid()
        self.keeper = os.fork()
        if self.keeper == 0:
            os.close(status_fd)
            os.close(self.control_fd)
            os.setpriority(os.PRIO_PROCESS, 0, usual)
            keep(self.spec, guard, told_fd)
        os.close(told_fd)
        self._watch(status_fd, began)
        duration = time.monotonic() - began
        os.close(status_fd)
        self._read_status()
        if self.status is not None:
            os.waitpid(self.keeper, 0)  # it ends by itself now, and is no survivor
        killed, left = end_all()
        return self.report(duration, killed, left)

    def _be_told(self, *_: Any) -> None:
        self.told_to_end = True

    def _watch(self, status_fd: int, began: float) -> None:
        """Returns when the command has ended, was lost, or is to be ended now."""
        ahead = select.poll()
        ahead.register(status_fd, select.POLLIN)
        ahead.register(self.control_fd, select.POLLIN)
        deadline = began + self.spec["timeout_seconds"]
        term_sent = False
        look_seconds = 0.02
        while True:
            wait = min(look_seconds, max(0.0, deadline - time.monotonic()))
            ready = {fd for fd, _ in ahead.poll(wait * 1000)}
            if status_fd in ready:
                text = os.read(status_fd, 65536)
                self._status_text += text
                if not text or (self._status_text.endswith(b"\n") and self._status_text.split()[-1].isdigit()):
                    return
                continue
            if self.told_to_end or (self.control_fd in ready and not os.read(self.control_fd, 4096)):
                self.stopped = True
                return
            if time.monotonic() >= deadline:
                if term_sent:
                    return
                self.timed_out = term_sent = True
                send(signal.SIGTERM, descendants() - {self.keeper})
                deadline = time.monotonic() + self.spec["grace_seconds"]
            looked = time.monotonic()
            if self.spec["confined"] and len(descendants()) - 1 > self.spec["processes"]:
                self.too_many = True
                return
            # A look costs more on a machine with many processes: never more than a tenth of our time.
            look_seconds = max(min(look_seconds * 2, LONGEST_LOOK_SECONDS), (time.monotonic() - looked) * 10)

    def _read_status(self) -> None:
        *sentences, last = self._status_text.decode(errors="replace").splitlines() or [""]
        self.sentence = " ".join(sentence.removeprefix("! ") for sentence in sentences)
        self.status = int(last) if last.isdigit() else None

    def report(self, duration: float, killed: int, left: int) -> dict[str, Any]:
        """What the runner reads: how the command ended, and what had to be done.

        exit_code and signal are None when the command did not end by itself; `lost` when nobody knows how it ended.
        """
        ended = self.status is not None
        return {
            "exit_code": os.WEXITSTATUS(self.status) if self.status is not None and os.WIFEXITED(self.status) else None,
            "signal": os.WTERMSIG(self.status) if self.status is not None and os.WIFSIGNALED(self.status) else None,
            "duration_seconds": round(duration, 6),
            "timed_out": self.timed_out,
            "stopped": self.stopped,
            "too_many_processes": self.too_many,
            "lost": not ended and not (self.timed_out or self.stopped or self.too_many),
            "survivors_killed": killed,
            "survivors_left": left,
            "sentence": self.sentence,
        }


def main() -> int:
    """Reads the spec, runs the command, writes the report; 0 when the report is written."""
    report_fd = int(sys.argv[1])
    os.set_inheritable(report_fd, False)
    line = b""
    while not line.endswith(b"\n"):
        piece = os.read(0, 65536)
        if not piece:
            return 1
        line += piece
    control_fd = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        told = Guard(json.loads(line), control_fd).run()
    except (OSError, ValueError, KeyError) as problem:
        end_all()
        told = {"refused": f"{type(problem).__name__}: {problem}"}
    with contextlib.suppress(BrokenPipeError):
        os.write(report_fd, json.dumps(told).encode() + b"\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
