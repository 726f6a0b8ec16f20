"""Takes what a gate's command left in its output folder, and reads it in a bounded child; trusts neither."""

from __future__ import annotations

import errno
import io
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gates import coverage, goalposts, junit, reader, sarif
from gates.coverage import Coverage
from gates.goalposts import declared
from gates.junit import Results, TestCase
from gates.reading import MAX_BYTES, UNKNOWN_LENGTH, Tree, Unreadable
from gates.sarif import Found
from pipeline.refusals import Refused

__all__ = [
    "MAX_BYTES",
    "TEST_KINDS",
    "EvidenceRefused",
    "Missing",
    "Results",
    "TestCase",
    "Tree",
    "collect",
    "declared_tests",
    "moved_goalposts",
    "parse",
    "read",
    "read_junit",
    "survey",
]

PARSE_SECONDS = 30.0
TEST_KINDS = ("junit", "tap")
KINDS = (*TEST_KINDS, "coverage", "sarif")
SHARD = "{shard}"  # stands in an evidence path where the number of the shard goes, from 1
NO_TREE = Tree({})

_COUNTED_BYTES = 4 * 1024 * 1024  # a longer file's lines are not counted
_MOST_FILES = 200_000
_PROGRAM = reader.__file__
_READ_BACK: Mapping[str, Callable[[list[Any]], Any]] = {
    "junit": junit.from_lines,
    "tap": junit.from_lines,
    "coverage": coverage.from_lines,
    "sarif": sarif.from_lines,
    "goalposts": goalposts.from_lines,
    "declared": declared.from_lines,
}


class EvidenceRefused(Refused):
    """The evidence is not what it should be; it measures nothing, and never counts as good."""

    code = "invalid_evidence"
    status = 422


@dataclass(frozen=True, slots=True)
class Missing:
    """There is no evidence of this kind that we would read; `reason` says why, for people."""

    reason: str


def survey(directory: Path, *, seen_as: tuple[str, ...] = (), cwd: str = "") -> Tree:
    """The tree below `directory`, to hold reports against; taken before the command runs, which may write there.

    `seen_as` are further absolute folders under which the command sees the tree, `cwd` the folder in it where it runs.
    Links are not followed, and are no files of the tree.
    """
    lines: dict[str, int] = {}
    for folder, names, files in os.walk(directory):
        names.sort()
        for name in files:
            path = Path(folder, name)
            if len(lines) < _MOST_FILES and not path.is_symlink():
                lines[path.relative_to(directory).as_posix()] = _length(path)
    return Tree(lines, (str(directory.resolve()), str(directory), *seen_as), cwd)


def _length(path: Path) -> int:
    try:
        if path.stat().st_size > _COUNTED_BYTES:
            return UNKNOWN_LENGTH
        data = path.read_bytes()
    except OSError:
        return UNKNOWN_LENGTH
    return data.count(b"\n") + (0 if not data or data.endswith(b"\n") else 1)


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
    except Unreadable as refused:
        raise EvidenceRefused(str(refused), kind="junit") from refused


def parse(kind: str, source: bytes | Path) -> Results:
    """`read` of a report of tests ("junit" or "tap")."""
    if kind not in TEST_KINDS:
        raise EvidenceRefused(f"evidence of kind {kind!r} holds no tests", kind=kind)
    results: Results = read(kind, source)
    return results


def read(kind: str, source: bytes | Path, tree: Tree = NO_TREE) -> Any:
    """What a report of one `kind` holds: Results (junit, tap), Coverage (coverage) or a tuple of Found (sarif).

    It is read by a child with limits on memory, CPU, files and time. `source` is the content, or a regular file (no
    link); `tree` are the files that it may speak of. Raises EvidenceRefused: an unknown kind, a file that `collect`
    would call Missing, a report that cannot be read, or a child that died or ran out of time.
    """
    if kind not in KINDS:
        raise EvidenceRefused(f"evidence of kind {kind!r} cannot be read", kind=kind)
    data = source if isinstance(source, bytes) else _content(source.parent, [source.name])
    if isinstance(data, Missing):
        raise EvidenceRefused(data.reason, kind=kind)
    return _ask(kind, data, tree if kind not in TEST_KINDS else NO_TREE)


def moved_goalposts(changes: Sequence[goalposts.Change], paths: Iterable[str] = ()) -> tuple[goalposts.Moved, ...]:
    """`goalposts.judge` in the bounded child, since the files are an agent's. `paths` are those of the base's tree.

    Raises EvidenceRefused as `read` does.
    """
    found: tuple[goalposts.Moved, ...] = _ask(
        "goalposts", _as_json(changes), Tree(dict.fromkeys(paths, UNKNOWN_LENGTH))
    )
    return found


def declared_tests(changes: Sequence[goalposts.Change]) -> tuple[declared.Declared, ...]:
    """`declared.look` in the bounded child. Raises EvidenceRefused as `read` does."""
    found: tuple[declared.Declared, ...] = _ask("declared", _as_json(changes), NO_TREE)
    return found


def _as_json(changes: Sequence[goalposts.Change]) -> bytes:
    texts = [
        [
            one.path,
            *(None if text is None else text.encode("utf-8", "replace").decode() for text in (one.before, one.after)),
        ]
        for one in changes
    ]
    return json.dumps(texts).encode()


def _ask(kind: str, data: bytes, tree: Tree) -> Any:
    """What the child answers about `data`."""
    header = {"lines": dict(tree.lines), "roots": list(tree.roots), "cwd": tree.cwd}
    try:
        # -I and -S: neither the environment nor the site's packages run code in the child.
        child = subprocess.run(
            [sys.executable, "-I", "-S", _PROGRAM, kind],
            input=json.dumps(header).encode() + b"\n" + data,
            capture_output=True,
            timeout=PARSE_SECONDS,
            env={},
            cwd="/",
            check=False,
        )
        documents = [json.loads(line) for line in child.stdout.decode("utf-8", "surrogatepass").split("\n")[:-1]]
        last = documents.pop()
        if "refused" in last:
            raise EvidenceRefused(str(last["refused"]), kind=kind)
        if last["end"] != len(documents):
            raise ValueError("the answer is not whole")
        return _READ_BACK[kind](documents)
    except subprocess.TimeoutExpired as problem:
        raise EvidenceRefused(f"reading the {kind} report took over {PARSE_SECONDS:.0f} s", kind=kind) from problem
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as problem:
        raise EvidenceRefused(f"the reader of the {kind} report died", kind=kind) from problem


def describe(found: Results | Coverage | tuple[Found, ...]) -> dict[str, Any]:
    """What a piece of evidence holds, in figures, to be kept with the gate run."""
    if isinstance(found, Results):
        return {"tests": found.total}
    if isinstance(found, Coverage):
        figures = {"files": len(found.files), "lines": found.executable, "covered": found.covered}
        return {**figures, "unknown_files": found.unknown} if found.unknown else figures
    return {"findings": len(found)}
