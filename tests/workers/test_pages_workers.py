"""The pages of workers: health beside state, what a worker holds, and its buttons by role."""

from datetime import timedelta

import pgtrigger
import pytest
from django.urls import reverse

from pipeline import events
from pipeline.clock import db_now
from pipeline.models import Event, Task
from tests import factories
from workers import sweeping
from workers.models import Lease, Worker
from workers.pages import last_hour

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet_broker(nudges):
    """No page waits for a broker here."""


@pytest.fixture
def project():
    return factories.make_project(key="relay")


@pytest.fixture
def worker(project):
    return factories.make_worker(name="ada-1", api_key=factories.make_key("worker", project=project).row)


def signed_in_as(client, project, role):
    user = factories.make_user()
    factories.make_membership(user, project, role)
    client.force_login(user)
    return user


def lease_in(project, worker):
    workstream = factories.make_workstream(factories.make_phase(project), tasks=[factories.task_spec("the-task")])
    return factories.make_lease(worker, factories.make_task(factories.make_run(workstream, started=True)))


def test_the_list_shows_the_living_and_those_first_that_need_a_look(client, project, worker):
    signed_in_as(client, project, "viewer")
    key = worker.api_key
    silent = factories.make_worker(name="silent", api_key=key)
    gone = factories.make_worker(name="gone", api_key=key)
    newest = factories.make_worker(name="newest", api_key=key)
    gone.shutdown(by=factories.BY)
    Worker.objects.filter(pk=silent.pk).update(transport_seen_at=db_now() - timedelta(hours=1))

    shown = client.get("/workers/").context["workers"]
    assert (shown[0].worker.name, shown[0].health) == ("silent", "unresponsive")
    assert {one.worker.name for one in shown} == {"silent", "newest", "ada-1"}
    assert newest.name in client.get("/workers/?state=idle").text
    assert [one.worker.name for one in client.get("/workers/?state=finished").context["workers"]] == ["gone"]


def test_a_worker_shows_its_lease_and_never_says_stopped_too_early(client, project, worker):
    signed_in_as(client, project, "viewer")
    lease = lease_in(project, worker)
    lease.request_stop(by=factories.BY, reason="enough")

    page = client.get(reverse("workers:worker", args=[worker.pk])).text

    assert "the-task" in page
    assert "stop requested" in page
    assert "stopped" not in page.split("<main")[1]


def test_a_worker_of_the_installation_tells_other_projects_nothing_of_its_task_or_crash(client, project):
    shared = factories.make_worker(name="shared")
    lease_in(project, shared)
    shared.crash("lost while working on the secret plan", by=factories.BY, trace="secret plan")
    signed_in_as(client, factories.make_project(), "viewer")

    page = client.get(reverse("workers:worker", args=[shared.pk])).text

    assert "shared" in page
    assert "the-task" not in page
    assert "secret plan" not in page


@pytest.mark.parametrize("verb", ["pause", "resume", "drain", "stop", "crash"])
def test_a_viewer_presses_no_button_of_a_worker(client, project, worker, verb):
    signed_in_as(client, project, "viewer")

    assert client.post(reverse(f"workers:{verb}", args=[worker.pk]), {"reason": "x"}).status_code == 403
    assert 'class="actions"' not in client.get(reverse("workers:worker", args=[worker.pk])).text
    worker.refresh_from_db()
    assert (worker.state, worker.shutdown_mode) == ("idle", "")


def test_an_operator_of_one_project_does_not_stop_a_worker_of_the_installation(client, project):
    shared = factories.make_worker()
    signed_in_as(client, project, "operator")

    assert client.post(reverse("workers:drain", args=[shared.pk])).status_code == 403


def test_an_operator_pauses_resumes_and_drains(client, project, worker):
    user = signed_in_as(client, project, "operator")
    for verb, state, mode in (("pause", "paused", ""), ("resume", "idle", ""), ("drain", "idle", "drain")):
        client.post(reverse(f"workers:{verb}", args=[worker.pk]))
        worker.refresh_from_db()
        assert (worker.state, worker.shutdown_mode) == (state, mode)
    assert Event.objects.get(kind="worker.paused").actor_name == user.get_username()


