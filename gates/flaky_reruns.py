"""Pure: which tests are run again within a run, and by which command."""

from __future__ import annotations

from collections.abc import Sequence

from gates.junit import ERROR, FAIL, Results, TestCase, final_outcome
from gates.reading import Tree

MOST = 20  # more failures than these are no matter of chance

_NODE_BRACKET = "["


def failed(results: Results) -> list[TestCase]:
    """The last attempt of each test that failed in the end, in the order of the report."""
    attempts: dict[str, list[TestCase]] = {}
    for test in results.tests:
        attempts.setdefault(test.test_key, []).append(test)
    return [each[-1] for each in attempts.values() if final_outcome(one.outcome for one in each) in {FAIL, ERROR}]


def command(whole: Sequence[str], tests: Sequence[TestCase], tree: Tree) -> list[str]:
    """The command that runs these tests only, where its runner is known to take them; else the whole command.

    Known is pytest, by the node ids that its own report implies. A test whose place cannot be told makes it the whole.
    """
    words = list(whole)
    place = _pytest_at(words)
    if place is None:
        return words
    ids = [_node_id(test, tree) for test in tests]
    if any(one is None for one in ids):
        return words
    options = words[place + 1 :]
    # Paths that the command itself names would be collected beside the tests, so they are left out.
    kept, takes_value = [], False
    for word in options:
        if takes_value or word.startswith("-"):
            kept.append(word)
            takes_value = not takes_value and word in _WITH_VALUE
        else:
            takes_value = False
            if not (word in tree.lines or _is_folder(word, tree) or "::" in word):
                kept.append(word)
    return [*words[: place + 1], *kept, *(one for one in ids if one is not None)]


_WITH_VALUE = frozenset(
    {"-p", "-c", "-o", "-n", "-k", "-m", "-W", "--rootdir", "--maxfail", "--tb", "--cov", "--timeout"}
)


def _pytest_at(words: Sequence[str]) -> int | None:
    """Where pytest stands in a command that is nothing but a run of it."""
    if words and words[0].rpartition("/")[2] in {"pytest", "py.test"}:
        return 0
    if len(words) > 2 and words[0].rpartition("/")[2].startswith("python") and words[1:3] == ["-m", "pytest"]:
        return 2
    return None


def _is_folder(word: str, tree: Tree) -> bool:
    stem = word.strip("/")
    return stem == "." or any(path.startswith(f"{stem}/") for path in tree.lines)


def _node_id(test: TestCase, tree: Tree) -> str | None:
    """`tests/test_a.py::TestB::test_c` of a case `tests.test_a.TestB` `test_c`, if the tree has such a file."""
    parts = test.classname.split(".")
    cwd = f"{tree.cwd}/" if tree.cwd else ""
    for end in range(len(parts), 0, -1):
        path = "/".join(parts[:end]) + ".py"
        if f"{cwd}{path}" in tree.lines:
            return "::".join([path, *parts[end:], test.name])
    return None
