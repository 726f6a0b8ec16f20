"""What only a run shows of moved goalposts: reports that were forged, tests that no longer run."""
# ruff: noqa: E501 - a case is read best in one line

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gates import evidence
from gates.goalposts import count, moved
from gates.goalposts.declared import Judged
from gates.junit import Results, TestCase
from gates.measuring import Again
from gates.measuring.goalposts import concerns, goalposts_clean
from gates.models import GateRun
from gates.runner import Execution
from pipeline import events
from tests.factories import make_gate_run
from tests.gates.goalposts_counted import STAYED, VANISHED, Case
from tests.gates.test_goalposts import changes_of
from tests.gates.test_measuring import CALC, TEST, TESTS, house_with, only_run

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

FORGERY = """\
import os
place = os.environ["SIGNALBOX_EVIDENCE"] + "/junit.xml"
case = '<testcase classname="test_calc" name="test_add"/>'
open(place, "w").write('<testsuites><testsuite name="a">' + case + '</testsuite></testsuites>')
os._exit(0)
"""


def results_of(**outcomes: str) -> Results:
    return Results.of([TestCase(name, name, outcome=outcome) for name, outcome in outcomes.items()])


def test_a_forged_report_is_told_by_what_the_runner_did_not_say(tmp_path: Path) -> None:
    house = house_with(tmp_path, tests={**TESTS, "reruns": 0, "criteria": {"goalposts": True, "min_tests": 1}})
    hidden = [ord(letter) + 1 for letter in FORGERY]
    code = (
        f"LETTERS = {hidden}\nrun = exec\nrun(''.join(chr(n - 1) for n in LETTERS))\n\n\ndef add(a, b):\n    return 4\n"
    )
    house.work({"calc.py": code})
    run = only_run(house)
    assert (run.exit_code, run.passed_tests, run.verdict) == (0, 1, "unknown")
    assert [one[0] for one in run.evidence["goalposts"]] == ["report_forged"]


def test_tests_that_ran_with_the_tests_of_the_base_and_no_longer_run_are_named(tmp_path: Path) -> None:
    tests = {**TESTS, "criteria": {"goalposts": True}, "base_tests": True}
    two = TEST + "\n\ndef test_more():\n    assert add(2, 2) == 4\n"
    house = house_with(tmp_path, {"test_calc.py": two}, tests=tests)
    house.work({"test_calc.py": TEST})
    moves = {one[0]: one[3] for one in only_run(house).evidence["goalposts"]}
    assert moves.keys() == {"test_deleted", "tests_missing"}
    assert "1 tests ran, 2 with the tests of the base; missing: test_calc::test_more" in moves["tests_missing"]


def test_a_patch_that_adds_to_a_test_file_is_clean_with_the_tests_of_the_base(tmp_path: Path) -> None:
    house = house_with(tmp_path, tests={**TESTS, "criteria": {"goalposts": True}, "base_tests": True})
    house.work({"test_calc.py": TEST + "\n\ndef test_more():\n    assert add(2, 2) == 4\n"})
    run = only_run(house)
    assert run.state == "passed", run.decision_reason
    assert run.evidence["base_tests"]["failed"] == 0


TWO_TESTS = TEST + "\n\ndef test_more():\n    assert add(2, 2) == 4\n"
VANISH = {
    "SkipTest of unittest": "import unittest\n\n\ndef add(a, b):\n    if a == 1:\n        raise unittest.SkipTest('calm')\n    return 4\n",
    "pytest.skip by importlib": "import importlib\n\n\ndef add(a, b):\n    if a == 1:\n        importlib.import_module('py' + str('test')).skip('calm')\n    return 4\n",
    "pytest by words nobody reads": "import sys\n\n\ndef add(a, b):\n    if a == 1:\n        vars(sys.modules[''.join(map(chr, [112, 121, 116, 101, 115, 116]))])['skip']('calm')\n    return 4\n",
}


