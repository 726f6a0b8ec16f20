"""The workers' hot paths: what an agent program calls thousands of times a minute (pipeline.hotpath)."""

import re
from collections.abc import Callable, Mapping
from typing import Any

from django.db import transaction

from pipeline import hotpath, longpoll, prepared
from pipeline.hotpath import Answer, Call
from pipeline.ids import is_id, to_uuid
from pipeline.joined import Joined
from pipeline.models import ApiKey
from pipeline.refusals import Refused
from workers import claims, heartbeats
from workers.models import Lease, Worker

MAX_BEATS = 100
MAX_WORDS = 100
MAX_USE = 200
MAX_SECONDS = 10**9
BEAT = {"process_alive", "activity", "leases"}
LEASE = {"id", "generation", "progress", "stopping"}
MAX_INT = 2**31 - 1
MAX_MESSAGE = 64 * 1024


def beat(call: Call) -> Answer | None:
    """POST /workers/{id}/heartbeat/"""
    told = _beat(call.pk, call.body)
    found = told and heartbeats.by_key(told, prefix=call.prefix, secret_hash=call.secret_hash)
    return Answer(found) if found else None


def many_beats(call: Call) -> Answer | None:
    """POST /workers/heartbeats/"""
    given = call.body.get("workers")
    if not isinstance(given, list) or len(call.body) > 1 or not 1 <= len(given) <= MAX_BEATS:
        return None
    beats = []
    for one in given:
        if not isinstance(one, dict) or not isinstance(one.get("id"), str):
            return None
        told = _beat(one["id"], {name: value for name, value in one.items() if name != "id"})
        if told is None:
            return None
        beats.append(told)
    found = heartbeats.many_by_key(beats, prefix=call.prefix, secret_hash=call.secret_hash)
    return Answer({"answers": found}) if found else None


def _beat(pk: str, body: Mapping[str, Any]) -> heartbeats.Beat | None:
    """The heartbeat, if every field of it is what it should be without being read in any other way."""
    if not body.keys() <= BEAT or not isinstance(body.get("process_alive", True), bool):
        return None
    leases = body.get("leases", [])
    if not isinstance(leases, list) or not isinstance(body.get("activity", ""), str):
        return None
    for one in leases:
        if not isinstance(one, dict) or not one.keys() <= LEASE or type(one.get("generation")) is not int:
            return None
        if not 0 <= one["generation"] <= MAX_INT or not isinstance(one.get("stopping", False), bool):
            return None
        progress = one.get("progress", {})
        # What is nested is looked at for its depth by the endpoint.
        if not isinstance(progress, dict) or any(isinstance(part, dict | list) for part in progress.values()):
            return None
    try:
        return heartbeats.read(pk, **body)
    except Refused:
        return None


_CLAIMANT = Joined(k=(ApiKey, None), w=(Worker, None))
_READ_CLAIMANT = f"""
SELECT {_CLAIMANT.columns} FROM pipeline_apikey k JOIN workers_worker w ON w.api_key_id = k.id
WHERE w.id = %(worker)s AND {heartbeats.GOOD_KEY}
"""
_REPORTER = Joined(k=(ApiKey, None), l=(Lease, None), w=(Worker, None))
_READ_REPORTER = f"""
SELECT {_REPORTER.columns} FROM workers_lease l JOIN workers_worker w ON w.id = l.worker_id
    JOIN pipeline_apikey k ON k.id = w.api_key_id
WHERE l.id = %(lease)s AND {heartbeats.GOOD_KEY}
"""


def claim(call: Call) -> Answer | None:
    """POST /workers/{id}/claim/"""
    body = call.body
    words, seconds = body.get("capabilities"), body.get("wait_seconds", 0)
    plain = body.keys() <= {"capabilities", "max", "wait_seconds"} and is_id(call.pk) and body.get("max", 1) == 1
    if not plain or type(seconds) is not int or not 0 <= seconds <= claims.MAX_WAIT_SECONDS:
        return None
    if type(body.get("max", 1)) is not int or not (words is None or _are_words(words)):
        return None
    found = prepared.execute(_READ_CLAIMANT, {"worker": to_uuid(call.pk), **_key_of(call)})
    if not found:
        return None
    read = _CLAIMANT.rows(found[0])
    worker: Worker = read["w"]
    worker.api_key = read["k"]
    if worker.state != Worker.State.IDLE or worker.shutdown_requested_at is not None:
        return None
    candidates = claims.candidates(worker, worker.capabilities if words is None else words)
    if not candidates:
        return _nothing(call, seconds)
    repeat = call.repeatable(read["k"])
    try:
        with transaction.atomic():
            if repeat is not None and not repeat.take():
                return None
            lease = claims.claim_first(worker, candidates)
            if lease is None:
                transaction.set_rollback(True)
                return _nothing(call, seconds)
            document = claims.with_address(claims.document(lease), call.request)
            if repeat is not None:
                repeat.keep(200, {}, hotpath.encode(document))
    except Refused:
        return None
    return Answer(document)


