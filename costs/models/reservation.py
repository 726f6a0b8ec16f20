"""Money set aside before work starts, in every budget over it, and what became of it."""

from datetime import timedelta
from decimal import Decimal
from typing import Any, Self

from django.db import connection, models
from django.db.models import Q
from django.utils.translation import gettext_lazy as _

from costs import pricing
from costs.models.budget import (
    BudgetExceeded,
    BudgetPeriod,
    Cover,
    Movement,
    give_back_reserved,
    move_money,
    period_for,
)
from pipeline import events
from pipeline.clock import BirthTimeField, ClockNow, db_now
from pipeline.ids import ULIDField, new_id, to_uuid
from pipeline.models import Project, Run, Task
from pipeline.refusals import InvalidField, NotFound, Refused
from pipeline.rows import in_transaction
from pipeline.states import Stateful, held_by_postgres

MOST_SECONDS = 30 * 86_400


class ReservationQuerySet(models.QuerySet["Reservation"]):
    """The words for setting money aside."""

    def visible_to(self, principal: Any) -> Self:
        """Those of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def held(self) -> Self:
        """Those whose money is set aside."""
        return self.filter(state=Reservation.State.HELD)

    def overdue(self) -> Self:
        """Held ones without a lease, past their end by the database's clock."""
        return self.held().filter(generation=None, expires_at__lt=ClockNow())

    def reserve(
        self,
        amount: Any,
        covers: list[Cover],
        *,
        by: events.Actor,
        currency: str = "USD",
        project_id: str | None = None,
        run: Run | None = None,
        task: Task | None = None,
        generation: int | None = None,
        seconds: int | None = None,
        key: str = "",
    ) -> "Reservation":
        """Set `amount` aside in each of `covers`, or in none: one conditional UPDATE a budget, in their order.

        Raises BudgetExceeded naming the budget with the least left: the caller's transaction must end by it.
        """
        asked = pricing.figure("amount", amount)
        if not asked:
            raise InvalidField("amount", "a finite number above 0")
        chosen = [cover for cover in covers if cover.currency == currency]
        shares = _set_aside(asked, chosen)
        row = Reservation(
            project_id=project_id,
            run=run,
            task=task,
            generation=generation,
            amount=asked,
            currency=currency,
            key=key,
            expires_at=None if seconds is None else db_now() + timedelta(seconds=seconds),
        )
        row.save(force_insert=True)
        ReservationShare.objects.bulk_create([ReservationShare(reservation=row, period_id=pk) for pk in shares])
        row.born(by=by, kind="reservation.granted")
        return row


_SET_ASIDE = """
UPDATE costs_budgetperiod SET reserved = reserved + %(amount)s
WHERE id = %(period)s AND spent + reserved + %(amount)s <= limit_amount RETURNING 1
"""


def _set_aside(amount: Decimal, covers: list[Cover]) -> list[str]:
    """The periods in which it was set aside. Raises BudgetExceeded."""
    done: list[str] = []
    for cover in sorted(covers, key=lambda cover: (to_uuid(cover.budget_id).bytes, cover.starts_at)):
        pk = period_for(cover)
        with connection.cursor() as cursor:
            cursor.execute(_SET_ASIDE, {"amount": amount, "period": to_uuid(pk)})
            if cursor.fetchone() is None:
                raise _refused(amount, covers, done)
        done.append(pk)
    return done


def _refused(amount: Decimal, covers: list[Cover], done: list[str]) -> BudgetExceeded:
    """The refusal that names the budget with the least left, by its figures now without what this call set aside."""
    fresh = {row.pk: row for row in BudgetPeriod.objects.filter(pk__in=[c.period_id for c in covers if c.period_id])}
    for cover in covers:
        row = fresh.get(cover.period_id)
        if row is not None:
            mine = amount if row.pk in done else Decimal(0)
            cover.limit, cover.spent, cover.reserved = row.limit_amount, row.spent, row.reserved - mine
            cover.breached = row.breached_at is not None
    tightest = min(covers, key=lambda cover: (cover.left, cover.budget_id))
    refusal = BudgetExceeded(
        f"Budget {tightest.key} has {tightest.left} {tightest.currency} left of {tightest.limit} "
        f"({tightest.spent} spent, {tightest.reserved} set aside), and {amount} is asked for",
        budget=tightest.told(),
    )
    refusal.breaches = [
        (cover.budget_id, str(amount)) for cover in covers if not cover.breached and cover.spent + amount > cover.limit
    ]
    return refusal


