"""System checks: tables of rates in the settings that cannot be read."""

from typing import Any

from django.core.checks import CheckMessage, Error, register

from costs.models import settled


@register("signalbox")
def rates_can_be_read(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """One error for each table that is wrong, naming its row."""
    numbers = {"SIGNALBOX_UNIT_RATES": "costs.E001", "SIGNALBOX_EXCHANGE_RATES": "costs.E002"}
    return [
        Error(f"{name}: {why}", hint="docs/costs.md shows the table.", id=numbers[name])
        for name, why in settled.problems()
    ]
