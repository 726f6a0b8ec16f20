"""Heads of queues that keep everybody behind them waiting: after the queue's limit a person is asked, and told why."""

from datetime import datetime

from django.db.models import Max
from django.utils.translation import gettext as _

from ledger.models import MergeQueue, Patch, QueueItem
from pipeline import events
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.models import Hold

REF = "head:"


def watch_heads(*, by: events.Actor = events.SYSTEM) -> int:
    """Place a hold for every head that is older than its queue's `head_limit_seconds`, and take back those of items
    that are head no more; returns how many were placed or taken back.

    The queue itself goes on: a head that passes lands, hold or not. The hold is over the head's task, so that nothing
    but the question comes of it; a patch without a task has its project held, since nothing more can land there. One
    that a person released comes back only when the head has stood for as long again. A paused queue has a person
    already.
    """
    rows = QueueItem.objects.live().order_by("queue", "position").distinct("queue")
    heads = {item.pk: item for item in rows.select_related("queue__project", "patch__project", "patch__task")}
    asked = {hold.ref.removeprefix(REF): hold for hold in Hold.objects.active().filter(ref__startswith=REF)}
    done = 0
    for pk, hold in asked.items():
        if pk not in heads:
            done += hold.release(by=by, reason=_("it is no longer at the head of its queue"), cause="answered")
    now = db_now()
    for pk, item in heads.items():
        queue = item.queue
        if pk in asked or queue.state == MergeQueue.State.PAUSED:
            continue
        limit = queue.head_limit_seconds
        # The first look is at two columns that are here: most heads are younger than any limit.
        if (now - item.created_at).total_seconds() > limit and (now - _since(item)).total_seconds() > limit:
            _ask(item, by)
            done += 1
    return done


def _since(item: QueueItem) -> datetime:
    """From when on the item's time as head counts: the place was free, the queue ran, and nobody was asked about it."""
    freed = QueueItem.objects.filter(queue=item.queue).aggregate(at=Max("finished_at"))["at"]
    told = Event.objects.filter(kind="merge_queue.resumed", subject_type=MergeQueue.noun(), subject_id=item.queue_id)
    resumed = told.aggregate(at=Max("created_at"))["at"]
    answered = Hold.objects.filter(ref=f"{REF}{item.pk}").aggregate(at=Max("released_at"))["at"]
    since: datetime = max(at for at in (item.created_at, freed, resumed, answered) if at is not None)
    return since


def _ask(item: QueueItem, by: events.Actor) -> Hold:
    patch, queue = item.patch, item.queue
    reason = _("Patch %(patch)s has been at the head of the queue of %(branch)s for too long; it is %(state)s") % {
        "patch": patch.pk,
        "branch": queue.target_branch,
        "state": item.get_state_display(),
    }
    why = queue.blocked_reason or item.failing_reason or item.restart_reason
    scope = ("task", patch.task_id) if patch.task_id else ("project", patch.project_id)
    return Hold.objects.place(
        *scope,
        reason=f"{reason}: {why}"[:2000] if why else reason,
        by=by,
        kind="question",
        ref=f"{REF}{item.pk}",
        holder="approvers" if patch.state == Patch.State.APPLIED else "operators",
        project=patch.project,
        question={
            "text": reason,
            "patch": patch.pk,
            "branch": queue.target_branch,
            "what_helps": _(
                "See what its gates wait for, waive what may be waived, or drop or quarantine the patch. "
                "The question goes away when the next patch is at the head."
            ),
        },
        suggested_action={
            "verb": "quarantine",
            "address": f"/api/v1/patches/{patch.pk}/quarantine/",
            "needs": "operator",
        },
    )
