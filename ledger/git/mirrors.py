"""Mirrors as a whole: made, fetched, written out as files, checked, cleared of what killed gits left, pushed."""

import contextlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from ledger.git.branches import BranchMoved, branches_below, head, is_ancestor, update_branch
from ledger.git.names import UnknownCommit, branch_name, protocol_of
from ledger.git.objects import tree_of
from ledger.git.running import (
    NETWORK_MEMORY_BYTES,
    NETWORK_SECONDS,
    TEMPORARY,
    GitFailed,
    StrPath,
    decoded,
    run,
    temporary,
)  # fmt: skip

EXPORT_SECONDS = 120  # 3,000 files take 0.9 s (reliability.md D10); this is room for 100 times as many
STALE_LOCK = timedelta(seconds=2 * NETWORK_SECONDS)  # no git of ours lives that long

# Highest precedence of all attributes: a tree's own .gitattributes can neither convert line ends or encodings, expand
# idents, nor ask for a filter, so that an exported copy holds the bytes of its tree.
_ATTRIBUTES = "* -text -eol -crlf -ident -filter -working-tree-encoding\n"


@dataclass(frozen=True)
class Fetched:
    """What a fetch found for one branch that differs from upstream's.

    `moved`: ours went forward from `before` to `after`; `created`: `before` is None; `diverged`: ours stays at
    `before`, upstream's is `after`, and neither contains the other.
    """

    branch: str
    before: str | None
    after: str
    state: Literal["moved", "created", "diverged"]


def init(repo: StrPath) -> None:
    """Make an empty bare repository at `repo`, whose folder may exist. Safe to repeat."""
    place = Path(repo).absolute()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    run(place, "init", "--bare", "--quiet", "--template=", "--", str(place), git_dir=False)


