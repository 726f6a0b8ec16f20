"""The web process: one port, Django's WSGI handler in a pool of threads, and room for raw ASGI routes beside it.

Django's own ASGI handler costs two to five times the CPU of its WSGI handler (docs/decisions/0001).
"""

import os
from typing import Any

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "pipeline.settings")

from a2wsgi import WSGIMiddleware
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.utils.module_loading import autodiscover_modules

from pipeline import rawroutes
from pipeline.ending import OF_THIS_PROCESS
from pipeline.longpoll import LongPoll
from pipeline.rawroutes import Application

_wsgi: Any = get_wsgi_application()
_django: Application = LongPoll(WSGIMiddleware(_wsgi, workers=settings.SIGNALBOX_THREADS), OF_THIS_PROCESS)


def _raw_routes() -> None:
    """Paths answered without a thread, such as streams that stay open: ours, and those of the apps' own modules."""
    from pipeline.api.events import frame  # once Django is set up: these import models
    from pipeline.stream import EventStream

    rawroutes.register("/api/v1/events/stream/", EventStream(_wsgi.get_response, frame, ending=OF_THIS_PROCESS))
    autodiscover_modules("serving")


_raw_routes()


async def application(scope: Any, receive: Any, send: Any) -> None:
    """The ASGI application; WebSockets are not spoken and are closed by the server."""
    if scope["type"] == "http":
        await (rawroutes.find(scope["path"]) or _django)(scope, receive, send)
