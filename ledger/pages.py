"""What the ledger's pages and its panels on other pages share: the queues with what is in them."""

from django.db.models import Prefetch
from django.http import HttpRequest

from ledger.models import MergeQueue, QueueItem

ITEMS_SHOWN = 50
# What no list shows of a patch.
BULK_OF_PATCH = (
    "metadata", "validation_errors", "findings", "policy_snapshot", "applied_files", "last_error_message",
)  # fmt: skip


def queues_with_items(request: HttpRequest) -> list[MergeQueue]:
    """The queues that the viewer may see, each with the items `shown`, head first, and whether there are `more`.

    Two queries.
    """
    live = QueueItem.objects.live().select_related("patch").defer(*(f"patch__{name}" for name in BULK_OF_PATCH))
    rows = MergeQueue.objects.visible_to(request.principal).filter(project__archived_at=None).select_related("project")
    queues = list(
        rows.prefetch_related(Prefetch("items", live[: ITEMS_SHOWN + 1], "waiting")).order_by(
            "project__key", "target_branch"
        )
    )
    for queue in queues:
        queue.shown, queue.more = queue.waiting[:ITEMS_SHOWN], len(queue.waiting) > ITEMS_SHOWN
    return queues
