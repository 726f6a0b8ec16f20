"""Servers on loopback for what is sent out: one that says any bytes, and one that takes webhooks many at a time."""

import socket
import ssl
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


def says(text: bytes) -> Callable[[socket.socket], None]:
    """An answer that is these bytes."""
    return lambda connection: connection.sendall(text)


class Receiver:
    """A server on loopback that reads each request to its end and then does what `answer` says with the socket."""

    def __init__(self, answer: Callable[[socket.socket], object], wrap: ssl.SSLContext | None = None) -> None:
        self.answer, self.wrap = answer, wrap
        self.requests: list[bytes] = []
        self.connections = 0
        self.sent = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _peer = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            with connection:
                try:
                    connection.settimeout(5)
                    spoken = self.wrap.wrap_socket(connection, server_side=True) if self.wrap else connection
                    self.requests.append(_read_request(spoken))
                    self.answer(spoken)
                    if self.wrap:
                        spoken.close()
                except OSError:
                    continue  # the client went away, as many tests want it to

    def close(self) -> None:
        """Stop listening, and wait for the exchange at hand."""
        if self._listener.fileno() >= 0:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._thread.join(10)


def _read_request(connection: socket.socket) -> bytes:
    text = b""
    while b"\r\n\r\n" not in text:
        came = connection.recv(65536)
        if not came:
            raise OSError("no request came")
        text += came
    head, _blank, body = text.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


class Taken(NamedTuple):
    """One request that a Hook took."""

    path: str
    headers: dict[str, str]
    body: bytes


class Hook:
    """A receiver of webhooks that takes many at a time; `answer(request)` gives the status, or (status, headers, body).

    `most` is the largest number of requests that were in its hands at once.
    """

    def __init__(self, answer: Callable[[Taken], Any] | None = None) -> None:
        self.answer = answer or (lambda _request: 204)
        self.taken: list[Taken] = []
        self.most = 0
        self._now = 0
        self._lock = threading.Lock()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook._take(self, Taken(self.path, {k.lower(): v for k, v in self.headers.items()}, body))

            def log_message(self, *_what: Any) -> None:
                pass

        class Quiet(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_what: Any) -> None:
                """The sender may go away; that is its right."""

        self._server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/in"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def _take(self, handler: BaseHTTPRequestHandler, request: Taken) -> None:
        with self._lock:
            self.taken.append(request)
            self._now += 1
            self.most = max(self.most, self._now)
        try:
            said = self.answer(request)
        finally:
            with self._lock:
                self._now -= 1
        status, headers, body = said if isinstance(said, tuple) else (said, {}, b"")
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    def close(self) -> None:
        """Take no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)
