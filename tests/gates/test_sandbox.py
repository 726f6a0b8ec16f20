"""The box of level 2: a command behaves in it as outside, sees only its own, and is not blamed for what fails in it."""

import marshal
import os
import re
import signal
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gates import cgroups, evidence, launch, resources, runner, sandbox
from gates.runner import Execution, Limits, NoFolder, RunnerLost, execute
from gates.spec import Box
from pipeline.refusals import InvalidField
from tests.gates.test_attacks import _marked as marked

QUICK = Limits(grace_seconds=0.3)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A tree to test, and an output folder beside it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree, tmp_path / "evidence"


@pytest.fixture(autouse=True)
def own_level() -> Iterator[None]:
    """The level that this machine has, tried before a test takes something away, and again after it."""
    assert runner.available_level() >= 2, runner.probe().missing
    yield
    runner.probe.cache_clear()


def run(folders: tuple[Path, Path], command: list[str], **wanted: Any) -> Execution:
    tree, output = folders
    asked = {"timeout_seconds": 20, "env": {}, "output_dir": output, "limits": QUICK, "level": 2}
    return execute(command, tree, **asked | wanted)


@pytest.mark.parametrize(
    ("command", "code", "error"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "exit 5"], 5, ""),
        (["sh", "-c", "exit 127"], 127, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["no-such-command"], 127, "the command 'no-such-command' was not found"),
        (["./nothing"], 127, "the command './nothing' was not found"),
        (["./plain"], 126, "the command './plain' cannot be run"),
    ],
    ids=["succeeds", "fails", "says-127", "killed", "no-such", "no-such-file", "no-program"],
)
def test_an_end_is_told_as_it_was(folders: tuple[Path, Path], command: list[str], code: int, error: str) -> None:
    (folders[0] / "plain").write_text("text")
    ended = run(folders, command)
    assert (ended.exit_code, ended.error, ended.level, ended.killed) == (code, error, 2, 0)


def test_it_sees_its_own_things_at_the_same_places_in_every_run(folders: tuple[Path, Path]) -> None:
    (folders[0] / "below").mkdir()
    script = (
        'pwd; ls ..; echo "$HOME $TMPDIR $SIGNALBOX_EVIDENCE"; echo x > "$1"; whoami; hostname; ls / | tr "\\n" " "'
    )
    ended = run(folders, ["sh", "-c", script, "sh", "{evidence}/a.txt"], cwd="below")
    assert ended.output.splitlines()[:5] == [
        "/src/below", "below", "/home/gate /tmp /evidence", "gate", "gate"
    ]  # fmt: skip
    assert set(ended.output.splitlines()[5].split()) >= {"evidence", "home", "src", "tmp", "usr"}
    assert not {"boot", "srv", "opt"} & set(ended.output.splitlines()[5].split())
    assert (folders[1] / "a.txt").read_text() == "x\n"


def test_its_environment_is_what_was_given_and_nothing_of_ours(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIGNALBOX_A_SECRET", "swordfish")
    ended = run(folders, ["env"], env={"GIVEN": "yes"})
    names = {line.partition("=")[0] for line in ended.output.splitlines()}
    ours = {"PATH", "HOME", "TMPDIR", "LANG", "GIT_CEILING_DIRECTORIES", "PYTHONUNBUFFERED", "SIGNALBOX_EVIDENCE"}
    assert names == {*ours, "GIVEN", "PWD"}
    assert "swordfish" not in ended.output


def test_our_interpreter_runs_pytest_in_it_wherever_it_is_installed(folders: tuple[Path, Path]) -> None:
    (folders[0] / "test_it.py").write_text("def test_a(): pass\ndef test_b(): assert 1 == 2\n")
    ended = run(folders, ["python", "-m", "pytest", "-q", "--junitxml={evidence}/junit.xml"])
    assert ended.exit_code == 1, ended.output
    found = evidence.collect(folders[1], {"junit": "junit.xml"})["junit"]
    assert isinstance(found, bytes)
    results = evidence.parse("junit", found)
    assert (results.total, results.passed, results.failed) == (2, 1, 1)


def test_over_its_time_it_hears_term_and_may_clear_up(folders: tuple[Path, Path]) -> None:
    script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
    ended = run(folders, ["sh", "-c", script], timeout_seconds=0.7, limits=Limits(grace_seconds=5))
    assert ended.timed_out
    assert ended.output.endswith("bye\n")
    assert ended.duration_seconds < 5


def test_stop_ends_it_with_all_that_it_started(folders: tuple[Path, Path]) -> None:
    word = f"mark-{uuid.uuid4().hex}"
    stop = threading.Event()
    script = (
        "import subprocess, sys, time\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', sys.argv[1]], start_new_session=True)\n"
        "print('up', flush=True)\ntime.sleep(60)"
    )
    ended = run(folders, ["python", "-c", script, word], stop=stop, on_output=lambda _: stop.set())
    assert ended.stopped
    assert marked(word) == []


@pytest.mark.parametrize("whom", ["guard", "keeper"])
def test_a_killed_launcher_is_a_lost_runner_with_no_survivors(folders: tuple[Path, Path], whom: str) -> None:
    word = f"mark-{uuid.uuid4().hex}"

    def kill(output: str) -> None:
        # In the box the command knows no id of ours: it is found by its mark, and the launcher above it.
        pid = marked(word)[0]
        above = []
        while (pid := _parent(pid)) != os.getpid():
            above.append(pid)
        guard, keeper = above[-1], above[-2]
        os.kill(keeper if whom == "keeper" else guard, signal.SIGKILL)

    with pytest.raises(RunnerLost):
        run(folders, ["python", "-c", "import time; print('up', flush=True); time.sleep(60)", word], on_output=kill)
    assert marked(word) == []


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[1])


