"""The API of verbs for many patches at once: what a filter finds, what would be done, what was done."""

from collections.abc import Mapping
from typing import Any

from drf_spectacular.utils import PolymorphicProxySerializer, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ledger import bulk, rollback
from ledger.models import Patch
from ledger.rollback import Wanted
from pipeline.refusals import InvalidField, need_reason
from pipeline.rest import IdField, ProjectRef, Strict


class Chosen(Strict):
    """Which patches of one project's branch: by who or what made them, in which run, by id, and when they landed (for
    a rollback) or were submitted (for any other verb, which may also ask for a `state`).
    """

    project = ProjectRef()
    target_branch = serializers.CharField(required=False, allow_blank=True, default="", max_length=255)
    worker = serializers.CharField(required=False, allow_blank=True, default="", max_length=200)
    tool = serializers.CharField(required=False, allow_blank=True, default="", max_length=64)
    model = serializers.CharField(required=False, allow_blank=True, default="", max_length=100)
    run = IdField(required=False)
    since = serializers.DateTimeField(required=False)
    until = serializers.DateTimeField(required=False)
    patches = serializers.ListField(child=IdField(), required=False, max_length=bulk.MOST)
    state = serializers.ChoiceField(choices=Patch.State.choices, required=False, allow_blank=True, default="")


class Bulk(Strict):
    """One verb for many patches. `dry_run` tells what would be done; `partial` does what can be done, and only that."""

    verb = serializers.ChoiceField(choices=["rollback", *bulk.VERBS])
    filter = Chosen()
    dry_run = serializers.BooleanField(required=False, default=True)
    partial = serializers.BooleanField(required=False, default=False)  # type: ignore[assignment]  # as above
    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)


class HunkSerializer(Strict):
    """Lines that landed later, where a patch to be taken back had changed them."""

    path = serializers.CharField()
    start = serializers.IntegerField()
    lines = serializers.IntegerField()
    commit = serializers.CharField()
    patch = serializers.CharField()


class RewindRefusalSerializer(Strict):
    """Why the reverse of a patch would be refused."""

    code = serializers.CharField()
    message = serializers.CharField()


class RewindObjectionSerializer(Strict):
    """What the policy has against a reverse; it waits until that rule is overridden for it."""

    code = serializers.CharField()
    path = serializers.CharField(allow_null=True)
    message = serializers.CharField()


class RewindStepSerializer(Strict):
    """What is to be done about one patch."""

    patch = serializers.CharField()
    summary = serializers.CharField()
    commit = serializers.CharField()
    outcome = serializers.ChoiceField(
        choices=["alone", "after_others", "in_the_way", "nothing_left", "refused", "under_way"]
    )
    after = serializers.ListField(child=serializers.CharField())
    later = serializers.ListField(child=serializers.CharField())
    in_the_way = HunkSerializer(many=True)
    reverse = serializers.CharField(allow_null=True)
    refusal = RewindRefusalSerializer(allow_null=True)
    objections = RewindObjectionSerializer(many=True)


class RewindLeftOutSerializer(Strict):
    """A patch that the filter finds and that stays as it is, and why; `because_of` is the patch that it undoes."""

    patch = serializers.CharField()
    summary = serializers.CharField()
    code = serializers.ChoiceField(choices=["undone_already", "brings_back", "not_landed"])
    because_of = serializers.CharField(allow_null=True)
    reason = serializers.CharField()


class RewindPlanSerializer(Strict):
    """The reverses of a set of patches, newest first, each on what those before it leave; and what is left out."""

    project = serializers.CharField()
    target_branch = serializers.CharField()
    head = serializers.CharField()
    count = serializers.IntegerField()
    possible = serializers.IntegerField()
    steps = RewindStepSerializer(many=True)
    left_out = RewindLeftOutSerializer(many=True)
    dry_run = serializers.BooleanField()
    reverses = serializers.ListField(child=serializers.CharField())


class BulkResultSerializer(Strict):
    """What became, or would become, of one patch: done, or the code and the words of the refusal."""

    patch = serializers.CharField()
    state = serializers.CharField()
    done = serializers.BooleanField()
    code = serializers.CharField(allow_blank=True)
    message = serializers.CharField(allow_blank=True)


class BulkOutcomeSerializer(Strict):
    """What a verb did to many patches, oldest first; nothing unless `written`."""

    verb = serializers.CharField()
    dry_run = serializers.BooleanField()
    written = serializers.BooleanField()
    count = serializers.IntegerField()
    done = serializers.IntegerField()
    refused = serializers.IntegerField()
    results = BulkResultSerializer(many=True)


class BulkActions:
    """The part of a patch's endpoint that is about many; mixed into an `Endpoint`."""

    @extend_schema(
        request=Bulk,
        responses=PolymorphicProxySerializer("PatchBulk", [BulkOutcomeSerializer, RewindPlanSerializer], None),
    )
    @action(detail=False, methods=["post"], filterset_class=None)
    def bulk(self: Any, request: Request) -> Response:
        """One verb for every patch that the filter finds. Unless `dry_run` is false, it is only told what would be.

        `rollback` (role approver) takes back what has landed, and answers the plan: refuses with `reason_required`, and
        `later_patch_depends` (or the `refusal` of its step) when one of them cannot be taken back and `partial` is not
        said; then nothing is done. The other verbs
        (`requeue`, `quarantine`, `drop`; `release` as approver) answer a result for each patch; when one refuses,
        nothing is written unless `partial` says to leave it out.
        """
        given = self.body(Bulk)
        chosen = given["filter"]
        state, branch, patches = chosen.pop("state"), chosen.pop("target_branch"), tuple(chosen.pop("patches", ()))
        self.must_in(chosen["project"])
        wanted = Wanted(branch=branch, patches=patches, **chosen)
        if given["verb"] != "rollback":
            each: Response = self._each(given, wanted, state)
            return each
        self.principal.must("approver", wanted.project)
        if state not in ("", Patch.State.COMMITTED):
            raise InvalidField("filter.state", "only what is committed is rolled back together")
        reason = given["reason"] if given["dry_run"] else need_reason(given["reason"])
        plan = rollback.plan(wanted)
        reverses = [] if given["dry_run"] else rollback.carry_out(plan, reason, by=self.by, partial=given["partial"])
        return Response(
            {**plan.document(), "dry_run": given["dry_run"], "reverses": [reverse.pk for reverse in reverses]}
        )

    def _each(self: Any, given: Mapping[str, Any], wanted: Wanted, state: str) -> Response:
        self.principal.must(bulk.VERBS[given["verb"]].role, wanted.project)
        if not (state or wanted.says_which):
            raise InvalidField(
                "filter", "say which patches: by state, worker, tool, model, run, since, until or patches"
            )
        rows = Patch.objects.of(wanted.project)
        if wanted.branch:
            rows = rows.filter(target_branch=wanted.branch)
        if state:
            rows = rows.filter(state=state)
        found = bulk.chosen(wanted.narrowed(rows, "created_at"))
        told = {"by": self.by, "dry_run": given["dry_run"], "partial": given["partial"]}
        outcome = bulk.carry_out(given["verb"], found, given["reason"], **told)
        return Response(
            {
                "verb": given["verb"],
                "dry_run": given["dry_run"],
                "written": outcome.written,
                "count": len(outcome.results),
                "done": outcome.done,
                "refused": len(outcome.refused),
                "results": [one.document() for one in outcome.results],
            }
        )
