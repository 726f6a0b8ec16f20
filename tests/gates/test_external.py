"""Gates that run elsewhere: taken once, reported by who took them, judged by what was sent, and never left open."""

import gzip
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from gates import external, running
from gates.models import Gate, GateEvidence, GateRun
from ledger import git
from pipeline.clock import db_now
from pipeline.refusals import InvalidField
from tests import factories
from tests.api.asking import Api, refused
from tests.flows.house import House, piece

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("nudges")]

GOOD = b'<testsuite name="s"><testcase name="a" classname="m"/><testcase name="b" classname="m"/></testsuite>'
BAD = b'<testsuite name="s"><testcase name="a" classname="m"/><testcase name="b"><failure/></testcase></testsuite>'
OUTSIDE = b'<testsuite name="s"><testcase name="a" classname="m"/><error message="no setup"/></testsuite>'
MORE = b'<testsuite name="s" tests="1" failures="3"><testcase name="a" classname="m"/></testsuite>'
TESTS = {
    "external": True, "command": [], "gate_type": "unit_tests", "evidence": {"junit": "junit.xml"},
    "criteria": {"max_failures": 0, "min_tests": 1},
}  # fmt: skip


@pytest.fixture
def run() -> GateRun:
    """A pending run of an external gate with tests."""
    return factories.make_gate_run(factories.make_gate(**TESTS))


@pytest.fixture
def ci(run: GateRun) -> Api:
    """A CI system's key."""
    return Api(factories.make_key("operator", project=run.project).text)


def send(ci: Api, run: GateRun, claim: str, body: bytes, kind: str = "junit", **headers: str) -> Any:
    """What `curl --data-binary` does."""
    address = f"/api/v1/gate-runs/{run.pk}/evidence/?kind={kind}&claim={claim}"
    return ci._client.post(address, body, content_type="application/xml", headers=headers)


def taken(ci: Api, run: GateRun) -> str:
    answer = ci.post(f"/gate-runs/{run.pk}/start/", {"runner": "https://ci.example/job/7"})
    assert answer.status_code == 200, answer.content
    return str(answer.json()["claim"])


def test_a_ci_system_takes_a_run_sends_its_report_and_completes_it(run: GateRun, ci: Api) -> None:
    claim = taken(ci, run)
    sent = send(ci, run, claim, gzip.compress(GOOD), **{"content-encoding": "gzip"})
    assert (sent.status_code, sent.json()["size_bytes"]) == (201, len(GOOD))
    ended = ci.post(f"/gate-runs/{run.pk}/complete/", {"claim": claim, "exit_code": 0, "output": "2 passed\n"}).json()
    assert (ended["state"], ended["total_tests"], ended["passed_tests"], ended["parsed"]) == ("passed", 2, 2, True)
    assert (ended["check_run"]["status"], ended["check_run"]["conclusion"]) == ("completed", "success")
    assert ended["evidence"]["junit"]["sha256"] == sent.json()["sha256"]
    assert ci.get(f"/gate-runs/{run.pk}/log/").content == b"2 passed\n"
    assert GateEvidence.objects.get().content is None


