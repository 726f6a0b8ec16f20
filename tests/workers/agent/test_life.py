"""The agent as a program: how it starts, waits, is told to end, crashes, and leaves nothing behind."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.agent.conftest import FAST, KEY, python
from tests.workers.agent.stub import StubServer
from tests.workers.agent.test_stop import ESCAPEE, POLITE, STUBBORN, is_alive, wait_for_file
from workers.agent.adapters import Registry
from workers.agent.adapters.shell import Shell
from workers.agent.loop import Agent, Settings

ROOT = Path(__file__).parents[3]


@pytest.fixture
def program(server, tmp_path):
    """Starts `python -m workers.agent`; killed after the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **environment: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "workers.agent",
                "--url",
                server.url,
                "--workdir",
                str(tmp_path / "work"),
                *arguments,
            ],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "SIGNALBOX_KEY": KEY, **environment},
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def test_the_program_registers_with_what_it_was_told(server, program):
    process = program("--once", "--wait", "0", "--name", "bee", "--tools", "a,b", "--capabilities", "gpu")
    _, said = process.communicate(timeout=20)
    assert process.returncode == 0
    [registered] = server.effects["workers"]
    assert registered["worker_type"] == "executor"
    assert (registered["name"], registered["tools"], registered["capabilities"]) == ("bee", ["a", "b"], ["gpu"])
    assert registered["config"] == {}
    assert registered["metadata"]["pid"] == process.pid
    assert server.named("claim")[0].body == {"capabilities": ["gpu"], "max": 1, "wait_seconds": 0}
    assert KEY.split("_", 2)[2] not in said


def test_sigterm_stops_the_tool_reports_and_shuts_down(server, program, make_claim, tmp_path):
    up = tmp_path / "up"
    server.claims.append(make_claim([*python(POLITE), str(up)]))
    process = program("--wait", "0")
    wait_for_file(up)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert server.effects["fail"][0]["outcome"] == "cancelled"
    assert len(server.effects["shutdown"]) == 1


def test_sigterm_breaks_off_a_long_wait_for_work(server, program):
    waiting = []

    def long_poll(call):
        waiting.append(call)
        time.sleep(8)
        return 204, None

    server.answer = _outside_the_lock(server, long_poll)
    process = program("--wait", "20")
    server.wait_for(lambda: waiting)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 0
    assert time.monotonic() - began < 5
    assert len(server.effects["shutdown"]) == 1


def _outside_the_lock(server: StubServer, slow):
    """The stub's answer, but claims are answered by `slow`, which holds nobody else up."""
    usual = server.answer
    return lambda call: slow(call) if call.path.endswith("/claim/") else usual(call)


@pytest.mark.parametrize("ended_by", [signal.SIGKILL])
def test_nothing_of_the_tool_outlives_an_agent_that_was_killed(server, program, make_claim, tmp_path, ended_by):
    stubborn, escaped = tmp_path / "stubborn", tmp_path / "escaped"
    both = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {ESCAPEE!r}, {str(escaped)!r}]).wait()\n"
    server.claims.append(make_claim([*python(both + STUBBORN), str(stubborn)]))
    process = program("--wait", "0")
    pids = [int(pid) for path in (stubborn, escaped) for pid in wait_for_file(path).split()]
    assert len(pids) == 3
    assert all(map(is_alive, pids))
    process.send_signal(ended_by)
    process.wait(10)
    end = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not any(map(is_alive, pids))


def test_a_frozen_agent_does_not_keep_its_tool_alive_past_the_lease(server, program, make_claim, tmp_path):
    server.registration["timeout_seconds"] = 3
    pids = tmp_path / "pids"
    server.claims.append(make_claim([*python(STUBBORN), str(pids)]))
    process = program("--wait", "0")
    tool, child = map(int, wait_for_file(pids).split())
    process.send_signal(signal.SIGSTOP)
    frozen_at = time.monotonic()
    try:
        while (is_alive(tool) or is_alive(child)) and time.monotonic() < frozen_at + 8:
            time.sleep(0.02)
        assert time.monotonic() - frozen_at < 3.5
        assert not is_alive(tool)
        assert not is_alive(child)
    finally:
        process.send_signal(signal.SIGCONT)


