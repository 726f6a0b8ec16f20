"""The gates' API: definitions are kept by admins, runs are read by everybody of the project and judged by approvers."""

from datetime import timedelta
from typing import Any

import pytest

from gates import criteria, evidence
from gates.criteria import Judgement
from gates.junit import Results, TestCase
from gates.models import Gate, GateRun
from pipeline import events
from pipeline.clock import db_now
from tests import factories
from tests.api.asking import HUGE, NUL, Api, refused, wrong_values

pytestmark = pytest.mark.django_db

COUNT = events.Event.objects.filter


@pytest.fixture
def project() -> Any:
    """A project."""
    return factories.make_project()


@pytest.fixture
def admin(project: Any) -> Api:
    """Its admin."""
    return Api(factories.make_key("admin", project=project).text)


@pytest.fixture
def approver(project: Any) -> Api:
    """An approver of it."""
    return Api(factories.make_key("approver", project=project).text)


def definition(project: Any, **fields: Any) -> dict[str, Any]:
    """A gate with every field, as a program sends it."""
    return {
        "project": project.key,
        "key": "unit",
        "name": "Unit tests",
        "gate_type": "unit_tests",
        "applies_to": ["src/**"],
        "command": ["pytest", "-q", " --x"],
        "cwd": "src",
        "env_allow": ["CI"],
        "evidence": {"junit": "out/junit-{shard}.xml"},
        "criteria": {"max_failures": 0},
        "expected_exit_codes": [0, 3],
        "finding_exit_codes": [1, 2],
        "shards": 2,
        "depends_on": [],
        "timeout_seconds": 60,
        "sandbox_level_min": 2,
        "resources": {"processes": 64},
        "caches": [],
        "external": False,
        "required": True,
        "judges": "patch",
        "enabled": True,
        **fields,
    }


# -- definitions -------------------------------------------------------------------------------------------------


def test_an_admin_adds_a_gate(project: Any, admin: Api) -> None:
    body = definition(project)

    answer = admin.post("/gates/", body)

    assert answer.status_code == 201
    shown = answer.json()
    assert {name: shown[name] for name in body} == {**body, "project": project.pk}
    assert shown["gate_version"] == 1
    assert COUNT(kind="gate.added").get().subject_id == shown["id"]
    assert refused(admin.post("/gates/", body)) == (409, "duplicate_key")


def test_a_change_of_what_is_run_is_a_new_gate_version(project: Any, admin: Api) -> None:
    made = admin.post("/gates/", definition(project)).json()
    path = f"/gates/{made['id']}/"

    renamed = admin.patch(path, {"name": "Tests"}, version=1).json()
    changed = admin.patch(path, {"command": ["pytest"]}, version=2).json()

    assert (renamed["version"], renamed["gate_version"]) == (2, 1)
    assert (changed["version"], changed["gate_version"]) == (3, 2)
    assert refused(admin.patch(path, {"command": ["x"]}, version=2)) == (412, "precondition_failed")
    assert refused(admin.patch(path, {"command": ["x"]})) == (412, "precondition_failed")
    assert refused(admin.patch(path, {"gate_version": 9}, version=3)) == (400, "unknown_field")
    assert refused(admin.patch(path, {"project": factories.make_project().key}, version=3))[0] in (404, 422)


def test_a_gate_is_removed_until_it_has_run(project: Any, admin: Api) -> None:
    unused, used = factories.make_gate(project), factories.make_gate(project)
    factories.make_gate_run(used)

    assert admin.delete(f"/gates/{unused.pk}/").status_code == 204
    assert refused(admin.delete(f"/gates/{used.pk}/")) == (409, "in_use")


def test_a_gate_that_could_never_be_measured_says_by_what_it_would_be(project: Any, admin: Api) -> None:
    gate = definition(project, criteria={"min_coverage": 80}, evidence={})
    assert "min_coverage is measured by coverage" in admin.post("/gates/", gate).json()["detail"]
    assert admin.post("/gates/", {**gate, "evidence": {"coverage": "c-{shard}.xml"}}).status_code == 201
    external = {**gate, "key": "ci", "command": [], "external": True}
    assert "min_coverage is measured by coverage" in admin.post("/gates/", external).json()["detail"]


