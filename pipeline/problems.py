"""How the API says no: every error, whoever raises it, becomes one RFC 9457 problem document."""

import logging
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied, RequestDataTooBig, SuspiciousOperation
from django.core.exceptions import ValidationError as ModelValidationError
from django.db import DataError, IntegrityError, InterfaceError, OperationalError
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views import defaults
from rest_framework import exceptions
from rest_framework.response import Response

from pipeline import events
from pipeline.refusals import Refused

log = logging.getLogger(__name__)

CONTENT_TYPE = "application/problem+json"
API_PREFIX = "/api/"
RETRY_SECONDS = 2
"""What a caller is asked to wait when the database did not answer in time: about one lock timeout."""

# Our words for the codes of DRF's and Django's field checks; every other one is `invalid_field`.
FIELD_CODES = {
    "required": "missing_required_field",
    "missing_required_field": "missing_required_field",
    "unknown_field": "unknown_field",
    "invalid_id": "invalid_id",
    "unknown_filter": "unknown_filter",
}
# The guards of pipeline.states, by name.
STATE_GUARDS = ("moves", "birth")


def problem(
    status: int,
    code: str,
    detail: str,
    *,
    errors: list[dict[str, str]] | None = None,
    parts: Mapping[str, Any] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """The answer with this status whose body is the problem document; `parts` never hide the document's own members."""
    return Response(document(status, code, detail, errors, parts), status, content_type=CONTENT_TYPE, headers=headers)


def document(
    status: int,
    code: str,
    detail: str,
    errors: list[dict[str, str]] | None = None,
    parts: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The members of a problem document (RFC 9457 §3.1) with ours: `code`, `errors`, `request_id` and the `parts`."""
    return {
        **(events.plain(parts) if parts else {}),
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": errors or [],
        "request_id": events.request_id.get(),
    }


def exception_handler(exc: Exception, context: dict[str, Any]) -> Response:
    """The answer to any exception that a view raised. Never None, never a trace: the unknown is logged, and a 500."""
    if isinstance(exc, Refused):
        return of_refusal(exc)
    if isinstance(exc, exceptions.ValidationError):
        return _of_fields(list(_flat(exc.get_full_details())), in_query=getattr(exc, "in_query", False))
    if isinstance(exc, ModelValidationError):
        return _of_fields(list(_of_model(exc)))
    if isinstance(exc, exceptions.APIException):
        return _of_framework(exc)
    if isinstance(exc, Http404):
        return problem(404, "not_found", "Not found")
    if isinstance(exc, PermissionDenied):
        return problem(403, "permission_denied", str(exc) or "You may not do this")
    if isinstance(exc, RequestDataTooBig):
        return problem(413, "too_large", _too_big(exc.args[0] if exc.args else None))
    if isinstance(exc, SuspiciousOperation):
        return problem(400, "malformed", "The request is malformed")
    if isinstance(exc, IntegrityError):
        return _of_constraint(exc)
    if isinstance(exc, OperationalError | InterfaceError):
        log.warning("the database did not answer: %s", exc)
        return unavailable()
    if isinstance(exc, DataError):
        log.warning("the database took a value for no value: %s", exc)
        return problem(422, "invalid_field", "A value is outside what can be stored")
    log.error("unexpected error in the API", exc_info=exc)
    return problem(500, "internal_error", "Something went wrong here; it is logged under the request id")


def of_refusal(refusal: Refused) -> Response:
    """The answer to a domain's refusal. One that leaves a trace does so now, when its own transaction is undone."""
    trace = getattr(refusal, "leave_trace", None)
    if trace is not None:
        try:
            trace()
        except Exception:
            log.exception("the trace of %s could not be written", refusal.code)
    field = refusal.parts.get("field")
    errors = [{"field": str(field), "code": refusal.code, "detail": str(refusal)}] if field else []
    wait = refusal.parts.get("retry_after")
    headers = {"Retry-After": str(int(wait))} if isinstance(wait, int | float) else None
    return problem(refusal.status, refusal.code, str(refusal), errors=errors, parts=refusal.parts, headers=headers)


def unavailable() -> Response:
    """503 for a database that is down, busy or slow, with the time after which to try again."""
    return problem(
        503,
        "unavailable",
        "The database did not answer in time; nothing was changed, try again",
        parts={"retry_after": RETRY_SECONDS},
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


def _of_fields(errors: list[dict[str, str]], *, in_query: bool = False) -> Response:
    """One document for all wrong fields; its own code is the gravest of theirs. What is wrong in a query is a 400."""
    codes = [error["code"] for error in errors]
    for code in ("unknown_filter", "unknown_field"):
        if code in codes:
            return problem(400, code, _sentence(errors), errors=errors)
    code = codes[0] if len(set(codes)) == 1 else "invalid_field"
    return problem(400 if in_query else 422, code, _sentence(errors), errors=errors)


def _sentence(errors: list[dict[str, str]]) -> str:
    first = errors[0]
    if first["code"] == "missing_required_field":
        text = f"Missing required field: {first['field']}"
    else:
        text = f"{first['field']}: {first['detail']}" if first["field"] else first["detail"]
    more = len(errors) - 1
    return f"{text} (and {more} more)" if more else text


def _flat(details: Any, path: str = "") -> Iterator[dict[str, str]]:
    """The leaves of DRF's nested error details, each with the dotted path of its field."""
    if isinstance(details, Mapping) and set(details) == {"message", "code"} and isinstance(details["code"], str):
        code = FIELD_CODES.get(details["code"], "invalid_field")
        yield {"field": path, "code": code, "detail": str(details["message"])}
    elif isinstance(details, Mapping):
        for name, inner in details.items():
            if isinstance(name, int):  # a row of a list in which others are right
                yield from _flat(inner, f"{path}[{name}]")
                continue
            step = "" if name == "non_field_errors" else str(name)
            yield from _flat(inner, ".".join(part for part in (path, step) if part))
    else:
        rows = list(details)
        nested = any(isinstance(row, Mapping) and set(row) != {"message", "code"} for row in rows)
        for number, row in enumerate(rows):
            yield from _flat(row, f"{path}[{number}]" if nested else path)


def _of_model(exc: ModelValidationError) -> Iterator[dict[str, str]]:
    """The errors of a model's own check."""
    by_field = exc.error_dict if hasattr(exc, "error_dict") else {"": exc.error_list}
    for field, found in by_field.items():
        for one in found:
            code = FIELD_CODES.get(one.code or "", "invalid_field")
            yield {"field": "" if field == "__all__" else field, "code": code, "detail": " ".join(one.messages)}


def _of_framework(exc: exceptions.APIException) -> Response:
    """DRF's own errors, in our words."""
    headers: dict[str, str] = {}
    if header := getattr(exc, "auth_header", None):
        headers["WWW-Authenticate"] = header
    if (wait := getattr(exc, "wait", None)) is not None:
        headers["Retry-After"] = str(max(1, int(wait)))
    given = exc.get_codes()
    codes: dict[type[Exception], str] = {
        exceptions.ParseError: "malformed",
        exceptions.NotAuthenticated: "not_authenticated",
        exceptions.AuthenticationFailed: "invalid_key" if given == "invalid_key" else "not_authenticated",
        exceptions.PermissionDenied: "permission_denied",
        exceptions.NotFound: "not_found",
        exceptions.MethodNotAllowed: "method_not_allowed",
        exceptions.NotAcceptable: "not_acceptable",
        exceptions.UnsupportedMediaType: "unsupported_media_type",
        exceptions.Throttled: "slow_down",
    }
    code = next((code for kind, code in codes.items() if isinstance(exc, kind)), "refused")
    parts = {"retry_after": int(headers["Retry-After"])} if "Retry-After" in headers else None
    return problem(exc.status_code, code, str(exc.detail), parts=parts, headers=headers)


def _of_constraint(exc: IntegrityError) -> Response:
    """What PostgreSQL refused, by the name of the guard; its own text names columns and values, so it stays inside."""
    diag = getattr(exc.__cause__, "diag", None)
    name = getattr(diag, "constraint_name", None) or ""
    log.warning("PostgreSQL refused by %s: %s", name or "a constraint", exc)
    if name in STATE_GUARDS:
        return problem(409, "invalid_move", "Invalid transition: the state does not allow this")
    return problem(409, "conflict", "This contradicts what is stored", parts={"constraint": name})


# -- what Django answers before or beside a view ------------------------------------------------------------------


def is_for_program(request: HttpRequest) -> bool:
    """Whether the caller is a program, by the address that it asked."""
    return request.path_info.startswith(API_PREFIX)


def bare(status: int, code: str, detail: str, parts: Mapping[str, Any] | None = None) -> HttpResponse:
    """A problem document outside DRF."""
    return JsonResponse(document(status, code, detail, parts=parts), status=status, content_type=CONTENT_TYPE)


def _too_big(size: object) -> str:
    """How large a body may be, and how large this one is when its sender has said so."""
    most = f"at most {settings.DATA_UPLOAD_MAX_MEMORY_SIZE} bytes are taken"
    return f"The body has {size} bytes; {most}" if isinstance(size, int) else f"The body is too large; {most}"


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler400: a body that is too large, a host that is not ours, a suspicious request."""
    if not is_for_program(request):
        return defaults.bad_request(request, exception)
    if isinstance(exception, RequestDataTooBig):
        return bare(413, "too_large", _too_big(None))
    return bare(400, "malformed", "The request is malformed")


def denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler403."""
    if not is_for_program(request):
        return defaults.permission_denied(request, exception)
    return bare(403, "permission_denied", "You may not do this")


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404."""
    if not is_for_program(request):
        return defaults.page_not_found(request, exception)
    return bare(404, "not_found", "There is nothing at this address")


def server_error(request: HttpRequest) -> HttpResponse:
    """Django's handler500. Its log holds the trace, under the request id."""
    if not is_for_program(request):
        return defaults.server_error(request)
    return bare(500, "internal_error", "Something went wrong here; it is logged under the request id")
