"""Exports: every record that the caller sees, once, as CSV without formulas and as Parquet with its types."""

import csv
import io
from decimal import Decimal
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as files
import pytest
from pyarrow.lib import ArrowInvalid

from costs import exports
from costs.models import CostRecord
from tests import factories
from tests.api.asking import Api
from tests.factories import BY

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]


@pytest.fixture
def project() -> Any:
    """A project."""
    return factories.make_project(custody="recorded")


def download(api: Api, **parameters: Any) -> bytes:
    """The whole export."""
    answer = api.get("/costs/export/", **parameters)
    assert answer.status_code == 200
    return b"".join(answer.streaming_content)


def table_of(content: bytes) -> arrow.Table:
    """The Parquet file, read by its own library."""
    return files.read_table(io.BytesIO(content))


def test_csv_holds_every_record_that_the_caller_sees_and_no_formula(project: Any) -> None:
    viewer = Api(factories.make_key("viewer", project=project).text)
    cost = factories.make_cost(project=project, amount="3", model="=1+1")
    factories.make_cost(project=project, amount="4").void("twice", by=BY)
    factories.make_cost(amount="99")
    rows = list(csv.DictReader(io.StringIO(download(viewer).decode())))
    assert [(row["amount"], row["model"], row["void_reason"]) for row in rows] == [
        ("3.000000", "'=1+1", ""),
        ("4.000000", "", "twice"),
    ]
    assert rows[0]["id"] == cost.pk


def test_parquet_holds_the_same_with_types(project: Any) -> None:
    viewer = Api(factories.make_key("viewer", project=project).text)
    lease = factories.make_lease(task=factories.make_task(factories.make_run(
        factories.make_workstream(factories.make_phase(project)), started=True)))  # fmt: skip
    cost = factories.make_cost(attempt=lease.attempt, worker=lease.worker, amount="3.000001", model="=1+1 ä")
    factories.make_cost(project=project, amount="4", tokens={"output": 10**12}).void("twice", by=BY)
    factories.make_cost(amount="99")
    table = table_of(download(viewer, format="parquet"))
    first, second = table.to_pylist()
    assert (first["id"], first["amount"], first["model"]) == (cost.pk, Decimal("3.000001"), "=1+1 ä")
    assert (first["project"], first["task"], first["worker"]) == (project.key, lease.task.key, lease.worker.name)
    assert (first["recorded_at"], first["voided_at"], first["unpriced"]) == (cost.recorded_at, None, False)
    assert (second["tokens_output"], second["void_reason"]) == (10**12, "twice")
    assert table.schema.field("amount").type == arrow.decimal128(18, 6)
    assert table.schema.field("recorded_at").type == arrow.timestamp("us", tz="UTC")


def test_parquet_comes_a_row_group_at_a_time_and_says_when_it_broke_off(
    project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "ROW_GROUP", 4)
    made = [factories.make_cost(project=project, amount=number).pk for number in range(10)]
    pieces = list(exports.parquet(CostRecord.objects.all()))
    assert len(pieces) == 4
    whole = b"".join(pieces)
    assert files.ParquetFile(io.BytesIO(whole)).metadata.num_row_groups == 3
    assert table_of(whole)["id"].to_pylist() == made
    with pytest.raises(ArrowInvalid):
        table_of(b"".join(pieces[:-1]))


@pytest.mark.parametrize("form", list(exports.FORMATS))
def test_where_nothing_was_booked_the_columns_are_told(project: Any, form: str) -> None:
    content = download(Api(factories.make_key("viewer", project=project).text), format=form)
    names = table_of(content).schema.names if form == "parquet" else content.decode().strip().split(",")
    assert tuple(names) == exports.NAMES


@pytest.mark.parametrize("given", ["json", "", "CSV"])
def test_an_export_in_another_format_is_refused_with_the_right_ones(project: Any, given: str) -> None:
    answer = Api(factories.make_key("viewer", project=project).text).get("/costs/export/", format=given)
    assert answer.status_code == 400
    assert "csv, parquet" in answer.json()["detail"]


def test_the_page_offers_both(client: Any, project: Any) -> None:
    user = factories.make_user()
    factories.make_membership(user, project)
    client.force_login(user)
    factories.make_cost(project=project, model="mine")
    factories.make_cost(model="secret")
    answer = client.get("/costs/export.parquet")
    assert answer["Content-Type"] == "application/vnd.apache.parquet"
    assert table_of(b"".join(answer.streaming_content))["model"].to_pylist() == ["mine"]
    assert "secret" not in b"".join(client.get("/costs/export.csv").streaming_content).decode()