def test_phase_and_workstream_are_of_the_gates_project(project: Any, admin: Api) -> None:
    chief = Api(factories.make_key("admin").text)
    foreign = factories.make_workstream()
    own = factories.make_phase(project)

    assert admin.post("/gates/", definition(project, phase=own.pk)).json()["phase"] == own.pk
    assert refused(admin.post("/gates/", definition(project, phase=foreign.phase_id))) == (404, "phase_not_found")
    for name, pk in (("phase", foreign.phase_id), ("workstream", foreign.pk)):
        assert refused(chief.post("/gates/", definition(project, key="b", **{name: pk}))) == (422, "invalid_field")


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"gate_type": "magic"}, "invalid_gate_type"),
        ({"criteria": {"min_coverage": 101}}, "invalid_criteria"),
        ({"criteria": {"luck": 1}}, "invalid_criteria"),
        ({"criteria": {"required_tests": None}}, "invalid_criteria"),
        ({"criteria": {"min_coverage": 80}, "evidence": {"junit": "r.xml"}}, "invalid_field"),
        ({"criteria": {"min_patch_coverage": 80}, "evidence": {}}, "invalid_field"),
        ({"criteria": {"required_tests": ["a"]}, "evidence": {"coverage": "c.xml"}}, "invalid_field"),
        ({"criteria": {"max_new_findings": {"level": "error", "count": 0}}, "evidence": {}}, "invalid_field"),
        ({"command": []}, "invalid_field"),
        ({"command": "pytest -q"}, "invalid_field"),
        ({"command": [""]}, "invalid_field"),
        ({"command": ["  ", "x"]}, "invalid_field"),
        ({"env_allow": ["A=B"]}, "invalid_field"),
        ({"env_allow": [""]}, "invalid_field"),
        ({"evidence": {"junit": "report", "coverage": "report"}}, "invalid_field"),
        ({"evidence": {"junit": "report", "coverage": "report/coverage.xml"}}, "invalid_field"),
        ({"cwd": "../out"}, None),
        ({"cwd": "/abs"}, None),
        ({"evidence": {"junit": "../../etc/passwd"}}, None),
        ({"evidence": {"video": "x"}}, "invalid_field"),
        ({"applies_to": ["/etc/**"]}, None),
        ({"depends_on": ["nothing"]}, "unknown_dependency"),
        ({"depends_on": ["unit"]}, "circular_dependency"),
        ({"expected_exit_codes": [256]}, "invalid_field"),
        ({"expected_exit_codes": ["x"]}, "invalid_field"),
        ({"expected_exit_codes": ["0"]}, "invalid_field"),
        ({"finding_exit_codes": [1.0]}, "invalid_field"),
        ({"shards": "2"}, "invalid_field"),
        ({"timeout_seconds": "60"}, "invalid_field"),
        ({"resources": {"processes": "64"}}, "invalid_field"),
        ({"applies_to": ["["]}, "invalid_field"),
        ({"shards": 0}, "invalid_field"),
        ({"shards": 70000}, "invalid_field"),
        ({"timeout_seconds": 0}, "invalid_field"),
        ({"sandbox_level_min": 0}, "invalid_field"),
        ({"sandbox_level_min": 4}, "invalid_field"),
        ({"resources": {"luck": 1}}, "invalid_field"),
        ({"resources": {"processes": 1}}, "invalid_field"),
        ({"resources": {"output_mb": 65}}, "invalid_field"),
        ({"caches": ["none-such"]}, "invalid_field"),
        ({"timeout_seconds": HUGE}, "invalid_field"),
        ({"key": "Not A Key"}, "invalid_field"),
        ({"name": "x" * 201}, "invalid_field"),
        ({"judges": "weather"}, "invalid_field"),
        ({"judges": "phase"}, "invalid_field"),
    ],
)
def test_a_gate_that_cannot_be_is_refused(project: Any, admin: Api, fields: dict[str, Any], code: str | None) -> None:
    status, found = refused(admin.post("/gates/", definition(project, **fields)))

    assert status == 422
    assert code is None or found == code
    assert Gate.objects.count() == 0


