"""What the git adapter promises, against real repositories: each function, hostile sources, races and kills."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ledger import git
from ledger.diff import parse
from ledger.policy import check_tree
from ledger.trees import judge
from pipeline.refusals import InvalidField

AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
CLEAN = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_AUTHOR_DATE": "@1 +0000",
    "GIT_COMMITTER_DATE": "@1 +0000",
    **{f"GIT_{who}_{what}": "a@example.org" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
}


class Source:
    """A user's repository with a checkout, worked on by plain git."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.path = folder
        folder.mkdir(parents=True)
        self.git("init", "-q", "-b", "main", *options)

    def git(self, *arguments: str, stdin: bytes = b"") -> str:
        done = subprocess.run(
            ["git", "-c", "core.autocrlf=false", *arguments], cwd=self.path, env=CLEAN, input=stdin, capture_output=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.decode("utf-8", "surrogateescape")

    def write(self, files: dict[str, bytes | None]) -> None:
        for name, content in files.items():
            path = self.path / name
            if content is None:
                path.unlink()
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)

    def commit(self, files: dict[str, bytes | None], message: str = "work") -> str:
        self.write(files)
        self.git("add", "-A", "-f")
        self.git("commit", "-q", "--allow-empty", "-m", message)
        return self.git("rev-parse", "HEAD").strip()

    def diff(self, files: dict[str, bytes | None]) -> tuple[str, str]:
        """The diff and the tree of an edit that is not committed."""
        self.write(files)
        self.git("add", "-A", "-f")
        text = self.git("diff", "--cached", "--no-renames", "--full-index", "--binary", "HEAD")
        tree = self.git("write-tree").strip()
        self.git("reset", "-q", "--hard")
        return text, tree


LINES = b"".join(b"line %d\n" % number for number in range(1, 101))


@pytest.fixture
def source(tmp_path):
    made = Source(tmp_path / "source")
    made.commit({"a": LINES, "b": b"x\n", "docs/c": b"c\n"})
    return made


@pytest.fixture
def mirror(tmp_path, source):
    git.clone_mirror(str(source.path), tmp_path / "mirror.git")
    return tmp_path / "mirror.git"


@pytest.fixture
def base(mirror):
    return git.head(mirror, "main")


def land(mirror, parent, tree, message="land\n"):
    return git.commit(mirror, tree, parent, message, author_name="w", author_email="w@example.org", at=AT)


def leftovers(mirror):
    return list((mirror / git.TEMPORARY).glob("*"))


# --- the mirror ---


def test_a_mirror_holds_all_branches_and_tags_and_upstreams_default(tmp_path, source):
    source.git("branch", "side")
    source.git("tag", "-a", "v1", "-m", "one")
    git.clone_mirror(str(source.path), tmp_path / "m")
    assert git.default_branch(tmp_path / "m") == "main"
    assert git.head(tmp_path / "m", "side") == source.git("rev-parse", "HEAD").strip()
    assert (tmp_path / "m" / "packed-refs").read_text().count("refs/tags/v1") == 1
    assert not (tmp_path / "m" / "hooks").exists()
    assert git.fsck(tmp_path / "m") == []


def test_a_named_branch_becomes_the_default(tmp_path, source):
    source.git("branch", "side")
    git.clone_mirror(source.path.as_uri(), tmp_path / "m", branch="side")
    assert git.default_branch(tmp_path / "m") == "side"


def test_a_detached_source_gets_a_likely_default_branch(tmp_path, source):
    source.git("checkout", "-q", "--detach")
    git.clone_mirror(str(source.path), tmp_path / "m")
    assert git.default_branch(tmp_path / "m") == "main"


def test_a_detached_source_without_a_likely_branch_needs_a_name(tmp_path, source):
    source.git("branch", "side")
    source.git("branch", "-m", "main", "other")
    source.git("checkout", "-q", "--detach")
    source.commit({"b": b"on no branch\n"})
    with pytest.raises(git.UnknownCommit, match="name one"):
        git.clone_mirror(str(source.path), tmp_path / "m")
    git.clone_mirror(str(source.path), tmp_path / "m", branch="side")
    assert git.default_branch(tmp_path / "m") == "side"


def test_of_two_clones_to_one_place_one_wins_and_nothing_is_left(tmp_path, source):
    def clone(_):
        with contextlib.suppress(git.GitFailed):
            git.clone_mirror(str(source.path), tmp_path / "m" / "repo.git")
            return 1
        return 0

    with ThreadPoolExecutor(4) as pool:
        assert sum(pool.map(clone, range(4))) == 1
    assert [path.name for path in (tmp_path / "m").iterdir()] == ["repo.git"]


def test_an_empty_source_has_a_default_branch_without_a_commit(tmp_path):
    empty = Source(tmp_path / "empty")
    git.clone_mirror(str(empty.path), tmp_path / "m")
    assert git.default_branch(tmp_path / "m") == "main"
    with pytest.raises(git.UnknownCommit):
        git.head(tmp_path / "m", "main")


def test_a_clone_that_fails_leaves_nothing(tmp_path, source):
    folder = tmp_path / "mirrors"
    with pytest.raises(git.GitFailed):
        git.clone_mirror(str(tmp_path / "absent"), folder / "m")
    with pytest.raises(git.UnknownCommit):
        git.clone_mirror(str(source.path), folder / "m", branch="absent")
    assert list(folder.iterdir()) == []


