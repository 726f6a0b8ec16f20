"""The only place that runs a gate's command: bounded in time, memory, files, processes and output, nothing left behind.

Sandbox levels (docs/sandbox.md). Level 0 has a wall clock, an output cap and an empty environment only, and is refused
unless it was allowed. Level 1 adds limits, no_new_privs, the end of all descendants, and another user where the service
is root. Level 1 is **not isolated**: the command reaches the network and every file that its user reads. Level 2 adds a
box (`sandbox.py`): no network, no other files, no other processes. Level 3 adds control groups.

As root without another user, level 1 does not hold a fork bomb: the kernel does not count root's processes, and ours
counts too slowly for one that doubles (measured: 14,000 processes after ten seconds, and they could not be ended).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import marshal
import os
import re
import selectors
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gates import cgroups, launch, sandbox
from gates.spec import Box, Spec
from pipeline.refusals import Refused

INTERPRETER = sys.executable
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
EVIDENCE_VARIABLE = "SIGNALBOX_EVIDENCE"
EVIDENCE_PLACEHOLDER = "{evidence}"

HEAD_BYTES = 256 * 1024
TAIL_BYTES = 768 * 1024
OVERLAP = 8 * 1024  # no secret that we know of is longer; the cut through the output drops as much beside it

LIVE_BYTES = 64 * 1024  # of an output that comes faster than it is shown, a watcher gets the last
LIVE_SECONDS = 0.2

_LATE_SECONDS = 20.0  # what the launcher may take beyond timeout, grace and ending before it counts as lost
_DRAIN_SECONDS = 5.0  # what the output may take to end once everything that could write is dead


class RunnerLost(Refused):
    """The machinery failed, not the command: nothing is known about the command's verdict (error kind infra)."""

    code = "runner_lost"
    status = 503


class LevelRefused(Refused):
    """The sandbox level that was asked for is not to be had here, or is 0 and was not allowed."""

    code = "sandbox_level_refused"
    status = 409


class NoFolder(Refused):
    """The tree has no such folder for the command to run in: the tree's fault, or its gate's, and not the machine's."""

    code = "no_folder"
    status = 409


@dataclass(frozen=True, slots=True)
class Limits:
    """What one command may use. Memory, file size, CPU and open files hold per process (rlimits), the rest for all
    processes together.

    `cpu_seconds` None is the time limit on every core. `memory_bytes` is address space, which Node reserves freely;
    `all_memory_bytes` is what is in use. `disk_bytes` and `disk_files` hold for copy, evidence and home, the copy
    included; `tmp_bytes` for /tmp and for /dev/shm in the box. 0 is no limit for these three.
    """

    memory_bytes: int = 4 * 1024**3
    all_memory_bytes: int = 8 * 1024**3
    disk_bytes: int = 8 * 1024**3
    disk_files: int = 500_000
    tmp_bytes: int = 256 * 1024**2
    cpu_seconds: int | None = None
    file_bytes: int = 1024**3
    open_files: int = 1024
    processes: int = 256
    output_bytes: int = 64 * 1024**2
    grace_seconds: float = 5.0


@dataclass(frozen=True, slots=True)
class Execution:
    """How a command ended.

    `exit_code` is 128 + n for one that a signal n ended, 127 for a command that was not found, 126 for one that could
    not be started, and None when we ended it, or could not end what it started. `output` is standard output and error
    together: the first 256 KiB and the last 768 KiB, secrets and control characters taken out; `redactions` counts
    the secrets. `killed` counts the processes that we had to end. `level` is the sandbox level that held. `error` is a
    sentence, or empty; `notes` are sentences on what did not hold although the level did. `exceeded` says which limit
    of all processes together was passed: then `exit_code` is 137, as for one that the kernel ended.
    """

    exit_code: int | None
    duration_seconds: float
    timed_out: bool
    output_limited: bool
    output: str
    killed: int
    level: int
    error: str = ""
    stopped: bool = False
    redactions: int = 0
    notes: tuple[str, ...] = ()
    exceeded: str = ""


def available_level() -> int:
    """The highest sandbox level that this machine gives, found by trying; asked once per process."""
    return probe().level


