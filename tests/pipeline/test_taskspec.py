"""What a TaskSpec may say, and which plans are refused."""

import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.refusals import InvalidField, MissingField
from pipeline.taskspec import (
    KINDS,
    ON_FAILURE,
    PATCH_KINDS,
    PlanRefused,
    check_plan,
    delta_values,
    normalise,
    slug,
    write_scope,
)

SCOPE = {"type": "files", "read": ["**"], "write": ["src/**"], "create": ["src/**"], "forbidden": ["src/secret/**"]}


def spec(id: str = "a", **more: Any) -> dict[str, Any]:
    return {"task_id": id, "name": f"Do {id}", "kind": "code_edit"} | more


def codes(*specs: dict[str, Any], **options: Any) -> list[str]:
    return [finding.code for finding in check_plan(specs, **options).findings]


def test_three_keys_are_enough_and_the_rest_gets_its_default() -> None:
    assert normalise(spec()) == {
        "task_id": "a",
        "name": "Do a",
        "kind": "code_edit",
        "depends_on": [],
        "gates": [],
        "capabilities": [],
        "allow_parallel": False,
        "classification": {},
        "priority": 5,
        "resource_scope_delta": {},
        "constraints_delta": {},
        "execution": {
            "max_attempts": 3,
            "timeout_seconds": 1800,
            "retry": {"mode": "exponential"},
            "background": False,
        },
        "prompt_overrides": {},
        "acceptance": {},
        "error_handling": {},
        "requires_patch": True,
        "is_critical": True,
    }


@pytest.mark.parametrize("key", ["task_id", "name", "kind"])
def test_a_missing_key_is_named(key: str) -> None:
    document = spec()
    del document[key]
    with pytest.raises(MissingField, match=f"Missing required field: {key}"):
        normalise(document)
    with pytest.raises(MissingField):
        normalise({**document, key: None})


def test_settings_give_the_defaults_of_execution_and_the_spec_wins() -> None:
    assert normalise(spec(), max_attempts=7, timeout_seconds=60)["execution"]["max_attempts"] == 7
    own = normalise(spec(execution={"max_attempts": 1}), max_attempts=7, timeout_seconds=60)["execution"]
    assert (own["max_attempts"], own["timeout_seconds"]) == (1, 60)


@pytest.mark.parametrize("kind", KINDS)
def test_the_kind_says_whether_a_patch_is_required(kind: str) -> None:
    assert normalise({**spec(), "kind": kind})["requires_patch"] is (kind in PATCH_KINDS)
    assert normalise({**spec(), "kind": kind, "requires_patch": True})["requires_patch"] is True


@pytest.mark.parametrize(
    ("classification", "priority", "expected"),
    [
        ({}, None, 5),
        ({"priority": "low"}, None, 2),
        ({"priority": "normal"}, None, 5),
        ({"priority": "high"}, None, 8),
        ({"priority": "critical"}, None, 10),
        ({"priority": "urgent"}, None, 10),
        ({"priority": "low"}, 9, 9),
    ],
)
def test_priority_comes_from_the_classification_unless_given(
    classification: dict[str, str], priority: int | None, expected: int
) -> None:
    assert normalise(spec(classification=classification, priority=priority))["priority"] == expected


