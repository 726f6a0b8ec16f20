"""Repricing: what was booked at a price that was corrected since, or at none, is voided and booked anew at its price.

Prices are never edited, so a record's amount stays what it was until somebody asks for this. A rebooking stands in the
day, class and budget periods of the record that it replaces; its key has the price's version appended.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Any

from django.db.models import Q

from costs import pricing
from costs.models import booking
from costs.models.price import Price
from costs.models.record import TOKEN_FIELDS, CostRecord
from pipeline import events
from pipeline.ids import first_id_at, new_id
from pipeline.refusals import need_reason
from pipeline.rows import in_transaction

AT_ONCE = 500
MOST_AT_ONCE = 5000
"""So many records are looked at by one call, unless it asks for more."""

WINDOW = 20_000
MOST_WINDOWS = 25
"""Rows that one statement looks through, and how many such windows one call does, unless it asks for more."""

NOTHING = "0" * 26

_PLACES = ("attempt__task__run", "attempt__run", "task__run", "run", "request__task", "project", "worker")


@dataclass(frozen=True)
class Difference:
    """One record whose price is another now."""

    record: CostRecord
    amount: Decimal
    currency: str
    quote: pricing.Quote

    @property
    def group(self) -> tuple[str, ...]:
        """What differences are summed by."""
        return (
            self.record.provider, self.record.model, self.record.basis, self.record.currency, self.currency,
            self.quote.source, self.quote.version,
        )  # fmt: skip


@dataclass
class Sum:
    """What the records of one model, booked on one basis, came to, and come to at one version of its price."""

    records: int = 0
    before: Decimal = Decimal(0)
    after: Decimal = Decimal(0)


@dataclass
class Outcome:
    """What a repricing found: how many records it looked at, the differences, and where to go on (empty: all seen)."""

    looked_at: int = 0
    rebooked: int = 0
    sums: dict[tuple[str, ...], Sum] = field(default_factory=lambda: defaultdict(Sum))
    following: str = ""

    @property
    def records(self) -> int:
        """How many records have another price."""
        return sum(of.records for of in self.sums.values())

    def rows(self) -> list[dict[str, Any]]:
        """The sums for people and programs."""
        names = ("provider", "model", "basis", "currency", "new_currency", "price_source", "price_version")
        return [
            {**dict(zip(names, group, strict=True)), "records": of.records, "before": of.before, "after": of.after}
            for group, of in sorted(self.sums.items())
        ]


def reprice(
    *,
    by: events.Actor,
    reason: str = "",
    dry_run: bool = True,
    provider: str = "",
    models: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    after: str = "",
    most: int | None = MOST_AT_ONCE,
) -> Outcome:
    """Compare the live records that were priced by tokens with their prices as they are known now, oldest first.

    A dry run only tells; else each that differs is voided with the reason and rebooked, in transactions of AT_ONCE
    records, each told by a `cost.repriced`. `since` and `until` bound when they were recorded; `after` is where a call
    before stopped. A call ends after `most` of them, or MOST_WINDOWS × WINDOW rows; None goes on to the end. Safe to
    repeat. Raises ReasonRequired.
    """
    if not dry_run:
        reason = need_reason(reason)
    rows = CostRecord.objects.live().filter(_by_tokens(), basis__in=["priced", "ceiling"]).exclude(model="")
    if provider:
        rows = rows.filter(provider=provider)
    if models:
        rows = rows.filter(model__in=list(models))
    if since is not None:
        rows = rows.filter(recorded_at__gte=since)
    if until is not None:
        rows = rows.filter(recorded_at__lt=until)
    found = Outcome(following=max(after, first_id_at(since) if since else NOTHING))
    # What is rebooked meanwhile has a younger id, and the price that it ought to have.
    last = CostRecord.objects.order_by("-pk").values_list("pk", flat=True).first()
    windows = 0
    while last is not None and found.following < last:
        if most is not None and (found.looked_at >= most or windows >= MOST_WINDOWS):
            return found
        # A model may have few records among millions: each statement looks at so many rows and no more.
        ahead = CostRecord.objects.filter(pk__gt=found.following, pk__lte=last).order_by("pk")
        upper = ahead.values_list("pk", flat=True)[WINDOW : WINDOW + 1].first() or last
        windows += 1
        while found.following < upper:
            some = AT_ONCE if most is None else min(AT_ONCE, most - found.looked_at)
            if not some:
                return found
            inside = rows.filter(pk__gt=found.following, pk__lte=upper).order_by("pk")
            page = list(inside.select_related(*_PLACES)[:some])
            if page:
                _one_page(page, found, by=by, reason=reason, dry_run=dry_run)
            found.following = page[-1].pk if len(page) == some else upper
    found.following = ""
    return found


def _by_tokens() -> Q:
    some = Q()
    for name in TOKEN_FIELDS:
        some |= Q(**{f"{name}__gt": 0})
    return some


def _one_page(page: Sequence[CostRecord], found: Outcome, *, by: events.Actor, reason: str, dry_run: bool) -> None:
    found.looked_at += len(page)
    differences = list(_differences(page))
    for one in differences:
        of = found.sums[one.group]
        of.records += 1
        of.before += one.record.amount
        of.after += one.amount
    if not differences or dry_run:
        return
    with in_transaction():
        booked = booking.rebook([_use(one) for one in differences], reason, by=by)
        if not booked:
            return
        found.rebooked += len(booked)
        kept = {one.values["replaces_id"] for one in booked}
        sums: dict[str, dict[str, Decimal]] = {"before": defaultdict(Decimal), "after": defaultdict(Decimal)}
        for one in differences:
            if one.record.pk in kept:
                sums["before"][one.record.currency] += one.record.amount
                sums["after"][one.currency] += one.amount
        told = {"records": len(booked), "voided": sums["before"], "booked": sums["after"]}
        events.record("cost.repriced", booking.Batch(new_id(), {}), by=by, reason=reason, data=told)


def _differences(page: Sequence[CostRecord]) -> Iterator[Difference]:
    prices = Price.objects.book_for({row.model for row in page})
    for row in page:
        quote = prices.at(row.provider, row.model, used_at(row))
        if quote is None:
            continue
        tokens = row.tokens()
        amount = quote.amount(tokens, is_request=row.is_request, web_searches=row.web_searches)
        if amount is None:
            continue
        if row.basis == "ceiling" or (amount, quote.currency) != (row.amount, row.currency):
            yield Difference(row, amount, quote.currency, quote)


def used_at(row: CostRecord) -> datetime:
    """When the use of a record was priced: as reported, but not after it was recorded, nor before its attempt began."""
    at: datetime = min(row.reported_at or row.recorded_at, row.recorded_at)
    began = row.attempt.started_at if row.attempt else None
    return max(at, began) if began is not None else at


def _use(one: Difference) -> booking.Use:
    """The record as a use that stands in its place."""
    row = one.record
    return booking.Use(
        resource_type=row.resource_type,
        source=row.source,
        idempotency_key=_key(row, one.quote.version),
        attempt=row.attempt,
        task=row.task,
        run=row.run,
        request=row.request,
        project=row.project,
        worker=row.worker,
        tokens=row.tokens(),
        model=row.model,
        provider=row.provider,
        duration_seconds=row.duration_seconds,
        resource_name=row.resource_name,
        override_reason=row.override_reason,
        reported_at=row.reported_at,
        stated_amount=row.stated_amount,
        gateway_amount=row.gateway_amount,
        assumed_ttl=row.assumed_ttl,
        reasoning=row.reasoning,
        web_searches=row.web_searches,
        flags=row.flags,
        is_request=row.is_request,
        session=row.session,
        meter=row.meter,
        replaces=row,
    )


def _key(row: CostRecord, version: str) -> str:
    """The key with the price's version; the id keeps apart what is repriced twice to versions of one name."""
    root = row.idempotency_key
    if not root:
        return ""
    if row.replaces_id is not None:
        root = root.rpartition("@")[0].rpartition("@")[0] or root
    text = f"{root}@{version}@{row.pk}"
    return text if len(text) <= 200 else f"{hashlib.sha256(root.encode()).hexdigest()}@{version}@{row.pk}"
