"""Plays a section of a script: what a tool would print and do, line by line. Run as a program, outside of the tests.

`== name` opens a section. In it a line is printed as it stands, with `@name@` replaced, but for lines that begin with
`!`: `!write PATH TEXT`, `!append PATH TEXT`, `!err TEXT` (to stderr), `!sleep SECONDS`, `!exit CODE`, `!kill` (itself),
`!flood MEGABYTES`, `!bytewise TEXT` (one byte at a time, so that no piece is whole),
`!raw HEX`, `!deaf` (SIGINT and SIGTERM are ignored), `!interrupt SECTION CODE` (on SIGINT: play it, then exit),
`!play SECTION`, `!wait PATH` (until that file is there).
"""

import os
import signal
import sys
import time
from pathlib import Path


class Player:
    """One run of a fake tool."""

    def __init__(self, script: Path, names: dict[str, str]) -> None:
        self.names = names
        self.sections: dict[str, list[str]] = {}
        for line in script.read_text(encoding="utf-8").splitlines():
            if line.startswith("== "):
                self.sections[line[3:]] = here = []
            elif line and not line.startswith("#"):
                here.append(line)

    def play(self, section: str) -> None:
        """Does what the section says."""
        for line in self.sections[section]:
            for name, value in self.names.items():
                line = line.replace(f"@{name}@", value)
            if line.startswith("!"):
                word, _, rest = line[1:].partition(" ")
                getattr(self, f"do_{word}")(rest)
            else:
                self.put(line.encode() + b"\n")

    @staticmethod
    def put(raw: bytes) -> None:
        while raw:
            raw = raw[os.write(1, raw) :]

    def do_write(self, rest: str) -> None:
        path, _, text = rest.partition(" ")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text + "\n", encoding="utf-8")

    def do_append(self, rest: str) -> None:
        path, _, text = rest.partition(" ")
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(text + "\n")

    def do_err(self, rest: str) -> None:
        os.write(2, rest.encode() + b"\n")

    def do_sleep(self, rest: str) -> None:
        time.sleep(float(rest))

    def do_exit(self, rest: str) -> None:
        sys.exit(int(rest))

    def do_kill(self, rest: str) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def do_flood(self, rest: str) -> None:
        # One line without an end, then many short ones: what is bounded must be bounded for both.
        half = int(rest) * 8
        for _ in range(half):
            self.put(b"x" * 65536)
        self.put(b"\n")
        for _ in range(half):
            self.put((b"y" * 1023 + b"\n") * 64)

    def do_bytewise(self, rest: str) -> None:
        for number, byte in enumerate(rest.encode() + b"\n"):
            self.put(bytes((byte,)))
            if number % 16 == 0:
                time.sleep(0.001)

    def do_raw(self, rest: str) -> None:
        self.put(bytes.fromhex(rest))

    def do_deaf(self, rest: str) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def do_interrupt(self, rest: str) -> None:
        section, code = rest.split()

        def heard(number: int, frame: object) -> None:
            self.play(section)
            os._exit(int(code))

        signal.signal(signal.SIGINT, heard)

    def do_play(self, rest: str) -> None:
        self.play(rest)

    def do_wait(self, rest: str) -> None:
        while not os.path.exists(rest):
            time.sleep(0.01)
