"""Definitions: what people own is checked, versioned and told with what changed."""

import pytest

from pipeline import events
from pipeline.definitions import PreconditionFailed, diff
from pipeline.models import Event, Phase, Project, Workstream
from pipeline.refusals import InvalidField, NotFound, Refused
from tests import factories
from tests.factories import BY

pytestmark = pytest.mark.django_db


def kinds(row):
    """What the log says of the row."""
    return [event.kind for event in Event.objects.about(row)]


def test_a_new_row_is_told_with_its_whole_document():
    project = factories.make_project(key="demo")
    (event,) = Event.objects.about(project)
    assert (event.kind, event.before, event.after["key"]) == ("project.added", {}, "demo")
    assert event.after == {**project.document(), "created_at": events.plain(project.created_at)}
    assert (event.actor_name, event.project_id) == (BY.name, project.pk)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"key": "Not A Key"}, "key"),
        ({"name": ""}, "name"),
        ({"currency": "usd"}, "currency"),
        ({"custody": "borrowed"}, "custody"),
        ({"repository_url": ""}, "repository_url"),
    ],
)
def test_a_wrong_field_is_named_and_nothing_is_made(fields, field):
    with pytest.raises(InvalidField) as refusal:
        factories.make_project(**fields)
    assert (refusal.value.parts["field"], refusal.value.status) == (field, 422)
    assert not Project.objects.exists()
    assert not Event.objects.exists()


def test_a_key_that_is_taken_is_refused_as_duplicate():
    factories.make_project(key="demo")
    with pytest.raises(Refused) as refusal:
        factories.make_project(key="demo")
    assert (refusal.value.code, refusal.value.status) == ("duplicate_key", 409)


@pytest.mark.parametrize(
    ("make", "fields"), [(factories.make_phase, {"sequence": 0}), (factories.make_tool, {"max_parallel": 0})]
)
def test_a_figure_out_of_bounds_is_a_wrong_field_and_no_duplicate(make, fields):
    with pytest.raises(InvalidField) as refusal:
        make(**fields)
    assert refusal.value.code != "duplicate_key"
    row = make()
    with pytest.raises(InvalidField):
        row.edit(by=BY, **fields)


def test_a_field_that_is_none_cannot_be_edited():
    with pytest.raises((InvalidField, AttributeError, TypeError)):
        factories.make_project().edit(by=BY, nmae="Typo")


def test_an_edit_is_told_with_the_changed_fields_alone():
    project = factories.make_project(name="Old")
    assert project.edit(by=BY, name="New", currency="USD") is True
    event = Event.objects.about(project).last()
    assert (event.kind, event.before, event.after) == ("project.changed", {"name": "Old"}, {"name": "New"})
    assert (project.name, project.version) == ("New", 2)


def test_an_edit_that_changes_nothing_is_quiet():
    project = factories.make_project(name="Old")
    assert project.edit(by=BY, name="Old") is False
    project.refresh_from_db()
    assert (project.version, kinds(project)) == (1, ["project.added"])


def test_an_edit_of_an_outdated_version_is_refused_with_the_present_one():
    project = factories.make_project()
    project.edit(by=BY, name="Theirs")
    with pytest.raises(PreconditionFailed) as refusal:
        project.edit(by=BY, expected_version=1, name="Ours")
    assert (refusal.value.status, refusal.value.parts["version"]) == (412, 2)
    project.refresh_from_db()
    assert project.name == "Theirs"
    assert kinds(project) == ["project.added", "project.changed"]


def test_an_edit_of_the_present_version_goes_through():
    project = factories.make_project()
    assert project.edit(by=BY, expected_version=1, name="Ours") is True
    assert project.edit(by=BY, expected_version=2, name="Ours again") is True


def test_two_edits_of_different_fields_both_stay():
    project = factories.make_project(name="Old")
    stale = Project.objects.get(pk=project.pk)
    project.edit(by=BY, name="New")
    stale.edit(by=BY, domain="mixed")
    project.refresh_from_db()
    assert (project.name, project.domain) == ("New", "mixed")


def test_an_edit_that_breaks_a_rule_changes_nothing():
    project = factories.make_project()
    with pytest.raises(InvalidField):
        project.edit(by=BY, currency="usd")
    project.refresh_from_db()
    assert (project.currency, kinds(project)) == ("USD", ["project.added"])


def test_an_edit_to_a_key_that_is_taken_is_refused_as_duplicate():
    factories.make_project(key="taken")
    project = factories.make_project(key="mine")
    with pytest.raises(Refused) as refusal:
        project.edit(by=BY, key="taken")
    assert (refusal.value.code, refusal.value.status) == ("duplicate_key", 409)


def test_a_row_that_is_gone_is_not_found():
    project = factories.make_project()
    Project.objects.filter(pk=project.pk).delete()
    with pytest.raises(NotFound):
        project.edit(by=BY, name="New")


def test_a_removal_is_told_with_the_last_document():
    phase = factories.make_phase(key="build")
    phase_id = phase.pk
    phase.remove(by=BY)
    event = Event.objects.get(kind="phase.removed")
    assert (event.subject_id, event.before["key"], event.after) == (phase_id, "build", {})
    assert not Phase.objects.exists()


def test_what_others_point_to_is_not_removed_and_nothing_is_told():
    run = factories.make_run()
    workstream = run.workstream
    with pytest.raises(Refused) as refusal:
        workstream.remove(by=BY)
    assert refusal.value.code == "in_use"
    assert Workstream.objects.filter(pk=workstream.pk).exists()
    assert not Event.objects.filter(kind="workstream.removed").exists()


def test_every_edit_of_a_workstream_is_a_new_revision_and_its_runs_keep_theirs():
    workstream = factories.make_workstream()
    run = factories.make_run(workstream)
    workstream.edit(by=BY, objective="Something else")
    run.refresh_from_db()
    assert (workstream.revision, run.workstream_revision) == (2, 1)


def test_a_gates_version_rises_with_what_it_executes_and_not_with_its_name():
    gate = factories.make_gate()
    gate.edit(by=BY, name="Other")
    assert gate.gate_version == 1
    gate.edit(by=BY, command=["false"])
    assert gate.gate_version == 2


def test_phases_that_wait_for_each_other_are_refused():
    one = factories.make_phase(key="one")
    factories.make_phase(one.project, key="two", depends_on=["one"])
    with pytest.raises(InvalidField) as refusal:
        one.edit(by=BY, depends_on=["two"])
    assert refusal.value.code == "circular_dependency"


def test_the_difference_of_two_documents_names_each_field_once():
    assert diff({"a": 1, "b": 2}, {"b": 3, "c": 4}) == [("a", 1, None), ("b", 2, 3), ("c", None, 4)]
    assert diff({"a": 1}, {"a": 1}) == []
