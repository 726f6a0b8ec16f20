"""Reports arrive once, whatever the network does; and what the tool says is bounded and clean."""

import json
import resource

import pytest

from tests.workers.agent.conftest import KEY, python

EDIT = "open('keep.txt', 'w').write('new\\n')"


@pytest.mark.parametrize("name", ["workers", "claim", "patches", "complete", "shutdown"])
@pytest.mark.parametrize("fault", ["refuse", "drop"])
def test_a_server_that_is_down_or_whose_answer_is_lost_gets_every_report_once(
    server, make_claim, work_once, name, fault
):
    server.faults[name] += [fault, "refuse", fault]
    assert work_once(make_claim(python(EDIT))) == 0
    assert {n: len(server.effects[n]) for n in ("workers", "patches", "complete", "fail", "shutdown")} == {
        "workers": 1,
        "patches": 1,
        "complete": 1,
        "fail": 0,
        "shutdown": 1,
    }
    tries = server.named(name)
    assert len(tries) == 4
    assert len({call.key for call in tries}) == 1, "one logical call keeps its key"
    assert all(call.body == tries[0].body for call in tries)


def test_a_lost_answer_to_a_failure_is_one_failure(server, make_claim, work_once):
    server.faults["fail"] += ["drop", "drop"]
    work_once(make_claim(python("raise SystemExit(3)")))
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"], failed["exit_code"]) == ("task_failed", "exit_3", 3)
    assert len(server.named("fail")) == 3


def test_retry_after_is_honoured(server, make_claim, work_once):
    server.faults["complete"].append(lambda call: (429, {"code": "slow_down", "retry_after": 1}))
    work_once(make_claim(python("pass")))
    first, second = server.named("complete")
    assert second.at - first.at >= 1


def test_a_stale_report_is_discarded(server, make_claim, work_once):
    server.faults["patches"].append(lambda call: (409, {"code": "stale_claim", "detail": "Stale claim"}))
    assert work_once(make_claim(python(EDIT))) == 0
    assert not server.effects["complete"]
    assert not server.effects["fail"]


def test_an_exit_by_signal_is_shown_as_a_shell_shows_it(server, make_claim, work_once):
    work_once(make_claim(python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")))
    assert (server.effects["fail"][0]["error_code"], server.effects["fail"][0]["exit_code"]) == ("exit_139", 139)


def test_the_expected_exit_codes_are_the_requests(server, make_claim, work_once):
    request = {"constraints": {"expected_exit_codes": [0, 4]}}
    work_once(make_claim(python("raise SystemExit(4)"), request=request))
    assert server.effects["complete"][0]["exit_code"] == 4


def test_a_program_that_does_not_exist_is_a_failure_of_the_task(server, make_claim, work_once):
    work_once(make_claim(["no-such-program-anywhere"]))
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"], failed["exit_code"]) == ("task_failed", "launch_failed", None)
    assert "No such file" in failed["error_message"]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda claim: claim["task"].pop("kind"), "kind"),
        (lambda claim: claim["task"].update(timeout_seconds="soon"), "timeout_seconds"),
        (lambda claim: claim["execution_request"].update(command="rm -rf /"), "command"),
        (lambda claim: claim["execution_request"].update(command=[]), "command"),
        (lambda claim: claim["execution_request"].update(adapter="claude"), "claude"),
        (lambda claim: claim["checkout"].update(commit="--upload-pack=x"), "commit"),
        (lambda claim: claim["checkout"].update(url="ext::sh -c id"), "url"),
        (lambda claim: claim.pop("checkout"), "checkout"),
    ],
)
def test_a_claim_that_makes_no_sense_is_failed_as_an_invalid_request(server, make_claim, work_once, change, named):
    claim = make_claim(python(EDIT))
    change(claim)
    assert work_once(claim) == 0
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"]) == ("task_failed", "invalid_request")
    assert failed["error_message"].startswith("Invalid request: ")
    assert named in failed["error_message"]


def test_the_tool_sees_an_environment_of_its_own_and_never_the_key(server, make_claim, work_once, monkeypatch):
    monkeypatch.setenv("SIGNALBOX_KEY", KEY)
    monkeypatch.setenv("COPY", f"Bearer {KEY}")
    monkeypatch.setenv("ALLOWED", "yes")
    monkeypatch.setenv("OTHER", "no")
    request = {"env_allow": ["ALLOWED", "ABSENT", "SIGNALBOX_KEY", "COPY"]}
    program = "import json, os; open('env.json', 'w').write(json.dumps(dict(os.environ)))"
    work_once(make_claim(python(program), request=request))
    diff = server.effects["patches"][0]["diff_text"]
    seen = json.loads(next(line[1:] for line in diff.splitlines() if line.startswith("+{")))
    assert KEY.split("_", 2)[2] not in diff
    seen.pop("LC_CTYPE", None)
    assert set(seen) == {
        "ALLOWED", "HOME", "LANG", "PATH", "TMPDIR", "SIGNALBOX_TASK", "SIGNALBOX_RUN", "SIGNALBOX_LEASE",
        "SIGNALBOX_USAGE_FILE", "OTEL_RESOURCE_ATTRIBUTES",
    }  # fmt: skip
    assert (seen["SIGNALBOX_TASK"], seen["SIGNALBOX_RUN"], seen["SIGNALBOX_LEASE"]) == ("T1", "R1", "L1")
    assert seen["OTEL_RESOURCE_ATTRIBUTES"] == (
        "signalbox.lease=L1,signalbox.generation=7,signalbox.attempt=A1,signalbox.task=T1,signalbox.run=R1,"
        "signalbox.project=demo"
    )


