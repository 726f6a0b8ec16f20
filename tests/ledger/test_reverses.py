"""What a reverse is written as: what landed can be taken back, or the plan says why not, and then nothing is done."""

from io import StringIO
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.urls import reverse as url

from ledger import diff, git, rollback, validation
from ledger.models import Patch
from pipeline.events import Actor
from pipeline.refusals import Refused
from tests import factories
from tests.api.asking import Api
from tests.factories import make_policy, run_git
from tests.ledger.landing import Shore, lines

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

ADA = Actor("user", "", "Ada")

FILES = {
    "big.txt": "".join(f"line {number} of many\n" for number in range(30_000)).encode(),
    "latin.txt": "caf\xe9\n".encode("latin-1") * 20,
    "picture.png": b"\x89PNG\r\n\x1a\n\0" + bytes(range(256)) * 4,
    "long.js": b"x" * (diff.MAX_LINE_BYTES + 1) + b"\n",
    "zero.txt": b"text\n" * 2_000 + b"\0\n",
    "empty.txt": b"",
}


@pytest.fixture
def shore(tmp_path: Path) -> Shore:
    """A branch with files of all kinds."""
    shore = Shore(tmp_path, {"a.txt": lines(*range(1, 41))})
    for name, content in FILES.items():
        (shore.clone / name).write_bytes(content)
    (shore.clone / "link").symlink_to("a.txt")
    run_git(shore.clone, "add", "--all")
    run_git(shore.clone, "commit", "--quiet", "--message=By hand")
    run_git(shore.clone, "push", "--quiet", "origin", "HEAD:main")
    return shore


def moved(shore: Shore, old: str, new: str) -> Patch:
    """A landed patch that moves a file, in a few bytes."""
    shore.diff({})
    (shore.clone / new).parent.mkdir(parents=True, exist_ok=True)
    run_git(shore.clone, "mv", old, new)
    return shore.land_text(run_git(shore.clone, "diff", "--cached", "-M", "--full-index", "--binary") + "\n")


def copied(shore: Shore, old: str, new: str) -> Patch:
    """A landed patch that copies a file, in a few bytes."""
    text = f"diff --git a/{old} b/{new}\nsimilarity index 100%\ncopy from {old}\ncopy to {new}\n"
    return shore.land_text(text)


def plan_of(shore: Shore, *patches: Patch) -> rollback.Plan:
    return rollback.plan(rollback.Wanted(shore.project, patches=tuple(patch.pk for patch in patches)))


def judged(reverse: Patch) -> list[str]:
    """The codes of what is wrong with a reverse, which has to be as its plan says."""
    found = validation.judge(Patch.objects.get(pk=reverse.pk))
    return [error["code"] for error in found["validation_errors"]]


def made(reverse: Patch) -> str:
    """The tree that a reverse makes of its base."""
    return git.apply(reverse.project.mirror, reverse.base_commit, reverse.content.diff_text)


@pytest.mark.parametrize("name", FILES)
def test_the_reverse_of_a_move_is_a_move(shore: Shore, name: str) -> None:
    before = git.tree_of(shore.mirror, shore.head)
    patch = moved(shore, name, f"elsewhere/{name}")
    assert [(step.outcome, step.objections) for step in plan_of(shore, patch).steps] == [("alone", ())]
    reverse, _is_new = rollback.roll_back(patch, "wrong", by=ADA)
    assert reverse.content.byte_size < 300
    assert f"rename to {name}\n" in reverse.content.diff_text
    assert (made(reverse), judged(reverse)) == (before, [])


def test_the_reverse_of_a_move_with_an_edit_is_one_as_well(shore: Shore) -> None:
    before = git.tree_of(shore.mirror, shore.head)
    patch = shore.land({"a.txt": None, "b.txt": lines(*range(1, 41)).replace("line 5\n", "five\n")})
    reverse, _is_new = rollback.roll_back(patch, "wrong", by=ADA)
    assert (reverse.line_insertions, reverse.line_deletions) == (1, 1)
    assert (made(reverse), judged(reverse)) == (before, [])


def test_a_move_is_taken_back_by_name_whatever_landed_beside_it_since(shore: Shore) -> None:
    patch = moved(shore, "big.txt", "other.txt")
    shore.land({"a.txt": lines(*range(1, 30))})
    reverse, _is_new = rollback.roll_back(patch, "wrong", by=ADA)
    assert (reverse.content.byte_size < 300, judged(reverse)) == (True, [])


@pytest.mark.parametrize("name", FILES)
def test_a_copy_is_taken_back_whatever_it_is_of(shore: Shore, name: str) -> None:
    before = git.tree_of(shore.mirror, shore.head)
    patch = copied(shore, name, f"elsewhere/{name}")
    assert [(step.outcome, step.objections) for step in plan_of(shore, patch).steps] == [("alone", ())]
    reverse, _is_new = rollback.roll_back(patch, "wrong", by=ADA)
    assert (made(reverse), judged(reverse)) == (before, [])


def test_a_moved_link_comes_back_with_what_it_leads_to(shore: Shore) -> None:
    make_policy(project=shore.project, constraints={"forbid_symlinks": False})
    before = git.tree_of(shore.mirror, shore.head)
    shore.diff({})
    run_git(shore.clone, "mv", "link", "other")
    run_git(shore.clone, "mv", "latin.txt", "moved.txt")
    patch = shore.land_text(
        run_git(shore.clone, "diff", "--cached", "--no-renames", "--full-index", "--", "link", "other") + "\n"
        + run_git(shore.clone, "diff", "--cached", "-M", "--full-index", "--", "latin.txt", "moved.txt") + "\n"
    )  # fmt: skip
    reverse, _is_new = rollback.roll_back(patch, "wrong", by=ADA)
    assert (made(reverse), judged(reverse)) == (before, [])


