"""What a tool did to its checkout arrives as a patch, byte for byte."""

import os
from pathlib import Path

from tests.workers.agent.conftest import KEY, python

EDIT = r"""
import os, pathlib, subprocess, sys
pathlib.Path("keep.txt").write_text("one\n2\nthree\n")
os.remove("gone.txt")
pathlib.Path("new dir/deep").mkdir(parents=True)
pathlib.Path("new dir/deep/a file.txt").write_text("hello\n")
pathlib.Path("crlf.txt").write_bytes(b"x\r\ny\r\n")
pathlib.Path("code.py").write_text("x = 2\n")
pathlib.Path("run.sh").write_text("#!/bin/sh\n")
os.chmod("run.sh", 0o755)
pathlib.Path("prompt.txt").write_text(sys.stdin.read())
"""


def test_every_kind_of_change_arrives_and_the_attempt_completes(server, repository, make_claim, work_once, tmp_path):
    assert work_once(make_claim(python(EDIT), prompt="Grüße, bitte\n")) == 0

    [patch] = server.effects["patches"]
    assert (patch["lease"], patch["generation"]) == ("L1", 7)
    assert patch["base_commit"] == repository.head
    assert patch["summary"] == "Change a file"
    files = repository.tree_after(patch["diff_text"], tmp_path)
    assert files["keep.txt"] == ("100644", b"one\n2\nthree\n")
    assert files["new dir/deep/a file.txt"] == ("100644", b"hello\n")
    assert files["crlf.txt"] == ("100644", b"x\r\ny\r\n")
    assert files["run.sh"] == ("100755", b"#!/bin/sh\n")
    assert files["code.py"] == ("100644", b"x = 2\n")
    assert files["prompt.txt"][1].decode() == "Grüße, bitte\n"
    assert "gone.txt" not in files
    assert set(files) == {
        ".gitattributes", "first", "keep.txt", "dos.txt", "code.py", "new dir/deep/a file.txt", "crlf.txt", "run.sh",
        "prompt.txt",
    }  # fmt: skip
    assert "dos.txt" not in patch["diff_text"], "a file that was not touched must not be normalised"
    assert "GIT binary patch" not in patch["diff_text"]

    [completed] = server.effects["complete"]
    assert completed["patch_ids"] == ["P1"]
    assert completed["exit_code"] == 0
    assert completed["generation"] == 7
    assert completed["usage"][0]["idempotency_key"] == "L1:compute"
    assert completed["usage"][0]["source"] == "agent"
    assert not server.effects["fail"]
    assert [call.body["reason"] for call in server.named("shutdown")] == ["The agent claims once"]


def test_every_call_but_the_heartbeat_carries_a_key_of_its_own(server, make_claim, work_once):
    work_once(make_claim(python(EDIT)))
    keys = [call.key for call in server.calls if server.name_of(call.path) != "heartbeat"]
    assert len(set(keys)) == len(keys) == 5  # register, claim, patch, complete, shutdown
    assert None not in keys
    assert all(call.key is None for call in server.named("heartbeat"))
    assert all(call.headers["authorization"] == f"Bearer {KEY}" for call in server.calls)
    assert all(call.headers["user-agent"].startswith("signalbox-agent/") for call in server.calls)


def test_no_change_is_no_patch(server, make_claim, work_once):
    work_once(make_claim(python("pass")))
    assert server.effects["complete"][0]["patch_ids"] == []
    assert not server.effects["patches"]


def test_no_change_is_a_failure_where_a_patch_is_required(server, make_claim, work_once):
    work_once(make_claim(python("print('thinking')"), task={"requires_patch": True}))
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"], failed["exit_code"]) == ("task_failed", "no_edit", 0)
    assert "thinking" in failed["output_tail"]
    assert not server.effects["patches"]
    assert not server.effects["complete"]


