"""The API of policies: kept, tried on what came before, and explained for a place."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from ledger import reviewing
from ledger.models import PatchPolicy
from pipeline.ids import is_id
from pipeline.models import Phase, Project, Task, Workstream
from pipeline.refusals import InvalidField, MissingField, NotFound
from pipeline.rest import BadQuery, DefinitionEndpoint, Filters, ProjectFilter, StrictModel, find_project

REPLAYED = 1_000
"""How many patches a policy is tried on unless told."""


class PolicySerializer(StrictModel):
    """One layer of what a patch may be: `level` says over what, and the field of that name is its target."""

    constraints = serializers.DictField(required=False)

    class Meta:
        model = PatchPolicy
        fields = (
            "id", "version", "created_at", "updated_at", "level", "project", "phase", "workstream", "task", "enabled",
            "constraints",
        )  # fmt: skip
        read_only_fields = ("id", "version", "created_at", "updated_at")

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Exactly the target of its level is named."""
        if self.instance is None:
            for name in ("project", "phase", "workstream", "task"):
                wanted = attrs["level"] == name
                if wanted and attrs.get(name) is None:
                    raise MissingField(name)
                if not wanted and attrs.get(name) is not None:
                    raise InvalidField(name, f"a policy of level {attrs['level']} has no {name}")
        return attrs


class EffectiveSerializer(serializers.Serializer[Any]):
    """The effective policy of a place: for every constraint its value and the layer that set it."""

    project = serializers.CharField()
    values = serializers.DictField()
    policies = serializers.ListField(child=serializers.CharField())


class PolicyFilters(Filters):
    """By level and target."""

    project = ProjectFilter("project")

    class Meta:
        model = PatchPolicy
        fields = ("level", "phase", "workstream", "task", "enabled")


class PolicyEndpoint(DefinitionEndpoint):
    """Patch policies. Those of the installation are its admin's."""

    queryset = PatchPolicy.objects.select_related(
        "project", "phase__project", "workstream__phase__project", "task__run__phase__project", "task__run__workstream"
    )
    serializer_class = PolicySerializer
    filterset_class = PolicyFilters
    fixed = ("level", "project", "phase", "workstream", "task")
    needs = {**DefinitionEndpoint.needs, "replay": "viewer", "of_project": "viewer"}
    other_parameters: ClassVar[Sequence[str]] = ("phase", "workstream", "task", "last")

    def project_for(self, fields: Mapping[str, Any]) -> Project | None:
        """The project in which its target lies."""
        return PatchPolicy(**fields).place()[0]

    @extend_schema(
        parameters=[OpenApiParameter("last", OpenApiTypes.INT, description="How many patches to look at.")],
        responses=OpenApiTypes.OBJECT,
    )
    @action(detail=True, methods=["get"])
    def replay(self, request: Request, id: str) -> Response:
        """What this policy alone would have refused of the last 1,000 patches in its place; nothing is written. Save it
        with `enabled: false` and try it out before it holds.
        """
        row, most = self.get_object(), reviewing.most_replayed()
        for name in request.query_params:
            if name != "last":
                raise BadQuery(name, "unknown parameter; known is last", code="unknown_filter")
        given = request.query_params.get("last", str(REPLAYED))
        if not re.fullmatch(r"[0-9]{1,6}", given, re.ASCII) or not 1 <= int(given) <= most:
            raise BadQuery("last", f"a whole number from 1 to {most}, not “{given[:80]}”")
        return Response(reviewing.replay(row, int(given)))

    @extend_schema(
        operation_id="projects_policy",
        parameters=[OpenApiParameter(name, OpenApiTypes.STR) for name in ("phase", "workstream", "task")],
        responses=EffectiveSerializer,
    )
    def of_project(self, request: Request, project: str) -> Response:
        """The effective policy of a project, or of a phase, workstream or task in it: each value with its layer."""
        row = find_project(Project.objects.visible_to(self.principal), project)
        place = self._place(request, row)
        effective = PatchPolicy.objects.effective(row, *place)
        policies = [one.pk for one in PatchPolicy.objects.covering(row, *place)]
        return Response({"project": row.pk, "values": reviewing.explain(effective), "policies": policies})

    def _place(self, request: Request, project: Project) -> tuple[Phase | None, Workstream | None, Task | None]:
        for name in request.query_params:
            if name not in ("phase", "workstream", "task"):
                raise BadQuery(name, "unknown parameter; known are phase, workstream, task", code="unknown_filter")
        return place_in(project, request.query_params)


def place_in(project: Project, given: Any) -> tuple[Phase | None, Workstream | None, Task | None]:
    """The phase, workstream and task that `given` names by id, the narrowest of them with what it lies in.

    Raises BadQuery for what is no id, NotFound for what is not in the project.
    """
    paths: dict[str, tuple[Any, str]] = {
        "task": (Task.objects.select_related("run__workstream__phase", "run__phase"), "run__project"),
        "workstream": (Workstream.objects.select_related("phase"), "phase__project"),
        "phase": (Phase.objects.all(), "project"),
    }
    for name, (rows, path) in paths.items():
        if pk := given.get(name):
            if not is_id(pk):
                raise BadQuery(name, "not an id: 26 characters", code="invalid_id")
            row = rows.filter(pk=pk, **{path: project}).first()
            if row is None:
                raise NotFound.of(name)
            if name == "task":
                return row.run.phase, row.run.workstream, row
            return (row.phase, row, None) if name == "workstream" else (row, None, None)
    return None, None, None
