"""What the work cost: prices with their source, and every use booked once, to the narrowest thing that it is
known of.
"""

from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import DateTimeRangeField, RangeBoundary, RangeOperators
from django.db import models
from django.db.models import Func, Q, Sum
from django.utils.translation import gettext_lazy as _

from costs import pricing
from pipeline import events
from pipeline.clock import BirthTimeField, ClockNow, db_now
from pipeline.definitions import Definition, DefinitionQuerySet
from pipeline.ids import ULIDField
from pipeline.models import ExecutionRequest, Phase, Project, Run, StepAttempt, Task, Tool, Workstream
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import Told, in_transaction, versioned
from workers.models import Worker

TOKEN_FIELDS = tuple(f"tokens_{name}" for name in pricing.CLASSES)


class TsTzRange(Func):
    """PostgreSQL's range of two times."""

    function = "TSTZRANGE"
    output_field = DateTimeRangeField()


class PriceQuerySet(DefinitionQuerySet["Price"]):
    """The words for asking about prices."""

    def visible_to(self, principal: Any) -> Self:
        """Prices belong to the installation: whoever is signed in may read them."""
        return self

    def valid_for(self, provider: str, model: str, at: datetime) -> "Price | None":
        """The price of exactly this model, by its name or an alias, at `at`; None when it is unknown."""
        rows = self.filter(superseded_at=None, effective_from__lte=at).filter(
            Q(effective_to=None) | Q(effective_to__gt=at), Q(model=model) | Q(aliases__contains=[model])
        )
        if provider:
            rows = rows.filter(provider=provider)
        return rows.order_by("-effective_from").first()


@versioned()
class Price(Definition):
    """What a model costs, per million tokens of each class, from a date on. A correction is a new version."""

    NOUN = "price"

    provider = models.CharField(max_length=64)
    model = models.CharField(max_length=100)
    aliases = models.JSONField(default=list, blank=True)
    currency = models.CharField(max_length=3, default="USD")
    effective_from = models.DateTimeField()
    effective_to = models.DateTimeField(null=True, blank=True)
    uncached_input = models.DecimalField(max_digits=18, decimal_places=6)
    cache_read = models.DecimalField(max_digits=18, decimal_places=6)
    cache_write_5m = models.DecimalField(max_digits=18, decimal_places=6)
    cache_write_1h = models.DecimalField(max_digits=18, decimal_places=6)
    output = models.DecimalField(max_digits=18, decimal_places=6)
    per_request = models.DecimalField(max_digits=18, decimal_places=6, default=0)
    source = models.CharField(max_length=200)
    price_version = models.CharField(max_length=64)
    superseded_at = models.DateTimeField(null=True, blank=True, editable=False)

    objects = PriceQuerySet.as_manager()

    class Meta:
        ordering = ["provider", "model", "-effective_from"]
        constraints = [
            ExclusionConstraint(
                name="price_ranges_do_not_overlap",
                expressions=[
                    ("provider", RangeOperators.EQUAL),
                    ("model", RangeOperators.EQUAL),
                    ("currency", RangeOperators.EQUAL),
                    (TsTzRange("effective_from", "effective_to", RangeBoundary()), RangeOperators.OVERLAPS),
                ],
                condition=Q(superseded_at=None),
            ),
            models.CheckConstraint(name="price_currency_is_iso", condition=Q(currency__regex=r"^[A-Z]{3}$")),
            models.CheckConstraint(
                name="price_rates_not_negative",
                condition=Q(
                    uncached_input__gte=0, cache_read__gte=0, cache_write_5m__gte=0, cache_write_1h__gte=0,
                    output__gte=0, per_request__gte=0,
                ),
            ),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.provider}/{self.model} from {self.effective_from:%Y-%m-%d}"

    def rates(self) -> dict[str, Decimal]:
        """The five rates, by token class."""
        return {name: getattr(self, name) for name in pricing.CLASSES}


