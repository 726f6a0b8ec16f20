"""What the text of a patch holds that its counts do not tell: secrets, new dependencies, generated files. Pure."""

import json
import re
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ledger import leaks
from ledger.diff import Diff
from ledger.policy import Facts

MOST_SECRETS = 100

# Go's convention (golang.org/s/generatedcode), and the mark that Meta's tools and Phabricator use.
_GENERATED = re.compile(r"Code generated .{0,200}DO NOT EDIT|@generated\b")
GENERATED_HEAD_LINES = 40

MOST_MANIFEST_BYTES = 1 << 20
_REQUIREMENTS = re.compile(r"(?:.*/)?(?:requirements[^/]*\.(?:txt|in)|requirements/[^/]*\.(?:txt|in))\Z")
_NAME = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(?:\[[^\]]*\])?\s*(.*)\Z", re.DOTALL)
_HUNK = re.compile(r"@@ -\d+(?:,(\d+))? \+(\d+)(?:,(\d+))? @@")
# Where a dependency comes from when not from the ecosystem's registry.
_SOURCES = ("git", "url", "path", "file", "registry", "hg", "svn")

Reader = Callable[[str, str], bytes | None]
"""(side, path) → the file's bytes, None when it is not there; side is `old` or `new`."""


class Unreadable(ValueError):
    """A manifest is not what its name says, so nobody can tell what it depends on."""


@dataclass(frozen=True)
class Line:
    """One line of a hunk that stands in the new file: its path, its number there, its text, whether it is added."""

    path: str
    number: int
    text: str
    is_added: bool


def look(diff: Diff, text: str, read: Reader | None, *, issue_ref: str = "", undoes: bool = False) -> Facts:
    """The facts of `diff`, whose text is `text`, with what its contents tell. `read` gives whole manifests.

    Without `read` (nobody has the trees), and for a manifest that cannot be read, its path is in `unreadable`.
    `undoes`: it takes back what has landed.
    """
    facts = Facts.of(diff, issue_ref=issue_ref, undoes=undoes)
    secrets: list[tuple[str, int, str]] = []
    generated: list[str] = []
    for line in new_lines(diff, text):
        if line.is_added and len(secrets) < MOST_SECRETS:
            secrets += [(line.path, line.number, kind) for kind in leaks.kinds(line.text)]
        if line.number <= GENERATED_HEAD_LINES and line.path not in generated and _GENERATED.search(line.text):
            generated.append(line.path)
    added: list[tuple[str, str]] = []
    unreadable: list[str] = []
    for path in (*facts.added, *facts.changed):
        if not is_manifest(path):
            continue
        try:
            added += [(path, name) for name in sorted(_new_dependencies(path, read))]
        except Unreadable:
            unreadable.append(path)
    return replace(
        facts,
        secrets=tuple(secrets[:MOST_SECRETS]),
        generated_files=tuple(generated),
        new_dependencies=tuple(added),
        unreadable=tuple(unreadable),
    )


def new_lines(diff: Diff, text: str) -> Iterator[Line]:
    """The lines of the new files that `text` shows, in its order. `diff` is what `ledger.diff.parse` made of `text`.

    Hunks are counted, so that no line of a file is taken for a header.
    """
    at, number, old_left, new_left = -1, 0, 0, 0
    for line in text.split("\n"):
        if old_left or new_left:
            sign = line[:1]
            if sign == "\\":
                continue
            old_left -= sign in " -" or not sign
            new_left -= sign in " +" or not sign
            if sign != "-":
                yield Line(diff.files[at].path, number, line[1:], sign == "+")
                number += 1
        elif line.startswith("diff --git "):
            at += 1
        elif found := _HUNK.match(line):
            old_left, new_left = (1 if count is None else int(count) for count in (found[1], found[3]))
            number = int(found[2])


# -- dependencies ------------------------------------------------------------------------------------------------------


def is_manifest(path: str) -> bool:
    """Whether `dependencies` reads files of this name."""
    name = path.rsplit("/", 1)[-1]
    return name in _READERS or _REQUIREMENTS.match(path) is not None


def dependencies(path: str, text: str) -> set[str]:
    """What the manifest at `path` depends on directly, by name; `name from source` when not from a registry.

    Read are requirements files, pyproject.toml (PEP 621, 735 and Poetry), package.json, go.mod and Cargo.toml.
    Raises Unreadable for text that is not of its format.
    """
    reader = _READERS.get(path.rsplit("/", 1)[-1], _of_requirements)
    try:
        return set(reader(text))
    except (ValueError, TypeError, AttributeError, RecursionError) as problem:
        raise Unreadable(f"{path}: {problem}") from problem


