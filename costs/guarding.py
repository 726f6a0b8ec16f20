"""What keeps spending within bounds beside the limits themselves: holds on breach, loops, money nobody reported."""

from collections.abc import Iterable, Sequence
from decimal import Decimal

from django.db import transaction
from django.utils.translation import gettext as _

from costs import fates, loops, price_base, pricing
from costs.models import Budget, BudgetPeriod, CostRecord, OtlpMeter, Price, Reservation, booking, settled
from costs.periods import Standing
from ledger.models import Patch
from pipeline import events
from pipeline.clock import ClockNow, db_now
from pipeline.events import SYSTEM
from pipeline.models import Hold, Run, StepAttempt, Task, Tool
from pipeline.models.hold import stored
from workers.models import Lease

AT_ONCE = 200
MOST_ITERATIONS = 50
SPENDS = 5000


# -- what tokens can cost at most ----------------------------------------------------------------------------------


def price_ceiling(tools: Sequence[Tool], currency: str) -> dict[str, str] | None:
    """The most that a million tokens of each class cost with any of these tools; None where that is in no price list.

    At most two queries. A tool without a model, or with one that nobody prices, has the ceiling.
    """
    names = {tool.model for tool in tools}
    now = db_now()
    book = Price.objects.book_for(names) if any(names) else pricing.PriceBook([], price_base.quote)
    most = dict.fromkeys(pricing.CLASSES, Decimal(0))
    for name in names:
        quote = book.at("", name, now) if name else None
        if quote is not None and quote.currency != currency:
            return None
        tables = [quote.rates, *(tier.rates for tier in quote.tiers)] if quote is not None else [settled.ceiling()]
        if quote is None and currency != "USD":
            return None
        for rates in tables:
            most = {name: max(rate, rates.get(name, Decimal(0))) for name, rate in most.items()}
    return {"currency": currency, **{name: str(rate) for name, rate in most.items()}}


# -- one source a session ------------------------------------------------------------------------------------------


def not_counted_elsewhere(attempt: StepAttempt, uses: list[booking.Use], *, by: events.Actor) -> list[booking.Use]:
    """Of an agent's report at the end of its lease, what is not counted by OTLP already.

    Of the two pictures of one session the larger counts: a telemetry that broke off does not hide what the agent tells,
    and an agent that tells less than its requests adds nothing. What the agent states is kept with the meter.
    """
    tokens = [use for use in uses if use.tokens and any(use.tokens.values())]
    if not tokens:
        return uses
    meters = list(OtlpMeter.objects.select_for_update().filter(attempt=attempt).order_by("pk"))
    if not meters:
        return uses
    booked = CostRecord.objects.live().filter(attempt=attempt, meter__in=[meter.meter for meter in meters])
    seen = sum(booked.values_list("amount", flat=True), Decimal(0))
    ours = sum((_worth(use) for use in tokens), Decimal(0))
    stated = [pricing.figure("stated_amount", use.stated_amount) for use in tokens]
    told = sum((amount for amount in stated if amount is not None), Decimal(0))
    OtlpMeter.objects.filter(pk=meters[0].pk).update(stated_amount=told if any(a is not None for a in stated) else None)
    if seen and seen >= ours:
        return [use for use in uses if use not in tokens]
    if seen:
        booking.void(list(booked.values_list("pk", flat=True)), _("The agent's report is the larger picture."), by=by)
    OtlpMeter.objects.filter(pk__in=[meter.pk for meter in meters]).update(counts="report")
    return uses


def _worth(use: booking.Use) -> Decimal:
    """What a use would be booked at now."""
    stated = pricing.figure("amount", use.amount)
    if stated is not None:
        return stated
    tokens = pricing.check_tokens(use.tokens or {})
    quote = Price.objects.book_for([use.model]).at(use.provider, use.model, db_now()) if use.model else None
    amount = quote.amount(tokens, is_request=use.is_request, web_searches=use.web_searches) if quote else None
    return pricing.price_tokens(tokens, settled.ceiling()) if amount is None else amount


# -- breach --------------------------------------------------------------------------------------------------------


def hold_the_scope(budget_id: str, period_id: str) -> bool:
    """Place the holds of a budget whose period is breached still, and stop what runs past its limit. Safe to repeat."""
    budget = Budget.objects.select_related("project").filter(pk=budget_id).first()
    if budget is None or not budget.active:
        return False
    with transaction.atomic():
        placed = _place(budget, period_id) if budget.on_breach == Budget.OnBreach.HOLD else []
        # Read after the hold's lock is held: a limit that was raised meanwhile is seen.
        period = BudgetPeriod.objects.select_for_update(no_key=True).filter(pk=period_id, budget=budget).first()
        standing = period and Standing(period.limit_amount, period.spent, period.reserved, budget.warn_ratio)
        if period is None or standing is None or period.breached_at is None:
            for hold in placed:
                hold.release(by=SYSTEM, cause="no longer breached")
            return False
        if placed:
            BudgetPeriod.objects.filter(pk=period.pk, hold=None).update(hold=placed[0])
    if period.spent > period.limit_amount:
        stop_what_runs(budget)
    return True


