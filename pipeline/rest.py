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

import base64
import hashlib
import json
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, ClassVar, NamedTuple, cast

import django_filters
from django.conf import settings
from django.core.exceptions import RequestDataTooBig
from django.core.exceptions import ValidationError as ModelValidationError
from django.db import connection, models, transaction
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django_filters.filterset import FILTER_FOR_DBFIELD_DEFAULTS
from django_filters.rest_framework import DjangoFilterBackend
from drf_spectacular.utils import extend_schema_field
from rest_framework import mixins, serializers
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.pagination import BasePagination
from rest_framework.parsers import BaseParser
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.viewsets import GenericViewSet

from pipeline import events, limits, longpoll, prepared
from pipeline.auth import BrowserAuthentication, Denied, KeyAuthentication, Principal, at_least_as, principal_of
from pipeline.definitions import Definition, PreconditionFailed
from pipeline.ids import PATTERN, ULIDField, is_id, new_id, to_uuid
from pipeline.models import ApiKey, Project, StoredAnswer
from pipeline.refusals import InvalidField, NotFound, Refused

WORKER = "worker"
SIGNED_IN = "signed in"
INSTALLATION = "installation"

MAX_LIMIT = 500
MAX_DEPTH = 32
MAX_KEY_LENGTH = 200
ANSWER_LIFE = timedelta(hours=24)
LOOK_AGAIN_SECONDS = 0.5
PRINTABLE = re.compile(rf"[\x20-\x7e]{{1,{MAX_KEY_LENGTH}}}")
IF_MATCH = re.compile(r'"([0-9]{1,9})"')
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")
# How JSON can spell these; a document without it has none, and nobody has to walk through its texts.
ESCAPED = re.compile(rb"\\u(?:0000|[dD][89a-fA-F])")

ID_SCHEMA = {"type": "string", "pattern": f"^{PATTERN.pattern}$", "examples": ["01JD9Z6X8Q4W2M5T7R3B1C0VNK"]}


class BadQuery(Refused):
    """A parameter of the address has a value that it cannot have; `field` names it."""

    code = "invalid_field"
    status = 400

    def __init__(self, field: str, message: str, *, code: str | None = None) -> None:
        super().__init__(f"{field}: {message}", code=code, field=field)


class NotYet(Exception):
    """A handler has no answer yet: undo it, call it again until `seconds` after the request came, then answer 204."""

    def __init__(self, seconds: float) -> None:
        super().__init__(f"nothing within {seconds} s")
        self.seconds = seconds


# -- bodies ------------------------------------------------------------------------------------------------------


class StrictJSONParser(BaseParser):
    """JSON as RFC 8259 has it (UTF-8, no NaN), at most 32 levels deep, holding only text that PostgreSQL can store."""

    media_type = "application/json"

    def parse(self, stream: Any, media_type: str | None = None, parser_context: Any = None) -> Any:
        """The document. Raises ParseError for what is not JSON, InvalidField for text with NUL or lone surrogates."""
        try:
            raw = stream.read()
            document = json.loads(raw.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite)
        except RecursionError as problem:
            raise ParseError(f"The document is deeper than {MAX_DEPTH} levels") from problem
        except ValueError as problem:  # bad UTF-8, bad JSON, a number with thousands of digits
            raise ParseError(f"The body is not JSON: {problem}") from problem
        if ESCAPED.search(raw):
            _check_document(document)
        else:
            _check_depth(document)
        return document


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(f"{text[:20]} is beyond what a number can be")
    return number


def _check_depth(document: Any) -> None:
    level = [document]
    for _depth in range(MAX_DEPTH + 1):
        level = [one for one in level if isinstance(one, dict | list)]
        if not level:
            return
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    raise ParseError(f"The document is deeper than {MAX_DEPTH} levels")


def _check_document(document: Any) -> None:
    """Walks without recursion: the document is of whoever sent it."""
    waiting: list[tuple[str, int, Any]] = [("", 1, document)]
    while waiting:
        path, depth, value = waiting.pop()
        if isinstance(value, str):
            if UNSTORABLE.search(value):
                raise InvalidField(path, "text cannot hold NUL or half a surrogate pair")
            continue
        if not isinstance(value, dict | list):
            continue
        if depth > MAX_DEPTH:
            raise ParseError(f"The document is deeper than {MAX_DEPTH} levels")
        pairs: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
        for name, inner in pairs:
            if isinstance(name, str) and UNSTORABLE.search(name):
                raise InvalidField(path, "a name cannot hold NUL or half a surrogate pair")
            step = f"[{name}]" if isinstance(value, list) else f".{name}" if path else name
            waiting.append((f"{path}{step}", depth + 1, inner))


