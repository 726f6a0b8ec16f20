"""Pure: the goalposts of Python tests and of what they stand on, by the syntax trees before and after.

What stood at the base may change only where it can be shown to ask for no less (`harmless`); what is new may
not reach into what stood. A test that changed beyond that is held against the one that it was, wherever it moved to, so
that the move can be named: each assertion of the base must find one of at least its strength about the same subject.
"""

from __future__ import annotations

import ast
import builtins
import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from gates.goalposts.assertions import EXACTLY, NOTHING, Asserted, dotted
from gates.goalposts.harmless import Names, difference, has_more, used_names
from gates.goalposts.moves import Change, Moved, moved
from gates.goalposts.normal import nodes_of, normal
from gates.goalposts.paths import is_collected, is_test_path, shadowed
from gates.goalposts.python_files import File, Function, Test, Unit, read

# Names by which a runner finds what it runs round other tests.
_SPECIAL = re.compile(
    r"(?:setup|teardown)_(?:module|class|method|function)\Z|(?:setUp|tearDown)(?:Module|Class|TestData)?\Z|load_tests\Z"
    r"|pytest_\w+|pytestmark\Z|collect_ignore(?:_glob)?\Z|__(?:test|getattr|dir|all|doctest_skip|init_subclass|new|init)__\Z"
    r"|asyncSetUp\Z|asyncTearDown\Z|addCleanup\Z|run\Z|debug\Z|runTest\Z|setup\Z|teardown\Z|fail\Z|assert\w+|databases\Z"
)
_BUILTIN_FIXTURES = frozenset(
    {
        "tmp_path", "tmpdir", "tmp_path_factory", "tmpdir_factory", "capsys", "capfd", "capsysbinary", "caplog",
        "recwarn", "monkeypatch", "request", "cache", "doctest_namespace", "pytestconfig", "testdir", "pytester",
        "mocker", "db", "client", "settings", "live_server", "event_loop", "benchmark",
    }
)  # fmt: skip
_QUIET_HOOKS = frozenset({"pytest_addoption", "pytest_configure", "pytest_report_header"})
_QUIET_HOOK_CALLS = frozenset({"addoption", "addini", "getgroup", "addinivalue_line", "append", "getoption"})


@dataclass
class _Moves:
    """What the files of a patch tell each other: what came, what went, and where from."""

    new: list[Test] = field(default_factory=list)
    homes: dict[str, str] = field(default_factory=dict)
    gone: frozenset[str] = frozenset()
    came_from: dict[str, str] = field(default_factory=dict)


def judge(changes: Sequence[Change], tree: Collection[str] = ()) -> list[Moved]:
    """Where the Python files of a patch move goalposts; `tree` holds the paths of the base, where they are known.

    The files are read twice, and one after the other: the trees of a large patch do not fit into the reader's memory.
    """
    texts = {change.path: change.before for change in changes}
    moves = _moves(changes)
    renamed = set(moves.came_from.values())
    left = frozenset(tree) - {change.path for change in changes if change.after is None}
    found: list[Moved] = []
    for change in changes:
        if change.path in renamed and change.after is None:
            continue
        origin = moves.came_from.get(change.path, change.path)
        was, now = read(origin, texts[origin]), read(change.path, change.after)
        if change.after is not None and not now.readable and was.readable:
            found.append(moved("unreadable", change.path, 0, "the file is no longer Python"))
            continue
        if change.before is None and change.after is not None and (module := shadowed(change.path, left)):
            found.append(moved("module_shadowed", change.path, 0, f"it stands before the module {module} of that name"))
        if is_test_path(change.path) or is_test_path(origin):
            found += _Held(was, now, moves, tree, is_new=texts[origin] is None).judge()
        elif change.before is not None and change.after is not None:
            found += _examples(was, now)
        offences = now.offences()
        had = Counter((kind, what) for kind, what, _ in was.offences()) if offences else Counter()
        for kind, what, line in offences:
            if had[kind, what]:
                had[kind, what] -= 1
            else:
                found.append(moved(kind, change.path, line, what))
    return found


