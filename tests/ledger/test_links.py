"""Symbolic links: none unless the policy allows them, and then only those that stay inside the tree."""

import os
from pathlib import Path

import pytest

from ledger import diff, git, reviewing, trees, validation
from ledger import links as symlinks
from ledger.models import Patch, PolicyOverride
from pipeline.models import Project
from pipeline.refusals import Refused
from tests import factories
from tests.api.asking import Api
from tests.factories import BY
from tests.ledger.hostile import mutator
from tests.ledger.hostile.families import families, make_base
from tests.ledger.hostile.texts import END, ONE, TWO, ZERO, added, changed, moved

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

MUTANTS = 4_000 if os.environ.get("CHAOS") == "full" else 300
OPEN = {"forbid_symlinks": False}
LINK = "120000"


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree that holds two links already: `inner` to its folder `src`, and `link` to /etc."""
    return make_base(tmp_path_factory.mktemp("links") / "repository")


@pytest.fixture
def project(repository: Path) -> Project:
    """A project with a mirror of it."""
    project = factories.make_project(repository=repository)
    factories.make_merge_queue(project)
    return project


def link(target: str, path: str = "new-link") -> str:
    return added(path, mode=LINK, body=f"@@ -0,0 +1 @@\n+{target}\n{END}")


def judged(project: Project, text: str, **fields: object) -> Patch:
    head = factories.head_of(project)
    patch, _is_new = Patch.objects.submit(project=project, diff_text=text, base_commit=head, by=BY, **fields)
    validation.validate(patch.pk)
    patch.refresh_from_db()
    return patch


def made(project: Project, patch: Patch) -> dict[str, str]:
    """Path → mode of what the patch makes of its base."""
    found = git.changes(project.mirror, patch.base_commit, patch.result_tree)
    return {change.path: change.new_mode for change in found}


@pytest.mark.parametrize(
    ("path", "target", "found"),
    [
        ("l", "src/b.py", "src/b.py"),
        ("src/l", "b.py", "src/b.py"),
        ("src/l", "../plain", "plain"),
        ("a/b/c/l", "../../d", "a/d"),
        ("a/l", "..a", "a/..a"),
    ],
)
def test_a_target_is_read_from_where_its_link_stands(path: str, target: str, found: str) -> None:
    assert diff.judge_target(path, target) == found


@pytest.mark.parametrize(
    "target",
    [
        "/etc/passwd", "/", "..", "../..", "../../x", "../../../etc/passwd", "", ".", "./x", "x/", "x//y", "x/../y",
        "x/..", "../a/l", "l", "../a", "C:/x", "..\\x", "../.git/config", "../.GIT/x", "x\ny", "x\x1b",
        "x\u202e",
        "../" * 40 + "etc/passwd", "x" * 300, "CON", "x.", "~/x\0",
    ],
)  # fmt: skip
def test_a_target_that_is_anything_but_a_path_of_the_tree_is_refused(target: str) -> None:
    with pytest.raises(diff.DiffRefused) as refused:
        diff.judge_target("a/l", target)
    assert refused.value.code == "symlink_target"


def test_without_a_word_of_the_policy_no_link_gets_in(project: Project) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    body = {"project": project.key, "base_commit": factories.head_of(project), "diff_text": link("src/b.py")}
    answer = operator.post("/patches/", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "symlink_target")
    assert "forbid_symlinks" in answer.json()["detail"]
    factories.make_policy(project=project, constraints=OPEN)
    assert operator.post("/patches/", body).status_code == 201
    body["diff_text"] = link("/etc/passwd")
    answer = operator.post("/patches/", body)
    assert (answer.status_code, answer.json()["code"]) == (422, "symlink_target")
    assert Patch.objects.count() == 1


@pytest.mark.parametrize(
    "text",
    [
        link("src/b.py"),
        link("src"),
        link("../plain", "src/up"),
        link("made/here.txt") + added("made/here.txt"),
        changed("inner", f"@@ -1 +1 @@\n-src\n{END}+plain\n{END}", index=f"index {ONE}..{TWO} {LINK}\n"),
    ],
)
def test_a_link_inside_the_tree_is_taken_where_the_policy_allows_it(project: Project, text: str) -> None:
    factories.make_policy(project=project, constraints=OPEN)
    patch = judged(project, text)
    assert (patch.state, patch.validation_errors) == ("validated", [])
    assert LINK in made(project, patch).values()
    assert patch.facts["links"] == [path for path, mode in made(project, patch).items() if mode == LINK]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (link("nothing/there"), "symlink_target"),
        (link("inner"), "symlink_target"),
        (link("inner/b.py"), "symlink_target"),
        (link("link"), "symlink_target"),
        (link("link/passwd"), "symlink_target"),
        (link("vendor/sub"), "symlink_target"),
        (link("vendor/sub/x"), "symlink_target"),
        (link("plain/x"), "symlink_target"),
        (link("l2", "l1") + link("l1", "l2"), "symlink_target"),
        (added("link/x"), "symlink_target"),
        (moved("inner", "inner2"), "header_mismatch"),
        (moved("link", "link2"), "symlink_target"),
        (changed("inner", f"@@ -1 +1 @@\n-src\n{END}+plain\n{END}", index=""), "header_mismatch"),
        (changed("link", f"@@ -1 +1 @@\n-/etc\n{END}+/root\n{END}", index=""), "symlink_target"),
        (changed("plain", f"@@ -1 +1 @@\n-a file\n+src\n{END}", index=f"index {ONE}..{TWO} {LINK}\n"), "stale_base"),
    ],
)
def test_a_link_that_leads_nowhere_or_through_another_is_refused_by_the_tree(
    project: Project, text: str, code: str
) -> None:
    factories.make_policy(project=project, constraints=OPEN)
    patch = judged(project, text)
    assert (patch.state, patch.last_error_code) == ("apply_failed", code)


@pytest.mark.parametrize(
    ("links", "looping"),
    [
        ({"ca/l": "../cb", "cb/m": "../ca"}, ["ca/l"]),
        ({"a/l": "../b/deep", "b/deep/er/m": "../../../c", "c/d/n": "../../a"}, ["a/l"]),
        ({"a/l": "../b", "b/m": "../c", "c/n": "../d/file"}, []),
        ({"a/l": "../c", "a/m": "../c", "b/n": "../a"}, []),
        ({"a/l": "../b/l/x", "b/l": "../a"}, ["a/l"]),
        ({"up": ".", "a/l": "../b", "b/up": "./../"}, ["a/l"]),
        ({"x": "x", "y": "/y", "z": "../z"}, ["x"]),
    ],
)
def test_links_that_lead_to_each_other_by_way_of_folders_are_a_loop(links: dict[str, str], looping: list[str]) -> None:
    assert symlinks.looping(links, links) == looping


def test_a_loop_among_many_links_is_found_in_a_moment() -> None:
    wide = {f"d{at}/l{number}": f"../d{at + 1}" for at in range(300) for number in range(30)}
    assert symlinks.looping(wide, wide) == []
    assert symlinks.looping({**wide, "d300/back": "../d0"}, {"d300/back"}) == ["d300/back"]


@pytest.mark.parametrize(
    "text",
    [
        added("ca/x") + added("cb/x") + link("../cb", "ca/l") + link("../ca", "cb/m"),
        added("ca/x") + added("cb/y/x") + link("../cb", "ca/l") + link("../../ca", "cb/y/m"),
    ],
)
def test_a_loop_by_way_of_folders_is_refused_by_the_tree(project: Project, text: str) -> None:
    factories.make_policy(project=project, constraints=OPEN)
    patch = judged(project, text)
    assert (patch.state, patch.last_error_code) == ("apply_failed", "symlink_target")


@pytest.mark.parametrize(
    "body",
    ["@@ -0,0 +1 @@\n+src\n", f"@@ -0,0 +1,2 @@\n+src\n+x\n{END}", ""],
    ids=["with-a-line-end", "two-lines", "empty"],
)
def test_a_link_is_one_line_without_an_end(project: Project, body: str) -> None:
    factories.make_policy(project=project, constraints=OPEN)
    with pytest.raises(diff.DiffRefused) as refused:
        judged(project, added("l", mode=LINK, body=body))
    assert refused.value.code == "symlink_target"


def test_the_families_about_links_gain_nothing_where_links_are_allowed(project: Project) -> None:
    factories.make_policy(project=project, constraints=OPEN)
    taken = []
    for case in (case for number, cases in families() if number in (6, 7, 8) for case in cases):
        try:
            patch = judged(project, case.text)
        except diff.DiffRefused:
            continue
        if patch.state == "validated":
            taken.append(made(project, patch))
    assert taken == [{"new-link": LINK}]  # to `src`


def test_a_narrower_policy_takes_the_permission_away_and_a_replay_tells_whom_it_would_meet(project: Project) -> None:
    factories.make_policy(project=project, constraints=OPEN)
    patch, plain = judged(project, link("src")), judged(project, added("x.txt"))
    row = factories.make_policy(project=project, enabled=False, constraints={"forbid_symlinks": True})
    found = reviewing.replay(row, 10)
    assert (found["patches"], found["refused"], found["by_rule"]) == (2, 1, {"forbid_symlinks": 1})
    assert [one["patch"] for one in found["first"]] == [patch.pk]
    assert plain.state == "validated"
    row.edit(by=BY, enabled=True)
    with pytest.raises(diff.DiffRefused):
        judged(project, link("src", "second"))
    # What had come in before is judged by what holds now, and an override lets it pass, with its end.
    assert validation.judge(patch)["format_ok"] is False
    PolicyOverride.objects.grant(patch, "forbid_symlinks", reason="it was agreed", by=BY)
    again = validation.judge(patch)
    assert (again["format_ok"], again["constraints_ok"]) == (True, True)
    assert [one["rule"] for one in again["findings"] if one["severity"] == "overridden"] == ["forbid_symlinks"]


def test_what_undoes_a_landed_link_may_take_it_away_under_any_policy_and_put_it_back_under_an_open_one(
    project: Project,
) -> None:
    factories.make_policy(project=project, constraints=OPEN)
    patch = judged(project, link("src"))
    landed = factories.in_state(patch, "committed", commit_sha=ONE, tested_tree=TWO, committed_tree=TWO)
    project.policies.get().edit(by=BY, constraints={"forbid_symlinks": True})
    gone = f"diff --git a/inner b/inner\ndeleted file mode {LINK}\nindex {ONE}..{ZERO}\n--- a/inner\n+++ /dev/null\n"
    assert judged(project, f"{gone}@@ -1 +0,0 @@\n-src\n{END}", rollback_of=landed).state == "validated"
    back = judged(project, link("src", "back"), rollback_of=landed)
    assert (back.state, back.last_error_code) == ("apply_failed", "forbid_symlinks")


def test_of_diffs_of_links_that_are_a_little_changed_no_link_leads_out(project: Project) -> None:
    base = factories.head_of(project)
    good = [link("src/b.py"), link("src"), link("../plain", "src/up"), link("made/x") + added("made/x")]
    taken = 0
    for text in (*good, *mutator.mutants(good, MUTANTS, os.environ.get("CHAOS_SEED", "1"))):
        try:
            parsed = diff.parse(text, links=True)
            tree = git.apply(project.mirror, base, text)
        except git.GitFailed:
            raise
        except Refused:
            continue
        if trees.judge(project.mirror, base, tree, parsed, links=True):
            continue
        for change in git.changes(project.mirror, base, tree):
            assert change.new_mode in ("", *diff.PLAIN_MODES, LINK)
            if change.new_mode == LINK:
                taken += 1
                target = git.blob(project.mirror, change.new_oid).decode()
                place = Path("/tree", change.path).parent / target
                assert str(place.absolute()) == str(place) or ".." in target
                inside = os.path.normpath(place)
                assert inside.startswith("/tree/")
                assert "/.git" not in inside.lower()
                modes = git.modes_on_the_way(project.mirror, tree, inside.removeprefix("/tree/"))
                assert LINK not in modes.values()
    assert taken >= len(good)
