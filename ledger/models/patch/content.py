"""The text of a patch, as it came."""

from django.db import models
from django.db.models import Q

from pipeline.rows import Kept, append_only

UNIFIED_DIFF = "unified_diff"


@append_only
class PatchContent(Kept):
    """A patch's text as it came, immutable. Apart from its patch, so that no list loads it."""

    NOUN = "patch_content"

    patch = models.OneToOneField("ledger.Patch", models.PROTECT, related_name="content")
    diff_text = models.TextField()
    format = models.CharField(max_length=16, default=UNIFIED_DIFF)
    sha256 = models.CharField(max_length=64)
    patch_id_git = models.CharField(max_length=64, blank=True)
    byte_size = models.PositiveIntegerField()

    class Meta:
        indexes = [
            models.Index(fields=["patch_id_git"], name="patch_of_git_id", condition=~Q(patch_id_git="")),
        ]

    def __str__(self) -> str:
        return f"content of {self.patch_id}"
