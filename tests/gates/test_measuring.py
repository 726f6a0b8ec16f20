"""What a run measures: patch coverage by our own diff, new findings against the base, flaky tests, goalposts."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gates import bootstrap, environment
from gates.models import Finding, FlakyTest, Gate, GateRun
from ledger import git, receipts
from pipeline import events
from pipeline.clock import db_now
from pipeline.models import Event
from pipeline.refusals import InvalidField
from tests import factories
from tests.factories import BY, make_flaky_test, make_gate, make_gate_run, make_membership, make_project, make_user
from tests.flows.house import House, chain, piece

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

PYTEST = ["python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "--junitxml={evidence}/junit.xml"]
TESTS: dict[str, Any] = {"gate_type": "unit_tests", "command": PYTEST, "evidence": {"junit": "junit.xml"}}

CALC = "def add(a, b):\n    return a + b\n"
TEST = "from calc import add\n\n\ndef test_add():\n    assert add(1, 2) == 3\n"


def house_with(tmp_path: Path, files: dict[str, str] | None = None, **gates: dict[str, Any]) -> House:
    """A house with one task, these files and these gates."""
    return House(tmp_path, [piece("a")], gates=gates, files={"calc.py": CALC, "test_calc.py": TEST, **(files or {})})


def writes(path: str, lines: list[str]) -> list[str]:
    """A command that writes a file of evidence."""
    return [
        "python",
        "-c",
        f"import os; open(os.environ['SIGNALBOX_EVIDENCE'] + '/{path}', 'w').write({chr(10).join(lines)!r})",
    ]


def only_run(house: House) -> GateRun:
    """The one run that judged."""
    (run,) = [run for run in house.gate_runs() if not run.baseline]
    return run


# -- coverage ------------------------------------------------------------------------------------------------------

LCOV = ["SF:calc.py", "DA:1,1", "DA:2,1", "DA:5,1", "DA:6,0", "end_of_record", ""]
GROWN = CALC + "\n\ndef sub(a, b):\n    return a - b\n"


@pytest.mark.parametrize(("least", "state"), [(50, "passed"), (51, "failed")], ids=["reached", "missed"])
def test_patch_coverage_counts_the_lines_that_the_patch_added(tmp_path: Path, least: int, state: str) -> None:
    gate = {
        "command": writes("lcov.info", LCOV),
        "evidence": {"coverage": "lcov.info"},
        "criteria": {"min_coverage": 75, "min_patch_coverage": least},
    }
    house = house_with(tmp_path, cover=gate)
    house.work({"calc.py": GROWN})
    run = only_run(house)
    assert run.state == state, run.decision_reason
    assert (run.coverage_percent, run.patch_coverage_percent) == (75, 50)
    assert run.verdicts["patch_coverage"]["evidence"] == "1 of 2 added lines ran"
    assert run.evidence["patch_coverage"]["missed"] == ["calc.py:6"]
    assert run.evidence["coverage"]["lines"] == 4


def test_a_file_of_which_the_report_is_silent_is_not_measured(tmp_path: Path) -> None:
    gate = {
        "command": writes("lcov.info", LCOV[:3] + LCOV[-2:]),
        "evidence": {"coverage": "lcov.info"},
        "criteria": {"min_patch_coverage": 0},
    }
    house = house_with(tmp_path, cover=gate)
    house.work({"more.py": "def more():\n    return 1\n"})
    run = only_run(house)
    assert run.verdicts["patch_coverage"]["status"] == "not_measured"
    assert "more.py" in run.verdicts["patch_coverage"]["evidence"]
    assert run.verdict == "failed"


# -- findings against the base -------------------------------------------------------------------------------------

SCANNER = """\
import json, os, pathlib
results = []
for path in sorted(pathlib.Path('.').rglob('*.py')):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if 'eval(' in line:
            place = {'physicalLocation': {'artifactLocation': {'uri': str(path)}, 'region': {'startLine': number}}}
            results.append({'ruleId': 'E1', 'level': 'error', 'message': {'text': 'eval'}, 'locations': [place]})
