"""What is read out of a patch's text: secrets, new dependencies, generated files."""

import json

import pytest

from ledger import contents
from ledger.contents import Unreadable, dependencies, look, new_lines
from ledger.diff import parse
from ledger.leaks import kinds
from ledger.policy import BUILT_IN, Facts, check_constraints, check_for_review
from pipeline.constraints import Layer, resolve

# Put together here, so that no scanner of repositories takes this file for a leak.
AWS = "AKIA" + "IOSFODNN7EXAMPLE"
KEY = "-----BEGIN " + "RSA PRIVATE KEY-----"
TOKEN = "eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiIxMjM0In0." + "c2lnbmF0dXJlc2ln"


def changed(path: str, old: list[str], new: list[str]) -> str:
    """A diff that replaces the whole text of a file."""
    body = "".join(f"-{line}\n" for line in old) + "".join(f"+{line}\n" for line in new)
    hunk = f"@@ -1,{len(old)} +1,{len(new)} @@\n{body}"
    return f"diff --git a/{path} b/{path}\n--- a/{path}\n+++ b/{path}\n{hunk}"


def added(path: str, *lines: str) -> str:
    """A diff that adds a file."""
    body = "".join(f"+{line}\n" for line in lines)
    head = f"diff --git a/{path} b/{path}\nnew file mode 100644\n--- /dev/null\n+++ b/{path}\n"
    return f"{head}@@ -0,0 +1,{len(lines)} @@\n{body}"


def facts_of(text: str, old: dict[str, str] | None = None, new: dict[str, str] | None = None) -> Facts:
    files = {"old": old or {}, "new": new or {}}

    def read(side: str, path: str) -> bytes | None:
        found = files[side].get(path)
        return None if found is None else found.encode()

    return look(parse(text), text, read)


def test_every_line_of_the_new_files_is_found_with_its_number_and_no_line_is_taken_for_a_header() -> None:
    text = changed("a", ["x"], ["++ b/evil", "diff --git a/e b/e", "@@ -1 +1 @@"]) + added("b", "z")
    found = [(one.path, one.number, one.text, one.is_added) for one in new_lines(parse(text), text)]
    assert found == [
        ("a", 1, "++ b/evil", True),
        ("a", 2, "diff --git a/e b/e", True),
        ("a", 3, "@@ -1 +1 @@", True),
        ("b", 1, "z", True),
    ]


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (f"key = '{AWS}'", "AWS Access Key"),
        (KEY, "Private Key"),
        (f"auth {TOKEN}", "JSON Web Token"),
        ("https://ada:hunter22@example.org/x", "Basic Auth Credentials"),
        ("x" * 5_000 + f" {AWS} " + "y" * 5_000, "AWS Access Key"),
    ],
)
def test_a_secret_is_known_by_its_form(line: str, kind: str) -> None:
    assert kinds(line) == [kind]


@pytest.mark.parametrize("line", ["", "password = settings.PASSWORD", "def key(self): ...", "0" * 64, "AKIA"])
def test_ordinary_code_holds_no_secret(line: str) -> None:
    assert kinds(line) == []


def test_a_secret_is_told_by_place_and_kind_and_never_by_its_text() -> None:
    facts = facts_of(added("conf.py", "a = 1", f"k = '{AWS}'"))
    found = check_constraints(facts, resolve([]))
    assert [(one.rule, one.path, one.value, one.severity) for one in found] == [
        ("forbid_secrets", "conf.py", 2, "error")
    ]
    assert AWS not in json.dumps([one.document() for one in found] + [facts.document()])


def test_a_secret_that_is_removed_is_no_secret_that_is_added() -> None:
    assert facts_of(changed("conf.py", [f"k = '{AWS}'"], ["k = env('K')"])).secrets == ()


