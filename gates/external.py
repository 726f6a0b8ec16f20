"""Gates that run elsewhere: a CI system takes a run, sends its reports, and says how it ended; we judge by the reports.

What is sent is read as if a command of ours had left it: recounted, bounded, and never believed over its contents. A
run that somebody took is theirs alone: whoever reports quotes the claim that the start gave them.
"""

import hashlib
import tempfile
import zlib
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

from django.conf import settings

from gates import criteria, evidence, measuring, runner
from gates.models import GateEvidence, GateRun
from pipeline import events
from pipeline.clock import db_now
from pipeline.ids import new_id
from pipeline.refusals import InvalidField, Refused
from pipeline.rows import in_transaction
from pipeline.states import InvalidMove

MAX_OUTPUT_CHARS = runner.HEAD_BYTES + runner.TAIL_BYTES
INFRA, TIMEOUT = "infra", "timeout"

# GitHub's words (https://docs.github.com/en/rest/checks/runs) for an end, as an exit code or a kind of error.
CONCLUSIONS: dict[str, int | str] = {
    "success": 0,
    "failure": 1,
    "timed_out": TIMEOUT,
    "action_required": INFRA,
    "cancelled": INFRA,
    "neutral": INFRA,
    "skipped": INFRA,
    "stale": INFRA,
}


class TooLate(Refused):
    """The time limit of this run is over."""

    code = "deadline_passed"


class NotExternal(Refused):
    """This run is ours to execute: nobody reports it from outside."""

    code = "gate_not_external"


def start(gate_run: GateRun, *, by: events.Actor, runner_name: str, command: list[str] | None = None) -> str:
    """Take a pending run; the claim that every later report quotes. Raises NotExternal, InvalidMove, `gate_blocked`."""
    _must_be_external(gate_run)
    claim = f"{runner_name}:{new_id()}"
    gate_run.start(by=by, runner=claim, command=command)
    return claim


def keep_evidence(gate_run: GateRun, kind: str, content: bytes, *, claim: str, shard: int = 0) -> GateEvidence:
    """Keep a report until the run is completed; another one of the kind, and of the shard, takes its place.

    `shard` counts from 1 where the gate has a report for each, and is 0 where it has one. Raises NotExternal,
    InvalidField for a kind that the gate does not ask for, a shard that it does not have or content over the limit,
    `stale_claim`, TooLate.
    """
    _must_be_external(gate_run)
    _must_be_asked_for(gate_run, kind, shard)
    if not content or len(content) > evidence.MAX_BYTES:
        raise InvalidField("content", f"1 to {evidence.MAX_BYTES} bytes, not {len(content)}", code="invalid_evidence")
    with in_transaction():
        current = GateRun.objects.select_for_update(no_key=True, of=("self",)).get(pk=gate_run.pk)
        _must_hold(current, claim)
        if late := _late(current):
            raise TooLate(f"This report came {late}: nothing that is sent now is judged")
        GateEvidence.objects.filter(gate_run=gate_run, kind=kind, shard=shard).delete()
        return GateEvidence.objects.create(
            gate_run=gate_run,
            kind=kind,
            shard=shard,
            sha256=hashlib.sha256(content).hexdigest(),
            size_bytes=len(content),
            content=zlib.compress(content, 6),
        )


def _must_be_asked_for(gate_run: GateRun, kind: str, shard: int) -> None:
    if kind not in evidence.KINDS:
        raise InvalidField("kind", f"unknown kind {kind[:40]!r}; known are {', '.join(evidence.KINDS)}")
    gate = gate_run.gate_as_asked()
    declared = gate.evidence
    if kind not in declared:
        asked = (
            f"it asks for {', '.join(declared)}" if declared else "it asks for no report, only for how the run ended"
        )
        raise InvalidField("kind", f"the gate {gate_run.name} does not ask for {kind}: {asked}")
    most = gate.shards if evidence.SHARD in declared[kind] else 0
    if most and not 1 <= shard <= most:
        raise InvalidField("shard", f"each of the {most} shards sends its own report: say which, from 1 to {most}")
    if not most and shard:
        raise InvalidField(
            "shard", f"the gate {gate_run.name} asks for one report of {kind}, and not for one per shard"
        )