def _place(budget: Budget, period_id: str) -> list[Hold]:
    period = BudgetPeriod.objects.filter(pk=period_id, budget=budget).exclude(breached_at=None).first()
    if period is None:
        return []
    amounts = {"spent": period.spent, "limit": period.limit_amount, "currency": budget.currency, "key": budget.key}
    reason = _("Budget %(key)s: %(spent)s of %(limit)s %(currency)s are spent.") % amounts
    raised = f"/api/v1/budgets/{budget.pk}/change-limit/"
    return [
        Hold.objects.place(
            kind,
            scope_id,
            reason=reason,
            by=SYSTEM,
            kind="budget",
            ref=budget.pk,
            holder_kind="budget",
            holder="admins",
            until=period.ends_at,
            project=budget.project,
            question={
                "text": _("Raise the limit of budget %(key)s, or leave the work paused?") % amounts,
                "options": [_("raise the limit"), _("wait for the next period"), _("cancel the work")],
                "budget": budget.pk,
                "period": period.pk,
                "limit": str(period.limit_amount),
                "spent": str(period.spent),
                "currency": budget.currency,
            },
            suggested_action={"verb": "change-limit", "address": raised, "needs": "admin"},
        )
        for kind, scope_id in _targets(budget)
    ]


def _targets(budget: Budget) -> list[tuple[str, str]]:
    """The scopes of holds that pause what the budget is over: its own, or that of every run or tool in it."""
    kind, ref = budget.scope_kind, budget.scope_ref
    if kind in ("installation", "project", "workstream", "run", "task", "worker"):
        return [(kind, ref)]
    if kind == "tool":
        return [("tool", ref)]
    if kind == "model":
        return [("tool", key) for key in Tool.objects.filter(model=ref).values_list("key", flat=True).order_by("key")]
    runs = Run.objects.active()
    if budget.project_id:
        runs = runs.filter(project=budget.project_id)
    runs = runs.filter(phase=ref) if kind == "phase" else runs.filter(requested_by=ref)
    return [("run", pk) for pk in runs.order_by("pk").values_list("pk", flat=True)[:AT_ONCE]]


def go_on(hold_id: str) -> int:
    """A budget's hold has expired with its period: end those of the tasks that it stopped. How many."""
    hold = Hold.objects.filter(pk=hold_id, kind="budget").exclude(ref="").first()
    budget = Budget.objects.filter(pk=hold.ref).first() if hold is not None else None
    return budget.release_holds(by=SYSTEM, cause="the next period began") if budget is not None else 0


def stop_what_runs(budget: Budget) -> int:
    """Ask every live lease under the budget to stop, its partial results kept; how many were asked."""
    tasks = budget.over_tasks(Task.objects.filter(state=Task.State.RUNNING))
    leases = Lease.objects.live().filter(task__in=tasks, stop_requested_at=None).order_by("pk")
    reason = _("Budget %(key)s is used up.") % {"key": budget.key}
    done = 0
    for lease in leases.iterator(chunk_size=AT_ONCE):
        done += lease.request_stop(by=SYSTEM, reason=reason, outcome="budget_stop")
    return done


# -- money that nobody reported ------------------------------------------------------------------------------------


def end_overdue_reservations() -> int:
    """Give back what was set aside without a lease and is past its end."""
    rows = Reservation.objects.overdue().select_related("task__run", "run").order_by("expires_at")[:AT_ONCE]
    return sum(row.end(by=SYSTEM, reason=_("It was not settled in time.")) for row in rows)


def book_estimates() -> int:
    """Book at its reservation what a priced tool has not reported in ten minutes; a late report replaces it."""
    done = 0
    due = Reservation.objects.filter(estimate_at__lte=ClockNow()).order_by("estimate_at")
    for pk in list(due.values_list("pk", flat=True)[:AT_ONCE]):
        with transaction.atomic():
            row = Reservation.objects.select_for_update(skip_locked=True, no_key=True, of=("self",))
            mine = row.select_related("task").filter(pk=pk, estimate_at__isnull=False).first()
            if mine is None:
                continue
            held = Lease.objects.filter(task=mine.task_id)
            lease = None if mine.generation is None else held.filter(generation=mine.generation).first()
            Reservation.objects.filter(pk=pk).update(estimate_at=None)
            if lease is None or CostRecord.objects.live().filter(attempt=lease.attempt_id).exists():
                continue
            use = booking.Use(
                resource_type=CostRecord.Type.API_CALL,
                source=booking.ESTIMATE,
                idempotency_key=lease.pk,
                amount=mine.amount,
                currency=mine.currency,
                attempt=lease.attempt,
                worker=lease.worker,
                basis="estimated",
            )
            done += booking.book([use], by=SYSTEM)[0].is_new
            fates.reclass_task(lease.task_id)
    return done


