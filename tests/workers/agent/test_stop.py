"""A tool ends when it should, with everything it started, and the report says why."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.agent.conftest import FAST, python

STUBBORN = r"""
import os, pathlib, signal, subprocess, sys, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", '''
import signal, time
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(300)
'''], stdout=subprocess.PIPE)
child.stdout.readline()
pathlib.Path(sys.argv[1]).write_text("%d %d" % (os.getpid(), child.pid))
time.sleep(300)
"""

ESCAPEE = r"""
import os, pathlib, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        os.environ.clear()
        pathlib.Path(sys.argv[1] + ".part").write_text(str(os.getpid()))
        os.rename(sys.argv[1] + ".part", sys.argv[1])
        time.sleep(300)
    os._exit(0)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""

POLITE = r"""
import pathlib, signal, sys, time
def heard(number, frame):
    print("heard", number, flush=True)
    sys.exit(3)
signal.signal(signal.SIGINT, heard)
pathlib.Path("keep.txt").write_text("half done")
pathlib.Path(sys.argv[1]).write_text("up")
while True:
    time.sleep(0.01)
"""


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for_file(path: Path) -> str:
    """The file's text once it is there."""
    end = time.monotonic() + 15
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < end, f"{path} was not written"
        time.sleep(0.01)
    return path.read_text()


def test_a_tool_past_its_timeout_is_killed_with_children_that_ignore_signals(server, make_claim, work_once, tmp_path):
    pids = tmp_path / "pids"
    work_once(make_claim([*python(STUBBORN), str(pids)], task={"timeout_seconds": 1.5}))
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"], failed["exit_code"]) == ("task_failed", "timeout_exceeded", -1)
    assert failed["error_message"] == "worker-bee timed out after 1.5 s"
    assert 1 < failed["duration_seconds"] < 8
    assert [is_alive(int(pid)) for pid in pids.read_text().split()] == [False, False]


def test_a_process_that_left_the_session_is_killed_when_the_tool_ends(server, make_claim, work_once, tmp_path):
    pid = tmp_path / "pid"
    work_once(make_claim([*python(ESCAPEE), str(pid)]))
    assert server.effects["complete"][0]["exit_code"] == 0
    assert not is_alive(int(pid.read_text()))


def test_a_stop_is_acknowledged_before_the_attempt_ends_cancelled(server, make_claim, work_once, tmp_path):
    up = tmp_path / "up"

    def beat(call):
        return 200, {"directive": "stop" if call.body["leases"] and up.exists() else "continue", "leases": []}

    server.on_heartbeat = beat
    work_once(make_claim([*python(POLITE), str(up)]))
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"], failed["exit_code"]) == ("cancelled", "stop_requested", 3)
    assert "heard 2" in failed["output_tail"], "SIGINT comes first, so that a tool can end its turn"
    names = [server.name_of(call.path) for call in server.calls]
    stopping = [c for c in server.named("heartbeat") if c.body["leases"] and c.body["leases"][0]["stopping"]]
    assert stopping
    assert server.calls.index(stopping[0]) < names.index("fail")
    assert not server.effects["patches"]


def test_a_stale_claim_kills_the_tool_and_discards_the_result(server, make_claim, work_once, tmp_path):
    pids = tmp_path / "pids"

    def beat(call):
        if call.body["leases"] and pids.exists():
            return 409, {"code": "stale_claim", "detail": "Stale claim: generation 7 is not current"}
        return 200, {"directive": "continue", "leases": []}

    server.on_heartbeat = beat
    began = time.monotonic()
    assert work_once(make_claim([*python(STUBBORN), str(pids)]), timing=replace(FAST, kill_after_seconds=60)) == 0
    assert time.monotonic() - began < 20, "a lost lease is no reason to be polite"
    assert not any(is_alive(int(pid)) for pid in pids.read_text().split())
    assert not server.effects["fail"]
    assert not server.effects["complete"]
    assert not server.effects["patches"]


def test_a_worker_that_is_finished_discards_its_work_and_registers_anew(server, make_claim, start, tmp_path):
    pids = tmp_path / "pids"

    def beat(call):
        if "/W1/" in call.path and pids.exists():
            return 410, {"code": "worker_finished", "detail": "Worker W1 is crashed; exit"}
        return 200, {"directive": "continue", "leases": []}

    server.on_heartbeat = beat
    server.claims += [make_claim([*python(STUBBORN), str(pids)]), make_claim(python("open('new', 'w').write('x\\n')"))]
    start()
    server.wait_for(lambda: server.effects["complete"])
    assert len(server.effects["workers"]) == 2
    assert [call.path for call in server.named("complete")] == ["/api/v1/leases/L2/complete/"]
    assert not server.effects["fail"]
    assert not any(is_alive(int(pid)) for pid in pids.read_text().split())


@pytest.mark.parametrize("path", ["claim", "heartbeat"])
def test_an_idle_worker_that_is_finished_registers_anew(server, start, path):
    server.faults[path].append(lambda call: (410, {"code": "worker_finished", "detail": "exit"}))
    start()
    server.wait_for(lambda: len(server.effects["workers"]) == 2)
    server.wait_for(lambda: any("/W2/claim/" in call.path for call in server.calls))


def test_without_confirmed_heartbeats_the_tool_ends_before_its_lease(server, make_claim, work_once, tmp_path):
    server.registration["timeout_seconds"] = 6
    pids = tmp_path / "pids"
    last: list[float] = []

    def beat(call):
        if not pids.exists():
            last[:] = [time.monotonic()]
            return 200, {"directive": "continue", "leases": []}
        return 503, {"code": "down"}

    server.on_heartbeat = beat
    gone_at: list[float] = []

    def failed(call):
        gone_at.append(time.monotonic())
        assert not any(is_alive(int(pid)) for pid in pids.read_text().split())
        return 409, {"code": "stale_claim", "detail": "Stale claim"}

    server.faults["fail"].append(failed)
    timing = replace(FAST, terminate_after_seconds=15, kill_after_seconds=25, trust_margin_seconds=3)
    work_once(make_claim([*python(STUBBORN), str(pids)]), timing=timing)
    assert 1.5 < gone_at[0] - last[0] < 6, "25 s of escalation are drawn together before the lease's end"
    assert server.named("fail")[0].body["outcome"] == "infra_lost"
    assert server.named("fail")[0].body["error_code"] == "trust_expired"
    assert not server.effects["patches"]


def test_no_tool_starts_before_its_lease_is_confirmed(server, make_claim, work_once, tmp_path):
    started = tmp_path / "started"

    def beat(call):
        if call.body["leases"]:
            # Late enough that only the missing confirmation can hold the tool back.
            end = time.monotonic() + 15
            while not list(tmp_path.glob("work/*/tree/keep.txt")) and time.monotonic() < end:
                time.sleep(0.01)
            time.sleep(0.5)
            return 409, {"code": "stale_claim", "detail": "The answer to the claim was long under way"}
        return 200, {"directive": "continue", "leases": []}

    server.on_heartbeat = beat
    work_once(make_claim(["touch", str(started)]))
    assert not started.exists()
    assert not server.effects["complete"]
    assert not server.effects["fail"]


def test_told_to_end_the_agent_stops_its_tool_reports_and_shuts_down(server, make_claim, start, tmp_path):
    up = tmp_path / "up"
    server.claims.append(make_claim([*python(POLITE), str(up)]))
    runner = start()
    wait_for_file(up)
    runner.agent.tell_to_end()
    assert runner.join() == 0
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"]) == ("cancelled", "worker_shutdown")
    assert "heard 2" in failed["output_tail"]
    assert [server.name_of(call.path) for call in server.calls if call.key][-2:] == ["fail", "shutdown"]


def test_told_twice_the_agent_kills_its_tool_at_once(server, make_claim, start, tmp_path):
    pids = tmp_path / "pids"
    server.claims.append(make_claim([*python(STUBBORN), str(pids)]))
    runner = start(timing=replace(FAST, terminate_after_seconds=60, kill_after_seconds=60))
    wait_for_file(pids)
    runner.agent.tell_to_end()
    runner.agent.tell_to_end()
    assert runner.join(20) == 130
    assert not any(is_alive(int(pid)) for pid in pids.read_text().split())


def test_a_drain_lets_the_task_finish_and_then_shuts_down(server, make_claim, start, tmp_path):
    up = tmp_path / "up"
    go = tmp_path / "go"
    program = (
        f"import os, time; open({str(up)!r}, 'w').write('up')\nwhile not os.path.exists({str(go)!r}): time.sleep(0.01)"
    )
    server.claims += [make_claim(python(program)), make_claim(python("pass"))]
    server.on_heartbeat = lambda call: (200, {"directive": "drain" if up.exists() else "continue", "leases": []})
    server.faults["complete"].append(lambda call: (server.effect("complete", call)[0], {"directive": "drain"}))
    runner = start()
    wait_for_file(up)
    beats = len(server.named("heartbeat"))
    server.wait_for(lambda: len(server.named("heartbeat")) > beats + 2)
    go.touch()
    assert runner.join() == 0
    assert len(server.effects["complete"]) == 1
    assert len(server.claims) == 1, "no second task is claimed"
    assert [call.body["reason"] for call in server.named("shutdown")] == ["Drained"]


def test_a_paused_worker_finishes_its_task_but_claims_no_other(server, start, make_claim):
    paused = [True]
    server.on_heartbeat = lambda call: (200, {"directive": "pause" if paused[0] else "continue", "leases": []})
    server.faults["claim"].append(lambda call: (409, {"code": "invalid_move", "detail": "Worker is paused"}))
    server.claims.append(make_claim(python("pass")))
    start()
    server.wait_for(lambda: len(server.named("heartbeat")) > 4)
    asked = len(server.named("claim"))
    beats = len(server.named("heartbeat"))
    server.wait_for(lambda: len(server.named("heartbeat")) > beats + 4)
    assert len(server.named("claim")) == asked
    paused[0] = False
    server.wait_for(lambda: server.effects["complete"])


def test_heartbeats_say_what_the_tool_does(server, make_claim, work_once, tmp_path):
    up = tmp_path / "up"

    def beat(call):
        talks = call.body["leases"] and call.body["leases"][0]["progress"].get("output_bytes", 0) >= 5
        if talks and call.body["activity"] == "in_tool":
            up.touch()
        return 200, {"directive": "continue", "leases": []}

    server.on_heartbeat = beat
    program = f"import os, time; print('12345', flush=True)\nwhile not os.path.exists({str(up)!r}): time.sleep(0.01)"
    work_once(make_claim(python(program)))
    assert server.effects["complete"]
    [lease] = next(call.body["leases"] for call in server.named("heartbeat") if call.body["leases"])
    assert (lease["id"], lease["generation"], lease["stopping"]) == ("L1", 7, False)
    assert os.path.exists(up)


def test_a_stop_that_comes_after_the_tool_has_ended_costs_no_work(server, make_claim, start, tmp_path):
    def late(call):
        runner.agent.tell_to_end()
        return server.effect("patches", call)

    server.faults["patches"].append(late)
    server.claims.append(make_claim(python("open('new', 'w').write('x\\n')")))
    runner = start()
    assert runner.join() == 0
    assert server.effects["complete"][0]["patch_ids"] == ["P1"]
    assert not server.effects["fail"]
