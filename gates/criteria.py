"""Pure: a gate's criteria and what its run measured in, a judgement with a verdict per criterion out."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any

from gates.junit import ERROR, FAIL, FLAKY_PASS, INFRA, PASS, Results, TestCase, final_outcome
from pipeline.refusals import Refused

MAX_FLAKY = 2
MAX_COUNT = 2**31 - 1
MAX_FIGURE = 10**15
MAX_SECONDS = 24 * 3600
MAX_REQUIRED_TESTS = 1000
MAX_CUSTOM_RULES = 50
FINDING_EXIT_CODES = (1,)
"""How a tool ends that did its work and found something, where its gate does not say otherwise: pytest, ruff, mypy,
bandit, semgrep, eslint and most others; with 2 and more they say that they could not do their work."""
TEST_EVIDENCE = frozenset({"junit", "tap"})
# Criteria that compare with what the same gate measures on the base.
AGAINST_BASE = frozenset({"max_skipped_increase", "max_new_findings"})
LEVELS = ("none", "note", "warning", "error")
OPERATORS: Mapping[str, Callable[[Any, Any], bool]] = {
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">=": operator.ge,
    ">": operator.gt,
}
TEST_FIELDS = frozenset({"total_tests", "passed_tests", "failed_tests", "skipped_tests", "flaky_tests"})
COVERAGE_FIELDS = frozenset({"coverage_percent", "patch_coverage_percent"})
FIELDS = TEST_FIELDS | COVERAGE_FIELDS | {"duration_seconds", "exit_code"}

_TOLD_CHARS = 2000
# Of each kind of evidence, the verdicts that rest on it; the last one is written when it is missing and none does.
_RESTS_ON: Mapping[str, tuple[str, ...]] = {
    "junit": ("failures", "required_tests", "skipped_increase", "tests"),
    "tap": ("failures", "required_tests", "skipped_increase", "tests"),
    "coverage": ("patch_coverage", "coverage"),
    "sarif": ("new_findings",),
}


# Criteria that no run can meet unless it leaves one of these kinds of evidence.
NEEDS_EVIDENCE: Mapping[str, tuple[str, ...]] = {
    "min_coverage": ("coverage",),
    "min_patch_coverage": ("coverage",),
    "max_failures": ("junit", "tap"),
    "required_tests": ("junit", "tap"),
    "min_tests": ("junit", "tap"),
    "max_skipped_increase": ("junit", "tap"),
    "max_new_findings": ("sarif",),
}


class InvalidCriteria(Refused):
    """A criteria document has an unknown key, or a value out of its range; `parts["field"]` names the key."""

    code = "invalid_criteria"
    status = 422

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}", field=key)


class ResultsInconsistent(Refused):
    """The counts of some results contradict each other."""

    code = "results_inconsistent"
    status = 422


@dataclass(frozen=True, slots=True)
class Judgement:
    """How a gate run ends.

    `state` is passed, failed or error; `error_kind` (infra, timeout, command, contradiction, output_limit) is set
    exactly with error, where `decision_passed` is None. Passed means that the status of every verdict is pass.
    `verdicts`: key -> {"status": pass/fail/not_measured/error, "value", "threshold", "evidence"}, ready for JSON.
    """

    state: str
    error_kind: str
    decision_passed: bool | None
    reason: str
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)


# --- the document -----------------------------------------------------------------------------------------------


def check(criteria: Mapping[str, Any]) -> dict[str, Any]:
    """The criteria as they are stored: known keys only, without those that are None. Raises InvalidCriteria."""
    if not isinstance(criteria, Mapping):
        raise InvalidCriteria("criteria", "must be an object")
    for key in criteria:
        if key not in _CHECKS:
            raise InvalidCriteria(str(key), f"is no criterion; there are {', '.join(_CHECKS)}")
    return {key: _CHECKS[key](key, value) for key, value in asked(criteria).items()}


def asked(criteria: Mapping[str, Any]) -> dict[str, Any]:
    """Those that ask for something: a null, which gates could hold before it was refused, asks for nothing."""
    return {key: value for key, value in criteria.items() if value is not None}


def _percent(key: str, value: Any) -> Any:
    if not _is_number(value) or not 0 <= value <= 100:
        raise InvalidCriteria(key, "must be a number from 0 to 100")
    return value


def _count(key: str, value: object) -> int:
    return _integer(key, value, least=0)


def _seconds(key: str, value: object) -> int:
    return _integer(key, value, least=1, most=MAX_SECONDS)


def _integer(key: str, value: Any, *, least: int, most: int = MAX_COUNT) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise InvalidCriteria(key, f"must be a whole number from {least} to {most}")
    return int(value)


def _names(key: str, value: object) -> list[str]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not 1 <= len(value) <= MAX_REQUIRED_TESTS:
        raise InvalidCriteria(key, f"must be a list of 1 to {MAX_REQUIRED_TESTS} names of tests")
    if not all(isinstance(name, str) and name.strip() for name in value):
        raise InvalidCriteria(key, "every name must be a text that is not blank")
    if len(set(value)) != len(value):
        raise InvalidCriteria(key, "a name is there twice")
    return list(value)


def _findings(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or set(value) != {"level", "count"}:
        raise InvalidCriteria(key, "must be an object of level and count")
    if value["level"] not in LEVELS:
        raise InvalidCriteria(f"{key}.level", f"must be one of {', '.join(LEVELS)}")
    return {"level": value["level"], "count": _count(f"{key}.count", value["count"])}


def _true(key: str, value: object) -> bool:
    if value is not True:
        raise InvalidCriteria(key, "must be true, or be left out")
    return True


def _rules(key: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping) or not 1 <= len(value) <= MAX_CUSTOM_RULES:
        raise InvalidCriteria(key, f"must be an object of 1 to {MAX_CUSTOM_RULES} rules by name")
    return {name: _rule(key, name, rule) for name, rule in value.items()}


def _rule(key: str, name: object, rule: object) -> dict[str, Any]:
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name):
        raise InvalidCriteria(key, "a rule's name has 1 to 64 letters, digits, points, dashes and underscores")
    if not isinstance(rule, Mapping) or set(rule) != {"field", "op", "value"}:
        raise InvalidCriteria(f"{key}.{name}", "must be an object of field, op and value")
    if not isinstance(rule["field"], str) or rule["field"] not in FIELDS:
        raise InvalidCriteria(f"{key}.{name}.field", f"must be one of {', '.join(sorted(FIELDS))}")
    if not isinstance(rule["op"], str) or rule["op"] not in OPERATORS:
        raise InvalidCriteria(f"{key}.{name}.op", f"must be one of {' '.join(OPERATORS)}")
    if not _is_number(rule["value"]):
        raise InvalidCriteria(f"{key}.{name}.value", f"must be a number of at most {MAX_FIGURE}")
    return dict(rule)


def _is_number(value: Any) -> bool:
    """True for a finite number of at most 10^15; true and false are none, nor is a text that looks like one."""
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return False
    return -MAX_FIGURE <= value <= MAX_FIGURE


_CHECKS: Mapping[str, Callable[[str, Any], Any]] = {
    "min_coverage": _percent,
    "min_patch_coverage": _percent,
    "max_failures": _count,
    "required_tests": _names,
    "min_tests": _count,
    "max_skipped_increase": _count,
    "max_new_findings": _findings,
    "goalposts": _true,
    "timeout_seconds": _seconds,
    "custom_rules": _rules,
}


# --- the judgement ----------------------------------------------------------------------------------------------


def evaluate(
    criteria: Mapping[str, Any],
    results: Results | None,
    *,
    exit_code: int | None,
    expected_exit_codes: Collection[int],
    timed_out: bool,
    output_limited: bool,
    infra: str,
    duration_seconds: float | None,
    evidence_declared: Collection[str],
    shards_expected: int,
    shards_seen: int,
    finding_exit_codes: Collection[int] = FINDING_EXIT_CODES,
    base: Results | None = None,
    missing: Mapping[str, str] | None = None,
    quarantined: Collection[str] = (),
    spoken_tests: int | None = None,
) -> Judgement:
    """The judgement of one gate run, by domain.md §2.4.2.

    `criteria` has passed `check`. `infra` says how the machinery failed, if it did. `results` is None when nothing
    could be read. `evidence_declared` holds the kinds of evidence that the gate promises ("junit", "tap", "coverage",
    "sarif"), `missing` those of them that could not be read, with the reason; `base` is what the same gate measured on
    the base. `quarantined` are keys of flaky tests that
    somebody answers for: they run, and their failures are told and not judged, unless they are required.
    `spoken_tests` is how many tests ran by what the runner printed, for a gate of tests that leaves no report of them.
    Raises ResultsInconsistent when stated counts contradict each other.

    `expected_exit_codes` are those of success, `finding_exit_codes` those of a tool that did its work and found
    something. With any other the tool was ended or gave up: what it reported may fail the run, and never passes it.

    Stricter than the letter in three places, so that unknown is never good. Failed tests without max_failures are
    judged as if it were 0, even where other criteria are met. A gate with a declared report of tests in which none
    ran gets a failing `tests` verdict, whatever min_tests says, and so does one whose runner prints that it ran none.
    Declared evidence that is missing gets a verdict of its
    own, `not_measured`, where no criterion rests on it.
    """
    criteria, missing = asked(criteria), missing or {}
    if results is not None:
        _need_consistent(results)
    expected = exit_code is not None and exit_code in expected_exit_codes
    error = _error(
        criteria,
        results,
        exit_code=exit_code,
        expected=expected,
        timed_out=timed_out,
        output_limited=output_limited,
        infra=infra,
        duration_seconds=duration_seconds,
    )
    if error is not None:
        return error
    complete = shards_seen >= shards_expected
    measured = results if complete else None
    figures = _Figures(
        measured,
        measured if measured is not None and measured.counted else None,
        base,
        duration_seconds,
        exit_code,
        unmeasured=_why_unmeasured(complete, shards_seen, shards_expected, missing),
        must_run=bool(TEST_EVIDENCE & set(evidence_declared)),
        missing=missing,
        excused=_excused(results, quarantined, criteria),
        goalposts=results.goalposts_clean if results is not None else None,
        told=results.told if results is not None else {},
    )
    verdicts = _verdicts(criteria, figures)
    if spoken_tests == 0 and "tests" not in verdicts:
        verdicts["tests"] = _verdict(False, 0, 1, "no test ran, by what the runner printed")
    for kind, why in missing.items():
        if not verdicts.keys() & set(_RESTS_ON[kind]):
            verdicts[_RESTS_ON[kind][-1]] = _not_measured(None, why)
    if not verdicts and evidence_declared and measured is None:
        return Judgement("failed", "", False, f"Not passed: {figures.unmeasured}")
    judgement = _decision(verdicts)
    if judgement.state == "passed" and not expected and exit_code not in finding_exit_codes:
        return _errored("command", _gave_up(exit_code, expected_exit_codes, finding_exit_codes))
    return judgement


def _gave_up(exit_code: int | None, success: Collection[int], finding: Collection[int]) -> str:
    told = [", ".join(map(str, sorted(codes))) for codes in (success, finding)]
    return (
        f"ended {_with(exit_code)}: it did not finish its work, so its report cannot pass"
        f" (success is {told[0]}, and {told[1]} says that it found something)"
    )


def _with(exit_code: int | None) -> str:
    """`with exit code 2`; of one that a shell or our runner gives for a signal, which signal."""
    if exit_code is None:
        return "without an exit code"
    killed = f", so by signal {exit_code - 128}" if 128 < exit_code <= 192 else ""
    return f"with exit code {exit_code}{killed}"


def failing_tests(results: Results, excused: _Excused | None = None) -> int:
    """Tests that did not pass; the flaky ones are among them when more than MAX_FLAKY are. Without the excused."""
    failed = results.failed - (excused.failed if excused else 0)
    flaky = results.flaky - (excused.flaky if excused else 0)
    return failed + (flaky if flaky > MAX_FLAKY else 0)


@dataclass(frozen=True, slots=True)
class _Excused:
    """How many tests in quarantine failed, and how many passed after a failure."""

    failed: int = 0
    flaky: int = 0


def _excused(results: Results | None, quarantined: Collection[str], criteria: Mapping[str, Any]) -> _Excused:
    if results is None or not quarantined:
        return _Excused()
    finals = _finals(results)
    required = set(criteria.get("required_tests", ()))
    chosen = [finals[key] for key in set(quarantined) - required if key in finals]
    return _Excused(
        failed=sum(outcome in {FAIL, ERROR} for outcome in chosen),
        flaky=sum(outcome == FLAKY_PASS for outcome in chosen),
    )


def _finals(results: Results) -> dict[str, str]:
    """The final outcome of each test by its key."""
    attempts: dict[str, list[str]] = {}
    for test in results.tests:
        attempts.setdefault(test.test_key, []).append(test.outcome)
    return {key: final_outcome(outcomes) for key, outcomes in attempts.items()}


def _need_consistent(results: Results) -> None:
    counts = (results.total, results.passed, results.failed, results.skipped, results.flaky)
    if min(counts) < 0:
        raise ResultsInconsistent("a count of tests is below zero")
    if results.passed + results.failed + results.skipped != results.total:
        raise ResultsInconsistent(
            f"passed + failed + skipped must equal total: {results.passed} + {results.failed} + {results.skipped}"
            f" is not {results.total}"
        )
    if results.flaky > results.passed:
        raise ResultsInconsistent(f"{results.flaky} flaky tests are more than the {results.passed} passed ones")
    if results.tests and len({test.test_key for test in results.tests}) != results.total:
        raise ResultsInconsistent(f"the results name other than {results.total} tests")


def _error(
    criteria: Mapping[str, Any],
    results: Results | None,
    *,
    exit_code: int | None,
    expected: bool,
    timed_out: bool,
    output_limited: bool,
    infra: str,
    duration_seconds: float | None,
) -> Judgement | None:
    """The judgement when there is nothing to judge, else None."""
    limit = criteria.get("timeout_seconds")
    if infra:
        return _errored("infra", infra)
    lost = sum(outcome == INFRA for outcome in _finals(results).values()) if results is not None else 0
    if lost:
        return _errored("infra", f"the machine lost {lost} tests")
    if timed_out or (limit is not None and duration_seconds is not None and duration_seconds > limit):
        return _errored("timeout", "over the time limit")
    if output_limited:
        return _errored("output_limit", "over the limit on output")
    if expected:
        return None
    told = _with(exit_code)
    if "max_new_findings" in criteria and _has_findings(results):
        return None  # analysers end so when they find something, be it old or new
    if results is None or results.total == 0:
        wanted = "finding" if "max_new_findings" in criteria else "test"
        return _errored("command", f"ended {told} and reported no {wanted}")
    if not failing_tests(results):
        return _errored("contradiction", f"ended {told}, and its report shows no failure")
    return None


def _errored(kind: str, reason: str) -> Judgement:
    return Judgement("error", kind, None, f"Error ({kind}): {reason}")


def _has_findings(results: Results | None) -> bool:
    if results is None:
        return False
    return bool(results.findings or (results.new_findings and sum(results.new_findings.values())))


def _why_unmeasured(complete: bool, shards_seen: int, shards_expected: int, missing: Mapping[str, str]) -> str:
    told = [missing[kind] for kind in sorted(TEST_EVIDENCE) if kind in missing]
    if told:
        return "; ".join(told)
    if not complete:
        return f"{shards_seen} of {shards_expected} shards reported"
    return "no evidence could be read"


@dataclass(frozen=True, slots=True)
class _Figures:
    """What there is to compare: `results` in all, and `tests`, the same where tests were counted.

    `unmeasured` says why the tests were not measured, where `tests` is None; `missing` which evidence was not readable.
    """

    results: Results | None
    tests: Results | None
    base: Results | None
    duration_seconds: float | None
    exit_code: int | None
    unmeasured: str
    must_run: bool
    missing: Mapping[str, str]
    excused: _Excused
    goalposts: bool | None
    told: Mapping[str, str]

    def of(self, name: str) -> Any:
        """The figure of a custom rule's `field`, or None when it was not measured."""
        if name == "duration_seconds":
            return self.duration_seconds
        if name == "exit_code":
            return self.exit_code
        of = self.tests if name in TEST_FIELDS else self.results
        return None if of is None else getattr(of, name.removesuffix("_tests"))