@pytest.mark.parametrize("name", VANISH)
def test_a_patch_whose_tests_are_skipped_by_the_product_is_told_against_a_base_that_is_measured_for_it(
    tmp_path: Path, name: str
) -> None:
    house = house_with(tmp_path, {"test_calc.py": TWO_TESTS}, tests={**TESTS, "criteria": {"goalposts": True}})
    house.work({"calc.py": VANISH[name]})
    run = only_run(house)
    moves = {one[0]: one[3] for one in run.evidence["goalposts"]}
    assert moves["tests_missing"] == "1 tests ran, 2 on the base; missing: test_calc::test_add"
    assert run.evidence["on_base"]["ran"] == 2


def test_a_base_is_measured_once_for_all_patches_that_come_onto_it(tmp_path: Path) -> None:
    house = house_with(tmp_path, {"test_calc.py": TWO_TESTS}, tests={**TESTS, "criteria": {"goalposts": True}})
    house.work({"calc.py": VANISH["SkipTest of unittest"]})
    first = only_run(house)
    again = make_gate_run(first.gate, tree_hash=first.tree_hash, base_tree=first.base_tree)
    noted = {**first.evidence["on_base"], "tests": {}, "ran": 7}
    GateRun.objects.filter(pk=first.pk).update(evidence={**first.evidence, "on_base": noted})
    events.drain()
    again.refresh_from_db()
    told = [one[3] for one in again.evidence["goalposts"] if one[0] == "tests_missing"]
    assert told == ["1 tests ran, 7 on the base"]


def test_tests_without_a_report_are_counted_by_what_their_runner_prints(tmp_path: Path) -> None:
    gate = {"gate_type": "unit_tests", "command": ["python", "say.py"], "criteria": {"goalposts": True}}
    said = "print('test result: ok. {} passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s')\n"
    house = house_with(tmp_path, {"say.py": said.format(2)}, tests=gate)
    house.work({"say.py": said.format(1)})
    told = {one[0]: one[3] for one in only_run(house).evidence["goalposts"]}
    assert told == {
        "tests_missing": "1 tests ran, 2 on the base",
        "config_touched": "the gate's command names this file",
    }


def test_a_patch_on_a_measured_base_that_keeps_its_tests_is_clean_and_a_linter_is_not_counted(tmp_path: Path) -> None:
    tests = {**TESTS, "criteria": {"goalposts": True}}
    house = house_with(tmp_path, {"test_calc.py": TWO_TESTS}, tests=tests, words={**tests, "gate_type": "lint"})
    house.work({"calc.py": "def add(a, b):\n    return b + a\n"})
    runs = [run for run in house.gate_runs() if not run.baseline]
    on_base = {run.gate_type: run.evidence.get("on_base") for run in runs}
    assert [run.state for run in runs] == ["passed", "passed"]
    assert on_base["lint"] is None
    assert on_base["unit_tests"] is not None


def asked_again(run: GateRun, executed: Execution, on_base: Execution) -> tuple[bool | None, str, list[float]]:
    """What becomes of the goalposts of a run that ended so, on a base that nobody measured and that ends so; and the
    seconds that the base was given.
    """
    GateRun.objects.filter(base_tree=run.base_tree).update(evidence={})
    assert run.gate is not None
    given: list[float] = []
    says: dict[str, str] = {}

    def execute(again: Again, seconds: float) -> tuple[Execution, Path]:
        given.append(seconds)
        assert again.tree_hash == run.base_tree
        return on_base, Path("/nonexistent")

    clean = goalposts_clean(run, run.gate, execute, says, {}, None, executed)
    return clean, says["goalposts"], given


def ended(output: str, *, seconds: float = 0.1, **how: Any) -> Execution:
    """An execution that ended so."""
    return replace(
        Execution(0, seconds, timed_out=False, output_limited=False, output=output, killed=0, level=1), **how
    )


