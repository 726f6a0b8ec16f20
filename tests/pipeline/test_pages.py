"""The overview, the pages of runs and of events: what they show, and what their buttons do, by role."""

import pytest
from django.urls import reverse

from pipeline.models import Event, Hold, Run
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet_broker(nudges):
    """No page waits for a broker here."""


@pytest.fixture
def project():
    return factories.make_project(key="relay")


@pytest.fixture
def run(project):
    tasks = [factories.task_spec("first"), factories.task_spec("second", depends_on=["first"])]
    workstream = factories.make_workstream(factories.make_phase(project), name="Retry queue", tasks=tasks)
    return factories.make_run(workstream, started=True)


def signed_in_as(client, project, role):
    user = factories.make_user()
    factories.make_membership(user, project, role)
    client.force_login(user)
    return user


def test_the_overview_shows_four_figures_and_what_waits_for_a_person(client, project, run):
    signed_in_as(client, project, "approver")
    run.hold(by=factories.BY, reason="wait for the schema")
    failed = factories.in_state(factories.make_run(run.workstream), "failed", state_reason="it broke")
    parked = factories.make_patch(factories.make_project(custody="recorded"), summary="another project's")
    parked.quarantine("odd", by=factories.BY)

    page = client.get("/").text

    for words in ("Moving agents", "Landed today", "Gate pass rate", "Spend today", "wait for the schema", "it broke"):
        assert words in page
    assert reverse("runs:run", args=[failed.pk]) in page
    assert "another project" not in page
    assert page.count('class="reason"') == 1


def test_a_failed_run_that_was_retried_waits_for_nobody(client, project, run):
    signed_in_as(client, project, "viewer")
    failed = factories.in_state(factories.make_run(run.workstream), "failed", state_reason="it broke")
    failed.retry(by=factories.BY)

    assert "it broke" not in client.get("/").text


def test_an_empty_installation_says_what_will_appear_and_how(client, project):
    signed_in_as(client, project, "viewer")

    assert "Nothing waits for you" in client.get("/").text
    assert "addproject" in client.get("/runs/").text
    assert "No patches" in client.get("/ledger/").text


def test_runs_are_filtered_by_state_and_project(client, project, run):
    signed_in_as(client, project, "viewer")
    canceled = factories.make_run(run.workstream)
    canceled.cancel(by=factories.BY)

    def shown(query):
        return [shown.pk for shown in client.get(f"/runs/{query}").context["runs"]]

    assert shown("") == [canceled.pk, run.pk]
    assert shown("?state=canceled") == [canceled.pk]
    assert shown(f"?project={project.pk}&state=running") == [run.pk]
    assert shown("?project=relay&state=running") == [run.pk]


@pytest.mark.parametrize("query", ["state=nonsense", "project=delay", "cursor=-1"])
def test_a_filter_that_is_not_understood_is_a_bad_request_and_not_everything(client, project, run, query):
    signed_in_as(client, project, "viewer")

    answer = client.get(f"/runs/?{query}")

    assert answer.status_code == 400
    assert answer.context["runs"] == []


def test_a_list_goes_on_behind_its_last_row_and_keeps_its_filters(client, project, run, settings):
    settings.SIGNALBOX_LIST_LIMIT = 2
    signed_in_as(client, project, "viewer")
    newer = [factories.make_run(run.workstream) for _ in range(3)]

    first = client.get("/runs/?state=pending")
    second = client.get(f"/runs/?state=pending&cursor={first.context['next_cursor']}")

    assert [shown.pk for shown in first.context["runs"]] == [newer[2].pk, newer[1].pk]
    assert [shown.pk for shown in second.context["runs"]] == [newer[0].pk]
    assert "state=pending&amp;cursor=" in first.text
    assert second.context["next_cursor"] == ""


def test_a_run_shows_its_tasks_by_level_attempts_and_holds(client, project, run):
    signed_in_as(client, project, "viewer")
    lease = factories.make_lease(factories.make_worker(name="ada-1"), run.tasks.get(key="first"))
    run.hold(by=factories.BY, reason="wait for the schema")

    answer = client.get(reverse("runs:run", args=[run.pk]))

    assert [[task.key for task in level] for level in answer.context["levels"]] == [["first"], ["second"]]
    assert [hold.reason for hold, _may_release in answer.context["holds"]] == ["wait for the schema"]
    assert "ada-1" in answer.text
    assert reverse("runs:attempt", args=[run.pk, lease.attempt.sequence]) in answer.text


def test_an_attempt_shows_the_end_of_its_output_escaped(client, project, run):
    signed_in_as(client, project, "viewer")
    lease = factories.make_lease(task=run.tasks.get(key="first"))
    lease.finish("success", by=factories.BY, output_tail="<script>alert(1)</script>")

    page = client.get(reverse("runs:attempt", args=[run.pk, lease.attempt.sequence])).text

    assert "&lt;script&gt;alert(1)" in page
    assert "<script>alert" not in page


