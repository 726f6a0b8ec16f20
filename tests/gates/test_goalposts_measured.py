"""What only a run shows of moved goalposts: reports that were forged, tests that no longer run."""

from pathlib import Path

import pytest

from gates.goalposts import count
from gates.junit import Results, TestCase
from tests.gates.test_measuring import TEST, TESTS, house_with, only_run

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


def test_fewer_tests_are_told_with_their_names_and_skipped_ones_did_not_run() -> None:
    before = count.ran(results_of(a="pass", b="fail", c="skip"))
    assert set(before) == {"a", "b"}
    assert count.missing(before, {"a", "b"}, "on the base") == []
    assert count.missing(before, {"x", "y"}, "on the base") == []
    (told,) = count.missing(before, count.ran(results_of(a="pass", b="skip")), "on the base")
    assert (told.kind, told.what) == ("tests_missing", "1 tests ran, 2 on the base; missing: b")


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
