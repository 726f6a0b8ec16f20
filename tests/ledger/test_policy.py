"""What a scope and constraints find in the facts of a patch."""

import json
import time
from pathlib import Path

import pytest

from ledger import protected
from ledger.diff import parse
from ledger.git import TreeChange
from ledger.policy import BUILT_IN, Facts, check_constraints, check_protected, check_scope, check_tree
from pipeline.constraints import Layer, resolve

ONE, TWO, ZERO = "1" * 40, "2" * 40, "0" * 40
CHANGED = f"diff --git a/x b/x\nindex {ONE}..{TWO} 100644\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-a\n+é\n"
ADDED = f"diff --git a/y b/y\nnew file mode 100755\nindex {ZERO}..{ONE}\n--- /dev/null\n+++ b/y\n@@ -0,0 +1 @@\n+a\n"
DELETED = (
    f"diff --git a/z b/z\ndeleted file mode 100644\nindex {ONE}..{ZERO}\n--- a/z\n+++ /dev/null\n@@ -1 +0,0 @@\n-a\n"
)
FACTS = Facts(added=("src/new.py",), changed=("src/a.py",), deleted=("old.txt",), insertions=7, deletions=3)


def effective(**values):
    return resolve([Layer("project", values)])


def rules(findings):
    return [(finding.rule, finding.path) for finding in findings]


def test_facts_are_taken_from_the_diff():
    facts = Facts.of(parse(CHANGED + ADDED + DELETED), issue_ref="#7")
    assert (facts.added, facts.changed, facts.deleted) == (("y",), ("x",), ("z",))
    assert (facts.insertions, facts.deletions, facts.lines, facts.issue_ref) == (2, 2, 4, "#7")
    assert (facts.paths, facts.non_ascii_files, facts.binary_files) == (("x", "y", "z"), ("x",), ())


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        ({}, []),
        ({"forbidden": []}, []),
        ({"read": ["docs/**"]}, []),
        ({"write": ["**"]}, []),
        ({"write": ["src/**", "old.txt"]}, []),
        ({"write": ["src/*", "*.txt"]}, []),
        ({"write": ["src/a.py", "old.txt"], "create": ["src/**"]}, []),
        ({"write": ["src/**"]}, [("scope_write", "old.txt")]),
        ({"write": ["src/a.py", "old.txt"]}, [("scope_create", "src/new.py")]),
        ({"create": ["**"]}, [("scope_write", "old.txt"), ("scope_write", "src/a.py")]),
        ({"write": [], "create": ["src/**"]}, [("scope_write", "old.txt"), ("scope_write", "src/a.py")]),
        ({"write": []}, [("scope_write", "old.txt"), ("scope_write", "src/a.py"), ("scope_create", "src/new.py")]),
        ({"write": None, "create": None}, []),
        ({"forbidden": ["src/**"]}, [("scope_forbidden", "src/a.py"), ("scope_forbidden", "src/new.py")]),
        ({"write": ["**"], "forbidden": ["old.*"]}, [("scope_forbidden", "old.txt")]),
        ({"write": ["SRC/**", "old.txt"], "create": ["src/**"]}, [("scope_write", "src/a.py")]),
    ],
)
def test_a_scope_finds_what_is_outside_it(scope, found):
    assert rules(check_scope(FACTS, scope)) == found


def test_a_scope_finding_names_its_layer_path_and_globs():
    (finding,) = check_scope(FACTS, {"write": ["src/**"]}, layer="phase build")
    assert (finding.layer, finding.value, finding.threshold) == ("phase build", "old.txt", ["src/**"])
    assert finding.severity == "error"
    assert json.loads(json.dumps(finding.document()))["message"] == finding.message


def test_a_path_that_no_glob_can_name_is_outside_every_scope():
    assert rules(check_scope(Facts(deleted=("a\\b",)), {})) == [("scope_path", "a\\b")]


def test_no_layers_leave_the_built_in_constraints():
    assert check_constraints(FACTS, resolve([])) == []
    facts = Facts(changed=("x",), binary_files=("x",), format="git_bundle")
    assert [(found.rule, found.layer) for found in check_constraints(facts, resolve([]))] == [
        ("allowed_formats", "built-in"),
        ("forbid_binary_patches", "built-in"),
    ]


