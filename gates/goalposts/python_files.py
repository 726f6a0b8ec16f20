"""Pure: one version of a Python file of tests: its tests, and what else it binds or does when it is loaded."""

from __future__ import annotations

import ast
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from gates.goalposts import reach
from gates.goalposts.assertions import Asserted, asserted, dotted
from gates.goalposts.harmless import loads_only
from gates.goalposts.normal import imported
from gates.goalposts.paths import is_test_path

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class Test:
    """One test function with what decides about it from outside: skips of its class and its module, a condition.

    What is in it is looked at when somebody asks: of most tests, nobody does.
    """

    __test__ = False

    path: str
    name: str
    node: Function
    skips_outside: int
    conditional: bool
    text: str
    names: Mapping[str, str]

    @property
    def line(self) -> int:
        """Where its name stands."""
        return self.node.lineno

    @cached_property
    def asserted(self) -> tuple[Asserted, ...]:
        """What it asserts."""
        return tuple(asserted(self.node))

    @cached_property
    def cases(self) -> tuple[str, ...]:
        """The cases that parametrize gives it, in words."""
        return tuple(_cases(self.node))

    @property
    def skips(self) -> int:
        """How often something keeps it from counting."""
        return self.skips_outside + self._inside[0]

    @property
    def calls(self) -> frozenset[str]:
        """The functions that it calls, by their last names."""
        return self._inside[1]

    @property
    def mocks(self) -> frozenset[str]:
        """What it replaces."""
        return self._inside[2]

    @property
    def is_async(self) -> bool:
        """Whether somebody has to await it."""
        return isinstance(self.node, ast.AsyncFunctionDef)

    @property
    def yields(self) -> bool:
        """Whether calling it runs nothing."""
        return self._inside[3]

    @cached_property
    def _inside(self) -> tuple[int, frozenset[str], frozenset[str], bool]:
        return _looked_through(self.node)


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing that a file of tests binds or does when it is loaded: `key` says where, `kind` what it is.

    Kinds: test, function, class (its head), value, import, effect.
    """

    kind: str
    key: str
    node: ast.stmt
    name: str


@dataclass
class File:
    """What one version of a file holds."""

    path: str
    text: str = ""
    tests: dict[str, Test] = field(default_factory=dict)
    shadowed: list[tuple[str, int]] = field(default_factory=list)
    units: list[Unit] = field(default_factory=list)
    names: dict[str, str] = field(default_factory=dict)
    tree: ast.Module | None = None
    readable: bool = True

    @cached_property
    def lines(self) -> list[str]:
        """The text, line by line."""
        return self.text.splitlines()

    def words_of(self, node: ast.stmt) -> list[str]:
        """The lines of a statement with its decorators."""
        first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])
        return self.lines[first - 1 : node.end_lineno]

    def offences(self) -> list[reach.Offence]:
        """What reaches beyond the file's own code."""
        if self.tree is None or not reach.is_worth_reading(self.text):
            return []
        return list(reach.offences(self.tree, self.path, is_test_path(self.path)))


def read(path: str, text: str | None) -> File:
    """What the text of a file holds: nothing where there is none; `readable` is False where it is no Python."""
    file = File(path, text or "")
    if text is None:
        return file
    try:
        file.tree = tree = ast.parse(text)
        is_test = is_test_path(path)
        file.names = {name: _absolute(full, path) for name, full in imported(list(_imports(tree))).items()}
        if is_test:
            module_skips = sum(map(_is_skip_statement, tree.body)) + sum(map(_is_unset, tree.body))
            gone = _unbound(tree.body)
            for test in _tests(tree.body, file, "", module_skips, conditional=False):
                if test.name in gone:
                    continue
                if test.name in file.tests:
                    file.shadowed.append((test.name, test.line))
                file.tests[test.name] = test
        file.units = list(_units(tree.body, "", "", file.tests.keys()))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        file.readable = False
        file.tree = None
    return file


def _unbound(body: Sequence[ast.stmt], prefix: str = "") -> set[str]:
    """The tests whose names are deleted, or bound to something else, behind them."""
    found: set[str] = set()
    defined: set[str] = set()
    for node in body:
        if isinstance(node, Function):
            defined.add(node.name)
        elif isinstance(node, ast.ClassDef):
            defined.add(node.name)
            found |= _unbound(node.body, f"{prefix}{node.name}::")
        else:
            for inner in ast.walk(node):
                if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del) and inner.id in defined:
                    found.add(f"{prefix}{inner.id}")
    return found


def _imports(node: ast.AST) -> Iterator[ast.stmt]:
    """Every import, at whatever depth; statements stand in statements only, so expressions are passed over."""
    for name in ("body", "orelse", "finalbody", "handlers", "cases"):
        for inner in getattr(node, name, None) or ():
            if isinstance(inner, ast.Import | ast.ImportFrom):
                yield inner
            else:
                yield from _imports(inner)


def _absolute(full: str, path: str) -> str:
    """The full name of what a file imports relative to its own package."""
    level = len(full) - len(full.lstrip("."))
    if not level:
        return full
    package = path.split("/")[:-level]
    return ".".join([*package, full.lstrip(".")])


