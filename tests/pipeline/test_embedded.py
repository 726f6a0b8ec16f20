"""The embedded servers: shared, stopped by the last, and healed after whatever was killed."""

import contextlib
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from pipeline import embedded
from tests.embedded_plugin import FAST

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    """A data directory that was used before, nobody holding it."""
    with _directory() as path:
        ensure(path).leave()
        yield path


@pytest.fixture
def fresh() -> Iterator[Path]:
    """An empty data directory."""
    with _directory() as path:
        yield path


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    # As root the servers run as another user, which has to reach it.
    path = Path(tempfile.mkdtemp(prefix="signalbox-embedded-"))
    path.chmod(0o711)
    yield path
    _clean(path)


def _clean(data: Path) -> None:
    if (data / "embedded.json").exists():
        ensure(data).leave()
    place = embedded.place(data)
    for path in {place.home, place.sockets, data} - {None}:
        shutil.rmtree(path, ignore_errors=True)


_held: list[embedded.Embedded] = []


@pytest.fixture(autouse=True)
def _leave() -> Iterator[None]:
    """A test that failed must not hold servers that the next one expects to be stopped."""
    yield
    while _held:
        _held.pop().leave()


def ensure(data: Path, **settings: str) -> embedded.Embedded:
    _held.append(embedded.ensure(data, settings={**FAST, **settings}, die_with_parent=True))
    return _held[-1]


def connect(place: embedded.Place, **more: Any) -> psycopg.Connection[Any]:
    given = {"host": str(place.postgres_sockets), "user": embedded.ROLE, "dbname": embedded.DATABASE, **more}
    return psycopg.connect(autocommit=True, **given)


def broker(place: embedded.Place) -> redis.Redis:
    return redis.Redis(unix_socket_path=str(place.valkey_socket), retry=None)


def kill(pid_file: Path) -> None:
    pid = int(pid_file.read_text().split()[0])
    assert pid != os.getpid()
    os.kill(pid, signal.SIGKILL)


