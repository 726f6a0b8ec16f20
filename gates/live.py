"""The output of a running gate while it runs: written in pieces by its runner, read by whoever watches, from anywhere.

Rows carry it, so that the runner and the web process need not be on one machine. Of an output that comes too fast only
the end is written, so 1 GB of it costs KEPT pieces of PIECE_CHARS, in the runner and in the database.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple
from uuid import UUID

from django.db import close_old_connections, connection

from gates.models import GateOutput, GateRun
from pipeline.clock import db_now
from pipeline.ids import to_uuid

log = logging.getLogger(__name__)

PIECE_CHARS = 64 * 1024
KEPT = 16
"""Pieces kept of a run: at most a MiB."""
PAUSE_SECONDS = 0.2
"""Between two pieces: five rows a second at most, however much comes."""
HOUR = timedelta(hours=1)
PAGE = 8
"""Pieces in one answer to a reader."""

# Only the runner that holds the run writes to it, and only while it runs.
_WRITE = """
INSERT INTO gates_gateoutput (gate_run_id, number, text)
SELECT id, %(number)s, %(text)s FROM gates_gaterun WHERE id = %(run)s AND state = 'running' AND runner = %(runner)s
"""
_FORGET = "DELETE FROM gates_gateoutput WHERE gate_run_id = %(run)s AND number <= %(number)s"


class LiveLog(threading.Thread):
    """Takes a run's output and writes it in the background: a database that is away costs pieces, never the run."""

    def __init__(self, gate_run: GateRun, runner: str) -> None:
        super().__init__(daemon=True, name=f"log-{gate_run.pk}")
        self._run, self._runner = gate_run, runner
        self._lock = threading.Lock()
        self._waiting = ""
        self._left_out = 0
        self._number = 0
        self._more, self._over = threading.Event(), threading.Event()

    def take(self, text: str) -> None:
        """Hand over the next piece of output; never waits."""
        with self._lock:
            self._waiting += text
            if (over := len(self._waiting) - PIECE_CHARS) > 0:
                self._waiting = self._waiting[over:]
                self._left_out += over
        self._more.set()

    def run(self) -> None:
        """Write what comes until `end`."""
        try:
            while not self._over.is_set():
                self._more.wait()
                self._write()
                self._over.wait(PAUSE_SECONDS)
            self._write()
        finally:
            connection.close()

    def end(self) -> None:
        """Write what is left, and stop."""
        self._over.set()
        self._more.set()
        self.join(timeout=10)

    def _write(self) -> None:
        self._more.clear()
        with self._lock:
            text, left_out = self._waiting, self._left_out
            self._waiting, self._left_out = "", 0
        if not text:
            return
        if left_out:
            text = f"[… {left_out} characters not shown …]\n{text}"
        self._number += 1
        given: dict[str, UUID | str | int] = {
            "run": to_uuid(self._run.pk),
            "runner": self._runner,
            "number": self._number,
            "text": text,
        }
        try:
            with connection.cursor() as cursor:
                cursor.execute(_WRITE, given)
                if self._number > KEPT:
                    cursor.execute(_FORGET, {**given, "number": self._number - KEPT})
        except Exception as problem:  # the log is for watching; the run goes on without it
            log.warning("a piece of the output of gate run %s was not written: %s", self._run.pk, problem)
            close_old_connections()


class LogOpening(NamedTuple):
    """What Django says of somebody who may watch: who it is, which run, and the number behind which it goes on."""

    principal: str
    gate_run: str
    after: int


def frame(number: int, text: str) -> bytes:
    """A piece as one message of a stream."""
    return f"id: {number}\ndata: {json.dumps({'text': text}, ensure_ascii=False)}\n\n".encode()


def last_frame(state: str) -> bytes:
    """The last message of a stream: the run's state. It has no id, so that the client's stays."""
    return f"event: end\ndata: {json.dumps({'state': state})}\n\n".encode()


class Page(NamedTuple):
    """What a reader gets: the next pieces as (number, text), and the run's state when there will be no more."""

    pieces: Sequence[tuple[int, str]]
    ended: str


def page(gate_run_id: str, after: int) -> Page:
    """The pieces behind number `after`, oldest first. Pieces that are no longer kept are passed over: the text of the
    first one then says so.
    """
    # The state first: what is written before a run ends is there when its end is seen.
    state = GateRun.objects.filter(pk=gate_run_id).values_list("state", flat=True).first()
    rows = GateOutput.objects.filter(gate_run=gate_run_id, number__gt=after).order_by("number")
    found = list(rows.values_list("number", "text")[:PAGE])
    if found and found[0][0] > after + 1:
        found[0] = (found[0][0], f"[… earlier output is no longer kept …]\n{found[0][1]}")
    over = state is None or state in GateRun.ENDED
    return Page(found, (state or "gone") if over and len(found) < PAGE else "")


def text_so_far(gate_run: GateRun) -> str:
    """All pieces that are kept of a run that has not ended, as one text."""
    rows = GateOutput.objects.filter(gate_run=gate_run).order_by("number").values_list("text", flat=True)
    return "".join(rows)


def forget(limit: int = 5000) -> int:
    """Delete up to `limit` pieces of runs that ended an hour ago or longer; answers how many."""
    old = GateOutput.objects.filter(gate_run__state__in=GateRun.ENDED, created_at__lt=db_now() - HOUR)
    return GateOutput.objects.filter(pk__in=list(old.values_list("pk", flat=True)[:limit])).delete()[0]
