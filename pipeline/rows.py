"""What every row has, and the database guards that any table may carry: versions, append-only, coded errors."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, ClassVar, NamedTuple, TypeVar

import pgtrigger
from django.db import connection, models, transaction

from pipeline import telling
from pipeline.clock import BirthTimeField, ClockNow
from pipeline.ids import ULIDField, new_id

M = TypeVar("M", bound=type[models.Model])

SLUG = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


class Kept(models.Model):
    """A row that is written once: a ULID and the time of its birth by the database's clock."""

    NOUN: ClassVar[str] = ""

    id = ULIDField(primary_key=True, default=new_id, editable=False)
    created_at = BirthTimeField(db_default=ClockNow(), editable=False)

    class Meta:
        abstract = True

    def correlation(self) -> dict[str, str | None]:
        """The ids that every event about this row carries (`project_id`, `run_id` …)."""
        return {}

    @classmethod
    def noun(cls) -> str:
        """The word for this row in events, codes and messages."""
        return cls.NOUN or cls._meta.model_name or ""


class Row(Kept):
    """A row that changes: `version` and `updated_at` are raised by PostgreSQL, so that no bulk update forgets them."""

    updated_at = models.DateTimeField(db_default=ClockNow(), editable=False)
    version = models.PositiveIntegerField(db_default=1, editable=False)

    class Meta:
        abstract = True


class Counted(NamedTuple):
    """Which events of others a counter counts: those of `kinds` that carry this row's id; `births`: only first ones."""

    kinds: Sequence[str]
    births: bool = False


