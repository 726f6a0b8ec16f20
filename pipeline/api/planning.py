"""What people plan, over HTTP: projects, phases, workstreams and tools."""

from collections.abc import Mapping
from typing import Any

from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline.models import Phase, Project, Tool, Workstream
from pipeline.refusals import InvalidField, NotFound
from pipeline.rest import INSTALLATION, DefinitionEndpoint, Filters, ProjectFilter, StrictModel, find_project
from pipeline.schedule import CONCURRENCY

MOST_PARALLEL = 10_000


def texts() -> serializers.ListField:
    """A list of texts that may be left out."""
    return serializers.ListField(child=serializers.CharField(max_length=500), required=False)


def mapping() -> serializers.DictField:
    """A JSON object that may be left out; the model's rules look into it."""
    return serializers.DictField(required=False)


class ProjectSerializer(StrictModel):
    """One repository under our care, and the rules that hold over it."""

    profile = mapping()

    class Meta:
        model = Project
        fields = (
            "id", "version", "created_at", "updated_at", "key", "name", "repository_url", "default_branch", "custody",
            "domain", "profile", "currency", "sandbox_level_min", "error_phase", "archived_at",
        )  # fmt: skip

    def validate_error_phase(self, phase: Phase | None) -> Phase | None:
        """The error pipeline goes to a phase of this very project."""
        if phase is not None and (self.instance is None or phase.project_id != self.instance.pk):
            raise InvalidField("error_phase", "not a phase of this project")
        return phase


class ProjectFilters(Filters):
    """By what a project is."""

    class Meta:
        model = Project
        fields = ("key", "custody", "domain", "created_at")


class ProjectEndpoint(DefinitionEndpoint):
    """Projects, by key or id. Only an admin of the installation makes one; its own admins edit it."""

    queryset = Project.objects.all()
    serializer_class = ProjectSerializer
    filterset_class = ProjectFilters
    ordering_fields = ("key", "name", "created_at")
    fixed = ("key",)
    needs = {**DefinitionEndpoint.needs, "create": INSTALLATION}

    def find(self, queryset: QuerySet[Any], given: str) -> Any:
        """By key or id."""
        try:
            return find_project(queryset, given)
        except NotFound:
            return None


class PhaseSerializer(StrictModel):
    """A stage of a project: its scope, constraints and acceptance bind every workstream in it."""

    depends_on = texts()
    resource_scope = mapping()
    constraints = mapping()
    acceptance = mapping()
    allowed_tools = texts()
    disallowed_tools = texts()

    class Meta:
        model = Phase
        fields = (
            "id", "version", "created_at", "updated_at", "project", "key", "name", "category", "sequence", "depends_on",
            "resource_scope", "constraints", "acceptance", "allowed_tools", "disallowed_tools", "is_error_phase",
        )  # fmt: skip


class PhaseFilters(Filters):
    """By project and key."""

    project = ProjectFilter("project")

    class Meta:
        model = Phase
        fields = ("key", "category", "is_error_phase", "created_at")


class PhaseEndpoint(DefinitionEndpoint):
    """Phases of a project."""

    queryset = Phase.objects.select_related("project")
    serializer_class = PhaseSerializer
    filterset_class = PhaseFilters
    ordering_fields = ("key", "sequence", "created_at")


class WorkstreamSerializer(StrictModel):
    """An ordered body of work inside a phase: tasks with their dependencies, executed as a whole by a run."""

    tasks = serializers.ListField(child=serializers.DictField(), max_length=1000)
    tags = texts()
    depends_on = texts()
    resource_scope = mapping()
    constraints = mapping()
    acceptance = mapping()
    concurrency = mapping()
    error_handling = mapping()

    class Meta:
        model = Workstream
        fields = (
            "id", "version", "created_at", "updated_at", "phase", "key", "name", "objective", "tasks", "description",
            "category", "tags", "depends_on", "resource_scope", "constraints", "acceptance", "concurrency",
            "error_handling", "enabled", "revision",
        )  # fmt: skip

    def validate_concurrency(self, given: dict[str, Any]) -> dict[str, Any]:
        """A known mode, and a whole number of tasks at once."""
        if given.get("mode", "parallel") not in CONCURRENCY:
            raise InvalidField("concurrency", f"mode is one of {', '.join(CONCURRENCY)}")
        most = given.get("max_parallel")
        if most is not None and (type(most) is not int or not 1 <= most <= MOST_PARALLEL):
            raise InvalidField("concurrency", f"max_parallel is a whole number from 1 to {MOST_PARALLEL}")
        return given


