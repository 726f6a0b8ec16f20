"""A chain of commits of our own beside any branch, each with a few files: what anchors and notes are kept in."""

from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path

from ledger.git.branches import BranchMoved
from ledger.git.names import COMMITTER_EMAIL, COMMITTER_NAME, UnknownCommit, object_id
from ledger.git.objects import knows
from ledger.git.running import GitFailed, StrPath, decoded, run, tail


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
        blob = decoded(run(repo, "hash-object", "-t", "blob", "-w", "--stdin", stdin=content).stdout).strip()
        entries.append(f"100644 blob {blob}\t{name}\n")
    tree = decoded(run(repo, "mktree", stdin="".join(entries).encode()).stdout).strip()
    on = [] if parent is None else ["-p", parent]
    return decoded(run(repo, "commit-tree", tree, *on, "-F", "-", env=people, stdin=message.encode()).stdout).strip()


def note_head(repo: StrPath, ref: str) -> str | None:
    """The commit that the full name `ref` is at; None when there is no such ref."""
    done = run(repo, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}", allowed=(0, 1))
    return decoded(done.stdout).strip() or None


def move_note(repo: StrPath, ref: str, new: str, expected_old: str | None) -> None:
    """Move `ref` from `expected_old` (None: it is made) to `new`, on disk when this returns. Raises BranchMoved."""
    old = expected_old or "0" * len(new)
    done = run(repo, "update-ref", "--no-deref", ref, new, old, allowed=(0, 1, 128))
    if done.returncode == 0:
        return
    found = note_head(repo, ref)
    if found != expected_old:
        raise BranchMoved(ref, expected_old or "nothing", found)
    raise GitFailed(f"Cannot move {ref}", stderr=tail(done.stderr))


def notes(repo: StrPath, head: str, page: int = 20_000) -> Iterator[tuple[str, str]]:
    """Commit and message of `head` and what it stands on, by first parents, newest first. Read in pages."""
    following: str | None = head
    while following:
        fields = "%H%x00%P%x00%B"
        arguments = ("log", "-z", "--first-parent", f"--max-count={page}", f"--format=tformat:{fields}")
        raw = decoded(run(repo, *arguments, object_id(following), "--").stdout)
        parts, following = raw.split("\0")[:-1], None
        for start in range(0, len(parts), 3):
            oid, parents, message = parts[start : start + 3]
            following = parents.split(" ")[0]
            yield oid, message
