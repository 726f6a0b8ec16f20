"""The ground floor announces itself, and lets every app register its reactions, answers and invariants."""

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class PipelineConfig(AppConfig):
    """Loads each app's `reactions` and `invariants`, by name: no import arrow runs up."""

    name = "pipeline"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Load the Celery app, then discover what the apps above register."""
        from pipeline.celery import app

        # For every thread: `current_app` would otherwise fall back to an app of Celery's own, without our broker.
        app.set_default()
        autodiscover_modules("reactions", "invariants")