class WorkstreamFilters(Filters):
    """By project, phase and key."""

    project = ProjectFilter("phase__project")

    class Meta:
        model = Workstream
        fields = ("phase", "key", "category", "enabled", "created_at")


class FindingSerializer(serializers.Serializer[Any]):
    """One reason why a plan cannot work."""

    code = serializers.CharField()
    message = serializers.CharField()
    tasks = serializers.ListField(child=serializers.CharField())


class PlanSerializer(serializers.Serializer[Any]):
    """What a run of the workstream would do: levels that run side by side, the longest chain, what it would take."""

    ok = serializers.BooleanField()
    findings = FindingSerializer(many=True)
    levels = serializers.ListField(child=serializers.ListField(child=serializers.CharField()))
    widths = serializers.ListField(child=serializers.IntegerField())
    critical_path = serializers.ListField(child=serializers.CharField())
    slack = serializers.DictField(child=serializers.FloatField())
    estimated_seconds = serializers.FloatField()
    estimated_amount = serializers.DecimalField(max_digits=18, decimal_places=6)
    unestimated = serializers.ListField(child=serializers.CharField())


class WorkstreamEndpoint(DefinitionEndpoint):
    """Workstreams of a phase, and the dry run of their plans."""

    queryset = Workstream.objects.select_related("phase__project")
    serializer_class = WorkstreamSerializer
    filterset_class = WorkstreamFilters
    ordering_fields = ("key", "created_at")
    fixed = ("phase",)
    needs = {**DefinitionEndpoint.needs, "plan": "viewer"}

    def project_for(self, fields: Mapping[str, Any]) -> Project | str | None:
        """The phase's."""
        return str(fields["phase"].project_id)

    @extend_schema(responses=PlanSerializer)
    @action(detail=True, methods=["get"])
    def plan(self, request: Request, id: str) -> Response:
        """The plan check as a dry run, which executes nothing; what is wrong stands in `findings`."""
        plan = self.get_object().plan()
        document = PlanSerializer(
            {
                "ok": plan.ok,
                "findings": [finding.document() for finding in plan.findings],
                "levels": plan.levels,
                "widths": plan.widths,
                "critical_path": plan.critical_path,
                "slack": dict(plan.slack),
                "estimated_seconds": plan.estimated_seconds,
                "estimated_amount": plan.estimated_amount,
                "unestimated": plan.unestimated,
            }
        )
        return Response(document.data)


class ToolSerializer(StrictModel):
    """A configured command-line agent, validator or analyser."""

    command = serializers.ListField(child=serializers.CharField(trim_whitespace=False), min_length=1)
    capabilities = serializers.DictField()
    env_allow = texts()

    class Meta:
        model = Tool
        fields = (
            "id", "version", "created_at", "updated_at", "key", "kind", "adapter", "command", "capabilities",
            "max_parallel", "timeout_seconds", "safety_tier", "model", "account", "priced", "order", "enabled",
            "env_allow",
        )  # fmt: skip


class ToolFilters(Filters):
    """By what a tool is."""

    class Meta:
        model = Tool
        fields = ("key", "kind", "adapter", "account", "enabled")


class ToolEndpoint(DefinitionEndpoint):
    """Tools belong to the installation: everybody reads them, its admin edits them."""

    queryset = Tool.objects.all()
    serializer_class = ToolSerializer
    filterset_class = ToolFilters
    ordering_fields = ("key", "order", "created_at")
    fixed = ()
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "create": INSTALLATION,
        "partial_update": INSTALLATION,
        "destroy": INSTALLATION,
    }
