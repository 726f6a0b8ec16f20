"""Branches: where they stand, how they move by compare-and-swap, and what landed on them."""

from dataclasses import dataclass
from datetime import UTC, datetime

from ledger.git.names import ASIDE, COMMITTER_EMAIL, PATCH_TRAILER, UnknownCommit, branch_name, object_id
from ledger.git.objects import knows
from ledger.git.running import GitFailed, StrPath, decoded, run, tail
from pipeline.refusals import Refused


class BranchMoved(Refused):
    """The branch is not where the caller believed; `found` is where it is now, None when there is no such branch."""

    code = "base_moved"

    def __init__(self, branch: str, expected: str, found: str | None) -> None:
        super().__init__(
            f"Branch {branch} moved: it is at {found or 'nothing'}, not at {expected}", branch=branch, head=found
        )
        self.found = found


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


def default_branch(repo: StrPath) -> str:
    """The short name of the branch that HEAD of the mirror names; it need not have a commit yet."""
    return decoded(run(repo, "symbolic-ref", "HEAD").stdout).strip().removeprefix("refs/heads/")


def branches_below(repo: StrPath, prefix: str) -> dict[str, str]:
    """Short name → commit for the refs below `prefix`."""
    lines = decoded(run(repo, "for-each-ref", "--format=%(objectname) %(refname)", prefix).stdout).splitlines()
    return {name.removeprefix(prefix): oid for oid, name in (line.split(" ", 1) for line in lines)}


def head(repo: StrPath, branch: str) -> str:
    """The commit that `branch` is at. Raises UnknownCommit when there is none, InvalidField for a bad name."""
    found = head_or_none(repo, branch_name(branch))
    if found is None:
        raise UnknownCommit(f"No branch {branch} in the mirror")
    return found


def head_or_none(repo: StrPath, branch: str) -> str | None:
    """The commit that `branch` is at; None when there is no such branch. The name has been checked."""
    done = run(repo, "rev-parse", "--verify", "--quiet", f"refs/heads/{branch}^{{commit}}", allowed=(0, 1))
    return decoded(done.stdout).strip() or None


def move_branch(repo: StrPath, branch: str, new: str, expected_old: str) -> None:
    """Move `branch` from `expected_old` to the commit `new`, on disk when this returns.

    Raises BranchMoved when it is elsewhere (exactly one of any number of racing movers gets past), UnknownCommit when
    the mirror has no commit `new`.
    """
    update_branch(repo, branch_name(branch), object_id(new), object_id(expected_old))


def update_branch(repo: StrPath, branch: str, new: str, expected_old: str) -> None:
    """The compare-and-swap of `move_branch`; names have been checked. git itself takes commits alone for a branch."""
    done = run(repo, "update-ref", "--no-deref", f"refs/heads/{branch}", new, expected_old, allowed=(0, 1, 128))
    if done.returncode == 0:
        return
    if not knows(repo, new):
        raise UnknownCommit(f"No commit {new} in the mirror")
    found = head_or_none(repo, branch)
    if (found or "0" * len(expected_old)) != expected_old:
        raise BranchMoved(branch, expected_old, found)
    raise GitFailed(f"Cannot move branch {branch}", stderr=tail(done.stderr))


def set_branch_aside(repo: StrPath, branch: str, commit: str) -> None:
    """Take the name `branch` off `commit`, at which it is, on disk when this returns; a ref of ours keeps the commit.

    Raises BranchMoved when it is elsewhere.
    """
    steps = f"update {ASIDE}{object_id(commit)} {commit}\ndelete refs/heads/{branch_name(branch)} {commit}\n"
    stdin = steps.encode("utf-8", "surrogateescape")
    done = run(repo, "update-ref", "--no-deref", "--stdin", stdin=stdin, allowed=(0, 1, 128))
    if done.returncode == 0:
        return
    found = head_or_none(repo, branch)
    if found != commit:
        raise BranchMoved(branch, commit, found)
    raise GitFailed(f"Cannot set branch {branch} aside", stderr=tail(done.stderr))


def contains(repo: StrPath, branch: str, commit: str) -> bool:
    """Whether `branch` has `commit` in its history; False when the mirror does not know the branch or the commit."""
    tip = head_or_none(repo, branch_name(branch))
    return tip is not None and knows(repo, commit) and is_ancestor(repo, commit, tip)


def is_ancestor(repo: StrPath, commit: str, tip: str) -> bool:
    """Whether `tip` has `commit` in its history; the mirror knows both."""
    return run(repo, "merge-base", "--is-ancestor", commit, tip, allowed=(0, 1)).returncode == 0


def log(repo: StrPath, branch: str, limit: int) -> list[Commit]:
    """The newest `limit` commits of `branch`, newest first. Raises UnknownCommit when there is no such branch."""
    tip = head(repo, branch)
    fields = "%H%x00%T%x00%P%x00%an%x00%ae%x00%ct%x00%B"
    raw = decoded(run(repo, "log", "-z", f"--max-count={int(limit)}", f"--format=tformat:{fields}", tip, "--").stdout)
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
    raw = decoded(run(repo, "log", "-z", f"--format=tformat:%H%x00%ce%x00{trailer}", *wanted, "--").stdout)
    parts = raw.split("\0")[:-1]
    found: dict[str, str] = {}
    for oid, email, values in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        patch = values.split(",")[-1].strip()
        if patch and email == COMMITTER_EMAIL:
            found.setdefault(patch, oid)
    return found
