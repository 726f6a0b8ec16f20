"""The mirror over HTTP, to be read only: git's own protocol, for agents on other machines and for people with a key.

    GET  /git/<project>.git/info/refs?service=git-upload-pack   which branches and tags there are
    POST /git/<project>.git/git-upload-pack                     a question, answered with a pack

People's keys are shown the receipts, too (refs/notes/signalbox). Workers' keys are not: receipts tell cost and review.

It is a raw ASGI application: a clone takes no thread, and a client that reads slowly holds one git process and a few
hundred kilobytes. Who may read is asked of the database with every request; what may be read is what stands under
branches and tags. The protocol is that of gitprotocol-http(5) and gitprotocol-v2(5), version 2 or 0.
"""

import asyncio
import base64
import binascii
import contextlib
import io
import logging
import os
import re
import signal
import zlib
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from django.conf import settings
from django.core.exceptions import DisallowedHost
from django.core.handlers.asgi import ASGIRequest
from django.db import InterfaceError, OperationalError, connection
from django.db.models import QuerySet

from ledger import git
from ledger.git.names import NOTES
from pipeline import rawroutes
from pipeline.auth import Principal, find_key
from pipeline.models import Project
from pipeline.refusals import NotFound
from pipeline.rest import find_project
from workers.models import Lease

log = logging.getLogger(__name__)

PREFIX = "/git/"
CHUNK_BYTES = 64 * 1024
"""What is handed to the server at once: it holds as much before it makes a slow client wait."""
MAX_WAITING = 64
"""Requests that wait for a git process; each may hold a whole body."""
MAX_WANTS = 16
"""Commits of one question that are no branch's or tag's head: each costs a walk through the history."""
STDERR_BYTES = 2000
RETRY_SECONDS = 5
DOORS = 2
"""Threads that ask the database and judge questions: both take milliseconds."""

_PATH = re.compile(r"/git/(?P<project>[A-Za-z0-9._-]{1,64})\.git/(?P<rest>.+)", re.DOTALL)
_LENGTH = re.compile(rb"[0-9a-fA-F]{4}")
_WANT = re.compile(rb"want ([0-9a-f]{40}|[0-9a-f]{64})(?: [^\x00]*)?\n?", re.DOTALL)
_COMMANDS = (b"command=ls-refs", b"command=fetch")
_TYPE = "application/x-git-upload-pack-"

# Only branches and tags are told, and a commit below them may be asked for by its name, as an agent does with the one
# it claimed. Version 2 of the protocol gives out every object whose name is known, hidden or not, and version 0 with
# this permission what any hidden ref reaches: that is why `check_wants` judges each question first.
_SETTINGS = (
    "uploadpack.hideRefs=refs",
    "uploadpack.hideRefs=!refs/heads",
    "uploadpack.hideRefs=!refs/tags",
    "uploadpack.allowAnySHA1InWant=false",  # clears the two others as well, so it comes first
    "uploadpack.allowTipSHA1InWant=false",
    "uploadpack.allowReachableSHA1InWant=true",
    "uploadpack.allowFilter=false",  # blobs would have to be given out by name, each judged by a walk through all trees
    "uploadpack.allowRefInWant=false",
    "transfer.advertiseObjectInfo=false",
    "pack.threads=1",
    "pack.windowMemory=64m",
)


