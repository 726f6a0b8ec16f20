"""Which tool does a task, and why."""

import itertools
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.refusals import InvalidField, MissingField
from pipeline.routing import (
    Decision,
    NoRoutableTool,
    Request,
    RouterInvalid,
    Rule,
    Stats,
    Tool,
    check_router,
    decide,
    matches,
    score,
    wilson,
)

EDIT = Request("code_edit", {"complexity": "simple", "domain": "python"})


def tool(key: str, order: int = 0, **more: Any) -> Tool:
    return Tool(**{"key": key, "order": order, "task_kinds": ("code_edit",), **more})


ABC = [tool("a", 1), tool("b", 2), tool("c", 3)]


def chosen(decision: Decision | None) -> str | None:
    assert decision is not None
    return decision.chosen


def reasons(decision: Decision | None) -> dict[str, str]:
    assert decision is not None
    return {candidate.tool: candidate.excluded for candidate in decision.candidates}


@pytest.mark.parametrize(
    ("match", "expected"),
    [
        ({}, True),
        ({"task_kind": "code_edit"}, True),
        ({"task_kind": ["analysis", "code_edit"]}, True),
        ({"task_kind": "analysis"}, False),
        ({"task_kind": []}, False),
        ({"task_kind": "code_edit", "complexity": "simple"}, True),
        ({"task_kind": "code_edit", "complexity": "expert"}, False),
        ({"risk_tier": "low"}, False),
        ({"risk_tier": ["low", "medium", "high"]}, False),
        ({"domain": ["python"]}, True),
    ],
)
def test_a_rule_matches_when_all_it_names_holds_and_is_known(match: dict[str, Any], expected: bool) -> None:
    assert matches(Rule("r", match), EDIT) is expected


def test_the_first_matching_rule_wins() -> None:
    rules = [
        Rule("other", {"task_kind": "analysis"}, ("a",)),
        Rule("second", {"complexity": "simple"}, ("b",)),
        Rule("third", {}, ("c",)),
    ]
    decision = decide(EDIT, rules, ABC)
    assert decision is not None
    assert (decision.chosen, decision.rule, decision.strategy) == ("b", "second", "fixed")


def test_a_rule_that_selects_nothing_adds_its_validators() -> None:
    rules = [
        Rule("lint", {}, validate_with=("ruff",), required=True),
        Rule("pick", {}, ("b",), validate_with=("mypy", "ruff")),
        Rule("later", {}, ("c",), validate_with=("never",)),
        Rule("tests", {"task_kind": "code_edit"}, validate_with=("pytest",)),
        Rule("docs", {"task_kind": "documentation"}, validate_with=("sphinx",)),
    ]
    decision = decide(EDIT, rules, ABC)
    assert decision is not None
    assert (decision.chosen, decision.rule) == ("b", "pick")
    assert decision.validators == ("ruff", "mypy", "pytest")
    assert decision.required


def test_without_a_rule_the_capable_tools_stand_in_their_order() -> None:
    tools = [tool("z", 1), tool("a", 2), tool("lint", 0, kind="validator"), tool("x", 0, task_kinds=("analysis",))]
    decision = decide(EDIT, [], tools)
    assert chosen(decision) == "z"
    assert reasons(decision) == {"z": "", "a": ""}
    assert decision is not None
    assert decision.rule is None
    assert chosen(decide(EDIT, [], [tool("b", 1), tool("a", 1)])) == "a"


def test_without_a_rule_and_a_capable_tool_there_is_no_decision() -> None:
    assert decide(EDIT, [], []) is None
    assert decide(EDIT, [], [tool("x", task_kinds=("analysis",))]) is None
    assert decide(EDIT, [], [tool("x", domains=("rust",))]) is None


