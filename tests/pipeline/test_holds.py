"""Holds: a recorded "pause and ask" over a scope."""

import pytest

from pipeline.auth import Principal
from pipeline.models import Event, Hold
from pipeline.refusals import InvalidField, ReasonRequired
from tests import factories
from tests.factories import BY

pytestmark = pytest.mark.django_db


def test_a_hold_says_who_waits_for_whom_and_why():
    project = factories.make_project()
    hold = Hold.objects.place("project", project.pk, reason="  ask Ada ", by=BY, project=project, holder="ada")
    hold.refresh_from_db()
    assert (hold.state, hold.kind, hold.reason, hold.holder_kind, hold.holder) == (
        "active", "manual", "ask Ada", "user", "ada",
    )  # fmt: skip
    (event,) = Event.objects.about(hold)
    assert (event.kind, event.severity, event.reason, event.project_id) == (
        "hold.placed", "warning", "ask Ada", project.pk,
    )  # fmt: skip


@pytest.mark.parametrize("reason", ["", "  \n"])
def test_a_hold_without_a_reason_is_not_placed(reason):
    with pytest.raises(ReasonRequired):
        Hold.objects.place("installation", reason=reason, by=BY)
    assert not Hold.objects.exists()


@pytest.mark.parametrize(("scope_kind", "kind"), [("planet", "manual"), ("installation", "mood")])
def test_an_unknown_scope_or_kind_is_refused(scope_kind, kind):
    with pytest.raises(InvalidField):
        Hold.objects.place(scope_kind, reason="stop", by=BY, kind=kind)


def test_the_same_hold_again_answers_with_the_one_that_stands():
    first = factories.make_hold("installation", reason="one")
    again = factories.make_hold("installation", reason="two")
    assert again == first
    assert (Hold.objects.get().reason, Event.objects.about(first).count()) == ("one", 1)


def test_holds_of_another_kind_or_ref_stand_beside_each_other():
    factories.make_hold("installation")
    factories.make_hold("installation", kind="budget")
    factories.make_hold("installation", ref="b")
    assert Hold.objects.active().count() == 3


def test_a_release_is_told_once_with_its_answer():
    hold = factories.make_hold("installation")
    assert hold.release(by=BY, reason="go on", cause="answered", answer={"choice": "yes"}) is True
    assert hold.release(by=BY) is False
    hold.refresh_from_db()
    assert (hold.state, hold.released_by, hold.release_cause, hold.answer) == (
        "released", BY.name, "answered", {"choice": "yes"},
    )  # fmt: skip
    assert hold.released_at is not None
    assert [event.kind for event in Event.objects.about(hold)] == ["hold.placed", "hold.released"]


@pytest.mark.parametrize("scope", ["installation", "project", "workstream", "run", "task"])
def test_a_hold_covers_the_tasks_in_its_scope_and_no_others(scope):
    task, other = factories.make_task(), factories.make_task()
    ids = {
        "installation": "",
        "project": task.run.project_id,
        "workstream": task.run.workstream_id,
        "run": task.run_id,
        "task": task.pk,
    }
    hold = factories.make_hold(scope, ids[scope])
    assert list(Hold.objects.covering(task)) == [hold]
    assert list(Hold.objects.covering(other)) == ([hold] if scope == "installation" else [])
    hold.release(by=BY)
    assert not Hold.objects.covering(task).exists()


@pytest.mark.parametrize("scope", ["project", "workstream", "run", "task", "tool", "account", "worker"])
def test_a_hold_over_anything_but_the_installation_names_what_it_is_over(scope):
    with pytest.raises(InvalidField):
        Hold.objects.place(scope, "", reason="stop", by=BY)
    assert not Hold.objects.exists()


def test_what_a_hold_is_over_is_answered_as_it_was_given():
    project = factories.make_project()
    assert factories.make_hold("project", project.pk).scope_ref == project.pk
    assert factories.make_hold("account", "team-a").scope_ref == "team-a"
    assert factories.make_hold("installation").scope_ref == ""


def test_events_about_a_hold_belong_to_what_it_is_over():
    task = factories.make_task()
    hold = factories.make_hold("task", task.pk, project=task.run.project)
    assert Event.objects.about(hold).get().task_id == task.pk


def test_people_see_the_holds_of_their_projects_and_those_of_the_installation():
    mine, others = factories.make_hold(), factories.make_hold()
    everywhere = factories.make_hold("installation")
    user = factories.make_membership(project=mine.project).user
    assert set(Hold.objects.visible_to(Principal.of_user(user))) == {mine, everywhere}
    admin = Principal.of_user(factories.make_user(is_superuser=True))
    assert set(Hold.objects.visible_to(admin)) == {mine, others, everywhere}
