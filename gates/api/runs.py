"""The API of gate runs: their results and logs, what people decide about one, and what a CI system reports."""

from collections.abc import Iterator
from typing import Any

from django.http import HttpResponse, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter, extend_schema, extend_schema_field
from rest_framework import serializers
from rest_framework.decorators import action
from rest_framework.exceptions import MethodNotAllowed
from rest_framework.parsers import BaseParser
from rest_framework.request import Request
from rest_framework.response import Response

from gates import external, live
from gates.api.fields import Whole, texts
from gates.definition import MAX_SHARDS
from gates.evidence import KINDS, MAX_BYTES
from gates.models import Finding, Gate, GateRun, TestResult
from ledger import git
from ledger.models import Patch, QueueItem
from pipeline.models import Project
from pipeline.refusals import InvalidField, Refused
from pipeline.rest import BadQuery, Endpoint, Filters, Listed, Nothing, ProjectFilter, Reason, Ref, Strict, StrictModel
from pipeline.stream import RETRY_MS


class Waiver(Reason):
    """Why a run may count as passed although it did not, and until when."""

    expires_at = serializers.DateTimeField(required=False, allow_null=True)


class GateRunSerializer(StrictModel):
    """One execution of a gate against one tree, with what it says of the tree now: passed, failed or unknown."""

    verdict = serializers.CharField(read_only=True)
    blocked_by = serializers.SerializerMethodField(
        help_text="Keys of the gates that it waits for, while it is pending."
    )
    blocked_reasons = serializers.SerializerMethodField(help_text="Why it waits for each of them, in words.")
    check_run = serializers.SerializerMethodField(help_text="The same as GitHub's check-run document.")
    needs_person = serializers.BooleanField(read_only=True)

    class Meta:
        model = GateRun
        fields = (
            "id", "version", "created_at", "updated_at", "name", "gate_type", "criteria", "required", "gate",
            "gate_version", "project", "patch", "queue_item", "run", "task", "request", "tree_hash", "base_tree",
            "baseline", "environment", "state", "state_reason", "verdict", "needs_person", "command", "definition",
            "started_at", "completed_at", "duration_seconds", "exit_code", "runner", "seen_at", "sandbox_level",
            "sandbox_level_min",
            "external", "deadline_at", "total_tests", "passed_tests", "failed_tests", "skipped_tests", "flaky_tests",
            "coverage_percent", "patch_coverage_percent", "parsed", "decision_passed", "decision_reason", "decided_by",
            "decided_at", "verdicts", "error_kind", "skip_reason", "skipped_by", "waived_at", "waived_by",
            "waive_reason", "waiver_expires_at", "retry_of", "shards_seen", "evidence", "metadata", "blocked_by",
            "blocked_reasons", "check_run",
        )  # fmt: skip
        read_only_fields = fields

    def get_blocked_by(self, row: GateRun) -> list[str]:
        """What keeps a pending run from starting."""
        return row.blocking() if row.state == GateRun.State.PENDING else []

    def get_blocked_reasons(self, row: GateRun) -> list[str]:
        """The same in words."""
        return [one.why for one in row.hindrances()] if row.state == GateRun.State.PENDING else []

    @extend_schema_field({"type": "object", "additionalProperties": True})
    def get_check_run(self, row: GateRun) -> dict[str, Any]:
        """For a forge."""
        return external.check_run(row)


def _must_be_there(project: Project, tree: str) -> None:
    """The mirror has this tree; where there is no mirror, nobody can know. Raises InvalidField."""
    if not project.mirror.exists():
        return
    try:
        found = git.tree_of(project.mirror, tree)
    except git.UnknownCommit:
        raise InvalidField(
            "tree_hash", f"the mirror of {project.key} has no tree {tree}", code="unknown_tree"
        ) from None
    if found != tree:
        raise InvalidField("tree_hash", f"{tree} is a commit; its tree is {found}", code="unknown_tree", tree=found)


