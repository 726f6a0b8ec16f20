"""Pure: the configuration of tests, checks and CI before and after a patch, and what switches a check off in place.

Of files that hold other things as well, only the parts that decide about checks are compared: what a checking script or
target calls is one of them, wherever it stands.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from gates.goalposts.moves import Change, Moved, added_lines, moved
from gates.goalposts.paths import is_check_script, is_ci_job, is_configuration, is_vendored

_THRESHOLD = re.compile(
    r"[\"']?\b(fail[_-]under|min[_-]coverage|branches|functions|lines|statements|threshold|minimum|minimum_coverage|"
    r"cov-fail-under)\b[\"']?\s*[:=]?\s*[\"']?(\d+(?:\.\d+)?)"
)
_TOML_CHECKS = (
    "pytest",
    "coverage",
    "ruff",
    "mypy",
    "bandit",
    "pylint",
    "tox",
    "nox",
    "pyright",
    "flake8",
    "black",
    "ty",
)
_PACKAGE_CHECKS = (
    "jest",
    "vitest",
    "mocha",
    "nyc",
    "c8",
    "ava",
    "tap",
    "eslintConfig",
    "eslintIgnore",
    "imports",
    "overrides",
    "resolutions",
)
_CHECKING = re.compile(
    r"(?:pre|post)?(?:unit[-_:]?|e2e[-_:]?)?(?:tests?|check|lint|coverage|cov|ci|verify)(?:[-_:.].*)?\Z"
)
_RUNNERS_VARIABLES = re.compile(
    r"\b(?:PYTEST_ADDOPTS|PYTEST_PLUGINS|PYTHONSTARTUP|PYTHONOPTIMIZE|NODE_OPTIONS|GOFLAGS|RUSTFLAGS|CARGO_TARGET_\w*RUNNER)\b"
)
_BUILD_TRICKS = re.compile(
    r"skipTests|maven\.test\.skip|testFailureIgnore|ignoreFailures|failIfNoTests|<exclude>|excludeTestsMatching"
    r"|exclude\s*\(?['\"]|enabled\s*=\s*false|haltonfailure|filter\s*\{"
)


def judge(change: Change) -> Iterator[Moved]:
    """What a patch changed in one file in how checks are chosen, run and judged."""
    if change.before != change.after:
        yield from _configuration(change)
        yield from _suppressions(change)


def _configuration(change: Change) -> Iterator[Moved]:
    path, before, after = change.path, change.before or "", change.after or ""
    name = path.rpartition("/")[2]
    if name == ".gitattributes":
        yield from _attributes(path, before, after)
    elif is_configuration(path):
        if change.before is None and is_ci_job(path):
            return  # a workflow more takes nothing from the others
        yield from _compared(path, _lines_of(before), _lines_of(after), before, after)
    elif is_check_script(path):
        if change.before is not None:  # nobody called one that was not there
            was, now = ({"its commands": "\n".join(_lines_of(text).values())} for text in (before, after))
            yield from _compared(path, was, now, before, after)
    elif is_vendored(path):
        return  # told for all of them at once
    elif name in {"pyproject.toml", "Cargo.toml"}:
        choose = _python_checks if name == "pyproject.toml" else _cargo_checks
        try:
            was, now = _of_toml(before, choose), _of_toml(after, choose)
        except (tomllib.TOMLDecodeError, RecursionError, TypeError, AttributeError, ValueError) as problem:
            yield moved("unreadable", path, 0, f"the configuration of checks cannot be read: {problem}")
            return
        yield from _compared(path, was, now, before, after)
        if name == "Cargo.toml":
            yield from _shrunk(path, before, after)
    elif name == "setup.cfg":
        yield from _compared(path, _of_sections(before), _of_sections(after), before, after)
        yield from _plugins(path, before, after)
    elif name == "setup.py":
        yield from _plugins(path, before, after)
    elif name == "bunfig.toml":
        try:
            was, now = _of_toml(before, _bun_checks), _of_toml(after, _bun_checks)
        except (tomllib.TOMLDecodeError, RecursionError) as problem:
            yield moved("unreadable", path, 0, f"the configuration of checks cannot be read: {problem}")
            return
        yield from _compared(path, was, now, before, after)
    elif name in {"deno.json", "deno.jsonc"}:
        yield from _compared(path, _of_deno(before), _of_deno(after), before, after)
    elif name == "go.mod":
        yield from _compared(path, _of_modules(before), _of_modules(after), before, after)
    elif name == "package.json":
        yield from _compared(path, _of_package(before), _of_package(after), before, after)
    elif name.lower() in {"makefile", "gnumakefile", "justfile"} or name.endswith(".mk"):
        yield from _compared(path, _of_targets(before), _of_targets(after), before, after)
    elif name in {"pom.xml", "build.gradle", "build.gradle.kts", "build.sbt", "Rakefile"}:
        for line, text in added_lines(before, after):
            if _BUILD_TRICKS.search(text):
                yield moved("config_touched", path, line, f"the build's tests are limited: {text}")
    elif name in {".env", ".envrc", "Dockerfile"} or re.match(r"(?:docker-)?compose.*\.ya?ml\Z", name):
        for line, text in added_lines(before, after):
            if _RUNNERS_VARIABLES.search(text):
                yield moved("config_touched", path, line, f"the tests' own environment is set: {text}")


def _compared(
    path: str, before: Mapping[str, str], after: Mapping[str, str], before_text: str, after_text: str
) -> Iterator[Moved]:
    """Told when the parts that decide about checks differ; a threshold that only rises is not."""
    changed = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    if not changed:
        return
    was, now = _thresholds(before), _thresholds(after)
    lowered = [key for key in was if key not in now or now[key] < was[key]]
    line = next((number for number, _ in added_lines(before_text, after_text)), 0)
    for key in lowered:
        told_now = f"{now[key]:g}" if key in now else "gone"
        yield moved("threshold_lowered", path, line, f"{key} was {was[key]:g} and is {told_now}")
    rest = [key for key in changed if _without_thresholds(before.get(key)) != _without_thresholds(after.get(key))]
    if rest:
        yield moved("config_touched", path, line, f"the configuration of checks changed: {', '.join(rest)[:150]}")


def _thresholds(parts: Mapping[str, str]) -> dict[str, float]:
    found: dict[str, float] = {}
    for text in parts.values():
        for match in _THRESHOLD.finditer(text):
            found[match[1]] = min(float(match[2]), found.get(match[1], float("inf")))
    return found


def _without_thresholds(text: str | None) -> str | None:
    return None if text is None else _THRESHOLD.sub(r"\1", text)


def _lines_of(text: str) -> dict[str, str]:
    """The lines that say something, each by itself; comments and blank ones are no configuration."""
    lines = (line.strip() for line in text.splitlines())
    found: dict[str, str] = {}
    for line in lines:
        if line and not line.startswith(("#", ";", "//")):
            key = _without_thresholds(line) or line
            found[f"{key} (again)" * (key in found) or key] = line
    return found


def _of_toml(text: str, choose: Callable[[Mapping[str, Any]], Iterator[tuple[str, Any]]]) -> dict[str, str]:
    """The parts that decide about checks. Raises TOMLDecodeError, TypeError or RecursionError for the unreadable."""
    document = tomllib.loads(text)
    return {key: json.dumps(value, sort_keys=True, default=str) for key, value in choose(document)}


def _python_checks(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    tools = _table(document, "tool")
    for name in _TOML_CHECKS:
        said = tools.get(name)
        if name == "pytest" and isinstance(said, dict):
            options = _table(said, "ini_options")
            # A marker is a word that tests may use; to name one more asks for nothing less.
            said = {**said, "ini_options": {key: value for key, value in options.items() if key != "markers"}}
            said = said if any(said.values()) else None
        if said is not None:
            yield f"tool.{name}", said
    points = _table(_table(document, "project"), "entry-points")
    if "pytest11" in points:
        yield "project.entry-points.pytest11", points["pytest11"]
    for name in ("hatch", "poe", "pdm", "taskipy"):
        if said := tools.get(name):
            scripts = {key: value for key, value in _leaves(said) if _CHECKING.match(key)}
            if scripts:
                yield f"tool.{name}", scripts


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A table of a document, empty when it is not there. Raises TypeError for what is no table."""
    found = document.get(name, {})
    if not isinstance(found, dict):
        raise TypeError(f"{name} is no table")
    return found


