"""Pure: Python code in a form that is equal for what is only written differently.

Comments and layout are gone with the text. Here go docstrings without examples, annotations of functions, messages of
assertions; an imported name stands under its full one, an assertion of unittest as the comparison that it makes, and a
constant at the right of `==`. Names of a function's own variables can be numbered, so that a renamed one is the same.
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Mapping, Sequence

_COMPARED: Mapping[str, type[ast.cmpop]] = {
    "assertEqual": ast.Eq, "assertEquals": ast.Eq, "assertNotEqual": ast.NotEq, "assertIs": ast.Is,
    "assertIsNot": ast.IsNot, "assertIn": ast.In, "assertNotIn": ast.NotIn, "assertGreater": ast.Gt,
    "assertGreaterEqual": ast.GtE, "assertLess": ast.Lt, "assertLessEqual": ast.LtE, "assertListEqual": ast.Eq,
    "assertDictEqual": ast.Eq, "assertTupleEqual": ast.Eq, "assertSetEqual": ast.Eq, "assertMultiLineEqual": ast.Eq,
}  # fmt: skip
_Function = ast.FunctionDef | ast.AsyncFunctionDef


def imported(body: Sequence[ast.stmt]) -> dict[str, str]:
    """The names that these statements import, each with its full name; `*` stands for a star of its module."""
    found: dict[str, str] = {}
    for node in body:
        if isinstance(node, ast.Import):
            for alias in node.names:
                found[alias.asname or alias.name.partition(".")[0]] = (
                    alias.name if alias.asname else alias.name.partition(".")[0]
                )
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            for alias in node.names:
                found[f"*{module}" if alias.name == "*" else alias.asname or alias.name] = f"{module}.{alias.name}"
    return found


_NO_NODES = frozenset({"ctx", "op", "ops", "kind", "type_comment", "id", "attr", "name"})


def nodes_of(tree: ast.AST) -> list[ast.AST]:
    """Every node, in no order to rely on; ast.walk, at a third of its time."""
    found: list[ast.AST] = []
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        found.append(node)
        for name in node._fields:
            if name in _NO_NODES:
                continue
            inner = getattr(node, name, None)
            if inner.__class__ is list:
                waiting += [one for one in inner if isinstance(one, ast.AST)]
            elif isinstance(inner, ast.AST):
                waiting.append(inner)
    return found


class _Normal(ast.NodeTransformer):
    """Rewrites a copy of a tree in place."""

    def __init__(self, names: Mapping[str, str], own: Mapping[str, str]) -> None:
        self.names = names
        self.own = own
        self.depth = 0

    def visit_Name(self, node: ast.Name) -> ast.AST:
        node.id = self.own.get(node.id) or self.names.get(node.id, node.id)
        return node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.value, ast.Name) and ("." in node.value.id or node.value.id in self.names.values()):
            return ast.Name(id=f"{node.value.id}.{node.attr}", ctx=ast.Load())
        return node

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        return self._function(node)

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> ast.AST:
        return self._function(node)

    def _function(self, node: _Function) -> ast.AST:
        node.returns = None
        node.body = _without_docstring(node.body)
        self.depth += 1
        self.generic_visit(node)
        self.depth -= 1
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.body = _without_docstring(node.body)
        return self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        if not self.depth or not isinstance(node.target, ast.Name) or node.value is None:
            return self.generic_visit(node)
        return self.generic_visit(ast.Assign(targets=[node.target], value=node.value))

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        node.msg = None
        return self.generic_visit(node)

    def visit_Expr(self, node: ast.Expr) -> ast.AST:
        call = node.value
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and _is_self(call.func.value):
            test = _compared(call.func.attr, call.args, call.keywords)
            if test is not None:
                return self.visit_Assert(ast.Assert(test=test, msg=None))
        return self.generic_visit(node)

    def visit_Compare(self, node: ast.Compare) -> ast.AST:
        self.generic_visit(node)
        if len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq | ast.NotEq):
            left, right = node.left, node.comparators[0]
            if _is_literal(left) and not _is_literal(right):
                node.left, node.comparators = right, [left]
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        node.kind = None
        return node


def _without_docstring(body: list[ast.stmt]) -> list[ast.stmt]:
    first = body[0] if body else None
    if not (isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)):
        return body
    if not isinstance(first.value.value, str) or ">>>" in first.value.value:
        return body
    return body[1:] or [ast.Pass()]


def _is_self(node: ast.expr) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    return True


def _compared(name: str, args: Sequence[ast.expr], keywords: Sequence[ast.keyword]) -> ast.expr | None:
    """What an assertion method compares, as an expression; None where that cannot be said."""
    if any(keyword.arg != "msg" for keyword in keywords):
        return None
    if name in _COMPARED and 2 <= len(args) <= 3:
        return ast.Compare(left=args[0], ops=[_COMPARED[name]()], comparators=[args[1]])
    if not 1 <= len(args) <= 2:
        return None
    if name == "assertTrue":
        return args[0]
    if name == "assertFalse":
        return ast.UnaryOp(op=ast.Not(), operand=args[0])
    if name in {"assertIsNone", "assertIsNotNone"}:
        operator = ast.Is() if name == "assertIsNone" else ast.IsNot()
        return ast.Compare(left=args[0], ops=[operator], comparators=[ast.Constant(value=None)])
    return None


def normal(node: ast.AST, names: Mapping[str, str]) -> str:
    """The form of a statement or expression; `names` are the imported ones (see `imported`)."""
    return ast.dump(_Normal(names, {}).visit(copy.deepcopy(node)))


def numbered(node: _Function, names: Mapping[str, str]) -> str:
    """The form of a function whose own variables are numbered: equal for one in which they have other names."""
    inside = [inner for inner in _own_scope(node) if isinstance(inner, ast.Name)]
    fixed = {
        name for inner in ast.walk(node) if isinstance(inner, ast.Global | ast.Nonlocal) for name in inner.names
    } | {argument.arg for inner in ast.walk(node) if isinstance(inner, ast.arguments) for argument in _arguments(inner)}
    own_scope = {id(name) for name in inside}
    fixed |= {
        inner.id
        for inner in ast.walk(node)
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store) and id(inner) not in own_scope
    }
    numbers: dict[str, str] = {}
    for name in sorted(inside, key=lambda one: (one.lineno, one.col_offset)):
        if isinstance(name.ctx, ast.Store) and name.id not in fixed and name.id not in numbers:
            numbers[name.id] = f"${len(numbers)}"
    return ast.dump(_Normal(names, numbers).visit(copy.deepcopy(node)))


def _own_scope(node: _Function) -> list[ast.AST]:
    """What stands in a function itself, not in functions, classes, lambdas or comprehensions within it."""
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(node.body)
    inner_scopes = (
        ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda,
        ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp,
    )  # fmt: skip
    while waiting:
        one = waiting.pop()
        found.append(one)
        if not isinstance(one, inner_scopes):
            waiting += ast.iter_child_nodes(one)
    return found


def _arguments(node: ast.arguments) -> list[ast.arg]:
    return [
        *node.posonlyargs, *node.args, *node.kwonlyargs,
        *(one for one in (node.vararg, node.kwarg) if one is not None),
    ]  # fmt: skip
