"""The pages of the gates: verdicts, results, how isolated a check was, and the buttons by role."""

from datetime import timedelta
from decimal import Decimal

import pytest
from django.urls import reverse

from gates import bootstrap, presets
from gates.criteria import Judgement
from gates.junit import Results, TestCase
from gates.models import FlakyTest, Gate, GateRun
from gates.sarif import Found
from pipeline.clock import db_now
from pipeline.events import SYSTEM
from tests import factories

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def quiet_broker(nudges):
    """No page waits for a broker here."""


@pytest.fixture
def project():
    return factories.make_project(key="relay")


@pytest.fixture
def gate_run(project):
    return factories.make_gate_run(factories.make_gate(project, name="Unit tests"))


def signed_in_as(client, project, role):
    user = factories.make_user()
    factories.make_membership(user, project, role)
    client.force_login(user)
    return user


def page_of(client, gate_run):
    return client.get(reverse("gates:run", args=[gate_run.pk]))


def failed(gate_run, *, level=1):
    verdicts = {"max_failures": {"status": "fail", "value": 1, "threshold": 0, "evidence": "1 of 2 tests failed"}}
    tests = (
        TestCase(test_key="tests/a.py::test_good", name="test_good"),
        TestCase(test_key="tests/a.py::test_bad", name="test_bad", outcome="fail", message="no", trace="<b>3 != 4</b>"),
    )
    gate_run.start(by=SYSTEM, runner="r", sandbox_level=level)
    gate_run.complete(
        Judgement("failed", "", False, "max_failures: fail (1, threshold 0)", verdicts),
        by=SYSTEM,
        results=Results(total=2, passed=1, failed=1, tests=tests),
        exit_code=1,
        duration_seconds=Decimal("1.5"),
        output_tail="1 failed, 1 passed",
    )
    return gate_run


def test_a_gate_run_shows_verdicts_failures_results_and_output_escaped(client, project, gate_run):
    signed_in_as(client, project, "viewer")
    failed(gate_run)

    answer = page_of(client, gate_run)

    assert "1 of 2 tests failed" in answer.text
    assert "&lt;b&gt;3 != 4&lt;/b&gt;" in answer.text
    assert "1 failed, 1 passed" in answer.text
    assert [result.name for result in answer.context["failures"]] == ["test_bad"]
    only = client.get(reverse("gates:run", args=[gate_run.pk]) + "?outcome=pass").context["results"]
    assert [result.name for result in only] == ["test_good"]


@pytest.mark.parametrize(("level", "warned"), [(0, True), (1, True), (2, False), (3, False)])
def test_a_check_that_was_not_isolated_says_so(client, project, gate_run, level, warned):
    signed_in_as(client, project, "viewer")
    failed(gate_run, level=level)

    for page in (page_of(client, gate_run).text, client.get("/gates/").text):
        assert f"level {level}" in page
        assert ("not isolated" in page) is warned


def test_gate_runs_are_filtered_by_state_and_gate(client, project, gate_run):
    signed_in_as(client, project, "viewer")
    other = failed(factories.make_gate_run(factories.make_gate(project)))

    def shown(query):
        return [row.pk for row in client.get(f"/gates/?{query}").context["gate_runs"]]

    assert shown("state=failed") == [other.pk]
    assert shown(f"gate={gate_run.gate_id}") == [gate_run.pk]
    assert shown("") == [other.pk, gate_run.pk]


@pytest.mark.parametrize(
    ("role", "verb", "ended", "allowed"),
    [
        ("viewer", "rerun", True, False),
        ("operator", "rerun", True, True),
        ("operator", "skip", False, False),
        ("approver", "skip", False, True),
        ("operator", "waive", True, False),
        ("approver", "waive", True, True),
    ],
)
def test_a_gate_run_s_button_asks_for_its_role(client, project, gate_run, role, verb, ended, allowed):
    signed_in_as(client, project, role)
    if ended:
        failed(gate_run)
    address = reverse(f"gates:{verb}", args=[gate_run.pk])

    assert (f'action="{address}"' in page_of(client, gate_run).text) is allowed
    assert client.post(address, {"reason": "looked at it"}).status_code == (302 if allowed else 403)


def test_a_waiver_names_who_gave_it_and_why(client, project, gate_run):
    user = signed_in_as(client, project, "approver")
    failed(gate_run)

    client.post(reverse("gates:waive", args=[gate_run.pk]), {"reason": "known to be broken"})

    page = page_of(client, gate_run).text
    assert f"Waived by {user.get_username()}:" in page
    assert "known to be broken" in page


