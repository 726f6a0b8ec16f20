"""Booking, voiding and re-classing, many at once: one statement writes the records and what they add to the sums.

The key (source, idempotency_key) makes a use booked once; budgets are charged in the same transaction.
"""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from operator import itemgetter
from typing import Any

from django.db import connection

from costs import pricing
from costs.models import budget, charging, daily, settled, wire
from costs.models.price import OwnQuote, Price
from costs.models.record import CostRecord
from pipeline import events, prepared
from pipeline.clock import db_now
from pipeline.ids import from_uuid, new_id, to_uuid
from pipeline.models import ExecutionRequest, Project, Run, StepAttempt, Task
from pipeline.refusals import InvalidField, Refused, need_reason
from pipeline.rows import in_transaction
from workers.models import Worker

TOLD_ONE_BY_ONE = 25
"""Up to so many records at once are told by an event each; more by one event that names and digests them."""

ESTIMATE = "estimate"
"""The source of what was booked at its reservation, since nobody reported it."""

Types = CostRecord.Type.values
FREE = CostRecord.Type.COMPUTE_TIME


@dataclass
class Use:
    """One use to book, and what is known of it.

    Without an amount it is quantity × rate, else the tokens at the model's price when it was used (`reported_at`, at
    the latest now), else, for an unknown model, the ceiling, flagged `unpriced`. `stated_amount` is what the tool says,
    `gateway_amount` what a gateway says, each kept beside ours. It belongs to the narrowest of attempt, request, task,
    run and project that is given; with none of them to the installation's overhead.
    """

    resource_type: str
    source: str
    idempotency_key: str = ""
    amount: Any = None
    currency: str = "USD"
    attempt: StepAttempt | None = None
    task: Task | None = None
    run: Run | None = None
    request: ExecutionRequest | None = None
    project: Project | None = None
    worker: Worker | None = None
    tokens: Mapping[str, int] | None = None
    model: str = ""
    provider: str = ""
    usage_quantity: Any = None
    usage_unit: str = ""
    usage_rate: Any = None
    duration_seconds: Any = None
    resource_name: str = ""
    override_reason: str = ""
    reported_at: datetime | None = None
    stated_amount: Any = None
    gateway_amount: Any = None
    assumed_ttl: bool = False
    reasoning: int = 0
    web_searches: int = 0
    flags: Collection[str] = ()
    is_request: bool = True
    session: str = ""
    meter: str = ""
    replaces: CostRecord | None = None
    basis: str = ""


@dataclass
class Booked:
    """What became of one use: the record's id and columns, and whether it is new."""

    pk: str
    values: dict[str, Any] = field(repr=False)
    is_new: bool = True
    recorded_at: datetime | None = None
    created_at: datetime | None = None

    def row(self) -> CostRecord:
        """The record; a query where it was known before."""
        if not self.is_new:
            return CostRecord.objects.get(pk=self.pk)
        times = {"recorded_at": self.recorded_at, "created_at": self.created_at}
        return CostRecord(**{**self.values, **times, "flags": list(self.values["flags"])})


_COPIED = ", ".join(name for name in (*wire.SHARED, *wire.OWN) if name != "recorded_at")
# In the order of their keys, so that two who book the same uses never wait for each other in a circle.
_BOOK = f"""
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS at), shape AS (
    SELECT * FROM unnest({wire.SHARED_ARRAYS}) WITH ORDINALITY AS s ({", ".join(wire.SHARED)}, shape)
), given AS (
    SELECT * FROM unnest(%s::int[], {wire.OWN_ARRAYS}) AS g (shape, {", ".join(wire.OWN)})
), new AS (
    INSERT INTO costs_costrecord ({_COPIED}, voided_by, void_reason, version, created_at, recorded_at)
    SELECT {_COPIED}, '', '', 1, clock.at, COALESCE(shape.recorded_at, clock.at)
    FROM given JOIN shape USING (shape) CROSS JOIN clock
    ORDER BY shape.source COLLATE "C", given.idempotency_key COLLATE "C", given.id
    ON CONFLICT (source, idempotency_key) WHERE idempotency_key <> '' DO NOTHING
    RETURNING *
), sums AS ({daily.add(daily.deltas("new"))})
SELECT clock.at,
    CASE WHEN (SELECT count(*) FROM new) < (SELECT count(*) FROM given) THEN
        ARRAY(SELECT id FROM new) END,
    EXISTS (SELECT 1 FROM costs_budget WHERE active),
    EXISTS (SELECT 1 FROM new JOIN costs_costrecord e ON e.attempt_id = new.attempt_id
        WHERE e.basis = 'estimated' AND e.voided_at IS NULL AND new.basis <> 'estimated')
FROM clock
"""


