"""Who outside is told: subscriptions with their place in the log, webhooks that they feed, and what became of each
delivery.
"""

import hashlib
import hmac
import random
import secrets
from base64 import b64encode
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any, Self
from urllib.parse import urlsplit

from django.conf import settings
from django.db import models
from django.db.models import Exists, F, OuterRef, Q, Subquery, Value
from django.db.models.functions import Coalesce
from django.utils.translation import gettext_lazy as _

from pipeline import events
from pipeline.clock import ClockNow, db_now
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.egress import MAX_URL_LENGTH, AddressRefused, check_url
from pipeline.events import Cursor, Event
from pipeline.kinds import SEVERITIES
from pipeline.models.project import Project, slug_rule
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import Row, in_transaction, versioned
from pipeline.selection import Selection

# Events that one pull looks at: a reader who wants few of very many gets on by steps, each well under a second.
WINDOW = 20_000
# How many such steps a webhook takes at once past what it does not want.
MAX_STEPS = 10
# The longest time for which a delivery may be in somebody's hands: resolving and sending end long before it.
LEASE = timedelta(seconds=60)
SECRET_PREFIX = "whsec_"
# The waits of the specification's example, in seconds: ten tries in a little over three days.
WAITS = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
MAX_TRIES = len(WAITS) + 1
GONE = 410
MAX_ERROR_TEXT = 500


class Batch(list[Event]):
    """Events in the order of commits. `read_to` is the place to acknowledge once all of them are dealt with: it lies
    behind the events that nobody wanted, too.
    """

    def __init__(self, found: Iterable[Event], read_to: Cursor) -> None:
        super().__init__(found)
        self.read_to = read_to


