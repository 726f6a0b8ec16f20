"""The ground floor announces itself, and lets every app register its reactions, answers and invariants."""

from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class PipelineConfig(AppConfig):
    """Loads each app's `reactions` and `invariants`, by name: no import arrow runs up."""

    name = "pipeline"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Discover what the apps above register."""
        autodiscover_modules("reactions", "invariants")
