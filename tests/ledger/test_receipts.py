"""Receipts: what each says, where it hangs, and that one changed byte anywhere is found and named."""

import hashlib
import json
import runpy
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.conf import LazySettings
from django.core.management import call_command
from django.db import IntegrityError, connection, models, transaction
from django.test import Client
from django.urls import reverse

from ledger import audit, git, receipts, reviewing, rollback, sealing
from ledger.git import commit_notes
from ledger.models import Patch, PatchContent, PatchReview, Receipt
from pipeline import events
from pipeline.chain import canonical
from pipeline.events import Event
from pipeline.ids import new_id
from tests.factories import BY, make_approver, make_cost, make_policy, run_git
from tests.flows.house import Deaths, Died, House, piece
from workers.models import Lease

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


def test_a_clone_of_a_house_in_which_a_set_was_taken_back_is_in_order(tmp_path: Path) -> None:
    house = House(tmp_path, [piece(key, conflict_group="g") for key in "abc"])
    for text in ("one", "one two", "one two three"):
        house.work({"README.md": f"# {text}\n"})
    wanted = rollback.Wanted(house.project, patches=tuple(patch.pk for patch in house.patches()[1:]))
    rollback.carry_out(rollback.plan(wanted), "wrong turn", by=BY)
    house.drain()
    clone = tmp_path / "clone"
    run_git(tmp_path, "clone", "--quiet", str(house.project.mirror), str(clone))
    run_git(clone, "fetch", "--quiet", "origin", "refs/notes/signalbox:refs/notes/signalbox")

    command = [sys.executable, "-I", str(VERIFIER), str(clone)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)

    assert told.stdout.startswith("ok 5 receipts"), told.stdout + told.stderr


def test_a_commit_of_ours_on_the_branch_that_the_ledger_does_not_know_is_named(house: House) -> None:
    assert list(receipts.verify(house.project)) == []
    unknown = new_id()
    mirror = house.project.mirror
    tree, message = git.tree_of(mirror, house.head), f"Slipped in\n\nSignalbox-Patch: {unknown}\n"
    who = {"author_name": "Ada", "author_email": "ada@example.org", "at": datetime.now(UTC)}
    made = git.commit(mirror, tree, house.head, message, **who)
    run_git(mirror, "update-ref", "refs/heads/main", made)

    (found,) = receipts.verify(house.project)

    assert (found.patch_id, found.where) == (unknown, "branch main")
    assert made[:12] in found.what


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
    reviewers = [make_approver(house.project, username=name) for name in ("ada", "bob")]
    for reviewer in reviewers:
        actor = events.Actor("user", reviewer.pk, reviewer.username)
        PatchReview.objects.give(patch, "approve", by=actor, reviewer=reviewer)
    house.drain()
    statement = json.loads(Receipt.objects.get(patch=patch).statement)
    assert [one["name"] for one in statement["predicate"]["approvers"]] == ["ada", "bob"]
    house.must_hold()


def predicate_of(patch: Patch) -> Any:
    """What its receipt says of it."""
    return json.loads(Receipt.objects.get(patch=patch).statement)["predicate"]


def test_a_receipt_names_who_allowed_a_reverse_by_asking_for_it(house: House, client: Client) -> None:
    make_policy(project=house.project, constraints={"min_reviewers": 1})
    ada, bob = (make_approver(house.project, username=name) for name in ("ada", "bob"))
    client.force_login(ada)
    landed = house.patches()[0]
    answer = client.post(reverse("ledger:rollback", args=[landed.pk]), {"reason": "odd"})
    assert answer.status_code == 302
    undoing = landed.reverses().get()
    PatchReview.objects.give(undoing, "approve", by=events.Actor("user", bob.pk, "bob"), reviewer=bob)
    house.drain()
    told = predicate_of(undoing)["approvers"]
    assert [(one["name"], one["user"], one["by"]) for one in told] == [
        ("ada", ada.pk, "rollback"),
        ("bob", bob.pk, "review"),
    ]
    page = client.get(reverse("ledger:receipt", args=[undoing.receipt.pk])).content.decode()
    assert "ada, bob" in page
    assert list(receipts.verify()) == []
    assert offline(house).returncode == 0


