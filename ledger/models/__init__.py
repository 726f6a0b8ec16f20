"""What the work produced: patches with their content, policies, and the queue in which they land."""

from ledger.models.patch import Patch, PatchContent
from ledger.models.policy import PatchPolicy
from ledger.models.queue import MergeQueue, QueueItem

__all__ = ["MergeQueue", "Patch", "PatchContent", "PatchPolicy", "QueueItem"]
