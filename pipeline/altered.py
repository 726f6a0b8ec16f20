"""Rows that are not what their events tell: altered, added or taken away behind the back of the verbs.

The log is proved by its chains and seals (`ledger.audit`); what it tells of an object, folded, is the object's row. So
whoever changes a row by hand is found here, and whoever changes the event as well is found there.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.apps import apps
from django.db import DataError, connection, models, transaction
from django.utils.translation import gettext as _

from pipeline import events, telling
from pipeline.fold import Row, Telling, replay
from pipeline.ids import from_uuid
from pipeline.refusals import Refused
from pipeline.rows import Told

PAGE = 500
UNREADABLE = (DataError, ValueError, OverflowError, RecursionError)
"""What is said of values that PostgreSQL holds and Python does not: endless times, numbers and documents too large."""

SHOWN_CHARACTERS = 60
ANY_TIME = datetime.min.replace(tzinfo=UTC)


class Altered(NamedTuple):
    """One column of a row that is not what the events tell; `column` is empty where it is about the row as a whole."""

    noun: str
    pk: str
    column: str
    what: str

    def __str__(self) -> str:
        return f"{self.noun} {self.pk}{', column ' + self.column if self.column else ''}: {self.what}"


class Look(NamedTuple):
    """What one pass saw: how many rows there are, how many of them have lost the beginning of their history to
    retention and so cannot be told, and what is wrong.
    """

    rows: int
    untold: int
    problems: list[Altered]


def look(*, most: int = 20) -> Look:
    """Hold every row against its events, but for the columns that other objects' events count; names the first `most`.

    Each page of rows is read with its events in a snapshot of its own, while work goes on.
    """
    rows = untold = 0
    problems: list[Altered] = []
    for model in sorted((one for one in apps.get_models() if issubclass(one, Told)), key=lambda one: one.noun()):
        last = None
        while True:
            with _snapshot():
                found = model._base_manager.order_by("pk")
                found = (found if last is None else found.filter(pk__gt=last))[:PAGE]
                ids, page, unreadable = _page(model, found)
                problems += unreadable
                cut = _cut(ids)
                problems += _untrue(model, [row for row in page if row.pk not in cut])
            rows, untold = rows + len(ids), untold + len(cut)
            if len(ids) < PAGE:
                break
            last = ids[-1]
        problems += _gone(model)
        if len(problems) >= most:
            break
    return Look(rows, untold, problems[:most])


@contextmanager
def _snapshot() -> Iterator[None]:
    """All reads within see one moment; within the caller's transaction, when there is one."""
    nested = connection.in_atomic_block
    with transaction.atomic():
        if not nested:
            with connection.cursor() as cursor:
                cursor.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")
        yield


def _page(model: type[Told], found: "models.QuerySet[Any]") -> tuple[list[str], list[Any], list[Altered]]:
    """The ids of a page, its rows, and what is wrong with those that hold what no program can read, such as a time that
    has no end.
    """
    try:
        rows = list(found)
        return [row.pk for row in rows], rows, []
    except UNREADABLE:
        ids, rows, problems = list(found.values_list("pk", flat=True)), [], []
    for pk in ids:
        own = model._base_manager.filter(pk=pk)
        try:
            rows += list(own)
        except UNREADABLE as problem:
            what = _("it cannot be read: %(why)s") % {"why": problem}
            problems.append(Altered(model.noun(), pk, _unreadable_column(model, own), what))
    return ids, rows, problems


def _unreadable_column(model: type[Told], own: "models.QuerySet[Any]") -> str:
    for field in model._meta.concrete_fields:
        try:
            list(own.values_list(field.attname))
        except UNREADABLE:
            return field.attname
    return ""


def _cut(ids: Sequence[str]) -> set[str]:
    """Of these, those whose first events were dropped by retention."""
    return set(events.EventStream.objects.filter(pk__in=ids, first_seq__gt=1).values_list("pk", flat=True))


def _untrue(model: type[Told], rows: Sequence[Told]) -> Iterator[Altered]:
    fields = model.told_fields()
    for row, (was, why) in zip(rows, _replayed(model, [row.pk for row in rows]), strict=True):
        if was is None:
            yield Altered(model.noun(), row.pk, "", why or _("no event tells of it"))
            continue
        for field in fields:
            held = getattr(row, field.attname)
            if was[field.attname] != held:
                what = _("the log tells %(told)s, the row holds %(held)s") % {
                    "told": _short(field, was[field.attname]),
                    "held": _short(field, held),
                }
                yield Altered(model.noun(), row.pk, field.attname, what)


def _gone(model: type[Told]) -> Iterator[Altered]:
    """The rows of which events tell, and that are there no more, though no event tells that they were removed."""
    table = connection.ops.quote_name(model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT s.subject_id FROM pipeline_eventstream s WHERE s.subject_type = %s AND s.first_seq = 1 AND NOT"
            f" EXISTS (SELECT 1 FROM {table} t WHERE t.id = s.subject_id) ORDER BY s.subject_id",
            [model.noun()],
        )
        ids = [from_uuid(pk) for (pk,) in cursor.fetchall()]
    for start in range(0, len(ids), PAGE):
        page = ids[start : start + PAGE]
        for pk, (was, why) in zip(page, _replayed(model, page), strict=True):
            if why:  # such as one that was born past the verbs, and removed by one
                yield Altered(model.noun(), pk, "", _("there is no such row. %(why)s") % {"why": why})
            elif was is not None:
                yield Altered(model.noun(), pk, "", _("the log tells of it, and there is no such row"))


def _replayed(model: type[Told], ids: Sequence[str]) -> Iterator[tuple[Row | None, str]]:
    """Of each of these subjects its row as the events tell it, None where none does; and why nobody can say, or ""."""
    try:
        told = _tellings(model, ids)
    except UNREADABLE:
        told = {}  # of one event of one of them: each is asked by itself
    for pk in ids:
        try:
            yield replay(model, told[pk] if pk in told else _tellings(model, [pk])[pk]), ""
        except Refused as refusal:
            yield None, str(refusal)
        except UNREADABLE as problem:
            yield None, _("its events cannot be read: %(why)s") % {"why": problem}


def _tellings(model: type[Told], ids: Sequence[str]) -> dict[str, list[Telling]]:
    """All events about each of these subjects, in the order of its stream. One query."""
    found: dict[str, list[Telling]] = {pk: [] for pk in ids}
    rows = events.Event.objects.filter(subject_id__in=ids, subject_type=model.noun()).order_by("stream_seq")
    # Not their times: all of them are replayed, and somebody may have made one endless.
    columns = ("subject_id", "stream_seq", "epoch", "xid", "seq", "kind", "before", "after", "own_xid")
    for pk, number, epoch, xid, seq, kind, before, after, own_xid in rows.values_list(*columns):
        place = events.Cursor(epoch, xid, seq)
        found[pk].append(Telling(number, place, ANY_TIME, kind, before, after, own_xid))
    return found


def _short(field: "models.Field[Any, Any]", value: Any) -> str:
    with suppress(ArithmeticError):  # a number beyond its column is shown as it is
        value = telling.written(field, value)
    text = repr(value) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[: SHOWN_CHARACTERS - 1]}…"
