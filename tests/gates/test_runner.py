"""A gate's command runs bounded, sees nothing of ours, and leaves nothing running, whoever is killed."""

import contextlib
import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gates import evidence, runner
from gates.runner import Execution, LevelRefused, Limits, RunnerLost, available_level, clean, execute

ROOT = Path(__file__).resolve().parents[2]
QUICK = Limits(grace_seconds=0.3)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A tree to test, and an output folder beside it."""
    tree = tmp_path / "tree"
    tree.mkdir()
    return tree, tmp_path / "evidence"


@pytest.fixture
def mark() -> Iterator[str]:
    """A word on the command line of processes that a test starts; whatever of them is left is ended afterwards."""
    word = f"mark-{uuid.uuid4().hex}"
    yield word
    for pid in marked(word):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def marked(word: str) -> list[int]:
    """Living processes with `word` as an argument of their own (not inside a script that mentions it)."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and word.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def until(holds: Any, seconds: float = 10.0) -> bool:
    """Waits for a condition on other processes; False when it never came."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def python(script: str, *words: str) -> list[str]:
    return ["python", "-c", script, *words]


def run(folders: tuple[Path, Path], command: list[str], **wanted: Any) -> Execution:
    tree, output = folders
    return execute(command, tree, **{"timeout_seconds": 20, "env": {}, "output_dir": output, "limits": QUICK} | wanted)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b") ")[2].split()[1])


SLEEP = "import time; time.sleep(600)"
FOREVER = (
    "import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('deaf', flush=True)\ntime.sleep(600)"
)
ESCAPE = """
import os, subprocess, sys, time
started, told = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.set_inheritable(told, True)
        script = "import os, sys, time; os.write(int(sys.argv[2]), b'x'); time.sleep(600)"
        os.execv(sys.executable, [sys.executable, "-c", script, sys.argv[1], str(told)])
    os._exit(0)
os.wait()
os.read(started, 1)
"""
TREE = """
import subprocess, sys, time
depth = int(sys.argv[2])
if depth:
    for _ in range(2):
        subprocess.Popen([sys.executable, "-c", sys.argv[3], sys.argv[1], str(depth - 1), sys.argv[3]])
