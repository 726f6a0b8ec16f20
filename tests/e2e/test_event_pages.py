"""The pages of the events in a real browser: nothing is cut off, and no page scrolls sideways, at any width."""

from datetime import UTC, datetime

import pytest
from django.urls import reverse

from ledger.models import Seal
from pipeline.models import Delivery, Event, Subscription, WebhookEndpoint
from tests import factories

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

WIDTHS = (1920, 1400, 1024, 390)
IS_ON_TOP = """element => {
    const box = element.getBoundingClientRect();
    const there = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
    return element === there;
}"""
SCROLLS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
LONG = "no_space_to_break_at_" * 20


@pytest.fixture(autouse=True)
def quiet_broker(nudges):
    """No page waits for a broker here."""


@pytest.fixture
def failure():
    project = factories.make_project(key="relay")
    factories.make_tool()
    error = f"RuntimeError: {LONG}"
    dead_at = datetime.now(UTC)
    return factories.make_failed_reaction(project, reaction="ledger.reactions.validate", error=error, dead_at=dead_at)


def opened(page, width, address):
    page.set_viewport_size({"width": width, "height": 800})
    page.goto(address, wait_until="networkidle")


@pytest.mark.parametrize("width", WIDTHS)
def test_the_form_of_a_dead_letter_is_seen_whole_and_sent(live_server, console, failure, width):
    opened(console, width, f"{live_server.url}{reverse('events:failed')}")
    wrap = console.locator(".table-wrap")
    console.locator("summary", has_text="Replay").scroll_into_view_if_needed()
    console.locator("summary", has_text="Replay").focus()
    console.keyboard.press("Enter")
    console.keyboard.press("Tab")
    console.keyboard.type("mended")
    form = console.locator(f"form[action='{reverse('events:replay', args=[failure.pk])}']")
    for part in (form.locator("textarea"), form.locator("button")):
        assert part.evaluate(IS_ON_TOP)
    box = form.bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= width
    assert box["y"] >= 0
    assert box["y"] + box["height"] <= 800
    assert wrap.evaluate("element => element.scrollHeight - element.clientHeight") <= 0
    form.locator("button").click()
    console.wait_for_load_state()
    assert Event.objects.filter(kind="alert.cleared", reason="mended").exists()


def test_forms_for_a_reason_stand_in_the_window_on_other_pages_too(live_server, console):
    project = factories.make_project(key="relay")
    run = factories.make_run(factories.make_workstream(factories.make_phase(project)), started=True)
    run.hold(by=factories.BY, reason="wait")
    patch = factories.make_patch(project)
    patch.quarantine("odd", by=factories.BY)
    worker = factories.make_worker()
    for page in ("/", f"/runs/{run.pk}/", f"/ledger/{patch.pk}/", "/ledger/", f"/workers/{worker.pk}/"):
        for width in WIDTHS:
            opened(console, width, f"{live_server.url}{page}")
            summaries = console.locator("details.reason > summary")
            assert summaries.count(), page
            for summary in summaries.all():
                where = (page, width, summary.inner_text())
                summary.click()
                form = summary.locator("xpath=following-sibling::form")
                assert form.locator("button").last.evaluate(IS_ON_TOP), where
                box = form.bounding_box()
                assert 0 <= box["x"] <= box["x"] + box["width"] <= width, where
                console.keyboard.press("Escape")


def test_no_page_of_the_events_scrolls_sideways_on_a_telephone(live_server, console, failure):
    subscription = Subscription.objects.add(by=factories.BY, key="all", patterns=["*"])
    webhook = WebhookEndpoint.objects.add(by=factories.BY, subscription=subscription, url="https://example.org/hook")
    event = Event.objects.get(kind="tool.added")
    delivery = Delivery.objects.create(endpoint=webhook, event=event, response_tail=LONG)
    Seal.objects.create(
        number=1,
        from_cursor="0-0-0",
        to_cursor="1-1-1",
        month="2026-01",
        count=1,
        root_hash="a" * 64,
        leaves=b"0" * 32,
    )
    pages = (
        "/events/",
        "/events/?run=abc&worker=ada&since=then",
        reverse("events:event", args=[event.pk]),
        reverse("events:failed"),
        reverse("webhooks:list"),
        reverse("webhooks:deliveries", args=[webhook.pk]),
        reverse("webhooks:delivery", args=[delivery.pk]),
        reverse("ledger:seals"),
        f"/admin/pipeline/event/{event.pk}/change/",
        "/admin/ledger/seal/",
    )
    for page in pages:
        opened(console, 390, f"{live_server.url}{page}")
        assert console.evaluate(SCROLLS) <= 0, page
    opened(console, 1400, f"{live_server.url}/admin/ledger/seal/")
    assert console.locator("table.result-list").evaluate("table => table.getBoundingClientRect().right") <= 1400
