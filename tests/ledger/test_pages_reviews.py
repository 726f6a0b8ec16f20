"""The review box, the pages beside it, and the buttons by role."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from ledger.models import Patch
from pipeline.events import Actor
from pipeline.models import User
from tests import factories
from tests.factories import BY

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

HINT = {"rule": "protected_paths", "severity": "review", "message": "Makefile is protected", "path": "Makefile"}
OK = {
    "format_ok": True, "scope_ok": True, "constraints_ok": True, "validation_errors": [], "findings": [HINT],
    "policy_snapshot": {},
}  # fmt: skip


@pytest.fixture
def patch() -> Patch:
    """A valid patch that touches a protected path."""
    project = factories.make_project(custody="recorded", key="relay")
    made = factories.make_patch(project, diff_text=factories.new_file_diff("Makefile", "all:"), summary="Build it")
    made.note_validation(OK, by=BY)
    return made


def come_in(client: Client, patch: Patch, role: str) -> User:
    user = factories.make_user()
    factories.make_membership(user, patch.project, role)
    client.force_login(user)
    return user


def page(client: Client, name: str, *args: Any) -> Any:
    return client.get(reverse(f"ledger:{name}", args=args))


def test_the_box_says_what_is_missing_and_why_the_risk_is_what_it_is(client: Client, patch: Patch) -> None:
    come_in(client, patch, "viewer")
    text = page(client, "patch", patch.pk).text
    assert "Protected paths are looked at" in text
    assert "Makefile is protected (gates): it needs one review more" in text
    assert "high risk" in text
    assert "1 of 1 review(s) are missing" in text
    assert reverse("ledger:approve", args=[patch.pk]) not in text
    assert reverse("ledger:override", args=[patch.pk]) not in text


def test_an_approver_approves_and_the_box_says_who(client: Client, patch: Patch) -> None:
    ada = come_in(client, patch, "approver")
    assert reverse("ledger:approve", args=[patch.pk]) in page(client, "patch", patch.pk).text
    answer = client.post(reverse("ledger:approve", args=[patch.pk]), {"body": "<b>fine</b>"})
    assert answer.url == f"{reverse('ledger:patch', args=[patch.pk])}#reviews"
    text = page(client, "patch", patch.pk).text
    assert patch.reviews.get().reviewer == ada
    assert "&lt;b&gt;fine&lt;/b&gt;" in text
    assert "review(s) are missing" not in text


def test_own_work_is_not_offered_for_approval(client: Client, patch: Patch) -> None:
    ada = come_in(client, patch, "approver")
    own = factories.make_patch(patch.project, user=ada)
    text = page(client, "patch", own.pk).text
    assert reverse("ledger:approve", args=[own.pk]) not in text
    assert "somebody else has to approve it" in text
    client.post(reverse("ledger:approve", args=[own.pk]))
    assert not own.reviews.exists()


def test_a_comment_on_lines_is_shown_at_its_place_and_a_wrong_line_is_said(client: Client, patch: Patch) -> None:
    come_in(client, patch, "operator")
    address = reverse("ledger:comment", args=[patch.pk])
    client.post(address, {"path": "Makefile", "first": "1", "body": "why all?"})
    assert "Makefile:1" in page(client, "patch", patch.pk).text
    answer = client.post(address, {"path": "Makefile", "first": "zero", "body": "x"}, follow=True)
    assert "a line number, from 1" in answer.text
    assert patch.reviews.count() == 1


@pytest.mark.parametrize(
    ("name", "role"), [("approve", "operator"), ("reject", "operator"), ("comment", "viewer"), ("override", "approver")]
)
def test_a_lower_role_is_turned_away(client: Client, patch: Patch, name: str, role: str) -> None:
    come_in(client, patch, role)
    answer = client.post(reverse(f"ledger:{name}", args=[patch.pk]), {"reason": "x", "body": "x"})
    assert answer.status_code == 403
    assert not patch.reviews.exists()


def test_an_admin_sets_a_rule_aside_for_some_days(client: Client, patch: Patch) -> None:
    come_in(client, patch, "admin")
    assert reverse("ledger:override", args=[patch.pk]) in page(client, "patch", patch.pk).text
    given = {"rule": "protected_paths", "reason": "only a comment", "days": "2"}
    client.post(reverse("ledger:override", args=[patch.pk]), given)
    text = page(client, "patch", patch.pk).text
    assert "overridden" in text
    assert "only a comment" in text
    assert client.post(reverse("ledger:override", args=[patch.pk]), {**given, "days": "soon"}).status_code == 400


def test_what_waits_for_a_review_is_on_its_page_and_on_the_overview(client: Client, patch: Patch) -> None:
    come_in(client, patch, "approver")
    assert "Build it" in page(client, "reviews_waiting").text
    assert "Build it" in client.get(reverse("overview")).text
    client.post(reverse("ledger:approve", args=[patch.pk]))
    assert "Nothing waits for your review" in page(client, "reviews_waiting").text


def test_the_difference_between_revisions_has_a_page(client: Client, patch: Patch) -> None:
    come_in(client, patch, "viewer")
    newer = factories.make_patch(patch.project, diff_text=factories.new_file_diff("z.txt", "<i>"), replaces=patch)
    text = page(client, "interdiff", newer.pk, patch.pk).text
    assert "the project has no mirror" in text
    assert "<i>" not in text
    assert page(client, "interdiff", newer.pk, factories.make_patch().pk).status_code == 404


def test_a_policy_that_does_not_hold_yet_is_listed_to_be_tried_out(client: Client, patch: Patch) -> None:
    come_in(client, patch, "viewer")
    row = factories.make_policy(
        project=patch.project, level="project", enabled=False, constraints={"max_lines_changed": 0}
    )
    text = page(client, "policy", "relay").text
    assert reverse("ledger:policy_replay", args=["relay", row.pk]) in text
    assert "does not hold yet" in text
    assert "project policy" not in text


def test_the_policy_of_a_project_is_explained_and_can_be_tried_out(client: Client, patch: Patch) -> None:
    row = factories.make_policy(
        project=patch.project, constraints={"max_lines_changed": 0, "protected_paths": ["q/**"]}
    )
    come_in(client, patch, "viewer")
    text = page(client, "policy", "relay").text
    assert "project policy" in text
    assert "<code>q/**</code>" in text
    assert "forbid_secrets" in text
    tried = page(client, "policy_replay", "relay", row.pk).text
    assert "Not too many lines" in tried
    assert "Build it" in tried
    assert client.get(f"{reverse('ledger:policy', args=['relay'])}?phase=x").status_code == 400


def test_every_layer_says_what_it_sets_who_wrote_it_and_when_and_each_value_where_it_is_from(client: Client) -> None:
    phase = factories.make_phase(key="build", constraints={"patch": {"max_files_changed": 9}})
    spec = factories.task_spec("one", constraints_delta={"patch": {"max_lines_changed": 5}})
    workstream = factories.make_workstream(phase, key="api", tasks=[spec])
    task = factories.make_task(factories.make_run(workstream, started=True))
    project = phase.project
    ada = Actor("user", factories.make_user(username="ada").pk, "ada")
    first = factories.make_policy(project=project, constraints={"max_lines_changed": 40})
    second = factories.make_policy(project=project, constraints={"require_issue_ref": True})
    off = factories.make_policy(project=project, enabled=False, constraints={"max_lines_changed": 1})
    second.edit(by=ada, constraints={"require_issue_ref": True, "min_reviewers": 2})
    client.force_login(factories.make_user(is_superuser=True, is_staff=True))
    address = reverse("ledger:policy", args=[project.key])

    answer = client.get(address, {"task": task.pk})

    layers = {one["row"].pk: one for one in answer.context["layers"]}
    assert list(layers) == [first.pk, second.pk, off.pk, phase.pk, workstream.pk, task.pk]
    assert layers[first.pk]["sets"] == {"max_lines_changed": "40"}
    assert layers[second.pk]["sets"] == {"require_issue_ref": "yes", "min_reviewers": "2"}
    assert (layers[second.pk]["by"], layers[first.pk]["by"]) == ("ada", factories.BY.name)
    assert layers[second.pk]["at"] > layers[first.pk]["at"]
    assert layers[task.pk]["sets"] == {"max_lines_changed": "5"}
    sources = {one["name"]: one["source"] and one["source"]["row"].pk for one in answer.context["values"]}
    assert sources["max_lines_changed"] == task.pk
    assert sources["max_files_changed"] == phase.pk
    assert sources["min_reviewers"] == second.pk
    assert sources["forbid_secrets"] is None
    for one in (first, second, off, phase, workstream, task):
        assert f'id="layer-{one.pk}"' in answer.text
        assert f"{reverse('events:list')}?subject={one.pk}" in answer.text
    assert f'href="#layer-{second.pk}"' in answer.text
    assert reverse("admin:ledger_patchpolicy_change", args=[second.pk]) in answer.text

    of_project = client.get(address)
    assert [one["row"].pk for one in of_project.context["layers"]] == [first.pk, second.pk, off.pk]
    assert client.get(address, {"task": factories.make_task().pk}).status_code == 404
    assert client.get(address, {"task": "x"}).status_code == 400


def test_a_stranger_finds_none_of_it(client: Client, patch: Patch) -> None:
    client.force_login(factories.make_user())
    for name, args in (("policy", ["relay"]), ("patch", [patch.pk]), ("interdiff", [patch.pk, patch.pk])):
        assert page(client, name, *args).status_code == 404
    assert "Build it" not in page(client, "reviews_waiting").text