@pytest.mark.parametrize(
    ("report", "ending", "state", "kind", "conclusion"),
    [
        (BAD, {"exit_code": 1}, "failed", "", "failure"),
        (BAD, {"exit_code": 0}, "failed", "", "failure"),
        (GOOD, {"exit_code": 1}, "error", "contradiction", "failure"),
        (None, {"exit_code": 0}, "failed", "", "failure"),
        (None, {"conclusion": "success"}, "failed", "", "failure"),
        (b"<testsuite/>", {"conclusion": "success"}, "failed", "", "failure"),
        (b"no report", {"conclusion": "success"}, "failed", "", "failure"),
        (OUTSIDE, {"exit_code": 0}, "failed", "", "failure"),
        (MORE, {"exit_code": 0}, "failed", "", "failure"),
        (GOOD, {"conclusion": "success"}, "passed", "", "success"),
        (GOOD, {"conclusion": "timed_out"}, "error", "timeout", "timed_out"),
        (GOOD, {"conclusion": "cancelled"}, "error", "infra", "cancelled"),
        (GOOD, {"conclusion": "neutral"}, "error", "infra", "cancelled"),
        (GOOD, {"conclusion": "skipped"}, "error", "infra", "cancelled"),
    ],
    ids=[
        "failures", "failures-and-0", "none-failed-but-1", "no-report", "only-said", "no-tests", "no-xml",
        "failed-outside-of-tests", "states-more-failures", "good",
        "timed-out", "cancelled", "neutral", "skipped",
    ],
)  # fmt: skip
def test_what_was_sent_decides_and_not_what_was_said(
    run: GateRun, ci: Api, report: bytes | None, ending: dict[str, Any], state: str, kind: str, conclusion: str
) -> None:
    claim = taken(ci, run)
    if report is not None:
        assert send(ci, run, claim, report).status_code == 201
    ended = ci.post(f"/gate-runs/{run.pk}/complete/", {"claim": claim, **ending}).json()
    assert (ended["state"], ended["error_kind"], ended["check_run"]["conclusion"]) == (state, kind, conclusion)
    if kind == "infra":
        assert f"the system outside ended it as “{ending['conclusion']}”" in ended["decision_reason"]


def test_only_who_took_a_run_reports_it(run: GateRun, ci: Api) -> None:
    path = f"/gate-runs/{run.pk}"
    assert refused(ci.post(f"{path}/complete/", {"claim": "x", "exit_code": 0})) == (409, "invalid_move")
    claim = taken(ci, run)
    assert refused(ci.post(f"{path}/start/", {"runner": "another"})) == (409, "invalid_move")
    assert refused(send(ci, run, "another", GOOD)) == (409, "stale_claim")
    assert refused(ci.post(f"{path}/complete/", {"claim": "another", "exit_code": 0})) == (409, "stale_claim")
    assert ci.post(f"{path}/complete/", {"claim": claim, "exit_code": 0}).status_code == 200
    assert refused(ci.post(f"{path}/complete/", {"claim": claim, "exit_code": 0})) == (409, "invalid_move")
    assert refused(send(ci, run, claim, GOOD)) == (409, "invalid_move")


def test_what_we_execute_ourselves_is_reported_by_nobody(ci: Api, run: GateRun) -> None:
    ours = factories.make_gate_run(factories.make_gate(run.project))
    assert refused(ci.post(f"/gate-runs/{ours.pk}/start/", {"runner": "ci"})) == (409, "gate_not_external")
    ours.start(by=factories.BY, runner="r")
    body = {"claim": "r", "exit_code": 0}
    assert refused(ci.post(f"/gate-runs/{ours.pk}/complete/", body)) == (409, "gate_not_external")
    assert refused(send(ci, ours, "r", GOOD)) == (409, "gate_not_external")
    ours.refresh_from_db()
    assert ours.state == "running"


def test_a_worker_s_key_and_a_viewer_report_nothing(run: GateRun) -> None:
    for key in (factories.make_key("worker", project=run.project), factories.make_key("viewer", project=run.project)):
        api = Api(key.text)
        for verb, body in (("start", {"runner": "x"}), ("complete", {"claim": "x", "exit_code": 0})):
            assert refused(api.post(f"/gate-runs/{run.pk}/{verb}/", body))[0] == 403
        assert send(api, run, "x", GOOD).status_code == 403


@pytest.mark.parametrize(
    "ending",
    [
        {}, {"exit_code": 0, "conclusion": "success"}, {"conclusion": "fine"}, {"exit_code": 256}, {"exit_code": -1},
        {"exit_code": 0, "duration_seconds": "-1"}, {"exit_code": 0, "shards": 0}, {"exit_code": 0, "state": "passed"},
    ],
)  # fmt: skip
def test_an_end_that_cannot_be_is_refused(run: GateRun, ci: Api, ending: dict[str, Any]) -> None:
    claim = taken(ci, run)
    assert refused(ci.post(f"/gate-runs/{run.pk}/complete/", {"claim": claim, **ending}))[0] in (400, 422)
    run.refresh_from_db()
    assert run.state == "running"