def test_no_gate_with_a_wrong_value_gets_in(project: Any, admin: Api) -> None:
    good = definition(project)
    for name, value in good.items():
        for wrong in wrong_values(value):
            answer = admin.post("/gates/", {**good, name: wrong})
            assert refused(answer)[0] in (400, 404, 422), (name, str(wrong)[:50])
    for name in ("project", "key", "name", "gate_type", "command"):
        without = {other: value for other, value in good.items() if other != name}
        assert refused(admin.post("/gates/", without)) == (422, "missing_required_field")
    assert refused(admin.post("/gates/", {**good, "state": "passed"})) == (400, "unknown_field")
    assert Gate.objects.count() == 0


# -- runs --------------------------------------------------------------------------------------------------------


def failed_run(project: Any) -> GateRun:
    """A run that failed with two results and a log."""
    run = factories.make_gate_run(factories.make_gate(project))
    run.start(by=factories.BY, runner="r")
    results = evidence.read_junit(
        b'<testsuite name="s"><testcase name="a" classname="m"/>'
        b'<testcase name="b" classname="m"><failure message="no">trace</failure></testcase></testsuite>'
    )
    run.complete(
        criteria.Judgement(state="failed", reason="failures: fail", decision_passed=False, verdicts={}, error_kind=""),
        by=factories.BY,
        results=results,
        exit_code=1,
        output_tail="<b>1 failed</b>\n",
    )
    return run


def test_a_run_is_read_with_its_results_and_its_log(project: Any, approver: Api) -> None:
    run = failed_run(project)
    path = f"/gate-runs/{run.pk}"

    shown = approver.get(f"{path}/").json()
    rows = approver.get(f"{path}/results/").json()["results"]
    log = approver.get(f"{path}/log/")

    assert (shown["state"], shown["verdict"], shown["total_tests"], shown["failed_tests"]) == ("failed", "failed", 2, 1)
    assert "output_tail" not in shown
    assert {(row["name"], row["outcome"]) for row in rows} == {("a", "pass"), ("b", "fail")}
    assert log.content == b"<b>1 failed</b>\n"
    assert log.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert log.headers["Content-Disposition"] == f'attachment; filename="{run.pk}.log"'
    assert log.headers["X-Content-Type-Options"] == "nosniff"


def test_runs_are_filtered_and_no_list_loads_a_log(
    project: Any, approver: Api, django_assert_max_num_queries: Any
) -> None:
    run = failed_run(project)
    for _number in range(3):
        factories.make_gate_run(factories.make_gate(project))

    with django_assert_max_num_queries(4) as asked:
        rows = approver.get("/gate-runs/").json()["results"]

    assert len(rows) == 4
    assert "verdicts" not in rows[0]
    assert not any("output_tail" in query["sql"] for query in asked.captured_queries)
    assert [row["id"] for row in approver.get("/gate-runs/", state="failed").json()["results"]] == [run.pk]
    assert [row["id"] for row in approver.get("/gate-runs/", gate=run.gate_id).json()["results"]] == [run.pk]
    assert refused(approver.get("/gate-runs/", output_tail="x")) == (400, "unknown_filter")


