"""The gates' pages in a real browser: what matters stands in the window, wide and narrow."""

from datetime import timedelta

import pytest

from gates import bootstrap, presets
from gates.criteria import Judgement
from gates.junit import Results, TestCase
from pipeline.clock import db_now
from pipeline.events import SYSTEM
from tests.factories import make_flaky_test, make_gate, make_gate_run, make_project

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

NARROW = {"width": 390, "height": 844}
WHY = "Not passed: failures fail (3, threshold 0), patch_coverage fail (41.667, threshold 80)"


@pytest.fixture
def world():
    """A gate with a run that failed, a flaky test, and one in quarantine."""
    project = make_project(key="relay")
    gate = make_gate(
        project, name="Unit tests", gate_type="unit_tests", evidence={"junit": "j.xml", "coverage": "c.xml"},
        criteria={"max_failures": 0, "min_patch_coverage": 80, "goalposts": True},
    )  # fmt: skip
    run = make_gate_run(gate)
    run.start(by=SYSTEM, runner="r", sandbox_level=2)
    long = "tests.integration.test_relay_with_a_long_name.TestDelivery::test_that_a_message_arrives_once[several-words]"
    tests = [TestCase(f"{long}{n}", f"test_{n}", outcome=outcome) for n in range(3) for outcome in ("fail", "pass")]
    verdicts = {
        "failures": {"status": "fail", "value": 3, "threshold": 0, "evidence": f"3 of 214 tests failed; {long}"},
        "patch_coverage": {"status": "fail", "value": 41.667, "threshold": 80.0, "evidence": "5 of 12 added lines ran"},
        "goalposts": {"status": "fail", "value": False, "threshold": True, "evidence": "test_relay.py: a test is gone"},
        "new_findings": {
            "status": "not_measured", "value": None, "threshold": {"level": "warning", "count": 0},
            "evidence": "report.sarif: was not written",
        },
    }  # fmt: skip
    results = Results.of(tests)
    run.complete(
        Judgement("failed", "", False, WHY, verdicts), by=SYSTEM, exit_code=1, results=results, duration_seconds="3.2"
    )
    run.waive("it is known", by=SYSTEM, expires_at=db_now() + timedelta(days=1))
    make_flaky_test(project, test_key=f"{long}0", reason="it depends on the time of day, as far as we can tell")
    return {"gate": gate, "run": run}


def inside(page, locator) -> bool:
    """Whether an element stands in the window from left to right, without a scroll."""
    box = locator.bounding_box()
    return (
        box is not None
        and box["width"] > 0
        and box["x"] >= 0
        and box["x"] + box["width"] <= page.viewport_size["width"]
    )


def test_a_narrow_window_shows_evidence_and_the_button_of_quarantine(live_server, console, world):
    console.set_viewport_size(NARROW)
    console.goto(f"{live_server.url}/gates/runs/{world['run'].pk}/", wait_until="networkidle")
    assert inside(console, console.get_by_text("5 of 12 added lines ran"))
    assert inside(console, console.get_by_text("count: 0, level: warning"))
    assert inside(console, console.locator(".table .badge", has_text="flaky pass").first)
    # Cells below one another are a table still, to who hears the page.
    assert console.get_by_role("columnheader", name="Evidence").count() == 1
    assert console.get_by_role("columnheader", name="Outcome").count() == 1
    assert console.evaluate("document.documentElement.scrollWidth") <= 390
    console.goto(f"{live_server.url}/gates/{world['gate'].pk}/", wait_until="networkidle")
    for button in ("Quarantine", "Release"):
        found = console.locator("summary", has_text=button).first
        assert inside(console, found), button
    assert console.evaluate("document.documentElement.scrollWidth") <= 390


def test_at_1400_a_list_says_why_in_words_that_can_be_read(live_server, console, world):
    console.set_viewport_size({"width": 1400, "height": 900})
    console.goto(f"{live_server.url}/gates/", wait_until="networkidle")
    why = console.locator(".two-lines").first
    assert why.bounding_box()["width"] >= 180
    assert why.inner_text() == WHY
    assert why.evaluate("e => e.scrollHeight <= e.clientHeight + 1") or why.get_attribute("title") == WHY


def test_a_narrow_window_shows_the_whole_of_each_proposal(live_server, console, world, monkeypatch):
    told = "its exit code alone decides"
    command = (
        "cargo",
        "test",
        "--workspace",
        "--all-features",
        "--no-fail-fast",
        "--locked",
        "--target-dir=/tmp/target",
    )
    offered = presets.Preset("cargo", "cargo test", "unit_tests", command, "Cargo.toml is there", {}, {}, told)
    monkeypatch.setattr(bootstrap, "proposals", lambda _project: [offered])
    console.set_viewport_size(NARROW)
    console.goto(f"{live_server.url}/gates/", wait_until="networkidle")
    console.get_by_role("link", name="Proposals for relay").click()
    for text in ("--target-dir=/tmp/target", told):
        assert inside(console, console.get_by_text(text)), text
    assert inside(console, console.get_by_role("checkbox", name="cargo test"))
    assert console.get_by_role("columnheader", name="Command").count() == 1
    assert console.evaluate("document.documentElement.scrollWidth") <= 390
