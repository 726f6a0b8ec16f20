"""What reviewing shows on other pages: the box of a patch, and what waits for the viewer's review."""

from typing import Any

from django import template
from django.template import Context

from ledger import review_words, reviewing
from ledger.models import Patch
from ledger.models.review import belong_to, reviews_of
from ledger.verdicts import OVERRIDABLE

register = template.Library()

SHOWN = 10
REVIEWS_SHOWN = 50


@register.inclusion_tag("ledger/_reviews.html", takes_context=True)
def review_box(context: Context, patch: Patch) -> dict[str, Any]:
    """Requirements, risk, reviews with their comments at lines, and the forms that the viewer may use."""
    principal = context["request"].principal
    effective = reviewing.judged_by(patch)
    standing = reviews_of([patch])[patch.pk]
    risk = reviewing.risk(patch, effective=effective)
    tone, tier = review_words.TIERS[risk.tier]
    rows = [review_words.row(one) for one in reviewing.requirements(patch, reviews=standing, effective=effective)]
    may_admin = principal.may("admin", patch.project_id)
    is_open = patch.state not in Patch.FINAL
    return {
        "request": context["request"],
        "csrf_token": context.get("csrf_token"),
        "patch": patch,
        "rows": [row for row in rows if row["tone"] != "quiet"],
        "may_be_set_aside": [row for row in rows if may_admin and row["is_open"] and row["rule"] in OVERRIDABLE],
        "quiet": [row["words"] for row in rows if row["tone"] == "quiet"],
        "tier": tier,
        "tier_tone": tone,
        "reasons": review_words.reasons(risk),
        "standing": standing,
        "holder": reviewing.holder(patch),
        "reviews": patch.reviews.order_by("-pk")[:REVIEWS_SHOWN],
        "own": belong_to([patch])[patch.pk].get(principal.id, "") if principal.kind == "user" else "",
        "may_review": is_open and principal.may("approver", patch.project_id),
        "may_comment": is_open and principal.may("operator", patch.project_id),
        "paths": sorted(patch.files_touched),
    }


@register.simple_tag(takes_context=True)
def waiting_reviews(context: Context) -> list[dict[str, Any]]:
    """What waits for the viewer's review, the riskiest first: `patch`, `missing`, `tier`, `tone`."""
    found = []
    for one in reviewing.waiting_for(context["request"].principal)[:SHOWN]:
        tone, tier = review_words.TIERS[one.risk.tier]
        found.append({"patch": one.patch, "reviews": one.reviews, "tier": tier, "tone": tone})
    return found
