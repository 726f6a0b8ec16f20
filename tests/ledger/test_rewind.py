"""Rewind: a set of landed patches is taken back newest first, and everything else keeps its content."""

from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse

from ledger import git, rollback
from ledger.models import Patch
from pipeline.clock import db_now
from pipeline.events import Actor, Event
from pipeline.ids import new_id
from pipeline.invariants import check_all
from pipeline.refusals import InvalidField, Refused
from tests import factories
from tests.api.asking import Api
from tests.factories import in_state
from tests.flows.house import Deaths, Died, House, piece
from tests.ledger.landing import Shore, lines

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

ADA = Actor("user", "", "Ada")
PATCHES = 10


def text_of(numbers: range, without: int | None = None, *, size: int = 100) -> str:
    """The file after the patches `numbers`, but for one: number n wrote its name into line 10n+1 and below it."""
    found = []
    for line in range(size):
        number = line // 10
        is_changed = line % 10 == 0 and number in numbers and number != without
        found += [f"patch {number}", f"more of {number}"] if is_changed else [f"line {line}"]
    return "".join(f"{line}\n" for line in found)


@pytest.fixture
def shore(tmp_path: Path) -> Shore:
    """A branch with one file of 100 lines."""
    return Shore(tmp_path, {"a.txt": text_of(range(0)), "b.txt": "b\n"})


def interleaved(shore: Shore) -> list[Patch]:
    """Ten patches of two tools in turn, all in the same file, some also in files of their own."""
    made = []
    for number in range(PATCHES):
        files: dict[str, str | None] = {"a.txt": text_of(range(number + 1))}
        if number % 3 == 0:
            files[f"own/{number}.txt"] = f"{number}\n"
        made.append(shore.land(files))
    return made


@pytest.mark.parametrize("victim", [0, 4, 9])
def test_one_of_ten_interleaved_patches_leaves_the_other_nine_byte_for_byte(shore: Shore, victim: int) -> None:
    made = interleaved(shore)
    plan = rollback.plan(rollback.Wanted(shore.project, patches=(made[victim].pk,)))
    assert [step.outcome for step in plan.steps] == ["alone"]
    (made_reverse,) = rollback.carry_out(plan, "wrong", by=ADA)
    tree = git.apply(shore.mirror, made_reverse.base_commit, made_reverse.content.diff_text)
    assert shore.content("a.txt", tree) == text_of(range(PATCHES), without=victim)
    before = {change.path for change in git.changes(shore.mirror, git.tree_of(shore.mirror, shore.head), tree)}
    assert before == {"a.txt"} | ({f"own/{victim}.txt"} if victim % 3 == 0 else set())


def test_the_hunks_that_are_in_the_way_of_one_of_ten_are_named(shore: Shore) -> None:
    made = interleaved(shore)
    later = shore.land({"a.txt": shore.content("a.txt").replace("more of 4\n", "better than 4\n")})
    plan = rollback.plan(rollback.Wanted(shore.project, patches=(made[4].pk,)))
    (step,) = plan.steps
    assert step.outcome == "in_the_way"
    assert [(hunk.path, hunk.start, hunk.lines, hunk.patch_id) for hunk in step.in_the_way] == [
        ("a.txt", 46, 1, later.pk)
    ]
    with pytest.raises(Refused) as problem:
        rollback.carry_out(plan, "wrong", by=ADA)
    assert (problem.value.code, problem.value.parts["patches"]) == ("later_patch_depends", [later.pk])
    assert rollback.carry_out(plan, "wrong", by=ADA, partial=True) == []
    assert not Patch.objects.exclude(rollback_of=None).exists()


