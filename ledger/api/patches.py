"""The API of patches: they come in, are seen, and are steered one by one."""

import hashlib
from collections.abc import Mapping
from typing import Any

from django.db import transaction
from django.db.models import Q, QuerySet
from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ledger import git, rollback, validation
from ledger.api.bulk import BulkActions
from ledger.api.reviews import REVIEW_NEEDS, ReviewActions
from ledger.diff import DiffRefused
from ledger.models import Patch
from pipeline import events
from pipeline.ids import is_id
from pipeline.models import Project, Run, Task
from pipeline.refusals import InvalidField, MissingField, NotFound, Refused, need_reason
from pipeline.rest import (
    WORKER,
    Endpoint,
    Filters,
    IdField,
    Listed,
    Nothing,
    ProjectFilter,
    ProjectRef,
    Reason,
    Ref,
    Strict,
    StrictModel,
)
from pipeline.rows import in_transaction
from workers import claims
from workers.models import Lease, StaleClaim


class NotTakenIn(Refused):
    """A change that the ledger did not take in. Of its text only the digest and the size are kept, as an event."""

    def __init__(
        self, refusal: Refused, project: Project, diff_text: str, by: events.Actor, lease: Lease | None
    ) -> None:
        super().__init__(str(refusal), code=refusal.code, status=refusal.status, **refusal.parts)
        raw = diff_text.encode()
        self.project, self.by, self.lease = project, by, lease
        self.told = {"code": refusal.code, "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}

    def leave_trace(self) -> None:
        """Record `patch.refused`, in a transaction of its own: the refused one was undone."""
        place = self.lease.correlation() if self.lease else {}
        with in_transaction():
            events.record("patch.refused", self.project, by=self.by, reason=str(self), data=self.told, **place)


class Submission(Strict):
    """A change. A worker's key quotes its live `lease` and `generation`; people name the `project`."""

    lease = IdField(required=False)
    generation = serializers.IntegerField(required=False, min_value=0, max_value=2**31 - 1)
    project = ProjectRef(required=False)
    task = Ref(queryset=Task.objects.select_related("run"), required=False)
    replaces = Ref(queryset=Patch.objects.all(), required=False)
    base_commit = serializers.CharField(required=False, allow_blank=True, default="", max_length=64)
    diff_text = serializers.CharField(allow_blank=True, trim_whitespace=False)
    summary = serializers.CharField(required=False, allow_blank=True, default="", max_length=512)
    issue_ref = serializers.CharField(required=False, allow_blank=True, default="", max_length=200)


class Quarantine(Strict):
    """Why a patch is set aside, and who is to look at it."""

    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)
    owner = serializers.CharField(required=False, max_length=200)


class OidField(serializers.RegexField):
    """The full name of a commit or tree, 40 or 64 hexadecimal digits; may be left out."""

    def __init__(self) -> None:
        super().__init__(r"^([0-9a-f]{40}|[0-9a-f]{64})?$", required=False, allow_blank=True, default="", max_length=64)


class Applied(Strict):
    """Whether somebody else's branch took the change; without success, why not."""

    success = serializers.BooleanField()
    files = serializers.ListField(child=serializers.CharField(max_length=1024), required=False, max_length=300)
    error_code = serializers.RegexField(r"^[a-z0-9_]{1,64}$", required=False)
    message = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)


class Verified(Strict):
    """Whether its tests passed, and of which tree on which commit, as far as known."""

    tests_passed = serializers.BooleanField()
    tree = OidField()
    parent = OidField()  # type: ignore[assignment]  # DRF takes declared fields off the class
    message = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)


class Committed(Strict):
    """Which commit holds the change, and that commit's tree, as far as known."""

    commit_sha = OidField()
    tree = OidField()


