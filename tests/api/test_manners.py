"""The manners of the API: problem documents, strict bodies, repeatable POSTs, cursor pages, versions."""

import base64
import json
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import IntegrityError, OperationalError, connection, transaction
from django.test import Client
from django.utils import timezone

from pipeline import problems
from pipeline.api import planning, running
from pipeline.ids import new_id
from pipeline.models import ApiKey, Event, Phase, Project, Run, StoredAnswer
from pipeline.refusals import Refused
from pipeline.rest import NotYet
from tests import factories
from tests.conftest import Threads

PROJECTS, PHASES, RUNS = "/api/v1/projects/", "/api/v1/phases/", "/api/v1/runs/"
JSON = "application/json"


@pytest.fixture
def root() -> Client:
    """Whoever comes with a key of the installation's admin."""
    return client_of("admin")


def client_of(role: str, **fields: Any) -> Client:
    """A client that comes with a new key."""
    return Client(headers={"authorization": f"Bearer {factories.make_key(role, **fields).text}"})


def post(client: Client, path: str, body: Any = None, **headers: str) -> Any:
    """The answer to a JSON body; a text is sent as it is."""
    data = body if isinstance(body, str | bytes) else json.dumps({} if body is None else body)
    return client.post(path, data, content_type=JSON, headers={k.replace("_", "-"): v for k, v in headers.items()})


def patch(client: Client, path: str, body: Any, **headers: str) -> Any:
    """The answer to a PATCH."""
    named = {k.replace("_", "-"): v for k, v in headers.items()}
    return client.patch(path, json.dumps(body), content_type=JSON, headers=named)


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    """It is a complete problem document with this status and code; answers with it."""
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code), document
    assert answer["Content-Type"] == "application/problem+json"
    assert set(document) >= {"type", "title", "status", "detail", "code", "errors", "request_id"}
    assert document["request_id"] == answer["X-Request-Id"]
    assert document["status"] == status
    return dict(document)


def a_project(**fields: Any) -> dict[str, Any]:
    """A body that makes a project."""
    return {"key": f"p-{factories.number()}", "name": "P", "repository_url": "/nowhere", **fields}


def signed_in_with_token() -> Client:
    """An admin's browser, which sends the CSRF token that its page was given."""
    client = Client(enforce_csrf_checks=True)
    client.force_login(factories.make_user(is_superuser=True))
    client.get("/")
    client.defaults["HTTP_X_CSRFTOKEN"] = client.cookies["csrftoken"].value
    return client


pytestmark = pytest.mark.django_db


# -- problem documents -------------------------------------------------------------------------------------------


def test_without_a_key_it_is_401_and_says_how_to_come() -> None:
    answer = Client().get(RUNS)

    assert_problem(answer, 401, "not_authenticated")
    assert answer["WWW-Authenticate"].startswith("Bearer")


@pytest.mark.parametrize(
    "text", ["sbx_abcdefgh_nothing", "x", "", "sbx__", "sbx_ABCDEFGH_é", "sbx_" + "a" * 5000, "sbx_\x00\x00_a"]
)
def test_a_key_that_is_not_good_is_401(text: str) -> None:
    answer = Client(headers={"authorization": f"Bearer {text}"}).get(RUNS)

    assert_problem(answer, 401, "invalid_key")


def test_a_revoked_key_stops_at_once(root: Client) -> None:
    made = factories.make_key("viewer")
    client = Client(headers={"authorization": f"Bearer {made.text}"})
    assert client.get(RUNS).status_code == 200

    made.row.revoke(by=factories.BY)

    assert_problem(client.get(RUNS), 401, "invalid_key")


def test_a_session_works_for_people_and_needs_the_csrf_token() -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(factories.make_user(is_superuser=True))

    assert client.get(RUNS).status_code == 200
    assert_problem(post(client, PROJECTS, a_project()), 403, "permission_denied")