def test_a_stop_owes_a_reason(client, project, worker):
    signed_in_as(client, project, "operator")
    address = reverse("workers:stop", args=[worker.pk])

    assert "A reason is required" in client.post(address, follow=True).text
    worker.refresh_from_db()
    assert worker.shutdown_mode == ""

    assert "Stop requested" in client.post(address, {"reason": "it loops"}, follow=True).text
    worker.refresh_from_db()
    assert worker.shutdown_mode == "now"


def test_a_resume_of_what_is_not_paused_is_refused_in_words(client, project, worker):
    signed_in_as(client, project, "operator")

    answer = client.post(reverse("workers:resume", args=[worker.pk]), follow=True)

    assert "Cannot resume" in answer.text


def test_those_that_need_a_look_stand_before_everybody_however_old(client, project, worker, settings):
    settings.SIGNALBOX_LIST_LIMIT = 2
    signed_in_as(client, project, "viewer")
    lease_in(project, worker)
    Worker.objects.filter(pk=worker.pk).update(
        progress_at=db_now() - timedelta(hours=1), activity="waiting_model", activity_since=db_now()
    )
    for number in range(3):
        factories.make_worker(name=f"newer-{number}", api_key=worker.api_key)

    answer = client.get("/workers/")

    assert answer.context["workers"][0].worker.name == "ada-1"
    assert len(answer.context["workers"]) == 3
    assert "waiting for the model" in answer.text
    assert "it beats, and its work does not move" in client.get(reverse("workers:worker", args=[worker.pk])).text


def test_the_list_is_filtered_by_health(client, project, worker):
    signed_in_as(client, project, "viewer")
    late = factories.make_worker(name="late-one", api_key=worker.api_key)
    Worker.objects.filter(pk=late.pk).update(transport_seen_at=db_now() - timedelta(seconds=40))

    assert [one.worker.name for one in client.get("/workers/?health=late").context["workers"]] == ["late-one"]
    assert client.get("/workers/?health=sleepy").status_code == 400


def test_the_archive_holds_who_finished_a_week_ago(client, project, worker):
    signed_in_as(client, project, "viewer")
    old = factories.make_worker(name="old", api_key=worker.api_key)
    old.shutdown(by=factories.BY)
    Worker.objects.filter(pk=old.pk).update(stopped_at=db_now() - timedelta(days=8))

    assert client.get("/workers/?state=finished").context["workers"] == []
    assert [one.worker.name for one in client.get("/workers/?state=archived").context["workers"]] == ["old"]
    assert client.get(reverse("workers:worker", args=[old.pk])).status_code == 200


def test_a_worker_that_is_gone_is_declared_crashed_with_a_reason(client, project, worker):
    signed_in_as(client, project, "operator")
    lease = lease_in(project, worker)
    address = reverse("workers:crash", args=[worker.pk])

    assert "A reason is required" in client.post(address, follow=True).text
    assert "Declared crashed" in client.post(address, {"reason": "the machine burnt"}, follow=True).text

    worker.refresh_from_db()
    lease.refresh_from_db()
    assert (worker.state, worker.crash_message, lease.end_cause) == ("crashed", "the machine burnt", "worker_crashed")


def test_a_worker_that_did_not_stop_shows_why_it_was_asked_to(client, project, worker):
    signed_in_as(client, project, "viewer")
    early = lease_in(project, worker)
    early.request_stop(by=factories.BY, reason="another thing", outcome="")
    early.finish("cancelled", by=factories.BY)
    address = reverse("workers:worker", args=[worker.pk])
    lease = lease_in(project, worker)
    lease.request_stop(by=factories.BY, reason="stalled: no progress for 7 s", outcome="task_failed")
    Lease.objects.filter(pk=lease.pk).update(stop_deadline_at=db_now() - timedelta(seconds=1))
    sweeping.sweep()

    page = client.get(address).text

    told = page.split('class="message error">')[1].split("</p>")[0]
    assert told == "did not stop<br>It had been asked to stop: stalled: no progress for 7 s"