def test_a_plan_takes_the_newest_first_and_says_which_needs_another(shore: Shore) -> None:
    first = shore.land({"b.txt": "b\nfirst\n"})
    shore.land({"a.txt": text_of(range(1))})
    second = shore.land({"b.txt": "b\nfirst and second\n"})
    plan = rollback.plan(rollback.Wanted(shore.project, patches=(first.pk, second.pk)))
    assert [(step.patch.pk, step.outcome, step.after) for step in plan.steps] == [
        (second.pk, "alone", ()),
        (first.pk, "after_others", (second.pk,)),
    ]
    newest, older = rollback.carry_out(plan, "both wrong", by=ADA)
    assert [patch.pk for patch in older.depends_on.all()] == [newest.pk]
    tree = git.apply(shore.mirror, older.base_commit, older.content.diff_text)
    assert shore.content("b.txt", tree) == "b\n"
    assert shore.content("a.txt", tree) == text_of(range(1))
    again = rollback.plan(rollback.Wanted(shore.project, patches=(first.pk, second.pk)))
    assert [(step.outcome, step.reverse) for step in again.steps] == [("under_way", newest), ("under_way", older)]


def test_a_dry_run_changes_nothing(shore: Shore) -> None:
    patch = shore.land({"b.txt": "other\n"})
    head, told = shore.head, Event.objects.count()
    rollback.plan(rollback.Wanted(shore.project, patches=(patch.pk,)))
    assert (shore.head, Event.objects.count(), Patch.objects.count()) == (head, told, 1)


