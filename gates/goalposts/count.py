"""Pure: the tests that ran, held against those that ran on the base and against what the runner itself says.

A report is written by a process in which the patch's code runs. What it cannot know is how many tests ran elsewhere;
what it would have to forge besides is the runner's own last line.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from gates.goalposts.declared import Judged
from gates.goalposts.moves import Moved, moved
from gates.junit import SKIP, Results

_SUMMARY = re.compile(r"^=* *((?:\d+ [a-z]+(?:, )?)+) in [\d.]+ ?s", re.MULTILINE)
# How runners that write no report sum up, each with the groups that are numbers of tests which ran to their end.
_SPOKEN = (
    re.compile(r"^test result: \w+\. (\d+) passed; (\d+) failed;", re.MULTILINE),  # cargo, for each of its programs
    re.compile(r"^(?:#|\u2139) (?:pass|fail) (\d+)$", re.MULTILINE),  # node --test
    re.compile(r"^ +(\d+) (?:passing|failing)\b", re.MULTILINE),  # mocha
)
_RAN = frozenset({"passed", "failed", "xpassed", "error", "errors"})
_OF_JEST = re.compile(r"^ *Tests:? +(.*\b\d+ (?:passed|failed)\b.*)$", re.MULTILINE)  # and vitest
_OF_UNITTEST = re.compile(r"^Ran (\d+) tests? in .*\s+(?:OK|FAILED)\b(.*)", re.MULTILINE)
_OF_RSPEC = re.compile(r"^(\d+) examples?, \d+ failures?(?:, (\d+) pending)?", re.MULTILINE)
_OF_TAP = re.compile(r"^(?:not )?ok \d+(?!.*# *(?i:skip|todo))", re.MULTILINE)
_OF_GO_TESTS = re.compile(r"^ *--- (?:PASS|FAIL): ", re.MULTILINE)
_OF_GO = re.compile(r"^(?:ok|FAIL)\s+\S+\s+(?:[\d.]+s|\(cached\))(?!.*\[no tests to run\])", re.MULTILINE)
_COLOURS = re.compile(r"\x1b?\[\d*(?:;\d+)*m")
# The folder of one execution, which is another for each where there is no box.
_COPY = re.compile(r"/[^\s:]*/run-\w+/(?:[\w-]+/)?tree(?=/)")
_ENDED = re.compile(r"\b\d+ passed\b|\[ *100%\]|\[ *(\d+)/\1\]|\bno tests ran\b")


def ran(results: Results) -> dict[str, str]:
    """The tests that were not skipped: key -> the file or class that the report names."""
    return {test.test_key: test.file or test.classname for test in results.tests if test.outcome != SKIP}


def spoken(output: str) -> int | None:
    """How many tests ran to their end by the sums that runners print, all of them added up; None where none is known.

    For gates whose tests leave no report: only the same command's word on the base and on the patch is compared.
    """
    text = _COLOURS.sub("", output)
    found = [sum(map(int, match.groups())) for pattern in _SPOKEN for match in pattern.finditer(text)]
    for line in _SUMMARY.findall(text):
        found.append(sum(int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", line) if word in _RAN))
    for line in _OF_JEST.findall(text):
        found.append(sum(int(number) for number in re.findall(r"(\d+) (?:passed|failed)", line)))
    for number, told in _OF_UNITTEST.findall(text):
        found.append(int(number) - sum(map(int, re.findall(r"skipped=(\d+)", told))))
    for number, pending in _OF_RSPEC.findall(text):
        found.append(int(number) - int(pending or 0))
    for pattern in (_OF_TAP, _OF_GO_TESTS, _OF_GO):
        if lines := len(pattern.findall(text)):
            found.append(lines)
    return sum(found) if found else None


def fewer(before: int, now: int, where: str) -> list[Moved]:
    """One move when fewer tests ran than `before`, where only their number is known."""
    if now >= before:
        return []
    return [moved("tests_missing", "the output", 0, f"{now} tests ran, {before} {where}")]


def missing(
    before: Mapping[str, str],
    now: Mapping[str, str],
    where: str,
    judged: Callable[[], Judged] | None = None,
) -> list[Moved]:
    """One move when tests of `before` (as `ran` tells them) did not run, naming them: by their names, since as many
    others in their place ask something else.

    Where as many ran, those are left out whose going `judged`, asked only then, knows from what changed in their files.
    """
    had, has = ({_COPY.sub("/src", key): place for key, place in tests.items()} for tests in (before, now))
    lost = sorted(had.keys() - has.keys())
    if len(has) >= len(had) and lost and judged is not None:
        known = judged()
        lost = [key for key in lost if not known.explains(key, had, has)]
    if not lost:
        return []
    told = f"{len(has)} tests ran, {len(had)} {where}; missing: {', '.join(lost)}"
    return [moved("tests_missing", next((had[key] for key in lost if had[key]), "the report"), 0, told)]


def contradicted(command: Sequence[str], output: str, results: Results, report: str) -> list[Moved]:
    """One move when pytest's own last line is missing, or names another number of passed tests than its report.

    Other runners are not judged by what they print, nor is a run in which a test failed: it passes no gate by itself.
    """
    if not any(re.search(r"(?:^|/)(?:pytest|py\.test)\Z", word) for word in command) or "no:terminal" in command:
        return []
    if results.failed or results.flaky or not results.total:
        return []
    if not _ENDED.search(output):
        return [
            moved("report_forged", report, 0, f"it names {results.total} tests, and pytest itself did not end its run")
        ]
    lines = _SUMMARY.findall(output)
    if not lines:
        return []
    said = {word: int(number) for number, word in re.findall(r"(\d+) ([a-z]+)", lines[-1])}
    passed = said.get("passed", 0) + said.get("xpassed", 0)
    if passed >= results.passed:
        return []
    return [
        moved("report_forged", report, 0, f"it names {results.passed} passed tests, and pytest itself says {passed}")
    ]
