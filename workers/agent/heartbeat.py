"""The agent's pulse: a thread that beats, keeps the lease alive, and hears what the server wants."""

import logging
import threading
from dataclasses import dataclass
from typing import Any, Literal

from workers.agent import clock
from workers.agent.client import Client, Patience, Refusal, Unreachable

Directive = Literal["continue", "pause", "drain", "stop"]
DIRECTIVES: tuple[Directive, ...] = ("continue", "pause", "drain", "stop")

logger = logging.getLogger("signalbox.agent")


def directive_in(body: dict[str, Any]) -> Directive:
    """The directive of an answer; a word that we do not know is `continue`."""
    return next((known for known in DIRECTIVES if known == body.get("directive")), "continue")


@dataclass
class Held:
    """A lease that we hold, with what the next heartbeat says of it. Times are of `clock.now()`.

    `confirmed_at` is when the last confirmed heartbeat was *sent*: the server's renewal is no earlier, so the lease
    stands at least `timeout_seconds` from then, whatever the clocks of the two machines say. `stopping` is ours to
    set, `acknowledged` says that the server has heard it. `movement` grows when the tool gets on, `told_movement` is
    how far the server knows: a heartbeat brings progress only where the two differ, so that a wrapper that goes on
    beating around a tool that hangs is seen to stall. `reporting` says that its end is under way to the server.
    """

    id: str
    generation: int
    confirmed_at: float
    confirmed: bool = False
    lost: bool = False
    stop_asked: bool = False
    stopping: bool = False
    acknowledged: bool = False
    tool_alive: bool = True
    activity: str = "unknown"
    output_bytes: int = 0
    movement: int = 0
    told_movement: int = 0
    reporting: bool = False


# A report that takes longer than so many heartbeats may find the lease over: it is renewed meanwhile.
REPORT_BEATS = 2


class Heart:
    """Beats every `interval_seconds` for one registered worker until closed, or until the server says it is gone."""

    def __init__(self, client: Client, worker: str, *, interval_seconds: float, patience: Patience) -> None:
        self.worker = worker
        self.interval_seconds = interval_seconds
        self.gone = False
        self._client = client
        self._patience = patience
        self._directive: Directive = "continue"
        self._held: Held | None = None
        self._changed = threading.Condition()
        self._beat_now = False
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    @property
    def directive(self) -> Directive:
        """What the server said last to the worker as a whole; a stop of one lease is told to that lease."""
        with self._changed:
            return self._directive

    def hold(self, held: Held) -> None:
        """From now on heartbeats carry this lease; the first of them is sent at once."""
        with self._changed:
            self._held = held
        self.beat_soon()

    def release(self, directive: Directive | None = None) -> None:
        """The lease is over; `directive` is what the answer to the last report said."""
        with self._changed:
            self._held = None
            if directive is not None:
                self._directive = directive

    def report(self, held: Held) -> None:
        """The end of the lease is about to be reported: heartbeats leave it out, as one that crosses the report would
        find it ended.
        """
        with self._changed:
            held.reporting = True

    def beat_soon(self) -> None:
        """Sends the next heartbeat at once."""
        with self._changed:
            self._beat_now = True
            self._changed.notify()

    def close(self) -> None:
        """Ends the thread, after the heartbeat that may be under way."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join(self.interval_seconds + 5.0)
        self._client.close()

    def _run(self) -> None:
        misses = 0
        while True:
            try:
                self._beat()
                misses, pause = 0, self.interval_seconds
            except Unreachable as error:
                misses += 1
                pause = min(self.interval_seconds, self._patience.wait_seconds(misses))
                pause = max(pause, min(error.retry_after_seconds or 0.0, self.interval_seconds))
                logger.warning("heartbeat not confirmed: %s; next in %.1f s", error, pause)
            with self._changed:
                if not self._closed and not self.gone:
                    self._changed.wait_for(lambda: self._closed or self._beat_now, pause)
                if self._closed or self.gone:
                    return
                self._beat_now = False

    def _beat(self) -> None:
        with self._changed:
            held = self._held
            if held is not None and held.reporting:
                unconfirmed = clock.now() - held.confirmed_at
                held = held if unconfirmed > REPORT_BEATS * self.interval_seconds else None
            leases = []
            movement = 0
            if held is not None:
                movement = held.movement
                moved = movement != held.told_movement
                leases = [
                    {
                        "id": held.id,
                        "generation": held.generation,
                        "progress": {"output_bytes": held.output_bytes, "movement": movement} if moved else {},
                        "stopping": held.stopping,
                    }
                ]
            body = {
                "process_alive": held is None or held.tool_alive,
                "activity": "unknown" if held is None else held.activity,
                "leases": leases,
            }
        sent_at = clock.now()
        try:
            answer = self._client.post_once(f"/workers/{self.worker}/heartbeat/", body)
        except Refusal as refusal:
            self._take_refusal(refusal, held)
            return
        directive = directive_in(answer.body)
        with self._changed:
            if held is None:
                # Sent before a claim, answered after it: it speaks of the worker, and says nothing of the lease.
                self._directive = directive
                return
            if held is not self._held:
                return  # the lease was reported meanwhile; the answer to the report is newer than this one
            held.confirmed_at = max(held.confirmed_at, sent_at)
            held.confirmed = True
            held.told_movement = movement
            held.acknowledged = held.acknowledged or (bool(leases) and bool(leases[0]["stopping"]))
            if directive == "stop":
                held.stop_asked = True
            else:
                self._directive = directive

    def _take_refusal(self, refusal: Refusal, held: Held | None) -> None:
        if refusal.means_finished:
            logger.warning("this worker is finished: %s", refusal)
            with self._changed:
                self.gone = True
                if held is not None:
                    held.lost = True
        elif refusal.is_stale and held is not None:
            with self._changed:
                if held is not self._held or held.reporting:
                    return  # reported while this beat was under way: the answer to the report says what is lost
            logger.warning("the lease is lost: %s", refusal)
            with self._changed:
                held.lost = True
        else:
            raise Unreachable(str(refusal))
