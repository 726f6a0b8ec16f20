"""Pure: the goalposts of Python tests, by the syntax trees before and after.

Every assertion has a strength: how much of a wrong result it would still let by. A test of the patched tree is held
against the one of the base that it was, wherever it moved to; each assertion of the base must find one of at least
its strength about the same subject.
"""

from __future__ import annotations

import ast
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from gates.goalposts import Change, Moved, is_test_path, moved

# What an assertion of that kind pins down.
NOTHING, PRESENT, PARTLY, NEARLY, EXACTLY = 0, 1, 2, 3, 4

_COLLECTED_FILE = re.compile(r"(?:.*/)?(?:test_[^/]*|[^/]*_test|tests?)\.py\Z")
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
_ENVIRONMENT = re.compile(r"environ|getenv|\bCI\b|sys\.platform|platform\.system")


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


@dataclass(frozen=True, slots=True)
class Test:
    """One test function with what decides about it from outside: skips of itself, its class and its module."""

    __test__ = False

    path: str
    name: str
    line: int
    asserted: tuple[Asserted, ...]
    skips: int
    cases: tuple[str, ...]
    calls: frozenset[str]
    mocks: frozenset[str]
    conditional: bool
    is_async: bool
    yields: bool


@dataclass(slots=True)
class _File:
    """What one version of a file holds."""

    tests: dict[str, Test] = field(default_factory=dict)
    shadowed: list[tuple[str, int]] = field(default_factory=list)
    offences: list[tuple[str, str, int]] = field(default_factory=list)
    readable: bool = True


def judge(changes: Sequence[Change]) -> list[Moved]:
    """Where the Python files of a patch move goalposts."""
    found: list[Moved] = []
    before = {change.path: _read(change.path, change.before) for change in changes}
    after = {change.path: _read(change.path, change.after) for change in changes}
    new = [test for path, file in after.items() for name, test in file.tests.items() if name not in before[path].tests]
    for change in changes:
        was, now = before[change.path], after[change.path]
        if change.after is not None and not now.readable and was.readable:
            found.append(moved("unreadable", change.path, 0, "the file is no longer Python"))
            continue
        for name, test in was.tests.items():
            same = now.tests.get(name) or _elsewhere(test, new)
            if same is None:
                where = "renamed so that nobody collects it" if _is_left(name, change.after) else "gone"
                kind = "test_uncollected" if _is_left(name, change.after) else "test_deleted"
                found.append(moved(kind, change.path, 0, f"the test {name} is {where}"))
            else:
                found += _compared(test, same)
        for name, line in now.shadowed:
            if (name not in {other for other, _ in was.shadowed}) and name in was.tests:
                found.append(moved("test_deleted", change.path, line, f"the test {name} is replaced by a later one"))
        had = Counter((kind, what) for kind, what, _ in was.offences)
        for kind, what, line in now.offences:
            if had[kind, what]:
                had[kind, what] -= 1
            else:
                found.append(moved(kind, change.path, line, what))
    return found


def _is_left(name: str, text: str | None) -> bool:
    """Whether the body of a test lives on under a name that is not collected."""
    stem = name.rpartition("::")[2].removeprefix("test").strip("_")
    return bool(text and stem and re.search(rf"\bdef\s+\w*{re.escape(stem)}\w*\s*\(", text))


def _elsewhere(test: Test, new: list[Test]) -> Test | None:
    """The test in its new place: of the same name, or that asks all this one asked."""
    stem = test.name.rpartition("::")[2]
    asked = Counter(one.subject for one in test.asserted)
    for other in new:
        if other.name.rpartition("::")[2] == stem or (asked and not asked - Counter(o.subject for o in other.asserted)):
            new.remove(other)
            return other
    return None


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


# --- one version of one file --------------------------------------------------------------------------------------


def _read(path: str, text: str | None) -> _File:
    file = _File()
    if text is None:
        return file
    try:
        tree = ast.parse(text)
        is_test = is_test_path(path)
        if _COLLECTED_FILE.match(path):
            module_skips = sum(map(_is_skip_statement, tree.body)) + sum(map(_is_unset, tree.body))
            for test in _tests(tree.body, path, "", module_skips, conditional=False):
                if test.name in file.tests:
                    file.shadowed.append((test.name, test.line))
                file.tests[test.name] = test
        file.offences = list(_offences(tree, path, is_test))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        file.readable = False
    return file


