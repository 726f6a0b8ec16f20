"""Pure: the files that a patch changed, before and after, in; where it moved its own goalposts out.

What is looked for makes a check say less than it said: tests that are gone, skipped or no longer collected, assertions
that ask for less, expectations that follow the code, thresholds that are lower, the configuration of tests and CI,
ways to end a run early or to tell that one is under way. Nothing here says that a patch cheats; it says what a person
has to look at. What only adds tests moves nothing.

Python is read by its syntax tree (`goalposts_python`), other languages by text rules (`goalposts_text`), which know
lines and not meanings. Runs in evidence.py's bounded child: standard library only.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

MAX_MOVED = 200
MAX_TEXT_CHARS = 2_000_000  # of one file; a longer one of tests is told, not read
_SHOWN_CHARS = 200

# The kinds of moves, in the order in which they are told.
KINDS = (
    "test_deleted", "test_uncollected", "test_skipped", "assertion_removed", "assertion_weakened",
    "expectation_changed", "subject_mocked", "threshold_lowered", "config_touched", "check_suppressed", "exit_trick",
    "report_forged", "tests_detected", "framework_patched", "export_ignore", "base_tests_fail", "unreadable",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One file of the patch: its text before (None: it was not there) and after (None: it is gone)."""

    path: str
    before: str | None
    after: str | None


@dataclass(frozen=True, slots=True)
class Moved:
    """One goalpost that moved: what kind, where (`line` from 1 in the patched file, 0 for none), and what, in words."""

    kind: str
    path: str
    line: int
    what: str


def moved(kind: str, path: str, line: int, what: str) -> Moved:
    """A move with its words on one line and of bounded length."""
    return Moved(kind, path, line, " ".join(what.split())[:_SHOWN_CHARS])


_TEST_FOLDERS = frozenset({"test", "tests", "testing", "spec", "specs", "__tests__", "e2e", "testdata"})
_TEST_FILE = re.compile(
    r"(?:test_.*|.*_test|tests)\.py\Z|conftest\.py\Z|.*_test\.go\Z|.*[._-](?:test|spec)\.[cm]?[jt]sx?\Z"
    r"|.*(?:Test|Tests|IT|Spec)\.(?:java|kt|scala|groovy)\Z|(?:test_.*|.*_test|.*_spec)\.rb\Z"
)


def is_test_path(path: str) -> bool:
    """Whether a file is of the tests, by the folders and names that their runners go by."""
    *folders, name = path.split("/")
    return bool(_TEST_FILE.match(name)) or any(folder.lower() in _TEST_FOLDERS for folder in folders)


def is_configuration(path: str) -> bool:
    """Whether a file as a whole says how tests are found and run, or what CI does."""
    return bool(_WHOLE_FILES.match(path))


def judge(changes: Sequence[Change]) -> tuple[Moved, ...]:
    """Where the patch moved its goalposts; empty means clean. Never raises for what a file holds."""
    from gates import goalposts_python, goalposts_text

    readable, found = [], []
    for change in changes:
        if max(len(change.before or ""), len(change.after or "")) > MAX_TEXT_CHARS:
            if is_test_path(change.path):
                found.append(moved("unreadable", change.path, 0, "a test file that is too long to be read"))
        else:
            readable.append(change)
    for change in readable:
        found += _configuration(change)
        found += _suppressions(change)
    found += goalposts_python.judge([change for change in readable if change.path.endswith((".py", ".pyi"))])
    found += goalposts_text.judge(readable)
    order = {kind: place for place, kind in enumerate(KINDS)}
    once = dict.fromkeys(found)
    return tuple(sorted(once, key=lambda one: (order[one.kind], one.path, one.line, one.what)))[:MAX_MOVED]


def told(found: Sequence[Moved]) -> str:
    """One sentence for people."""
    if not found:
        return "clean: no test, threshold or configuration asks for less than it did"
    first = "; ".join(f"{one.path}{f':{one.line}' if one.line else ''}: {one.what}" for one in found[:5])
    return f"moved: {first}" + (f"; and {len(found) - 5} more" if len(found) > 5 else "")


# --- configuration of tests, checks and CI ------------------------------------------------------------------------

