"""Prices: what a model costs from a date on, who says so, and the book that a batch of uses is priced by."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any, Self

from django.contrib.postgres.constraints import ExclusionConstraint
from django.contrib.postgres.fields import DateTimeRangeField, RangeBoundary, RangeOperators
from django.db import models
from django.db.models import Func, Q

from costs import price_base, pricing
from costs.pricing import PriceBook, Quote, Tier
from pipeline import events
from pipeline.clock import ClockNow
from pipeline.definitions import Conflict, Definition, DefinitionQuerySet
from pipeline.refusals import InvalidField
from pipeline.rows import in_transaction, versioned

MOST_TIERS = 10


class TsTzRange(Func):
    """PostgreSQL's range of two times."""

    function = "TSTZRANGE"
    output_field = DateTimeRangeField()


@dataclass(frozen=True)
class OwnQuote(Quote):
    """A quote of our own table: `price_id` is its row."""

    price_id: str = ""


class PriceQuerySet(DefinitionQuerySet["Price"]):
    """The words for asking about prices."""

    def visible_to(self, principal: Any) -> Self:
        """Prices belong to the installation: whoever is signed in may read them."""
        return self

    def valid_for(self, provider: str, model: str, at: datetime) -> "Price | None":
        """The price of exactly this model in our own table, by its name or an alias, at `at`; None when it has none."""
        rows = self.filter(superseded_at=None, effective_from__lte=at).filter(
            Q(effective_to=None) | Q(effective_to__gt=at), Q(model=model) | Q(aliases__contains=[model])
        )
        if provider:
            rows = rows.filter(provider=provider)
        return rows.order_by("-effective_from").first()

    def book_for(self, names: Collection[str]) -> PriceBook:
        """Our prices of these models over the kept library's list. One query, none for no names."""
        names = sorted(name for name in names if name)
        found: list[Quote] = []
        if names:
            rows = self.filter(superseded_at=None)
            found = [row.quote() for row in rows.filter(Q(model__in=names) | Q(aliases__has_any_keys=names))]
        return PriceBook(found, price_base.quote)


@versioned()
class Price(Definition):
    """What a model costs, per million tokens of each class, from a date on. A correction is a new version.

    Over the kept library's list these are our own. `tiers` are the rates of requests whose input is longer than
    `above` tokens: [{"above": 200000, "uncached_input": "6", …}]; a class that a tier leaves out keeps its rate.
    """

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
    per_search = models.DecimalField(max_digits=18, decimal_places=6, default=0)
    tiers = models.JSONField(default=list, blank=True)
    source = models.CharField(max_length=200)
    price_version = models.CharField(max_length=64)
    dated = models.DateField(null=True, blank=True)
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
            models.CheckConstraint(name="price_per_search_not_negative", condition=Q(per_search__gte=0)),
        ]  # fmt: skip

    def __str__(self) -> str:
        return f"{self.provider}/{self.model} from {self.effective_from:%Y-%m-%d}"

    def check_rules(self) -> None:
        """Tiers are known rates from rising lengths on; aliases are names."""
        if not isinstance(self.aliases, list) or not all(isinstance(name, str) for name in self.aliases):
            raise InvalidField("aliases", "a list of names")
        _check_tiers(self.tiers)

    def rates(self) -> dict[str, Decimal]:
        """The five rates of the lowest tier, by token class."""
        return {name: getattr(self, name) for name in pricing.CLASSES}

    def quote(self) -> OwnQuote:
        """The price as it is reckoned with."""
        rates = self.rates()
        return OwnQuote(
            provider=self.provider,
            model=self.model,
            rates=rates,
            source=self.source,
            version=self.price_version,
            dated=self.dated or self.effective_from.date(),
            currency=self.currency,
            tiers=tuple(_tier(tier, rates) for tier in self.tiers),
            per_request=self.per_request,
            per_search=self.per_search,
            starts_at=self.effective_from,
            ends_at=self.effective_to,
            aliases=tuple(self.aliases),
            price_id=self.pk,
        )

    def supersede(self, *, by: events.Actor, **fields: Any) -> "Price":
        """A corrected version of this price, over the same time; this one is kept, and prices nothing more.

        What it has priced stays as it is until `reprice` is asked for. Raises InvalidField, and Refused
        `conflict` when it was superseded before.
        """
        with in_transaction():
            current = self.lock_fresh()
            if current.superseded_at is not None:
                raise Conflict(f"{self} was superseded already")
            before = current.story()
            Price.objects.filter(pk=self.pk).update(superseded_at=ClockNow())
            self.refresh_from_db()
            after = self.story()
            told = [name for name in after if after[name] != before[name]]
            events.record(
                "price.changed",
                self,
                by=by,
                before={name: before[name] for name in told},
                after={name: after[name] for name in told},
            )
            kept = {name: getattr(current, name) for name in current.editable()}
            return Price.objects.add(by=by, **{**kept, **fields})

    def reprice(self, *, by: events.Actor, reason: str) -> bool:
        """Void and rebook, at the prices as they are known now, the records of its time that its model's name or an
        alias was used for; whether there were any. Raises ReasonRequired.
        """
        from costs.models import repricing  # needs the tables of records

        names = [self.model, *self.aliases]
        found = repricing.reprice(
            by=by, reason=reason, dry_run=False, models=names, since=self.effective_from, until=self.effective_to,
            most=None,
        )  # fmt: skip
        return bool(found.rebooked)


def _check_tiers(tiers: Any) -> None:
    if not isinstance(tiers, list) or len(tiers) > MOST_TIERS:
        raise InvalidField("tiers", f"a list of at most {MOST_TIERS} tiers")
    lowest = 0
    for number, tier in enumerate(tiers):
        where = f"tiers[{number}]"
        if not isinstance(tier, dict) or not set(tier) <= {"above", *pricing.CLASSES} or len(tier) < 2:
            raise InvalidField(where, f"above, and at least one of {', '.join(pricing.CLASSES)}")
        above = tier.get("above")
        if isinstance(above, bool) or not isinstance(above, int) or not lowest < above <= 10**15:
            raise InvalidField(f"{where}.above", "a number of tokens, more than that of the tier before")
        lowest = above
        for name in set(tier) - {"above"}:
            if isinstance(tier[name], float | bool) or pricing.figure(f"{where}.{name}", tier[name]) is None:
                raise InvalidField(f"{where}.{name}", "a decimal number as text")


def _tier(tier: dict[str, Any], rates: dict[str, Decimal]) -> Tier:
    own = {name: Decimal(str(tier[name])) for name in pricing.CLASSES if name in tier}
    return Tier(tier["above"], {**rates, **own})
