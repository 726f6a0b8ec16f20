"""Running gates: a fresh copy, a verdict for exactly that tree, and a machine's failure that is not the patch's."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings

from gates import criteria, environment, invariants, runner, running, sandbox
from gates.models import GateRun
from ledger import git
from pipeline.clock import db_now
from pipeline.refusals import InvalidField, Refused
from tests.conftest import Threads
from tests.factories import BY, make_gate, make_gate_run, make_policy, make_project, make_user
from tests.flows.house import House, piece

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("nudges")]

PASSED = criteria.Judgement("passed", "", True, "as it should be")


def house_with(tmp_path: Path, **gates: dict[str, Any]) -> House:
    """A house with one task and these gates."""
    return House(tmp_path, [piece("a")], gates=gates)


def gate_runs(house: House) -> dict[str, str]:
    """The newest run's state of every gate."""
    return {run.name: run.state for run in house.gate_runs()}


def test_a_gate_sees_exactly_the_tree_and_leaves_no_copy_behind(tmp_path: Path) -> None:
    listing = {"command": ["sh", "-c", "find . -type f | sort; test ! -e .git"]}
    house = house_with(tmp_path, listing=listing)
    house.work({"a.txt": "a\n"})
    (run,) = house.gate_runs()
    assert run.state == "passed"
    assert run.output_tail.split() == ["./README.md", "./a.txt", "./calc.py"]
    assert run.runner != ""
    assert list(Path(settings.GATES_DIR).iterdir()) == []


def test_nothing_above_the_copy_is_taken_for_the_project_s_own_configuration(tmp_path: Path) -> None:
    # pytest, ruff, mypy and git all look upward; below our own checkout they would find ours.
    tests = {
        "gate_type": "unit_tests",
        "command": ["python", "-m", "pytest", "-p", "no:cacheprovider", "--junitxml={evidence}/junit.xml"],
        "evidence": {"junit": "junit.xml"},
        "criteria": {"max_failures": 0, "min_tests": 1},
    }
    house = house_with(tmp_path, tests=tests, git={"command": ["sh", "-c", "! git rev-parse --show-toplevel"]})
    house.work({"test_it.py": "def test_it():\n    assert True\n"})
    assert gate_runs(house) == {"git": "passed", "tests": "passed"}
    told = next(run.output_tail for run in house.gate_runs() if run.name == "tests")
    assert "rootdir: " in told
    assert "configfile" not in told
    above = [Path(settings.GATES_DIR), *Path(settings.GATES_DIR).parents]
    assert settings.BASE_DIR not in above
    assert not any((folder / "pyproject.toml").exists() for folder in above)


def test_a_copy_that_a_killed_runner_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    copies = Path(settings.GATES_DIR)
    copies.mkdir(mode=0o700, parents=True, exist_ok=True)
    old, young = copies / "run-old", copies / "run-young"
    for place in (old, young):
        place.mkdir()
    os.utime(old, (0, 0))
    assert running.sweep_copies() == 1
    assert (old.exists(), young.exists()) == (False, True)
    young.rmdir()


def test_what_a_gate_writes_into_its_copy_changes_neither_the_branch_nor_the_next_gate(tmp_path: Path) -> None:
    spoil = {"command": ["sh", "-c", "echo BROKEN > a.txt"]}
    look = {"command": ["sh", "-c", "grep -q fine a.txt"], "depends_on": ["spoil"]}
    house = house_with(tmp_path, spoil=spoil, tell=look)
    house.work({"a.txt": "fine\n"})
    assert gate_runs(house) == {"spoil": "passed", "tell": "passed"}
    assert house.file("a.txt") == "fine"


def test_a_gate_waits_for_the_gates_it_depends_on_and_never_runs_when_they_fail(tmp_path: Path) -> None:
    house = house_with(tmp_path, first={"command": ["false"]}, second={"command": ["true"], "depends_on": ["first"]})
    patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert patch.state == "apply_failed"
    first, second = house.gate_runs()
    assert (first.verdict, first.exit_code) == ("failed", 1)
    assert (second.state, second.skip_reason) == ("skipped", "Skipped: superseded")
    assert second.started_at is None
    house.must_hold()


