"""A server that speaks the agent's part of the API over real HTTP, remembers all it was told, and can misbehave."""

import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, dict[str, Any] | None]


class Call:
    """One request that arrived."""

    def __init__(self, path: str, body: dict[str, Any], headers: dict[str, str]) -> None:
        self.path, self.body, self.headers = path, body, headers
        self.key = headers.get("idempotency-key")
        self.at = time.monotonic()


class StubServer:
    """Hands out `claims` one by one; `faults[name]` are taken first, one a request: "drop", "refuse", or a function.

    `name` is the last word of the path (`workers` for registration, `patches`, `complete`, `fail`, `heartbeat` …).
    "drop" does the work and closes the socket without an answer; "refuse" answers 503 and does nothing.
    """

    def __init__(self, *, timeout_seconds: float = 60, heartbeat_interval: float = 0.1) -> None:
        self.registration = {"timeout_seconds": timeout_seconds, "heartbeat_interval": heartbeat_interval}
        self.claims: list[dict[str, Any]] = []
        self.calls: list[Call] = []
        self.effects: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self.faults: dict[str, list[str | Callable[[Call], Reply]]] = defaultdict(list)
        self.on_heartbeat: Callable[[Call], Reply] = lambda call: (200, {"directive": "continue", "leases": []})
        self._answers: dict[str, Reply] = {}
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        stub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                call = Call(self.path, json.loads(raw), {k.lower(): v for k, v in self.headers.items()})
                reply = stub.answer(call)
                if reply is None:
                    self.close_connection = True
                    return
                status, body = reply
                sent = b"" if body is None else json.dumps(body).encode()
                self.send_response(status)
                if body is not None:
                    self.send_header("Content-Type", "application/json")
                    if "retry_after" in body:
                        self.send_header("Retry-After", str(body["retry_after"]))
                    self.send_header("Content-Length", str(len(sent)))
                self.end_headers()
                self.wfile.write(sent)

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self._thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self._thread.join()

    @staticmethod
    def name_of(path: str) -> str:
        return path.rstrip("/").rsplit("/", 1)[1]

    def answer(self, call: Call) -> Reply | None:
        name = self.name_of(call.path)
        with self._changed:
            self.calls.append(call)
            self._changed.notify_all()
            fault = self.faults[name].pop(0) if self.faults[name] else None
            if fault == "refuse":
                return 503, {"code": "down", "retry_after": 0}
            if callable(fault):
                return fault(call)
            if call.key is None:
                reply = self.effect(name, call)
            else:
                if call.key not in self._answers:
                    self._answers[call.key] = self.effect(name, call)
                reply = self._answers[call.key]
            self._changed.notify_all()
            return None if fault == "drop" else reply

    def effect(self, name: str, call: Call) -> Reply:
        if name == "heartbeat":
            return self.on_heartbeat(call)
        if name == "claim":
            return (200, self.claims.pop(0)) if self.claims else (204, None)
        self.effects[name].append(call.body)
        count = len(self.effects[name])
        if name == "workers":
            return 201, {"id": f"W{count}", "state": "idle", **self.registration}
        if name == "patches":
            return 201, {"id": f"P{count}", "state": "proposed"}
        return 200, {"directive": "continue"}

    def named(self, name: str) -> list[Call]:
        with self._lock:
            return [call for call in self.calls if self.name_of(call.path) == name]

    def wait_for(self, condition: Callable[[], object], seconds: float = 15) -> None:
        """Until it holds; raises AssertionError when it does not in time."""
        with self._changed:
            end = time.monotonic() + seconds
            while not condition():
                left = end - time.monotonic()
                assert left > 0, "the server did not hear what it waited for"
                self._changed.wait(min(left, 0.05))
