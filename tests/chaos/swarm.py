"""A swarm of workers over HTTP: killed, frozen, late, each of their messages delivered twice, PostgreSQL killed too.

`python -m tests.chaos.swarm DIRECTORY` reads DIRECTORY/plan.json, lets the workers loose on a product that runs, and
writes each worker's journal and DIRECTORY/report.json. It judges nothing: tests/chaos/books.py compares the journals
with the database.
"""

import contextlib
import json
import os
import random
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psycopg

from pipeline import embedded
from pipeline.supervisor import dies_with
from workers.agent.client import Answer, Client, Patience, Refusal, Unreachable

TWINS_AT_ONCE = 0.5
LOST_ON_PURPOSE = 0.03
ANSWER_SECONDS = 20.0
FAULTS_OVER = 0.9
"""The last faults come when this share of the tasks is done: the end is for what they left behind."""


@dataclass(frozen=True)
class Plan:
    """What is done to whom. `late` is the share of attempts whose worker sleeps past its lease and reports then."""

    url: str
    key: str
    data: str
    project: str
    tasks: int
    workers: int
    kills: int
    freezes: int
    server_kills: int
    lease_seconds: int
    late_seconds: float
    late: float
    seed: str
    patience_seconds: float


@dataclass
class Report:
    """What was done to them."""

    seconds: float = 0.0
    workers_started: int = 0
    workers_killed: int = 0
    workers_frozen: int = 0
    server_killed: int = 0
    longest_without_server: float = 0.0


# -- a worker ------------------------------------------------------------------------------------------------------


