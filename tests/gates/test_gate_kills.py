"""A runner that is killed at any of its steps: the gate is run again or ends as error, and nothing is passed by it."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.db import connection

from gates import live, runner, running
from gates.models import GateRun
from ledger import git
from pipeline.clock import db_now
from pipeline.models import Event
from tests.conftest import Threads
from tests.factories import BY, make_gate, make_gate_run
from tests.flows.house import House, piece
from tests.gates.test_attacks import _marked as marked

pytestmark = [
    pytest.mark.kill, pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")
]  # fmt: skip

ROOT = Path(__file__).resolve().parents[2]
POINTS = ["gate.started", "gate.copied", "gate.executed", "gate.judged"]
PROGRAM = "import django; django.setup(); from gates import running; running.run_pending()"


@pytest.fixture(autouse=True)
def no_copy_stays() -> Iterator[None]:
    """What a killed runner leaves behind would be swept a day later; the next test looks for it now."""
    yield
    for place in Path(django_settings.GATES_DIR).glob("run-*"):
        runner.remove(place)


def runner_process(settings: Any, fault: str = "") -> "subprocess.Popen[bytes]":
    """A runner as a process of its own, on the database of this test."""
    database = settings.DATABASES["default"]
    url = f"postgres://{database['USER']}@/{connection.settings_dict['NAME']}?host={database['HOST']}"
    if os.environ.get("DATABASE_URL"):
        url = os.environ["DATABASE_URL"].rsplit("/", 1)[0] + "/" + connection.settings_dict["NAME"]
    else:
        url += f"&port={database['PORT']}"
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "pipeline.settings", "DATABASE_URL": url}
    environment |= {"FAULT": fault} if fault else {}
    return subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment)


def until(holds: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What it is once it is something. Fails the test when that takes too long."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.05)
    return found


def waiting_house(tmp_path: Path, command: list[str]) -> House:
    """A house whose one gate waits for a runner."""
    house = House(tmp_path, [piece("a")], gates={"words": {"command": command}})
    house.deliver({"a.txt": "a\n"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gates.running.run_pending", lambda: 0)
        patch.setattr("gates.running._next", lambda: None)
        house.drain()
    assert [run.state for run in house.gate_runs()] == ["pending"]
    return house


def recovers(house: House) -> None:
    """What happens once the runner has been silent for long: error, run again, passed, landed."""
    (run,) = house.gate_runs()
    assert (run.state, run.verdict) == ("running", "unknown")
    house.drain()
    assert [run.state for run in house.gate_runs()] == ["running"]
    GateRun.objects.filter(pk=run.pk).update(seen_at=db_now() - timedelta(seconds=50))
    house.drain()
    assert [(run.state, run.error_kind) for run in house.gate_runs()] == [("error", "infra"), ("passed", "")]
    assert house.run.state == "succeeded"
    house.must_hold()


@pytest.mark.parametrize("point", POINTS)
def test_a_runner_killed_at_any_step_leaves_nothing_passed_and_the_gate_is_run_again(
    tmp_path: Path, settings: Any, point: str
) -> None:
    house = waiting_house(tmp_path, ["true"])
    with runner_process(settings, point) as process:
        assert process.wait(120) == 137
    recovers(house)


def test_a_runner_killed_while_the_command_runs_leaves_no_process_and_its_log_was_seen(
    tmp_path: Path, settings: Any
) -> None:
    word = f"mark-{os.getpid()}-kill"
    script = "import time; print('first line'); time.sleep(600)"
    house = waiting_house(tmp_path, ["python", "-c", script, word])
    with runner_process(settings) as process:
        (run,) = house.gate_runs()
        # Written by that process, read by this one, while the command runs.
        assert until(lambda: live.page(run.pk, 0).pieces)[0] == (1, "first line\n")
        run.refresh_from_db()
        assert run.state == "running"
        assert marked(word)
        process.send_signal(signal.SIGKILL)
    until(lambda: not marked(word))
    house.gates["words"].edit(by=BY, command=["true"])
    GateRun.objects.filter(pk=run.pk).update(seen_at=db_now() - timedelta(seconds=50))
    house.drain()
    assert {run.state for run in house.gate_runs()} <= {"error", "passed"}
    assert house.run.state == "succeeded"
    house.must_hold()


def test_several_runners_run_each_gate_exactly_once(tmp_path: Path, threads: Threads) -> None:
    house = House(tmp_path, [piece("a")])
    tree = git.tree_of(house.project.mirror, house.head)
    runs = [make_gate_run(make_gate(house.project, command=["true"]), tree_hash=tree) for _ in range(6)]
    outcomes = threads.at_once(*[running.run_pending] * 3)
    assert sum(outcome.result() for outcome in outcomes) == len(runs)
    assert set(GateRun.objects.values_list("state", flat=True)) == {"passed"}
    for run in runs:
        assert Event.objects.filter(kind="gate_run.started", subject_id=run.pk).count() == 1
        assert Event.objects.filter(kind="gate_run.passed", subject_id=run.pk).count() == 1
