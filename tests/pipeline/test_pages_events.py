"""The pages of the events: one event whole, and the log by its filters."""

import re

import pytest
from django.urls import reverse

from pipeline import events
from pipeline.events import Actor
from pipeline.models import Event
from tests import factories

pytestmark = pytest.mark.django_db

PYTHON = re.compile(r"\bTrue\b|\bFalse\b|\bNone\b|&#x27;|\{&|\[&")


@pytest.fixture(autouse=True)
def quiet_broker(nudges):
    """No page waits for a broker here."""


@pytest.fixture
def project():
    return factories.make_project(key="relay")


@pytest.fixture
def viewer(client, project):
    user = factories.make_user()
    factories.make_membership(user, project, "viewer")
    client.force_login(user)
    return client


def page_of(client, event):
    return client.get(reverse("events:event", args=[event.pk]))


def test_an_edit_of_a_gate_is_shown_as_what_was_added_removed_and_changed(viewer, project):
    told = {"evidence": {"junit": "junit.xml"}, "applies_to": ["*.py", "docs/**"]}
    gate = factories.make_gate(project, criteria={"max_failures": 3}, **told)
    gate.edit(by=factories.BY, criteria={"max_failures": 5}, applies_to=["*.py", "*.md"], required=False)

    page = page_of(viewer, Event.objects.get(kind="gate.changed")).text

    assert '<strong>changed</strong> <code>max_failures</code> from <span class="number">3</span>' in page
    assert "<strong>removed</strong> docs/**" in page
    assert "<strong>added</strong> *.md" in page
    assert '<td class="wrap-anywhere">yes</td><td class="wrap-anywhere">no</td>' in page
    assert not PYTHON.search(page)


def test_what_the_ledger_tells_of_a_patch_is_shown_without_a_word_of_python(viewer, project):
    patch = factories.make_patch(project)
    events.drain()

    for event in Event.objects.filter(subject_id=patch.pk):
        page = page_of(viewer, event)
        assert (event.kind, page.status_code) == (event.kind, 200)
        assert not PYTHON.search(page.text), event.kind


def test_an_event_leads_to_everything_that_it_belongs_to(viewer, project):
    lease = factories.make_lease(task=factories.make_task(_run(project)))
    lease.finish("success", by=Actor("user", "", "ada", on_behalf_of="grace"))
    event = Event.objects.get(kind="step.succeeded")

    page = page_of(viewer, event)

    task, step, run = lease.task, lease.attempt, lease.task.run
    for address in (
        f"{reverse('runs:list')}?project={project.pk}",
        reverse("runs:run", args=[run.pk]),
        f"{reverse('runs:run', args=[run.pk])}#task-{task.key}",
        reverse("runs:attempt", args=[run.pk, step.sequence]),
    ):
        assert f'href="{address}"' in page.text, address
    taken = page_of(viewer, Event.objects.get(kind="lease.granted")).text
    assert f'href="{reverse("workers:worker", args=[lease.worker_id])}"' in taken
    assert f'id="task-{task.key}"' in viewer.get(reverse("runs:run", args=[run.pk])).text
    for words in (
        "On behalf of</dt><dd>grace",
        f'data-copy="{event.cursor}"',
        f"?task={task.pk}",
        f"?subject={step.pk}",
    ):
        assert words in page.text, words


def test_an_event_that_belongs_to_nothing_says_no_more_than_that(admin_client):
    factories.make_tool()

    assert page_of(admin_client, Event.objects.get(kind="tool.added")).context["ties"] == []


def _run(project):
    return factories.make_run(factories.make_workstream(factories.make_phase(project)))


