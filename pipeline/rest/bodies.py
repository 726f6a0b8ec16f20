"""What comes in: strict JSON, and serializers that know every field and take no other."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from django.db import models
from django.db.models import QuerySet
from drf_spectacular.utils import extend_schema_field
from rest_framework import serializers
from rest_framework.exceptions import ParseError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from pipeline.auth import principal_of
from pipeline.ids import PATTERN, ULIDField, is_id
from pipeline.models import Project
from pipeline.refusals import InvalidField, NotFound
from pipeline.storable import ESCAPED, MAX_DEPTH, WHY, is_storable, walk

M = TypeVar("M", bound=models.Model)

ID_SCHEMA = {"type": "string", "pattern": f"^{PATTERN.pattern}$", "examples": ["01JD9Z6X8Q4W2M5T7R3B1C0VNK"]}


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
    for path, depth, value in walk(document):
        if isinstance(value, str) and not is_storable(value):
            raise InvalidField(path, WHY)
        if depth > MAX_DEPTH and isinstance(value, dict | list):
            raise ParseError(f"The document is deeper than {MAX_DEPTH} levels")


class AlwaysJSON(BaseContentNegotiation):
    """Answers are JSON whatever `Accept` says; the body must be of a type that one of the parsers reads."""

    def select_parser(self, request: Request, parsers: Iterable[BaseParser]) -> BaseParser | None:
        """The parser for the request's content type; None makes it a 415."""
        kind = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type in (kind, "*/*")), None)

    def select_renderer(self, request: Request, renderers: Iterable[Any], format_suffix: Any = None) -> Any:
        """The first renderer."""
        first = next(iter(renderers))
        return first, first.media_type


class Strict(serializers.Serializer[Any]):
    """A body in which every field is known: an unknown one is refused, never ignored."""

    def get_fields(self) -> dict[str, Any]:
        """The fields; one that takes a word of a list says which words, when it is given another."""
        fields: dict[str, Any] = super().get_fields()
        for field in fields.values():
            one = getattr(field, "child", field)
            if isinstance(one, serializers.ChoiceField):
                allowed = ", ".join(str(word) for word in one.choices if word != "")
                one.error_messages["invalid_choice"] = f"one of {allowed}, not “{{input}}”"
        return fields

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
        known: dict[str, models.Model] = _found(self.context, queryset.model)
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
        return known[data]


def _found(context: Any, model: type[M]) -> dict[str, M]:
    """What this body has named of `model` so far: a thousand events of one run look it up once."""
    found: dict[str, M] = context.setdefault("found", {}).setdefault(model, {})
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