report = {'version': '2.1.0', 'runs': [{'tool': {'driver': {'name': 'scan'}}, 'results': results}]}
open(os.environ['SIGNALBOX_EVIDENCE'] + '/s.sarif', 'w').write(json.dumps(report))
raise SystemExit(1 if results else 0)
"""
SCAN: dict[str, Any] = {
    "gate_type": "security_scan",
    "command": ["python", "-c", SCANNER],
    "evidence": {"sarif": "s.sarif"},
    "criteria": {"max_new_findings": {"level": "warning", "count": 0}},
}


def test_findings_that_the_base_has_are_not_the_patchs(tmp_path: Path) -> None:
    house = house_with(tmp_path, {"old.py": "eval('1')\n"}, scan=SCAN)
    house.work({"old.py": "\n\neval('1')\n", "new.py": "x = 1\n"})
    run = only_run(house)
    base = next(run for run in house.gate_runs() if run.baseline)
    assert (base.state, base.required, base.patch_id, base.tree_hash) == ("passed", False, None, run.base_tree)
    assert run.state == "passed", run.decision_reason
    assert [(one.path, one.line, one.is_new) for one in Finding.objects.filter(gate_run=run)] == [("old.py", 3, False)]
    assert house.run.state == "succeeded"
    house.must_hold()


def test_a_new_finding_fails_the_patch_even_beside_old_ones(tmp_path: Path) -> None:
    house = house_with(tmp_path, {"old.py": "eval('1')\n"}, scan=SCAN)
    house.work({"old.py": "eval('1')\neval('1')\n"})
    run = only_run(house)
    assert (run.state, run.verdicts["new_findings"]["value"]) == ("failed", 1)
    assert sorted(one.is_new for one in Finding.objects.filter(gate_run=run)) == [False, True]


@pytest.mark.parametrize("end", ["sys.exit(2)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 11)"])
def test_a_scanner_that_gave_up_or_was_killed_passes_nothing_by_half_a_report(tmp_path: Path, end: str) -> None:
    # It is well on the base, and on the patch it is ended beside the old finding.
    gives_up = SCANNER.replace("raise SystemExit", f"import sys\nif os.path.exists('new.py'): {end}\nraise SystemExit")
    house = house_with(tmp_path, {"old.py": "eval('1')\n"}, scan={**SCAN, "command": ["python", "-c", gives_up]})
    house.work({"new.py": "x = 1\n"})
    run = only_run(house)
    assert (run.state, run.error_kind, run.verdict) == ("error", "command", "failed"), run.decision_reason
    assert "did not finish its work" in run.decision_reason
    assert house.run.state != "succeeded"


def test_half_a_report_on_the_base_is_no_measurement(tmp_path: Path) -> None:
    gives_up = SCANNER.replace(
        "raise SystemExit", "import sys\nif not os.path.exists('new.py'): sys.exit(2)\nraise SystemExit"
    )
    house = house_with(tmp_path, {"old.py": "eval('1')\n"}, scan={**SCAN, "command": ["python", "-c", gives_up]})
    house.work({"new.py": "x = 1\n"})
    base = next(run for run in house.gate_runs() if run.baseline)
    assert (base.state, base.error_kind) == ("error", "command")
    assert only_run(house).verdicts["new_findings"]["status"] == "not_measured"


def test_without_a_measurement_of_the_base_nothing_is_said_of_what_is_new(tmp_path: Path) -> None:
    broken_on_base = {
        **SCAN,
        "command": ["python", "-c", f"import os\nif os.path.exists('new.py'):\n exec({SCANNER!r})"],
    }
    house = house_with(tmp_path, scan=broken_on_base)
    house.work({"new.py": "x = 1\n"})
    run = only_run(house)
    assert run.verdicts["new_findings"]["status"] == "not_measured"
    assert run.verdict == "failed"


# -- flaky tests ---------------------------------------------------------------------------------------------------

# Fails in the first copy and passes in the second: what it remembers lies outside, as the time of day does.
# In the box nothing outlives a run, so this one depends on what many do: whether it runs beside others.
FLAKY = """\
import sys


def test_flaky():
    assert any("::" in word for word in sys.argv)
