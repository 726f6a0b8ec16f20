"""Who may ask what: for every address of the API by its name, the role that each method needs.

A role is VIEWER … ADMIN (held in the row's project), WORKER (a worker's key), SIGNED_IN (anybody with a key or session),
INSTALLATION (its admin), or a tuple of these. `OBJECTS` makes, for every router name (`run` of `run-detail`), a row in the
world's project and answers the keyword arguments of its address. Rows of the names in `SHARED` belong to no project.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.models import ApiKey, Project
from tests import factories

VIEWER, OPERATOR, APPROVER, ADMIN = "viewer", "operator", "approver", "admin"
WORKER, SIGNED_IN, INSTALLATION = "worker", "signed in", "installation"

Role = str | tuple[str, ...]


@dataclass
class World:
    """What a row of the matrix stands in: a project, and the worker's key that asks."""

    project: Project
    worker_key: ApiKey


CRUD: dict[str, dict[str, Role]] = {
    "list": {"get": VIEWER, "post": ADMIN},
    "detail": {"get": VIEWER, "patch": ADMIN, "delete": ADMIN},
}

EXPECTED: dict[str, dict[str, Role]] = {
    # pipeline
    "project-list": {"get": VIEWER, "post": INSTALLATION},
    "project-detail": CRUD["detail"],
    "phase-list": CRUD["list"],
    "phase-detail": CRUD["detail"],
    "workstream-list": CRUD["list"],
    "workstream-detail": CRUD["detail"],
    "workstream-plan": {"get": VIEWER},
    "tool-list": {"get": VIEWER, "post": INSTALLATION},
    "tool-detail": {"get": VIEWER, "patch": INSTALLATION, "delete": INSTALLATION},
    "membership-list": CRUD["list"],
    "membership-detail": CRUD["detail"],
    "key-list": {"get": ADMIN, "post": ADMIN},
    "key-detail": {"get": ADMIN, "delete": ADMIN},
    "me-list": {"get": SIGNED_IN},
    "run-list": {"get": VIEWER, "post": OPERATOR},
    "run-detail": {"get": VIEWER},
    "run-start": {"post": OPERATOR},
    "run-complete": {"post": OPERATOR},
    "run-cancel": {"post": OPERATOR},
    "run-quarantine": {"post": OPERATOR},
    "run-hold": {"post": OPERATOR},
    "run-release": {"post": APPROVER},
    "run-retry": {"post": OPERATOR},
    "run-progress": {"get": VIEWER},
    "run-events": {"get": VIEWER},
    "task-list": {"get": VIEWER},
    "task-detail": {"get": VIEWER},
    "task-cancel": {"post": OPERATOR},
    "task-retry": {"post": OPERATOR},
    "step-list": {"get": VIEWER, "post": OPERATOR},
    "step-detail": {"get": VIEWER},
    "step-start": {"post": OPERATOR},
    "step-complete": {"post": OPERATOR},
    "step-cancel": {"post": OPERATOR},
    "request-list": {"get": VIEWER},
    "request-detail": {"get": VIEWER},
    "prompt-list": {"get": VIEWER},
    "prompt-detail": {"get": VIEWER},
    "routing-decision-list": {"get": VIEWER},
    "routing-decision-detail": {"get": VIEWER},
    "hold-list": {"get": VIEWER, "post": OPERATOR},
    "hold-detail": {"get": VIEWER},
    "hold-release": {"post": APPROVER},
    "event-list": {"get": VIEWER, "post": (OPERATOR, WORKER)},
    "event-detail": {"get": VIEWER},
    "schema": {"get": SIGNED_IN},
    "docs": {"get": SIGNED_IN},
}

OBJECTS: dict[str, Callable[[World], dict[str, Any]]] = {
    "project": lambda world: {"id": world.project.pk},
    "phase": lambda world: {"id": factories.make_phase(world.project).pk},
    "tool": lambda world: {"id": factories.make_tool().pk},
}

SHARED: set[str] = {"tool"}