@functools.cache
def probe() -> sandbox.Probe:
    """What this machine's sandbox holds, found by running commands in it that try to get out; once per process."""
    with tempfile.TemporaryDirectory(prefix="signalbox-probe-") as top:
        if _works(Path(top, "one"), 1, ["true"]).exit_code != 0:
            return sandbox.Probe(0, ("a command cannot be confined here",))
        missing = _missing_of_2(Path(top))
        if missing:
            return sandbox.Probe(1, missing)
        try:
            groups = cgroups.available()
        except OSError as problem:
            groups = str(problem) or "control groups cannot be used"
        return sandbox.Probe(2, (groups,)) if groups else sandbox.Probe(3)


def _missing_of_2(top: Path) -> tuple[str, ...]:
    """Why level 2 does not hold here: a sentence for each reason, none when it does."""
    if not sandbox.bubblewrap():
        return ("bubblewrap is not installed",)
    outside = top / "outside"
    outside.write_text("everybody may read this")
    top.chmod(0o755)
    with sandbox.listening() as port:
        command = [sys.executable, "-I", "-S", "-c", sandbox.PROBE, str(port), str(outside), str(os.getpid())]
        tried = _works(top / "two", 2, command)
    if tried.exit_code != 0:
        return (tried.error or f"the probe ended with {tried.exit_code}: {tried.output.strip()[-300:]}",)
    return sandbox.judge(tried.output)


def _works(top: Path, level: int, command: list[str]) -> Execution:
    """How `command` ends at `level`; what kept it from starting stands in `error`."""
    tree, evidence = top / "tree", top / "evidence"
    tree.mkdir(parents=True)
    capture = _Capture()
    try:
        with sandbox.own_user(_first_user() if level > 1 else 0) as user:
            return _execute(command, tree, {}, evidence, Limits(), 20.0, level, user, capture, None)
    except (RunnerLost, OSError) as problem:
        said = capture.result()[0].strip()[-300:]
        return Execution(None, 0.0, False, False, said, 0, level, error=f"{problem}{': ' if said else ''}{said}")


def _first_user() -> int:
    """The first of the users that commands run as, where the service is root; 0 is none."""
    return int(os.environ.get("SIGNALBOX_GATE_UID") or sandbox.FIRST_USER)


def execute(
    command: Sequence[str],
    directory: Path,
    *,
    timeout_seconds: float,
    env: Mapping[str, str],
    output_dir: Path,
    cwd: str = "",
    limits: Limits = Limits(),
    level: int = 1,
    uid: int | None = None,
    on_output: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
    secrets: Iterable[str] = (),
    allow_unsafe: bool = False,
    readonly: Iterable[Path] = (),
    caches: Mapping[str, Path] | None = None,
) -> Execution:
    """Runs `command` in the folder `cwd` of the copy `directory` and returns how it ended; nothing of it runs on.

    `output_dir` lies outside `directory`, is made if need be and must be empty; the command finds its path in the
    environment as SIGNALBOX_EVIDENCE, and wherever an argument says "{evidence}". Of our own environment the command
    sees nothing; PATH begins with the folder of our interpreter, so `python -m pytest` is ours; HOME and TMPDIR are
    fresh, and removed at the end. `readonly` are folders of the machine that the command may read at their own place,
    and of which PATH ends with the `bin`;
    `caches` are read-only too, each named by SIGNALBOX_CACHE_<NAME>.

    `uid` is another user to run as, where the service is root: both folders are handed over to it. Level 2 takes a free
    one when none is given. Where at level 1 that user cannot reach the interpreter or the folders (a closed folder
    above them), the command runs as our own user and `notes` says so; the level is still 1, as everything else of it
    holds. `on_output` gets the output as it comes, in whole lines where possible, cleaned like the rest; of what comes
    too fast it gets the end. `stop` set from another thread ends the command.

    Raises LevelRefused, NoFolder, and RunnerLost for what is our failure: the launcher cannot start or vanished, the
    box cannot be made, the folders are not as they should be.
    """
    if level == 0 and not allow_unsafe:
        raise LevelRefused("sandbox level 0 holds nothing, and is not allowed here", level=level)
    if level not in {0, 1, 2, 3} or level > available_level():
        raise LevelRefused(f"sandbox level {level} is not available on this machine", level=level)
    capture = _Capture(secrets, on_output)
    shown = (tuple(readonly), tuple((caches or {}).items()))
    try:
        with sandbox.own_user(_first_user() if level > 1 and uid is None else 0) as own:
            return _execute(
                command,
                directory,
                env,
                output_dir,
                limits,
                timeout_seconds,
                level,
                own or uid,
                capture,
                stop,
                cwd,
                shown,
            )
    except OSError as problem:
        raise RunnerLost(f"the gate's folders or user cannot be made ready: {problem}") from problem


