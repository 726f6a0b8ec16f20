"""Validation: what a patch's text, its result and the policy make of it, and where a failure is sent."""

from pathlib import Path
from typing import Any

import pytest

from ledger import validation
from ledger.models import Patch, PatchPolicy
from pipeline.blockers import Action, blocker
from pipeline.events import Event
from pipeline.refusals import InvalidField
from tests.factories import (
    BY,
    make_patch,
    make_phase,
    make_policy,
    make_project,
    make_run,
    make_task,
    make_workstream,
    new_file_diff,
    sample_repository,
)
from tests.flows.house import House, piece

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


@pytest.fixture
def house(tmp_path: Path) -> House:
    """One task, that may touch everything but `secret/`."""
    return House(tmp_path, [piece("a")])


def test_a_patch_waits_for_its_attempt_before_it_is_queued(house: House) -> None:
    document = house.claim()
    patch = house.submit(document, {"a.txt": "a\n"})
    house.drain()
    patch.refresh_from_db()
    assert patch.state == "validated"
    assert patch.queue_items.count() == 0
    house.report(document, patch)
    house.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"


def test_a_valid_patch_keeps_a_snapshot_of_the_policy_that_it_was_judged_by(house: House) -> None:
    make_policy(project=house.project, constraints={"max_files_changed": 3})
    patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert patch.is_valid
    assert patch.policy_snapshot["max_files_changed"] == 3
    assert patch.validation_errors == []


@pytest.mark.parametrize(
    ("constraints", "code"),
    [
        ({"max_files_changed": 1}, "max_files_changed"),
        ({"max_lines_changed": 1}, "max_lines_changed"),
        ({"forbid_touching_paths": ["docs/**"]}, "forbid_touching_paths"),
        ({"require_issue_ref": True}, "require_issue_ref"),
    ],
)
def test_a_broken_constraint_is_told_with_its_rule(house: House, constraints: dict[str, Any], code: str) -> None:
    make_policy(project=house.project, constraints=constraints)
    patch = house.work({"a.txt": "a\n", "docs/b.txt": "b\n"})
    patch.refresh_from_db()
    assert (patch.state, patch.last_error_code) == ("apply_failed", code)
    assert (patch.format_ok, patch.scope_ok, patch.constraints_ok) == (True, True, False)
    assert patch.validation_errors[0]["rule"] == code


@pytest.mark.parametrize("route", ["quarantined", "dropped"])
def test_the_policy_says_where_a_scope_failure_goes(house: House, route: str) -> None:
    make_policy(project=house.project, constraints={"on_validation_failure": {"scope": route}})
    patch = house.work({"secret/key": "hush\n"})
    patch.refresh_from_db()
    assert patch.state == route
    assert house.states() == {"a": "validating" if route == "quarantined" else "queued"}
    house.must_hold()


WRONG_ROUTES = [
    ({"scop": "dropped"}, "on_validation_failure.scop: unknown; known are format, scope, constraints"),
    ({"scope": "quarantine"}, "must be one of apply_failed, quarantined, dropped, not quarantine"),
]


@pytest.mark.parametrize(("routes", "told"), WRONG_ROUTES)
def test_a_route_that_there_is_not_is_refused_wherever_it_is_saved(
    house: House, routes: dict[str, str], told: str
) -> None:
    document = {"patch": {"on_validation_failure": routes}}
    task = {**house.workstream.tasks[0], "constraints_delta": document}
    for save in (
        lambda: make_policy(constraints=document),
        lambda: make_policy(constraints=document["patch"]),
        lambda: house.phase.edit(by=BY, constraints=document),
        lambda: house.workstream.edit(by=BY, constraints=document),
        lambda: house.workstream.edit(by=BY, tasks=[task]),
    ):
        with pytest.raises(InvalidField) as refusal:
            save()
        assert told in str(refusal.value)
    assert not PatchPolicy.objects.exists()


