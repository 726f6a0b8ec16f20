"""Who is told by chat or mail: rules that say which events, to whom and at most how often, and how it went."""

from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple, Self

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models, transaction
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from pipeline import digest, events, notify
from pipeline.clock import ClockNow, db_now
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.events import Cursor, Event
from pipeline.ids import ULIDField, new_id
from pipeline.models.key import hash_secret
from pipeline.models.project import Project, slug_rule
from pipeline.models.run import Run
from pipeline.models.webhook import Subscription, WebhookEndpoint
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import in_transaction, versioned

# The longest time for which a rule may be in somebody's hands: a messenger is ended long before it.
LEASE = timedelta(seconds=90)
LOOK_AGAIN = timedelta(seconds=5)
MAX_BACKOFF = timedelta(hours=1)
# Events that one message tells at most; those behind them wait for the next.
PAGE, MOST_TOLD = 500, 2000
# Moving a place is a write: past events that nobody wanted it moves in steps of so many transactions.
IDLE_STEP = 1000


class Due(NamedTuple):
    """What a rule that was taken has to say, and how far it will have read once that is said."""

    message: digest.Message
    read_to: Cursor


class NotificationRuleQuerySet(DefinitionQuerySet["NotificationRule"]):
    """The words for finding rules that have something to say."""

    def visible_to(self, principal: Any) -> Self:
        """The rules of the projects that `principal` administers; those without a project only for the installation."""
        ids = principal.project_ids(at_least="admin")
        return self if ids is None else self.filter(project__in=ids)

    def active(self) -> Self:
        """Neither paused themselves nor by their subscription."""
        return self.filter(state=NotificationRule.State.ACTIVE, subscription__state=Subscription.State.ACTIVE)

    def due(self) -> Self:
        """Those to look at now, in nobody's hands, by the database's clock."""
        return self.active().filter(due_at__lte=ClockNow(), leased_until__lte=ClockNow())

    def take(self) -> "NotificationRule | None":
        """The rule that is due longest, now in the caller's hands for LEASE; None when none is due."""
        with transaction.atomic():
            free = self.due().select_for_update(skip_locked=True, no_key=True, of=("self",))
            rule = free.order_by("due_at", "pk").first()
            if rule is not None:
                rule.grab()
        return rule


# What sending writes: no edit of the rule, neither in its version nor in its history.
CLOCKWORK = ("due_at", "lease", "leased_until", "last_sent_at", "sent_on", "sent_today", "failures", "last_error")


