"""What the ledger's pages and its panels on other pages share: the queues with what is in them."""

from django.db.models import Prefetch, Q
from django.http import HttpRequest

from ledger.heads import REF
from ledger.models import MergeQueue, QueueItem
from pipeline.models import Hold

ITEMS_SHOWN = 50
# What no list shows of a patch.
BULK_OF_PATCH = (
    "metadata", "validation_errors", "findings", "policy_snapshot", "applied_files", "last_error_message",
)  # fmt: skip


def queues_with_items(request: HttpRequest) -> list[MergeQueue]:
    """The queues that the viewer may see, each with the items `shown`, head first, whether there are `more`, and the
    `holds` that a person has to answer before it goes on. Three queries.
    """
    live = QueueItem.objects.live().select_related("patch").defer(*(f"patch__{name}" for name in BULK_OF_PATCH))
    rows = MergeQueue.objects.visible_to(request.principal).filter(project__archived_at=None).select_related("project")
    queues = list(
        rows.prefetch_related(Prefetch("items", live[: ITEMS_SHOWN + 1], "waiting")).order_by(
            "project__key", "target_branch"
        )
    )
    asked = Hold.objects.active().filter(Q(ref__startswith="remote:") | Q(ref__startswith=REF))
    holds = list(asked.filter(project__in={queue.project_id for queue in queues}).order_by("pk"))
    for queue in queues:
        refs = {queue.remote_ref, *(f"{REF}{item.pk}" for item in queue.waiting[:1])}
        queue.holds = [hold for hold in holds if hold.project_id == queue.project_id and hold.ref in refs]
        queue.shown, queue.more = queue.waiting[:ITEMS_SHOWN], len(queue.waiting) > ITEMS_SHOWN
    return queues
