"""Races over patches: whoever is first, the history is complete, one lands, and the other is built and tested again."""

import subprocess
import threading
from pathlib import Path

import pytest

from ledger import git, queue, rollback, validation
from ledger.models import Patch
from pipeline.events import Actor, Event
from pipeline.invariants import check_all
from pipeline.refusals import Refused
from pipeline.states import InvalidMove
from tests.conftest import Threads
from tests.factories import BY, head_of, new_file_diff
from tests.flows.house import House, piece
from tests.ledger.landing import Shore

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

ONE_AT_MOST = ["sh", "-c", "test $(ls only-one-* 2>/dev/null | wc -l) -le 1"]
"""A gate that each of two files passes alone, and both together do not."""


def must_be_complete(patch: Patch) -> list[str]:
    """The states that the events tell, which must join without a gap and end where the row is."""
    told = list(Event.objects.about(patch).order_by("stream_seq"))
    assert [event.stream_seq for event in told] == list(range(1, len(told) + 1))
    moves = [(event.before, event.after) for event in told if event.after and "state" in event.after]
    states = [after["state"] for _, after in moves]
    assert [before["state"] for before, _ in moves[1:]] == states[:-1]
    patch.refresh_from_db()
    assert states[-1] == patch.state
    return states


def must_hold(house: House) -> None:
    """Every invariant holds, git finds nothing wrong, and each patch is in at most one commit of the branch."""
    assert [(result.number, result.violations) for result in check_all() if not result.holds] == []
    assert git.fsck(house.project.mirror) == []
    messages = [commit.message for commit in house.new_commits() if "Signalbox-Patch" in commit.message]
    assert len(messages) == len(set(messages))


def test_a_verdict_and_a_quarantine_at_once_leave_one_complete_history(tmp_path: Path, threads: Threads) -> None:
    shore = Shore(tmp_path, {"a.txt": "a\n"})
    for number in range(6):
        patch = shore.submit({f"{number}.txt": f"{number}\n"})

        def set_aside(pk: str = patch.pk) -> bool:
            return Patch.objects.get(pk=pk).quarantine("odd", by=BY)

        judged, parked = threads.at_once(lambda pk=patch.pk: validation.validate(pk), set_aside)
        states = must_be_complete(patch)
        # Quarantine is open from both states, so it always comes about; the verdict came before it or not at all.
        assert parked.result() is True
        assert states in (["created", "quarantined"], ["created", "validated", "quarantined"])
        assert judged.result() is ("validated" in states)
    assert [(result.number, result.violations) for result in check_all() if not result.holds] == []


