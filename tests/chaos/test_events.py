"""The event log under kills, restarts and crashes: nothing lost, nothing twice, each stream in its order."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline import embedded
from tests.kill.stack import ROOT, environment

pytestmark = pytest.mark.kill

FULL = os.environ.get("CHAOS") == "full"
EVENTS = 100_000 if FULL else 8_000
SEED = os.environ.get("CHAOS_SEED", "1")


@pytest.fixture(scope="module")
def report() -> Iterator[dict[str, Any]]:
    """What one storm found; it is read by every test here."""
    folder = Path(tempfile.mkdtemp(prefix="signalbox-storm-"))
    # As root the server runs as another user, which has to get in.
    folder.chmod(0o711)
    command = [sys.executable, "-m", "tests.chaos.storm", str(folder), "--events", str(EVENTS), "--seed", SEED]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr[-6000:]
        found = json.loads((folder / "report.json").read_text())
        print({name: value for name, value in found.items() if name != "readers"})
        for name, told in found["readers"].items():
            print(name, {key: value for key, value in told.items() if isinstance(value, int)})
        yield found
    finally:
        place = embedded.place(folder / "data")
        for path in {place.home, place.sockets, folder} - {None}:
            shutil.rmtree(path, ignore_errors=True)


def followers(report: dict[str, Any]) -> dict[str, Any]:
    """The readers that keep the commit-order cursor."""
    return {name: told for name, told in report["readers"].items() if name != "naive"}


def test_the_storm_was_one(report: dict[str, Any]) -> None:
    assert report["acknowledged"] >= EVENTS
    assert report["undone"] > 0
    assert (report["server_stopped"], report["server_crashed"]) == (1, 1)
    assert report["readers_killed"] > 10


def test_what_was_acknowledged_is_stored_and_what_was_undone_is_not(report: dict[str, Any]) -> None:
    assert report["acknowledged_but_missing"] == []
    assert report["undone_but_stored"] == []
    assert report["stored_by_nobody"] == []


def test_a_reader_that_is_killed_and_comes_back_gets_every_event_once(report: dict[str, Any]) -> None:
    told = followers(report)
    assert len(told) == 3
    found = {name: (one["lost"], one["doubled"], one["first_wrong"]) for name, one in told.items()}
    assert found == dict.fromkeys(told, (0, 0, [])), found
    assert {one["read"] for one in told.values()} == {report["stored"]}


def test_a_reader_gets_each_stream_in_its_order(report: dict[str, Any]) -> None:
    told = followers(report)
    found = {name: one["out_of_order"] for name, one in told.items()}
    assert found == dict.fromkeys(told, 0), {name: one["first_out_of_order"] for name, one in told.items()}


def test_every_chain_holds_without_a_gap(report: dict[str, Any]) -> None:
    assert report["broken_chains"] == []


def test_a_reader_that_goes_by_the_number_alone_loses_events(report: dict[str, Any]) -> None:
    """The proof that this harness sees a loss: the same storm, read as one reads a plain bigserial."""
    naive = report["readers"]["naive"]
    assert naive["lost"] > 0
    assert naive["read"] + naive["lost"] == report["stored"]