def test_what_the_tool_commits_or_configures_has_no_say_in_the_diff(
    server, repository, make_claim, work_once, tmp_path
):
    program = r"""
import pathlib, subprocess
run = lambda *a: subprocess.run(a, check=True)
pathlib.Path("keep.txt").write_text("committed\n")
run("git", "commit", "-qam", "mine")
run("git", "rm", "-q", "--cached", "first")
trap = "touch %s" % (pathlib.Path.cwd() / "trapped")
run("git", "config", "core.fsmonitor", trap)
run("git", "config", "filter.evil.clean", trap + "; cat")
run("git", "config", "diff.external", trap)
run("git", "config", "core.hooksPath", "/tmp")
pathlib.Path("a.dat").write_text("data\n")
"""
    work_once(make_claim(python(program)))
    files = repository.tree_after(server.effects["patches"][0]["diff_text"], tmp_path)
    assert files["keep.txt"][1] == b"committed\n"
    assert files["a.dat"][1] == b"data\n"
    assert "first" in files
    assert "trapped" not in files


def test_the_diff_survives_a_tool_that_deletes_its_git_folder(server, repository, make_claim, work_once, tmp_path):
    program = "import shutil; shutil.rmtree('.git'); open('keep.txt', 'w').write('x\\n')"
    work_once(make_claim(python(program)))
    assert repository.tree_after(server.effects["patches"][0]["diff_text"], tmp_path)["keep.txt"][1] == b"x\n"


def test_a_checkout_that_was_replaced_by_a_link_is_not_read(server, make_claim, work_once):
    program = "import os; p = os.getcwd(); os.rename(p, p + '2'); os.symlink('/etc', p)"
    work_once(make_claim(python(program)))
    assert server.effects["fail"][0]["error_code"] == "diff_failed"
    assert not server.effects["patches"]


def test_the_checkout_is_detached_at_the_commit_without_hooks_or_remotes(server, make_claim, work_once):
    program = r"""
import os, subprocess
ask = lambda *a: subprocess.run(("git", *a), capture_output=True, text=True).stdout.strip()
print("head", ask("rev-parse", "HEAD"), "branch", ask("branch", "--show-current") or "none")
print("status", ask("status", "--porcelain") or "clean", "remotes", ask("remote") or "none")
hooks = os.path.exists(".git/hooks") and os.listdir(".git/hooks")
print("hooks", hooks or "none", "log", ask("rev-list", "--count", "HEAD"))
print("mode %o" % (os.stat("..").st_mode & 0o777))
"""
    claim = make_claim(python(program))
    work_once(claim)
    tail = server.effects["complete"][0]["output_tail"]
    assert f"head {claim['checkout']['commit']} branch none" in tail
    assert "status clean remotes none" in tail
    assert "hooks none log 2" in tail
    assert "mode 700" in tail


def test_a_refused_patch_fails_the_attempt_with_the_reason(server, make_claim, work_once):
    server.faults["patches"].append(lambda call: (422, {"code": "path_escape", "detail": "Leaves the tree"}))
    work_once(make_claim(python(EDIT)))
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"], failed["error_message"]) == (
        "task_failed",
        "path_escape",
        "Leaves the tree",
    )
    assert not server.effects["complete"]


def test_a_diff_that_is_not_utf8_or_too_large_is_a_failure_with_a_code(server, make_claim, start):
    server.claims += [
        make_claim(python(r"open('keep.txt', 'wb').write(b'caf\xe9\n')")),
        make_claim(python(r"open('big.txt', 'w').write('x' * 79 + '\n' + ('y' * 79 + '\n') * 70000)")),
    ]
    start()
    server.wait_for(lambda: len(server.effects["fail"]) == 2)
    assert [failed["error_code"] for failed in server.effects["fail"]] == ["diff_not_utf8", "patch_too_large"]
    assert "keep.txt" in server.effects["fail"][0]["error_message"]


def test_workspaces_are_removed_unless_they_are_to_be_kept(server, make_claim, work_once, tmp_path):
    work_once(make_claim(python("import os; os.mkdir('locked'); os.chmod('locked', 0)")))
    assert list((tmp_path / "work").iterdir()) == []
    work_once(make_claim(python(EDIT)), keep_workspaces=True)
    [kept] = (tmp_path / "work").iterdir()
    assert (kept / "tree" / "crlf.txt").exists()
    assert os.stat(kept).st_mode & 0o777 == 0o700


def test_a_commit_that_cannot_be_fetched_is_nobodys_fault(server, make_claim, work_once, tmp_path: Path):
    claim = make_claim(python(EDIT))
    claim["checkout"]["url"] = str(tmp_path / "nowhere")
    work_once(claim)
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"], failed["exit_code"]) == ("infra_lost", "checkout_failed", None)
    assert failed["usage"] == []