def test_the_button_on_the_list_opens_and_starts_a_run(client, project, run):
    signed_in_as(client, project, "operator")

    answer = client.post("/runs/start/", {"workstream": run.workstream_id})

    made = Run.objects.exclude(pk=run.pk).get()
    assert answer["Location"] == reverse("runs:run", args=[made.pk])
    assert made.state == "running"
    assert Event.objects.filter(kind="run.started", run_id=made.pk).get().actor_kind == "user"


def test_a_start_that_is_refused_leaves_no_run_behind(client, project, run):
    signed_in_as(client, project, "operator")
    Hold.objects.place("project", project.pk, reason="stop all", by=factories.BY, project=project)

    answer = client.post("/runs/start/", {"workstream": run.workstream_id}, follow=True)

    assert "stop all" in answer.text
    assert list(Run.objects.all()) == [run]


@pytest.mark.parametrize(
    ("role", "verb", "data", "allowed"),
    [
        ("viewer", "cancel", {"reason": "enough"}, False),
        ("operator", "cancel", {"reason": "enough"}, True),
        ("viewer", "hold", {"reason": "wait"}, False),
        ("operator", "hold", {"reason": "wait"}, True),
        ("operator", "release", {"reason": "go"}, False),
        ("approver", "release", {"reason": "go"}, True),
        ("viewer", "retry", {}, False),
        ("operator", "retry", {}, True),
        ("viewer", "start", {}, False),
        ("operator", "start", {}, True),
    ],
)
def test_a_run_s_button_asks_for_its_role(client, project, run, role, verb, data, allowed):
    signed_in_as(client, project, role)
    before = Event.objects.count()

    answer = client.post(reverse(f"runs:{verb}", args=[run.pk]), data)

    assert answer.status_code == (302 if allowed else 403)
    if not allowed:
        assert Event.objects.count() == before


def test_a_run_is_cancelled_with_a_reason_and_not_without(client, project, run):
    signed_in_as(client, project, "operator")

    refused = client.post(reverse("runs:cancel", args=[run.pk]), {"reason": " "}, follow=True)
    run.refresh_from_db()
    assert run.state == "running"
    assert "A reason is required" in refused.text

    client.post(reverse("runs:cancel", args=[run.pk]), {"reason": "not today"})
    run.refresh_from_db()
    assert (run.state, run.state_reason) == ("canceled", "not today")


def test_a_hold_over_the_installation_is_not_released_by_a_project_s_approver(client, project):
    signed_in_as(client, project, "approver")
    hold = factories.make_hold("installation")

    assert client.post(reverse("runs:hold_release", args=[hold.pk]), {"reason": "go"}).status_code == 403
    hold.refresh_from_db()
    assert hold.state == "active"


def test_a_hold_is_released_with_a_reason_and_leads_back_to_its_run(client, project, run):
    user = signed_in_as(client, project, "approver")
    hold = run.hold(by=factories.BY, reason="wait")

    answer = client.post(reverse("runs:hold_release", args=[hold.pk]), {"reason": "the schema is fine"})

    hold.refresh_from_db()
    assert (hold.state, hold.released_by) == ("released", user.get_username())
    assert answer["Location"] == reverse("runs:run", args=[run.pk])


def test_retry_opens_a_run_that_waits_to_be_started(client, project, run):
    signed_in_as(client, project, "operator")
    run.cancel(by=factories.BY)

    answer = client.post(reverse("runs:retry", args=[run.pk]))

    made = Run.objects.get(retry_of=run)
    assert made.state == "pending"
    assert answer["Location"] == reverse("runs:run", args=[made.pk])


def test_events_are_filtered_by_kind_severity_and_run(client, project, run):
    signed_in_as(client, project, "viewer")
    run.hold(by=factories.BY, reason="wait")

    def kinds(query):
        return [event.kind for event in client.get(f"/events/?{query}").context["events"]]

    assert kinds(f"run={run.pk}&kind=run.started") == ["run.started"]
    assert kinds("severity=warning") == ["hold.placed"]
    assert set(kinds(f"subject={run.pk}")) == {"run.created", "run.started"}
    assert kinds("channel=worker_status") == []


def test_an_event_shows_before_and_after_to_those_who_may_see_it(client, project, run):
    signed_in_as(client, project, "viewer")
    started = Event.objects.get(kind="run.started")
    address = reverse("events:event", args=[started.pk])

    changes = client.get(address).context["changes"]
    assert ("state", "pending", "running") in [(one.name, one.before, one.after) for one in changes]

    client.force_login(factories.make_user())
    assert client.get(address).status_code == 404


def test_the_notice_of_a_demo_is_seen_where_the_demo_is(client, project):
    signed_in_as(client, project, "viewer")
    assert "shows a demo" not in client.get("/").text

    project.edit(by=factories.BY, profile={"demo": True})
    assert "shows a demo" in client.get("/").text
    client.force_login(factories.make_user())
    assert "shows a demo" not in client.get("/").text
