"""The API of remotes and of what is on its way to them; and the address that a host calls when somebody pushed."""

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response

from ledger import remote as remotes
from ledger.models import Push, Remote
from pipeline import events
from pipeline.ids import PATTERN, is_id
from pipeline.problems import CONTENT_TYPE, document
from pipeline.refusals import NotFound
from pipeline.rest import (
    INSTALLATION,
    DefinitionEndpoint,
    Endpoint,
    Filters,
    Listed,
    Nothing,
    ProjectFilter,
    ProjectRef,
    StrictModel,
)


class RemoteSerializer(StrictModel):
    """Where a project's mirror fetches from and pushes to. Secrets are named (`env:…`, `file:…`) and never shown."""

    project = ProjectRef()

    class Meta:
        model = Remote
        fields = (
            "id", "version", "created_at", "updated_at", "project", "url", "landing", "username", "credential",
            "webhook_credential", "fetch_seconds", "enabled", "fetched_at", "fetch_error",
            "receipts_error",
        )  # fmt: skip
        read_only_fields = ("id", "version", "created_at", "updated_at", "fetched_at", "fetch_error", "receipts_error")


class RemoteFilters(Filters):
    """By project, way of landing, and whether it is followed."""

    project = ProjectFilter("project")

    class Meta:
        model = Remote
        fields = ("landing", "enabled")


class RemoteEndpoint(DefinitionEndpoint):
    """Remotes. The installation's admin keeps them: an address together with a credential may go anywhere."""

    queryset = Remote.objects.select_related("project")
    serializer_class = RemoteSerializer
    filterset_class = RemoteFilters
    lookup_value_regex = PATTERN.pattern
    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "create": INSTALLATION,
        "partial_update": INSTALLATION,
        "destroy": INSTALLATION,
        "fetch": "operator",
    }

    @extend_schema(operation_id="projects_fetch", request=Nothing, responses={202: RemoteSerializer})
    def fetch(self, request: Request, project: str) -> Response:
        """Have the project's remote asked for new commits: 202, and it is done a moment later.

        Raises NotFound when the project has no remote.
        """
        named = Q(project=project) if is_id(project) else Q(project__key=project)
        row = self.get_queryset().filter(named).first()
        if row is None:
            raise NotFound.of("remote")
        self.must_in(row.project)
        self.body(Nothing)
        events.nudge_later("ledger.landing_tasks.fetch", row.pk)
        return self.reply(row, 202)


class PushSerializer(StrictModel):
    """One landed commit on its way to the remote; `request_text` is that of the pull request, in Markdown."""

    class Meta:
        model = Push
        fields = (
            "id", "version", "created_at", "updated_at", "queue", "patch", "commit_sha", "target", "state",
            "attempts", "due_at", "last_error", "request_title", "request_text", "pushed_at",
        )  # fmt: skip
        read_only_fields = fields


class PushFilters(Filters):
    """By queue, patch, state and commit."""

    project = ProjectFilter("queue__project")

    class Meta:
        model = Push
        fields = ("queue", "patch", "state", "target", "commit_sha")


class PushEndpoint(Listed, Endpoint):
    """What is on its way to remotes, and what arrived."""

    queryset = Push.objects.select_related("patch")
    serializer_class = PushSerializer
    filterset_class = PushFilters
    heavy = ("request_text",)
    lookup_value_regex = PATTERN.pattern
    needs = {"list": "viewer", "retrieve": "viewer"}


@csrf_exempt
@require_POST
def pushed(request: HttpRequest, key: str) -> HttpResponse:
    """A host tells that somebody pushed: 202, and the remote is fetched a moment later.

    The body must be signed with the remote's webhook secret in `X-Hub-Signature-256: sha256=…`; nothing in it is read.
    Whoever does not sign right learns nothing: 404, as for a project that there is not.
    """
    try:
        body = request.body
    except RequestDataTooBig:
        return _told("payload_too_large", f"at most {settings.DATA_UPLOAD_MAX_MEMORY_SIZE} bytes", 413)
    remote = Remote.objects.live().filter(project__key=key).select_related("project").first()
    signature = request.headers.get("X-Hub-Signature-256", "")
    if remote is None or not remotes.is_signed(remote, body, signature):
        return _told("remote_not_found", "no such remote, or not signed with its secret", 404)
    events.nudge_later("ledger.landing_tasks.fetch", remote.pk)
    return JsonResponse({"status": "accepted"}, status=202)


def _told(code: str, detail: str, status: int) -> HttpResponse:
    return JsonResponse(document(status, code, detail), status=status, content_type=CONTENT_TYPE)
