"""Notes on commits, as git keeps them: byte by byte what was given, read back for a whole mirror at once."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from ledger.git.chains import note_head
from ledger.git.names import COMMITTER_EMAIL, COMMITTER_NAME, NOTES, UnknownCommit
from ledger.git.objects import knows
from ledger.git.running import run

PAGE = 500
"""Objects that one git hands out at a time: far below what the runner lets it say."""


class Landed(NamedTuple):
    """A commit as its object says, without anybody's interpretation. Names are full hexadecimal."""

    tree: str
    parents: tuple[str, ...]
    committer: str
    message: str


def add(repo: Path, commit: str, text: str) -> str:
    """Hang `text` on `commit`, in place of what hangs there, and answer the commit that refs/notes/signalbox is at.

    Raises UnknownCommit, GitFailed.
    """
    if not knows(repo, commit):
        raise UnknownCommit(f"No commit {commit} in the mirror")
    blob = run(repo, "hash-object", "-t", "blob", "-w", "--stdin", stdin=text.encode()).stdout.decode().strip()
    person = {"NAME": COMMITTER_NAME, "EMAIL": COMMITTER_EMAIL}
    people = {f"GIT_{who}_{what}": value for who in ("AUTHOR", "COMMITTER") for what, value in person.items()}
    # Not from a file or stdin: git would tidy the text up.
    run(repo, "notes", f"--ref={NOTES}", "add", "--force", "-C", blob, commit, env=people)
    return note_head(repo, NOTES) or ""


def read(repo: Path) -> dict[str, bytes]:
    """{commit: note} of the whole mirror; empty when nothing was ever noted."""
    if note_head(repo, NOTES) is None:
        return {}
    listed = run(repo, "notes", f"--ref={NOTES}", "list").stdout.decode().split()
    blobs = dict(zip(listed[1::2], listed[::2], strict=True))
    contents = dict(_objects(repo, set(blobs.values()), b"blob"))
    return {commit: contents[blob] for commit, blob in blobs.items() if blob in contents}


def history(repo: Path) -> set[str]:
    """The commits that hung notes in this mirror, all there ever were."""
    if note_head(repo, NOTES) is None:
        return set()
    return set(run(repo, "rev-list", NOTES).stdout.decode().split())


def commits(repo: Path, names: Iterable[str]) -> dict[str, Landed]:
    """{name: commit} of those that the mirror holds."""
    return {name: _parsed(raw) for name, raw in _objects(repo, set(names), b"commit")}


def _parsed(raw: bytes) -> Landed:
    head, _blank, message = raw.decode("utf-8", "surrogateescape").partition("\n\n")
    lines = [line.partition(" ")[::2] for line in head.splitlines()]
    fields = dict(reversed(lines))
    committer = fields.get("committer", "").rpartition(">")[0].rpartition("<")[2]
    parents = tuple(value for name, value in lines if name == "parent")
    return Landed(fields.get("tree", ""), parents, committer, message)


def _objects(repo: Path, names: set[str], kind: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the objects that are there and of this kind (git-cat-file(1), "batch output")."""
    ordered = sorted(names)
    for start in range(0, len(ordered), PAGE):
        asked = "".join(f"{name}\n" for name in ordered[start : start + PAGE])
        raw, at = run(repo, "cat-file", "--batch", stdin=asked.encode()).stdout, 0
        while at < len(raw):
            line, at = raw[at : raw.index(b"\n", at)], raw.index(b"\n", at) + 1
            parts = line.split(b" ")
            if len(parts) != 3:
                continue  # "… missing"
            size = int(parts[2])
            if parts[1] == kind:
                yield parts[0].decode(), raw[at : at + size]
            at += size + 1