@pytest.mark.parametrize(
    ("path", "text", "names"),
    [
        ("requirements.txt", "# no\nFoo_Bar[x]>=1 ; a\n-r base.txt\n", {"foo-bar"}),
        ("requirements/dev.in", "a # b\nq @ https://z/q.whl\n", {"a", "q from https://z/q.whl"}),
        ("requirements.txt", "git+https://h/x\n-i https://other\n", {"package from git+https://h/x", "-i https://other"}),
        ("pyproject.toml", '[project]\ndependencies=["A>=1"]\n[dependency-groups]\nd=["b"]\n', {"a", "b"}),
        ("pyproject.toml", '[tool.poetry.dependencies]\npython="3"\nC={git="u"}\n', {"c from u"}),
        ("package.json", '{"dependencies":{"a":"^1"},"devDependencies":{"b":"own/b"}}', {"a", "b from own/b"}),
        ("go.mod", "module m\nrequire (\n\ta/b v1 // indirect\n)\nrequire c/d v2\n", {"a/b", "c/d"}),
        ("go.mod", "replace a/b => ../b\n", {"a/b from ../b"}),
        ("x/Cargo.toml", '[dependencies]\na="1"\n[target.x.dependencies]\nb={path="../b"}\n', {"a", "b from ../b"}),
    ],
)  # fmt: skip
def test_a_manifest_names_what_it_depends_on(path: str, text: str, names: set[str]) -> None:
    assert contents.is_manifest(path)
    assert dependencies(path, text) == names


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("pyproject.toml", "[project"),
        ("package.json", "[1, 2]"),
        ("package.json", '{"dependencies": ["a"]}'),
        ("Cargo.toml", "dependencies = 3"),
    ],
)
def test_a_manifest_that_is_none_is_unreadable(path: str, text: str) -> None:
    with pytest.raises(Unreadable):
        dependencies(path, text)


def test_only_what_was_not_there_before_is_a_new_dependency_and_asks_for_a_review() -> None:
    old, new = {"requirements.txt": "a==1\n"}, {"requirements.txt": "a==2\nb\n"}
    facts = facts_of(changed("requirements.txt", ["a==1"], ["a==2", "b"]), old, new)
    assert facts.new_dependencies == (("requirements.txt", "b"),)
    hints = {(one.rule, one.severity) for one in check_for_review(facts, resolve([]))}
    assert ("new_dependencies", "review") in hints
    strict = resolve([Layer("project", {"forbid_new_dependencies": True})])
    assert [one.rule for one in check_constraints(facts, strict)] == ["forbid_new_dependencies"]
    assert "new_dependencies" not in {one.rule for one in check_for_review(facts, strict)}


def test_what_cannot_be_read_is_said_and_not_passed_over() -> None:
    text = changed("package.json", ["{}"], ["{"])
    facts = facts_of(text, {"package.json": "{}"}, {"package.json": "{"})
    assert (facts.new_dependencies, facts.unreadable) == ((), ("package.json",))
    assert look(parse(text), text, None).unreadable == ("package.json",)
    strict = resolve([Layer("project", {"forbid_new_dependencies": True})])
    assert [one.rule for one in check_constraints(facts, strict)] == ["forbid_new_dependencies"]


def test_generated_files_are_known_by_their_path_or_by_what_they_say() -> None:
    facts = facts_of(added("api/x_pb2.py", "a") + added("gen.go", "// Code generated by x. DO NOT EDIT."))
    notes = [(one.path, one.severity) for one in check_for_review(facts, resolve([])) if one.rule == "generated_files"]
    assert notes == [("api/x_pb2.py", "note"), ("gen.go", "note")]
    strict = resolve([Layer("project", {"forbid_generated_files": True, "generated_paths": ["out/**"]})])
    found = check_constraints(facts_of(added("out/a", "a") + added("api/x_pb2.py", "a")), strict)
    assert [(one.rule, one.path) for one in found] == [
        ("forbid_generated_files", "api/x_pb2.py"),
        ("forbid_generated_files", "out/a"),
    ]


def test_size_is_limited_by_path() -> None:
    bounds = resolve([Layer("project", {"max_lines_by_path": {"db/**": 1, "src/**": 5}})])
    found = check_constraints(facts_of(added("db/a.sql", "1", "2") + added("src/b.py", "1", "2")), bounds)
    assert [(one.rule, one.path, one.value) for one in found] == [("max_lines_by_path", "db/a.sql", 2)]


def test_facts_come_back_from_their_document_as_they_were() -> None:
    facts = facts_of(added("conf.py", f"k = '{AWS}'") + added("requirements.txt", "b"), {}, {"requirements.txt": "b\n"})
    assert Facts.read(json.loads(json.dumps(facts.document()))) == facts
    assert Facts.read({}) == Facts()
    assert BUILT_IN["forbid_secrets"] is True
