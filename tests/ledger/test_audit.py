"""Sealing, anchoring, verifying and handing out the log: what holds while nobody tampers with it."""

import gzip
import json
import os
import subprocess
import sys
import threading
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, connection, transaction

from ledger import audit, git, sealing
from ledger.models import Seal
from pipeline import events, invariants
from pipeline.clock import db_now
from pipeline.events import START, Cursor
from pipeline.kinds import KINDS
from pipeline.models import Event, Project
from tests import factories
from tests.api.asking import Api
from tests.factories import BY

pytestmark = pytest.mark.django_db(transaction=True)

ROOT = Path(__file__).parents[2]
NOISY = 'a "quoted"\tpath\\to\\x\nline\r\b\f\v\x01 é 💡 \\N'


@pytest.fixture(autouse=True)
def repository(settings: Any, tmp_path: Path) -> Path:
    """An audit repository of the test's own, not made yet."""
    settings.SIGNALBOX_AUDIT_REPOSITORY = str(tmp_path / "audit.git")
    return tmp_path / "audit.git"


def tell(subject: Project, count: int = 1, **data: Any) -> None:
    """Events about `subject`, each in a transaction of its own."""
    for number in range(count):
        events.record("note.added", subject, by=BY, message=f"note {number}", data=data)


def test_everything_that_is_settled_is_sealed_in_the_order_of_commits():
    project = factories.make_project()
    tell(project, 4)
    rows = list(Event.objects.order_by("epoch", "xid", "seq"))

    assert sealing.seal() == 1

    seal = Seal.objects.get()
    assert (seal.number, seal.from_cursor, seal.prev_root) == (1, str(START), "")
    assert (seal.count, seal.to_cursor) == (len(rows), str(rows[-1].cursor))
    told = Event.objects.get(kind="seal.written")
    assert (told.subject_id, told.data["root_hash"]) == (seal.pk, seal.root_hash)


def test_a_house_at_rest_writes_no_seals():
    tell(factories.make_project())
    assert [sealing.seal() for _ in range(4)] == [1, 0, 0, 0]
    assert Event.objects.filter(kind="seal.written").count() == 1


def test_a_seals_own_event_is_sealed_with_what_happens_next():
    project = factories.make_project()
    sealing.seal()
    tell(project)
    sealing.seal()
    first, second = Seal.objects.order_by("number")
    assert (second.prev_root, second.from_cursor) == (first.root_hash, first.to_cursor)
    assert second.count == 2
    assert audit.verify().unsealed == 1


def test_an_event_of_an_open_transaction_is_sealed_when_it_can_no_longer_be_preceded(threads):
    project = factories.make_project()
    sealing.seal()
    began, may_end = threads_events()

    def slow() -> None:
        with transaction.atomic():
            tell(project)
            began.set()
            may_end.wait(20)

    other = factories.make_project()
    writer = threads.start(slow)
    assert began.wait(20)
    tell(other)
    assert sealing.seal() == 1
    assert Event.objects.filter(subject_id=other.pk).count() == 2
    held = Seal.objects.order_by("number").last()
    may_end.set()
    writer.result()
    sealing.seal()
    assert Cursor.parse(held.to_cursor) < Event.objects.filter(subject_id=project.pk).last().cursor
    assert audit.verify().ok


def threads_events() -> tuple[threading.Event, threading.Event]:
    """Two flags that threads wait for."""
    return threading.Event(), threading.Event()


def test_a_backlog_is_sealed_in_pieces(monkeypatch):
    monkeypatch.setattr(sealing, "MAX_EVENTS", 3)
    tell(factories.make_project(), 7)
    assert sealing.seal() >= 3
    assert max(Seal.objects.values_list("count", flat=True)) == 3
    assert audit.verify().ok
    assert sealing.seal() == 0


