"""One claimed task, from its checkout to the report: the tool runs only while the lease is surely ours."""

import logging
import os
import time
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import Any
from urllib.parse import quote

from workers.agent import clock, usage
from workers.agent.adapters import Adapter, Level, Result
from workers.agent.claim import Claim, InvalidRequest
from workers.agent.client import Answer, Client, Patience, Refusal, Unreachable
from workers.agent.heartbeat import Heart, Held, directive_in
from workers.agent.output import Redactor
from workers.agent.process import CouldNotStart
from workers.agent.workspace import DiffTooLarge, DiffUnreadable, GitFailed, Interrupted, Remote, Workspace

SUMMARY_LENGTH = 512
MESSAGE_LENGTH = 2000
LEASE_GRACE_SECONDS = 45.0
"""How long `deadline_at` of a lease lies behind its `timeout_at` (domain.md §2.2.2)."""

# What servers learned later than the rest of a report; agents are brought up to date apart from them.
_YOUNG_IN_FAILURE = frozenset({"session_ref", "until", "question"})
_YOUNG_IN_USAGE = frozenset({"stated_amount"})

_POLL_SECONDS = 0.1
_ACKNOWLEDGE_SECONDS = 2.0

logger = logging.getLogger("signalbox.agent")


@dataclass(frozen=True)
class Timing:
    """How long the agent waits for what. Tests scale it down."""

    terminate_after_seconds: float = 15.0
    kill_after_seconds: float = 25.0
    trust_margin_seconds: float = 5.0
    idle_pause_seconds: float = 1.0
    refused_pause_seconds: float = 5.0
    farewell_seconds: float = 10.0
    strange_seconds: float = 60.0
    patience: Patience = field(default_factory=Patience)

    def margin_seconds(self, timeout_seconds: float) -> float:
        """How long before the lease's end we stop trusting it; a third of a very short lease."""
        return min(self.trust_margin_seconds, timeout_seconds / 3)

    def ladder(self, start: float, end: float) -> list[tuple[float, Level]]:
        """When to stop how hard, from `start` on: the usual steps, drawn together so that the last is before `end`."""
        scale = min(1.0, max(0.0, end - start) / self.kill_after_seconds) if self.kill_after_seconds > 0 else 0.0
        return [
            (start, Level.INTERRUPT),
            (start + scale * self.terminate_after_seconds, Level.TERMINATE),
            (start + scale * self.kill_after_seconds, Level.KILL),
        ]


class Cause(Enum):
    """Why a tool is stopped, with the outcome and the error code that the server is told (domain.md §2.1.10)."""

    TIMEOUT = ("task_failed", "timeout_exceeded")
    STOP = ("cancelled", "stop_requested")
    SHUTDOWN = ("cancelled", "worker_shutdown")
    UNTRUSTED = ("infra_lost", "trust_expired")
    LOST = ("stale_claim", "stale_claim")
    EARLY = ("", "ended_early")  # its adapter says how: money used up, a question, no quota

    @property
    def outcome(self) -> str:
        """The word for the attempt's end."""
        return self.value[0]

    @property
    def code(self) -> str:
        """The error code."""
        return self.value[1]


@dataclass
class Told:
    """How often the program was told to end, and when first. Written by a signal handler: plain numbers, no lock."""

    times: int = 0
    first_at: float = 0.0

    def again(self) -> None:
        """Notes one more time."""
        self.times += 1
        if self.times == 1:
            self.first_at = clock.now()