def test_a_session_with_its_csrf_token_writes_as_a_key_does() -> None:
    client = signed_in_with_token()
    made = post(client, PROJECTS, a_project())
    address = f"{PROJECTS}{made.json()['id']}/"
    changed = client.patch(address, {"name": "Q"}, content_type=JSON, headers={"if-match": made["ETag"]})

    assert made.status_code == 201, made.json()
    assert (changed.status_code, changed.json()["name"]) == (200, "Q")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{", JSON, 400, "malformed"),
        (b"a=b", "application/x-www-form-urlencoded", 415, "unsupported_media_type"),
        (b"--x", "multipart/form-data; boundary=y", 415, "unsupported_media_type"),
        (b"--x", "multipart/form-data", 415, "unsupported_media_type"),
        (b" " * (11 * 1024 * 1024), JSON, 413, "too_large"),
    ],
)
def test_a_bad_body_of_a_session_is_refused_like_that_of_a_key(body: bytes, kind: str, status: int, code: str) -> None:
    assert_problem(signed_in_with_token().post(PROJECTS, body, content_type=kind), status, code)


@pytest.mark.parametrize("path", ["/api/v1/nowhere/", "/api/", "/api/v1/runs/a/b/c/"])
def test_an_unknown_address_is_a_problem_document(root: Client, path: str) -> None:
    assert_problem(root.get(path), 404, "not_found")


def test_other_addresses_keep_their_pages(root: Client) -> None:
    answer = root.get("/nowhere/")

    assert answer.status_code == 404
    assert "json" not in answer["Content-Type"]


@pytest.mark.parametrize(
    "given", ["x", "01K9ZZZZZZZZZZZZZZZZZZZZZZ", "%00", "%F0%28", "../../etc", "a" * 3000, "01HZZZZZZZZZZZZZZZZZZZZZZ"]
)
def test_an_id_that_names_nothing_is_404_of_its_noun(root: Client, given: str) -> None:
    answer = root.get(f"{RUNS}{given}/")

    assert answer.status_code == 404
    assert answer.json()["code"] in ("run_not_found", "not_found")


def test_a_method_that_is_not_offered_is_405(root: Client) -> None:
    assert_problem(root.put(RUNS, {}, content_type=JSON), 405, "method_not_allowed")
    assert_problem(root.delete(RUNS), 405, "method_not_allowed")
    assert_problem(root.options(RUNS), 405, "method_not_allowed")


def test_another_content_type_is_415(root: Client) -> None:
    assert_problem(root.post(PROJECTS, {"key": "x"}), 415, "unsupported_media_type")
    assert_problem(root.post(PROJECTS, "<a/>", content_type="text/xml"), 415, "unsupported_media_type")


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"\xff\xfe",
        b"nonsense",
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b"[" * 40 + b"]" * 40,
        b"[" * 100_000,
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_a_body_that_is_not_json_is_400(root: Client, body: bytes) -> None:
    assert_problem(root.post(PROJECTS, body, content_type=JSON), 400, "malformed")


@pytest.mark.parametrize("body", [b"[]", b"null", b"3", b'"x"', b"true", b"[{}]"])
def test_a_body_of_the_wrong_shape_is_422(root: Client, body: bytes) -> None:
    assert root.post(PROJECTS, body, content_type=JSON).status_code == 422
    assert root.post(RUNS, body, content_type=JSON).status_code == 422


def test_a_body_beyond_the_limit_is_413(root: Client) -> None:
    body = json.dumps({"name": "x" * settings.DATA_UPLOAD_MAX_MEMORY_SIZE})

    assert_problem(post(root, PROJECTS, body), 413, "too_large")
    assert not Project.objects.exists()


def test_a_body_without_a_length_is_411_and_not_read_as_empty(root: Client) -> None:
    answer = root.generic("POST", PROJECTS, b"", headers={"Transfer-Encoding": "chunked"}, CONTENT_LENGTH="")

    assert_problem(answer, 411, "length_required")


@pytest.mark.parametrize("text", ["\\u0000", "a\\u0000b", "\\ud800", "\\udfff\\ud800"])
def test_text_that_cannot_be_stored_is_422_and_names_its_field(root: Client, text: str) -> None:
    body = '{"key": "x", "name": "n", "repository_url": "/r", "profile": {"a": [{"b": "%s"}]}}' % text  # noqa: UP031

    document = assert_problem(post(root, PROJECTS, body), 422, "invalid_field")

    assert document["errors"][0]["field"] == "profile.a[0].b"
    assert_problem(post(root, PROJECTS, '{"%s": 1}' % text), 422, "invalid_field")  # noqa: UP031


