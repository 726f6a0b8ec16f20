"""Patches with the tests that ran on their base and on them: those under which tests vanish, and honest ones."""
# ruff: noqa: E501 - a case is read best in one line

from collections.abc import Collection

from tests.gates.goalposts_corpus import CALC, JS, PY, Files

Run = Collection[str]
Case = tuple[Files, Run, Run]
"""Files before and after; the keys of the tests that ran before and after."""

CASES = "import pytest\n\nimport calc\n\n\n@pytest.mark.parametrize('n', calc.CASES)\ndef test_case(n):\n    assert n\n"
LISTED = "import pytest\n\nNAMES = ['a', 'b']\n\n\n@pytest.mark.parametrize('name', NAMES)\ndef test_name(name):\n    assert name\n"
BASE = "class Base:\n    def test_a(self):\n        assert 1\n\n\nclass TestOne(Base):\n    pass\n"
NODE = "import test from 'node:test';\n\ntest('adds', () => {\n  assert.equal(price(1), 2);\n});\n"
EACH = "it.each([[1, 2]])('adds %i and %i', (a, b) => {\n  expect(add(a, b)).toBe(3);\n});\n"
DOCTEST = 'def add(a, b):\n    """Sum.\n\n    >>> add(1, 2)\n    3\n    """\n    return a + b\n'
PRODUCT: Files = {"calc.py": CALC}
OTHER: Files = {"calc.py": CALC.replace("a + b", "b + a")}
PY_KEYS = (
    "tests.test_calc::test_add",
    "tests.test_calc::test_div",
    "tests.test_calc::test_sums[1-1-2]",
    "tests.test_calc.TestNames::test_items",
)


def swap(keys: Run, old: str, new: str) -> tuple[Run, Run]:
    """The keys before and after one got another name."""
    assert any(old in key for key in keys)
    return keys, [key.replace(old, new) for key in keys]


VANISHED: dict[str, tuple[str, Case]] = {
    "cases of the product go, and as many tests come": (
        "tests.test_cases::test_case[2]",
        (({**PRODUCT, "tests/test_cases.py": CASES}, {**OTHER, "tests/test_new.py": "def test_one():\n    assert 1\n"}), ["tests.test_cases::test_case[1]", "tests.test_cases::test_case[2]"], ["tests.test_cases::test_case[1]", "tests.test_new::test_one"]),
    ),
    "their file changes, and not what gives them": (
        "tests.test_cases::test_case[2]",
        (({**PRODUCT, "tests/test_cases.py": CASES}, {**OTHER, "tests/test_cases.py": CASES + "\n\ndef test_one():\n    assert 1\n"}), ["tests.test_cases::test_case[1]", "tests.test_cases::test_case[2]"], ["tests.test_cases::test_case[1]", "tests.test_cases::test_one"]),
    ),
    "the file of a node test ends before its test": (
        "test::adds",
        (({"src/price.js": "a", "src/price.test.mjs": NODE}, {"src/price.js": "b", "src/price.test.mjs": NODE}), ["test::adds"], ["test::/src/src/price.test.mjs"]),
    ),
    "a test of its name comes in another file": (
        "tests.test_calc::test_add",
        (({**PRODUCT, "tests/test_calc.py": PY}, {**OTHER, "tests/test_new.py": "def test_add():\n    assert 1\n"}), PY_KEYS, [*PY_KEYS[1:], "tests.test_new::test_add"]),
    ),
    "another test of its file has a better name": (
        "tests.test_calc::test_add",
        (({"tests/test_calc.py": PY}, {"tests/test_calc.py": PY.replace("def test_div", "def test_divides")}), PY_KEYS, ["tests.test_calc::test_divides", *PY_KEYS[2:], "tests.test_more::test_a"]),
    ),
    "a method of another class of its name goes": (
        "tests.test_a.TestA::test_x",
        (({"tests/test_a.py": "class TestA:\n    def test_x(self):\n        assert 1\n\n\nclass TestB:\n    def test_x(self):\n        assert 1\n"}, {"tests/test_a.py": "class TestA:\n    def test_x(self):\n        assert 1\n\n\nclass TestB:\n    def test_y(self):\n        assert 1\n"}), ["tests.test_a.TestA::test_x", "tests.test_a.TestB::test_x"], ["tests.test_a.TestB::test_y", "tests.test_a.TestB::test_z"]),
    ),
    "a title of another file is a part of its own": (
        "src/total.test.ts::total > adds prices",
        (({"src/total.test.ts": JS, "src/b.test.ts": "it('prices', () => {});\n"}, {"src/total.test.ts": JS, "src/b.test.ts": "it('costs', () => {});\n"}), ["src/total.test.ts::total > adds prices", "src/b.test.ts::prices"], ["src/b.test.ts::costs", "src/b.test.ts::more"]),
    ),
}  # fmt: skip

