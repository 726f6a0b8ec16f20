"""Records: every use booked once, to the narrowest thing that it is known of; never edited but for voiding."""

from decimal import Decimal
from typing import Any, Self

from django.contrib.postgres.indexes import BrinIndex
from django.db import models
from django.db.models import Q, Sum
from django.utils.translation import gettext_lazy as _

from costs import pricing
from costs.models.price import Price
from pipeline import events
from pipeline.clock import BirthTimeField, ClockNow
from pipeline.ids import ULIDField
from pipeline.models import ExecutionRequest, Phase, Project, Run, StepAttempt, Task, Tool, Workstream
from pipeline.rows import Told, versioned
from workers.models import Worker

_COMPARED = Q(stated_amount__isnull=False) & (~Q(basis="stated") | ~Q(model=""))

TOKEN_FIELDS = tuple(f"tokens_{name}" for name in pricing.CLASSES)


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

    def compared(self) -> Self:
        """Live ones whose stated amount can be held against a price: another was booked, or they name a model."""
        return self.live().filter(_COMPARED)

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

    def of_request(self, request: ExecutionRequest) -> Self:
        """What was spent on one request."""
        return self.filter(request=request)

    def record(self, *, by: events.Actor, **use: Any) -> tuple["CostRecord", bool]:
        """Book one use (the names of costs.models.booking.Use); answers the record, and whether it is new."""
        from costs.models import booking  # the verbs need the tables, and this one is their short form

        booked = booking.book([booking.Use(**use)], by=by)[0]
        return booked.row(), booked.is_new


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
    project = models.ForeignKey(Project, models.PROTECT, null=True, related_name="costs", db_index=False)
    phase = models.ForeignKey(Phase, models.PROTECT, null=True, related_name="costs", db_index=False)
    workstream = models.ForeignKey(Workstream, models.PROTECT, null=True, related_name="costs", db_index=False)
    run = models.ForeignKey(Run, models.PROTECT, null=True, related_name="costs", db_index=False)
    task = models.ForeignKey(Task, models.PROTECT, null=True, related_name="costs", db_index=False)
    request = models.ForeignKey(ExecutionRequest, models.PROTECT, null=True, related_name="costs", db_index=False)
    attempt = models.ForeignKey(StepAttempt, models.PROTECT, null=True, related_name="costs", db_index=False)
    worker = models.ForeignKey(Worker, models.PROTECT, null=True, related_name="costs", db_index=False)
    patch_id = ULIDField(null=True)
    tool = models.ForeignKey(Tool, models.PROTECT, null=True, related_name="costs", db_index=False)
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
    price = models.ForeignKey(Price, models.PROTECT, null=True, related_name="records", db_index=False)
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
    replaces = models.ForeignKey("self", models.PROTECT, null=True, related_name="replaced_by", db_index=False)
    # What it was spent for, copied: sums are by these.
    kind = models.CharField(max_length=64, blank=True)
    person = models.CharField(max_length=200, blank=True)
    reasoning = models.PositiveBigIntegerField(default=0)
    web_searches = models.PositiveIntegerField(default=0)
    flags = models.JSONField(default=list)
    is_request = models.BooleanField(default=True)
    session = models.CharField(max_length=200, blank=True)
    meter = models.CharField(max_length=300, blank=True)
    price_source = models.CharField(max_length=200, blank=True)
    price_version = models.CharField(max_length=64, blank=True)
    price_dated = models.DateField(null=True)
    gateway_amount = models.DecimalField(max_digits=18, decimal_places=6, null=True)
    batch = ULIDField(null=True)

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
            # Read by what replaces the bookings of a meter.
            models.Index(fields=["meter"], name="cost_of_meter", condition=~Q(meter="")),
            # Read by the truth meter: the newest of which a tool says what they cost, and that may have a price.
            models.Index(
                fields=["-id"],
                name="cost_compared",
                condition=_COMPARED,
            ),
            # Read by the page of what nobody prices.
            models.Index(fields=["-id"], name="cost_unpriced", condition=Q(unpriced=True)),
            # Read by the chore that looks for work whose fate nobody told.
            models.Index(fields=["task"], name="cost_in_flight", condition=Q(landing="in_flight")),
            BrinIndex(fields=["recorded_at"], name="cost_by_time"),
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

    def tokens(self) -> dict[str, int]:
        """The five counts by class."""
        return {name: getattr(self, f"tokens_{name}") for name in pricing.CLASSES}

    def void(self, reason: str, *, by: events.Actor) -> bool:
        """Take it out of every sum, with a reason; true if it was live. Raises ReasonRequired."""
        from costs.models import booking  # as record() above

        done = booking.void([self.pk], reason, by=by)
        self.refresh_from_db()
        return bool(done)

    def reclass(self, landing: str, waste_cause: str, *, by: events.Actor) -> bool:
        """Say what became of the work that it was spent on; False when that is known already."""
        from costs.models import booking  # as record() above

        done = booking.reclass({self.pk: (str(landing), waste_cause)}, by=by)
        self.landing, self.waste_cause = landing, waste_cause
        return bool(done)
