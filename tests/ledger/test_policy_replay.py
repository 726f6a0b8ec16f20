"""Policies in layers: what is refused at saving, what holds where, and what one would have refused before it holds."""

from typing import Any

import pytest

from ledger import reviewing
from ledger.models import Patch, PatchPolicy
from pipeline.constraints import ConstraintWeakened
from pipeline.events import Event
from pipeline.refusals import InvalidField
from tests import factories
from tests.factories import BY, make_policy

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

OK = {"format_ok": True, "scope_ok": True, "constraints_ok": True, "validation_errors": [], "findings": []}


def diff_of(lines: int, path: str = "") -> str:
    path = path or f"src/f{factories.number()}.py"
    body = "".join(f"+line {n}\n" for n in range(lines))
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
    return f"{head}@@ -0,0 +1,{lines} @@\n{body}"


@pytest.mark.parametrize(
    ("field", "allowed", "offered"),
    [
        ("max_lines_changed", 10, 11),
        ("max_lines_by_path", {"src/**": 5}, {"src/**": 6}),
        ("min_reviewers", 2, 1),
        ("forbid_secrets", True, False),
        ("allowed_formats", ["unified_diff"], ["zip"]),
    ],
)
def test_a_looser_value_is_refused_at_saving_with_field_layer_and_both_values(
    field: str, allowed: Any, offered: Any
) -> None:
    project = factories.make_project(custody="recorded")
    make_policy(project=project, constraints={field: allowed})
    with pytest.raises(ConstraintWeakened) as caught:
        make_policy(phase=factories.make_phase(project), constraints={field: offered})
    assert caught.value.parts == {
        "field": field, "layer": "phase policy", "offered": offered, "allowed": allowed,
        "allowed_layer": "project policy",
    }  # fmt: skip
    assert PatchPolicy.objects.count() == 1


def test_a_policy_is_no_looser_than_the_plan_that_it_is_over() -> None:
    phase = factories.make_phase(constraints={"patch": {"max_files_changed": 3}})
    stream = factories.make_workstream(phase)
    with pytest.raises(ConstraintWeakened) as caught:
        make_policy(phase=phase, constraints={"max_files_changed": 4})
    assert caught.value.parts["allowed_layer"] == "phase"
    with pytest.raises(ConstraintWeakened):
        make_policy(workstream=stream, constraints={"max_files_changed": 4})
    assert make_policy(workstream=stream, constraints={"max_files_changed": 2}).pk


def test_an_edit_that_loosens_is_refused_and_changes_nothing() -> None:
    project = factories.make_project(custody="recorded")
    make_policy(constraints={"max_files_changed": 5})
    row = make_policy(project=project, constraints={"max_files_changed": 4})
    with pytest.raises(ConstraintWeakened):
        row.edit(by=BY, constraints={"max_files_changed": 6})
    assert PatchPolicy.objects.get(pk=row.pk).constraints == {"max_files_changed": 4}
    assert not Event.objects.filter(kind="policy.changed", subject_id=row.pk).exists()
    with pytest.raises(InvalidField):
        row.edit(by=BY, constraints={"max_lines_by_path": {"../x": 1}})


def test_what_holds_is_explained_by_the_layer_that_set_it() -> None:
    phase = factories.make_phase(
        factories.make_project(custody="recorded"), constraints={"patch": {"protected_paths": ["b/**"]}}
    )
    make_policy(constraints={"max_files_changed": 5, "protected_paths": ["a/**"]})
    make_policy(project=phase.project, constraints={"max_files_changed": 4})
    make_policy(phase=phase, enabled=False, constraints={"max_files_changed": 1})
    told = reviewing.explain(PatchPolicy.objects.effective(phase.project, phase))
    assert (told["max_files_changed"]["value"], told["max_files_changed"]["layer"]) == (4, "project policy")
    assert told["protected_paths"]["entries"] == {"a/**": "global policy", "b/**": "phase"}
    assert ".github/**" in told["protected_paths"]["built_in"]
    assert told["forbid_secrets"] == {"value": True, "layer": "built-in", "fold": ""}


def test_a_policy_that_does_not_hold_yet_tells_what_it_would_have_refused_and_writes_nothing() -> None:
    project = factories.make_project(custody="recorded")
    patches = [factories.make_patch(project, diff_text=diff_of(lines)) for lines in (3, 30, 300)]
    for patch in patches:
        patch.note_validation({**OK, "facts": reviewing.facts_of(patch).document(), "policy_snapshot": {}}, by=BY)
    factories.make_patch(diff_text=diff_of(500))
    row = make_policy(project=project, enabled=False, constraints={"max_lines_changed": 20, "min_reviewers": 1})
    patches[0].reviews.give(patches[0], "approve", by=BY, reviewer=factories.make_user())
    before = (Event.objects.count(), list(Patch.objects.order_by("pk").values_list("version", flat=True)))
    found = reviewing.replay(row, 1_000)
    assert (found["patches"], found["refused"], found["newly_refused"], found["would_wait"]) == (3, 2, 2, 2)
    assert found["by_rule"] == {"max_lines_changed": 2}
    assert [one["patch"] for one in found["first"]] == [patches[2].pk, patches[1].pk]
    assert reviewing.replay(row, 1)["patches"] == 1
    assert before == (Event.objects.count(), list(Patch.objects.order_by("pk").values_list("version", flat=True)))


def test_a_patch_from_before_facts_were_kept_is_read_from_its_text() -> None:
    patch = factories.make_patch(diff_text=diff_of(30))
    assert patch.facts == {}
    found = reviewing.replay(make_policy(enabled=False, constraints={"max_lines_changed": 20}), 10)
    assert (found["refused"], found["newly_refused"], found["unread"]) == (1, 0, 0)


def test_only_the_rules_that_a_policy_sets_are_replayed() -> None:
    factories.make_patch(diff_text=diff_of(2, "Makefile"))
    found = reviewing.replay(make_policy(enabled=False, constraints={"max_lines_changed": 2}), 10)
    assert (found["patches"], found["refused"]) == (1, 0)


def test_a_replay_asks_the_same_few_questions_however_many_patches_there_are(django_assert_num_queries: Any) -> None:
    for lines in range(1, 9):
        patch = factories.make_patch(diff_text=diff_of(lines))
        patch.note_validation({**OK, "facts": reviewing.facts_of(patch).document(), "policy_snapshot": {}}, by=BY)
    row = make_policy(enabled=False, constraints={"max_lines_changed": 4, "min_reviewers": 1})
    with django_assert_num_queries(2):
        assert reviewing.replay(row, 100)["refused"] == 4
