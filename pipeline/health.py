"""Liveness and readiness: what a load balancer asks, answered within two seconds whatever hangs."""

import functools
import threading
import time
from collections.abc import Callable
from datetime import timedelta

import structlog
from django.db import connection
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.recorder import MigrationRecorder
from django.db.models.functions import Now
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_safe

log = structlog.get_logger(__name__)

PATIENCE_SECONDS = 2.0
BEAT_SILENCE = timedelta(seconds=60)


@never_cache
@require_safe
def healthz(request: HttpRequest) -> HttpResponse:
    """200 "ok" while this process answers at all; touches neither database nor broker."""
    return HttpResponse("ok\n", content_type="text/plain")


@never_cache
@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """Each check of CHECKS with its truth; 200 when all hold, else 503. Takes PATIENCE_SECONDS at most."""
    answers = ask(CHECKS, PATIENCE_SECONDS)
    ready = all(answers.values())
    return JsonResponse({"status": "ready" if ready else "not ready", "checks": answers}, status=200 if ready else 503)


def database() -> bool:
    """The database answers a query."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        return bool(cursor.fetchone() == (1,))


def migrations() -> bool:
    """Every migration that this code knows is applied."""
    return _leaves() <= set(MigrationRecorder(connection).applied_migrations())


@functools.cache
def _leaves() -> frozenset[tuple[str, str]]:
    # The code of a process does not change, and reading all migrations takes a tenth of a second.
    return frozenset(MigrationLoader(None, ignore_no_migrations=True).graph.leaf_nodes())


def broker() -> bool:
    """The broker takes a connection and answers."""
    from pipeline.celery import app

    with app.connection_for_write() as line:
        # Making a channel asks the broker something, within the time that the transport's options give.
        return line.default_channel is not None


def beat() -> bool:
    """Some beat fired lately, as the rows of periodic work tell."""
    from pipeline.models import Tick

    return Tick.objects.of_beat().filter(due_at__gt=Now() - BEAT_SILENCE).exists()


CHECKS: dict[str, Callable[[], bool]] = {
    "database": database,
    "migrations": migrations,
    "broker": broker,
    "beat": beat,
}

_asked: dict[str, threading.Thread] = {}


def ask(checks: dict[str, Callable[[], bool]], seconds: float) -> dict[str, bool]:
    """Runs the checks beside each other and answers after `seconds` at the latest; a late or failing one is False.

    A check that still hangs from an earlier call is False at once and not started again, so hung ones never pile up.
    """
    found: dict[str, bool] = {}
    end = time.monotonic() + seconds
    started = {}
    for name, check in checks.items():
        if (hanging := _asked.get(name)) is None or not hanging.is_alive():
            # A daemon, because a hung check must not keep the process from ending.
            started[name] = threading.Thread(target=_run, args=(name, check, found), daemon=True, name=f"readyz-{name}")
            started[name].start()
    _asked.update(started)
    for thread in started.values():
        thread.join(max(0.0, end - time.monotonic()))
    return {name: found.get(name, False) for name in checks}


def _run(name: str, check: Callable[[], bool], found: dict[str, bool]) -> None:
    try:
        found[name] = check()
    except Exception as exc:  # whatever it is, the answer is "not ready" and the log says why
        log.warning("not_ready", check=name, error=str(exc)[:500])
        found[name] = False
    finally:
        connection.close()