def search_path(readonly: Iterable[Path]) -> str:
    """Where a gate's programs are looked for: beside our interpreter, in the system, and last in the `bin` of the
    folders that the installation shows to gates, so that none of those stands in for a program of the system.
    """
    shown = [path for folder in readonly if os.path.isdir(path := str(folder / "bin"))]
    return ":".join([str(Path(INTERPRETER).parent), SYSTEM_PATH, *shown])


def _execute(
    command: Sequence[str],
    directory: Path,
    env: Mapping[str, str],
    output_dir: Path,
    limits: Limits,
    timeout_seconds: float,
    level: int,
    uid: int | None,
    capture: _Capture,
    stop: threading.Event | None,
    cwd: str = "",
    shown: tuple[tuple[Path, ...], tuple[tuple[str, Path], ...]] = ((), ()),
) -> Execution:
    if not command:
        raise RunnerLost("the command is empty")
    directory, output_dir = directory.resolve(), output_dir.resolve()
    _prepare(directory, output_dir, cwd)
    scratch = Path(tempfile.mkdtemp(prefix="gate-home-", dir=output_dir.parent))
    readonly, caches = shown
    boxed = level > 1
    try:
        user, notes = _user(uid, (directory, output_dir, scratch), boxed=boxed) if level else (None, ())
        # At level 1 two folders more would be two folders more to reach: home is the scratch folder itself.
        home = scratch / "home" if boxed else scratch
        home.mkdir(exist_ok=True)
        if user is not None:
            for folder in (directory, output_dir, home if boxed else scratch):
                _hand_over(folder, user)
        seen = {
            "tree": sandbox.TREE if boxed else str(directory),
            "evidence": sandbox.EVIDENCE if boxed else str(output_dir),
            "home": sandbox.HOME if boxed else str(scratch),
        }
        box: Box | None = None
        if boxed:
            sandbox.write_etc(scratch / "etc", user or os.geteuid(), user or os.getegid())
            place = sandbox.Place(
                directory, output_dir, home, scratch / "etc", cwd, (*sandbox.toolchain(), *readonly), caches
            )
            inside = limits.processes if user is None and sandbox.counts_by_namespace() else 0
            box = sandbox.box(place, tmp_bytes=limits.tmp_bytes, processes=inside, expose=os.geteuid() == 0)
        cached = {
            f"SIGNALBOX_CACHE_{name.upper().replace('-', '_')}": f"{sandbox.CACHES}/{name}" if boxed else str(folder)
            for name, folder in caches
        }
        with cgroups.group(limits.processes, limits.all_memory_bytes) if level > 2 else nullcontext(()) as groups:
            spec: Spec = {
                "argv": [word.replace(EVIDENCE_PLACEHOLDER, seen["evidence"]) for word in command],
                "cwd": str(directory / cwd),
                "env": {
                    "PATH": search_path(readonly),
                    "HOME": seen["home"],
                    "TMPDIR": "/tmp" if boxed else seen["home"],
                    "LANG": "C.UTF-8",
                    # What a test prints is seen when it prints it.
                    "PYTHONUNBUFFERED": "1",
                    # git must not take a repository above the copy for the copy's own.
                    "GIT_CEILING_DIRECTORIES": str(Path(seen["tree"]).parent),
                    **env,
                    **cached,
                    EVIDENCE_VARIABLE: seen["evidence"],
                },
                "parent": os.getpid(),
                "uid": user,
                "confined": level > 0,
                "timeout_seconds": timeout_seconds,
                "grace_seconds": limits.grace_seconds,
                "memory_bytes": limits.memory_bytes,
                "cpu_seconds": limits.cpu_seconds or int(timeout_seconds + 1) * (os.cpu_count() or 1),
                "file_bytes": limits.file_bytes,
                "open_files": limits.open_files,
                "processes": limits.processes,
                "all_memory_bytes": limits.all_memory_bytes,
                "disk_bytes": limits.disk_bytes,
                "disk_files": limits.disk_files,
                "folders": [str(directory), str(output_dir), str(home)],
                "groups": [str(file) for file in groups],
                "box": box,
            }
            told = _Conversation(spec, limits.output_bytes, capture, stop).hold()
    except OSError as problem:
        raise RunnerLost(f"the gate's folders cannot be made ready: {problem}") from problem
    finally:
        remove(scratch)
    return _execution(told, capture, level, limits, timeout_seconds, notes)


