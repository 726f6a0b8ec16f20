"""Reviews and overrides in the admin: looked at there, given on the patch's page or by the API."""

from django.contrib import admin

from ledger.models import PatchReview, PolicyOverride
from pipeline.admin_site import LookOnlyAdmin


@admin.register(PatchReview)
class PatchReviewAdmin(LookOnlyAdmin):
    """What was said of patches."""

    list_display = ["patch", "verdict", "reviewer_name", "created_at"]
    list_filter = ["verdict"]
    list_select_related = ["patch"]
    heavy = ("body", "anchors")
    project_path = "patch__project"


@admin.register(PolicyOverride)
class PolicyOverrideAdmin(LookOnlyAdmin):
    """Rules that were set aside for single patches."""

    list_display = ["patch", "rule", "granted_name", "expires_at", "reason"]
    list_filter = ["rule"]
    list_select_related = ["patch"]
    project_path = "patch__project"