@pytest.mark.parametrize(
    ("request_change", "tool_change", "why"),
    [
        ({"allowed_tools": ("b",)}, {}, "is not allowed by the request"),
        ({"phase_tools": ()}, {}, "is not allowed in the phase"),
        ({"profile_tools": ("b", "c")}, {}, "is not in the project's profile"),
        ({"disallowed": ("a",)}, {}, "is disallowed"),
        ({}, {"task_kinds": ("analysis",)}, "cannot do code_edit"),
        ({}, {"domains": ("rust",)}, "does not know the domain python"),
        ({}, {"enabled": False}, "is switched off"),
        ({}, {"breaker_admits": False}, "its circuit breaker is open"),
        ({}, {"slot_free": False}, "has no free slot"),
        ({}, {"held": True}, "waits for its quota"),
    ],
)
def test_a_tool_that_cannot_be_taken_is_passed_over_with_the_reason(
    request_change: dict[str, Any], tool_change: dict[str, Any], why: str
) -> None:
    request = Request("code_edit", {"domain": "python"}, **request_change)
    lone = [tool("a", **tool_change)]
    with pytest.raises(NoRoutableTool, match=why) as refused:
        decide(request, [Rule("r", {}, ("a",))], lone)
    assert (refused.value.code, refused.value.status) == ("no_routable_tool_for_phase", 422)
    assert refused.value.parts["candidates"] == [{"tool": "a", "excluded": why}]
    assert refused.value.parts["temporary"] is bool(
        set(tool_change) & {"enabled", "breaker_admits", "slot_free", "held"}
    )


def test_the_next_candidate_is_taken_and_the_reason_kept() -> None:
    tools = [tool("a", held=True), tool("b")]
    decision = decide(EDIT, [Rule("r", {}, ("a", "ghost", "b"))], tools)
    assert chosen(decision) == "b"
    assert reasons(decision) == {"a": "waits for its quota", "ghost": "is not a known tool", "b": ""}


def test_a_tool_without_domains_or_a_task_without_one_fits() -> None:
    assert chosen(decide(EDIT, [], [tool("a", domains=("python", "rust"))])) == "a"
    assert chosen(decide(Request("code_edit"), [], [tool("a", domains=("rust",))])) == "a"


def test_fallbacks_come_in_order_when_none_is_left() -> None:
    tools = [tool("a", slot_free=False), tool("b", enabled=False), tool("c")]
    decision = decide(EDIT, [Rule("r", {}, ("a",), ("b", "c"), strategy="auto")], tools)
    assert decision is not None
    assert (decision.chosen, decision.rule) == ("c", "r")
    assert [c.document() for c in decision.candidates] == [
        {"tool": "a", "excluded": "has no free slot"},
        {"tool": "b", "excluded": "is switched off", "fallback": True},
        {"tool": "c", "fallback": True},
    ]
    assert chosen(decide(EDIT, [Rule("r", {}, ("c",), ("b",))], [*ABC])) == "c"


def test_round_robin_goes_round_and_skips_the_unavailable() -> None:
    rule, taken = Rule("r", {}, ("a", "b", "c"), strategy="round_robin"), []
    cursor = 0
    for _ in range(6):
        decision = decide(EDIT, [Rule(**{**vars(rule), "cursor": cursor})], [ABC[0], tool("b", held=True), ABC[2]])
        assert decision is not None
        assert decision.cursor is not None
        assert decision.cursor > cursor
        cursor = decision.cursor
        taken.append(decision.chosen)
    assert taken == ["a", "c", "a", "c", "a", "c"]


def test_auto_scores_only_who_can_be_taken() -> None:
    tools = [tool("a", held=True), tool("b")]
    decision = decide(EDIT, [Rule("r", {}, ("a", "b"), strategy="auto")], tools, {"a": Stats(50, 50, 0)})
    assert decision is not None
    assert decision.chosen == "b"
    assert [candidate.score is None for candidate in decision.candidates] == [True, False]


def test_manual_asks_a_person() -> None:
    decision = decide(EDIT, [Rule("r", {}, ("a", "b"), strategy="manual")], ABC)
    assert decision is not None
    assert (decision.chosen, decision.strategy) == (None, "manual")
    assert [candidate.tool for candidate in decision.candidates] == ["a", "b"]


