"""Seals of the log; reviews and overrides; remotes, pushes and receipts."""

import django.db.models.deletion
import pgtrigger.compiler
import pgtrigger.migrations
from django.conf import settings
from django.db import migrations, models

import pipeline.clock
import pipeline.ids


class Migration(migrations.Migration):

    dependencies = [
        ('ledger', '0002_initial'),
        ('pipeline', '0002_events_delivered'),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.CreateModel(
            name='PatchReview',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('updated_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('version', models.PositiveIntegerField(db_default=1, editable=False)),
                ('reviewer_name', models.CharField(max_length=200)),
                ('verdict', models.CharField(choices=[('approve', 'approve'), ('reject', 'reject'), ('comment', 'comment')], max_length=7)),
                ('body', models.TextField(blank=True)),
                ('anchors', models.JSONField(default=list)),
                ('for_sha256', models.CharField(max_length=64)),
            ],
            options={
                'verbose_name': 'review',
                'verbose_name_plural': 'reviews',
            },
        ),
        migrations.CreateModel(
            name='PolicyOverride',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('updated_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('version', models.PositiveIntegerField(db_default=1, editable=False)),
                ('rule', models.CharField(max_length=64)),
                ('reason', models.TextField()),
                ('granted_name', models.CharField(max_length=200)),
                ('expires_at', models.DateTimeField()),
            ],
            options={
                'verbose_name': 'policy override',
                'verbose_name_plural': 'policy overrides',
            },
        ),
        migrations.CreateModel(
            name='Push',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('updated_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('version', models.PositiveIntegerField(db_default=1, editable=False)),
                ('commit_sha', models.CharField(max_length=64)),
                ('target', models.CharField(max_length=300)),
                ('state', models.CharField(choices=[('waiting', 'waiting'), ('pushed', 'pushed'), ('held', 'held')], default='waiting', max_length=7)),
                ('attempts', models.PositiveIntegerField(default=0)),
                ('due_at', models.DateTimeField(db_default=pipeline.clock.ClockNow())),
                ('last_error', models.TextField(blank=True)),
                ('request_title', models.CharField(blank=True, max_length=200)),
                ('request_text', models.TextField(blank=True)),
                ('pushed_at', models.DateTimeField(null=True)),
            ],
        ),
        migrations.CreateModel(
            name='Receipt',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('commit_sha', models.CharField(max_length=64)),
                ('statement', models.TextField()),
                ('sha256', models.CharField(max_length=64)),
                ('note', models.CharField(blank=True, default='', max_length=64)),
            ],
        ),
        migrations.CreateModel(
            name='Remote',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('updated_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('version', models.PositiveIntegerField(db_default=1, editable=False)),
                ('url', models.CharField(help_text='a path, or a file, https or ssh address, without a password', max_length=1000)),
                ('landing', models.CharField(choices=[('none', 'stays in the mirror'), ('push', 'pushed to the branch itself'), ('branch', 'pushed to a branch of ours, with the text of a pull request')], default='none', max_length=6)),
                ('username', models.CharField(default='x-access-token', max_length=100)),
                ('credential', models.CharField(blank=True, help_text='env:NAME or file:NAME; never the secret', max_length=400)),
                ('webhook_credential', models.CharField(blank=True, help_text='env:NAME or file:NAME: what the host signs its push webhook with', max_length=400)),
                ('fetch_seconds', models.PositiveIntegerField(default=300, help_text='0: only when asked, or told by a webhook')),
                ('enabled', models.BooleanField(default=True)),
                ('fetched_at', models.DateTimeField(editable=False, null=True)),
                ('fetch_error', models.TextField(blank=True, editable=False)),
            ],
        ),
        migrations.CreateModel(
            name='Seal',
            fields=[
                ('id', pipeline.ids.ULIDField(default=pipeline.ids.new_id, editable=False, primary_key=True, serialize=False)),
                ('created_at', models.DateTimeField(db_default=pipeline.clock.ClockNow(), editable=False)),
                ('number', models.BigIntegerField(unique=True)),
                ('from_cursor', models.CharField(max_length=64)),
                ('to_cursor', models.CharField(max_length=64)),
                ('month', models.CharField(help_text="of its events' ids, in UTC: 2026-11", max_length=7)),
                ('count', models.PositiveIntegerField()),
                ('root_hash', models.CharField(max_length=64)),
                ('prev_root', models.CharField(blank=True, max_length=64)),
                ('leaves', models.BinaryField()),
                ('anchor', models.CharField(blank=True, default='', max_length=64)),
                ('dropped_at', models.DateTimeField(null=True)),
            ],
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='mergequeue',
            name='told',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='mergequeue',
            name='raise_version',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='patch',
            name='told',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='patch',
            name='raise_version',
        ),
        pgtrigger.migrations.RemoveTrigger(
            model_name='queueitem',
            name='told',
        ),
        migrations.AddField(
            model_name='mergequeue',
            name='blocked_reason',
            field=models.TextField(blank=True),
        ),
        migrations.AddField(
            model_name='mergequeue',
            name='blocked_tries',
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name='mergequeue',
            name='blocked_until',
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name='patch',
            name='facts',
            field=models.JSONField(default=dict),
        ),
        migrations.AddField(
            model_name='patch',
            name='result_tree',
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.AddIndex(
            model_name='patch',
            index=models.Index(condition=models.Q(('result_tree', ''), _negated=True), fields=['base_commit', 'result_tree'], name='patch_of_result'),
        ),
        migrations.AddIndex(
            model_name='patch',
            index=models.Index(condition=models.Q(('state', 'quarantined')), fields=['quarantine_expires_at'], name='patch_set_aside'),
        ),
        migrations.AddIndex(
            model_name='patchcontent',
            index=models.Index(condition=models.Q(('patch_id_git', ''), _negated=True), fields=['patch_id_git'], name='patch_of_git_id'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='mergequeue',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'merge_queue'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='328d4a5be00a6d949e11a1b94bcd02dadfcc3fc4', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_f1971', table='ledger_mergequeue', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='mergequeue',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."target_branch" IS DISTINCT FROM NEW."target_branch" OR OLD."head_commit" IS DISTINCT FROM NEW."head_commit" OR OLD."state" IS DISTINCT FROM NEW."state" OR OLD."window_size" IS DISTINCT FROM NEW."window_size" OR OLD."window_floor" IS DISTINCT FROM NEW."window_floor" OR OLD."window_ceiling" IS DISTINCT FROM NEW."window_ceiling" OR OLD."head_limit_seconds" IS DISTINCT FROM NEW."head_limit_seconds" OR OLD."blocked_reason" IS DISTINCT FROM NEW."blocked_reason" OR OLD."blocked_tries" IS DISTINCT FROM NEW."blocked_tries" OR OLD."blocked_until" IS DISTINCT FROM NEW."blocked_until")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='bb9ff1a57d0fa2f858c7ad2ff0bf3878e645ddea', operation='UPDATE', pgid='pgtrigger_raise_version_14efc', table='ledger_mergequeue', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='patch',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'patch'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='b3808e4b37f0169cca91c375945652bab89e8002', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_3ad0f', table='ledger_patch', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='patch',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."ledger_id" IS DISTINCT FROM NEW."ledger_id" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."phase_id" IS DISTINCT FROM NEW."phase_id" OR OLD."workstream_id" IS DISTINCT FROM NEW."workstream_id" OR OLD."run_id" IS DISTINCT FROM NEW."run_id" OR OLD."task_id" IS DISTINCT FROM NEW."task_id" OR OLD."attempt_id" IS DISTINCT FROM NEW."attempt_id" OR OLD."request_id" IS DISTINCT FROM NEW."request_id" OR OLD."prompt_id" IS DISTINCT FROM NEW."prompt_id" OR OLD."custody" IS DISTINCT FROM NEW."custody" OR OLD."target_branch" IS DISTINCT FROM NEW."target_branch" OR OLD."base_commit" IS DISTINCT FROM NEW."base_commit" OR OLD."base_tree" IS DISTINCT FROM NEW."base_tree" OR OLD."result_tree" IS DISTINCT FROM NEW."result_tree" OR OLD."tool" IS DISTINCT FROM NEW."tool" OR OLD."author_user_id" IS DISTINCT FROM NEW."author_user_id" OR OLD."author_worker_id" IS DISTINCT FROM NEW."author_worker_id" OR OLD."author_name" IS DISTINCT FROM NEW."author_name" OR OLD."summary" IS DISTINCT FROM NEW."summary" OR OLD."issue_ref" IS DISTINCT FROM NEW."issue_ref" OR OLD."metadata" IS DISTINCT FROM NEW."metadata" OR OLD."sha256" IS DISTINCT FROM NEW."sha256" OR OLD."files_touched" IS DISTINCT FROM NEW."files_touched" OR OLD."line_insertions" IS DISTINCT FROM NEW."line_insertions" OR OLD."line_deletions" IS DISTINCT FROM NEW."line_deletions" OR OLD."hunks" IS DISTINCT FROM NEW."hunks" OR OLD."binary_files" IS DISTINCT FROM NEW."binary_files" OR OLD."state" IS DISTINCT FROM NEW."state" OR OLD."state_reason" IS DISTINCT FROM NEW."state_reason" OR OLD."committed_at" IS DISTINCT FROM NEW."committed_at" OR OLD."format_ok" IS DISTINCT FROM NEW."format_ok" OR OLD."scope_ok" IS DISTINCT FROM NEW."scope_ok" OR OLD."constraints_ok" IS DISTINCT FROM NEW."constraints_ok" OR OLD."tests_ran" IS DISTINCT FROM NEW."tests_ran" OR OLD."tests_passed" IS DISTINCT FROM NEW."tests_passed" OR OLD."validation_errors" IS DISTINCT FROM NEW."validation_errors" OR OLD."findings" IS DISTINCT FROM NEW."findings" OR OLD."policy_snapshot" IS DISTINCT FROM NEW."policy_snapshot" OR OLD."facts" IS DISTINCT FROM NEW."facts" OR OLD."attempts" IS DISTINCT FROM NEW."attempts" OR OLD."reapplies" IS DISTINCT FROM NEW."reapplies" OR OLD."last_attempt_at" IS DISTINCT FROM NEW."last_attempt_at" OR OLD."last_error_code" IS DISTINCT FROM NEW."last_error_code" OR OLD."last_error_message" IS DISTINCT FROM NEW."last_error_message" OR OLD."workspace_path" IS DISTINCT FROM NEW."workspace_path" OR OLD."applied_files" IS DISTINCT FROM NEW."applied_files" OR OLD."candidate_tree" IS DISTINCT FROM NEW."candidate_tree" OR OLD."tested_tree" IS DISTINCT FROM NEW."tested_tree" OR OLD."tested_parent" IS DISTINCT FROM NEW."tested_parent" OR OLD."landing_commit" IS DISTINCT FROM NEW."landing_commit" OR OLD."commit_sha" IS DISTINCT FROM NEW."commit_sha" OR OLD."committed_tree" IS DISTINCT FROM NEW."committed_tree" OR OLD."quarantine_reason" IS DISTINCT FROM NEW."quarantine_reason" OR OLD."quarantine_path" IS DISTINCT FROM NEW."quarantine_path" OR OLD."quarantined_at" IS DISTINCT FROM NEW."quarantined_at" OR OLD."quarantine_owner" IS DISTINCT FROM NEW."quarantine_owner" OR OLD."quarantine_expires_at" IS DISTINCT FROM NEW."quarantine_expires_at" OR OLD."replaces_id" IS DISTINCT FROM NEW."replaces_id" OR OLD."rollback_of_id" IS DISTINCT FROM NEW."rollback_of_id" OR OLD."chain_id" IS DISTINCT FROM NEW."chain_id")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='9e225565b9a74836615552cf9b8b16e424273db9', operation='UPDATE', pgid='pgtrigger_raise_version_68bf9', table='ledger_patch', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='queueitem',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'queue_item'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='bf55e481c98c1af1a60031113400a06d445ffe39', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_07c24', table='ledger_queueitem', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
        migrations.AddField(
            model_name='patchreview',
            name='patch',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='reviews', to='ledger.patch'),
        ),
        migrations.AddField(
            model_name='patchreview',
            name='reviewer',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name='reviews', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='policyoverride',
            name='granted_by',
            field=models.ForeignKey(null=True, on_delete=django.db.models.deletion.PROTECT, related_name='overrides', to=settings.AUTH_USER_MODEL),
        ),
        migrations.AddField(
            model_name='policyoverride',
            name='patch',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='overrides', to='ledger.patch'),
        ),
        migrations.AddField(
            model_name='push',
            name='patch',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='push', to='ledger.patch'),
        ),
        migrations.AddField(
            model_name='push',
            name='queue',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='pushes', to='ledger.mergequeue'),
        ),
        migrations.AddField(
            model_name='receipt',
            name='patch',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='receipt', to='ledger.patch'),
        ),
        migrations.AddField(
            model_name='receipt',
            name='project',
            field=models.ForeignKey(on_delete=django.db.models.deletion.PROTECT, related_name='receipts', to='pipeline.project'),
        ),
        migrations.AddField(
            model_name='remote',
            name='project',
            field=models.OneToOneField(on_delete=django.db.models.deletion.PROTECT, related_name='remote', to='pipeline.project'),
        ),
        migrations.AddIndex(
            model_name='seal',
            index=models.Index(models.F('number'), condition=models.Q(('anchor', '')), name='seal_unanchored'),
        ),
        migrations.AddIndex(
            model_name='seal',
            index=models.Index(fields=['month', 'number'], name='seal_of_month'),
        ),
        migrations.AddConstraint(
            model_name='seal',
            constraint=models.CheckConstraint(condition=models.Q(('number__gte', 1)), name='seal_numbers_from_one'),
        ),
        migrations.AddConstraint(
            model_name='seal',
            constraint=models.CheckConstraint(condition=models.Q(('count__gte', 1)), name='seal_holds_something'),
        ),
        migrations.AddConstraint(
            model_name='seal',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('number', 1), ('prev_root', '')), models.Q(('number__gt', 1), models.Q(('prev_root', ''), _negated=True)), _connector='OR'), name='seal_first_has_no_previous'),
        ),
        migrations.AddConstraint(
            model_name='seal',
            constraint=models.CheckConstraint(condition=models.Q(('dropped_at', None), models.Q(('anchor', ''), _negated=True), _connector='OR'), name='seal_dropped_is_anchored'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='seal',
            trigger=pgtrigger.compiler.Trigger(name='written_once', sql=pgtrigger.compiler.UpsertTriggerSql(func='IF OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."number" IS DISTINCT FROM NEW."number" OR OLD."from_cursor" IS DISTINCT FROM NEW."from_cursor" OR OLD."to_cursor" IS DISTINCT FROM NEW."to_cursor" OR OLD."month" IS DISTINCT FROM NEW."month" OR OLD."count" IS DISTINCT FROM NEW."count" OR OLD."root_hash" IS DISTINCT FROM NEW."root_hash" OR OLD."prev_root" IS DISTINCT FROM NEW."prev_root" OR OLD."leaves" IS DISTINCT FROM NEW."leaves" THEN RAISE EXCEPTION \'Cannot change %: these columns are written once\', TG_TABLE_NAME USING ERRCODE = \'check_violation\', TABLE = TG_TABLE_NAME, CONSTRAINT = \'written_once\'; END IF; RETURN NEW;', hash='03cd84e0d4180c8c9939de023c862002a25b2a6a', operation='UPDATE', pgid='pgtrigger_written_once_feb03', table='ledger_seal', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='seal',
            trigger=pgtrigger.compiler.Trigger(name='filled_once', sql=pgtrigger.compiler.UpsertTriggerSql(func='IF (NOT (OLD."anchor" = \'\') AND OLD."anchor" IS DISTINCT FROM NEW."anchor") OR (NOT (OLD."dropped_at" IS NULL) AND OLD."dropped_at" IS DISTINCT FROM NEW."dropped_at") THEN RAISE EXCEPTION \'Cannot change %: what is filled in is filled in once\', TG_TABLE_NAME USING ERRCODE = \'check_violation\', TABLE = TG_TABLE_NAME, CONSTRAINT = \'filled_once\'; END IF; RETURN NEW;', hash='3c026f94c69b9154978030acf0eaecc14d11ada2', operation='UPDATE', pgid='pgtrigger_filled_once_b99da', table='ledger_seal', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='seal',
            trigger=pgtrigger.compiler.Trigger(name='never_deleted', sql=pgtrigger.compiler.UpsertTriggerSql(func="RAISE EXCEPTION 'Cannot delete from %: its rows are kept', TG_TABLE_NAME USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'never_deleted';", hash='47049252abf4e1177019de9f84ab160bb4bae75c', operation='DELETE', pgid='pgtrigger_never_deleted_e2cc4', table='ledger_seal', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='seal',
            trigger=pgtrigger.compiler.Trigger(name='never_truncated', sql=pgtrigger.compiler.UpsertTriggerSql(func="IF current_setting('signalbox.allow_truncate', true) IS DISTINCT FROM 'on' THEN RAISE EXCEPTION 'Cannot truncate %: its rows are kept', TG_TABLE_NAME USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'never_truncated'; END IF; RETURN NULL;", hash='034fd315181fcd2dab30acc9557f297f5a75e0ba', level='STATEMENT', operation='TRUNCATE', pgid='pgtrigger_never_truncated_c05e2', table='ledger_seal', when='BEFORE')),
        ),
        migrations.AddIndex(
            model_name='patchreview',
            index=models.Index(fields=['patch', 'id'], name='patchreview_of_patch'),
        ),
        migrations.AddConstraint(
            model_name='patchreview',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('verdict', 'reject'), _negated=True), models.Q(('body', ''), _negated=True), _connector='OR'), name='patchreview_veto_says_why'),
        ),
        migrations.AddConstraint(
            model_name='patchreview',
            constraint=models.CheckConstraint(condition=models.Q(('reviewer_name', ''), _negated=True), name='patchreview_names_reviewer'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='patchreview',
            trigger=pgtrigger.compiler.Trigger(name='written_once', sql=pgtrigger.compiler.UpsertTriggerSql(func='IF OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."updated_at" IS DISTINCT FROM NEW."updated_at" OR OLD."version" IS DISTINCT FROM NEW."version" OR OLD."patch_id" IS DISTINCT FROM NEW."patch_id" OR OLD."reviewer_id" IS DISTINCT FROM NEW."reviewer_id" OR OLD."reviewer_name" IS DISTINCT FROM NEW."reviewer_name" OR OLD."verdict" IS DISTINCT FROM NEW."verdict" OR OLD."body" IS DISTINCT FROM NEW."body" OR OLD."anchors" IS DISTINCT FROM NEW."anchors" OR OLD."for_sha256" IS DISTINCT FROM NEW."for_sha256" THEN RAISE EXCEPTION \'Cannot change %: these columns are written once\', TG_TABLE_NAME USING ERRCODE = \'check_violation\', TABLE = TG_TABLE_NAME, CONSTRAINT = \'written_once\'; END IF; RETURN NEW;', hash='ed969e5ad0b8ee496c044b396a2b40419fce1c41', operation='UPDATE', pgid='pgtrigger_written_once_a078e', table='ledger_patchreview', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='patchreview',
            trigger=pgtrigger.compiler.Trigger(name='never_deleted', sql=pgtrigger.compiler.UpsertTriggerSql(func="RAISE EXCEPTION 'Cannot delete from %: its rows are kept', TG_TABLE_NAME USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'never_deleted';", hash='c0f7e8d697cdd4ecb42155a7cf6e408bb33f7f1c', operation='DELETE', pgid='pgtrigger_never_deleted_0405f', table='ledger_patchreview', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='patchreview',
            trigger=pgtrigger.compiler.Trigger(name='never_truncated', sql=pgtrigger.compiler.UpsertTriggerSql(func="IF current_setting('signalbox.allow_truncate', true) IS DISTINCT FROM 'on' THEN RAISE EXCEPTION 'Cannot truncate %: its rows are kept', TG_TABLE_NAME USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'never_truncated'; END IF; RETURN NULL;", hash='8af27da6a2b587f5efafa6b594d2433e9263cd5c', level='STATEMENT', operation='TRUNCATE', pgid='pgtrigger_never_truncated_cb4bb', table='ledger_patchreview', when='BEFORE')),
        ),
        migrations.AddIndex(
            model_name='policyoverride',
            index=models.Index(fields=['patch', 'id'], name='policyoverride_of_patch'),
        ),
        migrations.AddIndex(
            model_name='policyoverride',
            index=models.Index(fields=['expires_at'], name='policyoverride_ends'),
        ),
        migrations.AddConstraint(
            model_name='policyoverride',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('reason', ''), _negated=True), models.Q(('rule', ''), _negated=True), models.Q(('granted_name', ''), _negated=True)), name='policyoverride_says_why'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='policyoverride',
            trigger=pgtrigger.compiler.Trigger(name='written_once', sql=pgtrigger.compiler.UpsertTriggerSql(func='IF OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."updated_at" IS DISTINCT FROM NEW."updated_at" OR OLD."version" IS DISTINCT FROM NEW."version" OR OLD."patch_id" IS DISTINCT FROM NEW."patch_id" OR OLD."rule" IS DISTINCT FROM NEW."rule" OR OLD."reason" IS DISTINCT FROM NEW."reason" OR OLD."granted_by_id" IS DISTINCT FROM NEW."granted_by_id" OR OLD."granted_name" IS DISTINCT FROM NEW."granted_name" OR OLD."expires_at" IS DISTINCT FROM NEW."expires_at" THEN RAISE EXCEPTION \'Cannot change %: these columns are written once\', TG_TABLE_NAME USING ERRCODE = \'check_violation\', TABLE = TG_TABLE_NAME, CONSTRAINT = \'written_once\'; END IF; RETURN NEW;', hash='a3e5fb3ae81635a07749845fa0beec51e7a6b721', operation='UPDATE', pgid='pgtrigger_written_once_f80c7', table='ledger_policyoverride', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='policyoverride',
            trigger=pgtrigger.compiler.Trigger(name='never_deleted', sql=pgtrigger.compiler.UpsertTriggerSql(func="RAISE EXCEPTION 'Cannot delete from %: its rows are kept', TG_TABLE_NAME USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'never_deleted';", hash='67b98d32ba1973f4a9305291a2ef55c9d1a99a12', operation='DELETE', pgid='pgtrigger_never_deleted_c2ea3', table='ledger_policyoverride', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='policyoverride',
            trigger=pgtrigger.compiler.Trigger(name='never_truncated', sql=pgtrigger.compiler.UpsertTriggerSql(func="IF current_setting('signalbox.allow_truncate', true) IS DISTINCT FROM 'on' THEN RAISE EXCEPTION 'Cannot truncate %: its rows are kept', TG_TABLE_NAME USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'never_truncated'; END IF; RETURN NULL;", hash='7132bad770ff20830a2486046b8a8f4698961b09', level='STATEMENT', operation='TRUNCATE', pgid='pgtrigger_never_truncated_b72c1', table='ledger_policyoverride', when='BEFORE')),
        ),
        migrations.AddIndex(
            model_name='push',
            index=models.Index(models.F('due_at'), condition=models.Q(('state', 'waiting')), name='push_due'),
        ),
        migrations.AddIndex(
            model_name='push',
            index=models.Index(condition=models.Q(('state', 'pushed'), _negated=True), fields=['queue', 'state'], name='push_of_queue'),
        ),
        migrations.AddConstraint(
            model_name='push',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('target', ''), _negated=True), models.Q(('commit_sha', ''), _negated=True)), name='push_names_target'),
        ),
        migrations.AddConstraint(
            model_name='push',
            constraint=models.CheckConstraint(condition=models.Q(models.Q(('pushed_at__isnull', False), ('state', 'pushed')), models.Q(models.Q(('state', 'pushed'), _negated=True), ('pushed_at', None)), _connector='OR'), name='push_pushed_has_time'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='push',
            trigger=pgtrigger.compiler.Trigger(name='moves', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD.state IS DISTINCT FROM NEW.state)', func="IF NOT (OLD.state || ':' || NEW.state = ANY('{held:pushed,held:waiting,waiting:held,waiting:pushed}'::text[])) THEN RAISE EXCEPTION 'Invalid transition: % cannot go from % to %', TG_TABLE_NAME, OLD.state, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'moves'; END IF; RETURN NEW;", hash='85ec5c976d388623b45cfada351794338ef991e5', operation='UPDATE', pgid='pgtrigger_moves_ee3c1', table='ledger_push', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='push',
            trigger=pgtrigger.compiler.Trigger(name='birth', sql=pgtrigger.compiler.UpsertTriggerSql(func="IF NOT (NEW.state = ANY('{waiting}'::text[])) THEN RAISE EXCEPTION 'Invalid birth: % cannot start as %', TG_TABLE_NAME, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'birth'; END IF; RETURN NEW;", hash='5f9edc30555d5e92ba98a4358c5566299435cf88', operation='INSERT', pgid='pgtrigger_birth_12304', table='ledger_push', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='push',
            trigger=pgtrigger.compiler.Trigger(name='told', sql=pgtrigger.compiler.UpsertTriggerSql(constraint='CONSTRAINT', func="\n            IF (TG_OP = 'INSERT' OR OLD.state IS DISTINCT FROM NEW.state) AND NOT EXISTS (\n                SELECT 1 FROM pipeline_event e WHERE e.subject_id = NEW.id AND e.subject_type = 'push'\n                AND e.own_xid = pg_current_xact_id() AND e.after->>'state' = NEW.state) THEN RAISE EXCEPTION 'Untold: % % became % without an event', TG_TABLE_NAME, NEW.id, NEW.state USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'told'; END IF;\n            RETURN NULL;\n        ", hash='c2f082f2e1e75c606d00510e3081ae6efd82397d', operation='INSERT OR UPDATE OF "state"', pgid='pgtrigger_told_a8513', table='ledger_push', timing='DEFERRABLE INITIALLY DEFERRED', when='AFTER')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='push',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."queue_id" IS DISTINCT FROM NEW."queue_id" OR OLD."patch_id" IS DISTINCT FROM NEW."patch_id" OR OLD."commit_sha" IS DISTINCT FROM NEW."commit_sha" OR OLD."target" IS DISTINCT FROM NEW."target" OR OLD."state" IS DISTINCT FROM NEW."state" OR OLD."attempts" IS DISTINCT FROM NEW."attempts" OR OLD."due_at" IS DISTINCT FROM NEW."due_at" OR OLD."last_error" IS DISTINCT FROM NEW."last_error" OR OLD."request_title" IS DISTINCT FROM NEW."request_title" OR OLD."request_text" IS DISTINCT FROM NEW."request_text" OR OLD."pushed_at" IS DISTINCT FROM NEW."pushed_at")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='bbe353d5d3b1ced8475cfae104ad2336994003a4', operation='UPDATE', pgid='pgtrigger_raise_version_f077b', table='ledger_push', when='BEFORE')),
        ),
        migrations.AddIndex(
            model_name='receipt',
            index=models.Index(condition=models.Q(('note', '')), fields=['id'], name='receipt_unnoted'),
        ),
        migrations.AddIndex(
            model_name='receipt',
            index=models.Index(fields=['commit_sha'], name='receipt_of_commit'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='receipt',
            trigger=pgtrigger.compiler.Trigger(name='written_once', sql=pgtrigger.compiler.UpsertTriggerSql(func='IF OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."patch_id" IS DISTINCT FROM NEW."patch_id" OR OLD."commit_sha" IS DISTINCT FROM NEW."commit_sha" OR OLD."statement" IS DISTINCT FROM NEW."statement" OR OLD."sha256" IS DISTINCT FROM NEW."sha256" THEN RAISE EXCEPTION \'Cannot change %: these columns are written once\', TG_TABLE_NAME USING ERRCODE = \'check_violation\', TABLE = TG_TABLE_NAME, CONSTRAINT = \'written_once\'; END IF; RETURN NEW;', hash='8fafe3d1bbe359eb4af21a57ce71979a82c942f5', operation='UPDATE', pgid='pgtrigger_written_once_a25e9', table='ledger_receipt', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='receipt',
            trigger=pgtrigger.compiler.Trigger(name='filled_once', sql=pgtrigger.compiler.UpsertTriggerSql(func='IF (NOT (OLD."note" = \'\') AND OLD."note" IS DISTINCT FROM NEW."note") THEN RAISE EXCEPTION \'Cannot change %: what is filled in is filled in once\', TG_TABLE_NAME USING ERRCODE = \'check_violation\', TABLE = TG_TABLE_NAME, CONSTRAINT = \'filled_once\'; END IF; RETURN NEW;', hash='da87d299ce90f0ead7dd4277e252e5ab8d69843f', operation='UPDATE', pgid='pgtrigger_filled_once_9ab51', table='ledger_receipt', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='receipt',
            trigger=pgtrigger.compiler.Trigger(name='never_deleted', sql=pgtrigger.compiler.UpsertTriggerSql(func="RAISE EXCEPTION 'Cannot delete from %: its rows are kept', TG_TABLE_NAME USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'never_deleted';", hash='068c3cae90b4c3c44bc71181e1b7d1eea37c2ada', operation='DELETE', pgid='pgtrigger_never_deleted_8250c', table='ledger_receipt', when='BEFORE')),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='receipt',
            trigger=pgtrigger.compiler.Trigger(name='never_truncated', sql=pgtrigger.compiler.UpsertTriggerSql(func="IF current_setting('signalbox.allow_truncate', true) IS DISTINCT FROM 'on' THEN RAISE EXCEPTION 'Cannot truncate %: its rows are kept', TG_TABLE_NAME USING ERRCODE = 'check_violation', TABLE = TG_TABLE_NAME, CONSTRAINT = 'never_truncated'; END IF; RETURN NULL;", hash='ab01d52371b65309da5006588562eef986e593f9', level='STATEMENT', operation='TRUNCATE', pgid='pgtrigger_never_truncated_5c576', table='ledger_receipt', when='BEFORE')),
        ),
        migrations.AddConstraint(
            model_name='remote',
            constraint=models.CheckConstraint(condition=models.Q(('landing__in', ['none', 'push', 'branch'])), name='remote_landing_known'),
        ),
        migrations.AddConstraint(
            model_name='remote',
            constraint=models.CheckConstraint(condition=models.Q(('fetch_seconds', 0), ('fetch_seconds__gte', 10), _connector='OR'), name='remote_fetches_in_reason'),
        ),
        pgtrigger.migrations.AddTrigger(
            model_name='remote',
            trigger=pgtrigger.compiler.Trigger(name='raise_version', sql=pgtrigger.compiler.UpsertTriggerSql(condition='WHEN (OLD."id" IS DISTINCT FROM NEW."id" OR OLD."created_at" IS DISTINCT FROM NEW."created_at" OR OLD."project_id" IS DISTINCT FROM NEW."project_id" OR OLD."url" IS DISTINCT FROM NEW."url" OR OLD."landing" IS DISTINCT FROM NEW."landing" OR OLD."username" IS DISTINCT FROM NEW."username" OR OLD."credential" IS DISTINCT FROM NEW."credential" OR OLD."webhook_credential" IS DISTINCT FROM NEW."webhook_credential" OR OLD."fetch_seconds" IS DISTINCT FROM NEW."fetch_seconds" OR OLD."enabled" IS DISTINCT FROM NEW."enabled" OR OLD."fetch_error" IS DISTINCT FROM NEW."fetch_error")', func='NEW.version = OLD.version + 1; NEW.updated_at = clock_timestamp(); RETURN NEW;', hash='84334a9784be0c9c98d6bfcaea29e9d70c4b0cb5', operation='UPDATE', pgid='pgtrigger_raise_version_3ddd6', table='ledger_remote', when='BEFORE')),
        ),
    ]