class AlwaysJSON(BaseContentNegotiation):
    """Answers are JSON whatever `Accept` says; the body must be of a type that one of the parsers reads."""

    def select_parser(self, request: Request, parsers: Sequence[BaseParser]) -> BaseParser | None:
        """The parser for the request's content type; None makes it a 415."""
        kind = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type in (kind, "*/*")), None)

    def select_renderer(self, request: Request, renderers: Sequence[Any], format_suffix: Any = None) -> Any:
        """The first renderer."""
        return renderers[0], renderers[0].media_type


class Strict(serializers.Serializer[Any]):
    """A body in which every field is known: an unknown one is refused, never ignored."""

    def to_internal_value(self, data: Any) -> Any:
        """The checked values. Raises ValidationError `unknown_field` for what the document does not know."""
        if isinstance(data, Mapping):
            writable = {name for name, field in self.fields.items() if not field.read_only}
            unknown = sorted(str(name) for name in data if name not in writable)
            if unknown:
                raise serializers.ValidationError(
                    {
                        name: [serializers.ErrorDetail("This field is not known here", "unknown_field")]
                        for name in unknown
                    }
                )
        return super().to_internal_value(data)


@extend_schema_field(ID_SCHEMA)
class IdField(serializers.CharField):
    """A ULID as 26 characters; `invalid_id` for any other text."""

    default_error_messages = {"invalid_id": "not an id: 26 characters of Crockford base 32"}

    def __init__(self, **kwargs: Any) -> None:
        for name in ("max_length", "format", "validators"):  # what DRF derives from a uuid column
            kwargs.pop(name, None)
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> str:
        """The ULID."""
        if not is_id(data):
            self.fail("invalid_id")
        return str(data)


@extend_schema_field(ID_SCHEMA)
class Ref(serializers.RelatedField[Any, Any, Any]):
    """Another row by its id: one that the caller may see, else `<noun>_not_found`. Answers the id."""

    def use_pk_only_optimization(self) -> bool:
        """The id stands in the row itself."""
        return True

    def to_representation(self, value: Any) -> str:
        """The id."""
        return str(value.pk)

    def to_internal_value(self, data: Any) -> models.Model:
        """The row."""
        if not is_id(data):
            raise serializers.ValidationError("not an id: 26 characters of Crockford base 32", code="invalid_id")
        queryset: Any = self.get_queryset()
        known = _found(self.context, queryset.model)
        if data not in known:
            row = queryset.visible_to(principal_of(self.context["request"])).filter(pk=data).first()
            if row is None:
                raise NotFound.of(queryset.model.noun(), data)
            known[data] = row
        return known[data]


@extend_schema_field({"type": "string", "description": "The project's key or id; answers hold the id."})
class ProjectRef(Ref):
    """A project by its key or its id: one that the caller may see, else `project_not_found`."""

    def __init__(self, **kwargs: Any) -> None:
        if not kwargs.get("read_only"):
            kwargs.setdefault("queryset", Project.objects.all())
        super().__init__(**kwargs)

    def to_internal_value(self, data: Any) -> Project:
        """The project."""
        if not isinstance(data, str):
            raise serializers.ValidationError("a project's key or id", code="invalid")
        known = _found(self.context, Project)
        if data not in known:
            known[data] = find_project(Project.objects.visible_to(principal_of(self.context["request"])), data)
        return cast(Project, known[data])


def _found(context: Any, model: type[models.Model]) -> dict[str, models.Model]:
    """What this body has named of `model` so far: a thousand events of one run look it up once."""
    found: dict[str, models.Model] = context.setdefault("found", {}).setdefault(model, {})
    return found


def find_project(projects: QuerySet[Project], given: str) -> Project:
    """The project of `projects` with this key or id. Raises NotFound `project_not_found`."""
    named = projects.filter(pk=given) if is_id(given) else projects.filter(key=given)
    project = named.first()
    if project is None:
        raise NotFound.of("project", given[:80])
    return project


