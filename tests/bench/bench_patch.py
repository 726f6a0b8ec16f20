"""A patch of 300 lines read, applied and judged in a large tree, and carried onto another base (P12): beside git."""

import os
import subprocess
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from ledger import diff, git, trees
from tests.bench.harness import Comparison, Operation, bench
from tests.factories import run_git

FILES_OF_A_FOLDER = 70
LINES = 300
GOAL = "P12: ≤ 1.5 × bare git, ≥ 30/s in 7,000 files"

_numbers = count(1)


@cache
def mirror(files: int) -> tuple[Path, str, str]:
    """A mirror of a tree of so many files of 40 lines, its commit, and one that changes another file."""
    place = Path(tempfile.mkdtemp(dir=os.environ["SIGNALBOX_DATA"]))
    upstream = place / "upstream"
    text = "".join(f"line {number} of a file\n" for number in range(LINES + 100))
    for number in range(files):
        path = upstream / f"folder{number // FILES_OF_A_FOLDER}" / f"file{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"file {number}\n{text if not number else text[:800]}")
    run_git(upstream, "init", "--quiet", "--initial-branch=main")
    commits = []
    for name in ("first", "second"):
        (upstream / "other.txt").write_text(name)
        run_git(upstream, "add", "--all")
        run_git(upstream, "commit", "--quiet", f"--message={name}")
        commits.append(run_git(upstream, "rev-parse", "HEAD"))
    git.clone_mirror(str(upstream), place / "mirror.git")
    return place / "mirror.git", commits[0], commits[1]


def patch() -> str:
    """A diff that changes 150 lines of a file, takes as many away, and adds a file; no two are the same."""
    mark = next(_numbers)
    old = "".join(f"-line {number} of a file\n" for number in range(LINES // 2))
    new = "".join(f"+line {number} of {mark}\n" for number in range(LINES // 2))
    half = LINES // 2
    change = f"--- a/folder0/file0.py\n+++ b/folder0/file0.py\n@@ -1,{half + 2} +1,{half + 2} @@\n file 0\n{old}{new}"
    return (
        f"diff --git a/folder0/file0.py b/folder0/file0.py\n{change} line {half} of a file\n"
        f"diff --git a/folder1/new{mark}.py b/folder1/new{mark}.py\nnew file mode 100644\n"
        f"--- /dev/null\n+++ b/folder1/new{mark}.py\n@@ -0,0 +1 @@\n+{mark}\n"
    )


def bare(repo: Path, *arguments: str, index: Path | None = None, stdin: str = "") -> str:
    """One git without any of our bounds and settings."""
    environment = {**os.environ, **({"GIT_INDEX_FILE": str(index)} if index else {})}
    command = ["git", f"--git-dir={repo}", *arguments]
    return subprocess.run(command, input=stdin, env=environment, check=True, capture_output=True, text=True).stdout


def bare_apply(repo: Path, base: str, text: str) -> str:
    """The four steps and nothing else; answers the tree."""
    with tempfile.TemporaryDirectory(dir=repo) as folder:
        index = Path(folder) / "index"
        bare(repo, "read-tree", base, index=index)
        bare(repo, "apply", "--cached", "-", index=index, stdin=text)
        tree = bare(repo, "write-tree", index=index).strip()
    bare(repo, "diff-tree", "-r", "--raw", "-z", base, tree)
    return tree


def bare_rebase(repo: Path, commits: tuple[str, str, str]) -> None:
    """The merge of two commits on one base, and what it changed on either side."""
    _base, onto, made = commits
    trees_of = bare(repo, "rev-parse", *(f"{name}^{{tree}}" for name in commits)).split()
    merged = bare(repo, "merge-tree", "--write-tree", onto, made).strip()
    bare(repo, "diff-tree", "-r", "--raw", "-z", trees_of[0], trees_of[2])
    bare(repo, "diff-tree", "-r", "--raw", "-z", trees_of[1], merged)


@bench("patch-apply", goal=GOAL, sizes=(700, 7_000), smoke=70)
def apply(size: int) -> Comparison:
    """Read the text, apply it in the mirror, judge the resulting tree: what a validation does without its rows."""
    repo, base, _other = mirror(size)

    def ours(text: Any) -> None:
        parsed = diff.parse(text)
        tree = git.apply(repo, base, text)
        if trees.judge(repo, base, tree, parsed):
            raise RuntimeError("a good patch was refused")

    return Comparison(
        Operation("signalbox", ours, patch),
        [Operation("bare git, four steps", lambda text: bare_apply(repo, base, text), patch)],
        calls=30,
        note="Ours reads the text first, and looks for names that differ in case only; bare git does neither.",
    )


@bench("patch-rebase", goal=GOAL, sizes=(700, 7_000), smoke=70)
def rebase(size: int) -> Comparison:
    """Carry a change onto a branch that moved; the bare merge is given commits that were made before."""
    repo, base, other = mirror(size)

    def applied() -> str:
        return git.apply(repo, base, patch())

    def committed() -> str:
        people = {"author_name": "Ada", "author_email": "ada@example.org"}
        at = git.log(repo, "main", 1)[0].at
        return git.commit(repo, applied(), base, "Work\n", at=at, **people)

    return Comparison(
        Operation("signalbox", lambda tree: git.rebase_tree(repo, base, tree, other), applied),
        [Operation("bare git, four steps", lambda made: bare_rebase(repo, (base, other, made)), committed)],
        calls=30,
        note="Ours also makes the two commits that are merged, since the queue has trees and no commits of them.",
    )