_WHOLE_FILES = re.compile(
    r"(?:.*/)?(?:pytest\.ini|\.pytest\.ini|\.coveragerc|tox\.ini|noxfile\.py|\.?codecov\.ya?ml|jest\.config\.\w+"
    r"|vitest\.(?:config|workspace)\.\w+|karma\.conf\.\w+|\.mocharc(?:\.\w+)?|\.nycrc(?:\.\w+)?|\.c8rc(?:\.\w+)?"
    r"|playwright\.config\.\w+|cypress\.config\.\w+|\.eslintrc(?:\.\w+)?|eslint\.config\.\w+|\.eslintignore"
    r"|\.?ruff\.toml|\.?mypy\.ini|\.flake8|\.?pylintrc|\.bandit|bandit\.ya?ml|\.semgrepignore|\.semgrep\.ya?ml"
    r"|\.golangci\.\w+|\.?clippy\.toml|\.rspec|\.simplecov|phpunit\.xml(?:\.dist)?|nextest\.toml"
    r"|sonar-project\.properties|\.pre-commit-config\.ya?ml|sitecustomize\.py|usercustomize\.py"
    r"|\.gitlab-ci\.ya?ml|\.travis\.ya?ml|azure-pipelines\.ya?ml|bitbucket-pipelines\.ya?ml|Jenkinsfile|\.drone\.ya?ml"
    r"|appveyor\.ya?ml)\Z|(?:\.github/workflows|\.github/actions|\.circleci|\.buildkite|\.ci)/.*"
)
_THRESHOLD = re.compile(
    r"[\"']?\b(fail[_-]under|min[_-]coverage|branches|functions|lines|statements|threshold|minimum|minimum_coverage|"
    r"cov-fail-under)\b[\"']?\s*[:=]?\s*[\"']?(\d+(?:\.\d+)?)"
)
_TOML_CHECKS = ("pytest", "coverage", "ruff", "mypy", "bandit", "pylint", "tox", "nox", "pyright", "flake8", "black")
_PACKAGE_CHECKS = ("jest", "vitest", "mocha", "nyc", "c8", "ava", "tap", "eslintConfig", "eslintIgnore")
_CHECKING = re.compile(
    r"(?:pre|post)?(?:unit[-_:]?|e2e[-_:]?)?(?:tests?|check|lint|coverage|cov|ci|verify)(?:[-_:.].*)?\Z"
)
_BUILD_TRICKS = re.compile(
    r"skipTests|maven\.test\.skip|testFailureIgnore|ignoreFailures|failIfNoTests|<exclude>|excludeTestsMatching"
    r"|exclude\s*\(?['\"]|enabled\s*=\s*false|haltonfailure|filter\s*\{"
)


def _configuration(change: Change) -> Iterator[Moved]:
    """What the patch changed in how checks are chosen, run and judged."""
    path, before, after = change.path, change.before or "", change.after or ""
    name = path.rpartition("/")[2]
    if before == after and change.before is not None and change.after is not None:
        return
    if name == ".gitattributes":
        yield from _attributes(path, before, after)
    elif _WHOLE_FILES.match(path):
        yield from _compared(path, _lines_of(before), _lines_of(after), before, after)
    elif name == "pyproject.toml":
        yield from _compared(path, _of_toml(before, _python_checks), _of_toml(after, _python_checks), before, after)
    elif name == "Cargo.toml":
        yield from _compared(path, _of_toml(before, _cargo_checks), _of_toml(after, _cargo_checks), before, after)
    elif name == "setup.cfg":
        yield from _compared(path, _of_sections(before), _of_sections(after), before, after)
    elif name == "package.json":
        yield from _compared(path, _of_package(before), _of_package(after), before, after)
    elif name.lower() in {"makefile", "gnumakefile", "justfile"} or name.endswith(".mk"):
        yield from _compared(path, _of_targets(before), _of_targets(after), before, after)
    elif name in {"pom.xml", "build.gradle", "build.gradle.kts", "build.sbt", "Rakefile"}:
        for line, text in _added_lines(before, after):
            if _BUILD_TRICKS.search(text):
                yield moved("config_touched", path, line, f"the build's tests are limited: {text}")


def _compared(
    path: str, before: Mapping[str, str], after: Mapping[str, str], before_text: str, after_text: str
) -> Iterator[Moved]:
    """Told when the parts that decide about checks differ; a threshold that only rises is not."""
    changed = [key for key in dict.fromkeys([*before, *after]) if before.get(key) != after.get(key)]
    if not changed:
        return
    was, now = _thresholds(before), _thresholds(after)
    lowered = [key for key in was if key not in now or now[key] < was[key]]
    line = next((number for number, _ in _added_lines(before_text, after_text)), 0)
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
    kept = [line for line in lines if line and not line.startswith(("#", ";", "//"))]
    return {_without_thresholds(line) or line: line for line in kept}


def _of_toml(text: str, choose: Any) -> dict[str, str]:
    try:
        document = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError):
        return _lines_of(text)
    return {key: json.dumps(value, sort_keys=True, default=str) for key, value in choose(document)}