def test_a_quarantine_between_judging_and_noting_wins(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    shore = Shore(tmp_path, {"a.txt": "a\n"})
    patch = shore.submit({"b.txt": "b\n"})

    def interrupt(point: str) -> None:
        if point == "validate.judged":
            threads.start(lambda: Patch.objects.get(pk=patch.pk).quarantine("odd", by=BY)).result()

    monkeypatch.setattr(validation, "crashpoint", interrupt)
    assert validation.validate(patch.pk) is False
    assert must_be_complete(patch) == ["created", "quarantined"]
    assert patch.validation_errors == []
    with pytest.raises(InvalidMove):
        patch.note_validation(validation.judge(patch), by=BY)


def test_of_two_patches_that_are_fine_alone_and_broken_together_one_lands_and_the_other_is_tested_again(
    tmp_path: Path, threads: Threads
) -> None:
    house = House(tmp_path, [piece("a")], gates={"alone": {"command": ONE_AT_MOST}})
    house.queue.pause(by=BY)
    made = []
    for name in ("left", "right"):
        diff = new_file_diff(f"only-one-{name}", name)
        patch, _ = Patch.objects.submit(
            project=house.project, diff_text=diff, base_commit=head_of(house.project), by=BY
        )
        made.append(patch)
    house.drain()
    house.queue.resume(by=BY)
    pk = house.queue.pk
    for outcome in threads.at_once(*[lambda: queue.advance(pk) for _ in range(3)]):
        outcome.result()
    house.drain()
    first, second = (must_be_complete(patch) for patch in made)
    assert first[-3:] == ["applied", "verified", "committed"]
    assert second[-2:] == ["applied", "apply_failed"]
    made[1].refresh_from_db()
    assert (made[1].tests_ran, made[1].last_error_code) == (True, "gates_not_satisfied")
    runs = {run.tree_hash: run.verdict for run in house.gate_runs() if run.patch_id == made[1].pk}
    assert list(runs.values()) == ["failed"]
    assert [commit.tree for commit in house.new_commits()] == [Patch.objects.get(pk=made[0].pk).committed_tree]
    must_hold(house)


@pytest.mark.parametrize("path", ["elsewhere.txt", "README.md"])
def test_a_person_s_push_and_a_landing_at_once_end_in_one_line_of_commits(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    house = House(tmp_path, [piece("a")])
    pushed: list[bool] = []
    started: list[threading.Event] = []

    def push() -> None:
        for _ in range(5):
            try:
                house.human_commits(path, "by hand\n")
            except subprocess.CalledProcessError:
                continue  # the landing was first: clone again, as a person would pull
            pushed.append(True)
            return

    def race(point: str) -> None:
        if point == "land.before_ref" and not started:
            started.append(threading.Event())
            threads.start(push)

    monkeypatch.setattr(queue, "crashpoint", race)
    patch = house.deliver({"README.md": "# By the agent\n"})
    house.drain()
    threads.join()
    house.drain()
    assert pushed == [True]
    states = must_be_complete(patch)
    commits = house.new_commits()
    parents = [house.first_commit, *(commit.id for commit in commits[:-1])]
    assert [commit.parents for commit in commits] == [(parent,) for parent in parents]
    ours = [commit for commit in commits if "Signalbox-Patch" in commit.message]
    if patch.state == "committed":
        assert [commit.id for commit in ours] == [patch.commit_sha]
        assert ours[0].parents == (patch.tested_parent,)
        assert ours[0].tree == patch.tested_tree
    else:  # the person's line was there first, and in the way
        assert (path, ours, states[-1]) == ("README.md", [], "apply_failed")
    must_hold(house)


def test_a_push_that_is_first_makes_the_gates_judge_the_new_tree(
    tmp_path: Path, threads: Threads, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = House(tmp_path, [piece("a")], gates={"alone": {"command": ONE_AT_MOST}})

    def race(point: str) -> None:
        if point == "land.before_ref" and len(house.new_commits()) == 0:
            threads.start(lambda: house.human_commits("only-one-person", "by hand\n")).result()

    monkeypatch.setattr(queue, "crashpoint", race)
    patch = house.deliver({"only-one-agent": "agent\n"})
    house.drain()
    states = must_be_complete(patch)
    assert states[-4:] == ["verified", "queued", "applied", "apply_failed"]
    verdicts = [run.verdict for run in house.gate_runs() if run.patch_id == patch.pk]
    assert verdicts == ["passed", "failed"]
    assert [commit.message.strip() for commit in house.new_commits()] == ["By hand"]
    must_hold(house)


def test_a_newer_revision_and_the_landing_of_the_older_one_at_once_land_one_of_them(
    tmp_path: Path, threads: Threads
) -> None:
    house = House(tmp_path, [piece(f"t{number}", conflict_group="g") for number in range(4)])
    for number in range(4):
        house.queue.pause(by=BY)
        older = house.work({f"{number}.txt": "older\n"})
        house.queue.resume(by=BY)
        head = house.head

        def replace(older: Patch = older, path: str = f"newer-{number}.txt", head: str = head) -> str:
            diff = new_file_diff(path)
            try:
                newer, _ = Patch.objects.submit(
                    project=house.project, diff_text=diff, base_commit=head, by=BY, replaces=older
                )
            except Refused as refusal:
                return refusal.code
            return newer.pk

        _landed, said = threads.at_once(lambda: queue.advance(house.queue.pk), replace)
        outcome = said.result()
        house.drain()
        older.refresh_from_db()
        if outcome in ("invalid_move", "invalid_field"):  # it was landing, or had landed
            assert older.state == "committed"
        else:
            newer = Patch.objects.get(pk=outcome)
            assert (older.state, newer.state) == ("dropped", "committed")
            must_be_complete(newer)
        must_be_complete(older)
    must_hold(house)


def test_a_rollback_asked_for_twice_at_once_makes_one_reverse(tmp_path: Path, threads: Threads) -> None:
    shore = Shore(tmp_path, {"a.txt": "a\n"})
    patch = shore.land({"a.txt": "b\n"})
    ada = Actor("user", "", "Ada")

    def ask() -> tuple[str, bool]:
        reverse, is_new = rollback.roll_back(Patch.objects.get(pk=patch.pk), "wrong", by=ada)
        return reverse.pk, is_new

    answers = [outcome.result() for outcome in threads.at_once(*[ask] * 4)]
    assert len({pk for pk, _ in answers}) == 1
    assert sorted(is_new for _, is_new in answers) == [False, False, False, True]
    assert patch.reversed_by.count() == 1


def test_a_rollback_and_a_drop_of_a_verified_patch_at_once_leave_one_end(tmp_path: Path, threads: Threads) -> None:
    house = House(tmp_path, [piece("a")], gates={})
    patch = house.work({"a.txt": "a\n"})

    def refused_or(verb: str) -> str:
        row = Patch.objects.get(pk=patch.pk)
        try:
            getattr(row, verb)("no", by=BY)
        except Refused as refusal:
            return refusal.code
        return verb

    outcomes = threads.at_once(lambda: refused_or("rollback"), lambda: refused_or("drop"))
    said = sorted(outcome.result() for outcome in outcomes)
    assert said in (["drop", "invalid_move"], ["invalid_move", "rollback"])
    assert must_be_complete(patch)[-1] in ("dropped", "rolled_back")
    house.drain()
    must_hold(house)