class SubscriptionQuerySet(DefinitionQuerySet["Subscription"]):
    """The words for making and finding subscriptions."""

    def visible_to(self, principal: Any) -> Self:
        """Those of the projects in which `principal` may read; the installation's only for who may read everywhere."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def active(self) -> Self:
        """Not paused."""
        return self.filter(state=Subscription.State.ACTIVE)

    def add(self, *, by: events.Actor, **fields: Any) -> "Subscription":
        """A new subscription; it starts at the present end of the log unless `cursor` says where."""
        told = fields.pop("cursor", None)
        fields["cursor"] = str(events.horizon() if told is None else Cursor.parse(str(told)))
        return super().add(by=by, **fields)


@versioned(quiet=("cursor",))
class Subscription(Definition):
    """Which events a reader wants, and how far it has read.

    `pull` answers the next ones and moves nothing; `ack` moves the place forward, once they are dealt with; so each is
    read at least once, whoever dies in between. Only `replay` moves it back. Without a project it reads all projects.
    """

    NOUN = "subscription"
    # How far it has read: a reader that acknowledges makes no event.
    UNTOLD = Definition.UNTOLD | {"cursor"}

    class State(models.TextChoices):
        ACTIVE = "active", _("active")
        PAUSED = "paused", _("paused")

    key = models.CharField(max_length=64, validators=[slug_rule])
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="subscriptions")
    patterns = models.JSONField()
    channels = models.JSONField(default=list, blank=True)
    min_severity = models.CharField(max_length=8, choices=[(s, s) for s in SEVERITIES], default="debug")
    cursor = models.CharField(max_length=64, editable=False)
    state = models.CharField(max_length=6, choices=State, default=State.ACTIVE, editable=False)

    objects = SubscriptionQuerySet.as_manager()

    class Meta:
        ordering = ["key"]
        constraints = [
            models.UniqueConstraint(
                fields=["project", "key"], name="subscription_key_once_per_project", nulls_distinct=False
            ),
            models.CheckConstraint(name="subscription_state_known", condition=Q(state__in=["active", "paused"])),
            models.CheckConstraint(
                name="subscription_cursor_is_place", condition=Q(cursor__regex=r"^[0-9]+-[0-9]+-[0-9]+$")
            ),
        ]

    def __str__(self) -> str:
        return self.key

    def correlation(self) -> dict[str, str | None]:
        """Events about a subscription belong to its project, if it has one."""
        return {"project_id": self.project_id}

    def check_rules(self) -> None:
        """Its patterns match something, its channels are known."""
        Selection.checked(self.patterns, self.channels, self.min_severity)

    @property
    def selection(self) -> Selection:
        """What it wants."""
        return Selection(tuple(self.patterns), tuple(self.channels), self.min_severity)

    @property
    def place(self) -> Cursor:
        """How far it has read."""
        return Cursor.parse(self.cursor)

    def pull(self, limit: int = 100) -> Batch:
        """At most `limit` wanted events behind its place, in the order of commits; moves nothing.

        At most three queries, which look at no more than WINDOW events. An empty batch may have passed many:
        acknowledge its `read_to`, and pull again while that moves.
        """
        # The end is taken first: whatever stands before a settled event is there for the queries that follow.
        end = events.horizon()
        if end <= self.place:
            return Batch([], self.place)
        for row in Event.objects.after(self.place, WINDOW).values_list("epoch", "xid", "seq")[WINDOW - 1 :]:
            end = min(end, Cursor(*row))
        found = list(self._wanted(end).after(self.place, limit))
        # A page holds events of one epoch: one that ends early in an older epoch says nothing of the next.
        is_last = len(found) < limit and (not found or found[-1].epoch == end.epoch)
        return Batch(found, end if is_last else found[-1].cursor)

    def _wanted(self, end: Cursor) -> events.EventQuerySet:
        """Those of its project that match, up to `end`."""
        place = "(pipeline_event.epoch, pipeline_event.xid, pipeline_event.seq) <= (%s, %s::text::xid8, %s)"
        wanted = Event.objects.extra(where=[place], params=[end.epoch, str(end.xid), end.seq])
        chosen = self.selection
        if self.project_id is not None:
            wanted = wanted.filter(project_id=self.project_id)
        if "*" not in chosen.patterns:
            wanted = wanted.filter(kind__in=sorted(chosen.kinds))
        if chosen.channels:
            wanted = wanted.filter(channel__in=chosen.channels)
        return wanted if chosen.min_severity == "debug" else wanted.filter(severity__in=chosen.severities)

    def ack(self, cursor: Cursor | str) -> bool:
        """Everything up to `cursor` is dealt with; False when the place is there or further already.

        Raises Refused `invalid_cursor` for what is no cursor, InvalidField for one behind the end of the log.
        """
        given = self._known_place(cursor)
        with in_transaction():
            row = self.lock_fresh()
            moved = given > row.place
            if moved:
                Subscription.objects.filter(pk=self.pk).update(cursor=str(given))
        self.cursor = str(given) if moved else row.cursor
        return moved

    def replay(self, start: Cursor | str, *, by: events.Actor, reason: str = "") -> bool:
        """Go back to `start` and read again from there (0-0-0 is the beginning); False when the place is there.

        Recorded as `subscription.changed`. Raises as ack() does, and InvalidField for a place further on.
        """
        given = self._known_place(start)
        with in_transaction():
            row = self.lock_fresh()
            if given > row.place:
                raise InvalidField("cursor", f"a replay goes back; {given} lies ahead of {row.cursor}: acknowledge it")
            moved = given != row.place
            if moved:
                self._change(by, reason, cursor=(row.cursor, str(given)))
        self.refresh_from_db()
        return moved

    @staticmethod
    def _known_place(cursor: Cursor | str) -> Cursor:
        """`cursor`, which a reader can have seen. Behind the end of the log nothing can be acknowledged."""
        given = Cursor.parse(str(cursor))
        end = events.horizon()
        if given > end:
            raise InvalidField("cursor", f"{given} lies behind the end of the log, {end}", code="invalid_cursor")
        return given

    def pause(self, *, by: events.Actor, reason: str = "") -> bool:
        """Deliver nothing until it is resumed; its place stays. False when it is paused already."""
        return self._turn(self.State.PAUSED, by, reason)

    def resume(self, *, by: events.Actor, reason: str = "") -> bool:
        """Go on where it was paused; False when it is active already."""
        return self._turn(self.State.ACTIVE, by, reason)

    def _turn(self, state: str, by: events.Actor, reason: str) -> bool:
        with in_transaction():
            before = self.lock_fresh().state
            if before != state:
                self._change(by, reason, state=(before, str(state)))
        self.refresh_from_db()
        return before != state

    def _change(self, by: events.Actor, reason: str, **columns: tuple[str, str]) -> None:
        """Write the columns, given as (old, new), and the event that tells it."""
        after = {name: new for name, (_old, new) in columns.items()}
        Subscription.objects.filter(pk=self.pk).update(**after)
        before = {name: old for name, (old, _new) in columns.items()}
        events.record("subscription.changed", self, by=by, reason=reason, before=before, after=after)


# -- webhooks ----------------------------------------------------------------------------------------------------


def new_seed() -> str:
    """What one secret is made from: 32 random bytes in hex. It is no secret itself."""
    return secrets.token_hex(32)


class WebhookEndpointQuerySet(DefinitionQuerySet["WebhookEndpoint"]):
    """The words for finding webhooks."""

    def visible_to(self, principal: Any) -> Self:
        """Those of the projects that `principal` administers: an address may hold what opens the receiver's door."""
        ids = principal.project_ids(at_least="admin")
        return self if ids is None else self.filter(subscription__project__in=ids)

    def enabled(self) -> Self:
        """Those that are sent to."""
        return self.filter(disabled_at=None)

    def feeding(self) -> Self:
        """Enabled, and their subscription is not paused: the log is read for them."""
        return self.enabled().filter(subscription__state=Subscription.State.ACTIVE)

    def with_due(self) -> Self:
        """Enabled, with a delivery that is due and in nobody's hands."""
        return self.enabled().filter(Exists(Delivery.objects.due().filter(endpoint=OuterRef("pk"))))