@pytest.mark.parametrize("query", ["project=%00", "%00=1", "kind=a%00b", "state=%ED%A0%80%00"])
def test_text_that_cannot_be_stored_is_400_in_a_query(root: Client, query: str) -> None:
    assert root.get(f"/api/v1/events/?{query}").status_code == 400


def test_missing_fields_are_named_all_at_once(root: Client) -> None:
    document = assert_problem(post(root, PROJECTS, {}), 422, "missing_required_field")

    assert {error["field"] for error in document["errors"]} == {"key", "name"}


@pytest.mark.parametrize("name", ["state", "pk", "version", "created_at", "__class__", "project_id"])
def test_an_unknown_or_unwritable_field_is_400_and_nothing_is_made(root: Client, name: str) -> None:
    document = assert_problem(post(root, PROJECTS, a_project(**{name: "1"})), 400, "unknown_field")

    assert [error["field"] for error in document["errors"]] == [name]
    assert not Project.objects.exists()


def test_a_malformed_id_is_told_apart(root: Client) -> None:
    assert_problem(post(root, RUNS, {"workstream": "nonsense"}), 422, "invalid_id")
    assert_problem(post(root, PROJECTS, a_project(id="nonsense")), 422, "invalid_id")
    assert_problem(post(root, RUNS, {"workstream": new_id()}), 404, "workstream_not_found")


def test_a_refused_move_tells_the_state_and_what_is_allowed(root: Client) -> None:
    run = factories.make_run()

    document = assert_problem(
        post(root, f"{RUNS}{run.pk}/complete/", {"status": "succeeded"}), 409, "run_has_open_work"
    )
    assert document["detail"]

    run.cancel(by=factories.BY)
    document = assert_problem(post(root, f"{RUNS}{run.pk}/start/"), 409, "invalid_move")
    assert (document["state"], document["allowed"]) == ("canceled", [])


class Breaks:
    """A view that raises; put in the place of an endpoint's handler."""

    def __init__(self, problem: Exception) -> None:
        self.problem = problem

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        raise self.problem


@pytest.mark.parametrize(
    ("problem", "status", "code"),
    [
        (OperationalError("canceling statement due to lock timeout at 10.0.0.1"), 503, "unavailable"),
        (IntegrityError('null value in column "secret"'), 409, "conflict"),
        (ZeroDivisionError("at line 7 of secret.py"), 500, "internal_error"),
        (Refused("Slow down", code="slow_down", status=429, retry_after=7), 429, "slow_down"),
    ],
)
def test_nothing_of_the_inside_is_told(
    root: Client, monkeypatch: pytest.MonkeyPatch, problem: Exception, status: int, code: str
) -> None:
    monkeypatch.setattr(running.RunEndpoint, "retrieve", Breaks(problem))

    answer = root.get(f"{RUNS}{new_id()}/")

    assert_problem(answer, status, code)
    for word in (b"secret", b"10.0.0.1", b"line 7", b"Traceback"):
        assert word not in answer.content
    assert ("Retry-After" in answer) == (status in (429, 503))