class StrictModel(Strict, serializers.ModelSerializer[Any]):
    """A row's fields by their domain names. Uniqueness and rules are the domain verbs' business: DRF asks nothing."""

    serializer_field_mapping = {**serializers.ModelSerializer.serializer_field_mapping, ULIDField: IdField}
    serializer_related_field = Ref

    def build_relational_field(self, field_name: str, relation_info: Any) -> Any:
        """A project may be named by its key."""
        kind, kwargs = super().build_relational_field(field_name, relation_info)
        kwargs.pop("view_name", None)
        kwargs["validators"] = []
        return (ProjectRef if relation_info.related_model is Project else kind), kwargs

    def build_standard_field(self, field_name: str, model_field: Any) -> Any:
        """Without the validators of the column that ask the database or raise a domain refusal themselves."""
        kind, kwargs = super().build_standard_field(field_name, model_field)
        house = [v for v in kwargs.get("validators", []) if type(v).__module__.startswith("django.core.validators")]
        if "validators" in kwargs:
            kwargs["validators"] = house
        return kind, kwargs

    def get_validators(self) -> list[Any]:
        """None: the domain verb answers a repeated key with `duplicate_key`."""
        return []


class Reason(Strict):
    """Why something is done; the verb says whether it owes one."""

    reason = serializers.CharField(required=False, allow_blank=True, default="", max_length=2000)


class Nothing(Strict):
    """An empty body."""


# -- lists -------------------------------------------------------------------------------------------------------


class IdFilter(django_filters.CharFilter):
    """Rows that point to this id. Raises BadQuery `invalid_id` for what is none."""

    def filter(self, qs: QuerySet[Any], value: Any) -> QuerySet[Any]:
        """Exact."""
        if value in (None, ""):
            return qs
        if not is_id(value):
            raise BadQuery(self.extra.get("label") or self.field_name, "not an id: 26 characters", code="invalid_id")
        return qs.filter(**{self.field_name: value})


class ProjectFilter(django_filters.CharFilter):
    """Rows of one project, by key or id; one that nobody knows has no rows."""

    def filter(self, qs: QuerySet[Any], value: Any) -> QuerySet[Any]:
        """Exact; the id needs no join to the project."""
        if value in (None, ""):
            return qs
        name = self.field_name if is_id(value) else f"{self.field_name}__key"
        return qs.filter(**{name: value})


class Filters(django_filters.FilterSet):
    """The declared filters of a list: `?field=value`, and `?x_after=&x_before=` for a time `x_at`; no others."""

    FILTER_DEFAULTS = {
        **FILTER_FOR_DBFIELD_DEFAULTS,
        ULIDField: {"filter_class": IdFilter},
        models.ForeignKey: {"filter_class": IdFilter},
        models.TextField: {"filter_class": django_filters.CharFilter},
    }

    @classmethod
    def get_filters(cls) -> dict[str, Any]:
        """Those of Meta.fields and the declared ones; a DateTimeField gives two."""
        filters = super().get_filters()
        for name, one in list(filters.items()):
            if type(one) is django_filters.IsoDateTimeFilter or type(one) is django_filters.DateTimeFilter:
                if name in cls.declared_filters:
                    continue
                stem = name.removesuffix("_at")
                del filters[name]
                for word, lookup in (("after", "gt"), ("before", "lt")):
                    filters[f"{stem}_{word}"] = django_filters.IsoDateTimeFilter(field_name=name, lookup_expr=lookup)
        return filters


class FilterBackend(DjangoFilterBackend):
    """django-filter, with a 400 that names a parameter that this list does not know, or its wrong value."""

    def filter_queryset(self, request: Request, queryset: QuerySet[Any], view: Any) -> QuerySet[Any]:
        """The rows that the query asks for. Raises BadQuery."""
        filterset = self.get_filterset(request, queryset, view)
        known = {"cursor", "limit", "ordering", "fields", *(filterset.filters if filterset else ())}
        known |= set(getattr(view, "other_parameters", ()))
        for name in request.query_params:
            if name not in known:
                raise BadQuery(name, f"unknown filter; known are {', '.join(sorted(known))}", code="unknown_filter")
        if filterset is None:
            return queryset
        for name, one in filterset.filters.items():
            # Its widget would take any other word for none, and the list would hold everything.
            given = request.query_params.get(name, "")
            if isinstance(one, django_filters.BooleanFilter) and given.lower() not in ("", "true", "false"):
                raise BadQuery(name, f"true or false, not “{given[:80]}”")
        if not filterset.is_valid():
            field, found = next(iter(filterset.errors.items()))
            raise BadQuery(str(field), " ".join(str(one) for one in found))
        return cast("QuerySet[Any]", filterset.qs)


