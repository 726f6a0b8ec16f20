"""Telling the outside: selected events become deliveries, deliveries are signed and sent, every answer decides.

The database says what is due and who has it; the threads here only speak HTTP. So any number of processes may do this,
and what a killed one held is taken up again when its lease is over.
"""

import json
import logging
import random
import time
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from django.conf import settings
from standardwebhooks.webhooks import Webhook

from pipeline import egress
from pipeline.clock import db_now
from pipeline.events import CORRELATION, Event, nudge, plain
from pipeline.models import Delivery, WebhookEndpoint

log = logging.getLogger(__name__)

IN_FLIGHT = 5
# One endpoint's part of the log that is turned into deliveries at a time, and how many may wait for their first try:
# what is not yet turned waits in the log, where it costs nothing.
BATCH = 500
MOST_UNTRIED = 1000
FEED_SECONDS = 1.0
MAX_TAIL = 4096

DOCUMENT = (
    "id", "cursor", "created_at", "kind", "channel", "severity", "actor_kind", "actor_id", "actor_name",
    "on_behalf_of", "request_id", "subject_type", "subject_id", "before", "after", "reason", "message", "data",
    *CORRELATION, "stream_seq", "prev_hash", "hash",
)  # fmt: skip


# -- what is sent ------------------------------------------------------------------------------------------------


def body_of(event: Event) -> str:
    """`{"type", "timestamp", "data"}` as Standard Webhooks has it; `data` is the event as the API shows it.

    The same text at every attempt, since an event never changes.
    """
    data = {name: getattr(event, name) for name in DOCUMENT}
    body = {"type": event.kind, "timestamp": event.created_at, "data": {**data, "cursor": str(event.cursor)}}
    return json.dumps(plain(body), ensure_ascii=False, separators=(",", ":"))


