"""The mirror over HTTP: real git against a real server; who may read what; bounds on size, number and time."""

import asyncio
import base64
import gzip
import os
import random
import shutil
import socket
import subprocess
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from asgiref.sync import async_to_sync

from ledger import serving
from ledger.git import commit_notes
from ledger.serving import Limits, MirrorServer, TurnedAway, read_wants
from pipeline import rawroutes
from pipeline.models import Project
from pipeline.models.key import NewKey
from tests import factories
from tests.factories import BY, run_git
from workers.agent.claim import Checkout
from workers.agent.workspace import GitFailed, Remote, Workspace
from workers.models import Lease

PATIENCE_SECONDS = 20.0
VERSION_2 = {"Git-Protocol": "version=2"}


class Served:
    """A server of its own in a thread."""

    def __init__(self, limits: Limits) -> None:
        self.application = MirrorServer(limits)
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(self.application, port=0, lifespan="off", log_config=None, access_log=False)
        )
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._uvicorn.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()
        until(lambda: self._uvicorn.started)

    def close(self) -> None:
        self._uvicorn.should_exit = self._uvicorn.force_exit = True
        self._thread.join(PATIENCE_SECONDS)
        self._socket.close()
        self.application.close()

    def address(self, project: Project) -> str:
        return self.url + serving.path_of(project)


@pytest.fixture
def serve() -> Iterator[Callable[..., Served]]:
    """Starts a server with these limits."""
    started: list[Served] = []

    def begin(**limits: Any) -> Served:
        started.append(Served(Limits(**limits)))
        return started[-1]

    yield begin
    for one in started:
        one.close()


def until(true: Callable[[], object]) -> None:
    """Wait for it. Fails the test when that takes too long."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def processes_on(project: Project) -> list[int]:
    """The processes whose command line, or working folder, is the project's mirror."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            named = str(project.mirror).encode() in (folder / "cmdline").read_bytes()
            there = os.readlink(folder / "cwd") == str(project.mirror)
        except OSError:
            continue
        if named or there:
            found.append(int(folder.name))
    return found


def as_client(*arguments: str, key: str = "", folder: Path | None = None, version: int = 2) -> Any:
    """What a git of a person does: its exit code, output and complaints. The key is shown as a bearer token."""
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_CONFIG_COUNT": "2",
        "GIT_CONFIG_KEY_0": "protocol.version",
        "GIT_CONFIG_VALUE_0": str(version),
        "GIT_CONFIG_KEY_1": "http.extraHeader",
        "GIT_CONFIG_VALUE_1": f"Authorization: Bearer {key}" if key else "X-None: 1",
    }
    return subprocess.run(
        ["git", *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )


def packet(line: str) -> bytes:
    return f"{len(line) + 4:04x}{line}".encode()


def question(*wants: str) -> bytes:
    """A fetch in version 2 of the protocol."""
    return (
        packet("command=fetch")
        + b"0001"
        + packet("ofs-delta\n")
        + b"".join(packet(f"want {name}\n") for name in wants)
        + packet("done\n")
        + b"0000"
    )


@pytest.fixture
def project(transactional_db: None, tmp_path: Path) -> Project:
    """Three commits on main, a tag at the second, and beside them a candidate and a note that no branch holds."""
    source = factories.make_repository(tmp_path / "source", {"a.txt": "1\n"})
    for text in ("2\n", "3\n"):
        (source / "a.txt").write_text(text)
        run_git(source, "commit", "--quiet", "--all", f"--message=Now {text}")
    run_git(source, "tag", "--annotate", "--message=One", "v1", "HEAD~1")
    run_git(source, "branch", "side/line", "HEAD~1")
    made = factories.make_project(repository=source)
    tree = run_git(made.mirror, "rev-parse", "main^{tree}")
    for ref in ("refs/candidates/one", "refs/ledger/seals"):
        hidden = run_git(made.mirror, "commit-tree", tree, "-p", "main", "-m", ref)
        run_git(made.mirror, "update-ref", ref, hidden)
    return made


@pytest.fixture
def reader(project: Project) -> str:
    """The text of a viewer's key in the project."""
    return factories.make_key("viewer", project=project).text


def commit_of(project: Project, name: str) -> str:
    return run_git(project.mirror, "rev-parse", name)


LARGE_BYTES = 24 << 20


@pytest.fixture
def heavy(transactional_db: None, tmp_path: Path) -> Project:
    """A project with one file that cannot be compressed."""
    source = factories.make_repository(tmp_path / "large", {"a.txt": "1\n"})
    (source / "large.bin").write_bytes(random.Random(7).randbytes(LARGE_BYTES))
    run_git(source, "add", "--all")
    run_git(source, "commit", "--quiet", "--message=Large")
    return factories.make_project(repository=source)


def lease_in(project: Project, key: NewKey) -> Lease:
    """A live lease of a worker with this key on a task of the project."""
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)))
    return factories.make_lease(factories.make_worker(api_key=key.row), factories.make_task(run, started=True))