def _verdicts(criteria: Mapping[str, Any], figures: _Figures) -> dict[str, dict[str, Any]]:
    results, tests = figures.results, figures.tests
    verdicts: dict[str, dict[str, Any]] = {}
    for criterion, key, value in (
        ("min_coverage", "coverage", results and results.coverage_percent),
        ("min_patch_coverage", "patch_coverage", results and results.patch_coverage_percent),
    ):
        if criterion in criteria:
            verdicts[key] = _at_least_percent(key, value, criteria[criterion], figures)
    if "max_failures" in criteria or (tests is not None and failing_tests(tests, figures.excused)):
        verdicts["failures"] = _failures(criteria.get("max_failures", 0), figures)
    if "required_tests" in criteria:
        verdicts["required_tests"] = _required(criteria["required_tests"], figures)
    if "min_tests" in criteria or figures.must_run:
        verdicts["tests"] = _tests(criteria.get("min_tests", 1), figures)
    if "max_skipped_increase" in criteria:
        verdicts["skipped_increase"] = _skipped_increase(criteria["max_skipped_increase"], figures)
    if "max_new_findings" in criteria:
        verdicts["new_findings"] = _findings_verdict(criteria["max_new_findings"], figures)
    if "goalposts" in criteria:
        verdicts["goalposts"] = _goalposts(figures)
    for name, rule in criteria.get("custom_rules", {}).items():
        verdicts[f"custom:{name}"] = _custom(rule, figures)
    return verdicts


