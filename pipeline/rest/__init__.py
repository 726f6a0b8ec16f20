"""The manners of the API, written once: strict bodies, roles as data, cursor pages, versions, repeatable POSTs.

An endpoint is an `Endpoint` (or a `DefinitionEndpoint` for what people own) that says what it is about and who may do
what; everything else is here:

    class RunSerializer(StrictModel):
        class Meta:
            model = Run
            fields = ("id", "version", "created_at", "project", "state", "metadata")
            read_only_fields = fields

    class RunFilters(Filters):
        project = ProjectFilter("project")
        class Meta:
            model = Run
            fields = ("state", "created_at")          # gives ?state= ?created_after= ?created_before=

    class RunEndpoint(Listed, Endpoint):               # Listed: list and detail
        queryset = Run.objects.select_related("project")
        serializer_class = RunSerializer
        filterset_class = RunFilters
        ordering_fields = ("created_at",)              # besides id; columns that are never null
        heavy = ("metadata",)                          # neither loaded nor shown in lists
        needs = {"list": "viewer", "retrieve": "viewer", "cancel": "operator", "beat": WORKER}
        unstored = ("beat",)                           # answers that no Idempotency-Key stores

        @extend_schema(request=Reason, responses=RunSerializer)
        @action(detail=True, methods=["post"])
        def cancel(self, request: Request, id: str) -> Response:
            run = self.get_object()                    # 404 unless visible, 403 unless the role is held in its project
            run.cancel(by=self.by, reason=self.body(Reason)["reason"])
            return self.reply(run)                     # read again, with its ETag

    router = Router()
    router.register("runs", RunEndpoint, "run")        # names run-list, run-detail, run-cancel
    urlpatterns = router.urls                          # pipeline/urls.py includes each app's `api` module

`needs` maps each action to a role, to WORKER (a worker's key, never a session), to SIGNED_IN (anybody), to
INSTALLATION (its admin) or to a tuple of these. A handler that makes a row in a project calls `self.must_in(project)`.
One that has nothing to say yet raises `NotYet(seconds)`: it is undone and called again until that time is over, then
answers 204. The matrix test asks every endpoint as everybody; its expectations stand in tests/api/expectations.py.
"""

from pipeline.rest.bodies import (
    IdField,
    Nothing,
    ProjectRef,
    Reason,
    Ref,
    Strict,
    StrictJSONParser,
    StrictModel,
    find_project,
)
from pipeline.rest.endpoints import (
    INSTALLATION,
    SIGNED_IN,
    WORKER,
    DefinitionEndpoint,
    Endpoint,
    Listed,
    NotYet,
    Router,
    etag,
    worker_key,
)
from pipeline.rest.lists import BadQuery, FilterBackend, Filters, IdFilter, ProjectFilter, asked_fields, read_limit
from pipeline.rest.repeating import Repeatable, fingerprint

__all__ = [
    "INSTALLATION", "SIGNED_IN", "WORKER", "BadQuery", "DefinitionEndpoint", "Endpoint", "FilterBackend", "Filters",
    "IdField", "IdFilter", "Listed", "NotYet", "Nothing", "ProjectFilter", "ProjectRef", "Reason", "Ref", "Repeatable",
    "Router", "Strict", "StrictJSONParser", "StrictModel", "asked_fields", "etag", "find_project", "fingerprint",
    "read_limit", "worker_key",
]  # fmt: skip
