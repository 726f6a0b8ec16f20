"""An object's row at any time, made from its events alone (docs/decisions/0009-as-of.md)."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, NamedTuple

from django.apps import apps
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models import Count, Q, QuerySet

from pipeline import events, telling
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import Told

Row = dict[str, Any]


class Telling(NamedTuple):
    """What the fold needs of one event."""

    stream_seq: int
    cursor: events.Cursor
    created_at: datetime
    kind: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None
    # Who wrote it: the cursor's `xid` may be that of an earlier writer (docs/decisions/0013-the-place-of-an-event.md).
    own_xid: int | None = None

    @property
    def transaction(self) -> tuple[int, int]:
        """What tells the events of one transaction from those of others; ids begin again with each epoch."""
        return self.cursor.epoch, self.cursor.xid if self.own_xid is None else self.own_xid


def fold(subject: Told | tuple[str, str], at: datetime | events.Cursor) -> Row | None:
    """The columns that events tell of `subject` (a row, or its noun and id) as they were at `at`: {column: value}.

    None while it was not born yet, and once it was removed. Whole transactions count, each from the time of its last
    event about `subject`, by the database's clock; at a Cursor, those that a reader who has come so far has read. Told
    are the id and every column but those in the model's `UNTOLD`; values are the columns' Python values.

    Raises InvalidField for a noun without such a history, and Refused `history_dropped` (410) when the beginning of
    its history was dropped, or `history_untold` (410) when its first event does not tell what it was born with, or
    `history_unreadable` (410) when one was changed to what no verb writes.
    """
    model, pk = (type(subject), subject.pk) if isinstance(subject, Told) else (_model(subject[0]), subject[1])
    noun = model.noun()
    stream = events.EventStream.objects.filter(subject_id=pk, subject_type=noun).first()
    if stream is None:
        return None
    if stream.first_seq > 1:
        raise Refused(
            f"The history of {noun} {pk} begins with its event {stream.first_seq}: what was before that was dropped",
            code="history_dropped",
            status=410,
            first_seq=stream.first_seq,
        )
    row = replay(model, until(tellings(noun, pk), at))
    return None if row is None else {model._meta.pk.attname: pk, **row, **_counted(model, pk, at)}


def tellings(noun: str, pk: str) -> list[Telling]:
    """All events about one subject, in the order of its stream. One query."""
    rows = events.Event.objects.filter(subject_id=pk, subject_type=noun).order_by("stream_seq")
    columns = rows.values_list("stream_seq", "epoch", "xid", "seq", "created_at", "kind", "before", "after", "own_xid")
    return [
        Telling(number, events.Cursor(epoch, xid, seq), created_at, kind, before, after, own_xid)
        for number, epoch, xid, seq, created_at, kind, before, after, own_xid in columns
    ]


def until(told: Sequence[Telling], at: datetime | events.Cursor) -> Sequence[Telling]:
    """Pure: the beginning of a stream up to the last transaction of which every event is not behind `at`.

    A stream's events are in the order in which its row was locked, which their times and cursors may contradict by the
    length of a transaction; so what is taken is always a beginning, a state that the row really had.
    """
    end = 0
    for place, telling_ in enumerate(told):
        last_of_transaction = place + 1 == len(told) or told[place + 1].transaction != telling_.transaction
        reached = telling_.cursor <= at if isinstance(at, events.Cursor) else telling_.created_at <= at
        if last_of_transaction and reached:
            end = place + 1
    return told[:end]


def replay(model: type[Told], told: Iterable[Telling]) -> Row | None:
    """Pure: the told columns, but the id and the counters, after these events of a stream from its first on.

    None before the first and after a removal. Raises Refused `history_untold`; `history_unreadable` (410) for an event
    that tells of a column what it cannot hold, as no verb writes it. Keys that are no column of the model, or no longer
    one, are passed over.
    """
    fields = {field.attname: field for field in model.told_fields()}
    columns = {name: field.attname for field in fields.values() for name in (field.name, field.attname)}
    row: Row | None = None
    gone = False
    for one in told:
        if row is None:
            if gone and not one.after:
                continue  # said of a row that is no more
            if one.before != {} or not one.after:
                raise Refused(
                    f"The history of this {model.noun()} does not tell what it was born with: {one.kind} comes first",
                    code="history_untold",
                    status=410,
                )
            row = {name: telling.empty(field) for name, field in fields.items()}
        if one.after == {} and one.kind == f"{model.noun()}.removed":
            row, gone = None, True
            continue
        for name, value in _after(model, one).items():
            if name in columns:
                row[columns[name]] = _read(model, one, fields[columns[name]], value)
    return row


def _after(model: type[Told], one: Telling) -> Mapping[str, Any]:
    if one.after is None or isinstance(one.after, Mapping):
        return one.after or {}
    raise _unreadable(model, one, "what was after it")


def _read(model: type[Told], one: Telling, field: "models.Field[Any, Any]", value: Any) -> Any:
    try:
        return telling.read(field, value)
    except (ValidationError, ValueError, TypeError, AttributeError, ArithmeticError) as problem:
        raise _unreadable(model, one, f"column {field.attname}") from problem


def _unreadable(model: type[Told], one: Telling, what: str) -> Refused:
    return Refused(
        f"The history of this {model.noun()} cannot be read: its event {one.stream_seq}, {one.kind}, does not tell "
        f"{what} as any verb writes it",
        code="history_unreadable",
        status=410,
    )


def _counted(model: type[Told], pk: str, at: datetime | events.Cursor) -> Row:
    """The counters that other objects' events count: those which carry this row's id and were there at `at`."""
    if not model.COUNTED:
        return {}
    rows: QuerySet[events.Event] = events.Event.objects.filter(**{f"{model.noun()}_id": pk})
    if isinstance(at, events.Cursor):
        place = "(pipeline_event.epoch, pipeline_event.xid, pipeline_event.seq) <= (%s, %s::text::xid8, %s)"
        rows = rows.extra(where=[place], params=[at.epoch, str(at.xid), at.seq])
    else:
        rows = rows.filter(created_at__lte=at)
    sums = {
        column: Count("pk", filter=Q(kind__in=counted.kinds) & (Q(stream_seq=1) if counted.births else Q()))
        for column, counted in model.COUNTED.items()
    }
    return rows.aggregate(**sums)


@cache
def _nouns() -> dict[str, type[Told]]:
    return {model.noun(): model for model in apps.get_models() if issubclass(model, Told)}


def _model(noun: str) -> type[Told]:
    if noun not in _nouns():
        raise InvalidField("subject_type", f"one of {', '.join(sorted(_nouns()))}, not “{noun}”")
    return _nouns()[noun]
