"""Receipts: what each says, where it hangs, and that one changed byte anywhere is found and named."""

import hashlib
import json
import subprocess
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction

from ledger import audit, receipts, sealing
from ledger.git import commit_notes
from ledger.models import Patch, PatchReview, Receipt
from pipeline import events
from pipeline.chain import canonical
from pipeline.events import Event
from tests.factories import make_user, run_git
from tests.flows.house import Deaths, Died, House, piece

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

VERIFIER = Path(__file__).resolve().parents[2] / "docs" / "verify_receipt.py"


@pytest.fixture
def house(tmp_path: Path) -> House:
    """One task, whose patch has landed."""
    made = House(tmp_path, [piece("a", conflict_group="g"), piece("b", conflict_group="g")])
    made.work({"a.txt": "a\n"})
    return made


def offline(house: House, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the program that we give away says of the mirror."""
    command = [sys.executable, "-I", str(VERIFIER), str(house.project.mirror), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def as_owner(table: str, sql: str, *values: Any) -> None:
    """Write as the owner of the tables can: past the guards."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute(f"UPDATE {table} SET {sql}", values)
        cursor.execute(f"ALTER TABLE {table} ENABLE TRIGGER USER")


def test_a_receipt_says_where_the_commit_comes_from(house: House) -> None:
    patch, receipt = house.patches()[0], Receipt.objects.get()
    statement = json.loads(receipt.statement)
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    digests = [one["digest"] for one in statement["subject"]]
    assert digests == [{"gitCommit": house.head}, {"gitTree": patch.committed_tree}]
    predicate = statement["predicate"]
    assert predicate["patch"]["sha256"] == hashlib.sha256(patch.content.diff_text.encode()).hexdigest()
    assert predicate["base"] == {"commit": patch.base_commit, "tree": patch.base_tree}
    assert predicate["tested"] == {"tree": patch.committed_tree, "parent": house.first_commit}
    assert patch.prompt is not None
    assert predicate["work"]["prompt"]["sha256"] == patch.prompt.sha256
    assert (predicate["work"]["tool"], predicate["work"]["task"]) == (house.tool.key, "a")
    assert predicate["author"]["worker"] == house.worker.pk
    assert Decimal(predicate["cost"]["USD"]) == 1
    (gate,) = predicate["gates"]
    assert (gate["gate"], gate["verdict"], len(gate["evidence_sha256"])) == ("words", "passed", 64)
    assert receipt.statement == canonical(statement)


def test_the_receipt_hangs_on_its_commit_byte_by_byte_and_its_event_holds_the_digest(house: House) -> None:
    receipt = Receipt.objects.get()
    assert commit_notes.read(house.project.mirror) == {house.head: receipt.statement.encode()}
    assert receipt.note == run_git(house.project.mirror, "rev-parse", "refs/notes/signalbox")
    told = Event.objects.get(kind="receipt.written")
    assert told.data["sha256"] == receipt.sha256 == hashlib.sha256(receipt.statement.encode()).hexdigest()
    assert list(receipts.verify()) == []
    assert house.new_commits()[-1].id == house.head


def test_a_receipt_names_who_approved(house: House) -> None:
    patch = house.deliver({"b.txt": "b\n"})
    reviewers = [make_user(username=name) for name in ("ada", "bob")]
    for reviewer in reviewers:
        actor = events.Actor("user", reviewer.pk, reviewer.username)
        PatchReview.objects.give(patch, "approve", by=actor, reviewer=reviewer)
    house.drain()
    statement = json.loads(Receipt.objects.get(patch=patch).statement)
    assert [one["name"] for one in statement["predicate"]["approvers"]] == ["ada", "bob"]
    house.must_hold()


def test_a_mirror_that_is_gone_keeps_no_other_from_its_notes(house: House) -> None:
    house.deliver({"b.txt": "b\n"})
    mirror = house.project.mirror
    house.drain()
    assert Receipt.objects.count() == 2
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE ledger_receipt DISABLE TRIGGER USER")
        cursor.execute("UPDATE ledger_receipt SET note = ''")
        cursor.execute("ALTER TABLE ledger_receipt ENABLE TRIGGER USER")
    away = mirror.rename(mirror.with_name("away.git"))
    assert receipts.note_rest() == 0
    away.rename(mirror)
    assert receipts.note_rest() == 2


def test_there_is_one_receipt_however_often_it_is_written(house: House) -> None:
    patch = house.patches()[0]
    first = receipts.write(patch)
    assert receipts.write(patch) == first
    assert Receipt.objects.count() == Event.objects.filter(kind="receipt.written").count() == 1


def test_a_receipt_is_written_once_whoever_asks(house: House) -> None:
    for change in ({"statement": "{}"}, {"note": "0" * 40}, {"sha256": "0" * 64}):
        with pytest.raises(IntegrityError), transaction.atomic():
            Receipt.objects.update(**change)
    with pytest.raises(IntegrityError), transaction.atomic():
        Receipt.objects.all()._raw_delete("default")


def test_who_dies_between_the_note_and_the_row_leaves_a_note_that_is_found_again(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    deaths = Deaths(monkeypatch)
    house.deliver({"b.txt": "b\n"})
    deaths.arm("receipt.noted")
    with pytest.raises(Died):
        house.drain()
    house.drain()
    assert not Receipt.objects.unnoted().exists()
    assert len(commit_notes.read(house.project.mirror)) == 2
    assert list(receipts.verify()) == []
    house.must_hold()


def flipped(text: str, at: int = 40) -> str:
    """`text` with the lowest bit of one character the other way."""
    return text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1 :]


def faults(house: House) -> dict[str, str]:
    """What is told to be wrong with the only landed patch."""
    found = list(receipts.verify(house.project))
    assert {fault.patch_id for fault in found} <= {house.patches()[0].pk}
    return {fault.where: fault.what for fault in found}


def test_a_flipped_byte_in_the_statement_is_named(house: House) -> None:
    as_owner("ledger_receipt", "statement = %s", flipped(Receipt.objects.get().statement, 100))
    assert "from character 100 on" in faults(house)["statement of the receipt"]
    assert "note" not in faults(house)


def test_a_statement_rewritten_with_its_digest_is_still_named(house: House) -> None:
    text = Receipt.objects.get().statement.replace('"exit_code":0', '"exit_code":1')
    digest = hashlib.sha256(text.encode()).hexdigest()
    as_owner("ledger_receipt", "statement = %s, sha256 = %s", text, digest)
    assert set(faults(house)) == {"statement of the receipt", "column sha256 of the receipt"}


def test_a_flipped_byte_in_the_digest_is_named(house: House) -> None:
    as_owner("ledger_receipt", "sha256 = %s", "0" * 64)
    assert set(faults(house)) == {"column sha256 of the receipt"}


def test_a_flipped_byte_in_the_patchs_text_is_named(house: House) -> None:
    as_owner("ledger_patchcontent", "diff_text = %s", flipped(house.patches()[0].content.diff_text))
    assert "text" in faults(house)


def test_a_text_rewritten_with_all_its_digests_is_still_named(house: House) -> None:
    text = flipped(house.patches()[0].content.diff_text)
    digest = hashlib.sha256(text.encode()).hexdigest()
    as_owner("ledger_patchcontent", "diff_text = %s, sha256 = %s", text, digest)
    as_owner("ledger_patch", "sha256 = %s", digest)
    assert "column sha256" in faults(house)
    assert "text" in faults(house)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("author_name", "somebody else"),
        ("summary", "other words"),
        ("base_commit", "0" * 40),
        ("tested_parent", "0" * 40),
        ("commit_sha", "0" * 40),
        ("line_insertions", 77),
        ("policy_snapshot", "{}"),
        ("tool", "another"),
    ],
)
def test_a_changed_column_of_the_row_is_named(house: House, column: str, value: Any) -> None:
    if column == "policy_snapshot" and house.patches()[0].policy_snapshot == {}:
        value = '{"a": 1}'
    as_owner("ledger_patch", f"{column} = %s", value)
    assert f"column {column}" in faults(house)


