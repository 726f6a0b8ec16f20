"""Every adapter, every scenario: run against fakes that speak the documented formats, judged by what was reported."""

import os
import resource
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.workers.agent import conformance
from tests.workers.agent.conformance import ADAPTERS, FAKES, SCENARIOS, expected
from tests.workers.agent.test_stop import is_alive
from workers.agent import quota

RATES = {
    "currency": "USD",
    "uncached_input": "2",
    "cache_read": "0.2",
    "cache_write_5m": "2.5",
    "cache_write_1h": "4",
    "output": "10",
}
RESERVATION = {"amount": "0.50", "currency": "USD"}
FLOOD_KIB = 48 * 1024


@pytest.fixture
def run(server, make_claim, work_once, tmp_path):
    """Lets an agent work on a scenario; answers (path, body) of the report that ended it."""

    def begin(adapter, scenario, *, task=None, request=None, resets=0, extra=(), **parts):
        fake = [sys.executable, str(FAKES / f"{adapter}.py"), "--scenario", scenario, "--gate", str(tmp_path / "gate")]
        claim = make_claim(
            [*fake, "--resets", str(resets), *extra],
            task={"timeout_seconds": 30, **(task or {})},
            request={"adapter": adapter, "tool": adapter, **(request or {})},
        )
        claim.update(parts)
        assert work_once(claim, adapters=(adapter,)) == 0
        reports = [call for call in server.calls if server.name_of(call.path) in ("complete", "fail")]
        assert len(reports) == 1
        return reports[0].body

    return begin


def ends_as(server, adapter, scenario, report) -> None:
    """Asserts that the report says what the table says, and that a patch came with a success and with nothing else."""
    end = expected(adapter, scenario)
    if end.outcome == "success":
        assert server.effects["complete"] == [report]
        assert report["patch_ids"] == ["P1"], report["output_tail"]
        assert "+new" in server.effects["patches"][0]["diff_text"]
    else:
        assert server.effects["fail"] == [report]
        assert (report["outcome"], report["error_code"]) == (end.outcome, end.code), report
        assert not server.effects["patches"]


def beats(server):
    """What was said of the lease, heartbeat by heartbeat: activity and progress."""
    bodies = [call.body for call in server.named("heartbeat") if call.body["leases"]]
    return [(body["activity"], body["leases"][0]["progress"]) for body in bodies]


def tokens(report):
    """The items of use that hold tokens, by model: the classes above 0."""
    return {
        item["model"]: {name[7:]: n for name, n in item.items() if name.startswith("tokens_") and n}
        for item in report["usage"]
        if item["resource_type"] == "api_call"
    }


every = pytest.mark.parametrize("adapter", ADAPTERS)


@every
def test_start(server, run, tmp_path, adapter):
    doing = {"shell": "in_tool", "claude": "waiting_model", "codex": "waiting_model", "aider": "waiting_model"}

    def beat(call):
        if call.body["leases"] and call.body["activity"] == doing[adapter]:
            (tmp_path / "gate").touch()
        return 200, {"directive": "continue", "leases": []}

    server.on_heartbeat = beat
    ends_as(server, adapter, "start", run(adapter, "start"))


@every
def test_progress(server, run, tmp_path, adapter):
    silent = []

    def beat(call):
        if call.body["leases"]:
            told = call.body["leases"][0]["progress"]
            moved = [progress for _, progress in beats(server) if progress]
            silent.append(call.body["activity"] if moved and not told else "")
            if len([here for here in silent if here]) >= 3:
                (tmp_path / "gate").touch()
        return 200, {"directive": "continue", "leases": []}

    server.on_heartbeat = beat
    run(adapter, "progress")
    calls_a_tool = {"shell": "in_tool", "claude": "in_tool", "codex": "in_tool", "aider": "waiting_model"}
    assert [here for here in silent if here][:3] == [calls_a_tool[adapter]] * 3
    moved = [progress["movement"] for _, progress in beats(server) if progress]
    assert moved == sorted(set(moved)), "each step is told once"