def headers_of(webhook_id: str, body: str, secrets: list[str], at: datetime) -> dict[str, str]:
    """The headers of one attempt at the time `at`, signed with every secret. Nobody adds to this set."""
    moment = at.astimezone(UTC)
    signatures = [Webhook(secret).sign(webhook_id, moment, body) for secret in secrets]
    return {
        "Content-Type": "application/json",
        "User-Agent": "Signalbox-Webhooks/1",
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


class Letter(NamedTuple):
    """All that a thread needs to send one delivery."""

    url: str
    body: bytes
    headers: dict[str, str]


def letter_of(delivery: Delivery, event: Event, at: datetime) -> Letter:
    """What to send for this delivery of `event` at the time `at`."""
    body = body_of(event)
    headers = headers_of(delivery.webhook_id, body, delivery.endpoint.secrets(), at)
    return Letter(delivery.endpoint.url, body.encode(), headers)


# -- what comes back ---------------------------------------------------------------------------------------------


class Outcome(NamedTuple):
    """How one attempt ended: taken when `error` is empty."""

    error: str
    status: int | None = None
    response_tail: str = ""
    retry_after_seconds: float = 0


Post = Callable[[str, bytes, dict[str, str]], egress.Answer]


def send(letter: Letter, *, post: Post = egress.post) -> Outcome:
    """Send it once. Whatever goes wrong is an outcome; touches no database."""
    try:
        return _outcome_of(post(letter.url, letter.body, letter.headers))
    except (egress.AddressRefused, egress.Unreachable, egress.TimedOut) as problem:
        return Outcome(legible(str(problem)))
    except Exception as problem:
        log.exception("sending a webhook failed on our side")
        return Outcome(legible(f"The sender failed: {type(problem).__name__}: {problem}"))


def _outcome_of(answer: egress.Answer) -> Outcome:
    """What an answer means. Every part of it is the receiver's, so it may be anything."""
    tail = legible(answer.body.decode("utf-8", "replace"))[-MAX_TAIL:]
    if 200 <= answer.status <= 299:
        return Outcome("", answer.status, tail)
    words = "a redirect, which is never followed" if 300 <= answer.status <= 399 else "the event was not taken"
    pause = retry_after_seconds(answer.retry_after, datetime.now(UTC))
    return Outcome(f"Answered {answer.status}: {words}", answer.status, tail, pause)


def retry_after_seconds(text: str, now: datetime) -> float:
    """The seconds that a `Retry-After` header asks for, as a number or as a date; 0 for anything else."""
    text = text.strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        at = parsedate_to_datetime(text)
    except (ValueError, OverflowError):  # the latter for years, hours and zones of many digits
        return 0
    return max((at if at.tzinfo else at.replace(tzinfo=UTC)) - now, timedelta(0)).total_seconds()


def legible(text: str) -> str:
    """`text` without what only a terminal or a trick would use: control, direction and private signs become �."""
    return "".join(sign if sign.isprintable() or sign in "\n\t" else "�" for sign in text)


def conclude(delivery: Delivery, outcome: Outcome) -> bool:
    """Book how the attempt ended; False when the lease has passed to another sender meanwhile."""
    if not outcome.error and outcome.status is not None:
        return delivery.accept(status=outcome.status, response_tail=outcome.response_tail)
    return delivery.fail(
        outcome.error,
        status=outcome.status,
        response_tail=outcome.response_tail,
        retry_after_seconds=outcome.retry_after_seconds,
    )


# -- doing it ----------------------------------------------------------------------------------------------------


def feed() -> int:
    """Make deliveries of the next events that each enabled webhook selects; returns how many were made."""
    made = 0
    for endpoint in WebhookEndpoint.objects.feeding().order_by("pk"):
        waiting = Delivery.objects.untried().filter(endpoint=endpoint)[:MOST_UNTRIED].count()
        if waiting < MOST_UNTRIED:
            made += endpoint.match(BATCH)
    return made


def take(limit: int, busy: Collection[str] = ()) -> list[Delivery]:
    """At most `limit` due deliveries, leased to the caller, of endpoints in random order but those that are `busy`.

    An endpoint has five in flight; one that failed last time has one, so that its time-outs hold a single thread.
    """
    if limit <= 0:
        return []
    endpoints = list(WebhookEndpoint.objects.with_due().exclude(pk__in=busy).select_related("subscription"))
    random.shuffle(endpoints)
    taken: list[Delivery] = []
    for endpoint in endpoints:
        if len(taken) >= limit:
            break
        taken += endpoint.take(limit - len(taken), in_flight=1 if endpoint.failing_since else IN_FLIGHT)
    return taken


def deliver_due(seconds: float = 50.0, *, post: Post = egress.post) -> int:
    """Feed and send until nothing is due, taking up new work for at most `seconds`; returns how much was done.

    Must run outside any transaction. Ends at the latest one exchange after `seconds`.
    """
    threads: int = settings.SIGNALBOX_WEBHOOK_THREADS
    end = time.monotonic() + seconds
    fed_at = time.monotonic()
    done = feed()
    running: dict[Future[Outcome], Delivery] = {}
    with ThreadPoolExecutor(threads, thread_name_prefix="webhook") as pool:
        while True:
            if time.monotonic() < end:
                if time.monotonic() - fed_at > FEED_SECONDS:
                    fed_at = time.monotonic()
                    done += feed()
                done += _start(pool, running, threads - len(running), post)
            if not running:
                return done
            for future in wait(running, timeout=FEED_SECONDS, return_when=FIRST_COMPLETED).done:
                done += _conclude(running.pop(future), future.result())


def _start(pool: ThreadPoolExecutor, running: dict[Future[Outcome], Delivery], free: int, post: Post) -> int:
    """Give what is due to free threads; returns how many ended here, since their events are kept no longer."""
    in_flight = Counter(delivery.endpoint_id for delivery in running.values())
    taken = take(free, [pk for pk, number in in_flight.items() if number >= IN_FLIGHT])
    if not taken:
        return 0
    kept = Event.objects.in_bulk([delivery.event_id for delivery in taken])
    now, ended = db_now(), 0
    for delivery in taken:
        event = kept.get(delivery.event_id)
        if event is None:
            ended += delivery.fail("Its event is past its keeping", final=True)
        else:
            running[pool.submit(send, letter_of(delivery, event, now), post=post)] = delivery
    return ended


def _conclude(delivery: Delivery, outcome: Outcome) -> bool:
    """As conclude(); what the database refuses is logged, and the lease's end brings the delivery up again."""
    try:
        return conclude(delivery, outcome)
    except Exception:
        log.exception("the outcome of delivery %s could not be booked", delivery.pk)
        return False


def wake() -> None:
    """The sweep's part: wake a sender when anybody is sent to."""
    if WebhookEndpoint.objects.enabled().exists():
        nudge("pipeline.tasks.deliver", queue="webhooks")


def forget_old() -> int:
    """Delete deliveries that ended, SIGNALBOX_DELIVERY_KEEP_DAYS days (30) after they were made; returns how many."""
    days: int = settings.SIGNALBOX_DELIVERY_KEEP_DAYS
    return Delivery.objects.forget(db_now() - timedelta(days=days))


def preview(delivery: Delivery) -> dict[str, Any] | None:
    """The body of this delivery as a document, for people; None when its event is kept no longer."""
    event = Event.objects.filter(pk=delivery.event_id).first()
    return None if event is None else json.loads(body_of(event))
