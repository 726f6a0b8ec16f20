"""The web process: one port, Django's WSGI handler in a pool of threads, and room for raw ASGI routes beside it.

Django's own ASGI handler costs two to five times the CPU of its WSGI handler (docs/decisions/0001).
"""

import os

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "pipeline.settings")

from a2wsgi import WSGIMiddleware
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from uvicorn._types import ASGI3Application, ASGIReceiveCallable, ASGISendCallable, Scope

_django = WSGIMiddleware(get_wsgi_application(), workers=settings.SIGNALBOX_THREADS)

RAW_ROUTES: dict[str, ASGI3Application] = {}
"""Paths answered without a thread, such as streams that stay open: one line each, `"/path/": application`."""


async def application(scope: Scope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
    """The ASGI application; WebSockets are not spoken and are closed by the server."""
    if scope["type"] == "http":
        await RAW_ROUTES.get(scope["path"], _django)(scope, receive, send)