@pytest.mark.parametrize(
    ("adapter", "used"),
    [
        ("shell", {}),
        (
            "claude",
            {
                "claude-sonnet-4-5": {"uncached_input": 10, "cache_read": 1800, "cache_write_1h": 1250, "output": 90},
                "claude-haiku-4-5": {"uncached_input": 700, "output": 20},
            },
        ),
        ("codex", {"gpt-5.2-codex": {"uncached_input": 500, "cache_read": 1500, "output": 120}}),
        ("aider", {"gpt-4o": {"uncached_input": 5000, "output": 200}}),
    ],
)
def test_cost(server, run, adapter, used):
    report = run(adapter, "cost")
    ends_as(server, adapter, "cost", report)
    assert tokens(report) == used
    compute = report["usage"][0]
    assert compute["resource_type"] == "compute_time"
    assert float(compute["duration_seconds"]) > 0
    keys = [item["idempotency_key"] for item in report["usage"]]
    assert len(set(keys)) == len(keys)
    assert all(key.startswith("L1:") for key in keys)


def test_what_the_tool_states_is_told_beside_the_tokens_and_never_as_the_amount(run):
    items = run("claude", "cost")["usage"][1:]
    assert [item["stated_amount"] for item in items] == ["0.030500", "0.000500"]
    assert not any("amount" in item for item in items)
    assert [item.get("assumed_ttl", False) for item in items] == [True, False], "only a write has a lifetime"


def test_what_messages_of_aider_cost_is_summed_by_model(run):
    [item] = run("aider", "cost")["usage"][1:]
    assert item["stated_amount"] == "0.014500"


def test_with_an_api_key_a_cache_write_is_taken_for_the_five_minute_class(run):
    report = run("claude", "cost", request={"env_allow": ["ANTHROPIC_API_KEY"]})
    assert tokens(report)["claude-sonnet-4-5"]["cache_write_5m"] == 1250


def test_codex_totals_are_of_the_whole_thread_and_the_last_one_counts(run):
    report = run("codex", "cost", extra=("--script", "codex-1ebb1bc7.play"), request={"model": "gpt-5.1"})
    assert tokens(report) == {"gpt-5.1": {"uncached_input": 700, "cache_read": 1900, "output": 150}}


@every
def test_patch(server, run, adapter):
    report = run(adapter, "patch")
    ends_as(server, adapter, "patch", report)
    assert server.effects["patches"][0]["diff_text"].count("diff --git") == 1, "nothing that the tool keeps for itself"
    if adapter in ("claude", "codex"):
        assert report["session_ref"]


@every
def test_no_edit(server, run, adapter):
    ends_as(server, adapter, "no edit", run(adapter, "no edit", task={"requires_patch": True}))


def test_aider_without_an_edit_failed_whatever_the_task_requires(server, run):
    ends_as(server, "aider", "no edit", run("aider", "no edit"))


@every
def test_needs_input(server, run, adapter):
    report = run(adapter, "needs input")
    ends_as(server, adapter, "needs input", report)
    if adapter in ("claude", "codex"):
        assert report["session_ref"], "the session is what an answer goes to"
        assert "Which colour?" in str(report["question"])


def test_claude_that_was_denied_what_it_needed_asks_a_person_only_if_nothing_came_of_it(server, run):
    report = run("claude", "denied")
    assert (report["outcome"], report["error_code"]) == ("needs_human", "permission_denied")
    assert "Bash" in report["error_message"]


@every
def test_quota_refusal(server, run, adapter):
    resets = int((datetime.now(UTC) + timedelta(hours=3)).timestamp())
    report = run(adapter, "quota refusal", resets=resets)
    ends_as(server, adapter, "quota refusal", report)
    if adapter in ("claude", "codex"):
        assert datetime.fromisoformat(report["until"]).timestamp() == resets
    else:
        assert "until" not in report, "nobody said"


def test_a_tool_that_waits_for_quota_gives_its_lease_back(server, run, monkeypatch):
    monkeypatch.setattr(quota, "PATIENCE_SECONDS", 0.5)
    report = run("claude", "quota wait")
    assert (report["outcome"], report["error_code"]) == ("quota_wait", "quota")
    assert "quota_wait" in [activity for activity, _ in beats(server)]


@every
def test_budget_stop(server, run, adapter):
    began = time.monotonic()
    report = run(
        adapter,
        "budget stop",
        task={"timeout_seconds": 2 if adapter == "shell" else 60},
        reservation=RESERVATION,
        price_ceiling=RATES,
    )
    ends_as(server, adapter, "budget stop", report)
    assert time.monotonic() - began < 30
    if adapter == "claude":
        assert tokens(report)["claude-sonnet-4-5"] == {"uncached_input": 900, "output": 4000}
        assert "Reached maximum budget ($0.5)" in report["output_tail"], "its own brake is set to the reservation"
    elif adapter != "shell":
        [spent] = tokens(report).values()
        assert spent == {"uncached_input": 400_000, "output": 10_000}