@versioned(quiet=("dead_in_row", "failing_since"))
class WebhookEndpoint(Definition):
    """An address outside that is told what its subscription selects, signed as Standard Webhooks 1.0.0 has it.

    Its one or two secrets are not in the database: each is HMAC-SHA256, under the installation's pepper, of the
    webhook's id and a random seed; so whoever has a copy of the database can sign nothing, and another pepper makes
    other secrets. During a rotation both sign, until the old one is retired.
    """

    NOUN = "webhook"
    # What its secrets are made of, an address whose path may be one (events tell it cut), and what deliveries count.
    UNTOLD = Definition.UNTOLD | {"url", "seed", "old_seed", "dead_in_row", "failing_since"}

    subscription = models.OneToOneField(Subscription, models.PROTECT, related_name="webhook")
    url = models.CharField(max_length=MAX_URL_LENGTH)
    seed = models.CharField(max_length=64, default=new_seed, editable=False)
    old_seed = models.CharField(max_length=64, blank=True, editable=False)
    disabled_at = models.DateTimeField(null=True, editable=False)
    disabled_reason = models.TextField(blank=True, editable=False)
    dead_in_row = models.PositiveIntegerField(default=0, editable=False)
    failing_since = models.DateTimeField(null=True, editable=False)

    objects = WebhookEndpointQuerySet.as_manager()

    class Meta:
        verbose_name = _("webhook")
        verbose_name_plural = _("webhooks")
        constraints = [
            models.CheckConstraint(
                name="webhook_disabled_says_why", condition=Q(disabled_at=None) | ~Q(disabled_reason="")
            ),
        ]

    def __str__(self) -> str:
        return self.shown_url

    def correlation(self) -> dict[str, str | None]:
        """Events about a webhook belong to its subscription's project, if it has one."""
        return {"project_id": self.subscription.project_id}

    def check_rules(self) -> None:
        """Its address is one that we send to."""
        try:
            check_url(self.url)
        except AddressRefused as refusal:
            raise InvalidField("url", str(refusal), code="address_refused") from refusal

    def document(self) -> dict[str, Any]:
        """As for every definition, with the address as events may tell it."""
        return {**super().document(), "url": self.shown_url}

    @property
    def shown_url(self) -> str:
        """The address without its path, which may be a secret of the receiver; its hash tells one from another."""
        parts = urlsplit(self.url)
        return f"{parts.scheme}://{parts.netloc}/… ({hashlib.sha256(self.url.encode()).hexdigest()[:8]})"

    @property
    def is_enabled(self) -> bool:
        """Whether it is sent to."""
        return self.disabled_at is None

    # Secrets

    def secrets(self) -> list[str]:
        """The secrets that sign, `whsec_` and 32 bytes in base 64, the newest first. To be shown once, by the verb that
        makes one.
        """
        return [self._secret(seed) for seed in (self.seed, self.old_seed) if seed]

    def _secret(self, seed: str) -> str:
        what = f"webhook secret\n{self.pk}\n{seed}"
        made = hmac.new(settings.SIGNALBOX_PEPPER.encode(), what.encode(), hashlib.sha256)
        return SECRET_PREFIX + b64encode(made.digest()).decode()

    def rotate(self, *, by: events.Actor, reason: str = "") -> str:
        """A new secret, which signs from now on beside the old one; it is returned here and shown nowhere else.

        Raises Refused `rotation_open` while the last rotation's old secret still signs.
        """
        with in_transaction():
            row = self.lock_fresh()
            if row.old_seed:
                raise Refused("Two secrets sign already: retire the old one first", code="rotation_open")
            self._change(by, reason, {"secrets": "rotated"}, seed=new_seed(), old_seed=row.seed)
        return self.secrets()[0]

    def retire_old(self, *, by: events.Actor, reason: str = "") -> bool:
        """Sign with the newest secret only; False when it is the only one."""
        with in_transaction():
            row = self.lock_fresh()
            if row.old_seed:
                self._change(by, reason, {"secrets": "old one retired"}, old_seed="")
        return bool(row.old_seed)

    def _change(self, by: events.Actor, reason: str, told: dict[str, Any], **columns: Any) -> None:
        WebhookEndpoint.objects.filter(pk=self.pk).update(**columns)
        self.refresh_from_db()
        events.record("webhook.changed", self, by=by, reason=reason, data=told)

    # Enabled or not

    def disable(self, *, by: events.Actor, reason: str) -> bool:
        """Send nothing more until it is enabled again; what waits and what comes is kept. False when it is disabled.

        Raises ReasonRequired.
        """
        reason = need_reason(reason)
        with in_transaction():
            columns = {"disabled_at": db_now(), "disabled_reason": reason}
            changed = bool(WebhookEndpoint.objects.enabled().filter(pk=self.pk).update(**columns))
            if changed:
                events.record(
                    "webhook.disabled",
                    self,
                    by=by,
                    reason=reason,
                    data={"url": self.shown_url},
                    before={"disabled_at": None, "disabled_reason": ""},
                    after=columns,
                )
        self.refresh_from_db()
        return changed

    def enable(self, *, by: events.Actor, reason: str = "") -> bool:
        """Send again, beginning with what has waited; False when it is enabled."""
        with in_transaction():
            was = self.lock_fresh()
            if was.disabled_at is not None:
                WebhookEndpoint.objects.filter(pk=self.pk).update(
                    disabled_at=None, disabled_reason="", dead_in_row=0, failing_since=None
                )
                events.record(
                    "webhook.changed",
                    self,
                    by=by,
                    reason=reason,
                    before={"disabled_at": was.disabled_at, "disabled_reason": was.disabled_reason},
                    after={"disabled_at": None, "disabled_reason": ""},
                )
        self.refresh_from_db()
        return was.disabled_at is not None

    # Deliveries

    def match(self, limit: int) -> int:
        """Make a delivery of each of the next `limit` selected events, in one transaction with the subscription's
        advance; returns how many. Zero, too, while another process does this, and while it is disabled or paused.
        """
        with in_transaction():
            free = Subscription.objects.select_for_update(no_key=True, skip_locked=True, of=("self",))
            subscription = free.active().filter(webhook=self.pk, webhook__disabled_at=None).first()
            if subscription is None:
                return 0
            batch = subscription.pull(limit)
            for _step in range(MAX_STEPS):
                if batch or batch.read_to == subscription.place:
                    break
                subscription.cursor = str(batch.read_to)
                batch = subscription.pull(limit)
            # The row is locked here, so no other reader can have moved it: what ack() asks is known.
            place = str(batch.read_to)
            Subscription.objects.filter(pk=subscription.pk).exclude(cursor=place).update(cursor=place)
            ids = [event.pk for event in batch]
            # A replay passes the same events again: their deliveries are repeats of the first.
            first = Delivery.objects.first_ones().filter(endpoint=self, event__in=ids)
            known = dict(first.values_list("event_id", "pk"))
            Delivery.objects.bulk_create(
                Delivery(endpoint=self, event_id=pk, redelivery_of_id=known.get(pk)) for pk in ids
            )
        return len(ids)

    def take(self, limit: int, *, in_flight: int) -> "list[Delivery]":
        """At most `limit` due deliveries, leased to the caller, the longest due first; no more than `in_flight` are
        leased at a time, by all senders together. Empty, too, while another process takes.
        """
        with in_transaction():
            locked = WebhookEndpoint.objects.enabled().filter(pk=self.pk)
            if not locked.select_for_update(no_key=True, skip_locked=True).values_list("pk").first():
                return []
            free = min(limit, in_flight - Delivery.objects.leased().filter(endpoint=self).count())
            if free <= 0:
                return []
            due = Delivery.objects.due().filter(endpoint=self).order_by("next_attempt_at", "pk")
            rows = list(due.select_for_update(skip_locked=True)[:free])
            until = db_now() + LEASE
            Delivery.objects.filter(pk__in=[row.pk for row in rows]).update(leased_until=until)
        for row in rows:
            row.leased_until, row.endpoint = until, self
        return rows