class PatchSerializer(StrictModel):
    """A patch without its text, which stands at `diff/`. `came_back_by` is the patch that brought it back after it had
    been rolled back; lists do not tell it.
    """

    came_back_by = serializers.SerializerMethodField()

    class Meta:
        model = Patch
        fields = (
            "id", "ledger_id", "version", "created_at", "updated_at", "project", "phase", "workstream", "run", "task",
            "attempt", "request", "prompt", "custody", "target_branch", "base_commit", "base_tree", "result_tree",
            "tool", "author_user", "author_worker_id", "author_name", "summary", "issue_ref", "metadata", "sha256",
            "files_touched", "line_insertions", "line_deletions", "hunks", "binary_files", "state", "state_reason",
            "committed_at", "format_ok", "scope_ok", "constraints_ok", "tests_ran", "tests_passed",
            "validation_errors", "findings", "policy_snapshot", "attempts", "reapplies", "last_attempt_at",
            "last_error_code", "last_error_message", "applied_files", "candidate_tree", "tested_tree",
            "tested_parent", "landing_commit", "commit_sha", "committed_tree", "quarantine_reason", "quarantined_at",
            "quarantine_owner", "quarantine_expires_at", "replaces", "rollback_of", "came_back_by", "chain_id",
        )  # fmt: skip
        read_only_fields = fields

    def get_came_back_by(self, patch: Patch) -> str | None:
        """The id of the patch by which its content is on the branch again."""
        again = patch.came_back_by()
        return again.pk if again else None


class HistorySerializer(StrictModel):
    """One thing that happened to a patch."""

    class Meta:
        model = events.Event
        fields = (
            "id", "created_at", "kind", "severity", "actor_kind", "actor_name", "on_behalf_of", "before", "after",
            "reason", "message", "data", "request_id",
        )  # fmt: skip
        read_only_fields = fields


class PatchFilters(Filters):
    """By state, place, author and chain."""

    project = ProjectFilter("project")

    class Meta:
        model = Patch
        fields = (
            "state", "phase", "workstream", "run", "task", "attempt", "custody", "target_branch", "tool", "sha256",
            "author_worker_id", "base_commit", "commit_sha", "last_error_code", "chain_id", "replaces", "created_at",
        )  # fmt: skip


