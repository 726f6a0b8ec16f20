"""What counts as passed, failed and error; above all, that unknown is never good."""

import json
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import pytest

from gates.criteria import FIELDS, InvalidCriteria, Judgement, ResultsInconsistent, check, evaluate
from gates.junit import Results, TestCase

BIG = 2**31 - 1


def results_of(**outcomes: str) -> Results:
    """Results of one test per argument; several outcomes with a + between are attempts."""
    return Results.of(
        TestCase(f"tests.test_x::{name}", name, "tests.test_x", outcome=outcome)
        for name, attempts in outcomes.items()
        for outcome in attempts.split("+")
    )


def counted(total: int, failed: int = 0, skipped: int = 0, flaky: int = 0, **more: Any) -> Results:
    return Results(total, total - failed - skipped, failed, skipped, flaky, **more)


GREEN = counted(10)
FACTS: Mapping[str, Any] = {
    "exit_code": 0,
    "expected_exit_codes": [0],
    "timed_out": False,
    "output_limited": False,
    "infra": "",
    "duration_seconds": 12.5,
    "evidence_declared": ["junit"],
    "shards_expected": 1,
    "shards_seen": 1,
    "base": None,
}


def judged(criteria: Mapping[str, Any], results: Results | None, **facts: Any) -> Judgement:
    return evaluate(check(criteria), results, **{**FACTS, **facts})


VALID = [
    {},
    {"min_coverage": 0},
    {"min_coverage": 100},
    {"min_coverage": 79.5},
    {"min_coverage": Decimal("79.55")},
    {"min_patch_coverage": 100.0},
    {"max_failures": 0},
    {"max_failures": BIG},
    {"required_tests": ["a", "b"]},
    {"min_tests": 0},
    {"max_skipped_increase": 0},
    {"max_new_findings": {"level": "warning", "count": 0}},
    {"goalposts": True},
    {"timeout_seconds": 1},
    {"custom_rules": {"fast.enough-1": {"field": "duration_seconds", "op": "<=", "value": 60}}},
    {"min_tests": 1, "max_failures": 0, "min_coverage": 80, "goalposts": True},
]

INVALID = [
    ({"min_coverage": -0.1}, "min_coverage"),
    ({"min_coverage": 100.1}, "min_coverage"),
    ({"min_coverage": float("nan")}, "min_coverage"),
    ({"min_coverage": float("inf")}, "min_coverage"),
    ({"min_coverage": "80"}, "min_coverage"),
    ({"min_coverage": True}, "min_coverage"),
    ({"min_patch_coverage": 101}, "min_patch_coverage"),
    ({"max_failures": -1}, "max_failures"),
    ({"max_failures": 1.0}, "max_failures"),
    ({"max_failures": BIG + 1}, "max_failures"),
    ({"max_failures": 10**400}, "max_failures"),
    ({"max_failures": False}, "max_failures"),
    ({"required_tests": []}, "required_tests"),
    ({"required_tests": "test_a"}, "required_tests"),
    ({"required_tests": ["a", 1]}, "required_tests"),
    ({"required_tests": ["a", " "]}, "required_tests"),
    ({"required_tests": ["a", "a"]}, "required_tests"),
    ({"required_tests": [["a"]]}, "required_tests"),
    ({"required_tests": [f"t{n}" for n in range(1001)]}, "required_tests"),
    ({"min_tests": -1}, "min_tests"),
    ({"max_skipped_increase": -1}, "max_skipped_increase"),
    ({"max_new_findings": 3}, "max_new_findings"),
    ({"max_new_findings": {"level": "warning"}}, "max_new_findings"),
    ({"max_new_findings": {"level": "fatal", "count": 0}}, "max_new_findings.level"),
    ({"max_new_findings": {"level": ["error"], "count": 0}}, "max_new_findings.level"),
    ({"max_new_findings": {"level": "error", "count": -1}}, "max_new_findings.count"),
    ({"max_new_findings": {"level": "error", "count": 0, "extra": 1}}, "max_new_findings"),
    ({"goalposts": False}, "goalposts"),
    ({"goalposts": 1}, "goalposts"),
    ({"timeout_seconds": 0}, "timeout_seconds"),
    ({"timeout_seconds": 1.5}, "timeout_seconds"),
    ({"timeout_seconds": 24 * 3600 + 1}, "timeout_seconds"),
    ({"custom_rules": {}}, "custom_rules"),
    ({"custom_rules": []}, "custom_rules"),
    ({"custom_rules": {"": {"field": "exit_code", "op": "<", "value": 1}}}, "custom_rules"),
    ({"custom_rules": {"a b": {"field": "exit_code", "op": "<", "value": 1}}}, "custom_rules"),
    ({"custom_rules": {"a": {"field": "exit_code", "op": "<"}}}, "custom_rules.a"),
    ({"custom_rules": {"a": {"field": "weather", "op": "<", "value": 1}}}, "custom_rules.a.field"),
    ({"custom_rules": {"a": {"field": ["exit_code"], "op": "<", "value": 1}}}, "custom_rules.a.field"),
    ({"custom_rules": {"a": {"field": "exit_code", "op": "=~", "value": 1}}}, "custom_rules.a.op"),
    ({"custom_rules": {"a": {"field": "exit_code", "op": {}, "value": 1}}}, "custom_rules.a.op"),
    ({"custom_rules": {"a": {"field": "exit_code", "op": "<", "value": "1"}}}, "custom_rules.a.value"),
    ({"custom_rules": {"a": {"field": "exit_code", "op": "<", "value": float("nan")}}}, "custom_rules.a.value"),
    ({"max_flaky": 2}, "max_flaky"),
    ({"coverage": 80}, "coverage"),
    ([("min_tests", 1)], "criteria"),
]