@pytest.mark.parametrize("hours", ["0", "-1", "soon", "1.5", "8785", "000010000000", "9" * 20, "²"])
def test_a_waiver_with_a_mistyped_end_is_refused_and_never_lasts_for_ever(client, project, gate_run, hours):
    signed_in_as(client, project, "approver")
    failed(gate_run)

    answer = client.post(reverse("gates:waive", args=[gate_run.pk]), {"reason": "x", "hours": hours}, follow=True)

    assert "a whole number from 1 to 8784" in answer.text
    gate_run.refresh_from_db()
    assert gate_run.waived_at is None


def test_a_waiver_that_ended_is_not_shown_as_one_that_stands(client, project, gate_run):
    signed_in_as(client, project, "viewer")
    failed(gate_run)
    gate_run.waive("for a day", by=SYSTEM, expires_at=db_now() + timedelta(days=1))
    assert ">waived</span>" in page_of(client, gate_run).text
    GateRun.objects.filter(pk=gate_run.pk).update(waiver_expires_at=db_now() - timedelta(minutes=1))

    page = page_of(client, gate_run).text

    assert ">waiver ended</span>" in page
    assert ">waived</span>" not in page
    assert "End the waiver" not in page
    listed = client.get(reverse("gates:list")).text
    assert "waiver ended" in listed
    assert ">waived</span>" not in listed


def test_an_approver_changes_a_waiver_and_takes_it_back(client, project, gate_run):
    signed_in_as(client, project, "approver")
    failed(gate_run)
    client.post(reverse("gates:waive", args=[gate_run.pk]), {"reason": "known", "hours": ""})
    page = page_of(client, gate_run).text
    assert "Change the waiver" in page
    client.post(reverse("gates:waive", args=[gate_run.pk]), {"reason": "known", "hours": "1"})
    gate_run.refresh_from_db()
    assert gate_run.waiver_expires_at is not None
    back = reverse("gates:revoke-waiver", args=[gate_run.pk])
    assert f'action="{back}"' in page
    assert "The waiver has ended." in client.post(back, {"reason": "mended"}, follow=True).text
    gate_run.refresh_from_db()
    assert (gate_run.is_waived, gate_run.verdict) == (False, "failed")


def test_a_rerun_is_a_new_record_and_leads_to_it(client, project, gate_run):
    signed_in_as(client, project, "operator")
    failed(gate_run)

    answer = client.post(reverse("gates:rerun", args=[gate_run.pk]))

    again = GateRun.objects.get(retry_of=gate_run)
    assert answer["Location"] == reverse("gates:run", args=[again.pk])
    assert again.state == "pending"


def test_a_skip_owes_a_reason(client, project, gate_run):
    signed_in_as(client, project, "approver")

    answer = client.post(reverse("gates:skip", args=[gate_run.pk]), follow=True)

    assert "A reason is required" in answer.text
    gate_run.refresh_from_db()
    assert gate_run.state == "pending"


def test_a_gate_run_shows_its_evidence_findings_and_moved_goalposts(client, project, gate_run):
    signed_in_as(client, project, "viewer")
    gate_run.start(by=SYSTEM, runner="r", sandbox_level=1)
    gate_run.complete(
        Judgement(
            "failed", "", False, "goalposts", {"goalposts": {"status": "fail", "value": False, "threshold": True}}
        ),
        by=SYSTEM,
        exit_code=0,
        evidence={
            "junit": {"bytes": 20, "sha256": "ab" * 32, "tests": 2},
            "coverage": {
                "shards": {"1": {"missing": "c.xml: was not written"}, "2": {"lines": 4, "covered": 3, "files": 1}}
            },
            "goalposts": [["test_skipped", "tests/a.py", 9, "test_add is <b>skipped</b>"]],
        },
        findings=[Found("E501", "error", "<i>long</i>", "a.py", 3, "f", help_uri="https://docs.example/E501")],
    )

    text = page_of(client, gate_run).text

    for told in (
        "2 tests",
        "c.xml: was not written",
        "3 of 4 lines ran",
        "tests/a.py:9",
        "&lt;b&gt;skipped",
        "&lt;i&gt;long",
    ):
        assert told in text
    assert 'href="https://docs.example/E501"' in text
    assert "for a person to look at" in text


