"""From commit to client over the event stream: `python -m tests.bench.bench_sse [--clients N] [--rate N] …`.

Starts the real web process on the database of DATABASE_URL, or on a server of its own, connects the clients from a
process of their own, writes events at the rate asked for, and prints latencies, memory and CPU. The baseline is what no
stream over a polled log can beat: one connection that asks the same SQL as often, in a program that does nothing else.
"""

import argparse
import array
import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline import embedded

ROOT = Path(__file__).resolve().parent.parent.parent
PATH = "/api/v1/events/stream/"
PER_KEY = 10
TICK_SECONDS = 0.15
SETTLE_SECONDS = 2.0
PAGE_KB = os.sysconf("SC_PAGE_SIZE") / 1024
# The last part of the cursor of every message that is an event.
MESSAGE = re.compile(rb"^id: [0-9]+-[0-9]+-([0-9]+)\nevent: ", re.MULTILINE)
TICKS = os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Exit code 0 when every client got every event."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.bench_sse", description=__doc__)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument("--rate", type=float, default=100, help="events a second")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--listen", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.listen:
        return asyncio.run(listen(json.loads(asked.listen)))
    with database(), tempfile.TemporaryDirectory(prefix="signalbox-bench-sse-") as folder:
        figures = run(asked, Path(folder))
    print(table(figures))
    if asked.json:
        asked.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if figures["lost"] == figures["doubled"] == 0 else 1


@contextmanager
def database() -> Iterator[None]:
    """Django on the database of DATABASE_URL, or on a server of our own that is gone at the end."""
    import django

    given = os.environ.get("DATABASE_URL")
    data = Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    # As root the servers run as another user, which has to reach this directory.
    data.chmod(0o711 if os.geteuid() == 0 else 0o700)
    (data / "static").mkdir()
    os.environ |= {"SIGNALBOX_DATA": str(data), "SIGNALBOX_LOG_LEVEL": "ERROR", "CELERY_BROKER_URL": "memory://"}
    os.environ["DJANGO_SETTINGS_MODULE"] = "pipeline.settings"
    servers = None
    if not given:
        servers = embedded.Embedded(data, postgres=True, valkey=False, die_with_parent=True)
        embedded.decide(data)
    try:
        django.setup()
        from django.core.management import call_command

        if servers is not None:
            servers.start()
        call_command("migrate", interactive=False, verbosity=0)
        yield
    finally:
        if servers is not None:
            servers.leave()
        place = embedded.place(data)
        for path in {place.home, place.sockets, place.data} - {None}:
            shutil.rmtree(path, ignore_errors=True)


def run(asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The figures of one run."""
    from pipeline.events import SYSTEM
    from pipeline.models import ApiKey, Event
    from tests import factories

    subject = factories.make_project()
    number = (asked.clients + PER_KEY - 1) // PER_KEY
    keys = [ApiKey.objects.make(role="viewer", project=subject, name=f"sse {n}", by=SYSTEM).text for n in range(number)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "uvicorn", "pipeline.asgi:application", "--host", "127.0.0.1", "--port", str(port)]
    web = subprocess.Popen(
        [*command, "--timeout-graceful-shutdown", "2"], cwd=ROOT, env={**os.environ, "SIGNALBOX_ROLE": "web"}
    )
    listener = None
    try:
        until_ready(web, port, keys[0])
        warm_up(port, keys[0])
        empty = resident_kb(web.pid)
        told = {"port": port, "keys": keys, "clients": asked.clients, "file": str(folder / "arrivals")}
        listener = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.bench_sse", "--listen", json.dumps(told)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert listener.stdin
        assert listener.stdout
        assert listener.stdout.readline() == b"connected\n"
        time.sleep(SETTLE_SECONDS)
        idle = resident_kb(web.pid)
        baseline = Baseline()
        cpu, others, began = cpu_seconds(web.pid), cpu_seconds(listener.pid), time.monotonic()
        committed, memory = write(asked, subject, web.pid)
        seconds = time.monotonic() - began
        cpu, others = cpu_seconds(web.pid) - cpu, cpu_seconds(listener.pid) - others
        time.sleep(SETTLE_SECONDS)
        baseline.stop()
        busy = resident_kb(web.pid)
        listener.stdin.close()
        listener.wait(60)
    finally:
        for process in (listener, web):
            if process is not None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(20)
                process.kill()
                process.wait()
    numbers = dict(Event.objects.filter(pk__in=committed).values_list("seq", "pk"))
    at = {seq: committed[pk] for seq, pk in numbers.items()}
    late, lost, doubled = judge(folder / "arrivals", at, asked.clients)
    return {
        "clients": asked.clients,
        "events": len(committed),
        "events_per_second": round(len(committed) / seconds, 1),
        "lost": lost,
        "doubled": doubled,
        "stream_ms": percentiles(late),
        "baseline_ms": percentiles([t - at[seq] for seq, t in baseline.arrivals.items() if seq in at]),
        "web_cpu_percent": round(100 * cpu / seconds, 1),
        "clients_cpu_percent": round(100 * others / seconds, 1),
        "web_kb_empty": round(empty),
        "kb_per_client_idle": round((idle - empty) / asked.clients, 1),
        "kb_per_client_after": round((busy - empty) / asked.clients, 1),
        "web_mb_over_time": [round(kb / 1024, 1) for kb in memory],
        "load": [round(one, 1) for one in os.getloadavg()],
        "cores": os.cpu_count(),
    }


def until_ready(web: "subprocess.Popen[bytes]", port: int, key: str) -> None:
    """Wait until the web process answers. Raises TimeoutError after a minute, or when it has ended."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/api/v1/me/", headers={"Authorization": f"Bearer {key}"})
    end = time.monotonic() + 60
    while time.monotonic() < end and web.poll() is None:
        with suppress(OSError), urllib.request.urlopen(request, timeout=5):
            return
        time.sleep(0.1)
    raise TimeoutError("the web process does not answer")