def test_a_box_that_cannot_be_made_is_our_failure_and_never_an_exit_code(
    folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = sandbox.box

    def broken(*given: Any, **options: Any) -> Box:
        box = made(*given, **options)
        return {**box, "argv": [*box["argv"], "--ro-bind", "/no/such/folder", "/somewhere"]}

    monkeypatch.setattr(sandbox, "box", broken)
    with pytest.raises(RunnerLost, match="bubblewrap ended with exit code 1"):
        run(folders, ["true"])


def test_without_bubblewrap_the_level_is_1_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "bubblewrap", lambda: "")
    runner.probe.cache_clear()
    try:
        assert runner.probe() == sandbox.Probe(1, ("bubblewrap is not installed",))
    finally:
        runner.probe.cache_clear()


def test_a_box_that_lets_something_through_is_not_level_2(monkeypatch: pytest.MonkeyPatch) -> None:
    made = sandbox.box

    def leaky(*given: Any, **options: Any) -> Box:
        box = made(*given, **options)
        return {**box, "argv": [word for word in box["argv"] if word != "--disable-userns"] + ["--share-net"]}

    monkeypatch.setattr(sandbox, "box", leaky)
    runner.probe.cache_clear()
    try:
        found = runner.probe()
        assert found.level == 1
        assert "not so: the service's network is out of reach" in found.missing
        assert "not so: it makes no namespaces" in found.missing
    finally:
        runner.probe.cache_clear()


def test_folders_that_were_named_are_read_only_at_their_own_place(folders: tuple[Path, Path], tmp_path: Path) -> None:
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "word").write_text("sesame")
    script = f"cat {tmp_path}/tools/word; echo x > {tmp_path}/tools/word || echo refused"
    assert run(folders, ["sh", "-c", script], readonly=[tmp_path / "tools"]).output.endswith("refused\n")
    assert (tmp_path / "tools" / "word").read_text() == "sesame"


def test_a_working_folder_that_leads_out_of_the_tree_is_refused(folders: tuple[Path, Path]) -> None:
    (folders[0] / "out").symlink_to("/etc")
    with pytest.raises(NoFolder, match="leads out of the tree"):
        run(folders, ["true"], cwd="out")


def test_what_it_closed_to_us_is_removed_all_the_same(folders: tuple[Path, Path]) -> None:
    assert run(folders, ["sh", "-c", "mkdir -p $HOME/a/b && chmod 000 $HOME/a/b $HOME/a"]).exit_code == 0
    assert sorted(path.name for path in folders[1].parent.iterdir()) == ["evidence", "tree"]


def test_two_commands_at_once_are_two_users_and_neither_is_root(folders: tuple[Path, Path]) -> None:
    root = os.geteuid() == 0
    with sandbox.own_user(sandbox.FIRST_USER) as one, sandbox.own_user(sandbox.FIRST_USER) as two:
        assert (one is not None and two is not None and one != two) if root else (one, two) == (None, None)
    users = range(sandbox.FIRST_USER, sandbox.FIRST_USER + sandbox.USERS) if root else [os.geteuid()]
    assert int(run(folders, ["id", "-u"]).output) in users


def test_resources_of_a_definition_are_checked_and_become_limits() -> None:
    assert resources.limits({}) == Limits()
    assert resources.limits({"processes": 9, "tmp_mb": 3}) == Limits(processes=9, tmp_bytes=3 * 1024**2)
    for wrong in ([], {"luck": 1}, {"processes": "9"}, {"processes": True}, {"processes": 3}, {"output_mb": 65}):
        with pytest.raises(InvalidField):
            resources.check(wrong)