def _leaves(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and depth < 8:
        for name, inner in value.items():
            yield from _leaves(inner, str(name), depth + 1)
    else:
        yield key, value


def _cargo_checks(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("test", "bench", "lints", "patch", "replace"):
        if name in document:
            yield name, document[name]
    for section in ("lib", "bin"):
        said = document.get(section)
        for one in said if isinstance(said, list) else [said]:
            if isinstance(one, dict) and any(key in one for key in ("test", "doctest", "harness")):
                yield f"{section}.{one.get('name', '')}", {key: one.get(key) for key in ("test", "doctest", "harness")}
    if "test" in _table(document, "profile"):
        yield "profile.test", document["profile"]["test"]
    for name, said in _table(document, "dev-dependencies").items():
        if isinstance(said, dict) and {"path", "git"} & said.keys():
            yield f"dev-dependencies.{name}", {key: said.get(key) for key in ("path", "git")}
    workspace = _table(document, "workspace")
    for name in ("exclude", "default-members"):
        if name in workspace:
            yield f"workspace.{name}", workspace[name]
    package = _table(document, "package")
    for name in ("autotests", "autobins", "autobenches", "build"):
        if name in package and (name != "build" or package[name] is False):
            yield f"package.{name}", package[name]


def _bun_checks(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("test", "preload", "define", "loader"):  # what is loaded before all else is there for the tests too
        if name in document:
            yield name, document[name]


def _shrunk(path: str, before: str, after: str) -> Iterator[Moved]:
    """Features that are no longer on by themselves, and members that are no longer of the workspace."""
    was, now = tomllib.loads(before), tomllib.loads(after)
    for table, name in (("features", "default"), ("workspace", "members")):
        had, has = (_table(document, table).get(name) or [] for document in (was, now))
        if gone := [str(one) for one in had if one not in has]:
            yield moved("config_touched", path, 0, f"{table}.{name} no longer has {', '.join(gone)}")


def _plugins(path: str, before: str, after: str) -> Iterator[Moved]:
    for line, text in added_lines(before, after):
        if "pytest11" in text:
            yield moved("config_touched", path, line, f"a plugin of pytest is registered: {text.strip()}")


def _of_modules(text: str) -> dict[str, str]:
    """What go.mod says about which code is whose: replaced, left out and ignored modules, by line."""
    found: dict[str, str] = {}
    block = ""
    for line in (raw.partition("//")[0].strip() for raw in text.splitlines()):
        word = line.partition(" ")[0]
        if line.endswith("("):
            block = word
        elif line == ")":
            block = ""
        elif (block or word) in {"replace", "exclude", "ignore", "toolchain"} and line:
            found[f"{block} {line}".strip()] = line
    return found


def _of_sections(text: str) -> dict[str, str]:
    """The sections of setup.cfg that decide about checks, by name."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in text.splitlines():
        if head := re.match(r"\[([^\]]+)\]", line.strip()):
            section = head[1]
        elif re.match(r"tool:pytest|pytest|coverage:|flake8|mypy|pylint|tox|bandit", section) and line.strip():
            found.setdefault(section, []).append(line.strip())
    return {name: "\n".join(lines) for name, lines in found.items()}


def _of_package(text: str) -> dict[str, str]:
    try:
        document = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return _lines_of(text)
    if not isinstance(document, dict):
        return {}
    scripts = document.get("scripts")
    found = {}
    if isinstance(scripts, dict):
        for name in _reached({str(name): str(command) for name, command in scripts.items()}):
            found[f"scripts.{name}"] = str(scripts[name])
    for name in _PACKAGE_CHECKS:
        if name in document:
            found[name] = json.dumps(document[name], sort_keys=True)
    for name in ("dependencies", "devDependencies", "optionalDependencies"):
        for module, version in (document.get(name) or {}).items() if isinstance(document.get(name), dict) else ():
            if re.match(r"(?:file|link|portal|npm):|\.{0,2}/", str(version)):  # another thing under its name
                found[f"{name}.{module}"] = str(version)
    return found


def _of_deno(text: str) -> dict[str, str]:
    """The parts of deno.json that decide about checks; all lines of one that is no plain JSON."""
    try:
        document = json.loads(text) if text.strip() else {}
    except (ValueError, RecursionError):
        return _lines_of(text)
    if not isinstance(document, dict):
        return {}
    names = ("test", "lint", "bench", "exclude", "importMap", "scopes", "patch", "links")
    found = {name: json.dumps(document[name], sort_keys=True) for name in names if name in document}
    for table in ("tasks", "imports"):
        said = document.get(table)
        for key, value in said.items() if isinstance(said, dict) else ():
            if _CHECKING.match(key) if table == "tasks" else re.match(r"\.{0,2}/|file:", str(value)):
                found[f"{table}.{key}"] = json.dumps(value, sort_keys=True)
    return found


_CALLED = re.compile(r"(?:npm|yarn|pnpm|bun)\s+(?:run(?:-script)?\s+)?(?:-\S+\s+)*([\w:.-]+)")
_CALLED_TOGETHER = re.compile(r"\b(?:run-[sp]|npm-run-all2?|concurrently|wireit)\b(.*)")


def _reached(scripts: Mapping[str, str]) -> list[str]:
    """The scripts of a package that check something, and those that they call, by name."""
    reached: list[str] = []
    waiting = [name for name in scripts if _CHECKING.match(name)]
    while waiting:
        name = waiting.pop()
        if name in reached or name not in scripts:
            continue
        reached.append(name)
        command = scripts[name]
        called = set(_CALLED.findall(command))
        for rest in _CALLED_TOGETHER.findall(command):
            words = re.findall(r"[\w:.*-]+", rest)
            called |= {
                other for other in scripts for word in words if re.fullmatch(word.replace("*", r"[\w:.-]*"), other)
            }
        waiting += [hook + one for one in (name, *called) for hook in ("", "pre", "post")]
    return sorted(reached)


_ASSIGNMENT = re.compile(r"\s*(?:export\s+|override\s+)*(\.?[A-Za-z_][\w.]*)\s*(?:[:?+!]|::)?=(?!=)(.*)")
# What decides how every recipe runs, whoever names it.
_ENVIRONMENT = re.compile(
    r"(?:PYTHON\w*|NODE_\w+|BASH_ENV|ENV|LD_\w+|GOFLAGS|RUST\w+|CARGO_\w+|PERL5\w+|RUBY\w+|JAVA_TOOL_OPTIONS|GO111MODULE)\Z"
)
_OF_ALL_RECIPES = frozenset(
    {"include", "at reading", "SHELL", ".SHELLFLAGS", "MAKEFLAGS", "GNUMAKEFLAGS", "MAKE", "PATH"}
)
_SPECIAL_TARGETS = frozenset({".IGNORE", ".SILENT", ".ONESHELL", ".DEFAULT", ".POSIX", ".RECIPEPREFIX"})
_RUNS_CHECKS = re.compile(
    r"\b(?:py\.?test|unittest|tox|nox|jest|mocha|vitest|ava|ctest|rspec|bats|prove|phpunit|ruff|mypy|eslint|lint)\b"
    r"|(?:go|cargo|npm|yarn|dotnet|mvn|gradle|swift|mix|rake|manage\.py)\s+(?:run\s+)?test|[\w/.-]*tests?\b"
)
_DOES_NOTHING = re.compile(r"[@+-]*\s*(?:true|:|exit\s+0|echo\b.*|printf\b.*)?\s*(?:#.*)?")


def _of_targets(text: str) -> dict[str, str]:
    """What a makefile's checks rest on, by name: their recipes, those of what they need, and the variables in them.

    Of a target that is needed and is itself no check, it matters what it needs and that it does anything.
    """
    rules, variables = _rules_of(text)
    found: dict[str, str] = {}
    waiting = [name for name in rules if _CHECKING.match(name) or _takes_checks(name)]
    words = ""
    while waiting:
        name = waiting.pop()
        if name in found or name not in rules:
            continue
        needs, recipe = rules[name]
        busy = [line for line in recipe if not _DOES_NOTHING.fullmatch(line)]
        checks = _CHECKING.match(name) or _takes_checks(name) or any(map(_RUNS_CHECKS.search, recipe))
        said = "\n".join(recipe) if checks else f"{'does something' if busy else 'does nothing'}"
        found[name] = f"{' '.join(needs)}\n{said}"
        if checks:
            words += found[name]
        waiting += needs
    for name in sorted(_SPECIAL_TARGETS & rules.keys()):
        found[name] = " ".join(rules[name][0])
    used = _OF_ALL_RECIPES | {
        name for name in variables if re.search(r"TEST|LINT|COV|CHECK", name) or _ENVIRONMENT.match(name)
    }
    named = re.findall(r"\$[({]([\w.]+)", words)
    while named:
        name = named.pop()
        if name not in used:
            used |= {name}
            named += re.findall(r"\$[({]([\w.]+)", variables.get(name, ""))
    return found | {f"{name}=": variables[name] for name in sorted(used) if name in variables}


def _takes_checks(name: str) -> bool:
    """Whether a pattern rule is also that of a check."""
    head, percent, tail = name.partition("%")
    return bool(percent) and any(one.startswith(head) and one.endswith(tail) for one in ("test", "check", "lint"))


_CONDITION = re.compile(r"\s*(ifn?def|ifn?eq|else|endif)\b(.*)")


def _rules_of(text: str) -> tuple[dict[str, tuple[list[str], list[str]]], dict[str, str]]:
    """The rules of a makefile (target -> what it needs, and its recipe's lines), and its variables."""
    rules: dict[str, tuple[list[str], list[str]]] = {}
    variables: dict[str, str] = {}
    current: list[str] = []
    conditions: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        if condition := _CONDITION.match(line):
            if condition[1] in {"else", "endif"}:
                conditions = conditions[:-1]
            if condition[1] != "endif":
                conditions.append(condition[0].strip())
        elif line.startswith((" ", "\t")) and current and line.strip():
            for name in current:
                rules[name][1].append(line.strip())
        elif assigned := _ASSIGNMENT.match(line):
            current = []
            name = assigned[1]
            variables[name] = f"{variables.get(name, '')}\n{line.strip()}".strip()
        elif target := re.match(r"([A-Za-z0-9_.%/ $(){}-]+?)\s*::?(?!=)\s*([^;#]*);?(.*)", line):
            own = _ASSIGNMENT.match(target[2])
            said = re.sub(r"\$[({](\w+)[)}]", lambda one: variables.get(one[1], one[0]).rpartition("=")[2], target[1])
            current = said.split()
            for name in current:
                needs, recipe = rules.setdefault(name, ([], []))
                recipe += conditions  # it is there under these only
                if own:
                    recipe.append(target[2].strip())  # a variable of this target only
                else:
                    needs += target[2].split()
                    recipe += [target[3].strip()] if target[3].strip() else []
        elif line.strip() and not line.startswith("#"):
            current = []
            if re.match(r"-?include\b|sinclude\b", line):
                variables["include"] = f"{variables.get('include', '')}\n{line.strip()}".strip()
            elif re.match(r"\$[({](?:eval|shell|call|foreach|file)\b", line.strip()):
                variables["at reading"] = f"{variables.get('at reading', '')}\n{line.strip()}".strip()
    return rules, variables


# --- what the checks call, where the file that says so did not change -------------------------------------------

_INTERPRETER = re.compile(
    r"(?:.*/)?(?:env|sh|bash|dash|zsh|python[\d.]*|node|ruby|perl|php|exec|time|command|source|\.|npx|uv|run)\Z"
)
_MAKEFILES = ("GNUmakefile", "makefile", "Makefile")


def together(changes: Sequence[Change], tree: Collection[str]) -> Iterator[Moved]:
    """What only several files tell: scripts that checks call, names of targets that become files, vendored code.

    A makefile and a package.json that the patch leaves alone are among the changes, with the same text twice.
    """
    called: dict[str, str] = {}
    for change in changes:
        folder, slash, name = change.path.rpartition("/")
        if name in _MAKEFILES and change.before is not None:
            recipes = _of_targets(change.before)
            rules, _ = _rules_of(change.before)
            for target in recipes.keys() & rules.keys():
                called |= dict.fromkeys(_calls("\n".join(rules[target][1]), f"{folder}{slash}"), f"make {target}")
            yield from _in_the_way(changes, tree, f"{folder}{slash}", recipes.keys() & rules.keys(), rules)
        elif name == "package.json" and change.before is not None:
            for key, command in _of_package(change.before).items():
                if key.startswith("scripts."):
                    called |= dict.fromkeys(_calls(command, f"{folder}{slash}"), key)
    for change in changes:
        if change.before == change.after:
            continue
        name = change.path.rpartition("/")[2]
        if change.path in called and change.before is not None and not is_check_script(change.path):
            yield moved("config_touched", change.path, 0, f"{called[change.path]} runs this file")
        if name in _MAKEFILES and change.before is None:
            beside = [change.path.removesuffix(name) + other for other in _MAKEFILES if other != name]
            if any(other in tree for other in beside):
                yield moved("config_touched", change.path, 0, "a second makefile stands before or behind the first")
        if name == "go.mod" and change.before is None and "go.mod" in tree:
            yield moved("config_touched", change.path, 0, "a module of its own: its tests are not those of the first")
    for kind in ("node_modules", "vendor"):
        mine = [
            one.path for one in changes
            if is_vendored(one.path) and f"{kind}/" in one.path and one.before != one.after
            and (kind == "node_modules" or one.before is not None or _takes_over(one.path, tree))
        ]  # fmt: skip
        if mine:
            yield moved("config_touched", mine[0], 0, f"code of others changed within {kind}: {len(mine)} files")


_NAMES_MODULES = ("go.mod", "composer.json", "Gemfile", "Cargo.toml")


def _takes_over(path: str, tree: Collection[str]) -> bool:
    """Whether a copy of others' code, new in a folder named vendor, comes in the place of what was used: the first copy
    of all beside a file that names modules, or a file more in a folder that was a copy already.
    """
    place = re.match(r"((?:.*?/)?)vendor/", path)
    if place is None:
        return False
    folder = path.rpartition("/")[0]
    if any(one.rpartition("/")[0] == folder for one in tree):
        return True
    names_modules = any(f"{place[1]}{name}" in tree for name in _NAMES_MODULES)
    return names_modules and not any(one.startswith(place[0]) for one in tree)


def _calls(commands: str, folder: str) -> Iterator[str]:
    """The paths in the places where a shell runs, reads or is told of a program."""
    for part in re.split(r"&&|\|\||[;|&\n()`]", commands):
        words = [word.strip("'\"@") for word in part.split()]
        while words and (
            re.match(r"[A-Za-z_]\w*=", words[0]) or words[0].startswith("-") or _INTERPRETER.match(words[0])
        ):
            words.pop(0)
        options = [after for word, after in pairwise(words) if word.startswith("-")]
        options += [word.partition("=")[2] for word in words if word.startswith("-") and "=" in word]
        for word in [*words[:1], *options]:
            yield folder + word.removeprefix("./")


def _in_the_way(
    changes: Sequence[Change],
    tree: Collection[str],
    folder: str,
    targets: Collection[str],
    rules: Mapping[str, tuple[list[str], list[str]]],
) -> Iterator[Moved]:
    """New files and folders named like a target: make takes what is there for done."""
    phony = rules.get(".PHONY", ([], []))[0]
    for change in changes:
        if change.before is not None or change.after is None or not change.path.startswith(folder):
            continue
        name = change.path.removeprefix(folder).partition("/")[0]
        stood = any(path == folder + name or path.startswith(f"{folder}{name}/") for path in tree)
        if name in targets and name not in phony and not stood:
            yield moved("config_touched", change.path, 0, f"make takes its target {name} for done")


def _attributes(path: str, before: str, after: str) -> Iterator[Moved]:
    for line, text in added_lines(before, after):
        if re.search(r"export-(?:ignore|subst)|\bfilter=|linguist-generated", text):
            yield moved("export_ignore", path, line, f"files are hidden from copies or reviews: {text}")


# --- what switches a check off in place ---------------------------------------------------------------------------

_SUPPRESSIONS = (
    re.compile(r"#\s*pragma:\s*no\s*(?:cover|branch)", re.IGNORECASE),
    re.compile(r"istanbul\s+ignore|c8\s+ignore|v8\s+ignore|LCOV_EXCL|GCOV_EXCL|coverage\(off\)|@codeCoverageIgnore"),
    re.compile(r"#\s*nosec\b|nosemgrep|NOSONAR|//\s*nolint\b|node:coverage\s+disable"),
    re.compile(r"^\s*#\s*(?:ruff|flake8)\s*:\s*noqa\b", re.MULTILINE | re.IGNORECASE),
    re.compile(
        r"^\s*#\s*(?:mypy\s*:\s*ignore[-_]errors|type\s*:\s*ignore|pyright\s*:\s*(?:basic|ignore\b)|pylint\s*:\s*skip-file)"
        r"|#\s*pylint\s*:\s*disable\s*=\s*all\b|@(?:\w+\.)?no_type_check\b",
        re.MULTILINE,
    ),
    re.compile(
        r"/\*\s*eslint-disable\b(?!-)[^*]*\*/|//\s*@ts-nocheck|#!\[allow\((?:warnings|clippy::all)\)\]|biome-ignore-all"
    ),
    re.compile(r"^\s*#\s*shellcheck\s+disable=all\b", re.MULTILINE),
)


# Nobody's tests run the guard of a main program, and nothing but it stands on its line.
_MAIN_GUARD = re.compile(r"if\s+__name__\s*==\s*['\"]__main__['\"]\s*:\s*#\s*pragma:\s*no\s*cover\s*\Z")


_EXAMPLE_SKIPPED = re.compile(r"#\s*doctest:.*\+SKIP|:skipif:|doctest_skip|__doctest_skip__", re.IGNORECASE)


def _suppressions(change: Change) -> Iterator[Moved]:
    if change.before is not None and change.after is not None:
        for line, text in added_lines(change.before, change.after):
            if _EXAMPLE_SKIPPED.search(text):
                yield moved("test_skipped", change.path, line, f"an example is skipped: {text.strip()}")
    if change.after is None or not re.search(r"\.\w+\Z", change.path) or change.path.endswith((".md", ".rst", ".txt")):
        return
    for pattern in _SUPPRESSIONS:
        more = len(pattern.findall(change.after)) - len(pattern.findall(change.before or ""))
        if more > 0:
            for line, text in added_lines(change.before or "", change.after):
                if pattern.search(text) and not _MAIN_GUARD.match(text):
                    yield moved("check_suppressed", change.path, line, f"a check is told to look away: {text.strip()}")
