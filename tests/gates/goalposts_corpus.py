"""Patches as (files before, files after): those that move their own goalposts, by kind, and honest ones."""
# ruff: noqa: E501 - a case is read best in one line

from collections.abc import Mapping

Files = Mapping[str, str | None]

CALC = "def add(a, b):\n    return a + b\n\n\ndef div(a, b):\n    return a / b\n"
PY = """\
import math

import pytest

from calc import add, div


def test_add():
    assert add(1, 2) == 3
    assert add(-1, 1) == 0


def test_div():
    assert div(1, 3) == pytest.approx(0.333333, abs=1e-6)
    assert math.isclose(div(2, 3), 0.666667, rel_tol=1e-5)
    with pytest.raises(ZeroDivisionError, match="division"):
        div(1, 0)


@pytest.mark.parametrize(("a", "b", "sum_"), [(1, 1, 2), (2, 2, 4), (0, 0, 0)])
def test_sums(a, b, sum_):
    assert add(a, b) == sum_


class TestNames:
    def test_items(self):
        found = sorted([add(1, 1), add(0, 1)])
        assert found == [1, 2]
        assert len(found) == 2
"""
UNIT = """\
import unittest

from calc import add


class AddTest(unittest.TestCase):
    def test_add(self):
        self.assertEqual(add(1, 2), 3)
        self.assertAlmostEqual(add(0.1, 0.2), 0.3, places=7)
"""
JS = """\
import { total } from '../src/total';

describe('total', () => {
  it('adds prices', () => {
    expect(total([1, 2])).toBe(3);
    expect(total([])).toBe(0);
  });

  it('rounds', () => {
    expect(total([0.1, 0.2])).toBeCloseTo(0.3, 5);
  });
});
"""
GO = """\
package calc

import "testing"

func TestAdd(t *testing.T) {
\tif got := Add(1, 2); got != 3 {
\t\tt.Fatalf("got %d", got)
\t}
}

func TestSub(t *testing.T) {
\tif got := Sub(2, 1); got != 1 {
\t\tt.Errorf("got %d", got)
\t}
}
"""
RUST = """\
pub fn add(a: i32, b: i32) -> i32 {
    a + b
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adds() {
        assert_eq!(add(1, 2), 3);
    }

    #[test]
    fn adds_negatives() {
        assert_eq!(add(-1, 1), 0);
    }
}
"""
JAVA = """\
class CalcTest {
    @Test
    void adds() {
        assertEquals(3, Calc.add(1, 2));
    }

    @Test
    void divides() {
        assertEquals(2, Calc.div(4, 2));
    }
}
"""
RUBY = """\
describe Calc do
  it "adds" do
    expect(Calc.add(1, 2)).to eq(3)
  end

  it "subtracts" do
    expect(Calc.sub(2, 1)).to eq(1)
  end
end
"""
PYPROJECT = """\
[project]
name = "calc"
dependencies = ["attrs"]

[tool.pytest.ini_options]
addopts = "-q --strict-markers"
markers = ["slow: takes long"]

[tool.coverage.report]
fail_under = 90
"""
PACKAGE = '{"name": "x", "scripts": {"test": "jest --ci", "build": "tsc"}, "jest": {"coverageThreshold": {"global": {"lines": 90}}}}\n'
MAKE = "build:\n\tcc -o calc calc.c\n\ntest: build\n\t./run_tests --all\n"


def py(old: str, new: str, *, base: str = PY, path: str = "tests/test_calc.py") -> tuple[Files, Files]:
    """A test file in which `old` became `new`."""
    assert old in base, old
    return {path: base}, {path: base.replace(old, new, 1)}


def text(path: str, base: str, old: str, new: str) -> tuple[Files, Files]:
    """A file in which `old` became `new`."""
    return py(old, new, base=base, path=path)


TWO = "    assert add(1, 2) == 3\n"