@pytest.mark.parametrize(
    ("key", "alias", "word"),
    [
        ("complexity", "low", "simple"),
        ("complexity", "medium", "moderate"),
        ("complexity", "high", "complex"),
        ("complexity", "expert", "expert"),
        ("priority", "urgent", "critical"),
        ("risk_tier", "R1", "low"),
        ("risk_tier", "R2", "medium"),
        ("risk_tier", "R3", "high"),
        ("risk_tier", "moon", "moon"),
    ],
)
def test_aliases_are_read_and_never_written(key: str, alias: str, word: str) -> None:
    assert normalise(spec(classification={key: alias}))["classification"] == {key: word}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"colour": "red"}, "colour"),
        ({"task_id": "A"}, "task_id"),
        ({"task_id": "-a"}, "task_id"),
        ({"task_id": "a" * 65}, "task_id"),
        ({"task_id": "a\n"}, "task_id"),
        ({"task_id": 1}, "task_id"),
        ({"name": " "}, "name"),
        ({"kind": "code edit"}, "kind"),
        ({"depends_on": "b"}, "depends_on"),
        ({"depends_on": ["b", "b"]}, "depends_on"),
        ({"depends_on": ["b", "B"]}, "depends_on[1]"),
        ({"gates": [""]}, "gates[0]"),
        ({"capabilities": [1]}, "capabilities[0]"),
        ({"allow_parallel": "yes"}, "allow_parallel"),
        ({"requires_patch": 1}, "requires_patch"),
        ({"is_critical": 0}, "is_critical"),
        ({"group": "a b"}, "group"),
        ({"conflict_group": ""}, "conflict_group"),
        ({"prompt_template_ref": ""}, "prompt_template_ref"),
        ({"priority": 0}, "priority"),
        ({"priority": 11}, "priority"),
        ({"priority": True}, "priority"),
        ({"classification": []}, "classification"),
        ({"classification": {"mood": "x"}}, "classification.mood"),
        ({"classification": {"complexity": "huge"}}, "classification.complexity"),
        ({"classification": {"priority": "asap"}}, "classification.priority"),
        ({"classification": {"domain": 1}}, "classification.domain"),
        ({"execution": {"max_attempts": 0}}, "execution.max_attempts"),
        ({"execution": {"timeout_seconds": 1.5}}, "execution.timeout_seconds"),
        ({"execution": {"retry": {"mode": "often"}}}, "execution.retry.mode"),
        ({"execution": {"retry": {}}}, "execution.retry.mode"),
        ({"execution": {"retry": {"mode": "none", "x": 1}}}, "execution.retry.x"),
        ({"execution": {"background": 1}}, "execution.background"),
        ({"execution": {"estimate_seconds": -1}}, "execution.estimate_seconds"),
        ({"execution": {"estimate_seconds": float("nan")}}, "execution.estimate_seconds"),
        ({"execution": {"estimate_seconds": True}}, "execution.estimate_seconds"),
        ({"execution": {"estimate_amount": "NaN"}}, "execution.estimate_amount"),
        ({"execution": {"estimate_amount": "-1"}}, "execution.estimate_amount"),
        ({"execution": {"estimate_amount": "much"}}, "execution.estimate_amount"),
        ({"execution": {"estimate_amount": 10**12}}, "execution.estimate_amount"),
        ({"execution": {"sandbox": 1}}, "execution.sandbox"),
        ({"resource_scope_delta": {"type": "tables"}}, "resource_scope_delta.type"),
        ({"resource_scope_delta": {"write": ["/x"]}}, "resource_scope_delta.write"),
        ({"constraints_delta": {"patch": {"x": 1}}}, "constraints_delta.patch.x"),
        ({"constraints_delta": []}, "constraints_delta"),
        ({"prompt_overrides": {"POEM": "x"}}, "prompt_overrides.POEM"),
        ({"prompt_overrides": {"ROLE": 1}}, "prompt_overrides.ROLE"),
        ({"prompt_overrides": {"VALIDATION": "x", "VALIDATION_RULES": "y"}}, "prompt_overrides.VALIDATION_RULES"),
        ({"prompt_overrides": []}, "prompt_overrides"),
        ({"acceptance": {"mode": "some"}}, "acceptance.mode"),
        ({"acceptance": {"checks": {}}}, "acceptance.checks"),
        ({"error_handling": {"on_failure": "shrug"}}, "error_handling.on_failure"),
        ({"error_handling": {"error_phase_id": ""}}, "error_handling.error_phase_id"),
    ],
)
def test_what_a_spec_may_not_say_is_refused_by_its_path(change: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        normalise({**spec(), **change})
    assert refused.value.parts["field"] == field
    assert refused.value.code in ("invalid_field", "missing_required_field")


def test_a_spec_that_is_no_object_is_refused() -> None:
    with pytest.raises(InvalidField, match="task"):
        normalise([])  # type: ignore[arg-type]


def test_a_key_has_up_to_sixty_four_letters() -> None:
    assert slug("a" * 64, "key") == "a" * 64
    assert slug("0a.b_c-d", "key") == "0a.b_c-d"


def test_the_deltas_are_kept_as_written_and_read_flat() -> None:
    deltas = {"resource_scope_delta": {"write": ["a"]}, "constraints_delta": {"patch": {"max_lines_changed": 3}}}
    normal = normalise(spec(**deltas))
    assert {key: normal[key] for key in deltas} == deltas
    assert delta_values(normal) == {"write": ["a"], "max_lines_changed": 3}
    assert delta_values({}) == {}


def test_a_money_estimate_stays_exact() -> None:
    for given_amount in ("0.10", 0.1, Decimal("0.1")):
        estimate = normalise(spec(execution={"estimate_amount": given_amount}))["execution"]["estimate_amount"]
        assert Decimal(estimate) == Decimal("0.1")


SPECS = st.fixed_dictionaries(
    {"task_id": st.sampled_from(["a", "b.c", "x-1"]), "name": st.just(" n "), "kind": st.sampled_from([*KINDS, "odd"])},
    optional={
        "depends_on": st.lists(st.sampled_from(["p", "q"]), unique=True),
        "allow_parallel": st.booleans(),
        "priority": st.none() | st.integers(1, 10),
        "group": st.sampled_from(["g"]),
        "classification": st.fixed_dictionaries(
            {}, optional={"priority": st.sampled_from(["urgent", "low"]), "complexity": st.sampled_from(["high"])}
        ),
        "execution": st.fixed_dictionaries(
            {}, optional={"estimate_amount": st.decimals(0, 100, places=3), "estimate_seconds": st.integers(0, 99)}
        ),
        "prompt_overrides": st.sampled_from([{}, {"VALIDATION": "x"}]),
        "error_handling": st.sampled_from([{"on_failure": word} for word in ON_FAILURE]),
        "requires_patch": st.booleans(),
    },
)


@given(SPECS)
def test_a_normal_spec_is_plain_json_and_stays_as_it_is(document: dict[str, Any]) -> None:
    normal = normalise(document)
    assert json.loads(json.dumps(normal)) == normal
    assert normalise(normal) == normal


def test_a_good_plan_tells_its_shape_and_cost() -> None:
    plan = check_plan(
        [
            spec("a", execution={"estimate_seconds": 10, "estimate_amount": "0.10"}),
            spec(
                "b",
                depends_on=["a"],
                allow_parallel=True,
                resource_scope_delta={"write": ["src/b/**"]},
                execution={"estimate_seconds": 100, "estimate_amount": "0.20"},
            ),
            spec("c", depends_on=["a"], allow_parallel=True, resource_scope_delta={"write": ["src/c/**"]}),
            spec("d", depends_on=["b", "c"], execution={"estimate_seconds": 5}),
        ],
        scope=SCOPE,
    )
    assert plan.ok
    plan.refuse()
    assert plan.levels == (("a",), ("b", "c"), ("d",))
    assert plan.widths == (1, 2, 1)
    assert plan.critical_path == ("a", "b", "d")
    assert plan.slack == {"a": 0, "b": 0, "c": 99, "d": 0}
    assert plan.estimated_seconds == 115
    assert plan.estimated_amount == Decimal("0.30")
    assert plan.unestimated == ("c",)
    assert [task["task_id"] for task in plan.tasks] == ["a", "b", "c", "d"]


def test_less_company_makes_the_estimate_longer() -> None:
    specs = [
        spec(id, kind="analysis", allow_parallel=True, execution={"estimate_seconds": 10}) for id in ("a", "b", "c")
    ]
    assert check_plan(specs).estimated_seconds == 10
    assert check_plan(specs, max_parallel=2).estimated_seconds == 20
    assert check_plan(specs, mode="sequential").estimated_seconds == 30


@pytest.mark.parametrize(
    ("specs", "options", "code"),
    [
        ([], {}, "invalid_plan"),
        ([{"task_id": "a"}], {}, "invalid_plan"),
        ([spec("a"), spec("a")], {}, "invalid_plan"),
        ([spec("a", colour="red")], {}, "invalid_plan"),
        ([spec("a", kind="poetry")], {"kinds": ["prose"]}, "invalid_plan"),
        ([spec("a", depends_on=["x"])], {}, "unknown_dependency"),
        ([spec("a", depends_on=["b"]), spec("b", depends_on=["a"])], {}, "circular_dependency"),
        ([spec("a", depends_on=["a"])], {}, "circular_dependency"),
        ([spec("a", resource_scope_delta={"write": ["docs/**"]})], {"scope": SCOPE}, "constraint_weakened"),
        (
            [spec("a", constraints_delta={"max_lines_changed": 11})],
            {"constraints": {"max_lines_changed": 10}},
            "constraint_weakened",
        ),
        ([spec("a")], {"scope": {"read": ["**"], "write": []}}, "invalid_plan"),
        ([spec("a")], {"scope": {"write": ["x/**"], "forbidden": ["x/**"]}}, "invalid_plan"),
        ([spec("a")], {"constraints": {"patch": {"max_lines_changed": 0}}}, "invalid_plan"),
        ([spec("a", constraints_delta={"max_files_changed": 0})], {}, "invalid_plan"),
        ([spec("a"), spec("b")], {"scope": SCOPE}, "scope_overlap"),
        (
            [
                spec("a", resource_scope_delta={"write": ["src/*.py"]}),
                spec("b", resource_scope_delta={"write": ["src/x*"]}),
            ],
            {"scope": {"write": ["src/*.py", "src/x*"]}},
            "scope_overlap",
        ),
    ],
)
def test_a_plan_that_cannot_be_carried_out_is_found_and_refused(
    specs: list[dict[str, Any]], options: dict[str, Any], code: str
) -> None:
    plan = check_plan(specs, **options)
    assert [finding.code for finding in plan.findings] == [code]
    with pytest.raises(PlanRefused) as refused:
        plan.refuse()
    assert (refused.value.code, refused.value.status) == (code, 422)
    assert refused.value.parts["findings"] == [finding.document() for finding in plan.findings]


def test_a_finding_is_a_sentence_that_begins_as_the_domain_says() -> None:
    said = {
        finding.code: finding.message
        for finding in (
            *check_plan([spec("a", colour="red")]).findings,
            *check_plan([spec("a", depends_on=["x"])]).findings,
            *check_plan([spec("a", depends_on=["b"]), spec("b", depends_on=["a"])]).findings,
            *check_plan([spec("a"), spec("b")], scope=SCOPE).findings,
        )
    }
    assert said["invalid_plan"].startswith("Invalid plan: tasks[0].colour")
    assert said["unknown_dependency"].startswith("Unknown dependency: a needs x")
    assert said["circular_dependency"] == "Circular dependency: a → b → a"
    assert said["scope_overlap"].startswith("Overlapping write scopes: a and b")


def test_every_finding_of_a_plan_is_told_not_only_the_first() -> None:
    assert codes(spec("a", depends_on=["x"]), spec("b", constraints_delta={"max_files_changed": 0}), scope=SCOPE) == [
        "unknown_dependency",
        "invalid_plan",
    ]


@pytest.mark.parametrize(
    "specs",
    [
        [spec("a"), spec("b", depends_on=["a"])],
        [spec("a"), spec("m", kind="analysis", depends_on=["a"]), spec("b", depends_on=["m"])],
        [spec("a", conflict_group="x"), spec("b", conflict_group="x")],
        [spec("a"), spec("b", kind="analysis")],
        [spec("a"), spec("b", requires_patch=False)],
        [spec("a", resource_scope_delta={"write": ["src/a"]}), spec("b", resource_scope_delta={"write": ["src/b"]})],
        [spec("a", resource_scope_delta={"create": ["src/a"]}), spec("b", resource_scope_delta={"write": ["src/b"]})],
    ],
)
def test_tasks_that_cannot_meet_do_not_overlap(specs: list[dict[str, Any]]) -> None:
    assert check_plan(specs, scope=SCOPE).ok


def test_a_task_without_a_patch_that_says_what_it_writes_does_overlap() -> None:
    reviewer = spec("b", kind="code_review", resource_scope_delta={"write": ["src/x"]})
    assert codes(spec("a"), reviewer, scope=SCOPE) == ["scope_overlap"]


def test_without_any_scope_nothing_is_said_about_writing() -> None:
    assert check_plan([spec("a"), spec("b")]).ok
    assert write_scope({"read": ["**"]}) is None
    assert write_scope({"write": [], "read": ["**"]}) == []
    assert write_scope({"write": ["a"], "create": ["a", "b"]}) == ["a", "b"]


def test_another_kind_is_accepted_when_a_tool_declares_it() -> None:
    assert check_plan([spec("a", kind="poetry")], kinds=["poetry"]).ok
    assert check_plan([spec("a", kind="poetry")]).ok
