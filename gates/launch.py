"""The program that stands between a gate's command and the machine: one process of it per gate run.

Standard library only, and little of it: every run waits for this program to start. `runner.py` hands it over compiled.
It gives the command its own session, limits, user and environment, and it answers for all that the command starts:
whatever happens to the command, to the runner or to this program, nothing of it is left running.

Two processes do that, because one can be killed. The *guard* keeps the time and reports; the *keeper*, its only
child, starts the command and reaps. Both are made to inherit orphans (PR_SET_CHILD_SUBREAPER), so a process that left
its session and lost its parent is still below them. If the keeper dies, its orphans fall to the guard, which ends
them; if the guard or the runner dies, the keeper is told (PR_SET_PDEATHSIG, or the end of the control pipe).

A command may run in a box (sandbox level 2): then the keeper's child becomes bubblewrap, which makes namespaces and
starts the command in them. What bubblewrap says of the command's end is believed; when it says nothing, it failed, and
that is our failure, not the command's.

Protocol: on standard input comes `spec.Spec`, marshalled, behind its length in eight bytes; then it stays open as long
as the runner wants the command to live, and its end means "end everything now". Standard output and error are the
command's. One Python literal (see `report`) goes to the descriptor named by the last argument.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import marshal
import os
import resource
import select
import signal
import stat
import sys
import time

TYPE_CHECKING = False  # as typing has it: that module alone takes longer to import than all of this program
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any, NoReturn

    from gates.spec import Box, Spec

# <linux/prctl.h>
PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
# <linux/sched.h>, <linux/mount.h>, <linux/keyctl.h>, <asm/unistd.h>
CLONE_NEWNS = 0x20000
MNT_DETACH = 0x2
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 0x2, 0x4, 0x1000, 0x4000, 1 << 18
KEYCTL_JOIN_SESSION_KEYRING = 1
SYS_KEYCTL = {"x86_64": 250, "aarch64": 219}

# <linux/seccomp.h>, <linux/filter.h>, <linux/audit.h>
SECCOMP_MODE_FILTER = 2
RET_ALLOW, RET_ERRNO = 0x7FFF0000, 0x00050000
BPF_LOAD, BPF_JUMP_EQUAL, BPF_JUMP_AT_LEAST, BPF_RETURN = 0x20, 0x15, 0x35, 0x06
AT_NUMBER, AT_MACHINE, AT_FIRST_ARGUMENT = 0, 4, 16  # struct seccomp_data; both machines put the low half first
EAFNOSUPPORT, ENOSYS = 97, 38
X32 = 0x40000000

FAMILIES = (1, 2, 10, 16)
"""Of sockets, those that a command may make: AF_UNIX, AF_INET, AF_INET6, and AF_NETLINK, which getifaddrs uses. All of
them end at the box's own network. AF_VSOCK (40) does not: it reaches the machine below this one; and the others
(AF_ALG, AF_BLUETOOTH, AF_TIPC …) are kernel code that no test needs."""

# AUDIT_ARCH_…; socket and socketpair; keyctl, add_key, request_key, bpf, perf_event_open, userfaultfd; and io_uring
# (425 to 427), since a ring makes sockets without asking the filter.
MACHINES = {
    "x86_64": (0xC000003E, (41, 53), (250, 248, 249, 321, 298, 323, 425, 426, 427)),
    "aarch64": (0xC00000B7, (198, 199), (219, 217, 218, 280, 241, 282, 425, 426, 427)),
}

STAGE = "/tmp"
"""Where a command's user finds what the box is made of, in a mount namespace of its own."""
STAYS_MOUNTED = ("bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "usr", STAGE.strip("/"))
"""Which of the folders of / bubblewrap reads or binds besides."""

STAGE_BYTES, COPIED_BYTES = 16 * 1024**2, 256 * 1024

NOT_FOUND, NOT_STARTED = 127, 126  # as shells say it
ENDING_SECONDS = 10.0  # how long we go on killing before we report what is left; a process in the kernel cannot die
LONGEST_LOOK_SECONDS = 0.1  # between two counts of the command's processes
WALK_SECONDS = 1.0  # between two walks through what the command has written
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
BOX_PROCESSES = 2  # bubblewrap's own: the one outside, and the first in the box
_EXIT_FD, _TOLD_FD = 8, 9  # one digit each: the shell in the box knows no others


_libc = ctypes.CDLL(None, use_errno=True)


def prctl(option: int, argument: int) -> None:
    """The system call. Raises OSError."""
    if _libc.prctl(option, ctypes.c_ulong(argument), ctypes.c_ulong(0), ctypes.c_ulong(0), ctypes.c_ulong(0)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


# --- what is below us ---------------------------------------------------------------------------------------------


def descendants() -> dict[int, int]:
    """Ids of the living processes below this one, zombies left out, each with its resident pages."""
    children: dict[int, list[int]] = {}
    pages: dict[int, int] = {}
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            state, parent, resident = _stat(entry.name)
        except (OSError, ValueError, IndexError):
            continue
        children.setdefault(parent, []).append(int(entry.name))
        if state not in {b"Z", b"X"}:
            pages[int(entry.name)] = resident
    found: set[int] = set()
    ahead = [os.getpid()]
    while ahead:
        for child in children.get(ahead.pop(), ()):
            if child not in found:
                found.add(child)
                ahead.append(child)
    return {pid: pages[pid] for pid in found if pid in pages}


def below() -> dict[int, int]:
    """The same as `descendants`, by the lists of children: cheap, but it may miss one that is forked meanwhile."""
    pages: dict[int, int] = {}
    ahead = [os.getpid()]
    while ahead:
        pid = ahead.pop()
        with contextlib.suppress(OSError, ValueError, IndexError):
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children") as file:
                    ahead += map(int, file.read().split())
            state, resident = _stat(pid)[::2]
            if state not in {b"Z", b"X"}:
                pages[pid] = resident
    pages.pop(os.getpid(), None)
    return pages


def _stat(pid: int | str) -> tuple[bytes, int, int]:
    """State, parent and resident pages of a process. Raises OSError; ValueError and IndexError for a half answer."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The name stands in brackets and may itself hold brackets and blanks: read on from the last one.
        told = file.read().rpartition(b") ")[2].split(None, 22)
    return told[0], int(told[1]), int(told[21])


def send(number: int, pids: Iterable[int]) -> None:
    """Sends a signal to processes; the ones that are gone already are no error."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)


def children(pid: int = 0) -> set[int]:
    """Ids of a process's children (0: this one's), by one short read; empty where the kernel has no such list."""
    pid = pid or os.getpid()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/task/{pid}/children") as file:
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


def keeps_a_box(pid: int) -> bool:
    """Whether a process is the first of a process namespace: bubblewrap's own in its box. It ends a moment after
    bubblewrap told us of the command's end, so it may still be there when we look for survivors, and is none.
    """
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", "rb") as file:
        numbers = next((line.split()[1:] for line in file if line.startswith(b"NSpid:")), [])
        return len(numbers) > 1 and numbers[-1] == b"1"
    return False


def end_all(boxed: bool = False) -> tuple[int, int]:
    """Ends everything below this process; returns how many were ended, and how many would not go. What keeps the box of
    a command that is `boxed` is ended, and not counted.

    Stopped first, killed then: a stopped process holds its place among the limited number, and cannot fork again,
    where a killed one makes room for the next fork. What no walk finds is caught between two of its forks, when it
    has lost its parent and is our child.
    """
    ended: set[int] = set()
    until = time.monotonic() + ENDING_SECONDS
    while reap() and time.monotonic() < until:
        stopped: set[int] = set()
        while (alive := set(descendants()) - stopped) and time.monotonic() < until:
            send(signal.SIGSTOP, alive)
            stopped |= alive
        ended |= {pid for pid in stopped if not (boxed and keeps_a_box(pid))}
        send(signal.SIGKILL, stopped)
        for _ in range(100):
            if not reap():
                break
            caught = children()
            ended |= {pid for pid in caught if not (boxed and keeps_a_box(pid))}
            send(signal.SIGKILL, caught)
    if not reap():
        return len(ended), 0
    left = set(descendants())
    return len(ended - left), max(1, len(left))


# --- what all of it uses ------------------------------------------------------------------------------------------


def shared_out_bytes(pages: dict[int, int]) -> int:
    """Memory of these processes together, what they share counted once; of one that cannot be asked, all of its own."""
    total = 0
    for pid, resident in pages.items():
        own = resident * PAGE_BYTES
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            own = next((int(line.split()[1]) * 1024 for line in file if line.startswith(b"Pss:")), own)
        total += own
    return total


class Disk:
    """What is written below some folders, bounded: the file system's own count is asked first, as it costs nothing.

    It counts for everybody, and what others delete hides what is written here; so the folders are walked through when
    it has grown by more than a limit, and every second or two besides.
    """

    def __init__(self, folders: list[str], most_bytes: int, most_files: int) -> None:
        self.folders, self.most_bytes, self.most_files = folders, most_bytes, most_files
        self.free = {device: self._free(folder) for device, folder in self._devices().items()}
        self.walk_at = time.monotonic() + WALK_SECONDS

    def _devices(self) -> dict[int, str]:
        return {os.stat(folder).st_dev: folder for folder in reversed(self.folders)}

    @staticmethod
    def _free(folder: str) -> tuple[int, int]:
        found = os.statvfs(folder)
        return found.f_bfree * found.f_frsize, found.f_ffree

    def over(self, pids: Iterable[int]) -> str:
        """What is over its limit, in words; empty when nothing is. `pids` may hold files open that have no name."""
        try:
            now = {device: self._free(folder) for device, folder in self._devices().items()}
        except OSError:
            return ""
        grown_bytes = sum(self.free[device][0] - free for device, (free, _) in now.items() if device in self.free)
        grown_files = sum(self.free[device][1] - free for device, (_, free) in now.items() if device in self.free)
        began = time.monotonic()
        grown = grown_bytes > self.most_bytes or grown_files > self.most_files
        if not grown and began < self.walk_at:
            return ""
        used, files, closed = self._used(pids, set(now))
        # Never more than a twentieth of our time.
        self.walk_at = time.monotonic() + max(WALK_SECONDS, 20 * (time.monotonic() - began))
        if files > self.most_files:
            return f"more than {self.most_files} files"
        # What lies in a folder that is closed to us cannot be counted: the file system's own count stands then.
        return f"more than {self.most_bytes} bytes of files" if used > self.most_bytes or (closed and grown) else ""

    def _used(self, pids: Iterable[int], devices: set[int]) -> tuple[int, int, bool]:
        used = files = 0
        closed = False
        ahead = list(self.folders)
        while ahead:
            folder = ahead.pop()
            try:
                with os.scandir(folder) as entries:
                    for entry in entries:
                        with contextlib.suppress(FileNotFoundError):
                            found = entry.stat(follow_symlinks=False)
                            files += 1
                            used += found.st_blocks * 512
                            if stat.S_ISDIR(found.st_mode):
                                ahead.append(entry.path)
                        if files > self.most_files or used > self.most_bytes:
                            return used, files, closed
            except FileNotFoundError:
                continue
            except OSError:
                closed = True
        nameless: dict[int, int] = {}
        for pid in pids:
            with contextlib.suppress(OSError):
                for entry in os.scandir(f"/proc/{pid}/fd"):
                    with contextlib.suppress(OSError):
                        found = os.stat(entry.path)
                        if stat.S_ISREG(found.st_mode) and not found.st_nlink and found.st_dev in devices:
                            nameless[found.st_ino] = found.st_blocks * 512
        return used + sum(nameless.values()), files + len(nameless), closed


# --- the command --------------------------------------------------------------------------------------------------


def become_command(spec: Spec, keeper: int, failed: Callable[[int, str], NoReturn]) -> NoReturn:
    """Turns this new process into the command; `failed` takes an exit code and a sentence, and does not return."""
    try:
        os.setsid()
        for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o022)
        for group in spec["groups"]:
            with open(group, "w") as file:
                file.write(str(os.getpid()))
        box = spec["box"]
        if box is not None and box["expose"]:
            expose(box["expose"])
        if spec["confined"]:
            confine(spec)
        if box is not None:
            filter_calls()
        # After the change of user, which clears it.
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(NOT_STARTED)
        os.chdir(spec["cwd"] if box is None else "/")
    except (OSError, ValueError) as problem:
        failed(NOT_STARTED, f"the command could not be confined: {problem}")
    if box is not None:
        enter(box, spec, failed)
    try:
        execute(spec["argv"], spec["env"])
    except FileNotFoundError:
        failed(NOT_FOUND, f"the command {spec['argv'][0]!r} was not found")
    except (OSError, ValueError) as problem:
        failed(NOT_STARTED, f"the command {spec['argv'][0]!r} cannot be run: {problem}")


def execute(argv: list[str], env: dict[str, str]) -> NoReturn:
    """Becomes the program, looked for on the path of `env`. Raises OSError. os.execvpe would import modules to do
    that, and the command's user may not reach them.
    """
    if "/" in argv[0]:
        os.execve(argv[0], argv, env)
    kept: OSError = FileNotFoundError(argv[0])
    for folder in env.get("PATH", os.defpath).split(":"):
        try:
            os.execve(f"{folder}/{argv[0]}", argv, env)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as problem:
            kept = problem
    raise kept


# What bubblewrap starts: a shell that sets the limit which counts in the box only, and says when there is no such
# command, so that nobody takes an end with 127 for that.
_IN_BOX = """
if [ "$1" != 0 ]; then ulimit -p "$1" 2>/dev/null || ulimit -u "$1" 2>/dev/null; fi
shift
case $1 in
*/*) if [ ! -e "$1" ]; then echo '!127' >&9; exit 127; fi
     if [ ! -x "$1" ] || [ -d "$1" ]; then echo '!126' >&9; exit 126; fi ;;
*) command -v "$1" >/dev/null 2>&1 || { echo '!127' >&9; exit 127; } ;;
esac
exec 8>&- 9>&-
exec "$@"
"""


def enter(box: Box, spec: Spec, failed: Callable[[int, str], NoReturn]) -> NoReturn:
    """Becomes bubblewrap, which starts the command in the box; its own word on the end goes to _EXIT_FD."""
    words = [*box["argv"], "--json-status-fd", str(_EXIT_FD), "--"]
    words += ["/bin/sh", "-c", _IN_BOX, "sh", str(box["processes"]), *spec["argv"]]
    try:
        os.execve(words[0], words, spec["env"])
    except (OSError, ValueError) as problem:
        failed(NOT_STARTED, f"bubblewrap cannot be run: {problem}")


def expose(sources: dict[str, str]) -> None:
    """Puts each source under its name below STAGE, in a mount namespace of our own. Raises OSError; takes root.

    Small files are copied and the rest is bound; whatever else is mounted there is let go of. bubblewrap reads the
    whole list of mounts for each that it makes itself, and that is most of what it costs.
    """
    if _libc.unshare(CLONE_NEWNS) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"a mount namespace of its own: {os.strerror(code)}")
    mount("none", "/", "", MS_REC | MS_PRIVATE)
    opened = {name: os.open(source, os.O_PATH) for name, source in sources.items()}
    mount("tmpfs", STAGE, "tmpfs", MS_NOSUID | MS_NODEV, f"mode=0755,size={STAGE_BYTES}")
    os.umask(0o022)
    for name, source in opened.items():
        place, origin = f"{STAGE}/{name}", f"/proc/self/fd/{source}"
        os.makedirs(os.path.dirname(place), exist_ok=True)
        found = os.fstat(source)
        if stat.S_ISREG(found.st_mode) and found.st_size <= COPIED_BYTES:
            with open(origin, "rb") as file, open(place, "wb") as copy:
                copy.write(file.read(COPIED_BYTES))
                os.fchown(copy.fileno(), found.st_uid, found.st_gid)
                os.fchmod(copy.fileno(), stat.S_IMODE(found.st_mode))
        else:
            if stat.S_ISDIR(found.st_mode):
                os.mkdir(place)
            else:
                os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o644))
            mount(origin, place, "", MS_BIND | MS_REC)
        os.close(source)
    with open("/proc/self/mountinfo", errors="surrogateescape") as mounts:
        places = [line.split(None, 5)[4] for line in mounts]
    for place in places:
        if place.split("/")[1] not in ("", *STAYS_MOUNTED):
            # One below another that is gone is gone; one whose name has a blank stays.
            _libc.umount2(os.fsencode(place), MNT_DETACH)


