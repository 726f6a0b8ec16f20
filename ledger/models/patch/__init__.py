"""A patch, idea by idea: what it is, how it enters, is judged, set aside, replaced, landed or reported as landed."""

from ledger.models.patch.content import UNIFIED_DIFF, PatchContent
from ledger.models.patch.patch import Patch

__all__ = ["UNIFIED_DIFF", "Patch", "PatchContent"]
