"""Runs one git at a time: with nobody's configuration, in bounds of time, memory and output."""

import contextlib
import os
import re
import resource
import secrets
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.refusals import Refused

StrPath = str | os.PathLike[str]

SECONDS = 20  # wall clock of one local step (reliability.md 2a, case 20)
CPU_SECONDS = 10
NETWORK_SECONDS = 900
MEMORY_BYTES = 1 << 30
NETWORK_MEMORY_BYTES = 4 << 30  # a first clone indexes the whole history; nothing in it is a worker's text
OUTPUT_BYTES = 64 << 20
STDERR_BYTES = 4 << 20  # `apply` reports an offset there, so all of it must be seen

TEMPORARY = "signalbox-tmp"

# reliability.md D9. The window and thread settings keep git inside MEMORY_BYTES on machines with many cores and packs
# larger than the limit; the fsync of objects is asked for at every step, because a ref that survives a power cut must
# not name an object that did not.
SETTINGS = (
    "core.hooksPath=/dev/null",
    "core.fsmonitor=false",
    "core.protectHFS=true",
    "core.protectNTFS=true",
    "core.symlinks=true",
    "core.fileMode=true",
    "core.ignoreCase=false",
    "core.precomposeUnicode=false",
    "core.autocrlf=false",
    "core.eol=lf",
    "core.attributesFile=/dev/null",
    "core.excludesFile=/dev/null",
    "core.untrackedCache=false",
    "core.quotePath=true",
    "core.filesRefLockTimeout=5000",
    "core.packedRefsTimeout=5000",
    "core.packedGitWindowSize=32m",
    "core.packedGitLimit=256m",
    "core.fsync=committed,reference",
    "protocol.allow=never",
    "submodule.recurse=false",
    "fetch.recurseSubmodules=false",
    "gc.auto=0",
    "maintenance.auto=false",
    "pack.threads=2",
    "index.threads=1",
    "checkout.workers=1",
    "merge.renames=false",
    "merge.directoryRenames=false",
    "merge.conflictStyle=merge",
    "i18n.commitEncoding=UTF-8",
    "i18n.logOutputEncoding=UTF-8",
    "credential.helper=",
    "log.showSignature=false",
)
_PASSED_TO_NETWORK = (
    "SSH_AUTH_SOCK",
    "HTTPS_PROXY",
    "https_proxy",
    "ALL_PROXY",
    "all_proxy",
    "NO_PROXY",
    "no_proxy",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
)


class GitFailed(Refused):
    """git could not do its work; `stderr` is the end of what it said. Not the fault of a patch."""

    code = "git_failed"
    status = 503

    def __init__(self, message: str, *, stderr: str = "", code: str | None = None) -> None:
        super().__init__(f"{message}: {stderr}" if stderr else message, code=code)
        self.stderr = stderr


class TimedOut(GitFailed):
    """git was stopped because it took longer than it may."""

    code = "git_timed_out"


class OutOfProcessorTime(TimedOut):
    """git was stopped for what it computed, which no other work on the machine can make longer."""


@dataclass(frozen=True)
class Done:
    """How one git ended, and all that it said."""

    returncode: int
    stdout: bytes
    stderr: bytes


@contextlib.contextmanager
def temporary(repo: StrPath) -> Iterator[Path]:
    """A folder of its own inside the mirror, gone afterwards; `sweep_locks` removes those of killed processes."""
    folder = Path(repo).absolute() / TEMPORARY / secrets.token_hex(8)
    folder.mkdir(mode=0o700, parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run(
    repo: StrPath,
    *arguments: str,
    env: Mapping[str, str] | None = None,
    stdin: bytes = b"",
    allowed: tuple[int, ...] | range = (0,),
    seconds: float = SECONDS,
    cpu_seconds: int = CPU_SECONDS,
    memory_bytes: int = MEMORY_BYTES,
    cwd: Path | None = None,
    git_dir: bool = True,
    protocol: str | None = None,
) -> Done:
    """Run one git command on the mirror `repo`; raises GitFailed when its exit code is not among `allowed`."""
    settings = list(SETTINGS)
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "LANGUAGE": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
        "GIT_OPTIONAL_LOCKS": "0",
        "GIT_PAGER": "cat",
        **(env or {}),
    }
    if protocol is not None:
        settings.append(f"protocol.{protocol}.allow=always")
        seconds, cpu_seconds, memory_bytes = NETWORK_SECONDS, NETWORK_SECONDS, NETWORK_MEMORY_BYTES
        environment["GIT_SSH_COMMAND"] = "ssh -o BatchMode=yes"
        environment |= {name: os.environ[name] for name in _PASSED_TO_NETWORK if name in os.environ}
    place = Path(repo).absolute()
    command = ["git", *(part for setting in settings for part in ("-c", setting))]
    if git_dir:
        command.append(f"--git-dir={place}")
    command += arguments
    what = f"git {arguments[0]}"
    done = run_bounded(command, environment, cwd or place, stdin, seconds, cpu_seconds, memory_bytes, what)
    if done.returncode not in allowed:
        raise GitFailed(f"{what} ended with {done.returncode}", stderr=tail(done.stderr))
    return done