class PatchEndpoint(ReviewActions, BulkActions, Listed, Endpoint):
    """The ledger. `id` and `ledger_id` both find a patch; no list loads a diff."""

    queryset = Patch.objects.all()
    serializer_class = PatchSerializer
    filterset_class = PatchFilters
    noun = "ledger_entry"
    ordering_fields = ("created_at",)
    heavy = (
        "metadata", "files_touched", "validation_errors", "findings", "policy_snapshot", "last_error_message",
        "applied_files", "came_back_by",
    )  # fmt: skip
    needs = {
        **REVIEW_NEEDS,
        "list": "viewer",
        "retrieve": "viewer",
        "diff": "viewer",
        "history": "viewer",
        "create": (WORKER, "operator"),
        "validate": "operator",
        "queue": "operator",
        "requeue": "operator",
        "quarantine": "operator",
        "drop": "operator",
        "apply": "operator",
        "verify": "operator",
        "commit": "operator",
        "release": "approver",
        "rollback": "approver",
        "bulk": "operator",
    }

    def find(self, queryset: QuerySet[Any], given: str) -> Patch | None:
        """The patch with this id or ledger id."""
        return queryset.filter(Q(pk=given) | Q(ledger_id=given)).first() if is_id(given) else None

    @extend_schema(request=Submission, responses={201: PatchSerializer, 200: PatchSerializer})
    def create(self, request: Request) -> Response:
        """Submit a change: 201, or 200 with the patch that has the same content on the same base.

        What it `replaces` is dropped at once where it is on its way, and leaves it its task, workstream and phase: a
        `task` that is named beside it lies there. Refuses with the structural codes of a diff,
        `stale_base`, `stale_claim`, such a text is not kept; with `invalid_move` while what it replaces is landing.
        """
        if self.principal.is_worker:
            _needs_lease(request.data)
        given = self.body(Submission)
        lease_id, generation = given.pop("lease", None), given.pop("generation", None)
        if self.principal.is_worker:
            patch, is_new = self._from_worker(lease_id, generation, given)
        else:
            if lease_id is not None or generation is not None:
                raise InvalidField("lease", "only a worker's key quotes a lease")
            patch, is_new = self._from_person(given)
        return self.reply(patch, 201 if is_new else 200, Location=f"{request.path}{patch.pk}/")

    def _from_worker(self, lease_id: str | None, generation: int | None, given: dict[str, Any]) -> tuple[Patch, bool]:
        if lease_id is None or generation is None:
            raise MissingField("generation" if lease_id else "lease")
        with transaction.atomic():
            if given.get("replaces") is not None:
                given["replaces"].lock_queue()  # before the run of the lease: the house's order
            lease = live_lease(self.principal, lease_id, generation)
            by = claims.actor(lease.worker)
            return self._submit(
                lease.task.run.project, given, by=by, lease=lease, attempt=lease.attempt, worker_id=lease.worker_id
            )

    def _from_person(self, given: dict[str, Any]) -> tuple[Patch, bool]:
        task = given.get("task")
        project = given.pop("project", None) or (task and task.run.project)
        if project is None:
            raise MissingField("project")
        if task is not None and task.run.project_id != project.pk:
            raise InvalidField("task", "a task of another project")
        self.must_in(project)
        return self._submit(project, given, by=self.by, user=self.principal.user)

    def _submit(
        self, project: Project, given: Mapping[str, Any], *, by: events.Actor, lease: Lease | None = None, **who: Any
    ) -> tuple[Patch, bool]:
        replaces = given.get("replaces")
        if replaces is not None and replaces.project_id != project.pk:
            raise InvalidField("replaces", "a patch of another project")
        try:
            return Patch.objects.submit(project=project, by=by, **given, **who)
        except (DiffRefused, git.UnknownCommit) as refusal:
            raise NotTakenIn(refusal, project, given["diff_text"], by=by, lease=lease) from refusal

    @extend_schema(responses={(200, "text/x-diff"): OpenApiTypes.STR})
    @action(detail=True, methods=["get"])
    def diff(self, request: Request, id: str) -> HttpResponse:
        """Its text as it came, byte by byte, as a file that no browser shows.

        Of a patch that was refused for secrets, or that nobody has judged yet, each of them reads `[redacted: KIND]`;
        the header `Signalbox-Redacted: true` says so.
        """
        patch = self.get_object()
        text = getattr(patch, "content", None)
        if text is None:
            raise NotFound.of("patch_content")
        shown = validation.shown(patch, text.diff_text)
        told = {"Signalbox-Redacted": "true"} if shown != text.diff_text else {"ETag": f'"{text.sha256}"'}
        return HttpResponse(
            shown.encode(),
            content_type="text/x-diff; charset=utf-8",
            headers={
                "Content-Disposition": f'attachment; filename="{patch.pk}.diff"',
                "X-Content-Type-Options": "nosniff",
                **told,
            },
        )

    @extend_schema(responses=HistorySerializer(many=True))
    @action(detail=True, methods=["get"], filterset_class=None)
    def history(self, request: Request, id: str) -> Response:
        """What happened to it, newest first."""
        told = events.Event.objects.about(self.get_object()).order_by()
        page = self.paginate_queryset(self.filter_queryset(told))
        return self.get_paginated_response(HistorySerializer(page, many=True).data)

    @extend_schema(request=Nothing, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def validate(self, request: Request, id: str) -> Response:
        """Judge it now, instead of when its turn comes. Refuses with `invalid_move` unless created or apply_failed."""
        patch = self.get_object()
        self.body(Nothing)
        patch.note_validation(validation.judge(patch), by=self.by)
        return self.reply(patch)

    @extend_schema(request=Nothing, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def queue(self, request: Request, id: str) -> Response:
        """Give it a place at the tail of its branch's queue, or have it judged again (it is created then) where the
        policy has become stricter. Refuses with `invalid_move`, `validation_incomplete`, `attempts_exhausted`,
        `superseded`, `policy_changed`, `reviews_missing`, `review_veto`.
        """
        return self._queue()

    @extend_schema(request=Nothing, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def requeue(self, request: Request, id: str) -> Response:
        """The same as `queue/`, as people say it of a patch that failed to apply."""
        return self._queue()

    def _queue(self) -> Response:
        patch = self.get_object()
        self.body(Nothing)
        patch.queue(by=self.by)
        return self.reply(patch)

    @extend_schema(request=Quarantine, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def quarantine(self, request: Request, id: str) -> Response:
        """Set it aside. Refuses with `reason_required`, `invalid_move`."""
        patch, given = self.get_object(), self.body(Quarantine)
        patch.quarantine(given.pop("reason"), by=self.by, **given)
        return self.reply(patch)

    @extend_schema(request=Reason, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def release(self, request: Request, id: str) -> Response:
        """Out of quarantine, into the full validation again. Refuses with `reason_required`, `invalid_move`,
        `superseded`.
        """
        patch, reason = self.get_object(), need_reason(self.body(Reason)["reason"])
        patch.release(by=self.by, reason=reason)
        return self.reply(patch)

    @extend_schema(request=Reason, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def drop(self, request: Request, id: str) -> Response:
        """Close it for good. Refuses with `reason_required`, `invalid_move`."""
        patch = self.get_object()
        patch.drop(self.body(Reason)["reason"], by=self.by)
        return self.reply(patch)

    @extend_schema(request=Applied, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def apply(self, request: Request, id: str) -> Response:
        """Recorded custody: say whether the change was applied. Refuses with `invalid_move`, always so in managed
        custody.
        """
        patch, given = self.get_object(), self.body(Applied)
        patch.report_apply(
            by=self.by, success=given["success"], files=given.get("files", ()), code=given.get("error_code", ""),
            message=given["message"],
        )  # fmt: skip
        return self.reply(patch)

    @extend_schema(request=Verified, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def verify(self, request: Request, id: str) -> Response:
        """Recorded custody: say whether its tests passed. Refuses with `invalid_move`, always so in managed custody."""
        patch = self.get_object()
        patch.report_verify(by=self.by, **self.body(Verified))
        return self.reply(patch)

    @extend_schema(request=Committed, responses=PatchSerializer)
    @action(detail=True, methods=["post"])
    def commit(self, request: Request, id: str) -> Response:
        """Recorded custody: say that the branch holds it. Refuses with `invalid_move` (always so in managed custody),
        `tests_not_passed`, `gates_not_satisfied`, `reviews_missing`, `review_veto`, `tree_mismatch`; and with
        `policy_changed` where the policy has become stricter, by which the patch is then judged again.
        """
        patch = self.get_object()
        patch.report_commit(by=self.by, **self.body(Committed))
        return self.reply(patch)

    @extend_schema(request=Reason, responses={200: PatchSerializer, 201: PatchSerializer})
    @action(detail=True, methods=["post"])
    def rollback(self, request: Request, id: str) -> Response:
        """Take it back: 200 with the patch, rolled back, when it was applied or verified; 201 with the patch that
        undoes it when it has landed, 200 when that is under way already.

        Refuses with `reason_required`, `invalid_move`, and `later_patch_depends` with the patches and the lines in the
        way.
        """
        patch, reason = self.get_object(), need_reason(self.body(Reason)["reason"])
        found, is_new = rollback.roll_back(patch, reason, by=self.by)
        if is_new:
            return self.reply(found, 201, Location=reverse_path(request, found))
        return self.reply(found)


def reverse_path(request: Request, patch: Patch) -> str:
    """The address of another patch, seen from the address of a verb of one."""
    return f"{request.path.rsplit('/', 3)[0]}/{patch.pk}/"


def _needs_lease(given: Any) -> None:
    """What a worker's key has to send, told before anything else is looked up: the answer is the same for a project
    that there is and for one that there is not.
    """
    if not isinstance(given, Mapping):
        return
    for name in ("lease", "generation"):
        if given.get(name) is None:
            raise Refused(
                f"Missing required field: {name}. A worker's key submits for the task that its worker holds: claim one "
                "of this project, and quote the lease and its generation",
                code=MissingField.code,
                status=MissingField.status,
                field=name,
            )
    for name in ("project", "task"):
        if name in given:
            raise InvalidField(name, "a worker's patch belongs to the task of its lease")


def live_lease(principal: Any, lease_id: str, generation: int) -> Lease:
    """The live lease of one of this key's own workers, locked after its run, so that it ends before or after, never
    meanwhile. Raises NotFound `lease_not_found`; StaleClaim when it has ended or its task has a newer generation.
    """
    own = Lease.objects.visible_to(principal)
    run_id = own.filter(pk=lease_id).values_list("task__run", flat=True).first()
    if run_id is None:
        raise NotFound.of("lease")
    Run.objects.select_for_update(no_key=True).get(pk=run_id)
    rows = own.select_related("task__run__project", "attempt__run", "attempt__task", "worker__api_key")
    lease = rows.select_for_update(no_key=True, of=("self",)).get(pk=lease_id)
    if not lease.is_live or generation != lease.task.generation or generation != lease.generation:
        raise StaleClaim(generation, lease, claims.actor(lease.worker))
    return lease
