"""Pure: how much of a wrong result each assertion of a Python test would still let by.

An assertion has a subject, a strength and perhaps a tolerance; one that is never reached has no strength at all.
"""

from __future__ import annotations

import ast
import copy
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

# What an assertion of that kind pins down.
NOTHING, PRESENT, PARTLY, NEARLY, EXACTLY = 0, 1, 2, 3, 4

_BROAD = frozenset({"Exception", "BaseException", "object"})
_SWALLOWS = _BROAD | {"AssertionError"}
_METHODS = {
    "assertEqual": EXACTLY, "assertEquals": EXACTLY, "assertIs": EXACTLY, "assertDictEqual": EXACTLY,
    "assertListEqual": EXACTLY, "assertTupleEqual": EXACTLY, "assertSetEqual": EXACTLY, "assertSequenceEqual": EXACTLY,
    "assertMultiLineEqual": EXACTLY, "assertIsNone": EXACTLY, "assertCountEqual": NEARLY,
    "assertQuerySetEqual": EXACTLY,
    "assertAlmostEqual": NEARLY, "assertRaises": NEARLY, "assertRaisesRegex": EXACTLY, "assertRegex": NEARLY,
    "assertTrue": PRESENT, "assertFalse": PARTLY, "assertIsNotNone": PRESENT, "assertIsInstance": PRESENT,
    "assert_called_once_with": EXACTLY, "assert_has_calls": EXACTLY, "assert_called_with": NEARLY,
    "assert_called_once": NEARLY, "assert_not_called": NEARLY, "assert_any_call": PARTLY, "assert_called": PRESENT,
    "assert_allclose": NEARLY, "assert_almost_equal": NEARLY, "assert_array_equal": EXACTLY, "assert_equal": EXACTLY,
}  # fmt: skip
_TOLERANCES = ("rel", "abs", "rtol", "atol", "rel_tol", "abs_tol", "delta", "tolerance", "tol", "eps", "epsilon")
_DIGITS = ("places", "decimal", "significant", "ndigits")
_HELPERS = re.compile(r"(?:assert|check|expect|verify|ensure)_\w+\Z")


@dataclass(frozen=True, slots=True)
class Asserted:
    """One assertion: about what (`subject`), how strongly, and the tolerance it allows."""

    subject: str
    strength: int
    text: str
    line: int
    expected: str = ""
    tolerance: tuple[tuple[str, float], ...] = ()
    conditional: bool = False


