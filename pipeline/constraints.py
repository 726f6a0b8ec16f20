"""The tighten-only resolver: folds layers of constraints from wide to narrow, and refuses what relaxes a wider one."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any

from pipeline import scope
from pipeline.refusals import InvalidField, Refused


class Fold(Enum):
    """How a narrower value and a wider one become the effective one (the table of domain.md §1.9)."""

    COVERED = "every entry covered by the wider layer"
    UNION = "union"
    INTERSECTION = "intersection"
    MIN = "min"
    MAX = "max"
    OR = "or"
    AND = "and"
    MIN_EACH = "the lesser limit of every glob"
    FIXED = "the widest layer that sets it decides"


class Kind(Enum):
    """What a value of a field is; the text ends the sentence "must be …"."""

    GLOBS = "a list of unique path globs"
    TEXTS = "a list of unique texts"
    COUNT = "a whole number of at least 0"
    POSITIVE = "a whole number of at least 1"
    FLAG = "true or false"
    TEXT = "text"
    ROUTES = "an object with format, scope or constraints, each apply_failed, quarantined or dropped"
    LIMITS = "an object of path globs with whole numbers of at least 0"


@dataclass(frozen=True)
class Field:
    """One constraint: how it folds, what its value is, and its group in a phase's document (None: in none)."""

    fold: Fold
    kind: Kind
    group: str | None = None


FAILURES = ("format", "scope", "constraints")
"""What of a patch may fail, in this order: the keys of `on_validation_failure`."""
ROUTES = ("apply_failed", "quarantined", "dropped")
"""Where a patch that failed may go: its values."""

SCOPE_FIELDS = ("read", "write", "create", "forbidden")

# The fold table of domain.md §1.9, and below it the keys of a phase's or policy's document (§2.1.2, §2.3.3) for which
# that table has no line: each folds so that a narrower layer can only ask for more.
FIELDS: Mapping[str, Field] = {
    "read": Field(Fold.COVERED, Kind.GLOBS),
    "write": Field(Fold.COVERED, Kind.GLOBS),
    "create": Field(Fold.COVERED, Kind.GLOBS),
    "forbidden": Field(Fold.UNION, Kind.GLOBS),
    "max_lines_changed": Field(Fold.MIN, Kind.COUNT, "patch"),
    "max_files_changed": Field(Fold.MIN, Kind.COUNT, "patch"),
    "patch_only": Field(Fold.OR, Kind.FLAG, "patch"),
    "tests_must_run": Field(Fold.OR, Kind.FLAG, "tests"),
    "tests_must_pass": Field(Fold.OR, Kind.FLAG, "tests"),
    "ascii_only": Field(Fold.OR, Kind.FLAG, "behavior"),
    "require_doc_update": Field(Fold.OR, Kind.FLAG, "behavior"),
    "require_issue_ref": Field(Fold.OR, Kind.FLAG, "patch"),
    "forbid_binary_patches": Field(Fold.OR, Kind.FLAG, "patch"),
    "allowed_tools": Field(Fold.INTERSECTION, Kind.TEXTS),
    "allowed_formats": Field(Fold.INTERSECTION, Kind.TEXTS, "patch"),
    "disallowed_tools": Field(Fold.UNION, Kind.TEXTS),
    "forbid_touching_paths": Field(Fold.UNION, Kind.GLOBS, "patch"),
    "require_tests_for_paths": Field(Fold.UNION, Kind.GLOBS, "patch"),
    "protected_paths": Field(Fold.UNION, Kind.GLOBS, "patch"),
    "max_lines_by_path": Field(Fold.MIN_EACH, Kind.LIMITS, "patch"),
    "forbid_secrets": Field(Fold.OR, Kind.FLAG, "patch"),
    "forbid_symlinks": Field(Fold.OR, Kind.FLAG, "patch"),
    "forbid_new_dependencies": Field(Fold.OR, Kind.FLAG, "patch"),
    "forbid_generated_files": Field(Fold.OR, Kind.FLAG, "patch"),
    "generated_paths": Field(Fold.UNION, Kind.GLOBS, "patch"),
    "timeout_seconds": Field(Fold.MIN, Kind.POSITIVE),
    "max_attempts": Field(Fold.MIN, Kind.POSITIVE),
    "max_parallel": Field(Fold.MIN, Kind.POSITIVE),
    "min_reviewers": Field(Fold.MAX, Kind.COUNT, "patch"),
    "oscillation_window": Field(Fold.MAX, Kind.POSITIVE, "patch"),
    "oscillation_threshold": Field(Fold.MIN, Kind.POSITIVE, "patch"),
    "sandbox_level_min": Field(Fold.MAX, Kind.COUNT),
    "patch_required": Field(Fold.OR, Kind.FLAG, "patch"),
    "max_apply_attempts": Field(Fold.MIN, Kind.POSITIVE, "patch"),
    "on_validation_failure": Field(Fold.FIXED, Kind.ROUTES, "patch"),
    # Another command may test less, and no syntax can tell.
    "test_command": Field(Fold.FIXED, Kind.TEXT, "tests"),
    "skip_allowed": Field(Fold.AND, Kind.FLAG, "tests"),
    "allowed_skip_reasons": Field(Fold.INTERSECTION, Kind.TEXTS, "tests"),
    "max_attempts_per_run": Field(Fold.MIN, Kind.POSITIVE, "behavior"),
}
GROUPS = ("patch", "tests", "behavior")