def book(uses: Sequence[Use], *, by: events.Actor, charge: bool = True) -> list[Booked]:
    """Book these uses, all or none; answers what became of each, in their order.

    The same (source, key) is booked once: its first record is the answer, voided or not. Unless `charge`, the caller
    counts them in the budgets. Raises InvalidField:
    `invalid_resource_type`, `invalid_currency`, `amount_negative`, `amount_not_finite`, `amount_missing`,
    `amount_contradicts_usage`, with the number of the use as `number`; Refused `duplicate_key` for a key that was used
    for another content.
    """
    if not uses:
        return []
    with in_transaction():
        charging.join_bookings()
        reckoner = _Reckoner(uses)
        given = []
        for number, use in enumerate(uses):
            try:
                given.append(reckoner.values(use))
            except Refused as refusal:
                refusal.parts["number"] = number
                raise
        batch = new_id() if len(given) > TOLD_ONE_BY_ONE else None
        first: dict[tuple[str, str], int] = {}
        chosen, twins = [], {}
        for number, values in enumerate(given):
            key = (values["source"], values["idempotency_key"])
            if key[1] and first.setdefault(key, number) != number:
                twins[number] = first[key]
                continue
            values["batch"] = batch
            values["id"] = pk = new_id()
            chosen.append(Booked(pk, values))
        is_budgeted, is_estimated = _insert(chosen)
        _find([one for one in chosen if not one.is_new])
        answers = dict(zip([n for n in range(len(given)) if n not in twins], chosen, strict=True))
        for number, twin in twins.items():
            if not _same(given[twin], given[number]):
                raise _another(given[number], number)
            answers[number] = Booked(answers[twin].pk, answers[twin].values, is_new=False)
        new = [one for one in chosen if one.is_new]
        if new:
            _tell(new, batch, by)
            if is_budgeted and charge:
                charging.charge(new, by)
            if is_estimated:
                _replace_estimates(new, by)
    return [answers[number] for number in range(len(given))]


