"""Pure: whether what changed in a Python function that stood in the tests can be shown to ask for no less.

What is allowed is listed; everything else is a change. A function may be written differently (`normal`), its
variables may have other names, more may be asserted at any place, an assertion may become a narrower one, and more may
be done after all that was done before. What comes in between may set only names that were not there.
"""

from __future__ import annotations

import ast
import builtins
import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from gates.goalposts.assertions import dotted, is_narrower
from gates.goalposts.normal import nodes_of, normal, numbered

_Function = ast.FunctionDef | ast.AsyncFunctionDef
# Fixtures of the runners that do nothing until they are used.
_QUIET_FIXTURES = frozenset(
    {"tmp_path", "tmpdir", "tmp_path_factory", "capsys", "capfd", "caplog", "recwarn", "request", "subtests", "self"}
)
# What a call may not be that comes between the statements of a test that stood.
_REACHING = frozenset(
    {
        "setattr", "delattr", "exec", "eval", "compile", "patch", "object", "dict", "start", "stop", "setitem",
        "delitem", "globals", "locals", "vars", "import_module", "reload", "skip", "skipTest", "skipif", "xfail",
        "importorskip", "exit", "_exit", "quit", "abort", "kill", "chdir", "syspath_prepend", "__import__",
        "override_settings", "usefixtures", "getfixturevalue", "__setattr__", "setenv", "delenv", "freeze",
    }
)  # fmt: skip
_DUNDERS_OF_CODE = re.compile(r"__(?:code|dict|class|globals|defaults|bases|builtins|subclasses|wrapped|closure)__\Z")


@dataclass(frozen=True, slots=True)
class Names:
    """What names stand for in one version of a file: the imported ones, and those of helpers that the patch brings."""

    imported: Mapping[str, str]
    brought: frozenset[str] = field(default_factory=frozenset)


@dataclass(frozen=True, slots=True)
class Difference:
    """The first thing in a changed function that is not known to be harmless."""

    line: int
    what: str


def difference(was: _Function, now: _Function, before: Names, after: Names, *, is_test: bool) -> Difference | None:
    """The first change in a function that could make it ask for less, or None for harmless ones."""
    if type(was) is not type(now):
        return Difference(now.lineno, f"{now.name} is no longer the same kind of function")
    if odd := _decorators(was, now, before, after) or _parameters(was, now, before, after, is_test=is_test):
        return odd
    if numbered(_plain(was), before.imported) == numbered(_plain(now), after.imported):
        return None
    comparison = _Comparison(before, after, used_names(was))
    return comparison.bodies(was.body, now.body, now.lineno, may_go_on=is_test)


def used_names(node: ast.AST) -> frozenset[str]:
    """Every name that code reads, binds or takes as an argument."""
    found: set[str] = set()
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name):
            found.add(inner.id)
        elif isinstance(inner, ast.arg):
            found.add(inner.arg)
        elif isinstance(inner, ast.Global | ast.Nonlocal):
            found.update(inner.names)
    return frozenset(found)


def _plain(node: _Function) -> _Function:
    """The function without what `_decorators` and `_parameters` judge, and without its name."""
    plain = copy.copy(node)
    plain.decorator_list = []
    plain.args = ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])
    plain.name = ""
    return plain


def _decorators(was: _Function, now: _Function, before: Names, after: Names) -> Difference | None:
    left = [(node, normal(node, before.imported)) for node in was.decorator_list]
    come = []
    for node in now.decorator_list:
        form = normal(node, after.imported)
        same = next((one for one in left if one[1] == form), None)
        if same is not None:
            left.remove(same)
        else:
            come.append(node)
    for node in come:
        same = next((one for one in left if _has_more_cases(one[0], node, before, after)), None)
        if same is None:
            return Difference(node.lineno, f"{now.name} is decorated differently: @{ast.unparse(node)}")
        left.remove(same)
    if left:
        return Difference(now.lineno, f"{now.name} is no longer decorated: @{ast.unparse(left[0][0])}")
    return None


def _has_more_cases(was: ast.expr, now: ast.expr, before: Names, after: Names) -> bool:
    """Whether a parametrize has all the cases that it had, in whatever order, and perhaps more, or names for them."""
    if not (isinstance(was, ast.Call) and isinstance(now, ast.Call)):
        return False
    if not dotted(was.func).endswith("parametrize") or normal(was.func, before.imported) != normal(
        now.func, after.imported
    ):
        return False
    if len(was.args) != 2 or len(now.args) != 2 or not _same(was.args[0], now.args[0], before, after):
        return False
    words = [{one.arg: one.value for one in call.keywords if one.arg != "ids"} for call in (was, now)]
    if words[0].keys() != words[1].keys() or any(
        not _same(value, words[1][key], before, after) for key, value in words[0].items()
    ):
        return False
    return _same(was.args[1], now.args[1], before, after) or has_more(was.args[1], now.args[1], before, after)


