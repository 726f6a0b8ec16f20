"""The console in a real browser: people get in, every page stands, and the content policy has nothing to object to."""

import pytest

from tests.factories import (
    in_state,
    make_cost,
    make_gate,
    make_gate_run,
    make_hold,
    make_patch,
    make_phase,
    make_project,
    make_run,
    make_task,
    make_user,
    make_worker,
    make_workstream,
    sample_repository,
    task_spec,
)

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def world():
    """A little of everything, so that no page is empty."""
    project = make_project()
    workstream = make_workstream(make_phase(project))
    run = make_run(workstream, started=True)
    patch = in_state(make_patch(project), "quarantined")
    gate_run = in_state(make_gate_run(make_gate(project)), "failed")
    worker = make_worker()
    make_cost(run=run)
    make_hold("run", run.pk, project=project)
    return {"run": run, "patch": patch, "gate_run": gate_run, "worker": worker}


def test_a_wrong_password_lets_nobody_in_and_says_so(live_server, page):
    make_user(username="ada")
    page.goto(f"{live_server.url}/login/")
    page.get_by_label("Username").fill("ada")
    page.get_by_label("Password").fill("guess")
    page.get_by_role("button", name="Sign in").click()
    assert page.get_by_role("alert").inner_text()
    assert page.url.startswith(f"{live_server.url}/login/")


def test_every_page_stands_without_a_complaint_of_the_browser(live_server, console, world, complaints):
    addresses = [
        "/",
        "/runs/",
        f"/runs/{world['run'].pk}/",
        "/workers/",
        f"/workers/{world['worker'].pk}/",
        "/ledger/",
        f"/ledger/{world['patch'].pk}/",
        "/merge-queue/",
        "/gates/",
        f"/gates/runs/{world['gate_run'].pk}/",
        "/costs/",
        "/events/",
        "/admin/",
        "/admin/pipeline/project/",
        "/admin/ledger/patch/",
    ]
    for address in addresses:
        answer = console.goto(f"{live_server.url}{address}", wait_until="networkidle")
        assert answer is not None
        assert (address, answer.status) == (address, 200)
        assert console.locator("h1, h2").first.inner_text(), address
    assert complaints == []


def test_a_run_is_cancelled_from_its_page_with_a_reason(live_server, console, world):
    console.goto(f"{live_server.url}/runs/{world['run'].pk}/")
    console.locator("summary", has_text="Cancel").click()
    form = console.locator(f"form[action='/runs/{world['run'].pk}/cancel/']")
    form.locator("[name=reason]").fill("not needed any more")
    form.locator("button[type=submit]").click()
    console.wait_for_load_state()
    world["run"].refresh_from_db()
    assert (world["run"].state, world["run"].state_reason) == ("canceled", "not needed any more")


def test_the_theme_is_remembered(live_server, console):
    assert console.locator("html").get_attribute("data-theme") != "light"
    console.goto(f"{live_server.url}/")
    console.locator("details.menu summary").click()
    console.locator("[data-theme-choice=light]").click()
    console.reload()
    assert console.locator("html").get_attribute("data-theme") == "light"


def test_the_overview_fits_a_telephone(live_server, console, world):
    console.set_viewport_size({"width": 390, "height": 844})
    console.goto(f"{live_server.url}/", wait_until="networkidle")
    assert console.evaluate("document.documentElement.scrollWidth") <= 390


def test_the_ledger_shows_every_column_at_1400_whatever_is_long(console, live_server, nudges):
    project = make_project(key="a-rather-long-key-of-a-project", repository=sample_repository())
    task = make_task(
        make_run(make_workstream(make_phase(project), tasks=[task_spec("settings-are-read-once-and-loudly")]))
    )
    make_patch(project, task=task, summary="Make the parser of the configuration take every kind of comment there is")
    console.set_viewport_size({"width": 1400, "height": 900})
    console.goto(f"{live_server.url}/ledger/")
    wide, shown = console.evaluate(
        "[...document.querySelectorAll('.table-wrap')].map(e => [e.scrollWidth, e.clientWidth])[0]"
    )
    assert wide == shown
    assert console.locator(".table .id").is_visible()