def _moves(changes: Sequence[Change]) -> _Moves:
    """What moves between files: tests that are new where they are, helpers word for word, whole files."""
    moves = _Moves(gone=frozenset(_module_of(change.path) for change in changes if change.after is None))
    if not any(_lost_names(change) for change in changes):
        return moves
    keys: list[dict[str, frozenset[str]]] = [{}, {}]
    forms: list[set[tuple[str, str, str]]] = [set(), set()]
    tests: list[tuple[str, list[Test]]] = []
    for change in changes:
        if not is_test_path(change.path):
            continue
        versions = [read(change.path, change.before), read(change.path, change.after)]
        bound = [frozenset(u.key for u in file.units if u.kind not in {"import", "effect"}) for file in versions]
        for side, file in enumerate(versions):
            keys[side][change.path] = bound[side]
            forms[side] |= {
                (_module_of(file.path), unit.name, normal(unit.node, file.names))
                for unit in file.units
                if unit.kind in {"function", "class", "value"}
                and "::" not in unit.key
                and unit.key not in bound[1 - side]
            }
        if is_collected(change.path):
            tests.append((change.path, [t for name, t in versions[1].tests.items() if name not in versions[0].tests]))
    moves.came_from = _renamed(changes, *keys)
    for path, new in tests:
        had = keys[0][moves.came_from[path]] if path in moves.came_from else frozenset()
        moves.new += [test for test in new if test.name not in had]
    both = set.intersection(*({(name, form) for _, name, form in side} for side in forms))
    for module, name, form in forms[0] | forms[1]:
        if (name, form) in both:
            parts = module.split(".")
            # As a module of its package, or of a folder that is on the path of imports by itself.
            moves.homes |= {".".join([*parts[at:], name]): name for at in range(len(parts))}
    return moves


def _module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").removeprefix("src/").replace("/", ".")


_BINDS = re.compile(r"^(?:\s*(?:async\s+)?(?:def|class)\s+|(?=\w+\s*[:=]))(\w+)", re.MULTILINE)


def _lost_names(change: Change) -> bool:
    """Whether a file no longer binds some name that it bound, by its lines: only then something may have moved."""
    had = Counter(_BINDS.findall(change.before or ""))
    return bool(had and had - Counter(_BINDS.findall(change.after or "")))


def _renamed(
    changes: Sequence[Change], before: Mapping[str, frozenset[str]], after: Mapping[str, frozenset[str]]
) -> dict[str, str]:
    """New files of tests that are old ones under another name: new path -> old path, by most of what they bind."""
    olds = [change.path for change in changes if change.after is None and before.get(change.path)]
    by_key: dict[str, list[str]] = {}
    for old in olds:
        for key in before[old]:
            by_key.setdefault(key, []).append(old)
    found: dict[str, str] = {}
    for change in changes:
        if change.before is not None or change.after is None or change.path not in after:
            continue
        shared = Counter(old for key in after[change.path] for old in by_key.get(key, ()))
        for old, number in shared.most_common():
            is_whole = 2 * number >= len(before[old]) and is_collected(old) <= is_collected(change.path)
            if is_whole and old not in found.values():
                found[change.path] = old
                break
    return found


def _examples(was: File, now: File) -> Iterator[Moved]:
    """Examples in docstrings of the product that are held to be true: one that shows another result."""
    had = {unit.key: unit.node for unit in was.units if isinstance(unit.node, Function)}
    for unit in now.units:
        node = had.get(unit.key)
        if isinstance(unit.node, Function) and isinstance(node, Function) and node is not unit.node:
            old, new = (_examples_of(ast.get_docstring(one) or "") for one in (node, unit.node))
            if gone := [example for example in old if example not in new]:
                kind = "expectation_changed" if len(new) >= len(old) else "test_deleted"
                told = f"the example of {unit.name} is gone or shows something else: {gone[0]}"
                yield moved(kind, now.path, unit.node.lineno, told)


