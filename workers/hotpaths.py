"""The workers' hot paths: what an agent program calls thousands of times a minute (pipeline.hotpath)."""

from collections.abc import Mapping
from typing import Any

from pipeline import hotpath
from pipeline.hotpath import Answer, Call
from pipeline.refusals import Refused
from workers import heartbeats

MAX_BEATS = 100
BEAT = {"process_alive", "activity", "leases"}
LEASE = {"id", "generation", "progress", "stopping"}
MAX_INT = 2**31 - 1


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


hotpath.register(r"/api/v1/workers/([^/]+)/heartbeat/", beat)
hotpath.register(r"/api/v1/workers/(heartbeats)/", many_beats)
