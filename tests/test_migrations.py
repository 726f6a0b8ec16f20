"""The schema that the migrations make is the one that the models ask for, triggers included, in every process."""

import os
import subprocess
import sys
from pathlib import Path

import pgtrigger.registry
import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import connection
from django.db.migrations.loader import MigrationLoader

ROOT = Path(__file__).resolve().parent.parent
OURS = ("pipeline", "workers", "ledger", "gates", "costs")

pytestmark = pytest.mark.django_db


def test_the_models_ask_for_no_further_migration(capsys):
    call_command("makemigrations", check=True, dry_run=True, verbosity=1)
    assert "No changes detected" in capsys.readouterr().out


@pytest.mark.parametrize("seed", ["1", "2"])
def test_another_process_with_another_order_of_sets_asks_for_none_either(seed):
    done = subprocess.run(
        [sys.executable, "manage.py", "makemigrations", "--check", "--dry-run"],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert (done.returncode, done.stdout.strip()) == (0, "No changes detected"), done.stdout + done.stderr


def test_each_app_has_one_last_migration():
    assert MigrationLoader(connection).detect_conflicts() == {}


def test_every_declared_trigger_is_in_the_database_and_switched_on():
    declared = {trigger.get_pgid(model) for model, trigger in pgtrigger.registry.registered()}
    with connection.cursor() as cursor:
        cursor.execute("SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'O'")
        present = {name for (name,) in cursor.fetchall()}
    assert declared - present == set()


def test_every_declared_constraint_and_index_is_in_the_database():
    with connection.cursor() as cursor:
        cursor.execute("SELECT conname FROM pg_constraint UNION SELECT indexname FROM pg_indexes")
        present = {name for (name,) in cursor.fetchall()}
    declared = {
        thing.name
        for app in OURS
        for model in apps.get_app_config(app).get_models()
        for thing in (*model._meta.constraints, *model._meta.indexes)
    }
    assert declared - present == set()


def test_every_column_of_the_log_is_as_its_model_says():
    from pipeline.models import Event

    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT attname, format_type(atttypid, atttypmod), NOT attnotnull FROM pg_attribute "
            "WHERE attrelid = 'pipeline_event'::regclass AND attnum > 0 AND NOT attisdropped"
        )
        held = {name: (kind, nullable) for name, kind, nullable in cursor.fetchall()}
    names = {"varchar": "character varying", "timestamp with time zone": "timestamp with time zone"}
    asked = {}
    for field in Event._meta.concrete_fields:
        kind = field.db_type(connection)
        for short, long in names.items():
            kind = kind.replace(short, long) if kind.startswith(short) else kind
        asked[field.column] = (kind, field.null)
    assert held == asked
