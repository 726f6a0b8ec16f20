"""Recorded custody: something else moves the branch, and says what became of a patch; the ledger keeps the books."""

from typing import Any

import pytest

from ledger import validation
from ledger.models import Patch, QueueItem
from pipeline.events import Event
from tests import factories
from tests.api.asking import Api
from tests.factories import BY

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

COMMIT, TREE, OTHER = "c" * 40, "a" * 40, "b" * 40


@pytest.fixture
def patch() -> Patch:
    """A patch of a recorded project that may be applied."""
    patch = factories.make_patch()
    validation.validate(patch.pk)
    patch.refresh_from_db()
    patch.queue(by=BY)
    return patch


def operator(patch: Patch) -> Api:
    return Api(factories.make_key("operator", project=patch.project).text)


def say(patch: Patch, verb: str, role: str = "operator", **body: Any) -> tuple[int, dict[str, Any]]:
    api = Api(factories.make_key(role, project=patch.project).text)
    answer = api.post(f"/patches/{patch.pk}/{verb}/", body)
    return answer.status_code, answer.json()


def kinds(patch: Patch) -> list[str]:
    return list(Event.objects.about(patch).values_list("kind", flat=True))


def test_what_is_reported_is_booked_until_the_patch_is_committed(patch: Patch) -> None:
    assert say(patch, "apply", success=True, files=["b.py", "a.py"])[1]["state"] == "applied"
    assert say(patch, "verify", tests_passed=True, tree=TREE)[1]["state"] == "verified"
    status, told = say(patch, "commit", commit_sha=COMMIT, tree=TREE)
    assert (status, told["state"], told["commit_sha"], told["committed_tree"]) == (200, "committed", COMMIT, TREE)
    assert (told["applied_files"], told["attempts"], told["tests_passed"]) == (["a.py", "b.py"], 1, True)
    assert told["committed_at"] is not None
    assert kinds(patch)[-3:] == ["patch.applied", "patch.verified", "patch.committed"]
    assert not QueueItem.objects.exists()


def test_commits_that_nobody_names_may_be_left_out(patch: Patch) -> None:
    say(patch, "apply", success=True)
    say(patch, "verify", tests_passed=True)
    status, told = say(patch, "commit")
    assert (status, told["state"], told["commit_sha"]) == (200, "committed", "")
    assert told["applied_files"] == sorted(patch.files_touched)


def test_a_failure_is_told_with_its_code_and_the_patch_may_be_queued_again(patch: Patch) -> None:
    status, told = say(patch, "apply", success=False, error_code="merge_conflict", message="in a.py")
    assert (status, told["state"]) == (200, "apply_failed")
    assert (told["last_error_code"], told["last_error_message"]) == ("merge_conflict", "in a.py")
    assert say(patch, "requeue")[1]["state"] == "queued"
    say(patch, "apply", success=True)
    status, told = say(patch, "verify", tests_passed=False, message="2 of 9 failed")
    assert (status, told["state"], told["last_error_code"]) == (200, "apply_failed", "tests_not_passed")
    assert (told["tests_ran"], told["tests_passed"]) == (True, False)


@pytest.mark.parametrize(
    ("verb", "body"), [("verify", {"tests_passed": True}), ("commit", {}), ("commit", {"commit_sha": COMMIT})]
)
def test_out_of_order_nothing_is_booked(patch: Patch, verb: str, body: dict[str, Any]) -> None:
    before = kinds(patch)
    status, told = say(patch, verb, **body)
    assert (status, told["code"], told["state"]) == (409, "invalid_move", "queued")
    assert kinds(patch) == before


def test_the_guards_that_need_no_mirror_hold(patch: Patch) -> None:
    gate = factories.make_gate(patch.project)
    say(patch, "apply", success=True)
    say(patch, "verify", tests_passed=True, tree=TREE)
    assert say(patch, "commit", tree=OTHER)[1]["code"] == "tree_mismatch"
    status, told = say(patch, "commit", commit_sha=COMMIT)
    assert (status, told["code"]) == (409, "gates_not_satisfied"), gate
    patch.refresh_from_db()
    assert (patch.state, patch.commit_sha) == ("verified", "")


