"""The agent's life: register, beat, claim, work; drain, shut down, or crash, and say which."""

import logging
import os
import platform
import shutil
import socket
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from workers.agent import __version__, clock
from workers.agent import claim as claims
from workers.agent.adapters import Registry, Result
from workers.agent.attempt import LEASE_GRACE_SECONDS, Attempt, Reporter, Timing, Told
from workers.agent.claim import InvalidRequest
from workers.agent.client import Client, NotThisApi, Refusal, Unreachable
from workers.agent.heartbeat import Heart, Held
from workers.agent.output import Redactor, parts_of_key, secrets_in
from workers.agent.workspace import Remote

FINISHED, CRASHED, REFUSED, FORCED = 0, 1, 2, 130
"""Exit codes: ended as asked; unexpected error; the server does not want this key or this agent, or there is none; told
to end twice.
"""

TRACE_LENGTH = 8 * 1024

_POLL_SECONDS = 0.1

logger = logging.getLogger("signalbox.agent")


@dataclass(frozen=True)
class Settings:
    """What an agent is told at its start.

    `adapters` are the names of the adapters that it may use, `tools` the tool keys that it offers (none = any).
    `config` holds those of heartbeat_interval, timeout_seconds, stall_after and max_parallel_tasks that are to differ
    from the server's defaults. With `once` it claims a single time. Without `workdir` it makes a folder and removes it.
    """

    url: str
    key: str
    adapters: tuple[str, ...] = ("shell",)
    tools: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    name: str = ""
    workdir: Path | None = None
    once: bool = False
    wait_seconds: int = 20
    keep_workspaces: bool = False
    config: Mapping[str, int] = field(default_factory=dict)
    timing: Timing = field(default_factory=Timing)


class ToldToEnd(BaseException):
    """Raised by a signal handler into a wait that would otherwise go on; no `except Exception` takes it."""


