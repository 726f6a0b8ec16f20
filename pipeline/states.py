"""How a row changes state: one locked, checked, recorded step at a time (architecture.md, idea 2)."""

from collections.abc import Collection, Iterable, Mapping
from typing import Any, ClassVar, TypeVar

import pgtrigger
from django.db import models

from pipeline import events
from pipeline.clock import ClockNow
from pipeline.refusals import InvalidField, NotFound, Refused
from pipeline.rows import Guard, RaiseVersion, Told, in_transaction

Moves = Mapping[str, Collection[str]]
Arrow = tuple[str, str]
S = TypeVar("S", bound="type[Stateful]")


class InvalidMove(Refused):
    """`subject` is in `state`, from which `to` cannot be reached by what was asked."""

    code = "invalid_move"

    def __init__(
        self, subject: "Stateful", state: str, to: str, *, verb: str = "", allowed: Iterable[str] = ()
    ) -> None:
        is_end = subject.is_terminal(state)
        where = f"is in the terminal state {state}" if is_end else f"is {state}"
        lead = f"Cannot {verb}" if verb else "Invalid transition"
        super().__init__(
            f"{lead}: {subject.noun().replace('_', ' ')} {subject.pk} {where}, so it cannot become {to}",
            state=state,
            allowed=sorted(allowed),
        )
        self.subject, self.state, self.to = subject, state, to


class InvalidState(InvalidField):
    """There is no such state."""

    code = "invalid_state"

    def __init__(self, given: str, known: Iterable[str]) -> None:
        Refused.__init__(self, f"Invalid state: {given}; the states are {', '.join(sorted(known))}", field="state")


class _Now:
    """In the columns of a move: the database's present time."""

    def __repr__(self) -> str:
        return "NOW"


class Plus:
    """In the columns of a move: the column's present value, read under the lock, and `amount` more."""

    def __init__(self, amount: Any) -> None:
        self.amount = amount


NOW = _Now()


class Stateful(Told):
    """A row whose `state` follows the arrows in `MOVES`, and those in `KEYED` for the one verb that has the key.

    `INITIAL` holds the states of birth, `KINDS` the event kinds that are not `<noun>.<to>`.
    """

    MOVES: ClassVar[Moves]
    KEYED: ClassVar[Mapping[Arrow, str]] = {}
    KINDS: ClassVar[Mapping[Arrow, str]] = {}
    INITIAL: ClassVar[Collection[str]]
    STATE_CLOCKS: ClassVar[Collection[str]] = ()

    state: "models.CharField[str, str]"

    class Meta:
        abstract = True

    @classmethod
    def can_move(cls, state: str, to: str, *, key: str | None = None) -> bool:
        """Whether there is a plain arrow, or one that `key` opens. Unknown names give False."""
        return to in cls.MOVES.get(state, ()) or (key is not None and cls.KEYED.get((state, to)) == key)

    @classmethod
    def is_terminal(cls, state: str) -> bool:
        """Whether no plain arrow leaves `state`; False for an unknown name."""
        return state in cls.MOVES and not cls.MOVES[state]

    @classmethod
    def event_kind(cls, state: str, to: str) -> str:
        """The kind of event that this arrow is recorded as."""
        return cls.KINDS.get((state, to), f"{cls.noun()}.{to}")

    def born(
        self, *, by: events.Actor, reason: str = "", data: Mapping[str, Any] | None = None, kind: str = ""
    ) -> None:
        """Record this row's first event, in the transaction that inserts it, with what the row was born with."""
        name = kind or f"{self.noun()}.created"
        events.record(name, self, by=by, reason=reason, data=data, before={}, after=self.birth())

    def move(
        self,
        to: str,
        *,
        by: events.Actor,
        reason: str = "",
        key: str | None = None,
        verb: str = "",
        working: bool = False,
        only_from: Collection[str] | None = None,
        data: Mapping[str, Any] | None = None,
        severity: str | None = None,
        **columns: Any,
    ) -> bool:
        """Take the row to `to`, writing `columns` and one Event with them, in one transaction.

        The row is locked and its state read from the database. Returns False, and writes nothing, when the row is there
        already; a `working` verb refuses even then. Raises InvalidMove when there is no such arrow (or the row is in
        none of `only_from`), InvalidState for an unknown target, NotFound when the row is gone. A column may be NOW
        (the database's clock) or Plus(amount). `verb` words the refusal: "Cannot pause: …"; `severity` is the
        event's, where its kind's is not right.
        """
        to = str(to)
        if to not in self.MOVES:
            raise InvalidState(to, self.MOVES)
        given = {getattr(self._meta.get_field(name), "attname"): value for name, value in columns.items()}  # noqa: B009 - typed as a relation too
        with in_transaction():
            locked = self._lock(*given)
            state = locked["state"]
            if state == to and not working and only_from is None:
                self.state = state
                return False
            open_arrow = self.can_move(state, to, key=key) and (only_from is None or state in only_from)
            if not open_arrow:
                raise InvalidMove(self, state, to, verb=verb, allowed=self.MOVES[state])
            changes = {"state": to, **{name: self._value(name, value, locked) for name, value in given.items()}}
            type(self)._base_manager.filter(pk=self.pk).update(**changes)
            for name, value in changes.items():
                setattr(self, name, value)
            events.record(
                self.event_kind(state, to),
                self,
                by=by,
                reason=reason,
                data=data,
                severity=severity,
                before=self.tellable({name: locked[name] for name in changes}),
                after=self.tellable(changes),
            )
        return True

    def _lock(self, *columns: str) -> dict[str, Any]:
        rows = type(self)._base_manager.select_for_update(no_key=True).filter(pk=self.pk)
        locked: dict[str, Any] | None = rows.values("state", *columns, _now=ClockNow()).first()
        if locked is None:
            raise NotFound.of(self.noun(), self.pk)
        return locked

    @staticmethod
    def _value(name: str, value: Any, locked: Mapping[str, Any]) -> Any:
        if value is NOW:
            return locked["_now"]
        if isinstance(value, Plus):
            return locked[name] + value.amount
        return value.pk if isinstance(value, models.Model) else value