def _examples_of(text: str) -> list[str]:
    """The examples of a docstring, each with its result."""
    found: list[str] = []
    taking = False
    for line in map(str.strip, text.splitlines()):
        if line.startswith(">>> "):
            found.append(line)
            taking = True
        elif taking and line:
            found[-1] += f" {line}"
        else:
            taking = False
    return found


# --- one file of tests against what it was ------------------------------------------------------------------------


class _Held:
    """Holds a file of tests against what it was, thing by thing."""

    def __init__(self, was: File, now: File, moves: _Moves, tree: Collection[str], *, is_new: bool) -> None:
        self.was = was
        self.now = now
        self.moves = moves
        self.is_new = is_new
        self.tree = tree
        self.before = self._names(was.names, is_base=True)
        self.after = self._names(now.names, self._brought(now))
        self.same_names = all(now.names.get(name) == full for name, full in was.names.items())

    def _brought(self, now: File) -> frozenset[str]:
        """Helpers that this version calls and that the base's file did not have: nobody has looked at them."""
        had = {unit.name for unit in self.was.units} | self.was.names.keys()
        own = {unit.name for unit in now.units if unit.kind in {"function", "class"}}
        theirs = {name for name, full in now.names.items() if is_test_path(full.replace(".", "/") + ".py")}
        return frozenset((own | theirs) - had)

    def _names(self, said: Mapping[str, str], brought: frozenset[str] = frozenset(), *, is_base: bool = False) -> Names:
        """Full names, where a helper that only lives elsewhere now is itself, and a product's module that the patch
        moves away is the same wherever it went."""
        left = {full.rpartition(".")[2] for full in self.was.names.values() if self._is_gone(full)}
        names = {}
        for name, full in said.items():
            last = full.rpartition(".")[2]
            home = self.moves.homes.get(full)
            if home is not None:
                names[name] = home
            elif last in left and is_base <= self._is_gone(full):
                names[name] = f"moved.{last}"
            else:
                names[name] = full
        return Names(names, brought)

    def _is_gone(self, full: str) -> bool:
        return full in self.moves.gone or full.rpartition(".")[0] in self.moves.gone

    def judge(self) -> Iterator[Moved]:
        now = self.now
        for name, test in self.was.tests.items():
            same = now.tests.get(name) or _elsewhere(test, self.moves.new)
            if same is None:
                left = _is_left(name, now.tree)
                kind, where = (
                    ("test_uncollected", "renamed so that nobody collects it") if left else ("test_deleted", "gone")
                )
                yield moved(kind, now.path, 0, f"the test {name} is {where}")
            else:
                yield from self._test(test, same)
        for name, line in now.shadowed:
            if (name not in {other for other, _ in self.was.shadowed}) and name in self.was.tests:
                yield moved("test_deleted", now.path, line, f"the test {name} is replaced by a later one")
        if now.readable and self.was.readable:
            yield from self._units()

    def _test(self, test: Test, now: Test) -> Iterator[Moved]:
        is_same = test.text == now.text and self.same_names and now.path == self.now.path
        if is_same and now.skips_outside <= test.skips_outside and now.conditional <= test.conditional:
            return
        after = self.after if now.path == self.now.path else self._names(now.names)
        odd = difference(test.node, now.node, self.before, after, is_test=True)
        outside = now.skips > test.skips or (now.conditional and not test.conditional)
        if odd is None and not outside:
            return
        told = list(_compared(test, now))
        yield from told
        if not told and odd is not None:
            yield moved("test_changed", now.path, odd.line, f"{now.name}: {odd.what}")

    # -- helpers, fixtures, values, and what runs at loading

    def _units(self) -> Iterator[Moved]:
        olds: dict[str, list[Unit]] = {}
        for unit in self.was.units:
            olds.setdefault(unit.key, []).append(unit)
        for unit in self.now.units:
            same = olds.get(unit.key)
            if same:
                yield from self._changed(same.pop(0), unit)
            elif unit.kind != "test" or not self.is_new:
                yield from self._come(unit)
        for left in olds.values():
            for unit in left:
                yield from self._left(unit)

    def _changed(self, was: Unit, now: Unit) -> Iterator[Moved]:
        """A thing that stood, as it is now."""
        path, line = self.now.path, now.node.lineno
        if was.kind == "test" and now.kind == "test":
            return
        is_same = was.kind == now.kind and self.same_names and was.kind in {"function", "value"}
        if is_same and self.was.words_of(was.node) == self.now.words_of(now.node):
            return
        if was.kind == "import" and now.kind == "import":
            yield from self._imports(was, now)
            return
        if was.kind == now.kind == "function":
            assert isinstance(was.node, Function) and isinstance(now.node, Function)  # noqa: PT018
            if odd := difference(was.node, now.node, self.before, self.after, is_test=False):
                what = "the fixture" if _is_fixture(now.node) else "the helper"
                yield moved("support_changed", path, odd.line, f"{what} {now.name} changed: {odd.what}")
            return
        if was.kind == now.kind == "class":
            if _head_of(was.node, self.before) != _head_of(now.node, self.after):
                yield moved("support_changed", path, line, f"the class {now.name} stands on something else")
            return
        if was.kind == now.kind and normal(was.node, self.before.imported) == normal(now.node, self.after.imported):
            return
        if was.kind == now.kind == "value" and self._has_more_cases(was, now):
            return
        if _SPECIAL.match(now.name):
            yield moved("test_skipped", path, line, f"{ast.unparse(now.node)[:100]} decides about tests that stood")
            return
        kind = "expectation_changed" if now.kind == "value" else "support_changed"
        yield moved(
            kind, path, line, f"{now.name} changed: {ast.unparse(was.node)[:60]} → {ast.unparse(now.node)[:60]}"
        )

    def _has_more_cases(self, was: Unit, now: Unit) -> bool:
        values = [getattr(unit.node, "value", None) for unit in (was, now)]
        if values[0] is None or values[1] is None or self.now.tree is None:
            return False
        return _is_iterated(now.name, self.now.tree) and has_more(values[0], values[1], self.before, self.after)

    def _imports(self, was: Unit, now: Unit) -> Iterator[Moved]:
        """A name that is imported from elsewhere now is another thing for every test that says it."""
        old, new = self.before.imported.get(was.name), self.after.imported.get(now.name)
        if old != new and was.name in used_names(self.was.tree or ast.Module([], [])):
            told = f"{now.name} is no longer {self.was.names.get(was.name)} but {self.now.names.get(now.name)}"
            yield moved("support_changed", self.now.path, now.node.lineno, told)

    def _left(self, unit: Unit) -> Iterator[Moved]:
        """A thing that stood and is gone: whoever needs it fails, but for what nobody calls by name."""
        node = unit.node
        hidden = isinstance(node, Function) and (_is_fixture(node) or _SPECIAL.match(unit.name))
        if unit.kind == "effect" or hidden or (unit.kind == "value" and _SPECIAL.match(unit.name)):
            if _is_said_elsewhere(unit, self.moves.homes):
                return
            told = f"this is gone: {unit.name if hidden else ast.unparse(node)[:100]}"
            yield moved("support_changed", self.now.path, 0, told)
        elif unit.kind in {"function", "class", "value", "import"} and hasattr(builtins, unit.name):
            yield moved("support_changed", self.now.path, 0, f"{unit.name} means the builtin again")

    def _come(self, unit: Unit) -> Iterator[Moved]:
        """A thing that the patch brings: it may not change what stood."""
        path, node, line = self.now.path, unit.node, unit.node.lineno
        is_conftest = path.rpartition("/")[2] == "conftest.py"
        if self.is_new and not (is_conftest and self._has_tests_below()):
            # Nothing stood here. What reaches out of its own file, `reach` tells.
            return
        text, used = " ".join(self.now.words_of(node))[:100], self._used
        if isinstance(node, Function) and _is_hook(node):
            if not _is_quiet_hook(node):
                yield moved("config_touched", path, line, f"the hook {unit.name} takes part in every test's run")
        elif isinstance(node, Function) and _is_fixture(node):
            if _is_autouse(node):
                yield moved("config_touched", path, line, f"the fixture {unit.name} is used by every test")
            elif _fixture_name(node) in self._asked_for or (is_conftest and _fixture_name(node) in _BUILTIN_FIXTURES):
                yield moved("support_changed", path, line, f"the fixture {unit.name} takes the place of another")
        elif unit.kind == "import":
            if unit.name.startswith("*") or unit.name.startswith("pytest_"):
                yield moved(
                    "config_touched" if is_conftest else "support_changed", path, line, f"names are taken over: {text}"
                )
            elif unit.name in used and not self.is_new and not self._is_same_import(unit.name):
                yield moved("support_changed", path, line, f"{unit.name} means something else: {text}")
        elif unit.kind == "effect":
            if not (isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)):
                yield moved("support_changed", path, line, f"this runs when the tests are loaded: {text}")
        elif _SPECIAL.match(unit.name) and unit.kind != "test":
            kind = "config_touched" if is_conftest else "support_changed"
            yield moved(kind, path, line, f"{unit.name} takes part in tests that stood: {text}")
        elif unit.name in used and not self.is_new and not self._was_imported(unit):
            yield moved("support_changed", path, line, f"{unit.name} means something else: {text}")

    def _is_same_import(self, name: str) -> bool:
        """Whether a name that is imported once more still is what it was."""
        same = self.was.names.get(name) == self.now.names.get(name)
        return same or name in self.moves.homes.values()

    @cached_property
    def _used(self) -> frozenset[str]:
        """Every name that stood in the file, of whatever kind."""
        return _said(self.was.tree) if self.was.tree is not None else frozenset()

    @cached_property
    def _asked_for(self) -> frozenset[str]:
        """The fixtures that something in the file takes."""
        tree = self.was.tree
        nodes = nodes_of(tree) if tree is not None else []
        return frozenset(node.arg for node in nodes if isinstance(node, ast.arg)) | frozenset(
            node.value
            for call in nodes
            if isinstance(call, ast.Call) and dotted(call.func).rpartition(".")[2] in {"usefixtures", "getfixturevalue"}
            for node in call.args
            if isinstance(node, ast.Constant) and isinstance(node.value, str)
        )

    def _was_imported(self, unit: Unit) -> bool:
        """Whether a helper came home: it was imported, and now stands here word for word."""
        return unit.name in self.moves.homes.values() and unit.name in self.was.names

    def _has_tests_below(self) -> bool:
        """Whether tests stood in the folder of this file, or below; taken for so where the tree is not known."""
        folder = self.now.path.rpartition("/")[0]
        prefix = f"{folder}/" if folder else ""
        return not self.tree or any(path.startswith(prefix) and is_test_path(path) for path in self.tree)


