"""The API of the gates: their definitions, every run with its results and log, and what people decide about one."""

from typing import Any

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.request import Request
from rest_framework.response import Response

from gates import bootstrap
from gates.flaky_api import FlakyTestEndpoint, GateFindingSerializer, PresetSerializer
from gates.models import Finding, Gate, GateRun, TestResult
from pipeline.clock import db_now
from pipeline.models import Project
from pipeline.refusals import InvalidField, Refused
from pipeline.rest import (
    DefinitionEndpoint,
    Endpoint,
    Filters,
    Listed,
    Nothing,
    ProjectFilter,
    Reason,
    Router,
    StrictModel,
    find_project,
)

MAX_WORDS = 200
MAX_GATE_SECONDS = 24 * 3600


def texts(**kwargs: Any) -> serializers.ListField:
    """A list of texts, kept as they are: an argument may begin with a blank."""
    child = serializers.CharField(allow_blank=True, trim_whitespace=False, max_length=4096)
    return serializers.ListField(child=child, max_length=MAX_WORDS, **kwargs)


class InvalidGateType(InvalidField):
    """There is no such type of gate."""

    code = "invalid_gate_type"

    def __init__(self, given: str) -> None:
        known = ", ".join(Gate.Type.values)
        Refused.__init__(self, f"Invalid gate_type: {given}; it is one of {known}", field="gate_type")


# -- definitions -------------------------------------------------------------------------------------------------


class GateSerializer(StrictModel):
    """The definition of a check. `gate_version` rises with every change of what is executed or judged."""

    gate_type = serializers.CharField(max_length=64, help_text=f"One of {', '.join(Gate.Type.values)}.")
    applies_to = texts(required=False)
    command = texts(min_length=1)
    env_allow = texts(required=False)
    depends_on = texts(required=False)
    evidence = serializers.DictField(child=serializers.CharField(max_length=255), required=False)
    criteria = serializers.DictField(required=False)
    expected_exit_codes = serializers.ListField(
        child=serializers.IntegerField(min_value=0, max_value=255), required=False, max_length=MAX_WORDS
    )

    class Meta:
        model = Gate
        fields = (
            "id", "version", "created_at", "updated_at", "project", "key", "name", "gate_type", "phase", "workstream",
            "applies_to", "command", "cwd", "env_allow", "evidence", "criteria", "expected_exit_codes", "shards",
            "depends_on", "timeout_seconds", "reruns", "base_tests", "required", "judges", "enabled", "gate_version",
        )  # fmt: skip
        read_only_fields = ("id", "version", "created_at", "updated_at", "gate_version")
        extra_kwargs = {
            "shards": {"min_value": 1, "max_value": 100},
            "timeout_seconds": {"min_value": 1, "max_value": MAX_GATE_SECONDS},
        }

    def validate_gate_type(self, value: str) -> str:
        """A known type; any other has a code of its own, which Django's check of the choices would hide."""
        if value not in Gate.Type.values:
            raise InvalidGateType(value)
        return value

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        """Phase and workstream are of the gate's project."""
        project = attrs.get("project") or self.instance.project
        for name, place in (("phase", lambda row: row), ("workstream", lambda row: row.phase)):
            row = attrs.get(name)
            if row is not None and place(row).project_id != project.pk:
                raise InvalidField(name, f"a {name} of another project")
        return attrs


class GateFilters(Filters):
    """By project, key, type and place."""

    project = ProjectFilter("project")

    class Meta:
        model = Gate
        fields = ("key", "gate_type", "phase", "workstream", "required", "judges", "enabled", "created_at")


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


# -- runs --------------------------------------------------------------------------------------------------------


class Waiver(Reason):
    """Why a run may count as passed although it did not, and until when."""

    expires_at = serializers.DateTimeField(required=False, allow_null=True)


class GateRunSerializer(StrictModel):
    """One execution of a gate against one tree, with what it says of the tree now: passed, failed or unknown."""

    verdict = serializers.CharField(read_only=True)
    needs_person = serializers.BooleanField(read_only=True)

    class Meta:
        model = GateRun
        fields = (
            "id", "version", "created_at", "updated_at", "name", "gate_type", "criteria", "required", "gate",
            "gate_version", "project", "patch", "queue_item", "run", "task", "request", "tree_hash", "base_tree",
            "baseline", "environment", "state", "state_reason", "verdict",
            "needs_person", "command",
            "started_at", "completed_at", "duration_seconds",
            "exit_code", "runner", "seen_at", "sandbox_level", "deadline_at", "total_tests", "passed_tests",
            "failed_tests", "skipped_tests", "flaky_tests", "coverage_percent", "patch_coverage_percent", "parsed",
            "decision_passed", "decision_reason", "decided_by", "decided_at", "verdicts", "error_kind", "skip_reason",
            "skipped_by", "waived_at", "waived_by", "waive_reason", "waiver_expires_at", "retry_of", "shards_seen",
            "evidence", "metadata",
        )  # fmt: skip
        read_only_fields = fields