def clone_mirror(source: str, destination: StrPath, *, branch: str | None = None) -> None:
    """Make a bare mirror of all branches and tags of `source` at `destination`, which must not exist.

    `source` is a path, or a file, https or ssh URL, or `user@host:path`. `branch` becomes the default branch; without
    it upstream's own is taken. The mirror appears complete or not at all. Raises InvalidField for a source of another
    kind, one that looks like an option, or one that holds a password; UnknownCommit when `branch` is not there;
    GitFailed when `destination` exists.
    """
    protocol = protocol_of(source)
    if branch is not None:
        branch_name(branch)
    if protocol == "file" and not source.startswith("file:"):
        source = os.path.abspath(source)
    target = Path(destination).absolute()
    if target.exists() or target.is_symlink():
        raise GitFailed(f"Cannot clone to {target.name}: it already exists")
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep_folder(target.parent, f".{target.name}.partial-*", STALE_LOCK)
    partial = target.parent / f".{target.name}.partial-{secrets.token_hex(8)}"
    try:
        _clone(source, partial, protocol)
        _choose_default_branch(partial, branch)
        (partial / "info").mkdir(exist_ok=True)
        (partial / "info" / "attributes").write_text(_ATTRIBUTES)
        try:
            os.rename(partial, target)
        except OSError as error:
            raise GitFailed(f"Cannot clone to {target.name}", stderr=str(error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _clone(source: str, partial: Path, protocol: str) -> None:
    arguments = ["clone", "--bare", "--no-local", "--no-hardlinks", "--quiet", "--template="]
    if protocol == "file":
        # The operator named this folder, and it may well belong to another user (a mounted volume). upload-pack runs
        # neither hooks nor lazy fetches of the repository it serves, so serving it is safe; nothing else runs there.
        arguments.append("--upload-pack=git -c safe.directory=* upload-pack")
    run(partial.parent, *arguments, "--", source, str(partial), git_dir=False, protocol=protocol)


def _choose_default_branch(repo: Path, branch: str | None) -> None:
    """Point HEAD at `branch`, or leave upstream's choice when it is a branch; a detached HEAD needs a likely name."""
    if branch is not None:
        head(repo, branch)
        run(repo, "symbolic-ref", "HEAD", f"refs/heads/{branch}")
        return
    if run(repo, "symbolic-ref", "--quiet", "HEAD", allowed=(0, 1)).returncode == 0:
        return
    branches = branches_below(repo, "refs/heads/")
    likely = [name for name in branches if name in {"main", "master"} or len(branches) == 1]
    if not likely:
        raise UnknownCommit("The source has no default branch: name one")
    run(repo, "symbolic-ref", "HEAD", f"refs/heads/{likely[0]}")


def fetch(repo: StrPath) -> list[Fetched]:
    """Take upstream's branches and tags, and bring our branches forward where upstream's contain them.

    A branch of ours that is ahead (landed patches) or diverged stays where it is; a branch deleted upstream stays.
    Returns the branches that were moved, created or are diverged, by name. Each move is a compare-and-swap, so a
    landing in between is kept: that branch is then left for the next fetch.
    """
    source = decoded(run(repo, "config", "--get", "remote.origin.url").stdout).strip()
    protocol = protocol_of(source)
    arguments = ["fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
    if protocol == "file":
        arguments.append("--upload-pack=git -c safe.directory=* upload-pack")
    refspecs = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
    run(repo, *arguments, "--", "origin", *refspecs, protocol=protocol)
    ours, theirs = branches_below(repo, "refs/heads/"), branches_below(repo, "refs/remotes/origin/")
    found = []
    for name, upstream in sorted(theirs.items()):
        before = ours.get(name)
        if before == upstream or (before is not None and is_ancestor(repo, upstream, before)):
            continue
        if before is None or is_ancestor(repo, before, upstream):
            try:
                update_branch(repo, name, upstream, before or "0" * len(upstream))
            except BranchMoved:
                continue
            found.append(Fetched(name, before, upstream, "created" if before is None else "moved"))
        else:
            found.append(Fetched(name, before, upstream, "diverged"))
    return found


def export(repo: StrPath, tree: str, destination: StrPath) -> None:
    """Write the files of `tree` (or of a commit) below `destination`, byte for byte, without `.git`.

    `destination` must not exist; it is made with mode 0700, and removed again when this fails. A tree's own attributes
    (filters, line ends, export-ignore) change nothing. Links are written as links; submodules as empty folders.
    Raises UnknownCommit for the tree, GitFailed when `destination` exists.
    """
    name = tree_of(repo, tree)
    target = Path(destination).absolute()
    try:
        target.mkdir(mode=0o700, parents=True)
    except FileExistsError as error:
        raise GitFailed(f"Cannot export to {target.name}: it already exists") from error
    try:
        with temporary(repo) as folder:
            index = {"GIT_INDEX_FILE": str(folder / "index"), "GIT_WORK_TREE": str(target)}
            run(repo, "read-tree", name, env=index)
            run(
                repo,
                *("checkout-index", "--all", "--quiet"),
                env=index,
                cwd=target,
                seconds=EXPORT_SECONDS,
                cpu_seconds=EXPORT_SECONDS,
            )
    except BaseException:
        shutil.rmtree(target, ignore_errors=True)
        raise


def fsck(repo: StrPath) -> list[str]:
    """What `git fsck --full` finds wrong, one line each; empty when the mirror is sound (dangling is normal).

    It is told what the refs are before it looks at the objects. By itself it looks at them once more afterwards, and
    takes what landed meanwhile for missing (git's list, 2025-12-29, "fsck: snapshot default refs before object walk").
    """
    refs = decoded(run(repo, "for-each-ref", "--format=%(objectname)").stdout).split()
    done = run(
        repo,
        *("fsck", "--full", "--no-dangling", "--no-progress", *sorted(set(refs))),
        allowed=range(256),
        seconds=NETWORK_SECONDS,
        cpu_seconds=NETWORK_SECONDS,
        memory_bytes=NETWORK_MEMORY_BYTES,
    )
    if done.returncode == 0:
        return []
    lines = decoded(done.stdout + b"\n" + done.stderr).splitlines()
    return [line for line in lines if line and not line.startswith(("warning", "notice"))] or [
        f"git fsck ended with {done.returncode}"
    ]


def pack(repo: StrPath) -> None:
    """Put loose objects into a pack: every note makes three, each with a disk block of its own."""
    bounds = {"seconds": NETWORK_SECONDS, "cpu_seconds": NETWORK_SECONDS, "memory_bytes": NETWORK_MEMORY_BYTES}
    run(repo, "repack", "-d", "-l", "-q", **bounds)  # type: ignore[arg-type]


def push(repo: StrPath, target: str, ref: str) -> None:
    """Copy `ref` to the repository at `target` (a path, or a file, https or ssh URL), which may only go forward.

    Raises InvalidField for a target of another kind, GitFailed when it refuses or does not answer.
    """
    protocol = protocol_of(target)
    if protocol == "file" and not target.startswith("file:"):
        target = os.path.abspath(target)
    run(repo, "push", "--quiet", "--no-verify", "--", target, f"{ref}:{ref}", protocol=protocol)


def sweep_locks(repo: StrPath, *, older_than: timedelta = STALE_LOCK) -> list[str]:
    """Remove what killed gits left: lock files, temporary indexes and unfinished objects not touched for `older_than`.

    Returns the removed names, relative to the mirror. The caller holds the repository's advisory lock; the default age
    is longer than any git of ours may live, so what is removed has no owner.
    """
    root = Path(repo)
    limit = time.time() - older_than.total_seconds()
    removed = []
    patterns = ("*.lock", "refs/**/*.lock", "info/*.lock", "objects/**/*.lock", "objects/**/tmp_*", f"{TEMPORARY}/*")
    for path in sorted({found for pattern in patterns for found in root.glob(pattern)}):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime > limit:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
            removed.append(str(path.relative_to(root)))
    return removed


def _sweep_folder(folder: Path, pattern: str, older_than: timedelta) -> None:
    limit = time.time() - older_than.total_seconds()
    for path in folder.glob(pattern):
        with contextlib.suppress(FileNotFoundError):
            if path.lstat().st_mtime <= limit:
                shutil.rmtree(path, ignore_errors=True)
