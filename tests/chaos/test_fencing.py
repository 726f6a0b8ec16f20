"""Who holds a task is decided by the database alone: of many claimers one, whatever clocks say, whoever returns."""

import contextlib
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.ids import new_id, to_uuid
from tests.chaos.fleet import BEAT_SECONDS, LEASE_SECONDS, Fleet, processes
from tests.chaos.test_events import FULL
from tests.chaos.test_stalls import SILENT, SWEEP_SECONDS, program
from tests.kill.stack import Stack

pytestmark = pytest.mark.kill

CLAIMERS = 50
ROUNDS: dict[str, int] = {"ask once": 20 if FULL else 1, "wait": 20 if FULL else 1}
WAIT_SECONDS = 3
SKEW_SECONDS = 7200


@pytest.fixture
def made(stack: Stack) -> Iterator[Callable[..., Fleet]]:
    """Makes fleets, which end with the test."""
    fleets: list[Fleet] = []

    def make(*arguments: Any, **options: Any) -> Fleet:
        fleets.append(Fleet(stack, *arguments, **options))
        return fleets[-1]

    yield make
    for one in fleets:
        one.end()


def registered(work: Fleet, name: str, *, url: str = "", **config: int) -> str:
    """The id of a new worker that only this test plays."""
    given = {"timeout_seconds": 600, "heartbeat_interval": 60, **config}
    status, body = work.ask("/workers/", {"worker_type": "executor", "name": name, "config": given}, url=url)
    assert status == 201, body
    return str(body["id"])


# -- one task, many claimers ---------------------------------------------------------------------------------------


def test_one_of_fifty_claimers_gets_the_task(stack: Stack, made: Callable[..., Fleet]) -> None:
    rounds = [how for how, number in ROUNDS.items() for _round in range(number)]
    work = made({"one": program("shell", SILENT, "nobody-runs-it")}, runs=len(rounds), start=False)
    workers = [registered(work, f"claimer {number}") for number in range(CLAIMERS)]
    for how, run in zip(rounds, work.runs, strict=True):
        if how == "ask once":
            work.ask(f"/runs/{run}/start/", {}, stack.admin_key)
            answers = claim_at_once(work, workers, lambda: None, wait_seconds=0)
        else:
            # They are there first; what they wait for comes later.
            def start(run: str = run) -> None:
                time.sleep(1)
                work.ask(f"/runs/{run}/start/", {}, stack.admin_key)

            answers = claim_at_once(work, workers, start, wait_seconds=WAIT_SECONDS)
        statuses = Counter(status for status, _body in answers)
        print(f"of those who {how}: {dict(statuses)}")
        assert statuses[200] == 1, statuses
        assert statuses[204] + statuses[409] == CLAIMERS - 1, statuses
        [granted] = [body for status, body in answers if status == 200]
        assert granted["lease"]["generation"] == 1
        leases = "SELECT count(*) FROM workers_lease l JOIN pipeline_task t ON t.id = l.task_id WHERE t.run_id = %s"
        assert stack.value(leases, to_uuid(run)) == 1
        done = work.ask(f"/leases/{granted['lease']['id']}/complete/", {"generation": 1}, once=new_id())
        assert done[0] == 200, done
    stack.until(lambda: work.runs_of("succeeded") == len(rounds), 60, "the runs end")


def claim_at_once(
    work: Fleet, workers: list[str], meanwhile: Callable[[], None], *, wait_seconds: int
) -> list[tuple[int, dict[str, Any]]]:
    """What each of the workers is answered when all of them claim at the same moment."""
    answers: list[tuple[int, dict[str, Any]]] = [(0, {})] * len(workers)
    go = threading.Barrier(len(workers) + 1)

    def claim(at: int) -> None:
        go.wait(60)
        answers[at] = work.ask(f"/workers/{workers[at]}/claim/", {"wait_seconds": wait_seconds}, once=new_id())

    threads = [threading.Thread(target=claim, args=(at,), daemon=True) for at in range(len(workers))]
    for thread in threads:
        thread.start()
    go.wait(60)
    meanwhile()
    for thread in threads:
        thread.join(60)
    return answers


# -- clocks --------------------------------------------------------------------------------------------------------

# What Python runs before anything else where this is found as `sitecustomize`: every clock of the process is wrong.
WRONG_CLOCK = """
import os, time
skew = float(os.environ["SKEW_SECONDS"])
def wrong(clock, by):
    return lambda *arguments: clock(*arguments) + by
for name in ("time", "monotonic", "clock_gettime"):
    setattr(time, name, wrong(getattr(time, name), skew))
for name in ("time_ns", "monotonic_ns", "clock_gettime_ns"):
    setattr(time, name, wrong(getattr(time, name), int(skew * 1e9)))
open(os.path.join(os.environ["SKEW_FOLDER"], f"clock-{skew:.0f}-{os.getpid()}"), "w").write(str(time.time()))
"""