def remove(folder: Path) -> None:
    """Removes a folder and all that a command left in it, also what the command has closed to us."""

    def open_up(_: Any, path: str, __: Any) -> None:
        with contextlib.suppress(OSError):
            os.chmod(os.path.dirname(path), stat.S_IRWXU)
            if os.path.islink(path) or not os.path.isdir(path):
                os.unlink(path)
            else:
                os.chmod(path, stat.S_IRWXU)
                shutil.rmtree(path, ignore_errors=True)

    shutil.rmtree(folder, onerror=open_up)
    shutil.rmtree(folder, ignore_errors=True)


def _prepare(directory: Path, output_dir: Path, cwd: str) -> None:
    if not directory.is_dir():
        raise RunnerLost(f"the tree that is tested is gone from {directory}")
    if not (directory / cwd).is_dir():
        raise NoFolder(f"there is no folder {cwd} to run the command in")
    if not (directory / cwd).resolve().is_relative_to(directory):
        raise NoFolder(f"the folder {cwd} leads out of the tree that is tested")
    if output_dir.is_relative_to(directory):
        raise RunnerLost("the output folder must lie outside the tree that is tested")
    try:
        output_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if any(output_dir.iterdir()):
            raise RunnerLost("the output folder must be empty at the start")
    except OSError as problem:
        raise RunnerLost(f"the output folder cannot be used: {problem}") from problem


def _user(uid: int | None, folders: Sequence[Path], *, boxed: bool) -> tuple[int | None, tuple[str, ...]]:
    """The user to change to, or None to stay who we are, with a note where that is less than was asked for.

    In a box every folder is within reach. Raises RunnerLost rather than put root into one.
    """
    own = os.geteuid()
    if boxed and own == 0:
        if not uid:
            raise RunnerLost("no user was named, and root is not put into a box")
        return uid, ()
    if uid == own or (uid is None and own != 0):
        return None, ()
    if uid is None:
        return None, ("the command ran as root without its capabilities: no other user was named",)
    if own != 0:
        return None, (f"the command ran as our own user: only root can change to user {uid}",)
    needed = [INTERPRETER, os.path.realpath(INTERPRETER), os.path.realpath(os.__file__)]
    for path in needed:
        if not _reaches(uid, Path(path)):
            return None, (f"the command ran as root without its capabilities: user {uid} cannot reach the interpreter",)
    for folder in folders:
        if not _reaches(uid, folder):
            return None, (f"the command ran as root without its capabilities: user {uid} cannot reach its folder",)
    return uid, ()


def _reaches(uid: int, path: Path) -> bool:
    """Whether a user without groups may pass every folder above `path`."""
    for folder in path.absolute().parents:
        found = folder.stat()
        if found.st_uid == uid:
            needed = stat.S_IXUSR
        elif found.st_gid == uid:  # the launcher gives it the group of the same number
            needed = stat.S_IXGRP
        else:
            needed = stat.S_IXOTH
        if not found.st_mode & needed:
            return False
    return True


def _hand_over(folder: Path, uid: int) -> None:
    """Makes `uid` the owner of everything below; never follows a link."""
    for _, names, files, opened in os.fwalk(folder, follow_symlinks=False):
        os.fchown(opened, uid, uid)
        for name in (*names, *files):
            os.chown(name, uid, uid, dir_fd=opened, follow_symlinks=False)


