"""Budgets: limits over scopes and periods, and what was counted in each.

Promised is that no work is admitted past a limit: what is set aside is added by one conditional UPDATE a budget. What
was spent is booked in full whatever the budgets say, so a running request may pass the limit by what it costs.

Locks are taken in the order reservation, then periods by (budget, start), then rows of events; holds are placed and
leases stopped by reactions to `budget.breached`, since placing a hold waits for the claims under way.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any, Self
from uuid import UUID

from django.conf import settings
from django.core.validators import MinValueValidator
from django.db import connection, models
from django.db.models import Q
from django.utils.translation import gettext as _t
from django.utils.translation import gettext_lazy as _

from costs import periods, pricing
from costs.periods import Standing
from pipeline import events
from pipeline.clock import ClockNow, db_now
from pipeline.definitions import Definition, DefinitionQuerySet, PreconditionFailed
from pipeline.ids import ULIDField, from_uuid, is_id, new_id, to_uuid
from pipeline.models import Hold, Phase, Project, Run, Task, Tool, Workstream
from pipeline.models.hold import stored
from pipeline.models.project import slug_rule
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import Row, in_transaction, versioned
from workers.models import Worker

TOOLS_NAMED = 20
"""So many tools are named to whom has named none of them."""


class BudgetExceeded(Refused):
    """What was asked for does not fit; `budget` is the one with the least left."""

    code = "budget_exceeded"
    breaches: Sequence[tuple[str, str]] = ()
    """(id, amount asked for) of the budgets that this breaches, for who may write them down outside the transaction."""


# -- what a budget is over -----------------------------------------------------------------------------------------


def scopes_of(place: Mapping[str, Any]) -> list[str]:
    """Every scope that covers this place, as `kind:id`; `place` has ids (or rows), `tool_key`, `model` and `person`."""
    found = ["installation:"]
    for kind in ("project", "phase", "workstream", "run", "task", "worker"):
        value = place.get(kind)
        if value is not None:
            found.append(f"{kind}:{stored(getattr(value, 'pk', value))}")
    for kind, name in (("tool", "tool_key"), ("model", "model"), ("user", "person")):
        if place.get(name):
            found.append(f"{kind}:{place[name]}")
    return found


@dataclass
class Cover:
    """One active budget and its running period, as read; `period_id` is empty before the period's first use."""

    budget_id: str
    project_id: str | None
    key: str
    scope: str
    currency: str
    limit: Decimal
    warn_at: list[Decimal]
    on_breach: str
    starts_at: datetime
    ends_at: datetime | None
    period_id: str
    spent: Decimal = Decimal(0)
    reserved: Decimal = Decimal(0)
    breached: bool = False

    @property
    def left(self) -> Decimal:
        """What can still be set aside."""
        return max(self.limit - self.spent - self.reserved, Decimal(0))

    def covers(self, scopes: Iterable[str], project_id: str | None) -> bool:
        """Whether it counts what was spent at a place with these scopes."""
        return self.scope in scopes and self.project_id in (None, project_id)

    def told(self) -> dict[str, str]:
        """For a refusal."""
        return {
            "id": self.budget_id,
            "key": self.key,
            "limit": str(self.limit),
            "spent": str(self.spent),
            "reserved": str(self.reserved),
            "left": str(self.left),
            "currency": self.currency,
        }


_COVERS = """
SELECT b.id, b.project_id, b.key, b.scope_kind || ':' || b.scope_id, b.currency, b.limit_amount, b.warn_ratio,
    b.warn_steps::text, b.on_breach, b.period, b.timezone, p.id, p.starts_at, p.ends_at, p.limit_amount, p.spent,
    p.reserved, p.breached_at IS NOT NULL, clock_timestamp()
FROM costs_budget b LEFT JOIN LATERAL (
    SELECT * FROM costs_budgetperiod q WHERE q.budget_id = b.id ORDER BY q.starts_at DESC LIMIT 1) p ON true
WHERE b.active AND b.scope_kind || ':' || b.scope_id = ANY(%s)
    AND (%s::uuid[] IS NULL OR b.project_id IS NULL OR b.project_id = ANY(%s::uuid[]))
ORDER BY b.id
"""


