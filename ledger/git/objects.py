"""Looks into the mirror: whether it holds a commit, which tree that has, what stands in a folder or a file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from ledger.git.names import UnknownCommit, is_object_id, object_id
from ledger.git.running import GitFailed, StrPath, decoded, run, tail


def knows(repo: StrPath, commit: str) -> bool:
    """Whether the mirror holds a commit of exactly this full name; False for anything that is not such a name."""
    if not is_object_id(commit):
        return False
    done = run(repo, "cat-file", "-t", commit, allowed=(0, 1, 128))
    return done.returncode == 0 and done.stdout.strip() == b"commit"


def tree_of(repo: StrPath, commit: str) -> str:
    """The tree of `commit`. Raises UnknownCommit."""
    done = run(repo, "rev-parse", "--verify", "--quiet", f"{object_id(commit)}^{{tree}}", allowed=(0, 1, 128))
    if done.returncode:
        raise UnknownCommit(f"No commit {commit} in the mirror")
    return decoded(done.stdout).strip()


def tree_of_commit(repo: StrPath, commit: str) -> str:
    """The tree of what must be a commit, asked for at once. Raises UnknownCommit for anything else."""
    name = object_id(commit)
    done = run(repo, "rev-parse", f"{name}^{{commit}}", f"{name}^{{tree}}", allowed=(0, 128))
    found = decoded(done.stdout).split()
    if done.returncode or found[0] != name:
        raise UnknownCommit(f"No commit {commit} in the mirror")
    return found[1]


def trees_of(repo: StrPath, *names: str) -> list[str]:
    """The trees of several commits or trees, asked for at once. Raises UnknownCommit."""
    done = run(repo, "rev-parse", *(f"{object_id(name)}^{{tree}}" for name in names), allowed=(0, 128))
    if done.returncode:
        return [tree_of(repo, name) for name in names]
    return decoded(done.stdout).split()


def names_in(repo: StrPath, tree: str, paths: Sequence[str]) -> dict[str, list[str]]:
    """The names that stand in each of these folders of `tree` ("" is its root); none where it has no such folder.

    One git for all of them. Paths hold no line ends. Raises UnknownCommit for the tree.
    """
    asked = "".join(f"{object_id(tree)}:{path}\n" for path in paths)
    raw = run(repo, "cat-file", "--batch", stdin=asked.encode("utf-8", "surrogateescape")).stdout
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
            found[path] = [decoded(name) for name in _names(body, len(tree) // 2)]
    return found


def _names(tree: bytes, oid_bytes: int) -> Iterator[bytes]:
    """The names in a raw tree: mode, blank, name, NUL, object name in bytes, each after the other."""
    at = 0
    while at < len(tree):
        end = tree.index(b"\0", at)
        yield tree[at:end].split(b" ", 1)[1]
        at = end + 1 + oid_bytes


FOLDER_MODE = "040000"


def modes_on_the_way(repo: StrPath, tree: str, path: str) -> dict[str, str]:
    """Path → mode (six octal digits) for `path` in `tree` and for each folder above it; what is not there is left out.

    Source: `git ls-tree -t -z` (git-ls-tree(1)), whose paths are no patterns. Raises UnknownCommit for the tree.
    """
    done = run(repo, "ls-tree", "-t", "-z", "--full-tree", object_id(tree), path, allowed=(0, 128))
    if done.returncode:
        tree_of(repo, tree)
        raise GitFailed("git ls-tree failed", stderr=tail(done.stderr))
    entries = (entry.split("\t", 1) for entry in decoded(done.stdout).split("\0")[:-1])
    return {found: facts.split(" ")[0] for facts, found in entries}


@dataclass(frozen=True)
class TreeFile:
    """One plain file of a tree: its path, and the object name of its content."""

    path: str
    oid: str


def files(repo: StrPath, tree: str) -> list[TreeFile]:
    """The plain files of a tree (or commit), in byte order; links and submodules are not among them.

    Source: `git ls-tree -r -z` (git-ls-tree(1)). Raises UnknownCommit.
    """
    raw = decoded(run(repo, "ls-tree", "-r", "-z", "--full-tree", tree_of(repo, tree)).stdout)
    entries = (entry.split("\t", 1) for entry in raw.split("\0")[:-1])
    return [TreeFile(path, facts.split(" ")[2]) for facts, path in entries if facts.startswith("100")]


def blob(repo: StrPath, oid: str) -> bytes:
    """The bytes of a blob. Raises UnknownCommit when the mirror has none of this name."""
    done = run(repo, "cat-file", "blob", object_id(oid), allowed=(0, 128))
    if done.returncode:
        raise UnknownCommit(f"No blob {oid} in the mirror")
    return done.stdout


LINK_MODE = b"120000"


def links(repo: StrPath, tree: str) -> dict[str, str]:
    """Path → target of every symbolic link of a tree (or commit). Raises UnknownCommit."""
    raw = run(repo, "ls-tree", "-r", "-z", "--full-tree", tree_of(repo, tree)).stdout
    entries = [entry.split(b"\t", 1) for entry in raw.split(b"\0")[:-1] if entry.startswith(LINK_MODE)]
    if not entries:
        return {}
    names = [facts.split(b" ")[2] for facts, _path in entries]
    said = run(repo, "cat-file", "--batch", stdin=b"".join(name + b"\n" for name in names)).stdout
    found: dict[str, str] = {}
    at = 0
    for _facts, path in entries:
        end = said.index(b"\n", at)
        size = int(said[at:end].rsplit(b" ", 1)[1])
        found[decoded(path)] = decoded(said[end + 1 : end + 1 + size])
        at = end + size + 2
    return found


def missing(repo: StrPath, tree: str, paths: Sequence[str]) -> set[str]:
    """Those of the paths that are not in `tree`, which the mirror has. One git for all; paths hold no line ends."""
    if not paths:
        return set()
    asked = "".join(f"{object_id(tree)}:{path}\n" for path in paths)
    said = run(repo, "cat-file", "--batch-check", stdin=asked.encode("utf-8", "surrogateescape")).stdout
    return {path for path, line in zip(paths, said.splitlines(), strict=True) if line.endswith(b" missing")}


def note_file(repo: StrPath, commit: str, name: str) -> bytes:
    """The bytes of the file `name` of a note. Raises UnknownCommit when it is not there."""
    done = run(repo, "cat-file", "blob", f"{object_id(commit)}:{name}", allowed=(0, 128))
    if done.returncode:
        raise UnknownCommit(f"No file {name} in commit {commit}")
    return done.stdout
