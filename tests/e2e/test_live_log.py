"""The page of a running gate in a real browser: its output appears while it runs, and its verdict when it has ended."""

import pytest
from playwright.sync_api import Page, expect

from gates import criteria, live
from gates.models import GateRun
from tests.factories import BY, make_gate, make_gate_run

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]


def write(run: GateRun, log: live.LiveLog, text: str) -> None:
    """What the runner writes."""
    log.take(text)
    log._write()


def test_output_appears_as_it_comes_escaped_and_the_verdict_at_the_end(
    live_server, console: Page, complaints: list[str]
) -> None:
    run = make_gate_run(make_gate())
    run.start(by=BY, runner="r", sandbox_level=1)
    log = live.LiveLog(run, "r")
    write(run, log, "first line <b>bold</b>\n")
    console.goto(f"{live_server.url}/gates/runs/{run.pk}/")
    output = console.locator("[data-live-log]")
    expect(output).to_have_text("first line <b>bold</b>\n")
    expect(console.get_by_text("not isolated")).to_be_visible()
    write(run, log, "second line\n")
    expect(output).to_contain_text("second line", timeout=15_000)
    run.complete(criteria.Judgement("passed", "", True, "All is well"), by=BY, exit_code=0, output_tail="the whole log")
    expect(console.get_by_text("the whole log")).to_be_visible(timeout=15_000)
    expect(console.get_by_text("All is well").first).to_be_visible()
    assert complaints == []