def _is_said_elsewhere(unit: Unit, homes: Mapping[str, str]) -> bool:
    return unit.name in homes.values()


def _said(tree: ast.AST) -> frozenset[str]:
    """Every name that code reads, binds or takes; short words in quotes, since fixtures and attributes are named so,
    too; and what its classes ask of themselves."""
    found = set()
    for node in nodes_of(tree):
        if isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
        elif isinstance(node, ast.Constant):
            if isinstance(node.value, str) and len(node.value) < 80 and node.value.isidentifier():
                found.add(node.value)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}:
            found.add(node.attr)
    return frozenset(found)


def _is_iterated(name: str, tree: ast.Module) -> bool:
    """Whether a name is only ever gone through case by case, or asked for one of its keys, and never held against."""
    said: set[int] = set()
    through: set[int] = set()
    against: set[int] = set()

    def mine(node: ast.AST) -> set[int]:
        return {id(one) for one in ast.walk(node) if isinstance(one, ast.Name) and one.id == name}

    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load):
            said.add(id(node))
        elif isinstance(node, ast.Call) and dotted(node.func).endswith("parametrize") and len(node.args) > 1:
            through |= mine(node.args[1])
        elif isinstance(node, ast.For | ast.comprehension):
            through |= mine(node.iter)
        elif isinstance(node, ast.Subscript) and _text_key(node):
            through |= mine(node.value)
        elif isinstance(node, ast.Compare):
            against |= {id(one) for side in (node.left, *node.comparators) for one in _whole_names(side)}
    return bool(said) and said <= through - against