def covering(scopes: Iterable[str], projects: Iterable[str | None]) -> list[Cover]:
    """The active budgets over any of these scopes in these projects, each with its running period. One statement."""
    ids = [to_uuid(project) for project in set(projects) if project]
    with connection.cursor() as cursor:
        cursor.execute(_COVERS, [sorted(set(scopes)), ids, ids])
        rows = cursor.fetchall()
    return [_cover(row) for row in rows]


def running_cover(budget_id: str) -> Cover | None:
    """One budget with its running period; None where it is off or gone."""
    row = Budget.objects.active().filter(pk=budget_id).first()
    if row is None:
        return None
    found = covering([f"{row.scope_kind}:{row.scope_id}"], [row.project_id])
    return next((one for one in found if one.budget_id == budget_id), None)


def _cover(row: Any) -> Cover:
    (
        pk, project, key, scope, currency, limit, warn_ratio, steps, on_breach, kind, zone, period, starts_at, ends_at,
        period_limit, spent, reserved, breached, now,
    ) = row  # fmt: skip
    cover = Cover(
        budget_id=from_uuid(pk),
        project_id=from_uuid(project) if project else None,
        key=key,
        scope=scope,
        currency=currency,
        limit=limit,
        warn_at=sorted({warn_ratio, *(Decimal(step) for step in json.loads(steps))}),
        on_breach=on_breach,
        starts_at=now,
        ends_at=None,
        period_id="",
    )
    if period is not None and starts_at <= now and (ends_at is None or now < ends_at):
        cover.period_id, cover.starts_at, cover.ends_at = from_uuid(period), starts_at, ends_at
        cover.limit, cover.spent, cover.reserved, cover.breached = period_limit, spent, reserved, breached
        return cover
    found = periods.period_of(kind, zone, now)
    # After a change of the calendar the running period ends where the new one's does, so no time is counted twice.
    cover.starts_at = max(found.starts_at, ends_at) if ends_at is not None else found.starts_at
    cover.ends_at = found.ends_at
    return cover