class Journal:
    """What a worker knows, line by line: it outlives the worker that is killed."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", buffering=1)

    def note(self, what: str, *facts: Any) -> None:
        """One line."""
        self._file.write(json.dumps([what, *facts]) + "\n")


class Twice(Client):
    """The agent's client on a network that delivers every POST twice: at once, or the second behind the first.

    Two answers to one key that say different things are noted as `differ`.
    """

    def __init__(self, url: str, key: str, *, dice: random.Random, journal: Journal) -> None:
        super().__init__(url, key, patience=Patience(base_seconds=0.1, cap_seconds=2.0), timeout_seconds=ANSWER_SECONDS)
        self.dice, self.journal = dice, journal

    def post_once(
        self, path: str, body: Mapping[str, Any], *, key: str | None = None, wait_seconds: float = 0.0
    ) -> Answer:
        """Both deliveries; the answer is the first one that has something to say. Raises as the first one did."""
        outcomes: list[Answer | Refusal | Unreachable] = [Unreachable("not sent")] * 2

        def deliver(at: int) -> None:
            try:
                outcomes[at] = super(Twice, self).post_once(path, body, key=key, wait_seconds=wait_seconds)
            except (Refusal, Unreachable) as problem:
                outcomes[at] = problem

        if self.dice.random() < TWINS_AT_ONCE:
            twin = threading.Thread(target=deliver, args=(1,), daemon=True)
            twin.start()
            deliver(0)
            twin.join()
        else:
            deliver(0)
            deliver(1)
        if key is not None:
            self._compare(path, outcomes)
        for outcome in outcomes:
            if isinstance(outcome, Answer) and outcome.status != 204:
                return outcome
        for outcome in outcomes:
            if isinstance(outcome, Answer):
                return outcome
        raise next((one for one in outcomes if isinstance(one, Refusal)), outcomes[0])  # type: ignore[misc]

    def _compare(self, path: str, outcomes: list[Answer | Refusal | Unreachable]) -> None:
        """An answer with an effect is the only one of its key, whoever hears it; "nothing yet" has none."""
        said = [one for one in outcomes if isinstance(one, Answer) and one.status != 204]
        if len(said) == 2 and (said[0].status, said[0].body) != (said[1].status, said[1].body):
            self.journal.note("differ", path, said[0].body, said[1].body)
        refused = [one for one in outcomes if isinstance(one, Refusal)]
        if said and refused:
            self.journal.note("differ", path, said[0].body, str(refused[0]))


class Worker:
    """One worker process: claims, works for a moment or sleeps past its lease, and reports what it did."""

    def __init__(self, plan: Plan, folder: Path, number: int) -> None:
        self.plan, self.folder, self.number = plan, folder, number
        self.dice = random.Random(f"{plan.seed} worker {number}")
        self.journal = Journal(folder / f"worker-{number}.log")
        self.client = Twice(plan.url, plan.key, dice=self.dice, journal=self.journal)

    def stopped(self) -> bool:
        """Whether everything is done."""
        return (self.folder / "stop").exists()

    def serve(self) -> None:
        """Until everything is done; a worker that the server has given up comes back as another one."""
        while not self.stopped():
            with contextlib.suppress(Unreachable):
                pk = self._register()
                while not self.stopped() and self._claim(pk):
                    pass
                if self.stopped():
                    self._leave(pk)

    def _post(self, path: str, body: Mapping[str, Any], wait_seconds: float = 0.0) -> Answer:
        return self.client.post(path, body, give_up=self.stopped, wait_seconds=wait_seconds)

    def _register(self) -> str:
        config = {"timeout_seconds": self.plan.lease_seconds, "heartbeat_interval": 1}
        body = {"worker_type": "executor", "name": f"swarm {self.number}", "config": config}
        pk = str(self._post("/workers/", body).body["id"])
        self.journal.note("registered", pk)
        return pk

    def _leave(self, pk: str) -> None:
        try:
            self.client.post(f"/workers/{pk}/shutdown/", {"reason": "all is done"}, deadline=time.monotonic() + 10)
        except Refusal as refusal:
            self.journal.note("not left", pk, refusal.code)
        else:
            self.journal.note("left", pk)

    def _claim(self, pk: str) -> bool:
        """Claim, and work on what was given, or beat. False when this worker is over."""
        try:
            answer = self._post(f"/workers/{pk}/claim/", {"wait_seconds": 1}, wait_seconds=1)
            if answer.status == 204:
                self._beat(pk, [])
        except Refusal as refusal:
            if refusal.means_finished:
                self.journal.note("over", pk, refusal.code)
                return False
            # A delivery of which it never heard was given a task: that lease runs out.
            self.journal.note("no claim", pk, refusal.code)
            time.sleep(0.5)
            return True
        if answer.status != 204:
            self._work(pk, answer.body)
        return True

    def _beat(self, pk: str, leases: list[dict[str, Any]]) -> None:
        """One heartbeat, which is not tried again."""
        with contextlib.suppress(Unreachable):
            self.client.post_once(f"/workers/{pk}/heartbeat/", {"leases": leases, "activity": "in_tool"})

    def _work(self, pk: str, claim: Mapping[str, Any]) -> None:
        lease, generation = claim["lease"]["id"], claim["lease"]["generation"]
        self.journal.note("claimed", lease, generation, claim["task"]["id"], pk)
        if self.dice.random() < self.plan.late:
            self.journal.note("late", lease)
            time.sleep(self.plan.late_seconds)
        else:
            time.sleep(self.dice.uniform(0, 0.05))
            with contextlib.suppress(Refusal):
                self._beat(pk, [{"id": lease, "generation": generation, "progress": {"steps": 1}}])
        outcome = "infra_lost" if self.dice.random() < LOST_ON_PURPOSE else "success"
        amount = f"{self.dice.randrange(1, 3_000_000) / 1e6:.6f}"
        seconds = f"{self.dice.randrange(1, 90_000_000) / 1e6:.6f}"
        body: dict[str, Any] = {
            "generation": generation,
            "duration_seconds": seconds,
            "usage": [{"resource_type": "api_call", "amount": amount}],
        }
        verb = "complete"
        if outcome != "success":
            verb = "fail"
            body |= {"outcome": outcome, "error_code": "on_purpose", "error_message": "its machine is taken away"}
        # Before it is sent: whoever is killed behind this line may have been heard.
        self.journal.note("reported", lease, outcome, amount, seconds)
        try:
            self._post(f"/leases/{lease}/{verb}/", body)
        except Refusal as refusal:
            self.journal.note("answered", lease, refusal.code)
        except Unreachable:
            pass
        else:
            self.journal.note("answered", lease, "ok")


# -- who does it to them -------------------------------------------------------------------------------------------


class Swarm:
    """The workers, and the faults that come over them in step with the tasks that are done."""

    def __init__(self, plan: Plan, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.dice = random.Random(f"{plan.seed} swarm")
        self.place = embedded.place(Path(plan.data))
        self.workers: dict[int, int] = {}
        self.frozen: dict[int, float] = {}
        self.report = Report()
        self._connection: psycopg.Connection[Any] | None = None
        self._looked_at = 0.0
        self._done = 0

    def rage(self) -> None:
        """Until every task has ended. Raises RuntimeError when that takes too long."""
        began = time.monotonic()
        for _number in range(self.plan.workers):
            self.start_worker()
        try:
            while self.done() < self.plan.tasks:
                if time.monotonic() - began > self.plan.patience_seconds:
                    raise RuntimeError(f"{self._done} of {self.plan.tasks} tasks ended in {time.monotonic() - began}s")
                time.sleep(self.dice.uniform(0.01, 0.05))
                self.thaw()
                if self.is_due(self.report.workers_killed, self.plan.kills):
                    self.kill()
                if self.is_due(self.report.workers_frozen, self.plan.freezes):
                    self.freeze()
                if self.is_due(self.report.server_killed, self.plan.server_kills):
                    self.kill_server()
        finally:
            self.report.seconds = round(time.monotonic() - began, 2)
            (self.folder / "report.json").write_text(json.dumps(asdict(self.report), indent=1))
        (self.folder / "stop").touch()
        self.see_off()

    def done(self) -> int:
        """How many tasks have ended, as far as the database can be asked right now."""
        now = time.monotonic()
        if now - self._looked_at > 0.2:
            self._looked_at = now
            with contextlib.suppress(psycopg.Error):
                rows = self._ask(
                    "SELECT count(*) FROM pipeline_task WHERE project_id = %s AND completed_at IS NOT NULL"
                )
                self._done = rows[0][0]
        return self._done

    def _ask(self, sql: str) -> list[Any]:
        try:
            if self._connection is None:
                self._connection = psycopg.connect(
                    host=str(self.place.postgres_sockets),
                    port=5432,
                    user=embedded.ROLE,
                    dbname=embedded.DATABASE,
                    autocommit=True,
                )
            return self._connection.execute(sql, [self.plan.project]).fetchall()
        except psycopg.Error:
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            raise

    def is_due(self, happened: int, planned: int) -> bool:
        """Whether one more of `planned` faults is due at what is done."""
        return happened < min(planned, planned * self._done / (self.plan.tasks * FAULTS_OVER))

    def start_worker(self) -> None:
        """One more, killed with this process."""
        self.report.workers_started += 1
        number = self.report.workers_started
        pid = fork(lambda: Worker(self.plan, self.folder, number).serve())
        self.workers[pid] = number

    def kill(self) -> None:
        """kill -9 of any worker; another one starts."""
        pid = self.dice.choice(list(self.workers))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        del self.workers[pid]
        self.frozen.pop(pid, None)
        self.report.workers_killed += 1
        self.start_worker()

    def freeze(self) -> None:
        """Any worker stands still past its lease, and goes on as if nothing had happened."""
        pid = self.dice.choice(list(self.workers))
        os.kill(pid, signal.SIGSTOP)
        self.frozen[pid] = time.monotonic() + self.plan.late_seconds
        self.report.workers_frozen += 1

    def thaw(self, *, at_once: bool = False) -> None:
        """Those whose time is over go on."""
        for pid, until in list(self.frozen.items()):
            if at_once or time.monotonic() > until:
                os.kill(pid, signal.SIGCONT)
                del self.frozen[pid]

    def kill_server(self) -> None:
        """kill -9 of PostgreSQL; whoever looks after it starts it again. Returns when it answers."""
        began = time.monotonic()
        os.kill(int((self.place.cluster / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
        self.report.server_killed += 1
        while True:
            time.sleep(0.05)
            with contextlib.suppress(psycopg.Error):
                self._ask("SELECT %s")
                break
            if time.monotonic() - began > 60:
                raise RuntimeError("PostgreSQL did not come back within a minute")
        self.report.longest_without_server = max(self.report.longest_without_server, round(time.monotonic() - began, 2))

    def see_off(self) -> None:
        """Wait for the workers, the late ones too. Raises RuntimeError when one died, which none may."""
        self.thaw(at_once=True)
        end = time.monotonic() + self.plan.late_seconds + ANSWER_SECONDS + 30
        while self.workers:
            for pid, number in list(self.workers.items()):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    del self.workers[pid]
                    if status:
                        raise RuntimeError(f"worker {number} ended with status {status}")
            if time.monotonic() > end:
                raise RuntimeError(f"{len(self.workers)} workers do not end")
            time.sleep(0.02)


def fork(work: Callable[[], None]) -> int:
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


def main() -> int:
    """Exit code 0 when every task has ended and the workers are gone."""
    folder = Path(sys.argv[1]).absolute()
    Swarm(Plan(**json.loads((folder / "plan.json").read_text())), folder).rage()
    return 0


if __name__ == "__main__":
    sys.exit(main())