def test_a_route_that_was_saved_before_it_was_checked_has_no_effect(house: House) -> None:
    policy = make_policy(project=house.project)
    routes = {"scope": "quarantine", "scop": "dropped"}
    PatchPolicy.objects.filter(pk=policy.pk).update(constraints={"on_validation_failure": routes})
    patch = house.work({"secret/key": "hush\n"})
    patch.refresh_from_db()
    assert patch.state == "apply_failed"


def test_hunks_that_do_not_fit_their_base_are_a_stale_base(house: House) -> None:
    text = "--- a/README.md\n+++ b/README.md\n@@ -1 +1 @@\n-# Something else\n+# New\n"
    patch, _is_new = Patch.objects.submit(
        project=house.project, diff_text=f"diff --git a/README.md b/README.md\n{text}", base_commit=house.head, by=BY
    )
    assert validation.validate(patch.pk) is True
    patch.refresh_from_db()
    assert (patch.state, patch.last_error_code, patch.format_ok) == ("apply_failed", "stale_base", False)
    said = f"It was tried on commit {house.head[:12]}, the present head of main, which does not hold the lines"
    assert "README.md" in patch.last_error_message
    assert said in patch.last_error_message
    assert "make the diff anew" in patch.last_error_message
    # Once more would end as before.
    found = blocker(patch)
    assert found is not None
    assert found.action == Action("submit a newer revision", "/patches/", "operator")


def test_what_helps_is_what_can_end_otherwise(house: House) -> None:
    make_policy(project=house.project, constraints={"max_files_changed": 1})
    by_rule = make_patch(house.project, diff_text=new_file_diff() + new_file_diff())
    failed = make_patch(house.project, diff_text=new_file_diff("a.txt", "BROKEN"))
    house.drain()
    helped = {}
    for name, patch in (("rule", by_rule), ("failed", failed)):
        patch.refresh_from_db()
        assert patch.state == "apply_failed"
        found = blocker(patch)
        assert found is not None
        assert found.action is not None
        helped[name] = (found.action.verb, found.action.role)
    assert helped == {"rule": ("override", "admin"), "failed": ("requeue", "operator")}


def test_a_patch_is_judged_once(house: House) -> None:
    patch = make_patch(house.project)
    assert validation.validate(patch.pk) is True
    assert validation.validate(patch.pk) is False
    assert Event.objects.filter(subject_id=patch.pk, kind="patch.validated").count() == 1


def test_a_person_who_was_faster_than_the_validation_wins(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    patch = make_patch(house.project)

    def drop(point: str) -> None:
        Patch.objects.get(pk=patch.pk).drop("never mind", by=BY)

    monkeypatch.setattr(validation, "crashpoint", drop)
    assert validation.validate(patch.pk) is False
    patch.refresh_from_db()
    assert patch.state == "dropped"


def test_a_persons_patch_for_a_task_is_held_to_the_rules_of_the_tasks_plan() -> None:
    project = make_project(repository=sample_repository())
    phase = make_phase(project, constraints={"patch": {"max_files_changed": 1}})
    task = make_task(make_run(make_workstream(phase, constraints={"patch": {"max_lines_changed": 0}})))
    patch = make_patch(project, task=task)

    validation.validate(patch.pk)

    patch.refresh_from_db()
    assert (patch.phase_id, patch.workstream_id, patch.run_id) == (phase.pk, task.run.workstream_id, None)
    assert patch.state == "apply_failed"
    assert [error["rule"] for error in patch.validation_errors] == ["max_lines_changed"]


def test_a_snapshot_holds_what_layers_say_and_not_the_long_list_that_holds_everywhere() -> None:
    project = make_project(repository=sample_repository())
    make_policy(project=project, constraints={"protected_paths": ["infra/**"]})
    patch = make_patch(project)

    validation.validate(patch.pk)

    patch.refresh_from_db()
    assert patch.policy_snapshot["protected_paths"] == ["infra/**"]
    assert len(Event.objects.get(kind="patch.validated").canonical) < 3_000
