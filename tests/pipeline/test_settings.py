"""Settings are read once, and nonsense is refused with what would be right."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connection

from pipeline import settings as module
from pipeline.checks import TAG

ROOT = Path(__file__).resolve().parent.parent.parent


def evaluate(expression: str, **environment: str) -> str:
    """What `expression` is after a fresh process read the settings; its last line of error when that failed."""
    clean = {name: os.environ[name] for name in ("PATH", "HOME", "SIGNALBOX_DATA", "LANG") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", f"from pipeline import settings; print(({expression}))"],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("SIGNALBOX_PORT", "eighty", "SIGNALBOX_PORT is 'eighty'; it must be a whole number from 1 to 65535"),
        ("SIGNALBOX_HTTPS", "maybe", "SIGNALBOX_HTTPS is 'maybe'; write on or off"),
        ("SIGNALBOX_ROLE", "boss", "SIGNALBOX_ROLE is 'boss'; it must be one of web, worker, command, migrate"),
        ("SIGNALBOX_BUDGET_WARNING_RATIO", "NaN", "it must be a decimal number from 0.01 to 1"),
        ("DATABASE_URL", "mysql://a/b", "Signalbox runs on PostgreSQL only"),
        ("DATABASE_URL", "postgres://host", "DATABASE_URL names no database"),
        ("CELERY_BROKER_URL", "amqp://a", "CELERY_BROKER_URL must begin with redis://"),
        ("SECRET_KEY", "short", "must be random and have at least 32 characters"),
        ("CSRF_TRUSTED_ORIGINS", "box.example", "write it with its scheme: https://box.example"),
    ],
)
def test_nonsense_is_refused_with_what_would_be_right(name: str, value: str, said: str) -> None:
    answer = evaluate("'accepted'", **{name: value})
    assert answer.startswith("django.core.exceptions.ImproperlyConfigured: ")
    assert said in answer


def test_a_pool_serves_the_web_and_one_lasting_connection_serves_a_worker() -> None:
    expression = "settings._default['OPTIONS'].get('pool', {}).get('max_size'), settings._default['CONN_MAX_AGE']"
    assert evaluate(expression, SIGNALBOX_ROLE="web", SIGNALBOX_THREADS="3") == "(7, 0)"
    assert evaluate(expression, SIGNALBOX_ROLE="worker") == "(None, 600)"


def test_a_database_url_is_taken_apart_and_keeps_our_timeouts() -> None:
    expression = "[settings._default[k] for k in ('NAME', 'USER', 'HOST')], settings._default['OPTIONS']['options']"
    assert evaluate(expression, DATABASE_URL="postgres://me:p%40ss@db.example:5433/box?sslmode=require") == (
        "(['box', 'me', 'db.example'], '-c statement_timeout=15s -c lock_timeout=3s"
        " -c idle_in_transaction_session_timeout=10s -c plan_cache_mode=force_generic_plan')"
    )


def test_a_migration_waits_two_seconds_for_a_lock_and_runs_as_long_as_it_needs() -> None:
    options = evaluate("settings._default['OPTIONS']['options']", SIGNALBOX_ROLE="migrate")
    assert "lock_timeout=2s" in options
    assert "statement_timeout=0" in options


@pytest.mark.django_db
def test_the_timeouts_hold_in_the_database() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT current_setting('statement_timeout'), current_setting('lock_timeout')")
        assert cursor.fetchone() == ("15s", "3s")


def test_behind_https_cookies_are_secure_and_hsts_is_sent() -> None:
    expression = "settings.SESSION_COOKIE_SECURE, settings.SECURE_SSL_REDIRECT, settings.SECURE_HSTS_SECONDS > 0"
    assert evaluate(expression, SIGNALBOX_HTTPS="1") == "(True, True, True)"
    assert evaluate(expression) == "(False, False, False)"


def test_every_setting_stands_in_the_manual() -> None:
    manual = (ROOT / "docs" / "operate.md").read_text()
    told = set(re.findall(r"^\| `([A-Z_]+)` \|", manual, flags=re.MULTILINE))
    assert told == set(module.READ)


@pytest.mark.parametrize(
    ("name", "value", "id"),
    [
        ("SIGNALBOX_LEASE_SECONDS", 20, "signalbox.E001"),
        ("SIGNALBOX_STOP_TERM_SECONDS", 25, "signalbox.E002"),
        ("SIGNALBOX_MERGE_WINDOW_START", 9, "signalbox.E003"),
        ("SIGNALBOX_OSCILLATION_THRESHOLD", 6, "signalbox.E004"),
        ("SIGNALBOX_RETRY_BASE_SECONDS", 61, "signalbox.E005"),
        ("SIGNALBOX_STALL_SECONDS", 3601, "signalbox.E006"),
        ("SIGNALBOX_GATE_TIMEOUT_SECONDS", 4 * 3600, "signalbox.E007"),
    ],
)
def test_settings_that_contradict_each_other_are_an_error(name: str, value: int, id: str, settings: Any) -> None:
    assert run_checks(tags=[TAG]) == []
    setattr(settings, name, value)
    [message] = run_checks(tags=[TAG])
    assert message.id == id
    assert message.hint


@pytest.mark.django_db
def test_the_role_of_the_tests_is_no_superuser() -> None:
    assert [
        found for found in run_checks(tags=["database"], databases=["default"]) if found.id == "signalbox.W001"
    ] == []
