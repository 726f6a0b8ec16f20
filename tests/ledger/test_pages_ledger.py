"""The pages of the ledger: the rail, the diff, and the buttons by role; the merge queue in its order."""

import pytest
from django.urls import reverse

from ledger.models import QueueItem
from pipeline.events import SYSTEM
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet_broker(nudges):
    """No page waits for a broker here."""


@pytest.fixture
def project():
    project = factories.make_project(key="relay", repository=factories.sample_repository())
    factories.make_merge_queue(project)
    return project


@pytest.fixture
def patch(project):
    diff = factories.new_file_diff("docs/a.html", "<script>alert(1)</script>")
    return factories.make_patch(project, diff_text=diff, summary="Add a page")


FOUND = {
    "format_ok": True,
    "scope_ok": True,
    "constraints_ok": True,
    "validation_errors": [],
    "findings": [{"rule": "protected_paths", "message": "docs/a.html asks for a review", "path": "docs/a.html"}],
    "policy_snapshot": {},
}


def signed_in_as(client, project, role):
    user = factories.make_user()
    factories.make_membership(user, project, role)
    client.force_login(user)
    return user


def page_of(client, patch):
    return client.get(reverse("ledger:patch", args=[patch.pk]))


def test_a_patch_shows_what_it_changes_and_its_text_is_never_markup(client, project, patch):
    signed_in_as(client, project, "viewer")

    page = page_of(client, patch).text

    assert "docs/a.html" in page
    assert "<script>alert" not in page
    plain = client.get(reverse("ledger:diff", args=[patch.pk]))
    assert plain["Content-Type"] == "text/plain; charset=utf-8"
    assert plain["X-Content-Type-Options"] == "nosniff"
    assert plain.text == patch.content.diff_text


def test_the_rail_shows_the_road_that_was_taken_with_its_times(client, project, patch):
    signed_in_as(client, project, "viewer")
    patch.note_validation(FOUND, by=SYSTEM)
    patch.queue(by=SYSTEM)

    steps = page_of(client, patch).context["steps"]

    assert [step["state"] for step in steps] == [
        "created", "validated", "queued", "applied", "verified", "committed",
    ]  # fmt: skip
    assert [step["past"] for step in steps] == [True, True, False, False, False, False]
    assert [step["state"] for step in steps if step["current"]] == ["queued"]
    assert [bool(step["at"]) for step in steps] == [True, True, True, False, False, False]


def test_the_rail_of_a_patch_off_the_road_ends_where_it_left(client, project, patch):
    signed_in_as(client, project, "viewer")
    patch.note_validation(FOUND, by=SYSTEM)
    patch.quarantine("odd", by=SYSTEM)

    steps = page_of(client, patch).context["steps"]

    assert [step["state"] for step in steps] == ["created", "validated", "quarantined"]
    assert steps[-1]["current"]


def test_findings_and_errors_are_shown_with_their_rule_and_path(client, project, patch):
    signed_in_as(client, project, "viewer")
    patch.note_validation(FOUND, by=SYSTEM)
    assert "asks for a review" in page_of(client, patch).text

    other = factories.make_patch(project)
    error = {"rule": "scope_path", "code": "files_scope_violation", "message": "outside of its scope", "path": "x.py"}
    other.note_validation({**FOUND, "scope_ok": False, "validation_errors": [error]}, by=SYSTEM)
    page = page_of(client, other).text
    assert "outside of its scope" in page
    assert "files_scope_violation" in page


@pytest.mark.parametrize(
    ("role", "verb", "state", "allowed"),
    [
        ("viewer", "quarantine", "created", False),
        ("operator", "quarantine", "created", True),
        ("operator", "release", "quarantined", False),
        ("approver", "release", "quarantined", True),
        ("viewer", "drop", "created", False),
        ("operator", "drop", "quarantined", True),
        ("viewer", "requeue", "apply_failed", False),
        ("operator", "requeue", "apply_failed", True),
    ],
)
def test_a_patch_s_button_asks_for_its_role(client, project, patch, role, verb, state, allowed):
    signed_in_as(client, project, role)
    factories.in_state(patch, state)
    address = reverse(f"ledger:{verb}", args=[patch.pk])

    assert (f'action="{address}"' in page_of(client, patch).text) is allowed
    assert client.post(address, {"reason": "looked at it"}).status_code == (302 if allowed else 403)


def test_a_patch_is_set_aside_released_and_dropped_with_reasons(client, project, patch):
    user = signed_in_as(client, project, "approver")
    for verb, state in (("quarantine", "quarantined"), ("release", "created"), ("drop", "dropped")):
        address = reverse(f"ledger:{verb}", args=[patch.pk])
        assert "A reason is required" in client.post(address, {"reason": ""}, follow=True).text
        client.post(address, {"reason": f"{verb} it"})
        patch.refresh_from_db()
        assert patch.state == state
    history = page_of(client, patch).context["events"]
    assert [(event.kind, event.reason, event.actor_name) for event in history[:3]] == [
        ("patch.dropped", "drop it", user.get_username()),
        ("patch.released", "release it", user.get_username()),
        ("patch.quarantined", "quarantine it", user.get_username()),
    ]


def test_a_requeue_that_may_not_be_is_refused_in_words(client, project, patch):
    signed_in_as(client, project, "operator")

    answer = client.post(reverse("ledger:requeue", args=[patch.pk]), follow=True)

    assert "Cannot queue" in answer.text
    assert not QueueItem.objects.exists()


def test_the_ledger_is_filtered_by_state_and_run(client, project, patch):
    signed_in_as(client, project, "viewer")
    dropped = factories.make_patch(project)
    dropped.drop("no", by=SYSTEM)
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    of_run = factories.make_patch(attempt=factories.make_step(run, start=True))

    def shown(query):
        return [row.pk for row in client.get(f"/ledger/?{query}").context["patches"]]

    assert shown("state=open") == [of_run.pk, patch.pk]
    assert shown("state=dropped") == [dropped.pk]
    assert shown(f"run={run.pk}") == [of_run.pk]


def test_the_merge_queue_stands_in_the_order_of_landing(client, project):
    signed_in_as(client, project, "viewer")
    queue = factories.make_merge_queue(project)
    items = [factories.make_queue_item(factories.make_patch(project, summary=f"change {n}"), queue) for n in (1, 2, 3)]
    items[0].withdraw(by=SYSTEM, reason="not now")

    page = client.get("/merge-queue/").text

    assert "change 1" not in page
    assert page.index("change 2") < page.index("change 3")


def test_a_persons_patch_for_a_task_is_listed_with_the_tasks_run(client, project):
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)))
    task = factories.make_task(run)
    patch = factories.make_patch(project, task=task)
    signed_in_as(client, project, "viewer")
    page = client.get(reverse("ledger:list"))
    assert page.status_code == 200
    assert reverse("runs:run", args=[run.pk]) in page.text
    assert f"?task={task.pk}" in page_of(client, patch).text