def _execution(
    told: Mapping[str, Any],
    capture: _Capture,
    level: int,
    limits: Limits,
    timeout_seconds: float,
    notes: tuple[str, ...],
) -> Execution:
    exit_code = None if told["survivors_left"] else told["exit_code"]
    ended_by_us = told["timed_out"] or told["stopped"] or told["exceeded"]
    if ended_by_us and level > 1 and exit_code is not None and exit_code > 128:
        exit_code = None  # bubblewrap tells a signal as an exit code, and the signal was ours
    if told["signal"] is not None and not ended_by_us:
        exit_code = 128 + told["signal"]
    error = told["sentence"]
    if told["timed_out"]:
        error = f"over the time limit of {timeout_seconds:g} s"
    elif told["exceeded"]:
        error, exit_code = told["exceeded"], 128 + signal.SIGKILL
    elif told["output_limited"]:
        error = f"more than {limits.output_bytes} bytes of output"
    elif told["stopped"]:
        error = "stopped"
    if told["survivors_left"]:
        error, exit_code = f"{told['survivors_left']} processes could not be ended", None
    output, redactions = capture.result()
    return Execution(
        exit_code=exit_code,
        duration_seconds=told["duration_seconds"],
        timed_out=told["timed_out"],
        output_limited=told["output_limited"],
        output=output,
        killed=told["survivors_killed"],
        level=level,
        error=error,
        stopped=told["stopped"] and not told["output_limited"],
        redactions=redactions,
        notes=notes,
        exceeded=told["exceeded"],
    )


# What the launcher's interpreter begins with: it takes the program from standard input, as it never compiles it.
_BEGIN = """
import marshal, os
def read(size):
    found = b""
    while len(found) < size:
        found += os.read(0, size - len(found)) or os._exit(1)
    return found
exec(marshal.loads(read(int.from_bytes(read(8)))))
"""


@functools.cache
def _program() -> bytes:
    """The launcher, compiled, for another process of our interpreter."""
    source = Path(launch.__file__)
    return marshal.dumps(compile(source.read_text(), str(source), "exec", dont_inherit=True))


