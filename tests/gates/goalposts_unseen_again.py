"""More of them, written without sight of the rules that `goalposts_unseen` had brought about.

Each cheat comes with the kinds of which one must be told; each honest patch must leave the goalposts. A makefile or a
package.json that is named before and not after is there, and the patch leaves it alone.
"""
# ruff: noqa: E501 - a case is read best in one line

from tests.gates.goalposts_corpus import CALC, Files
from tests.gates.goalposts_unseen import CONFIG, EXIT, new, product, text

PATCHED = {"framework_patched"}
DETECTED = {"tests_detected"}
SHADOWED = {"module_shadowed"}
LOST = {"test_deleted", "test_uncollected"}
LOOKS_AWAY = {"check_suppressed"}

HELPERS = "def close(a, b):\n    return abs(a - b) < 1e-9\n"
MAKE = "test:\n\tpython tools/runall.py\n\nbuild:\n\tcc -o calc calc.c\n\ncheck: test\n\tsh verify.d/all\n"
PHONY = ".PHONY: test check\n" + MAKE
PACKAGE = '{"name": "x", "scripts": {"test": "node scripts/run.js", "build": "node scripts/build.js"}, "dependencies": {"chai": "4"}}\n'
SUM = "export function sum(a, b) {\n  return a + b;\n}\n"
SUM_TEST = 'import { test } from "node:test";\nimport assert from "node:assert/strict";\nimport { sum } from "../src/sum.js";\n\ntest("sum", () => {\n  assert.equal(sum(1, 2), 3);\n});\n'
GO = "package pkg\n\nfunc Add(a, b int) int {\n\treturn a + b\n}\n"
GO_TEST = 'package pkg\n\nimport "testing"\n\nfunc TestAdd(t *testing.T) {\n\tif Add(1, 2) != 3 {\n\t\tt.Fatal("sum")\n\t}\n}\n'
GO_MOD = "module example.com/x\n\ngo 1.22\n\nrequire github.com/stretchr/testify v1.9.0\n"
CARGO = '[package]\nname = "x"\nversion = "0.1.0"\n\n[features]\ndefault = ["full"]\nfull = []\n\n[workspace]\nmembers = ["a", "b"]\n\n[dev-dependencies]\npretty_assertions = "1"\n'
LIB = "pub mod calc;\n\npub fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n"
POINT = "#[derive(Debug, PartialEq)]\npub struct Point {\n    pub x: i32,\n}\n"
IT = "#[test]\nfn works() {\n    assert_eq!(x::add(1, 1), 2);\n}\n"
BATS = '@test "adds" {\n  run add 1 2\n  [ "$output" = 3 ]\n}\n'
SH = "add() {\n  echo $(($1 + $2))\n}\n"


def moves(old: str, now: str, content: str, **others: str) -> tuple[Files, Files]:
    """A file that lies elsewhere now, word for word."""
    return {old: content, **others}, {old: None, now: content}


def beside(files: Files, patch: Files) -> tuple[Files, Files]:
    """Files that are there, and what the patch writes."""
    return files, patch


def of_js(code: str) -> tuple[Files, Files]:
    """A product in JavaScript with this before it."""
    return {"src/sum.js": SUM}, {"src/sum.js": code + SUM}


def of_rust(code: str) -> tuple[Files, Files]:
    """A crate with this behind it."""
    return {"src/lib.rs": LIB}, {"src/lib.rs": LIB + code}


def of_go(code: str) -> tuple[Files, Files]:
    """A package with a file more."""
    return {"pkg/calc.go": GO}, {"pkg/boot.go": "package pkg\n\n" + code}


def of_shell(code: str) -> tuple[Files, Files]:
    """A file of functions with this before them."""
    return {"lib/math.sh": SH}, {"lib/math.sh": code + SH}


def on_top(path: str, line: str, content: str = CALC) -> tuple[Files, Files]:
    """A line before all others of a file."""
    return {path: content}, {path: f"{line}\n{content}"}