def test_a_skip_owes_a_reason_and_is_quiet(project: Any, approver: Api) -> None:
    run = factories.make_gate_run(factories.make_gate(project))
    path = f"/gate-runs/{run.pk}/skip/"

    assert refused(approver.post(path)) == (422, "reason_required")
    shown = approver.post(path, {"reason": "not today"}).json()
    assert (shown["state"], shown["skip_reason"], shown["verdict"]) == ("skipped", "Skipped: not today", "unknown")
    assert approver.post(path, {"reason": "not today"}).status_code == 200
    assert COUNT(kind="gate_run.skipped").count() == 1
    assert refused(approver.post(f"/gate-runs/{failed_run(project).pk}/skip/", {"reason": "x"})) == (
        409,
        "invalid_move",
    )


def test_a_waiver_counts_as_passed_until_it_ends(project: Any, approver: Api) -> None:
    run = failed_run(project)
    path = f"/gate-runs/{run.pk}/waive/"
    past, future = db_now() - timedelta(hours=1), db_now() + timedelta(hours=1)

    assert refused(approver.post(path)) == (422, "reason_required")
    assert refused(approver.post(path, {"reason": "x", "expires_at": past.isoformat()})) == (422, "invalid_field")
    shown = approver.post(path, {"reason": "known", "expires_at": future.isoformat()}).json()
    assert (shown["state"], shown["verdict"], shown["waive_reason"]) == ("failed", "passed", "known")
    assert approver.post(path, {"reason": "known", "expires_at": future.isoformat()}).json()["verdict"] == "passed"
    assert COUNT(kind="gate_run.waived").count() == 1


def test_a_waiver_is_made_shorter_and_longer_and_taken_back(project: Any, approver: Api) -> None:
    run = failed_run(project)
    path, back = f"/gate-runs/{run.pk}/waive/", f"/gate-runs/{run.pk}/revoke-waiver/"
    soon, later = db_now() + timedelta(minutes=5), db_now() + timedelta(days=9)

    assert approver.post(back, {"reason": "none stands"}).json()["waived_at"] is None
    assert approver.post(path, {"reason": "known"}).json()["waiver_expires_at"] is None
    for end in (soon, later):
        shown = approver.post(path, {"reason": "again", "expires_at": end.isoformat()}).json()
        assert (shown["waive_reason"], shown["verdict"]) == ("again", "passed")
        run.refresh_from_db()
        assert run.waiver_expires_at == end
    assert COUNT(kind="gate_run.waived").count() == 3
    assert COUNT(kind="gate_run.waived").latest("pk").before["waiver_expires_at"]

    operator = Api(factories.make_key("operator", project=project).text)
    assert refused(operator.post(back, {"reason": "x"}))[0] == 403
    assert refused(approver.post(back)) == (422, "reason_required")
    shown = approver.post(back, {"reason": "it was mended"}).json()
    assert (shown["state"], shown["verdict"], shown["waive_reason"]) == ("failed", "failed", "again")
    approver.post(back, {"reason": "twice"})
    (event,) = COUNT(kind="gate_run.waiver_revoked")
    assert (event.reason, event.severity) == ("it was mended", "warning")
    assert "waiver_expires_at" in event.after
    assert approver.post(path, {"reason": "broken again"}).json()["verdict"] == "passed"


def test_what_has_not_ended_is_neither_waived_nor_run_again(project: Any, approver: Api) -> None:
    run = factories.make_gate_run(factories.make_gate(project))

    assert refused(approver.post(f"/gate-runs/{run.pk}/waive/", {"reason": "x"})) == (409, "invalid_move")
    assert refused(approver.post(f"/gate-runs/{run.pk}/rerun/")) == (409, "invalid_move")


def test_an_operator_runs_a_gate_again_but_waives_nothing(project: Any) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    run = failed_run(project)

    answer = operator.post(f"/gate-runs/{run.pk}/rerun/")

    assert answer.status_code == 201
    again = answer.json()
    assert (again["retry_of"], again["state"], again["tree_hash"]) == (run.pk, "pending", run.tree_hash)
    for verb in ("skip", "waive"):
        assert refused(operator.post(f"/gate-runs/{run.pk}/{verb}/", {"reason": "x"})) == (403, "permission_denied")


