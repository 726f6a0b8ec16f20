"""Calling the product's WSGI application as a web server does, and the leanest Django view beside it."""

import io
import json
from typing import Any

from django.core.handlers.wsgi import WSGIHandler, WSGIRequest
from django.core.wsgi import get_wsgi_application
from django.test import override_settings


class MinimalRequest(WSGIRequest):
    """A request that is routed by the baseline's two-line URL conf."""

    urlconf = "tests.bench.minimal"


class MinimalHandler(WSGIHandler):
    """Django without any middleware."""

    request_class = MinimalRequest


class Web:
    """One WSGI application, called in this process: its CPU is this process's CPU."""

    def __init__(self, application: Any, key: str) -> None:
        self.application = application
        self.key = key

    @classmethod
    def product(cls, key: str) -> "Web":
        """The product, with all its middleware."""
        return cls(get_wsgi_application(), key)

    @classmethod
    def minimal(cls, key: str) -> "Web":
        """Django with no middleware and the baseline's views."""
        with override_settings(MIDDLEWARE=[]):
            return cls(MinimalHandler(), key)

    def post(self, path: str, body: Any = None, **headers: str) -> Any:
        """The answer's document to a POST; a body that is bytes already is sent as it is.

        Raises AssertionError unless the status is 2xx.
        """
        sent = body if isinstance(body, bytes) else json.dumps({} if body is None else body).encode()
        environ = {
            "REQUEST_METHOD": "POST",
            "SCRIPT_NAME": "",
            "PATH_INFO": path,
            "QUERY_STRING": "",
            "SERVER_NAME": "localhost",
            "SERVER_PORT": "8000",
            "SERVER_PROTOCOL": "HTTP/1.1",
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_HOST": "localhost",
            "HTTP_AUTHORIZATION": f"Bearer {self.key}",
            "CONTENT_TYPE": "application/json",
            "CONTENT_LENGTH": str(len(sent)),
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.input": io.BytesIO(sent),
            "wsgi.errors": io.StringIO(),
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
        }
        told: list[str] = []

        def start_response(status: str, _headers: Any, _problem: Any = None) -> None:
            told.append(status)

        response = self.application(environ, start_response)
        try:
            answer = b"".join(response)
        finally:
            response.close()
        if not told[0].startswith("2"):
            raise AssertionError(f"{path} answered {told[0]}: {answer[:500]!r}")
        return json.loads(answer) if answer else None