class GateRunRequest(Strict):
    """A run to be asked for: of a gate, on a patch or a tree."""

    gate = Ref(queryset=Gate.objects.select_related("project"))
    patch = Ref(queryset=Patch.objects.select_related("project"), required=False)
    tree_hash = serializers.RegexField(
        r"^[0-9a-f]{40}([0-9a-f]{24})?$",
        required=False,
        error_messages={"invalid": "the whole name of a tree: 40 or 64 hexadecimal digits in small letters"},
        help_text="A tree that the project's mirror has, as `git rev-parse <commit>^{tree}` prints it.",
    )

    def validate(self, given: dict[str, Any]) -> dict[str, Any]:
        """One of patch and tree; both of the gate's project."""
        patch, tree = given.get("patch"), given.get("tree_hash", "")
        if (patch is None) == (not tree):
            raise InvalidField("tree_hash", "either a patch, of which the tree that stands is tested, or a tree's hash")
        if tree:
            _must_be_there(given["gate"].project, tree)
        if patch is not None and patch.project_id != given["gate"].project_id:
            raise InvalidField("patch", "a patch of another project")
        return given


class Take(Strict):
    """A system outside takes a run."""

    runner = serializers.RegexField(
        r"^[\x21-\x7e]{1,150}$",
        error_messages={"invalid": "1 to 150 printable ASCII characters without a blank, as in the address of a job"},
        help_text="What people call it: the job's address, say.",
    )
    command = texts(required=False)


class Taken(serializers.Serializer[Any]):
    """The run, and the claim that every report of it quotes."""

    claim = serializers.CharField()
    gate_run = GateRunSerializer()


class Ending(Strict):
    """How a run outside ended: an exit code, or GitHub's conclusion."""

    claim = serializers.CharField(max_length=200)
    exit_code = Whole(min_value=0, max_value=255, required=False)
    conclusion = serializers.ChoiceField(choices=list(external.CONCLUSIONS), required=False)
    output = serializers.CharField(
        required=False, allow_blank=True, default="", max_length=external.MAX_OUTPUT_CHARS, trim_whitespace=False
    )
    duration_seconds = serializers.DecimalField(max_digits=12, decimal_places=3, min_value=0, required=False)
    shards = Whole(min_value=1, max_value=MAX_SHARDS, required=False)


class SentEvidence(serializers.Serializer[Any]):
    """What was kept of a report."""

    kind = serializers.CharField()
    shard = serializers.IntegerField(help_text="0 where the gate has one report of the kind.")
    sha256 = serializers.CharField()
    size_bytes = serializers.IntegerField()


class Bytes(BaseParser):
    """A body as it is, whatever it calls itself."""

    media_type = "*/*"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        """The bytes."""
        return stream.read()


class LogAnswer(StreamingHttpResponse):
    """A live log that may begin: `gates.serving` reads `opening` and goes on from there.

    A server that speaks WSGI only sends the first page instead, and the client asks again behind it.
    """

    def __init__(self, opening: live.LogOpening) -> None:
        self.opening = opening
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        super().__init__(self._page(), content_type="text/event-stream; charset=utf-8", headers=headers)

    def _page(self) -> Iterator[bytes]:
        yield f"retry: {RETRY_MS}\n\n".encode()
        found = live.page(self.opening.gate_run, self.opening.after)
        yield b"".join(live.frame(number, text) for number, text in found.pieces)
        if found.ended:
            yield live.last_frame(found.ended)


class TestResultSerializer(StrictModel):
    """What one attempt of one test said."""

    class Meta:
        model = TestResult
        fields = (
            "id", "test_key", "name", "classname", "file", "attempt", "outcome", "duration_seconds", "message", "trace",
        )  # fmt: skip
        read_only_fields = fields


class GateFindingSerializer(StrictModel):
    """What an analyser found. `is_new` compares with the base by fingerprint; `help_uri` is https or empty."""

    class Meta:
        model = Finding
        fields = (
            "id", "rule_id", "level", "path", "line", "fingerprint", "is_new", "suppressed", "message", "help_uri",
        )  # fmt: skip
        read_only_fields = fields


