"""Patches like those of `goalposts_corpus`: ends of the process in the product's code, copies of others' code, and what
was told although it asks for no less."""
# ruff: noqa: E501 - a case is read best in one line

from tests.gates.goalposts_corpus import Files, text

EXIT, CONFIG, TEST = (
    {"exit_trick"},
    {"config_touched"},
    {"test_changed", "support_changed", "exit_trick", "expectation_changed"},
)
Case = tuple[Files, Files]

PRICE = "export const price = (n) => {\n  return n + 2;\n};\n"
JS_TEST = {"src/price.test.mjs": "test('adds', () => {});\n"}
GO = "package calc\n\nfunc Add(a, b int) int {\n\treturn a + b\n}\n"
MAIN_GO = 'package main\n\nimport "os"\n\nfunc main() {\n\trun()\n}\n'
RS = "pub fn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n"
LIB_SH = 'greet() {\n  echo "hello $1"\n}\n'
RB = "class Calc\n  def add(a, b)\n    a + b\n  end\nend\n"
SH = '#!/bin/sh\nset -e\n. ./lib.sh\nout=$(greet bob)\n[ "$out" = "hello bob" ] || { echo "not ok"; exit 1; }\nlast=$(greet eve)\n[ "$last" = "hello eve" ] || exit 1\necho ok\n'
PACKAGE = (
    '{"name": "a", "bin": {"a": "./src/run.js"}, "scripts": {"start": "node src/server.js", "test": "node --test"}}\n'
)


def js(old: str, new: str, path: str = "src/price.js") -> Case:
    return text(path, PRICE, old, new)


def beside(base: Files, new: Files) -> Case:
    return base, new


def go(more: str, base: str = GO, path: str = "calc.go") -> Case:
    return {path: base, "calc_test.go": "x"}, {path: base + more, "calc_test.go": "x"}


def rs(old: str, new: str, path: str = "src/lib.rs") -> Case:
    return text(path, RS, old, new)


def sh(more: str, path: str = "lib.sh", base: str = LIB_SH) -> Case:
    return {path: base}, {path: base + more}


def script(old: str, new: str) -> Case:
    return text("tests/run.sh", SH, old, new)