class DeliveryQuerySet(models.QuerySet["Delivery"]):
    """The words for asking about deliveries."""

    def visible_to(self, principal: Any) -> Self:
        """Those of the webhooks that `principal` administers."""
        ids = principal.project_ids(at_least="admin")
        return self if ids is None else self.filter(endpoint__subscription__project__in=ids)

    def pending(self) -> Self:
        """Neither delivered nor dead."""
        return self.filter(state=Delivery.State.PENDING)

    def leased(self) -> Self:
        """In somebody's hands now."""
        return self.pending().filter(leased_until__gt=ClockNow())

    def due(self) -> Self:
        """To be sent now, and in nobody's hands: a sender that was killed holds its lease no longer."""
        free = Q(leased_until=None) | Q(leased_until__lte=ClockNow())
        return self.pending().filter(free, next_attempt_at__lte=ClockNow())

    def with_kind(self) -> Self:
        """With `kind`, the event's; empty when the event is kept no longer."""
        kind = Event.objects.filter(pk=OuterRef("event_id")).values("kind")
        return self.annotate(kind=Coalesce(Subquery(kind), Value("")))

    def untried(self) -> Self:
        """Pending, and never sent."""
        return self.pending().filter(attempt_count=0)

    def first_ones(self) -> Self:
        """No redeliveries."""
        return self.filter(redelivery_of=None)

    def forget(self, before: datetime, limit: int = 10_000) -> int:
        """Delete at most `limit` of those that ended and were made before this time; returns how many."""
        ended = self.exclude(state=Delivery.State.PENDING).filter(created_at__lt=before).order_by("pk")
        return self.filter(pk__in=list(ended.values_list("pk", flat=True)[:limit])).delete()[0]


