"""Pure: bytes of a JUnit XML report in, recounted test results out.

Runs in evidence.py's bounded child: standard library only, and nothing of the house but `gates.reading`. No
specification of the format exists; elements and attributes are those that pytest, Surefire, jest-junit, gtest and
go-junit-report write. An event reader (expat) is used, not a tree: a tree of one million cases costs 340 MB.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass, field, replace
from typing import Any, BinaryIO
from xml.parsers import expat

from gates.reading import MAX_BYTES, MAX_DIGITS, Unreadable

MAX_DEPTH = 32
MAX_CASES = 50_000
MAX_NAME_CHARS = 500
MAX_MESSAGE_CHARS = 4 * 1024  # at most 16 KiB in UTF-8, as a character takes four bytes at most
MAX_TRACE_CHARS = 16 * 1024
MAX_TEXT_CHARS = 8 * 1024 * 1024  # all messages and traces of one report together
MAX_SECONDS = 10_000_000.0

_PIECE_BYTES = 1024 * 1024

PASS, FAIL, ERROR, SKIP, FLAKY_PASS, INFRA = "pass", "fail", "error", "skip", "flaky_pass", "infra"

_SUITES = ("testsuites", "testsuite")
_OUTCOME_OF_CHILD = {"failure": FAIL, "error": ERROR, "skipped": SKIP, "disabled": SKIP}
_EARLIER_ATTEMPT = {"flakyFailure": FAIL, "flakyError": ERROR}  # Surefire: it failed so, and then passed
_LATER_ATTEMPT = {"rerunFailure": FAIL, "rerunError": ERROR}  # Surefire: it failed, was run again, and failed so
_TEXT_KEPT = _OUTCOME_OF_CHILD.keys() | _EARLIER_ATTEMPT.keys() | _LATER_ATTEMPT.keys()
_WORST_FIRST = (ERROR, FAIL, SKIP)
_BEST_FIRST = {SKIP: 0, PASS: 1, FLAKY_PASS: 2, FAIL: 3, ERROR: 4, INFRA: 5}
_OF_A_SUITE = {"failure": FAIL, "error": ERROR}  # Surefire and others: what went wrong outside of any test
_FAILURES = _OF_A_SUITE.keys() | _EARLIER_ATTEMPT.keys() | _LATER_ATTEMPT.keys()
_STATUS = {"fail": FAIL, "failed": FAIL, "failure": FAIL, "error": ERROR, "notrun": SKIP, "disabled": SKIP}


@dataclass(frozen=True, slots=True)
class TestCase:
    """One attempt at one test. `test_key` names the test, `attempt` counts from 1 within its key.

    `outcome` is pass, fail, error, skip, flaky_pass (the passing attempt of a test that failed before) or infra.
    """

    __test__ = False  # pytest would collect it by its name

    test_key: str
    name: str
    classname: str = ""
    file: str = ""
    attempt: int = 1
    outcome: str = PASS
    duration_seconds: float | None = None
    message: str = ""
    trace: str = ""


@dataclass(frozen=True, slots=True)
class Results:
    """What a gate measured: passed + failed + skipped = total, by test and not by attempt; flaky ones are in passed.

    `tests` holds every attempt, in the order of the report. None means "not measured", for each figure that is not
    counted from `tests`: percentages 0 to 100, `findings`, `new_findings` by level, `goalposts_clean`. `counted` is
    False where no report of tests was to be had; the counts are then zeros that say nothing.
    `told` holds a sentence on how a figure came about, or why there is none, by its criterion's key.
    """

    total: int = 0
    passed: int = 0
    failed: int = 0
    skipped: int = 0
    flaky: int = 0
    tests: tuple[TestCase, ...] = ()
    parsed: bool = True
    coverage_percent: float | None = None
    patch_coverage_percent: float | None = None
    new_findings: Mapping[str, int] | None = None
    goalposts_clean: bool | None = None
    counted: bool = True
    findings: int | None = None
    told: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tests: Iterable[TestCase]) -> Results:
        """Results recounted from attempts, which are numbered and judged per key here.

        The last attempt decides. Passed after a failure is flaky_pass; skipped after a failure stays failed.
        """
        attempts: dict[str, list[TestCase]] = {}
        numbered: list[TestCase] = []
        for test in tests:
            earlier = attempts.setdefault(test.test_key, [])
            failed_before = any(one.outcome in {FAIL, ERROR} for one in earlier)
            outcome = PASS if test.outcome == FLAKY_PASS else test.outcome
            if outcome == PASS and failed_before:
                outcome = FLAKY_PASS
            told = replace(test, attempt=len(earlier) + 1, outcome=outcome)
            earlier.append(told)
            numbered.append(told)
        finals = [final_outcome(one.outcome for one in each) for each in attempts.values()]
        return cls(
            total=len(finals),
            passed=sum(one in {PASS, FLAKY_PASS} for one in finals),
            failed=sum(one in {FAIL, ERROR, INFRA} for one in finals),
            skipped=finals.count(SKIP),
            flaky=finals.count(FLAKY_PASS),
            tests=tuple(numbered),
        )


def join(reports: Iterable[Results]) -> Results:
    """Results of several reports of one execution. A test that is in more than one of them is one test."""
    groups: list[list[TestCase]] = []
    for report in reports:
        of_report: dict[str, list[TestCase]] = {}
        for test in report.tests:
            of_report.setdefault(test.test_key, []).append(test)
        groups += of_report.values()
    return _of_one_execution(groups)


def _of_one_execution(groups: Sequence[Sequence[TestCase]]) -> Results:
    """Results of groups of attempts, each of one test. Nobody ran a test again between two groups: where one of those
    that share a key failed, the test failed, so it stands last.
    """
    by_key: dict[str, list[Sequence[TestCase]]] = {}
    for attempts in groups:
        by_key.setdefault(attempts[0].test_key, []).append(attempts)
    for each in by_key.values():
        if len(each) > 1:
            each.sort(key=lambda attempts: _BEST_FIRST[final_outcome(one.outcome for one in attempts)])
    return Results.of(test for each in by_key.values() for attempts in each for test in attempts)


def final_outcome(outcomes: Iterable[str]) -> str:
    """The outcome of a test from those of its attempts, in order; a skip never hides a failure."""
    final = ""
    for outcome in outcomes:
        if outcome != SKIP or final in {"", PASS}:
            final = outcome
    return final


def key_of(name: str, classname: str, file: str) -> str:
    """The name of a test across runs: `file::classname::name` without the empty parts."""
    return bounded_name("::".join(part for part in (file, classname, name) if part))


def bounded_name(text: str) -> str:
    """`text` in at most MAX_NAME_CHARS characters; a longer one ends in its hash, so two of them stay two."""
    if len(text) <= MAX_NAME_CHARS:
        return text
    return f"{text[: MAX_NAME_CHARS - 17]}#{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def read(source: BinaryIO) -> Results:
    """Results of a whole report. Raises Unreadable: not well-formed, cut off, a DOCTYPE, over a limit above, or a suite
    that states more failures than it holds.

    Other totals that suites state are not believed: they are counted again, by test. What went wrong in a suite outside
    of its tests is one failed test, named after the suite. The report is never held whole.
    """
    reader = _Reader()
    room = MAX_BYTES
    try:
        while piece := source.read(_PIECE_BYTES):
            room -= len(piece)
            if room < 0:
                raise Unreadable(f"the report has more than {MAX_BYTES // 1024 // 1024} MiB")
            reader.parser.Parse(piece, False)
        reader.parser.Parse(b"", True)
    except expat.ExpatError as problem:
        raise Unreadable(f"the report is not well-formed XML: {problem}") from problem
    except (LookupError, UnicodeError) as problem:  # an encoding that Python does not know, or cannot use here
        raise Unreadable(f"the report's encoding cannot be read: {problem}") from problem
    return _of_one_execution(reader.cases)


@dataclass(slots=True)
class _Attempt:
    """A child element of a case that speaks of an outcome: its element's name and its texts."""

    element: str
    message: str
    trace: list[str] = field(default_factory=list)
    trace_chars: int = 0


