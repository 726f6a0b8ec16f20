"""The one place that runs git: on mirrors that belong to Signalbox, with nobody's configuration, in bounds of time.

Values go in and values come out; object names are full lower-case hexadecimal (SHA-1 or SHA-256), branches are short
names such as `main`, paths are POSIX and decoded as UTF-8 with `surrogateescape`. Nothing here reads a user's checkout
or writes outside the mirror, except `export`, into the folder it is given.

Every function raises `GitFailed` when git cannot do its work (disk, memory, damaged mirror, network) and `TimedOut`
when it took too long; the other errors are named where they can occur.
"""

import contextlib
import hashlib
import os
import re
import resource
import secrets
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pipeline.refusals import InvalidField, Refused

StrPath = str | os.PathLike[str]
Kind = Literal["add", "change", "delete"]

COMMITTER_NAME = "Signalbox"
COMMITTER_EMAIL = "signalbox@signalbox.invalid"  # RFC 2606: never somebody's address
PATCH_TRAILER = "Signalbox-Patch"

SECONDS = 20  # wall clock of one local step (reliability.md 2a, case 20)
CPU_SECONDS = 10
EXPORT_SECONDS = 120  # 3,000 files take 0.9 s (reliability.md D10); this is room for 100 times as many
NETWORK_SECONDS = 900
MEMORY_BYTES = 1 << 30
NETWORK_MEMORY_BYTES = 4 << 30  # a first clone indexes the whole history; nothing in it is a worker's text
OUTPUT_BYTES = 64 << 20
STDERR_BYTES = 4 << 20  # `apply` reports an offset there, so all of it must be seen
STALE_LOCK = timedelta(seconds=2 * NETWORK_SECONDS)  # no git of ours lives that long

TEMPORARY = "signalbox-tmp"

_OBJECT_ID = re.compile(r"(?:[0-9a-f]{40}|[0-9a-f]{64})\Z")
_BRANCH_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|\Z)")
_SCP_LIKE = re.compile(r"(?:[A-Za-z0-9_][A-Za-z0-9._-]*@)[A-Za-z0-9][A-Za-z0-9.-]*:(?!:)[^-\s][^\s]*\Z")
_OFFSET = re.compile(rb"^Hunk #\d+ succeeded at \d+ \(offset -?\d+ lines?\)|^Context reduced to ", re.MULTILINE)
_MIRROR_AT_FAULT = re.compile(
    rb"^(?:error|fatal): (?:failed to read |unable to (?:read|write|create|find) |cannot read |loose object "
    rb"|object file |packfile "
    rb"|.*(?:No space left on device|Input/output error|[Oo]ut of memory|malloc|insufficient permission))",
    re.MULTILINE,
)
_PATCH_AT_FAULT = re.compile(
    rb"patch does not apply|already exists|does not exist|does not match index|corrupt patch|No valid patches"
    rb"|patch failed|unrecognized input|invalid path|beyond a symbolic link|lacks filename information"
    rb"|inconsistent|wrong type|depends on old contents|patch fragment without header|removal patch leaves"
    rb"|cannot apply binary patch|patch with only garbage|unexpected end of file|has type \d+, expected"
    rb"|invalid mode|No changes|still has contents|is not valid|git apply: bad git-diff"
    rb"|creates incorrect result|not match the current contents|but it is not empty|missing binary patch data"
    rb"|appears as both a file and as a directory|unable to add cache entry"
    rb"|binary patch does not apply|corrupt binary patch|unrecognized binary patch"
)
_NO_ROOM = re.compile(rb"[Oo]ut of memory")
_THROUGH_LINK = re.compile(rb"beyond a symbolic link")