def mount(source: str, target: str, kind: str, flags: int, options: str = "") -> None:
    """The system call. Raises OSError."""
    words = [text.encode() for text in (source, target, kind, options)]
    if _libc.mount(words[0], words[1], words[2], ctypes.c_ulong(flags), words[3] or None) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{target}: {os.strerror(code)}")


def forget_keys() -> None:
    """Begins a session keyring of its own: the service's would be inherited, into every namespace."""
    number = SYS_KEYCTL.get(os.uname().machine)
    if number is not None:  # where we may not, or the kernel has none, there is nothing to inherit
        _libc.syscall(ctypes.c_long(number), ctypes.c_int(KEYCTL_JOIN_SESSION_KEYRING), None)


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
        limits[resource.RLIMIT_NPROC] = spec["processes"] + (BOX_PROCESSES if spec["box"] else 0)
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
    forget_keys()
    prctl(PR_SET_NO_NEW_PRIVS, 1)


def filter_calls() -> None:
    """Denies, to this process and all that come from it, system calls that lead out of the box or into parts of the
    kernel that no test needs. Raises OSError where the kernel or the machine has no such filter: then there is no box.

    It takes no_new_privs, or the right to administer the system.
    """
    machine = MACHINES.get(os.uname().machine)
    if machine is None or sys.maxsize < 2**32:
        raise OSError(ENOSYS, f"no filter of system calls is known for {os.uname().machine}")
    program = call_filter(*machine)

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))

    given = Program(len(program) // 8, program)
    if _libc.prctl(PR_SET_SECCOMP, ctypes.c_ulong(SECCOMP_MODE_FILTER), ctypes.byref(given)) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"a filter of system calls: {os.strerror(code)}")