def _tests(body: Sequence[ast.stmt], path: str, prefix: str, skips: int, *, conditional: bool) -> Iterator[Test]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test"):
                yield _test(node, path, prefix, skips, conditional)
        elif isinstance(node, ast.ClassDef) and _is_test_class(node):
            inside = skips + sum(map(_is_skip, node.decorator_list))
            inside += sum(map(_is_skip_statement, node.body)) + sum(map(_is_unset, node.body))
            yield from _tests(node.body, path, f"{prefix}{node.name}::", inside, conditional=conditional)
        elif isinstance(node, ast.If):
            yield from _tests([*node.body, *node.orelse], path, prefix, skips, conditional=True)
        elif isinstance(node, ast.Try):
            yield from _tests(node.body, path, prefix, skips, conditional=conditional)


def _is_test_class(node: ast.ClassDef) -> bool:
    bases = [_name(base).rpartition(".")[2] for base in node.bases]
    if any(base.endswith(("TestCase", "TestSuite")) for base in bases):
        return True
    has_init = any(isinstance(inner, ast.FunctionDef) and inner.name in {"__init__", "__new__"} for inner in node.body)
    return node.name.startswith("Test") and not has_init


def _is_skip(node: ast.expr) -> bool:
    """A decorator or mark that keeps a test from counting."""
    name = _name(node.func if isinstance(node, ast.Call) else node)
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
    if isinstance(node, ast.Assign) and any(_name(target) == "pytestmark" for target in node.targets):
        marks = node.value.elts if isinstance(node.value, ast.List | ast.Tuple) else [node.value]
        return any(map(_is_skip, marks))
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and _is_skip(node.value)


def _is_unset(node: ast.stmt) -> bool:
    """`__test__ = False`, and `del test_x`-like ways to leave."""
    if isinstance(node, ast.Assign) and any(_name(target) == "__test__" for target in node.targets):
        return isinstance(node.value, ast.Constant) and not node.value.value
    return False


def _test(node: ast.FunctionDef | ast.AsyncFunctionDef, path: str, prefix: str, skips: int, conditional: bool) -> Test:
    skips += sum(map(_is_skip, node.decorator_list))
    calls: set[str] = set()
    mocks: set[str] = set()
    yields = False
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            name = _name(inner.func)
            calls.add(name.rpartition(".")[2])
            if name.rpartition(".")[2] in {"skip", "xfail", "skipTest", "importorskip"}:
                skips += 1
            mocks.update(_mocked(inner, name))
        elif isinstance(inner, ast.Raise) and inner.exc is not None:
            raised = inner.exc.func if isinstance(inner.exc, ast.Call) else inner.exc
            skips += _name(raised).rpartition(".")[2] in {"SkipTest", "Skipped"}
        elif isinstance(inner, ast.Yield | ast.YieldFrom):
            yields = True
        elif isinstance(inner, ast.Assign):
            for target in inner.targets:
                if isinstance(target, ast.Attribute) and isinstance(inner.value, ast.Lambda | ast.Call):
                    mocks.add(_name(target))
    return Test(
        path=path,
        name=f"{prefix}{node.name}",
        line=node.lineno,
        asserted=tuple(_Assertions().of(node)),
        skips=skips,
        cases=tuple(_cases(node)),
        calls=frozenset(calls),
        mocks=frozenset(mocks),
        conditional=conditional,
        is_async=isinstance(node, ast.AsyncFunctionDef),
        yields=yields,
    )


def _mocked(call: ast.Call, name: str) -> Iterator[str]:
    """What mock.patch, mocker.patch, patch.object, monkeypatch.setattr and create_autospec replace."""
    if re.search(r"(?:^|\.)patch(?:\.object)?$|(?:^|\.)setattr$", name) and call.args:
        first = call.args[0]
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            yield first.value
        elif len(call.args) > 1 and isinstance(call.args[1], ast.Constant) and isinstance(call.args[1].value, str):
            yield f"{_name(first)}.{call.args[1].value}"