def hold_in_another_process(data: Path) -> subprocess.Popen[str]:
    """A process that holds the servers until its stdin closes."""
    code = (
        "import sys; from pathlib import Path; from pipeline import embedded\n"
        f"held = embedded.ensure(Path({str(data)!r}), settings={FAST!r})\n"
        "print('held', flush=True); sys.stdin.read(); held.leave()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_first_start_makes_a_role_that_may_not_step_round_triggers(fresh: Path) -> None:
    held = ensure(fresh)
    with connect(held.place) as connection:
        assert connection.execute(
            "SELECT rolsuper, rolcreatedb FROM pg_roles WHERE rolname = current_user"
        ).fetchone() == (
            False,
            True,
        )
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("SET session_replication_role = replica")
        extensions = {name for (name,) in connection.execute("SELECT extname FROM pg_extension")}
        assert {"btree_gist", "pg_stat_statements"} <= extensions
    with broker(held.place) as line:
        assert line.ping()
        assert line.config_get("appendonly") == {"appendonly": "yes"}
    held.leave()


def test_sockets_are_closed_to_other_users(data: Path) -> None:
    held = ensure(data)
    for path in (held.place.postgres_sockets / ".s.PGSQL.5432", held.place.valkey_socket):
        assert path.stat().st_mode & 0o777 == 0o700
        assert path.parent.stat().st_mode & 0o077 == 0
    held.leave()


def test_the_last_to_leave_stops_the_servers(data: Path) -> None:
    other = hold_in_another_process(data)
    held = ensure(data)
    other.communicate(timeout=30)
    with connect(held.place), broker(held.place) as line:
        assert line.ping()
    place = held.place
    held.leave()
    assert not (place.cluster / "postmaster.pid").exists()
    with pytest.raises(psycopg.OperationalError):
        connect(place)
    assert not embedded.ping(place.valkey_socket)


def test_leaving_twice_is_quiet(data: Path) -> None:
    held = ensure(data)
    held.leave()
    held.leave()


def test_a_killed_holder_leaves_servers_that_the_next_one_stops(data: Path) -> None:
    other = hold_in_another_process(data)
    other.kill()
    other.communicate()
    held = ensure(data)
    with connect(held.place) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    held.leave()
    assert not (held.place.cluster / "postmaster.pid").exists()


def test_killed_servers_are_healed_with_what_they_held(data: Path) -> None:
    held = ensure(data, synchronous_commit="on")
    with connect(held.place) as connection, broker(held.place) as line:
        connection.execute("CREATE TABLE kept AS SELECT 7 AS number")
        line.set("kept", "7")
        assert held.heal() == []
        kill(held.place.cluster / "postmaster.pid")
        kill(held.place.valkey / "valkey.pid")
        _until(lambda: held.heal() == ["postgresql", "valkey"])
    with connect(held.place) as connection, broker(held.place) as line:
        assert connection.execute("SELECT number FROM kept").fetchone() == (7,)
        assert line.get("kept") == b"7"
    held.leave()


def test_a_start_outlives_backends_that_do_not_notice_their_postmaster_died(data: Path) -> None:
    held = ensure(data)
    busy = connect(held.place)
    with busy.cursor() as cursor:
        # A loop that never waits, so that the backend does not look whether its postmaster lives.
        busy.pgconn.send_query(b"DO $$ BEGIN LOOP END LOOP; END $$")
        backend = busy.info.backend_pid
        kill(held.place.cluster / "postmaster.pid")
        _until(lambda: "postgresql" in held.heal())
        assert not embedded._alive(backend)
        cursor.close()
    busy.close()
    held.leave()


def test_a_pid_file_that_names_a_stranger_does_not_stop_a_start(data: Path) -> None:
    ensure(data).leave()
    place = embedded.place(data)
    assert not (place.cluster / "postmaster.pid").exists()
    (place.cluster / "postmaster.pid").write_text(f"{os.getpid()}\n{place.cluster}\n")
    (place.valkey / "valkey.pid").write_text(f"{os.getpid()}\n")
    held = ensure(data)
    connect(held.place).close()
    held.leave()


def test_half_a_cluster_is_made_anew(fresh: Path) -> None:
    (fresh / "pg").mkdir(mode=0o700)
    (fresh / "pg" / "base").mkdir()
    (fresh / "pg" / "postgresql.conf").touch()
    held = ensure(fresh)
    connect(held.place).close()
    held.leave()


def test_two_first_starts_at_once_make_one_cluster(fresh: Path) -> None:
    # Not a Pool: it ends its processes by a signal, at which the measuring of coverage can wait for ever.
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        systems = list(pool.map(_system_identifier, [fresh, fresh]))
    assert len(set(systems)) == 1


def _system_identifier(data: Path) -> int:
    held = embedded.ensure(data, settings=FAST)
    try:
        with connect(held.place) as connection:
            found: int = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()[0]
            return found
    finally:
        held.leave()


def test_below_a_closed_parent_it_runs_and_changes_no_parent() -> None:
    parent = Path(tempfile.mkdtemp(prefix="signalbox-closed-"))
    parent.chmod(0o700)
    data = parent / "data"
    try:
        held = ensure(data)
        connect(held.place).close()
        assert parent.stat().st_mode & 0o777 == 0o700
        if os.geteuid() == 0:
            assert held.place.home.parent == embedded.CLOSED_HOME
        else:
            assert held.place.home == data
        place = held.place
        held.leave()
        again = ensure(data)
        assert again.place == place
        again.leave()
    finally:
        _clean(data)
        shutil.rmtree(parent)


def test_a_path_that_is_too_long_for_a_socket_is_served_by_a_short_one() -> None:
    parent = Path(tempfile.mkdtemp(prefix="signalbox-long-"))
    parent.chmod(0o711)
    data = parent / ("a, long % one " * 8)
    try:
        held = ensure(data)
        assert len(str(held.place.valkey_socket)) < 100
        assert embedded.place(data) == held.place
        connect(held.place).close()
        assert embedded.ping(held.place.valkey_socket)
        held.leave()
    finally:
        _clean(data)
        shutil.rmtree(parent)


def test_a_lost_directory_of_sockets_is_made_again(data: Path) -> None:
    ensure(data).leave()
    place = embedded.place(data)
    sockets = Path(tempfile.mkdtemp(prefix="signalbox-"))
    (data / "embedded.json").write_text(f'{{"home": "{place.home}", "sockets": "{sockets}"}}')
    sockets.rmdir()
    held = ensure(data)
    assert held.place.sockets is not None
    assert held.place.sockets.stat().st_mode & 0o777 == 0o700
    connect(held.place).close()
    held.leave()


def test_a_failing_start_says_why_and_leaves_nothing_running(fresh: Path) -> None:
    with pytest.raises(embedded.EmbeddedError, match="no_such_setting"):
        embedded.ensure(fresh, settings={"no_such_setting": "1"})
    assert not (fresh / "pg" / "postmaster.pid").exists()
    ensure(fresh).leave()


def test_a_secret_is_made_once_and_read_by_its_owner_only(tmp_path: Path) -> None:
    first = embedded.secret(tmp_path, "pepper")
    assert len(first) >= 50
    assert embedded.secret(tmp_path, "pepper") == first
    assert embedded.secret(tmp_path, "secret_key") != first
    assert (tmp_path / "pepper").stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pepper", "secret_key"]


def test_a_command_that_needs_no_database_starts_none(tmp_path: Path) -> None:
    environ = {"SIGNALBOX_DATA": str(tmp_path / "data")}
    with embedded.around(["check"], environ):
        assert not (tmp_path / "data").exists()
    assert environ["SIGNALBOX_ROLE"] == "command"


def test_a_command_with_both_urls_starts_nothing(tmp_path: Path) -> None:
    environ = {
        "SIGNALBOX_DATA": str(tmp_path / "data"),
        "DATABASE_URL": "postgres://x/y",
        "CELERY_BROKER_URL": "redis://x",
    }
    with embedded.around(["migrate"], environ):
        assert not (tmp_path / "data").exists()
    assert environ["SIGNALBOX_ROLE"] == "migrate"


@pytest.mark.parametrize("given", [["up", "--data", "here"], ["up", "--data=here", "--port", "1"]])
def test_up_reads_its_data_directory_before_the_settings(
    given: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    environ = {"SIGNALBOX_DATA": "/elsewhere"}
    with embedded.around(given, environ):
        assert environ["SIGNALBOX_DATA"] == str(tmp_path / "here")


def _until(true: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(psycopg.OperationalError):
            if true():
                return
        assert time.monotonic() < end
        time.sleep(0.02)
