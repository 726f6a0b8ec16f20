"""A storm over the event log: writers, readers that are killed, and a PostgreSQL that restarts and crashes.

`python -m tests.chaos.storm DIRECTORY --events 8000` starts a PostgreSQL of its own in DIRECTORY, lets the processes
loose on it and writes what it found to DIRECTORY/report.json. It judges nothing; tests/chaos/test_events.py does.
"""

import argparse
import contextlib
import ctypes  # noqa: F401 - a server's child looks it up as another user, who may not be able to read it
import json
import mmap
import os
import random
import signal
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pipeline import embedded
from pipeline.ids import new_id
from pipeline.supervisor import dies_with

SUBJECTS = 200
PAGE = 200
ROLLED_BACK = 0.15
EARLY_ID = 0.3
LENGTHS = (1, 1, 1, 2, 3, 5, 8, 20)
NAIVE = "naive"
SHOWN = 5


@dataclass(frozen=True)
class Subject:
    """What an event is about: only its words are asked for, no row is needed."""

    pk: str

    def noun(self) -> str:
        """The word of a subject that is not a row."""
        return "note"

    def correlation(self) -> dict[str, str | None]:
        """Nothing that it belongs to."""
        return {}


class _Undo(Exception):
    """A transaction that is rolled back on purpose."""


# -- writers -------------------------------------------------------------------------------------------------------


class Progress:
    """How many events each writer has had acknowledged; shared between the processes."""

    def __init__(self, writers: int) -> None:
        self._memory = mmap.mmap(-1, 8 * writers)
        self._writers = writers

    def put(self, writer: int, number: int) -> None:
        """This writer's count."""
        struct.pack_into("q", self._memory, 8 * writer, number)

    def total(self) -> int:
        """All of them."""
        return sum(struct.unpack_from(f"{self._writers}q", self._memory))


def data_of(kind: str, writer: int) -> dict[str, Any]:
    """Who wrote it, and whatever an event of this kind must tell."""
    from pipeline.kinds import KINDS

    return {**dict.fromkeys(KINDS[kind].needs, "x"), "writer": writer}


def write(folder: Path, writer: int, events_each: int, subjects: list[Subject], seed: str, progress: Progress) -> None:
    """Commit `events_each` events in transactions of random length, and note what became of each transaction.

    A line of the log is [what became of it, ids]: `acknowledged`, `undone`, or `unknown` when the server went away.
    """
    from django.db import DatabaseError, InterfaceError, connection, transaction

    from pipeline import events
    from pipeline.kinds import KINDS

    dice = random.Random(f"{seed} writer {writer}")
    kinds = sorted(set(KINDS) - set(events.table()))
    by = events.Actor("worker", "", f"writer {writer}")
    done = 0
    with (folder / f"writer-{writer}.log").open("a", buffering=1) as log:
        while done < events_each:
            size = min(dice.choice(LENGTHS), events_each - done)
            # Sorted, as every verb locks its rows: two writers may wait for each other, never in a circle.
            about = sorted(dice.choices(subjects, k=size), key=lambda subject: subject.pk)
            undone, early, in_one, pauses = (
                dice.random() < ROLLED_BACK,
                dice.random() < EARLY_ID,
                dice.random() < 0.3,
                [dice.random() < 0.05 and dice.uniform(0, 0.02) for _subject in about],
            )
            ids: list[str] = []
            try:
                with transaction.atomic():
                    if early:
                        # As a request with an Idempotency-Key: its transaction has its id long before its first event.
                        with connection.cursor() as cursor:
                            cursor.execute("SELECT pg_current_xact_id()")
                        time.sleep(dice.uniform(0, 0.01))
                    made = []
                    for subject, pause in zip(about, pauses, strict=True):
                        if in_one:
                            kind = dice.choice(kinds)
                            made.append(events.compose(kind, subject, by=by, data=data_of(kind, writer)))
                        else:
                            kind = dice.choice(kinds)
                            event = events.record(kind, subject, by=by, data=data_of(kind, writer))
                            ids.append(event.pk)
                        if pause:
                            time.sleep(pause)
                    if made:
                        events.append(made)
                        ids += [event.pk for event in made]
                    if undone:
                        raise _Undo
            except _Undo:
                log.write(json.dumps(["undone", ids]) + "\n")
            except (DatabaseError, InterfaceError):
                # The commit may have gone through before the server went away: nobody can say.
                log.write(json.dumps(["unknown", ids]) + "\n")
                with contextlib.suppress(DatabaseError, InterfaceError):
                    connection.close()
                time.sleep(0.1)
            else:
                done += size
                log.write(json.dumps(["acknowledged", ids]) + "\n")
                progress.put(writer, done)


