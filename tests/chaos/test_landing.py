"""Landing under fire: git killed at every one of its system calls, and the whole product killed at every step of it."""

import os
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest

from ledger import git, janitor
from tests.factories import make_project, run_git, sample_repository
from tests.kill.stack import Stack
from tests.ledger.killing import Killer

NOW = timedelta(0)
FULL = os.environ.get("CHAOS") == "full"
POINTS = ("build.applied", "build.done", "land.before_ref", "land.after_ref", "land.booked", "land.done")


@pytest.mark.kill
@pytest.mark.django_db(transaction=True)
def test_git_killed_at_every_call_of_update_ref_leaves_the_old_commit_or_the_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    project = make_project(repository=sample_repository())
    mirror = project.mirror
    old = git.head(mirror, "main")
    new = run_git(mirror, "commit-tree", f"{old}^{{tree}}", "-p", old, "-m", "next")
    killer = Killer(tmp_path, monkeypatch)
    run_git(mirror, "update-ref", "refs/heads/main", new)  # a loose ref, as in every round below
    run_git(mirror, "update-ref", "refs/heads/main", old)
    killer.trace()
    git.move_branch(mirror, "main", new, old)
    calls = killer.calls() if FULL else killer.calls()[::7]
    tally = {"old": 0, "new": 0, "locks": 0}
    for call in calls:
        run_git(mirror, "update-ref", "refs/heads/main", old)
        killer.arm(call)
        with pytest.raises(git.GitFailed):
            git.move_branch(mirror, "main", new, old)
        tally[{old: "old", new: "new"}[git.head(mirror, "main")]] += 1
        tally["locks"] += any(mirror.rglob("*.lock"))
        janitor.sweep(project, locks_after=NOW, rest_after=NOW)
        assert not any(mirror.rglob("*.lock"))
        assert git.fsck(mirror) == []
    print(f"update-ref killed at {len(calls)} calls: {tally}")
    assert tally["old"] > 0


@pytest.mark.kill
@pytest.mark.parametrize("point", POINTS if FULL else POINTS[3:4])
def test_workers_that_die_in_every_second_landing_lose_and_double_nothing(point: str) -> None:
    stack = Stack()
    try:
        stack.start(FAULT=f"{point}:2")
        walk = stack.walk("a", "b", "c", "d")
        stack.agent()
        stack.succeeds(walk, 240)
        log = subprocess.run(
            ["git", "-C", str(walk.mirror), "log", "--format=%(trailers:key=Signalbox-Patch,valueonly)", "main"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split()
        committed = stack.value("SELECT count(*) FROM ledger_patch WHERE state = 'committed'")
        assert len(log) == len(set(log)) == committed == 4
        told = "SELECT count(*) FROM pipeline_event WHERE kind = 'patch.committed'"
        assert stack.value(told) == 4
        assert git.fsck(walk.mirror) == []
        assert not any(walk.mirror.rglob("*.lock"))
    finally:
        stack.end()
