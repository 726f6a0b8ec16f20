"""What code under test may try against the machine, and what becomes of it (reliability.md §2d).

Every attack is a script that says "tried", and "ESCAPED" for each thing it got. At level 2 none gets anything, and none
leaves a process. At level 1 some do: docs/sandbox.md publishes which, and this file holds that list to the truth.
"""

import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from gates import evidence, runner
from gates.runner import Execution, Limits, available_level, execute

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "sandbox.md"
HELD, THROUGH, DEPENDS = "held", "let through", "depends on the user"
FULL = os.environ.get("CHAOS") == "full"

BEGIN = """
import ctypes, os, signal, socket, subprocess, sys, time
print("tried", flush=True)
word = sys.argv[1]
def got(do, what):
    try: found = do()
    except (OSError, MemoryError) as problem: print("refused:", what, problem, flush=True)
    else: print("ESCAPED:", what, found, flush=True)
def sleeper(): subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", word])
"""


@dataclass
class Around:
    """What stands outside: a secret file, a listener, a neighbour with a secret in its environment, a cache."""

    top: Path
    port: int
    name: str
    neighbour: int
    word: str
    segment: int = 0

    def words(self) -> dict[str, Any]:
        return {
            "secret": str(self.top / "home" / ".ssh" / "id_rsa"), "other": str(self.top / "other" / "tree" / "a.txt"),
            "cache": str(self.top / "cache"), "port": self.port, "abstract": self.name, "neighbour": self.neighbour,
            "segment": self.segment,
        }  # fmt: skip


Judge = Callable[[Execution, Around], bool]


def no_escape(ended: Execution, around: Around) -> bool:
    """It ran, and got nothing."""
    return "tried" in ended.output and "ESCAPED" not in ended.output


def timed_out(ended: Execution, around: Around) -> bool:
    """It ran until its time was over."""
    return ended.timed_out and ended.exit_code is None


def exceeded(words: str) -> Judge:
    """It was ended for having too much of something."""
    return lambda ended, around: words in ended.exceeded and ended.exit_code == 128 + signal.SIGKILL


@dataclass
class Attack:
    """`case` is its number in reliability.md §2d; `level1` what a runner without a box lets through."""

    name: str
    case: int
    script: str
    level1: str = HELD
    contained: Judge = no_escape
    seconds: float = 20.0
    limits: dict[str, Any] = field(default_factory=dict)


