"""The API of remotes, pushes and receipts: who may, what is refused, and what comes back byte by byte."""

from pathlib import Path
from typing import Any

import pytest
from django.test import Client

from ledger.models import Receipt, Remote
from pipeline.models import Project
from tests import factories
from tests.api.asking import Api, refused
from tests.factories import BY
from tests.flows.house import House, piece

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    """A managed project without a mirror."""
    return factories.make_project()


@pytest.fixture
def admin() -> Api:
    """The installation's admin."""
    return Api(factories.make_key("admin").text)


def fields(project: Project, **more: Any) -> dict[str, Any]:
    """The smallest remote."""
    return {"project": project.key, "url": "https://git.example.org/demo.git", **more}


def test_the_installations_admin_keeps_remotes(project: Project, admin: Api) -> None:
    made = admin.post("/remotes/", fields(project, landing="branch", credential="env:SIGNALBOX_CREDENTIAL_X"))
    assert made.status_code == 201
    row = Remote.objects.get()
    assert (row.landing, row.credential, row.fetch_seconds) == ("branch", "env:SIGNALBOX_CREDENTIAL_X", 300)
    assert refused(admin.post("/remotes/", fields(project))) == (409, "duplicate_key")


def test_a_projects_admin_may_not_say_where_a_credential_goes(project: Project) -> None:
    api = Api(factories.make_key("admin", project=project).text)
    assert api.post("/remotes/", fields(project)).status_code == 403
    row = Remote.objects.add(by=BY, project=project, url="https://git.example.org/demo.git")
    assert api.get(f"/remotes/{row.pk}/").status_code == 200
    assert api.patch(f"/remotes/{row.pk}/", {"url": "https://elsewhere.example.org/"}).status_code == 403


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("url", "http://git.example.org/x"), ("url", "https://a:b@git.example.org/x"), ("url", "https://127.0.0.1/x"),
        ("credential", "hunter2"), ("webhook_credential", "env:SECRET_KEY"), ("landing", "force"), ("fetch_seconds", 5),
        ("fetch_seconds", -1), ("username", "a:b"),
    ],
)  # fmt: skip
def test_what_no_remote_may_have_is_refused_with_its_field(
    project: Project, admin: Api, field: str, value: Any
) -> None:
    answer = admin.post("/remotes/", fields(project, **{field: value}))
    assert answer.status_code in (400, 422)
    assert field in answer.content.decode() or answer.json()["code"] == "address_refused"
    assert not Remote.objects.exists()


def test_an_operator_has_a_remote_fetched(
    project: Project, nudges: list[tuple[Any, ...]], django_capture_on_commit_callbacks: Any
) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    assert refused(operator.post(f"/projects/{project.key}/fetch/", {})) == (404, "remote_not_found")
    row = Remote.objects.add(by=BY, project=project, url="https://git.example.org/demo.git")
    with django_capture_on_commit_callbacks(execute=True):
        assert operator.post(f"/projects/{project.key}/fetch/", {}).status_code == 202
    assert ("ledger.landing_tasks.fetch", row.pk) in nudges
    viewer = Api(factories.make_key("viewer", project=project).text)
    assert viewer.post(f"/projects/{project.key}/fetch/", {}).status_code == 403
    stranger = Api(factories.make_key("operator", project=factories.make_project()).text)
    assert refused(stranger.post(f"/projects/{project.key}/fetch/", {})) == (404, "remote_not_found")


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("nudges")
def test_a_receipt_is_found_by_its_patch_and_its_commit_and_read_byte_by_byte(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")])
    upstream = factories.run_git(
        tmp_path, "clone", "--bare", "--quiet", str(house.repository), str(tmp_path / "up.git")
    )
    assert upstream == ""
    Remote.objects.add(by=BY, project=house.project, url=str(tmp_path / "up.git"), landing="push", fetch_seconds=0)
    patch = house.work({"a.txt": "a\n"})
    viewer = Api(factories.make_key("viewer", project=house.project).text)
    receipt = Receipt.objects.get()
    for name in (receipt.pk, patch.pk, house.head):
        assert viewer.get(f"/receipts/{name}/").json()["sha256"] == receipt.sha256
    answer = viewer.get(f"/receipts/{house.head}/statement/")
    assert answer.content == receipt.statement.encode()
    assert answer["ETag"] == f'"{receipt.sha256}"'
    (push,) = viewer.get("/pushes/").json()["results"]
    assert (push["commit_sha"], push["state"]) == (house.head, "pushed")
    stranger = Api(factories.make_key("viewer", project=factories.make_project()).text)
    assert stranger.get(f"/receipts/{receipt.pk}/").status_code == 404


def test_only_a_post_tells_of_a_push(client: Client) -> None:
    assert client.get("/hooks/push/demo/").status_code == 405
