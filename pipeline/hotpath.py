"""The calls of the hot path, answered before all other middleware: only their plain good case, in few statements.

An agent's heartbeats and claims come thousands of times a minute, and most of what a call costs is spent on its way
through the middleware, the routing and the serialisers. An app registers, in its module `hotpaths`, a function that
answers the plain good case of one address. Whatever is not plain (an unusual header or body, a key that is not good,
a refusal) it leaves undone: the call then takes the long way through its endpoint, which answers it as if nothing had
been tried. So there is one place where things are refused, and one contract.
"""

import json
import logging
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from django.conf import settings
from django.core.exceptions import DisallowedHost, RequestDataTooBig
from django.db import Error as DatabaseError
from django.http import HttpRequest, HttpResponse
from django.http.request import UnreadablePostError
from django.utils.module_loading import autodiscover_modules

from pipeline import limits, problems
from pipeline.models import ApiKey
from pipeline.models.key import hash_secret
from pipeline.storable import ESCAPED

if TYPE_CHECKING:
    from pipeline.rest import Repeatable

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 256 * 1024
"""A longer body takes the long way."""

# An answer in JSON is no page: nothing may frame it, and nobody is to guess another type.
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}
REPEAT = re.compile(r"[\x20-\x7e]{1,200}")
KEY = re.compile(r"Bearer sbx_([a-z0-9]{8})_([A-Za-z0-9_-]{1,200})")


class Call(NamedTuple):
    """One call: the id that its address names, its JSON body (an object), the key that it came with, as the database
    holds it, and the request itself.
    """

    pk: str
    body: dict[str, Any]
    prefix: str
    secret_hash: str
    request: HttpRequest

    def repeatable(self, key: ApiKey) -> "Repeatable | None":
        """What makes a repeat of this call by `key` harmless, when it brought an `Idempotency-Key`."""
        from pipeline.rest import Repeatable, fingerprint  # imports the serialisers, which need the apps

        given = self.request.META.get("HTTP_IDEMPOTENCY_KEY")
        return None if given is None else Repeatable(f"key:{key.pk}", given, fingerprint(self.request))


class Answer(NamedTuple):
    """What a hot path says to a call."""

    document: Any
    status: int = 200
    headers: dict[str, str] = {}


Hot = Callable[[Call], Answer | None]
"""Answers the plain good case of a call, having checked its key; None, with nothing written, leaves it alone."""

_paths: list[tuple[re.Pattern[str], Hot]] = []


def register(path: str, hot: Hot) -> None:
    """POST requests to addresses that match the whole pattern `path`, whose only group is an id, are tried by `hot`."""
    _paths.append((re.compile(path), hot))


class HotPathMiddleware:
    """Tries the hot paths; everything else, and what they left undone, goes on."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        autodiscover_modules("hotpaths")
        self.headers = dict(HEADERS)
        if settings.SECURE_HSTS_SECONDS:
            self.headers["Strict-Transport-Security"] = (
                f"max-age={settings.SECURE_HSTS_SECONDS}; includeSubDomains; preload"
            )

    def __call__(self, request: HttpRequest) -> HttpResponse:
        """Answer the request."""
        if request.method == "POST":
            for pattern, hot in _paths:
                if found := pattern.fullmatch(request.path_info):
                    return self._try(request, found[1], hot) or self.get_response(request)
        return self.get_response(request)

    def _try(self, request: HttpRequest, pk: str, hot: Hot) -> HttpResponse | None:
        call = read(request, pk)
        if call is None:
            return None
        seconds = limits.wait(call.secret_hash)
        if seconds > 0:
            refusal = limits.SlowDown(seconds)
            response: HttpResponse = problems.bare(429, refusal.code, str(refusal), refusal.parts)
            response["Retry-After"] = str(refusal.parts["retry_after"])
        else:
            try:
                answer = hot(call)
            except DatabaseError as problem:
                # What was begun is undone, and the endpoint says what there is to say; a repeat is as harmless as ever.
                log.warning("%s goes the long way: %s", request.path_info, problem)
                return None
            if answer is None:
                return None
            limits.count(call.secret_hash)
            text = "" if answer.document is None else encode(answer.document)
            response = HttpResponse(text, "application/json", answer.status)
            if answer.document is None:
                del response["Content-Type"]
            for name, value in answer.headers.items():
                response[name] = value
        for name, value in self.headers.items():
            response[name] = value
        return response


encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
"""A document as the text of an answer."""


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a number of JSON")


_decode = json.JSONDecoder(parse_constant=_no_constant).decode


def read(request: HttpRequest, pk: str) -> Call | None:
    """The call, if it is a plain one; None for anything that the long way has to look at."""
    meta = request.META
    key = KEY.fullmatch(meta.get("HTTP_AUTHORIZATION", ""))
    length = meta.get("CONTENT_LENGTH") or ""
    plain = (
        key is not None
        and meta.get("CONTENT_TYPE") == "application/json"
        and not meta.get("QUERY_STRING")
        and length.isdigit()
        and 0 < int(length) <= MAX_BODY_BYTES
        and REPEAT.fullmatch(meta.get("HTTP_IDEMPOTENCY_KEY", "none"))
        and not meta.get("HTTP_IF_MATCH")
        and (request.is_secure() or not settings.SECURE_SSL_REDIRECT)
    )
    if key is None or not plain:
        return None
    try:
        request.get_host()
        raw = request.body
        if ESCAPED.search(raw):
            return None
        body = _decode(raw.decode("utf-8"))
    except (DisallowedHost, RequestDataTooBig, UnreadablePostError, ValueError, RecursionError):
        return None
    if not isinstance(body, dict):
        return None
    return Call(pk, body, key[1], hash_secret(key[2]), request)