def _new_dependencies(path: str, read: Reader | None) -> set[str]:
    if read is None:
        raise Unreadable(path)
    texts = []
    for side in ("old", "new"):
        raw = read(side, path)
        if raw is not None and len(raw) > MOST_MANIFEST_BYTES:
            raise Unreadable(path)
        try:
            texts.append("" if raw is None else raw.decode("utf-8-sig"))
        except UnicodeDecodeError as problem:
            raise Unreadable(path) from problem
    try:
        before = dependencies(path, texts[0]) if texts[0].strip() else set()
    except Unreadable:
        before = set()  # what was broken before named nothing
    return dependencies(path, texts[1]) - before if texts[1].strip() else set()


def _of_requirements(text: str) -> Iterator[str]:
    """pip's requirements file format: one requirement a line, `\\` goes on, options begin with `-`."""
    for line in text.replace("\\\n", " ").splitlines():
        line = re.split(r"(?:^|\s)#", line, maxsplit=1)[0].strip()
        if not line:
            continue
        if line.startswith(("-e ", "--editable ", "--editable=")):
            yield f"editable from {re.split(r'[ =]', line, maxsplit=1)[1].strip()}"
        elif line.startswith(("-r", "--requirement", "-c", "--constraint")):
            continue
        elif line.startswith("-"):
            # Another index or another place to find packages is a dependency on whoever runs it.
            if line.startswith(("-i", "-f", "--index-url", "--extra-index-url", "--find-links", "--trusted-host")):
                yield line
        else:
            yield _python(line)


def _python(requirement: str) -> str:
    """The normalised name (PEP 503) of one requirement (PEP 508); with its address when it has one."""
    requirement = requirement.split(";", 1)[0].strip()
    found = _NAME.match(requirement)
    if found is None or (found[2] and found[2][0] not in "<>=!~@("):
        return f"package from {requirement}"
    name = re.sub(r"[-_.]+", "-", found[1]).lower()
    return f"{name} from {found[2][1:].strip()}" if found[2].startswith("@") else name


def _of_pyproject(text: str) -> Iterator[str]:
    document = tomllib.loads(text)
    project = document.get("project", {})
    lists = [document.get("build-system", {}).get("requires", []), project.get("dependencies", [])]
    lists += list(project.get("optional-dependencies", {}).values())
    lists += list(document.get("dependency-groups", {}).values())
    for requirement in (one for group in lists for one in group if isinstance(one, str)):
        yield _python(requirement)
    poetry = document.get("tool", {}).get("poetry", {})
    tables = [poetry.get("dependencies", {}), poetry.get("dev-dependencies", {})]
    tables += [group.get("dependencies", {}) for group in poetry.get("group", {}).values()]
    for name, told in (pair for table in tables for pair in table.items()):
        if name.lower() != "python":
            yield _sourced(re.sub(r"[-_.]+", "-", name).lower(), told)


def _of_package_json(text: str) -> Iterator[str]:
    document = json.loads(text)
    for table in ("dependencies", "devDependencies", "peerDependencies", "optionalDependencies"):
        for name, version in (document.get(table) or {}).items():
            # npm's package.json: a version range is plain; an address, a folder or owner/name is another source.
            foreign = isinstance(version, str) and ("/" in version or version.startswith(("file:", "link:", "npm:")))
            yield f"{name} from {version}" if foreign else name


def _of_cargo(text: str) -> Iterator[str]:
    document = tomllib.loads(text)
    places = [document, document.get("workspace", {}), *document.get("target", {}).values()]
    for place in places:
        for table in ("dependencies", "dev-dependencies", "build-dependencies"):
            for name, told in place.get(table, {}).items():
                yield _sourced(name, told)


def _of_go_mod(text: str) -> Iterator[str]:
    """Go's module reference: `require path version`, alone or in a block; `replace` sends a path elsewhere."""
    block = ""
    for line in text.splitlines():
        words = line.split("//", 1)[0].split()
        if not words:
            continue
        if words == [")"]:
            block = ""
        elif words[-1] == "(":
            block = words[0]
        else:
            verb, rest = (block, words) if block else (words[0], words[1:])
            if verb == "require" and rest:
                yield rest[0]
            elif verb == "replace" and "=>" in rest[:-1]:
                yield f"{rest[0]} from {rest[rest.index('=>') + 1]}"


def _sourced(name: str, told: Any) -> str:
    if isinstance(told, Mapping):
        for source in _SOURCES:
            if source in told:
                return f"{name} from {told[source]}"
    return name


_READERS: Mapping[str, Callable[[str], Iterable[str]]] = {
    "pyproject.toml": _of_pyproject,
    "package.json": _of_package_json,
    "go.mod": _of_go_mod,
    "Cargo.toml": _of_cargo,
}