class GateRunFilters(Filters):
    """By state, gate, and what is judged."""

    project = ProjectFilter("project")

    class Meta:
        model = GateRun
        fields = (
            "state", "gate", "gate_type", "patch", "run", "task", "queue_item", "tree_hash", "required", "error_kind",
            "retry_of", "baseline", "external", "created_at",
        )  # fmt: skip


class GateRunEndpoint(Listed, Endpoint):
    """Every run of a gate. Those of external gates are taken, reported and completed by a CI system."""

    queryset = GateRun.objects.defer("output_tail").select_related("gate", "queue_item")
    serializer_class = GateRunSerializer
    filterset_class = GateRunFilters
    ordering_fields = ("created_at",)
    heavy = (
        "criteria",
        "command",
        "definition",
        "verdicts",
        "evidence",
        "metadata",
        "blocked_by",
        "blocked_reasons",
        "check_run",
    )
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "results": "viewer",
        "findings": "viewer",
        "log": "viewer",
        "log_stream": "viewer",
        "create": "operator",
        "start": "operator",
        "evidence": "operator",
        "complete": "operator",
        "skip": "approver",
        "waive": "approver",
        "revoke_waiver": "approver",
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
        """The end of its output, as a file that no browser shows; while it runs, what is there so far."""
        row = self.get_object()
        text = row.output_tail or (live.text_so_far(row) if row.state == GateRun.State.RUNNING else "")
        return HttpResponse(
            text.encode(),
            content_type="text/plain; charset=utf-8",
            headers={
                "Content-Disposition": f'attachment; filename="{row.pk}.log"',
                "X-Content-Type-Options": "nosniff",
            },
        )

    @extend_schema(
        parameters=[
            OpenApiParameter("after", int, description="Go on behind this number; else from the first piece kept."),
            OpenApiParameter(
                "Last-Event-ID", int, OpenApiParameter.HEADER, description="The same, as browsers send it."
            ),
        ],
        responses={(200, "text/event-stream"): OpenApiTypes.STR},
    )
    @action(detail=True, methods=["get"], url_path="log/stream", filterset_class=None)
    def log_stream(self, request: Request, id: str) -> LogAnswer:
        """The output as it comes, as an event stream: `id` is a number, `data` {"text"}; at last `end` {"state"}.

        Secrets are taken out, and of an output that comes too fast only the end is shown. `bye` after 15 minutes and
        `error` with a problem document say why the server closes; connect again with `Last-Event-ID`.
        """
        if request.method != "GET":
            raise MethodNotAllowed(str(request.method))
        row = self.get_object()
        given = request.headers.get("Last-Event-ID") or request.query_params.get("after") or "0"
        if not given.isascii() or not given.isdigit() or len(given) > 9:
            raise BadQuery("after", "a number of a piece, as `id` says it")
        who = self.principal
        return LogAnswer(live.LogOpening(f"{who.kind}:{who.id}", row.pk, int(given)))

    @extend_schema(request=GateRunRequest, responses={201: GateRunSerializer})
    def create(self, request: Request) -> Response:
        """Ask for a run of a gate on a patch's tree, or on any tree of the project: 201, pending."""
        given = self.body(GateRunRequest)
        gate, patch = given["gate"], given.get("patch")
        self.must_in(gate.project)
        if patch is None:
            return self.reply(GateRun.objects.ask_for(gate, given["tree_hash"], by=self.by), 201)
        item = QueueItem.objects.live().filter(patch=patch).exclude(candidate_tree="").first()
        tree = item.candidate_tree if item else patch.tested_tree
        if not tree:
            raise Refused("No tree of this patch stands to be tested", code="invalid_move", state=patch.state)
        return self.reply(GateRun.objects.ask_for(gate, tree, by=self.by, patch=patch, item=item), 201)

    @extend_schema(request=Take, responses=Taken)
    @action(detail=True, methods=["post"])
    def start(self, request: Request, id: str) -> Response:
        """A system outside takes a pending run of an external gate; the answer's `claim` is quoted ever after.

        Refuses with `gate_not_external`, `gate_blocked`, `invalid_move`.
        """
        row, given = self.get_object(), self.body(Take)
        claim = external.start(row, by=self.by, runner_name=given["runner"], command=given.get("command"))
        row.refresh_from_db()
        return Response(
            {"claim": claim, "gate_run": GateRunSerializer(row, context=self.get_serializer_context()).data}
        )

    @extend_schema(
        parameters=[
            OpenApiParameter("kind", str, required=True, enum=list(KINDS), description="What the report is."),
            OpenApiParameter("claim", str, required=True, description="As the start answered it."),
            OpenApiParameter("shard", int, description="Which one, from 1, where the gate has a report per shard."),
        ],
        request={"application/octet-stream": OpenApiTypes.BINARY},
        responses={201: SentEvidence},
    )
    @action(detail=True, methods=["post"], parser_classes=[Bytes], filterset_class=None)
    def evidence(self, request: Request, id: str) -> Response:
        """Send a report as it is (Content-Encoding: gzip is read) for a run that was taken; 201.

        Another one of its kind and shard takes its place. Refuses with `stale_claim`, `invalid_evidence`,
        `invalid_move`, `deadline_passed`, and `invalid_field` for a kind or shard that the gate does not ask for.
        """
        row = self.get_object()
        sent = request.data if isinstance(request.data, bytes) else b""  # DRF reads an empty body as {}
        body = external.inflate(sent, request.headers.get("Content-Encoding", ""), MAX_BYTES)
        query = request.query_params
        shard = query.get("shard", "0")
        if not shard.isascii() or not shard.isdigit() or len(shard) > 5:
            raise BadQuery("shard", "the number of a shard, from 1")
        kept = external.keep_evidence(row, query.get("kind", ""), body, claim=query.get("claim", ""), shard=int(shard))
        return Response(SentEvidence(kept).data, status=201)

    @extend_schema(request=Ending, responses=GateRunSerializer)
    @action(detail=True, methods=["post"])
    def complete(self, request: Request, id: str) -> Response:
        """Say how a run that was taken ended: it is judged by what was sent; after its time limit it is an error.

        Refuses with `stale_claim`, `invalid_move`, `gate_not_external`.
        """
        row, given = self.get_object(), self.body(Ending)
        external.complete(
            row,
            by=self.by,
            claim=given["claim"],
            exit_code=given.get("exit_code"),
            conclusion=given.get("conclusion", ""),
            output=given["output"],
            duration_seconds=given.get("duration_seconds"),
            shards=given.get("shards"),
        )
        return self.reply(row)

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
        """Let it count as passed, without end or until `expires_at`; in place of a waiver that stands, which is so made
        longer or shorter. Refuses with `reason_required`, `invalid_move`, and an end in the past.
        """
        row, given = self.get_object(), self.body(Waiver)
        row.waive(given["reason"], by=self.by, expires_at=given.get("expires_at"))
        return self.reply(row)

    @extend_schema(request=Reason, responses=GateRunSerializer)
    @action(detail=True, methods=["post"], url_path="revoke-waiver")
    def revoke_waiver(self, request: Request, id: str) -> Response:
        """End its waiver now: it counts as what it is again. Refuses with `reason_required`."""
        row = self.get_object()
        row.revoke_waiver(self.body(Reason)["reason"], by=self.by)
        return self.reply(row)

    @extend_schema(request=Nothing, responses={201: GateRunSerializer})
    @action(detail=True, methods=["post"])
    def rerun(self, request: Request, id: str) -> Response:
        """A new run of the same gate on the same tree: 201. Refuses with `invalid_move` while this one is open, and
        with `rerun_open` while another one is, which `gate_run` names.
        """
        row = self.get_object()
        self.body(Nothing)
        return self.reply(row.rerun(by=self.by), 201)
