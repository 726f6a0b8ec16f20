"""Ids: ULIDs outside, uuids inside, in one order everywhere."""

import uuid

import pytest
from django.core.exceptions import ValidationError
from django.db import connection

from pipeline import ids
from pipeline.models import Project
from tests import factories

KNOWN = "01ARZ3NDEKTSV4RRFFQ69G5FAV"


def test_an_id_has_26_characters_of_crockford_base_32():
    assert all(ids.is_id(ids.new_id()) for _n in range(100))


def test_ids_rise_within_this_process():
    made = [ids.new_id() for _n in range(10_000)]
    assert made == sorted(made)
    assert len(set(made)) == len(made)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "01ARZ3NDEKTSV4RRFFQ69G5FA",
        KNOWN + "V",
        KNOWN.lower(),
        "81ARZ3NDEKTSV4RRFFQ69G5FAV",
        KNOWN[:-1] + "U",
        None,
        7,
    ],
)
def test_what_is_no_id_is_known_as_none(text):
    assert not ids.is_id(text)


def test_an_id_and_its_uuid_are_the_same_number():
    assert ids.to_uuid(KNOWN) == uuid.UUID("01563e3a-b5d3-d676-4c61-efb99302bd5b")
    assert ids.from_uuid(ids.to_uuid(KNOWN)) == KNOWN
    with pytest.raises(ValueError, match="26"):
        ids.to_uuid("short")


@pytest.mark.django_db
def test_the_database_holds_a_uuid_and_python_sees_a_ulid():
    project = factories.make_project()
    assert ids.is_id(Project.objects.get().pk)
    with connection.cursor() as cursor:
        cursor.execute("SELECT id, pg_typeof(id)::text FROM pipeline_project")
        assert cursor.fetchall() == [(ids.to_uuid(project.pk), "uuid")]


@pytest.mark.django_db
def test_a_row_is_found_by_its_ulid_and_by_its_uuid():
    project = factories.make_project()
    assert Project.objects.get(pk=project.pk) == Project.objects.get(pk=ids.to_uuid(project.pk)) == project
    assert Project.objects.filter(pk__in=[project.pk, ids.new_id()]).count() == 1


@pytest.mark.django_db
def test_a_malformed_id_is_a_validation_error_and_reaches_no_database():
    with pytest.raises(ValidationError) as refusal:
        Project.objects.filter(pk="not-an-id").exists()
    assert refusal.value.code == "invalid_id"


@pytest.mark.django_db
def test_rows_in_the_order_of_their_ids_are_in_the_order_of_their_making():
    made = [factories.make_project().pk for _n in range(5)]
    assert list(Project.objects.order_by("pk").values_list("pk", flat=True)) == made