def test_a_guard_of_the_database_becomes_a_refusal(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    run = factories.make_run()

    def force(*args: Any, **kwargs: Any) -> Any:
        Run.objects.filter(pk=run.pk).update(state="succeeded")

    monkeypatch.setattr(running.RunEndpoint, "retrieve", force)
    with transaction.atomic():
        answer = root.get(f"{RUNS}{run.pk}/")
        transaction.set_rollback(True)

    assert_problem(answer, 409, "invalid_move")
    assert b"trigger" not in answer.content


def test_a_refusal_leaves_its_trace_after_the_rollback(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    project = factories.make_project()
    seen: list[bool] = []

    class Traced(Refused):
        def leave_trace(self) -> None:
            seen.append(Phase.objects.filter(project=project).exists())

    def refuse(*args: Any, **kwargs: Any) -> Any:
        factories.make_phase(project)
        raise Traced("no")

    monkeypatch.setattr(planning.ProjectEndpoint, "create", refuse)

    assert_problem(post(root, PROJECTS, {}, Idempotency_Key="k"), 409, "refused")

    assert seen == [False]
    assert not StoredAnswer.objects.exists()


def test_a_crash_outside_the_views_is_a_problem_document_too(rf: Any) -> None:
    answer = problems.server_error(rf.get("/api/v1/runs/"))

    assert answer.status_code == 500
    assert answer["Content-Type"] == "application/problem+json"
    assert json.loads(answer.content)["code"] == "internal_error"


# -- idempotency -------------------------------------------------------------------------------------------------


def test_the_same_key_and_body_is_done_once_and_answered_the_same(root: Client) -> None:
    body = a_project()

    first = post(root, PROJECTS, body, Idempotency_Key="one")
    again = post(root, PROJECTS, body, Idempotency_Key="one")

    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    assert (first["ETag"], first["Location"]) == (again["ETag"], again["Location"])
    assert again["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first
    assert Project.objects.count() == 1
    assert Event.objects.filter(kind="project.added").count() == 1


def test_another_body_or_address_under_the_same_key_is_a_mismatch(root: Client) -> None:
    body = a_project()
    post(root, PROJECTS, body, Idempotency_Key="one")

    assert_problem(post(root, PROJECTS, {**body, "name": "Q"}, Idempotency_Key="one"), 422, "idempotency_mismatch")
    assert_problem(post(root, RUNS, body, Idempotency_Key="one"), 422, "idempotency_mismatch")
    assert Project.objects.count() == 1


def test_two_callers_may_use_the_same_key(root: Client) -> None:
    for client in (root, client_of("admin")):
        assert post(client, PROJECTS, a_project(), Idempotency_Key="one").status_code == 201

    assert Project.objects.count() == 2


def test_a_refusal_is_not_kept_so_that_its_key_can_be_used_again(root: Client) -> None:
    body = a_project(currency="euro")
    assert post(root, PROJECTS, body, Idempotency_Key="one").status_code == 422
    assert not StoredAnswer.objects.exists()

    assert post(root, PROJECTS, {**body, "currency": "EUR"}, Idempotency_Key="one").status_code == 201


def test_a_repeated_working_verb_is_answered_not_refused(root: Client) -> None:
    run = factories.make_run()

    first = post(root, f"{RUNS}{run.pk}/start/", Idempotency_Key="go")
    again = post(root, f"{RUNS}{run.pk}/start/", Idempotency_Key="go")

    assert first.status_code == again.status_code == 200
    assert_problem(post(root, f"{RUNS}{run.pk}/start/"), 409, "invalid_move")


def test_an_expired_answer_is_forgotten(root: Client) -> None:
    post(root, PROJECTS, a_project(), Idempotency_Key="one")
    kept = StoredAnswer.objects.get()
    assert timedelta(hours=23) < kept.expires_at - timezone.now() < timedelta(hours=25)
    StoredAnswer.objects.update(expires_at=timezone.now() - timedelta(seconds=1))

    assert post(root, PROJECTS, a_project(), Idempotency_Key="one").status_code == 201
    assert Project.objects.count() == 2


@pytest.mark.parametrize("key", ["", "k" * 201, "Grüße", "a\tb"])
def test_a_key_that_cannot_be_kept_is_400(root: Client, key: str) -> None:
    assert_problem(post(root, PROJECTS, a_project(), Idempotency_Key=key), 400, "invalid_field")
    assert not Project.objects.exists()


def test_a_new_api_key_is_shown_once_even_to_a_repeat(root: Client) -> None:
    body = {"name": "agent", "role": "worker"}

    first = post(root, "/api/v1/keys/", body, Idempotency_Key="one")
    again = post(root, "/api/v1/keys/", body, Idempotency_Key="one")

    assert first.json()["key"].startswith("sbx_")
    assert "key" not in again.json()
    assert again.json()["id"] == first.json()["id"]
    assert first.json()["key"].split("_", 2)[2] not in StoredAnswer.objects.get().body


@pytest.mark.django_db(transaction=True)
def test_a_twin_waits_for_the_first_and_replays_its_answer(threads: Threads, monkeypatch: pytest.MonkeyPatch) -> None:
    text = factories.make_key("admin").text
    body = a_project()
    made = threading_gate(monkeypatch)

    def send() -> Any:
        return post(Client(headers={"authorization": f"Bearer {text}"}), PROJECTS, body, Idempotency_Key="one")

    first = threads.start(send)
    made.inside.wait(20)
    twin = threads.start(send)
    wait_until_somebody_waits_for_a_lock()
    made.go_on.set()

    answers = [first.result(), twin.result()]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[0].json() == answers[1].json()
    assert answers[1]["Idempotency-Replayed"] == "true"
    assert Project.objects.count() == 1


class Gate:
    """Stops the first handler in the middle of its transaction until it may go on."""

    def __init__(self) -> None:
        import threading

        self.inside, self.go_on = threading.Event(), threading.Event()


def threading_gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate in the handler that makes projects."""
    gate, create = Gate(), planning.ProjectEndpoint.create

    def slow(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        answer = create(self, request, *args, **kwargs)
        gate.inside.set()
        assert gate.go_on.wait(20)
        return answer

    monkeypatch.setattr(planning.ProjectEndpoint, "create", slow)
    return gate


def wait_until_somebody_waits_for_a_lock() -> None:
    """Returns once a transaction of this database waits for another."""
    for _n in range(2000):
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_locks WHERE NOT granted")
            if cursor.fetchone()[0]:
                return
    raise AssertionError("nobody waits")


def test_a_handler_that_has_nothing_yet_is_asked_again(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    create = planning.ProjectEndpoint.create

    def slow(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        asked.append(1)
        if len(asked) == 1:
            factories.make_project(key="undone")
            raise NotYet(5)
        return create(self, request, *args, **kwargs)

    monkeypatch.setattr(planning.ProjectEndpoint, "create", slow)
    monkeypatch.setattr("pipeline.rest.endpoints.LOOK_AGAIN_SECONDS", 0.01)

    assert post(root, PROJECTS, a_project(), Idempotency_Key="one").status_code == 201

    assert len(asked) == 2
    assert not Project.objects.filter(key="undone").exists()


def test_a_handler_that_never_has_anything_answers_204(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning.ProjectEndpoint, "create", Breaks(NotYet(0)))

    answer = post(root, PROJECTS, a_project(), Idempotency_Key="one")

    assert (answer.status_code, answer.content) == (204, b"")
    assert not StoredAnswer.objects.exists()


# -- lists -------------------------------------------------------------------------------------------------------


def pages(client: Client, path: str) -> list[list[str]]:
    """The ids of every page, forwards."""
    found, cursor = [], ""
    while cursor is not None:
        sign = "&" if "?" in path else "?"
        document = client.get(f"{path}{sign}cursor={cursor}" if cursor else path).json()
        found.append([row["id"] for row in document["results"]])
        cursor = document["next"]
    return found


def test_a_list_pages_newest_first_forwards_and_back(root: Client) -> None:
    made = [factories.make_project().pk for _n in range(5)]

    forwards = pages(root, f"{PROJECTS}?limit=2")
    assert forwards == [[made[4], made[3]], [made[2], made[1]], [made[0]]]

    first = root.get(f"{PROJECTS}?limit=2").json()
    second = root.get(f"{PROJECTS}?limit=2&cursor={first['next']}").json()
    back = root.get(f"{PROJECTS}?limit=2&cursor={second['previous']}").json()
    assert first["previous"] is None
    assert [row["id"] for row in back["results"]] == forwards[0]
    assert back["previous"] is None
    assert root.get(f"{PROJECTS}?limit=2&cursor={back['next']}").json()["results"] == second["results"]


def test_rows_written_meanwhile_neither_repeat_nor_hide_any(root: Client) -> None:
    made = [factories.make_project().pk for _n in range(4)]
    first = root.get(f"{PROJECTS}?limit=2").json()
    factories.make_project()

    second = root.get(f"{PROJECTS}?limit=2&cursor={first['next']}").json()

    assert [row["id"] for row in second["results"]] == [made[1], made[0]]


@pytest.mark.parametrize("ordering", ["name", "-name", "created_at", "-created_at", "id", "-key"])
def test_an_ordering_with_equal_values_loses_no_row(root: Client, ordering: str) -> None:
    made = {factories.make_project(name="ab"[number % 2]).pk for number in range(7)}

    found = [pk for page in pages(root, f"{PROJECTS}?limit=2&ordering={ordering}") for pk in page]

    assert len(found) == 7
    assert set(found) == made
    column = ordering.removeprefix("-")
    values = list(Project.objects.in_bulk(found).values()) and [
        getattr(Project.objects.get(pk=pk), column) for pk in found
    ]
    assert values == sorted(values, reverse=ordering.startswith("-"))


@pytest.mark.parametrize("limit", ["0", "-1", "501", "x", "", "1.5", "1e2", "٣", "9" * 30])
def test_a_limit_out_of_bounds_is_400(root: Client, limit: str) -> None:
    assert_problem(root.get(PROJECTS, {"limit": limit}), 400, "invalid_field")


@pytest.mark.parametrize(
    "cursor",
    [
        "x",
        "é",
        "=" * 9,
        base64.urlsafe_b64encode(b"[]").decode(),
        base64.urlsafe_b64encode(b'["-id", false, "", "x"]').decode(),
        base64.urlsafe_b64encode(b'["-id", 1, 2, 3]').decode(),
        base64.urlsafe_b64encode(b'{"a": 1}').decode(),
        base64.urlsafe_b64encode(b"[" * 5000).decode(),
        base64.urlsafe_b64encode(b'["-name", false, "", "01JD9Z6X8Q4W2M5T7R3B1C0VNK"]').decode(),
    ],
)
def test_a_broken_cursor_is_400(root: Client, cursor: str) -> None:
    assert_problem(root.get(PROJECTS, {"cursor": cursor}), 400, "invalid_cursor")


def test_a_cursor_of_a_time_that_is_none_is_400(root: Client) -> None:
    text = base64.urlsafe_b64encode(json.dumps(["created_at", False, "yesterday", new_id()]).encode()).decode()

    assert_problem(root.get(PROJECTS, {"cursor": text, "ordering": "created_at"}), 400, "invalid_cursor")


def test_unknown_filters_orderings_and_fields_are_400(root: Client) -> None:
    assert_problem(root.get(f"{PROJECTS}?password=1"), 400, "unknown_filter")
    assert_problem(root.get(f"{PROJECTS}?key__startswith=a"), 400, "unknown_filter")
    assert_problem(root.get(f"{PROJECTS}?ordering=profile"), 400, "invalid_field")
    assert_problem(root.get(f"{PROJECTS}?ordering=--id"), 400, "invalid_field")
    assert_problem(root.get(f"{PROJECTS}?fields=id,secret"), 400, "unknown_field")
    assert_problem(root.get(f"{RUNS}?state=nonsense"), 400, "invalid_field")
    assert_problem(root.get(f"{RUNS}?workstream=nonsense"), 400, "invalid_id")
    assert_problem(root.get(f"{RUNS}?created_after=yesterday"), 400, "invalid_field")


def test_a_word_that_is_not_on_the_list_is_answered_with_the_list(root: Client) -> None:
    told = assert_problem(root.get(f"{RUNS}?state=nonsense"), 400, "invalid_field")["detail"]
    assert told == "state: one of pending, running, succeeded, failed, quarantined, canceled, not “nonsense”"

    (told,) = post(root, "/api/v1/keys/", {"name": "k", "role": "emperor"}).json()["errors"]
    assert (told["field"], told["code"]) == ("role", "invalid_field")
    assert told["detail"] == "one of viewer, operator, approver, admin, worker, not “emperor”"


def test_a_filter_by_id_is_named_as_it_was_asked(root: Client) -> None:
    told = assert_problem(root.get("/api/v1/events/?run=abc"), 400, "invalid_id")
    assert told["detail"].startswith("run: not an id")


def test_filters_narrow_and_a_value_that_matches_nothing_is_empty(root: Client) -> None:
    run = factories.make_run()
    factories.make_run()
    key = run.project.key

    def ids(query: str) -> list[str]:
        return [row["id"] for row in root.get(f"{RUNS}?{query}").json()["results"]]

    assert ids(f"project={key}") == ids(f"project={run.project_id}") == [run.pk]
    assert ids(f"project={key}&state=running") == []
    assert ids("project=nobody") == []
    assert ids(f"workstream={new_id()}") == []
    assert len(ids("created_after=2020-01-01T00:00:00Z")) == 2
    assert ids("created_before=2020-01-01T00:00:00Z") == []


def test_fields_trims_lists_and_details(root: Client) -> None:
    project = factories.make_project()

    assert root.get(f"{PROJECTS}?fields=key,id").json()["results"] == [{"key": project.key, "id": project.pk}]
    assert root.get(f"{PROJECTS}{project.key}/?fields=key").json() == {"key": project.key}


def test_a_list_leaves_heavy_columns_in_the_database(root: Client, django_assert_max_num_queries: Any) -> None:
    for _n in range(3):
        factories.make_run()

    with django_assert_max_num_queries(8) as seen:
        rows = root.get(RUNS).json()["results"]

    assert "metadata" not in rows[0]
    assert not [query for query in seen.captured_queries if '"pipeline_run"."metadata"' in query["sql"]]


# -- versions ----------------------------------------------------------------------------------------------------


def test_a_change_needs_the_version_it_is_about(root: Client) -> None:
    project = factories.make_project()
    path = f"{PROJECTS}{project.key}/"
    tag = root.get(path)["ETag"]
    assert tag == '"1"'

    document = assert_problem(patch(root, path, {"name": "B"}), 412, "precondition_failed")
    assert "If-Match" in document["detail"]
    for bad in ("1", "*", 'W/"1"', '"x"', '"2"', '""', '"1", "2"', '"' + "9" * 40 + '"'):
        assert_problem(patch(root, path, {"name": "B"}, If_Match=bad), 412, "precondition_failed")

    changed = patch(root, path, {"name": "B"}, If_Match=tag)
    assert (changed.status_code, changed["ETag"], changed.json()["name"]) == (200, '"2"', "B")
    document = assert_problem(patch(root, path, {"name": "C"}, If_Match=tag), 412, "precondition_failed")
    assert document["version"] == 2
    assert Event.objects.filter(kind="project.changed").count() == 1


def test_a_field_of_birth_cannot_be_changed(root: Client) -> None:
    phase, other = factories.make_phase(), factories.make_project()
    path = f"{PHASES}{phase.pk}/"

    assert_problem(patch(root, path, {"project": other.key}, If_Match='"1"'), 422, "invalid_field")
    assert_problem(patch(root, path, {"id": new_id()}, If_Match='"1"'), 400, "unknown_field")
    assert_problem(patch(root, path, {"version": 9}, If_Match='"1"'), 400, "unknown_field")


def test_a_row_may_bring_its_own_id(root: Client) -> None:
    body = a_project(id=new_id())

    assert post(root, PROJECTS, body).status_code == 201
    again = post(root, PROJECTS, body)
    assert (again.status_code, again.json()["id"]) == (200, body["id"])
    assert_problem(post(root, PROJECTS, {**body, "name": "Other"}), 409, "duplicate_id")
    assert_problem(post(root, PROJECTS, {**a_project(), "key": body["key"]}), 409, "duplicate_key")
    assert Project.objects.count() == 1


def test_an_id_of_somebody_else_tells_nothing(root: Client) -> None:
    theirs = factories.make_phase()
    mine = factories.make_project()
    client = client_of("admin", project=mine)
    body = {"id": theirs.pk, "project": mine.key, "key": "a", "name": "A", "category": "c"}

    assert_problem(post(client, PHASES, body), 409, "duplicate_id")
    assert_problem(post(client, PHASES, {**body, "project": theirs.project.key}), 404, "project_not_found")


def test_last_use_of_a_key_is_noted() -> None:
    made = factories.make_key("viewer")

    Client(headers={"authorization": f"Bearer {made.text}"}).get(RUNS)

    assert ApiKey.objects.get(pk=made.row.pk).last_used_at is not None


def test_the_pages_of_the_contract_are_served() -> None:
    client = Client()
    assert client.get("/api/v1/docs/").status_code == 302
    client.force_login(factories.make_user())

    page = client.get("/api/v1/docs/")

    assert page.status_code == 200
    assert b"swagger" in page.content
    assert client.get("/api/v1/schema/?format=json").json()["openapi"].startswith("3.1")