class BudgetQuerySet(DefinitionQuerySet["Budget"]):
    """The words for asking about budgets."""

    def visible_to(self, principal: Any) -> Self:
        """Those of the projects in which `principal` may read; those of the installation for who may read all of it."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def active(self) -> Self:
        """Those that count."""
        return self.filter(active=True)

    def covering(self, task: Task) -> Self:
        """The active budgets that count what is spent on `task`, whatever tool does it."""
        run = task.run
        scopes = scopes_of(
            {
                "project": run.project_id, "phase": run.phase_id, "workstream": run.workstream_id, "run": run.pk,
                "task": task.pk, "person": run.requested_by,
            }
        )  # fmt: skip
        return self.active().filter(pk__in=[cover.budget_id for cover in covering(scopes, [run.project_id])])

    def behind(self) -> Self:
        """Those that count, and in which what was booked before is still to be counted."""
        return self.active().filter(is_behind=True)

    def breached(self) -> Self:
        """Those whose running period is breached."""
        return self.filter(periods__in=BudgetPeriod.objects.running().exclude(breached_at=None)).distinct()

    def near_limit(self) -> Self:
        """Those that were warned of in their running period."""
        return self.filter(periods__in=BudgetPeriod.objects.running().exclude(warned_at=None)).distinct()


@versioned(quiet=("is_behind",))
class Budget(Definition):
    """How much may be spent in a scope, in all or in each period of its time zone's calendar.

    What was booked in the running period before the budget was there counts as well, a moment later (`is_behind`).
    A limit of 0 admits nothing. `warn_ratio`, and each of `warn_steps`, warns once in a period. On a breach, `hold`
    pauses the scope and asks; `warn` only says so, and admits nothing past the limit all the same.
    """

    NOUN = "budget"
    UNTOLD = Definition.UNTOLD | {"is_behind"}

    class Scope(models.TextChoices):
        INSTALLATION = "installation", _("installation")
        PROJECT = "project", _("project")
        PHASE = "phase", _("phase")
        WORKSTREAM = "workstream", _("workstream")
        RUN = "run", _("run")
        TASK = "task", _("task")
        TOOL = "tool", _("tool")
        MODEL = "model", _("model")
        USER = "user", _("person")
        WORKER = "worker", _("worker")

    class Period(models.TextChoices):
        NONE = "none", _("in all")
        DAY = "day", _("day")
        WEEK = "week", _("week")
        MONTH = "month", _("month")

    class OnBreach(models.TextChoices):
        HOLD = "hold", _("hold")
        WARN = "warn", _("warn")

    project = models.ForeignKey(Project, models.PROTECT, null=True, blank=True, related_name="budgets")
    key = models.CharField(max_length=64, validators=[slug_rule])
    scope_kind = models.CharField(max_length=12, choices=Scope)
    scope_id = models.CharField(max_length=200, blank=True)
    currency = models.CharField(max_length=3, default="USD")
    limit_amount = models.DecimalField(max_digits=18, decimal_places=6, validators=[MinValueValidator(0)])
    period = models.CharField(max_length=5, choices=Period, default=Period.NONE)
    timezone = models.CharField(max_length=64, default="UTC")
    warn_ratio = models.DecimalField(max_digits=5, decimal_places=4, default=settings.SIGNALBOX_BUDGET_WARNING_RATIO)
    warn_steps = models.JSONField(default=list, blank=True)
    on_breach = models.CharField(max_length=4, choices=OnBreach, default=OnBreach.HOLD)
    active = models.BooleanField(default=True)
    is_behind = models.BooleanField(default=True, editable=False)

    objects = BudgetQuerySet.as_manager()

    class Meta:
        ordering = ["project", "key"]
        constraints = [
            models.UniqueConstraint(fields=["project", "key"], name="budget_key_once", nulls_distinct=False),
            models.CheckConstraint(name="budget_limit_not_negative", condition=Q(limit_amount__gte=0)),
            models.CheckConstraint(name="budget_currency_is_iso", condition=Q(currency__regex=r"^[A-Z]{3}$")),
            models.CheckConstraint(name="budget_warns_within", condition=Q(warn_ratio__gt=0, warn_ratio__lte=1)),
            models.CheckConstraint(
                name="budget_scope_is_named",
                condition=Q(scope_kind="installation", scope_id="") | (~Q(scope_kind="installation") & ~Q(scope_id="")),
            ),
        ]
        indexes = [models.Index(fields=["scope_kind", "scope_id"], name="budget_active", condition=Q(active=True))]

    def __str__(self) -> str:
        return self.key

    def correlation(self) -> dict[str, str | None]:
        """Events about a budget belong to its project, and to the workstream, run, task or worker that it is over."""
        ids: dict[str, str | None] = {"project_id": self.project_id}
        if self.scope_kind in ("workstream", "run", "task", "worker"):
            ids[f"{self.scope_kind}_id"] = self.scope_ref
        return ids

    @property
    def scope_ref(self) -> str:
        """The scope's id as it is shown: a ULID for a row, or a key or name."""
        is_row = self.scope_kind in _ROWS and len(self.scope_id) == 36
        return from_uuid(UUID(self.scope_id)) if is_row else self.scope_id

    def check_rules(self) -> None:
        """The scope is there and in the project, the calendar is known, warnings rise from above 0 to 1."""
        pricing.check_currency(self.currency)
        periods.check_zone(self.timezone)
        if not 0 < self.warn_ratio <= 1:
            raise InvalidField("warn_ratio", "above 0, at most 1")
        if not self.limit_amount.is_finite() or self.limit_amount > pricing.MOST:
            raise InvalidField("limit_amount", f"from 0 to {pricing.MOST}")
        if not isinstance(self.warn_steps, list) or len(self.warn_steps) > 10:
            raise InvalidField("warn_steps", "a list of at most 10 parts of the limit")
        for step in self.warn_steps:
            value = None if isinstance(step, float | bool) else pricing.figure("warn_steps", step)
            if value is None or not 0 < value <= 1:
                raise InvalidField("warn_steps", "each a decimal number as text, above 0, at most 1")
        self._check_scope()

    def _check_scope(self) -> None:
        if self.scope_kind == self.Scope.INSTALLATION:
            if self.scope_id or self.project_id:
                raise InvalidField("scope_id", "a budget over the installation names nothing, and has no project")
            return
        model = _ROWS.get(self.scope_kind)
        if model is None:
            if not self.scope_id:
                raise InvalidField("scope_id", f"a budget over a {self.scope_kind} names it")
            # A model or a person may be new; a tool that is not there is a slip, and its budget would count nothing.
            is_new_tool = self.scope_kind == self.Scope.TOOL and self._state.adding
            if is_new_tool and not Tool.objects.filter(key=self.scope_id).exists():
                keys = ", ".join(Tool.objects.order_by("key").values_list("key", flat=True)[:TOOLS_NAMED])
                raise InvalidField(
                    "scope_id", f"no tool has the key “{self.scope_id[:64]}”; there are: {keys or 'none'}"
                )
            return
        given = self.scope_ref
        if self.scope_kind == self.Scope.PROJECT and not given and self.project_id:
            given = self.project_id
        row = model._base_manager.filter(pk=given).first() if is_id(given) else None
        if row is None:
            raise InvalidField("scope_id", f"no {self.scope_kind} has this id")
        owner = row if isinstance(row, Project) else getattr(row, "run", None) or getattr(row, "phase", None) or row
        project = owner.pk if isinstance(owner, Project) else getattr(owner, "project_id", None)
        if project is not None:
            if self.project_id is None:
                self.project_id = project
            if self.project_id != project:
                raise InvalidField("scope_id", f"the {self.scope_kind} of another project")
        self.scope_id = stored(given)

    def running(self) -> "BudgetPeriod | None":
        """The period that runs now; None before its first use."""
        return self.periods.running().first()

    def standing(self, period: "BudgetPeriod | None" = None) -> Standing:
        """Where it stands in its running period."""
        period = period or self.running()
        if period is None:
            return Standing(self.limit_amount, Decimal(0), Decimal(0), self.warn_ratio)
        return Standing(period.limit_amount, period.spent, period.reserved, self.warn_ratio)

    def edit(self, *, by: events.Actor, expected_version: int | None = None, **fields: Any) -> bool:
        """As every definition; a new calendar holds from the running period's end on, a limit has its own verb."""
        with in_transaction():
            # A form has put its values on this object already: what counts is the row.
            if "limit_amount" in fields and fields["limit_amount"] != self.lock_fresh().limit_amount:
                raise InvalidField("limit_amount", "is changed by change-limit, with a reason")
            was_off = not self.lock_fresh().active
            changed = super().edit(by=by, expected_version=expected_version, **fields)
            if was_off and self.active:
                Budget.objects.filter(pk=self.pk).update(is_behind=True)
            if changed and {"period", "timezone"} & set(fields):
                row = self.periods.running().select_for_update().first()
                if row is not None:
                    now = db_now()
                    after = periods.changed(periods.Period(row.starts_at, row.ends_at), self.period, self.timezone, now)
                    BudgetPeriod.objects.filter(pk=row.pk).update(ends_at=after.ends_at)
        return changed

    def change_limit(self, new: Any, *, by: events.Actor, reason: str, expected_version: int | None = None) -> bool:
        """Raise or lower the limit, also of the running period, with a reason; False when both have it already.

        A raise above what is spent releases the budget's own hold and lets the tasks that it stopped go on. Lowering
        below what is spent and set aside is allowed, and a breach. Raises InvalidField, ReasonRequired.
        """
        reason = need_reason(reason)
        limit = pricing.figure("limit_amount", new)
        if limit is None:
            raise InvalidField("limit_amount", "a number of at least 0")
        with in_transaction():
            current = self.lock_fresh()
            if expected_version is not None and current.version != expected_version:
                raise PreconditionFailed(
                    f"If-Match says version {expected_version}, but the row has version {current.version}",
                    version=current.version,
                )
            running = current.periods.running().first()
            before = current.limit_amount
            if before == limit and running is not None:
                # A period that was left behind by its budget is put right.
                before = running.limit_amount
            if before == limit:
                return False
            Budget.objects.filter(pk=self.pk).update(limit_amount=limit)
            events.record(
                "budget.limit_changed",
                current,
                by=by,
                reason=reason,
                before={"limit_amount": before},
                after={"limit_amount": limit},
            )
            self._carry_over(limit, before, by)
        self.refresh_from_db()
        return True

    def _carry_over(self, limit: Decimal, before: Decimal, by: events.Actor) -> None:
        """What the new limit does to the running period."""
        row = self.periods.running().select_for_update(no_key=True).first()
        if row is None:
            return
        standing = Standing(row.limit_amount, row.spent, row.reserved, self.warn_ratio)
        change = periods.change_limit(
            standing, limit, was_breached=row.breached_at is not None, was_warned=row.warned_at is not None
        )
        columns: dict[str, Any] = {"limit_amount": limit}
        if row.breached_at is not None and not change.stays_breached:
            columns["breached_at"] = None
        if change.releases:
            columns["hold"] = None
        if limit > before and row.warned_at is not None and not change.standing.is_warning:
            columns.update(warned_at=None, warned_step=None)
        BudgetPeriod.objects.filter(pk=row.pk).update(**columns)
        fresh = BudgetPeriod.objects.get(pk=row.pk)
        if change.breaches:
            breach(self, fresh, by=by, because=_t("The limit was lowered."))
        elif change.warns:
            fresh.warn(self, by=by)
        if change.releases or (limit > before and row.spent < limit):
            self.release_holds(by=by, cause="limit raised")

    def release_holds(self, *, by: events.Actor, cause: str) -> int:
        """End the holds that this budget placed, and those under which tasks that it stopped wait. How many."""
        mine = Q(ref=self.pk)
        stopped = Q(scope_kind="task", ref="", scope_id__in=[stored(pk) for pk in self._stopped_tasks()])
        done = 0
        for hold in Hold.objects.active().filter(mine | stopped, kind="budget").order_by("pk"):
            done += hold.release(by=by, reason=f"{self.key}: {cause}", cause=cause)
        return done

    def _stopped_tasks(self) -> list[str]:
        """Tasks in its scope that wait for money."""
        # Their time to be tried again may have come already: the hold alone keeps them from being claimed.
        waiting = (Task.State.RETRYING, Task.State.QUEUED)
        rows = Task.objects.filter(state__in=waiting, last_outcome="budget_stop")
        return list(self.over_tasks(rows).values_list("pk", flat=True)[:5000])

    def over_tasks(self, tasks: "models.QuerySet[Task]") -> "models.QuerySet[Task]":
        """Those of `tasks` that it covers; for a tool, model or worker those with an attempt by it."""
        if self.project_id:
            tasks = tasks.filter(run__project=self.project_id)
        ref = self.scope_ref
        return tasks.filter(
            {
                "installation": Q(),
                "project": Q(run__project=ref),
                "phase": Q(run__phase=ref),
                "workstream": Q(run__workstream=ref),
                "run": Q(run=ref),
                "task": Q(pk=ref),
                "user": Q(run__requested_by=ref),
                "tool": Q(attempts__tool__key=ref),
                "model": Q(attempts__tool__model=ref),
                "worker": Q(leases__worker=ref),
            }[self.scope_kind]
        ).distinct()


