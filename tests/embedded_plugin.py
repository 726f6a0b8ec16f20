"""An early pytest plugin that gives the tests their own PostgreSQL before Django reads its settings.

It must be early (`-p tests.embedded_plugin`): pytest-django reads the settings before any conftest.py, and a later
change of the environment would send the tests to the database of the developer. Each worker of pytest-xdist has a
server of its own: a reader of the log never passes a transaction that is open anywhere on the server, so the tests of
one worker would hold up those of another. With DATABASE_URL set, that server is used and none is started.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import embedded

OWNER = "SIGNALBOX_TEST_OWNER"
"""Holds the id of the pytest process that starts the server and removes the directory; its children inherit it."""

CLAIMED = "SIGNALBOX_TEST_CLAIMED"
"""For which worker of pytest-xdist, if any, that was done: processes that a test starts are of the same one."""

FAST = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "autovacuum": "off",
    "max_wal_size": "256MB",
    # Guards against TRUNCATE let the flush of transactional tests through on this server only.
    "signalbox.allow_truncate": "on",
}

MEMORY = Path("/dev/shm")
MEMORY_BYTES_MIN = 4 << 30

servers: list[embedded.Embedded] = []


def _fastest_place() -> Path | None:
    """Memory where there is plenty: emptying a hundred tables makes a thousand files. None for the usual place."""
    try:
        plenty = shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
    except OSError:
        return None
    return MEMORY if plenty and os.access(MEMORY, os.W_OK | os.X_OK) else None


def _claim_environment() -> None:
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if os.environ.get(CLAIMED) == worker:
        return
    data = Path(tempfile.mkdtemp(prefix="signalbox-tests-", dir=_fastest_place()))
    # As root the server runs as another user, which has to reach this directory.
    data.chmod(0o711 if os.geteuid() == 0 else 0o700)
    # WhiteNoise warns of a missing directory, and warnings are errors here.
    (data / "static").mkdir()
    os.environ[OWNER] = str(os.getpid())
    os.environ[CLAIMED] = worker
    os.environ["SIGNALBOX_DATA"] = str(data)
    os.environ["SIGNALBOX_ROLE"] = "command"
    # Messages stay in this process: a test that wants a real broker starts one with `valkey()`.
    os.environ["CELERY_BROKER_URL"] = "memory://"
    for name in ("ALLOWED_HOSTS", "SIGNALBOX_HTTPS", "SIGNALBOX_DEBUG", "SECRET_KEY", "SIGNALBOX_PEPPER"):
        os.environ.pop(name, None)
    if not os.environ.get("DATABASE_URL"):
        servers.append(embedded.Embedded(data, postgres=True, valkey=False, settings=FAST, die_with_parent=True))
        # Settings ask where the sockets are, so this is decided now; the server itself starts in pytest_configure.
        embedded.decide(data)


_claim_environment()


def pytest_configure(config: pytest.Config) -> None:
    """Starts the server, unless only workers run tests; a failed start ends the session with its reason."""
    only_workers_test = bool(getattr(config.option, "numprocesses", None)) and not hasattr(config, "workerinput")
    if servers and not only_workers_test and not config.option.help and not config.option.version:
        try:
            servers[0].start()
        except embedded.EmbeddedError as exc:
            raise pytest.UsageError(str(exc)) from exc


def pytest_unconfigure() -> None:
    """Stops the server and removes its directory, also after Ctrl-C."""
    if os.environ.get(OWNER) != str(os.getpid()):
        return
    place = embedded.place(Path(os.environ["SIGNALBOX_DATA"]))
    if servers:
        servers[0].leave()
    for path in {place.home, place.sockets, place.data} - {None}:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def valkey(data: Path) -> Iterator[str]:
    """A real broker in the directory `data` while the block runs; yields its Celery URL."""
    broker = embedded.ensure(data, postgres=False, valkey=True, die_with_parent=True)
    try:
        yield broker.place.broker_url
    finally:
        broker.leave()
        # Below a closed parent root keeps it elsewhere, where nobody would ever clear it away.
        shutil.rmtree(broker.place.home, ignore_errors=True)