class CostRecordQuerySet(models.QuerySet["CostRecord"]):
    """The words for booking and summing."""

    def visible_to(self, principal: Any) -> Self:
        """The records of the projects in which `principal` may read."""
        ids = principal.project_ids()
        return self if ids is None else self.filter(project__in=ids)

    def live(self) -> Self:
        """Not voided."""
        return self.filter(voided_at=None)

    def of_type(self, resource_type: str) -> Self:
        """Of one type."""
        return self.filter(resource_type=resource_type)

    def unpriced(self) -> Self:
        """Booked at the ceiling, since their model's price is unknown."""
        return self.filter(unpriced=True)

    def waste(self) -> Self:
        """What was spent on work that did not land."""
        return self.filter(landing=CostRecord.Landing.WASTE)

    def total(self, currency: str = "USD") -> Decimal:
        """The sum of the live records in one currency; zero over none."""
        return self.live().filter(currency=currency).aggregate(sum=Sum("amount"))["sum"] or Decimal(0)

    def breakdown(self, currency: str = "USD") -> dict[str, Decimal]:
        """The sum by type; absent types are left out."""
        rows = self.live().filter(currency=currency).values("resource_type").annotate(sum=Sum("amount"))
        return {row["resource_type"]: row["sum"] for row in rows.order_by("resource_type")}

    def record(
        self,
        *,
        by: events.Actor,
        resource_type: str,
        source: str,
        idempotency_key: str = "",
        amount: Any = None,
        currency: str = "USD",
        attempt: StepAttempt | None = None,
        task: Task | None = None,
        run: Run | None = None,
        request: ExecutionRequest | None = None,
        project: Project | None = None,
        worker: Worker | None = None,
        tokens: Mapping[str, int] | None = None,
        model: str = "",
        provider: str = "",
        usage_quantity: Any = None,
        usage_unit: str = "",
        usage_rate: Any = None,
        duration_seconds: Any = None,
        resource_name: str = "",
        override_reason: str = "",
        reported_at: datetime | None = None,
        stated_amount: Any = None,
        assumed_ttl: bool = False,
    ) -> tuple["CostRecord", bool]:
        """Book one use; answers the record, and whether it is new. The same (source, key) is booked once.

        Without an amount: quantity times rate, else the tokens at the model's price now, else (unknown model) at the
        ceiling, flagged `unpriced`. Raises InvalidField: `invalid_resource_type`, `invalid_currency`,
        `amount_negative`, `amount_not_finite`, `amount_missing`, `amount_contradicts_usage`; Refused `duplicate_key`
        for a
        key that was used for another content.
        """
        if resource_type not in CostRecord.Type.values:
            allowed = ", ".join(CostRecord.Type.values)
            refusal = InvalidField("resource_type", "", code="invalid_resource_type")
            refusal.args = (f"Invalid resource_type: {resource_type}; it is one of {allowed}",)
            raise refusal
        counts = pricing.check_tokens(tokens or {})
        quantity = pricing.figure("usage_quantity", usage_quantity)
        rate = pricing.figure("usage_rate", usage_rate)
        price = Price.objects.valid_for(provider, model, db_now()) if model and any(counts.values()) else None
        booked = pricing.amount(
            stated=pricing.figure("amount", amount),
            quantity=quantity,
            rate=rate,
            tokens=counts,
            price=price and price.rates(),
            per_request=price.per_request if price else Decimal(0),
            model=model,
            free=resource_type == CostRecord.Type.COMPUTE_TIME,
            override=bool(override_reason),
        )
        place = _place(attempt, task, run, request, project)
        values: dict[str, Any] = {
            "resource_type": resource_type,
            "amount": booked.amount,
            "currency": pricing.check_currency(currency),
            **place,
            "worker": worker,
            "model": model[:100],
            "provider": provider[:64],
            "resource_name": resource_name[:200],
            "usage_quantity": quantity,
            "usage_unit": usage_unit[:32],
            "usage_rate": rate,
            **{f"tokens_{name}": count for name, count in counts.items()},
            "duration_seconds": pricing.figure("duration_seconds", duration_seconds),
            "price": price,
            "basis": booked.basis,
            "unpriced": booked.unpriced,
            "stated_amount": pricing.figure("amount", amount if stated_amount is None else stated_amount),
            "assumed_ttl": bool(assumed_ttl),
            "override_reason": override_reason,
            "landing": CostRecord.Landing.IN_FLIGHT if place["task"] else CostRecord.Landing.OVERHEAD,
            "reported_at": reported_at,
        }
        with in_transaction():
            if not idempotency_key:
                row, created = self.create(source=source[:64], **values), True
            else:
                row, created = self.get_or_create(
                    source=source[:64], idempotency_key=idempotency_key[:200], defaults=values
                )
            if created:
                told = {"amount": row.amount, "currency": row.currency}
                events.record("cost.recorded", row, by=by, data=told, before={}, after=row.birth())
                if row.unpriced:
                    events.record("cost.unpriced", row, by=by, data={"model": row.model, "amount": row.amount})
            elif not row.same_use(values):
                raise Refused(
                    f"Cost record {row.pk} already exists for {source}/{idempotency_key}, with another content",
                    code="duplicate_key",
                )
        return row, created