def test_secrets_are_taken_out_of_what_is_reported(server, make_claim, work_once):
    secret = KEY.split("_", 2)[2]
    halves = f"{secret[:9]!r}, {secret[9:]!r}"
    program = f"""
import sys, time
print("whole {KEY} alone {secret} AKIAABCDEFGHIJKLMNOP ghp_{"a" * 36}", flush=True)
for half in ({halves}):
    sys.stdout.write(half); sys.stdout.flush(); time.sleep(0.05)
print("\\n-----BEGIN RSA PRIVATE KEY-----\\n" + "QUJD" * 2000 + "\\n-----END RSA PRIVATE KEY-----\\nafter")
raise SystemExit(1)
"""
    work_once(make_claim(python(program)))
    tail = server.effects["fail"][0]["output_tail"]
    assert tail == "whole [redacted] alone [redacted] [redacted] [redacted]\n[redacted]\n[redacted]\nafter\n"


def test_fifty_megabytes_of_output_take_little_memory(server, make_claim, work_once):
    program = "import sys\nfor n in range(800): sys.stdout.write('x' * 65536)\nprint('the end')\nraise SystemExit(1)"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    work_once(make_claim(python(program)))
    tail = server.effects["fail"][0]["output_tail"]
    assert tail.endswith("the end\n")
    assert len(tail) <= 8 * 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 * 1024, "KiB"


def test_what_the_tool_writes_to_its_usage_file_is_reported(server, make_claim, work_once):
    line = {"resource_type": "api_call", "model": "m-1", "provider": "p", "tokens_uncached_input": 5, "amount": 0.25}
    keyed = {**line, "idempotency_key": "req-9", "amount": "1e-3", "source": "me"}
    text = json.dumps(line) + "\n" + json.dumps(keyed)
    program = f"import os; open(os.environ['SIGNALBOX_USAGE_FILE'], 'w').write({text!r})"
    work_once(make_claim(python(program)))
    compute, first, second = server.effects["complete"][0]["usage"]
    assert compute["resource_type"] == "compute_time"
    assert compute["usage_quantity"] == compute["duration_seconds"]
    assert first == {**line, "amount": "0.25", "source": "tool", "idempotency_key": "L1:1"}
    assert second == {**line, "amount": "0.001", "source": "tool", "idempotency_key": "req-9"}


@pytest.mark.parametrize(
    ("text", "complaint", "kept"),
    [
        (b"\xff\xfenonsense\n", "line 1: not JSON", 0),
        (b"[1]\n", "line 1: not an object", 0),
        (b"[" * 60000, "line 1: not JSON", 0),
        (b'{"resource_type": "gold"}\n', "line 1: resource_type must be one of", 0),
        (b'{"resource_type": "api_call", "tokens_output": -1}\n', "tokens_output must be a whole number", 0),
        (b'{"resource_type": "api_call", "amount": NaN}\n', "amount must be finite", 0),
        (b'{"resource_type": "api_call", "landing": "waste"}\n', "'landing' is no field", 1),
        (b'{"resource_type": "api_call"}\n' * 150, "more than 100 items", 100),
        (b'{"resource_type": "api_call"}\n' + b" " * 70000, "more than 65536 bytes", 1),
        (b'{"resource_type":"api_call","idempotency_key":"k"}\n' * 2, "line 2: idempotency_key was used above", 1),
    ],
)
def test_garbage_in_the_usage_file_is_told_and_breaks_nothing(
    server, make_claim, work_once, tmp_path, text, complaint, kept
):
    (tmp_path / "usage").write_bytes(text)
    work_once(make_claim(["sh", "-c", f"cp {tmp_path}/usage $SIGNALBOX_USAGE_FILE"]))
    [completed] = server.effects["complete"]
    assert len(completed["usage"]) == 1 + kept
    assert complaint in completed["output_tail"]


@pytest.mark.parametrize("command", ["mkfifo", "ln -s /etc/passwd", "mkdir"])
def test_a_usage_file_that_is_no_file_is_not_opened(server, make_claim, work_once, command):
    work_once(make_claim(["sh", "-c", f"{command} $SIGNALBOX_USAGE_FILE"]))
    [completed] = server.effects["complete"]
    assert len(completed["usage"]) == 1
    assert "usage file: " in completed["output_tail"]


def test_a_refused_completion_becomes_a_failure_with_the_servers_code(server, make_claim, work_once):
    server.faults["complete"].append(lambda call: (422, {"code": "invalid_currency", "detail": "Currency must be …"}))
    work_once(make_claim(python(EDIT)))
    [failed] = server.effects["fail"]
    assert (failed["outcome"], failed["error_code"]) == ("task_failed", "invalid_currency")
    assert [item["source"] for item in failed["usage"]] == ["agent"]
