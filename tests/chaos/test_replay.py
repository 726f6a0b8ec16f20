"""The history of a real repository, replayed as patches: every tree is upstream's, to the last bit.

`REPLAY_REPOSITORY` names a clone with at least 301 commits by first parents (`REPLAY_COMMITS` takes fewer or more of
the newest); without it, a repository of 60 commits is made that has renames, modes, binary files and CRLF.
"""

import os
import random
import resource
import shutil
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from ledger import git, projects, queue, validation
from ledger.models import MergeQueue, Patch, PatchReview
from pipeline import questions
from pipeline.models import Project
from tests import factories
from tests.api.asking import Api
from tests.factories import BY, make_repository, run_git

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

MADE_COMMITS = 60
STEPS = ("diff", "submit", "validate", "queue", "land")


@pytest.fixture
def history(tmp_path: Path) -> tuple[Path, list[str]]:
    """A repository of our own, and its commits by first parents, oldest first; the first is only built on."""
    given = os.environ.get("REPLAY_REPOSITORY")
    count = int(os.environ.get("REPLAY_COMMITS", "300"))
    copy = tmp_path / "upstream.git"
    source = Path(given) if given else _made(tmp_path / "made")
    run_git(tmp_path, "clone", "--quiet", "--bare", "--no-local", "--single-branch", f"file://{source}", str(copy))
    commits = run_git(copy, "rev-list", "--first-parent", f"--max-count={count + 1}", "HEAD").split()[::-1]
    return copy, commits


def _made(folder: Path) -> Path:
    """60 commits with everything that a patch can say, and file names that git has to quote."""
    dice = random.Random(1)
    make_repository(folder, {f"src/file {number}.txt": "line\n" * 40 for number in range(5)})
    for number in range(MADE_COMMITS):
        files = sorted(path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)
        texts = [path for path in files if path.suffix == ".txt"]
        path = dice.choice(texts)
        lines = path.read_bytes().split(b"\n")
        match number % 9:
            case 0:
                path.rename(path.with_name(f"renamed {number} ä.txt"))
            case 1:
                path.chmod(0o755 if path.stat().st_mode & 0o100 == 0 else 0o644)
            case 2:
                (folder / f"data{number}.bin").write_bytes(dice.randbytes(2_000))
            case 3:
                (folder / f"crlf{number}.txt").write_bytes(b"one\r\ntwo\r\n" * 5)
            case 4:
                shutil.copy(path, folder / f"copy{number}.txt")
            case 5:
                (folder / f"empty{number}.txt").write_bytes(b"")
            case 6 if len(texts) > 3:
                path.unlink()
            case 7:
                path.write_bytes(path.read_bytes().rstrip(b"\n"))
            case 8:
                for old in folder.glob("data*.bin"):
                    old.write_bytes(old.read_bytes()[:500] + bytes([number]) + old.read_bytes()[500:])
        if number % 9 not in (0, 6):
            lines.insert(dice.randrange(len(lines)), f"new {number}".encode())
            path.write_bytes(b"\n".join(lines))
        run_git(folder, "add", "--all")
        run_git(folder, "commit", "--quiet", "--allow-empty", f"--message=Change {number}")
    return folder


