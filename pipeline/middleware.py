"""What every request gets: an id that its answer, its events and its log lines carry, and a body that is whole."""

import re
from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse, JsonResponse

from pipeline import events
from pipeline.ids import new_id
from pipeline.problems import CONTENT_TYPE, document

GIVEN = re.compile(r"[A-Za-z0-9._-]{8,64}")


class RequestIdMiddleware:
    """Takes a well-formed `X-Request-Id`, or makes one, and gives it back with the answer."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request under its id."""
        given = request.headers.get("X-Request-Id", "")
        name = given if GIVEN.fullmatch(given) else new_id()
        request.request_id = name  # type: ignore[attr-defined]
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
