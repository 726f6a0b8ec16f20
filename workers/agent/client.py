"""The agent's side of the API: JSON over HTTP, one idempotency key over all tries of a call, bounded answers."""

import contextlib
import ipaddress
import json
import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import httpx

from workers.agent import __version__, clock

USER_AGENT = f"signalbox-agent/{__version__}"
ANSWER_BYTES = 16 * 1024 * 1024
"""A longer answer is not read."""
LONGEST_RETRY_AFTER_SECONDS = 300.0

_TRANSIENT = frozenset({408, 425, 429})
_POLL_SECONDS = 0.1

logger = logging.getLogger("signalbox.agent")


@dataclass(frozen=True)
class Answer:
    """A 2xx answer; `body` is empty for 204."""

    status: int
    body: dict[str, Any]


class Refusal(Exception):
    """The server understood and said no (4xx with a problem document); asking again would not help."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        self.status = status
        self.code = str(problem.get("code") or f"http_{status}")
        self.detail = str(problem.get("detail") or problem.get("title") or "")
        super().__init__(f"{status} {self.code}: {self.detail}")

    @property
    def is_stale(self) -> bool:
        """Whether the lease is no longer ours (domain.md §1.5)."""
        return self.status == 409 and self.code == "stale_claim"

    @property
    def means_finished(self) -> bool:
        """Whether this worker is over for the server, so that the agent must register anew."""
        return self.status == 410 or (self.status == 404 and self.code in {"worker_not_found", "not_found", "http_404"})

    @property
    def is_about_the_key(self) -> bool:
        """Whether the key is unknown, revoked, expired, or not good for this."""
        return self.status in {401, 403}


class Unreachable(Exception):
    """No usable answer: network, 5xx, 429, or not this API. `retry_after_seconds` is what the server asked for."""

    def __init__(self, reason: str, retry_after_seconds: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_seconds = retry_after_seconds


class NotThisApi(Unreachable):
    """An answer, and not one of this API: a wrong address, or a proxy whose server is just away."""

    def __init__(self, status: int, location: str = "") -> None:
        to = f" and sends on to {location[:200]}" if location else ""
        super().__init__(
            f"answered {status}{to}, but not as this API does; is --url the address of a Signalbox server, as people "
            "open it, without a path?"
        )


@dataclass(frozen=True)
class Patience:
    """How long to wait between tries: base · 2ⁿ up to the cap, times 0.5 to 1.5 so that agents do not march in step."""

    base_seconds: float = 0.5
    cap_seconds: float = 15.0
    draw: Callable[[float, float], float] = field(default=random.uniform)

    def wait_seconds(self, tries: int, retry_after_seconds: float | None = None) -> float:
        """The wait after so many tries (from 1); never below what the server asked for, up to five minutes."""
        calm = min(self.cap_seconds, self.base_seconds * 2.0 ** min(tries - 1, 30)) * self.draw(0.5, 1.5)
        return max(calm, min(retry_after_seconds or 0.0, LONGEST_RETRY_AFTER_SECONDS))


def wrong_with(url: str) -> str:
    """Why no server can be reached at this address, in words; empty when one might."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return str(error)
    if parts.scheme not in ("http", "https"):
        return "it begins with neither http:// nor https://"
    if not parts.hostname or port == 0:
        return "it names no host" if not parts.hostname else "there is no port 0"
    return "it has a question mark or a #" if parts.query or parts.fragment else ""


