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
    gate = factories.make_gate(project, criteria={"max_failures": 3}, applies_to=["*.py", "docs/**"])
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