class TestTheDocument:
    @pytest.mark.parametrize("criteria", VALID, ids=str)
    def test_criteria_in_range_are_kept_as_they_are(self, criteria: dict[str, Any]) -> None:
        assert check(criteria) == criteria

    @pytest.mark.parametrize(("criteria", "field"), INVALID, ids=lambda given: str(given)[:60])
    def test_unknown_and_out_of_range_criteria_are_refused_by_name(self, criteria: Any, field: str) -> None:
        with pytest.raises(InvalidCriteria) as refused:
            check(criteria)
        assert (refused.value.code, refused.value.status) == ("invalid_criteria", 422)
        assert refused.value.parts["field"] == field

    def test_criteria_without_a_value_are_not_written(self) -> None:
        assert check({"min_coverage": None, "min_tests": 1, "goalposts": None}) == {"min_tests": 1}

    def test_a_null_that_an_older_gate_holds_is_judged_as_if_it_was_not_there(self) -> None:
        nulls = dict.fromkeys(("min_coverage", "required_tests", "max_new_findings", "goalposts", "custom_rules"))
        given = evaluate({**nulls, "timeout_seconds": None, "min_tests": 1}, GREEN, **FACTS)
        assert given == judged({"min_tests": 1}, GREEN)

    def test_what_is_kept_is_no_part_of_what_was_given(self) -> None:
        given = {"required_tests": ["a"]}
        kept = check(given)
        given["required_tests"].append("b")
        assert kept == {"required_tests": ["a"]}


COVERED = counted(10, coverage_percent=80.0, patch_coverage_percent=50.0)
FOUND = counted(10, new_findings={"note": 4, "warning": 2, "error": 1})
NAMED = results_of(a="pass", b="fail", c="skip", d="fail+pass", e="error", f="pass+fail")


def rule(field: str, op: str, value: float) -> dict[str, Any]:
    return {"custom_rules": {"r": {"field": field, "op": op, "value": value}}}


