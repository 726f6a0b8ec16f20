"""What each requirement of the policy says of a patch, in six states, and how risky the patch is. Pure."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any, Literal

from ledger import policy
from ledger.policy import BUILT_IN, BUILT_IN_LAYER, Effective, Facts, Finding
from pipeline.scope import matches

Tier = Literal["low", "medium", "high"]
TIERS: tuple[Tier, ...] = ("low", "medium", "high")


class State(StrEnum):
    """What becomes of one requirement (the states of Gerrit's submit requirements)."""

    NOT_APPLICABLE = "not_applicable"
    SATISFIED = "satisfied"
    UNSATISFIED = "unsatisfied"
    OVERRIDDEN = "overridden"
    BYPASSED = "bypassed"
    ERROR = "error"


@dataclass(frozen=True)
class Reviews:
    """How a patch stands with its reviewers: the names of those who approve and of those who object, and the ids of
    both.
    """

    needed: int
    approvals: tuple[str, ...] = ()
    vetoes: tuple[str, ...] = ()
    heard: frozenset[str] = frozenset()

    @property
    def missing(self) -> int:
        """How many approvals are still to be given."""
        return max(self.needed - len(self.approvals), 0)


@dataclass(frozen=True)
class Standing:
    """What a requirement may ask beyond the facts: reviews, whether its gates ran and passed, whether it landed."""

    reviews: Reviews
    tests_passed: bool = False
    landed: bool = False


@dataclass(frozen=True)
class Requirement:
    """One rule, and what it says of a patch. `findings` are those of this rule; `override` is the one that holds."""

    rule: str
    state: State
    layer: str
    threshold: Any
    findings: tuple[Finding, ...] = ()
    override: Mapping[str, Any] | None = None

    def document(self) -> dict[str, Any]:
        """The requirement as plain JSON."""
        return asdict(self)


# What overrides may be granted for: the rules about the change itself. Who may approve, and what a diff is, are not
# for one person to set aside.
OVERRIDABLE = frozenset(
    {
        "allowed_formats", "patch_required", "patch_only", "max_lines_changed", "max_files_changed",
        "max_lines_by_path", "forbid_binary_patches", "forbid_touching_paths", "require_issue_ref", "ascii_only",
        "forbid_secrets", "forbid_new_dependencies", "forbid_generated_files", "protected_paths", "new_dependencies",
        "forbid_symlinks",
    }
)  # fmt: skip

_Applies = Callable[[Facts, Any], bool]


def _touches(facts: Facts, globs: Any) -> bool:
    return any(policy.is_path(path) and matches(path, globs) for path in facts.paths)


# rule → when it applies, given what holds for it. In the order in which they are shown.
_APPLIES: Mapping[str, _Applies] = {
    "allowed_formats": lambda facts, value: bool(facts.format),
    "patch_required": lambda facts, value: bool(value),
    "patch_only": lambda facts, value: bool(value),
    "max_files_changed": lambda facts, value: value is not None,
    "max_lines_changed": lambda facts, value: value is not None,
    "max_lines_by_path": lambda facts, value: _touches(facts, value),
    "forbid_binary_patches": lambda facts, value: bool(value),
    "forbid_touching_paths": lambda facts, value: bool(value),
    "require_issue_ref": lambda facts, value: bool(value),
    "ascii_only": lambda facts, value: bool(value),
    "forbid_secrets": lambda facts, value: bool(value),
    "forbid_symlinks": lambda facts, value: bool(value),
    "forbid_new_dependencies": lambda facts, value: bool(value),
    "forbid_generated_files": lambda facts, value: bool(value),
}


def requirements(
    facts: Facts | None, effective: Effective, standing: Standing, overrides: Mapping[str, Mapping[str, Any]]
) -> list[Requirement]:
    """What every requirement says of a patch with these facts, in a fixed order.

    `overrides` are those that hold now, by rule; one wins whatever the facts are. What is unsatisfied although the
    patch has landed was bypassed: something else moved the branch, or the rule came later. Without facts (the diff
    could not be read), and for new dependencies of a manifest that cannot be read, the state is error.
    """
    found = [] if facts is None else [*policy.check_constraints(facts, effective)]
    hints = [] if facts is None else policy.check_for_review(facts, effective)
    told: list[Requirement] = []

    def tell(rule: str, applies: bool, broken: Sequence[Finding], *, ok: bool, cannot_tell: bool = False) -> None:
        layer = effective.layer_of.get(rule, broken[0].layer if broken else BUILT_IN_LAYER)
        threshold = effective.values.get(rule, BUILT_IN.get(rule))
        override = overrides.get(rule)
        if override is not None:
            state = State.OVERRIDDEN
        elif cannot_tell:
            state = State.ERROR
        elif not applies:
            state = State.NOT_APPLICABLE
        elif ok:
            state = State.SATISFIED
        else:
            state = State.BYPASSED if standing.landed else State.UNSATISFIED
        told.append(Requirement(rule, state, layer, threshold, tuple(broken), override))

    for rule, applies in _APPLIES.items():
        value = effective.values.get(rule, BUILT_IN.get(rule))
        broken = [finding for finding in found if finding.rule == rule]
        unreadable = rule == "forbid_new_dependencies" and facts is not None and bool(value and facts.unreadable)
        tell(
            rule,
            facts is not None and applies(facts, value),
            broken,
            ok=not broken,
            cannot_tell=facts is None or unreadable,
        )
    reviews = standing.reviews
    enough = reviews.missing == 0 and not reviews.vetoes
    for rule in ("protected_paths", "new_dependencies"):
        broken = [finding for finding in hints if finding.rule == rule]
        unreadable = rule == "new_dependencies" and facts is not None and bool(facts.unreadable and broken)
        tell(rule, bool(broken), broken, ok=enough, cannot_tell=facts is None or (unreadable and not enough))
    tested = effective.values.get("require_tests_for_paths", BUILT_IN["require_tests_for_paths"])
    concerned = facts is not None and _touches(facts, tested)
    tell("require_tests_for_paths", concerned, [], ok=standing.tests_passed, cannot_tell=facts is None)
    tell("min_reviewers", reviews.needed > 0 or bool(reviews.vetoes), [], ok=enough)
    return told


# -- risk --------------------------------------------------------------------------------------------------------------

# Reviewers find fewer faults in more than 200 to 400 lines at once, and few above (Cohen, "Best Kept Secrets of Peer
# Code Review", 2006: 2,500 reviews at Cisco).
MANY_LINES, VERY_MANY_LINES = 400, 1_500
MANY_FILES, VERY_MANY_FILES = 20, 60
_TESTS = ("tests/**", "**/tests/**", "**/test_*.py", "**/*_test.py", "**/*_test.go", "**/*.test.*", "**/*.spec.*")
_WORDS = ("docs/**", "**/*.md", "**/*.rst", "**/*.txt")
_DANGEROUS = ("**/migrations/**", "**/auth/**", "**/auth*.py", "**/security/**", "**/crypto/**", "**/*.sql")


@dataclass(frozen=True)
class Risk:
    """How closely a patch should be looked at, and why: the highest tier that a reason asks for."""

    tier: Tier
    reasons: tuple[tuple[Tier, str, Any], ...]

    def document(self) -> dict[str, Any]:
        """The risk as plain JSON; each reason with its `tier`, its `code` and the `value` that was found."""
        told = [{"tier": tier, "code": code, "value": value} for tier, code, value in self.reasons]
        return {"tier": self.tier, "reasons": told}


def risk(facts: Facts | None, effective: Effective, *, replaced: int = 0) -> Risk:
    """The risk tier of a patch from its facts alone; `replaced` is how many revisions came before it.

    Without facts it is high: what cannot be read cannot be vouched for.
    """
    if facts is None:
        return Risk("high", (("high", "unread", None),))
    reasons: list[tuple[Tier, str, Any]] = []
    if facts.secrets:
        reasons.append(("high", "secrets", len(facts.secrets)))
    if protected := [finding.path for finding in policy.check_protected(facts, effective)]:
        reasons.append(("high", "protected_paths", protected))
    if facts.unreadable:
        reasons.append(("high", "unreadable_manifest", list(facts.unreadable)))
    if facts.new_dependencies:
        reasons.append(("medium", "new_dependencies", sorted({name for _path, name in facts.new_dependencies})))
    for code, value, many, very_many in (
        ("many_lines", facts.lines, MANY_LINES, VERY_MANY_LINES),
        ("many_files", len(facts.paths), MANY_FILES, VERY_MANY_FILES),
    ):
        if value > many:
            reasons.append(("high" if value > very_many else "medium", code, value))
    if dangerous := [path for path in facts.paths if policy.is_path(path) and matches(path, _DANGEROUS)]:
        reasons.append(("medium", "sensitive_paths", dangerous))
    if tests_gone := [path for path in facts.deleted if policy.is_path(path) and matches(path, _TESTS)]:
        reasons.append(("high", "tests_deleted", tests_gone))
    if facts.binary_files:
        reasons.append(("medium", "binary_files", list(facts.binary_files)))
    if replaced >= 3:
        reasons.append(("medium", "many_revisions", replaced))
    code_files = [path for path in facts.paths if not (policy.is_path(path) and matches(path, (*_TESTS, *_WORDS)))]
    if len(code_files) == 0 and not reasons:
        reasons.append(("low", "words_or_tests_only", None))
    elif facts.lines > 50 and code_files and not _touches(facts, _TESTS):
        reasons.append(("medium", "code_without_tests", facts.lines))
    lowest: Tier = "low"
    tier = max((reason[0] for reason in reasons), key=TIERS.index, default=lowest)
    return Risk(tier, tuple(sorted(reasons, key=lambda reason: -TIERS.index(reason[0]))))