def test_a_failing_gate_that_is_not_required_keeps_nobody_back(tmp_path: Path) -> None:
    house = house_with(tmp_path, must={"command": ["true"]}, may={"command": ["false"], "required": False})
    house.work({"a.txt": "a\n"})
    assert {run.name: run.verdict for run in house.gate_runs()} == {"must": "passed", "may": "failed"}
    assert house.run.state == "succeeded"
    house.must_hold()


def test_a_gate_judges_only_the_paths_that_it_applies_to(tmp_path: Path) -> None:
    house = house_with(tmp_path, all={"command": ["true"]}, docs={"command": ["false"], "applies_to": ["docs/**"]})
    house.work({"a.txt": "a\n"})
    assert gate_runs(house) == {"all": "passed"}
    assert house.run.state == "succeeded"


def test_a_command_that_hangs_is_ended_and_counts_against_the_patch(tmp_path: Path) -> None:
    house = house_with(tmp_path, slow={"command": ["sleep", "60"], "timeout_seconds": 1})
    patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    (run,) = house.gate_runs()
    assert (run.state, run.error_kind) == ("error", "timeout")
    assert patch.state == "apply_failed"
    assert house.task("a").count_repairs == 1


def test_a_patch_without_the_folder_that_its_gate_runs_in_is_at_fault_and_not_the_machine(tmp_path: Path) -> None:
    gates = {"unit": {"command": ["true"], "cwd": "src"}}
    house = House(tmp_path, [piece("a")], gates=gates, files={"src/a.py": "a = 1\n"})
    patch = house.work({"src/a.py": None, "b.py": "b = 1\n"})
    patch.refresh_from_db()
    (run,) = house.gate_runs()
    assert (run.state, run.error_kind, run.verdict) == ("error", "command", "failed")
    assert "there is no folder src to run the command in" in run.decision_reason
    assert patch.state == "apply_failed"


def test_a_project_without_a_repository_is_told_in_a_sentence(settings: Any) -> None:
    run = make_gate_run(make_gate(make_project(), command=["true"]), tree_hash="1" * 40)
    assert running.run(run.pk)
    run.refresh_from_db()
    assert (run.state, run.error_kind) == ("error", "infra")
    assert run.decision_reason == f"the runner failed: project {run.project.key} has no repository here"


def test_what_a_command_claims_without_evidence_is_not_believed(tmp_path: Path) -> None:
    promise = {
        "gate_type": "unit_tests",
        "command": ["true"],
        "evidence": {"junit": "junit.xml"},
        "criteria": {"min_tests": 1},
    }
    house = house_with(tmp_path, tests=promise)
    patch = house.work({"a.txt": "a\n"})
    patch.refresh_from_db()
    assert patch.state == "apply_failed"
    assert house.gate_runs()[0].verdict == "failed"


def test_a_machines_failure_is_run_again_and_the_patch_lands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute, failures = runner.execute, [OSError("no space left on device")]

    def flaky(*arguments: Any, **options: Any) -> Any:
        if failures:
            raise failures.pop()
        return execute(*arguments, **options)

    monkeypatch.setattr(runner, "execute", flaky)
    house = house_with(tmp_path, words={"command": ["true"]})
    house.work({"a.txt": "a\n"})
    first, second = house.gate_runs()
    assert (first.state, first.error_kind, second.state) == ("error", "infra", "passed")
    assert "no space left" in first.decision_reason
    assert second.retry_of_id == first.pk
    assert house.task("a").count_repairs == 0
    assert house.run.state == "succeeded"
    house.must_hold()


