"""Judges what a patch changes against a scope and against effective constraints: facts in, findings out."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, Protocol

from ledger import protected
from ledger.diff import LINK_MODE, PLAIN_MODES, Diff
from pipeline.refusals import InvalidField
from pipeline.scope import check_path, matches

Severity = Literal["error", "review", "note"]

BUILT_IN_LAYER = "built-in"

# The values of domain.md §2.3.3 for what no layer sets. What layers say of `protected_paths` is added to those of
# `ledger.protected`, which hold everywhere: a project that protects one more folder does not mean to open its gates.
BUILT_IN: Mapping[str, Any] = {
    "allowed_formats": ["unified_diff"],
    "patch_required": True,
    "forbid_binary_patches": True,
    "forbid_touching_paths": [],
    "protected_paths": [],
    "require_tests_for_paths": [],
    "require_issue_ref": False,
    "ascii_only": False,
    "forbid_secrets": True,
    "forbid_symlinks": True,
    "forbid_new_dependencies": False,
    "forbid_generated_files": False,
    "generated_paths": [
        *("**/node_modules/**", "**/__pycache__/**", "**/dist/**", "**/*.min.js", "**/*.min.css", "**/*.map"),
        *("**/*_pb2.py", "**/*_pb2_grpc.py", "**/*.pb.go", "**/*.pyc", "**/*.snap"),
    ],
    "max_lines_by_path": {},
    "min_reviewers": 0,
    "oscillation_window": 5,
    "oscillation_threshold": 3,
    "max_apply_attempts": 3,
}


class Effective(Protocol):
    """What `pipeline.constraints.resolve` returns: the values that hold, and the layer that set each."""

    @property
    def values(self) -> Mapping[str, Any]:
        """Field name → effective value; a field that no layer sets is absent."""

    @property
    def layer_of(self) -> Mapping[str, str]:
        """Field name → name of the layer that set it."""


class Change(Protocol):
    """One path that differs between two trees, such as `ledger.git.TreeChange`."""

    @property
    def path(self) -> str:
        """Relative to the root of the tree."""

    @property
    def kind(self) -> str:
        """`add`, `change` or `delete`."""

    @property
    def old_mode(self) -> str:
        """Six octal digits, "" for an added path."""

    @property
    def new_mode(self) -> str:
        """Six octal digits, "" for a deleted path."""


@dataclass(frozen=True)
class Facts:
    """What a patch does, as far as rules ask. `format` is "" for an edit that came without a patch."""

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()
    insertions: int = 0
    deletions: int = 0
    binary_files: tuple[str, ...] = ()
    non_ascii_files: tuple[str, ...] = ()
    format: str = "unified_diff"
    issue_ref: str = ""
    lines_by_path: Mapping[str, int] = field(default_factory=dict)
    secrets: tuple[tuple[str, int, str], ...] = ()  # path, line, kind; never the secret
    new_dependencies: tuple[tuple[str, str], ...] = ()  # path of the manifest, name
    generated_files: tuple[str, ...] = ()  # those that say so themselves
    unreadable: tuple[str, ...] = ()  # manifests of which nobody can tell what they depend on
    links: tuple[str, ...] = ()  # symbolic links that it makes, or leads elsewhere
    undoes: bool = False  # takes back what has landed: bounds on how much may change are not for it

    @classmethod
    def of(cls, diff: Diff, *, issue_ref: str = "", undoes: bool = False) -> "Facts":
        """The facts of a diff that `check_tree` found to be the difference of its trees."""
        by_kind: dict[str, list[str]] = {"add": [], "change": [], "delete": []}
        for file in diff.files:
            by_kind[file.kind].append(file.path)
        return cls(
            added=tuple(by_kind["add"]),
            changed=tuple(by_kind["change"]),
            deleted=tuple(by_kind["delete"]),
            insertions=diff.insertions,
            deletions=diff.deletions,
            binary_files=tuple(file.path for file in diff.files if file.binary),
            non_ascii_files=tuple(file.path for file in diff.files if not file.ascii),
            issue_ref=issue_ref,
            lines_by_path={file.path: file.insertions + file.deletions for file in diff.files},
            links=tuple(file.path for file in diff.files if file.new_mode == LINK_MODE),
            undoes=undoes,
        )

    def document(self) -> dict[str, Any]:
        """The facts as plain JSON, for `Patch.facts`: what a policy is replayed on."""
        return asdict(self)

    @classmethod
    def read(cls, document: Mapping[str, Any]) -> "Facts":
        """The facts of such a document. Fields that it does not know, since it is older, are empty."""
        known = {one.name: document[one.name] for one in fields(cls) if one.name in document}
        for name, value in known.items():
            if isinstance(value, list):
                known[name] = tuple(tuple(entry) if isinstance(entry, list) else entry for entry in value)
        return cls(**known)

    @property
    def paths(self) -> tuple[str, ...]:
        """Every touched path, sorted."""
        return tuple(sorted({*self.added, *self.changed, *self.deleted}))

    @property
    def lines(self) -> int:
        """Changed lines: insertions plus deletions."""
        return self.insertions + self.deletions


@dataclass(frozen=True)
class Finding:
    """One rule that a patch does not meet. `value` is what was found, `threshold` what the rule asks, as plain JSON.

    `error` makes the patch invalid; `review` asks one more person to look and fails nothing; `note` is only said.
    """

    rule: str
    layer: str
    path: str | None
    value: Any
    threshold: Any
    message: str
    severity: Severity = "error"

    def document(self) -> dict[str, Any]:
        """The finding as a JSON object with the field names as keys, for `Patch.findings` and `validation_errors`."""
        return asdict(self)


def takes_links(effective: Effective) -> bool:
    """Whether a patch may hold symbolic links that stay inside the tree. Where no layer says so, it may not."""
    return not effective.values.get("forbid_symlinks", BUILT_IN["forbid_symlinks"])


def check_tree(diff: Diff, tree: Iterable[Change]) -> list[Finding]:
    """Where the difference of the trees is not what the diff's text says; empty when they agree in path, kind and mode.

    The tree is the truth (reliability.md, fact 4): one finding, rule `tree_matches_text`, for each path that differs.
    A mode that the text does not say is not compared, but must be that of a plain file.
    """
    said = {file.path: file for file in diff.files}
    done = {change.path: change for change in tree}
    findings = []
    for path in sorted(said.keys() | done.keys()):
        file, change = said.get(path), done.get(path)
        value = None if change is None else [change.kind, change.old_mode, change.new_mode]
        threshold = None if file is None else [file.kind, file.old_mode, file.new_mode]
        if file is not None and change is not None:
            modes = ((change.old_mode, file.old_mode), (change.new_mode, file.new_mode))
            same = all(mode == text or (not text and mode in PLAIN_MODES) for mode, text in modes)
            if change.kind == file.kind and same:
                continue
        message = f"{path}: the diff says {_words(threshold)}, the tree says {_words(value)}"
        findings.append(Finding("tree_matches_text", BUILT_IN_LAYER, path, value, threshold, message))
    return findings


def check_scope(facts: Facts, scope: Mapping[str, Any], *, layer: str = "scope") -> list[Finding]:
    """What `facts` touch outside `scope` (`write`, `create`, `forbidden` globs); empty when all of it is inside.

    A new file needs `create` or `write` to cover it, a changed or deleted one `write`; `forbidden` wins over both.
    Without `write` and `create` (both absent or None) everything not forbidden is inside; with one of them the other
    counts as empty. Rules: `scope_forbidden`, `scope_create`, `scope_write`; a path that no glob can mean is
    `scope_path`. `layer` names whose scope it is.
    """
    write, create, forbidden = scope.get("write"), scope.get("create"), list(scope.get("forbidden") or ())
    limited = write is not None or create is not None
    writable = list(write or ())
    creatable = [*(create or ()), *writable]
    findings = []
    for path in facts.paths:
        new = path in facts.added
        if not is_path(path):
            message = f"{path!r} is not a path that a scope can name"
            findings.append(Finding("scope_path", layer, path, path, None, message))
        elif matches(path, forbidden):
            message = f"{path} is forbidden by {layer}"
            findings.append(Finding("scope_forbidden", layer, path, path, forbidden, message))
        elif limited and not matches(path, creatable if new else writable):
            rule, verb, allowed = (
                ("scope_create", "created", creatable) if new else ("scope_write", "written", writable)
            )
            message = f"{path} may not be {verb}: it is outside the scope of {layer}"
            findings.append(Finding(rule, layer, path, path, allowed, message))
    return findings


def check_constraints(facts: Facts, effective: Effective) -> list[Finding]:
    """The constraints of domain.md §2.3.3 (and `ascii_only`) that `facts` break; empty when they meet all of them.

    Each finding's `rule` is the constraint's name and its `layer` the one that set it (`built-in` for a default).
    Constraints about tests, reviewers and oscillation are not decided here: no diff can answer them.

    What undoes a landed patch puts back what was on the branch before, so how much that is, and whether it is binary,
    is not held against it; a bound of 0, which says that nothing may change, is.
    """
    found = _Findings(effective)
    bounded = not facts.undoes
    formats = found.value("allowed_formats")
    if facts.format and facts.format not in formats:
        found.add("allowed_formats", None, facts.format, f"Format {facts.format} is not one of {', '.join(formats)}")
    for rule in ("patch_required", "patch_only"):
        if found.value(rule) and (not facts.format or not facts.paths):
            found.add(rule, None, facts.format or None, "The change must come as a patch")
    most = found.value("max_lines_changed")
    if most is not None and ((bounded and facts.lines > most) or (not most and facts.paths)):
        found.add("max_lines_changed", None, facts.lines, f"{facts.lines} lines changed; at most {most} are allowed")
    most = found.value("max_files_changed")
    if most is not None and len(facts.paths) > most and (bounded or not most):
        count = len(facts.paths)
        found.add("max_files_changed", None, count, f"{count} files changed; at most {most} are allowed")
    if bounded and found.value("forbid_binary_patches"):
        for path in facts.binary_files:
            found.add("forbid_binary_patches", path, path, f"{path} is binary")
    for path in facts.paths:
        if is_path(path) and matches(path, found.value("forbid_touching_paths") or ()):
            found.add("forbid_touching_paths", path, path, f"{path} must not be touched")
    if found.value("require_issue_ref") and not facts.issue_ref.strip():
        found.add("require_issue_ref", None, facts.issue_ref, "The patch must name an issue")
    if found.value("ascii_only"):
        for path in facts.non_ascii_files:
            found.add("ascii_only", path, path, f"{path} would get text that is not ASCII")
    for path, lines in sorted(facts.lines_by_path.items()):
        for glob, most in found.value("max_lines_by_path").items():
            if is_path(path) and lines > most and (bounded or not most) and matches(path, [glob]):
                found.add("max_lines_by_path", path, lines, f"{path}: {lines} lines changed; {glob} may change {most}")
    if found.value("forbid_secrets"):
        for path, line, kind in facts.secrets:
            found.add("forbid_secrets", path, line, f"{path}, line {line}, holds what looks like a secret: {kind}")
    if found.value("forbid_symlinks"):
        for path in facts.links:
            found.add("forbid_symlinks", path, path, f"{path} is a symbolic link")
    if found.value("forbid_new_dependencies"):
        for path, name in facts.new_dependencies:
            found.add("forbid_new_dependencies", path, name, f"{path} would depend on {name}")
        for path in facts.unreadable:
            found.add("forbid_new_dependencies", path, None, f"{path} cannot be read, so nobody knows what it needs")
    if found.value("forbid_generated_files"):
        for path in _generated(facts, effective):
            found.add("forbid_generated_files", path, path, f"{path} is generated: change what it is made from")
    return found.findings


def check_for_review(facts: Facts, effective: Effective) -> list[Finding]:
    """What a person should look at although no constraint forbids it: severity `review` for protected paths and new
    dependencies (one review more, however many of them), `note` for generated files.
    """
    found = _Findings(effective)
    found.findings += check_protected(facts, effective)
    if not found.value("forbid_new_dependencies"):
        for path, name in facts.new_dependencies:
            found.add("new_dependencies", path, name, f"{path} would depend on {name}", "review")
        for path in facts.unreadable:
            message = f"{path} cannot be read, so nobody knows what it needs"
            found.add("new_dependencies", path, None, message, "review")
    if not found.value("forbid_generated_files"):
        for path in _generated(facts, effective):
            found.add("generated_files", path, path, f"{path} is generated", "note")
    return found.findings


def _generated(facts: Facts, effective: Effective) -> list[str]:
    globs = [*BUILT_IN["generated_paths"], *(effective.values.get("generated_paths") or ())]
    return [path for path in facts.paths if path in facts.generated_files or (is_path(path) and matches(path, globs))]


def check_protected(facts: Facts, effective: Effective) -> list[Finding]:
    """The touched paths that are protected, each with severity `review`: it needs one review more.

    Protected are the built-in paths by their kind (`ledger.protected`), and those that layers add.
    """
    added = effective.values.get("protected_paths") or ()
    findings = []
    for path in facts.paths:
        if not is_path(path):
            continue
        if matches(path, added):
            layer, globs = effective.layer_of.get("protected_paths", BUILT_IN_LAYER), list(added)
            why = f"by {layer}"
        elif found := protected.kind_of(path):
            layer, globs = BUILT_IN_LAYER, [found[1]]
            why = found[0]
        else:
            continue
        message = f"{path} is protected ({why}): it needs one review more"
        findings.append(Finding("protected_paths", layer, path, path, globs, message, "review"))
    return findings


class _Findings:
    """Collects findings, and knows for each rule what holds and who said so."""

    def __init__(self, effective: Effective) -> None:
        self.effective = effective
        self.findings: list[Finding] = []

    def value(self, rule: str) -> Any:
        """The effective value of a constraint, else the built-in one, else None."""
        return self.effective.values.get(rule, BUILT_IN.get(rule))

    def add(self, rule: str, path: str | None, value: Any, message: str, severity: Severity = "error") -> None:
        layer = self.effective.layer_of.get(rule, BUILT_IN_LAYER)
        self.findings.append(Finding(rule, layer, path, value, self.value(rule), message, severity))


def is_path(path: str) -> bool:
    """Whether a glob can mean `path`; a name that none can is never matched."""
    try:
        check_path(path)
    except InvalidField:
        return False
    return True


def _words(facts: list[str] | None) -> str:
    return "nothing" if facts is None else " ".join(part for part in facts if part)
