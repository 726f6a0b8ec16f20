"""The demo: made once, really editing, failing as it should, and gone from the overview with one command."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

from costs.models import Price
from gates.demo import agent, agents, plan, repository, rows
from gates.models import Gate
from ledger.models import MergeQueue
from pipeline import scope
from pipeline.clock import db_now
from pipeline.events import Event
from pipeline.models import ApiKey, Hold, Phase, Project, Run, Task, Tool, Workstream
from tests.factories import make_lease, make_project, make_worker, run_git
from workers.agent import usage
from workers.models import Worker

SPECS = {spec["task_id"]: spec for fields in plan.WORKSTREAMS.values() for spec in fields["tasks"]}
GOOD = [spec["task_id"] for spec in plan.WORKSTREAMS[plan.WALK]["tasks"]]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demo's folder, of this test alone; nobody waits for agents that do not run."""
    monkeypatch.setattr(rows, "FOLDER", tmp_path / "demo")
    monkeypatch.setattr(rows, "_FAREWELL_SECONDS", 0)
    return tmp_path / "demo"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A fresh sample repository to work in."""
    return repository.make(tmp_path / "checkout")


def work(checkout: Path, task: str, temper: str = "good", *, earlier: str = "", **environment: str) -> str:
    """What the script printed, after it did a task in the checkout as the agent program would have it do."""
    prompt = f"[HEADER]\nTask {task} ({plan.CODE})\n\n[CONTEXT]\nNothing.\n\n{earlier}\n"
    done = subprocess.run(
        [sys.executable, str(plan.SCRIPT), temper],
        cwd=checkout,
        input=prompt,
        env={"PATH": os.environ["PATH"], agent.PACE: "0", **environment},
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    return done.stdout


def changed(checkout: Path) -> list[str]:
    run_git(checkout, "add", "--all")
    return run_git(checkout, "diff", "--cached", "--name-only").splitlines()


def commit(checkout: Path) -> None:
    run_git(checkout, "add", "--all")
    run_git(checkout, "commit", "--quiet", "--message=Work")


def is_green(checkout: Path) -> bool:
    """Whether the gate's own command passes there."""
    command = [
        sys.executable if word == "python" else word.replace("{evidence}", str(checkout.parent))
        for word in plan.GATES["tests"]["command"]
    ]
    return subprocess.run(command, cwd=checkout, capture_output=True, timeout=60).returncode == 0


def counts() -> dict[str, int]:
    nouns = (Project, Phase, Workstream, Tool, Gate, Price, MergeQueue, Run, Hold, Event)
    return {noun.__name__: noun.objects.count() for noun in nouns}


# -- the script ----------------------------------------------------------------------------------------------------


def test_good_work_stays_in_each_tasks_scope_and_passes_the_gate(checkout: Path) -> None:
    for task in GOOD:
        assert "Done" in work(checkout, task)
        touched = changed(checkout)
        assert touched, task
        assert all(scope.matches(path, SPECS[task]["resource_scope_delta"]["write"]) for path in touched), task
        commit(checkout)
    assert is_green(checkout)


def test_the_hasty_one_breaks_a_test_and_mends_it_when_it_is_told(checkout: Path) -> None:
    work(checkout, "louder", "hasty")
    assert not is_green(checkout)
    run_git(checkout, "checkout", "--quiet", ".")
    work(checkout, "louder", "hasty", earlier="Earlier attempt 1 ended with gate_failed.")
    assert is_green(checkout)


def test_the_nosy_one_touches_what_is_forbidden_once_and_in_one_task_always(checkout: Path) -> None:
    def trespasses(task: str, earlier: int) -> bool:
        told = "\n".join(f"Earlier attempt {number} ended with gate_failed." for number in range(1, earlier + 1))
        work(checkout, task, "nosy", earlier=told)
        found = any(scope.matches(path, plan.FORBIDDEN) for path in changed(checkout))
        run_git(checkout, "reset", "--quiet", "--hard")
        return found

    assert [trespasses("readme", earlier) for earlier in (0, 1)] == [True, False]
    assert [trespasses("token", earlier) for earlier in (0, 1, 2)] == [True, True, True]


def test_a_patch_of_the_forbidden_kind_is_another_one_each_time(checkout: Path) -> None:
    texts = set()
    for earlier in ("", "Earlier attempt 1 ended with gate_failed."):
        work(checkout, "token", "nosy", earlier=earlier)
        texts.add((checkout / "secrets" / "token.txt").read_text())
    assert len(texts) == 2


def test_what_the_script_uses_can_be_booked_at_the_demos_price(checkout: Path, tmp_path: Path, db: None) -> None:
    rows.set_up()
    file = tmp_path / "usage.jsonl"
    work(checkout, "german", SIGNALBOX_USAGE_FILE=str(file))
    items, wrong = usage.read_file(file, "lease")
    assert (len(items), wrong) == (1, [])
    assert Price.objects.valid_for(items[0]["provider"], items[0]["model"], db_now()) is not None


