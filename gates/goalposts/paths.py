"""Pure: what a file is to the tests, by its path alone: a test, a support of tests, data, configuration, a shadow."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection

_TEST_FOLDERS = frozenset({"test", "tests", "testing", "__tests__", "__mocks__", "__snapshots__", "e2e", "testdata"})
# Folders of this name hold tests in the languages whose runners go by it, and elsewhere what the product specifies.
_OF_SPECS = re.compile(
    r"(?:.*/)?specs?/(?:.*\.(?:rb|[cm]?[jt]sx?|php|lua|cr|rake)\Z|(?:.*/)?(?:fixtures|support|factories|cassettes|data|files)/)",
    re.IGNORECASE,
)
_OTHER_CODE = re.compile(r".*\.(?:pyi?|go|rs|java|kts?|scala|groovy|cs|swift|c|cc|cpp|h|hpp|exs?|dart)\Z")
_TEST_FILE = re.compile(
    r"(?:test_.*|.*_test|tests)\.py\Z|conftest\.py\Z|.*_test\.go\Z|.*[._-](?:test|spec)\.[cm]?[jt]sx?\Z"
    r"|.*(?:Test|Tests|IT|Spec|TestCase)\.(?:java|kt|scala|groovy|cs|swift)\Z|(?:test_.*|.*_test|.*_spec)\.rb\Z"
    r"|.*(?:Test|Spec)\.php\Z|.*_test\.(?:exs|dart|cc|cpp|c)\Z|.*\.bats\Z"
)
_COLLECTED_FILE = re.compile(r"(?:.*/)?(?:test_[^/]*|[^/]*_test|tests?)\.py\Z")
_CODE_FILE = re.compile(
    r".*\.(?:pyi?|[cm]?[jt]sx?|go|rs|java|kts?|scala|groovy|rb|bats|sh|bash|php|cs|swift|exs?|dart|c|cc|cpp|h|hpp|lua|pl|t"
    r"|R|jl|vue|svelte)\Z"
)
_WORDS_FILE = re.compile(r"(?:.*/)?(?:README|CHANGELOG|LICENSE|NOTICE)[^/]*\Z|.*\.md\Z|(?:.*/)?\.git(?:keep|ignore)\Z")
_EXPECTED_FILE = re.compile(
    r".*\.(?:snap|golden|approved|ambr)\Z|.*\.(?:golden|approved|expected|verified)\.[^/]+\Z"
    r"|(?:.*/)?(?:__snapshots__|__image_snapshots__|golden|goldens|snapshots)/.*"
)
_WHOLE_FILES = re.compile(
    r"(?:.*/)?(?:\.?pytest\.(?:ini|toml)|\.coveragerc(?:\.toml)?|tox\.ini|noxfile\.py|\.?codecov\.ya?ml"
    r"|jest\.config\.\w+|vite\.config\.\w+|setup-?[tT]ests?\.[cm]?[jt]sx?|pyrightconfig\.json|ty\.toml|biome\.jsonc?"
    r"|\.shellcheckrc|rust-toolchain(?:\.toml)?|go\.work|setup_suite\.bash|build\.rs|vitest\.(?:config|workspace)\.\w+|karma\.conf\.\w+|\.mocharc(?:\.\w+)?|\.nycrc(?:\.\w+)?"
    r"|\.c8rc(?:\.\w+)?|\.taprc|ava\.config\.\w+|\.npmrc|\.yarnrc(?:\.yml)?|\.pnpmfile\.c?js"
    r"|playwright\.config\.\w+|cypress\.config\.\w+|\.eslintrc(?:\.\w+)?|eslint\.config\.\w+|\.eslintignore"
    r"|\.?ruff\.toml|\.?mypy\.ini|\.flake8|\.?pylintrc|\.bandit|bandit\.ya?ml|\.semgrepignore|\.semgrep\.ya?ml"
    r"|\.golangci\.\w+|\.?clippy\.toml|\.rspec|\.simplecov|phpunit\.xml(?:\.dist)?|nextest\.toml"
    r"|sonar-project\.properties|\.pre-commit-config\.ya?ml|sitecustomize\.py|usercustomize\.py"
    r"|\.gitlab-ci\.ya?ml|\.travis\.ya?ml|azure-pipelines\.ya?ml|bitbucket-pipelines\.ya?ml|Jenkinsfile|\.drone\.ya?ml"
    r"|appveyor\.ya?ml)\Z|(?:.*/)?\.cargo/config(?:\.toml)?\Z"
    r"|(?:src/)?[^/]+\.(?:dist|egg)-info/.*"  # what is on the path of imports may bring plugins of pytest
    r"|(?:\.github/workflows|\.github/actions|\.circleci|\.buildkite|\.ci)/.*"
)
_CI_FOLDER = re.compile(r"\.github/(?:workflows|actions)/.*")
_CHECK_SCRIPT = re.compile(
    r"(?:.*/)?(?:run[-_])?(?:unit[-_]|e2e[-_]|all[-_])?(?:tests?|check|checks|ci|cibuild|lint|verify|cov|coverage)"
    r"(?:[-_][\w-]+)?(?:\.(?:sh|bash|zsh|ps1|bat|cmd))?\Z"
)
# Whoever of these names stands first on the path of imports is what every test gets.
_RUNNERS = frozenset({
    "pytest", "_pytest", "pluggy", "iniconfig", "nose", "coverage", "xdist", "hypothesis", "mock",
    # what they import themselves
    "pygments", "packaging", "colorama", "exceptiongroup", "tomli", "execnet", "attr", "attrs", "py",
})  # fmt: skip
# Folders that pytest does not look into (norecursedirs), beside those whose names begin with a dot.
_NOT_LOOKED_INTO = frozenset({"build", "dist", "venv", "node_modules", "CVS", "_darcs", "__pycache__"})
_COMPILED = re.compile(r"(?P<place>(?:.*/)?)(?P<stem>\w+)(?:\.[\w-]+)*\.(?:so|pyd|pyc)\Z")
_VENDORED = re.compile(r"(?:.*/)?(?:node_modules|vendor)/.+")
_OTHER_SYSTEM = re.compile(
    r".*_(?:windows|darwin|plan9|js|wasm|wasip1|android|ios|aix|solaris|illumos|dragonfly|freebsd|netbsd|openbsd|arm|386"
    r"|mips\w*|ppc64\w*|riscv64|s390x|loong64)(?:_\w+)?_test\.go\Z"
)


def is_test_path(path: str) -> bool:
    """Whether a file is of the tests, by the folders and names that their runners go by."""
    *folders, name = path.split("/")
    if _TEST_FILE.match(name) or any(folder.lower() in _TEST_FOLDERS for folder in folders):
        return True
    if _OF_SPECS.match(path) and not _OTHER_CODE.match(path):
        return True
    return bool(_EXPECTED_FILE.match(path))


def is_collected(path: str) -> bool:
    """Whether pytest looks for tests in a Python file of this name."""
    folders = path.split("/")[:-1]
    return bool(_COLLECTED_FILE.match(path)) and not any(
        folder.startswith(".") or folder in _NOT_LOOKED_INTO for folder in folders
    )


def is_run(path: str) -> bool:
    """Whether the runner of another language than Python looks for tests at a path like this one."""
    *folders, name = path.split("/")
    if any(folder.startswith(".") or folder in {"node_modules", "fixtures", "testdata"} for folder in folders):
        return False
    if path.endswith(".go"):
        return not (name.startswith(("_", ".")) or "vendor" in folders or _OTHER_SYSTEM.match(name))
    if path.endswith(".rs") and "tests" in folders:  # each file of that folder is a program; what lies deeper is not
        below = folders[folders.index("tests") + 1 :]
        return not below or "src" in folders or (len(below) == 1 and name == "main.rs")
    return True


def is_vendored(path: str) -> bool:
    """Whether a file is a copy of somebody else's code: that of test libraries decides what an assertion asks."""
    return bool(_VENDORED.match(path))