time.sleep(600)
"""


class TestHowItEnds:
    def test_a_command_that_succeeds_has_exit_code_zero_and_its_output(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, ["sh", "-c", "echo out; echo err >&2"])
        assert (ended.exit_code, ended.output, ended.error, ended.level) == (0, "out\nerr\n", "", 1)
        assert (ended.timed_out, ended.output_limited, ended.stopped) == (False, False, False)
        assert 0 < ended.duration_seconds < 10

    @pytest.mark.parametrize("code", [1, 2, 5, 255])
    def test_an_exit_code_is_told_as_it_was(self, folders: tuple[Path, Path], code: int) -> None:
        assert run(folders, ["sh", "-c", f"exit {code}"]).exit_code == code

    def test_a_command_ended_by_a_signal_of_its_own_has_128_and_the_signal(self, folders: tuple[Path, Path]) -> None:
        assert run(folders, ["sh", "-c", "kill -9 $$"]).exit_code == 137

    def test_an_unknown_command_is_127_and_says_so(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, ["no-such-command"])
        assert ended.exit_code == 127
        assert ended.error == "the command 'no-such-command' was not found"

    def test_a_file_that_is_no_program_is_126(self, folders: tuple[Path, Path]) -> None:
        (folders[0] / "plain").write_text("text")
        ended = run(folders, ["./plain"])
        assert ended.exit_code == 126
        assert "cannot be run" in ended.error

    def test_a_command_that_is_deaf_to_term_is_killed_soon_after(self, folders: tuple[Path, Path], mark: str) -> None:
        began = time.monotonic()
        ended = run(folders, python(FOREVER, mark), timeout_seconds=0.7)
        assert time.monotonic() - began < 5
        assert ended.timed_out
        assert ended.exit_code is None
        assert ended.error == "over the time limit of 0.7 s"
        assert marked(mark) == []

    def test_a_command_over_its_time_hears_term_first(self, folders: tuple[Path, Path]) -> None:
        script = "trap 'echo bye; exit 0' TERM; echo up; while :; do sleep 0.05; done"
        ended = run(folders, ["sh", "-c", script], timeout_seconds=0.5, limits=Limits(grace_seconds=5))
        assert ended.timed_out
        assert ended.output.endswith("bye\n")
        assert ended.duration_seconds < 4

    def test_stop_ends_the_command(self, folders: tuple[Path, Path], mark: str) -> None:
        stop = threading.Event()
        ended = run(
            folders, python(f"print('up', flush=True);{SLEEP}", mark), stop=stop, on_output=lambda _: stop.set()
        )
        assert ended.stopped
        assert ended.exit_code is None
        assert marked(mark) == []

    def test_an_error_of_the_watcher_ends_the_command_too(self, folders: tuple[Path, Path], mark: str) -> None:
        def broken(_: str) -> None:
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            run(folders, python(f"print('up', flush=True);{SLEEP}", mark), on_output=broken)
        assert marked(mark) == []


class TestNothingIsLeft:
    def test_a_process_that_left_its_session_and_its_parent_is_ended(
        self, folders: tuple[Path, Path], mark: str
    ) -> None:
        ended = run(folders, python(ESCAPE, mark))
        assert ended.exit_code == 0
        assert ended.killed == 1
        assert marked(mark) == []

    def test_a_process_that_changes_its_id_all_the_time_is_ended(self, folders: tuple[Path, Path]) -> None:
        """It would end by itself after 20 s; every walk through the processes misses it."""
        script = (
            "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nend = time.monotonic() + 20\n"
            "beat = os.open('beat', os.O_WRONLY | os.O_CREAT)\n"
            "if os.fork():\n    while os.fstat(beat).st_size < 20: time.sleep(0.01)\n    os._exit(0)\n"
            "while time.monotonic() < end:\n"
            "    if os.fork(): os._exit(0)\n    os.setsid()\n    os.write(beat, b'.')\n"
        )
        ended = run(folders, python(script))
        assert ended.exit_code == 0
        assert ended.killed >= 1
        beats = (folders[0] / "beat").stat().st_size
        assert beats >= 20
        time.sleep(0.3)
        assert (folders[0] / "beat").stat().st_size == beats

    def test_a_tree_of_processes_is_ended_at_the_time_limit(self, folders: tuple[Path, Path], mark: str) -> None:
        ended = run(folders, python(TREE, mark, "3", TREE), timeout_seconds=1)
        assert ended.timed_out
        assert marked(mark) == []

    def test_a_fork_bomb_is_ended_before_its_time_limit(self, folders: tuple[Path, Path], mark: str) -> None:
        script = (
            "import os, time\nfor _ in range(5000):\n    if os.fork() == 0:\n        time.sleep(600)\ntime.sleep(600)"
        )
        ended = run(folders, python(script, mark), limits=Limits(processes=40, grace_seconds=0.3))
        assert ended.error == ended.exceeded == "more than 40 processes"
        assert ended.exit_code == 137
        assert ended.killed > 40
        assert marked(mark) == []

    @pytest.mark.parametrize("whom", ["guard", "keeper"])
    def test_a_killed_launcher_is_a_lost_runner_with_no_survivors(
        self, folders: tuple[Path, Path], mark: str, whom: str
    ) -> None:
        killed: list[int] = []

        def kill(output: str) -> None:
            keeper = parent_of(int(output))
            killed.append(keeper if whom == "keeper" else parent_of(keeper))
            os.kill(killed[0], signal.SIGKILL)

        script = f"import os, subprocess, sys\nsubprocess.Popen([sys.executable, '-c', {SLEEP!r}, sys.argv[1]])\n"
        script += "print(os.getpid(), flush=True)\n" + SLEEP
        with pytest.raises(RunnerLost):
            run(folders, python(script, mark), on_output=kill)
        assert killed
        assert marked(mark) == []

    def test_a_command_that_kills_all_of_its_launcher_leaves_no_survivors(
        self, folders: tuple[Path, Path], mark: str
    ) -> None:
        """As our own user it may; as another it may not, and then the runner is not lost."""
        script = (
            "import os, signal\nkeeper = os.getppid()\n"
            "guard = int(open(f'/proc/{keeper}/stat').read().rpartition(') ')[2].split()[1])\n"
            "os.kill(guard, signal.SIGSTOP)\nos.kill(keeper, signal.SIGSTOP)\n"
            "os.kill(guard, signal.SIGKILL)\nos.kill(keeper, signal.SIGKILL)\n"
        )
        with pytest.raises(RunnerLost):
            run(folders, python(ESCAPE + script, mark))
        assert until(lambda: marked(mark) == [])

    def test_a_killed_runner_leaves_no_survivors(self, tmp_path: Path, mark: str) -> None:
        (tmp_path / "tree").mkdir()
        script = (
            "import sys; from pathlib import Path; from gates.runner import execute\n"
            f"execute(['python', '-c', {ESCAPE + SLEEP!r}, {mark!r}], Path('tree'), timeout_seconds=60, env={{}},"
            " output_dir=Path('evidence'))"
        )
        ours = {**os.environ, "PYTHONPATH": str(ROOT)}
        with subprocess.Popen([sys.executable, "-c", script], cwd=tmp_path, env=ours) as process:
            assert until(lambda: len(marked(mark)) >= 2)
            process.kill()
        assert until(lambda: marked(mark) == [])

    def test_the_home_of_the_command_is_removed(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, ["sh", "-c", 'echo x > "$HOME/left"; echo y > "$TMPDIR/left"; echo "$HOME"'])
        assert ended.exit_code == 0
        assert not Path(ended.output.strip()).exists()
        assert sorted(path.name for path in folders[1].parent.iterdir()) == ["evidence", "tree"]


class TestBounds:
    def test_a_flood_is_cut_off_and_named(self, folders: tuple[Path, Path], mark: str) -> None:
        began = time.monotonic()
        ended = run(
            folders, python("import sys\nwhile True: print('y' * 1000)", mark), limits=Limits(output_bytes=4 << 20)
        )
        assert time.monotonic() - began < 10
        assert ended.output_limited
        assert ended.error == "more than 4194304 bytes of output"
        assert len(ended.output) <= runner.HEAD_BYTES + runner.TAIL_BYTES + 100
        assert marked(mark) == []

    def test_of_a_long_output_head_and_tail_are_kept(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, python("for n in range(400_000): print(n)"))
        assert ended.exit_code == 0
        assert not ended.output_limited
        assert ended.output.startswith("0\n1\n2\n")
        assert ended.output.endswith("399998\n399999\n")
        assert "bytes left out …]" in ended.output
        assert len(ended.output) <= runner.HEAD_BYTES + runner.TAIL_BYTES + 100

    def test_an_output_of_just_the_kept_size_is_whole(self, folders: tuple[Path, Path]) -> None:
        size = runner.HEAD_BYTES + runner.TAIL_BYTES
        ended = run(folders, python(f"import sys; sys.stdout.write('abcdefg\\n' * ({size} // 8))"))
        assert ended.output == "abcdefg\n" * (size // 8)

    def test_memory_over_the_limit_is_refused_to_the_command(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, python("x = bytearray(1 << 30)"), limits=Limits(memory_bytes=400 << 20))
        assert ended.exit_code == 1
        assert "MemoryError" in ended.output

    def test_a_file_over_the_limit_is_refused_to_the_command(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, python("open('big', 'wb').write(bytes(3 << 20))"), limits=Limits(file_bytes=1 << 20))
        assert ended.exit_code != 0
        assert (folders[0] / "big").stat().st_size <= 1 << 20

    def test_open_files_over_the_limit_are_refused_to_the_command(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, python("f = [open('/dev/null') for _ in range(99)]"), limits=Limits(open_files=32))
        assert "Too many open files" in ended.output

    def test_cpu_over_the_limit_ends_the_command(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, python("while True: pass"), limits=Limits(cpu_seconds=1))
        assert ended.exit_code in {128 + signal.SIGXCPU, 128 + signal.SIGKILL}
        assert not ended.timed_out


class TestWhatItSees:
    def test_our_environment_is_not_seen(self, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SIGNALBOX_A_SECRET", "swordfish")
        ended = run(folders, ["env"], env={"GIVEN": "yes"})
        names = {line.partition("=")[0] for line in ended.output.splitlines()}
        ours = {"PATH", "HOME", "TMPDIR", "LANG", "GIT_CEILING_DIRECTORIES", "PYTHONUNBUFFERED", "SIGNALBOX_EVIDENCE"}
        assert names == {*ours, "GIVEN"}
        assert "swordfish" not in ended.output

    def test_no_environment_on_the_way_to_it_holds_ours(
        self, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SIGNALBOX_A_SECRET", "swordfish")
        script = (
            "import os\npid = os.getppid()\nfor _ in range(2):\n    try:\n"
            "        print(open(f'/proc/{pid}/environ').read())\n    except PermissionError: print('refused')\n"
            "    pid = open(f'/proc/{pid}/stat').read().rpartition(') ')[2].split()[1]\n"
        )
        ended = run(folders, python(script))
        assert ended.exit_code == 0
        assert "swordfish" not in ended.output

    def test_the_evidence_folder_is_named_in_environment_and_arguments(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, ["sh", "-c", 'echo "$SIGNALBOX_EVIDENCE $1"; echo x > "$1"', "sh", "{evidence}/a.txt"])
        assert ended.output == f"{folders[1]} {folders[1]}/a.txt\n"
        assert (folders[1] / "a.txt").read_text() == "x\n"

    def test_the_evidence_folder_cannot_be_renamed_by_the_environment_given(self, folders: tuple[Path, Path]) -> None:
        ended = run(folders, ["sh", "-c", 'echo "$SIGNALBOX_EVIDENCE"'], env={"SIGNALBOX_EVIDENCE": "/elsewhere"})
        assert ended.output == f"{folders[1]}\n"

    def test_no_descriptor_of_ours_is_open_in_it(self, folders: tuple[Path, Path]) -> None:
        with (folders[1].parent / "ours").open("w") as ours:
            os.set_inheritable(ours.fileno(), True)
            script = "import os\nfor n in range(256):\n    try: os.fstat(n); print(n)\n    except OSError: pass"
            assert run(folders, python(script)).output == "0\n1\n2\n"

    def test_its_standard_input_is_empty(self, folders: tuple[Path, Path]) -> None:
        assert run(folders, ["cat"]).output == ""

    def test_it_gains_no_rights(self, folders: tuple[Path, Path]) -> None:
        told = run(folders, ["cat", "/proc/self/status"]).output.split()
        assert told[told.index("NoNewPrivs:") + 1] == "1"
        assert int(told[told.index("CapEff:") + 1], 16) == 0
        assert run(folders_again(folders), ["sh", "-c", "ulimit -c"]).output == "0\n"

    def test_our_interpreter_runs_pytest_and_its_report_is_read(self, folders: tuple[Path, Path]) -> None:
        (folders[0] / "test_it.py").write_text(
            "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n@pytest.mark.skip\ndef test_c(): pass\n"
        )
        ended = run(folders, ["python", "-m", "pytest", "-q", "--junitxml={evidence}/junit.xml"])
        assert ended.exit_code == 1
        assert (folders[0] / ".pytest_cache").is_dir()
        found = evidence.collect(folders[1], {"junit": "junit.xml"})["junit"]
        assert isinstance(found, bytes)
        results = evidence.parse("junit", found)
        assert (results.total, results.passed, results.failed, results.skipped) == (3, 1, 1, 1)


def folders_again(folders: tuple[Path, Path]) -> tuple[Path, Path]:
    return folders[0], folders[1].with_name("evidence-again")


class TestUsersAndLevels:
    def test_another_user_is_taken_where_it_can_reach_everything(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Root changes to the user and hands the folders over; anybody else stays who they are, and says so."""
        monkeypatch.setattr(runner, "INTERPRETER", "/usr/bin/env")
        monkeypatch.setattr(runner.os, "__file__", "/usr/bin/env")
        with tempfile.TemporaryDirectory(dir="/tmp") as top:
            os.chmod(top, 0o755)
            tree = Path(top, "tree")
            tree.mkdir()
            (tree / "file").write_text("x")
            (tree / "link").symlink_to("/etc/hostname")
            before = os.stat("/etc/hostname").st_uid
            ended = run((tree, Path(top, "evidence")), ["sh", "-c", "id -u; id -G; echo y > file"], uid=54321)
            assert ended.exit_code == 0
            assert os.stat("/etc/hostname").st_uid == before
            if os.geteuid() == 0:
                assert ended.output == "54321\n54321\n"
                assert ended.notes == ()
                assert (tree / "file").stat().st_uid == 54321
            else:
                assert ended.output.startswith(f"{os.getuid()}\n")
                assert "only root can change" in ended.notes[0]

    def test_a_user_that_cannot_reach_the_folder_is_not_taken_and_said_so(
        self, folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folders[0].parent.chmod(stat.S_IRWXU)
        ended = run(folders, ["id", "-u"], uid=54321)
        assert ended.output == f"{os.getuid()}\n"
        assert ended.level == 1
        assert len(ended.notes) == 1

    def test_level_0_is_refused_unless_allowed(self, folders: tuple[Path, Path]) -> None:
        with pytest.raises(LevelRefused):
            run(folders, ["true"], level=0)
        ended = run(folders, ["true"], level=0, allow_unsafe=True)
        assert (ended.exit_code, ended.level) == (0, 0)

    def test_a_level_that_is_not_there_is_refused_and_nothing_runs(self, folders: tuple[Path, Path]) -> None:
        with pytest.raises(LevelRefused):
            run(folders, ["touch", "ran"], level=available_level() + 1)
        assert not (folders[0] / "ran").exists()

    def test_the_level_here_is_found_by_trying(self) -> None:
        assert available_level() >= 2, runner.probe().missing


class TestFolders:
    def test_an_output_folder_with_something_in_it_is_refused(self, folders: tuple[Path, Path]) -> None:
        folders[1].mkdir()
        (folders[1] / "junit.xml").write_text("<testsuites/>")
        with pytest.raises(RunnerLost, match="must be empty"):
            run(folders, ["true"])

    def test_an_output_folder_inside_the_tree_is_refused(self, folders: tuple[Path, Path]) -> None:
        with pytest.raises(RunnerLost, match="outside the tree"):
            run((folders[0], folders[0] / "out"), ["true"])

    def test_a_tree_that_is_gone_is_a_lost_runner(self, tmp_path: Path) -> None:
        with pytest.raises(RunnerLost):
            run((tmp_path / "gone", tmp_path / "out"), ["true"])


KEY = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n" + "QUJD\n" * 50 + "-----END RSA PRIVATE KEY-----"


class TestOutputText:
    @pytest.mark.parametrize(
        ("given", "kept"),
        [
            ("plain\ttext\n", "plain\ttext\n"),
            ("\x1b[31mred\x1b[0m", "red"),
            ("\x1b[38;5;196mred", "red"),
            ("\x1b]0;title\x07after", "after"),
            ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1b]0;never closed\nnext line", "\nnext line"),
            ("\x1bP1$r\x1b\\x", "x"),
            ("\x1b(Bx\x1b=y", "xy"),
            ("\x9b31mx", "x"),
            ("a\x00b\x07c\x08d\x7fe\x85f", "abcdef"),
            ("a\r\nb\rc", "a\nb\nc"),
            ("abc\u202edef\u2066g\u200fh", "abcdefgh"),
            ("\x1b", ""),
            ("Grüße 日本 🎉", "Grüße 日本 🎉"),
        ],
    )
    def test_control_characters_are_taken_out(self, given: str, kept: str) -> None:
        assert clean(given) == (kept, 0)

    @pytest.mark.parametrize(
        "secret",
        [
            "ghp_" + "a1B2" * 9,
            "github_pat_" + "a1_B" * 9,
            "AKIAIOSFODNN7EXAMPLE",
            "sk-ant-" + "x" * 40,
            "glpat-" + "x" * 20,
            "xoxb-123456789012-abcdef",
            "sbx_01abcdEF_" + "x_-9" * 10,
            KEY,
            KEY[:200],
        ],
    )
    def test_what_looks_like_a_secret_is_redacted(self, secret: str) -> None:
        assert clean(f"token={secret}, end") == ("token=[redacted], end", 1)

    def test_known_values_are_redacted_even_behind_control_characters(self) -> None:
        assert clean("a sword\x1b[1mfish and swordfish", ["swordfish"]) == ("a [redacted] and [redacted]", 2)

    def test_words_that_only_resemble_a_secret_stay(self) -> None:
        text = "task-aaaaaaaaaaaaaaaaaaaaaaaaa AKIA sk-short ghp_short BEGIN PRIVATE KEY"
        assert clean(text) == (text, 0)

    def test_cleaning_the_worst_text_takes_no_long(self) -> None:
        began = time.monotonic()
        for bad in ("-----BEGIN PRIVATE KEY-----", "\x1b]", "\x1b[", "sk-", "-----BEGIN PRIVATE KEY-----\na: b\n"):
            clean(bad * ((1 << 20) // len(bad)), ["sk-sk-sk-sk-!"])
        assert time.monotonic() - began < 10

    def test_a_secret_across_the_cut_leaves_no_half(self, folders: tuple[Path, Path]) -> None:
        secret = "S3cret" * 20
        script = (
            f"import sys\nsecret, head, tail = 'S3cret' * 20, {runner.HEAD_BYTES}, {runner.TAIL_BYTES}\n"
            "sys.stdout.write('a' * (head - 60) + secret + 'b' * 500_000 + secret + 'c' * (tail - 60))"
        )
        ended = run(folders, python(script), secrets=[secret])
        assert "bytes left out" in ended.output
        assert "S3cret" not in ended.output

    def test_the_watcher_gets_all_of_it_without_secrets_though_they_come_in_pieces(
        self, folders: tuple[Path, Path]
    ) -> None:
        script = (
            "import sys, time\nkey = sys.argv[1]\n"
            "for piece in ['one\\nsword', 'fish\\n', key[:90], key[90:], '\\nlast']:\n"
            "    sys.stdout.write(piece); sys.stdout.flush(); time.sleep(0.03)"
        )
        seen: list[str] = []
        ended = run(folders, python(script, KEY), secrets=["swordfish"], on_output=seen.append)
        assert "".join(seen) == ended.output == "one\n[redacted]\n[redacted]\nlast"
        assert ended.redactions == 2
