"""Pure: what Python code reaches beyond itself: the end of the process, the run's own report, whether it is under test,
and the parts of the runner.

Names are followed through imports, aliases, getattr, `__dict__` and constants that are put together; a hard end of the
process is told wherever it is named, called or not.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from functools import cached_property

from gates.goalposts.assertions import dotted
from gates.goalposts.normal import nodes_of
from gates.goalposts.paths import is_collected

_FRAMEWORKS = frozenset({"pytest", "_pytest", "unittest", "builtins", "__builtins__", "doctest", "nose", "pluggy"})
# What ends a process past everybody who waits for its end.
_HARD_ENDS = re.compile(
    r"(?:os|posix|nt)\.(?:_exit|abort)\Z|faulthandler\._\w+\Z|_testcapi\.\w+\Z"
    r"|ctypes\.(?:string_at|pythonapi\.(?:Py_(?:Exit|Finalize\w*|FatalError)|_Py_\w*Fatal\w*|abort|exit|_exit))\Z"
)
_REPLACES = re.compile(r"(?:os|posix)\.(?:exec(?:l|le|lp|lpe|v|ve|vp|vpe)|_?spawnv?\w*P_OVERLAY)\Z")
_SIGNALS = frozenset({"os.kill", "os.killpg", "posix.kill", "signal.raise_signal", "signal.pthread_kill"})
_SOFT_ENDS = frozenset(
    {"sys.exit", "exit", "quit", "pytest.exit", "_pytest.outcomes.exit", "builtins.exit", "builtins.quit"}
)
_END_IN_C = frozenset(
    {"_exit", "_Exit", "exit", "quick_exit", "abort", "raise_", "kill", "ExitProcess", "TerminateProcess"}
)
# What a runner takes for a test that need not count.
_SKIPS = re.compile(
    r"(?:unittest\.(?:case\.)?SkipTest|(?:pytest|_pytest\.outcomes)\.(?:skip|xfail|importorskip|Skipped|XFailed))(?:\.|\(|\Z)"
)
_ABOUT_TESTS = re.compile(r"_?pytest|PYTEST|unittest|(?:^|/)tests?(?:_|/|\Z)")
_DETECTED = frozenset({"pytest", "unittest", "_pytest", "nose", "conftest"})
_REPORT = re.compile(r"SIGNALBOX_EVIDENCE")
_REPORT_OF_TESTS = re.compile(r"--?junit-?xml|\bjunit[\w-]*\.xml\b|_pytest\.junitxml|\bxmlpath\b")
_PROGRAM = re.compile(r"(?:.*/)?(?:__main__|manage|setup)\.py\Z|(?:.*/)?(?:bin|scripts|tools)/[^/]+\Z")

_LOOKED_AT = frozenset({
    ast.Import, ast.ImportFrom, ast.Assign, ast.AugAssign, ast.AnnAssign, ast.Delete, ast.NamedExpr, ast.Name,
    ast.Attribute, ast.Subscript, ast.Call, ast.Raise, ast.Constant, ast.Compare, ast.FunctionDef, ast.Dict,
})  # fmt: skip

Offence = tuple[str, str, int]
"""(kind, what, line)."""


# One of these words stands in whatever is looked for here, however its names are put together.
_WORTH_READING = re.compile(
    r"exit|abort|quit|SystemExit|kill|signal|exec|faulthandler|ctypes|testcapi|modules|pytest|PYTEST|unittest|nose|builtins"
    r"|doctest|pluggy|SIGNALBOX|junit|xmlpath|__(?:eq|ne|dict|import)__|_called_from_test|mock|getattr|setattr|vars|import_module"
    r"|attrgetter|settrace|setprofile|excepthook|posix|spawn|SkipTest|Skipped|_getframe|f_locals|f_globals|inspect|__code__|argv"
    r"|meta_path|tests?\b"
)


def is_worth_reading(text: str) -> bool:
    """Whether a file could hold anything that `offences` tells; quick, and right when it says no."""
    return bool(_WORTH_READING.search(text)) or bool(re.search(r"^\s*\w+\.\w+\s*=(?!=)", text, re.MULTILINE))


def offences(tree: ast.Module, path: str, is_test: bool) -> Iterator[Offence]:
    """Everything in a file that could reach beyond its own code."""
    reach = _Reach(tree, path, is_test)
    yield from reach.found()


class _Reach:
    def __init__(self, tree: ast.Module, path: str, is_test: bool) -> None:
        self.tree = tree
        self.path = path
        self.is_test = is_test
        self.is_support = is_test and path.rpartition("/")[2] == "conftest.py"
        self.names: dict[str, str] = {}
        self.modules: set[str] = set()
        self.nodes = [node for node in nodes_of(tree) if node.__class__ in _LOOKED_AT]
        self._learn()

    @cached_property
    def at_import(self) -> set[int]:
        """What runs when the file is loaded."""
        return {id(inner) for node in _at_import(self.tree.body) for inner in nodes_of(node)}

    @cached_property
    def restored(self) -> set[int]:
        """What is put back."""
        return _restored(self.tree)

    @cached_property
    def unexpected(self) -> set[int]:
        """Ends in tests themselves that nobody waits for."""
        return _unexpected_ends(self.tree) if is_collected(self.path) else set()

    def _learn(self) -> None:
        """What the file's names stand for. Twice, since an alias may stand before what it is an alias of."""
        assigned: list[tuple[str, ast.expr]] = []
        for node in self.nodes:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.asname or alias.name.partition(".")[0]
                    self.names[name] = alias.name if alias.asname else name
                    self.modules.add(name)
            elif isinstance(node, ast.ImportFrom) and not node.level:
                for alias in node.names:
                    self.names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
            elif isinstance(node, ast.Assign):
                assigned += [(target.id, node.value) for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.NamedExpr):
                assigned.append((node.target.id, node.value))
        for _ in range(2):
            for name, value in assigned:
                full = self.full(value)
                if full and full.partition(".")[0] in _KNOWN and name not in self.modules:
                    self.names[name] = full

    def full(self, node: ast.expr) -> str:
        """The full name of what an expression says, "" where that cannot be told."""
        if isinstance(node, ast.Name):
            return self.names.get(node.id, node.id)
        if isinstance(node, ast.Attribute):
            inner = self.full(node.value)
            if node.attr == "__dict__":
                return inner
            return f"{inner}.{node.attr}" if inner else ""
        if isinstance(node, ast.Subscript):
            inner, word = self.full(node.value), _text(node.slice)
            if inner == "sys.modules" and word:
                return word
            return f"{inner}.{word}" if inner and word is not None and word.isidentifier() else ""
        if isinstance(node, ast.Call):
            return self._called(node)
        return ""

    def _called(self, node: ast.Call) -> str:
        function = self.full(node.func)
        words = [_text(argument) for argument in node.args]
        if function in {"getattr", "builtins.getattr", "operator.getitem"} and len(node.args) > 1 and words[1]:
            inner = self.full(node.args[0])
            return f"{inner}.{words[1]}" if inner else ""
        if function in {"__import__", "builtins.__import__", "importlib.import_module", "importlib.__import__"}:
            return words[0] or "" if words else ""
        if function in {"sys.modules.get", "sys.modules.__getitem__"} and words and words[0]:
            return words[0]
        if function in {"vars", "builtins.vars"} and node.args:
            return self.full(node.args[0])
        if function.startswith("operator.attrgetter") and words and words[0]:
            return f"?.{words[0]}"
        if function.startswith("ctypes.") and function.rpartition(".")[2] in {"CDLL", "PyDLL", "WinDLL", "LoadLibrary"}:
            return "ctypes.library"
        return f"{function}()" if function else ""

    def found(self) -> Iterator[Offence]:
        """Every offence, in the order of the tree's walk; the same mention once."""
        told: set[tuple[str, int]] = set()
        for node in sorted(self.nodes, key=lambda one: getattr(one, "lineno", 0)):
            for kind, what, line in self._of(node):
                if (kind, line) not in told:
                    told.add((kind, line))
                    yield kind, what, line

    def _of(self, node: ast.AST) -> Iterator[Offence]:
        if isinstance(node, ast.Name | ast.Attribute | ast.Subscript | ast.Call):
            yield from self._mentioned(node)
        if isinstance(node, ast.ImportFrom) and not node.level:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if _HARD_ENDS.match(full):
                    yield "exit_trick", f"{full} ends the process past everybody", node.lineno
                elif not self.is_test and full.startswith(("unittest.mock.", "mock.")) and not _is_helper(self.path):
                    yield "framework_patched", f"the product answers with {full}", node.lineno
                elif full.startswith("_pytest.junitxml"):
                    yield "report_forged", "the writer of the report is taken", node.lineno
        if isinstance(node, ast.Call):
            yield from self._call(node)
            pairs = [(keyword.arg, keyword.value) for keyword in node.keywords]
            yield from self._compares_all(pairs, node.lineno)
        elif isinstance(node, ast.Dict):
            pairs = [(_text(key), value) for key, value in zip(node.keys, node.values, strict=True) if key is not None]
            yield from self._compares_all(pairs, node.lineno)
        elif isinstance(node, ast.Raise) and node.exc is not None:
            raised = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
            if self.full(raised) in {"SystemExit", "builtins.SystemExit"} and self._ends_here(node):
                yield "exit_trick", "raise SystemExit ends the run", node.lineno
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from self._word(node.value, node.lineno)
        elif isinstance(node, ast.Compare):
            yield from self._compared(node)
        elif isinstance(node, ast.FunctionDef) and node.name in {"__eq__", "__ne__"} and _is_always(node):
            yield "framework_patched", f"{node.name} says the same of anything", node.lineno
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete):
            yield from self._assigned(node)

    @staticmethod
    def _compares_all(pairs: Sequence[tuple[str | None, ast.expr]], line: int) -> Iterator[Offence]:
        """Comparisons that are given as functions without a name."""
        for name, value in pairs:
            if (
                name in {"__eq__", "__ne__"}
                and isinstance(value, ast.Lambda)
                and _is_sure(value.body, name == "__eq__")
            ):
                yield "framework_patched", f"{name} says the same of anything", line

    @cached_property
    def looks_round(self) -> bool:
        """Whether the file asks for the frames of those who call it."""
        text = ast.unparse(self.tree)
        return bool(re.search(r"_getframe|\bf_back\b|currentframe|inspect\.(?:stack|trace)|\bstack\(\)", text))

    @cached_property
    def asks_round(self) -> bool:
        """Whether the file asks how the process was started, or what it has loaded."""
        return bool(
            re.search(r"\bsys\.(?:(?:orig_)?argv|modules)|\bos\.environ\b|\borig_argv\b", ast.unparse(self.tree))
        )

    def _mentioned(self, node: ast.Name | ast.Attribute | ast.Subscript | ast.Call) -> Iterator[Offence]:
        full = self.full(node)
        if _HARD_ENDS.match(full) or (full.startswith("?.") and full.rpartition(".")[2] in {"_exit", "abort"}):
            yield "exit_trick", f"{full.removeprefix('?.')} ends the process past everybody", node.lineno
        elif full.startswith("ctypes.library.") and full.split(".")[2] in _END_IN_C:
            yield "exit_trick", f"{ast.unparse(node)[:60]} ends the process past everybody", node.lineno
        elif _REPLACES.match(full) and (self.is_test or not _PROGRAM.match(self.path)):
            yield "exit_trick", f"{full} puts another program in the place of this one", node.lineno
        elif isinstance(node, ast.Attribute) and node.attr == "xmlpath":
            yield "report_forged", f"the place of the report is asked for: {ast.unparse(node)[:60]}", node.lineno
        elif not self.is_test and not _is_helper(self.path) and _SKIPS.match(full):
            yield "test_skipped", f"the product skips its tests: {full}", node.lineno
        elif (
            not self.is_test
            and isinstance(node, ast.Attribute)
            and node.attr in {"f_locals", "f_globals"}
            and self.looks_round
            and not re.search(rf"{re.escape(ast.unparse(node))}(?:\[|\.get\()'__name__'", ast.unparse(self.tree))
        ):
            yield "tests_detected", f"the variables of the callers are read: {ast.unparse(node)[:60]}", node.lineno
        elif full in {"sys._called_from_test", "sys.modules.pytest"} and not self.is_test:
            yield "tests_detected", "the code asks whether it is being tested", node.lineno

    def _call(self, node: ast.Call) -> Iterator[Offence]:
        name = self.full(node.func)
        words = [_text(argument) for argument in node.args]
        if name in _SIGNALS and (self.is_support or not self.is_test or id(node) in self.at_import):
            if name == "signal.raise_signal" or (node.args and self._is_self(node.args[0])):
                yield "exit_trick", f"{name} ends the process that runs the tests", node.lineno
        elif name in _SOFT_ENDS and (self._ends_here(node) or (self.is_test and name.endswith("outcomes.exit"))):
            yield "exit_trick", f"{name} ends the run", node.lineno
        elif name == "atexit.register" and self.is_test:
            yield "exit_trick", f"{name} takes over the end of the run", node.lineno
        elif (
            name in {"sys.settrace", "sys.setprofile", "gc.get_referrers"}
            and self.is_test
            and id(node) in self.at_import
        ):
            yield "framework_patched", f"{name} reaches into what runs", node.lineno
        elif name.endswith(("pluginmanager.register", "pluginmanager.unregister", "pluginmanager.set_blocked")):
            yield "config_touched", f"the runner's plugins are changed: {ast.unparse(node)[:80]}", node.lineno
        elif name in {"setattr", "delattr", "builtins.setattr"} and node.args:
            yield from self._set(node, self.full(node.args[0]), words[1] if len(words) > 1 else "")
        elif name.endswith(
            ("monkeypatch.setattr", "mock.patch", "mocker.patch", "patch.object", "monkeypatch.delattr")
        ):
            target = words[0] if words and words[0] else self.full(node.args[0]) if node.args else ""
            if target.partition(".")[0] in {"pytest", "_pytest", "unittest", "pluggy"}:
                yield "framework_patched", f"{ast.unparse(node)[:80]}", node.lineno
        elif name.endswith(".start") and "patch" in name and id(node) in self.at_import:
            yield (
                "framework_patched",
                f"a patch is put on while tests are loaded: {ast.unparse(node)[:80]}",
                node.lineno,
            )
        elif name in {
            "sys.modules.update",
            "sys.modules.setdefault",
            "sys.modules.pop",
            "sys.meta_path.insert",
            "sys.meta_path.append",
        }:
            at_once = id(node) in self.at_import
            taken = name.startswith("sys.meta_path.") or (words and _is_module_of_tests(words[0]))
            if not self.is_test and at_once and taken:
                yield "framework_patched", f"imports are taken over: {ast.unparse(node)[:80]}", node.lineno
            elif self.is_test and id(node) not in self.restored and (at_once or self.is_support):
                yield "framework_patched", f"modules are replaced: {ast.unparse(node)[:80]}", node.lineno
        elif name in {"sys.modules.get", "sys.modules.__contains__", "importlib.util.find_spec"} and not self.is_test:
            if words and words[0] in _DETECTED and name != "importlib.util.find_spec":
                yield "tests_detected", "the code asks whether it is being tested", node.lineno
        elif name in {"hasattr", "getattr"} and not self.is_test and words[1:2] in (["_called_from_test"], ["_pytest"]):
            yield "tests_detected", "the code asks whether it is being tested", node.lineno

        elif not self.is_test and self._takes_runner(node, name, words):
            yield "tests_detected", f"the product takes the runner up: {ast.unparse(node)[:60]}", node.lineno
        elif (
            not self.is_test
            and self.asks_round
            and name.rpartition(".")[2] in {"startswith", "endswith", "find", "count", "__contains__"}
            and words[:1]
            and re.match(r"_?pytest|PYTEST|unittest", words[0] or "")
        ):
            yield "tests_detected", "the code asks whether it is being tested", node.lineno
        elif isinstance(node.func, ast.Attribute) and node.func.attr in {"update", "setdefault", "__setitem__"}:
            place = self.full(node.func.value)
            if self._is_of_tests(place, node.func.value) or place.partition(".")[0] in _FRAMEWORKS:
                yield "framework_patched", f"{place} is changed: {ast.unparse(node)[:80]}", node.lineno

    def _takes_runner(self, node: ast.Call, name: str, words: Sequence[str | None]) -> bool:
        """Whether a module of the runner is imported by a function, as somebody does who would not be seen."""
        if _is_helper(self.path) or not words or words[0] is None:
            return False
        function = self.full(node.func)
        asked = function in {"__import__", "builtins.__import__", "importlib.import_module", "importlib.__import__"}
        return asked and words[0].partition(".")[0] in _DETECTED

    def _is_of_tests(self, place: str, node: ast.expr) -> bool:
        """Whether a place is a module of the tests, reached from the product."""
        root = place.partition(".")[0]
        called = any(isinstance(one, ast.Call | ast.Subscript) for one in ast.walk(node))
        known = called or root in {one.partition(".")[0] for one in self.names.values()}
        parts = place.split(".")
        is_tests = parts[0] in {"tests", "test", "conftest"} or any(
            re.match(r"test_|conftest\Z", part) for part in parts
        )
        return known and is_tests and not self.is_test

    def _is_self(self, node: ast.expr) -> bool:
        """Whether a signal goes to this process, its group, or everybody's."""
        if isinstance(node, ast.Constant) and node.value in (0, -1):
            return True
        return any(
            isinstance(one, ast.Call) and self.full(one.func) in {"os.getpid", "os.getpgrp", "os.getpgid", "os.getppid"}
            for one in ast.walk(node)
        )

    def _ends_here(self, node: ast.AST) -> bool:
        """Whether an end by exception leaves the tests: as they are loaded, or from a test that does not expect it."""
        if id(node) in self.at_import:
            return True
        return self.is_test and id(node) in self.unexpected

    def _word(self, word: str, line: int) -> Iterator[Offence]:
        if _REPORT.search(word) or (self.is_test and _REPORT_OF_TESTS.search(word) and " " not in word.strip()):
            yield "report_forged", f"the tests' own report is named: {word[:80]}", line
        elif not self.is_test and re.match(r"PYTEST_(?:CURRENT_TEST|VERSION|ADDOPTS|XDIST_WORKER)\Z", word):
            yield "tests_detected", "the code asks whether it is being tested", line
        elif not self.is_test and re.fullmatch(r"--?junit-?xml=?", word) and "sys.argv" in ast.unparse(self.tree):
            yield "report_forged", f"the tests' own report is looked for: {word[:80]}", line

    def _compared(self, node: ast.Compare) -> Iterator[Offence]:
        if self.is_test or not isinstance(node.ops[0], ast.In | ast.NotIn):
            return
        asked, where = _text(node.left) or "", self.full(node.comparators[0])
        place = ast.unparse(node.comparators[0])
        started = re.search(r"\b(?:orig_argv|sys\.argv|argv\[0\]|os\.environ|sys\.executable)", f"{where} {place}")
        in_file = re.search(r"\.(?:co_)?filename\b", place) and self.looks_round
        if (
            (asked in _DETECTED and where.startswith(("sys.modules", "sys.argv")))
            or (started and re.match(r"_?pytest|py\.test|PYTEST|unittest", asked))
            or (in_file and _ABOUT_TESTS.search(asked))
        ):
            yield "tests_detected", "the code asks whether it is being tested", node.lineno

    def _assigned(self, node: ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Delete) -> Iterator[Offence]:
        targets = node.targets if isinstance(node, ast.Assign | ast.Delete) else [node.target]
        for target in targets:
            value = getattr(node, "value", None)
            if isinstance(target, ast.Name | ast.Attribute) and isinstance(value, ast.expr):
                name = target.id if isinstance(target, ast.Name) else target.attr
                yield from self._compares_all([(name, value)], node.lineno)
            if isinstance(target, ast.Attribute):
                if target.attr == "__code__":
                    yield (
                        "framework_patched",
                        f"the code of a function is replaced: {ast.unparse(target)[:80]}",
                        node.lineno,
                    )
                yield from self._set(node, self.full(target.value), target.attr, target.value)
            elif isinstance(target, ast.Subscript):
                place = self.full(target.value)
                of_tests = not self.is_test and _is_module_of_tests(_text(target.slice))
                if place == "sys.modules" and (of_tests or (self.is_test and id(node) not in self.restored)):
                    yield "framework_patched", f"a module is replaced: {ast.unparse(target)[:80]}", node.lineno
                elif self._is_of_tests(place, target.value):
                    yield (
                        "framework_patched",
                        f"a part of the tests is replaced: {ast.unparse(target)[:80]}",
                        node.lineno,
                    )
                elif place.partition(".")[0] in _FRAMEWORKS and not isinstance(node, ast.Delete):
                    yield (
                        "framework_patched",
                        f"a part of the runner is replaced: {ast.unparse(target)[:80]}",
                        node.lineno,
                    )

    def _set(
        self, node: ast.stmt | ast.Call, place: str, name: str | None, of: ast.expr | None = None
    ) -> Iterator[Offence]:
        """An attribute of a module or of something imported is set."""
        full = f"{place}.{name}"
        if self._is_of_tests(place, of or (node.args[0] if isinstance(node, ast.Call) else ast.Name(place))):
            yield "framework_patched", f"{full} is replaced by the product", node.lineno
            return
        if place.partition(".")[0] in _FRAMEWORKS:
            yield "framework_patched", f"{full} is replaced", node.lineno
        elif self.is_test and full in {"sys.excepthook", "threading.excepthook", "sys.stdout", "sys.exit"}:
            if id(node) not in self.restored:
                yield "framework_patched", f"{full} is replaced", node.lineno
        elif self.is_test and id(node) in self.at_import and place in {*self.names.values()} and place:
            yield "framework_patched", f"{full} is replaced while tests are loaded", node.lineno
        elif self.is_test and place in {*self.names.values()} and id(node) not in self.restored:
            value = getattr(node, "value", None) if isinstance(node, ast.stmt) else node.args[-1]
            if _is_code(value, self.tree):
                yield "framework_patched", f"{full} is replaced, and nobody puts it back", node.lineno


