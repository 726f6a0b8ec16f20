"""Every endpoint of the API, asked with every method by everybody: who is let in is what the table says."""

from collections.abc import Iterator
from typing import Any

import pytest
from django.db import transaction
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse

from pipeline.models import ROLES
from tests import factories
from tests.api.expectations import (
    EXPECTED,
    INSTALLATION,
    OBJECTS,
    SHARED,
    SIGNED_IN,
    VIEWER,
    WORKER,
    Role,
    World,
)

pytestmark = pytest.mark.django_db

PAGES = {"docs"}
"""What stands under the API's prefix for browsers."""

CALLERS = ("nobody", *ROLES, "stranger", "installation", "worker")


def endpoints() -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Every API address: its name, the name of its router, and the methods that it takes."""

    def walk(patterns: list[Any], prefix: str) -> Iterator[tuple[str, URLPattern]]:
        for pattern in patterns:
            route = prefix + str(pattern.pattern)
            if isinstance(pattern, URLResolver):
                yield from walk(pattern.url_patterns, route)
            elif route.startswith("api/"):
                yield route, pattern

    for route, pattern in walk(get_resolver().url_patterns, ""):
        assert pattern.name, f"{route} has no name"
        if pattern.name in PAGES:
            continue
        actions = getattr(pattern.callback, "actions", {"get": "get"})
        initkwargs = getattr(pattern.callback, "initkwargs", {})
        methods = tuple(method for method in actions if method != "head")
        yield pattern.name, str(initkwargs.get("basename", "")), methods


CASES = [(name, base, method) for name, base, methods in endpoints() for method in methods]


def test_every_endpoint_has_an_expectation_and_no_other() -> None:
    asked = {(name, method) for name, _base, method in CASES}
    told = {(name, method) for name, methods in EXPECTED.items() for method in methods}

    assert told == asked


@pytest.fixture
def world() -> World:
    """A project and a worker's key in it."""
    project = factories.make_project()
    return World(project, factories.make_key("worker", project=project).row)


def ask(name: str, method: str, kwargs: dict[str, Any], text: str) -> Any:
    """The answer to a request without a body, its effects undone."""
    headers = {"authorization": f"Bearer {text}"} if text else {}
    with transaction.atomic():
        answer = getattr(Client(headers=headers), method)(
            reverse(name, kwargs=kwargs), **({} if method == "get" else {"content_type": "application/json"})
        )
        transaction.set_rollback(True)
    return answer


def text_of(caller: str, world: World) -> str:
    """The key with which this caller comes."""
    if caller == "nobody":
        return ""
    if caller == "stranger":
        return factories.make_key("admin", project=factories.make_project()).text
    if caller == "installation":
        return factories.make_key("admin").text
    made = factories.make_key("operator" if caller == "worker" else caller, project=world.project)
    if caller != "worker":
        return made.text
    # The key of the world is the one whose workers the rows belong to: it is given a text that we know.
    prefix, secret = "abcd1234", made.text.split("_", 2)[2]
    type(made.row).objects.filter(pk=world.worker_key.pk).update(prefix=prefix, secret_hash=made.row.secret_hash)
    return f"sbx_{prefix}_{secret}"


def may(caller: str, needed: Role, *, shared: bool, listing: bool) -> set[int] | None:
    """The statuses with which this caller is turned away; None when it is let in."""
    roles = (needed,) if isinstance(needed, str) else needed
    if caller == "nobody":
        return {401}
    if SIGNED_IN in roles:
        return None
    if caller == "worker":
        return None if WORKER in roles else {403}
    if caller == "installation":
        return {403} if roles == (WORKER,) else None
    held = ["stranger"] if caller == "stranger" else list(ROLES[: ROLES.index(caller) + 1])
    if caller == "stranger":
        if shared:
            return None if VIEWER in roles else {403}
        if listing:  # it may ask; what it sees and makes is in its own project
            return {403} if roles in ((WORKER,), (INSTALLATION,)) else None
        return {403} if roles in ((WORKER,), (INSTALLATION,)) else {404}
    return None if any(role in held for role in roles) else {403}


@pytest.mark.parametrize(("name", "base", "method"), CASES, ids=[f"{c[0]}-{c[2]}" for c in CASES])
def test_everybody_is_let_in_or_turned_away_as_the_table_says(name: str, base: str, method: str, world: World) -> None:
    needed = EXPECTED[name][method]
    detail = name in OBJECTS or (not name.endswith("-list") and base != "")
    kwargs = OBJECTS.get(name, OBJECTS.get(base, lambda _world: {}))(world) if detail else {}
    wrong = []
    for caller in CALLERS:
        answer = ask(name, method, kwargs, text_of(caller, world))
        away = may(caller, needed, shared=base in SHARED, listing=not kwargs)
        status = answer.status_code
        expected = status in away if away else status < 500 and status not in (401, 403, 404, 405)
        if not expected:
            wrong.append(f"{caller}: {status}, expected {away or 'to be let in'}: {answer.content[:200]!r}")
        if status >= 400:
            assert answer["Content-Type"] == "application/problem+json"
            assert answer.json()["status"] == status
        if caller == "stranger" and method == "get" and status == 200 and "id" in kwargs and base not in SHARED:
            wrong.append("a stranger read it")

    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted({c[0] for c in CASES if c[0].endswith("-list") and c[2] == "get"}))
def test_a_list_shows_a_stranger_nothing_of_the_project(name: str, world: World) -> None:
    base = name.removesuffix("-list")
    made = OBJECTS[base](world) if base in OBJECTS else {}
    if "id" not in made or base in SHARED:
        return

    mine = ask(name, "get", {}, text_of("admin", world)).json()["results"]
    theirs = ask(name, "get", {}, text_of("stranger", world)).json()["results"]

    assert made["id"] in [row["id"] for row in mine]
    assert made["id"] not in [row["id"] for row in theirs]
