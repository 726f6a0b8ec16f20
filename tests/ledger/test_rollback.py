"""Rollback: what has landed is undone by a patch of its own, or it is said what stands in the way."""

from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse as url

from ledger import git, rollback
from ledger.models import Patch
from ledger.models.review import SelfReview, reviews_of
from pipeline.auth import Principal
from pipeline.clock import db_now
from pipeline.events import Actor, Event
from pipeline.fold import fold
from pipeline.invariants import check_all
from pipeline.refusals import InvalidField, Refused
from pipeline.states import InvalidMove
from tests import factories
from tests.api.asking import Api
from tests.factories import make_policy, run_git
from tests.flows.house import House, piece
from tests.ledger.landing import Shore, lines

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

ADA = Actor("user", "", "Ada")


@pytest.fixture
def shore(tmp_path: Path) -> Shore:
    """A branch with one file of 40 lines."""
    return Shore(tmp_path, {"a.txt": lines(*range(1, 41)), "b.txt": "b\n"})


def must_hold(house: House) -> None:
    """Every invariant holds and git finds nothing wrong; a commit of ours may be of a patch that was rolled back."""
    assert [(result.number, result.violations) for result in check_all() if not result.holds] == []
    assert git.fsck(house.project.mirror) == []


def with_line(shore: Shore, number: int, text: str, path: str = "a.txt") -> dict[str, str]:
    """The file as the branch has it, with one line replaced."""
    found = shore.content(path).splitlines(keepends=True)
    found[number - 1] = f"{text}\n"
    return {path: "".join(found)}