def test_a_receipt_names_who_set_a_rule_aside(house: House) -> None:
    make_policy(project=house.project, constraints={"forbid_touching_paths": ["b.txt"]})
    patch = house.work({"b.txt": "b\n"})
    user = make_approver(house.project, username="ada")
    by = events.Actor("user", user.pk, "ada")
    reviewing.override(patch, "forbid_touching_paths", reason="this once", by=by, user=user)
    reviewing.override(patch, "ascii_only", reason="for nothing", by=by, user=user)
    patch.refresh_from_db()
    patch.queue(by=by)
    house.drain()
    (told,) = predicate_of(patch)["overrides"]
    assert (told["rule"], told["name"], told["user"]) == ("forbid_touching_paths", "ada", user.pk)


def test_a_receipt_names_the_model_that_the_tool_is_set_to_and_those_that_were_used(house: House) -> None:
    house.tool.edit(by=BY, model="big-1")
    document = house.claim()
    attempt = Lease.objects.get(pk=document["lease"]["id"]).attempt
    make_cost(attempt=attempt, model="small-2")
    make_cost(attempt=attempt, model="big-1")
    make_cost(attempt=house.patches()[0].attempt, model="other-3")
    patch = house.submit(document, {"b.txt": "b\n"})
    house.report(document, patch)
    house.drain()
    work = predicate_of(patch)["work"]
    assert (work["tool"], work["model"], work["models_used"]) == (house.tool.key, "big-1", ["big-1", "small-2"])
    assert list(receipts.verify()) == []


def test_a_receipt_from_before_models_and_overrides_were_told_is_in_order_still(house: House) -> None:
    statement = json.loads(Receipt.objects.get().statement)
    for key in ("model", "models_used"):
        del statement["predicate"]["work"][key]
    del statement["predicate"]["overrides"], statement["predicate"]["gates"][0]["waived_by"]
    hang(house, canonical(statement))
    assert offline(house).returncode == 0


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


def other_values(model: type[models.Model]) -> Iterator[tuple[str, str]]:
    """Every column of a row, and SQL for another value than the one that it has."""
    for field in model._meta.concrete_fields:
        sql = {
            "BooleanField": "NOT coalesce({0}, false)",
            "JSONField": '\'{{"x": "y"}}\'',
            "ArrayField": "ARRAY['x']",
            "DateTimeField": "coalesce({0}, now()) + interval '1 microsecond'",
            "TextField": "'x' || {0}",
            "CharField": "CASE {0} WHEN '' THEN 'x' ELSE translate({0}, '0123456789abcdef', '123456789abcdef0') END",
        }.get(field.get_internal_type())
        if sql is None:
            sql = "gen_random_uuid()" if field.db_type(connection) == "uuid" else "coalesce({0}, 0) + 1"
        yield field.column, sql.format(field.column)


NO_FACTS = {
    Patch: {"updated_at", "version"},
    PatchContent: {"id", "created_at"},
    Receipt: {"created_at"},
}
"""Columns that no event and no receipt tells: bookkeeping (docs/landing.md says so)."""


@pytest.mark.parametrize("model", NO_FACTS)
def test_every_column_that_is_changed_is_named(house: House, model: type[models.Model]) -> None:
    patch, table, missed = house.patches()[0], model._meta.db_table, set()
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        checks = "SELECT conname FROM pg_constraint WHERE conrelid = %s::regclass AND contype = 'c'"
        cursor.execute(checks, [table])
        for (name,) in cursor.fetchall():
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")
        for column, sql in other_values(model):
            with transaction.atomic():
                cursor.execute(f"UPDATE {table} SET {column} = {sql}")
                found = list(receipts.verify(house.project))
                if model is not Patch or column != "id":
                    assert {fault.patch_id for fault in found} <= {patch.pk}
                if not found:
                    missed.add(column)
                transaction.set_rollback(True)
        transaction.set_rollback(True)
    assert missed == NO_FACTS[model]


def test_a_row_that_was_taken_away_is_missed(house: House) -> None:
    patch = house.patches()[0]
    with transaction.atomic(), connection.cursor() as cursor:
        for table in ("ledger_receipt", "ledger_patchcontent", "ledger_patch"):
            cursor.execute(f"ALTER TABLE {table} DISABLE TRIGGER USER")
        cursor.execute("DELETE FROM ledger_receipt")
        cursor.execute("DELETE FROM ledger_patchcontent")
        cursor.execute("UPDATE ledger_patch SET id = gen_random_uuid(), state = 'dropped', commit_sha = ''")
        assert [str(fault) for fault in receipts.verify()] == [f"row of patch {patch.pk}: there is none"]
        assert receipts.watch() == receipts.watch() == 1
        assert Event.objects.get(kind="receipt.broken").subject_id == house.project.pk
        transaction.set_rollback(True)


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
    assert offline(house).stdout.startswith("ok 1 receipts\nproved by git alone: ")
    receipt = Receipt.objects.get()
    wrong = receipt.statement.replace(house.patches()[0].committed_tree, "0" * 40)
    commit_notes.add(house.project.mirror, receipt.commit_sha, wrong)
    assert set(faults(house)) == {"note"}
    told = offline(house)
    assert told.returncode == 1
    assert "landed tree" in told.stdout
    assert "the receipt that was hung here first was changed" in told.stdout