class Attempt:
    """Works on one claim and reports how it ended.

    `timeout_seconds` is the length of the lease, `claimed_at` the moment (`clock.now()`) when the claim arrived.
    """

    def __init__(
        self,
        claim: Claim,
        held: Held,
        *,
        heart: Heart,
        reporter: "Reporter",
        remote: Remote,
        told: Told,
        timing: Timing,
        timeout_seconds: float,
        claimed_at: float,
    ) -> None:
        self.claim = claim
        self.remote = remote
        self.held = held
        self.heart = heart
        self.told = told
        self.timing = timing
        self.timeout_seconds = timeout_seconds
        self.tool_until = claimed_at + claim.task.timeout_seconds
        self.lease_until = self.tool_until + LEASE_GRACE_SECONDS
        self.cause: Cause | None = None
        self._tool_is_done = False
        self.reporter = reporter
        self._adapter: Adapter | None = None

    def run(self, adapter: Adapter, workdir: Path, *, withheld: tuple[str, ...], keep_workspace: bool) -> None:
        """Everything, in order. No value of the environment that holds one of `withheld` reaches the tool."""
        self._adapter = adapter
        try:
            workspace = Workspace(workdir, self.held.id, lambda: self.find_cause() is not None)
        except OSError as error:
            self.reporter.fail(self._broken("infra_lost", "workspace_failed", str(error)), "", [])
            return
        try:
            result, diff = self._carry_out(adapter, workspace, withheld)
            if self.cause is Cause.LOST:
                logger.warning("lease %s is lost: the result is discarded", self.held.id)
                return
            if self.cause in (Cause.STOP, Cause.SHUTDOWN) and result.metadata.get("left_alive"):
                # Nobody may be told that it has stopped. The lease runs out, and its end stays unconfirmed.
                logger.error("%d processes of lease %s cannot be killed", adapter.left_alive, self.held.id)
                return
            used, wrong = self._usage(result, adapter, workspace)
            tail = output_tail(result, wrong)
            if result.success:
                self.reporter.succeed(self.claim, result, diff, tail, used)
            else:
                self.reporter.fail(result, tail, used)
        finally:
            adapter.close()
            if not keep_workspace:
                workspace.remove()

    def find_cause(self) -> Cause | None:
        """Why to stop, if there is a reason. The first reason stays, but for a lease that is lost or no longer sure.

        Once the tool has ended, its work is only given up with the lease, or when the program is told to end twice.
        """
        moment = clock.now()
        if self.held.lost or self.heart.gone:
            self.cause = Cause.LOST
        elif moment >= self.held.confirmed_at + self.timeout_seconds - self.timing.margin_seconds(self.timeout_seconds):
            self.cause = Cause.UNTRUSTED
        elif self.cause is None:
            if moment >= (self.lease_until if self._tool_is_done else self.tool_until):
                self.cause = Cause.TIMEOUT
            elif self.told.times > int(self._tool_is_done):
                self.cause = Cause.SHUTDOWN
            elif self.held.stop_asked and not self._tool_is_done:
                self.cause = Cause.STOP
            elif self._adapter is not None and self._adapter.early is not None and not self._tool_is_done:
                self.cause = Cause.EARLY
        return self.cause

    def _carry_out(self, adapter: Adapter, workspace: Workspace, withheld: tuple[str, ...]) -> tuple[Result, str]:
        """The result, and the diff where it is a success."""
        try:
            workspace.check_out(self.claim.checkout, remote=self.remote, litter=adapter.litter)
            invocation = adapter.prepare(workspace.tree, workspace.scratch)
        except Interrupted:
            return self._stopped(adapter), ""
        except InvalidRequest as error:
            return self._broken("task_failed", "invalid_request", str(error)), ""
        except (GitFailed, DiffTooLarge, OSError) as error:
            return self._broken("infra_lost", "checkout_failed", str(error)), ""
        # The answer to the claim may have been long under way. No tool starts before the lease is known to stand.
        while not self.held.confirmed:
            if self.find_cause() is not None:
                return self._stopped(adapter), ""
            time.sleep(_POLL_SECONDS / 10)
        if self.find_cause() is not None:
            return self._stopped(adapter), ""
        try:
            adapter.launch(invocation, environment=self._environment(workspace, withheld), directory=workspace.tree)
        except CouldNotStart as error:
            return self._broken("task_failed", "launch_failed", str(error)), ""
        self._watch(adapter)
        adapter.close()
        self._tool_is_done = True
        self.held.tool_alive = False
        self.held.activity = "unknown"
        if self.cause is not None:
            return self._stopped(adapter), ""
        result = adapter.collect()
        if not result.success:
            return result, ""
        return self._judge_diff(result, workspace, adapter)

    def _watch(self, adapter: Adapter) -> None:
        """Until the tool has ended: passes on what it says, and stops it when there is a cause."""
        ladder: list[tuple[float, Level]] | None = None
        trusted_for = 0.0
        reserve = self.timing.margin_seconds(self.timeout_seconds) / 5
        while not adapter.ended:
            for heard in adapter.signals():
                self.held.activity = heard.activity or self.held.activity
            self._note(adapter)
            end = min(self.held.confirmed_at + self.timeout_seconds, self.lease_until) - reserve
            moment = clock.now()
            if end != trusted_for:
                adapter.trust(max(0.0, end - moment))
                trusted_for = end
            cause = self.find_cause()
            if cause is not None:
                if ladder is None:
                    code = adapter.early.error_code if cause is Cause.EARLY and adapter.early else cause.code
                    logger.info("stopping %s: %s", self.claim.request.tool, code)
                    ladder = self.timing.ladder(moment, end)
                if self.held.stop_asked and not self.held.stopping:
                    self.held.stopping = True
                    self.heart.beat_soon()
                if cause is Cause.LOST or self.told.times > 1 or moment >= end:
                    ladder = [(moment, Level.KILL)]
                while ladder and moment >= ladder[0][0]:
                    adapter.stop(ladder.pop(0)[1])
            adapter.wait(_POLL_SECONDS)
        self._note(adapter)

    def _note(self, adapter: Adapter) -> None:
        """Keeps what the next heartbeat says of the tool."""
        self.held.output_bytes, self.held.movement = adapter.output_bytes, adapter.movement
        self.held.tool_alive = not adapter.is_frozen

    def _stopped(self, adapter: Adapter) -> Result:
        """The result of an attempt that was stopped for a cause."""
        cause = self.find_cause()
        assert cause is not None
        if self.held.stop_asked and cause is Cause.STOP:
            self._acknowledge()
        if cause is Cause.EARLY and adapter.early is not None:
            return adapter.judged(adapter.early)
        result = adapter.ending(success=False, outcome=cause.outcome, error_code=cause.code)
        tool = self.claim.request.tool
        if cause is Cause.TIMEOUT:
            limit = f"{self.claim.task.timeout_seconds:g}"
            return replace(result, exit_code=-1, error_message=f"{tool} timed out after {limit} s")
        sentences = {
            Cause.STOP: f"{tool} was stopped as asked",
            Cause.SHUTDOWN: f"{tool} was stopped: the agent was told to end",
            Cause.UNTRUSTED: f"{tool} was stopped: no heartbeat was confirmed in time",
            Cause.LOST: f"{tool} was stopped: the lease is lost",
        }
        return replace(result, error_message=sentences[cause])

    def _acknowledge(self) -> None:
        """Lets the server hear "stopping" before it hears "stopped", if it can be reached."""
        self.held.stopping = True
        self.heart.beat_soon()
        give_up_at = clock.now() + _ACKNOWLEDGE_SECONDS
        while not (self.held.acknowledged or self.held.lost or self.heart.gone) and clock.now() < give_up_at:
            time.sleep(_POLL_SECONDS / 10)

    def _judge_diff(self, result: Result, workspace: Workspace, adapter: Adapter) -> tuple[Result, str]:
        try:
            diff = workspace.diff()
        except Interrupted:
            return self._stopped(adapter), ""
        except DiffTooLarge as error:
            return self._unusable(result, "patch_too_large", str(error)), ""
        except DiffUnreadable as error:
            return self._unusable(result, "diff_not_utf8", str(error)), ""
        except (GitFailed, OSError) as error:
            return self._unusable(result, "diff_failed", str(error)), ""
        if not diff and result.unchanged is not None:
            verdict = result.unchanged
            unusable = self._unusable(result, verdict.error_code, verdict.message)
            return replace(unusable, outcome=verdict.outcome, until=verdict.until, question=verdict.question), ""
        if not diff and self.claim.task.requires_patch:
            return self._unusable(result, "no_edit", f"{self.claim.request.tool} changed nothing"), ""
        return result, diff

    @staticmethod
    def _unusable(result: Result, code: str, message: str) -> Result:
        return replace(result, success=False, outcome="task_failed", error_code=code, error_message=message)

    @staticmethod
    def _broken(outcome: str, code: str, message: str) -> Result:
        return Result(
            success=False, outcome=outcome, exit_code=None, duration_seconds=0.0, error_code=code, error_message=message
        )

    def _environment(self, workspace: Workspace, withheld: tuple[str, ...]) -> dict[str, str]:
        """What the tool sees: its own folders, the ids of its work, and the names that the request allows."""
        allowed = {
            name: os.environ[name]
            for name in self.claim.request.env_allow
            if name in os.environ
            and not name.startswith("SIGNALBOX_")
            and not any(secret in os.environ[name] for secret in withheld)
        }
        return {
            "LANG": "C.UTF-8",
            "PATH": os.environ.get("PATH", os.defpath),
            **allowed,
            "HOME": str(workspace.home),
            "TMPDIR": str(workspace.temporary),
            "SIGNALBOX_TASK": self.claim.task.id,
            "SIGNALBOX_RUN": self.claim.task.run,
            "SIGNALBOX_LEASE": self.held.id,
            "SIGNALBOX_USAGE_FILE": str(workspace.usage_file),
            "OTEL_RESOURCE_ATTRIBUTES": self._origin(),
        }

    def _origin(self) -> str:
        """Whose work it is, as telemetry of the tool carries it: pairs, comma between, values percent-encoded."""
        ids = {
            "lease": self.held.id,
            "generation": str(self.held.generation),
            "attempt": self.claim.lease.attempt,
            "task": self.claim.task.id,
            "run": self.claim.task.run,
            "project": self.claim.task.project,
        }
        return ",".join(f"signalbox.{name}={quote(value, safe='')}" for name, value in ids.items() if value)

    def _usage(self, result: Result, adapter: Adapter, workspace: Workspace) -> tuple[list[dict[str, Any]], list[str]]:
        """What was used up, and what was wrong with the tool's own account; nothing if it never ran."""
        if adapter.process is None:
            return [], []
        written, wrong = usage.read_file(workspace.usage_file, self.held.id)
        wrong = [*result.complaints, *(f"usage file: {complaint}" for complaint in wrong)]
        return [usage.running_time(self.held.id, adapter.duration_seconds), *result.usage, *written], wrong


