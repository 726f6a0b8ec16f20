"""Pure: the tests that changed files declare before and after, and whether that explains a test that no longer runs.

A name that is missing in a report is explained where the patch took it out of the file that declared it: whether the
test still stands, under another name or elsewhere, the reading of that file has judged. What is missing although its
file declares it as before, or did not change, is explained by nothing. Names of Python are qualified names, of other
languages the titles of their tests.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from gates.goalposts.languages import language_of
from gates.goalposts.moves import Change
from gates.goalposts.python_files import File, read
from gates.goalposts.text import tests_of


@dataclass(frozen=True, slots=True)
class Declared:
    """A changed file: whether all of it is gone, the names that it no longer declares and those that it still does;
    `other` are those of them whose cases are not the same.
    """

    path: str
    gone: bool
    left: frozenset[str]
    held: frozenset[str]
    other: frozenset[str]


def look(changes: Sequence[Change]) -> Iterator[Declared]:
    """The changed files that could declare tests at the base. Raises nothing for what a file holds."""
    for change in changes:
        if change.before is None or change.before == change.after:
            continue
        was, now = (_texts(change.path, text) for text in (change.before, change.after))
        held = was.keys() & now.keys()
        other = frozenset(name for name in held if was[name] != now[name])
        yield Declared(change.path, change.after is None, frozenset(was.keys() - held), frozenset(held), other)


def _texts(path: str, text: str | None) -> dict[str, str]:
    """What one version of a file declares: name -> what decides about its cases."""
    if path.endswith((".py", ".pyi")):
        return _of_python(read(path, text))
    language = language_of(path)
    return {} if language is None or text is None else tests_of(language, path, text)


def _of_python(file: File) -> dict[str, str]:
    values = {unit.name: ast.unparse(unit.node) for unit in file.units if unit.kind == "value"}
    found: dict[str, str] = {}
    heads: dict[str, str] = {}
    for unit in file.units:
        if unit.kind not in {"test", "function", "class"}:
            continue
        # A condition that it stands under is part of the key, and of no name in a report.
        name = "::".join(part for part in unit.key.split("::") if part.isidentifier())
        said = "\n".join(ast.unparse(one) for one in getattr(unit.node, "decorator_list", ()))
        used = sorted(values[word] for word in set(re.findall(r"[A-Za-z_]\w*", said)) if word in values)
        heads[name] = "\n".join([said, *used])
        found[name] = heads.get(name.rpartition("::")[0], "") + heads[name]
    return found


# --- a missing test against what was declared ---------------------------------------------------------------------

_BY_DOTS = (".py", ".pyi", ".java", ".kt", ".kts", ".scala", ".groovy", ".rb", ".php", ".cs")
_PLACEHOLDER = re.compile(r"%[a-zA-Z#]|\$\{[^}]*\}|\$[\w.]+|#\{[^}]*\}")
_BEFORE_TITLE = " .:/>#›"
_AFTER_TITLE = "[({/ #"


class Judged:
    """Says of a missing test whether what the patch did to the file that declared it explains that."""

    def __init__(self, declared: Sequence[Declared], paths: Collection[str]) -> None:
        self.declared = {one.path: one for one in declared}
        self.by_name: dict[str, list[str]] = {}
        self.by_module: dict[str, list[tuple[list[str], str]]] = {}
        for path in sorted({*paths, *self.declared}):
            self.by_name.setdefault(path.rpartition("/")[2], []).append(path)
            if path.endswith(_BY_DOTS):
                words = path.rpartition(".")[0].replace("/", ".").split(".")
                self.by_module.setdefault(words[-1], []).append((words, path))

    def explains(self, key: str, before: Collection[str], now: Collection[str]) -> bool:
        """Whether the test `key`, one of `before` and none of `now`, is known to have left its file."""
        if any(one.startswith((f"{key}.", f"{key}::")) for one in now):
            return True  # a module that could not be loaded is told as one test
        homes, rest = self._home(key)
        if not rest:  # the report names the file itself, where it found no test in it
            return any(home in self.declared for home in homes)
        if homes:
            changed = [self.declared[home] for home in homes if home in self.declared]
            return any(self._left(one, rest, key, before, now) for one in changed)
        return any(
            self._title_left(one, rest[-1], before, now)
            for one in self.declared.values()
            if not one.path.endswith(".py")
        )

    def _home(self, key: str) -> tuple[list[str], list[str]]:
        """The files that a key may mean, and what stands behind them in it; no files where it names none."""
        parts = key.split("::")
        first = parts[0]
        beside = self.by_name.get(first.rpartition("/")[2], ())
        named = [path for path in beside if path == first or f"/{path}".endswith(f"/{first}") or _ends(first, path)]
        if named:
            rest = parts[1:]
            inner = self._module(rest[0]) if len(rest) > 1 else ([], [])
            return named, [*inner[1], *rest[1:]] if inner[0] else rest
        homes, words = self._module(first)
        if homes:
            return homes, [*words, *parts[1:]]
        last = parts[-1]
        named = [path for path in self.by_name.get(last.rpartition("/")[2], ()) if path == last or _ends(last, path)]
        return (named, []) if named else ([], parts)

    def _module(self, dotted: str) -> tuple[list[str], list[str]]:
        words = re.split(r"[.$]", dotted)
        for at in range(len(words), 0, -1):
            homes = [path for module, path in self.by_module.get(words[at - 1], ()) if module[-at:] == words[:at]]
            if homes:
                return homes, words[at:]
        return [], []

    def _left(
        self, one: Declared, rest: Sequence[str], key: str, before: Collection[str], now: Collection[str]
    ) -> bool:
        if one.gone:
            return True
        if not one.path.endswith(".py"):
            return self._title_left(one, rest[-1], before, now)
        names = "::".join(rest).partition("[")[0].split("::")
        whole = re.sub(r" \(\d+\)\Z", "", "::".join(names))
        if any("::".join(names[: depth + 1]) in one.left for depth in range(len(names))):
            return True
        words = names[-1].split(".")  # an example in a docstring has the name of what it explains
        if len(words) > 1 and any("::".join(words[at:]) in one.left for at in range(len(words))):
            return True
        if whole in one.other:
            head = key.partition("[")[0]
            return _many(head, now) >= _many(head, before)
        if whole in one.held:
            return False
        return any(
            name.rpartition("::")[2] == names[-1]  # inherited from a class of this or of another file
            for other in self.declared.values()
            for name in other.left
        )

    @staticmethod
    def _title_left(one: Declared, name: str, before: Collection[str], now: Collection[str]) -> bool:
        if any(_is_title(title, name) for title in one.left):
            return True
        for title in one.other:
            if _is_title(title, name):
                had, has = (sum(_is_title(title, key) for key in keys) for keys in (before, now))
                if has >= had:
                    return True
        return False


def _ends(name: str, path: str) -> bool:
    return name.endswith(f"/{path}")


def _many(head: str, keys: Collection[str]) -> int:
    return sum(key.partition("[")[0] == head for key in keys)


def _is_title(title: str, name: str) -> bool:
    """Whether a reported name ends with a declared title, whatever stands for its placeholders; cases may follow it."""
    literals = _PLACEHOLDER.split(re.sub(r" \(\d+\)\Z", "", title))
    if not any(map(str.isalnum, "".join(literals))):
        return False
    name = " ".join(re.sub(r" \(\d+\)\Z", "", name).split())
    at = start = name.find(literals[0])
    while start >= 0 and literals[0]:
        if (start == 0 or name[start - 1] in _BEFORE_TITLE) and _follows(literals, name, start):
            return True
        start = name.find(literals[0], start + 1)
    return not literals[0] and at >= 0 and _follows(literals, name, 0)


def _follows(literals: Sequence[str], name: str, at: int) -> bool:
    """Whether these stand in a name one after the other from there, and nothing but a case behind the last."""
    for literal in literals:
        at = name.find(literal, at)
        if at < 0:
            return False
        at += len(literal)
    if len(literals) > 1:
        return not literals[-1] or name.endswith(literals[-1])
    return at == len(name) or name[at] in _AFTER_TITLE


# --- between the child and us -------------------------------------------------------------------------------------


def to_lines(found: Sequence[Declared]) -> Iterator[Any]:
    """What is declared as documents of a line each; `from_lines` is the inverse."""
    yield {"files": len(found)}
    for one in found:
        yield [sorted(part) if isinstance(part, frozenset) else part for part in astuple(one)]


def from_lines(documents: list[Any]) -> tuple[Declared, ...]:
    """What `to_lines` wrote. Raises TypeError, KeyError or ValueError for anything else."""
    found = tuple(
        Declared(str(path), bool(gone), *(frozenset(map(str, names)) for names in sets))
        for path, gone, *sets in documents[1:]
    )
    if len(found) != documents[0]["files"]:
        raise ValueError("files are missing")
    return found