def inflate(body: bytes, encoding: str, most_bytes: int) -> bytes:
    """The body without its Content-Encoding (gzip or none). Raises Refused `too_large`, `unsupported_media_type`, and
    `invalid_evidence` for a broken one.
    """
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        return body
    if encoding != "gzip":
        sentence = f"Content-Encoding gzip or none, not “{encoding[:40]}”"
        raise Refused(sentence, code="unsupported_media_type", status=415)
    inflater = zlib.decompressobj(16 + zlib.MAX_WBITS)
    try:
        plain = inflater.decompress(body, most_bytes + 1)
    except zlib.error:
        raise InvalidField("content", "the body is not gzip", code="invalid_evidence") from None
    if len(plain) > most_bytes:
        raise Refused(f"A report has at most {most_bytes} bytes", code="too_large", status=413)
    if not inflater.eof:
        raise InvalidField("content", "the gzip body is cut off", code="invalid_evidence")
    return plain


def complete(
    gate_run: GateRun,
    *,
    by: events.Actor,
    claim: str,
    exit_code: int | None = None,
    conclusion: str = "",
    output: str = "",
    duration_seconds: Decimal | None = None,
    shards: int | None = None,
) -> bool:
    """Judge a run by what was reported. Give either the exit code or GitHub's conclusion.

    Only `success` and an expected exit code can pass, and only with the evidence that the gate asks for. What comes
    after the time limit ends the run as error (timeout), whatever it says. Raises NotExternal, InvalidMove,
    `stale_claim`, InvalidField.
    """
    _must_be_external(gate_run)
    _must_hold(gate_run, claim)
    late = _late(gate_run)
    ended: int | str | None = CONCLUSIONS.get(conclusion) if conclusion else exit_code
    if (exit_code is None) == (not conclusion) or ended is None:
        raise InvalidField("exit_code", f"either an exit code or a conclusion of {', '.join(CONCLUSIONS)}")
    took = duration_seconds
    if took is None and gate_run.started_at is not None:
        took = Decimal(round((db_now() - gate_run.started_at).total_seconds(), 3))
    sent = GateEvidence.objects.filter(gate_run=gate_run, content__isnull=False)
    declared = gate_run.gate_as_asked().evidence
    executed = runner.Execution(
        exit_code=ended if isinstance(ended, int) else None,
        duration_seconds=float(took or 0),
        timed_out=ended == TIMEOUT or bool(late),
        output_limited=False,
        output="",
        killed=0,
        level=0,
    )
    lost = f"the system outside ended it as “{conclusion}”, which says nothing of the tree"
    with tempfile.TemporaryDirectory(prefix="gate-evidence-") as folder:
        for row in sent:
            # An older run has the evidence of its gate as it is, which may have been edited meanwhile.
            if row.kind in declared:
                place = Path(folder, declared[row.kind].replace(evidence.SHARD, str(row.shard)))
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(zlib.decompress(row.content or b""))
        tree = measuring.look_in_mirror(gate_run)
        judged = measuring.measure(gate_run, tree, Path(folder), executed, None, shards=shards, lost=lost)
    told, judgement = judged.pop("evidence"), judged.pop("judgement")
    if late:
        judgement = replace(judgement, reason=f"Error (timeout): its end was reported {late}")
    text, redactions = runner.clean(output[-MAX_OUTPUT_CHARS:], (settings.SECRET_KEY, settings.SIGNALBOX_PEPPER))
    with in_transaction():
        moved = gate_run.complete(
            judgement,
            by=by,
            runner=claim,
            results=judged["results"],
            findings=judged["findings"],
            shards_seen=judged["shards_seen"],
            exit_code=executed.exit_code,
            duration_seconds=took,
            output_tail=text,
            evidence={**told, "reported": {"conclusion": conclusion, "redactions": redactions}},
        )
        GateEvidence.objects.filter(gate_run=gate_run).update(content=None)
    return moved


