"""The bus: one face for telling and listening, over the event log or, without a database, over this process's memory.

What must happen uses `@events.on`; a handler here hears in its own process and may be lost with it.
"""

import logging
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, NamedTuple

from django.db import transaction

from pipeline import events
from pipeline.ids import new_id
from pipeline.kinds import KINDS, SEVERITIES
from pipeline.refusals import InvalidField
from pipeline.selection import Selection

log = logging.getLogger(__name__)

KEPT_FAILURES = 1000
KEPT_EVENTS = 10_000
# What an event is about that names nothing narrower.
INSTALLATION = "0" * 26


@dataclass(frozen=True)
class Message:
    """An event as the bus hands it out, from whichever of its kinds."""

    id: str
    kind: str
    channel: str
    severity: str
    payload: Mapping[str, Any]
    correlation: Mapping[str, str]
    at: datetime


Handler = Callable[[Message], object]


class Failure(NamedTuple):
    """A handler that raised: which, on what, and what it said."""

    subscription: str
    message: Message
    error: str


@dataclass(frozen=True)
class _Listener:
    id: str
    selection: Selection
    handler: Handler = field(compare=False)


class Bus(ABC):
    """Tell with `emit`, listen with `subscribe`, look back with `query`. Safe to use from several threads."""

    def __init__(self) -> None:
        self._listeners: dict[str, _Listener] = {}
        self._lock = threading.Lock()
        self.failures: deque[Failure] = deque(maxlen=KEPT_FAILURES)

    @abstractmethod
    def emit(
        self, kind: str, payload: Mapping[str, Any] | None = None, *, severity: str | None = None, **correlation: str
    ) -> str:
        """Tell that something happened; returns the event's id.

        `correlation` is ids by name (`run_id`, `worker_id` …); without `severity` it is the kind's. Raises KeyError for
        a kind outside the vocabulary, TypeError for an unknown correlation id or a payload without what its kind must
        tell, InvalidField for an unknown severity.
        """

    @abstractmethod
    def query(
        self,
        kind: str = "*",
        run: str | None = None,
        worker: str | None = None,
        severity: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> list[Message]:
        """The newest `limit` events, newest first: of this kind (or pattern, `run.*`), run, worker and severity, from
        `since` on and before `until`.
        """

    def subscribe(
        self, pattern: str, handler: Handler, *, min_severity: str = "debug", channels: Sequence[str] = ()
    ) -> str:
        """Have `handler` called with every later event that matches (`*`, `run.*`, a kind); returns the subscription's
        id. Raises InvalidField for a pattern, severity or channel that is none.
        """
        selection = Selection.checked([pattern], list(channels), min_severity, field="pattern")
        listener = _Listener(new_id(), selection, handler)
        with self._lock:
            self._listeners[listener.id] = listener
        return listener.id

    def unsubscribe(self, subscription: str) -> None:
        """Call that handler no longer; an unknown id is ignored."""
        with self._lock:
            self._listeners.pop(subscription, None)

    def dispatch(self, message: Message) -> int:
        """Call every handler that wants `message`, in the order of their subscriptions; returns how many.

        One that raises is logged, kept in `failures`, and keeps no other from hearing.
        """
        with self._lock:
            listeners = list(self._listeners.values())
        wanting = [one for one in listeners if one.selection.wants(message.kind, message.channel, message.severity)]
        for listener in wanting:
            try:
                listener.handler(message)
            except Exception as problem:
                log.exception("a subscriber to %s failed", message.kind)
                self.failures.append(Failure(listener.id, message, f"{type(problem).__name__}: {problem}"))
        return len(wanting)


def _check(kind: str, payload: Mapping[str, Any] | None, severity: str | None, correlation: Mapping[str, str]) -> str:
    """The severity of the event. Raises as emit() does."""
    word = KINDS[kind]
    if lacking := word.lacks(payload):
        raise TypeError(f"{kind} is told with {', '.join(lacking)}")
    unknown = set(correlation) - set(events.CORRELATION)
    if unknown:
        raise TypeError(f"{', '.join(sorted(unknown))}: not a correlation id of an event")
    if severity is not None and severity not in SEVERITIES:
        raise InvalidField("severity", f"one of {', '.join(SEVERITIES)}, not “{severity}”")
    return severity or word.severity


class MemoryBus(Bus):
    """The bus without a database, for programs and tests: remembers the newest events, and calls handlers at once."""

    def __init__(self, keep: int = KEPT_EVENTS) -> None:
        super().__init__()
        self._kept: deque[Message] = deque(maxlen=keep)

    def emit(
        self, kind: str, payload: Mapping[str, Any] | None = None, *, severity: str | None = None, **correlation: str
    ) -> str:
        """As Bus.emit; the handlers have been called when it returns."""
        weight = _check(kind, payload, severity, correlation)
        message = Message(
            id=new_id(),
            kind=kind,
            channel=KINDS[kind].channel,
            severity=weight,
            payload=events.plain(payload or {}),
            correlation=dict(correlation),
            at=datetime.now(UTC),
        )
        with self._lock:
            self._kept.append(message)
        self.dispatch(message)
        return message.id

    def query(
        self,
        kind: str = "*",
        run: str | None = None,
        worker: str | None = None,
        severity: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> list[Message]:
        """As Bus.query, of what is remembered."""
        kinds = Selection((kind,)).kinds
        with self._lock:
            newest_first = list(reversed(self._kept))
        found = (
            message
            for message in newest_first
            if message.kind in kinds
            and (run is None or message.correlation.get("run_id") == run)
            and (worker is None or message.correlation.get("worker_id") == worker)
            and (severity is None or message.severity == severity)
            and (since is None or message.at >= since)
            and (until is None or message.at < until)
        )
        return [message for message, _number in zip(found, range(limit), strict=False)]


class _Subject:
    """What an emitted event is about: the narrowest thing that it names."""

    NOUNS = ("gate_run", "patch", "step", "task", "run", "worker", "workstream", "project")

    def __init__(self, ids: Mapping[str, str]) -> None:
        named = [(noun, ids[f"{noun}_id"]) for noun in self.NOUNS if ids.get(f"{noun}_id")]
        self._noun, self.pk = named[0] if named else ("installation", INSTALLATION)

    def noun(self) -> str:
        """The word for it."""
        return self._noun

    def correlation(self) -> dict[str, str | None]:
        """What it belongs to is told by whoever emits."""
        return {}


class DatabaseBus(Bus):
    """The bus over the event log: keeps the event in the caller's transaction, and calls handlers after its commit."""

    def __init__(self, by: events.Actor = events.SYSTEM) -> None:
        super().__init__()
        self.by = by

    def emit(
        self, kind: str, payload: Mapping[str, Any] | None = None, *, severity: str | None = None, **correlation: str
    ) -> str:
        """As Bus.emit; undone with the caller's transaction, and then heard by nobody."""
        weight = _check(kind, payload, severity, correlation)
        event = events.record(
            kind, _Subject(correlation), by=self.by, data=payload or {}, severity=weight, **correlation
        )
        # robust: a handler, or the reading back, must not turn a committed change into an error.
        transaction.on_commit(lambda: self._hand_out(event.pk), robust=True)
        return str(event.pk)

    def _hand_out(self, pk: str) -> None:
        self.dispatch(_message(events.Event.objects.get(pk=pk)))

    def query(
        self,
        kind: str = "*",
        run: str | None = None,
        worker: str | None = None,
        severity: str | None = None,
        since: datetime | None = None,
        until: datetime | None = None,
        limit: int = 100,
    ) -> list[Message]:
        """As Bus.query, of the whole log."""
        facts = {"run_id": run, "worker_id": worker, "severity": severity, "created_at__gte": since}
        found = events.Event.objects.filter(**{name: value for name, value in facts.items() if value is not None})
        if until is not None:
            found = found.filter(created_at__lt=until)
        if kind != "*":
            found = found.filter(kind__in=sorted(Selection((kind,)).kinds))
        return [_message(event) for event in found.order_by("-seq")[:limit]]


def _message(event: events.Event) -> Message:
    ids = {name: getattr(event, name) for name in events.CORRELATION}
    return Message(
        id=str(event.pk),
        kind=event.kind,
        channel=event.channel,
        severity=event.severity,
        payload=event.data,
        correlation={name: value for name, value in ids.items() if value is not None},
        at=event.created_at,
    )