def _decision(verdicts: dict[str, dict[str, Any]]) -> Judgement:
    missed = [key for key, verdict in verdicts.items() if verdict["status"] != "pass"]
    if not missed:
        reason = f"Passed: {', '.join(verdicts)}" if verdicts else "Passed: no test failed, and there are no criteria"
        return Judgement("passed", "", True, reason, verdicts)
    told = ", ".join(f"{key} {_status_told(verdicts[key])}" for key in missed)
    return Judgement("failed", "", False, f"Not passed: {told}"[:_TOLD_CHARS], verdicts)


def _status_told(verdict: Mapping[str, Any]) -> str:
    if verdict["status"] == "fail":
        return f"fail ({verdict['value']}, threshold {verdict['threshold']})"
    return str(verdict["status"])


def _verdict(status: bool | str, value: Any, threshold: Any, evidence: str) -> dict[str, Any]:
    if isinstance(status, bool):
        status = "pass" if status else "fail"
    return {
        "status": status,
        "value": float(value) if isinstance(value, Decimal) else value,
        "threshold": float(threshold) if isinstance(threshold, Decimal) else threshold,
        "evidence": evidence[:_TOLD_CHARS],
    }


def _not_measured(threshold: Any, why: str) -> dict[str, Any]:
    return _verdict("not_measured", None, threshold, why)


