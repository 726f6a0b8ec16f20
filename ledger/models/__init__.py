"""What the work produced: patches with their content, policies, the queue in which they land, and the log's seals."""

from ledger.models.patch import Patch, PatchContent
from ledger.models.policy import PatchPolicy
from ledger.models.queue import MergeQueue, QueueItem
from ledger.models.receipt import Receipt
from ledger.models.remote import Push, Remote
from ledger.models.review import PatchReview, PolicyOverride
from ledger.models.seal import Seal

__all__ = [
    "MergeQueue",
    "Patch",
    "PatchContent",
    "PatchPolicy",
    "PatchReview",
    "PolicyOverride",
    "Push",
    "QueueItem",
    "Receipt",
    "Remote",
    "Seal",
]
