"""What the strict reader takes for a diff, what it counts in it, and by which code it refuses the rest."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import diff, literals
from ledger.diff import DiffRefused, judge_path, parse
from tests.ledger.hostile.texts import (
    END,
    HUNK,
    NOTHING,
    NUL,
    NUL_NAME,
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

GOOD = {
    "a change": (changed(), ("x", "change", 1, 1, 1)),
    "a new file": (added(), ("x", "add", 1, 0, 1)),
    "a new executable": (added(mode="100755"), ("x", "add", 1, 0, 1)),
    "a deleted file": (deleted(), ("x", "delete", 0, 1, 1)),
    "a new empty file": (added(body=""), ("x", "add", 0, 0, 0)),
    "a deleted empty file": (deleted(body=""), ("x", "delete", 0, 0, 0)),
    "an empty file filled": (changed(body="@@ -0,0 +1,2 @@\n+a\n+b\n"), ("x", "change", 2, 0, 1)),
    "a file emptied": (changed(body="@@ -1,2 +0,0 @@\n-a\n-b\n"), ("x", "change", 0, 2, 1)),
    "no index line": (changed(index=""), ("x", "change", 1, 1, 1)),
    "a short index": (changed(index="index 1111111..2222222 100644\n"), ("x", "change", 1, 1, 1)),
    "SHA-256": (changed(index=f"index {'1' * 64}..{'2' * 64} 100755\n"), ("x", "change", 1, 1, 1)),
    "a heading after the hunk": (changed(body="@@ -1 +1 @@ def f(): @@ x\n-a\n+b\n"), ("x", "change", 1, 1, 1)),
    "two hunks": (changed(body=HUNK + "@@ -5,2 +5,3 @@\n a\n+b\n c\n"), ("x", "change", 2, 1, 2)),
    "hunks without context": (changed(body="@@ -0,0 +1 @@\n+b\n@@ -5 +5,0 @@\n-c\n"), ("x", "change", 1, 1, 2)),
    "an empty context line": (changed(body="@@ -1,3 +1,3 @@\n\n-a\n+b\n\n"), ("x", "change", 1, 1, 1)),
    "no line end on both sides": (changed(body=f"@@ -1 +1 @@\n-a\n{END}+b\n{END}"), ("x", "change", 1, 1, 1)),
    "a line end added": (changed(body=f"@@ -1 +1 @@\n-a\n{END}+a\n"), ("x", "change", 1, 1, 1)),
    "no line end in context": (changed(body=f"@@ -1,2 +1,2 @@\n-a\n+b\n c\n{END}"), ("x", "change", 1, 1, 1)),
    "a new file without line end": (added(body=f"@@ -0,0 +1 @@\n+a\n{END}"), ("x", "add", 1, 0, 1)),
    "CRLF content": (changed(body="@@ -1,2 +1,2 @@\n a\r\n-b\r\n+c\r\n"), ("x", "change", 1, 1, 1)),
    "content like headers": (
        changed(body="@@ -1,2 +1,2 @@\n--- a/y\n+++ b/y\n @@ -1 +1 @@\n"),
        ("x", "change", 1, 1, 1),
    ),
    "form feeds and line separators": (changed(body="@@ -1 +1 @@\n-\f\x85\u2028\n+\v\x1c\n"), ("x", "change", 1, 1, 1)),
    "a name with blanks": (changed("my file", old="a/my file\t", new="b/my file\t"), ("my file", "change", 1, 1, 1)),
    "a name with b/ inside": (changed("x b/x", old="a/x b/x\t", new="b/x b/x\t"), ("x b/x", "change", 1, 1, 1)),
    "a quoted UTF-8 name": (quoted("\\303\\251t\\303\\251"), ("été", "change", 1, 1, 1)),
    "a quoted quote": (quoted('a\\"b'), ('a"b', "change", 1, 1, 1)),
    "a plain UTF-8 name": (changed("日本/é"), ("日本/é", "change", 1, 1, 1)),
    "names that only look like git's": (changed("a/git/.github/x"), ("a/git/.github/x", "change", 1, 1, 1)),
    "a hidden file": (changed(".gitignore"), (".gitignore", "change", 1, 1, 1)),
    "dashes and dots inside": (changed("a/-x/..b/c.d"), ("a/-x/..b/c.d", "change", 1, 1, 1)),
    "a device's name inside a word": (changed("console/auxiliary.c"), ("console/auxiliary.c", "change", 1, 1, 1)),
    "a longest part": (changed("x" * 255), ("x" * 255, "change", 1, 1, 1)),
    "a mode that changes": ("diff --git a/x b/x\nold mode 100644\nnew mode 100755\n", ("x", "change", 0, 0, 0)),
    "a mode and lines": (
        changed(index=f"old mode 100755\nnew mode 100644\nindex {ONE}..{TWO}\n"),
        ("x", "change", 1, 1, 1),
    ),
    "a rewrite": (changed(index=f"dissimilarity index 90%\nindex {ONE}..{TWO} 100644\n"), ("x", "change", 1, 1, 1)),
    "a copy": (moved(how="copy"), ("y", "add", 0, 0, 0)),
    "a copy with lines": (moved(how="copy", percent=90) + moved_body(), ("y", "add", 1, 1, 1)),
    "a copy of names with blanks": (moved("a b/x", "b/y z", "copy"), ("b/y z", "add", 0, 0, 0)),
    "a new binary file": (binary(), ("x", "add", 0, 0, 0)),
    "a deleted binary file": (
        binary(NOTHING, NUL, f"index {NUL_NAME}..{ZERO}\n", "deleted file mode 100644\n"),
        ("x", "delete", 0, 0, 0),
    ),
    "a delta": (
        binary(part_of(varint(1) + varint(1) + b"\x01z", "delta"), NUL, f"index {ONE}..{TWO} 100644\n", ""),
        ("x", "change", 0, 0, 0),
    ),
    "32 levels": (changed("/".join("x" * 32)), ("/".join("x" * 32), "change", 1, 1, 1)),
}


@pytest.mark.parametrize(("text", "facts"), GOOD.values(), ids=GOOD)
def test_what_git_writes_is_read(text, facts):
    found = parse(text)
    file = found.files[0]
    assert len(found.files) == 1
    assert (file.path, file.kind, file.insertions, file.deletions, file.hunks) == facts
    assert (found.insertions, found.deletions, found.hunks) == facts[2:]


BAD = {
    "path_escape": [
        changed("../evil"),
        changed("src/../../evil"),
        changed(".."),
        quoted("\\056\\056/evil"),
        quoted("..\\\\evil"),
        added("a/../b"),
        moved("../x", "y"),
        changed(new="b/../evil"),
        "--- a/../evil\n+++ b/../evil\n" + HUNK,
    ],
    "path_absolute": [
        changed("/etc/passwd"),
        changed(names="/etc/x /etc/x"),
        changed(new="/etc/x"),
        changed("C:/x"),
        quoted("c:\\\\x"),
        "--- /etc/x\n+++ /etc/x\n" + HUNK,
    ],
    "dotgit": [
        changed(".git/hooks/pre-commit"),
        moved(".git/config", "y"),
        moved("x", ".git/config"),
        moved(".git/config", "y", "copy"),
        "diff --git a/x b/x\nrename from .git/config\nrename to x\n",
        changed(".GIT/config"),
        changed(".git /x"),
        changed(".git./x"),
        changed(".git... /x"),
        changed("git~1/config"),
        changed("GIT~1/config"),
        changed("a/.git"),
        changed(".git"),
        changed("a/.gIt/b"),
        changed(".git:stream/x"),
        changed(".git::$INDEX_ALLOCATION/x"),
        changed(".g\u200cit/config"),
        changed("\ufeff.git/config"),
        changed(".gi\u202et/config"),
        quoted(".g\\342\\200\\214it/config"),
        quoted(".git\\\\config"),
    ],
    "bad_name": [
        quoted("x\\000y"),
        quoted("x\\ny"),
        quoted("x\\033[31m"),
        quoted("x\\177"),
        quoted("\\377\\376"),
        quoted("x\\qy"),
        quoted("x\\9"),
        changed(names='"a/x "b/x"'),
        changed(names='"a/x"b/x'),
        changed(names='a/x "b/x"y"'),
        changed(old='"a/x'),
        changed(old="a/x\t2026-01-01"),
        changed("gnp.\u202eexe"),
        changed("a\u2028b"),
        changed("e\u0301"),
        changed("x\ud800"),
        quoted("a\\\\b"),
        changed("-rf"),
        changed("a./b"),
        changed("a "),
        changed("a/./b"),
        changed("a//b"),
        changed("a/"),
        changed("nul"),
        changed("src/AUX.c"),
        changed("com1.txt"),
        changed("LPT¹"),
        changed("x" * 256),
        changed("é" * 128),
        changed("/".join(["x" * 200] * 6)),
        changed("/".join("x" * 33)),
    ],
    "symlink_target": [
        added(mode="120000"),
        deleted(mode="120000"),
        changed(index=f"index {ONE}..{TWO} 120000\n"),
        changed(index=f"old mode 100644\nnew mode 120000\nindex {ONE}..{TWO}\n"),
        deleted() + added(mode="120000"),
    ],
    "submodule": [added(mode="160000"), changed(index=f"index {ONE}..{TWO} 160000\n")],
    "bad_mode": [
        added(mode="100666"),
        added(mode="104755"),
        added(mode="777777"),
        added(mode="040000"),
        added(mode="40000"),
        added(mode="100644 "),
        added(mode=""),
        changed(index=f"index {ONE}..{TWO} 100664\n"),
    ],
    "header_mismatch": [
        changed(names="a/README b/src/a.py"),
        added(body="").replace("b/x", "b/y"),
        changed("README", new="b/src/a.py"),
        changed("README", old="a/src/a.py"),
        changed("README", old="a/src/a.py", new="b/src/a.py"),
        changed(old="/dev/null"),
        changed(new="/dev/null"),
        added().replace("/dev/null", "a/x"),
        deleted().replace("/dev/null", "b/x"),
        added(body="@@ -1 +1 @@\n-a\n+b\n"),
        deleted(body="@@ -1,2 +1 @@\n-a\n b\n"),
        added(body="@@ -4,0 +5 @@\n+a\n"),
        deleted(body="@@ -5 +4,0 @@\n-a\n"),
        added().replace(ZERO, TWO),
        deleted().replace(ZERO, TWO),
        changed(index=f"index {ZERO}..{TWO} 100644\n"),
        changed(index=f"new file mode 100644\ndeleted file mode 100644\nindex {ONE}..{TWO}\n"),
        changed(index=f"new file mode 100644\nnew file mode 100644\nindex {ZERO}..{TWO}\n"),
        changed(old="c/x"),
        changed(new="x"),
        changed(index=f"old mode 100644\nnew mode 100755\nindex {ONE}..{TWO} 100755\n"),
        "diff --git a/x b/x\nold mode 100644\nnew mode 100644\n",
        "diff --git a/x b/x\nold mode 100644\n",
        "diff --git a/x b/x\nnew mode 100755\n",
        "diff --git a/x b/x\nold mode 100644\nnew mode 100755\nnew file mode 100644\n",
        moved().replace("rename to y", "rename to z"),
        moved().replace("rename from x", "rename from z"),
        moved().replace("rename to y\n", ""),
        moved().replace("rename to y", "copy to y"),
        moved().replace("similarity index 100%\n", ""),
        moved().replace("100%", "101%"),
        moved().replace("similarity", "dissimilarity"),
        moved() + moved_body(),
        moved("x", "x"),
        moved(percent=90) + moved_body().replace("b/y", "b/z"),
        moved().replace("similarity", "new file mode 100644\nsimilarity"),
        changed(index=f"similarity index 90%\nindex {ONE}..{TWO} 100644\n"),
        binary(index=f"index {ZERO}..{TWO}\n"),
        binary(index=f"index {ZERO}..{ONE}\n", mode=""),
        binary(index=f"index {ONE}..{ZERO}\n", mode="deleted file mode 100644\n"),
    ],
    "case_collision": [
        added("Foo") + added("foo"),
        added("src/a") + added("SRC/b"),
        added("straße") + added("STRASSE"),
        changed("README") + added("ReadMe"),
        added("ReadMe") + changed("README"),
        added("Ångström") + added("ångström"),
    ],
    "duplicate_file": [
        moved() + changed("x"),
        moved() + added("y"),
        changed("x") + moved(),
        deleted("x") + moved(),
        moved() + moved("x", "z"),
        changed() + changed(),
        changed() + added("y") + deleted(),
        changed("é") + quoted("\\303\\251"),
    ],
    "binary_patch": [
        f"diff --git a/x b/x\nindex {ONE}..{TWO} 100644\nBinary files a/x and b/x differ\n",
        changed(body="@@ -1 +1 @@\n-a\n+\0\n"),
        changed(body="@@ -1 +1 @@\n-a\n+\udcff\n"),
    ],
    "patch_too_large": [
        binary(part="literal 99999999999\nIcmZPo000310RR91\n\n"),
        binary(part=f"literal {diff.MAX_BINARY_BYTES + 1}\nIcmZPo000310RR91\n\n"),
        binary(part=part_of(varint(0) + varint(1 << 40), "delta")),
        "x" * (diff.MAX_BYTES + 1),
        "é" * (diff.MAX_BYTES // 2 + 1),
        changed(body=f"@@ -1 +1 @@\n-a\n+{'x' * diff.MAX_LINE_BYTES}\n"),
        changed(body=f"@@ -1 +1 @@\n-a\n+{'é' * (diff.MAX_LINE_BYTES // 2)}\n"),
        changed(body="@@ -99999999999999999999 +1 @@\n-a\n+b\n"),
        changed(body="@@ -10000001 +10000001 @@\n-a\n+b\n"),
        changed(body=f"@@ -1,{'9' * 5000} +1 @@\n-a\n+b\n"),
        "".join(added(f"f{number}") for number in range(diff.MAX_FILES + 1)),
        added(body=f"@@ -0,0 +1,{diff.MAX_CHANGED_LINES + 1} @@\n" + "+x\n" * (diff.MAX_CHANGED_LINES + 1)),
        changed(body="".join(f"@@ -{n} +{n} @@\n-a\n+b\n" for n in range(1, diff.MAX_HUNKS + 2))),
    ],
    "not_unified_diff": [
        binary(part="literal 3\n\n"),
        binary(part="literal 3\n!!!!\n\n"),
        binary(part="literal 3\nIcmZPo000310RR91\n\n"),
        binary(part=part_of(b"abc").replace("literal 3", "literal 2")),
        binary(part=part_of(b"abc").replace("literal 3", "literal 4")),
        binary(part=part_of(b"\xff" * 12, "delta")),
        binary(part="word 3\nIcmZPo000310RR91\n\n"),
        binary(back=""),
        binary(back="literal 0\nHcmV?d00001\n"),
        binary(index=""),
        binary(index="index 0000000..1111111\n"),
        binary() + "x\n",
        moved(percent=90),
        moved().replace("100%", "100"),
        changed(index=f"old mode 100644\nnew mode 100755\nindex {ONE}..{TWO}\n", body=""),
        f"diff --git a/x b/x\nold mode 100644\nnew mode 100755\nindex {ONE}..{TWO}\n",
        "",
        "\n \n",
        "hello\n",
        "Dear reviewer,\n" + changed(),
        changed() + "-- \n2.39.5\n",
        changed() + "\n",
        "\n" + changed(),
        "From 1111 Mon Sep 17 00:00:00 2001\nSubject: x\n\n---\n" + changed(),
        "--- a/x\n+++ b/x\n" + HUNK,
        "*** x\n--- x\n***************\n*** 1 ****\n! a\n--- 1 ----\n! b\n",
        "1c\nb\n.\n",
        f"diff --cc x\nindex {ONE},{ONE}..{TWO}\n--- a/x\n+++ b/x\n@@@ -1,1 -1,1 +1,1 @@@\n- a\n -b\n++c\n",
        "diff --git x x\n--- x\n+++ x\n" + HUNK,
        changed().replace("\n", "\r\n"),
        changed()[:-1],
        changed(body=""),
        changed(body="@@ -1 +1 @@\n-a\n"),
        changed(body="@@ -1 +1 @@\n"),
        changed(body="@@ -1 +1 @@\n-a\n+b\n+c\n"),
        changed(body="@@ -1 +1 @@\n-a\n+b\n c\n"),
        changed(body="@@ -1,2 +1 @@\n-a\n+b\n"),
        changed(body="@@ -1 +1 @@\n-a\n*b\n"),
        changed(body="@@ -1 +1 @@\n a\n"),
        changed(body="@@ -0,0 +0,0 @@\n"),
        changed(body="@@ -1 +1 @\n-a\n+b\n"),
        changed(body="@@ -1 +1\n-a\n+b\n"),
        changed(body="@@ -١ +1 @@\n-a\n+b\n"),
        changed(body="@@ --1 +1 @@\n-a\n+b\n"),
        changed(body="@@ -5 +5 @@\n-a\n+b\n" + HUNK),
        changed(body=HUNK + HUNK),
        changed(body="@@ -5 +9 @@\n-a\n+b\n"),
        changed(body="@@ -0 +0 @@\n-a\n+b\n"),
        changed(body=f"@@ -1 +1 @@\n{END}-a\n+b\n"),
        changed(body=f"@@ -1,2 +1,2 @@\n-a\n{END}-b\n+c\n+d\n"),
        changed(body=f"@@ -1 +1 @@\n-a\n+b\n{END}@@ -5 +5 @@\n-a\n+b\n"),
        changed(body=f"@@ -1 +1 @@\n-a\n+b\n{END}{END}"),
        changed(body="@@ -1 +1 @@\n-a\n+b\n\\ no such line\n"),
        changed(index=f"index {ONE}..{TWO} 100644\nindex {ONE}..{TWO} 100644\n"),
        changed(index="index xyz\n"),
        f"diff --git a/x b/x\nindex {ONE}..{TWO} 100644\n",
        "diff --git a/x b/x\n",
        "diff --git a/x\n",
    ],
}
CASES = [(code, text) for code, texts in BAD.items() for text in texts]


@pytest.mark.parametrize(("code", "text"), CASES, ids=[f"{code}-{number}" for number, (code, _) in enumerate(CASES)])
def test_what_is_not_taken_is_refused_with_its_code(code, text):
    with pytest.raises(DiffRefused) as refused:
        parse(text)
    assert refused.value.code == code
    assert refused.value.status == (413 if code == "patch_too_large" else 422)
    assert str(refused.value).isprintable()


def test_sums_are_over_all_files_in_the_order_of_the_text():
    found = parse(changed("b") + added("a", body="@@ -0,0 +1,2 @@\n+1\n+2\n") + deleted("c"))
    assert [file.path for file in found.files] == ["b", "a", "c"]
    assert (found.insertions, found.deletions, found.hunks) == (3, 2, 3)


def test_modes_are_those_of_the_header_and_absent_where_it_says_none():
    files = parse(changed("a") + changed("b", index="") + added("c", mode="100755") + deleted("d")).files
    modes = [(file.old_mode, file.new_mode) for file in files]
    assert modes == [("100644", "100644"), ("", ""), ("", "100755"), ("100644", "")]


def test_a_rename_adds_one_file_and_takes_another_away_after_all_headers():
    found = parse(moved("a", "b", percent=90) + moved_body("a", "b") + changed("c"))
    assert [(file.path, file.kind, file.source) for file in found.files] == [
        ("b", "add", "a"),
        ("c", "change", ""),
        ("a", "delete", "a"),
    ]
    assert [(file.old_mode, file.new_mode) for file in found.files] == [
        ("", "100644"), ("100644", "100644"), ("100644", ""),
    ]  # fmt: skip
    assert (found.insertions, found.deletions) == (2, 2)


def test_a_file_may_be_renamed_to_another_spelling_of_its_name():
    assert [file.path for file in parse(moved("readme", "README")).files] == ["README", "readme"]


def test_binary_contents_are_given_and_their_sum_is_bounded():
    found = parse(binary())
    assert [(one.path, one.content.data) for one in found.binaries] == [("x", b"\0")]
    assert found.files[0].binary
    assert len(parse(binary(), bounds=diff.Bounds(binary=1)).binaries) == 1
    with pytest.raises(DiffRefused) as refused:
        parse(binary() + binary().replace("a/x b/x", "a/y b/y"), bounds=diff.Bounds(binary=1))
    assert refused.value.code == "patch_too_large"


def test_a_delta_takes_from_the_old_content_and_from_itself():
    delta = varint(6) + varint(7) + b"\x90\x03" + b"\x02zz" + b"\x91\x04\x02"
    content = literals.read(part_of(delta, "delta").split("\n"), 0, 100)[0]
    assert content.made_from(b"abcdef") == b"abczzef"
    for old, wrong in (
        (b"abcde", delta),
        (b"abcdef", delta[:-1]),
        (b"abcdef", delta + b"\0"),
        (b"abcdef", delta + b"\x01a"),
    ):
        with pytest.raises(literals.Malformed):
            literals.Content(True, wrong, 7).made_from(old)


def test_ascii_is_told_from_paths_and_inserted_lines_only():
    body = "@@ -1 +1 @@\n-é\n+e\n"
    texts = [changed("a", body), changed("b", body.replace("+e", "+é")), changed("é", body)]
    assert [file.ascii for file in parse("".join(texts)).files] == [True, False, False]


def test_a_refusal_names_the_line():
    with pytest.raises(DiffRefused) as refused:
        parse(changed("a") + changed("../b"))
    assert refused.value.parts["line"] == 8


def test_the_largest_diff_that_is_taken_is_read_in_linear_time():
    lines = diff.MAX_CHANGED_LINES
    text = added(body=f"@@ -0,0 +1,{lines} @@\n" + f"+{'x' * 100}\n" * lines)
    started = time.process_time()
    assert parse(text).insertions == lines
    assert time.process_time() - started < 1  # measured: 10 ms


@pytest.mark.parametrize("path", ["a", "src/a.py", ".github/workflows/x.yml", "a b/c", "日本", "a:b", "git~x"])
def test_a_plain_path_is_allowed(path):
    assert judge_path(path) == path


def outcome(text):
    """`read`, or the code of the refusal."""
    try:
        parse(text)
    except DiffRefused as refused:
        return refused.code
    return "read"


@settings(max_examples=300, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.sampled_from([*changed().splitlines(True), *added().splitlines(True), END, "@@", "\\"]), st.text()
        ),
        max_size=12,
    ).map("".join)
)
def test_any_text_is_read_or_refused_and_never_an_error(text):
    assert outcome(text) in {"read", *BAD}


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_diff_with_one_header_byte_changed_never_names_a_path_outside(data):
    text = changed("src/a.py")
    at = data.draw(st.integers(0, text.index("@@") - 1))
    text = text[:at] + data.draw(st.sampled_from('/."\\ ab\t\n0')) + text[at + 1 :]
    try:
        files = parse(text).files
    except DiffRefused:
        return
    assert all(judge_path(file.path) for file in files)
