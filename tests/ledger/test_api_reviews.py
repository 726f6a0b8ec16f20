"""The API of reviewing and of policies: answers, rows, and what is refused in which words."""

from typing import Any

import pytest

from ledger.models import Patch
from tests import factories
from tests.api.asking import Api, refused
from tests.factories import BY

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

OK = {
    "format_ok": True, "scope_ok": True, "constraints_ok": True, "validation_errors": [], "findings": [],
    "policy_snapshot": {"min_reviewers": 1},
}  # fmt: skip


@pytest.fixture
def patch() -> Patch:
    """A valid patch that needs one review."""
    made = factories.make_patch()
    made.note_validation(OK, by=BY)
    return made


def api(patch: Patch, role: str = "approver") -> Api:
    return Api(factories.make_key(role, project=patch.project).text)


def at(patch: Patch, verb: str) -> str:
    return f"/patches/{patch.pk}/{verb}/"


def test_a_rejection_answers_with_the_review_and_sets_the_patch_aside(patch: Patch) -> None:
    answer = api(patch).post(at(patch, "reject"), {"reason": "it leaks"})
    assert answer.status_code == 201
    assert (answer.json()["verdict"], answer.json()["for_sha256"]) == ("reject", patch.sha256)
    patch.refresh_from_db()
    assert patch.state == "quarantined"


def test_a_rejection_without_a_reason_is_refused(patch: Patch) -> None:
    assert refused(api(patch).post(at(patch, "reject"), {})) == (422, "reason_required")
    assert patch.reviews.count() == 0


def test_an_approval_is_bound_to_the_revision_that_was_seen(patch: Patch) -> None:
    asked = api(patch)
    assert refused(asked.post(at(patch, "approve"), {"sha256": "0" * 64})) == (422, "invalid_field")
    assert asked.post(at(patch, "approve"), {"sha256": patch.sha256}).status_code == 201


def test_comments_on_lines_are_kept_and_listed(patch: Patch) -> None:
    asked = api(patch, "operator")
    anchor = {"path": next(iter(patch.files_touched)), "first": 2, "last": 4, "body": "why?"}
    assert asked.post(at(patch, "reviews"), {"anchors": [anchor]}).status_code == 201
    (row,) = asked.get(at(patch, "reviews")).json()["results"]
    assert row["anchors"] == [{**anchor, "side": "new"}]
    assert refused(asked.post(at(patch, "reviews"), {})) == (422, "missing_required_field")
    assert refused(asked.post(at(patch, "reviews"), {"anchors": [{**anchor, "path": "../a"}]})) == (
        422,
        "invalid_field",
    )


def test_the_requirements_say_who_has_the_next_word(patch: Patch) -> None:
    told = api(patch, "viewer").get(at(patch, "requirements")).json()
    assert told["holder"]["code"] == "reviews_missing"
    assert told["reviews"] == {"needed": 1, "missing": 1, "approvals": [], "vetoes": []}
    states = {one["rule"]: one["state"] for one in told["requirements"]}
    assert states["min_reviewers"] == "unsatisfied"
    assert states["forbid_secrets"] == "satisfied"
    assert told["risk"] == {"tier": "low", "reasons": [{"tier": "low", "code": "words_or_tests_only", "value": None}]}


def test_an_override_is_granted_listed_and_ended(patch: Patch) -> None:
    asked = api(patch, "admin")
    body = {"rule": "max_files_changed", "reason": "a move"}
    assert asked.post(at(patch, "overrides"), {**body, "expires_after_seconds": 60}).status_code == 201
    assert asked.post(at(patch, "overrides"), {**body, "expires_after_seconds": 0}).status_code == 201
    assert refused(asked.post(at(patch, "overrides"), {**body, "expires_after_seconds": 0})) == (
        404,
        "override_not_found",
    )
    assert refused(asked.post(at(patch, "overrides"), {**body, "rule": "min_reviewers"})) == (422, "invalid_field")
    assert refused(asked.post(at(patch, "overrides"), {**body, "reason": ""})) == (422, "reason_required")
    assert len(asked.get(at(patch, "overrides")).json()["results"]) == 2


def test_revisions_are_compared(patch: Patch) -> None:
    newer = factories.make_patch(patch.project, diff_text=factories.new_file_diff("z.txt", "zz"), replaces=patch)
    asked = api(patch, "viewer")
    told = asked.get(at(newer, "interdiff")).json()
    assert (told["against"], told["of_trees"]) == (patch.pk, False)
    assert "zz" in told["text"]
    assert refused(asked.get(at(patch, "interdiff"))) == (400, "invalid_field")
    other = factories.make_patch()
    assert refused(asked.get(f"{at(newer, 'interdiff')}?against={other.pk}")) == (404, "ledger_entry_not_found")


def test_the_effective_policy_of_a_place_is_explained() -> None:
    phase = factories.make_phase(factories.make_project(custody="recorded"))
    row = factories.make_policy(phase=phase, constraints={"max_files_changed": 2})
    asked = Api(factories.make_key("viewer", project=phase.project).text)
    whole = asked.get(f"/projects/{phase.project.key}/policy/").json()
    assert "max_files_changed" not in whole["values"]
    narrow = asked.get(f"/projects/{phase.project.key}/policy/?phase={phase.pk}").json()
    assert narrow["values"]["max_files_changed"]["layer"] == "phase policy"
    assert narrow["policies"] == [row.pk]


@pytest.mark.parametrize(
    ("query", "status", "code"),
    [
        ("phase=x", 400, "invalid_id"),
        ("phase=01JD9Z6X8Q4W2M5T7R3B1C0VNK", 404, "phase_not_found"),
        ("colour=red", 400, "unknown_filter"),
    ],
)
def test_a_place_that_is_none_is_refused(query: str, status: int, code: str) -> None:
    project = factories.make_project(custody="recorded")
    asked = Api(factories.make_key("viewer", project=project).text)
    assert refused(asked.get(f"/projects/{project.key}/policy/?{query}")) == (status, code)


@pytest.mark.parametrize("last", ["0", "x", "5001", "-1", "٣"])
def test_a_replay_looks_at_a_number_of_patches(patch: Patch, last: str) -> None:
    row = factories.make_policy(project=patch.project, enabled=False, constraints={"max_lines_changed": 0})
    asked: Any = api(patch, "viewer")
    assert asked.get(f"/policies/{row.pk}/replay/?last=5").json()["refused"] == 1
    assert refused(asked.get(f"/policies/{row.pk}/replay/?last={last}")) == (400, "invalid_field")