def test_a_run_whose_runner_is_silent_is_closed_and_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanish(point: str) -> None:
        if point == "gate.started":
            raise SystemExit

    house = house_with(tmp_path, words={"command": ["true"]})
    house.deliver({"a.txt": "a\n"})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "crashpoint", vanish)
        with pytest.raises(SystemExit):
            house.drain()
    (run,) = house.gate_runs()
    assert run.state == "running"
    house.drain()
    assert [run.state for run in house.gate_runs()] == ["running"]
    GateRun.objects.filter(pk=run.pk).update(seen_at=db_now() - timedelta(seconds=50))
    house.drain()
    assert [(run.state, run.error_kind) for run in house.gate_runs()] == [("error", "infra"), ("passed", "")]
    assert house.run.state == "succeeded"
    house.must_hold()


def test_a_gate_that_is_edited_while_it_is_awaited_is_run_again_as_it_is_now(tmp_path: Path) -> None:
    house = house_with(tmp_path, words={"command": ["true"]})
    house.deliver({"a.txt": "a\n"})

    def edit(point: str) -> None:
        if point == "gate.executed" and house.gates["words"].gate_version == 1:
            house.gates["words"].edit(by=BY, command=["test", "-e", "a.txt"])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "crashpoint", edit)
        house.drain()
    assert [(run.gate_version, run.state) for run in house.gate_runs()] == [(1, "passed"), (2, "passed")]
    assert house.run.state == "succeeded"
    house.must_hold()


def test_two_runners_never_run_the_same_one(tmp_path: Path, threads: Threads) -> None:
    house = house_with(tmp_path)
    gate = make_gate(house.project, command=["true"])
    waiting = make_gate_run(gate, tree_hash=git.tree_of(house.project.mirror, house.head))
    outcomes = threads.at_once(*[lambda: running.run(waiting.pk)] * 4)
    assert sorted(outcome.result() for outcome in outcomes) == [False, False, False, True]
    waiting.refresh_from_db()
    assert waiting.state == "passed"


def test_a_runner_whose_run_was_given_to_another_is_refused() -> None:
    run = make_gate_run()
    run.start(by=BY, runner="one")
    GateRun.objects.filter(pk=run.pk).update(runner="two")
    assert run.beat("one") is False
    with pytest.raises(Refused) as refused:
        run.complete(PASSED, by=BY, runner="one", exit_code=0)
    assert refused.value.code == "stale_claim"
    run.refresh_from_db()
    assert run.state == "running"


def test_a_run_that_was_skipped_meanwhile_ends_its_runner_without_a_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def skip(point: str) -> None:
        if point == "gate.executed":
            GateRun.objects.get(pk=waiting.pk).skip("not needed", by=BY)

    house = house_with(tmp_path)
    waiting = make_gate_run(
        make_gate(house.project, command=["true"]), tree_hash=git.tree_of(house.project.mirror, house.head)
    )
    monkeypatch.setattr(running, "crashpoint", skip)
    assert running.run(waiting.pk) is False
    waiting.refresh_from_db()
    assert (waiting.state, waiting.verdict) == ("skipped", "unknown")


@pytest.mark.parametrize("name", ["SIGNALBOX_PEPPER", "signalbox_credential_x", "SECRET_KEY", "DATABASE_URL"])
def test_no_gate_gets_what_signalbox_is_configured_with(name: str) -> None:
    with pytest.raises(InvalidField, match="configured with"):
        make_gate(env_allow=["CI", name])
    assert make_gate(env_allow=["CI", "PYTHONHASHSEED"]).env_allow == ["CI", "PYTHONHASHSEED"]


# -- the sandbox's level -------------------------------------------------------------------------------------------


def one_run(house: House, **gate: Any) -> GateRun:
    """A run of a gate on the branch's tree, once a runner has had it."""
    waiting = make_gate_run(
        make_gate(house.project, **{"command": ["true"], **gate}),
        tree_hash=git.tree_of(house.project.mirror, house.head),
    )
    running.run(waiting.pk)
    waiting.refresh_from_db()
    return waiting