def is_loopback(url: str) -> bool:
    """Whether the address is on this machine."""
    host = urlsplit(url).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Client:
    """One connection pool for one thread."""

    def __init__(self, url: str, key: str, *, patience: Patience | None = None, timeout_seconds: float = 30.0) -> None:
        self._arguments = (url, key)
        self._patience = patience or Patience()
        self._timeout_seconds = timeout_seconds
        self._http = httpx.Client(
            base_url=url.rstrip("/") + "/api/v1",
            headers={
                "Authorization": f"Bearer {key}",
                "User-Agent": USER_AGENT,
                "Accept": "application/json, application/problem+json",
            },
            timeout=httpx.Timeout(timeout_seconds, connect=min(5.0, timeout_seconds)),
            follow_redirects=False,  # the key goes to the address it was given for, and to no other
            trust_env=not is_loopback(url),  # no proxy stands between two programs of one machine
        )

    def fresh(self) -> "Client":
        """A client like this one with connections of its own; this one is closed."""
        self.close()
        return Client(*self._arguments, patience=self._patience, timeout_seconds=self._timeout_seconds)

    def close(self) -> None:
        """Closes the connections."""
        with contextlib.suppress(Exception):
            self._http.close()

    def post(
        self,
        path: str,
        body: Mapping[str, Any],
        *,
        deadline: float | None = None,
        give_up: Callable[[], bool] = lambda: False,
        wait_seconds: float = 0.0,
        strange_seconds: float | None = None,
    ) -> Answer:
        """One logical call, tried until there is an answer, always with the same body and `Idempotency-Key`.

        Raises Refusal; and Unreachable once `deadline` (of `clock.now()`) would pass before the next try, or `give_up`
        says so while it waits. `wait_seconds` is how long the server may hold the answer back. Raises NotThisApi when
        for `strange_seconds` nobody answered but somebody else than this API.
        """
        key = str(uuid.uuid4())
        tries = 0
        strange_since: float | None = None
        while True:
            tries += 1
            try:
                return self.post_once(path, body, key=key, wait_seconds=wait_seconds)
            except Unreachable as error:
                pause = self._patience.wait_seconds(tries, error.retry_after_seconds)
                moment = clock.now()
                strange_since = (strange_since or moment) if isinstance(error, NotThisApi) else None
                if strange_since and strange_seconds is not None and moment - strange_since >= strange_seconds:
                    raise
                logger.warning("POST %s: %s; try %d, next in %.1f s", path, error, tries, pause)
                again_at = moment + pause
                if deadline is not None and again_at >= deadline:
                    raise
                while (left := again_at - clock.now()) > 0:
                    if give_up():
                        raise
                    time.sleep(min(_POLL_SECONDS, left))
                if give_up():
                    raise

    def post_once(
        self, path: str, body: Mapping[str, Any], *, key: str | None = None, wait_seconds: float = 0.0
    ) -> Answer:
        """One try. Without `key` no `Idempotency-Key` is sent, as for heartbeats. Raises Refusal, Unreachable."""
        headers = {} if key is None else {"Idempotency-Key": key}
        timeout = httpx.Timeout(self._timeout_seconds + wait_seconds, connect=min(5.0, self._timeout_seconds))
        try:
            with self._http.stream("POST", path, json=body, headers=headers, timeout=timeout) as response:
                raw = self._read(response)
        except httpx.HTTPError as error:
            raise Unreachable(f"{type(error).__name__}: {error}") from error
        status = response.status_code
        if status == 204:
            return Answer(204, {})
        if status >= 500 or status in _TRANSIENT:
            raise Unreachable(f"answered {status}", _retry_after(response))
        document = _object(raw)
        if document is None or status < 200 or 300 <= status < 400:
            raise NotThisApi(status, response.headers.get("Location", ""))
        if status >= 400:
            raise Refusal(status, document)
        return Answer(status, document)

    @staticmethod
    def _read(response: httpx.Response) -> bytes:
        raw = bytearray()
        for chunk in response.iter_bytes():
            raw += chunk
            if len(raw) > ANSWER_BYTES:
                raise Unreachable(f"answered more than {ANSWER_BYTES} bytes")
        return bytes(raw)


def _object(raw: bytes) -> dict[str, Any] | None:
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _retry_after(response: httpx.Response) -> float | None:
    """Seconds from `Retry-After` (RFC 9110 §10.2.3), a number or a date, which is compared with the answer's own."""
    value = response.headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value[:9])
    try:
        asked = parsedate_to_datetime(value)
        answered = parsedate_to_datetime(response.headers["Date"])
        return max(0.0, (asked - answered).total_seconds())
    except (ValueError, TypeError, KeyError):
        return None
