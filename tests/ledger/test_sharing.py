"""Patches of one base that say the same lines: what one brought is not taken back as long as another one holds it."""

import random
from collections.abc import Mapping
from pathlib import Path

import pytest

from ledger import git, rollback
from ledger.models import Patch
from pipeline.events import Actor
from pipeline.refusals import Refused
from tests import factories
from tests.api.asking import Api
from tests.flows.house import House, piece
from tests.ledger.landing import Shore, lines
from tests.ledger.test_rewind import landed, undo

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

ADA = Actor("user", "", "Ada")

TEXT = lines(*range(1, 101))


@pytest.fixture
def shore(tmp_path: Path) -> Shore:
    """A branch with one file of 100 lines, and some small ones."""
    return Shore(tmp_path, {"a.txt": TEXT, "b.txt": "b\n", "run.sh": "#!/bin/sh\n"})


def edited(changes: Mapping[int, str | None], text: str = TEXT) -> str:
    """`text` with some of its lines (from 1) replaced, or gone where it says None."""
    found = [changes.get(number, line) for number, line in enumerate(text.splitlines(), 1)]
    return "".join(f"{line}\n" for line in found if line is not None)


def step_of(shore: Shore, *patches: Patch) -> rollback.Step:
    """What the plan for a set says about the oldest of it."""
    return rollback.plan(rollback.Wanted(shore.project, patches=tuple(patch.pk for patch in patches))).steps[-1]


def told(step: rollback.Step) -> list[tuple[str, int, int, str, bool]]:
    return [(hunk.path, hunk.start, hunk.lines, hunk.patch_id, hunk.shared) for hunk in step.in_the_way]


def test_a_line_that_two_of_ten_patches_add_stays_as_long_as_one_of_them_does(shore: Shore) -> None:
    base, made = shore.head, []
    for number in range(10):
        changes: dict[int, str | None] = {number * 3 + 1: f"own {number}"}
        if number in (2, 7):
            changes[50] = "bounds check"
        made.append(shore.land_from(base, {"a.txt": edited(changes)}))
    step = step_of(shore, made[2])
    assert (step.outcome, told(step)) == ("in_the_way", [("a.txt", 50, 1, made[7].pk, True)])
    with pytest.raises(Refused, match=f"line 50, which patch {made[7].pk} changes in the same way") as problem:
        rollback.roll_back(made[2], "wrong", by=ADA)
    assert (problem.value.code, problem.value.parts["patches"]) == ("later_patch_depends", [made[7].pk])
    # Each of the others is taken back alone, and so is the later of the two: what it found there stays.
    assert {step_of(shore, made[number]).outcome for number in (0, 1, 3, 7, 9)} == {"alone"}
    later = step_of(shore, made[7])
    assert "bounds check" in shore.content("a.txt", later.tree)
    # Both of them: the later one first.
    both = step_of(shore, made[2], made[7])
    assert (both.outcome, both.after) == ("after_others", (made[7].pk,))
    assert "bounds check" not in shore.content("a.txt", both.tree)


def test_the_api_names_what_is_shared(shore: Shore) -> None:
    base = shore.head
    first = shore.land_from(base, {"a.txt": edited({50: "fixed"})})
    later = shore.land_from(base, {"a.txt": edited({50: "fixed", 10: "ten"})})
    api = Api(factories.make_key("approver", project=shore.project).text)
    chosen = {"project": shore.project.key, "patches": [first.pk]}
    (step,) = api.post("/patches/bulk/", {"verb": "rollback", "filter": chosen}).json()["steps"]
    assert step["in_the_way"] == [
        {"path": "a.txt", "start": 50, "lines": 1, "commit": later.commit_sha, "patch": later.pk, "shared": True}
    ]


def test_a_line_that_two_patches_take_away_does_not_come_back_by_one(shore: Shore) -> None:
    base = shore.head
    first = shore.land_from(base, {"a.txt": edited({50: None, 20: "twenty"})})
    later = shore.land_from(base, {"a.txt": edited({50: None, 80: "eighty"})})
    assert told(step_of(shore, first)) == [("a.txt", 50, 0, later.pk, True)]


def test_lines_are_found_wherever_they_are_by_now(shore: Shore) -> None:
    base = shore.head
    first = shore.land_from(base, {"a.txt": edited({50: "fixed"})})
    shore.land({"a.txt": "new\n" * 7 + shore.content("a.txt")})
    later = shore.land_from(base, {"a.txt": edited({50: "fixed", 90: "ninety"})})
    shore.land({"a.txt": shore.content("a.txt").replace("line 20\n", "")})
    assert told(step_of(shore, first)) == [("a.txt", 57, 1, later.pk, True)]


