"""Oscillation: a change that goes back and forth is seen by its lines, and set aside with the evidence."""

from pathlib import Path

import pytest

from ledger import validation
from ledger.models import Patch
from ledger.oscillation import Earlier, hits, judge
from ledger.regions import Region, follow, regions_of
from pipeline.clock import db_now
from pipeline.fold import fold
from pipeline.refusals import InvalidField
from tests import factories
from tests.factories import BY
from tests.ledger.landing import Shore


def change(removed: str, added: str, *, at: int = 5, path: str = "a.py") -> str:
    """A diff that replaces lines between two lines of context; the lines are the words of the texts."""
    old, new = removed.split(), added.split()
    body = [" before", *(f"-{line}" for line in old), *(f"+{line}" for line in new), " after"]
    head = f"@@ -{at},{len(old) + 2} +{at},{len(new) + 2} @@"
    return "\n".join([f"diff --git a/{path} b/{path}", f"--- a/{path}", f"+++ b/{path}", head, *body]) + "\n"


def kinds(text: str, *earlier: str) -> list[tuple[str, str]]:
    """(kind, place in the list) of each hit."""
    rows = [Earlier(str(number), diff) for number, diff in enumerate(earlier)]
    return [(hit.kind, hit.patch_id) for hit in hits(text, rows)]


def test_the_same_lines_are_the_same_change_wherever_they_stand() -> None:
    assert kinds(change("a", "b", at=90), change("a", "b")) == [("identical", "0")]


def test_a_change_that_undoes_another_exactly_is_its_inverse() -> None:
    assert kinds(change("b", "a"), change("a", "b")) == [("inverse", "0")]


def test_a_region_that_comes_back_over_a_third_content_is_a_return_to_where_it_was_left() -> None:
    found = kinds(change("c", "a") + change("x", "y", path="b.py"), change("a", "b"), change("b", "c"))
    assert found == [("returning", "0")]


def test_a_few_lines_that_come_back_from_something_else_are_chance_and_more_are_not() -> None:
    assert kinds(change("q", "}"), change("}", "r")) == []
    assert kinds(change("q", "one two three"), change("one two three", "r")) == [("returning", "0")]


def test_the_same_lines_in_another_file_are_another_matter() -> None:
    assert kinds(change("b", "a", path="b.py"), change("a", "b")) == []


def test_unlike_changes_of_one_file_are_no_hits() -> None:
    assert kinds(change("b", "c"), change("a", "b"), change("d", "e", at=50)) == []


def test_a_file_that_comes_and_goes_is_seen() -> None:
    new = "diff --git a/n b/n\nnew file mode 100644\n--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+text\n"
    gone = "diff --git a/n b/n\ndeleted file mode 100644\n--- a/n\n+++ /dev/null\n@@ -1 +0,0 @@\n-text\n"
    assert kinds(gone, new) == [("inverse", "0")]
    assert kinds(new, new, gone) == [("identical", "0"), ("inverse", "1")]


def test_going_back_and_forth_reaches_the_threshold_with_every_patch_named() -> None:
    forth, back = change("a", "b"), change("b", "a")
    rows = [Earlier("1", forth), Earlier("2", back), Earlier("3", forth)]
    assert judge(back, rows[:2], threshold=3).reason == ""
    swing = judge(back, rows, threshold=3)
    assert [hit.kind for hit in swing.hits] == ["inverse", "identical", "inverse"]
    assert "patches 1, 2, 3" in swing.reason
    assert swing.hits[0].document()["regions"] == [{"path": "a.py", "line": 6}]


def test_submitting_it_again_by_other_attempts_counts() -> None:
    rows = [Earlier("1", change("a", "b"), resubmissions=1)]
    assert len(hits(change("a", "b"), rows, resubmitted=("2", 1))) == 3


def test_what_a_person_has_released_is_not_set_aside_again() -> None:
    rows = [Earlier(str(number), change("a", "b")) for number in range(3)]
    swing = judge(change("a", "b"), rows, threshold=3, is_released=True)
    assert (len(swing.hits), swing.reason) == (3, "")


def test_regions_are_the_changed_lines_with_their_places_on_both_sides() -> None:
    text = (
        'diff --git "a/\\303\\244.txt" "b/\\303\\244.txt"\nindex 1..2 100644\n--- "a/\\303\\244.txt"\n'
        '+++ "b/\\303\\244.txt"\n@@ -2,4 +2,4 @@\n two\n-three\n+drei\n four\n-five\n\\ No newline at end of file\n'
        "+funf\n\\ No newline at end of file\n"
        "diff --git a/run b/run\nold mode 100644\nnew mode 100755\n"
        "diff --git a/empty b/empty\nnew file mode 100644\nindex 0..1\n"
    )
    umlaut, mode, empty = regions_of(text)
    assert umlaut.path == "ä.txt"
    assert umlaut.regions == (Region(3, ("three",), 3, ("drei",)), Region(5, ("five",), 5, ("funf",)))
    assert (mode.path, mode.regions, mode.facts) == ("run", (), ("100644", "100755"))
    assert (empty.path, empty.facts) == ("empty", ("", "100644"))


