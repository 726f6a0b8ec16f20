"""Rows that somebody changed behind the back of the verbs are named, by table, row and column."""

from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, models

from ledger import validation
from ledger.models import Patch, PatchPolicy, PatchReview, PolicyOverride
from pipeline import altered
from pipeline.events import Actor
from pipeline.ids import new_id, to_uuid
from pipeline.models import Membership
from tests import factories
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


def test_the_command_names_the_row_and_ends_with_1_unless_it_is_asked_for_the_log_alone(reviewed: Patch) -> None:
    behind_its_back("ledger_patchreview", "UPDATE ledger_patchreview SET verdict = 'approve'")
    out = StringIO()

    with pytest.raises(SystemExit) as ended:
        call_command("verify-ledger", jobs=1, stdout=out)
    call_command("verify-ledger", jobs=1, no_rows=True, stdout=StringIO())

    assert ended.value.code == 1
    veto = PatchReview.objects.get()
    assert f"review {veto.pk}, column verdict: the log tells 'reject', the row holds 'approve'" in out.getvalue()
