"""What attempts leave behind, over HTTP and to read only: requests, prompts and routing decisions."""

from pipeline.models import ExecutionRequest, PromptInstance, RoutingDecision
from pipeline.rest import Endpoint, Filters, Listed, ProjectFilter, StrictModel


class RequestSerializer(StrictModel):
    """What one attempt was asked to do."""

    class Meta:
        model = ExecutionRequest
        fields = (
            "id", "created_at", "project", "phase", "workstream", "task", "task_kind", "classification",
            "resource_scope", "constraints", "prompt", "description", "input", "tool", "command", "base_commit",
            "routing", "correlation_id", "trace_flags", "created_by", "metadata",
        )  # fmt: skip
        read_only_fields = fields


class RequestFilters(Filters):
    """By what was asked, and for which task."""

    project = ProjectFilter("project")

    class Meta:
        model = ExecutionRequest
        fields = ("phase", "workstream", "task", "task_kind", "tool", "created_at")


class RequestEndpoint(Listed, Endpoint):
    """Execution requests: written once by the claim."""

    queryset = ExecutionRequest.objects.all()
    serializer_class = RequestSerializer
    filterset_class = RequestFilters
    heavy = ("description", "input")
    needs = {"list": "viewer", "retrieve": "viewer"}


class PromptSerializer(StrictModel):
    """What a tool was told."""

    class Meta:
        model = PromptInstance
        fields = (
            "id", "created_at", "template_id", "target_tool", "kind", "sections", "rendering", "text", "sha256",
            "project", "phase", "workstream", "source_app", "requested_by",
        )  # fmt: skip
        read_only_fields = fields


class PromptFilters(Filters):
    """By project, tool and content."""

    project = ProjectFilter("project")

    class Meta:
        model = PromptInstance
        fields = ("phase", "workstream", "target_tool", "kind", "sha256", "created_at")


class PromptEndpoint(Listed, Endpoint):
    """Prompts: written once by the claim; lists leave out their text."""

    queryset = PromptInstance.objects.all()
    serializer_class = PromptSerializer
    filterset_class = PromptFilters
    heavy = ("sections", "text")
    needs = {"list": "viewer", "retrieve": "viewer"}


class DecisionSerializer(StrictModel):
    """Why a task went to a tool."""

    class Meta:
        model = RoutingDecision
        fields = (
            "id", "created_at", "task", "run", "request", "rule", "strategy", "candidates", "inputs", "chosen",
            "reason",
        )  # fmt: skip
        read_only_fields = fields


class DecisionFilters(Filters):
    """By project, run, task and tool."""

    project = ProjectFilter("run__project")

    class Meta:
        model = RoutingDecision
        fields = ("run", "task", "request", "chosen", "strategy", "created_at")


class DecisionEndpoint(Listed, Endpoint):
    """Routing decisions: written once by the claim."""

    queryset = RoutingDecision.objects.all()
    serializer_class = DecisionSerializer
    filterset_class = DecisionFilters
    needs = {"list": "viewer", "retrieve": "viewer"}
