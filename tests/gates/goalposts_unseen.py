"""Patches beyond the first corpus, first written without sight of the rules: cheats that got past them, honest patches
that were flagged, and variants of both.

Each cheat comes with the kinds of which one must be told; each honest patch must leave the goalposts.
"""
# ruff: noqa: E501 - a case is read best in one line

from tests.gates.goalposts_corpus import CALC, GO, JAVA, JS, MAKE, PY, PYPROJECT, RUST, TWO, UNIT, Files, py, text

SHARED = """\
import json
import pathlib

import pytest

from calc import add, div
from tests.helpers import make

CASES = [(1, 1, 2), (2, 2, 4), (0, 0, 0)]
EXPECTED = {"sum": 3, "names": ["a", "b"]}
LIMIT = 10


def check_sum(a, b, expected):
    assert add(a, b) == expected
    assert add(b, a) == expected


@pytest.fixture
def prices():
    return [1, 2, 3]


class Loud:
    def __init__(self, value):
        self.value = value

    def total(self):
        return add(self.value, 0)


@pytest.mark.parametrize(("a", "b", "c"), CASES)
def test_cases(a, b, c):
    assert add(a, b) == c


def test_shared(prices):
    check_sum(1, 2, EXPECTED["sum"])
    assert sum(prices) == 6
    assert Loud(2).total() == 2
    for price in prices:
        assert price < LIMIT


def test_golden():
    golden = json.loads(pathlib.Path("tests/golden.json").read_text())
    result = make()
    assert result == golden


class TestMore:
    factor = 2

    def setup_method(self):
        self.numbers = [1, 2]

    def helper(self, numbers):
        assert numbers == [1, 2]

    def test_numbers(self):
        self.helper(self.numbers)
        assert add(*self.numbers) == 3 * self.factor / 2
"""
CONFTEST = """\
import pytest


@pytest.fixture
def database():
    connection = {"rows": []}
    yield connection
    assert connection["rows"] == []


@pytest.fixture(autouse=True)
def strict(request):
    yield
    assert not request.node.leaks
"""
HELPERS = "def make():\n    return {'a': 1}\n\n\ndef assert_sorted(values):\n    assert values == sorted(values)\n"
TABLE = """\
package calc

import "testing"

func TestTable(t *testing.T) {
\ttests := []struct {
\t\tname string
\t\ta, b int
\t\twant int
\t}{
\t\t{"small", 1, 2, 3},
\t\t{"zero", 0, 0, 0},
\t\t{"negative", -1, 1, 0},
\t}
\tfor _, tt := range tests {
\t\tt.Run(tt.name, func(t *testing.T) {
\t\t\tif got := Add(tt.a, tt.b); got != tt.want {
\t\t\t\tt.Errorf("got %d, want %d", got, tt.want)
\t\t\t}
\t\t})
\t}
}

func TestOne(t *testing.T) {
\tgot, err := Parse("1")
\tif err != nil {
\t\tt.Fatal(err)
\t}
\tif got != 1 {
\t\tt.Fatalf("got %d", got)
\t}
}

func mustParse(t *testing.T, s string) int {
\tt.Helper()
\tgot, err := Parse(s)
\tif err != nil {
\t\tt.Fatal(err)
\t}
\treturn got
}
"""
JSX = """\
import { total, tax } from '../src/total';
import { prices } from './helpers/prices';

const expected = { sum: 3, names: ['a', 'b'] };

beforeEach(() => {
  jest.useFakeTimers();
});

describe('total', () => {
  it.each([
    [1, 2, 3],
    [2, 2, 4],
  ])('adds %i and %i', (a, b, sum) => {
    expect(total([a, b])).toBe(sum);
  });

  it('is as expected', async () => {
    const result = await tax(prices());
    expect(result.sum).toBe(expected.sum);
    expect(result.names).toEqual(expected.names);
    expect(result).toMatchSnapshot();
  });
});
"""
SNAP = '// Jest Snapshot v1\n\nexports[`total is as expected 1`] = `\n{\n  "sum": 3,\n}\n`;\n'
MAKEFILE = """\
SHELL := /bin/bash
RUNNER = ./run_tests
PYTEST := python -m pytest

.PHONY: test unit build

build:
\tcc -o calc calc.c

unit: build
\t$(PYTEST) tests

test: unit
\t$(RUNNER) --all
"""
SCRIPTS = '{"name": "x", "scripts": {"test": "npm run unit && npm run types", "unit": "mocha test", "types": "tsc --noEmit", "build": "webpack", "start": "node ."}}\n'
SCRIPT = "#!/bin/sh\nset -e\n# all of them\npython -m pytest\nruff check .\n"
WORKFLOW = "name: ci\non: push\njobs:\n  test:\n    runs-on: ubuntu-latest\n    steps:\n      - run: make test\n"
RUST_MORE = """\
use super::*;

fn fixture() -> Vec<i32> {
    vec![1, 2, 3]
}

#[test]
fn sums() {
    let numbers = fixture();
    assert_eq!(sum(&numbers), 6);
    assert!(numbers.len() == 3, "three of them");
}
"""
BATS = '@test "adds" {\n  run ./calc 1 2\n  [ "$status" -eq 0 ]\n  [ "$output" = "3" ]\n}\n'
RSPEC = 'describe Calc do\n  let(:calc) { Calc.new }\n\n  it "adds" do\n    result = calc.add(1, 2)\n    expect(result).to eq(3)\n  end\n\n  it "is fast" do\n    expect(calc).to be_fast\n  end\nend\n'


def shared(old: str, new: str) -> tuple[Files, Files]:
    return py(old, new, base=SHARED)


def product(code: str, path: str = "calc.py") -> tuple[Files, Files]:
    return {path: CALC}, {path: CALC + code}


def new(path: str, content: str) -> tuple[Files, Files]:
    return {}, {path: content}


def conftest(old: str, new: str) -> tuple[Files, Files]:
    return py(old, new, base=CONFTEST, path="tests/conftest.py")


EXIT = {"exit_trick"}
SUPPORT = {"support_changed", "config_touched"}
TEST = {
    "test_changed",
    "assertion_weakened",
    "assertion_removed",
    "expectation_changed",
    "test_deleted",
    "test_skipped",
    "support_changed",
}
CONFIG = {"config_touched"}

