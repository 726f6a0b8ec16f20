"""The API of reviewing: approve, reject, comment, compare, set a rule aside."""

from datetime import timedelta
from typing import Any

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ledger import reviewing
from ledger.models import Patch, PatchReview, PolicyOverride
from ledger.models.review import reviews_of
from ledger.verdicts import State
from pipeline.refusals import InvalidField, MissingField, NotFound
from pipeline.rest import BadQuery, Strict, StrictModel


class Anchor(Strict):
    """A comment on a range of lines of one file, on the new side unless told."""

    path = serializers.CharField(max_length=1024, trim_whitespace=False)
    first = serializers.IntegerField(min_value=1, max_value=10**7)
    last = serializers.IntegerField(min_value=1, max_value=10**7, required=False)
    side = serializers.ChoiceField(["new", "old"], required=False)
    body = serializers.CharField(max_length=4000)


class Approval(Strict):
    """A word of approval. With `sha256` only for a revision of that digest."""

    body = serializers.CharField(required=False, allow_blank=True, default="", max_length=8000)
    anchors = Anchor(many=True, required=False, default=list)
    sha256 = serializers.CharField(required=False, max_length=64)


class Rejection(Strict):
    """A veto, and why. With `sha256` only for a revision of that digest."""

    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)
    anchors = Anchor(many=True, required=False, default=list)
    sha256 = serializers.CharField(required=False, max_length=64)


class ReviewSerializer(StrictModel):
    """What one reviewer said of one revision."""

    class Meta:
        model = PatchReview
        fields = (
            "id", "created_at", "patch", "reviewer", "reviewer_key", "reviewer_name", "verdict", "body", "anchors",
            "for_sha256",
        )  # fmt: skip
        read_only_fields = fields


class OverrideSerializer(StrictModel):
    """A permission for one patch to pass one rule until its end."""

    class Meta:
        model = PolicyOverride
        fields = ("id", "created_at", "patch", "rule", "reason", "granted_by", "granted_name", "expires_at")
        read_only_fields = fields


class Override(Strict):
    """Which rule to set aside for this patch, why, and for how long: 7 days unless told; 0 ends the one that holds."""

    rule = serializers.CharField(max_length=64)
    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)
    expires_after_seconds = serializers.IntegerField(required=False, min_value=0, max_value=10**8)


class RequirementSerializer(serializers.Serializer[Any]):
    """One rule and what it says of the patch."""

    rule = serializers.CharField()
    state = serializers.ChoiceField([state.value for state in State])
    layer = serializers.CharField()
    threshold = serializers.JSONField(allow_null=True)
    findings = serializers.ListField(child=serializers.DictField())
    override = serializers.DictField(allow_null=True)


class JudgementSerializer(serializers.Serializer[Any]):
    """May it land, as far as rules and people say: requirements, risk, reviews, and the one party it waits for."""

    requirements = RequirementSerializer(many=True)
    risk = serializers.DictField()
    reviews = serializers.DictField()
    holder = serializers.DictField(allow_null=True)


class InterdiffSerializer(serializers.Serializer[Any]):
    """What a revision does otherwise than an earlier one."""

    patch = serializers.CharField()
    against = serializers.CharField()
    of_trees = serializers.BooleanField()
    why_not = serializers.CharField(allow_blank=True)
    text = serializers.CharField(allow_blank=True)


REVIEW_NEEDS = {
    "approve": "approver",
    "reject": "approver",
    "reviews": "viewer",
    "comment": "operator",
    "interdiff": "viewer",
    "requirements": "viewer",
    "overrides": "viewer",
    "grant": "admin",
}
"""Who may do what of `ReviewActions`."""