# criteria, results, further facts, key, (status, value, threshold)
VERDICTS: list[tuple[dict[str, Any], Results | None, dict[str, Any], str, tuple[str, Any, Any]]] = [
    ({"min_coverage": 80}, COVERED, {}, "coverage", ("pass", 80.0, 80)),
    ({"min_coverage": 80.01}, COVERED, {}, "coverage", ("fail", 80.0, 80.01)),
    ({"min_coverage": 0}, counted(1, coverage_percent=0), {}, "coverage", ("pass", 0, 0)),
    ({"min_coverage": 100}, counted(1, coverage_percent=99.999999), {}, "coverage", ("fail", 99.999999, 100)),
    ({"min_coverage": 80}, counted(1, coverage_percent=Decimal("80.00")), {}, "coverage", ("pass", 80.0, 80)),
    ({"min_coverage": 0.3}, counted(1, coverage_percent=Decimal("0.3")), {}, "coverage", ("pass", 0.3, 0.3)),
    ({"min_coverage": 0}, GREEN, {}, "coverage", ("not_measured", None, 0)),
    ({"min_coverage": 0}, None, {}, "coverage", ("not_measured", None, 0)),
    ({"min_coverage": 80}, counted(1, coverage_percent=100.1), {}, "coverage", ("error", None, 80)),
    ({"min_coverage": 80}, counted(1, coverage_percent=float("nan")), {}, "coverage", ("error", None, 80)),
    ({"min_coverage": 80}, COVERED, {"shards_expected": 2}, "coverage", ("not_measured", None, 80)),
    ({"min_patch_coverage": 50}, COVERED, {}, "patch_coverage", ("pass", 50.0, 50)),
    ({"min_patch_coverage": 51}, COVERED, {}, "patch_coverage", ("fail", 50.0, 51)),
    ({"min_patch_coverage": 0}, GREEN, {}, "patch_coverage", ("not_measured", None, 0)),
    ({"max_failures": 0}, GREEN, {}, "failures", ("pass", 0, 0)),
    ({"max_failures": 0}, counted(10, failed=1), {}, "failures", ("fail", 1, 0)),
    ({"max_failures": 1}, counted(10, failed=1), {}, "failures", ("pass", 1, 1)),
    ({"max_failures": 1}, counted(10, failed=2), {}, "failures", ("fail", 2, 1)),
    ({"max_failures": 9}, None, {}, "failures", ("not_measured", None, 9)),
    ({"max_failures": 9}, GREEN, {"shards_expected": 3, "shards_seen": 2}, "failures", ("not_measured", None, 9)),
    ({"max_failures": 0}, counted(10, flaky=2), {}, "failures", ("pass", 0, 0)),
    ({"max_failures": 0}, counted(10, flaky=3), {}, "failures", ("fail", 3, 0)),
    ({"max_failures": 3}, counted(10, failed=1, flaky=3), {}, "failures", ("fail", 4, 3)),
    ({"max_failures": 4}, counted(10, failed=1, flaky=3), {}, "failures", ("pass", 4, 4)),
    ({}, counted(10, failed=1), {}, "failures", ("fail", 1, 0)),
    ({}, counted(10, flaky=3), {}, "failures", ("fail", 3, 0)),
    ({"min_coverage": 1}, counted(10, failed=1, coverage_percent=80), {}, "failures", ("fail", 1, 0)),
    ({"required_tests": ["a"]}, NAMED, {}, "required_tests", ("pass", 1, 1)),
    ({"required_tests": ["a", "b"]}, NAMED, {}, "required_tests", ("fail", 1, 2)),
    ({"required_tests": ["c"]}, NAMED, {}, "required_tests", ("fail", 0, 1)),
    ({"required_tests": ["d"]}, NAMED, {}, "required_tests", ("fail", 0, 1)),
    ({"required_tests": ["e"]}, NAMED, {}, "required_tests", ("fail", 0, 1)),
    ({"required_tests": ["f"]}, NAMED, {}, "required_tests", ("fail", 0, 1)),
    ({"required_tests": ["gone"]}, NAMED, {}, "required_tests", ("fail", 0, 1)),
    ({"required_tests": ["tests.test_x.a", "tests.test_x::a"]}, NAMED, {}, "required_tests", ("pass", 2, 2)),
    ({"required_tests": ["tests/test_x.py::a"]}, NAMED, {}, "required_tests", ("pass", 1, 1)),
    ({"required_tests": ["tests/test_y.py::a"]}, NAMED, {}, "required_tests", ("fail", 0, 1)),
    ({"required_tests": ["a"]}, None, {}, "required_tests", ("not_measured", None, 1)),
    ({"required_tests": ["a"]}, GREEN, {}, "required_tests", ("not_measured", None, 1)),
    ({"min_tests": 10}, GREEN, {}, "tests", ("pass", 10, 10)),
    ({"min_tests": 11}, GREEN, {}, "tests", ("fail", 10, 11)),
    ({"min_tests": 0}, None, {}, "tests", ("not_measured", None, 0)),
    ({"min_tests": 0}, counted(0), {}, "tests", ("fail", 0, 1)),
    ({"min_tests": 0}, counted(0), {"evidence_declared": ["tap"]}, "tests", ("fail", 0, 1)),
    ({"min_tests": 3}, counted(3, skipped=3), {}, "tests", ("fail", 0, 3)),
    ({"min_tests": 1}, counted(1, skipped=1), {}, "tests", ("fail", 0, 1)),
    ({}, counted(0), {}, "tests", ("fail", 0, 1)),
    ({"max_failures": 0}, counted(0), {}, "tests", ("fail", 0, 1)),
    ({}, None, {}, "tests", ("not_measured", None, 1)),
    (
        {"max_skipped_increase": 0},
        counted(9, skipped=2),
        {"base": counted(9, skipped=2)},
        "skipped_increase",
        ("pass", 0, 0),
    ),
    (
        {"max_skipped_increase": 0},
        counted(9, skipped=3),
        {"base": counted(9, skipped=2)},
        "skipped_increase",
        ("fail", 1, 0),
    ),
    (
        {"max_skipped_increase": 1},
        counted(9, skipped=3),
        {"base": counted(9, skipped=2)},
        "skipped_increase",
        ("pass", 1, 1),
    ),
    ({"max_skipped_increase": 0}, counted(9), {"base": counted(9, skipped=2)}, "skipped_increase", ("pass", -2, 0)),
    ({"max_skipped_increase": 0}, GREEN, {}, "skipped_increase", ("not_measured", None, 0)),
    ({"max_skipped_increase": 0}, None, {"base": GREEN}, "skipped_increase", ("not_measured", None, 0)),
    ({"goalposts": True}, counted(1, goalposts_clean=True), {}, "goalposts", ("pass", True, True)),
    ({"goalposts": True}, counted(1, goalposts_clean=False), {}, "goalposts", ("fail", False, True)),
    ({"goalposts": True}, GREEN, {}, "goalposts", ("not_measured", None, True)),
    ({"goalposts": True}, None, {}, "goalposts", ("not_measured", None, True)),
    *(
        (
            {"max_new_findings": {"level": level, "count": count}},
            FOUND,
            {},
            "new_findings",
            (status, value, {"level": level, "count": count}),
        )
        for level, count, status, value in [
            ("none", 7, "pass", 7),
            ("note", 6, "fail", 7),
            ("warning", 3, "pass", 3),
            ("warning", 2, "fail", 3),
            ("error", 1, "pass", 1),
            ("error", 0, "fail", 1),
        ]
    ),
    (
        {"max_new_findings": {"level": "error", "count": 0}},
        GREEN,
        {},
        "new_findings",
        ("not_measured", None, {"level": "error", "count": 0}),
    ),
    (rule("duration_seconds", "<=", 12.5), GREEN, {}, "custom:r", ("pass", 12.5, "<= 12.5")),
    (rule("duration_seconds", "<", 12.5), GREEN, {}, "custom:r", ("fail", 12.5, "< 12.5")),
    (rule("duration_seconds", "<", 9), GREEN, {"duration_seconds": None}, "custom:r", ("not_measured", None, "< 9")),
    (rule("duration_seconds", "<", 9), GREEN, {"duration_seconds": float("nan")}, "custom:r", ("error", None, "< 9")),
    (rule("exit_code", "==", 0), GREEN, {}, "custom:r", ("pass", 0, "== 0")),
    (rule("total_tests", ">", 9), GREEN, {}, "custom:r", ("pass", 10, "> 9")),
    (rule("passed_tests", ">=", 11), GREEN, {}, "custom:r", ("fail", 10, ">= 11")),
    (rule("failed_tests", "==", 0), GREEN, {}, "custom:r", ("pass", 0, "== 0")),
    (rule("skipped_tests", "!=", 0), GREEN, {}, "custom:r", ("fail", 0, "!= 0")),
    (rule("flaky_tests", "<", 1), counted(9, flaky=1), {}, "custom:r", ("fail", 1, "< 1")),
    (rule("coverage_percent", ">=", 80), COVERED, {}, "custom:r", ("pass", 80.0, ">= 80")),
    (rule("coverage_percent", ">=", 0), GREEN, {}, "custom:r", ("not_measured", None, ">= 0")),
    (rule("patch_coverage_percent", ">", 50), COVERED, {}, "custom:r", ("fail", 50.0, "> 50")),
    (rule("total_tests", ">=", 0), None, {}, "custom:r", ("not_measured", None, ">= 0")),
]


