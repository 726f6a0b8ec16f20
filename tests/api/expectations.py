"""Who may ask what: for every address of the API by its name, the role that each method needs.

A role is VIEWER … ADMIN (held in the row's project), WORKER (a worker's key), SIGNED_IN (anybody with a key or a
session), INSTALLATION (its admin), or a tuple of these. `OBJECTS` makes, for every router name (`run` of `run-detail`),
a row in the world's project and answers the keyword arguments of its address; a row that only an address of that full
name needs stands under the full name. Rows of the names in `SHARED` belong to no project.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ledger.models import Patch, Receipt, Seal
from pipeline.clock import db_now
from pipeline.events import START
from pipeline.models import (
    ApiKey,
    Delivery,
    Event,
    ExecutionRequest,
    NotificationRule,
    Project,
    PromptInstance,
    RoutingDecision,
    Subscription,
    Task,
    WebhookEndpoint,
)
from tests import factories
from workers.models import Lease

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
    "task-blockers": {"get": VIEWER},
    "task-cancel": {"post": OPERATOR},
    "blocker-list": {"get": VIEWER},
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
    "event-list": {"get": VIEWER, "post": OPERATOR},
    "event-detail": {"get": VIEWER},
    "event-stream": {"get": VIEWER},
    "failed-reaction-list": {"get": VIEWER},
    "failed-reaction-detail": {"get": VIEWER},
    "failed-reaction-replay": {"post": OPERATOR},
    "failed-reaction-drop": {"post": OPERATOR},
    "notification-rule-list": {"get": ADMIN, "post": ADMIN},
    "notification-rule-detail": {"get": ADMIN, "patch": ADMIN, "delete": ADMIN},
    "notification-rule-pause": {"post": ADMIN},
    "notification-rule-resume": {"post": ADMIN},
    "notification-rule-test": {"post": ADMIN},
    "subscription-list": CRUD["list"],
    "subscription-detail": CRUD["detail"],
    "subscription-pull": {"get": VIEWER},
    "subscription-ack": {"post": OPERATOR},
    "subscription-replay": {"post": ADMIN},
    "subscription-pause": {"post": ADMIN},
    "subscription-resume": {"post": ADMIN},
    "webhook-list": {"get": ADMIN, "post": ADMIN},
    "webhook-detail": {"get": ADMIN, "patch": ADMIN, "delete": ADMIN},
    "webhook-rotate": {"post": ADMIN},
    "webhook-retire-old": {"post": ADMIN},
    "webhook-enable": {"post": ADMIN},
    "webhook-disable": {"post": ADMIN},
    "delivery-list": {"get": ADMIN},
    "delivery-detail": {"get": ADMIN},
    "delivery-redeliver": {"post": ADMIN},
    # workers
    "worker-list": {"get": VIEWER, "post": WORKER},
    "worker-detail": {"get": VIEWER},
    "worker-heartbeat": {"post": WORKER},
    "worker-heartbeats": {"post": WORKER},
    "worker-claim": {"post": WORKER},
    "worker-assign": {"post": OPERATOR},
    "worker-pause": {"post": OPERATOR},
    "worker-resume": {"post": OPERATOR},
    "worker-shutdown": {"post": (WORKER, OPERATOR)},
    "worker-crash": {"post": (WORKER, OPERATOR)},
    "lease-list": {"get": VIEWER},
    "lease-detail": {"get": VIEWER},
    "lease-complete": {"post": WORKER},
    "lease-fail": {"post": WORKER},
    "lease-extend": {"post": WORKER},
    # ledger
    "patch-list": {"get": VIEWER, "post": (OPERATOR, WORKER)},
    "patch-detail": {"get": VIEWER},
    "patch-diff": {"get": VIEWER},
    "patch-history": {"get": VIEWER},
    "patch-validate": {"post": OPERATOR},
    "patch-queue": {"post": OPERATOR},
    "patch-requeue": {"post": OPERATOR},
    "patch-apply": {"post": OPERATOR},
    "patch-verify": {"post": OPERATOR},
    "patch-commit": {"post": OPERATOR},
    "patch-quarantine": {"post": OPERATOR},
    "patch-drop": {"post": OPERATOR},
    "patch-release": {"post": APPROVER},
    "patch-rollback": {"post": APPROVER},
    "patch-bulk": {"post": OPERATOR},
    "patch-approve": {"post": APPROVER},
    "patch-reject": {"post": APPROVER},
    "patch-reviews": {"get": VIEWER, "post": OPERATOR},
    "patch-interdiff": {"get": VIEWER},
    "patch-requirements": {"get": VIEWER},
    "patch-overrides": {"get": VIEWER, "post": ADMIN},
    "remote-list": {"get": VIEWER, "post": INSTALLATION},
    "remote-detail": {"get": VIEWER, "patch": INSTALLATION, "delete": INSTALLATION},
    "push-list": {"get": VIEWER},
    "push-detail": {"get": VIEWER},
    "receipt-list": {"get": VIEWER},
    "receipt-detail": {"get": VIEWER},
    "receipt-statement": {"get": VIEWER},
    "project-fetch": {"post": OPERATOR},
    "merge-queue-list": {"get": VIEWER},
    "merge-queue-detail": {"get": VIEWER},
    "merge-queue-of-branch": {"get": VIEWER},
    "merge-queue-pause": {"post": OPERATOR},
    "merge-queue-resume": {"post": OPERATOR},
    "policy-list": CRUD["list"],
    "policy-detail": CRUD["detail"],
    "policy-replay": {"get": VIEWER},
    "project-policy": {"get": VIEWER},
    "seal-list": {"get": VIEWER},
    "seal-detail": {"get": VIEWER},
    # gates
    "gate-list": CRUD["list"],
    "gate-detail": CRUD["detail"],
    "gate-run-list": {"get": VIEWER, "post": OPERATOR},
    "gate-presets": {"get": VIEWER},
    "flaky-test-list": {"get": VIEWER, "post": APPROVER},
    "flaky-test-detail": {"get": VIEWER, "patch": APPROVER, "delete": APPROVER},
    "flaky-test-release": {"post": APPROVER},
    "gate-run-detail": {"get": VIEWER},
    "gate-run-results": {"get": VIEWER},
    "gate-run-findings": {"get": VIEWER},
    "gate-run-log": {"get": VIEWER},
    "gate-run-log-stream": {"get": VIEWER},
    "gate-run-start": {"post": OPERATOR},
    "gate-run-evidence": {"post": OPERATOR},
    "gate-run-complete": {"post": OPERATOR},
    "gate-run-skip": {"post": APPROVER},
    "gate-run-waive": {"post": APPROVER},
    "gate-run-revoke-waiver": {"post": APPROVER},
    "gate-run-rerun": {"post": OPERATOR},
    # costs
    "cost-list": {"get": VIEWER, "post": (OPERATOR, WORKER)},
    "cost-detail": {"get": VIEWER, "delete": ADMIN},
    "cost-void": {"post": ADMIN},
    "cost-summary": {"get": VIEWER},
    "cost-landed": {"get": VIEWER},
    "cost-truth": {"get": VIEWER},
    "cost-statement": {"get": VIEWER},
    "cost-export": {"get": VIEWER},
    "price-list": {"get": VIEWER, "post": INSTALLATION},
    "price-detail": {"get": VIEWER, "patch": INSTALLATION, "delete": INSTALLATION},
    "price-supersede": {"post": INSTALLATION},
    "price-reprice": {"post": INSTALLATION},
    "budget-list": CRUD["list"],
    "budget-detail": CRUD["detail"],
    "budget-change-limit": {"post": ADMIN},
    "budget-standing": {"get": VIEWER},
    "reservation-list": {"get": VIEWER, "post": OPERATOR},
    "reservation-detail": {"get": VIEWER},
    "reservation-settle": {"post": OPERATOR},
    "reservation-release": {"post": OPERATOR},
    "schema": {"get": SIGNED_IN},
}


def in_project(world: World) -> dict[str, Any]:
    """What a run needs to stand in the world's project."""
    return {"workstream": factories.make_workstream(factories.make_phase(world.project))}