class _Place(NamedTuple):
    """Where a page begins: behind (or before) the row with this value in the order's column, and this id."""

    ordering: str
    back: bool
    value: str
    pk: str

    def text(self) -> str:
        return base64.urlsafe_b64encode(json.dumps(self, ensure_ascii=False).encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> "_Place":
        try:
            parts = json.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
            place = cls(*parts)
        except (ValueError, TypeError, RecursionError) as problem:
            raise BadQuery("cursor", "not a cursor of this list", code="invalid_cursor") from problem
        good = isinstance(place.ordering, str) and isinstance(place.back, bool) and isinstance(place.value, str)
        if not good or not is_id(place.pk) or UNSTORABLE.search(place.value):
            raise BadQuery("cursor", "not a cursor of this list", code="invalid_cursor")
        return place


class CursorPages(BasePagination):
    """Pages by a keyset (column, id), newest first, so that rows written meanwhile neither repeat nor hide any."""

    def paginate_queryset(self, queryset: QuerySet[Any], request: Request, view: Any = None) -> list[Any]:
        """One page. Raises BadQuery for a `limit`, `ordering` or `cursor` that cannot be."""
        self.limit = read_limit(request, settings.SIGNALBOX_LIST_LIMIT)
        ordering = request.query_params.get("ordering") or getattr(view, "default_ordering", "-id")
        name = ordering.removeprefix("-")
        allowed = ("id", *getattr(view, "ordering_fields", ()))
        if name not in allowed:
            raise BadQuery("ordering", f"one of {', '.join(allowed)}, with - for falling, not “{ordering[:80]}”")
        given = request.query_params.get("cursor")
        place = _Place.parse(given) if given else None
        if place and place.ordering != ordering:
            raise BadQuery("cursor", f"this cursor is of the ordering {place.ordering[:80]}", code="invalid_cursor")
        falling = ordering.startswith("-") != bool(place and place.back)
        rows = self._behind(queryset, name, place, falling)
        sign = "-" if falling else ""
        found = list(rows.order_by(*dict.fromkeys([f"{sign}{name}", f"{sign}id"]))[: self.limit + 1])
        more, page = len(found) > self.limit, found[: self.limit]
        back = bool(place and place.back)
        if back:
            page.reverse()
        self.following = self._place(page, -1, ordering, name, back=False) if (more or back) else None
        self.preceding = self._place(page, 0, ordering, name, back=True) if (more if back else place) else None
        return page

    @staticmethod
    def _behind(queryset: QuerySet[Any], name: str, place: _Place | None, falling: bool) -> QuerySet[Any]:
        if place is None:
            return queryset
        word = "lt" if falling else "gt"
        if name == "id":
            return queryset.filter(**{f"id__{word}": place.pk})
        try:
            value = queryset.model._meta.get_field(name).to_python(place.value)
        except ModelValidationError as problem:
            raise BadQuery("cursor", "not a cursor of this list", code="invalid_cursor") from problem
        return queryset.filter(
            Q(**{f"{name}__{word}": value}) | Q(**{name: value, f"id__{word}": place.pk}), **{f"{name}__{word}e": value}
        )

    @staticmethod
    def _place(page: list[Any], number: int, ordering: str, name: str, *, back: bool) -> str | None:
        if not page:
            return None
        value = getattr(page[number], name)
        text = value.isoformat() if isinstance(value, datetime) else str(value)
        return _Place(ordering, back, text, page[number].pk).text()

    def get_paginated_response(self, data: Any) -> Response:
        """The page with the cursors of its neighbours."""
        return Response({"results": data, "next": self.following, "previous": self.preceding})

    def get_paginated_response_schema(self, schema: dict[str, Any]) -> dict[str, Any]:
        """The shape of a page, for the OpenAPI document."""
        cursor = {"type": ["string", "null"], "description": "Send it as `cursor`; null at the end."}
        return {
            "type": "object",
            "required": ["results", "next", "previous"],
            "properties": {"results": schema, "next": cursor, "previous": cursor},
        }

    def get_schema_operation_parameters(self, view: Any) -> list[dict[str, Any]]:
        """The parameters of every list, for the OpenAPI document."""
        names = [sign + name for name in ("id", *getattr(view, "ordering_fields", ())) for sign in ("-", "")]
        limit = {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": settings.SIGNALBOX_LIST_LIMIT}
        return [
            _parameter("cursor", "`next` or `previous` of another page.", {"type": "string"}),
            _parameter("limit", "Rows a page.", limit),
            _parameter("ordering", "The order; `-` is falling.", {"type": "string", "enum": names, "default": "-id"}),
            _parameter("fields", "Only these fields, parted by commas.", {"type": "string"}),
        ]


def _parameter(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": False, "description": description, "schema": schema}


def read_limit(request: Request, default: int) -> int:
    """`?limit=`, from 1 to 500. Raises BadQuery for anything else."""
    given = request.query_params.get("limit")
    if given is None:
        return default
    if not re.fullmatch(r"[0-9]{1,4}", given, re.ASCII) or not 1 <= int(given) <= MAX_LIMIT:
        raise BadQuery("limit", f"a whole number from 1 to {MAX_LIMIT}, not “{given[:80]}”")
    return int(given)


# -- endpoints ---------------------------------------------------------------------------------------------------


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

    lookup_url_kwarg = "id"
    lookup_value_regex = "[^/]+"
    http_method_names = ["get", "head", "post", "patch", "delete"]
    parser_classes = [StrictJSONParser]
    renderer_classes = [JSONRenderer]
    content_negotiation_class = AlwaysJSON
    filter_backends = [FilterBackend]
    pagination_class = CursorPages

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
        if any(UNSTORABLE.search(str(value)) for value in kwargs.values()):
            raise NotFound.of(self._noun())
        for name, values in request.query_params.lists():
            if any(UNSTORABLE.search(text) for text in (name, *values)):
                raise BadQuery(UNSTORABLE.sub("�", name), "text cannot hold NUL or half a surrogate pair")

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
        return cast("str | None", row.correlation().get("project_id"))

    # What is asked for

    def get_queryset(self) -> QuerySet[Any]:
        """The rows that the caller may see; in lists without their heavy columns."""
        queryset: Any = super().get_queryset()
        if getattr(self, "swagger_fake_view", False):
            return cast("QuerySet[Any]", queryset.none())
        if getattr(self, "action", None) == "list" and self.heavy:
            columns = {field.name for field in queryset.model._meta.concrete_fields}
            queryset = queryset.defer(*[name for name in self.heavy if name in columns])
        return cast("QuerySet[Any]", queryset.visible_to(self.principal))

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
        return self.noun or str(cast(Any, self.queryset).model.noun())

    def body(self, kind: type[serializers.Serializer[Any]], **options: Any) -> dict[str, Any]:
        """The body, checked by a serializer. Raises ValidationError with every wrong field."""
        serializer = kind(data=self.request.data, context=self.get_serializer_context(), **options)
        serializer.is_valid(raise_exception=True)
        return cast("dict[str, Any]", serializer.validated_data)

    def get_serializer_class(self) -> Any:
        """The serializer; in lists one without the heavy fields."""
        kind = super().get_serializer_class()
        if getattr(self, "action", None) != "list" or not self.heavy:
            return kind
        return _without(kind, tuple(self.heavy))

    def reply(self, row: Any, status: int = 200, **headers: str) -> Response:
        """The row as the database holds it now, with its ETag."""
        fresh = cast(Any, self.queryset).all().get(pk=row.pk)
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
        raise RequestDataTooBig
    bare.body  # noqa: B018 - reading it is the point: DRF parses what Django has read


def fingerprint(request: HttpRequest) -> str:
    """What makes a repeated request the same: its method, address and body."""
    head = f"{request.method}\n{request.get_full_path()}\n".encode()
    return hashlib.sha256(head + request.body).hexdigest()


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


# A twin that runs now is waited for, by its row; one whose time is over gives its row away.
_TAKE_KEY = """
INSERT INTO pipeline_storedanswer AS kept (id, principal, key, body_hash, status, headers, body, expires_at)
VALUES (%s, %s, %s, %s, 0, '{}', '', clock_timestamp() + %s)
ON CONFLICT (principal, key) DO UPDATE SET id = EXCLUDED.id, body_hash = EXCLUDED.body_hash, status = 0,
    headers = '{}', body = '', expires_at = EXCLUDED.expires_at
WHERE kept.expires_at <= clock_timestamp()
RETURNING 1
"""
_KEEP_ANSWER = "UPDATE pipeline_storedanswer SET status = %s, headers = %s::jsonb, body = %s WHERE id = %s"


class Repeatable:
    """A POST with an `Idempotency-Key`: its effect and its stored answer commit together, or neither does."""

    def __init__(self, principal: str, key: str, body_hash: str) -> None:
        self.principal, self.key, self.body_hash = principal, key, body_hash

    def answer(self, handler: Callable[[], Response], *, hide: Sequence[str] = ()) -> Response:
        """The handler's answer, or the stored one of an earlier request with this key.

        A twin that runs now is waited for: its row holds the unique key until it commits or rolls back. Only answers
        below 400 are kept, without the fields in `hide`; a refusal undoes its row too. Raises Refused
        `idempotency_mismatch` when the key was used for another body, method or address.
        """
        with transaction.atomic():
            if not self.take():
                stored = StoredAnswer.objects.select_for_update()
                return self._replay(stored.get(principal=self.principal, key=self.key))
            response = handler()
            if response.status_code >= 400 or response.status_code == 204:
                transaction.set_rollback(True)
                return response
            shown = response.data
            if hide and isinstance(shown, Mapping):
                shown = {name: value for name, value in shown.items() if name not in hide}
            headers = {name: value for name, value in response.items() if name in ("ETag", "Location")}
            self.keep(response.status_code, headers, JSONRenderer().render(shown).decode())
            return response

    def take(self) -> bool:
        """Take the key in the caller's transaction, which waits for a twin; False when there is a stored answer."""
        self.id = to_uuid(new_id())
        given = [self.id, self.principal, self.key, self.body_hash, ANSWER_LIFE]
        return bool(prepared.execute(_TAKE_KEY, given))

    def keep(self, status: int, headers: Mapping[str, str], body: str) -> None:
        """Store the answer under the key that was taken."""
        prepared.execute(_KEEP_ANSWER, [status, json.dumps(headers), body, self.id])

    def _replay(self, stored: StoredAnswer) -> Response:
        if stored.body_hash != self.body_hash:
            raise Refused("This Idempotency-Key was used for another request", code="idempotency_mismatch", status=422)
        data = json.loads(stored.body) if stored.body else None
        return Response(data, stored.status, headers={**stored.headers, "Idempotency-Replayed": "true"})


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
        view = cast(Endpoint, self)
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
        return asked_fields(request, cast(Endpoint, self).get_serializer().fields)


def asked_fields(request: Request, known: Collection[str]) -> Sequence[str]:
    """The fields to which `?fields=` trims an answer; () for all. Raises BadQuery for one that is not `known`."""
    names = [name.strip() for name in request.query_params.get("fields", "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise BadQuery("fields", f"unknown field “{name[:80]}”", code="unknown_field")
    return tuple(dict.fromkeys(names))


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
        model = cast(Any, self.queryset).model
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
        return pk, cast("dict[str, Any]", serializer.validated_data)

    def project_for(self, fields: Mapping[str, Any]) -> Project | str | None:
        """The project that a new row with these fields belongs to; None is the whole installation."""
        return cast("Project | None", fields.get("project"))

    def partial_update(self, request: Request, *args: Any, **kwargs: Any) -> Response:
        """Change the fields that the body names, if `If-Match` quotes the row's version."""
        row: Definition = self.get_object()
        version = self.expected_version()
        serializer = self.get_serializer(row, data=request.data, partial=True)
        serializer.is_valid(raise_exception=True)
        fields = cast("dict[str, Any]", serializer.validated_data)
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