def arrows(model: type[Stateful], *, keyed: bool = True) -> list[Arrow]:
    """The model's plain (and keyed) arrows as sorted pairs. Sorted: a set's order differs from process to process."""
    plain = {(str(a), str(b)) for a, targets in model.MOVES.items() for b in targets}
    return sorted(plain | ({(str(a), str(b)) for a, b in model.KEYED} if keyed else set()))


class MovesGuard(Guard):
    """BEFORE UPDATE: refuses a change of `state` that is no arrow of the model."""

    when = pgtrigger.Before
    operation = pgtrigger.Update
    condition = pgtrigger.Condition("OLD.state IS DISTINCT FROM NEW.state")

    def __init__(self, *, arrows: Iterable[Arrow]) -> None:
        super().__init__(name="moves")
        self.arrows = list(arrows)

    def get_func(self, model: Any) -> str:
        """Look the pair up in the model's arrows."""
        known = ",".join(f"{a}:{b}" for a, b in self.arrows)
        refuse = self.refuse("Invalid transition: % cannot go from % to %", "TG_TABLE_NAME", "OLD.state", "NEW.state")
        return f"IF NOT (OLD.state || ':' || NEW.state = ANY('{{{known}}}'::text[])) THEN {refuse} END IF; RETURN NEW;"


class BirthGuard(Guard):
    """BEFORE INSERT: refuses a birth in a state that is not initial."""

    when = pgtrigger.Before
    operation = pgtrigger.Insert

    def __init__(self, *, initial: Iterable[str]) -> None:
        super().__init__(name="birth")
        self.initial = sorted(str(state) for state in initial)

    def get_func(self, model: Any) -> str:
        """Look the state up among the initial ones."""
        known = ",".join(self.initial)
        refuse = self.refuse("Invalid birth: % cannot start as %", "TG_TABLE_NAME", "NEW.state")
        return f"IF NOT (NEW.state = ANY('{{{known}}}'::text[])) THEN {refuse} END IF; RETURN NEW;"


class ToldGuard(Guard):
    """Deferred: refuses the commit of a birth or move without an Event of the same transaction that tells it."""

    when = pgtrigger.After
    operation = pgtrigger.Insert | pgtrigger.UpdateOf("state")
    timing = pgtrigger.Deferred

    def __init__(self, *, noun: str) -> None:
        super().__init__(name="told")
        self.noun = noun

    def get_func(self, model: Any) -> str:
        """Look for that event."""
        refuse = self.refuse("Untold: % % became % without an event", "TG_TABLE_NAME", "NEW.id", "NEW.state")
        return f"""
            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (
                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = '{self.noun}'
                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN {refuse} END IF;
            RETURN NULL;
        """


def held_by_postgres(model: S) -> S:
    """Class decorator: the database refuses what `MOVES` and `KEYED` refuse, whoever writes, and what nobody told."""
    register = pgtrigger.register(
        MovesGuard(arrows=arrows(model)),
        BirthGuard(initial=model.INITIAL),
        ToldGuard(noun=model.noun()),
        RaiseVersion(quiet=tuple(model.STATE_CLOCKS)),
    )
    held: S = register(model)
    return held