def attempt_of(world: World) -> tuple[Task, ExecutionRequest]:
    """A task of the project and what an attempt at it was asked to do."""
    run = factories.make_run(**in_project(world))
    task = run.tasks.get()
    request = ExecutionRequest.objects.create(
        project=world.project,
        phase=run.phase,
        task=task,
        task_kind="research",
        tool=factories.make_tool(),
        created_by="t",
    )
    return task, request


def prompt_of(world: World) -> PromptInstance:
    """What a tool was told in the project."""
    return PromptInstance.objects.create(
        project=world.project,
        template_id="t",
        target_tool="shell",
        kind="research",
        sections={},
        text="x",
        sha256="0" * 64,
    )


def decision_of(world: World) -> RoutingDecision:
    """Why a task of the project went to a tool."""
    task, request = attempt_of(world)
    return RoutingDecision.objects.create(
        task=task, run=task.run, request=request, strategy="fixed", candidates=[], chosen=request.tool, reason="first"
    )


def _lease(world: World) -> Lease:
    """A live lease of one of the world's workers on a task of its project."""
    run = factories.make_run(factories.make_workstream(factories.make_phase(world.project)), started=True)
    return factories.make_lease(factories.make_worker(api_key=world.worker_key), factories.make_task(run))


def _patch(world: World) -> Patch:
    """A created patch of a project whose branch has its queue."""
    patch = factories.make_patch(world.project)
    factories.make_merge_queue(world.project)
    return patch