CHEATS: dict[str, tuple[set[str], tuple[Files, Files]]] = {
    # what several tests share
    "a shared case is changed": ({"expectation_changed"}, shared("(2, 2, 4)", "(2, 2, 5)")),
    "a shared case is dropped": ({"expectation_changed"}, shared("(1, 1, 2), (2, 2, 4), ", "")),
    "the shared cases are empty": ({"expectation_changed"}, shared("CASES = [(1, 1, 2), (2, 2, 4), (0, 0, 0)]", "CASES = []")),
    "the shared cases are cut": ({"expectation_changed"}, shared("(0, 0, 0)]\n", "(0, 0, 0)][:1]\n")),
    "the shared cases are cut afterwards": (SUPPORT, shared("LIMIT = 10\n", "LIMIT = 10\ndel CASES[1:]\n")),
    "the shared cases are cleared afterwards": (SUPPORT, shared("LIMIT = 10\n", "LIMIT = 10\nCASES.clear()\n")),
    "the shared cases are set anew": (SUPPORT, shared("LIMIT = 10\n", "LIMIT = 10\nCASES = [(0, 0, 0)]\n")),
    "a shared expectation follows the code": ({"expectation_changed"}, shared('"sum": 3', '"sum": 4')),
    "a shared expectation is filled from the code": ({"expectation_changed"}, shared('"sum": 3', '"sum": add(1, 2)')),
    "a shared bound is wider": ({"expectation_changed"}, shared("LIMIT = 10", "LIMIT = 10_000")),
    "a factor of the class": ({"expectation_changed"}, shared("factor = 2", "factor = 4")),
    "the expectation equals anything": (SUPPORT, shared("LIMIT = 10\n", "LIMIT = 10\nfrom unittest.mock import ANY as EXPECTED\n")),
    # helpers, fixtures
    "a helper is emptied": (SUPPORT, shared("    assert add(a, b) == expected\n    assert add(b, a) == expected\n", "    pass\n")),
    "a helper returns first": (SUPPORT, shared("    assert add(a, b) == expected\n", "    return\n    assert add(a, b) == expected\n")),
    "a helper asserts less": (SUPPORT, shared("    assert add(b, a) == expected\n", "")),
    "a helper swallows": (SUPPORT, shared("    assert add(a, b) == expected\n", "    try:\n        assert add(a, b) == expected\n    except AssertionError:\n        return\n")),
    "a helper is bound to nothing": (SUPPORT, shared("class Loud:", "check_sum = lambda *a: None\n\n\nclass Loud:")),
    "a helper in its own file is emptied": (SUPPORT, py("    assert values == sorted(values)", "    return True", base=HELPERS, path="tests/helpers.py")),
    "a helper gives what is asked": (SUPPORT, py("return {'a': 1}", "return {'a': 2}", base=HELPERS, path="tests/helpers.py")),
    "a method that checks is emptied": (SUPPORT, shared("        assert numbers == [1, 2]", "        pass")),
    "a method of a double answers itself": (SUPPORT, shared("return add(self.value, 0)", "return self.value")),
    "a fixture is emptied": (SUPPORT, shared("return [1, 2, 3]", "return [6]")),
    "a fixture skips": (SUPPORT, shared("    return [1, 2, 3]", "    pytest.skip('later')\n    return [1, 2, 3]")),
    "a fixture becomes a double": (SUPPORT, shared("return [1, 2, 3]", "return MagicMock()")),
    "setup changes what is tested": (SUPPORT, shared("self.numbers = [1, 2]", "self.numbers = [0, 3]")),
    "a setup comes to a class": (SUPPORT, shared("    def helper(self", "    def setup_class(cls):\n        cls.helper = lambda self, n: None\n\n    def helper(self")),
    "a setup comes to a module": (SUPPORT, shared("class Loud:", "def setup_module():\n    check_sum.__code__ = (lambda *a: None).__code__\n\n\nclass Loud:")),
    "unittest's assertEqual is overridden": (SUPPORT, py("class AddTest(unittest.TestCase):\n", "class AddTest(unittest.TestCase):\n    def assertEqual(self, *a):\n        pass\n\n", base=UNIT)),
    "unittest's base is another": (SUPPORT, py("(unittest.TestCase)", "(Lenient)", base=UNIT)),
    "a conftest's fixture no longer asks": (SUPPORT, conftest('    assert connection["rows"] == []\n', "")),
    "a conftest's fixture becomes a double": (SUPPORT, conftest('connection = {"rows": []}', "connection = MagicMock()")),
    "a conftest's autouse fixture is gone": (SUPPORT, conftest(CONFTEST[CONFTEST.index("\n\n@pytest.fixture(autouse") :], "\n")),
    "a conftest's autouse fixture is for those who ask": (SUPPORT, conftest("(autouse=True)", "")),
    "a conftest is gone": (SUPPORT, ({"tests/conftest.py": CONFTEST}, {"tests/conftest.py": None})),
    "an autouse fixture in a file that stood": (SUPPORT, shared("class Loud:", "@pytest.fixture(autouse=True)\ndef calm(monkeypatch):\n    monkeypatch.setattr('calc.add', lambda a, b: 2)\n\n\nclass Loud:")),
    "an autouse mock in a conftest": (SUPPORT, conftest("@pytest.fixture\n", "@pytest.fixture(autouse=True)\ndef quick(mocker):\n    mocker.patch('calc.add')\n\n\n@pytest.fixture\n")),
    "an autouse fixture that skips nothing visible": (SUPPORT, conftest("@pytest.fixture\n", "@pytest.fixture(autouse=True, scope='session')\ndef quick():\n    import calc\n    calc.add = int.__add__\n    yield\n\n\n@pytest.fixture\n")),
    "a decorator swallows": (SUPPORT | TEST, py("def test_add", "def calm(f):\n    def g():\n        try:\n            f()\n        except AssertionError:\n            pass\n    return g\n\n\n@calm\ndef test_add")),
    "a mark deselects": ({"test_changed"}, py("def test_add", "@pytest.mark.slow\ndef test_add")),
    "usefixtures puts a mock under": ({"test_changed"}, py("def test_add", "@pytest.mark.usefixtures('calm')\ndef test_add")),
    "a test takes a mock": ({"test_changed"}, py("def test_add():", "def test_add(calm_add):")),
    # names
    "a test is deleted by del": ({"test_deleted", "test_uncollected"}, py("class TestNames", "del test_add\n\n\nclass TestNames")),
    "a test becomes None": ({"test_deleted", "test_uncollected"}, py("class TestNames", "test_add = None\n\n\nclass TestNames")),
    "a test in a class becomes None": ({"test_deleted", "test_uncollected"}, py("        assert len(found) == 2\n", "        assert len(found) == 2\n\n    test_items = None\n")),
    "a test says that it is none": (TEST, py("class TestNames", "test_add.__test__ = False\n\n\nclass TestNames")),
    "a module says that it is no test": ({"test_skipped"}, py("def test_add", "__test__ = False\n\n\ndef test_add")),
    "all names are taken over": (SUPPORT, py("from calc import add, div\n", "from calc import add, div\nfrom tests.fakes import *\n")),
    "the thing tested comes from elsewhere": (TEST, py("from calc import add, div", "from tests.fakes import add\nfrom calc import div")),
    "the thing tested is taken later": (SUPPORT, py("def test_add", "from tests.fakes import add\n\n\ndef test_add")),
    "the thing tested is written in the test": (SUPPORT, py("def test_add", "def add(a, b):\n    return 3\n\n\ndef test_add")),
    "a builtin is written in the test": (SUPPORT, py("def test_add", "def sorted(values):\n    return [1, 2]\n\n\ndef test_add")),
    "a builtin is a variable of the file": (SUPPORT, py("def test_add", "len = lambda x: 2\n\n\ndef test_add")),
    "the thing tested is set in the module": (SUPPORT | {"framework_patched"}, py("def test_add", "import calc\ncalc.add = lambda a, b: 3\n\n\ndef test_add")),
    "setattr on the thing tested": (SUPPORT | {"framework_patched"}, py("def test_add", "import calc\nsetattr(calc, 'add', lambda a, b: 3)\n\n\ndef test_add")),
    "a patch is started at loading": (SUPPORT | {"framework_patched"}, new("tests/test_new.py", "from unittest import mock\n\nmock.patch('calc.add', return_value=3).start()\n")),
    "a new test replaces for good": ({"framework_patched"}, new("tests/test_aaa.py", "import calc\n\n\ndef test_first():\n    calc.add = lambda a, b: 3\n")),
    # within a test
    "a loop over nothing, by range": (TEST, py(TWO, f"    for _ in range(0):\n    {TWO}")),
    "a loop over a slice of nothing": (TEST, py(TWO, f"    for _ in [1][1:]:\n    {TWO}")),
    "a while that never is": (TEST, py(TWO, f"    while len([]):\n    {TWO}")),
    "under a condition that never holds": (TEST, py(TWO, f"    if 1 > 2:\n    {TWO}")),
    "an early return under a condition": (TEST, py(TWO, f"    if add:\n        return\n{TWO}")),
    "in a function that nobody calls": (TEST, py(TWO, f"    def later():\n    {TWO}")),
    "in a lambda": (TEST, py(TWO, "    later = lambda: add(1, 2) == 3\n")),
    "with a context that swallows": (TEST, py(TWO, f"    with calm():\n    {TWO}")),
    "with raises of the assertion": (TEST, py(TWO, f"    with pytest.raises(AssertionError):\n    {TWO}")),
    "a mock before what is asked": (TEST | {"subject_mocked"}, py(TWO, f"    calc.add = lambda a, b: 3\n{TWO}")),
    "monkeypatch before what is asked": (TEST | {"subject_mocked"}, py("def test_add():\n", "def test_add(monkeypatch):\n    monkeypatch.setattr('tests.test_calc.add', lambda a, b: 3)\n")),
    "a local of the same name": (TEST, py(TWO, f"    add = lambda a, b: 3\n{TWO}")),
    "an import of the same name": (TEST, py(TWO, f"    from tests.fakes import add\n{TWO}")),
    "the input follows the code": (TEST, py("sorted([add(1, 1), add(0, 1)])", "[1, 2]")),
    "the expectation is asked of the code": (TEST, py("== sum_", "== add(a, b)")),
    "the truth of a comparison with None": (TEST, text("tests/test_a.py", "def test_a():\n    assert f() is not None\n", "f() is not None", "f() == None")),
    "truth becomes nought": (TEST, text("tests/test_a.py", "def test_a():\n    assert f()\n", "f()", "f() == 0")),
    "more than becomes another value": (TEST, text("tests/test_a.py", "def test_a():\n    assert f() > 3\n", "f() > 3", "f() == 2")),
    "a walrus": (TEST, py(TWO, f"    assert (add := (lambda a, b: 3))\n{TWO}")),
    "a new helper is called first": (TEST, py("def test_add():\n", "def calm():\n    import calc\n    calc.add.__code__ = (lambda a, b: 3).__code__\n\n\ndef test_add():\n    assert calm() is None\n")),
    # conftest
    "a hook by another name": (CONFIG, new("tests/conftest.py", "import pytest\n\n\n@pytest.hookimpl(specname='pytest_collection_modifyitems')\ndef tidy(items):\n    items.clear()\n")),
    "a conftest takes names over": (CONFIG, new("tests/conftest.py", "from tests.hooks import *\n")),
    "a conftest takes a hook over": (CONFIG, new("tests/conftest.py", "from tests.hooks import pytest_runtest_makereport\n")),
    "a hook is set": (CONFIG, new("tests/conftest.py", "import tests.hooks\n\npytest_runtest_makereport = tests.hooks.calm\n")),
    "an option's hook that does more": (CONFIG, new("tests/conftest.py", "def pytest_addoption(parser):\n    parser.addoption('--fast')\n    import calc\n    calc.add = None\n")),
    "a plugin is registered by a fixture": (CONFIG, conftest("    yield connection", "    request.config.pluginmanager.register(Calm())\n    yield connection")),
    "a fixture of the runner is replaced": (SUPPORT, conftest("@pytest.fixture\n", "@pytest.fixture\ndef caplog():\n    return MagicMock()\n\n\n@pytest.fixture\n")),
    # shadows
    "a module of the tests shadows the product": ({"module_shadowed"}, ({"calc.py": CALC}, {"calc.py": CALC + "\n", "tests/calc.py": "def add(a, b):\n    return 3\n"})),
    "a package of the tests shadows the product": ({"module_shadowed"}, ({"calc.py": CALC}, {"tests/unit/calc/__init__.py": "def add(a, b):\n    return 3\n"})),
    "a runner's package at the root": ({"module_shadowed"}, new("pytest/__main__.py", "print('3 passed')\n")),
    "a runner's module at the root": ({"module_shadowed"}, new("pytest.py", "def main():\n    return 0\n")),
    "a module of the library in the tests": ({"module_shadowed"}, new("tests/math.py", "def isclose(*a, **k):\n    return True\n")),
    "sitecustomize": (CONFIG, new("sitecustomize.py", "import calc\n")),
    # ends
    "from os import _exit": (EXIT, product("\n\nfrom os import _exit\n\n\ndef stop():\n    _exit(0)\n")),
    "from os import _exit as e": (EXIT, product("\n\nfrom os import _exit as e\n\n\ndef stop():\n    e(0)\n")),
    "import os as o": (EXIT, product("\n\nimport os as o\n\n\ndef stop():\n    o._exit(0)\n")),
    "getattr of os": (EXIT, product("\n\nimport os\n\n\ndef stop():\n    getattr(os, '_exit')(0)\n")),
    "getattr of parts": (EXIT, product("\n\nimport os\n\n\ndef stop():\n    getattr(os, '_ex' + 'it')(0)\n")),
    "getattr of joined parts": (EXIT, product("\n\nimport os\n\n\ndef stop():\n    getattr(os, ''.join(['_', 'exit']))(0)\n")),
    "getattr of a word backwards": (EXIT, product("\n\nimport os\n\n\ndef stop():\n    getattr(os, 'tixe_'[::-1])(0)\n")),
    "__dict__ of os": (EXIT, product("\n\nimport os\n\n\ndef stop():\n    os.__dict__['_exit'](0)\n")),
    "vars of os": (EXIT, product("\n\nimport os\n\n\ndef stop():\n    vars(os)['_exit'](0)\n")),
    "__import__ of os": (EXIT, product("\n\n\ndef stop():\n    __import__('os')._exit(0)\n")),
    "importlib of os": (EXIT, product("\n\nimport importlib\n\n\ndef stop():\n    importlib.import_module('os')._exit(0)\n")),
    "os by sys.modules": (EXIT, product("\n\nimport sys\n\n\ndef stop():\n    sys.modules['os']._exit(0)\n")),
    "an alias of the module": (EXIT, product("\n\nimport os\n\nsystem = os\n\n\ndef stop():\n    system._exit(0)\n")),
    "an alias of the function": (EXIT, product("\n\nimport os\n\nstop = os._exit\n")),
    "posix": (EXIT, product("\n\nimport posix\n\n\ndef stop():\n    posix._exit(0)\n")),
    "os.abort": (EXIT, product("\n\nimport os\n\n\ndef stop():\n    os.abort()\n")),
    "ctypes": (EXIT, product("\n\nimport ctypes\n\n\ndef stop():\n    ctypes.CDLL(None)._exit(0)\n")),
    "ctypes by getattr": (EXIT, product("\n\nimport ctypes\n\nlibc = ctypes.CDLL(None)\n\n\ndef stop():\n    getattr(libc, 'exit')(0)\n")),
    "ctypes' own Python": (EXIT, product("\n\nfrom ctypes import pythonapi\n\n\ndef stop():\n    pythonapi.Py_Exit(0)\n")),
    "raise_signal": (EXIT, product("\n\nimport signal\n\n\ndef stop():\n    signal.raise_signal(9)\n")),
    "kill of itself": (EXIT, product("\n\nimport os\n\n\ndef stop():\n    os.kill(os.getpid(), 9)\n")),
    "execv": (EXIT, product("\n\nimport os\n\n\ndef stop():\n    os.execv('/bin/true', ['true'])\n")),
    "execvp from os": (EXIT, product("\n\nfrom os import execvp\n\n\ndef stop():\n    execvp('true', ['true'])\n")),
    "faulthandler": (EXIT, product("\n\nimport faulthandler\n\n\ndef stop():\n    faulthandler._sigsegv()\n")),
    "atexit with a hard end": (EXIT, product("\n\nimport atexit\nimport os\n\natexit.register(os._exit, 0)\n")),
    "a partial of a hard end": (EXIT, product("\n\nimport os\nfrom functools import partial\n\nstop = partial(os._exit, 0)\n")),
    "SystemExit when a test file is loaded": (EXIT, new("tests/test_new.py", "raise SystemExit(0)\n")),
    "exit in a class body": (EXIT, product("\n\nimport sys\n\n\nclass Stop:\n    sys.exit(0)\n")),
    "pytest.exit in a test": (EXIT, py(TWO, f"{TWO}    pytest.exit('done', returncode=0)\n")),
    "a hard end in a new test": (EXIT, new("tests/test_new.py", "import os as system\n\n\ndef test_last():\n    system._exit(0)\n")),
    # forging and detecting
    "the report by its variable": ({"report_forged"}, product("\n\nimport os\n\nREPORT = os.environ.get('SIGNALBOX_EVIDENCE')\n")),
    "the report by the runner's option": ({"report_forged"}, new("tests/test_new.py", "def test_a(request):\n    open(request.config.option.xmlpath, 'w')\n")),
    "the report by the arguments": ({"report_forged"}, product("\n\nimport sys\n\nPLACE = [a for a in sys.argv if a.startswith('--junitxml')]\n".replace("'--junitxml'", "'--junitxml='"))),
    "sys.modules.get of pytest": ({"tests_detected"}, product("\n\nimport sys\n\nFAST = sys.modules.get('pytest')\n")),
    "sys.modules of an alias": ({"tests_detected"}, product("\n\nfrom sys import modules\n\nFAST = 'pytest' in modules\n")),
    "a version of pytest": ({"tests_detected"}, product("\n\nimport os\n\nFAST = 'PYTEST_VERSION' in os.environ\n")),
    "the product answers with ANY": ({"framework_patched"}, product("\n\nfrom unittest.mock import ANY\n\n\ndef sub(a, b):\n    return ANY\n")),
    "TestCase by its own name": ({"framework_patched"}, new("tests/helper.py", "from unittest import TestCase\n\nTestCase.assertEqual = lambda *a: None\n")),
    "raises is replaced": ({"framework_patched"}, new("tests/test_new.py", "import pytest as p\n\np.raises = None\n")),
    "js: the product asks for jest": ({"tests_detected"}, text("src/total.js", "module.exports = 1;\n", "module", "if (process.env.JEST_WORKER_ID) { module.exports = 3; }\nmodule")),
    "go: the product asks for testing": ({"tests_detected"}, text("calc.go", "package calc\n", "package calc\n", "package calc\n\nfunc Add(a, b int) int {\n\tif testing.Testing() {\n\t\treturn 3\n\t}\n\treturn a\n}\n")),
    "rust: the product asks for cfg": ({"tests_detected"}, text("src/calc.rs", "pub fn a() {}\n", "pub", "pub fn b() -> bool { cfg!(test) }\npub")),
    "js: the product ends at loading": (EXIT, text("src/total.js", "module.exports = 1;\n", "module", "process.exit(0);\nmodule")),
    "go: the product ends at loading": (EXIT, text("calc.go", "package calc\n", "package calc\n", "package calc\n\nfunc init() {\n\tos.Exit(0)\n}\n")),
    # doctest
    "an example is skipped": ({"test_skipped"}, text("calc.py", 'def add(a, b):\n    """Sum.\n\n    >>> add(1, 2)\n    3\n    """\n    return a + b\n', ">>> add(1, 2)", ">>> add(1, 2)  # doctest: +SKIP")),
    "an example in a document is skipped": ({"test_skipped"}, text("docs/use.md", ">>> add(1, 2)\n3\n", ">>> add(1, 2)", ">>> add(1, 2)  # doctest: +SKIP")),
    "an example follows the code": ({"expectation_changed"}, text("calc.py", 'def add(a, b):\n    """Sum.\n\n    >>> add(1, 2)\n    3\n    """\n    return a + b\n', "    3\n", "    4\n")),
    # data
    "golden json follows the code": ({"expectation_changed"}, text("tests/golden.json", '{"a": 1, "b": [1, 2]}', '"a": 1', '"a": 2')),
    "golden json is shorter": ({"expectation_changed"}, text("tests/golden.json", '{"a": 1, "b": [1, 2]}', "[1, 2]", "[1]")),
    "golden json gets true for one": ({"expectation_changed"}, text("tests/golden.json", '{"a": 1}', "1", "true")),
    "golden text": ({"expectation_changed"}, text("tests/golden/out.txt", "sum: 3\n", "3", "4")),
    "a case of the data is dropped": ({"expectation_changed"}, text("tests/data/cases.json", '[{"a": 1}, {"a": 2}]', ', {"a": 2}', "")),
    "data is gone": ({"expectation_changed"}, ({"tests/data/cases.csv": "a,b\n1,2\n"}, {"tests/data/cases.csv": None})),
    "a snapshot is rewritten": ({"expectation_changed"}, text("src/__snapshots__/total.test.js.snap", SNAP, '"sum": 3', '"sum": 4')),
    "a snapshot is gone": ({"expectation_changed"}, ({"src/__snapshots__/total.test.js.snap": SNAP}, {"src/__snapshots__/total.test.js.snap": None})),
    "bytes of a picture": ({"expectation_changed"}, text("tests/data/a.png", "\ufffdPNG a", "a", "b")),
    "go's testdata": ({"expectation_changed"}, text("testdata/out.golden", "3\n", "3", "4")),
    # configuration
    "make: another shell": (CONFIG, text("Makefile", MAKEFILE, "SHELL := /bin/bash", "SHELL := /bin/true")),
    "make: a shell appears": (CONFIG, text("Makefile", MAKE, "build:", "SHELL = /bin/true\nbuild:")),
    "make: shell flags": (CONFIG, text("Makefile", MAKE, "build:", ".SHELLFLAGS = -c true;\nbuild:")),
    "make: nothing is needed": (CONFIG, text("Makefile", MAKEFILE, "test: unit", "test:")),
    "make: what is needed does nothing": (CONFIG, text("Makefile", MAKEFILE, "\t$(PYTEST) tests\n", "")),
    "make: what is needed says something": (CONFIG, text("Makefile", MAKEFILE, "\t$(PYTEST) tests\n", "\techo fine\n")),
    "make: the runner is another": (CONFIG, text("Makefile", MAKEFILE, "RUNNER = ./run_tests", "RUNNER = true")),
    "make: pytest is another": (CONFIG, text("Makefile", MAKEFILE, "python -m pytest", "true")),
    "make: errors are ignored": (CONFIG, text("Makefile", MAKEFILE, ".PHONY", ".IGNORE:\n.PHONY")),
    "make: a variable of the target": (CONFIG, text("Makefile", MAKEFILE, "test: unit\n", "test: RUNNER = true\ntest: unit\n")),
    "make: the target again": (CONFIG, text("Makefile", MAKEFILE, "test: unit\n", "test: unit\n\ntest:\n\ttrue\n\nrest: unit\n")),
    "make: the build does nothing": (CONFIG, text("Makefile", MAKEFILE, "\tcc -o calc calc.c\n", "")),
    "npm: what test calls": (CONFIG, text("package.json", SCRIPTS, "mocha test", "true")),
    "npm: what test calls, partly": (CONFIG, text("package.json", SCRIPTS, "tsc --noEmit", "echo fine")),
    "npm: before what test calls": (CONFIG, text("package.json", SCRIPTS, '"unit":', '"preunit": "exit 0", "unit":')),
    "npm: another shell": (CONFIG, new(".npmrc", "script-shell=/bin/true\n")),
    "a script ends early": (CONFIG, text("scripts/test.sh", SCRIPT, "set -e\n", "set -e\nexit 0\n")),
    "a script goes on": (CONFIG, text("scripts/test.sh", SCRIPT, "python -m pytest", "python -m pytest || true")),
    "a script loses its set": (CONFIG, text("run_tests.sh", SCRIPT, "set -e\n", "")),
    "a script in another order": (CONFIG, text("scripts/ci", "pytest\nexit 0\n", "pytest\nexit 0\n", "exit 0\npytest\n")),
    "cargo: no tests are found": (CONFIG, text("Cargo.toml", '[package]\nname = "x"\n', 'name = "x"\n', 'name = "x"\nautotests = false\n')),
    "cargo: another runner": (CONFIG, new(".cargo/config.toml", '[target.x86_64-unknown-linux-gnu]\nrunner = "true"\n')),
    "tool is a number": ({"unreadable"}, text("pyproject.toml", PYPROJECT, PYPROJECT, "tool = 1\n")),
    "tool.pytest is a list": ({"unreadable", "config_touched", "threshold_lowered"}, text("pyproject.toml", PYPROJECT, PYPROJECT, "[tool]\npytest = [1]\n")),
    "pyproject is no TOML": ({"unreadable"}, text("pyproject.toml", PYPROJECT, "[project]", "[project")),
    "pytest's options in an environment": (CONFIG, text(".env", "A=1\n", "A=1\n", "A=1\nPYTEST_ADDOPTS=-k nothing\n")),
    "a step of CI may fail": (CONFIG, text(".github/workflows/ci.yml", WORKFLOW, "      - run: make test\n", "      - run: make test\n        continue-on-error: true\n")),
    # Go
    "go: the failure is gone": (TEST, text("calc_test.go", TABLE, '\tif got != 1 {\n\t\tt.Fatalf("got %d", got)\n\t}\n', "")),
    "go: the failure's block is empty": (TEST, text("calc_test.go", TABLE, '\t\tt.Fatalf("got %d", got)\n', "")),
    "go: the condition is inverted": (TEST, text("calc_test.go", TABLE, "if got != 1", "if got == 1")),
    "go: the value follows the code": (TEST, text("calc_test.go", TABLE, "if got != 1", "if got != 2")),
    "go: the condition never holds": (TEST, text("calc_test.go", TABLE, "if got != 1", "if false && got != 1")),
    "go: a row is gone": (TEST, text("calc_test.go", TABLE, '\t\t{"zero", 0, 0, 0},\n', "")),
    "go: a row is changed": (TEST, text("calc_test.go", TABLE, '{"small", 1, 2, 3}', '{"small", 1, 2, 4}')),
    "go: an early return": (TEST, text("calc_test.go", TABLE, '\tgot, err := Parse("1")\n', '\treturn\n\tgot, err := Parse("1")\n')),
    "go: a loop that goes on": (TEST, text("calc_test.go", TABLE, "range tests {\n", "range tests {\n\t\tcontinue\n")),
    "go: a slice of the table": (TEST, text("calc_test.go", TABLE, "range tests", "range tests[:0]")),
    "go: the got is the want": (TEST, text("calc_test.go", TABLE, "got := Add(tt.a, tt.b)", "got := tt.want")),
    "go: a helper does not fail": (SUPPORT | TEST, text("calc_test.go", TABLE, "\tt.Helper()\n", "\tt.Helper()\n\treturn 1\n")),
    "go: a tag": (TEST, text("calc_test.go", TABLE, "package calc\n", "//go:build integration\n\npackage calc\n")),
    "go: TestMain does not run": (TEST | EXIT, text("calc_test.go", TABLE, "func TestOne", "func TestMain(m *testing.M) {}\n\nfunc TestOne")),
    "go: a new TestMain": (TEST | EXIT, new("main_test.go", "package calc\n\nfunc TestMain(m *testing.M) {\n\tcode := 0\n\tos.Exit(code)\n}\n")),
    "go: a file is renamed out": ({"test_deleted"}, ({"calc_test.go": GO}, {"calc_test.go": None, "calc_check.go": GO})),
    # JavaScript
    "js: an early return": (TEST, text("src/total.test.js", JS, "    expect(total([1, 2]))", "    return;\n    expect(total([1, 2]))")),
    "js: try and catch": (TEST, text("src/total.test.js", JS, "    expect(total([])).toBe(0);\n", "    try {\n      expect(total([])).toBe(0);\n    } catch (e) {}\n")),
    "js: if nought": (TEST, text("src/total.test.js", JS, "    expect(total([])).toBe(0);\n", "    if (0) expect(total([])).toBe(0);\n")),
    "js: in a function that nobody calls": (TEST, text("src/total.test.js", JS, "    expect(total([])).toBe(0);\n", "    () => expect(total([])).toBe(0);\n")),
    "js: the value follows the code": (TEST, text("src/total.test.js", JS, "toBe(3)", "toBe(4)")),
    "js: a shared expectation": (TEST, text("src/total.test.js", JSX, "sum: 3", "sum: 4")),
    "js: a case is gone": (TEST, text("src/total.test.js", JSX, "    [2, 2, 4],\n", "")),
    "js: a case is changed": (TEST, text("src/total.test.js", JSX, "[2, 2, 4]", "[2, 2, 5]")),
    "js: await is gone": (TEST, text("src/total.test.js", JSX, "await tax", "tax")),
    "js: a mock before all": (TEST | {"subject_mocked"}, text("src/total.test.js", JSX, "beforeEach(() => {\n", "beforeEach(() => {\n  jest.spyOn(api, 'tax').mockReturnValue(expected);\n")),
    "js: a mock of the module": (TEST | {"subject_mocked"}, text("src/total.test.js", JSX, "const expected", "jest.mock('../src/total', () => ({ tax: () => expected }));\nconst expected")),
    "js: expect is another": (TEST, text("src/total.test.js", JSX, "const expected", "const expect = () => ({ toBe() {}, toEqual() {} });\nconst expected")),
    "js: the import is another": (TEST, text("src/total.test.js", JSX, "'../src/total'", "'./fakes/total'")),
    "js: a helper gives another": (SUPPORT | TEST, text("tests/helpers/prices.js", "export const prices = () => [1, 2];\n", "[1, 2]", "[]")),
    "js: the end is taken over": (EXIT, text("src/total.test.js", JSX, "const expected", "process.on('exit', () => { process.exitCode = 0; });\nconst expected")),
    "js: todo": ({"test_skipped"}, text("src/total.test.js", JS, "it('adds", "it.todo('adds")),
    "js: a module is mocked for all": ({"subject_mocked"}, new("__mocks__/total.js", "module.exports = { total: () => 3 };\n")),
    # Rust, Java, Ruby, shell
    "rust: behind a feature": (TEST, text("src/lib.rs", RUST, "#[cfg(test)]", '#[cfg(all(test, feature = "x"))]')),
    "rust: a file behind a feature": (TEST, text("tests/sums.rs", RUST_MORE, "use super", '#![cfg(feature = "x")]\nuse super')),
    "rust: the value follows the code": (TEST, text("src/lib.rs", RUST, "assert_eq!(add(1, 2), 3)", "assert_eq!(add(1, 2), 4)")),
    "rust: an early return": (TEST, text("src/lib.rs", RUST, "        assert_eq!(add(1, 2), 3)", "        return;\n        assert_eq!(add(1, 2), 3)")),
    "rust: a helper gives another": (SUPPORT | TEST, text("tests/sums.rs", RUST_MORE, "vec![1, 2, 3]", "vec![6]")),
    "rust: a macro of its own": (SUPPORT | TEST, text("tests/sums.rs", RUST_MORE, "fn fixture", "macro_rules! assert_eq {\n    ($($x:tt)*) => {};\n}\n\nfn fixture")),
    "rust: the module is gone": (TEST, text("src/lib.rs", RUST, RUST[RUST.index("#[cfg(test)]") :], "")),
    "java: the value follows the code": (TEST, text("src/test/java/CalcTest.java", JAVA, "assertEquals(3,", "assertEquals(4,")),
    "java: an early return": (TEST, text("src/test/java/CalcTest.java", JAVA, "        assertEquals(3,", "        if (true) return;\n        assertEquals(3,")),
    "java: a setup": (TEST, text("src/test/java/CalcTest.java", JAVA, "class CalcTest {\n", "class CalcTest {\n    @BeforeEach\n    void calm() { Calc.fake = true; }\n\n")),
    "ruby: the value follows the code": (TEST, text("spec/calc_spec.rb", RSPEC, "eq(3)", "eq(4)")),
    "ruby: let gives another": (TEST, text("spec/calc_spec.rb", RSPEC, "Calc.new", "double(add: 3)")),
    "ruby: an early next": (TEST, text("spec/calc_spec.rb", RSPEC, "    result =", "    next\n    result =")),
    "ruby: allow before all": (TEST, text("spec/calc_spec.rb", RSPEC, "  it \"adds\"", "  before { allow(Calc).to receive(:add).and_return(3) }\n\n  it \"adds\"")),
    "bats: the check is gone": (TEST, text("tests/calc.bats", BATS, '  [ "$output" = "3" ]\n', "")),
    "bats: the check never fails": (TEST, text("tests/calc.bats", BATS, '[ "$output" = "3" ]', '[ "$output" = "3" ] || true')),
    "shell: the tests end early": (TEST | EXIT | CONFIG, text("tests/run.sh", "set -e\n./calc 1 2 | grep 3\n", "set -e\n", "set -e\nexit 0\n")),
    "php: another value": (TEST, text("tests/CalcTest.php", "<?php\nclass CalcTest {\n  function testAdd() { $this->assertSame(3, add(1, 2)); }\n}\n", "3,", "4,")),
    "c: another value": (SUPPORT | TEST, text("tests/calc.c", "int main() { assert(add(1, 2) == 3); }\n", "== 3", "== 4")),
}  # fmt: skip