SAID = {"gate_type": "unit_tests", "command": ["python", "-c", "print('2 passed in 0.01s')"], "timeout_seconds": 50}


def test_a_base_is_measured_in_its_own_time_whatever_the_patch_has_spent(tmp_path: Path) -> None:
    house = house_with(tmp_path, tests={**SAID, "criteria": {"goalposts": True}})
    house.work({"calc.py": "def add(a, b):\n    return b + a\n"})
    run = only_run(house)
    fewer = asked_again(run, ended("2 passed in 49.9s\n", seconds=49.9), ended("3 passed in 0.1s\n"))
    assert fewer == (False, "moved: the output: 2 tests ran, 3 on the base", [50])
    assert run.deadline_at - run.started_at >= timedelta(seconds=100)


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ({"timed_out": True, "exit_code": None}, "it ran over the time limit there"),
        ({"output_limited": True}, "it went over the limit on output there"),
        ({"exit_code": None}, "it was lost there"),
        ({"exit_code": 137}, "a signal ended it there, exit code 137"),
    ],
    ids=["timeout", "output", "lost", "signal"],
)
def test_a_base_that_could_not_be_measured_is_never_clean(tmp_path: Path, how: dict[str, Any], why: str) -> None:
    house = house_with(tmp_path, tests={**SAID, "criteria": {"goalposts": True}})
    house.work({"calc.py": "def add(a, b):\n    return b + a\n"})
    clean, told, _ = asked_again(only_run(house), ended("2 passed in 0.1s\n"), ended("", **how))
    assert (clean, told) == (None, f"how many tests ran on the base is not known: {why}")


@pytest.mark.parametrize(
    ("now", "before", "clean", "told"),
    [
        ("all is well\n", "3 passed in 0.1s\n", False, "moved: the output: 0 tests ran, 3 on the base"),
        ("all is well\n", "fine\n", True, "(the base told of no tests that could be counted)"),
        ("3 passed in 0.1s\n", "fine\n", True, "(the base told of no tests that could be counted)"),
        ("3 passed in 0.1s\n", "3 passed in 0.1s\n", True, "less than it did"),
    ],
)
def test_a_runner_that_says_nothing_is_held_against_what_it_says_on_the_base(
    tmp_path: Path, now: str, before: str, clean: bool, told: str
) -> None:
    house = house_with(tmp_path, tests={**SAID, "criteria": {"goalposts": True}})
    house.work({"calc.py": "def add(a, b):\n    return b + a\n"})
    found, said, _ = asked_again(only_run(house), ended(now), ended(before))
    assert (found, said.endswith(told)) == (clean, True), said


MOVED = {"goalposts": True}
SAY = "print('1 passed in 0.01s')\n"


@pytest.mark.parametrize(
    ("command", "files"),
    [
        (["python", "tools/all.py"], {}),
        (["make", "test"], {"Makefile": "test:\n\t@python tools/all.py\n"}),
        (["sh", "-c", "make test"], {"Makefile": ".PHONY: test\ntest: all\nall:\n\tpython tools/all.py\n"}),
    ],
    ids=["command", "make", "needed"],
)  # fmt: skip
def test_a_script_that_the_gate_runs_changes_as_configuration_does(
    tmp_path: Path, command: list[str], files: dict[str, str]
) -> None:
    gate = {"gate_type": "unit_tests", "command": command, "criteria": MOVED}
    house = house_with(tmp_path, {"tools/all.py": SAY, **files}, tests=gate)
    house.work({"tools/all.py": SAY + "# quiet\n"})
    assert [one[:2] for one in only_run(house).evidence["goalposts"]] == [["config_touched", "tools/all.py"]]


