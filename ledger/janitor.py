"""What killed gits leave in a mirror: locks that would block every later landing, temporary indexes, half-made objects.

A lock is removed when its owner cannot live any more: it was there before we looked, no git works on this mirror on
this machine, and it is older than any local step may take, for the sake of machines that we do not see.
"""

import contextlib
import os
import shutil
import time
from contextlib import AbstractContextManager
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from django.conf import settings

from ledger import git
from pipeline import locks
from pipeline.models import Project

LOCKS = ("*.lock", "refs/**/*.lock", "info/*.lock", "objects/**/*.lock")
LEFTOVERS = ("objects/**/tmp_*", f"{git.TEMPORARY}/*")
PROC = Path("/proc")


class _Seen(NamedTuple):
    """A file as it was when the janitor came: another one of the same name is somebody's."""

    path: Path
    inode: int


def sweep(project: Project, *, locks_after: timedelta | None = None, rest_after: timedelta | None = None) -> list[str]:
    """Remove the leftovers of dead gits from the project's mirror; returns their names, relative to it.

    Locks go when they are older than `locks_after` (SIGNALBOX_STALE_LOCK_SECONDS, by default 60 s: three times what a
    local step may take), temporary folders and unfinished objects when older than `rest_after` (by default that of a
    fetch, twice). Nothing goes while a git works on this mirror, or another janitor does.
    """
    if locks_after is None:
        locks_after = timedelta(seconds=settings.SIGNALBOX_STALE_LOCK_SECONDS)
    rest_after = git.STALE_LOCK if rest_after is None else rest_after
    with alone(project) as mine:
        if not mine or not project.mirror.is_dir():
            return []
        found = [*_old(project.mirror, LOCKS, locks_after), *_old(project.mirror, LEFTOVERS, rest_after)]
        if not found or at_work(project.mirror):
            return []
        return [str(seen.path.relative_to(project.mirror)) for seen in found if _remove(seen)]


def sweep_all() -> int:
    """Sweep the mirror of every project; returns how many leftovers went."""
    managed = Project.objects.filter(custody=Project.Custody.MANAGED).order_by("pk")
    return sum(len(sweep(project)) for project in managed)


def alone(project: Project) -> AbstractContextManager[bool]:
    """Whether this process has the project's repository to itself: nobody else sweeps it, fetches or pushes there."""
    return locks.alone(f"repository {project.pk}", 1)


def at_work(mirror: Path) -> list[int]:
    """The gits of this machine that may write to the mirror: those whose command line names it, but for clones of it.

    Empty where there is no /proc.
    """
    name = os.fsencode(mirror)
    found = []
    for entry in PROC.iterdir() if PROC.is_dir() else ():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                only_reads = b"upload-pack" in command or b"\0clone\0" in command
                if b"git" in command and name in command and not only_reads:
                    found.append(int(entry.name))
    return found


def _old(mirror: Path, patterns: tuple[str, ...], age: timedelta) -> list[_Seen]:
    limit = time.time() - age.total_seconds()
    found = []
    for path in sorted({path for pattern in patterns for path in mirror.glob(pattern)}):
        with contextlib.suppress(FileNotFoundError):
            seen = path.lstat()
            if seen.st_mtime <= limit:
                found.append(_Seen(path, seen.st_ino))
    return found


def _remove(seen: _Seen) -> bool:
    """Whether it went: not when it is gone, or another file stands there now."""
    try:
        if seen.path.lstat().st_ino != seen.inode:
            return False
        if seen.path.is_dir() and not seen.path.is_symlink():
            shutil.rmtree(seen.path)
        else:
            seen.path.unlink()
    except FileNotFoundError:
        return False
    return True
