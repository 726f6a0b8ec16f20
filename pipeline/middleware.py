"""What every request gets: an id that its answer, its events and its log lines carry, a body that is whole, text that
can be stored.
"""

import re
from collections.abc import Callable
from itertools import chain
from typing import Any

import structlog
from django.core.exceptions import BadRequest
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse

from pipeline import events
from pipeline.ids import new_id
from pipeline.problems import CONTENT_TYPE, document, is_for_program
from pipeline.storable import WHY, is_storable

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data")
GIVEN = re.compile(r"[A-Za-z0-9._-]{8,64}")


class RequestIdMiddleware:
    """Takes a well-formed `X-Request-Id`, or makes one, and gives it back with the answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request under its id."""
        given = request.headers.get("X-Request-Id", "")
        name = given if GIVEN.fullmatch(given) else new_id()
        request.request_id = name  # type: ignore[attr-defined]  # for the foot of a page
        token = events.request_id.set(name)
        structlog.contextvars.bind_contextvars(request_id=name)
        try:
            response = self.get_response(request)
        finally:
            structlog.contextvars.unbind_contextvars("request_id")
            events.request_id.reset(token)
        response["X-Request-Id"] = name
        return response


class BodyLengthMiddleware:
    """Refuses a body without a stated length: the server behind us would read it as empty, and lose it in silence."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer 411 to `Transfer-Encoding: chunked`, the request otherwise."""
        if request.headers.get("Transfer-Encoding") and not request.META.get("CONTENT_LENGTH"):
            told = document(411, "length_required", "Send the body with a Content-Length; chunked bodies are not read")
            return JsonResponse(told, status=411, content_type=CONTENT_TYPE)
        return self.get_response(request)


class StorableMiddleware:
    """Refuses what no row can hold before a page asks the database for it; the API says it by field (rest.endpoints).

    The admin's forms name the field themselves, so their bodies are left to them.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request."""
        return self.get_response(request)

    def process_view(self, request: HttpRequest, view: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Raises Http404 for an address that names nothing that could be there, BadRequest for such a parameter."""
        if is_for_program(request):
            return
        if not is_storable(*map(str, kwargs.values())):
            raise Http404(WHY)
        given = [request.GET]
        if request.content_type in FORMS and not request.path_info.startswith("/admin/"):
            given.append(request.POST)
        for name, values in chain.from_iterable(one.lists() for one in given):
            if not is_storable(name, *map(str, values)):
                raise BadRequest(WHY)