def test_the_mortal_one_spares_whoever_is_not_an_agent_program(checkout: Path) -> None:
    printed = work(checkout, "numbers", "mortal")
    assert "cannot tell which process" in printed
    assert "Done" in printed


@pytest.mark.kill
def test_the_mortal_one_kills_its_agent_program_once(checkout: Path, tmp_path: Path) -> None:
    keeper = tmp_path / "keeper.py"
    keeper.write_text(
        "import subprocess, sys\n"
        "tool = subprocess.Popen(sys.argv[2:], stdin=subprocess.PIPE, text=True)\n"
        "open(sys.argv[1], 'w').write(str(tool.pid))\n"
        "tool.communicate('Task numbers (demo.code)\\n')\n"
    )
    told = tmp_path / "pid"
    program = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])  # workers.agent"
    arguments = [str(keeper), str(told), sys.executable, str(plan.SCRIPT), "mortal"]
    environment = {"PATH": os.environ["PATH"], agent.PACE: "0"}
    ended = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=checkout,
        env=environment,
        stdout=subprocess.DEVNULL,
        timeout=30,
    )
    os.kill(int(told.read_text()), signal.SIGKILL)  # what the real keeper does
    assert ended.returncode == -signal.SIGKILL
    assert "Done" in work(checkout, "numbers", "mortal", earlier="Earlier attempt 1 ended with infra_lost.")


@pytest.mark.parametrize("prompt", ["", "Task unheard-of (demo.code)\n"])
def test_a_task_of_somebody_else_is_left_alone(checkout: Path, prompt: str) -> None:
    done = subprocess.run([sys.executable, str(plan.SCRIPT), "good"], cwd=checkout, input=prompt, text=True, timeout=30)
    assert done.returncode == agent.KNOWS_NO_SUCH_TASK
    assert changed(checkout) == []


def test_another_repository_is_left_alone(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(plan.SCRIPT), "good"],
        cwd=tmp_path,
        input="Task german (demo.code)\n",
        env={"PATH": os.environ["PATH"], agent.PACE: "0"},
        text=True,
        timeout=30,
    )
    assert done.returncode == agent.NOT_OUR_REPOSITORY
    assert list(tmp_path.rglob("german.py")) == []


# -- the rows ------------------------------------------------------------------------------------------------------


def test_setting_up_twice_makes_everything_once(db: None) -> None:
    call_command("demo", setup_only=True)
    first = counts()
    call_command("demo", setup_only=True)
    assert counts() == first
    assert first | {"Event": 0} == {
        "Project": 1, "Phase": 1, "Workstream": 3, "Tool": 4, "Gate": 2, "Price": 1, "MergeQueue": 1, "Run": 0,
        "Hold": 0, "Event": 0,
    }  # fmt: skip


def test_the_walk_is_a_diamond_of_eight_tasks(db: None) -> None:
    project = rows.set_up()
    workstream = Workstream.objects.get(phase__project=project, key=plan.WALK)
    assert workstream.plan().levels == (
        ("languages", "louder", "numbers", "readme"), ("german", "french"), ("choose",), ("command",),
    )  # fmt: skip


def test_a_project_of_somebody_called_demo_stays_as_it_is(db: None) -> None:
    theirs = make_project(key="demo")
    project = rows.set_up()
    theirs.refresh_from_db()
    assert (project.key, theirs.profile) == ("demo-2", {})


def test_no_tool_of_the_demo_can_do_anybody_elses_kind_of_task(db: None) -> None:
    rows.set_up()
    kinds = {kind for tool in Tool.objects.all() for kind in tool.capabilities["task_kinds"]}
    assert kinds == {plan.CODE, plan.DOCS}
    assert {spec["kind"] for spec in SPECS.values()} == kinds


def test_the_runs_start_once_and_one_waits_for_a_person(db: None) -> None:
    project = rows.set_up()
    started = rows.start_runs(project)
    assert {run.workstream.key: run.state for run in started if run.workstream} == dict.fromkeys(
        plan.WORKSTREAMS, "running"
    )
    waiting = rows.runs(project)[plan.WAITING]
    (held,) = Hold.objects.active()
    assert (held.scope_kind, held.scope_ref) == ("run", waiting.pk)
    assert rows.start_runs(project) == []
    assert not rows.has_ended(project)