def test_one_rerun_is_open_at_a_time_and_the_next_is_told_which(project: Any) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    run = failed_run(project)
    first = operator.post(f"/gate-runs/{run.pk}/rerun/").json()
    for _ in range(5):
        answer = operator.post(f"/gate-runs/{run.pk}/rerun/")
        assert refused(answer) == (409, "rerun_open")
        assert answer.json()["gate_run"] == first["id"]
    GateRun.objects.get(pk=first["id"]).skip("enough", by=factories.BY)
    assert operator.post(f"/gate-runs/{run.pk}/rerun/").status_code == 201
    assert GateRun.objects.filter(retry_of=run).count() == 2


def test_a_quarantine_is_of_a_test_that_a_run_has_reported(project: Any, approver: Api) -> None:
    owner = factories.make_membership(project=project).user.username
    body = {
        "project": project.key, "owner": owner, "reason": "depends on the clock",
        "expires_at": (db_now() + timedelta(days=7)).isoformat(),
    }  # fmt: skip
    assert refused(approver.post("/flaky-tests/", {**body, "owner": "nobody-here", "test_key": "a"})) == (
        422, "invalid_field"
    )  # fmt: skip
    early = approver.post("/flaky-tests/", {**body, "test_key": "before.any::run"})
    assert (early.status_code, early.json()["warning"]) == (201, "no run has reported a test of this name yet")

    run = factories.make_gate_run(factories.make_gate(project))
    run.start(by=factories.BY)
    names = [("tests.test_clock.TestTime", "test_noon"), ("tests.test_clock", "test_date[a::b]")]
    tests = Results.of(TestCase(f"{classname}::{name}", name, classname) for classname, name in names)
    run.complete(Judgement("passed", "", True, "fine"), by=factories.BY, exit_code=0, results=tests)

    wrong = approver.post("/flaky-tests/", {**body, "test_key": "tests.test_clock.TestTime::test_non"})
    assert refused(wrong) == (422, "invalid_field")
    assert "near it are tests.test_clock.TestTime::test_noon" in wrong.json()["detail"]
    assert wrong.json()["near"][0] == "tests.test_clock.TestTime::test_noon"
    assert refused(approver.post("/flaky-tests/", {**body, "test_key": "nothing like it"}))[0] == 422
    for given, kept in (
        ("tests/test_clock.py::TestTime::test_noon", "tests.test_clock.TestTime::test_noon"),
        ("tests.test_clock::test_date[a::b]", "tests.test_clock::test_date[a::b]"),
    ):
        made = approver.post("/flaky-tests/", {**body, "test_key": given}).json()
        assert (made["test_key"], made["warning"]) == (kept, "")


@pytest.mark.parametrize(
    "body",
    [
        {"reason": []}, {"reason": NUL}, {"reason": "x" * 2001}, {"why": "x"}, [],
        {"reason": "x", "expires_at": "soon"},
        {"reason": "x", "expires_at": HUGE}, {"reason": "x", "expires_at": "0001-01-01T00:00:00+14:00"},
        {"reason": "x", "expires_at": []},
    ],
)  # fmt: skip
def test_no_waiver_with_a_wrong_value_stands(project: Any, approver: Api, body: Any) -> None:
    run = failed_run(project)

    assert refused(approver.post(f"/gate-runs/{run.pk}/waive/", body))[0] in (400, 422)
    run.refresh_from_db()
    assert run.waived_at is None


def test_the_runs_of_another_project_do_not_exist(approver: Api) -> None:
    run = failed_run(factories.make_project())

    for verb in ("", "results/", "log/"):
        assert refused(approver.get(f"/gate-runs/{run.pk}/{verb}")) == (404, "gate_run_not_found")
    for verb in ("skip", "waive", "rerun"):
        assert refused(approver.post(f"/gate-runs/{run.pk}/{verb}/", {})) == (404, "gate_run_not_found")
    assert refused(approver.get(f"/gates/{run.gate_id}/")) == (404, "gate_not_found")