SHOW_CI = ["sh", "-c", "test ${CI:-no} = yes"]
REPORT = "<testsuite name='s'><testcase name='a' classname='m'/></testsuite>"
WRITE = ["sh", "-c", f'mkdir -p "$SIGNALBOX_EVIDENCE" && echo "{REPORT}" > "$SIGNALBOX_EVIDENCE/a.xml"']


@pytest.mark.parametrize(
    ("born", "edited", "state"),
    [
        ({"command": ["sh", "-c", "exit 7"]}, {"expected_exit_codes": [0, 7]}, "error"),
        ({"command": ["sh", "-c", "exit 7"], "expected_exit_codes": [7]}, {"expected_exit_codes": []}, "passed"),
        ({"command": ["true"], "evidence": {"junit": "a.xml"}}, {"evidence": {}}, "failed"),
        ({"command": WRITE, "evidence": {"junit": "a.xml"}}, {"evidence": {"junit": "b.xml"}}, "passed"),
        ({"command": ["test", "-e", "calc.py"]}, {"cwd": "gone"}, "passed"),
        ({"command": SHOW_CI, "env_allow": ["CI"]}, {"env_allow": []}, "passed"),
        ({"command": SHOW_CI}, {"env_allow": ["CI"]}, "error"),
        ({"command": ["sleep", "2"], "timeout_seconds": 1}, {"timeout_seconds": 60}, "error"),
        ({"command": ["sleep", "2"], "criteria": {"timeout_seconds": 1}}, {"criteria": {}}, "error"),
        ({"command": ["true"], "external": False}, {"external": True}, "passed"),
    ],
    ids=[
        "a code more", "a code less", "no evidence", "other evidence", "folder", "variable taken", "variable given",
        "time", "time by criterion", "external",
    ],
)  # fmt: skip
def test_a_run_is_executed_and_judged_by_the_gate_that_it_was_asked_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, born: dict[str, Any], edited: dict[str, Any], state: str
) -> None:
    monkeypatch.setenv("CI", "yes")
    house = house_with(tmp_path)
    gate = make_gate(house.project, **born)
    run = GateRun.objects.ask_for(gate, git.tree_of(house.project.mirror, house.head), by=BY)
    gate.edit(by=BY, **edited)
    running.run(run.pk)
    run.refresh_from_db()
    assert (run.gate_version, run.state) == (1, state), run.decision_reason


def test_a_level_that_was_raised_holds_for_runs_that_wait_already() -> None:
    gate = make_gate()
    run = make_gate_run(gate)
    gate.edit(by=BY, sandbox_level_min=3)
    assert GateRun.objects.get(pk=run.pk).level_wanted == 3
    gate.edit(by=BY, sandbox_level_min=None)
    assert GateRun.objects.get(pk=run.pk).level_wanted < 3


def at_level(monkeypatch: pytest.MonkeyPatch, level: int) -> None:
    """A machine of this level."""
    monkeypatch.setattr(runner, "probe", lambda: sandbox.Probe(level, ("bubblewrap is not installed",)))


def test_the_level_that_held_and_the_one_that_was_asked_for_are_stored(tmp_path: Path) -> None:
    run = one_run(house_with(tmp_path), sandbox_level_min=2)
    assert (run.state, run.sandbox_level, run.sandbox_level_min) == ("passed", runner.available_level(), 2)


@pytest.mark.parametrize("asks", ["project", "policy", "phase", "gate"])
def test_a_level_that_this_machine_does_not_reach_is_an_error_with_a_sentence_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asks: str
) -> None:
    house = house_with(tmp_path)
    at_level(monkeypatch, 1)
    gate: dict[str, Any] = {"command": ["touch", "/tmp/never-run"]}
    if asks == "project":
        house.project.edit(by=BY, sandbox_level_min=2)
    elif asks == "policy":
        make_policy(project=house.project, constraints={"sandbox_level_min": 2})
    elif asks == "phase":
        house.phase.edit(by=BY, constraints={"sandbox_level_min": 2})
        gate["phase"] = house.phase
    else:
        gate["sandbox_level_min"] = 2
    run = one_run(house, **gate)
    assert (run.state, run.error_kind, run.verdict) == ("error", "infra", "unknown")
    assert run.decision_reason.startswith("This gate asks for sandbox level 2, and ")
    assert "holds level 1 only: bubblewrap is not installed" in run.decision_reason
    assert not Path("/tmp/never-run").exists()


