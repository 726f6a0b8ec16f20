"""A git host over https for tests: real TLS, real `git http-backend`, and a password that it asks for."""

import base64
import os
import ssl
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.pipeline.test_egress import CERTIFICATE

NAME = "hooks.example.test"
"""What the certificate is made out to; nobody's name, so only a pinned look-up finds the host."""


class GitHost:
    """Serves the bare repositories of a folder to whoever knows `secret`; `asked` lists the requests' headers."""

    def __init__(self, folder: Path, secret: str) -> None:
        self.pem = folder / "host.pem"
        self.pem.write_text(CERTIFICATE)
        self.asked: list[dict[str, str]] = []
        right = "Basic " + base64.b64encode(f"robot:{secret}".encode()).decode()
        asked = self.asked

        class Handler(BaseHTTPRequestHandler):
            """One request: refused, or handed to git as a CGI program."""

            def do_GET(self) -> None:
                """A read."""
                self._serve()

            def do_POST(self) -> None:
                """A write, or the second half of a read."""
                self._serve()

            def log_message(self, *_: Any) -> None:
                """Nothing: the tests read `asked`."""

            def _serve(self) -> None:
                asked.append(dict(self.headers))
                size = int(self.headers.get("Content-Length") or 0)
                body = self.rfile.read(size)
                if self.headers.get("Authorization") != right:
                    self.send_response(401)
                    self.send_header("WWW-Authenticate", "Basic realm=git")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
                path, _, query = self.path.partition("?")
                done = subprocess.run(
                    ["git", "-c", "http.receivepack=true", "http-backend"],
                    input=body,
                    capture_output=True,
                    check=True,
                    env={
                        "PATH": os.environ["PATH"],
                        "GIT_PROJECT_ROOT": str(folder),
                        "GIT_HTTP_EXPORT_ALL": "1",
                        "PATH_INFO": path,
                        "QUERY_STRING": query,
                        "REQUEST_METHOD": self.command,
                        "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                        "CONTENT_LENGTH": str(size),
                        "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
                        "GIT_PROTOCOL": self.headers.get("Git-Protocol", ""),
                        "REMOTE_USER": "robot",
                        "REMOTE_ADDR": "127.0.0.1",
                        "GIT_CONFIG_GLOBAL": os.devnull,
                    },
                )
                head, _, content = done.stdout.partition(b"\r\n\r\n")
                fields = [line.split(": ", 1) for line in head.decode().split("\r\n")]
                status = next((value for name, value in fields if name == "Status"), "200 OK")
                self.send_response(int(status.split()[0]))
                for name, value in fields:
                    if name != "Status":
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.pem)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.port = self.server.server_address[1]
        self.thread = threading.Thread(target=self.server.serve_forever, daemon=True)
        self.thread.start()

    def close(self) -> None:
        """Nobody is served any more."""
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)
