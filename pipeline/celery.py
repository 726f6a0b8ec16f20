"""The Celery app and the beat schedule: what is done again and again, how often, and why."""

import os
import warnings
from typing import Any, NamedTuple

import structlog
from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import setup_logging, task_postrun, task_prerun, worker_process_init
from django.db import close_old_connections

from pipeline.supervisor import dies_with

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "pipeline.settings")


# Celery warns every worker of root. What it fears is pickle, and CELERY_ACCEPT_CONTENT takes JSON only.
warnings.filterwarnings("ignore", category=SecurityWarning)


class Every(NamedTuple):
    """One line of the schedule: a task's name, its period, and the reason for both."""

    seconds: float
    task: str
    because: str


# One line for each periodic task, in the order in which a reader should meet them. Each due moment is a row that
# only one
# of any number of beats can insert (pipeline.models.Tick).
SCHEDULE: list[Every] = [
    Every(1, "pipeline.tasks.sweep", "what a lost message left behind goes on: once in SIGNALBOX_SWEEP_SECONDS"),
    Every(5, "ledger.tasks.seal", "what has happened is sealed and anchored before anybody could change it unseen"),
    Every(86_400, "ledger.tasks.watch_log", "a broken seal is told once a day at the latest"),
    Every(3600, "gates.tasks.tidy", "logs of gates that are past their keeping go"),
    Every(
        3600, "ledger.landing_tasks.tidy_mirrors", "what killed gits left in a mirror goes before it blocks a landing"
    ),
    Every(86_400, "ledger.landing_tasks.watch_receipts", "a receipt that was changed is told once a day at the latest"),
    Every(3600, "pipeline.tasks.tidy", "next month's events have a partition; what is past its keeping goes"),
]

app = Celery("signalbox")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.conf.beat_schedule = {
    line.task: {
        "task": line.task,
        "schedule": line.seconds,
        # A wake-up that nobody took in time is worth nothing: the next one says the same.
        "options": {"expires": max(line.seconds * 2, 10.0)},
    }
    for line in SCHEDULE
}
app.autodiscover_tasks()


@setup_logging.connect
def keep_django_logging(**_: Any) -> None:
    """Leaves logging as the settings configured it; without a receiver Celery would install its own handlers."""


@worker_process_init.connect
def die_with_worker(**_: Any) -> None:
    """A pool process must not go on with a task whose worker was killed: the task is given to somebody else."""
    if arrange := dies_with(os.getppid()):
        arrange()


@task_prerun.connect
def refresh_connections(task_id: str, task: Any, **_: Any) -> None:
    """Drops connections that a restart of PostgreSQL killed, and names the task in every log line."""
    close_old_connections()
    structlog.contextvars.bind_contextvars(task_id=task_id, task=task.name)


@task_postrun.connect
def forget_task(**_: Any) -> None:
    """The next task's log lines must not carry this one's name."""
    structlog.contextvars.clear_contextvars()
