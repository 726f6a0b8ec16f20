"""Workers in the admin: health beside state, the archive, and every act by the verb that the pages call."""

from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.test import Client
from django.urls import reverse

from pipeline.clock import db_now
from pipeline.events import Event
from tests import factories
from tests.factories import in_state, make_lease, make_worker
from tests.workers.test_hotpaths import claimable
from workers.models import Lease, Worker

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]
LIST = "admin:workers_worker_changelist"


@pytest.fixture
def browser() -> Client:
    """An administrator's browser."""
    client = Client()
    client.force_login(factories.make_user(is_superuser=True, is_staff=True, username="ada"))
    return client


def act(browser: Client, verb: str, worker: Worker, **fields: str) -> Any:
    """Run an action of the list on one row."""
    return browser.post(reverse(LIST), {"action": verb, ACTION_CHECKBOX_NAME: [worker.pk], **fields}, follow=True)


def rows(browser: Client, **query: str) -> set[str]:
    """The names in the list."""
    return {row.name for row in browser.get(reverse(LIST), query).context["cl"].result_list}


def test_the_list_shows_health_and_filters_by_it(browser: Client) -> None:
    make_worker(name="fine")
    still = make_lease(make_worker(name="still")).worker
    Worker.objects.filter(pk=still.pk).update(progress_at=db_now() - timedelta(hours=1))
    in_state(make_worker(name="gone"), "crashed")
    assert rows(browser) == {"fine", "still", "gone"}
    assert rows(browser, health="stalled") == {"still"}
    assert rows(browser, health="healthy") == {"fine"}
    assert "stalled" in browser.get(reverse(LIST)).text


def test_the_archive_is_beside_the_list(browser: Client) -> None:
    old = in_state(make_worker(name="old"), "stopped")
    Worker.objects.filter(pk=old.pk).update(stopped_at=db_now() - timedelta(days=8))
    make_worker(name="alive")
    assert rows(browser) == {"alive"}
    assert rows(browser, archived="true") == {"old"}
    assert browser.get(reverse("admin:workers_worker_change", args=[old.pk])).status_code == 200


@pytest.mark.parametrize(
    ("verb", "kind"), [("stop", "worker.shutdown_requested"), ("declare_crashed", "worker.crashed")]
)
def test_an_end_owes_a_reason(browser: Client, verb: str, kind: str) -> None:
    worker = make_lease().worker
    act(browser, verb, worker)
    assert not Event.objects.filter(kind=kind).exists()
    act(browser, verb, worker, reason="it loops")
    event = Event.objects.get(kind=kind)
    assert (event.actor_name, event.reason, event.subject_id) == ("ada", "it loops", worker.pk)


def test_a_stop_asked_for_is_not_shown_as_stopped(browser: Client) -> None:
    worker = make_lease().worker
    act(browser, "stop", worker, reason="it loops")
    shown = browser.get(reverse(LIST)).text.split('id="result_list"')[1].split("</table>")[0]
    assert "stop requested" in shown
    assert "stopped" not in shown
    leases = browser.get(reverse("admin:workers_lease_changelist")).text.split('id="result_list"')[1]
    assert "stop requested" in leases.split("</table>")[0]


def test_a_task_is_given_to_one_worker(browser: Client) -> None:
    task, worker = claimable(), make_worker(name="idle")
    asked = act(browser, "assign", worker)
    assert task.pk in asked.text
    assert not Lease.objects.exists()
    done = act(browser, "assign", worker, task=task.pk)
    assert f"has the task {task.key}" in done.text
    lease = Lease.objects.get()
    assert (lease.worker_id, lease.task_id) == (worker.pk, task.pk)
    assert Event.objects.get(kind="worker.assigned").actor_name == "ada"


@pytest.mark.parametrize("task", ["17", "01ARZ3NDEKTSV4RRFFQ69G5FAV"])
def test_a_task_that_does_not_wait_is_not_given(browser: Client, task: str) -> None:
    answer = act(browser, "assign", make_worker(name="idle"), task=task)
    assert "There is no task" in answer.text or "not found" in answer.text.lower()
    assert not Lease.objects.exists()


def test_a_worker_that_cannot_have_the_task_says_why(browser: Client) -> None:
    task, worker = claimable(), make_worker(name="busy")
    worker.pause(by=factories.BY)
    answer = act(browser, "assign", worker, task=task.pk)
    assert "paused" in answer.text
    assert not Lease.objects.exists()


def test_who_does_not_operate_its_project_gives_nothing() -> None:
    task = claimable()
    worker = make_worker(api_key=factories.make_key("worker", project=task.project).row)
    other = factories.make_membership(role="operator").user
    factories.make_membership(user=other, project=task.project, role="viewer")
    other.is_staff = True
    other.save()
    stranger = Client()
    stranger.force_login(other)
    act(stranger, "assign", worker, task=task.pk)
    assert not Lease.objects.exists()


def test_a_task_is_not_given_to_two(browser: Client) -> None:
    workers = [make_worker(name=name).pk for name in ("one", "two")]
    answer = browser.post(reverse(LIST), {"action": "assign", ACTION_CHECKBOX_NAME: workers}, follow=True)
    assert "Select one worker" in answer.text