class _Conversation:
    """One launcher and its pipes: control to it, output and one report from it."""

    def __init__(self, spec: Spec, output_bytes: int, capture: _Capture, stop: threading.Event | None) -> None:
        self.spec = spec
        self.output_bytes = output_bytes
        self.capture = capture
        self.stop = stop
        self.output_limited = False
        self.report = b""

    def hold(self) -> dict[str, Any]:
        """The launcher's report with `output_limited` added. Raises RunnerLost; ends the launcher in any case."""
        output, output_in = os.pipe()
        report, report_in = os.pipe()
        try:
            try:
                process = subprocess.Popen(
                    [sys.executable, "-I", "-S", "-c", _BEGIN, "gates/launch.py", str(report_in)],
                    stdin=subprocess.PIPE,
                    stdout=output_in,
                    stderr=output_in,
                    pass_fds=[report_in],
                    env={},
                    cwd="/",
                    start_new_session=True,
                )
            except OSError as problem:
                raise RunnerLost(f"the gate's launcher cannot be started: {problem}") from problem
            finally:
                os.close(output_in)
                os.close(report_in)
            try:
                self._send_spec(process)
                self._listen(process, output, report)
            finally:
                self._close(process)
                if not self.report:
                    self._sweep()
        finally:
            os.close(output)
            os.close(report)
        return self._told()

    def _send_spec(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdin is not None
        try:
            # By way of JSON: marshal takes no text that only behaves like one.
            for part in (_program(), marshal.dumps(json.loads(json.dumps(self.spec)))):
                process.stdin.write(len(part).to_bytes(8) + part)
            process.stdin.flush()
        except OSError as problem:
            raise RunnerLost(f"the gate's launcher is gone: {problem}") from problem

    def _listen(self, process: subprocess.Popen[bytes], output: int, report: int) -> None:
        """Takes output and report until both have ended, which they do when everything below the launcher is dead."""
        deadline = time.monotonic() + self.spec["timeout_seconds"] + self.spec["grace_seconds"]
        deadline += launch.ENDING_SECONDS + _LATE_SECONDS
        with selectors.DefaultSelector() as ahead:
            ahead.register(output, selectors.EVENT_READ)
            ahead.register(report, selectors.EVENT_READ)
            while ahead.get_map():
                if time.monotonic() >= deadline:
                    return
                ready = {key.fd for key, _ in ahead.select(timeout=0.1)}
                self.capture.tick()
                if report in ready:
                    piece = os.read(report, 65536)
                    self.report += piece
                    if not piece:
                        ahead.unregister(report)
                        # Without a report the launcher was killed, and its other half is ending the command.
                        drain = _DRAIN_SECONDS if self.report else launch.ENDING_SECONDS
                        deadline = min(deadline, time.monotonic() + drain)
                if output in ready:
                    piece = os.read(output, 65536)
                    room = self.output_bytes - self.capture.total
                    self.capture.feed(piece[:room])
                    if len(piece) > room:
                        self.output_limited = True
                        self._end(process)
                    if not piece or self.output_limited:
                        ahead.unregister(output)
                        self.capture.close()
                if self.stop is not None and self.stop.is_set():
                    self._end(process)

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Lets go of the control pipe, at which the launcher ends everything."""
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()

    def _close(self, process: subprocess.Popen[bytes]) -> None:
        self._end(process)
        try:
            process.wait(launch.ENDING_SECONDS + _DRAIN_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _sweep(self) -> None:
        """Ends what carries this run's evidence folder in its environment: both halves of the launcher were killed.

        A command of our own user can do that, and a process of it that also emptied its environment is not found. A box
        ends with whoever made it, and its commands cannot reach those.
        """
        if self.spec["box"] is not None:
            return
        sign = f"{EVIDENCE_VARIABLE}={self.spec['env'][EVIDENCE_VARIABLE]}".encode()
        for entry in os.scandir("/proc"):
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and sign in Path(entry, "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)

    def _told(self) -> dict[str, Any]:
        try:
            told: dict[str, Any] = ast.literal_eval(self.report.decode())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise RunnerLost("the gate's launcher vanished without a report") from None
        if "refused" in told:
            raise RunnerLost(f"the gate's launcher could not do its work: {told['refused']}")
        if told["lost"]:
            raise RunnerLost("the process that kept the gate's command was killed")
        return {**told, "output_limited": self.output_limited}


# --- output -------------------------------------------------------------------------------------------------------

# Sequences of terminals (ECMA-48): CSI; OSC, DCS, SOS, PM, APC to their end or the end of the line; two-byte escapes.
_ESCAPES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]{0,64}[ -/]{0,8}[@-~]?"
    r"|(?:\x1b[\]PX^_]|[\x9d\x90\x98\x9e\x9f])[^\x07\x1b\x9c\n]{0,1024}(?:\x07|\x1b\\|\x9c)?"
    r"|\x1b[ -/]{0,8}[0-~]?"
)
# C0 but newline and tab, DEL, C1, and what turns the direction of text (Unicode Bidi_Control) or breaks lines unseen.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
_SECRET_PATTERNS = (
    r"(?<![A-Za-z0-9])sbx_[0-9A-Za-z]{8}_[A-Za-z0-9_-]{20,512}",
    r"(?<![A-Za-z0-9])gh[opsru]_[A-Za-z0-9]{20,512}",
    r"(?<![A-Za-z0-9])github_pat_[A-Za-z0-9_]{20,512}",
    r"(?<![A-Za-z0-9])glpat-[A-Za-z0-9_-]{20,512}",
    r"(?<![A-Za-z0-9])sk-[A-Za-z0-9_-]{20,512}",
    r"(?<![A-Za-z0-9])xox[abeoprs]-[A-Za-z0-9-]{10,512}",
    r"(?<![A-Za-z0-9])(?:AKIA|ASIA)[0-9A-Z]{16}(?![0-9A-Z])",
    r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----(?:\s{1,4}[A-Za-z-]{1,40}: [^\n]{0,200}){0,8}"
    r"[A-Za-z0-9+/=\\\s]{0,7000}(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?",
)
_REDACTED = "[redacted]"
_LEAST_SECRET_CHARS = 6  # a shorter "secret" would black out words


def clean(text: str, secrets: Iterable[str] = ()) -> tuple[str, int]:
    """`text` without control characters and secrets, and how many secrets it held.

    Newline and tab stay; a carriage return becomes a newline. Secrets are the given values, line by line, and what
    looks like a token or private key. Control characters go first, as they could hide a secret from the search.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROLS.sub("", _ESCAPES.sub("", text))
    return _secret_pattern(tuple(secrets)).subn(_REDACTED, text)


@functools.lru_cache(maxsize=64)
def _secret_pattern(secrets: tuple[str, ...]) -> re.Pattern[str]:
    lines = {line.strip() for secret in secrets for line in secret.splitlines()}
    known = sorted((line for line in lines if len(line) >= _LEAST_SECRET_CHARS), key=len, reverse=True)
    return re.compile("|".join([*map(re.escape, known), *_SECRET_PATTERNS]))


@dataclass(slots=True)
class _Capture:
    """The first and the last of an output, whatever its length; and, for a watcher, what comes, at a bounded rate."""

    secrets: Iterable[str] = ()
    on_output: Callable[[str], None] | None = None
    total: int = 0
    _head: bytearray = field(default_factory=bytearray)
    _tail: bytearray = field(default_factory=bytearray)
    _unseen: bytearray = field(default_factory=bytearray)
    _left_out: int = 0
    _shown_at: float = 0.0

    def __post_init__(self) -> None:
        self.secrets = tuple(self.secrets)

    def feed(self, piece: bytes) -> None:
        """Takes the next bytes."""
        self.total += len(piece)
        if len(self._head) < HEAD_BYTES + OVERLAP:
            self._head += piece[: HEAD_BYTES + OVERLAP - len(self._head)]
        self._tail += piece
        if len(self._tail) > 2 * (TAIL_BYTES + OVERLAP):
            del self._tail[: -(TAIL_BYTES + OVERLAP)]
        if self.on_output is not None:
            self._unseen += piece
            if (over := len(self._unseen) - 2 * (LIVE_BYTES + OVERLAP)) > 0:
                over += LIVE_BYTES + OVERLAP
                del self._unseen[:over]
                self._left_out += over
            self.tick()

    def tick(self) -> None:
        """Shows the watcher what is there, unless it was shown something a moment ago."""
        if self.on_output is not None and self._unseen and time.monotonic() - self._shown_at >= LIVE_SECONDS:
            self._show(last=False)

    def close(self) -> None:
        """Shows the watcher what was held back; there is no more output."""
        if self.on_output is not None:
            self._show(last=True)

    def _show(self, *, last: bool) -> None:
        """Hands on what is complete; holds back an unfinished line or key, in which a secret could be in the making."""
        assert self.on_output is not None
        if last:
            end = len(self._unseen)
        else:
            end = self._unseen.rfind(b"\n") + 1
            begin = self._unseen.rfind(b"-----BEGIN ", 0, end)
            if begin >= 0 and self._unseen.find(b"-----END ", begin, end) < 0:
                end = begin
            end = max(end, len(self._unseen) - 2 * OVERLAP)
        if end <= (OVERLAP if self._left_out else 0):
            return
        text, _ = clean(self._unseen[:end].decode(errors="replace"), self.secrets)
        del self._unseen[:end]
        if self._left_out:
            # As around the cut of what is stored: no half of a secret may stand behind a gap.
            text = f"\n[… {self._left_out + OVERLAP} bytes not shown …]\n{text[OVERLAP:]}"
            self._left_out = 0
        self._shown_at = time.monotonic()
        if text:
            self.on_output(text)

    def result(self) -> tuple[str, int]:
        """What is stored, and the number of secrets taken out of it.

        Around the cut, OVERLAP more is read than is kept, so that no half of a secret stands beside it.
        """
        head, tail = bytes(self._head), bytes(self._tail[-(TAIL_BYTES + OVERLAP) :])
        if self.total <= HEAD_BYTES + TAIL_BYTES:
            rest = self.total - len(head)
            return clean((head + (tail[-rest:] if rest else b"")).decode(errors="replace"), self.secrets)
        first, in_first = clean(head.decode(errors="replace"), self.secrets)
        last, in_last = clean(tail.decode(errors="replace"), self.secrets)
        left_out = self.total - HEAD_BYTES - TAIL_BYTES
        return f"{first[:-OVERLAP]}\n[… {left_out} bytes left out …]\n{last[OVERLAP:]}", in_first + in_last
