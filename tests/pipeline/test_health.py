"""Liveness and readiness tell the truth, and in time."""

import os
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.utils import timezone
from kombu import Connection

from pipeline import health
from pipeline.celery import app
from pipeline.embedded import place
from pipeline.models import Tick
from tests.embedded_plugin import valkey


def test_healthz_asks_nobody(client: Client) -> None:
    # Without the database mark any query would be an error.
    answer = client.get("/healthz")
    assert (answer.status_code, answer.content) == (200, b"ok\n")
    assert "no-store" in answer["Cache-Control"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(("age_seconds", "status", "word"), [(0, 200, "ready"), (61, 503, "not ready")])
def test_readyz_tells_each_check_and_a_silent_beat(client: Client, age_seconds: int, status: int, word: str) -> None:
    Tick.objects.create(schedule="test", due_at=timezone.now() - timedelta(seconds=age_seconds))
    answer = client.get("/readyz")
    assert answer.json() == {
        "status": word,
        "checks": {"database": True, "migrations": True, "broker": True, "beat": status == 200},
    }
    assert answer.status_code == status


@pytest.mark.django_db
def test_a_missing_migration_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    assert health.migrations() is True
    applied = MigrationRecorder.applied_migrations
    newest = max(health._leaves())

    def without_newest(recorder: MigrationRecorder) -> dict[tuple[str, str], object]:
        return {key: value for key, value in applied(recorder).items() if key != newest}

    monkeypatch.setattr(MigrationRecorder, "applied_migrations", without_newest)
    assert health.migrations() is False


def test_a_check_that_raises_is_false() -> None:
    def breaks() -> bool:
        raise ValueError("broken")

    assert health.ask({"breaks": breaks, "holds": lambda: True}, 2.0) == {"breaks": False, "holds": True}


def test_a_check_that_hangs_is_false_in_time_and_not_asked_again_meanwhile() -> None:
    release = threading.Event()
    asked: list[int] = []

    def hangs() -> bool:
        asked.append(1)
        return release.wait(30)

    started = time.monotonic()
    assert health.ask({"hangs": hangs}, 0.2) == {"hangs": False}
    assert health.ask({"hangs": hangs}, 0.2) == {"hangs": False}
    assert time.monotonic() - started < 5
    assert len(asked) == 1
    release.set()
    health._asked["hangs"].join(5)
    assert health.ask({"hangs": hangs}, 2.0) == {"hangs": True}


@pytest.mark.kill
def test_a_frozen_broker_is_told_within_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with valkey(tmp_path / "data") as url:
        options = settings.CELERY_BROKER_TRANSPORT_OPTIONS
        monkeypatch.setattr(app, "connection_for_write", lambda: Connection(url, transport_options=options))
        asked = {"broker": health.broker}
        assert health.ask(asked, 5.0) == {"broker": True}
        pid = int((place(tmp_path / "data").valkey / "valkey.pid").read_text())
        os.kill(pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            assert health.ask(asked, 2.0) == {"broker": False}
            assert time.monotonic() - started < 3
        finally:
            os.kill(pid, signal.SIGCONT)
        health._asked["broker"].join(5)
        assert health.ask(asked, 5.0) == {"broker": True}