def _text_key(node: ast.Subscript) -> bool:
    """Whether what is asked for is a key, and no place in an order."""
    return not isinstance(node.slice, ast.Slice) and not (
        isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, int)
    )


def _whole_names(node: ast.AST) -> Iterator[ast.Name]:
    """The names in one side of a comparison that stand for all they hold, not for what is under a key."""
    if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
        yield from _whole_names(node.slice)
        return
    if isinstance(node, ast.Name):
        yield node
    for inner in ast.iter_child_nodes(node):
        yield from _whole_names(inner)


def _head_of(node: ast.stmt, names: Names) -> str:
    assert isinstance(node, ast.ClassDef)
    return normal(ast.ClassDef("", node.bases, node.keywords, [ast.Pass()], node.decorator_list), names.imported)


def _is_fixture(node: Function) -> bool:
    return any(
        dotted(one.func if isinstance(one, ast.Call) else one).rpartition(".")[2] in {"fixture", "yield_fixture"}
        for one in node.decorator_list
    )


def _fixture_name(node: Function) -> str:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            for keyword in decorator.keywords:
                if keyword.arg == "name" and isinstance(keyword.value, ast.Constant):
                    return str(keyword.value.value)
    return node.name


def _is_autouse(node: Function) -> bool:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            for keyword in decorator.keywords:
                if keyword.arg == "autouse" and not (
                    isinstance(keyword.value, ast.Constant) and not keyword.value.value
                ):
                    return True
    return False