@versioned(quiet=CLOCKWORK)
class NotificationRule(Definition):
    """Which events are told to whom, and how often at most.

    A rule reads its own subscription. It speaks once an interval: at once when it was silent long enough (or, as a
    digest, after gathering for an interval), with everything that waits in one message. The place in the log moves
    when the target took the message, so whoever dies in between sends it again; nothing is left out. A target that
    fails is tried again with growing delay, and after many failures in a row the rule pauses itself.

    `target` is a secret: events, answers and pages show its scheme and host. It stands in the database as it is, unless
    it is `env:NAME`, which keeps it out.
    """

    NOUN = "notification_rule"
    UNTOLD = Definition.UNTOLD | {"target", *CLOCKWORK}

    class State(models.TextChoices):
        ACTIVE = "active", _("active")
        PAUSED = "paused", _("paused")

    class Text(models.TextChoices):
        EVENT = "event", _("each event, a digest of many")
        DIGEST = "digest", _("always a digest")

    key = models.CharField(max_length=64, validators=[slug_rule])
    project = models.ForeignKey(Project, models.CASCADE, null=True, blank=True, related_name="notification_rules")
    subscription = models.OneToOneField(Subscription, models.CASCADE, related_name="notification_rule")
    target = models.CharField(max_length=notify.MAX_LENGTH)
    text = models.CharField(max_length=6, choices=Text, default=Text.EVENT)
    at_most_every_seconds = models.PositiveIntegerField(
        default=300, validators=[MinValueValidator(1), MaxValueValidator(7 * 24 * 3600)]
    )
    max_per_day = models.PositiveIntegerField(default=100, validators=[MinValueValidator(1), MaxValueValidator(10_000)])
    digest_above = models.PositiveIntegerField(default=5, validators=[MinValueValidator(1), MaxValueValidator(100)])
    state = models.CharField(max_length=6, choices=State, default=State.ACTIVE, editable=False)
    due_at = models.DateTimeField(db_default=ClockNow(), editable=False)
    lease = ULIDField(null=True, editable=False)
    leased_until = models.DateTimeField(db_default=ClockNow(), editable=False)
    last_sent_at = models.DateTimeField(null=True, editable=False)
    sent_on = models.DateField(null=True, editable=False)
    sent_today = models.PositiveIntegerField(default=0, editable=False)
    failures = models.PositiveIntegerField(default=0, editable=False)
    last_error = models.CharField(max_length=notify.MAX_WHY_CHARACTERS, blank=True, editable=False)

    objects = NotificationRuleQuerySet.as_manager()

    class Meta:
        ordering = ["key"]
        constraints = [
            models.UniqueConstraint(
                fields=["project", "key"], name="notificationrule_key_once_per_project", nulls_distinct=False
            ),
            models.CheckConstraint(name="notificationrule_state_known", condition=Q(state__in=["active", "paused"])),
            models.CheckConstraint(name="notificationrule_text_known", condition=Q(text__in=["event", "digest"])),
            models.CheckConstraint(
                name="notificationrule_limits_positive",
                condition=Q(at_most_every_seconds__gte=1, max_per_day__gte=1, digest_above__gte=1),
            ),
        ]
        indexes = [models.Index(fields=["due_at"], name="notificationrule_due", condition=Q(state="active"))]

    def __str__(self) -> str:
        return f"{self.key} to {self.sends_to}"

    # What people say

    def correlation(self) -> dict[str, str | None]:
        """Events about a rule belong to its project, if it has one."""
        return {"project_id": self.project_id}

    @property
    def sends_to(self) -> str:
        """What may be shown of the target."""
        return notify.shown(self.target)

    def document(self) -> dict[str, Any]:
        """As every definition's, but of the target only what may be shown, with a mark that changes with it."""
        mark = "" if self.target.startswith("env:") else f" #{hash_secret(self.target)[:8]}"
        return {**super().document(), "target": f"{self.sends_to}{mark}"}

    def check_rules(self) -> None:
        """It reads a subscription of its own, of its own project; its target is one that messages may go to."""
        if self.subscription.project_id != self.project_id:
            raise InvalidField("subscription", "one of the same project, or of none when the rule has none")
        if WebhookEndpoint.objects.filter(subscription_id=self.subscription_id).exists():
            raise InvalidField("subscription", "one of its own: this one feeds a webhook, whose place it keeps")
        if not NotificationRule.objects.filter(pk=self.pk, target=self.target).exists():
            notify.check(self.target)

    def edit(self, *, by: events.Actor, expected_version: int | None = None, **fields: Any) -> bool:
        """As every definition's; a rule that was changed is looked at at once, however long it was to wait."""
        with in_transaction():
            changed = super().edit(by=by, expected_version=expected_version, **fields)
            if changed:
                NotificationRule.objects.filter(pk=self.pk).update(due_at=ClockNow())
        return changed

    def pause(self, *, by: events.Actor, reason: str = "") -> bool:
        """Say nothing until it is resumed; what happens meanwhile waits. False when it is paused already."""
        return self._turn(self.State.PAUSED, by, reason)

    def resume(self, *, by: events.Actor, reason: str = "") -> bool:
        """Speak again, beginning with what has waited; False when it is active already."""
        return self._turn(self.State.ACTIVE, by, reason)

    def _turn(self, state: str, by: events.Actor, reason: str, kind: str = "notification_rule.changed") -> bool:
        with in_transaction():
            before = self.lock_fresh().state
            if before != state:
                fresh = {"failures": 0, "due_at": ClockNow()} if state == self.State.ACTIVE else {}
                NotificationRule.objects.filter(pk=self.pk).update(state=state, **fresh)
                events.record(kind, self, by=by, reason=reason, before={"state": before}, after={"state": str(state)})
        self.refresh_from_db()
        return before != state

    def send_test(self, *, by: events.Actor) -> bool:
        """Send one message that says that it is a test; it counts as one of the day's. Holds no transaction open.

        Raises Refused: `limit_reached` when the day's messages are used up, `sending` while another one is on its way,
        `not_sent` (502) with what the target said.
        """
        with transaction.atomic():
            rule = self.lock_fresh()
            if rule.past(db_now()).sent_today >= rule.max_per_day:
                raise Refused(f"{rule} has sent its {rule.max_per_day} messages of today", code="limit_reached")
            if rule.leased_until > db_now():
                raise Refused(f"{rule} is sending a message right now; ask again in a minute", code="sending")
            rule.grab()
        body = digest.harmless(
            f"This is a test of the notification rule {rule.key}, asked for by {by.name}.", digest.MAX_REASON_CHARACTERS
        )
        try:
            notify.send(rule.target, title="Signalbox: test", body=body)
        except notify.NotSent as problem:
            rule.put_back(last_error=str(problem))
            raise Refused(f"Not sent: {problem}", code="not_sent", status=502) from problem
        today = rule.past(db_now()).sent_today + 1
        rule.put_back(last_error="", sent_on=db_now().astimezone(UTC).date(), sent_today=today)
        self.refresh_from_db()
        return True

    # What the machine does

    def grab(self) -> None:
        """Take the rule into the caller's hands for LEASE; the caller holds the row's lock."""
        self.lease = new_id()
        NotificationRule.objects.filter(pk=self.pk).update(lease=self.lease, leased_until=ClockNow() + LEASE)

    def put_back(self, **columns: Any) -> bool:
        """Write `columns` and let go of the rule; False, with nothing written, when it is in other hands by now."""
        mine = NotificationRule.objects.filter(pk=self.pk, lease=self.lease)
        return bool(mine.update(**columns, lease=None, leased_until=ClockNow()))

    def past(self, now: datetime) -> digest.Past:
        """When it spoke last, and how often today (UTC)."""
        return digest.Past(self.last_sent_at, self.sent_today if self.sent_on == now.astimezone(UTC).date() else 0)

    def limits(self) -> digest.Limits:
        """How often it may speak."""
        return digest.Limits(
            timedelta(seconds=self.at_most_every_seconds),
            self.max_per_day,
            self.digest_above,
            gather=self.text == self.Text.DIGEST,
        )

    def compose(self) -> Due | None:
        """What this rule, in the caller's hands, says now; None, with the rule put back, when it says nothing yet."""
        now = db_now()
        found, read_to = self._waiting()
        console = settings.SIGNALBOX_URL
        said = digest.decide(
            facts_of(found, console),
            self.limits(),
            self.past(now),
            now,
            more=len(found) >= MOST_TOLD,
            console=f"{console}/events/" if console else "",
        )
        if isinstance(said, digest.Message):
            return Due(said, read_to)
        with transaction.atomic():
            if said is None and read_to.xid - self.subscription.place.xid >= IDLE_STEP:
                self.subscription.ack(read_to)
            self.put_back(due_at=now + LOOK_AGAIN if said is None else said.until)
        return None

    def _waiting(self) -> tuple[list[Event], Cursor]:
        """The events that wait, oldest first, MOST_TOLD at most, and how far that reads."""
        reader = Subscription.objects.get(pk=self.subscription_id)
        found: list[Event] = []
        while True:
            batch = reader.pull(PAGE)
            found += batch
            if len(batch) < PAGE or len(found) >= MOST_TOLD:
                return found, batch.read_to
            reader.cursor = str(batch.read_to)  # read on; only `ack` moves the place

    def sent(self, read_to: Cursor) -> bool:
        """The target took the message: everything up to `read_to` is told. False when the rule is in other hands."""
        with transaction.atomic():
            now = db_now()
            mine = self.put_back(
                due_at=now,
                last_sent_at=now,
                sent_on=now.astimezone(UTC).date(),
                sent_today=self.past(now).sent_today + 1,
                failures=0,
                last_error="",
            )
            if mine:
                self.subscription.ack(read_to)
        return mine

    def failed(self, why: str) -> bool:
        """The target did not take it: try again later, or pause after too many failures in a row, told by an event.

        False when the rule is in other hands.
        """
        most = settings.SIGNALBOX_NOTIFY_MAX_FAILURES
        count = self.failures + 1
        delay = min(timedelta(seconds=15 * 2 ** min(count, 12)), MAX_BACKOFF)
        with transaction.atomic():
            mine = self.put_back(failures=count, last_error=why[: notify.MAX_WHY_CHARACTERS], due_at=db_now() + delay)
            if mine and count >= most:
                told = f"{count} messages in a row were not taken: {why}"
                self._turn(self.State.PAUSED, events.SYSTEM, told, "notification_rule.disabled")
        return mine


def facts_of(found: list[Event], console: str = "") -> list[digest.Fact]:
    """What messages tell of these events: places in words, links below the address `console`. Two queries."""
    projects = dict(
        Project.objects.filter(pk__in={event.project_id for event in found} - {None}).values_list("pk", "key")
    )
    runs = dict(
        Run.objects.filter(pk__in={event.run_id for event in found} - {None}).values_list("pk", "workstream__key")
    )
    return [
        digest.Fact(
            at=event.created_at,
            kind=event.kind,
            severity=event.severity,
            subject_id=event.subject_id,
            where=_where(event, projects.get(event.project_id, ""), runs.get(event.run_id)),
            reason=event.reason or event.message,
            link=f"{console}/events/{event.pk}/" if console else "",
        )
        for event in found
    ]


def _where(event: Event, project: str, workstream: str | None) -> str:
    """The project's key, and the run by its workstream's key and the end of its id."""
    run = "" if event.run_id is None else f"{workstream or ''} run …{event.run_id[-6:]}".strip()
    return " / ".join(part for part in (project, run) if part)