# -- the log by its filters --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("run", "abc", "an id has 26 letters"),
        ("kind", "run.startd", "matches no kind of event"),
        ("kind", "<b>", "is no pattern"),
        ("severity", "loud", "one of debug, info, warning, error, critical"),
        ("channel", "x", "one of worker_status"),
        ("project", "delay", "no project that you may see has this key"),
        ("worker", "ada", "an id has 26 letters"),
        ("since", "yesterday", "such as 2026-11-23"),
        ("until", "0001-01-01T00:00+23:59", "such as 2026-11-23"),
    ],
)
def test_a_mistyped_filter_stays_in_its_field_which_says_what_would_be_right(viewer, name, value, right):
    answer = viewer.get("/events/", {name: value, "task": ""})

    assert (answer.status_code, answer.context["events"]) == (400, [])
    field = re.search(rf'<(input|select)[^>]* name="{name}".*?</label>', answer.text, re.DOTALL)
    assert 'aria-invalid="true"' in field[0]
    assert f'aria-describedby="wrong-{name}"' in field[0]
    assert right in re.search(rf'id="wrong-{name}">(.*?)</span>', field[0])[1]
    assert f'value="{value.replace("<", "&lt;").replace(">", "&gt;")}"' in field[0]
    assert "Nothing is listed" in answer.text
    assert answer.text.count('aria-invalid="true"') == 1


def test_a_place_that_no_list_has_says_so_and_leads_to_the_first_page(viewer):
    for address in ("/events/", "/events/failed/"):
        answer = viewer.get(f"{address}?cursor=zzz&kind=run.*")

        assert answer.status_code == 400
        assert "“zzz” is no place in this list" in answer.text
        assert 'rel="first"' in answer.text


def test_the_log_is_asked_by_patterns_keys_people_times_and_what_events_belong_to(viewer, project):
    run = _run(project)
    run.start(by=Actor("user", "", "grace"))
    lease = factories.make_lease(task=factories.make_task(run))
    patch = factories.make_patch(attempt=lease.attempt, worker_id=lease.worker_id)
    other = _run(factories.make_project())

    def found(**query):
        answer = viewer.get("/events/", query)
        assert answer.status_code == 200
        return {(event.kind, event.subject_id) for event in answer.context["events"]}

    assert {kind for kind, _ in found(kind="run.*")} == {"run.created", "run.started"}
    assert found(kind="run.started, task.created") == found(kind="run.started") | found(kind="task.created")
    assert found(project="relay") == found(project=project.pk) != set()
    assert found(run=run.pk.lower()) == found(run=run.pk) != set()
    assert found(actor="grace", kind="run.*") == {("run.started", run.pk)}
    assert ("patch.created", patch.pk) in found(patch=patch.pk)
    assert ("lease.granted", lease.pk) in found(worker=lease.worker_id) & found(task=lease.task_id)
    assert found(until="2020-01-01") == found(since="2100-01-01T00:00") == set()
    assert found(since="2020-01-01", until="2100-01-01T00:00Z") == found() != set()
    assert other.pk not in {subject for _, subject in found()}


def test_the_folded_filters_are_open_while_one_of_them_is_set(viewer):
    assert '<details class="more">' in viewer.get("/events/").text
    assert '<details class="more" open>' in viewer.get("/events/?actor=ada").text
    assert '<details class="more" open>' in viewer.get("/events/?task=abc").text


@pytest.mark.parametrize(
    "address",
    [
        "/runs/?state=loud",
        "/runs/?project=delay",
        "/workers/?health=sleepy",
        "/ledger/?run=abc",
        "/ledger/?state=x",
        "/gates/?gate=abc",
        "/costs/?run=abc",
        "/costs/truth/?project=delay",
        "/ledger/receipts/?project=delay",
        "/projects/relay/policy/?phase=x",
    ],
)
def test_other_pages_answer_a_mistyped_filter_at_its_field_as_well(viewer, address):
    answer = viewer.get(address)

    assert answer.status_code == 400
    name, _, value = address.partition("?")[2].partition("=")
    assert f'id="wrong-{name}"' in answer.text
    assert f'value="{value}"' in answer.text
    assert "Nothing is listed" in answer.text or "policy" in address


def test_what_is_no_page_with_a_form_still_refuses_a_mistyped_filter(viewer):
    assert viewer.get("/costs/export.csv?run=abc").status_code == 400
    assert viewer.post("/runs/start/", {"workstream": "abc"}).status_code == 400
