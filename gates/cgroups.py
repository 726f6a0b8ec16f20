"""Control groups for sandbox level 3: the kernel itself counts a command's processes and memory, as one.

They are used where SIGNALBOX_GATE_CGROUP names a group that was made for this and may be written: below it every run
gets a group of its own, removed at its end. Version 2 has one tree; of version 1, `pids` and `memory` are used.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
FILES = {
    2: {"": {"pids.max": "{processes}", "memory.max": "{memory}", "memory.swap.max": "0", "memory.oom.group": "1"}},
    1: {"pids": {"pids.max": "{processes}"}, "memory": {"memory.limit_in_bytes": "{memory}"}},
}
OPTIONAL = {"memory.swap.max", "memory.oom.group"}  # a machine without swap accounting has none
STALE_SECONDS = 24 * 3600
END_SECONDS = 5.0


def _parents() -> tuple[int, dict[str, Path]]:
    """The version of control groups here, and the group below which ours are made, for each tree of it."""
    name = os.environ.get("SIGNALBOX_GATE_CGROUP", "").strip("/")
    if not name or ".." in Path(name).parts:
        raise OSError("no control group was named by SIGNALBOX_GATE_CGROUP")
    version = 2 if (ROOT / "cgroup.controllers").exists() else 1
    parents = {tree: ROOT / tree / name for tree in FILES[version]}
    for parent in parents.values():
        if not os.access(parent, os.W_OK):
            raise OSError(f"the control group {parent} is not there, or not ours to write")
    return version, parents


def available() -> str:
    """Why control groups cannot be used, in a sentence; empty when they can: a group is made and removed."""
    try:
        with group(16, 64 * 1024**2):
            return ""
    except OSError as problem:
        return str(problem)


@contextlib.contextmanager
def group(processes: int, memory_bytes: int) -> Iterator[tuple[Path, ...]]:
    """A group with these limits: the files into which a process writes its id to join. What is in it at the end is
    killed. Raises OSError where there is none to be had.
    """
    version, parents = _parents()
    made: list[Path] = []
    try:
        for tree, parent in parents.items():
            if version == 2:
                (parent / "cgroup.subtree_control").write_text("+pids +memory")
            _tidy(parent)
            made.append(Path(tempfile.mkdtemp(prefix="run-", dir=parent)))
            for file, value in FILES[version][tree].items():
                # bubblewrap, and the group's first process, count as well.
                text = value.format(processes=processes + 3, memory=memory_bytes or ("max" if version == 2 else -1))
                try:
                    (made[-1] / file).write_text(text)
                except OSError:
                    if file not in OPTIONAL:
                        raise
        yield tuple(one / "cgroup.procs" for one in made)
    finally:
        for one in made:
            _end(one)


def _end(one: Path) -> None:
    """Kills what is left in the group, and removes it; one that cannot be removed yet is tidied away a day later."""
    until = time.monotonic() + END_SECONDS
    while time.monotonic() < until:
        with contextlib.suppress(OSError):
            if (one / "cgroup.kill").exists():
                (one / "cgroup.kill").write_text("1")
            for pid in (one / "cgroup.procs").read_text().split():
                os.kill(int(pid), 9)
        try:
            one.rmdir()
        except FileNotFoundError:
            return
        except OSError:
            time.sleep(0.02)
        else:
            return


def _tidy(parent: Path) -> None:
    """Removes groups that a killed runner left; one that is in use does not let itself be removed."""
    for left in parent.glob("run-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                left.rmdir()
