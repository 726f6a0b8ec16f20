"""An address of the API: who may call what, in which transaction, and the plain ones of lists and definitions."""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, cast

from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.db import connection
from django.db.models import QuerySet
from rest_framework import mixins, serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.pagination import BasePagination
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.viewsets import GenericViewSet

from pipeline import events, limits, longpoll
from pipeline.auth import BrowserAuthentication, Denied, KeyAuthentication, Principal, at_least_as, principal_of
from pipeline.definitions import Definition, PreconditionFailed
from pipeline.ids import is_id
from pipeline.models import ApiKey, Project
from pipeline.refusals import InvalidField, NotFound, Refused
from pipeline.rest.bodies import AlwaysJSON, StrictJSONParser
from pipeline.rest.lists import BadQuery, CursorPages, FilterBackend, asked_fields
from pipeline.rest.repeating import Repeatable, fingerprint
from pipeline.storable import UNSTORABLE, WHY, is_storable

WORKER = "worker"
SIGNED_IN = "signed in"
INSTALLATION = "installation"
MAX_KEY_LENGTH = 200
LOOK_AGAIN_SECONDS = 0.5
PRINTABLE = re.compile(rf"[\x20-\x7e]{{1,{MAX_KEY_LENGTH}}}")
IF_MATCH = re.compile(r'"([0-9]{1,9})"')