class _Reckoner:
    """Makes the columns of many uses: what is the same in many of them is made out once. At most two queries."""

    def __init__(self, uses: Sequence[Use]) -> None:
        models = {use.model for use in uses if use.model and use.tokens}
        self.prices = Price.objects.book_for(models)
        self.now = db_now() if models or any(use.usage_quantity or use.duration_seconds for use in uses) else None
        self.rates = settled.unit_rates()
        self.ceiling = settled.ceiling()
        self._common: dict[tuple[Any, ...], dict[str, Any]] = {}
        self._quotes: dict[tuple[str, str, datetime], pricing.Quote | None] = {}

    def values(self, use: Use) -> dict[str, Any]:
        """The record's columns. Raises InvalidField."""
        alike = (
            use.resource_type, use.source, use.currency, id(use.attempt), id(use.task), id(use.run), id(use.request),
            id(use.project), id(use.worker), use.model, use.provider, use.usage_unit, use.resource_name,
            use.override_reason, use.assumed_ttl, use.is_request, use.meter, use.web_searches, id(use.replaces),
            tuple(use.flags),
        )  # fmt: skip
        common = self._common.get(alike)
        if common is None:
            common = self._common[alike] = _common(use)
        tokens = pricing.check_tokens(use.tokens or {})
        stated = pricing.figure("amount", use.amount)
        told = pricing.figure("stated_amount", use.stated_amount)
        values = {
            **common,
            **{f"tokens_{name}": count for name, count in tokens.items()},
            "usage_quantity": pricing.figure("usage_quantity", use.usage_quantity),
            "duration_seconds": pricing.figure("duration_seconds", use.duration_seconds),
            "stated_amount": stated if use.stated_amount is None else told,
            "gateway_amount": pricing.figure("gateway_amount", use.gateway_amount),
            "idempotency_key": use.idempotency_key[:200],
            "reported_at": use.reported_at,
            "reasoning": use.reasoning,
            "session": use.session[:200],
        }
        values["usage_rate"] = pricing.figure("usage_rate", use.usage_rate)
        if stated is None and not self._by_tokens(use, tokens, values):
            self._by_rate(use, values)
        if "amount" not in values:
            booked = pricing.amount(
                stated=stated,
                quantity=values["usage_quantity"],
                rate=values["usage_rate"],
                tokens=tokens,
                price=None,
                model=use.model,
                free=use.resource_type == FREE,
                override=bool(use.override_reason),
                ceiling=self.ceiling,
            )
            values.update(amount=booked.amount, basis=booked.basis, unpriced=booked.unpriced)
        if use.basis:
            values["basis"] = use.basis
        if use.replaces is not None:
            _as_replaced(use.replaces, values)
        return values

    def _by_tokens(self, use: Use, tokens: Mapping[str, int], values: dict[str, Any]) -> bool:
        """The price of the tokens at their time, if they are what is paid for and somebody knows it."""
        if not use.model or self.now is None or values["usage_quantity"] is not None or not any(tokens.values()):
            return False
        plain = use.reported_at is None and use.attempt is None and use.replaces is None
        when = self.now if plain else _when(use, self.now)
        asked = (use.provider, use.model, when)
        if asked not in self._quotes:
            self._quotes[asked] = self.prices.at(*asked)
        quote = self._quotes[asked]
        amount = quote and quote.amount(tokens, is_request=use.is_request, web_searches=use.web_searches)
        if quote is None or amount is None:
            return False
        values.update(
            amount=amount,
            basis="priced",
            currency=quote.currency,
            provider=values["provider"] or quote.provider[:64],
            price_id=quote.price_id if isinstance(quote, OwnQuote) else None,
            price_source=quote.source[:200],
            price_version=quote.version[:64],
            price_dated=quote.dated,
        )
        return True

    def _by_rate(self, use: Use, values: dict[str, Any]) -> None:
        """The rate of the settings for what is counted in units and names no rate of its own."""
        quantity, unit = values["usage_quantity"], use.usage_unit
        if quantity is None and use.resource_type == FREE:
            quantity, unit = values["duration_seconds"], unit or "second"
        if values["usage_rate"] is not None or quantity is None or self.now is None or not self.rates:
            return
        rate = pricing.unit_rate(self.rates, use.resource_type, unit, _when(use, self.now).date())
        if rate is not None:
            values.update(
                amount=pricing.quantise(quantity * rate.rate),
                basis="usage",
                currency=rate.currency,
                usage_quantity=quantity,
                usage_unit=unit[:32],
                usage_rate=pricing.quantise(rate.rate),
                price_source=rate.source[:200],
                price_dated=rate.since,
            )


def _common(use: Use) -> dict[str, Any]:
    """The columns that are the same for every use that looks the same but for its figures. Raises InvalidField."""
    if use.resource_type not in Types:
        refusal = InvalidField("resource_type", "", code="invalid_resource_type")
        refusal.args = (f"Invalid resource_type: {use.resource_type}; it is one of {', '.join(Types)}",)
        raise refusal
    place = _place(use.attempt, use.task, use.run, use.request, use.project)
    return {
        "resource_type": use.resource_type,
        "currency": pricing.check_currency(use.currency),
        **place,
        "worker_id": use.worker.pk if use.worker else None,
        "patch_id": None,
        "model": use.model[:100],
        "provider": use.provider[:64],
        "resource_name": use.resource_name[:200],
        "usage_unit": use.usage_unit[:32],
        "price_id": None,
        "price_source": "",
        "price_version": "",
        "price_dated": None,
        "unpriced": False,
        "assumed_ttl": bool(use.assumed_ttl) or "assumed_ttl" in use.flags,
        "override_reason": use.override_reason,
        "source": use.source[:64],
        "landing": "in_flight" if place["task_id"] else "overhead",
        "waste_cause": "",
        "web_searches": use.web_searches,
        "flags": tuple(sorted(use.flags)),
        "is_request": use.is_request,
        "meter": use.meter[:300],
        "replaces_id": use.replaces.pk if use.replaces else None,
        "batch": None,
        "recorded_at": None,
    }