def _notification_rule(world: World) -> NotificationRule:
    """A rule of the project whose day is over: the matrix sends nothing to anybody."""
    key = f"s-{factories.number()}"
    subscription = Subscription.objects.add(by=factories.BY, key=key, project=world.project, patterns=["run.*"])
    rule = NotificationRule.objects.add(
        by=factories.BY, key=key, project=world.project, subscription=subscription,
        target="json://example.org/x", max_per_day=1,
    )  # fmt: skip
    NotificationRule.objects.update(sent_on=db_now().date(), sent_today=1)
    return rule


def _subscription(world: World) -> Subscription:
    """A subscription of the project."""
    key = f"s{factories.number()}"
    return Subscription.objects.add(by=factories.BY, key=key, project=world.project, patterns=["*"])


def _webhook(world: World) -> WebhookEndpoint:
    """A webhook of the project."""
    return WebhookEndpoint.objects.add(
        by=factories.BY, subscription=_subscription(world), url="https://hooks.example.org/in"
    )


def _delivery(world: World) -> Delivery:
    """An event of the project on its way to its webhook."""
    event = Event.objects.filter(project_id=world.project.pk).latest("id")
    return Delivery.objects.create(endpoint=_webhook(world), event=event)


def _receipt(world: World) -> Receipt:
    """What is kept about a landed patch of the project."""
    patch = factories.in_state(factories.make_patch(world.project), "committed")
    return Receipt.objects.keep(patch, "{}", by=factories.BY)[0]


OBJECTS: dict[str, Callable[[World], dict[str, Any]]] = {
    "subscription": lambda world: {"id": _subscription(world).pk},
    "webhook": lambda world: {"id": _webhook(world).pk},
    "delivery": lambda world: {"id": _delivery(world).pk},
    "project": lambda world: {"id": world.project.pk},
    "phase": lambda world: {"id": factories.make_phase(world.project).pk},
    "workstream": lambda world: {"id": in_project(world)["workstream"].pk},
    "tool": lambda world: {"id": factories.make_tool().pk},
    "worker": lambda world: {"id": factories.make_worker(api_key=world.worker_key).pk},
    "worker-heartbeats": lambda world: {},
    "lease": lambda world: {"id": _lease(world).pk},
    "patch": lambda world: {"id": _patch(world).pk},
    "patch-bulk": lambda world: {},
    "remote": lambda world: {"id": factories.make_remote(world.project).pk},
    "project-fetch": lambda world: {"project": factories.make_remote(world.project).project.key},
    "push": lambda world: {"id": factories.make_push(world.project).pk},
    "receipt": lambda world: {"id": _receipt(world).pk},
    "merge-queue": lambda world: {"id": factories.make_merge_queue(world.project).pk},
    "merge-queue-of-branch": lambda world: {
        "project": world.project.key,
        "branch": factories.make_merge_queue(world.project, target_branch="release/1.x").target_branch,
    },
    "seal": lambda world: {"id": Seal.objects.write(None, START, "2026-01", [bytes(32)]).pk},
    "project-policy": lambda world: {"project": world.project.key},
    "policy": lambda world: {"id": factories.make_policy(project=world.project).pk},
    "gate": lambda world: {"id": factories.make_gate(world.project).pk},
    "gate-presets": lambda world: {"project": world.project.key},
    "flaky-test": lambda world: {"id": factories.make_flaky_test(world.project).pk},
    "gate-run": lambda world: {"id": factories.make_gate_run(factories.make_gate(world.project)).pk},
    "cost": lambda world: {"id": factories.make_cost(project=world.project).pk},
    "cost-summary": lambda world: {},
    "cost-landed": lambda world: {},
    "cost-truth": lambda world: {},
    "cost-statement": lambda world: {},
    "cost-export": lambda world: {},
    "budget": lambda world: {"id": factories.make_budget(world.project).pk},
    "reservation": lambda world: {"id": factories.make_reservation(world.project).pk},
    "price-reprice": lambda world: {},
    "price": lambda world: {"id": factories.make_price().pk},
    "membership": lambda world: {"id": factories.make_membership(project=world.project).pk},
    "key": lambda world: {"id": factories.make_key("viewer", project=world.project).row.pk},
    "run": lambda world: {"id": factories.make_run(**in_project(world)).pk},
    "task": lambda world: {"id": factories.make_run(**in_project(world)).tasks.get().pk},
    "step": lambda world: {"id": factories.make_step(factories.make_run(**in_project(world))).pk},
    "request": lambda world: {"id": attempt_of(world)[1].pk},
    "prompt": lambda world: {"id": prompt_of(world).pk},
    "routing-decision": lambda world: {"id": decision_of(world).pk},
    "hold": lambda world: {"id": factories.make_hold(scope_id=world.project.pk, project=world.project).pk},
    "failed-reaction": lambda world: {"id": factories.make_failed_reaction(world.project).pk},
    "notification-rule": lambda world: {"id": _notification_rule(world).pk},
    "event-stream": lambda world: {},
    "event": lambda world: {"id": Event.objects.filter(project_id=world.project.pk).latest("id").pk},
}

SHARED: set[str] = {"tool", "price", "seal"}
