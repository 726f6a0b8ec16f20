"""What was last told of a worker's health, and when it is looked at again."""

import pgtrigger.compiler
import pgtrigger.migrations
from django.db import migrations, models

import pipeline.clock


class Migration(migrations.Migration):

    dependencies = [
        ('pipeline', '0002_events_delivered'),
        ('workers', '0001_initial'),
    ]

    operations = [
        pgtrigger.migrations.RemoveTrigger(
            model_name='worker',
            name='told',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='worker',
            name='raise_version',
        ),
        migrations.AddField(
            model_name='worker',
            name='health_since',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='worker',
            name='look_at',
            field=models.DateTimeField(db_default=pipeline.clock.ClockNow()),
        ),
        migrations.AddField(
            model_name='worker',
            name='told_health',
            field=models.CharField(choices=[('unresponsive', 'unresponsive'), ('stalled', 'stalled'), ('late', 'late'), ('healthy', 'healthy')], default='healthy', max_length=12),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(condition=models.Q(('ended_at', None), ('stop_requested_at', None)), fields=['timeout_at'], name='lease_timing'),
        ),
        migrations.AddIndex(
            model_name='lease',
            index=models.Index(condition=models.Q(('ended_at', None), ('stop_deadline_at__isnull', False)), fields=['stop_deadline_at'], name='lease_stopping'),
        ),
        migrations.AddIndex(
            model_name='worker',
            index=models.Index(condition=models.Q(('state__in', ['idle', 'busy', 'paused'])), fields=['look_at'], name='worker_to_look_at'),
        ),
        migrations.AddIndex(
            model_name='worker',
            index=models.Index(condition=models.Q(('shutdown_deadline_at__isnull', False), ('state__in', ['idle', 'busy', 'paused'])), fields=['shutdown_deadline_at'], name='worker_leaving'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='worker',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'worker'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='0e51547cf15742c209b9a344fe2a8d44df9aaa4f', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_2139c', table='workers_worker', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='worker',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."worker_type" IS DISTINCT FROM NEW."worker_type" OR OLD."state" IS DISTINCT FROM NEW."state" OR OLD."name" IS DISTINCT FROM NEW."name" OR OLD."host" IS DISTINCT FROM NEW."host" OR OLD."api_key_id" IS DISTINCT FROM NEW."api_key_id" OR OLD."previous_worker_id" IS DISTINCT FROM NEW."previous_worker_id" OR OLD."metadata" IS DISTINCT FROM NEW."metadata" OR OLD."current_task_id" IS DISTINCT FROM NEW."current_task_id" OR OLD."config" IS DISTINCT FROM NEW."config" OR OLD."capabilities" IS DISTINCT FROM NEW."capabilities" OR OLD."tools" IS DISTINCT FROM NEW."tools" OR OLD."affinity" IS DISTINCT FROM NEW."affinity" OR OLD."started_at" IS DISTINCT FROM NEW."started_at" OR OLD."told_health" IS DISTINCT FROM NEW."told_health" OR OLD."health_since" IS DISTINCT FROM NEW."health_since" OR OLD."shutdown_requested_at" IS DISTINCT FROM NEW."shutdown_requested_at" OR OLD."shutdown_mode" IS DISTINCT FROM NEW."shutdown_mode" OR OLD."shutdown_deadline_at" IS DISTINCT FROM NEW."shutdown_deadline_at" OR OLD."stopped_at" IS DISTINCT FROM NEW."stopped_at" OR OLD."stop_confirmed" IS DISTINCT FROM NEW."stop_confirmed" OR OLD."crashed_at" IS DISTINCT FROM NEW."crashed_at" OR OLD."crash_message" IS DISTINCT FROM NEW."crash_message" OR OLD."crash_trace" IS DISTINCT FROM NEW."crash_trace" OR OLD."tasks_completed" IS DISTINCT FROM NEW."tasks_completed" OR OLD."tasks_failed" IS DISTINCT FROM NEW."tasks_failed" OR OLD."total_execution_seconds" IS DISTINCT FROM NEW."total_execution_seconds")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='f5fba7c812c0c0be0a684ed87819f7cb23c9a60e', operation='UPDATE', pgid='pgtrigger_raise_version_d77ac', table='workers_worker', when='BEFORE')),
        ),
    ]