# -- what is given out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [0, 2])
def test_a_clone_has_every_branch_and_tag_and_nothing_else(serve, project, reader, tmp_path, version):
    address = serve().address(project)
    told = as_client("ls-remote", address, key=reader, version=version)
    named = {line.split("\t")[1] for line in told.stdout.splitlines()}
    assert named == {"HEAD", "refs/heads/main", "refs/heads/side/line", "refs/tags/v1", "refs/tags/v1^{}"}

    done = as_client("clone", "--quiet", address, str(tmp_path / "copy"), key=reader, version=version)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "copy" / "a.txt").read_text() == "3\n"
    assert as_client("fsck", "--full", folder=tmp_path / "copy").returncode == 0
    hidden = commit_of(project, "refs/candidates/one")
    assert as_client("cat-file", "-e", hidden, folder=tmp_path / "copy").returncode != 0


def test_a_later_fetch_brings_only_what_is_new(serve, project, reader, tmp_path):
    address = serve().address(project)
    as_client("clone", "--quiet", address, str(tmp_path / "copy"), key=reader)
    tree = commit_of(project, "main^{tree}")
    new = run_git(project.mirror, "commit-tree", tree, "-p", "main", "-m", "new")
    run_git(project.mirror, "update-ref", "refs/heads/main", new)
    done = as_client("fetch", "origin", key=reader, folder=tmp_path / "copy")
    assert done.returncode == 0, done.stderr
    assert as_client("rev-parse", "origin/main", folder=tmp_path / "copy").stdout.strip() == new


@pytest.mark.parametrize("version", [0, 2])
def test_an_older_commit_is_given_by_its_name_with_as_little_history_as_asked(
    serve, project, reader, tmp_path, version
):
    old = commit_of(project, "main~1")
    run_git(project.mirror, "update-ref", "-d", "refs/heads/side/line")
    run_git(project.mirror, "update-ref", "-d", "refs/tags/v1")
    as_client("init", "--quiet", "--bare", str(tmp_path / "copy"))
    address = serve().address(project)
    done = as_client(
        "fetch", "--quiet", "--depth=1", address, old, key=reader, folder=tmp_path / "copy", version=version
    )
    assert done.returncode == 0, done.stderr
    assert as_client("rev-list", "--count", old, folder=tmp_path / "copy").stdout.strip() == "1"


@pytest.mark.parametrize("version", [0, 2])
def test_what_stands_under_no_branch_is_not_given_by_its_name(serve, project, reader, tmp_path, version):
    as_client("init", "--quiet", "--bare", str(tmp_path / "copy"))
    address = serve().address(project)
    for name in ("refs/candidates/one", "refs/ledger/seals", "main:a.txt", "main^{tree}"):
        hidden = commit_of(project, name)
        done = as_client("fetch", "--quiet", address, hidden, key=reader, folder=tmp_path / "copy", version=version)
        assert done.returncode != 0
        assert f"not our ref {hidden}" in done.stderr
        assert as_client("cat-file", "-e", hidden, folder=tmp_path / "copy").returncode != 0


def test_an_object_that_is_not_there_is_refused_like_a_hidden_one(serve, project, reader):
    answer = ask(serve(), project, reader, question("0" * 39 + "1"))
    assert answer.status_code == 200
    assert answer.content.endswith(b"ERR upload-pack: not our ref " + b"0" * 39 + b"1\n")


# -- who is asking -----------------------------------------------------------------------------------------------


def look(server: Served, project: Project | str, **headers: str) -> httpx.Response:
    path = project if isinstance(project, str) else serving.path_of(project)
    return httpx.get(f"{server.url}{path}/info/refs", params={"service": "git-upload-pack"}, headers=headers)


