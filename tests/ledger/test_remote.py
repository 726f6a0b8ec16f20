"""Remotes: what landed gets there, what came there gets here, nothing is forced, and no secret shows."""

import contextlib
import hashlib
import hmac
import ipaddress
import json
import logging
import os
import sys
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.management import call_command
from django.db import connection
from django.test import Client
from django.urls import reverse

from ledger import git, queue, receipts, remote
from ledger.git import remotes
from ledger.models import Patch, Push, QueueItem, Remote
from ledger.models.remote import CredentialMissing, delay, read_secret
from pipeline import altered, egress
from pipeline.clock import db_now
from pipeline.egress import AddressRefused
from pipeline.events import Event
from pipeline.models import Hold
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.factories import BY, make_project, new_file_diff, run_git
from tests.flows.house import Deaths, Died, House, piece
from tests.ledger.githost import NAME, GitHost

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

SECRET = "s3cr3t-Zq8/x"


class Upstream:
    """The repository that a house's mirror came from, as a bare one that can be pushed to."""

    def __init__(self, house: House) -> None:
        self.house = house
        self.path = house.folder / "upstream.git"
        run_git(house.folder, "clone", "--quiet", "--bare", str(house.repository), str(self.path))

    def follow(self, landing: str = "push", **fields: Any) -> Remote:
        """Make it the project's remote; nothing is fetched by the clock."""
        fields = {"url": str(self.path), "fetch_seconds": 0, **fields}
        return Remote.objects.add(by=BY, project=self.house.project, landing=landing, **fields)

    def head(self, ref: str = "main") -> str:
        """The commit that a branch or ref is at."""
        return run_git(self.path, "rev-parse", ref)

    def commit(self, name: str, *, merge: str = "") -> str:
        """Somebody pushes a file to main, or a merge of the commit `merge` of the mirror; the new head."""
        clone = self.house.folder / f"clone-{name}"
        run_git(self.house.folder, "clone", "--quiet", str(self.path), str(clone))
        if merge:
            run_git(clone, "fetch", "--quiet", str(self.house.project.mirror), "main")
            run_git(clone, "merge", "--quiet", "--no-edit", merge)
        else:
            (clone / name).write_text("by hand\n")
            run_git(clone, "add", "--all")
            run_git(clone, "commit", "--quiet", "--message=By hand")
        run_git(clone, "push", "--quiet", "origin", "HEAD:main")
        return self.head()


@pytest.fixture
def house(tmp_path: Path) -> House:
    """Three tasks, one after the other."""
    return House(tmp_path, [piece("a", conflict_group="g"), piece("b", conflict_group="g")])


@pytest.fixture
def upstream(house: House) -> Upstream:
    """Where its mirror came from."""
    return Upstream(house)


def now_due() -> None:
    """The time that a failure put things off by has passed."""
    Push.objects.update(due_at=db_now() - timedelta(seconds=1))


def kinds(house: House, prefix: str) -> list[str]:
    """The project's events whose kinds begin so."""
    told = Event.objects.filter(project_id=house.project.pk, kind__startswith=prefix).order_by("seq")
    return list(told.values_list("kind", flat=True))


def test_what_landed_is_on_the_remote_with_its_receipt(house: House, upstream: Upstream) -> None:
    upstream.follow()
    patch = house.work({"a.txt": "a\n"})
    assert upstream.head() == house.head
    push = Push.objects.get()
    assert (push.patch_id, push.state, push.target) == (patch.pk, "pushed", "main")
    note = run_git(upstream.path, "notes", "--ref=signalbox", "show", house.head)
    assert json.loads(note)["predicate"]["patch"]["id"] == patch.pk
    house.must_hold()


def receipt_there(upstream: Upstream, commit: str) -> bool:
    """Whether the remote has the receipt of a commit."""
    if not run_git(upstream.path, "for-each-ref", "refs/notes/signalbox"):
        return False
    return commit in run_git(upstream.path, "notes", "--ref=signalbox", "list")


def test_receipts_that_the_remote_has_others_for_are_told_and_get_there_once_those_gave_way(
    house: House, upstream: Upstream, client: Client, capsys: pytest.CaptureFixture[str]
) -> None:
    following = upstream.follow()
    house.work({"a.txt": "a\n"})
    run_git(upstream.path, "update-ref", "refs/notes/signalbox", upstream.commit("theirs.txt"))
    house.work({"b.txt": "b\n"})
    assert {push.state for push in Push.objects.all()} == {"pushed"}
    assert upstream.head() == house.head
    following.refresh_from_db()
    assert following.receipts_error.startswith("refs/notes/signalbox of the remote holds commits that ours does not")
    assert kinds(house, "remote.receipts") == ["remote.receipts_behind"]
    call_command("verify-receipts")
    told = capsys.readouterr()
    assert "ok: 2 landed patches" in told.out
    assert f"The remote of {house.project.key} lacks receipts: {following.receipts_error}" in told.err
    client.force_login(factories.make_approver(house.project))
    assert following.receipts_error in client.get(reverse("ledger:remotes")).content.decode()
    remote.fetch(following)
    assert not receipt_there(upstream, house.head)
    run_git(upstream.path, "update-ref", "-d", "refs/notes/signalbox")
    remote.fetch(following)
    assert receipt_there(upstream, house.head)
    following.refresh_from_db()
    assert following.receipts_error == ""
    assert kinds(house, "remote.receipts") == ["remote.receipts_behind", "remote.receipts_taken"]
    assert altered.look().problems == []
    house.must_hold()