def _nothing(call: Call, seconds: int) -> Answer | None:
    """There is nothing now. Who may wait is kept by the long poll, or waits in the endpoint."""
    if call.request.META.get("asgi.scope", {}).get(longpoll.WAITS):
        return Answer(None, 204, {longpoll.WAIT_HEADER: str(seconds)})
    return None if seconds else Answer(None, 204)


def complete(call: Call) -> Answer | None:
    """POST /leases/{id}/complete/"""
    given = _success(call.body)
    return None if given is None else _end(call, claims.complete, given)


def fail(call: Call) -> Answer | None:
    """POST /leases/{id}/fail/"""
    given = _failure(call.body)
    return None if given is None else _end(call, claims.fail, given)


def _end(call: Call, verb: Callable[..., dict[str, Any]], given: dict[str, Any]) -> Answer | None:
    """What `verb` answers, when the lease that the call names is live, of this generation, and of the call's key."""
    if not is_id(call.pk):
        return None
    found = prepared.execute(_READ_REPORTER, {"lease": to_uuid(call.pk), **_key_of(call)})
    if not found:
        return None
    read = _REPORTER.rows(found[0])
    lease: Lease = read["l"]
    lease.worker = read["w"]
    lease.worker.api_key = read["k"]
    if lease.ended_at is not None or lease.generation != given["generation"]:
        return None
    repeat = call.repeatable(read["k"])
    try:
        with transaction.atomic():
            if repeat is not None and not repeat.take():
                return None
            document = verb(lease, by=claims.actor(lease.worker, lease.generation), **given)
            if repeat is not None:
                repeat.keep(200, {}, hotpath.encode(document))
    except Refused:
        return None
    return Answer(document)


DURATION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,6})?")
REPORT = {"generation", "exit_code", "duration_seconds", "output_tail", "session_ref", "usage"}
SUCCESS = REPORT | {"patch_ids"}
FAILURE = REPORT | {"outcome", "error_code", "error_message"}
"""Of a failure without a question to a person, and without a time at which a quota is there again."""


def _success(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """The report, if every field of it is what it should be without being read in any other way."""
    ids = body.get("patch_ids", [])
    if not body.keys() <= SUCCESS or not isinstance(ids, list) or len(ids) > MAX_WORDS:
        return None
    return _report(body) if all(is_id(pk) for pk in ids) else None


def _failure(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """As _success, of an attempt that ended otherwise."""
    outcome, code = body.get("outcome"), body.get("error_code", "")
    message = body.get("error_message", "")
    if not body.keys() <= FAILURE or not _is_plain(outcome, 32) or not outcome:
        return None
    given = _report(body) if _is_plain(code, 200) and _is_plain(message, MAX_MESSAGE) else None
    if given is None:
        return None
    given["error"] = given.pop("error_message", "")
    return given


def _is_plain(text: Any, length: int) -> bool:
    """Whether it is a text that is taken as it is."""
    return isinstance(text, str) and len(text) <= length and text == text.strip()


def _report(body: Mapping[str, Any]) -> dict[str, Any] | None:
    """What both reports have in common, and what else stands in this one."""
    generation, code = body.get("generation"), body.get("exit_code")
    if type(generation) is not int or not 0 <= generation <= MAX_INT:
        return None
    if not (code is None or (type(code) is int and abs(code) <= MAX_INT)):
        return None
    if not isinstance(body.get("output_tail", ""), str) or not _is_plain(body.get("session_ref", ""), 200):
        return None
    duration = body.get("duration_seconds")
    if isinstance(duration, str):
        plain = DURATION.fullmatch(duration) is not None
    else:
        plain = duration is None or (type(duration) in (int, float) and 0 <= duration <= MAX_SECONDS)
    usage = _use(body.get("usage", [])) if plain else None
    return None if usage is None else {**body, "usage": usage}


def _use(given: Any) -> list[dict[str, Any]] | None:
    """What was used, as the endpoint reads it; None when it would refuse it."""
    if not isinstance(given, list) or len(given) > MAX_USE:
        return None
    if not given:
        return []
    from workers.api import Use  # the endpoints import the URL conf's parts, which this module comes before

    items = Use(data=given, many=True)
    return [dict(item) for item in items.validated_data] if items.is_valid() else None


def _are_words(given: Any) -> bool:
    if not isinstance(given, list) or len(given) > MAX_WORDS:
        return False
    return all(isinstance(word, str) and 0 < len(word) <= 64 and word == word.strip() for word in given)


def _key_of(call: Call) -> dict[str, str]:
    return {"prefix": call.prefix, "secret_hash": call.secret_hash}


hotpath.register(r"/api/v1/workers/([^/]+)/claim/", claim)
hotpath.register(r"/api/v1/leases/([^/]+)/complete/", complete)
hotpath.register(r"/api/v1/leases/([^/]+)/fail/", fail)
hotpath.register(r"/api/v1/workers/([^/]+)/heartbeat/", beat)
hotpath.register(r"/api/v1/workers/(heartbeats)/", many_beats)