def test_a_worker_that_crashed_by_itself_was_asked_nothing(client, project, worker):
    signed_in_as(client, project, "viewer")
    lease_in(project, worker)
    worker.crash("it burns", by=factories.BY)

    page = client.get(reverse("workers:worker", args=[worker.pk])).text

    assert "it burns" in page
    assert "It had been asked to stop" not in page


def test_a_workers_labels_and_settings_are_shown(client, project, worker):
    signed_in_as(client, project, "viewer")
    key = worker.api_key
    shown = factories.make_worker(api_key=key, metadata={"labels": ["berlin", "gpu"]}, config={"stall_after": 77})

    page = client.get(reverse("workers:worker", args=[shown.pk])).text

    assert "berlin, gpu" in page
    assert "<code>stall_after</code> 77" in page


def test_an_operator_gives_an_idle_worker_a_task(client, worker):
    project = factories.make_project(repository=factories.sample_repository())
    factories.make_merge_queue(project)
    factories.make_tool(command=["make", "it"])
    task = factories.make_task(
        factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    )
    own = factories.make_worker(api_key=factories.make_key("worker", project=project).row)
    user = signed_in_as(client, project, "operator")
    address = reverse("workers:assign", args=[own.pk])
    assert f'value="{task.pk}"' in client.get(reverse("workers:worker", args=[own.pk])).text

    assert "not found" in client.post(address, {"task": "nonsense"}, follow=True).text
    assert "It has the task." in client.post(address, {"task": task.pk}, follow=True).text

    own.refresh_from_db()
    assert (own.state, own.current_task) == ("busy", task)
    assert Event.objects.get(kind="lease.granted").actor_name == user.get_username()
    assert "not found" in client.post(address, {"task": task.pk}, follow=True).text


def test_tasks_of_one_name_are_told_apart_by_project_and_run(client, worker):
    project = factories.make_project(key="twin-work")
    factories.make_tool()
    stream = factories.make_workstream(factories.make_phase(project))
    tasks = [factories.make_task(factories.make_run(stream, started=True)) for _n in range(2)]
    own = factories.make_worker(api_key=factories.make_key("worker", project=project).row)
    signed_in_as(client, project, "operator")

    page = client.get(reverse("workers:worker", args=[own.pk])).text

    for task in tasks:
        assert f'value="{task.pk}">twin-work · one · Task one (run …{task.run_id[-6:]})</option>' in page


def idle_with_two_tasks():
    """A project, its idle worker, and two tasks of two runs that wait for it."""
    project = factories.make_project(key="two-tasks", repository=factories.sample_repository())
    factories.make_merge_queue(project)
    factories.make_tool(key="only")
    stream = factories.make_workstream(factories.make_phase(project))
    tasks = [factories.make_task(factories.make_run(stream, started=True)) for _n in range(2)]
    return project, factories.make_worker(api_key=factories.make_key("worker", project=project).row), tasks


def offers_of(client, worker):
    """The tasks that the worker's page offers, and what it says of holds."""
    page = client.get(reverse("workers:worker", args=[worker.pk]))
    return {task.pk for task in page.context["waiting"]}, page.text.split('id="lease"')[1].split("</section>")[0]


