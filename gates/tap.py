"""Pure: a TAP report (versions 12 to 14) in, recounted test results out. Runs in evidence.py's bounded child.

Source: testanything.org, specifications 12 to 14. Only the points of the top level are tests: a subtest's outcome is
its parent's. A TODO that fails is expected to, and counts as skipped; a plan that is not met means that the run broke
off.
"""

from __future__ import annotations

import re

from gates.junit import (
    FAIL,
    MAX_CASES,
    MAX_MESSAGE_CHARS,
    MAX_TEXT_CHARS,
    MAX_TRACE_CHARS,
    PASS,
    SKIP,
    Results,
    TestCase,
    bounded_name,
)
from gates.reading import MAX_BYTES, Unreadable, whole

_POINT = re.compile(r"(not )?ok\b(?: +(\d+))?(?: +-)? *(.*)\Z", re.DOTALL)
_PLAN = re.compile(r"1\.\.(\d+)(?:\s*#\s*(.*))?\Z", re.DOTALL)
_DIRECTIVE = re.compile(r"(?<!\\)# *(skip|todo)\w*\b *(.*)\Z", re.IGNORECASE | re.DOTALL)


def read(data: bytes) -> Results:
    """Results of a whole report. Raises Unreadable: no TAP, a plan that is missing, not met, or there twice; bailed
    out; a number out of its order; over a limit.
    """
    if len(data) > MAX_BYTES:
        raise Unreadable(f"the report has more than {MAX_BYTES // 1024 // 1024} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as problem:
        raise Unreadable(f"the report is not UTF-8: {problem}") from problem
    plan: int | None = None
    points: list[tuple[str, str, str]] = []
    told: list[list[str]] = []
    in_block = False
    for line in text.split("\n"):
        line = line.rstrip("\r")
        if in_block:
            in_block = line != "  ..."
            if points and in_block:
                told[-1].append(line[2:])
            continue
        if line == "  ---" and points:
            in_block = True
        elif line.startswith("Bail out!"):
            raise Unreadable(f"the tests bailed out: {line[9:200].strip()}")
        elif found := _PLAN.match(line):
            if plan is not None:
                raise Unreadable("the report has two plans")
            plan = whole(found[1])
        elif found := _POINT.match(line):
            points.append(_point(found, len(points) + 1))
            told.append([])
            if len(points) > MAX_CASES:
                raise Unreadable(f"the report has more than {MAX_CASES} points")
    if in_block:
        raise Unreadable("the report is cut off inside a block")
    if plan is None:
        raise Unreadable("the report has no plan")
    if plan != len(points):
        raise Unreadable(f"the plan is {plan} tests, and the report has {len(points)}")
    return Results.of(_tests(points, told))


def _point(found: re.Match[str], expected: int) -> tuple[str, str, str]:
    """(outcome, description, directive's reason)."""
    if found[2] is not None and whole(found[2]) != expected:
        raise Unreadable(f"test {found[2]} stands where test {expected} should")
    description, reason, outcome = found[3].strip(), "", FAIL if found[1] else PASS
    if directive := _DIRECTIVE.search(description):
        description, reason = description[: directive.start()].strip(), directive[2].strip()
        if directive[1].lower() == "skip" or outcome == FAIL:
            outcome = SKIP
    return outcome, description, reason


def _tests(points: list[tuple[str, str, str]], told: list[list[str]]) -> list[TestCase]:
    """A test each: two of one description are two tests, told apart by their place."""
    seen: dict[str, int] = {}
    room = MAX_TEXT_CHARS
    tests = []
    for number, ((outcome, description, reason), lines) in enumerate(zip(points, told, strict=True), 1):
        name = description or f"test {number}"
        seen[name] = seen.get(name, 0) + 1
        key = name if seen[name] == 1 else f"{name} ({seen[name]})"
        message = reason[: min(MAX_MESSAGE_CHARS, room)]
        trace = "\n".join(lines)[: min(MAX_TRACE_CHARS, room - len(message))]
        room -= len(message) + len(trace)
        tests.append(TestCase(bounded_name(key), bounded_name(name), outcome=outcome, message=message, trace=trace))
    return tests
