"""The API of merge queues: seen, paused and resumed."""

from typing import Any

from django.db.models import Q
from drf_spectacular.utils import extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ledger.models import MergeQueue, QueueItem
from pipeline.ids import PATTERN, is_id
from pipeline.refusals import NotFound
from pipeline.rest import Endpoint, Filters, Listed, ProjectFilter, Reason, StrictModel

SHOWN_ITEMS = 200
"""How many live items the detail of a queue holds; the window is far smaller."""


class QueueItemSerializer(StrictModel):
    """One patch's place in a queue."""

    class Meta:
        model = QueueItem
        fields = (
            "id", "version", "position", "patch", "ahead", "state", "base_commit", "candidate_commit",
            "candidate_tree", "builds", "failing_code", "failing_reason", "culprit", "restarts", "restart_reason",
            "created_at", "updated_at",
        )  # fmt: skip
        read_only_fields = fields


class MergeQueueSerializer(StrictModel):
    """A queue; its detail also holds the live items, head first."""

    items = serializers.SerializerMethodField()

    class Meta:
        model = MergeQueue
        fields = (
            "id", "version", "created_at", "updated_at", "project", "target_branch", "head_commit", "state",
            "window_size", "window_floor", "window_ceiling", "head_limit_seconds", "blocked_reason", "blocked_until",
            "blocked_tries", "items",
        )  # fmt: skip
        read_only_fields = fields

    @extend_schema_field(QueueItemSerializer(many=True))
    def get_items(self, row: MergeQueue) -> list[dict[str, Any]]:
        """The first 200 live items."""
        return list(QueueItemSerializer(QueueItem.objects.live().filter(queue=row)[:SHOWN_ITEMS], many=True).data)


class MergeQueueFilters(Filters):
    """By project, branch and state."""

    project = ProjectFilter("project")

    class Meta:
        model = MergeQueue
        fields = ("target_branch", "state")


class MergeQueueEndpoint(Listed, Endpoint):
    """The queues in which patches land."""

    queryset = MergeQueue.objects.all()
    serializer_class = MergeQueueSerializer
    filterset_class = MergeQueueFilters
    heavy = ("items",)
    lookup_value_regex = PATTERN.pattern
    needs = {"list": "viewer", "retrieve": "viewer", "of_branch": "viewer", "pause": "operator", "resume": "operator"}

    @extend_schema(operation_id="merge_queues_of_branch", responses=MergeQueueSerializer)
    def of_branch(self, request: Request, project: str, branch: str) -> Response:
        """The queue of a branch, whose name may hold slashes, of a project by its key or id."""
        named = Q(project=project) if is_id(project) else Q(project__key=project)
        row = self.get_queryset().filter(named, target_branch=branch).first()
        if row is None:
            raise NotFound.of("merge_queue")
        return self.reply(row)

    @extend_schema(request=Reason, responses=MergeQueueSerializer)
    @action(detail=True, methods=["post"])
    def pause(self, request: Request, id: str) -> Response:
        """Let it build and land nothing."""
        row = self.get_object()
        row.pause(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(row)

    @extend_schema(request=Reason, responses=MergeQueueSerializer)
    @action(detail=True, methods=["post"])
    def resume(self, request: Request, id: str) -> Response:
        """Let it go on."""
        row = self.get_object()
        row.resume(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(row)