def test_the_program_we_give_away_finds_a_byte_that_the_sealed_log_does_not_know(
    house: House, tmp_path: Path, settings: LazySettings
) -> None:
    settings.SIGNALBOX_AUDIT_REPOSITORY = str(tmp_path / "audit.git")
    sealing.seal()
    bundle = tmp_path / "bundle.gz"
    audit.verify(bundle=bundle)
    text = tmp_path / "patch.diff"
    text.write_bytes(house.patches()[0].content.diff_text.encode())
    told = offline(house, "--bundle", str(bundle), "--patch", str(text)).stdout
    assert told.startswith("ok 1 receipts\nproved: every byte of every receipt")
    receipt = Receipt.objects.get()
    for at in (0, 1, 77, 500, len(receipt.statement) - 2):
        commit_notes.add(house.project.mirror, receipt.commit_sha, flipped(receipt.statement, at))
        assert offline(house, "--bundle", str(bundle)).returncode == 1
    text.write_bytes(b"x" + text.read_bytes())
    assert "no receipt is about this text" in offline(house, "--patch", str(text)).stdout


# -- the program that we give away, against one byte anywhere --------------------------------------------------------

ONLY_THE_LOG_KNOWS = {
    "approvers", "author.user", "gates", "landed.at", "patch.bytes", "patch.chain", "patch.ledger_id",
    "patch.replaces", "patch.reverses", "patch.sha256", "policy_sha256", "cost", "overrides", "work",
}  # fmt: skip
"""What no commit tells: docs/landing.md and the program itself say so."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a document that holds no others."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not inner:
        yield path
    for key, one in inner:
        yield from leaves(one, (*path, key))


def changed(document: Any, path: tuple[Any, ...]) -> Any:
    """`document` with the value at the end of `path` a little different."""
    if path:
        made = dict(document) if isinstance(document, dict) else list(document)
        made[path[0]] = changed(document[path[0]], path[1:])
        return made
    if isinstance(document, bool) or document is None:
        return not document
    if isinstance(document, int):
        return document + 1
    return flipped(document, max(len(document) - 2, 0)) if document else "x"


def hang(house: House, note: str, *, anew: bool = True) -> None:
    """Put `note` on the commit in place of its own; `anew`: with all traces of the one before gone."""
    if anew:
        run_git(house.project.mirror, "update-ref", "-d", "refs/notes/signalbox")
    commit_notes.add(house.project.mirror, house.head, note)


def sealed_bundle(settings: LazySettings, folder: Path) -> Path:
    """What `verify-ledger --export` writes of everything so far."""
    settings.SIGNALBOX_AUDIT_REPOSITORY = str(folder / "audit.git")
    sealing.seal()
    audit.verify(bundle=folder / "bundle.gz")
    return folder / "bundle.gz"


def test_every_field_of_a_note_is_proved_by_the_commit_by_the_notes_history_or_by_the_log(
    house: House, tmp_path: Path, settings: LazySettings
) -> None:
    bundle = sealed_bundle(settings, tmp_path)
    statement = json.loads(Receipt.objects.get().statement)
    fields = list(leaves(statement))
    assert len(fields) > 40
    verify, mirror = runpy.run_path(str(VERIFIER))["verify"], str(house.project.mirror)
    for field in fields:
        hang(house, Receipt.objects.get().statement)
        note = canonical(changed(statement, field))
        hang(house, note, anew=False)
        assert "the receipt that was hung here first was changed" in "".join(verify(mirror)[0]), field
        hang(house, note)
        named = ".".join(str(key) for key in field if key != "predicate")
        is_open = any(named == one or named.startswith(f"{one}.") for one in ONLY_THE_LOG_KNOWS)
        told, _count = verify(mirror)
        assert bool(told) != is_open, (field, told)
        assert all(line.startswith(f"{house.head}: ") for line in told)
        told, _count = verify(mirror, bundle=str(bundle))
        assert f"{house.head}: the sealed log knows no such receipt" in told, field


def test_every_flipped_byte_of_a_note_is_named_without_a_traceback(
    house: House, tmp_path: Path, settings: LazySettings
) -> None:
    sealed_bundle(settings, tmp_path)
    program = runpy.run_path(str(VERIFIER))
    statement = Receipt.objects.get().statement.encode()
    mirror = str(house.project.mirror)
    held = program["objects"](mirror, run_git(house.project.mirror, "rev-list", "--all").split())
    sealed = program["read_bundle"](str(tmp_path / "bundle.gz"))
    for at in range(len(statement)):
        raw = statement[:at] + bytes([statement[at] ^ (1 if at % 2 else 0x80)]) + statement[at + 1 :]
        told = program["faults_of"](mirror, house.head, raw, held, False)
        assert told or hashlib.sha256(raw).hexdigest() not in sealed, at
    assert program["faults_of"](mirror, house.head, statement, held, False) == []
    for odd in (b"", b"[]", b"{}", b"[" * 100_000, b'{"predicate": []}'):
        assert len(program["faults_of"](mirror, house.head, odd, held, False)) == 1


def test_a_plain_clone_has_no_receipts_and_is_told_how_to_get_them(house: House, tmp_path: Path) -> None:
    clone = tmp_path / "plain"
    run_git(tmp_path, "clone", "--quiet", str(house.project.mirror), str(clone))
    command = [sys.executable, "-I", str(VERIFIER), str(clone)]
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert "git fetch origin refs/notes/signalbox:refs/notes/signalbox" in told.stderr
    run_git(clone, "fetch", "--quiet", "origin", "refs/notes/signalbox:refs/notes/signalbox")
    told = subprocess.run(command, capture_output=True, text=True, check=False)
    assert told.stdout.startswith("ok 1 receipts\n")


def test_a_note_that_was_taken_away_is_missed(house: House, tmp_path: Path, settings: LazySettings) -> None:
    house.work({"b.txt": "b\n"})
    first, second = (commit.id for commit in house.new_commits())
    bundle = sealed_bundle(settings, tmp_path)
    own = Receipt.objects.get(commit_sha=second).statement
    run_git(house.project.mirror, "notes", "--ref=refs/notes/signalbox", "remove", first)
    told = offline(house)
    assert told.returncode == 1
    assert f"{first}: no receipt hangs on this commit of Signalbox" in told.stdout
    assert f"{first}: the receipt that was hung here first was taken away" in told.stdout
    run_git(house.project.mirror, "update-ref", "-d", "refs/notes/signalbox")
    commit_notes.add(house.project.mirror, second, own)
    for arguments in ((), ("--bundle", str(bundle))):
        told = offline(house, *arguments)
        assert told.returncode == 1
        assert f"{first}: no receipt hangs on this commit of Signalbox" in told.stdout
        assert second not in told.stdout
    assert f"{first}: the sealed log knows a receipt of this commit that does not hang on it" in told.stdout
    run_git(house.project.mirror, "update-ref", "refs/heads/main", house.first_commit)
    told = offline(house, "--bundle", str(bundle))
    assert told.returncode == 1
    assert f"{first}: the sealed log knows a receipt of this commit" in told.stdout


@pytest.mark.parametrize("what", ["repository", "patch", "bundle", "cut", "plain", "folder"])
def test_what_cannot_be_read_is_said_in_a_sentence(
    house: House, tmp_path: Path, settings: LazySettings, what: str
) -> None:
    bundle = sealed_bundle(settings, tmp_path)
    (tmp_path / "cut").write_bytes(bundle.read_bytes()[:-40])
    (tmp_path / "plain").write_text("no gzip")
    command = {
        "repository": [str(tmp_path / "nowhere")],
        "folder": [str(tmp_path)],
        "patch": [str(house.project.mirror), "--patch", str(tmp_path / "nothing.diff")],
        "bundle": [str(house.project.mirror), "--bundle", str(tmp_path / "nothing.gz")],
        "cut": [str(house.project.mirror), "--bundle", str(tmp_path / "cut")],
        "plain": [str(house.project.mirror), "--bundle", str(tmp_path / "plain")],
    }[what]
    told = subprocess.run([sys.executable, "-I", str(VERIFIER), *command], capture_output=True, text=True, check=False)
    assert (told.returncode, told.stdout) == (2, "")
    assert told.stderr.startswith("cannot verify: ")
    assert command[-1] in told.stderr
    assert len(told.stderr.splitlines()) == 1


# -- what is missing, and the daily look -----------------------------------------------------------------------------


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
