"""Whatever stands in a field, the API answers with a refusal that names it, or takes it; it never breaks."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import transaction
from django.test import Client

from pipeline.ids import new_id
from tests import factories

NASTY: list[Any] = [None, True, -1, 2**70, 1.5, "", "x" * 70_000, [None], [{}], {"a": {"b": []}}, ["**", 5]]


def project() -> dict[str, Any]:
    return {"key": "p", "name": "P", "repository_url": "/r", "default_branch": "main", "custody": "managed",
            "domain": "mixed", "profile": {}, "currency": "USD", "sandbox_level_min": 1, "error_phase": None,
            "archived_at": None, "id": new_id()}  # fmt: skip


def phase() -> dict[str, Any]:
    return {"project": factories.make_project().key, "key": "a", "name": "A", "category": "c", "sequence": 1,
            "depends_on": [], "resource_scope": {"write": ["src/**"]}, "constraints": {}, "acceptance": {},
            "allowed_tools": [], "disallowed_tools": [], "is_error_phase": False}  # fmt: skip


def workstream() -> dict[str, Any]:
    return {"phase": factories.make_phase().pk, "key": "w", "name": "W", "objective": "O",
            "tasks": [factories.task_spec()], "description": "", "category": "", "tags": [], "depends_on": [],
            "resource_scope": {}, "constraints": {}, "acceptance": {}, "concurrency": {}, "error_handling": {},
            "enabled": True}  # fmt: skip


def tool() -> dict[str, Any]:
    return {"key": "t", "kind": "tool", "adapter": "shell", "command": ["true"],
            "capabilities": {"task_kinds": ["research"]}, "max_parallel": 1, "timeout_seconds": 1, "model": "m",
            "safety_tier": "low", "account": "a", "priced": False, "order": 1, "enabled": True,
            "env_allow": []}  # fmt: skip


def membership() -> dict[str, Any]:
    return {"project": factories.make_project().pk, "user": factories.make_user().pk, "role": "viewer"}


def key() -> dict[str, Any]:
    return {"name": "k", "role": "viewer", "project": None, "expires_at": "2099-01-01T00:00:00Z"}


def run() -> dict[str, Any]:
    return {"phase": factories.make_phase().pk, "tasks": [factories.task_spec()], "start": False, "id": new_id(),
            "trigger_type": "ci", "trigger_ref": "x", "metadata": {}}  # fmt: skip


def step() -> dict[str, Any]:
    return {"run": factories.make_run().pk, "start": False, "sequence": 4, "tool": None, "input_prompt": "x",
            "metadata": {}}  # fmt: skip


def hold() -> dict[str, Any]:
    return {"scope_kind": "project", "scope_id": factories.make_project().key, "kind": "manual", "reason": "r",
            "until": None, "question": None, "suggested_action": None}  # fmt: skip


def event() -> dict[str, Any]:
    return {"kind": "note.added", "id": "x", "status": "", "severity": "info", "run": factories.make_run().pk,
            "worker": new_id(), "patch": new_id(), "gate_run": new_id(), "reason": "", "message": "m",
            "data": {}}  # fmt: skip


BODIES: dict[str, Callable[[], dict[str, Any]]] = {
    "projects": project,
    "phases": phase,
    "workstreams": workstream,
    "tools": tool,
    "memberships": membership,
    "keys": key,
    "runs": run,
    "steps": step,
    "holds": hold,
    "events": event,
}


@pytest.fixture
def root(db: None) -> Client:
    """Whoever comes with a key of the installation's admin."""
    return Client(headers={"authorization": f"Bearer {factories.make_key('admin').text}"})


def status_of(client: Client, path: str, body: Any) -> tuple[int, str]:
    """The status and code of a POST whose effects are undone."""
    with transaction.atomic():
        answer = client.post(path, json.dumps(body), content_type="application/json")
        transaction.set_rollback(True)
    return answer.status_code, answer.json().get("code", "")


@pytest.mark.parametrize("noun", BODIES)
def test_no_value_in_any_field_breaks_the_api(noun: str, root: Client) -> None:
    body, path = BODIES[noun](), f"/api/v1/{noun}/"
    assert status_of(root, path, body)[0] == 201, root.post(
        path, json.dumps(body), content_type="application/json"
    ).json()

    broken = []
    for field in body:
        for value in NASTY:
            status, code = status_of(root, path, {**body, field: value})
            if status >= 500 or status in (401, 403, 405):
                broken.append((field, value if not isinstance(value, str) else value[:20], status, code))

    assert not broken


@pytest.mark.parametrize("where", ["tasks", "resource_scope", "constraints", "concurrency", "error_handling"])
def test_nothing_inside_a_workstreams_documents_breaks_the_api(where: str, root: Client) -> None:
    body = workstream()
    names = {
        "tasks": ["task_id", "name", "kind", "depends_on", "priority", "is_critical", "execution", "file_scope",
                  "constraints", "conflict_group", "error_handling", "estimate", "requires_patch", "constraint_delta",
                  "delta", "scope", "unknown"],
        "resource_scope": ["read", "write", "create", "forbidden", "unknown"],
        "constraints": ["max_lines_changed", "timeout_seconds", "allowed_tools", "patch_only", "patch", "unknown"],
        "concurrency": ["mode", "max_parallel", "unknown"],
        "error_handling": ["strategy", "on_failure", "unknown"],
    }[where]  # fmt: skip

    broken = []
    for name in names:
        for value in NASTY:
            inner = [{**factories.task_spec(), name: value}] if where == "tasks" else {name: value}
            status, code = status_of(root, "/api/v1/workstreams/", {**body, where: inner})
            if status >= 500:
                broken.append((name, value if not isinstance(value, str) else value[:20], status, code))

    assert not broken


@pytest.mark.parametrize("verb", ["start", "complete", "cancel", "quarantine", "hold", "release", "retry"])
def test_no_body_breaks_a_verb_of_a_run(verb: str, root: Client) -> None:
    path = f"/api/v1/runs/{factories.make_run().pk}/{verb}/"

    answers = {
        name: [status_of(root, path, value if name == "" else {name: value})[0] for value in NASTY[::2]]
        for name in ("", "reason", "status", "exit_code", "start", "unknown")
    }

    assert {status for found in answers.values() for status in found} <= {200, 201, 400, 409, 422}
    assert set(answers["unknown"]) == {400}