class TestVerdicts:
    @pytest.mark.parametrize(("criteria", "results", "facts", "key", "verdict"), VERDICTS)
    def test_a_criterion_has_status_value_and_threshold(
        self,
        criteria: dict[str, Any],
        results: Results | None,
        facts: dict[str, Any],
        key: str,
        verdict: tuple[str, Any, Any],
    ) -> None:
        judgement = judged(criteria, results, **facts)
        found = judgement.verdicts[key]
        assert (found["status"], found["value"], found["threshold"]) == verdict
        assert isinstance(found["evidence"], str)
        assert found["evidence"]
        if verdict[0] != "pass":
            assert judgement.state == "failed"
            assert f"{key} {verdict[0]}" in judgement.reason

    @pytest.mark.parametrize(("criteria", "results", "facts", "key", "verdict"), VERDICTS)
    def test_passed_means_that_every_verdict_is_pass(
        self, criteria: dict[str, Any], results: Results | None, facts: dict[str, Any], key: str, verdict: Any
    ) -> None:
        judgement = judged(criteria, results, **facts)
        every = all(one["status"] == "pass" for one in judgement.verdicts.values())
        assert judgement.state == ("passed" if every else "failed")
        assert judgement.decision_passed is every
        assert judgement.error_kind == ""
        assert json.loads(json.dumps(judgement.verdicts)) == judgement.verdicts

    def test_every_field_can_be_asked_for_by_a_rule(self) -> None:
        for field in FIELDS:
            results = counted(3, coverage_percent=1, patch_coverage_percent=1)
            assert judged(rule(field, ">=", 0), results).verdicts["custom:r"]["status"] == "pass"

    def test_what_is_missed_by_required_tests_is_named(self) -> None:
        verdict = judged({"required_tests": ["a", "b", "c", "d", "gone"]}, NAMED).verdicts["required_tests"]
        assert verdict["evidence"] == "b fail, c skip, d flaky_pass, gone missing"

    def test_of_tests_that_share_a_name_the_one_that_did_not_pass_counts(self) -> None:
        for outcomes in (("pass", "fail"), ("fail", "pass")):
            both = [TestCase(f"{n}::a", "a", f"c{n}", outcome=outcome) for n, outcome in enumerate(outcomes)]
            verdict = judged({"required_tests": ["a"], "max_failures": 9}, Results.of(both)).verdicts["required_tests"]
            assert verdict["status"] == "fail"

    def test_a_node_id_names_classes_and_parameters(self) -> None:
        test = TestCase("k", "test_c[a::b.py]", "tests.test_x.TestB")
        judgement = judged({"required_tests": ["tests/test_x.py::TestB::test_c[a::b.py]"]}, Results.of([test]))
        assert judgement.state == "passed"

    def test_the_reason_names_each_key_that_was_missed_with_its_status(self) -> None:
        judgement = judged({"max_failures": 0, "min_coverage": 80, "min_tests": 1}, counted(10, failed=3))
        assert judgement.reason == "Not passed: coverage not_measured, failures fail (3, threshold 0)"
        assert list(judgement.verdicts) == ["coverage", "failures", "tests"]

    def test_all_criteria_together_pass(self) -> None:
        criteria = {
            "min_coverage": 80, "min_patch_coverage": 90, "max_failures": 0, "required_tests": ["a"], "min_tests": 2,
            "max_skipped_increase": 0, "max_new_findings": {"level": "note", "count": 0}, "goalposts": True,
            "timeout_seconds": 60, **rule("exit_code", "==", 0),
        }  # fmt: skip
        measured = results_of(a="pass", b="pass")
        results = Results(
            measured.total, measured.passed, 0, 0, 0, measured.tests,
            coverage_percent=80, patch_coverage_percent=90, new_findings={}, goalposts_clean=True,
        )  # fmt: skip
        judgement = judged(criteria, results, base=counted(1))
        assert (judgement.state, judgement.error_kind, judgement.decision_passed) == ("passed", "", True)
        assert list(judgement.verdicts) == [
            "coverage", "patch_coverage", "failures", "required_tests", "tests", "skipped_increase", "new_findings",
            "goalposts", "custom:r",
        ]  # fmt: skip
        assert judgement.reason.startswith("Passed: coverage, ")