def test_who_dies_in_a_rewind_leaves_nothing_of_it_and_a_new_plan_does_it(
    shore: Shore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = shore.land({"b.txt": "b\nfirst\n"}), shore.land({"b.txt": "b\nfirst and second\n"})
    wanted = rollback.Wanted(shore.project, patches=(first.pk, second.pk))
    told = Event.objects.count()
    Deaths(monkeypatch).arm("rewind.reversed")
    with pytest.raises(Died):
        rollback.carry_out(rollback.plan(wanted), "wrong", by=ADA)
    assert not Patch.objects.exclude(rollback_of=None).exists()
    assert Event.objects.count() == told
    assert len(rollback.carry_out(rollback.plan(wanted), "wrong", by=ADA)) == 2


def test_when_one_of_a_set_is_refused_after_its_plan_nothing_is_done(shore: Shore) -> None:
    first, second = shore.land({"b.txt": "b\nfirst\n"}), shore.land({"c.txt": "second\n"})
    plan = rollback.plan(rollback.Wanted(shore.project, patches=(first.pk, second.pk)))
    undo(shore, first)
    with pytest.raises(Refused) as problem:
        rollback.carry_out(plan, "wrong", by=ADA)
    assert problem.value.code == "invalid_move"
    assert not second.reversed_by.exists()


def test_while_the_reverse_of_a_newer_one_is_under_way_that_one_is_in_the_way_of_an_older_one(shore: Shore) -> None:
    first, second = shore.land({"b.txt": "b\nfirst\n"}), shore.land({"b.txt": "b\nfirst and second\n"})
    newest, _is_new = rollback.roll_back(second, "wrong", by=ADA)
    plan = rollback.plan(rollback.Wanted(shore.project, patches=(first.pk, second.pk)))
    assert [(step.outcome, step.reverse) for step in plan.steps] == [("under_way", newest), ("in_the_way", None)]
    assert [hunk.patch_id for hunk in plan.steps[1].in_the_way] == [second.pk]


def test_a_set_goes_through_gates_one_after_the_other_until_all_of_it_is_taken_back(tmp_path: Path) -> None:
    house = House(tmp_path, [piece(key, conflict_group="g") for key in "abc"])
    for text in ("one", "one two", "one two three"):
        house.work(
            {"README.md": f"# {text}\n", "kept.txt": "kept\n"} if text == "one" else {"README.md": f"# {text}\n"}
        )
    _kept, *wrong = house.patches()
    plan = rollback.plan(rollback.Wanted(house.project, patches=tuple(patch.pk for patch in wrong)))
    reverses = rollback.carry_out(plan, "wrong turn", by=ADA)
    house.drain()
    assert [patch.state for patch in house.patches()] == ["committed", "rolled_back", "rolled_back"]
    assert (house.file("README.md"), house.file("kept.txt")) == ("# one", "kept")
    landed = [Patch.objects.get(pk=reverse_.pk).committed_at for reverse_ in reverses]
    assert landed == sorted(landed)
    assert [(result.number, result.violations) for result in check_all() if not result.holds] == []
    assert git.fsck(house.project.mirror) == []


def test_patches_are_chosen_by_worker_tool_model_run_and_time(shore: Shore) -> None:
    tool = factories.make_tool(model="big-1")
    workstream = factories.make_workstream(factories.make_phase(shore.project))
    worker = factories.make_worker(name="smith")
    step = factories.make_step(factories.make_run(workstream, started=True), start=True, tool=tool)
    theirs = shore.land({"b.txt": "1\n"}, attempt=step, worker_id=worker.pk, by=Actor("worker", worker.pk, "smith"))
    shore.land({"c.txt": "2\n"})

    def found(**fields: object) -> list[str]:
        return [patch.pk for patch in rollback.Wanted(shore.project, **fields).rows()]  # type: ignore[arg-type]

    for chosen in (
        {"worker": worker.pk},
        {"worker": "smith"},
        {"tool": tool.key},
        {"model": "big-1"},
        {"run": step.run_id},
        {"until": theirs.committed_at + timedelta(microseconds=1)},
    ):
        assert found(**chosen) == [theirs.pk], chosen
    assert len(found(since=theirs.committed_at)) == 2
    assert found(worker="nobody") == found(run=new_id()) == []
    with pytest.raises(InvalidField, match="say which patches"):
        found()
    with pytest.raises(InvalidField, match="no id of a run"):
        found(run="x")


def undo(shore: Shore, patch: Patch) -> Patch:
    """The reverse of a landed patch, landed."""
    reverse_, _is_new = rollback.roll_back(patch, "wrong", by=ADA)
    return landed(shore, reverse_)


def landed(shore: Shore, reverse_: Patch) -> Patch:
    """A reverse that has landed, on what is there by now."""
    parent = shore.head
    tree = git.rebase_tree(
        shore.mirror,
        reverse_.base_commit,
        git.apply(shore.mirror, reverse_.base_commit, reverse_.content.diff_text),
        git.tree_of(shore.mirror, parent),
    )
    at = reverse_.created_at
    commit = git.commit(shore.mirror, tree, parent, "Revert\n", author_name="A", author_email="a@example.org", at=at)
    git.move_branch(shore.mirror, "main", commit, parent)
    fields = {"tested_parent": parent, "tested_tree": tree, "committed_tree": tree, "committed_at": db_now()}
    in_state(reverse_, "committed", commit_sha=commit, **fields)
    original = reverse_.rollback_of
    original.refresh_from_db()
    original.reverse_landed(reverse_, by=ADA)
    reverse_.refresh_from_db()
    return reverse_


def test_a_rewind_to_a_time_brings_nothing_back_and_a_second_one_has_nothing_to_do(shore: Shore) -> None:
    before = git.tree_of(shore.mirror, shore.head)
    work = [shore.land({f"rw{number}.txt": "x\n"}) for number in range(4)]
    back = undo(shore, work[1])
    work.append(shore.land({"rw9.txt": "x\n"}))
    wanted = rollback.Wanted(shore.project, since=work[0].committed_at)
    plan = rollback.plan(wanted)
    assert [step.patch.pk for step in plan.steps] == [work[number].pk for number in (4, 3, 2, 0)]
    assert [(one.patch.pk, one.code, one.because_of) for one in plan.left_out] == [
        (back.pk, "undone_already", work[1].pk)
    ]
    for reverse_ in rollback.carry_out(plan, "wrong", by=ADA):
        landed(shore, reverse_)
    assert git.tree_of(shore.mirror, shore.head) == before
    again = rollback.plan(wanted)
    assert (again.steps, len(again.left_out)) == ((), 5)
    assert {one.code for one in again.left_out} == {"undone_already"}


def test_what_undoes_a_patch_is_taken_back_only_by_its_name(shore: Shore) -> None:
    old = shore.land({"old.txt": "x\n"})
    back = undo(shore, old)
    plan = rollback.plan(rollback.Wanted(shore.project, since=back.committed_at))
    assert plan.steps == ()
    assert [(one.patch.pk, one.code, one.because_of) for one in plan.left_out] == [(back.pk, "brings_back", old.pk)]
    assert "roll this one back by itself" in plan.document()["left_out"][0]["reason"]
    named = rollback.plan(rollback.Wanted(shore.project, patches=(back.pk,)))
    assert ([step.patch.pk for step in named.steps], named.left_out) == ([back.pk], ())
    both = rollback.plan(rollback.Wanted(shore.project, patches=(back.pk, old.pk)))
    assert (both.steps, [one.code for one in both.left_out]) == ((), ["undone_already"])
    gone = rollback.plan(rollback.Wanted(shore.project, patches=(old.pk,)))
    assert (gone.steps, [(one.patch.pk, one.code) for one in gone.left_out]) == ((), [(old.pk, "not_landed")])
    assert "rolled back" in gone.left_out[0].words


def test_a_patch_that_came_back_is_taken_back_by_what_brought_it(shore: Shore) -> None:
    smith = Actor("user", "", "smith")
    before = git.tree_of(shore.mirror, shore.head)
    old = shore.land({"old.txt": "x\n"}, by=smith)
    again = undo(shore, back := undo(shore, old))
    for chosen in ({"since": old.committed_at}, {"worker": "smith"}, {"patches": (old.pk,)}, {"patches": (again.pk,)}):
        plan = rollback.plan(rollback.Wanted(shore.project, **chosen))  # type: ignore[arg-type]
        assert ([step.patch.pk for step in plan.steps], plan.left_out) == ([again.pk], ()), chosen
        assert plan.steps[0].tree == before
    plan = rollback.plan(rollback.Wanted(shore.project, since=back.committed_at))
    assert (plan.steps, [one.patch.pk for one in plan.left_out]) == ((), [again.pk])


def test_what_a_plan_leaves_out_is_told_by_the_api_the_command_and_the_page(shore: Shore, client: Client) -> None:
    back = undo(shore, shore.land({"b.txt": "other\n"}))
    since = back.committed_at.isoformat()
    api = Api(factories.make_key("approver", project=shore.project).text)
    told = api.post("/patches/bulk/", {"verb": "rollback", "filter": {"project": shore.project.key, "since": since}})
    assert [one["code"] for one in told.json()["left_out"]] == ["brings_back"]
    out = StringIO()
    call_command("rewind", project=shore.project.key, since=since, stdout=out)
    assert f"{back.pk} {back.commit_sha[:12]}" in out.getvalue()
    assert "left out: it undoes patch" in out.getvalue()
    user = factories.make_user()
    factories.make_membership(user, shore.project, "approver")
    client.force_login(user)
    page = client.get(reverse("ledger:rewind"), {"project": shore.project.key, "since": since})
    assert "1 patch is left out" in page.text
    assert reverse("ledger:patch", args=[back.pk]) in page.text


def test_more_than_the_limit_is_asked_to_be_narrowed(shore: Shore, settings: Any) -> None:
    settings.SIGNALBOX_REWIND_LIMIT = 1
    made = [shore.land({"b.txt": text}) for text in ("1\n", "2\n")]
    with pytest.raises(InvalidField, match="more than 1 patches"):
        rollback.plan(rollback.Wanted(shore.project, patches=tuple(patch.pk for patch in made)))


# -- by the API, the command and the page --------------------------------------------------------------------------


def test_the_api_plans_unless_told_otherwise_and_then_does_it(shore: Shore) -> None:
    patch = shore.land({"b.txt": "other\n"})
    api = Api(factories.make_key("approver", project=shore.project).text)
    body = {"verb": "rollback", "filter": {"project": shore.project.key, "patches": [patch.pk]}}
    plan = api.post("/patches/bulk/", body)
    assert plan.status_code == 200, plan.text
    assert plan.json()["dry_run"] is True
    assert [step["outcome"] for step in plan.json()["steps"]] == ["alone"]
    refused = api.post("/patches/bulk/", {**body, "dry_run": False})
    assert (refused.status_code, refused.json()["code"]) == (422, "reason_required")
    done = api.post("/patches/bulk/", {**body, "dry_run": False, "reason": "wrong"})
    assert done.json()["reverses"] == [patch.reversed_by.get().pk]
    nothing = api.post("/patches/bulk/", {"verb": "rollback", "filter": {"project": shore.project.key}})
    assert (nothing.status_code, nothing.json()["code"]) == (422, "invalid_field")


def test_the_api_takes_one_patch_back_for_an_approver_of_its_project_only(shore: Shore) -> None:
    patch = shore.land({"b.txt": "other\n"})
    address = f"/patches/{patch.pk}/rollback/"
    operator = Api(factories.make_key("operator", project=shore.project).text)
    assert operator.post(address, {"reason": "wrong"}).status_code == 403
    foreign = {"verb": "rollback", "filter": {"project": shore.project.key, "patches": [patch.pk]}}
    assert operator.post("/patches/bulk/", foreign).status_code == 403
    approver = Api(factories.make_key("approver", project=shore.project).text)
    made = approver.post(address, {"reason": "wrong"})
    assert (made.status_code, made.json()["rollback_of"]) == (201, patch.pk)
    assert made["Location"].endswith(f"/patches/{made.json()['id']}/")
    again = approver.post(address, {"reason": "wrong"})
    assert (again.status_code, again.json()["id"]) == (200, made.json()["id"])


def test_the_command_shows_the_plan_and_does_it_when_told(shore: Shore) -> None:
    patch = shore.land({"b.txt": "other\n"}, by=Actor("user", "", "smith"))
    out = StringIO()
    call_command("rewind", project=shore.project.key, agent="smith", stdout=out)
    assert f"{patch.pk} {patch.commit_sha[:12]} A change" in out.getvalue()
    assert "Nothing was changed" in out.getvalue()
    assert not patch.reversed_by.exists()
    with pytest.raises(CommandError, match="A reason is required"):
        call_command("rewind", project=shore.project.key, agent="smith", yes=True, stdout=out)
    with pytest.raises(CommandError, match="no time such as"):
        call_command("rewind", project=shore.project.key, since="yesterday", stdout=out)
    call_command("rewind", project=shore.project.key, agent="smith", yes=True, reason="wrong", stdout=out)
    assert f"{patch.pk} -> {patch.reversed_by.get().pk}" in out.getvalue()


def test_the_page_shows_the_plan_and_does_it_with_a_reason(shore: Shore, client: Client) -> None:
    patch = shore.land({"b.txt": "other\n"}, by=Actor("user", "", "smith"))
    user = factories.make_user()
    factories.make_membership(user, shore.project, "approver")
    client.force_login(user)
    asked = {"project": shore.project.key, "worker": "smith"}
    address = reverse("ledger:rewind")
    page = client.get(address, asked)
    assert "can be taken back" in page.text
    assert reverse("ledger:patch", args=[patch.pk]) in page.text
    bad = client.get(address, {**asked, "since": "soon"})
    assert (bad.status_code, "no time such as" in bad.text) == (200, True)
    done = client.post(address, {**asked, "reason": "wrong"})
    assert done.status_code == 302
    assert patch.reversed_by.get().metadata["rollback"]["asked_by"] == user.pk
    one = client.post(reverse("ledger:rollback", args=[patch.pk]), {"reason": "wrong"})
    assert one["Location"] == reverse("ledger:patch", args=[patch.reversed_by.get().pk])


def test_the_page_is_for_approvers(shore: Shore, client: Client) -> None:
    patch = shore.land({"b.txt": "other\n"})
    user = factories.make_user()
    factories.make_membership(user, shore.project, "operator")
    client.force_login(user)
    asked = {"project": shore.project.key, "worker": "smith", "reason": "wrong"}
    assert client.get(reverse("ledger:rewind"), asked).status_code == 403
    assert client.post(reverse("ledger:rewind"), asked).status_code == 403
    page = reverse("ledger:rollback", args=[patch.pk])
    assert client.post(page, {"reason": "wrong"}).status_code == 403
    assert reverse("ledger:rollback", args=[patch.pk]) not in client.get(reverse("ledger:patch", args=[patch.pk])).text


def test_a_file_that_was_removed_since_leaves_nothing_to_take_back(shore: Shore) -> None:
    patch = shore.land({"new.txt": lines(1, 2, 3)})
    shore.land({"new.txt": None})
    plan = rollback.plan(rollback.Wanted(shore.project, patches=(patch.pk,)))
    assert [step.outcome for step in plan.steps] == ["nothing_left"]
    assert plan.document()["possible"] == 0
