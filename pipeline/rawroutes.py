"""Addresses answered beside Django, without a thread: each app registers its own raw ASGI applications here.

An app does so in its module `serving`, which the web process discovers (pipeline/asgi.py), and nobody else loads.
"""

import re
from collections.abc import Awaitable, Callable
from typing import Any

Application = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application: scope, receive, send (https://asgi.readthedocs.io/en/latest/specs/main.html)."""

_routes: list[tuple[re.Pattern[str], Application]] = []


def register(path: str, application: Application) -> None:
    """HTTP requests whose path matches the whole pattern `path` are answered by `application`; the first one wins."""
    _routes.append((re.compile(path), application))


def find(path: str) -> Application | None:
    """The application for `path`; None for Django's own addresses."""
    return next((application for pattern, application in _routes if pattern.fullmatch(path)), None)