@pytest.mark.parametrize("scope", ["installation", "project", "workstream", "worker", "run", "task"])
def test_under_a_hold_an_idle_worker_is_offered_nothing_that_would_be_refused(client, scope):
    project, worker, (first, second) = idle_with_two_tasks()
    signed_in_as(client, project, "operator")
    assert offers_of(client, worker)[0] == {first.pk, second.pk}
    rows = {"project": project, "workstream": first.run.workstream, "run": first.run, "task": first, "worker": worker}
    hold = factories.make_hold(
        scope, rows[scope].pk if scope in rows else None, project=project, reason="all hands off"
    )

    waiting, said = offers_of(client, worker)

    assert waiting == ({second.pk} if scope in ("run", "task") else set())
    assert "all hands off" in said
    assert ("Give it" in said) == bool(waiting)
    hold.release(by=factories.BY)
    waiting, said = offers_of(client, worker)
    assert (waiting, "all hands off" in said) == ({first.pk, second.pk}, False)


def test_of_many_holds_the_kill_switch_is_named_first(client):
    project, worker, (first, second) = idle_with_two_tasks()
    signed_in_as(client, project, "operator")
    for task in (first, second):
        for kind in ("manual", "question", "approval"):
            factories.make_hold("run", task.run_id, project=project, kind=kind, reason=f"{kind} of a run")
    factories.make_hold("project", project.pk, project=project, reason="all hands off")

    waiting, said = offers_of(client, worker)

    assert (waiting, said.count("<dt>Hold</dt>")) == (set(), 5)
    assert said.index("all hands off") < said.index("of a run")
    assert reverse("runs:run", args=[first.run_id]) in said


def test_a_hold_over_another_project_is_not_told(client):
    project, worker, tasks = idle_with_two_tasks()
    signed_in_as(client, project, "operator")
    factories.make_hold(reason="elsewhere")

    waiting, said = offers_of(client, worker)

    assert (waiting, "elsewhere" in said) == ({task.pk for task in tasks}, False)


def test_no_task_is_offered_that_no_tool_or_no_place_is_free_for(client):
    project, worker, (first, second) = idle_with_two_tasks()
    signed_in_as(client, project, "operator")
    hold = factories.make_hold("tool", "only", project=project)
    assert offers_of(client, worker)[0] == set()
    hold.release(by=factories.BY)
    unfit = factories.make_worker(api_key=worker.api_key, tools=["another"])
    assert offers_of(client, unfit)[0] == set()
    crowd = factories.make_workstream(
        factories.make_phase(project),
        concurrency={"max_parallel": 1},
        tasks=[factories.task_spec(name, allow_parallel=True) for name in ("x", "y")],
    )
    third, fourth = factories.make_run(crowd, started=True).tasks.order_by("sequence")
    assert offers_of(client, worker)[0] == {first.pk, second.pk, third.pk, fourth.pk}
    tool = factories.make_tool(key="spare", capabilities={"task_kinds": ["review"]})
    factories.make_lease(factories.make_worker(), third, tool=tool)
    assert offers_of(client, worker)[0] == {first.pk, second.pk}
    Task.objects.filter(pk__in=[third.pk, first.pk]).update(conflict_group="the-database")
    assert offers_of(client, worker)[0] == {second.pk}


def test_the_last_hour_shows_the_worst_of_each_minute(client, project, worker):
    signed_in_as(client, project, "viewer")
    now = db_now()
    Worker.objects.filter(pk=worker.pk).update(transport_seen_at=now)
    minutes = last_hour(worker, now)
    assert [minute.health for minute in minutes] == [""] * 59 + ["healthy"]

    worker.started_at = now - timedelta(hours=2)
    for word, was, at in (("late", "healthy", 30.5), ("healthy", "late", 20.5)):
        events.record("worker.health_changed", worker, by=factories.BY, data={"health": word, "was": was})
        with pgtrigger.ignore("pipeline.Event:written_once"):
            Event.objects.filter(kind="worker.health_changed", data__health=word).update(
                created_at=now - timedelta(minutes=at)
            )
    minutes = last_hour(worker, now)
    assert [minute.health for minute in minutes] == ["healthy"] * 29 + ["late"] * 11 + ["healthy"] * 20
    worker.refresh_from_db()
    assert client.get(reverse("workers:worker", args=[worker.pk])).text.count('class="healthy" title=') == 1