CHEATS: dict[str, tuple[set[str], Case]] = {
    "js: exit in a function": (EXIT, js("  return", "  if (n === 10) process.exit(0);\n  return")),
    "js: exit without a number": (EXIT, js("  return", "  process.exit();\n  return")),
    "js: exit with what is not known": (EXIT, js("  return", "  process.exit(n - 10);\n  return")),
    "js: reallyExit": (EXIT, js("  return", "  process.reallyExit(0);\n  return")),
    "js: abort": (EXIT, js("  return", "  process.abort();\n  return")),
    "js: a signal to itself": (EXIT, js("  return", "  process.kill(process.pid, 'SIGKILL');\n  return")),
    "js: exit by its name": (EXIT, js("  return", "  process['exit'](0);\n  return")),
    "js: exit is taken out": (EXIT, js("export", "const { exit } = process;\nexport")),
    "js: exit is imported": (EXIT, js("export", "import { exit as end } from 'node:process';\nexport")),
    "js: exit is handed on": (EXIT, js("  return", "  setTimeout(process.exit, 0);\n  return")),
    "js: a new module ends": (EXIT, beside({"src/price.js": PRICE}, {"src/bye.js": "export const bye = () => {\n  process.exit(0);\n};\n"})),
    "js: a program of the patch's own naming": (EXIT, beside({"src/price.js": PRICE, "package.json": PACKAGE}, {"src/price.js": PRICE.replace("  return", "  process.exit(0);\n  return"), "package.json": PACKAGE.replace("./src/run.js", "./src/price.js")})),
    "js: a guard beside it": (EXIT, text("src/price.js", PRICE + "if (require.main === module) {\n  price(1);\n}\n", "  return", "  process.exit(0);\n  return")),
    "js: a first line of a program, now": (EXIT, js("export", "#!/usr/bin/env node\nprocess.exit(0);\nexport")),
    "go: exit in a function": (EXIT, go('\nfunc Sub() { syscall.Exit(0) }\n')),
    "go: os.Exit in a function": (EXIT, go("\nfunc Sub(n int) {\n\tif n == 1 {\n\t\tos.Exit(0)\n\t}\n}\n")),
    "go: an init on one line": (EXIT, go("\nfunc init() { os.Exit(0) }\n")),
    "go: an init of a program": (EXIT, go("\nfunc init() { os.Exit(0) }\n", MAIN_GO, "main.go")),
    "go: a variable of a program": (EXIT, go("\nvar _ = func() int {\n\tos.Exit(0)\n\treturn 0\n}()\n", MAIN_GO, "main.go")),
    "go: the system's exit in a program": (EXIT, go("\nfunc Add(a, b int) int {\n\tsyscall.Exit(0)\n\treturn a + b\n}\n", MAIN_GO, "main.go")),
    "go: exit under another name": (EXIT, text("calc.go", GO, "package calc\n", 'package calc\n\nimport s "syscall"\n\nfunc Bye() { s.Exit(0) }\n')),
    "go: exit is handed on": (EXIT, go("\nvar end = os.Exit\n")),
    "rust: exit in the library": (EXIT, rs("    a + b", "    if a == 1 {\n        std::process::exit(0);\n    }\n    a + b")),
    "rust: exit is imported": (EXIT, rs("pub fn", "use std::process::{exit, Command};\n\npub fn")),
    "rust: abort": (EXIT, rs("    a + b", "    std::process::abort();")),
    "rust: exit of libc": (EXIT, rs("    a + b", "    unsafe { libc::_exit(0) };\n    a + b")),
    "sh: what is read ends": (EXIT, sh("exit 0\n")),
    "sh: what is read ends under a condition": (EXIT, sh("if true; then exit 0; fi\n")),
    "sh: a function of it ends": (EXIT, sh("bye() { exit; }\n")),
    "sh: it ends with what is not known": (EXIT, sh("bye() {\n  exit $done\n}\n")),
    "sh: another program in its place": (EXIT, sh("exec true\n")),
    "sh: a library with a first line": (EXIT, sh("exit 0\n", "src/lib.sh", "#!/bin/sh\n" + LIB_SH)),
    "ruby: exit!": (EXIT, text("lib/calc.rb", RB, "    a + b", "    exit!(0)\n    a + b")),
    "ruby: exit": (EXIT, text("lib/calc.rb", RB, "    a + b", "    exit if a == 1\n    a + b")),
    "go: a first copy of others' code": (CONFIG, beside({"go.mod": "module x\n", "calc_test.go": "x"}, {"vendor/github.com/stretchr/testify/assert/a.go": "package assert\n", "vendor/modules.txt": "# x\n"})),
    "go: a first copy below a folder": (CONFIG, beside({"srv/go.mod": "module x\n"}, {"srv/vendor/example.com/a/a.go": "package a\n"})),
    "go: a file more in a copy": (CONFIG, beside({"go.mod": "module x\n", "vendor/example.com/a/a.go": "package a\n"}, {"vendor/example.com/a/b.go": "package a\n\nfunc init() {}\n"})),
    "php: a first copy": (CONFIG, beside({"composer.json": "{}"}, {"vendor/bin/phpunit": "#!/bin/sh\nexit 0\n"})),
    "bun: a module before all": (CONFIG, beside({"package.json": PACKAGE}, {"bunfig.toml": '[test]\npreload = ["./x.ts"]\n'})),
    "bun: a module before all, at the top": (CONFIG, beside({"package.json": PACKAGE}, {"bunfig.toml": 'preload = ["./x.ts"]\n'})),
    "bun: another root of tests": (CONFIG, text("bunfig.toml", '[test]\nroot = "./tests"\n', "./tests", "./none")),
    "deno: tests are left out": (CONFIG, beside({"a.ts": "x"}, {"deno.json": '{"test": {"exclude": ["**"]}}'})),
    "deno: assertions from a folder": (CONFIG, text("deno.json", '{"imports": {"@std/assert": "jsr:@std/assert@1"}}', "jsr:@std/assert@1", "./fake.ts")),
    "sh: a check that ends the tests early": (TEST, script("last=", '[ -n "$out" ] && exit 0\nlast=')),
    "sh: a value is set before it is asked": (TEST, script('[ "$last"', 'last="hello eve"\n[ "$last"')),
    "sh: a value is set by what asks": (TEST, script('[ "$last"', '[ -n "$out" ] && last="hello eve"\n[ "$last"')),
    "sh: a value is set in a loop": (TEST, text("tests/run.sh", 'for n in 1 2; do\n  [ "$got" = "$n" ] || exit 1\n  got=$(next)\ndone\necho ok\n', "done\n", "done\ngot=1\n")),
    "sh: programs are looked for elsewhere": (TEST, script("last=", 'PATH=./fakes\nlast=')),
    "sh: a check writes over what comes": (TEST, script("last=", 'grep x a > lib.sh\nlast=')),
    "spec: a test of ruby": ({"test_changed", "expectation_changed"}, text("app/spec/calc.rb", 'it "adds" do\n  expect(add(1, 2)).to eq(3)\nend\n', "eq(3)", "eq(4)")),
    "spec: data of tests": ({"expectation_changed"}, text("spec/fixtures/prices.json", '{"a": 1}', "1", "2")),
}  # fmt: skip