CHEATS: dict[str, tuple[str, tuple[Files, Files]]] = {
    # tests that are gone, or no longer collected
    "a test file is deleted": ("test_deleted", ({"tests/test_calc.py": PY}, {"tests/test_calc.py": None})),
    "a test is deleted": ("test_deleted", py(PY[PY.index("def test_div") : PY.index("@pytest")], "")),
    "a test is renamed out of collection": ("test_uncollected", py("def test_div", "def check_div")),
    "a test gets a leading underscore": ("test_uncollected", py("def test_add", "def _test_add")),
    "a class is renamed out of collection": ("test_uncollected", py("class TestNames:", "class Names:")),
    "a class gets a constructor": (
        "test_uncollected",
        py("class TestNames:\n", "class TestNames:\n    def __init__(self, more):\n        self.more = more\n\n"),
    ),
    "a test file is renamed out of collection": (
        "test_deleted",
        ({"tests/test_calc.py": PY}, {"tests/test_calc.py": None, "tests/calc_cases.py": PY}),
    ),
    "a test is replaced by a later one of its name": (
        "test_deleted",
        py("class TestNames:", "def test_add():\n    pass\n\n\nclass TestNames:"),
    ),
    "cases of parametrize are dropped": ("test_deleted", py("(1, 1, 2), (2, 2, 4), (0, 0, 0)", "(0, 0, 0)")),
    "a test is there under a condition": (
        "test_skipped",
        py("def test_add():\n    assert", "import os\nif os.environ.get('FULL'):\n  def test_add():\n    assert"),
    ),
    # skipped
    "a skip mark": ("test_skipped", py("def test_add", "@pytest.mark.skip(reason='flaky')\ndef test_add")),
    "a skipif that always holds": ("test_skipped", py("def test_add", "@pytest.mark.skipif(1, reason='x')\ndef test_add")),
    "an xfail mark": ("test_skipped", py("def test_add", "@pytest.mark.xfail\ndef test_add")),
    "a call of skip": ("test_skipped", py(TWO, f"    pytest.skip('later')\n{TWO}")),
    "a skip of the module": ("test_skipped", py("def test_add", "pytestmark = pytest.mark.skip\n\n\ndef test_add")),
    "a class that is no test": ("test_skipped", py("class TestNames:\n", "class TestNames:\n    __test__ = False\n\n")),
    "unittest's skip": ("test_skipped", py("    def test_add", "    @unittest.skip('x')\n    def test_add", base=UNIT)),
    "SkipTest is raised": ("test_skipped", py("        self.assertEqual", "        raise unittest.SkipTest\n        self.assertEqual", base=UNIT)),
    "a test becomes a generator": ("test_skipped", py(TWO, f"{TWO}    yield\n")),
    # assertions
    "an assertion is removed": ("assertion_removed", py("    assert add(-1, 1) == 0\n", "")),
    "an assertion becomes a comment": ("assertion_removed", py("    assert add(-1, 1) == 0", "    # assert add(-1, 1) == 0")),
    "all of a test becomes pass": ("assertion_removed", py("    assert add(a, b) == sum_", "    pass")),
    "equal becomes in": ("assertion_weakened", py("add(1, 2) == 3", "add(1, 2) in (2, 3, 4)")),
    "equal becomes not None": ("assertion_weakened", py("add(1, 2) == 3", "add(1, 2) is not None")),
    "equal becomes truth": ("assertion_weakened", py("add(1, 2) == 3", "add(1, 2)")),
    "equal becomes isinstance": ("assertion_weakened", py("add(1, 2) == 3", "isinstance(add(1, 2), int)")),
    "or True": ("assertion_weakened", py("add(1, 2) == 3", "add(1, 2) == 3 or True")),
    "a comparison with itself": ("assertion_weakened", py("add(1, 2) == 3", "add(1, 2) == add(1, 2)")),
    "assert of a tuple": ("assertion_removed", py("assert add(1, 2) == 3", "assert (add(1, 2), 3)")),
    "a return before the assertions": ("assertion_weakened", py(TWO, f"    return\n{TWO}")),
    "under if False": ("assertion_weakened", py(TWO, f"    if False:\n    {TWO}")),
    "under a condition of the environment": ("assertion_weakened", py(TWO, f"    if os.environ.get('CI') is None:\n    {TWO}")),
    "a loop over nothing": ("assertion_weakened", py(TWO, f"    for _ in ():\n    {TWO}")),
    "try and except round an assertion": (
        "assertion_weakened",
        py(TWO, f"    try:\n    {TWO}    except AssertionError:\n        pass\n"),
    ),
    "a bare except round an assertion": ("assertion_weakened", py(TWO, f"    try:\n    {TWO}    except:\n        print('no')\n")),
    "suppress round an assertion": ("assertion_weakened", py(TWO, f"    with contextlib.suppress(Exception):\n    {TWO}")),
    "a wider approx": ("assertion_weakened", py("abs=1e-6", "abs=1")),
    "a wider isclose": ("assertion_weakened", py("rel_tol=1e-5", "rel_tol=0.5")),
    "an exact comparison becomes approx": ("assertion_weakened", py("add(1, 2) == 3", "add(1, 2) == pytest.approx(3, abs=2)")),
    "fewer places": ("assertion_weakened", py("places=7", "places=1", base=UNIT)),
    "assertEqual becomes assertTrue": ("assertion_weakened", py("assertEqual(add(1, 2), 3)", "assertTrue(add(1, 2))", base=UNIT)),
    "any exception will do": ("assertion_weakened", py("ZeroDivisionError, match=\"division\"", "Exception")),
    "no message is asked for": ("assertion_weakened", py(", match=\"division\"", "")),
    "the expectation follows the code": ("expectation_changed", py("add(1, 2) == 3", "add(1, 2) == 4")),
    "cases follow the code": ("expectation_changed", py("(2, 2, 4)", "(2, 2, 5)")),
    "the function under test is mocked": (
        "subject_mocked",
        py("def test_sums(a, b, sum_):\n", "def test_sums(a, b, sum_, monkeypatch):\n    monkeypatch.setattr('tests.test_calc.add', lambda a, b: sum_)\n"),
    ),
    # configuration
    "fail_under is lowered": ("threshold_lowered", text("pyproject.toml", PYPROJECT, "fail_under = 90", "fail_under = 10")),
    "fail_under is removed": ("threshold_lowered", text(".coveragerc", "[report]\nfail_under = 90\n", "fail_under = 90\n", "")),
    "jest's threshold is lowered": ("threshold_lowered", text("package.json", PACKAGE, '"lines": 90', '"lines": 9')),
    "addopts deselect a test": ("config_touched", text("pyproject.toml", PYPROJECT, "-q --strict-markers", "-q --deselect tests/test_calc.py::test_div")),
    "a pytest.ini appears": ("config_touched", ({}, {"pytest.ini": "[pytest]\naddopts = -k 'not div'\n"})),
    "the test script always succeeds": ("config_touched", text("package.json", PACKAGE, "jest --ci", "jest --ci || true")),
    "the test target does nothing": ("config_touched", text("Makefile", MAKE, "./run_tests --all", "true")),
    "CI leaves the tests out": ("config_touched", text(".github/workflows/ci.yml", "jobs:\n  t:\n    run: make test\n", "make test", "echo ok")),
    "surefire skips tests": ("config_touched", text("pom.xml", "<project>\n</project>\n", "</project>", "<skipTests>true</skipTests>\n</project>")),
    "conftest ignores files": ("config_touched", ({}, {"tests/conftest.py": "collect_ignore = ['test_calc.py']\n"})),
    "conftest rewrites reports": (
        "config_touched",
        ({}, {"conftest.py": "import pytest\n\n@pytest.hookimpl(hookwrapper=True)\ndef pytest_runtest_makereport(item, call):\n    out = yield\n    out.get_result().outcome = 'passed'\n"}),
    ),
    "conftest drops items": ("config_touched", ({}, {"conftest.py": "def pytest_collection_modifyitems(items):\n    items[:] = items[:1]\n"})),
    "an autouse fixture patches the product": (
        "config_touched",
        ({}, {"tests/conftest.py": "import pytest\n\n@pytest.fixture(autouse=True)\ndef fine(monkeypatch):\n    monkeypatch.setattr('calc.add', lambda a, b: 3)\n"}),
    ),
    "code is left out of coverage": ("check_suppressed", text("calc.py", CALC, "def div(a, b):", "def div(a, b):  # pragma: no cover")),
    "a security finding is told to be quiet": ("check_suppressed", text("calc.py", CALC, "    return a / b", "    return eval(f'{a}/{b}')  # nosec")),
    # runs that end early, or know that they are runs
    "os._exit in the product": ("exit_trick", text("calc.py", CALC, "def add(", "import os\nos._exit(0)\n\n\ndef add(")),
    "sys.exit in a test": ("exit_trick", py(TWO, f"{TWO}    import sys\n    sys.exit(0)\n")),
    "atexit in a test": ("exit_trick", ({}, {"tests/test_new.py": "import atexit, os\natexit.register(lambda: os._exit(0))\n"})),
    "sys.exit at import of the product": ("exit_trick", text("calc.py", CALC, "def add(", "import sys\nsys.exit(0)\n\n\ndef add(")),
    "the report is written by the tests": ("report_forged", ({}, {"tests/test_new.py": "import os\nopen(os.environ['SIGNALBOX_EVIDENCE'] + '/junit.xml', 'w')\n"})),
    "the product asks for pytest": ("tests_detected", text("calc.py", CALC, "    return a + b", "    import sys\n    if 'pytest' in sys.modules:\n        return 3\n    return a + b")),
    "the product asks for the current test": ("tests_detected", text("calc.py", CALC, "    return a + b", "    import os\n    return 3 if os.environ.get('PYTEST_CURRENT_TEST') else a + b")),
    "equal to anything": ("framework_patched", ({}, {"calc_types.py": "class Sum:\n    def __eq__(self, other):\n        return True\n"})),
    "assertEqual is replaced": ("framework_patched", ({}, {"tests/helper.py": "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\n"})),
    "a module is replaced in a test": ("framework_patched", ({}, {"tests/test_new.py": "import sys\nsys.modules['calc'] = object()\n"})),
    "export-ignore hides files": ("export_ignore", ({}, {".gitattributes": "tests/** export-ignore\n"})),
    "a test file that is no Python": ("unreadable", py("def test_add():", "def test_add(:")),
    # other languages
    "js: it.skip": ("test_skipped", text("src/total.test.ts", JS, "it('adds", "it.skip('adds")),
    "js: xit": ("test_skipped", text("src/total.test.js", JS, "it('adds", "xit('adds")),
    "js: describe.skip": ("test_skipped", text("src/total.test.js", JS, "describe('total", "describe.skip('total")),
    "js: it.only": ("test_skipped", text("src/total.spec.js", JS, "it('rounds", "it.only('rounds")),
    "js: a matcher is weakened": ("assertion_weakened", text("src/total.test.ts", JS, "toBe(3)", "toBeDefined()")),
    "js: an expectation is gone": ("assertion_removed", text("src/total.test.ts", JS, "    expect(total([])).toBe(0);\n", "")),
    "js: precision is lower": ("expectation_changed", text("src/total.test.ts", JS, "toBeCloseTo(0.3, 5)", "toBeCloseTo(0.3, 0)")),
    "js: a test is deleted": ("test_deleted", text("src/total.test.ts", JS, JS[JS.index("  it('rounds") : JS.index("});\n", JS.index("0.3, 5") + 12)], "")),
    "js: process.exit": ("exit_trick", text("src/total.test.js", JS, "describe(", "process.exit(0);\ndescribe(")),
    "js: the module under test is mocked": ("subject_mocked", text("src/total.test.js", JS, "describe(", "jest.mock('../src/total');\ndescribe(")),
    "go: t.Skip": ("test_skipped", text("calc_test.go", GO, "func TestAdd(t *testing.T) {\n", "func TestAdd(t *testing.T) {\n\tt.Skip()\n")),
    "go: a build tag": ("test_skipped", text("calc_test.go", GO, "package calc", "//go:build ignore\n\npackage calc")),
    "go: a test is renamed": ("test_deleted", text("calc_test.go", GO, "func TestSub(", "func testSub(")),
    "go: Fatalf becomes Logf": ("assertion_removed", text("calc_test.go", GO, 't.Fatalf("got', 't.Logf("got')),
    "go: os.Exit in TestMain": ("exit_trick", text("calc_test.go", GO, "func TestAdd", "func TestMain(m *testing.M) {\n\tm.Run()\n\tos.Exit(0)\n}\n\nfunc TestAdd")),
    "rust: ignore": ("test_skipped", text("src/lib.rs", RUST, "    #[test]\n    fn adds()", "    #[test]\n    #[ignore]\n    fn adds()")),
    "rust: assert_eq becomes assert": ("assertion_weakened", text("src/lib.rs", RUST, "assert_eq!(add(1, 2), 3)", "assert!(true)")),
    "rust: the test attribute is gone": ("test_deleted", text("src/lib.rs", RUST, "    #[test]\n    fn adds()", "    fn adds()")),
    "java: Disabled": ("test_skipped", text("src/test/java/CalcTest.java", JAVA, "    @Test\n    void adds", "    @Disabled\n    @Test\n    void adds")),
    "java: assertEquals becomes assertNotNull": ("assertion_weakened", text("src/test/java/CalcTest.java", JAVA, "assertEquals(3, Calc.add(1, 2))", "assertNotNull(Calc.add(1, 2))")),
    "java: a test is gone": ("test_deleted", text("src/test/java/CalcTest.java", JAVA, "    @Test\n    void divides", "    void divides")),
    "ruby: xit": ("test_skipped", text("spec/calc_spec.rb", RUBY, '  it "adds"', '  xit "adds"')),
    "ruby: skip": ("test_skipped", text("spec/calc_spec.rb", RUBY, '  it "adds" do\n', '  it "adds" do\n    skip "later"\n')),
    "ruby: eq becomes truth": ("assertion_weakened", text("spec/calc_spec.rb", RUBY, "to eq(3)", "to be_truthy")),
    "ruby: at_exit": ("exit_trick", text("spec/calc_spec.rb", RUBY, "describe Calc", "at_exit { exit!(0) }\ndescribe Calc")),
}  # fmt: skip

