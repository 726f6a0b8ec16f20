"""The box that sandbox level 2 puts round a gate's command, a user of its own for it, and the proof that both hold.

The box is made by bubblewrap: namespaces for processes, network, files, users, host name and messages. Inside are the
system's programs and the interpreter, read-only, a small /etc, an empty /tmp, and the copy, the evidence folder and a
fresh home. bubblewrap never runs as root: it would keep root's rights in the box, and root's processes are not counted.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import os
import re
import shutil
import socket
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gates import launch
from gates.spec import Box

TREE, EVIDENCE, HOME, CACHES = "/src", "/evidence", "/home/gate", "/caches"
"""Where the command finds its things in the box; the same in every run, so that reports and caches say the same."""

FIRST_USER = 60800
"""The first of USERS users that commands run as where the service is root. Debian, Fedora and systemd leave 60706 to
61183 alone (https://systemd.io/UIDS-GIDS/)."""
USERS = 64
NO_USER_KERNEL = (5, 14)
"""From this Linux on a user namespace counts its own processes; before, a limit would count the whole service's."""

# Of /etc a command sees what programs need to start and to tell the time, and no more: no file of /etc is secret, but
# which machine this is, is nobody's business.
ETC = (
    "alternatives", "ca-certificates", "crypto-policies", "debian_version", "fonts", "java", "ld.so.cache",
    "ld.so.conf", "ld.so.conf.d", "localtime", "magic", "mime.types", "nsswitch.conf", "openssl", "os-release",
    "pki/tls/certs", "pki/ca-trust/extracted", "protocols", "services", "ssl/certs", "ssl/openssl.cnf", "timezone",
)  # fmt: skip
ROOT_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")


@dataclass(frozen=True, slots=True)
class Place:
    """What of the machine goes into a box: the run's three folders, and what is only read."""

    tree: Path
    evidence: Path
    home: Path
    etc: Path
    cwd: str = ""
    readonly: tuple[Path, ...] = ()
    caches: tuple[tuple[str, Path], ...] = ()


def bubblewrap() -> str:
    """The path of bubblewrap; empty when it is not installed."""
    return shutil.which("bwrap", path="/usr/local/bin:/usr/bin:/bin") or ""


@functools.cache
def toolchain() -> tuple[Path, ...]:
    """The folders of our interpreter and its packages, as far as they lie outside /usr: a command may use them."""
    wanted = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.base_exec_prefix), Path(sysconfig.get_path("stdlib"))}
    wanted |= {folder.resolve() for folder in wanted} | {Path(os.path.realpath(sys.executable)).parent.parent}
    outside = {folder for folder in wanted if not folder.is_relative_to("/usr") and len(folder.parts) > 2}
    return tuple(sorted(f for f in outside if not any(f != g and f.is_relative_to(g) for g in outside)))


def write_etc(folder: Path, user: int, group: int) -> None:
    """The three files of /etc that are about the box itself: its only user, its group, and its name."""
    folder.mkdir(mode=0o755)
    for name, text in (
        ("passwd", f"gate:x:{user}:{group}:gate:{HOME}:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n"),
        ("group", f"gate:x:{group}:\nnogroup:x:65534:\n"),
        ("hosts", "127.0.0.1 localhost gate\n::1 localhost\n"),
    ):
        (folder / name).write_text(text)
        (folder / name).chmod(0o644)


def box(place: Place, *, tmp_bytes: int, processes: int, expose: bool) -> Box:
    """What the launcher is told to put a command into a box. With `expose` every source goes by way of STAGE.

    `processes` is set in the box where no user of its own bounds the command; 0 leaves it.
    """
    exposed: dict[str, str] = {}

    def source(path: Path) -> str:
        if not expose:
            return str(path)
        name = str(len(exposed))
        exposed[name] = str(path)
        return f"{launch.STAGE}/{name}"

    words = [
        bubblewrap(),
        *("--unshare-all", "--unshare-user", "--disable-userns", "--die-with-parent", "--new-session"),
        *("--cap-drop", "ALL", "--hostname", "gate"),
        *("--ro-bind", "/usr", "/usr"),
    ]
    for name in ROOT_LINKS:
        path = Path("/", name)
        if path.is_symlink():
            words += ["--symlink", os.readlink(path), str(path)]
        elif path.is_dir():
            words += ["--ro-bind", str(path), str(path)]
    etc = {name: f"/etc/{name}" for name in ETC if Path("/etc", name).exists()}
    etc |= {name: str(place.etc / name) for name in ("passwd", "group", "hosts")}
    if expose:
        # Put together before: a mount costs bubblewrap many times what it costs the launcher.
        exposed |= {f"etc/{name}": origin for name, origin in etc.items()}
        words += ["--ro-bind", f"{launch.STAGE}/etc", "/etc"]
    else:
        for name, origin in etc.items():
            words += ["--ro-bind", origin, f"/etc/{name}"]
    words += ["--proc", "/proc", "--dev", "/dev", "--size", str(tmp_bytes), "--tmpfs", "/dev/shm"]
    words += ["--size", str(tmp_bytes), "--tmpfs", "/tmp", "--dir", "/run", "--symlink", "/tmp", "/var/tmp"]
    for folder in place.readonly:
        words += ["--ro-bind", source(folder), str(folder)]
    for name, folder in place.caches:
        words += ["--ro-bind", source(folder), f"{CACHES}/{name}"]
    words += ["--bind", source(place.tree), TREE, "--bind", source(place.evidence), EVIDENCE]
    words += ["--bind", source(place.home), HOME]
    words += ["--remount-ro", "/dev", "--remount-ro", "/", "--chdir", f"{TREE}/{place.cwd}".rstrip("/")]
    return {"argv": words, "expose": exposed, "processes": processes}