def test_a_key_that_is_refused_ends_the_program_with_a_sentence(server, program):
    server.faults["workers"].append(lambda call: (401, {"code": "permission_denied", "detail": "Unknown key"}))
    process = program()
    _, said = process.communicate(timeout=20)
    assert process.returncode == 2
    assert "Unknown key" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "environment", "complaint"),
    [
        ([], {"SIGNALBOX_KEY": ""}, "a key is needed"),
        (["--tool", "hammer"], {}, "there is no adapter 'hammer'"),
        (["--url", "localhost:8000"], {}, "'localhost:8000' is no address of a server"),
        (["--url", "127.0.0.1"], {}, "neither http:// nor https://"),
        (["--url", "ftp://host"], {}, "neither http:// nor https://"),
        (["--url", "http://"], {}, "it names no host"),
        (["--url", "http://:8000"], {}, "it names no host"),
        (["--url", "http://host:99999"], {}, "Port out of range"),
        (["--url", "http://host:0"], {}, "there is no port 0"),
        (["--url", "http://[::1"], {}, "Invalid IPv6 URL"),
        (["--url", "http://host/?a=b"], {}, "it has a question mark"),
        ([], {"SIGNALBOX_STOP_KILL_SECONDS": "never"}, "SIGNALBOX_STOP_KILL_SECONDS must be a number"),
    ],
)
def test_nonsense_on_the_command_line_is_said_at_once(program, arguments, environment, complaint):
    process = program(*arguments, **environment)
    _, said = process.communicate(timeout=20)
    assert process.returncode in (1, 2)
    assert complaint in said


def nowhere(call):
    """What a proxy without a server, or another site, says."""
    return 404, ["Not found"]


def test_an_address_without_this_api_is_given_up_at_the_start_with_a_hint(server, start, caplog):
    server.answer = nowhere
    runner = start(timing=replace(FAST, strange_seconds=0.5))
    assert runner.join(10) == 2
    assert len(server.effects["workers"]) == 0
    assert "answered 404, but not as this API does; is --url the address of a Signalbox server" in caplog.text
    assert "gave no other answer for 0.5 s" in caplog.text
    assert "Traceback" not in caplog.text


def test_a_server_that_is_away_in_between_is_no_wrong_address(server, start, make_claim):
    server.faults["workers"] += [nowhere, nowhere, "refuse"] * 4
    server.claims.append(make_claim(python("pass")))
    assert start(timing=replace(FAST, strange_seconds=0.4), once=True).join(20) == 0
    assert len(server.effects["complete"]) == 1


def test_once_it_was_registered_odd_answers_are_borne(server, start):
    timing = replace(FAST, strange_seconds=0.1)
    runner = start(timing=timing)
    server.wait_for(lambda: server.named("claim"))
    server.faults["workers"] += [nowhere] * 6
    server.faults["claim"] += [nowhere] * 6
    server.faults["heartbeat"].append(lambda call: (410, {"code": "worker_finished"}))
    server.wait_for(lambda: len(server.effects["workers"]) == 2)
    assert runner.exit_code is None


def test_who_is_told_to_end_at_a_wrong_address_ends(server, start):
    server.answer = nowhere
    runner = start()
    time.sleep(0.2)
    runner.agent.tell_to_end()
    assert runner.join(10) == 0


def test_a_worker_that_waits_survives_a_server_that_is_away(server, start, make_claim):
    start()
    server.wait_for(lambda: server.named("claim"))
    server.faults["claim"] += ["refuse"] * 5
    server.faults["heartbeat"] += ["refuse"] * 5
    server.claims.append(make_claim(python("pass")))
    server.wait_for(lambda: server.effects["complete"])
    assert len(server.effects["workers"]) == 1


def test_a_server_that_is_away_for_less_than_a_lease_costs_no_work(server, start, make_claim, tmp_path):
    server.registration["timeout_seconds"] = 6
    up, go = tmp_path / "up", tmp_path / "go"
    program = (
        f"import os, time\nopen({str(up)!r}, 'w').write('x'); open('new', 'w').write('x')\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)"
    )
    server.claims.append(make_claim(python(program)))
    start()
    wait_for_file(up)
    server.faults["heartbeat"] += ["refuse", "drop"] * 4
    server.faults["patches"] += ["refuse", "drop"]
    server.wait_for(lambda: not server.faults["heartbeat"])
    go.touch()
    server.wait_for(lambda: server.effects["complete"])
    assert len(server.effects["patches"]) == 1
    assert len({call.key for call in server.named("patches")}) == 1
    assert not server.effects["fail"]


def test_an_unexpected_error_is_reported_as_a_crash_without_secrets(server, make_claim, tmp_path):
    class Broken(Shell):
        def prepare(self, directory, scratch):
            raise RuntimeError(f"adapter is broken {KEY}")

    registry = Registry()
    registry.register(Broken)
    server.claims.append(make_claim(python("pass")))
    agent = Agent(Settings(url=server.url, key=KEY, workdir=tmp_path / "work", wait_seconds=0), registry)
    assert agent.run() == 1
    [crash] = server.effects["crash"]
    assert crash["message"] == "RuntimeError: adapter is broken [redacted]"
    assert "in prepare" in crash["trace"]
    assert KEY not in crash["trace"]
    assert not server.effects["shutdown"]


def test_the_agent_imports_nothing_of_django_or_of_the_house():
    script = (
        "import sys, workers.agent.__main__\n"
        "house = ('django', 'pipeline', 'ledger', 'gates', 'costs', 'workers.models')\n"
        "print([name for name in sys.modules if name.startswith(house)])"
    )
    ran = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"