@pytest.mark.parametrize(
    ("facts", "constraints", "found"),
    [
        (FACTS, {"allowed_formats": ["unified_diff", "other"]}, []),
        (FACTS, {"allowed_formats": ["other"]}, [("allowed_formats", None)]),
        (FACTS, {"max_lines_changed": 10}, []),
        (FACTS, {"max_lines_changed": 9}, [("max_lines_changed", None)]),
        (FACTS, {"max_lines_changed": 0}, [("max_lines_changed", None)]),
        (Facts(added=("empty",)), {"max_lines_changed": 0}, [("max_lines_changed", None)]),
        (FACTS, {"max_files_changed": 3}, []),
        (FACTS, {"max_files_changed": 2}, [("max_files_changed", None)]),
        (FACTS, {"max_files_changed": 0}, [("max_files_changed", None)]),
        (
            FACTS,
            {"forbid_touching_paths": ["src/**"]},
            [("forbid_touching_paths", p) for p in ("src/a.py", "src/new.py")],
        ),
        (FACTS, {"forbid_touching_paths": ["lib/**"]}, []),
        (FACTS, {"require_issue_ref": True}, [("require_issue_ref", None)]),
        (Facts(changed=("x",), issue_ref=" "), {"require_issue_ref": True}, [("require_issue_ref", None)]),
        (Facts(changed=("x",), issue_ref="#1"), {"require_issue_ref": True}, []),
        (Facts(changed=("x",), non_ascii_files=("x",)), {"ascii_only": True}, [("ascii_only", "x")]),
        (Facts(changed=("x",), non_ascii_files=("x",)), {}, []),
        (Facts(changed=("x",), binary_files=("x",)), {"forbid_binary_patches": True}, [("forbid_binary_patches", "x")]),
        (Facts(changed=("x",), binary_files=("x",)), {"forbid_binary_patches": False}, []),
        (Facts(changed=("x",), format=""), {}, [("patch_required", None)]),
        (Facts(changed=("x",), format=""), {"patch_required": False}, []),
        (Facts(changed=("x",), format=""), {"patch_required": False, "patch_only": True}, [("patch_only", None)]),
        (Facts(), {}, [("patch_required", None)]),
    ],
)
def test_a_constraint_finds_what_breaks_it(facts, constraints, found):
    assert rules(check_constraints(facts, effective(**constraints))) == found


def test_a_finding_names_the_layer_that_set_the_threshold():
    layers = [Layer("project", {"max_lines_changed": 100}), Layer("task edit", {"max_lines_changed": 5})]
    (finding,) = check_constraints(FACTS, resolve(layers))
    assert (finding.layer, finding.value, finding.threshold, finding.path) == ("task edit", 10, 5, None)


PROTECTED = [
    *(".github/workflows/ci.yml", ".gitlab-ci.yml", ".ci/run", "conftest.py", "tests/conftest.py", "pyproject.toml"),
    *("Makefile", "requirements-dev.txt", "web/package-lock.json", ".gitattributes", "a/.gitmodules", ".lfsconfig"),
    *(".mailmap", "AGENTS.md", ".claude/settings.json", "uv.lock"),
]


@pytest.mark.parametrize("path", PROTECTED)
def test_built_in_protected_paths_ask_for_review_and_fail_nothing(path):
    facts = Facts(changed=(path,))
    (finding,) = check_protected(facts, resolve([]))
    assert (finding.severity, finding.layer, finding.path) == ("review", "built-in", path)
    assert check_constraints(facts, resolve([])) == []


@pytest.mark.parametrize(
    ("kind", "paths"),
    [
        (
            "instructions of agents",
            ".mcp.json .cursorrules .cursor/rules/a.mdc .windsurfrules .windsurf/a .clinerules .clinerules/a .roo/a "
            ".aider.conf.yml .github/copilot-instructions.md .github/prompts/a.md .gemini/a GEMINI.md .codex/a .kiro/a "
            "opencode.json .opencode/a .junie/a .continue/a .amazonq/a web/.claude/x a/b/CLAUDE.md a/AGENTS.md "
            "claude.md AGENTS.MD .Claude/x web/.CURSOR/x .cla\u200bude/x \uff23LAUDE.md CLAUDE.md. .claude./x",
        ),
        (
            "CI",
            ".github/workflows/a.yml .gitlab-ci.yml .circleci/config.yml .drone.yml .woodpecker/a.yml appveyor.yml "
            ".cirrus.yml cloudbuild.yaml Jenkinsfile Jenkinsfile.release a/Jenkinsfile .tekton/a .zuul.d/a .GitHub/x "
            "azure-pipelines-release.yml CODEOWNERS docs/CODEOWNERS renovate.json",
        ),
        (
            "gates",
            "Makefile setup.py mypy.ini .eslintrc.json jest.config.ts web/package.json .golangci.yml PyProject.toml",
        ),
        (
            "lock files",
            "bun.lock deno.lock mix.lock pubspec.lock Podfile.lock flake.lock .terraform.lock.hcl go.work.sum pdm.lock "
            "gradle.lockfile gradle/verification-metadata.xml packages.lock.json Package.resolved requirements-dev.txt",
        ),
        ("git itself", ".gitattributes a/.gitmodules .lfsconfig .GITATTRIBUTES"),
        (
            "hooks and what runs by itself",
            ".husky/pre-commit .pre-commit-config.yaml lefthook.yml .lefthook.toml .lintstagedrc.json .envrc .npmrc "
            ".vscode/tasks.json .devcontainer/a .cargo/config.toml build.rs .githooks/pre-push",
        ),
    ],
)
def test_what_is_protected_everywhere_is_so_by_a_kind_that_the_reason_names(kind, paths):
    for path in paths.split():
        (finding,) = check_protected(Facts(changed=(path,)), resolve([]))
        assert finding.message == f"{path} is protected ({kind}): it needs one review more"
        assert finding.threshold[0] in protected.KINDS[kind]


