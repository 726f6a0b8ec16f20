"""The ground floor announces itself, and lets every app register its reactions, answers and invariants."""

from typing import Any

from django.apps import AppConfig
from django.db.backends.signals import connection_created
from django.db.models.signals import post_migrate
from django.utils.module_loading import autodiscover_modules


def first_epoch(sender: AppConfig, **_: Any) -> None:
    """A database without an epoch (new, or flushed) starts its first: no event could be recorded otherwise."""
    epochs = sender.get_model("EventEpoch")._default_manager
    if not epochs.exists():
        epochs.create(number=1, reason="first start")


class PipelineConfig(AppConfig):
    """Loads each app's `reactions` and `invariants`, by name: no import arrow runs up."""

    name = "pipeline"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Load the Celery app, then discover what the apps above register."""
        from pipeline.celery import app
        from pipeline.epochs import on_connection

        # For every thread: `current_app` would otherwise fall back to an app of Celery's own, without our broker.
        app.set_default()
        post_migrate.connect(first_epoch, sender=self)
        connection_created.connect(on_connection, dispatch_uid="pipeline.epochs")
        autodiscover_modules("reactions", "invariants")
