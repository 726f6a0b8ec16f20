"""The guard that asks for an event looks for the transaction that wrote it."""

import pgtrigger.compiler
import pgtrigger.migrations
from django.db import migrations


class Migration(migrations.Migration):

    dependencies = [
        ('gates', '0002_initial'),
        ('pipeline', '0002_events_delivered'),
    ]

    operations = [
        pgtrigger.migrations.RemoveTrigger(
            model_name='gaterun',
            name='told',
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='gaterun',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'gate_run'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='59d6b0a9b7b7d5e41be445cd5265fa294cd2a1c8', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_89cf4', table='gates_gaterun', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
    ]
