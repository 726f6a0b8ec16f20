"""Globs: what they match, which covers which, and which can meet."""

import itertools
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import scope
from pipeline.refusals import InvalidField


@pytest.mark.parametrize(
    ("path", "glob", "expected"),
    [
        ("src/a.py", "src/a.py", True),
        ("src/a.py", "src/A.py", False),
        ("src/a.py", "src", False),
        ("src/a.py", "src/*.py", True),
        ("src/a/b.py", "src/*.py", False),
        ("src/.hidden", "src/*", True),
        ("src/ab", "src/a?", True),
        ("src/a", "src/a?", False),
        ("src/a/b", "src?a/b", False),
        ("src", "src/**", False),
        ("src/a", "src/**", True),
        ("src/a/b/c", "src/**", True),
        ("srcx/a", "src/**", False),
        ("a", "**", True),
        ("a/b/c", "**", True),
        ("x", "**/x", True),
        ("a/b/x", "**/x", True),
        ("a/b/xx", "**/x", False),
        ("a/x", "a/**/x", True),
        ("a/b/c/x", "a/**/x", True),
        ("a/b/x/c", "a/**/x", False),
        ("a/b/a/b/c", "**/a/b/*", True),
        ("a/b/a/b", "**/a/b", True),
        ("a[1].py", "a[1].py", True),
        ("a1.py", "a[1].py", False),
        ("a{b}", "a{b}", True),
        ("a*c", "a*c", True),
        ("*x", "*", True),
        ("x*", "x?", True),
        ("übung/ä.py", "übung/*.py", True),
        ("aXbXc", "a*b*c", True),
        ("aXbX", "a*b*c", False),
    ],
)
def test_a_glob_matches_as_its_table_says(path: str, glob: str, expected: bool) -> None:
    assert scope.matches(path, [glob]) is expected


def test_no_glob_matches_nothing_and_one_of_many_is_enough() -> None:
    assert not scope.matches("a", [])
    assert scope.matches("a", ["b", "a"])


def test_a_hostile_pattern_costs_no_more_than_its_size() -> None:
    parts = "/".join(["**", "a*a*a*a*a*b"] * 20)
    assert not scope.matches("/".join(["a" * 40] * 20), [parts])


@pytest.mark.parametrize(
    "path",
    ["", "/a", "a//b", "a/", "./a", "a/./b", "a/../b", "..", "a\\b", "a\x00b", "a\nb", "u\u0308", "a" * 1025, "\ud800"],
)
def test_a_malformed_path_is_refused_everywhere(path: str) -> None:
    with pytest.raises(InvalidField) as refused:
        scope.check_path(path, "write[0]")
    assert (refused.value.code, refused.value.status) == ("invalid_field", 422)
    assert refused.value.parts["field"] == "write[0]"
    with pytest.raises(InvalidField):
        scope.check_glob(path)
    with pytest.raises(InvalidField):
        scope.matches(path, ["**"])
    with pytest.raises(InvalidField):
        scope.matches("a", [path])


@pytest.mark.parametrize("glob", ["a**", "**.py", "a/b**c/d"])
def test_two_stars_inside_a_part_are_refused(glob: str) -> None:
    with pytest.raises(InvalidField, match="whole part"):
        scope.check_glob(glob)


def test_what_is_no_text_is_no_path() -> None:
    with pytest.raises(InvalidField, match="text"):
        scope.check_path(1)  # type: ignore[arg-type]


def test_a_good_path_is_given_back() -> None:
    assert scope.check_path("src/ä b.py") == "src/ä b.py"
    assert scope.check_glob("src/**/*.py") == "src/**/*.py"


@pytest.mark.parametrize(
    ("entry", "by", "expected"),
    [
        ("src/a.py", ["src/a.py"], True),
        ("src/*.py", ["src/*.py"], True),
        ("src/*.py", ["src/**"], True),
        ("src/**", ["src/**"], True),
        ("src/a/**", ["src/**"], True),
        ("src/**/*.py", ["src/**"], True),
        ("src/a.py", ["src/*.py"], True),
        ("src/a/b.py", ["src/*.py"], False),
        ("src", ["src/**"], False),
        ("src/**", ["src/a/**"], False),
        ("**", ["src/**"], False),
        ("anything/*", ["**"], True),
        ("**", ["**"], True),
        ("src/a?.py", ["src/a*.py"], False),
        ("src/*", ["src/a", "src/b"], False),
        ("src/x/**", ["src/*/**"], True),
        ("src/*/**", ["src/x/**"], False),
        ("**/a/b", ["**/a/**"], True),
        ("b", ["a", "b"], True),
        ("a", [], False),
        ("src/../etc", ["src/**"], False),
        ("src/a", ["/src/**", "src\\**"], False),
    ],
)
def test_coverage_is_decided_by_syntax(entry: str, by: list[str], expected: bool) -> None:
    assert scope.covered(entry, by) is expected


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (["src/**"], ["src/a.py"], True),
        (["src/**"], ["docs/**"], False),
        (["src/*.py"], ["src/*.txt"], False),
        (["src/a*"], ["src/*b"], True),
        (["src/a?"], ["src/?b"], True),
        (["src/a?"], ["src/abc"], False),
        (["**/x.py"], ["src/**"], True),
        (["**/x.py"], ["src/*.txt"], False),
        (["a/**/z"], ["a/b/**"], True),
        (["a/*"], ["a/b/c"], False),
        (["src"], ["src/**"], False),
        (["a", "b"], ["c", "b"], True),
        ([], ["**"], False),
    ],
)
def test_overlap_says_whether_one_path_can_be_in_both(a: list[str], b: list[str], expected: bool) -> None:
    assert scope.overlap(a, b) is expected
    assert scope.overlap(b, a) is expected


NAMES = st.sampled_from(["a", "b", "ab", "a.b"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)
GLOBS = st.lists(st.sampled_from(["a", "b", "ab", "*", "a*", "?", "*b", "**"]), min_size=1, max_size=4).map("/".join)
ALL_PATHS = ["/".join(parts) for n in range(1, 4) for parts in itertools.product(["a", "b", "ab", "bb"], repeat=n)]


def as_regex(glob: str) -> re.Pattern[str]:
    """The meaning of a glob told another way: for small inputs only."""
    text = ""
    parts = glob.split("/")
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        if part == "**":
            text += "(?:[^/]+/)*" + ("[^/]+" if last else "")
        else:
            text += re.escape(part).replace(r"\*", "[^/]*").replace(r"\?", "[^/]") + ("" if last else "/")
    return re.compile(text)


@given(PATHS, GLOBS)
def test_matching_agrees_with_a_regular_expression(path: str, glob: str) -> None:
    assert scope.matches(path, [glob]) is bool(as_regex(glob).fullmatch(path))


@given(GLOBS, st.lists(GLOBS, max_size=3))
def test_what_is_covered_never_means_a_path_that_the_wider_does_not(entry: str, by: list[str]) -> None:
    if scope.covered(entry, by):
        for path in ALL_PATHS:
            assert not scope.matches(path, [entry]) or scope.matches(path, by), path


@given(GLOBS, GLOBS)
def test_two_globs_with_a_common_path_overlap(a: str, b: str) -> None:
    if any(scope.matches(path, [a]) and scope.matches(path, [b]) for path in ALL_PATHS):
        assert scope.overlap([a], [b])


@given(GLOBS, PATHS)
def test_a_literal_overlaps_exactly_where_it_matches(glob: str, path: str) -> None:
    assert scope.overlap([glob], [path]) is scope.matches(path, [glob])