def output_tail(result: Result, wrong: list[str]) -> str:
    """The end of both streams in one text, and a line of ours for each thing that was wrong with its account."""
    tail = result.stdout_tail
    if result.stderr_tail:
        tail = f"{tail}\n--- stderr ---\n{result.stderr_tail}" if tail else result.stderr_tail
    return "\n".join(filter(None, [tail, *(f"[agent] {complaint}" for complaint in wrong)]))


class Reporter:
    """Tells the server how an attempt ended, until it has heard it or the lease is over at `until`.

    The same `Idempotency-Key` over all tries makes a report that was heard, but whose answer was lost, count once.
    """

    def __init__(
        self, held: Held, *, heart: Heart, client: Client, told: Told, timing: Timing, until: float, redactor: Redactor
    ) -> None:
        self.held = held
        self.heart = heart
        self.client = client
        self.told = told
        self.timing = timing
        self.until = until
        self.redactor = redactor

    def succeed(self, claim: Claim, result: Result, diff: str, tail: str, used: list[dict[str, Any]]) -> None:
        """Submits the diff, if there is one, and completes; a refused patch or completion becomes a failure."""
        patches: list[str] = []
        try:
            if diff:
                answer = self._post(
                    "/patches/",
                    {
                        "lease": self.held.id,
                        "generation": self.held.generation,
                        "base_commit": claim.checkout.commit,
                        "diff_text": diff,
                        "summary": (claim.task.name or claim.task.key)[:SUMMARY_LENGTH],
                    },
                )
                patches.append(str(answer.body.get("id", "")))
            answer = self._post_known(
                f"/leases/{self.held.id}/complete/",
                {
                    "generation": self.held.generation,
                    "exit_code": result.exit_code,
                    "duration_seconds": round(result.duration_seconds, 3),
                    "output_tail": tail,
                    "patch_ids": patches,
                    "usage": used,
                    "session_ref": result.session_ref,
                },
            )
        except Refusal as refusal:
            if self._is_over(refusal):
                return
            logger.warning("the result was refused: %s", refusal)
            refused = replace(
                result, outcome="task_failed", error_code=refusal.code, error_message=refusal.detail or str(refusal)
            )
            # Usage may be what was refused; the time the tool ran, our own figure, is never wrong in form.
            self.fail(refused, tail, used if diff and not patches else used[:1])
        except Unreachable as error:
            logger.warning("the result could not be reported before the lease ended: %s", error)
        else:
            self.heart.release(directive_in(answer.body))

    def fail(self, result: Result, tail: str, used: list[dict[str, Any]]) -> None:
        """Reports a failure. What the server does not take is logged, and left to the end of the lease."""
        body = {
            "generation": self.held.generation,
            "outcome": result.outcome,
            "error_code": result.error_code,
            "error_message": self.redactor.text(result.error_message.replace("\0", "\ufffd"))[:MESSAGE_LENGTH],
            "exit_code": result.exit_code,
            "duration_seconds": round(result.duration_seconds, 3),
            "output_tail": tail,
            "usage": used,
        }
        for name, value in (
            ("session_ref", result.session_ref),
            ("until", result.until),
            ("question", self.redactor.question(result.question)),
        ):
            if value:
                body[name] = value
        path = f"/leases/{self.held.id}/fail/"
        try:
            try:
                answer = self._post_known(path, body, young=_YOUNG_IN_FAILURE)
            except Refusal as refusal:
                if self._is_over(refusal) or not used[1:]:
                    raise
                answer = self._post_known(path, {**body, "usage": used[:1]}, young=_YOUNG_IN_FAILURE)
        except (Refusal, Unreachable) as error:
            logger.warning("the failure could not be reported: %s", error)
        else:
            self.heart.release(directive_in(answer.body))

    def _post_known(self, path: str, body: dict[str, Any], *, young: frozenset[str] = frozenset()) -> Answer:
        """Posts a report; a server that does not know its younger fields yet gets it without them. Raises Refusal."""
        self.heart.report(self.held)
        try:
            return self._post(path, body)
        except Refusal as refusal:
            plain = {name: value for name, value in body.items() if name not in young}
            plain["usage"] = [{n: v for n, v in item.items() if n not in _YOUNG_IN_USAGE} for item in body["usage"]]
            if refusal.code != "unknown_field" or plain == body:
                raise
            logger.warning("%s; said again without what this server does not know", refusal)
            return self._post(path, plain)

    def _post(self, path: str, body: dict[str, Any]) -> Answer:
        return self.client.post(path, body, deadline=self.until, give_up=self._gives_up)

    def _gives_up(self) -> bool:
        if self.told.times == 0:
            return False
        return self.told.times > 1 or clock.now() > self.told.first_at + self.timing.farewell_seconds

    def _is_over(self, refusal: Refusal) -> bool:
        """Whether the lease is no longer ours, so that there is nothing left to report."""
        if refusal.is_stale or refusal.status in {401, 403, 404, 410}:
            logger.warning("the result is discarded: %s", refusal)
            return True
        return False