def test_evidence_that_nobody_could_read_is_refused_with_its_reason(run: GateRun, ci: Api) -> None:
    claim = taken(ci, run)
    assert refused(send(ci, run, claim, GOOD, kind="video")) == (422, "invalid_field")
    assert refused(send(ci, run, claim, b"")) == (422, "invalid_evidence")
    assert refused(send(ci, run, claim, GOOD, **{"content-encoding": "br"})) == (415, "unsupported_media_type")
    assert refused(send(ci, run, claim, GOOD, **{"content-encoding": "gzip"})) == (422, "invalid_evidence")
    bomb = gzip.compress(b" " * (65 * 1024 * 1024), 1)
    assert refused(send(ci, run, claim, bomb, **{"content-encoding": "gzip"})) == (413, "too_large")
    assert GateEvidence.objects.count() == 0


def test_a_report_that_the_gate_does_not_ask_for_is_refused_naming_those_that_it_does(run: GateRun, ci: Api) -> None:
    claim = taken(ci, run)
    answer = send(ci, run, claim, b"SF:a\n", kind="coverage")
    assert refused(answer) == (422, "invalid_field")
    assert "does not ask for coverage: it asks for junit" in answer.json()["detail"]
    assert refused(send(ci, run, claim, GOOD, kind="junit&shard=1")) == (422, "invalid_field")
    assert refused(send(ci, run, claim, GOOD, kind="junit&shard=x"))[0] == 400
    bare = factories.make_gate_run(factories.make_gate(run.project, external=True, command=[]))
    answer = send(ci, bare, taken(ci, bare), GOOD)
    assert "it asks for no report" in answer.json()["detail"]
    assert GateEvidence.objects.count() == 0


SHARDED = {**TESTS, "shards": 3, "evidence": {"junit": "junit-{shard}.xml"}}


@pytest.mark.parametrize("sent", [(1, 2, 3), (1, 3), (2,), ()], ids=str)
def test_every_shard_sends_its_own_report_and_a_missing_one_is_not_measured(
    run: GateRun, ci: Api, sent: tuple[int, ...]
) -> None:
    sharded = factories.make_gate_run(factories.make_gate(run.project, **SHARDED))
    claim = taken(ci, sharded)
    for shard in sent:
        body = f'<testsuite><testcase name="t{shard}" classname="m"/></testsuite>'.encode()
        assert send(ci, sharded, claim, b"<testsuite/>", kind=f"junit&shard={shard}").status_code == 201
        answer = send(ci, sharded, claim, body, kind=f"junit&shard={shard}")  # takes the first one's place
        assert (answer.status_code, answer.json()["shard"]) == (201, shard)
    for wrong in ("junit", "junit&shard=0", "junit&shard=4"):
        assert "from 1 to 3" in send(ci, sharded, claim, GOOD, kind=wrong).json()["detail"]
    # What it says of the number of shards is not believed over what it sent.
    ended = ci.post(f"/gate-runs/{sharded.pk}/complete/", {"claim": claim, "exit_code": 0, "shards": 3}).json()
    if len(sent) == 3:
        assert (ended["state"], ended["total_tests"], ended["shards_seen"]) == ("passed", 3, 3)
    else:
        assert ended["state"] == "failed"
        assert {verdict["status"] for verdict in ended["verdicts"].values()} == {"not_measured"}


def test_no_runner_of_ours_touches_a_run_that_waits_for_a_system_outside(run: GateRun) -> None:
    assert running.run_pending() == 0
    assert running.run(run.pk) is False
    run.refresh_from_db()
    assert run.state == "pending"