def _at_least_percent(key: str, value: Any, threshold: Any, figures: _Figures) -> dict[str, Any]:
    if "coverage" in figures.missing:
        return _not_measured(threshold, figures.missing["coverage"])
    if figures.results is None:
        return _not_measured(threshold, figures.unmeasured)
    if value is None:
        return _not_measured(threshold, figures.told.get(key) or "no coverage report was read")
    if not _is_number(value) or not 0 <= value <= 100:
        return _verdict("error", None, threshold, f"{value} is no percentage")
    # Through text: 79.9999999 is below 80 in either type, and 80.1 is 80.1.
    return _verdict(
        Decimal(str(value)) >= Decimal(str(threshold)), value, threshold, figures.told.get(key) or "coverage report"
    )


def _failures(threshold: int, figures: _Figures) -> dict[str, Any]:
    results, excused = figures.tests, figures.excused
    if results is None:
        return _not_measured(threshold, figures.unmeasured)
    value = failing_tests(results, excused)
    evidence = f"{results.failed} of {results.total} tests failed"
    if excused.failed:
        evidence += f", {excused.failed} of them in quarantine and not judged"
    if results.flaky:
        judged = results.flaky - excused.flaky
        counted = f"more than {MAX_FLAKY}, so counted" if judged > MAX_FLAKY else "not counted"
        evidence += f"; {results.flaky} passed after a failure: {counted}"
    return _verdict(value <= threshold, value, threshold, evidence)