@pytest.mark.parametrize(
    "path",
    [
        *("src/claude.py", "docs/agents.md.txt", "AGENTS.md/notes.txt", "src/cursor/a.py", "lock.py", "my.lock"),
        *(
            "github/a.yml",
            "src/.githubx/a",
            "docs/makefile.md",
            "package.json.md",
            "src/jest.config",
            "requirements/a.txt",
        ),
    ],
)
def test_what_only_looks_like_it_is_not_protected(path):
    assert check_protected(Facts(changed=(path,)), resolve([])) == []


def test_every_built_in_path_is_found_by_its_own_glob_and_stands_in_the_docs():
    told = (Path(__file__).resolve().parents[2] / "docs" / "policy.md").read_text()
    for kind, globs in protected.KINDS.items():
        assert f"| {kind} |" in told
        for glob in globs:
            path = glob.replace("/**", "/x").replace("**/", "some/").replace("*", "y")
            assert protected.kind_of(path) is not None, glob
            assert f"`{glob.removeprefix('**/')}`" in told, glob


def test_no_path_takes_long_to_look_up():
    begun = time.process_time()
    for path in ("/".join("a" * 512), "azure-pipelines" * 60, "tsconfig." * 110, ".github" * 140):
        assert protected.kind_of(path[:1024]) is None
    assert time.process_time() - begun < 0.5


def test_a_layer_adds_protected_paths_and_keeps_the_built_in_ones():
    facts = Facts(changed=("Makefile", "secret/a", "src/a.py"))
    found = check_protected(facts, effective(protected_paths=["secret/**"]))
    assert [(finding.path, finding.layer) for finding in found] == [("Makefile", "built-in"), ("secret/a", "project")]


def test_the_built_in_values_are_valid_constraints():
    assert resolve([Layer("built-in", BUILT_IN)]).values == dict(BUILT_IN)


def change(path, kind, old_mode, new_mode):
    return TreeChange(path, kind, old_mode, new_mode, ONE, TWO)


TREE = [
    change("x", "change", "100644", "100644"),
    change("y", "add", "", "100755"),
    change("z", "delete", "100644", ""),
]


def test_a_tree_that_is_what_the_text_says_has_no_finding():
    assert check_tree(parse(CHANGED + ADDED + DELETED), TREE) == []


@pytest.mark.parametrize(
    ("tree", "path"),
    [
        (TREE[1:], "x"),
        ([*TREE, change("README", "delete", "100644", "")], "README"),
        ([change("x", "delete", "100644", ""), *TREE[1:]], "x"),
        ([change("x", "change", "100644", "100755"), *TREE[1:]], "x"),
        ([TREE[0], change("y", "add", "", "120000"), TREE[2]], "y"),
    ],
)
def test_a_tree_that_is_not_what_the_text_says_is_found(tree, path):
    assert rules(check_tree(parse(CHANGED + ADDED + DELETED), tree)) == [("tree_matches_text", path)]


def test_a_mode_that_the_text_does_not_say_must_be_a_plain_file():
    text = parse(CHANGED.replace(f"index {ONE}..{TWO} 100644\n", ""))
    assert check_tree(text, [change("x", "change", "100755", "100755")]) == []
    assert rules(check_tree(text, [change("x", "change", "120000", "120000")])) == [("tree_matches_text", "x")]
