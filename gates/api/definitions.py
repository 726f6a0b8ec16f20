"""The API of gates: their definitions, and proposals of them for a project."""

from typing import Any

from django.db import models
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from gates import bootstrap
from gates.api.fields import Whole, codes, texts
from gates.definition import MAX_GATE_SECONDS, MAX_PATH_CHARS, MAX_SHARDS
from gates.models import Gate
from pipeline.models import Project
from pipeline.refusals import InvalidField, MissingField, Refused
from pipeline.rest import DefinitionEndpoint, Filters, ProjectFilter, StrictModel, find_project


class InvalidGateType(InvalidField):
    """There is no such type of gate."""

    code = "invalid_gate_type"

    def __init__(self, given: str) -> None:
        known = ", ".join(Gate.Type.values)
        Refused.__init__(self, f"Invalid gate_type: {given}; it is one of {known}", field="gate_type")


class GateSerializer(StrictModel):
    """The definition of a check. `gate_version` rises with every change of what is executed or judged."""

    serializer_field_mapping = {
        **StrictModel.serializer_field_mapping,
        models.PositiveIntegerField: Whole,
        models.PositiveSmallIntegerField: Whole,
    }
    gate_type = serializers.CharField(max_length=64, help_text=f"One of {', '.join(Gate.Type.values)}.")
    applies_to = texts(required=False)
    command = texts(required=False)
    env_allow = texts(required=False)
    caches = texts(required=False)
    resources = serializers.DictField(child=Whole(), required=False)
    depends_on = texts(required=False)
    evidence = serializers.DictField(child=serializers.CharField(max_length=MAX_PATH_CHARS), required=False)
    criteria = serializers.DictField(required=False)
    expected_exit_codes = codes()
    finding_exit_codes = codes()

    class Meta:
        model = Gate
        fields = (
            "id", "version", "created_at", "updated_at", "project", "key", "name", "gate_type", "phase", "workstream",
            "applies_to", "command", "cwd", "env_allow", "evidence", "criteria", "expected_exit_codes",
            "finding_exit_codes", "shards", "depends_on", "timeout_seconds", "reruns", "base_tests",
            "sandbox_level_min", "resources", "caches", "external", "required", "judges", "enabled", "gate_version",
        )  # fmt: skip
        read_only_fields = ("id", "version", "created_at", "updated_at", "gate_version")
        extra_kwargs = {
            "shards": {"min_value": 1, "max_value": MAX_SHARDS},
            "timeout_seconds": {"min_value": 1, "max_value": MAX_GATE_SECONDS},
            "sandbox_level_min": {"min_value": 1, "max_value": 3},
            "judges": {"help_text": "This version runs gates for patches only: any other value is refused."},
        }

    def validate_gate_type(self, value: str) -> str:
        """A known type; any other has a code of its own, which Django's check of the choices would hide."""
        if value not in Gate.Type.values:
            raise InvalidGateType(value)
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Phase and workstream are of the gate's project; what we are to run has a command."""
        if self.instance is None and "command" not in attrs and not attrs.get("external"):
            raise MissingField("command")
        project = attrs["project"] if self.instance is None else attrs.get("project") or self.instance.project
        phase, workstream = attrs.get("phase"), attrs.get("workstream")
        if phase is not None and phase.project_id != project.pk:
            raise InvalidField("phase", "a phase of another project")
        if workstream is not None and workstream.phase.project_id != project.pk:
            raise InvalidField("workstream", "a workstream of another project")
        return attrs


class PresetSerializer(serializers.Serializer[Any]):
    """A gate that suits the project's files, as it would be made; `why` says what speaks for it."""

    key = serializers.CharField()
    name = serializers.CharField()
    gate_type = serializers.CharField()
    command = serializers.ListField(child=serializers.CharField())
    evidence = serializers.DictField(child=serializers.CharField())
    criteria = serializers.DictField()
    why = serializers.CharField()
    note = serializers.CharField(allow_blank=True)


class GateFilters(Filters):
    """By project, key, type and place."""

    project = ProjectFilter("project")

    class Meta:
        model = Gate
        fields = ("key", "gate_type", "phase", "workstream", "required", "judges", "enabled", "external", "created_at")


class GateEndpoint(DefinitionEndpoint):
    """The gates of projects."""

    queryset = Gate.objects.select_related("project")
    serializer_class = GateSerializer
    filterset_class = GateFilters
    ordering_fields = ("key", "created_at")
    needs = {**DefinitionEndpoint.needs, "presets": "viewer"}

    @extend_schema(responses=PresetSerializer(many=True))
    @action(
        detail=False,
        methods=["get"],
        url_path="presets/(?P<project>[^/]+)",
        filterset_class=None,
        pagination_class=None,
    )
    def presets(self, request: Request, project: str) -> Response:
        """Gates that suit the files of the project's branch (key or id) and that it does not have; nothing is saved."""
        found = find_project(Project.objects.visible_to(self.principal), project)
        return Response(PresetSerializer(bootstrap.proposals(found), many=True).data)