class NotYet(Exception):
    """A handler has no answer yet: undo it, call it again until `seconds` after the request came, then answer 204."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"nothing within {seconds} s")
        self.seconds = seconds


class Endpoint(GenericViewSet[Any]):
    """An address of the API: who may call what is data (`needs`), and every POST may be repeated with a key."""

    needs: ClassVar[Mapping[str, str | tuple[str, ...]]] = {}
    unstored: ClassVar[Sequence[str]] = ()
    secret_fields: ClassVar[Sequence[str]] = ()
    heavy: ClassVar[Sequence[str]] = ()
    ordering_fields: ClassVar[Sequence[str]] = ()
    other_parameters: ClassVar[Sequence[str]] = ()
    default_ordering = "-id"
    noun = ""

    queryset: QuerySet[Any]
    """The rows; an endpoint without rows has a `noun`."""

    lookup_url_kwarg = "id"
    lookup_value_regex = "[^/]+"
    http_method_names = ["get", "head", "post", "patch", "delete"]
    parser_classes = [StrictJSONParser]
    renderer_classes = [JSONRenderer]
    content_negotiation_class = AlwaysJSON
    filter_backends = [FilterBackend]
    pagination_class: type[BasePagination] | None = CursorPages

    # Who is asking

    @property
    def principal(self) -> Principal:
        """Whoever is asking."""
        return principal_of(self.request)

    @property
    def by(self) -> events.Actor:
        """The same, as the one who causes a change."""
        return self.principal.actor

    def wants(self) -> tuple[str, ...]:
        """The roles of which the action needs one."""
        name = getattr(self, "action", None)
        if name is None:
            method = (self.request.method or "").lower()
            name = getattr(self, "action_map", {}).get(method)
        wanted = self.needs.get(name or "", ())
        return (wanted,) if isinstance(wanted, str) else tuple(wanted)

    def get_authenticators(self) -> list[BaseAuthentication]:
        """Keys, and sessions where people may come; a worker's endpoint takes keys only."""
        if getattr(self, "request", None) is not None and self.wants() == (WORKER,):
            return [KeyAuthentication()]
        return [KeyAuthentication(), BrowserAuthentication()]

    def initial(self, request: Request, *args: Any, **kwargs: Any) -> None:
        """Everything that is checked before the handler: who asks, what for, and that the address can be stored."""
        super().initial(request, *args, **kwargs)
        if (request.method or "").lower() not in self.http_method_names or getattr(self, "action", None) is None:
            return  # a method that is not offered: dispatch says so
        limits.admit(self.principal.caller)
        self._let_in()
        if not is_storable(*map(str, kwargs.values())):
            raise NotFound.of(self._noun())
        for name, values in request.query_params.lists():
            if not is_storable(name, *values):
                raise BadQuery(UNSTORABLE.sub("�", name), WHY)

    def _let_in(self) -> None:
        """Raises Denied for who can never do this, whichever row it is about; the row decides for all others."""
        wanted, who = self.wants(), self.principal
        if who.is_worker:
            if WORKER not in wanted and SIGNED_IN not in wanted:
                raise Denied("A worker's key may register workers and act for its own, nothing else", needs=wanted)
            return
        roles = [role for role in wanted if role != WORKER]
        if SIGNED_IN in roles:
            return
        if not roles:
            raise Denied("Only a worker's key may do this", needs=WORKER)
        if roles == [INSTALLATION]:
            who.must("admin", None)
            return
        if self.request.method in ("GET", "HEAD") and roles == ["viewer"]:
            return
        held = {who.everywhere, *who.roles.values()}
        if not any(at_least_as(one, role) for one in held for role in roles):
            raise Denied(f"This needs the role {' or '.join(roles)}", needs=roles[0])

    def must_in(self, project: Project | str | None) -> None:
        """Raises Denied unless the caller holds a role in `project` that this action needs; a worker's key passes."""
        if self.principal.is_worker:
            return
        roles = [role for role in self.wants() if role not in (WORKER, SIGNED_IN)]
        if INSTALLATION in roles:
            self.principal.must("admin", None)
        elif roles and not any(self.principal.may(role, project) for role in roles):
            self.principal.must(roles[0], project)

    def project_of(self, row: Any) -> str | None:
        """The id of the project in which the role must be held for this row; None is the whole installation."""
        found: str | None = row.correlation().get("project_id")
        return found

    # What is asked for

    def get_queryset(self) -> QuerySet[Any]:
        """The rows that the caller may see; in lists without their heavy columns."""
        queryset: Any = super().get_queryset()
        if getattr(self, "action", None) == "list" and self.heavy:
            columns = {field.name for field in queryset.model._meta.concrete_fields}
            queryset = queryset.defer(*[name for name in self.heavy if name in columns])
        is_fake = getattr(self, "swagger_fake_view", False)
        shown: QuerySet[Any] = queryset.none() if is_fake else queryset.visible_to(self.principal)
        return shown

    def get_object(self) -> Any:
        """The row of the address. Raises NotFound unless the caller sees it, Denied unless it holds the role there."""
        row = self.find(self.get_queryset(), self.kwargs[self.lookup_url_kwarg])
        if row is None:
            raise NotFound.of(self._noun())
        if self.wants() != ("viewer",):  # whoever sees it may read it
            self.must_in(self.project_of(row))
        return row

    def find(self, queryset: QuerySet[Any], given: str) -> Any:
        """The row that the address names, or None: by its id."""
        return queryset.filter(pk=given).first() if is_id(given) else None

    def _noun(self) -> str:
        return self.noun or str(self.queryset.model.noun())

    def body(self, kind: type[serializers.Serializer[Any]]) -> dict[str, Any]:
        """The body, checked by a serializer. Raises ValidationError with every wrong field."""
        given: dict[str, Any] = self._checked(kind)
        return given

    def bodies(self, kind: type[serializers.Serializer[Any]]) -> list[dict[str, Any]]:
        """The documents of a body that is a list of them. Raises ValidationError with every wrong field."""
        given: list[dict[str, Any]] = self._checked(kind, many=True)
        return given

    def _checked(self, kind: type[serializers.Serializer[Any]], **options: Any) -> Any:
        serializer = kind(data=self.request.data, context=self.get_serializer_context(), **options)
        serializer.is_valid(raise_exception=True)
        return serializer.validated_data

    def get_serializer_class(self) -> Any:
        """The serializer; in lists one without the heavy fields."""
        kind = super().get_serializer_class()
        if getattr(self, "action", None) != "list" or not self.heavy:
            return kind
        return _without(kind, tuple(self.heavy))

    def reply(self, row: Any, status: int = 200, **headers: str) -> Response:
        """The row as the database holds it now, with its ETag."""
        fresh = self.queryset.all().get(pk=row.pk)
        serializer = self.get_serializer(fresh)
        return Response(serializer.data, status=status, headers={"ETag": etag(fresh), **headers})

    def expected_version(self) -> int:
        """The version that `If-Match` quotes. Raises PreconditionFailed when it is missing or no version."""
        given = self.request.headers.get("If-Match", "")
        quoted = IF_MATCH.fullmatch(given.strip())
        if quoted is None:
            raise PreconditionFailed(
                'A change needs the header If-Match: "<version>", as the ETag of the object says it'
            )
        return int(quoted[1])

    # Answering

    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        """DRF's own dispatch, with the handler run so that it can be repeated; errors are answered after rollback."""
        self.args, self.kwargs = args, kwargs
        asked = self.initialize_request(request, *args, **kwargs)
        self.request = asked
        self.headers = self.default_response_headers
        try:
            self.initial(asked, *args, **kwargs)
            known = (asked.method or "").lower() in self.http_method_names and getattr(self, "action", None)
            handler = getattr(self, (asked.method or "").lower(), None) if known else None
            response = self._run(asked, handler or self.http_method_not_allowed)
        except Exception as problem:  # the one place where exceptions become answers
            response = self.handle_exception(problem)
        self.response = self.finalize_response(asked, response, *args, **kwargs)
        return self.response

    def _run(self, request: Request, handler: Callable[..., Any]) -> Any:
        if request.method in ("POST", "PATCH", "DELETE"):
            _read_body(request)
        repeat = self._repeatable(request)
        started = time.monotonic()
        while True:
            try:
                if repeat is None:
                    return handler(request, *self.args, **self.kwargs)
                return repeat.answer(lambda: handler(request, *self.args, **self.kwargs), hide=self.secret_fields)
            except NotYet as wait:
                if request.META.get("asgi.scope", {}).get(longpoll.WAITS):
                    return Response(status=204, headers={longpoll.WAIT_HEADER: str(wait.seconds)})
                if time.monotonic() - started + LOOK_AGAIN_SECONDS > wait.seconds:
                    return Response(status=204)
            if not connection.in_atomic_block:
                connection.close()  # back to the pool: many wait, few connections
            time.sleep(LOOK_AGAIN_SECONDS)

    def _repeatable(self, request: Request) -> "Repeatable | None":
        given = request.headers.get("Idempotency-Key")
        if request.method != "POST" or given is None or self.action in self.unstored:
            return None
        if not PRINTABLE.fullmatch(given):
            raise BadQuery("Idempotency-Key", f"1 to {MAX_KEY_LENGTH} printable ASCII characters")
        who = self.principal
        return Repeatable(f"{who.kind}:{who.id}", given, fingerprint(request._request))