@pytest.fixture
def group(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A control group of the tests' own, in the trees that this machine lets us write."""
    name = f"signalbox-test-{uuid.uuid4().hex[:8]}"
    version = 2 if (cgroups.ROOT / "cgroup.controllers").exists() else 1
    made = [cgroups.ROOT / tree / name for tree in cgroups.FILES[version]]
    monkeypatch.setenv("SIGNALBOX_GATE_CGROUP", name)
    try:
        for folder in made:
            folder.mkdir()
    except OSError:
        name = ""
    yield name
    for folder in made:
        if folder.is_dir():
            folder.rmdir()


def test_level_3_is_there_exactly_where_a_control_group_can_be_written(group: str, folders: tuple[Path, Path]) -> None:
    if not group or cgroups.available():
        assert cgroups.available() != ""
        return
    with cgroups.group(40, 256 * 1024**2) as files:
        left = [file.parent for file in files]
        assert all(folder.is_dir() for folder in left)
    assert not any(folder.exists() for folder in left)
    runner.probe.cache_clear()
    try:
        assert runner.probe() == sandbox.Probe(3)
        script = "import os\nfor n in range(100):\n    if os.fork() == 0: __import__('time').sleep(9)"
        ended = run(folders, ["python", "-c", script], level=3, limits=Limits(processes=20, grace_seconds=0.3))
        assert ended.level == 3
        assert "Resource temporarily unavailable" in ended.output or ended.exceeded
    finally:
        runner.probe.cache_clear()


# -- the filter of system calls ------------------------------------------------------------------------------------


def answer(machine: str, number: int, argument: int = 0, *, asked_as: int | None = None) -> int:
    """What the filter of a machine answers to a call, by a reader of BPF of our own: 0 is allowed, else the error."""
    program = launch.call_filter(*launch.MACHINES[machine])
    arch = launch.MACHINES[machine][0] if asked_as is None else asked_as
    data = {launch.AT_NUMBER: number, launch.AT_MACHINE: arch, launch.AT_FIRST_ARGUMENT: argument}
    held = at = 0
    while True:
        piece = program[at * 8 : at * 8 + 8]
        code, yes, no = int.from_bytes(piece[:2], "little"), piece[2], piece[3]
        value = int.from_bytes(piece[4:], "little")
        at += 1
        if code == launch.BPF_LOAD:
            held = data[value]
        elif code == launch.BPF_RETURN:
            return 0 if value == launch.RET_ALLOW else value - launch.RET_ERRNO
        else:
            assert code in (launch.BPF_JUMP_EQUAL, launch.BPF_JUMP_AT_LEAST)
            at += yes if (held == value if code == launch.BPF_JUMP_EQUAL else held >= value) else no


# <asm/unistd.h> of both, <sys/socket.h>, <linux/audit.h>
X86_64 = {"read": 0, "socket": 41, "socketpair": 53, "keyctl": 250, "bpf": 321, "ptrace": 101, "ring": 425}
AARCH64 = {"read": 63, "socket": 198, "socketpair": 199, "keyctl": 219, "bpf": 280, "ptrace": 117, "ring": 425}


@pytest.mark.parametrize(("machine", "calls"), [("x86_64", X86_64), ("aarch64", AARCH64)], ids=["x86_64", "aarch64"])
def test_the_filter_lets_through_what_tests_need_and_nothing_past_the_box(machine: str, calls: dict[str, int]) -> None:
    assert [answer(machine, calls[name]) for name in ("read", "ptrace")] == [0, 0]
    assert [answer(machine, calls[name]) for name in ("keyctl", "bpf", "ring")] == [launch.ENOSYS] * 3
    for name in ("socket", "socketpair"):
        allowed = [family for family in range(64) if answer(machine, calls[name], family) == 0]
        assert allowed == [1, 2, 10, 16]
        assert answer(machine, calls[name], 40) == launch.EAFNOSUPPORT
    assert answer(machine, calls["read"], asked_as=0x40000003) == launch.ENOSYS  # i386
    assert answer(machine, calls["read"] + launch.X32) == launch.ENOSYS


def test_in_the_box_ordinary_programs_meet_no_filter(folders: tuple[Path, Path]) -> None:
    script = (
        "import socket, asyncio, subprocess, multiprocessing\n"
        "print(len(socket.if_nameindex()), socket.getaddrinfo('localhost', 80)[0][4][1])\n"
        "a, b = socket.socketpair(); a.send(b'x'); print(b.recv(1))\n"
        "with socket.create_server(('127.0.0.1', 0)) as s: socket.create_connection(s.getsockname()).close()\n"
        "print(subprocess.run(['sh', '-c', 'echo child'], capture_output=True).stdout)\n"
        "asyncio.run(asyncio.sleep(0)); print('done')\n"
    )
    ended = run(folders, ["python", "-c", script])
    assert (ended.exit_code, ended.output.split()) == (0, ["1", "80", "b'x'", "b'child\\n'", "done"]), ended.output


def test_where_no_filter_is_known_the_level_is_1_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    source = re.sub(r'"(x86_64|aarch64)": \(0x', r'"not-\1": (0x', Path(launch.__file__).read_text())
    program = marshal.dumps(compile(source, launch.__file__, "exec", dont_inherit=True))
    monkeypatch.setattr(runner, "_program", lambda: program)
    runner.probe.cache_clear()
    found = runner.probe()
    assert found.level == 1
    assert "no filter of system calls is known" in found.missing[0]