@dataclass(slots=True)
class _Suite:
    """A suite that is open: what it states, how many failures came before it, what went wrong in it beside tests."""

    element: str
    attributes: dict[str, str]
    failures_before: int
    attempts: list[_Attempt] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.attributes.get("name", "")


@dataclass(slots=True)
class _Case:
    """A case that is open, and the outcomes that its children told so far."""

    attributes: dict[str, str]
    attempts: list[_Attempt] = field(default_factory=list)


class _Reader:
    """Follows expat's events from root to end, keeping the cases and nothing else."""

    def __init__(self) -> None:
        self.cases: list[list[TestCase]] = []
        self.attempts = 0
        self.parser = expat.ParserCreate()
        self.parser.buffer_text = True
        self.parser.SetParamEntityParsing(expat.XML_PARAM_ENTITY_PARSING_NEVER)
        # After decoding, so it sees a DOCTYPE in any encoding, and before any entity could be expanded.
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end
        self.parser.CharacterDataHandler = self._text
        self._path: list[str] = []
        self._suites: list[_Suite] = []
        self._open_cases: list[_Case] = []  # more than one where a case stands in a case: each is a test
        self._cases = 0
        self._failures = 0
        self._open: _Attempt | None = None
        self._open_depth = 0
        self._text_left = MAX_TEXT_CHARS
        # Of each key, how many tests had it so far, and whether the newest of them has only failed yet.
        self._last: dict[str, tuple[int, bool]] = {}

    def _doctype(self, *_: Any) -> None:
        raise Unreadable("the report has a DOCTYPE, which reports do not need and bombs do")

    def _start(self, qualified: str, attributes: dict[str, str]) -> None:
        element = qualified.rpartition(":")[2]
        if not self._path and element not in _SUITES:
            raise Unreadable(f"the report begins with <{bounded_name(element)}>, not with testsuites or testsuite")
        self._path.append(element)
        if len(self._path) > MAX_DEPTH:
            raise Unreadable(f"the report is nested more than {MAX_DEPTH} deep")
        if element in _SUITES:
            self._suites.append(_Suite(element, attributes, self._failures))
        elif element == "testcase":
            self._count_case()
            self._open_cases.append(_Case(attributes))
        elif (told := self._told_here(element)) is not None:
            self._open = _Attempt(element, self._bounded(attributes.get("message", ""), MAX_MESSAGE_CHARS))
            self._open_depth = len(self._path)
            told.append(self._open)
            self._failures += element in _FAILURES

    def _count_case(self) -> None:
        self._cases += 1
        if self._cases > MAX_CASES:
            raise Unreadable(f"the report has more than {MAX_CASES} cases")

    def _told_here(self, element: str) -> list[_Attempt] | None:
        """Where the outcome belongs that `element`, the last of the path, tells: its case, its suite, or nowhere."""
        if len(self._path) < 2:
            return None
        parent = self._path[-2]
        if parent == "testcase" and element in _TEXT_KEPT:
            return self._open_cases[-1].attempts
        if parent in _SUITES and element in _OF_A_SUITE:
            return self._suites[-1].attempts
        return None

    def _text(self, text: str) -> None:
        # Surefire puts <stackTrace> inside a rerun, so text below an outcome's element counts as its trace too.
        if self._open is not None and self._open.trace_chars < MAX_TRACE_CHARS:
            kept = self._bounded(text, MAX_TRACE_CHARS - self._open.trace_chars)
            self._open.trace.append(kept)
            self._open.trace_chars += len(kept)

    def _end(self, qualified: str) -> None:
        element = self._path.pop()
        if self._open is not None and len(self._path) < self._open_depth:
            self._open = None
        elif element == "testcase":
            self._close_case(self._open_cases.pop())
        elif element in _SUITES:
            self._close_suite(self._suites.pop())

    def _close_suite(self, suite: _Suite) -> None:
        found = self._failures - suite.failures_before
        for told in ("failures", "errors"):
            # One by one: mocha states the same tests under both names.
            if (stated := _stated(suite.attributes.get(told, ""))) > found:
                where = f"the suite {bounded_name(suite.name)!r}" if suite.name else "the report"
                raise Unreadable(f'inconsistent totals: {where} states {told}="{stated}", and {found} are in it')
        if suite.attempts:
            self._count_case()
            given = {"name": suite.name or "outside of tests", "file": suite.attributes.get("file", "")}
            self._close_case(_Case(given, suite.attempts))

    def _bounded(self, text: str, limit: int) -> str:
        text = text[: min(limit, self._text_left)]
        self._text_left -= len(text)
        return text

    def _key(self, key: str) -> str:
        """The key, or one of its own for a further test of the same name.

        A case behind one that did not fail is another test (mocha and others let many share a title). One behind a
        failed one is the same test: pytest writes a second for an error of its teardown. It fails whatever the second
        says, since who runs a test again says so by an element within its case.
        """
        number, failed = self._last.get(key, (1, True))
        if not failed:
            self._last[key] = (number + 1, True)
        return key if failed and number == 1 else bounded_name(f"{key} ({self._last[key][0]})")

    def _close_case(self, case: _Case) -> None:
        given = case.attributes
        name = given.get("name", "")
        classname = given.get("classname", "") or "/".join(
            suite.name for suite in self._suites if suite.element == "testsuite" and suite.name
        )
        file = given.get("file", "")
        key = self._key(key_of(name, classname, file))

        def attempt(outcome: str, told: _Attempt | None = None, seconds: float | None = None) -> TestCase:
            return TestCase(
                test_key=key,
                name=bounded_name(name),
                classname=bounded_name(classname),
                file=bounded_name(file),
                outcome=outcome,
                duration_seconds=seconds,
                message=told.message if told else "",
                trace="".join(told.trace) if told else "",
            )

        earlier = [one for one in case.attempts if one.element in _EARLIER_ATTEMPT]
        later = [one for one in case.attempts if one.element in _LATER_ATTEMPT]
        own = [one for one in case.attempts if one.element in _OUTCOME_OF_CHILD]
        outcome, told = _own_outcome(given, own)
        if outcome == PASS and later:  # a rerun that failed, and no word of the first failure: it did not pass
            outcome = FAIL
        if outcome in {FAIL, ERROR} and not (own or later):
            self._failures += 1  # only its status says so (gtest, CTest)
        attempts = [attempt(_EARLIER_ATTEMPT[one.element], one) for one in earlier]
        attempts.append(attempt(outcome, told, _seconds(given.get("time", ""))))
        attempts += [attempt(_LATER_ATTEMPT[one.element], one) for one in later]
        self.cases.append(attempts)
        self.attempts += len(attempts)
        named = key_of(name, classname, file)
        self._last[named] = (self._last.get(named, (1, True))[0], outcome in {FAIL, ERROR})
        if self.attempts > MAX_CASES:
            raise Unreadable(f"the report has more than {MAX_CASES} attempts")


