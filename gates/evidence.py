"""Takes what a gate's command left in its output folder, and reads it in a bounded child; trusts neither."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gates import junit
from gates.junit import MAX_BYTES, Results, TestCase
from pipeline.refusals import Refused

__all__ = ["MAX_BYTES", "EvidenceRefused", "Missing", "Results", "TestCase", "collect", "parse", "read_junit"]

PARSE_SECONDS = 30.0
_PROGRAMS = {"junit": junit.__file__}


class EvidenceRefused(Refused):
    """The evidence is not what it should be; it measures nothing, and never counts as good."""

    code = "invalid_evidence"
    status = 422


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no evidence of this kind that we would read; `reason` says why, for people."""

    reason: str


def collect(directory: Path, declared: Mapping[str, str]) -> dict[str, bytes | Missing]:
    """The content of each declared file (kind -> path below `directory`), or Missing with the reason.

    Missing: absent, a link at any step, a file with a second name (it could be someone else's), not a regular file,
    or over MAX_BYTES. No step follows a link, and opening does not wait (a named pipe would hang us). Raises
    EvidenceRefused when a declared path is absolute or leaves the folder: that is an error of the definition.
    """
    steps = {kind: _steps(path) for kind, path in declared.items()}
    return {kind: _content(directory, each) for kind, each in steps.items()}


def _steps(path: str) -> list[str]:
    steps = path.split("/")
    if not path or "\0" in path or any(step in {"", ".", ".."} for step in steps):
        raise EvidenceRefused(f"an evidence path must stay below the output folder: {path!r}", path=path)
    return steps


def _content(directory: Path, steps: list[str]) -> bytes | Missing:
    folder_flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    path = "/".join(steps)
    try:
        folder = os.open(directory, folder_flags)
        try:
            for step in steps[:-1]:
                below = os.open(step, folder_flags, dir_fd=folder)
                os.close(folder)
                folder = below
            file = os.open(steps[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
        finally:
            os.close(folder)
    except OSError as problem:
        return Missing(f"{path}: {_told(problem)}")
    try:
        found = os.fstat(file)
        if not stat.S_ISREG(found.st_mode):
            return Missing(f"{path}: not a regular file")
        if found.st_nlink != 1:
            return Missing(f"{path}: a link to a file with another name")
        with open(file, "rb", closefd=False) as opened:
            data = opened.read(MAX_BYTES + 1)
    except OSError as problem:
        return Missing(f"{path}: {_told(problem)}")
    finally:
        os.close(file)
    return data if len(data) <= MAX_BYTES else Missing(f"{path}: more than {MAX_BYTES // 1024 // 1024} MiB")


def _told(problem: OSError) -> str:
    """What an error of opening means; ELOOP and ENOTDIR are how O_NOFOLLOW answers to a link."""
    if problem.errno == errno.ENOENT:
        return "was not written"
    if problem.errno in {errno.ELOOP, errno.ENOTDIR}:
        return "a link, or below something that is no folder"
    return problem.strerror or str(problem)


def read_junit(data: bytes) -> Results:
    """Results of a JUnit report, read in this process: for bytes of known origin, and tests.

    Raises EvidenceRefused as `gates.junit.read` does Unreadable.
    """
    try:
        return junit.read(io.BytesIO(data))
    except junit.Unreadable as refused:
        raise EvidenceRefused(str(refused), kind="junit") from refused


def parse(kind: str, source: bytes | Path) -> Results:
    """Results of evidence of one `kind` ("junit"), read by a child with limits on memory, CPU, files and time.

    `source` is the content, or a regular file (no link). Raises EvidenceRefused: an unknown kind, a file that
    `collect` would call Missing, a report that cannot be read, or a child that died or ran out of time.
    """
    if kind not in _PROGRAMS:
        raise EvidenceRefused(f"evidence of kind {kind!r} cannot be read", kind=kind)
    data = source if isinstance(source, bytes) else _content(source.parent, [source.name])
    if isinstance(data, Missing):
        raise EvidenceRefused(data.reason, kind=kind)
    try:
        # -I and -S: neither the environment nor the site's packages run code in the child.
        child = subprocess.run(
            [sys.executable, "-I", "-S", _PROGRAMS[kind]],
            input=data,
            capture_output=True,
            timeout=PARSE_SECONDS,
            env={},
            cwd="/",
            check=False,
        )
        answer = json.loads(child.stdout)
        if "refused" in answer:
            raise EvidenceRefused(answer["refused"], kind=kind)
        return junit.from_document(answer["results"])
    except subprocess.TimeoutExpired as problem:
        raise EvidenceRefused(f"reading the {kind} report took over {PARSE_SECONDS:.0f} s", kind=kind) from problem
    except (ValueError, KeyError, TypeError) as problem:
        raise EvidenceRefused(f"the reader of the {kind} report died", kind=kind) from problem
