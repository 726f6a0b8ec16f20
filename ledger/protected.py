"""The paths that are protected in every project, by kind: they steer or judge the work of whoever changes them. Pure.

Each kind is what people read as the reason. A path is compared as a file system would that ignores case, invisible
characters, and dots and blanks at the end of a name: on such a disk `claude.MD` is read by whoever looks for CLAUDE.md.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping
from functools import lru_cache

from pipeline.scope import is_literal, matches


def _files(names: str) -> list[str]:
    return [f"**/{name}" for name in names.split()]


def _folders(names: str) -> list[str]:
    return [f"**/{name}/**" for name in names.split()]


# The first kind that has a path is its reason.
KINDS: Mapping[str, list[str]] = {
    "instructions of agents": [
        *_files("AGENTS.md AGENTS.override.md AGENT.md CLAUDE.md CLAUDE.local.md GEMINI.md QWEN.md CRUSH.md WARP.md"),
        *_files(".mcp.json mcp.json .claude.json .cursorrules .cursorignore .cursorindexingignore .windsurfrules"),
        *_files(".codeiumignore .clinerules .clineignore .roorules .roorules-* .roomodes .rooignore .kilocodemodes"),
        *_files(".kilocoderules .aider.conf.yml .aiderignore .aider.model.settings.yml .aider.model.metadata.json"),
        *_files("copilot-instructions.md opencode.json opencode.jsonc .continuerc.json .continuerules .goosehints"),
        *_files(".augment-guidelines .augmentignore .geminiignore .aiexclude .aiignore .rules crush.json"),
        *_files(".crush.json .openhands_instructions firebender.json replit.md .replit .coderabbit.yaml"),
        *_files(".coderabbit.yml .sourcery.yaml greptile.json ellipsis.yaml"),
        *_folders(".claude .codex .gemini .qwen .cursor .windsurf .clinerules .cline .roo .kilocode .opencode .kiro"),
        *_folders(".junie .continue .amazonq .augment .trae .goose .factory .agents .agent .openhands .crush .zed"),
        *_folders(".idx .serena .ruler .rulesync .firebender .specify .tabnine .cody .sourcegraph .aiassistant .devin"),
        ".github/instructions/**",
        ".github/prompts/**",
        ".github/chatmodes/**",
        ".github/agents/**",
        ".github/skills/**",
    ],
    "CI": [
        ".github/**",
        ".gitlab/**",
        ".ci/**",
        *_files(".gitlab-ci.yml .gitlab-ci.yaml .travis.yml azure-pipelines*.yml azure-pipelines*.yaml"),
        *_files("bitbucket-pipelines.yml Jenkinsfile Jenkinsfile.* *.jenkinsfile .drone.yml .drone.yaml .drone.star"),
        *_files(".drone.jsonnet .woodpecker.yml .woodpecker.yaml appveyor.yml .appveyor.yml .cirrus.yml .cirrus.star"),
        *_files("cloudbuild.yaml cloudbuild.yml codefresh.yml buildspec.yml buildspec.yaml .build.yml .zuul.yaml"),
        *_files("zuul.yaml wercker.yml shippable.yml bitrise.yml codemagic.yaml .evergreen.yml .mergify.yml bors.toml"),
        *_files("netlify.toml vercel.json CODEOWNERS OWNERS codecov.yml .codecov.yml renovate.json renovate.json5"),
        *_files(".renovaterc .renovaterc.json sonar-project.properties .scrutinizer.yml"),
        *_folders(".gitlab-ci .circleci .buildkite .azure-pipelines .azuredevops .jenkins .woodpecker .codefresh"),
        *_folders(".semaphore .teamcity .gitea .forgejo .builds .tekton .prow .zuul.d zuul.d .harness .dagger"),
        *_folders(".mergify"),
    ],
    "gates": [
        *_files("conftest.py pytest.ini .pytest.ini pytest.toml tox.ini tox.toml noxfile.py setup.cfg setup.py"),
        *_files("pyproject.toml .coveragerc mypy.ini .mypy.ini ruff.toml .ruff.toml .flake8 .pylintrc .bandit"),
        *_files("pyrightconfig.json Makefile GNUmakefile justfile .justfile Taskfile.yml Taskfile.yaml Rakefile"),
        *_files("package.json jest.config.* vitest.config.* vitest.workspace.* karma.conf.* playwright.config.*"),
        *_files("cypress.config.* .mocharc.* .nycrc .nycrc.* .c8rc.json .eslintrc .eslintrc.* eslint.config.*"),
        *_files(".eslintignore biome.json biome.jsonc tsconfig.json tsconfig.*.json deno.json deno.jsonc bunfig.toml"),
        *_files("clippy.toml .clippy.toml deny.toml .golangci.yml .golangci.yaml .golangci.toml .golangci.json"),
        *_files(".rspec .rubocop.yml phpunit.xml phpunit.xml.dist phpstan.neon phpstan.neon.dist psalm.xml"),
        *_files("checkstyle.xml detekt.yml .swiftlint.yml .credo.exs .semgrepignore .semgrep.yml .trivyignore"),
        *_files(".gitleaks.toml .gitleaksignore .secrets.baseline nextest.toml"),
    ],
    "lock files": [
        *_files("requirements*.txt constraints*.txt poetry.lock Pipfile.lock uv.lock pdm.lock pylock.toml"),
        *_files("pylock.*.toml conda-lock.yml *.conda-lock.yml pixi.lock package-lock.json npm-shrinkwrap.json"),
        *_files("yarn.lock pnpm-lock.yaml bun.lock bun.lockb deno.lock Cargo.lock go.sum go.work.sum Gemfile.lock"),
        *_files("gems.locked composer.lock symfony.lock mix.lock rebar.lock pubspec.lock Podfile.lock"),
        *_files("Package.resolved Cartfile.resolved packages.lock.json paket.lock gradle.lockfile"),
        *_files("buildscript-gradle.lockfile verification-metadata.xml gradle-wrapper.properties gradle-wrapper.jar"),
        *_files("maven-wrapper.properties flake.lock .terraform.lock.hcl Chart.lock conan.lock stack.yaml.lock"),
        *_files("cabal.project.freeze Manifest.toml renv.lock shard.lock spago.lock MODULE.bazel.lock"),
        *_files("maven_install.json *.opam.locked dub.selections.json Brewfile.lock.json mise.lock devbox.lock"),
        *_files("lake-manifest.json"),
    ],
    "git itself": [
        *_files(".gitattributes .gitmodules .lfsconfig .mailmap .gitconfig .git-blame-ignore-revs"),
    ],
    "hooks and what runs by itself": [
        *_files(".pre-commit-config.yaml .pre-commit-config.yml .pre-commit-hooks.yaml prek.toml .overcommit.yml"),
        *_files("lefthook.* .lefthook.* lefthook-local.* .lefthook-local.* .lintstagedrc .lintstagedrc.*"),
        *_files("lint-staged.config.* .simple-git-hooks.* simple-git-hooks.* .huskyrc .huskyrc.* .envrc mise.toml"),
        *_files(".mise.toml .devcontainer.json .npmrc .yarnrc .yarnrc.yml .pnpmfile.cjs pnpm-workspace.yaml pip.conf"),
        *_files(".pypirc .netrc .bazelrc build.rs .gitpod.yml gradlew gradlew.bat mvnw mvnw.cmd binding.gyp"),
        *_files("sitecustomize.py usercustomize.py *.pth"),
        *_folders(".husky .githooks .git-hooks .lefthook .overcommit .vscode .idea .devcontainer .cargo .mvn .yarn"),
        *_folders(".mise"),
    ],
}  # fmt: skip

GLOBS = [glob for globs in KINDS.values() for glob in globs]


def kind_of(path: str) -> tuple[str, str] | None:
    """(kind, glob) of a path that is protected everywhere; None for any other."""
    return _kind_of(_as_opened(path))


def _as_opened(path: str) -> str:
    """One spelling for all that some file system opens as the same file."""
    if path.isascii():
        path = path.lower()
    else:
        shown = "".join(letter for letter in path if unicodedata.category(letter) != "Cf")
        path = unicodedata.normalize("NFKC", shown).casefold()
    return "/".join(part.rstrip(" .") or part for part in path.split("/"))


def _index() -> tuple[dict[str, tuple[str, str]], dict[str, tuple[str, str]], list[tuple[str, str, str]]]:
    """By name of a file, by name of a folder, and the rest with what it begins with: not some hundred globs a path."""
    files: dict[str, tuple[str, str]] = {}
    folders: dict[str, tuple[str, str]] = {}
    rest = []
    for kind, globs in KINDS.items():
        for glob in globs:
            parts = glob.lower().split("/")
            if parts[0] == "**" and len(parts) == 2 and is_literal(parts[1]):
                files.setdefault(parts[1], (kind, glob))
            elif parts[0] == parts[-1] == "**" and len(parts) == 3 and is_literal(parts[1]):
                folders.setdefault(parts[1], (kind, glob))
            else:
                rest.append((glob.lower(), kind, glob))
    return files, folders, rest


_FILES, _FOLDERS, _REST = _index()
_ORDER = {kind: place for place, kind in enumerate(KINDS)}
# At least what the rest means, in one look at a name and one at a path's beginning.
_NAMES = re.compile(
    "|".join(re.escape(glob.removeprefix("**/")).replace(r"\*", ".*") for glob, *_ in _REST if glob.startswith("**/"))
)
_BEGINNINGS = tuple(glob.removesuffix("**") for glob, *_ in _REST if not glob.startswith("**/"))


@lru_cache(maxsize=4096)
def _kind_of(path: str) -> tuple[str, str] | None:
    return min(_found(path), key=lambda found: _ORDER[found[0]], default=None)


def _found(path: str) -> Iterator[tuple[str, str]]:
    *above, name = path.split("/")
    if name in _FILES:
        yield _FILES[name]
    for part in above:
        if part in _FOLDERS:
            yield _FOLDERS[part]
    if path.startswith(_BEGINNINGS) or _NAMES.fullmatch(name):
        for lower, kind, glob in _REST:
            if matches(path, [lower]):
                yield kind, glob