def test_a_moved_interpreter_is_followed(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    rows.set_up()
    monkeypatch.setattr(sys, "executable", "/opt/other/python")
    rows.set_up()
    assert {tool.command[0] for tool in Tool.objects.all()} == {"/opt/other/python"}


# -- the agents ----------------------------------------------------------------------------------------------------


def test_a_new_start_ends_the_keys_and_workers_of_the_last_one(db: None) -> None:
    project = rows.set_up()
    rows.make_keys(project)
    worker = make_worker(api_key=ApiKey.objects.get(name=f"demo agent {plan.ADA}"))
    keys = rows.make_keys(project)
    worker.refresh_from_db()
    assert worker.state == Worker.State.STOPPED
    assert ApiKey.objects.live().count() == len(keys) == 4
    assert {key.project_id for key in ApiKey.objects.live()} == {project.pk}


def test_two_groups_of_agents_do_not_run_beside_each_other() -> None:
    with agents.alone(), pytest.raises(agents.Busy), agents.alone():
        pass


def test_the_agents_end_when_they_are_told_and_their_keys_with_them(
    db: None, capsys: pytest.CaptureFixture[str]
) -> None:
    project = rows.set_up()
    assert agents.run(project, "http://127.0.0.1:9", until=lambda: True) == 0
    assert not ApiKey.objects.live().exists()
    assert "starting it again" not in capsys.readouterr().out


def test_without_a_server_the_demo_says_what_to_start(db: None) -> None:
    with pytest.raises(CommandError, match="make up"):
        call_command("demo", url="http://127.0.0.1:9")
    assert not Run.objects.exists()


# -- the end -------------------------------------------------------------------------------------------------------


def test_removal_ends_everything_and_keeps_the_books(db: None, capsys: pytest.CaptureFixture[str]) -> None:
    project = rows.set_up()
    rows.start_runs(project)
    rows.make_keys(project)
    worker = make_worker(api_key=ApiKey.objects.get(name=f"demo agent {plan.ADA}"))
    task = Task.objects.get(key="languages")
    make_lease(worker, task, tool=Tool.objects.get(key=plan.ADA))
    before = Event.objects.count()
    call_command("demo", remove=True)
    project.refresh_from_db()
    worker.refresh_from_db()
    assert project.archived_at is not None
    assert worker.state == Worker.State.STOPPED
    assert not Hold.objects.active().exists()
    assert not ApiKey.objects.live().exists()
    assert not Tool.objects.enabled().exists()
    assert all(run.state == "canceled" or run.ending_to == "canceled" for run in Run.objects.all())
    assert Event.objects.count() > before
    assert "kept for ever" in capsys.readouterr().out
    call_command("demo", remove=True)
    assert "There is no demo to remove" in capsys.readouterr().out


def test_a_removal_that_was_broken_off_is_carried_on(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    project = rows.set_up()
    rows.start_runs(project)
    rows.make_keys(project)
    end_keys = rows.end_keys
    monkeypatch.setattr(rows, "end_keys", interrupt)
    with pytest.raises(KeyboardInterrupt):
        call_command("demo", remove=True)
    monkeypatch.setattr(rows, "end_keys", end_keys)
    assert ApiKey.objects.live().exists()
    call_command("demo", remove=True)
    assert not ApiKey.objects.live().exists()
    assert not Tool.objects.enabled().exists()


def test_an_agent_that_ends_during_the_removal_is_no_error(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    project = rows.set_up()
    rows.make_keys(project)
    worker = make_worker(api_key=ApiKey.objects.get(name=f"demo agent {plan.ADA}"))

    def ask_too_late(asked: Worker, **told: str) -> bool:
        Worker.objects.get(pk=asked.pk).shutdown(by=rows.BY)
        return request_shutdown(asked, **told)

    request_shutdown = Worker.request_shutdown
    monkeypatch.setattr(Worker, "request_shutdown", ask_too_late)
    rows.remove(project)
    worker.refresh_from_db()
    assert worker.state == Worker.State.STOPPED


def interrupt(*args: object, **told: object) -> None:
    raise KeyboardInterrupt


def test_a_removed_demo_comes_back_only_when_asked_for(
    db: None, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    call_command("demo", setup_only=True)
    call_command("demo", remove=True)
    call_command("demo", setup_only=True)
    assert rows.find() is None
    call_command("demo", agents=True)
    assert "nothing to run" in capsys.readouterr().out
    again = rows.set_up()
    assert again.key == "demo-2"
    assert Tool.objects.enabled().count() == 4


def test_what_can_be_seen_is_told(
    db: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def at_once(project: Project, url: str, *, pace_seconds: float, until: Callable[[], bool]) -> int:
        assert not until()
        return 0

    monkeypatch.setattr(agents, "answers", lambda url: True)
    monkeypatch.setattr(agents, "run", at_once)
    call_command("demo", url="http://127.0.0.1:9", fast=True)
    told = capsys.readouterr().out
    for run in Run.objects.all():
        assert f"http://127.0.0.1:9/runs/{run.pk}/" in told
    assert "demo --remove" in told