def test_a_target_that_a_new_file_takes_for_done_is_told(tmp_path: Path) -> None:
    gate = {"gate_type": "unit_tests", "command": ["make", "test"], "criteria": MOVED}
    house = house_with(tmp_path, {"Makefile": "test:\n\t@python -c pass\n"}, tests=gate)
    house.work({"test": ""})
    assert [one[:2] for one in only_run(house).evidence["goalposts"]] == [["config_touched", "test"]]


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        ({"calc.py": "# ruff: noqa\n" + CALC}, ["check_suppressed"]),
        ({"test_calc.py": TEST.replace("== 3", "is not None")}, []),
        ({"calc.py": "# mypy: ignore-errors\n" + CALC}, []),
    ],
    ids=["looks away", "a test", "another tool"],
)
def test_a_linters_gate_is_told_of_its_own_goalposts_only(
    tmp_path: Path, patch: dict[str, str], told: list[str]
) -> None:
    command = ["python", "-c", "pass", "ruff"]
    house = house_with(tmp_path, {"ruff.toml": ""}, ruff={"gate_type": "lint", "command": command, "criteria": MOVED})
    house.work(patch)
    assert [one[0] for one in only_run(house).evidence["goalposts"]] == told


@pytest.mark.parametrize(
    ("command", "path", "what", "is_its"),
    [
        (["ruff", "check", "."], "ruff.toml", "the configuration of checks changed", True),
        (["ruff", "check", "."], "pyproject.toml", "the configuration of checks changed: tool.ruff", True),
        (["ruff", "check", "."], "pyproject.toml", "the configuration of checks changed: tool.pytest", False),
        (["npx", "--no-install", "eslint", "."], "eslint.config.js", "the configuration of checks changed", True),
        (["bandit", "-r", "."], ".bandit", "the configuration of checks changed", True),
        (["semgrep", "scan"], ".semgrepignore", "the configuration of checks changed", True),
        (["mypy"], "mypy.ini", "the configuration of checks changed", True),
        (["mypy"], ".github/workflows/ci.yml", "the configuration of checks changed", False),
        (["./scan"], "Makefile", "the configuration of checks changed", True),
    ],
)
def test_configuration_is_told_to_the_linter_whose_it_is(
    command: list[str], path: str, what: str, is_its: bool
) -> None:
    assert concerns(command, moved("config_touched", path, 0, what)) is is_its


@pytest.mark.parametrize(
    ("output", "number"),
    [
        ("test result: ok. 3 passed; 0 failed; 1 ignored;\n\ntest result: ok. 1 passed; 1 failed; 0 ignored;\n", 5),
        ("\u2139 tests 3\n\u2139 pass 2\n\u2139 fail 1\n\u2139 skipped 1\n", 3),
        ("  5 passing (3ms)\n  1 pending\n  1 failing\n", 6),
        ("Tests:       1 skipped, 4 passed, 5 total\n", 4),
        ("\x1b[2m      Tests \x1b[22m \x1b[1m1 failed\x1b[22m | 4 passed (5)\n", 5),
        ("== 2 failed, 3 passed, 1 skipped in 0.02s ==\n", 5),
        ("1 skipped in 0.02s\n", 0),
        ("Ran 4 tests in 0.001s\n\nOK (skipped=1)\n", 3),
        ("ok  \tx/a\t0.002s\nok  \tx/b\t(cached)\nok  \tx/c\t0.1s [no tests to run]\n?   \tx/d\t[no test files]\n", 2),
        ("1..3\nok 1 a\nnot ok 2 b\nok 3 c # skip not here\n", 2),
        ("5 examples, 1 failure, 2 pending\n", 3),
        ("all is well\n", None),
    ],
)  # fmt: skip
def test_the_sums_of_runners_are_read(output: str, number: int | None) -> None:
    assert count.spoken(output) == number


