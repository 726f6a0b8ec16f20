"""How the agent drives tools that stream: command lines, truth about life and stops, secrets, older servers."""

import os
import shutil
import signal
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from tests.workers.agent.conftest import FAST, KEY, python
from tests.workers.agent.test_stop import wait_for_file
from workers.agent.adapters.aider import Aider
from workers.agent.adapters.claude import Claude
from workers.agent.adapters.codex import Codex
from workers.agent.claim import read
from workers.agent.output import Redactor
from workers.agent.process import ToolProcess

ROOT = Path(__file__).parents[3]


@pytest.fixture
def prepare(make_claim, tmp_path):
    """The invocation of an adapter for a command."""

    def begin(adapter, command, *, prompt="Do it", request=None, **parts):
        claim = make_claim(command, prompt=prompt, request=request)
        scratch = tmp_path / "scratch"
        scratch.mkdir(exist_ok=True)
        return adapter(read({**claim, **parts}), Redactor()).prepare(tmp_path, scratch)

    return begin


def test_the_command_line_of_claude(prepare):
    reservation = {"amount": "1.25", "currency": "USD"}
    command = ["claude", "--allowedTools", "Bash(make *)"]
    invocation = prepare(Claude, command, request={"model": "opus"}, reservation=reservation)
    argv = list(invocation.argv)
    assert uuid.UUID(argv.pop(argv.index("--session-id") + 1)).version == 4
    assert " ".join(argv) == (
        "claude --allowedTools Bash(make *) -p --output-format stream-json --verbose --session-id --model opus"
        " --max-budget-usd 1.25 --permission-mode acceptEdits"
    )
    assert invocation.stdin == b"Do it"


def test_what_the_tools_command_says_of_permissions_stands(prepare):
    argv = prepare(Claude, ["claude", "--permission-mode", "plan"]).argv
    assert argv.count("--permission-mode") == 1
    assert "--max-budget-usd" not in argv, "nothing was set aside"
    assert "--sandbox" not in prepare(Codex, ["codex", "-s", "read-only"]).argv


def test_a_reservation_in_another_currency_is_no_budget_in_dollars(prepare):
    reservation = {"amount": "1.25", "currency": "EUR"}
    assert "--max-budget-usd" not in prepare(Claude, ["claude"], reservation=reservation).argv


def test_the_command_line_of_codex(prepare):
    invocation = prepare(Codex, ["codex", "-c", "model_reasoning_effort=high"], request={"model": "gpt-5.1"})
    assert " ".join(invocation.argv) == (
        "codex -c model_reasoning_effort=high exec --json --color never --sandbox workspace-write --model gpt-5.1 -"
    )
    assert invocation.stdin == b"Do it"


def test_the_command_line_of_aider_and_its_prompt_in_a_file(prepare, tmp_path):
    invocation = prepare(Aider, ["aider"], request={"model": "sonnet"})
    argv = list(invocation.argv)
    for flag in ("--yes-always", "--no-auto-commits", "--no-dirty-commits", "--no-analytics", "--no-gitignore"):
        assert flag in argv
    assert Path(argv[argv.index("--message-file") + 1]).read_text() == "Do it"
    assert all(str(tmp_path / "scratch") in path for path in argv if path.startswith("/"))


@pytest.mark.parametrize("prompt", ["/run rm -rf .", "!rm -rf ."])
def test_a_prompt_is_never_a_command_to_aider(prepare, prompt):
    argv = prepare(Aider, ["aider"], prompt=prompt).argv
    assert Path(argv[-1]).read_text() == f"Task: {prompt}"


@pytest.mark.parametrize("adapter", [Claude, Codex, Aider])
def test_a_tool_without_a_command_is_an_invalid_request(server, make_claim, work_once, adapter):
    work_once(make_claim([], request={"adapter": adapter.name}), adapters=(adapter.name,))
    [failed] = server.effects["fail"]
    assert failed["error_message"] == "Invalid request: command is empty"


@pytest.mark.parametrize("adapter", [Claude, Codex, Aider])
def test_a_tool_that_was_stopped_before_it_began_used_nothing(make_claim, adapter):
    unborn = adapter(read(make_claim(["x"])), Redactor())
    result = unborn.ending(success=False, outcome="cancelled", error_code="stop_requested")
    assert (result.usage, result.exit_code, result.session_ref) == ([], None, "")