def _as_replaced(old: CostRecord, values: dict[str, Any]) -> None:
    """What a rebooking has of the record in whose place it stands: its day, its class, its patch."""
    values.update(
        recorded_at=old.recorded_at, landing=old.landing, waste_cause=old.waste_cause, patch_id=old.patch_id,
    )  # fmt: skip


def _when(use: Use, now: datetime) -> datetime:
    """When it was used: as reported, but neither in the future nor before its attempt began.

    A rebooking was used when what it replaces was, whose record is as old as it was.
    """
    now = use.replaces.recorded_at if use.replaces else now
    at = min(use.reported_at or now, now)
    began = use.attempt.started_at if use.attempt else None
    return max(at, began) if began is not None else at


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
    project_id = run.project_id if run else request.project_id if request else project.pk if project else None
    return {
        "leaf_kind": leaf[0],
        "leaf_id": leaf[1],
        "project_id": project_id,
        "phase_id": run.phase_id if run else None,
        "workstream_id": run.workstream_id if run else None,
        "run_id": run.pk if run else None,
        "task_id": task.pk if task else None,
        "request_id": attempt.request_id if attempt else request.pk if request else None,
        "attempt_id": attempt.pk if attempt else None,
        "tool_id": attempt.tool_id if attempt else None,
        "kind": task.kind if task else "",
        "person": run.requested_by if run else "",
    }


def _insert(chosen: Sequence[Booked]) -> tuple[bool, bool]:
    """Write those that are not known yet; the others are no longer `is_new`.

    Answers whether any budget counts, and whether an estimate stands for one of these attempts.
    """
    [(at, written, *flags)] = prepared.execute(_BOOK, wire.columns([one.values for one in chosen]))
    new = None if written is None else {from_uuid(pk) for pk in written}
    for one in chosen:
        one.is_new = new is None or one.pk in new
        if one.is_new:
            one.recorded_at, one.created_at = one.values["recorded_at"] or at, at
    return flags[0], flags[1]


_SAME = (
    "leaf_id", "resource_type", "model", "usage_quantity", "currency", "stated_amount",
    *(f"tokens_{name}" for name in pricing.CLASSES),
)  # fmt: skip