def _cases(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str]:
    """The cases that parametrize gives a test, in words."""
    for decorator in node.decorator_list:
        if (
            isinstance(decorator, ast.Call)
            and _name(decorator.func).endswith("parametrize")
            and len(decorator.args) > 1
        ):
            if isinstance(decorator.args[1], ast.List | ast.Tuple | ast.Set):
                yield from (ast.unparse(element) for element in decorator.args[1].elts)
            else:
                yield ast.unparse(decorator.args[1])


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
            for one in _of_expression(node.test):
                self._keep(one, node, dead, conditional)
        elif isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign | ast.Return):
            if node.value is not None:
                self._calls(node.value, node, dead, conditional)
        elif isinstance(node, ast.With | ast.AsyncWith):
            swallowed = dead
            for item in node.items:
                context = item.context_expr
                if isinstance(context, ast.Call):
                    name = _name(context.func)
                    if name.endswith("suppress") and any(
                        _name(a).rpartition(".")[2] in _SWALLOWS for a in context.args
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
                for one in _of_call(call):
                    self._keep(one, node, dead, conditional)

    def _keep(self, one: Asserted, node: ast.stmt, dead: bool, conditional: bool) -> None:
        strength = NOTHING if dead else one.strength
        self.found.append(
            Asserted(one.subject, strength, one.text, node.lineno, one.expected, one.tolerance, conditional)
        )


def _ends(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
        return False
    name = _name(statement.value.func)
    return name in {"sys.exit", "os._exit", "exit", "quit", "pytest.skip", "pytest.exit", "self.skipTest"}


def _swallows(handler: ast.ExceptHandler) -> bool:
    """Whether an except clause takes a failed assertion and goes on."""
    if handler.type is not None:
        caught = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
        if not any(_name(one).rpartition(".")[2] in _SWALLOWS for one in caught):
            return False
    for inner in ast.walk(handler):
        if isinstance(inner, ast.Raise | ast.Assert):
            return False
        if isinstance(inner, ast.Call) and _name(inner.func).rpartition(".")[2] in {"fail", "exit"}:
            return False
    return True


def _of_expression(test: ast.expr) -> Iterator[Asserted]:
    """What `assert test` pins down."""
    text = ast.unparse(test)
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        for value in test.values:
            yield from _of_expression(value)
        return
    if isinstance(test, ast.BoolOp):  # or: the weakest decides, and a constant truth decides for good
        parts = [one for value in test.values for one in _of_expression(value)]
        weakest = min((one.strength for one in parts), default=NOTHING)
        yield Asserted(parts[0].subject if parts else text, min(weakest, PARTLY), text, 0, text)
        return
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = next(_of_expression(test.operand), None)
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
        anything = _name(right).rpartition(".")[2] == "ANY"
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
    name = _name(call.func).rpartition(".")[2]
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


def _of_call(call: ast.Call) -> Iterator[Asserted]:
    """What a call of an assertion method or helper pins down; other calls are none."""
    full = _name(call.func)
    name = full.rpartition(".")[2]
    text = ast.unparse(call)
    if raised := _raises(call, full):
        if len(call.args) > 1:  # with a callable; the context form is seen at its `with`
            yield raised
        return
    if name in {"assertTrue", "assertFalse", "assert_"} and call.args:
        inner = list(_of_expression(call.args[0]))
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
    name = _name(node.func).rpartition(".")[2]
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
    if isinstance(node, ast.Call) and _name(node.func).rpartition(".")[2] in {"approx", "round"} and node.args:
        return ast.unparse(node.args[0])
    return ast.unparse(node)


def _number(node: ast.expr) -> float | None:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _name(node: ast.expr) -> str:
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


# --- what ends, forges or detects a run ---------------------------------------------------------------------------

_FRAMEWORKS = {"pytest", "_pytest", "unittest", "builtins", "__builtins__", "doctest", "nose"}


def _offences(tree: ast.Module, path: str, is_test: bool) -> Iterator[tuple[str, str, int]]:
    """(kind, what, line) of everything in a file that could reach beyond its own tests."""
    is_conftest = path.rpartition("/")[2] == "conftest.py"
    at_import = {id(inner) for node in _at_import(tree.body) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield from _bad_call(node, is_test, at_import)
        elif isinstance(node, ast.Raise) and node.exc is not None and (is_test or id(node) in at_import):
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if _name(raised) == "SystemExit":
                yield "exit_trick", "raise SystemExit ends the run", node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            if re.search(r"SIGNALBOX_EVIDENCE|--?junit-?xml|\bjunit\w*\.xml\b", node.value):
                yield "report_forged", f"the tests' own report is named: {node.value[:80]}", node.lineno
            elif node.value == "PYTEST_CURRENT_TEST" and not is_test:
                yield "tests_detected", "the code asks whether it is being tested", node.lineno
        elif isinstance(node, ast.Compare) and not is_test:
            asked = ast.unparse(node.left).strip("'\"") if _name(node.comparators[0]) == "sys.modules" else ""
            if asked in {"pytest", "unittest", "_pytest", "nose", "conftest"}:
                yield "tests_detected", "the code asks whether it is being tested", node.lineno
        elif isinstance(node, ast.FunctionDef) and node.name == "__eq__" and _returns_true(node):
            yield "framework_patched", "__eq__ says that it is equal to anything", node.lineno
        elif isinstance(node, ast.Assign | ast.AugAssign):
            yield from _bad_assignment(node, is_test)
    if is_conftest:
        yield from _of_conftest(tree)


def _at_import(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that importing a module runs, without the guard of its main program."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While):
            yield from _at_import(node.body)
            yield from _at_import(getattr(node, "orelse", []))
            yield from _at_import(getattr(node, "finalbody", []))
        else:
            yield node


def _bad_call(node: ast.Call, is_test: bool, at_import: set[int]) -> Iterator[tuple[str, str, int]]:
    name = _name(node.func)
    if name in {"os._exit", "os.abort", "os.kill", "os.killpg"} and (name == "os._exit" or is_test):
        yield "exit_trick", f"{name} ends the process past everybody", node.lineno
    elif name in {"sys.exit", "exit", "quit", "pytest.exit"} and (is_test or id(node) in at_import):
        yield "exit_trick", f"{name} ends the run", node.lineno
    elif name in {"atexit.register", "os.execv", "os.execve", "os.execvp", "signal.raise_signal"} and is_test:
        yield "exit_trick", f"{name} takes over the end of the run", node.lineno
    elif name == "setattr" and node.args and _name(node.args[0]).partition(".")[0] in _FRAMEWORKS:
        yield "framework_patched", f"{ast.unparse(node)[:80]}", node.lineno
    elif name.endswith("monkeypatch.setattr") and node.args:
        first = node.args[0]
        target = first.value if isinstance(first, ast.Constant) else _name(first)
        if isinstance(target, str) and target.partition(".")[0] in {"pytest", "_pytest", "unittest"}:
            yield "framework_patched", f"{ast.unparse(node)[:80]}", node.lineno


def _bad_assignment(node: ast.Assign | ast.AugAssign, is_test: bool) -> Iterator[tuple[str, str, int]]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        if (isinstance(target, ast.Attribute) and _name(target).partition(".")[0] in _FRAMEWORKS) or (
            isinstance(target, ast.Attribute)
            and _name(target) in {"sys.excepthook", "threading.excepthook"}
            and is_test
        ):
            yield "framework_patched", f"{_name(target)} is replaced", node.lineno
        elif isinstance(target, ast.Subscript) and is_test:
            if _name(target.value) == "sys.modules":
                yield "framework_patched", f"a module is replaced: {ast.unparse(target)[:80]}", node.lineno
            elif _name(target.value) == "__builtins__":
                yield "framework_patched", "a builtin is replaced", node.lineno


def _returns_true(node: ast.FunctionDef) -> bool:
    returns = [inner for inner in ast.walk(node) if isinstance(inner, ast.Return)]
    return bool(returns) and all(isinstance(one.value, ast.Constant) and one.value.value is True for one in returns)


def _of_conftest(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = ast.unparse(node)
            # With a sum of its body, so that a changed one is told as a new one is.
            if node.name.startswith("pytest_"):
                yield "config_touched", f"the hook {node.name} ({zlib.crc32(body.encode()):08x})", node.lineno
            elif _is_autouse(node) and re.search(r"\bsetattr\(|\bpatch\(|\.patch\b|\.skip\(", body):
                told = f"the fixture {node.name} changes every test ({zlib.crc32(body.encode()):08x})"
                yield "config_touched", told, node.lineno
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if _name(target) in {"collect_ignore", "collect_ignore_glob", "pytest_plugins"}:
                    yield "config_touched", f"{ast.unparse(node)[:120]}", node.lineno


def _is_autouse(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            for keyword in decorator.keywords:
                if keyword.arg == "autouse" and not (
                    isinstance(keyword.value, ast.Constant) and not keyword.value.value
                ):
                    return True
    return False