@pytest.fixture
def spent(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """Seconds by step; `git` is what was spent in git processes of all of them, `processes` how many there were."""
    found: dict[str, float] = defaultdict(float)
    bounded = git.running.run_bounded

    def timed(command: list[str], *arguments: Any) -> Any:
        started = time.monotonic()
        try:
            return bounded(command, *arguments)
        finally:
            found["git"] += time.monotonic() - started
            found["processes"] += 1

    monkeypatch.setattr(git.running, "run_bounded", timed)
    return found


def test_every_commit_of_a_history_replayed_as_a_patch_gives_its_tree(
    history: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch, spent: dict[str, float]
) -> None:
    upstream, commits = history
    project = _project(upstream, commits[0])
    # The trivial gate: it passes every tree, at once. Nobody else is asked.
    passed = questions._Registered(0, "a trivial gate", lambda **_facts: ("passed", ""))
    monkeypatch.setattr(questions, "_answers", {"tree.verdict": [passed]})
    merge_queue = MergeQueue.objects.get(project=project)
    api = Api(factories.make_key("operator", project=project).text)
    replayed = empty = 0
    started, used = time.monotonic(), _processor_seconds()
    for before, commit in pairwise(commits):
        tree = run_git(upstream, "rev-parse", f"{commit}^{{tree}}")
        if tree == run_git(upstream, "rev-parse", f"{before}^{{tree}}"):
            empty += 1
            continue
        patch = _replay(api, project, merge_queue, upstream, (before, commit), spent)
        assert patch.state == "committed", (commit, patch.last_error_message, patch.validation_errors)
        assert patch.committed_tree == patch.result_tree == tree, commit
        assert git.tree_of(project.mirror, factories.head_of(project)) == tree
        replayed += 1
    seconds = time.monotonic() - started - spent["diff"]
    assert replayed + empty == len(commits) - 1
    assert replayed > empty
    assert git.fsck(project.mirror) == []
    steps = ", ".join(f"{step} {1000 * spent[step] / replayed:.0f} ms" for step in (*STEPS[1:], "git"))
    print(
        f"{replayed} commits ({empty} empty) in {seconds:.1f} s, {replayed / seconds:.1f}/s; each: {steps}, "
        f"{spent['processes'] / replayed:.0f} processes; processor time without PostgreSQL: "
        f"{1000 * (_processor_seconds() - used) / replayed:.0f} ms"
    )


def _processor_seconds() -> float:
    """Of this process and the children that it waited for: what a busy machine does not make longer."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def _project(upstream: Path, first: str) -> Project:
    """A project whose branch stands at `first`; binary files are allowed."""
    run_git(upstream, "update-ref", "refs/heads/replay", first)
    project = projects.register(str(upstream), by=BY, key=f"replay-{factories.number()}", branch="replay")
    constraints = {"forbid_binary_patches": False, "forbid_secrets": False}
    factories.make_policy(project=project, constraints=constraints)
    return project


def _replay(
    api: Api,
    project: Project,
    merge_queue: MergeQueue,
    upstream: Path,
    pair: tuple[str, str],
    spent: dict[str, float],
) -> Patch:
    """Take one step of the history through submission by the API, validation, queue and landing."""

    def timed(step: str, work: Callable[[], Any]) -> Any:
        started = time.monotonic()
        answer = work()
        spent[step] += time.monotonic() - started
        return answer

    options = ("-M", "-C") if int(pair[1][0], 16) % 2 else ("--no-renames",)
    text = timed("diff", lambda: _diff(upstream, *pair, options=options))
    document = {
        "project": project.key, "base_commit": factories.head_of(project), "diff_text": text, "summary": pair[1],
    }  # fmt: skip
    answer = timed("submit", lambda: api.post("/patches/", document))
    assert answer.status_code == 201, (pair[1], answer.content[:1000])
    patch = Patch.objects.get(pk=answer.json()["id"])
    timed("validate", lambda: validation.validate(patch.pk))
    patch.refresh_from_db()
    if patch.state == "validated":
        if any(finding.get("severity") == "review" for finding in patch.findings):
            reviewer = factories.make_user(is_superuser=True)
            PatchReview.objects.give(patch, "approve", by=BY, reviewer=reviewer)
        timed("queue", lambda: patch.queue(by=BY))
        timed("land", lambda: queue.advance(merge_queue.pk))
        patch.refresh_from_db()
    return patch


def _diff(upstream: Path, before: str, after: str, *, options: tuple[str, ...]) -> str:
    path = upstream / "replay.diff"
    run_git(upstream, "diff-tree", "-r", "-p", "--full-index", "--binary", *options, f"--output={path}", before, after)
    return path.read_bytes().decode()
