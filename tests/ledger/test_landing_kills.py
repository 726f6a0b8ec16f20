"""Landing killed anywhere: the branch is where it was or where it should be, and afterwards rows and branch agree."""

from datetime import timedelta
from pathlib import Path

import pytest

from ledger import git, janitor, queue
from ledger.models import MergeQueue, Patch, QueueItem
from pipeline.clock import db_now
from pipeline.events import Event
from tests.factories import BY, make_project, run_git, sample_repository
from tests.flows.house import Deaths, Died, House, piece
from tests.ledger.killing import Killer, around_the_lock

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

NOW = timedelta(0)


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Tasks that may all be delivered before the first of them lands."""
    return House(tmp_path, [piece(key, conflict_group="g") for key in "abcd"])


def locks(mirror: Path) -> list[str]:
    """The lock files of a mirror."""
    return [str(path) for path in mirror.rglob("*.lock")]


def wait_over(house: House) -> None:
    """The time that the queue was put off by has passed."""
    MergeQueue.objects.filter(pk=house.queue.pk).update(blocked_until=db_now() - timedelta(seconds=1))


@pytest.mark.parametrize(
    "point",
    ["build.started", "build.applied", "build.done", "land.before_ref", "land.after_ref", "land.booked", "land.done"],
)
def test_whoever_dies_while_landing_leaves_it_to_the_next_to_finish(
    house: House, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    deaths = Deaths(monkeypatch)
    patch = house.deliver({"a.txt": "a\n"})
    deaths.arm(point)
    with pytest.raises(Died):
        house.drain()
    assert deaths.number == 1
    assert git.fsck(house.project.mirror) == []
    house.drain()
    patch.refresh_from_db()
    assert (patch.state, patch.commit_sha) == ("committed", house.head)
    assert len(house.new_commits()) == 1
    assert locks(house.project.mirror) == []
    assert Event.objects.filter(subject_id=patch.pk, kind="patch.committed").count() == 1
    house.must_hold()


def test_git_killed_at_any_call_around_the_lock_leaves_the_old_commit_or_the_new_one(
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
    calls = around_the_lock(killer.calls())
    assert len(calls) > 20
    found, left = [], 0
    for call in calls:
        run_git(mirror, "update-ref", "refs/heads/main", old)
        killer.arm(call)
        with pytest.raises(git.GitFailed):
            git.move_branch(mirror, "main", new, old)
        assert not killer.armed
        found.append(git.head(mirror, "main"))
        left += len(locks(mirror))
        janitor.sweep(project, locks_after=NOW, rest_after=NOW)
        assert locks(mirror) == []
        assert git.fsck(mirror) == []
    assert set(found) == {old, new}
    assert found == sorted(found, key=lambda commit: commit == new)  # old up to the rename, new from there on
    assert left > 0


def test_rows_and_branch_agree_after_git_was_killed_wherever_it_was(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    killer = Killer(tmp_path, monkeypatch)
    killer.trace()
    house.work({"first.txt": "1\n"})
    calls = around_the_lock(killer.calls())
    rename = next(at for at, call in enumerate(calls) if call.name.startswith("rename"))
    for name, at in {"a.txt": 4, "b.txt": rename, "c.txt": rename + 1}.items():
        patch = house.deliver({name: "x\n"})
        before = house.head
        killer.arm(calls[at])
        house.drain()
        assert not killer.armed
        patch.refresh_from_db()
        moved = house.head != before
        assert patch.state == ("verified" if not moved else patch.state)
        assert patch.state in ("verified", "committed")
        janitor.sweep(house.project, locks_after=NOW, rest_after=NOW)
        wait_over(house)
        house.drain()
        patch.refresh_from_db()
        assert (patch.state, patch.commit_sha) == ("committed", house.head)
        assert locks(house.project.mirror) == []
    assert len(house.new_commits()) == 4
    house.must_hold()


def test_a_git_that_ends_its_work_after_its_parent_died_has_landed_the_patch(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = []

    def orphan(point: str) -> None:
        if point == "land.before_ref" and not moved:
            item = QueueItem.objects.live().get()
            moved.append(item.candidate_commit)
            git.move_branch(house.project.mirror, "main", item.candidate_commit, item.base_commit)

    monkeypatch.setattr(queue, "crashpoint", orphan)
    patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert (patch.state, patch.commit_sha) == ("committed", moved[0])
    assert patch.reapplies == 0
    house.must_hold()


def test_a_landing_that_the_rows_have_forgotten_is_found_by_its_trailer(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = Deaths(monkeypatch)
    patch = house.deliver({"a.txt": "a\n"})
    deaths.arm("land.after_ref")
    with pytest.raises(Died):
        house.drain()
    Patch.objects.get(pk=patch.pk).forget_landing(by=BY)  # as in a database restored from before
    house.human_commits("by-hand.txt", "hello\n")
    house.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    assert patch.commit_sha == house.new_commits()[0].id
    house.must_hold()


def test_a_full_disk_keeps_the_patch_verified_with_the_reason_and_blames_nobody(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = git.move_branch

    def full(*arguments: object) -> None:
        raise git.GitFailed("git update-ref ended with 128", stderr="No space left on device")

    monkeypatch.setattr(git, "move_branch", full)
    patch = house.work({"a.txt": "a\n"})
    for _ in range(3):
        house.drain()
    patch.refresh_from_db()
    assert patch.state == "verified"
    assert "No space left" in house.queue.blocked_reason
    assert Event.objects.filter(subject_id=patch.pk, kind="patch.landing").count() == 1
    assert patch.attempts == 1
    monkeypatch.setattr(git, "move_branch", real)
    wait_over(house)
    house.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    house.must_hold()


def test_a_blocked_queue_waits_longer_each_time_up_to_five_minutes(house: House) -> None:
    waits = []
    for _ in range(9):
        waits.append(house.queue.block("disk", by=BY).total_seconds())
    assert waits[:3] == [5, 10, 20]
    assert waits[-1] == 300
    assert house.queue.unblock(by=BY)
    assert not house.queue.is_blocked
