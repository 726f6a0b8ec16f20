"""The sandbox's level, resources and caches of gates; live output, evidence sent from outside, machines that run gates."""

import django.core.validators
import django.db.models.deletion
import pgtrigger.compiler
import pgtrigger.migrations
from django.db import migrations, models

import pipeline.clock
import pipeline.ids


class Migration(migrations.Migration):

    dependencies = [
        ('gates', '0003_told_by_own_transaction'),
    ]

    operations = [
        migrations.CreateModel(
            name='GateEvidence',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('kind', models.CharField(max_length=16)),
                ('sha256', models.CharField(max_length=64)),
                ('size_bytes', models.PositiveBigIntegerField()),
                ('content', models.BinaryField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name='GateOutput',
            fields=[
                ('id', models.BigAutoField(primary_key=True, serialize=False)),
                ('number', models.PositiveIntegerField()),
                ('text', models.TextField()),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
            ],
        ),
        migrations.CreateModel(
            name='RunnerHost',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('host', models.CharField(max_length=255, unique=True)),
                ('level', models.PositiveSmallIntegerField(verbose_name='sandbox level')),
                ('missing', models.JSONField(default=list)),
                ('seen_at', models.DateTimeField(db_default=pipeline.clock.ClockNow())),
            ],
            options={
                'ordering': ['host'],
            },
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='gate',
            name='raise_version',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='gaterun',
            name='raise_version',
        ),
        migrations.AddField(
            model_name='gate',
            name='caches',
            field=models.JSONField(blank=True, db_default=models.Value([], models.JSONField()), default=list),
        ),
        migrations.AddField(
            model_name='gate',
            name='external',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name='gate',
            name='resources',
            field=models.JSONField(blank=True, db_default=models.Value({}, models.JSONField()), default=dict),
        ),
        migrations.AddField(
            model_name='gate',
            name='sandbox_level_min',
            field=models.PositiveSmallIntegerField(blank=True, null=True, validators=[django.core.validators.MinValueValidator(1), django.core.validators.MaxValueValidator(3)]),
        ),
        migrations.AddField(
            model_name='gaterun',
            name='external',
            field=models.BooleanField(db_default=False, default=False),
        ),
        migrations.AddField(
            model_name='gaterun',
            name='sandbox_level_min',
            field=models.PositiveSmallIntegerField(null=True),
        ),
        migrations.AlterField(
            model_name='gate',
            name='command',
            field=models.JSONField(blank=True, default=list),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='gate',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."key" IS DISTINCT FROM NEW."key" OR OLD."name" IS DISTINCT FROM NEW."name" OR OLD."gate_type" IS DISTINCT FROM NEW."gate_type" OR OLD."phase_id" IS DISTINCT FROM NEW."phase_id" OR OLD."workstream_id" IS DISTINCT FROM NEW."workstream_id" OR OLD."applies_to" IS DISTINCT FROM NEW."applies_to" OR OLD."command" IS DISTINCT FROM NEW."command" OR OLD."cwd" IS DISTINCT FROM NEW."cwd" OR OLD."env_allow" IS DISTINCT FROM NEW."env_allow" OR OLD."evidence" IS DISTINCT FROM NEW."evidence" OR OLD."criteria" IS DISTINCT FROM NEW."criteria" OR OLD."expected_exit_codes" IS DISTINCT FROM NEW."expected_exit_codes" OR OLD."shards" IS DISTINCT FROM NEW."shards" OR OLD."depends_on" IS DISTINCT FROM NEW."depends_on" OR OLD."timeout_seconds" IS DISTINCT FROM NEW."timeout_seconds" OR OLD."sandbox_level_min" IS DISTINCT FROM NEW."sandbox_level_min" OR OLD."resources" IS DISTINCT FROM NEW."resources" OR OLD."caches" IS DISTINCT FROM NEW."caches" OR OLD."external" IS DISTINCT FROM NEW."external" OR OLD."required" IS DISTINCT FROM NEW."required" OR OLD."judges" IS DISTINCT FROM NEW."judges" OR OLD."enabled" IS DISTINCT FROM NEW."enabled" OR OLD."gate_version" IS DISTINCT FROM NEW."gate_version")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='8343ce34d841f0f59c235494ab187e4665e6e239', operation='UPDATE', pgid='pgtrigger_raise_version_ee416', table='gates_gate', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='gaterun',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."name" IS DISTINCT FROM NEW."name" OR OLD."gate_type" IS DISTINCT FROM NEW."gate_type" OR OLD."criteria" IS DISTINCT FROM NEW."criteria" OR OLD."required" IS DISTINCT FROM NEW."required" OR OLD."gate_id" IS DISTINCT FROM NEW."gate_id" OR OLD."gate_version" IS DISTINCT FROM NEW."gate_version" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."patch_id" IS DISTINCT FROM NEW."patch_id" OR OLD."queue_item_id" IS DISTINCT FROM NEW."queue_item_id" OR OLD."run_id" IS DISTINCT FROM NEW."run_id" OR OLD."task_id" IS DISTINCT FROM NEW."task_id" OR OLD."request_id" IS DISTINCT FROM NEW."request_id" OR OLD."tree_hash" IS DISTINCT FROM NEW."tree_hash" OR OLD."base_tree" IS DISTINCT FROM NEW."base_tree" OR OLD."state" IS DISTINCT FROM NEW."state" OR OLD."state_reason" IS DISTINCT FROM NEW."state_reason" OR OLD."command" IS DISTINCT FROM NEW."command" OR OLD."external" IS DISTINCT FROM NEW."external" OR OLD."started_at" IS DISTINCT FROM NEW."started_at" OR OLD."completed_at" IS DISTINCT FROM NEW."completed_at" OR OLD."duration_seconds" IS DISTINCT FROM NEW."duration_seconds" OR OLD."exit_code" IS DISTINCT FROM NEW."exit_code" OR OLD."runner" IS DISTINCT FROM NEW."runner" OR OLD."sandbox_level" IS DISTINCT FROM NEW."sandbox_level" OR OLD."sandbox_level_min" IS DISTINCT FROM NEW."sandbox_level_min" OR OLD."deadline_at" IS DISTINCT FROM NEW."deadline_at" OR OLD."total_tests" IS DISTINCT FROM NEW."total_tests" OR OLD."passed_tests" IS DISTINCT FROM NEW."passed_tests" OR OLD."failed_tests" IS DISTINCT FROM NEW."failed_tests" OR OLD."skipped_tests" IS DISTINCT FROM NEW."skipped_tests" OR OLD."flaky_tests" IS DISTINCT FROM NEW."flaky_tests" OR OLD."coverage_percent" IS DISTINCT FROM NEW."coverage_percent" OR OLD."patch_coverage_percent" IS DISTINCT FROM NEW."patch_coverage_percent" OR OLD."parsed" IS DISTINCT FROM NEW."parsed" OR OLD."decision_passed" IS DISTINCT FROM NEW."decision_passed" OR OLD."decision_reason" IS DISTINCT FROM NEW."decision_reason" OR OLD."decided_by" IS DISTINCT FROM NEW."decided_by" OR OLD."decided_at" IS DISTINCT FROM NEW."decided_at" OR OLD."verdicts" IS DISTINCT FROM NEW."verdicts" OR OLD."error_kind" IS DISTINCT FROM NEW."error_kind" OR OLD."skip_reason" IS DISTINCT FROM NEW."skip_reason" OR OLD."skipped_by" IS DISTINCT FROM NEW."skipped_by" OR OLD."waived_at" IS DISTINCT FROM NEW."waived_at" OR OLD."waived_by" IS DISTINCT FROM NEW."waived_by" OR OLD."waive_reason" IS DISTINCT FROM NEW."waive_reason" OR OLD."waiver_expires_at" IS DISTINCT FROM NEW."waiver_expires_at" OR OLD."retry_of_id" IS DISTINCT FROM NEW."retry_of_id" OR OLD."shards_seen" IS DISTINCT FROM NEW."shards_seen" OR OLD."output_tail" IS DISTINCT FROM NEW."output_tail" OR OLD."evidence" IS DISTINCT FROM NEW."evidence" OR OLD."metadata" IS DISTINCT FROM NEW."metadata")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='ca095c541dc6977481c6df328c42a12de472c1ae', operation='UPDATE', pgid='pgtrigger_raise_version_cb8f0', table='gates_gaterun', when='BEFORE')),
        ),
        migrations.AddField(
            model_name='gateevidence',
            name='gate_run',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='sent_evidence', to='gates.gaterun'),
        ),
        migrations.AddField(
            model_name='gateoutput',
            name='gate_run',
            field=models.ForeignKey(on_delete=django.db.models.deletion.CASCADE, related_name='pieces', to='gates.gaterun'),
        ),
        migrations.AddConstraint(
            model_name='runnerhost',
            constraint=models.CheckConstraint(condition=models.Q(('level__lte', 3)), name='runnerhost_level_known'),
        ),
        migrations.AddConstraint(
            model_name='gateevidence',
            constraint=models.UniqueConstraint(fields=('gate_run', 'kind'), name='gateevidence_kind_once_per_run'),
        ),
        migrations.AddConstraint(
            model_name='gateoutput',
            constraint=models.UniqueConstraint(fields=('gate_run', 'number'), name='gateoutput_number_once'),
        ),
        # What a crash takes from it, nobody misses: its rows are pieces of logs that the runs keep anyway.
        migrations.RunSQL(
            "ALTER TABLE gates_gateoutput SET UNLOGGED", "ALTER TABLE gates_gateoutput SET LOGGED"
        ),
    ]