def warm_up(port: int, key: str) -> None:
    """Open some streams at once and close them: what a first one loads for all of them is not theirs."""

    def listen_once(_number: int) -> None:
        address = f"http://127.0.0.1:{port}{PATH}?after=0-0-0"
        request = urllib.request.Request(address, headers={"Authorization": f"Bearer {key}"})
        with urllib.request.urlopen(request, timeout=20) as answer:
            answer.readline()

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(listen_once, range(30)))
    time.sleep(SETTLE_SECONDS)


def write(asked: argparse.Namespace, subject: Any, web: int) -> tuple[dict[str, float], list[float]]:
    """{id of each event: when its commit returned}, and the memory of the web process ten times on the way, in kB."""
    from pipeline import events

    committed: dict[str, float] = {}
    memory: list[float] = []
    total = int(asked.rate * asked.seconds)
    began = time.monotonic()
    for number in range(total):
        if number % max(1, total // 10) == 0:
            memory.append(resident_kb(web))
        time.sleep(max(0.0, began + number / asked.rate - time.monotonic()))
        event = events.record("note.added", subject, by=events.SYSTEM, message=f"number {number}")
        committed[event.pk] = time.time()
    return committed, memory


class Baseline:
    """The hub's query in a loop, in a thread of this program: {seq: when it was read}."""

    def __init__(self) -> None:
        self.arrivals: dict[int, float] = {}
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._poll)
        self._thread.start()

    def stop(self) -> None:
        """End it and wait for its thread."""
        self._stopped.set()
        self._thread.join()

    def _poll(self) -> None:
        from django.db import connection

        from pipeline.events import Event, horizon

        place = horizon()
        while not self._stopped.wait(TICK_SECONDS):
            found = list(Event.objects.after(place, 500))
            now = time.time()
            for event in found:
                self.arrivals[event.seq] = now
            place = found[-1].cursor if found else place
        connection.close()


# -- the clients' process ------------------------------------------------------------------------------------------


class Client(asyncio.Protocol):
    """One connection: notes the number of every event and when it came."""

    def __init__(self, request: bytes, arrivals: "array.array[float]", number: int) -> None:
        self.request, self.arrivals, self.number = request, arrivals, number
        self.rest = b""
        self.opened = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        """Ask for the stream."""
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        """Read what is whole, keep the rest. It has to cost little: the clients share the cores with the server."""
        now = time.time()
        whole, _end, self.rest = (self.rest + data).rpartition(b"\n\n")
        if not self.opened.done() and b"id: " in whole:
            if not whole.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(whole[:200].decode())
            self.opened.set_result(None)
        for seq in MESSAGE.findall(whole):
            self.arrivals.extend((self.number, float(seq), now))


async def listen(told: dict[str, Any]) -> int:
    """Connect, say so, note arrivals until stdin ends, and write them to the file."""
    loop = asyncio.get_running_loop()
    arrivals: array.array[float] = array.array("d")
    for number in range(told["clients"]):
        key = told["keys"][number // PER_KEY]
        request = f"GET {PATH} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {key}\r\n\r\n".encode()
        _transport, client = await loop.create_connection(
            lambda request=request, number=number: Client(request, arrivals, number), "127.0.0.1", told["port"]
        )
        await client.opened
    print("connected", flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    with open(told["file"], "wb") as file:
        arrivals.tofile(file)
    return 0


# -- figures -------------------------------------------------------------------------------------------------------


def judge(file: Path, at: dict[int, float], clients: int) -> tuple[list[float], int, int]:
    """Seconds from commit to client of each arrival, and how many arrivals are missing and how many are too many."""
    read: array.array[float] = array.array("d")
    read.frombytes(file.read_bytes())
    first: dict[tuple[int, int], float] = {}
    doubled = 0
    for place in range(0, len(read), 3):
        client, seq = int(read[place]), int(read[place + 1])
        if seq not in at:
            continue
        doubled += (client, seq) in first
        first.setdefault((client, seq), read[place + 2])
    return [when - at[seq] for (_client, seq), when in first.items()], clients * len(at) - len(first), doubled


def percentiles(seconds: Iterable[float]) -> dict[str, float]:
    """p50, p95, p99 and the largest, in milliseconds."""
    ordered = sorted(seconds)
    if not ordered:
        return {}
    shares = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}
    return {
        name: round(1000 * ordered[min(len(ordered) - 1, int(len(ordered) * share))], 1)
        for name, share in shares.items()
    }


def resident_kb(pid: int) -> float:
    """The memory of a process that is its own or shared with others, in kB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_KB


def cpu_seconds(pid: int) -> float:
    """What a process has used of all cores so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def table(figures: dict[str, Any]) -> str:
    """One figure a line."""
    return "\n".join(f"{name:<22}{value}" for name, value in figures.items())


if __name__ == "__main__":
    sys.exit(main())
