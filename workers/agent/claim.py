"""What the server handed out: one claim, read strictly where we rely on it and leniently where we do not."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from decimal import Decimal, InvalidOperation
from typing import Any

from workers.agent.tokens import Allowance, Rates

_COMMIT = re.compile(r"[0-9a-f]{40}(?:[0-9a-f]{24})?")
_PLACE = re.compile(r"(?:/|file:///|https?://)[^\x00-\x1f]+")
_CURRENCY = re.compile(r"[A-Z]{3}")
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
    """With which tool, and how. `model` is what the tool is to use, if it is told; the mappings are the adapter's."""

    id: str
    tool: str
    adapter: str
    model: str
    command: tuple[str, ...]
    env_allow: tuple[str, ...]
    input: Mapping[str, Any]
    constraints: Mapping[str, Any]
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Checkout:
    """Where to work: what git can fetch `commit` from, and the branch that the work is meant for.

    `url` is good on the server's machine; `address` is the same over HTTP, empty where the server does not say.
    """

    url: str
    commit: str
    branch: str
    address: str = ""


@dataclass(frozen=True)
class Claim:
    """One task of ours, until its lease ends. `allowance` is what it may spend, where money was set aside."""

    lease: Lease
    task: Task
    request: ExecutionRequest
    checkout: Checkout
    prompt: str
    allowance: Allowance | None


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
            model=_text(request, "model", ""),
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
            address=_text(checkout, "address", ""),
        ),
        prompt=_text(prompt, "text", "") if isinstance(prompt, Mapping) else "",
        allowance=_allowance(document),
    )


def _allowance(document: Mapping[str, Any]) -> Allowance | None:
    """What is left of the reservation, and the most that tokens can cost: `price_ceiling`, per million and class.

    Without a ceiling in the reservation's own currency nothing is measured here; the server still keeps the books.
    """
    reservation, ceiling = _mapping(document, "reservation"), _mapping(document, "price_ceiling")
    if not reservation:
        return None
    currency = _matching(reservation, "currency", _CURRENCY, "three capital letters")
    amount = _decimal(reservation, "amount") - _decimal(reservation, "used", "0")
    if amount <= 0:
        raise InvalidRequest("amount of the reservation must be above what is used of it")
    rates = None
    if ceiling and ceiling.get("currency") == currency:
        rates = Rates(**{field.name: _decimal(ceiling, field.name) for field in fields(Rates)})
    return Allowance(amount=amount, currency=currency, rates=rates)


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


def _decimal(document: Mapping[str, Any], name: str, default: str | None = None) -> Decimal:
    value = _text(document, name, default)
    try:
        number = Decimal(value)
    except InvalidOperation:
        raise InvalidRequest(f"{name} must be a decimal number as a text") from None
    if not number.is_finite() or number < 0:
        raise InvalidRequest(f"{name} must be 0 or more")
    return number


def _folder_name(document: Mapping[str, Any], name: str) -> str:
    return _matching(document, name, _FOLDER_NAME, "an id")


def _matching(document: Mapping[str, Any], name: str, form: re.Pattern[str], wanted: str) -> str:
    value = _text(document, name)
    if form.fullmatch(value) is None:
        raise InvalidRequest(f"{name} must be {wanted}")
    return value