def _place(
    attempt: StepAttempt | None,
    task: Task | None,
    run: Run | None,
    request: ExecutionRequest | None,
    project: Project | None,
) -> dict[str, Any]:
    """The leaf, which is the narrowest thing that is known, and its ancestors."""
    leaf: tuple[str, Any] = ("none", None)
    for kind, row in (("project", project), ("run", run), ("task", task), ("request", request), ("attempt", attempt)):
        if row is not None:
            leaf = (kind, row.pk)
    task = attempt.task if attempt else request.task if request and request.task else task
    run = attempt.run if attempt else task.run if task else run
    project = run.project if run else request.project if request else project
    return {
        "leaf_kind": leaf[0],
        "leaf_id": leaf[1],
        "project": project,
        "phase": run.phase if run else None,
        "workstream": run.workstream if run else None,
        "run": run,
        "task": task,
        "request": attempt.request if attempt else request,
        "attempt": attempt,
        "tool": attempt.tool if attempt else None,
    }


@versioned()
class CostRecord(Told):
    """One booked use. Never edited: it is voided with a reason, and rebooked."""

    NOUN = "cost_record"

    class Type(models.TextChoices):
        API_CALL = "api_call", _("API call")
        COMPUTE_TIME = "compute_time", _("compute time")
        STORAGE = "storage", _("storage")
        NETWORK = "network", _("network")
        TOOL_USAGE = "tool_usage", _("tool usage")
        CUSTOM = "custom", _("custom")

    class Leaf(models.TextChoices):
        ATTEMPT = "attempt", _("attempt")
        GATE_RUN = "gate_run", _("gate run")
        REQUEST = "request", _("request")
        TASK = "task", _("task")
        RUN = "run", _("run")
        PROJECT = "project", _("project")
        NONE = "none", _("none")

    class Basis(models.TextChoices):
        STATED = "stated", _("stated")
        USAGE = "usage", _("usage")
        PRICED = "priced", _("priced")
        CEILING = "ceiling", _("ceiling")
        ESTIMATED = "estimated", _("estimated")

    class Landing(models.TextChoices):
        IN_FLIGHT = "in_flight", _("in flight")
        LANDED = "landed", _("landed")
        OVERHEAD = "overhead", _("overhead")
        WASTE = "waste", _("waste")

    resource_type = models.CharField(max_length=12, choices=Type)
    amount = models.DecimalField(max_digits=18, decimal_places=6)
    currency = models.CharField(max_length=3, default="USD")
    leaf_kind = models.CharField(max_length=8, choices=Leaf)
    leaf_id = ULIDField(null=True)
    project = models.ForeignKey(Project, models.PROTECT, null=True, related_name="costs")
    phase = models.ForeignKey(Phase, models.PROTECT, null=True, related_name="costs")
    workstream = models.ForeignKey(Workstream, models.PROTECT, null=True, related_name="costs")
    run = models.ForeignKey(Run, models.PROTECT, null=True, related_name="costs")
    task = models.ForeignKey(Task, models.PROTECT, null=True, related_name="costs")
    request = models.ForeignKey(ExecutionRequest, models.PROTECT, null=True, related_name="costs")
    attempt = models.ForeignKey(StepAttempt, models.PROTECT, null=True, related_name="costs")
    worker = models.ForeignKey(Worker, models.PROTECT, null=True, related_name="costs")
    patch_id = ULIDField(null=True)
    tool = models.ForeignKey(Tool, models.PROTECT, null=True, related_name="costs")
    resource_name = models.CharField(max_length=200, blank=True)
    model = models.CharField(max_length=100, blank=True)
    provider = models.CharField(max_length=64, blank=True)
    usage_quantity = models.DecimalField(max_digits=18, decimal_places=6, null=True)
    usage_unit = models.CharField(max_length=32, blank=True)
    usage_rate = models.DecimalField(max_digits=18, decimal_places=6, null=True)
    tokens_uncached_input = models.PositiveBigIntegerField(default=0)
    tokens_cache_read = models.PositiveBigIntegerField(default=0)
    tokens_cache_write_5m = models.PositiveBigIntegerField(default=0)
    tokens_cache_write_1h = models.PositiveBigIntegerField(default=0)
    tokens_output = models.PositiveBigIntegerField(default=0)
    duration_seconds = models.DecimalField(max_digits=18, decimal_places=6, null=True)
    price = models.ForeignKey(Price, models.PROTECT, null=True, related_name="records")
    basis = models.CharField(max_length=9, choices=Basis)
    unpriced = models.BooleanField(default=False)
    assumed_ttl = models.BooleanField(default=False)
    stated_amount = models.DecimalField(max_digits=18, decimal_places=6, null=True)
    override_reason = models.TextField(blank=True)
    source = models.CharField(max_length=64)
    idempotency_key = models.CharField(max_length=200, blank=True)
    landing = models.CharField(max_length=9, choices=Landing)
    waste_cause = models.CharField(max_length=12, blank=True)
    recorded_at = BirthTimeField(db_default=ClockNow())
    reported_at = models.DateTimeField(null=True)
    voided_at = models.DateTimeField(null=True)
    voided_by = models.CharField(max_length=200, blank=True)
    void_reason = models.TextField(blank=True)
    replaces = models.ForeignKey("self", models.PROTECT, null=True, related_name="replaced_by")

    objects = CostRecordQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["source", "idempotency_key"], condition=~Q(idempotency_key=""), name="cost_once_per_key"
            ),
            models.CheckConstraint(name="cost_amount_not_negative", condition=Q(amount__gte=0)),
            models.CheckConstraint(name="cost_currency_is_iso", condition=Q(currency__regex=r"^[A-Z]{3}$")),
            models.CheckConstraint(
                name="cost_waste_has_cause",
                condition=(Q(landing="waste") & ~Q(waste_cause="")) | (~Q(landing="waste") & Q(waste_cause="")),
            ),
            models.CheckConstraint(name="cost_void_says_why", condition=Q(voided_at=None) | ~Q(void_reason="")),
            models.CheckConstraint(
                name="cost_leaf_has_id",
                condition=Q(leaf_kind="none", leaf_id=None) | (~Q(leaf_kind="none") & Q(leaf_id__isnull=False)),
            ),
        ]
        indexes = [
            models.Index(fields=["project", "-id"], name="cost_of_project"),
            models.Index(fields=["run"], name="cost_of_run"),
            models.Index(fields=["task"], name="cost_of_task"),
            models.Index(fields=["attempt"], name="cost_of_attempt"),
        ]

    def __str__(self) -> str:
        return f"{self.amount} {self.currency}"

    def correlation(self) -> dict[str, str | None]:
        """Events about a cost belong to the attempt, task and run that it was spent on."""
        return {
            "project_id": self.project_id,
            "workstream_id": self.workstream_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "step_id": self.attempt_id,
            "worker_id": self.worker_id,
            "patch_id": self.patch_id,
        }

    def same_use(self, values: Mapping[str, Any]) -> bool:
        """Whether a repeated report tells of the same use: place, type, model, tokens, quantity, stated amount."""
        names = ["resource_type", "model", "usage_quantity", *TOKEN_FIELDS, "stated_amount", "currency"]
        return self.leaf_id == values["leaf_id"] and all(getattr(self, name) == values[name] for name in names)

    def void(self, reason: str, *, by: events.Actor) -> bool:
        """Take it out of every sum, with a reason; true if it was live. Raises ReasonRequired."""
        reason = need_reason(reason)
        with in_transaction():
            now = db_now()
            done = (
                CostRecord.objects.live()
                .filter(pk=self.pk)
                .update(voided_at=now, voided_by=by.name, void_reason=reason)
            )
            if done:
                events.record(
                    "cost.voided",
                    self,
                    by=by,
                    reason=reason,
                    data={"amount": self.amount, "currency": self.currency},
                    before={"voided_at": None, "voided_by": "", "void_reason": ""},
                    after={"voided_at": now, "voided_by": by.name, "void_reason": reason},
                )
        self.refresh_from_db()
        return bool(done)

    def reclass(self, landing: str, waste_cause: str, *, by: events.Actor) -> bool:
        """Say what became of the work that it was spent on; False when that is known already."""
        with in_transaction():
            current = CostRecord.objects.select_for_update(no_key=True).get(pk=self.pk)
            before = {"landing": current.landing, "waste_cause": current.waste_cause}
            after = {"landing": str(landing), "waste_cause": waste_cause}
            done = before != after
            if done:
                CostRecord.objects.filter(pk=self.pk).update(**after)
                events.record("cost.reclassed", self, by=by, before=before, after=after)
        self.landing, self.waste_cause = landing, waste_cause
        return done