# -- readers -------------------------------------------------------------------------------------------------------


def pages(folder: Path) -> list[Path]:
    """What a reader has stored, in its order: each page holds the cursor behind it and its events."""
    return sorted(folder.glob("page-*.json"))


def read(folder: Path, *, naive: bool = False) -> None:
    """Follow the log from the last stored place until `stop` exists and nothing more comes.

    What was read and the cursor behind it become durable together, by one rename: killed at any moment, the reader goes
    on where it was. The naive one goes by `seq >` alone, as a reader of a plain bigserial would.
    """
    from django.db import DatabaseError, InterfaceError, connection

    from pipeline.events import START, Cursor, Event

    folder.mkdir(exist_ok=True)
    stored = pages(folder)
    place = Cursor.parse(json.loads(stored[-1].read_text())["cursor"]) if stored else START
    number = len(stored)
    while True:
        ending = (folder.parent / "stop").exists()
        try:
            if naive:
                found = list(Event.objects.filter(seq__gt=place.seq).order_by("seq")[:PAGE])
            else:
                found = list(Event.objects.after(place, PAGE))
        except (DatabaseError, InterfaceError):
            with contextlib.suppress(DatabaseError, InterfaceError):
                connection.close()
            time.sleep(0.05)
            continue
        if not found:
            if ending:
                return
            time.sleep(0.02)
            continue
        place = found[-1].cursor
        rows = [[event.pk, event.subject_id, event.stream_seq] for event in found]
        draft = folder / "draft"
        draft.write_text(json.dumps({"cursor": str(place), "rows": rows}))
        draft.replace(folder / f"page-{number:08}.json")
        number += 1


# -- the storm -----------------------------------------------------------------------------------------------------


@dataclass
class Told:
    """What one reader was told, beside what there was to tell: counts, and the first few of what is wrong."""

    read: int
    lost: int
    doubled: int
    out_of_order: int
    first_wrong: list[str] = field(default_factory=list)
    first_out_of_order: list[str] = field(default_factory=list)


@dataclass
class Report:
    """What the storm found."""

    seconds: float = 0.0
    acknowledged: int = 0
    undone: int = 0
    unknown: int = 0
    stored: int = 0
    events_per_second: float = 0.0
    readers_killed: int = 0
    server_stopped: int = 0
    server_crashed: int = 0
    acknowledged_but_missing: list[str] = field(default_factory=list)
    undone_but_stored: list[str] = field(default_factory=list)
    stored_by_nobody: list[str] = field(default_factory=list)
    broken_chains: list[str] = field(default_factory=list)
    readers: dict[str, Told] = field(default_factory=dict)