@pytest.mark.parametrize("adapter", ["codex", "aider"])
def test_without_prices_nobody_is_stopped_for_money(server, run, adapter):
    report = run(adapter, "budget stop", task={"timeout_seconds": 4}, reservation=RESERVATION)
    assert report["error_code"] == "timeout_exceeded"
    assert tokens(report), "what was used is told all the same"


@every
def test_stop_request(server, run, tmp_path, adapter):
    def beat(call):
        asked = call.body["leases"] and (tmp_path / "gate").exists()
        return 200, {"directive": "stop" if asked else "continue", "leases": []}

    server.on_heartbeat = beat
    report = run(adapter, "stop request")
    ends_as(server, adapter, "stop request", report)
    acknowledged = [c for c in server.named("heartbeat") if c.body["leases"] and c.body["leases"][0]["stopping"]]
    assert server.calls.index(acknowledged[0]) < server.calls.index(server.named("fail")[0])
    if adapter == "claude":
        assert tokens(report) == {"claude-sonnet-4-5": {"uncached_input": 5, "output": 7}}, "SIGINT let it report"


@every
def test_hang(server, run, tmp_path, adapter):
    pids: set[int] = set()

    def beat(call):
        pids.update(int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and plays(int(pid), str(tmp_path)))
        return 200, {"directive": "continue", "leases": []}

    server.on_heartbeat = beat
    report = run(adapter, "hang", task={"timeout_seconds": 2})
    ends_as(server, adapter, "hang", report)
    assert report["exit_code"] == -1
    assert pids
    assert not any(map(is_alive, pids))
    last = [progress for _, progress in beats(server)][-5:]
    assert last == [{}] * 5, "a wrapper that beats is no progress"


def plays(pid: int, gate: str) -> bool:
    """Whether a process is the fake of this test."""
    try:
        return gate.encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


@every
def test_crash(server, run, adapter):
    report = run(adapter, "crash")
    ends_as(server, adapter, "crash", report)
    assert report["exit_code"] == 137
    if adapter == "claude":
        assert tokens(report) == {
            "claude-sonnet-4-5": {"uncached_input": 4, "cache_read": 300, "cache_write_1h": 1200}
        }, "what its messages read is known without a result"
    if adapter == "codex":
        assert tokens(report) == {"gpt-5.2-codex": {"uncached_input": 500, "cache_read": 400, "output": 30}}


def test_a_failed_turn_of_codex_is_paid_and_an_outage_is_not_the_tasks_fault(server, run):
    report = run("codex", "failed")
    assert (report["outcome"], report["error_code"]) == ("infra_lost", "provider_unavailable")
    assert tokens(report) == {"gpt-5.2-codex": {"uncached_input": 500, "cache_read": 400, "output": 30}}


@every
def test_garbage_output(server, run, adapter):
    report = run(adapter, "garbage output")
    ends_as(server, adapter, "garbage output", report)
    if adapter in ("claude", "codex"):
        assert "not JSON at all" in report["output_tail"]
        assert "lines of the tool were not understood" in report["output_tail"]


@every
def test_flood(server, run, adapter):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = run(adapter, "flood", task={"timeout_seconds": 120})
    ends_as(server, adapter, "flood", report)
    assert len(report["output_tail"]) < 20 * 1024
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < FLOOD_KIB, "KiB"


@every
def test_multi_byte_split_across_chunks(server, run, adapter):
    report = run(adapter, "multi-byte split across chunks")
    ends_as(server, adapter, "multi-byte split across chunks", report)
    assert "Grüße aus 東京 🚂" in report["output_tail"]


@every
def test_unknown_event_types(server, run, adapter):
    report = run(adapter, "unknown event types")
    ends_as(server, adapter, "unknown event types", report)
    assert not any("999999" in str(item) for item in report["usage"])


def test_every_scenario_of_the_table_has_its_test():
    tested = {name.removeprefix("test_") for name in globals() if name.startswith("test_")}
    assert {scenario.replace(" ", "_").replace("-", "_") for scenario in SCENARIOS} <= tested


def test_the_page_shows_the_table_as_it_is():
    page = Path(__file__).parents[3] / "docs" / "conformance.md"
    assert page.read_text(encoding="utf-8") == conformance.table()