_ROWS: dict[str, Any] = {
    "project": Project, "phase": Phase, "workstream": Workstream, "run": Run, "task": Task, "worker": Worker,
}  # fmt: skip


class BudgetPeriodQuerySet(models.QuerySet["BudgetPeriod"]):
    """The words for asking about periods."""

    def running(self) -> Self:
        """Those that hold the database's present time."""
        now = ClockNow()
        return self.filter(Q(ends_at=None) | Q(ends_at__gt=now), starts_at__lte=now).order_by("-starts_at")


@versioned()
class BudgetPeriod(Row):
    """One period of a budget: its limit (kept equal to the budget's while it runs), and what is spent and set aside."""

    NOUN = "budget_period"

    budget = models.ForeignKey(Budget, models.PROTECT, related_name="periods", db_index=False)
    starts_at = models.DateTimeField()
    ends_at = models.DateTimeField(null=True)
    limit_amount = models.DecimalField(max_digits=18, decimal_places=6)
    spent = models.DecimalField(max_digits=24, decimal_places=6, db_default=0)
    reserved = models.DecimalField(max_digits=24, decimal_places=6, db_default=0)
    warned_at = models.DateTimeField(null=True)
    warned_step = models.DecimalField(max_digits=5, decimal_places=4, null=True)
    breached_at = models.DateTimeField(null=True)
    hold = models.ForeignKey(Hold, models.PROTECT, null=True, related_name="+", db_index=False)

    objects = BudgetPeriodQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["budget", "starts_at"], name="budget_period_once"),
            models.CheckConstraint(name="budget_period_spent_not_negative", condition=Q(spent__gte=0)),
            models.CheckConstraint(name="budget_period_reserved_not_negative", condition=Q(reserved__gte=0)),
        ]

    def __str__(self) -> str:
        return f"{self.budget} from {self.starts_at:%Y-%m-%d}"

    def warn(self, budget: Budget, *, by: events.Actor) -> bool:
        """Say, once for each step that it has passed, that the limit is near. The caller has locked the row."""
        if not self.limit_amount or self.spent <= 0:
            return False
        steps = sorted({budget.warn_ratio, *(Decimal(str(step)) for step in budget.warn_steps)})
        passed = [step for step in steps if self.spent >= step * self.limit_amount]
        if not passed or (self.warned_step is not None and passed[-1] <= self.warned_step):
            return False
        step = passed[-1]
        BudgetPeriod.objects.filter(pk=self.pk).update(warned_at=ClockNow(), warned_step=step)
        events.record("budget.warned", budget, by=by, data={**self.told(budget), "step": step})
        return True

    def told(self, budget: Budget) -> dict[str, Any]:
        """For the events about it."""
        return {
            "period": self.pk,
            "starts_at": self.starts_at,
            "limit": self.limit_amount,
            "spent": self.spent,
            "reserved": self.reserved,
            "currency": budget.currency,
        }