def ask(server: Served, project: Project, key: str, body: bytes, **headers: str) -> httpx.Response:
    headers = {"Authorization": f"Bearer {key}", **VERSION_2, **headers}
    return httpx.post(f"{server.address(project)}/git-upload-pack", content=body, headers=headers)


def test_a_key_may_be_shown_as_the_password_beside_any_name(serve, project, reader):
    server = serve()
    for name in ("git", "", "anybody"):
        shown = base64.b64encode(f"{name}:{reader}".encode()).decode()
        assert look(server, project, Authorization=f"Basic {shown}").status_code == 200
    address = server.address(project).replace("//", f"//me:{reader}@")
    assert as_client("ls-remote", address).returncode == 0


def test_who_shows_no_key_is_asked_for_one(serve, project):
    server = serve()
    for shown in ("", "Bearer", "Bearer nonsense", "Basic", "Basic !!", "Basic bm9ib2R5", "Basic /////w==", "Digest x"):
        answer = look(server, project, **({"Authorization": shown} if shown else {}))
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="signalbox"'
        assert project.key not in answer.text


def test_a_revoked_key_opens_nothing(serve, project):
    key = factories.make_key("admin")
    server = serve()
    assert look(server, project, Authorization=f"Bearer {key.text}").status_code == 200
    key.row.revoke(by=BY)
    assert look(server, project, Authorization=f"Bearer {key.text}").status_code == 401


def test_other_projects_do_not_exist_for_a_key_of_one(serve, project, reader):
    server = serve()
    other = factories.make_project(repository=factories.sample_repository())
    bare = factories.make_project(custody="recorded")
    all_of_them = {"Authorization": f"Bearer {factories.make_key('viewer').text}"}
    assert look(server, other, **all_of_them).status_code == 200
    for named, shown in (
        (other, {"Authorization": f"Bearer {reader}"}),
        (bare, all_of_them),
        ("/git/nowhere.git", all_of_them),
    ):
        answer = look(server, named, **shown)
        assert (answer.status_code, answer.text) == (404, "There is no such repository\n")
    for path in ("/git/..%2f..%2fetc.git", "/git/.git", "/git/a%00b.git", "/git/%ff.git", f"/git/{'x' * 9000}.git"):
        assert look(server, path, **all_of_them).status_code == 404


def test_a_worker_reads_a_mirror_only_while_it_holds_a_lease_there(serve, project):
    server = serve()
    key = factories.make_key("worker")
    shown = {"Authorization": f"Bearer {key.text}"}
    assert look(server, project, **shown).status_code == 404

    other = factories.make_project(repository=factories.sample_repository())
    lease = lease_in(project, key)
    assert look(server, project, **shown).status_code == 200
    assert look(server, other, **shown).status_code == 404
    stranger = factories.make_key("worker")
    assert look(server, project, Authorization=f"Bearer {stranger.text}").status_code == 404

    lease.worker.crash("gone", by=BY)
    lease.refresh_from_db()
    assert not lease.is_live
    assert look(server, project, **shown).status_code == 404


@pytest.mark.parametrize("version", [0, 2])
def test_people_are_given_the_receipts_and_workers_are_not(serve, project, reader, tmp_path, version):
    notes = "refs/notes/signalbox"
    first = commit_notes.add(project.mirror, commit_of(project, "main"), "one")
    newest = commit_notes.add(project.mirror, commit_of(project, "main~1"), "two")
    address = serve().address(project)
    run_git(tmp_path, "init", "--quiet", "--bare", "copy")
    fetch = ("fetch", "--quiet", address)
    done = as_client(*fetch, f"{notes}:{notes}", key=reader, folder=tmp_path / "copy", version=version)
    assert done.returncode == 0, done.stderr
    assert run_git(tmp_path / "copy", "rev-parse", notes) == newest
    assert as_client(*fetch, first, key=reader, folder=tmp_path / "copy", version=version).returncode == 0
    hidden = commit_of(project, "refs/candidates/one")
    assert as_client(*fetch, hidden, key=reader, folder=tmp_path / "copy", version=version).returncode != 0

    key = factories.make_key("worker")
    lease_in(project, key)
    run_git(tmp_path, "init", "--quiet", "--bare", "workers")
    listed = as_client("ls-remote", address, key=key.text, version=version).stdout
    assert "refs/heads/main" in listed
    assert notes not in listed
    for name in (notes, first, newest):
        done = as_client(*fetch, name, key=key.text, folder=tmp_path / "workers", version=version)
        assert done.returncode != 0
    assert as_client("cat-file", "-e", newest, folder=tmp_path / "workers").returncode != 0