ATTACKS = [
    Attack(
        "a fork bomb", 45,
        # It stops by itself: 2 to the power of 10 processes at most, and 20 seconds.
        "end = time.monotonic() + 20\nfor _ in range(10):\n"
        "    try: os.fork()\n    except OSError: pass\nwhile time.monotonic() < end: time.sleep(0.05)",
        contained=lambda ended, around: bool(ended.exceeded) or ended.timed_out,
        seconds=2, limits={"processes": 64},
    ),
    Attack(
        "a process that left its session and its parent", 46,
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        sleeper()\n    os._exit(0)\nos.wait()",
    ),
    Attack(
        "a process that ignores SIGTERM", 47,
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); sleeper(); time.sleep(60)",
        contained=timed_out, seconds=1,
    ),
    Attack("a process that hangs", 47, "sleeper(); time.sleep(60)", contained=timed_out, seconds=1),
    Attack(
        "output without end", 48, "piece = b'y' * 65536\nwhile True: os.write(1, piece)",
        contained=lambda ended, around: ended.output_limited and len(ended.output) < 2 * 1024**2,
        limits={} if FULL else {"output_bytes": 16 * 1024**2},
    ),
    Attack(
        "memory in one process", 49, "got(lambda: len(bytearray(1 << 30)), 'a GiB')",
        limits={"memory_bytes": 400 * 1024**2},
    ),
    Attack(
        "memory in many processes", 49,
        "for _ in range(6):\n    if os.fork() == 0:\n        kept = b'x' * (100 << 20); time.sleep(20); os._exit(0)\n"
        "time.sleep(20)",
        contained=exceeded("bytes of memory"), limits={"all_memory_bytes": 300 * 1024**2},
    ),
    Attack(
        "one large file", 49,
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "got(lambda: open('big', 'wb').write(bytes(9 << 20)) and os.stat('big').st_size, 'a large file')",
        limits={"file_bytes": 8 * 1024**2},
    ),
    Attack(
        "many large files", 49,
        "for n in range(64): open(f'f{n}', 'wb').write(os.urandom(1 << 20)); time.sleep(0.03)\nprint('ESCAPED')",
        contained=exceeded("bytes of files"), limits={"disk_bytes": 16 * 1024**2},
    ),
    Attack(
        "large files without a name", 49,
        "kept = []\nfor n in range(64):\n    kept.append(open(f'f{n}', 'wb')); os.unlink(f'f{n}')\n"
        "    kept[-1].write(os.urandom(1 << 20)); kept[-1].flush(); time.sleep(0.03)\nprint('ESCAPED')",
        contained=exceeded("bytes of files"), limits={"disk_bytes": 16 * 1024**2},
    ),
    Attack(
        "millions of files", 49,
        "for n in range(2_000_000):\n    open(f'f{n}', 'w').close()\n    if not n % 500: time.sleep(0.02)",
        contained=exceeded("files"), seconds=180 if FULL else 20, limits={"disk_files": 200_000 if FULL else 5_000},
    ),
    Attack(
        "filling the memory by /dev/shm", 49,
        "def fill():\n    with open('/dev/shm/' + word, 'wb') as file: file.write(bytes(16 << 20))\n    return 16\n"
        "got(fill, 'shared memory')\ntry: os.unlink('/dev/shm/' + word)\nexcept OSError: pass",
        level1=THROUGH, limits={"tmp_bytes": 8 * 1024**2},
    ),
    Attack(
        "connecting to what listens on this machine", 50,
        "got(lambda: socket.create_connection(('127.0.0.1', {port}), 2), 'the listener')", level1=THROUGH,
    ),
    Attack(
        "connecting to a socket by its abstract name", 50,
        "def reach():\n    s = socket.socket(socket.AF_UNIX); s.connect('\\0{abstract}')\ngot(reach, 'the socket')",
        level1=THROUGH,
    ),
    Attack(
        "a way to the internet or the metadata address", 50,
        # A datagram socket that is connected looks for a way, and sends nothing.
        "def way(to):\n    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect((to, 80))\n"
        "got(lambda: way('169.254.169.254'), 'metadata'); got(lambda: way('192.0.2.1'), 'internet')",
        level1=DEPENDS,
    ),
    Attack(
        "a socket to the machine below this one", 50,
        # Refused by the family: that somebody answers, were it only to say no, is a way out.
        "def way(family, kind):\n    s = socket.socket(family, kind)\n    return s.family\n"
        "got(lambda: way(40, socket.SOCK_STREAM), 'vsock'); got(lambda: way(40, socket.SOCK_DGRAM), 'vsock')\n"
        "ring = ctypes.create_string_buffer(120)\nlibc = ctypes.CDLL(None, use_errno=True)\ndef io_uring():\n"
        "    made = libc.syscall(425, 4, ring)\n"
        "    if made < 0: raise OSError(ctypes.get_errno(), 'io_uring')\n    return made\n"
        "got(io_uring, 'a ring')",
        level1=DEPENDS,
    ),
    Attack(
        "kernel code that no test needs", 55,
        "for family in (9, 17, 30, 31, 38, 44):\n"
        "    for kind in (socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):\n"
        "        got(lambda: socket.socket(family, kind), f'family {family}')\n"
        "libc = ctypes.CDLL(None, use_errno=True)\ndef call(number):\n"
        "    if libc.syscall(number, 0, 0, 0, 0, 0) < 0 and ctypes.get_errno() == 38: raise OSError(38, 'none')\n"
        "    return number\n"
        "arm = os.uname().machine == 'aarch64'\n"
        "for number in (219, 217, 218, 280, 241, 282) if arm else (250, 248, 249, 321, 298, 323):\n"
        "    got(lambda: call(number), f'call {number}')",
        level1=DEPENDS,
    ),
    Attack(
        "system calls by the numbers of another machine", 55,
        # int 0x80 on x86-64 asks the 32-bit table: 20 is getpid there.
        "import mmap\nif os.uname().machine != 'x86_64': sys.exit()\n"
        "code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)\n"
        "code.write(bytes.fromhex('b814000000' 'cd80' 'c3'))\n"
        "ask = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))\n"
        "def by_32():\n    told = ask()\n    if told < 0: raise OSError(-told, 'no such call')\n    return told\n"
        "got(by_32, 'a 32-bit call')\n"
        "libc = ctypes.CDLL(None, use_errno=True)\ndef by_x32():\n    told = libc.syscall(0x40000000 + 39)\n"
        "    if told < 0: raise OSError(ctypes.get_errno(), 'no such call')\n    return told\n"
        "got(by_x32, 'an x32 call')",
        level1=DEPENDS,
    ),
    Attack(
        "reading the environment of other processes", 51,
        "def environ(pid):\n    if b'swordfish' in open(f'/proc/{pid}/environ', 'rb').read(): return 'a secret'\n"
        "    raise OSError('nothing of ours')\n"
        "for pid in (1, os.getppid(), {neighbour}): got(lambda: environ(pid), f'the environment of {pid}')",
        level1=DEPENDS,
    ),
    Attack(
        "our own variables", 51,
        "print('ESCAPED' if any('swordfish' in text for text in os.environ.values()) else 'none')",
    ),
    Attack(
        "reading the copy of another run", 51, "got(lambda: open('{other}').read(), 'another copy')", level1=THROUGH
    ),
    Attack("reading a key in somebody's home", 51, "got(lambda: open('{secret}').read(), 'a key')", level1=THROUGH),
    Attack(
        "seeing other processes", 51, "got(lambda: open('/proc/{neighbour}/cmdline').read(), 'a process')",
        level1=THROUGH,
    ),
    Attack(
        "descriptors that were left open", 55,
        "opened = []\nfor n in range(3, 256):\n    try: os.fstat(n)\n    except OSError: pass\n"
        "    else: opened.append(os.readlink(f'/proc/self/fd/{n}'))\nif opened: print('ESCAPED', opened)",
    ),
    Attack(
        "ptrace of another process", 55,
        "libc = ctypes.CDLL(None, use_errno=True)\ndef attach():\n"
        "    if libc.ptrace(16, {neighbour}, 0, 0) != 0: raise OSError(ctypes.get_errno(), 'ptrace')\n"
        "    libc.ptrace(17, {neighbour}, 0, 0)\ngot(attach, 'a process')",
        level1=DEPENDS,
    ),
    Attack("ending another process", 55, "got(lambda: os.kill({neighbour}, 0), 'a process')", level1=DEPENDS),
    Attack(
        "keys in the service's keyring", 55,
        "libc = ctypes.CDLL(None, use_errno=True)\ndef search():\n"
        "    key = libc.syscall(250, 10, -3, b'user', b'signalbox-test', 0)\n"
        "    if key < 0: raise OSError(ctypes.get_errno(), 'keyctl')\n    return key\ngot(search, 'a key')",
    ),
    Attack(
        "typing into the terminal", 55,
        "import fcntl\ngot(lambda: fcntl.ioctl(os.open('/dev/tty', os.O_RDWR), 0x5412, b'x'), 'tty')\n"
        "got(lambda: fcntl.ioctl(0, 0x5412, b'x'), 'input')",
    ),
    Attack(
        "a new user namespace", 55,
        "libc = ctypes.CDLL(None, use_errno=True)\ndef make():\n"
        "    if libc.unshare(0x10000000) != 0: raise OSError(ctypes.get_errno(), 'unshare')\ngot(make, 'a namespace')",
        level1=DEPENDS,
    ),
    Attack(
        "rights of a setuid program", 55,
        "told = open('/proc/self/status').read()\nprint('none' if 'NoNewPrivs:\\t1' in told else 'ESCAPED')",
    ),
    Attack(
        "shared memory of another process", 55,
        "libc = ctypes.CDLL(None, use_errno=True)\nlibc.shmat.restype = ctypes.c_void_p\ndef attach():\n"
        "    if libc.shmat({segment}, None, 0) in (None, 2**64 - 1): raise OSError(ctypes.get_errno(), 'shmat')\n"
        "got(attach, 'a segment')",
        level1=DEPENDS,
    ),
    Attack(
        "a link in the evidence folder", 56,
        "os.symlink('{secret}', os.environ['SIGNALBOX_EVIDENCE'] + '/junit.xml')",
        contained=lambda ended, around: isinstance(
            evidence.collect(around.top / "evidence", {"junit": "junit.xml"})["junit"], evidence.Missing
        ),
    ),
    Attack(
        "a hard link in the evidence folder", 56,
        "try: os.link('{secret}', os.environ['SIGNALBOX_EVIDENCE'] + '/junit.xml')\nexcept OSError: pass",
        contained=lambda ended, around: isinstance(
            evidence.collect(around.top / "evidence", {"junit": "junit.xml"})["junit"], evidence.Missing
        ),
    ),
    Attack(
        "poisoning a cache that others read", 57,
        "cache = os.environ['SIGNALBOX_CACHE_PIP']\nassert open(cache + '/wheel').read() == 'good'\n"
        "got(lambda: open(cache + '/wheel', 'w').write('bad'), 'a cache')\n"
        "got(lambda: os.remove(cache + '/wheel'), 'it')",
        level1=DEPENDS,
    ),
    Attack(
        "writing to the system or the interpreter", 57,
        "for folder in {sys.prefix, sys.base_prefix, '/usr/lib', '/etc', '/'}:\n"
        "    name = folder + '/' + word\n    got(lambda: open(name, 'w').close() or os.remove(name), folder)",
        level1=DEPENDS,
    ),
]  # fmt: skip

