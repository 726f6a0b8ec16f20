"""`manage.py up` as people use it: started, killed, started again, stopped."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pipeline import embedded

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.setup

_started: list[subprocess.Popen[bytes]] = []


@pytest.fixture
def data() -> Iterator[Path]:
    """A data directory below a closed parent, as an administrator's home is."""
    parent = Path(tempfile.mkdtemp(prefix="signalbox-up-"))
    yield parent / "data"
    for process in _started:
        process.kill()
        process.wait()
    _started.clear()
    for pid in processes_of(parent / "data"):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if (parent / "data" / "embedded.json").exists():
        embedded.ensure(parent / "data").leave()
    home = embedded.place(parent / "data").home
    shutil.rmtree(home, ignore_errors=True)
    shutil.rmtree(parent, ignore_errors=True)


def environment() -> dict[str, str]:
    """The environment without what the test session set for itself."""
    own = ("SIGNALBOX_", "DATABASE_URL", "CELERY_BROKER_URL", "DJANGO_SETTINGS_MODULE")
    return {name: value for name, value in os.environ.items() if not name.startswith(own)}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def start(data: Path, port: int, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "manage.py", "up", "--no-demo", "--port", str(port), "--data", str(data)]
    with log.open("wb") as out:
        process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=out, stderr=out, start_new_session=True)
    _started.append(process)
    return process


def status(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            code: int = answer.status
            return code
    except urllib.error.HTTPError as exc:
        exc.close()
        return exc.code
    except OSError:
        return 0


def processes_of(data: Path, word: str = "") -> list[int]:
    """Our programs that run on `data` with `word` in their command line; the embedded servers are not among them."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            told = (path / "environ").read_bytes().split(b"\0")
            if f"SIGNALBOX_DATA={data}".encode() in told and word.encode() in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return sorted(found)


def until(true: Callable[[], object], log: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.1)


def test_up_outlives_kills_and_stops_cleanly(data: Path, tmp_path: Path) -> None:
    log, port = tmp_path / "log", free_port()

    first = start(data, port, log)
    until(lambda: status(port, "/healthz") == 200, log)
    assert len(re.findall(r"First administrator: admin, password: \S{12,}", log.read_text())) == 1
    first.kill()
    first.wait()
    until(lambda: not processes_of(data), log)

    second = start(data, port, log)
    until(lambda: status(port, "/healthz") == 200 and "worker@" in log.read_text(), log)
    assert "First administrator" not in log.read_text()
    worker = processes_of(data, "worker@")[0]
    os.kill(worker, signal.SIGKILL)
    until(lambda: "worker was killed by SIGKILL; starting it again" in log.read_text(), log)
    until(lambda: [pid for pid in processes_of(data, "worker@") if pid != worker], log)
    assert status(port, "/healthz") == 200
    os.kill(second.pid, signal.SIGINT)
    assert second.wait(60) == 0, log.read_text()

    assert processes_of(data) == []
    place = embedded.place(data)
    assert not (place.cluster / "postmaster.pid").exists()
    assert not embedded.ping(place.valkey_socket)
    assert data.parent.stat().st_mode & 0o777 == 0o700


def test_a_taken_port_is_a_clear_message(data: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refused = start(data, port, tmp_path / "log")
        assert refused.wait(60) == 1
    assert f"Cannot listen on 127.0.0.1:{port}: Address already in use" in (tmp_path / "log").read_text()
    assert not (data / "pg").exists()