def test_asking_again_and_again_is_no_progress(make_claim):
    heard = Claude(read(make_claim(["x"])), Redactor())
    retry = b'{"type":"system","subtype":"api_retry","attempt":1,"error_status":529,"error":"overloaded"}\n'
    for line in (retry, retry, b'{"type":"rate_limit_event","rate_limit_info":{"status":"rejected"}}\n'):
        heard._hear("stdout", line)
    assert heard.movement == 0
    assert [signal.activity for signal in heard.signals()] == ["waiting_model", "waiting_model", "quota_wait"]
    heard._hear("stdout", b'{"type":"system","subtype":"init"}\n')
    assert heard.movement == 1


def test_a_frozen_tool_under_a_beating_agent_is_not_said_to_live(server, make_claim, work_once, tmp_path):
    pid, go = tmp_path / "pid", tmp_path / "go"
    program = (
        f"import os, time\nopen({str(pid)!r}, 'w').write(str(os.getpid()))\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01); print('.', flush=True)"
    )
    frozen: list[tuple[bool, dict]] = []

    def beat(call):
        if not call.body["leases"] or not pid.exists() or not pid.read_text():
            return 200, {"directive": "continue", "leases": []}
        if not frozen:
            os.kill(int(pid.read_text()), signal.SIGSTOP)
        frozen.append((call.body["process_alive"], call.body["leases"][0]["progress"]))
        if len(frozen) == 8:
            go.touch()
            os.kill(int(pid.read_text()), signal.SIGCONT)
        return 200, {"directive": "continue", "leases": []}

    server.on_heartbeat = beat
    work_once(make_claim(python(program)))
    assert frozen[7] == (False, {})
    assert server.effects["complete"]


def test_nobody_is_told_that_a_tool_stopped_while_something_of_it_lives(
    server, make_claim, start, tmp_path, monkeypatch
):
    up = tmp_path / "up"

    def beat(call):
        asked = call.body["leases"] and up.exists()
        return 200, {"directive": "stop" if asked else "continue", "leases": []}

    server.on_heartbeat = beat
    monkeypatch.setattr(ToolProcess, "left_alive", property(lambda self: 1, lambda self, number: None), raising=False)
    server.claims.append(make_claim(python(f"open({str(up)!r}, 'w').write('x')\nimport time; time.sleep(60)")))
    start(once=True).join()
    assert any(c.body["leases"][0]["stopping"] for c in server.named("heartbeat") if c.body["leases"])
    assert not server.effects["fail"], "the lease runs out, and its end stays unconfirmed"
    assert not server.effects["complete"]


def test_a_secret_is_found_although_json_escapes_it(server, make_claim, work_once, monkeypatch):
    secret = 'pass"word\nwith\\all'
    monkeypatch.setenv("BUILD_PASSWORD", secret)
    text = f"it is {secret}, and {KEY}"
    program = f"""
import json
print(json.dumps({{"type": "assistant", "message": {{"content": [{{"type": "text", "text": {text!r}}}]}}}}))
print(json.dumps({{"type": "result", "subtype": "success", "is_error": True, "result": {text!r}}}))
"""
    work_once(make_claim(python(program), request={"adapter": "claude"}), adapters=("claude",))
    [failed] = server.effects["fail"]
    assert "it is [redacted], and [redacted]" in failed["output_tail"]
    assert failed["error_message"] == "it is [redacted], and [redacted]"
    assert "with" not in failed["output_tail"]


def test_a_server_that_does_not_know_the_younger_fields_still_hears_the_report(server, make_claim, work_once):
    def strict(call):
        known = {"session_ref", "until", "question"} & set(call.body)
        if known or any("stated_amount" in item for item in call.body["usage"]):
            return 400, {"code": "unknown_field", "detail": "This field is not known here"}
        return server.effect("fail", call)

    server.faults["fail"] += [strict, strict]
    fake = [sys.executable, str(Path(__file__).with_name("fakes") / "claude.py"), "--scenario", "needs input"]
    work_once(make_claim(fake, request={"adapter": "claude"}), adapters=("claude",))
    assert [len(server.named("fail")), len(server.effects["fail"])] == [2, 1]
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"]) == ("needs_human", "question")
    assert [item["resource_type"] for item in failed["usage"]] == ["compute_time", "api_call"], "no use is lost"