def has_more(was: ast.expr, now: ast.expr, before: Names, after: Names) -> bool:
    """Whether a literal collection holds all that it held, as often, and a mapping the same under each of its keys."""
    if isinstance(was, ast.Dict) and isinstance(now, ast.Dict):
        pairs = [
            [(normal(key, names.imported) if key else "", normal(value, names.imported)) for key, value in items]
            for names, items in (
                (before, zip(was.keys, was.values, strict=True)),
                (after, zip(now.keys, now.values, strict=True)),
            )
        ]
        keys = [key for key, _ in pairs[1]]
        return len(set(keys)) == len(keys) and "" not in keys and set(pairs[0]) <= set(pairs[1])
    if type(was) is not type(now) or not isinstance(was, ast.List | ast.Tuple | ast.Set):
        return False
    assert isinstance(now, ast.List | ast.Tuple | ast.Set)
    left = [normal(element, after.imported) for element in now.elts]
    for element in was.elts:
        form = normal(element, before.imported)
        if form not in left:
            return False
        left.remove(form)
    return True


def _same(was: ast.expr, now: ast.expr, before: Names, after: Names) -> bool:
    return normal(was, before.imported) == normal(now, after.imported)


def _parameters(was: _Function, now: _Function, before: Names, after: Names, *, is_test: bool) -> Difference | None:
    old, new = (
        [argument.arg for argument in (*one.args.posonlyargs, *one.args.args, *one.args.kwonlyargs)]
        for one in (was, now)
    )
    shape = [(bool(one.args.vararg), bool(one.args.kwarg)) for one in (was, now)]
    gone = [name for name in old if name not in new]
    come = [name for name in new if name not in old]
    if is_test:
        # Which fixtures a test takes is what it stands on; in what order plays no part.
        come = [name for name in come if name not in _QUIET_FIXTURES | {"monkeypatch"}]
        gone = [name for name in gone if name not in _QUIET_FIXTURES]
    elif old != new:
        return Difference(now.lineno, f"{now.name} takes other arguments: {', '.join(new)}")
    if gone or come or shape[0] != shape[1]:
        told = f"{now.name} takes other fixtures: {', '.join(come or gone)}"
        return Difference(now.lineno, told)
    defaults = [[normal(d, names.imported) for d in (*one.args.defaults, *(k for k in one.args.kw_defaults if k))]
                for one, names in ((was, before), (now, after))]  # fmt: skip
    if defaults[0] != defaults[1]:
        return Difference(now.lineno, f"{now.name} has other defaults")
    return None