RED = counted(10, failed=2)

# criteria, results, facts, state, error kind
ENDINGS: list[tuple[dict[str, Any], Results | None, dict[str, Any], str, str]] = [
    ({}, GREEN, {}, "passed", ""),
    ({}, RED, {}, "failed", ""),
    ({}, RED, {"exit_code": 1}, "failed", ""),
    ({"max_failures": 2}, RED, {"exit_code": 1}, "passed", ""),
    ({}, GREEN, {"exit_code": 1}, "error", "contradiction"),
    ({"max_failures": 5}, GREEN, {"exit_code": 1}, "error", "contradiction"),
    ({}, counted(10, flaky=2), {"exit_code": 1}, "error", "contradiction"),
    ({}, counted(10, flaky=3), {"exit_code": 1}, "failed", ""),
    ({}, GREEN, {"exit_code": 1, "expected_exit_codes": [0, 1]}, "passed", ""),
    ({}, GREEN, {"exit_code": 0, "expected_exit_codes": [1]}, "error", "contradiction"),
    ({}, None, {"exit_code": 1}, "error", "command"),
    ({}, counted(0), {"exit_code": 5}, "error", "command"),
    ({"min_tests": 0}, counted(0), {"exit_code": 127}, "error", "command"),
    ({}, None, {"exit_code": None}, "error", "command"),
    ({}, RED, {"exit_code": None}, "failed", ""),
    ({}, GREEN, {"exit_code": 137}, "error", "contradiction"),
    ({}, RED, {"exit_code": 1, "shards_expected": 2}, "failed", ""),
    ({}, GREEN, {"shards_expected": 2}, "failed", ""),
    ({}, GREEN, {"shards_expected": 2, "evidence_declared": ["sarif"]}, "failed", ""),
    ({}, GREEN, {"infra": "the runner was lost"}, "error", "infra"),
    ({}, None, {"infra": "the runner was lost", "exit_code": None, "timed_out": True}, "error", "infra"),
    ({}, GREEN, {"timed_out": True}, "error", "timeout"),
    ({}, RED, {"timed_out": True, "exit_code": None, "output_limited": True}, "error", "timeout"),
    ({}, GREEN, {"output_limited": True}, "error", "output_limit"),
    ({"timeout_seconds": 12}, GREEN, {}, "error", "timeout"),
    ({"timeout_seconds": 13}, GREEN, {}, "passed", ""),
    ({"timeout_seconds": 13}, GREEN, {"duration_seconds": None}, "passed", ""),
    ({}, None, {}, "failed", ""),
    ({}, None, {"evidence_declared": ["sarif"]}, "failed", ""),
    ({}, None, {"evidence_declared": []}, "passed", ""),
    ({}, counted(0), {}, "failed", ""),
    ({"min_tests": 0}, counted(0), {"expected_exit_codes": [0, 5], "exit_code": 5}, "failed", ""),
    ({}, counted(0), {"evidence_declared": ["tap", "coverage"]}, "failed", ""),
    ({}, counted(4, skipped=4), {}, "failed", ""),
    ({}, counted(4, skipped=3), {}, "passed", ""),
    ({}, counted(0, counted=False, findings=0), {"evidence_declared": ["sarif"]}, "passed", ""),
    ({"max_failures": 0}, None, {"evidence_declared": []}, "failed", ""),
    ({"goalposts": True}, GREEN, {}, "failed", ""),
    ({"max_new_findings": {"level": "note", "count": 9}}, FOUND, {"exit_code": 1}, "passed", ""),
    ({"max_new_findings": {"level": "note", "count": 0}}, FOUND, {"exit_code": 1}, "failed", ""),
    # A tool that was ended, or that gave up, passes nothing by half of its report.
    *(
        ({"max_new_findings": {"level": "note", "count": 9}}, FOUND, {"exit_code": code}, "error", "command")
        for code in (2, 126, 127, 137, 139, 255, None)
    ),
    *(
        ({"max_new_findings": {"level": "note", "count": 0}}, FOUND, {"exit_code": code}, "failed", "")
        for code in (2, 137)
    ),
    *(({"max_failures": 2}, RED, {"exit_code": code}, "error", "command") for code in (2, 3, 134, 137, 139, None)),
    *(({"max_failures": 1}, RED, {"exit_code": code}, "failed", "") for code in (2, 137)),
    ({"max_failures": 2}, RED, {"exit_code": 2, "finding_exit_codes": [2]}, "passed", ""),
    ({"max_failures": 2}, RED, {"exit_code": 1, "finding_exit_codes": [2]}, "error", "command"),
    (
        {"max_new_findings": {"level": "note", "count": 9}},
        FOUND,
        {"exit_code": 3, "finding_exit_codes": [1, 3]},
        "passed",
        "",
    ),
    ({}, FOUND, {"exit_code": 1}, "error", "contradiction"),
    ({}, counted(0, new_findings={"error": 1}), {"exit_code": 1, "evidence_declared": ["sarif"]}, "error", "command"),
]