def test_an_unknown_strategy_takes_the_first_and_says_so() -> None:
    decision = decide(EDIT, [Rule("r", {}, ("b", "a"), strategy="astrology")], ABC)
    assert decision is not None
    assert (decision.chosen, decision.strategy, decision.fell_back) == ("b", "fixed", True)
    assert "astrology" in decision.reason


@pytest.mark.parametrize(
    ("successes", "attempts", "low", "high"),
    # Worked by hand from the formula with z = 1.281552: rate 1/2 of 10, all and none of 10, 45 of 50.
    [(5, 10, 0.3122, 0.6878), (10, 10, 0.8589, 1.0), (0, 10, 0.0, 0.1411), (45, 50, 0.8321, 0.9422), (0, 0, 0.0, 1.0)],
)
def test_the_wilson_interval_is_what_its_formula_says(successes: int, attempts: int, low: float, high: float) -> None:
    assert wilson(successes, attempts) == pytest.approx((low, high), abs=5e-4)


@given(st.integers(0, 50), st.integers(0, 50))
def test_the_interval_lies_in_the_unit_and_holds_the_rate(successes: int, more: int) -> None:
    low, high = wilson(successes, successes + more)
    assert 0 <= low <= high <= 1
    if successes + more:
        assert low - 1e-12 <= successes / (successes + more) <= high + 1e-12


def test_more_successes_than_attempts_is_nonsense() -> None:
    with pytest.raises(ValueError, match="successes"):
        wilson(2, 1)


def test_the_score_weighs_success_and_speed_and_lets_the_untried_be_tried() -> None:
    assert score(Stats()) == pytest.approx(0.65)
    assert score(Stats(10, 10, 9)) == pytest.approx(0.7 * wilson(10, 10)[0] + 0.03)
    assert score(Stats(50, 25, 100)) < score(Stats()) < score(Stats(50, 50, 0))


def test_auto_takes_the_best_score_and_keeps_the_figures() -> None:
    stats = {"a": Stats(50, 30, 10), "b": Stats(50, 49, 10), "c": Stats(50, 50, 500)}
    rule = Rule("r", {}, ("a", "b"), strategy="metrics")
    decision = decide(EDIT, [rule], ABC, stats)
    assert decision is not None
    assert (decision.chosen, decision.strategy) == ("b", "auto")
    told = decision.candidates[0].document()
    assert told["attempts"] == 50
    assert told["score"] == pytest.approx(score(stats["a"]), abs=1e-6)
    assert told["interval"] == pytest.approx(wilson(30, 50), abs=1e-6)
    json.dumps([candidate.document() for candidate in decision.candidates])


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        ({}, {"breaker_closed": False}),
        ({"cost": Decimal(1)}, {"cost": Decimal(2)}),
        ({"cost": Decimal(9)}, {"cost": None}),
        ({"order": 1}, {"order": 2}),
        ({"breaker_closed": True, "cost": Decimal(2)}, {"breaker_closed": False, "cost": Decimal(1)}),
    ],
)
def test_ties_go_to_the_closed_breaker_then_the_cheaper_then_the_order(
    better: dict[str, Any], worse: dict[str, Any]
) -> None:
    tools = [tool("a", **worse), tool("b", **better)]
    assert chosen(decide(EDIT, [Rule("r", {}, ("a", "b"), strategy="auto")], tools)) == "b"


TOOLS = st.lists(
    st.builds(
        Tool,
        key=st.sampled_from("abcd"),
        order=st.integers(0, 3),
        task_kinds=st.sampled_from([("code_edit",), ("analysis",)]),
        enabled=st.booleans(),
        held=st.booleans(),
    ),
    unique_by=lambda t: t.key,
    max_size=4,
)
RULES = st.lists(
    st.builds(
        Rule,
        key=st.sampled_from("xyz"),
        match=st.sampled_from([{}, {"task_kind": "code_edit"}, {"task_kind": "analysis"}]),
        select_from=st.lists(st.sampled_from("abcd"), unique=True, max_size=3).map(tuple),
        fallback_to=st.lists(st.sampled_from("abcd"), unique=True, max_size=2).map(tuple),
        strategy=st.sampled_from(["fixed", "round_robin", "auto", "odd"]),
        cursor=st.integers(0, 9),
    ),
    max_size=3,
)


