"""Events delivered: subscriptions, webhooks, notifications, failed reactions; places in the log; a task's project."""

import django.core.validators
import django.db.models.deletion
import pgtrigger.compiler
import pgtrigger.migrations
from django.db import migrations, models

import pipeline.clock
import pipeline.events
import pipeline.ids
import pipeline.models.project
import pipeline.models.webhook


class Migration(migrations.Migration):

    dependencies = [
        ('pipeline', '0001_initial'),
    ]

    operations = [
        migrations.CreateModel(
            name='Delivery',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('updated_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('version', models.PositiveIntegerField(db_default=1, editable=False)),
                ('state', models.CharField(choices=[('pending', 'pending'), ('delivered', 'delivered'), ('dead', 'dead')], default='pending', max_length=9)),
                ('attempt_count', models.PositiveSmallIntegerField(default=0)),
                ('next_attempt_at', models.DateTimeField(db_default=pipeline.clock.ClockNow())),
                ('leased_until', models.DateTimeField(null=True)),
                ('last_attempt_at', models.DateTimeField(null=True)),
                ('last_status', models.PositiveSmallIntegerField(null=True)),
                ('last_error', models.TextField(blank=True)),
                ('response_tail', models.TextField(blank=True)),
            ],
            options={
                'verbose_name_plural': 'deliveries',
            },
        ),
        migrations.CreateModel(
            name='FailedReaction',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('updated_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('version', models.PositiveIntegerField(db_default=1, editable=False)),
                ('event_id', pipeline.ids.ULIDField()),
                ('kind', models.CharField(max_length=64)),
                ('reaction', models.CharField(max_length=200)),
                ('attempts', models.PositiveIntegerField(default=0)),
                ('error', models.TextField()),
                ('failed_at', models.DateTimeField(db_default=pipeline.clock.ClockNow())),
                ('dead_at', models.DateTimeField(null=True)),
                ('mended_at', models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name='NotificationRule',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('updated_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('version', models.PositiveIntegerField(db_default=1, editable=False)),
                ('key', models.CharField(max_length=64, validators=[pipeline.models.project.slug_rule])),
                ('target', models.CharField(max_length=2000)),
                ('text', models.CharField(choices=[('event', 'each event, a digest of many'), ('digest', 'always a digest')], default='event', max_length=6)),
                ('at_most_every_seconds', models.PositiveIntegerField(default=300, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(604800)])),
                ('max_per_day', models.PositiveIntegerField(default=100, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(10000)])),
                ('digest_above', models.PositiveIntegerField(default=5, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(100)])),
                ('state', models.CharField(choices=[('active', 'active'), ('paused', 'paused')], default='active', editable=False, max_length=6)),
                ('due_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('lease', pipeline.ids.ULIDField(editable=False, null=True)),
                ('leased_until', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('last_sent_at', models.DateTimeField(editable=False, null=True)),
                ('sent_on', models.DateField(editable=False, null=True)),
                ('sent_today', models.PositiveIntegerField(default=0, editable=False)),
                ('failures', models.PositiveIntegerField(default=0, editable=False)),
                ('last_error', models.CharField(blank=True, editable=False, max_length=400)),
            ],
            options={
                'ordering': ['key'],
            },
        ),
        migrations.CreateModel(
            name='Subscription',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('updated_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('version', models.PositiveIntegerField(db_default=1, editable=False)),
                ('key', models.CharField(max_length=64, validators=[pipeline.models.project.slug_rule])),
                ('patterns', models.JSONField()),
                ('channels', models.JSONField(blank=True, default=list)),
                ('min_severity', models.CharField(choices=[('debug', 'debug'), ('info', 'info'), ('warning', 'warning'), ('error', 'error'), ('critical', 'critical')], default='debug', max_length=8)),
                ('cursor', models.CharField(editable=False, max_length=64)),
                ('state', models.CharField(choices=[('active', 'active'), ('paused', 'paused')], default='active', editable=False, max_length=6)),
            ],
            options={
                'ordering': ['key'],
            },
        ),
        migrations.CreateModel(
            name='WebhookEndpoint',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('updated_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('version', models.PositiveIntegerField(db_default=1, editable=False)),
                ('url', models.CharField(max_length=2000)),
                ('seed', models.CharField(default=pipeline.models.webhook.new_seed, editable=False, max_length=64)),
                ('old_seed', models.CharField(blank=True, editable=False, max_length=64)),
                ('disabled_at', models.DateTimeField(editable=False, null=True)),
                ('disabled_reason', models.TextField(blank=True, editable=False)),
                ('dead_in_row', models.PositiveIntegerField(default=0, editable=False)),
                ('failing_since', models.DateTimeField(editable=False, null=True)),
            ],
            options={
                'verbose_name': 'webhook',
                'verbose_name_plural': 'webhooks',
            },
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='event',
            name='link_up',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='event',
            name='written_once',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='hold',
            name='told',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='run',
            name='told',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='stepattempt',
            name='past_is_fixed',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='stepattempt',
            name='told',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='task',
            name='snapshot_fixed',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='task',
            name='told',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='task',
            name='raise_version',
        ),
        migrations.RemoveIndex(
            model_name='event',
            name='event_project',
        ),
        migrations.RemoveIndex(
            model_name='event',
            name='event_run',
        ),
        migrations.RemoveIndex(
            model_name='event',
            name='event_kind',
        ),
        migrations.RemoveIndex(
            model_name='task',
            name='task_claim',
        ),
        migrations.AddField(
            model_name='event',
            name='own_xid',
            field=pipeline.events.XidField(null=True),
        ),
        migrations.AddField(
            model_name='eventepoch',
            name='database_oid',
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name='eventepoch',
            name='system_identifier',
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name='eventepoch',
            name='timeline',
            field=models.BigIntegerField(null=True),
        ),
        migrations.AddField(
            model_name='eventstream',
            name='epoch',
            field=models.IntegerField(default=1),
        ),
        migrations.AddField(
            model_name='eventstream',
            name='xid',
            field=pipeline.events.XidField(default=0),
        ),
        migrations.AddField(
            model_name='task',
            name='project',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name='+', to='pipeline.project'),
        ),
        # Tasks that are there already are of their run's project.
        migrations.RunSQL(
            """
            UPDATE pipeline_task t SET project_id = r.project_id FROM pipeline_run r WHERE r.id = t.run_id;
            SET CONSTRAINTS ALL IMMEDIATE;
            SET CONSTRAINTS ALL DEFERRED;
            """,
            migrations.RunSQL.noop,
        ),
        migrations.AlterField(
            model_name='task',
            name='project',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='+', to='pipeline.project'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['kind', 'id'], name='event_kind'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['channel', 'id'], name='event_channel'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['severity', 'id'], name='event_severity'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['subject_type', 'id'], name='event_subject_type'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['actor_kind', 'id'], name='event_actor_kind'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('actor_id', ''), _negated=True), fields=['actor_id', 'id'], name='event_actor'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['actor_name', 'id'], name='event_actor_name'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('request_id', ''), _negated=True), fields=['request_id', 'id'], name='event_request'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['project_id', 'id'], name='event_project'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('workstream_id', None), _negated=True), fields=['workstream_id', 'id'], name='event_workstream'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('run_id', None), _negated=True), fields=['run_id', 'id'], name='event_run'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('task_id', None), _negated=True), fields=['task_id', 'id'], name='event_task'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('step_id', None), _negated=True), fields=['step_id', 'id'], name='event_step'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('worker_id', None), _negated=True), fields=['worker_id', 'id'], name='event_worker'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('patch_id', None), _negated=True), fields=['patch_id', 'id'], name='event_patch'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(condition=models.Q(('gate_run_id', None), _negated=True), fields=['gate_run_id', 'id'], name='event_gate_run'),
        ),
        migrations.AddIndex(
            model_name='event',
            index=models.Index(fields=['created_at'], name='event_created'),
        ),
        migrations.AddIndex(
            model_name='stepattempt',
            index=models.Index(condition=models.Q(models.Q(('error_log', ''), ('output_tail', ''), _negated=True), models.Q(('ended_at', None), _negated=True)), fields=['ended_at'], name='step_with_log'),
        ),
        migrations.AddIndex(
            model_name='stepattempt',
            index=models.Index(condition=models.Q(('state__in', ['pending', 'running'])), fields=['tool'], name='step_open_of_tool'),
        ),
        migrations.AddIndex(
            model_name='task',
            index=models.Index(condition=models.Q(('state', 'queued')), fields=['project', '-score', 'sequence', 'id'], name='task_claim'),
        ),
        migrations.AddIndex(
            model_name='task',
            index=models.Index(condition=models.Q(('state', 'running')), fields=['project'], name='task_running'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='event',
            trigger=pgtrigger.compiler.Trigger(name='link_up', sql=pgtrigger.compiler.UpsertTriggerSql(declare='DECLARE head pipeline_eventstream%ROWTYPE;', func="\n            NEW.own_xid = pg_current_xact_id();\n            NEW.xid = NEW.own_xid;\n            NEW.epoch = (SELECT max(number) FROM pipeline_eventepoch);\n            NEW.stream_seq = 1;\n            NEW.prev_hash = '';\n            NEW.hash = encode(sha256(convert_to('' || E'\\n' || NEW.stream_seq || E'\\n' || NEW.canonical, 'UTF8')), 'hex');\n            INSERT INTO pipeline_eventstream (subject_id, subject_type, first_seq, seq, hash, epoch, xid)\n                VALUES (NEW.subject_id, NEW.subject_type, 1, 1, NEW.hash, NEW.epoch, NEW.xid)\n                ON CONFLICT (subject_id) DO NOTHING;\n            IF NOT FOUND THEN\n                SELECT * INTO STRICT head FROM pipeline_eventstream WHERE subject_id = NEW.subject_id FOR UPDATE;\n                IF head.epoch = NEW.epoch AND head.xid > NEW.xid THEN NEW.xid = head.xid; END IF;\n                NEW.stream_seq = head.seq + 1;\n                NEW.prev_hash = head.hash;\n                NEW.hash = encode(sha256(convert_to(NEW.prev_hash || E'\\n' || NEW.stream_seq || E'\\n' || NEW.canonical, 'UTF8')), 'hex');\n                UPDATE pipeline_eventstream\n                    SET seq = NEW.stream_seq, hash = NEW.hash, epoch = NEW.epoch, xid = NEW.xid\n                    WHERE subject_id = NEW.subject_id;\n            END IF;\n            NEW.seq = nextval('pipeline_event_seq');\n            RETURN NEW;\n        ", hash='aad9975da8c421a9160dcb891366e79c478d8149', operation='INSERT', pgid='pgtrigger_link_up_fd168', table='pipeline_event', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='event',
            trigger=pgtrigger.compiler.Trigger(name='written_once', sql=pgtrigger.compiler.UpsertTriggerSql(func='IF OLD."id" IS DISTINCT FROM NEW."id" OR OLD."kind" IS DISTINCT FROM NEW."kind" OR OLD."channel" IS DISTINCT FROM NEW."channel" OR OLD."severity" IS DISTINCT FROM NEW."severity" OR OLD."actor_kind" IS DISTINCT FROM NEW."actor_kind" OR OLD."actor_id" IS DISTINCT FROM NEW."actor_id" OR OLD."actor_name" IS DISTINCT FROM NEW."actor_name" OR OLD."on_behalf_of" IS DISTINCT FROM NEW."on_behalf_of" OR OLD."request_id" IS DISTINCT FROM NEW."request_id" OR OLD."subject_type" IS DISTINCT FROM NEW."subject_type" OR OLD."subject_id" IS DISTINCT FROM NEW."subject_id" OR OLD."before" IS DISTINCT FROM NEW."before" OR OLD."after" IS DISTINCT FROM NEW."after" OR OLD."reason" IS DISTINCT FROM NEW."reason" OR OLD."message" IS DISTINCT FROM NEW."message" OR OLD."data" IS DISTINCT FROM NEW."data" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."workstream_id" IS DISTINCT FROM NEW."workstream_id" OR OLD."run_id" IS DISTINCT FROM NEW."run_id" OR OLD."task_id" IS DISTINCT FROM NEW."task_id" OR OLD."step_id" IS DISTINCT FROM NEW."step_id" OR OLD."worker_id" IS DISTINCT FROM NEW."worker_id" OR OLD."patch_id" IS DISTINCT FROM NEW."patch_id" OR OLD."gate_run_id" IS DISTINCT FROM NEW."gate_run_id" OR OLD."seq" IS DISTINCT FROM NEW."seq" OR OLD."xid" IS DISTINCT FROM NEW."xid" OR OLD."own_xid" IS DISTINCT FROM NEW."own_xid" OR OLD."epoch" IS DISTINCT FROM NEW."epoch" OR OLD."canonical" IS DISTINCT FROM NEW."canonical" OR OLD."stream_seq" IS DISTINCT FROM NEW."stream_seq" OR OLD."prev_hash" IS DISTINCT FROM NEW."prev_hash" OR OLD."hash" IS DISTINCT FROM NEW."hash" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" THEN RAISE EXCEPTION \'Cannot change %: these columns are written once\', TG_TABLE_NAME USING ERRCODE = \'check_violation\', TABLE = TG_TABLE_NAME, CONSTRAINT = \'written_once\'; END IF; RETURN NEW;', hash='2dd749fced9043b294142c9965902b3793770ba0', operation='UPDATE', pgid='pgtrigger_written_once_93c68', table='pipeline_event', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='hold',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'hold'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='a32faa4a3c38c2ced974bfcac631b16b383bdfd9', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_f9058', table='pipeline_hold', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='run',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'run'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='d8b5cd811909c3c0882ad5525cd439fb1084069c', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_dc622', table='pipeline_run', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='stepattempt',
            trigger=pgtrigger.compiler.Trigger(name='past_is_fixed', sql=pgtrigger.compiler.UpsertTriggerSql(func='IF OLD.state = ANY(\'{canceled,failed,succeeded}\'::text[]) AND (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."run_id" IS DISTINCT FROM NEW."run_id" OR OLD."task_id" IS DISTINCT FROM NEW."task_id" OR OLD."sequence" IS DISTINCT FROM NEW."sequence" OR OLD."tool_id" IS DISTINCT FROM NEW."tool_id" OR OLD."tool_run_id" IS DISTINCT FROM NEW."tool_run_id" OR OLD."request_id" IS DISTINCT FROM NEW."request_id" OR OLD."prompt_id" IS DISTINCT FROM NEW."prompt_id" OR OLD."generation" IS DISTINCT FROM NEW."generation" OR OLD."state" IS DISTINCT FROM NEW."state" OR OLD."state_reason" IS DISTINCT FROM NEW."state_reason" OR OLD."started_at" IS DISTINCT FROM NEW."started_at" OR OLD."ended_at" IS DISTINCT FROM NEW."ended_at" OR OLD."exit_code" IS DISTINCT FROM NEW."exit_code" OR OLD."outcome" IS DISTINCT FROM NEW."outcome" OR OLD."error_code" IS DISTINCT FROM NEW."error_code" OR OLD."error_fingerprint" IS DISTINCT FROM NEW."error_fingerprint" OR OLD."input_prompt" IS DISTINCT FROM NEW."input_prompt" OR OLD."output_patch_ids" IS DISTINCT FROM NEW."output_patch_ids" OR OLD."session_ref" IS DISTINCT FROM NEW."session_ref" OR OLD."usage_summary" IS DISTINCT FROM NEW."usage_summary" OR OLD."metadata" IS DISTINCT FROM NEW."metadata" OR NEW."output_tail" NOT IN (OLD."output_tail", \'\') OR NEW."error_log" NOT IN (OLD."error_log", \'\')) THEN RAISE EXCEPTION \'Cannot change %: it has ended\', TG_TABLE_NAME USING ERRCODE = \'check_violation\', TABLE = TG_TABLE_NAME, CONSTRAINT = \'past_is_fixed\'; END IF; RETURN NEW;', hash='c8f0e3f104ff28a4de67648c6629c84e1ce62ec0', operation='UPDATE', pgid='pgtrigger_past_is_fixed_2458b', table='pipeline_stepattempt', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='stepattempt',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'step'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='ddfc29c17d1e194a8dd727760fc5e7d8905f300e', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_d1123', table='pipeline_stepattempt', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='task',
            trigger=pgtrigger.compiler.Trigger(name='snapshot_fixed', sql=pgtrigger.compiler.UpsertTriggerSql(func='IF OLD."run_id" IS DISTINCT FROM NEW."run_id" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."key" IS DISTINCT FROM NEW."key" OR OLD."sequence" IS DISTINCT FROM NEW."sequence" OR OLD."spec" IS DISTINCT FROM NEW."spec" OR OLD."is_critical" IS DISTINCT FROM NEW."is_critical" THEN RAISE EXCEPTION \'Cannot change %: these columns are written once\', TG_TABLE_NAME USING ERRCODE = \'check_violation\', TABLE = TG_TABLE_NAME, CONSTRAINT = \'snapshot_fixed\'; END IF; RETURN NEW;', hash='910672c1ca83420b33d42897c0e897768a7cb209', operation='UPDATE', pgid='pgtrigger_snapshot_fixed_f70a7', table='pipeline_task', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='task',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'task'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='d5a6e5fc84020cc21d3ebc5ef92c2417897d6b90', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_86c86', table='pipeline_task', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='task',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."run_id" IS DISTINCT FROM NEW."run_id" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."key" IS DISTINCT FROM NEW."key" OR OLD."name" IS DISTINCT FROM NEW."name" OR OLD."kind" IS DISTINCT FROM NEW."kind" OR OLD."spec" IS DISTINCT FROM NEW."spec" OR OLD."state" IS DISTINCT FROM NEW."state" OR OLD."state_reason" IS DISTINCT FROM NEW."state_reason" OR OLD."sequence" IS DISTINCT FROM NEW."sequence" OR OLD."priority" IS DISTINCT FROM NEW."priority" OR OLD."score" IS DISTINCT FROM NEW."score" OR OLD."is_critical" IS DISTINCT FROM NEW."is_critical" OR OLD."max_attempts" IS DISTINCT FROM NEW."max_attempts" OR OLD."timeout_seconds" IS DISTINCT FROM NEW."timeout_seconds" OR OLD."touches" IS DISTINCT FROM NEW."touches" OR OLD."conflict_group" IS DISTINCT FROM NEW."conflict_group" OR OLD."generation" IS DISTINCT FROM NEW."generation" OR OLD."count_attempts" IS DISTINCT FROM NEW."count_attempts" OR OLD."count_failures" IS DISTINCT FROM NEW."count_failures" OR OLD."count_infra" IS DISTINCT FROM NEW."count_infra" OR OLD."count_repairs" IS DISTINCT FROM NEW."count_repairs" OR OLD."retry_at" IS DISTINCT FROM NEW."retry_at" OR OLD."blocked_by" IS DISTINCT FROM NEW."blocked_by" OR OLD."last_outcome" IS DISTINCT FROM NEW."last_outcome" OR OLD."last_error" IS DISTINCT FROM NEW."last_error" OR OLD."error_fingerprint" IS DISTINCT FROM NEW."error_fingerprint" OR OLD."count_same_error" IS DISTINCT FROM NEW."count_same_error" OR OLD."session_ref" IS DISTINCT FROM NEW."session_ref" OR OLD."started_at" IS DISTINCT FROM NEW."started_at" OR OLD."completed_at" IS DISTINCT FROM NEW."completed_at" OR OLD."retry_of_id" IS DISTINCT FROM NEW."retry_of_id")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='d1ed72f6833d4a3a26c7baac5a1d0329dca9b1b1', operation='UPDATE', pgid='pgtrigger_raise_version_f155e', table='pipeline_task', when='BEFORE')),
        ),
        migrations.AddField(
            model_name='delivery',
            name='event',
            field=models.ForeignKey(db_constraint=False, on_delete=django.db.models.deletion.DO_NOTHING, related_name='+', to='pipeline.event'),
        ),
        migrations.AddField(
            model_name='delivery',
            name='redelivery_of',
            field=models.ForeignKey(db_constraint=False, db_index=False, null=True, on_delete=django.db.models.deletion.DO_NOTHING, related_name='redeliveries', to='pipeline.delivery'),
        ),
        migrations.AddField(
            model_name='failedreaction',
            name='project',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.CASCADE, related_name='+', to='pipeline.project'),
        ),
        migrations.AddField(
            model_name='notificationrule',
            name='project',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='notification_rules', to='pipeline.project'),
        ),
        migrations.AddField(
            model_name='subscription',
            name='project',
            field=models.ForeignKey(blank=True, null=True, on_delete=django.db.models.deletion.CASCADE, related_name='subscriptions', to='pipeline.project'),
        ),
        migrations.AddField(
            model_name='notificationrule',
            name='subscription',
            field=models.OneToOneField(on_delete=django.db.models.deletion.CASCADE, related_name='notification_rule', to='pipeline.subscription'),
        ),
        migrations.AddField(
            model_name='webhookendpoint',
            name='subscription',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='webhook', to='pipeline.subscription'),
        ),
        migrations.AddField(
            model_name='delivery',
            name='endpoint',
            field=models.ForeignKey(db_index=False, on_delete=django.db.models.deletion.CASCADE, related_name='deliveries', to='pipeline.webhookendpoint'),
        ),
        migrations.AddIndex(
            model_name='failedreaction',
            index=models.Index(condition=models.Q(('mended_at', None)), fields=['-id'], name='failedreaction_open'),
        ),
        migrations.AddConstraint(
            model_name='failedreaction',
            constraint=models.UniqueConstraint(fields=('event_id', 'reaction'), name='failedreaction_one_per_event'),
        ),
        migrations.AddConstraint(
            model_name='failedreaction',
            constraint=models.CheckConstraint(condition=models.Q(('dead_at', None), ('mended_at', None), _connector='OR'), name='failedreaction_dead_or_mended'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='failedreaction',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."event_id" IS DISTINCT FROM NEW."event_id" OR OLD."kind" IS DISTINCT FROM NEW."kind" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."reaction" IS DISTINCT FROM NEW."reaction" OR OLD."attempts" IS DISTINCT FROM NEW."attempts" OR OLD."error" IS DISTINCT FROM NEW."error" OR OLD."failed_at" IS DISTINCT FROM NEW."failed_at" OR OLD."dead_at" IS DISTINCT FROM NEW."dead_at" OR OLD."mended_at" IS DISTINCT FROM NEW."mended_at")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='39f4a217fdeacfb6e6fb68b7b8dedcc58e19a970', operation='UPDATE', pgid='pgtrigger_raise_version_6ecf1', table='pipeline_failedreaction', when='BEFORE')),
        ),
        migrations.AddConstraint(
            model_name='subscription',
            constraint=models.UniqueConstraint(fields=('project', 'key'), name='subscription_key_once_per_project', nulls_distinct=False),
        ),
        migrations.AddConstraint(
            model_name='subscription',
            constraint=models.CheckConstraint(condition=models.Q(('state__in', ['active', 'paused'])), name='subscription_state_known'),
        ),
        migrations.AddConstraint(
            model_name='subscription',
            constraint=models.CheckConstraint(condition=models.Q(('cursor__regex', '^[0-9]+-[0-9]+-[0-9]+$')), name='subscription_cursor_is_place'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='subscription',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."key" IS DISTINCT FROM NEW."key" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."patterns" IS DISTINCT FROM NEW."patterns" OR OLD."channels" IS DISTINCT FROM NEW."channels" OR OLD."min_severity" IS DISTINCT FROM NEW."min_severity" OR OLD."state" IS DISTINCT FROM NEW."state")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='61de6beee73695de3ee698a405062f8a93d1b758', operation='UPDATE', pgid='pgtrigger_raise_version_a28ec', table='pipeline_subscription', when='BEFORE')),
        ),
        migrations.AddIndex(
            model_name='notificationrule',
            index=models.Index(condition=models.Q(('state', 'active')), fields=['due_at'], name='notificationrule_due'),
        ),
        migrations.AddConstraint(
            model_name='notificationrule',
            constraint=models.UniqueConstraint(fields=('project', 'key'), name='notificationrule_key_once_per_project', nulls_distinct=False),
        ),
        migrations.AddConstraint(
            model_name='notificationrule',
            constraint=models.CheckConstraint(condition=models.Q(('state__in', ['active', 'paused'])), name='notificationrule_state_known'),
        ),
        migrations.AddConstraint(
            model_name='notificationrule',
            constraint=models.CheckConstraint(condition=models.Q(('text__in', ['event', 'digest'])), name='notificationrule_text_known'),
        ),
        migrations.AddConstraint(
            model_name='notificationrule',
            constraint=models.CheckConstraint(condition=models.Q(('at_most_every_seconds__gte', 1), ('digest_above__gte', 1), ('max_per_day__gte', 1)), name='notificationrule_limits_positive'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='notificationrule',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."key" IS DISTINCT FROM NEW."key" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."subscription_id" IS DISTINCT FROM NEW."subscription_id" OR OLD."target" IS DISTINCT FROM NEW."target" OR OLD."text" IS DISTINCT FROM NEW."text" OR OLD."at_most_every_seconds" IS DISTINCT FROM NEW."at_most_every_seconds" OR OLD."max_per_day" IS DISTINCT FROM NEW."max_per_day" OR OLD."digest_above" IS DISTINCT FROM NEW."digest_above" OR OLD."state" IS DISTINCT FROM NEW."state")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='da950a1afd5a9781676b82e8d55b01509f8643b8', operation='UPDATE', pgid='pgtrigger_raise_version_582b9', table='pipeline_notificationrule', when='BEFORE')),
        ),
        migrations.AddConstraint(
            model_name='webhookendpoint',
            constraint=models.CheckConstraint(condition=models.Q(('disabled_at', None), models.Q(('disabled_reason', ''), _negated=True), _connector='OR'), name='webhook_disabled_says_why'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='webhookendpoint',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."subscription_id" IS DISTINCT FROM NEW."subscription_id" OR OLD."url" IS DISTINCT FROM NEW."url" OR OLD."seed" IS DISTINCT FROM NEW."seed" OR OLD."old_seed" IS DISTINCT FROM NEW."old_seed" OR OLD."disabled_at" IS DISTINCT FROM NEW."disabled_at" OR OLD."disabled_reason" IS DISTINCT FROM NEW."disabled_reason")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='1adad31ad5710266c29873117f538c3c019e97d3', operation='UPDATE', pgid='pgtrigger_raise_version_26bf5', table='pipeline_webhookendpoint', when='BEFORE')),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(condition=models.Q(('state', 'pending')), fields=['endpoint', 'next_attempt_at'], name='delivery_due'),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(condition=models.Q(('leased_until', None), _negated=True), fields=['endpoint'], name='delivery_leased'),
        ),
        migrations.AddIndex(
            model_name='delivery',
            index=models.Index(fields=['endpoint', '-id'], name='delivery_of_endpoint'),
        ),
        migrations.AddConstraint(
            model_name='delivery',
            constraint=models.UniqueConstraint(condition=models.Q(('redelivery_of', None)), fields=('endpoint', 'event'), name='delivery_once_per_event'),
        ),
        migrations.AddConstraint(
            model_name='delivery',
            constraint=models.CheckConstraint(condition=models.Q(('state__in', ['pending', 'delivered', 'dead'])), name='delivery_state_known'),
        ),
        migrations.AddConstraint(
            model_name='delivery',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('state', 'delivered'), _negated=True), ('last_status__range', (200, 299)), _connector='OR'), name='delivery_delivered_was_accepted'),
        ),
        migrations.AddConstraint(
            model_name='delivery',
            constraint=models.CheckConstraint(condition=models.Q(('attempt_count__lte', 10)), name='delivery_tries_end'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='delivery',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."endpoint_id" IS DISTINCT FROM NEW."endpoint_id" OR OLD."event_id" IS DISTINCT FROM NEW."event_id" OR OLD."state" IS DISTINCT FROM NEW."state" OR OLD."attempt_count" IS DISTINCT FROM NEW."attempt_count" OR OLD."next_attempt_at" IS DISTINCT FROM NEW."next_attempt_at" OR OLD."leased_until" IS DISTINCT FROM NEW."leased_until" OR OLD."last_attempt_at" IS DISTINCT FROM NEW."last_attempt_at" OR OLD."last_status" IS DISTINCT FROM NEW."last_status" OR OLD."last_error" IS DISTINCT FROM NEW."last_error" OR OLD."response_tail" IS DISTINCT FROM NEW."response_tail" OR OLD."redelivery_of_id" IS DISTINCT FROM NEW."redelivery_of_id")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='53af0b433aa972de39eaa9b5651a115b9d23bf8b', operation='UPDATE', pgid='pgtrigger_raise_version_d9221', table='pipeline_delivery', when='BEFORE')),
        ),
    ]