class TurnedAway(Exception):
    """This request is not served; git shows the sentence to its user."""

    def __init__(self, status: int, sentence: str, **headers: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = {name.replace("_", "-"): text for name, text in headers.items()}


class NotOurs(Exception):
    """A question asks for what is under no branch or tag, or is not in the mirror."""


@dataclass(frozen=True)
class Limits:
    """How long and how much. Durations in seconds.

    `seconds` bounds a whole answer, `idle` the wait for a client that neither sends nor reads, `wait` the wait for a
    free process; `at_once` counts git processes, `request_bytes` a question, unpacked (50 for each branch and tag).
    """

    seconds: float = field(default_factory=lambda: float(settings.SIGNALBOX_MIRROR_SECONDS))
    idle: float = 60.0
    wait: float = 60.0
    at_once: int = field(default_factory=lambda: int(settings.SIGNALBOX_MIRROR_READERS))
    request_bytes: int = field(default_factory=lambda: int(settings.SIGNALBOX_MIRROR_REQUEST_BYTES))


class Door(NamedTuple):
    """What whoever asks may read: of which mirror, and which names besides its branches and tags."""

    mirror: Path
    also: tuple[str, ...] = ()


class Asked(NamedTuple):
    """What a request is about: whose mirror, which of the two addresses, and in which version of the protocol."""

    project: str
    rest: str
    service: str
    version_2: bool


def path_of(project: Project) -> str:
    """Where `project`'s mirror is served: an absolute path, to be put behind the address of this installation."""
    return f"{PREFIX}{project.key}.git"


class MirrorServer:
    """The raw ASGI application at `/git/`. It gives out, and never takes."""

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits
        self._free: asyncio.Semaphore | None = None
        self._waiting = 0
        self._doors = ThreadPoolExecutor(DOORS, "mirror-door")

    @property
    def limits(self) -> Limits:
        """Those given, or the settings'."""
        self._limits = self._limits or Limits()
        return self._limits

    def close(self) -> None:
        """End the threads, once no request is left."""
        self._doors.shutdown()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request. A client that goes away takes its git process with it."""
        try:
            asked = read_address(scope)
            door = await self._in_thread(open_door, scope, asked)
            method = scope["method"]
            _check_service(asked, method)
            body = await self._body(scope, receive) if method == "POST" else b""
        except TurnedAway as refusal:
            await _refuse(send, refusal)
            return
        serving = asyncio.create_task(self._serve(asked, door, body, send))
        gone = asyncio.create_task(_gone(receive))
        try:
            await asyncio.wait({serving, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if not serving.done() and not gone.done():
                log.warning("%s was read for more than %g s and is cut off", door.mirror.name, self.limits.seconds)
        finally:
            gone.cancel()
            serving.cancel()
            await asyncio.wait({serving, gone})
        if not serving.cancelled() and (problem := serving.exception()) is not None:
            raise problem

    async def _serve(self, asked: Asked, door: Door, body: bytes, send: Any) -> None:
        """One git process, when one is free. What ends it in the middle leaves an answer that is visibly unfinished."""
        try:
            async with self._turn():
                if asked.rest == "info/refs":
                    said = b"" if asked.version_2 else _packet(b"# service=git-upload-pack\n") + b"0000"
                    arguments = ["--http-backend-info-refs"]
                    await self._run(door, arguments, asked, b"", send, "advertisement", said)
                    return
                try:
                    await self._in_thread(check_wants, door, body)
                except NotOurs as problem:
                    await _whole(send, 200, f"{_TYPE}result", _packet(f"ERR {problem}\n".encode()))
                    return
                await self._run(door, [], asked, body, send, "result", b"")
        except TurnedAway as refusal:
            await _refuse(send, refusal)
        except TimeoutError:
            log.warning("a reader of %s took nothing for %g s and is cut off", door.mirror.name, self.limits.idle)
        except OSError:
            pass  # the client went away in the middle of a message

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """While this holds, one git process may run. Raises TurnedAway when none is free for too long."""
        if self._free is None:
            self._free = asyncio.Semaphore(self.limits.at_once)
        busy = TurnedAway(503, "Too many are reading; try again in a moment", Retry_After=str(RETRY_SECONDS))
        if self._waiting >= MAX_WAITING:
            raise busy
        self._waiting += 1
        try:
            async with asyncio.timeout(self.limits.wait):
                await self._free.acquire()
        except TimeoutError:
            raise busy from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._free.release()

    async def _run(
        self, door: Door, arguments: list[str], asked: Asked, body: bytes, send: Any, kind: str, said: bytes
    ) -> None:
        """Send `said` and all that git says to `body`; kills git, children included, when that ends before git does.

        Raises TurnedAway when git says nothing at all, TimeoutError when the client takes nothing.
        """
        mirror = door.mirror
        command, environment = _command(door, arguments, asked)
        process = await asyncio.create_subprocess_exec(
            *command,
            env=environment,
            cwd=mirror,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=CHUNK_BYTES,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        helping = [asyncio.create_task(_feed(process.stdin, body)), asyncio.create_task(_tail(process.stderr))]
        try:
            git.set_limits(process.pid, int(self.limits.seconds), git.NETWORK_MEMORY_BYTES)
            chunk = await process.stdout.read(CHUNK_BYTES)
            if not chunk and await process.wait() != 0:
                log.warning("upload-pack of %s failed: %s", mirror.name, await helping[1])
                raise TurnedAway(503, "The mirror cannot be read now", Retry_After=str(RETRY_SECONDS))
            await send(_start(200, f"{_TYPE}{kind}"))
            chunk = said + chunk
            while chunk:
                async with asyncio.timeout(self.limits.idle):
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                chunk = await process.stdout.read(CHUNK_BYTES)
            if await process.wait() < 0:
                log.warning("upload-pack of %s was killed: %s", mirror.name, await helping[1])
                return
            await send({"type": "http.response.body", "body": b""})
        finally:
            await asyncio.shield(_end(process, helping))

    async def _body(self, scope: Any, receive: Any) -> bytes:
        """The question, unpacked. Raises TurnedAway: 400, 408, 413, 415."""
        unpack = _unpacker(scope)
        body = bytearray()
        more = True
        while more:
            try:
                async with asyncio.timeout(self.limits.idle):
                    message = await receive()
            except TimeoutError:
                raise TurnedAway(408, "The question did not arrive in time") from None
            if message["type"] != "http.request":
                raise TurnedAway(400, "The question ends in the middle")
            more = message.get("more_body", False)
            try:
                body += unpack(message.get("body", b""), self.limits.request_bytes + 1 - len(body), not more)
            except (zlib.error, EOFError):
                raise TurnedAway(400, "The question is not gzip, as its head says") from None
            if len(body) > self.limits.request_bytes:
                raise TurnedAway(413, f"A question has {self.limits.request_bytes} bytes at most")
        return bytes(body)

    async def _in_thread(self, work: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._doors, work, *arguments)


def read_address(scope: Any) -> Asked:
    """What is asked, and of which project. Raises TurnedAway 404 for what is no address of a mirror."""
    found = _PATH.fullmatch(scope["path"])
    if found is None:
        raise TurnedAway(404, "There is nothing at this address")
    query = parse_qs(scope.get("query_string", b"").decode("ascii", "replace"))
    protocol = _header(scope, b"git-protocol").split(":")
    return Asked(found["project"], found["rest"], query.get("service", [""])[0], "version=2" in protocol)


def open_door(scope: Any, asked: Asked) -> Door:
    """The mirror's door for whoever may read it. Raises TurnedAway: 400 host, 401 nobody, 404 whatever is not theirs.

    A key of role viewer or above reads the mirrors of its projects. A worker's key reads a mirror only while one of its
    workers holds a live lease on a task there: it reads nothing but what its workers hold (domain.md §1.8), so that
    what a stolen one is good for ends with its lease.
    """
    request = ASGIRequest({**scope, "query_string": ""}, io.BytesIO())
    try:
        request.get_host()
    except DisallowedHost:
        raise TurnedAway(400, "This server does not answer under this name") from None
    try:
        key = find_key(_secret(request.headers.get("Authorization", "")))
        if key is None:
            raise TurnedAway(401, "Name a key of Signalbox as the password", WWW_Authenticate='Basic realm="signalbox"')
        principal = Principal.of_key(key)
        project = find_project(_readable(principal), asked.project)
    except NotFound:
        raise TurnedAway(404, "There is no such repository") from None
    except (OperationalError, InterfaceError) as problem:
        log.warning("the database did not answer: %s", problem)
        raise TurnedAway(503, "The database did not answer in time", Retry_After=str(RETRY_SECONDS)) from None
    finally:
        connection.close()
    if not (project.mirror / "HEAD").is_file():
        raise TurnedAway(404, "There is no such repository")
    return Door(project.mirror, () if principal.is_worker else (NOTES,))


def check_wants(door: Door, body: bytes) -> None:
    """Raises NotOurs unless all that `body` asks for is the head of a name that the door shows, or a commit below one;
    TurnedAway 400 for what is no question, 403 for a command that is not for reading, 503 when git does not answer.
    """
    wants = read_wants(body)
    if not wants:
        return
    mirror = door.mirror
    try:
        told = git.run(
            mirror, "for-each-ref", "--format=%(objectname) %(refname)", "refs/heads", "refs/tags", *door.also
        ).stdout.decode("utf-8", "surrogateescape")
        heads = dict(line.split(" ", 1)[::-1] for line in told.splitlines())
        older = sorted(wants - set(heads.values()))
        if not older:
            return
        if len(older) > MAX_WANTS:
            raise NotOurs(f"ask for {MAX_WANTS} older commits at most")
        names = "".join(f"{name}\n" for name in older).encode()
        kinds = git.run(mirror, "cat-file", "--batch-check=%(objecttype)", stdin=names).stdout
        for name, kind in zip(older, kinds.decode().splitlines(), strict=True):
            if kind != "commit":
                raise NotOurs(f"upload-pack: not our ref {name}")
        shown = ("--branches", "--tags", *(name for name in door.also if name in heads))
        beyond = git.run(mirror, "rev-list", "--max-count=1", *older, "--not", *shown, "--").stdout
        if beyond:
            raise NotOurs(f"upload-pack: not our ref {' '.join(older)}")
    except git.GitFailed as problem:
        log.warning("a question to %s could not be judged: %s", mirror.name, problem)
        raise TurnedAway(503, "The mirror cannot be read now", Retry_After=str(RETRY_SECONDS)) from None


def read_wants(body: bytes) -> set[str]:
    """The objects that a question asks for, in all of its packet lines. Raises TurnedAway.

    Stricter than git, so that nothing is asked for that is not seen here.
    """
    wants = set()
    at = 0
    while at < len(body):
        size = int(body[at : at + 4], 16) if _LENGTH.fullmatch(body, at, at + 4) else 3
        if size == 3 or at + size > len(body):
            raise TurnedAway(400, "This is not a question of git's protocol")
        line = body[at + 4 : at + size]
        at += max(size, 4)
        if line.startswith(b"command=") and line.rstrip(b"\n") not in _COMMANDS:
            raise TurnedAway(403, "This repository is only read here")
        if line.startswith(b"want"):
            named = _WANT.fullmatch(line)
            if named is None:
                raise TurnedAway(400, "Ask for objects by their full names")
            wants.add(named[1].decode())
    return wants


def _readable(principal: Principal) -> QuerySet[Project]:
    if not principal.is_worker:
        return Project.objects.visible_to(principal)
    held = Lease.objects.live().visible_to(principal)
    return Project.objects.filter(pk__in=held.values("task__run__project"))


def _secret(header: str) -> str:
    """The key in `Authorization`: a bearer token, or the password beside any name (RFC 7617); empty for none."""
    scheme, _space, text = header.partition(" ")
    if scheme.lower() == "bearer":
        return text.strip()
    if scheme.lower() == "basic":
        with contextlib.suppress(binascii.Error, ValueError):
            return base64.b64decode(text.strip(), validate=True).decode().partition(":")[2]
    return ""


def _check_service(asked: Asked, method: str) -> None:
    if "git-receive-pack" in (asked.service, asked.rest):
        raise TurnedAway(403, "This repository is only read here: hand changes in as patches")
    methods = {"info/refs": "GET", "git-upload-pack": "POST"}
    if asked.rest not in methods:
        raise TurnedAway(404, "There is nothing at this address")
    if method != methods[asked.rest]:
        raise TurnedAway(405, f"Use {methods[asked.rest]} here", Allow=methods[asked.rest])
    if asked.rest == "info/refs" and asked.service != "git-upload-pack":
        raise TurnedAway(403, "This server speaks git's smart protocol only")


def _command(door: Door, arguments: list[str], asked: Asked) -> tuple[list[str], dict[str, str]]:
    """The command line and environment of one upload-pack: nobody's configuration, as everywhere in ledger.git."""
    mirror = door.mirror
    shown = (f"uploadpack.hideRefs=!{name}" for name in door.also)
    told = (*git.running.SETTINGS, *_SETTINGS, *shown, f"safe.directory={mirror}")
    command = ["git", *(part for setting in told for part in ("-c", setting))]
    command += ["upload-pack", "--strict", "--stateless-rpc", *arguments, str(mirror)]
    environment = {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_ATTR_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_NO_REPLACE_OBJECTS": "1",
        "GIT_NO_LAZY_FETCH": "1",
    }
    if asked.version_2:
        environment["GIT_PROTOCOL"] = "version=2"
    return command, environment


def _unpacker(scope: Any) -> Any:
    """A function of (bytes, room, whether they are the last) that gives at most `room` bytes of the plain body."""
    coding = _header(scope, b"content-encoding").lower()
    if coding in ("", "identity"):
        return lambda raw, room, last: raw[:room]
    if coding not in ("gzip", "x-gzip"):
        raise TurnedAway(415, "A question is plain or gzip", Accept_Encoding="gzip")
    packed = zlib.decompressobj(16 + zlib.MAX_WBITS)

    def unpack(raw: bytes, room: int, last: bool) -> bytes:
        plain = packed.decompress(raw, room)
        if last and len(plain) < room and not packed.eof:
            raise EOFError
        return plain

    return unpack


def _header(scope: Any, name: bytes) -> str:
    return next((text.decode("latin-1").strip() for key, text in scope["headers"] if key.lower() == name), "")


def _packet(line: bytes) -> bytes:
    return b"%04x" % (len(line) + 4) + line


async def _feed(stdin: asyncio.StreamWriter, body: bytes) -> None:
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it has heard enough, and says why
        stdin.write(body)
        await stdin.drain()
    stdin.close()


async def _end(process: asyncio.subprocess.Process, helping: "list[asyncio.Task[Any]]") -> None:
    """Kill it, unless it has ended, with all that it started; afterwards its pipes are closed and it is reaped."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    while process.stdout is not None and await process.stdout.read(CHUNK_BYTES):
        pass
    await asyncio.gather(*helping, return_exceptions=True)
    await process.wait()


async def _tail(stderr: asyncio.StreamReader) -> str:
    """The end of what git complained about."""
    said = b""
    while chunk := await stderr.read(CHUNK_BYTES):
        said = (said + chunk)[-STDERR_BYTES:]
    return said.decode("utf-8", "replace").strip()


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _start(status: int, content_type: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    # What gitprotocol-http(5) asks of a server: no cache keeps an answer.
    told = {"Content-Type": content_type, "Cache-Control": "no-cache, max-age=0, must-revalidate", **(headers or {})}
    raw = [(name.lower().encode("latin-1"), text.encode("latin-1")) for name, text in told.items()]
    return {"type": "http.response.start", "status": status, "headers": raw}


async def _whole(send: Any, status: int, content_type: str, body: bytes, headers: dict[str, str] | None = None) -> None:
    await send(_start(status, content_type, {**(headers or {}), "Content-Length": str(len(body))}))
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Any, refusal: TurnedAway) -> None:
    """The refusal as plain text: git shows that to its user, and no other kind."""
    with contextlib.suppress(OSError):
        await _whole(send, refusal.status, "text/plain; charset=utf-8", f"{refusal}\n".encode(), refusal.headers)


rawroutes.register(f"{PREFIX}.*", MirrorServer())