def _late(gate_run: GateRun) -> str:
    """How long after its time limit it is now by the database's clock, in words; empty while there is time."""
    if gate_run.deadline_at is None or (over := (db_now() - gate_run.deadline_at).total_seconds()) < 0:
        return ""
    return f"{over:.1f} s after its time limit"


def forget_contents() -> int:
    """Drop the contents of reports whose run ended without being completed by their sender; answers how many."""
    left = GateEvidence.objects.filter(gate_run__state__in=GateRun.ENDED, content__isnull=False)
    return left.update(content=None)


def close_unheard(*, by: events.Actor = events.SYSTEM) -> int:
    """End the runs that nobody outside began in time as error (infra); returns how many."""
    done = 0
    waiting = GateRun.objects.filter(state=GateRun.State.PENDING, external=True).select_related("gate")
    for gate_run in waiting.order_by("pk")[:500]:
        seconds = gate_run.gate.limit_seconds if gate_run.gate else settings.SIGNALBOX_GATE_TIMEOUT_SECONDS
        if gate_run.created_at > db_now() - timedelta(seconds=seconds) or gate_run.blocking():
            continue
        unheard = criteria.Judgement("error", INFRA, None, f"no system outside began it within {seconds} s")
        try:
            with in_transaction():
                gate_run.start(by=by, runner="nobody")
                done += gate_run.complete(unheard, by=by, runner="nobody")
        except Refused:
            continue
    return done


def check_run(gate_run: GateRun) -> dict[str, Any]:
    """The run as GitHub's check-run document, to be sent on as it is: name, head_sha, status, conclusion, output."""
    ended = gate_run.state in GateRun.ENDED
    item = gate_run.queue_item
    document: dict[str, Any] = {
        "name": gate_run.name,
        "head_sha": item.candidate_commit if item is not None else "",
        "external_id": gate_run.pk,
        "status": {GateRun.State.PENDING: "queued", GateRun.State.RUNNING: "in_progress"}.get(
            GateRun.State(gate_run.state), "completed"
        ),
        "started_at": gate_run.started_at,
        "conclusion": _conclusion(gate_run) if ended else None,
        "completed_at": gate_run.completed_at,
        "output": {
            "title": gate_run.get_state_display(),
            "summary": (gate_run.decision_reason or gate_run.state_reason)[:65535],
        },
    }
    return document


def _conclusion(gate_run: GateRun) -> str:
    if gate_run.state == GateRun.State.PASSED:
        return "success"
    if gate_run.is_waived:
        return "neutral"
    if gate_run.state == GateRun.State.SKIPPED:
        return "skipped"
    if gate_run.state == GateRun.State.FAILED:
        return "failure"
    kinds = {GateRun.ErrorKind.TIMEOUT: "timed_out", GateRun.ErrorKind.INFRA: "cancelled"}
    return kinds.get(GateRun.ErrorKind(gate_run.error_kind), "failure")


def _must_be_external(gate_run: GateRun) -> None:
    if not gate_run.external:
        raise NotExternal("Signalbox executes this gate itself, so nobody reports it from outside")


def _must_hold(gate_run: GateRun, claim: str) -> None:
    if gate_run.state == GateRun.State.RUNNING and gate_run.runner != claim:
        raise Refused(f"Stale claim: gate run {gate_run.pk} belongs to another runner", code="stale_claim")
    if gate_run.state != GateRun.State.RUNNING:
        allowed = GateRun.MOVES[GateRun.State(gate_run.state)]
        raise InvalidMove(gate_run, gate_run.state, "reported", verb="report on gate", allowed=allowed)