def test_a_clone_never_replaces_what_is_there(tmp_path, source):
    (tmp_path / "m").mkdir()
    with pytest.raises(git.GitFailed, match="already exists"):
        git.clone_mirror(str(source.path), tmp_path / "m")
    assert list((tmp_path / "m").iterdir()) == []


def test_the_remains_of_a_killed_clone_are_removed_by_the_next(tmp_path, source):
    old, young = tmp_path / ".m.partial-1", tmp_path / ".m.partial-2"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (1, 1))
    git.clone_mirror(str(source.path), tmp_path / "m")
    assert (old.exists(), young.exists()) == (False, True)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "--upload-pack=touch x",
        "-x",
        "ext::sh -c touch% x",
        "fd::17",
        "git://example.org/x",
        "http://example.org/x",
        "ftp://example.org/x",
        "https://user:secret@example.org/x",
        "ssh://-oProxyCommand=x/y",
        "ssh://-oProxyCommand=x@host/y",
        "https:///x",
        "https://[broken/x",
        "a\nb",
    ],
)
def test_a_source_of_another_kind_is_refused(tmp_path, url):
    with pytest.raises(InvalidField):
        git.clone_mirror(url, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []


def test_nothing_that_a_source_configures_is_run(tmp_path, source):
    mark = tmp_path / "ran"
    hook = source.path / ".git" / "hooks" / "evil"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\necho $0 >> {mark}\n")
    hook.chmod(0o755)
    for name in ("post-checkout", "pre-receive", "reference-transaction", "post-index-change", "pre-auto-gc"):
        (hook.parent / name).symlink_to(hook)
    for key in ("core.fsmonitor", "uploadpack.packObjectsHook", "core.sshCommand", "core.pager", "diff.external"):
        source.git("config", key, str(hook))
    source.git("config", "alias.upload-pack", f"!{hook}")
    source.git("config", "filter.evil.smudge", str(hook))
    source.git("config", "diff.evil.textconv", str(hook))
    source.git("config", "core.fsmonitor", "false")
    source.commit({".gitattributes": b"* filter=evil diff=evil\n"})
    source.git("config", "core.fsmonitor", str(hook))
    mark.unlink(missing_ok=True)
    mirror = tmp_path / "m"
    git.clone_mirror(str(source.path), mirror)
    tip = git.head(mirror, "main")
    parent = git.log(mirror, "main", 2)[1].id
    git.export(mirror, tip, tmp_path / "out")
    git.diff_text(mirror, parent, tip)
    git.fetch(mirror)
    assert not mark.exists()


def test_fetch_brings_branches_forward_and_keeps_what_landed(mirror, source, base):
    source.git("branch", "diverging")
    source.git("branch", "ahead")
    assert [found.state for found in git.fetch(mirror)] == ["created", "created"]
    tree = git.apply(mirror, base, source.diff({"b": b"ours\n"})[0])
    ours = land(mirror, base, tree)
    git.move_branch(mirror, "diverging", ours, base)
    git.move_branch(mirror, "ahead", ours, base)
    upstream = source.commit({"b": b"theirs\n"})
    source.git("branch", "-f", "diverging")
    source.git("tag", "v2")
    found = git.fetch(mirror)
    assert found == [
        git.Fetched("diverging", ours, upstream, "diverged"),
        git.Fetched("main", base, upstream, "moved"),
    ]
    assert [git.head(mirror, name) for name in ("diverging", "ahead", "main")] == [ours, ours, upstream]
    source.git("branch", "-D", "ahead")
    assert git.fetch(mirror) == found[:1]
    assert git.head(mirror, "ahead") == ours


# --- names ---


@pytest.mark.parametrize(
    "name", ["", "-x", "a..b", "a b", "a~1", "a^", "a:b", "a?", "a*", "a[", "a\\b", "/a", "a/", "a//b", ".a", "a/.b"]
    + ["a.lock", "a.lock/b", "a.", "@", "HEAD", "a@{1}", "a\x7f", "a\n", "x" * 256],
)  # fmt: skip
def test_a_bad_branch_name_is_refused_before_git_sees_it(tmp_path, name):
    with pytest.raises(InvalidField):
        git.head(tmp_path / "no repository at all", name)


def test_good_branch_names_are_those_git_takes(mirror, base):
    for name in ("a/b", "été", "x@y", "a.b-c_d", "feature/1.lock.x"):
        git.branches.update_branch(mirror, name, base, "0" * 40)
        assert git.head(mirror, name) == base


@pytest.mark.parametrize("name", ["", "HEAD", "main", "abc123", "--all", "A" * 40, "1" * 39, "1" * 40 + "\n", "1" * 41])
def test_only_full_object_names_reach_git(mirror, base, name):
    assert not git.knows(mirror, name)
    calls = [
        lambda: git.tree_of(mirror, name),
        lambda: git.apply(mirror, name, "x"),
        lambda: git.changes(mirror, name, base),
        lambda: git.diff_text(mirror, base, name),
        lambda: git.rebase_tree(mirror, base, name, base),
        lambda: land(mirror, name, base),
        lambda: git.move_branch(mirror, "main", name, base),
        lambda: git.move_branch(mirror, "main", base, name),
        lambda: git.export(mirror, name, mirror / "out"),
    ]
    for call in calls:
        with pytest.raises(git.UnknownCommit):
            call()


def test_unknown_objects_and_branches_are_unknown(mirror, base):
    absent = "1" * 40
    tree = git.tree_of(mirror, base)
    assert git.knows(mirror, base)
    assert not git.knows(mirror, absent)
    assert not git.knows(mirror, tree)
    assert not git.contains(mirror, "main", absent)
    assert not git.contains(mirror, "absent", base)
    for call in (
        lambda: git.head(mirror, "absent"),
        lambda: git.log(mirror, "absent", 1),
        lambda: git.landed(mirror, "main", absent),
        lambda: git.changes(mirror, base, absent),
        lambda: git.diff_text(mirror, absent, base),
        lambda: git.move_branch(mirror, "main", tree, base),
        lambda: land(mirror, absent, tree),
    ):
        with pytest.raises(git.UnknownCommit):
            call()


# --- from a diff to a commit ---

ROUND_TRIPS = {
    "a change": {"a": LINES.replace(b"line 50\n", b"fifty\n")},
    "add, change, delete": {"new/deep/file": b"1\n", "a": b"z\n" + LINES, "b": None},
    "CRLF": {"b": b"x\r\ny\r\n", "a": LINES.replace(b"line 3\n", b"line 3\r\n")},
    "no line end": {"b": b"x", "n": b"1\n2"},
    "an empty file": {"e": b"", "b": b""},
    "trailing blanks and form feeds": {"b": b"x \t\n\f\n\n\n"},
    "names": {"with blank": b"1\n", "été/日本": b"2\n", 'a"b': b"3\n", "x b/x": b"4\n"},
    "text that looks like a diff": {"b": b"--- a/x\n+++ b/x\n@@ -1 +1 @@\n-- \ndiff --git a/b b/b\n"},
    "latin-1 text": {"b": b"caf\xe9\n"},
    "binary": {"b": b"\0\1\2" * 100},
    "attributes that ask for conversion": {".gitattributes": b"* text eol=crlf ident\n", "b": b"$Id$\r\nx\n"},
}


@pytest.mark.parametrize("edit", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_applying_what_git_diff_writes_gives_the_very_tree(mirror, source, base, edit):
    text, tree = source.diff(edit)
    assert git.apply(mirror, base, text) == tree
    assert leftovers(mirror) == []
    assert sorted(change.path for change in git.changes(mirror, base, tree)) == sorted(edit)
    assert git.apply(mirror, base, git.diff_text(mirror, base, tree)) == tree
    commit = land(mirror, base, tree)
    for back in (git.diff_text(mirror, tree, base), git.short_diff_text(mirror, tree, base, 1000)):
        assert git.apply(mirror, commit, back) == git.tree_of(mirror, base)


@pytest.mark.parametrize("edit", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_the_short_text_of_any_change_can_be_read(mirror, source, base, edit):
    tree = git.apply(mirror, base, source.diff(edit)[0])
    parsed = parse(git.short_diff_text(mirror, base, tree, 1000))
    assert check_tree(parsed, git.changes(mirror, base, tree)) == []


def test_many_differences_are_told_at_once_each_of_its_own_pair(mirror, source, base):
    tree = git.tree_of(mirror, base)
    other = git.apply(mirror, base, source.diff({"b": b"y\n", "docs/c": b"z\n"})[0])
    first, none, last = git.diff_texts(mirror, [(tree, other), (tree, tree), (other, tree)], ["b"])
    assert (first.count("diff --git "), none, last.count("diff --git ")) == (1, "", 1)
    assert first.endswith("-x\n+y\n")
    assert last.endswith("-y\n+x\n")


def test_applying_moves_no_branch_and_makes_no_commit(mirror, source, base):
    git.apply(mirror, base, source.diff({"b": b"y\n"})[0])
    assert git.head(mirror, "main") == base
    assert git.fsck(mirror) == []


def test_changes_tell_kind_modes_and_objects(mirror, source, base):
    (source.path / "docs" / "c").chmod(0o755)
    _, tree = source.diff({"b": None, "n": b"1\n"})
    git.apply(mirror, base, source.diff({"b": None})[0])
    source.git("push", "-q", str(mirror), f"{source.git('commit-tree', tree, '-m', 'x').strip()}:refs/heads/pushed")
    found = {change.path: change for change in git.changes(mirror, git.tree_of(mirror, base), tree)}
    assert (found["b"].kind, found["b"].old_mode, found["b"].new_mode, found["b"].new_oid) == (
        "delete",
        "100644",
        "",
        "",
    )
    assert (found["n"].kind, found["n"].old_mode, found["n"].new_mode, found["n"].old_oid) == ("add", "", "100644", "")
    assert (found["docs/c"].kind, found["docs/c"].old_mode, found["docs/c"].new_mode) == ("change", "100644", "100755")
    assert len(found["docs/c"].new_oid) == 40


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: text.replace("@@ -47,7 +47,7 @@", "@@ -40,7 +40,7 @@"),
        lambda text: text.replace("@@ -47,7 +47,7 @@", "@@ -60,7 +60,7 @@"),
        lambda text: text.replace(" line 49\n", " line forty-nine\n"),
        lambda text: text.replace("a/a", "a/absent").replace("b/a", "b/absent"),
        lambda text: text.replace("-line 50\n", "-line 51\n"),
        lambda text: text.replace("line 5", "line\r 5"),
        lambda text: text[: text.index("-line 50")],
        lambda text: text.replace("a/a", "a/../x").replace("b/a", "b/../x"),
        lambda text: text.replace("a/a", "a/.git/config").replace("b/a", "b/.git/config"),
        lambda _: "",
        lambda _: "no diff at all\n",
    ],
)
def test_a_patch_that_does_not_fit_exactly_does_not_apply(mirror, source, base, spoil):
    text, _ = source.diff({"a": LINES.replace(b"line 50\n", b"fifty\n")})
    with pytest.raises(git.DoesNotApply) as refused:
        git.apply(mirror, base, spoil(text))
    assert (refused.value.code, refused.value.status) == ("stale_base", 409)
    assert leftovers(mirror) == []


def test_an_offset_is_seen_behind_a_thousand_other_lines(mirror, source, base):
    many = {f"f{number:03}": b"1\n" for number in range(250)}
    text, _ = source.diff({"a": LINES.replace(b"line 50\n", b"fifty\n"), **many})
    assert git.apply(mirror, base, text)
    with pytest.raises(git.DoesNotApply, match="offset 7 lines"):
        git.apply(mirror, base, text.replace("@@ -47,7 +47,7 @@", "@@ -40,7 +40,7 @@"))


def test_a_file_where_a_folder_is_or_beyond_a_link_does_not_apply(mirror, source, base):
    (source.path / "link").symlink_to("docs")
    linked = source.commit({})
    source.git("push", "-q", str(mirror), f"{linked}:refs/heads/linked")
    new = "diff --git a/{0} b/{0}\nnew file mode 100644\n--- /dev/null\n+++ b/{0}\n@@ -0,0 +1 @@\n+x\n"
    for path, code in (("a/x", "stale_base"), ("docs", "stale_base"), ("link/x", "symlink_target")):
        with pytest.raises(git.DoesNotApply) as refused:
            git.apply(mirror, linked, new.format(path))
        assert refused.value.code == code


@pytest.mark.parametrize("spent", ["echo 'fatal: Out of memory, malloc failed' >&2; exit 128", "while :; do :; done"])
def test_a_patch_that_takes_more_memory_or_time_than_it_may_is_too_large(tmp_path, mirror, base, monkeypatch, spent):
    monkeypatch.setattr(git.run, "__kwdefaults__", {**git.run.__kwdefaults__, "cpu_seconds": 1})
    folder = tmp_path / "bin"
    folder.mkdir()
    real = shutil.which("git")
    (folder / "git").write_text(f'#!/bin/sh\ncase " $* " in *" apply "*) {spent} ;; *) exec {real} "$@" ;; esac\n')
    (folder / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(git.DoesNotApply) as refused:
        git.apply(mirror, base, "any text\n")
    assert refused.value.code == "patch_too_large"
    assert leftovers(mirror) == []


def test_the_names_in_folders_are_asked_for_at_once(mirror, source):
    tree = source.git("rev-parse", f"{source.commit({'é/b c': b'1', 'é/d/e': b'2', 'x': b''})}^{{tree}}").strip()
    source.git("push", "-q", str(mirror), "HEAD:refs/heads/other")
    found = git.names_in(mirror, tree, ["", "é", "é/d", "x", "none"])
    assert found == {"": ["a", "b", "docs", "x", "é"], "é": ["b c", "d"], "é/d": ["e"], "x": [], "none": []}
    with pytest.raises(git.UnknownCommit):
        git.names_in(mirror, "1" * 40, [""])


def test_the_tree_of_a_commit_is_that_of_nothing_else(mirror, source, base):
    tree = git.tree_of(mirror, base)
    assert git.tree_of_commit(mirror, base) == tree
    source.git("tag", "-a", "-m", "x", "v1", base)
    source.git("push", "-q", str(mirror), "v1")
    for name in (tree, source.git("rev-parse", "v1").strip(), "1" * 40, "main", ""):
        with pytest.raises(git.UnknownCommit):
            git.tree_of_commit(mirror, name)


def test_a_file_that_is_already_there_cannot_be_added(mirror, source, base):
    text, tree = source.diff({"n": b"1\n"})
    assert git.apply(mirror, base, text) == tree
    with pytest.raises(git.DoesNotApply):
        git.apply(mirror, land(mirror, base, tree), text)


def test_a_commit_has_our_committer_its_author_and_the_message_unchanged(mirror, source, base):
    tree = git.apply(mirror, base, source.diff({"b": b"y\n"})[0])
    at = AT.replace(microsecond=9).astimezone(timezone(timedelta(hours=2)))
    message = "Édit b\n\n# not a comment\n\n\nSignalbox-Patch: 01ABC\n"
    arguments = {"author_name": "Ann\n <Evil>", "author_email": "ann@example.org>", "at": at}
    commit = git.commit(mirror, tree, base, message, **arguments)
    assert commit == git.commit(mirror, tree, base, message, **arguments)
    git.move_branch(mirror, "main", commit, base)
    top = git.log(mirror, "main", 1)[0]
    assert top == git.Commit(commit, tree, (base,), "Ann Evil", "ann@example.org", AT, message)
    raw = subprocess.check_output(["git", f"--git-dir={mirror}", "cat-file", "-p", commit], env=CLEAN).decode()
    assert f"committer Signalbox <{git.COMMITTER_EMAIL}> {int(AT.timestamp())} +0000\n" in raw


@pytest.mark.parametrize("name", ["", " ", "<>", "\n", "..."])
def test_a_nameless_author_is_unknown(mirror, base, name):
    tree = git.tree_of(mirror, base)
    commit = git.commit(mirror, tree, base, "x\n", author_name=name, author_email=name, at=AT)
    git.move_branch(mirror, "main", commit, base)
    assert [git.log(mirror, "main", 1)[0].author_name, git.log(mirror, "main", 1)[0].author_email] == ["unknown"] * 2


@pytest.mark.parametrize(("message", "at"), [("", AT), (" \n", AT), ("a\0b", AT), ("x", AT.replace(tzinfo=None))])
def test_a_commit_without_message_or_zone_is_a_mistake(mirror, base, message, at):
    with pytest.raises(ValueError):
        git.commit(mirror, git.tree_of(mirror, base), base, message, author_name="a", author_email="a@b", at=at)


def test_a_change_is_carried_onto_what_landed_before(mirror, source, base):
    mine = git.apply(mirror, base, source.diff({"a": LINES.replace(b"line 90\n", b"ninety\n"), "b": None})[0])
    other = land(mirror, base, git.apply(mirror, base, source.diff({"a": b"zero\n" + LINES, "n": b"1\n"})[0]))
    _, both = source.diff({"a": b"zero\n" + LINES.replace(b"line 90\n", b"ninety\n"), "b": None, "n": b"1\n"})
    assert git.rebase_tree(mirror, base, mine, other) == both
    assert git.rebase_tree(mirror, base, mine, base) == mine
    assert git.fsck(mirror) == []


def test_a_merge_leaves_the_mirror_with_the_trees_of_its_outcome_alone(mirror, source, base):
    mine = git.apply(mirror, base, source.diff({"a": LINES.replace(b"line 90\n", b"ninety\n")})[0])
    other = land(mirror, base, git.apply(mirror, base, source.diff({"a": b"zero\n" + LINES})[0]))
    objects = set((mirror / "objects").glob("??/*"))
    git.rebase_tree(mirror, base, mine, other)
    made = {path.parent.name + path.name for path in (mirror / "objects").glob("??/*") if path not in objects}
    kinds = git.run(mirror, "cat-file", "--batch-check=%(objecttype)", stdin="\n".join(sorted(made)).encode()).stdout
    assert set(kinds.split()) == {b"tree", b"blob"}
    assert leftovers(mirror) == []


def test_names_that_look_like_an_answer_of_git_are_names(mirror, source, base):
    """Two differences are asked for at once, and each begins with a line of two object names."""
    odd = {f"{'0' * 40} {'1' * 40}": b"x\n", ":100644 100644 M": b"y\n", f"{base}": b"z\n"}
    mine = git.apply(mirror, base, source.diff(odd)[0])
    other = land(mirror, base, git.apply(mirror, base, source.diff({"n": b"1\n"})[0]))
    _, both = source.diff({**odd, "n": b"1\n"})
    assert git.rebase_tree(mirror, base, mine, other) == both


def test_a_merge_of_what_the_mirror_does_not_hold_names_it(mirror, source, base):
    mine = git.apply(mirror, base, source.diff({"b": b"mine\n"})[0])
    with pytest.raises(git.UnknownCommit, match="f" * 40):
        git.rebase_tree(mirror, git.tree_of(mirror, base), mine, "f" * 40)


def test_a_change_is_taken_from_its_own_base_whatever_the_history(mirror, source, base):
    """A candidate built on another candidate goes back to the branch without that other change."""
    ahead = land(mirror, base, git.apply(mirror, base, source.diff({"n": b"ahead\n"})[0]))
    _, on_base = source.diff({"b": b"y\n"})
    text, _ = source.diff({"b": b"y\n"})
    on_ahead = git.apply(mirror, ahead, text)
    assert git.rebase_tree(mirror, ahead, on_ahead, base) == on_base == git.apply(mirror, base, text)


def test_a_conflict_names_its_paths(mirror, source, base):
    mine = git.apply(mirror, base, source.diff({"b": b"mine\n", "docs/c": None, "été": b"1\n"})[0])
    other = land(mirror, base, git.apply(mirror, base, source.diff({"b": b"o\n", "docs/c": b"o\n", "été": b"2\n"})[0]))
    with pytest.raises(git.DoesNotApply) as refused:
        git.rebase_tree(mirror, base, mine, other)
    assert set(refused.value.paths) == {"b", "docs/c", "été"}


def test_an_edit_never_follows_a_file_that_was_renamed_ahead(mirror, source, base):
    mine = git.apply(mirror, base, source.diff({"a": LINES.replace(b"line 50\n", b"fifty\n")})[0])
    renamed = land(mirror, base, git.apply(mirror, base, source.diff({"a": None, "moved": LINES})[0]))
    with pytest.raises(git.DoesNotApply) as refused:
        git.rebase_tree(mirror, base, mine, renamed)
    assert set(refused.value.paths) <= {"a", "moved"}


# --- the branch ---


def test_a_branch_moves_only_from_where_it_is_believed_to_be(mirror, base):
    first = land(mirror, base, git.tree_of(mirror, base), "first\n")
    second = land(mirror, base, git.tree_of(mirror, base), "second\n")
    git.move_branch(mirror, "main", first, base)
    with pytest.raises(git.BranchMoved) as refused:
        git.move_branch(mirror, "main", second, base)
    assert (refused.value.found, refused.value.code, git.head(mirror, "main")) == (first, "base_moved", first)
    with pytest.raises(git.BranchMoved) as refused:
        git.move_branch(mirror, "absent", second, base)
    assert refused.value.found is None
    assert git.contains(mirror, "main", base)
    assert git.contains(mirror, "main", first)
    assert not git.contains(mirror, "main", second)


def test_of_eight_racing_movers_one_wins_each_round_and_none_is_lost(mirror, base):
    tree, won, lock = git.tree_of(mirror, base), [], threading.Lock()
    start = threading.Barrier(8)

    def mover(name):
        start.wait()
        for round_ in range(3):
            while True:
                parent = git.head(mirror, "main")
                mine = land(mirror, parent, tree, f"{name}-{round_}\n")
                try:
                    git.move_branch(mirror, "main", mine, parent)
                except git.BranchMoved:
                    continue
                with lock:
                    won.append((parent, mine))
                break

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(mover, range(8)))
    history = [commit.id for commit in git.log(mirror, "main", 100)]
    assert len(won) == len({parent for parent, _ in won}) == 24
    assert history[:24] == [mine for mine in history if mine in {mine for _, mine in won}]
    assert history[24:] == [base]


def test_a_held_lock_is_a_failure_and_no_move(mirror, base, monkeypatch):
    monkeypatch.setattr(git.running, "SETTINGS", (*git.running.SETTINGS, "core.filesRefLockTimeout=0"))
    new = land(mirror, base, git.tree_of(mirror, base))
    (mirror / "refs" / "heads").mkdir(parents=True, exist_ok=True)
    (mirror / "refs" / "heads" / "main.lock").touch()
    with pytest.raises(git.GitFailed, match="lock"):
        git.move_branch(mirror, "main", new, base)
    assert git.head(mirror, "main") == base
    assert git.sweep_locks(mirror) == []
    assert git.sweep_locks(mirror, older_than=timedelta(0)) == ["refs/heads/main.lock"]
    git.move_branch(mirror, "main", new, base)


def test_the_sweep_removes_every_kind_of_stale_remain_and_nothing_else(mirror, base):
    stale = ["packed-refs.lock", "config.lock", "HEAD.lock", "refs/heads/a/b.lock", "objects/info/x.lock"]
    stale += ["objects/pack/tmp_pack_1", "objects/ab/tmp_obj_1", f"{git.TEMPORARY}/dead/index"]
    for name in [*stale, f"{git.TEMPORARY}/alive/index"]:
        (mirror / name).parent.mkdir(parents=True, exist_ok=True)
        (mirror / name).touch()
        os.utime(mirror / name, (1, 1))
    os.utime(mirror / git.TEMPORARY / "dead", (1, 1))
    assert git.sweep_locks(mirror) == sorted([*stale[:-1], f"{git.TEMPORARY}/dead"])
    assert [folder.name for folder in leftovers(mirror)] == ["alive"]
    assert git.head(mirror, "main") == base
    assert git.fsck(mirror) == []


def test_landed_patches_are_found_by_trailer_and_committer(mirror, source, base):
    tree, tip = git.tree_of(mirror, base), base
    made = []
    for patch in ("01A", "01B"):
        tip = land(mirror, tip, tree, f"{patch}\n\nSignalbox-Patch: forged\n\nText.\n\nSignalbox-Patch: {patch}\n")
        made.append(tip)
    git.move_branch(mirror, "main", land(mirror, tip, tree, "no trailer\n"), base)
    assert git.landed(mirror, "main", base) == git.landed(mirror, "main") == {"01A": made[0], "01B": made[1]}
    assert git.landed(mirror, "main", made[0]) == {"01B": made[1]}
    top = git.head(mirror, "main")
    again = land(mirror, top, tree, "again\n\nSignalbox-Patch: 01A\n")
    git.move_branch(mirror, "main", again, top)
    assert git.landed(mirror, "main") == {"01A": again, "01B": made[1]}
    source.commit({}, "by hand\n\nSignalbox-Patch: 01C")
    source.git("branch", "hand")
    git.fetch(mirror)
    assert git.landed(mirror, "hand") == {}


def test_the_log_is_newest_first_and_limited(mirror, source):
    newest = source.commit({"b": b"2\n"}, "two\n\nbody")
    git.fetch(mirror)
    assert [commit.message for commit in git.log(mirror, "main", 5)] == ["two\n\nbody\n", "work\n"]
    assert [commit.id for commit in git.log(mirror, "main", 1)] == [newest]


# --- copies ---


def test_an_export_is_the_tree_byte_for_byte(tmp_path, mirror, source, base):
    edit = {
        ".gitattributes": b"* text eol=crlf ident export-subst\nhidden export-ignore\n*.u filter=lfs\n",
        "hidden": b"seen\n",
        "lf": b"1\n$Id$ $Format:%H$\n",
        "crlf": b"1\r\n",
        "x.u": "é\n".encode(),
        "docs/deep/é": b"\0\xff",
    }
    (source.path / ".git" / "info" / "attributes").write_text("* -text -ident -filter\n")
    tree = git.apply(mirror, base, source.diff(edit)[0])
    git.export(mirror, tree, tmp_path / "new" / "out")
    out = tmp_path / "new" / "out"
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found == {"a": LINES, "b": b"x\n", "docs/c": b"c\n", **edit}
    assert out.stat().st_mode & 0o777 == 0o700
    assert leftovers(mirror) == []


def test_an_export_keeps_executables_and_links(tmp_path, source):
    (source.path / "link").symlink_to("/etc/passwd")
    (source.path / "run").write_text("#!/bin/sh\n")
    (source.path / "run").chmod(0o755)
    source.commit({})
    git.clone_mirror(str(source.path), tmp_path / "m")
    git.export(tmp_path / "m", git.head(tmp_path / "m", "main"), tmp_path / "out")
    assert os.readlink(tmp_path / "out" / "link") == "/etc/passwd"
    assert os.access(tmp_path / "out" / "run", os.X_OK)
    assert not os.access(tmp_path / "out" / "a", os.X_OK)


def test_an_export_never_writes_into_a_folder_that_is_there(tmp_path, mirror, base):
    (tmp_path / "out").mkdir()
    with pytest.raises(git.GitFailed, match="already exists"):
        git.export(mirror, base, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_that_fails_leaves_nothing_and_fsck_names_the_damage(tmp_path, mirror, base):
    tree = git.apply(mirror, base, one_more())
    blob = git.changes(mirror, base, tree)[0].new_oid
    git.move_branch(mirror, "main", land(mirror, base, tree), base)
    (mirror / "objects" / blob[:2] / blob[2:]).unlink()
    with pytest.raises(git.GitFailed):
        git.export(mirror, tree, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert leftovers(mirror) == []
    assert f"missing blob {blob}" in git.fsck(mirror)


def test_what_lands_while_fsck_looks_is_no_damage(mirror, base):
    # A pack is looked at after the loose objects, and takes long enough for others to come.
    many = b"".join(b"blob\ndata 6\n%06d\n" % number for number in range(20_000))
    subprocess.run(["git", "fast-import", "--quiet"], cwd=mirror, input=many, check=True)
    landing = "while :; do c=$(git commit-tree -p main -m x 'main^{tree}') && git update-ref refs/heads/main $c; done"
    named = {f"GIT_{who}_{what}": "x@y" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    with subprocess.Popen(["sh", "-c", landing], cwd=mirror, env={**os.environ, **named}) as lands:
        try:
            assert [git.fsck(mirror) for _ in range(5)] == [[]] * 5
        finally:
            lands.kill()
    assert git.head(mirror, "main") != base


def one_more():
    head = f"diff --git a/n b/n\nnew file mode 100644\nindex {'0' * 40}..{'1' * 40}\n"
    return head + "--- /dev/null\n+++ b/n\n@@ -0,0 +1 @@\n+some new text\n"


def test_a_killed_export_leaves_the_mirror_sound(tmp_path, source):
    source.commit({f"f/{number}": b"%d\n" % number for number in range(3000)})
    mirror = tmp_path / "m"
    git.clone_mirror(str(source.path), mirror)
    tip = git.head(mirror, "main")
    code = "import sys; from ledger import git; git.export(*sys.argv[1:])"
    root = str(Path(git.__file__).parent.parent)
    out = tmp_path / "out"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(mirror), tip, str(out)], env={**os.environ, "PYTHONPATH": root}
    )
    deadline = time.monotonic() + 20
    while not (out / "f" / "0").exists() and time.monotonic() < deadline:
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert git.fsck(mirror) == []
    assert git.head(mirror, "main") == tip
    git.sweep_locks(mirror, older_than=timedelta(seconds=-60))
    assert leftovers(mirror) == []
    git.export(mirror, tip, tmp_path / "again")
    assert len(list((tmp_path / "again" / "f").iterdir())) == 3000


# --- bounds ---


@pytest.fixture
def fake_git(tmp_path, monkeypatch):
    """Puts a shell script in git's place."""

    def put(script):
        folder = tmp_path / "bin"
        folder.mkdir()
        (folder / "git").write_text(f"#!/bin/sh\n{script}\n")
        (folder / "git").chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return put


def test_a_git_that_hangs_is_killed_with_its_children(tmp_path, fake_git, monkeypatch):
    monkeypatch.setattr(git.run, "__kwdefaults__", {**git.run.__kwdefaults__, "seconds": 0.5})
    pid = tmp_path / "pid"
    fake_git(f"sleep 600 & echo $! > {pid}; wait")
    with pytest.raises(git.TimedOut):
        git.default_branch(tmp_path)
    grandchild = int(pid.read_text())
    deadline = time.monotonic() + 10
    while _alive(grandchild) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not _alive(grandchild)


def _alive(pid):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_git_that_writes_without_end_is_stopped(tmp_path, fake_git, monkeypatch):
    monkeypatch.setattr(git.running, "OUTPUT_BYTES", 100_000)
    fake_git("exec yes")
    with pytest.raises(git.GitFailed, match="more than 100000 bytes"):
        git.default_branch(tmp_path)


def test_a_git_that_burns_processor_time_is_stopped(tmp_path, fake_git, monkeypatch):
    monkeypatch.setattr(git.run, "__kwdefaults__", {**git.run.__kwdefaults__, "cpu_seconds": 1})
    fake_git("while :; do :; done")
    with pytest.raises(git.TimedOut, match="processor"):
        git.default_branch(tmp_path)


def test_memory_is_bounded_before_input_is_given(tmp_path, fake_git):
    fake_git("read line; ulimit -v >&2; exit 3")
    with pytest.raises(git.GitFailed, match=str(git.MEMORY_BYTES // 1024)):
        git.run(tmp_path, "x", stdin=b"go\n")


def test_git_runs_with_nobodys_environment(tmp_path, fake_git, monkeypatch):
    monkeypatch.setenv("SECRET_OF_THE_HOUSE", "s3cret")
    monkeypatch.setenv("GIT_DIR", "/elsewhere")
    fake_git("env")
    said = git.run(tmp_path, "x").stdout.decode()
    assert "s3cret" not in said
    assert "/elsewhere" not in said
    assert "GIT_CONFIG_NOSYSTEM=1\n" in said
    assert "GIT_CONFIG_GLOBAL=/dev/null\n" in said


def test_a_damaged_mirror_is_never_blamed_on_the_patch(mirror, base):
    tree = git.apply(mirror, base, one_more())
    tip = land(mirror, base, tree)
    blob = git.changes(mirror, base, tree)[0].new_oid
    (mirror / "objects" / blob[:2] / blob[2:]).unlink()
    edit = f"diff --git a/n b/n\nindex {blob}..{'1' * 40} 100644\n--- a/n\n+++ b/n\n@@ -1 +1 @@\n-some new text\n+x\n"
    with pytest.raises(git.GitFailed):
        git.apply(mirror, tip, edit)


def test_a_missing_git_is_a_plain_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(git.GitFailed, match="could not start"):
        git.default_branch(tmp_path)


# --- SHA-256 and random edits ---


def test_a_sha256_repository_works_from_clone_to_landing(tmp_path):
    source = Source(tmp_path / "s", "--object-format=sha256")
    base = source.commit({"a": LINES})
    mirror = tmp_path / "m"
    git.clone_mirror(str(source.path), mirror)
    text, tree = source.diff({"a": LINES + b"x\n", "n": b"1\n"})
    assert git.apply(mirror, base, text) == tree
    assert check_tree(parse(text), git.changes(mirror, base, tree)) == []
    assert git.rebase_tree(mirror, base, tree, base) == tree
    assert git.names_in(mirror, tree, [""]) == {"": ["a", "n"]}
    git.move_branch(mirror, "main", land(mirror, base, tree), base)
    assert len(git.head(mirror, "main")) == 64
    assert git.fsck(mirror) == []


NAMES = st.sampled_from(["a", "b", "d/a", "d/b c", "é", 'q"', "x b/x", "tab\tname"])
PIECES = st.sampled_from(
    [
        b"",
        b"one",
        b"two",
        b"three",
        b"four",
        b"nul\0nul",
        b"--- a/x",
        b"\\ No newline",
        b"cr\r",
        b" ",
        b"\xc3\xa9",
        b"\f",
        b"@@ -1 +1 @@",
    ]
)
CONTENTS = st.builds(
    lambda lines, end: b"\n".join(lines) + end, st.lists(PIECES, max_size=30), st.sampled_from([b"", b"\n"])
)
TREES = st.dictionaries(NAMES, CONTENTS, max_size=5)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop")
    source = Source(folder / "source")
    source.commit({})
    git.clone_mirror(str(source.path), folder / "m")
    return source, folder / "m"


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(before=TREES, after=TREES)
def test_random_edits_apply_to_their_tree_and_read_as_what_git_says(workshop, before, after):
    source, mirror = workshop
    trees = []
    for files in (before, after):
        source.git("read-tree", "--empty")
        lines = []
        for name, content in files.items():
            oid = source.git("hash-object", "-w", "--stdin", stdin=content).strip()
            lines.append(f"100644 {oid}\t{name}\0")
        source.git("update-index", "-z", "--index-info", stdin="".join(lines).encode())
        trees.append(source.git("write-tree").strip())
    base = source.git("commit-tree", trees[0], "-m", "x").strip()
    source.git("push", "-qf", str(mirror), f"{base}:refs/heads/main")
    text = source.git("diff", "--no-renames", "--full-index", "--binary", *trees)
    if trees[0] == trees[1]:
        assert text == ""
        return
    assert git.apply(mirror, base, text) == trees[1]
    changes = git.changes(mirror, base, trees[1])
    if any("\t" in change.path for change in changes):
        return  # a tree may hold such a name; the reader's own refusal is tested with it
    found = parse(text)
    assert check_tree(found, changes) == []
    assert [file.path for file in found.files] == [change.path for change in changes]
    counts = source.git("diff", "--no-renames", "--numstat", *trees).splitlines()
    said = [line.rsplit("\t", 1)[0].replace("-", "0") for line in counts]
    assert [f"{file.insertions}\t{file.deletions}" for file in found.files] == said
    moves = source.git("diff", "-M20%", "-C20%", "--find-copies-harder", "--full-index", "--binary", *trees)
    assert git.apply(mirror, base, moves) == trees[1]
    assert judge(mirror, base, trees[1], parse(moves)) == []
