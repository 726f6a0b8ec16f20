"""The words in which people read requirements, their states and the reasons of a risk tier."""

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from ledger.verdicts import Requirement, Risk, State

RULES = {
    "allowed_formats": gettext_lazy("Format is allowed"),
    "patch_required": gettext_lazy("Comes as a patch"),
    "patch_only": gettext_lazy("Comes as a patch and nothing else"),
    "max_files_changed": gettext_lazy("Not too many files"),
    "max_lines_changed": gettext_lazy("Not too many lines"),
    "max_lines_by_path": gettext_lazy("Not too many lines in a file"),
    "forbid_binary_patches": gettext_lazy("No binary files"),
    "forbid_touching_paths": gettext_lazy("Leaves forbidden paths alone"),
    "require_issue_ref": gettext_lazy("Names an issue"),
    "ascii_only": gettext_lazy("Only ASCII text"),
    "forbid_secrets": gettext_lazy("Holds no secret"),
    "forbid_symlinks": gettext_lazy("No symbolic links"),
    "forbid_new_dependencies": gettext_lazy("Adds no dependency"),
    "forbid_generated_files": gettext_lazy("Leaves generated files alone"),
    "protected_paths": gettext_lazy("Protected paths are looked at"),
    "new_dependencies": gettext_lazy("New dependencies are looked at"),
    "require_tests_for_paths": gettext_lazy("A gate tested the touched paths"),
    "min_reviewers": gettext_lazy("Enough people approve"),
}

STATES = {
    State.NOT_APPLICABLE: ("quiet", gettext_lazy("not applicable")),
    State.SATISFIED: ("good", gettext_lazy("satisfied")),
    State.UNSATISFIED: ("bad", gettext_lazy("unsatisfied")),
    State.OVERRIDDEN: ("warn", gettext_lazy("overridden")),
    State.BYPASSED: ("park", gettext_lazy("bypassed")),
    State.ERROR: ("bad", gettext_lazy("cannot be told")),
}

TIERS = {
    "low": ("good", gettext_lazy("low risk")),
    "medium": ("warn", gettext_lazy("medium risk")),
    "high": ("bad", gettext_lazy("high risk")),
}


def rule(name: str) -> str:
    """The requirement in words; a rule without words by its name."""
    return str(RULES.get(name, name.replace("_", " ")))


def value(given: Any) -> str:
    """A constraint's value in one line; "" for an empty one."""
    if isinstance(given, bool):
        return _("yes") if given else _("no")
    if isinstance(given, dict):
        return ", ".join(f"{name}: {inner}" for name, inner in given.items())
    return ", ".join(str(one) for one in given) if isinstance(given, list) else str(given)


def row(requirement: Requirement) -> dict[str, Any]:
    """A requirement as a line of the table: `words`, `state`, `tone`, `messages` and what holds."""
    tone, state = STATES[requirement.state]
    return {
        "rule": requirement.rule,
        "words": rule(requirement.rule),
        "state": state,
        "tone": tone,
        "layer": requirement.layer,
        "is_open": requirement.state in (State.UNSATISFIED, State.ERROR),
        "override": requirement.override,
        "messages": [finding.message for finding in requirement.findings[:5]],
        "more": max(len(requirement.findings) - 5, 0),
    }


def reasons(risk: Risk) -> list[str]:
    """Why the risk is what it is, a sentence each."""
    return [_reason(code, value) for _tier, code, value in risk.reasons]


def _reason(code: str, value: Any) -> str:
    match code:
        case "unread":
            return _("Its diff cannot be read.")
        case "secrets":
            return ngettext(
                "A line looks like a secret.", "%(n)d lines look like secrets.", value
            ) % {"n": value}  # fmt: skip
        case "protected_paths":
            return _("It touches protected paths: %(what)s.") % {"what": _listed(value)}
        case "unreadable_manifest":
            return _("What it depends on cannot be told: %(what)s.") % {"what": _listed(value)}
        case "new_dependencies":
            return _("It adds dependencies: %(what)s.") % {"what": _listed(value)}
        case "many_lines":
            return _("%(n)d lines are more than a reviewer sees through at once.") % {"n": value}
        case "many_files":
            return _("It touches %(n)d files.") % {"n": value}
        case "sensitive_paths":
            return _("It touches what is hard to take back or guards others: %(what)s.") % {"what": _listed(value)}
        case "tests_deleted":
            return _("It deletes tests: %(what)s.") % {"what": _listed(value)}
        case "binary_files":
            return _("Nobody can read its binary files: %(what)s.") % {"what": _listed(value)}
        case "many_revisions":
            return _("It is revision %(n)d of the same work.") % {"n": value + 1}
        case "words_or_tests_only":
            return _("It changes words or tests only.")
        case "code_without_tests":
            return _("It changes %(n)d lines and no test.") % {"n": value}
    return code


def _listed(values: list[str]) -> str:
    return ", ".join(values[:5]) + (", …" if len(values) > 5 else "")
