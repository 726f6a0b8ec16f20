"""The command line of the agent: `python -m workers.agent --url http://host:8000 --tool shell`."""

import argparse
import ctypes
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from workers.agent.adapters import Registry
from workers.agent.adapters.aider import Aider
from workers.agent.adapters.claude import Claude
from workers.agent.adapters.codex import Codex
from workers.agent.adapters.shell import Shell
from workers.agent.attempt import Timing
from workers.agent.client import wrong_with
from workers.agent.loop import FORCED, Agent, Settings

PR_SET_DUMPABLE = 4  # linux/prctl.h


def registry() -> Registry:
    """Every adapter that this program knows."""
    known = Registry()
    for adapter in (Shell, Claude, Codex, Aider):
        known.register(adapter)
    return known


def names(text: str) -> tuple[str, ...]:
    """`a,b` as a tuple, without blanks and empty parts."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def parser(known: Registry) -> argparse.ArgumentParser:
    """The options, which `--help` explains."""
    options = argparse.ArgumentParser(
        prog="python -m workers.agent", description="Works for a Signalbox server: claims tasks and runs tools on them."
    )
    options.add_argument("--url", required=True, help="the server, such as http://127.0.0.1:8000")
    options.add_argument(
        "--key",
        default=os.environ.get("SIGNALBOX_KEY", ""),
        help="an API key of role worker; better given as SIGNALBOX_KEY, which no process list shows",
    )
    options.add_argument(
        "--tool", type=names, default=("shell",), help="adapters that may be used: " + ", ".join(known.list())
    )
    options.add_argument("--tools", type=names, default=(), help="keys of the tools that are offered (default: any)")
    options.add_argument("--capabilities", type=names, default=(), help="what this machine can do, such as gpu,docker")
    options.add_argument("--name", default="", help="what people see (default: host and process id)")
    options.add_argument("--workdir", type=Path, help="where checkouts are made (default: a temporary folder)")
    options.add_argument("--once", action="store_true", help="claim a single time, then end")
    options.add_argument(
        "--wait", type=int, default=20, choices=range(31), metavar="0-30", help="seconds to wait for work"
    )
    options.add_argument("--keep-workspaces", action="store_true", help="leave checkouts behind, to look into them")
    for name, meaning in (
        ("heartbeat-interval", "seconds between heartbeats"),
        ("timeout-seconds", "length of a lease"),
        ("stall-after", "seconds without progress until it is shown as stalled"),
        ("max-parallel-tasks", "how many workers of this host may be registered"),
    ):
        options.add_argument(f"--{name}", type=int, metavar="N", help=f"{meaning} (default: the server's)")
    return options


def seconds_from(environment: str, default: float) -> float:
    """A figure from the environment. Raises SystemExit with a sentence when it is no number above 0."""
    text = os.environ.get(environment)
    if text is None:
        return default
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 86400:
        raise SystemExit(f"{environment} must be a number of seconds above 0, not {text!r}")
    return value


def hide_environment() -> None:
    """Keeps other programs of this user from reading our environment, which holds the key, in /proc (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the agent; the exit code (see `loop`)."""
    known = registry()
    options = parser(known)
    given = options.parse_args(arguments)
    if not given.key:
        options.error("a key is needed: set SIGNALBOX_KEY, or give --key")
    if complaint := wrong_with(given.url):
        options.error(f"{given.url!r} is no address of a server, such as http://127.0.0.1:8000: {complaint}")
    for name in given.tool:
        if known.get(name) is None:
            options.error(f"there is no adapter {name!r}; there are: {', '.join(known.list())}")
    usual = Timing()
    timing = Timing(
        terminate_after_seconds=seconds_from("SIGNALBOX_STOP_TERM_SECONDS", usual.terminate_after_seconds),
        kill_after_seconds=seconds_from("SIGNALBOX_STOP_KILL_SECONDS", usual.kill_after_seconds),
    )
    if timing.terminate_after_seconds > timing.kill_after_seconds:
        options.error("SIGNALBOX_STOP_TERM_SECONDS must not be above SIGNALBOX_STOP_KILL_SECONDS")
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    hide_environment()
    config = {
        "heartbeat_interval": given.heartbeat_interval,
        "timeout_seconds": given.timeout_seconds,
        "stall_after": given.stall_after,
        "max_parallel_tasks": given.max_parallel_tasks,
    }
    agent = Agent(
        Settings(
            url=given.url,
            key=given.key,
            adapters=given.tool,
            tools=given.tools,
            capabilities=given.capabilities,
            name=given.name,
            workdir=None if given.workdir is None else given.workdir.resolve(),
            once=given.once,
            wait_seconds=given.wait,
            keep_workspaces=given.keep_workspaces,
            config={name: value for name, value in config.items() if value is not None},
            timing=timing,
        ),
        known,
    )

    def told(number: int, frame: FrameType | None) -> None:
        if agent.told.times >= 2:
            os._exit(FORCED)  # the keeper of the tool sees us gone, and kills it
        agent.tell_to_end(raising=True)

    signal.signal(signal.SIGTERM, told)
    signal.signal(signal.SIGINT, told)
    return agent.run()


if __name__ == "__main__":
    sys.exit(main())
