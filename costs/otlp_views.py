"""OTLP over HTTP: `/otlp/v1/metrics`, `/otlp/v1/logs` and `/otlp/v1/traces`, in JSON and protobuf, gzip or plain.

Plain views, outside the API's serializers: the protocol fixes bodies, errors and encodings, and exporters are many.
"""

from collections.abc import Callable

from django.core.exceptions import RequestDataTooBig
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt

from costs import ingest, otlp
from pipeline.auth import Principal, find_key
from pipeline.refusals import Refused


def _answered(request: HttpRequest, take: Callable[[bytes, str, str, Principal], bytes]) -> HttpResponse:
    """What `take` answers, or why not, as the protocol has it: 200, 400, 401, 403, 405, 413, 415."""
    kind = request.headers.get("Content-Type", "")
    shown = otlp.PROTOBUF if kind.partition(";")[0].strip().lower() == otlp.PROTOBUF else otlp.JSON

    def refuse(status: int, why: str, **headers: str) -> HttpResponse:
        return HttpResponse(otlp.failure(why, kind), status=status, content_type=shown, headers=headers)

    if request.method != "POST":
        return refuse(405, "POST only", Allow="POST")
    scheme, _space, text = request.headers.get("Authorization", "").partition(" ")
    key = find_key(text.strip()) if scheme.lower() == "bearer" else None
    if key is None:
        why = "a live key of Signalbox as Authorization: Bearer sbx_… (OTEL_EXPORTER_OTLP_HEADERS)"
        return refuse(401, why, **{"WWW-Authenticate": 'Bearer realm="signalbox"'})
    principal = Principal.of_key(key)
    if not principal.is_worker and not (principal.may("operator", key.project_id) or principal.project_ids("operator")):
        return refuse(403, "this needs the role operator, or a worker's key")
    try:
        answer = take(request.body, kind, request.headers.get("Content-Encoding", ""), principal)
    except RequestDataTooBig:
        return refuse(413, "the body is too large; send it by gzip, or in smaller batches")
    except Refused as refusal:
        return refuse(refusal.status, str(refusal))
    return HttpResponse(answer, content_type=otlp.encoding_of(kind))


@csrf_exempt
def metrics(request: HttpRequest) -> HttpResponse:
    """Take in metrics; a partial success says which points were refused, and why."""
    return _answered(request, ingest.take_metrics)


@csrf_exempt
def logs(request: HttpRequest) -> HttpResponse:
    """Take in logs; a partial success says which records were refused, and why."""
    return _answered(request, ingest.take_logs)


@csrf_exempt
def traces(request: HttpRequest) -> HttpResponse:
    """Count traces, and forget them."""
    return _answered(request, lambda body, kind, encoding, _who: ingest.take_traces(body, kind, encoding))