@pytest.mark.parametrize(("set_days", "days"), [(30, 30), (3650, 90)])
def test_a_gates_page_shows_pass_rate_flaky_tests_and_puts_one_aside_by_an_approver(
    client, project, gate_run, settings, set_days, days
):
    settings.SIGNALBOX_QUARANTINE_DAYS = set_days
    gate_run.start(by=SYSTEM, runner="r", sandbox_level=1)
    tests = [TestCase("k", "k", outcome="fail"), TestCase("k", "k", duration_seconds=2.0)]
    judgement = Judgement("passed", "", True, "fine")
    gate_run.complete(judgement, by=SYSTEM, exit_code=0, results=Results.of(tests), duration_seconds="2")
    address = reverse("gates:quarantine", args=[gate_run.gate_id])
    body = {"test_key": "k", "reason": "the clock"}
    signed_in_as(client, project, "operator")
    assert client.post(address, body).status_code == 403
    signed_in_as(client, project, "approver")
    report = client.get(reverse("gates:gate", args=[gate_run.gate_id])).context["report"]
    assert f"Quarantine for {days} days" in client.get(reverse("gates:gate", args=[gate_run.gate_id])).text
    assert (report.pass_rate, [row["test_key"] for row in report.flakiest], len(report.slowest)) == (1.0, ["k"], 1)
    client.post(address, {**body, "test_key": "unknown"})
    client.post(address, {**body, "reason": " "})
    assert FlakyTest.objects.count() == 0
    client.post(address, body)
    row = FlakyTest.objects.get()
    assert (row.test_key, row.reason, row.is_standing) == ("k", "the clock", True)
    assert (row.expires_at - row.since).days in (days - 1, days)
    client.post(reverse("gates:flaky-release", args=[row.pk]), {"reason": "mended", "gate": gate_run.gate_id})
    assert FlakyTest.objects.count() == 0


def test_a_page_of_a_running_check_says_by_what_it_will_be_judged(client, project):
    signed_in_as(client, project, "viewer")
    gate = factories.make_gate(project, criteria={"max_failures": 0, "min_tests": 1}, evidence={"junit": "j.xml"})
    run = factories.make_gate_run(gate)
    run.start(by=SYSTEM, runner="r", sandbox_level=2)
    page = page_of(client, run).text
    assert "Nothing is judged yet" in page
    assert "it is judged by min_tests, max_failures" in page
    assert "No criteria were judged" not in page
    assert "It has written nothing yet." in page


def test_values_of_criteria_are_words_and_not_a_programs_own(client, project):
    signed_in_as(client, project, "admin")
    evidence = {"sarif": "s.sarif", "coverage": "c.xml"}
    found = {"level": "warning", "count": 0}
    gate = factories.make_gate(project, criteria={"goalposts": True, "max_new_findings": found}, evidence=evidence)
    run = factories.make_gate_run(gate)
    run.start(by=SYSTEM, runner="r", sandbox_level=2)
    verdicts = {
        "goalposts": {"status": "fail", "value": False, "threshold": True, "evidence": "a test was deleted"},
        "new_findings": {"status": "not_measured", "value": None, "threshold": found, "evidence": "no report"},
    }
    bare = (TestCase(test_key="quiet", name="quiet", outcome="fail"),)
    run.complete(
        Judgement("failed", "", False, "goalposts", verdicts),
        by=SYSTEM, exit_code=0, results=Results(total=1, failed=1, tests=bare),
    )  # fmt: skip
    page = page_of(client, run).text
    assert "count: 0, level: warning" in page
    for raw in ("False", "True", "{&#x27;", "None"):
        assert raw not in page, raw
    assert "the report says nothing more" in page
    assert '<pre class="log" tabindex="0"></pre>' not in page
    shown = client.get(reverse("gates:gate", args=[gate.pk])).text
    assert "max_new_findings: count: 0, level: warning" in shown
    assert "goalposts: yes" in shown


def test_a_gate_without_a_command_shows_no_empty_box(client, project):
    signed_in_as(client, project, "viewer")
    gate = factories.make_gate(project, external=True, command=[])
    assert "<code></code>" not in page_of(client, factories.make_gate_run(gate)).text
    page = client.get(reverse("gates:gate", args=[gate.pk])).text
    assert "<code></code>" not in page
    assert "run by a system outside" in page


PROPOSED = presets.Preset("words", "Words", "lint", ("sh", "-c", "true"), "the branch has words")


def test_the_way_to_proposals_stands_on_the_page_of_gates(client, project):
    other = factories.make_project()
    signed_in_as(client, project, "viewer")
    way = f'<a href="{reverse("gates:proposals", args=[project.key])}">Proposals for {project.key}</a>'
    for address in ("", f"?project={project.pk}"):
        page = client.get(reverse("gates:list") + address).text
        assert way in page
        assert f"Proposals for {other.key}" not in page


def test_saving_proposals_with_nothing_ticked_says_so(client, project, monkeypatch):
    monkeypatch.setattr(bootstrap, "proposals", lambda _project: [PROPOSED])
    signed_in_as(client, project, "admin")
    address = reverse("gates:proposals", args=[project.key])
    page = client.post(address, follow=True).text
    assert "Nothing was ticked, so nothing was saved" in page
    assert "Nothing changed" not in page
    assert Gate.objects.count() == 0
    assert "Saved: they judge the patches from now on." in client.post(address, {"keys": ["words"]}, follow=True).text
    assert Gate.objects.get().key == "words"