def _python_checks(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    tools = document.get("tool", {})
    for name in _TOML_CHECKS:
        said = tools.get(name)
        if name == "pytest" and isinstance(said, dict):
            options = said.get("ini_options", {})
            # A marker is a word that tests may use; to name one more asks for nothing less.
            said = {**said, "ini_options": {key: value for key, value in options.items() if key != "markers"}}
            said = said if any(said.values()) else None
        if said is not None:
            yield f"tool.{name}", said
    points = document.get("project", {}).get("entry-points", {})
    if "pytest11" in points:
        yield "project.entry-points.pytest11", points["pytest11"]
    for name in ("hatch", "poe", "pdm", "taskipy"):
        if said := tools.get(name):
            scripts = {key: value for key, value in _leaves(said) if _CHECKING.match(key)}
            if scripts:
                yield f"tool.{name}", scripts


def _leaves(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and depth < 8:
        for name, inner in value.items():
            yield from _leaves(inner, str(name), depth + 1)
    else:
        yield key, value


def _cargo_checks(document: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in ("test", "bench", "lints"):
        if name in document:
            yield name, document[name]
    for section in ("lib", "bin"):
        said = document.get(section)
        for one in said if isinstance(said, list) else [said]:
            if isinstance(one, dict) and any(key in one for key in ("test", "doctest", "harness")):
                yield f"{section}.{one.get('name', '')}", {key: one.get(key) for key in ("test", "doctest", "harness")}
    if "test" in document.get("profile", {}):
        yield "profile.test", document["profile"]["test"]


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
    scripts = document.get("scripts") if isinstance(document.get("scripts"), dict) else {}
    found = {f"scripts.{name}": str(command) for name, command in (scripts or {}).items() if _CHECKING.match(name)}
    for name in _PACKAGE_CHECKS:
        if name in document:
            found[name] = json.dumps(document[name], sort_keys=True)
    return found


def _of_targets(text: str) -> dict[str, str]:
    """The targets of a makefile that check something: name -> recipe, with what the file says of their variables."""
    found: dict[str, list[str]] = {}
    current: list[str] = []
    for line in text.splitlines():
        if line.startswith((" ", "\t")):
            for name in current:
                found[name].append(line.strip())
        elif target := re.match(r"([A-Za-z0-9_.%/ -]+?)\s*:(?!=)\s*(.*)", line):
            current = [name for name in target[1].split() if _CHECKING.match(name)]
            for name in current:
                found.setdefault(name, []).append(target[2].strip())
        elif line.strip():
            current = []
            if re.match(r"[A-Z_]*(?:TEST|LINT|COV|CHECK)[A-Z_]*\s*[:?+]?=", line):
                found[line.partition("=")[0].strip()] = [line]
    return {name: "\n".join(lines) for name, lines in found.items()}


def _attributes(path: str, before: str, after: str) -> Iterator[Moved]:
    for line, text in _added_lines(before, after):
        if re.search(r"export-(?:ignore|subst)|\bfilter=|linguist-generated", text):
            yield moved("export_ignore", path, line, f"files are hidden from copies or reviews: {text}")


# --- what switches a check off in place ---------------------------------------------------------------------------

_SUPPRESSIONS = (
    re.compile(r"#\s*pragma:\s*no\s*(?:cover|branch)", re.IGNORECASE),
    re.compile(r"istanbul\s+ignore|c8\s+ignore|v8\s+ignore|LCOV_EXCL|GCOV_EXCL|coverage\(off\)|@codeCoverageIgnore"),
    re.compile(r"#\s*nosec\b|nosemgrep|NOSONAR|#\s*(?:ruff|flake8):\s*noqa\s*$|#\s*mypy:\s*ignore-errors"),
    re.compile(r"/\*\s*eslint-disable\s*\*/|//\s*@ts-nocheck|#!\[allow\((?:warnings|clippy::all)\)\]"),
)


def _suppressions(change: Change) -> Iterator[Moved]:
    if change.after is None or not re.search(r"\.\w+\Z", change.path) or change.path.endswith((".md", ".rst", ".txt")):
        return
    for pattern in _SUPPRESSIONS:
        more = len(pattern.findall(change.after)) - len(pattern.findall(change.before or ""))
        if more > 0:
            for line, text in _added_lines(change.before or "", change.after):
                if pattern.search(text):
                    yield moved("check_suppressed", change.path, line, f"a check is told to look away: {text.strip()}")


def _added_lines(before: str, after: str) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines of `after` that `before` does not have as often; order plays no part."""
    left = Counter(before.splitlines())
    for number, line in enumerate(after.splitlines(), 1):
        if left[line]:
            left[line] -= 1
        elif line.strip():
            yield number, line


# --- between the child and us -------------------------------------------------------------------------------------


def to_lines(found: Sequence[Moved]) -> Iterator[Any]:
    """The moves as documents of a line each; `from_lines` is the inverse."""
    yield {"moved": len(found)}
    for one in found:
        yield astuple(one)


def from_lines(documents: list[Any]) -> tuple[Moved, ...]:
    """What `to_lines` wrote. Raises TypeError, KeyError or ValueError for anything else."""
    found = tuple(Moved(*one) for one in documents[1:])
    if len(found) != documents[0]["moved"]:
        raise ValueError("moves are missing")
    return found


def read_changes(documents: Iterable[Any]) -> list[Change]:
    """Changes from a list of [path, before, after]."""
    return [Change(*each) for each in documents]
