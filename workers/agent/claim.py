"""What the server handed out: one claim, read strictly where we rely on it and leniently where we do not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PLACE = re.compile(r"(?:/|file:///|https?://)[^\x00-\x1f]+")
_FOLDER_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


class InvalidRequest(ValueError):
    """The claim cannot be carried out as written; the message begins "Invalid request: "."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Invalid request: {reason}")


@dataclass(frozen=True)
class Lease:
    """The right to work on one task, and to report: every report quotes `id` and `generation`."""

    id: str
    generation: int
    attempt: str


@dataclass(frozen=True)
class Task:
    """What is to be done."""

    id: str
    key: str
    name: str
    kind: str
    run: str
    project: str
    requires_patch: bool
    timeout_seconds: float


@dataclass(frozen=True)
class ExecutionRequest:
    """With which tool, and how. `input`, `constraints` and `metadata` are the adapter's to read."""

    id: str
    tool: str
    adapter: str
    command: tuple[str, ...]
    env_allow: tuple[str, ...]
    input: Mapping[str, Any]
    constraints: Mapping[str, Any]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Checkout:
    """Where to work: what git can fetch `commit` from, and the branch that the work is meant for."""

    url: str
    commit: str
    branch: str


@dataclass(frozen=True)
class Claim:
    """One task of ours, until its lease ends."""

    lease: Lease
    task: Task
    request: ExecutionRequest
    checkout: Checkout
    prompt: str
    reservation: Mapping[str, Any] | None


def read_lease(document: Mapping[str, Any]) -> Lease:
    """The lease of a claim document, which is all that is needed to refuse the rest. Raises InvalidRequest."""
    lease = _object(document, "lease")
    return Lease(
        id=_folder_name(lease, "id"), generation=_integer(lease, "generation"), attempt=_text(lease, "attempt", "")
    )


def read(document: Mapping[str, Any]) -> Claim:
    """The claim of a 200 answer (api.md, `/workers/{id}/claim/`). Raises InvalidRequest naming the field."""
    task, request = _object(document, "task"), _object(document, "execution_request")
    checkout, prompt = _object(document, "checkout"), document.get("prompt")
    requires_patch = task.get("requires_patch", False)
    if not isinstance(requires_patch, bool):
        raise InvalidRequest("requires_patch must be true or false")
    timeout_seconds = task.get("timeout_seconds")
    if isinstance(timeout_seconds, bool) or not isinstance(timeout_seconds, int | float) or not timeout_seconds > 0:
        raise InvalidRequest("timeout_seconds must be a number above 0")
    reservation = document.get("reservation")
    return Claim(
        lease=read_lease(document),
        task=Task(
            id=_text(task, "id"),
            key=_text(task, "key", ""),
            name=_text(task, "name", ""),
            kind=_text(task, "kind"),
            run=_text(task, "run", ""),
            project=_text(task, "project"),
            requires_patch=requires_patch,
            timeout_seconds=float(timeout_seconds),
        ),
        request=ExecutionRequest(
            id=_text(request, "id"),
            tool=_text(request, "tool"),
            adapter=_text(request, "adapter"),
            command=_texts(request, "command"),
            env_allow=_texts(request, "env_allow"),
            input=_mapping(request, "input"),
            constraints=_mapping(request, "constraints"),
            metadata=_mapping(request, "metadata"),
        ),
        checkout=Checkout(
            url=_matching(checkout, "url", _PLACE, "an absolute path, or a file, http or https address"),
            commit=_matching(checkout, "commit", _COMMIT, "a full commit id"),
            branch=_text(checkout, "branch", ""),
        ),
        prompt=_text(prompt, "text", "") if isinstance(prompt, Mapping) else "",
        reservation=reservation if isinstance(reservation, Mapping) else None,
    )


def _object(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} is missing")
    return value


def _mapping(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = document.get(name)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise InvalidRequest(f"{name} must be an object")
    return value


def _text(document: Mapping[str, Any], name: str, default: str | None = None) -> str:
    value = document.get(name)
    if value is None and default is not None:
        return default
    if not isinstance(value, str) or (not value and default is None):
        raise InvalidRequest(f"{name} must be a text")
    return value


def _texts(document: Mapping[str, Any], name: str) -> tuple[str, ...]:
    value = document.get(name)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) and "\0" not in item for item in value):
        raise InvalidRequest(f"{name} must be a list of texts")
    return tuple(value)


def _integer(document: Mapping[str, Any], name: str) -> int:
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidRequest(f"{name} must be a whole number")
    return value


def _folder_name(document: Mapping[str, Any], name: str) -> str:
    return _matching(document, name, _FOLDER_NAME, "an id")


def _matching(document: Mapping[str, Any], name: str, form: re.Pattern[str], wanted: str) -> str:
    value = _text(document, name)
    if form.fullmatch(value) is None:
        raise InvalidRequest(f"{name} must be {wanted}")
    return value