def test_a_completion_whose_stated_cost_is_not_known_is_still_a_completion(server, make_claim, work_once):
    server.faults["complete"].append(lambda call: (400, {"code": "unknown_field", "detail": "not known here"}))
    fake = [sys.executable, str(Path(__file__).with_name("fakes") / "claude.py"), "--scenario", "patch"]
    work_once(make_claim(fake, request={"adapter": "claude"}), adapters=("claude",))
    [completed] = server.effects["complete"]
    assert not any("stated_amount" in item for item in completed["usage"])
    assert len(completed["usage"]) == 3
    assert completed["session_ref"]
    assert not server.effects["fail"]


def test_a_reader_survives_an_event_in_another_form(server, make_claim, work_once, monkeypatch):
    def breaks(self, document):
        raise KeyError("another form")

    monkeypatch.setattr(Codex, "_read_item", breaks)
    fake = [sys.executable, str(Path(__file__).with_name("fakes") / "codex.py"), "--scenario", "patch"]
    work_once(make_claim(fake, request={"adapter": "codex"}), adapters=("codex",))
    assert server.effects["complete"], "the tool never hangs at a pipe that nobody reads"


def test_codex_writes_its_sessions_where_it_is_told(server, make_claim, work_once, tmp_path, monkeypatch):
    monkeypatch.setenv("CODEX_HOME", str(tmp_path / "codex"))
    fake = [sys.executable, str(Path(__file__).with_name("fakes") / "codex.py"), "--scenario", "crash"]
    request = {"adapter": "codex", "env_allow": ["CODEX_HOME"]}
    work_once(make_claim(fake, request=request), adapters=("codex",))
    assert list((tmp_path / "codex").glob("sessions/*/*/*/*.jsonl"))
    [item] = [item for item in server.effects["fail"][0]["usage"] if item["resource_type"] == "api_call"]
    assert (item["model"], item["tokens_output"]) == ("gpt-5.2-codex", 30)


def test_the_ladder_reaches_a_streaming_tool_that_ignores_signals(server, make_claim, work_once, tmp_path):
    gate = tmp_path / "gate"
    fake = [sys.executable, str(Path(__file__).with_name("fakes") / "codex.py"), "--scenario", "budget stop"]
    deaf = python(
        "import signal, subprocess, sys\n"
        "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"open({str(gate)!r}, 'w').write('up')\n"
        "subprocess.run(sys.argv[1:])\nimport time; time.sleep(300)"
    )
    money = {
        "reservation": {"amount": "0.10", "currency": "USD"},
        "price_ceiling": {
            "currency": "USD",
            **dict.fromkeys(("uncached_input", "cache_read", "cache_write_5m", "cache_write_1h", "output"), "5"),
        },
    }
    claim = {**make_claim([*deaf, *fake], request={"adapter": "codex"}), **money}
    work_once(claim, adapters=("codex",), timing=replace(FAST, terminate_after_seconds=0.2, kill_after_seconds=0.4))
    wait_for_file(gate)
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["exit_code"]) == ("budget_stop", 137)


def test_the_folder_of_the_agent_runs_alone_with_python_and_httpx(server, make_claim, tmp_path):
    """Only the standard library and what httpx itself needs can be imported, as after `pip install httpx`."""
    alone = tmp_path / "alone"
    shutil.copytree(
        ROOT / "workers" / "agent", alone / "workers" / "agent", ignore=shutil.ignore_patterns("__pycache__")
    )
    packages = tmp_path / "packages"
    packages.mkdir()
    for name in ("httpx", "httpcore", "h11", "anyio", "idna", "certifi", "sniffio", "typing_extensions"):
        spec = __import__("importlib.util").util.find_spec(name)
        if spec is not None:
            path = Path(spec.origin)
            found = path.parent if path.name == "__init__.py" else path
            (packages / found.name).symlink_to(found)
    server.claims.append(make_claim(python("open('new', 'w').write('x\\n')")))
    ran = subprocess.run(
        [
            sys.executable, "-S", "-m", "workers.agent", "--url", server.url, "--once", "--wait", "0",
            "--tool", "shell,claude,codex,aider",
        ],
        cwd=alone,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{alone}{os.pathsep}{packages}", "SIGNALBOX_KEY": KEY},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert len(server.effects["complete"]) == 1
    assert server.effects["workers"][0]["metadata"]["adapters"] == ["shell", "claude", "codex", "aider"]