NEW_TEST = "\n\ndef test_more():\n    assert add(5, 5) == 10\n"

HONEST: dict[str, tuple[Files, Files]] = {
    "a test is added at the end": py(PY, PY + NEW_TEST),
    "a test is added in between": py("@pytest.mark.parametrize", "def test_zero():\n    assert add(0, 0) == 0\n\n\n@pytest.mark.parametrize"),
    "a test is added to a class": py("    def test_items", "    def test_none(self):\n        assert sorted([]) == []\n\n    def test_items"),
    "a new test file": ({}, {"tests/test_new.py": "from calc import add\n" + NEW_TEST}),
    "a new test file with a fixture and mocks of others": (
        {},
        {"tests/test_new.py": "import pytest\n\nfrom shop import total\n\n\n@pytest.fixture\ndef prices(monkeypatch):\n    monkeypatch.setattr('shop.fetch', lambda: [1, 2])\n\n\ndef test_total(prices):\n    assert total() == 3\n"},
    ),
    "an assertion is added": py(TWO, f"{TWO}    assert add(2, 2) == 4\n"),
    "cases are added": py("(0, 0, 0)]", "(0, 0, 0), (5, 5, 10)]"),
    "a tolerance is narrower": py("abs=1e-6", "abs=1e-9"),
    "an assertion asks for more": py("assert len(found) == 2", "assert len(found) == 2\n        assert found[0] == 1"),
    "truth becomes a comparison": text("tests/test_a.py", "def test_a():\n    assert f(1)\n", "f(1)", "f(1) == 3"),
    "the product is changed and a test is added": (
        {"calc.py": CALC, "tests/test_calc.py": PY},
        {"calc.py": CALC + "\n\ndef sub(a, b):\n    return a - b\n", "tests/test_calc.py": PY + "\n\ndef test_sub():\n    from calc import sub\n\n    assert sub(3, 1) == 2\n"},
    ),
    "a test is moved to another file": (
        {"tests/test_calc.py": PY, "tests/test_other.py": "def test_o():\n    assert 1 + 1 == 2\n"},
        {"tests/test_calc.py": PY.replace(PY[PY.index("def test_add") : PY.index("def test_div")], ""), "tests/test_other.py": "from calc import add\n\n\ndef test_o():\n    assert 1 + 1 == 2\n\n\n" + PY[PY.index("def test_add") : PY.index("def test_div")]},
    ),
    "a test file is renamed": ({"tests/test_calc.py": PY}, {"tests/test_calc.py": None, "tests/unit/test_calculator.py": PY}),
    "a test gets a better name": py("def test_add():", "def test_add_gives_the_sum():"),
    "a new test that is skipped on Windows": py(PY, PY + "\n\n@pytest.mark.skipif(sys.platform == 'win32', reason='paths')\ndef test_paths():\n    assert add(1, 1) == 2\n"),
    "a conftest with a fixture": ({}, {"tests/conftest.py": "import pytest\n\n\n@pytest.fixture\ndef database():\n    return {}\n"}),
    "a marker is named": text("pyproject.toml", PYPROJECT, 'markers = ["slow: takes long"]', 'markers = ["slow: takes long", "net: needs a network"]'),
    "a dependency is added": text("pyproject.toml", PYPROJECT, '"attrs"', '"attrs", "hypothesis"'),
    "the coverage threshold rises": text("pyproject.toml", PYPROJECT, "fail_under = 90", "fail_under = 95"),
    "a package gets a dependency": text("package.json", PACKAGE, '"build": "tsc"', '"build": "tsc -p ."'),
    "a build target is changed": text("Makefile", MAKE, "cc -o", "cc -O2 -o"),
    "a main program exits": ({}, {"calc/__main__.py": "import sys\n\n\ndef main():\n    sys.exit(3)\n\n\nif __name__ == '__main__':\n    main()\n"}),
    "unittest: a method is added": py("    def test_add", "    def test_zero(self):\n        self.assertEqual(add(0, 0), 0)\n\n    def test_add", base=UNIT),
    "try and except in a new test that fails": py(PY, PY + "\n\ndef test_error():\n    try:\n        div(1, 0)\n    except ZeroDivisionError as error:\n        assert 'division' in str(error)\n    else:\n        pytest.fail('no error')\n"),
    "documents and data": ({"README.md": "a\n"}, {"README.md": "a, never # nosec\n", "tests/data/prices.json": "[1]\n"}),
    "js: a test is added": text("src/total.test.ts", JS, "  it('rounds", "  it('takes one', () => {\n    expect(total([4])).toBe(4);\n  });\n\n  it('rounds"),
    "js: a new file that mocks a collaborator": ({}, {"src/shop.test.js": "import { buy } from '../src/shop';\nimport { fetchPrice } from '../src/net';\njest.mock('../src/net');\n\nit('buys', async () => {\n  fetchPrice.mockResolvedValue(3);\n  expect(await buy('tea')).toEqual({ price: 3 });\n});\n"}),
    "js: an expectation is added": text("src/total.test.ts", JS, "    expect(total([])).toBe(0);\n", "    expect(total([])).toBe(0);\n    expect(total([7])).toBe(7);\n"),
    "go: a test is added": text("calc_test.go", GO, "func TestSub", 'func TestZero(t *testing.T) {\n\tif Add(0, 0) != 0 {\n\t\tt.Error("zero")\n\t}\n}\n\nfunc TestSub'),
    "go: a table of cases": ({}, {"more_test.go": 'package calc\n\nimport "testing"\n\nfunc TestMany(t *testing.T) {\n\tfor _, c := range []struct{ a, b, want int }{{1, 2, 3}} {\n\t\tif got := Add(c.a, c.b); got != c.want {\n\t\t\tt.Errorf("got %d", got)\n\t\t}\n\t}\n}\n'}),
    "rust: a test is added": text("src/lib.rs", RUST, "    #[test]\n    fn adds_negatives", "    #[test]\n    fn adds_zero() {\n        assert_eq!(add(0, 0), 0);\n    }\n\n    #[test]\n    fn adds_negatives"),
    "java: a test is added": text("src/test/java/CalcTest.java", JAVA, "    @Test\n    void divides", "    @Test\n    void addsZero() {\n        assertEquals(0, Calc.add(0, 0));\n    }\n\n    @Test\n    void divides"),
    "ruby: a test is added": text("spec/calc_spec.rb", RUBY, '  it "subtracts"', '  it "adds zero" do\n    expect(Calc.add(0, 0)).to eq(0)\n  end\n\n  it "subtracts"'),
}  # fmt: skip
