"""All pages of the console alike: sign-in, what another project's people get, methods, queries that do not grow."""

import re

import pytest
from django.test import Client
from django.urls import get_resolver, reverse

from tests import factories

pytestmark = pytest.mark.django_db

QUERIES_MAX = 20
SECTIONS = ("runs", "events", "workers", "ledger", "gates", "costs")
# Pages whose form is sent to themselves.
FORMS = {"ledger": {"rewind"}, "gates": {"proposals"}}
# Addresses for programs, with keys and manners of their own.
PROGRAMS = {"costs": {"otlp_metrics", "otlp_logs", "otlp_traces"}}
ACTIONS = {
    "costs": {"change_limit"},
    "events": {"replay", "drop"},
    "runs": {"start_workstream", "start", "cancel", "hold", "release", "retry", "hold_release"},
    "workers": {"pause", "resume", "drain", "stop", "crash", "assign"},
    "ledger": {
        "quarantine",
        "release",
        "drop",
        "requeue",
        "rollback",
        "approve",
        "reject",
        "comment",
        "override",
        "bulk",
        "remote_fetch",
        "queue_pause",
        "queue_resume",
        "seals_verify",
    },
    "gates": {"rerun", "skip", "waive", "revoke-waiver", "quarantine", "flaky-release"},
}


@pytest.fixture(autouse=True)
def quiet_broker(nudges):
    """No page waits for a broker here."""


class World:
    """One project with `size` of everything that a page lists."""

    def __init__(self, size: int) -> None:
        self.project = factories.make_project(repository=factories.sample_repository(), profile={"demo": True})
        phase = factories.make_phase(self.project)
        specs = [factories.task_spec(f"t{n}", depends_on=["t0"] if n else []) for n in range(size + 1)]
        narrow, wide = (factories.make_workstream(phase, tasks=tasks) for tasks in (specs[:1], specs))
        key = factories.make_key("worker", project=self.project).row
        gate = factories.make_gate(self.project)
        tool = factories.make_tool()
        queue = factories.make_merge_queue(self.project)
        for n in range(size):
            run = factories.make_run(wide if n == size - 1 else narrow, started=True)
            worker = factories.make_worker(api_key=key)
            lease = factories.make_lease(worker, run.tasks.select_related("run").get(key="t0"), tool=tool)
            patch = factories.make_patch(attempt=lease.attempt, summary="a change", worker_id=worker.pk)
            factories.make_queue_item(patch, queue)
            gate_run = factories.make_gate_run(gate, patch=patch)
            factories.make_cost(attempt=lease.attempt)
            parked = factories.make_patch(self.project)
            parked.quarantine("odd", by=factories.BY)
            run.hold(by=factories.BY, reason="wait")
            failed = factories.make_run(narrow)
            factories.in_state(failed, "failed")
        for n in range(size):
            step = factories.make_step(run, start=True, tool=tool)
            factories.make_patch(attempt=step, replaces=patch)
            factories.make_gate_run(gate, patch=patch)
            factories.make_cost(attempt=step, model=f"model-{n}")
        self.pages = {
            "overview": reverse("overview"),
            **{section: reverse(f"{section}:list") for section in SECTIONS},
            "merge queue": reverse("ledger:merge_queue"),
            "run": reverse("runs:run", args=[run.pk]),
            "attempt": reverse("runs:attempt", args=[run.pk, lease.attempt.sequence]),
            "worker": reverse("workers:worker", args=[worker.pk]),
            "patch": reverse("ledger:patch", args=[patch.pk]),
            "diff": reverse("ledger:diff", args=[patch.pk]),
            "gate run": reverse("gates:run", args=[gate_run.pk]),
        }


def viewer_of(project) -> Client:
    client = Client()
    user = factories.make_user()
    factories.make_membership(user, project)
    client.force_login(user)
    return client


def queries_of(client, address, django_assert_max_num_queries):
    with django_assert_max_num_queries(QUERIES_MAX, info=address) as captured:
        assert client.get(address).status_code == 200, address
    return [re.sub(r"'[^']*'|\d+", "?", query["sql"]) for query in captured.captured_queries]


def test_no_page_asks_more_queries_for_many_rows_than_for_few(django_assert_max_num_queries):
    counts = {}
    for size in (3, 30):
        world = World(size)
        client = viewer_of(world.project)
        for name, address in world.pages.items():
            counts.setdefault(name, []).append(len(queries_of(client, address, django_assert_max_num_queries)))

    assert {name: pair for name, pair in counts.items() if pair[0] != pair[1]} == {}


def test_no_list_loads_the_text_of_a_diff_or_a_log(django_assert_max_num_queries):
    world = World(2)
    client = viewer_of(world.project)
    for name in ("overview", *SECTIONS, "merge queue", "run"):
        asked = " ".join(queries_of(client, world.pages[name], django_assert_max_num_queries))
        for column in ("diff_text", "output_tail", "error_log", "input_prompt", "canonical", "crash_trace"):
            assert f'"{column}"' not in asked, (name, column)