"""


@pytest.mark.parametrize("required", [False, True], ids=["free", "required"])
def test_a_flaky_pass_is_labelled_and_blocks_where_the_test_is_required(tmp_path: Path, required: bool) -> None:
    criteria = {"required_tests": ["test_flaky"]} if required else {"max_failures": 0}
    house = house_with(tmp_path, tests={**TESTS, "criteria": criteria})
    house.work({"test_flaky.py": FLAKY})
    run = only_run(house)
    assert run.state == ("failed" if required else "passed"), run.decision_reason
    assert (run.total_tests, run.passed_tests, run.flaky_tests) == (2, 2, 1)
    told = run.results.filter(name="test_flaky").order_by("attempt").values_list("attempt", "outcome")
    assert list(told) == [(1, "fail"), (2, "flaky_pass")]
    assert run.results.filter(name="test_add").count() == 1
    assert run.evidence["reruns"] == [{"tests": 1, "reported": 1, "exit_code": 0}]


def test_a_test_that_fails_again_has_failed(tmp_path: Path) -> None:
    house = house_with(tmp_path, tests=TESTS)
    house.work({"test_no.py": "def test_no():\n    assert 0\n"})
    run = only_run(house)
    assert (run.state, run.failed_tests, run.flaky_tests, run.exit_code) == ("failed", 1, 0, 1)
    assert run.results.filter(name="test_no").count() == 2


def test_the_failure_of_a_test_in_quarantine_is_told_and_not_judged(tmp_path: Path) -> None:
    house = house_with(tmp_path, tests={**TESTS, "reruns": 0})
    make_flaky_test(house.project, test_key="test_no::test_no")
    house.work({"test_no.py": "def test_no():\n    assert 0\n"})
    run = only_run(house)
    assert (run.state, run.failed_tests, run.exit_code) == ("passed", 1, 1)
    assert house.run.state == "succeeded"


KILLED = """\
import os, sys


def pytest_unconfigure():
    # The report is written, and half of the tests did not run, say.
    if not any({word} for word in sys.argv):
        os.kill(os.getpid(), 9)