@pytest.mark.parametrize("kind", ["file", "removal", "move", "mode"])
def test_what_two_patches_do_to_a_file_as_a_whole(shore: Shore, kind: str) -> None:
    base = shore.head
    own: dict[str, dict[str, str | None]] = {
        "file": {"new.txt": "new\n"},
        "removal": {"b.txt": None},
        "move": {"b.txt": None, "c.txt": "b\n"},
        "mode": {},
    }
    modes = {"run.sh": 0o755} if kind == "mode" else {}
    first = shore.land_from(base, {**own[kind], "a.txt": edited({10: "ten"})}, modes=modes)
    later = shore.land_from(base, {**own[kind], "a.txt": edited({90: "ninety"})}, modes=modes)
    step = step_of(shore, first)
    paths = {"file": ["new.txt"], "removal": ["b.txt"], "move": ["b.txt", "c.txt"], "mode": ["run.sh"]}[kind]
    assert told(step) == [(path, 1, 0, later.pk, True) for path in paths]


def test_what_went_and_came_again_by_another_patch_is_that_ones(shore: Shore) -> None:
    first = shore.land({"a.txt": edited({50: "fixed"})})
    shore.land({"a.txt": TEXT})
    again = shore.land({"a.txt": edited({50: "fixed"})})
    assert told(step_of(shore, first)) == [("a.txt", 50, 1, again.pk, True)]


def test_what_went_and_came_back_by_a_reverse_is_whose_it_was(shore: Shore) -> None:
    first = shore.land({"a.txt": edited({50: "fixed"})})
    undo(shore, shore.land({"a.txt": TEXT}))
    assert step_of(shore, first).outcome == "alone"


def test_what_a_reverse_found_gone_does_not_come_back(shore: Shore) -> None:
    wrong = shore.land({"a.txt": edited({50: "wrong", 10: "ten"})})
    waiting, _is_new = rollback.roll_back(wrong, "wrong", by=ADA)
    mended = shore.land({"a.txt": edited({10: "ten", 90: "ninety"})})
    assert step_of(shore, mended).outcome == "alone"
    landed(shore, waiting)
    assert told(step_of(shore, mended)) == [("a.txt", 50, 0, waiting.pk, True)]


def test_a_patch_that_was_taken_back_holds_nothing_and_holds_it_again_when_it_came_back(shore: Shore) -> None:
    base = shore.head
    first = shore.land_from(base, {"a.txt": edited({50: "fixed"})})
    later = shore.land_from(base, {"a.txt": edited({50: "fixed", 90: "ninety"})})
    back = undo(shore, later)
    assert step_of(shore, first).outcome == "alone"
    again = undo(shore, back)
    assert told(step_of(shore, first)) == [("a.txt", 50, 1, again.pk, True)]


def test_lines_that_say_nothing_are_nobodys_but_where_nothing_else_is_said(shore: Shore) -> None:
    base = shore.head
    first = shore.land_from(base, {"a.txt": edited({50: "fixed\n"})})
    shore.land_from(base, {"a.txt": edited({90: "ninety\n"})})
    assert step_of(shore, first).outcome == "alone"