class Storm:
    """The processes of one storm. All of them end with the process that made it."""

    def __init__(self, folder: Path, *, events: int, writers: int, readers: int, seed: str) -> None:
        self.folder, self.seed = folder, seed
        self.each = -(-events // writers)
        self.progress = Progress(writers)
        self.writers: dict[int, int] = {}
        self.readers: dict[str, int] = {}
        self.names = [f"reader-{number}" for number in range(readers)]
        self.count = writers
        self.dice = random.Random(f"{seed} storm")
        self.report = Report()
        self.servers = embedded.Embedded(folder / "data", valkey=False, die_with_parent=True)

    def fork(self, work: Callable[[], None]) -> int:
        """Run `work` in a child that is killed when this process ends; its process id."""
        arrange = dies_with(os.getpid())
        pid = os.fork()
        if pid:
            return pid
        try:
            if arrange:
                arrange()
            work()
        except BaseException as problem:
            print(f"process {os.getpid()} died of {problem!r}", file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)

    def rage(self) -> None:
        """Let everybody loose, kill and restart, until every writer has had its events acknowledged."""
        began = time.monotonic()
        subjects = [Subject(new_id()) for _number in range(SUBJECTS)]
        for name in [*self.names, NAIVE]:
            self.start_reader(name)
        for writer in range(self.count):
            work = lambda writer=writer: write(  # noqa: E731
                self.folder, writer, self.each, subjects, self.seed, self.progress
            )
            self.writers[self.fork(work)] = writer
        restarts: Iterator[tuple[float, signal.Signals]] = iter([(1 / 3, signal.SIGINT), (2 / 3, signal.SIGQUIT)])
        next_at, sign = next(restarts)
        whole = self.each * self.count
        while self.running_writers():
            time.sleep(self.dice.uniform(0.1, 0.5))
            name = self.dice.choice(self.names)
            os.kill(self.readers[name], signal.SIGKILL)
            os.waitpid(self.readers[name], 0)
            self.start_reader(name)
            self.report.readers_killed += 1
            if self.progress.total() >= whole * next_at:
                self.restart(sign)
                next_at, sign = next(restarts, (2.0, sign))
        self.report.seconds = round(time.monotonic() - began, 2)

    def start_reader(self, name: str) -> None:
        """Start a reader where its stored cursor is."""
        self.readers[name] = self.fork(lambda: read(self.folder / name, naive=name == NAIVE))

    def running_writers(self) -> bool:
        """Whether one still writes. Raises RuntimeError when one died, which none may."""
        for pid in list(self.writers):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                if status:
                    raise RuntimeError(f"writer {self.writers[pid]} ended with status {status}")
                del self.writers[pid]
        return bool(self.writers)

    def restart(self, sign: signal.Signals) -> None:
        """End PostgreSQL by this signal (SIGINT: in order, SIGQUIT: as a crash), and start it again."""
        pid = int((self.servers.place.cluster / "postmaster.pid").read_text().split()[0])
        os.kill(pid, sign)
        for child in list(self.servers.children):
            if child.pid == pid:
                child.wait(60)
        self.servers.heal()
        if sign == signal.SIGQUIT:
            self.report.server_crashed += 1
        else:
            self.report.server_stopped += 1

    def calm(self, patience_seconds: float = 60.0) -> None:
        """Let the readers read to the end. Raises RuntimeError when they do not get there."""
        from django.db import connection

        end = time.monotonic() + patience_seconds
        with connection.cursor() as cursor:
            while True:
                cursor.execute("SELECT max(xid) < pg_snapshot_xmin(pg_current_snapshot()) FROM pipeline_event")
                if cursor.fetchone()[0]:
                    break
                if time.monotonic() > end:
                    raise RuntimeError("a transaction of nobody stays open: the readers cannot pass it")
                time.sleep(0.1)
        (self.folder / "stop").touch()
        while self.readers:
            for name, pid in list(self.readers.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    if status:
                        raise RuntimeError(f"{name} ended with status {status}")
                    del self.readers[name]
            if time.monotonic() > end:
                raise RuntimeError(f"{', '.join(self.readers)} did not get to the end")
            time.sleep(0.02)

    # -- what came of it -------------------------------------------------------------------------------------------

    def look(self) -> Report:
        """Compare what the writers know, what the database holds and what each reader stored."""
        from pipeline.chain import Link, first_broken
        from pipeline.events import Event

        report = self.report
        became: dict[str, set[str]] = {"acknowledged": set(), "undone": set(), "unknown": set()}
        for path in self.folder.glob("writer-*.log"):
            for line in path.read_text().splitlines():
                outcome, ids = json.loads(line)
                became[outcome].update(ids)
        rows = list(
            Event.objects.filter(subject_type="note")
            .order_by("subject_id", "stream_seq")
            .values_list("pk", "subject_id", "stream_seq", "prev_hash", "hash", "canonical")
        )
        stored = {row[0]: (row[1], row[2]) for row in rows}
        report.acknowledged, report.undone, report.unknown = (len(became[name]) for name in became)
        report.stored = len(stored)
        report.events_per_second = round(report.stored / report.seconds, 1)
        report.acknowledged_but_missing = sorted(became["acknowledged"] - stored.keys())
        report.undone_but_stored = sorted(became["undone"] & stored.keys())
        report.stored_by_nobody = sorted(stored.keys() - became["acknowledged"] - became["unknown"])
        links: dict[str, list[Link]] = {}
        for _pk, subject, *link in rows:
            links.setdefault(subject, []).append(Link(*link))
        for subject, chain in links.items():
            broken = first_broken(chain)
            if broken is not None:
                report.broken_chains.append(f"{subject} at {broken}")
        for name in [*self.names, NAIVE]:
            report.readers[name] = self.told(name, stored)
        return report

    def told(self, name: str, stored: dict[str, tuple[str, int]]) -> Told:
        """What this reader stored, beside what the database holds."""
        read: list[list[Any]] = []
        for path in pages(self.folder / name):
            read += [row for row in json.loads(path.read_text())["rows"] if row[0] in stored]
        counts = Counter(pk for pk, _subject, _number in read)
        lost = [pk for pk in stored if pk not in counts]
        doubled = [pk for pk, number in counts.items() if number > 1]
        first_wrong = [f"lost {pk}: {stored[pk][0]} number {stored[pk][1]}" for pk in lost[:SHOWN]]
        first_wrong += [f"{counts[pk]} times {pk}" for pk in doubled[:SHOWN]]
        last: dict[str, int] = {}
        disorder = []
        for pk, subject, number in read:
            if number <= last.get(subject, 0) and counts[pk] == 1:
                disorder.append(f"number {number} of {subject} came behind its number {last[subject]}")
            last[subject] = max(number, last.get(subject, 0))
        return Told(len(read), len(lost), len(doubled), len(disorder), first_wrong, disorder[:SHOWN])


def main() -> int:
    """Exit code 0 when the storm has ended and its report is written."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.storm", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--events", type=int, default=8_000)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--seed", default="1")
    asked = parser.parse_args()
    folder: Path = asked.folder.absolute()
    data = folder / "data"
    embedded.make_directory(data)
    for name in [name for name in os.environ if name.startswith("SIGNALBOX_")] + ["DATABASE_URL"]:
        os.environ.pop(name, None)
    os.environ |= {"SIGNALBOX_DATA": str(data), "SIGNALBOX_ROLE": "worker", "CELERY_BROKER_URL": "memory://"}
    os.environ |= {"SIGNALBOX_LOG_LEVEL": "ERROR", "DJANGO_SETTINGS_MODULE": "pipeline.settings"}
    embedded.decide(data)
    storm = Storm(folder, events=asked.events, writers=asked.writers, readers=asked.readers, seed=asked.seed)
    storm.servers.start()
    try:
        import django

        django.setup()
        from django.core.management import call_command
        from django.db import connections

        call_command("migrate", interactive=False, verbosity=0)
        # A connection must not be shared with the children.
        connections.close_all()
        storm.rage()
        storm.calm()
        report = storm.look()
        connections.close_all()
        (folder / "report.json").write_text(json.dumps(asdict(report), indent=1))
    finally:
        storm.servers.leave()
    return 0


if __name__ == "__main__":
    sys.exit(main())