def _own_outcome(given: dict[str, str], told: list[_Attempt]) -> tuple[str, _Attempt | None]:
    """The worst of what a case's children say; without any, what its status says (gtest, CTest), else pass."""
    for worst in _WORST_FIRST:
        for one in told:
            if _OUTCOME_OF_CHILD[one.element] == worst:
                return worst, one
    for attribute in ("status", "result"):
        if (outcome := _STATUS.get(given.get(attribute, "").lower())) is not None:
            return outcome, None
    return PASS, None


def _stated(text: str) -> int:
    """A total of a suite; 0 for what is no such figure, since totals are only held against what was counted."""
    digits = text.replace(",", "").strip()
    return int(digits[:MAX_DIGITS]) if digits.isascii() and digits.isdigit() else 0


def _seconds(text: str) -> float | None:
    """Seconds of a `time` attribute, or None for what is no such figure ("1,234.5" is one thousand and more)."""
    try:
        seconds = float(text.replace(",", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and 0 <= seconds <= MAX_SECONDS else None


def to_lines(results: Results) -> Iterator[Any]:
    """The results as documents of a line each; `from_lines` is the inverse."""
    yield {"total": results.total}
    for test in results.tests:
        yield astuple(test)


def from_lines(documents: list[Any]) -> Results:
    """What `to_lines` wrote, counted again. Raises TypeError, KeyError or ValueError for anything else."""
    results = Results.of(TestCase(*test) for test in documents[1:])
    if results.total != documents[0]["total"]:
        raise ValueError("tests are missing")
    return results