def test_a_worker_whose_clock_is_two_hours_wrong_changes_nothing(
    stack: Stack, made: Callable[..., Fleet], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(WRONG_CLOCK)
    skews = {"early": -SKEW_SECONDS, "late": SKEW_SECONDS, "right": 0}
    work = made({name: program("shell", "import time\ntime.sleep(2)\n", f"clock-{name}") for name in skews})
    (began,) = stack.rows("SELECT clock_timestamp()")[0]
    for name, skew in skews.items():
        wrong = {"PYTHONPATH": str(tmp_path), "SKEW_SECONDS": str(skew), "SKEW_FOLDER": str(tmp_path)}
        work.agent(name, tool=name, **wrong)
    stack.until(lambda: work.runs_of("succeeded") == 1, 90, "the run succeeds")
    (ended,) = stack.rows("SELECT clock_timestamp()")[0]
    for skew in skews.values():
        told = [float(path.read_text()) for path in tmp_path.glob(f"clock-{skew:.0f}-*")]
        assert told, "no agent had this clock"
        assert all(abs(at - time.time() - skew) < 600 for at in told)
    rows = stack.rows(
        "SELECT t.key, l.acquired_at, l.renewed_at, l.ended_at, l.end_cause, w.total_execution_seconds, "
        "w.transport_seen_at, w.progress_at, w.tasks_completed, w.tasks_failed, a.output_tail "
        "FROM workers_lease l JOIN pipeline_task t ON t.id = l.task_id JOIN workers_worker w ON w.id = l.worker_id "
        "JOIN pipeline_stepattempt a ON a.id = l.attempt_id WHERE t.project_id = %s",
        to_uuid(work.project),
    )
    # One attempt each, no lease was lost; every time is the server's, and durations are durations.
    assert sorted(row[0] for row in rows) == sorted(skews)
    for name, acquired, renewed, given_back, cause, seconds, reached, moved, done, failed, _tail in rows:
        assert (cause, done, failed) == ("completed", 1, 0), name
        assert began <= acquired <= renewed <= given_back <= ended, name
        assert began <= reached <= ended, name
        assert began <= moved <= ended, name
        assert 2 <= seconds < 120, name
    unwell = "SELECT count(*) FROM pipeline_event e JOIN workers_worker w ON w.id = e.worker_id WHERE w.name LIKE %s "
    assert stack.value(unwell + "AND e.kind IN ('lease.stale_report', 'worker.crashed')", f"{work.name}%") == 0


def test_a_time_that_a_worker_reports_is_kept_as_its_word_and_decides_nothing(
    stack: Stack, made: Callable[..., Fleet]
) -> None:
    work = made({"one": program("shell", SILENT, "nobody-runs-it")})
    worker = registered(work, "skewed")
    lease = work.ask(f"/workers/{worker}/claim/", {}, once=new_id())[1]["lease"]["id"]
    for skew in (-SKEW_SECONDS, SKEW_SECONDS):
        reported = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + skew))
        use = {"resource_type": "api_call", "amount": "0.25", "reported_at": reported}
        status, booked = work.ask("/costs/", {**use, "lease": lease, "generation": 1}, once=new_id())
        assert status == 201, booked
        sql = "SELECT reported_at - recorded_at, clock_timestamp() - recorded_at FROM costs_costrecord WHERE id = %s"
        [(off, age)] = stack.rows(sql, to_uuid(booked["id"]))
        assert abs(off.total_seconds() - skew) < 60
        assert 0 <= age.total_seconds() < 60
    assert work.ask(f"/leases/{lease}/complete/", {"generation": 1}, once=new_id())[0] == 200


# -- partitions ----------------------------------------------------------------------------------------------------


class Wire(threading.Thread):
    """A TCP proxy to the server that can be cut: what is open breaks off, what is new is turned away."""

    def __init__(self, port: int) -> None:
        super().__init__(daemon=True)
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = port
        self.url = f"http://127.0.0.1:{self.server.getsockname()[1]}"
        self.is_cut = threading.Event()
        self.ended = threading.Event()

    def run(self) -> None:
        """Until its end."""
        while not self.ended.is_set():
            with contextlib.suppress(OSError):
                client, _address = self.server.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), client:
            if self.is_cut.is_set():
                return
            with socket.create_connection(("127.0.0.1", self.port), 10) as server:
                others = {client: server, server: client}
                while not self.is_cut.is_set():
                    for one in select.select(list(others), [], [], 0.05)[0]:
                        if not (got := one.recv(65536)):
                            return
                        others[one].sendall(got)

    def end(self) -> None:
        """Nothing is carried any more."""
        self.is_cut.set()
        self.ended.set()
        with contextlib.suppress(OSError):
            self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()


@pytest.fixture
def wire(stack: Stack) -> Iterator[Wire]:
    """A line to the server."""
    made = Wire(stack.port)
    made.start()
    yield made
    made.end()