def call_filter(machine: int, sockets: tuple[int, ...], denied: tuple[int, ...]) -> bytes:
    """The filter as classic BPF: 8 bytes an instruction (code, how far to jump if so, if not, value).

    Programs of another machine's kind (32 bits, x32) have other numbers, so all of theirs are denied. What is denied
    answers as a kernel that was built without it does.
    """
    words: list[tuple[int, str, str, int]] = [
        (BPF_LOAD, "", "", AT_MACHINE),
        (BPF_JUMP_EQUAL, "", "denied", machine),
        (BPF_LOAD, "", "", AT_NUMBER),
        (BPF_JUMP_AT_LEAST, "denied", "", X32),
        *((BPF_JUMP_EQUAL, "socket", "", number) for number in sockets),
        *((BPF_JUMP_EQUAL, "denied", "", number) for number in denied),
        (BPF_RETURN, "", "", RET_ALLOW),
    ]
    places = {"socket": len(words)}
    words.append((BPF_LOAD, "", "", AT_FIRST_ARGUMENT))
    words += [(BPF_JUMP_EQUAL, "allowed", "", family) for family in FAMILIES]
    words.append((BPF_RETURN, "", "", RET_ERRNO | EAFNOSUPPORT))
    for place, answer in (("allowed", RET_ALLOW), ("denied", RET_ERRNO | ENOSYS)):
        places[place] = len(words)
        words.append((BPF_RETURN, "", "", answer))

    def jump(to: str, at: int) -> int:
        return places[to] - at - 1 if to else 0

    return b"".join(
        code.to_bytes(2, "little") + bytes((jump(yes, at), jump(no, at))) + value.to_bytes(4, "little")
        for at, (code, yes, no, value) in enumerate(words)
    )