def test_the_reverse_of_a_landed_patch_goes_through_gates_and_takes_it_back_with_its_costs(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    patch = house.work({"calc.py": "def add(a, b):\n    return b + a\n", "new.txt": "new\n"})
    before = git.tree_of(house.project.mirror, house.first_commit)
    assert house.costs() == {"a0": ("landed", "")} or house.costs() == {"a1": ("landed", "")}

    reverse, is_new = rollback.roll_back(patch, "it was wrong", by=ADA)

    assert is_new
    assert (reverse.rollback_of_id, reverse.chain_id, reverse.state) == (patch.pk, patch.chain_id, "created")
    assert (reverse.author_name, reverse.author_user_id, reverse.run_id, reverse.task_id) == (
        "Signalbox", None, None, None,
    )  # fmt: skip
    assert (reverse.phase_id, reverse.workstream_id) == (patch.phase_id, patch.workstream_id)
    house.drain()
    patch.refresh_from_db()
    reverse.refresh_from_db()
    assert (patch.state, reverse.state) == ("rolled_back", "committed")
    assert house.new_commits()[-1].tree == before
    assert {run.verdict for run in house.gate_runs() if run.patch_id == reverse.pk} == {"passed"}
    told = Event.objects.get(kind="patch.rolled_back", subject_id=patch.pk)
    assert (told.data, told.reason) == ({"reverse": reverse.pk, "commit": reverse.commit_sha}, "it was wrong")
    assert [kind for kind, _ in house.costs().values()] == ["waste"]
    assert [cause for _, cause in house.costs().values()] == ["rolled_back"]
    folded = fold(reverse, db_now())
    assert folded is not None
    assert folded["rollback_of_id"] == patch.pk
    must_hold(house)


def test_what_a_reverse_of_a_reverse_brings_back_needs_another_pair_of_eyes_than_its_authors(
    tmp_path: Path, client: Client
) -> None:
    house = House(tmp_path, [piece("a")])
    make_policy(project=house.project, constraints={"min_reviewers": 1})
    anna, ben, carl = (factories.make_user() for _n in range(3))
    for user in (anna, ben, carl):
        factories.make_membership(user, house.project, "approver")
    as_anna, as_ben = (Principal.of_user(user).actor for user in (anna, ben))
    patch = factories.make_patch(house.project, user=anna, base_commit=house.first_commit)
    house.drain()
    patch.reviews.give(patch, "approve", by=as_ben, reviewer=ben)
    house.drain()
    back, _ = rollback.roll_back(patch, "it was wrong", by=as_ben)
    house.drain()
    back.refresh_from_db()
    assert (back.state, reviews_of([back])[back.pk].approvals) == ("committed", (ben.get_username(),))
    patch.refresh_from_db()
    assert patch.came_back_by() is None

    again, _ = rollback.roll_back(back, "it was right", by=as_anna)
    house.drain()
    again.refresh_from_db()
    assert (again.state, reviews_of([again])[again.pk].approvals) == ("validated", ())
    with pytest.raises(SelfReview, match="submitted what it brings back"):
        again.reviews.give(again, "approve", by=as_anna, reviewer=anna)
    again.reviews.give(again, "approve", by=Principal.of_user(carl).actor, reviewer=carl)
    house.drain()
    again.refresh_from_db()
    patch.refresh_from_db()
    assert (again.state, patch.state, patch.came_back_by()) == ("committed", "rolled_back", again)
    api = Api(factories.make_key("viewer", project=house.project).text)
    assert api.get(f"/patches/{patch.pk}/").json()["came_back_by"] == again.pk
    assert api.get(f"/patches/{again.pk}/").json()["came_back_by"] is None
    client.force_login(anna)
    page = client.get(url("ledger:patch", args=[patch.pk]))
    assert "Came back by" in page.text
    assert url("ledger:patch", args=[again.pk]) in page.text
    # What takes it away once more is nobody's change: whoever asks for that is its first pair of eyes.
    gone, _ = rollback.roll_back(again, "no", by=as_anna)
    assert reviews_of([gone])[gone.pk].approvals == (anna.get_username(),)
    house.drain()
    patch.refresh_from_db()
    assert patch.came_back_by() is None
    must_hold(house)


def test_asked_twice_for_a_rollback_the_first_reverse_is_answered(shore: Shore) -> None:
    patch = shore.land({"b.txt": "other\n"})
    first, _ = rollback.roll_back(patch, "wrong", by=ADA)
    assert rollback.roll_back(patch, "wrong indeed", by=ADA) == (first, False)
    assert patch.reversed_by.count() == 1


def test_a_reverse_that_failed_to_apply_is_replaced_by_one_on_the_present_head(shore: Shore) -> None:
    patch = shore.land(with_line(shore, 10, "ten"))
    first, _ = rollback.roll_back(patch, "wrong", by=ADA)
    factories.in_state(first, "apply_failed")
    shore.land(with_line(shore, 30, "thirty"))
    second, is_new = rollback.roll_back(patch, "wrong", by=ADA)
    assert is_new
    assert (second.replaces_id, second.base_commit, second.chain_id) == (first.pk, shore.head, patch.chain_id)


def test_a_reverse_changes_only_what_its_original_changed(shore: Shore) -> None:
    patch = shore.land(with_line(shore, 10, "ten"))
    shore.land({"a.txt": "above\n" + shore.content("a.txt")})
    reverse, _ = rollback.roll_back(patch, "wrong", by=ADA)
    tree = git.apply(shore.mirror, reverse.base_commit, reverse.content.diff_text)
    assert shore.content("a.txt", tree) == "above\n" + lines(*range(1, 41))


def test_what_no_line_tells_is_taken_back_as_well(shore: Shore) -> None:
    before = git.tree_of(shore.mirror, shore.head)
    shore.diff({})
    (shore.clone / "picture.bin").write_bytes(bytes(range(256)))
    (shore.clone / "a.txt").chmod(0o755)
    (shore.clone / "b.txt").rename(shore.clone / "moved.txt")
    run_git(shore.clone, "add", "--all")
    run_git(shore.clone, "diff", "--cached", "--full-index", "--binary", f"--output={shore.clone.parent}/all")
    patch = shore.land_text((shore.clone.parent / "all").read_text())
    shore.land({"c.txt": "c\n"})
    reverse, _ = rollback.roll_back(patch, "wrong", by=ADA)
    tree = git.apply(shore.mirror, reverse.base_commit, reverse.content.diff_text)
    assert [change.path for change in git.changes(shore.mirror, before, tree)] == ["c.txt"]
    shore.by_hand({"picture.bin": "changed\n"})
    step = rollback.plan(rollback.Wanted(shore.project, patches=(patch.pk,))).steps[0]
    assert step.outcome == "under_way"
    factories.in_state(reverse, "dropped")
    with pytest.raises(Refused) as problem:
        rollback.roll_back(patch, "wrong", by=ADA)
    assert problem.value.parts["paths"] == ["picture.bin"]


def test_lines_that_landed_later_in_the_same_place_are_named_with_their_patch(shore: Shore) -> None:
    patch = shore.land(with_line(shore, 10, "ten"))
    shore.land({"a.txt": "above\n" + shore.content("a.txt")})
    other = shore.land(with_line(shore, 11, "TEN"))
    shore.land({"b.txt": "unrelated\n"})
    with pytest.raises(Refused) as problem:
        rollback.roll_back(patch, "wrong", by=ADA)
    refusal = problem.value
    assert (refusal.code, refusal.status) == ("later_patch_depends", 409)
    assert str(refusal) == (
        f"Cannot rollback: what landed later is in the way: a.txt line 11, changed by patch {other.pk}"
    )
    assert refusal.parts["patches"] == [other.pk]
    assert refusal.parts["hunks"] == [
        {"path": "a.txt", "start": 11, "lines": 1, "commit": other.commit_sha, "patch": other.pk, "shared": False}
    ]
    assert patch.reversed_by.count() == 0


def test_a_commit_by_hand_in_the_way_is_named_as_well(shore: Shore) -> None:
    patch = shore.land({"new.txt": "new\n"})
    commit = shore.by_hand({"new.txt": "new\nby hand\n"})
    with pytest.raises(Refused) as problem:
        rollback.roll_back(patch, "wrong", by=ADA)
    assert problem.value.code == "later_patch_depends"
    assert [(hunk["path"], hunk["commit"], hunk["patch"]) for hunk in problem.value.parts["hunks"]] == [
        ("new.txt", commit, "")
    ]


def test_a_later_patch_of_the_chain_on_the_same_file_is_rolled_back_first(shore: Shore) -> None:
    first = shore.land(with_line(shore, 5, "five"))
    second = shore.land(with_line(shore, 35, "more"))
    Patch.objects.filter(pk=second.pk).update(chain_id=first.chain_id)
    with pytest.raises(Refused) as problem:
        rollback.roll_back(first, "wrong", by=ADA)
    assert problem.value.code == "later_patch_depends"
    assert problem.value.parts["patches"] == [second.pk]
    assert "roll that back first" in str(problem.value)
    factories.in_state(second, "rolled_back")
    reverse, is_new = rollback.roll_back(first, "wrong", by=ADA)
    assert is_new
    assert reverse.rollback_of_id == first.pk


def test_what_somebody_has_undone_already_is_not_undone_twice(shore: Shore) -> None:
    patch = shore.land({"b.txt": "other\n"})
    shore.by_hand({"b.txt": "b\n"})
    with pytest.raises(Refused) as problem:
        rollback.roll_back(patch, "wrong", by=ADA)
    assert (problem.value.code, "nothing is left" in str(problem.value)) == ("later_patch_depends", True)


@pytest.mark.parametrize("state", ["created", "validated", "queued", "apply_failed", "quarantined", "dropped"])
def test_what_neither_is_applied_nor_has_landed_cannot_be_rolled_back(shore: Shore, state: str) -> None:
    patch = factories.in_state(shore.submit({"b.txt": "other\n"}), state)
    with pytest.raises(InvalidMove, match="Cannot rollback"):
        rollback.roll_back(patch, "wrong", by=ADA)
    patch.refresh_from_db()
    assert patch.state == state


def test_an_applied_patch_is_rolled_back_at_once_out_of_its_queue(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")], gates={})
    patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert patch.state == "applied"  # no gate judges its tree, so it waits
    assert rollback.roll_back(patch, "not needed", by=ADA) == (patch, False)
    assert [item.state for item in patch.queue_items.all()] == ["withdrawn"]
    house.drain()
    assert house.head == house.first_commit
    task = house.task("a")
    assert (task.state, task.count_repairs) == ("queued", 1)
    must_hold(house)


def test_a_rollback_owes_a_reason(shore: Shore) -> None:
    patch = shore.land({"b.txt": "other\n"})
    with pytest.raises(Refused) as problem:
        rollback.roll_back(patch, "  ", by=ADA)
    assert problem.value.code == "reason_required"


def test_a_reverse_can_be_taken_back_itself(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    patch = house.work({"calc.py": "pass\n"})
    reverse, _ = rollback.roll_back(patch, "wrong", by=ADA)
    house.drain()
    again, _ = rollback.roll_back(reverse, "it was right", by=ADA)
    house.drain()
    states = [Patch.objects.get(pk=row.pk).state for row in (patch, reverse, again)]
    assert states == ["rolled_back", "rolled_back", "committed"]
    assert house.file("calc.py") == "pass"
    must_hold(house)


def test_a_patch_that_has_landed_cannot_be_replaced(shore: Shore) -> None:
    landed = shore.land({"b.txt": "other\n"})
    with pytest.raises(InvalidField, match="has landed"):
        shore.submit({"b.txt": "third\n"}, replaces=landed)