@pytest.mark.parametrize(
    ("constraints", "state", "why"),
    [
        ({"forbid_touching_paths": ["**"]}, "apply_failed", "must not be touched"),
        ({"min_reviewers": 2}, "validated", "it needs 2 review(s), where it needed 0"),
    ],
)
def test_a_policy_that_was_tightened_on_the_way_is_asked_at_the_commit(
    patch: Patch, constraints: dict[str, Any], state: str, why: str
) -> None:
    say(patch, "apply", success=True)
    say(patch, "verify", tests_passed=True)
    factories.make_policy(project=patch.project, constraints=constraints)
    status, told = say(patch, "commit", commit_sha=COMMIT)
    assert (status, told["code"]) == (409, "policy_changed")
    assert why in told["detail"]
    patch.refresh_from_db()
    assert (patch.state, patch.commit_sha, patch.tests_passed) == ("created", "", False)
    assert kinds(patch)[-1] == "patch.rejudged"
    validation.validate(patch.pk)
    patch.refresh_from_db()
    assert patch.state == state


@pytest.mark.parametrize(
    ("verb", "body"), [("apply", {"success": True}), ("verify", {"tests_passed": True}), ("commit", {})]
)
def test_in_managed_custody_nobody_but_the_queue_says_so(verb: str, body: dict[str, Any]) -> None:
    patch = factories.make_patch(factories.make_project())
    before = kinds(patch)
    status, told = say(patch, verb, **body)
    assert (status, told["code"]) == (409, "invalid_move")
    assert "managed custody" in told["detail"]
    assert kinds(patch) == before


@pytest.mark.parametrize(
    ("verb", "body", "field"),
    [
        ("apply", {}, "success"),
        ("apply", {"success": "perhaps"}, "success"),
        ("apply", {"success": True, "files": "a.py"}, "files"),
        ("apply", {"success": False, "error_code": "Bad Code!"}, "error_code"),
        ("verify", {}, "tests_passed"),
        ("verify", {"tests_passed": True, "tree": "HEAD"}, "tree"),
        ("commit", {"commit_sha": "--all"}, "commit_sha"),
        ("commit", {"commit_sha": "C" * 40}, "commit_sha"),
        ("commit", {"state": "committed"}, "state"),
    ],
)
def test_what_is_no_report_is_refused_with_its_field(patch: Patch, verb: str, body: dict[str, Any], field: str) -> None:
    status, told = say(patch, verb, **body)
    assert status in (400, 422)
    assert field in str(told["errors"]) + str(told.get("field", ""))
    patch.refresh_from_db()
    assert patch.state == "queued"


@pytest.mark.parametrize("verb", ["apply", "verify", "commit"])
def test_who_only_reads_reports_nothing(patch: Patch, verb: str) -> None:
    assert say(patch, verb, role="viewer")[0] == 403
    stranger = Api(factories.make_key("operator", project=factories.make_project(custody="recorded")).text)
    assert stranger.post(f"/patches/{patch.pk}/{verb}/", {}).status_code == 404


def test_what_has_landed_elsewhere_is_taken_back_elsewhere(patch: Patch) -> None:
    say(patch, "apply", success=True)
    say(patch, "verify", tests_passed=True)
    say(patch, "commit", commit_sha=COMMIT)
    status, told = say(patch, "rollback", role="approver", reason="it broke the build")
    assert (status, told["code"]) == (409, "invalid_move")
    assert "recorded custody" in told["detail"]
    patch.refresh_from_db()
    assert patch.state == "committed"
    body = {
        "verb": "rollback", "dry_run": False, "reason": "x",
        "filter": {"project": patch.project.key, "patches": [patch.pk]},
    }  # fmt: skip
    api = Api(factories.make_key("approver", project=patch.project).text)
    answer = api.post("/patches/bulk/", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")


def test_why_it_does_not_move_names_the_report_that_is_due(patch: Patch) -> None:
    for verb, body in (("apply", {"success": True}), ("verify", {"tests_passed": True}), ("commit", {})):
        told = operator(patch).get(f"/blockers/?subject_type=patch&subject_id={patch.pk}").json()
        assert told["code"] == "report_due", told
        assert told["action"]["verb"] == verb
        assert say(patch, verb, **body)[0] == 200


def test_before_it_has_landed_it_is_rolled_back_at_once(patch: Patch) -> None:
    say(patch, "apply", success=True)
    status, told = say(patch, "rollback", role="approver", reason="wrong branch")
    assert (status, told["state"]) == (200, "rolled_back")