def test_a_worker_that_comes_back_from_a_partition_is_refused_with_all_it_brings(
    stack: Stack, made: Callable[..., Fleet], wire: Wire
) -> None:
    work = made({"one": program("shell", SILENT, "nobody-runs-it")})
    lost = registered(work, "behind the wire", url=wire.url, timeout_seconds=2, heartbeat_interval=1)
    claim = work.ask(f"/workers/{lost}/claim/", {}, url=wire.url, once=new_id())[1]
    lease, base = claim["lease"], claim["checkout"]["commit"]
    held = {"id": lease["id"], "generation": 1}
    assert work.ask(f"/workers/{lost}/heartbeat/", {"leases": [held]}, url=wire.url)[0] == 200
    wire.is_cut.set()
    assert work.ask(f"/workers/{lost}/heartbeat/", {"leases": [held]}, url=wire.url)[0] == 0

    # The sweep gives the task back, and another one takes it.
    other = registered(work, "at the server")

    def taken() -> dict[str, Any] | None:
        status, body = work.ask(f"/workers/{other}/claim/", {"wait_seconds": 2}, once=new_id())
        assert status in (200, 204), body
        return body if status == 200 else None

    second = stack.until(taken, 60, "the task is given to somebody else")
    assert second["task"]["id"] == claim["task"]["id"]
    assert second["lease"]["generation"] == 2

    wire.is_cut.clear()
    diff = "diff --git a/x b/x\nnew file mode 100644\n--- /dev/null\n+++ b/x\n@@ -0,0 +1 @@\n+late\n"
    quoted = {"lease": lease["id"], "generation": 1}
    brings: dict[str, tuple[str, dict[str, Any]]] = {
        "its patch": ("/patches/", {**quoted, "base_commit": base, "diff_text": diff}),
        "its cost": ("/costs/", {**quoted, "resource_type": "api_call", "amount": "9.99"}),
        "its success": (f"/leases/{lease['id']}/complete/", {"generation": 1}),
        "its failure": (f"/leases/{lease['id']}/fail/", {"generation": 1, "outcome": "task_failed"}),
        "its wish for more": (f"/leases/{lease['id']}/extend/", {"generation": 1, "amount": "1"}),
        "a guess at the present generation": (f"/leases/{lease['id']}/complete/", {"generation": 2}),
    }
    for what, (path, body) in brings.items():
        status, problem = work.ask(path, body, url=wire.url, once=new_id())
        assert (status, problem.get("code")) == (409, "stale_claim"), (what, problem)
    status, problem = work.ask(f"/workers/{lost}/heartbeat/", {"leases": [held]}, url=wire.url)
    assert (status, problem.get("code")) == (410, "worker_finished")

    # Nothing of it was written but that it was refused; the task is the other's.
    project = to_uuid(work.project)
    assert stack.value("SELECT count(*) FROM ledger_patch WHERE project_id = %s", project) == 0
    assert stack.value("SELECT count(*) FROM costs_costrecord WHERE project_id = %s", project) == 0
    refused = "SELECT count(*) FROM pipeline_event WHERE kind = 'lease.stale_report' AND subject_id = %s"
    assert stack.value(refused, to_uuid(lease["id"])) >= len(brings) - 1
    done = work.ask(f"/leases/{second['lease']['id']}/complete/", {"generation": 2}, once=new_id())
    assert done[0] == 200, done
    stack.until(lambda: work.runs_of("succeeded") == 1, 60, "the run succeeds")


def test_an_agent_that_is_cut_off_ends_its_tool_before_its_lease_ends_and_comes_back_as_another(
    stack: Stack, made: Callable[..., Fleet], wire: Wire
) -> None:
    work = made({"one": program("shell", SILENT, "cut-off")})
    work.agent("cut off", url=wire.url)
    worker, lease = work.worker("cut off"), work.lease("cut off")
    stack.until(lambda: processes("cut-off"), 30, "its tool runs")
    wire.is_cut.set()
    stack.until(lambda: not processes("cut-off"), LEASE_SECONDS + 30, "it ends its tool by itself")
    expires = "SELECT expires_at - clock_timestamp(), ended_at FROM workers_lease WHERE id = %s"
    [(left, ended_at)] = stack.rows(expires, to_uuid(lease))
    assert left.total_seconds() > 0
    assert ended_at is None
    state = "SELECT state FROM workers_worker WHERE id = %s"
    limit = LEASE_SECONDS + SWEEP_SECONDS + 30
    stack.until(lambda: stack.value(state, to_uuid(worker)) == "crashed", limit, "the server gives it up")
    wire.is_cut.clear()
    again = stack.until(lambda: (found := work.worker("cut off")) != worker and found, 60, "it registers anew")
    second = work.lease("cut off")
    rows = stack.rows("SELECT worker_id, generation FROM workers_lease WHERE id = %s", to_uuid(second))
    assert rows == [(to_uuid(again), 2)]
    print(
        f"a lease of {LEASE_SECONDS} s with a beat each {BEAT_SECONDS} s; {left.total_seconds():.1f} s of it were left"
    )