class Charge(models.Model):
    """That a record counts in a period, once."""

    id = ULIDField(primary_key=True, default=new_id, editable=False)
    record = models.ForeignKey("costs.CostRecord", models.PROTECT, related_name="charges", db_index=False)
    period = models.ForeignKey(BudgetPeriod, models.PROTECT, related_name="charges")

    class Meta:
        constraints = [models.UniqueConstraint(fields=["record", "period"], name="charge_once")]

    def __str__(self) -> str:
        return f"{self.record_id} in {self.period_id}"


def breach(budget: Budget, period: BudgetPeriod, *, by: events.Actor, because: str, passes: bool = False) -> bool:
    """Note, once, that a period is breached; the hold follows from the event. The caller has locked the period.

    One that was breached before and now `passes` its limit is told again: what runs under it has to stop.
    """
    done = BudgetPeriod.objects.filter(pk=period.pk, breached_at=None).update(breached_at=ClockNow())
    if done or passes:
        data = {**period.told(budget), "over": period.spent > period.limit_amount}
        events.record("budget.breached", budget, by=by, reason=because, data=data)
    return bool(done)


def let_go(period: BudgetPeriod, *, by: events.Actor, cause: str) -> bool:
    """End a breach that is none any more, and the budget's holds, unless the running period is another one that has to
    hold. The caller has locked the period and loaded its budget.
    """
    if period.breached_at is None or period.budget.standing(period).is_breached:
        return False
    BudgetPeriod.objects.filter(pk=period.pk).update(breached_at=None, hold=None)
    if not period.budget.periods.running().exclude(breached_at=None).exists():
        period.budget.release_holds(by=by, cause=cause)
    return True