def run_bounded(
    command: list[str],
    environment: dict[str, str],
    cwd: Path,
    stdin: bytes,
    seconds: float,
    cpu_seconds: int,
    memory_bytes: int,
    what: str,
) -> Done:
    """Run `command` in a session of its own inside its bounds; raises TimedOut or GitFailed when it leaves them.

    The whole session is killed then, children included.
    """
    try:
        child = subprocess.Popen(
            command,
            env=environment,
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise GitFailed(f"{what} could not start", stderr=str(error)) from error
    with child:
        try:
            set_limits(child.pid, cpu_seconds, memory_bytes)
            output, errors = _talk(child, stdin, time.monotonic() + seconds, what, seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode == -signal.SIGXCPU:
        raise OutOfProcessorTime(f"{what} used more than {cpu_seconds} s of processor time")
    return Done(child.returncode, output, errors)


def set_limits(pid: int, cpu_seconds: int, memory_bytes: int) -> None:
    """Bound a child from outside, before it has been given any input.

    Not a preexec_fn: that can deadlock in a process with threads. Where the system has no prlimit (it is Linux's), the
    wall clock and the bounds on output remain.
    """
    if not hasattr(resource, "prlimit"):
        return
    with contextlib.suppress(ProcessLookupError, PermissionError):
        resource.prlimit(pid, resource.RLIMIT_AS, (memory_bytes, memory_bytes))
        resource.prlimit(pid, resource.RLIMIT_CPU, (cpu_seconds, cpu_seconds + 5))
        resource.prlimit(pid, resource.RLIMIT_CORE, (0, 0))


def _talk(
    child: "subprocess.Popen[bytes]", stdin: bytes, deadline: float, what: str, seconds: float
) -> tuple[bytes, bytes]:
    """Feed `stdin` and collect both outputs until the child has ended, without exceeding time or size."""
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise GitFailed(f"{what} has no pipes")
    output, errors = bytearray(), bytearray()
    bounds = {child.stdout.fileno(): (output, OUTPUT_BYTES), child.stderr.fileno(): (errors, STDERR_BYTES)}
    waiting = memoryview(stdin)
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr):
            selector.register(stream, selectors.EVENT_READ)
        if waiting:
            os.set_blocking(child.stdin.fileno(), False)
            selector.register(child.stdin, selectors.EVENT_WRITE)
        else:
            child.stdin.close()
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready and time.monotonic() >= deadline:
                raise TimedOut(f"{what} took more than {seconds:g} s")
            for key, _ in ready:
                if key.fileobj is child.stdin:
                    try:
                        waiting = waiting[os.write(key.fd, waiting[:65536]) :]
                    except BrokenPipeError:
                        waiting = waiting[:0]  # it has heard enough, and its exit code says why
                    if not waiting:
                        selector.unregister(key.fileobj)
                        child.stdin.close()
                    continue
                chunk = os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fileobj)
                    continue
                collected, limit = bounds[key.fd]
                collected += chunk
                if len(collected) > limit:
                    raise GitFailed(f"{what} wrote more than {limit} bytes")
    try:
        child.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"{what} took more than {seconds:g} s") from error
    return bytes(output), bytes(errors)


def decoded(raw: bytes) -> str:
    """What git said as text; bytes that are no UTF-8 become lone surrogates."""
    return raw.decode("utf-8", "surrogateescape")


def tail(stderr: bytes) -> str:
    """The last lines git said, at most 2,000 characters."""
    return stderr.decode("utf-8", "replace").strip()[-2000:]


def complaint(stderr: bytes) -> str:
    """The lines of git's complaint, without its progress, at most 2,000 characters."""
    lines = stderr.decode("utf-8", "replace").splitlines()
    said = [line.removeprefix("error: ").removeprefix("fatal: ") for line in lines if re.match("error: |fatal: ", line)]
    return "; ".join(said)[:2000] or "no reason given"
