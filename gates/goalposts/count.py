"""Pure: the tests that ran, held against those that ran on the base and against what the runner itself says.

A report is written by a process in which the patch's code runs. What it cannot know is how many tests ran elsewhere;
what it would have to forge besides is the runner's own last line.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from gates.goalposts.moves import Moved, moved
from gates.junit import SKIP, Results

_SUMMARY = re.compile(r"^=* *((?:\d+ [a-z]+(?:, )?)+) in [\d.]+ ?s", re.MULTILINE)
_ENDED = re.compile(r"\b\d+ passed\b|\[ *100%\]|\[ *(\d+)/\1\]|\bno tests ran\b")


def ran(results: Results) -> dict[str, str]:
    """The tests that were not skipped: key -> the file or class that the report names."""
    return {test.test_key: test.file or test.classname for test in results.tests if test.outcome != SKIP}


def missing(before: Mapping[str, str], now: Collection[str], where: str) -> list[Moved]:
    """One move when fewer tests ran than `before` (as `ran` tells them), naming those that are missing."""
    if len(now) >= len(before):
        return []
    lost = sorted(set(before) - set(now))
    told = f"{len(now)} tests ran, {len(before)} {where}; missing: {', '.join(lost)}"
    return [moved("tests_missing", next((before[key] for key in lost if before[key]), "the report"), 0, told)]


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