class _Comparison:
    """Holds the statements of one function against those that it had."""

    def __init__(self, before: Names, after: Names, used: frozenset[str]) -> None:
        self.before = before
        self.after = after
        self.used = used
        self.set_here: set[str] = set()

    def bodies(
        self, was: Sequence[ast.stmt], now: Sequence[ast.stmt], line: int, *, may_go_on: bool
    ) -> Difference | None:
        """Every statement of `was` must come in `now`, in order; what else comes must be harmless there."""
        left = [one for one in was if not _says_nothing(one)]
        at = 0
        for statement in now:
            if _says_nothing(statement):
                continue
            if at == len(left) and may_go_on:
                if odd := self._afterwards(statement):
                    return odd
                continue
            if at < len(left) and self._is_same(left[at], statement):
                at += 1
                continue
            if odd := self._insertion(statement):
                inside = self._within(left[at], statement) if at < len(left) else odd
                if inside is not None:
                    return inside if at < len(left) and _same_header(left[at], statement, self) else odd
                at += 1
        if at < len(left):
            return Difference(line, f"this is gone or changed: {_told(left[at])}")
        return None

    def _is_same(self, was: ast.stmt, now: ast.stmt) -> bool:
        if normal(was, self.before.imported) == normal(now, self.after.imported):
            return True
        if isinstance(was, ast.Assert) and isinstance(now, ast.Assert):
            return is_narrower(was.test, now.test)
        return False

    def _within(self, was: ast.stmt, now: ast.stmt) -> Difference | None:
        """What differs within two blocks of the same head; a difference as a whole where they have another one."""
        if not _same_header(was, now, self):
            return Difference(now.lineno, _told(now))
        for name in ("body", "orelse", "finalbody"):
            old, new = getattr(was, name, []), getattr(now, name, [])
            if odd := self.bodies(old, new, now.lineno, may_go_on=False):
                return odd
        if isinstance(was, ast.Try) and isinstance(now, ast.Try):
            for old, new in zip(was.handlers, now.handlers, strict=True):
                if odd := self.bodies(old.body, new.body, new.lineno, may_go_on=False):
                    return odd
        return None

    def _afterwards(self, node: ast.stmt) -> Difference | None:
        """What comes after all that the test did can take nothing from it, unless it makes another thing of it."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.Yield | ast.YieldFrom):
                return Difference(node.lineno, "it became a generator, which nobody runs")
            if isinstance(inner, ast.Global | ast.Nonlocal):
                return Difference(node.lineno, f"names of others are taken: {_told(inner)}")
            if isinstance(inner, ast.Call) and dotted(inner.func).rpartition(".")[2] in {"skip", "xfail", "skipTest"}:
                return Difference(node.lineno, f"the test is skipped: {_told(node)}")
        return None

    def _insertion(self, node: ast.stmt) -> Difference | None:
        """Why a statement between those that stood is not known to be harmless; None when it is."""
        odd = Difference(node.lineno, f"this is new before what was asked: {_told(node)}")
        if isinstance(node, ast.Pass):
            return None
        if isinstance(node, ast.Assert):
            return None if self._is_safe(node) else odd
        if isinstance(node, ast.Expr):
            return None if self._is_safe(node) and isinstance(node.value, ast.Call | ast.Constant | ast.Await) else odd
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            return None if all(map(self._is_new, targets)) and self._is_safe(node) else odd
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
            return odd if names & self.used or "*" in names else None
        if isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                call = item.context_expr
                last = dotted(call.func).rpartition(".")[2] if isinstance(call, ast.Call) else ""
                if last not in {"raises", "assertRaises", "assertRaisesRegex", "warns", "assertWarns", "subTest"}:
                    return odd
                if item.optional_vars is not None and not self._is_new(item.optional_vars):
                    return odd
            return next(filter(None, map(self._insertion, node.body)), None)
        if isinstance(node, ast.For):
            if node.orelse or not self._is_new(node.target) or not self._is_safe(node.iter):
                return odd
            return next(filter(None, map(self._insertion, node.body)), None)
        return odd

    def _is_new(self, target: ast.expr) -> bool:
        if isinstance(target, ast.Tuple | ast.List):
            return all(map(self._is_new, target.elts))
        return isinstance(target, ast.Name) and target.id not in self.used and not hasattr(builtins, target.id)

    def _is_safe(self, node: ast.AST) -> bool:
        """Whether evaluating it calls nothing that reaches into what stood, as far as names tell."""
        for inner in ast.walk(node):
            if isinstance(inner, ast.NamedExpr | ast.Yield | ast.YieldFrom | ast.Lambda):
                return False
            if isinstance(inner, ast.Attribute) and _DUNDERS_OF_CODE.match(inner.attr):
                return False
            if isinstance(inner, ast.Call):
                name = dotted(inner.func)
                first, last = name.partition(".")[0], name.rpartition(".")[2]
                if last in _REACHING and name != "dict":
                    return False
                if first in self.after.brought or first in {"monkeypatch", "mocker", "sys", "os"}:
                    return False
        return True


def _says_nothing(node: ast.stmt) -> bool:
    return isinstance(node, ast.Pass) or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))


def _same_header(was: ast.stmt, now: ast.stmt, comparison: _Comparison) -> bool:
    """Whether two compound statements differ in their blocks only."""
    if type(was) is not type(now) or not isinstance(
        was, ast.If | ast.For | ast.AsyncFor | ast.While | ast.With | ast.AsyncWith | ast.Try
    ):
        return False
    heads = []
    for node, names in ((was, comparison.before), (now, comparison.after)):
        bare = copy.copy(node)
        for name in ("body", "orelse", "finalbody"):
            if hasattr(bare, name):
                # Whether there is one at all is of the head: an else that was not there is a way round.
                setattr(bare, name, [ast.Pass()] if getattr(node, name) else [])
        if isinstance(bare, ast.Try):
            bare.handlers = [
                ast.ExceptHandler(type=handler.type, name=handler.name, body=[]) for handler in bare.handlers
            ]
        heads.append(normal(bare, names.imported))
    return heads[0] == heads[1]


def _told(node: ast.AST) -> str:
    return ast.unparse(node)[:100]


def loads_only(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a module or class that do more, when it is loaded, than to bind names to what they say."""
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom | ast.Pass | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if _says_nothing(node):
            continue
        if isinstance(node, ast.ClassDef):
            yield from loads_only(node.body)
        elif isinstance(node, ast.If | ast.Try):
            for inner in (node.body, node.orelse, getattr(node, "finalbody", [])):
                yield from loads_only(inner)
            for handler in getattr(node, "handlers", []):
                yield from loads_only(handler.body)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = [
                name for target in targets for name in (target.elts if isinstance(target, ast.Tuple) else [target])
            ]
            calls = [dotted(call.func) for call in nodes_of(node) if isinstance(call, ast.Call)]
            reaching = any(name.rpartition(".")[2] in _REACHING - {"compile", "object", "dict"} for name in calls)
            if not all(isinstance(name, ast.Name) for name in names) or reaching:
                yield node
        else:
            yield node