def test_a_gate_asks_for_more_than_its_project_and_never_for_less() -> None:
    project = make_project(sandbox_level_min=2)
    assert make_gate(project, sandbox_level_min=3).sandbox_level_min == 3
    with pytest.raises(Refused) as refused:
        make_gate(project, sandbox_level_min=1)
    assert refused.value.code == "constraint_weakened"


def test_a_machine_that_is_not_isolated_is_named_by_the_doctor_and_on_the_page(
    monkeypatch: pytest.MonkeyPatch, client: Any
) -> None:
    at_level(monkeypatch, 1)
    running.note_level.cache_clear()
    running.note_level()
    running.note_level.cache_clear()
    found = invariants._sandbox()
    assert not found.ok
    assert "NOT ISOLATED" in found.detail
    assert "bubblewrap is not installed" in found.detail
    client.force_login(make_user(is_superuser=True, is_staff=True))
    page = client.get("/gates/").text
    assert "not isolated" in page
    assert "bubblewrap is not installed" in page


def test_too_many_processes_are_the_patch_s_fault_and_said_so(tmp_path: Path) -> None:
    bomb = "import os, time\nfor _ in range(40):\n    if os.fork() == 0: time.sleep(20); os._exit(0)\ntime.sleep(20)"
    run = one_run(house_with(tmp_path), command=["python", "-c", bomb], resources={"processes": 8})
    assert (run.state, run.error_kind, run.verdict) in {("error", "command", "failed"), ("failed", "", "failed")}
    assert "more than 8 processes" in run.decision_reason or "Resource temporarily unavailable" in run.output_tail


def test_a_tool_of_a_folder_that_gates_may_read_is_found_by_its_name_and_hides_none_of_the_system(
    tmp_path: Path, settings: Any
) -> None:
    (tools := tmp_path / "toolchain" / "bin").mkdir(parents=True)
    for name in ("carg0", "sh"):
        (tools / name).write_text(f"#!/bin/sh\necho {name} of the toolchain\n")
        (tools / name).chmod(0o755)
    settings.SIGNALBOX_GATE_READONLY = [tmp_path / "toolchain", tmp_path / "gone"]
    house = house_with(tmp_path, lint={"command": ["carg0"]}, shell={"command": ["sh", "-c", "carg0; echo $PATH"]})
    before = environment.digest(house.gates["lint"], 2)
    house.work({"a.txt": "a\n"})
    assert gate_runs(house) == {"lint": "passed", "shell": "passed"}
    told = next(run.output_tail for run in house.gate_runs() if run.name == "shell").splitlines()
    assert (told[0], told[1].endswith(f":/sbin:{tools}")) == ("carg0 of the toolchain", True)
    (tools / "carg0").write_text("#!/bin/sh\n# another version\n")
    assert environment.digest(house.gates["lint"], 2) != before


def test_a_shared_cache_is_read_and_a_run_s_own_is_gone_with_it(tmp_path: Path, settings: Any) -> None:
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels" / "word").write_text("sesame\n")
    settings.SIGNALBOX_GATE_CACHES = {"pip": tmp_path / "wheels"}
    script = 'cat "$SIGNALBOX_CACHE_PIP/word"; test ! -e ~/.cache/kept && mkdir -p ~/.cache && touch ~/.cache/kept'
    for _ in range(2):
        run = one_run(house_with(tmp_path / make_gate().key), command=["sh", "-c", script], caches=["pip"])
        assert (run.state, run.output_tail) == ("passed", "sesame\n")