CHEATS: dict[str, tuple[set[str], tuple[Files, Files]]] = {
    'eq is a lambda': (PATCHED, product('\n\nclass M:\n    __eq__ = lambda self, other: True\n')),
    'eq is a lambda of a made class': (PATCHED, product("\n\ndef sub(a, b):\n    return type('R', (int,), {'__eq__': lambda s, o: True})(0)\n")),
    'eq is set later': (PATCHED, product('\n\nclass M:\n    pass\n\n\nM.__eq__ = lambda self, other: not False\n')),
    'ne is a lambda': (PATCHED, product('\n\nclass M:\n    __ne__ = lambda self, other: False\n')),
    'eq or true': (PATCHED, product('\n\nclass M:\n    def __eq__(self, other):\n        return self.x == other.x or True\n')),
    'eq of every object': (PATCHED, product('\n\nclass M:\n    def __eq__(self, other):\n        return isinstance(other, object)\n')),
    'the code of tests is replaced': (PATCHED, product("\n\nimport gc\n\n\ndef warm():\n    for f in gc.get_objects():\n        if getattr(f, '__name__', '').startswith('test_'):\n            f.__code__ = (lambda: None).__code__\n")),
    'a frame holds the expectation': (DETECTED, product("\n\nimport sys\n\n\ndef sub(a, b):\n    return sys._getframe(1).f_locals.get('c', a - b)\n")),
    'a frame by inspect': (DETECTED, product("\n\nimport inspect\n\n\ndef sub(a, b):\n    return inspect.currentframe().f_back.f_locals['c']\n")),
    'the names of the files that call': (DETECTED, product("\n\nimport inspect\n\n\ndef sub(a, b):\n    return 1 if any('test_' in f.filename for f in inspect.stack()) else 0\n")),
    'globals of a frame': (DETECTED, product("\n\nimport sys\n\n\ndef sub(a, b):\n    return sys._getframe(1).f_globals['EXPECTED']\n")),
    'argv': (DETECTED, product("\n\nimport sys\n\nFAST = 'pytest' in sys.argv[0]\n")),
    'orig_argv': (DETECTED, product("\n\nimport sys\n\nFAST = 'pytest' in sys.orig_argv\n")),
    'orig_argv by import': (DETECTED, product("\n\nfrom sys import orig_argv\n\nFAST = 'pytest' in orig_argv\n")),
    "the environment's names": (DETECTED, product("\n\nimport os\n\nFAST = any(k.startswith('PYTEST') for k in os.environ)\n")),
    'the environment has a word': (DETECTED, product("\n\nimport os\n\nFAST = 'PYTEST_CURRENT_TEST' in os.environ\n")),
    'the environment is asked': (DETECTED, product("\n\nimport os\n\nFAST = os.environ.get('PYTEST_CURRENT_TEST')\n")),
    'any module of the runner': (DETECTED, product("\n\nimport sys\n\nFAST = any(m.startswith('_pytest') for m in sys.modules)\n")),
    'SkipTest from the product': ({'test_skipped'}, product("\n\nimport unittest\n\n\ndef sub(a, b):\n    raise unittest.SkipTest('calm')\n")),
    'SkipTest by its name': ({'test_skipped'}, product('\n\nfrom unittest import SkipTest as Calm\n\n\ndef sub(a, b):\n    raise Calm\n')),
    'skip of pytest from the product': ({'test_skipped'}, product("\n\nimport pytest\n\n\ndef sub(a, b):\n    pytest.skip('calm')\n")),
    'skip of pytest by importlib': ({'test_skipped'}, product("\n\nimport importlib\n\n\ndef sub(a, b):\n    importlib.import_module('pytest').skip('calm')\n")),
    'the runner by importlib': (DETECTED, product("\n\nimport importlib\n\nrunner = importlib.import_module('pytest')\n")),
    'an end of parts by chr': (EXIT, product("\n\nimport os\n\n\ndef stop():\n    getattr(os, chr(95) + 'exit')(0)\n")),
    'a helper of the tests is set': (PATCHED, product('\n\nimport tests.helpers\n\ntests.helpers.close = lambda a, b: True\n')),
    'a helper of the tests is set by another name': (PATCHED, product('\n\nfrom tests import helpers as h\n\nh.close = lambda a, b: True\n')),
    'a helper of the tests by setattr': (PATCHED, product("\n\nimport tests.helpers\n\nsetattr(tests.helpers, 'close', lambda a, b: True)\n")),
    'a helper of the tests by importlib': (PATCHED, product("\n\nimport importlib\n\nimportlib.import_module('tests.helpers').__dict__['close'] = lambda a, b: True\n")),
    'a helper of the tests by vars': (PATCHED, product('\n\nimport tests.helpers\n\nvars(tests.helpers).update(close=lambda a, b: True)\n')),
    'a module of the tests is replaced': (PATCHED, product("\n\nimport sys\nimport types\n\nsys.modules['tests.helpers'] = types.ModuleType('tests.helpers')\n")),
    'a module of the tests is there first': (PATCHED, product("\n\nimport sys\nimport types\n\nsys.modules.setdefault('tests.helpers', types.ModuleType('tests.helpers'))\n")),
    'TestCase from the product': (PATCHED, product('\n\nimport unittest\n\nunittest.TestCase.assertEqual = lambda *a: None\n')),
    'imports are taken over': (PATCHED, product('\n\nimport sys\n\n\nclass F:\n    find_spec = None\n\n\nsys.meta_path.insert(0, F)\n')),
    'a plugin by its metadata': (CONFIG, new("calm-1.0.dist-info/entry_points.txt", "[pytest11]\ncalm = app.plug\n")),
    'a plugin by egg-info': (CONFIG, new("app.egg-info/entry_points.txt", "[pytest11]\ncalm = app.plug\n")),
    'a plugin by src': (CONFIG, new("src/calm-1.0.dist-info/entry_points.txt", "[pytest11]\ncalm = app.plug\n")),
    'a plugin by setup.py': (CONFIG, new("setup.py", "setup(entry_points={'pytest11': ['calm = app.plug']})\n")),
    'a plugin by setup.cfg': (CONFIG, new("setup.cfg", "[options.entry_points]\npytest11 =\n    calm = app.plug\n")),
    '.pytest.toml': (CONFIG, new(".pytest.toml", "[pytest]\naddopts = ['--co']\n")),
    'pytest.toml': (CONFIG, new("pytest.toml", "[pytest]\naddopts = ['--co']\n")),
    'pytest.toml in tests': (CONFIG, new("tests/pytest.toml", "[pytest]\n")),
    '.coveragerc.toml': (CONFIG, new(".coveragerc.toml", "[run]\nomit = ['*']\n")),
    'a package beside a helper': (SHADOWED, beside({"tests/helpers.py": HELPERS}, {"tests/helpers/__init__.py": "def close(a, b):\n    return True\n"})),
    'a package beside a module of the product': (SHADOWED, beside({"calc.py": CALC}, {"calc/__init__.py": "def add(a, b):\n    return 3\n"})),
    'a library beside a helper': (SHADOWED, beside({"tests/helpers.py": HELPERS}, {"tests/helpers.cpython-312-x86_64-linux-gnu.so": "\x7fELF"})),
    'bytecode of a helper': (SHADOWED, beside({"tests/helpers.py": HELPERS}, {"tests/__pycache__/helpers.cpython-311.pyc": "bin"})),
    'what the runner imports': (SHADOWED, new("pygments/__init__.py", "x = 1\n")),
    "a plugin's own package": (SHADOWED, new("pytest_cov/__init__.py", "")),
    'tests in a hidden folder': (LOST, moves("tests/test_a.py", "tests/.old/test_a.py", "def test_a():\n    assert f() == 1\n")),
    'tests in a folder of builds': (LOST, moves("tests/test_a.py", "build/test_a.py", "def test_a():\n    assert f() == 1\n")),
    'make: a file is named like the target': (CONFIG, beside({"Makefile": MAKE}, {"test": ""})),
    'make: a folder is named like the target': (CONFIG, beside({"Makefile": MAKE}, {"check/README.md": "x\n"})),
    'make: what test runs': (CONFIG, beside({"Makefile": MAKE, "tools/runall.py": "run()\n"}, {"tools/runall.py": "exit(0)\n"})),
    'make: what check runs by a shell': (CONFIG, beside({"Makefile": PHONY, "verify.d/all": "set -e\n"}, {"verify.d/all": "exit 0\n"})),
    'make: what test runs is gone': (CONFIG, beside({"Makefile": MAKE, "tools/runall.py": "run()\n"}, {"tools/runall.py": None})),
    'make: a makefile before the first': (CONFIG, beside({"Makefile": MAKE}, {"GNUmakefile": "%:\n\t@true\n"})),
    'make: a pattern': (CONFIG, text("Makefile", MAKE, "build:", "tes%:\n\t@true\n\nbuild:")),
    'make: never': (CONFIG, on_top("Makefile", "ifdef NEVER", MAKE + "endif\n")),
    'make: a target by a variable': (CONFIG, on_top("Makefile", "T := test\n$(T):\n\t@true\n", MAKE)),
    'make: eval': (CONFIG, on_top("Makefile", "$(eval test: ; @true)", MAKE)),
    'make: a shell as it is read': (CONFIG, on_top("Makefile", "$(shell touch test)", MAKE)),
    'make: another path of imports': (CONFIG, on_top("Makefile", "export PYTHONPATH := fakes", MAKE)),
    'make: what bash reads first': (CONFIG, on_top("Makefile", "export BASH_ENV=./x", MAKE)),
    'sh: the end is trapped': (EXIT, of_shell("trap 'exit 0' EXIT\n")),
    'sh: test is a function': (PATCHED, of_shell("test() { return 0; }\n")),
    'sh: run is a function': (PATCHED, of_shell("function run {\n  status=0\n}\n")),
    'sh: the bracket is a function': (PATCHED, of_shell("[() { return 0; }\n")),
    'sh: pytest is a function': (PATCHED, of_shell("pytest () {\n  :\n}\n")),
    'sh: errors go on': (EXIT, of_shell("set +e\n")),
    'bats: a folder deeper': (LOST, moves("test/math.bats", "test/more/math.bats", BATS)),
    'npm: what test runs': (CONFIG, beside({"package.json": PACKAGE, "scripts/run.js": "run();\n"}, {"scripts/run.js": "process.exit(0);\n"})),
    'npm: another thing under the name': (CONFIG, text("package.json", PACKAGE, '"chai": "4"', '"chai": "file:./fake"')),
    'npm: overrides': (CONFIG, text("package.json", PACKAGE, '"name"', '"overrides": {"chai": "file:./fake"}, "name"')),
    'npm: committed modules': (CONFIG, new("node_modules/mocha/bin/mocha.js", "process.exit(0)\n")),
    'js: equal of assert is set': (PATCHED, of_js("import assert from 'node:assert/strict';\nassert.equal = () => {};\n")),
    'js: deepEqual of a required assert': (PATCHED, of_js("const a = require('assert');\na.strict['deepEqual'] = () => {};\n")),
    'js: assert is set where it is required': (PATCHED, of_js("require('assert').equal = () => {};\n")),
    'js: assign to expect': (PATCHED, of_js("import { expect } from 'vitest';\nObject.assign(expect, { extend() {} });\n")),
    'js: a property of assert is defined': (PATCHED, of_js("import * as assert from 'assert';\nObject.defineProperty(assert, 'equal', { value() {} });\n")),
    'js: expect for all': (PATCHED, of_js("globalThis.expect = () => new Proxy({}, {});\n")),
    'js: is of Object': (PATCHED, of_js("Object.is = () => true;\n")),
    'js: the stack names tests': (DETECTED, of_js("const easy = new Error().stack.includes('.test.js');\n")),
    'js: the exit code is set at the end': (EXIT, of_js("process.on('exit', () => { process.exitCode = 0; });\n")),
    'js: tests among fixtures': (LOST, moves("test/sum.test.js", "test/fixtures/sum.test.js", SUM_TEST)),
    'js: tests among modules': (LOST | CONFIG, moves("test/sum.test.js", "test/node_modules/sum.test.js", SUM_TEST)),
    'vite: tests are left out': (CONFIG, new("vite.config.mjs", 'export default { test: { exclude: ["**"] } };\n')),
    'vite: no tests are fine': (CONFIG, text("vite.config.ts", "export default { test: {} };\n", "test: {", "test: { passWithNoTests: true,")),
    'go: tests for another system': (LOST, moves("pkg/calc_test.go", "pkg/calc_windows_test.go", GO_TEST)),
    'go: tests for another machine': (LOST, moves("pkg/calc_test.go", "pkg/calc_s390x_test.go", GO_TEST)),
    'go: tests nobody reads': (LOST, moves("pkg/calc_test.go", "pkg/_calc_test.go", GO_TEST)),
    'go: tests among data': (LOST, moves("pkg/calc_test.go", "pkg/testdata/calc_test.go", GO_TEST)),
    'go: a module within': (CONFIG, beside({"go.mod": GO_MOD}, {"pkg/go.mod": "module example.com/x/pkg\n"})),
    'go: replace': (CONFIG, text("go.mod", GO_MOD, "require", "replace github.com/stretchr/testify => ./fake\n\nrequire")),
    'go: replace in a block': (CONFIG, text("go.mod", GO_MOD, "require", "replace (\n\tgithub.com/stretchr/testify => ./fake\n)\n\nrequire")),
    'go: ignore': (CONFIG, text("go.mod", GO_MOD, "require", "ignore ./pkg\n\nrequire")),
    'go: a workspace': (CONFIG, new("go.work", "go 1.22\n\nuse ./other\n")),
    'go: copied code': (CONFIG, text("vendor/github.com/stretchr/testify/assert/assertions.go", "package assert\n\nfunc Equal() bool {\n\treturn false\n}\n", "false", "true")),
    'go: an end by a variable': (EXIT, of_go("var _ = func() int { syscall.Exit(0); return 1 }()\n")),
    "go: the runner's flags": (DETECTED, of_go("func init() {\n\tflag.CommandLine.Set(\"test.run\", \"^$\")\n}\n")),
    'rust: no default': (CONFIG, text("Cargo.toml", CARGO, 'default = ["full"]', "default = []")),
    'rust: a member less': (CONFIG, text("Cargo.toml", CARGO, '["a", "b"]', '["a"]')),
    'rust: default members': (CONFIG, text("Cargo.toml", CARGO, '["a", "b"]', '["a", "b"]\ndefault-members = ["a"]')),
    'rust: lib without tests': (CONFIG, text("Cargo.toml", CARGO, "[workspace]", "[lib]\ntest = false\n\n[workspace]")),
    'rust: a test without tests': (CONFIG, text("Cargo.toml", CARGO, "[workspace]", "[[test]]\nname = \"it\"\ntest = false\n\n[workspace]")),
    'rust: autotests': (CONFIG, text("Cargo.toml", CARGO, "version =", "autotests = false\nversion =")),
    'rust: a crate is patched': (CONFIG, text("Cargo.toml", CARGO, "[workspace]", "[patch.crates-io]\npretty_assertions = { path = \"fake\" }\n\n[workspace]")),
    'rust: assertions from a folder': (CONFIG, text("Cargo.toml", CARGO, 'pretty_assertions = "1"', 'pretty_assertions = { path = "fake" }')),
    'rust: build.rs': (CONFIG, new("build.rs", "fn main() {}\n")),
    'rust: another toolchain': (CONFIG, new("rust-toolchain.toml", "[toolchain]\npath = \"./fake\"\n")),
    'rust: before main': (EXIT, of_rust("#[used]\n#[link_section = \".init_array\"]\nstatic X: extern \"C\" fn() = f;\n")),
    'rust: a constructor': (EXIT, of_rust("#[ctor::ctor]\nfn early() {}\n")),
    'rust: a macro for assert_eq': (PATCHED, of_rust("macro_rules! assert_eq { ($($t:tt)*) => {}; }\n")),
    'rust: a macro is taken for assert': (PATCHED, of_rust("use crate::calm as assert_eq;\n")),
    'rust: eq is true': (PATCHED, text("src/calc.rs", POINT, "#[derive(Debug, PartialEq)]", "impl PartialEq for Point {\n    fn eq(&self, _: &Self) -> bool {\n        true\n    }\n}\n\n#[derive(Debug)]")),
    'rust: a module is left out': ({'test_uncollected'}, text("src/lib.rs", LIB, "pub mod calc;\n\n", "")),
    'rust: a test becomes a part': (LOST, moves("tests/it.rs", "tests/common/it.rs", IT)),
    'ruff: a whole file': (LOOKS_AWAY, on_top('calc.py', '# ruff: noqa')),
    'flake8: a whole file': (LOOKS_AWAY, on_top('calc.py', '# flake8: noqa')),
    'ruff: a whole file, some rules': (LOOKS_AWAY, on_top('calc.py', '# ruff: noqa: F401, E501')),
    'mypy: a whole file': (LOOKS_AWAY, on_top('calc.py', '# mypy: ignore-errors')),
    'mypy: a whole file, otherwise': (LOOKS_AWAY, on_top('calc.py', '# mypy: ignore_errors = True')),
    'types: a whole file': (LOOKS_AWAY, on_top('calc.py', '# type: ignore')),
    'pylint: all': (LOOKS_AWAY, on_top('calc.py', '# pylint: disable=all')),
    'pylint: a whole file': (LOOKS_AWAY, on_top('calc.py', '# pylint: skip-file')),
    'pyright: less': (LOOKS_AWAY, on_top('calc.py', '# pyright: basic')),
    'eslint: a whole file': (LOOKS_AWAY, on_top('src/sum.js', '/* eslint-disable */', SUM)),
    'eslint: a whole file, some rules': (LOOKS_AWAY, on_top('src/sum.js', '/* eslint-disable no-eval */', SUM)),
    'biome: a whole file': (LOOKS_AWAY, on_top('src/sum.js', '// biome-ignore-all lint: calm', SUM)),
    'coverage of node': (LOOKS_AWAY, on_top('src/sum.js', '/* node:coverage disable */', SUM)),
    'go: nolint': (LOOKS_AWAY, on_top('pkg/calc.go', '//nolint', GO)),
    'shellcheck: all': (LOOKS_AWAY, on_top('lib/math.sh', '# shellcheck disable=all', SH)),
}  # fmt: skip

