"""Which patch is which: by its bytes and base, by the change whatever its base, by what it replaces."""

from pathlib import Path
from typing import Any

import pytest

from ledger import git, validation
from ledger.models import Patch
from pipeline.events import Event
from pipeline.models import Project
from tests import factories
from tests.factories import BY, run_git
from tests.flows.house import House, piece
from tests.ledger.hostile.texts import added, changed

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

LINES = "".join(f"{number}\n" for number in range(1, 21))
EDIT = "@@ -9,3 +9,3 @@\n 9\n-10\n+ten\n 11\n"


@pytest.fixture
def upstream(tmp_path: Path) -> Path:
    """A repository with one file of 20 lines."""
    return factories.make_repository(tmp_path / "upstream", {"x": LINES})


@pytest.fixture
def project(upstream: Path) -> Project:
    """A project with a mirror of it."""
    project = factories.make_project(repository=upstream)
    factories.make_merge_queue(project)
    return project


def submit(project: Project, text: str, **fields: Any) -> tuple[Patch, bool]:
    """Enter a change on the head of the branch."""
    return Patch.objects.submit(
        project=project, diff_text=text, base_commit=factories.head_of(project), by=BY, **fields
    )


def judged(project: Project, text: str) -> Patch:
    """A change, entered and judged."""
    patch, _is_new = submit(project, text)
    validation.validate(patch.pk)
    patch.refresh_from_db()
    return patch


def test_the_same_bytes_on_the_same_base_are_answered_with_the_first_patch(project: Project) -> None:
    first, is_new = submit(project, added())
    again, again_is_new = submit(project, added(), summary="other words")
    assert (is_new, again_is_new, again.pk) == (True, False, first.pk)
    assert Event.objects.filter(kind="patch.resubmitted", subject_id=first.pk).count() == 1


def test_a_patch_is_known_by_its_base_its_tree_and_gits_own_name_for_the_change(project: Project) -> None:
    patch = judged(project, changed("x", EDIT, index=""))
    base = factories.head_of(project)
    assert (patch.base_commit, patch.base_tree) == (base, git.tree_of(project.mirror, base))
    assert patch.result_tree == git.apply(project.mirror, base, patch.content.diff_text)
    assert len(patch.content.patch_id_git) == 40
    told = Event.objects.filter(kind="patch.validated", subject_id=patch.pk).get()
    assert told.after["result_tree"] == patch.result_tree


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (EDIT, EDIT.replace("@@ -9,3 +9,3 @@", "@@ -12,3 +14,3 @@ def f():"), True),
        (EDIT, EDIT.replace("-10\n+ten", "-10\n+  ten "), True),
        (EDIT, EDIT.replace("+ten", "+zehn"), False),
        (EDIT, EDIT.replace(" 9", " nine"), False),
    ],
)
def test_gits_name_of_a_change_leaves_out_line_numbers_and_blanks(one: str, other: str, same: bool) -> None:
    names = {git.patch_id(changed("x", body, index="")) for body in (one, other)}
    assert len(names) == (1 if same else 2)


def test_gits_name_does_not_depend_on_the_order_of_the_files() -> None:
    one, other = added("a"), added("b")
    assert git.patch_id(one + other) == git.patch_id(other + one) != git.patch_id(one)


def test_the_same_change_on_another_base_is_noted_and_not_refused(project: Project, upstream: Path) -> None:
    first = judged(project, changed("x", EDIT, index=""))
    (upstream / "y").write_text("moved on\n")
    run_git(upstream, "add", "--all")
    run_git(upstream, "commit", "--quiet", "--message=Moved on")
    git.fetch(project.mirror)
    second = judged(project, changed("x", EDIT, index=""))
    assert second.base_commit != first.base_commit
    assert second.state == "validated"
    note = {"rule": "same_change", "severity": "note", "value": [first.pk]}
    same, seen = second.findings
    assert {name: same[name] for name in note} == note
    assert (seen["code"], seen["severity"], seen["patch"]) == ("oscillation_identical", "note", first.pk)


def test_other_projects_are_not_asked_for_the_same_change(project: Project, upstream: Path) -> None:
    judged(factories.make_project(repository=upstream), changed("x", EDIT, index=""))
    assert judged(project, changed("x", EDIT, index="")).findings == []


def test_a_patch_judged_again_never_names_itself(project: Project) -> None:
    patch = judged(project, changed("x", EDIT, index=""))
    assert validation.judge(patch)["findings"] == []


@pytest.mark.django_db(transaction=True)
def test_a_new_revision_of_a_tasks_patch_replaces_the_one_that_failed_and_goes_on_with_its_chain(
    tmp_path: Path,
) -> None:
    house = House(tmp_path, [piece("a")])
    failed = house.work({"a.txt": "BROKEN\n"})
    house.drain()
    house.work({"a.txt": "good\n"})
    house.drain()
    first, second = house.patches("a")
    assert first.pk == failed.pk
    assert (second.replaces_id, second.chain_id) == (first.pk, first.chain_id)
    assert [patch.pk for patch in Patch.objects.chain(first.chain_id)] == [first.pk, second.pk]
    first.refresh_from_db()
    assert (first.state, second.state) == ("dropped", "committed")