def test_a_remote_that_takes_no_receipts_takes_the_branch_and_is_told_of(house: House, upstream: Upstream) -> None:
    following = upstream.follow()
    run_git(upstream.path, "config", "receive.hideRefs", "refs/notes")
    house.work({"a.txt": "a\n"})
    assert (Push.objects.get().state, upstream.head()) == ("pushed", house.head)
    following.refresh_from_db()
    assert following.receipts_error.startswith("The remote does not take the receipts: git push was refused")
    assert "hidden ref" in following.receipts_error
    run_git(upstream.path, "config", "--unset", "receive.hideRefs")
    house.work({"b.txt": "b\n"})
    following.refresh_from_db()
    assert (following.receipts_error, receipt_there(upstream, house.head)) == ("", True)


def test_a_receipt_that_hangs_nowhere_when_its_commit_is_pushed_goes_later(
    house: House, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = upstream.follow()
    with monkeypatch.context() as late:
        late.setattr(receipts, "note_of", lambda project: 0)
        house.work({"a.txt": "a\n"})
    following.refresh_from_db()
    assert following.receipts_error == "The receipt of 1 commit hangs nowhere yet: verify-receipts says more"
    remote.fetch(following)
    assert (following.receipts_error, receipt_there(upstream, house.head)) == ("", True)


def test_without_a_way_of_landing_nothing_leaves_the_mirror(house: House, upstream: Upstream) -> None:
    upstream.follow("none")
    house.work({"a.txt": "a\n"})
    assert upstream.head() == house.first_commit
    assert not Push.objects.exists()


def test_a_remote_that_is_down_gets_everything_once_it_is_back(house: House, upstream: Upstream) -> None:
    upstream.follow()
    away = upstream.path.rename(house.folder / "away.git")
    house.work({"a.txt": "a\n"})
    house.work({"b.txt": "b\n"})
    first, second = Push.objects.order_by("pk")
    assert (first.state, first.attempts, second.state, second.attempts) == ("waiting", 1, "waiting", 0)
    assert "did not answer" in first.last_error
    assert first.due_at > db_now()
    now_due()
    assert remote.push_due() == 1
    first.refresh_from_db()
    assert first.attempts == 2
    away.rename(upstream.path)
    house.drain()
    assert {push.state for push in Push.objects.all()} == {"waiting"}  # its time has not come
    now_due()
    house.drain()
    assert {push.state for push in Push.objects.all()} == {"pushed"}
    assert upstream.head() == house.head
    assert kinds(house, "push.").count("push.retrying") == 2
    house.must_hold()


def test_each_failure_puts_the_push_off_for_longer_up_to_a_quarter_of_an_hour() -> None:
    waits = [delay(number).total_seconds() for number in range(9)]
    assert waits[:3] == [10, 20, 40]
    assert waits == sorted(waits)
    assert waits[-1] == 900


@pytest.mark.parametrize("point", ["push.before", "push.after"])
def test_a_push_that_dies_is_made_again_and_arrives_once(
    house: House, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    upstream.follow()
    deaths = Deaths(monkeypatch)
    house.deliver({"a.txt": "a\n"})
    deaths.arm(point)
    with pytest.raises(Died):
        house.drain()
    house.drain()
    assert upstream.head() == house.head
    assert kinds(house, "push.").count("push.pushed") == 1
    house.must_hold()


def test_what_a_person_pushed_to_the_remote_is_what_the_next_patch_lands_on(house: House, upstream: Upstream) -> None:
    following = upstream.follow()
    patch = house.deliver({"a.txt": "a\n"})
    by_hand = upstream.commit("by-hand.txt")
    found = remote.fetch(following)
    assert found is not None
    assert found.moved == [{"branch": "main", "before": house.first_commit, "after": by_hand}]
    house.drain()
    patch.refresh_from_db()
    assert (patch.state, patch.tested_parent) == ("committed", by_hand)
    assert house.new_commits()[-1].parents == (by_hand,)
    assert upstream.head() == house.head
    assert kinds(house, "remote.fetched") == ["remote.fetched"]
    house.must_hold()


def test_a_push_to_the_remote_between_gate_and_landing_has_the_patch_built_and_judged_again(
    house: House, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = upstream.follow()
    pushed: list[str] = []

    def push(point: str) -> None:
        if point == "land.before_ref" and not pushed:
            pushed.append(upstream.commit("by-hand.txt"))
            remote.fetch(following)

    monkeypatch.setattr(queue, "crashpoint", push)
    house.work({"a.txt": "a\n"})
    assert house.new_commits()[-1].parents == (pushed[0],)
    assert len(house.gate_runs()) == 2
    assert upstream.head() == house.head
    house.must_hold()


def test_what_a_person_pushed_between_two_fetches_comes_first_and_the_patch_is_judged_again_on_it(
    house: House, upstream: Upstream
) -> None:
    upstream.follow()
    first = house.work({"a.txt": "a\n"})
    by_hand = upstream.commit("by-hand.txt")  # nobody has fetched it when the next patch is to land
    second = house.work({"b.txt": "b\n"})
    for patch in (first, second):
        patch.refresh_from_db()
        assert patch.state == "committed"
    assert [commit.id for commit in house.new_commits()] == [first.commit_sha, by_hand, second.commit_sha]
    assert (second.tested_parent, second.reapplies) == (by_hand, 1)
    assert len([run for run in house.gate_runs() if run.patch_id == second.pk]) == 2
    assert upstream.head() == house.head
    assert house.queue.head_commit == house.head
    assert {push.state for push in Push.objects.all()} == {"pushed"}
    assert not Hold.objects.exists()
    item = QueueItem.objects.get(patch=second)
    assert (item.restarts, item.restart_reason) == (1, "somebody pushed to the remote's branch meanwhile")
    house.must_hold()


def test_a_patch_in_whose_way_a_person_pushed_goes_back_and_nothing_of_theirs_is_lost(
    house: House, upstream: Upstream
) -> None:
    upstream.follow()
    by_hand = upstream.commit("a.txt")
    patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert (patch.state, patch.last_error_code) == ("apply_failed", "stale_base")
    assert house.head == upstream.head() == by_hand
    assert house.states()["a"] == "queued"  # the agent does it again, on what is there now
    assert not Hold.objects.exists()
    house.must_hold()


MIDWAY = """#!{python}
import os, subprocess, sys
if "push" in sys.argv and os.path.exists("{folder}/armed"):
    os.unlink("{folder}/armed")
    slow = "--receive-pack={folder}/receive-pack"
    sys.argv = [slow if one.startswith("--receive-pack=") else one for one in sys.argv]
os.execv("{git}", ["{git}", *sys.argv[1:]])
"""
"""Stands before git: the remote of the next push does something else between telling its branches and taking it."""

RECEIVE = """#!/bin/sh
{{ dd bs=1 count=4 of={folder}/first 2>/dev/null; {does}; cat {folder}/first -; }} | {git} receive-pack "$@"
"""


def arm_midway(house: House, monkeypatch: pytest.MonkeyPatch, does: str) -> None:
    """Have the remote do that in the middle of the next push."""
    folder = house.folder / "midway"
    folder.mkdir()
    git_itself = run_git(folder, "--exec-path") + "/git"
    for name, text in (("git", MIDWAY), ("receive-pack", RECEIVE)):
        (folder / name).write_text(text.format(python=sys.executable, folder=folder, git=git_itself, does=does))
        (folder / name).chmod(0o755)
    (folder / "armed").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_what_a_person_pushes_in_the_middle_of_our_push_comes_first_too(
    house: House, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    upstream.follow()
    by_hand = upstream.commit("by-hand.txt")
    run_git(upstream.path, "update-ref", "refs/heads/main", house.first_commit)
    arm_midway(house, monkeypatch, f"git --git-dir={upstream.path} update-ref refs/heads/main {by_hand}")
    patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert (patch.state, patch.tested_parent, patch.reapplies) == ("committed", by_hand, 1)
    assert len(house.gate_runs()) == 2
    assert [commit.id for commit in house.new_commits()] == [by_hand, patch.commit_sha]
    assert upstream.head() == house.head
    assert not Hold.objects.exists()
    house.must_hold()


def test_a_remote_that_cannot_write_its_branch_has_not_moved_it(
    house: House, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    following = upstream.follow()
    lock = upstream.path / "refs" / "heads" / "main.lock"
    address = remotes.check_address(following.url)
    commit = house.human_commits("here.txt", "by hand\n")
    arm_midway(house, monkeypatch, f"mkdir -p {lock.parent}; touch {lock}")
    with pytest.raises(git.GitFailed, match="refused"):
        remotes.push(house.project.mirror, address, commit, "main")
    lock.unlink()
    remotes.push(house.project.mirror, address, commit, "main")
    assert upstream.head() == commit


@pytest.mark.parametrize("more", ["", "on-top.txt"])
def test_a_landing_that_dies_when_the_remote_has_it_is_booked_once(
    house: House, upstream: Upstream, monkeypatch: pytest.MonkeyPatch, more: str
) -> None:
    following = upstream.follow()
    deaths = Deaths(monkeypatch)
    patch = house.deliver({"a.txt": "a\n"})
    deaths.arm("land.offered")
    with pytest.raises(Died):
        house.drain()
    assert upstream.head() != house.head == house.first_commit
    if more:  # somebody builds on it before we are back
        upstream.commit(more)
        remote.fetch(following)
    house.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    assert house.head == upstream.head()
    assert len(house.new_commits()) == 1 + bool(more)
    assert Push.objects.get().state == "pushed"
    house.must_hold()


@pytest.fixture
def offered(house: House, upstream: Upstream, monkeypatch: pytest.MonkeyPatch) -> Patch:
    """A patch whose commit the remote has, and whose process died before our branch moved."""
    upstream.follow()
    deaths = Deaths(monkeypatch)
    patch = house.deliver({"a.txt": "a\n"})
    deaths.arm("land.offered")
    with pytest.raises(Died):
        house.drain()
    patch.refresh_from_db()
    assert upstream.head() == patch.landing_commit != house.head
    return patch


def must_be_booked(house: House, upstream: Upstream, patch: Patch) -> None:
    patch.refresh_from_db()
    assert (patch.state, patch.commit_sha) == ("committed", patch.landing_commit)
    assert house.head == upstream.head() == house.queue.head_commit
    assert Push.objects.get(patch=patch).state == "pushed"
    assert kinds(house, "receipt.").count("receipt.written") == 1
    house.must_hold()


def test_a_landing_that_died_is_booked_when_somebody_has_built_on_it_at_the_remote(
    house: House, upstream: Upstream, offered: Patch
) -> None:
    by_hand = upstream.commit("on-top.txt")  # and nobody has fetched it
    house.drain()
    must_be_booked(house, upstream, offered)
    assert house.head == by_hand
    assert kinds(house, "patch.").count("patch.apply_failed") == 0


def test_a_landing_that_died_is_booked_though_it_would_not_be_allowed_any_more(
    house: House, upstream: Upstream, offered: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expired(patch: Patch, verb: str) -> None:
        raise Refused("its override has run out", code="override_expired")

    monkeypatch.setattr(Patch, "must_be_allowed", expired)
    house.drain()
    must_be_booked(house, upstream, offered)
    assert kinds(house, "patch.").count("patch.quarantined") == 0


def test_while_the_remote_cannot_be_asked_a_landing_that_died_is_not_taken_back(
    house: House, upstream: Upstream, offered: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expired(patch: Patch, verb: str) -> None:
        raise Refused("its override has run out", code="override_expired")

    away = upstream.path.rename(house.folder / "away.git")
    with pytest.MonkeyPatch.context() as late:
        late.setattr(Patch, "must_be_allowed", expired)
        house.drain()
    offered.refresh_from_db()
    assert offered.is_landing
    assert "cannot be asked now" in house.queue.blocked_reason
    away.rename(upstream.path)
    house.queue.unblock(by=BY)
    monkeypatch.setattr(Patch, "must_be_allowed", expired)
    queue.advance(house.queue.pk)
    house.drain()
    must_be_booked(house, upstream, offered)


def test_while_the_remote_cannot_be_asked_the_same_commit_lands_again(
    house: House, upstream: Upstream, offered: Patch
) -> None:
    away = upstream.path.rename(house.folder / "away.git")
    queue.advance(house.queue.pk)
    offered.refresh_from_db()
    assert (offered.state, house.head) == ("committed", offered.commit_sha)
    away.rename(upstream.path)
    now_due()
    house.drain()
    must_be_booked(house, upstream, offered)


def test_a_landing_that_died_before_the_remote_had_it_is_judged_by_what_holds_now(
    house: House, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expired(patch: Patch, verb: str) -> None:
        raise Refused("its override has run out", code="override_expired")

    upstream.follow()
    deaths = Deaths(monkeypatch)
    patch = house.deliver({"a.txt": "a\n"})
    deaths.arm("land.before_ref")
    with pytest.raises(Died):
        house.drain()
    monkeypatch.setattr(Patch, "must_be_allowed", expired)
    house.drain()
    patch.refresh_from_db()
    assert (patch.state, patch.landing_commit) == ("quarantined", "")
    assert upstream.head() == house.head == house.first_commit


def test_while_somebody_speaks_with_the_remote_nothing_lands_and_then_it_does(
    house: House, upstream: Upstream, nudges: list[tuple[Any, ...]]
) -> None:
    following = upstream.follow()
    with pytest.MonkeyPatch.context() as busy:
        busy.setattr(queue.janitor, "alone", lambda project: contextlib.nullcontext(False))
        patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert (patch.state, patch.landing_commit) == ("verified", "")
    nudges.clear()
    remote.fetch(following)
    assert ("ledger.tasks.advance", house.queue.pk) in nudges
    house.drain()
    assert upstream.head() == house.head != house.first_commit


def part_ways(house: House, upstream: Upstream) -> tuple[Patch, str]:
    """Something lands here while the remote is down, and a person's commit there: the patch, and that commit."""
    away = upstream.path.rename(house.folder / "away.git")
    landed = house.work({"a.txt": "a\n"})
    away.rename(upstream.path)
    by_hand = upstream.commit("by-hand.txt")
    now_due()
    house.drain()
    return landed, by_hand


def test_a_remote_that_went_another_way_is_never_forced_and_a_person_is_asked(house: House, upstream: Upstream) -> None:
    following = upstream.follow()
    landed, by_hand = part_ways(house, upstream)
    landed.refresh_from_db()
    assert landed.state == "committed"
    assert upstream.head() == by_hand
    push = Push.objects.get()
    assert push.state == "held"
    (hold,) = Hold.objects.active()
    assert (hold.kind, hold.scope_ref) == ("question", house.project.pk)
    assert hold.question is not None
    assert hold.question["ours"] == house.head

    merged = upstream.commit("merge", merge=house.head)
    remote.fetch(following)
    house.drain()
    assert not Hold.objects.active().exists()
    push.refresh_from_db()
    assert push.state == "pushed"
    assert house.head == upstream.head() == merged
    house.work({"b.txt": "b\n"})
    assert upstream.head() == house.head
    assert run_git(upstream.path, "merge-base", "--is-ancestor", by_hand, "main") == ""
    house.must_hold()


def test_while_the_remote_has_gone_another_way_nothing_more_lands(house: House, upstream: Upstream) -> None:
    following = upstream.follow()
    part_ways(house, upstream)
    second, _is_new = Patch.objects.submit(
        project=house.project, diff_text=new_file_diff("b.txt"), base_commit=house.head, by=BY
    )
    house.drain()
    second.refresh_from_db()
    assert second.state == "verified"
    upstream.commit("merge", merge=house.head)
    remote.fetch(following)
    house.drain()
    second.refresh_from_db()
    assert second.state == "committed"
    assert upstream.head() == house.head
    house.must_hold()


def test_a_remote_that_was_set_back_behind_what_it_got_is_a_question(house: House, upstream: Upstream) -> None:
    following = upstream.follow()
    first = house.work({"a.txt": "a\n"})
    run_git(upstream.path, "update-ref", "refs/heads/main", house.first_commit)
    found = remote.fetch(following)
    assert found is not None
    assert (found.moved, found.diverged, found.error) == ([], ["main"], "")
    (hold,) = Hold.objects.active()
    assert hold.question is not None
    landed = house.head
    assert (hold.question["taken"], hold.question["theirs"]) == (landed, house.first_commit)
    assert landed in hold.question["what_helps"]
    second, _is_new = Patch.objects.submit(
        project=house.project, diff_text=new_file_diff("b.txt"), base_commit=house.head, by=BY
    )
    house.drain()
    second.refresh_from_db()
    assert (second.state, upstream.head()) == ("verified", house.first_commit)  # nothing gives it back

    run_git(upstream.path, "update-ref", "refs/heads/main", landed)
    remote.fetch(following)
    house.drain()
    assert not Hold.objects.active().exists()
    second.refresh_from_db()
    assert (second.state, upstream.head()) == ("committed", house.head)
    first.refresh_from_db()
    assert first.state == "committed"
    house.must_hold()


def test_a_remote_that_has_not_got_everything_yet_was_not_set_back(house: House, upstream: Upstream) -> None:
    following = upstream.follow()
    house.work({"a.txt": "a\n"})
    away = upstream.path.rename(house.folder / "away.git")
    house.work({"b.txt": "b\n"})
    away.rename(upstream.path)
    found = remote.fetch(following)
    assert found is not None
    assert found.diverged == []
    assert not Hold.objects.exists()
    now_due()
    house.drain()
    assert upstream.head() == house.head


def test_landing_as_a_branch_pushes_beside_and_tells_what_is_in_it(house: House, upstream: Upstream) -> None:
    upstream.follow("branch")
    patch = house.deliver({"a.txt": "a\n"})
    Patch.objects.filter(pk=patch.pk).update(summary="Fix ``` @everyone closes #1")
    house.drain()
    assert upstream.head() == house.first_commit
    assert upstream.head("signalbox/main") == house.head
    push = Push.objects.get()
    assert push.request_title == "1 tested changes for main"
    before, block, _after = push.request_text.split("```")
    assert patch.pk in block
    assert "@everyone" in block
    assert "@everyone" not in before


def test_somebody_elses_commit_on_our_branch_is_a_question_too(house: House, upstream: Upstream) -> None:
    following = upstream.follow("branch")
    house.work({"a.txt": "a\n"})
    strange = upstream.commit("by-hand.txt")
    run_git(upstream.path, "update-ref", "refs/heads/signalbox/main", strange)
    run_git(upstream.path, "update-ref", "refs/heads/main", house.first_commit)
    house.work({"b.txt": "b\n"})
    assert upstream.head("signalbox/main") == strange
    assert Hold.objects.active().count() == 1
    run_git(upstream.path, "update-ref", "-d", "refs/heads/signalbox/main")
    remote.fetch(following)
    house.drain()
    assert not Hold.objects.active().exists()
    assert upstream.head("signalbox/main") == house.head


def test_a_remote_is_fetched_once_for_each_due_moment(
    house: House, upstream: Upstream, nudges: list[tuple[Any, ...]]
) -> None:
    following = upstream.follow(fetch_seconds=3600)
    by_hand = upstream.commit("by-hand.txt")
    remote.send_fetches()
    assert ("ledger.landing_tasks.fetch_due",) in nudges
    assert remote.fetch_due() == 1
    assert house.head == by_hand
    nudges.clear()
    remote.send_fetches()
    assert nudges == []
    upstream.commit("more.txt")
    assert remote.fetch_due() in (0, 1)  # 1 when the hour has just turned
    following.edit(by=BY, enabled=False)
    assert remote.fetch_due() == 0


def test_a_fetch_that_fails_is_told_once_and_so_is_its_end(house: House, upstream: Upstream) -> None:
    following = upstream.follow()
    away = upstream.path.rename(house.folder / "away.git")
    for _ in range(2):
        found = remote.fetch(following)
        assert found is not None
        assert found.error
    assert kinds(house, "remote.f") == ["remote.fetch_failed"]
    away.rename(upstream.path)
    remote.fetch(following)
    remote.fetch(following)
    assert kinds(house, "remote.f") == ["remote.fetch_failed", "remote.fetched"]


def rename_branch(upstream: Upstream, old: str, new: str) -> None:
    """Somebody takes a branch off the remote, and makes another one of main."""
    run_git(upstream.path, "update-ref", "-d", f"refs/heads/{old}")
    run_git(upstream.path, "update-ref", f"refs/heads/{new}", "refs/heads/main")


@pytest.mark.parametrize(("old", "new"), [("feature", "feature/x"), ("feature/x", "feature")])
def test_a_branch_that_went_away_makes_room_for_a_new_one_and_its_commit_stays(
    house: House, upstream: Upstream, old: str, new: str
) -> None:
    following = upstream.follow()
    run_git(upstream.path, "update-ref", f"refs/heads/{old}", upstream.commit("feature.txt"))
    run_git(upstream.path, "update-ref", "refs/heads/apart", "refs/heads/main")
    remote.fetch(following)
    feature = git.head(house.project.mirror, old)
    run_git(upstream.path, "update-ref", "-d", "refs/heads/apart")
    rename_branch(upstream, old, new)
    by_hand = upstream.commit("by-hand.txt")
    found = remote.fetch(following)
    assert found is not None
    assert {move["branch"]: move["after"] for move in found.moved} == {old: None, new: feature, "main": by_hand}
    assert (found.error, dict(found.skipped), following.fetch_error) == ("", {}, "")
    there = git.branches_below(house.project.mirror, "refs/heads/")
    assert there == {"apart": feature, "main": by_hand, new: feature}
    assert list(git.branches_below(house.project.mirror, "refs/signalbox/aside/")) == [feature]
    assert git.fsck(house.project.mirror) == []


def test_a_branch_that_cannot_be_followed_is_named_once_and_stops_no_other(house: House, upstream: Upstream) -> None:
    following = upstream.follow()
    run_git(upstream.path, "update-ref", "refs/heads/feature", "refs/heads/main")
    remote.fetch(following)
    factories.make_merge_queue(house.project, target_branch="feature")
    rename_branch(upstream, "feature", "feature/x")
    for name in ("one.txt", "two.txt"):
        by_hand = upstream.commit(name)
        remote.fetch(following)
        assert house.head == house.project.merge_queues.get(target_branch="main").head_commit == by_hand
    following.refresh_from_db()
    assert following.fetch_error.startswith("feature/x is not followed: Cannot move branch feature/x")
    assert "'refs/heads/feature' exists" in following.fetch_error
    assert kinds(house, "remote.f") == ["remote.fetched", "remote.fetch_failed", "remote.fetched"]
    rename_branch(upstream, "feature/x", "feature")
    remote.fetch(following)
    following.refresh_from_db()
    assert following.fetch_error == ""


def test_a_landing_that_died_is_booked_whatever_is_wrong_with_another_branch(
    house: House, upstream: Upstream, offered: Patch
) -> None:
    git.move_branch(house.project.mirror, "feature", house.head, "0" * 40)
    factories.make_merge_queue(house.project, target_branch="feature")
    rename_branch(upstream, "feature", "feature/x")
    upstream.commit("on-top.txt")
    house.drain()
    offered.refresh_from_db()
    assert (offered.state, offered.commit_sha) == ("committed", offered.landing_commit)
    assert house.head == upstream.head()


def test_a_ref_that_cannot_be_written_here_stops_no_other(house: House, upstream: Upstream) -> None:
    following = upstream.follow()
    run_git(upstream.path, "update-ref", "refs/heads/locked", "refs/heads/main")
    by_hand = upstream.commit("by-hand.txt")
    lock = house.project.mirror / "refs" / "remotes" / "origin" / "locked.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    lock.touch()
    found = remote.fetch(following)
    assert found is not None
    assert house.head == by_hand
    assert list(found.skipped) == ["locked"]
    assert "locked is not followed" in following.fetch_error
    lock.unlink()
    remote.fetch(following)
    assert following.fetch_error == ""
    assert git.head(house.project.mirror, "locked") == house.first_commit


def test_of_two_at_once_one_fetches(house: House, upstream: Upstream, threads: Any) -> None:
    following = upstream.follow()
    upstream.commit("by-hand.txt")
    found = [one.result() for one in threads.at_once(*[lambda: remote.fetch(following)] * 3)]
    assert sum(1 for one in found if one and one.moved) == 1
    assert house.head == upstream.head()


# -- addresses and secrets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "", "-u", "relative/path", "http://example.org/x", "git://example.org/x", "ext::sh -c true",
        "https://user:word@example.org/x", "https://user@example.org/x", "ssh://-oProxyCommand=x/y",
        "https://127.0.0.1/x", "https://0x7f.1/x", "https://[::1]/x", "ssh://git@10.0.0.1/x", "https://ex ample/\n",
        "https://example.org:99999/x",
    ],
)  # fmt: skip
def test_addresses_that_no_remote_may_have(url: str) -> None:
    with pytest.raises((InvalidField, AddressRefused)):
        remotes.check_address(url)


@pytest.mark.parametrize(
    ("url", "protocol", "host", "port"),
    [
        ("https://example.org/x.git", "https", "example.org", 443),
        ("https://example.org:8443/x.git", "https", "example.org", 8443),
        ("ssh://git@example.org/x", "ssh", "example.org", 22),
        ("git@example.org:team/x.git", "ssh", "example.org", 22),
        ("/srv/git/x.git", "file", "", 0),
        ("file:///srv/git/x.git", "file", "", 0),
    ],
)
def test_addresses_taken_apart(url: str, protocol: str, host: str, port: int) -> None:
    assert remotes.check_address(url) == remotes.Address(url, protocol, host, port)


def test_protocols_are_those_that_the_installation_allows(settings: LazySettings) -> None:
    settings.SIGNALBOX_REMOTE_PROTOCOLS = ("https",)
    with pytest.raises(InvalidField, match="file is not allowed"):
        remotes.check_address("/srv/git/x.git")


@pytest.mark.parametrize(
    "reference",
    [
        "hunter2",
        "env:SECRET_KEY",
        "env:SIGNALBOX_PEPPER",
        "env:lower",
        "file:../settings",
        "file:/etc/passwd",
        "file:.x",
    ],
)
def test_a_credential_is_named_and_only_where_credentials_are(reference: str) -> None:
    project = make_project()
    with pytest.raises(InvalidField):
        Remote.objects.add(by=BY, project=project, url="https://example.org/x", credential=reference)


def test_a_secret_is_read_from_the_environment_or_its_folder(
    monkeypatch: pytest.MonkeyPatch, settings: LazySettings, tmp_path: Path
) -> None:
    settings.SIGNALBOX_CREDENTIALS_DIR = str(tmp_path)
    monkeypatch.setenv("SIGNALBOX_CREDENTIAL_HOST", SECRET)
    (tmp_path / "host").write_text(f"{SECRET}\n")
    (tmp_path / "two").write_text("a\nb\n")
    assert read_secret("env:SIGNALBOX_CREDENTIAL_HOST") == read_secret("file:host") == SECRET
    assert read_secret("") == ""
    for missing in ("env:SIGNALBOX_CREDENTIAL_NONE", "file:none", "file:two"):
        with pytest.raises(CredentialMissing) as refusal:
            read_secret(missing)
        assert "a\nb" not in str(refusal.value)


@pytest.fixture
def host(
    house: House, upstream: Upstream, settings: LazySettings, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GitHost]:
    """The upstream over https, behind a password; its name leads to this machine for whoever looks it up our way."""
    found = GitHost(house.folder, SECRET)
    settings.SIGNALBOX_REMOTE_CA_FILE = str(found.pem)
    monkeypatch.setattr(egress, "addresses_of", lambda name, port: [ipaddress.ip_address("127.0.0.1")])
    monkeypatch.setenv("SIGNALBOX_CREDENTIAL_HOST", SECRET)
    yield found
    found.close()


@pytest.fixture
def spied(house: House, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that gets the arguments of every git that is started."""
    folder = house.folder / "bin"
    folder.mkdir()
    told = house.folder / "arguments"
    real = run_git(house.folder, "--exec-path") + "/git"
    (folder / "git").write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {told}\nexec {real} "$@"\n')
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return told


def rows_that_hold(text: str) -> list[str]:
    """The tables of which a row holds this text."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        tables = [name for (name,) in cursor.fetchall()]
        found = []
        for name in tables:
            cursor.execute(f'SELECT count(*) FROM "{name}" AS t WHERE strpos(t::text, %s) > 0', [text])
            if cursor.fetchone()[0]:
                found.append(name)
    return found


def test_a_secret_goes_to_its_host_and_into_no_row_argument_configuration_or_log(
    house: House, upstream: Upstream, host: GitHost, spied: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    following = upstream.follow(
        url=f"https://{NAME}:{host.port}/upstream.git", username="robot", credential="env:SIGNALBOX_CREDENTIAL_HOST"
    )
    house.work({"a.txt": "a\n"})
    assert upstream.head() == house.head
    upstream.commit("by-hand.txt")
    remote.fetch(following)
    assert house.head == upstream.head()
    assert any("Authorization" in headers for headers in host.asked)
    # And a failure, whose words are kept: the repository is not there.
    following.edit(by=BY, url=f"https://{NAME}:{host.port}/{SECRET.replace('/', '')}/none.git")
    found = remote.fetch(following)
    assert found is not None
    assert found.error
    basic = "cm9ib3Q6"  # base64 of "robot:"
    configuration = (house.project.mirror / "config").read_text()
    for text in (SECRET, basic):
        assert rows_that_hold(text) == []
        assert text not in spied.read_text()
        assert text not in caplog.text
        assert text not in configuration
    assert "push" in spied.read_text()


def test_a_wrong_secret_is_a_push_that_waits_and_says_why(
    house: House, upstream: Upstream, host: GitHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNALBOX_CREDENTIAL_HOST", "wrong-one")
    upstream.follow(
        url=f"https://{NAME}:{host.port}/upstream.git", username="robot", credential="env:SIGNALBOX_CREDENTIAL_HOST"
    )
    house.work({"a.txt": "a\n"})
    push = Push.objects.get()
    assert (push.state, push.attempts) == ("waiting", 1)
    assert "wrong-one" not in push.last_error
    monkeypatch.delenv("SIGNALBOX_CREDENTIAL_HOST")
    now_due()
    house.drain()
    push.refresh_from_db()
    assert "SIGNALBOX_CREDENTIAL_HOST" in push.last_error


def test_a_name_that_leads_inside_is_not_asked(house: House, upstream: Upstream) -> None:
    following = upstream.follow(url="https://localhost:1/x.git")
    found = remote.fetch(following)
    assert found is not None
    assert "internal or reserved" in found.error


# -- told by a webhook ---------------------------------------------------------------------------------------------


def test_a_signed_push_webhook_has_the_remote_fetched(
    house: House, upstream: Upstream, nudges: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch, client: Client
) -> None:
    monkeypatch.setenv("SIGNALBOX_CREDENTIAL_HOOK", "hook-secret")
    following = upstream.follow(webhook_credential="env:SIGNALBOX_CREDENTIAL_HOOK")
    body = b'{"ref": "refs/heads/main"}'
    right = "sha256=" + hmac.new(b"hook-secret", body, hashlib.sha256).hexdigest()
    address = f"/hooks/push/{house.project.key}/"

    def post(signature: str, to: str = address) -> int:
        answer = client.post(to, body, content_type="application/json", headers={"X-Hub-Signature-256": signature})
        return answer.status_code

    nudges.clear()
    assert post("sha256=" + "0" * 64) == 404
    assert post("") == 404
    assert post("sha256=ü") == 404
    assert post(right, "/hooks/push/nobody/") == 404
    assert nudges == []
    assert post(right) == 202
    assert nudges == [("ledger.landing_tasks.fetch", following.pk)]
    following.edit(by=BY, webhook_credential="")
    assert post("sha256=" + hmac.new(b"", body, hashlib.sha256).hexdigest()) == 404


def test_the_mirrors_own_configuration_is_not_asked_where_to_push(house: House, upstream: Upstream) -> None:
    run_git(house.project.mirror, "config", "remote.origin.url", "/nowhere")
    upstream.follow()
    house.work({"a.txt": "a\n"})
    assert upstream.head() == git.head(house.project.mirror, "main")