def drop_capabilities() -> None:
    """Empties the bounding set, which bounds what an exec as root gives; where we may not, there was none to give."""
    with contextlib.suppress(OSError):  # EINVAL behind the last one the kernel knows
        for capability in range(64):
            prctl(PR_CAPBSET_DROP, capability)


# --- the keeper ---------------------------------------------------------------------------------------------------


def keep(spec: Spec, guard: int, status_fd: int) -> NoReturn:
    """The keeper's life: starts the command, reaps, tells the guard how the command ended, and ends.

    What is written to `status_fd`: an optional line "! sentence" ("!127", "!126": no such command, none that runs),
    then the wait status of the command as a number, or a line "? sentence" when the box failed.
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
    exit_fd, exit_in = os.pipe()
    command = os.fork()
    if command == 0:

        def failed(code: int, sentence: str) -> NoReturn:
            os.write(status_fd, f"! {sentence}\n".encode(errors="replace"))
            os._exit(code)

        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        if spec["box"] is not None:
            exit_in = fcntl.fcntl(exit_in, fcntl.F_DUPFD, _TOLD_FD + 1)  # out of the way of the next line
            told_fd = fcntl.fcntl(status_fd, fcntl.F_DUPFD, _TOLD_FD + 1)
            os.dup2(exit_in, _EXIT_FD)
            os.dup2(told_fd, _TOLD_FD)
            os.close(exit_in)
            os.close(told_fd)
            status_fd = fcntl.fcntl(_TOLD_FD, fcntl.F_DUPFD_CLOEXEC, _TOLD_FD + 1)
        become_command(spec, keeper, failed)
    os.close(exit_in)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    while True:
        pid, status = os.wait()
        if pid == command:
            os.write(status_fd, f"{status if spec['box'] is None else _end_in_box(exit_fd, status)}\n".encode())
            os._exit(0)


def _end_in_box(exit_fd: int, status: int) -> str:
    """The wait status of the command in the box, by what bubblewrap said of it; or that it said nothing."""
    told = b""
    os.set_blocking(exit_fd, False)
    with contextlib.suppress(OSError):
        while piece := os.read(exit_fd, 4096):
            told += piece
    for line in told.splitlines():
        # {"exit-code": 0}, with blanks somewhere; anything else is no word on the end.
        name, _, value = line.strip(b"{} \t").partition(b":")
        if name.strip(b'" ') == b"exit-code" and value.strip().isdigit():
            return str(int(value) << 8)
    ended = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit code {os.WEXITSTATUS(status)}"
    return f"? bubblewrap ended with {ended} and said nothing of the command"


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
        self.exceeded = ""
        self.refused = ""
        # Where the kernel lists children, what is below us is found without a look at every process of the machine.
        self.look = below if os.path.exists(f"/proc/self/task/{os.getpid()}/children") else descendants
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
        killed, left = end_all(boxed=self.spec["box"] is not None)
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
        disk = Disk(self.spec["folders"], self.spec["disk_bytes"], self.spec["disk_files"])
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
                send(signal.SIGTERM, set(descendants()) - self._not_asked())
                deadline = time.monotonic() + self.spec["grace_seconds"]
            looked = time.monotonic()
            if self.spec["confined"]:
                self.exceeded = self._over_limit(disk)
                if self.exceeded:
                    return
            # A look costs more on a machine with many processes: never more than a tenth of our time.
            look_seconds = max(min(look_seconds * 2, LONGEST_LOOK_SECONDS), (time.monotonic() - looked) * 10)

    def _not_asked(self) -> set[int]:
        """Whom SIGTERM does not reach: the keeper, and bubblewrap, at whose end the whole box would end at once."""
        return {self.keeper, *(children(self.keeper) if self.spec["box"] else ())}

    def _over_limit(self, disk: Disk) -> str:
        """What all processes together have too much of, in words; empty when nothing is over its limit."""
        alive = self.look()
        alive.pop(self.keeper, None)
        own = BOX_PROCESSES if self.spec["box"] else 0
        if len(alive) - own > self.spec["processes"]:
            return f"more than {self.spec['processes']} processes"
        most = self.spec["all_memory_bytes"]
        if most and sum(alive.values()) * PAGE_BYTES > most and shared_out_bytes(alive) > most:
            return f"more than {most} bytes of memory"
        return disk.over(alive) if self.spec["disk_bytes"] else ""

    def _read_status(self) -> None:
        *sentences, last = self._status_text.decode(errors="replace").splitlines() or [""]
        program = self.spec["argv"][0]
        known = {"!127": f"the command {program!r} was not found", "!126": f"the command {program!r} cannot be run"}
        self.sentence = " ".join(known.get(sentence, sentence.removeprefix("! ")) for sentence in sentences)
        self.refused = last.removeprefix("? ") if last.startswith("? ") else ""
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
            "exceeded": self.exceeded,
            "lost": not ended and not (self.timed_out or self.stopped or self.exceeded),
            "survivors_killed": killed,
            "survivors_left": left,
            "sentence": self.sentence,
            **({"refused": self.sentence or self.refused} if self.refused and not self._by_us() else {}),
        }

    def _by_us(self) -> bool:
        return bool(self.timed_out or self.stopped or self.exceeded)


def main() -> None:
    """Reads the spec, runs the command, writes the report; the exit code is 0 when the report is written."""
    report_fd = int(sys.argv[-1])
    os.set_inheritable(report_fd, False)
    asked = _read(int.from_bytes(_read(8)))
    control_fd = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    try:
        told = Guard(marshal.loads(asked), control_fd).run()
    except (OSError, ValueError, KeyError) as problem:
        end_all()
        told = {"refused": f"{type(problem).__name__}: {problem}"}
    with contextlib.suppress(BrokenPipeError):
        os.write(report_fd, ascii(told).encode())
    os._exit(0)  # there is nothing to tidy up, and somebody waits


def _read(size: int) -> bytes:
    """So many bytes of standard input; where it ends before, nobody wants the command, and this program ends."""
    found = b""
    while len(found) < size:
        if not (piece := os.read(0, size - len(found))):
            os._exit(1)
        found += piece
    return found


if __name__ == "__main__":
    main()