def test_only_one_sealer_works_at_a_time(threads):
    tell(factories.make_project(), 20)
    outcomes = threads.at_once(*[sealing.seal] * 4)
    assert sum(outcome.result() for outcome in outcomes) == 1
    assert Seal.objects.count() == 1


def test_a_sealer_that_finds_another_at_work_leaves_at_once(threads):
    tell(factories.make_project())
    held, may_end = threads_events()

    def hold() -> None:
        with sealing.alone() as mine:
            assert mine
            held.set()
            may_end.wait(20)

    holder = threads.start(hold)
    assert held.wait(20)
    assert sealing.seal() == 0
    may_end.set()
    holder.result()
    assert sealing.seal() == 1


# -- anchors -------------------------------------------------------------------------------------------------------


def test_each_seal_is_a_commit_on_the_anchor_ref(repository):
    project = factories.make_project()
    for _ in range(3):
        tell(project)
        sealing.seal()
    seals = list(Seal.objects.order_by("-number"))
    noted = list(git.notes(repository, git.note_head(repository, sealing.REF), page=2))
    assert [commit for commit, _message in noted] == [seal.anchor for seal in seals]
    assert [message.splitlines()[-1] for _commit, message in noted] == [seal.document() for seal in seals]
    assert git.note_file(repository, seals[0].anchor, sealing.LEAVES) == bytes(seals[0].leaves)
    git.pack(repository)
    assert git.fsck(repository) == []


@pytest.mark.parametrize("point", ["seal.written", "seal.anchored"])
def test_a_sealer_killed_between_row_and_commit_is_mended_by_the_next(point, repository, settings):
    project = factories.make_project()
    sealing.seal()
    tell(project)
    program = (
        "import django; django.setup(); from django.conf import settings; "
        f"settings.SIGNALBOX_AUDIT_REPOSITORY = {str(repository)!r}; from ledger import sealing; sealing.seal()"
    )
    database = settings.DATABASES["default"]
    environment = {
        **os.environ,
        "FAULT": point,
        "DJANGO_SETTINGS_MODULE": "pipeline.settings",
        "DATABASE_URL": f"postgres://{database['USER']}@/{connection.settings_dict['NAME']}"
        f"?host={database['HOST']}&port={database['PORT']}",
    }
    if os.environ.get("DATABASE_URL"):
        environment["DATABASE_URL"] = (
            os.environ["DATABASE_URL"].rsplit("/", 1)[0] + "/" + connection.settings_dict["NAME"]
        )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, env=environment, timeout=60, check=False)
    assert done.returncode == 137
    assert Seal.objects.unanchored().count() == 1
    assert audit.verify().ok

    assert sealing.seal() == 0

    assert not Seal.objects.unanchored().exists()
    assert git.note_head(repository, sealing.REF) == Seal.objects.get(number=2).anchor
    assert audit.verify().ok


def test_a_ref_that_somebody_moved_stops_the_sealer(repository):
    project = factories.make_project()
    sealing.seal()
    tell(project)
    sealing.seal()
    first, second = Seal.objects.order_by("number")
    git.move_note(repository, sealing.REF, first.anchor, second.anchor)
    tell(project)
    with pytest.raises(sealing.AnchorBroken, match="verify-ledger tells which"):
        sealing.seal()
    assert "not in the audit repository" in str(audit.verify().problems[0])


def test_a_lost_audit_repository_is_made_anew_from_the_seals(repository, tmp_path):
    project = factories.make_project()
    for _ in range(2):
        tell(project)
        sealing.seal()
    repository.rename(tmp_path / "lost")
    tell(project)
    assert not audit.verify().ok
    with pytest.raises((sealing.AnchorBroken, git.GitFailed)):
        sealing.seal()

    out = StringIO()
    call_command("verify-ledger", rebuild_anchors=True, jobs=1, stdout=out)

    assert "2 anchors are there again" in out.getvalue()
    assert git.note_head(repository, sealing.REF) == Seal.objects.get(number=2).anchor
    sealing.seal()
    assert audit.verify().ok


