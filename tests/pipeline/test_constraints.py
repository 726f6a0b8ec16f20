"""The tighten-only resolver: every fold, every refusal, and who set what."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import constraints, scope
from pipeline.constraints import FIELDS, ConstraintWeakened, Fold, Layer, check, flatten, resolve, scope_values
from pipeline.refusals import InvalidField

# field, wide, narrow, effective, and a narrow value that is looser
TABLE: list[tuple[str, Any, Any, Any, Any]] = [
    ("read", ["src/**"], ["src/a/**"], ["src/a/**"], ["**"]),
    ("write", ["src/**", "docs/**"], ["docs/x.md"], ["docs/x.md"], ["docs/x.md", "ci.yml"]),
    ("create", ["tests/**"], [], [], ["tests"]),
    ("max_lines_changed", 500, 0, 0, 501),
    ("max_files_changed", 10, 10, 10, 11),
    ("patch_only", False, True, True, None),
    ("tests_must_run", True, True, True, False),
    ("tests_must_pass", True, True, True, False),
    ("ascii_only", True, True, True, False),
    ("require_doc_update", True, True, True, False),
    ("require_issue_ref", True, True, True, False),
    ("forbid_binary_patches", True, True, True, False),
    ("patch_required", True, True, True, False),
    ("skip_allowed", False, False, False, True),
    ("skip_allowed", True, False, False, None),
    ("allowed_tools", ["a", "b"], ["b"], ["b"], ["b", "c"]),
    ("allowed_formats", ["unified_diff"], [], [], ["git_bundle"]),
    ("allowed_skip_reasons", ["slow", "network"], ["slow"], ["slow"], ["mood"]),
    ("timeout_seconds", 600, 60, 60, 601),
    ("max_attempts", 3, 1, 1, 4),
    ("max_parallel", 5, 2, 2, 6),
    ("max_apply_attempts", 3, 2, 2, 4),
    ("max_attempts_per_run", 3, 2, 2, 4),
    ("min_reviewers", 1, 2, 2, 0),
    ("oscillation_window", 5, 9, 9, 4),
    ("oscillation_threshold", 3, 2, 2, 4),
    ("sandbox_level_min", 1, 2, 2, 0),
    ("test_command", "pytest", "pytest", "pytest", "true"),
    ("on_validation_failure", {"format": "dropped"}, {"format": "dropped"}, {"format": "dropped"}, {"format": "x"}),
    ("forbidden", ["ci/**"], ["secrets"], ["ci/**", "secrets"], None),
    ("disallowed_tools", ["a"], ["b"], ["a", "b"], None),
    ("forbid_touching_paths", ["a"], ["a", "b"], ["a", "b"], None),
    ("require_tests_for_paths", ["src/**"], [], ["src/**"], None),
    ("protected_paths", [], ["x"], ["x"], None),
    ("generated_paths", ["dist/**"], [], ["dist/**"], None),
    ("forbid_secrets", True, True, True, False),
    ("forbid_symlinks", False, True, True, None),
    ("forbid_new_dependencies", False, True, True, None),
    ("forbid_generated_files", True, True, True, False),
    ("max_lines_by_path", {"a": 5}, {"a": 3}, {"a": 3}, {"a": 6}),
]


def test_the_table_of_this_test_names_every_field() -> None:
    assert {row[0] for row in TABLE} == set(FIELDS)


@pytest.mark.parametrize(("field", "wide", "narrow", "effective"), [row[:4] for row in TABLE])
def test_a_tighter_value_wins(field: str, wide: Any, narrow: Any, effective: Any) -> None:
    found = resolve([Layer("wide", {field: wide}), Layer("narrow", {field: narrow})])
    assert found.values == {field: effective}
    assert found.layer_of == {field: "wide" if effective == wide else "narrow"}


@pytest.mark.parametrize(("field", "wide", "loose"), [(r[0], r[1], r[4]) for r in TABLE if r[4] is not None])
def test_a_looser_value_is_refused_by_name(field: str, wide: Any, loose: Any) -> None:
    with pytest.raises(ConstraintWeakened) as refused:
        resolve([Layer("project p", {field: wide}), Layer("task t", {field: loose})])
    error = refused.value
    assert (error.code, error.status) == ("constraint_weakened", 422)
    assert error.parts == {
        "field": field,
        "layer": "task t",
        "offered": loose,
        "allowed": wide,
        "allowed_layer": "project p",
    }
    assert field in str(error)
    assert "task t" in str(error)
    with pytest.raises(ConstraintWeakened):
        check(resolve([Layer("project p", {field: wide})]), Layer("task t", {field: loose}))


@pytest.mark.parametrize(("field", "wide", "loose"), [(r[0], r[1], r[4]) for r in TABLE if r[4] is not None])
def test_without_strictness_the_tighter_value_simply_wins(field: str, wide: Any, loose: Any) -> None:
    found = resolve([Layer("wide", {field: wide}), Layer("narrow", {field: loose})], strict=False).values[field]
    if FIELDS[field].fold is Fold.COVERED:
        assert all(scope.covered(entry, wide) for entry in found)
    elif FIELDS[field].fold is Fold.INTERSECTION:
        assert set(found) <= set(wide)
    else:
        assert found == wide


def test_a_narrower_layer_that_is_wider_keeps_what_both_allow() -> None:
    found = resolve([Layer("phase", {"write": ["src/a.py", "x"]}), Layer("task", {"write": ["src/**"]})], strict=False)
    assert found.values["write"] == ["src/a.py"]


def test_an_absent_field_inherits_and_none_is_absent() -> None:
    found = resolve([Layer("a", {"max_attempts": 3}), Layer("b", {}), Layer("c", {"max_attempts": None})])
    assert found.values == {"max_attempts": 3}
    assert found.layer_of == {"max_attempts": "a"}
    assert resolve([]).values == {}


def test_checking_changes_nothing_and_accepts_what_is_tighter() -> None:
    wider = resolve([Layer("a", {"forbidden": ["x"], "max_attempts": 3})])
    check(wider, Layer("b", {"forbidden": ["y"], "max_attempts": 2}))
    assert wider.values == {"forbidden": ["x"], "max_attempts": 3}


def test_the_explanation_names_the_layer_of_every_value_and_entry() -> None:
    told = resolve(
        [
            Layer("installation", {"forbidden": ["a"], "max_attempts": 3}),
            Layer("phase", {"forbidden": ["b"]}),
            Layer("task", {"forbidden": ["a"], "max_attempts": 2}),
        ]
    ).explain()
    assert told == {
        "forbidden": {
            "value": ["a", "b"],
            "layer": "phase",
            "fold": "union",
            "entries": {"a": "installation", "b": "phase"},
        },
        "max_attempts": {"value": 2, "layer": "task", "fold": "min"},
    }


def test_the_effective_scope_holds_only_the_lists_that_are_set() -> None:
    assert resolve([Layer("a", {"write": ["x"], "max_attempts": 1})]).scope() == {"write": ["x"]}


@pytest.mark.parametrize(
    "values",
    [
        {"nonsense": 1},
        {"max_attempts": 0},
        {"max_attempts": True},
        {"max_attempts": "3"},
        {"max_attempts": 2.0},
        {"max_lines_changed": -1},
        {"patch_only": 1},
        {"patch_only": "yes"},
        {"write": "src/**"},
        {"write": ["/etc/passwd"]},
        {"write": ["a", "a"]},
        {"write": ["a", 1]},
        {"write": [[]]},
        {"allowed_tools": [""]},
        {"test_command": " "},
        {"on_validation_failure": {"format": 1}},
        {"on_validation_failure": "drop"},
    ],
)
def test_an_unknown_field_or_a_wrong_type_is_an_invalid_field(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidField) as refused:
        resolve([Layer("phase", values)])
    assert refused.value.code == "invalid_field"
    assert refused.value.parts["field"].startswith(f"phase.{next(iter(values))}")


def test_a_grouped_document_becomes_flat() -> None:
    document = {
        "patch": {"max_lines_changed": 10, "patch_required": True},
        "tests": {"tests_must_pass": True, "test_command": "pytest"},
        "behavior": {"ascii_only": None},
    }
    assert flatten(document) == {
        "max_lines_changed": 10,
        "patch_required": True,
        "tests_must_pass": True,
        "test_command": "pytest",
    }
    assert flatten({"patch_only": True, "tests": {}}) == {"patch_only": True}
    assert flatten({}) == {}


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"foo": 1}, "constraints.foo"),
        ({"patch": {"foo": 1}}, "constraints.patch.foo"),
        ({"patch": {"ascii_only": True}}, "constraints.patch.ascii_only"),
        ({"patch": {"max_lines_changed": "x"}}, "constraints.patch.max_lines_changed"),
        ({"patch": []}, "constraints.patch"),
        ({"patch_only": True, "patch": {"patch_only": False}}, "constraints.patch.patch_only"),
        ([], "constraints"),
    ],
)
def test_an_unknown_key_of_a_document_is_refused_by_its_path(document: Any, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        flatten(document)
    assert refused.value.parts["field"] == field


def test_a_resource_scope_is_read_and_its_type_must_be_files() -> None:
    assert scope_values({"type": "files", "write": ["a"], "read": None}) == {"write": ["a"]}
    for document in ({"type": "tables"}, {"delete": []}, {"write": ["../a"]}, []):
        with pytest.raises(InvalidField):
            scope_values(document)  # type: ignore[arg-type]


ENTRIES = st.sampled_from(["a", "b", "a/**", "a/b", "a/b/**", "**", "*", "a/*"])
LISTS = st.lists(ENTRIES, unique=True, max_size=4)
BY_KIND = {
    constraints.Kind.GLOBS: LISTS,
    constraints.Kind.TEXTS: st.lists(st.sampled_from("abc"), unique=True),
    constraints.Kind.COUNT: st.integers(0, 5),
    constraints.Kind.POSITIVE: st.integers(1, 5),
    constraints.Kind.FLAG: st.booleans(),
    constraints.Kind.TEXT: st.sampled_from(["x", "y"]),
    constraints.Kind.LIMITS: st.dictionaries(ENTRIES, st.integers(0, 5), max_size=3),
    constraints.Kind.ROUTES: st.dictionaries(st.sampled_from(["format", "scope"]), st.sampled_from(["dropped"])),
}
LAYERS = st.lists(
    st.fixed_dictionaries({}, optional={name: BY_KIND[told.kind] for name, told in FIELDS.items()}), max_size=4
)
PATHS = ["a", "b", "c", "a/b", "a/c", "a/b/c", "a/b/c/d"]


def looser(name: str, value: Any, than: Any) -> bool:
    """Whether `value` allows something that `than` does not, judged apart from the code under test."""
    match FIELDS[name].fold:
        case Fold.COVERED:
            return any(scope.matches(path, value) and not scope.matches(path, than) for path in PATHS)
        case Fold.UNION:
            return not set(than) <= set(value)
        case Fold.INTERSECTION:
            return not set(value) <= set(than)
        case Fold.MIN:
            return bool(value > than)
        case Fold.MAX:
            return bool(value < than)
        case Fold.OR:
            return bool(than and not value)
        case Fold.AND:
            return bool(value and not than)
        case Fold.MIN_EACH:
            return any(value.get(glob, most + 1) > most for glob, most in than.items())
        case Fold.FIXED:
            return False


@given(LAYERS, st.booleans())
def test_the_effective_value_is_never_looser_than_any_layer(values: list[dict[str, Any]], strict: bool) -> None:
    layers = [Layer(f"layer {at}", told) for at, told in enumerate(values)]
    try:
        found = resolve(layers, strict=strict)
    except ConstraintWeakened:
        assert strict
        return
    for told in values:
        for name, value in told.items():
            assert not looser(name, found.values[name], than=value), name
    assert set(found.layer_of) == set(found.values)


@given(LAYERS)
def test_what_resolves_strictly_resolves_the_same_without(values: list[dict[str, Any]]) -> None:
    layers = [Layer(f"layer {at}", told) for at, told in enumerate(values)]
    try:
        strictly = resolve(layers)
    except ConstraintWeakened:
        return
    assert strictly == resolve(layers, strict=False)
