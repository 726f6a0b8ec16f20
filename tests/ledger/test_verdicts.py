"""The six states of a requirement, and the risk tier of a patch, from facts alone."""

from typing import Any

import pytest

from ledger.policy import Facts
from ledger.verdicts import Reviews, Standing, State, requirements, risk
from pipeline.constraints import Layer, resolve

FACTS = Facts(changed=("src/a.py",), insertions=30, deletions=5, lines_by_path={"src/a.py": 35})
NOBODY = Standing(Reviews(0))


def states(facts: Facts | None, standing: Standing = NOBODY, overrides: Any = None, **values: Any) -> dict[str, State]:
    told = requirements(facts, resolve([Layer("project", values)]), standing, overrides or {})
    return {one.rule: one.state for one in told}


def test_a_requirement_is_in_one_of_six_states() -> None:
    over = {"max_lines_changed": {"reason": "a big move"}}
    landed = Standing(Reviews(0), landed=True)
    assert states(FACTS)["max_lines_changed"] is State.NOT_APPLICABLE
    assert states(FACTS, max_lines_changed=35)["max_lines_changed"] is State.SATISFIED
    assert states(FACTS, max_lines_changed=34)["max_lines_changed"] is State.UNSATISFIED
    assert states(FACTS, overrides=over, max_lines_changed=34)["max_lines_changed"] is State.OVERRIDDEN
    assert states(FACTS, overrides=over, max_lines_changed=99)["max_lines_changed"] is State.OVERRIDDEN
    assert states(FACTS, landed, max_lines_changed=34)["max_lines_changed"] is State.BYPASSED
    assert states(None, max_lines_changed=34)["max_lines_changed"] is State.ERROR


def test_a_requirement_names_its_layer_its_threshold_and_what_was_found() -> None:
    told = requirements(FACTS, resolve([Layer("phase build", {"max_lines_changed": 3})]), NOBODY, {})
    one = next(one for one in told if one.rule == "max_lines_changed")
    assert (one.layer, one.threshold, [finding.value for finding in one.findings]) == ("phase build", 3, [35])
    assert one.document()["state"] == "unsatisfied"


@pytest.mark.parametrize(
    ("reviews", "state"),
    [
        (Reviews(0), State.NOT_APPLICABLE),
        (Reviews(1), State.UNSATISFIED),
        (Reviews(1, ("ada",)), State.SATISFIED),
        (Reviews(0, (), ("eve",)), State.UNSATISFIED),
        (Reviews(1, ("ada",), ("eve",)), State.UNSATISFIED),
    ],
)
def test_a_veto_outweighs_any_number_of_approvals(reviews: Reviews, state: State) -> None:
    assert states(FACTS, Standing(reviews))["min_reviewers"] is state


def test_protected_paths_are_satisfied_by_one_review_more() -> None:
    facts = Facts(changed=("Makefile",))
    assert states(facts, Standing(Reviews(1)))["protected_paths"] is State.UNSATISFIED
    assert states(facts, Standing(Reviews(1, ("ada",))))["protected_paths"] is State.SATISFIED
    assert states(FACTS)["protected_paths"] is State.NOT_APPLICABLE


def test_a_manifest_that_cannot_be_read_is_an_error_until_somebody_has_looked() -> None:
    facts = Facts(changed=("package.json",), unreadable=("package.json",))
    assert states(facts, Standing(Reviews(1)))["new_dependencies"] is State.ERROR
    assert states(facts, Standing(Reviews(1, ("ada",))))["new_dependencies"] is State.SATISFIED
    assert states(facts, forbid_new_dependencies=True)["forbid_new_dependencies"] is State.ERROR


def test_paths_that_need_tests_are_satisfied_by_a_gate_that_passed() -> None:
    need = {"require_tests_for_paths": ["src/**"]}
    assert states(FACTS, **need)["require_tests_for_paths"] is State.UNSATISFIED
    assert states(FACTS, Standing(Reviews(0), tests_passed=True), **need)["require_tests_for_paths"] is State.SATISFIED
    docs = Facts(changed=("docs/a.md",))
    assert states(docs, **need)["require_tests_for_paths"] is State.NOT_APPLICABLE


@pytest.mark.parametrize(
    ("facts", "tier", "code"),
    [
        (Facts(changed=("docs/a.md",), insertions=3), "low", "words_or_tests_only"),
        (Facts(changed=("src/a.py", "tests/test_a.py"), insertions=90), "low", None),
        (Facts(changed=("src/a.py",), insertions=90), "medium", "code_without_tests"),
        (Facts(changed=("src/a.py", "tests/test_a.py"), insertions=401), "medium", "many_lines"),
        (Facts(changed=("src/a.py", "tests/test_a.py"), insertions=1501), "high", "many_lines"),
        (Facts(changed=("shop/migrations/0002.py",)), "medium", "sensitive_paths"),
        (Facts(changed=("Makefile",)), "high", "protected_paths"),
        (Facts(deleted=("tests/test_a.py",)), "high", "tests_deleted"),
        (Facts(changed=("a.py",), secrets=(("a.py", 1, "x"),)), "high", "secrets"),
        (Facts(changed=("a.py",), new_dependencies=(("requirements.txt", "b"),)), "medium", "new_dependencies"),
        (None, "high", "unread"),
    ],
)
def test_the_risk_is_told_from_facts_with_its_reasons(facts: Facts | None, tier: str, code: str | None) -> None:
    found = risk(facts, resolve([]))
    assert found.tier == tier
    assert code is None or code in [reason[1] for reason in found.reasons]
    assert [reason[0] for reason in found.reasons][:1] in ([], [tier])


def test_work_that_comes_back_again_and_again_is_looked_at_more_closely() -> None:
    small = Facts(changed=("docs/a.md",))
    assert risk(small, resolve([]), replaced=2).tier == "low"
    assert risk(small, resolve([]), replaced=3).tier == "medium"
