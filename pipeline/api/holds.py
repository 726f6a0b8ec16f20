"""Holds over HTTP: placed and released, always with a reason."""

from collections.abc import Mapping
from typing import Any

import django_filters
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline.ids import is_id
from pipeline.models import Hold, Project, Run, Task, Tool, Workstream
from pipeline.models.hold import stored
from pipeline.refusals import InvalidField, NotFound, need_reason
from pipeline.rest import Endpoint, Filters, Listed, ProjectFilter, Reason, Strict, StrictModel, find_project

# What people place; the other kinds are placed by what they are named after.
PLACED_BY_HAND = ("manual", "question", "approval")
OF_A_PROJECT: Mapping[str, type[Workstream | Run | Task]] = {"workstream": Workstream, "run": Run, "task": Task}


class HoldSerializer(StrictModel):
    """A recorded "pause and ask" over a scope."""

    scope_id = serializers.CharField(source="scope_ref", read_only=True)

    class Meta:
        model = Hold
        fields = (
            "id", "version", "created_at", "updated_at", "scope_kind", "scope_id", "project", "kind", "ref", "state",
            "reason", "holder_kind", "holder", "since", "until", "question", "answer", "released_at", "released_by",
            "release_cause", "suggested_action",
        )  # fmt: skip
        read_only_fields = fields


class HoldRequest(Strict):
    """What to pause, and why. `scope_id` is an id, or the key of a project, tool or account."""

    scope_kind = serializers.ChoiceField(choices=[kind for kind in Hold.Scope.choices if kind[0] != "worker"])
    scope_id = serializers.CharField(required=False, allow_blank=True, default="", max_length=64)
    kind = serializers.ChoiceField(choices=PLACED_BY_HAND, required=False, default="manual")
    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)
    until = serializers.DateTimeField(required=False, allow_null=True, default=None)
    question = serializers.DictField(required=False, allow_null=True, default=None)
    suggested_action = serializers.DictField(required=False, allow_null=True, default=None)


class Release(Reason):
    """Why the pause ends, and what was decided."""

    answer = serializers.JSONField(required=False, allow_null=True, default=None)


class HoldFilters(Filters):
    """By scope, kind and state."""

    project = ProjectFilter("project")
    scope_id = django_filters.CharFilter(method="of_scope")

    class Meta:
        model = Hold
        fields = ("scope_kind", "kind", "state", "ref", "created_at")

    def of_scope(self, queryset: QuerySet[Hold], name: str, value: str) -> QuerySet[Hold]:
        """Over the row with this id, or the tool or account with this key."""
        return queryset.filter(scope_id=stored(value))


class HoldEndpoint(Listed, Endpoint):
    """Holds: POST places one; release ends it."""

    queryset = Hold.objects.select_related("project")
    serializer_class = HoldSerializer
    filterset_class = HoldFilters
    ordering_fields = ("created_at", "since")
    needs = {"list": "viewer", "retrieve": "viewer", "create": "operator", "release": "approver"}

    @extend_schema(request=HoldRequest, responses={201: HoldSerializer, 200: HoldSerializer})
    def create(self, request: Request) -> Response:
        """Pause everything in the scope: 201. While the same hold stands already: 200 with it."""
        given = self.body(HoldRequest)
        project, scope_id = self._scope(given["scope_kind"], given["scope_id"])
        self.must_in(project)
        scope = {"scope_kind": given["scope_kind"], "scope_id": stored(scope_id)}
        stands = Hold.objects.active().filter(**scope, kind=given["kind"], ref="").exists()
        hold = Hold.objects.place(
            given["scope_kind"],
            scope_id,
            reason=given["reason"],
            by=self.by,
            kind=given["kind"],
            holder=self.by.name,
            until=given["until"],
            project=project,
            question=given["question"],
            suggested_action=given["suggested_action"],
        )
        return self.reply(hold, 200 if stands else 201, Location=f"{request.path}{hold.pk}/")

    def _scope(self, kind: str, given: str) -> tuple[Project | None, str]:
        """The project of a scope (None: the whole installation) and the id that the hold keeps. Raises NotFound."""
        if kind == "installation":
            return None, ""
        if not given:
            raise InvalidField("scope_id", f"which {kind}?", code="missing_required_field")
        if kind == "project":
            project = find_project(Project.objects.visible_to(self.principal), given)
            return project, project.pk
        if kind in OF_A_PROJECT:
            row: Any = None
            if is_id(given):
                row = OF_A_PROJECT[kind].objects.visible_to(self.principal).filter(pk=given).first()
            if row is None:
                raise NotFound.of(kind, given[:80])
            return Project.objects.get(pk=row.correlation()["project_id"]), row.pk
        if kind == "tool" and not Tool.objects.filter(key=given).exists():
            raise NotFound.of("tool", given[:80])
        return None, given

    @extend_schema(request=Release, responses=HoldSerializer)
    @action(detail=True, methods=["post"])
    def release(self, request: Request, id: str) -> Response:
        """End the pause, with a reason and, for a question, the answer. Quiet."""
        hold, given = self.get_object(), self.body(Release)
        hold.release(by=self.by, reason=need_reason(given["reason"]), answer=given["answer"])
        return self.reply(hold)