class ReviewActions:
    """The part of a patch's endpoint that is about people's judgement; mixed into an `Endpoint`."""

    @extend_schema(request=Approval, responses={201: ReviewSerializer})
    @action(detail=True, methods=["post"])
    def approve(self: Any, request: Request, id: str) -> Response:
        """Approve this revision. Refuses with `self_review`, `invalid_move`; a program's approval does not count."""
        patch = self.get_object()
        return _given(self, patch, "approve", self.body(Approval))

    @extend_schema(request=Rejection, responses={201: ReviewSerializer})
    @action(detail=True, methods=["post"])
    def reject(self: Any, request: Request, id: str) -> Response:
        """Veto it: it is set aside with you as its owner. Refuses with `reason_required`, `invalid_move`."""
        patch, given = self.get_object(), self.body(Rejection)
        return _given(self, patch, "reject", {"body": given.pop("reason"), **given})

    @extend_schema(responses=ReviewSerializer(many=True))
    @action(detail=True, methods=["get"], filterset_class=None)
    def reviews(self: Any, request: Request, id: str) -> Response:
        """What was said of it, newest first."""
        page = self.paginate_queryset(self.filter_queryset(PatchReview.objects.filter(patch=self.get_object())))
        return self.get_paginated_response(ReviewSerializer(page, many=True).data)  # type: ignore[no-any-return]

    @extend_schema(request=Approval, responses={201: ReviewSerializer})
    @reviews.mapping.post
    def comment(self: Any, request: Request, id: str) -> Response:
        """Comment on it, on the whole or on lines; the next attempt of its task is told. It is no vote."""
        patch, given = self.get_object(), self.body(Approval)
        if not given["body"].strip() and not given["anchors"]:
            raise MissingField("body")
        return _given(self, patch, "comment", given)

    @extend_schema(
        parameters=[OpenApiParameter("against", OpenApiTypes.STR, description="An earlier revision, by its id.")],
        responses=InterdiffSerializer,
    )
    @action(detail=True, methods=["get"])
    def interdiff(self: Any, request: Request, id: str) -> Response:
        """What this revision does otherwise than `against`, by default the one that it replaces."""
        patch = self.get_object()
        named = request.query_params.get("against") or patch.replaces_id
        if not named:
            raise BadQuery("against", "the id of the revision to compare with: this patch replaces none")
        against = self.find(Patch.objects.visible_to(self.principal), named)
        if against is None:
            raise NotFound.of("ledger_entry")
        for one in (patch, against):
            if getattr(one, "content", None) is None:
                raise NotFound.of("patch_content")
        found = reviewing.interdiff(patch, against)
        return Response({"patch": patch.pk, "against": against.pk, **found._asdict()})

    @extend_schema(responses=JudgementSerializer)
    @action(detail=True, methods=["get"])
    def requirements(self: Any, request: Request, id: str) -> Response:
        """What every rule says of it in one of six states, its risk, its reviews, and the one party it waits for."""
        patch = self.get_object()
        standing = reviews_of([patch])[patch.pk]
        return Response(
            {
                "requirements": [one.document() for one in reviewing.requirements(patch)],
                "risk": reviewing.risk(patch).document(),
                "reviews": {
                    "needed": standing.needed,
                    "missing": standing.missing,
                    "approvals": standing.approvals,
                    "vetoes": standing.vetoes,
                },
                "holder": reviewing.holder(patch),
            }
        )

    @extend_schema(responses=OverrideSerializer(many=True))
    @action(detail=True, methods=["get"], filterset_class=None)
    def overrides(self: Any, request: Request, id: str) -> Response:
        """The rules that were set aside for it, newest first; of a rule the newest counts, until its end."""
        page = self.paginate_queryset(self.filter_queryset(PolicyOverride.objects.filter(patch=self.get_object())))
        return self.get_paginated_response(OverrideSerializer(page, many=True).data)  # type: ignore[no-any-return]

    @extend_schema(request=Override, responses={201: OverrideSerializer})
    @overrides.mapping.post
    def grant(self: Any, request: Request, id: str) -> Response:
        """Set one rule aside for this patch, until an end. Refuses with `reason_required`, `invalid_move`,
        `override_not_found`.
        """
        patch, given = self.get_object(), self.body(Override)
        seconds = given.get("expires_after_seconds")
        who = {"by": self.by, "user": self.principal.user}
        if seconds == 0:
            row = patch.overrides.withdraw(patch, given["rule"], reason=given["reason"], **who)
        else:
            life = None if seconds is None else timedelta(seconds=seconds)
            row = reviewing.override(patch, given["rule"], reason=given["reason"], expires_after=life, **who)
        return Response(OverrideSerializer(row).data, 201)


def _given(endpoint: Any, patch: Patch, verdict: str, given: dict[str, Any]) -> Response:
    sha256 = given.pop("sha256", None)
    if sha256 is not None and sha256 != patch.sha256:
        raise InvalidField("sha256", f"this revision has another: {patch.sha256}")
    who = endpoint.principal
    review = patch.reviews.give(patch, verdict, by=endpoint.by, reviewer=who.user, key=who.key, **given)
    return Response(ReviewSerializer(review).data, 201)