def _units(body: Sequence[ast.stmt], prefix: str, under: str, tests: Collection[str]) -> Iterator[Unit]:
    """What a file binds and does, each under its name: those of classes under theirs, and under what condition."""
    effects = {id(node) for node in loads_only(body)}
    for node in body:
        if isinstance(node, Function):
            name = f"{prefix}{node.name}"
            yield Unit("test" if name in tests else "function", f"{under}{name}", node, node.name)
        elif isinstance(node, ast.ClassDef):
            yield Unit("class", f"{under}{prefix}{node.name}", node, node.name)
            yield from _units(node.body, f"{prefix}{node.name}::", under, tests)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            for name in imported([node]):
                yield Unit("import", f"{under}{prefix}import {name}", node, name)
        elif isinstance(node, ast.If | ast.Try):
            if any(id(inner) in effects for inner in ast.walk(node)):
                yield Unit("effect", f"{under}{prefix}{ast.unparse(node)}", node, "")
            head = f"if {ast.unparse(node.test)}" if isinstance(node, ast.If) else "try"
            for at, inner in enumerate((node.body, node.orelse, getattr(node, "finalbody", []))):
                yield from _units(inner, prefix, f"{under}{head}/{at}::", tests)
            for handler in getattr(node, "handlers", []):
                yield from _units(handler.body, prefix, f"{under}{head}/except::", tests)
        elif id(node) in effects or isinstance(node, ast.Delete):
            yield Unit("effect", f"{under}{prefix}{ast.unparse(node)}", node, "")
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                yield Unit("value", f"{under}{prefix}{ast.unparse(target)}", node, ast.unparse(target))


def _tests(body: Sequence[ast.stmt], file: File, prefix: str, skips: int, *, conditional: bool) -> Iterator[Test]:
    for node in body:
        if isinstance(node, Function):
            if node.name.startswith("test"):
                outside = skips + sum(map(_is_skip, node.decorator_list))
                words = "\n".join(file.words_of(node))
                yield Test(file.path, f"{prefix}{node.name}", node, outside, conditional, words, file.names)
        elif isinstance(node, ast.ClassDef) and _is_test_class(node):
            inside = skips + sum(map(_is_skip, node.decorator_list))
            inside += sum(map(_is_skip_statement, node.body)) + sum(map(_is_unset, node.body))
            yield from _tests(node.body, file, f"{prefix}{node.name}::", inside, conditional=conditional)
        elif isinstance(node, ast.If):
            yield from _tests([*node.body, *node.orelse], file, prefix, skips, conditional=True)
        elif isinstance(node, ast.Try):
            yield from _tests(node.body, file, prefix, skips, conditional=conditional)


def _is_test_class(node: ast.ClassDef) -> bool:
    bases = [dotted(base).rpartition(".")[2] for base in node.bases]
    if any(base.endswith(("TestCase", "TestSuite")) for base in bases):
        return True
    has_init = any(isinstance(inner, ast.FunctionDef) and inner.name in {"__init__", "__new__"} for inner in node.body)
    return node.name.startswith("Test") and not has_init


def _is_skip(node: ast.expr) -> bool:
    """A decorator or mark that keeps a test from counting."""
    name = dotted(node.func if isinstance(node, ast.Call) else node)
    return name.rpartition(".")[2] in {
        "skip",
        "skipif",
        "skipIf",
        "skipUnless",
        "xfail",
        "expectedFailure",
        "skip_unless",
    }


def _is_skip_statement(node: ast.stmt) -> bool:
    """`pytestmark = pytest.mark.skip`, and pytest.skip(…, allow_module_level=True)."""
    if isinstance(node, ast.Assign) and any(dotted(target) == "pytestmark" for target in node.targets):
        marks = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
        return any(map(_is_skip, marks))
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _is_skip(node.value)


def _is_unset(node: ast.stmt) -> bool:
    """`__test__ = False`, and `del test_x`-like ways to leave."""
    if isinstance(node, ast.Assign) and any(dotted(target) == "__test__" for target in node.targets):
        return isinstance(node.value, ast.Constant) and not node.value.value
    return False


def _looked_through(node: Function) -> tuple[int, frozenset[str], frozenset[str], bool]:
    """How often a test skips itself, what it calls, what it mocks, and whether it is a generator."""
    skips = 0
    calls: set[str] = set()
    mocks: set[str] = set()
    yields = False
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            name = dotted(inner.func)
            calls.add(name.rpartition(".")[2])
            if name.rpartition(".")[2] in {"skip", "xfail", "skipTest", "importorskip"}:
                skips += 1
            mocks.update(_mocked(inner, name))
        elif isinstance(inner, ast.Raise) and inner.exc is not None:
            raised = inner.exc.func if isinstance(inner.exc, ast.Call) else inner.exc
            skips += dotted(raised).rpartition(".")[2] in {"SkipTest", "Skipped"}
        elif isinstance(inner, ast.Yield | ast.YieldFrom):
            yields = True
        elif isinstance(inner, ast.Assign):
            for target in inner.targets:
                if isinstance(target, ast.Attribute) and isinstance(inner.value, ast.Lambda | ast.Call):
                    mocks.add(dotted(target))
    return skips, frozenset(calls), frozenset(mocks), yields


def _mocked(call: ast.Call, name: str) -> Iterator[str]:
    """What mock.patch, mocker.patch, patch.object, monkeypatch.setattr and create_autospec replace."""
    if re.search(r"(?:^|\.)patch(?:\.object)?$|(?:^|\.)setattr$", name) and call.args:
        first = call.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value
        elif len(call.args) > 1 and isinstance(call.args[1], ast.Constant) and isinstance(call.args[1].value, str):
            yield f"{dotted(first)}.{call.args[1].value}"


def _cases(node: Function) -> Iterator[str]:
    """The cases that parametrize gives a test, in words."""
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and dotted(decorator.func).endswith("parametrize")
            and len(decorator.args) > 1
        ):
            if isinstance(decorator.args[1], ast.List | ast.Tuple | ast.Set):
                yield from (ast.unparse(element) for element in decorator.args[1].elts)
            else:
                yield ast.unparse(decorator.args[1])