def asserted(node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[Asserted]:
    """What a test asserts, in the order of its statements."""
    return _Assertions().of(node)


class _Assertions:
    """Walks one test and weighs what it asserts."""

    def __init__(self) -> None:
        self.found: list[Asserted] = []

    def of(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> list[Asserted]:
        self._body(node.body, dead=False, conditional=False)
        return self.found

    def _body(self, body: Sequence[ast.stmt], *, dead: bool, conditional: bool) -> None:
        for statement in body:
            self._statement(statement, dead, conditional)
            if isinstance(statement, ast.Return | ast.Raise | ast.Break | ast.Continue) or _ends(statement):
                dead = True  # nothing behind it is reached

    def _statement(self, node: ast.stmt, dead: bool, conditional: bool) -> None:
        if isinstance(node, ast.Assert):
            for one in of_expression(node.test):
                self._keep(one, node, dead, conditional)
        elif isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign | ast.Return):
            if node.value is not None:
                self._calls(node.value, node, dead, conditional)
        elif isinstance(node, ast.With | ast.AsyncWith):
            swallowed = dead
            for item in node.items:
                context = item.context_expr
                if isinstance(context, ast.Call):
                    name = dotted(context.func)
                    if name.endswith("suppress") and any(
                        dotted(a).rpartition(".")[2] in _SWALLOWS for a in context.args
                    ):
                        swallowed = True
                    raised = _raises(context, name)
                    if raised is not None:
                        self._keep(raised, node, dead, conditional)
            self._body(node.body, dead=swallowed, conditional=conditional)
        elif isinstance(node, ast.If):
            never = isinstance(node.test, ast.Constant) and not node.test.value
            if isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                never = True
            self._body(node.body, dead=dead or never, conditional=True)
            self._body(node.orelse, dead=dead, conditional=conditional or not never)
        elif isinstance(node, ast.For | ast.AsyncFor):
            empty = isinstance(node.iter, ast.List | ast.Tuple | ast.Set) and not node.iter.elts
            self._body(node.body, dead=dead or empty, conditional=conditional)
        elif isinstance(node, ast.While):
            never = isinstance(node.test, ast.Constant) and not node.test.value
            self._body(node.body, dead=dead or never, conditional=conditional)
        elif isinstance(node, ast.Try):
            swallowed = any(map(_swallows, node.handlers))
            self._body(node.body, dead=dead or swallowed, conditional=conditional)
            for handler in node.handlers:
                self._body(handler.body, dead=dead, conditional=True)
            self._body(node.orelse, dead=dead, conditional=conditional)
            self._body(node.finalbody, dead=dead, conditional=conditional)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            self._body(node.body, dead=dead, conditional=conditional)
        elif isinstance(node, ast.Match):
            for case in node.cases:
                self._body(case.body, dead=dead, conditional=True)

    def _calls(self, value: ast.expr, node: ast.stmt, dead: bool, conditional: bool) -> None:
        for call in ast.walk(value):
            if isinstance(call, ast.Call):
                for one in of_call(call):
                    self._keep(one, node, dead, conditional)

    def _keep(self, one: Asserted, node: ast.stmt, dead: bool, conditional: bool) -> None:
        strength = NOTHING if dead else one.strength
        self.found.append(
            Asserted(one.subject, strength, one.text, node.lineno, one.expected, one.tolerance, conditional)
        )


def _ends(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    name = dotted(statement.value.func)
    return name in {"sys.exit", "os._exit", "exit", "quit", "pytest.skip", "pytest.exit", "self.skipTest"}


def _swallows(handler: ast.ExceptHandler) -> bool:
    """Whether an except clause takes a failed assertion and goes on."""
    if handler.type is not None:
        caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if not any(dotted(one).rpartition(".")[2] in _SWALLOWS for one in caught):
            return False
    for inner in ast.walk(handler):
        if isinstance(inner, ast.Raise | ast.Assert):
            return False
        if isinstance(inner, ast.Call) and dotted(inner.func).rpartition(".")[2] in {"fail", "exit"}:
            return False
    return True


def of_expression(test: ast.expr) -> Iterator[Asserted]:
    """What `assert test` pins down."""
    text = ast.unparse(test)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        for value in test.values:
            yield from of_expression(value)
        return
    if isinstance(test, ast.BoolOp):  # or: the weakest decides, and a constant truth decides for good
        parts = [one for value in test.values for one in of_expression(value)]
        weakest = min((one.strength for one in parts), default=NOTHING)
        yield Asserted(parts[0].subject if parts else text, min(weakest, PARTLY), text, 0, text)
        return
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = next(of_expression(test.operand), None)
        yield Asserted(f"not {inner.subject}" if inner else text, PARTLY, text, 0)
        return
    if isinstance(test, ast.Compare):
        yield _of_comparison(test, text)
        return
    if isinstance(test, ast.Constant):
        yield Asserted(text, NOTHING if test.value else PARTLY, text, 0)
        return
    if isinstance(test, ast.Tuple | ast.List | ast.Dict | ast.Lambda | ast.JoinedStr):
        yield Asserted(text, NOTHING, text, 0)  # always true, or about nothing
        return
    if isinstance(test, ast.Call):
        yield _of_predicate(test, text)
        return
    yield Asserted(text, PRESENT, text, 0)


def _of_comparison(test: ast.Compare, text: str) -> Asserted:
    left, operator, right = test.left, test.ops[0], test.comparators[0]
    subject, other = ast.unparse(left), ast.unparse(right)
    if len(test.ops) > 1:
        return Asserted(ast.unparse(right), PARTLY, text, 0, text)
    if isinstance(left, ast.Constant) and not isinstance(right, ast.Constant):
        subject, other, left, right = other, subject, right, left
    if subject == other:
        return Asserted(subject, NOTHING, text, 0)
    if isinstance(operator, ast.Eq | ast.Is):
        tolerance = _tolerance(right) or _tolerance(left)
        anything = dotted(right).rpartition(".")[2] == "ANY"
        strength = PRESENT if anything else NEARLY if tolerance is not None else EXACTLY
        expected = _without_tolerance(right)
        return Asserted(_without_tolerance(left), strength, text, 0, expected, tolerance or ())
    if isinstance(operator, ast.IsNot | ast.NotEq):
        absent = isinstance(right, ast.Constant) and right.value in (None, "", 0, False)
        return Asserted(subject, PRESENT if absent else PARTLY, text, 0, other)
    if isinstance(operator, ast.Lt | ast.LtE | ast.Gt | ast.GtE) and (bound := _number(right)) is not None:
        slack = bound if isinstance(operator, ast.Lt | ast.LtE) else -bound
        return Asserted(subject, PARTLY, text, 0, "", (("bound", slack),))
    return Asserted(subject if not isinstance(operator, ast.In | ast.NotIn) else other, PARTLY, text, 0, subject)


def _of_predicate(call: ast.Call, text: str) -> Asserted:
    name = dotted(call.func).rpartition(".")[2]
    subject = ast.unparse(call.args[0]) if call.args else ast.unparse(call.func)
    if name in {"isinstance", "hasattr", "callable", "bool", "issubclass"}:
        return Asserted(subject, PRESENT, text, 0)
    tolerance = _tolerance(call)
    if tolerance is not None:
        return Asserted(subject, NEARLY, text, 0, "", tolerance)
    if name in {"all", "any"}:
        return Asserted(text.removeprefix(name), NEARLY if name == "all" else PARTLY, text, 0)
    # The truth of a call's answer: weaker than a comparison of that answer.
    return Asserted(text, PRESENT, text, 0)


def of_call(call: ast.Call) -> Iterator[Asserted]:
    """What a call of an assertion method or helper pins down; other calls are none."""
    full = dotted(call.func)
    name = full.rpartition(".")[2]
    text = ast.unparse(call)
    if raised := _raises(call, full):
        if len(call.args) > 1:  # with a callable; the context form is seen at its `with`
            yield raised
        return
    if name in {"assertTrue", "assertFalse", "assert_"} and call.args:
        inner = list(of_expression(call.args[0]))
        weight = PARTLY if name == "assertFalse" else None
        yield from (
            Asserted(one.subject, one.strength if weight is None else min(one.strength, weight), text, 0, one.expected)
            for one in inner
        )
        return
    known = _METHODS.get(name)
    if known is None:
        if not (re.match(r"assert[A-Z_]", name) or _HELPERS.match(name) or full in {"pytest.fail", "self.fail"}):
            return
        known = PARTLY
    if name.startswith("assert_") and isinstance(call.func, ast.Attribute) and "call" in name:
        expected = ", ".join(ast.unparse(argument) for argument in call.args)
        yield Asserted(ast.unparse(call.func.value), known, text, 0, expected)
        return
    arguments = [ast.unparse(argument) for argument in call.args]
    if len(arguments) > 1 and arguments[0] == arguments[1]:
        known = NOTHING
    tolerance = _tolerance(call) or ()
    subject, expected = (
        (arguments[0], arguments[1]) if len(arguments) > 1 else (arguments[0] if arguments else full, "")
    )
    if len(call.args) > 1 and isinstance(call.args[0], ast.Constant) and not isinstance(call.args[1], ast.Constant):
        subject, expected = expected, subject
    yield Asserted(subject, known, text, 0, expected, tolerance)


def _raises(call: ast.Call, name: str) -> Asserted | None:
    last = name.rpartition(".")[2]
    if last not in {"raises", "assertRaises", "assertRaisesRegex", "warns", "assertWarns", "deprecated_call"}:
        return None
    errors = [ast.unparse(call.args[0])] if call.args else ["anything"]
    if call.args and isinstance(call.args[0], ast.Tuple):
        errors = [ast.unparse(element) for element in call.args[0].elts]
    broad = any(error.rpartition(".")[2] in _BROAD for error in errors)
    exact = last == "assertRaisesRegex" or any(keyword.arg == "match" for keyword in call.keywords)
    strength = PRESENT if broad else EXACTLY if exact else NEARLY
    return Asserted("raises", strength, ast.unparse(call), 0, ", ".join(sorted(errors)))


def _tolerance(node: ast.expr) -> tuple[tuple[str, float], ...] | None:
    """How far off a comparison may be, wider is more; None for what allows nothing."""
    if not isinstance(node, ast.Call):
        return None
    name = dotted(node.func).rpartition(".")[2]
    close = {"approx", "isclose", "allclose", "assert_allclose", "assertAlmostEqual", "assert_almost_equal", "round"}
    if name not in close:
        return None
    found = []
    for keyword in node.keywords:
        number = _number(keyword.value)
        if keyword.arg in _TOLERANCES and number is not None:
            found.append((keyword.arg, number))
        elif keyword.arg in _DIGITS and number is not None:
            found.append((keyword.arg, -number))
    positional = {"approx": (1, "rel"), "assertAlmostEqual": (2, "places"), "round": (1, "ndigits")}.get(name)
    if positional and len(node.args) > positional[0]:
        number = _number(node.args[positional[0]])
        if number is not None:
            found.append((positional[1], -number if positional[1] in _DIGITS else number))
    return tuple(sorted(found))


def _without_tolerance(node: ast.expr) -> str:
    if isinstance(node, ast.Call) and dotted(node.func).rpartition(".")[2] in {"approx", "round"} and node.args:
        return ast.unparse(node.args[0])
    return ast.unparse(node)


def _number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def dotted(node: ast.expr) -> str:
    """`a.b.c` of a name or attribute, "" for anything else."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name):
        parts.append(node.id)
    elif parts:
        parts.append("")
    return ".".join(reversed(parts))


# --- one assertion in the place of another ------------------------------------------------------------------------

_TYPES = {"int": int, "str": str, "float": float, "list": list, "dict": dict, "tuple": tuple, "set": set, "bool": bool}


def is_narrower(was: ast.expr, now: ast.expr) -> bool:
    """Whether whatever meets `now` meets `was` too, as far as constants can show it: the same thing, held to less."""
    for weak, strong in ((was, now), *((was, part) for part in _conjuncts(now))):
        if ast.dump(weak) == ast.dump(strong):
            return True
        if _pins(weak, strong) or _closer(weak, strong) or _tighter(weak, strong):
            return True
    return False


def _conjuncts(node: ast.expr) -> Sequence[ast.expr]:
    return node.values if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.And) else ()


def _pins(was: ast.expr, now: ast.expr) -> bool:
    """`now` says that something equals a constant, and `was` holds for that constant."""
    if not (isinstance(now, ast.Compare) and len(now.ops) == 1 and isinstance(now.ops[0], ast.Eq | ast.Is)):
        return False
    try:
        value = ast.literal_eval(now.comparators[0])
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return False
    subject = ast.dump(now.left)
    if ast.dump(was) == subject:
        return bool(value)
    if isinstance(was, ast.Call) and dotted(was.func) == "isinstance" and len(was.args) == 2:
        kind = _TYPES.get(dotted(was.args[1]))
        return ast.dump(was.args[0]) == subject and kind is not None and isinstance(value, kind)
    if not (isinstance(was, ast.Compare) and len(was.ops) == 1 and ast.dump(was.left) == subject):
        return False
    try:
        other = ast.literal_eval(was.comparators[0])
        return _HOLDS[type(was.ops[0])](value, other)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError, KeyError):
        return False


_HOLDS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.In: lambda one, other: one in other,
    ast.NotIn: lambda one, other: one not in other,
    ast.Lt: lambda one, other: bool(one < other),
    ast.LtE: lambda one, other: bool(one <= other),
    ast.Gt: lambda one, other: bool(one > other),
    ast.GtE: lambda one, other: bool(one >= other),
    ast.NotEq: lambda one, other: bool(one != other),
    ast.IsNot: lambda one, other: other is None and one is not None,
}


def _closer(was: ast.expr, now: ast.expr) -> bool:
    """The same comparison with a smaller tolerance, or with none."""
    one, other = next(of_expression(was), None), next(of_expression(now), None)
    if one is None or other is None or one.subject != other.subject or one.strength != NEARLY or not one.tolerance:
        return False
    had, has = dict(one.tolerance), dict(other.tolerance)
    if other.strength == EXACTLY:
        return one.expected == other.expected != ""
    same_words = _without_numbers(was) == _without_numbers(now)
    return other.strength == NEARLY and same_words and had.keys() == has.keys() and all(has[k] <= had[k] for k in had)


def _without_numbers(node: ast.expr) -> str:
    """The expression with its tolerances taken out."""
    bare = copy.deepcopy(node)
    for call in ast.walk(bare):
        if isinstance(call, ast.Call):
            call.keywords = [one for one in call.keywords if one.arg not in {*_TOLERANCES, *_DIGITS}]
    return ast.dump(bare)


def _tighter(was: ast.expr, now: ast.expr) -> bool:
    """The same bound, further in."""
    if not (isinstance(was, ast.Compare) and isinstance(now, ast.Compare) and len(was.ops) == len(now.ops) == 1):
        return False
    low, high = _number(was.comparators[0]), _number(now.comparators[0])
    if (
        low is None
        or high is None
        or ast.dump(was.left) != ast.dump(now.left)
        or type(was.ops[0]) is not type(now.ops[0])
    ):
        return False
    if isinstance(was.ops[0], ast.Gt | ast.GtE):
        return high >= low
    return isinstance(was.ops[0], ast.Lt | ast.LtE) and high <= low
