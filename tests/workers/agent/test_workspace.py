"""Where an agent gets its checkout from: a path it can read, else the server; and what git is told on the way.

What a real server answers stands in tests/ledger/test_serving.py.
"""

import base64
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.workers.agent.conftest import KEY, Repository, git
from workers.agent import workspace as module
from workers.agent.claim import Checkout
from workers.agent.workspace import GitFailed, Interrupted, Remote, Workspace


class Refuser:
    """A server that remembers who asked for what, and answers 503, or sends its callers elsewhere."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.elsewhere = ""
        refuser = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                refuser.asked.append((self.path, self.headers.get("Authorization", "")))
                self.send_response(302 if refuser.elsewhere else 503)
                if refuser.elsewhere:
                    self.send_header("Location", refuser.elsewhere + self.path)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self._thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.http.server_close()
        self._thread.join()


@pytest.fixture
def refusers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Refuser]]:
    """Starts such servers; the pauses between two fetches are short."""
    monkeypatch.setattr(module, "PAUSE_SECONDS", 0.01)
    started: list[Refuser] = []

    def begin() -> Refuser:
        started.append(Refuser())
        return started[-1]

    yield begin
    for one in started:
        one.close()


def a_workspace(tmp_path: Path, interrupted: Callable[[], bool] = lambda: False) -> Workspace:
    (tmp_path / "work").mkdir(exist_ok=True)
    return Workspace(tmp_path / "work", "L1", interrupted)


def test_a_path_that_can_be_read_is_taken_before_the_network(repository: Repository, tmp_path, refusers):
    server = refusers()
    bare = tmp_path / "mirror.git"
    git("clone", "-q", "--bare", str(repository.folder), str(bare), cwd=tmp_path)
    for url in (str(repository.folder), str(bare), bare.as_uri()):
        workspace = a_workspace(tmp_path)
        checkout = Checkout(url=url, commit=repository.head, branch="main", address="/git/demo.git")
        workspace.check_out(checkout, remote=Remote(server.url, KEY))
        assert (workspace.tree / "code.py").read_text() == "x = 1\n"
    assert server.asked == []


def test_a_path_of_another_machine_is_asked_of_the_server_with_the_key_in_the_head(repository, tmp_path, refusers):
    server = refusers()
    told = "https://signalbox.example:8443/git/demo.git"
    checkout = Checkout(url=str(tmp_path / "nowhere.git"), commit=repository.head, branch="main", address=told)
    with pytest.raises(GitFailed) as failed:
        a_workspace(tmp_path).check_out(checkout, remote=Remote(server.url, KEY))
    asked = ("/git/demo.git/info/refs?service=git-upload-pack", f"Bearer {KEY}")
    assert server.asked == [asked] * module.FETCHES
    assert KEY not in str(failed.value)


def test_without_an_address_or_a_server_only_the_path_is_tried(repository, tmp_path, refusers):
    server = refusers()
    for address, remote in (("", Remote(server.url, KEY)), ("/git/demo.git", None)):
        nowhere = str(tmp_path / "nowhere.git")
        checkout = Checkout(url=nowhere, commit=repository.head, branch="main", address=address)
        with pytest.raises(GitFailed, match=r"nowhere\.git"):
            a_workspace(tmp_path).check_out(checkout, remote=remote)
    assert server.asked == []


def test_the_key_is_not_carried_to_where_a_server_points(repository, tmp_path, refusers):
    server, other = refusers(), refusers()
    server.elsewhere = other.url
    checkout = Checkout(url="/nowhere", commit=repository.head, branch="main", address="/git/demo.git")
    with pytest.raises(GitFailed):
        a_workspace(tmp_path).check_out(checkout, remote=Remote(server.url, KEY))
    assert server.asked
    assert other.asked == []


def test_an_attempt_that_ends_is_not_kept_by_a_server_that_is_away(repository, tmp_path, refusers, monkeypatch):
    monkeypatch.setattr(module, "PAUSE_SECONDS", 3600)
    server = refusers()
    checkout = Checkout(url="/nowhere", commit=repository.head, branch="main", address="/git/demo.git")
    with pytest.raises(Interrupted):
        a_workspace(tmp_path, lambda: bool(server.asked)).check_out(checkout, remote=Remote(server.url, KEY))
    assert len(server.asked) == 1


def test_a_failed_fetch_leaves_the_key_in_no_file(repository, tmp_path, refusers):
    checkout = Checkout(url="/nowhere", commit=repository.head, branch="main", address="/git/demo.git")
    workspace = a_workspace(tmp_path)
    with pytest.raises(GitFailed):
        workspace.check_out(checkout, remote=Remote(refusers().url, KEY))
    written = [path for path in workspace.root.rglob("*") if path.is_file()]
    assert any(path.name == "config" for path in written)
    hidden = (KEY.encode(), base64.b64encode(KEY.encode()))
    assert [path for path in written if any(one in path.read_bytes() for one in hidden)] == []


def test_a_remote_does_not_show_its_key_when_it_is_printed():
    assert KEY not in repr(Remote("http://localhost:8000", KEY))


def test_proxies_and_certificates_are_the_agents_own_but_not_for_this_machine(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("SSL_CERT_FILE", "/etc/own.pem")
    far = Remote("https://signalbox.example", KEY).environment("https://signalbox.example/git/demo.git")
    assert far["https_proxy"] == "http://proxy.example:3128"
    assert far["GIT_SSL_CAINFO"] == "/etc/own.pem"
    near = Remote("http://127.0.0.1:8000", KEY).environment("http://127.0.0.1:8000/git/demo.git")
    assert not {"https_proxy", "GIT_SSL_CAINFO"} & set(near)


def test_an_agent_that_cannot_see_the_mirror_asks_the_server_that_gave_it_the_task(
    server, make_claim, work_once, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "FETCHES", 1)
    heads: list[str] = []

    def seen(handler: BaseHTTPRequestHandler) -> None:
        heads.append(f"{handler.path} {handler.headers['Authorization']}")
        handler.send_error(404)

    monkeypatch.setattr(server.http.RequestHandlerClass, "do_GET", seen, raising=False)
    claim = make_claim(["true"])
    claim["checkout"] |= {"url": str(tmp_path / "nowhere"), "address": "https://signalbox.example/git/demo.git"}
    work_once(claim)
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"]) == ("infra_lost", "checkout_failed")
    assert heads == [f"/git/demo.git/info/refs?service=git-upload-pack Bearer {KEY}"]