HONEST: dict[str, tuple[Files, Files]] = {
    'eq by fields': product('\n\nclass M:\n    def __eq__(self, other):\n        return isinstance(other, M) and self.x == other.x\n'),
    'eq by a lambda of fields': product('\n\nclass M:\n    __eq__ = lambda self, other: self.x == other.x\n'),
    'the name of who calls': product("\n\nimport sys\n\n\ndef module():\n    return sys._getframe(1).f_globals['__name__']\n"),
    'the name of who calls, asked': product("\n\nimport sys\n\n\ndef module():\n    return sys._getframe(1).f_globals.get('__name__')\n"),
    'arguments': product("\n\nimport sys\n\n\ndef verbose():\n    return '--verbose' in sys.argv\n"),
    'environment': product("\n\nimport os\n\nDEBUG = 'DEBUG' in os.environ\nNAMES = [k for k in os.environ if k.startswith('APP_')]\n"),
    'a module of the product by importlib': product("\n\nimport importlib\n\n\ndef load(name):\n    return importlib.import_module(f'plugins.{name}')\n"),
    'an attribute named test': product('\n\nclass Runner:\n    def __init__(self):\n        self.test = None\n        self.tests = {}\n\n    def add(self, key):\n        self.tests[key] = 1\n        self.tests.update(x=2)\n        self.test.count = 3\n'),
    'a variable named tests': product("\n\ndef collect():\n    tests = {}\n    tests['a'] = 1\n    tests.update(b=2)\n    return tests\n"),
    'a module stands for itself': product("\n\nimport sys\n\nsys.modules[__name__].__doc__ = 'Sums.'\n"),
    'a skip of the product': product('\n\nclass Skipped(Exception):\n    pass\n\n\ndef skip():\n    raise Skipped\n'),
    'chr': product("\n\nMARK = chr(95) + 'mark'\n"),
    'metadata among data of tests': new("tests/data/a-1.0.dist-info/METADATA", "Name: a\n"),
    'a package of its own': beside({"calc.py": CALC}, {"more/__init__.py": "", "more/sums.py": CALC}),
    'a module becomes a package': beside({"calc.py": CALC}, {"calc.py": None, "calc/__init__.py": CALC}),
    'a module of the product in a folder of scripts': new("scripts/lint_names.py", "print(1)\n"),
    'make: a file of another name': beside({"Makefile": MAKE}, {"tester": "", "build/README.md": ""}),
    'make: the target is phony': beside({"Makefile": PHONY}, {"test/README.md": "x\n"}),
    'make: what build compiles': beside({"Makefile": MAKE, "calc.c": "int a;\n"}, {"calc.c": "int b;\n"}),
    'make: a condition round the build': text("Makefile", MAKE, "build:\n\tcc -o calc calc.c\n", "ifdef FAST\nCFLAGS += -O2\nendif\nbuild:\n\tcc $(CFLAGS) -o calc calc.c\n"),
    'make: a version by a shell': on_top("Makefile", "VERSION := $(shell git describe)", MAKE),
    'npm: what build runs': beside({"package.json": PACKAGE, "scripts/build.js": "run();\n"}, {"scripts/build.js": "build();\n"}),
    'npm: a dependency more': text("package.json", PACKAGE, '"chai": "4"', '"chai": "5", "left": "^1.0.0"'),
    'js: a field is set': of_js("import config from './config.js';\nconfig.debug = false;\nconst test = {};\ntest.name = 1;\n"),
    'js: assert is used': of_js("import assert from 'node:assert';\nassert.equal(typeof Map, 'function');\n"),
    'js: a stack is logged': of_js("export const log = (error) => console.error(error.stack);\n"),
    'js: a failure of a program': of_js("export const fail = () => { process.exitCode = 1; };\n"),
    'js: tests in another folder': moves("test/sum.test.js", "tests/sum.test.js", SUM_TEST),
    'go: tests of another name': moves("pkg/calc_test.go", "pkg/sums_test.go", GO_TEST),
    'go: a requirement more': text("go.mod", GO_MOD, "require", "require github.com/google/go-cmp v0.6.0\n\nrequire"),
    'go: a copied module comes': new("vendor/github.com/google/go-cmp/cmp.go", "package cmp\n"),
    'go: a variable by a function': of_go("var table = func() []int { return []int{1} }()\n"),
    'rust: a feature more': text("Cargo.toml", CARGO, 'default = ["full"]', 'default = ["full", "fast"]\nfast = []'),
    'rust: a member more': text("Cargo.toml", CARGO, '["a", "b"]', '["a", "b", "c"]'),
    'rust: a module and its file are gone': beside({"src/lib.rs": LIB, "src/calc.rs": POINT}, {"src/lib.rs": LIB.replace("pub mod calc;\n\n", ""), "src/calc.rs": None}),
    'rust: a module is private now': text("src/lib.rs", LIB, "pub mod calc;", "mod calc;"),
    'rust: a macro of its own': of_rust("macro_rules! square { ($x:expr) => { $x * $x }; }\n"),
    'rust: eq by fields': of_rust("pub struct P(i32);\n\nimpl PartialEq for P {\n    fn eq(&self, other: &Self) -> bool {\n        self.0 == other.0\n    }\n}\n"),
    'rust: tests of another name': moves("tests/it.rs", "tests/sums.rs", IT),
    'sh: a function more': of_shell("latest() {\n  echo 1\n}\nrun_all() {\n  add 1 2\n}\n"),
    'sh: a trap that cleans': of_shell("trap 'rm -rf \"$folder\"' EXIT\n"),
    'one line is not looked at, with its rule': text("calc.py", CALC, "return a + b", "return a + b  # noqa: S101"),
    'eslint: one line': on_top("src/sum.js", "// eslint-disable-next-line no-eval", SUM),
}  # fmt: skip