def test_fewer_tests_are_told_with_their_names_and_skipped_ones_did_not_run() -> None:
    before = count.ran(results_of(a="pass", b="fail", c="skip"))
    assert set(before) == {"a", "b"}
    assert count.missing(before, {"a": "", "b": "", "c": ""}, "on the base") == []
    (told,) = count.missing(before, {"x": "", "y": ""}, "on the base")
    assert told.what == "2 tests ran, 2 on the base; missing: a, b"
    (told,) = count.missing(before, count.ran(results_of(a="pass", b="skip")), "on the base")
    assert (told.kind, told.what) == ("tests_missing", "1 tests ran, 2 on the base; missing: b")


def told_of(case: Case) -> list[str]:
    """What is told of tests that are missing, with what the patched files declare."""
    files, before, now = case
    looked = evidence.declared_tests(changes_of(files))
    return [
        one.what
        for one in count.missing(
            dict.fromkeys(before, "a.py"), dict.fromkeys(now, "a.py"), "on the base", lambda: Judged(looked, files[0])
        )
    ]


@pytest.mark.parametrize("name", VANISHED)
def test_a_test_that_vanishes_is_told_by_its_name_however_many_come(name: str) -> None:
    lost, case = VANISHED[name]
    (told,) = told_of(case)
    assert told == f"{len(case[2])} tests ran, {len(case[1])} on the base; missing: {lost}"


@pytest.mark.parametrize("name", STAYED)
def test_a_test_under_another_name_or_in_another_file_is_not_missing(name: str) -> None:
    assert told_of(STAYED[name]) == []


CASES = "from calc import CASES\n\nimport pytest\n\n\n@pytest.mark.parametrize('n', CASES)\ndef test_case(n):\n    assert n\n"


def test_cases_that_the_product_drops_are_told_although_as_many_tests_come(tmp_path: Path) -> None:
    files = {"calc.py": CALC + "\n\nCASES = [1, 2, 3]\n", "test_cases.py": CASES}
    house = house_with(tmp_path, files, tests={**TESTS, "criteria": {"goalposts": True}})
    house.work({"calc.py": CALC + "\n\nCASES = [1]\n", "test_more.py": TWO_TESTS.replace("test_add", "test_plus")})
    run = only_run(house)
    moves = {one[0]: one[3] for one in run.evidence["goalposts"]}
    missing = "missing: test_cases::test_case[2], test_cases::test_case[3]"
    assert moves == {"tests_missing": f"4 tests ran, 4 on the base; {missing}"}
    assert run.verdict == "unknown"


def test_a_test_that_gets_a_better_name_beside_a_change_of_the_product_is_clean(tmp_path: Path) -> None:
    house = house_with(tmp_path, tests={**TESTS, "criteria": {"goalposts": True}, "base_tests": True})
    house.work({"calc.py": CALC.replace("a + b", "b + a"), "test_calc.py": TEST.replace("test_add", "test_sum")})
    run = only_run(house)
    assert run.state == "passed", run.decision_reason


@pytest.mark.parametrize(
    ("output", "kinds"),
    [
        ("..   [100%]\n2 passed in 0.01s\n", []),
        ("..   [100%]\n", []),
        ("=== 2 passed, 1 warning in 0.01s ===\n", []),
        ("1 passed, 1 xpassed in 0.01s\n", []),
        ("", ["report_forged"]),
        (".   [ 50%]\n", ["report_forged"]),
        ("..   [100%]\n1 passed in 0.01s\n", ["report_forged"]),
        ("..   [100%]\n1 passed, 1 skipped in 0.01s\n", ["report_forged"]),
    ],
)
def test_pytests_own_last_line_is_held_against_its_report(output: str, kinds: list[str]) -> None:
    command = ["python", "-m", "pytest", "-q"]
    found = count.contradicted(command, output, results_of(a="pass", b="pass"), "junit.xml")
    assert [one.kind for one in found] == kinds
    assert count.contradicted(["./run"], output, results_of(a="pass"), "junit.xml") == []
    assert count.contradicted(command, output, results_of(a="fail"), "junit.xml") == []
