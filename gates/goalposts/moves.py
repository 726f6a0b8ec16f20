"""Pure: what a changed file and a moved goalpost are, for everything that looks for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

_SHOWN_CHARS = 200

# The kinds of moves, in the order in which they are told.
KINDS = (
    "test_deleted", "test_uncollected", "tests_missing", "test_skipped", "assertion_removed", "assertion_weakened",
    "expectation_changed", "subject_mocked", "test_changed", "support_changed", "module_shadowed", "threshold_lowered",
    "config_touched", "check_suppressed", "exit_trick", "report_forged", "tests_detected", "framework_patched",
    "export_ignore", "base_tests_fail", "unreadable",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One file of the patch: its text before (None: it was not there) and after (None: it is gone)."""

    path: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """One goalpost that moved: what kind, where (`line` from 1 in the patched file, 0 for none), and what, in words."""

    kind: str
    path: str
    line: int
    what: str


def moved(kind: str, path: str, line: int, what: str) -> Moved:
    """A move with its words on one line and of bounded length."""
    return Moved(kind, path, line, " ".join(what.split())[:_SHOWN_CHARS])


def added_lines(before: str, after: str) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines of `after` that `before` does not have as often; order plays no part."""
    left = Counter(before.splitlines())
    for number, line in enumerate(after.splitlines(), 1):
        if left[line]:
            left[line] -= 1
        elif line.strip():
            yield number, line