def give_back_reserved(periods: Iterable[str], amount: Decimal, *, by: events.Actor) -> None:
    """Give back `amount` that was set aside in each of these periods.

    A breach that stood on money set aside ends where that is what passed the limit; one by a refusal stands, since what
    was refused fits no better for it.
    """
    move_money({pk: Movement(reserved=-amount) for pk in periods}, by=by)
    breached = BudgetPeriod.objects.filter(pk__in=list(periods)).exclude(breached_at=None)
    for period in breached.select_related("budget").order_by("budget_id", "starts_at"):
        if period.spent + period.reserved + amount > period.limit_amount:
            let_go(period, by=by, cause="money set aside was given back")


# -- charging ------------------------------------------------------------------------------------------------------


@dataclass
class Movement:
    """What one period gains: `spent`, and `reserved` (negative where money set aside is used or given back)."""

    spent: Decimal = Decimal(0)
    reserved: Decimal = Decimal(0)
    records: list[str] = field(default_factory=list)


_OPEN_PERIOD = """
INSERT INTO costs_budgetperiod (id, budget_id, starts_at, ends_at, limit_amount)
SELECT %s, b.id, %s, %s, b.limit_amount FROM costs_budget b WHERE b.id = %s
ON CONFLICT (budget_id, starts_at) DO NOTHING
"""


