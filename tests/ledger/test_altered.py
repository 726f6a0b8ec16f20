"""Rows that somebody changed behind the back of the verbs are named, by table, row and column."""

from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.management import call_command
from django.db import connection, models

from ledger import audit, sealing, validation
from ledger.models import Patch, PatchPolicy, PatchReview, PolicyOverride
from pipeline import altered
from pipeline.events import Actor, Event
from pipeline.ids import new_id, to_uuid
from pipeline.models import Membership
from tests import factories
from tests.api.asking import Api
from tests.factories import BY

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]


def behind_its_back(table: str, statement: str, *arguments: Any) -> None:
    """As the owner of the tables may, with every trigger of this one asleep."""
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        try:
            cursor.execute(statement, arguments)
        finally:
            cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


@pytest.fixture
def reviewed() -> Patch:
    """A patch under way, with a veto, an override, a policy over it, and a reviewer's membership."""
    project = factories.make_project(repository=factories.sample_repository())
    factories.make_policy(project=project, constraints={"min_reviewers": 1, "forbid_touching_paths": ["docs/**"]})
    patch = factories.make_patch(project, summary="A note")
    validation.validate(patch.pk)
    patch.refresh_from_db()
    ben = factories.make_user(username="ben")
    factories.make_membership(ben, project, "approver")
    by = Actor("user", ben.pk, "ben")
    PolicyOverride.objects.grant(
        patch, "forbid_touching_paths", reason="agreed", expires_after=timedelta(days=1), by=by, user=ben
    )
    patch.note_validation(validation.judge(patch), by=BY)
    PatchReview.objects.give(patch, "reject", by=by, reviewer=ben, body="no")
    return patch


FLIPS: list[tuple[type[models.Model], str, str]] = [
    (PatchReview, "verdict", "'approve'"),
    (PatchReview, "body", "'yes'"),
    (PolicyOverride, "expires_at", "expires_at + interval '9 days'"),
    (PatchPolicy, "constraints", """'{"min_reviewers": 0}'::jsonb"""),
    (Patch, "policy_snapshot", """policy_snapshot || '{"min_reviewers": 0}'::jsonb"""),
    (Patch, "summary", "'Another note'"),
    (Patch, "author_name", "'ada'"),
    (Membership, "role", "'admin'"),
]


@pytest.mark.parametrize(("model", "column", "value"), FLIPS, ids=lambda one: getattr(one, "__name__", None))
def test_a_column_changed_by_hand_is_named(reviewed: Patch, model: type[models.Model], column: str, value: str) -> None:
    assert altered.look().problems == []
    table, row = model._meta.db_table, model._base_manager.latest("pk")

    behind_its_back(table, f"UPDATE {table} SET {column} = {value} WHERE id = %s", to_uuid(row.pk))

    (found,) = altered.look().problems
    assert (found.pk, found.column) == (row.pk, column)


def test_a_row_that_was_taken_away_is_named(reviewed: Patch) -> None:
    veto = PatchReview.objects.get()

    behind_its_back("ledger_patchreview", "DELETE FROM ledger_patchreview WHERE id = %s", to_uuid(veto.pk))

    (found,) = altered.look().problems
    assert (found.noun, found.pk, found.what) == ("review", veto.pk, "the log tells of it, and there is no such row")


def test_a_row_that_no_verb_made_is_named(reviewed: Patch) -> None:
    veto = PatchReview.objects.get()
    given = new_id()

    behind_its_back(
        "ledger_patchreview",
        "INSERT INTO ledger_patchreview SELECT (jsonb_populate_record(r, jsonb_build_object('id', %s::uuid))).*"
        " FROM ledger_patchreview r WHERE id = %s",
        to_uuid(given),
        to_uuid(veto.pk),
    )

    (found,) = altered.look().problems
    assert (found.noun, found.pk, found.what) == ("review", given, "no event tells of it")


def test_what_a_verb_removed_is_not_missed(reviewed: Patch) -> None:
    PatchPolicy.objects.get().remove(by=BY)

    assert altered.look().problems == []


def told_by_the_command() -> list[str]:
    """What `verify-ledger` prints of rows, where something is wrong with one."""
    out = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("verify-ledger", jobs=1, stdout=out)
    assert ended.value.code == 1
    lines = out.getvalue().splitlines()
    return lines[[" rows held against " in line for line in lines].index(True) + 1 :]


def test_a_row_that_no_verb_made_and_the_api_removed_is_named_and_what_comes_after_it_too(reviewed: Patch) -> None:
    made = Membership.objects.create(user=factories.make_user(), project=reviewed.project, role="viewer")
    admin = Api(factories.make_key("admin").text, If_Match=f'"{made.version}"')
    answer = admin.delete(f"/memberships/{made.pk}/")
    assert answer.status_code == 204
    behind_its_back("ledger_patchreview", "UPDATE ledger_patchreview SET verdict = 'approve'")

    first, second = told_by_the_command()

    assert first.startswith(f"membership {made.pk}: there is no such row. The history of this membership does not tell")
    assert second.startswith(f"review {PatchReview.objects.get().pk}, column verdict: ")