def test_anchors_are_copied_to_a_remote_and_to_a_file(settings, tmp_path, repository):
    remote, file = tmp_path / "remote.git", tmp_path / "anchors.jsonl"
    git.init(remote)
    settings.SIGNALBOX_ANCHOR_REMOTE, settings.SIGNALBOX_ANCHOR_FILE = str(remote), str(file)
    project = factories.make_project()
    for _ in range(2):
        tell(project)
        sealing.seal()
    seals = list(Seal.objects.order_by("number"))
    assert git.note_head(remote, sealing.REF) == seals[-1].anchor
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(line["number"], line["root_hash"], line["anchor"]) for line in lines] == [
        (seal.number, seal.root_hash, seal.anchor) for seal in seals
    ]


def test_a_remote_that_does_not_answer_keeps_nothing_from_being_sealed(settings, tmp_path):
    settings.SIGNALBOX_ANCHOR_REMOTE = str(tmp_path / "nowhere.git")
    tell(factories.make_project())
    assert sealing.seal() == 1
    assert Seal.objects.get().anchor


# -- rows of seals -------------------------------------------------------------------------------------------------


def test_a_seal_is_written_once_and_its_anchor_filled_in_once():
    tell(factories.make_project())
    sealing.seal()
    for change in ({"root_hash": "0" * 64}, {"count": 7}, {"anchor": "0" * 40}, {"anchor": ""}):
        with pytest.raises(IntegrityError, match="Cannot change"):
            Seal.objects.update(**change)
    with pytest.raises(IntegrityError, match="Cannot delete"):
        Seal.objects.all().delete()


# -- verifying -----------------------------------------------------------------------------------------------------


def test_a_log_with_every_kind_of_text_verifies_and_says_how_much_it_read():
    project = factories.make_project()
    events.record(
        "note.added", project, by=BY, message=NOISY, reason="\\", data={NOISY.strip("\\N"): [1, None, True, NOISY]}
    )
    events.record("note.added", project, by=BY, before={}, after={"z": 1, "aa": {"b": [], "a": "x: y, z"}})
    events.record("note.added", project, by=BY, data={"long": "é" * 1000, "number": 10**30, "small": -5})
    sealing.seal()
    report = audit.verify()
    assert report.problems == []
    assert (report.events, report.seals, report.unsealed) == (Event.objects.count(), 1, 1)
    assert report.last_root == Seal.objects.get().root_hash


def test_an_empty_log_verifies():
    assert audit.verify().ok


def test_events_of_a_transaction_that_began_before_those_it_follows_verify(threads):
    project = factories.make_project()
    began, may_write = threads_events()
    writer = threads.start(lambda: older_in(began, may_write, project))
    assert began.wait(20)
    tell(project)
    may_write.set()
    writer.result()
    tell(project)
    stream = Event.objects.about(project)
    in_commit_order = list(stream.order_by("epoch", "xid", "seq").values_list("stream_seq", flat=True))
    assert in_commit_order == [1, 2, 3, 4]
    sealing.seal()
    assert audit.verify().problems == []
    assert bundle_says() == ""