def period_for(cover: Cover) -> str:
    """The id of the running period of `cover`, opened when nothing was counted in it yet."""
    if not cover.period_id:
        with connection.cursor() as cursor:
            cursor.execute(_OPEN_PERIOD, [to_uuid(new_id()), cover.starts_at, cover.ends_at, to_uuid(cover.budget_id)])
        row = BudgetPeriod.objects.filter(budget=cover.budget_id, starts_at=cover.starts_at)
        cover.period_id = row.values_list("pk", flat=True).get()
    return cover.period_id


_MOVE = """
UPDATE costs_budgetperiod SET spent = spent + %s, reserved = reserved + %s WHERE id = %s
RETURNING limit_amount, spent, reserved, warned_step, breached_at
"""


def move_money(movements: Mapping[str, Movement], *, by: events.Actor, because: str = "") -> None:
    """Apply the movements, one UPDATE a period in the order of budget and start; warn and breach as they ask for it."""
    if not movements:
        return
    order = BudgetPeriod.objects.filter(pk__in=list(movements)).order_by("budget_id", "starts_at")
    for pk in list(order.values_list("pk", flat=True)):
        change = movements[pk]
        with connection.cursor() as cursor:
            cursor.execute(_MOVE, [change.spent, change.reserved, to_uuid(pk)])
            limit, spent, reserved, warned, breached_at = cursor.fetchone()
        if change.spent <= 0:
            continue
        is_over = spent > limit
        passes = is_over and spent - change.spent <= limit
        near = warned is None or warned < 1
        if near or (breached_at is None and (spent >= limit or spent + reserved > limit)) or is_over:
            period = BudgetPeriod.objects.select_related("budget").get(pk=pk)
            _notice(period, by=by, because=because, passes=passes)
    charges = [(record, pk) for pk, change in movements.items() for record in change.records]
    if charges:
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO costs_charge (id, record_id, period_id) SELECT gen_random_uuid(), * "
                "FROM unnest(%s::uuid[], %s::uuid[])",
                [[to_uuid(record) for record, _pk in charges], [to_uuid(pk) for _record, pk in charges]],
            )


def _notice(period: BudgetPeriod, *, by: events.Actor, because: str, passes: bool) -> None:
    budget = period.budget
    standing = Standing(period.limit_amount, period.spent, period.reserved, budget.warn_ratio)
    period.warn(budget, by=by)
    if standing.is_breached:
        words = because or (_t("The limit is passed.") if passes else _t("The limit is reached."))
        breach(budget, period, by=by, because=words, passes=passes)


def note_refusal(budget_id: str, amount: Any, *, by: events.Actor = events.SYSTEM) -> bool:
    """A refused `amount` breaches its budget when it would not fit even if all that is set aside came back.

    In a transaction of its own, since the refused one is undone. Safe to repeat.
    """
    with in_transaction():
        cover = running_cover(budget_id)
        if cover is None:
            return False
        period = BudgetPeriod.objects.select_for_update(no_key=True).select_related("budget").get(pk=period_for(cover))
        if period.spent + Decimal(str(amount)) <= period.limit_amount:
            return False
        because = _t("%(amount)s was asked for, and less than that is left.") % {"amount": amount}
        return breach(period.budget, period, by=by, because=because)