def test_another_name_of_the_host_is_not_answered(serve, project, reader):
    answer = look(serve(), project, Host="evil.example", Authorization=f"Bearer {reader}")
    assert answer.status_code == 400


# -- what is never done ------------------------------------------------------------------------------------------


def test_nothing_can_be_pushed(serve, project, tmp_path):
    key = factories.make_key("admin").text
    address = serve().address(project)
    as_client("clone", "--quiet", address, str(tmp_path / "copy"), key=key)
    before = run_git(project.mirror, "for-each-ref")
    done = as_client(
        "push", address, "HEAD:refs/heads/evil", "HEAD~2:main", "--force", key=key, folder=tmp_path / "copy"
    )
    assert done.returncode != 0
    assert "hand changes in as patches" in done.stderr
    assert run_git(project.mirror, "for-each-ref") == before


def test_every_other_address_and_method_is_refused(serve, project, reader):
    server = serve()
    headers = {"Authorization": f"Bearer {reader}"}
    for method, rest, status in (
        ("GET", "info/refs?service=git-receive-pack", 403),
        ("POST", "git-receive-pack", 403),
        ("GET", "info/refs", 403),
        ("GET", "info/refs?service=git-upload-archive", 403),
        ("POST", "git-upload-archive", 404),
        ("GET", "HEAD", 404),
        ("GET", "config", 404),
        ("GET", "objects/info/packs", 404),
        ("GET", "git-upload-pack", 405),
        ("POST", "info/refs?service=git-upload-pack", 405),
        ("DELETE", "info/refs?service=git-upload-pack", 405),
    ):
        address = f"{server.address(project)}/{rest}"
        assert httpx.request(method, address, headers=headers).status_code == status, (method, rest)
        assert httpx.request(method, address).status_code == 401


def test_the_mirrors_own_configuration_and_hooks_have_no_say(serve, project, reader, tmp_path):
    trap = tmp_path / "trapped"
    run_git(project.mirror, "config", "uploadpack.packObjectsHook", f"touch {trap};")
    run_git(project.mirror, "config", "uploadpack.allowAnySHA1InWant", "true")
    run_git(project.mirror, "config", "uploadpack.hideRefs", "!refs/ledger")
    told = as_client("ls-remote", serve().address(project), key=reader)
    assert told.returncode == 0
    assert "refs/candidates" not in told.stdout
    assert not trap.exists()


# -- bounds on what comes in -------------------------------------------------------------------------------------


def test_a_question_may_be_gzip(serve, project, reader):
    server, asked = serve(), question(commit_of(project, "main"))
    plain = ask(server, project, reader, asked)
    assert plain.status_code == 200
    assert plain.headers["Content-Type"] == "application/x-git-upload-pack-result"
    assert plain.headers["Cache-Control"].startswith("no-cache")
    assert b"PACK" in plain.content
    packed = ask(server, project, reader, gzip.compress(asked), **{"Content-Encoding": "gzip"})
    assert b"PACK" in packed.content


def test_a_question_that_is_too_large_or_no_question_is_refused(serve, project, reader):
    server = serve(request_bytes=100_000)
    squeezed = {"Content-Encoding": "gzip"}
    bomb = gzip.compress(b"0" * 50_000_000)
    assert len(bomb) < 100_000
    for body, headers, status in (
        (b"0004" * 30_000, {}, 413),
        (bomb, squeezed, 413),
        (b"no gzip", squeezed, 400),
        (gzip.compress(question("1" * 40))[:-9], squeezed, 400),
        (question("1" * 40), {"Content-Encoding": "br"}, 415),
        (b"hello", {}, 400),
        (b"0100want", {}, 400),
        (packet("want refs/heads/main"), {}, 400),
        (packet("command=object-info") + b"0000", {}, 403),
    ):
        answer = ask(server, project, reader, body, **headers)
        assert answer.status_code == status, (body[:40], answer.text)
        assert answer.headers["Content-Type"].startswith("text/plain")
    assert not processes_on(project)