class ConstraintWeakened(Refused):
    """A narrower layer offers more than a wider one allows; `parts`: field, layer, offered, allowed, allowed_layer."""

    code = "constraint_weakened"
    status = 422

    def __init__(self, field: str, layer: str, offered: Any, allowed: Any, allowed_layer: str) -> None:
        super().__init__(
            f"{field}: {layer} offers {_words(offered)}, but {allowed_layer} allows {_words(allowed)}",
            field=field,
            layer=layer,
            offered=offered,
            allowed=allowed,
            allowed_layer=allowed_layer,
        )


@dataclass(frozen=True)
class Layer:
    """The constraints of one level, by flat field name; `name` is what people read, such as `phase build`."""

    name: str
    values: Mapping[str, Any]


@dataclass(frozen=True)
class Effective:
    """What holds after folding: `values` and the layer that set each; for a list also the layer of each entry."""

    values: dict[str, Any]
    layer_of: dict[str, str]
    entry_layer_of: dict[str, dict[str, str]]

    def explain(self) -> dict[str, dict[str, Any]]:
        """For every field that a layer set, in the order of FIELDS: `value`, `layer`, `fold` and, for lists, `entries`.

        The document is plain JSON. `layer` of a union is the last one that added to it; `entries` says who added what.
        """
        told: dict[str, dict[str, Any]] = {}
        for name in FIELDS:
            if name in self.values:
                told[name] = {
                    "value": self.values[name],
                    "layer": self.layer_of[name],
                    "fold": FIELDS[name].fold.name.lower(),
                }
                if name in self.entry_layer_of:
                    told[name]["entries"] = dict(self.entry_layer_of[name])
        return told

    def scope(self) -> dict[str, list[str]]:
        """The four path lists that are set: read, write, create, forbidden. An absent one restricts nothing."""
        return {name: list(self.values[name]) for name in SCOPE_FIELDS if name in self.values}


