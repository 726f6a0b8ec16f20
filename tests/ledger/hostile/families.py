"""The families of reliability.md §2a as concrete diffs, each with the code it must be answered with, and its base."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ledger import diff
from tests.factories import make_repository, run_git
from tests.ledger.hostile.texts import (
    END,
    NOTHING,
    NUL,
    ONE,
    TWO,
    ZERO,
    added,
    binary,
    changed,
    deleted,
    moved,
    moved_body,
    part_of,
    quoted,
    varint,
)  # fmt: skip

Stage = Literal["text", "tree", "taken"]

LINES = 600
FILES = {
    "README.md": "# Demo\n",
    "src/a.py": "".join(f"line {number}\n" for number in range(1, LINES + 1)),
    "src/b.py": "one\ntwo\nthree\n",
    "Docs/Guide.md": "# Guide\n",
    "plain": "a file\n",
    "straße.txt": "x\n",
    "cafe\u0301.txt": "written by a Mac\n",
    "tests/test_a.py": "def test_a():\n    assert True\n",
    "no-end.txt": "x",
}


@dataclass(frozen=True)
class Case:
    """A diff, and what becomes of it: refused when it is submitted (`text`), found wrong when it is judged (`tree`), or
    taken with a finding of this rule (`taken`; "" for none).
    """

    text: str
    code: str
    stage: Stage


def make_base(folder: Path) -> Path:
    """The repository that the families are written for: plain files, a link out of it, one inside, a submodule."""
    repository = make_repository(folder, FILES)
    (repository / "link").symlink_to("/etc")
    (repository / "inner").symlink_to("src")
    (repository / "data.bin").write_bytes(bytes(range(256)) * 2)
    run_git(repository, "add", "--all")
    run_git(repository, "update-index", "--add", "--cacheinfo", f"160000,{ONE},vendor/sub")
    run_git(repository, "commit", "--quiet", "--message=Odd things")
    return repository


def _all(stage: Stage, code: str, *texts: str) -> list[Case]:
    return [Case(text, code, stage) for text in texts]


def _link(target: str, path: str = "new-link") -> str:
    return added(path, mode="120000", body=f"@@ -0,0 +1 @@\n+{target}\n{END}")


def _hunk(old: str, new: str, line: int = 1) -> str:
    return f"@@ -{line} +{line} @@\n-{old}\n+{new}\n"


_B = "@@ -1,3 +1,3 @@\n-one\n+1\n two\n three\n"


def _edit(path: str, old: str, new: str, line: int = 1) -> str:
    return changed(path, _hunk(old, new, line), index="")


def _bomb(size: int) -> str:
    return part_of(b"\0" * size)


def families() -> Iterator[tuple[int, list[Case]]]:
    """Each family that is a diff, by its number there. 25 and 27 are about more than one diff, or none."""
    yield 1, _all(
        "text", "path_escape",
        changed("../evil"), added("src/../../evil"), changed(".."), deleted("../x"), changed(new="b/../evil"),
        changed(old="a/../../x"), moved("../x", "y"), moved("src/b.py", "../../y"), moved("../x", "y", "copy"),
        binary().replace("x b/x", "../x b/../x"), "--- a/../evil\n+++ b/../evil\n@@ -1 +1 @@\n-a\n+b\n",
    )  # fmt: skip
    yield 2, _all(
        "text", "path_absolute",
        changed("/etc/x"), added("/etc/cron.d/x"), deleted("/etc/passwd"), changed(new="/etc/x"), changed(old="/etc/x"),
        changed(names="/etc/x /etc/x"), changed("C:/x"), changed("c:x".replace(":", ":/")), quoted("C:\\\\Windows"),
        moved("/etc/passwd", "y"), moved("src/b.py", "/tmp/y"), "--- /etc/x\n+++ /etc/x\n@@ -1 +1 @@\n-a\n+b\n",
    )  # fmt: skip
    yield (
        3,
        [
            *_all("text", "path_escape", quoted("\\056\\056/evil"), quoted("src/\\056\\056/\\056\\056/x")),
            *_all("text", "path_escape", quoted("..\\\\x"), changed(new='"b/\\056\\056/x"')),
            *_all("text", "path_absolute", quoted("\\057etc/passwd"), quoted("\\103:/x")),
            *_all("text", "dotgit", quoted("\\056git/config"), quoted(".\\147it/hooks/update")),
        ],
    )
    yield 4, _all(
        "text", "dotgit",
        *(added(path) for path in (
            ".git/hooks/post-update", ".GIT/config", ".git /x", "git~1/x", "a/.git", "a/.git/b", ".git", ".Git",
            ".git./x", ".git... ./x", "GIT~2/x", ".git::$INDEX_ALLOCATION/x", ".git:x/y", "src/.gIT/config",
        )),
        moved("src/b.py", ".git/config"), deleted(".git/HEAD"),
    )  # fmt: skip
    yield 5, _all(
        "text", "dotgit",
        *(added(f".g{mark}it/config") for mark in "\u200b\u200c\u200d\u2060\ufeff\u00ad\u202e\u206a"),
        added("a/.gi\u200ct"), quoted(".g\\342\\200\\214it/config"), added("．git/config"),
    )  # fmt: skip
    yield 6, _all(
        "text", "symlink_target",
        _link("/etc/passwd"), _link("../.."), _link("src"), _link("../../outside", "src/l"), _link(".git/config"),
        _link("/proc/self/environ"), deleted("link", mode="120000"), added("l", mode="120000", body=""),
    )  # fmt: skip
    yield (
        7,
        [
            *_all("text", "symlink_target", _link("/etc") + added("new-link/x"), added("new-link/x") + _link("/etc")),
            *_all(
                "tree", "symlink_target", added("link/x"), added("inner/x.py"), added("link/a/b/c"), added("inner/b.py")
            ),
            *_all("tree", "symlink_target", moved("src/b.py", "inner/c.py"), moved("src/b.py", "link/c.py", "copy")),
            *_all("tree", "stale_base", deleted("link/passwd"), _edit("inner/b.py", "one", "1")),
        ],
    )
    yield (
        8,
        [
            *_all("text", "symlink_target", deleted("plain", body="@@ -1 +0,0 @@\n-a file\n") + _link("/etc", "plain")),
            *_all("text", "symlink_target", "diff --git a/plain b/plain\nold mode 100644\nnew mode 120000\n"),
            *_all("text", "symlink_target", changed("link", index=f"index {ONE}..{TWO} 120000\n")),
            *_all("text", "symlink_target", "diff --git a/link b/link\nold mode 120000\nnew mode 100644\n"),
            *_all("tree", "symlink_target", changed("link", f"@@ -1 +1 @@\n-/etc\n{END}+/root\n{END}", index="")),
            *_all("tree", "symlink_target", changed("inner", f"@@ -1 +1 @@\n-src\n{END}+../..\n{END}", index="")),
            *_all("tree", "symlink_target", moved("link", "link2"), moved("inner", "src/inner", "copy")),
        ],
    )
    yield (
        9,
        [
            *_all("text", "submodule", added(mode="160000"), changed(index=f"index {ONE}..{TWO} 160000\n")),
            *_all("text", "submodule", deleted("vendor/sub", mode="160000")),
            *_all("text", "submodule", "diff --git a/plain b/plain\nold mode 100644\nnew mode 160000\n"),
            *_all("text", "submodule", added("v", "160000", f"@@ -0,0 +1 @@\n+Subproject commit {ONE}\n")),
            *_all("tree", "submodule", moved("vendor/sub", "vendor/other")),
        ],
    )
    names = (".gitmodules", ".gitattributes", ".lfsconfig", ".mailmap", "src/.gitattributes")
    yield 10, _all("taken", "protected_paths", *(added(name) for name in names), moved("plain", ".gitmodules"))
    names = (
        *(".github/workflows/x.yml", ".gitlab-ci.yml", ".ci/run", "conftest.py", "src/conftest.py", "pyproject.toml"),
        *("Makefile", "package-lock.json", "uv.lock", "go.sum", "AGENTS.md", ".claude/settings.json", "tox.ini"),
    )
    yield 11, _all("taken", "protected_paths", *(added(name, body="") for name in names))
    yield (
        12,
        [
            *_all("taken", "protected_paths", added(".gitattributes", body="@@ -0,0 +1 @@\n+tests/ export-ignore\n")),
            *_all("taken", "protected_paths", added(".coveragerc"), added("pytest.ini"), added("setup.cfg")),
            *_all(
                "taken", "protected_paths", added("tests/conftest.py", body="@@ -0,0 +1 @@\n+collect_ignore = ['.']\n")
            ),
        ],
    )
    modes = ("104755", "100666", "777777", "040000", "40000", "100664", "100600", "000000", "1006440", "", "100644x")
    yield (
        13,
        [
            *_all("text", "bad_mode", *(added(mode=mode) for mode in modes)),
            *_all("text", "bad_mode", "diff --git a/plain b/plain\nold mode 100644\nnew mode 104755\n"),
        ],
    )
    yield 14, [
        *_all(
            "text", "header_mismatch",
            changed("README.md", new="b/src/a.py"), changed("README.md", old="a/src/a.py", new="b/src/a.py"),
            changed(names="a/README.md b/src/a.py"), changed("plain", new="/dev/null"),
            changed("plain", old="/dev/null"),
            added().replace("/dev/null", "a/x"), added(body="@@ -1 +1 @@\n-a\n+b\n"), added().replace(ZERO, TWO),
            moved("plain", "y").replace("from plain", "from README.md"), moved("plain", "plain"),
            "diff --git a/plain b/plain\nold mode 100644\n", binary(index=f"index {ZERO}..{ONE}\n"),
        ),
        *_all("tree", "header_mismatch", changed("src/b.py", _B, index=f"index {ONE}..{TWO} 100755\n")),
    ]  # fmt: skip
    yield 15, _all(
        "text", "bad_name",
        *(quoted(name) for name in (
            "x\\000y", "x\\ny", "x\\033[31m", "x\\177", "x\\r", "x\\ty", "\\377\\376", "a\\\\b", "x\\qy", "\\200",
        )),
        *(added(name) for name in (
            "gnp.\u202eexe", "a\u2028b", "e\u0301", "-rf", "--upload-pack=x", "a./b", "a ", "a/./b", "a//b", "a/",
            "nul", "src/AUX.c", "com1.txt", "LPT¹", "con.tar.gz", "x\u200by", "x\u2066y", "CONIN$",
        )),
        changed("x\0y"), changed(names='"a/x "b/x"'), changed(old='"a/x'),
    )  # fmt: skip
    yield 16, _all(
        "text", "bad_name",
        added("x" * 256), added("x" * 300 + "/y"), added("é" * 128), added("/".join(["x" * 200] * 6)),
        added("a/" * 2_500 + "b"), added("/".join("x" * 33)), moved("plain", "y" * 256),
    )  # fmt: skip
    yield (
        17,
        [
            *_all("text", "case_collision", added("Foo") + added("foo"), added("new/a") + added("NEW/b")),
            *_all("text", "case_collision", added("straße") + added("STRASSE"), moved("plain", "Foo") + added("foo")),
            *_all("tree", "case_collision", added("readme.md"), added("SRC/new.py"), added("docs/other.md")),
            *_all("tree", "case_collision", added("café.txt"), added("STRASSE.txt"), added("src/B.py", body="")),
            *_all("tree", "case_collision", moved("src/b.py", "SRC/b.py"), moved("plain", "ReadMe.md", "copy")),
            *_all("taken", "", moved("README.md", "readme.md"), moved("plain", "Plain")),
        ],
    )
    yield (
        18,
        [
            *_all(
                "text", "dotgit", moved(".git/config", "y"), moved(".git/config", "y", "copy"), moved("a/.git/x", "y")
            ),
            *_all("text", "path_escape", moved("../x", "y", "copy")),
            *_all("text", "path_absolute", moved("/etc/passwd", "y", "copy")),
            *_all(
                "text", "dotgit", "diff --git a/x b/x\nsimilarity index 100%\nrename from .git/config\nrename to x\n"
            ),
            *_all("tree", "stale_base", moved("config", "y"), moved("HEAD", "y", "copy"), moved("objects/x", "y")),
        ],
    )
    yield 19, _all(
        "tree", "stale_base",
        _edit("src/a.py", "line 500", "new", 100), _edit("src/a.py", "line 3", "new", 2), _edit("src/a.py", "x", "y"),
        changed("src/a.py", "@@ -1,3 +1,3 @@\n line 9\n-line 10\n+new\n line 11\n", index=""),
        added("plain/x"), added("src", body=""), added("README.md/a/b"), _edit("gone.py", "x", "y"),
        deleted("gone.py"), deleted("src/b.py"), added("README.md"), moved("gone", "x"),
        moved("src/b.py", "plain"), _edit("src/a.py", "line 1", "new", 601), _edit("no-end.txt", "x", "y"),
        moved("src/b.py", "z", percent=90) + moved_body("src/b.py", "z"),
    )  # fmt: skip
    delta = part_of(varint(9) + varint(1) + b"\x01z", "delta")
    yield (
        20,
        [
            *_all("text", "patch_too_large", binary(part="literal 99000000000\nIcmZPo000310RR91\n\n")),
            *_all("text", "patch_too_large", binary(part=_bomb(20 << 20)), binary(back=_bomb(9 << 20))),
            *_all("text", "patch_too_large", binary(part=part_of(varint(0) + varint(1 << 40), "delta"))),
            *_all("text", "patch_too_large", binary(part=part_of(varint(0) + varint(200 << 20) + b"\x80", "delta"))),
            *_all(
                "text",
                "binary_patch",
                f"diff --git a/x b/x\nindex {ONE}..{TWO} 100644\nBinary files a/x and b/x differ\n",
            ),
            *_all("text", "not_unified_diff", binary(part="literal 3\n\n"), binary(back=""), binary(part=NUL[:-1])),
            *_all("text", "not_unified_diff", binary(part=_bomb(9_000).replace("9000", "8000")), binary(index="")),
            *_all("tree", "forbid_binary_patches", binary()),
            *_all(
                "tree", "stale_base", binary(delta, NUL, f"index {ONE}..{TWO} 100644\n", "").replace("/x", "/data.bin")
            ),
            *_all("tree", "stale_base", binary(NOTHING, NUL, f"index {ONE}..{ZERO}\n", "deleted file mode 100644\n")),
        ],
    )
    yield 21, _all(
        "text", "patch_too_large",
        "".join(added(f"f{number}", body="") for number in range(20_000))[: diff.MAX_BYTES - 1] + "\n",
        "".join(added(f"f{number}") for number in range(diff.MAX_FILES + 1)),
        "".join(moved(f"a{number}", f"b{number}") for number in range(diff.MAX_FILES // 2 + 1)),
        "".join(moved("plain", f"b{number}", "copy") for number in range(diff.MAX_FILES + 1)),
        added(body=f"@@ -0,0 +1,{diff.MAX_CHANGED_LINES + 1} @@\n" + "+x\n" * (diff.MAX_CHANGED_LINES + 1)),
    )  # fmt: skip
    yield 22, _all(
        "text", "patch_too_large",
        added(body=f"@@ -0,0 +1 @@\n+{'x' * (10 << 20)}\n"), added(body=f"@@ -0,0 +1 @@\n+{'x' * (64 << 10)}\n"),
        changed(body="@@ -0,0 +0,0 @@\n" * 1_000_000), changed(body="@@ -99999999999999999999 +1 @@\n-a\n+b\n"),
        changed(body="@@ -1 +10000001 @@\n-a\n+b\n"), changed(body=f"@@ -1,{'9' * 5000} +1 @@\n-a\n+b\n"),
        changed(body="".join(_hunk("a", "b", number) for number in range(1, diff.MAX_HUNKS + 2))),
    ) + _all("text", "not_unified_diff", changed(body="@@ -0,0 +0,0 @@\n" * 1_000))  # fmt: skip
    good = _edit("src/b.py", "one", "1")
    yield 23, _all(
        "text", "not_unified_diff",
        "", "\n", "\n\n\t\n", good.replace("\n", "\r\n"), good[:-1], good[: len(good) // 2], "1c\nb\n.\n",
        "*** x\n--- x\n***************\n*** 1 ****\n! a\n--- 1 ----\n! b\n",
        "Dear reviewer,\n" + good, good + "Thanks!\n",
        "From 1 Mon Sep 17 00:00:00 2001\nSubject: x\n\n---\n" + good, good + "-- \n2.39.5\n",
        "```diff\n" + good + "```\n",
        f"diff --cc x\nindex {ONE},{ONE}..{TWO}\n--- a/x\n+++ b/x\n@@@ -1,1 -1,1 +1,1 @@@\n- a\n -b\n++c\n",
        "--- a/src/b.py\n+++ b/src/b.py\n@@ -1 +1 @@\n-one\n+1\n", "\ufeff" + good, "Index: x\n=====\n" + good, "{}\n",
        "*** Begin Patch\n*** Update File: src/b.py\n@@\n-one\n+1\n*** End Patch\n", good.replace("@@ -1", "@@ -1,2"),
    )  # fmt: skip
    yield 24, _all(
        "text", "duplicate_file",
        good + good, good + deleted("src/b.py"), added("x") + added("x"), moved("plain", "y") + added("y"),
        moved("plain", "y") + _edit("plain", "a", "b"), moved("plain", "y") + moved("plain", "z"),
        changed("é") + quoted("\\303\\251"), deleted("x") + moved("x", "y"),
    )  # fmt: skip
    secret = "-----BEGIN RSA PRIVATE KEY-----"
    yield (
        26,
        [
            *_all("tree", "forbid_secrets", added("key.pem", body=f"@@ -0,0 +1 @@\n+{secret}\n")),
            *_all(
                "tree", "forbid_secrets", added("k.py", body='@@ -0,0 +1 @@\n+K = "AKIA' + "Q3EGDSEXAMPLE7XQ" + '"\n')
            ),
            *_all("tree", "forbid_secrets", added("k.txt", body=f"@@ -0,0 +1 @@\n+ghp_{'aB3' * 12}\n")),
            *_all("taken", "", *(added("t.py", body=f"@@ -0,0 +1 @@\n+x = '{mark}'\n") for mark in HIDDEN)),
        ],
    )


HIDDEN = "\u202e\u2066\u200b\u200d\ufeff\u061c\u00ad"
"""Characters that change how a line reads, or do not show at all (CVE-2021-42574)."""