"""


def test_a_run_that_was_killed_is_not_saved_by_running_its_failed_test_again(tmp_path: Path) -> None:
    house = house_with(tmp_path, {"conftest.py": KILLED.replace("{word}", "'::' in word")}, tests=TESTS)
    house.work({"test_flaky.py": FLAKY})
    run = only_run(house)
    assert (run.exit_code, run.verdict, run.flaky_tests) == (137, "failed", 0)
    assert "reruns" not in run.evidence


def test_tests_of_the_base_that_were_killed_say_nothing_of_the_goalposts(tmp_path: Path) -> None:
    gate = {**TESTS, "criteria": {"goalposts": True}, "base_tests": True}
    killed = KILLED.replace("any({word} for word in sys.argv)", "'test_more' in open('test_calc.py').read()")
    house = house_with(tmp_path, {"conftest.py": killed}, tests=gate)
    house.work({"test_calc.py": TEST + "\n\ndef test_more():\n    assert add(2, 2) == 4\n"})
    run = only_run(house)
    assert (run.exit_code, run.evidence["base_tests"]["exit_code"]) == (0, 137)
    assert run.verdicts["goalposts"]["status"] == "not_measured"
    assert "gave up on the patched source" in run.verdicts["goalposts"]["evidence"]


def test_a_required_test_is_judged_in_quarantine_too(tmp_path: Path) -> None:
    house = house_with(tmp_path, tests={**TESTS, "reruns": 0, "criteria": {"required_tests": ["test_no::test_no"]}})
    make_flaky_test(house.project, test_key="test_no::test_no")
    house.work({"test_no.py": "def test_no():\n    assert 0\n"})
    assert only_run(house).verdict == "failed"


def test_a_quarantine_ends_by_passes_by_time_and_by_hand() -> None:
    gate = make_gate()
    row = make_flaky_test(gate.project, test_key="k")
    from gates.criteria import Judgement
    from gates.junit import Results, TestCase

    def ran(outcome: str) -> None:
        run = make_gate_run(gate)
        run.start(by=BY)
        run.complete(
            Judgement("passed", "", True, "fine"),
            by=BY,
            exit_code=0,
            results=Results.of([TestCase("k", "k", outcome=outcome)]),
        )
        FlakyTest.objects.recount(run)
        FlakyTest.objects.recount(run)  # a repeat counts nothing twice

    for outcome in ("pass", "fail", *["pass"] * 19):
        ran(outcome)
    row.refresh_from_db()
    assert (row.consecutive_passes, row.version) == (19, 1)
    ran("pass")
    assert not FlakyTest.objects.filter(pk=row.pk).exists()
    assert Event.objects.get(kind="flaky_test.released").reason == "it passed 20 times in a row"

    late = make_flaky_test(test_key="late")
    FlakyTest.objects.filter(pk=late.pk).update(expires_at=db_now() - timedelta(seconds=1))
    assert FlakyTest.objects.keys_of(late.project_id) == frozenset()
    assert (FlakyTest.objects.wake_owners(), FlakyTest.objects.wake_owners()) == (1, 0)
    told = Event.objects.get(kind="alert.raised")
    assert (told.data["owner"], told.data["test_key"]) == (late.owner, "late")

    late.refresh_from_db()
    assert late.release("mended", by=BY) is True
    assert late.release("mended", by=BY) is False


def test_the_owner_of_a_quarantine_is_a_person_who_sees_the_project() -> None:
    project = make_project()
    make_user(username="elsewhere")
    make_user(username="root", is_superuser=True)
    make_membership(make_user(username="gone", is_active=False), project)
    member = make_membership(make_user(username="member"), project)
    for nobody in ("nobody-here", "elsewhere", "gone", "MEMBER"):
        with pytest.raises(InvalidField, match=f"{nobody}: nobody of that username sees {project.key}"):
            make_flaky_test(project, owner=nobody)
    assert FlakyTest.objects.count() == 0
    row = make_flaky_test(project, owner="member")
    assert row.edit(by=BY, owner="root")
    assert make_flaky_test(project, owner="member").pk
    member.remove(by=BY)
    assert row.release("mended", by=BY)


@pytest.mark.parametrize(
    ("field", "value"),
    [("owner", " "), ("reason", " "), ("expires_at", timedelta(0)), ("expires_at", timedelta(days=400))],
    ids=["no owner", "no reason", "over already", "too far"],
)
def test_a_quarantine_names_owner_reason_and_an_end_in_reach(field: str, value: Any) -> None:
    given = db_now() + value if isinstance(value, timedelta) else value
    with pytest.raises(InvalidField) as refused:
        make_flaky_test(**{field: given})
    assert refused.value.parts["field"] == field
    assert FlakyTest.objects.count() == 0


# -- goalposts -----------------------------------------------------------------------------------------------------


def test_moved_goalposts_wait_for_a_person_who_may_waive_them(tmp_path: Path) -> None:
    house = house_with(tmp_path, tests={**TESTS, "criteria": {"goalposts": True, "min_tests": 1}})
    patch = house.work({"test_calc.py": TEST.replace("== 3", "is not None")})
    run = only_run(house)
    assert (run.state, run.verdict, run.needs_person) == ("failed", "unknown", True)
    assert run.verdicts["goalposts"]["status"] == "fail"
    assert run.evidence["goalposts"][0][0] == "assertion_weakened"
    patch.refresh_from_db()
    assert (patch.state, house.task("a").count_repairs) == ("applied", 0)
    run.waive("the exact sum is no longer promised", by=BY)
    house.drain()
    patch.refresh_from_db()
    assert patch.state == "committed"
    house.must_hold()


def test_a_patch_that_adds_tests_leaves_the_goalposts(tmp_path: Path) -> None:
    house = house_with(tmp_path, tests={**TESTS, "criteria": {"goalposts": True}})
    house.work({"test_more.py": "from calc import add\n\n\ndef test_more():\n    assert add(2, 2) == 4\n"})
    assert only_run(house).state == "passed", only_run(house).decision_reason
    assert house.run.state == "succeeded"


def test_the_tests_of_the_base_are_run_against_the_patched_source(tmp_path: Path) -> None:
    tests = {**TESTS, "criteria": {"goalposts": True}, "base_tests": True}
    house = house_with(tmp_path, tests=tests)
    # The test file keeps every line that it had, and undoes them: only running the old one shows it.
    house.work(
        {
            "calc.py": "def add(a, b):\n    return 4\n",
            "test_calc.py": TEST.replace("from calc import add\n", "from helper import add\n"),
            "helper.py": CALC,
        }
    )
    run = only_run(house)
    assert run.state == "failed", run.decision_reason
    assert [one[0] for one in run.evidence["goalposts"]] == ["support_changed", "base_tests_fail"]
    assert run.evidence["base_tests"]["failed"] == 1


# -- reuse ---------------------------------------------------------------------------------------------------------


def test_a_verdict_is_reused_only_where_the_environment_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    house = house_with(tmp_path, words={"command": ["true"]})
    house.deliver({"a.txt": "a\n"})
    house.drain()
    (run,) = house.gate_runs()
    assert len(run.environment) == 64
    other = factories.make_queue_item(factories.make_patch(house.project), house.queue)
    assert run.stands_for(other) is True
    monkeypatch.setattr(environment, "_packages", lambda: ["another-1.0.dist-info"])
    assert run.stands_for(other) is False
    assert run.stands_for(run.queue_item) is True


POSTS: dict[str, Any] = {"gate_type": "unit_tests", "command": ["true"], "criteria": {"goalposts": True}}
MORE = {"test_more.py": "from calc import add\n\n\ndef test_more():\n    assert add(2, 2) == 4\n"}


def test_a_tree_that_comes_back_is_judged_again_where_the_gate_looks_at_the_change(tmp_path: Path) -> None:
    files = {"calc.py": CALC, "test_calc.py": TEST}
    house = House(tmp_path, chain("a", "b", "c"), gates={"posts": POSTS, "words": {"command": ["true"]}}, files=files)
    first = house.work({"a.txt": "a\n"})
    house.work(MORE)
    gone = house.work(dict.fromkeys(MORE))
    first.refresh_from_db()
    gone.refresh_from_db()
    assert gone.candidate_tree == first.committed_tree
    assert gone.state == "applied"
    (run,) = GateRun.objects.filter(patch=gone)  # and none of `words`, which does not care where a tree comes from
    assert (run.name, run.state, run.needs_person) == ("posts", "failed", True)
    assert GateRun.objects.verdict(gone, gone.candidate_tree) == "unknown"
    # Nor do its runs come into the receipt of the one that stood there before.
    told = {line["gate"]: line["run"] for line in receipts.statement_of(first)["predicate"]["gates"]}
    assert told == {one.name: one.pk for one in GateRun.objects.filter(patch=first)}


def test_a_waiver_for_one_patch_lets_no_other_pass(tmp_path: Path) -> None:
    files = {"calc.py": CALC, "test_calc.py": TEST}
    house = House(tmp_path, chain("a", "b", "c", "d"), gates={"posts": POSTS}, files=files)
    house.work(MORE)
    waived = house.work(dict.fromkeys(MORE))
    (run,) = GateRun.objects.filter(patch=waived)
    run.waive("that test told nothing", by=BY)
    house.drain()
    waived.refresh_from_db()
    assert waived.state == "committed"
    house.work(MORE)
    again = house.work(dict.fromkeys(MORE))
    again.release(by=BY, reason="it is meant to come and go")  # it was found to swing
    house.drain()
    again.refresh_from_db()
    assert (again.candidate_tree, again.state) == (waived.committed_tree, "applied")
    (asked,) = GateRun.objects.filter(patch=again)
    assert (asked.state, asked.base_tree) == ("failed", run.base_tree)


def test_the_digest_says_what_the_command_would_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    def of(**fields: Any) -> str:
        return environment.digest(Gate(command=["python", "-m", "pytest"], **fields), 1)

    assert of() == of()
    monkeypatch.setenv("CI", "one")
    seen = of(env_allow=["CI"])
    monkeypatch.setenv("CI", "two")
    assert len({seen, of(env_allow=["CI"]), of(), environment.digest(Gate(command=["true"]), 1)}) == 4
    assert environment.digest(Gate(command=["true"]), 1) != environment.digest(Gate(command=["true"]), 2)


# -- presets -------------------------------------------------------------------------------------------------------


def test_gates_are_proposed_from_the_branch_and_only_the_chosen_are_saved(tmp_path: Path) -> None:
    files = {
        "pyproject.toml": "[tool.pytest.ini_options]\n[tool.ruff]\n[tool.mypy]\nfiles = ['calc.py']\n",
        "package.json": '{"scripts": {"test": "node --test"}}',
        "go.mod": "module x\n",
        "Cargo.toml": "[package]\n",
        "Makefile": "test:\n\ttrue\n",
        ".bandit": "",
        ".semgrep.yml": "rules: []\n",
    }
    house = house_with(tmp_path, files)
    offered = {preset.key: preset for preset in bootstrap.proposals(house.project)}
    assert list(offered) == [
        "pytest", "ruff", "mypy", "npm-test", "go-test", "cargo-test", "make-test", "bandit", "semgrep",
    ]  # fmt: skip
    assert offered["npm-test"].command[:3] == ("node", "--test", "--test-reporter=junit")
    assert Gate.objects.filter(project=house.project).count() == 0
    with pytest.raises(InvalidField, match="nonsense"):
        bootstrap.save(house.project, ["pytest", "nonsense"], by=BY)
    assert Gate.objects.filter(project=house.project).count() == 0
    (gate,) = bootstrap.save(house.project, ["pytest"], by=BY)
    assert (gate.gate_type, gate.evidence, gate.criteria["min_tests"]) == ("unit_tests", {"junit": "junit.xml"}, 1)
    assert "pytest" not in {preset.key for preset in bootstrap.proposals(house.project)}
    run = make_gate_run(gate, tree_hash=git.tree_of(house.project.mirror, house.head))
    events.drain()
    run.refresh_from_db()
    assert (run.total_tests, run.passed_tests, run.verdicts["tests"]["status"]) == (1, 1, "pass")