def _is_hook(node: Function) -> bool:
    return node.name.startswith("pytest_") or any(
        dotted(one.func if isinstance(one, ast.Call) else one).rpartition(".")[2] == "hookimpl"
        for one in node.decorator_list
    )


def _is_quiet_hook(node: Function) -> bool:
    """Whether a hook only names options and marks, whatever it is called by."""
    if node.name not in _QUIET_HOOKS or node.decorator_list:
        return False
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call) and dotted(inner.func).rpartition(".")[2] not in _QUIET_HOOK_CALLS:
            return False
        if isinstance(inner, ast.Attribute | ast.Subscript) and isinstance(inner.ctx, ast.Store | ast.Del):
            return False
    # An option that has a name of the runner's own, or a default of it, is a setting.
    return not any(
        isinstance(inner, ast.Constant) and inner.value in {"addopts", "-k", "-m", "--deselect", "--ignore"}
        for inner in ast.walk(node)
    )


# --- one test against what it was ---------------------------------------------------------------------------------


def _compared(test: Test, now: Test) -> Iterator[Moved]:
    path, name = now.path, now.name
    if now.skips > test.skips:
        yield moved("test_skipped", path, now.line, f"{name} is skipped or expected to fail")
    if now.conditional and not test.conditional:
        yield moved("test_skipped", path, now.line, f"{name} is there under a condition only")
    if now.is_async and not test.is_async:
        yield moved("test_skipped", path, now.line, f"{name} became a coroutine, which not every runner awaits")
    if now.yields and not test.yields:
        yield moved("test_skipped", path, now.line, f"{name} became a generator, which nobody runs")
    lost = Counter(test.cases) - Counter(now.cases)
    if lost:
        if len(now.cases) < len(test.cases):
            yield moved("test_deleted", path, now.line, f"{name} lost cases: {next(iter(lost))}")
        else:
            yield moved("expectation_changed", path, now.line, f"{name} has other cases: {next(iter(lost))}")
    for target in sorted(now.mocks - test.mocks):
        called = target.rpartition(".")[2]
        if called in test.calls:
            yield moved("subject_mocked", path, now.line, f"{name} mocks {target}, which it tests")
    yield from _assertions_compared(test, now)


