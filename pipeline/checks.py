"""System checks for settings that contradict each other, and for a database role that may do too much."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import connections

TAG = "signalbox"


@register(TAG)
def numbers_agree(app_configs: Any, **_: Any) -> list[CheckMessage]:
    """One error for each pair of default numbers that cannot both hold."""
    rules = [
        (
            "signalbox.E001",
            settings.SIGNALBOX_LEASE_SECONDS >= 2 * settings.SIGNALBOX_HEARTBEAT_INTERVAL_SECONDS + 5,
            "a lease ends before a worker can miss one heartbeat",
            "Make SIGNALBOX_LEASE_SECONDS at least twice SIGNALBOX_HEARTBEAT_INTERVAL_SECONDS, plus 5.",
        ),
        (
            "signalbox.E002",
            settings.SIGNALBOX_STOP_TERM_SECONDS < settings.SIGNALBOX_STOP_KILL_SECONDS,
            "a tool would be killed before it is asked to end",
            "Make SIGNALBOX_STOP_TERM_SECONDS smaller than SIGNALBOX_STOP_KILL_SECONDS.",
        ),
        (
            "signalbox.E003",
            settings.SIGNALBOX_MERGE_WINDOW_FLOOR
            <= settings.SIGNALBOX_MERGE_WINDOW_START
            <= settings.SIGNALBOX_MERGE_WINDOW_CEILING,
            "the merge window starts outside its own limits",
            "Order them: SIGNALBOX_MERGE_WINDOW_FLOOR, _START, _CEILING.",
        ),
        (
            "signalbox.E004",
            settings.SIGNALBOX_OSCILLATION_THRESHOLD <= settings.SIGNALBOX_OSCILLATION_WINDOW,
            "an oscillation can never be seen",
            "Make SIGNALBOX_OSCILLATION_THRESHOLD at most SIGNALBOX_OSCILLATION_WINDOW.",
        ),
        (
            "signalbox.E005",
            settings.SIGNALBOX_RETRY_BASE_SECONDS <= settings.SIGNALBOX_RETRY_CAP_SECONDS,
            "a retry would wait longer at first than it ever may",
            "Make SIGNALBOX_RETRY_BASE_SECONDS at most SIGNALBOX_RETRY_CAP_SECONDS.",
        ),
        (
            "signalbox.E006",
            settings.SIGNALBOX_STALL_SECONDS <= settings.SIGNALBOX_STALL_IN_TOOL_CALL_SECONDS,
            "a worker with an open tool call would count as stalled before an idle one",
            "Make SIGNALBOX_STALL_SECONDS at most SIGNALBOX_STALL_IN_TOOL_CALL_SECONDS.",
        ),
        (
            "signalbox.E007",
            settings.CELERY_BROKER_TRANSPORT_OPTIONS["visibility_timeout"] > settings.SIGNALBOX_GATE_TIMEOUT_SECONDS,
            "the broker would hand a running gate out a second time",
            "Make SIGNALBOX_GATE_TIMEOUT_SECONDS smaller than the broker's visibility timeout.",
        ),
        (
            "signalbox.E008",
            not _shown_to_gates_and_ours(),
            "a folder of Signalbox itself would be shown to gates",
            "Take it out of SIGNALBOX_GATE_READONLY and SIGNALBOX_GATE_CACHES.",
        ),
    ]
    return [
        Error(f"Settings contradict each other: {what}.", hint=hint, id=id)
        for id, good, what, hint in rules
        if not good
    ]


def _shown_to_gates_and_ours() -> bool:
    """Whether a folder that gates may read holds, or lies in, one of Signalbox's own."""
    ours = [Path(folder).resolve() for folder in (settings.DATA_DIR, settings.GATES_DIR)]
    shown = [*settings.SIGNALBOX_GATE_READONLY, *settings.SIGNALBOX_GATE_CACHES.values()]
    return any(
        own.is_relative_to(folder.resolve()) or folder.resolve().is_relative_to(own) for own in ours for folder in shown
    )


@register(Tags.database)
def role_is_modest(app_configs: Any, databases: Sequence[str] | None = None, **_: Any) -> list[CheckMessage]:
    """A warning for each database that we enter as a superuser: every trigger of ours can then be switched off."""
    found: list[CheckMessage] = []
    for alias in databases or []:
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")
            if cursor.fetchone() == (True,):
                found.append(
                    Warning(
                        f"Signalbox connects to the database {alias!r} as a superuser, whom no trigger stops.",
                        hint="Let a plain role own the database: CREATE ROLE signalbox LOGIN NOSUPERUSER.",
                        id="signalbox.W001",
                    )
                )
    return found