class TestTheEnd:
    @pytest.mark.parametrize(("criteria", "results", "facts", "state", "kind"), ENDINGS)
    def test_a_run_ends_by_the_rules(
        self, criteria: dict[str, Any], results: Results | None, facts: dict[str, Any], state: str, kind: str
    ) -> None:
        judgement = judged(criteria, results, **facts)
        assert (judgement.state, judgement.error_kind) == (state, kind)
        assert judgement.decision_passed is {"passed": True, "failed": False, "error": None}[state]
        assert judgement.reason
        if state == "error":
            assert judgement.verdicts == {}
            assert kind in judgement.reason

    def test_a_tool_that_was_ended_is_told_with_its_signal_and_with_what_would_have_been_honest(self) -> None:
        found = judged({"max_new_findings": {"level": "note", "count": 9}}, FOUND, exit_code=137)
        assert found.reason == (
            "Error (command): ended with exit code 137, so by signal 9: it did not finish its work, so its report"
            " cannot pass (success is 0, and 1 says that it found something)"
        )

    def test_where_none_ran_the_reason_says_none(self) -> None:
        found = judged({"min_tests": 1}, counted(1, skipped=1))
        assert found.reason == "Not passed: tests fail (0, threshold 1)"
        assert found.verdicts["tests"]["evidence"] == "no test ran; 1 were skipped"

    @pytest.mark.parametrize(
        "results",
        [
            Results(10, 9, 0, 0),
            Results(10, 9, 1, 1),
            Results(0, 1, -1, 0),
            Results(-1, -1, 0, 0),
            Results(3, 1, 2, 0, 2),
            Results(2, 2, tests=(TestCase("a", "a"),)),
            Results(1, 1, tests=(TestCase("a", "a"), TestCase("b", "b"))),
        ],
    )
    def test_counts_that_do_not_add_up_are_refused(self, results: Results) -> None:
        with pytest.raises(ResultsInconsistent) as refused:
            judged({}, results)
        assert (refused.value.code, refused.value.status) == ("results_inconsistent", 422)


@pytest.mark.parametrize(
    ("spoken", "criteria", "declared", "results", "state"),
    [
        (0, {}, [], None, "failed"),
        (0, {"goalposts": True}, [], counted(0, goalposts_clean=True), "failed"),
        (0, {"timeout_seconds": 60}, ["coverage"], Results(counted=False, coverage_percent=90.0), "failed"),
        (1, {}, [], None, "passed"),
        (None, {}, [], None, "passed"),
        (None, {}, ["junit"], GREEN, "passed"),
    ],
    ids=["no criteria", "goalposts", "coverage", "one", "nobody says", "a report"],
)
def test_a_runner_that_says_that_it_ran_no_test_passes_nothing(
    spoken: int | None, criteria: dict[str, Any], declared: list[str], results: Results | None, state: str
) -> None:
    judgement = judged(criteria, results, evidence_declared=declared, spoken_tests=spoken)
    assert judgement.state == state, judgement.reason
    if state == "failed":
        said = {"status": "fail", "value": 0, "threshold": 1, "evidence": "no test ran, by what the runner printed"}
        assert judgement.verdicts["tests"] == said