class Agent:
    """One worker. `run` is called from one thread, `tell_to_end` from a signal handler or any thread."""

    def __init__(self, settings: Settings, registry: Registry) -> None:
        self.settings = settings
        self.timing = settings.timing
        self.registry = registry
        self.told = Told()
        self.redactor = Redactor([*parts_of_key(settings.key), *secrets_in(os.environ)])
        self.client = self._client(30.0)
        self._heart: Heart | None = None
        self._timeout_seconds = 60.0
        self._may_raise = False
        self._own_folder: Path | None = None

    def tell_to_end(self, *, raising: bool = False) -> None:
        """Told once, it stops its tool by escalation, reports, and shuts down; told twice, it kills the tool at once.

        With `raising`, for signal handlers of the thread that runs the agent, a long wait for the server is broken off.
        """
        self.told.again()
        if raising and self._may_raise:
            raise ToldToEnd

    def run(self) -> int:
        """Works until it is drained, told to end, or done; answers the exit code for the program."""
        try:
            self._serve()
            self._shut_down()
        except Refusal as refusal:
            logger.critical("the server refuses this agent: %s", refusal)
            return REFUSED
        except NotThisApi as error:
            logger.critical(
                "%s gave no other answer for %g s: %s", self.settings.url, self.timing.strange_seconds, error
            )
            return REFUSED
        except Exception as error:
            logger.exception("unexpected error")
            self._report_crash(error)
            return CRASHED
        finally:
            if self._heart is not None:
                self._heart.close()
            self.client.close()
            if self._own_folder is not None and not self.settings.keep_workspaces:
                shutil.rmtree(self._own_folder, ignore_errors=True)
        return FORCED if self.told.times > 1 else FINISHED

    def _serve(self) -> None:
        """Until there is a reason to shut down."""
        served = False
        try:
            heart = self._register()
            while not self.told.times:
                if heart.gone:
                    heart = self._register()
                elif heart.directive in ("drain", "stop") or (served and self.settings.once):
                    return
                elif heart.directive == "pause":
                    self._idle(self.timing.idle_pause_seconds)
                else:
                    served = self._claim_and_work(heart)
        except ToldToEnd:
            # A claim may have been under way, and answered; the shutdown gives its lease back. The broken connection
            # is not used again.
            self.client = self.client.fresh()

    # --- the worker ---

    def _register(self) -> Heart:
        """Registers as a new worker, for as long as it takes, and starts its heart. Raises Refusal.

        At the start of the program, NotThisApi too: later the address is known to be right, however oddly a proxy
        answers while its server starts anew.
        """
        bears_seconds = self.timing.strange_seconds if self._heart is None else None
        if self._heart is not None:
            self._heart.close()
            self._heart = None
        host = socket.gethostname()
        body = {
            "worker_type": "executor",
            "name": self.settings.name or f"{host}-{os.getpid()}",
            "host": host,
            "tools": list(self.settings.tools),
            "capabilities": list(self.settings.capabilities),
            "config": dict(self.settings.config),
            "metadata": {
                "pid": os.getpid(),
                "version": __version__,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "adapters": list(self.settings.adapters),
            },
        }
        while True:
            try:
                with self._breakable():
                    registered = self.client.post(
                        "/workers/", body, give_up=self._is_told, strange_seconds=bears_seconds
                    ).body
                break
            except Unreachable:
                if not self.told.times:
                    raise
                raise ToldToEnd from None
            except Refusal as refusal:
                if refusal.status != 409:
                    raise
                logger.warning("not registered: %s", refusal)
                self._idle(self.timing.refused_pause_seconds)
        self._timeout_seconds = float(registered["timeout_seconds"])
        interval_seconds = float(registered["heartbeat_interval"])
        self._heart = Heart(
            self._client(max(1.0, min(10.0, interval_seconds))),
            str(registered["id"]),
            interval_seconds=interval_seconds,
            patience=self.timing.patience,
        )
        logger.info("registered as worker %s", self._heart.worker)
        return self._heart

    def _shut_down(self) -> None:
        """Confirms the end of a worker that the server still believes in."""
        if self._heart is None or self._heart.gone:
            return
        reason = "The agent was told to end" if self.told.times else "Drained"
        if self.settings.once and not self.told.times:
            reason = "The agent claims once"
        try:
            self.client.post(
                f"/workers/{self._heart.worker}/shutdown/",
                {"reason": reason},
                deadline=clock.now() + self.timing.farewell_seconds,
            )
        except (Refusal, Unreachable) as error:
            logger.warning("the shutdown was not confirmed: %s", error)

    def _report_crash(self, error: Exception) -> None:
        if self._heart is None or self._heart.gone:
            return
        trace = "".join(traceback.format_exception(error))
        try:
            self.client.post(
                f"/workers/{self._heart.worker}/crash/",
                {
                    "message": self.redactor.text(f"{type(error).__name__}: {error}")[:500],
                    "trace": self.redactor.text(trace)[-TRACE_LENGTH:],
                },
                deadline=clock.now() + self.timing.farewell_seconds,
            )
        except Exception:
            logger.exception("the crash was not reported")

    # --- its work ---

    def _claim_and_work(self, heart: Heart) -> bool:
        """Claims once, and does what it gets. Whether the claim was answered, if only with "nothing to do"."""
        asked_at = clock.now()
        try:
            with self._breakable():
                answer = self.client.post(
                    f"/workers/{heart.worker}/claim/",
                    {
                        "capabilities": list(self.settings.capabilities),
                        "max": 1,
                        "wait_seconds": self.settings.wait_seconds,
                    },
                    give_up=lambda: self._is_told() or heart.gone,
                    wait_seconds=self.settings.wait_seconds,
                )
        except Unreachable:
            return False
        except Refusal as refusal:
            if refusal.means_finished:
                heart.gone = True
            elif refusal.status == 409:
                logger.info("no claim: %s", refusal)
                heart.beat_soon()  # which tells whether to pause or to drain
                self._idle(self.timing.refused_pause_seconds)
            else:
                raise
            return False
        if answer.status == 204:
            if clock.now() - asked_at < self.timing.idle_pause_seconds:
                self._idle(self.timing.idle_pause_seconds)
            return True
        self._work(heart, answer.body)
        return True

    def _work(self, heart: Heart, document: dict[str, Any]) -> None:
        claimed_at = clock.now()
        try:
            lease = claims.read_lease(document)
        except InvalidRequest as error:
            logger.warning("a claim that cannot even be refused: %s", error)
            self._idle(self.timing.refused_pause_seconds)
            return
        held = Held(lease.id, lease.generation, confirmed_at=claimed_at)
        heart.hold(held)
        reporter = Reporter(
            held,
            heart=heart,
            client=self.client,
            told=self.told,
            timing=self.timing,
            redactor=self.redactor,
            until=claimed_at + self._timeout_seconds,
        )
        try:
            claim = claims.read(document)
            adapter_type = self.registry.get(claim.request.adapter)
            if adapter_type is None or claim.request.adapter not in self.settings.adapters:
                raise InvalidRequest(f"this agent has no adapter {claim.request.adapter!r}")
            logger.info("claimed task %s, lease %s", claim.task.key or claim.task.id, lease.id)
            reporter.until = claimed_at + claim.task.timeout_seconds + LEASE_GRACE_SECONDS
            Attempt(
                claim,
                held,
                heart=heart,
                reporter=reporter,
                remote=Remote(self.settings.url, self.settings.key),
                told=self.told,
                timing=self.timing,
                timeout_seconds=self._timeout_seconds,
                claimed_at=claimed_at,
            ).run(
                adapter_type(claim, self.redactor),
                self._workdir(),
                withheld=tuple(parts_of_key(self.settings.key)),
                keep_workspace=self.settings.keep_workspaces,
            )
        except InvalidRequest as error:
            reporter.fail(
                Result(False, "task_failed", None, 0.0, error_code="invalid_request", error_message=str(error)), "", []
            )
        finally:
            heart.release()

    def _workdir(self) -> Path:
        if self.settings.workdir is not None:
            self.settings.workdir.mkdir(mode=0o700, parents=True, exist_ok=True)
            return self.settings.workdir
        if self._own_folder is None:
            self._own_folder = Path(tempfile.mkdtemp(prefix="signalbox-agent-"))
        return self._own_folder

    # --- waiting ---

    def _client(self, timeout_seconds: float) -> Client:
        return Client(
            self.settings.url, self.settings.key, patience=self.timing.patience, timeout_seconds=timeout_seconds
        )

    def _is_told(self) -> bool:
        return self.told.times > 0

    @contextmanager
    def _breakable(self) -> Iterator[None]:
        """A long wait for the server, into which a signal may raise ToldToEnd."""
        self._may_raise = True
        try:
            if self.told.times:
                raise ToldToEnd
            yield
        finally:
            self._may_raise = False

    def _idle(self, seconds: float) -> None:
        until = clock.now() + seconds
        while (left := until - clock.now()) > 0 and not self.told.times:
            time.sleep(min(_POLL_SECONDS, left))