def counts_by_namespace() -> bool:
    """Whether this kernel counts the processes of a user namespace apart."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return bool(found) and (int(found[1]), int(found[2])) >= NO_USER_KERNEL  # type: ignore[index]


@contextlib.contextmanager
def own_user(first: int) -> Iterator[int | None]:
    """A user that no other command of this machine runs as, for as long as the block lasts.

    None where the service is not root, or `first` is 0. Two commands with one user could end each other's processes,
    and would be counted together. Raises OSError when all USERS are taken.
    """
    if os.geteuid() != 0 or not first:
        yield None
        return
    folder = Path("/run/signalbox-gate-users" if os.access("/run", os.W_OK) else tempfile.gettempdir())
    folder.mkdir(mode=0o700, exist_ok=True)
    for user in range(first, first + USERS):
        held = os.open(folder / f"signalbox-gate-user-{user}", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            try:
                fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield user
            return
        finally:
            os.close(held)
    raise OSError(f"all {USERS} users from {first} on are running commands")


# --- the proof ----------------------------------------------------------------------------------------------------

# What the probe runs in the box. It tries what a box must refuse, and writes down what happened.
# Arguments: the port of a listener of ours, a file outside that everybody may read, our own process id.
PROBE = r"""
import ctypes, json, os, socket, sys
port, outside, pid = int(sys.argv[1]), sys.argv[2], sys.argv[3]
def refused(do, *errors):
    try: do()
    except errors or OSError: return True
    return False
def status(name):
    return next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name + ":"))
def connect():
    socket.create_connection(("127.0.0.1", port), 2).close()
def route():
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(("192.0.2.1", 9)); s.close()
def namespace():
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(0x10000000) != 0: raise OSError(ctypes.get_errno(), "unshare")
def call(number):
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.syscall(number, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == 38: raise OSError(38, "no such call")
told = {
    "its system calls are filtered": status("Seccomp") == "2",
    "the machine below this one is out of reach": refused(lambda: socket.socket(40, socket.SOCK_STREAM)),
    "no ring makes its calls": refused(lambda: call(425)),
    "the service's network is out of reach": refused(connect),
    "no other network is there": refused(route),
    "files outside are absent": not os.path.exists(outside),
    "processes outside are absent": sum(name.isdigit() for name in os.listdir("/proc")) <= 6,
    "it is not root": os.getuid() != 0 and int(status("CapEff"), 16) == 0,
    "it gains no rights": status("NoNewPrivs") == "1",
    "it makes no namespaces": refused(namespace),
    "the system is read-only": refused(lambda: open("/usr/probe", "w")) and refused(lambda: open("/probe", "w")),
    "its copy can be written": not refused(lambda: open("probe", "w")),
    "our environment is not seen": sorted(set(os.environ) & {"DATABASE_URL", "SECRET_KEY", "SIGNALBOX_PEPPER"}) == [],
}
print(json.dumps(told))
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """What a try of the sandbox gave: the level that holds, and a sentence for each thing that keeps it from more."""

    level: int
    missing: tuple[str, ...] = ()


@contextlib.contextmanager
def listening() -> Iterator[int]:
    """A port of this machine on which somebody listens, for the probe to reach if it can."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def judge(output: str) -> tuple[str, ...]:
    """What the probe's output says is missing; one sentence when it says nothing that can be read."""
    for line in reversed(output.splitlines()):
        with contextlib.suppress(ValueError):
            told = json.loads(line)
            if isinstance(told, dict) and told:
                return tuple(f"not so: {sentence}" for sentence, holds in told.items() if holds is not True)
    return (f"the probe said: {output.strip()[-300:] or 'nothing'}",)
