from django.db import migrations, models


class Migration(migrations.Migration):

    dependencies = [
        ('costs', '0004_what_is_compared_and_unpriced'),
        ('pipeline', '0003_failed_reactions_die_and_drop'),
        ('workers', '0002_health'),
    ]

    operations = [
        # Budgets that are there keep what they have counted: none is breached by an upgrade.
        migrations.AddField(
            model_name='budget',
            name='is_behind',
            field=models.BooleanField(default=False, editable=False),
        ),
        migrations.AlterField(
            model_name='budget',
            name='is_behind',
            field=models.BooleanField(default=True, editable=False),
        ),
        migrations.RemoveIndex(
            model_name='costrecord',
            name='cost_compared',
        ),
        migrations.AddIndex(
            model_name='costrecord',
            index=models.Index(condition=models.Q(('stated_amount__isnull', False), models.Q(models.Q(('basis', 'stated'), _negated=True), models.Q(('model', ''), _negated=True), _connector='OR')), fields=['-id'], name='cost_compared'),
        ),
    ]
