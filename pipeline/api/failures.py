"""Reactions that crashed, over HTTP: what waits for another try, what is dead, and replay."""

from typing import Any

import django_filters
from drf_spectacular.utils import extend_schema
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline.events import FailedReactionQuerySet
from pipeline.models import FailedReaction
from pipeline.rest import Endpoint, Filters, IdFilter, Listed, ProjectFilter, Reason, StrictModel


class FailedReactionSerializer(StrictModel):
    """A reaction that crashed on an event: what it died of, how often, and since when nobody tries any more."""

    class Meta:
        model = FailedReaction
        fields = (
            "id", "version", "created_at", "updated_at", "event_id", "kind", "project", "reaction", "attempts",
            "deaths", "error", "failed_at", "dead_at", "mended_at", "dropped_at",
        )  # fmt: skip
        read_only_fields = fields


class FailedReactionFilters(Filters):
    """By event, kind, reaction and project; `open` is what is neither made good nor dropped, `dead` what nobody tries
    any more, and `dropped` which of that needs nobody.
    """

    event = IdFilter("event_id")
    project = ProjectFilter("project")
    open = django_filters.BooleanFilter(method="of_open")
    dead = django_filters.BooleanFilter("dead_at", lookup_expr="isnull", exclude=True)
    dropped = django_filters.BooleanFilter("dropped_at", lookup_expr="isnull", exclude=True)

    def of_open(self, rows: FailedReactionQuerySet, name: str, value: bool) -> FailedReactionQuerySet:
        """Waiting for its next try, or dead; with false, the others."""
        return rows.open() if value else rows.exclude(pk__in=rows.open().values("pk"))

    class Meta:
        model = FailedReaction
        fields = ("kind", "reaction")


class FailedReactionEndpoint(Listed, Endpoint):
    """Failed reactions: until `mended_at` they wait for their next try or, with `dead_at`, for somebody's
    replay or drop.
    """

    queryset = FailedReaction.objects.select_related("project")
    serializer_class = FailedReactionSerializer
    filterset_class = FailedReactionFilters
    noun = "failed_reaction"
    needs = {"list": "viewer", "retrieve": "viewer", "replay": "operator", "drop": "operator"}

    @extend_schema(request=Reason, responses=FailedReactionSerializer)
    @action(detail=True, methods=["post"])
    def replay(self, request: Request, id: str) -> Response:
        """Have it tried again now, with all its attempts before it; with a reason. Quiet."""
        failure: Any = self.get_object()
        self.must_in(failure.project_id)
        failure.replay(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(failure)

    @extend_schema(request=Reason, responses=FailedReactionSerializer)
    @action(detail=True, methods=["post"])
    def drop(self, request: Request, id: str) -> Response:
        """Take it off the list, untried; with a reason. A replay takes it up again. Quiet."""
        failure: Any = self.get_object()
        self.must_in(failure.project_id)
        failure.drop(by=self.by, reason=self.body(Reason)["reason"])
        return self.reply(failure)