STAYED: dict[str, Case] = {
    "nothing but the product changes": ((PRODUCT, OTHER), PY_KEYS, PY_KEYS),
    "tests come": (({"tests/test_calc.py": PY}, {"tests/test_new.py": "def test_n():\n    assert 1\n"}), PY_KEYS, [*PY_KEYS, "tests.test_new::test_n"]),
    "a test gets a better name": (({"tests/test_calc.py": PY}, {"tests/test_calc.py": PY.replace("def test_add", "def test_adds")}), *swap(PY_KEYS, "test_add", "test_adds")),
    "a class gets a better name": (({"tests/test_calc.py": PY}, {"tests/test_calc.py": PY.replace("TestNames", "TestSums")}), *swap(PY_KEYS, "TestNames", "TestSums")),
    "a file of tests moves": (({"tests/test_calc.py": PY}, {"tests/test_calc.py": None, "tests/unit/test_sums.py": PY}), *swap(PY_KEYS, "tests.test_calc", "tests.unit.test_sums")),
    "a file of tests moves, below the folder of the gate": (({"web/tests/test_calc.py": PY}, {"web/tests/test_calc.py": None, "web/tests/test_sums.py": PY}), *swap(PY_KEYS, "tests.test_calc", "tests.test_sums")),
    "a test moves into a class": (({"tests/test_a.py": "def test_x():\n    assert f()\n"}, {"tests/test_a.py": "class TestA:\n    def test_x(self):\n        assert f()\n"}), ["tests.test_a::test_x"], ["tests.test_a.TestA::test_x"]),
    "a test moves to another file": (({"tests/test_calc.py": PY, "tests/test_o.py": "x = 1\n"}, {"tests/test_calc.py": PY.replace(PY[PY.index("def test_add") : PY.index("def test_div")], ""), "tests/test_o.py": "def test_add():\n    assert 1\n"}), *swap(PY_KEYS, "tests.test_calc::test_add", "tests.test_o::test_add")),
    "an inherited test gets a better name": (({"tests/test_a.py": BASE}, {"tests/test_a.py": BASE.replace("test_a", "test_b")}), ["tests.test_a.TestOne::test_a"], ["tests.test_a.TestOne::test_b"]),
    "a case is there twice, and both get a number": (({"tests/test_a.py": LISTED}, {"tests/test_a.py": LISTED.replace("'b']", "'b', 'a']")}), ["tests.test_a::test_name[a]", "tests.test_a::test_name[b]"], ["tests.test_a::test_name[a0]", "tests.test_a::test_name[b]", "tests.test_a::test_name[a1]"]),
    "a module that could not be collected can be": (({"calc.py": "def add(:\n"}, {"calc.py": CALC}), ["tests.test_calc"], PY_KEYS),
    "an example goes with its function's name": (({"calc.py": DOCTEST}, {"calc.py": DOCTEST.replace("add", "plus")}), ["calc::calc.add"], ["calc::calc.plus"]),
    "js: a test gets a better name": (({"src/total.test.ts": JS}, {"src/total.test.ts": JS.replace("adds prices", "adds all prices")}), *swap(["src/total.test.ts::total > adds prices", "src/total.test.ts::total > rounds"], "adds prices", "adds all prices")),
    "js: a file of tests moves": (({"src/total.test.ts": JS}, {"src/total.test.ts": None, "test/total.test.ts": JS}), *swap(["src/total.test.ts::total > adds prices"], "src/", "test/")),
    "node: a test gets a better name": (({"src/price.test.mjs": NODE}, {"src/price.test.mjs": NODE.replace("'adds'", "'adds two'")}), *swap(["test::adds"], "adds", "adds two")),
    "node: a script gets tests": (({"src/price.test.mjs": "f();\n"}, {"src/price.test.mjs": NODE}), ["test::/src/src/price.test.mjs"], ["test::adds"]),
    "node: the copy lies in another folder": (({"a.js": "1"}, {"a.js": "2"}), ["test::/data/run-ab12cd34/on-base/tree/a.mjs"], ["test::/data/run-ab12cd34/tree/a.mjs"]),
    "js: a case of a template is another": (({"src/a.test.js": EACH}, {"src/a.test.js": EACH.replace("[[1, 2]]", "[[1, 2], [2, 1]]").replace("%i and %i", "%i, %i")}), ["src.a::adds 1 and 2"], ["src.a::adds 1, 2", "src.a::adds 2, 1"]),
    "java: a test gets a better name": (({"src/test/java/x/CalcTest.java": "class CalcTest {\n  @Test\n  void adds() {\n    assertEquals(1, f());\n  }\n}\n"}, {"src/test/java/x/CalcTest.java": "class CalcTest {\n  @Test\n  void addsTwo() {\n    assertEquals(1, f());\n  }\n}\n"}), ["x.CalcTest::adds"], ["x.CalcTest::addsTwo"]),
}  # fmt: skip
