"""Keys, memberships and who am I over HTTP, and the command that makes the first key."""

import json
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.test import Client
from django.utils import timezone

from pipeline.models import ApiKey, Event
from tests import factories

pytestmark = pytest.mark.django_db
KEYS = "/api/v1/keys/"


def with_key(text: str) -> Client:
    """A client that comes with this key."""
    return Client(headers={"authorization": f"Bearer {text}"})


def post(client: Client, path: str, body: Any) -> Any:
    """The answer to a JSON body."""
    return client.post(path, json.dumps(body), content_type="application/json")


def test_a_key_is_shown_once_and_works_until_it_is_revoked() -> None:
    project = factories.make_project()
    admin = with_key(factories.make_key("admin", project=project).text)

    made = post(admin, KEYS, {"name": "agent", "role": "viewer", "project": project.key}).json()
    agent = with_key(made["key"])

    assert agent.get("/api/v1/me/").json()["roles"] == {project.pk: "viewer"}
    shown = admin.get(f"{KEYS}{made['id']}/").json()
    assert "key" not in shown
    assert "secret_hash" not in shown
    assert made["key"].split("_", 2)[2] not in json.dumps(list(Event.objects.values("after", "data", "message")))
    assert admin.delete(f"{KEYS}{made['id']}/").status_code == 204
    assert agent.get("/api/v1/me/").status_code == 401
    assert admin.delete(f"{KEYS}{made['id']}/").status_code == 204


def test_nobody_makes_a_key_beyond_his_own_reach() -> None:
    project, other = factories.make_project(), factories.make_project()
    admin = with_key(factories.make_key("admin", project=project).text)
    before = ApiKey.objects.count()

    assert post(admin, KEYS, {"name": "all", "role": "viewer"}).status_code == 403
    assert post(admin, KEYS, {"name": "x", "role": "viewer", "project": other.key}).status_code == 404
    approver = with_key(factories.make_key("approver", project=project).text)
    assert post(approver, KEYS, {"name": "x", "role": "admin", "project": project.key}).status_code == 403
    assert ApiKey.objects.count() == before + 1


@pytest.mark.parametrize(
    ("role", "days", "good"),
    [("worker", 89, True), ("worker", 91, False), ("viewer", 900, True), ("viewer", -1, False)],
)
def test_the_life_of_a_key_is_bounded(role: str, days: int, good: bool) -> None:
    admin = with_key(factories.make_key("admin").text)
    end = (timezone.now() + timedelta(days=days)).isoformat()

    answer = post(admin, KEYS, {"name": "k", "role": role, "expires_at": end})

    assert answer.status_code == (201 if good else 422)
    if not good:
        assert answer.json()["errors"][0]["field"] == "expires_at"


def test_a_worker_may_ask_who_it_is_and_nothing_else_here() -> None:
    worker = with_key(factories.make_key("worker", project=factories.make_project()).text)

    me = worker.get("/api/v1/me/").json()

    assert (me["is_worker"], me["roles"], me["everywhere"]) == (True, {}, "")
    assert me["expires_at"] is not None
    for path in ("runs/", "projects/", "events/", "tools/", "keys/", "prompts/"):
        assert worker.get(f"/api/v1/{path}").status_code == 403


def test_a_person_is_made_a_member_by_name_and_sees_the_project() -> None:
    project, person = factories.make_project(), factories.make_user(username="ada")
    client = Client()
    client.force_login(person)
    assert client.get(f"/api/v1/projects/{project.key}/").status_code == 404
    admin = with_key(factories.make_key("admin", project=project).text)

    made = post(admin, "/api/v1/memberships/", {"project": project.key, "user": "ada", "role": "viewer"})

    assert (made.status_code, made.json()["user"]) == (201, person.pk)
    assert client.get(f"/api/v1/projects/{project.key}/").status_code == 200
    assert post(admin, "/api/v1/memberships/", {"project": project.key, "user": "ada", "role": "admin"}).json()[
        "code"
    ] in ("duplicate_key", "conflict")
    assert (
        post(admin, "/api/v1/memberships/", {"project": project.key, "user": "bob", "role": "admin"}).json()["code"]
        == "user_not_found"
    )


def test_createkey_prints_a_working_key_as_its_last_word() -> None:
    project = factories.make_project(key="demo")
    out = StringIO()

    call_command("createkey", "--role", "operator", "--project", "demo", "--name", "ci", "--days", "3", stdout=out)

    client = with_key(out.getvalue().split()[-1])
    me = client.get("/api/v1/me/").json()
    assert (me["name"], me["roles"]) == ("ci", {project.pk: "operator"})
    row = ApiKey.objects.get()
    assert row.expires_at is not None
    assert timedelta(days=2) < row.expires_at - timezone.now() < timedelta(days=4)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--role", "worker", "--project", "nowhere"],
        ["--role", "worker", "--days", "91"],
        ["--role", "viewer", "--days", "0"],
        ["--role", "king"],
        [],
    ],
)
def test_createkey_refuses_what_cannot_be(arguments: list[str]) -> None:
    with pytest.raises(CommandError):
        call_command("createkey", *arguments)

    assert not ApiKey.objects.exists()