def _read_body(request: Request) -> None:
    """Reads the body by Django, which bounds it. Raises RequestDataTooBig."""
    bare: Any = request._request
    length = bare.META.get("CONTENT_LENGTH") or "0"
    if length.isdigit() and int(length) > settings.DATA_UPLOAD_MAX_MEMORY_SIZE:
        raise RequestDataTooBig(int(length))
    bare.body  # noqa: B018 - reading it is the point: DRF parses what Django has read


def _without(kind: Any, heavy: tuple[str, ...]) -> Any:
    """A serializer like `kind` without these fields, made once."""
    made = kind.__dict__.get("_light")
    if made is None:
        fields = tuple(name for name in kind.Meta.fields if name not in heavy)
        meta = type("Meta", (kind.Meta,), {"fields": fields, "read_only_fields": fields})
        kept = {name: None for name in heavy if name in kind._declared_fields}
        made = type(kind.__name__.replace("Serializer", "RowSerializer"), (kind,), {"Meta": meta, **kept})
        kind._light = made
    return made


def etag(row: Any) -> str:
    """The row's version as an entity tag; what is written once keeps version 1."""
    return f'"{getattr(row, "version", 1)}"'


class Listed(mixins.RetrieveModelMixin, mixins.ListModelMixin):
    """List and detail; `?fields=` trims both."""

    def list(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One page of the rows that the caller may see, newest first."""
        names = self._asked_fields(request)
        response = super().list(request, *args, **kwargs)
        if names:
            response.data["results"] = [{name: row[name] for name in names} for row in response.data["results"]]
        return response

    def retrieve(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """One row, with its ETag."""
        view = cast(Endpoint, self)  # what it is mixed into
        names = self._asked_fields(request)
        for name in request.query_params:
            if name != "fields" and name not in view.other_parameters:
                raise BadQuery(name, "unknown parameter; known is fields", code="unknown_filter")
        row = view.get_object()
        data = view.get_serializer(row).data
        return Response({name: data[name] for name in names or data}, headers={"ETag": etag(row)})

    def _asked_fields(self, request: Request) -> Sequence[str]:
        if "fields" not in request.query_params:
            return ()
        serializer: Any = cast(Endpoint, self).get_serializer()
        return asked_fields(request, serializer.fields)


class DefinitionEndpoint(Listed, Endpoint):
    """CRUD for a Definition: POST adds, PATCH edits under `If-Match`, DELETE removes, by the model's verbs.

    `fixed` names the fields that a row is born with. A POST may bring its own `id`; the same again is answered with the
    row, another document under that id is `duplicate_id`.
    """

    needs = {
        "list": "viewer",
        "retrieve": "viewer",
        "create": "admin",
        "partial_update": "admin",
        "destroy": "admin",
    }
    fixed: ClassVar[Sequence[str]] = ("project",)

    def create(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Add a row: 201 with its address. Raises InvalidField, or Refused `duplicate_key`, `duplicate_id`."""
        pk, fields = self._born()
        self.must_in(self.project_for(fields))
        model = self.queryset.model
        if pk and (known := model.objects.filter(pk=pk).first()):
            given = {name: getattr(value, "pk", value) for name, value in fields.items()}
            same = all(getattr(known, model._meta.get_field(name).attname) == value for name, value in given.items())
            if not same or self.find(self.get_queryset(), pk) is None:
                raise Refused(f"{pk} already exists, with other content", code="duplicate_id")
            return self.reply(known)
        row = model.objects.add(by=self.by, **fields, **({"id": pk} if pk else {}))
        return self.reply(row, 201, Location=f"{request.path}{row.pk}/")

    def _born(self) -> tuple[str, dict[str, Any]]:
        data = self.request.data
        pk = ""
        if isinstance(data, Mapping) and "id" in data:
            pk = data["id"]
            if not is_id(pk):
                raise InvalidField("id", "not an id: 26 characters of Crockford base 32", code="invalid_id")
            data = {name: value for name, value in data.items() if name != "id"}
        serializer = self.get_serializer(data=data)
        serializer.is_valid(raise_exception=True)
        return pk, serializer.validated_data

    def project_for(self, fields: Mapping[str, Any]) -> Project | str | None:
        """The project that a new row with these fields belongs to; None is the whole installation."""
        project: Project | None = fields.get("project")
        return project

    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Change the fields that the body names, if `If-Match` quotes the row's version."""
        row: Definition = self.get_object()
        version = self.expected_version()
        serializer = self.get_serializer(row, data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        fields: dict[str, Any] = serializer.validated_data
        for name in self.fixed:
            if name in fields and fields[name] != getattr(row, name):
                raise InvalidField(name, "a row keeps what it was born with")
        row.edit(by=self.by, expected_version=version, **fields)
        return self.reply(row)

    def destroy(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Remove the row: 204. Raises Refused `in_use` while others point to it."""
        self.get_object().remove(by=self.by)
        return Response(status=204)


class Router(SimpleRouter):
    """Addresses with a closing slash; a definition's key may hold dots."""


def worker_key(principal: Principal) -> ApiKey:
    """The worker's key behind this principal. Raises Denied for anybody else."""
    if not principal.is_worker or principal.key is None:
        raise Denied("Only a worker's key may do this", needs=WORKER)
    return principal.key