class TestResultSerializer(StrictModel):
    """What one attempt of one test said."""

    class Meta:
        model = TestResult
        fields = (
            "id", "test_key", "name", "classname", "file", "attempt", "outcome", "duration_seconds", "message", "trace",
        )  # fmt: skip
        read_only_fields = fields


class GateRunFilters(Filters):
    """By state, gate, and what is judged."""

    project = ProjectFilter("project")

    class Meta:
        model = GateRun
        fields = (
            "state", "gate", "gate_type", "patch", "run", "task", "queue_item", "tree_hash", "required", "error_kind",
            "retry_of", "baseline", "created_at",
        )  # fmt: skip


class GateRunEndpoint(Listed, Endpoint):
    """Every run of a gate."""

    queryset = GateRun.objects.defer("output_tail")
    serializer_class = GateRunSerializer
    filterset_class = GateRunFilters
    ordering_fields = ("created_at",)
    heavy = ("criteria", "command", "verdicts", "evidence", "metadata")
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "results": "viewer",
        "findings": "viewer",
        "log": "viewer",
        "skip": "approver",
        "waive": "approver",
        "rerun": "operator",
    }

    @extend_schema(responses=TestResultSerializer(many=True))
    @action(detail=True, methods=["get"], filterset_class=None)
    def results(self, request: Request, id: str) -> Response:
        """What every test said, newest first."""
        rows = TestResult.objects.filter(gate_run=self.get_object())
        page = self.paginate_queryset(self.filter_queryset(rows))
        return self.get_paginated_response(TestResultSerializer(page, many=True).data)

    @extend_schema(responses=GateFindingSerializer(many=True))
    @action(detail=True, methods=["get"], filterset_class=None)
    def findings(self, request: Request, id: str) -> Response:
        """What analysers found, newest first."""
        rows = Finding.objects.filter(gate_run=self.get_object())
        page = self.paginate_queryset(self.filter_queryset(rows))
        return self.get_paginated_response(GateFindingSerializer(page, many=True).data)

    @extend_schema(responses={(200, "text/plain"): OpenApiTypes.STR})
    @action(detail=True, methods=["get"])
    def log(self, request: Request, id: str) -> HttpResponse:
        """The end of its output, as a file that no browser shows."""
        row = self.get_object()
        return HttpResponse(
            row.output_tail.encode(),
            content_type="text/plain; charset=utf-8",
            headers={
                "Content-Disposition": f'attachment; filename="{row.pk}.log"',
                "X-Content-Type-Options": "nosniff",
            },
        )

    @extend_schema(request=Reason, responses=GateRunSerializer)
    @action(detail=True, methods=["post"])
    def skip(self, request: Request, id: str) -> Response:
        """Do without it; a required gate stays unanswered. Refuses with `reason_required`, `invalid_move`."""
        row = self.get_object()
        row.skip(self.body(Reason)["reason"], by=self.by)
        return self.reply(row)

    @extend_schema(request=Waiver, responses=GateRunSerializer)
    @action(detail=True, methods=["post"])
    def waive(self, request: Request, id: str) -> Response:
        """Let it count as passed. Refuses with `reason_required`, `invalid_move`, and an end in the past."""
        row, given = self.get_object(), self.body(Waiver)
        expires_at = given.get("expires_at")
        if expires_at is not None and expires_at <= db_now():
            raise InvalidField("expires_at", "a waiver ends in the future")
        row.waive(given["reason"], by=self.by, expires_at=expires_at)
        return self.reply(row)

    @extend_schema(request=Nothing, responses={201: GateRunSerializer})
    @action(detail=True, methods=["post"])
    def rerun(self, request: Request, id: str) -> Response:
        """A new run of the same gate on the same tree: 201. Refuses with `invalid_move` while this one is open."""
        row = self.get_object()
        self.body(Nothing)
        return self.reply(row.rerun(by=self.by), 201)


router = Router()
router.register("gates", GateEndpoint, basename="gate")
router.register("flaky-tests", FlakyTestEndpoint, basename="flaky-test")
router.register("gate-runs", GateRunEndpoint, basename="gate-run")
urlpatterns = router.urls
