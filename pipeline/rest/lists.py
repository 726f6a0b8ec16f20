"""What is asked for: filters, cursor pages, and parameters that are known or refused."""

import base64
import json
import re
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import Any, NamedTuple

import django_filters
from django.conf import settings
from django.core.exceptions import ValidationError as ModelValidationError
from django.db import models
from django.db.models import Q, QuerySet
from django_filters.filterset import FILTER_FOR_DBFIELD_DEFAULTS
from django_filters.rest_framework import DjangoFilterBackend
from rest_framework.pagination import BasePagination
from rest_framework.request import Request
from rest_framework.response import Response

from pipeline.ids import ULIDField, is_id
from pipeline.refusals import Refused
from pipeline.storable import is_storable

MAX_LIMIT = 500


class BadQuery(Refused):
    """A parameter of the address has a value that it cannot have; `field` names it."""

    code = "invalid_field"
    status = 400

    def __init__(self, field: str, message: str, *, code: str | None = None) -> None:
        super().__init__(f"{field}: {message}", code=code, field=field)


class IdFilter(django_filters.CharFilter):
    """Rows that point to this id. Raises BadQuery `invalid_id` for what is none."""

    parameter = ""

    def filter(self, qs: QuerySet[Any], value: Any) -> QuerySet[Any]:
        """Exact."""
        if value in (None, ""):
            return qs
        if not is_id(value):
            raise BadQuery(self.parameter or self.field_name, "not an id: 26 characters", code="invalid_id")
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
        filters: dict[str, Any] = super().get_filters()
        for name, one in list(filters.items()):
            if isinstance(one, IdFilter):
                one.parameter = name
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
            name, problems = next(iter(filterset.errors.items()))
            if isinstance(filterset.filters[name], django_filters.ChoiceFilter):
                allowed = ", ".join(str(value) for value, _label in filterset.filters[name].field.choices if value)
                raise BadQuery(name, f"one of {allowed}, not “{request.query_params.get(name, '')[:80]}”")
            raise BadQuery(str(name), " ".join(str(one) for one in problems))
        found: QuerySet[Any] = filterset.qs
        return found


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
        if not good or not is_id(place.pk) or not is_storable(place.value):
            raise BadQuery("cursor", "not a cursor of this list", code="invalid_cursor")
        return place


class CursorPages(BasePagination):
    """Pages by a keyset (column, id), newest first, so that rows written meanwhile neither repeat nor hide any."""

    def paginate_queryset(self, queryset: Any, request: Request, view: Any = None) -> list[Any]:
        """One page. Raises BadQuery for a `limit`, `ordering` or `cursor` that cannot be."""
        self.limit = read_limit(request, settings.SIGNALBOX_LIST_LIMIT)
        default: str = getattr(view, "default_ordering", "-id")
        ordering = request.query_params.get("ordering") or default
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


def asked_fields(request: Request, known: Collection[str]) -> Sequence[str]:
    """The fields to which `?fields=` trims an answer; () for all. Raises BadQuery for one that is not `known`."""
    names = [name.strip() for name in request.query_params.get("fields", "").split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise BadQuery("fields", f"unknown field “{name[:80]}”", code="unknown_field")
    return tuple(dict.fromkeys(names))