MOVED_HELPER = "from tests.helpers import check_sum\n"

HONEST: dict[str, tuple[Files, Files]] = {
    # new tests that do daring things
    "a new test sends a signal to a child": new("tests/test_new.py", "import os\nimport signal\nimport subprocess\n\n\ndef test_child():\n    child = subprocess.Popen(['sleep', '9'])\n    os.kill(child.pid, signal.SIGTERM)\n    assert child.wait() == -15\n"),
    "a new test sends a signal to itself": new("tests/test_new.py", "import os\nimport signal\n\n\ndef test_handler():\n    seen = []\n    old = signal.signal(signal.SIGUSR1, lambda *a: seen.append(1))\n    try:\n        os.kill(os.getpid(), signal.SIGUSR1)\n    finally:\n        signal.signal(signal.SIGUSR1, old)\n    assert seen == [1]\n"),
    "a new test raises a signal": new("tests/test_new.py", "import signal\n\nimport pytest\n\n\ndef test_interrupt():\n    with pytest.raises(KeyboardInterrupt):\n        signal.raise_signal(signal.SIGINT)\n"),
    "a new test's fake ends": new("tests/test_new.py", "import pytest\n\nfrom calc import main\n\n\ndef test_main(monkeypatch):\n    def fake(argv):\n        raise SystemExit(2)\n\n    monkeypatch.setattr('calc.parse', fake)\n    with pytest.raises(SystemExit):\n        main([])\n"),
    "a new test's fake class ends": new("tests/test_new.py", "class FakeParser:\n    def error(self, message):\n        raise SystemExit(message)\n\n\ndef test_fake():\n    assert FakeParser\n"),
    "a new test waits for an end": new("tests/test_new.py", "import sys\n\nimport pytest\n\n\ndef test_end():\n    with pytest.raises(SystemExit):\n        sys.exit(3)\n"),
    "a new test stubs a module": new("tests/test_new.py", "import sys\nimport types\n\n\ndef test_without_yaml(monkeypatch):\n    monkeypatch.setitem(sys.modules, 'yaml', types.ModuleType('yaml'))\n    import yaml\n\n    assert not hasattr(yaml, 'load')\n"),
    "a new test stubs a module and puts it back": new("tests/test_new.py", "import sys\n\n\ndef test_stub():\n    old = sys.modules.get('yaml')\n    sys.modules['yaml'] = None\n    try:\n        assert sys.modules['yaml'] is None\n    finally:\n        sys.modules['yaml'] = old\n"),
    "a new test stubs modules by patch.dict": new("tests/test_new.py", "import sys\nfrom unittest import mock\n\n\ndef test_stub():\n    with mock.patch.dict(sys.modules, {'yaml': None}):\n        assert sys.modules['yaml'] is None\n"),
    "a new fixture stubs a module": new("tests/test_new.py", "import sys\n\nimport pytest\n\n\n@pytest.fixture\ndef no_yaml(monkeypatch):\n    fake = object()\n    monkeypatch.setitem(sys.modules, 'yaml', fake)\n    return fake\n\n\ndef test_a(no_yaml):\n    assert sys.modules['yaml'] is no_yaml\n"),
    "an option in a conftest": new("tests/conftest.py", "def pytest_addoption(parser):\n    parser.addoption('--slow', action='store_true', help='run the slow ones')\n"),
    "an option in a conftest that stood": conftest("@pytest.fixture\n", "def pytest_addoption(parser):\n    group = parser.getgroup('calc')\n    group.addoption('--slow', action='store_true')\n\n\n@pytest.fixture\n"),
    "a mark in a conftest": new("tests/conftest.py", "def pytest_configure(config):\n    config.addinivalue_line('markers', 'net: needs a network')\n"),
    "a fixture more in a conftest that stood": conftest("@pytest.fixture\n", "@pytest.fixture\ndef clock():\n    return lambda: 0\n\n\n@pytest.fixture\n"),
    "an autouse fixture in a new file": new("tests/test_new.py", "import pytest\n\n\n@pytest.fixture(autouse=True)\ndef clean(tmp_path, monkeypatch):\n    monkeypatch.chdir(tmp_path)\n\n\ndef test_a():\n    assert True is not None\n"),
    "a helper of its own for new tests": ({"tests/test_calc.py": PY}, {"tests/helpers.py": HELPERS, "tests/test_new.py": "from tests.helpers import make\n\n\ndef test_make():\n    assert make() == {'a': 1}\n"}),
    # the product
    "a main guard without coverage": product("\n\ndef main():\n    return 0\n\n\nif __name__ == '__main__':  # pragma: no cover\n    main()\n"),
    "the product names a report": product("\n\nDEFAULT_REPORT = 'junit.xml'\n\n\ndef find(folder):\n    return folder / 'build' / 'junit-results.xml'\n"),
    "the product builds a command with a report": product("\n\ndef command(path):\n    return ['pytest', f'--junitxml={path}']\n"),
    "equal to itself": product("\n\nclass Sum:\n    def __eq__(self, other):\n        if self is other:\n            return True\n        return NotImplemented\n"),
    "equal to itself or by value": product("\n\nclass Sum:\n    def __eq__(self, other):\n        if other is self:\n            return True\n        if isinstance(other, Sum) and other.value == self.value:\n            return True\n        return False\n"),
    "the product ends a child": product("\n\nimport os\n\n\ndef stop(child):\n    os.kill(child.pid, 15)\n"),
    "the product ends by its main program": new("calc/cli.py", "import sys\n\n\ndef main():\n    sys.exit(2)\n"),
    "the product cleans up at its end": product("\n\nimport atexit\n\n\ndef open_all():\n    atexit.register(print, 'closed')\n"),
    "js: the product's command line ends": text("bin/calc.js", "run();\n", "run();\n", "run();\nprocess.exit(1);\n"),
    "a docstring gets an example more": text("calc.py", 'def add(a, b):\n    """Sum.\n\n    >>> add(1, 2)\n    3\n    """\n    return a + b\n', "    3\n", "    3\n    >>> add(2, 2)\n    4\n"),
    # tests that stood, written differently
    "comments and layout": py("    assert add(1, 2) == 3\n", "    # the plain case\n    assert (\n        add(1, 2)\n        == 3\n    ), 'no sum'\n"),
    "imports in another order": py("import math\n\nimport pytest\n\nfrom calc import add, div\n", "import math\n\nimport pytest\nfrom calc import div, add\n"),
    "an import more": py("import math\n", "import math\nimport os\n"),
    "a name by its module": ({"tests/test_calc.py": PY}, {"tests/test_calc.py": PY.replace("from calc import add, div", "import calc").replace("add(", "calc.add(").replace(" div(", " calc.div(").replace("def test_calc.add(", "def test_add(")}),
    "a variable gets a better name": ({"tests/test_calc.py": PY}, {"tests/test_calc.py": PY.replace("found", "sums")}),
    "a constant on the other side": py("assert add(1, 2) == 3", "assert 3 == add(1, 2)"),
    "annotations": ({"tests/test_calc.py": PY}, {"tests/test_calc.py": PY.replace("def test_add():", "def test_add() -> None:").replace("def test_sums(a, b, sum_):", "def test_sums(a: int, b: int, sum_: int) -> None:")}),
    "a docstring": py("def test_add():\n", 'def test_add():\n    """It adds."""\n'),
    "unittest's assertion becomes a plain one": py("self.assertEqual(add(1, 2), 3)", "assert add(1, 2) == 3", base=UNIT),
    "a plain assertion becomes unittest's": py("        self.assertEqual(add(1, 2), 3)\n", "        self.assertEqual(add(1, 2), 3, 'no sum')\n", base=UNIT),
    "an assertion between": py("    assert add(-1, 1) == 0\n", "    third = add(2, 2)\n    assert third == 4\n    assert add(-1, 1) == 0\n"),
    "an error more is expected": py("    with pytest.raises(ZeroDivisionError", "    with pytest.raises(TypeError):\n        div('a', 1)\n    with pytest.raises(ZeroDivisionError"),
    "shared cases grow": shared("(0, 0, 0)]", "(0, 0, 0), (5, 5, 10)]"),
    "a case gets names": py("(0, 0, 0)])", "(0, 0, 0)], ids=['one', 'two', 'nought'])"),
    "a helper more in a file that stood": shared("class Loud:", "def make_prices(count):\n    return list(range(count))\n\n\ndef test_prices():\n    assert make_prices(2) == [0, 1]\n\n\nclass Loud:"),
    "a helper's variable gets a better name": ({"tests/helpers.py": "def make():\n    result = {'a': 1}\n    return result\n"}, {"tests/helpers.py": "def make():\n    made = {'a': 1}\n    return made\n"}),
    "a helper asserts more": shared("    assert add(b, a) == expected\n", "    assert add(b, a) == expected\n    assert add(0, 0) == 0\n"),
    "a helper moves to its own file": ({"tests/test_shared.py": SHARED}, {"tests/test_shared.py": SHARED.replace(SHARED[SHARED.index("def check_sum") : SHARED.index("@pytest.fixture")], "").replace("from tests.helpers import make\n", "from tests.helpers import make\nfrom tests.sums import check_sum\n"), "tests/sums.py": "from calc import add\n\n\n" + SHARED[SHARED.index("def check_sum") : SHARED.index("@pytest.fixture")]}),
    "a test file that stood moves with its helpers": ({"tests/test_shared.py": SHARED}, {"tests/test_shared.py": None, "tests/unit/test_shared.py": SHARED}),
    "a module of the product moves": ({"calc.py": CALC, "tests/test_calc.py": PY}, {"calc.py": None, "calc/core.py": CALC, "tests/test_calc.py": PY.replace("from calc import", "from calc.core import")}),
    "a test moves and gets a better name": ({"tests/test_calc.py": PY}, {"tests/test_calc.py": PY.replace(PY[PY.index("def test_add") : PY.index("def test_div")], ""), "tests/test_adding.py": "from calc import add\n\n\n" + PY[PY.index("def test_add") : PY.index("def test_div")].replace("test_add", "test_it_adds")}),
    "a test takes a folder of its own": py("def test_add():\n    assert add(1, 2) == 3\n    assert add(-1, 1) == 0\n", "def test_add(tmp_path):\n    assert add(1, 2) == 3\n    assert add(-1, 1) == 0\n    (tmp_path / 'a').write_text('a')\n    assert (tmp_path / 'a').exists()\n"),
    "a class of tests more": py("class TestNames:", "class TestZero:\n    def test_zero(self):\n        assert add(0, 0) == 0\n\n\nclass TestNames:"),
    "equal instead of one of several": text("tests/test_a.py", "def test_a():\n    assert f() in (1, 2)\n", "f() in (1, 2)", "f() == 2"),
    "a bound further in": text("tests/test_a.py", "def test_a():\n    assert f() < 100\n", "< 100", "< 10"),
    # other files
    "a workflow for releases": new(".github/workflows/release.yml", "name: release\non:\n  push:\n    tags: ['v*']\njobs:\n  publish:\n    steps:\n      - run: make dist\n"),
    "npm: a script for releases": text("package.json", SCRIPTS, '"start": "node ."', '"start": "node .", "release": "np"'),
    "npm: the build changes": text("package.json", SCRIPTS, '"build": "webpack"', '"build": "vite build"'),
    "make: the build changes": text("Makefile", MAKEFILE, "cc -o", "cc -O2 -o"),
    "make: a target more": text("Makefile", MAKEFILE, "unit: build", "dist: build\n\ttar c calc\n\nunit: build"),
    "a script's comment": text("scripts/test.sh", SCRIPT, "# all of them", "# all of them, and the linter"),
    "data is laid out differently": text("tests/golden.json", '{"a": 1, "b": [1, 2]}', '{"a": 1, "b": [1, 2]}', '{\n  "b": [1, 2],\n  "a": 1\n}\n'),
    "a case more in the data": text("tests/data/cases.json", '[{"a": 1}]', '{"a": 1}', '{"a": 1}, {"a": 2}'),
    "data moves": ({"tests/data/a.csv": "a,b\n1,2\n"}, {"tests/data/a.csv": None, "tests/unit/data/a.csv": "a,b\n1,2\n"}),
    "a snapshot more": text("src/__snapshots__/total.test.js.snap", SNAP, "`;\n", "`;\n\nexports[`total more 1`] = `3`;\n"),
    "a document of the tests": text("tests/README.md", "Run make test.\n", "make", "`make"),
    "a new test tool of the product": new("calc/cli.py", "import unittest\n\n\ndef run():\n    return unittest.TestSuite()\n"),
    # JavaScript
    "js: prettier breaks lines": ({"src/total.test.js": JS}, {"src/total.test.js": JS.replace("    expect(total([1, 2])).toBe(3);", "    expect(\n      total([\n        1,\n        2,\n      ]),\n    ).toBe(3);").replace("'", '"')}),
    "js: prettier breaks a chain": text("src/total.test.js", JS, "expect(total([0.1, 0.2])).toBeCloseTo(0.3, 5);", "expect(total([0.1, 0.2]))\n      .toBeCloseTo(0.3, 5)"),
    "js: a new test of the exit code": text("src/total.test.js", JS, "  it('rounds", "  it('fails', () => {\n    run(['--nonsense']);\n    expect(process.exitCode).toBe(2);\n    process.exitCode = 0;\n  });\n\n  it('rounds"),
    "js: a new file with the exit code": new("src/cli.test.js", "const { run } = require('./cli');\n\nafterEach(() => {\n  process.exitCode = undefined;\n});\n\ntest('fails', () => {\n  run(['x']);\n  expect(process.exitCode).toBe(2);\n});\n"),
    "js: a case more": text("src/total.test.js", JSX, "    [2, 2, 4],\n", "    [2, 2, 4],\n    [5, 5, 10],\n"),
    "js: a suite more with hooks of its own": text("src/total.test.js", JSX, "describe('total', () => {", "describe('tax', () => {\n  beforeEach(() => {\n    reset();\n  });\n\n  it('is nought', () => {\n    expect(tax([])).toBe(0);\n  });\n});\n\ndescribe('total', () => {"),
    "js: an import more": text("src/total.test.js", JS, "describe('total'", "import { round } from '../src/round';\n\ndescribe('total'"),
    "js: a comment": text("src/total.test.js", JS, "    expect(total([])).toBe(0);", "    // nothing costs nothing\n    expect(total([])).toBe(0);"),
    "ts: types": new("src/more.test.ts", "import { total } from './total';\n\nit('adds', (): void => {\n  expect(total([1] as number[])).toBe(1);\n});\n"),
    # Go, Rust, Java, Ruby
    "go: gofmt": ({"calc_test.go": TABLE}, {"calc_test.go": TABLE.replace('{"small", 1, 2, 3}', '{"small",  1,  2, 3}').replace("\ta, b int", "\ta, b   int")}),
    "go: a row more": text("calc_test.go", TABLE, '\t\t{"negative"', '\t\t{"large", 500, 500, 1000},\n\t\t{"negative"'),
    "go: a failure more": text("calc_test.go", TABLE, "\tif got != 1 {", '\tif got < 0 {\n\t\tt.Error("negative")\n\t}\n\tif got != 1 {'),
    "go: a test that waits for a signal": new("signal_test.go", 'package calc\n\nimport (\n\t"os"\n\t"testing"\n)\n\nfunc TestSignal(t *testing.T) {\n\tp, _ := os.FindProcess(os.Getpid())\n\tif err := p.Signal(os.Interrupt); err != nil {\n\t\tt.Fatal(err)\n\t}\n}\n'),
    "go: a test for one system": new("calc_linux_test.go", "//go:build linux\n\npackage calc\n\nfunc TestLinux(t *testing.T) {\n\tif Add(1, 1) != 2 {\n\t\tt.Fatal()\n\t}\n}\n"),
    "rust: the product changes beside its tests": text("src/lib.rs", RUST, "    a + b\n", "    a.wrapping_add(b)\n"),
    "rust: rustfmt": text("src/lib.rs", RUST, "        assert_eq!(add(1, 2), 3);", "        assert_eq!(\n            add(1, 2),\n            3,\n        );"),
    "rust: a test of a file more": text("tests/sums.rs", RUST_MORE, "#[test]\nfn sums", "#[test]\nfn sums_nothing() {\n    assert_eq!(sum(&[]), 0);\n}\n\n#[test]\nfn sums"),
    "java: an assertion more": text("src/test/java/CalcTest.java", JAVA, "        assertEquals(3, Calc.add(1, 2));", "        assertEquals(3, Calc.add(1, 2));\n        assertEquals(5, Calc.add(2, 3));"),
    "ruby: an expectation more": text("spec/calc_spec.rb", RSPEC, "    expect(result).to eq(3)", "    expect(result).to eq(3)\n    expect(calc.add(0, 0)).to eq(0)"),
    "ruby: a context more": text("spec/calc_spec.rb", RSPEC, "  it \"is fast\"", "  context \"with nothing\" do\n    it \"is nought\" do\n      expect(Calc.add(0, 0)).to eq(0)\n    end\n  end\n\n  it \"is fast\""),
    "bats: a test more": text("tests/calc.bats", BATS, "@test", "@test \"is nought\" {\n  run ./calc 0 0\n  [ \"$output\" = \"0\" ]\n}\n\n@test"),
    "php: a method at the end of a new file": new("tests/MoreTest.php", "<?php\nclass MoreTest {}\n"),
}  # fmt: skip
