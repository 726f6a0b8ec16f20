"""What the ledger's pages and its panels on other pages share: the queues with what is in them."""

from dataclasses import dataclass
from typing import Any

from django.db.models import Prefetch, Q

from ledger.heads import REF
from ledger.models import MergeQueue, QueueItem
from pipeline.auth import SignedInRequest
from pipeline.models import Hold

ITEMS_SHOWN = 50
# What no list shows of a patch.
BULK_OF_PATCH = (
    "metadata", "validation_errors", "findings", "policy_snapshot", "applied_files", "last_error_message",
)  # fmt: skip


@dataclass(frozen=True)
class Train:
    """A queue as its pages show it: the items that go first, whether there are `more`, the `holds` that a person has to
    answer before it goes on, and whether the viewer may stop it.
    """

    queue: MergeQueue
    items: list[QueueItem]
    more: bool
    holds: list[Hold]
    may_act: bool


def trains(request: SignedInRequest) -> list[Train]:
    """The queues that the viewer may see. Three queries."""
    who = request.principal
    rows = MergeQueue.objects.visible_to(who).filter(project__archived_at=None).select_related("project")
    live = QueueItem.objects.live().select_related("patch").defer(*(f"patch__{name}" for name in BULK_OF_PATCH))
    waiting = Prefetch("items", live[: ITEMS_SHOWN + 1], "waiting")
    queues: list[Any] = list(rows.prefetch_related(waiting).order_by("project__key", "target_branch"))
    asked = Hold.objects.active().filter(Q(ref__startswith="remote:") | Q(ref__startswith=REF))
    holds = list(asked.filter(project__in={queue.project_id for queue in queues}).order_by("pk"))
    found = []
    for queue in queues:
        items = queue.waiting
        refs = {queue.remote_ref, *(f"{REF}{item.pk}" for item in items[:1])}
        of_queue = [hold for hold in holds if hold.project_id == queue.project_id and hold.ref in refs]
        more = len(items) > ITEMS_SHOWN
        found.append(Train(queue, items[:ITEMS_SHOWN], more, of_queue, who.may("operator", queue.project_id)))
    return found