def _same(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two reports tell of one use: place, type, model, tokens, quantity, and what was stated.

    Not its amount: a repeat may find another price.
    """
    return all(one[name] == other[name] for name in _SAME if name != "currency" or one["basis"] != "priced")


def _find(old: Sequence[Booked]) -> None:
    """Put the ids of the first records of these keys in their place. Raises Refused `duplicate_key`."""
    if not old:
        return
    by_source: dict[str, dict[str, Booked]] = defaultdict(dict)
    for one in old:
        by_source[one.values["source"]][one.values["idempotency_key"]] = one
    for source, keys in by_source.items():
        rows = CostRecord.objects.filter(source=source, idempotency_key__in=list(keys)).values(
            "pk", "idempotency_key", "basis", *_SAME
        )
        for row in rows:
            one = keys[row["idempotency_key"]]
            if not _same(row, one.values):
                raise _another(one.values)
            one.pk = row["pk"]


def _another(values: Mapping[str, Any], number: int | None = None) -> Refused:
    told = {} if number is None else {"number": number}
    return Refused(
        f"{values['source']}/{values['idempotency_key']} is booked already, with another content",
        code="duplicate_key",
        **told,
    )


# -- telling -------------------------------------------------------------------------------------------------------


@dataclass
class Batch:
    """Many records that one event tells: which they are, what they come to, and a digest over all of them."""

    pk: str
    ids: dict[str, str | None]

    @staticmethod
    def noun() -> str:
        """The subject's name in the log."""
        return "cost_batch"

    def correlation(self) -> dict[str, str | None]:
        """What all of its records have in common."""
        return self.ids


_CORRELATION = {
    "project_id": "project_id", "workstream_id": "workstream_id", "run_id": "run_id", "task_id": "task_id",
    "step_id": "attempt_id", "worker_id": "worker_id",
}  # fmt: skip


def _tell(new: Sequence[Booked], batch: str | None, by: events.Actor) -> None:
    composed = []
    unpriced: dict[str, Decimal] = defaultdict(Decimal)
    if batch is None:
        for one in new:
            row = one.row()
            told = {"amount": row.amount, "currency": row.currency}
            composed.append(events.compose("cost.recorded", row, by=by, data=told, before={}, after=row.birth()))
            if row.unpriced:
                told = {"model": row.model, "amount": row.amount}
                composed.append(events.compose("cost.unpriced", row, by=by, data=told))
    else:
        sums: dict[str, Decimal] = defaultdict(Decimal)
        digest = hashlib.sha256()
        for one in new:
            sums[one.values["currency"]] += one.values["amount"]
            digest.update(_line(one))
            if one.values["unpriced"]:
                unpriced[one.values["model"]] += one.values["amount"]
        common = {
            name: values.pop() if len(values := {one.values[column] for one in new}) == 1 else None
            for name, column in _CORRELATION.items()
        }
        subject = Batch(batch, common)
        told = {"records": len(new), "amounts": dict(sums), "digest": digest.hexdigest()}
        composed.append(events.compose("cost.recorded", subject, by=by, data=told))
        for model, amount in sorted(unpriced.items()):
            composed.append(events.compose("cost.unpriced", subject, by=by, data={"model": model, "amount": amount}))
    events.append(composed)


_TOKENS = tuple(f"tokens_{name}" for name in pricing.CLASSES)
_told = itemgetter("source", "idempotency_key", "leaf_id", *_TOKENS, "amount", "currency")


def _line(one: Booked) -> bytes:
    """What a batch's digest is made of, a line a record: id, key, leaf, tokens, amount."""
    return f"{one.pk}|{'|'.join(map(str, _told(one.values)))}\n".encode()


def digest_of(batch: str) -> str:
    """The digest of a batch's records as they are stored: what its event tells, if nobody changed them."""
    digest = hashlib.sha256()
    columns = ("source", "idempotency_key", "leaf_id", *_TOKENS, "amount", "currency")
    for row in CostRecord.objects.filter(batch=batch).order_by("pk").values("pk", *columns):
        digest.update(_line(Booked(row["pk"], row)))
    return digest.hexdigest()


def _replace_estimates(new: Sequence[Booked], by: events.Actor) -> None:
    """Void what was estimated for attempts of which a report came after all."""
    attempts = {one.values["attempt_id"] for one in new if one.values["basis"] != "estimated"} - {None}
    if attempts:
        rows = CostRecord.objects.live().filter(attempt__in=attempts, source=ESTIMATE, basis="estimated")
        if ids := list(rows.values_list("pk", flat=True)):
            void(ids, "the report came after all", by=by)


# -- voiding -------------------------------------------------------------------------------------------------------

_VOID = f"""
WITH gone AS (
    UPDATE costs_costrecord c SET voided_at = clock_timestamp(), voided_by = %s, void_reason = %s
    WHERE c.id = ANY(%s) AND c.voided_at IS NULL RETURNING *
), sums AS ({daily.add(daily.deltas("gone", "-"))})
SELECT id, voided_at FROM gone
"""


def void(ids: Sequence[str], reason: str, *, by: events.Actor) -> list[str]:
    """Take these records out of every sum, with a reason; answers those that were live. Raises ReasonRequired.

    What they count in budgets is given back; a budget that is no longer breached lets go of its hold.
    """
    reason = need_reason(reason)
    with in_transaction():
        done = _void(ids, reason, by)
        charging.give_back(done, by)
    return [row.pk for row in done]


def _void(ids: Sequence[str], reason: str, by: events.Actor) -> list[CostRecord]:
    """Those that were live, as they were, locked, voided and told; what they count in budgets is the caller's."""
    # Locked in their order, so that two who void the same never wait for each other in a circle.
    live = CostRecord.objects.live().filter(pk__in=list(ids)).select_for_update(no_key=True, of=("self",))
    rows = {row.pk: row for row in live.order_by("pk")}
    if not rows:
        return []
    with connection.cursor() as cursor:
        cursor.execute(_VOID, [by.name, reason, [to_uuid(pk) for pk in rows]])
        done = {from_uuid(pk): at for pk, at in cursor.fetchall()}
    after = {"voided_by": by.name, "void_reason": reason}
    events.append(
        [
            events.compose(
                "cost.voided",
                rows[pk],
                by=by,
                reason=reason,
                data={"amount": rows[pk].amount, "currency": rows[pk].currency},
                before={"voided_at": None, "voided_by": "", "void_reason": ""},
                after={"voided_at": at, **after},
            )
            for pk, at in sorted(done.items())
        ]
    )
    return [rows[pk] for pk in done]


def rebook(uses: Sequence[Use], reason: str, *, by: events.Actor) -> list[Booked]:
    """Void the records that these uses replace, those that are live still, and book the uses in their place.

    A rebooking has the day and the class of its record, and counts in the same periods of budgets; in another currency,
    in the periods that run now. Raises ReasonRequired, and what `book` does.
    """
    reason = need_reason(reason)
    by_record = {use.replaces.pk: use for use in uses if use.replaces is not None}
    with in_transaction():
        old = {row.pk: row for row in _void(list(by_record), reason, by)}
        for pk, row in old.items():
            # As it is now: what became of the work may have been told since it was read.
            by_record[pk].replaces = row
        booked = book([by_record[pk] for pk in sorted(old)], by=by, charge=False)
        new = {one.values["replaces_id"]: one for one in booked if one.is_new}
        movements: dict[str, budget.Movement] = defaultdict(budget.Movement)
        for record, period in charging.charges(old):
            movements[period].spent -= old[record].amount
            one = new.get(record)
            if one is not None and one.values["currency"] == old[record].currency:
                movements[period].spent += one.values["amount"]
                movements[period].records.append(one.pk)
        charging.settle(movements, by)
        foreign = [one for pk, one in new.items() if one.values["currency"] != old[pk].currency]
        if foreign:
            charging.charge(foreign, by)
    return list(new.values())


# -- classes -------------------------------------------------------------------------------------------------------

_OLD_LANDING = {"landing": "c.old_landing", "waste_cause": "c.old_cause"}
_RECLASS = f"""
WITH moved AS (
    UPDATE costs_costrecord r SET landing = u.landing, waste_cause = u.cause, patch_id = COALESCE(u.patch, r.patch_id)
    FROM unnest(%s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::uuid[])
        AS u (key, old_landing, old_cause, landing, cause, patch)
    WHERE r.id = u.key AND r.voided_at IS NULL RETURNING r.*, u.old_landing, u.old_cause
), sums AS ({daily.add(daily.deltas("moved", "-", **_OLD_LANDING) + " UNION ALL " + daily.deltas("moved"))})
SELECT id FROM moved
"""


def reclass(
    classes: Mapping[str, tuple[str, str]], *, by: events.Actor, patches: Mapping[str, str | None] | None = None
) -> int:
    """Give these live records their class and waste cause; answers how many had another. One statement for all."""
    patches = patches or {}
    with in_transaction():
        live = CostRecord.objects.live().filter(pk__in=list(classes)).select_for_update(no_key=True, of=("self",))
        rows = [row for row in live.order_by("pk") if (row.landing, row.waste_cause) != classes[row.pk]]
        if not rows:
            return 0
        with connection.cursor() as cursor:
            cursor.execute(
                _RECLASS,
                [
                    [to_uuid(row.pk) for row in rows],
                    [row.landing for row in rows],
                    [row.waste_cause for row in rows],
                    [classes[row.pk][0] for row in rows],
                    [classes[row.pk][1] for row in rows],
                    [to_uuid(pk) if (pk := patches.get(row.pk)) else None for row in rows],
                ],
            )
        composed = []
        for row in rows:
            after: dict[str, Any] = {"landing": classes[row.pk][0], "waste_cause": classes[row.pk][1]}
            before: dict[str, Any] = {"landing": row.landing, "waste_cause": row.waste_cause}
            if (patch := patches.get(row.pk)) and patch != row.patch_id:
                before["patch_id"], after["patch_id"] = row.patch_id, patch
            composed.append(events.compose("cost.reclassed", row, by=by, before=before, after=after))
        events.append(composed)
    return len(rows)
