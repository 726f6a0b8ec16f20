"""The janitor: what dead gits left goes, what somebody may still use stays, and a queue that was blocked goes on."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import LazySettings

from ledger import git, janitor
from ledger.models import MergeQueue
from pipeline.clock import db_now
from pipeline.models import Project
from tests.conftest import Threads
from tests.factories import make_project, sample_repository
from tests.flows.house import House, piece

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

NONE = timedelta(0)
LOCKS = ["refs/heads/main.lock", "packed-refs.lock", "HEAD.lock", "config.lock"]


@pytest.fixture
def project() -> Project:
    """A project with its mirror."""
    return make_project(repository=sample_repository())


def leave(project: Project, *names: str, age_seconds: float = 3600) -> list[Path]:
    """Files as a killed git leaves them."""
    found = []
    for name in names:
        path = project.mirror / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        os.utime(path, (time.time() - age_seconds,) * 2)
        found.append(path)
    return found


def test_locks_that_nobody_holds_go(project: Project) -> None:
    left = leave(project, *LOCKS)
    assert sorted(janitor.sweep(project)) == sorted(LOCKS)
    assert not any(path.exists() for path in left)
    assert git.fsck(project.mirror) == []
    assert janitor.sweep(project) == []


def test_a_lock_that_may_be_in_use_on_another_machine_stays_until_it_is_old(project: Project) -> None:
    (young,) = leave(project, LOCKS[0], age_seconds=20)
    assert janitor.sweep(project) == []
    assert young.exists()
    assert janitor.sweep(project, locks_after=timedelta(seconds=10)) == [LOCKS[0]]


def test_half_made_objects_and_temporary_indexes_go_when_they_are_old(project: Project) -> None:
    leave(project, "objects/ab/tmp_obj_x", "objects/pack/tmp_pack_y", f"{git.TEMPORARY}/dead/index", age_seconds=9000)
    leave(project, "objects/cd/tmp_obj_z", age_seconds=100)
    os.utime(project.mirror / git.TEMPORARY / "dead", (time.time() - 9000,) * 2)
    expected = [f"{git.TEMPORARY}/dead", "objects/ab/tmp_obj_x", "objects/pack/tmp_pack_y"]
    assert sorted(janitor.sweep(project)) == sorted(expected)
    assert (project.mirror / "objects/cd/tmp_obj_z").exists()


def test_nothing_goes_while_a_git_works_on_the_mirror(project: Project) -> None:
    left = leave(project, *LOCKS)
    arguments = ["-c", "import time; time.sleep(60)", "git", f"--git-dir={project.mirror}", "update-ref"]
    child = subprocess.Popen([sys.executable, *arguments])
    try:
        while not Path(f"/proc/{child.pid}/cmdline").read_bytes():
            pass  # Popen returns a moment before the new program's command line can be read
        assert child.pid in janitor.at_work(project.mirror)
        assert janitor.sweep(project) == []
        assert all(path.exists() for path in left)
    finally:
        child.kill()
        child.wait()
    assert len(janitor.sweep(project)) == len(LOCKS)


def test_whoever_only_reads_the_mirror_is_not_waited_for(project: Project) -> None:
    leave(project, LOCKS[0])
    arguments = ["-c", "import time; time.sleep(60)", "git", "upload-pack", str(project.mirror)]
    child = subprocess.Popen([sys.executable, *arguments])
    try:
        assert janitor.sweep(project) == [LOCKS[0]]
    finally:
        child.kill()
        child.wait()


def test_one_janitor_at_a_time(project: Project, threads: Threads) -> None:
    leave(project, LOCKS[0])
    with janitor.alone(project) as mine:
        assert mine
        assert threads.start(lambda: janitor.sweep(project)).result() == []
    assert threads.start(lambda: janitor.sweep(project)).result() == [LOCKS[0]]


def test_what_is_no_leftover_stays(project: Project) -> None:
    before = sorted(str(path) for path in project.mirror.rglob("*"))
    assert janitor.sweep(project, locks_after=NONE, rest_after=NONE) == []
    assert sorted(str(path) for path in project.mirror.rglob("*")) == before


def test_a_lock_that_somebody_left_on_the_branch_keeps_a_landing_waiting_and_then_goes(
    tmp_path: Path, settings: LazySettings
) -> None:
    house = House(tmp_path, [piece("a")])
    settings.SIGNALBOX_STALE_LOCK_SECONDS = 10_000
    leave(house.project, "refs/heads/main.lock")
    patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    queue = house.queue
    assert patch.state == "verified"
    assert "lock" in queue.blocked_reason
    assert queue.blocked_until is not None
    assert queue.blocked_until > db_now()
    assert queue.blocked_tries == 1
    house.drain()
    assert house.queue.blocked_tries == 1  # it waits

    settings.SIGNALBOX_STALE_LOCK_SECONDS = 60
    for _ in range(2):  # the first try finds the lock and has it removed, the second lands
        MergeQueue.objects.filter(pk=queue.pk).update(blocked_until=db_now() - timedelta(seconds=1))
        house.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    assert (house.queue.blocked_reason, house.queue.blocked_tries, house.queue.blocked_until) == ("", 0, None)
    house.must_hold()