def older_in(began: Any, may_write: Any, project: Project) -> None:
    """A transaction that takes its id first, and its place in the stream last."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SELECT pg_current_xact_id()")
        began.set()
        may_write.wait(20)
        tell(project)


def tamper(sql: str) -> None:
    """Change the log past its guards."""
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE pipeline_event DISABLE TRIGGER USER")
        cursor.execute(sql)
        cursor.execute("ALTER TABLE pipeline_event ENABLE TRIGGER USER")


def test_several_processes_find_what_one_finds(monkeypatch):
    monkeypatch.setattr(audit, "STRETCH_EVENTS", 10)
    monkeypatch.setattr(sealing, "MAX_EVENTS", 5)
    for _ in range(6):
        tell(factories.make_project(), 8)
    sealing.seal()
    one, two = audit.verify(jobs=1), audit.verify(jobs=2)
    assert one.ok
    assert (one.events, one.seals, one.streams) == (two.events, two.seals, two.streams)
    tamper("UPDATE pipeline_event SET message = 'never' WHERE message = 'note 3'")
    assert audit.verify(jobs=1).problems == audit.verify(jobs=2).problems != []


def test_the_command_says_ok_or_names_the_first_bad_row_and_ends_with_1():
    tell(factories.make_project(), 3)
    sealing.seal()
    out = StringIO()
    call_command("verify-ledger", jobs=1, stdout=out)
    assert f"ok {Seal.objects.get().root_hash}" in out.getvalue()

    row = Event.objects.get(message="note 1")
    tamper("UPDATE pipeline_event SET reason = 'x' WHERE message = 'note 1'")
    out = StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("verify-ledger", jobs=1, stdout=out)
    assert ended.value.code == 1
    first = out.getvalue().splitlines()[2]
    assert first.startswith(f"event {row.pk}, project {row.subject_id} number {row.stream_seq}")
    assert first.endswith("reason differs from its canonical text")


@pytest.mark.parametrize("jobs", [0, 65])
def test_the_command_refuses_nonsense_in_a_sentence(jobs):
    with pytest.raises(CommandError, match="a number from 1 to 64"):
        call_command("verify-ledger", jobs=jobs)


# -- watching ------------------------------------------------------------------------------------------------------


def test_what_is_broken_is_told_once_for_each_finding():
    project = factories.make_project()
    tell(project, 3)
    sealing.seal()
    audit.watch()
    assert not Event.objects.filter(kind="seal.broken").exists()
    tamper("UPDATE pipeline_event SET message = 'never' WHERE message = 'note 2'")
    row = Event.objects.get(message="never")
    audit.watch()
    audit.watch()
    told = Event.objects.get(kind="seal.broken")
    assert (told.severity, told.subject_type, told.subject_id) == ("critical", "event", row.pk)
    assert "message differs" in told.message
    tamper("UPDATE pipeline_event SET message = 'never' WHERE message = 'note 0'")
    audit.watch()
    assert Event.objects.filter(kind="seal.broken").count() == 2


def test_a_finding_that_somebody_outside_told_before_keeps_none_of_ours_back():
    project = factories.make_project()
    tell(project, 3)
    sealing.seal()
    tamper("UPDATE pipeline_event SET message = 'never' WHERE message = 'note 2'")
    finding = str(audit.verify().problems[0])
    outside = events.Actor("integration", "", "forger")
    events.record("seal.broken", project, by=outside, data={"finding": finding})
    audit.watch()
    audit.watch()
    assert Event.objects.filter(kind="seal.broken", actor_kind="system", data__finding=finding).count() == 1


def test_a_lost_log_is_told_about_as_well(repository):
    git.init(repository)
    note = git.add_note(repository, {}, None, "nonsense", at=db_now())
    git.move_note(repository, sealing.REF, note, None)
    audit.watch()
    assert Event.objects.get(kind="seal.broken").subject_type == "log"


@pytest.mark.parametrize("where", ["of an old seal", "of the newest seal"])
def test_doctor_looks_at_the_newest_seals_only(where, monkeypatch):
    project = factories.make_project()
    for number in range(4):
        events.record("note.added", project, by=BY, message=f"in seal {number + 1}")
        sealing.seal()
    assert audit.check_newest(2) == []
    tamper(f"UPDATE pipeline_event SET data = '[]' WHERE message = 'in seal {1 if where == 'of an old seal' else 4}'")
    found = [result for result in invariants.check_all() if result.number == "INV-73"]
    assert [str(problem) for problem in audit.check_newest(10)] == found[0].violations != []
    assert (audit.check_newest(2) == []) is (where == "of an old seal")
    assert audit.check_newest(10, events_at_most=1) == audit.check_newest(1)


# -- the bundle ----------------------------------------------------------------------------------------------------


def write_bundle() -> Path:
    """The log as a bundle."""
    path = sealing.audit_repository().with_name("bundle.gz")
    audit.verify(bundle=path)
    return path


def run_script(path: Path, *root: str) -> "subprocess.CompletedProcess[str]":
    """The stand-alone verifier, by a Python that sees nothing of ours."""
    script = ROOT / "docs" / "verify_bundle.py"
    return subprocess.run(
        [sys.executable, "-I", str(script), str(path), *root], capture_output=True, text=True, timeout=60, check=False
    )


def bundle_says() -> str:
    """What the stand-alone verifier finds first; "" when nothing."""
    done = run_script(write_bundle())
    assert done.returncode in (0, 1), done.stderr
    return "" if done.returncode == 0 else done.stdout.strip()


def test_a_bundle_is_verified_without_django_and_postgresql():
    project = factories.make_project()
    events.record("note.added", project, by=BY, message=NOISY)
    sealing.seal()
    tell(project, 2)
    sealing.seal()
    path = write_bundle()
    done = run_script(path)
    root = Seal.objects.get(number=2).root_hash
    assert (done.stdout.strip(), done.returncode, done.stderr) == (f"ok {root}", 0, "")
    assert run_script(path, root).returncode == 0
    assert run_script(path, "0" * 64).returncode == 1
    assert not list(path.parent.glob("*.partial"))


@pytest.mark.parametrize("lines", [[], [{"format": "signalbox.ledger.v1"}]], ids=["no line", "its header"])
def test_a_bundle_that_holds_nothing_says_so(lines, tmp_path):
    path = tmp_path / "empty.gz"
    with gzip.open(path, "wt") as bundle:
        bundle.writelines(json.dumps(line) + "\n" for line in lines)
    done = run_script(path)
    assert (done.returncode, done.stdout) == (1, "it holds nothing\n")


def test_a_bundle_without_a_seal_is_whole_and_says_that_nothing_is_sealed():
    factories.make_run()
    done = run_script(write_bundle())
    assert (done.returncode, done.stdout) == (0, "ok no seal, so no root\n")


@pytest.mark.parametrize("what", ["cut short", "no gzip", "no JSON", "other JSON", "not there"])
def test_what_is_no_bundle_is_said_to_be_none(what, tmp_path):
    tell(factories.make_project(), 3)
    sealing.seal()
    whole = write_bundle().read_bytes()
    path = tmp_path / "handed-over.gz"
    given = {
        "cut short": whole[: len(whole) // 2],
        "no gzip": b"{}",
        "no JSON": gzip.compress(b"hello"),
        "other JSON": gzip.compress(b'{"seal": 7}'),
    }
    if what in given:
        path.write_bytes(given[what])
    done = run_script(path)
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.startswith("this is no whole bundle: ")


def test_a_drop_that_only_an_outsider_told_of_is_not_believed():
    project = factories.make_project()
    tell(project, 4)
    sealing.seal()
    told = dict.fromkeys(KINDS["seal.dropped"].needs, "9") | {"before": "9999-12", "to_cursor": "99-0-0"}
    Api(factories.make_key("admin").text).post(
        "/events/", {"kind": "seal.dropped", "project": project.pk, "data": told}
    )
    sealing.seal()
    path = write_bundle()
    with gzip.open(path, "rt") as bundle:
        lines = [json.loads(line) for line in bundle]
    expected = let_go(lines)
    with gzip.open(path, "wt") as bundle:
        bundle.writelines(json.dumps(line) + "\n" for line in lines)
    assert run_script(path).stdout.strip() == expected
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("ALTER TABLE ledger_seal DISABLE TRIGGER USER")
        cursor.execute("UPDATE ledger_seal SET dropped_at = now() WHERE number = 1")
        cursor.execute("ALTER TABLE ledger_seal ENABLE TRIGGER USER")
    assert any("no tombstone says so" in problem.what for problem in audit.verify().problems)


def test_the_stand_alone_verifier_is_short_and_says_how_it_is_called():
    script = ROOT / "docs" / "verify_bundle.py"
    assert len(script.read_text().splitlines()) <= 60
    done = subprocess.run([sys.executable, "-I", str(script)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("`python verify_bundle.py FILE [ROOT]`")


def test_a_bundle_goes_into_a_folder_that_exists(tmp_path: Path) -> None:
    for path in (tmp_path / "nowhere" / "x", tmp_path):
        with pytest.raises(CommandError, match=f"a folder that exists, not {path}$"):
            call_command("verify-ledger", export=str(path))


def let_go(lines: list[dict[str, Any]]) -> str:
    """Take the first seal's events out as retention would, but for the event that tells it; a note says it instead."""
    first = next(line for line in lines if "seal" in line)
    first["dropped"] = True
    end = [int(part) for part in first["seal"]["to_cursor"].split("-")]
    gone: dict[str, int] = {}
    for line in lines:
        if "event" in line and line["event"][:3] <= end:
            gone[json.loads(line["event"][7])["subject_id"]] = line["event"][4]
    lines[:] = [line for line in lines if "event" not in line or line["event"][:3] > end]
    for line in lines:
        if "stream" in line:
            line["stream"][2] = gone.get(line["stream"][0], 0) + 1
    return "seal 1: events are missing, and no sealed event says that they were dropped"