def _required(names: Sequence[str], figures: _Figures) -> dict[str, Any]:
    results = figures.tests
    if results is None:
        return _not_measured(len(names), figures.unmeasured)
    if results.total and not results.tests:
        return _not_measured(len(names), "the results name no tests")
    outcomes = _outcomes_by_name(results.tests)
    worst = {name: outcomes.get(name) or outcomes.get(as_named_in_reports(name), "missing") for name in names}
    met = sum(outcome == PASS for outcome in worst.values())
    told = ", ".join(f"{name} {outcome}" for name, outcome in worst.items() if outcome != PASS)
    return _verdict(met == len(names), met, len(names), told or "every required test passed")


def _outcomes_by_name(tests: Sequence[TestCase]) -> dict[str, str]:
    """Outcome by every name that a person may give a test; where several tests share a name, one that did not pass."""
    attempts: dict[str, list[TestCase]] = {}
    for test in tests:
        attempts.setdefault(test.test_key, []).append(test)
    outcomes: dict[str, str] = {}
    for key, each in attempts.items():
        one = each[0]
        outcome = final_outcome(attempt.outcome for attempt in each)
        if outcome == PASS and any(attempt.outcome in {FAIL, "error", FLAKY_PASS} for attempt in each):
            outcome = FLAKY_PASS
        for name in {key, one.name, f"{one.classname}.{one.name}", f"{one.classname}::{one.name}"}:
            if outcomes.get(name, PASS) == PASS:
                outcomes[name] = outcome
    return outcomes


