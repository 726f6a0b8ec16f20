"""Hostile and odd diffs: each is answered with its code, and nothing is written where it should not be."""

import hashlib
import os
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from ledger import diff, git, queue, rendering, trees, validation
from ledger.models import Patch
from pipeline.events import Event
from pipeline.models import Project
from pipeline.refusals import Refused
from tests import factories
from tests.api.asking import Api
from tests.factories import BY
from tests.ledger.hostile import mutator
from tests.ledger.hostile.families import HIDDEN, Case, families, make_base
from tests.ledger.hostile.texts import added, binary, changed, deleted, moved, part_of, varint

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

FULL = os.environ.get("CHAOS") == "full"
MUTANTS = 20_000 if FULL else 1_500
SECONDS = 2.0
MEMORY_BYTES = 512 << 20
FAMILIES = dict(families())


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository that the families are written for."""
    return make_base(tmp_path_factory.mktemp("hostile") / "repository")


@pytest.fixture
def project(repository: Path) -> Project:
    """A project with a mirror of it."""
    project = factories.make_project(repository=repository)
    factories.make_merge_queue(project)
    return project


def world(project: Project) -> dict[str, str]:
    """A digest of every file beside the mirror, and in it but for its objects."""
    found = {}
    for folder, _, names in os.walk(project.mirror.parent):
        if not folder.startswith(str(project.mirror / "objects")):
            for path in (Path(folder) / name for name in names):
                found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def fate(project: Project, case: Case) -> tuple[str, str]:
    """How far a diff comes, and the code, or the rules of the findings, with which it ends."""
    if case.stage == "text":
        with pytest.raises(diff.DiffRefused) as refused:
            _submit(project, case.text)
        assert refused.value.status in (413, 422)
        assert not Patch.objects.exists()
        return "text", refused.value.code
    patch, _is_new = _submit(project, case.text)
    assert validation.validate(patch.pk) is True
    patch.refresh_from_db()
    if patch.state == "apply_failed":
        return "tree", patch.last_error_code
    assert patch.state == "validated"
    rules = {finding["rule"] for finding in patch.findings if finding["severity"] == "review"}
    return "taken", case.code if case.code in rules else ",".join(sorted(rules))


@pytest.mark.parametrize("family", FAMILIES)
def test_each_diff_of_a_family_is_answered_with_its_code_and_writes_nothing_elsewhere(
    project: Project, family: int
) -> None:
    before = world(project)
    cases = FAMILIES[family]
    found = [fate(project, case) for case in cases]
    wrong = [
        (number, got, case.text[:200])
        for number, (case, got) in enumerate(zip(cases, found, strict=True))
        if got != (case.stage, case.code)
    ]
    assert wrong == []
    assert world(project) == before
    assert git.fsck(project.mirror) == []


def test_there_are_at_least_150_of_them() -> None:
    assert sum(len(cases) for cases in FAMILIES.values()) >= 150
    assert {*FAMILIES, 25, 27} == set(range(1, 28))


def test_over_the_api_none_is_an_error_of_the_server_and_of_a_refused_one_only_the_digest_is_kept(
    project: Project,
) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    for family, cases in FAMILIES.items():
        for case in {cases[0].text: cases[0], cases[-1].text: cases[-1]}.values():
            if len(case.text) > diff.MAX_BYTES:
                continue
            body = {"project": project.key, "base_commit": factories.head_of(project), "diff_text": case.text}
            answer = operator.post("/patches/", body)
            if case.stage != "text":
                assert answer.status_code == 201, (family, answer.content)
                continue
            assert (answer.status_code, answer.json()["code"]) in ((422, case.code), (413, case.code)), family
            told = Event.objects.filter(kind="patch.refused").latest("seq").data
            raw = case.text.encode()
            assert told == {"code": case.code, "sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw)}


@pytest.mark.parametrize("text", ["x\0y", "\ud800", changed("x\0y"), changed(body="@@ -1 +1 @@\n-a\n+\ud800\n")])
def test_text_that_no_database_can_hold_is_refused_over_the_api(project: Project, text: str) -> None:
    operator = Api(factories.make_key("operator", project=project).text)
    body = {"project": project.key, "base_commit": factories.head_of(project), "diff_text": text}
    assert 400 <= operator.post("/patches/", body).status_code < 500
    assert Patch.objects.count() == 0


# --- 25: the same again ----------------------------------------------------------------------------------------------


def _submit(project: Project, text: str, base: str = "", **fields: Any) -> tuple[Patch, bool]:
    base = base or factories.head_of(project)
    return Patch.objects.submit(project=project, diff_text=text, base_commit=base, by=BY, **fields)


def _judged(project: Project, text: str, base: str = "") -> Patch:
    patch, _is_new = _submit(project, text, base)
    validation.validate(patch.pk)
    patch.refresh_from_db()
    return patch


def test_the_same_tree_by_another_diff_is_noted_and_not_refused(project: Project) -> None:
    first = _judged(project, changed("src/b.py", "@@ -1,3 +1,3 @@\n-one\n+1\n two\n three\n", index=""))
    second = _judged(project, changed("src/b.py", "@@ -1,3 +1,3 @@\n-one\n-two\n+1\n+two\n three\n", index=""))
    assert first.result_tree == second.result_tree != ""
    assert (first.state, second.state) == ("validated", "validated")
    assert [(one["rule"], one["value"]) for one in second.findings] == [("same_tree", [first.pk])]
    assert first.findings == []


# --- 27: words that claim to be somebody else's ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "summary",
    [
        "x\n\nSigned-off-by: Linus Torvalds <torvalds@example.org>",
        "x\nSignalbox-Patch: 01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "Signalbox-Patch: 01ARZ3NDEKTSV4RRFFQ69G5FAV",
        "Co-authored-by: @everyone <a@example.org>",
        "x\r\rCo-authored-by: A <a@example.org>",
        "x\u2028Signed-off-by: A <a@example.org>",
        "\x1b[31mred\x00".replace("\x00", ""),
        "x" * 500,
        "",
    ],
)
def test_a_commit_has_one_line_of_the_agents_words_and_no_trailer_but_ours(project: Project, summary: str) -> None:
    patch, _is_new = _submit(project, added("x.txt"), summary=summary)
    message = queue.message(patch)
    title, empty, trailer, end = message.split("\n")
    assert (empty, trailer, end) == ("", f"Signalbox-Patch: {patch.pk}", "")
    assert title.isprintable()
    assert len(title) <= 80
    assert not title.startswith(("Signed-off-by:", "Co-authored-by:", "Signalbox-Patch:"))


# --- 26: what does not show ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", HIDDEN)
def test_characters_that_do_not_show_are_shown_with_a_badge(mark: str) -> None:
    shown = rendering.render(added("t.py", body=f"@@ -0,0 +1 @@\n+x = '{mark}'\n"))
    assert shown[0].has_hidden
    assert not any(mark in row.html for row in shown[0].rows)


# --- binary contents that lie ----------------------------------------------------------------------------------------


def test_an_object_that_the_mirror_has_cannot_be_brought_in_under_anothers_content(project: Project) -> None:
    # git apply takes the object that the index line names, when it has it, whatever the delta makes.
    base = factories.head_of(project)
    made = git.changes(project.mirror, base, git.apply(project.mirror, base, changed_data(b"\x00" * 512)))[0]
    secret = git.changes(project.mirror, base, git.apply(project.mirror, base, added("s")))[0].new_oid
    lie = part_of(varint(512) + varint(1) + b"\x01z", "delta")
    text = binary(lie, part_of(b""), f"index {made.old_oid}..{secret} 100644\n", "").replace("/x", "/data.bin")
    tree = git.apply(project.mirror, base, text)
    assert [change.new_oid for change in git.changes(project.mirror, base, tree)] == [secret]
    findings = trees.judge(project.mirror, base, tree, diff.parse(text))
    assert [finding.rule for finding in findings] == ["header_mismatch"]


def changed_data(content: bytes) -> str:
    """The whole content of `data.bin` replaced."""
    old, new = (hashlib.sha1(b"blob %d\0" % len(one) + one).hexdigest() for one in (bytes(range(256)) * 2, content))
    text = binary(part_of(content), part_of(bytes(range(256)) * 2), f"index {old}..{new} 100644\n", "")
    return text.replace("/x", "/data.bin")


# --- a little changed ------------------------------------------------------------------------------------------------


def _good(base: str) -> list[str]:
    return [
        changed("src/b.py", "@@ -1,3 +1,3 @@\n one\n-two\n+2\n three\n", index=""),
        changed("src/a.py", "@@ -1 +1 @@\n-line 1\n+1\n@@ -300,2 +300,3 @@\n line 300\n+new\n line 301\n", index=""),
        added("new/file.txt"),
        deleted("plain", body="@@ -1 +0,0 @@\n-a file\n"),
        moved("src/b.py", "src/c.py"),
        moved("plain", "Plain copy", "copy"),
        "diff --git a/plain b/plain\nold mode 100644\nnew mode 100755\n",
        changed("no-end.txt", "@@ -1 +1 @@\n-x\n\\ No newline at end of file\n+y\n", index=""),
        binary(),
        changed_data(b"\x00\x01\x02" * 40),
    ]


def test_of_diffs_that_are_a_little_changed_none_escapes_or_takes_long(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not asked of getrusage: what it says of a child starts at the size of the process that forked it.
    set_limits = git.running.set_limits
    monkeypatch.setattr(
        git.running,
        "set_limits",
        lambda pid, cpu_seconds, memory_bytes: set_limits(pid, cpu_seconds, min(memory_bytes, MEMORY_BYTES)),
    )
    base = factories.head_of(project)
    good = _good(base)
    before = world(project)
    plain = {change.path for change in git.changes(project.mirror, git.tree_of(project.mirror, base), base)}
    assert plain == set()
    seen: Counter[str] = Counter()
    slowest = 0.0
    for text in (*good, *mutator.mutants(good, MUTANTS, os.environ.get("CHAOS_SEED", "1"))):
        started = time.thread_time()
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        end = _outcome(project, base, text)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = time.thread_time() - started + after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        slowest = max(slowest, spent)
        seen[end] += 1
    assert seen["taken"] >= len(good)
    assert slowest <= SECONDS
    assert world(project) == before
    assert git.fsck(project.mirror) == []
    print(f"{MUTANTS} mutants, at most {slowest:.3f} s of processor time each: {dict(seen.most_common())}")


def _outcome(project: Project, base: str, text: str) -> str:
    """The code with which the three steps of a submission end, or `taken`; what is taken holds plain files only."""
    try:
        parsed = diff.parse(text)
        tree = git.apply(project.mirror, base, text)
    except git.GitFailed:
        raise
    except Refused as refusal:
        return refusal.code
    findings = trees.judge(project.mirror, base, tree, parsed)
    if findings:
        return findings[0].rule
    for change in git.changes(project.mirror, base, tree):
        assert change.new_mode in ("", "100644", "100755")
        assert diff.judge_path(change.path) in {file.path for file in parsed.files}
        assert not change.path.startswith(("link/", "inner/", "vendor/"))
    return "taken"