def test_bounds_on_how_much_may_change_are_not_for_what_undoes_a_patch_but_bans_are(shore: Shore) -> None:
    much, banned = copied(shore, "big.txt", "copy.txt"), copied(shore, "empty.txt", "banned/copy.txt")
    bounds = {"max_lines_changed": 100, "max_files_changed": 1, "max_lines_by_path": {"**": 10, "banned/**": 0}}
    make_policy(project=shore.project, constraints=bounds)
    told = [(step.outcome, [one.code for one in step.objections]) for step in plan_of(shore, much, banned).steps]
    assert told == [("alone", []), ("alone", [])]
    reverse, _is_new = rollback.roll_back(much, "wrong", by=ADA)
    assert judged(reverse) == []
    edit = shore.land({"banned/more.txt": "more\n"})
    assert [one.code for one in plan_of(shore, edit).steps[0].objections] == ["max_lines_by_path"]


def test_what_the_policy_has_against_a_reverse_is_told_by_its_plan(shore: Shore, client: Client) -> None:
    patch = shore.land({"a.txt": None})
    make_policy(project=shore.project, constraints={"forbid_touching_paths": ["a.txt"]})
    (step,) = plan_of(shore, patch).document()["steps"]
    assert (step["outcome"], step["refusal"]) == ("alone", None)
    assert [(one["code"], one["path"]) for one in step["objections"]] == [("forbid_touching_paths", "a.txt")]
    reverse, _is_new = rollback.roll_back(patch, "wrong", by=ADA)
    assert judged(reverse) == ["forbid_touching_paths"]


# -- what cannot be taken back ----------------------------------------------------------------------------------------


@pytest.fixture
def too_large(shore: Shore, monkeypatch: pytest.MonkeyPatch) -> list[Patch]:
    """A landed patch whose reverse is larger than any may be, and two edits after it."""
    monkeypatch.setattr(diff, "REVERSED", diff.Bounds(changed_lines=29_999))
    first = copied(shore, "big.txt", "copy.txt")
    edited = lines(*range(1, 41)).replace("line 5\n", "five\n")
    second = shore.land({"a.txt": edited})
    return [first, second, shore.land({"a.txt": edited.replace("line 25\n", "twenty-five\n")})]


def test_a_plan_says_what_cannot_be_taken_back_and_then_nothing_is_done(shore: Shore, too_large: list[Patch]) -> None:
    api = Api(factories.make_key("approver", project=shore.project).text)
    chosen = {"project": shore.project.key, "patches": [patch.pk for patch in too_large]}
    plan = api.post("/patches/bulk/", {"verb": "rollback", "filter": chosen}).json()
    assert [step["outcome"] for step in plan["steps"]] == ["alone", "alone", "refused"]
    assert (plan["possible"], plan["steps"][2]["refusal"]["code"]) == (2, "patch_too_large")
    body = {"verb": "rollback", "filter": chosen, "dry_run": False, "reason": "wrong"}
    refused = api.post("/patches/bulk/", body)
    assert (refused.status_code, refused.json()["code"]) == (413, "patch_too_large")
    assert "29999 changed lines" in refused.json()["detail"]
    assert not Patch.objects.exclude(rollback_of=None).exists()
    one = api.post(f"/patches/{too_large[0].pk}/rollback/", {"reason": "wrong"})
    assert (one.status_code, one.json()["code"]) == (413, "patch_too_large")
    partly = api.post("/patches/bulk/", {**body, "partial": True})
    assert (partly.status_code, len(partly.json()["reverses"])) == (200, 2)


def test_command_and_page_say_so_too(shore: Shore, too_large: list[Patch], client: Client) -> None:
    out = StringIO()
    asked = {"project": shore.project.key, "since": "2020-01-01T00:00", "stdout": out}
    call_command("rewind", **asked)
    assert "its reverse would be refused" in out.getvalue()
    assert "More than 29999 changed lines" in out.getvalue()
    with pytest.raises(CommandError, match="More than 29999 changed lines"):
        call_command("rewind", **asked, yes=True, reason="wrong")
    assert not Patch.objects.exclude(rollback_of=None).exists()
    user = factories.make_user()
    factories.make_membership(user, shore.project, "approver")
    client.force_login(user)
    page = client.get(url("ledger:rewind"), {"project": shore.project.key, "since": "2020-01-01T00:00"})
    assert "More than 29999 changed lines" in page.text
    assert "Leave out the one that cannot be taken back" in page.text


def test_what_the_judge_lets_nobody_pass_is_refused_before_it_is_made(shore: Shore) -> None:
    make_policy(project=shore.project, constraints={"forbid_symlinks": False})
    patch = shore.land({"link": None})
    shore.land({"a.txt": None})
    (step,) = plan_of(shore, patch).steps
    assert step.outcome == "refused"
    with pytest.raises(Refused, match=r"leads to a\.txt, which is not there") as problem:
        rollback.roll_back(patch, "wrong", by=ADA)
    assert problem.value.code == "symlink_target"
    assert not patch.reversed_by.exists()
