"""What every request gets: an id that its answer, its events and its log lines carry."""

import re
from collections.abc import Callable

import structlog
from django.http import HttpRequest, HttpResponse

from pipeline import events
from pipeline.ids import new_id

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