NAMES = [attack.name for attack in ATTACKS]


@pytest.fixture
def around(tmp_path: Path) -> Iterator[Around]:
    """The machine as an attack finds it."""
    word = f"attack-{uuid.uuid4().hex}"
    for path, text in (
        (tmp_path / "home" / ".ssh" / "id_rsa", "a key"),
        (tmp_path / "other" / "tree" / "a.txt", "another run's"),
        (tmp_path / "cache" / "wheel", "good"),
    ):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    (tmp_path / "tree").mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall(ctypes.c_long(248), b"user", b"signalbox-test", b"swordfish", ctypes.c_size_t(9), ctypes.c_int(-3))
    segment = libc.shmget(0, 4096, 0o1666)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as named,
    ):
        named.bind(f"\0{word}")
        named.listen()
        neighbour = os.posix_spawn(
            sys.executable,
            [sys.executable, "-c", "import time; time.sleep(120)", "neighbour"],
            {"SECRET": "swordfish"},
        )
        try:
            yield Around(tmp_path, server.getsockname()[1], word, neighbour, word, segment)
        finally:
            os.kill(neighbour, signal.SIGKILL)
            os.waitpid(neighbour, 0)
            libc.shmctl(segment, 0, None)
            for pid in _marked(word):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def _marked(word: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def _attack(attack: Attack, around: Around, level: int) -> Execution:
    os.environ["SIGNALBOX_A_SECRET"] = "swordfish"
    try:
        script = BEGIN + attack.script
        for name, value in around.words().items():
            script = script.replace(f"{{{name}}}", str(value))
        return execute(
            ["python", "-c", script, around.word],
            around.top / "tree",
            timeout_seconds=attack.seconds,
            env={},
            output_dir=around.top / "evidence",
            limits=Limits(**{"grace_seconds": 0.3, **attack.limits}),
            level=level,
            caches={"pip": around.top / "cache"},
        )
    finally:
        del os.environ["SIGNALBOX_A_SECRET"]


@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_at_level_2_it_is_contained_and_leaves_no_process(attack: Attack, around: Around) -> None:
    began = time.monotonic()
    ended = _attack(attack, around, 2)
    assert attack.contained(ended, around), ended
    assert ended.level == 2
    assert time.monotonic() - began < attack.seconds + 15
    assert _marked(around.word) == []
    assert (around.top / "cache" / "wheel").read_text() == "good"


@pytest.mark.parametrize("attack", ATTACKS, ids=NAMES)
def test_at_level_1_it_is_what_the_published_list_says(attack: Attack, around: Around) -> None:
    ended = _attack(attack, around, 1)
    assert "tried" in ended.output, ended
    if attack.level1 != DEPENDS:
        assert attack.contained(ended, around) is (attack.level1 == HELD), ended
    assert _marked(around.word) == []


def test_the_published_list_names_every_attack_and_what_each_level_does() -> None:
    rows = re.findall(r"^\| (\d+) \| ([^|]+) \| ([^|]+) \| ([^|]+) \|$", DOCUMENT.read_text(), re.MULTILINE)
    assert rows == [(str(one.case), one.name, one.level1, HELD) for one in ATTACKS]


def test_level_2_is_here_wherever_these_tests_run() -> None:
    assert available_level() >= 2, runner.probe().missing
