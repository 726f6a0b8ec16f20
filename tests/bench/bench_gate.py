"""What a run of a gate costs beside its command (P13): the copy beside bare checkout-index, the box beside none."""

import os
import subprocess
import tempfile
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

from gates import runner
from gates.runner import execute
from ledger import git
from tests.bench.bench_patch import bare, mirror
from tests.bench.harness import Comparison, Operation, bench

COPY = "P13: copy ≤ 1.2 × bare checkout-index; 0.9 s for 3,000 files"
BOX = "P13: ≤ 150 ms beside the copy; level 2 ≤ 20 ms beside level 1"

_numbers = count(1)


@cache
def _top() -> Path:
    return Path(tempfile.mkdtemp(dir=os.environ["SIGNALBOX_DATA"]))


def _fresh() -> Path:
    """A folder that is not there yet."""
    return _top() / f"copy-{next(_numbers)}"


def _bare_copy(repo: Path, tree: str, place: Path) -> None:
    """The two steps and nothing else."""
    place.mkdir()
    index = place.with_suffix(".index")
    bare(repo, "read-tree", tree, index=index)
    bare(repo, f"--work-tree={place}", "checkout-index", "--all", "--quiet", f"--prefix={place}/", index=index)


@bench("gate-copy", goal=COPY, sizes=(300, 3000), smoke=100)
def copy(size: int) -> Comparison:
    """The fresh copy of a tree, as a gate gets it."""
    repo, commit, _ = mirror(size)
    tree = git.tree_of(repo, commit)

    def ours(place: Path) -> None:
        git.export(repo, tree, place)

    return Comparison(
        Operation("git.export", ours, _fresh),
        [Operation("bare read-tree and checkout-index", lambda place: _bare_copy(repo, tree, place), _fresh)],
        calls=5,
        note="both write every file; ours checks the tree's name and bounds git",
    )


def _ready(size: int) -> Path:
    """A folder with a tree of so many files, as it is when the copy is done; the one of the call before is removed."""
    for left in _top().glob("copy-*"):
        runner.remove(left)
    place = _fresh()
    (place / "tree").mkdir(parents=True)
    for number in range(size):
        (place / "tree" / f"f{number}").touch()
    return place


def _run(level: int) -> Any:
    def do(place: Path) -> None:
        ended = execute(["true"], place / "tree", timeout_seconds=60, env={}, output_dir=place / "out", level=level)
        assert ended.exit_code == 0, ended

    return do


def _bare(place: Path) -> None:
    subprocess.run(["true"], cwd=place / "tree", check=True)


@bench("gate-box", goal=BOX, sizes=(1, 3000), smoke=1)
def box(size: int) -> Comparison:
    """A command that does nothing, at level 2, at level 1 and without us; the folders stand already."""
    assert runner.available_level() >= 2, runner.probe().missing
    ready = lambda: _ready(size)  # noqa: E731
    return Comparison(
        Operation("level 2", _run(2), ready),
        [Operation("level 1", _run(1), ready), Operation("subprocess", _bare, ready)],
        calls=20,
        paired=True,
        note="in turn, call by call; as root, level 2 also hands the files over to the command's user",
    )