# -- loops ---------------------------------------------------------------------------------------------------------

_RUNGS = {
    Patch.State.CREATED: "submitted",
    Patch.State.VALIDATED: "validated",
    Patch.State.QUEUED: "validated",
    Patch.State.APPLIED: "applied",
    Patch.State.VERIFIED: "verified",
    Patch.State.COMMITTED: "committed",
    Patch.State.ROLLED_BACK: "committed",
}


def judge(task_id: str) -> loops.Judgement:
    """Judge a task by its ended attempts and those that it was retried from; one that runs in circles is paused.

    The hold tells the reason and asks; nothing but a person ends it.
    """
    task = Task.objects.select_related("run__project").get(pk=task_id)
    judgement = loops.judge(*_history(task), now=db_now())
    is_open = task.state not in Task.ENDED
    if judgement.trips and is_open:
        Hold.objects.place(
            "task",
            task.pk,
            reason=str(judgement.sentence),
            by=SYSTEM,
            kind="loop",
            ref=judgement.reason,
            holder="approvers",
            project=task.run.project,
            question={
                "text": _("The task runs in circles. Let it go on, or cancel it?"),
                "options": [_("go on"), _("cancel the task")],
                "reason": judgement.reason,
                "parts": {name: str(value) for name, value in judgement.parts},
            },
            suggested_action={"verb": "cancel", "address": f"/api/v1/tasks/{task.pk}/cancel/", "needs": "operator"},
        )
    return judgement


def _history(task: Task) -> tuple[list[loops.Iteration], list[loops.Spend]]:
    """The task's ended attempts, oldest first, and what went out for them by the request, in USD."""
    family = _family(task)
    ended = StepAttempt.objects.filter(task__in=family).exclude(outcome=None)
    attempts = list(ended.only("id", "outcome", "ended_at", "error_fingerprint", "output_patch_ids").order_by("-pk"))
    attempts = attempts[:MOST_ITERATIONS][::-1]
    # What a person let go on is judged anew from then on.
    let_go = Hold.objects.filter(scope_kind="task", kind="loop", state="released", scope_id__in=_stored(family))
    since = max((hold.released_at for hold in let_go if hold.released_at), default=None)
    attempts = [one for one in attempts if since is None or (one.ended_at is not None and one.ended_at > since)]
    patches = {
        patch.pk: patch
        for patch in Patch.objects.filter(pk__in={pk for one in attempts for pk in one.output_patch_ids}).only(
            "id", "state", "format_ok", "scope_ok", "constraints_ok", "attempts", "tests_ran", "tests_passed"
        )
    }
    records = CostRecord.objects.live().filter(attempt__in=[one.pk for one in attempts], currency="USD")
    told = list(records.order_by("-pk").values_list("attempt_id", "amount", "recorded_at")[:SPENDS])
    amounts: dict[str | None, Decimal] = {}
    for attempt, amount, _at in told:
        amounts[attempt] = amounts.get(attempt, Decimal(0)) + amount
    iterations = [
        loops.Iteration(
            ended_at=one.ended_at,
            amount=amounts.get(one.pk, Decimal(0)),
            outcome=one.outcome or "",
            fingerprint=one.error_fingerprint,
            rung=max(
                (_rung(patches[pk]) for pk in one.output_patch_ids if pk in patches),
                key=loops.RUNGS.index,
                default="none",
            ),
        )
        for one in attempts
        if one.ended_at is not None
    ]
    return iterations, [loops.Spend(at, amount) for _attempt, amount, at in told]


def _stored(ids: Iterable[str]) -> list[str]:
    return [stored(pk) for pk in ids]


def _family(task: Task) -> list[str]:
    """The task, and those that it was retried from."""
    found = [task.pk]
    before = task.retry_of_id
    while before is not None and len(found) < MOST_ITERATIONS:
        found.append(before)
        before = Task.objects.filter(pk=before).values_list("retry_of_id", flat=True).first()
    return found


def _rung(patch: Patch) -> str:
    """How far the patch came, also when it fell back since."""
    rung = _RUNGS.get(Patch.State(patch.state))
    if rung is not None:
        return rung
    if patch.tests_ran:
        return "applied"
    return "validated" if patch.format_ok and patch.scope_ok and patch.constraints_ok else "submitted"