class Told(Row):
    """A row whose events tell all of it: its birth every column that is not empty, each later one what it changed.

    `UNTOLD` names the columns that are not in its history, `COUNTED` those that are counted from events of others.
    `pipeline.fold` makes the row of any time from that.
    """

    # Raised by a trigger with every change: how often a row was written is no part of what happened to it.
    UNTOLD: ClassVar[frozenset[str]] = frozenset({"version", "updated_at"})
    COUNTED: ClassVar[Mapping[str, Counted]] = {}

    class Meta:
        abstract = True

    @classmethod
    def told_fields(cls) -> "list[models.Field[Any, Any]]":
        """The fields whose values events of this row tell. The id is not among them: it is the event's subject."""
        return list(_told_fields(cls).values())

    def told(self) -> dict[str, Any]:
        """Every told column as an event writes it. One query, if the database has still to be asked for a value."""
        fields = self.told_fields()
        unread = [f.attname for f in fields if hasattr(getattr(self, f.attname), "resolve_expression")]
        if unread:
            for name, value in type(self)._base_manager.values(*unread).get(pk=self.pk).items():
                setattr(self, name, value)
        return {f.attname: telling.written(f, getattr(self, f.attname)) for f in fields}

    def birth(self) -> dict[str, Any]:
        """What the first event of this row tells, once it is inserted: the told columns that are not empty."""
        fields = _told_fields(type(self))
        return {name: value for name, value in self.told().items() if value != telling.empty(fields[name])}

    @classmethod
    def tellable(cls, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Of these columns, those that are told, as an event writes them."""
        fields = _told_fields(cls)
        return {name: telling.written(fields[name], value) for name, value in columns.items() if name in fields}


@cache
def _told_fields(model: type[Told]) -> "dict[str, models.Field[Any, Any]]":
    unsaid = model.UNTOLD | set(model.COUNTED)
    return {f.attname: f for f in model._meta.concrete_fields if not f.primary_key and f.attname not in unsaid}


class Guard(pgtrigger.Trigger):
    """A trigger that refuses with SQLSTATE 23514, so that Django raises IntegrityError naming this guard."""

    def refuse(self, message: str, *arguments: str) -> str:
        """The statement that refuses with `message`, whose `%` are filled from the SQL `arguments`."""
        given = "".join(f", {argument}" for argument in arguments)
        return (
            f"RAISE EXCEPTION '{message}'{given} "
            f"USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = '{self.name}';"
        )


class RaiseVersion(pgtrigger.Trigger):
    """BEFORE UPDATE: raises `version` and `updated_at`, unless only columns in `quiet` have changed."""

    when = pgtrigger.Before
    operation = pgtrigger.Update
    func = "NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;"

    def __init__(self, *, quiet: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(name="raise_version", **kwargs)
        self.quiet = tuple(quiet)

    def get_condition(self, model: Any) -> pgtrigger.Condition:
        """True when any column but the quiet ones has changed."""
        columns = [
            field.column for field in model._meta.fields if field.name not in {*self.quiet, "version", "updated_at"}
        ]
        return pgtrigger.Condition(" OR ".join(f'OLD."{name}" IS DISTINCT FROM NEW."{name}"' for name in columns))


class Immutable(Guard):
    """BEFORE UPDATE: the columns named (or all but `except_for`) keep what they were born with."""

    when = pgtrigger.Before
    operation = pgtrigger.Update

    def __init__(self, *, name: str, fields: Sequence[str] = (), except_for: Sequence[str] = ()) -> None:
        super().__init__(name=name)
        self.fields, self.except_for = tuple(fields), tuple(except_for)

    def get_func(self, model: Any) -> str:
        """Refuse when one of the guarded columns differs."""
        names = self.fields or [f.name for f in model._meta.fields if f.name not in self.except_for]
        columns = [model._meta.get_field(name).column for name in names]
        differs = " OR ".join(f'OLD."{column}" IS DISTINCT FROM NEW."{column}"' for column in columns)
        refuse = self.refuse("Cannot change %: these columns are written once", "TG_TABLE_NAME")
        return f"IF {differs} THEN {refuse} END IF; RETURN NEW;"


class NeverFalls(Guard):
    """BEFORE UPDATE: a counter that fences others only ever rises."""

    when = pgtrigger.Before
    operation = pgtrigger.Update

    def __init__(self, *, name: str, column: str) -> None:
        super().__init__(name=name)
        self.column = column

    def get_func(self, model: Any) -> str:
        """Refuse when the column would be less."""
        refuse = self.refuse(f"Cannot lower {self.column} of %: it only rises", "TG_TABLE_NAME")
        return f'IF NEW."{self.column}" < OLD."{self.column}" THEN {refuse} END IF; RETURN NEW;'


class FixedOnceEnded(Guard):
    """BEFORE UPDATE: a row in one of `states` is history and keeps every column; `logs` may be emptied, no more."""

    when = pgtrigger.Before
    operation = pgtrigger.Update

    def __init__(self, *, name: str, states: Sequence[str], logs: Sequence[str] = ()) -> None:
        super().__init__(name=name)
        self.states = sorted(str(state) for state in states)
        self.logs = tuple(logs)

    def get_func(self, model: Any) -> str:
        """Refuse any other change of an ended row."""
        known = ",".join(self.states)
        refuse = self.refuse("Cannot change %: it has ended", "TG_TABLE_NAME")
        guarded = [f.column for f in model._meta.fields if f.name not in (*self.logs, "version", "updated_at")]
        differs = [f'OLD."{column}" IS DISTINCT FROM NEW."{column}"' for column in guarded]
        differs += [f'NEW."{log}" NOT IN (OLD."{log}", \'\')' for log in self.logs]
        return (
            f"IF OLD.state = ANY('{{{known}}}'::text[]) AND ({' OR '.join(differs)}) THEN {refuse} END IF; RETURN NEW;"
        )


class NoDelete(Guard):
    """BEFORE DELETE: rows stay."""

    when = pgtrigger.Before
    operation = pgtrigger.Delete

    def get_func(self, model: Any) -> str:
        """Refuse."""
        return self.refuse("Cannot delete from %: its rows are kept", "TG_TABLE_NAME")


class NoTruncate(Guard):
    """BEFORE TRUNCATE, which row triggers do not see; let through where the server was started for tests."""

    level = pgtrigger.Statement
    when = pgtrigger.Before
    operation = pgtrigger.Truncate

    def get_func(self, model: Any) -> str:
        """Refuse, unless `signalbox.allow_truncate` is on."""
        refuse = self.refuse("Cannot truncate %: its rows are kept", "TG_TABLE_NAME")
        guarded = "current_setting('signalbox.allow_truncate', true) IS DISTINCT FROM 'on'"
        return f"IF {guarded} THEN {refuse} END IF; RETURN NULL;"


def versioned(*, quiet: Sequence[str] = ()) -> Callable[[M], M]:
    """Class decorator: PostgreSQL raises `version` and `updated_at` with every change, but of the `quiet` columns."""

    def register(model: M) -> M:
        guarded: M = pgtrigger.register(RaiseVersion(quiet=quiet))(model)
        return guarded

    return register


def append_only(model: M) -> M:
    """Class decorator: this model's rows are never changed, deleted or truncated, whoever asks."""
    register = pgtrigger.register(
        Immutable(name="written_once"), NoDelete(name="never_deleted"), NoTruncate(name="never_truncated")
    )
    guarded: M = register(model)
    return guarded


@contextmanager
def in_transaction() -> Iterator[None]:
    """The caller's transaction when there is one (no savepoint: nothing here is undone alone), else a new one."""
    if connection.in_atomic_block:
        yield
    else:
        with transaction.atomic():
            yield