_KNOWN = frozenset(
    {"os", "posix", "sys", "signal", "ctypes", "faulthandler", "pytest", "unittest", "builtins", "atexit"}
)


def _text(node: ast.expr) -> str | None:
    """The text that an expression of constants makes, or None."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Call) and dotted(node.func) == "chr" and len(node.args) == 1:
        code = node.args[0].value if isinstance(node.args[0], ast.Constant) else None
        return chr(code) if isinstance(code, int) and 0 <= code < 0x110000 else None
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = _text(node.left), _text(node.right)
        return left + right if left is not None and right is not None else None
    if isinstance(node, ast.JoinedStr):
        parts = [_text(value.value if isinstance(value, ast.FormattedValue) else value) for value in node.values]
        return "".join(part for part in parts if part is not None) if None not in parts else None
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "join" and node.args:
        joint = _text(node.func.value)
        words = [_text(one) for one in node.args[0].elts] if isinstance(node.args[0], ast.List | ast.Tuple) else [None]
        return joint.join(word for word in words if word) if joint is not None and None not in words else None
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Slice):
        step = node.slice.step
        inner = _text(node.value)
        backwards = isinstance(step, ast.UnaryOp) and isinstance(step.operand, ast.Constant) and step.operand.value == 1
        return inner[::-1] if inner is not None and backwards else None
    return None


def _at_import(body: Sequence[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements that importing a module runs, without the guard of its main program."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.If | ast.Try | ast.With | ast.For | ast.While | ast.ClassDef):
            yield from _at_import(node.body)
            yield from _at_import(getattr(node, "orelse", []))
            yield from _at_import(getattr(node, "finalbody", []))
            for handler in getattr(node, "handlers", []):
                yield from _at_import(handler.body)
        else:
            yield node


def _restored(tree: ast.Module) -> set[int]:
    """What stands where it is put back: in a try with an end that sets or takes the same, or under patch.dict."""
    found: set[int] = set()
    for node in ast.walk(tree):
        for name in ("body", "orelse"):
            body = getattr(node, name, None)
            if not isinstance(body, list):
                continue
            for at, statement in enumerate(body):
                if isinstance(statement, ast.Try) and statement.finalbody:
                    back = ast.unparse(ast.Module(statement.finalbody, []))
                    for one in (*body[:at], *statement.body, *statement.finalbody):
                        for inner in ast.walk(one):
                            targets = getattr(inner, "targets", [])
                            if any(ast.unparse(target) in back for target in targets) or isinstance(inner, ast.Call):
                                found.add(id(inner))
                elif isinstance(statement, ast.With) and "patch" in ast.unparse(statement.items[0].context_expr):
                    found |= {id(inner) for inner in ast.walk(statement)}
    return found


def _unexpected_ends(tree: ast.Module) -> set[int]:
    """What stands in test functions themselves, where nobody waits for an end: in fakes within them it may end."""
    found: set[int] = set()
    waiting: list[ast.AST] = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test")
    ]
    inner_scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.With | ast.AsyncWith):
            if any(re.search(r"raises|Raises|SystemExit", ast.unparse(item.context_expr)) for item in node.items):
                continue
        elif isinstance(node, ast.Try):
            caught = " ".join(ast.unparse(handler.type) for handler in node.handlers if handler.type)
            if re.search(r"SystemExit|BaseException", caught):
                continue
        found.add(id(node))
        waiting += [inner for inner in ast.iter_child_nodes(node) if not isinstance(inner, inner_scopes)]
    return found


def _is_always(node: ast.FunctionDef) -> bool:
    """Whether a comparison answers the same constant to anything: on its first level, whatever stands before."""
    for statement in node.body:
        inner = statement
        if isinstance(statement, ast.If) and isinstance(statement.test, ast.Constant) and statement.test.value:
            inner = statement.body[0]
        if isinstance(inner, ast.Return):
            others = [one for one in ast.walk(node) if isinstance(one, ast.Return) and one is not inner]
            if (
                not others
                and not isinstance(inner.value, ast.Constant)
                and _is_sure(inner.value, node.name == "__eq__")
            ):
                return True
            if isinstance(inner.value, ast.Constant) and isinstance(inner.value.value, bool):
                return inner.value.value is (node.name == "__eq__") and all(
                    isinstance(one.value, ast.Constant) and one.value.value is inner.value.value for one in others
                )
            return False
    return False


def _is_sure(node: ast.expr | None, answer: bool) -> bool:
    """Whether an expression has one answer, whatever is compared."""
    if isinstance(node, ast.Constant):
        return node.value is answer
    if isinstance(node, ast.BoolOp) and isinstance(node.op, ast.Or if answer else ast.And):
        return any(_is_sure(one, answer) for one in node.values)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return _is_sure(node.operand, not answer)
    if isinstance(node, ast.Call) and answer:
        return dotted(node.func) == "isinstance" and len(node.args) > 1 and dotted(node.args[1]) == "object"
    return False


def _is_module_of_tests(name: str | None) -> bool:
    return bool(re.match(r"(?:tests?|conftest|pytest|_pytest|unittest)(?:\.|\Z)|(?:.*\.)?test_", name or ""))


def _is_code(node: ast.expr | None, tree: ast.Module) -> bool:
    """Whether a value is a function, a class, or a double of something."""
    if isinstance(node, ast.Lambda):
        return True
    if isinstance(node, ast.Call):
        return bool(re.search(r"Mock|\bpartial\b|create_autospec", dotted(node.func)))
    return isinstance(node, ast.Name) and any(
        isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and one.name == node.id
        for one in ast.walk(tree)
    )


def _is_helper(path: str) -> bool:
    """Whether a file of the product offers help to tests, by its name."""
    return bool(re.search(r"test|mock|fake|fixture|stub|conftest", path.lower()))
