"""The migrated database, kept between test runs: applying every migration takes half a minute of a processor.

What is kept is what `pg_dump` says of it right after the migrations, in a file named by a digest over everything that
they come from; so a changed migration, Django or PostgreSQL makes another one. Only for the tests' own server.
"""

import functools
import hashlib
import os
import subprocess
from pathlib import Path

import django
import psycopg
from django.db import connection

from pipeline import embedded
from tests import embedded_plugin

ROOT = Path(__file__).resolve().parent.parent
TEMPLATE = "signalbox_migrated"


@functools.cache
def kept() -> Path:
    """Where the dump for these migrations is, or will be."""
    digest = hashlib.sha256(f"{django.VERSION} {_binary('pg_dump')}".encode())
    for path in [*sorted(ROOT.glob("*/migrations/*.py")), ROOT / "requirements.txt", Path(__file__)]:
        digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return ROOT / ".pytest_cache" / f"migrated-{digest.hexdigest()[:16]}.sql"


def restore() -> str | None:
    """The name of a database on the tests' own server that holds what was kept; None where nothing was."""
    if not embedded_plugin.servers or not kept().exists():
        return None
    place = embedded.place(Path(os.environ["SIGNALBOX_DATA"]))
    with psycopg.connect(
        host=str(place.postgres_sockets), user=embedded.ROLE, dbname="postgres", autocommit=True
    ) as line:
        line.execute(f"DROP DATABASE IF EXISTS {TEMPLATE}")
        line.execute(f"CREATE DATABASE {TEMPLATE}")
    _load(TEMPLATE, place)
    return TEMPLATE


def fill(data: Path) -> None:
    """Give a product that was never started in `data` what was kept, if anything: its first start is much shorter."""
    if not embedded_plugin.servers or not kept().exists():
        return
    held = embedded.ensure(data, valkey=False)
    try:
        _load(embedded.DATABASE, held.place)
    finally:
        held.leave()


def keep() -> None:
    """Keep what the migrations made, unless it is kept already; whoever is first wins."""
    if not embedded_plugin.servers or kept().exists():
        return
    kept().parent.mkdir(exist_ok=True)
    for old in kept().parent.glob("migrated-*.sql"):
        old.unlink(missing_ok=True)
    draft = kept().with_suffix(f".{os.getpid()}")
    database = connection.settings_dict["NAME"]
    place = embedded.place(Path(os.environ["SIGNALBOX_DATA"]))
    _call(
        "pg_dump", place, database, "--no-owner", "--exclude-extension=*", "--restrict-key=signalbox", "-f", str(draft)
    )
    draft.replace(kept())


def _load(database: str, place: embedded.Place) -> None:
    file = ["-1", "-o", os.devnull, "-f", str(kept())]
    _call("psql", place, database, "--no-psqlrc", "--quiet", "-v", "ON_ERROR_STOP=1", *file)


def _call(name: str, place: embedded.Place, database: str, *arguments: str) -> None:
    command = [_binary(name), "-h", str(place.postgres_sockets), "-U", embedded.ROLE, "-d", database, *arguments]
    subprocess.run(command, check=True, env={"PATH": os.defpath, "LANG": "C", "TZ": "UTC"})


def _binary(name: str) -> str:
    return embedded_plugin.servers[0]._binary(name)