@pytest.mark.parametrize(
    ("change_", "span", "touches"),
    [
        (Region(2, (), 2, ("x", "y")), (12, 13), False),  # above: it moves down
        (Region(3, ("x",), 3, ()), (9, 10), False),
        (Region(20, ("x",), 20, ()), (10, 11), False),  # below: nothing
        (Region(10, ("x",), 10, ("y", "z")), (10, 12), True),
        (Region(11, (), 11, ("y",)), (10, 12), True),  # borders on it
        (Region(8, ("x", "x"), 8, ()), (8, 9), True),
    ],
)
def test_lines_are_followed_through_what_changes_around_them(
    change_: Region, span: tuple[int, int], touches: bool
) -> None:
    moved, touching = follow([(10, 11)], [change_])
    assert (moved, bool(touching)) == ([span], touches)


@pytest.mark.django_db(transaction=True)
def test_a_change_that_goes_back_and_forth_in_its_workstream_is_quarantined_with_the_hits(
    tmp_path: Path, nudges: list[object]
) -> None:
    shore = Shore(tmp_path, {"a.py": "before\none\nafter\n"})
    workstream = factories.make_workstream(
        factories.make_phase(shore.project), tasks=[factories.task_spec(kind="code_edit")]
    )
    made = []
    for text in ("two", "one", "two"):
        patch = shore.land({"a.py": f"before\n{text}\nafter\n"})
        Patch.objects.filter(pk=patch.pk).update(workstream=workstream)
        made.append(patch)
    patch = shore.submit({"a.py": "before\none\nafter\n"})
    Patch.objects.filter(pk=patch.pk).update(workstream=workstream)
    patch.refresh_from_db()
    found = validation.judge(patch)
    swing = patch.swing({"oscillation_window": 5, "oscillation_threshold": 3})
    assert [(hit.kind, hit.patch_id) for hit in swing.hits] == [
        ("inverse", made[0].pk), ("identical", made[1].pk), ("inverse", made[2].pk),
    ]  # fmt: skip

    documents = [hit.document() for hit in swing.hits]
    patch.note_validation({**found, "findings": documents, "oscillating": swing.reason}, by=BY)

    patch.refresh_from_db()
    assert (patch.state, patch.is_valid, patch.quarantine_owner) == ("quarantined", True, "approvers")
    assert [finding["patch"] for finding in patch.findings] == [row.pk for row in made]
    folded = fold(patch, db_now())
    assert folded is not None
    assert folded["findings"] == patch.findings
    patch.release(by=BY, reason="it has to be so")
    assert patch.swing({"oscillation_window": 5, "oscillation_threshold": 3}).reason == ""
    narrow = patch.swing({"oscillation_window": 1, "oscillation_threshold": 1})
    assert [hit.patch_id for hit in narrow.hits] == [made[2].pk]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("with_task", [False, True])
def test_changes_of_people_without_a_workstream_go_back_and_forth_within_their_project(
    tmp_path: Path, nudges: list[object], with_task: bool
) -> None:
    shore = Shore(tmp_path, {"a.py": "before\none\nafter\n"})
    fields = {}
    if with_task:
        workstream = factories.make_workstream(factories.make_phase(shore.project))
        fields = {"task": factories.make_task(factories.make_run(workstream, started=True))}
    elsewhere = shore.submit({"a.py": "before\ntwo\nafter\n"})  # in the project, and of no workstream
    made = [shore.land({"a.py": f"before\n{text}\nafter\n"}, **fields) for text in ("three", "one", "three")]
    patch = shore.submit({"a.py": "before\none\nafter\n"}, **fields)
    swing = patch.swing({"oscillation_window": 2, "oscillation_threshold": 3})
    assert [hit.patch_id for hit in swing.hits] == [row.pk for row in made]
    assert swing.reason.startswith("oscillating")
    assert patch.pk not in [one.patch_id for one in Patch.objects.before(patch, 9)]
    assert (elsewhere.pk in [one.patch_id for one in Patch.objects.before(patch, 9)]) is not with_task
    other = factories.make_patch(diff_text=patch.content.diff_text)
    assert Patch.objects.before(other, 9) == []


@pytest.mark.django_db
def test_a_window_in_which_nothing_could_ever_be_found_is_refused() -> None:
    with pytest.raises(InvalidField, match="oscillation_window: at least 3, not 2"):
        factories.make_policy(constraints={"oscillation_window": 2})
    factories.make_policy(constraints={"oscillation_threshold": 2})
    project = factories.make_project()
    assert factories.make_policy(project=project, constraints={"oscillation_window": 2}).pk
    with pytest.raises(InvalidField, match="at least 2, not 1"):
        factories.make_policy(project=factories.make_project(), constraints={"oscillation_window": 1})