# reliability.md D9. The window and thread settings keep git inside MEMORY_BYTES on machines with many cores and packs
# larger than the limit; the fsync of objects is asked for at every step, because a ref that survives a power cut must
# not name an object that did not.
_SETTINGS = (
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
# Highest precedence of all attributes: a tree's own .gitattributes can neither convert line ends or encodings, expand
# idents, nor ask for a filter, so that an exported copy holds the bytes of its tree.
_ATTRIBUTES = "* -text -eol -crlf -ident -filter -working-tree-encoding\n"


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


class DoesNotApply(Refused):
    """The change does not fit: context differs, a hunk needs an offset, a path is in the way.

    `paths` are those in conflict, when git names them. Of another code are what would be written through a link
    (symlink_target), and what takes more memory or processor time than a patch may (patch_too_large).
    """

    code = "stale_base"

    def __init__(self, message: str, *, paths: tuple[str, ...] = (), code: str | None = None) -> None:
        super().__init__(message, code=code, paths=list(paths))
        self.paths = paths


class BranchMoved(Refused):
    """The branch is not where the caller believed; `found` is where it is now, None when there is no such branch."""

    code = "base_moved"

    def __init__(self, branch: str, expected: str, found: str | None) -> None:
        super().__init__(
            f"Branch {branch} moved: it is at {found or 'nothing'}, not at {expected}", branch=branch, head=found
        )
        self.found = found


class UnknownCommit(Refused):
    """The mirror has no such commit, tree or branch, or the name is not a full object name."""

    code = "stale_base"


@dataclass(frozen=True)
class TreeChange:
    """One path that differs between two trees. Modes are six octal digits; mode and id are "" on the absent side."""

    path: str
    kind: Kind
    old_mode: str
    new_mode: str
    old_oid: str
    new_oid: str


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


@dataclass(frozen=True)
class Commit:
    """One commit of a branch; `at` is the committer's time, aware UTC, whole seconds."""

    id: str
    tree: str
    parents: tuple[str, ...]
    author_name: str
    author_email: str
    at: datetime
    message: str


# --- the mirror and its branches -------------------------------------------------------------------------------------


def clone_mirror(source: str, destination: StrPath, *, branch: str | None = None) -> None:
    """Make a bare mirror of all branches and tags of `source` at `destination`, which must not exist.

    `source` is a path, or a file, https or ssh URL, or `user@host:path`. `branch` becomes the default branch; without
    it upstream's own is taken. The mirror appears complete or not at all. Raises InvalidField for a source of another
    kind, one that looks like an option, or one that holds a password; UnknownCommit when `branch` is not there;
    GitFailed when `destination` exists.
    """
    protocol = _protocol_of(source)
    if branch is not None:
        _branch(branch)
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
    _git(partial.parent, *arguments, "--", source, str(partial), git_dir=False, protocol=protocol)


def _choose_default_branch(repo: Path, branch: str | None) -> None:
    """Point HEAD at `branch`, or leave upstream's choice when it is a branch; a detached HEAD needs a likely name."""
    if branch is not None:
        head(repo, branch)
        _git(repo, "symbolic-ref", "HEAD", f"refs/heads/{branch}")
        return
    if _git(repo, "symbolic-ref", "--quiet", "HEAD", allowed=(0, 1)).returncode == 0:
        return
    branches = _branches(repo, "refs/heads/")
    likely = [name for name in branches if name in {"main", "master"} or len(branches) == 1]
    if not likely:
        raise UnknownCommit("The source has no default branch: name one")
    _git(repo, "symbolic-ref", "HEAD", f"refs/heads/{likely[0]}")


def default_branch(repo: StrPath) -> str:
    """The short name of the branch that HEAD of the mirror names; it need not have a commit yet."""
    return _text(_git(repo, "symbolic-ref", "HEAD").stdout).strip().removeprefix("refs/heads/")


def fetch(repo: StrPath) -> list[Fetched]:
    """Take upstream's branches and tags, and bring our branches forward where upstream's contain them.

    A branch of ours that is ahead (landed patches) or diverged stays where it is; a branch deleted upstream stays.
    Returns the branches that were moved, created or are diverged, by name. Each move is a compare-and-swap, so a
    landing in between is kept: that branch is then left for the next fetch.
    """
    source = _text(_git(repo, "config", "--get", "remote.origin.url").stdout).strip()
    protocol = _protocol_of(source)
    arguments = ["fetch", "--quiet", "--prune", "--no-tags", "--no-write-fetch-head", "--no-recurse-submodules"]
    if protocol == "file":
        arguments.append("--upload-pack=git -c safe.directory=* upload-pack")
    refspecs = ("+refs/heads/*:refs/remotes/origin/*", "+refs/tags/*:refs/tags/*")
    _git(repo, *arguments, "--", "origin", *refspecs, protocol=protocol)
    ours, theirs = _branches(repo, "refs/heads/"), _branches(repo, "refs/remotes/origin/")
    found = []
    for name, upstream in sorted(theirs.items()):
        before = ours.get(name)
        if before == upstream or (before is not None and _is_ancestor(repo, upstream, before)):
            continue
        if before is None or _is_ancestor(repo, before, upstream):
            try:
                _update_branch(repo, name, upstream, before or "0" * len(upstream))
            except BranchMoved:
                continue
            found.append(Fetched(name, before, upstream, "created" if before is None else "moved"))
        else:
            found.append(Fetched(name, before, upstream, "diverged"))
    return found


def _branches(repo: StrPath, prefix: str) -> dict[str, str]:
    """Short name → commit for the refs below `prefix`."""
    lines = _text(_git(repo, "for-each-ref", "--format=%(objectname) %(refname)", prefix).stdout).splitlines()
    return {name.removeprefix(prefix): oid for oid, name in (line.split(" ", 1) for line in lines)}


def head(repo: StrPath, branch: str) -> str:
    """The commit that `branch` is at. Raises UnknownCommit when there is none, InvalidField for a bad name."""
    found = _head_or_none(repo, _branch(branch))
    if found is None:
        raise UnknownCommit(f"No branch {branch} in the mirror")
    return found


def _head_or_none(repo: StrPath, branch: str) -> str | None:
    done = _git(repo, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", allowed=(0, 1))
    return _text(done.stdout).strip() or None


def move_branch(repo: StrPath, branch: str, new: str, expected_old: str) -> None:
    """Move `branch` from `expected_old` to the commit `new`, on disk when this returns.

    Raises BranchMoved when it is elsewhere (exactly one of any number of racing movers gets past), UnknownCommit when
    the mirror has no commit `new`.
    """
    _branch(branch)
    _object_id(expected_old)
    if not knows(repo, new):
        raise UnknownCommit(f"No commit {new} in the mirror")
    _update_branch(repo, branch, new, expected_old)


def _update_branch(repo: StrPath, branch: str, new: str, expected_old: str) -> None:
    done = _git(repo, "update-ref", "--no-deref", f"refs/heads/{branch}", new, expected_old, allowed=(0, 1, 128))
    if done.returncode == 0:
        return
    found = _head_or_none(repo, branch)
    if (found or "0" * len(expected_old)) != expected_old:
        raise BranchMoved(branch, expected_old, found)
    raise GitFailed(f"Cannot move branch {branch}", stderr=_tail(done.stderr))


def contains(repo: StrPath, branch: str, commit: str) -> bool:
    """Whether `branch` has `commit` in its history; False when the mirror does not know the branch or the commit."""
    tip = _head_or_none(repo, _branch(branch))
    return tip is not None and knows(repo, commit) and _is_ancestor(repo, commit, tip)


def _is_ancestor(repo: StrPath, commit: str, tip: str) -> bool:
    return _git(repo, "merge-base", "--is-ancestor", commit, tip, allowed=(0, 1)).returncode == 0


def knows(repo: StrPath, commit: str) -> bool:
    """Whether the mirror holds a commit of exactly this full name; False for anything that is not such a name."""
    if not _OBJECT_ID.match(commit):
        return False
    done = _git(repo, "cat-file", "-t", commit, allowed=(0, 1, 128))
    return done.returncode == 0 and done.stdout.strip() == b"commit"


def tree_of(repo: StrPath, commit: str) -> str:
    """The tree of `commit`. Raises UnknownCommit."""
    done = _git(repo, "rev-parse", "--verify", "--quiet", f"{_object_id(commit)}^{{tree}}", allowed=(0, 1, 128))
    if done.returncode:
        raise UnknownCommit(f"No commit {commit} in the mirror")
    return _text(done.stdout).strip()


def tree_of_commit(repo: StrPath, commit: str) -> str:
    """The tree of what must be a commit, asked for at once. Raises UnknownCommit for anything else."""
    name = _object_id(commit)
    done = _git(repo, "rev-parse", f"{name}^{{commit}}", f"{name}^{{tree}}", allowed=(0, 128))
    found = _text(done.stdout).split()
    if done.returncode or found[0] != name:
        raise UnknownCommit(f"No commit {commit} in the mirror")
    return found[1]


def names_in(repo: StrPath, tree: str, paths: Sequence[str]) -> dict[str, list[str]]:
    """The names that stand in each of these folders of `tree` ("" is its root); none where it has no such folder.

    One git for all of them. Paths hold no line ends. Raises UnknownCommit for the tree.
    """
    asked = "".join(f"{_object_id(tree)}:{path}\n" for path in paths)
    raw = _git(repo, "cat-file", "--batch", stdin=asked.encode("utf-8", "surrogateescape")).stdout
    found: dict[str, list[str]] = {}
    at = 0
    for path in paths:
        end = raw.index(b"\n", at)
        head, at = raw[at:end].rsplit(b" ", 2), end + 1
        found[path] = []
        if head[-1] == b"missing":
            if not path:
                raise UnknownCommit(f"No tree {tree} in the mirror")
            continue
        body, at = raw[at : at + int(head[-1])], at + int(head[-1]) + 1
        if head[-2] == b"tree":
            found[path] = [_text(name) for name in _names(body, len(tree) // 2)]
    return found


def _names(tree: bytes, oid_bytes: int) -> Iterator[bytes]:
    """The names in a raw tree: mode, blank, name, NUL, object name in bytes, each after the other."""
    at = 0
    while at < len(tree):
        end = tree.index(b"\0", at)
        yield tree[at:end].split(b" ", 1)[1]
        at = end + 1 + oid_bytes


def blob(repo: StrPath, oid: str) -> bytes:
    """The bytes of a blob. Raises UnknownCommit when the mirror has none of this name."""
    done = _git(repo, "cat-file", "blob", _object_id(oid), allowed=(0, 128))
    if done.returncode:
        raise UnknownCommit(f"No blob {oid} in the mirror")
    return done.stdout


def patch_id(diff_text: str) -> str:
    """What names the change itself, wherever its lines stand (git-patch-id(1), --stable): 40 hexadecimal digits.

    "" for a text in which git sees no change. No repository is asked, so that all have names of the same kind.
    """
    raw = diff_text.encode("utf-8", "surrogateescape")
    done = _git("/", "patch-id", "--stable", git_dir=False, stdin=raw)
    return _text(done.stdout).partition(" ")[0]


# --- from a diff to a commit -----------------------------------------------------------------------------------------


def apply(repo: StrPath, base_commit: str, diff_text: str) -> str:
    """The tree that `diff_text` makes of `base_commit`; neither a branch nor a checkout is touched.

    Every hunk must fit at its own line: raises DoesNotApply for differing context and for any offset. The text is
    judged by git alone here; `ledger.diff` reads it before, and `changes` of the result is what a policy judges.
    Raises UnknownCommit for the base.
    """
    with _temporary(repo) as place:
        index = {"GIT_INDEX_FILE": str(place / "index")}
        read = _git(repo, "read-tree", _object_id(base_commit), env=index, allowed=(0, 128))
        if read.returncode:
            tree_of(repo, base_commit)  # says so when there is no such base
            raise GitFailed("git read-tree failed", stderr=_tail(read.stderr))
        try:
            done = _git(
                repo,
                *("apply", "--cached", "--verbose", "--whitespace=nowarn", "-"),
                env=index,
                stdin=diff_text.encode("utf-8", "surrogateescape"),
                allowed=(0, 1, 128),
            )
        except OutOfProcessorTime as error:
            raise DoesNotApply(f"The patch takes too long to apply: {error}", code="patch_too_large") from error
        if done.returncode:
            if _NO_ROOM.search(done.stderr):
                message = f"The patch takes more than {MEMORY_BYTES} bytes of memory to apply"
                raise DoesNotApply(message, code="patch_too_large")
            if _MIRROR_AT_FAULT.search(done.stderr) or not _PATCH_AT_FAULT.search(done.stderr):
                raise GitFailed("git apply failed", stderr=_tail(done.stderr))
            code = "symlink_target" if _THROUGH_LINK.search(done.stderr) else None
            raise DoesNotApply(f"The patch does not apply: {_reason(done.stderr)}", code=code)
        if found := _OFFSET.search(done.stderr):
            raise DoesNotApply(f"The patch does not apply where it says: {_text(found.group()).strip()}")
        return _text(_git(repo, "write-tree", env=index).stdout).strip()


@dataclass(frozen=True)
class TreeFile:
    """One plain file of a tree: its path, and the object name of its content."""

    path: str
    oid: str


def files(repo: StrPath, tree: str) -> list[TreeFile]:
    """The plain files of a tree (or commit), in byte order; links and submodules are not among them.

    Source: `git ls-tree -r -z` (git-ls-tree(1)). Raises UnknownCommit.
    """
    raw = _text(_git(repo, "ls-tree", "-r", "-z", "--full-tree", tree_of(repo, tree)).stdout)
    entries = (entry.split("\t", 1) for entry in raw.split("\0")[:-1])
    return [TreeFile(path, facts.split(" ")[2]) for facts, path in entries if facts.startswith("100")]


def changes(repo: StrPath, old_tree: str, new_tree: str) -> list[TreeChange]:
    """Every path that differs between two trees (or commits), in byte order; a change of type is a `change`.

    Source: `git diff-tree --raw -z` (git-diff(1), "raw output format"), renames never guessed.
    Raises UnknownCommit when the mirror lacks one of them.
    """
    arguments = ("diff-tree", "-r", "--raw", "-z", "--no-renames", "--no-abbrev")
    raw = _text(_of_trees(repo, *arguments, old_tree, new_tree))
    kinds: dict[str, Kind] = {"A": "add", "D": "delete"}
    fields = raw.split("\0")[:-1]
    found = []
    for facts, path in zip(fields[::2], fields[1::2], strict=True):
        old_mode, new_mode, old_oid, new_oid, letter = facts[1:].split(" ")
        kind = kinds.get(letter, "change")
        if kind == "add":
            old_mode = old_oid = ""
        elif kind == "delete":
            new_mode = new_oid = ""
        found.append(TreeChange(path, kind, old_mode, new_mode, old_oid, new_oid))
    return found


def diff_text(repo: StrPath, old: str, new: str) -> str:
    """The difference between two trees or commits as `ledger.diff` reads it: full index, binary literals, no renames.

    Bytes that are no UTF-8 become lone surrogates, which `apply` turns back. Raises UnknownCommit.
    """
    return _text(
        _of_trees(
            repo,
            *("diff-tree", "-r", "-p", "--no-renames", "--full-index", "--binary", "--no-color"),
            *("--no-ext-diff", "--no-textconv", "--unified=3", "--src-prefix=a/", "--dst-prefix=b/"),
            old,
            new,
        )
    )


def _of_trees(repo: StrPath, *arguments: str) -> bytes:
    """Output of a command whose last two arguments are tree-ish object names."""
    for name in arguments[-2:]:
        _object_id(name)
    done = _git(repo, *arguments, "--", allowed=(0, 128))
    if done.returncode:
        for name in arguments[-2:]:
            tree_of(repo, name)
        raise GitFailed("git diff-tree failed", stderr=_tail(done.stderr))
    return done.stdout


def rebase_tree(repo: StrPath, base_commit: str, tree: str, onto_commit: str) -> str:
    """The tree of `onto_commit` with the change that leads from `base_commit` to `tree`.

    A three-way merge of exactly these three trees, whatever the history between them is. No path changes that the
    change itself did not touch. Raises DoesNotApply with the paths in conflict, UnknownCommit.
    """
    base_tree, new_tree, onto_tree = _trees_of(repo, base_commit, tree, onto_commit)
    if base_tree == onto_tree:
        return new_tree
    ours, theirs = _made_for_merging(repo, base_tree, onto_tree, new_tree)
    done = _git(repo, "merge-tree", "--write-tree", "--name-only", "--no-messages", "-z", ours, theirs, allowed=(0, 1))
    merged, *paths = _text(done.stdout).rstrip("\0").split("\0")
    if done.returncode:
        names = tuple(dict.fromkeys(path for path in paths if path))
        raise DoesNotApply(f"Conflict with what landed before in {', '.join(names)}", paths=names)
    # git 2.39's merge-tree follows renames whatever it is told, and could so carry an edit into a path that nobody
    # judged: the file that what landed before has moved elsewhere.
    touched = {change.path for change in changes(repo, base_tree, new_tree)}
    strays = tuple(change.path for change in changes(repo, onto_tree, merged) if change.path not in touched)
    if strays:
        raise DoesNotApply(f"What landed before moved the edited lines to {', '.join(strays)}", paths=strays)
    return merged


def _trees_of(repo: StrPath, *names: str) -> list[str]:
    """The trees of several commits or trees, asked for at once. Raises UnknownCommit."""
    done = _git(repo, "rev-parse", *(f"{_object_id(name)}^{{tree}}" for name in names), allowed=(0, 128))
    if done.returncode:
        return [tree_of(repo, name) for name in names]
    return _text(done.stdout).split()


def _made_for_merging(repo: StrPath, base_tree: str, *trees: str) -> list[str]:
    """A commit for each of `trees`, all on one commit of `base_tree`.

    git 2.39's merge-tree takes commits and finds their merge base itself; with commits made for the purpose the base
    is the one asked for, also when the true one is no ancestor of the other. The same trees give the same commits, so
    repeats add no objects.
    """
    person = f"{COMMITTER_NAME} <{COMMITTER_EMAIL}> 0 +0000"
    people = f"author {person}\ncommitter {person}\n\nmerge\n"
    root = f"tree {base_tree}\n{people}".encode()
    algorithm = hashlib.sha256 if len(base_tree) == 64 else hashlib.sha1
    parent = algorithm(b"commit %d\0" % len(root) + root).hexdigest()
    texts = [root, *(f"tree {tree}\nparent {parent}\n{people}".encode() for tree in trees)]
    with _temporary(repo) as folder:
        files = [folder / str(number) for number in range(len(texts))]
        for file, text in zip(files, texts, strict=True):
            file.write_bytes(text)
        done = _git(repo, "hash-object", "-t", "commit", "-w", "--no-filters", "--", *map(str, files))
    return _text(done.stdout).split()[1:]


def commit(
    repo: StrPath, tree: str, parent: str, message: str, *, author_name: str, author_email: str, at: datetime
) -> str:
    """The commit of `tree` on `parent`: author as given, committer the product, both at `at` (aware) in whole seconds.

    The same input gives the same commit; no branch moves. Control characters and angle brackets in the author become
    blanks (an empty name becomes "unknown"). Raises UnknownCommit for the tree or the parent, ValueError for a naive
    time, an empty message, or one with a NUL.
    """
    if at.tzinfo is None:
        raise ValueError("a commit needs an aware time")
    if not message.strip() or "\0" in message:
        raise ValueError("a commit needs a message without NUL")
    if not knows(repo, parent):
        raise UnknownCommit(f"No commit {parent} in the mirror")
    when = f"@{int(at.timestamp())} +0000"
    people = {
        "GIT_AUTHOR_NAME": _person(author_name),
        "GIT_AUTHOR_EMAIL": _person(author_email),
        "GIT_AUTHOR_DATE": when,
        "GIT_COMMITTER_NAME": COMMITTER_NAME,
        "GIT_COMMITTER_EMAIL": COMMITTER_EMAIL,
        "GIT_COMMITTER_DATE": when,
    }
    text = message.encode("utf-8", "replace")
    name = tree_of(repo, tree)
    return _text(_git(repo, "commit-tree", name, "-p", parent, "-F", "-", env=people, stdin=text).stdout).strip()


def _person(text: str) -> str:
    """`text` as git can hold it in a person's line; git itself would drop such characters silently."""
    cleaned = "".join(" " if not character.isprintable() or character in "<>" else character for character in text)
    return " ".join(cleaned.split()).strip(" .,:;\"'\\") or "unknown"


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
        with _temporary(repo) as folder:
            index = {"GIT_INDEX_FILE": str(folder / "index"), "GIT_WORK_TREE": str(target)}
            _git(repo, "read-tree", name, env=index)
            _git(
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


# --- what is in the mirror -------------------------------------------------------------------------------------------


def log(repo: StrPath, branch: str, limit: int) -> list[Commit]:
    """The newest `limit` commits of `branch`, newest first. Raises UnknownCommit when there is no such branch."""
    tip = head(repo, branch)
    fields = "%H%x00%T%x00%P%x00%an%x00%ae%x00%ct%x00%B"
    raw = _text(_git(repo, "log", "-z", f"--max-count={int(limit)}", f"--format=tformat:{fields}", tip, "--").stdout)
    parts = raw.split("\0")[:-1]
    rows = [parts[start : start + 7] for start in range(0, len(parts), 7)]
    return [
        Commit(oid, tree, tuple(parents.split()), name, email, datetime.fromtimestamp(int(when), UTC), message)
        for oid, tree, parents, name, email, when, message in rows
    ]


def landed(repo: StrPath, branch: str, since: str | None = None) -> dict[str, str]:
    """Patch id → commit, for the commits of `branch` after `since` (all when None) that Signalbox committed.

    The id is the last `Signalbox-Patch` trailer of the message; of two commits with one id the newer counts. A commit
    with another committer (a cherry-pick by hand) is not ours, whatever its message says. Raises UnknownCommit.
    """
    tip = head(repo, branch)
    if since is not None and not knows(repo, since):
        raise UnknownCommit(f"No commit {since} in the mirror")
    trailer = f"%(trailers:key={PATCH_TRAILER},valueonly=true,separator=%x2C)"
    wanted = [tip] if since is None else [tip, f"^{since}"]
    raw = _text(_git(repo, "log", "-z", f"--format=tformat:%H%x00%ce%x00{trailer}", *wanted, "--").stdout)
    parts = raw.split("\0")[:-1]
    found: dict[str, str] = {}
    for oid, email, values in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        patch = values.split(",")[-1].strip()
        if patch and email == COMMITTER_EMAIL:
            found.setdefault(patch, oid)
    return found


def fsck(repo: StrPath) -> list[str]:
    """What `git fsck --full` finds wrong, one line each; empty when the mirror is sound (dangling is normal)."""
    done = _git(
        repo,
        *("fsck", "--full", "--no-dangling", "--no-progress"),
        allowed=range(256),
        seconds=NETWORK_SECONDS,
        cpu_seconds=NETWORK_SECONDS,
        memory_bytes=NETWORK_MEMORY_BYTES,
    )
    if done.returncode == 0:
        return []
    lines = _text(done.stdout + b"\n" + done.stderr).splitlines()
    return [line for line in lines if line and not line.startswith(("warning", "notice"))] or [
        f"git fsck ended with {done.returncode}"
    ]


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


# --- notes: a chain of commits of our own, beside any branch ---------------------------------------------------------


def init(repo: StrPath) -> None:
    """Make an empty bare repository at `repo`, whose folder may exist. Safe to repeat."""
    place = Path(repo).absolute()
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    _git(place, "init", "--bare", "--quiet", "--template=", "--", str(place), git_dir=False)


def add_note(repo: StrPath, files: Mapping[str, bytes], parent: str | None, message: str, *, at: datetime) -> str:
    """The commit that holds `files` (plain names) on `parent` (None: it is the first), by the product, at `at` (aware).

    The same input gives the same commit; no ref moves. Raises UnknownCommit for the parent.
    """
    if parent is not None and not knows(repo, parent):
        raise UnknownCommit(f"No commit {parent} in {Path(repo).name}")
    when = f"@{int(at.timestamp())} +0000"
    people = {
        "GIT_AUTHOR_NAME": COMMITTER_NAME,
        "GIT_AUTHOR_EMAIL": COMMITTER_EMAIL,
        "GIT_AUTHOR_DATE": when,
        "GIT_COMMITTER_NAME": COMMITTER_NAME,
        "GIT_COMMITTER_EMAIL": COMMITTER_EMAIL,
        "GIT_COMMITTER_DATE": when,
    }
    entries = []
    for name, content in sorted(files.items()):
        blob = _text(_git(repo, "hash-object", "-t", "blob", "-w", "--stdin", stdin=content).stdout).strip()
        entries.append(f"100644 blob {blob}\t{name}\n")
    tree = _text(_git(repo, "mktree", stdin="".join(entries).encode()).stdout).strip()
    on = [] if parent is None else ["-p", parent]
    return _text(_git(repo, "commit-tree", tree, *on, "-F", "-", env=people, stdin=message.encode()).stdout).strip()


def note_head(repo: StrPath, ref: str) -> str | None:
    """The commit that the full name `ref` is at; None when there is no such ref."""
    done = _git(repo, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", allowed=(0, 1))
    return _text(done.stdout).strip() or None


def move_note(repo: StrPath, ref: str, new: str, expected_old: str | None) -> None:
    """Move `ref` from `expected_old` (None: it is made) to `new`, on disk when this returns. Raises BranchMoved."""
    old = expected_old or "0" * len(new)
    done = _git(repo, "update-ref", "--no-deref", ref, new, old, allowed=(0, 1, 128))
    if done.returncode == 0:
        return
    found = note_head(repo, ref)
    if found != expected_old:
        raise BranchMoved(ref, expected_old or "nothing", found)
    raise GitFailed(f"Cannot move {ref}", stderr=_tail(done.stderr))


def notes(repo: StrPath, head: str, page: int = 20_000) -> Iterator[tuple[str, str]]:
    """Commit and message of `head` and what it stands on, by first parents, newest first. Read in pages."""
    following: str | None = head
    while following:
        fields = "%H%x00%P%x00%B"
        arguments = ("log", "-z", "--first-parent", f"--max-count={page}", f"--format=tformat:{fields}")
        raw = _text(_git(repo, *arguments, _object_id(following), "--").stdout)
        parts, following = raw.split("\0")[:-1], None
        for start in range(0, len(parts), 3):
            oid, parents, message = parts[start : start + 3]
            following = parents.split(" ")[0]
            yield oid, message


def note_file(repo: StrPath, commit: str, name: str) -> bytes:
    """The bytes of the file `name` of a note. Raises UnknownCommit when it is not there."""
    done = _git(repo, "cat-file", "blob", f"{_object_id(commit)}:{name}", allowed=(0, 128))
    if done.returncode:
        raise UnknownCommit(f"No file {name} in commit {commit}")
    return done.stdout


def pack(repo: StrPath) -> None:
    """Put loose objects into a pack: every note makes three, each with a disk block of its own."""
    bounds = {"seconds": NETWORK_SECONDS, "cpu_seconds": NETWORK_SECONDS, "memory_bytes": NETWORK_MEMORY_BYTES}
    _git(repo, "repack", "-d", "-l", "-q", **bounds)  # type: ignore[arg-type]


def push(repo: StrPath, target: str, ref: str) -> None:
    """Copy `ref` to the repository at `target` (a path, or a file, https or ssh URL), which may only go forward.

    Raises InvalidField for a target of another kind, GitFailed when it refuses or does not answer.
    """
    protocol = _protocol_of(target)
    if protocol == "file" and not target.startswith("file:"):
        target = os.path.abspath(target)
    _git(repo, "push", "--quiet", "--no-verify", "--", target, f"{ref}:{ref}", protocol=protocol)


# --- names -----------------------------------------------------------------------------------------------------------


def _object_id(name: str) -> str:
    if not _OBJECT_ID.match(name):
        raise UnknownCommit(f"Not a full object name: {name[:80]!r}")
    return name


def _branch(name: str) -> str:
    """`name` if it may be a branch (git-check-ref-format(1), without shorthands); raises InvalidField."""
    if (
        not name
        or len(name.encode("utf-8", "replace")) > 255
        or name == "@"
        or name == "HEAD"
        or name[0] in "-./"
        or name[-1] in "./"
        or _BRANCH_FORBIDDEN.search(name)
        or not name.isprintable()
    ):
        raise InvalidField("branch", f"not a branch name: {name[:80]!r}")
    return name


def _protocol_of(source: str) -> str:
    """Which of git's protocols `source` needs: `file`, `https` or `ssh`; raises InvalidField for any other."""
    if not source or source.startswith("-") or not source.isprintable():
        raise InvalidField("source", "not a repository path or URL")
    if "://" not in source:
        if _SCP_LIKE.match(source) and not os.path.exists(source):
            return "ssh"
        if re.match(r"[A-Za-z0-9+.-]+::", source):
            raise InvalidField("source", "a remote helper is not accepted")
        return "file"
    try:
        parts = urlsplit(source)
        host, password = parts.hostname or "", parts.password
    except ValueError as error:
        raise InvalidField("source", "not a repository path or URL") from error
    if parts.scheme not in {"file", "https", "ssh"}:
        raise InvalidField("source", "must be a path, or a file, https or ssh URL")
    if password is not None:
        raise InvalidField("source", "must not hold a password")
    if parts.scheme != "file" and (not host or host.startswith("-") or (parts.username or "").startswith("-")):
        raise InvalidField("source", "not a repository path or URL")
    return parts.scheme


# --- running git -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Done:
    returncode: int
    stdout: bytes
    stderr: bytes


@contextlib.contextmanager
def _temporary(repo: StrPath) -> Iterator[Path]:
    """A folder of its own inside the mirror, gone afterwards; `sweep_locks` removes those of killed processes."""
    folder = Path(repo).absolute() / TEMPORARY / secrets.token_hex(8)
    folder.mkdir(mode=0o700, parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _git(
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
) -> _Done:
    """Run one git command on the mirror `repo`; raises GitFailed when its exit code is not among `allowed`."""
    settings = list(_SETTINGS)
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
    done = _bounded(command, environment, cwd or place, stdin, seconds, cpu_seconds, memory_bytes, what)
    if done.returncode not in allowed:
        raise GitFailed(f"{what} ended with {done.returncode}", stderr=_tail(done.stderr))
    return done


def _bounded(
    command: list[str],
    environment: dict[str, str],
    cwd: Path,
    stdin: bytes,
    seconds: float,
    cpu_seconds: int,
    memory_bytes: int,
    what: str,
) -> _Done:
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
            _limit(child.pid, cpu_seconds, memory_bytes)
            output, errors = _talk(child, stdin, time.monotonic() + seconds, what, seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            raise
    if child.returncode == -signal.SIGXCPU:
        raise OutOfProcessorTime(f"{what} used more than {cpu_seconds} s of processor time")
    return _Done(child.returncode, output, errors)


def _limit(pid: int, cpu_seconds: int, memory_bytes: int) -> None:
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


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _tail(stderr: bytes) -> str:
    """The last lines git said, at most 2,000 characters."""
    return stderr.decode("utf-8", "replace").strip()[-2000:]


def _reason(stderr: bytes) -> str:
    """The lines of git's complaint, without its progress, at most 2,000 characters."""
    lines = stderr.decode("utf-8", "replace").splitlines()
    said = [line.removeprefix("error: ").removeprefix("fatal: ") for line in lines if re.match("error: |fatal: ", line)]
    return "; ".join(said)[:2000] or "no reason given"