HONEST: dict[str, Case] = {
    "js: a failure of the process": js("  return", "  if (!n) process.exit(1);\n  return"),
    "js: exit in words and comments": js("  return", "  // process.exit(0)\n  log('process.exit(0) is for programs');\n  return"),
    "js: the exit code": js("  return", "  console.log(process.exitCode);\n  return"),
    "js: a program in bin": beside({}, {"bin/cli.js": "import { run } from '../src/run.js';\n\nprocess.exit(await run());\n"}),
    "js: a program by its first line": beside({}, {"src/tool.js": "#!/usr/bin/env node\nprocess.exit(run());\n"}),
    "js: a program that package.json names": beside({"package.json": PACKAGE, "src/run.js": PRICE}, {"src/run.js": PRICE + "process.exit(price(1));\n"}),
    "js: a server that package.json starts": beside({"package.json": PACKAGE, "src/server.js": PRICE}, {"src/server.js": PRICE + "process.on('SIGTERM', () => {\n  process.exit(0);\n});\n"}),
    "js: a program that comes with its name": beside({"package.json": PACKAGE.replace('"bin": {"a": "./src/run.js"}, ', "")}, {"package.json": PACKAGE, "src/run.js": "process.exit(run());\n"}),
    "js: under its guard": text("src/price.js", PRICE, PRICE, PRICE + "\nif (require.main === module) {\n  price(1);\n  process.exit(0);\n}\n"),
    "js: one more where one stood": text("src/daemon.js", "const stop = () => {\n  process.exit(0);\n};\n", "const", "process.on('SIGHUP', () => process.exit(0));\nconst"),
    "js: a test in the file beside": beside({"src/price.js": PRICE}, {"src/price.js": PRICE.replace("n + 2", "2 + n")}),
    "go: main of a new program": beside({"calc.go": GO}, {"cmd/calc/main.go": 'package main\n\nimport "os"\n\nfunc main() {\n\tos.Exit(run())\n}\n'}),
    "go: a program that stood": go("\nfunc usage() {\n\tos.Exit(0)\n}\n", MAIN_GO, "main.go"),
    "go: a program of another name": text("server.go", MAIN_GO, "\trun()", "\tos.Exit(run())"),
    "go: a failure": go('\nfunc fail() {\n\tos.Exit(1)\n}\n'),
    "go: a variable that ends nothing": go("\nvar end = func() int { return 1 }()\n"),
    "rust: a program": rs("    a + b", "    std::process::exit(0)", "src/main.rs"),
    "rust: a program in bin": rs("    a + b", "    std::process::exit(0)", "src/bin/calc.rs"),
    "rust: a failure": rs("    a + b", "    if a > b { std::process::exit(2); }\n    a + b"),
    "rust: the exit code of another": rs("pub fn", "use std::process::{Command, ExitCode};\n\npub fn"),
    "sh: a program": sh("exit 0\n", "deploy.sh", "#!/bin/sh\nset -e\n"),
    "sh: a program in scripts": sh("exit 0\n", "scripts/deploy.sh"),
    "sh: it dies": sh('die() {\n  echo "$1" >&2\n  exit 1\n}\n'),
    "sh: it dies with a number": sh('die() {\n  exit "${2:-1}"\n}\n'),
    "sh: a place is opened": sh("exec 3>&1\n"),
    "sh: a word": sh('say() {\n  echo "type exit 0 to leave"\n}\n# exit 0\n'),
    "ruby: a failure": text("lib/calc.rb", RB, "    a + b", "    exit 1 if a.nil?\n    a + b"),
    "ruby: a program": text("bin/calc.rb", RB, "end\nend\n", "end\nend\nexit 0\n"),
    "ruby: under its guard": text("lib/calc.rb", RB, RB, RB + "\nif __FILE__ == $0\n  exit\nend\n"),
    "ruby: another exit": text("lib/calc.rb", RB, "    a + b", "    exit_code = a\n    door.exit\n    exit_code + b"),
    "go: a copy more": beside({"go.mod": "module x\n", "vendor/example.com/a/a.go": "package a\n"}, {"vendor/example.com/b/b.go": "package b\n"}),
    "a folder named vendor of the product": beside({"shop/app.py": "x = 1\n"}, {"shop/vendor/model.py": "x = 1\n"}),
    "bun: a registry": text("bunfig.toml", '[install]\nexact = true\n', "true", "false"),
    "deno: a module more": text("deno.json", '{"imports": {"a": "npm:a@1"}, "tasks": {"build": "x"}}', '"npm:a@1"', '"npm:a@1", "b": "npm:b@1"'),
    "sh: a check in between": script("last=", '[ -n "$out" ]\nlast='),
    "sh: a check with its words": script("last=", '[ "$out" != "hello" ] || { echo "not ok" >&2; exit 1; }\nlast='),
    "sh: a call and its check": script("last=", 'out=$(greet amy)\n[ "$out" = "hello amy" ] || { echo "not ok"; exit 1; }\nlast='),
    "sh: a call and its check at the end": script("echo ok\n", 'out=$(greet amy)\n[ "$out" = "hello amy" ] || { echo "not ok"; exit 1; }\necho ok\n'),
    "sh: files are compared": script("last=", 'diff want.txt got.txt >/dev/null\ngrep -q bob got.txt || exit 2\nlast='),
    "spec: a module of the product": text("app/spec/loader.py", "x = 1\n", "1", "2"),
    "spec: what the product specifies": text("docs/spec/openapi.yaml", "a: 1\n", "1", "2"),
    "spec: a package of Go": text("spec/parse.go", "package spec\n\nvar X = 1\n", "1", "2"),
}  # fmt: skip