def test_whoever_did_not_sign_in_is_led_to_the_sign_in_page():
    world = World(1)
    for address in world.pages.values():
        answer = Client().get(address)
        assert answer.status_code == 302, address
        assert answer["Location"].startswith("/login/?next="), address


def test_another_project_s_people_find_nothing():
    world = World(1)
    client = viewer_of(factories.make_project())
    for name in ("run", "attempt", "worker", "patch", "diff", "gate run"):
        assert client.get(world.pages[name]).status_code == 404, name
    for name in ("overview", *SECTIONS, "merge queue"):
        page = client.get(world.pages[name])
        assert page.status_code == 200
        assert not re.search(rf"\b{world.project.key}\b", page.text), name
        assert world.project.pk not in page.text, name


def addresses(namespace):
    """(name, address with made-up ids) of every pattern of a namespace."""
    made_up = {
        "pk": "01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "against": "01ARZ3NDEKTSV4RRFFQ69G5FAW",
        "sequence": 1,
        "key": "none",
    }
    _prefix, resolver = get_resolver().namespace_dict[namespace]
    for name in filter(lambda name: isinstance(name, str), resolver.reverse_dict):
        if name in PROGRAMS.get(namespace, ()):
            continue
        ((_pattern, names),) = resolver.reverse_dict.getlist(name)[0][0]
        yield name, reverse(f"{namespace}:{name}", kwargs={given: made_up[given] for given in names})


@pytest.mark.parametrize("namespace", SECTIONS)
def test_buttons_are_posts_with_a_token_and_pages_are_gets(namespace, admin_client, admin_user):
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(admin_user)
    factories.make_project(key="none", repository=factories.sample_repository())
    for name, address in addresses(namespace):
        if name in ACTIONS.get(namespace, ()):
            assert admin_client.get(address).status_code == 405, address
            assert strict.post(address).status_code == 403, address
            assert Client().post(address)["Location"].startswith("/login/"), address
        elif name in FORMS.get(namespace, ()):
            assert admin_client.get(address).status_code == 200, address
            assert strict.post(address).status_code == 403, address
        else:
            assert admin_client.post(address).status_code == 405, address


@pytest.mark.parametrize("namespace", SECTIONS)
def test_a_page_about_something_unknown_is_not_found(namespace, admin_client):
    for name, address in addresses(namespace):
        if "01ARZ3NDEKTSV4RRFFQ69G5FAV" in address:
            ask = admin_client.post if name in ACTIONS.get(namespace, ()) else admin_client.get
            assert ask(address).status_code == 404, address


# What a page reads by name beside its filters.
PARAMETERS = ("project", "state", "q", "cursor", "worker", "tool", "model", "run", "since", "until", "task")


@pytest.mark.parametrize("namespace", SECTIONS)
def test_what_no_row_can_hold_is_refused_in_parameters_and_fields(namespace, admin_client):
    factories.make_project(key="none", repository=factories.sample_repository())
    for name, address in addresses(namespace):
        if name in ACTIONS.get(namespace, ()):
            assert admin_client.post(address, {"reason": "a\x00b"}).status_code == 400, address
            continue
        for parameter in PARAMETERS:
            assert admin_client.get(f"{address}?{parameter}=a%00").status_code == 400, (address, parameter)


@pytest.mark.parametrize("address", ["/projects/%00/policy/", "/runs/%00/", "/projects/a%00b/policy/?task=1"])
def test_an_address_that_no_row_can_have_is_not_found(address, admin_client):
    assert admin_client.get(address).status_code == 404


def test_a_person_signs_in_comes_to_where_they_wanted_and_signs_out():
    user = factories.make_user(username="ada", password="a long password 1")
    client = Client()

    refused = client.post("/login/", {"username": "ada", "password": "wrong"})
    assert refused.status_code == 200
    assert 'role="alert"' in refused.text

    answer = client.post("/login/?next=/runs/", {"username": "ada", "password": "a long password 1", "next": "/runs/"})
    assert answer["Location"] == "/runs/"
    assert user.get_username() in client.get("/runs/").text

    assert client.get("/logout/").status_code == 405
    assert client.post("/logout/")["Location"] == "/login/"
    assert client.get("/runs/").status_code == 302


def test_sign_in_leads_to_no_other_host():
    factories.make_user(username="ada", password="a long password 1")
    data = {"username": "ada", "password": "a long password 1", "next": "https://elsewhere.example/"}

    assert Client().post("/login/", data)["Location"] == "/"


def test_pages_hold_no_inline_script_or_style_and_send_the_strict_policy():
    world = World(1)
    client = viewer_of(world.project)
    for name, address in world.pages.items():
        answer = client.get(address)
        assert "script-src 'self';" in answer["Content-Security-Policy"] + ";", name
        assert "unsafe" not in answer["Content-Security-Policy"], name
        if name != "diff":
            assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", answer.text), name


def test_errors_answer_with_pages_of_their_own(admin_client):
    assert "There is nothing here" in admin_client.get("/nowhere/").text
    assert admin_client.get("/runs/?state=nonsense").status_code == 400