def as_named_in_reports(name: str) -> str:
    """A pytest node id as its report names it: `tests/test_a.py::TestB::test_c` is `tests.test_a.TestB::test_c`."""
    file, separator, rest = name.partition("::")
    if not separator or not file.endswith(".py"):
        return name
    *classes, test = _split_node(rest)
    return ".".join([file.removesuffix(".py").replace("/", "."), *classes]) + f"::{test}"


def _split_node(rest: str) -> list[str]:
    """The parts of a node id after its file; a parameter in brackets may hold the separator itself."""
    plain, bracket, parameter = rest.partition("[")
    parts = plain.split("::")
    return [*parts[:-1], parts[-1] + bracket + parameter]


def _tests(threshold: int, figures: _Figures) -> dict[str, Any]:
    results = figures.tests
    if results is None:
        return _not_measured(threshold, figures.unmeasured)
    ran = results.passed + results.failed
    if figures.must_run and not ran:
        skipped = f"; {results.skipped} were skipped" if results.skipped else ""
        return _verdict(False, 0, max(threshold, 1), f"no test ran{skipped}")
    return _verdict(results.total >= threshold, results.total, threshold, f"{results.total} tests, {ran} ran")


def _skipped_increase(threshold: int, figures: _Figures) -> dict[str, Any]:
    if figures.tests is None:
        return _not_measured(threshold, figures.unmeasured)
    if figures.base is None or not figures.base.counted:
        return _not_measured(threshold, figures.told.get("base") or "there are no results on the base")
    value = figures.tests.skipped - figures.base.skipped
    told = f"{figures.tests.skipped} skipped, {figures.base.skipped} on the base"
    return _verdict(value <= threshold, value, threshold, told)


def _findings_verdict(threshold: Mapping[str, Any], figures: _Figures) -> dict[str, Any]:
    shown = dict(threshold)
    if "sarif" in figures.missing:
        return _not_measured(shown, figures.missing["sarif"])
    if figures.results is None:
        return _not_measured(shown, figures.unmeasured)
    if figures.results.new_findings is None:
        told = figures.told.get("new_findings") or figures.told.get("base")
        return _not_measured(shown, told or "no report of findings was compared with the base")
    counted = LEVELS[LEVELS.index(threshold["level"]) :]
    value = sum(number for level, number in figures.results.new_findings.items() if level in counted)
    return _verdict(value <= threshold["count"], value, shown, f"new findings of level {', '.join(counted)}")


def _goalposts(figures: _Figures) -> dict[str, Any]:
    clean, told = figures.goalposts, figures.told.get("goalposts")
    if clean is None:
        return _not_measured(True, told or "what the patch changed in its tests was not looked at")
    return _verdict(clean, clean, True, told or "the tests of the base, and what the patch changed in tests")


def _custom(rule: Mapping[str, Any], figures: _Figures) -> dict[str, Any]:
    threshold = f"{rule['op']} {rule['value']}"
    value = figures.of(rule["field"])
    if value is None:
        return _not_measured(threshold, f"{rule['field']} was not measured")
    if not _is_number(value):
        return _verdict("error", None, threshold, f"{rule['field']} is no number")
    met = OPERATORS[rule["op"]](Decimal(str(value)), Decimal(str(rule["value"])))
    return _verdict(met, value, threshold, rule["field"])
