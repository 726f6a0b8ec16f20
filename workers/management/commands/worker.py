"""`manage.py worker list|assign|pause|resume|drain|stop|crash`: the fleet from a terminal, as from the pages."""

from argparse import ArgumentParser
from collections.abc import Callable
from typing import Any

from django.core.management import BaseCommand, CommandError
from django.utils.translation import gettext as _

from pipeline import events
from pipeline.clock import db_now
from pipeline.ids import is_id
from pipeline.models import Task
from pipeline.refusals import NotFound, Refused, need_reason
from workers import claims
from workers.models import Worker, health

BY = events.Actor("system", "", "manage.py worker")
SHOWN = 200


def _assign(worker: Worker, given: dict[str, Any]) -> bool:
    task = Task.objects.filter(pk=given["task"]).first() if is_id(given["task"]) else None
    if task is None:
        raise NotFound.of("task", given["task"])
    need_reason(given["reason"])
    claims.assign_to(worker, task, by=BY)
    return True


VERBS: dict[str, Callable[[Worker, dict[str, Any]], bool]] = {
    "assign": _assign,
    "pause": lambda worker, given: worker.pause(by=BY, reason=need_reason(given["reason"])),
    "resume": lambda worker, given: worker.resume(by=BY, reason=need_reason(given["reason"])),
    "drain": lambda worker, given: worker.request_shutdown(
        by=BY, mode="drain", reason=need_reason(given["reason"]), deadline_seconds=given["deadline_seconds"]
    ),
    "stop": lambda worker, given: worker.request_shutdown(
        by=BY, mode="now", reason=given["reason"], deadline_seconds=given["deadline_seconds"]
    ),
    "crash": lambda worker, given: worker.declare_crashed(by=BY, reason=given["reason"]),
}


class Command(BaseCommand):
    """Lists workers; gives one of them a task, pauses, resumes, drains, stops it or declares it crashed."""

    help = "List the workers, or give one a task, pause, resume, drain, stop it or declare it crashed."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """What to do, with which worker, and why."""
        what = parser.add_subparsers(dest="verb", required=True)
        listing = what.add_parser("list", help="the living ones, those first that need a look")
        listing.add_argument("--all", action="store_true", help="also those that finished of late")
        listing.add_argument("--archived", action="store_true", help="those that finished long ago")
        for verb in VERBS:
            one = what.add_parser(verb)
            one.add_argument("id", metavar="ID", help="the worker's id, or its name when only one living one has it")
            one.add_argument("--reason", default="", help="why; every act from here owes one")
            if verb == "assign":
                one.add_argument("--task", required=True, help="the id of a queued task")
            if verb in ("drain", "stop"):
                one.add_argument("--deadline-seconds", type=int, default=None, help="by when it must have ended")

    def handle(self, *args: Any, **options: Any) -> None:
        """Does it and says how the worker is now. Raises CommandError with one sentence when it is refused."""
        if options["verb"] == "list":
            self._list(everybody=options["all"], archived=options["archived"])
            return
        worker = self._find(options["id"])
        try:
            changed = VERBS[options["verb"]](worker, options)
        except Refused as refusal:
            raise CommandError(str(refusal)) from refusal
        worker.refresh_from_db()
        if not changed:
            self.stdout.write(_("Nothing changed: it was so already, or has been asked for."))
        self.stdout.write(_line(worker, worker.health(db_now())))

    def _find(self, given: str) -> Worker:
        rows = Worker.objects.filter(pk=given) if is_id(given) else Worker.objects.alive().filter(name=given)
        found = list(rows.order_by("pk")[:2])
        if not found:
            raise CommandError(_("There is no worker %(id)s") % {"id": given})
        if len(found) > 1:
            raise CommandError(_("Several living workers are called %(name)s; name the id") % {"name": given})
        return found[0]

    def _list(self, *, everybody: bool, archived: bool) -> None:
        rows = Worker.objects.with_health()
        rows = rows.archived() if archived else rows.listed() if everybody else rows.alive()
        shown = list(rows.select_related("current_task").order_by("-pk")[:SHOWN])
        words = [word for word, _label in health.CHOICES]
        for worker in sorted(shown, key=lambda w: words.index(w.health_now) if w.health_now else len(words)):
            self.stdout.write(_line(worker, worker.health_now))
        if not shown:
            self.stdout.write(_("No worker."))


def _line(worker: Worker, how: str) -> str:
    """`01JD… ada-1  busy stalled  the-task  draining`."""
    parts = [worker.pk, worker.name, " ".join(filter(None, [worker.state, how]))]
    if worker.current_task is not None:
        parts.append(worker.current_task.key)
    if worker.stop_label and worker.stop_label != worker.state:
        parts.append(worker.stop_label)
    return "  ".join(parts)