def test_a_reverse_that_waited_does_not_take_what_landed_meanwhile(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")], files={"a.txt": TEXT, "b.txt": "b\n"})

    def submitted(changes: Mapping[int, str | None]) -> Patch:
        checkout = {"url": str(house.project.mirror), "commit": house.first_commit}
        text = house.edit({"checkout": checkout}, {"a.txt": edited(changes)})
        return Patch.objects.submit(project=house.project, diff_text=text, base_commit=house.first_commit, by=ADA)[0]

    first = submitted({50: "fixed", 10: "ten"})
    house.drain()
    first.refresh_from_db()
    back, _is_new = rollback.roll_back(first, "wrong", by=ADA)
    Patch.objects.filter(pk=back.pk).update(target_branch="elsewhere")  # it waits
    later = submitted({50: "fixed", 90: "ninety"})
    house.drain()
    later.refresh_from_db()
    assert later.state == "committed"
    Patch.objects.filter(pk=back.pk).update(target_branch="main")
    Patch.objects.get(pk=back.pk).queue(by=ADA)
    house.drain()
    back.refresh_from_db()
    assert (back.state, back.last_error_code) == ("apply_failed", "later_patch_depends")
    assert later.pk in back.last_error_message
    assert "fixed" in house.file("a.txt")


# -- any ten ----------------------------------------------------------------------------------------------------------

Slots = tuple[str | None, ...]
State = dict[str, Slots]

NAMES = ("one.txt", "two.txt", "three.txt")
SLOTS = 6


def written(state: State) -> dict[str, str]:
    """The files: each slot is a line, or none, far from the others."""
    return {
        path: "".join(
            "".join(f"{path} {slot} {filler}\n" for filler in range(5)) + (f"{value}\n" if value else "")
            for slot, value in enumerate(slots)
        ).replace(f"{path} ", f"{path.split('/')[-1]} ")
        for path, slots in state.items()
    }


def merged(base: State, ours: State, theirs: State) -> State | None:
    """`ours` with the change from `base` to `theirs`; None when both changed the same otherwise."""
    found: State = {}
    for path in base | ours | theirs:
        before, here, there = base.get(path), ours.get(path), theirs.get(path)
        if here == there or there == before:
            result = here
        elif here == before:
            result = there
        elif before is None or here is None or there is None:
            return None
        else:
            slots = []
            for was, own, other in zip(before, here, there, strict=True):
                if own != other and was not in (own, other):
                    return None
                slots.append(other if own == was else own)
            result = tuple(slots)
        if result is not None:
            found[path] = result
    return found


def changed(dice: random.Random, state: State, earlier: list[tuple[str, int, str | None]]) -> State:
    """A change of some lines, some of them as others made it, or of a whole file."""
    found = dict(state)
    path = dice.choice(sorted(found))
    kind = dice.random()
    if kind < 0.08:
        target = f"moved/{path}" if "/" not in path else path.split("/")[-1]
        found[target] = found.pop(path)
    elif kind < 0.16 and len(found) > 1:
        del found[path]
    elif kind < 0.24 and (missing := [name for name in NAMES if name not in found]):
        found[missing[0]] = ("first",) + (None,) * (SLOTS - 1)
    for _time in range(dice.randint(1, 3)):
        path, slot, value = dice.choice(sorted(found)), dice.randrange(SLOTS), dice.choice(["x", "y", None])
        if earlier and dice.random() < 0.5:
            path, slot, value = dice.choice(earlier)
        if path in found:
            found[path] = (*found[path][:slot], value, *found[path][slot + 1 :])
            earlier.append((path, slot, value))
    return found


class Ten:
    """Up to ten patches of any bases that have landed, and the branch after each of them."""

    def __init__(self, shore: Shore, seed: int) -> None:
        dice = random.Random(seed)
        self.shore, self.patches = shore, list[Patch]()
        self.states: list[State] = [dict.fromkeys(NAMES, (None,) * SLOTS)]
        self.changes: list[tuple[State, State]] = []
        commits, earlier = [shore.by_hand(written(self.states[0]))], list[tuple[str, int, str | None]]()
        for _try in range(40):
            at = dice.randrange(max(0, len(commits) - 4), len(commits))
            base = self.states[at]
            made = changed(dice, base, earlier)
            after = merged(base, self.states[-1], made)
            if made == base or after is None or after == self.states[-1]:
                continue
            gone: dict[str, str | None] = dict.fromkeys(base.keys() - made.keys())
            try:
                self.patches.append(shore.land_from(commits[at], {**gone, **written(made)}))
            except git.DoesNotApply:
                continue
            commits.append(shore.head)
            self.states.append(after)
            self.changes.append((base, made))
            if len(self.patches) == 10:
                break

    def without(self, victim: int) -> State | None:
        """The branch as if that patch had never been; None where another one cannot be without it."""
        state: State | None = self.states[0]
        for number, (base, made) in enumerate(self.changes):
            if number != victim and state is not None:
                state = merged(base, state, made)
        return state

    def taken_back(self, victim: int) -> State | None:
        """What a merge makes of the branch that knows nothing but what the patch's commit changed."""
        return merged(self.states[victim + 1], self.states[-1], self.states[victim])


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_one_of_any_ten_leaves_the_other_nine_or_names_what_is_in_the_way(tmp_path: Path, seed: int) -> None:
    ten = Ten(Shore(tmp_path, {"README.md": "x\n"}), seed)
    shore = ten.shore
    assert len(ten.patches) == 10
    outcomes = set()
    for number, patch in enumerate(ten.patches):
        step = step_of(shore, patch)
        outcomes.add(step.outcome)
        wanted, merge = ten.without(number), ten.taken_back(number)
        if step.is_possible:
            if wanted is not None:
                assert contents(shore, step.tree) == {"README.md": "x\n", **written(wanted)}, (number, patch.pk)
        elif step.outcome == "in_the_way":
            assert step.in_the_way
            assert not any(hunk.shared for hunk in step.in_the_way) or wanted is None or merge != wanted, number
        else:
            assert step.outcome == "nothing_left"
    assert "alone" in outcomes


def contents(shore: Shore, tree: str) -> dict[str, str]:
    """Every file of a tree."""
    return {file.path: git.blob(shore.mirror, file.oid).decode() for file in git.files(shore.mirror, tree)}