def edit(lines: list[dict[str, Any]], what: str) -> str:
    """Change a bundle; returns what its verifier must say."""
    at = [number for number, line in enumerate(lines) if "event" in line]
    told = json.loads(lines[at[3]]["event"][7])
    event = lines[at[3]]["event"]
    if what == "text":
        event[7] = event[7].replace('"note ', '"nota ')
        return f"event {told['id']}: its hash is not that of its text"
    if what == "time":
        event[3] += 1
        return f"event {told['id']} is not what seal 1 holds there"
    if what == "delete":
        following = json.loads(lines[at[4]]["event"][7])["id"]
        del lines[at[3]]
        return f"event {following} is not what seal 1 holds there"
    if what == "insert":
        lines.insert(at[4], lines[at[3]])
        return f"event {told['id']} is not what seal 1 holds there"
    if what == "cut":
        del lines[at[-2] :]
        return "seal 2: events are missing, and no sealed event says that they were dropped"
    if what == "let go":
        return let_go(lines)
    if what == "seal":
        next(line for line in lines if "seal" in line)["seal"]["count"] += 1
        return "seal 1: its root is not that of what it holds"
    if what == "head":
        stream = next(line for line in lines if line.get("stream", [""])[0] == told["subject_id"])["stream"]
        stream[3] += 1
        return f"the history of {told['subject_id']} does not reach its head, number {stream[3]}"
    lines[:] = [line for line in lines if line.get("stream", [""])[0] != told["subject_id"]]
    return f"{told['subject_id']} has no head"


@pytest.mark.parametrize("what", ["text", "time", "delete", "insert", "cut", "seal", "head", "no head", "let go"])
def test_a_bundle_that_was_changed_is_found_and_its_first_bad_row_named(what):
    project = factories.make_project()
    tell(project, 4)
    sealing.seal()
    tell(project, 2)
    sealing.seal()
    path = write_bundle()
    with gzip.open(path, "rt") as bundle:
        lines = [json.loads(line) for line in bundle]
    expected = edit(lines, what)
    with gzip.open(path, "wt") as bundle:
        bundle.writelines(json.dumps(line) + "\n" for line in lines)
    done = run_script(path)
    assert (done.stdout.strip(), done.returncode, done.stderr) == (expected, 1, "")