def _assertions_compared(test: Test, now: Test) -> Iterator[Moved]:
    left = list(now.asserted)
    unmatched = []
    for was in test.asserted:
        if was.strength == NOTHING:
            continue
        same = [one for one in left if one.subject == was.subject]
        if not same:
            unmatched.append(was)
            continue
        # The same words first; else the strongest.
        best = next((one for one in same if one.text == was.text and one.strength == was.strength), None)
        best = best or max(same, key=lambda one: (one.strength, -one.line))
        left.remove(best)
        yield from _weaker(was, best, now)
    fallback = [one for one in left if one.strength]
    for was in unmatched:
        other = next((one for one in fallback if one.strength >= was.strength), None) or next(iter(fallback), None)
        if other is None:
            yield moved("assertion_removed", now.path, now.line, f"{now.name} no longer asks: {was.text}")
            continue
        fallback.remove(other)
        if other.strength < was.strength:
            yield moved("assertion_weakened", now.path, other.line, f"{now.name}: {was.text} → {other.text}")
        else:
            yield moved("expectation_changed", now.path, other.line, f"{now.name}: {was.text} → {other.text}")


def _weaker(was: Asserted, now: Asserted, test: Test) -> Iterator[Moved]:
    told = f"{test.name}: {was.text} → {now.text}"
    if now.strength < was.strength:
        yield moved("assertion_weakened", test.path, now.line, told if was.text != now.text else f"{told} (no effect)")
        return
    if now.conditional and not was.conditional:
        yield moved("assertion_weakened", test.path, now.line, f"{told} (under a condition)")
        return
    had, has = dict(was.tolerance), dict(now.tolerance)
    for name, value in has.items():
        if value > had.get(name, 0.0 if had or was.strength == EXACTLY else float("inf")):
            yield moved("assertion_weakened", test.path, now.line, f"{told} (tolerance)")
            return
    if now.strength == was.strength and was.expected != now.expected and had.keys() == has.keys():
        yield moved("expectation_changed", test.path, now.line, told)


def _form(test: Test) -> str:
    return ast.dump(ast.Module(test.node.body, []))


def _is_left(name: str, tree: ast.Module | None) -> bool:
    """Whether the body of a test lives on under a name that is not collected."""
    stem = name.rpartition("::")[2].removeprefix("test").strip("_")
    names = [node.name for node in ast.walk(tree) if isinstance(node, Function)] if tree else []
    return bool(stem) and any(stem in one for one in names)


def _elsewhere(test: Test, new: list[Test]) -> Test | None:
    """The test in its new place: of the same name, or that asks all this one asked."""
    stem = test.name.rpartition("::")[2]
    form = _form(test)
    if same := next((other for other in new if _form(other) == form), None):
        new.remove(same)
        return same
    asked = Counter(one.subject for one in test.asserted)
    for other in new:
        if other.name.rpartition("::")[2] == stem or (asked and not asked - Counter(o.subject for o in other.asserted)):
            new.remove(other)
            return other
    return None