def test_a_row_that_no_program_can_read_is_named_with_its_column(reviewed: Patch) -> None:
    override = PolicyOverride.objects.get()
    behind_its_back("ledger_policyoverride", "UPDATE ledger_policyoverride SET expires_at = 'infinity'")
    behind_its_back("ledger_patchreview", "UPDATE ledger_patchreview SET verdict = 'approve'")

    first, second = told_by_the_command()

    assert first.startswith(f"override {override.pk}, column expires_at: it cannot be read: ")
    assert second.startswith(f"review {PatchReview.objects.get().pk}, column verdict: ")


def test_a_tombstone_that_is_none_is_named_as_any_other_row(reviewed: Patch) -> None:
    event = Event.objects.filter(kind="review.given").latest("seq")
    nonsense = "UPDATE pipeline_event SET kind = 'seal.dropped', canonical = 'x' WHERE id = %s"
    behind_its_back("pipeline_event", nonsense, to_uuid(event.pk))

    (first, *_rest) = audit.verify().problems

    assert first.event_id == event.pk


def test_a_time_without_an_end_in_the_log_is_a_row_that_is_named(
    reviewed: Patch, tmp_path: Path, settings: LazySettings
) -> None:
    settings.SIGNALBOX_AUDIT_REPOSITORY = str(tmp_path / "audit.git")
    event = Event.objects.filter(kind="review.given").latest("seq")
    sealing.seal()
    behind_its_back("ledger_seal", "UPDATE ledger_seal SET created_at = 'infinity'")
    assert audit.verify(bundle=tmp_path / "bundle.gz").problems == []  # no proof holds when a seal was written
    endless = "UPDATE pipeline_event SET created_at = 'infinity' WHERE id = %s"
    behind_its_back("pipeline_event", endless, to_uuid(event.pk))
    out = StringIO()

    with pytest.raises(SystemExit) as ended:
        call_command("verify-ledger", jobs=1, stdout=out)

    assert ended.value.code == 1
    assert f"event {event.pk}, " in out.getvalue()


@pytest.mark.parametrize(
    ("model", "after"),
    [
        *((PolicyOverride, after) for after in ("[1]", '"x"', "5", '{"expires_at": 5}', '{"expires_at": "infinity"}')),
        *((PolicyOverride, after) for after in ('{"expires_at": {}}', '{"patch_id": [1]}', '{"patch_id": "x"}')),
        *((PatchReview, f'{{"anchors": {{"$float": {one}}}}}') for one in ("[1]", '"x"')),
    ],
)
def test_an_event_that_tells_what_no_column_holds_is_a_row_that_cannot_be_told(
    reviewed: Patch, model: type[PolicyOverride] | type[PatchReview], after: str
) -> None:
    row = model._base_manager.get()
    statement = "UPDATE pipeline_event SET after = %s::jsonb WHERE subject_id = %s"
    behind_its_back("pipeline_event", statement, after, to_uuid(row.pk))

    (told,) = told_by_the_command()

    noun = model.noun()
    assert told.startswith(f"{noun} {row.pk}: The history of this {noun} cannot be read: its event 1, {noun}.")


@pytest.mark.parametrize("anchors", ["[" * 1500 + "]" * 1500, "9" * 5000], ids=["too deep", "too large"])
def test_an_event_that_no_program_can_read_is_a_row_that_cannot_be_told(reviewed: Patch, anchors: str) -> None:
    veto = PatchReview.objects.get()
    other = PatchReview.objects.give(veto.patch, "reject", by=BY, body="no again")
    statement = "UPDATE pipeline_event SET after = %s::jsonb WHERE subject_id = %s"
    behind_its_back("pipeline_event", statement, f'{{"anchors": {anchors}}}', to_uuid(veto.pk))
    behind_its_back("ledger_patchreview", "UPDATE ledger_patchreview SET body = 'yes' WHERE id = %s", to_uuid(other.pk))

    first, second = told_by_the_command()

    assert first.startswith(f"review {veto.pk}: its events cannot be read: ")
    assert second.startswith(f"review {other.pk}, column body: ")


def test_the_command_names_the_row_and_ends_with_1_unless_it_is_asked_for_the_log_alone(reviewed: Patch) -> None:
    behind_its_back("ledger_patchreview", "UPDATE ledger_patchreview SET verdict = 'approve'")
    out = StringIO()

    with pytest.raises(SystemExit) as ended:
        call_command("verify-ledger", jobs=1, stdout=out)
    call_command("verify-ledger", jobs=1, no_rows=True, stdout=StringIO())

    assert ended.value.code == 1
    veto = PatchReview.objects.get()
    assert f"review {veto.pk}, column verdict: the log tells 'reject', the row holds 'approve'" in out.getvalue()
