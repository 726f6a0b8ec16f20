"""`manage.py up`: everything that Signalbox is, in one terminal, until Ctrl-C."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import signal
import socket
import sys
import time
from argparse import ArgumentParser
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.contrib.staticfiles.finders import get_finders
from django.core import checks
from django.core.management import BaseCommand, CommandError, call_command, get_commands
from django.db import IntegrityError, connections, transaction
from django.utils.translation import gettext as _

from pipeline import embedded
from pipeline.checks import TAG
from pipeline.supervisor import Program, Supervisor

PORT_PATIENCE_SECONDS = 2.0
"""A server that was just killed may hold its port for a moment longer."""


class Command(BaseCommand):
    """Starts the embedded servers where no URL names others, migrates, and runs web, workers and beat."""

    help = "Runs Signalbox: web, Celery workers, beat, and PostgreSQL and Valkey when no URL names others."
    # Only our own checks: the others read every URL and template, which costs a second of every start.
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """--port, --host, --data (read by manage.py before the settings), --no-demo."""
        parser.add_argument("--port", type=int, default=settings.SIGNALBOX_PORT, help="default: %(default)s")
        parser.add_argument("--host", default="127.0.0.1", help="address to listen on; default: this machine only")
        parser.add_argument("--data", help="data directory; default: SIGNALBOX_DATA, or .data")
        parser.add_argument("--no-demo", action="store_true", help="leave out the demo project and its agents")

    def handle(self, *args: Any, **options: Any) -> None:
        """Runs until a signal; exit code 0 after an orderly stop, 1 when something could not be started or kept up."""
        host, port, demo = options["host"], options["port"], not options["no_demo"] and "demo" in get_commands()
        self.refuse_contradictions()
        self.refuse_taken_port(host, port)
        wanted = embedded.missing(os.environ)
        servers = None
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            if any(wanted.values()):
                try:
                    servers = embedded.ensure(settings.DATA_DIR, **wanted)
                except embedded.EmbeddedError as exc:
                    raise CommandError(str(exc)) from exc
            self.prepare(demo=demo)
            code = self.supervise(self.programs(host, port, demo=demo), servers, host, port)
        except KeyboardInterrupt:
            code = 0
        finally:
            if servers is not None:
                servers.leave()
        self.stdout.write(_("Stopped."))
        sys.exit(code)

    def refuse_contradictions(self) -> None:
        """CommandError when two settings contradict each other."""
        found = [message for message in checks.run_checks(tags=[TAG]) if message.is_serious()]
        if found:
            raise CommandError("\n".join(f"{message.msg} {message.hint}" for message in found))

    def refuse_taken_port(self, host: str, port: int) -> None:
        """CommandError when nobody can listen on `port`."""
        if not 1 <= port <= 65535:
            raise CommandError(_("--port is %(port)s; it must be a number from 1 to 65535") % {"port": port})
        end = time.monotonic() + PORT_PATIENCE_SECONDS
        while True:
            try:
                # As the web server will: a port in TIME_WAIT is free, one that somebody listens on is not.
                with socket.create_server((host, port), reuse_port=False):
                    return
            except OSError as exc:
                if time.monotonic() > end:
                    raise CommandError(
                        _('Cannot listen on %(host)s:%(port)s: %(why)s. Try: make up ARGS="--port %(other)s"')
                        % {"host": host, "port": port, "why": exc.strerror, "other": port % 65535 + 1}
                    ) from exc
                time.sleep(0.2)

    def prepare(self, *, demo: bool) -> None:
        """Brings the database, the first administrator, the demo's rows and the static files up to date."""
        call_command("migrate", interactive=False, verbosity=0)
        self.make_first_administrator()
        if demo:
            call_command("demo", setup_only=True)
        self.collect_static()
        connections.close_all()

    def make_first_administrator(self) -> None:
        """Makes `admin` with a random password, shown this once, when nobody is an administrator yet."""
        people = get_user_model()._default_manager
        if people.filter(is_superuser=True).exists():
            return
        password = secrets.token_urlsafe(12)
        # Of two first starts at once, one makes the row and shows its password.
        with contextlib.suppress(IntegrityError), transaction.atomic():
            people.create_superuser(username="admin", email="", password=password)
            self.stdout.write(
                _("First administrator: admin, password: %(password)s (shown only now)") % {"password": password}
            )

    def collect_static(self) -> None:
        """Collects the static files when any of them changed since the last time."""
        stamp = settings.STATIC_ROOT / ".stamp"
        now = hashlib.sha256()
        for finder in get_finders():
            for path, storage in finder.list([]):
                found = os.stat(storage.path(path))
                now.update(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n".encode())
        if stamp.exists() and stamp.read_text() == now.hexdigest():
            return
        call_command("collectstatic", interactive=False, verbosity=0)
        stamp.write_text(now.hexdigest())

    def programs(self, host: str, port: int, *, demo: bool) -> list[Program]:
        """The command lines of all processes."""
        python = sys.executable
        log = {"SIGNALBOX_LOG": "console"} if self.stdout.isatty() else {}
        shared = {"SIGNALBOX_DATA": str(settings.DATA_DIR), "PYTHONUNBUFFERED": "1", **log}
        web, worker = {**shared, "SIGNALBOX_ROLE": "web"}, {**shared, "SIGNALBOX_ROLE": "worker"}
        celery = [python, "-m", "celery", "--app", "pipeline.celery", "--quiet"]
        quiet = ["--without-gossip", "--without-mingle"]
        found = [
            Program(
                "web",
                [python, "-m", "uvicorn", "pipeline.asgi:application", "--host", host, "--port", str(port)]
                + [
                    "--lifespan",
                    "off",
                    "--timeout-graceful-shutdown",
                    "3",
                    "--no-access-log",
                    "--log-level",
                    "warning",
                ],
                web,
            ),
            Program(
                "worker",
                [*celery, "worker", "--queues", "celery", "--concurrency", "2", "--hostname", "worker@%h", *quiet],
                worker,
            ),
            Program(
                "gates",
                [*celery, "worker", "--queues", "gates", "--pool", "threads", "--concurrency", "2"]
                + ["--hostname", "gates@%h", *quiet],
                worker,
            ),
            Program(
                "sender",
                [*celery, "worker", "--queues", "webhooks", "--pool", "threads", "--concurrency", "2"]
                + ["--hostname", "sender@%h", *quiet],
                worker,
            ),
            Program("beat", [*celery, "beat", "--pidfile=", "--schedule", str(settings.DATA_DIR / "beat")], worker),
        ]
        if demo:
            environment = {**shared, "SIGNALBOX_ROLE": "command", "SIGNALBOX_PORT": str(port)}
            command = [python, "manage.py", "demo", "--agents", "--url", _url(host, port)]
            # Its agents say goodbye to the web server, so that no worker is left that nobody has heard of since.
            found.append(Program("demo", command, environment, may_end=True, stops_first=True))
        return found

    def supervise(self, programs: list[Program], servers: embedded.Embedded | None, host: str, port: int) -> int:
        """Runs the programs, says once where the site answers, and keeps the embedded servers alive."""
        shown = "localhost" if host in {"127.0.0.1", "::1", "0.0.0.0", "::"} else host
        announced = False

        def tick() -> None:
            nonlocal announced
            if not announced and _listens(host, port):
                announced = True
                supervisor.say("up", _("Signalbox is at http://%(host)s:%(port)s/") % {"host": shown, "port": port})
                supervisor.say("up", _("Ctrl-C stops it."))
            try:
                for name in servers.heal() if servers else []:
                    supervisor.say("up", _("%(name)s had died and was started again") % {"name": name})
            except embedded.EmbeddedError as exc:
                supervisor.say("up", str(exc))

        # The children hold the servers' lock as well: when this process is killed, nobody stops them under their feet.
        supervisor = Supervisor(
            programs,
            out=sys.stdout,
            tick=tick,
            keep_open=[servers.lock] if servers else [],
            directory=settings.BASE_DIR,
        )
        return supervisor.run()


def _url(host: str, port: int) -> str:
    """Where a program on this machine reaches the server that listens on `host`."""
    reached = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{reached}]:{port}" if ":" in reached else f"http://{reached}:{port}"


def _listens(host: str, port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1" if host in {"0.0.0.0", ""} else host, port), timeout=0.5):
            return True
    except OSError:
        return False