def is_configuration(path: str) -> bool:
    """Whether a file as a whole says how tests are found and run, or what CI does."""
    return bool(_WHOLE_FILES.match(path))


def is_ci_job(path: str) -> bool:
    """Whether a file adds to what CI does without taking from it: workflows stand beside each other."""
    return bool(_CI_FOLDER.match(path))


def is_check_script(path: str) -> bool:
    """Whether a script's name says that it runs the tests or checks."""
    name = path.rpartition("/")[2]
    return bool(_CHECK_SCRIPT.match(path)) and ("." in name or path.startswith(("bin/", "script/", "scripts/")))


def is_data(path: str) -> bool:
    """Whether a file of the tests holds what they are fed with or held against: no program, and no words for people."""
    return is_test_path(path) and not _CODE_FILE.match(path) and not _WORDS_FILE.match(path)


def is_expected(path: str) -> bool:
    """Whether a data file holds what results are compared with as a whole."""
    return bool(_EXPECTED_FILE.match(path)) or bool(re.search(r"expect|golden|snapshot|approved|baseline", path))


def shadowed(path: str, tree: Collection[str]) -> str:
    """The module that a new Python file would stand before on the path of imports, or "".

    Of the standard library and the runners at the root or in a folder of tests; of the product (`tree` holds the paths
    of the base) in a folder of tests.
    """
    if compiled := _COMPILED.match(path):
        place, stem = compiled["place"].removesuffix("__pycache__/"), compiled["stem"]
        beside = any(f"{place}{stem}{end}" in tree for end in (".py", "/__init__.py"))
        return stem if beside or stem in _RUNNERS or stem in sys.stdlib_module_names else ""
    if not path.endswith(".py"):
        return ""
    if path.endswith("/__init__.py") and f"{path.removesuffix('/__init__.py')}.py" in tree:
        return path.split("/")[-2]  # a package comes before a module
    *folders, name = path.split("/")
    stem = folders[-1] if name in {"__init__.py", "__main__.py"} and folders else name.removesuffix(".py")
    place = folders[:-1] if name in {"__init__.py", "__main__.py"} else folders
    in_tests = bool(place) and is_test_path("/".join([*place, "x"]))
    outermost = not place or (in_tests and f"{'/'.join(place)}/__init__.py" not in tree)
    if (stem in _RUNNERS or stem.startswith("pytest_")) and (outermost or place == ["src"]):
        return stem
    if stem in sys.stdlib_module_names and outermost:
        return stem
    if in_tests and any(f"{root}{stem}{end}" in tree for root in ("", "src/") for end in (".py", "/__init__.py")):
        return stem
    return ""
