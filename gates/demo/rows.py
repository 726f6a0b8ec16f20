"""The demo's rows: made once, started once, and taken off the overview again, all by the house's verbs."""

import contextlib
import time
from collections.abc import Callable
from typing import Any

from django.apps import apps
from django.conf import settings
from django.db import transaction
from django.utils import timezone
from django.utils.translation import gettext as _

from gates.demo import plan, repository
from gates.models import Gate
from ledger import projects
from pipeline import events
from pipeline.models import ApiKey, Hold, Phase, Project, Run, Tool, Workstream
from pipeline.models.project import ProjectQuerySet
from pipeline.states import InvalidMove
from workers.models import Worker

BY = events.Actor("system", "", "demo")
MARK = {"demo": True}
"""What a project's profile holds when it is the demo's: pages show their notice by it."""

FOLDER = settings.DATA_DIR / "demo"

# How long `remove` waits for the agents to end by themselves: three of their heartbeats.
_FAREWELL_SECONDS = 9.0


def find() -> Project | None:
    """The demo's project; None when there is none, or none any more."""
    return every().live().first()


def every() -> ProjectQuerySet:
    """The demo's projects, the removed ones too, oldest first."""
    return Project.objects.filter(profile__contains=MARK).order_by("pk")


def was_removed() -> bool:
    """Whether there was a demo once, and it was taken away."""
    return find() is None and every().exists()


def set_up() -> Project:
    """The project with all that it needs, made as far as it is missing. Nothing is started.

    Raises Refused, or git.GitFailed when the sample repository cannot be made or mirrored.
    """
    for key in plan.TEMPER_OF:
        _set_up_tool(key)
    prices: Any = apps.get_model("costs", "Price")._default_manager
    if not prices.filter(**plan.PRICED).exists():
        prices.add(by=BY, **plan.PRICED, **plan.PRICE)
    project = find() or _register()
    phase = Phase.objects.filter(project=project, key="build").first() or Phase.objects.add(
        by=BY, project=project, key="build", **plan.PHASE
    )
    for key, fields in plan.GATES.items():
        if not Gate.objects.filter(project=project, key=key).exists():
            Gate.objects.add(by=BY, project=project, key=key, **fields)
    for key, fields in plan.WORKSTREAMS.items():
        if not Workstream.objects.filter(phase=phase, key=key).exists():
            Workstream.objects.add(by=BY, phase=phase, key=key, **fields)
    return project


def _set_up_tool(key: str) -> None:
    known = Tool.objects.filter(key=key).first()
    if known is None:
        Tool.objects.add(by=BY, key=key, **plan.tool(key))
    else:
        # The interpreter or the installation may have moved since, and a removal switches the tools off.
        known.edit(by=BY, command=plan.command_of(key), enabled=True)


def _register() -> Project:
    taken = set(Project.objects.filter(key__startswith="demo").values_list("key", flat=True))
    key = next(name for number in range(1, len(taken) + 2) if (name := _key(number)) not in taken)
    source = repository.make(FOLDER / "repository")
    profile = {**MARK, "available_tools": [{"tool_id": tool} for tool in plan.TEMPER_OF]}
    return projects.register(
        str(source), by=BY, key=key, name=_("Demo: a library that greets"), branch=repository.BRANCH, profile=profile
    )


def _key(number: int) -> str:
    return "demo" if number == 1 else f"demo-{number}"


def start_runs(project: Project) -> list[Run]:
    """A run of each of the demo's workstreams that never had one, started; the one that waits for a person is held."""
    started = []
    for workstream in Workstream.objects.filter(phase__project=project, key__in=plan.WORKSTREAMS).order_by("pk"):
        with transaction.atomic():
            # Two starts at once: the second waits here, and finds the run of the first.
            Workstream.objects.select_for_update(no_key=True, of=("self",)).get(pk=workstream.pk)
            if Run.objects.filter(workstream=workstream).exists():
                continue
            run = Run.objects.open(by=BY, workstream=workstream)
            run.start(by=BY)
            if workstream.key == plan.WAITING:
                run.hold(by=BY, reason=_("The owner of the library decides when 1.0 is released."))
            started.append(run)
    return started


def runs(project: Project) -> dict[str, Run]:
    """The newest run of each of the demo's workstreams, by the workstream's key."""
    rows = Run.objects.filter(project=project, workstream__key__in=plan.WORKSTREAMS).select_related("workstream")
    return {run.workstream.key: run for run in rows.order_by("pk") if run.workstream is not None}


def has_ended(project: Project) -> bool:
    """Whether nothing more happens without a person: the walk and the trespass have ended."""
    found = runs(project)
    return all(key in found and found[key].is_finished for key in (plan.WALK, plan.RISKY))


# -- the agents' keys ----------------------------------------------------------------------------------------------


def make_keys(project: Project) -> dict[str, str]:
    """A fresh worker's key for each agent, by tool; those of an earlier start end now, and so do its workers.

    The caller knows that no agent of an earlier start lives. A key's text is kept nowhere.
    """
    end_keys(project, reason="the agents are started anew")
    return {
        tool: ApiKey.objects.make(name=f"demo agent {tool}", role="worker", project=project, by=BY).text
        for tool in plan.TEMPER_OF
    }


def end_keys(project: Project, *, reason: str) -> None:
    """End the workers that still count as alive, so that what they held is due again now, and the agents' keys."""
    keys = ApiKey.objects.filter(project=project, role=ApiKey.Role.WORKER, created_by=BY.name, revoked_at=None)
    for worker in Worker.objects.alive().filter(api_key__in=keys).order_by("pk"):
        with contextlib.suppress(InvalidMove):  # it ended in between
            worker.shutdown(by=BY, reason=reason)
    for key in keys.order_by("pk"):
        key.revoke(by=BY, reason=reason)


# -- the end -------------------------------------------------------------------------------------------------------


def remove(project: Project, *, say: Callable[[str], object] = lambda line: None) -> None:
    """Archive the project, call its runs off, release its holds, end its agents and their keys, switch its tools off.

    What happened stays in the event log and the ledger, which nobody can shorten. Safe to repeat.
    """
    reason = "the demo is removed"
    if project.archived_at is None:
        project.edit(by=BY, archived_at=timezone.now())
    for run in Run.objects.of(project).active().order_by("pk"):
        run.cancel(by=BY, reason=reason)
    for hold in Hold.objects.active().filter(project=project).order_by("pk"):
        hold.release(by=BY, reason=reason)
    alive = Worker.objects.alive().filter(api_key__project=project)
    for worker in alive.order_by("pk"):
        with contextlib.suppress(InvalidMove):  # the agents' own program saw the project go, and was faster
            worker.request_shutdown(by=BY, mode="now", reason=reason)
    give_up_at = time.monotonic() + _FAREWELL_SECONDS
    while alive.exists() and time.monotonic() < give_up_at:
        time.sleep(0.2)
    end_keys(project, reason=reason)
    for tool in Tool.objects.filter(key__in=plan.TEMPER_OF).order_by("pk"):
        tool.edit(by=BY, enabled=False)
    say(_("The demo is removed: project %(key)s is archived and has left the overview.") % {"key": project.key})
    say(_("Its runs are called off, its holds released, its agents' keys revoked, its tools switched off."))
    say(_("Events, patches and costs are kept for ever by design: what happened stays in the books."))
