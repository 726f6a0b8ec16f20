"""`python -m tests.bench [NAME …]`: starts servers of its own, measures beside baselines, prints a table."""

import argparse
import ctypes  # noqa: F401 - a server's child looks it up as another user, who may not be able to read it
import os
import platform
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path

from pipeline import embedded
from tests.bench.harness import BENCHES, Cluster, Outcome, measure, profile, stopwatch, table, write

MODULES = (
    "bench_claim",
    "bench_events",
    "bench_verify",
    "bench_sweep",
    "bench_patch",
    "bench_policy",
    "bench_gate",
    "bench_costs",
)


def main() -> int:
    """Exit code 0 when everything that was asked for was measured; figures are told, not judged."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("names", nargs="*", help="benchmarks to run; all when none is named")
    parser.add_argument("--smoke", action="store_true", help="the smallest size and a few calls: does it run at all?")
    parser.add_argument("--sizes", help="sizes instead of the benchmark's own: 1000,1000000")
    parser.add_argument("--calls", type=int, help="calls in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--profile", type=Path, help="also write where our side spends its time")
    parser.add_argument("--list", action="store_true", help="names and goals, nothing else")
    asked = parser.parse_args()
    data = Path(tempfile.mkdtemp(prefix="signalbox-bench-"))
    # As root the servers run as another user, which has to reach this directory.
    data.chmod(0o711 if os.geteuid() == 0 else 0o700)
    (data / "static").mkdir()
    for name in [name for name in os.environ if name.startswith("SIGNALBOX_")] + ["DATABASE_URL", "CELERY_BROKER_URL"]:
        os.environ.pop(name, None)
    os.environ |= {"SIGNALBOX_DATA": str(data), "SIGNALBOX_ROLE": "web", "SIGNALBOX_LOG_LEVEL": "ERROR"}
    os.environ["SIGNALBOX_CALLS_PER_SECOND"] = "0"  # as many as there can be
    os.environ["DJANGO_SETTINGS_MODULE"] = "pipeline.settings"
    servers = embedded.Embedded(data, die_with_parent=True)
    embedded.decide(data)
    try:
        return _run(asked, servers)
    finally:
        servers.leave()
        place = embedded.place(data)
        for path in {place.home, place.sockets, place.data} - {None}:
            shutil.rmtree(path, ignore_errors=True)


def _run(asked: argparse.Namespace, servers: embedded.Embedded) -> int:
    import django

    django.setup()
    for name in MODULES:
        import_module(f"tests.bench.{name}")
    if asked.list:
        print("\n".join(f"{one.name:<22}{one.goal}" for one in BENCHES.values()))
        return 0
    unknown = set(asked.names) - set(BENCHES)
    if unknown:
        print(f"no benchmark {', '.join(sorted(unknown))}; there are {', '.join(BENCHES)}", file=sys.stderr)
        return 2
    say = lambda text: print(text, file=sys.stderr, flush=True)  # noqa: E731
    from django.core.management import call_command

    with stopwatch(say, "servers and migrations"):
        servers.start()
        call_command("migrate", interactive=False, verbosity=0)
    cluster = Cluster(servers.place.cluster)
    outcomes: list[Outcome] = []
    profiles: list[str] = []
    try:
        for name in asked.names or BENCHES:
            one = BENCHES[name]
            sizes = [one.smoke] if asked.smoke else one.sizes
            if asked.sizes:
                sizes = [int(text) for text in asked.sizes.split(",")]
            for size in sizes:
                with stopwatch(say, f"{name} at {size:,}"):
                    few = {"rounds": 1, "calls": 5} if asked.smoke else {"rounds": asked.rounds, "calls": asked.calls}
                    outcomes.append(measure(one, size, cluster, **few))
            if asked.profile:
                profiles.append(profile(one.make(sizes[-1]).ours, 50))
    finally:
        # A long measurement that breaks off has measured something all the same.
        if outcomes:
            print(table(outcomes))
    if asked.json:
        facts = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "load": os.getloadavg(),
        }
        write(outcomes, asked.json, facts)
    if asked.profile:
        asked.profile.write_text("\n\n".join(profiles))
    return 0


if __name__ == "__main__":
    sys.exit(main())