def test_a_run_is_asked_for_on_a_tree_that_the_mirror_has(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")], gates={"ci": TESTS}, files={"a.txt": "a\n"})
    mirror = house.project.mirror
    commit = git.head(mirror, "main")
    gate = Gate.objects.get(project=house.project)
    api = Api(factories.make_key("operator", project=house.project).text)

    asked = api.post("/gate-runs/", {"gate": gate.pk, "tree_hash": git.tree_of(mirror, commit)})
    assert asked.status_code == 201
    unknown = api.post("/gate-runs/", {"gate": gate.pk, "tree_hash": "a" * 40})
    assert refused(unknown) == (422, "unknown_tree")
    assert "has no tree aaaa" in unknown.json()["detail"]
    assert (
        f"its tree is {git.tree_of(mirror, commit)}"
        in api.post("/gate-runs/", {"gate": gate.pk, "tree_hash": commit}).json()["detail"]
    )


def test_the_time_limit_of_a_run_outside_is_the_gates_own(run: GateRun, ci: Api) -> None:
    gate = factories.make_gate(run.project, **TESTS, timeout_seconds=30)
    theirs = factories.make_gate_run(gate)
    taken(ci, theirs)
    theirs.refresh_from_db()
    assert 29 <= (theirs.deadline_at - theirs.started_at).total_seconds() <= 31


def test_an_end_that_nobody_told_in_time_is_an_error_and_never_passed(run: GateRun, ci: Api) -> None:
    claim = taken(ci, run)
    GateRun.objects.filter(pk=run.pk).update(seen_at=db_now() - timedelta(hours=1))
    assert running.close_lost() == 0  # it does not beat: only its deadline counts
    GateRun.objects.filter(pk=run.pk).update(deadline_at=db_now() - timedelta(seconds=1))
    assert running.close_lost() == 1
    run.refresh_from_db()
    assert (run.state, run.error_kind, run.verdict) == ("error", "timeout", "failed")
    assert refused(ci.post(f"/gate-runs/{run.pk}/complete/", {"claim": claim, "exit_code": 0}))[1] == "invalid_move"


@pytest.mark.parametrize("seconds", [0, 3600])
def test_what_is_told_after_the_time_limit_is_an_error_though_nobody_swept(run: GateRun, ci: Api, seconds: int) -> None:
    claim = taken(ci, run)
    assert send(ci, run, claim, GOOD).status_code == 201
    GateRun.objects.filter(pk=run.pk).update(deadline_at=db_now() - timedelta(seconds=seconds))
    late = send(ci, run, claim, GOOD)
    assert refused(late) == (409, "deadline_passed")
    assert "time limit" in late.json()["detail"]
    told = ci.post(f"/gate-runs/{run.pk}/complete/", {"claim": claim, "exit_code": 0, "output": "2 passed\n"})
    assert told.status_code == 200
    ended = told.json()
    assert (ended["state"], ended["error_kind"], ended["verdict"]) == ("error", "timeout", "failed")
    assert "after its time limit" in ended["decision_reason"]
    assert (ended["exit_code"], ended["total_tests"], ended["evidence"]["junit"]["bytes"]) == (0, 2, len(GOOD))
    assert ended["check_run"]["conclusion"] == "timed_out"
    assert ci.get(f"/gate-runs/{run.pk}/log/").content == b"2 passed\n"


@pytest.mark.parametrize(
    ("edited", "ending", "state"),
    [
        ({"expected_exit_codes": [0, 7]}, 7, "error"),
        ({"expected_exit_codes": [3]}, 0, "passed"),
        ({"finding_exit_codes": [7]}, 7, "error"),
        ({"evidence": {"junit": "other.xml"}}, 0, "passed"),
        ({"evidence": {"tap": "t.tap"}}, 0, "passed"),
        ({"shards": 2, "evidence": {"junit": "j-{shard}.xml"}}, 0, "passed"),
        ({"cwd": "lib"}, 0, "passed"),
    ],
    ids=["codes", "stricter codes", "finding codes", "place", "kind", "shards", "folder"],
)
def test_a_run_is_reported_and_judged_by_the_gate_that_it_was_asked_of(
    run: GateRun, ci: Api, edited: dict[str, Any], ending: int, state: str
) -> None:
    claim = taken(ci, run)
    assert run.gate is not None
    run.gate.edit(by=factories.BY, **edited)
    assert send(ci, run, claim, GOOD).status_code == 201
    ended = ci.post(f"/gate-runs/{run.pk}/complete/", {"claim": claim, "exit_code": ending}).json()
    assert (ended["gate_version"], ended["state"]) == (1, state), ended["decision_reason"]
    assert GateRun.objects.newest(run.gate, run.tree_hash, base_tree="", patch=None) is None


def test_a_run_that_nobody_took_in_time_is_the_machine_s_failure(run: GateRun) -> None:
    assert external.close_unheard() == 0
    type(run.gate).objects.filter(pk=run.gate_id).update(timeout_seconds=1)
    GateRun.objects.filter(pk=run.pk).update(created_at=db_now() - timedelta(seconds=2))
    assert external.close_unheard() == 1
    run.refresh_from_db()
    assert (run.state, run.error_kind, run.verdict) == ("error", "infra", "unknown")
    assert "no system outside began it" in run.decision_reason


def test_a_run_is_asked_for_on_a_patch_or_a_tree(run: GateRun, ci: Api) -> None:
    tree = "a" * 40
    asked = ci.post("/gate-runs/", {"gate": run.gate_id, "tree_hash": tree})
    assert (asked.status_code, asked.json()["state"], asked.json()["tree_hash"]) == (201, "pending", tree)
    assert refused(ci.post("/gate-runs/", {"gate": run.gate_id})) == (422, "invalid_field")
    answer = ci.post("/gate-runs/", {"gate": run.gate_id, "tree_hash": "x"})
    assert refused(answer)[0] == 422
    assert "40 or 64 hexadecimal digits" in answer.json()["detail"]
    answer = ci.post(f"/gate-runs/{run.pk}/start/", {"runner": "a b"})
    assert "printable ASCII characters without a blank" in answer.json()["detail"]
    patch = factories.make_patch(project=run.project)
    answer = refused(ci.post("/gate-runs/", {"gate": run.gate_id, "patch": patch.pk}))
    assert answer == (409, "invalid_move")
    stranger = Api(factories.make_key("operator", project=factories.make_project()).text)
    assert refused(stranger.post("/gate-runs/", {"gate": run.gate_id, "tree_hash": tree})) == (404, "gate_not_found")


def test_a_gate_of_ours_needs_a_command_and_an_external_one_does_not() -> None:
    assert factories.make_gate(external=True, command=[]).command == []
    with pytest.raises(InvalidField, match="command"):
        factories.make_gate(command=[])


@pytest.mark.django_db(transaction=True)
def test_a_patch_lands_when_the_system_outside_says_so_with_evidence(tmp_path: Path) -> None:
    house = House(tmp_path, [piece("a")], gates={"ci": TESTS})
    house.deliver({"a.txt": "a\n"})
    house.drain()
    (run,) = house.gate_runs()
    assert (run.state, house.run.state) == ("pending", "running")
    claim = external.start(run, by=factories.BY, runner_name="ci")
    run.refresh_from_db()
    external.keep_evidence(run, "junit", GOOD, claim=claim)
    assert external.check_run(run)["head_sha"] == run.queue_item.candidate_commit != ""
    external.complete(run, by=factories.BY, claim=claim, conclusion="success")
    house.drain()
    assert house.run.state == "succeeded"
    house.must_hold()


@pytest.mark.parametrize(
    "wrong", [{"exit_code": "0"}, {"exit_code": 0.0}, {"exit_code": False}, {"exit_code": 0, "shards": "1"}]
)
def test_an_exit_code_is_a_number_and_no_text_that_looks_like_one(run: GateRun, ci: Api, wrong: dict[str, Any]) -> None:
    claim = taken(ci, run)
    send(ci, run, claim, GOOD)
    assert refused(ci.post(f"/gate-runs/{run.pk}/complete/", {"claim": claim, **wrong})) == (422, "invalid_field")
    run.refresh_from_db()
    assert run.state == "running"