def checked(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """A copy of flat `values` in the order of FIELDS, without those that are None (absent: they inherit).

    Raises InvalidField for an unknown field, and for a value of the wrong type or range. `where` is put before the
    field's name in the refusal.
    """
    prefix = f"{where}." if where else ""
    for name in values:
        if name not in FIELDS:
            raise InvalidField(f"{prefix}{name}", "unknown constraint")
    return {name: _typed(f"{prefix}{name}", FIELDS[name].kind, values[name]) for name in FIELDS if _set(values, name)}


def _set(values: Mapping[str, Any], name: str) -> bool:
    return values.get(name) is not None


def _typed(field: str, kind: Kind, value: Any) -> Any:
    fits: bool
    match kind:
        case Kind.FLAG:
            fits = isinstance(value, bool)
        case Kind.COUNT | Kind.POSITIVE:
            # bool is an int in Python, and `true` is no limit.
            fits = isinstance(value, int) and not isinstance(value, bool) and value >= (kind is Kind.POSITIVE)
        case Kind.TEXT:
            fits = isinstance(value, str) and bool(value.strip())
        case Kind.ROUTES:
            fits = isinstance(value, Mapping) and all(isinstance(x, str) for pair in value.items() for x in pair)
        case Kind.LIMITS:
            fits = isinstance(value, Mapping) and all(
                isinstance(glob, str) and isinstance(most, int) and not isinstance(most, bool) and most >= 0
                for glob, most in value.items()
            )
        case Kind.TEXTS | Kind.GLOBS:
            fits = isinstance(value, list | tuple) and all(isinstance(entry, str) and entry for entry in value)
            fits = fits and len(set(value)) == len(value)
    if not fits:
        raise InvalidField(field, f"must be {kind.value}, not {_words(value)}")
    if kind is Kind.GLOBS:
        return [scope.check_glob(glob, field) for glob in value]
    if kind is Kind.TEXTS:
        return list(value)
    if kind is Kind.LIMITS:
        return {scope.check_glob(glob, field): most for glob, most in value.items()}
    return dict(value) if kind is Kind.ROUTES else value


def flatten(document: Mapping[str, Any], where: str = "constraints") -> dict[str, Any]:
    """The flat values of a grouped document `{patch: {…}, tests: {…}, behavior: {…}}` (domain.md §2.1.2), checked.

    A field that stands flat beside the groups is taken too, as profiles and policies write it. Raises InvalidField
    for an unknown group or key (`constraints.patch.foo`), a key in the wrong group, a field given twice, a wrong type.
    """
    if not isinstance(document, Mapping):
        raise InvalidField(where, "must be an object")
    flat: dict[str, Any] = {}
    for key, value in document.items():
        if key not in GROUPS:
            flat |= checked({key: value}, where)
            continue
        if not isinstance(value, Mapping):
            raise InvalidField(f"{where}.{key}", "must be an object")
        for name, inner in value.items():
            if name not in FIELDS or FIELDS[name].group != key:
                raise InvalidField(f"{where}.{key}.{name}", "unknown constraint")
            if name in flat or name in document:
                raise InvalidField(f"{where}.{key}.{name}", "given twice")
            flat |= checked({name: inner}, f"{where}.{key}")
    return flat


def check_words(values: Mapping[str, Any], where: str = "constraints") -> None:
    """Raises InvalidField for words in `values` (flat and typed) that nobody reads.

    For whoever saves them: what was saved before they were checked is still read, and such a word has no effect.
    """
    for failure, route in (values.get("on_validation_failure") or {}).items():
        field = f"{where}.on_validation_failure.{failure}"
        if failure not in FAILURES:
            raise InvalidField(field, f"unknown; known are {', '.join(FAILURES)}")
        if route not in ROUTES:
            raise InvalidField(field, f"must be one of {', '.join(ROUTES)}, not {route}")


def scope_values(document: Mapping[str, Any], where: str = "resource_scope") -> dict[str, Any]:
    """The flat values of a resource scope `{type: "files", read, write, create, forbidden}`, checked.

    Raises InvalidField for a type other than `files`, an unknown key, and a malformed glob.
    """
    if not isinstance(document, Mapping):
        raise InvalidField(where, "must be an object")
    if document.get("type", "files") != "files":
        raise InvalidField(f"{where}.type", f"must be 'files', not {document['type']!r}")
    for key in document:
        if key not in ("type", *SCOPE_FIELDS):
            raise InvalidField(f"{where}.{key}", "unknown key; known are type, read, write, create, forbidden")
    return checked({key: value for key, value in document.items() if key != "type"}, where)


def resolve(layers: Iterable[Layer], *, strict: bool = True) -> Effective:
    """The effective constraints of `layers`, which come in order from wide to narrow; no layers give no constraints.

    Raises ConstraintWeakened at the first value that is looser than what the wider layers allow, InvalidField for an
    unknown field or a wrong type. With strict=False the tighter value simply wins: for work under way when a wider
    layer was tightened after a narrower one had been saved.
    """
    effective = Effective({}, {}, {})
    for layer in layers:
        effective = _folded(effective, layer, strict)
    return effective


def check(wider: Effective, layer: Layer) -> None:
    """Nothing, when `layer` may be saved below `wider`; raises what resolve() raises (at save time, domain.md §1.9)."""
    _folded(wider, layer, strict=True)


def _folded(wider: Effective, layer: Layer, strict: bool) -> Effective:
    values, layer_of = dict(wider.values), dict(wider.layer_of)
    entries = {name: dict(of) for name, of in wider.entry_layer_of.items()}
    for name, offered in checked(layer.values, layer.name).items():
        if name not in values:
            value = offered
        else:
            allowed = values[name]
            value, weaker = _FOLDS[FIELDS[name].fold](allowed, offered)
            if weaker and strict:
                raise ConstraintWeakened(name, layer.name, offered, allowed, layer_of[name])
        if name not in values or value != values[name]:
            layer_of[name] = layer.name
        values[name] = value
        if isinstance(value, list):
            known = entries.get(name, {})
            entries[name] = {entry: known.get(entry, layer.name) for entry in value}
    return Effective(values, layer_of, entries)


def _covered(allowed: list[str], offered: list[str]) -> tuple[list[str], bool]:
    kept = [entry for entry in offered if scope.covered(entry, allowed)]
    if len(kept) == len(offered):
        return kept, False
    # The narrower layer asked for more than it may have: it keeps what is allowed anyway and lies in what it asked for.
    inside = [entry for entry in allowed if scope.covered(entry, offered) and entry not in kept]
    return kept + inside, True


def _union(allowed: list[str], offered: list[str]) -> tuple[list[str], bool]:
    return allowed + [entry for entry in offered if entry not in allowed], False


def _intersection(allowed: list[str], offered: list[str]) -> tuple[list[str], bool]:
    kept = [entry for entry in allowed if entry in offered]
    return kept, len(kept) < len(offered)


def _min_each(allowed: dict[str, int], offered: dict[str, int]) -> tuple[dict[str, int], bool]:
    weaker = any(glob in allowed and most > allowed[glob] for glob, most in offered.items())
    return {**allowed, **{glob: min(most, allowed.get(glob, most)) for glob, most in offered.items()}}, weaker


# Each answers with the effective value and whether the offered one is looser than the allowed one.
_FOLDS: Mapping[Fold, Callable[[Any, Any], tuple[Any, bool]]] = {
    Fold.COVERED: _covered,
    Fold.UNION: _union,
    Fold.INTERSECTION: _intersection,
    Fold.MIN: lambda allowed, offered: (min(allowed, offered), offered > allowed),
    Fold.MAX: lambda allowed, offered: (max(allowed, offered), offered < allowed),
    Fold.OR: lambda allowed, offered: (allowed or offered, allowed and not offered),
    Fold.AND: lambda allowed, offered: (allowed and offered, offered and not allowed),
    Fold.MIN_EACH: _min_each,
    Fold.FIXED: lambda allowed, offered: (allowed, offered != allowed),
}


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(str(entry) for entry in value) + "]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {entry}" for key, entry in value.items()) + "}"
    return str(value)