@held_by_postgres
class Reservation(Stateful):
    """Money set aside in every covering budget before work starts.

        initial -> held -> settled
        held -> released

    A lease's reservation belongs to its task and generation, which the claim makes together; one without a lease ends
    at `expires_at`. Settled if anything was used, else released.
    """

    NOUN = "reservation"
    # Raised by each record of the lease, whose own event tells it.
    UNTOLD = Stateful.UNTOLD | {"used", "estimate_at"}

    class State(models.TextChoices):
        HELD = "held", _("held")
        SETTLED = "settled", _("settled")
        RELEASED = "released", _("released")

    MOVES = {State.HELD: {State.SETTLED, State.RELEASED}, State.SETTLED: set(), State.RELEASED: set()}
    INITIAL = {State.HELD}

    project = models.ForeignKey(Project, models.PROTECT, null=True, related_name="+", db_index=False)
    run = models.ForeignKey(Run, models.PROTECT, null=True, related_name="+", db_index=False)
    task = models.ForeignKey(Task, models.PROTECT, null=True, related_name="reservations", db_index=False)
    generation = models.PositiveIntegerField(null=True)
    amount = models.DecimalField(max_digits=18, decimal_places=6)
    used = models.DecimalField(max_digits=18, decimal_places=6, default=0)
    currency = models.CharField(max_length=3)
    key = models.CharField(max_length=200, blank=True)
    state = models.CharField(max_length=8, choices=State, default=State.HELD)
    expires_at = models.DateTimeField(null=True)
    estimate_at = models.DateTimeField(null=True)

    objects = ReservationQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["task", "generation"], name="reservation_once_per_lease"),
            models.UniqueConstraint(fields=["project", "key"], condition=~Q(key=""), name="reservation_once_per_key"),
            models.CheckConstraint(name="reservation_amount_positive", condition=Q(amount__gt=0)),
            models.CheckConstraint(
                name="reservation_used_within", condition=Q(used__gte=0, used__lte=models.F("amount"))
            ),
            models.CheckConstraint(
                name="reservation_has_an_end", condition=Q(generation__isnull=False) | Q(expires_at__isnull=False)
            ),
        ]
        indexes = [
            # Read by the chore.
            models.Index(
                fields=["expires_at"], name="reservation_running_out", condition=Q(state="held", generation=None)
            ),
            models.Index(fields=["estimate_at"], name="reservation_unreported", condition=Q(estimate_at__isnull=False)),
        ]

    def __str__(self) -> str:
        return f"{self.amount} {self.currency}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a reservation belong to its task or run."""
        if self.task is not None:
            return self.task.correlation()
        return self.run.correlation() if self.run is not None else {"project_id": self.project_id}

    @property
    def rest(self) -> Decimal:
        """What is set aside still."""
        return self.amount - self.used if self.state == self.State.HELD else Decimal(0)

    def document(self) -> dict[str, str]:
        """As a claim's answer carries it."""
        return {"id": self.pk, "amount": str(self.amount), "used": str(self.used), "currency": self.currency}

    def extend(self, amount: Decimal, covers: list[Cover], *, by: events.Actor) -> None:
        """Set more aside. Raises BudgetExceeded, InvalidMove once it ended. The caller has locked the row."""
        if self.state != self.State.HELD:
            raise Refused(f"Cannot extend: the reservation is {self.state}", code="invalid_move", state=self.state)
        asked = pricing.figure("amount", amount) or Decimal(0)
        mine = set(self.shares.values_list("period_id", flat=True))
        chosen = [cover for cover in covers if cover.currency == self.currency]
        done = _set_aside(asked, [cover for cover in chosen if cover.period_id in mine])
        # A period that is over, or whose budget counts no more, limits nothing; its share grows with the others.
        move_money({pk: Movement(reserved=asked) for pk in mine - set(done)}, by=by)
        Reservation.objects.filter(pk=self.pk).update(amount=self.amount + asked)
        events.record(
            "reservation.granted", self, by=by, data={"more": asked, "periods": done},
            before={"amount": self.amount}, after={"amount": self.amount + asked},
        )  # fmt: skip
        self.amount += asked

    def end(self, *, by: events.Actor, reason: str = "") -> bool:
        """Give the rest back: settled if anything was used, else released. Quiet when it has ended."""
        with in_transaction():
            current = Reservation.objects.select_for_update(no_key=True).get(pk=self.pk)
            if current.state != self.State.HELD:
                return False
            rest = current.rest
            to = self.State.SETTLED if current.used else self.State.RELEASED
            done = current.move(to, by=by, reason=reason, data={"used": current.used, "given_back": rest})
            give_back_reserved(list(current.shares.values_list("period_id", flat=True)), rest, by=by)
            self.state, self.used = current.state, current.used
        return done

    def settle(self, amount: Any, *, by: events.Actor, model: str = "", resource_type: str = "custom") -> bool:
        """Book what it came to, in full, and give the rest back. Raises Refused `invalid_move` once it has ended.

        For a reservation without a lease; its place is what it was made for.
        """
        from costs.models import booking  # the verbs of booking need these tables

        asked = pricing.figure("amount", amount)
        if asked is None:
            raise InvalidField("amount", "a number of at least 0")
        with in_transaction():
            current = (
                Reservation.objects.select_for_update(no_key=True, of=("self",))
                .select_related("project", "run__project", "task__run")
                .get(pk=self.pk)
            )
            if current.state != self.State.HELD:
                raise Refused(f"Cannot settle: the reservation is {current.state}", code="invalid_move")
            used = min(asked, current.amount)
            shares = list(current.shares.values_list("period_id", flat=True))
            Reservation.objects.filter(pk=self.pk).update(used=used)
            move_money({pk: Movement(reserved=-used) for pk in shares}, by=by)
            use = booking.Use(
                resource_type=resource_type, source="reservation", idempotency_key=self.pk, amount=asked,
                currency=current.currency, project=current.project, run=current.run, task=current.task, model=model,
            )  # fmt: skip
            if asked:
                booking.book([use], by=by)
            return self.end(by=by)


class ReservationShare(models.Model):
    """That a reservation's money is set aside in a period."""

    id = ULIDField(primary_key=True, default=new_id, editable=False)
    created_at = BirthTimeField(db_default=ClockNow(), editable=False)
    reservation = models.ForeignKey(Reservation, models.PROTECT, related_name="shares", db_index=False)
    period = models.ForeignKey(BudgetPeriod, models.PROTECT, related_name="shares")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["reservation", "period"], name="reservation_share_once")]

    def __str__(self) -> str:
        return f"{self.reservation_id} in {self.period_id}"


def find_reservation(pk: str) -> Reservation:
    """The reservation, locked. Raises NotFound."""
    row = Reservation.objects.select_for_update(no_key=True, of=("self",)).filter(pk=pk).first()
    if row is None:
        raise NotFound.of("reservation", pk)
    return row