def test_older_commits_are_asked_for_by_the_handful(serve, project, reader, monkeypatch):
    monkeypatch.setattr(serving, "MAX_WANTS", 1)
    asked = question(commit_of(project, "main~2"), "1" * 40)
    assert b"ERR ask for 1 older commits at most" in ask(serve(), project, reader, asked).content


@pytest.mark.parametrize("body", [b"", b"0000", b"0001", packet("command=ls-refs\n") + b"00000002"])
def test_lines_without_a_want_ask_for_nothing(body):
    assert read_wants(body) == set()


def test_the_wants_of_both_versions_are_read():
    one, two = "a" * 40, "b" * 64
    assert read_wants(packet(f"want {one} ofs-delta side-band-64k\n") + packet(f"want {two}\n") + b"0000") == {one, two}


@pytest.mark.parametrize("line", ["want", f"want {'A' * 40}", f"want {'a' * 39}", "want-ref refs/ledger/seals"])
def test_a_want_that_git_might_read_otherwise_is_refused(line):
    with pytest.raises(TurnedAway) as refused:
        read_wants(packet(line))
    assert refused.value.status == 400


# -- number and time ---------------------------------------------------------------------------------------------


class Idler:
    """A client that asks for everything and reads nothing."""

    def __init__(self, server: Served, project: Project, key: str) -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.settimeout(PATIENCE_SECONDS)
        self.socket.connect(("127.0.0.1", server.port))
        body = question(commit_of(project, "main"))
        head = (
            f"POST {serving.path_of(project)}/git-upload-pack HTTP/1.1\r\nHost: localhost\r\n"
            f"Git-Protocol: version=2\r\nAuthorization: Bearer {key}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        self.socket.sendall(head.encode() + body)

    def read_on(self) -> bytes:
        """All that is left, until the server closes the connection."""
        read = b""
        while chunk := self.socket.recv(65536):
            read = (read + chunk)[-100:]
        return read


def test_twenty_clones_at_once_all_succeed_with_few_processes(serve, project, reader, tmp_path, monkeypatch):
    running, most = 0, 0
    run = MirrorServer._run

    async def counted(self: MirrorServer, *arguments: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await run(self, *arguments)
        finally:
            running -= 1

    monkeypatch.setattr(MirrorServer, "_run", counted)
    address = serve(at_once=3).address(project)

    def clone(place: int) -> str:
        done = as_client("clone", "--quiet", "--depth=1", address, str(tmp_path / f"copy-{place}"), key=reader)
        return done.stderr or (tmp_path / f"copy-{place}" / "a.txt").read_text()

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(clone, range(20))) == ["3\n"] * 20
    assert 1 < most <= 3
    assert running == 0
    until(lambda: not processes_on(project))


def test_who_finds_no_place_in_time_is_told_when_to_come_back(serve, project, heavy):
    key = factories.make_key("viewer").text
    server = serve(at_once=1, wait=0.2)
    idler = Idler(server, heavy, key)
    until(lambda: processes_on(heavy))
    answer = look(server, project, Authorization=f"Bearer {key}")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    idler.socket.close()
    until(lambda: not processes_on(heavy))
    assert look(server, project, Authorization=f"Bearer {key}").status_code == 200


@pytest.mark.parametrize("limits", [{"idle": 0.3}, {"seconds": 1.0}])
def test_a_client_that_does_not_read_is_cut_off_and_sees_that_the_answer_is_unfinished(serve, heavy, limits):
    server = serve(**limits)
    idler = Idler(server, heavy, factories.make_key("viewer").text)
    until(lambda: processes_on(heavy))
    until(lambda: not processes_on(heavy))
    assert not idler.read_on().endswith(b"0\r\n\r\n")
    idler.socket.close()


def test_a_git_that_is_killed_in_the_middle_leaves_no_process(serve, heavy, tmp_path):
    key = factories.make_key("viewer").text
    address = serve().address(heavy)
    environment = {
        "PATH": os.environ["PATH"],
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": "http.extraHeader",
        "GIT_CONFIG_VALUE_0": f"Authorization: Bearer {key}",
    }
    client = subprocess.Popen(
        ["git", "clone", "--quiet", address, str(tmp_path / "copy")],
        env=environment,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    until(lambda: processes_on(heavy))
    os.killpg(client.pid, 9)
    client.wait()
    until(lambda: not processes_on(heavy))


def test_a_mirror_that_cannot_be_read_is_our_fault_and_said_so(serve, project, reader):
    server = serve()
    shutil.rmtree(project.mirror / "objects")
    answer = look(server, project, Authorization=f"Bearer {reader}")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert ask(server, project, reader, question("1" * 40)).status_code == 503


def test_a_large_answer_is_never_held_in_memory(heavy):
    key = factories.make_key("viewer").text
    body = question(commit_of(heavy, "main"))
    scope = {
        "type": "http",
        "method": "POST",
        "path": f"{serving.path_of(heavy)}/git-upload-pack",
        "query_string": b"",
        "headers": [
            (b"host", b"localhost"),
            (b"authorization", f"Bearer {key}".encode()),
            (b"git-protocol", b"version=2"),
        ],
    }
    sent = 0
    messages: list[dict[str, Any]] = [{"type": "http.request", "body": body}]

    async def receive() -> dict[str, Any]:
        while not messages:
            await asyncio.sleep(3600)
        return messages.pop()

    async def send(message: dict[str, Any]) -> None:
        nonlocal sent
        sent += len(message.get("body", b""))

    application = MirrorServer(Limits())
    tracemalloc.start()
    try:
        async_to_sync(application)(scope, receive, send)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        application.close()
    assert sent > LARGE_BYTES
    assert peak < LARGE_BYTES / 4


# -- an agent on another machine ---------------------------------------------------------------------------------


@pytest.fixture
def spied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git that writes down its command lines before it does its work."""
    told, folder = tmp_path / "told", tmp_path / "bin"
    folder.mkdir()
    (folder / "git").write_text(f'#!/bin/sh\nprintf "%s\\n" "$*" >> {told}\nexec {shutil.which("git")} "$@"\n')
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return told


def test_an_agent_elsewhere_checks_out_what_it_claimed_and_leaves_its_key_nowhere(serve, project, tmp_path, spied):
    server = serve()
    key = factories.make_key("worker")
    lease_in(project, key)
    commit = commit_of(project, "main~1")
    workspace = Workspace(tmp_path, "L1", lambda: False)
    # The address is the server's own idea of its name; the key goes where the agent was told.
    told = f"https://signalbox.invalid{serving.path_of(project)}"
    checkout = Checkout(url="/not/on/this/machine.git", commit=commit, branch="main", address=told)
    spied.unlink(missing_ok=True)
    workspace.check_out(checkout, remote=Remote(server.url, key.text))

    assert (workspace.tree / "a.txt").read_text() == "2\n"
    assert run_git(workspace.tree, "rev-parse", "HEAD") == commit
    assert run_git(workspace.tree, "remote") == ""
    assert f"{server.url}{serving.path_of(project)}" in spied.read_text()
    secret = key.text.rpartition("_")[2]
    assert secret not in spied.read_text()
    kept = [path for path in workspace.root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert kept == []
    (workspace.tree / "a.txt").write_text("changed\n")
    assert "+changed" in workspace.diff()
    workspace.remove()


def test_an_agent_whose_lease_has_ended_gets_nothing(serve, project, tmp_path, monkeypatch):
    monkeypatch.setattr("workers.agent.workspace.FETCHES", 1)
    key = factories.make_key("worker")
    workspace = Workspace(tmp_path, "L1", lambda: False)
    there, commit = serving.path_of(project), commit_of(project, "main")
    checkout = Checkout(url="/not/on/this/machine.git", commit=commit, branch="main", address=there)
    with pytest.raises(GitFailed) as refused:
        workspace.check_out(checkout, remote=Remote(serve().url, key.text))
    assert "There is no such repository" in str(refused.value)
    assert key.text not in str(refused.value)


def test_the_web_process_serves_the_mirrors_beside_django():
    from pipeline import asgi
    from pipeline.stream import EventStream

    assert callable(asgi.application)
    assert isinstance(rawroutes.find("/git/demo.git/info/refs"), MirrorServer)
    assert isinstance(rawroutes.find("/api/v1/events/stream/"), EventStream)
    assert rawroutes.find("/gitx") is None
    assert rawroutes.find("/runs/") is None