@versioned()
class Delivery(Row):
    """One event on its way to one webhook: an outbox row, tried until it is delivered or dead.

    A redelivery is a new row that carries the same event, and so the same `webhook-id`.
    """

    NOUN = "delivery"

    class State(models.TextChoices):
        PENDING = "pending", _("pending")
        DELIVERED = "delivered", _("delivered")
        DEAD = "dead", _("dead")

    endpoint = models.ForeignKey(WebhookEndpoint, models.CASCADE, related_name="deliveries", db_index=False)
    # The log outlives no promise made here: an event whose month is dropped leaves its deliveries as they are.
    event = models.ForeignKey(Event, models.DO_NOTHING, db_constraint=False, related_name="+")
    state = models.CharField(max_length=9, choices=State, default=State.PENDING)
    attempt_count = models.PositiveSmallIntegerField(default=0)
    next_attempt_at = models.DateTimeField(db_default=ClockNow())
    leased_until = models.DateTimeField(null=True)
    last_attempt_at = models.DateTimeField(null=True)
    last_status = models.PositiveSmallIntegerField(null=True)
    last_error = models.TextField(blank=True)
    response_tail = models.TextField(blank=True)
    redelivery_of = models.ForeignKey(
        "self", models.DO_NOTHING, null=True, db_constraint=False, db_index=False, related_name="redeliveries"
    )

    kind: str
    """The event's, of a row that was asked for `with_kind`."""

    objects = DeliveryQuerySet.as_manager()

    class Meta:
        verbose_name_plural = _("deliveries")
        constraints = [
            models.UniqueConstraint(
                fields=["endpoint", "event"], condition=Q(redelivery_of=None), name="delivery_once_per_event"
            ),
            models.CheckConstraint(
                name="delivery_state_known", condition=Q(state__in=["pending", "delivered", "dead"])
            ),
            models.CheckConstraint(
                name="delivery_delivered_was_accepted",
                condition=~Q(state="delivered") | Q(last_status__range=(200, 299)),
            ),
            models.CheckConstraint(name="delivery_tries_end", condition=Q(attempt_count__lte=MAX_TRIES)),
        ]
        indexes = [
            # Read by take() and with_due(): what is due at one endpoint.
            models.Index(fields=["endpoint", "next_attempt_at"], name="delivery_due", condition=Q(state="pending")),
            # Read by take(): what is in flight at one endpoint.
            models.Index(fields=["endpoint"], name="delivery_leased", condition=~Q(leased_until=None)),
            # Read by the page and the API: an endpoint's deliveries, newest first.
            models.Index(fields=["endpoint", "-id"], name="delivery_of_endpoint"),
        ]

    def __str__(self) -> str:
        return f"{self.event_id} to {self.endpoint}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a delivery belong to its webhook's project."""
        return self.endpoint.correlation()

    @property
    def webhook_id(self) -> str:
        """What the receiver tells repeats by: the event's id, whichever attempt or redelivery it is."""
        return str(self.event_id)

    def accept(self, *, status: int, response_tail: str = "") -> bool:
        """The receiver took it, with this status of 200 to 299. False when the lease has passed to another sender."""
        with in_transaction():
            # Before the delivery, as everywhere: and true of the receiver even when the lease is another's by now.
            endpoint = WebhookEndpoint.objects.filter(Q(dead_in_row__gt=0) | ~Q(failing_since=None))
            endpoint.filter(pk=self.endpoint_id).update(dead_in_row=0, failing_since=None)
            return self._end_lease("", status, response_tail, state=self.State.DELIVERED)

    def fail(
        self,
        error: str,
        *,
        status: int | None = None,
        response_tail: str = "",
        retry_after_seconds: float = 0,
        final: bool = False,
    ) -> bool:
        """It was not taken: try again after the schedule's wait, and not before `retry_after_seconds` (at most a day);
        dead at the last try, at 410, or when it is `final`.

        The webhook is disabled when it answered 410, when SIGNALBOX_WEBHOOK_DEAD_IN_ROW deliveries (3) died in a row,
        or when it took nothing for SIGNALBOX_WEBHOOK_FAILING_DAYS days (5). False when another sender has the lease.
        """
        error = error[:MAX_ERROR_TEXT]
        with in_transaction():
            endpoint = WebhookEndpoint.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.endpoint_id)
            dead = final or status == GONE or self.attempt_count + 1 >= MAX_TRIES
            wait = 0.0 if dead else WAITS[self.attempt_count] * random.uniform(0.8, 1.2)
            wait = max(wait, min(retry_after_seconds, WAITS[-1]))
            state = self.State.DEAD if dead else self.State.PENDING
            next_attempt_at = ClockNow() + timedelta(seconds=wait)
            if not self._end_lease(error, status, response_tail, state=state, next_attempt_at=next_attempt_at):
                return False
            endpoint.dead_in_row += dead
            endpoint.failing_since = endpoint.failing_since or db_now()
            endpoint.save(update_fields=["dead_in_row", "failing_since"])
            if dead:
                facts = {"event": self.event_id, "url": endpoint.shown_url, "status": status, "error": error}
                events.record("delivery.dead", self, by=events.SYSTEM, reason=error, data=facts)
            why = self._why_disable(endpoint, status)
            if why:
                endpoint.disable(by=events.SYSTEM, reason=why)
        return True

    def _end_lease(self, error: str, status: int | None, response_tail: str, **columns: Any) -> bool:
        """Write what became of the attempt, if the lease that it was made under still stands."""
        mine = Delivery.objects.pending().filter(pk=self.pk, leased_until=self.leased_until)
        written = mine.update(
            attempt_count=F("attempt_count") + 1,
            leased_until=None,
            last_attempt_at=ClockNow(),
            last_status=status,
            last_error=error,
            response_tail=response_tail,
            **columns,
        )
        return bool(written)

    @staticmethod
    def _why_disable(endpoint: WebhookEndpoint, status: int | None) -> str:
        """Why this endpoint is sent to no longer; empty when it still is."""
        most = settings.SIGNALBOX_WEBHOOK_DEAD_IN_ROW
        days = settings.SIGNALBOX_WEBHOOK_FAILING_DAYS
        if status == GONE:
            return "The receiver answered 410 Gone: it wants no more"
        if endpoint.dead_in_row >= most:
            return f"{endpoint.dead_in_row} deliveries in a row were tried to the end and not taken"
        if endpoint.failing_since is not None and db_now() - endpoint.failing_since > timedelta(days=days):
            return f"The receiver has taken nothing for {days} days"
        return ""

    def redeliver(self, *, by: events.Actor, reason: str = "") -> "Delivery":
        """Send the same event again, as a new row with the same `webhook-id`; recorded as `webhook.changed`.

        Raises Refused `webhook_disabled` while nothing is sent there, `delivery_pending` when it is still to be sent.
        """
        with in_transaction():
            row = Delivery.objects.select_for_update(no_key=True, of=("self",)).get(pk=self.pk)
            if not row.endpoint.is_enabled:
                raise Refused(
                    f"{row.endpoint} is disabled, so nothing is sent: enable it first", code="webhook_disabled"
                )
            if row.state == self.State.PENDING:
                raise Refused("This delivery is still to be sent, so it is not sent again", code="delivery_pending")
            again = Delivery.objects.create(
                endpoint=row.endpoint, event_id=row.event_id, redelivery_of_id=row.redelivery_of_id or row.pk
            )
            told = {"redelivered": row.pk, "event": row.event_id, "delivery": again.pk}
            events.record("webhook.changed", row.endpoint, by=by, reason=reason, data=told)
        again.refresh_from_db()
        return again
