"""Records for other programs: as CSV for spreadsheets, as Parquet for what computes with them. Both are streamed."""

import csv
import io
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from django.db import models
from django.http import StreamingHttpResponse

from costs.models import CostRecord
from costs.models.record import CostRecordQuerySet
from costs.pricing import CLASSES

COLUMNS = (
    "id", "recorded_at", "reported_at", "project__key", "run", "task__key", "attempt", "tool__key", "worker__name",
    "person", "kind", "resource_type", "provider", "model", *(f"tokens_{name}" for name in CLASSES), "reasoning",
    "web_searches", "usage_quantity", "usage_unit", "usage_rate", "amount", "currency", "basis", "unpriced",
    "stated_amount", "gateway_amount", "price_source", "price_version", "price_dated", "landing", "waste_cause",
    "source", "idempotency_key", "voided_at", "void_reason",
)  # fmt: skip
NAMES = tuple(name.replace("__key", "").replace("__name", "") for name in COLUMNS)

FORMATS = {"csv": "text/csv; charset=utf-8", "parquet": "application/vnd.apache.parquet"}
"""What is offered, with the type under which it is sent."""

AT_ONCE = 2000
ROW_GROUP = 10_000
"""Rows of a Parquet file that are in memory, and are read by its readers, together."""


def answer(rows: CostRecordQuerySet, form: str) -> StreamingHttpResponse:
    """The records, oldest first, voided ones with their reason, as a download in one of FORMATS."""
    chunks: Iterator[str] | Iterator[bytes] = csv_lines(rows) if form == "csv" else parquet(rows)
    told = StreamingHttpResponse(chunks, content_type=FORMATS[form])
    told["Content-Disposition"] = f'attachment; filename="costs.{form}"'
    return told


def _pages(rows: CostRecordQuerySet, size: int) -> Iterator[list[tuple[Any, ...]]]:
    """The records' COLUMNS, oldest first, so many in memory at a time."""
    last = None
    while True:
        page = rows.order_by("pk") if last is None else rows.filter(pk__gt=last).order_by("pk")
        found = list(page.values_list(*COLUMNS)[:size])
        if found:
            yield found
        if len(found) < size:
            return
        last = found[-1][0]


# -- CSV -----------------------------------------------------------------------------------------------------------


def csv_lines(rows: CostRecordQuerySet) -> Iterator[str]:
    """CSV of RFC 4180, a line at a time, NAMES first. A text that a spreadsheet would take for a formula gets a quote
    before it.
    """
    yield _line(NAMES)
    for page in _pages(rows, AT_ONCE):
        for row in page:
            yield _line([_cell(value) for value in row])


def _line(values: Any) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)
    return line.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r"):
        return f"'{value}"
    return value


# -- Parquet -------------------------------------------------------------------------------------------------------


class _Written(io.RawIOBase):
    """A file that is handed on as it is written."""

    def __init__(self) -> None:
        super().__init__()
        self._chunks: list[bytes] = []
        self._place = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._chunks.append(bytes(data))
        self._place += len(self._chunks[-1])
        return len(self._chunks[-1])

    def tell(self) -> int:
        return self._place

    def take(self) -> bytes:
        """What was written since."""
        found = b"".join(self._chunks)
        self._chunks.clear()
        return found


def parquet(rows: CostRecordQuerySet) -> Iterator[bytes]:
    """A Parquet file in pieces, a row group at a time: money as decimals, times as UTC microseconds, texts as UTF-8.

    One that breaks off lacks its footer, so that no reader takes it for a whole one.
    """
    import pyarrow as arrow  # half a second and 60 MB, which nobody else needs
    import pyarrow.parquet as files

    schema = _schema(arrow)
    sink = _Written()
    with files.ParquetWriter(arrow.PythonFile(sink, mode="w"), schema, compression="zstd") as writer:
        for page in _pages(rows, ROW_GROUP):
            columns = [
                arrow.array(column, field.type) for column, field in zip(zip(*page, strict=True), schema, strict=True)
            ]
            writer.write_batch(arrow.record_batch(columns, schema=schema), row_group_size=ROW_GROUP)
            yield sink.take()
    yield sink.take()


def _schema(arrow: Any) -> Any:
    """A column's type is that of the model's field; what stands behind a reference is a key or a name."""
    fields = []
    for column, name in zip(COLUMNS, NAMES, strict=True):
        field = CostRecord._meta.get_field(column.partition("__")[0])
        fields.append(arrow.field(name, _type(arrow, field)))
    return arrow.schema(fields)


def _type(arrow: Any, field: Any) -> Any:
    if isinstance(field, models.DecimalField):
        return arrow.decimal128(field.max_digits, field.decimal_places)
    if isinstance(field, models.DateTimeField):
        return arrow.timestamp("us", tz="UTC")
    if isinstance(field, models.DateField):
        return arrow.date32()
    if isinstance(field, models.BooleanField):
        return arrow.bool_()
    return arrow.int64() if isinstance(field, models.IntegerField) else arrow.string()
