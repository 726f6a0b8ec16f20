"""Killing git at any of its system calls, with strace (strace(1), "Tampering"), below the product's own runner."""

import os
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.factories import run_git

WRAPPER = """#!/bin/sh
case " $* " in
*" update-ref "*)
    if [ -e {folder}/trace ]; then
        rm {folder}/trace
        exec {strace} -o {folder}/calls {git} "$@"
    fi
    if [ -e {folder}/kill ]; then
        inject=$(cat {folder}/kill)
        rm {folder}/kill
        exec {strace} -o /dev/null -e "$inject" {git} "$@"
    fi
    ;;
esac
exec {git} "$@"
"""


def strace() -> str:
    """The program. Without it these tests prove nothing: they fail in CI, and elsewhere say so."""
    found = shutil.which("strace")
    if found is None and os.environ.get("CI"):
        pytest.fail("strace is missing: no test has killed git inside update-ref")
    if found is None:
        pytest.exit("strace is missing: install it, these tests kill git at every system call of update-ref", 1)
    return found


@dataclass(frozen=True)
class Call:
    """One system call of a run: its name, the how-manieth of that name, and what strace wrote."""

    name: str
    number: int
    line: str


class Killer:
    """Stands before git on the PATH; `trace()` writes down the next update-ref, `arm()` kills it at one call."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "killer"
        self.folder.mkdir()
        real = run_git(folder, "--exec-path") + "/git"
        wrapper = self.folder / "git"
        wrapper.write_text(WRAPPER.format(folder=self.folder, git=real, strace=strace()))
        wrapper.chmod(0o755)
        monkeypatch.setenv("PATH", f"{self.folder}:{os.environ['PATH']}")

    def trace(self) -> None:
        """Write down the system calls of the next update-ref."""
        (self.folder / "trace").touch()

    def calls(self) -> list[Call]:
        """What was written down, in order, but for the first and the last: strace starts with the one, and who exits
        cannot be killed any more.
        """
        found, seen = [], Counter[str]()
        for line in (self.folder / "calls").read_text(errors="replace").splitlines():
            match = re.match(r"(?:\d+ +)?([a-z_0-9]+)\(", line)
            if match:
                seen[match.group(1)] += 1
                found.append(Call(match.group(1), seen[match.group(1)], line))
        return [call for call in found if call.name not in ("execve", "exit_group")]

    def arm(self, call: Call) -> None:
        """Kill the next update-ref at this call."""
        (self.folder / "kill").write_text(f"inject={call.name}:signal=SIGKILL:when={call.number}")

    @property
    def armed(self) -> bool:
        """Whether nobody has been killed yet."""
        return (self.folder / "kill").exists()


def around_the_lock(calls: list[Call]) -> list[Call]:
    """The calls from just before the ref's lock is made to the end: where anything can go wrong."""
    first = next(at for at, call in enumerate(calls) if ".lock" in call.line)
    return calls[max(first - 3, 0) :]