@given(TOOLS, RULES)
def test_who_is_chosen_may_and_can_and_is_free_whatever_the_order_of_the_snapshot(
    tools: list[Tool], rules: list[Rule]
) -> None:
    request = Request("code_edit", allowed_tools=("a", "b", "c"))
    answers = []
    for snapshot in itertools.permutations(tools):
        try:
            answers.append(decide(request, rules, snapshot))
        except NoRoutableTool as refused:
            answers.append(str(refused))  # type: ignore[arg-type]
    assert all(answer == answers[0] for answer in answers)
    if isinstance(answers[0], Decision):
        taken = next(t for t in tools if t.key == answers[0].chosen)
        assert taken.key in ("a", "b", "c")
        assert taken.task_kinds == ("code_edit",)
        assert taken.enabled
        assert not taken.held


ROUTER: dict[str, Any] = {
    "version": "1.0.0",
    "apps": {"claude": {}, "aider": {}, "ruff": {}},
    "routing": {
        "rules": [
            {
                "id": "edits",
                "match": {"task_kind": "code_edit", "complexity": ["high", "simple"]},
                "select_from": ["aider"],
            },
            {"key": "lint", "validate_with": "ruff", "required": True, "strategy": "metrics"},
        ]
    },
    "defaults": {"strategy": "round_robin"},
}


def test_a_good_router_document_gives_its_rules() -> None:
    assert check_router(ROUTER) == (
        Rule(
            "edits",
            {"task_kind": "code_edit", "complexity": ["complex", "simple"]},
            ("aider",),
            strategy="round_robin",
        ),
        Rule("lint", {}, validate_with=("ruff",), required=True, strategy="auto"),
    )
    assert check_router({"apps": {}, "routing": []}) == ()


def with_rule(**rule: Any) -> dict[str, Any]:
    return {**ROUTER, "routing": [{"id": "r", **rule}]}


@pytest.mark.parametrize(
    ("document", "code", "text"),
    [
        ({}, "router_missing_apps", "missing 'apps'"),
        ({"routing": []}, "router_missing_apps", "missing 'apps'"),
        ({"apps": []}, "router_missing_apps", "missing 'apps'"),
        ({"apps": {}}, "router_missing_routing", "missing 'routing'"),
        (with_rule(select_from=["ghost"]), "unknown_tool", "ghost"),
        (with_rule(fallback_to=["ghost"]), "unknown_tool", "ghost"),
        (with_rule(validate_with=["ghost"]), "unknown_tool", "ghost"),
        (with_rule(strategy="astrology"), "invalid_strategy", "astrology"),
        (with_rule(strategy=1), "invalid_strategy", "1"),
        ({**ROUTER, "defaults": {"strategy": "x"}}, "invalid_strategy", "x"),
    ],
)
def test_a_bad_router_document_is_refused_with_its_code(document: dict[str, Any], code: str, text: str) -> None:
    with pytest.raises(RouterInvalid, match=text) as refused:
        check_router(document)
    assert (refused.value.code, refused.value.status) == (code, 422)


@pytest.mark.parametrize(
    "document",
    [
        [],
        {**ROUTER, "extra": 1},
        {**ROUTER, "version": "one"},
        {**ROUTER, "defaults": []},
        {**ROUTER, "routing": ["rule"]},
        {**ROUTER, "routing": [{"id": "r"}, {"id": "r"}]},
        with_rule(colour="red"),
        with_rule(required="yes"),
        with_rule(match=[]),
        with_rule(match={"mood": "x"}),
        with_rule(match={"domain": 1}),
        with_rule(select_from={"a": 1}),
    ],
)
def test_a_malformed_router_document_is_an_invalid_field(document: Any) -> None:
    with pytest.raises(InvalidField):
        check_router(document)


def test_a_rule_needs_a_name() -> None:
    with pytest.raises(MissingField):
        check_router({**ROUTER, "routing": [{"match": {}}]})