def test_a_changed_note_is_named_by_us_and_by_the_program_we_give_away(house: House) -> None:
    assert offline(house).stdout == "ok 1 receipts\n"
    receipt = Receipt.objects.get()
    wrong = receipt.statement.replace(house.patches()[0].committed_tree, "0" * 40)
    commit_notes.add(house.project.mirror, receipt.commit_sha, wrong)
    assert set(faults(house)) == {"note"}
    told = offline(house)
    assert told.returncode == 1
    assert "subject gitTree" in told.stdout


def test_the_program_we_give_away_finds_a_byte_that_the_sealed_log_does_not_know(
    house: House, tmp_path: Path, settings: LazySettings
) -> None:
    settings.SIGNALBOX_AUDIT_REPOSITORY = str(tmp_path / "audit.git")
    sealing.seal()
    bundle = tmp_path / "bundle.gz"
    audit.verify(bundle=bundle)
    text = tmp_path / "patch.diff"
    text.write_bytes(house.patches()[0].content.diff_text.encode())
    assert offline(house, "--bundle", str(bundle), "--patch", str(text)).stdout == "ok 1 receipts\n"
    receipt = Receipt.objects.get()
    for at in (0, 1, 77, 500, len(receipt.statement) - 2):
        commit_notes.add(house.project.mirror, receipt.commit_sha, flipped(receipt.statement, at))
        assert offline(house, "--bundle", str(bundle)).returncode == 1
    text.write_bytes(b"x" + text.read_bytes())
    assert "no receipt is about this text" in offline(house, "--patch", str(text)).stdout


def test_a_landed_patch_without_a_receipt_is_told_and_can_be_given_one(
    house: House, capsys: pytest.CaptureFixture[str]
) -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE ledger_receipt DISABLE TRIGGER USER")
        cursor.execute("DELETE FROM ledger_receipt")
        cursor.execute("ALTER TABLE ledger_receipt ENABLE TRIGGER USER")
    assert faults(house)["receipt"] == "there is none"
    with pytest.raises(SystemExit):
        call_command("verify-receipts")
    call_command("verify-receipts", "--write-missing", "--project", house.project.key)
    assert "ok: 1 landed patches are what their receipts say" in capsys.readouterr().out


def test_the_daily_look_tells_each_fault_once(house: House) -> None:
    assert receipts.watch() == 0
    Patch.objects.filter(pk=house.patches()[0].pk).update(summary="other words")
    assert receipts.watch() == receipts.watch() == 1
    (told,) = Event.objects.filter(kind="receipt.broken")
    assert told.severity == "critical"
    assert "column summary" in told.reason
    assert told.subject_id == house.patches()[0].pk
